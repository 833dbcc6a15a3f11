"""Lifted control flow: `while_loop`, `cond`, `switch`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax

from haiku_state.core._lift.mapping import tree_map_rngs
from haiku_state.core._lift.packing import Pack, lifted, unzip
from haiku_state.core.filters import CollectionFilter, PRNGSequenceFilter
from haiku_state.core.scope import Scope

C = TypeVar('C')


def while_loop(
  cond_fn: Callable[[Any, C], Any],
  body_fn: Callable[[Any, C], C],
  scope: Scope,
  init: C,
  carry_variables: CollectionFilter = False,
  broadcast_variables: CollectionFilter = True,
  split_rngs: Mapping[PRNGSequenceFilter, bool] = {},  # noqa: B006
) -> C:
  """Calls a function of scopes while a condition holds.

  The arguments are those of `haiku_state.linen.while_loop`, but for:

  >>> from haiku_state import core
  >>> def doubled(scope, x):
  ...   return core.while_loop(
  ...     lambda scope, x: x < 100, lambda scope, x: 2 * x, scope, x)
  >>> int(core.apply(doubled)({}, 1))
  128

  Args:
    cond_fn: takes the scopes and the carry.
    body_fn: takes the scopes and the carry.
    scope: a pytree of scopes.
  """
  rng_groups, splits = unzip(split_rngs.items())

  def inner(packed: Pack):
    carried, broadcast = packed.variables

    def rngs_of(i):
      return tuple(
        tree_map_rngs(lambda rng: jax.random.fold_in(rng, i), group)
        if is_split
        else group
        for group, is_split in zip(packed.rngs, splits)
      )

    # JAX names the carry after this parameter in its errors.
    def goes_on(c):
      i, carried, c = c
      # Negative, so that the condition's keys are not those of the body.
      result, _ = packed.call(
        cond_fn, (carried, broadcast), rngs_of(-i), c, mutable_filter=False
      )
      return result

    def step(c):
      i, carried, c = c
      c, (carried,) = packed.call(body_fn, (carried, broadcast), rngs_of(i), c)
      return i + 1, carried, c

    _, carried, c = jax.lax.while_loop(goes_on, step, (0, carried, init))
    return c, (carried,)

  return lifted(
    inner,
    (carry_variables, broadcast_variables),
    (carry_variables,),
    rng_groups,
    'while_loop',
  )(scope)


def cond(
  pred: Any,
  true_fun: Callable[..., C],
  false_fun: Callable[..., C],
  scope: Scope,
  *operands: Any,
  variables: CollectionFilter = True,
  rngs: PRNGSequenceFilter = True,
) -> C:
  """Calls one of two functions of scopes, by a condition.

  The arguments are those of `haiku_state.linen.cond`, but for:

  >>> import jax, jax.numpy as jnp
  >>> from haiku_state import core
  >>> def scale(scope, x, positive):
  ...   w = scope.param('w', jax.nn.initializers.ones, ())
  ...   return core.lift.cond(
  ...     positive, lambda scope, x: w * x, lambda scope, x: -w * x, scope, x)
  >>> float(core.init(scale)(jax.random.key(0), 3.0, False)[0])
  -3.0

  Args:
    true_fun: takes the scopes, then the operands.
    false_fun: takes the same.
    scope: a pytree of scopes.
  """

  def inner(packed: Pack):
    return jax.lax.cond(
      pred, *_branches(packed, (true_fun, false_fun)), *operands
    )

  return lifted(inner, (variables,), (variables,), (rngs,), 'cond')(scope)


def switch(
  index: Any,
  branches: Sequence[Callable[..., C]],
  scope: Scope,
  *operands: Any,
  variables: CollectionFilter = True,
  rngs: PRNGSequenceFilter = True,
) -> C:
  """Calls one of several functions of scopes, by its number.

  The arguments are those of `haiku_state.linen.switch`, but for:

  >>> import jax, jax.numpy as jnp
  >>> from haiku_state import core
  >>> def scale(scope, x, i):
  ...   w = scope.param('w', jax.nn.initializers.ones, ())
  ...   branches = [lambda scope, x, n=n: n * w * x for n in range(3)]
  ...   return core.lift.switch(i, branches, scope, x)
  >>> float(core.init(scale)(jax.random.key(0), 3.0, 2)[0])
  6.0

  Args:
    branches: functions that take the scopes, then the operands.
    scope: a pytree of scopes.
  """

  def inner(packed: Pack):
    return jax.lax.switch(index, _branches(packed, branches), *operands)

  return lifted(inner, (variables,), (variables,), (rngs,), 'switch')(scope)


def _branches(packed: Pack, fns: Sequence[Callable[..., Any]]) -> list[Any]:
  """Returns functions of scopes as pure functions of their operands."""
  return [
    functools.partial(packed.call, fn, packed.variables, packed.rngs)
    for fn in fns
  ]
