"""npz files: a zip archive with one npy file for each array.

NumPy's own reader believes what a header says of the size, and its writer makes
raw bytes of the dtypes that JAX adds. This writes them so, too, and notes the
dtype in the comment of the member, which other readers do not look at; the
names of empty dicts are in the comment of the archive.
"""

from __future__ import annotations

import ast
import io
import json
import math
import os
import zipfile
from typing import Any, BinaryIO

import numpy as np

from haiku_state import _versions
from haiku_state._plain_arrays import (
  bits,
  check_content,
  dtype_from_text,
  is_ml_dtype,
  short,
)
from haiku_state.interop._plain import Flat, WeightsFileError

_SUFFIX = '.npy'
_NOTE = 'haiku_state dtype='
_EMPTY = 'haiku_state empty='
_MAX_NAME = _MAX_COMMENT = (1 << 16) - 1
# NumPy's own limit, above which Python's parser may fail in bad ways.
_MAX_HEADER = 10_000
# Deflate makes at most 1032 bytes of one.
_MAX_RATIO = 1032


# --- Writing -----------------------------------------------------------------


def write(file: BinaryIO, found: Flat) -> None:
  """Writes arrays; the file need not be one that can be sought.

  Raises:
    WeightsFileError: a name or a dtype does not come back.
  """
  comment = b''
  if found.empty:
    comment = (_EMPTY + json.dumps(found.empty)).encode()
  if len(comment) > _MAX_COMMENT:
    raise WeightsFileError(
      f'there are {len(found.empty)} dicts without values, whose names have no'
      ' place. Leave them out, or write a msgpack file. Nothing is written.'
    )
  for name, array in found.arrays.items():
    _check(name, array)
  with zipfile.ZipFile(file, 'w', zipfile.ZIP_STORED) as archive:
    archive.comment = comment
    for name, array in found.arrays.items():
      _write_array(archive, name, array)


def _check(name: str, array: np.ndarray) -> None:
  if '\0' in name or len(name.encode()) > _MAX_NAME - len(_SUFFIX):
    raise WeightsFileError(
      f'the name "{short(name)}" has no place in a zip archive. Rename it, or'
      ' write a msgpack file. Nothing is written.'
    )
  if is_ml_dtype(array.dtype):
    return
  try:
    # NumPy drops titles and paddings, and makes raw bytes of some dtypes.
    described = np.lib.format.dtype_to_descr(array.dtype)
    same = np.lib.format.descr_to_dtype(described) == array.dtype
  except (TypeError, ValueError):
    same = False
  if not same:
    raise WeightsFileError(
      f'"{short(name)}" has the dtype {short(str(array.dtype))}, which NumPy'
      ' does not write so that it comes back. Write its fields as arrays.'
      ' Nothing is written.'
    )


def _write_array(
  archive: zipfile.ZipFile, name: str, array: np.ndarray
) -> None:
  info = zipfile.ZipInfo(name + _SUFFIX)
  if is_ml_dtype(array.dtype):
    info.comment = (_NOTE + array.dtype.name).encode()
    array = bits(array, f'V{array.dtype.itemsize}')
  with archive.open(info, 'w', force_zip64=True) as member:
    np.lib.format.write_array(member, array, allow_pickle=False)


# --- Reading -----------------------------------------------------------------


def read(path: Any) -> Flat:
  """Reads arrays; what is not the size that it says raises before it is read.

  Raises:
    WeightsFileError: a member is no array, or is damaged.
    Exception: others, if the file is no zip archive.
  """
  with open(path, 'rb') as file, zipfile.ZipFile(file) as archive:
    members = archive.infolist()
    _check_sizes(members, os.fstat(file.fileno()).st_size)
    out = Flat({}, _empty_names(archive.comment))
    for info in members:
      name = info.filename.removesuffix(_SUFFIX)
      try:
        array = _read_member(archive, info)
      except MemoryError as e:
        _versions.add_note(
          e, f'The array "{short(name)}" has {info.file_size} bytes.'
        )
        raise
      except Exception as e:
        raise WeightsFileError(
          f'at byte {info.header_offset}: "{short(name)}" is no array, or is'
          f' damaged: {short(str(e))}'
        ) from e
      if name in out.arrays:
        raise WeightsFileError(f'"{short(name)}" is in it twice')
      out.arrays[name] = array
  return out


