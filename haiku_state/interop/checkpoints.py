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

import io
import os
import pathlib
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from haiku_state import serialization
from haiku_state.core.frozen_dict import FrozenDict
from haiku_state.interop import _pickles
from haiku_state.interop._plain import Path
from haiku_state.interop._plain import WeightsFileError as WeightsFileError

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


def load_pickle(
  path: Path, *, trust: bool = False, several: bool = False
) -> Any:
  """Reads a pickle of Haiku's parameters, without executing anything.

  A pickle is a program. This has an interpreter of its own, which knows the
  operations that occur in Haiku's checkpoints and makes dicts, lists, tuples,
  numbers, text and arrays of those; anything else in the file is refused. What
  it costs is bounded by the size of the file.

  Args:
    path: the file.
    trust: must be True. Pickles are a format for one's own files; write others
      as npz or safetensors.
    several: whether the file holds several pickles one behind the other, as
      several calls of `pickle.dump` write them.

  Returns:
    What was pickled: dicts of NumPy arrays. Haiku's own mappings become dicts,
    JAX's arrays NumPy arrays. With `several`, a list with an item for each.

  Raises:
    WeightsFileError: `trust` is not given, the file is damaged, or it has
      something else in it: the text says what, and at which byte.
  """
  if trust is not True:
    raise WeightsFileError(
      f'{path}: pickles are only read by consent. Pass `trust=True` if you know'
      ' where it comes from. Nothing in it is executed even then.'
    )
  with open(path, 'rb') as file:
    size = os.fstat(file.fileno()).st_size
    found = []
    while not found or file.tell() < size:
      begin = file.tell()
      if len(found) == 1 and not several:
        raise WeightsFileError(
          f'{path}: behind its end at byte {begin} there are {size - begin}'
          ' bytes more. If it is several pickles, pass `several=True`.'
        )
      try:
        found.append(_pickles.read(file, size - begin))
      except WeightsFileError as e:
        part = f', pickle {len(found)} from byte {begin} on' if begin else ''
        raise WeightsFileError(f'{path}{part}: {e}') from e
  return found if several else found[0]
