"""Weights in files: npz, safetensors, msgpack, and Haiku's pickles.

Reading executes nothing that a file says. All functions return and take nested
dicts; `interop.from_haiku` and `interop.weights_from_haiku` go on from there.

| format | in the file |
| --- | --- |
| AlphaFold's npz | `scope//name`, two levels |
| GraphCast's npz | names joined by `:`, any levels |
| safetensors | names joined by `/` |
| msgpack | as Flax writes it |
| pickle | Haiku's two levels |
"""

from __future__ import annotations

import collections
import io
import os
import pathlib
import pickle
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from haiku_state import serialization
from haiku_state.core.frozen_dict import FrozenDict

Path = str | os.PathLike[str]


class WeightsFileError(ValueError):
  """A file of weights that cannot be read, or be written."""


# --- Flat names --------------------------------------------------------------


def _nested(flat: Mapping[str, Any], separator: str, path: Path) -> Any:
  """Returns flat names as nested dicts."""
  out: dict[str, Any] = {}
  for name, value in flat.items():
    level = out
    *parts, last = name.split(separator)
    for part in parts:
      level = level.setdefault(part, {})
      if not isinstance(level, dict):
        raise _clash(path, name, part)
    if last in level:
      raise _clash(path, name, last)
    level[last] = value
  return out


def _clash(path: Path, name: str, part: str) -> WeightsFileError:
  return WeightsFileError(
    f'{path}: "{name}": "{part}" is the name of a value and of a level.'
  )


def _flat(
  tree: Mapping[str, Any], separator: str, path: Path
) -> dict[str, np.ndarray]:
  flat: dict[str, np.ndarray] = {}
  for parts, value in _walk(tree, ()):
    bad = [part for part in parts if separator in part]
    if bad:
      raise WeightsFileError(
        f'{path}: the name "{bad[0]}" has "{separator}", by which names are'
        ' joined. Pass another `separator=`.'
      )
    flat[separator.join(parts)] = np.asarray(value)
  return flat


def _walk(
  tree: Mapping[Any, Any], parts: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], Any]]:
  for name, value in tree.items():
    if isinstance(value, (dict, FrozenDict)):
      yield from _walk(value, (*parts, str(name)))
    else:
      yield (*parts, str(name)), value


def _write(path: Path, content: bytes) -> None:
  """Writes a file whole or not at all."""
  target = pathlib.Path(path)
  handle, name = tempfile.mkstemp(prefix='.haiku_state-', dir=target.parent)
  try:
    with os.fdopen(handle, 'wb') as file:
      file.write(content)
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(name, 0o666 & ~umask)
    os.replace(name, target)
  except BaseException:
    os.unlink(name)
    raise


# --- npz ---------------------------------------------------------------------


def load_npz(path: Path, separator: str = '//') -> dict[str, Any]:
  """Reads an npz file.

  Args:
    path: the file.
    separator: what joins names: `//` in AlphaFold's, which gives Haiku's two
      levels; `:` in GraphCast's, whose parameters are below `params`.

  Returns:
    Nested dicts of NumPy arrays.

  Raises:
    WeightsFileError: the file is damaged, holds Python objects, or has two
      names of which one lies below the other.
  """
  try:
    flat = _read_npz(path)
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as e:
    if isinstance(e, (FileNotFoundError, IsADirectoryError, PermissionError)):
      raise
    raise WeightsFileError(
      f'{path}: it is no npz file of arrays, or is damaged: {e}'
    ) from e
  return _nested(flat, separator, path)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
  file = np.load(path, allow_pickle=False)
  if not isinstance(file, np.lib.npyio.NpzFile):
    raise ValueError('there is one array in it, without a name')
  with file:
    out = {}
    for name in file.files:
      try:
        array = file[name]
      except Exception as e:
        raise ValueError(f'"{name}": {e}') from e
      if not isinstance(array, np.ndarray):
        raise ValueError(f'"{name}" is no array')
      out[name] = array
    return out


