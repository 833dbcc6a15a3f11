"""Gradient descent with momentum."""

from typing import Any

import optax

from haiku_state import struct
from haiku_state.optim._optax import OptaxOptimizerDef, decayed_weights

__all__ = ['Momentum']


@struct.dataclass
class _MomentumHyperParams:
  learning_rate: Any
  beta: Any
  weight_decay: Any
  nesterov: bool


@struct.dataclass
class _MomentumParamState:
  momentum: Any


class Momentum(OptaxOptimizerDef):
  """Gradient descent along a decaying sum of gradients.

  Weight decay is added to the gradient (L2 regularization).

  Agreement: exact, with Flax 0.5.3 and with `optax.sgd(learning_rate, beta,
  nesterov)`, behind `optax.add_decayed_weights(weight_decay)`.

  State of a parameter: `momentum`.

  >>> import jax.numpy as jnp
  >>> optimizer = Momentum(learning_rate=0.5, beta=0.5).create(jnp.ones(1))
  >>> for _ in range(2):
  ...   optimizer = optimizer.apply_gradient(jnp.ones(1))
  >>> optimizer.target, optimizer.state.param_states.momentum
  (Array([-0.25], dtype=float32), Array([1.5], dtype=float32))
  """

  param_state = _MomentumParamState
  optax_names = {'momentum': 'trace'}
  keeps_numpy = True

  def __init__(
    self,
    learning_rate: Any = None,
    beta: Any = 0.9,
    weight_decay: Any = 0,
    nesterov: bool = False,
  ):
    """Takes the hyper-parameters.

    Args:
      learning_rate: the step size. None if it is given in each step.
      beta: the decay of the sum of gradients.
      weight_decay: the multiple of the parameter that is added to the gradient.
      nesterov: whether to look ahead by one gradient (Nesterov's momentum).
    """
    super().__init__(
      _MomentumHyperParams(learning_rate, beta, weight_decay, nesterov)
    )

  def transformation(self, hyper_params):
    return optax.chain(
      decayed_weights(hyper_params.weight_decay),
      optax.sgd(
        hyper_params.learning_rate,
        momentum=hyper_params.beta,
        nesterov=hyper_params.nesterov,
      ),
    )
