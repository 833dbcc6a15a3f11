"""Files of weights: there and back, and what is damaged or not allowed."""

import collections
import os
import pickle
import zipfile

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fuzz import pickles as fuzz_pickles

from haiku_state import interop
from haiku_state._plain_arrays import ML_DTYPES
from haiku_state.interop import checkpoints

HAIKU = {
  'mlp/~/linear_0': {'w': np.ones((2, 3), np.float32), 'b': np.arange(3)},
  'norm': {'scale': np.float64(2) * np.ones(())},
}
NESTED = {'params': {'a': {'b': {'w': np.ones(2)}}}, 'step': np.array(3)}

FORMATS = {
  'alphafold': (checkpoints.save_npz, checkpoints.load_npz, {}, HAIKU),
  'graphcast': (
    checkpoints.save_npz,
    checkpoints.load_npz,
    {'separator': ':'},
    {'params': HAIKU, 'x': NESTED},
  ),
  'safetensors': (
    checkpoints.save_safetensors,
    checkpoints.load_safetensors,
    {},
    NESTED,
  ),
  'safetensors of Haiku': (
    checkpoints.save_safetensors,
    checkpoints.load_safetensors,
    {'separator': '//'},
    HAIKU,
  ),
  'msgpack': (checkpoints.save_msgpack, checkpoints.load_msgpack, {}, NESTED),
}
each_format = pytest.mark.parametrize('name', FORMATS)


def use(name):
  if name == 'msgpack':
    pytest.importorskip('msgpack')
  return FORMATS[name]


def assert_same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(x, y)


@each_format
def test_there_and_back(name, tmp_path):
  save, load, options, tree = use(name)
  path = tmp_path / 'weights'
  save(path, tree, **options)
  assert os.listdir(tmp_path) == ['weights']
  assert_same(load(path, **options), tree)
  save(path, jax.tree.map(jnp.asarray, tree), **options)
  assert jax.tree.structure(load(path, **options)) == jax.tree.structure(tree)


@each_format
@pytest.mark.parametrize('damage', ['cut', 'noise', 'empty'])
def test_damaged_file_is_named(name, damage, tmp_path):
  save, load, options, tree = use(name)
  path = tmp_path / 'weights'
  save(path, tree, **options)
  content = path.read_bytes()
  half = len(content) // 2
  path.write_bytes(
    {'cut': content[:half], 'noise': b'\xc1noise', 'empty': b''}[damage]
  )
  with pytest.raises(checkpoints.WeightsFileError, match='weights'):
    load(path, **options)


@each_format
def test_missing_file(name, tmp_path):
  _, load, options, _ = use(name)
  with pytest.raises(FileNotFoundError):
    load(tmp_path / 'none', **options)


def test_damaged_array_in_npz_is_named(tmp_path):
  path = tmp_path / 'a.npz'
  checkpoints.save_npz(path, HAIKU)
  with zipfile.ZipFile(path) as file:
    members = {name: file.read(name) for name in file.namelist()}
  members['norm//scale.npy'] = b'noise'
  with zipfile.ZipFile(path, 'w') as file:
    for name, content in members.items():
      file.writestr(name, content)
  with pytest.raises(checkpoints.WeightsFileError, match='norm//scale'):
    checkpoints.load_npz(path)


def test_npz_with_objects_is_refused(tmp_path):
  path = tmp_path / 'a.npz'
  np.savez(path, x=np.array([Evil()], dtype=object))
  with pytest.raises(checkpoints.WeightsFileError, match='"x"'):
    checkpoints.load_npz(path)
  assert not Evil.ran


def test_names_that_clash(tmp_path):
  path = tmp_path / 'a.npz'
  np.savez(path, **{'a': np.ones(1), 'a//b': np.ones(1)})
  with pytest.raises(checkpoints.WeightsFileError, match='"a//b": "a"'):
    checkpoints.load_npz(path)
  with pytest.raises(checkpoints.WeightsFileError, match='separator='):
    checkpoints.save_npz(path, {'a//b': {'w': np.ones(1)}})
  with pytest.raises(checkpoints.WeightsFileError, match='a//b'):
    checkpoints.load_npz(path)  # It was not written.


