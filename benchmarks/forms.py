"""What a workload is: one model as a program of each library.

A `Program` is a pair of functions, `init(key, *inputs)` and
`apply(variables, *inputs)`, whatever the library.
"""

from __future__ import annotations

from collections.abc import Callable
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


WIDTH = 16


def dense_params(key: jax.Array) -> Any:
  kernel = jax.nn.initializers.lecun_normal()(key, (WIDTH, WIDTH))
  return kernel, jnp.zeros(WIDTH)


def dense(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
  y = jax.lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))
  return y + jnp.reshape(bias, (1,) * (y.ndim - 1) + (-1,))


def batch_norm(x, scale, bias, ra_mean, ra_var, mean, mix=lambda *m: m):
  mu, mu2 = mix(mean(x, 0), mean(jax.lax.square(x), 0))
  var = jnp.maximum(0.0, mu2 - jax.lax.square(mu))
  new = (0.99 * ra_mean + 0.01 * mu, 0.99 * ra_var + 0.01 * var)
  shape = (1,) * (x.ndim - 1) + (-1,)
  y = x - mu.reshape(shape)
  y = y * (jax.lax.rsqrt(var.reshape(shape) + 1e-5) * scale.reshape(shape))
  return y + bias.reshape(shape), new
