"""The store of a module of ours in somebody's `hk.transform`.

The values are in Haiku's frame, and Haiku is asked for the names too.
"""

from __future__ import annotations

import functools
from collections.abc import Container, Iterator, Mapping
from typing import Any

import jax

from haiku_state.core import (
  _frame,
  _haiku_run,
  _haiku_words,
  _names,
  tracers,
)
from haiku_state.core._jax_around import check_stays
from haiku_state.core._place import Place
from haiku_state.core._shapes import expected as expected_shapes
from haiku_state.core._store import (
  MAPPINGS,
  NOTHING,
  CannotChange,
  Make,
  New,
  check_shapes,
)


class InHaiku:
  """Variables of a module of ours that runs in somebody's `hk.transform`.

  Attributes:
    made: the names of the parameters and of the state that were made here.
    levels: the modules with state that was made here, in them or below.
  """

  def __init__(self) -> None:
    self.made: tuple[_frame.Names, _frame.Names] = ({}, {})
    self.levels: set[str] = set()

  def _note(self, is_state: bool, path: str, key: str) -> None:
    self.made[is_state].setdefault(path, {})[key] = None
    while is_state and path not in self.levels:
      self.levels.add(path)
      path = path.rpartition('/')[0]

  @functools.cached_property
  def initial_trace(self) -> tracers.Trace:
    """The trace that the first parameter was made in."""
    return tracers.Trace()

  def level(self, place: Place, col: str) -> Mapping[str, Any]:
    found = _frame.frame_variables(place.path, self.made, col)
    return found.get(col, NOTHING)

  def has(self, place: Place, col: str, name: str) -> bool:
    # Asked for state by name, Haiku makes an empty bundle where there is none,
    # which is then in the state that it returns.
    return name in self.level(place, col)

  def has_or_will(self, place: Place, col: str, name: str) -> bool:
    if col != 'params':
      if self._state(place, col, name) is not NOTHING:
        return True
      if not self._may_be_tree(place, col, name):
        return False
    return name in self.level(place, col)

  def get(self, place: Place, col: str, name: str, default: Any = None) -> Any:
    found = NOTHING if col == 'params' else self._state(place, col, name)
    # If there is no such value, it may be a level.
    return (
      self.level(place, col).get(name, default) if found is NOTHING else found
    )

  def _state(self, place: Place, col: str, name: str) -> Any:
    """Returns a value of state that is no level, `NOTHING` if there is none."""
    try:
      return _frame.find_state(place.path, _names.state_key(col, name))
    except _frame.Missing:
      return NOTHING

  def _may_be_tree(self, place: Place, col: str, name: str) -> bool:
    """Returns whether a variable may be a tree, which takes a look at all state.

    In `init` a module of ours has made it, or one of Haiku's in a collection of
    theirs.
    """
    if col == _names.HAIKU_COLLECTION or not _frame.is_initializing():
      return True
    below = _names.path_below(place.path, name)
    return below in self.levels or below in _trees_if_any()

  def is_array(self, place: Place, col: str, name: str) -> bool:
    return isinstance(self.get(place, col, name), jax.Array)

  def put(self, place: Place, col: str, name: str, value: Any) -> None:
    self._put(place, place.path, col, name, value)

  def _put(self, place: Place, path: str, col: str, name: str, value) -> None:
    if isinstance(value, MAPPINGS):
      below = _names.path_below(path, name)
      _note_tree(below)
      for key, x in value.items():
        self._put(place, below, col, key, x)
      return
    check_stays(name, value, _frame.frame_is_current)
    if col == 'params':
      if self.has(place, col, name):
        raise CannotChange(name)
      key = _names.escape_key(name)
      _frame.new_param(path, key, value, lambda *_: value)
      self._note(False, path, key)
    else:
      key = _names.state_key(col, name)
      try:
        _frame.find_state(path, key)
      except _frame.Missing:
        _frame.new_state(path, key, value)
        self._note(True, path, key)
      else:
        _frame.write_state(path, key, value)

  def merge(self, place: Place, col: str, tree: Any, only: Any) -> None:
    """Puts a tree of variables below a place: see `InRun.merge`.

    Raises:
      ValueError: some lie outside of the module: no later call would know.
    """
    outside = next(filter(_names.is_outside, tree), None)
    if outside is not None:
      raise _haiku_words.forced_in_lifted(place.path, outside)
    there = self.level(place, col)
    new: New = {}, {}
    self._merge_level(place, place.path, there, col, tree, only, new)
    _frame.put_as_is(*new)

  def _merge_level(self, place, path, there, col, tree, only, new: New) -> None:
    for name, value in tree.items():
      if isinstance(value, MAPPINGS):
        below = _names.path_below(path, name)
        known = there.get(name, NOTHING)
        self._merge_level(place, below, known, col, value, only, new)
      elif name not in there and value is not None and _frame.is_initializing():
        self._add(path, col, name, value, new)
      elif name in there and col != 'params':
        check_stays(name, value, _frame.frame_is_current)
        _frame.write_as_is(path, _names.state_key(col, name), value)
      elif (
        only is None
        or name not in there
        or (path, _names.escape_key(name)) in only
      ):
        self._put(place, path, col, name, value)

  def _add(self, path: str, col: str, name: str, value, new: New) -> None:
    check_stays(name, value, _frame.frame_is_current)
    is_param = col == 'params'
    key = _names.escape_key(name) if is_param else _names.state_key(col, name)
    params, state = new
    (params if is_param else state).setdefault(path, {})[key] = value
    self._note(not is_param, path, key)

  def names_outside(self, root: Place) -> Iterator[tuple[str, str]]:
    del root  # What is outside of it is the user's, not the module's.
    return iter(())

  def is_empty(self, col: str) -> bool:
    return False

  def has_collection(self, col: str) -> bool:
    return True

  def param(
    self, place: Place, name: str, init_fn, args, kwargs, make: Make
  ) -> Any:
    """Returns a parameter, made in one call so that Haiku's creators see it.

    In `apply` too they may ask for the initial value of one that is missing:
    Haiku raises after they have answered, unless they do not store it.
    """
    want = expected_shapes(init_fn, args, kwargs)
    key = _names.escape_key(name)

    def init(shape, dtype):
      self._note(False, place.path, key)
      is_own = tuple(shape) == want.shapes[0] and dtype == want.dtype
      value = make() if is_own else make(shape, dtype)
      check_stays(name, value, _frame.frame_is_current)
      return _frame.fit(value, shape, dtype, key)

    try:
      if want.dtype is None:
        return self._any_param(place, name, init_fn, args, kwargs, make)
      return _frame.get_or_make_param(
        place.path, key, want.shapes[0], want.dtype, init
      )
    except _haiku_words.MissingKey:
      if _frame.is_initializing():
        raise
    except ValueError as e:
      if not _frame.is_missing(e):
        raise
    raise _haiku_words.missing_parameter(place.path, name)

  def _any_param(
    self, place: Place, name: str, init_fn, args, kwargs, make: Make
  ) -> Any:
    """Returns a parameter that is no array."""
    level = self.level(place, 'params')
    if name in level:
      value = level[name]
      check_shapes(value, init_fn, args, kwargs)
    else:
      value = make()
      self.put(place, 'params', name, value)
    return value

  def variables(self, place: Place) -> dict[str, Any]:
    return _frame.frame_variables(place.path, self.made)


# Where variables that are trees begin, in one run of Haiku's: another module may
# be at the same place.
_TREES = object()


def _note_tree(path: str) -> None:
  _haiku_run.notes_of_run().setdefault(_TREES, set()).add(path)


def _trees_if_any() -> Container[str]:
  return _haiku_run.notes_if_any().get(_TREES, ())
