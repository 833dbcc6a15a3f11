"""Arguments that may be given to the constructor or to the call."""

from __future__ import annotations

from typing import TypeVar

T = TypeVar('T')


def merge_param(name: str, a: T | None, b: T | None) -> T:
  """Returns the one of two values that is given: a field or an argument.

  >>> import haiku_state.linen as nn
  >>> nn.merge_param('train', None, True)
  True

  Args:
    name: what it is, for the error.
    a: the value of the constructor, or None.
    b: the value of the call, or None.

  Raises:
    ValueError: both are given, or neither.
  """
  if a is not None and b is not None:
    raise ValueError(
      f'Parameter "{name}" was passed to the constructor and at call time.'
      ' Should be passed just once.'
    )
  if a is not None:
    return a
  if b is not None:
    return b
  raise ValueError(
    f'Parameter "{name}" must be passed to the constructor or at call time.'
  )
