"""The file operations that checkpoints need, on local disks or by TensorFlow.

With TensorFlow installed every operation goes through `tensorflow.io.gfile`,
which also reaches object stores (`gs://...`). Without it they are the ones of
the standard library, and paths are local. The choice is made once, and can be
overridden by `set_mode` and `override_mode`.

TensorFlow takes seconds to import, so it is imported by the first operation
that needs it and not before.
"""

import contextlib
import enum
import glob as _glob
import importlib.util
import os
import shutil

from haiku_state import errors
from haiku_state._extents import restored


class BackendMode(enum.Enum):
  """Names who does the file operations."""

  DEFAULT = 0
  TF = 1


def _is_installed(name):
  # A module that a test put into sys.modules by hand has no spec.
  try:
    return importlib.util.find_spec(name) is not None
  except ValueError:
    return True


io_mode = BackendMode.TF if _is_installed('tensorflow') else BackendMode.DEFAULT


def _tensorflow():
  try:
    import tensorflow  # type: ignore
  except ImportError as error:
    raise ImportError(
      'BackendMode.TF does file operations by tensorflow.io.gfile, and'
      ' tensorflow cannot be imported. Run `pip install tensorflow`, or use'
      ' io.set_mode(io.BackendMode.DEFAULT) for local files.'
    ) from error
  return tensorflow


def __getattr__(name):
  # Both are TensorFlow's if it is installed, whatever the mode is now.
  if name == 'gfile':
    return _tensorflow().io.gfile if _is_installed('tensorflow') else None
  if name == 'NotFoundError':
    if _is_installed('tensorflow'):
      return _tensorflow().errors.NotFoundError
    return FileNotFoundError
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


@contextlib.contextmanager
def override_mode(override: BackendMode):
  """A context in which the file operations are done by `override`.

  Args:
    override: the mode inside the context. The one before it returns after.

  Example:
    >>> from haiku_state import io
    >>> with io.override_mode(io.BackendMode.DEFAULT):
    ...   io.exists('/no/such/file')
    False
  """
  before = io_mode
  with restored(lambda: set_mode(before)):
    set_mode(override)
    yield


def set_mode(override: BackendMode):
  """Lets all file operations from now on be done by `override`."""
  global io_mode
  io_mode = override


def _by(default, tf):
  """Returns the function of the current mode; `tf` takes gfile."""
  if io_mode == BackendMode.DEFAULT:
    return default
  if io_mode == BackendMode.TF:
    return tf(_tensorflow().io.gfile)
  raise ValueError('Unknown IO Backend Mode.')


def GFile(name, mode):
  """Opens the file `name`; text is UTF-8."""
  return _by(_open, lambda gfile: gfile.GFile)(name, mode)


def _open(name, mode):
  return open(name, mode, encoding=None if 'b' in mode else 'utf-8')


def listdir(path):
  """Returns the names of what is in the directory `path`.

  Raises:
    NotFoundError: `path` does not exist.
  """
  return _by(os.listdir, lambda gfile: gfile.listdir)(path)


def isdir(path):
  """Says whether `path` is a directory."""
  return _by(os.path.isdir, lambda gfile: gfile.isdir)(path)


def copy(src, dst, overwrite=False):
  """Copies the file `src` to `dst`.

  Raises:
    AlreadyExistsError: `dst` exists and `overwrite` is false.
  """
  return _by(_copy, lambda gfile: gfile.copy)(src, dst, overwrite=overwrite)


def _copy(src, dst, overwrite):
  _refuse_existing(dst, overwrite)
  shutil.copy(src, dst)


def rename(src, dst, overwrite=False):
  """Renames `src` to `dst`, in one step on a local disk.

  Raises:
    AlreadyExistsError: `dst` exists and `overwrite` is false.
  """
  return _by(_rename, lambda gfile: gfile.rename)(src, dst, overwrite=overwrite)


def _rename(src, dst, overwrite):
  _refuse_existing(dst, overwrite)
  # os.rename would refuse to replace a file on Windows.
  os.replace(src, dst)


def _refuse_existing(path, overwrite):
  if os.path.exists(path) and not overwrite:
    raise errors.AlreadyExistsError(path)


def exists(path):
  """Says whether there is a file or directory at `path`."""
  return _by(os.path.exists, lambda gfile: gfile.exists)(path)


def makedirs(path):
  """Makes the directory `path` and those above it, where missing."""
  return _by(_makedirs, lambda gfile: gfile.makedirs)(path)


def _makedirs(path):
  os.makedirs(path, exist_ok=True)


def glob(pattern):
  """Returns the paths that match `pattern`, without trailing slashes."""
  return _by(_glob_local, lambda gfile: gfile.glob)(pattern)


def _glob_local(pattern):
  return [path.rstrip('/') for path in _glob.glob(pattern, recursive=False)]


def remove(path):
  """Removes the file `path`; for a directory see `rmtree`."""
  return _by(os.remove, lambda gfile: gfile.remove)(path)


def rmtree(path):
  """Removes the directory `path` with all that is in it."""
  return _by(shutil.rmtree, lambda gfile: gfile.rmtree)(path)


def getsize(path):
  """Returns the size of the file `path` in bytes."""
  return _by(os.path.getsize, lambda gfile: lambda p: gfile.stat(p).length)(
    path
  )
