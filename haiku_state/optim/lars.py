"""LARS."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from haiku_state import struct
from haiku_state.optim._optax import OptaxOptimizerDef

__all__ = ['LARS']


@struct.dataclass
class _LARSHyperParams:
  learning_rate: Any
  beta: Any
  weight_decay: Any
  trust_coefficient: Any
  eps: Any
  nesterov: bool


@struct.dataclass
class _LARSParamState:
  momentum: Any


class LARS(OptaxOptimizerDef):
  """LARS (https://arxiv.org/abs/1708.03888).

  The gradient plus decayed weights, scaled by the ratio of the norms of
  parameter and gradient, with momentum. The learning rate is inside of the
  momentum.

  Agreement: to rounding, with Flax 0.5.3; to rounding with `optax.lars` if
  there is no weight decay, and none with it: optax divides by the norm of
  gradient plus decayed weights, Flax by the sum of their norms.

  State of a parameter: `momentum`.

  >>> import jax.numpy as jnp
  >>> optimizer = LARS(learning_rate=1.0, trust_coefficient=0.1)
  >>> optimizer = optimizer.create(jnp.array([3.0, 4.0]))
  >>> optimizer.apply_gradient(jnp.array([2.0, 0.0])).target
  Array([2.5, 4. ], dtype=float32)
  """

  param_state = _LARSParamState
  optax_names = {'momentum': 'trace'}

  def __init__(
    self,
    learning_rate: Any = None,
    beta: Any = 0.9,
    weight_decay: Any = 0,
    trust_coefficient: Any = 0.001,
    eps: Any = 0,
    nesterov: bool = False,
  ):
    """Takes the hyper-parameters.

    Args:
      learning_rate: the step size. None if it is given in each step.
      beta: the decay of the sum of scaled gradients.
      weight_decay: the multiple of the parameter that is added to the gradient.
      trust_coefficient: the length of the step as a fraction of the parameter's
        norm, before it is multiplied by the learning rate.
      eps: what is added to the norm of the gradient.
      nesterov: whether to look ahead by one gradient (Nesterov's momentum).
    """
    super().__init__(
      _LARSHyperParams(
        learning_rate, beta, weight_decay, trust_coefficient, eps, nesterov
      )
    )

  def transformation(self, hyper_params):
    return optax.chain(
      _decay_and_scale_by_norms(
        hyper_params.weight_decay,
        hyper_params.trust_coefficient,
        hyper_params.eps,
      ),
      # The sign comes last: the momentum that is kept is a sum of gradients.
      optax.scale_by_learning_rate(hyper_params.learning_rate, flip_sign=False),
      optax.trace(hyper_params.beta, hyper_params.nesterov),
      optax.scale(-1),
    )


def _decay_and_scale_by_norms(
  weight_decay: Any, trust_coefficient: Any, eps: Any
) -> optax.GradientTransformation:
  """Adds decayed weights and scales; the ratio is of the bare gradient."""

  def scale(grad, param):
    param_norm = jnp.linalg.norm(param)
    grad_norm = jnp.linalg.norm(grad)
    ratio = (trust_coefficient * param_norm) / (
      grad_norm + weight_decay * param_norm + eps
    )
    known = (param_norm > 0) & (grad_norm > 0)
    return jnp.where(known, ratio, 1) * (grad + weight_decay * param)

  return optax.stateless(
    lambda updates, params: jax.tree.map(scale, updates, params)
  )
