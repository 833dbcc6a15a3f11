"""Adadelta."""

from typing import Any

import optax

from haiku_state import struct
from haiku_state.optim._optax import OptaxOptimizerDef, decayed_weights

__all__ = ['Adadelta']


@struct.dataclass
class _AdadeltaHyperParams:
  learning_rate: Any
  rho: Any
  eps: Any
  weight_decay: Any


@struct.dataclass
class _AdadeltaParamState:
  sq_avg: Any
  acc_delta: Any


class Adadelta(OptaxOptimizerDef):
  """Adadelta (https://arxiv.org/abs/1212.5701).

  The gradient is scaled by the ratio of two root mean squares: of past steps,
  and of past gradients. Weight decay is decoupled, as in `Adam`.

  Agreement: exact, with Flax 0.5.3 and with `optax.adadelta(learning_rate,
  rho, eps)`, if there is no weight decay; with it, to rounding with Flax and
  none with `optax.adadelta`, which decays before it scales.

  State of a parameter: `sq_avg`, `acc_delta`.

  >>> import jax.numpy as jnp
  >>> optimizer = Adadelta(learning_rate=1.0, eps=0.1).create(jnp.ones(1))
  >>> round(float(optimizer.apply_gradient(jnp.ones(1)).target[0]), 3)
  0.293
  """

  param_state = _AdadeltaParamState
  optax_names = {'sq_avg': 'e_g', 'acc_delta': 'e_x'}

  def __init__(
    self,
    learning_rate: Any = None,
    rho: Any = 0.9,
    eps: Any = 1e-6,
    weight_decay: Any = 0.0,
  ):
    """Takes the hyper-parameters.

    Args:
      learning_rate: what the step is multiplied by. None if it is given in each
        step.
      rho: the decay of both averages of squares.
      eps: what is added to both averages before the root.
      weight_decay: the multiple of the parameter that is added to the step,
        before it is multiplied by the learning rate.
    """
    super().__init__(
      _AdadeltaHyperParams(learning_rate, rho, eps, weight_decay)
    )

  def transformation(self, hyper_params):
    return optax.chain(
      optax.scale_by_adadelta(hyper_params.rho, hyper_params.eps),
      decayed_weights(hyper_params.weight_decay),
      optax.scale_by_learning_rate(hyper_params.learning_rate),
    )
