"""The rule by which a layer picks the dtype that it computes in.

A layer has a `param_dtype`, in which its parameters are stored, and a `dtype`,
in which it computes. Where `dtype` is None the layer computes in the dtype that
`jax.numpy` would promote its inputs and parameters to, raised to at least
float32 if these are all integers.
"""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import ShapedArray

from haiku_state.typing import Dtype

# Floating dtypes that no setting of `jax_enable_x64` changes: strong arrays
# that share one of them are promoted to themselves.
_SETTLED = frozenset(map(jnp.dtype, ('float32', 'bfloat16', 'float16')))


def promote_dtype(
  *args: Any, dtype: Dtype | None = None, inexact: bool = True
) -> list[Any]:
  """Casts the arguments to the one dtype that they are computed in.

  Args:
    *args: arrays, numbers, or None, which stays None.
    dtype: the dtype to cast to. None: inferred, see `canonicalize_dtype`.
    inexact: whether the dtype must be real or complex floating point.

  Returns:
    The list of the arguments, in order, as arrays of that dtype.

  Raises:
    ValueError: if `inexact`, and `dtype` is an integer or boolean dtype.

  >>> import jax.numpy as jnp
  >>> x, w, b = promote_dtype(jnp.ones(2, jnp.bfloat16), jnp.ones(2), None)
  >>> x.dtype, w.dtype, b
  (dtype('float32'), dtype('float32'), None)
  """
  if dtype is None and _shared_dtype(args) is not None:
    return list(args)
  dtype = canonicalize_dtype(*args, dtype=dtype, inexact=inexact)
  return [
    x if x is None or _has_dtype(x, dtype) else jnp.asarray(x, dtype)
    for x in args
  ]


def canonicalize_dtype(
  *args: Any, dtype: Dtype | None = None, inexact: bool = True
) -> Dtype:
  """Settles the dtype of a computation on the arguments.

  Args:
    *args: arrays, numbers, or None, which has no say.
    dtype: the dtype, if it is already decided. None: the promotion of the
      arguments, by the rules of `jax.numpy.result_type`.
    inexact: whether the dtype must be real or complex floating point, as for
      a mean. An inferred integer dtype is then promoted with float32.

  Returns:
    `dtype` itself if it is given, else the inferred dtype.

  Raises:
    ValueError: if `inexact`, and `dtype` is an integer or boolean dtype.

  >>> import jax.numpy as jnp
  >>> canonicalize_dtype(jnp.arange(3))
  dtype('float32')
  >>> canonicalize_dtype(jnp.arange(3), inexact=False)
  dtype('int32')
  """
  if dtype is None:
    shared = _shared_dtype(args)
    if shared is not None:
      return shared
    dtype = jnp.result_type(
      *(
        x if isinstance(x, jax.Array) else jnp.asarray(x)
        for x in args
        if x is not None
      )
    )
    if inexact and not jnp.issubdtype(dtype, jnp.inexact):
      dtype = jnp.promote_types(jnp.float32, dtype)
  if inexact and not jnp.issubdtype(dtype, jnp.inexact):
    raise ValueError(f'Dtype must be inexact: {dtype}')
  return dtype


def _shared_dtype(args: Iterable[Any]) -> Any:
  """Returns the settled dtype of all arrays in `args`, else None.

  It stands in front of the general rule because it is what nearly every call
  of a layer meets, and takes 2 us where promotion and casts take 50.
  """
  shared = None
  for x in args:
    if x is None:
      continue
    # What JAX knows of an array, also of a traced one, is in one attribute.
    aval = getattr(x, 'aval', None)
    if type(aval) is not ShapedArray or aval.weak_type:
      return None
    if shared is None:
      shared = aval.dtype
    elif aval.dtype != shared:
      return None
  return shared if shared in _SETTLED else None


def _has_dtype(x: Any, dtype: Dtype) -> bool:
  """Tells whether a cast of `x` to `dtype` would return `x`."""
  return (
    isinstance(x, jax.Array)
    and x.dtype == dtype
    and x.dtype in _SETTLED
    and not x.weak_type
  )
