"""Names: what stands for each of ours in Haiku's dictionaries, and back.

Haiku accepts identifiers as names of modules, Flax accepts every string, so
what is no identifier is escaped: `layer-1` is `layer_0x2d_1`. The other way
Haiku's dictionaries may have names that no escaping makes: these are marked,
`layer-1` there is `haiku:layer-1` here. The name of state tells its collection,
before a `:`; a path is joined by `/` and begins with the name of the root.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Callable
from typing import Any

# Haiku's own modules keep their state without a prefix; their state is the
# collection of this name.
HAIKU_COLLECTION = 'state'

# Python compiles and keeps these patterns where they are first used: an import
# of the package has no need of them.
#
# `_0x2d_` stands for `-`, `_0x_` for the empty name. `_0xr31_` is a name that is
# no string but the number 1, by its repr: variables may be dicts with such keys.
_LITERAL = '_0xr'
_TOKEN = r'_0x([0-9a-f]*)_'
# A raw underscore that would begin a token is itself escaped. A parameter may
# have any name in Haiku; the name of state tells its collection before a `:`.
_UNSAFE_IN_MODULE = r'[^A-Za-z0-9_]|_(?=0x)|^[0-9]'
_UNSAFE_IN_PARAM = r'_(?=0x)'
_UNSAFE_IN_STATE = r':|_(?=0x)'

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


def _escape(name: Any, unsafe: str) -> str:
  if not isinstance(name, str):
    return _escape_literal(name)
  return re.sub(unsafe, _token, name) if name else '_0x_'


def _escape_component(name: Any) -> str:
  # Haiku puts `~` before names that come from a constructor or a method.
  if isinstance(name, str) and name[:1] == '~':
    if len(name) == 1 or name[1] in _WORD_START:
      return '~' + re.sub(_UNSAFE_IN_MODULE, _token, name[1:])
  return _escape(name, _UNSAFE_IN_MODULE)


# Names of parameters of Haiku's own layers, which no layer of linen's has.
LAYER_KEYS = frozenset(('w', 'b', 'w_i', 'w_h', 'offset', 'embeddings'))

_WORD_START = frozenset('abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_')


def _unescaped(text: str) -> Any:
  """Returns the name that an escaped text stands for, None if there is none."""
  try:
    if not text.startswith(_LITERAL):
      return re.sub(_TOKEN, _untoken, text)
    literal = bytes.fromhex(text[len(_LITERAL) : -1]).decode()
    name = _literal(literal)
    hash(name)
    return name
  # The text may be made to do harm: any of these it can cause. That memory or
  # the stack end it cannot, at this length; it says nothing about the name.
  except (ValueError, SyntaxError, TypeError, OverflowError):
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
    _stands_for(x, _escape_param) is None
    for x in (text, re.sub(_MARKS, '', text))
  )


_MARKS = f'^(?:{RAW})+'


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


def param_of_state(key: str) -> str | None:
  """Returns the key of a parameter that is kept as state, None for others."""
  col, name = split_key_of_run(key)
  return escape_key(name) if col == 'params' else None


@functools.lru_cache(maxsize=65536)
def split_state_key(key: str) -> tuple[str, Any]:
  """Returns the collection and the name of a key in a bundle of state."""
  return _state_name(key) or (HAIKU_COLLECTION, RAW + key)


# During a run, a parameter that was set is in the state: Haiku does not let its
# parameters be set. Two colons are in no other key that we make.
_SET_PARAM = 'params::'


@functools.lru_cache(maxsize=65536)
def split_key_of_run(key: str) -> tuple[str, Any]:
  """Returns `split_state_key`, or the name of a parameter that was set."""
  if key.startswith(_SET_PARAM):
    name = _unescaped(key[len(_SET_PARAM) :])
    if name is not None and _escape_state('params', name) == key:
      return 'params', name
  return split_state_key(key)


def empty_key(col: str) -> str:
  """Returns the key, in the root's bundle, of a collection without variables."""
  return f'{_escape(col, _UNSAFE_IN_STATE)}:'


def emptied_by(key: str) -> str | None:
  """Returns the collection that a key says is there, None for other keys."""
  if not key.endswith(':'):
    return None
  col = _unescaped(key[:-1])
  is_one = isinstance(col, str) and col != 'params' and empty_key(col) == key
  return col if is_one else None


# Paths


@functools.lru_cache(maxsize=65536)
def split_path(bundle: str, root: str) -> tuple[Any, ...]:
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
  return None if len(names) == 1 and is_outside_of(names[0], root) else names


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


def is_outside_of(name: Any, root: str) -> bool:
  """Returns whether a name at the root is that of a bundle outside of it."""
  return (
    isinstance(name, str)
    and name.startswith(OUTSIDE)
    and _names_below(name[len(OUTSIDE) :], root) is None
  )


def is_below(path: str, root: str) -> bool:
  """Returns whether a bundle belongs to a module or to one below it."""
  return path == root or path.startswith(root + '/')
