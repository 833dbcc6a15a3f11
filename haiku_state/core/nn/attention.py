"""Dot-product attention as functions of a scope.

Attention may be over several axes of space: an array is (batch, *space, heads,
depth), and all places of `space` attend to all.

Source: Vaswani et al., "Attention Is All You Need" (arXiv:1706.03762).
"""

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random

from haiku_state import struct
from haiku_state.core.nn.linear import default_kernel_init, dense_general
from haiku_state.core.scope import Scope
from haiku_state.linen import initializers
from haiku_state.typing import (
  Array,
  Dtype,
  Initializer,
  PrecisionLike,
  PRNGKey,
)


def dot_product_attention(
  scope: Scope,
  query: Array,
  key: Array,
  value: Array,
  dtype: Dtype = jnp.float32,
  bias: Array | None = None,
  axis: int | Iterable[int] | None = None,
  broadcast_dropout: bool = True,
  dropout_rng: PRNGKey | None = None,
  dropout_rate: float = 0.0,
  deterministic: bool = False,
  precision: PrecisionLike = None,
) -> Array:
  """Averages values by how much their keys are like the queries.

  Args:
    scope: has the stream `dropout`, if that is needed.
    query: array (batch, *space, heads, depth).
    key: array (batch, *space, heads, depth).
    value: array (batch, *space, heads, value depth).
    dtype: dtype of the weights.
    bias: array to add to the logits, for masks.
    axis: the axes of space to attend over. None: all.
    broadcast_dropout: whether one mask serves for all examples and heads.
    dropout_rng: the key to drop weights with. None: one from the stream.
    dropout_rate: probability with which a weight becomes zero.
    deterministic: whether no weight is dropped.
    precision: of the products, see `jax.lax.Precision`.

  Returns:
    An array (batch, *space, heads, value depth).

  Raises:
    ValueError: if an axis is none of space.

  >>> import jax.numpy as jnp
  >>> from haiku_state.core import apply, nn
  >>> q = jnp.ones((1, 5, 2, 3))
  >>> apply(nn.dot_product_attention)({}, q, q, q).shape
  (1, 5, 2, 3)
  """
  assert key.shape[:-1] == value.shape[:-1], (key.shape, value.shape)
  assert query.shape[0] == key.shape[0], (query.shape, key.shape)
  assert query.shape[-1] == key.shape[-1], (query.shape, key.shape)
  assert query.ndim == key.ndim == value.ndim
  n = key.ndim
  axes = _checked_axes(axis, n)
  batch = tuple(i for i in range(n - 1) if i not in axes)
  to_front = (*batch, *axes, n - 1)
  query, key = query.transpose(to_front), key.transpose(to_front)
  value = value.transpose((*batch, n - 1, *axes))
  batch_dims = tuple(range(len(batch)))

  query = query / jnp.sqrt(query.shape[-1]).astype(dtype)
  logits = lax.dot_general(
    query,
    key,
    (((n - 1,), (n - 1,)), (batch_dims, batch_dims)),
    precision=precision,
  )
  if bias is not None:
    logits = logits + bias
  places = tuple(range(logits.ndim - len(axes), logits.ndim))
  total = jax.scipy.special.logsumexp(logits, axis=places, keepdims=True)
  weights = lax.exp(logits - total).astype(dtype)
  if not deterministic and dropout_rate > 0.0:
    if dropout_rng is None:
      dropout_rng = scope.make_rng('dropout')
    shape = weights.shape
    if broadcast_dropout:
      shape = (1,) * len(batch) + shape[-2 * len(axes) :]
    keep_prob = 1.0 - dropout_rate
    keep = random.bernoulli(dropout_rng, keep_prob, shape)
    weights = weights * (
      keep.astype(weights.dtype) / jnp.asarray(keep_prob, dtype)
    )
  y = lax.dot_general(
    weights,
    value,
    ((places, tuple(range(n - len(axes), n))), (batch_dims, batch_dims)),
    precision=precision,
  )
  return y.transpose(np.argsort(to_front))


def _checked_axes(axis: Any, ndim: int) -> tuple[int, ...]:
  """Returns the axes of space, all of them for None.

  Raises:
    ValueError: one is that of the batch, the heads or the depth.
  """
  if axis is None:
    axis = range(1, ndim - 2)
  axes = tuple(axis) if isinstance(axis, Iterable) else (axis,)
  if not all(1 <= ax < ndim - 2 for ax in axes):
    raise ValueError(
      'Attention axis must be between the batch axis and the last-two axes: it'
      f' is {axes}, of {ndim} axes.'
    )
  return axes


class CacheEntry(struct.PyTreeNode):
  """Keys and values of the steps so far, for decoding step by step.

  Attributes:
    key: array (batch, *space, heads, depth).
    value: array of the same shape.
    i: how many steps there were.
  """

  key: Array
  value: Array
  i: Array


