"""A model with fields, compact and setup, and the calls from outside."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

import haiku_state.linen as nn


# The parameters of `jnp.zeros` are not all known.
def zeros(shape: tuple[int, ...]) -> jax.Array:
  return jnp.zeros(shape)  # pyright: ignore[reportUnknownMemberType]


def a_tree(key: jax.Array) -> dict[str, jax.Array]:
  return {'a': jax.random.normal(key, (2,))}


class MLP(nn.Module):
  hidden: Sequence[int]
  out: int = 1
  kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    for size in self.hidden:
      x = nn.relu(nn.Dense(size, kernel_init=self.kernel_init)(x))
      x = nn.Dropout(0.5, deterministic=not train)(x)
    scale = self.param('scale', nn.initializers.ones, (1,))
    reveal_type(scale)  # shows: Array
    reveal_type(self.out)  # shows: int
    return scale * nn.Dense(self.out, name='head')(x)


class AutoEncoder(nn.Module):
  features: int

  def setup(self) -> None:
    self.encoder = MLP([4], out=self.features)
    self.decoder = nn.Dense(3)
    self.layers = [nn.Dense(3), nn.Dense(3)]

  def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    reveal_type(self.encoder)  # shows: MLP
    z = self.encode(x)
    y: jax.Array = self.decoder(z)
    for layer in self.layers:
      reveal_type(layer)  # shows: Dense
      y = layer(y)
    return z, y

  def encode(self, x: jax.Array) -> jax.Array:
    return self.encoder(x)


class Counter(nn.Module):
  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    count = self.variable('counts', 'n', lambda: zeros(()))
    mean = self.variable('stats', 'mean', zeros, x.shape)
    reveal_type(count)  # shows: Variable[Array]
    reveal_type(mean.value)  # shows: Array
    if not self.is_initializing():
      count.value += 1
    tree = self.param('tree', a_tree)
    reveal_type(tree)  # shows: dict[str, Array]
    boxed = nn.with_partitioning(nn.initializers.zeros, (None,))
    reveal_type(self.param('boxed', boxed, (2,)))  # shows: Array; mypy Any
    if self.is_initializing():
      reveal_type(self.make_rng('params'))  # shows: Array
    self.sow('intermediates', 'x', x)
    if TYPE_CHECKING:
      known = self.variable('stats', 'given')
      reveal_type(known.value)  # shows: Any
      other = self.variable('stats', 'other', zeros, (1,))
      other.value = 'zero'  # error: reportAttributeAccessIssue assignment
      self.param('w')  # error: reportCallIssue call-overload
    return x + mean.value


x = jax.random.normal(jax.random.key(0), (2, 3))
keys = {'params': jax.random.key(0), 'dropout': jax.random.key(1)}
model = MLP([4], name='net')
reveal_type(model)  # shows: MLP
reveal_type(model.name)  # shows: str | None
reveal_type(nn.Dense(3))  # shows: Dense
reveal_type(nn.Dense(3, name='d', parent=None))  # shows: Dense
reveal_type(nn.Sequential([nn.Dense(3), nn.relu]))  # shows: Sequential

variables = model.init(keys, x)
reveal_type(variables)  # shows: FrozenDict[str, Any]
rest, params = variables.pop('params')
reveal_type(rest)  # shows: FrozenDict[str, Any]
y, same = model.init_with_output(keys, x)
reveal_type(y)  # shows: Array
reveal_type(same)  # shows: FrozenDict[str, Any]
reveal_type(model.apply(variables, x))  # shows: Array
reveal_type(model.apply(variables, x, rngs=keys))  # shows: Array
reveal_type(model.apply(variables, x, mutable=False))  # shows: Array

counter = Counter()
variables = counter.init(keys, x)
y, updates = counter.apply(variables, x, mutable=['counts'])
reveal_type(y)  # shows: Array
reveal_type(updates)  # shows: FrozenDict[str, Any]
pair = counter.apply(variables, x, mutable='counts')
reveal_type(pair)  # shows: tuple[Array, FrozenDict[str, Any]]
pair = counter.apply(variables, x, mutable=True)
reveal_type(pair)  # shows: tuple[Array, FrozenDict[str, Any]]
pair = counter.apply(variables, x, mutable=nn.DenyList('stats'))
reveal_type(pair)  # shows: tuple[Array, FrozenDict[str, Any]]


def either(train: bool) -> Any:
  result = counter.apply(variables, x, mutable=train)
  reveal_type(result)  # shows: Any
  return result


either(True)
auto = AutoEncoder(2)
variables = auto.init(jax.random.key(0), x)
reveal_type(auto.apply(variables, x))  # shows: tuple[Array, Array]
z = auto.apply(variables, x, method=AutoEncoder.encode)
reveal_type(z)  # shows: Array
z = auto.apply(variables, x, method=auto.encode)
reveal_type(z)  # shows: Array
z = auto.apply(variables, x, method='encode')
reveal_type(auto.apply(variables, x, method='encode'))  # shows: Any
found = auto.apply(variables, x, method='encode', mutable=['intermediates'])
reveal_type(found)  # shows: tuple[Any, FrozenDict[str, Any]]

bound = auto.bind(variables)
reveal_type(bound)  # shows: AutoEncoder
reveal_type(bound.encoder)  # shows: MLP
reveal_type(bound.encode(x))  # shows: Array
reveal_type(auto.copy(features=3))  # shows: AutoEncoder
reveal_type(bound.unbind())  # shows: tuple[AutoEncoder, FrozenDict[str, Any]]

if TYPE_CHECKING:
  MLP()  # error: reportCallIssue call-arg
  MLP(hiden=[4])  # error: reportCallIssue reportCallIssue call-arg
  MLP(4)  # error: reportArgumentType arg-type
  MLP([4], 1, nn.initializers.ones, None)  # error: reportCallIssue call-arg
  MLP([4], name=3)  # error: reportArgumentType arg-type
  MLP([4]).hiden  # error: reportAttributeAccessIssue attr-defined
  nn.Dense()  # error: reportCallIssue call-arg
  nn.Dense('3')  # error: reportArgumentType arg-type
  nn.Dense(3, use_bais=False)  # error: reportCallIssue call-arg
  nn.BatchNorm(momentun=0.9)  # error: reportCallIssue call-arg
  model.aply({}, x)  # error: reportAttributeAccessIssue attr-defined
  model.apply(3, x)  # error: reportCallIssue reportArgumentType call-overload
  counter.apply(variables, x) + 'a'  # error: reportOperatorIssue operator
