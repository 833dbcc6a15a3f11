"""Lifted transforms: of a class, of a partial of one, of a function."""

import functools
from typing import TYPE_CHECKING, Any

import jax

import haiku_state.linen as nn


class Cell(nn.Module):
  features: int

  @nn.compact
  def __call__(
    self, carry: jax.Array, x: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    carry = nn.tanh(nn.Dense(self.features)(carry + x))
    return carry, carry


Remat = nn.remat(Cell)
reveal_type(Remat(3))  # shows: Cell
Scanned = nn.scan(
  Cell, variable_broadcast='params', split_rngs={'params': False}, in_axes=1
)
reveal_type(Scanned(3))  # shows: Cell
Mapped = nn.vmap(
  nn.Dense,
  variable_axes={'params': 0},
  split_rngs={'params': True},
  in_axes=None,
  axis_size=5,
)
reveal_type(Mapped(3))  # shows: Dense
reveal_type(nn.jit(Cell)(3))  # shows: Cell
reveal_type(nn.map_variables(nn.Dense, 'params', init=True)(3))  # shows: Dense
reveal_type(nn.remat_scan(nn.Dense, lengths=(2, 2))(3))  # shows: Dense
Plain = nn.remat(functools.partial(nn.Dense, use_bias=False))
reveal_type(Plain(3))  # shows: Dense

x = jax.random.normal(jax.random.key(0), (2, 4, 3))
y, variables = Scanned(3).init_with_output(jax.random.key(0), x[:, 0], x)
reveal_type(y)  # shows: tuple[Array, Array]


class Loop(nn.Module):
  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    dense = nn.Dense(3)
    dense(x)

    def body(module: nn.Dense, carry: jax.Array) -> jax.Array:
      y: jax.Array = module(carry)
      return y + 1

    def below(module: nn.Dense, carry: jax.Array) -> jax.Array:
      return carry.sum() < 0

    result = nn.while_loop(below, body, dense, x)
    reveal_type(result)  # shows: Array
    result = nn.cond(True, body, body, dense, x)
    reveal_type(result)  # shows: Array
    result = nn.switch(0, [body, body], dense, x)
    reveal_type(result)  # shows: Array
    reveal_type(nn.remat(body)(dense, x))  # shows: Array
    return result

  @nn.jit
  def twice(self, x: jax.Array) -> jax.Array:
    return x + x


loop = Loop()
reveal_type(loop.init_with_output(jax.random.key(0), x[0])[0])  # shows: Array
reveal_type(loop.apply({}, x, method=loop.twice))  # shows: Array

# Interceptors


def double(
  next_fun: Any,
  args: tuple[Any, ...],
  kwargs: dict[str, Any],
  context: nn.module.InterceptorContext,
) -> Any:
  reveal_type(context.module)  # shows: Module
  reveal_type(context.method_name)  # shows: str
  return next_fun(*args, **kwargs)


with nn.intercept_methods(double):
  loop.init(jax.random.key(0), x[0])

if TYPE_CHECKING:
  Remat()  # error: reportCallIssue call-arg
  Scanned('3')  # error: reportArgumentType arg-type
  Mapped(features=3, sise=4)  # error: reportCallIssue call-arg
  nn.vmap(nn.Dense, axes=0)  # error: reportCallIssue call-arg
