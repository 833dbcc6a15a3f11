"""What the core knows of Haiku: names, the map of variables, frames, one run.

A run is one call of a function transformed by `hk.transform_with_state`. All
values of the run live in Haiku's frame, under these names::

    variables['params'][path...][name]   ==  params[path][name]
    variables[col][path...][name]        ==  state[path]['col:name']
    variables['state'][path...][name]    ==  state[path][name]

`path` is joined by `/` and begins with the name of the root, which the nested
form does not show. Haiku accepts identifiers as names of modules, Flax accepts
every string, so what is no identifier is escaped: `layer-1` is `layer_0x2d_1`.
The other way Haiku's dictionaries may have names that no escaping makes: these
are marked, `layer-1` there is `haiku:layer-1` here.
"""

from __future__ import annotations

import ast
import functools
import inspect
import os
import re
import sys
import threading
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import haiku as hk
import haiku.experimental as hk_experimental
import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from haiku_state import traceback_util
from haiku_state.core.frozen_dict import FrozenDict

# Each call of a module goes through Haiku, several frames deep.
traceback_util.register_exclusion(os.path.dirname(hk.__file__))

# Two levels: by the name of the module, by the name of the value.
Bundles = Any

# Haiku's own modules keep their state without a prefix; their state is the
# collection of this name.
HAIKU_COLLECTION = 'state'


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


# The classes of Haiku's initializers, which take a shape and a dtype.
# To Python 3.10 a type with parameters, such as `Callable[..., Array]`, which
# some versions of Haiku have there, is a class, too.
INITIALIZERS = tuple(
  x
  for x in vars(hk.initializers).values()
  if isinstance(x, type) and typing.get_origin(x) is None
)


# --- Names -------------------------------------------------------------------

# `_0x2d_` stands for `-`, `_0x_` for the empty name. `_0xr31_` is a name that is
# no string but the number 1, by its repr: variables may be dicts with such keys.
_LITERAL = '_0xr'
_TOKEN = re.compile(r'_0x([0-9a-f]*)_')
# A raw underscore that would begin a token is itself escaped. A parameter may
# have any name in Haiku; the name of state tells its collection before a `:`.
_UNSAFE_IN_MODULE = re.compile(r'[^A-Za-z0-9_]|_(?=0x)|^[0-9]')
_UNSAFE_IN_PARAM = re.compile(r'_(?=0x)')
_UNSAFE_IN_STATE = re.compile(r':|_(?=0x)')

# A name in Haiku's dictionaries that stands for none of ours is shown as it is
# behind this. So each name there has one here and each here one there: a name
# of ours that begins so is escaped if what follows does stand for one.
RAW = 'haiku:'
# The same for the whole name of a module that does not lie below the root.
OUTSIDE = 'haiku:/'


def _token(match: re.Match[str]) -> str:
  return f'_0x{ord(match.group()):x}_'


def _untoken(match: re.Match[str]) -> str:
  return chr(int(match.group(1), 16)) if match.group(1) else ''


def _escape_literal(name: Any) -> str:
  """Returns what stands for a name that is no string: a number, say.

  Raises:
    TypeError: nothing could tell from the text of the name what it was, or it
      is long.
  """
  text = repr(_as_one(name))
  try:
    # None is what a collection without variables has in place of a name.
    is_same = name is not None and _literal(text) == name
  except (SyntaxError, ValueError):
    is_same = False
  if not is_same:
    raise TypeError(
      f'A variable is a dict with the key {text[:99]} of type'
      f' {type(name).__name__}. Keys must be strings, numbers, or tuples of'
      ' those: store the dict under other keys.'
    )
  return f'{_LITERAL}{text.encode().hex()}_'


def _as_one(name: Any) -> Any:
  """Returns one of all names that are equal: `True` and `1.0` are the key `1`."""
  if isinstance(name, tuple):
    return tuple(map(_as_one, name))
  if isinstance(name, (bool, float)) and name == name // 1:
    return int(name)
  return name


# Python's parser can fail on long texts in ways that end the process.
_MAX_LITERAL = 999


def _literal(text: str) -> Any:
  if len(text) > _MAX_LITERAL:
    raise ValueError('too long')
  return ast.literal_eval(text)


def _escape(name: Any, unsafe: re.Pattern[str]) -> str:
  if not isinstance(name, str):
    return _escape_literal(name)
  return unsafe.sub(_token, name) if name else '_0x_'