def save_npz(
  path: Path, tree: Mapping[str, Any], separator: str = '//'
) -> None:
  """Writes an npz file; `load_npz` reads it.

  Args:
    path: the file, which is replaced whole or not at all.
    tree: nested dicts of arrays.
    separator: what joins names; no name may have it.

  Raises:
    WeightsFileError: a name has the separator.
  """
  buffer = io.BytesIO()
  arrays: dict[str, Any] = _flat(tree, separator, path)
  if 'file' in arrays:
    raise WeightsFileError(
      f'{path}: NumPy cannot write an array that is called "file". Rename it.'
    )
  np.savez(buffer, **arrays)
  _write(path, buffer.getvalue())


# --- safetensors -------------------------------------------------------------


def _safetensors() -> Any:
  try:
    import safetensors.numpy
  except ImportError as e:
    raise ImportError(
      "safetensors files need: pip install 'haiku_state[safetensors]'"
    ) from e
  return safetensors


def load_safetensors(path: Path, separator: str = '/') -> dict[str, Any]:
  """Reads a safetensors file.

  Args:
    path: the file.
    separator: what joins names. With an empty one the names stay whole.

  Returns:
    Nested dicts of NumPy arrays.

  Raises:
    WeightsFileError: the file is damaged, or has two names of which one lies
      below the other.
    ImportError: safetensors is not installed.
  """
  st = _safetensors()
  try:
    flat = st.numpy.load_file(path)
  except FileNotFoundError:
    raise
  except (st.SafetensorError, ValueError, OSError) as e:
    raise WeightsFileError(
      f'{path}: it is no safetensors file, or is damaged: {e}'
    ) from e
  return _nested(flat, separator, path) if separator else flat


def save_safetensors(
  path: Path, tree: Mapping[str, Any], separator: str = '/'
) -> None:
  """Writes a safetensors file; see `load_safetensors`.

  Raises:
    WeightsFileError: a name has the separator. Haiku's names have `/`: write
      the nested `interop.from_haiku(params)`, or pass `separator='//'`.
    ImportError: safetensors is not installed.
  """
  st = _safetensors()
  flat = _flat(tree, separator, path)
  flat = {name: np.ascontiguousarray(x) for name, x in flat.items()}
  _write(path, st.numpy.save(flat))


# --- msgpack -----------------------------------------------------------------


def load_msgpack(path: Path) -> dict[str, Any]:
  """Reads a file that `serialization.to_bytes` of Flax or ours made.

  Args:
    path: the file.

  Returns:
    Nested dicts of NumPy arrays.

  Raises:
    WeightsFileError: the file is damaged.
    ImportError: msgpack is not installed.
  """
  content = pathlib.Path(path).read_bytes()
  try:
    tree = serialization.msgpack_restore(content)
  except ImportError:
    raise
  except Exception as e:  # msgpack has many, and NumPy its own.
    raise WeightsFileError(
      f'{path}: it is no msgpack file of arrays, or is damaged: {e}'
    ) from e
  if not isinstance(tree, dict):
    raise WeightsFileError(
      f'{path}: expected a dict, found {type(tree).__name__}.'
    )
  return tree


def save_msgpack(path: Path, tree: Mapping[str, Any]) -> None:
  """Writes a msgpack file, which Flax reads, too."""
  _write(path, serialization.to_bytes(tree))


# --- Pickles -----------------------------------------------------------------


def load_pickle(path: Path, *, trust: bool = False) -> Any:
  """Reads a pickle of Haiku's parameters, without executing anything.

  A pickle is a program. This reads the arrays, dicts, lists and tuples in it,
  and refuses everything else: no function of the file's choice is called.

  Args:
    path: the file.
    trust: must be True. Pickles are a format for one's own files; write others
      as npz or safetensors.

  Returns:
    What was pickled: dicts of NumPy arrays. Haiku's own mappings become dicts,
    JAX's arrays NumPy arrays.

  Raises:
    WeightsFileError: `trust` is not given, the file is damaged, or it has
      something else in it.
  """
  if trust is not True:
    raise WeightsFileError(
      f'{path}: pickles are only read by consent. Pass `trust=True` if you know'
      ' where it comes from. Nothing in it is executed even then.'
    )
  with open(path, 'rb') as file:
    try:
      return _plain(_Unpickler(file).load())
    except WeightsFileError as e:
      raise WeightsFileError(f'{path}: {e}') from e
    except Exception as e:  # A damaged pickle raises anything.
      raise WeightsFileError(
        f'{path}: it is no pickle, or is damaged: {e}'
      ) from e


