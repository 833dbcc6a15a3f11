"""Dense, Embed and LayerNorm whose parameters' axes have names.

The names end up in the collection `params_axes` (see
`haiku_state.linen.partitioning`), and logical axis rules map them to the axes of
a device mesh. Elsewhere use the layers of the same names in
`haiku_state.linen`, and `nn.with_partitioning`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax

from haiku_state.linen import initializers
from haiku_state.linen.module import Module, compact
from haiku_state.linen.partitioning import (
  param_with_axes,
  with_sharding_constraint,
)
from haiku_state.typing import (
  Array,
  DotGeneralT,
  Dtype,
  Initializer,
  PrecisionLike,
)

Activation = Callable[..., Array]

default_kernel_init = initializers.lecun_normal()
default_embed_init = initializers.variance_scaling(
  1.0, 'fan_in', 'normal', out_axis=0
)


class Dense(Module):
  """Multiplies the last axis by a kernel with named axes.

  >>> import jax, jax.numpy as jnp
  >>> from haiku_state.linen.experimental import layers_with_named_axes as named
  >>> dense, x = named.Dense(4, kernel_axes=('embed', 'mlp')), jnp.ones((2, 3))
  >>> variables = dense.init(jax.random.key(0), x)
  >>> variables['params_axes']['kernel_axes'].names
  ('embed', 'mlp')

  Attributes:
    features: the size of the last axis of the output.
    use_bias: whether to add a bias; its axis is named like the kernel's last.
    dtype: the dtype of the computation.
    param_dtype: the dtype of the parameters.
    precision: as of `jax.lax.Precision`.
    kernel_init: the initializer of the kernel.
    bias_init: the initializer of the bias.
    kernel_axes: the names of the kernel's two axes; none by default.
    dot_general: what to call in place of `lax.dot_general`; deprecated.
    dot_general_cls: what makes that function.
  """

  features: int
  use_bias: bool = True
  dtype: Dtype = jnp.float32
  param_dtype: Dtype = jnp.float32
  precision: PrecisionLike = None
  kernel_init: Initializer = default_kernel_init
  bias_init: Initializer = initializers.zeros_init()
  kernel_axes: tuple[str, ...] = ()
  dot_general: DotGeneralT | None = None
  dot_general_cls: Any = None

  @compact
  def __call__(self, inputs: Array) -> Array:
    """Returns `inputs @ kernel + bias`.

    Args:
      inputs: `[..., input_features]`.

    Returns:
      `[..., features]`.
    """
    inputs = jnp.asarray(inputs, self.dtype)
    kernel = param_with_axes(
      'kernel',
      self.kernel_init,
      (inputs.shape[-1], self.features),
      self.param_dtype,
      axes=self.kernel_axes,
    )
    if self.dot_general_cls is not None:
      dot_general = self.dot_general_cls()
    else:
      dot_general = self.dot_general or lax.dot_general
    y = dot_general(
      inputs,
      jnp.asarray(kernel, self.dtype),
      (((inputs.ndim - 1,), (0,)), ((), ())),
      precision=self.precision,
    )
    if self.use_bias:
      bias = param_with_axes(
        'bias',
        self.bias_init,
        (self.features,),
        self.param_dtype,
        axes=self.kernel_axes[-1:],
      )
      bias = jnp.asarray(bias, self.dtype)
      y += jnp.reshape(bias, (1,) * (y.ndim - 1) + (-1,))
    return y


class Embed(Module):
  """Looks up a row, `[vocab, embed]`, for each integer.

  >>> import jax, jax.numpy as jnp
  >>> from haiku_state.linen.experimental import layers_with_named_axes as named
  >>> embed = named.Embed(num_embeddings=5, features=3)
  >>> variables = embed.init(jax.random.key(0), jnp.array([[1, 2]]))
  >>> embed.apply(variables, jnp.array([[1, 2, 4, 4]])).shape
  (1, 4, 3)

  Attributes:
    num_embeddings: the number of rows.
    features: the size of a row.
    cast_input_dtype: the integer dtype to cast the input to first, if any.
    dtype: the dtype of the output.
    param_dtype: the dtype of the table.
    attend_dtype: the dtype of the table in `attend`; None: `dtype`.
    embedding_init: the initializer of the table.
    one_hot: whether to multiply by one-hot vectors, which partitions better
      than a gather.
    embedding: the table; made by the layer.
  """

  num_embeddings: int
  features: int
  cast_input_dtype: Dtype | None = None
  dtype: Dtype = jnp.float32
  param_dtype: Dtype = jnp.float32
  attend_dtype: Dtype | None = None
  embedding_init: Initializer = default_embed_init
  one_hot: bool = False
  embedding: Array = dataclasses.field(init=False)

  def setup(self) -> None:
    self.embedding = param_with_axes(
      'embedding',
      self.embedding_init,
      (self.num_embeddings, self.features),
      self.param_dtype,
      axes=('vocab', 'embed'),
    )

  def __call__(self, inputs: Array) -> Array:
    """Returns the rows that `inputs` name.

    Args:
      inputs: integers of any shape; without `one_hot`, `[batch, length]` if
        logical axis rules are in force.

    Returns:
      The shape of `inputs` with `features` appended.

    Raises:
      ValueError: if `inputs` are no integers.
    """
    if self.cast_input_dtype:
      inputs = inputs.astype(self.cast_input_dtype)
    if not jnp.issubdtype(inputs.dtype, jnp.integer):
      raise ValueError('Input type must be an integer or unsigned integer.')
    if self.one_hot:
      rows = lax.iota(jnp.int32, self.num_embeddings)
      one_hot = jnp.array(inputs[..., jnp.newaxis] == rows, dtype=self.dtype)
      return jnp.dot(one_hot, jnp.asarray(self.embedding, self.dtype))
    return with_sharding_constraint(
      jnp.asarray(self.embedding, self.dtype)[inputs],
      ('batch', 'length', 'embed'),
    )

  def attend(self, query: Array) -> Array:
    """Multiplies by the table, as for the logits of a language model.

    Args:
      query: `[..., features]`.

    Returns:
      `[..., num_embeddings]`.
    """
    dtype = self.dtype if self.attend_dtype is None else self.attend_dtype
    return jnp.dot(query, jnp.asarray(self.embedding, dtype).T)


def _square(x):
  """Squares the absolute value."""
  if jnp.iscomplexobj(x):
    return lax.square(lax.real(x)) + lax.square(lax.imag(x))
  return lax.square(x)


class LayerNorm(Module):
  """Normalizes the last axis to mean zero and variance one.

  ::

    y = (x - E[x]) / sqrt(Var[x] + epsilon) * scale + bias

  with statistics in at least float32. Source: Ba et al. (arXiv:1607.06450).
  In Flax 0.12.8, `use_scale` and `use_bias` of this layer end in an
  AttributeError.

  >>> import jax, jax.numpy as jnp
  >>> from haiku_state.linen.experimental import layers_with_named_axes as named
  >>> x = jnp.array([[1.0, 3.0]])
  >>> y, variables = named.LayerNorm().init_with_output(jax.random.key(0), x)
  >>> print(y.round(3))
  [[-1.  1.]]
  >>> variables['params_axes']['scale_axes'].names
  ('embed',)

  Attributes:
    epsilon: added to the variance.
    dtype: the dtype of the output.
    param_dtype: the dtype of the parameters.
    use_bias: whether to add a bias.
    use_scale: whether to multiply by a scale; of no use before a linear layer.
    bias_init: the initializer of the bias.
    scale_init: the initializer of the scale.
  """

  epsilon: float = 1e-6
  dtype: Any = jnp.float32
  param_dtype: Dtype = jnp.float32
  use_bias: bool = True
  use_scale: bool = True
  bias_init: Initializer = initializers.zeros_init()
  scale_init: Initializer = initializers.ones_init()

  @compact
  def __call__(self, x: Array) -> Array:
    """Returns the normalized `x`.

    Args:
      x: `[..., features]`.

    Returns:
      An array of the shape of `x`.
    """
    mean, variance = _statistics(x)
    y = x - mean
    factor = lax.rsqrt(variance + self.epsilon)
    if self.use_scale:
      factor *= _vector('scale', self.scale_init, x, self.param_dtype)
    y *= factor
    if self.use_bias:
      y += _vector('bias', self.bias_init, x, self.param_dtype)
    return jnp.asarray(y, self.dtype)


def _statistics(x):
  """Computes mean and variance of the last axis, which is kept with size 1."""
  x = jnp.asarray(x, jnp.promote_types(jnp.float32, jnp.result_type(x)))
  shape = (*x.shape[:-1], 1)
  mean = jnp.mean(x, (-1,))
  # One pass over the data; rounding can take the difference below zero.
  variance = jnp.maximum(0.0, jnp.mean(_square(x), (-1,)) - _square(mean))
  return mean.reshape(shape), variance.reshape(shape)


def _vector(name, init, x, dtype):
  """Makes a parameter for each feature, of a shape that broadcasts to `x`."""
  features = x.shape[-1]
  vector = param_with_axes(name, init, (features,), dtype, axes=('embed',))
  return vector.reshape((1,) * (x.ndim - 1) + (features,))
