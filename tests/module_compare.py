"""The same program run with Flax and with haiku_state, and what came of it.

A program is a function of `(nn, flax)`: it finds the package's `linen` under
the one name and the package itself under the other, whichever package it is.
What it returns, or raises, is compared.
"""

import contextlib
import dataclasses
import enum
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
    return pytest.mark.parametrize('program', self, ids=lambda p: p.__name__)


@dataclasses.dataclass(frozen=True)
class Raised:
  """An error that a program caught."""

  kind: str
  text: str


def attempt(fn, *args, **kwargs):
  """Returns what the call returns, or the error that it raises."""
  try:
    return fn(*args, **kwargs)
  except Exception as e:
    return Raised(type(e).__name__, plain_text(str(e)))


def plain_text(text):
  """Takes out what must differ: links, the package's name, addresses."""
  # Flax ends a message with a link, we with the name of its class.
  text = re.sub(r' ?\((https://|haiku_state\.errors\.)[^)]*\)', '', text)
  text = re.sub(r'\b(haiku_state|flax)\b', 'PACKAGE', text)
  return re.sub(r'0x[0-9a-f]{6,}', '0xADDRESS', text)


def plain(x):
  """Returns a value in which only equal things compare equal."""
  if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
    return ('key', np.asarray(jax.random.key_data(x)))
  if isinstance(x, jax.core.Tracer):
    return ('tracer', x.shape, x.dtype)
  if isinstance(x, (jax.Array, np.ndarray, np.generic)):
    return np.asarray(x)
  if isinstance(x, float):
    return float(x)  # Newer JAX makes literals of a type of its own of some.
  if isinstance(x, jax.ShapeDtypeStruct):
    return ('shape', x.shape, str(x.dtype))
  if isinstance(x, SimpleNamespace):
    return {k: plain(v) for k, v in vars(x).items()}
  if hasattr(x, 'items') and hasattr(x, 'keys'):
    kind = 'FrozenDict' if type(x).__name__ == 'FrozenDict' else 'dict'
    return {kind: {plain_key(k): plain(v) for k, v in x.items()}}
  if isinstance(x, (list, tuple)):
    return (type(x).__name__, *map(plain, x))
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


def assert_same_as_flax(program, frozen=False):
  """Compares what a program returns with what it returns with Flax.

  With Flax it must return: an error that is meant goes through `attempt`.
  """
  flax = pytest.importorskip('flax')
  linen = pytest.importorskip('flax.linen')
  theirs = run(flax, linen, program, frozen)
  ours = attempt(run, haiku_state, haiku_state.linen, program, frozen)
  assert_equal(ours, theirs)
