"""Activation functions, and the one that has a parameter.

The functions are those of `jax.nn` (and `tanh` of `jax.numpy`), so that
`nn.relu` is `jax.nn.relu` and takes the same arguments.
"""

from typing import Any

import jax.numpy as jnp
from jax.nn import celu as celu
from jax.nn import elu as elu
from jax.nn import gelu as gelu
from jax.nn import glu as glu
from jax.nn import hard_sigmoid as hard_sigmoid
from jax.nn import hard_silu as hard_silu
from jax.nn import hard_swish as hard_swish
from jax.nn import hard_tanh as hard_tanh
from jax.nn import leaky_relu as leaky_relu
from jax.nn import log_sigmoid as log_sigmoid
from jax.nn import log_softmax as log_softmax
from jax.nn import logsumexp as logsumexp
from jax.nn import one_hot as one_hot
from jax.nn import relu as relu
from jax.nn import relu6 as relu6
from jax.nn import selu as selu
from jax.nn import sigmoid as sigmoid
from jax.nn import silu as silu
from jax.nn import soft_sign as soft_sign
from jax.nn import softmax as softmax
from jax.nn import softplus as softplus
from jax.nn import standardize as standardize
from jax.nn import swish as swish
from jax.numpy import tanh as tanh

from haiku_state.linen.module import Module, compact
from haiku_state.typing import Array, Dtype

# The older name of `standardize`, kept for the programs that use it.
normalize = standardize


class PReLU(Module):
  """A leaky ReLU whose slope below zero is learned.

      y = x           where x >= 0
      y = slope * x   elsewhere

  The slope is one scalar, the parameter `negative_slope`; it is cast to the
  dtype of the input, which is also that of the output.

  Source: He et al., Delving Deep into Rectifiers,
  https://arxiv.org/abs/1502.01852.

  >>> import jax, jax.numpy as jnp
  >>> import haiku_state.linen as nn
  >>> y, variables = nn.PReLU().init_with_output(
  ...   jax.random.key(0), jnp.array([-2.0, 3.0])
  ... )
  >>> y
  Array([-0.02,  3.  ], dtype=float32)
  >>> variables['params']['negative_slope'].shape
  ()

  Attributes:
    param_dtype: dtype of the parameter.
    negative_slope_init: first value of the slope.
  """

  param_dtype: Dtype = jnp.float32
  negative_slope_init: float = 0.01

  @compact
  def __call__(self, inputs: Array) -> Array:
    """Scales what is negative.

    Args:
      inputs: array of any shape, real.

    Returns:
      An array of the shape and dtype of `inputs`.
    """
    negative_slope = self.param(
      'negative_slope', _value, self.negative_slope_init, self.param_dtype
    )
    return jnp.where(
      inputs >= 0, inputs, jnp.asarray(negative_slope, inputs.dtype) * inputs
    )


def _value(key: Any, value: Any, dtype: Dtype) -> Array:
  """Initializes a parameter with a given value; it needs no key."""
  del key
  return jnp.asarray(value, dtype)
