"""Pooling: one number for each window of the input."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from haiku_state.typing import Array


def pool(
  inputs: Array,
  init: Any,
  reduce_fn: Callable[[Any, Any], Any],
  window_shape: tuple[int, ...],
  strides: tuple[int, ...] | None,
  padding: str | Sequence[tuple[int, int]],
) -> Array:
  """Reduces each window of the input to one element.

  The result has a gradient where `jax.lax.reduce_window` has one: with the
  reductions of `avg_pool`, `max_pool` and `min_pool`, and not with any function
  that has a derivative.

  Args:
    inputs: array (*batch, *spatial, features); the batch axes may be none.
    init: element that the reduction of a window starts with.
    reduce_fn: function of two elements, such as `jax.lax.add`.
    window_shape: sizes of the window, one for each spatial axis.
    strides: steps between windows, one for each spatial axis. None: 1.
    padding: `'SAME'`, `'VALID'`, or a pair (before, after) for each spatial
      axis.

  Returns:
    An array (*batch, *places, features).

  Raises:
    AssertionError: if strides or padding do not fit the window.

  >>> import jax.numpy as jnp
  >>> from jax import lax
  >>> pool(jnp.arange(4.0).reshape(4, 1), 0.0, lax.add, (2,), (2,), 'VALID')
  Array([[1.],
         [5.]], dtype=float32)
  """
  rank = len(window_shape)
  n_batch = inputs.ndim - (rank + 1)
  steps = strides or (1,) * rank
  assert rank == len(steps), f'len({window_shape}) must equal len({steps})'
  steps = (1,) * n_batch + steps + (1,)
  dims = (1,) * n_batch + window_shape + (1,)
  if n_batch == 0:
    inputs = inputs[None]
    steps, dims = (1,) + steps, (1,) + dims
  assert inputs.ndim == len(dims), f'len({inputs.shape}) != len({dims})'
  if not isinstance(padding, str):
    pads = tuple(map(tuple, padding))
    assert len(pads) == rank, (
      f'padding {pads} must specify pads for same number of dims as '
      f'window_shape {window_shape}'
    )
    assert all(len(pair) == 2 for pair in pads), (
      f'each entry in padding {pads} must be length 2'
    )
    padding = ((0, 0), *pads, (0, 0))  # type: ignore
  y = lax.reduce_window(inputs, init, reduce_fn, dims, steps, padding)
  return jnp.squeeze(y, axis=0) if n_batch == 0 else y


def avg_pool(
  inputs: Array,
  window_shape: tuple[int, ...],
  strides: tuple[int, ...] | None = None,
  padding: str | Sequence[tuple[int, int]] = 'VALID',
  count_include_pad: bool = True,
) -> Array:
  """Averages each window.

  Args:
    inputs: array (*batch, *spatial, features), floating point.
    window_shape: sizes of the window, one for each spatial axis.
    strides: steps between windows, one for each spatial axis. None: 1.
    padding: `'SAME'`, `'VALID'`, or a pair (before, after) for each spatial
      axis.
    count_include_pad: whether padding counts as elements of value 0. If not,
      the mean is over the elements of the input.

  Returns:
    An array (*batch, *places, features).

  >>> import jax.numpy as jnp
  >>> x = jnp.array([[[2.0], [4.0], [6.0]]])
  >>> avg_pool(x, (2,), padding='SAME').tolist()
  [[[3.0], [5.0], [3.0]]]
  >>> avg_pool(x, (2,), padding='SAME', count_include_pad=False).tolist()
  [[[3.0], [5.0], [6.0]]]
  """
  y = pool(inputs, 0.0, lax.add, window_shape, strides, padding)
  if count_include_pad:
    return y / np.prod(window_shape)
  # How many elements a window has depends on its place only.
  ones_shape = inputs.shape[:-1] + (1,)
  if len(ones_shape) == len(window_shape) + 2:
    ones_shape = (1,) + ones_shape[1:]
  ones = jnp.ones(ones_shape)
  return y / pool(ones, 0.0, lax.add, window_shape, strides, padding)


def max_pool(
  inputs: Array,
  window_shape: tuple[int, ...],
  strides: tuple[int, ...] | None = None,
  padding: str | Sequence[tuple[int, int]] = 'VALID',
) -> Array:
  """Takes the maximum of each window; padding is minus infinity.

  Args:
    inputs: array (*batch, *spatial, features), floating point.
    window_shape: sizes of the window, one for each spatial axis.
    strides: steps between windows, one for each spatial axis. None: 1.
    padding: `'SAME'`, `'VALID'`, or a pair (before, after) for each spatial
      axis.

  Returns:
    An array (*batch, *places, features).

  >>> import jax.numpy as jnp
  >>> max_pool(jnp.array([[[2.0], [4.0], [3.0]]]), (2,)).tolist()
  [[[4.0], [4.0]]]
  """
  return pool(inputs, -jnp.inf, lax.max, window_shape, strides, padding)


def min_pool(
  inputs: Array,
  window_shape: tuple[int, ...],
  strides: tuple[int, ...] | None = None,
  padding: str | Sequence[tuple[int, int]] = 'VALID',
) -> Array:
  """Takes the minimum of each window; padding is infinity.

  Args:
    inputs: array (*batch, *spatial, features), floating point.
    window_shape: sizes of the window, one for each spatial axis.
    strides: steps between windows, one for each spatial axis. None: 1.
    padding: `'SAME'`, `'VALID'`, or a pair (before, after) for each spatial
      axis.

  Returns:
    An array (*batch, *places, features).

  >>> import jax.numpy as jnp
  >>> min_pool(jnp.array([[[2.0], [4.0], [3.0]]]), (2,)).tolist()
  [[[2.0], [3.0]]]
  """
  return pool(inputs, jnp.inf, lax.min, window_shape, strides, padding)