class _Mapping:
  """Takes the place of Haiku's mappings, whose state is what they hold."""

  def __init__(self, *args: Any):
    self.args = args
    self.state: Any = None

  def __setstate__(self, state: Any) -> None:
    self.state = state


def _flat_mapping(*args: Any) -> Any:
  return _Mapping(*args)


def _jax_array(fun: Any, args: Any, state: Any, aval_state: Any) -> np.ndarray:
  """Returns the NumPy array that JAX pickles in an array."""
  del aval_state
  array = fun(*args)
  if not isinstance(array, np.ndarray):
    raise WeightsFileError('an array in it is none')
  array.__setstate__(state)
  return array


def _plain(x: Any) -> Any:
  """Returns a tree with dicts in the place of other mappings."""
  if isinstance(x, _Mapping):
    found = x.state if x.state is not None else (x.args or ({},))[0]
    if isinstance(found, dict) and set(found) == {'_mapping'}:
      found = found['_mapping']
    if not isinstance(found, (dict, _Mapping)):
      raise WeightsFileError('a mapping of Haiku in it is of a form not known')
    return _plain(found)
  if isinstance(x, dict):
    return {key: _plain(value) for key, value in x.items()}
  if type(x) in (list, tuple):
    return type(x)(map(_plain, x))
  return x


def _numpy_reconstruct(kind: Any, shape: Any, dtype: Any) -> np.ndarray:
  del kind, shape, dtype
  return np.empty((0,), np.int8)


def _numpy_scalar(dtype: Any, content: Any = b'') -> Any:
  return np.frombuffer(content, dtype)[0]


def _numpy_frombuffer(
  buffer: Any, dtype: Any, shape: Any, order: Any
) -> np.ndarray:
  return np.frombuffer(buffer, dtype).reshape(shape, order=order)


def _bytes(text: str, encoding: str) -> bytes:
  """Returns bytes, which old protocols write as text."""
  if encoding != 'latin1':
    raise WeightsFileError(f'bytes in it are encoded by {encoding!r}')
  return text.encode('latin1')


_ML_DTYPES = ('bfloat16', 'float8_e4m3fn', 'float8_e5m2')


def _ml_dtype(name: str) -> Any:
  import ml_dtypes  # JAX brings it.

  return getattr(ml_dtypes, name)


# What a pickle may name, and what stands for it here.
_ALLOWED: dict[tuple[str, str], Any] = {
  ('collections', 'OrderedDict'): collections.OrderedDict,
  ('collections', 'defaultdict'): collections.OrderedDict,
  ('builtins', 'dict'): dict,
  ('_codecs', 'encode'): _bytes,
  ('numpy', 'dtype'): np.dtype,
  ('numpy', 'ndarray'): np.ndarray,
  ('jax._src.array', '_reconstruct_array'): _jax_array,
  ('haiku._src.data_structures', 'FlatMapping'): _flat_mapping,
  ('haiku._src.data_structures', 'FlatMap'): _flat_mapping,
  ('haiku._src.data_structures', 'frozendict'): _flat_mapping,
}
for _core in ('numpy.core', 'numpy._core'):
  _ALLOWED |= {
    (f'{_core}.multiarray', '_reconstruct'): _numpy_reconstruct,
    (f'{_core}.multiarray', 'scalar'): _numpy_scalar,
    (f'{_core}.numeric', '_frombuffer'): _numpy_frombuffer,
  }


class _Unpickler(pickle.Unpickler):
  """Knows the names in `_ALLOWED`, and no others."""

  def find_class(self, module: str, name: str) -> Any:
    if module == 'ml_dtypes' and name in _ML_DTYPES:
      return _ml_dtype(name)
    found = _ALLOWED.get((module, name))
    if found is None:
      raise WeightsFileError(
        f'it names `{module}.{name}`, which is neither an array nor a dict, and'
        ' is not looked up.'
      )
    return found
