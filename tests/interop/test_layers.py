"""The layer table: outputs and gradients of each pair are equal, and back.

Each row has a Haiku layer, its linen counterpart, and the row of a mapping.
"""

import dataclasses
import functools
import re
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from haiku_state import interop
from haiku_state import linen as nn
from haiku_state.interop import layers

KEY = jax.random.PRNGKey(0)


def noise(*shape):
  return jax.random.normal(jax.random.PRNGKey(1), shape)


IMAGE = noise(2, 5, 6, 4)
ROW = noise(3, 4)
SEQUENCE = noise(2, 7, 4)
INIT = hk.initializers.RandomNormal(0.3)
NORM = {'epsilon': 1e-5, 'use_fast_variance': False}


@dataclasses.dataclass(eq=False)
class Pair:
  """Two layers that are equal when they have the same weights."""

  haiku: Any
  linen: Any
  layer: Any
  x: Any = dataclasses.field(default_factory=lambda: ROW)
  path: str = 'layer'


CUBE = noise(2, 3, 5, 4, 6)  # Its second axis is the channels, or its last.


def channels_last(layer):
  """Returns a layer as one whose channels are on the second axis."""

  def run(x):
    return jnp.moveaxis(layer(jnp.moveaxis(x, 1, -1)), -1, 1)

  return run


def norm_pair(kind, axis, param_axis, x, axes, features, **options):
  """Returns a LayerNorm or RMSNorm of Haiku over some axes, and linen's."""
  is_layer_norm = kind == 'layer'
  make_hk = hk.LayerNorm if is_layer_norm else hk.RMSNorm
  flags = (True, True) if is_layer_norm else ()
  norm = NORM if is_layer_norm else {'epsilon': 1e-5}
  make = nn.LayerNorm if is_layer_norm else nn.RMSNorm
  layer = layers.layer_norm if is_layer_norm else layers.rms_norm
  return Pair(
    lambda x: make_hk(
      axis, *flags, scale_init=INIT, param_axis=param_axis, name='layer'
    )(x),
    lambda x: make(
      **norm, reduction_axes=axes, feature_axes=features, name='layer'
    )(x),
    lambda path: layer(path, axis, param_axis, x.ndim),
    x,
  )


def attend_hk(x):
  return hk.MultiHeadAttention(2, 3, w_init=INIT, model_size=5, name='layer')(
    x, x, x
  )


def lstm_hk(x):
  core = hk.LSTM(5, name='layer')
  out, (h, c) = core(
    x, hk.LSTMState(x[:, :1] * jnp.ones((1, 5)), x[:, 1:2] * jnp.ones((1, 5)))
  )
  return out, h, c


def lstm_linen(cell):
  def run(x):
    (c, h), out = cell(name='layer')(
      (x[:, 1:2] * jnp.ones((1, 5)), x[:, :1] * jnp.ones((1, 5))), x
    )
    return out, h, c

  return run


