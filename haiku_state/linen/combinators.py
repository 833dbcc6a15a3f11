"""Modules that put other modules together."""

from collections.abc import Callable, Sequence
from typing import Any

from haiku_state.linen.module import Module, compact


class Sequential(Module):
  """Calls layers one after the other, each with what the last returned.

  A layer is any callable: a module, a function such as `nn.relu`, or a function
  that makes a module from its argument, `lambda x: nn.Dense(x.shape[-1])(x)`.
  The first one gets the arguments of the call. A tuple that a layer returns is
  spread over the positional arguments of the next one, and a dict over its
  keyword arguments.

  >>> import jax, jax.numpy as jnp
  >>> import haiku_state.linen as nn
  >>> model = nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(2)])
  >>> variables = model.init(jax.random.key(0), jnp.ones((1, 3)))
  >>> sorted(variables['params'])
  ['layers_0', 'layers_2']
  >>> model.apply(variables, jnp.ones((1, 3))).shape
  (1, 2)

  Attributes:
    layers: the callables, in the order in which they are called.

  Raises:
    ValueError: if `layers` is not a sequence, or, at the call, is empty.
  """

  layers: Sequence[Callable[..., Any]]

  def __post_init__(self) -> None:
    if not isinstance(self.layers, Sequence):
      raise ValueError(
        f"'layers' must be a sequence, got '{type(self.layers).__name__}'."
      )
    super().__post_init__()

  @compact
  def __call__(self, *args: Any, **kwargs: Any) -> Any:
    """Runs the chain.

    Args:
      *args: positional arguments of the first layer.
      **kwargs: keyword arguments of the first layer.

    Returns:
      What the last layer returns.
    """
    if not self.layers:
      raise ValueError(f'Empty Sequential module {self.name}.')

    outputs = self.layers[0](*args, **kwargs)
    for layer in self.layers[1:]:
      if isinstance(outputs, tuple):
        outputs = layer(*outputs)
      elif isinstance(outputs, dict):
        outputs = layer(**outputs)
      else:
        outputs = layer(outputs)
    return outputs
