"""Layers that are linear in their input: dense, einsum, convolution, embedding.

They share their parameters' names (`kernel`, `bias`; `embedding`), their dtype
rule (`haiku_state.linen.dtypes`) and their default initializer. Images and
sequences are channels-last: `(*batch, *spatial, features)`.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import lax
from opt_einsum import parser

from haiku_state.core import meta
from haiku_state.core._initializers import as_linen
from haiku_state.linen import initializers
from haiku_state.linen.dtypes import promote_dtype
from haiku_state.linen.module import Module, compact, merge_param, nowrap
from haiku_state.typing import (
  Array,
  ConvGeneralDilatedT,
  DotGeneralT,
  Dtype,
  Initializer,
  LaxPadding,
  PaddingLike,
  PrecisionLike,
)
from haiku_state.typing import PRNGKey as PRNGKey
from haiku_state.typing import Shape as Shape


class PromoteDtypeFn(Protocol):
  """The type of a layer's `promote_dtype`: see `dtypes.promote_dtype`."""

  def __call__(
    self, *args: jax.Array | None, dtype: Any = None, inexact: bool = True
  ) -> list[Any]: ...


default_kernel_init = initializers.lecun_normal()
default_embed_init = initializers.variance_scaling(
  1.0, 'fan_in', 'normal', out_axis=0
)


class Dense(Module):
  """Maps the last axis of its input linearly.

      y = x @ kernel + bias

  Parameters: `kernel` (inputs, features), `bias` (features,).

  >>> import jax, jax.numpy as jnp
  >>> import haiku_state.linen as nn
  >>> y, variables = nn.Dense(4).init_with_output(
  ...   jax.random.key(0), jnp.ones((2, 3))
  ... )
  >>> y.shape, variables['params']['kernel'].shape
  ((2, 4), (3, 4))

  Attributes:
    features: size of the last axis of the output.
    use_bias: whether there is a bias.
    dtype: dtype of the computation. None: inferred from input and parameters.
    param_dtype: dtype of the parameters.
    precision: of the product, see `jax.lax.Precision`.
    kernel_init: initializer of the kernel.
    bias_init: initializer of the bias.
    promote_dtype: function `(input, kernel, bias, *, dtype)` that returns the
      three cast to the dtype of the computation.
    dot_general: function to use for `jax.lax.dot_general`.
    dot_general_cls: class, or function, that makes such a function at each
      call. It has precedence over `dot_general`.
  """

  features: int
  use_bias: bool = True
  dtype: Dtype | None = None
  param_dtype: Dtype = jnp.float32
  precision: PrecisionLike = None
  kernel_init: Initializer = default_kernel_init
  bias_init: Initializer = initializers.zeros_init()
  promote_dtype: PromoteDtypeFn = promote_dtype
  dot_general: DotGeneralT | None = None
  dot_general_cls: Any = None

  @compact
  def __call__(self, inputs: Array) -> Array:
    """Maps the last axis.

    Args:
      inputs: array (..., inputs).

    Returns:
      An array (..., features).
    """
    kernel = self.param(
      'kernel',
      self.kernel_init,
      (jnp.shape(inputs)[-1], self.features),
      self.param_dtype,
    )
    bias = None
    if self.use_bias:
      bias = self.param(
        'bias', self.bias_init, (self.features,), self.param_dtype
      )
    inputs, kernel, bias = self.promote_dtype(
      inputs, kernel, bias, dtype=self.dtype
    )
    y = _choose(self.dot_general_cls, self.dot_general, lax.dot_general)(
      inputs,
      kernel,
      (((inputs.ndim - 1,), (0,)), ((), ())),
      precision=self.precision,
    )
    return y if bias is None else _add_bias(y, bias)


