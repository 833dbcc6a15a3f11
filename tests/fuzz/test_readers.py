"""Every reader, on files that were made to do harm.

Each ends with plain arrays or with its one error, which names the file and is
short. `FUZZ_EXAMPLES=20000 pytest tests/fuzz` runs more of it.
"""

import io
import json
import os
import struct
import tracemalloc
import zipfile

import jax
import ml_dtypes
import msgpack
import numpy as np
import pytest
from fuzz import names, pickles
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax_names import told

from haiku_state import serialization
from haiku_state.interop import checkpoints
from haiku_state.port import _port

EXAMPLES = int(os.environ.get('FUZZ_EXAMPLES', 60))

TREE = {
  'a/b': {
    'w': np.ones((2, 3), np.float32),
    'h': np.ones(2, ml_dtypes.bfloat16),
  },
  'c': {'i': np.ones(3, 'int4'), 's': np.array(['x']), 'e': {}},
}


def written(save, tree):
  import pathlib
  import tempfile

  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / 'a'
    save(path, tree)
    return path.read_bytes()


def npz(compressed=False):
  buffer = io.BytesIO()
  save = np.savez_compressed if compressed else np.savez
  save(buffer, **{'a//w': np.ones((2, 3)), 'b': np.arange(3)})
  return buffer.getvalue()


def notebook():
  source = ['import flax\n', 'import flax.linen as nn']
  cells = [{'cell_type': 'code', 'source': source, 'metadata': {}}]
  return json.dumps({'cells': cells, 'nbformat': 4}).encode()


def save_safetensors(path, tree):
  checkpoints.save_safetensors(path, tree, separator='//')


READERS = {
  'npz': (
    checkpoints.load_npz,
    [written(checkpoints.save_npz, TREE), npz(), npz(True)],
  ),
  'safetensors': (
    checkpoints.load_safetensors,
    [written(save_safetensors, TREE)],
  ),
  'msgpack': (
    checkpoints.load_msgpack,
    [written(checkpoints.save_msgpack, TREE)],
  ),
  'pickle': (
    lambda path: checkpoints.load_pickle(path, trust=True),
    pickles.seeds(),
  ),
  'notebook': (_port.port, [notebook()]),
  'program': (_port.port, [b'\x0cimport flax\nfrom flax import linen as nn\n']),
}
# In a folder the suffix tells what a file is.
SUFFIXES = {'notebook': '.ipynb', 'program': '.py'}
ERRORS = (checkpoints.WeightsFileError, _port.DocumentError)

places = st.integers(0, 1 << 20)
edits = st.lists(
  st.one_of(
    st.tuples(st.just('set'), places, st.binary(min_size=1, max_size=8)),
    st.tuples(st.just('insert'), places, st.binary(min_size=1, max_size=8)),
    st.tuples(st.just('delete'), places, st.integers(1, 16)),
    st.tuples(st.just('copy'), places, places),
    st.tuples(st.just('cut'), places, st.none()),
  ),
  min_size=1,
  max_size=4,
)


def edited(content, edits):
  out = bytearray(content)
  for kind, place, arg in edits:
    i = place % (len(out) + 1)
    if kind == 'set':
      out[i : i + len(arg)] = arg
    elif kind == 'insert':
      out[i:i] = arg
    elif kind == 'delete':
      del out[i : i + arg]
    elif kind == 'copy':
      out[i:i] = out[arg % (len(out) + 1) :][:40]
    else:
      del out[i:]
  return bytes(out)


@pytest.mark.parametrize('name', READERS)
@settings(
  max_examples=EXAMPLES,
  deadline=None,
  suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_damaged_files(name, data, tmp_path):
  read, corpus = READERS[name]
  content = edited(data.draw(st.sampled_from(corpus)), data.draw(edits))
  path = tmp_path / f'file{SUFFIXES.get(name, "")}'
  path.write_bytes(content)
  try:
    found = read(path)
  except ERRORS as e:
    assert str(e).startswith(str(path)) and len(str(e)) < 1000
    return
  if name not in SUFFIXES:
    for leaf in jax.tree.leaves(found):
      assert not getattr(leaf, 'dtype', np.dtype('u1')).hasobject
      repr(leaf)


# --- Files that were thought of ----------------------------------------------


def safetensors(header, data=b''):
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  return struct.pack('<Q', len(text)) + text + data


def entry(dtype='U8', shape=(1,), offsets=(0, 1)):
  return {'dtype': dtype, 'shape': list(shape), 'data_offsets': list(offsets)}


def npz_of(header, content=b'', size=None, **kwargs):
  text = header.encode()
  member = b'\x93NUMPY\x02\0' + struct.pack('<I', len(text)) + text + content
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w', **kwargs) as file:
    file.writestr('a.npy', member)
    if size is not None:
      file.infolist()[0].file_size = size
  return buffer.getvalue()


def header(descr="'<f4'", shape='(2,)'):
  return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}"


def extension(code, *items):
  return msgpack.packb({'a': msgpack.ExtType(code, msgpack.packb(items))})


def collisions(count):
  """Returns a dict of complex numbers that have one hash."""
  prime = (1 << 61) - 1
  keys = [
    msgpack.packb(
      msgpack.ExtType(2, msgpack.packb((float(-i * 1000003 % prime), float(i))))
    )
    for i in range(count)
  ]
  return b'\xdf' + struct.pack('>I', count) + b''.join(k + b'\0' for k in keys)


