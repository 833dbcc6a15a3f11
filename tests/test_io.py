"""Each file operation, on the disk and through a stand-in for TensorFlow."""

import inspect
import os
import sys
import types
from unittest import mock

import pytest

from haiku_state import errors, io


@pytest.fixture(autouse=True)
def _on_the_disk():
  with io.override_mode(io.BackendMode.DEFAULT):
    yield


@pytest.fixture
def folder(tmp_path):
  (tmp_path / 'a').write_text('text')
  (tmp_path / 'below').mkdir()
  (tmp_path / 'below' / 'b').write_text('b')
  return tmp_path


def _write(folder):
  with io.GFile(folder / 'new', 'w') as file:
    file.write('é')


# name: (what is done, what it returns, the names that are there after)
_OPERATIONS = {
  'read': (
    lambda d: io.GFile(d / 'a', 'r').read(),
    'text',
    ['a', 'below'],
  ),
  'read bytes': (
    lambda d: io.GFile(d / 'a', 'rb').read(),
    b'text',
    ['a', 'below'],
  ),
  'write': (_write, None, ['a', 'below', 'new']),
  'listdir': (
    lambda d: sorted(io.listdir(d)),
    ['a', 'below'],
    ['a', 'below'],
  ),
  'isdir': (
    lambda d: [io.isdir(d / x) for x in ('a', 'below', 'no')],
    [False, True, False],
    ['a', 'below'],
  ),
  'exists': (
    lambda d: [io.exists(d / x) for x in ('a', 'below', 'no')],
    [True, True, False],
    ['a', 'below'],
  ),
  'copy': (lambda d: io.copy(d / 'a', d / 'c'), None, ['a', 'below', 'c']),
  'rename': (lambda d: io.rename(d / 'a', d / 'c'), None, ['below', 'c']),
  'rename a directory': (
    lambda d: io.rename(d / 'below', d / 'c'),
    None,
    ['a', 'c'],
  ),
  'makedirs': (
    lambda d: io.makedirs(d / 'x' / 'y'),
    None,
    ['a', 'below', 'x'],
  ),
  'makedirs there': (
    lambda d: io.makedirs(d / 'below'),
    None,
    ['a', 'below'],
  ),
  'glob': (
    lambda d: [os.path.basename(x) for x in io.glob(f'{d}/b*/')],
    ['below'],
    ['a', 'below'],
  ),
  'remove': (lambda d: io.remove(d / 'a'), None, ['below']),
  'rmtree': (lambda d: io.rmtree(d / 'below'), None, ['a']),
  'getsize': (lambda d: io.getsize(d / 'a'), 4, ['a', 'below']),
}


@pytest.mark.parametrize('name', _OPERATIONS)
def test_operation(name, folder):
  operation, result, names = _OPERATIONS[name]
  assert operation(folder) == result
  assert sorted(os.listdir(folder)) == names


def test_text_is_utf8(folder):
  _write(folder)
  assert (folder / 'new').read_bytes() == b'\xc3\xa9'


@pytest.mark.parametrize('operation', [io.copy, io.rename])
def test_overwriting_is_asked_for(operation, folder):
  (folder / 'c').write_text('old')
  with pytest.raises(errors.AlreadyExistsError) as error:
    operation(folder / 'a', folder / 'c')
  message = f'Trying overwrite an existing file: "{folder / "c"}".'
  assert str(error.value).startswith(message)
  assert (folder / 'c').read_text() == 'old'
  operation(folder / 'a', folder / 'c', overwrite=True)
  assert (folder / 'c').read_text() == 'text'


@pytest.mark.parametrize(
  'operation', [io.listdir, io.getsize, io.remove, lambda p: io.GFile(p, 'r')]
)
def test_missing_path(operation, folder):
  with pytest.raises(io.NotFoundError):
    operation(folder / 'no')


@pytest.mark.parametrize(
  'operation', [op for op, _, _ in _OPERATIONS.values()], ids=_OPERATIONS
)
def test_unknown_mode(operation, folder):
  with io.override_mode('neither'):
    with pytest.raises(ValueError, match='Unknown IO Backend Mode.'):
      operation(folder)


def test_modes_nest_and_end():
  with pytest.raises(KeyError):
    with io.override_mode(io.BackendMode.TF):
      with io.override_mode(io.BackendMode.DEFAULT):
        assert io.io_mode == io.BackendMode.DEFAULT
      assert io.io_mode == io.BackendMode.TF
      raise KeyError
  assert io.io_mode == io.BackendMode.DEFAULT
  io.set_mode(io.BackendMode.TF)
  assert io.io_mode == io.BackendMode.TF


# (operation, arguments, the call that gfile gets)
_CALLS = [
  (io.GFile, ('p', 'rb'), mock.call.GFile('p', 'rb')),
  (io.listdir, ('p',), mock.call.listdir('p')),
  (io.isdir, ('p',), mock.call.isdir('p')),
  (io.copy, ('p', 'q'), mock.call.copy('p', 'q', overwrite=False)),
  (io.copy, ('p', 'q', True), mock.call.copy('p', 'q', overwrite=True)),
  (io.rename, ('p', 'q'), mock.call.rename('p', 'q', overwrite=False)),
  (io.exists, ('p',), mock.call.exists('p')),
  (io.makedirs, ('p',), mock.call.makedirs('p')),
  (io.glob, ('p',), mock.call.glob('p')),
  (io.remove, ('p',), mock.call.remove('p')),
  (io.rmtree, ('p',), mock.call.rmtree('p')),
  (io.getsize, ('p',), mock.call.stat('p')),
]


@pytest.mark.parametrize('operation, args, call', _CALLS)
def test_tensorflow(operation, args, call, monkeypatch):
  gfile = mock.Mock()
  tensorflow = types.SimpleNamespace(
    io=types.SimpleNamespace(gfile=gfile),
    errors=types.SimpleNamespace(NotFoundError=LookupError),
  )
  monkeypatch.setitem(sys.modules, 'tensorflow', tensorflow)
  with io.override_mode(io.BackendMode.TF):
    result = operation(*args)
  assert gfile.mock_calls == [call]
  expected = getattr(gfile, call[0]).return_value
  assert result is (expected.length if call[0] == 'stat' else expected)
  assert io.gfile is gfile
  assert io.NotFoundError is LookupError


def test_without_tensorflow(monkeypatch):
  monkeypatch.setitem(sys.modules, 'tensorflow', None)
  with io.override_mode(io.BackendMode.TF):
    with pytest.raises(ImportError, match='pip install tensorflow'):
      io.exists('p')


def test_unknown_name():
  with pytest.raises(AttributeError, match="no attribute 'no_such'"):
    io.no_such  # noqa: B018


def test_names_and_signatures_are_flax():
  theirs = pytest.importorskip('flax.io')
  for name, function in inspect.getmembers(theirs, inspect.isfunction):
    signature = inspect.signature(getattr(io, name))
    parameters = list(signature.parameters)
    assert parameters == list(inspect.signature(function).parameters), name
  members = [(m.name, m.value) for m in theirs.BackendMode]
  assert members == [(m.name, m.value) for m in io.BackendMode]
  assert io.NotFoundError is theirs.NotFoundError
  assert io.gfile is theirs.gfile
