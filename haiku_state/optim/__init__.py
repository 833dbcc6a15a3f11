"""The optimizers of `flax.optim`, which left Flax with version 0.6.0.

A program uses one by making its definition, then an `Optimizer` of it and the
parameters, and applying gradients. Each optimizer is hyper-parameters plus one
expression of optax; `docs/flax_optim.md` says how exactly they agree.

>>> import jax
>>> import jax.numpy as jnp
>>> from haiku_state import optim
>>> optimizer = optim.Momentum(learning_rate=0.1).create({'w': jnp.ones(3)})
>>> loss_fn = lambda params: jnp.sum(params['w'] ** 2)
>>> for _ in range(100):
...   grads = jax.grad(loss_fn)(optimizer.target)
...   optimizer = optimizer.apply_gradient(grads)
>>> int(optimizer.state.step), bool(loss_fn(optimizer.target) < 1e-2)
(100, True)

See https://github.com/google/flax/tree/v0.5.3/flax/optim.
"""

from typing import TYPE_CHECKING

from haiku_state import _lazy

if TYPE_CHECKING:
  from haiku_state.optim import adabelief as adabelief
  from haiku_state.optim import adadelta as adadelta
  from haiku_state.optim import adafactor as adafactor
  from haiku_state.optim import adagrad as adagrad
  from haiku_state.optim import adam as adam
  from haiku_state.optim import base as base
  from haiku_state.optim import dynamic_scale as dynamic_scale
  from haiku_state.optim import lamb as lamb
  from haiku_state.optim import lars as lars
  from haiku_state.optim import momentum as momentum
  from haiku_state.optim import rmsprop as rmsprop
  from haiku_state.optim import sgd as sgd
  from haiku_state.optim import weight_norm as weight_norm
  from haiku_state.optim.adabelief import AdaBelief as AdaBelief
  from haiku_state.optim.adadelta import Adadelta as Adadelta
  from haiku_state.optim.adafactor import Adafactor as Adafactor
  from haiku_state.optim.adagrad import Adagrad as Adagrad
  from haiku_state.optim.adam import Adam as Adam
  from haiku_state.optim.base import ModelParamTraversal as ModelParamTraversal
  from haiku_state.optim.base import MultiOptimizer as MultiOptimizer
  from haiku_state.optim.base import Optimizer as Optimizer
  from haiku_state.optim.base import OptimizerDef as OptimizerDef
  from haiku_state.optim.base import OptimizerState as OptimizerState
  from haiku_state.optim.dynamic_scale import DynamicScale as DynamicScale
  from haiku_state.optim.lamb import LAMB as LAMB
  from haiku_state.optim.lars import LARS as LARS
  from haiku_state.optim.momentum import Momentum as Momentum
  from haiku_state.optim.rmsprop import RMSProp as RMSProp
  from haiku_state.optim.sgd import GradientDescent as GradientDescent
  from haiku_state.optim.weight_norm import WeightNorm as WeightNorm
else:
  __getattr__, __dir__, __all__ = _lazy.names_of(
    __name__,
    {
      'adabelief': 'AdaBelief',
      'adadelta': 'Adadelta',
      'adafactor': 'Adafactor',
      'adagrad': 'Adagrad',
      'adam': 'Adam',
      'base': """
        ModelParamTraversal MultiOptimizer Optimizer OptimizerDef
        OptimizerState
      """,
      'dynamic_scale': 'DynamicScale',
      'lamb': 'LAMB',
      'lars': 'LARS',
      'momentum': 'Momentum',
      'rmsprop': 'RMSProp',
      'sgd': 'GradientDescent',
      'weight_norm': 'WeightNorm',
    },
  )
