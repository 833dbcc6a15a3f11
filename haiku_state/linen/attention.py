"""Multi-head attention: the functions, the layer, its cache, and masks.

Two functions do the arithmetic, `dot_product_attention_weights` and
`dot_product_attention`; the layer `MultiHeadDotProductAttention` puts
projections, dropout and a decoding cache around them. Shapes are written
`[batch..., length, heads, depth]` throughout; `batch...` may be empty.

Source: Vaswani et al., "Attention Is All You Need" (arXiv:1706.03762).
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from haiku_state.core._fingerprint import is_lasting
from haiku_state.linen import initializers
from haiku_state.linen.dtypes import promote_dtype
from haiku_state.linen.linear import DenseGeneral, default_kernel_init
from haiku_state.linen.module import Module, compact, merge_param
from haiku_state.linen.normalization import LayerNorm
from haiku_state.typing import (
  Array,
  DotGeneralT,
  Dtype,
  Initializer,
  PrecisionLike,
  PRNGKey,
)
from haiku_state.typing import Shape as Shape


def _einsum(precision, dot_general):
  return functools.partial(
    jnp.einsum,
    precision=precision,
    _dot_general=dot_general or lax.dot_general,
  )


def _dropped(weights, rng, rate, broadcast, dtype):
  """Drops weights at `rate` and scales up the rest; [..., q, kv]."""
  shape = weights.shape
  if broadcast:  # One mask for every example and every head.
    shape = (1,) * (weights.ndim - 2) + shape[-2:]
  keep_prob = 1.0 - rate
  keep = jax.random.bernoulli(rng, keep_prob, shape)
  return weights * (keep.astype(dtype) / jnp.asarray(keep_prob, dtype=dtype))


def dot_product_attention_weights(
  query: Array,
  key: Array,
  bias: Array | None = None,
  mask: Array | None = None,
  broadcast_dropout: bool = True,
  dropout_rng: PRNGKey | None = None,
  dropout_rate: float = 0.0,
  deterministic: bool = False,
  dtype: Dtype | None = None,
  precision: PrecisionLike = None,
  module: Module | None = None,
  force_fp32_for_softmax: bool = False,
  einsum_dot_general: Callable[..., Array] | None = None,
  einsum: Callable[..., Array] | None = None,
) -> Array:
  """Computes how much each query attends to each key.

  The weights are `softmax(q . k / sqrt(depth) + bias)` over the keys. Call it
  in place of `dot_product_attention` to look at the weights themselves.

  >>> import jax.numpy as jnp
  >>> import haiku_state.linen as nn
  >>> query, key = jnp.ones((2, 3, 4, 8)), jnp.ones((2, 5, 4, 8))
  >>> weights = nn.dot_product_attention_weights(query, key)
  >>> weights.shape
  (2, 4, 3, 5)

  Args:
    query: `[batch..., q_length, heads, depth]`.
    key: `[batch..., kv_length, heads, depth]`.
    bias: added to the logits; broadcasts to `[batch..., heads, q_length,
      kv_length]`. For relative positions, or a soft mask.
    mask: broadcasts to the same shape; where it is False, the logit becomes the
      lowest finite number of the dtype. A row that is False throughout gives
      equal weights, not NaN.
    broadcast_dropout: whether all examples and heads drop the same weights.
    dropout_rng: the key of the dropout.
    dropout_rate: the probability of dropping a weight, in [0, 1).
    deterministic: whether to leave dropout out.
    dtype: the dtype of the computation; None: that of the inputs.
    precision: as of `jax.lax.Precision`.
    module: where to sow the weights, as `attention_weights` in the
      collection `intermediates`; before dropout. None: nowhere.
    force_fp32_for_softmax: whether the softmax runs in float32, and the weights
      stay float32, when the dtype is a smaller one.
    einsum_dot_general: what the einsum calls in place of `lax.dot_general`.
    einsum: what to call in place of `jnp.einsum`; excludes `precision` and
      `einsum_dot_general`.

  Returns:
    Weights of shape `[batch..., heads, q_length, kv_length]` that sum to one
    over the last axis (before dropout).

  Raises:
    ValueError: if `einsum` comes with `precision` or `einsum_dot_general`.
    AssertionError: if the shapes of query and key do not match.
  """
  if einsum and (precision or einsum_dot_general):
    raise ValueError(
      'precision/einsum_dot_general and einsum are mutually exclusive. Please'
      ' specify only one of them.'
    )
  einsum = einsum or _einsum(precision, einsum_dot_general)

  query, key = promote_dtype(query, key, dtype=dtype)
  dtype = query.dtype
  assert query.ndim == key.ndim, 'q, k must have same rank.'
  assert query.shape[:-3] == key.shape[:-3], 'q, k batch dims must match.'
  assert query.shape[-2] == key.shape[-2], 'q, k num_heads must match.'
  assert query.shape[-1] == key.shape[-1], 'q, k depths must match.'

  query = query / jnp.sqrt(query.shape[-1]).astype(dtype)
  logits = einsum('...qhd,...khd->...hqk', query, key)
  if bias is not None:
    logits = logits + bias
  if mask is not None:
    # A finite number: -inf would turn a fully masked row into NaN.
    logits = jnp.where(mask, logits, jnp.finfo(dtype).min)

  if force_fp32_for_softmax and dtype != jnp.float32:
    weights = jax.nn.softmax(logits.astype(jnp.float32))
  else:
    weights = jax.nn.softmax(logits).astype(dtype)

  if module:
    module.sow('intermediates', 'attention_weights', weights)
  if not deterministic and dropout_rate > 0.0:
    weights = _dropped(
      weights, dropout_rng, dropout_rate, broadcast_dropout, dtype
    )
  return weights


def dot_product_attention(
  query: Array,
  key: Array,
  value: Array,
  bias: Array | None = None,
  mask: Array | None = None,
  broadcast_dropout: bool = True,
  dropout_rng: PRNGKey | None = None,
  dropout_rate: float = 0.0,
  deterministic: bool = False,
  dtype: Dtype | None = None,
  precision: PrecisionLike = None,
  module: Module | None = None,
  force_fp32_for_softmax: bool = False,
  einsum_dot_general: Callable[..., Array] | None = None,
  qk_attn_weights_einsum: Callable[..., Array] | None = None,
  attn_weights_value_einsum: Callable[..., Array] | None = None,
) -> Array:
  """Averages the values, weighted by how well their keys match the query.

  Equation 1 of arXiv:1706.03762, `softmax(Q K^T / sqrt(depth)) V`, per head.

  >>> import jax.numpy as jnp
  >>> import haiku_state.linen as nn
  >>> query, key = jnp.ones((2, 3, 4, 8)), jnp.ones((2, 5, 4, 8))
  >>> value = jnp.ones((2, 5, 4, 6))
  >>> nn.dot_product_attention(query, key, value).shape
  (2, 3, 4, 6)

  Args:
    query: `[batch..., q_length, heads, depth]`.
    key: `[batch..., kv_length, heads, depth]`.
    value: `[batch..., kv_length, heads, v_depth]`.
    bias: added to the logits; broadcasts to `[batch..., heads, q_length,
      kv_length]`.
    mask: broadcasts to the same shape; False: do not attend.
    broadcast_dropout: whether all examples and heads drop the same weights.
    dropout_rng: the key of the dropout.
    dropout_rate: the probability of dropping a weight, in [0, 1).
    deterministic: whether to leave dropout out.
    dtype: the dtype of the computation; None: that of the inputs.
    precision: as of `jax.lax.Precision`.
    module: where to sow the weights, as `attention_weights` in the
      collection `intermediates`. None: nowhere.
    force_fp32_for_softmax: whether the softmax runs in float32 when the dtype
      is a smaller one.
    einsum_dot_general: what the einsums call in place of `lax.dot_general`.
    qk_attn_weights_einsum: what to call in place of `jnp.einsum` for the
      weights, e.g. a quantized one; comes with the next one, and excludes
      `precision` and `einsum_dot_general`.
    attn_weights_value_einsum: likewise for the product of weights and values.

  Returns:
    `[batch..., q_length, heads, v_depth]`.

  Raises:
    ValueError: if only one of the two einsums is given, or they come with
      `precision` or `einsum_dot_general`.
    AssertionError: if the shapes of query, key and value do not match.
  """
  if bool(qk_attn_weights_einsum) != bool(attn_weights_value_einsum):
    raise ValueError(
      'qk_attn_weights_einsum and attn_weights_value_einsum must be specified'
      ' together.'
    )
  if qk_attn_weights_einsum and (precision or einsum_dot_general):
    raise ValueError(
      'precision/einsum_dot_general and'
      ' qk_attn_weights_einsum/attn_weights_value_einsum are mutually'
      ' exclusive. Please specify only one of them.'
    )

  query, key, value = promote_dtype(query, key, value, dtype=dtype)
  dtype = query.dtype
  batch, heads = query.shape[:-3], query.shape[-2]
  assert key.ndim == query.ndim == value.ndim, 'q, k, v must have same rank.'
  assert batch == key.shape[:-3] == value.shape[:-3], (
    'q, k, v batch dims must match.'
  )
  assert heads == key.shape[-2] == value.shape[-2], (
    'q, k, v num_heads must match.'
  )
  assert key.shape[-3] == value.shape[-3], 'k, v lengths must match.'

  weights = dot_product_attention_weights(
    query,
    key,
    bias=bias,
    mask=mask,
    broadcast_dropout=broadcast_dropout,
    dropout_rng=dropout_rng,
    dropout_rate=dropout_rate,
    deterministic=deterministic,
    dtype=dtype,
    precision=precision,
    module=module,
    force_fp32_for_softmax=force_fp32_for_softmax,
    einsum_dot_general=einsum_dot_general,
    einsum=qk_attn_weights_einsum,
  )
  einsum = attn_weights_value_einsum or _einsum(precision, einsum_dot_general)
  return einsum('...hqk,...khd->...qhd', weights, value)


class MultiHeadDotProductAttention(Module):
  """Projects to several heads, attends in each, and projects back.

  The parameters are those of four `DenseGeneral`: `query`, `key` and
  `value` with kernels `[features, heads, depth]`, and `out` with kernel
  `[heads, depth, out_features]`. Source: arXiv:1706.03762, section 3.2.2.

  >>> import jax, jax.numpy as jnp
  >>> import haiku_state.linen as nn
  >>> layer = nn.MultiHeadDotProductAttention(num_heads=8, qkv_features=16)
  >>> q, kv = jnp.ones((4, 3, 5)), jnp.ones((4, 7, 5))
  >>> variables = layer.init(jax.random.key(0), q)
  >>> layer.apply(variables, q).shape  # self-attention
  (4, 3, 5)
  >>> layer.apply(variables, q, kv).shape  # keys and values from elsewhere
  (4, 3, 5)
  >>> variables['params']['query']['kernel'].shape
  (5, 8, 2)

  Dropout draws from the stream `dropout`, once per layer, or from the key
  that the call is given:

  >>> layer = nn.MultiHeadDotProductAttention(
  ...   num_heads=8, qkv_features=16, dropout_rate=0.5, deterministic=False
  ... )
  >>> first = layer.apply(variables, q, rngs={'dropout': jax.random.key(1)})
  >>> second = layer.apply(variables, q, dropout_rng=jax.random.key(1))

  With `decode=True` the layer remembers keys and values in the collection
  `cache`: `init` with inputs of the full length makes room, then each apply
  takes one position (length 1) and attends to all positions so far:

  >>> layer = nn.MultiHeadDotProductAttention(num_heads=2, decode=True)
  >>> x = jax.random.normal(jax.random.key(0), (1, 5, 4))
  >>> variables = layer.init(jax.random.key(1), x)
  >>> for t in range(5):
  ...   y, cache = layer.apply(variables, x[:, t : t + 1], mutable=['cache'])
  ...   variables = {**variables, **cache}
  >>> y.shape, int(variables['cache']['cache_index'])
  ((1, 1, 4), 5)

  Attributes:
    num_heads: the number of heads; divides `qkv_features`.
    dtype: the dtype of the computation; None: inferred from inputs and
      parameters.
    param_dtype: the dtype of the parameters.
    qkv_features: the features of query, key and value, over all heads; None:
      the features of the input.
    out_features: the features of the output; None: those of the input.
    broadcast_dropout: whether all examples and heads drop the same weights.
    dropout_rate: the probability of dropping an attention weight.
    deterministic: whether to leave dropout out; here or in the call.
    precision: as of `jax.lax.Precision`.
    kernel_init: the initializer of all kernels.
    out_kernel_init: that of the output's kernel, where it is another one.
    bias_init: the initializer of all biases.
    out_bias_init: that of the output's bias, where it is another one.
    use_bias: whether the projections have biases.
    attention_fn: `dot_product_attention`, or a function that takes query, key
      and value of shape `[batch..., length, heads, depth]` and returns as
      `dot_product_attention` does. Of its keyword arguments it gets those that
      its signature names.
    decode: whether to keep the cache.
    normalize_qk: whether to normalize queries and keys with a `LayerNorm`
      each, `query_ln` and `key_ln` (arXiv:2302.05442, section 2).
    force_fp32_for_softmax: whether the softmax runs in float32.
    qkv_dot_general: what query, key and value call in place of
      `lax.dot_general`; deprecated, like the next one.
    out_dot_general: likewise for the output.
    qkv_dot_general_cls: what makes that function, e.g. `nn.Fp8DotGeneralOp`.
    out_dot_general_cls: likewise for the output.
    qk_attn_weights_einsum_cls: what makes the einsum of the weights.
    attn_weights_value_einsum_cls: what makes that of weights and values.
  """

  num_heads: int
  dtype: Dtype | None = None
  param_dtype: Dtype = jnp.float32
  qkv_features: int | None = None
  out_features: int | None = None
  broadcast_dropout: bool = True
  dropout_rate: float = 0.0
  deterministic: bool | None = None
  precision: PrecisionLike = None
  kernel_init: Initializer = default_kernel_init
  out_kernel_init: Initializer | None = None
  bias_init: Initializer = initializers.zeros_init()
  out_bias_init: Initializer | None = None
  use_bias: bool = True
  attention_fn: Callable[..., Array] = dot_product_attention
  decode: bool = False
  normalize_qk: bool = False
  force_fp32_for_softmax: bool = False
  qkv_dot_general: DotGeneralT | None = None
  out_dot_general: DotGeneralT | None = None
  qkv_dot_general_cls: Any = None
  out_dot_general_cls: Any = None
  qk_attn_weights_einsum_cls: Callable[..., Callable[..., Array]] | None = None
  attn_weights_value_einsum_cls: Callable[..., Callable[..., Array]] | None = (
    None
  )

  @compact
  def __call__(
    self,
    inputs_q: Array,
    inputs_k: Array | None = None,
    inputs_v: Array | None = None,
    *,
    inputs_kv: Array | None = None,
    mask: Array | None = None,
    deterministic: bool | None = None,
    dropout_rng: PRNGKey | None = None,
    sow_weights: bool = False,
  ) -> Array:
    """Attends from `inputs_q` to `inputs_k`.

    Args:
      inputs_q: `[batch..., q_length, features]`.
      inputs_k: `[batch..., kv_length, features]`; None: `inputs_q`.
      inputs_v: `[batch..., kv_length, features]`; None: `inputs_k`.
      inputs_kv: both of them at once; deprecated.
      mask: broadcasts to `[batch..., heads, q_length, kv_length]`; False: do
        not attend.
      deterministic: whether to leave dropout out; here or as attribute.
      dropout_rng: the key of the dropout; None: from the stream `dropout`.
      sow_weights: whether to sow the weights as `attention_weights` into the
        collection `intermediates`, which must be mutable to be returned.

    Returns:
      `[batch..., q_length, out_features]`.

    Raises:
      ValueError: if the inputs contradict each other, or one query does not
        fit the cache.
      AssertionError: if the heads do not divide the features.
    """
    inputs_k, inputs_v = _keys_and_values(
      inputs_q, inputs_k, inputs_v, inputs_kv
    )
    qkv_features = self.qkv_features or inputs_q.shape[-1]
    assert qkv_features % self.num_heads == 0, (
      f'Memory dimension ({qkv_features}) must be divisible by number of'
      f' heads ({self.num_heads}).'
    )
    common: dict[str, Any] = dict(
      use_bias=self.use_bias,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      precision=self.precision,
    )
    project = functools.partial(
      DenseGeneral,
      features=(self.num_heads, qkv_features // self.num_heads),
      axis=-1,
      kernel_init=self.kernel_init,
      bias_init=self.bias_init,
      dot_general=self.qkv_dot_general,
      dot_general_cls=self.qkv_dot_general_cls,
      **common,
    )
    query = project(name='query')(inputs_q)
    key = project(name='key')(inputs_k)
    value = project(name='value')(inputs_v)

    if self.normalize_qk:
      normalize = functools.partial(
        LayerNorm,
        use_bias=False,
        dtype=self.dtype,
        param_dtype=self.param_dtype,
      )
      query = normalize(name='query_ln')(query)
      key = normalize(name='key_ln')(key)

    if self.decode:
      key, value, mask = _through_cache(self, query, key, value, mask)

    # `deterministic` need not be given where nothing is dropped.
    if self.dropout_rate > 0.0:
      deterministic = merge_param(
        'deterministic', self.deterministic, deterministic
      )
      if not deterministic and dropout_rng is None:
        dropout_rng = self.make_rng('dropout')
    else:
      deterministic = True

    options = dict(
      mask=mask,
      dropout_rng=dropout_rng,
      dropout_rate=self.dropout_rate,
      broadcast_dropout=self.broadcast_dropout,
      deterministic=deterministic,
      dtype=self.dtype,
      precision=self.precision,
      force_fp32_for_softmax=self.force_fp32_for_softmax,
      qk_attn_weights_einsum=_made(self.qk_attn_weights_einsum_cls),
      attn_weights_value_einsum=_made(self.attn_weights_value_einsum_cls),
    )
    options = _understood(self.attention_fn, options)
    if sow_weights:
      options['module'] = self
    x = self.attention_fn(query, key, value, **options)

    return DenseGeneral(
      features=self.out_features or inputs_q.shape[-1],
      axis=(-2, -1),
      kernel_init=self.out_kernel_init or self.kernel_init,
      bias_init=self.out_bias_init or self.bias_init,
      dot_general=self.out_dot_general,
      dot_general_cls=self.out_dot_general_cls,
      name='out',
      **common,
    )(x)


def _keys_and_values(inputs_q, inputs_k, inputs_v, inputs_kv):
  """Fills in the inputs that were left out, and warns of old spellings."""
  if inputs_kv is not None:
    if inputs_k is not None or inputs_v is not None:
      raise ValueError(
        'If either `inputs_k` or `inputs_v` is not None, '
        '`inputs_kv` must be None. If `inputs_kv` is not None, both `inputs_k` '
        'and `inputs_v` must be None. We recommend using `inputs_k` and '
        '`inputs_v` args, since `inputs_kv` will be deprecated soon. See '
        'https://github.com/google/flax/discussions/3389 for more '
        'information.'
      )
    warnings.warn(
      'The inputs_kv arg will be deprecated soon. '
      'Use inputs_k and inputs_v instead. See '
      'https://github.com/google/flax/discussions/3389 '
      'for more information.',
      DeprecationWarning,
      stacklevel=2,
    )
    return inputs_kv, inputs_kv

  if inputs_k is None:
    if inputs_v is not None:
      raise ValueError(
        '`inputs_k` cannot be None if `inputs_v` is not None. '
        'To have both `inputs_k` and `inputs_v` be the same value, pass in the '
        'value to `inputs_k` and leave `inputs_v` as None.'
      )
    inputs_k = inputs_q
  if inputs_v is None:
    return inputs_k, inputs_k
  if inputs_v.shape[-1] == inputs_v.shape[-2]:
    # Once, the third positional argument was the mask.
    warnings.warn(
      f'You are passing an array of shape {inputs_v.shape} '
      'to the `inputs_v` arg, when you may have intended '
      'to pass it to the `mask` arg. As of Flax version '
      '0.7.4, the function signature of '
      "MultiHeadDotProductAttention's `__call__` method "
      'has changed to `__call__(inputs_q, inputs_k=None, '
      'inputs_v=None, *, inputs_kv=None, mask=None, '
      'deterministic=None)`. Use the kwarg `mask` instead. '
      'See https://github.com/google/flax/discussions/3389 '
      'and read the docstring for more information.',
      DeprecationWarning,
      stacklevel=2,
    )
  return inputs_k, inputs_v


def _through_cache(module, query, key, value, mask):
  """Writes one position into the cache; returns all of it and its mask.

  The run that makes the cache (its inputs have the full length) passes
  everything through as it is.
  """
  exists = module.has_variable('cache', 'cached_key')
  keys = module.variable('cache', 'cached_key', jnp.zeros, key.shape, key.dtype)
  values = module.variable(
    'cache', 'cached_value', jnp.zeros, value.shape, value.dtype
  )
  index = module.variable(
    'cache', 'cache_index', lambda: jnp.array(0, dtype=jnp.int32)
  )
  if not exists:
    return key, value, mask

  *batch, max_length, heads, depth = keys.value.shape
  expected = (*batch, 1, heads, depth)
  if expected != query.shape:
    raise ValueError(
      'Autoregressive cache shape error, '
      f'expected query shape {expected} instead got {query.shape}.'
    )
  now = index.value
  zero = jnp.array(0, dtype=now.dtype)
  start = (zero,) * len(batch) + (now, zero, zero)
  keys.value = lax.dynamic_update_slice(keys.value, key, start)
  values.value = lax.dynamic_update_slice(values.value, value, start)
  index.value = index.value + 1
  # What lies beyond the present position is still zeros.
  past = jnp.broadcast_to(
    jnp.arange(max_length) <= now, (*batch, 1, 1, max_length)
  )
  return keys.value, values.value, combine_masks(mask, past)


def _made(factory):
  return factory() if factory else None


def _understood(function, options):
  """Selects the options that the signature of `function` names."""
  names = _parameters(function)
  return {name: value for name, value in options.items() if name in names}


def _parameters(function) -> frozenset[str]:
  """Returns the names of the parameters of a function."""
  if is_lasting(function):
    return _kept_parameters(function)
  return _kept_parameters.__wrapped__(function)


@functools.cache
def _kept_parameters(function) -> frozenset[str]:
  return frozenset(inspect.signature(function).parameters)


class MultiHeadAttention(MultiHeadDotProductAttention):
  """Is `MultiHeadDotProductAttention` under a shorter name.

  A layer without a name of its own is called `MultiHeadAttention_0` instead
  of `MultiHeadDotProductAttention_0`, so checkpoints, and the keys that are
  derived from the path, differ between the two.

  >>> import jax, jax.numpy as jnp
  >>> import haiku_state.linen as nn
  >>> layer = nn.MultiHeadAttention(num_heads=2)
  >>> x = jnp.ones((1, 3, 4))
  >>> y, variables = layer.init_with_output(jax.random.key(0), x)
  >>> y.shape
  (1, 3, 4)

  Attributes: those of `MultiHeadDotProductAttention`.
  """


class SelfAttention(MultiHeadDotProductAttention):
  """Attends from a sequence to itself; deprecated.

  Write `MultiHeadDotProductAttention(...)(inputs_q)` instead.

  >>> import warnings
  >>> import jax, jax.numpy as jnp
  >>> import haiku_state.linen as nn
  >>> layer, x = nn.SelfAttention(num_heads=2), jnp.ones((1, 3, 4))
  >>> with warnings.catch_warnings():
  ...   warnings.simplefilter('ignore', DeprecationWarning)
  ...   y, variables = layer.init_with_output(jax.random.key(0), x)
  >>> y.shape
  (1, 3, 4)

  Attributes: those of `MultiHeadDotProductAttention`.
  """

  @compact
  def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
    self,
    inputs_q: Array,
    mask: Array | None = None,
    deterministic: bool | None = None,
    dropout_rng: PRNGKey | None = None,
    sow_weights: bool = False,
  ) -> Array:
    """Attends from `inputs_q` to itself.

    Args:
      inputs_q: `[batch..., length, features]`.
      mask: broadcasts to `[batch..., heads, length, length]`; False: do not
        attend.
      deterministic: whether to leave dropout out; here or as attribute.
      dropout_rng: the key of the dropout; None: from the stream `dropout`.
      sow_weights: whether to sow the weights into `intermediates`.

    Returns:
      `[batch..., length, out_features]`.
    """
    warnings.warn(
      'SelfAttention will be deprecated soon. Use '
      '`MultiHeadDotProductAttention.__call__(inputs_q)` instead. '
      'See https://github.com/google/flax/discussions/3389 '
      'for more information.',
      DeprecationWarning,
      stacklevel=2,
    )
    return super().__call__(
      inputs_q,
      mask=mask,
      deterministic=deterministic,
      dropout_rng=dropout_rng,
      sow_weights=sow_weights,
    )


def make_attention_mask(
  query_input: Array,
  key_input: Array,
  pairwise_fn: Callable[..., Any] = jnp.multiply,
  extra_batch_dims: int = 0,
  dtype: Dtype = jnp.float32,
) -> Array:
  """Makes a mask from a property of each query and of each key.

  >>> import jax.numpy as jnp
  >>> import haiku_state.linen as nn
  >>> tokens = jnp.array([[7, 8, 0]])  # zero is padding
  >>> mask = nn.make_attention_mask(tokens > 0, tokens > 0)
  >>> print(mask[0, 0].astype(int))
  [[1 1 0]
   [1 1 0]
   [0 0 0]]

  Args:
    query_input: `[batch..., q_length]`.
    key_input: `[batch..., kv_length]`.
    pairwise_fn: takes the two, broadcast against each other, and says which
      pairs may attend.
    extra_batch_dims: how many axes of size one to put in front.
    dtype: the dtype of the mask.

  Returns:
    `[batch..., 1, q_length, kv_length]`, the 1 standing for the heads.
  """
  mask = pairwise_fn(
    jnp.expand_dims(query_input, axis=-1), jnp.expand_dims(key_input, axis=-2)
  )
  mask = jnp.expand_dims(mask, axis=-3)
  mask = jnp.expand_dims(mask, axis=tuple(range(extra_batch_dims)))
  return mask.astype(dtype)


def make_causal_mask(
  x: Array, extra_batch_dims: int = 0, dtype: Dtype = jnp.float32
) -> Array:
  """Makes a mask in which each position sees itself and what came before.

  >>> import jax.numpy as jnp
  >>> import haiku_state.linen as nn
  >>> print(nn.make_causal_mask(jnp.ones((1, 3)))[0, 0].astype(int))
  [[1 0 0]
   [1 1 0]
   [1 1 1]]

  Args:
    x: `[batch..., length]`; only its shape matters.
    extra_batch_dims: how many axes of size one to put in front.
    dtype: the dtype of the mask.

  Returns:
    `[batch..., 1, length, length]`, the 1 standing for the heads.
  """
  positions = jnp.broadcast_to(
    jnp.arange(x.shape[-1], dtype=jnp.int32), x.shape
  )
  return make_attention_mask(
    positions,
    positions,
    jnp.greater_equal,
    extra_batch_dims=extra_batch_dims,
    dtype=dtype,
  )


def combine_masks(
  *masks: Array | None, dtype: Dtype = jnp.float32
) -> Array | None:
  """Lets a pair attend where all of the masks let it.

  >>> import jax.numpy as jnp
  >>> import haiku_state.linen as nn
  >>> tokens = jnp.array([[7, 8, 0]])
  >>> padding = nn.make_attention_mask(tokens > 0, tokens > 0)
  >>> mask = nn.combine_masks(padding, nn.make_causal_mask(tokens), None)
  >>> print(mask[0, 0].astype(int))
  [[1 0 0]
   [1 1 0]
   [0 0 0]]

  Args:
    *masks: masks of one rank; None is left out.
    dtype: the dtype of the result.

  Returns:
    Their conjunction, broadcast; None if there is none.

  Raises:
    AssertionError: if the ranks differ.
  """
  given = [mask for mask in masks if mask is not None]
  if not given:
    return None
  ranks = tuple(mask.ndim for mask in given)
  assert len(set(ranks)) == 1, f'masks must have same rank: {ranks}'
  return functools.reduce(jnp.logical_and, given).astype(dtype)
