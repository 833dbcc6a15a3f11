"""Models as people have them: a recurrent one, a transformer, a ResNet-50."""

from __future__ import annotations

import functools
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from benchmarks.forms import (
  LECUN,
  WIDTH,
  Program,
  Workload,
  batch_norm,
  dense,
  dense_params,
  haiku_program,
  linen_program,
  means,
  norm_averages,
  norm_params,
  normalized,
  pure_program,
)


def lstm(by: str = 'RNN') -> Workload:
  """An LSTM over 20 steps, by `nn.RNN` or by `nn.scan`."""
  x = jnp.ones((2, 20, WIDTH))

  def haiku_fn(x):
    core = hk.LSTM(WIDTH)
    return hk.dynamic_unroll(
      core, x, core.initial_state(x.shape[0]), time_major=False
    )[0]

  return Workload(
    (x,),
    lambda nn: linen_program(
      nn.RNN(nn.LSTMCell(WIDTH)) if by == 'RNN' else _lstm_scanned(nn)
    ),
    lambda: haiku_program(haiku_fn),
    lambda: _lstm_pure('cell' if by == 'RNN' else 'ScanLSTMCell_0'),
  )


def _lstm_scanned(nn: Any) -> Any:
  class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x):
      cell = nn.scan(
        nn.LSTMCell,
        variable_broadcast='params',
        split_rngs={'params': False},
        in_axes=1,
        out_axes=1,
      )(WIDTH)
      carry = cell.initialize_carry(jax.random.key(0), (x.shape[0], WIDTH))
      return cell(carry, x)[1]

  return Scanned()


ORTHOGONAL = jax.nn.initializers.orthogonal()
SIGMOID, TANH = jax.nn.sigmoid, jnp.tanh
GATES = {'i': SIGMOID, 'f': SIGMOID, 'g': TANH, 'o': SIGMOID}


def _lstm_pure(at: str) -> Program:
  def make(keys):
    cell = {}
    for gate in GATES:
      kernel = LECUN(next(keys), (WIDTH, WIDTH))
      cell[f'i{gate}'] = {'kernel': kernel}
      kernel = ORTHOGONAL(next(keys), (WIDTH, WIDTH))
      cell[f'h{gate}'] = {'kernel': kernel, 'bias': jnp.zeros(WIDTH)}
    return {'params': {at: cell}}

  def apply(variables, x):
    cell = variables['params'][at]

    def step(carry, x):
      c, h = carry
      i, f, g, o = (
        act(x @ cell[f'i{gate}']['kernel'] + dense(h, cell[f'h{gate}']))
        for gate, act in GATES.items()
      )
      c = f * c + i * g
      h = o * jnp.tanh(c)
      return (c, h), h

    carry = tuple(jnp.zeros((x.shape[0], WIDTH)) for _ in range(2))
    _, y = jax.lax.scan(step, carry, jnp.swapaxes(x, 0, 1))
    return jnp.swapaxes(y, 0, 1), {}

  return pure_program(make, apply)


HEADS, HEAD_WIDTH, MODEL_WIDTH, HIDDEN = 4, 8, 32, 64


def transformer(layers: int = 12) -> Workload:
  """A transformer encoder of small width."""
  return Workload(
    (jnp.ones((2, 8, MODEL_WIDTH)),),
    lambda nn: linen_program(_transformer_module(nn, layers)),
    lambda: haiku_program(functools.partial(_transformer_haiku, layers)),
    lambda: _transformer_pure(layers),
  )


def _transformer_module(nn: Any, layers: int) -> Any:
  class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
      y = nn.LayerNorm()(x)
      x = x + nn.MultiHeadDotProductAttention(HEADS)(y, y)
      y = nn.LayerNorm()(x)
      return x + nn.Dense(MODEL_WIDTH)(nn.gelu(nn.Dense(HIDDEN)(y)))

  class Transformer(nn.Module):
    @nn.compact
    def __call__(self, x):
      for _ in range(layers):
        x = Block()(x)
      return nn.LayerNorm()(x)

  return Transformer()


