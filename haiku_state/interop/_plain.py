"""What a file of weights may hold: arrays of plain numbers under names.

Here is what all readers share: the error, the limits, and the dtypes that a
file may name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from haiku_state.core.frozen_dict import FrozenDict

Path = str | os.PathLike[str]

# Haiku and linen nest names by a dozen levels; `jax.tree`, `repr` and `pickle`
# give up at some hundreds.
MAX_DEPTH = 200
# A text of an error shows so much of what a file says.
_MAX_SHOWN = 80


class WeightsFileError(ValueError):
  """A file of weights that cannot be read, or be written."""


def short(x: Any) -> str:
  """Returns what a file says for the text of an error, which stays short."""
  text = x if isinstance(x, str) else repr(x)
  text = text.encode('utf-8', 'backslashreplace').decode()
  if len(text) <= _MAX_SHOWN:
    return text
  return f'{text[:_MAX_SHOWN]}... ({len(text)} characters)'


# --- Dtypes ------------------------------------------------------------------

# The dtypes that JAX adds to those of NumPy.
ML_DTYPES: dict[str, np.dtype] = {}
for _name in dir(ml_dtypes):
  _type = getattr(ml_dtypes, _name)
  if isinstance(_type, type) and issubclass(_type, np.generic):
    ML_DTYPES[_name] = np.dtype(_type)

_DTYPE = re.compile(r'[<>|=]?(?:[biufcSU][0-9]{1,9}|\?|[mM]8(?:\[\w{1,9}\])?)')


def dtype_from_text(text: Any) -> np.dtype:
  """Returns the dtype that a file names; never one of objects or of fields.

  Raises:
    WeightsFileError: it is no such name.
  """
  if isinstance(text, str):
    if text in ML_DTYPES:
      return ML_DTYPES[text]
    if _DTYPE.fullmatch(text):
      try:
        dtype = np.dtype(text)
      except (TypeError, ValueError, OverflowError):
        dtype = None
      if dtype is not None and dtype.itemsize:
        return dtype
  raise WeightsFileError(
    f'"{short(text)}" is no dtype of plain numbers or text'
  )


def dtype_text(dtype: np.dtype) -> str | None:
  """Returns the name that `dtype_from_text` reads; None if there is none."""
  text = dtype.name if dtype.isbuiltin == 2 else dtype.str
  try:
    return text if dtype_from_text(text) == dtype else None
  except WeightsFileError:
    return None


def is_ml_dtype(dtype: np.dtype) -> bool:
  """Returns whether a dtype is one that JAX adds to those of NumPy."""
  return ML_DTYPES.get(dtype.name) == dtype


def bits(array: np.ndarray, as_dtype: Any) -> np.ndarray:
  """Returns the bytes of an array, C order, as another dtype of that size."""
  out = np.asarray(array, order='C').view(as_dtype)
  return out


def check_content(array: np.ndarray) -> None:
  """Raises if an array has bytes that are no value of its dtype.

  Such an array can be made from a file, and fails when it is used.

  Raises:
    WeightsFileError: there is a truth value other than 0 and 1, or a character
      that does not exist.
  """
  if not array.size:
    return
  if array.dtype.kind == 'b' and bits(array, np.uint8).max() > 1:
    raise WeightsFileError('a truth value in it is neither 0 nor 1')
  if array.dtype.kind == 'U':
    codes = (
      np.ascontiguousarray(array)
      .reshape(-1)
      .view(np.dtype(np.uint32).newbyteorder(array.dtype.byteorder))
    )
    if codes.max() > 0x10FFFF:
      raise WeightsFileError('a character in it does not exist')


# --- Names -------------------------------------------------------------------


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
      ((*parts, name), below) for name, below in reversed(value.items())
    )
