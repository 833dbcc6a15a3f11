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

import contextlib
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from haiku_state import serialization
from haiku_state._temporary_files import create, temporary_path
from haiku_state.interop import _npz, _pickles, _safetensors
from haiku_state.interop._plain import Path, flat, leaves, nested, told
from haiku_state.interop._plain import WeightsFileError as WeightsFileError

# --- Writing -----------------------------------------------------------------


def _write(path: Path, content: bytes) -> None:
  """Writes a file whole or not at all."""
  target = pathlib.Path(path)
  name = temporary_path(target.parent, '.haiku_state-')
  try:
    with create(name) as file:
      file.write(content)
    os.replace(name, target)
  except BaseException:
    with contextlib.suppress(FileNotFoundError):
      os.unlink(name)
    raise


# --- npz ---------------------------------------------------------------------


def load_npz(path: Path, separator: str = '//') -> dict[str, Any]:
  """Reads an npz file.

  >>> import pathlib, tempfile
  >>> import numpy as np
  >>> from haiku_state.interop import checkpoints
  >>> path = pathlib.Path(tempfile.mkdtemp()) / 'weights.npz'
  >>> checkpoints.save_npz(path, {'linear': {'w': np.ones(2)}})
  >>> checkpoints.load_npz(path)
  {'linear': {'w': array([1., 1.])}}

  Args:
    path: the file.
    separator: what joins names: `//` in AlphaFold's, which gives Haiku's two
      levels; `:` in GraphCast's, whose parameters are below `params`. With an
      empty one the names stay whole.

  Returns:
    Nested dicts of NumPy arrays.

  Raises:
    WeightsFileError: the file is damaged, holds Python objects, or has two
      names of which one lies below the other.
    MemoryError: its arrays are larger than memory.
  """
  with told(path, 'npz file of arrays'):
    return nested(_npz.read(path), separator)


def save_npz(
  path: Path, tree: Mapping[str, Any], separator: str = '//'
) -> None:
  """Writes an npz file; `load_npz` reads it, and so does `numpy.load`.

  A dtype that JAX adds to those of NumPy, such as bfloat16, is kept by a note
  in the file; `numpy.load` shows raw bytes, `V2` for bfloat16, in its place.

  >>> import pathlib, tempfile
  >>> import numpy as np
  >>> from haiku_state.interop import checkpoints
  >>> path = pathlib.Path(tempfile.mkdtemp()) / 'weights.npz'
  >>> checkpoints.save_npz(path, {'linear': {'w': np.ones(2)}})
  >>> checkpoints.load_npz(path)
  {'linear': {'w': array([1., 1.])}}

  Args:
    path: the file, which is replaced whole or not at all.
    tree: nested dicts of arrays.
    separator: what joins names; no name may have it.

  Raises:
    WeightsFileError: a leaf or a name would not come back as it is. Nothing is
      written.
  """
  found = flat(tree, separator, path)
  with _refusing(path):
    content = _npz.written(found)
  _write(path, content)


# --- safetensors -------------------------------------------------------------


def load_safetensors(path: Path, separator: str = '/') -> dict[str, Any]:
  """Reads a safetensors file.

  >>> import pathlib, tempfile
  >>> import numpy as np
  >>> from haiku_state.interop import checkpoints
  >>> path = pathlib.Path(tempfile.mkdtemp()) / 'weights.safetensors'
  >>> checkpoints.save_safetensors(path, {'linear': {'w': np.ones(2)}})
  >>> checkpoints.load_safetensors(path)
  {'linear': {'w': array([1., 1.])}}

  Args:
    path: the file.
    separator: what joins names. With an empty one the names stay whole.

  Returns:
    Nested dicts of NumPy arrays.

  Raises:
    WeightsFileError: the file is damaged, or has two names of which one lies
      below the other.
    MemoryError: its arrays are larger than memory.
  """
  with told(path, 'safetensors file'):
    return nested(_safetensors.read(path), separator)