def _transformer_haiku(layers: int, x: jax.Array) -> jax.Array:
  norm = functools.partial(hk.LayerNorm, -1, True, True)
  init = hk.initializers.VarianceScaling(1.0)
  for _ in range(layers):
    y = norm()(x)
    attention = hk.MultiHeadAttention(
      HEADS, HEAD_WIDTH, w_init=init, model_size=MODEL_WIDTH
    )
    x = x + attention(y, y, y)
    y = norm()(x)
    x = x + hk.Linear(MODEL_WIDTH)(jax.nn.gelu(hk.Linear(HIDDEN)(y)))
  return norm()(x)


ATTENTION = 'MultiHeadDotProductAttention_0'


def _transformer_pure(layers: int) -> Program:
  heads = (HEADS, HEAD_WIDTH)

  def projection(keys):
    kernel = LECUN(next(keys), (MODEL_WIDTH, MODEL_WIDTH))
    kernel = kernel.reshape(MODEL_WIDTH, *heads)
    return {'kernel': kernel, 'bias': jnp.zeros(heads)}

  def block_params(keys):
    attention = {name: projection(keys) for name in ('query', 'key', 'value')}
    out = dense_params(keys, MODEL_WIDTH, MODEL_WIDTH)
    kernel = out['kernel'].reshape(*heads, MODEL_WIDTH)
    return {
      'LayerNorm_0': norm_params(MODEL_WIDTH),
      ATTENTION: {**attention, 'out': {**out, 'kernel': kernel}},
      'LayerNorm_1': norm_params(MODEL_WIDTH),
      # Linen numbers by where they are made: the outer one comes first.
      'Dense_0': dense_params(keys, HIDDEN, MODEL_WIDTH),
      'Dense_1': dense_params(keys, MODEL_WIDTH, HIDDEN),
    }

  def make(keys):
    params = {f'Block_{i}': block_params(keys) for i in range(layers)}
    return {'params': {**params, 'LayerNorm_0': norm_params(MODEL_WIDTH)}}

  def apply(variables, x):
    params = variables['params']
    for i in range(layers):
      block = params[f'Block_{i}']
      x = x + _attention(_layer_norm(x, block['LayerNorm_0']), block[ATTENTION])
      y = _layer_norm(x, block['LayerNorm_1'])
      x = x + dense(jax.nn.gelu(dense(y, block['Dense_1'])), block['Dense_0'])
    return _layer_norm(x, params['LayerNorm_0']), {}

  return pure_program(make, apply)


def _attention(x: jax.Array, params: Any) -> jax.Array:
  q, k, v = (
    _contract(x, 1, params[name]) for name in ('query', 'key', 'value')
  )
  q = q / jnp.sqrt(HEAD_WIDTH).astype(q.dtype)
  weights = jax.nn.softmax(jnp.einsum('...qhd,...khd->...hqk', q, k))
  y = jnp.einsum('...hqk,...khd->...qhd', weights, v)
  return _contract(y, 2, params['out'])


def _contract(x: jax.Array, n_axes: int, params: Any) -> jax.Array:
  """Multiplies the last axes of `x` with the first ones of the kernel."""
  kernel, bias = params['kernel'], params['bias']
  ends = tuple(range(x.ndim - n_axes, x.ndim)), tuple(range(n_axes))
  y = jax.lax.dot_general(x, kernel, (ends, ((), ())))
  return y + bias.reshape((1,) * (y.ndim - bias.ndim) + bias.shape)


def _layer_norm(x: jax.Array, params: Any) -> jax.Array:
  mu, mu2 = means(x, -1)
  var = jnp.maximum(0.0, mu2 - jax.lax.square(mu))
  return normalized(x, mu, var, -1, params, 1e-6)


CHANNELS, GROUPS, CLASSES = 8, (3, 4, 6, 3), 10


def resnet50() -> Workload:
  """ResNet-50 with few channels on small images."""
  return Workload(
    (jnp.ones((1, 32, 32, 3)),),
    lambda nn: linen_program(_resnet_module(nn), ('batch_stats',)),
    lambda: haiku_program(_resnet_haiku),
    _resnet_pure,
  )


def _resnet_blocks() -> list[tuple[int, int]]:
  """Returns the channels and the stride of each block."""
  return [
    (CHANNELS * 2**i, 2 if i and not j else 1)
    for i, blocks in enumerate(GROUPS)
    for j in range(blocks)
  ]


