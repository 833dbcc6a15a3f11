"""What a function is made of, as a hashable: its code and what it closes over.

What is kept by that is found again for a function that was made anew. The
functions of JAX and of this package need no such look: they are told by
themselves.
"""

from __future__ import annotations

import functools
import operator
import types
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from haiku_state.core._initializers import INITIALIZERS


class Unknown(Exception):
  """Nothing that can be kept says what the value is."""


def fingerprint(x: Any) -> Any:
  """Returns a hashable that is equal for equal behaviour.

  It must hold neither arrays nor tracers, nor modules: what it holds lives
  long. A function is its code and what it closes over, since a lambda is made
  anew at each call of the method that holds it.

  Raises:
    Unknown: there is no such hashable.
  """
  kind = type(x)
  if kind in _ATOMS:
    # 1, 1.0 and True are equal, what initializers make of them is not.
    return kind, x
  if kind is float or kind is complex:
    return kind, repr(x)  # 0.0 and -0.0 are equal, too.
  if kind is tuple or kind is list:
    return (kind, *map(fingerprint, x))
  if kind is dict:
    return (kind, *((k, fingerprint(v)) for k, v in x.items()))
  if kind is types.FunctionType:
    return _of_function(x)
  if kind is functools.partial:
    return kind, *map(fingerprint, (x.func, x.args, x.keywords))
  if isinstance(x, (type, np.dtype, types.BuiltinFunctionType)):
    return x
  params = getattr(kind, '__dataclass_params__', None)
  if params is not None and params.frozen:
    return kind, *(
      fingerprint(getattr(x, f)) for f in kind.__dataclass_fields__
    )
  if isinstance(x, jax.sharding.PartitionSpec):
    return x
  if isinstance(x, INITIALIZERS):
    return kind, fingerprint(vars(x))
  raise Unknown


_ATOMS = frozenset({int, bool, str, bytes, type(None)})


def is_lasting(fn: Any) -> bool:
  """Returns whether a function does what it did when it was first seen here.

  Those of JAX and of this package depend on nothing but what they close over,
  their defaults and their arguments. This looks whether somebody has set any of
  that.

  Args:
    fn: a function, or data of this package that is called as one.
  """
  if type(fn) is not types.FunctionType:
    return _is_lasting_data(fn)
  try:
    parts = (
      fn.__code__,
      fn.__defaults__,
      fn.__kwdefaults__,
      fn.__dict__ or None,
      *map(_CONTENTS, fn.__closure__ or ()),
    )
  except ValueError:  # A cell that is still empty.
    return False
  seen = _seen.get(fn)
  if seen is not None:
    return all(map(operator.is_, parts, seen))
  if not is_from_here(fn) or not all(map(_is_fixed, parts[1:])):
    return False
  if len(_seen) >= _MAX_SEEN:
    _seen.clear()
  _seen[fn] = parts
  return True


def kept_if_lasting(make: Callable[..., Any]) -> Callable[..., Any]:
  """Makes a function keep what it returns for a lasting initializer of a shape.

  Equal sizes of different types, such as 1, 1.0 and True, are told apart.

  Args:
    make: a function of `(init_fn, args, kwargs)`, the initializer and what it is
      called with behind its key.
  """

  @functools.lru_cache(maxsize=_MAX_SEEN, typed=True)
  def kept(init_fn, n, *flat):
    return make(init_fn, (flat[n:], *flat[:n]), {})

  @functools.wraps(make)
  def look(init_fn, args, kwargs):
    if args and type(args[0]) is tuple and not kwargs and is_lasting(init_fn):
      try:
        return kept(init_fn, len(args) - 1, *args[1:], *args[0])
      except TypeError:
        pass  # An argument has no hash.
    return make(init_fn, args, kwargs)

  return look


def _is_lasting_data(x: Any) -> bool:
  """Returns whether a callable is data of this package, with lasting parts."""
  kind = type(x)
  params = getattr(kind, '__dataclass_params__', None)
  if params is None or not params.frozen or not is_from_here(kind):
    return False
  return all(_is_fixed(part) or is_lasting(part) for part in vars(x).values())


_CONTENTS = operator.attrgetter('cell_contents')
_MAX_SEEN = 8192
# What lasting functions were made of when they were first seen.
_seen: dict[types.FunctionType, tuple[Any, ...]] = {}


def _is_fixed(x: Any) -> bool:
  """Returns whether a value cannot be changed, only another one be set."""
  kind = type(x)
  if kind is tuple:
    return all(map(_is_fixed, x))
  if isinstance(x, type):
    return issubclass(x, np.generic) or is_from_here(x)
  return kind in _ATOMS or kind is float or isinstance(x, np.dtype)


def is_from_here(x: Any) -> bool:
  """Returns whether a function or a class is of JAX or of this package."""
  return (x.__module__ or '').partition('.')[0] in _HERE


_HERE = ('jax', __name__.partition('.')[0])


def _of_function(fn: types.FunctionType) -> Any:
  if '__wrapped__' in fn.__dict__:
    raise Unknown
  cells = fn.__closure__ or ()
  try:
    closure = tuple(fingerprint(cell.cell_contents) for cell in cells)
  except ValueError:  # A cell that is still empty.
    raise Unknown from None
  defaults = fingerprint(fn.__defaults__)
  kwdefaults = fingerprint(fn.__kwdefaults__)
  # Equal code in two files need not mean the same: globals differ.
  return fn.__code__, fn.__module__, defaults, kwdefaults, closure
