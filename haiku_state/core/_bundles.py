"""Haiku's dictionaries, and the map of variables onto them.

Haiku keeps parameters and state in bundles: two levels, by the name of the
module and the name of the value. Variables lie there so::

    variables['params'][path...][name]   ==  params[path][name]
    variables[col][path...][name]        ==  state[path]['col:name']
    variables['state'][path...][name]    ==  state[path][name]

`path` is joined by `/` and begins with the name of the root, which the nested
form does not show. How names are written is told in `_names.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax

from haiku_state.core import _names
from haiku_state.core.frozen_dict import FrozenDict

# Two levels: by the name of the module, by the name of the value.
Bundles = Any


# Asked of the type, and once for each: asked of every value, an abstract class
# costs more than all else that is done with the value.
@functools.lru_cache(maxsize=1024)
def _is_mapping_type(cls: type) -> bool:
  return issubclass(cls, Mapping)


def is_level(value: Any) -> bool:
  """Returns whether a value in a variables dict is a level of names.

  That is a mapping of any type: a dict, a FrozenDict of whichever library,
  Haiku's FlatMap, a `types.MappingProxyType`.
  """
  return _is_mapping_type(type(value))


def with_own_levels(tree: Any) -> Any:
  """Returns a tree whose levels are dicts and FrozenDicts of ours.

  Args:
    tree: levels and values.

  Returns:
    The tree itself if its levels are that already; else with dicts in place of
    mappings of other types, and of what holds them.
  """
  if isinstance(tree, FrozenDict):
    own = with_own_levels(tree._dict)
    return tree if own is tree._dict else FrozenDict(own)
  if not is_level(tree):
    return tree
  own = {name: with_own_levels(value) for name, value in tree.items()}
  if isinstance(tree, dict) and all(own[n] is x for n, x in tree.items()):
    return tree
  return own


def is_own_state(key: str, value: Any) -> bool:
  """Returns whether a value of state is that of one of Haiku's own modules."""
  if _empty_collection(key, value) is not None:
    return False  # It says that there is a collection.
  return _names.split_key_of_run(key)[0] == _names.HAIKU_COLLECTION


def _empty_collection(key: str, value: Any) -> str | None:
  """Returns the collection of which a key says that it is there."""
  if not key.endswith(':') or not is_level(value) or value:
    return None
  return _names.emptied_by(key)


def below(bundles: Bundles, root: str) -> Bundles:
  """Returns the bundles of a module and those below it."""
  return {path: x for path, x in bundles.items() if _names.is_below(path, root)}


def to_haiku(
  variables: Mapping[str, Any], root: str
) -> tuple[Bundles, Bundles]:
  """Spreads a variables dict over Haiku's parameters and state.

  Args:
    variables: collections by name, nested dicts whose leaves are values.
    root: the Haiku name of the root module.

  Returns:
    `(params, state)`, two levels each. `from_haiku` is the inverse.
  """
  params, state, _ = spread(variables, root, lambda col: False)
  return params, state


# In a tree of names, the leaf of a parameter that is None: Haiku has no such.
NONE = 'none'
# The leaf of state that is one array, for sure: it is in no box.
ARRAY = 'array'


class FrozenNode(dict):
  """A level of names whose values the user gave as a FrozenDict."""


def spread(
  variables: Mapping[str, Any], root: str, mutable: Callable[[str], bool]
) -> tuple[Bundles, Bundles, dict[str, Any]]:
  """Returns `to_haiku` of the variables and the tree of their names.

  Args:
    variables: collections by name.
    root: the Haiku name of the root module.
    mutable: whether a collection may change: then its levels are plain dicts,
      whatever the user gave.

  Returns:
    `(params, state, names)`. `names` has a dict for each level of a collection
    and `True` for each leaf, or `NONE` or `ARRAY`.
  """
  params: Bundles = {}
  state: Bundles = {}
  names: dict[str, Any] = {}
  for col, tree in variables.items():
    frozen = isinstance(tree, FrozenDict) and not mutable(col)
    node = names[col] = FrozenNode() if frozen else {}
    if isinstance(tree, FrozenDict):
      tree = tree._dict  # Its levels below the first are plain dicts.
    if col == 'params':
      target, key = params, _names.escape_key
      # A bundle with nothing in it shows that the collection is there.
      params.setdefault(root, {})
    else:
      target, key = state, functools.partial(_names.state_key, col)
      if not tree:
        state.setdefault(root, {})[_names.empty_key(col)] = {}
    _spread_level(tree, root, root, target, key, node, root, params)
  return params, state, names


