"""Layers that normalize: activations by their statistics, weights by a norm.

The first kind computes a mean and a variance over some axes (`_compute_stats`)
and then `(x - mean) / sqrt(var + epsilon) * scale + bias` (`_normalize`); the
layers differ in the axes, and in that `BatchNorm` also keeps averages of its
statistics. The second kind wraps a layer and changes its parameters before it
runs.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from haiku_state import _versions
from haiku_state.linen import initializers
from haiku_state.linen.dtypes import _has_dtype, promote_dtype
from haiku_state.linen.dtypes import canonicalize_dtype as canonicalize_dtype
from haiku_state.linen.module import Module, compact, merge_param
from haiku_state.linen.transforms import map_variables as map_variables
from haiku_state.typing import Array, Axes, Dtype, Initializer
from haiku_state.typing import PRNGKey as PRNGKey
from haiku_state.typing import Shape as Shape

field = dataclasses.field


class BatchNorm(Module):
  """Normalizes each feature by its statistics over the batch.

      y = (x - mean) / sqrt(var + epsilon) * scale + bias

  In training, mean and variance are those of the batch, and their running
  averages are updated:

      average = momentum * average + (1 - momentum) * statistic

  In evaluation (`use_running_average=True`) the averages take their place.
  The variance is the biased one (divided by the count), in the average too.

  Parameters: `scale`, `bias`. Collection `batch_stats`: `mean` (zeros at
  first), `var` (ones). All have the shape of the feature axes. Statistics and
  averages are float32 or wider, whatever the dtype of the input.

  At initialization the averages stay what they are and `axis_name` is not
  used, so that `init` needs neither a typical batch nor the mapped axis.

  With a mask and an `axis_name`, the statistics are those of all the unmasked
  elements along the axis together: sums and counts are added up. (Flax
  averages the means of the shards, which is another number where their counts
  differ.) If none is unmasked anywhere, mean and variance are 0.

  Source: Ioffe and Szegedy, Batch Normalization,
  https://arxiv.org/abs/1502.03167.

  >>> import jax, jax.numpy as jnp
  >>> import haiku_state.linen as nn
  >>> bn = nn.BatchNorm(momentum=0.9)
  >>> x = jnp.array([[1.0], [3.0]])
  >>> variables = bn.init(jax.random.key(0), x, use_running_average=False)
  >>> y, updates = bn.apply(
  ...   variables, x, use_running_average=False, mutable=['batch_stats']
  ... )
  >>> y.round(3).tolist()
  [[-1.0], [1.0]]
  >>> updates['batch_stats']['mean']
  Array([0.2], dtype=float32)

  Statistics over an axis of `jax.vmap`, which come out unmapped:

  >>> bn = nn.BatchNorm(use_running_average=False, axis_name='batch')
  >>> y, updates = jax.vmap(
  ...   lambda x: bn.apply(variables, x, mutable=['batch_stats']),
  ...   out_axes=(0, None),
  ...   axis_name='batch',
  ... )(x)
  >>> y.shape, updates['batch_stats']['mean'].shape
  ((2, 1), (1,))

  Attributes:
    use_running_average: whether to normalize by the running averages. Give it
      here or in the call, not in both.
    axis: the feature axis or axes; the statistics are over all others.
    momentum: weight of the old value in a running average.
    epsilon: number added to the variance.
    dtype: dtype of the output. None: inferred from input and parameters.
    param_dtype: dtype of the parameters.
    use_bias: whether there is a bias.
    use_scale: whether there is a scale.
    bias_init: initializer of the bias.
    scale_init: initializer of the scale.
    axis_name: name, or tuple of names, of the mapped axes (`jax.vmap`,
      `jax.pmap`, `jax.shard_map`) that are part of the batch.
    axis_index_groups: groups of indices of the mapped axis, each with
      statistics of its own, such as `[[0, 1], [2, 3]]`.
    use_fast_variance: whether the variance is E[x^2] - E[x]^2, in one pass
      over the input, rather than E[(x - E[x])^2], in two, which loses less to
      rounding where the mean is large.
    force_float32_reductions: whether statistics are at least float32. If not,
      they have the dtype of the input, and the averages `param_dtype`.
  """

  use_running_average: bool | None = None
  axis: int = -1
  momentum: float = 0.99
  epsilon: float = 1e-5
  dtype: Dtype | None = None
  param_dtype: Dtype = jnp.float32
  use_bias: bool = True
  use_scale: bool = True
  bias_init: Initializer = initializers.zeros
  scale_init: Initializer = initializers.ones
  axis_name: str | None = None
  axis_index_groups: Any = None
  use_fast_variance: bool = True
  force_float32_reductions: bool = True

  @compact
  def __call__(
    self,
    x: Array,
    use_running_average: bool | None = None,
    *,
    mask: jax.Array | None = None,
  ) -> Array:
    """Normalizes, and updates the running averages in training.

    Args:
      x: array that has the feature axes.
      use_running_average: whether to normalize by the running averages.
      mask: booleans that broadcast to `x`: what the statistics are over. None:
        everything.

    Returns:
      An array of the shape of `x`.

    Raises:
      ValueError: if `use_running_average` is given neither here nor to the
        constructor, or to both.
      NameError: if `axis_name` is not the name of an enclosing mapped axis, in
        training.
      ModifyScopeVariableError: if `batch_stats` is not mutable, in training.
    """
    use_running_average = merge_param(
      'use_running_average', self.use_running_average, use_running_average
    )
    feature_axes = _canonicalize_axes(x.ndim, self.axis)
    reduction_axes = tuple(i for i in range(x.ndim) if i not in feature_axes)
    feature_shape = [x.shape[ax] for ax in feature_axes]
    stats_dtype = (
      jnp.float32 if self.force_float32_reductions else self.param_dtype
    )
    ra_mean = self.variable(
      'batch_stats', 'mean', jnp.zeros, feature_shape, stats_dtype
    )
    ra_var = self.variable(
      'batch_stats', 'var', jnp.ones, feature_shape, stats_dtype
    )

    if use_running_average:
      mean, var = ra_mean.value, ra_var.value
      if not self.force_float32_reductions:
        mean = jnp.asarray(mean, self.param_dtype)
        var = jnp.asarray(var, self.param_dtype)
    elif self.is_initializing():
      mean, var = _layer_stats(self, x, reduction_axes, mask, axis_name=None)
    else:
      mean, var = _layer_stats(self, x, reduction_axes, mask, self.axis_name)
      old, new = self.momentum, 1 - self.momentum
      ra_mean.value = old * ra_mean.value + new * mean
      ra_var.value = old * ra_var.value + new * var

    return _layer_normalize(self, x, mean, var, reduction_axes, feature_axes)


class LayerNorm(Module):
  """Normalizes each example by its own statistics over its features.

      y = (x - mean) / sqrt(var + epsilon) * scale + bias

  Parameters: `scale`, `bias`, of the shape of the feature axes. `GroupNorm` and
  `InstanceNorm` differ from it in the axes only.

  Source: Ba et al., Layer Normalization, https://arxiv.org/abs/1607.06450.

  >>> import jax, jax.numpy as jnp
  >>> import haiku_state.linen as nn
  >>> y, variables = nn.LayerNorm().init_with_output(
  ...   jax.random.key(0), jnp.array([[1.0, 3.0], [10.0, 30.0]])
  ... )
  >>> y.round(3).tolist()
  [[-1.0, 1.0], [-1.0, 1.0]]
  >>> sorted(variables['params'])
  ['bias', 'scale']

  Attributes:
    epsilon: number added to the variance.
    dtype: dtype of the output. None: inferred from input and parameters.
    param_dtype: dtype of the parameters.
    use_bias: whether there is a bias.
    use_scale: whether there is a scale.
    bias_init: initializer of the bias.
    scale_init: initializer of the scale.
    reduction_axes: axis or axes that the statistics are over.
    feature_axes: axis or axes along which scale and bias differ.
    axis_name: name, or tuple of names, of mapped axes that the statistics are
      also over, where the features are spread over devices.
    axis_index_groups: groups of indices of the mapped axis, each with
      statistics of its own.
    use_fast_variance: see `BatchNorm`.
    force_float32_reductions: whether statistics are at least float32.
  """

  epsilon: float = 1e-6
  dtype: Dtype | None = None
  param_dtype: Dtype = jnp.float32
  use_bias: bool = True
  use_scale: bool = True
  bias_init: Initializer = initializers.zeros
  scale_init: Initializer = initializers.ones
  reduction_axes: Axes = -1
  feature_axes: Axes = -1
  axis_name: str | None = None
  axis_index_groups: Any = None
  use_fast_variance: bool = True
  force_float32_reductions: bool = True

  @compact
  def __call__(self, x: Array, *, mask: jax.Array | None = None) -> Array:
    """Normalizes.

    Args:
      x: array that has the reduction and feature axes.
      mask: booleans that broadcast to `x`: what the statistics are over.

    Returns:
      An array of the shape of `x`.
    """
    mean, var = _layer_stats(self, x, self.reduction_axes, mask, self.axis_name)
    return _layer_normalize(
      self, x, mean, var, self.reduction_axes, self.feature_axes
    )


class RMSNorm(Module):
  """Divides each example by the root of its mean square.

      y = x / sqrt(mean(x^2) + epsilon) * scale

  Parameters: `scale`, of the shape of the feature axes. Unlike `LayerNorm` it
  does not subtract a mean, and has no bias.

  Source: Zhang and Sennrich, Root Mean Square Layer Normalization,
  https://arxiv.org/abs/1910.07467.

  >>> import jax, jax.numpy as jnp
  >>> import haiku_state.linen as nn
  >>> y, variables = nn.RMSNorm().init_with_output(
  ...   jax.random.key(0), jnp.array([[2.0, -2.0], [30.0, 30.0]])
  ... )
  >>> y.round(3).tolist()
  [[1.0, -1.0], [1.0, 1.0]]

  Attributes:
    epsilon: number added to the mean square.
    dtype: dtype of the output. None: inferred from input and parameters.
    param_dtype: dtype of the parameters.
    use_scale: whether there is a scale.
    scale_init: initializer of the scale.
    reduction_axes: axis or axes that the mean square is over.
    feature_axes: axis or axes along which the scale differs.
    axis_name: name, or tuple of names, of mapped axes that the mean square is
      also over, where the features are spread over devices.
    axis_index_groups: groups of indices of the mapped axis, each with a mean
      square of its own.
    use_fast_variance: has no effect here: with no mean to subtract, both ways
      to compute a variance are one.
    force_float32_reductions: whether the mean square is at least float32.
  """

  epsilon: float = 1e-6
  dtype: Dtype | None = None
  param_dtype: Dtype = jnp.float32
  use_scale: bool = True
  scale_init: Initializer = initializers.ones
  reduction_axes: Axes = -1
  feature_axes: Axes = -1
  axis_name: str | None = None
  axis_index_groups: Any = None
  use_fast_variance: bool = True
  force_float32_reductions: bool = True

  @compact
  def __call__(self, x: Array, *, mask: jax.Array | None = None) -> Array:
    """Normalizes.

    Args:
      x: array that has the reduction and feature axes.
      mask: booleans that broadcast to `x`: what the mean square is over.

    Returns:
      An array of the shape of `x`.
    """
    mean, var = _layer_stats(
      self, x, self.reduction_axes, mask, self.axis_name, use_mean=False
    )
    return _normalize(
      self,
      x,
      mean,
      var,
      self.reduction_axes,
      self.feature_axes,
      self.dtype,
      self.param_dtype,
      self.epsilon,
      False,
      self.use_scale,
      initializers.zeros,
      self.scale_init,
      self.force_float32_reductions,
    )


class GroupNorm(Module):
  """Normalizes groups of channels of each example by their statistics.

      y = (x - mean) / sqrt(var + epsilon) * scale + bias

  The channels, the last axis, are split into groups of equal size that lie next
  to each other; mean and variance are over a group and the spatial axes. Give
  the number of groups or their size. One group makes it a `LayerNorm` over all
  but the batch axis, groups of one channel an `InstanceNorm`.

  Parameters: `scale`, `bias`, (channels,).

  Source: Wu and He, Group Normalization, https://arxiv.org/abs/1803.08494.

  >>> import jax, jax.numpy as jnp
  >>> import haiku_state.linen as nn
  >>> y, variables = nn.GroupNorm(num_groups=2).init_with_output(
  ...   jax.random.key(0), jnp.array([[1.0, 3.0, 10.0, 30.0]])
  ... )
  >>> y.round(3).tolist()
  [[-1.0, 1.0, -1.0, 1.0]]

  Attributes:
    num_groups: number of groups; None where `group_size` is given.
    group_size: number of channels of a group.
    epsilon: number added to the variance.
    dtype: dtype of the output. None: inferred from input and parameters.
    param_dtype: dtype of the parameters.
    use_bias: whether there is a bias.
    use_scale: whether there is a scale.
    bias_init: initializer of the bias.
    scale_init: initializer of the scale.
    reduction_axes: axes that the statistics are over, the last one among them.
      None: all but the first. Give them where an input may have more batch axes
      than one.
    axis_name: name, or tuple of names, of mapped axes that the statistics are
      also over.
    axis_index_groups: groups of indices of the mapped axis, each with
      statistics of its own.
    use_fast_variance: see `BatchNorm`.
    force_float32_reductions: whether statistics are at least float32.
  """

  num_groups: int | None = 32
  group_size: int | None = None
  epsilon: float = 1e-6
  dtype: Dtype | None = None
  param_dtype: Dtype = jnp.float32
  use_bias: bool = True
  use_scale: bool = True
  bias_init: Initializer = initializers.zeros
  scale_init: Initializer = initializers.ones
  reduction_axes: Axes | None = None
  axis_name: str | None = None
  axis_index_groups: Any = None
  use_fast_variance: bool = True
  force_float32_reductions: bool = True

  @compact
  def __call__(self, x: Array, *, mask: jax.Array | None = None) -> Array:
    """Normalizes.

    Args:
      x: array (batch, ..., channels).
      mask: booleans whose last axis is that of `x`, and which broadcast to it:
        what the statistics are over.

    Returns:
      An array of the shape of `x`.

    Raises:
      ValueError: if the reduction axes lack the last one; if not exactly one of
        `num_groups` and `group_size` is given; if the groups do not come out
        even.
    """
    reduction_axes = self.reduction_axes
    if reduction_axes is None:
      reduction_axes = [*range(1, x.ndim - 1), -1]
    reduction_axes = _canonicalize_axes(x.ndim, reduction_axes)
    if reduction_axes[-1] != x.ndim - 1:
      raise ValueError(
        'The reduction axes must include the final dimension '
        'as this is assumed to be the feature axis.'
      )
    channels = x.shape[-1]
    num_groups = _number_of_groups(channels, self.num_groups, self.group_size)
    group_size = channels // num_groups
    groups = (num_groups, group_size)
    if mask is not None:
      mask = mask.reshape(mask.shape[:-1] + groups)

    mean, var = _layer_stats(
      self,
      x.reshape(x.shape[:-1] + groups),
      [*reduction_axes[:-1], -1],
      mask,
      self.axis_name,
    )
    mean = jnp.repeat(mean, group_size, axis=-1)
    var = jnp.repeat(var, group_size, axis=-1)
    return _layer_normalize(self, x, mean, var, reduction_axes[:-1], (-1,))


def _number_of_groups(
  channels: int, num_groups: int | None, group_size: int | None
) -> int:
  """Returns the number of groups, from it or from their size."""
  if (num_groups is None) == (group_size is None):
    raise ValueError(
      'Either `num_groups` or `group_size` should be '
      'specified. If `group_size` is to be specified, '
      'pass `num_groups=None` as argument to override '
      'the default `num_groups` value of 32.'
    )
  if group_size is not None:
    if channels % group_size != 0:
      raise ValueError(
        f'Number of channels ({channels}) is not multiple of the '
        f'group size ({group_size}).'
      )
    num_groups = channels // group_size
  assert num_groups is not None
  if num_groups <= 0 or channels % num_groups != 0:
    raise ValueError(
      f'Number of groups ({num_groups}) does not divide the number'
      f' of channels ({channels}).'
    )
  return num_groups


class InstanceNorm(Module):
  """Normalizes each channel of each example by its own statistics.

      y = (x - mean) / sqrt(var + epsilon) * scale + bias

  Mean and variance are over all axes but the first, the batch, and the feature
  axes. Parameters: `scale`, `bias`, of the shape of the feature axes.

  Source: Ulyanov et al., Instance Normalization,
  https://arxiv.org/abs/1607.08022.

  >>> import jax, jax.numpy as jnp
  >>> import haiku_state.linen as nn
  >>> y, variables = nn.InstanceNorm().init_with_output(
  ...   jax.random.key(0), jnp.array([[[1.0, 10.0], [3.0, 30.0]]])
  ... )
  >>> y.round(3).tolist()
  [[[-1.0, -1.0], [1.0, 1.0]]]

  Attributes:
    epsilon: number added to the variance.
    dtype: dtype of the output. None: inferred from input and parameters.
    param_dtype: dtype of the parameters.
    use_bias: whether there is a bias.
    use_scale: whether there is a scale.
    bias_init: initializer of the bias.
    scale_init: initializer of the scale.
    feature_axes: axis or axes with statistics, scale and bias for each index.
    axis_name: name, or tuple of names, of mapped axes that the statistics are
      also over.
    axis_index_groups: groups of indices of the mapped axis, each with
      statistics of its own.
    use_fast_variance: see `BatchNorm`.
    force_float32_reductions: whether statistics are at least float32.
  """

  epsilon: float = 1e-6
  dtype: Dtype | None = None
  param_dtype: Dtype = jnp.float32
  use_bias: bool = True
  use_scale: bool = True
  bias_init: Initializer = initializers.zeros
  scale_init: Initializer = initializers.ones
  feature_axes: Axes = -1
  axis_name: str | None = None
  axis_index_groups: Any = None
  use_fast_variance: bool = True
  force_float32_reductions: bool = True

  @compact
  def __call__(self, x: Array, *, mask: jax.Array | None = None) -> Array:
    """Normalizes.

    Args:
      x: array (batch, ...) that has the feature axes.
      mask: booleans that broadcast to `x`: what the statistics are over.

    Returns:
      An array of the shape of `x`.

    Raises:
      ValueError: if the first axis is among the feature axes.
    """
    feature_axes = _canonicalize_axes(x.ndim, self.feature_axes)
    if 0 in feature_axes:
      raise ValueError(
        'The channel axes cannot include the leading dimension '
        'as this is assumed to be the batch axis.'
      )
    reduction_axes = [i for i in range(1, x.ndim) if i not in feature_axes]
    mean, var = _layer_stats(self, x, reduction_axes, mask, self.axis_name)
    return _layer_normalize(self, x, mean, var, reduction_axes, feature_axes)


class SpectralNorm(Module):
  """Wraps a layer and divides its weights by their largest singular value.

      u, v = power iteration, n_steps from the last u
      weight / sigma, where sigma = v @ weight @ u

  It does so for each variable of the layer that has two axes or more; one with
  more is taken as the matrix that it is when all axes but the last are
  flattened. Call it as the layer, and say whether to keep the new `u` and
  `sigma`: True in training, with the collection mutable, and False in
  evaluation.

  The parameters are the layer's own. Collection `batch_stats`: for each weight
  `<layer>/<path>/u` (1, columns) and `<layer>/<path>/sigma` (), scalars and
  vectors left out.

  Source: Miyato et al., Spectral Normalization for Generative Adversarial
  Networks, https://arxiv.org/abs/1802.05957.

  >>> import jax, jax.numpy as jnp
  >>> import haiku_state.linen as nn
  >>> class Model(nn.Module):
  ...   @nn.compact
  ...   def __call__(self, x, train):
  ...     return nn.SpectralNorm(nn.Dense(4))(x, update_stats=train)
  >>> variables = Model().init(jax.random.key(0), jnp.ones((1, 3)), train=False)
  >>> sorted(variables['batch_stats']['SpectralNorm_0'])
  ['Dense_0/kernel/sigma', 'Dense_0/kernel/u']
  >>> y, updates = Model().apply(
  ...   variables, jnp.ones((1, 3)), train=True, mutable=['batch_stats']
  ... )

  Attributes:
    layer_instance: the layer to wrap.
    n_steps: number of power iterations at each call; below 1 the weights stay
      as they are.
    epsilon: number added to a squared norm before its root is divided by.
    dtype: dtype of the weights that the layer gets. None: inferred.
    param_dtype: dtype of `u` and `sigma`.
    error_on_non_matrix: whether a weight with more than two axes is an error.
    collection_name: collection of `u` and `sigma`.
  """

  layer_instance: Module
  n_steps: int = 1
  epsilon: float = 1e-12
  dtype: Dtype | None = None
  param_dtype: Dtype = jnp.float32
  error_on_non_matrix: bool = False
  collection_name: str = 'batch_stats'

  @compact
  def __call__(self, *args: Any, update_stats: bool, **kwargs: Any) -> Any:
    """Runs the layer with normalized weights.

    Args:
      *args: positional arguments of the layer.
      update_stats: whether the new `u` and `sigma` are kept.
      **kwargs: keyword arguments of the layer.

    Returns:
      What the layer returns.

    Raises:
      ValueError: for a weight with more than two axes, if that is an error.
    """
    normalize = functools.partial(
      self._spectral_normalize, update_stats=update_stats
    )
    return _with_mapped_variables(self, normalize, args, kwargs, mutable=True)

  def _spectral_normalize(self, path, vs, update_stats):
    """Normalizes one variable of the layer.

    Args:
      path: where it is, as a path of `jax.tree_util`: collection, names.
      vs: the variable, an array.
      update_stats: whether the new `u` and `sigma` are kept.

    Returns:
      An array of the shape of `vs`.
    """
    value = jnp.asarray(vs)
    shape = value.shape
    if value.ndim <= 1 or self.n_steps < 1:
      return value
    if value.ndim > 2:
      if self.error_on_non_matrix:
        raise ValueError(
          f'Input is {value.ndim}D but error_on_non_matrix is True'
        )
      value = jnp.reshape(value, (-1, shape[-1]))

    name = _variable_name(self.layer_instance, path)
    u_name = name + '/u'
    # A key is drawn only where it is used: an evaluation may have none.
    has_u = self.has_variable(self.collection_name, u_name)
    u_var = self.variable(
      self.collection_name,
      u_name,
      jax.random.normal,
      None if has_u else self.make_rng('params'),
      (1, value.shape[-1]),
      self.param_dtype,
    )
    sigma_var = self.variable(
      self.collection_name, name + '/sigma', jnp.ones, (), self.param_dtype
    )

    u = u_var.value
    for _ in range(self.n_steps):
      v = _l2_normalize(
        jnp.matmul(u, value.transpose([1, 0])), eps=self.epsilon
      )
      u = _l2_normalize(jnp.matmul(v, value), eps=self.epsilon)
    u = lax.stop_gradient(u)
    v = lax.stop_gradient(v)
    sigma = jnp.matmul(jnp.matmul(v, value), jnp.transpose(u))[0, 0]
    # A weight of zeros stays zeros.
    value /= jnp.where(sigma != 0, sigma, 1)
    value = value.reshape(shape)
    if update_stats:
      u_var.value = u
      sigma_var.value = sigma

    dtype = canonicalize_dtype(vs, u, v, sigma, dtype=self.dtype)
    return jnp.asarray(value, dtype)


class WeightNorm(Module):
  """Wraps a layer and normalizes its weights to a learned length.

      weight / sqrt(sum(weight^2) + epsilon) * scale

  The sum is over all axes but the feature axes, so that there is a length for
  each feature. The layer's own parameters stay what they are; parameters of
  this module: `<layer>/<path>/scale`, of the shape of the feature axes, for
  each of the layer's variables that is normalized.

  Source: Salimans and Kingma, Weight Normalization,
  https://arxiv.org/abs/1602.07868.

  >>> import jax, jax.numpy as jnp
  >>> import haiku_state.linen as nn
  >>> class Model(nn.Module):
  ...   @nn.compact
  ...   def __call__(self, x):
  ...     return nn.WeightNorm(nn.Dense(4))(x)
  >>> variables = Model().init(jax.random.key(0), jnp.ones((1, 3)))
  >>> sorted(variables['params']), sorted(variables['params']['WeightNorm_0'])
  (['Dense_0', 'WeightNorm_0'], ['Dense_0/kernel/scale'])

  Attributes:
    layer_instance: the layer to wrap.
    epsilon: number added to a squared norm before its root is divided by.
    dtype: dtype of the weights that the layer gets. None: inferred.
    param_dtype: dtype of the scales.
    use_scale: whether there are scales; if not, the length is 1.
    scale_init: initializer of the scales.
    feature_axes: axis or axes of a weight along which lengths differ. None: one
      length for the whole weight.
    variable_filter: strings: a variable is normalized if one of them occurs in
      its `<layer>/<path>`. None or empty: all variables are.
  """

  layer_instance: Module
  epsilon: float = 1e-12
  dtype: Dtype | None = None
  param_dtype: Dtype = jnp.float32
  use_scale: bool = True
  scale_init: Initializer = initializers.ones
  feature_axes: Axes | None = -1
  variable_filter: Iterable | None = dataclasses.field(
    default_factory=lambda: {'kernel'}
  )

  @compact
  def __call__(self, *args: Any, **kwargs: Any) -> Any:
    """Runs the layer with normalized weights.

    Args:
      *args: positional arguments of the layer.
      **kwargs: keyword arguments of the layer.

    Returns:
      What the layer returns.
    """
    return _with_mapped_variables(self, self._l2_normalize, args, kwargs)

  def _l2_normalize(self, path, vs):
    """Normalizes one variable of the layer, if the filter lets it through.

    Args:
      path: where it is, as a path of `jax.tree_util`: collection, names.
      vs: the variable, an array.

    Returns:
      An array of the shape of `vs`.
    """
    value = jnp.asarray(vs)
    name = _variable_name(self.layer_instance, path)
    if self.variable_filter and not any(
      part in name for part in self.variable_filter
    ):
      return value

    feature_axes = ()
    if self.feature_axes is not None:
      feature_axes = _canonicalize_axes(value.ndim, self.feature_axes)
    reduction_axes = tuple(
      i for i in range(value.ndim) if i not in feature_axes
    )
    param_shape, broadcast_shape = _feature_shapes(value.shape, feature_axes)

    normalized = _l2_normalize(value, axis=reduction_axes, eps=self.epsilon)
    scale = None
    if self.use_scale:
      scale = self.param(
        name + '/scale', self.scale_init, param_shape, self.param_dtype
      ).reshape(broadcast_shape)
      normalized *= scale
    dtype = canonicalize_dtype(vs, scale, dtype=self.dtype)
    return jnp.asarray(normalized, dtype)


# What the layers that change weights share.


def _with_mapped_variables(
  wrapper: Any,
  change: Callable[[Any, Any], Array],
  args: tuple[Any, ...],
  kwargs: dict[str, Any],
  **options: Any,
) -> Any:
  """Runs the wrapped layer on variables that went through `change`."""
  return map_variables(
    lambda layer: layer(*args, **kwargs),
    trans_in_fn=lambda vs: jax.tree_util.tree_map_with_path(change, vs),
    init=wrapper.is_initializing(),
    **options,
  )(wrapper.layer_instance)


def _variable_name(layer: Any, path: tuple[Any, ...]) -> str:
  """Returns `<layer>/<path>` without the collection."""
  inner = _versions.path_text(path[1:])
  return f'{layer.name}/{inner}'


def _l2_normalize(
  x: Array, axis: Axes | None = None, eps: float = 1e-12
) -> Array:
  """Divides by the root of the sum of squares over `axis`, plus `eps`."""
  return x * lax.rsqrt((x * x).sum(axis=axis, keepdims=True) + eps)


# What the layers that normalize activations share.


def _layer_stats(
  layer: Any,
  x: Array,
  axes: Axes,
  mask: Array | None,
  axis_name: Any,
  use_mean: bool = True,
) -> tuple[Array, Array]:
  """Computes the statistics that the fields of a layer ask for.

  Raises:
    NameError: if there is no mapped axis of that name.
  """
  try:
    return _compute_stats(
      x,
      axes,
      layer.dtype,
      axis_name,
      layer.axis_index_groups,
      use_mean,
      layer.use_fast_variance,
      mask,
      layer.force_float32_reductions,
    )
  except NameError as error:
    if axis_name is not None and 'unbound axis name' in str(error):
      _versions.add_note(error, _how_to_bind(layer, axis_name))
    raise


def _how_to_bind(layer: Any, axis_name: Any) -> str:
  """Explains an unbound axis name to the author of the program."""
  kind = type(layer).__name__
  path = '/' + '/'.join(layer.path)
  names = (axis_name,) if isinstance(axis_name, str) else tuple(axis_name)
  lines = [
    f'{kind} "{path}" takes its statistics over axis_name={axis_name!r}, so '
    'that the call must be mapped over an axis of that name, by jax.vmap, '
    'jax.pmap or jax.shard_map. For example, with a function of one example '
    'that returns (output, updated variables):',
  ]
  mapped = 'step'
  for name in reversed(names):
    mapped = (
      f'jax.vmap({mapped}, in_axes=(None, 0), out_axes=(0, None), '
      f'axis_name={name!r})'
    )
  lines.append(f'  {mapped}(variables, batch)')
  lines.append('Statistics over the input alone need no name: axis_name=None.')
  if hasattr(layer, 'use_running_average'):
    lines.append(
      'Evaluation (use_running_average=True) and init need no mapped axis.'
    )
  return '\n'.join(lines)


def _layer_normalize(
  layer: Any,
  x: Array,
  mean: Array,
  var: Array,
  reduction_axes: Axes,
  feature_axes: Axes,
) -> Array:
  """Normalizes as the fields of a layer ask for."""
  return _normalize(
    layer,
    x,
    mean,
    var,
    reduction_axes,
    feature_axes,
    layer.dtype,
    layer.param_dtype,
    layer.epsilon,
    layer.use_bias,
    layer.use_scale,
    layer.bias_init,
    layer.scale_init,
    layer.force_float32_reductions,
  )


def _compute_stats(
  x: Array,
  axes: Axes,
  dtype: Dtype | None,
  axis_name: Any = None,
  axis_index_groups: Any = None,
  use_mean: bool = True,
  use_fast_variance: bool = True,
  mask: Array | None = None,
  force_float32_reductions: bool = True,
) -> tuple[Array, Array]:
  """Computes mean and variance.

  Args:
    x: array, also complex: the variance is E[|x - E[x]|^2].
    axes: axes of `x` that they are over.
    dtype: dtype to compute in. None: that of `x`.
    axis_name: name or names of mapped axes that they are also over.
    axis_index_groups: groups of indices of the mapped axis.
    use_mean: whether the mean is computed; if not, it is 0.
    use_fast_variance: whether the variance is E[|x|^2] - |E[x]|^2.
    mask: booleans that broadcast to `x`: what they are over.
    force_float32_reductions: whether `dtype` is raised to at least float32.

  Returns:
    Mean and variance, without the axes.
  """
  if dtype is None:
    dtype = jnp.result_type(x)
  if force_float32_reductions:
    # Not float32 itself: wider and complex dtypes stay.
    dtype = jnp.promote_types(dtype, jnp.float32)
  if not isinstance(x, jax.Array):
    x = jnp.asarray(x, dtype)
  elif not _has_dtype(x, dtype):
    x = x.astype(dtype)
  axes = _canonicalize_axes(x.ndim, axes)
  if mask is not None:
    mask = jnp.asarray(mask, dtype=bool)

  if axis_name is None:
    means = functools.partial(_local_means, axes=axes, mask=mask)
  elif mask is None:
    means = functools.partial(
      _mapped_means, axes=axes, over=(axis_name, axis_index_groups)
    )
  else:
    means = functools.partial(
      _masked_mapped_means,
      axes=axes,
      mask=mask,
      over=(axis_name, axis_index_groups),
    )

  if not use_mean:
    (var,) = means(_abs_sq(x))
    return jnp.zeros_like(var), var
  if use_fast_variance:
    mean, mean_sq = means(x, _abs_sq(x))
    # Rounding can take the difference below zero, and its root to NaN.
    return mean, jnp.maximum(0.0, mean_sq - _abs_sq(mean))
  (mean,) = means(x)
  (var,) = means(_abs_sq(x - jnp.expand_dims(mean, axes)))
  return mean, var


def _local_means(
  *xs: Array, axes: tuple[int, ...], mask: Array | None
) -> tuple[Array, ...]:
  """Returns the mean of each array over `axes`."""
  return tuple(x.mean(axes, where=mask) for x in xs)


def _mapped_means(
  *xs: Array, axes: tuple[int, ...], over: tuple[Any, Any]
) -> tuple[Array, ...]:
  """Returns the mean of each array over `axes` and the mapped axis."""
  axis_name, groups = over
  means = _local_means(*xs, axes=axes, mask=None)
  if len(means) == 1:
    return (lax.pmean(means[0], axis_name, axis_index_groups=groups),)
  # As one array they are one message between devices.
  stacked = lax.pmean(
    jnp.stack(means, axis=0), axis_name, axis_index_groups=groups
  )
  return tuple(stacked[i] for i in range(len(means)))


def _masked_mapped_means(
  *xs: Array, axes: tuple[int, ...], mask: Array, over: tuple[Any, Any]
) -> tuple[Array, ...]:
  """Returns the mean of what is unmasked anywhere along the mapped axis.

  The mean of the shards' means would weigh a shard of two elements like one of
  a thousand; so sums and counts are added up apart. Where the count is 0 so is
  the mean.
  """
  axis_name, groups = over
  # Counts above 256 are not exact in bfloat16, nor are sums of that many.
  wide = jnp.promote_types(xs[0].dtype, jnp.float32)
  count_dtype = jnp.finfo(wide).dtype
  count = jnp.broadcast_to(mask, xs[0].shape).sum(axes, dtype=count_dtype)
  sums = [
    x.sum(axes, where=mask, dtype=jnp.promote_types(x.dtype, jnp.float32))
    for x in xs
  ]
  *sums, count = _versions.psum_all(
    (*sums, count), axis_name, axis_index_groups=groups
  )
  count = jnp.maximum(count, 1)
  return tuple(
    (total / count).astype(canonicalize_dtype(x)) for total, x in zip(sums, xs)
  )


def _normalize(
  mdl: Any,
  x: Array,
  mean: Array,
  var: Array,
  reduction_axes: Axes,
  feature_axes: Axes,
  dtype: Dtype | None,
  param_dtype: Dtype,
  epsilon: float,
  use_bias: bool,
  use_scale: bool,
  bias_init: Initializer,
  scale_init: Initializer,
  force_float32_reductions: bool = True,
) -> Array:
  """Normalizes by given statistics, and scales and shifts.

  Args:
    mdl: module that gets the parameters `scale` and `bias`.
    x: array.
    mean: mean, without the reduction axes.
    var: variance, without the reduction axes.
    reduction_axes: axes of `x` that the statistics lack.
    feature_axes: axes of `x` along which the parameters differ.
    dtype: dtype of the result. None: inferred from `x` and the parameters.
    param_dtype: dtype of the parameters.
    epsilon: number added to the variance.
    use_bias: whether there is a bias.
    use_scale: whether there is a scale.
    bias_init: initializer of the bias.
    scale_init: initializer of the scale.
    force_float32_reductions: whether the parameters are used as they are; if
      not, they are cast to `param_dtype`.

  Returns:
    An array of the shape of `x`.
  """
  reduction_axes = _canonicalize_axes(x.ndim, reduction_axes)
  param_shape, broadcast_shape = _feature_shapes(
    x.shape, _canonicalize_axes(x.ndim, feature_axes)
  )

  def parameter(name: str, init: Initializer) -> Array:
    value = mdl.param(name, init, param_shape, param_dtype)
    value = lax.reshape(value, broadcast_shape)
    return (
      value if force_float32_reductions else jnp.asarray(value, param_dtype)
    )

  scale = bias = None
  mean = lax.expand_dims(mean, reduction_axes)
  var = lax.expand_dims(var, reduction_axes)
  y = x - mean
  factor = lax.rsqrt(var + epsilon)
  if use_scale:
    scale = parameter('scale', scale_init)
    factor *= scale
  y *= factor
  if use_bias:
    bias = parameter('bias', bias_init)
    y += bias
  dtype = canonicalize_dtype(x, scale, bias, dtype=dtype)
  return promote_dtype(y, dtype=dtype)[0]


def _canonicalize_axes(rank: int, axes: Axes) -> tuple[int, ...]:
  """Returns axes counted from 0, each once, in ascending order."""
  if not isinstance(axes, Iterable):
    axes = (axes,)
  return tuple({rank + axis if axis < 0 else axis for axis in axes})


def _feature_shapes(
  shape: tuple[int, ...], axes: tuple[int, ...]
) -> tuple[list[int], list[int]]:
  """Returns the shape of `axes`, alone and among axes of size 1."""
  broadcast_shape = [1] * len(shape)
  for ax in axes:
    broadcast_shape[ax] = shape[ax]
  return [shape[ax] for ax in axes], broadcast_shape


def _abs_sq(x: Array) -> Array:
  """Returns |x|^2, real also for complex x."""
  if jnp.iscomplexobj(x):
    return lax.square(lax.real(x)) + lax.square(lax.imag(x))
  return lax.square(x)
