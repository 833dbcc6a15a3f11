"""The classes that all optimizers share, under Flax's names."""

from haiku_state.optim._definition import OptimizerDef, OptimizerState
from haiku_state.optim._multi_optimizer import MultiOptimizer
from haiku_state.optim._optimizer import Optimizer, ReplicatedOptimizer
from haiku_state.traverse_util import ModelParamTraversal

__all__ = [
  'ModelParamTraversal',
  'MultiOptimizer',
  'Optimizer',
  'OptimizerDef',
  'OptimizerState',
  'ReplicatedOptimizer',
]
