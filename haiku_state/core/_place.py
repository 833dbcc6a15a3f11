"""Places: where a scope is among the scopes of its run.

A place is names, and nothing else: it holds no values and no counts, and knows
of no run. Two scopes at one place find the same variables.
"""

from __future__ import annotations

from haiku_state.core import _names


class Place:
  """Where a scope is: below which names, and under which name of Haiku's.

  Args:
    path: Haiku's name of the module there, from the root.
    above: the place that this one is in, None for the root.
    name: the name in it.
  """

  __slots__ = ('path', 'above', 'name')

  def __init__(
    self, path: str, above: Place | None = None, name: str | None = None
  ):
    self.path = path
    self.above = above
    self.name = name

  def below(self, name: str) -> Place:
    """Returns the place of a name here."""
    return Place(f'{self.path}/{_names.escape_module(name)}', self, name)

  def __eq__(self, other: object) -> bool:
    # No two lists of names have one path: names are escaped.
    return isinstance(other, Place) and self.path == other.path

  def __hash__(self) -> int:
    return hash(self.path)

  def __repr__(self) -> str:
    return f'Place({self.path!r})'