def _spread_level(tree, path, place, target, key, node, root, params) -> None:
  """Puts the leaves of one level into their bundle, and goes below.

  Args:
    tree: the level.
    path: the bundle of what lies below it.
    place: the bundle of its leaves: the same, but for those outside of the root.
    target: the bundles.
    key: a function from names to keys.
    node: the level of the tree of names.
    root: the Haiku name of the root module.
    params: the bundles of parameters.
  """
  bundle = None
  for name, value in tree.items():
    if _is_mapping_type(type(value)) and value:
      child = node[name] = type(node)()
      below = leaves = f'{path}/{_names.escape_module(name)}'
      if path == root and _names.is_outside_of(name, root):
        leaves = name[len(_names.OUTSIDE) :]
      _spread_level(value, below, leaves, target, key, child, root, params)
    else:
      # An empty dict is a leaf: Haiku's two levels cannot show it otherwise.
      if bundle is None:
        bundle = target.setdefault(place, {})
      bundle[key(name)] = value
      if _is_mapping_type(type(value)):
        node[name] = type(node)()
        if place == root and target is not params:
          _check_no_mark(key(name), value, name)
      elif target is params:
        node[name] = NONE if value is None else True
      else:
        node[name] = ARRAY if isinstance(value, jax.Array) else True


def _check_no_mark(key: str, value: Any, name: Any) -> None:
  if _empty_collection(key, value) is not None:
    raise ValueError(
      f'The empty dict "{name}" of the collection "{_names.HAIKU_COLLECTION}" would be'
      f' read back as the collection "{key[:-1]}". Rename it.'
    )


def from_haiku(
  params: Mapping[str, Mapping[str, Any]],
  state: Mapping[str, Mapping[str, Any]],
  root: str,
) -> dict[str, Any]:
  """Gathers Haiku's parameters and state into a variables dict.

  Args:
    params: parameters by module and name.
    state: state by module and name.
    root: the Haiku name of the root module.

  Returns:
    Collections by name, as nested dicts.

  Raises:
    ValueError: a value and a module have the same name at the same place, of
      which a nested dict can hold only one.
  """
  variables: dict[str, Any] = {}
  for bundle, values in params.items():
    path = _names.split_path(bundle, root)
    level = _level(variables.setdefault('params', {}), path, bundle)
    for key, value in values.items():
      _place(level, _names.unescape_key(key), value, bundle)
  _gather(variables, state, root, lambda col: True, _names.split_state_key)
  return variables


def gather_state(
  variables: dict[str, Any],
  state: Mapping[str, Mapping[str, Any]],
  root: str,
  wanted: Callable[[str], bool],
) -> None:
  """Adds what the wanted collections have in the state of a run."""
  _gather(variables, state, root, wanted, _names.split_key_of_run)


def _gather(variables, state, root, wanted, split) -> None:
  chosen: dict[str, bool] = {}
  for bundle, values in state.items():
    levels: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
      empty = bundle == root and _empty_collection(key, value)
      if isinstance(empty, str):
        if wanted(empty):
          variables.setdefault(empty, {})
        continue
      col, name = split(key)
      keep = chosen.get(col)
      if keep is None:
        keep = chosen[col] = wanted(col)
      if not keep:
        continue
      level = levels.get(col)
      if level is None:
        path = _names.split_path(bundle, root)
        level = _level(variables.setdefault(col, {}), path, bundle)
        levels[col] = level
      _place(level, name, value, bundle)


def place_of(
  root: str, path: str, key: str, is_param: bool
) -> tuple[str, tuple[Any, ...], Any]:
  """Returns the collection, the names from the root, and the name of a key."""
  names = _names.split_path(path, root)
  if is_param:
    return 'params', names, _names.unescape_key(key)
  col, name = _names.split_key_of_run(key)
  return col, names, name


def _level(tree: dict[str, Any], path: tuple[str, ...], bundle: str):
  """Returns the dict at `path`, made where it is missing."""
  for name in path:
    below = tree.get(name)
    if below is None and name not in tree:
      below = tree[name] = {}
    elif not isinstance(below, dict):
      raise _both(name, bundle)
    tree = below
  return tree


def _place(level: dict[str, Any], name: str, value: Any, bundle: str) -> None:
  """Puts a leaf into its level; an empty dict only makes sure of its place."""
  if is_level(value) and not value:
    level.setdefault(name, {})
  elif isinstance(level.get(name), dict) and level[name]:
    raise _both(name, bundle)
  else:
    level[name] = value


def _both(name: str, bundle: str) -> ValueError:
  return ValueError(
    f'"{name}" is the name of a value and of a module in Haiku module'
    f' "{bundle}". Nested variables can hold only one of them: rename one, for'
    ' example with the argument `name=` of the module.'
  )