class DenseGeneral(Module):
  """Maps any axes of its input linearly to any number of new ones.

  The axes `axis` are contracted with the kernel and become the axes `features`
  at the end; each index of the axes `batch_dims` has a kernel of its own.

  Parameters: `kernel` (*batch_dims, *axis, *features), `bias` (*batch_dims,
  *features). The kernel is initialized as the matrix that it is when its axes
  are flattened to (batch_dims * axis, features), so that fans are counted as in
  `Dense`.

  >>> import jax, jax.numpy as jnp
  >>> import haiku_state.linen as nn
  >>> layer = nn.DenseGeneral(features=(4, 5), axis=(1, -1))
  >>> y, variables = layer.init_with_output(
  ...   jax.random.key(0), jnp.ones((1, 3, 6, 7))
  ... )
  >>> y.shape, variables['params']['kernel'].shape
  ((1, 6, 4, 5), (3, 7, 4, 5))

  Attributes:
    features: size or sizes of the new axes.
    axis: axis or axes to contract.
    batch_dims: axes with a kernel for each index: 0, 1, ... in any order.
    use_bias: whether there is a bias.
    dtype: dtype of the computation. None: inferred from input and parameters.
    param_dtype: dtype of the parameters.
    kernel_init: initializer of the flattened kernel.
    bias_init: initializer of the flattened bias.
    precision: of the product, see `jax.lax.Precision`.
    promote_dtype: function `(input, kernel, bias, *, dtype)` that returns the
      three cast to the dtype of the computation.
    dot_general: function to use for `jax.lax.dot_general`.
    dot_general_cls: class, or function, that makes such a function at each
      call. It has precedence over `dot_general`.
  """

  features: int | Sequence[int]
  axis: int | Sequence[int] = -1
  batch_dims: Sequence[int] = ()
  use_bias: bool = True
  dtype: Dtype | None = None
  param_dtype: Dtype = jnp.float32
  kernel_init: Initializer = default_kernel_init
  bias_init: Initializer = initializers.zeros_init()
  precision: PrecisionLike = None
  promote_dtype: PromoteDtypeFn = promote_dtype
  dot_general: DotGeneralT | None = None
  dot_general_cls: Any = None

  @compact
  def __call__(self, inputs: Array) -> Array:
    """Maps the chosen axes.

    Args:
      inputs: array that has the axes `axis` and `batch_dims`.

    Returns:
      An array (*batch_dims, *axes that are in neither, *features).

    Raises:
      ValueError: if `batch_dims` are not the leading axes.
    """
    features = _canonicalize_tuple(self.features)
    batch_dims = _canonicalize_tuple(self.batch_dims)
    if batch_dims and set(batch_dims) != set(range(max(batch_dims) + 1)):
      raise ValueError(
        f'batch_dims {batch_dims} must be consecutive leading '
        'dimensions starting from 0.'
      )
    axis = _normalize_axes(_canonicalize_tuple(self.axis), inputs.ndim)
    batch_dims = _normalize_axes(batch_dims, inputs.ndim)
    batch_shape = tuple(inputs.shape[ax] for ax in batch_dims)
    axis_shape = tuple(inputs.shape[ax] for ax in axis)
    n_rows, n_columns = math.prod(batch_shape + axis_shape), math.prod(features)

    kernel = self.param(
      'kernel',
      _FlatInit(self.kernel_init, (n_rows, n_columns)),
      batch_shape + axis_shape + features,
      self.param_dtype,
    )
    bias = None
    if self.use_bias:
      bias_init = self.bias_init
      if bias_init not in _SHAPELESS_INITS:
        bias_init = _FlatInit(bias_init, (math.prod(batch_shape) * n_columns,))
      bias = self.param(
        'bias', bias_init, batch_shape + features, self.param_dtype
      )
    inputs, kernel, bias = self.promote_dtype(
      inputs, kernel, bias, dtype=self.dtype
    )
    n_batch, n_contract = len(batch_dims), len(batch_dims) + len(axis)
    out = _choose(self.dot_general_cls, self.dot_general, lax.dot_general)(
      inputs,
      kernel,
      (
        (axis, tuple(range(n_batch, n_contract))),
        (batch_dims, tuple(range(n_batch))),
      ),
      precision=self.precision,
    )
    if bias is None:
      return out
    # The product has the batch axes first: the bias gets their sizes, and 1 for
    # each axis of the input that stays.
    outer_shape = tuple(
      inputs.shape[ax] if ax in batch_dims else 1
      for ax in range(inputs.ndim)
      if ax not in axis
    )
    return out + lax.reshape(bias, outer_shape + features)


# These give the same values whatever the shape: there is nothing to flatten.
_SHAPELESS_INITS = (initializers.zeros, initializers.ones)


@dataclasses.dataclass(frozen=True)
class _FlatInit:
  """Initializes an array as the flat one that it is a reshape of.

  It is data, not a closure, so that two calls of a layer ask for a parameter
  with equal initializers: the core remembers by them what it has checked.
  """

  init: Initializer
  flat_shape: tuple[int, ...]

  def __call__(
    self, key: PRNGKey, shape: Shape, dtype: Dtype = jnp.float32
  ) -> Any:
    value = as_linen(self.init)(key, self.flat_shape, dtype)
    # The names in a box are those of the axes that the array is about to get.
    return _map_in_box(lambda x: jnp.reshape(x, shape), value)


