"""The shapes that initializers make, found once for each initializer.

A parameter that exists is checked against its initializer at every call.
Tracing the initializer for that would be the largest cost of a call, and the
answer is always the same: it is kept, by what the initializer is made of.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np


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


def expected(init_fn: Callable[..., Any], args: Any, kwargs: Any) -> Expected:
  """Returns what `init_fn(key, *args, **kwargs)` makes, without making it."""
  try:
    key = (_fingerprint(init_fn), _fingerprint(args), _fingerprint(kwargs))
    found = _kept.get(key)
  except (_Unknown, TypeError):
    return trace(init_fn, args, kwargs)
  if found is None:
    if len(_kept) >= _MAX_KEPT:
      _kept.clear()
    found = _kept[key] = trace(init_fn, args, kwargs)
  return found


def trace(init_fn: Callable[..., Any], args: Any, kwargs: Any) -> Expected:
  """Returns what `expected` returns, traced anew."""
  value = jax.eval_shape(lambda: init_fn(jax.random.key(0), *args, **kwargs))
  if isinstance(value, jax.ShapeDtypeStruct):
    return Expected((value.shape,), value.dtype)
  return Expected(tuple(np.shape(x) for x in jax.tree.leaves(value)), None)


class _Unknown(Exception):
  """Nothing that can be kept says what the value is."""


def _fingerprint(x: Any) -> Any:
  """Returns a hashable that is equal for equal behaviour.

  It must hold neither arrays nor tracers, nor modules: what it holds lives
  long. A function is its code and what it closes over, since a lambda is made
  anew at each call of the method that holds it.

  Raises:
    _Unknown: there is no such hashable.
  """
  kind = type(x)
  if kind in _ATOMS:
    # 1, 1.0 and True are equal, what initializers make of them is not.
    return kind, x
  if kind is tuple or kind is list:
    return (kind, *map(_fingerprint, x))
  if kind is dict:
    return (kind, *((k, _fingerprint(v)) for k, v in x.items()))
  if kind is types.FunctionType:
    return _function_fingerprint(x)
  if kind is functools.partial:
    return kind, *map(_fingerprint, (x.func, x.args, x.keywords))
  if isinstance(x, (type, np.dtype, types.BuiltinFunctionType)):
    return x
  params = getattr(kind, '__dataclass_params__', None)
  if params is not None and params.frozen:
    return kind, *(
      _fingerprint(getattr(x, f)) for f in kind.__dataclass_fields__
    )
  if isinstance(x, jax.sharding.PartitionSpec):
    return x
  raise _Unknown


_ATOMS = frozenset({int, float, bool, str, bytes, complex, type(None)})


def _function_fingerprint(fn: types.FunctionType) -> Any:
  if '__wrapped__' in fn.__dict__:
    raise _Unknown
  cells = fn.__closure__ or ()
  try:
    closure = tuple(_fingerprint(cell.cell_contents) for cell in cells)
  except ValueError:  # A cell that is still empty.
    raise _Unknown from None
  defaults = _fingerprint(fn.__defaults__)
  return fn.__code__, defaults, _fingerprint(fn.__kwdefaults__), closure
