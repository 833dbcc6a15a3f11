"""Weights of a Haiku model as those of a linen one, by a mapping of layers.

>>> import haiku as hk, jax, jax.numpy as jnp
>>> import haiku_state.linen as nn
>>> from haiku_state.interop import layers
>>> x = jnp.ones((1, 3))
>>> f = hk.transform(lambda x: hk.Linear(2)(x))
>>> params = f.init(jax.random.key(0), x)
>>> mapping = {'linear': layers.linear('Dense_0')}
>>> variables, report = weights_from_haiku(params, {}, mapping)
>>> print(report)
1 of 1 layers converted, 2 leaves.
  linear -> Dense_0: Dense
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from haiku_state.core.frozen_dict import FrozenDict
from haiku_state.interop import _leaves as lv
from haiku_state.interop._checks import (
  check_bundles,
  check_variables,
  described,
)
from haiku_state.interop._leaves import ConversionError
from haiku_state.interop._units import Kept
from haiku_state.interop.layers import KINDS, Layer

Bundles = dict[str, dict[str, Any]]
Mappings = Mapping[str, Layer]


@dataclasses.dataclass(frozen=True)
class Row:
  """A layer that was converted.

  Attributes:
    haiku: the name of the Haiku module.
    linen: the names of the linen module, joined by `/`.
    requires: the linen layer whose outputs are equal.
    leaves: how many leaves were made.
    note: what was guessed, or has to be known beside, if anything.
  """

  haiku: str
  linen: str
  requires: str
  leaves: int
  note: str | None = None


@dataclasses.dataclass(frozen=True)
class Report:
  """What was converted and what was not.

  >>> import haiku as hk, jax, jax.numpy as jnp
  >>> from haiku_state import interop
  >>> from haiku_state.interop import layers
  >>> f = hk.transform(lambda x: hk.Linear(2)(x))
  >>> params = f.init(jax.random.key(0), jnp.ones((1, 3)))
  >>> _, report = interop.weights_from_haiku(
  ...   params, None, {}, strict=False)
  >>> report.unmatched
  ('params["linear"]["w"]', 'params["linear"]["b"]')

  Attributes:
    rows: the layers of the mapping.
    unmatched: the leaves that no layer of the mapping takes.
    missing: the leaves of the target that no layer of the mapping makes.
    counters: the counters of `hk.BatchNorm` by Haiku module, for which linen
      has no place; `layers.batch_norm(counter=...)` takes them back.
  """

  rows: tuple[Row, ...]
  unmatched: tuple[str, ...] = ()
  missing: tuple[str, ...] = ()
  counters: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __str__(self) -> str:
    leaves = sum(row.leaves for row in self.rows)
    n = len(self.rows)
    lines = [f'{n} of {n} layers converted, {leaves} leaves.']
    for row in self.rows:
      lines.append(f'  {row.haiku} -> {row.linen or "/"}: {row.requires}')
      lines += [f'    note: {row.note}.'] if row.note else []
    lines += [f'  not converted: {name}' for name in self.unmatched]
    lines += [f'  made by no layer: {name}' for name in self.missing]
    return '\n'.join(lines)


# --- From Haiku --------------------------------------------------------------


def weights_from_haiku(
  params: Mapping[str, Mapping[str, Any]],
  state: Mapping[str, Mapping[str, Any]] | None,
  mapping: Mappings,
  *,
  target: Mapping[str, Any] | None = None,
  strict: bool = True,
) -> tuple[dict[str, Any], Report]:
  """Converts the weights of a Haiku model.

  >>> import haiku as hk, jax, jax.numpy as jnp
  >>> from haiku_state import interop
  >>> from haiku_state.interop import layers
  >>> f = hk.transform(lambda x: hk.Linear(2)(x))
  >>> params = f.init(jax.random.key(0), jnp.ones((1, 3)))
  >>> variables, report = interop.weights_from_haiku(
  ...   params, None, {'linear': layers.linear('head')})
  >>> jax.tree.map(jnp.shape, variables)
  {'params': {'head': {'bias': (2,), 'kernel': (3, 2)}}}

  Args:
    params: parameters by module and name: arrays, sharded arrays or
      `jax.ShapeDtypeStruct`s.
    state: state by module and name, None if there is none.
    mapping: for each Haiku module that has weights, the linen module.
    target: variables of the linen model, or their shapes, to compare with.
    strict: whether leaves without a counterpart are an error. Otherwise they
      are left out, and what is missing is taken from the target.

  Returns:
    The variables, and what was converted.

  Raises:
    ConversionError: the mapping, or the weights, do not fit; see `strict`.
    TypeError: these are no parameters and state of Haiku.
  """
  check_bundles(params, state, 'weights_from_haiku')
  _check_mapping(mapping)
  _check_direction(mapping, params)
  given = {
    (False, path, key): value
    for path, bundle in params.items()
    for key, value in bundle.items()
  }
  for path, bundle in (state or {}).items():
    for key, value in bundle.items():
      given[True, path, key] = value
  expected = {} if target is None else _flat(target)
  out: dict[tuple[str, ...], Any] = {}
  rows, counters = [], {}
  for path, layer in mapping.items():
    own = _below_haiku(given, path)
    names = {short: full for full, short in own.items()}
    values = {short: given[full] for short, full in names.items()}
    counter = values.get((lv.STATE, '~', 'mean_ema', 'counter'))
    options = _with_shapes(layer, values, _below_linen(expected, layer))
    made = lv.convert(KINDS[layer.kind], values, options, True, path)
    for short, full in names.items():
      if short not in values:
        del given[full]
    if counter is not None:
      counters[path] = counter
    for (col, *below), value in made.items():
      _add(out, (col, *layer.names, *below), value)
    rows.append(_row(path, layer, options, True, len(made)))
  unmatched = tuple(_haiku_text(*name) for name in given)
  missing = _fill(out, None if target is None else expected, strict)
  report = Report(tuple(rows), unmatched, missing, counters)
  _check_strict(report, strict)
  return _nested(out), report


def _check_mapping(mapping: Mappings) -> None:
  """Raises if a row is no layer, or two rows are the same linen module.

  Raises:
    ConversionError: that.
  """
  seen: dict[tuple[str, ...], str] = {}
  for path, layer in mapping.items():
    if not isinstance(layer, Layer):
      raise ConversionError(
        f'The mapping has {layer!r} for "{path}". Write what it is, such as'
        " `layers.linear('Dense_0')`."
      )
    if layer.kind not in KINDS:
      raise ConversionError(
        f'"{path}" is of no kind that is known: {layer.kind!r}. Known are'
        f' {", ".join(KINDS)}.'
      )
    other = seen.setdefault(layer.names, path)
    if other != path:
      raise ConversionError(
        f'"{other}" and "{path}" are both mapped to "{"/".join(layer.names)}".'
      )


def _check_direction(mapping: Mappings, params: Mapping[str, Any]) -> None:
  """Raises if a mapping goes from linen's names to Haiku's.

  Raises:
    ConversionError: it does.
  """
  for path, layer in mapping.items():
    other = '/'.join(layer.names)
    if path not in params and other in params:
      raise ConversionError(
        f'The mapping leads from "{path}" to "{other}", which is a module of'
        " Haiku. Haiku's name stands on the left, linen's on the right:"
        f" `{{'{other}': layers.{layer.kind}('{path}')}}`."
      )


def _below_haiku(
  given: Mapping[tuple[bool, str, str], Any], path: str
) -> dict[tuple[bool, str, str], lv.Names]:
  """Returns the leaves of a Haiku module with their names below it."""
  found = {}
  for is_state, bundle, key in given:
    if bundle == path or bundle.startswith(path + '/'):
      below = (
        tuple(bundle[len(path) + 1 :].split('/')) if bundle != path else ()
      )
      prefix = (lv.STATE,) if is_state else ()
      found[is_state, bundle, key] = (*prefix, *below, key)
  return found


def _add(out: dict[tuple[str, ...], Any], name: tuple[str, ...], value) -> None:
  if name in out:
    raise ConversionError(f'Two layers of the mapping make {lv.text(name)}.')
  out[name] = value


def _below_linen(
  given: Mapping[tuple[str, ...], Any], layer: Layer
) -> dict[tuple[str, ...], Any]:
  """Returns the leaves of a linen module by their names below it."""
  n = len(layer.names)
  return {
    (full[0], *full[1 + n :]): value
    for full, value in given.items()
    if full[1 : 1 + n] == layer.names
  }


def _with_shapes(layer: Layer, given: lv.Leaves, target: lv.Leaves):
  """Returns the options of a row with the shapes of what they speak of."""
  shapes = {'given': lv.shapes(given), 'target': lv.shapes(target)}
  return {'kept': Kept(), 'axes': '', **layer.options, **shapes}


def _row(
  path: str, layer: Layer, options: lv.Options, forward: bool, leaves: int
) -> Row:
  kind = KINDS[layer.kind]
  requires = kind.requires.format(**options)
  note = kind.note(options, forward)
  return Row(path, '/'.join(layer.names), requires, leaves, note)


def _haiku_text(is_state: bool, path: str, key: str) -> str:
  return f'{"state" if is_state else "params"}["{path}"]["{key}"]'


def _fill(
  out: dict[Any, Any], target: Mapping[Any, Any] | None, strict: bool
) -> tuple[str, ...]:
  """Compares leaves with those of a target, and adds those that are missing.

  Returns:
    The names of those that are missing.

  Raises:
    ConversionError: a leaf has another shape, or the target has no such leaf.
  """
  if target is None:
    return ()
  for name, value in out.items():
    if name not in target:
      raise ConversionError(
        f'The target has no {lv.text(_names(name))}, which the mapping makes.'
        ' Compare the path of the layer with those of the target.'
      )
    found, expected = _shape(value), _shape(target[name])
    if found != expected:
      raise ConversionError(
        f'{lv.text(_names(name))} has shape {found}, and in the target'
        f' {expected}.'
      )
  missing = [name for name in target if name not in out]
  if not strict:
    out.update({name: target[name] for name in missing})
  return tuple('/'.join(_names(name)) for name in missing)


def _names(name: tuple[Any, ...]) -> tuple[str, ...]:
  if isinstance(name[0], bool):
    return ('state' if name[0] else 'params', *name[1:])
  return name


def _shape(x: Any) -> tuple[int, ...]:
  return tuple(getattr(x, 'shape', ()))


def _check_strict(report: Report, strict: bool) -> None:
  if not strict or not (report.unmatched or report.missing):
    return
  lines = ['The mapping does not cover everything.']
  lines += [f'  no layer takes {name}' for name in report.unmatched]
  lines += [f'  no layer makes {name}' for name in report.missing]
  lines.append('Add a layer to the mapping for each, or pass strict=False.')
  raise ConversionError('\n'.join(lines))


def _flat(tree: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
  return dict(_walk(tree, ()))


def _walk(
  tree: Mapping[str, Any], path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], Any]]:
  for name, value in tree.items():
    if isinstance(value, (dict, FrozenDict)):
      yield from _walk(value, (*path, name))
    else:
      yield (*path, name), value


def _nested(flat: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
  out: dict[str, Any] = {}
  for path, value in flat.items():
    level = out
    for name in path[:-1]:
      level = level.setdefault(name, {})
      if not isinstance(level, dict):
        raise ConversionError(
          f'{lv.text(path)} lies below "{name}", which is a value.'
        )
    if path[-1] in level:
      raise ConversionError(f'{lv.text(path)} is a value and a module.')
    level[path[-1]] = value
  return out


# --- To Haiku ----------------------------------------------------------------


def weights_to_haiku(
  variables: Mapping[str, Any],
  mapping: Mappings,
  *,
  target: tuple[Mapping[str, Any], Mapping[str, Any]] | None = None,
  strict: bool = True,
) -> tuple[Bundles, Bundles, Report]:
  """Converts the weights of a linen model; `weights_from_haiku` inverted.

  >>> import jax, jax.numpy as jnp
  >>> import haiku_state.linen as nn
  >>> from haiku_state import interop
  >>> from haiku_state.interop import layers
  >>> variables = nn.Dense(2).init(jax.random.key(0), jnp.ones((1, 3)))
  >>> params, state, report = interop.weights_to_haiku(
  ...   variables, {'linear': layers.linear('')})
  >>> jax.tree.map(jnp.shape, params)
  {'linear': {'b': (2,), 'w': (3, 2)}}

  Args:
    variables: collections by name.
    mapping: the mapping, as from Haiku.
    target: parameters and state of the Haiku model, or their shapes, such as
      `jax.eval_shape(f.init, key, x)`, to compare with. They also show where
      Haiku keeps axes of size one, as in the leaves of `hk.BatchNorm`.
    strict: see `weights_from_haiku`.

  Returns:
    The parameters, the state, and what was converted.

  Raises:
    ConversionError: the mapping, or the weights, do not fit; see `strict`.
    TypeError: these are no variables, or the target is no pair.
  """
  check_variables(variables, 'weights_to_haiku', has_params=True)
  _check_mapping(mapping)
  if target is not None and not isinstance(target, (tuple, list)):
    raise TypeError(
      'weights_to_haiku takes as `target=` the pair of parameters and state,'
      f' found {described(target)}. Write `target=(params, state)`, or {{}} for'
      ' no state.'
    )
  given = _flat(variables)
  expected = None if target is None else _flat_haiku(*target)
  out: dict[tuple[bool, str, str], Any] = {}
  rows = []
  for path, layer in mapping.items():
    values, names = {}, {}
    for full in given:
      col, below = full[0], full[1:]
      if below[: len(layer.names)] == layer.names:
        short = (col, *below[len(layer.names) :])
        values[short], names[short] = given[full], full
    there = expected or {}
    shapes = {
      short: there[full] for full, short in _below_haiku(there, path).items()
    }
    options = _with_shapes(layer, values, shapes)
    where = '/'.join(layer.names)
    made = lv.convert(KINDS[layer.kind], values, options, False, where)
    for short, full in names.items():
      if short not in values:
        del given[full]
    for short, value in made.items():
      is_state = short[0] == lv.STATE
      *below, key = short[1:] if is_state else short
      out[is_state, '/'.join((path, *below)), key] = value
    rows.append(_row(path, layer, options, False, len(made)))
  unmatched = tuple('/'.join(name) for name in given)
  missing = _fill(out, expected, strict)
  report = Report(tuple(rows), unmatched, missing)
  _check_strict(report, strict)
  params: Bundles = {}
  state: Bundles = {}
  for (is_state, path, key), value in out.items():
    (state if is_state else params).setdefault(path, {})[key] = value
  return params, state, report


def _flat_haiku(
  params: Mapping[str, Any], state: Mapping[str, Any]
) -> dict[tuple[bool, str, str], Any]:
  return {
    (is_state, path, key): value
    for is_state, bundles in ((False, params), (True, state))
    for path, bundle in bundles.items()
    for key, value in bundle.items()
  }
