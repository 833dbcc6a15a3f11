"""Layers that draw random numbers."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax, random

from haiku_state.linen.module import Module, compact, merge_param
from haiku_state.typing import Array, PRNGKey


class Dropout(Module):
  """Zeroes a random part of its input, and scales up the rest.

      y = x / (1 - rate)   with probability 1 - rate
      y = 0                with probability rate

  so that the expected value of y is x. Each element is drawn by itself, or, on
  the dimensions in `broadcast_dims`, all elements alike.

  A program passes a key for it, `apply(..., rngs={'dropout': key})`, except
  where the layer is deterministic.

  Source: Srivastava et al., Dropout, JMLR 15 (2014) 1929-1958.

  >>> import jax, jax.numpy as jnp
  >>> import haiku_state.linen as nn
  >>> drop = nn.Dropout(rate=0.5)
  >>> drop.apply({}, jnp.ones(3), deterministic=True)
  Array([1., 1., 1.], dtype=float32)
  >>> rngs = {'dropout': jax.random.key(0)}
  >>> y = drop.apply({}, jnp.ones(3), deterministic=False, rngs=rngs)
  >>> set(y.tolist()) <= {0.0, 2.0}
  True

  Attributes:
    rate: probability with which an element becomes zero, 0 to 1.
    broadcast_dims: dimensions along which all elements share one draw.
    deterministic: whether the input is returned as it is. Give it here or in
      the call, not in both.
    rng_collection: name of the stream that the key comes from.
  """

  rate: float
  broadcast_dims: Sequence[int] = ()
  deterministic: bool | None = None
  rng_collection: str = 'dropout'

  @compact
  def __call__(
    self,
    inputs: Array,
    deterministic: bool | None = None,
    rng: PRNGKey | None = None,
  ) -> Array:
    """Drops elements of the input.

    Args:
      inputs: array of any shape, floating point.
      deterministic: whether the input is returned as it is.
      rng: the key to draw with. None: one from the stream `rng_collection`.

    Returns:
      An array of the shape and dtype of `inputs`.

    Raises:
      ValueError: if `deterministic` is given neither here nor to the
        constructor, or to both.
      InvalidRngError: if the stream is needed and was not passed to `apply`.
    """
    deterministic = merge_param(
      'deterministic', self.deterministic, deterministic
    )
    if self.rate == 0.0 or deterministic:
      return inputs
    # Division by a keep probability of zero would make NaN, in the gradient
    # too, though nothing of it is kept.
    if self.rate == 1.0:
      return jnp.zeros_like(inputs)

    keep_prob = 1.0 - self.rate
    if rng is None:
      rng = self.make_rng(self.rng_collection)
    mask_shape = list(inputs.shape)
    for dim in self.broadcast_dims:
      mask_shape[dim] = 1
    mask = random.bernoulli(rng, p=keep_prob, shape=mask_shape)
    mask = jnp.broadcast_to(mask, inputs.shape)
    return lax.select(mask, inputs / keep_prob, jnp.zeros_like(inputs))
