"""Filters that choose collections (or key streams) by name.

A filter is `True` (all), `False` (none), a name, a collection of names, or a
`DenyList` (all but those of another filter). Union, intersection and
difference of filters are filters again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Union

import jax

from haiku_state import errors


@dataclasses.dataclass(frozen=True, eq=True)
class DenyList:
  """Matches every name that another filter does not match.

  Example::

    >>> from haiku_state.core import DenyList
    >>> from haiku_state.core.filters import in_filter
    >>> in_filter(DenyList(['params']), 'batch_stats')
    True

  Attributes:
    deny: the filter whose names are left out.
  """

  deny: Filter


Filter = Union[bool, str, Collection[str], DenyList]
CollectionFilter = Filter
PRNGSequenceFilter = Filter

# A name that no program uses: a filter that denies it denies everything.
_ANY_NAME = '\0any'


def in_filter(filter_like: Filter, col: str) -> bool:
  """Returns whether `filter_like` matches the name `col`.

  Args:
    filter_like: the filter.
    col: the name of a collection or of a key stream.

  Raises:
    InvalidFilterError: `filter_like` is no filter.
  """
  if isinstance(filter_like, bool):
    return filter_like
  if isinstance(filter_like, str):
    return col == filter_like
  if isinstance(filter_like, DenyList):
    return not in_filter(filter_like.deny, col)
  if isinstance(filter_like, Collection):
    return col in filter_like
  raise errors.InvalidFilterError(filter_like)


def named_in(filter_like: Filter) -> tuple[str, ...]:
  """Returns the names that a filter mentions, whether it matches them or not."""
  if isinstance(filter_like, bool):
    return ()
  if isinstance(filter_like, str):
    return (filter_like,)
  if isinstance(filter_like, DenyList):
    return named_in(filter_like.deny)
  return tuple(sorted(filter_like))


def is_filter_empty(filter_like: Filter) -> bool:
  """Returns whether `filter_like` matches no name at all."""
  if isinstance(filter_like, str):
    return False
  if isinstance(filter_like, (bool, Collection)):
    return not filter_like
  if isinstance(filter_like, DenyList):
    return in_filter(filter_like.deny, _ANY_NAME)
  raise errors.InvalidFilterError(filter_like)


def filter_to_set(x: Filter) -> set[str]:
  """Returns the names that a finite filter matches.

  Raises:
    AssertionError: `x` is `True` or a `DenyList`, which match names without
      end.
    InvalidFilterError: `x` is no filter.
  """
  assert x is not True and not isinstance(x, DenyList), 'Infinite set'
  if x is False:
    return set()
  if isinstance(x, str):
    return {x}
  if isinstance(x, Collection):
    return set(x)
  raise errors.InvalidFilterError(x)


def union_filters(a: Filter, b: Filter) -> Filter:
  """Returns the filter that matches what `a` or `b` matches."""
  if a is True or b is True:
    return True
  if isinstance(a, DenyList) and isinstance(b, DenyList):
    return DenyList(intersect_filters(a.deny, b.deny))
  if isinstance(a, DenyList):
    return DenyList(subtract_filters(a.deny, b))
  if isinstance(b, DenyList):
    return DenyList(subtract_filters(b.deny, a))
  return filter_to_set(a) | filter_to_set(b)


def subtract_filters(a: Filter, b: Filter) -> Filter:
  """Returns the filter that matches what `a` matches and `b` does not."""
  if b is True:
    return False
  if a is True:
    return DenyList(b)
  if isinstance(a, DenyList) and isinstance(b, DenyList):
    return subtract_filters(b.deny, a.deny)
  if isinstance(a, DenyList):
    return DenyList(union_filters(a.deny, b))
  if isinstance(b, DenyList):
    return intersect_filters(a, b.deny)
  return filter_to_set(a) - filter_to_set(b)


def intersect_filters(a: Filter, b: Filter) -> Filter:
  """Returns the filter that matches what both `a` and `b` match."""
  if a is True:
    return b
  if b is True:
    return a
  if isinstance(a, DenyList) and isinstance(b, DenyList):
    return DenyList(union_filters(a.deny, b.deny))
  if isinstance(a, DenyList):
    return subtract_filters(b, a.deny)
  if isinstance(b, DenyList):
    return subtract_filters(a, b.deny)
  return filter_to_set(a) & filter_to_set(b)


def group_collections(
  xs: Mapping[str, Any], col_filters: Sequence[CollectionFilter]
) -> Sequence[dict[str, Any]]:
  """Splits a variables dict by filters; the first that matches takes it.

  Args:
    xs: collections by name.
    col_filters: the filters, in the order in which they may take.

  Returns:
    As many dicts as there are filters. A collection that none matches is in
    none of them. The containers are copied, the leaves are not.
  """
  groups: list[dict[str, Any]] = [{} for _ in col_filters]
  for col, tree in xs.items():
    for group, col_filter in zip(groups, col_filters):
      if in_filter(col_filter, col):
        group[col] = jax.tree.map(lambda x: x, tree)
        break
  return tuple(groups)
