"""What containers cost that go in and out of jitted functions.

A jitted step flattens its arguments and builds its results anew at each call.
Timed are the dispatch of a step over an `optim.Optimizer`, beside Flax's
`TrainState` and plain optax on dicts, and flattening and unflattening what such
a step takes, and a FrozenDict beside a dict.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from benchmarks.forms import LIBRARIES, ORACLE, PURE
from benchmarks.timing import Timer, timer

LEAVES = 1000


class Containers(NamedTuple):
  """The containers of one library.

  Attributes:
    variables: the parameters of a model.
    state: what a step of training keeps.
    grads: gradients of the parameters in it.
    step: takes both, and returns the next state.
  """

  variables: Any
  state: Any
  grads: Any
  step: Callable[[Any, Any], Any]


def parameters(leaves: int) -> dict[str, Any]:
  """Returns parameters of many small layers."""
  return {
    f'layer_{i}': {'bias': jnp.zeros(()), 'kernel': jnp.zeros(())}
    for i in range(leaves // 2)
  }


def _of_haiku_state(params: Any) -> Containers:
  optim = importlib.import_module('haiku_state.optim')
  frozen = importlib.import_module('haiku_state.core').freeze(params)
  return Containers(
    frozen,
    optim.GradientDescent(0.1).create(frozen),
    frozen,
    lambda optimizer, grads: optimizer.apply_gradient(grads),
  )


def _of_flax(params: Any) -> Containers:
  freeze = importlib.import_module('flax.core').freeze
  train_state = importlib.import_module('flax.training.train_state')
  state = train_state.TrainState.create(
    apply_fn=None, params=params, tx=optax.sgd(0.1)
  )
  return Containers(
    freeze(params),
    state,
    params,
    lambda state, grads: state.apply_gradients(grads=grads),
  )


def _of_optax(params: Any) -> Containers:
  transformation = optax.sgd(0.1)

  def step(state, grads):
    params, opt_state = state
    updates, opt_state = transformation.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  state = (params, transformation.init(params))
  return Containers(params, state, params, step)


MAKERS = {'haiku_state': _of_haiku_state, ORACLE: _of_flax, PURE: _of_optax}


def timers(
  libraries: Sequence[str] = LIBRARIES, leaves: int = LEAVES
) -> dict[str, dict[str, Timer]]:
  """Returns timers by what they time, and by library."""
  params = parameters(leaves)
  found: dict[str, dict[str, Timer]] = {}
  for library, make in MAKERS.items():
    if library not in libraries:
      continue
    try:
      containers = make(params)
    except ImportError:
      continue
    for task, fn in _tasks(containers).items():
      found.setdefault(task, {})[library] = fn
  return found


def _tasks(containers: Containers) -> dict[str, Timer]:
  variables, state, grads, step = containers
  jitted = jax.jit(step)
  python = functools.partial(timer, repeats=5)
  return {
    'flatten variables': python(lambda: jax.tree.flatten(variables)),
    'unflatten variables': python(_unflatten(variables)),
    'flatten optimizer': python(lambda: jax.tree.flatten(state)),
    'unflatten optimizer': python(_unflatten(state)),
    # The time of this thread alone: what others compute is the same for all.
    'dispatch optimizer step': python(
      lambda: jax.block_until_ready(jitted(state, grads))
    ),
  }


def _unflatten(tree: Any) -> Callable[[], Any]:
  leaves, structure = jax.tree.flatten(tree)
  return lambda: jax.tree.unflatten(structure, leaves)
