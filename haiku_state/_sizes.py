"""The size of trees of arrays."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from haiku_state.typing import ShapeDtype, has_shape_dtype


@dataclasses.dataclass(frozen=True, slots=True)
class SizeBytes:
  """Counts elements and bytes, and adds up.

  Attributes:
    size: the number of elements.
    bytes: the memory that they take, in bytes.

  Example:
    >>> import jax.numpy as jnp
    >>> from haiku_state.typing import SizeBytes
    >>> SizeBytes.from_any({'w': jnp.ones((10, 30)), 'b': jnp.ones(30)})
    330 (1.3 KB)
  """

  __module__ = 'haiku_state.typing'  # Where programs find it.

  size: int
  bytes: int

  @classmethod
  def from_array(cls, x: ShapeDtype):
    """Counts one array."""
    size = math.prod(x.shape)
    # Some dtypes, such as those of typed keys, are none of numpy's.
    dtype = jnp.dtype(x.dtype) if isinstance(x.dtype, str) else x.dtype
    return cls(size, size * dtype.itemsize)  # type: ignore[union-attr]

  @classmethod
  def from_any(cls, x):
    """Counts the arrays among the leaves of a tree."""
    arrays = filter(has_shape_dtype, jax.tree.leaves(x))
    return sum(map(cls.from_array, arrays), cls(0, 0))

  def __add__(self, other: SizeBytes):
    return type(self)(self.size + other.size, self.bytes + other.bytes)

  def __bool__(self) -> bool:
    return bool(self.size)

  def __repr__(self) -> str:
    return f'{self.size:,} ({_in_units(self.bytes)})'


def _in_units(num_bytes):
  for factor, unit in ((1e9, 'GB'), (1e6, 'MB'), (1e3, 'KB')):
    if num_bytes > factor:
      return f'{num_bytes / factor:,.1f} {unit}'
  return f'{num_bytes:,} B'