HUGE = 1 << 40
THOUGHT_OF = {
  'npz, larger than it is': ('npz', npz_of(header(shape=f'({HUGE},)')), '.'),
  'npz, shape of many': ('npz', npz_of(header(shape='(' + '1,' * 4000 + ')')), '.'),
  'npz, long header': ('npz', npz_of(header() + ' ' * 10**6), 'header'),
  'npz, deep header': ('npz', npz_of('(' * 9999 + ')' * 9999), '.'),
  'npz, objects': ('npz', npz_of(header("'|O'"), bytes(16)), 'dtype'),
  'npz, no size': ('npz', npz_of(header("'|V0'", f'({HUGE},)')), 'dtype'),
  'npz, truth': ('npz', npz_of(header("'|b1'"), b'\2\3'), 'truth'),
  'npz, says more': ('npz', npz_of(header(), bytes(8), size=HUGE), '.'),
  'npz, lzma': (
    'npz',
    npz_of(header(), bytes(8), compression=zipfile.ZIP_LZMA),
    'compressed',
  ),
  'safetensors, header': ('safetensors', struct.pack('<Q', HUGE) + b'{}', 'byte 0'),
  'safetensors, deep': ('safetensors', safetensors(b'[' * 10**5), '.'),
  'safetensors, shape': (
    'safetensors',
    safetensors({'a': entry(shape=[10**6] * 60)}, b'a'),
    'byte 8: "a"',
  ),
  'safetensors, twice': (
    'safetensors',
    safetensors(b'{"a": 1, "a": 2}'),
    'twice',
  ),
  'safetensors, overlap': (
    'safetensors',
    safetensors({'a': entry(), 'b': entry()}, b'a'),
    'byte',
  ),
  'safetensors, hole': ('safetensors', safetensors({'a': entry()}, b'ab'), 'belong'),
  'safetensors, note': (
    'safetensors',
    safetensors({'__metadata__': {'haiku_state': '[]'}}),
    '.',
  ),
  'safetensors, long name': (
    'safetensors',
    safetensors({'a' * 10**6: entry('F4')}, b'a'),
    'F4',
  ),
  'safetensors, deep name': (
    'safetensors',
    safetensors({'a/' * 20000: entry()}, b'a'),
    'levels deep',
  ),
  'msgpack, deep': ('msgpack', b'\x81\xa1a' * 5000 + b'\x01', '.'),
  'msgpack, shape': ('msgpack', extension(1, [1] * 10**6, 'uint8', b'a'), '.'),
  'msgpack, dtype': ('msgpack', extension(1, [1], 'x' * 10**6, b'a'), '.'),
  'msgpack, objects': ('msgpack', extension(1, [1], 'object', bytes(8)), '.'),
  'msgpack, fields': ('msgpack', extension(1, [1], 'void64', bytes(8)), 'void64'),
  'msgpack, collisions': ('msgpack', collisions(9), 'key of type complex'),
  'msgpack, array of many': ('msgpack', b'\xdd\xff\xff\xff\xff', '.'),
  'notebook, numbers': ('notebook', b'{"cells": [1, 2]}', 'cell 1'),
  'notebook, source': (
    'notebook',
    b'{"cells": [{"cell_type": "code", "source": 1}]}',
    'cell 1',
  ),
  'notebook, sources': (
    'notebook',
    b'{"cells": [{"cell_type": "code", "source": ["a", 1]}]}',
    'cell 1',
  ),
  'notebook, deep': ('notebook', b'[' * 10**5, '.'),
  'notebook, end': ('notebook', b'{"cells": [', '.'),
  'program, deep': ('program', b'import flax\n' + b'(' * 10**4 + b')' * 10**4, '.'),
  'program, minus': ('program', b'import flax\n' + b'-' * 10**4 + b'1', '.'),
}  # fmt: skip


@pytest.mark.parametrize('name', THOUGHT_OF)
def test_files_that_were_thought_of(name, tmp_path):
  reader, content, words = THOUGHT_OF[name]
  path = tmp_path / f'file{SUFFIXES.get(reader, "")}'
  path.write_bytes(content)
  tracemalloc.start()
  try:
    with pytest.raises(ERRORS, match=words) as e:
      READERS[reader][0](path)
    _, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert str(e.value).startswith(str(path)) and len(str(e.value)) < 1000
  assert peak < 100 * len(content) + (8 << 20)


def test_what_is_too_large_for_memory_is_not_called_damaged(
  tmp_path, monkeypatch
):
  path = tmp_path / 'a.npz'
  checkpoints.save_npz(path, TREE)

  def empty(*args):
    raise MemoryError

  monkeypatch.setattr(np, 'empty', empty)
  with pytest.raises(MemoryError) as e:
    checkpoints.load_npz(path)
  assert str(path) in told(e.value)


def test_complex_keys_are_not_written():
  with pytest.raises(ValueError, match='complex'):
    serialization.msgpack_serialize({1j: 1}, in_place=True)


def test_odd_names():
  assert names.run(100, seed=1).keys() <= {'same', 'refused'}