INDICES = jnp.array([[1, 0], [2, 4]])
PAIRS = {
  'linear': Pair(
    lambda x: hk.Linear(5, name='layer')(x),
    lambda x: nn.Dense(5, name='layer')(x),
    layers.linear,
  ),
  'linear without bias': Pair(
    lambda x: hk.Linear(5, with_bias=False, name='layer')(x),
    lambda x: nn.Dense(5, use_bias=False, name='layer')(x),
    layers.linear,
  ),
  'conv1d': Pair(
    lambda x: hk.Conv1D(5, 3, stride=2, name='layer')(x),
    lambda x: nn.Conv(5, (3,), strides=2, name='layer')(x),
    layers.conv,
    SEQUENCE,
  ),
  'conv2d': Pair(
    lambda x: hk.Conv2D(6, 3, feature_group_count=2, name='layer')(x),
    lambda x: nn.Conv(6, (3, 3), feature_group_count=2, name='layer')(x),
    layers.conv,
    IMAGE,
  ),
  'conv transpose': Pair(
    lambda x: hk.Conv2DTranspose(5, (3, 2), stride=2, name='layer')(x),
    lambda x: nn.ConvTranspose(5, (3, 2), (2, 2), name='layer')(x),
    layers.conv_transpose,
    IMAGE,
  ),
  'conv transpose, flipped': Pair(
    lambda x: hk.Conv2DTranspose(5, (3, 2), stride=2, name='layer')(x),
    lambda x: nn.ConvTranspose(
      5, (3, 2), (2, 2), transpose_kernel=True, name='layer'
    )(x),
    lambda path: layers.conv_transpose(path, transpose_kernel=True),
    IMAGE,
  ),
  'depthwise conv': Pair(
    lambda x: hk.DepthwiseConv2D(2, 3, name='layer')(x),
    lambda x: nn.Conv(8, (3, 3), feature_group_count=4, name='layer')(x),
    layers.depthwise_conv,
    IMAGE,
  ),
  'layer norm': Pair(
    lambda x: hk.LayerNorm(-1, True, True, scale_init=INIT, name='layer')(x),
    lambda x: nn.LayerNorm(**NORM, name='layer')(x),
    layers.layer_norm,
  ),
  'rms norm': Pair(
    lambda x: hk.RMSNorm(-1, scale_init=INIT, name='layer')(x),
    lambda x: nn.RMSNorm(epsilon=1e-5, name='layer')(x),
    layers.rms_norm,
  ),
  'group norm': Pair(
    lambda x: hk.GroupNorm(2, name='layer')(x),
    lambda x: nn.GroupNorm(2, **NORM, name='layer')(x),
    layers.group_norm,
    IMAGE,
  ),
  'instance norm': Pair(
    lambda x: hk.InstanceNorm(True, True, name='layer')(x),
    lambda x: nn.InstanceNorm(**NORM, name='layer')(x),
    layers.instance_norm,
    IMAGE,
  ),
  'embed': Pair(
    lambda x: hk.Embed(5, 3, name='layer')(INDICES) * x.sum(),
    lambda x: nn.Embed(5, 3, name='layer')(INDICES) * x.sum(),
    layers.embed,
  ),
  'attention': Pair(
    attend_hk,
    lambda x: nn.MultiHeadDotProductAttention(
      2, qkv_features=6, out_features=5, name='layer'
    )(x),
    lambda path: layers.attention(path, num_heads=2),
    SEQUENCE,
  ),
  'lstm': Pair(
    lstm_hk, lstm_linen(lambda name: nn.LSTMCell(5, name=name)), layers.lstm
  ),
  'optimized lstm': Pair(
    lstm_hk,
    lstm_linen(lambda name: nn.OptimizedLSTMCell(5, name=name)),
    layers.lstm,
  ),
  'batch norm': Pair(
    lambda x: hk.BatchNorm(True, True, 0.9, scale_init=INIT, name='layer')(
      x, True
    ),
    lambda x: nn.BatchNorm(False, momentum=0.9, name='layer')(x),
    lambda path: layers.batch_norm(path, rank=4),
    IMAGE,
  ),
  'batch norm, channels first': Pair(
    lambda x: hk.BatchNorm(
      True, True, 0.9, scale_init=INIT, data_format='NCHW', name='layer'
    )(x, True),
    lambda x: nn.BatchNorm(False, axis=1, momentum=0.9, name='layer')(x),
    lambda path: layers.batch_norm(path, data_format='NCHW'),
    IMAGE,
  ),
  'batch norm of one channel': Pair(
    lambda x: hk.BatchNorm(True, True, 0.9, data_format='N...C', name='layer')(
      x[..., :1], True
    ),
    lambda x: nn.BatchNorm(False, momentum=0.9, name='layer')(x[..., :1]),
    lambda path: layers.batch_norm(path, data_format='NHWC'),
    IMAGE,
  ),
  'batch norm of each pixel': Pair(
    lambda x: hk.BatchNorm(True, True, 0.9, axis=[0], name='layer')(x, True),
    lambda x: nn.BatchNorm(False, axis=(1, 2, 3), momentum=0.9, name='layer')(
      x
    ),
    lambda path: layers.batch_norm(path, rank=4),
    IMAGE,
  ),
  'conv1d, channels first': Pair(
    lambda x: hk.Conv1D(5, 3, b_init=INIT, data_format='NCW', name='layer')(x),
    channels_last(lambda x: nn.Conv(5, (3,), name='layer')(x)),
    lambda path: layers.conv(path, 'NCW'),
    SEQUENCE,
  ),
  'conv2d, channels first': Pair(
    lambda x: hk.Conv2D(6, 3, b_init=INIT, data_format='NCHW', name='layer')(x),
    channels_last(lambda x: nn.Conv(6, (3, 3), name='layer')(x)),
    lambda path: layers.conv(path, 'channels_first'),
    IMAGE,
  ),
  'conv3d, channels first': Pair(
    lambda x: hk.Conv3D(2, 2, b_init=INIT, data_format='NCDHW', name='layer')(
      x
    ),
    channels_last(lambda x: nn.Conv(2, (2, 2, 2), name='layer')(x)),
    lambda path: layers.conv(path, 'NC...'),
    CUBE,
  ),
  'conv of one channel, channels first': Pair(
    lambda x: hk.Conv2D(1, 3, b_init=INIT, data_format='NCHW', name='layer')(x),
    channels_last(lambda x: nn.Conv(1, (3, 3), name='layer')(x)),
    lambda path: layers.conv(path, 'NCHW'),
    IMAGE,
  ),
  'conv transpose, channels first': Pair(
    lambda x: hk.Conv2DTranspose(
      3, 2, stride=2, b_init=INIT, data_format='NCHW', name='layer'
    )(x),
    channels_last(
      lambda x: nn.ConvTranspose(3, (2, 2), (2, 2), name='layer')(x)
    ),
    lambda path: layers.conv_transpose(path, data_format='NCHW'),
    IMAGE,
  ),
  'depthwise conv, channels first': Pair(
    lambda x: hk.DepthwiseConv2D(
      2, 3, b_init=INIT, data_format='NCHW', name='layer'
    )(x),
    channels_last(
      lambda x: nn.Conv(10, (3, 3), feature_group_count=5, name='layer')(x)
    ),
    lambda path: layers.depthwise_conv(path, 'NCHW'),
    IMAGE,
  ),
  **{
    f'{kind} norm, {name}': norm_pair(kind, *arguments)
    for kind in ('layer', 'rms')
    for name, arguments in {
      'spatial, parameters first': ((1, 2), 1, IMAGE, (1, 2), 1),
      'one axis': (1, 1, SEQUENCE, 1, 1),
      'all but the batch': (
        slice(1, None),
        slice(1, None),
        IMAGE,
        (1, 2, 3),
        (1, 2, 3),
      ),
      'last, given as positive': (3, 3, IMAGE, 3, 3),
      'two axes of parameters': ((1, 3), (1, 3), IMAGE, (1, 3), (1, 3)),
      'axis of size one': ((0, 3), (0, 3), IMAGE[:1], (0, 3), (0, 3)),
      'over all, parameters on the last': ((1, 2, 3), -1, IMAGE, (1, 2, 3), -1),
      'negative': ((-3, -1), -3, IMAGE, (-3, -1), -3),
    }.items()
  },
  'group norm, channels first': Pair(
    lambda x: hk.GroupNorm(2, data_format='NC...', name='layer')(x[:, :4]),
    channels_last(lambda x: nn.GroupNorm(2, **NORM, name='layer')(x[..., :4])),
    lambda path: layers.group_norm(path, 'channels_first', rank=4),
    IMAGE,
  ),
  'instance norm, channels first': Pair(
    lambda x: hk.InstanceNorm(True, True, data_format='NC...', name='layer')(x),
    lambda x: nn.InstanceNorm(**NORM, feature_axes=1, name='layer')(x),
    lambda path: layers.instance_norm(path, 'NCDHW'),
    CUBE,
  ),
  'batch norm in evaluation': Pair(
    lambda x: hk.BatchNorm(True, True, 0.9, name='layer')(x, hk.running_init()),
    lambda x: nn.BatchNorm(True, momentum=0.9, name='layer')(x),
    lambda path: layers.batch_norm(path, rank=4),
    IMAGE,
  ),
}
each_pair = pytest.mark.parametrize('pair', PAIRS.values(), ids=PAIRS.keys())


