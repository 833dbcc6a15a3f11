"""Axes of size one: Haiku keeps them in what it broadcasts, linen does not.

The scale of a Haiku norm over the axis `C` of `NCHW` has the shape
`(1, C, 1, 1)`, linen's has `(C,)`. So the two are a reshape apart, for which
one must know which axes Haiku keeps. In order: the target's leaf tells, then
the options of the layer, then the leaf itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from haiku_state.interop import _leaves as lv
from haiku_state.interop._leaves import ConversionError

Axes = int | slice | Sequence[int]


class Kept(NamedTuple):
  """Where the features are in a leaf of Haiku's.

  Attributes:
    axes: the axes with features, None if only the leaf itself tells.
    rank: the rank of the leaf, None if that is not known.
    bare_last: whether a leaf with features on the last axis only has no other.
    how: what to write to give the rank, for errors.
  """

  axes: Axes | None = None
  rank: int | None = None
  bare_last: bool = True
  how: str = ''


def leaf(haiku: str, linen: str, options: lv.Options) -> lv.Leaf:
  """Returns a parameter that differs in axes of size one."""
  ours, theirs = ('params', linen), (haiku,)
  return lv.Leaf(
    theirs,
    ours,
    lambda x: dropped(x, options, ours),
    lambda x: kept(x, options, theirs),
  )


def dropped(x: Any, options: lv.Options, name: lv.Names) -> Any:
  """Returns a leaf of Haiku's as linen has it."""
  shape = tuple(x.shape)
  wanted = _of_target(shape, options, name)
  if wanted is None:
    axes, rank = options['kept'].axes, len(shape)
    if axes is None or axes == -1 or rank == 1:
      # An axis of size one that has features cannot be told from the others.
      wanted = tuple(n for n in shape if n != 1) or (1,)
    else:
      wanted = tuple(shape[axis] for axis in absolute(axes, rank))
  return _reshaped(x, wanted)


def kept(x: Any, options: lv.Options, name: lv.Names) -> Any:
  """Returns a leaf of linen's as Haiku has it."""
  shape = tuple(x.shape)
  wanted = _of_target(shape, options, name)
  if wanted is None:
    wanted = _with_units(shape, options['kept'])
  return _reshaped(x, wanted)


def _of_target(shape, options: lv.Options, name: lv.Names) -> Any:
  """Returns the shape that the target has, if a reshape is all it takes."""
  target = options['target'].get(name)
  fits = target is not None and math.prod(target) == math.prod(shape)
  return target if fits else None


def _with_units(shape: tuple[int, ...], kept: Kept) -> tuple[int, ...]:
  if kept.axes is None and len(shape) == 1:
    return shape
  if kept.bare_last and kept.axes == -1:
    return shape
  if kept.axes is None or kept.rank is None:
    raise ConversionError(
      f'features of shape {shape} may have other axes around them in Haiku.'
      f' Pass {kept.how}, or the parameters of the Haiku model, or their'
      ' shapes, as `target=`.'
    )
  # Several features are on the last axes, if one would be on the last.
  last = slice(kept.rank - len(shape), None)
  axes = absolute(last if kept.axes == -1 else kept.axes, kept.rank)
  if kept.bare_last and axes == (kept.rank - 1,):
    return shape
  if len(axes) != len(shape):
    raise ConversionError(f'features of shape {shape} are not on axes {axes}')
  wanted = [1] * kept.rank
  for axis, n in zip(axes, shape):
    wanted[axis] = n
  return tuple(wanted)


def absolute(axes: Axes, rank: int) -> tuple[int, ...]:
  """Returns axes counted from the first, in order."""
  if isinstance(axes, slice):
    return tuple(range(rank)[axes])
  given = (axes,) if isinstance(axes, int) else tuple(axes)
  return tuple(sorted(range(rank)[axis] for axis in given))


def _reshaped(x: Any, shape: tuple[int, ...]) -> Any:
  if tuple(x.shape) == shape:
    return x
  return lv.apply(lambda a: a.reshape(shape), x)


def has_channels_first(data_format: str) -> bool:
  """Returns whether Haiku's name of a layout puts the channels first.

  Raises:
    ConversionError: it is no such name.
  """
  if data_format in ('channels_first', 'NC...'):
    return True
  if data_format in ('channels_last', 'N...C'):
    return False
  if data_format[:1] == 'N' and data_format.count('C') == 1:
    if data_format[1] == 'C' and len(data_format) > 2:
      return True
    if data_format[-1] == 'C':
      return False
  raise ConversionError(
    f'{data_format!r} is no data format of Haiku. Write "channels_first",'
    ' "channels_last", or the names of all axes, such as "NCHW" or "NHWC".'
  )


def rank_of(data_format: str) -> int | None:
  """Returns the rank that a layout tells, None if it does not."""
  is_spelled_out = data_format.isupper() and data_format.isalpha()
  return len(data_format) if is_spelled_out else None
