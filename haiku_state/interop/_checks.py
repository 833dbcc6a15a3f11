"""What is passed the wrong way round, told before it becomes something else.

Haiku's trees have two levels, module and name, and come in pairs. Variables
have the names of collections at the top, and any number of levels below.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from haiku_state.core._names import LAYER_KEYS
from haiku_state.core.frozen_dict import FrozenDict


def check_bundles(params: Any, state: Any, function: str) -> None:
  """Raises unless two trees are, or may be, Haiku's parameters and state.

  Args:
    params: the parameters.
    state: the state, or None.
    function: the name of the function that was called.

  Raises:
    TypeError: they are something else.
  """
  if isinstance(params, tuple):
    raise TypeError(
      f'{function} takes the parameters and the state one by one, found a'
      f' tuple. Write `{function}(*pair, ...)`.'
    )
  for what, tree in (('parameters', params), ('state', state)):
    if tree is not None and not _is_two_levels(tree):
      raise TypeError(
        f"{function} takes Haiku's {what}, a dict of dicts by module and name;"
        f' found {_shown(tree)}.'
      )
  is_nested = any(
    isinstance(value, Mapping)
    for bundle in params.values()
    for value in bundle.values()
  )
  if 'params' in params and (is_nested or isinstance(params, FrozenDict)):
    raise TypeError(
      f"{function} takes Haiku's parameters, found variables with the"
      f' collections {sorted(params)}. Variables become parameters and state by'
      ' `interop.to_haiku` or `interop.weights_to_haiku`.'
    )
  for path, bundle in params.items():
    for key in bundle:
      # A parameter may have any name, but none has that of an average.
      if isinstance(key, str) and key.startswith('batch_stats:'):
        raise TypeError(
          f'{function} takes the parameters first and the state second: "{key}"'
          f' of "{path}" is the name of state.'
        )


def check_variables(
  variables: Any, function: str, has_params: bool = False
) -> None:
  """Raises unless a tree may be a variables dict.

  Args:
    variables: the tree.
    function: the name of the function that was called.
    has_params: whether one would expect parameters in it.

  Raises:
    TypeError: it is something else.
  """
  if not isinstance(variables, Mapping) or not all(
    isinstance(tree, Mapping) for tree in variables.values()
  ):
    raise TypeError(
      f'{function} takes variables, `{{collection: {{name: ...}}}}`; found'
      f' {_shown(variables)}. Parameters alone are passed as'
      " `{'params': params}`."
    )
  if _looks_like_haikus(variables, has_params):
    raise TypeError(
      f"{function} takes variables, found Haiku's trees with the modules"
      f' {sorted(variables)[:3]}. They become variables by `interop.from_haiku`'
      ' or `interop.weights_from_haiku`.'
    )


def _looks_like_haikus(tree: Mapping[str, Any], has_params: bool) -> bool:
  """Returns whether the names at the top are those of Haiku's layers.

  A collection may have a variable `w`; its name tells, if nothing else does. A
  module `w` has something below it, which Haiku's arrays have not.
  """
  return 'params' not in tree and any(
    key in LAYER_KEYS and not isinstance(value, Mapping)
    for path, bundle in tree.items()
    if has_params or '/' in str(path)
    for key, value in bundle.items()
  )


def _is_two_levels(tree: Any) -> bool:
  return isinstance(tree, Mapping) and all(
    isinstance(bundle, Mapping) for bundle in tree.values()
  )


def _shown(x: Any) -> str:
  if isinstance(x, Mapping):
    wrong = [k for k, v in x.items() if not isinstance(v, Mapping)]
    return f'a dict in which {wrong[:3]} are no dicts'
  return described(x)


def described(x: Any) -> str:
  """Returns what a value is, in words."""
  if isinstance(x, type):
    return f'the class {x.__name__}'
  name = type(x).__name__
  return f'{"an" if name[0] in "AEIOUaeiou" else "a"} {name}'
