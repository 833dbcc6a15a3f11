"""Event files, read back record by record."""

import importlib
import inspect
import io
import struct
import subprocess
import sys
import threading
import wave
from unittest import mock

import jax.numpy as jnp
import numpy as np
import pytest

from haiku_state.core import freeze
from haiku_state.metrics import tensorboard

pytest.importorskip('tensorboardX')


def records(folder):
  """Returns the records of the only event file in a folder."""
  (path,) = folder.iterdir()
  assert path.name.startswith('events.out.tfevents.')
  data = path.read_bytes()
  while data:
    (length,) = struct.unpack('<Q', data[:8])
    yield data[12 : 12 + length]
    data = data[16 + length :]


def events(folder):
  from tensorboardX.proto import event_pb2

  first, *rest = map(event_pb2.Event.FromString, records(folder))
  assert first.file_version == 'brain.Event:2'
  assert all(e.wall_time > 1e9 for e in rest)
  return rest


DTYPES = {1: np.float32, 2: np.float64, 3: np.int32, 4: np.uint8}


def value_of(event):
  """Returns tag, plugin and value of the only summary of an event."""
  (value,) = event.summary.value
  tensor = value.tensor
  shape = [dim.size for dim in tensor.tensor_shape.dim]
  if tensor.dtype == 7:
    array = np.array(list(tensor.string_val), object)
  else:
    array = np.frombuffer(tensor.tensor_content, DTYPES[tensor.dtype])
  return value.tag, value.metadata.plugin_data.plugin_name, array.reshape(shape)


def written(folder, write):
  """Returns what one call of a method has written."""
  with tensorboard.SummaryWriter(folder) as writer:
    write(writer)
  (event,) = events(folder)
  return event.step, *value_of(event)


@pytest.mark.parametrize('value', [2, 2.0, np.float64(2), jnp.full((1,), 2.0)])
def test_scalar(tmp_path, value):
  if np.ndim(value):
    value = value[0]
  step, tag, plugin, array = written(
    tmp_path, lambda w: w.scalar('a/loss', value, np.int64(7))
  )
  assert (step, tag, plugin) == (7, 'a/loss', 'scalars')
  assert array.dtype == np.float32 and array.shape == () and array == 2


def pixels(png):
  image = pytest.importorskip('PIL.Image')
  return np.asarray(image.open(io.BytesIO(png)))


GREY = np.arange(8, dtype=np.uint8).reshape(2, 4)
COLORS = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
IMAGES = {
  'grey': (GREY, [np.stack([GREY] * 3, -1)]),
  'one channel': (GREY[..., None], [np.stack([GREY] * 3, -1)]),
  'colors': (COLORS, [COLORS]),
  'greys': (np.stack([GREY] * 5, 0), [np.stack([GREY] * 3, -1)] * 3),
  'several': (np.stack([COLORS, COLORS + 1]), [COLORS, COLORS + 1]),
  'with alpha': (COLORS.reshape(1, 3, 3, 2).repeat(2, -1), None),
  'two channels': (COLORS[None, ..., :2], [COLORS[..., :2]]),
  'floats': (jnp.array(COLORS) / 255, [COLORS]),
  'beyond': (
    np.array([[-1.0, 0.5, 1.0, 2.0]]),
    [[[[n] * 3 for n in (0, 127, 255, 255)]]],
  ),
}


@pytest.mark.parametrize('name', IMAGES)
def test_image(tmp_path, name):
  image, expected = IMAGES[name]
  if expected is None:
    expected = list(image)
  step, tag, plugin, array = written(
    tmp_path, lambda w: w.image('seen', image, 3)
  )
  assert (step, tag, plugin) == (3, 'seen', 'images')
  height, width = np.shape(expected[0])[:2]
  assert list(array[:2]) == [b'%d' % width, b'%d' % height]
  assert len(array) == 2 + len(expected)
  for png, one in zip(array[2:], expected):
    np.testing.assert_array_equal(pixels(png), one)


def test_number_of_images(tmp_path):
  *_, array = written(
    tmp_path, lambda w: w.image('a', np.zeros((5, 2, 4)), 0, max_outputs=4)
  )
  assert len(array) == 6


