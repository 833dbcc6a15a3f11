"""Functions of a scope that draw random numbers."""

import jax.numpy as jnp
from jax import lax, random

from haiku_state.core.scope import Scope
from haiku_state.typing import Array, PRNGKey


def dropout(
  scope: Scope,
  inputs: Array,
  rate: float,
  deterministic: bool = False,
  rng: PRNGKey | None = None,
) -> Array:
  """Zeroes a random part of the input, and scales up the rest.

  Args:
    scope: has the stream `dropout`.
    inputs: array of any shape, floating point.
    rate: probability with which an element becomes zero.
    deterministic: whether the input is returned as it is.
    rng: the key to draw with. None: one from the stream `dropout`.

  Returns:
    An array of the shape and dtype of `inputs`.

  >>> import jax, jax.numpy as jnp
  >>> from haiku_state.core import apply, nn
  >>> rngs = {'dropout': jax.random.key(0)}
  >>> y = apply(nn.dropout)({}, jnp.ones(3), 0.5, rngs=rngs)
  >>> set(y.tolist()) <= {0.0, 2.0}
  True
  """
  if rate == 0.0 or deterministic:
    return inputs
  keep_prob = 1.0 - rate
  if rng is None:
    rng = scope.make_rng('dropout')
  mask = random.bernoulli(rng, p=keep_prob, shape=inputs.shape)
  return lax.select(mask, inputs / keep_prob, jnp.zeros_like(inputs))
