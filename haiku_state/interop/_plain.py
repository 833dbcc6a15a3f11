"""What all formats of files of weights share: the error, and names."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from haiku_state import _versions
from haiku_state._plain_arrays import dtype_text, short
from haiku_state.core.frozen_dict import FrozenDict

Path = str | os.PathLike[str]

# Haiku and linen nest names by a dozen levels; `jax.tree`, `repr` and `pickle`
# give up at some hundreds.
MAX_DEPTH = 200


class WeightsFileError(ValueError):
  """A file of weights that cannot be read, or be written.

  >>> import pathlib, tempfile
  >>> from haiku_state.interop import checkpoints
  >>> path = pathlib.Path(tempfile.mkdtemp()) / 'weights.npz'
  >>> _ = path.write_bytes(b'PK, cut off')
  >>> try:
  ...   checkpoints.load_npz(path)
  ... except checkpoints.WeightsFileError as error:
  ...   print(path.name in str(error))
  True
  """


@contextlib.contextmanager
def told(path: Path, what: str) -> Iterator[None]:
  """Makes of every error in reading a file the documented one.

  Args:
    path: the file.
    what: what it ought to be.
  """
  try:
    yield
  except MemoryError as e:
    # The file may be whole: it is not called damaged.
    _versions.add_note(e, f'{path} needs more memory than there is.')
    raise
  except (FileNotFoundError, IsADirectoryError, PermissionError):
    raise
  except WeightsFileError as e:
    raise WeightsFileError(f'{path}: {e}') from e
  except Exception as e:  # In bytes made to do harm, anything can go wrong.
    raise WeightsFileError(
      f'{path}: it is no {what}, or is damaged: {short(str(e), 300)}'
    ) from e


# --- Names and arrays --------------------------------------------------------


class Flat(NamedTuple):
  """Nested dicts with their names joined.

  Attributes:
    arrays: the arrays by name.
    empty: the names of dicts that hold nothing.
  """

  arrays: dict[str, np.ndarray]
  empty: list[str]


def flat(tree: Mapping[str, Any], separator: str, path: Path) -> Flat:
  """Joins the names of nested dicts, and makes sure that they come back.

  Raises:
    WeightsFileError: a leaf is no array that comes back as it is, or a name
      does not come back.
  """
  out = Flat({}, [])
  try:
    for parts, value in leaves(tree):
      name = _joined(parts, separator)
      if isinstance(value, (dict, FrozenDict)):
        out.empty.append(name)
      else:
        out.arrays[name] = as_array(value, parts)
  except WeightsFileError as e:
    raise WeightsFileError(f'{path}: {e} Nothing is written.') from e
  return out


def _joined(parts: tuple[str, ...], separator: str) -> str:
  name = separator.join(parts)
  try:
    name.encode()
  except UnicodeEncodeError as e:
    raise WeightsFileError(
      f'the name {short(name)} has a character that cannot be encoded.'
    ) from e
  if separator and tuple(name.split(separator)) == parts:
    return name
  if not separator and len(parts) == 1:
    return name
  raise WeightsFileError(
    f'the name "{short(name)}" would not come back: its parts are joined by'
    f' "{separator}". Pass another `separator=`.'
  )


def as_array(value: Any, parts: tuple[str, ...]) -> np.ndarray:
  """Returns a leaf as the NumPy array that a file can hold.

  Raises:
    WeightsFileError: it is none.
  """
  where = short('/'.join(parts))
  if isinstance(value, jax.Array) and jnp.issubdtype(
    value.dtype, jax.dtypes.prng_key
  ):
    raise WeightsFileError(
      f'"{where}" is a typed key. Write `jax.random.key_data` of it.'
    )
  if isinstance(value, np.ma.MaskedArray):
    raise WeightsFileError(
      f'"{where}" is a masked array. Write its `data` and its `mask`.'
    )
  if value is None or isinstance(value, (list, tuple)):
    raise WeightsFileError(
      f'"{where}" is of type {type(value).__name__}, no array. A msgpack file'
      ' could hold it.'
    )
  try:
    array = np.asarray(value)
  except Exception as e:  # An array of other processes; a class of a user's.
    raise WeightsFileError(f'"{where}" is no array: {short(str(e))}') from e
  if array.dtype.hasobject:
    raise WeightsFileError(
      f'"{where}" has objects of Python, which no file of weights holds. Write'
      ' arrays of numbers.'
    )
  if not array.dtype.itemsize:
    raise WeightsFileError(f'"{where}" has a dtype without size.')
  return array


def check_plain(array: np.ndarray, name: str) -> None:
  """Raises if a file cannot name the dtype of an array.

  Raises:
    WeightsFileError: it has fields.
  """
  if dtype_text(array.dtype) is None:
    raise WeightsFileError(
      f'"{short(name)}" has the dtype {short(str(array.dtype))}, which the'
      ' format does not hold; a npz file could hold fields. Nothing is written.'
    )


def nested(found: Flat, separator: str) -> Any:
  """Returns joined names as nested dicts; the inverse of `flat`.

  Raises:
    WeightsFileError: of two names one lies below the other, or a name is
      nested too deep.
  """
  out: dict[str, Any] = {}
  for name, value in found.arrays.items():
    _put(out, name, separator, value)
  for name in found.empty:
    _put(out, name, separator, {})
  return out


def _put(tree: dict[str, Any], name: str, separator: str, value: Any) -> None:
  *parts, last = name.split(separator) if separator else [name]
  if len(parts) >= MAX_DEPTH:
    raise WeightsFileError(
      f'"{short(name)}" is nested more than {MAX_DEPTH} levels deep.'
    )
  for part in parts:
    tree = tree.setdefault(part, {})
    if not isinstance(tree, dict):
      raise _clash(name, part)
  if last in tree:
    raise _clash(name, last)
  tree[last] = value


def _clash(name: str, part: str) -> WeightsFileError:
  return WeightsFileError(
    f'"{short(name)}": "{short(part)}" is the name of a value and of a level.'
  )


def leaves(tree: Mapping[Any, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
  """Returns the leaves of nested dicts with their names; {} is a leaf.

  Raises:
    WeightsFileError: a name is no string, or is nested too deep.
  """
  stack: list[tuple[tuple[str, ...], Any]] = [((), tree)]
  while stack:
    parts, value = stack.pop()
    is_dict = isinstance(value, (dict, FrozenDict))
    if not is_dict or (parts and not value):
      yield parts, value
      continue
    if len(parts) >= MAX_DEPTH:
      raise WeightsFileError(
        f'"{short("/".join(parts))}" is nested more than {MAX_DEPTH} levels'
        ' deep.'
      )
    for name in value:
      if not isinstance(name, str):
        raise WeightsFileError(
          f'the name {short(name)} below {short(parts)} is of type'
          f' {type(name).__name__}. Names in a file are strings: rename it.'
        )
    stack.extend(
      ((*parts, name), below) for name, below in reversed(list(value.items()))
    )
