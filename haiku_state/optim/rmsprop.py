"""RMSProp."""

from typing import Any

import optax

from haiku_state import _versions, struct
from haiku_state.optim._optax import OptaxOptimizerDef

__all__ = ['RMSProp']


@struct.dataclass
class _RMSPropHyperParams:
  learning_rate: Any
  beta2: Any
  eps: Any
  centered: bool


@struct.dataclass
class _RMSPropParamState:
  v: Any
  mg: Any = None


class RMSProp(OptaxOptimizerDef):
  """RMSProp
  (https://www.cs.toronto.edu/~tijmen/csc321/slides/lecture_slides_lec6.pdf).

  The gradient is divided by the root of a moving average of squared gradients;
  if `centered`, by an estimate of the gradient's standard deviation. There is
  no momentum and no correction of the averages for starting at 0.

  Agreement: to rounding, with Flax 0.5.3; exact with
  `optax.rmsprop(learning_rate, decay=beta2, eps=eps, centered=centered,
  eps_in_sqrt=False)`. (The default of `eps_in_sqrt` is True.)

  State of a parameter: `v`, and `mg`, which is None unless `centered`.

  >>> import jax.numpy as jnp
  >>> optimizer = RMSProp(learning_rate=0.1, beta2=0.75).create(jnp.ones(2))
  >>> optimizer.apply_gradient(jnp.array([4.0, -2.0])).target
  Array([0.8, 1.2], dtype=float32)
  """

  param_state = _RMSPropParamState
  optax_names = {'v': 'nu', 'mg': 'mu'}

  def __init__(
    self,
    learning_rate: Any = None,
    beta2: Any = 0.9,
    eps: Any = 1e-8,
    centered: bool = False,
  ):
    """Takes the hyper-parameters.

    Args:
      learning_rate: the step size. None if it is given in each step.
      beta2: the decay of the averages.
      eps: what is added to the root.
      centered: whether the square of the average gradient is subtracted from
        the average of squares. It decides what the state has, so it cannot be
        turned on in `apply_gradient`.
    """
    super().__init__(_RMSPropHyperParams(learning_rate, beta2, eps, centered))

  def initial_values(self, param):
    values = super().initial_values(param)
    if not self.hyper_params.centered:
      del values['mg']
    return values

  def transformation(self, hyper_params):
    hps = hyper_params
    return optax.chain(
      _versions.scale_by_rms(hps.centered, hps.beta2, hps.eps),
      optax.scale_by_learning_rate(hps.learning_rate),
    )