def _escape_component(name: Any) -> str:
  # Haiku puts `~` before names that come from a constructor or a method.
  if isinstance(name, str) and name[:1] == '~':
    if len(name) == 1 or name[1] in _WORD_START:
      return '~' + _UNSAFE_IN_MODULE.sub(_token, name[1:])
  return _escape(name, _UNSAFE_IN_MODULE)


# Names of parameters of Haiku's own layers, which no layer of linen's has.
LAYER_KEYS = frozenset(('w', 'b', 'w_i', 'w_h', 'offset', 'embeddings'))

_WORD_START = frozenset('abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_')


def _unescaped(text: str) -> Any:
  """Returns the name that an escaped text stands for, None if there is none."""
  try:
    if not text.startswith(_LITERAL):
      return _TOKEN.sub(_untoken, text)
    literal = bytes.fromhex(text[len(_LITERAL) : -1]).decode()
    name = _literal(literal)
    hash(name)
    return name
  # The text may be made to do harm: any of these it can cause.
  except (
    *(ValueError, SyntaxError, TypeError, OverflowError),
    *(MemoryError, RecursionError),
  ):
    return None


def _stands_for(text: str, escape: Callable[[Any], str]) -> Any:
  """Returns the name that is escaped as this text, None if there is none."""
  name = _unescaped(text)
  if name is None:
    return None
  try:
    return name if escape(name) == text else None
  except (TypeError, ValueError):
    return None


def _raw_part(name: Any) -> str | None:
  """Returns what follows the mark of a raw name; None without one."""
  if isinstance(name, str) and name.startswith(RAW):
    return name[len(RAW) :]
  return None


# Modules


def _component_name(text: str) -> Any:
  """Returns the name that a component stands for, None if there is none."""
  name = _stands_for(text, _escape_component)
  # Each turn at least halves the text: escapes of escapes grow so.
  rest = _raw_part(name)
  return name if rest is None or not _is_raw_component(rest) else None


def _is_raw_component(text: str) -> bool:
  # A component has no `/`.
  return '/' not in text and _component_name(text) is None


@functools.lru_cache(maxsize=65536)
def escape_module(name: Any) -> str:
  """Returns the component of a Haiku module name that stands for `name`."""
  rest = _raw_part(name)
  if rest is not None and _is_raw_component(rest):
    return rest
  return _escape_component(name)


@functools.lru_cache(maxsize=65536)
def unescape_module(text: str) -> Any:
  """Returns the name that a component of a Haiku module name stands for."""
  name = _component_name(text)
  return RAW + text if name is None else name


# Parameters


def _escape_param(name: Any) -> str:
  return _escape(name, _UNSAFE_IN_PARAM)


def _is_raw_key(text: str) -> bool:
  # Nothing in the mark is escaped, so it does not matter how often it is there,
  # unless what follows is a token for the whole name: an empty one, a number.
  return any(
    _stands_for(x, _escape_param) is None for x in (text, _MARKS.sub('', text))
  )


_MARKS = re.compile(f'^(?:{RAW})+')


@functools.lru_cache(maxsize=65536)
def escape_key(name: Any) -> str:
  """Returns the key of a bundle that stands for the parameter `name`."""
  rest = _raw_part(name)
  if rest is not None and _is_raw_key(rest):
    return rest
  return _escape_param(name)


@functools.lru_cache(maxsize=65536)
def unescape_key(text: str) -> Any:
  """Returns the name that a key of a bundle of parameters stands for."""
  return RAW + text if _is_raw_key(text) else _unescaped(text)


# State


def _escape_state(col: Any, name: Any) -> str:
  if col == HAIKU_COLLECTION:
    return _escape(name, _UNSAFE_IN_STATE)
  if col == 'params':
    return _SET_PARAM + _escape(name, _UNSAFE_IN_STATE)
  return f'{_escape(col, _UNSAFE_IN_STATE)}:{_escape(name, _UNSAFE_IN_STATE)}'


def _state_name(key: str) -> tuple[str, Any] | None:
  """Returns the collection and the name that a key of state stands for."""
  of_collection, colon, of_name = key.rpartition(':')
  col = _unescaped(of_collection) if colon else HAIKU_COLLECTION
  name = _unescaped(of_name)
  if not isinstance(col, str) or name is None:
    return None
  try:
    if _escape_state(col, name) != key:
      return None
  except (TypeError, ValueError):
    return None
  rest = _raw_part(name) if not colon else None
  if rest is not None and _state_name(rest) is None:
    return None
  return col, name


