"""AdaBelief."""

from typing import Any

import optax

from haiku_state import _versions, struct
from haiku_state.optim._optax import OptaxOptimizerDef, decayed_weights

__all__ = ['AdaBelief']


@struct.dataclass
class _AdaBeliefHyperParams:
  learning_rate: Any
  beta1: Any
  beta2: Any
  eps: Any
  weight_decay: Any


@struct.dataclass
class _AdaBeliefParamState:
  grad_ema: Any
  grad_sq_ema: Any


class AdaBelief(OptaxOptimizerDef):
  """AdaBelief (https://arxiv.org/abs/2010.07468).

  As Adam, but the step is divided by how far gradients are from their average.
  `eps` is added twice: to the average that is stored, and to its root. Weight
  decay is decoupled, as in `Adam`.

  Agreement: to rounding, with Flax 0.5.3 in float32 and float64; exact with
  `optax.adabelief(learning_rate, b1, b2, eps=eps, eps_root=eps)` if there is
  no weight decay. (`eps_root` alone has another default.) In bfloat16 and
  float16 it differs from Flax on purpose, as `Adam` does.

  State of a parameter: `grad_ema`, `grad_sq_ema`.

  >>> import jax.numpy as jnp
  >>> optimizer = AdaBelief(learning_rate=0.1).create({'w': jnp.ones(2)})
  >>> optimizer = optimizer.apply_gradient({'w': jnp.array([5.0, -0.2])})
  >>> [round(w, 3) for w in optimizer.target['w'].tolist()]
  [0.889, 1.111]
  """

  param_state = _AdaBeliefParamState
  optax_names = {'grad_ema': 'mu', 'grad_sq_ema': 'nu'}

  def __init__(
    self,
    learning_rate: Any = None,
    beta1: Any = 0.9,
    beta2: Any = 0.999,
    eps: Any = 1e-16,
    weight_decay: Any = 0.0,
  ):
    """Takes the hyper-parameters.

    Args:
      learning_rate: the step size. None if it is given in each step.
      beta1: the decay of the average of gradients.
      beta2: the decay of the average of squared distances from it.
      eps: what is added to the average of squares, and to its root.
      weight_decay: the multiple of the parameter that is added to the step,
        before it is multiplied by the learning rate.
    """
    super().__init__(
      _AdaBeliefHyperParams(learning_rate, beta1, beta2, eps, weight_decay)
    )

  def transformation(self, hyper_params):
    hps = hyper_params
    return optax.chain(
      _versions.scale_by_belief(hps.beta1, hps.beta2, hps.eps, hps.eps),
      decayed_weights(hps.weight_decay),
      optax.scale_by_learning_rate(hps.learning_rate),
    )
