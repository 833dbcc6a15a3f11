"""Adagrad."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from haiku_state import struct
from haiku_state.optim._optax import OptaxOptimizerDef

__all__ = ['Adagrad']


@struct.dataclass
class _AdagradHyperParams:
  learning_rate: Any
  eps: Any


@struct.dataclass
class _AdagradParamState:
  G: Any


class Adagrad(OptaxOptimizerDef):
  """Adagrad (https://jmlr.org/papers/v12/duchi11a.html).

  The gradient is divided by the root of the sum of all squared gradients.

  Agreement: to rounding, with Flax 0.5.3; none with `optax.adagrad`, which
  begins its sum with 0.1 and adds `eps` under the root.

  State of a parameter: `G`, the sum of squares.

  >>> import jax.numpy as jnp
  >>> optimizer = Adagrad(learning_rate=0.5).create({'w': jnp.ones(2)})
  >>> optimizer.apply_gradient({'w': jnp.array([4.0, -2.0])}).target['w']
  Array([0.5, 1.5], dtype=float32)
  """

  param_state = _AdagradParamState
  optax_names = {'G': 'sum_of_squares'}

  def __init__(self, learning_rate: Any = None, eps: Any = 1e-8):
    """Takes the hyper-parameters.

    Args:
      learning_rate: the step size. None if it is given in each step.
      eps: what is added to the root of the sum of squares.
    """
    super().__init__(_AdagradHyperParams(learning_rate, eps))

  def transformation(self, hyper_params):
    return optax.chain(
      _scale_by_root_of_sum(hyper_params.eps),
      optax.scale_by_learning_rate(hyper_params.learning_rate),
    )


class _ScaleByRootOfSumState(NamedTuple):
  sum_of_squares: Any


def _scale_by_root_of_sum(eps: Any) -> optax.GradientTransformation:
  """Divides by the root of the sum of squares, plus eps outside the root."""

  def init(params):
    return _ScaleByRootOfSumState(jax.tree.map(jnp.zeros_like, params))

  def update(updates, state, params=None):
    del params
    sums = jax.tree.map(
      lambda g, total: total + jnp.square(g), updates, state.sum_of_squares
    )
    scaled = jax.tree.map(
      lambda g, total: g / (jnp.sqrt(total) + eps), updates, sums
    )
    return scaled, _ScaleByRootOfSumState(sums)

  return optax.GradientTransformation(init, update)
