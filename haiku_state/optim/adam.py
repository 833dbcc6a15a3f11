"""Adam, and AdamW."""

from typing import Any

import optax

from haiku_state import struct
from haiku_state.optim._optax import OptaxOptimizerDef, decayed_weights

__all__ = ['Adam']


@struct.dataclass
class _AdamHyperParams:
  learning_rate: Any
  beta1: Any
  beta2: Any
  eps: Any
  weight_decay: Any


@struct.dataclass
class _AdamParamState:
  grad_ema: Any
  grad_sq_ema: Any


class Adam(OptaxOptimizerDef):
  """Adam (https://arxiv.org/abs/1412.6980); AdamW if it has weight decay.

  The step is divided by the root of a moving average of squared gradients, both
  averages corrected for starting at 0. Weight decay is decoupled: the parameter
  shrinks by `learning_rate * weight_decay` of itself.

  Agreement: to rounding, with Flax 0.5.3 in float32 and float64; exact with
  `optax.adam(learning_rate, b1, b2, eps)`, and with `optax.adamw` of the
  same weight decay (whose default is 1e-4; here it is 0). In bfloat16 and
  float16 it differs from Flax on purpose: the correction is computed in
  float32. Flax computed `1 - beta2**step` in the parameter's dtype, which is
  0 in bfloat16, and so never moved such a parameter.

  State of a parameter: `grad_ema`, `grad_sq_ema`.

  >>> import jax.numpy as jnp
  >>> optimizer = Adam(learning_rate=0.1).create({'w': jnp.ones(2)})
  >>> optimizer = optimizer.apply_gradient({'w': jnp.array([5.0, -0.2])})
  >>> [round(w, 3) for w in optimizer.target['w'].tolist()]
  [0.9, 1.1]
  """

  param_state = _AdamParamState
  optax_names = {'grad_ema': 'mu', 'grad_sq_ema': 'nu'}

  def __init__(
    self,
    learning_rate: Any = None,
    beta1: Any = 0.9,
    beta2: Any = 0.999,
    eps: Any = 1e-8,
    weight_decay: Any = 0.0,
  ):
    """Takes the hyper-parameters.

    Args:
      learning_rate: the step size. None if it is given in each step.
      beta1: the decay of the average of gradients.
      beta2: the decay of the average of squared gradients.
      eps: what is added to the root of the average of squares.
      weight_decay: the multiple of the parameter that is added to the step,
        before it is multiplied by the learning rate.
    """
    super().__init__(
      _AdamHyperParams(learning_rate, beta1, beta2, eps, weight_decay)
    )

  def transformation(self, hyper_params):
    return optax.chain(
      optax.scale_by_adam(
        hyper_params.beta1, hyper_params.beta2, hyper_params.eps
      ),
      decayed_weights(hyper_params.weight_decay),
      optax.scale_by_learning_rate(hyper_params.learning_rate),
    )
