"""What a function is made of, as a hashable: its code and what it closes over."""

from __future__ import annotations

import functools
import types
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
