"""Where the values of a place are: at rest, in a run, or in Haiku's hands.

A store answers for (place, collection, name). Three kinds have one interface:

* `AtRest`: no run; the values are in the variables dict itself.
* `InRun`: a run of our own; the values are in Haiku's frame, the store knows
  their names.
* `InHaiku`: a module of ours in somebody else's `hk.transform`; the values are
  in Haiku's frame, and Haiku is asked for the names too.

A store knows of no scope, run or thread: what may be changed, and how a new
parameter is made, its caller says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from haiku_state.core import _bundles, _names
from haiku_state.core._place import Place
from haiku_state.core._shapes import expected as expected_shapes
from haiku_state.core._shapes import trace as trace_shapes
from haiku_state.core.frozen_dict import FrozenDict

# Parameters by Haiku's name of the module and their key in its bundle.
Touched = set[tuple[str, str]]
# Values that are new to a frame: parameters and state.
New = tuple[_bundles.Bundles, _bundles.Bundles]
# Makes the initial value of a parameter, or raises if none may be made.
Make = Callable[..., Any]

NOTHING: Mapping[str, Any] = FrozenDict()
MAPPINGS = (dict, FrozenDict)


class WrongShape(Exception):
  """A parameter has another shape than its initializer makes.

  Args:
    found: the shape that it has.
    wanted: the shape that its initializer makes.
  """

  def __init__(self, found: tuple[int, ...], wanted: tuple[int, ...]):
    super().__init__(found, wanted)
    self.found = found
    self.wanted = wanted


class CannotChange(Exception):
  """A parameter would be set that Haiku has, and does not let change.

  Args:
    name: the name of the parameter.
  """

  def __init__(self, name: str):
    super().__init__(name)
    self.name = name


def check_shapes(value: Any, init_fn, args, kwargs) -> None:
  """Raises unless a parameter has the shapes that its initializer makes.

  Raises:
    WrongShape: it has others.
  """
  leaves = jax.tree.leaves(value)
  for find in (expected_shapes, trace_shapes):
    # What was kept may be of a function whose globals changed: trace again
    # before anybody is blamed.
    shapes = find(init_fn, args, kwargs).shapes
    wrong = [
      (np.shape(x), shape)
      for x, shape in zip(leaves, shapes)
      if np.shape(x) != shape
    ]
    if not wrong:
      return
  raise WrongShape(*wrong[0])


class Tree:
  """Collections as nested dicts, with the levels of each place at hand.

  Args:
    tree: collections by name.

  Attributes:
    later: what is to be done before anything else.
  """

  later: Any = ()

  def __init__(self, tree: dict[str, Any]):
    self.tree = tree
    # By collection and Haiku's name of the place.
    self._levels: dict[str, dict[str, Any]] = {}
    # By collection, for so many names at the root.
    self._outside: dict[str, tuple[int, tuple[str, ...]]] = {}

  def level(self, place: Place, col: str) -> Mapping[str, Any]:
    """Returns the level of a collection at a place, empty if there is none."""
    if self.later:
      self.catch_up()
    levels = self._levels.get(col)
    if levels is None:
      levels = self._levels.setdefault(col, {})
    found = levels.get(place.path)
    if found is not None:
      return found
    above = None if place.above is None else levels.get(place.above.path)
    if above is None:
      return self._find(place, col, levels)
    found = above.get(place.name, NOTHING)
    if not isinstance(found, MAPPINGS):
      return NOTHING
    if found is not NOTHING:
      levels[place.path] = found
    return found

  def _find(self, place: Place, col: str, levels: dict[str, Any]) -> Any:
    """Returns a level, found from the nearest one above that is known."""
    below: list[Place] = []
    at: Place | None = place
    found = None
    while at is not None and found is None:
      below.append(at)
      at = at.above
      found = None if at is None else levels.get(at.path)
    for at in reversed(below):
      if at.above is None:
        found = self.tree.get(col)
      else:
        assert found is not None and at.name is not None
        found = found.get(at.name)
      if not isinstance(found, MAPPINGS):
        return NOTHING
      levels[at.path] = found
    return found

  def new_level(self, place: Place, col: str) -> dict[str, Any]:
    """Returns the level of a collection at a place, made if there is none."""
    found = self.level(place, col)
    if isinstance(found, dict):
      return found
    if place.above is None:
      above, name = self.tree, col
    else:
      above, name = self.new_level(place.above, col), place.name
    assert name is not None
    # Two threads that make it at once get the same one.
    made = above.setdefault(name, {})
    if not isinstance(made, dict):
      made = above[name] = {}
    self._levels[col][place.path] = made
    return made

  def catch_up(self) -> None:
    """Does what was to be done later."""
    while self.later:
      self.later.popleft()()

  def forget_level(self, path: str, col: str) -> None:
    """Forgets a level that is no longer in the tree."""
    self._levels.get(col, {}).pop(path, None)

  def has_or_will(self, place: Place, col: str, name: str) -> bool:
    """Returns `has`, for a caller who makes what is missing."""
    return self.has(place, col, name)

  def has(self, place: Place, col: str, name: str) -> bool:
    return name in self.level(place, col)

  def names_outside(self, root: Place) -> Iterator[tuple[str, str]]:
    """Yields the collections and names of what lies outside of the root."""
    for col in list(self.tree):
      level = self.level(root, col)
      seen, names = self._outside.get(col, (0, ()))
      if seen != len(level):
        names = tuple(filter(_names.is_outside, list(level)))
        self._outside[col] = len(level), names
      for name in names:
        yield col, name

  def is_empty(self, col: str) -> bool:
    return not self.tree.get(col)

  def has_collection(self, col: str) -> bool:
    return col in self.tree


class AtRest(Tree):
  """Variables that no run uses now.

  Args:
    tree: collections by name.
    touched: the parameters that the run before made or set, by bundle and key;
      None if that is not known.
  """

  initial_trace = None
  modules: Any = None

  def __init__(self, tree: Any, touched: Touched | None = None):
    super().__init__(tree)
    self.touched = touched

  def get(self, place: Place, col: str, name: str, default: Any = None) -> Any:
    return self.level(place, col).get(name, default)

  def is_array(self, place: Place, col: str, name: str) -> bool:
    return isinstance(self.get(place, col, name), jax.Array)

  def put(self, place: Place, col: str, name: str, value: Any) -> None:
    self._merge(place.path, self.new_level(place, col), col, name, value)

  def param(
    self, place: Place, name: str, init_fn, args, kwargs, make: Make
  ) -> Any:
    if self.has(place, 'params', name):
      value = self.get(place, 'params', name)
      check_shapes(value, init_fn, args, kwargs)
    else:
      value = make()
      self.put(place, 'params', name, value)
    return value

  def merge(self, place: Place, col: str, tree: Any, only: Any) -> None:
    """Puts a tree of variables below a place."""
    del only  # A value that did not change may be put again.
    level = self.new_level(place, col)
    for name, value in tree.items():
      self._merge(place.path, level, col, name, value)

  def _merge(self, path, level: dict[str, Any], col, name, value) -> None:
    """Sets a value; a dict goes into a dict, whose other names stay."""
    was = level.get(name)
    if isinstance(was, MAPPINGS):
      below = f'{path}/{_names.escape_module(name)}'
      if isinstance(value, Mapping) and isinstance(was, dict):
        for key, x in value.items():
          self._merge(below, was, col, key, x)
        return
      self._forget_below(below, was, col)
    level[name] = value

  def _forget_below(self, path: str, level: Mapping[str, Any], col: str):
    self.forget_level(path, col)
    for name, below in level.items():
      if isinstance(below, MAPPINGS):
        path_below = f'{path}/{_names.escape_module(name)}'
        self._forget_below(path_below, below, col)

  def variables(self, place: Place) -> dict[str, Any]:
    if place.above is None:
      return self.tree
    levels = {col: self.level(place, col) for col in self.tree}
    return {c: x for c, x in levels.items() if x is not NOTHING}
