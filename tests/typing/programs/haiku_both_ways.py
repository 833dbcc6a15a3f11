"""Modules inside of Haiku's, and Haiku's inside of ours."""

from typing import TYPE_CHECKING

import haiku as hk
import jax

import haiku_state.linen as nn
from haiku_state import interop

x = jax.random.normal(jax.random.key(0), (2, 3))


class Net(hk.Module):
  def __init__(self, size: int, name: str | None = None):
    super().__init__(name)
    self.dense = nn.Dense(size)

  def __call__(self, x: jax.Array) -> jax.Array:
    reveal_type(self.dense)  # shows: Dense
    y: jax.Array = self.dense(x)
    return y


def forward(x: jax.Array) -> jax.Array:
  return Net(3)(nn.relu(x))


transformed = hk.transform(forward)  # pyright: ignore[reportUnknownMemberType]
params = transformed.init(jax.random.key(0), x)


class Mixed(nn.Module):
  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    y: jax.Array = hk.Linear(4)(x)
    return nn.relu(y)


variables = Mixed().init(jax.random.key(0), x)
reveal_type(Mixed().apply(variables, x))  # shows: Array

module = interop.as_module(transformed)
reveal_type(module)  # shows: Module
from_ours = interop.as_transformed(Mixed())
from_ours.init(jax.random.key(0), x)
reveal_type(interop.to_haiku(variables)[0])  # shows: dict[str, dict[str, Any]]


def named(module: nn.Module) -> str:
  return module.name or ''


named(Mixed())


def of_haiku(module: hk.Module) -> int:
  return len(module.params_dict())


if TYPE_CHECKING:
  of_haiku(Mixed())  # error: arg-type
  named(Net(3))  # error: arg-type
  reveal_type(Mixed().params_dict())  # shows: Mapping[str, Array]