class Model(nn.Module):
  fn: Any

  @nn.compact
  def __call__(self, x):
    return self.fn(x)


@functools.cache
def init_haiku(pair):
  f = hk.transform_with_state(pair.haiku)
  params, state = f.init(KEY, pair.x)
  # Biases of zero would hide where they go.
  params = jax.tree.map(lambda x: x + 0.1 * noise(*x.shape), params)
  return f, params, state


def gradients(fn, *args):
  def loss(*args):
    return sum(jnp.sum(jnp.sin(3 * y)) for y in jax.tree.leaves(fn(*args)))

  return jax.grad(loss, argnums=tuple(range(len(args))))(*args)


def assert_close(a, b, tolerance=1e-5):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, tolerance, tolerance), a, b
  )


@each_pair
def test_outputs_and_gradients_are_equal(pair):
  f, params, state = init_haiku(pair)
  mapping = {'layer': pair.layer('layer')}
  model = Model(pair.linen)
  shapes = jax.eval_shape(model.init, KEY, pair.x)
  variables, report = interop.weights_from_haiku(
    params, state, mapping, target=shapes
  )
  assert report.unmatched == report.missing == ()
  state_cols = [col for col in variables if col != 'params']

  def linen(params, x):
    tree, _ = interop.weights_from_haiku(params, state, mapping)
    return model.apply(tree, x, mutable=state_cols)[0]

  def haiku(params, x):
    return f.apply(params, state, None, x)[0]

  linen, haiku = jax.jit(linen), jax.jit(haiku)
  assert_close(linen(params, pair.x), haiku(params, pair.x))
  assert_close(
    gradients(linen, params, pair.x), gradients(haiku, params, pair.x), 1e-4
  )


