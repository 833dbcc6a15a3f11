"""Arrays of plain numbers and text: the dtypes that a file may name.

What is read from a file is checked here before it is used.
"""

from __future__ import annotations

import re
from typing import Any

import ml_dtypes
import numpy as np

# A text of an error shows so much of what a file says.
_MAX_SHOWN = 80


def short(x: Any, limit: int = _MAX_SHOWN) -> str:
  """Returns what a file says for the text of an error, which stays short."""
  text = x if isinstance(x, str) else repr(x)
  shown = text[:limit].encode('utf-8', 'backslashreplace').decode()
  if len(text) <= limit:
    return shown
  return f'{shown}... ({len(text)} characters)'


# The dtypes that JAX adds to those of NumPy.
ML_DTYPES: dict[str, np.dtype] = {}
for _name in dir(ml_dtypes):
  _type = getattr(ml_dtypes, _name)
  if isinstance(_type, type) and issubclass(_type, np.generic):
    ML_DTYPES[_name] = np.dtype(_type)

_DTYPE = r'[<>|=]?(?:[biufcSU][0-9]{1,9}|\?|[mM]8(?:\[\w{1,9}\])?)'


def dtype_from_text(text: Any) -> np.dtype:
  """Returns the dtype that a file names; never one of objects or of fields.

  Raises:
    ValueError: it is no such name.
  """
  if isinstance(text, str):
    if text in ML_DTYPES:
      return ML_DTYPES[text]
    if re.fullmatch(_DTYPE, text):
      try:
        dtype = np.dtype(text)
      except (TypeError, ValueError, OverflowError):
        dtype = None
      if dtype is not None and dtype.itemsize:
        return dtype
  raise ValueError(f'"{short(text)}" is no dtype of plain numbers or text')


def dtype_text(dtype: np.dtype) -> str | None:
  """Returns the name that `dtype_from_text` reads; None if there is none."""
  text = dtype.name if dtype.isbuiltin == 2 else dtype.str
  try:
    return text if dtype_from_text(text) == dtype else None
  except ValueError:
    return None


def is_ml_dtype(dtype: np.dtype) -> bool:
  """Returns whether a dtype is one that JAX adds to those of NumPy."""
  # NumPy takes None for float64.
  return dtype.name in ML_DTYPES and ML_DTYPES[dtype.name] == dtype


def bits(array: np.ndarray, as_dtype: Any) -> np.ndarray:
  """Returns the bytes of an array, C order, as another dtype of that size."""
  out = np.asarray(array, order='C').view(as_dtype)
  return out


def check_content(array: np.ndarray) -> None:
  """Raises if an array has bytes that are no value of its dtype.

  Such an array can be made from a file, and fails when it is used.

  Raises:
    ValueError: there is a truth value other than 0 and 1, or a character
      that does not exist.
  """
  if not array.size:
    return
  if array.dtype.kind == 'b' and bits(array, np.uint8).max() > 1:
    raise ValueError('a truth value in it is neither 0 nor 1')
  if array.dtype.kind == 'U':
    codes = (
      np.ascontiguousarray(array)
      .reshape(-1)
      .view(np.dtype(np.uint32).newbyteorder(array.dtype.byteorder))
    )
    if codes.max() > 0x10FFFF:
      raise ValueError('a character in it does not exist')
