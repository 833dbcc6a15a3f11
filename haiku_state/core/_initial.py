"""The initial values of parameters.

To trace an initializer takes longer than all else that is done for a parameter,
and models have many parameters of few shapes. Those that JAX has are known to
be pure: where JAX records a program, rather than computing, each is traced once
for a shape, and the same operations are put in by `jax.jit(..., inline=True)`.

Haiku's initializers draw a key where they need one: in somebody's `hk.transform`
one that does not look at its key is given none.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.core
import numpy as np

from haiku_state.core import _haiku_run, keys
from haiku_state.core._fingerprint import (
  Unknown,
  fingerprint,
  is_from_here,
  kept_if_lasting,
)

_MAX_KEPT = 8192
# By what the initializer and its arguments are made of.
_kept: dict[Any, Any] = {}
# By what they are made of: whether they look at their key.
_users: dict[Any, bool] = {}
_MISSING = object()


def initial_value(
  init_fn: Callable[..., Any],
  rng: jax.Array,
  suffix: tuple[keys.PRNGFoldable, ...],
  args: Any,
  kwargs: Any,
  is_recorded: Callable[[], bool],
) -> Any:
  """Returns `init_fn(key, *args, **kwargs)`.

  Args:
    init_fn: the initializer.
    rng: the root of the key.
    suffix: what is folded into it.
    args: the arguments.
    kwargs: the arguments by keyword.
    is_recorded: tells whether JAX records what is computed here. Elsewhere a
      compiled program could round otherwise than the same operations one by
      one.
  """
  if not suffix:
    return init_fn(rng, *args, **kwargs)
  data = keys.static_hash(suffix)
  if isinstance(rng, jax.core.Tracer) and is_recorded():
    programs = _programs(init_fn, args, kwargs)
    if programs is not None:
      return programs[keys.raw_key_impl()](rng, data)
  return init_fn(_key(init_fn, rng, data), *args, **kwargs)


@kept_if_lasting
def uses_key(init_fn: Callable[..., Any], args: Any, kwargs: Any) -> bool:
  """Returns whether `init_fn(key, *args, **kwargs)` looks at its key."""
  if init_fn is _ZEROS or init_fn is _ONES:
    return False
  wanted = (init_fn, args, kwargs)
  if not _is_known(wanted):
    return _traces_key(*wanted)
  try:
    key = fingerprint(wanted)
    found = _users.get(key)
  except (Unknown, TypeError):
    return _traces_key(*wanted)
  if found is None:
    if len(_users) >= _MAX_KEPT:
      _users.clear()
    found = _users[key] = _traces_key(*wanted)
  return found


def _traces_key(init_fn, args, kwargs) -> bool:
  def make(key):
    # It may draw from Haiku's keys, which must not get into this trace.
    return _haiku_run.apart(key, lambda: init_fn(key, *args, **kwargs))

  jaxpr = jax.make_jaxpr(make)(jax.random.key(0)).jaxpr
  (key,) = jaxpr.invars
  return any(key is x for eqn in jaxpr.eqns for x in eqn.invars)


# For an initializer that does not look at it.
UNUSED_KEY: Any = np.zeros(2, np.uint32)


def _key(init_fn, rng: jax.Array, data: Any) -> jax.Array:
  """Returns the key of a parameter, which need not be made if it is unused."""
  if init_fn is _ZEROS or init_fn is _ONES:
    return rng
  return jax.random.fold_in(rng, data)


_ZEROS, _ONES = jax.nn.initializers.zeros, jax.nn.initializers.ones


class _Programs(dict[str, Any]):
  """Functions of the root key and what to fold in, by what a raw key means.

  That is not noted by JAX with a program that it keeps.

  Args:
    init_fn: the initializer.
    args: its arguments.
    kwargs: its arguments by keyword.
  """

  def __init__(self, init_fn: Callable[..., Any], args: Any, kwargs: Any):
    super().__init__()
    self._wanted = init_fn, args, kwargs

  def __missing__(self, impl: str) -> Any:
    program = self[impl] = _traced_once(*self._wanted)
    return program


@kept_if_lasting
def _programs(init_fn, args, kwargs) -> _Programs | None:
  """Returns the initializer as programs, None if it may be impure."""
  wanted = (init_fn, args, kwargs)
  try:
    key = fingerprint(wanted)
    # Another thread may clear what is kept between two looks.
    found = _kept.get(key, _MISSING)
  except (Unknown, TypeError):
    return None
  if found is _MISSING:
    if len(_kept) >= _MAX_KEPT:
      _kept.clear()
    found = _kept[key] = _Programs(*wanted) if _is_known(wanted) else None
  return found


def is_pure(init_fn: Callable[..., Any], args: Any, kwargs: Any) -> bool:
  """Returns whether an initializer is known to use nothing but its arguments.

  These are then no arrays.
  """
  return _programs(init_fn, args, kwargs) is not None


def _traced_once(init_fn, args, kwargs) -> Callable[..., Any]:
  """Returns the initializer as a function that JAX traces once."""

  # Zeros take the key as well: of functions without a traced argument JAX notes
  # each call.
  def make(rng, data):
    return init_fn(_key(init_fn, rng, data), *args, **kwargs)

  return jax.jit(make, inline=True)


def _is_known(x: Any) -> bool:
  """Returns whether all functions that something is made of are known.

  Those of JAX and of this package depend on nothing but their arguments. What
  others depend on, globals for example, may change.
  """
  kind = type(x)
  if kind is tuple or kind is list:
    return all(map(_is_known, x))
  if kind is dict:
    return all(map(_is_known, x.values()))
  if kind is functools.partial:
    return _is_known((x.func, x.args, x.keywords))
  if kind is types.FunctionType:
    closure = [cell.cell_contents for cell in x.__closure__ or ()]
    parts = (closure, x.__defaults__, x.__kwdefaults__)
    return is_from_here(x) and _is_known(parts)
  if isinstance(x, type):
    return issubclass(x, np.generic) or is_from_here(x)
  fields = getattr(kind, '__dataclass_fields__', None)
  if fields is not None:
    return is_from_here(kind) and _is_known([getattr(x, f) for f in fields])
  return not callable(x)