def _map_in_box(fn: Callable[[Any], Any], value: Any) -> Any:
  """Maps a function over an array, or the one in a box that is not laid out."""
  if isinstance(value, meta.Partitioned):
    inner = value.unbox(apply_constraint=False)
  elif isinstance(value, meta.AxisMetadata):
    inner = value.unbox()
  else:
    return fn(value)
  return value.replace_boxed(_map_in_box(fn, inner))


class Einsum(Module):
  """An einsum of its input with a learned kernel.

      y = einsum(einsum_str, x, kernel) + bias

  Parameters: `kernel` of shape `shape`, and `bias`, which has those axes of the
  kernel that the equation keeps, in the order in which they are in its result.

  >>> import jax, jax.numpy as jnp
  >>> import haiku_state.linen as nn
  >>> layer = nn.Einsum((5, 6, 7), 'abc,cde->abde')
  >>> y, variables = layer.init_with_output(
  ...   jax.random.key(0), jnp.ones((3, 4, 5))
  ... )
  >>> y.shape, variables['params']['bias'].shape
  ((3, 4, 6, 7), (6, 7))

  Attributes:
    shape: shape of the kernel.
    einsum_str: the equation: `input,kernel->result`. Give it here or in the
      call, not in both.
    use_bias: whether there is a bias.
    dtype: dtype of the computation. None: inferred from input and parameters.
    param_dtype: dtype of the parameters.
    precision: of the product, see `jax.lax.Precision`.
    kernel_init: initializer of the kernel.
    bias_init: initializer of the bias.
    promote_dtype: function `(input, kernel, bias, *, dtype)` that returns the
      three cast to the dtype of the computation.
    preferred_element_type: dtype in which the product is summed and returned.
  """

  shape: Shape
  einsum_str: str | None = None
  use_bias: bool = True
  dtype: Dtype | None = None
  param_dtype: Dtype = jnp.float32
  precision: PrecisionLike = None
  kernel_init: Initializer = default_kernel_init
  bias_init: Initializer = initializers.zeros_init()
  promote_dtype: PromoteDtypeFn = promote_dtype
  preferred_element_type: Dtype | None = None

  @compact
  def __call__(self, inputs: Array, einsum_str: str | None = None) -> Array:
    """Computes the einsum.

    Args:
      inputs: array, the first operand.
      einsum_str: the equation.

    Returns:
      An array of the shape that the equation gives.

    Raises:
      ValueError: if the equation is given neither here nor to the constructor,
        or to both; if it has no `->`, or does not have two operands.
    """
    einsum_str = merge_param('einsum_str', self.einsum_str, einsum_str)
    einsum_str = einsum_str.replace(' ', '')
    if '->' not in einsum_str:
      raise ValueError(
        '`einsum_str` equation must be explicit and include "->".'
      )
    if einsum_str.count(',') != 1:
      raise ValueError(
        '`einsum_str` equation must have exactly two operands and '
        'therefore, exactly one comma character, instead of '
        f'{einsum_str.count(",")}'
      )

    kernel = self.param(
      'kernel', self.kernel_init, self.shape, self.param_dtype
    )
    bias, outer_shape = None, ()
    if self.use_bias:
      bias_shape, outer_shape = _einsum_bias_shapes(einsum_str, inputs, kernel)
      bias = self.param('bias', self.bias_init, bias_shape, self.param_dtype)
    inputs, kernel, bias = self.promote_dtype(
      inputs, kernel, bias, dtype=self.dtype
    )
    y = jnp.einsum(
      einsum_str,
      inputs,
      kernel,
      precision=self.precision,
      preferred_element_type=self.preferred_element_type,
    )
    return y if bias is None else y + lax.reshape(bias, outer_shape)


def _einsum_bias_shapes(
  einsum_str: str, inputs: Array, kernel: Array
) -> tuple[tuple[int, ...], tuple[int, ...]]:
  """Returns the bias's shape, and the one that broadcasts to the result.

  An ellipsis is replaced by letters first: it may stand for kernel axes.
  """
  operands, result, _ = parser.parse_einsum_input((einsum_str, inputs, kernel))
  kernel_axes = operands.split(',')[1]
  size = dict(zip(kernel_axes, kernel.shape))
  assert len(size) == len(kernel.shape), (
    f'An axis of the kernel is named twice in "{kernel_axes}" of {einsum_str}.'
  )
  return (
    tuple(size[axis] for axis in result if axis in size),
    tuple(size.get(axis, 1) for axis in result),
  )


