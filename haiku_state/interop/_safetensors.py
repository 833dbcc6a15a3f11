"""safetensors files: a header of JSON, and the bytes of arrays behind it.

See https://github.com/huggingface/safetensors#format. What the format has no
dtype for is written as its bytes, with a note of the dtype in the metadata of
the header; so are the names of empty dicts.
"""

from __future__ import annotations

import json
import math
import os
from typing import Any, BinaryIO

import numpy as np

from haiku_state._plain_arrays import (
  ML_DTYPES,
  check_content,
  dtype_from_text,
  dtype_text,
  short,
)
from haiku_state.interop._plain import Flat, WeightsFileError, check_plain

_DTYPES = {
  'BOOL': np.dtype('?'),
  'BF16': ML_DTYPES['bfloat16'],
  'F8_E4M3': ML_DTYPES['float8_e4m3fn'],
  'F8_E5M2': ML_DTYPES['float8_e5m2'],
  'F8_E8M0': ML_DTYPES['float8_e8m0fnu'],
  'C64': np.dtype('<c8'),
}
for _letter, _kind in (('I', 'i'), ('U', 'u'), ('F', 'f')):
  for _size in (1, 2, 4, 8):
    if (_letter, _size) != ('F', 1):
      _DTYPES[f'{_letter}{8 * _size}'] = np.dtype(f'<{_kind}{_size}')
_NAMES = {str(dtype): name for name, dtype in _DTYPES.items()}

_METADATA = '__metadata__'
_NOTE = 'haiku_state'
# The limit of the format's own reader.
_MAX_HEADER = 100_000_000
_ALIGNMENT = 8


# --- Writing -----------------------------------------------------------------


def written(found: Flat) -> bytes:
  """Returns the content of a file.

  Raises:
    WeightsFileError: a name or a dtype has no place in the format.
  """
  header: dict[str, Any] = {}
  notes: dict[str, str] = {}
  pieces: list[bytes] = []
  end = 0
  # The largest items first, so that all are aligned.
  order = sorted(
    found.arrays, key=lambda name: (-_item_size(found.arrays[name]), name)
  )
  for name in order:
    array = found.arrays[name]
    if name == _METADATA:
      raise WeightsFileError(
        f'"{_METADATA}" is the name of something else in a safetensors file.'
        ' Rename it. Nothing is written.'
      )
    dtype, shape = _NAMES.get(str(array.dtype)), array.shape
    if dtype is None:
      check_plain(array, name)
      notes[name] = str(dtype_text(array.dtype))
      dtype, shape = 'U8', (*array.shape, array.dtype.itemsize)
    pieces.append(array.tobytes('C'))
    begin, end = end, end + len(pieces[-1])
    header[name] = {
      'dtype': dtype,
      'shape': list(shape),
      'data_offsets': [begin, end],
    }
  if notes or found.empty:
    note = json.dumps({'dtypes': notes, 'empty': found.empty})
    header = {_METADATA: {_NOTE: note}, **header}
  text = json.dumps(header, ensure_ascii=False).encode()
  text += b' ' * (-len(text) % _ALIGNMENT)
  return b''.join((len(text).to_bytes(8, 'little'), text, *pieces))


def _item_size(array: np.ndarray) -> int:
  return array.dtype.itemsize if str(array.dtype) in _NAMES else 0


# --- Reading -----------------------------------------------------------------


def read(path: Any) -> Flat:
  """Reads arrays, each of which must be where the one before it ends.

  Raises:
    WeightsFileError: the header or an entry is not what the format says.
  """
  with open(path, 'rb') as file:
    size = os.fstat(file.fileno()).st_size
    header, begin = _read_header(file, size)
    metadata = header.pop(_METADATA, {})
    dtypes, empty = _note(metadata)
    entries = {name: _entry(name, x) for name, x in header.items()}
    place = 0
    out = Flat({}, empty)
    for name in sorted(entries, key=lambda name: entries[name][2:]):
      dtype, shape, start, end = entries[name]
      if start != place or end > size - begin:
        raise WeightsFileError(
          f'at byte {begin + place}: expected "{short(name)}", which says that'
          f' it is at {begin + start} to {begin + end} of {size} bytes'
        )
      place = end
      array = _read_array(file, dtype, shape)
      if name in dtypes:
        array = _noted(name, array, dtypes[name])
      try:
        check_content(array)
      except ValueError as e:
        raise WeightsFileError(f'"{short(name)}": {e}') from e
      out.arrays[name] = array
    if place != size - begin:
      raise WeightsFileError(
        f'at byte {begin + place}: there are {size - begin - place} bytes that'
        ' belong to no array'
      )
  # As in the header, which need not be in the order of places.
  return Flat({name: out.arrays[name] for name in entries}, empty)


