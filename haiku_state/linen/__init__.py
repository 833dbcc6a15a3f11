"""Modules, layers and lifted transforms, with the names of Flax linen."""

from typing import TYPE_CHECKING

from haiku_state import _lazy
from haiku_state.core import meta as meta
from haiku_state.core.axes_scan import broadcast as broadcast
from haiku_state.core.filters import DenyList as DenyList
from haiku_state.core.frozen_dict import FrozenDict as FrozenDict
from haiku_state.core.meta import PARTITION_NAME as PARTITION_NAME
from haiku_state.core.meta import Partitioned as Partitioned
from haiku_state.core.meta import get_partition_spec as get_partition_spec
from haiku_state.core.meta import get_sharding as get_sharding
from haiku_state.core.meta import unbox as unbox
from haiku_state.core.meta import with_partitioning as with_partitioning
from haiku_state.core.scope import Variable as Variable
from haiku_state.core.spmd import (
  get_logical_axis_rules as get_logical_axis_rules,
)
from haiku_state.core.spmd import logical_axis_rules as logical_axis_rules
from haiku_state.core.spmd import (
  set_logical_axis_rules as set_logical_axis_rules,
)
from haiku_state.linen import kw_only_dataclasses as kw_only_dataclasses
from haiku_state.linen import module as module
from haiku_state.linen.module import Module as Module
from haiku_state.linen.module import apply as apply
from haiku_state.linen.module import compact as compact
from haiku_state.linen.module import compact_name_scope as compact_name_scope
from haiku_state.linen.module import disable_named_call as disable_named_call
from haiku_state.linen.module import enable_named_call as enable_named_call
from haiku_state.linen.module import init as init
from haiku_state.linen.module import init_with_output as init_with_output
from haiku_state.linen.module import intercept_methods as intercept_methods
from haiku_state.linen.module import merge_param as merge_param
from haiku_state.linen.module import nowrap as nowrap
from haiku_state.linen.module import override_named_call as override_named_call
from haiku_state.linen.module import share_scope as share_scope

