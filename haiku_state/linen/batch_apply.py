"""A function of one batch axis, called on arrays that have several."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from haiku_state.typing import Array


class BatchApply:
  """Merges leading axes to one, calls a function, and splits them again.

  So a layer for `(batch, ...)` can be used on `(time, batch, ...)`. An array
  with fewer axes than are merged goes through as it is.

  >>> import jax.numpy as jnp
  >>> def f(x, w):
  ...   assert x.ndim == 2
  ...   return x @ w
  >>> BatchApply(f)(jnp.ones((2, 3, 4)), jnp.ones(4)).shape
  (2, 3)

  Attributes:
    num_dims: number of leading axes that are merged.
  """

  def __init__(self, f: Callable[..., Any], num_dims: int = 2):
    """Wraps a function.

    Args:
      f: the function, or a module; its arguments and results are trees of
        arrays.
      num_dims: number of leading axes to merge.
    """
    self._f = f
    self.num_dims = num_dims

  def __call__(self, *args: Any, **kwargs: Any) -> Any:
    """Calls the function on merged arguments.

    Args:
      *args: positional arguments of the function.
      **kwargs: keyword arguments of the function.

    Returns:
      What the function returns, with the first axis of each array split as the
      leading axes of the first argument that has them.

    Raises:
      ValueError: if no argument has that many axes.
    """
    example = arbitrary_mergeable_leaf(self.num_dims, args, kwargs)
    if example is None:
      raise ValueError(
        f'BatchApply requires at least one input with ndim >= {self.num_dims}.'
      )
    args, kwargs = jax.tree.map(
      lambda x: merge_leading_dims(x, self.num_dims), (args, kwargs)
    )
    leading = example.shape[: self.num_dims]
    return jax.tree.map(
      lambda x: split_leading_dim(x, leading), self._f(*args, **kwargs)
    )


def arbitrary_mergeable_leaf(min_num_dims: int, args: Any, kwargs: Any) -> Any:
  """Returns the first leaf with enough axes, None if there is none.

  Args:
    min_num_dims: number of axes that are enough.
    args: tree of arrays, looked through first.
    kwargs: tree of arrays.

  Returns:
    A leaf of one of the trees, or None.

  >>> import numpy as np
  >>> arbitrary_mergeable_leaf(2, [np.ones(3)], {'x': np.ones((4, 5))}).shape
  (4, 5)
  """
  for leaf in jax.tree.leaves(args) + jax.tree.leaves(kwargs):
    if ndim_at_least(leaf, min_num_dims):
      return leaf
  return None


def ndim_at_least(x: Any, num_dims: int) -> bool:
  """Tells whether `x`, an array or number, has `num_dims` axes or more.

  >>> ndim_at_least(1.0, 0), ndim_at_least(1.0, 1)
  (True, False)
  """
  if not isinstance(x, jax.Array | np.ndarray):
    x = jnp.asarray(x)
  return x.ndim >= num_dims


def merge_leading_dims(x: Any, num_dims: int) -> Any:
  """Makes the first `num_dims` axes one, if `x` has that many.

  >>> import numpy as np
  >>> merge_leading_dims(np.ones((2, 3, 4)), 2).shape
  (6, 4)
  """
  if not ndim_at_least(x, num_dims):
    return x
  return x.reshape((math.prod(x.shape[:num_dims]),) + x.shape[num_dims:])


def split_leading_dim(x: Array, to_dim: tuple[int, ...]) -> Array:
  """Makes the first axis several, of the sizes `to_dim`.

  >>> import numpy as np
  >>> split_leading_dim(np.ones((6, 4)), (2, 3)).shape
  (2, 3, 4)
  """
  return x.reshape(to_dim + x.shape[1:])
