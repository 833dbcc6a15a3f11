"""The shapes that initializers make, found once for each initializer.

A parameter that exists is checked against its initializer at every call.
Tracing the initializer for that would be the largest cost of a call, and the
answer is always the same: it is kept, by what the initializer is made of.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from haiku_state.core import _haiku_run
from haiku_state.core._fingerprint import (
  Unknown,
  fingerprint,
  kept_if_lasting,
)


class Expected(NamedTuple):
  """What an initializer makes.

  Attributes:
    shapes: the shapes of all leaves.
    dtype: the dtype of the only leaf, None where the value is no array.
  """

  shapes: tuple[tuple[int, ...], ...]
  dtype: Any


_MAX_KEPT = 8192
_kept: dict[Any, Expected] = {}


@kept_if_lasting
def expected(init_fn: Callable[..., Any], args: Any, kwargs: Any) -> Expected:
  """Returns what `init_fn(key, *args, **kwargs)` makes, without making it."""
  try:
    key = fingerprint((init_fn, args, kwargs))
    found = _kept.get(key)
  except (Unknown, TypeError):
    return trace(init_fn, args, kwargs)
  if found is None:
    if len(_kept) >= _MAX_KEPT:
      _kept.clear()
    found = _kept[key] = trace(init_fn, args, kwargs)
  return found


def trace(init_fn: Callable[..., Any], args: Any, kwargs: Any) -> Expected:
  """Returns what `expected` returns, traced anew."""

  def make():
    key = jax.random.key(0)
    # It may draw from Haiku's keys, which must not get into this trace.
    return _haiku_run.apart(key, lambda: init_fn(key, *args, **kwargs))

  value = jax.eval_shape(make)
  if isinstance(value, jax.ShapeDtypeStruct):
    return Expected((value.shape,), value.dtype)
  return Expected(tuple(np.shape(x) for x in jax.tree.leaves(value)), None)
