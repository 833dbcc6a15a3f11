"""Gradient descent."""

from typing import Any

import optax

from haiku_state import struct
from haiku_state.optim._optax import OptaxOptimizerDef

__all__ = ['GradientDescent']


@struct.dataclass
class _GradientDescentHyperParams:
  learning_rate: Any


class GradientDescent(OptaxOptimizerDef):
  """Gradient descent: `param - learning_rate * grad`.

  Agreement: exact, with Flax 0.5.3 and with `optax.sgd(learning_rate)`.

  State of a parameter: `()`.

  >>> import jax.numpy as jnp
  >>> optimizer = GradientDescent(learning_rate=0.5).create({'w': jnp.ones(2)})
  >>> optimizer.apply_gradient({'w': jnp.array([1.0, 2.0])}).target
  {'w': Array([0.5, 0. ], dtype=float32)}
  """

  keeps_numpy = True

  def __init__(self, learning_rate: Any = None):
    """Takes the hyper-parameter.

    Args:
      learning_rate: the step size. None if it is given in each step.
    """
    super().__init__(_GradientDescentHyperParams(learning_rate))

  def transformation(self, hyper_params):
    return optax.sgd(hyper_params.learning_rate)
