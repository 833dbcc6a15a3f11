"""Every array comes back from every format as it was, or is not written."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from haiku_state._plain_arrays import ML_DTYPES
from haiku_state.core import freeze
from haiku_state.interop import checkpoints

DTYPES = {
  name: np.dtype(name)
  for name in """
    bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32
    float64 longdouble complex64 complex128 clongdouble <U3 S4 M8[ns] m8[25s]
    """.split()
}
DTYPES |= ML_DTYPES
DTYPES |= {f'>{x}': np.dtype(f'>{x}') for x in ('i4', 'f8', 'c8', 'U2')}
DTYPES['fields'] = np.dtype([('a', 'i4'), ('b', '>f8', (2,))])
DTYPES['record'] = np.rec.array([(1, 2.0)]).dtype
DTYPES['raw'] = np.dtype('V3')

# Arrays of (3, 4) in as many ways as there are to lay them out, and others.
LAYOUTS = {
  'plain': lambda x: x,
  'fortran': np.asfortranarray,
  'transposed': lambda x: x.T,
  'every second': lambda x: x[:, ::2],
  'reversed': lambda x: x[::-1],
  'broadcast': lambda x: np.broadcast_to(x[:1], (5, 4)),
  '0-d': lambda x: x[0, 0, ...],
  'empty': lambda x: x[:0],
  'empty and wide': lambda x: x[:, :0],
  'read-only': lambda x: np.broadcast_to(x, x.shape),
}
# JAX takes these, and XLA fails on them.
NOT_ON_DEVICES = ('int1', 'uint1', 'float6_e2m3fn', 'float6_e3m2fn')
KINDS = ('numpy', 'jax', 'scalar')
FORMATS = {
  'npz': (checkpoints.save_npz, checkpoints.load_npz),
  'safetensors': (checkpoints.save_safetensors, checkpoints.load_safetensors),
  'msgpack': (checkpoints.save_msgpack, checkpoints.load_msgpack),
}
# What has no place: fields and raw bytes, but in a npz file; and msgpack has
# one order of bytes.
REFUSED = {
  ('safetensors', 'fields'),
  ('safetensors', 'record'),
  ('safetensors', 'raw'),
  ('msgpack', 'fields'),
  ('msgpack', 'record'),
  ('msgpack', 'raw'),
}


def an_array(dtype):
  """Returns (3, 4) values of a dtype: any bits that are one."""
  rng = np.random.default_rng(0)
  if dtype.kind in 'USmM':
    return rng.integers(0, 99, (3, 4)).astype(dtype)
  if dtype.kind == 'b':
    return rng.integers(0, 2, (3, 4)).astype(dtype)
  if dtype.name.startswith(('int', 'uint')) or dtype.name.startswith('float4'):
    return rng.integers(0, 2, (3, 4)).astype(dtype)
  if dtype in (np.longdouble, np.clongdouble):  # Not all bits are numbers.
    return rng.normal(size=(3, 4)).astype(dtype)
  size = dtype.itemsize
  bits = rng.integers(0, 256, (3, 4 * size), np.uint8)
  return bits.view(dtype)


def of_kind(array, kind):
  """Returns an array as one of JAX, or a scalar of it; None if there is none."""
  if kind == 'numpy':
    return array
  if kind == 'scalar':
    found = array[(0,) * array.ndim] if array.size else None
    # The bytes that fill up a long double are no value.
    padded = array.dtype in (np.longdouble, np.clongdouble)
    return found if isinstance(found, np.generic) and not padded else None
  if array.dtype.name in NOT_ON_DEVICES or array.dtype.itemsize >= 8:
    return None
  try:
    found = jnp.asarray(array)
  except (TypeError, ValueError):
    return None
  return found if found.dtype == array.dtype else None


def content(x):
  x = np.asarray(x)
  return x.dtype, x.shape, x.tobytes()


@pytest.mark.parametrize('name', DTYPES)
@pytest.mark.parametrize('kind', FORMATS)
def test_each_dtype_and_layout_comes_back(kind, name, tmp_path):
  if kind == 'msgpack':
    pytest.importorskip('msgpack')
  save, load = FORMATS[kind]
  path = tmp_path / 'weights'
  base = an_array(DTYPES[name])
  tree = {}
  for layout, lay in LAYOUTS.items():
    for of in KINDS:
      value = of_kind(lay(base), of)
      if value is not None:
        tree.setdefault(layout, {})[of] = value
  if (kind, name) in REFUSED:
    with pytest.raises(
      checkpoints.WeightsFileError, match='(?s)(?=.*/numpy).*npz'
    ):
      save(path, tree)
    assert not os.listdir(tmp_path)
    return
  save(path, tree)
  read = load(path)
  assert jax.tree.structure(read) == jax.tree.structure(tree)
  for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(read)):
    if kind == 'msgpack':
      a = np.asarray(a)
      a = a.astype(a.dtype.newbyteorder('='))
    assert content(a) == content(b)


names = st.text(max_size=4) | st.sampled_from(
  [
    '',
    '/',
    '//',
    'a/',
    'file',
    'a.npy',
    '__metadata__',
    '\0',
    '.',
    '..',
    'a\\b',
  ]
)
leaves = st.sampled_from(list(DTYPES.values())).flatmap(
  lambda dtype: st.sampled_from(
    [lay(an_array(dtype)) for lay in LAYOUTS.values()]
  )
)
trees = st.dictionaries(
  names,
  st.recursive(
    leaves, lambda x: st.dictionaries(names, x, max_size=3), max_leaves=4
  ),
  max_size=3,
)


@pytest.mark.parametrize('kind', FORMATS)
@settings(
  deadline=None,
  suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(tree=trees)
@example(tree={'a/': {'b': np.ones(1)}})
@example(tree={'a': {}, 'b': {'c': {}}})
@example(tree={'': {'': np.ones(1)}, 'file': np.ones(1)})
@example(tree={'\ud800': np.ones(1)})
def test_each_tree_comes_back_or_is_not_written(kind, tree, tmp_path):
  if kind == 'msgpack':
    pytest.importorskip('msgpack')
  save, load = FORMATS[kind]
  path = tmp_path / 'weights'
  path.unlink(missing_ok=True)
  try:
    save(path, tree)
  except checkpoints.WeightsFileError as e:
    assert 'Nothing is written.' in str(e) and len(str(e)) < 600
    assert not os.listdir(tmp_path)
    return
  read = load(path)
  assert jax.tree.structure(read) == jax.tree.structure(tree)
  for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(read)):
    assert content(a)[1:] == content(b)[1:] or kind == 'msgpack'
    np.testing.assert_array_equal(np.asarray(a), b)


LOST = {
  'objects': np.array([None]),
  'none': None,
  'list': [1, 2],
  'masked': np.ma.masked_array([1, 2], [True, False]),
  'key': jax.random.key(0),
  'other': object(),
}


@pytest.mark.parametrize('name', LOST)
@pytest.mark.parametrize(
  'save', [checkpoints.save_npz, checkpoints.save_safetensors]
)
def test_what_is_no_array_is_refused_with_its_path(save, name, tmp_path):
  with pytest.raises(checkpoints.WeightsFileError, match='"m/w"'):
    save(tmp_path / 'weights', {'m': {'w': LOST[name]}}, separator=':')
  assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
  'save', [checkpoints.save_npz, checkpoints.save_safetensors]
)
@pytest.mark.parametrize('tree', [{0: np.ones(1)}, {'a': {None: np.ones(1)}}])
def test_names_are_text(save, tree, tmp_path):
  with pytest.raises(checkpoints.WeightsFileError, match='Names in a file'):
    save(tmp_path / 'weights', tree)


# --- Other readers -----------------------------------------------------------


def test_numpy_reads_what_we_write(tmp_path):
  path = tmp_path / 'a.npz'
  tree = {'a': {'w': np.ones((2, 3)), 'h': jnp.ones(2, jnp.bfloat16)}}
  checkpoints.save_npz(path, tree)
  with np.load(path) as file:
    assert sorted(file.files) == ['a//h', 'a//w']
    assert content(file['a//w']) == content(tree['a']['w'])
    assert content(file['a//h'].view(jnp.bfloat16)) == content(tree['a']['h'])


@pytest.mark.parametrize('compressed', [False, True])
def test_we_read_what_numpy_writes(tmp_path, compressed):
  save = np.savez_compressed if compressed else np.savez
  arrays = {
    name: an_array(dtype)
    for name, dtype in DTYPES.items()
    if dtype.isbuiltin != 2
  }
  save(tmp_path / 'a.npz', **arrays)
  read = checkpoints.load_npz(tmp_path / 'a.npz')
  for name, array in arrays.items():
    assert content(read[name]) == content(array)


def test_safetensors_reads_what_we_write_and_we_what_it_writes(tmp_path):
  st = pytest.importorskip('safetensors.numpy')
  tree = {
    name: an_array(np.dtype(name))
    for name in 'bool int8 uint16 int32 int64 float16 float32 float64'.split()
  }
  tree |= {'0-d': np.array(2, np.float32), 'none': np.ones((0, 3))}
  checkpoints.save_safetensors(tmp_path / 'a', tree)
  theirs = st.load_file(tmp_path / 'a')
  st.save_file(tree, tmp_path / 'b', metadata={'format': 'np'})
  ours = checkpoints.load_safetensors(tmp_path / 'b')
  for name, array in tree.items():
    assert content(theirs[name]) == content(array)
    assert content(ours[name]) == content(array)


def test_notes_are_where_other_readers_do_not_look(tmp_path):
  checkpoints.save_safetensors(
    tmp_path / 'a', {'a': np.ones(2, 'int4'), 'e': {}}
  )
  data = (tmp_path / 'a').read_bytes()
  header = json.loads(data[8 : 8 + int.from_bytes(data[:8], 'little')])
  assert header.pop('__metadata__')['haiku_state']
  assert header == {
    'a': {'dtype': 'U8', 'shape': [2, 1], 'data_offsets': [0, 2]}
  }


def test_frozen_dicts_are_dicts(tmp_path):
  for save, load in FORMATS.values():
    save(tmp_path / 'a', freeze({'a': {'w': np.ones(1)}}))
    assert content(load(tmp_path / 'a')['a']['w']) == content(np.ones(1))
