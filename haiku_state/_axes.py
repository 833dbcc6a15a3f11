"""Marks of the direction in which an axis of a lifted transform is mapped."""

import dataclasses
from typing import Generic, TypeVar, Union

from haiku_state.typing import Axis, ScanAxis

_T = TypeVar('_T')


@dataclasses.dataclass(frozen=True)
class In(Generic[_T]):
  """Marks a collection that goes into a transform and does not come out.

  Attributes:
    axis: the axis along which it goes in.
  """

  __module__ = 'haiku_state.typing'  # Where programs find it.

  axis: _T


@dataclasses.dataclass(frozen=True)
class Out(Generic[_T]):
  """Marks a collection that comes out of a transform and does not go in.

  Attributes:
    axis: the axis along which it comes out.
  """

  __module__ = 'haiku_state.typing'

  axis: _T


InOutAxis = Union[Axis, In[Axis], Out[Axis]]
InOutScanAxis = Union[ScanAxis, In[ScanAxis], Out[ScanAxis]]