@functools.lru_cache(maxsize=65536)
def state_key(col: str, name: Any) -> str:
  """Returns the key, in a bundle of state, of a variable of a collection."""
  rest = _raw_part(name) if col == HAIKU_COLLECTION else None
  if rest is not None and _state_name(rest) is None:
    return rest
  return _escape_state(col, name)


def is_own_state(key: str, value: Any) -> bool:
  """Returns whether a value of state is that of one of Haiku's own modules."""
  if _empty_collection(key, value) is not None:
    return False  # It says that there is a collection.
  return _split_key_of_run(key)[0] == HAIKU_COLLECTION


def param_of_state(key: str) -> str | None:
  """Returns the key of a parameter that is kept as state, None for others."""
  col, name = _split_key_of_run(key)
  return escape_key(name) if col == 'params' else None


@functools.lru_cache(maxsize=65536)
def split_state_key(key: str) -> tuple[str, Any]:
  """Returns the collection and the name of a key in a bundle of state."""
  return _state_name(key) or (HAIKU_COLLECTION, RAW + key)


# During a run, a parameter that was set is in the state: Haiku does not let its
# parameters be set. Two colons are in no other key that we make.
_SET_PARAM = 'params::'


@functools.lru_cache(maxsize=65536)
def _split_key_of_run(key: str) -> tuple[str, Any]:
  """Returns `split_state_key`, or the name of a parameter that was set."""
  if key.startswith(_SET_PARAM):
    name = _unescaped(key[len(_SET_PARAM) :])
    if name is not None and _escape_state('params', name) == key:
      return 'params', name
  return split_state_key(key)


def _empty_key(col: str) -> str:
  """Returns the key, in the root's bundle, of a collection without variables."""
  return f'{_escape(col, _UNSAFE_IN_STATE)}:'


def _empty_collection(key: str, value: Any) -> str | None:
  """Returns the collection of which a key says that it is there."""
  if not key.endswith(':') or not is_level(value) or value:
    return None
  col = _unescaped(key[:-1])
  is_one = isinstance(col, str) and col != 'params' and _empty_key(col) == key
  return col if is_one else None


# Paths


@functools.lru_cache(maxsize=65536)
def _split_path(bundle: str, root: str) -> tuple[Any, ...]:
  """Returns the names from the root to a bundle."""
  names = _names_below(bundle, root)
  # What is not below the root has one name, for all of its path.
  return (OUTSIDE + bundle,) if names is None else names


def _names_below(bundle: str, root: str) -> tuple[Any, ...] | None:
  """Returns the names from the root to a bundle, None if none stand for it."""
  if bundle == root:
    return ()
  if not bundle.startswith(root + '/'):
    return None
  parts = bundle[len(root) + 1 :].split('/')
  names = tuple(unescape_module(part) for part in parts)
  return None if len(names) == 1 and _is_outside(names[0], root) else names


def is_outside(name: Any) -> bool:
  """Returns whether a name is the whole name of a module outside of the root."""
  return type(name) is str and name.startswith(OUTSIDE)


def path_below(path: str, name: Any) -> str:
  """Returns the Haiku name of what a level of names stands for.

  Args:
    path: that of the level that it is in.
    name: its name there.
  """
  if is_outside(name):
    return name[len(OUTSIDE) :]
  return f'{path}/{escape_module(name)}'


def _is_outside(name: Any, root: str) -> bool:
  """Returns whether a name at the root is that of a bundle outside of it."""
  return (
    isinstance(name, str)
    and name.startswith(OUTSIDE)
    and _names_below(name[len(OUTSIDE) :], root) is None
  )


# --- The map between variables and Haiku's dictionaries ----------------------


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
      target, key = params, escape_key
      # A bundle with nothing in it shows that the collection is there.
      params.setdefault(root, {})
    else:
      target, key = state, functools.partial(state_key, col)
      if not tree:
        state.setdefault(root, {})[_empty_key(col)] = {}
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
      below = leaves = f'{path}/{escape_module(name)}'
      if path == root and _is_outside(name, root):
        leaves = name[len(OUTSIDE) :]
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
      f'The empty dict "{name}" of the collection "{HAIKU_COLLECTION}" would be'
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
    path = _split_path(bundle, root)
    level = _level(variables.setdefault('params', {}), path, bundle)
    for key, value in values.items():
      _place(level, unescape_key(key), value, bundle)
  _gather(variables, state, root, lambda col: True, split_state_key)
  return variables