def _check_sizes(members: list[zipfile.ZipInfo], size: int) -> None:
  left = size
  for info in members:
    left -= info.compress_size
    ratio = 1 if info.compress_type == zipfile.ZIP_STORED else _MAX_RATIO
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
      raise WeightsFileError(
        f'"{short(info.filename)}" is compressed in a way that NumPy does not'
        ' write'
      )
    if left < 0 or info.file_size > ratio * info.compress_size:
      raise WeightsFileError(
        f'at byte {info.header_offset}: "{short(info.filename)}" says that it'
        f' has {info.file_size} bytes, more than the file has room for'
      )


def _empty_names(comment: bytes) -> list[str]:
  if not comment.startswith(_EMPTY.encode()):
    return []
  names = json.loads(comment[len(_EMPTY) :])
  if not isinstance(names, list) or not all(isinstance(x, str) for x in names):
    raise WeightsFileError('the note of empty dicts is damaged')
  return names


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
  with archive.open(info) as member:
    start, shape, fortran, dtype = _read_header(member)
    count = math.prod(shape)
    if start + count * dtype.itemsize != info.file_size:
      raise ValueError(
        f'its shape {short(shape)} and dtype {dtype} are not those of'
        f' {info.file_size} bytes'
      )
    content = np.empty(count * dtype.itemsize, np.uint8)
    _fill(member, content)
  flat = content.view(dtype) if count else np.empty(0, dtype)
  check_content(flat)
  comment = info.comment.decode('utf-8', 'replace')
  if comment.startswith(_NOTE):
    flat = flat.view(_noted(comment, dtype))
  return flat.reshape(shape, order='F' if fortran else 'C')


def _noted(comment: str, dtype: np.dtype) -> np.dtype:
  noted = dtype_from_text(comment[len(_NOTE) :])
  if noted.itemsize != dtype.itemsize or dtype.kind != 'V':
    raise ValueError(f'it is of dtype {dtype}, noted as {noted}')
  return noted


def _read_header(
  member: Any,
) -> tuple[int, tuple[int, ...], bool, np.dtype]:
  """Returns the size of the header, and the shape, order and dtype in it."""
  magic = _take(member, 8)
  if magic[:6] != b'\x93NUMPY' or magic[6] not in (1, 2, 3):
    raise ValueError('it does not begin as an npy file')
  width = 2 if magic[6] == 1 else 4
  length = int.from_bytes(_take(member, width), 'little')
  if length > _MAX_HEADER:
    raise ValueError(f'its header has {length} bytes')
  text = _take(member, length).decode('utf-8' if magic[6] == 3 else 'latin1')
  header = ast.literal_eval(text)
  if not isinstance(header, dict) or set(header) != {
    'descr',
    'fortran_order',
    'shape',
  }:
    raise ValueError('its header does not have the entries of an npy file')
  shape, fortran = header['shape'], header['fortran_order']
  if not isinstance(shape, tuple) or not all(
    type(n) is int and 0 <= n < 1 << 62 for n in shape
  ):
    raise ValueError('its header has a shape that is none')
  dtype = np.lib.format.descr_to_dtype(header['descr'])
  if dtype.hasobject or not dtype.itemsize or not isinstance(fortran, bool):
    raise ValueError(f'it has the dtype {short(str(dtype))}')
  return 8 + width + length, shape, fortran, dtype


def _take(member: Any, size: int) -> bytes:
  content = member.read(size)
  if len(content) != size:
    raise ValueError('it is cut off')
  return content


def _fill(member: Any, content: np.ndarray) -> None:
  view = content.data
  done = 0
  # In pieces: zipfile makes a copy of what it reads.
  while done < len(view):
    count = member.readinto(view[done : done + (1 << 20)])
    if not count:
      raise ValueError('it is cut off')
    done += count
  if member.read(1):
    raise ValueError('it is longer than it says')


def written(found: Flat) -> bytes:
  """Returns the content of a file; see `write`."""
  buffer = io.BytesIO()
  write(buffer, found)
  return buffer.getvalue()
