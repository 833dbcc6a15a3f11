"""Trees, functions, layers and checkpoints, between Haiku and linen.

>>> import haiku as hk, jax, jax.numpy as jnp
>>> from haiku_state import interop
>>> f = hk.transform(lambda x: hk.Linear(2)(x))
>>> module = interop.as_module(f)
>>> variables = module.init(jax.random.key(0), jnp.ones((1, 3)))
>>> jax.tree.map(jnp.shape, interop.to_haiku(variables)[0])
{'linear': {'b': (2,), 'w': (3, 2)}}
"""

from haiku_state.interop import checkpoints as checkpoints
from haiku_state.interop import layers as layers
from haiku_state.interop._leaves import ConversionError as ConversionError
from haiku_state.interop.batch_norm import (
  batch_norm_from_haiku as batch_norm_from_haiku,
)
from haiku_state.interop.batch_norm import (
  batch_norm_to_haiku as batch_norm_to_haiku,
)
from haiku_state.interop.comparison import Comparison as Comparison
from haiku_state.interop.comparison import compare as compare
from haiku_state.interop.functions import as_module as as_module
from haiku_state.interop.functions import (
  as_multi_transformed as as_multi_transformed,
)
from haiku_state.interop.functions import as_transformed as as_transformed
from haiku_state.interop.recurrent import as_rnn_cell as as_rnn_cell
from haiku_state.interop.recurrent import as_rnn_core as as_rnn_core
from haiku_state.interop.trees import from_flax_module as from_flax_module
from haiku_state.interop.trees import from_haiku as from_haiku
from haiku_state.interop.trees import from_lifted as from_lifted
from haiku_state.interop.trees import to_flax_module as to_flax_module
from haiku_state.interop.trees import to_haiku as to_haiku
from haiku_state.interop.trees import to_lifted as to_lifted
from haiku_state.interop.weights import Report as Report
from haiku_state.interop.weights import weights_from_haiku as weights_from_haiku
from haiku_state.interop.weights import weights_to_haiku as weights_to_haiku
