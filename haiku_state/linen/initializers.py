"""Initializers of parameters: functions `(key, shape, dtype) -> array`.

They are those of `jax.nn.initializers`, under the names that linen gives them.
`zeros` and `ones` are JAX's own objects, so that the core can see by identity
that an initializer has no use for its key.

>>> import jax
>>> import haiku_state.linen as nn
>>> half = nn.initializers.constant(0.5)
>>> half(jax.random.key(0), (2,))
Array([0.5, 0.5], dtype=float32)
>>> dense = nn.Dense(4, kernel_init=nn.initializers.orthogonal())
>>> he = nn.initializers.variance_scaling(2.0, 'fan_in', 'truncated_normal')
>>> he(jax.random.key(0), (3, 4)).shape
(3, 4)
"""

from jax.nn.initializers import constant as constant
from jax.nn.initializers import delta_orthogonal as delta_orthogonal
from jax.nn.initializers import glorot_normal as glorot_normal
from jax.nn.initializers import glorot_uniform as glorot_uniform
from jax.nn.initializers import he_normal as he_normal
from jax.nn.initializers import he_uniform as he_uniform
from jax.nn.initializers import kaiming_normal as kaiming_normal
from jax.nn.initializers import kaiming_uniform as kaiming_uniform
from jax.nn.initializers import lecun_normal as lecun_normal
from jax.nn.initializers import lecun_uniform as lecun_uniform
from jax.nn.initializers import normal as normal
from jax.nn.initializers import ones as ones
from jax.nn.initializers import orthogonal as orthogonal
from jax.nn.initializers import truncated_normal as truncated_normal
from jax.nn.initializers import uniform as uniform
from jax.nn.initializers import variance_scaling as variance_scaling
from jax.nn.initializers import xavier_normal as xavier_normal
from jax.nn.initializers import xavier_uniform as xavier_uniform
from jax.nn.initializers import zeros as zeros

from haiku_state.typing import Initializer as Initializer


def zeros_init() -> Initializer:
  """Returns the initializer of arrays of zeros.

  Returns:
    `jax.nn.initializers.zeros`: `(key, shape, dtype=float32) -> array`. It
    does not use its key.

  >>> import jax
  >>> zeros_init()(jax.random.key(0), (2,))
  Array([0., 0.], dtype=float32)
  """
  return zeros


def ones_init() -> Initializer:
  """Returns the initializer of arrays of ones.

  Returns:
    `jax.nn.initializers.ones`: `(key, shape, dtype=float32) -> array`. It does
    not use its key.

  >>> import jax
  >>> ones_init()(jax.random.key(0), (2,))
  Array([1., 1.], dtype=float32)
  """
  return ones