def test_audio(tmp_path):
  sounds = np.array([[0.0, 0.5, -2.0, 2.0]] * 4)[..., None]
  sounds = np.concatenate([sounds, -sounds], axis=-1)
  step, tag, plugin, array = written(
    tmp_path, lambda w: w.audio('heard', sounds, 3, 8000, max_outputs=2)
  )
  assert (step, tag, plugin) == (3, 'heard', 'audio')
  assert array.shape == (2, 2) and list(array[:, 1]) == [b'', b'']
  with wave.open(io.BytesIO(array[0, 0])) as file:
    assert (file.getframerate(), file.getnchannels()) == (8000, 2)
    frames = np.frombuffer(file.readframes(9), '<i2').reshape(-1, 2)
  assert frames[:, 0].tolist() == [0, 16384, -32768, 32767]
  assert frames[:, 1].tolist() == [0, -16384, 32767, -32768]


HISTOGRAMS = {
  'ordinary': ([[0, 1], [1, 4]], 2, [[0, 2, 3], [2, 4, 1]]),
  'one value': ([3.0, 3.0], 2, [[3, 3, 0], [3, 3, 2]]),
  'nothing': ([], 2, [[0, 0, 0]] * 2),
  'no bins': ([1.0, 2.0], 0, np.zeros((0, 3))),
}


@pytest.mark.parametrize('name', HISTOGRAMS)
def test_histogram(tmp_path, name):
  values, bins, expected = HISTOGRAMS[name]
  step, tag, plugin, array = written(
    tmp_path, lambda w: w.histogram('h', jnp.array(values), 3, bins)
  )
  assert (step, tag, plugin) == (3, 'h', 'histograms')
  np.testing.assert_array_equal(array, expected)


def test_histogram_has_30_bins(tmp_path):
  *_, array = written(tmp_path, lambda w: w.histogram('h', np.arange(60), 3))
  assert array.dtype == np.float64 and array.shape == (30, 3)
  assert array[:, 2].tolist() == [2] * 30


@pytest.mark.parametrize('text', ['# Tïtle', '# Tïtle'.encode()])
def test_text(tmp_path, text):
  step, tag, plugin, array = written(tmp_path, lambda w: w.text('t', text, 3))
  assert (step, tag, plugin) == (3, 't', 'text')
  assert array.shape == () and array.item() == '# Tïtle'.encode()


TENSORS = {
  'floats': ([1.0, 2.0], np.array([1, 2], np.float32)),
  'doubles': (np.array([1.0]), np.array([1.0])),
  'ints': ([[1], [2]], np.array([[1], [2]], np.int32)),
  'jax': (jnp.arange(3), np.arange(3, dtype=np.int32)),
  'texts': (['a', 'b\0'], np.array([b'a', b'b\0'], object)),
  'numpy texts': (np.array(['a']), np.array([b'a'], object)),
}


@pytest.mark.parametrize('name', TENSORS)
@pytest.mark.parametrize('as_bytes', [False, True])
def test_write(tmp_path, name, as_bytes):
  from tensorboardX.proto.summary_pb2 import SummaryMetadata

  tensor, expected = TENSORS[name]
  metadata = SummaryMetadata()
  metadata.plugin_data.plugin_name = 'mine'
  if as_bytes:
    metadata = metadata.SerializeToString()
  step, tag, plugin, array = written(
    tmp_path, lambda w: w.write('x', tensor, 3, metadata=metadata)
  )
  assert (step, tag, plugin, array.dtype) == (3, 'x', 'mine', expected.dtype)
  np.testing.assert_array_equal(array, expected)


def test_write_without_metadata(tmp_path):
  assert written(tmp_path, lambda w: w.write('x', 1, 0))[:3] == (0, 'x', '')


def test_hparams(tmp_path):
  from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

  hparams = freeze(
    {'a': {'rate': 0.1, 'n': np.int64(3)}, 'on': np.bool_(True), 'f': [1]}
  )
  with tensorboard.SummaryWriter(tmp_path) as writer:
    writer.hparams(hparams)
    writer.hparams({'a': {'n': 3, 'rate': 0.1}, 'f': '[1]', 'on': True})
  starts = []
  for event in events(tmp_path):
    (value,) = event.summary.value
    assert value.tag == '_hparams_/session_start_info'
    assert value.metadata.plugin_data.plugin_name == 'hparams'
    data = HParamsPluginData.FromString(value.metadata.plugin_data.content)
    starts.append(data.session_start_info)
  found = {
    k: getattr(v, v.WhichOneof('kind')) for k, v in starts[0].hparams.items()
  }
  assert found == {'a.rate': 0.1, 'a.n': 3, 'on': True, 'f': '[1]'}
  assert starts[0].group_name == starts[1].group_name


