"""Activation functions, and the one that has a parameter.

The functions are those of `jax.nn` (and `tanh` of `jax.numpy`), so that
`nn.relu` is `jax.nn.relu` and takes the same arguments.

>>> import jax.numpy as jnp
>>> import haiku_state.linen as nn
>>> x = jnp.array([-2.0, 0.0, 2.0])
>>> def show(y):
...   print([round(float(v), 2) for v in jnp.ravel(y)])

Those that cut off what is negative, and those that are smooth:

>>> show(nn.relu(x))
[0.0, 0.0, 2.0]
>>> show(nn.relu6(10 * x))
[0.0, 0.0, 6.0]
>>> show(nn.leaky_relu(x, 0.1))
[-0.2, 0.0, 2.0]
>>> show(nn.elu(x))
[-0.86, 0.0, 2.0]
>>> show(nn.celu(x))
[-0.86, 0.0, 2.0]
>>> show(nn.selu(x))
[-1.52, 0.0, 2.1]
>>> show(nn.gelu(x))
[-0.05, 0.0, 1.95]
>>> show(nn.silu(x))
[-0.24, 0.0, 1.76]
>>> show(nn.swish(x))
[-0.24, 0.0, 1.76]
>>> show(nn.softplus(x))
[0.13, 0.69, 2.13]

Those that end at a bound:

>>> show(nn.sigmoid(x))
[0.12, 0.5, 0.88]
>>> show(nn.tanh(x))
[-0.96, 0.0, 0.96]
>>> show(nn.soft_sign(x))
[-0.67, 0.0, 0.67]
>>> show(nn.log_sigmoid(x))
[-2.13, -0.69, -0.13]
>>> show(nn.hard_sigmoid(x))
[0.17, 0.5, 0.83]
>>> show(nn.hard_tanh(x))
[-1.0, 0.0, 1.0]
>>> show(nn.hard_silu(x))
[-0.33, 0.0, 1.67]
>>> show(nn.hard_swish(x))
[-0.33, 0.0, 1.67]

Those of several numbers together; `glu` has the second half of them open and
close the first:

>>> show(nn.softmax(x))
[0.02, 0.12, 0.87]
>>> show(nn.log_softmax(x))
[-4.14, -2.14, -0.14]
>>> show(nn.logsumexp(x))
[2.14]
>>> show(nn.standardize(x))
[-1.22, 0.0, 1.22]
>>> show(nn.normalize(x))
[-1.22, 0.0, 1.22]
>>> show(nn.one_hot(jnp.array(1), 3))
[0.0, 1.0, 0.0]
>>> show(nn.glu(jnp.array([1.0, 2.0, 0.0, 0.0])))
[0.5, 1.0]
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
