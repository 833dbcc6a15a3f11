"""LAMB."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from haiku_state import struct
from haiku_state.optim._optax import OptaxOptimizerDef, decayed_weights

__all__ = ['LAMB']


@struct.dataclass
class _LAMBHyperParams:
  learning_rate: Any
  beta1: Any
  beta2: Any
  weight_decay: Any
  eps: Any


@struct.dataclass
class _LAMBParamState:
  grad_ema: Any
  grad_sq_ema: Any


class LAMB(OptaxOptimizerDef):
  """LAMB (https://arxiv.org/abs/1904.00962).

  The step of Adam, plus decayed weights, scaled so that its norm is that of the
  parameter. A parameter that is all zeros has norm 0 and therefore does not
  move: give such parameters (most biases) to another optimizer by
  `MultiOptimizer`, or do not start them at 0.

  Agreement: to rounding, with Flax 0.5.3 in float32 and float64; with
  `optax.lamb` only where neither parameter nor step is all zeros (there, a
  parameter of zeros moves by the plain step). In bfloat16 and float16 it differs
  from Flax on purpose, as `Adam` does; and where the step is all zeros, as for
  a gradient that always was, it leaves the parameter, of which Flax made NaN.

  State of a parameter: `grad_ema`, `grad_sq_ema`.

  >>> import jax.numpy as jnp
  >>> optimizer = LAMB(learning_rate=0.1).create(jnp.array([3.0, 4.0]))
  >>> optimizer.apply_gradient(jnp.array([1.0, 0.0])).target
  Array([2.5, 4. ], dtype=float32)
  """

  param_state = _LAMBParamState
  optax_names = {'grad_ema': 'mu', 'grad_sq_ema': 'nu'}

  def __init__(
    self,
    learning_rate: Any = None,
    beta1: Any = 0.9,
    beta2: Any = 0.999,
    weight_decay: Any = 0,
    eps: Any = 1e-6,
  ):
    """Takes the hyper-parameters.

    Args:
      learning_rate: the length of the step as a fraction of the parameter's
        norm. None if it is given in each step.
      beta1: the decay of the average of gradients.
      beta2: the decay of the average of squared gradients.
      weight_decay: the multiple of the parameter that is added to Adam's step.
      eps: what is added to the root of the average of squares.
    """
    super().__init__(
      _LAMBHyperParams(learning_rate, beta1, beta2, weight_decay, eps)
    )

  def transformation(self, hyper_params):
    return optax.chain(
      optax.scale_by_adam(
        hyper_params.beta1, hyper_params.beta2, hyper_params.eps
      ),
      decayed_weights(hyper_params.weight_decay),
      _scale_to_norm_of_params(),
      optax.scale_by_learning_rate(hyper_params.learning_rate),
    )


def _scale_to_norm_of_params() -> optax.GradientTransformation:
  """Gives each update the norm of its parameter, also if that is 0."""

  def scale(update, param):
    param_norm = jnp.linalg.norm(param)
    update_norm = jnp.linalg.norm(update)
    ratio = jnp.where(update_norm > 0, param_norm / update_norm, 1)
    return ratio * update

  return optax.stateless(
    lambda updates, params: jax.tree.map(scale, updates, params)
  )
