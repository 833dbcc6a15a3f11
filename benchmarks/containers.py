"""Prints what containers cost that go in and out of jitted functions.

    python -m benchmarks.containers [--leaves N] [--rounds N]

A jitted step flattens its arguments and builds its results anew at each call.
Timed are the dispatch of a step over an `optim.Optimizer`, beside Flax's
`TrainState` and plain optax on dicts, and flattening and unflattening a
FrozenDict beside a dict. The forms take turns; medians are printed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks.run import DEPTHS, measure
from haiku_state import optim
from haiku_state.core import freeze


def tree(leaves: int) -> dict[str, Any]:
  """Returns parameters of many small layers."""
  return {
    f'layer_{i}': {'bias': jnp.zeros(()), 'kernel': jnp.zeros(())}
    for i in range(leaves // 2)
  }


def steps(params: dict[str, Any]) -> dict[str, Callable[[], Any]]:
  """Returns compiled steps of gradient descent that do nothing but dispatch."""
  grads = jax.tree.map(jnp.zeros_like, params)
  optimizer = optim.GradientDescent(0.1).create(freeze(params))
  apply_ours = jax.jit(lambda o, g: o.apply_gradient(g))
  found = {'optim.Optimizer': lambda: apply_ours(optimizer, grads)}

  tx = optax.sgd(0.1)
  opt_state = tx.init(params)

  @jax.jit
  def apply_optax(params, opt_state, grads):
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  found['optax on dicts'] = lambda: apply_optax(params, opt_state, grads)
  try:
    from flax.training.train_state import TrainState
  except ImportError:
    return found
  state = TrainState.create(apply_fn=None, params=params, tx=tx)
  apply_flax = jax.jit(lambda s, g: s.apply_gradients(grads=g))
  found["Flax's TrainState"] = lambda: apply_flax(state, grads)
  return found


def flattening(params: dict[str, Any]) -> dict[str, Callable[[], Any]]:
  """Returns flattening and unflattening of either kind of dict."""
  frozen = freeze(params)
  leaves, frozen_def = jax.tree.flatten(frozen)
  dict_def = jax.tree.structure(params)
  return {
    'flatten FrozenDict': lambda: jax.tree.flatten(frozen),
    'flatten dict': lambda: jax.tree.flatten(params),
    'unflatten FrozenDict': lambda: jax.tree.unflatten(frozen_def, leaves),
    'unflatten dict': lambda: jax.tree.unflatten(dict_def, leaves),
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--leaves', type=int, default=1000)
  parser.add_argument('--rounds', type=int, default=3)
  options = parser.parse_args()
  params = tree(options.leaves)
  for timed in (steps(params), flattening(params)):
    for name, seconds in measure(timed, options.rounds, DEPTHS).items():
      print(f'{name:22} {seconds * 1e6:10.1f} us')


if __name__ == '__main__':
  main()
