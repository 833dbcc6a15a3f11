"""Nothing outlives what it belongs to: no tracer its trace, no class its use."""

import gc
import weakref

import haiku as hk
import jax
import jax.numpy as jnp
import pytest

from haiku_state import linen as nn

KEY = jax.random.key(0)
XS = jnp.ones((2, 3, 4))


class Step(nn.Module):
  @nn.compact
  def __call__(self, carry, _):
    return nn.Dense(4)(carry), None


class Broadcast(nn.Module):
  """Loops with parameters that are the same in all steps."""

  @nn.compact
  def __call__(self, xs):
    loop = nn.scan(
      Step, variable_broadcast='params', split_rngs={'params': False}, length=2
    )
    return loop()(xs, None)[0]


class Recurrent(nn.Module):
  @nn.compact
  def __call__(self, xs):
    return nn.RNN(nn.LSTMCell(4))(xs)


def in_haiku(module):
  return hk.transform(lambda xs: module.clone()(xs)).init


WAYS = {
  'own run': lambda module: module.init,
  'under jit': lambda module: jax.jit(module.init),
  'in hk.transform': in_haiku,
  'in hk.transform, under jit': lambda module: jax.jit(in_haiku(module)),
}


@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('module', [Broadcast(), Recurrent()], ids=repr)
def test_init_leaks_no_tracer(module, way):
  with jax.checking_leaks():
    WAYS[way](module)(KEY, XS)


class Kept:
  """Counts the classes that were made, and are still there."""

  def __init__(self):
    self.refs = []

  def note(self, cls):
    self.refs.append(weakref.ref(cls))
    return cls

  def __len__(self):
    gc.collect()
    return sum(ref() is not None for ref in self.refs)


def test_a_class_that_is_jitted_in_a_method_is_not_kept():
  kept = Kept()

  class Jits(nn.Module):
    @nn.compact
    def __call__(self, x):
      return kept.note(nn.jit(nn.Dense))(3)(x)

  variables = Jits().init(KEY, XS)
  for _ in range(3):
    Jits().apply(variables, XS)
  assert len(kept.refs) == 4
  # The last one is known to the module that was bound last.
  assert len(kept) <= 1


def test_a_new_class_each_time_is_not_kept():
  kept = Kept()

  class Jits(nn.Module):
    @nn.compact
    def __call__(self, x):
      class New(nn.Module):
        @nn.jit
        @nn.compact
        def __call__(self, x):
          return nn.Dense(3)(x)

      return kept.note(New)(name='new')(x)

  variables = Jits().init(KEY, XS)
  for _ in range(3):
    Jits().apply(variables, XS)
  assert len(kept.refs) == 4
  assert len(kept) <= 1
