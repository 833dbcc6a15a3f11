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

import collections
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.core
import numpy as np

from haiku_state import errors
from haiku_state.core import _haiku, _haiku_words, tracers
from haiku_state.core._jax_around import check_stays
from haiku_state.core._place import Place
from haiku_state.core._shapes import expected as expected_shapes
from haiku_state.core._shapes import trace as trace_shapes
from haiku_state.core.frozen_dict import FrozenDict

# Parameters by Haiku's name of the module and their key in its bundle.
Touched = set[tuple[str, str]]
# Values that are new to a frame: parameters and state.
New = tuple[_haiku.Bundles, _haiku.Bundles]
# Makes the initial value of a parameter, or raises if none may be made.
Make = Callable[[], Any]

_NOTHING: Mapping[str, Any] = FrozenDict()
_MAPPINGS = (dict, FrozenDict)


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


class _Tree:
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
    found = above.get(place.name, _NOTHING)
    if not isinstance(found, _MAPPINGS):
      return _NOTHING
    if found is not _NOTHING:
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
      if not isinstance(found, _MAPPINGS):
        return _NOTHING
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
        names = tuple(filter(_haiku.is_outside, list(level)))
        self._outside[col] = len(level), names
      for name in names:
        yield col, name

  def is_empty(self, col: str) -> bool:
    return not self.tree.get(col)

  def has_collection(self, col: str) -> bool:
    return col in self.tree


class AtRest(_Tree):
  """Variables that no run uses now.

  Args:
    tree: collections by name.
    touched: the parameters that the run before made or set, by bundle and key;
      None if that is not known.
  """

  trace = None
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
    if isinstance(was, _MAPPINGS):
      below = f'{path}/{_haiku.escape_module(name)}'
      if isinstance(value, Mapping) and isinstance(was, dict):
        for key, x in value.items():
          self._merge(below, was, col, key, x)
        return
      self._forget_below(below, was, col)
    level[name] = value

  def _forget_below(self, path: str, level: Mapping[str, Any], col: str):
    self.forget_level(path, col)
    for name, below in level.items():
      if isinstance(below, _MAPPINGS):
        path_below = f'{path}/{_haiku.escape_module(name)}'
        self._forget_below(path_below, below, col)

  def variables(self, place: Place) -> dict[str, Any]:
    if place.above is None:
      return self.tree
    levels = {col: self.level(place, col) for col in self.tree}
    return {c: x for c, x in levels.items() if x is not _NOTHING}


_IN_STATE = 'state'


