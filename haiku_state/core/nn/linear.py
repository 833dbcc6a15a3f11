"""Linear maps, convolutions and embeddings as functions of a scope.

The parameters are `kernel` and `bias`; that of an embedding is `table`.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from haiku_state import struct
from haiku_state.core.scope import Scope
from haiku_state.linen import initializers
from haiku_state.typing import (
  Array,
  Dtype,
  Initializer,
  PrecisionLike,
  PRNGKey,
  Shape,
)

default_kernel_init = initializers.lecun_normal()


def dense_general(
  scope: Scope,
  inputs: Array,
  features: int | Iterable[int],
  axis: int | Iterable[int] = -1,
  batch_dims: int | Iterable[int] = (),
  bias: bool = True,
  dtype: Dtype = jnp.float32,
  kernel_init: Initializer = default_kernel_init,
  bias_init: Initializer = initializers.zeros_init(),
  precision: PrecisionLike = None,
) -> Array:
  """Maps any axes of the input linearly to any number of new ones.

  Args:
    scope: where the parameters are.
    inputs: array that has the axes `axis` and `batch_dims`.
    features: size or sizes of the new axes.
    axis: axis or axes to contract.
    batch_dims: axes with a kernel for each index: 0, 1, ...; all kernels begin
      with the same values.
    bias: whether there is a bias.
    dtype: dtype of the computation.
    kernel_init: initializer of the flattened kernel.
    bias_init: initializer of the flattened bias.
    precision: of the product, see `jax.lax.Precision`.

  Returns:
    An array (*batch_dims, *axes that are in neither, *features).

  Raises:
    ValueError: if `batch_dims` are not the leading axes.

  >>> import jax, jax.numpy as jnp
  >>> from haiku_state.core import init, nn
  >>> x = jnp.ones((2, 3, 4))
  >>> y, _ = init(nn.dense_general)(jax.random.key(0), x, (5, 6), axis=(1, 2))
  >>> y.shape
  (2, 5, 6)
  """
  inputs = jnp.asarray(inputs, dtype)
  new, batch = _as_tuple(features), _as_tuple(batch_dims)
  if set(batch) != set(range(len(batch))):
    raise ValueError(
      f'batch_dims {batch} must be consecutive leading dimensions starting'
      ' from 0.'
    )
  axes = tuple(ax % inputs.ndim for ax in _as_tuple(axis))
  batch_shape = tuple(inputs.shape[ax] for ax in batch)
  axes_shape = tuple(inputs.shape[ax] for ax in axes)
  copies, size = math.prod(batch_shape), math.prod(new)

  kernel = scope.param(
    'kernel',
    _RepeatedInit(kernel_init, copies, (math.prod(axes_shape), size)),
    batch_shape + axes_shape + new,
  )
  n_batch, n_contract = len(batch), len(batch) + len(axes)
  out = lax.dot_general(
    inputs,
    jnp.asarray(kernel, dtype),
    (
      (axes, tuple(range(n_batch, n_contract))),
      (batch, tuple(range(n_batch))),
    ),
    precision=precision,
  )
  if not bias:
    return out
  value = scope.param(
    'bias', _RepeatedInit(bias_init, copies, (size,)), batch_shape + new
  )
  # The result has the batch axes first: 1 for each axis that stays.
  ones = (1,) * (out.ndim - len(batch) - len(new))
  return out + jnp.reshape(jnp.asarray(value, dtype), batch_shape + ones + new)


def _as_tuple(x: Any) -> tuple[int, ...]:
  return tuple(x) if isinstance(x, Iterable) else (x,)


@dataclasses.dataclass(frozen=True)
class _RepeatedInit:
  """Initializes an array as a flat one, again and again the same."""

  init: Initializer
  copies: int
  flat_shape: tuple[int, ...]

  def __call__(
    self, key: PRNGKey, shape: Shape, dtype: Dtype = jnp.float32
  ) -> Any:
    value: Any = self.init(key, self.flat_shape, dtype)
    return jnp.reshape(jnp.concatenate([value] * self.copies), shape)


def dense(
  scope: Scope,
  inputs: Array,
  features: int,
  bias: bool = True,
  dtype: Dtype = jnp.float32,
  precision: PrecisionLike = None,
  kernel_init: Initializer = default_kernel_init,
  bias_init: Initializer = initializers.zeros_init(),
) -> Array:
  """Maps the last axis of the input linearly.

  Args:
    scope: where the parameters are: `kernel` (inputs, features), `bias`
      (features,).
    inputs: array (..., inputs).
    features: size of the last axis of the result.
    bias: whether there is a bias.
    dtype: dtype of the computation.
    precision: of the product, see `jax.lax.Precision`.
    kernel_init: initializer of the kernel.
    bias_init: initializer of the bias.

  Returns:
    An array (..., features).

  >>> import jax, jax.numpy as jnp
  >>> from haiku_state.core import init, nn
  >>> init(nn.dense)(jax.random.key(0), jnp.ones((2, 3)), 4)[0].shape
  (2, 4)
  """
  inputs = jnp.asarray(inputs, dtype)
  kernel = scope.param('kernel', kernel_init, (inputs.shape[-1], features))
  y = lax.dot_general(
    inputs,
    jnp.asarray(kernel, dtype),
    (((inputs.ndim - 1,), (0,)), ((), ())),
    precision=precision,
  )
  return _with_bias(scope, y, bias, bias_init, dtype)


def conv(
  scope: Scope,
  inputs: Array,
  features: int,
  kernel_size: tuple[int, ...],
  strides: Sequence[int] | None = None,
  padding: str | Sequence[tuple[int, int]] = 'SAME',
  input_dilation: Sequence[int] | None = None,
  kernel_dilation: Sequence[int] | None = None,
  feature_group_count: int = 1,
  bias: bool = True,
  dtype: Dtype = jnp.float32,
  precision: PrecisionLike = None,
  kernel_init: Initializer = default_kernel_init,
  bias_init: Initializer = initializers.zeros_init(),
) -> Array:
  """Convolves the input.

  Args:
    scope: where the parameters are: `kernel` (*kernel_size, inputs per group,
      features), `bias` (features,).
    inputs: array (batch, *spatial, inputs).
    features: how many filters there are.
    kernel_size: sizes of the window, one for each spatial axis.
    strides: steps between windows, one for each spatial axis. None: 1.
    padding: `'SAME'`, `'VALID'`, or a pair (before, after) for each spatial
      axis.
    input_dilation: one more than the zeros between elements of the input.
    kernel_dilation: one more than the zeros between elements of the kernel.
    feature_group_count: groups of features that are convolved apart.
    bias: whether there is a bias.
    dtype: dtype of the computation.
    precision: of the products, see `jax.lax.Precision`.
    kernel_init: initializer of the kernel.
    bias_init: initializer of the bias.

  Returns:
    An array (batch, *places, features).

  >>> import jax, jax.numpy as jnp
  >>> from haiku_state.core import init, nn
  >>> init(nn.conv)(jax.random.key(0), jnp.ones((1, 8, 3)), 4, (3,))[0].shape
  (1, 8, 4)
  """
  inputs = jnp.asarray(inputs, dtype)
  in_features, rank = inputs.shape[-1], inputs.ndim - 2
  assert in_features % feature_group_count == 0, (
    f'feature_group_count {feature_group_count} must divide the {in_features}'
    ' features of the input'
  )
  shape = (*kernel_size, in_features // feature_group_count, features)
  kernel = scope.param('kernel', kernel_init, shape)
  space = tuple(range(1, rank + 1))
  y = lax.conv_general_dilated(
    inputs,
    jnp.asarray(kernel, dtype),
    (1,) * rank if strides is None else strides,
    padding,
    lhs_dilation=input_dilation,
    rhs_dilation=kernel_dilation,
    dimension_numbers=lax.ConvDimensionNumbers(
      (0, rank + 1, *space),
      (rank + 1, rank, *range(rank)),
      (0, rank + 1, *space),
    ),
    feature_group_count=feature_group_count,
    precision=precision,
  )
  return _with_bias(scope, y, bias, bias_init, dtype)


def conv_transpose(
  scope: Scope,
  inputs: Array,
  features: int,
  kernel_size: tuple[int, ...],
  strides: Sequence[int] | None = None,
  padding: str | Sequence[tuple[int, int]] = 'SAME',
  kernel_dilation: Sequence[int] | None = None,
  bias: bool = True,
  dtype: Dtype = jnp.float32,
  precision: PrecisionLike = None,
  kernel_init: Initializer = default_kernel_init,
  bias_init: Initializer = initializers.zeros_init(),
) -> Array:
  """Convolves the input transposed, by `jax.lax.conv_transpose`.

  Args:
    scope: where the parameters are: `kernel` (*kernel_size, inputs, features),
      `bias` (features,).
    inputs: array (batch, *spatial, inputs).
    features: how many filters there are.
    kernel_size: sizes of the window, one for each spatial axis.
    strides: steps between windows in the result. None: 1.
    padding: `'SAME'`, `'VALID'`, or a pair (before, after) for each spatial
      axis.
    kernel_dilation: one more than the zeros between elements of the kernel.
    bias: whether there is a bias.
    dtype: dtype of the computation.
    precision: of the products, see `jax.lax.Precision`.
    kernel_init: initializer of the kernel.
    bias_init: initializer of the bias.

  Returns:
    An array (batch, *places, features).

  >>> import jax, jax.numpy as jnp
  >>> from haiku_state.core import init, nn
  >>> x = jnp.ones((1, 4, 3))
  >>> y, _ = init(nn.conv_transpose)(jax.random.key(0), x, 2, (3,), (2,))
  >>> y.shape
  (1, 8, 2)
  """
  inputs = jnp.asarray(inputs, dtype)
  shape = (*kernel_size, inputs.shape[-1], features)
  kernel = scope.param('kernel', kernel_init, shape)
  y = lax.conv_transpose(
    inputs,
    jnp.asarray(kernel, dtype),
    strides or (1,) * (inputs.ndim - 2),
    padding,
    rhs_dilation=kernel_dilation,
    precision=precision,
  )
  return _with_bias(scope, y, bias, bias_init, dtype)


def _with_bias(
  scope: Scope, y: jax.Array, bias: bool, init: Initializer, dtype: Dtype
) -> jax.Array:
  """Returns `y` (..., features) with the bias of the scope, if it has one."""
  if not bias:
    return y
  value = jnp.asarray(scope.param('bias', init, (y.shape[-1],)), dtype)
  return y + jnp.reshape(value, (1,) * (y.ndim - 1) + (-1,))


default_embed_init = initializers.variance_scaling(
  1.0, 'fan_in', 'normal', out_axis=0
)


@struct.dataclass
class Embedding:
  """A table of vectors, one for each index.

  >>> import jax, jax.numpy as jnp
  >>> from haiku_state import core
  >>> table = core.nn.Embedding(jnp.arange(6.0).reshape(3, 2))
  >>> table.lookup(jnp.array([2]))
  Array([[4., 5.]], dtype=float32)

  Attributes:
    table: array (num_embeddings, features).
  """

  table: Array

  def lookup(self, indices: Array) -> Array:
    """Returns the vectors (..., features) of indices (...).

    Raises:
      ValueError: if `indices` are no integers of 32 or 64 bits.
    """
    if indices.dtype not in (jnp.int32, jnp.int64, jnp.uint32, jnp.uint64):
      raise ValueError(
        'Input type must be an integer or unsigned integer, of 32 or 64 bits:'
        f' it is {indices.dtype}.'
      )
    return self.table[indices]

  def attend(self, query: Array) -> Array:
    """Returns the products of vectors (..., features) with all of the table.

    Returns:
      An array (..., num_embeddings): logits, where the table is shared between
      input and output.
    """
    return jnp.dot(query, self.table.T)


def embedding(
  scope: Scope,
  num_embeddings: int,
  features: int,
  init_fn: Initializer = default_embed_init,
) -> Embedding:
  """Makes a table of vectors.

  Args:
    scope: where the parameter `table` is.
    num_embeddings: how many vectors there are.
    features: how long each is.
    init_fn: initializer of the table.

  Returns:
    An `Embedding`, with the methods `lookup` and `attend`.

  >>> import jax, jax.numpy as jnp
  >>> from haiku_state.core import init, nn
  >>> table, _ = init(nn.embedding)(jax.random.key(0), 5, 2)
  >>> table.lookup(jnp.array([0, 3])).shape
  (2, 2)
  """
  table: Any = scope.param('table', init_fn, (num_embeddings, features))
  return Embedding(table)