def gather_state(
  variables: dict[str, Any],
  state: Mapping[str, Mapping[str, Any]],
  root: str,
  wanted: Callable[[str], bool],
) -> None:
  """Adds what the wanted collections have in the state of a run."""
  _gather(variables, state, root, wanted, _split_key_of_run)


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
        path = _split_path(bundle, root)
        level = _level(variables.setdefault(col, {}), path, bundle)
        levels[col] = level
      _place(level, name, value, bundle)


def place_of(
  root: str, path: str, key: str, is_param: bool
) -> tuple[str, tuple[Any, ...], Any]:
  """Returns the collection, the names from the root, and the name of a key."""
  names = _split_path(path, root)
  if is_param:
    return 'params', names, unescape_key(key)
  col, name = _split_key_of_run(key)
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


# --- The current frame -------------------------------------------------------


class Missing(Exception):
  """A parameter that was asked for is not in the frame."""


def _raise_missing(shape: Any, dtype: Any) -> Any:
  raise Missing


def current_path() -> str | None:
  """Returns the Haiku name that is current, None outside of any transform.

  Raises:
    ValueError: a module of Haiku's has not called the constructor above yet.
  """
  try:
    return hk.current_name()
  except ValueError:
    if _is_in_transform():
      raise
    return None


def _is_in_transform() -> bool:
  try:
    hk.running_init()
  except ValueError:
    return False
  return True


def at(path: str, fn: Callable[..., Any], *args: Any) -> Any:
  """Calls `fn` where `path` is Haiku's current name.

  Inside a method of the module at `path` it is already; entering a name scope
  costs as much as calling a module.
  """
  if hk.current_name() == path:
    return fn(*args)
  # The scope is a module, which would describe itself at half of the cost.
  was = hk_experimental.module_auto_repr(False)
  try:
    scope = hk.name_scope(hk.force_name(path))
  finally:
    hk_experimental.module_auto_repr(was)
  before, _here.path = _here.path, path
  try:
    with scope:
      return fn(*args)
  finally:
    _here.path = before


class _Here(threading.local):
  """Where this thread is by a name scope of ours, told from those of users."""

  path: str | None = None


_here = _Here()


def read_param(path: str, key: str, shape: Any, dtype: Any) -> Any:
  """Returns the parameter, which must be an array of this shape.

  Raises:
    Missing: there is none.
    ValueError, AttributeError: it has another shape, or is no array. The
      caller then asks `read_any_param`.
  """
  if hk.current_name() == path:
    return hk.get_parameter(key, shape, dtype, init=_raise_missing)
  return at(path, read_param, path, key, shape, dtype)


class _OfShape(NamedTuple):
  """Passes Haiku's check of shapes; the true value was taken before it."""

  shape: tuple[int, ...]


def _get_any(key: str, shape: Any, dtype: Any, init: Any) -> Any:
  seen = []

  def take(next_getter: Any, value: Any, context: Any) -> Any:
    del context
    seen.append(next_getter(value))
    _release(next_getter)
    return _OfShape(tuple(shape))

  # Haiku runs the getter that was registered last on the result of the others.
  with hk.custom_getter(take):
    hk.get_parameter(key, shape, dtype, init=init)
  return seen[-1]


def _release(chain: Callable[..., Any]) -> None:
  """Frees Haiku's chain of custom functions, once all of them have run.

  The chain is a function that refers to itself, and to the current module: it
  would keep that, and the tracers that it reaches, until garbage is collected.
  """
  for cell in chain.__closure__ or ():
    try:
      if cell.cell_contents is chain:
        del cell.cell_contents
    except ValueError:
      pass  # A run inside of this one has freed it.


def read_any_param(path: str, key: str) -> Any:
  """Returns the parameter, be it an array, a tuple or a box.

  Raises:
    Missing: there is none.
  """
  return at(path, _get_any, key, (), None, _raise_missing)