def test_alphafold_names(tmp_path):
  path = tmp_path / 'params.npz'
  np.savez(path, **{'alphafold/evoformer//weights': np.ones(2)})
  params = checkpoints.load_npz(path)
  assert list(params) == ['alphafold/evoformer']
  variables = interop.from_haiku(params)
  assert list(variables['params']['alphafold']) == ['evoformer']


# --- Pickles -----------------------------------------------------------------


class Evil:
  ran: list = []

  def __reduce__(self):
    return _run, ()


def _run():
  Evil.ran.append(1)
  return 1


class Other(collections.OrderedDict):
  pass


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickle(tmp_path, protocol):
  tree = {
    'a': {'w': jnp.ones((2, 3)), 'b': np.ones((2, 2), order='F')},
    'h': {'x': jnp.ones(2, jnp.bfloat16), 's': np.float32(3)},
  }
  path = tmp_path / 'a.pkl'
  immutable = hk.data_structures.to_immutable_dict(tree)
  path.write_bytes(pickle.dumps((tree, immutable, [1]), protocol))
  plain, mapping, rest = checkpoints.load_pickle(path, trust=True)
  assert_same(plain, jax.tree.map(np.asarray, tree))
  assert_same(mapping, plain)
  assert type(mapping) is dict and type(mapping['a']) is dict and rest == [1]


FORBIDDEN = {
  'function': Evil(),
  'system': os.system,
  'class': Other(a=1),
  'array of objects': np.array([Evil()], dtype=object),
  'getattr': getattr,
}


@pytest.mark.parametrize('name', FORBIDDEN)
def test_pickle_executes_nothing(tmp_path, name):
  path = tmp_path / 'a.pkl'
  path.write_bytes(pickle.dumps({'a': FORBIDDEN[name]}))
  with pytest.raises(
    checkpoints.WeightsFileError,
    match=r'a\.pkl: at byte \d+: (it names|.* no dtype)',
  ):
    checkpoints.load_pickle(path, trust=True)
  assert not Evil.ran


@pytest.mark.parametrize('trust', [False, 1, 'yes'])
def test_pickle_needs_consent(tmp_path, trust):
  path = tmp_path / 'a.pkl'
  path.write_bytes(pickle.dumps(HAIKU))
  with pytest.raises(checkpoints.WeightsFileError, match='trust=True'):
    checkpoints.load_pickle(path, trust=trust)


def test_damaged_pickle(tmp_path):
  path = tmp_path / 'a.pkl'
  path.write_bytes(pickle.dumps(HAIKU)[:-20])
  with pytest.raises(checkpoints.WeightsFileError, match='damaged'):
    checkpoints.load_pickle(path, trust=True)


