import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haiku_state import jax_utils
from haiku_state.training import common_utils

N = jax.local_device_count()


def test_shard():
  tree = {'x': np.arange(N * 6).reshape(N * 2, 3), 'y': jnp.arange(N * 2)}
  out = common_utils.shard(tree)
  assert out['x'].shape == (N, 2, 3) and out['y'].shape == (N, 2)
  np.testing.assert_array_equal(out['x'][-1, -1], tree['x'][-1])


@pytest.mark.parametrize('make', [jax.random.key, jax.random.PRNGKey])
def test_shard_prng_key(make):
  keys = common_utils.shard_prng_key(make(3))
  assert keys.dtype == make(3).dtype and keys.shape == (N, *make(3).shape)
  draws = [float(jax.random.uniform(key)) for key in keys]
  assert len(set(draws)) == N


def test_stack_forest():
  forest = tuple({'a': np.full(2, i), 'b': [i]} for i in range(3))
  out = common_utils.stack_forest(forest)
  np.testing.assert_array_equal(out['a'], [[0, 0], [1, 1], [2, 2]])
  np.testing.assert_array_equal(out['b'][0], [0, 1, 2])


def test_get_metrics():
  def metrics(i):
    return jax_utils.replicate({'loss': np.float32(i), 'v': np.full(2, i)})

  out = common_utils.get_metrics([metrics(i) for i in range(3)])
  np.testing.assert_array_equal(out['loss'], [0, 1, 2])
  np.testing.assert_array_equal(out['v'], [[0, 0], [1, 1], [2, 2]])


def test_get_metrics_of_pmap():
  step = jax.pmap(lambda x: {'n': jax.lax.psum(x, 'i')}, axis_name='i')
  out = common_utils.get_metrics([step(np.ones(N)), step(2 * np.ones(N))])
  np.testing.assert_array_equal(out['n'], [N, 2 * N])


@pytest.mark.parametrize('shape', [(), (4,), (2, 3)])
@pytest.mark.parametrize('values', [(), (0.9, 0.1), (3, -1)])
def test_onehot(shape, values):
  labels = jnp.arange(int(np.prod(shape))).reshape(shape) - 1
  out = common_utils.onehot(labels, 3, *values)
  on, off = values or (1.0, 0.0)
  expected = np.where(labels[..., None] == np.arange(3), on, off)
  np.testing.assert_array_equal(out, expected.astype(np.float32))
  assert out.dtype == jnp.float32
  np.testing.assert_array_equal(
    jax.jit(lambda x: common_utils.onehot(x, 3, *values))(labels), out
  )


def test_signatures_are_flax():
  theirs = pytest.importorskip('flax.training.common_utils')
  for name, function in inspect.getmembers(theirs, inspect.isfunction):
    ours = inspect.signature(getattr(common_utils, name))
    assert ours == inspect.signature(function), name
