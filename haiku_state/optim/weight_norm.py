"""Weight normalization, done by the optimizer."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from haiku_state import struct
from haiku_state.optim._trees import flatten_like
from haiku_state.optim.base import OptimizerDef, OptimizerState

__all__ = ['WeightNorm']


@struct.dataclass
class _WeightNormHyperParams:
  inner: Any
  wn_decay: Any
  wn_eps: Any


@struct.dataclass
class _WeightNormParamState:
  direction_state: Any
  scale_state: Any
  direction: Any
  scale: Any


class WeightNorm(OptimizerDef):
  """Optimizes direction and length of weights apart, by another optimizer
  (https://arxiv.org/abs/1602.07868).

  A kernel is taken as one vector per output, the last axis being the outputs:
  `kernel = scale * direction / norm(direction)`. The optimizer inside sees
  `direction` and `scale`. Parameters of one vector or less (biases,
  scalars) it sees as they are.

  Agreement: to rounding, with Flax 0.5.3; optax has nothing like it. Beyond
  Flax, scalars are allowed, and so is use in `MultiOptimizer` and around it.

  The parameter is computed from direction and scale, so replacing the target of
  an optimizer changes nothing that lasts, as in Flax.

  State of a parameter: `direction_state`, `scale_state`, `direction` and
  `scale`; `scale` and its state are `()` for a parameter that is not split.

  >>> import jax.numpy as jnp
  >>> from haiku_state import optim
  >>> definition = WeightNorm(optim.GradientDescent(learning_rate=1.0))
  >>> optimizer = definition.create(jnp.array([[3.0], [4.0]]))
  >>> optimizer = optimizer.apply_gradient(jnp.array([[-3.0], [-4.0]]))
  >>> [round(w, 3) for w in optimizer.target[:, 0].tolist()]
  [6.0, 8.0]
  """

  def __init__(
    self, wrapped_optimizer: OptimizerDef, wn_decay: Any = 0, wn_eps: Any = 1e-8
  ):
    """Takes the optimizer inside and the hyper-parameters.

    Args:
      wrapped_optimizer: the definition of the optimizer inside.
      wn_decay: the multiple of the direction that is added to its gradient.
      wn_eps: what is added to squared norms.
    """
    super().__init__(
      _WeightNormHyperParams(wrapped_optimizer.hyper_params, wn_decay, wn_eps)
    )
    self.wrapped_optimizer = wrapped_optimizer

  def update_hyper_params(self, **hyper_param_overrides: Any) -> Any:
    """Returns the hyper-parameters of one step.

    Args:
      **hyper_param_overrides: `wn_decay`, `wn_eps`, or hyper-parameters of
        the optimizer inside; `hyper_params=` replaces all of the latter, or,
        given an object of this optimizer's kind, all.
    """
    whole = self.hyper_params
    if isinstance(
      hyper_param_overrides.get('hyper_params'), _WeightNormHyperParams
    ):
      whole = hyper_param_overrides.pop('hyper_params')
    own = {
      name: hyper_param_overrides.pop(name)
      for name in ('wn_decay', 'wn_eps')
      if name in hyper_param_overrides
    }
    inner = self.wrapped_optimizer.update_hyper_params(
      **{'hyper_params': whole.inner, **hyper_param_overrides}
    )
    return whole.replace(inner=inner, **own)

  def init_state(self, params: Any) -> OptimizerState:
    leaves, treedef = jax.tree.flatten(params)
    eps = self.hyper_params.wn_eps
    pairs = [_split(leaf, eps) for leaf in leaves]
    state = self.wrapped_optimizer.init_state(_parts(treedef, pairs))
    return _joined(treedef, pairs, state)

  def apply_gradient(self, hyper_params, params, state, grads):
    leaves, treedef = jax.tree.flatten(params)
    old = flatten_like(params, state.param_states, 'state')
    pairs = [(s.direction, s.scale) for s in old]
    pair_grads = [
      _pair_grad(pair, grad, hyper_params)
      for pair, grad in zip(pairs, flatten_like(params, grads, 'gradients'))
    ]
    inner_states = [(s.direction_state, s.scale_state) for s in old]
    new_parts, new_state = self.wrapped_optimizer.apply_gradient(
      hyper_params.inner,
      _parts(treedef, pairs),
      OptimizerState(state.step, _parts(treedef, inner_states)),
      _parts(treedef, pair_grads),
    )
    new_pairs = _pairs(treedef, new_parts)
    new_leaves = [
      _merge(pair, hyper_params.wn_eps).astype(jnp.result_type(leaf))
      for pair, leaf in zip(new_pairs, leaves)
    ]
    return treedef.unflatten(new_leaves), _joined(treedef, new_pairs, new_state)

  def restore_state(self, opt_target, opt_state, state_dict):
    """Returns target and state with the values of a state dict.

    Args:
      opt_target: a target with the structure of the result.
      opt_state: a state with the structure of the result.
      state_dict: what `state_dict` returned, here or in Flax, also before
        0.4, when the state had `mult` in place of `direction` and `scale`.
    """
    if isinstance(state_dict, Mapping) and {'target', 'state'} <= {*state_dict}:
      state = dict(state_dict['state'])
      if 'param_states' in state:
        state['param_states'] = _without_mult(
          state['param_states'], state_dict['target']
        )
      state_dict = {**state_dict, 'state': state}
    return super().restore_state(opt_target, opt_state, state_dict)


def _without_mult(param_states: Any, params: Any) -> Any:
  """Brings states of the layout of Flax 0.3 into the present one."""
  if not isinstance(param_states, Mapping):
    return param_states
  if 'mult' in param_states and 'direction' not in param_states:
    state = dict(param_states)
    mult = state.pop('mult')
    # The parameter was `direction * mult`; an empty dict means not split.
    if isinstance(mult, Mapping):
      return {**state, 'direction': params, 'scale': mult}
    direction = jnp.asarray(params) / mult
    scale = mult * jnp.sqrt(_square_norms(direction))
    return {**state, 'direction': direction, 'scale': scale}
  if not isinstance(params, Mapping):
    return param_states
  return {
    name: _without_mult(state, params.get(name))
    for name, state in param_states.items()
  }


def _is_split(param: Any) -> bool:
  return jnp.ndim(param) > 0 and jnp.size(param) > jnp.shape(param)[-1]


def _square_norms(x: Any) -> Any:
  """Returns the squared norm of the vector of each output, axes kept."""
  return jnp.square(x).sum(tuple(range(x.ndim - 1)), keepdims=True)


def _split(param: Any, eps: Any) -> tuple[Any, Any]:
  """Returns direction and scale; of a parameter that is not split, ()."""
  param = jnp.asarray(param)
  if not _is_split(param):
    return param, ()
  norms = jnp.sqrt(_square_norms(param) + eps)
  return param / norms, norms


def _merge(pair: tuple[Any, Any], eps: Any) -> Any:
  """Returns the parameter of direction and scale."""
  direction, scale = pair
  if not _is_split(direction):
    return direction
  return direction * (scale * jax.lax.rsqrt(_square_norms(direction) + eps))


def _pair_grad(
  pair: tuple[Any, Any], grad: Any, hyper_params: Any
) -> tuple[Any, Any]:
  """Returns the gradients of direction and scale."""
  if not _is_split(pair[0]):
    return grad, ()
  merged, vjp = jax.vjp(lambda pair: _merge(pair, hyper_params.wn_eps), pair)
  ((direction_grad, scale_grad),) = vjp(grad.astype(merged.dtype))
  return direction_grad + hyper_params.wn_decay * pair[0], scale_grad


# The optimizer inside sees one tree with two branches, as it does in Flax.


def _parts(treedef: Any, pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
  return {
    'direction': treedef.unflatten([direction for direction, _ in pairs]),
    'scale': treedef.unflatten([scale for _, scale in pairs]),
  }


def _pairs(treedef: Any, parts: dict[str, Any]) -> list[tuple[Any, Any]]:
  return list(
    zip(
      treedef.flatten_up_to(parts['direction']),
      treedef.flatten_up_to(parts['scale']),
    )
  )


def _joined(
  treedef: Any, pairs: list[tuple[Any, Any]], state: OptimizerState
) -> OptimizerState:
  """Puts what the optimizer inside keeps beside direction and scale."""
  inner = _pairs(treedef, state.param_states)
  return OptimizerState(
    state.step,
    treedef.unflatten(
      [
        _WeightNormParamState(direction_state, scale_state, direction, scale)
        for (direction_state, scale_state), (direction, scale) in zip(
          inner, pairs
        )
      ]
    ),
  )
