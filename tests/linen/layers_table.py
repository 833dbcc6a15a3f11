"""Layers, each described once, for the properties in test_layers.py."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Input:
  """An argument of a layer, made by `array`.

  `dtype` None: the floating dtype that is being tested. Integers count up
  modulo `modulus`.
  """

  shape: tuple[int, ...]
  dtype: Any = None
  modulus: int = 5

  def array(self, dtype: Any = jnp.float32) -> jax.Array:
    dtype = jnp.dtype(self.dtype or dtype)
    n = int(np.prod(self.shape))
    if jnp.issubdtype(dtype, bool):
      values = np.arange(n) % 3 != 0
    elif jnp.issubdtype(dtype, jnp.integer):
      values = np.arange(n) % self.modulus
    else:
      rng = np.random.default_rng(0)
      values = rng.standard_normal(n)
      if jnp.issubdtype(dtype, jnp.complexfloating):
        values = values + 1j * rng.standard_normal(n)
    return jnp.asarray(values.reshape(self.shape), dtype)


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
  """A layer with arguments.

  Attributes:
    name: name of the test.
    make: function from the namespace (`haiku_state.linen`, or Flax's) to the
      module.
    inputs: positional arguments of the call.
    kwargs: keyword arguments of the call; an `Input` is made into an array.
    collections: those that the layer's variables are in.
    updates: those that a call changes.
    rngs: streams that a call needs.
    dtypes: floating dtypes of the input that it is tested with.
  """

  name: str
  make: Callable[[Any], Any]
  inputs: tuple[Input, ...]
  kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  collections: tuple[str, ...] = ('params',)
  updates: tuple[str, ...] = ()
  rngs: tuple[str, ...] = ()
  dtypes: tuple[str, ...] = ('bfloat16', 'float16', 'float64')

  def args(self, dtype: Any = jnp.float32) -> tuple[jax.Array, ...]:
    return tuple(x.array(dtype) for x in self.inputs)

  def call_kwargs(self, dtype: Any = jnp.float32) -> dict[str, Any]:
    return {
      name: x.array(dtype) if isinstance(x, Input) else x
      for name, x in self.kwargs.items()
    }

  def keys(self) -> dict[str, jax.Array]:
    return {
      name: jax.random.key(i) for i, name in enumerate(('params', *self.rngs))
    }


X2 = (Input((4, 6)),)
X3 = (Input((2, 3, 6)),)
IMAGE = (Input((2, 5, 5, 4)),)
SIGNAL = (Input((2, 6, 3)),)
MASK2 = Input((4, 1), bool)
ALL = ('bfloat16', 'float16', 'float64', 'complex64')
PARAMS = ('params',)
BN = ('batch_stats', 'params')
STATS = ('batch_stats',)
TRAIN = {'use_running_average': False}


def _normal(nn: Any) -> Any:
  return nn.initializers.normal(0.5)


def _sequence(nn: Any) -> Any:
  return nn.Sequential([nn.Dense(4), nn.relu, nn.BatchNorm(False), nn.Dense(2)])


def _spread(nn: Any) -> Any:
  return nn.Sequential(
    [lambda x: (x, 2 * x), lambda a, b: {'x': a + b}, lambda x: nn.Dense(2)(x)]
  )


LINEAR = (
  Row('dense', lambda nn: nn.Dense(3), X2, dtypes=ALL),
  Row('dense_vector', lambda nn: nn.Dense(3), (Input((6,)),)),
  Row('dense_no_bias', lambda nn: nn.Dense(3, use_bias=False), X3),
  Row(
    'dense_bfloat16',
    lambda nn: nn.Dense(3, dtype=jnp.bfloat16, precision='highest'),
    X3,
  ),
  Row('dense_half_params', lambda nn: nn.Dense(3, param_dtype='float16'), X2),
  Row('dense_int_input', lambda nn: nn.Dense(3), (Input((4, 6), jnp.int32),)),
  Row(
    'dense_inits',
    lambda nn: nn.Dense(3, kernel_init=_normal(nn), bias_init=_normal(nn)),
    X2,
  ),
  Row(
    'dense_complex_params',
    lambda nn: nn.Dense(3, param_dtype=jnp.complex64),
    X2,
    dtypes=(),
  ),
  Row('dense_general', lambda nn: nn.DenseGeneral((3, 2)), X3, dtypes=ALL),
  Row(
    'dense_general_axes',
    lambda nn: nn.DenseGeneral(
      4, axis=(-1, 1), kernel_init=_normal(nn), bias_init=_normal(nn)
    ),
    IMAGE,
  ),
  Row(
    'dense_general_batch',
    lambda nn: nn.DenseGeneral((3, 2), axis=-1, batch_dims=(0,)),
    X3,
  ),
  Row(
    'dense_general_bfloat16',
    lambda nn: nn.DenseGeneral(3, use_bias=False, dtype=jnp.bfloat16),
    X3,
  ),
  Row(
    'einsum', lambda nn: nn.Einsum((6, 2, 3), 'abc,cde->abde'), X3, dtypes=ALL
  ),
  Row('einsum_dots', lambda nn: nn.Einsum((6, 3), '...c, cd -> d...'), X3),
  Row(
    'einsum_call',
    lambda nn: nn.Einsum((6, 3), use_bias=False, preferred_element_type='f4'),
    X3,
    {'einsum_str': 'abc,cd->abd'},
    dtypes=('bfloat16',),
  ),
  Row('embed', lambda nn: nn.Embed(5, 3), (Input((2, 4), jnp.int32),)),
  Row('embed_one', lambda nn: nn.Embed(1, 3), (Input((2, 4), jnp.int32),)),
  Row(
    'embed_bfloat16',
    lambda nn: nn.Embed(5, 3, dtype=jnp.bfloat16, param_dtype=jnp.float16),
    (Input((2, 4), jnp.uint8),),
  ),
)

CONV = (
  Row('conv', lambda nn: nn.Conv(3, (3, 2)), IMAGE, dtypes=ALL),
  Row('conv_int_size', lambda nn: nn.Conv(3, 2, strides=2), SIGNAL),
  Row('conv_valid', lambda nn: nn.Conv(3, (2, 2), 2, 'VALID'), IMAGE),
  Row('conv_circular', lambda nn: nn.Conv(3, (3, 2), 2, 'CIRCULAR'), IMAGE),
  Row(
    'conv_reflect',
    lambda nn: nn.Conv(3, (2, 3), padding='REFLECT', kernel_dilation=2),
    IMAGE,
  ),
  Row(
    'conv_causal',
    lambda nn: nn.Conv(3, (3,), padding='CAUSAL', kernel_dilation=(2,)),
    SIGNAL,
  ),
  Row(
    'conv_pads',
    lambda nn: nn.Conv(
      3, (3, 2), None, [(1, 2), 1], input_dilation=(2, 1), use_bias=False
    ),
    IMAGE,
  ),
  Row(
    'conv_groups',
    lambda nn: nn.Conv(4, (3, 3), padding=1, feature_group_count=2),
    IMAGE,
  ),
  Row(
    'conv_mask',
    lambda nn: nn.Conv(4, (3,), mask=jnp.tril(jnp.ones((3, 3, 4)))),
    SIGNAL,
  ),
  Row('conv_no_batch', lambda nn: nn.Conv(3, (3, 3)), (Input((5, 5, 2)),)),
  Row('conv_batches', lambda nn: nn.Conv(3, (3,)), (Input((2, 2, 5, 2)),)),
  Row('conv_local', lambda nn: nn.ConvLocal(3, (3, 2)), IMAGE),
  Row(
    'conv_local_circular',
    lambda nn: nn.ConvLocal(
      3, (3,), 2, 'CIRCULAR', kernel_dilation=2, use_bias=False
    ),
    SIGNAL,
  ),
  Row(
    'conv_local_dilated',
    lambda nn: nn.ConvLocal(2, 2, padding=((2, 1),), input_dilation=2),
    (Input((6, 3)),),
  ),
  Row(
    'conv_transpose',
    lambda nn: nn.ConvTranspose(3, (3, 2), (2, 1)),
    IMAGE,
    dtypes=ALL,
  ),
  Row(
    'conv_transpose_valid',
    lambda nn: nn.ConvTranspose(
      3, 3, (2,), 'VALID', (2,), transpose_kernel=True
    ),
    SIGNAL,
  ),
  Row(
    'conv_transpose_circular',
    lambda nn: nn.ConvTranspose(3, (4, 3), (2, 2), 'CIRCULAR'),
    IMAGE,
  ),
  Row(
    'conv_transpose_circular_kernel',
    lambda nn: nn.ConvTranspose(
      3, (4,), (2,), 'CIRCULAR', transpose_kernel=True
    ),
    (Input((6, 3)),),
  ),
  Row(
    'conv_transpose_mask',
    lambda nn: nn.ConvTranspose(
      4, (3,), padding=1, mask=jnp.tril(jnp.ones((3, 3, 4))), use_bias=False
    ),
    (Input((2, 2, 6, 3)),),
  ),
)

NORM = (
  Row(
    'batch_norm', lambda nn: nn.BatchNorm(), X2, TRAIN, BN, STATS, dtypes=ALL
  ),
  Row('batch_norm_eval', lambda nn: nn.BatchNorm(True), X2, {}, BN, dtypes=ALL),
  Row(
    'batch_norm_slow',
    lambda nn: nn.BatchNorm(
      momentum=0.9, epsilon=1e-3, use_fast_variance=False
    ),
    X3,
    TRAIN,
    BN,
    STATS,
    dtypes=ALL,
  ),
  Row(
    'batch_norm_mask',
    lambda nn: nn.BatchNorm(),
    X2,
    {**TRAIN, 'mask': MASK2},
    BN,
    STATS,
  ),
  Row(
    'batch_norm_axes',
    lambda nn: nn.BatchNorm(axis=(2, 1), dtype=jnp.bfloat16),
    X3,
    TRAIN,
    BN,
    STATS,
  ),
  Row(
    'batch_norm_no_float32',
    lambda nn: nn.BatchNorm(force_float32_reductions=False),
    X2,
    TRAIN,
    BN,
    STATS,
  ),
  Row(
    'batch_norm_no_float32_eval',
    lambda nn: nn.BatchNorm(
      True, param_dtype=jnp.bfloat16, force_float32_reductions=False
    ),
    X2,
    {},
    BN,
  ),
  Row(
    'batch_norm_plain',
    lambda nn: nn.BatchNorm(use_bias=False, use_scale=False),
    X2,
    TRAIN,
    STATS,
    STATS,
  ),
  Row(
    'batch_norm_int_input',
    lambda nn: nn.BatchNorm(),
    (Input((4, 6), jnp.int32),),
    TRAIN,
    BN,
    STATS,
  ),
  Row('layer_norm', lambda nn: nn.LayerNorm(), X3, dtypes=ALL),
  Row(
    'layer_norm_axes',
    lambda nn: nn.LayerNorm(
      reduction_axes=(1, -1), feature_axes=(-1, 1), use_bias=False
    ),
    X3,
  ),
  Row(
    'layer_norm_slow',
    lambda nn: nn.LayerNorm(
      dtype=jnp.float16, use_scale=False, use_fast_variance=False
    ),
    X3,
    {'mask': Input((2, 3, 6), bool)},
  ),
  Row('rms_norm', lambda nn: nn.RMSNorm(), X3, dtypes=ALL),
  Row(
    'rms_norm_no_float32',
    lambda nn: nn.RMSNorm(use_scale=False, force_float32_reductions=False),
    X3,
    {'mask': Input((6,), bool)},
    (),
  ),
  Row('group_norm', lambda nn: nn.GroupNorm(2), IMAGE, dtypes=ALL),
  Row(
    'group_norm_size',
    lambda nn: nn.GroupNorm(None, 2, reduction_axes=(-3, -2, -1)),
    IMAGE,
    {'mask': Input((2, 5, 5, 4), bool)},
  ),
  Row('instance_norm', lambda nn: nn.InstanceNorm(), IMAGE, dtypes=ALL),
  Row(
    'instance_norm_axes',
    lambda nn: nn.InstanceNorm(feature_axes=(1, -1), epsilon=0.1),
    IMAGE,
  ),
  Row(
    'spectral_norm',
    lambda nn: nn.SpectralNorm(nn.Dense(3)),
    X2,
    {'update_stats': True},
    BN,
    STATS,
  ),
  Row(
    'spectral_norm_eval',
    lambda nn: nn.SpectralNorm(nn.Conv(3, (2, 2)), n_steps=2, dtype='bfloat16'),
    IMAGE,
    {'update_stats': False},
    BN,
    dtypes=('bfloat16',),
  ),
  Row('weight_norm', lambda nn: nn.WeightNorm(nn.Dense(3)), X2),
  Row(
    'weight_norm_all',
    lambda nn: nn.WeightNorm(
      nn.Dense(3), feature_axes=None, variable_filter=None, epsilon=1e-3
    ),
    X2,
  ),
  Row(
    'weight_norm_no_scale',
    lambda nn: nn.WeightNorm(
      nn.Conv(3, (2, 2)), use_scale=False, variable_filter=('bias', 'kern')
    ),
    IMAGE,
  ),
)

OTHER = (
  Row('prelu', lambda nn: nn.PReLU(), X2),
  Row('prelu_half', lambda nn: nn.PReLU('bfloat16', 0.2), X2),
  Row(
    'dropout',
    lambda nn: nn.Dropout(0.4),
    X3,
    {'deterministic': False},
    (),
    rngs=('dropout',),
    dtypes=ALL,
  ),
  Row(
    'dropout_dims',
    lambda nn: nn.Dropout(
      0.4, (0, -1), deterministic=False, rng_collection='noise'
    ),
    X3,
    {},
    (),
    rngs=('noise',),
  ),
  Row('dropout_off', lambda nn: nn.Dropout(0.4, (), True), X2, {}, ()),
  Row('dropout_none', lambda nn: nn.Dropout(0.0, (), False), X2, {}, ()),
  Row('dropout_all', lambda nn: nn.Dropout(1.0, (), False), X2, {}, ()),
  Row('sequential', _sequence, X2, {}, BN, STATS),
  Row('sequential_spread', _spread, X2),
)

ROWS: tuple[Row, ...] = LINEAR + CONV + NORM + OTHER
