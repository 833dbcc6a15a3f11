"""Variables come in the order in which they were made, as in Flax."""

import jax
import jax.numpy as jnp
import pytest

from haiku_state import linen


def model(nn):
  """Returns a model that makes variables in a mixed order."""

  class Inner(nn.Module):
    @nn.compact
    def __call__(self, x):
      self.variable('z', 'z', jnp.zeros, ())
      self.param('b', nn.initializers.zeros, ())
      self.param('a', nn.initializers.zeros, ())
      self.variable('empty', 'dict', dict)
      return x

  class Outer(nn.Module):
    @nn.compact
    def __call__(self, x):
      count = self.variable('counts', 'n', lambda: jnp.zeros(()))
      self.param('w', nn.initializers.ones, ())
      x = Inner(name='second')(Inner(name='first')(x))
      self.param('a', nn.initializers.ones, ())
      self.sow('intermediates', 'x', x)
      if count.is_mutable():
        count.value += 1
      return x

  return Outer()


def names(tree):
  if not hasattr(tree, 'items'):
    return None
  return [(name, names(below)) for name, below in tree.items()]


def test_order_at_init_is_flax_s():
  flax_nn = pytest.importorskip('flax.linen')
  key = jax.random.key(0)
  ours = model(linen).init(key, 1.0)
  theirs = model(flax_nn).init(key, 1.0)
  assert names(ours) == names(theirs)
  assert list(ours) == ['counts', 'params', 'z', 'empty']


@pytest.mark.parametrize(
  'mutable', [True, ['z', 'counts'], ['intermediates', 'params'], ['empty']]
)
def test_order_of_updates_is_flax_s(mutable):
  flax_nn = pytest.importorskip('flax.linen')
  given = model(linen).init(jax.random.key(0), 1.0).unfreeze()
  # What is given keeps its own order.
  given = dict(reversed(given.items()))
  _, ours = model(linen).apply(given, 1.0, mutable=mutable)
  _, theirs = model(flax_nn).apply(given, 1.0, mutable=mutable)
  assert names(ours) == names(theirs)
