import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax_names import mesh_of
from left_out import all_but

from haiku_state import jax_utils

N = jax.local_device_count()


def _flax():
  return pytest.importorskip('flax.jax_utils')


def _same(ours, theirs):
  assert jax.tree.structure(ours) == jax.tree.structure(theirs)
  for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs)):
    assert type(x) is type(y)
    if isinstance(x, jax.Array) and jax.dtypes.issubdtype(
      x.dtype, jax.dtypes.prng_key
    ):
      x, y = jax.random.key_data(x), jax.random.key_data(y)
    np.testing.assert_array_equal(x, y)
    if isinstance(x, (np.ndarray, jax.Array)):
      assert x.dtype == y.dtype
    if isinstance(x, jax.Array):
      assert x.sharding == y.sharding


_TREE = {
  'host': np.arange(3),
  'number': 2.5,
  'key': jax.random.key(0),
  'raw key': jax.random.PRNGKey(0),
  'device': jnp.ones((2, 2), jnp.bfloat16),
  'none': None,
}


def test_replicate_and_back():
  copies = jax_utils.replicate(_TREE)
  assert all(x.shape[0] == N for x in jax.tree.leaves(copies))
  if N > 1:
    shards = copies['host'].addressable_shards
    assert len({shard.device for shard in shards}) == N
  back = jax_utils.unreplicate(copies)
  for x, y in zip(jax.tree.leaves(back), jax.tree.leaves(_TREE)):
    assert jnp.array_equal(x, y) and x.shape == np.shape(y)
  _same(back, _flax().unreplicate(_flax().replicate(_TREE)))


@pytest.mark.parametrize('count', [1, 2, N])
def test_replicate_to_some_devices(count):
  devices = jax.local_devices()[:count]
  ours = jax_utils.replicate(_TREE, devices, axis_name='i')
  _same(ours, _flax().replicate(_TREE, devices, axis_name='i'))


def test_replicated_goes_into_pmap():
  x = jax_utils.replicate(np.arange(3.0))
  y = jax.pmap(lambda x: jax.lax.psum(x, 'i'), axis_name='i')(x)
  np.testing.assert_array_equal(jax_utils.unreplicate(y), N * np.arange(3.0))


def _whole_everywhere():
  mesh = mesh_of((N,), ('i',))
  spec = jax.sharding.PartitionSpec()
  sharding = jax.sharding.NamedSharding(mesh, spec)
  return jax.device_put(np.arange(3), sharding)


@pytest.mark.parametrize(
  'make, expected',
  [
    (lambda: np.arange(6).reshape(2, 3), [0, 1, 2]),
    (lambda: jnp.arange(6).reshape(2, 3), [0, 1, 2]),
    (lambda: np.float32(3), 3),
    (lambda: jnp.float32(3), 3),
    (_whole_everywhere, [0, 1, 2] if N > 1 else 0),
    (lambda: jax.pmap(lambda x: x)(np.arange(N * 2).reshape(N, 2)), [0, 1]),
  ],
)
def test_unreplicate(make, expected):
  ours = jax_utils.unreplicate(make())
  np.testing.assert_array_equal(ours, expected)
  _same(ours, _flax().unreplicate(make()))


def test_pmean_warns():
  with pytest.warns(DeprecationWarning, match='use jax.lax.pmean instead'):
    y = jax.vmap(lambda x: jax_utils.pmean(x, 'i'), axis_name='i')(
      jnp.arange(3.0)
    )
  np.testing.assert_array_equal(y, [1, 1, 1])


def test_partial_eval_by_shape():
  def fn(x, y, scale, *, bias):
    assert not isinstance(scale, jax.core.Tracer)
    return {
      'unknown': x @ jnp.ones((3, 5)) + y,
      'known': jnp.ones(2) * scale + bias,
      'python': bias,
      'none': None,
    }

  spec = [(2, 3), ((5,), jnp.float32)]
  out = jax_utils.partial_eval_by_shape(fn, spec, 3.0, bias=1)
  np.testing.assert_array_equal(out.pop('known'), [4, 4])
  assert out == {
    'unknown': jax.ShapeDtypeStruct((2, 5), jnp.float32),
    'python': 1,
    'none': None,
  }


@pytest.mark.parametrize(
  'spec, shape, dtype',
  [
    ((2, 3), (2, 3), 'float32'),
    ((), (), 'float32'),
    ((4,), (4,), 'float32'),
    ([2, 3], (2, 3), 'float32'),
    (((2, 3), jnp.int32), (2, 3), 'int32'),
    (([2], 'bfloat16'), (2,), 'bfloat16'),
  ],
)
def test_specs(spec, shape, dtype):
  out = jax_utils.partial_eval_by_shape(lambda x: x + x, [spec])
  assert (out.shape, out.dtype) == (shape, dtype)


def test_partial_eval_decides_on_known_values():
  # Under jax.eval_shape this would be a concretization error.
  def fn(x):
    return x if jnp.sum(jnp.ones(3)) > 2 else None

  assert jax_utils.partial_eval_by_shape(fn, [(1,)]).shape == (1,)


