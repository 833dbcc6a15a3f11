"""The one mechanism below all lifted transforms.

Take the variables below some scopes, run a function of those scopes as its own
pure function of the variables, hand that to JAX, and write back what changed.
The cost is that of what is below the scopes, not of the whole model.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax

from haiku_state.core.filters import (
  CollectionFilter,
  Filter,
  PRNGSequenceFilter,
  group_collections,
  in_filter,
  intersect_filters,
  union_filters,
)
from haiku_state.core.frozen_dict import unfreeze
from haiku_state.core.scope import Scope, _execute_once

# One dict of collections (or of key streams) for each filter and scope.
Groups = tuple[tuple[dict[str, Any], ...], ...]


class Pack:
  """The scopes of one call of a lifted transform, taken out of their run.

  Args:
    scopes: a pytree of scopes.
    in_filters: the groups of collections that go in.
    out_filters: the groups of collections that come out.
    rng_filters: the groups of key streams that go in.
    name: the name of the transform, for paths in errors.

  Attributes:
    variables: the collections that go in: for each group, for each scope.
    rngs: the key streams that go in: for each group, for each scope.
    in_run: if it is set, from a scope that was taken and the new one to what
      makes the store of that.
  """

  in_run: Callable[[Scope, Scope], Callable[..., Any]] | None = None

  def __init__(
    self,
    scopes: Any,
    in_filters: Sequence[CollectionFilter],
    out_filters: Sequence[CollectionFilter],
    rng_filters: Sequence[PRNGSequenceFilter],
    name: str | None,
  ):
    leaves, self.treedef = jax.tree.flatten(scopes)
    self.tops, self.places = topmost(leaves)
    self.out_filters = tuple(out_filters)
    self.name = name
    groups = []
    for scope in self.tops:
      scope._check_valid()
      found = scope._run.store.variables(scope.place)
      # One kind of dict, so that trees match whatever the user's is.
      found = {col: unfreeze(x) for col, x in found.items()}
      if not groups and scope.parent is not None:
        _add_outside(found, scope)
      groups.append(group_collections(found, in_filters))
    # Without any scope there is still one tuple of nothing for each group.
    self.variables: Groups = _transpose(groups) or ((),) * len(in_filters)
    self.rngs: Groups = _transpose(
      [
        group_collections(s.streams_to_lift(rng_filters), rng_filters)
        for s in self.tops
      ]
    ) or ((),) * len(rng_filters)
    # The parameters that the function made or set, by top, bundle and name.
    self.touched: list[Any] = [None] * len(self.tops)

  def scopes(
    self,
    variable_groups: Groups,
    rng_groups: Groups,
    mutable_filter: CollectionFilter = True,
  ) -> Any:
    """Returns new scopes, in the structure of the ones that were taken.

    Args:
      variable_groups: collections, in the structure of `self.variables`.
      rng_groups: key streams, in the structure of `self.rngs`.
      mutable_filter: which collections may be changed, of those that come out.
    """
    mutable: Filter = False
    for out_filter in self.out_filters:
      mutable = union_filters(mutable, out_filter)
    mutable = intersect_filters(mutable, mutable_filter)
    # Without any group there is still one tuple of nothing for each scope.
    none: Any = ((),) * len(self.tops)
    made = [
      self._inner_scope(top, variables, rngs, mutable)
      for top, variables, rngs in zip(
        self.tops,
        _transpose(variable_groups) or none,
        _transpose(rng_groups) or none,
        strict=True,
      )
    ]
    return self.treedef.unflatten(_at_places(self.tops, made, self.places))

  def _inner_scope(self, top: Scope, variables, rngs, mutable: Filter) -> Scope:
    merged: dict[str, Any] = {}
    for group in variables:
      # The levels are copied: what changes inside must not change outside.
      merged.update(jax.tree.map(lambda x: x, group))
    streams: dict[str, Any] = {}
    for group in rngs:
      streams.update(group)
    scope = Scope(
      merged,
      name=top.name,
      rngs=streams,
      mutable=intersect_filters(top.mutable, mutable),
      path=top.path,
      debug_path=self._debug_path(top),
      flags=top.flags,
    )
    scope._run.haiku_root = top.haiku_path
    if self.in_run is not None:
      scope._run.in_run = self.in_run(top, scope)
    # The counts of keys go on across the border, in both directions.
    scope.rng_counters = top.rng_counters
    return scope

  def _debug_path(self, top: Scope) -> tuple[str, ...]:
    path = top.debug_path
    if not self.name:
      return path
    if not path:
      return (f'{self.name}()',)
    return (*path[:-1], f'{self.name}({path[-1]})')

  def repack(self, scopes: Any) -> Groups:
    """Ends the scopes, and returns the collections that come out of them.

    Raises:
      ValueError: a collection may be changed that comes out in no group.
    """
    tops, _ = topmost(self.treedef.flatten_up_to(scopes))
    groups = []
    for i, scope in enumerate(tops):
      scope.invalidate()
      store: Any = scope._run.store
      found = {
        col: x
        for col, x in store.variables(scope.place).items()
        if in_filter(scope.mutable, col)
      }
      *wanted, rest = group_collections(found, (*self.out_filters, True))
      if rest:
        raise ValueError(f'unmapped output variables: {tuple(rest)}')
      groups.append(tuple(wanted))
      if store.touched is not None:
        # There may be several functions: the branches of `cond`.
        self.touched[i] = (self.touched[i] or set()) | store.touched
    return _transpose(groups) or ((),) * len(self.out_filters)

  def call(
    self,
    fn: Callable[..., Any],
    variable_groups: Groups,
    rng_groups: Groups,
    *args: Any,
    mutable_filter: CollectionFilter = True,
    **kwargs: Any,
  ) -> tuple[Any, Groups]:
    """Calls a function of scopes as a pure function of variables.

    Args:
      fn: takes the scopes, then the arguments.
      variable_groups: collections, in the structure of `self.variables`.
      rng_groups: key streams, in the structure of `self.rngs`.
      *args: arguments of `fn`.
      mutable_filter: which collections may be changed, of those that come out.
      **kwargs: keyword arguments of `fn`.

    Returns:
      What `fn` returns, and the collections that come out.
    """
    scopes = self.scopes(variable_groups, rng_groups, mutable_filter)
    y = _execute_once(_roots(scopes), lambda: fn(scopes, *args, **kwargs))
    return y, self.repack(scopes)

  def publish(self, out_groups: Groups) -> None:
    """Writes collections that came out to the scopes that were taken."""
    for scope, groups, touched in zip(
      self.tops, _transpose(out_groups), self.touched
    ):
      for group in groups:
        for col, tree in group.items():
          # Some transforms return more than may be changed; what has no
          # variable leaves no trace.
          if tree and scope.is_mutable_collection(col):
            only = touched if col == 'params' else None
            scope._merge(col, tree, only)


def _add_outside(found: dict[str, Any], scope: Scope) -> None:
  """Adds what Haiku's modules with forced names have, outside of the root."""
  store, root = scope._run.store, scope.root.place
  for col, name in store.names_outside(root):
    found.setdefault(col, {})[name] = unfreeze(store.get(root, col, name))