@each_pair
def test_back_without_a_target(pair):
  """Takes the axes of size one from the options of the row."""
  _, params, state = init_haiku(pair)
  mapping = {'layer': pair.layer('layer')}
  variables, _ = interop.weights_from_haiku(params, state, mapping)
  back = interop.weights_to_haiku(variables, mapping)
  for made, given in zip(back, (params, state)):
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, given)
  assert 'guessed' not in str(back[2])


@each_pair
@pytest.mark.parametrize('kind', ['jax', 'numpy', 'shapes', 'sharded'])
def test_there_and_back(pair, kind):
  _, params, state = init_haiku(pair)
  mapping = {'layer': pair.layer('layer')}
  mesh = Mesh(np.array(jax.devices()), ('d',))
  change = {
    'jax': lambda x: x,
    'numpy': np.asarray,
    'shapes': lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
    'sharded': lambda x: jax.device_put(
      x, NamedSharding(mesh, PartitionSpec())
    ),
  }[kind]
  given = jax.tree.map(change, (params, state))
  variables, _ = interop.weights_from_haiku(*given, mapping)
  back_params, back_state, _ = interop.weights_to_haiku(
    variables, mapping, target=given
  )
  assert jax.tree.map(jnp.shape, back_params) == jax.tree.map(jnp.shape, params)
  assert jax.tree.map(jnp.shape, back_state) == jax.tree.map(jnp.shape, state)
  if kind == 'shapes':
    leaves = jax.tree.leaves((variables, back_params, back_state))
    assert all(isinstance(x, jax.ShapeDtypeStruct) for x in leaves)
    return
  assert_close(back_params, jax.tree.map(lambda x: x, params), 1e-6)
  if kind == 'numpy':
    assert all(
      type(x) is np.ndarray for x in jax.tree.leaves((variables, back_params))
    )
  if kind == 'sharded':
    for x in jax.tree.leaves((variables, back_params)):
      assert len(x.sharding.device_set) == len(jax.devices())