class _Conv(Module):
  """Is what `Conv` and `ConvLocal` share: all but the kernel's shape."""

  features: int
  kernel_size: int | Sequence[int]
  strides: None | int | Sequence[int] = 1
  padding: PaddingLike = 'SAME'
  input_dilation: None | int | Sequence[int] = 1
  kernel_dilation: None | int | Sequence[int] = 1
  feature_group_count: int = 1
  use_bias: bool = True
  mask: Array | None = None
  dtype: Dtype | None = None
  param_dtype: Dtype = jnp.float32
  precision: PrecisionLike = None
  kernel_init: Initializer = default_kernel_init
  bias_init: Initializer = initializers.zeros_init()
  promote_dtype: PromoteDtypeFn = promote_dtype
  conv_general_dilated: ConvGeneralDilatedT | None = None
  conv_general_dilated_cls: Any = None

  @property
  def shared_weights(self) -> bool:
    """Whether one kernel serves all places: in Conv, not in ConvLocal."""
    raise NotImplementedError(
      f'{type(self).__name__} must define the property shared_weights.'
    )

  @compact
  def __call__(self, inputs: Array) -> Array:
    """Convolves.

    Args:
      inputs: array (*batch, *spatial, inputs), with as many spatial axes as the
        kernel has. Any number of batch axes, also none; they are flattened to
        one for the convolution.

    Returns:
      An array (*batch, *spatial, features).

    Raises:
      ValueError: for a padding of another form than those in the class, or a
        mask that has not the kernel's shape.
      NotImplementedError: for groups of features in `ConvLocal`.
    """
    kernel_size = _canonicalize_tuple(self.kernel_size)
    rank = len(kernel_size)
    strides = _per_axis(self.strides, rank)
    input_dilation = _per_axis(self.input_dilation, rank)
    kernel_dilation = _per_axis(self.kernel_dilation, rank)

    inputs, batch_shape = _flatten_batch(inputs, rank)
    inputs, padding = _pad(
      inputs,
      canonicalize_padding(self.padding, rank),
      kernel_size,
      kernel_dilation,
    )
    in_features = jnp.shape(inputs)[-1]
    geometry: dict[str, Any] = dict(
      lhs_dilation=input_dilation,
      rhs_dilation=kernel_dilation,
      dimension_numbers=_conv_dimension_numbers(inputs.shape),
    )
    if self.shared_weights:
      assert in_features % self.feature_group_count == 0, (
        f'The {in_features} input features of {type(self).__name__} '
        f'{self.path} do not divide into feature_group_count='
        f'{self.feature_group_count} groups.'
      )
      places = ()
      kernel_shape = kernel_size + (
        in_features // self.feature_group_count,
        self.features,
      )
    else:
      if self.feature_group_count != 1:
        raise NotImplementedError(
          '`lax.conv_general_dilated_local` does not support '
          f'`feature_group_count != 1`, got `{self.feature_group_count}`.'
        )
      places = _conv_places(
        self._operation(),
        inputs,
        kernel_size + (in_features, self.features),
        strides,
        padding,
        geometry,
      )
      kernel_shape = places + (
        math.prod(kernel_size) * in_features,
        self.features,
      )

    kernel = _masked_kernel(self, kernel_shape)
    bias = None
    if self.use_bias:
      bias = self.param(
        'bias', self.bias_init, places + (self.features,), self.param_dtype
      )
    inputs, kernel, bias = self.promote_dtype(
      inputs, kernel, bias, dtype=self.dtype
    )
    if self.shared_weights:
      y = self._operation()(
        inputs,
        kernel,
        strides,
        padding,
        feature_group_count=self.feature_group_count,
        precision=self.precision,
        **geometry,
      )
    else:
      y = lax.conv_general_dilated_local(
        lhs=inputs,
        rhs=kernel,
        window_strides=strides,
        padding=padding,
        filter_shape=kernel_size,
        precision=self.precision,
        **geometry,
      )
    if bias is not None:
      y = _add_bias(y, bias)
    return _restore_batch(y, batch_shape)

  @nowrap
  def _operation(self) -> Any:
    return _choose(
      self.conv_general_dilated_cls,
      self.conv_general_dilated,
      lax.conv_general_dilated,
    )