def multi_head_dot_product_attention(
  scope: Scope,
  inputs_q: Array,
  inputs_kv: Array | None,
  num_heads: int,
  dtype: Dtype = jnp.float32,
  qkv_features: int | None = None,
  out_features: int | None = None,
  attention_axis: tuple[int, ...] | None = None,
  causal_mask: bool = False,
  padding_mask: Array | None = None,
  key_padding_mask: Array | None = None,
  segmentation: Array | None = None,
  key_segmentation: Array | None = None,
  cache: bool = False,
  broadcast_dropout: bool = True,
  dropout_rng: PRNGKey | None = None,
  dropout_rate: float = 0.0,
  deterministic: bool = False,
  precision: PrecisionLike = None,
  kernel_init: Initializer = default_kernel_init,
  bias_init: Initializer = initializers.zeros_init(),
  bias: bool = True,
  attention_fn: Callable[..., Array] = dot_product_attention,
) -> Array:
  """Applies attention with several heads, between two linear maps.

  Args:
    scope: where `query`, `key`, `value` and `out` are.
    inputs_q: array (batch, *space, features).
    inputs_kv: array (batch, *space, features). None: `inputs_q`.
    num_heads: how many heads share the features.
    dtype: dtype of the computation.
    qkv_features: features of all heads together. None: those of the input.
    out_features: features of the result. None: those of the input.
    attention_axis: the axes of space to attend over. None: all.
    causal_mask: whether no place sees a later one.
    padding_mask: array (batch, *space, 1), 0 for queries that are padding.
    key_padding_mask: the same for keys. None: `padding_mask`.
    segmentation: array (batch, *space, 1): only places of the same segment see
      each other.
    key_segmentation: the same for keys. None: `segmentation`.
    cache: whether the variable `entry` of the collection `cache` holds the
      steps so far, and the input is one more. Before the first step it is a
      function, which makes the cache from (batch, *space).
    broadcast_dropout: whether one mask serves for all examples and heads.
    dropout_rng: the key to drop weights with. None: one from the stream.
    dropout_rate: probability with which a weight becomes zero.
    deterministic: whether no weight is dropped.
    precision: of the products, see `jax.lax.Precision`.
    kernel_init: initializer of the kernels.
    bias_init: initializer of the biases.
    bias: whether there are biases.
    attention_fn: computes the attention, as `dot_product_attention` does.

  Returns:
    An array (batch, *space, out features).

  Raises:
    ValueError: if the input does not fit the cache, or the cache is none.

  >>> import jax, jax.numpy as jnp
  >>> from haiku_state.core import init, nn
  >>> attend = init(nn.multi_head_dot_product_attention)
  >>> x = jnp.ones((1, 5, 6))
  >>> y, variables = attend(jax.random.key(0), x, None, num_heads=2)
  >>> y.shape, variables['params']['query']['kernel'].shape
  ((1, 5, 6), (6, 2, 3))
  """
  assert causal_mask or not cache, (
    'Caching is only support for causal attention.'
  )
  if inputs_kv is None:
    inputs_kv = inputs_q
  if attention_axis is None:
    attention_axis = tuple(range(1, inputs_q.ndim - 1))
  width: int = qkv_features or inputs_q.shape[-1]
  assert width % num_heads == 0, (
    'Memory dimension must be divisible by number of heads.'
  )

  dense = functools.partial(
    dense_general,
    dtype=dtype,
    kernel_init=kernel_init,
    bias_init=bias_init,
    bias=bias,
    precision=precision,
  )
  heads = (num_heads, width // num_heads)
  query = scope.child(dense, 'query')(inputs_q, heads)
  key = scope.child(dense, 'key')(inputs_kv, heads)
  value = scope.child(dense, 'value')(inputs_kv, heads)
  entry = None
  if cache:
    entry = _next_entry(scope, key, value, inputs_q.shape, attention_axis)
  if entry is not None:
    key, value = entry.key, entry.value
    seen = jnp.arange(key.shape[1]) < entry.i
    seen = jnp.broadcast_to(seen, key.shape[:2]).astype(jnp.float32)
    key_padding_mask = seen[..., None]

  masks = []
  if causal_mask and entry is not None:
    shape = tuple(key.shape[ax] for ax in attention_axis)
    mask = jnp.arange(math.prod(shape), dtype=jnp.uint32) < entry.i
    masks.append(mask.reshape((1,) * (key.ndim - 1) + shape))
  elif causal_mask:
    masks.append(_make_causal_mask(key, attention_axis))
  for mine, others, is_segments in (
    (padding_mask, key_padding_mask, False),
    (segmentation, key_segmentation, True),
  ):
    if mine is not None:
      others = mine if others is None else others
      masks.append(
        make_padding_mask(
          mine, others, query.shape, key.shape, attention_axis, is_segments
        )
      )

  x = scope.child(attention_fn)(
    query,
    key,
    value,
    dtype=dtype,
    axis=attention_axis,
    bias=_as_bias(masks, dtype),
    precision=precision,
    dropout_rng=dropout_rng,
    dropout_rate=dropout_rate,
    broadcast_dropout=broadcast_dropout,
    deterministic=deterministic,
  )
  return scope.child(dense, 'out')(
    x, out_features or inputs_q.shape[-1], axis=(-2, -1)
  )


def _as_bias(masks: list[Array], dtype: Dtype) -> Array | None:
  """Returns what to add to logits, so that only what all masks allow counts."""
  if not masks:
    return None
  mask = functools.reduce(jnp.logical_and, masks)
  return lax.select(
    mask > 0,
    jnp.full(mask.shape, 0.0).astype(dtype),
    jnp.full(mask.shape, -1e10).astype(dtype),
  )


def _next_entry(
  scope: Scope,
  key: Array,
  value: Array,
  inputs_shape: tuple[int, ...],
  axes: tuple[int, ...],
) -> CacheEntry | None:
  """Puts one more step into the cache of the scope, and returns it.

  Before the first step it puts the function there that makes the cache, and
  returns None.
  """
  if not scope.has_variable('cache', 'entry'):
    make = functools.partial(_empty_entry, key.ndim, key.shape[-2:])
    scope.put_variable('cache', 'entry', make)
    return None
  entry = scope.get_variable('cache', 'entry')
  if not isinstance(entry, CacheEntry):
    raise ValueError(
      'Cache is not initialized. Call the function `entry` of the collection'
      ' `cache` with (batch, *space), and pass what it returns in its place.'
    )
  shape = entry.key.shape
  expected = tuple(1 if i in axes else n for i, n in enumerate(shape[:-2]))
  if expected + inputs_shape[-1:] != inputs_shape:
    raise ValueError(
      'Invalid shape provided, expected shape'
      f' {expected + inputs_shape[-1:]} instead got {inputs_shape}.'
    )
  place: list[Any] = [0] * len(shape)
  rest: Any = entry.i.astype(jnp.int32)
  size = math.prod(shape[ax] for ax in axes)
  for ax in axes:
    size //= shape[ax]
    place[ax] = rest // size
    rest = rest % size
  entry = entry.replace(
    key=lax.dynamic_update_slice(entry.key, key, place),
    value=lax.dynamic_update_slice(entry.value, value, place),
    i=entry.i + jnp.array(1, jnp.uint32),
  )
  scope.put_variable('cache', 'entry', entry)
  return entry


def _empty_entry(
  ndim: int,
  depths: tuple[int, ...],
  shape: tuple[int, ...],
  dtype: Dtype = jnp.float32,
) -> CacheEntry:
  """Returns a cache for (batch, *space)."""
  full = shape + depths
  if len(full) != ndim:
    raise ValueError(
      'Shape should be a tuple with the shape of the batch and attention dims,'
      f' {ndim - len(depths)} numbers: it is {shape}.'
    )
  return CacheEntry(
    key=jnp.zeros(full, dtype),
    value=jnp.zeros(full, dtype),
    i=jnp.zeros((), jnp.uint32),
  )


def make_padding_mask(
  padding_mask_query: Array,
  padding_mask_key: Array,
  query_shape: tuple[int, ...],
  key_shape: tuple[int, ...],
  attention_axis: tuple[int, ...] | None = None,
  segmentation_mask: bool = False,
) -> Array:
  """Returns which query may see which key, from what is known of each.

  Args:
    padding_mask_query: array (batch, *space, 1).
    padding_mask_key: array (batch, *space, 1).
    query_shape: shape of the queries, (batch, *space, heads, depth).
    key_shape: shape of the keys.
    attention_axis: the axes of space to attend over. None: all.
    segmentation_mask: whether the two must be equal; otherwise they are
      multiplied.

  Returns:
    An array (batch, 1, *query space, *key space), float32.

  >>> import jax.numpy as jnp
  >>> from haiku_state.core.nn import attention
  >>> padding = jnp.array([1.0, 0.0]).reshape(1, 2, 1)
  >>> shape = (1, 2, 1, 4)
  >>> attention.make_padding_mask(padding, padding, shape, shape).tolist()
  [[[[1.0, 0.0], [0.0, 0.0]]]]
  """
  assert query_shape[0] == key_shape[0], (query_shape, key_shape)
  assert len(query_shape) == len(key_shape), (query_shape, key_shape)
  axes = _checked_axes(attention_axis, len(key_shape))
  shape = (query_shape[0], 1)
  shape += tuple(query_shape[ax] for ax in axes)
  shape += tuple(key_shape[ax] for ax in axes)
  query, key = padding_mask_query[..., None], padding_mask_key[..., None]
  key = key.transpose((0, *reversed(range(1, key.ndim))))
  combine = jnp.equal if segmentation_mask else jnp.multiply
  return combine(query, key).reshape(shape).astype(jnp.float32)


def _make_causal_mask(key: Array, axes: tuple[int, ...]) -> Array:
  """Returns which place may see which, (1, 1, *space, *space)."""
  lengths = tuple(key.shape[ax] for ax in axes)
  place = jnp.arange(math.prod(lengths), dtype=jnp.int32)
  mask = place[:, None] >= place[None, :]
  return mask.reshape((1,) * (key.ndim - len(axes) - 1) + lengths + lengths)
