"""The store of a run of our own: values in Haiku's frame, names here."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from haiku_state import errors
from haiku_state.core import _bundles, _frame, _haiku_words, _names, tracers
from haiku_state.core._jax_around import check_stays
from haiku_state.core._place import Place
from haiku_state.core._shapes import expected as expected_shapes
from haiku_state.core._store import (
  MAPPINGS,
  NOTHING,
  Make,
  New,
  Touched,
  Tree,
  check_shapes,
)
from haiku_state.core.frozen_dict import FrozenDict

_IN_STATE = 'state'


class InRun(Tree):
  """Variables in the frame of a run; the tree here holds their names.

  A level of names is a dict. A leaf is `True`, `ARRAY` for state that is one
  array, `NONE` for a parameter that is None, or `_IN_STATE` for a parameter
  that was overwritten: Haiku's parameters do not change, so its new value is
  state, which wins over the parameter when the run is over. A name may be that
  of a value which is gone: `hk.eval_shape`, for one, lets go of what is made in
  it.

  Args:
    names: the tree.
    given: the parameters and the state that the run begins with.
    has_fixed_params: whether no parameter changes in this run.
    trace: the trace that the run begins in.

  Attributes:
    initial_trace: the trace in which parameters are made.
    given: see above. What was given is there, without a look; and a transform
      takes fixed parameters from here: once, and before anybody's getters,
      which see them inside of it.
    made: the parameters and the state that were set here: read where Haiku's
      frame is out of reach, and told to those who write back what changed.
    first: the first value of state that was made here, where it is wanted.
    dropped: what a value of another kind has put out of the tree, by bundle and
      key: Haiku still has it.
    later: what is to be done to Haiku's frame, set where it was out of reach.
    modules: the Haiku names of the modules of ours: one of Haiku's with the same
      name would take the variables for its own.
  """

  def __init__(
    self,
    names: dict[str, Any],
    given: tuple[_bundles.Bundles, _bundles.Bundles],
    has_fixed_params: bool,
    trace: tracers.Trace,
  ):
    super().__init__(names)
    self.given = given
    self.has_fixed_params = has_fixed_params
    self.trace = self.initial_trace = trace
    self.made: tuple[_bundles.Bundles, _bundles.Bundles] = ({}, {})
    self.first: _bundles.Bundles | None = None
    self.dropped: set[tuple[str, str]] = set()
    self.later = collections.deque()
    self.modules: set[str] = set()

  # --- Haiku's frame ---

  def _at(self, path: str, fn: Callable[..., Any], *args: Any) -> Any:
    return _frame.at(path, fn, *args)

  def _is_outside(self) -> bool:
    """Returns whether no transform of JAX is between the frame and here.

    Haiku's own (`hk.scan`, `hk.remat`, ...) may be: they carry the frame along.
    """
    return self.trace.is_current() or _frame.frame_is_current()

  def _frame_param(self, path: str, key: str, value: Any, again: Make) -> Any:
    """Adds a parameter; returns it as those who ask for it will get it."""
    made = _frame.new_param(path, key, value, again, is_noted=True)
    self.made[0].setdefault(path, {})[key] = made
    return made

  def _frame_state(self, path: str, key: str, value: Any, is_new: bool) -> None:
    self._note_state(path, key, value)
    if is_new:
      _frame.new_state(path, key, value, is_noted=True)
    else:
      _frame.write_state(path, key, value)

  def _frame_new(self, new: New) -> None:
    """Adds what an inner run has made: those who look at it have seen it."""
    self._note_new(new)
    _frame.put_as_is(*new)

  def _note_state(self, path: str, key: str, value: Any) -> None:
    """Notes state that was made or set here."""
    self.made[1].setdefault(path, {})[key] = value
    if self.first is not None:
      self.first.setdefault(path, {}).setdefault(key, value)

  def _note_new(self, new: New) -> None:
    """Notes parameters and state that an inner run has made."""
    params, state = new
    for path, bundle in params.items():
      self.made[0].setdefault(path, {}).update(bundle)
    for path, bundle in state.items():
      for key, value in bundle.items():
        self._note_state(path, key, value)

  def _frame_read(self, path: str, col: str, name: str, leaf: Any) -> Any:
    """Returns the value of a leaf, or raises `Missing`."""
    if col != 'params' or leaf is _IN_STATE:
      return _frame.find_state(path, _names.state_key(col, name))
    return _frame.read_any_param(path, _names.escape_key(name))

  def _frame_other(self, path: str, key: str) -> Any:
    """Returns a parameter that was not given to this run, None for none."""
    try:
      return _frame.read_any_param(path, key)
    except _frame.Missing:
      return None

  def _key_of(self, col: str, name: str, leaf: Any) -> tuple[bool, str]:
    """Returns whether a leaf is state in Haiku's frame, and its key there."""
    if col != 'params' or leaf is _IN_STATE:
      return True, _names.state_key(col, name)
    return False, _names.escape_key(name)

  # --- Names ---

  def check_place(self, path: str) -> None:
    """Raises if Haiku's module at a path has the name of a module of ours.

    Raises:
      NameInUseError: it has.
    """
    if path in self.modules:
      parent, _, name = path.rpartition('/')
      raise errors.NameInUseError('submodule', name, parent)

  def note(self, root: str, path: str, key: str, is_param: bool) -> None:
    """Takes the name of a variable that Haiku makes or sets into the tree."""
    col, names, name = _bundles.place_of(root, path, key, is_param)
    level = self.tree.setdefault(col, {})
    for below in names:
      level = level.setdefault(below, {})
      if not isinstance(level, dict):
        return  # A value and a module of one name: told of when the run ends.
    # An array may be set to something else.
    if name is not None and level.get(name) in (None, _bundles.ARRAY):
      level[name] = True

  # --- Reading ---

  def has(self, place: Place, col: str, name: str) -> bool:
    leaf = self.level(place, col).get(name)
    if leaf is None:
      return False
    path = place.path
    if isinstance(leaf, dict):
      # A level is there if anything below it is, or if it was empty.
      below = _names.path_below(path, name)
      return not leaf or self._has_below(below, col, leaf)
    return self._has_leaf(path, col, name, leaf)

  def _has_leaf(self, path: str, col: str, name: str, leaf: Any) -> bool:
    is_state, key = self._key_of(col, name, leaf)
    if leaf is _bundles.NONE or key in self.given[is_state].get(path, NOTHING):
      return True
    try:
      self._read(path, col, name, leaf)
    except _frame.Missing:
      return False
    return True

  def _has_below(self, path: str, col: str, level: dict[str, Any]) -> bool:
    for name, leaf in list(level.items()):
      if isinstance(leaf, dict):
        below = _names.path_below(path, name)
        if not leaf or self._has_below(below, col, leaf):
          return True
      elif self._has_leaf(path, col, name, leaf):
        return True
    return False

  def get(self, place: Place, col: str, name: str, default: Any = None) -> Any:
    leaf = self.level(place, col).get(name)
    if leaf is None:
      return default
    try:
      if leaf is True or leaf is _bundles.ARRAY:
        return self._frame_read(place.path, col, name, leaf)
      return self._read(place.path, col, name, leaf)
    except _frame.Missing:
      return default

  def is_array(self, place: Place, col: str, name: str) -> bool:
    """Returns whether a variable is one array, as far as the name tells."""
    return self.level(place, col).get(name) is _bundles.ARRAY

  def _read(self, path: str, col: str, name: str, leaf: Any) -> Any:
    if isinstance(leaf, dict):
      below = _names.path_below(path, name)
      value = self._read_level(below, col, leaf)
      is_frozen = isinstance(leaf, _bundles.FrozenNode)
      return FrozenDict(value) if is_frozen else value
    if leaf is _bundles.NONE:
      return None
    return self._frame_read(path, col, name, leaf)

  def _read_level(
    self, path: str, col: str, level: dict[str, Any]
  ) -> dict[str, Any]:
    """Returns all values below a module, entering each module once."""

    def read_here():
      # Another thread may add a name meanwhile.
      return {n: x for n, leaf in list(level.items()) for x in read(n, leaf)}

    def read(name, leaf):
      if isinstance(leaf, dict):
        below = _names.path_below(path, name)
        value = self._read_level(below, col, leaf)
        return (value,) if value or not leaf else ()
      try:
        return (self._read(path, col, name, leaf),)
      except _frame.Missing:
        return ()

    return self._at(path, read_here) if level else {}

  def variables(self, place: Place) -> dict[str, Any]:
    path = place.path
    levels = {col: self.level(place, col) for col in list(self.tree)}
    return {
      col: self._given_level(path, level)
      if col == 'params' and self.has_fixed_params
      else self._read_level(path, col, level)
      for col, level in levels.items()
      if isinstance(level, dict)
    }

  def _given_level(self, path: str, level: dict[str, Any]) -> dict[str, Any]:
    """Returns the parameters below a module, as the run was given them."""
    bundle = self.given[0].get(path, NOTHING)
    return {
      name: self._given_level(_names.path_below(path, name), leaf)
      if isinstance(leaf, dict)
      else None
      if leaf is _bundles.NONE
      else bundle[_names.escape_key(name)]
      for name, leaf in level.items()
    }

  # --- Writing ---

  def put(self, place: Place, col: str, name: str, value: Any) -> None:
    level = self.new_level(place, col)
    self._put(place.path, level, col, name, value, None, None)

  def merge(
    self, place: Place, col: str, tree: Any, only: Touched | None
  ) -> None:
    """Puts a tree of variables below a place.

    Args:
      place: the place.
      col: the collection.
      tree: nested dicts.
      only: of the parameters that are there already, those to put; None for
        all. It spares parameters that a transform returns as they were from
        being written, which Haiku does not do.
    """
    level = self.new_level(place, col)
    # Where parameters may be added, Haiku initializes.
    new = None if self.has_fixed_params else ({}, {})
    self._put_level(place.path, level, col, tree, only, new)
    if new:
      self._frame_new(new)

  def _put_level(self, path, level, col, tree, only, new: New | None) -> None:
    def put_here():
      for name, value in tree.items():
        self._put(path, level, col, name, value, only, new)

    if tree:
      self._at(path, put_here)

  def _put(
    self, path: str, level: dict, col: str, name: str, value, only, new
  ) -> None:
    """Puts a value; what is new is left to the caller who passes `new`."""
    leaf = level.get(name)
    if isinstance(value, MAPPINGS):
      if leaf is not None and not isinstance(leaf, dict):
        self._drop(path, col, name)
      if not isinstance(leaf, dict):
        kind = _bundles.FrozenNode if isinstance(value, FrozenDict) else dict
        leaf = level[name] = kind()
      below = _names.path_below(path, name)
      self._put_level(below, leaf, col, value, only, new)
      return
    if only is not None and leaf is not None:
      if (path, _names.escape_key(name)) not in only:
        return
    if isinstance(leaf, dict):
      self._drop_level(_names.path_below(path, name), col, leaf)
      leaf = None
    self._put_leaf(path, level, col, name, value, leaf, new)

  def _put_leaf(self, path, level, col, name, value, leaf, new) -> None:
    check_stays(name, value, self._is_outside)
    key = _names.state_key(col, name)
    was_dropped = (path, key) in self.dropped  # Haiku still has its value.
    self.dropped.discard((path, key))
    if leaf is None and col == 'params' and value is not None:
      param_key = _names.escape_key(name)
      if (path, param_key) not in self.dropped:
        if new:
          new[0].setdefault(path, {})[param_key] = value
        else:
          self._frame_param(path, param_key, value, lambda *_: value)
        level[name] = True
        return
    is_new = leaf is None and not was_dropped
    if is_new and new:
      new[1].setdefault(path, {})[key] = value
    else:
      self._frame_state(path, key, value, is_new)
    if col == 'params':
      level[name] = _IN_STATE
    else:
      level[name] = _bundles.ARRAY if isinstance(value, jax.Array) else True

  def _drop(self, path: str, col: str, name: str) -> None:
    if col == 'params':
      self.dropped.add((path, _names.escape_key(name)))
    self.dropped.add((path, _names.state_key(col, name)))

  def _drop_level(self, path: str, col: str, level: dict[str, Any]) -> None:
    self.forget_level(path, col)
    for name, leaf in level.items():
      if isinstance(leaf, dict):
        self._drop_level(_names.path_below(path, name), col, leaf)
      else:
        self._drop(path, col, name)

  def param(
    self, place: Place, name: str, init_fn, args, kwargs, make: Make
  ) -> Any:
    """Returns a parameter, made if it is missing.

    Args:
      place: where it is.
      name: its name.
      init_fn: its initializer.
      args: the arguments of the initializer, behind the key.
      kwargs: its keyword arguments.
      make: makes the initial value, or raises if none may be made.

    Raises:
      WrongShape: it has another shape than its initializer makes.
      Leaks: the initial value would leave the transform of JAX around.
    """
    leaf = self.level(place, 'params').get(name)
    path = place.path
    if leaf is None:
      if self.has_fixed_params:
        # In a transform of Haiku's inside of this run, as in `hk.layer_stack`,
        # are other parameters.
        value = self._frame_other(path, _names.escape_key(name))
        if value is not None:
          check_shapes(value, init_fn, args, kwargs)
          return value
      return self._new_param(place, name, make)
    want = expected_shapes(init_fn, args, kwargs)
    try:
      if want.dtype is not None and leaf is True:
        key = _names.escape_key(name)
        try:
          return self._frame_array(path, key, want.shapes[0], want.dtype)
        except (ValueError, AttributeError):
          pass  # Another shape, or no array: the checks below tell which.
      value = self._read(path, 'params', name, leaf)
    except _frame.Missing:
      return self._new_param(place, name, make)
    check_shapes(value, init_fn, args, kwargs)
    return value

  # Haiku checks the shape of a parameter that it is asked for.
  _frame_array = staticmethod(_frame.read_param)

  def hide(self) -> None:
    """Is told that another run hides the frame, or that there is none here."""

  def _initial(self, make: Make) -> Any:
    """Returns the initial value of a parameter."""
    return make()

  def _new_param(self, place: Place, name: str, make: Make) -> Any:
    value = self._initial(make)
    check_stays(name, value, self._is_outside)
    level = self.new_level(place, 'params')
    path, key = place.path, _names.escape_key(name)
    if (
      isinstance(value, (jax.Array, np.ndarray))
      and (path, key) not in self.dropped
    ):
      level[name] = True
      return self._frame_param(path, key, value, make)
    self._put(path, level, 'params', name, value, None, None)
    return value

  # --- The end of the run ---

  def touched(self) -> Touched:
    """Returns the parameters that were made or set here."""
    params, state = self.made
    touched = {(path, key) for path, bundle in params.items() for key in bundle}
    for path, bundle in state.items():
      for key in bundle:
        param = _names.param_of_state(key)
        if param is not None:
          touched.add((path, param))
    return touched

  def take_first(
    self, root: str, state: _bundles.Bundles, first: _bundles.Bundles
  ) -> None:
    """Puts back the first values of state that Haiku's modules made.

    That is what Haiku returns when it initializes; its modules count on it.

    Args:
      root: Haiku's name of the root.
      state: the state as it is now, changed in place.
      first: the first value of each.
    """
    made = self.made[1]
    for path, bundle in _bundles.below(first, root).items():
      for key, value in bundle.items():
        if _bundles.is_own_state(key, value) and key not in made.get(
          path, NOTHING
        ):
          state[path][key] = value

  def take_first_of_ours(self, state: _bundles.Bundles) -> None:
    """Puts back the first values of state that modules of ours have set.

    So it is where Haiku initializes, for all modules.

    Args:
      state: the state as it is now, changed in place.
    """
    assert self.first is not None
    for path, bundle in self.made[1].items():
      first = {**self.first[path], **self.given[1].get(path, NOTHING)}
      for key in bundle:
        if _names.param_of_state(key) is None and key in state.get(path, ()):
          state[path][key] = first[key]

  def check_unchanged(self, state: _bundles.Bundles) -> None:
    """Raises if a module of Haiku's has changed its state.

    Raises:
      ModifyScopeVariableError: it has.
    """
    given, made = self.given[1], self.made[1]
    for path, bundle in state.items():
      was = given.get(path, NOTHING)
      for key, value in bundle.items():
        if (
          _bundles.is_own_state(key, value)
          and was.get(key) is not value
          and key not in made.get(path, NOTHING)
        ):
          raise _haiku_words.fixed_state(path, key, key in was)

  def complete(self, variables: dict[str, Any], mutable) -> None:
    """Puts variables in the order in which they were made.

    Haiku's frame keeps parameters apart from state, and a module's own values
    together; it does not show levels that are empty, nor parameters that are
    None.
    """
    wanted = {col: x for col, x in self.tree.items() if mutable(col)}
    ordered = _in_order(variables, wanted)
    variables.clear()
    variables.update(ordered)

  def remove_dropped(self, bundles: _bundles.Bundles) -> None:
    """Takes out of a frame's bundles what other values have replaced."""
    for path, key in self.dropped:
      bundles.get(path, {}).pop(key, None)


def _in_order(level: dict[str, Any], names: dict[str, Any]) -> dict[str, Any]:
  """Returns a level in the order of its names; Haiku's own values come last."""
  ordered: dict[str, Any] = {}
  for name, below in names.items():
    if isinstance(below, dict):
      found = _in_order(level.get(name, {}), below)
      if found or not below:
        ordered[name] = found
    elif name in level:
      ordered[name] = level[name]
    elif below is _bundles.NONE:
      ordered[name] = None
  for name, value in level.items():
    ordered.setdefault(name, value)
  return ordered