class Conv(_Conv):
  """Convolves its input with a learned kernel.

      y = conv(x, kernel) + bias

  Parameters: `kernel` (*kernel_size, inputs / feature_group_count, features),
  `bias` (features,).

  >>> import jax, jax.numpy as jnp
  >>> import haiku_state.linen as nn
  >>> layer = nn.Conv(features=4, kernel_size=(3, 3), strides=2)
  >>> y, variables = layer.init_with_output(
  ...   jax.random.key(0), jnp.ones((2, 8, 8, 3))
  ... )
  >>> y.shape, variables['params']['kernel'].shape
  ((2, 4, 4, 4), (3, 3, 3, 4))
  >>> causal = nn.Conv(features=4, kernel_size=3, padding='CAUSAL')
  >>> causal.init_with_output(jax.random.key(0), jnp.ones((8, 3)))[0].shape
  (8, 4)

  Attributes:
    features: size of the last axis of the output.
    kernel_size: sizes of the kernel's spatial axes. An integer: one axis.
    strides: steps between the places of the output, one for each axis or one
      for all; None is 1.
    padding: `'SAME'`, `'VALID'`, `'CIRCULAR'` (the input goes on at its other
      end), `'REFLECT'` (it goes on mirrored), `'CAUSAL'` (one axis: zeros on
      the left, so that no place sees a later one), or the number of zeros: an
      integer, or for each axis an integer or a pair (before, after).
    input_dilation: factors by which the input is spread out with zeros, one
      for each axis or one for all; None is 1. It makes the convolution the
      transpose of one with these strides.
    kernel_dilation: factors by which the kernel is spread out, one for each
      axis or one for all; None is 1.
    feature_group_count: number of groups of features that are convolved apart.
    use_bias: whether there is a bias.
    mask: array of the kernel's shape that the kernel is multiplied by.
    dtype: dtype of the computation. None: inferred from input and parameters.
    param_dtype: dtype of the parameters.
    precision: of the products, see `jax.lax.Precision`.
    kernel_init: initializer of the kernel.
    bias_init: initializer of the bias.
    promote_dtype: function `(input, kernel, bias, *, dtype)` that returns the
      three cast to the dtype of the computation.
    conv_general_dilated: function to use for `jax.lax.conv_general_dilated`.
    conv_general_dilated_cls: class, or function, that makes such a function at
      each call. It has precedence over `conv_general_dilated`.
  """

  @property
  def shared_weights(self) -> bool:
    """True: one kernel serves all places of the output."""
    return True


class ConvLocal(_Conv):
  """A convolution with a kernel of its own at each place of the output.

  Parameters: `kernel` (*places, prod(kernel_size) * inputs, features), `bias`
  (*places, features), where `places` is the spatial shape of the output.

  >>> import jax, jax.numpy as jnp
  >>> import haiku_state.linen as nn
  >>> layer = nn.ConvLocal(features=4, kernel_size=(3,), padding='VALID')
  >>> y, variables = layer.init_with_output(
  ...   jax.random.key(0), jnp.ones((1, 8, 3))
  ... )
  >>> y.shape, variables['params']['kernel'].shape
  ((1, 6, 4), (6, 9, 4))

  Attributes:
    features: size of the last axis of the output.
    kernel_size: sizes of the window. An integer: one axis.
    strides: see `Conv`, as for the next three.
    padding: see `Conv`.
    input_dilation: see `Conv`.
    kernel_dilation: see `Conv`.
    feature_group_count: must be 1.
    use_bias: whether there is a bias.
    mask: array of the kernel's shape that the kernel is multiplied by.
    dtype: dtype of the computation. None: inferred from input and parameters.
    param_dtype: dtype of the parameters.
    precision: of the products, see `jax.lax.Precision`.
    kernel_init: initializer of the kernel.
    bias_init: initializer of the bias.
    promote_dtype: function `(input, kernel, bias, *, dtype)` that returns the
      three cast to the dtype of the computation.
    conv_general_dilated: function whose output has the shape to make kernels
      for, in place of `jax.lax.conv_general_dilated`.
    conv_general_dilated_cls: class, or function, that makes such a function at
      each call. It has precedence over `conv_general_dilated`.
  """

  @property
  def shared_weights(self) -> bool:
    """False: each place of the output has its own kernel."""
    return False


