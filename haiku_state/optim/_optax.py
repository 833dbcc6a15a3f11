"""Optimizers that are one expression of optax.

An optimizer of Flax keeps one step, and one small state for each parameter: a
tree of `(grad_ema, grad_sq_ema)`. A transformation of optax keeps it the other
way round: `ScaleByAdamState(count, mu=tree, nu=tree)`, nested as the
expression is. So in each step the states are transposed on the way in and out.

The structure of the optax state comes from the transformation itself, started
for one scalar: each leaf has a name there (`mu`), which says what of Flax's
states belongs in its place; Flax's step belongs in the place of every `count`.
Nothing depends on how an expression nests its states. All parameters go through
optax at once, as a tuple, so what they share is computed once; as no expression
used here looks across parameters, one alone gets the same numbers.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from haiku_state.optim._trees import flatten_like
from haiku_state.optim.base import OptimizerDef, OptimizerState


class OptaxOptimizerDef(OptimizerDef):
  """A definition that is hyper-parameters plus an optax transformation.

  The updated parameter and its new state have the dtypes of the old ones,
  whatever the dtypes of gradient and hyper-parameters. (In Flax, float32
  gradients or a float32 array as learning rate made float32 parameters of
  bfloat16 ones.) Integers become floating, as in Flax.

  A subclass of such an optimizer may override `apply_param_gradient`, which
  is then what counts, here and in `to_optax`.

  Attributes:
    param_state: the class of the state of one parameter.
    optax_names: the name in the optax state of each field of `param_state`.
      A field that the transformation does not have keeps its value.
    keeps_numpy: whether NumPy computes where all arrays are NumPy's, which then
      stay so. So it is in Flax where a rule uses no function of JAX.
  """

  param_state: ClassVar[Any] = tuple
  optax_names: ClassVar[dict[str, str]] = {}
  keeps_numpy: ClassVar[bool] = False

  def transformation(self, hyper_params: Any) -> optax.GradientTransformation:
    """Returns the optax expression of these hyper-parameters."""
    raise NotImplementedError

  def init_param_state(self, param: Any) -> Any:
    return self.param_state(**self.initial_values(jnp.asarray(param)))

  def initial_values(self, param: jax.Array) -> dict[str, Any]:
    """Returns the fields of `param_state` before the first step.

    They are zeros whatever the hyper-parameters are: a subclass with a rule of
    its own may have others than the transformation knows.
    """
    return {field: jnp.zeros_like(param) for field in self.optax_names}

  def apply_param_gradient(self, step, hyper_params, param, state, grad):
    (param,), (state,) = self._apply_gradients(
      step, hyper_params, [param], [state], [grad]
    )
    return param, state

  def apply_gradient(self, hyper_params, params, state, grads):
    if self._overrides('apply_param_gradient'):
      return super().apply_gradient(hyper_params, params, state, grads)
    leaves, treedef = jax.tree.flatten(params)
    new_leaves, new_states = self._apply_gradients(
      state.step,
      hyper_params,
      leaves,
      flatten_like(params, state.param_states, 'state'),
      flatten_like(params, grads, 'gradients'),
    )
    return treedef.unflatten(new_leaves), OptimizerState(
      state.step + 1, treedef.unflatten(new_states)
    )

  def to_optax(
    self, **hyper_param_overrides: Any
  ) -> optax.GradientTransformation:
    """Returns the optax transformation that this optimizer consists of.

    Args:
      **hyper_param_overrides: as for `apply_gradient`, for all steps.
        `learning_rate` may also be a schedule, a function of the step.

    Returns:
      A transformation for trees of parameters, with a state of optax's.

    Raises:
      AssertionError: there is no learning rate.
    """
    if self._overrides(
      'apply_gradient', 'apply_param_gradient', 'init_param_state'
    ):
      # A rule of the subclass's own, which the expression does not know.
      return super().to_optax(**hyper_param_overrides)
    hyper_params = self.update_hyper_params(**hyper_param_overrides)
    if not callable(hyper_params.learning_rate):
      _check_learning_rate(type(self).__name__, hyper_params.learning_rate)
    return self.transformation(hyper_params)

  def _overrides(self, *names: str) -> bool:
    return any(
      getattr(type(self), name) is not getattr(OptaxOptimizerDef, name)
      for name in names
    )

  def _apply_gradients(
    self,
    step: Any,
    hyper_params: Any,
    params: Sequence[Any],
    states: Sequence[Any],
    grads: Sequence[Any],
  ) -> tuple[list[Any], list[Any]]:
    """Applies the gradients of a list of parameters.

    Returns:
      The new parameters and the new states.
    """
    _check_learning_rate(type(self).__name__, hyper_params.learning_rate)
    transformation = self.transformation(hyper_params)
    names, treedef = names_of_leaves(transformation.init(jnp.zeros(())))
    fields = {name: field for field, name in self.optax_names.items()}
    optax_state = treedef.unflatten(
      [
        step if name == 'count' else self._transposed(fields[name], states)
        for name in names
      ]
    )
    params = tuple(map(_as_array, params))
    updates: Any
    updates, optax_state = transformation.update(
      tuple(map(_as_array if self.keeps_numpy else jnp.asarray, grads)),
      optax_state,
      params,
    )
    new = {
      fields[name]: leaves
      for name, leaves in zip(names, treedef.flatten_up_to(optax_state))
      if name != 'count'
    }
    new_states = [
      _replaced(state, {field: leaves[i] for field, leaves in new.items()})
      for i, state in enumerate(states)
    ]
    new_params = [
      _with_dtype_of(param, param + update)
      for param, update in zip(params, updates)
    ]
    return new_params, new_states

  def _transposed(self, field: str, states: Sequence[Any]) -> tuple[Any, ...]:
    leaves = tuple(getattr(state, field) for state in states)
    if any(leaf is None for leaf in leaves):
      raise ValueError(
        f'With the hyper-parameters of this step, {type(self).__name__} needs'
        f' {field} in its state, but it was created without: give what decides'
        ' about the state to the constructor, not to apply_gradient.'
      )
    return leaves


def _check_learning_rate(optimizer: str, learning_rate: Any) -> None:
  if learning_rate is None:
    raise AssertionError('no learning rate provided.')
  if callable(learning_rate):
    raise TypeError(
      f'The learning rate of {optimizer} is a function, not a number: write'
      ' optimizer.apply_gradient(grads,'
      ' learning_rate=schedule(optimizer.state.step)).'
    )


def names_of_leaves(optax_state: Any) -> tuple[list[str], Any]:
  """Returns the fields that hold the leaves of a state for one parameter."""
  leaves, treedef = jax.tree_util.tree_flatten_with_path(optax_state)
  return [path[-1].name for path, _ in leaves], treedef


def _replaced(state: Any, leaves: dict[str, Any]) -> Any:
  if not leaves:
    return state
  return state.replace(
    **{
      field: _with_dtype_of(getattr(state, field), leaf)
      for field, leaf in leaves.items()
    }
  )


def _as_array(x: Any) -> Any:
  return x if hasattr(x, 'dtype') else jnp.asarray(x)


def _with_dtype_of(old: Any, new: Any) -> Any:
  # JAX has no float64 unless it is told to; NumPy has.
  both_numpy = isinstance(old, np.ndarray) and not isinstance(new, jax.Array)
  dtype = old.dtype if both_numpy else jnp.result_type(old)
  # A step from an integer is seldom an integer.
  if not jnp.issubdtype(dtype, jnp.inexact):
    return new
  return new if new.dtype == dtype else new.astype(dtype)


def decayed_weights(weight_decay: Any) -> optax.GradientTransformation:
  """Adds decayed parameters to the updates, unless the rate is plainly 0.

  A rate that is an array, or traced, is used whatever its value is.
  """
  if isinstance(weight_decay, (int, float)) and weight_decay == 0:
    return optax.identity()
  return optax.add_decayed_weights(weight_decay)
