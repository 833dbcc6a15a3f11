"""Several optimizers for one target, each for some of its leaves."""

from typing import Any

import jax
import jax.numpy as jnp

from haiku_state import traverse_util
from haiku_state.optim._definition import (
  OptimizerDef,
  OptimizerState,
  flatten_like,
)


class MultiOptimizer(OptimizerDef):
  """Optimizes the leaves that traversals select, each by its own definition.

  Leaves that no traversal selects stay as they are, and have the state None.
  There is one step for all. Hyper-parameters given to `apply_gradient` by name
  are for all definitions; those of each are given as a list,
  `hyper_params=[...]`.

  Which leaves are selected depends on their paths, shapes and dtypes; a filter
  sees objects with `shape`, `dtype`, `ndim` and `size`, never values.

  >>> import jax.numpy as jnp
  >>> from haiku_state import optim
  >>> kernels = optim.ModelParamTraversal(lambda path, _: 'kernel' in path)
  >>> biases = optim.ModelParamTraversal(lambda path, _: 'bias' in path)
  >>> definition = optim.MultiOptimizer(
  ...   (kernels, optim.GradientDescent(0.1)), (biases, optim.GradientDescent(1.0))
  ... )
  >>> params = {'bias': jnp.ones(()), 'kernel': jnp.ones(())}
  >>> definition.create(params).apply_gradient(params).target
  {'bias': Array(0., dtype=float32), 'kernel': Array(0.9, dtype=float32)}
  >>> first, second = definition.hyper_params
  >>> definition.create(params).apply_gradient(
  ...   params, hyper_params=[first, second.replace(learning_rate=0.5)]
  ... ).target
  {'bias': Array(0.5, dtype=float32), 'kernel': Array(0.9, dtype=float32)}
  """

  def __init__(
    self,
    *traversals_and_optimizers: tuple[traverse_util.Traversal, OptimizerDef],
  ):
    """Takes the traversals with their definitions.

    Args:
      *traversals_and_optimizers: pairs `(traversal, definition)`. No two
        traversals may select the same leaf.
    """
    self.traversals = tuple(t for t, _ in traversals_and_optimizers)
    self.sub_optimizers = tuple(d for _, d in traversals_and_optimizers)
    super().__init__([d.hyper_params for d in self.sub_optimizers])

  def init_state(self, params: Any) -> OptimizerState:
    """Returns the initial state.

    Raises:
      ValueError: two traversals select the same leaf.
    """
    leaves, treedef = jax.tree.flatten(params)
    param_states: list[Any] = [None] * len(leaves)
    for definition, places in zip(self.sub_optimizers, self._places(params)):
      states = definition.init_state(tuple(leaves[i] for i in places))
      for i, state in zip(places, states.param_states):
        param_states[i] = state
    return OptimizerState(
      jnp.zeros((), jnp.int32), treedef.unflatten(param_states)
    )

  def apply_gradient(self, hyper_params, params, state, grads):
    """Applies the gradients of the selected leaves.

    Args:
      hyper_params: a list with the hyper-parameters of each definition.
      params: the target.
      state: its state.
      grads: the gradients, like the target.

    Returns:
      The new target and its state.
    """
    if len(hyper_params) != len(self.sub_optimizers):
      raise ValueError(
        f'{len(self.sub_optimizers)} optimizers, but hyper_params for'
        f' {len(hyper_params)}'
      )
    new_leaves, treedef = jax.tree.flatten(params)
    new_states = flatten_like(params, state.param_states, 'state')
    grad_leaves = flatten_like(params, grads, 'gradients')
    for definition, hp, places in zip(
      self.sub_optimizers, hyper_params, self._places(params)
    ):
      selected, result = definition.apply_gradient(
        hp,
        tuple(new_leaves[i] for i in places),
        OptimizerState(state.step, tuple(new_states[i] for i in places)),
        tuple(grad_leaves[i] for i in places),
      )
      for i, leaf, new in zip(places, selected, result.param_states):
        new_leaves[i], new_states[i] = leaf, new
    return treedef.unflatten(new_leaves), OptimizerState(
      state.step + 1, treedef.unflatten(new_states)
    )

  def update_hyper_params(self, **hyper_param_overrides: Any) -> list[Any]:
    """Returns the hyper-parameters of one step, a list.

    Args:
      **hyper_param_overrides: hyper-parameters for every definition, or
        `hyper_params=` with a list of one object for each.
    """
    hyper_params = hyper_param_overrides.pop('hyper_params', self.hyper_params)
    return [
      d.update_hyper_params(hyper_params=hp, **hyper_param_overrides)
      for d, hp in zip(self.sub_optimizers, hyper_params, strict=True)
    ]

  def _places(self, params: Any) -> list[list[int]]:
    """Returns which leaves each traversal selects, as indices.

    The traversals see stand-ins for the leaves, and the target alone: they need
    not know how to walk the state, which has more levels.
    """
    leaves, treedef = jax.tree.flatten(params)
    slots = [_Slot(leaf, i) for i, leaf in enumerate(leaves)]
    tree = treedef.unflatten(slots)
    places = []
    for number, traversal in enumerate(self.traversals):
      places.append([])
      for slot in traversal.iterate(tree):
        if not isinstance(slot, _Slot):
          raise ValueError(
            'A traversal must select leaves of the target, but one selects a'
            f' {type(slot).__name__}: go on with .tree() to select its leaves.'
          )
        slot.owners.append(number)
        places[-1].append(slot.index)
    if any(len(slot.owners) > 1 for slot in slots):
      raise ValueError(
        'Multiple optimizers match the same leaves : '
        + str(treedef.unflatten([slot.owners for slot in slots]))
      )
    return places


class _Slot:
  """The place of a leaf in the target."""

  def __init__(self, leaf: Any, index: int):
    self.shape = jnp.shape(leaf)
    self.dtype = jnp.result_type(leaf)
    self.ndim = len(self.shape)
    self.size = jnp.size(leaf)
    self.index = index
    self.owners: list[int] = []
