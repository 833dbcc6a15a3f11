"""Classes that derive from modules, and generic ones."""

import abc
import dataclasses
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import jax

import haiku_state.linen as nn

M = TypeVar('M', bound=nn.Module)


class Base(nn.Module):
  features: int
  rate: float = 0.1


class WithDefault(Base):
  bias: bool = True

  def __call__(self, x: jax.Array) -> jax.Array:
    return x


class KeywordOnly(Base, kw_only=True):
  depth: int
  widths: tuple[int, ...] = ()

  def __call__(self, x: jax.Array) -> jax.Array:
    return x


class Lists(nn.Module):
  sizes: list[int] = dataclasses.field(default_factory=lambda: [1])
  cache: Any = dataclasses.field(default=None, init=False)


class Encoder(nn.Module, abc.ABC):
  @abc.abstractmethod
  def encode(self, x: jax.Array) -> jax.Array: ...

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.encode(x)


class Linear(Encoder):
  features: int

  @nn.compact
  def encode(self, x: jax.Array) -> jax.Array:
    y: jax.Array = nn.Dense(self.features)(x)
    return y


class Residual(nn.Module, Generic[M]):
  inner: M

  def setup(self) -> None:
    reveal_type(self.inner.name)  # shows: str | None

  def __call__(self, x: jax.Array) -> jax.Array:
    y: jax.Array = self.inner(x)
    return x + y


class Block(nn.Module):
  make: type[nn.Module] = nn.LayerNorm

  @property
  def label(self) -> str:
    return self.make.__name__

  @nn.nowrap
  def helper(self) -> int:
    return 3

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    reveal_type(self.make())  # shows: Module
    return x


x = jax.random.normal(jax.random.key(0), (1, 2))
reveal_type(WithDefault(3, 0.2, False))  # shows: WithDefault
reveal_type(WithDefault(3, bias=False, name='w'))  # shows: WithDefault
reveal_type(KeywordOnly(3, depth=2))  # shows: KeywordOnly
reveal_type(Lists([2]))  # shows: Lists
reveal_type(Residual(nn.Dense(3)))  # shows: Residual[Dense]
reveal_type(Residual(nn.Dense(3)).inner)  # shows: Dense
reveal_type(Block().label)  # shows: str
reveal_type(Block().helper())  # shows: int
reveal_type(Linear(3).init(jax.random.key(0), x)['params'])  # shows: Any

if TYPE_CHECKING:
  WithDefault()  # error: reportCallIssue call-arg
  WithDefault(3, bias='no')  # error: reportArgumentType arg-type
  KeywordOnly(3)  # error: reportCallIssue call-arg
  KeywordOnly(3, 0.1, 2)  # error: reportCallIssue call-arg arg-type
  Lists(cache=3)  # error: reportCallIssue call-arg
  Encoder()  # error: reportAbstractUsage abstract
  Residual(3)  # error: reportArgumentType type-var
  Block(make=nn.Dense(3))  # error: reportArgumentType arg-type

  class Late(Base):
    more: int  # error: reportGeneralTypeIssues misc
