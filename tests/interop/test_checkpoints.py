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

from haiku_state import interop
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
  extra = {'saf': 'safetensors', 'msg': 'msgpack'}.get(name[:3])
  if extra:
    pytest.importorskip(extra)
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
  with pytest.raises(checkpoints.WeightsFileError, match='a.pkl: it names'):
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