class InRun(_Tree):
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
    given: see above. What was given is there, without a look; and a transform
      takes fixed parameters from here: once, and before anybody's getters,
      which see them inside of it.
    made: the parameters and the state that were set here: read where Haiku's
      frame is out of reach, and told to those who write back what changed.
    dropped: what a value of another kind has put out of the tree, by bundle and
      key: Haiku still has it.
    later: what is to be done to Haiku's frame, set where it was out of reach.
    modules: the Haiku names of the modules of ours: one of Haiku's with the same
      name would take the variables for its own.
  """

  def __init__(
    self,
    names: dict[str, Any],
    given: tuple[_haiku.Bundles, _haiku.Bundles],
    has_fixed_params: bool,
    trace: tracers.Trace,
  ):
    super().__init__(names)
    self.given = given
    self.has_fixed_params = has_fixed_params
    self.trace = trace
    self.made: tuple[_haiku.Bundles, _haiku.Bundles] = ({}, {})
    self.dropped: set[tuple[str, str]] = set()
    self.later = collections.deque()
    self.modules: set[str] = set()

  # --- Haiku's frame ---

  def _at(self, path: str, fn: Callable[..., Any], *args: Any) -> Any:
    return _haiku.at(path, fn, *args)

  def _is_outside(self) -> bool:
    """Returns whether no transform of JAX is between the frame and here.

    Haiku's own (`hk.scan`, `hk.remat`, ...) may be: they carry the frame along.
    """
    return self.trace.is_current() or _haiku.frame_is_current()

  def _frame_param(self, path: str, key: str, value: Any, again: Make) -> Any:
    """Adds a parameter; returns it as those who ask for it will get it."""
    made = _haiku.new_param(path, key, value, again)
    self.made[0].setdefault(path, {})[key] = made
    return made

  def _frame_state(self, path: str, key: str, value: Any, is_new: bool) -> None:
    self.made[1].setdefault(path, {})[key] = value
    (_haiku.new_state if is_new else _haiku.write_state)(path, key, value)

  def _frame_new(self, new: New) -> None:
    """Adds what an inner run has made: those who look at it have seen it."""
    for made, bundles in zip(self.made, new):
      for path, bundle in bundles.items():
        made.setdefault(path, {}).update(bundle)
    _haiku.put_as_is(*new)

  def _frame_read(self, path: str, col: str, name: str, leaf: Any) -> Any:
    """Returns the value of a leaf, or raises `Missing`."""
    is_state, key = self._key_of(col, name, leaf)
    read = _haiku.find_state if is_state else _haiku.read_any_param
    return read(path, key)

  def _key_of(self, col: str, name: str, leaf: Any) -> tuple[bool, str]:
    """Returns whether a leaf is state in Haiku's frame, and its key there."""
    if col != 'params' or leaf is _IN_STATE:
      return True, _haiku.state_key(col, name)
    return False, _haiku.escape_key(name)

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
    col, names, name = _haiku.place_of(root, path, key, is_param)
    level = self.tree.setdefault(col, {})
    for below in names:
      level = level.setdefault(below, {})
      if not isinstance(level, dict):
        return  # A value and a module of one name: told of when the run ends.
    # An array may be set to something else.
    if name is not None and level.get(name) in (None, _haiku.ARRAY):
      level[name] = True

  # --- Reading ---

  def has(self, place: Place, col: str, name: str) -> bool:
    leaf = self.level(place, col).get(name)
    if leaf is None:
      return False
    path = place.path
    if isinstance(leaf, dict):
      # A level is there if anything below it is, or if it was empty.
      below = _haiku.path_below(path, name)
      return not leaf or self._has_below(below, col, leaf)
    return self._has_leaf(path, col, name, leaf)

  def _has_leaf(self, path: str, col: str, name: str, leaf: Any) -> bool:
    is_state, key = self._key_of(col, name, leaf)
    if leaf is _haiku.NONE or key in self.given[is_state].get(path, _NOTHING):
      return True
    try:
      self._read(path, col, name, leaf)
    except _haiku.Missing:
      return False
    return True

  def _has_below(self, path: str, col: str, level: dict[str, Any]) -> bool:
    for name, leaf in list(level.items()):
      if isinstance(leaf, dict):
        below = _haiku.path_below(path, name)
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
      return self._read(place.path, col, name, leaf)
    except _haiku.Missing:
      return default

  def is_array(self, place: Place, col: str, name: str) -> bool:
    """Returns whether a variable is one array, as far as the name tells."""
    return self.level(place, col).get(name) == _haiku.ARRAY

  def _read(self, path: str, col: str, name: str, leaf: Any) -> Any:
    if isinstance(leaf, dict):
      below = _haiku.path_below(path, name)
      value = self._read_level(below, col, leaf)
      is_frozen = isinstance(leaf, _haiku.FrozenNode)
      return FrozenDict(value) if is_frozen else value
    if leaf is _haiku.NONE:
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
        below = _haiku.path_below(path, name)
        value = self._read_level(below, col, leaf)
        return (value,) if value or not leaf else ()
      try:
        return (self._read(path, col, name, leaf),)
      except _haiku.Missing:
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
    bundle = self.given[0].get(path, _NOTHING)
    return {
      name: self._given_level(_haiku.path_below(path, name), leaf)
      if isinstance(leaf, dict)
      else None
      if leaf is _haiku.NONE
      else bundle[_haiku.escape_key(name)]
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
    if isinstance(value, _MAPPINGS):
      if leaf is not None and not isinstance(leaf, dict):
        self._drop(path, col, name)
      if not isinstance(leaf, dict):
        kind = _haiku.FrozenNode if isinstance(value, FrozenDict) else dict
        leaf = level[name] = kind()
      below = _haiku.path_below(path, name)
      self._put_level(below, leaf, col, value, only, new)
      return
    if only is not None and leaf is not None:
      if (path, _haiku.escape_key(name)) not in only:
        return
    if isinstance(leaf, dict):
      self._drop_level(_haiku.path_below(path, name), col, leaf)
      leaf = None
    self._put_leaf(path, level, col, name, value, leaf, new)

  def _put_leaf(self, path, level, col, name, value, leaf, new) -> None:
    check_stays(name, value, self._is_outside)
    key = _haiku.state_key(col, name)
    was_dropped = (path, key) in self.dropped  # Haiku still has its value.
    self.dropped.discard((path, key))
    if leaf is None and col == 'params' and value is not None:
      param_key = _haiku.escape_key(name)
      if (path, param_key) not in self.dropped:
        if new:
          new[0].setdefault(path, {})[param_key] = value
        else:
          self._frame_param(path, param_key, value, lambda: value)
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
      level[name] = _haiku.ARRAY if isinstance(value, jax.Array) else True

  def _drop(self, path: str, col: str, name: str) -> None:
    if col == 'params':
      self.dropped.add((path, _haiku.escape_key(name)))
    self.dropped.add((path, _haiku.state_key(col, name)))

  def _drop_level(self, path: str, col: str, level: dict[str, Any]) -> None:
    self.forget_level(path, col)
    for name, leaf in level.items():
      if isinstance(leaf, dict):
        self._drop_level(_haiku.path_below(path, name), col, leaf)
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
    if leaf is None:
      return self._new_param(place, name, make)
    path = place.path
    want = expected_shapes(init_fn, args, kwargs)
    try:
      if want.dtype is not None and leaf is True:
        key = _haiku.escape_key(name)
        try:
          return self._frame_array(path, key, want.shapes[0], want.dtype)
        except (ValueError, AttributeError):
          pass  # Another shape, or no array: the checks below tell which.
      value = self._read(path, 'params', name, leaf)
    except _haiku.Missing:
      return self._new_param(place, name, make)
    check_shapes(value, init_fn, args, kwargs)
    return value

  # Haiku checks the shape of a parameter that it is asked for.
  _frame_array = staticmethod(_haiku.read_param)

  def _initial(self, make: Make) -> Any:
    """Returns the initial value of a parameter."""
    return make()

  def _new_param(self, place: Place, name: str, make: Make) -> Any:
    value = self._initial(make)
    check_stays(name, value, self._is_outside)
    level = self.new_level(place, 'params')
    path, key = place.path, _haiku.escape_key(name)
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
        param = _haiku.param_of_state(key)
        if param is not None:
          touched.add((path, param))
    return touched

  def take_first(
    self, root: str, state: _haiku.Bundles, first: _haiku.Bundles
  ) -> None:
    """Puts back the first values of state that Haiku's modules made.

    That is what Haiku returns when it initializes; its modules count on it.

    Args:
      root: Haiku's name of the root.
      state: the state as it is now, changed in place.
      first: the first value of each.
    """
    made = self.made[1]
    for path, bundle in _haiku.below(first, root).items():
      for key, value in bundle.items():
        if _haiku.is_own_state(key, value) and key not in made.get(
          path, _NOTHING
        ):
          state[path][key] = value

  def check_unchanged(self, state: _haiku.Bundles) -> None:
    """Raises if a module of Haiku's has changed its state.

    Raises:
      ModifyScopeVariableError: it has.
    """
    given, made = self.given[1], self.made[1]
    for path, bundle in state.items():
      was = given.get(path, _NOTHING)
      for key, value in bundle.items():
        if (
          _haiku.is_own_state(key, value)
          and was.get(key) is not value
          and key not in made.get(path, _NOTHING)
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

  def remove_dropped(self, bundles: _haiku.Bundles) -> None:
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
    elif below is _haiku.NONE:
      ordered[name] = None
  for name, value in level.items():
    ordered.setdefault(name, value)
  return ordered


class InHaiku:
  """Variables of a module of ours that runs in somebody's `hk.transform`."""

  @functools.cached_property
  def trace(self) -> tracers.Trace:
    """The trace that the first parameter was made in."""
    return tracers.Trace()

  def level(self, place: Place, col: str) -> Mapping[str, Any]:
    return self.variables(place).get(col, _NOTHING)

  def has(self, place: Place, col: str, name: str) -> bool:
    # Asked for state by name, Haiku makes an empty bundle where there is none,
    # which is then in the state that it returns.
    return name in self.level(place, col)

  def has_or_will(self, place: Place, col: str, name: str) -> bool:
    return self.get(place, col, name, _NOTHING) is not _NOTHING

  def get(self, place: Place, col: str, name: str, default: Any = None) -> Any:
    if col != 'params':
      try:
        key = _haiku.state_key(col, name)
        return _haiku.find_state(place.path, key)
      except _haiku.Missing:
        pass  # It may be a level.
    return self.level(place, col).get(name, default)

  def is_array(self, place: Place, col: str, name: str) -> bool:
    return isinstance(self.get(place, col, name), jax.Array)

  def put(self, place: Place, col: str, name: str, value: Any) -> None:
    self._put(place, place.path, col, name, value)

  def _put(self, place: Place, path: str, col: str, name: str, value) -> None:
    if isinstance(value, _MAPPINGS):
      below = _haiku.path_below(path, name)
      for key, x in value.items():
        self._put(place, below, col, key, x)
      return
    check_stays(name, value, _haiku.frame_is_current)
    if col == 'params':
      if self.has(place, col, name):
        raise CannotChange(name)
      key = _haiku.escape_key(name)
      _haiku.new_param(path, key, value, lambda: value)
    else:
      key = _haiku.state_key(col, name)
      try:
        _haiku.find_state(path, key)
      except _haiku.Missing:
        _haiku.new_state(path, key, value)
      else:
        _haiku.write_state(path, key, value)

  def merge(self, place: Place, col: str, tree: Any, only: Any) -> None:
    """Puts a tree of variables below a place: see `InRun.merge`.

    Raises:
      ValueError: some lie outside of the module: no later call would know.
    """
    outside = next(filter(_haiku.is_outside, tree), None)
    if outside is not None:
      raise _haiku_words.forced_in_lifted(place.path, outside)
    there = self.level(place, col)
    new: New = {}, {}
    self._merge_level(place, place.path, there, col, tree, only, new)
    _haiku.put_as_is(*new)

  def _merge_level(self, place, path, there, col, tree, only, new: New) -> None:
    for name, value in tree.items():
      if isinstance(value, _MAPPINGS):
        below = _haiku.path_below(path, name)
        known = there.get(name, _NOTHING)
        self._merge_level(place, below, known, col, value, only, new)
      elif name not in there and value is not None and _haiku.is_initializing():
        self._add(path, col, name, value, new)
      elif (
        only is None
        or name not in there
        or (path, _haiku.escape_key(name)) in only
      ):
        self._put(place, path, col, name, value)

  def _add(self, path: str, col: str, name: str, value, new: New) -> None:
    check_stays(name, value, _haiku.frame_is_current)
    is_param = col == 'params'
    key = _haiku.escape_key(name) if is_param else _haiku.state_key(col, name)
    params, state = new
    (params if is_param else state).setdefault(path, {})[key] = value

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
    """Returns a parameter, made in one call so that Haiku's creators see it."""
    want = expected_shapes(init_fn, args, kwargs)
    if want.dtype is None:
      return self._any_param(place, name, init_fn, args, kwargs, make)
    key = _haiku.escape_key(name)

    def init(shape, dtype):
      value = make()
      check_stays(name, value, _haiku.frame_is_current)
      return _haiku.fit(value, want.shapes[0], want.dtype, shape, dtype, key)

    return _haiku.get_or_make_param(
      place.path, key, want.shapes[0], want.dtype, init
    )

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
    return _haiku.frame_variables(place.path)


Store = AtRest | InRun | InHaiku


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
