"""Transforms of collections: what a function of scopes sees of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax

from haiku_state.core._lift.packing import Pack, lifted
from haiku_state.core.filters import (
  CollectionFilter,
  PRNGSequenceFilter,
  is_filter_empty,
  subtract_filters,
)
from haiku_state.core.frozen_dict import unfreeze

T = TypeVar('T')


def id_fn(x: T) -> T:
  """Returns what it is given."""
  return x


def map_variables(
  fn: Callable[..., Any],
  mapped_collections: CollectionFilter,
  map_in_fn: Callable[..., Any] = id_fn,
  map_out_fn: Callable[..., Any] = id_fn,
  init: bool = False,
  mutable: bool = False,
  rngs: PRNGSequenceFilter = True,
  variables: CollectionFilter = True,
) -> Callable[..., Any]:
  """Shows a function of scopes other variables than there are.

  The arguments are those of `haiku_state.linen.map_variables`, but for:

  >>> import jax, jax.numpy as jnp
  >>> from haiku_state import core
  >>> def read(scope):
  ...   return scope.get_variable('params', 'w')
  >>> double = core.lift.map_variables(
  ...   read, 'params', lambda tree: jax.tree.map(lambda w: 2 * w, tree))
  >>> core.apply(double)({'params': {'w': jnp.ones(2)}})
  Array([2., 2.], dtype=float32)

  Args:
    fn: takes the scopes, then the arguments.
    map_in_fn: there `trans_in_fn`.
    map_out_fn: there `trans_out_fn`.
  """
  comes_out = mutable or init
  rest = subtract_filters(variables, mapped_collections)

  def inner(packed: Pack, *args, **kwargs):
    target, others = packed.variables
    if init:
      target = _initialized(packed, fn, target, others, args, kwargs)
    target = tuple(map_in_fn(unfreeze(x)) for x in target)
    y, (out_target, out_others) = packed.call(
      fn,
      (target, others),
      packed.rngs,
      *args,
      mutable_filter=(
        True if comes_out else subtract_filters(True, mapped_collections)
      ),
      **kwargs,
    )
    if comes_out:
      out_target = tuple(map_out_fn(x) for x in out_target)
    # The names outside are those that `map_out_fn` makes: all are written, but
    # not by a call that made none in Haiku's hands, where parameters stay.
    packed.touched = [
      touched if scope._run.is_in_haiku and not touched else None
      for scope, touched in zip(packed.tops, packed.touched)
    ]
    return y, (out_target, out_others)

  def _initialized(packed, fn, target, others, args, kwargs):
    """Returns the variables that `fn` makes, if it may make any."""
    scopes = jax.tree.leaves(packed.scopes((target, others), packed.rngs))
    if all(is_filter_empty(scope.mutable) for scope in scopes):
      return target
    _, (made, _) = packed.call(
      fn, (target, others), packed.rngs, *args, **kwargs
    )
    return tuple(map_out_fn(x) for x in made)

  return lifted(
    inner,
    (mapped_collections, variables),
    (mapped_collections, variables) if comes_out else (False, rest),
    (rngs,),
    'map_variables',
    enable_kwargs=True,
  )


def swap_collection(
  fn: Callable[..., Any], col_a: str, col_b: str
) -> Callable[..., Any]:
  """Shows a function of scopes two collections under each other's name.

  >>> from haiku_state import core
  >>> def read(scope):
  ...   return scope.get_variable('params', 'w')
  >>> averaged = core.lift.swap_collection(read, 'params', 'average')
  >>> core.apply(averaged)({'params': {'w': 1}, 'average': {'w': 2}})
  2

  Args:
    fn: takes the scopes, then the arguments.
    col_a: the name of one collection.
    col_b: the name of the other.
  """

  def swap(target):
    a, b = target.get(col_a, {}), target.get(col_b, {})
    return {**target, col_a: b, col_b: a}

  return map_variables(fn, (col_a, col_b), swap, swap, mutable=True)