def _resnet_module(nn: Any) -> Any:
  conv = functools.partial(nn.Conv, use_bias=False)
  norm = functools.partial(nn.BatchNorm, use_running_average=False)

  class Block(nn.Module):
    features: int
    stride: int

    @nn.compact
    def __call__(self, x):
      strides = (self.stride, self.stride)
      y = nn.relu(norm()(conv(self.features, (1, 1))(x)))
      y = nn.relu(norm()(conv(self.features, (3, 3), strides)(y)))
      y = norm()(conv(4 * self.features, (1, 1))(y))
      if x.shape != y.shape:
        x = norm()(conv(4 * self.features, (1, 1), strides)(x))
      return nn.relu(x + y)

  class ResNet(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = nn.relu(norm()(conv(CHANNELS, (7, 7), (2, 2))(x)))
      x = nn.max_pool(x, (3, 3), (2, 2), 'SAME')
      for features, stride in _resnet_blocks():
        x = Block(features, stride)(x)
      return nn.Dense(CLASSES)(x.mean((1, 2)))

  return ResNet()


def _resnet_haiku(x: jax.Array) -> jax.Array:
  net = hk.nets.ResNet(
    GROUPS,
    CLASSES,
    channels_per_group=[4 * CHANNELS * 2**i for i in range(len(GROUPS))],
    initial_conv_config={'output_channels': CHANNELS},
  )
  return net(x, is_training=True)


# The window, and the channels in and out, of a convolution.
Shape = tuple[int, int, int]


def _block_shapes(inputs: int, features: int) -> list[Shape]:
  """Returns three convolutions, and a fourth beside them if shapes change."""
  outputs = 4 * features
  shapes = [(1, inputs, features), (3, features, features)]
  shapes.append((1, features, outputs))
  return shapes + [(1, inputs, outputs)] * (inputs != outputs)


def _resnet_pure() -> Program:
  def make(keys):
    params, averages = conv_variables(keys, [(7, 3, CHANNELS)])
    inputs = CHANNELS
    for i, (features, _) in enumerate(_resnet_blocks()):
      params[f'Block_{i}'], averages[f'Block_{i}'] = conv_variables(
        keys, _block_shapes(inputs, features)
      )
      inputs = 4 * features
    params['Dense_0'] = dense_params(keys, inputs, CLASSES)
    return {'params': params, 'batch_stats': averages}

  def conv_variables(keys, shapes: list[Shape]):
    params, averages = {}, {}
    for i, (window, inputs, outputs) in enumerate(shapes):
      kernel = LECUN(next(keys), (window, window, inputs, outputs))
      params[f'Conv_{i}'] = {'kernel': kernel}
      params[f'BatchNorm_{i}'] = norm_params(outputs)
      averages[f'BatchNorm_{i}'] = norm_averages(outputs)
    return params, averages

  def apply(variables, x, first=False):
    params, averages = variables['params'], variables['batch_stats']
    new = {}
    x = _conv_norm(x, 0, 2, params, averages, new, first)
    x = _max_pool(jax.nn.relu(x))
    for i, (_, stride) in enumerate(_resnet_blocks()):
      at = f'Block_{i}'
      x, new[at] = block(x, stride, params[at], averages[at], first)
    x = dense(x.mean((1, 2)), params['Dense_0'])
    return x, {'batch_stats': new}

  def block(x, stride, params, averages, first):
    variables = (params, averages, new := {}, first)
    y = jax.nn.relu(_conv_norm(x, 0, 1, *variables))
    y = jax.nn.relu(_conv_norm(y, 1, stride, *variables))
    y = _conv_norm(y, 2, 1, *variables)
    if x.shape != y.shape:
      x = _conv_norm(x, 3, stride, *variables)
    return jax.nn.relu(x + y), new

  return pure_program(make, apply, functools.partial(apply, first=True))


def _conv_norm(x, i: int, stride: int, params, averages, new, first: bool):
  """Convolves and normalizes; the averages go into `new`."""
  x = jax.lax.conv_general_dilated(
    x,
    params[f'Conv_{i}']['kernel'],
    (stride, stride),
    'SAME',
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )
  at = f'BatchNorm_{i}'
  x, new[at] = batch_norm(
    x, params[at], averages[at], axes=(0, 1, 2), first=first
  )
  return x


def _max_pool(x: jax.Array) -> jax.Array:
  window, strides = (1, 3, 3, 1), (1, 2, 2, 1)
  return jax.lax.reduce_window(
    x, -jnp.inf, jax.lax.max, window, strides, 'SAME'
  )