def new_param(path: str, key: str, value: Any, again: Callable[[], Any]) -> Any:
  """Adds a parameter to the frame, and returns it as the getters give it.

  Args:
    path: Haiku's name of the module.
    key: the name in its bundle.
    value: the initial value.
    again: makes another initial value, for a custom creator that asks for
      more than one.
  """
  values = iter((value,))
  shape, dtype = shape_of(value), dtype_of(value)

  def init(wanted_shape, wanted_dtype):
    new = next(values, None)
    new = again() if new is None else new
    return fit(new, shape, dtype, wanted_shape, wanted_dtype, key)

  if isinstance(value, (jax.Array, np.ndarray)):
    return at(path, hk.get_parameter, key, shape, dtype, init)
  return at(path, _get_any, key, shape, dtype, init)


def fit(value, shape, dtype, wanted_shape, wanted_dtype, key) -> Any:
  """Returns an initial value as a custom creator wants it."""
  if tuple(wanted_shape) != tuple(shape):
    raise ValueError(
      f'A custom creator asked for "{key}" with shape {tuple(wanted_shape)},'
      f' but its initializer makes shape {tuple(shape)}. Pass another `init` to'
      ' the next creator to make another shape.'
    )
  if wanted_dtype is dtype or wanted_dtype == dtype:
    return value
  return value.astype(wanted_dtype)


def get_or_make_param(path: str, key: str, shape: Any, dtype: Any, make) -> Any:
  """Returns the parameter, made by `make(shape, dtype)` if it is missing."""
  return at(path, hk.get_parameter, key, shape, dtype, make)


class _LateShape(Sequence):
  """The shape of a value of state, found when somebody looks at it.

  Haiku wants shape and dtype before it looks for the value, to tell custom
  getters of them. To find them takes a look at all state: that is for getters
  to pay that ask, and few do.
  """

  __slots__ = ('path', 'key')

  def __init__(self, path: str, key: str):
    self.path, self.key = path, key

  def now(self) -> tuple[int, ...] | None:
    return getattr(_raw_state(self.path, self.key), 'shape', None)

  def __getitem__(self, index):
    return (self.now() or ())[index]

  def __len__(self) -> int:
    return len(self.now() or ())

  def __eq__(self, other: Any) -> bool:
    return self.now() == (tuple(other) if isinstance(other, list) else other)

  __hash__ = None  # type: ignore[assignment]

  def __repr__(self) -> str:
    return repr(self.now())


class _LateDtype:
  """The dtype of a value of state, for whatever takes what has a dtype."""

  __slots__ = ('path', 'key')

  def __init__(self, path: str, key: str):
    self.path, self.key = path, key

  @property
  def dtype(self) -> Any:
    return np.dtype(dtype_of(_raw_state(self.path, self.key)))

  def __eq__(self, other: Any) -> bool:
    return self.dtype == other

  def __hash__(self) -> int:
    return hash(self.dtype)

  def __repr__(self) -> str:
    return repr(self.dtype)


def _raw_state(path: str, key: str) -> Any:
  """Returns the current value of state, which no getter has seen."""
  return hk.get_current_state()[path][key]


@functools.lru_cache(maxsize=65536)
def _late(path: str, key: str) -> tuple[_LateShape, Any]:
  return _LateShape(path, key), _LateDtype(path, key)


def read_state(path: str, key: str) -> Any:
  """Returns the current value of state; it must be there."""
  if hk.current_name() == path:
    return hk.get_state(key, *_late(path, key))
  return at(path, hk.get_state, key, *_late(path, key))


def find_state(path: str, key: str) -> Any:
  """Returns the current value of state, or raises `Missing`."""
  try:
    return read_state(path, key)
  except ValueError:
    # Without an initializer Haiku raises before any custom creator runs.
    raise Missing from None


def new_state(path: str, key: str, value: Any) -> None:
  """Adds state to the frame; custom creators may replace the value."""
  shape, dtype = shape_of(value), dtype_of(value)

  def init(wanted_shape, wanted_dtype):
    return fit(value, shape, dtype, wanted_shape, wanted_dtype, key)

  at(path, hk.get_state, key, shape, dtype, init)


def write_state(path: str, key: str, value: Any) -> None:
  """Sets the current value of state."""
  if hk.current_name() == path:
    hk.set_state(key, value)
  else:
    at(path, hk.set_state, key, value)


def is_initializing() -> bool:
  """Returns whether parameters may be added to the frame."""
  return hk.running_init()