class ConvTranspose(Module):
  """The transpose of a convolution: it spreads each place out.

  Parameters: `kernel` (*kernel_size, inputs, features), or, where
  `transpose_kernel`, (*kernel_size, features, inputs); `bias` (features,).

  >>> import jax, jax.numpy as jnp
  >>> import haiku_state.linen as nn
  >>> layer = nn.ConvTranspose(features=4, kernel_size=(3, 3), strides=(2, 2))
  >>> y, variables = layer.init_with_output(
  ...   jax.random.key(0), jnp.ones((1, 5, 5, 3))
  ... )
  >>> y.shape
  (1, 10, 10, 4)

  Attributes:
    features: size of the last axis of the output.
    kernel_size: sizes of the kernel's spatial axes. An integer: one axis.
    strides: factors by which the output is larger than the input, one for each
      axis or one for all; None is 1.
    padding: `'SAME'`, `'VALID'`, `'CIRCULAR'` (what leaves at one end of the
      output enters at the other), or the amounts, as in `Conv`.
    kernel_dilation: factors by which the kernel is spread out; None is 1.
    use_bias: whether there is a bias.
    mask: array of the kernel's shape that the kernel is multiplied by.
    dtype: dtype of the computation. None: inferred from input and parameters.
    param_dtype: dtype of the parameters.
    precision: of the products, see `jax.lax.Precision`.
    kernel_init: initializer of the kernel.
    bias_init: initializer of the bias.
    transpose_kernel: whether the kernel's spatial axes are flipped and its
      feature axes swapped: with the kernel of a `Conv` the layer is then that
      convolution's transpose.
    promote_dtype: function `(input, kernel, bias, *, dtype)` that returns the
      three cast to the dtype of the computation.
    preferred_element_type: dtype in which products are summed and returned.
  """

  features: int
  kernel_size: int | Sequence[int]
  strides: Sequence[int] | None = None
  padding: PaddingLike = 'SAME'
  kernel_dilation: Sequence[int] | None = None
  use_bias: bool = True
  mask: Array | None = None
  dtype: Dtype | None = None
  param_dtype: Dtype = jnp.float32
  precision: PrecisionLike = None
  kernel_init: Initializer = default_kernel_init
  bias_init: Initializer = initializers.zeros_init()
  transpose_kernel: bool = False
  promote_dtype: PromoteDtypeFn = promote_dtype
  preferred_element_type: Dtype | None = None

  @compact
  def __call__(self, inputs: Array) -> Array:
    """Convolves, transposed.

    Args:
      inputs: array (*batch, *spatial, inputs), with as many spatial axes as the
        kernel has. Any number of batch axes, also none; they are flattened to
        one for the convolution.

    Returns:
      An array (*batch, *spatial, features).

    Raises:
      ValueError: for a padding of another form than those in the class, or a
        mask that has not the kernel's shape.
    """
    kernel_size = _canonicalize_tuple(self.kernel_size)
    rank = len(kernel_size)
    strides = _per_axis(self.strides, rank)
    inputs, batch_shape = _flatten_batch(inputs, rank)

    in_features = jnp.shape(inputs)[-1]
    if self.transpose_kernel:
      kernel_shape = kernel_size + (self.features, in_features)
    else:
      kernel_shape = kernel_size + (in_features, self.features)
    kernel = _masked_kernel(self, kernel_shape)
    padding = canonicalize_padding(self.padding, rank)
    circular = padding == 'CIRCULAR'
    bias = None
    if self.use_bias:
      bias = self.param(
        'bias', self.bias_init, (self.features,), self.param_dtype
      )
    inputs, kernel, bias = self.promote_dtype(
      inputs, kernel, bias, dtype=self.dtype
    )
    y = lax.conv_transpose(
      inputs,
      kernel,
      strides,
      'VALID' if circular else padding,
      rhs_dilation=_per_axis(self.kernel_dilation, rank),
      transpose_kernel=self.transpose_kernel,
      precision=self.precision,
      preferred_element_type=self.preferred_element_type,
    )
    if circular:
      periods = [n * s for n, s in zip(jnp.shape(inputs)[1:-1], strides)]
      y = _wrap_around(y, periods, extra_on_the_right=self.transpose_kernel)
    if bias is not None:
      y = _add_bias(y, bias)
    return _restore_batch(y, batch_shape)


def _wrap_around(
  y: Array, periods: Sequence[int], *, extra_on_the_right: bool
) -> Array:
  """Adds up what lies a whole number of periods apart.

  Args:
    y: array (batch, *spatial, features), larger than one period.
    periods: for each spatial axis the size that is to remain.
    extra_on_the_right: whether, where an odd number of zeros is needed to fill
      up periods, the odd one goes to the end. It decides how a kernel of even
      size is aligned.

  Returns:
    An array (batch, *periods, features).
  """
  pads = [(0, 0)]
  for size, period in zip(y.shape[1:-1], periods):
    # Half of the zeros go before the data: for these halves to be whole
    # periods, their sum must fill up two.
    total = -(size - period) % (2 * period)
    short, long = total // 2, (total + 1) // 2
    pads.append((short, long) if extra_on_the_right else (long, short))
  y = jnp.pad(y, pads + [(0, 0)])
  for axis, period in enumerate(periods, start=1):
    y = y.reshape(y.shape[:axis] + (-1, period) + y.shape[axis + 1 :])
    y = y.sum(axis=axis)
  return y


