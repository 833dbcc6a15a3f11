"""Initializers of Haiku where ours are expected.

Haiku's take a shape and a dtype, and draw keys where they run; ours take a key
first.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from haiku_state.core import _haiku_run

# The classes of Haiku's initializers, which take a shape and a dtype.
# To Python 3.10 a type with parameters, such as `Callable[..., Array]`, which
# some versions of Haiku have there, is a class, too.
INITIALIZERS = tuple(
  x
  for x in vars(hk.initializers).values()
  if isinstance(x, type) and typing.get_origin(x) is None
)


@dataclasses.dataclass(frozen=True)
class FromHaiku:
  """An initializer of Haiku that takes a key first.

  Attributes:
    initializer: one of `hk.initializers`.
  """

  initializer: Callable[..., Any]

  def __call__(self, key: jax.Array, shape: Any, dtype: Any = jnp.float32):
    return _haiku_run.apart(key, lambda: self.initializer(shape, dtype))


def call_keyless(init_fn: Any, *args: Any, **kwargs: Any):
  """Calls what makes the initial value of a variable, which gets no key.

  One of Haiku's draws it by itself; its dtype is float32 if none is given.
  """
  if _is_of_haiku(init_fn):
    if args and isinstance(args[0], jax.Array):
      return FromHaiku(init_fn)(*args, **kwargs)
    kwargs = kwargs if len(args) > 1 else {'dtype': jnp.float32, **kwargs}
  return init_fn(*args, **kwargs)


def as_linen(init_fn: Callable[..., Any]) -> Callable[..., Any]:
  """Returns an initializer that takes a key first, whichever kind it is.

  Args:
    init_fn: an initializer of either kind. Of Haiku's kind are the objects of
      `hk.initializers`; of a function nothing tells.
  """
  return FromHaiku(init_fn) if _is_of_haiku(init_fn) else init_fn


def _is_of_haiku(init_fn: Callable[..., Any]) -> bool:
  # Haiku's classes are abstract ones: to ask each of them takes long.
  return type(init_fn) is not types.FunctionType and isinstance(
    init_fn, INITIALIZERS
  )
