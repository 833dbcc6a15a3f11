"""Where the variables of a scope are: at rest, in a run, or in Haiku's hands.

A store answers for (scope, collection, name). Three kinds have one interface:

* `AtRest`: no run; the values are in the variables dict itself.
* `InRun`: a run of our own; the values are in Haiku's frame, the store knows
  only their names.
* `InHaiku`: a module of ours in somebody else's `hk.transform`; the values are
  in Haiku's frame, and Haiku is asked for the names too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from haiku_state import errors
from haiku_state.core import _haiku
from haiku_state.core._shapes import expected as expected_shapes
from haiku_state.core._shapes import trace as trace_shapes
from haiku_state.core.frozen_dict import FrozenDict

if TYPE_CHECKING:
  from haiku_state.core.scope import Scope

# Parameters by Haiku's name of the module and their name in it.
Touched = set[tuple[str, str]]

_NOTHING: Mapping[str, Any] = FrozenDict()
_MAPPINGS = (dict, FrozenDict)


class _Tree:
  """Collections as nested dicts, with the levels below each scope at hand."""

  def __init__(self, tree: dict[str, Any]):
    self.tree = tree

  def level(self, scope: Scope, col: str) -> Mapping[str, Any]:
    """Returns the level of a collection at a scope, empty if there is none."""
    levels = scope._levels_in(self)
    found = levels.get(col)
    if found is None:
      parent = scope.parent
      if parent is None:
        found = self.tree.get(col, _NOTHING)
      else:
        assert scope.name is not None
        found = self.level(parent, col).get(scope.name, _NOTHING)
      if found is _NOTHING or not isinstance(found, _MAPPINGS):
        return _NOTHING
      levels[col] = found
    return found

  def new_level(self, scope: Scope, col: str) -> dict[str, Any]:
    """Returns the level of a collection at a scope, made if there is none."""
    found = self.level(scope, col)
    if isinstance(found, dict):
      return found
    if scope.parent is None:
      above, name = self.tree, col
    else:
      above, name = self.new_level(scope.parent, col), scope.name
    assert name is not None
    made = above[name] = {}
    scope._levels_in(self)[col] = made
    return made

  def has(self, scope: Scope, col: str, name: str) -> bool:
    return name in self.level(scope, col)

  def has_or_will(self, scope: Scope, col: str, name: str) -> bool:
    """Returns `has`, for a caller who makes what is missing."""
    return self.has(scope, col, name)

  def is_empty(self, col: str) -> bool:
    return not self.tree.get(col)

  def has_collection(self, col: str) -> bool:
    return col in self.tree


class AtRest(_Tree):
  """Variables that no run uses now.

  Args:
    tree: collections by name.
    touched: the parameters that the run before made or set, by bundle and name;
      None if that is not known.
  """

  def __init__(self, tree: Any, touched: Touched | None = None):
    super().__init__(tree)
    self.touched = touched

  def get(self, scope: Scope, col: str, name: str, default: Any = None) -> Any:
    return self.level(scope, col).get(name, default)

  def is_array(self, scope: Scope, col: str, name: str) -> bool:
    return isinstance(self.get(scope, col, name), jax.Array)

  def put(self, scope: Scope, col: str, name: str, value: Any) -> None:
    _merge(self.new_level(scope, col), name, value)

  def param(self, scope: Scope, name: str, init_fn, args, kwargs) -> Any:
    if self.has(scope, 'params', name):
      value = self.get(scope, 'params', name)
      check_shapes(scope, name, value, init_fn, args, kwargs)
    else:
      check_may_make_param(scope, name)
      value = scope.initial_param(init_fn, args, kwargs)
      self.put(scope, 'params', name, value)
    return value

  def merge(self, scope: Scope, col: str, tree: Any, only: Any) -> None:
    """Puts a tree of variables below a scope."""
    del only  # A value that did not change may be put again.
    level = self.new_level(scope, col)
    for name, value in tree.items():
      _merge(level, name, value)

  def variables(self, scope: Scope) -> dict[str, Any]:
    if scope.parent is None:
      return self.tree
    levels = {col: self.level(scope, col) for col in self.tree}
    return {c: x for c, x in levels.items() if x is not _NOTHING}


def _merge(level: dict[str, Any], name: str, value: Any) -> None:
  """Sets a value; a dict goes into a dict, whose other names stay."""
  if isinstance(value, Mapping) and isinstance(level.get(name), dict):
    for key, below in value.items():
      _merge(level[name], key, below)
  else:
    level[name] = value


class InRun(_Tree):
  """Variables in the frame of a run; the tree here holds their names.

  A level of names is a dict. A leaf is `True`, `ARRAY` for state that is one
  array, or `_IN_STATE` for a parameter that was overwritten: Haiku's parameters
  do not change, so its new value is state, which wins over the parameter when
  the run is over. A name may be that of a value which is gone: `hk.eval_shape`,
  for one, lets go of what is made in it.
  """

  def __init__(self, names: dict[str, Any]):
    super().__init__(names)
    # What a new value has put out of the tree, by bundle and key.
    self.dropped: set[tuple[str, str]] = set()
    self.touched: Touched = set()
    # Parameters and state that were made or set here, by bundle and key: read
    # while Haiku's frame is out of reach.
    self.made: tuple[_haiku.Bundles, _haiku.Bundles] = ({}, {})
    # Parameters that do not change in this run. A transform takes them from
    # here: once, and before anybody's getters, which see them inside of it.
    self.fixed: _haiku.Bundles | None = None
    # State that Haiku's modules made, by bundle and key.
    self.by_haiku: set[tuple[str, str]] = set()
    # Whether there is any name that was not there at the start.
    self.grew = False

  def note(self, root: str, path: str, key: str, is_param: bool) -> None:
    """Takes the name of a variable that Haiku makes or sets into the tree."""
    self.grew = True
    col, names, name = _haiku.place_of(root, path, key, is_param)
    if col == _haiku.HAIKU_COLLECTION:
      self.by_haiku.add((path, key))
    level = self.tree.setdefault(col, {})
    for below in names:
      level = level.setdefault(below, {})
      if not isinstance(level, dict):
        return  # A value and a module of one name: told of when the run ends.
    # An array may be set to something else.
    if name is not None and level.get(name) in (None, _haiku.ARRAY):
      level[name] = True

  def take_first(self, state: _haiku.Bundles, first: _haiku.Bundles) -> None:
    """Puts back the first values of state that Haiku's modules made.

    That is what Haiku returns when it initializes; its modules count on it.
    """
    for path, key in self.by_haiku:
      if key in first.get(path, _NOTHING):
        state[path][key] = first[path][key]

  def has(self, scope: Scope, col: str, name: str) -> bool:
    leaf = self.level(scope, col).get(name)
    if leaf is None or not self.grew:
      return leaf is not None
    try:
      value = self._read(scope.haiku_path, col, name, leaf)
    except _haiku.Missing:
      return False
    # A level is there if anything below it is, or if it was empty.
    return not isinstance(leaf, dict) or not leaf or bool(value)

  def get(self, scope: Scope, col: str, name: str, default: Any = None) -> Any:
    leaf = self.level(scope, col).get(name)
    if leaf is None:
      return default
    try:
      return self._read(scope.haiku_path, col, name, leaf)
    except _haiku.Missing:
      return default

  def is_array(self, scope: Scope, col: str, name: str) -> bool:
    """Returns whether a variable is one array, as far as the name tells."""
    return self.level(scope, col).get(name) == _haiku.ARRAY

  def _read(self, path: str, col: str, name: str, leaf: Any) -> Any:
    if isinstance(leaf, dict):
      below = f'{path}/{_haiku.escape_module(name)}'
      value = self._read_level(below, col, leaf)
      is_frozen = isinstance(leaf, _haiku.FrozenNode)
      return FrozenDict(value) if is_frozen else value
    if leaf is _haiku.NONE:
      return None
    if col != 'params' or leaf is _IN_STATE:
      return _haiku.find_state(path, _haiku.state_key(col, name))
    return _haiku.read_any_param(path, _haiku.escape_key(name))

  def _read_level(
    self, path: str, col: str, level: dict[str, Any]
  ) -> dict[str, Any]:
    """Returns all values below a module, entering each module once."""

    def read_here():
      return {n: x for n, leaf in level.items() for x in read(n, leaf)}

    def read(name, leaf):
      if isinstance(leaf, dict):
        below = f'{path}/{_haiku.escape_module(name)}'
        value = self._read_level(below, col, leaf)
        return (value,) if value or not leaf else ()
      try:
        return (self._read(path, col, name, leaf),)
      except _haiku.Missing:
        return ()

    return _haiku.at(path, read_here) if level else {}

  def put(self, scope: Scope, col: str, name: str, value: Any) -> None:
    level = self.new_level(scope, col)
    self._put(scope.haiku_path, level, col, name, value, None)

  def merge(
    self, scope: Scope, col: str, tree: Any, only: Touched | None
  ) -> None:
    """Puts a tree of variables below a scope.

    Args:
      scope: the scope.
      col: the collection.
      tree: nested dicts.
      only: of the parameters that are there already, those to put; None for
        all. It spares parameters that a transform returns as they were from
        being written, which Haiku does not do.
    """
    level = self.new_level(scope, col)
    self._put_level(scope.haiku_path, level, col, tree, only)

  def _put_level(self, path, level, col, tree, only) -> None:
    def put_here():
      for name, value in tree.items():
        self._put(path, level, col, name, value, only)

    if tree:
      _haiku.at(path, put_here)

  def _put(self, path: str, level: dict, col: str, name: str, value, only):
    leaf = level.get(name)
    if isinstance(value, _MAPPINGS):
      if leaf is not None and not isinstance(leaf, dict):
        self._drop(path, col, name)
      if not isinstance(leaf, dict):
        kind = _haiku.FrozenNode if isinstance(value, FrozenDict) else dict
        leaf = level[name] = kind()
      below = f'{path}/{_haiku.escape_module(name)}'
      self._put_level(below, leaf, col, value, only)
      return
    if only is not None and leaf is not None and (path, name) not in only:
      return
    if isinstance(leaf, dict):
      self._drop_level(f'{path}/{_haiku.escape_module(name)}', col, leaf)
      leaf = None
    self._put_leaf(path, level, col, name, value, leaf)

  def _put_leaf(self, path, level, col, name, value, leaf) -> None:
    self.grew = True
    key = _haiku.state_key(col, name)
    was_dropped = (path, key) in self.dropped  # Haiku still has its value.
    self.dropped.discard((path, key))
    if col == 'params':
      self.touched.add((path, name))
    if leaf is None and col == 'params' and value is not None:
      param_key = _haiku.escape_key(name)
      if (path, param_key) not in self.dropped:
        made = _haiku.new_param(path, param_key, value, lambda: value)
        self.made[0].setdefault(path, {})[param_key] = made
        level[name] = True
        return
    self.made[1].setdefault(path, {})[key] = value
    if leaf is None and not was_dropped:
      _haiku.new_state(path, key, value)
    else:
      _haiku.write_state(path, key, value)
    self.by_haiku.discard((path, key))
    if col == 'params':
      level[name] = _IN_STATE
    else:
      level[name] = _haiku.ARRAY if isinstance(value, jax.Array) else True

  def _drop(self, path: str, col: str, name: str) -> None:
    if col == 'params':
      self.dropped.add((path, _haiku.escape_key(name)))
    self.dropped.add((path, _haiku.state_key(col, name)))

  def _drop_level(self, path: str, col: str, level: dict[str, Any]) -> None:
    for name, leaf in level.items():
      if isinstance(leaf, dict):
        self._drop_level(f'{path}/{_haiku.escape_module(name)}', col, leaf)
      else:
        self._drop(path, col, name)

  def param(self, scope: Scope, name: str, init_fn, args, kwargs) -> Any:
    leaf = self.level(scope, 'params').get(name)
    if leaf is None:
      return self._new_param(scope, name, init_fn, args, kwargs)
    path = scope.haiku_path
    want = expected_shapes(init_fn, args, kwargs)
    try:
      if want.dtype is not None and leaf is True:
        key = _haiku.escape_key(name)
        try:
          return _haiku.read_param(path, key, want.shapes[0], want.dtype)
        except (ValueError, AttributeError):
          pass  # Another shape, or no array: the checks below tell which.
      value = self._read(path, 'params', name, leaf)
    except _haiku.Missing:
      return self._new_param(scope, name, init_fn, args, kwargs)
    check_shapes(scope, name, value, init_fn, args, kwargs)
    return value

  def _new_param(self, scope: Scope, name: str, init_fn, args, kwargs) -> Any:
    def make():
      return scope.initial_param(init_fn, args, kwargs)

    check_may_make_param(scope, name)
    value = make()
    level = self.new_level(scope, 'params')
    path, key = scope.haiku_path, _haiku.escape_key(name)
    if (
      isinstance(value, (jax.Array, np.ndarray))
      and (path, key) not in self.dropped
    ):
      level[name] = True
      self.grew = True
      self.touched.add((path, name))
      value = _haiku.new_param(path, key, value, make)
      self.made[0].setdefault(path, {})[key] = value
      return value
    self._put(path, level, 'params', name, value, None)
    return value

  def variables(self, scope: Scope) -> dict[str, Any]:
    path = scope.haiku_path
    levels = {col: self.level(scope, col) for col in self.tree}
    return {
      col: self._given_level(path, level)
      if col == 'params' and self.fixed is not None
      else self._read_level(path, col, level)
      for col, level in levels.items()
      if isinstance(level, dict)
    }

  def _given_level(self, path: str, level: dict[str, Any]) -> dict[str, Any]:
    """Returns the parameters below a module, as the run was given them."""
    assert self.fixed is not None
    bundle = self.fixed.get(path, _NOTHING)
    return {
      name: self._given_level(f'{path}/{_haiku.escape_module(name)}', leaf)
      if isinstance(leaf, dict)
      else None
      if leaf is _haiku.NONE
      else bundle[_haiku.escape_key(name)]
      for name, leaf in level.items()
    }

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


_IN_STATE = 'state'


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

  def level(self, scope: Scope, col: str) -> Mapping[str, Any]:
    return self.variables(scope).get(col, _NOTHING)

  def has(self, scope: Scope, col: str, name: str) -> bool:
    # Asked for state by name, Haiku makes an empty bundle where there is none,
    # which is then in the state that it returns.
    return name in self.level(scope, col)

  def has_or_will(self, scope: Scope, col: str, name: str) -> bool:
    return self.get(scope, col, name, _NOTHING) is not _NOTHING

  def get(self, scope: Scope, col: str, name: str, default: Any = None) -> Any:
    if col != 'params':
      try:
        key = _haiku.state_key(col, name)
        return _haiku.find_state(scope.haiku_path, key)
      except _haiku.Missing:
        pass  # It may be a level.
    return self.level(scope, col).get(name, default)

  def is_array(self, scope: Scope, col: str, name: str) -> bool:
    return isinstance(self.get(scope, col, name), jax.Array)

  def put(self, scope: Scope, col: str, name: str, value: Any) -> None:
    self._put(scope, scope.haiku_path, col, name, value)

  def _put(self, scope: Scope, path: str, col: str, name: str, value) -> None:
    if isinstance(value, _MAPPINGS):
      below = f'{path}/{_haiku.escape_module(name)}'
      for key, x in value.items():
        self._put(scope, below, col, key, x)
    elif col == 'params':
      if self.has(scope, col, name):
        raise errors.ModifyScopeVariableError(col, name, scope.path_text)
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

  def merge(self, scope: Scope, col: str, tree: Any, only: Any) -> None:
    """Puts a tree of variables below a scope: see `InRun.merge`."""
    there = self.level(scope, col)
    self._merge_level(scope, scope.haiku_path, there, col, tree, only)

  def _merge_level(self, scope, path, there, col, tree, only) -> None:
    for name, value in tree.items():
      if isinstance(value, _MAPPINGS):
        below = f'{path}/{_haiku.escape_module(name)}'
        known = there.get(name, _NOTHING)
        self._merge_level(scope, below, known, col, value, only)
      elif only is None or name not in there or (path, name) in only:
        self._put(scope, path, col, name, value)

  def is_empty(self, col: str) -> bool:
    return False

  def has_collection(self, col: str) -> bool:
    return True

  def param(self, scope: Scope, name: str, init_fn, args, kwargs) -> Any:
    """Returns a parameter, made in one call so that Haiku's creators see it."""
    want = expected_shapes(init_fn, args, kwargs)
    if want.dtype is None:
      return self._any_param(scope, name, init_fn, args, kwargs)
    key = _haiku.escape_key(name)

    def init(shape, dtype):
      check_may_make_param(scope, name)
      value = scope.initial_param(init_fn, args, kwargs)
      return _haiku.fit(value, want.shapes[0], want.dtype, shape, dtype, key)

    return _haiku.get_or_make_param(
      scope.haiku_path, key, want.shapes[0], want.dtype, init
    )

  def _any_param(self, scope: Scope, name: str, init_fn, args, kwargs) -> Any:
    """Returns a parameter that is no array."""
    level = self.level(scope, 'params')
    if name in level:
      value = level[name]
      check_shapes(scope, name, value, init_fn, args, kwargs)
    else:
      check_may_make_param(scope, name)
      value = scope.initial_param(init_fn, args, kwargs)
      self.put(scope, 'params', name, value)
    return value

  def variables(self, scope: Scope) -> dict[str, Any]:
    return _haiku.frame_variables(scope.haiku_path)