def save_safetensors(
  path: Path, tree: Mapping[str, Any], separator: str = '/'
) -> None:
  """Writes a safetensors file; see `load_safetensors`.

  A dtype that the format does not have, such as int4 or text, is kept as bytes
  with a note in the file, which other readers show as `U8`.

  >>> import pathlib, tempfile
  >>> import numpy as np
  >>> from haiku_state.interop import checkpoints
  >>> path = pathlib.Path(tempfile.mkdtemp()) / 'weights.safetensors'
  >>> checkpoints.save_safetensors(path, {'linear': {'w': np.ones(2)}})
  >>> checkpoints.load_safetensors(path)
  {'linear': {'w': array([1., 1.])}}

  Args:
    path: the file, which is replaced whole or not at all.
    tree: nested dicts of arrays.
    separator: what joins names; no name may have it.

  Raises:
    WeightsFileError: a leaf or a name would not come back as it is. Nothing is
      written. Haiku's names have `/`: write the nested
      `interop.from_haiku(params)`, or pass `separator='//'`.
  """
  found = flat(tree, separator, path)
  with _refusing(path):
    content = _safetensors.written(found)
  _write(path, content)


@contextlib.contextmanager
def _refusing(path: Path) -> Iterator[None]:
  try:
    yield
  except WeightsFileError as e:
    raise WeightsFileError(f'{path}: {e}') from e


# --- msgpack -----------------------------------------------------------------


def load_msgpack(path: Path) -> dict[str, Any]:
  """Reads a file that `serialization.to_bytes` of Flax or ours made.

  >>> import pathlib, tempfile
  >>> import numpy as np
  >>> from haiku_state.interop import checkpoints
  >>> path = pathlib.Path(tempfile.mkdtemp()) / 'weights.msgpack'
  >>> checkpoints.save_msgpack(path, {'linear': {'w': np.ones(2)}})
  >>> checkpoints.load_msgpack(path)
  {'linear': {'w': array([1., 1.])}}

  Args:
    path: the file.

  Returns:
    Nested dicts of NumPy arrays.

  Raises:
    WeightsFileError: the file is damaged.
    MemoryError: its arrays are larger than memory.
    ImportError: msgpack is not installed.
  """
  with told(path, 'msgpack file of arrays'):
    tree = serialization.msgpack_restore(pathlib.Path(path).read_bytes())
    if not isinstance(tree, dict):
      raise WeightsFileError(f'expected a dict, found {type(tree).__name__}.')
    for _ in leaves(tree):  # Names are strings, and not too deep.
      pass
    return tree


def save_msgpack(path: Path, tree: Mapping[str, Any]) -> None:
  """Writes a msgpack file, which Flax reads, too.

  >>> import pathlib, tempfile
  >>> import numpy as np
  >>> from haiku_state.interop import checkpoints
  >>> path = pathlib.Path(tempfile.mkdtemp()) / 'weights.msgpack'
  >>> checkpoints.save_msgpack(path, {'linear': {'w': np.ones(2)}})
  >>> checkpoints.load_msgpack(path)
  {'linear': {'w': array([1., 1.])}}

  Args:
    path: the file, which is replaced whole or not at all.
    tree: what `serialization.to_bytes` takes.

  Raises:
    WeightsFileError: a leaf would not come back as it is. Nothing is written.
    ImportError: msgpack is not installed.
  """
  try:
    content = serialization.to_bytes(tree)
  except (ValueError, TypeError) as e:
    raise WeightsFileError(f'{path}: {e} Nothing is written.') from e
  _write(path, content)


# --- Pickles -----------------------------------------------------------------


def load_pickle(
  path: Path, *, trust: bool = False, several: bool = False
) -> Any:
  """Reads a pickle of Haiku's parameters, without executing anything.

  A pickle is a program. This has an interpreter of its own, which knows the
  operations that occur in Haiku's checkpoints and makes dicts, lists, tuples,
  numbers, text and arrays of those; anything else in the file is refused. What
  it costs is bounded by the size of the file.

  >>> import pathlib, pickle, tempfile
  >>> import numpy as np
  >>> from haiku_state.interop import checkpoints
  >>> path = pathlib.Path(tempfile.mkdtemp()) / 'params.pickle'
  >>> _ = path.write_bytes(pickle.dumps({'linear': {'w': np.ones(2)}}))
  >>> checkpoints.load_pickle(path, trust=True)
  {'linear': {'w': array([1., 1.])}}

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