def topmost(
  scopes: Sequence[Scope],
) -> tuple[tuple[Scope, ...], tuple[tuple[Scope, tuple[str, ...]], ...]]:
  """Returns the scopes that are below none of the others.

  Args:
    scopes: scopes, some of which may be the same, or below others.

  Returns:
    The topmost scopes, each once, in order; and for each scope the topmost one
    above it, and the names from there to it.
  """
  given = dict.fromkeys(scopes)
  tops = dict(given)
  places = []
  for scope in scopes:
    top, path = scope, ()
    names = [scope.name]
    above = scope.parent
    while above is not None:
      if above in given:
        top, path = above, tuple(reversed(names))
      names.append(above.name)
      above = above.parent
    if top is not scope:
      tops.pop(scope, None)
    places.append((top, path))
  return tuple(tops), tuple(places)


def _at_places(tops, made, places) -> list[Scope]:
  """Returns new scopes where the old ones were below the topmost."""
  new_of = dict(zip(tops, made))
  scopes = []
  for top, path in places:
    scope = new_of[top]
    for name in path:
      scope = scope.push(name, reuse=True)
    scopes.append(scope)
  return scopes


def _roots(scopes: Any) -> list[Scope]:
  """Returns the roots of a pytree of scopes, each once."""
  return list(dict.fromkeys(scope.root for scope in jax.tree.leaves(scopes)))


def _transpose(xs: Sequence[Sequence[Any]]) -> Any:
  return tuple(zip(*xs))


def unzip(xs: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
  """Returns the firsts and the seconds of pairs."""
  return tuple(zip(*xs)) or ((), ())  # type: ignore[return-value]


def lifted(
  inner: Callable[..., Any],
  in_filters: Sequence[CollectionFilter],
  out_filters: Sequence[CollectionFilter],
  rng_filters: Sequence[PRNGSequenceFilter],
  name: str,
  enable_kwargs: bool = False,
) -> Callable[..., Any]:
  """Returns a lifted function of scopes.

  Args:
    inner: takes the `Pack` of the scopes, then the arguments; returns an output
      and the collections that come out.
    in_filters: see `Pack`.
    out_filters: see `Pack`.
    rng_filters: see `Pack`.
    name: see `Pack`.
    enable_kwargs: whether keyword arguments are passed on.
  """

  def wrapper(scopes, *args, **kwargs):
    if kwargs and not enable_kwargs:
      kwargs = _without_kwargs(name, kwargs)
    packed = Pack(scopes, in_filters, out_filters, rng_filters, name)
    y, out_groups = inner(packed, *args, **kwargs)
    packed.publish(out_groups)
    return y

  return wrapper


def _without_kwargs(name: str | None, kwargs: dict[str, Any]) -> dict[str, Any]:
  warnings.warn(
    f'kwargs are not supported in {name}, so "{", ".join(kwargs)}" is(are)'
    ' ignored',
    RuntimeWarning,
    stacklevel=3,
  )
  return {}


def pack(
  fn: Callable[..., Any],
  in_variable_filters: Sequence[CollectionFilter],
  out_variable_filters: Sequence[CollectionFilter],
  rng_filters: Sequence[PRNGSequenceFilter],
  name: str | None = None,
  enable_kwargs: bool = False,
) -> Callable[..., Any]:
  """Makes a lifted transform of a function of variables and key streams.

  Args:
    fn: takes `(scope_fn, repack_fn, variable_groups, rng_groups, *args)` and
      returns an output and what `repack_fn` returned. `scope_fn` takes the two
      groups and makes scopes; `repack_fn` takes those and returns the
      collections that come out.
    in_variable_filters: the groups of collections that go in.
    out_variable_filters: the groups of collections that come out.
    rng_filters: the groups of key streams that go in.
    name: the name of the transform, for paths in errors.
    enable_kwargs: whether keyword arguments are passed on.

  Returns:
    A function of a pytree of scopes and the arguments.
  """

  def inner(packed: Pack, *args, **kwargs):
    return fn(
      packed.scopes,
      packed.repack,
      packed.variables,
      packed.rngs,
      *args,
      **kwargs,
    )

  lifted_fn = lifted(
    inner,
    in_variable_filters,
    out_variable_filters,
    rng_filters,
    name or '',
    enable_kwargs,
  )
  return functools.wraps(fn)(lifted_fn)