def test_report_says_what_the_linen_layer_must_be():
  _, params, state = init_haiku(PAIRS['layer norm'])
  _, report = interop.weights_from_haiku(
    params, state, {'layer': layers.layer_norm('n')}
  )
  assert 'layer -> n: LayerNorm(epsilon=1e-5, use_fast_variance=False)' in str(
    report
  )
  assert layers.KINDS.keys() == {
    layer.kind for layer in (p.layer('x') for p in PAIRS.values())
  }


BARE = {
  'batch norm': layers.batch_norm,
  'batch norm, channels first': layers.batch_norm,
  'conv2d, channels first': layers.conv,
  'conv3d, channels first': layers.conv,
  'depthwise conv, channels first': layers.depthwise_conv,
  'layer norm, spatial, parameters first': layers.layer_norm,
  'layer norm, axis of size one': layers.layer_norm,
  'rms norm, two axes of parameters': layers.rms_norm,
  'group norm, channels first': layers.group_norm,
  'instance norm, channels first': layers.instance_norm,
}


@pytest.mark.parametrize('name', BARE)
def test_the_targets_tell_what_the_options_do_not(name):
  pair = PAIRS[name]
  _, params, state = init_haiku(pair)
  mapping = {'layer': BARE[name]('layer')}
  shapes = jax.eval_shape(Model(pair.linen).init, KEY, pair.x)
  variables, _ = interop.weights_from_haiku(
    params, state, mapping, target=shapes
  )
  want, _ = interop.weights_from_haiku(
    params, state, {'layer': pair.layer('layer')}
  )
  assert_close(variables, want, 0)
  back = interop.weights_to_haiku(variables, mapping, target=(params, state))
  assert_close(back[0], jax.tree.map(lambda x: x, params), 1e-6)
  assert jax.tree.map(jnp.shape, back[1]) == jax.tree.map(jnp.shape, state)
  assert 'guessed' not in str(back[2])


def test_the_report_says_what_was_guessed():
  _, params, state = init_haiku(PAIRS['batch norm'])
  mapping = {'layer': layers.batch_norm('layer')}
  variables, report = interop.weights_from_haiku(params, state, mapping)
  assert 'note' not in str(report)
  made, _, report = interop.weights_to_haiku(variables, mapping)
  assert made['layer']['scale'].shape == (1, 4)
  assert 'note: the rank of the inputs was guessed to be 2' in str(report)
  assert '`rank=`' in str(report) and '`target=`' in str(report)


NOTES = {
  'conv2d, channels first': (layers.conv, 'channels come first.*transpose'),
  'group norm, channels first': (layers.group_norm, 'channels come first'),
  'layer norm, two axes of parameters': (
    layers.layer_norm,
    r'\(1, 5, 1, 4\) in Haiku.*feature_axes=\(1, 3\)',
  ),
}


@pytest.mark.parametrize('name', NOTES)
def test_the_report_says_what_the_weights_show(name):
  layer, words = NOTES[name]
  _, params, state = init_haiku(PAIRS[name])
  _, report = interop.weights_from_haiku(params, state, {'layer': layer('n')})
  assert re.search(words, str(report))


@pytest.mark.parametrize(
  'layer, words',
  [
    (
      layers.layer_norm('n', (1, 2), 1),
      r'reduction_axes=\(1, 2\).*feature_axes=1',
    ),
    (
      layers.layer_norm('n', slice(1, None), -1, 4),
      r'reduction_axes=\(1, 2, 3\)\)',
    ),
    (layers.rms_norm('n', slice(1, None)), r'those of slice\(1, None, None\)'),
    (layers.instance_norm('n', 'NCHW'), 'feature_axes=1'),
    (layers.batch_norm('n', data_format='NCHW'), r'axis=1\)'),
    (layers.group_norm('n', axis=(1, 2, 3)), r'reduction_axes=\(1, 2, 3\)'),
  ],
)
def test_the_report_has_the_axes(layer, words):
  params = {'layer': {'scale': ROW[0]}}
  _, report = interop.weights_from_haiku(params, {}, {'layer': layer})
  assert re.search(words, str(report))