@pytest.mark.parametrize('size', [1, 2, 5])
@pytest.mark.parametrize('on_device', [False, True])
def test_prefetch_to_device(size, on_device):
  made = []

  def batches():
    for i in range(4):
      made.append(i)
      x = np.full((N, 2), i)
      yield {'x': jnp.asarray(x) if on_device else x}

  taken = 0
  for batch in jax_utils.prefetch_to_device(batches(), size):
    assert len(made) == min(taken + size, 4)
    np.testing.assert_array_equal(batch['x'], np.full((N, 2), taken))
    assert len(batch['x'].sharding.device_set) == N
    taken += 1
  assert taken == 4


def test_prefetch_a_list():
  batches = [np.full((N, 1), i) for i in range(3)]
  out = jax_utils.prefetch_to_device(batches, 2)
  assert [int(x[0, 0]) for x in out] == [0, 1, 2]


@pytest.mark.parametrize('keepdims', [False, True])
@pytest.mark.parametrize('unroll', all_but([(1, 3)], [1, (2,), (1, 3)]))
@pytest.mark.parametrize('axis', [0, (1,), -1, (2, 0), (-1, 1), (0, 1, 2)])
def test_scan_in_dim(axis, unroll, keepdims):
  if isinstance(unroll, tuple) and len(unroll) > len(np.atleast_1d(axis)):
    pytest.skip('More to unroll than there are loops.')
  shapes = []

  def body(carry, x):
    shapes.append(x.shape)
    return carry + jnp.sum(x), {'y': 2 * x + carry}

  xs = jnp.arange(24.0).reshape(2, 3, 4)
  args = (body, 0.0, xs, axis, unroll, keepdims)
  ours = jax_utils.scan_in_dim(*args)
  loops = {i % 3 for i in np.atleast_1d(axis)}
  shape = [1 if i in loops else n for i, n in enumerate(xs.shape)]
  if not keepdims:
    shape = [n for i, n in enumerate(shape) if i not in loops]
  assert set(shapes) == {tuple(shape)}
  carry, ys = _by_loops(np.asarray(xs), axis)
  np.testing.assert_array_equal(ours[0], carry)
  np.testing.assert_array_equal(ours[1]['y'], ys)
  _same(ours, _flax().scan_in_dim(*args))


def _by_loops(xs, axis):
  axis = axis if isinstance(axis, tuple) else (axis,)
  front = range(len(axis))
  xs = np.moveaxis(xs, axis, front)
  carry, ys = 0.0, np.empty_like(xs)
  for i in np.ndindex(xs.shape[: len(axis)]):
    ys[i] = 2 * xs[i] + carry
    carry += xs[i].sum()
  return carry, np.moveaxis(ys, front, axis)


@pytest.mark.parametrize('dtype', [np.float32, np.uint8, jnp.bfloat16])
@pytest.mark.parametrize('batch', [1, N - 1 or 1, N, N + 1, 5 * N, 5 * N + 1])
@pytest.mark.parametrize('min_device_batch', [None, 1, 3])
def test_pad_shard_unpad(dtype, batch, min_device_batch):
  shapes = []

  def add(scale, x, *, y, offset):
    shapes.append((x.shape, y['y'].shape))
    return {'sum': scale * x + y['y'] + offset, 'x': jnp.asarray(x)}

  wrapped = jax_utils.pad_shard_unpad(add, static_argnames=('offset',))
  x = np.arange(batch * 2).reshape(batch, 2).astype(dtype)
  out = wrapped(
    np.ones(2, dtype),
    x,
    y={'y': 2 * x},
    offset=np.ones((), dtype),
    min_device_batch=min_device_batch,
  )
  per_device = max(-(-batch // N), min_device_batch or 0)
  assert shapes == [((N, per_device, 2),) * 2]
  np.testing.assert_array_equal(out['sum'], 3 * x + 1)
  np.testing.assert_array_equal(out['x'], x)
  assert all(isinstance(y, np.ndarray) for y in out.values())
  assert out['sum'].dtype == out['x'].dtype == dtype


def test_pad_shard_unpad_static_return():
  count = jax_utils.pad_shard_unpad(
    lambda x: x.shape, static_argnums=(), static_return=True
  )
  assert count(np.ones((N + 1, 3))) == (N, 2, 3)


def test_pad_shard_unpad_under_pmap():
  double = jax_utils.pad_shard_unpad(
    jax.pmap(lambda w, x: w * x), static_argnums=(0,)
  )
  x = np.arange(N + 1.0)
  w = jax_utils.replicate(2.0)
  np.testing.assert_array_equal(double(w, x), 2 * x)


def test_inconsistent_batches():
  add = jax_utils.pad_shard_unpad(lambda x, y: x + y, static_argnums=())
  with pytest.raises(AssertionError, match='Inconsistent batch-sizes: {'):
    add(np.ones(3), y=np.ones(4))


def test_signatures_are_flax():
  for name, theirs in inspect.getmembers(_flax(), inspect.isfunction):
    if not name.startswith('_'):
      ours = inspect.signature(getattr(jax_utils, name))
      assert ours == inspect.signature(theirs), name
