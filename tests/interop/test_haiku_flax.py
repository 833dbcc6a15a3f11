"""The traps of `haiku.experimental.flax`, and how each is here.

Each test has the name of a row of docs/coming_from_haiku_flax.md.
"""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haiku_state import errors, interop
from haiku_state import linen as nn

KEY = jax.random.PRNGKey(0)
X = jax.random.normal(KEY, (4, 3))


def test_keys_come_from_haiku():
  f = hk.transform(lambda x: nn.Dropout(0.5, deterministic=False)(x))
  y = f.apply({}, KEY, X)
  assert (np.asarray(y) == 0).any() and not (np.asarray(y) == 0).all()
  np.testing.assert_array_equal(y, f.apply({}, KEY, X))


def test_lifted_batch_norm_is_initialized_outside_of_the_map():
  def norm(axis_name):
    return lambda x: nn.BatchNorm(False, axis_name=axis_name)(x)

  f, g = (hk.transform_with_state(norm(name)) for name in ('batch', None))
  params, state = f.init(KEY, X[0])
  mapped = jax.vmap(
    lambda x: f.apply(params, state, None, x),
    axis_name='batch',
    out_axes=(0, None),
  )
  y, new = mapped(X)
  want, want_new = g.apply(params, state, None, X)
  np.testing.assert_allclose(y, want, 1e-6, 1e-6)
  jax.tree.map(np.testing.assert_array_equal, new, want_new)


def test_mutable():
  f = hk.transform_with_state(lambda x: nn.BatchNorm(False)(x))
  params, state = f.init(KEY, X)
  _, new = f.apply(params, state, None, X)
  key = 'batch_stats:mean'
  assert not np.array_equal(new['batch_norm'][key], state['batch_norm'][key])
  module = interop.as_module(f)
  variables = module.init(KEY, X)
  _, new = module.apply(variables, X, mutable=['batch_stats'])
  assert list(new) == ['batch_stats']
  with pytest.raises(errors.ModifyScopeVariableError):
    module.apply(variables, X)
  # Two kinds of state in one collection could not be told apart.
  with pytest.raises(ValueError, match='batch_stats.*another `collection='):
    interop.as_module(f, collection='batch_stats').init(KEY, X)


class Sower(nn.Module):
  @nn.compact
  def __call__(self, x):
    self.sow('metrics', 'mean', jnp.mean(x))
    return x


def test_what_is_sown_is_kept():
  f = hk.transform_with_state(lambda x: Sower()(x))
  _, state = f.init(KEY, X)
  _, state = f.apply({}, {}, None, X)
  (mean,) = jax.tree.leaves(state)
  np.testing.assert_allclose(mean, X.mean(), 1e-6)


def test_an_immutable_change_is_named_as_it_is_stored():
  module = interop.as_module(hk.transform_with_state(lambda x: Sower()(x)))
  variables = module.init(KEY, X)
  with pytest.raises(
    errors.ModifyScopeVariableError, match='"mean" in "/sower".*"metrics"'
  ):
    module.apply(variables, X + 1)


@pytest.mark.parametrize('stream', ['haiku', 'apply', 'dropout', 'params'])
def test_streams(stream):
  f = hk.transform(lambda x: hk.dropout(hk.next_rng_key(), 0.5, x))
  y = interop.as_module(f).apply({}, X, rngs={stream: KEY})
  assert (np.asarray(y) == 0).any()


def test_state_first_made_in_apply():
  def f(x):
    if not hk.running_init():
      hk.set_state('late', x.sum())
    return x

  module = interop.as_module(hk.transform_with_state(f))
  _, new = module.apply({}, X, mutable=['state'])
  np.testing.assert_allclose(new['state']['late'], X.sum())
  with pytest.raises(errors.ModifyScopeVariableError, match='"state"'):
    module.apply({}, X)


def test_parameter_and_module_of_one_name():
  def f(x):
    w = hk.get_parameter('linear', (3,), init=jnp.ones)
    return hk.Linear(3)(x * w)

  with pytest.raises(ValueError, match='"linear".*value and of a module'):
    interop.as_module(hk.transform(f)).init(KEY, X)


def test_collections_can_be_chosen():
  f = hk.transform_with_state(
    lambda x: hk.BatchNorm(True, True, 0.9)(x, is_training=True)
  )
  module = interop.as_module(f, collection='batch_stats')
  variables = module.init(KEY, X)
  _, new = module.apply(variables, X, mutable=['batch_stats'])
  assert list(new) == ['batch_stats']


def test_other_methods_than_call():
  class Model(nn.Module):
    def setup(self):
      self.dense = nn.Dense(2)

    def __call__(self, x):
      return self.encode(x)

    def encode(self, x):
      return self.dense(x)

  f = interop.as_multi_transformed(Model(), {'encode': 'encode'})
  params, state = f.init(KEY, X)
  assert f.apply['encode'](params, state, None, X)[0].shape == (4, 2)


def test_conversion_runs():
  f = hk.transform(lambda x: hk.nets.MLP([4, 2])(x))
  params = f.init(KEY, X)
  mapping = {
    f'mlp/~/linear_{i}': interop.layers.linear(f'Dense_{i}') for i in range(2)
  }
  variables, _ = interop.weights_from_haiku(params, {}, mapping)

  class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = nn.relu(nn.Dense(4)(x))
      return nn.Dense(2)(x)

  np.testing.assert_allclose(
    MLP().apply(variables, X), f.apply(params, None, X), 1e-6, 1e-6
  )
