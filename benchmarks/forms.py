"""What a workload is: one model as a program of each library.

A `Program` is a pair of functions, `init(key, *inputs)` and
`apply(variables, *inputs)`, whatever the library.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp


class Program(NamedTuple):
  """One model of one library.

  Attributes:
    init: from a key and inputs to variables.
    apply: from variables and inputs to an output and the variables that
      changed.
  """

  init: Callable[..., Any]
  apply: Callable[..., Any]


class Workload(NamedTuple):
  """One model in all forms that there are.

  Attributes:
    inputs: what it is called with.
    linen: from `haiku_state.linen` or `flax.linen` to the program.
    haiku: the program in plain Haiku, if there is one.
    pure: the program in pure JAX, if there is one.
  """

  inputs: tuple[Any, ...]
  linen: Callable[[Any], Program]
  haiku: Callable[[], Program] | None = None
  pure: Callable[[], Program] | None = None


ORACLE, PURE = 'flax.linen', 'pure JAX'
LIBRARIES = ('haiku_state', ORACLE, PURE, 'Haiku')


def programs(
  workload: Workload, libraries: Sequence[str] = LIBRARIES
) -> dict[str, Program]:
  """Returns the forms of a workload by library, those that are there."""
  return {
    library: program
    for library in libraries
    if (program := _program(workload, library)) is not None
  }


def _program(workload: Workload, library: str) -> Program | None:
  if library == PURE:
    return workload.pure and workload.pure()
  if library == 'Haiku':
    return workload.haiku and workload.haiku()
  try:
    linen = importlib.import_module(
      {'haiku_state': 'haiku_state.linen'}.get(library, library)
    )
  except ImportError:
    return None
  return workload.linen(linen)


def linen_program(module: Any, mutable: tuple[str, ...] = ()) -> Program:
  """Returns a module as a program that returns its mutable collections."""

  def apply(variables, *inputs):
    return module.apply(variables, *inputs, mutable=list(mutable))

  return Program(module.init, apply)


def haiku_program(fn: Callable[..., Any]) -> Program:
  """Returns a Haiku function as a program."""
  transformed = hk.transform_with_state(fn)

  def apply(variables, *inputs):
    return transformed.apply(*variables, None, *inputs)

  return Program(transformed.init, apply)


# --- Pure JAX -----------------------------------------------------------------
#
# What a model costs at least, by any library: the same variables in the same
# dicts as linen's, and the same operations in the same order, so that the step is
# lowered to the same text. `init` does what linen's has to: it folds a number
# into the key for each array that is drawn, and runs the model.

WIDTH = 16
Keys = Iterator[jax.Array]


def pure_program(
  make: Callable[[Keys], Any],
  apply: Callable[..., Any],
  first: Callable[..., Any] | None = None,
) -> Program:
  """Returns functions of JAX as a program.

  Args:
    make: from keys to variables.
    apply: from variables and inputs to an output and the variables that
      changed.
    first: what `init` runs, where that is not `apply`.
  """
  first = first or apply

  def init(key, *inputs):
    variables = make(keys_from(key))
    first(variables, *inputs)
    return variables

  return Program(init, apply)


def keys_from(key: jax.Array) -> Keys:
  """Yields a key for each array that is drawn."""
  for i in itertools.count():
    yield jax.random.fold_in(key, i)


LECUN = jax.nn.initializers.lecun_normal()


def dense_params(keys: Keys, n_in: int = WIDTH, n_out: int = WIDTH) -> Any:
  return {'kernel': LECUN(next(keys), (n_in, n_out)), 'bias': jnp.zeros(n_out)}


def dense(x: jax.Array, params: Any) -> jax.Array:
  kernel, bias = params['kernel'], params['bias']
  y = jax.lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))
  return y + jnp.reshape(bias, (1,) * (y.ndim - 1) + (-1,))


def norm_params(n: int = WIDTH) -> Any:
  return {'scale': jnp.ones(n), 'bias': jnp.zeros(n)}


def norm_averages(n: int = WIDTH) -> Any:
  return {'mean': jnp.zeros(n), 'var': jnp.ones(n)}


def batch_norm(
  x: jax.Array,
  params: Any,
  averages: Any,
  axes: tuple[int, ...] = (0,),
  axis_name: str | None = None,
  first: bool = False,
) -> tuple[jax.Array, Any]:
  """Normalizes; returns the averages, too, which stay the `first` time."""
  mu, mu2 = means(x, axes)
  if axis_name and not first:
    mu, mu2 = jax.lax.pmean(jnp.stack([mu, mu2]), axis_name)
  var = jnp.maximum(0.0, mu2 - jax.lax.square(mu))
  if not first:
    averages = {
      'mean': 0.99 * averages['mean'] + (1 - 0.99) * mu,
      'var': 0.99 * averages['var'] + (1 - 0.99) * var,
    }
  return normalized(x, mu, var, axes, params, 1e-5), averages


def means(x: jax.Array, axes: Any) -> tuple[jax.Array, jax.Array]:
  """Returns the mean of an array, and that of its square."""
  square = jax.lax.square(x)
  return x.mean(axes), square.mean(axes)


def normalized(x, mu, var, axes, params, epsilon: float) -> jax.Array:
  """Normalizes by statistics over the given axes."""
  shape = (1,) * (x.ndim - 1) + (-1,)
  mu, var = jnp.expand_dims(mu, axes), jnp.expand_dims(var, axes)
  y = x - mu
  y = y * (jax.lax.rsqrt(var + epsilon) * params['scale'].reshape(shape))
  return y + params['bias'].reshape(shape)
