"""Loops of training: `optim`, optax, and TrainState."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax  # type: ignore[import-untyped]

import haiku_state
import haiku_state.linen as nn
from haiku_state import optim, struct
from haiku_state.training import train_state

Params = dict[str, jax.Array]

x = jax.random.normal(jax.random.key(0), (2, 3))
params: Params = {'w': x[0], 'b': x[0, 0]}


# What `jax.grad` takes and returns is not known.
def grad(fn: Callable[[Any], Any]) -> Callable[[Any], Any]:
  return jax.grad(fn)  # pyright: ignore


def loss_fn(params: Params) -> jax.Array:
  return jnp.mean((x @ params['w'] + params['b']) ** 2)


def loss_and_size(params: Params) -> tuple[jax.Array, int]:
  return loss_fn(params), 3


# optim

definition = optim.Adam(learning_rate=0.1, weight_decay=0.01)
reveal_type(definition)  # shows: Adam
optimizer = definition.create(params)
reveal_type(optimizer)  # shows: Optimizer[dict[str, Array]]
reveal_type(optimizer.target['w'])  # shows: Array
grads = grad(loss_fn)(optimizer.target)
optimizer = optimizer.apply_gradient(grads, learning_rate=0.2)
reveal_type(optimizer)  # shows: Optimizer[dict[str, Array]]
loss, gradient = optimizer.compute_gradient(loss_fn)
reveal_type(loss)  # shows: Array
reveal_type(gradient)  # shows: dict[str, Array]
loss, size, gradient = optimizer.compute_gradient(loss_and_size)
reveal_type(size)  # shows: int
optimizer, loss = optimizer.optimize(loss_fn)
optimizer, loss, size = optimizer.optimize(loss_and_size)
optimizer = optimizer.replace(target=params)
reveal_type(optimizer)  # shows: Optimizer[dict[str, Array]]
reveal_type(definition.to_optax())  # shows: GradientTransformation; mypy Any
reveal_type(haiku_state.optim.Momentum(0.1))  # shows: Momentum


def step(optimizer: optim.Optimizer[Params]) -> optim.Optimizer[Params]:
  return optimizer.apply_gradient(grad(loss_fn)(optimizer.target))


step(optimizer)

# optax

model = nn.Dense(1)
variables = model.init(jax.random.key(0), x)
tx = optax.sgd(0.1)
opt_state = tx.init(variables['params'])


def model_loss(params: Any) -> jax.Array:
  y: jax.Array = model.apply({'params': params}, x)
  return jnp.mean(y**2)


updates = grad(model_loss)(variables['params'])
updates, opt_state = tx.update(updates, opt_state)  # pyright: ignore
new_params = optax.apply_updates(variables['params'], updates)  # pyright: ignore

# TrainState


class State(train_state.TrainState):
  batch_stats: Any = None
  dropout_key: jax.Array = struct.field(
    default_factory=lambda: jax.random.key(0)
  )


state = State.create(apply_fn=model.apply, params=variables['params'], tx=tx)
reveal_type(state)  # shows: State
reveal_type(state.step)  # shows: int | Array
reveal_type(state.tx)  # shows: GradientTransformation; mypy Any
fn = state.apply_fn
reveal_type(fn)  # shows: (...) -> Any; mypy def (*Any, **Any) -> Any
reveal_type(state.dropout_key)  # shows: Array
state = state.apply_gradients(grads=updates, batch_stats={})
reveal_type(state)  # shows: State
reveal_type(state.replace(step=3))  # shows: State


@struct.dataclass
class Metrics:
  loss: jax.Array
  count: int = struct.field(pytree_node=False, default=0)


reveal_type(Metrics(x[0, 0]).count)  # shows: int

if TYPE_CHECKING:
  optim.Adam(learning_rat=0.1)  # error: reportCallIssue call-arg
  optimizer.aply(grads)  # error: reportAttributeAccessIssue attr-defined
  optimizer.target = params  # error: reportAttributeAccessIssue misc
  state.step = 3  # error: reportAttributeAccessIssue misc
  state.optimizer  # error: reportAttributeAccessIssue attr-defined
  State.create(apply_fn=fn, params={})  # error: reportCallIssue call-arg
  Metrics()  # error: reportCallIssue call-arg
  step(state)  # error: reportArgumentType arg-type