Store = AtRest | InRun | InHaiku


def check_may_make_param(scope: Scope, name: str) -> None:
  """Raises unless the scope may make a parameter that is missing."""
  if scope.is_mutable_collection('params'):
    return
  if scope.is_collection_empty('params'):
    error = errors.ScopeCollectionNotFound('params', name, scope.path_text)
  else:
    error = errors.ScopeParamNotFoundError(name, scope.path_text)
  raise errors._with_hint(error, _hint(scope))


def _hint(scope: Scope) -> str | None:
  """Says what to do with variables that look like parameters of Haiku's."""
  tree = getattr(scope._run.store, 'tree', _NOTHING)
  bundles = tree.get('params', tree)
  if not any(
    _haiku.is_level(bundle)
    and ('/' in str(path) or not _haiku.LAYER_KEYS.isdisjoint(bundle))
    for path, bundle in bundles.items()
  ):
    return None
  return (
    f"The variables have the names of Haiku's parameters: {list(bundles)[:3]}."
    ' If modules like these made them inside of hk.transform, pass'
    ' `interop.from_haiku(params, state, root)`; if layers of Haiku did, convert'
    ' them by `interop.weights_from_haiku`.'
  )


def check_shapes(scope, name, value, init_fn, args, kwargs) -> None:
  """Raises unless a parameter has the shapes that its initializer makes."""
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
  raise errors.ScopeParamShapeError(name, scope.path_text, *wrong[0])