def put_as_is(params: Bundles, state: Bundles) -> None:
  """Puts values into the frame of an `init`, unseen by anybody's functions.

  Custom creators and setters are for what is made and set in a run. What a run
  begins with, and what an inner run has made, they have seen, or never will: to
  ask them again would change the values, or show them another shape.

  Args:
    params: parameters; None stands for none.
    state: state, the first value and the current one.
  """
  params = {
    path: {key: x for key, x in bundle.items() if x is not None}
    for path, bundle in params.items()
  }
  if not any(params.values()) and not any(state.values()):
    return
  made: list[Any] = []

  def take(next_f: Any, args: Any, kwargs: Any, context: Any) -> Any:
    made.append(context.module)
    return next_f(*args, **kwargs)

  was = hk_experimental.module_auto_repr(False)
  try:
    with hk.intercept_methods(take):
      # What Haiku lifts goes into the frame as it is.
      _, updater = hk.lift_with_state(
        lambda: (params, state), name=_RUN_NAME, allow_reuse=True
      )
  finally:
    hk_experimental.module_auto_repr(was)
  updater.ignore_update()
  lifting = made[-1]
  lifting.prefix_name = ''  # The names are whole ones.
  # It is no module of the user's: no interceptor is told of the call.
  inspect.unwrap(type(lifting).__call__)(lifting)


def shape_of(value: Any) -> tuple[int, ...]:
  """Returns the shape of an array; () for what has none."""
  shape = getattr(value, 'shape', ())
  return shape if isinstance(shape, tuple) else ()


def dtype_of(value: Any) -> Any:
  """Returns the dtype of an array; float32 for what has none."""
  return getattr(value, 'dtype', np.float32)


def frame_variables(root: str) -> dict[str, Any]:
  """Returns what the frame holds at and below a module.

  The cost grows with all that the frame holds.
  """
  params, names = hk.get_params(), hk.get_current_state()
  # Inside of `hk.scan` and the like the values there are those from outside.
  state = {
    path: at(path, _current_values, path, bundle)
    for path, bundle in below(names, root).items()
  }
  variables = from_haiku(below(params, root), {}, root)
  gather_state(variables, state, root, lambda col: True)
  return variables


def _current_values(path: str, names: Any) -> dict[str, Any]:
  return {key: read_state(path, key) for key in names}


def is_below(path: str, root: str) -> bool:
  """Returns whether a bundle belongs to a module or to one below it."""
  return path == root or path.startswith(root + '/')


def below(bundles: Bundles, root: str) -> Bundles:
  """Returns the bundles of a module and those below it."""
  return {path: x for path, x in bundles.items() if is_below(path, root)}


def frame_is_current() -> bool:
  """Returns whether Haiku's frame belongs to the JAX trace that is current."""
  was = hk_experimental.check_jax_usage(True)
  try:
    # It checks first, and to reserve nothing changes nothing.
    hk.reserve_rng_keys(0)
  except ValueError as e:
    # Haiku's error for a wrong trace is public by its name only.
    return type(e).__name__ != 'JaxUsageError'
  finally:
    hk_experimental.check_jax_usage(was)
  return True


# --- What lasts as long as a run ---------------------------------------------


class _Noted(NamedTuple):
  """What was noted in a run.

  Attributes:
    held: what Haiku holds until the run is over; None in a run of ours, which
      takes its notes away itself.
    initializing: whether it is a run of `init`.
    notes: what was noted.
  """

  held: Any
  initializing: bool
  notes: dict[Any, Any]

  def is_over(self) -> bool:
    """Returns whether Haiku's run has ended."""
    return self.held is not None and _references(self) == _ONE_REFERENCE


def _references(noted: _Noted) -> int:
  return sys.getrefcount(noted.held)


_ONE_REFERENCE = _references(_Noted(object(), False, {}))


class _Notes(threading.local):
  """The runs of this thread that noted something, the innermost last."""

  def __init__(self) -> None:
    self.runs: list[_Noted] = []


_notes = _Notes()


# Forced, so that no other name is counted after it.
_RUN_NAME = hk.force_name('haiku_state_run')


def notes_of_run() -> dict[Any, Any]:
  """Returns a dict that is the same one during one run, of Haiku's or of ours.

  Haiku shows no identity of a run. It keeps what updates the state of a lifted
  function until the run is over, to see whether that was used.

  A run inside of another one, of the same kind, that asks first after that has,
  gets the dict of the other. So does a run after one that failed, as long as its
  traceback is kept.
  """
  runs = _notes.runs
  while runs and runs[-1].is_over():
    runs.pop()
  initializing = hk.running_init()
  if not runs or runs[-1].initializing != initializing:
    _, updater = hk.lift_with_state(lambda: ({}, {}), name=_RUN_NAME)
    updater.ignore_update()
    runs.append(_Noted(updater, initializing, {}))
  return runs[-1].notes


