"""Event files for TensorBoard.

They have the form that TensorFlow 2 gives them, and are written without
TensorFlow: `pip install '.[tensorboard]'` brings tensorboardX, which knows the
messages and how records are framed.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import socket
import struct
import threading
import time
import wave
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

# What a summary is to TensorBoard, beside the name of its plugin.
_SCALAR, _TENSOR, _BLOBS = 1, 2, 3
_DEFAULT_BINS = 30
_COUNTER = itertools.count()


class SummaryWriter:
  """Writes summaries into one event file.

  Its methods may be called from several threads. At the end of a `with` block
  it is closed.

  Args:
    log_dir: the folder of the file, made if it is missing.
    auto_flush: whether each summary is on the disk when its method returns.

  >>> import pathlib, tempfile
  >>> from haiku_state.metrics import tensorboard
  >>> folder = pathlib.Path(tempfile.mkdtemp())
  >>> with tensorboard.SummaryWriter(folder) as writer:
  ...   writer.scalar('loss', 0.5, step=1)
  >>> len(list(folder.glob('events.out.tfevents.*')))
  1
  """

  def __init__(self, log_dir: str | os.PathLike, auto_flush: bool = True):
    self._protos = _import_protos()
    self._lock = threading.Lock()
    self._auto_flush = auto_flush
    self._file: Any = _open(os.fspath(log_dir))
    self._write_event(self._protos.Event(file_version='brain.Event:2'))

  def __enter__(self) -> SummaryWriter:
    return self

  def __exit__(self, *_: Any) -> None:
    self.close()

  def close(self) -> None:
    """Writes what is left, and closes the file for good."""
    with self._lock:
      if self._file is not None:
        self._file.flush()
        self._file.close()
        self._file = None

  def flush(self) -> None:
    """Returns when all summaries are on the disk.

    Raises:
      ValueError: the writer is closed.
    """
    with self._lock:
      self._opened().flush()

  def scalar(self, tag: str, value: Any, step: int) -> None:
    """Writes a number.

    Args:
      tag: what it is called.
      value: a number, or an array of one element.
      step: the step of training.
    """
    array = np.asarray(float(np.array(value)), np.float32)
    self._add(tag, array, step, self._metadata('scalars', _SCALAR))

  def image(
    self, tag: str, image: Any, step: int, max_outputs: int = 3
  ) -> None:
    """Writes images.

    Args:
      tag: what they are called.
      image: array (height, width), (height, width, 1 or 3), (images, height,
        width) or (images, height, width, channels) with 1 to 4 channels. It is
        uint8, or floating point from 0 to 1. One channel is shown as grey.
      step: the step of training.
      max_outputs: how many images are written at most.

    Raises:
      ValueError: the shape or the dtype is another.
    """
    images = _as_images(np.asarray(image))
    height, width = images.shape[1:3]
    values = [str(width).encode(), str(height).encode()]
    values += [_as_png(one) for one in images[:max_outputs]]
    self._add(tag, values, step, self._metadata('images', _BLOBS))

  def audio(
    self,
    tag: str,
    audiodata: Any,
    step: int,
    sample_rate: int = 44100,
    max_outputs: int = 3,
  ) -> None:
    """Writes sounds.

    Args:
      tag: what they are called.
      audiodata: array (sounds, frames, channels). What is beyond -1 and 1 is
        cut off.
      step: the step of training.
      sample_rate: frames in a second.
      max_outputs: how many sounds are written at most.

    Raises:
      ValueError: the shape is another.
    """
    data = np.clip(np.asarray(audiodata), -1, 1).astype(np.float32)
    if data.ndim != 3:
      raise ValueError(
        'Expected `audiodata` of shape (sounds, frames, channels): it is'
        f' {data.shape}. Write `audiodata[None, :, None]` for one sound with one'
        ' channel.'
      )
    values = [[_as_wav(x, sample_rate), b''] for x in data[:max_outputs]]
    metadata = self._metadata('audio', _BLOBS, content=_AS_WAV)
    self._add(tag, np.array(values, object).reshape(-1, 2), step, metadata)

  def histogram(
    self, tag: str, values: Any, step: int, bins: int | None = None
  ) -> None:
    """Writes how often values lie in intervals of equal length.

    Args:
      tag: what it is called.
      values: array of any shape.
      step: the step of training.
      bins: how many intervals there are. None: 30.
    """
    data = np.asarray(values).reshape(-1).astype(np.float64)
    table = _histogram(data, _DEFAULT_BINS if bins is None else bins)
    self._add(tag, table, step, self._metadata('histograms', _TENSOR))

  def text(self, tag: str, textdata: str | bytes, step: int) -> None:
    """Writes a text, which TensorBoard shows as Markdown.

    Args:
      tag: what it is called.
      textdata: the text; bytes are UTF-8.
      step: the step of training.

    Raises:
      ValueError: it is neither a string nor bytes.
    """
    if not isinstance(textdata, (str, bytes)):
      raise ValueError(
        '`textdata` should be of the type `str` or `bytes`: it is'
        f' {type(textdata).__name__}.'
      )
    self._add(tag, textdata, step, self._metadata('text', _TENSOR))

  def write(
    self, tag: str, tensor: Any, step: int, metadata: Any = None
  ) -> None:
    """Writes an array, for a plugin of TensorBoard that is none of the above.

    Args:
      tag: what it is called.
      tensor: an array, a string, bytes, or nested lists of them.
      step: the step of training.
      metadata: a message `SummaryMetadata`, or its bytes.

    Raises:
      ValueError: TensorBoard has no such dtype.
    """
    own = self._protos.SummaryMetadata()
    if metadata is not None:
      is_bytes = isinstance(metadata, bytes)
      own.MergeFromString(
        metadata if is_bytes else metadata.SerializeToString()
      )
    self._add(tag, tensor, step, own)

  def hparams(self, hparams: Mapping[str, Any]) -> None:
    """Writes the hyper-parameters of this run.

    Args:
      hparams: values by name. The names in nested mappings are joined by dots;
        a value that is no number, string or bool is written as its `str`.
    """
    flat = _flat_hparams(hparams)
    text = json.dumps(flat, sort_keys=True, separators=(',', ':'))
    start = self._protos.SessionStartInfo(
      # Runs with the same hyper-parameters are one group.
      group_name=hashlib.sha256(text.encode()).hexdigest(),
      start_time_secs=time.time(),
    )
    for name, value in flat.items():
      field = _FIELD_OF[type(value)]
      setattr(start.hparams[name], field, value)
    data = self._protos.HParamsPluginData(session_start_info=start)
    metadata = self._metadata('hparams', None, data.SerializeToString())
    nothing = np.zeros((), np.float32)
    self._add('_hparams_/session_start_info', nothing, 0, metadata)

  def _metadata(
    self, plugin: str, data_class: int | None, content: bytes = b''
  ) -> Any:
    """Returns the message that says who shows a summary."""
    metadata = self._protos.SummaryMetadata()
    metadata.plugin_data.plugin_name = plugin
    metadata.plugin_data.content = content
    if data_class is not None:
      # The field `data_class`, which the class does not know yet.
      metadata.MergeFromString(bytes([4 << 3, data_class]))
    return metadata

  def _add(self, tag: str, value: Any, step: int, metadata: Any) -> None:
    event = self._protos.Event(step=int(step))
    summary = event.summary.value.add(tag=tag, metadata=metadata)
    _set_tensor(summary.tensor, value)
    self._write_event(event)

  def _write_event(self, event: Any) -> None:
    event.wall_time = time.time()
    with self._lock:
      file = self._opened()
      file.write(event.SerializeToString())
      if self._auto_flush:
        file.flush()

  def _opened(self) -> Any:
    if self._file is None:
      raise ValueError(
        'The SummaryWriter is closed. Close it after the last summary, or make'
        ' another for the same `log_dir`: TensorBoard shows both files as one.'
      )
    return self._file


class _Protos:
  """The messages of an event file, as tensorboardX has them."""

  def __init__(self) -> None:
    from tensorboardX.proto import event_pb2, plugin_hparams_pb2, summary_pb2

    # The classes are made when these modules are imported.
    self.Event = vars(event_pb2)['Event']
    self.SummaryMetadata = vars(summary_pb2)['SummaryMetadata']
    self.HParamsPluginData = vars(plugin_hparams_pb2)['HParamsPluginData']
    self.SessionStartInfo = vars(plugin_hparams_pb2)['SessionStartInfo']


def _import_protos() -> _Protos:
  """Returns the messages.

  Raises:
    ImportError: tensorboardX is not installed. The message names the extra.
  """
  try:
    return _Protos()
  except ImportError as error:
    raise ImportError(
      'Event files for TensorBoard need the package tensorboardX, which is not'
      ' installed. Install haiku_state with the extra `tensorboard`: in a clone'
      " of its repository run `pip install '.[tensorboard]'`."
    ) from error


def _open(log_dir: str) -> Any:
  """Returns a new file of records in a folder.

  Its name has what TensorBoard looks for, and is like no other's.
  """
  from tensorboardX import RecordWriter
  from tensorboardX.record_writer import directory_check

  directory_check(log_dir)
  name = (
    f'events.out.tfevents.{int(time.time()):010}.{socket.gethostname()}'
    f'.{os.getpid()}.{next(_COUNTER)}.v2'
  )
  return RecordWriter(os.path.join(log_dir, name))


# --- Tensors -----------------------------------------------------------------

# The numbers of dtypes in the message `TensorProto`, of those with plain bytes.
_DTYPES = {
  'float32': 1,
  'float64': 2,
  'int32': 3,
  'uint8': 4,
  'int16': 5,
  'int8': 6,
  'complex64': 8,
  'int64': 9,
  'bool': 10,
  'bfloat16': 14,
  'uint16': 17,
  'complex128': 18,
  'float16': 19,
  'uint32': 22,
  'uint64': 23,
}
_STRING = 7


def _set_tensor(tensor: Any, value: Any) -> None:
  """Writes an array, or texts, into a message `TensorProto`.

  Raises:
    ValueError: there is no number for its dtype.
  """
  array = _as_array(value)
  for size in array.shape:
    tensor.tensor_shape.dim.add(size=size)
  if array.dtype.kind in 'OSU':
    tensor.dtype = _STRING
    tensor.string_val.extend(map(_as_bytes, array.ravel()))
    return
  if array.dtype.name not in _DTYPES:
    raise ValueError(
      f'An event file cannot hold arrays of dtype {array.dtype}, only of'
      f' {", ".join(_DTYPES)}, strings and bytes. Cast it first.'
    )
  tensor.dtype = _DTYPES[array.dtype.name]
  tensor.tensor_content = array.tobytes()


def _as_array(value: Any) -> np.ndarray:
  if isinstance(value, (str, bytes)):
    return np.array(value, object)  # Numpy would cut off zeros at the end.
  array = np.asarray(value)
  if array.dtype.kind in 'SU' and not isinstance(value, np.ndarray):
    return np.array(value, object)
  if hasattr(value, 'dtype'):
    return array
  # Python's numbers are of 32 bits to TensorFlow.
  return array.astype(
    {'float64': 'float32', 'int64': 'int32'}.get(array.dtype.name, array.dtype)
  )


def _as_bytes(text: Any) -> bytes:
  return text if isinstance(text, bytes) else str(text).encode()


# --- Images ------------------------------------------------------------------


def _as_images(image: np.ndarray) -> np.ndarray:
  """Returns images (images, height, width, channels) of dtype uint8.

  Raises:
    ValueError: shape or dtype are none of an image.
  """
  shape = image.shape
  if image.ndim == 2:
    image = image[None, :, :, None]
  elif image.ndim == 3 and shape[-1] in (1, 3):
    image = image[None]
  elif image.ndim == 3:
    image = image[..., None]
  if image.ndim != 4 or image.shape[-1] not in _PNG_COLORS:
    raise ValueError(
      'Expected an image of shape (height, width), (height, width, 1 or 3),'
      ' (images, height, width) or (images, height, width, 1 to 4): it is'
      f' {shape}.'
    )
  if image.shape[-1] == 1:
    image = np.repeat(image, 3, axis=-1)
  if image.dtype == np.uint8:
    return image
  if image.dtype.name not in ('float16', 'bfloat16', 'float32', 'float64'):
    raise ValueError(
      'Expected an image of dtype uint8, or floating point from 0 to 1: it is'
      f' {image.dtype}. Write `image.astype(np.uint8)` if its values are from 0'
      ' to 255.'
    )
  # Each of the 256 values stands for an interval of the same length.
  return np.clip(image.astype(np.float64) * 255.5, 0, 255).astype(np.uint8)


_PNG_COLORS = {1: 0, 2: 4, 3: 2, 4: 6}


def _as_png(image: np.ndarray) -> bytes:
  """Returns an image (height, width, channels) as a file.

  Source: https://www.w3.org/TR/png-3/.
  """
  height, width, channels = image.shape
  header = struct.pack(
    '>2I5B', width, height, 8, _PNG_COLORS[channels], 0, 0, 0
  )
  # Each row begins with the number of its filter: none.
  rows = np.pad(image.reshape(height, -1), ((0, 0), (1, 0))).tobytes()
  chunks = ((b'IHDR', header), (b'IDAT', zlib.compress(rows)), (b'IEND', b''))
  return b'\x89PNG\r\n\x1a\n' + b''.join(
    struct.pack('>I', len(data))
    + kind
    + data
    + struct.pack('>I', zlib.crc32(kind + data))
    for kind, data in chunks
  )


# --- Sounds ------------------------------------------------------------------

# The message `AudioPluginData` whose field `encoding` says WAV.
_AS_WAV = bytes([2 << 3, 11])


def _as_wav(frames: np.ndarray, sample_rate: int) -> bytes:
  """Returns a sound (frames, channels) from -1 to 1 as a file of 16 bits."""
  samples = np.clip(np.round(frames * 2.0**15), -(2**15), 2**15 - 1)
  out = io.BytesIO()
  with wave.open(out, 'wb') as file:
    file.setnchannels(frames.shape[1])
    file.setsampwidth(2)
    file.setframerate(sample_rate)
    file.writeframes(samples.astype('<i2').tobytes())
  return out.getvalue()


# --- Histograms --------------------------------------------------------------


def _histogram(data: np.ndarray, bins: int) -> np.ndarray:
  """Returns rows (left edge, right edge, count), float64."""
  if bins == 0 or data.size == 0:
    return np.zeros((bins, 3))
  low, high = data.min(), data.max()
  if low == high:
    # One value has no interval; all of it is in the last row.
    counts = np.zeros(bins)
    counts[-1] = data.size
    return np.stack([np.full(bins, low), np.full(bins, low), counts], axis=1)
  counts, edges = np.histogram(data, bins, (low, high))
  return np.stack([edges[:-1], edges[1:], counts.astype(np.float64)], axis=1)


# --- Hyper-parameters --------------------------------------------------------

_FIELD_OF = {
  bool: 'bool_value',
  int: 'number_value',
  float: 'number_value',
  str: 'string_value',
}


def _flat_hparams(hparams: Mapping[str, Any], prefix: str = '') -> dict:
  """Returns Python's bools, numbers and strings by dotted name."""
  flat: dict[str, Any] = {}
  for name, value in hparams.items():
    if isinstance(value, Mapping):
      flat.update(_flat_hparams(value, f'{prefix}{name}.'))
      continue
    if isinstance(value, np.generic):
      value = value.item()
    for kind in _FIELD_OF:
      if isinstance(value, kind):
        value = kind(value)
        break
    else:
      value = str(value)
    flat[f'{prefix}{name}'] = value
  return flat
