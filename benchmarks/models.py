"""Models as people have them: a recurrent one, a transformer, a ResNet-50."""

from __future__ import annotations

import functools
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from benchmarks.forms import (
  WIDTH,
  Program,
  Workload,
  batch_norm,
  dense,
  haiku_program,
  linen_program,
)


def lstm() -> Workload:
  """An LSTM over 20 steps."""
  x = jnp.ones((2, 20, WIDTH))

  def haiku_fn(x):
    core = hk.LSTM(WIDTH)
    return hk.dynamic_unroll(
      core, x, core.initial_state(x.shape[0]), time_major=False
    )[0]

  return Workload(
    (x,),
    lambda nn: linen_program(nn.RNN(nn.LSTMCell(WIDTH))),
    lambda: haiku_program(haiku_fn),
    _lstm_pure,
  )


def _lstm_pure() -> Program:
  def init(key, x):
    del x
    make = jax.nn.initializers.lecun_normal()
    return [
      (
        make(jax.random.fold_in(key, 2 * i), (WIDTH, WIDTH)),
        make(jax.random.fold_in(key, 2 * i + 1), (WIDTH, WIDTH)),
        jnp.zeros(WIDTH),
      )
      for i in range(4)
    ]

  def apply(gates, x):
    def step(carry, x):
      c, h = carry
      i, f, g, o = (x @ w + h @ u + b for w, u, b in gates)
      c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
      h = jax.nn.sigmoid(o) * jnp.tanh(c)
      return (c, h), h

    zeros = jnp.zeros((x.shape[0], WIDTH))
    _, y = jax.lax.scan(step, (zeros, zeros), jnp.swapaxes(x, 0, 1))
    return jnp.swapaxes(y, 0, 1), {}

  return Program(init, apply)


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


def _transformer_pure(layers: int) -> Program:
  heads = (HEADS, HEAD_WIDTH)

  def norm_params():
    return jnp.ones(MODEL_WIDTH), jnp.zeros(MODEL_WIDTH)

  def block_params(key):
    make = jax.nn.initializers.lecun_normal()
    q, k, v, out, up, down = jax.random.split(key, 6)
    square = (MODEL_WIDTH, MODEL_WIDTH)
    return {
      'norms': [norm_params(), norm_params()],
      'inner': [
        (make(k, square).reshape(MODEL_WIDTH, *heads), jnp.zeros(heads))
        for k in (q, k, v)
      ],
      'out': (make(out, square).reshape(*heads, -1), jnp.zeros(MODEL_WIDTH)),
      'up': (make(up, (MODEL_WIDTH, HIDDEN)), jnp.zeros(HIDDEN)),
      'down': (make(down, (HIDDEN, MODEL_WIDTH)), jnp.zeros(MODEL_WIDTH)),
    }

  def init(key, x):
    del x
    keys = jax.random.split(key, layers)
    return [block_params(key) for key in keys], norm_params()

  def apply(params, x):
    blocks, last_norm = params
    for block in blocks:
      x = x + _attention(_layer_norm(x, *block['norms'][0]), block)
      y = _layer_norm(x, *block['norms'][1])
      x = x + dense(jax.nn.gelu(dense(y, *block['up'])), *block['down'])
    return _layer_norm(x, *last_norm), {}

  return Program(init, apply)


def _attention(x: jax.Array, block: Any) -> jax.Array:
  q, k, v = (_contract(x, 1, *params) for params in block['inner'])
  q = q / jnp.sqrt(HEAD_WIDTH).astype(q.dtype)
  weights = jax.nn.softmax(jnp.einsum('...qhd,...khd->...hqk', q, k))
  y = jnp.einsum('...hqk,...khd->...qhd', weights, v)
  return _contract(y, 2, *block['out'])


def _contract(x, n_axes: int, kernel, bias) -> jax.Array:
  """Multiplies the last axes of `x` with the first ones of the kernel."""
  ends = tuple(range(x.ndim - n_axes, x.ndim)), tuple(range(n_axes))
  y = jax.lax.dot_general(x, kernel, (ends, ((), ())))
  return y + bias.reshape((1,) * (y.ndim - bias.ndim) + bias.shape)


def _layer_norm(x, scale, bias) -> jax.Array:
  mu, mu2 = x.mean(-1), jax.lax.square(x).mean(-1)
  var = jnp.maximum(0.0, mu2 - jax.lax.square(mu))
  shape = (1,) * (x.ndim - 1) + (-1,)
  y = x - mu[..., None]
  y = y * (jax.lax.rsqrt(var[..., None] + 1e-6) * scale.reshape(shape))
  return y + bias.reshape(shape)


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


def _resnet_convolutions() -> list[tuple[int, int, int, int]]:
  """Returns window, channels in and out, and stride of each convolution.

  A block has three, and a fourth beside them where its shape changes.
  """
  found = [(7, 3, CHANNELS, 2)]
  inputs = CHANNELS
  for features, stride in _resnet_blocks():
    outputs = 4 * features
    found += [
      (1, inputs, features, 1),
      (3, features, features, stride),
      (1, features, outputs, 1),
    ]
    if inputs != outputs:
      found.append((1, inputs, outputs, stride))
    inputs = outputs
  return found


def _resnet_pure() -> Program:
  convolutions = _resnet_convolutions()
  n_last = convolutions[-1][2]

  def init(key, x):
    del x
    make = jax.nn.initializers.lecun_normal()
    last, *keys = jax.random.split(key, len(convolutions) + 1)
    params = [
      (make(k, (n, n, n_in, n_out)), jnp.ones(n_out), jnp.zeros(n_out))
      for k, (n, n_in, n_out, _) in zip(keys, convolutions)
    ]
    stats = [(jnp.zeros(c[2]), jnp.ones(c[2])) for c in convolutions]
    classes = make(last, (n_last, CLASSES)), jnp.zeros(CLASSES)
    return params, stats, classes

  def apply(variables, x):
    params, stats, classes = variables
    todo = iter(zip(params, stats, convolutions))
    new_stats = []

    def conv_norm(x):
      (kernel, *norm), averages, (*_, stride) = next(todo)
      x = jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        'SAME',
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      )
      x, new = batch_norm(x, *norm, *averages, mean=_mean_of_channels)
      new_stats.append(new)
      return x

    x = _max_pool(jax.nn.relu(conv_norm(x)))
    for _ in _resnet_blocks():
      y = jax.nn.relu(conv_norm(x))
      y = jax.nn.relu(conv_norm(y))
      y = conv_norm(y)
      if x.shape != y.shape:
        x = conv_norm(x)
      x = jax.nn.relu(x + y)
    return dense(x.mean((1, 2)), *classes), new_stats

  return Program(init, apply)


def _mean_of_channels(x: jax.Array, axis: int) -> jax.Array:
  del axis
  return x.mean((0, 1, 2))


def _max_pool(x: jax.Array) -> jax.Array:
  window, strides = (1, 3, 3, 1), (1, 2, 2, 1)
  return jax.lax.reduce_window(
    x, -jnp.inf, jax.lax.max, window, strides, 'SAME'
  )
