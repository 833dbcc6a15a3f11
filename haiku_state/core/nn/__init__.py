"""Layers as functions of a scope: the smallest form in which layers come.

A function takes a scope, then its input, then what other layers have as fields.
`linen` has the same layers as modules; these are for programs of `core`.

>>> import jax, jax.numpy as jnp
>>> from haiku_state.core import init, nn
>>> def mlp(scope, x):
...   x = nn.relu(scope.child(nn.dense, 'hidden')(x, 4))
...   return scope.child(nn.dense, 'out')(x, 1)
>>> y, variables = init(mlp)(jax.random.key(0), jnp.ones((2, 3)))
>>> y.shape, variables['params']['hidden']['kernel'].shape
((2, 1), (3, 4))
"""

from haiku_state.core.nn.attention import (
  dot_product_attention as dot_product_attention,
)
from haiku_state.core.nn.attention import (
  multi_head_dot_product_attention as multi_head_dot_product_attention,
)
from haiku_state.core.nn.linear import Embedding as Embedding
from haiku_state.core.nn.linear import conv as conv
from haiku_state.core.nn.linear import conv_transpose as conv_transpose
from haiku_state.core.nn.linear import dense as dense
from haiku_state.core.nn.linear import dense_general as dense_general
from haiku_state.core.nn.linear import embedding as embedding
from haiku_state.core.nn.normalization import batch_norm as batch_norm
from haiku_state.core.nn.normalization import group_norm as group_norm
from haiku_state.core.nn.normalization import layer_norm as layer_norm
from haiku_state.core.nn.stochastic import dropout as dropout
from haiku_state.linen import activation as activation
from haiku_state.linen import initializers as initializers
from haiku_state.linen.activation import celu as celu
from haiku_state.linen.activation import elu as elu
from haiku_state.linen.activation import gelu as gelu
from haiku_state.linen.activation import glu as glu
from haiku_state.linen.activation import leaky_relu as leaky_relu
from haiku_state.linen.activation import log_sigmoid as log_sigmoid
from haiku_state.linen.activation import log_softmax as log_softmax
from haiku_state.linen.activation import relu as relu
from haiku_state.linen.activation import sigmoid as sigmoid
from haiku_state.linen.activation import silu as silu
from haiku_state.linen.activation import soft_sign as soft_sign
from haiku_state.linen.activation import softmax as softmax
from haiku_state.linen.activation import softplus as softplus
from haiku_state.linen.activation import swish as swish
from haiku_state.linen.activation import tanh as tanh
from haiku_state.linen.pooling import avg_pool as avg_pool
from haiku_state.linen.pooling import max_pool as max_pool