class Embed(Module):
  """A table of vectors, looked up by integers.

      y = embedding[x]

  Parameters: `embedding` (num_embeddings, features). Negative integers count
  from the end; one that is out of range gives NaN. A table of one row is
  broadcast, whatever the integers are.

  >>> import jax, jax.numpy as jnp
  >>> import haiku_state.linen as nn
  >>> embed = nn.Embed(num_embeddings=5, features=3)
  >>> variables = embed.init(jax.random.key(0), jnp.array([0]))
  >>> y = embed.apply(variables, jnp.array([[0, 1], [4, -1]]))
  >>> y.shape, bool((y[1, 0] == y[1, 1]).all())
  ((2, 2, 3), True)
  >>> embed.apply(variables, y, method='attend').shape
  (2, 2, 5)

  Attributes:
    num_embeddings: number of rows.
    features: size of a row.
    dtype: dtype of the output. None: that of the table.
    param_dtype: dtype of the table.
    embedding_init: initializer of the table.
    promote_dtype: function that returns its arguments, `(embedding,)` in a
      look-up and `(query, embedding)` in `attend`, cast to `dtype`.
  """

  num_embeddings: int
  features: int
  dtype: Dtype | None = None
  param_dtype: Dtype = jnp.float32
  embedding_init: Initializer = default_embed_init
  promote_dtype: PromoteDtypeFn = promote_dtype

  def setup(self) -> None:
    self.embedding = self.param(
      'embedding',
      self.embedding_init,
      (self.num_embeddings, self.features),
      self.param_dtype,
    )

  def __call__(self, inputs: Array) -> Array:
    """Looks up.

    Args:
      inputs: array of integers, of any shape.

    Returns:
      An array (*inputs.shape, features).

    Raises:
      ValueError: if `inputs` are not integers.
    """
    if not jnp.issubdtype(inputs.dtype, jnp.integer):
      raise ValueError('Input type must be an integer or unsigned integer.')
    (embedding,) = self.promote_dtype(
      self.embedding, dtype=self.dtype, inexact=False
    )
    if self.num_embeddings == 1:
      return jnp.broadcast_to(embedding, inputs.shape + (self.features,))
    # Not embedding[inputs]: the table may be a NumPy array, and then could not
    # be indexed by a tracer.
    return jnp.take(embedding, inputs, axis=0)

  def attend(self, query: Array) -> Array:
    """Multiplies by the transposed table, as a layer of logits does.

    Args:
      query: array (..., features).

    Returns:
      An array (..., num_embeddings) of inner products.
    """
    query, embedding = self.promote_dtype(
      query, self.embedding, dtype=self.dtype
    )
    return jnp.dot(query, embedding.T)


# What the layers share.


def canonicalize_padding(padding: PaddingLike, rank: int) -> LaxPadding:
  """Puts the padding of a convolution in the form that `jax.lax` takes.

  Args:
    padding: a string, an integer, or for each axis an integer or a pair.
    rank: number of spatial axes.

  Returns:
    The string, or a list of `rank` pairs (before, after).

  Raises:
    ValueError: for anything else.

  >>> canonicalize_padding(1, 2)
  [(1, 1), (1, 1)]
  >>> canonicalize_padding([2, (0, 1)], 2)
  [(2, 2), (0, 1)]
  """
  if isinstance(padding, str):
    return padding
  if isinstance(padding, int):
    return [(padding, padding)] * rank
  if isinstance(padding, Sequence) and len(padding) == rank:
    pairs = [(p, p) if isinstance(p, int) else p for p in padding]
    if all(isinstance(p, tuple) and len(p) == 2 for p in pairs):
      return pairs
  raise ValueError(
    f'Invalid padding format: {padding}, should be str, int,'
    f' or a sequence of len {rank} where each element is an'
    ' int or pair of ints.'
  )


def _canonicalize_tuple(x: Sequence[int] | int) -> tuple[int, ...]:
  return tuple(x) if isinstance(x, Iterable) else (x,)


def _normalize_axes(axes: tuple[int, ...], ndim: int) -> tuple[int, ...]:
  """Returns the axes counted from 0, in ascending order."""
  return tuple(sorted(ax if ax >= 0 else ndim + ax for ax in axes))


