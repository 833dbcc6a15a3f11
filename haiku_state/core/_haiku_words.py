"""Errors of modules in somebody's `hk.transform`, in the words of a Haiku user.

They are of Flax's class, and a ValueError, as Haiku's own errors are.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

import haiku as hk

from haiku_state import errors
from haiku_state.core import _bundles, _frame, _names


class MissingParameter(errors.ScopeParamNotFoundError, ValueError):
  """A parameter is not among those that were passed to `apply`."""


class MissingState(errors.ScopeVariableNotFoundError, ValueError):
  """State is not among what was passed to `apply`."""


class MissingKey(errors.InvalidRngError, ValueError):
  """A random key is needed, and none was passed."""


class FixedState(errors.ModifyScopeVariableError, ValueError):
  """A module of Haiku's changes state in a collection that is immutable."""


class WrongTrace(errors.JaxTransformError, ValueError):
  """A transform of JAX is around something that Haiku would have to know of."""


def _error(cls: type[Exception], message: str) -> Exception:
  """Returns an error that says this, and names the lesson of Flax's error."""
  error = cls.__new__(cls)
  lesson = cls.__mro__[1].__name__
  Exception.__init__(error, f'{message} (haiku_state.errors.{lesson})')
  return error


def missing_parameter(path: str, name: str) -> Exception:
  """Returns the error of a parameter that `apply` was not given.

  Args:
    path: the Haiku name of the module.
    name: the name of the parameter.
  """
  return _error(
    MissingParameter,
    f'Module "{path}" has the parameter "{name}", which is not among the'
    f' parameters passed to `apply`: {_found(path, hk.get_params())}. Parameters'
    ' are made by `init`: pass what `f.init(key, ...)` of this very function'
    ' returned, or rename the modules of yours to these names.',
  )


def missing_state(path: str, key: str) -> Exception:
  """Returns the error of state that `apply` was not given.

  Args:
    path: the Haiku name of the module.
    key: the key in the state of the module, `collection:name`.
  """
  return _error(
    MissingState,
    f'Module "{path}" asks for the state "{key}", which is not in the state'
    f' passed to `apply`: {_found(path, hk.get_current_state())}. State is made by'
    ' `init`: pass the state that `f.init(key, ...)` or the last `f.apply`'
    ' returned. If only `apply` needs it, make it in `init` too, or store it by'
    ' `put_variable` or `sow`.',
  )


def _found(path: str, bundles: Any) -> str:
  """Says what a module has in Haiku's parameters or state, or who has some."""
  bundles = {name: bundle for name, bundle in bundles.items() if bundle}
  if path in bundles:
    return f'there the module has {_list(bundles[path])}'
  if not bundles:
    return 'there is nothing in it'
  near = difflib.get_close_matches(path, bundles, n=3, cutoff=0.6)
  rest = [name for name in bundles if name not in near]
  return f'there are the modules {_list([*near, *rest])}'


def _list(names: Iterable[str], most: int = 8) -> str:
  names = [f'"{name}"' for name in names]
  more = f' and {len(names) - most} more' if len(names) > most else ''
  return ', '.join(names[:most]) + more if names else 'nothing'


def missing_key(path: str, stream: str) -> Exception:
  """Returns the error of a module that needs a key where there is none.

  Args:
    path: the Haiku name of the module.
    stream: the stream that it asked for.
  """
  fn = (
    '`f.init(key, ...)`'
    if hk.running_init()
    else '`f.apply(params, key, ...)` (after `state`, if there is some)'
  )
  return _error(
    MissingKey,
    f'Module "{path}" needs a random key, of the stream "{stream}", and the'
    f' function was called with None. Pass a key: {fn}.',
  )


def fixed_state(path: str, key: str, was_there: bool) -> Exception:
  """Returns the error of a Haiku module whose state may not change.

  Args:
    path: the Haiku name of the module.
    key: the key in its state.
    was_there: whether it was passed.
  """
  found = (
    'sets it'
    if was_there
    else 'makes it, as it is not among the variables passed'
  )
  return _error(
    FixedState,
    f'Cannot update variable "{key}" in "{path}" because collection "state", that'
    f' of the state of Haiku modules, is immutable: the module {found}. Pass'
    " `mutable=['state']` to keep what it becomes (to a lifted transform, `state`"
    ' among the collections that it takes), or call the module so that it only'
    ' reads: `is_training=False`, say.',
  )


def forced_in_lifted(path: str, name: str) -> Exception:
  """Returns the error of a name that was forced inside of a lifted transform.

  Args:
    path: the Haiku name of the module that is lifted.
    name: the name that lies outside of it, marked.
  """
  module = name[len(_names.OUTSIDE) :]
  return ValueError(
    f'Haiku\'s module "{module}", whose name is forced or which was made'
    f' elsewhere, is used in a lifted transform of "{path}", which would not find'
    ' its parameters in `apply`. Use it outside of the lifted transform, or make'
    ' it there without `hk.force_name`.'
  )


def check_not_around(paths: list[str]) -> None:
  """Raises if the run that is current has state of these modules already.

  Args:
    paths: the Haiku names of modules that made state in a run inside of it.

  Raises:
    ValueError: it has.
  """
  if _frame.current_path() is None:
    return
  around = hk.get_current_state()
  for path in paths:
    if around.get(path):
      raise ValueError(
        f'Haiku\'s module "{path}" belongs to the run around a lifted transform,'
        ' in which it was used: its state cannot be reached there, and would be'
        ' made anew. Pass what it returns to the lifted function, or make the'
        ' module inside of that.'
      )


def hint_at_conversion(tree: Any) -> str | None:
  """Says what to do with variables that look like parameters of Haiku's.

  Args:
    tree: collections by name, or what was given in their place.
  """
  bundles = tree.get('params', tree)
  if not all(map(_is_bundle, bundles.values())) or not any(
    '/' in str(path) or not _names.LAYER_KEYS.isdisjoint(bundle)
    for path, bundle in bundles.items()
  ):
    return None
  return (
    f"The variables have the names of Haiku's parameters: {list(bundles)[:3]}."
    ' If modules like these made them inside of hk.transform, pass'
    ' `interop.from_haiku(params, state, root)`; if layers of Haiku did, convert'
    ' them by `interop.weights_from_haiku`.'
  )


def _is_bundle(level: Any) -> bool:
  """Returns whether values may be those of one of Haiku's modules: no levels."""
  return _bundles.is_level(level) and not any(
    map(_bundles.is_level, level.values())
  )


def wrong_trace(message: str) -> Exception:
  """Returns the error of a value that would leave a transform of JAX.

  Args:
    message: which value, and which transform.
  """
  return _error(WrongTrace, message)
