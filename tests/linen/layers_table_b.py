"""Attention, recurrent, float8 and named-axes layers; as in layers_table.py."""

import dataclasses
import functools
import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from layers_table import Input, Row


@dataclasses.dataclass(frozen=True)
class Carry:
  """An argument that is a tuple of arrays."""

  parts: tuple[Input, ...]

  def array(self, dtype: Any = jnp.float32) -> tuple[jax.Array, ...]:
    return tuple(part.array(dtype) for part in self.parts)


X = Input((2, 3, 4))
KV = Input((2, 5, 6))
MASK = Input((1, 1, 3, 3), bool)
HALF = ('bfloat16',)
EVERY = ('bfloat16', 'float16', 'float64')
FP8 = ('_overwrite_with_gradient', 'params')
AXES = ('params', 'params_axes')


def _attention(name, *inputs, kwargs=None, row=None, **fields):
  def make(nn):
    made = {k: v(nn) if k in OF_NN else v for k, v in fields.items()}
    return nn.MultiHeadDotProductAttention(num_heads=2, **made)

  return Row(
    f'attention{name}',
    make,
    inputs or (X,),
    kwargs or {},
    **{'dtypes': HALF, **(row or {})},
  )


OF_NN = ('kernel_init', 'qkv_dot_general_cls', 'out_dot_general_cls')
DROPPED = {'rngs': ('dropout',)}

ATTENTION = (
  _attention('', row={'dtypes': EVERY}),
  _attention('_mask', kwargs={'mask': MASK}),
  _attention('_nothing_to_see', kwargs={'mask': np.zeros((1, 1, 3, 3), bool)}),
  _attention('_keys_values', X, KV, Input((2, 5, 3))),
  _attention('_sizes', qkv_features=6, out_features=5, use_bias=False),
  _attention('_normalized', normalize_qk=True),
  _attention(
    '_softmax_in_float32',
    dtype=jnp.bfloat16,
    param_dtype=jnp.bfloat16,
    force_fp32_for_softmax=True,
  ),
  _attention('_dropout', dropout_rate=0.5, deterministic=False, row=DROPPED),
  _attention(
    '_dropout_of_each',
    kwargs={'deterministic': False},
    dropout_rate=0.5,
    broadcast_dropout=False,
    row=DROPPED,
  ),
  _attention(
    '_decode',
    Input((2, 1, 4)),
    decode=True,
    row={'collections': ('cache', 'params'), 'updates': ('cache',)},
  ),
  _attention(
    '_inits',
    precision='highest',
    kernel_init=lambda nn: nn.initializers.normal(0.5),
    out_kernel_init=jax.nn.initializers.ones,
    bias_init=jax.nn.initializers.normal(),
    out_bias_init=jax.nn.initializers.ones,
  ),
  Row('self_attention', lambda nn: nn.SelfAttention(2), (X,), dtypes=()),
)


def _cell(name, cls, states, row=None, **fields):
  h = Input((2, 3), fields.get('dtype'))
  carry = h if states == 1 else Carry((h, h))
  return Row(
    name,
    lambda nn: getattr(nn, cls)(3, **fields),
    (carry, Input((2, 4))),
    **{'dtypes': HALF, **(row or {})},
  )


IMAGES = Input((2, 4, 4, 3))
CELLS = (
  _cell('lstm', 'LSTMCell', 2, {'dtypes': ('float16', 'complex64')}),
  _cell('optimized_lstm', 'OptimizedLSTMCell', 2),
  _cell(
    'optimized_lstm_inits',
    'OptimizedLSTMCell',
    2,
    dtype=jnp.bfloat16,
    kernel_init=jax.nn.initializers.normal(),
    recurrent_kernel_init=jax.nn.initializers.normal(),
    bias_init=jax.nn.initializers.normal(),
    gate_fn=jax.nn.hard_sigmoid,
    activation_fn=jnp.sin,
  ),
  _cell('gru', 'GRUCell', 1),
  _cell('mgu', 'MGUCell', 1),
  _cell('mgu_without_reset', 'MGUCell', 1, reset_gate=False),
  _cell('simple', 'SimpleCell', 1),
  _cell('simple_residual', 'SimpleCell', 1, residual=True),
  Row(
    'conv_lstm',
    lambda nn: nn.ConvLSTMCell(3, (2, 2)),
    (Carry((IMAGES, IMAGES)), Input((2, 4, 4, 2))),
    dtypes=HALF,
  ),
  Row('dense_params', lambda nn: nn.recurrent.DenseParams(3), (X,), dtypes=()),
)