def test_gru_is_refused_with_the_reason():
  with pytest.raises(interop.ConversionError, match='gru: .*reset gate'):
    layers.gru('gru')


# --- What does not fit -------------------------------------------------------

W = np.ones((3, 2), np.float32)
B = np.ones(2, np.float32)
LINEAR = {'linear': {'w': W, 'b': B}}
MAP = {'linear': layers.linear('Dense_0')}
TARGET = {'params': {'Dense_0': {'kernel': W, 'bias': B}}}


def from_haiku(params, mapping=MAP, **kwargs):
  return interop.weights_from_haiku(params, {}, mapping, **kwargs)


BAD = {
  'layer missing in the mapping': (
    lambda: from_haiku({**LINEAR, 'extra': {'w': W}}),
    r'params\["extra"\]\["w"\]',
  ),
  'layer missing in the weights': (
    lambda: from_haiku({}),
    '"linear" has none of the leaves',
  ),
  'leaf missing in the mapping': (
    lambda: from_haiku(
      LINEAR, target={'params': {**TARGET['params'], 'x': {'s': B}}}
    ),
    'params/x/s',
  ),
  'path that the target has not': (
    lambda: from_haiku(
      LINEAR, {'linear': layers.linear('Dense_1')}, target=TARGET
    ),
    'params/Dense_1/kernel',
  ),
  'shapes that disagree': (
    lambda: from_haiku({'linear': {'w': W.T, 'b': B}}, target=TARGET),
    r'params/Dense_0/kernel" has shape \(2, 3\), and in the target \(3, 2\)',
  ),
  'two layers at one place': (
    lambda: from_haiku(LINEAR, {**MAP, 'other': layers.linear('Dense_0')}),
    '"linear" and "other" are both mapped to "Dense_0"',
  ),
  'no layer': (
    lambda: from_haiku(LINEAR, {'linear': 'Dense_0'}),
    r"layers.linear\('Dense_0'\)",
  ),
  'unknown kind': (
    lambda: from_haiku(LINEAR, {'linear': layers.Layer('dense', 'x')}),
    'known are.*linear|Known are.*linear',
  ),
  'not an lstm': (
    lambda: from_haiku(LINEAR, {'linear': layers.lstm('x')}),
    '"linear" has no "linear/w" or "linear/b"',
  ),
  'wrong heads': (
    lambda: from_haiku(
      {'a/query': {'w': np.ones((3, 5))}}, {'a': layers.attention('a', 2)}
    ),
    '"a" cannot be converted',
  ),
  'no data format': (
    lambda: layers.conv('x', 'HWCN'),
    "'HWCN' is no data format.*channels_first",
  ),
  'back: rank of channels first': (
    lambda: interop.weights_to_haiku(
      {'params': {'n': {'scale': B}}},
      {'n': layers.instance_norm('n', 'channels_first')},
    ),
    'Pass `rank=`.*data_format="NCHW".*`target=`',
  ),
  'back: several features': (
    lambda: interop.weights_to_haiku(
      {'params': {'n': {'scale': W}}}, {'n': layers.layer_norm('n')}
    ),
    r'\(3, 2\).*`param_axis=` and `rank=`',
  ),
  'back: features on other axes': (
    lambda: interop.weights_to_haiku(
      {'params': {'n': {'scale': W}}},
      {'n': layers.layer_norm('n', 1, 1, rank=3)},
    ),
    r'\(3, 2\) are not on axes \(1,\)',
  ),
  'back: layer missing': (
    lambda: interop.weights_to_haiku({'params': {'d': {'kernel': W}}}, {}),
    'params/d/kernel',
  ),
  'back: shapes that disagree': (
    lambda: interop.weights_to_haiku(
      TARGET, MAP, target=({'linear': {'w': W.T, 'b': B}}, {})
    ),
    'params/linear/w',
  ),
}


@pytest.mark.parametrize('name', BAD)
def test_what_does_not_fit_is_an_error_with_the_path(name):
  make, words = BAD[name]
  with pytest.raises(interop.ConversionError, match=words):
    make()