if TYPE_CHECKING:
  from haiku_state.linen import activation as activation
  from haiku_state.linen import attention as attention
  from haiku_state.linen import batch_apply as batch_apply
  from haiku_state.linen import combinators as combinators
  from haiku_state.linen import dtypes as dtypes
  from haiku_state.linen import fp8_ops as fp8_ops
  from haiku_state.linen import initializers as initializers
  from haiku_state.linen import linear as linear
  from haiku_state.linen import normalization as normalization
  from haiku_state.linen import partitioning as partitioning
  from haiku_state.linen import pooling as pooling
  from haiku_state.linen import recurrent as recurrent
  from haiku_state.linen import spmd as spmd
  from haiku_state.linen import stochastic as stochastic
  from haiku_state.linen import summary as summary
  from haiku_state.linen import transforms as transforms
  from haiku_state.linen.activation import PReLU as PReLU
  from haiku_state.linen.activation import celu as celu
  from haiku_state.linen.activation import elu as elu
  from haiku_state.linen.activation import gelu as gelu
  from haiku_state.linen.activation import glu as glu
  from haiku_state.linen.activation import hard_sigmoid as hard_sigmoid
  from haiku_state.linen.activation import hard_silu as hard_silu
  from haiku_state.linen.activation import hard_swish as hard_swish
  from haiku_state.linen.activation import hard_tanh as hard_tanh
  from haiku_state.linen.activation import leaky_relu as leaky_relu
  from haiku_state.linen.activation import log_sigmoid as log_sigmoid
  from haiku_state.linen.activation import log_softmax as log_softmax
  from haiku_state.linen.activation import logsumexp as logsumexp
  from haiku_state.linen.activation import normalize as normalize
  from haiku_state.linen.activation import one_hot as one_hot
  from haiku_state.linen.activation import relu as relu
  from haiku_state.linen.activation import relu6 as relu6
  from haiku_state.linen.activation import selu as selu
  from haiku_state.linen.activation import sigmoid as sigmoid
  from haiku_state.linen.activation import silu as silu
  from haiku_state.linen.activation import soft_sign as soft_sign
  from haiku_state.linen.activation import softmax as softmax
  from haiku_state.linen.activation import softplus as softplus
  from haiku_state.linen.activation import standardize as standardize
  from haiku_state.linen.activation import swish as swish
  from haiku_state.linen.activation import tanh as tanh
  from haiku_state.linen.attention import (
    MultiHeadAttention as MultiHeadAttention,
  )
  from haiku_state.linen.attention import (
    MultiHeadDotProductAttention as MultiHeadDotProductAttention,
  )
  from haiku_state.linen.attention import SelfAttention as SelfAttention
  from haiku_state.linen.attention import combine_masks as combine_masks
  from haiku_state.linen.attention import (
    dot_product_attention as dot_product_attention,
  )
  from haiku_state.linen.attention import (
    dot_product_attention_weights as dot_product_attention_weights,
  )
  from haiku_state.linen.attention import (
    make_attention_mask as make_attention_mask,
  )
  from haiku_state.linen.attention import make_causal_mask as make_causal_mask
  from haiku_state.linen.batch_apply import BatchApply as BatchApply
  from haiku_state.linen.combinators import Sequential as Sequential
  from haiku_state.linen.fp8_ops import (
    Fp8DirectDotGeneralOp as Fp8DirectDotGeneralOp,
  )
  from haiku_state.linen.fp8_ops import Fp8DotGeneral as Fp8DotGeneral
  from haiku_state.linen.fp8_ops import Fp8DotGeneralOp as Fp8DotGeneralOp
  from haiku_state.linen.fp8_ops import Fp8Einsum as Fp8Einsum
  from haiku_state.linen.fp8_ops import (
    NANOOFp8DotGeneralOp as NANOOFp8DotGeneralOp,
  )
  from haiku_state.linen.initializers import ones as ones
  from haiku_state.linen.initializers import ones_init as ones_init
  from haiku_state.linen.initializers import zeros as zeros
  from haiku_state.linen.initializers import zeros_init as zeros_init
  from haiku_state.linen.linear import Conv as Conv
  from haiku_state.linen.linear import ConvLocal as ConvLocal
  from haiku_state.linen.linear import ConvTranspose as ConvTranspose
  from haiku_state.linen.linear import Dense as Dense
  from haiku_state.linen.linear import DenseGeneral as DenseGeneral
  from haiku_state.linen.linear import Einsum as Einsum
  from haiku_state.linen.linear import Embed as Embed
  from haiku_state.linen.normalization import BatchNorm as BatchNorm
  from haiku_state.linen.normalization import GroupNorm as GroupNorm
  from haiku_state.linen.normalization import InstanceNorm as InstanceNorm
  from haiku_state.linen.normalization import LayerNorm as LayerNorm
  from haiku_state.linen.normalization import RMSNorm as RMSNorm
  from haiku_state.linen.normalization import SpectralNorm as SpectralNorm
  from haiku_state.linen.normalization import WeightNorm as WeightNorm
  from haiku_state.linen.normalization import map_variables as map_variables
  from haiku_state.linen.pooling import avg_pool as avg_pool
  from haiku_state.linen.pooling import max_pool as max_pool
  from haiku_state.linen.pooling import pool as pool
  from haiku_state.linen.recurrent import RNN as RNN
  from haiku_state.linen.recurrent import Bidirectional as Bidirectional
  from haiku_state.linen.recurrent import ConvLSTMCell as ConvLSTMCell
  from haiku_state.linen.recurrent import GRUCell as GRUCell
  from haiku_state.linen.recurrent import LSTMCell as LSTMCell
  from haiku_state.linen.recurrent import MGUCell as MGUCell
  from haiku_state.linen.recurrent import OptimizedLSTMCell as OptimizedLSTMCell
  from haiku_state.linen.recurrent import RNNCellBase as RNNCellBase
  from haiku_state.linen.recurrent import SimpleCell as SimpleCell
  from haiku_state.linen.spmd import (
    LogicallyPartitioned as LogicallyPartitioned,
  )
  from haiku_state.linen.spmd import logical_to_mesh as logical_to_mesh
  from haiku_state.linen.spmd import (
    logical_to_mesh_axes as logical_to_mesh_axes,
  )
  from haiku_state.linen.spmd import (
    logical_to_mesh_sharding as logical_to_mesh_sharding,
  )
  from haiku_state.linen.spmd import (
    with_logical_constraint as with_logical_constraint,
  )
  from haiku_state.linen.spmd import (
    with_logical_partitioning as with_logical_partitioning,
  )
  from haiku_state.linen.stochastic import Dropout as Dropout
  from haiku_state.linen.summary import tabulate as tabulate
  from haiku_state.linen.transforms import (
    add_metadata_axis as add_metadata_axis,
  )
  from haiku_state.linen.transforms import checkpoint as checkpoint
  from haiku_state.linen.transforms import cond as cond
  from haiku_state.linen.transforms import custom_vjp as custom_vjp
  from haiku_state.linen.transforms import fold_rngs as fold_rngs
  from haiku_state.linen.transforms import grad as grad
  from haiku_state.linen.transforms import jit as jit
  from haiku_state.linen.transforms import jvp as jvp
  from haiku_state.linen.transforms import named_call as named_call
  from haiku_state.linen.transforms import remat as remat
  from haiku_state.linen.transforms import remat_scan as remat_scan
  from haiku_state.linen.transforms import scan as scan
  from haiku_state.linen.transforms import switch as switch
  from haiku_state.linen.transforms import value_and_grad as value_and_grad
  from haiku_state.linen.transforms import vjp as vjp
  from haiku_state.linen.transforms import vmap as vmap
  from haiku_state.linen.transforms import while_loop as while_loop
