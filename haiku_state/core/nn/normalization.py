"""Normalization as functions of a scope.

Each subtracts a mean and divides by a standard deviation; they differ in the
axes over which these are taken. The parameters are `scale` and `bias`.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from haiku_state.core.scope import Scope
from haiku_state.linen import initializers
from haiku_state.typing import Array, Dtype, Initializer


def batch_norm(
  scope: Scope,
  x: Array,
  use_running_average: bool = False,
  axis: int | tuple[int, ...] = -1,
  momentum: float = 0.99,
  epsilon: float = 1e-5,
  dtype: Dtype = jnp.float32,
  bias: bool = True,
  scale: bool = True,
  bias_init: Initializer = initializers.zeros_init(),
  scale_init: Initializer = initializers.ones_init(),
  axis_name: str | Sequence[str] | None = None,
  axis_index_groups: Any = None,
  kind: str = 'batch_stats',
) -> Array:
  """Normalizes over the batch, and over all axes but those of the features.

  The averages `mean` and `var` move at each call, the one that makes them
  apart.

  Args:
    scope: where parameters and averages are.
    x: array of any shape; it is computed with as float32.
    use_running_average: whether to normalize by the averages.
    axis: axis or axes of the features.
    momentum: what part of the averages stays.
    epsilon: what is added to the variance.
    dtype: dtype of the result.
    bias: whether there is a bias.
    scale: whether there is a scale.
    bias_init: initializer of the bias.
    scale_init: initializer of the scale.
    axis_name: a mapped axis, or some, to average over too.
    axis_index_groups: groups of indices of that axis, each averaged by itself.
    kind: collection of the averages.

  Returns:
    An array of the shape of `x`.

  >>> import jax, jax.numpy as jnp
  >>> from haiku_state.core import apply, init, nn
  >>> x = jnp.array([[1.0, 2.0], [3.0, 6.0]])
  >>> y, variables = init(nn.batch_norm)(jax.random.key(0), x)
  >>> y.round(2).tolist()
  [[-1.0, -1.0], [1.0, 1.0]]
  >>> step = apply(nn.batch_norm, mutable=['batch_stats'])
  >>> step(variables, x)[1]['batch_stats']['mean'].round(3)
  Array([0.02, 0.04], dtype=float32)
  """
  x = jnp.asarray(x, jnp.float32)
  axes = axis if isinstance(axis, tuple) else (axis,)
  axes = tuple(ax % x.ndim for ax in axes)
  others = tuple(ax for ax in range(x.ndim) if ax not in axes)

  def average(y):
    y = jnp.mean(y, others, keepdims=True)
    if axis_name is not None:
      y = lax.pmean(y, axis_name, axis_index_groups=axis_index_groups)
    return y

  mean = average(x)
  var = average(jnp.square(x)) - jnp.square(mean)
  features = jnp.squeeze(mean).shape
  is_there = scope.has_variable(kind, 'mean')
  running_mean = scope.variable(kind, 'mean', jnp.zeros, features)
  running_var = scope.variable(kind, 'var', jnp.ones, features)
  if use_running_average:
    mean = jnp.reshape(running_mean.value, mean.shape)
    var = jnp.reshape(running_var.value, var.shape)
  elif is_there:
    for running, new in ((running_mean, mean), (running_var, var)):
      step = (1.0 - momentum) * (jnp.squeeze(new) - running.value)
      running.value = running.value + step
  scale_factor = lax.rsqrt(var + epsilon)
  if scale:
    value = scope.param('scale', scale_init, features)
    scale_factor = scale_factor * jnp.reshape(value, mean.shape)
  y = (x - mean) * scale_factor
  if bias:
    value = scope.param('bias', bias_init, features)
    y = y + jnp.reshape(value, mean.shape)
  return jnp.asarray(y, dtype)


def layer_norm(
  scope: Scope,
  x: Array,
  epsilon: float = 1e-6,
  dtype: Dtype = jnp.float32,
  bias: bool = True,
  scale: bool = True,
  bias_init: Initializer = initializers.zeros_init(),
  scale_init: Initializer = initializers.ones_init(),
) -> Array:
  """Normalizes over the last axis.

  Args:
    scope: where the parameters are.
    x: array (..., features), floating point.
    epsilon: what is added to the variance.
    dtype: dtype in which the parameters are used.
    bias: whether there is a bias.
    scale: whether there is a scale.
    bias_init: initializer of the bias.
    scale_init: initializer of the scale.

  Returns:
    An array of the shape of `x`.

  >>> import jax, jax.numpy as jnp
  >>> from haiku_state.core import init, nn
  >>> y, _ = init(nn.layer_norm)(jax.random.key(0), jnp.array([[1.0, 3.0]]))
  >>> y.round(2).tolist()
  [[-1.0, 1.0]]
  """
  mean, var = _mean_and_var(x, -1)
  factor = lax.rsqrt(var + epsilon)
  features = (x.shape[-1],)
  if scale:
    factor = factor * jnp.asarray(
      scope.param('scale', scale_init, features), dtype
    )
  y = (x - mean) * factor
  if bias:
    y = y + jnp.asarray(scope.param('bias', bias_init, features), dtype)
  return y


def group_norm(
  scope: Scope,
  x: Array,
  num_groups: int | None = 32,
  group_size: int | None = None,
  epsilon: float = 1e-6,
  dtype: Dtype = jnp.float32,
  bias: bool = True,
  scale: bool = True,
  bias_init: Initializer = initializers.zeros_init(),
  scale_init: Initializer = initializers.ones_init(),
) -> Array:
  """Normalizes each example over groups of features, and over space.

  Source: Wu and He, Group Normalization, https://arxiv.org/abs/1803.08494.

  Args:
    scope: where the parameters are, of shape (1, ..., 1, features).
    x: array (batch, ..., features); it is computed with as float32.
    num_groups: how many groups there are. Give this or `group_size`.
    group_size: how many features a group has. Give this or `num_groups`.
    epsilon: what is added to the variance.
    dtype: dtype of the result.
    bias: whether there is a bias.
    scale: whether there is a scale.
    bias_init: initializer of the bias.
    scale_init: initializer of the scale.

  Returns:
    An array of the shape of `x`.

  Raises:
    ValueError: if the groups are given twice or not at all, or do not divide
      the features.

  >>> import jax, jax.numpy as jnp
  >>> from haiku_state.core import init, nn
  >>> x = jnp.array([[1.0, 3.0, 5.0, 9.0]])
  >>> init(nn.group_norm)(jax.random.key(0), x, 2)[0].round(2).tolist()
  [[-1.0, 1.0, -1.0, 1.0]]
  """
  x = jnp.asarray(x, jnp.float32)
  groups = _number_of_groups(x.shape[-1], num_groups, group_size)
  grouped = jnp.reshape(x, (*x.shape[:-1], groups, x.shape[-1] // groups))
  others = (*range(1, grouped.ndim - 2), grouped.ndim - 1)
  mean, var = _mean_and_var(grouped, others)
  y = (grouped - mean) * lax.rsqrt(var + epsilon)
  y = jnp.reshape(y, x.shape)
  features = (1,) * (x.ndim - 1) + (x.shape[-1],)
  if scale:
    y = y * scope.param('scale', scale_init, features)
  if bias:
    y = y + scope.param('bias', bias_init, features)
  return y.astype(dtype)


def _mean_and_var(x: Array, axes: Any) -> tuple[Array, Array]:
  mean = jnp.mean(x, axis=axes, keepdims=True)
  mean_of_squares = jnp.mean(lax.square(x), axis=axes, keepdims=True)
  return mean, mean_of_squares - lax.square(mean)


def _number_of_groups(
  features: int, num_groups: int | None, group_size: int | None
) -> int:
  if (num_groups is None) == (group_size is None):
    raise ValueError(
      'Either `num_groups` or `group_size` should be specified, but not both'
      f' of them: they are {num_groups} and {group_size}. For groups of'
      ' `group_size` features write `num_groups=None`.'
    )
  if num_groups is not None:
    return num_groups
  assert group_size is not None
  if features % group_size != 0:
    raise ValueError(
      f'Number of channels ({features}) is not multiple of the group size'
      f' ({group_size}).'
    )
  return features // group_size