def test_not_strict_reports_and_fills():
  extra = np.zeros(1)
  target = {'params': {**TARGET['params'], 'x': {'s': extra}}}
  variables, report = from_haiku(
    {**LINEAR, 'extra': {'w': W}}, target=target, strict=False
  )
  assert variables['params']['x']['s'] is extra
  assert report.unmatched == ('params["extra"]["w"]',)
  assert report.missing == ('params/x/s',)
  text = str(report)
  assert 'not converted: params["extra"]["w"]' in text
  assert 'made by no layer: params/x/s' in text


# --- BatchNorm's averages ----------------------------------------------------


def train_haiku(steps, rate=0.9):
  f = hk.transform_with_state(
    lambda x, t: hk.BatchNorm(True, True, rate, name='layer')(x, t)
  )
  params, state = f.init(KEY, ROW, True)
  for i in range(steps):
    _, state = f.apply(params, state, None, ROW * (i + 1) + i, True)
  return f, params, state


def model(train):
  return Model(lambda x: nn.BatchNorm(not train, momentum=0.9, name='layer')(x))


def train_linen(variables, steps, first=0):
  for i in range(first, first + steps):
    _, new = model(True).apply(
      variables, ROW * (i + 1) + i, mutable=['batch_stats']
    )
    variables = {**variables, **new}
  return variables


def convert(params, state, **options):
  mapping = {'layer': layers.batch_norm('layer', **options)}
  return interop.weights_from_haiku(params, state, mapping)


def convert_back(variables, **options):
  mapping = {'layer': layers.batch_norm('layer', **options)}
  return interop.weights_to_haiku(variables, mapping)


@pytest.mark.parametrize('steps', [0, 3])
def test_batch_norm_for_evaluation(steps):
  f, params, state = train_haiku(steps)
  variables, _ = convert(params, state)
  want, _ = f.apply(params, state, None, ROW, False)
  assert_close(model(False).apply(variables, ROW), want, 1e-6)


def test_batch_norm_for_training_is_what_linen_would_have():
  _, params, state = train_haiku(3)
  variables, report = convert(params, state, for_='training', momentum=0.9)
  start = model(True).init(KEY, ROW)
  want = train_linen(start, 3)
  for name in ('mean', 'var'):
    assert_close(
      variables['batch_stats']['layer'][name],
      want['batch_stats']['layer'][name],
    )
  # And back, with the counter that linen has no place for.
  counter = report.counters['layer']
  assert int(counter) == 3
  back = convert_back(variables, momentum=0.9, counter=counter)
  assert_close(back[1], jax.tree.map(lambda x: x, state), 1e-5)


@pytest.mark.parametrize('steps', [0, 4])
def test_batch_norm_to_haiku_without_counter(steps):
  f, params, _ = train_haiku(0)
  variables = train_linen(model(True).init(KEY, ROW), steps)
  _, state, _ = convert_back(variables)
  want = model(False).apply(variables, ROW)
  assert_close(f.apply(params, state, None, ROW, False)[0], want, 1e-6)
  for i in range(3):
    _, state = f.apply(params, state, None, ROW * (i + 1) + i, True)
  variables = train_linen(variables, 3)
  want = model(False).apply(variables, ROW)
  assert_close(f.apply(params, state, None, ROW, False)[0], want, 1e-5)


BAD_NORMS = {
  'no momentum': (dict(for_='training'), 'momentum='),
  'other purpose': (dict(for_='both'), "'eval' or 'training'"),
}


@pytest.mark.parametrize('name', BAD_NORMS)
def test_batch_norm_needs(name):
  options, words = BAD_NORMS[name]
  _, params, state = train_haiku(1)
  with pytest.raises(interop.ConversionError, match=words):
    convert(params, state, **options)


def test_batch_norm_counter_must_be_positive():
  variables = model(True).init(KEY, ROW)
  with pytest.raises(interop.ConversionError, match='counter is 0'):
    convert_back(variables, counter=0, momentum=0.9)
  with pytest.raises(interop.ConversionError, match='momentum='):
    convert_back(variables, counter=1)
