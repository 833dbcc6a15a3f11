"""Variables dicts as Haiku's parameters and state, and back.

Three layouts, in each of which no leaf is lost and no two are merged:

| layout | where a value of collection `c` at `a/b` is |
| --- | --- |
| this package | `state['a']['c:b']`, a parameter in `params['a']['b']` |
| `haiku.experimental.flax.lift` | `state['name/c/a']['b']` |
| `haiku.experimental.flax.Module` | nested, by the parts of Haiku's names |
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from haiku_state.core import _bundles, _names
from haiku_state.core.frozen_dict import FrozenDict
from haiku_state.interop._checks import check_bundles, check_variables

Bundles = dict[str, dict[str, Any]]

# Haiku's name for what is in a function and in no module.
_TOP = '~'
# Stands for the root where there is none. No name of a user's is prefixed by
# it, because all are.
_NO_ROOT = 'root'


def to_haiku(
  variables: Mapping[str, Any], root: str | None = None
) -> tuple[Bundles, Bundles]:
  """Gives a variables dict as Haiku's parameters and state.

  >>> to_haiku({'params': {'a': {'w': 1}}, 'batch_stats': {'a': {'m': 2}}})
  ({'a': {'w': 1}}, {'a': {'batch_stats:m': 2}})
  >>> to_haiku({'params': {'a': {'w': 1}}}, root='mlp')
  ({'mlp/a': {'w': 1}}, {})

  Args:
    variables: collections by name: nested dicts whose leaves are arrays,
      `jax.ShapeDtypeStruct`s or anything else.
    root: the Haiku name of the module that they belong to; None if they belong
      to a function, as the result of `from_haiku` without a root does.

  Returns:
    `(params, state)`: two levels each, by module and name.

  Raises:
    ValueError: there is no root, and a name at the top is `~` or begins with
      `haiku:/`: these names are given to something else.
    TypeError: these are no variables.
  """
  check_variables(variables, 'to_haiku')
  if root is not None:
    params, state = _bundles.to_haiku(variables, root)
    return _without_empty(params, root), state
  params, state = _bundles.to_haiku(variables, _NO_ROOT)
  return (
    _without_empty(_without_root(params), _TOP),
    _without_root(state),
  )


def _without_empty(bundles: Bundles, root: str) -> Bundles:
  """Returns bundles without one of the root that holds nothing.

  Haiku makes none for a module without parameters of its own.
  """
  if len(bundles) > 1 and bundles.get(root) == {}:
    del bundles[root]
  return bundles


def _without_root(bundles: Bundles) -> Bundles:
  out: Bundles = {}
  for path, bundle in bundles.items():
    if not _names.is_below(path, _NO_ROOT):
      raise ValueError(
        f'The name "{_names.OUTSIDE}{path}" is that of a Haiku module outside of the root.'
        ' Pass the name of the root as `root=`.'
      )
    name = path[len(_NO_ROOT) + 1 :]
    if name == _TOP:
      raise ValueError(
        f'A module at the top cannot be called "{_TOP}", which is the name that'
        ' Haiku has for what is in no module. Pass a name for the root as'
        ' `root=`.'
      )
    out[_TOP if path == _NO_ROOT else name] = bundle
  return out


def from_haiku(
  params: Mapping[str, Mapping[str, Any]],
  state: Mapping[str, Mapping[str, Any]] | None = None,
  root: str | None = None,
) -> dict[str, Any]:
  """Gives Haiku's parameters and state as a variables dict.

  >>> from_haiku({'mlp/linear': {'w': 1}}, {'mlp/bn': {'counter': 0}})
  {'params': {'mlp': {'linear': {'w': 1}}}, 'state': {'mlp': {'bn': {'counter': 0}}}}
  >>> from_haiku({'mlp/linear': {'w': 1}}, root='mlp')
  {'params': {'linear': {'w': 1}}}

  Args:
    params: parameters by module and name.
    state: state by module and name. It becomes the collection `state`, but for
      the state of linen-style modules, which keeps its collection.
    root: the Haiku name of the module at the top, which the result does not
      show. What lies outside of it is found under names that begin with
      `haiku:/`.

  Returns:
    Collections by name.

  Raises:
    ValueError: a value and a module have the same name at the same place, of
      which a nested dict can hold only one.
    TypeError: these are no parameters and state of Haiku.
  """
  check_bundles(params, state, 'from_haiku')
  state = state or {}
  if root is not None:
    return _bundles.from_haiku(params, state, root)
  return _bundles.from_haiku(_with_root(params), _with_root(state), _NO_ROOT)


def _with_root(bundles: Mapping[str, Any]) -> dict[str, Any]:
  return {
    _NO_ROOT if path == _TOP else f'{_NO_ROOT}/{path}': bundle
    for path, bundle in bundles.items()
  }


# --- haiku.experimental.flax.lift --------------------------------------------


def from_lifted(
  params: Mapping[str, Mapping[str, Any]],
  state: Mapping[str, Mapping[str, Any]] | None = None,
  *,
  name: str,
) -> dict[str, Any]:
  """Takes the variables of a lifted module out of Haiku's trees.

  >>> from_lifted({'l/Dense_0': {'bias': 1}}, {'l/stats/~': {'n': 2}}, name='l')
  {'params': {'Dense_0': {'bias': 1}}, 'stats': {'n': 2}}

  Args:
    params: parameters of a function that used `lift(module, name=name)`.
    state: its state.
    name: the name that the module was lifted by, behind those of the Haiku
      modules that it was lifted in. What is elsewhere is left out.

  Returns:
    Collections by name, as Flax has them.

  Raises:
    ValueError: two values, or a value and a module, have the same place.
  """
  variables: dict[str, Any] = {}
  for path, bundle in params.items():
    if path.startswith(name + '/'):
      _put_bundle(variables, ('params', *_parts(path, name)), bundle, path)
  for path, bundle in (state or {}).items():
    if path.startswith(name + '/'):
      _put_bundle(variables, _parts(path, name), bundle, path)
  return variables


def _parts(path: str, name: str) -> tuple[str, ...]:
  return tuple(path[len(name) + 1 :].split('/'))


def _put_bundle(
  tree: dict[str, Any],
  parts: tuple[str, ...],
  bundle: Mapping[str, Any],
  where: str,
) -> None:
  """Puts the values of a bundle at its place in a nested dict."""
  if parts[-1] == _TOP:
    parts = parts[:-1]
  for part in parts:
    tree = tree.setdefault(part, {})
    if not isinstance(tree, dict):
      raise _clash(where, part)
  for key, value in bundle.items():
    if key in tree:
      raise _clash(where, key)
    tree[key] = value


def _clash(where: str, name: str) -> ValueError:
  return ValueError(
    f'"{name}" in "{where}" is the name of two things: nested dicts can hold'
    ' only one of them. Rename one before conversion.'
  )


def to_lifted(
  variables: Mapping[str, Any], *, name: str
) -> tuple[Bundles, Bundles]:
  """Gives variables as `haiku.experimental.flax.lift` keeps them.

  >>> to_lifted({'params': {'Dense_0': {'bias': 1}}, 'stats': {'n': 2}}, name='l')
  ({'l/Dense_0': {'bias': 1}}, {'l/stats/~': {'n': 2}})

  Args:
    variables: collections by name.
    name: the name that the module is lifted by, see `from_lifted`.

  Returns:
    `(params, state)`, the inverse of `from_lifted`.

  Raises:
    ValueError: the layout cannot tell a name from another place: the name has a
      `/`, or is `~` at the end.
  """
  params: Bundles = {}
  state: Bundles = {}
  for col, tree in variables.items():
    target, prefix = (
      (params, name) if col == 'params' else (state, f'{name}/{col}')
    )
    for path, value in _leaves(tree, (col,)):
      _check_parts(path)
      bundle = '/'.join((prefix, *(path[1:-1] or (_TOP,))))
      target.setdefault(bundle, {})[path[-1]] = value
  return params, state


def _leaves(
  tree: Mapping[str, Any], path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], Any]]:
  for name, value in tree.items():
    if isinstance(value, (dict, FrozenDict)):
      yield from _leaves(value, (*path, name))
    else:
      yield (*path, name), value


def _check_parts(path: tuple[str, ...]) -> None:
  bad = [part for part in path[:-1] if '/' in part or not part]
  if bad or path[-2] == _TOP:
    raise ValueError(
      f'The layout of haiku.experimental.flax has no place for {path}: it joins'
      f' names by "/" and calls the top "{_TOP}". Rename'
      f' "{bad[0] if bad else _TOP}", or use `to_haiku`, which escapes names.'
    )


# --- haiku.experimental.flax.Module ------------------------------------------


def from_flax_module(variables: Mapping[str, Any]) -> tuple[Bundles, Bundles]:
  """Takes Haiku's trees out of `haiku.experimental.flax.Module`'s variables.

  >>> from_flax_module({'params': {'a': {'~': {'b': {'w': 1}}, 'w': 2}}})
  ({'a/~/b': {'w': 1}, 'a': {'w': 2}}, {})

  Args:
    variables: the collections `params` and `state`.

  Returns:
    `(params, state)`.

  Raises:
    ValueError: there is another collection, or a value at the very top, where
      that class puts none.
  """
  unknown = set(variables) - {'params', 'state'}
  if unknown:
    raise ValueError(
      'haiku.experimental.flax.Module has the collections "params" and'
      f' "state", found {sorted(unknown)}. For the variables of this package'
      ' use `to_haiku`.'
    )
  params, state = (
    _flat_bundles(variables.get(col, {}), col) for col in ('params', 'state')
  )
  return params, state


def _flat_bundles(tree: Mapping[str, Any], col: str) -> Bundles:
  bundles: Bundles = {}
  for path, value in _leaves(tree, ()):
    if len(path) == 1:
      raise ValueError(
        f'"{path[0]}" in "{col}" is a value at the top, where'
        f' haiku.experimental.flax.Module has "{_TOP}". For the variables of'
        ' this package use `to_haiku`.'
      )
    bundles.setdefault('/'.join(path[:-1]), {})[path[-1]] = value
  return bundles


def to_flax_module(
  params: Mapping[str, Mapping[str, Any]],
  state: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
  """Gives Haiku's trees as `haiku.experimental.flax.Module` keeps them.

  >>> to_flax_module({'a/~/b': {'w': 1}, '~': {'w': 2}})
  {'params': {'a': {'~': {'b': {'w': 1}}}, '~': {'w': 2}}}

  Args:
    params: parameters by module and name.
    state: state by module and name.

  Returns:
    The collections `params` and `state`, the inverse of `from_flax_module`.

  Raises:
    ValueError: a value and a module have the same name at the same place.
  """
  variables: dict[str, Any] = {}
  for col, bundles in (('params', params), ('state', state or {})):
    for path, bundle in bundles.items():
      level = variables.setdefault(col, {})
      for part in path.split('/'):
        level = level.setdefault(part, {})
        if not isinstance(level, dict):
          raise _clash(path, part)
      for key, value in bundle.items():
        if key in level:
          raise _clash(path, key)
        level[key] = value
  return variables