def test_flushes_at_once_or_when_asked(tmp_path):
  for auto_flush, expected in ((True, 1), (False, 0)):
    folder = tmp_path / str(auto_flush) / 'made'
    writer = tensorboard.SummaryWriter(folder, auto_flush)
    writer.flush()
    writer.scalar('a', 1, 0)
    assert len(events(folder)) == expected
    writer.flush()
    assert len(events(folder)) == 1
    writer.close()


def test_closed_for_good(tmp_path):
  writer = tensorboard.SummaryWriter(tmp_path, auto_flush=False)
  writer.scalar('a', 1, 0)
  writer.close()
  writer.close()
  assert len(events(tmp_path)) == 1
  for use in (writer.flush, lambda: writer.scalar('a', 1, 1)):
    with pytest.raises(ValueError, match='is closed.*make another'):
      use()


def test_two_writers_in_one_folder(tmp_path):
  for step in range(2):
    with tensorboard.SummaryWriter(tmp_path) as writer:
      writer.scalar('a', 1, step)
  assert len(list(tmp_path.iterdir())) == 2


def test_several_threads(tmp_path):
  with tensorboard.SummaryWriter(tmp_path, auto_flush=False) as writer:

    def write(n):
      for step in range(50):
        writer.scalar(f'a{n}', step, step)

    threads = [threading.Thread(target=write, args=[n]) for n in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
  assert len(events(tmp_path)) == 200


BAD = {
  'int64': lambda w: w.image('a', np.zeros((2, 2), int), 0),
  'uint8': lambda w: w.image('a', np.zeros((2, 2), bool), 0),
  '(2,)': lambda w: w.image('a', np.zeros(2), 0),
  '1 to 4': lambda w: w.image('a', np.zeros((1, 2, 2, 5)), 0),
  'audiodata[None': lambda w: w.audio('a', np.zeros(5), 0),
  'is int': lambda w: w.text('a', 3, 0),
  'datetime64': lambda w: w.write('a', np.datetime64('2000-01-01'), 0),
}


@pytest.mark.parametrize('words', BAD)
def test_bad_values(tmp_path, words):
  with tensorboard.SummaryWriter(tmp_path) as writer:
    with pytest.raises(ValueError) as e:
      BAD[words](writer)
  assert words in str(e.value)
  assert not events(tmp_path)


def test_signatures_are_flax_s(monkeypatch):
  pytest.importorskip('flax.io')  # It looks for the real TensorFlow.
  needed = ('tensorflow', 'tensorboard', 'tensorboard.plugins')
  for name in (*needed, 'tensorboard.plugins.hparams'):
    monkeypatch.setitem(sys.modules, name, mock.MagicMock())
  monkeypatch.delitem(sys.modules, 'flax.metrics.tensorboard', raising=False)
  theirs = importlib.import_module('flax.metrics.tensorboard').SummaryWriter
  del sys.modules['flax.metrics.tensorboard']
  ours = tensorboard.SummaryWriter
  methods = [n for n in vars(theirs) if not n.startswith('_')] + ['__init__']
  assert len(methods) == 10
  for name in methods:
    mine, other = (
      [(p.name, p.kind, p.default) for p in f.parameters.values()]
      for f in map(
        inspect.signature, (getattr(ours, name), getattr(theirs, name))
      )
    )
    assert mine == other, name


def test_extra_is_named():
  program = """
    import sys
    sys.modules['tensorboardX'] = None
    from haiku_state.metrics import tensorboard
    try:
      tensorboard.SummaryWriter('never_made')
    except ImportError as e:
      assert '[tensorboard]' in str(e)
    else:
      raise AssertionError
  """
  subprocess.run([sys.executable, '-c', inspect.cleandoc(program)], check=True)