# What a pickle may not do, by the operations that would do it.
ARRAY = b'cnumpy\nndarray\n'
DTYPE = b'cnumpy\ndtype\n'
DOUBLED = b'(K\x01t' + 40 * b'q\x00h\x00\x86' + b'.'
HOSTILE = {
  'array of pointers': (ARRAY + b'K\x01\x85' + DTYPE + b'(X\x01\0\0\0OtRC\x08AAAAAAAA\x87R.', 'numpy.ndarray` is called|no dtype'),
  'uninitialised memory': (ARRAY + b'K\x40\x85X\x02\0\0\0u1\x86R.', 'numpy.ndarray` is called'),
  'dtype with fields': (DTYPE + b'(X\x02\0\0\0V8\x89\x88tR.', '"V8" is no dtype'),
  'dtype forged by its state': (DTYPE + b'(X\x02\0\0\0f4tR(K\x03X\x01\0\0\0|NX\x01\0\0\0a}K\x08K\x01K\x10tb.', 'has fields'),
  'defaults of a function': (b'c_codecs\nencode\n}X\x0c\0\0\0__defaults__K\x01\x85sb.', 'of type name is changed'),
  'function as value': (b'c_codecs\nencode\n.', 'a name in it stands'),
  'doubled 40 times': (DOUBLED, 'become too many'),
  'doubled as a key': (b'}' + DOUBLED[:-1] + b'Ns.', 'key of type tuple'),
  'doubled as a shape': (b'cnumpy.core.multiarray\n_reconstruct\n' + ARRAY + b'K\x00\x85C\x01b\x87R(K\x01' + DOUBLED[:-1] + DTYPE + b'(X\x02\0\0\0f4tR\x89C\x00tb.', 'shape'),
  'its own item': (b']q\x00h\x00a.', 'levels deep'),
  'deep': (b'(' * 5000 + b't' * 5000 + b'.', 'levels deep'),
  'bytes that are not there': (b'\x8e\xff\xff\xff\xff\xff\xff\xff\x0f.', 'damaged'),
  'collisions': (b'}' + b''.join(b'\x8a\x09' + (k * (2**61 - 1)).to_bytes(9, 'little') + b'Ns' for k in range(40)) + b'.', 'key of type int'),
  'text that is no character': (pickle.dumps(np.array(['a'])).replace(b'a\0\0\0', b'\xff\xff\xff\xff'), 'does not exist'),
  'no truth value': (pickle.dumps(np.array([True] * 9)).replace(b'\x01' * 9, b'\x02' * 9), 'truth value'),
  'class of arrays': (pickle.dumps(np.rec.array([(1, 2)])), 'recarray'),
  'dates': (pickle.dumps(np.array(['2020-01-01'], 'M8[D]')), 'dtype'),
  'persistent id': (b'Pabc\n.', 'PERSID'),
  'extension': (b'\x82\x01.', 'damaged|EXT1'),
}  # fmt: skip


@pytest.mark.parametrize('name', HOSTILE)
def test_hostile_pickle_is_refused_with_its_place(tmp_path, name):
  content, words = HOSTILE[name]
  path = tmp_path / 'a.pkl'
  path.write_bytes(content)
  with pytest.raises(checkpoints.WeightsFileError, match=words) as e:
    checkpoints.load_pickle(path, trust=True)
  assert (
    str(e.value).startswith(f'{path}: at byte ') and len(str(e.value)) < 500
  )


def test_bytes_are_not_multiplied(tmp_path):
  """One piece of content, of which many arrays are made, is refused."""
  path = tmp_path / 'a.pkl'
  make = (
    b'cnumpy.core.numeric\n_frombuffer\n(h\x01h\x02M\x28\x23\x85\x8c\x01CtR'
  )
  content = (
    b'B\x28\x23\0\0' + 9000 * b'a' + b'q\x01'
    + DTYPE + b'\x8c\x02u1\x85Rq\x02' + 99 * make + b'.'
  )  # fmt: skip
  path.write_bytes(content)
  with pytest.raises(checkpoints.WeightsFileError, match='more bytes'):
    checkpoints.load_pickle(path, trust=True)


def test_several_pickles_in_one_file(tmp_path):
  path = tmp_path / 'a.pkl'
  with open(path, 'wb') as file:
    pickle.dump(HAIKU, file)
    pickle.dump([1], file, 0)
  with pytest.raises(checkpoints.WeightsFileError, match='several=True'):
    checkpoints.load_pickle(path, trust=True)
  params, rest = checkpoints.load_pickle(path, trust=True, several=True)
  assert_same(params, HAIKU)
  assert rest == [1]


@pytest.mark.parametrize('dtype', ML_DTYPES)
@pytest.mark.parametrize('protocol', [0, 2, 5])
def test_pickle_of_each_dtype_of_jax(tmp_path, dtype, protocol):
  path = tmp_path / 'a.pkl'
  array = np.ones((2, 3), dtype)
  tree = {'m': {'w': array, 'f': np.asfortranarray(array), 's': array[0, 0]}}
  path.write_bytes(pickle.dumps(tree, protocol))
  assert_same(checkpoints.load_pickle(path, trust=True), tree)


def test_fuzzed_pickles():
  assert fuzz_pickles.run(200, seed=1).keys() == {'read', 'refused'}