else:
  __getattr__, __dir__, __all__ = _lazy.names_of(
    __name__,
    {
      'activation': """
        PReLU celu elu gelu glu hard_sigmoid hard_silu hard_swish hard_tanh
        leaky_relu log_sigmoid log_softmax logsumexp normalize one_hot relu
        relu6 selu sigmoid silu soft_sign softmax softplus standardize swish
        tanh
      """,
      'attention': """
        MultiHeadAttention MultiHeadDotProductAttention SelfAttention
        combine_masks dot_product_attention dot_product_attention_weights
        make_attention_mask make_causal_mask
      """,
      'batch_apply': 'BatchApply',
      'combinators': 'Sequential',
      'dtypes': '',
      'fp8_ops': """
        Fp8DirectDotGeneralOp Fp8DotGeneral Fp8DotGeneralOp Fp8Einsum
        NANOOFp8DotGeneralOp
      """,
      'initializers': 'ones ones_init zeros zeros_init',
      'linear': 'Conv ConvLocal ConvTranspose Dense DenseGeneral Einsum Embed',
      'normalization': """
        BatchNorm GroupNorm InstanceNorm LayerNorm RMSNorm SpectralNorm
        WeightNorm map_variables
      """,
      'partitioning': '',
      'pooling': 'avg_pool max_pool pool',
      'recurrent': """
        RNN Bidirectional ConvLSTMCell GRUCell LSTMCell MGUCell
        OptimizedLSTMCell RNNCellBase SimpleCell
      """,
      'spmd': """
        LogicallyPartitioned logical_to_mesh logical_to_mesh_axes
        logical_to_mesh_sharding with_logical_constraint
        with_logical_partitioning
      """,
      'stochastic': 'Dropout',
      'summary': 'tabulate',
      'transforms': """
        add_metadata_axis checkpoint cond custom_vjp fold_rngs grad jit jvp
        named_call remat remat_scan scan switch value_and_grad vjp vmap
        while_loop
      """,
    },
  )
