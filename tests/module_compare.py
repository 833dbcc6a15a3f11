"""The same program run with Flax and with haiku_state, and what came of it.

A program is a function of `(nn, flax)`: it finds the package's `linen` under
the one name and the package itself under the other, whichever package it is.
What it returns, or raises, is compared: of arrays the operations that make them,
where these are the same, or else the values. `--long` compares all values.
"""

import contextlib
import dataclasses
import enum
import functools
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from formulas import formulas

import haiku_state
import haiku_state.linen

KEY = jax.random.key(0)
X = jnp.arange(6.0).reshape(2, 3)


class Programs(list):
  """A table of programs; used as a decorator it adds one."""

  def __call__(self, program):
    self.append(program)
    return program

  def parametrize(self):
    """Returns the mark that runs a test over all programs."""
    params = [pytest.param(p, id=p.__name__) for p in self]
    params += [
      pytest.param(Computed(p), id=f'{p.__name__}-computed', marks=LONG)
      for p in self
    ]
    return pytest.mark.parametrize('program', params)


LONG = pytest.mark.long


@dataclasses.dataclass(frozen=True)
class Computed:
  """A program of which the values are compared."""

  program: Callable[[Any, Any], Any]

  def __call__(self, nn, flax):
    return self.program(nn, flax)


@dataclasses.dataclass(frozen=True)
class Raised:
  """An error that a program caught."""

  kind: str
  text: str


# Errors of programs that ask for values, which they do not have while traced.
NEEDS_VALUES = (
  jax.errors.ConcretizationTypeError,
  jax.errors.TracerArrayConversionError,
  jax.errors.TracerIntegerConversionError,
  jax.errors.UnexpectedTracerError,
)
needed_values = []


def attempt(fn, *args, **kwargs):
  """Returns what the call returns, or the error that it raises."""
  try:
    return fn(*args, **kwargs)
  except Exception as e:
    if isinstance(e, NEEDS_VALUES):
      needed_values.append(e)
    return Raised(type(e).__name__, plain_text(str(e)))


def plain_text(text):
  """Takes out what must differ: links, the package's name, addresses."""
  # Flax ends a message with a link, we with the name of its class.
  text = re.sub(r' ?\((https://|haiku_state\.errors\.)[^)]*\)', '', text)
  text = re.sub(r'\b(haiku_state|flax)\b', 'PACKAGE', text)
  return re.sub(r'0x[0-9a-f]{6,}', '0xADDRESS', text)


def plain(x, plain_array=None):
  """Returns a value in which only equal things compare equal."""
  within = functools.partial(plain, plain_array=plain_array)
  if isinstance(x, jax.Array):
    return (plain_array or value_of)(x)
  if isinstance(x, (np.ndarray, np.generic)):
    return np.asarray(x)
  if isinstance(x, float):
    return float(x)  # Newer JAX makes literals of a type of its own of some.
  if isinstance(x, jax.ShapeDtypeStruct):
    return ('shape', x.shape, str(x.dtype))
  if isinstance(x, SimpleNamespace):
    return {k: within(v) for k, v in vars(x).items()}
  if hasattr(x, 'items') and hasattr(x, 'keys'):
    kind = 'FrozenDict' if type(x).__name__ == 'FrozenDict' else 'dict'
    return {kind: {plain_key(k): within(v) for k, v in x.items()}}
  if isinstance(x, (list, tuple)):
    return (type(x).__name__, *map(within, x))
  if isinstance(x, (set, frozenset)):
    return sorted(map(str, x))
  if isinstance(x, str):
    return plain_text(x)
  if isinstance(x, (int, float, bool, type(None), Raised)):
    return x
  if isinstance(x, enum.Enum):
    return x.name
  if isinstance(x, type):
    return x.__name__
  return plain_text(repr(x))


def value_of(x):
  """Returns an array's value; that of a key is its data."""
  if isinstance(x, jax.core.Tracer):
    return ('tracer', x.shape, x.dtype)
  if is_key(x):
    return ('key', np.asarray(jax.random.key_data(x)))
  return np.asarray(x)


def is_key(x):
  return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def plain_key(key):
  return key if isinstance(key, str) else plain_text(repr(key))


def assert_equal(ours, theirs, where='result'):
  """Compares what `plain` made of two results."""
  if isinstance(theirs, np.ndarray) and isinstance(ours, np.ndarray):
    assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype), where
    if theirs.dtype.kind in 'fc':
      np.testing.assert_allclose(ours, theirs, 1e-6, 1e-6, err_msg=where)
    else:
      np.testing.assert_array_equal(ours, theirs, where)
  elif isinstance(theirs, dict) and isinstance(ours, dict):
    assert set(ours) == set(theirs), f'{where}: {set(ours) ^ set(theirs)}'
    for key in theirs:
      assert_equal(ours[key], theirs[key], f'{where}[{key!r}]')
  elif isinstance(theirs, tuple) and isinstance(ours, tuple):
    assert len(ours) == len(theirs), f'{where}: {ours} != {theirs}'
    for i, (a, b) in enumerate(zip(ours, theirs)):
      assert_equal(a, b, f'{where}[{i}]')
  else:
    same = type(ours) is type(theirs) and ours == theirs
    assert same, f'{where}: ours {ours!r}, of Flax {theirs!r}'


@contextlib.contextmanager
def flag(package, name, value):
  """Sets a flag of the package for a while."""
  before = getattr(package.config, name)
  package.config.update(name, value)
  try:
    yield
  finally:
    package.config.update(name, before)


def run(package, linen, program, frozen):
  """Returns what became of a program, in plain values."""
  with flag(package, 'flax_return_frozendict', frozen):
    return plain(program(linen, package))


def outline(package, linen, program, frozen):
  """Returns what becomes of a program: all but its arrays, and their formulas."""
  arrays, results = [], []

  def note(x):
    arrays.append(jax.random.key_data(x) if is_key(x) else x)
    return ('array', x.shape, str(x.dtype))

  def traced():
    with flag(package, 'flax_return_frozendict', frozen):
      results.append(plain(program(linen, package), note))
    return arrays

  numbers = formulas(traced)
  return results[0], numbers


def has_outline_of_flax(program, frozen):
  """Tells whether a program does the same with both, as far as that is seen.

  Where it is not, as its values decide or the operations are others, it has to
  run.
  """
  import flax

  needed_values.clear()
  try:
    ours, theirs = (
      outline(package, package.linen, program, frozen)
      for package in (haiku_state, flax)
    )
    assert_equal(ours[0], theirs[0])
  except Exception:
    return False
  return ours[1] == theirs[1] and not needed_values


def assert_same_as_flax(program, frozen=False):
  """Compares what a program returns with what it returns with Flax.

  With Flax it must return: an error that is meant goes through `attempt`.
  """
  flax = pytest.importorskip('flax')
  linen = pytest.importorskip('flax.linen')
  if not isinstance(program, Computed) and has_outline_of_flax(program, frozen):
    return
  theirs = run(flax, linen, program, frozen)
  ours = attempt(run, haiku_state, haiku_state.linen, program, frozen)
  assert_equal(ours, theirs)