def _read_header(file: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
  length = int.from_bytes(file.read(8), 'little')
  if size < 8 or length > min(size - 8, _MAX_HEADER):
    raise WeightsFileError(
      f'at byte 0: a header of {length} bytes does not fit into {size} bytes'
    )
  header = json.loads(file.read(length), object_pairs_hook=_without_twins)
  if not isinstance(header, dict):
    raise WeightsFileError('at byte 8: its header is no object of JSON')
  return header, 8 + length


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  out = dict(pairs)
  if len(out) != len(pairs):
    raise WeightsFileError('at byte 8: a name is twice in its header')
  return out


def _note(metadata: Any) -> tuple[dict[str, str], list[str]]:
  if not isinstance(metadata, dict) or not all(
    isinstance(x, str) for x in metadata.values()
  ):
    raise WeightsFileError('at byte 8: its metadata are no texts by name')
  note = json.loads(metadata.get(_NOTE, '{"dtypes": {}, "empty": []}'))
  dtypes, empty = note['dtypes'], note['empty']
  if not isinstance(dtypes, dict) or not isinstance(empty, list):
    raise WeightsFileError(f'at byte 8: its note "{_NOTE}" is damaged')
  if not all(isinstance(x, str) for x in empty):
    raise WeightsFileError(f'at byte 8: its note "{_NOTE}" is damaged')
  return dtypes, empty


def _entry(name: str, entry: Any) -> tuple[np.dtype, tuple[int, ...], int, int]:
  """Returns dtype, shape, begin and end of an array."""
  if not isinstance(entry, dict) or set(entry) != {
    'dtype',
    'shape',
    'data_offsets',
  }:
    raise WeightsFileError(f'at byte 8: "{short(name)}" is described otherwise')
  dtype = entry['dtype']
  if not isinstance(dtype, str) or dtype not in _DTYPES:
    raise WeightsFileError(
      f'at byte 8: "{short(name)}" has the dtype {short(dtype)}; known are'
      f' {", ".join(_DTYPES)}'
    )
  shape, offsets = entry['shape'], entry['data_offsets']
  for numbers in (shape, offsets):
    if not isinstance(numbers, list) or not all(
      type(n) is int and 0 <= n < 1 << 62 for n in numbers
    ):
      raise WeightsFileError(f'at byte 8: "{short(name)}" has no sizes')
  if len(offsets) != 2 or len(shape) > 64:
    raise WeightsFileError(f'at byte 8: "{short(name)}" has no sizes')
  if offsets[1] - offsets[0] != math.prod(shape) * _DTYPES[dtype].itemsize:
    raise WeightsFileError(
      f'at byte 8: "{short(name)}" of shape {short(shape)} and dtype {dtype} is'
      f' not as long as its place, {short(offsets)}'
    )
  return _DTYPES[dtype], tuple(shape), offsets[0], offsets[1]


def _read_array(
  file: BinaryIO, dtype: np.dtype, shape: tuple[int, ...]
) -> np.ndarray:
  array = np.empty(math.prod(shape), dtype)
  if array.size:
    view = array.view(np.uint8).data
    if file.readinto(view) != len(view):  # type: ignore
      raise WeightsFileError('it became shorter while it was read')
  return array.reshape(shape)


def _noted(name: str, array: np.ndarray, text: Any) -> np.ndarray:
  """Returns the array of which these are the bytes."""
  dtype = dtype_from_text(text)
  if array.dtype != np.uint8 or array.shape[-1:] != (dtype.itemsize,):
    raise WeightsFileError(
      f'"{short(name)}" is noted as {dtype}, and its bytes do not fit'
    )
  return array.reshape(-1).view(dtype).reshape(array.shape[:-1])
