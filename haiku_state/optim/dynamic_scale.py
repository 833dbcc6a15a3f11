"""Loss scaling, at the place where `flax.optim` had it."""

from haiku_state.training.dynamic_scale import DynamicScale, DynamicScaleResult

__all__ = ['DynamicScale', 'DynamicScaleResult']