# --- One run -----------------------------------------------------------------


def _call(body: Callable[[], Any]) -> Any:
  """Calls what runs, with notes of its own."""
  runs = _notes.runs
  before = len(runs)
  runs.append(_Noted(None, hk.running_init(), {}))
  try:
    return body()
  finally:
    del runs[before:]


_RUN = hk.transform_with_state(_call)


def run_apply(
  params: Bundles, state: Bundles, rng: Any, body: Callable[[], Any]
) -> tuple[Any, Bundles]:
  """Runs `body` with frozen parameters; returns its output and the state."""
  return _RUN.apply(params, state, rng, body)


def run_init(
  params: Bundles,
  state: Bundles,
  rng: Any,
  body: Callable[[], Any],
  note: Callable[[str, str, bool], None],
  check: Callable[[str], None],
) -> tuple[Any, Bundles, Bundles, Bundles]:
  """Runs `body` where parameters may be added.

  Haiku adds parameters only in `init`, which starts from nothing, returns the
  first value of each state, and drops the output: so what is given is put in
  at the start, and what came of it is taken at the end.

  Args:
    params: the parameters at the start.
    state: the state at the start.
    rng: the key of Haiku's own modules, or None.
    body: the function, without arguments.
    note: told of each value that is new, and of each state that is set: its
      module, its key, whether it is a parameter.
    check: told of each module, or name scope, of Haiku's own that asks for a
      parameter.

  Returns:
    The output, the parameters, the state, and the first value of each state.
  """
  out: Any = None
  last_state: Bundles = {}

  def noting_creator(
    next_creator: Any, shape, dtype, init, context: Any, is_param: bool
  ):
    path, key, _ = _noted(context)
    note(path, key, is_param)
    try:
      return next_creator(shape, dtype, init)
    finally:
      _release(next_creator)

  def checking_getter(next_getter, value, context):
    path, _, by_haiku = _noted(context)
    if by_haiku:
      check(path)
    try:
      return next_getter(value)
    finally:
      _release(next_getter)

  def noting_setter(next_setter, value, context):
    path, key, _ = _noted(context)
    note(path, key, False)
    try:
      return next_setter(value)
    finally:
      _release(next_setter)

  def whole() -> None:
    nonlocal out, last_state
    put_as_is(params, state)
    of_param: Any = functools.partial(noting_creator, is_param=True)
    of_state: Any = functools.partial(noting_creator, is_param=False)
    with (
      hk.custom_getter(checking_getter),
      hk.custom_creator(of_param),
      hk.custom_creator(of_state, params=False, state=True),
      hk.custom_setter(noting_setter),
    ):
      out = body()
    last_state = hk.get_current_state()

  made, first_state = _RUN.init(rng, whole)
  return out, made, last_state, first_state


def _noted(context: Any) -> tuple[str, str, bool]:
  """Returns the module, the key, which may have a `/`, and whose module it is."""
  path = hk.current_name()
  is_ours = type(getattr(context.module, 'module_name', None)) is not str
  by_haiku = not is_ours and _here.path != path
  return path, context.full_name[len(path) + 1 :], by_haiku


def apart(rng: Any, fn: Callable[[], Any]) -> Any:
  """Calls a function where Haiku's keys are those of a key, and no others.

  Args:
    rng: the key.
    fn: the function. What it makes of parameters and state is gone afterwards.

  Returns:
    What it returns.
  """
  out: list[Any] = []
  _RUN.init(haiku_rng(rng), lambda: out.append(fn()))
  return out[0]


def haiku_rng(rng: jax.Array) -> jax.Array:
  """Returns a key for Haiku's own modules; a typed key is cheap to check."""
  if jnp.issubdtype(rng.dtype, jax.dtypes.prng_key):
    return rng
  if isinstance(rng, jax.core.Tracer):
    return jax.random.wrap_key_data(rng)
  # A key that is not traced must not get into the program that is.
  with jax.ensure_compile_time_eval():
    return jax.random.wrap_key_data(rng)


def rng_was_used(rng: jax.Array) -> bool:
  """Returns whether a run that began with this key has drawn from it."""
  state = hk.maybe_get_rng_sequence_state()
  return state is None or state[0] is not rng or bool(state[1])