def _per_axis(x: int | Sequence[int] | None, rank: int) -> tuple[int, ...]:
  """Returns a value for each of `rank` axes; None stands for 1."""
  if x is None:
    x = 1
  return (x,) * rank if isinstance(x, int) else tuple(x)


def _choose(make: Any, function: Any, default: Any) -> Any:
  """Returns the operation to use: the user's, or JAX's."""
  if make is not None:
    return make()
  return default if function is None else function


def _add_bias(y: Array, bias: Array) -> Array:
  """Adds a bias over the trailing axes of `y`."""
  return y + lax.reshape(bias, (1,) * (y.ndim - bias.ndim) + bias.shape)


def _masked_kernel(layer: Any, shape: tuple[int, ...]) -> Array:
  """Makes the parameter `kernel` of a convolution, and masks it."""
  mask = layer.mask
  if mask is not None and mask.shape != shape:
    raise ValueError(
      'Mask needs to have the same shape as weights. '
      f'Shapes are: {mask.shape}, {shape}'
    )
  kernel = layer.param('kernel', layer.kernel_init, shape, layer.param_dtype)
  return kernel if mask is None else kernel * mask


def _flatten_batch(
  inputs: Array, rank: int
) -> tuple[Array, tuple[int, ...] | None]:
  """Makes the batch axes one, and returns their shape, or None."""
  n_batch = inputs.ndim - (rank + 1)
  if n_batch == 1:
    return inputs, None
  flat = jnp.reshape(inputs, (-1,) + inputs.shape[n_batch:])
  return flat, inputs.shape[:n_batch]


def _restore_batch(y: Array, batch_shape: tuple[int, ...] | None) -> Array:
  """Undoes `_flatten_batch`."""
  if batch_shape is None:
    return y
  return jnp.reshape(y, batch_shape + y.shape[1:])


def _pad(
  inputs: Array,
  padding: LaxPadding,
  kernel_size: tuple[int, ...],
  kernel_dilation: tuple[int, ...],
) -> tuple[Array, LaxPadding]:
  """Does the padding that `jax.lax` has not, and returns the rest."""
  if padding in ('CIRCULAR', 'REFLECT'):
    pads = [(0, 0)]
    for size in _dilate(kernel_size, kernel_dilation):
      pads.append(((size - 1) // 2, size // 2))
    mode = 'wrap' if padding == 'CIRCULAR' else 'reflect'
    return jnp.pad(inputs, pads + [(0, 0)], mode=mode), 'VALID'
  if padding == 'CAUSAL':
    if len(kernel_size) != 1:
      raise ValueError(
        'Causal padding is only implemented for 1D convolutions.'
      )
    left = kernel_dilation[0] * (kernel_size[0] - 1)
    return jnp.pad(inputs, [(0, 0), (left, 0), (0, 0)]), 'VALID'
  return inputs, padding


def _dilate(sizes: Sequence[int], dilation: Sequence[int]) -> list[int]:
  """Returns the sizes of axes with `d - 1` gaps between their elements."""
  return [max((n - 1) * d + 1, 0) for n, d in zip(sizes, dilation)]


def _conv_dimension_numbers(
  input_shape: tuple[int, ...],
) -> lax.ConvDimensionNumbers:
  """Describes channels-last input and output, and kernels as in `Conv`."""
  ndim = len(input_shape)
  channels_last = (0, ndim - 1, *range(1, ndim - 1))
  return lax.ConvDimensionNumbers(
    channels_last, (ndim - 1, ndim - 2, *range(ndim - 2)), channels_last
  )


def _conv_places(
  operation: Any,
  inputs: Array,
  kernel_shape: tuple[int, ...],
  strides: tuple[int, ...],
  padding: LaxPadding,
  geometry: dict[str, Any],
) -> tuple[int, ...]:
  """Returns the spatial shape of the output of a convolution."""
  if operation is not lax.conv_general_dilated:
    return jax.eval_shape(
      lambda lhs, rhs: operation(
        lhs=lhs, rhs=rhs, window_strides=strides, padding=padding, **geometry
      ),
      inputs,
      jax.ShapeDtypeStruct(kernel_shape, inputs.dtype),
    ).shape[1:-1]
  sizes = inputs.shape[1:-1]
  window = _dilate(kernel_shape[:-2], geometry['rhs_dilation'])
  if isinstance(padding, str):
    padding = lax.padtype_to_pads(sizes, window, strides, padding)
  return tuple(
    max((size + before + after - width) // step + 1, 0)
    for size, (before, after), width, step in zip(
      _dilate(sizes, geometry['lhs_dilation']), padding, window, strides
    )
  )