def _rnn(name, cell='GRUCell', inputs=X, kwargs=None, **fields):
  return Row(
    f'rnn{name}',
    lambda nn: nn.RNN(getattr(nn, cell)(3), **fields),
    (inputs,),
    kwargs or {},
    dtypes=(),
  )


LENGTHS = np.array([2, 3])
SEQUENCES = (
  _rnn('_lengths', return_carry=True, kwargs={'seq_lengths': LENGTHS}),
  _rnn(
    '_reverse_lengths',
    reverse=True,
    keep_order=True,
    kwargs={'seq_lengths': LENGTHS},
  ),
  Row(
    'bidirectional',
    lambda nn: nn.Bidirectional(
      nn.RNN(nn.SimpleCell(3)), nn.RNN(nn.GRUCell(2)), return_carry=True
    ),
    (X,),
    {'seq_lengths': LENGTHS},
    dtypes=(),
  ),
)


def _fp8(name, cls, layer='Dense', features=3, row=None, **fields):
  def make(nn):
    op = getattr(nn, cls)
    if cls == 'Fp8DirectDotGeneralOp':
      op = functools.partial(op, amax_history_length=8)
    return getattr(nn, layer)(features, dot_general_cls=op, **fields)

  return Row(
    f'fp8_{name}',
    make,
    (X,),
    collections=FP8,
    **{'dtypes': HALF, **(row or {})},
  )


FLOAT8 = (
  _fp8('direct', 'Fp8DirectDotGeneralOp'),
  _fp8('direct_bfloat16', 'Fp8DirectDotGeneralOp', dtype=jnp.bfloat16),
  _fp8(
    'direct_axes',
    'Fp8DirectDotGeneralOp',
    'DenseGeneral',
    axis=(1,),
    batch_dims=(0,),
  ),
  _fp8('pattern', 'Fp8DotGeneralOp', row={'dtypes': ('bfloat16', 'float16')}),
  _fp8('nanoo', 'NANOOFp8DotGeneralOp', row={'dtypes': ()}),
)


def _named(nn):
  return importlib.import_module(
    f'{nn.__name__}.experimental.layers_with_named_axes'
  )


NAMED = (
  Row(
    'named_dense',
    lambda nn: _named(nn).Dense(3, kernel_axes=('a', 'b')),
    (X,),
    collections=AXES,
    dtypes=(),
  ),
  Row(
    'named_embed',
    lambda nn: _named(nn).Embed(5, 3),
    (Input((2, 4), jnp.int32),),
    collections=AXES,
    dtypes=(),
  ),
  Row(
    'named_embed_one_hot',
    lambda nn: _named(nn).Embed(
      5, 3, one_hot=True, cast_input_dtype=jnp.int8, dtype=jnp.bfloat16
    ),
    (Input((2, 4), jnp.int32),),
    collections=AXES,
    dtypes=(),
  ),
  Row(
    'named_layer_norm',
    lambda nn: _named(nn).LayerNorm(use_bias=False, use_scale=False),
    (X,),
    collections=(),
    dtypes=EVERY,
  ),
)

ROWS = ATTENTION + CELLS + NAMED

# Here Flax traces what nobody uses; see test_layers_unused.py.
UNUSED = (
  _attention(
    '_fp8',
    qkv_dot_general_cls=lambda nn: nn.Fp8DirectDotGeneralOp,
    out_dot_general_cls=lambda nn: nn.Fp8DirectDotGeneralOp,
    row={'collections': FP8},
  ),
  _rnn('_lstm', 'OptimizedLSTMCell', return_carry=True),
  _rnn(
    '_time_major',
    'LSTMCell',
    time_major=True,
    kwargs={'seq_lengths': np.array([2, 1, 2]), 'return_carry': True},
  ),
  *FLOAT8,
  *SEQUENCES,
)
