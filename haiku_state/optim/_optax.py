"""Optimizers that are one expression of optax.

An optimizer of Flax keeps one small state for each parameter (``grad_ema`` and
``grad_sq_ema``), and one step for all. A transformation of optax keeps a state
for the whole tree (``mu``, a tree; ``nu``, a tree; a count or more). The two are
brought together parameter by parameter: a parameter is a tree of one leaf, of
which the optax state has one leaf for each of Flax's fields. They are matched by
name, with Flax's step for every ``count``, so nothing depends on how an
expression nests its states.

Why not the whole tree at once: Flax's interface is one parameter at a time.
Subclasses override and call ``apply_param_gradient``, and ``MultiOptimizer`` and
``WeightNorm`` hand over parts of the tree. No expression used here looks across
parameters, so the numbers are the same.
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax

from haiku_state.optim._definition import OptimizerDef


class OptaxOptimizerDef(OptimizerDef):
  """A definition that is hyper-parameters plus an optax transformation.

  The updated parameter and its new state have the dtypes of the old ones,
  whatever the dtypes of gradient and hyper-parameters. (In Flax, float32
  gradients or a float32 array as learning rate made float32 parameters of
  bfloat16 ones.)

  Attributes:
    param_state: the class of the state of one parameter.
    optax_names: the name in the optax state of each field of ``param_state``.
      A field that the transformation does not have keeps its value.
  """

  param_state: ClassVar[Any] = tuple
  optax_names: ClassVar[dict[str, str]] = {}

  def transformation(
    self, hyper_params: Any
  ) -> optax.GradientTransformationExtraArgs:
    """It returns the optax expression of these hyper-parameters."""
    raise NotImplementedError

  def init_param_state(self, param: Any) -> Any:
    param = jnp.asarray(param)
    hyper_params = self.hyper_params
    # It is legal to give a learning rate only in the steps; no state needs it.
    if hyper_params.learning_rate is None:
      hyper_params = hyper_params.replace(learning_rate=0.0)
    optax_state = self.transformation(hyper_params).init(param)
    return self._with_leaves(self.param_state, optax_state)

  def apply_param_gradient(self, step, hyper_params, param, state, grad):
    _check_learning_rate(type(self).__name__, hyper_params.learning_rate)
    param = jnp.asarray(param)
    transformation = self.transformation(hyper_params)
    optax_state = self._to_optax_state(transformation.init(param), step, state)
    update, optax_state = transformation.update(grad, optax_state, param)
    new_state = self._with_leaves(
      lambda **leaves: _replace_leaves(state, leaves), optax_state
    )
    return optax.apply_updates(param, update), new_state

  def to_optax(
    self, **hyper_param_overrides: Any
  ) -> optax.GradientTransformation:
    """It returns the optax transformation that this optimizer consists of.

    Args:
      **hyper_param_overrides: as for ``apply_gradient``, for all steps.
        ``learning_rate`` may also be a schedule, a function of the step.

    Returns:
      A transformation for trees of parameters, with a state of optax's.

    Raises:
      AssertionError: there is no learning rate.
    """
    if any(
      getattr(type(self), name) is not getattr(OptaxOptimizerDef, name)
      for name in ('apply_gradient', 'apply_param_gradient', 'init_param_state')
    ):
      # A subclass has a rule of its own, which the expression does not know.
      return super().to_optax(**hyper_param_overrides)
    hyper_params = self.update_hyper_params(**hyper_param_overrides)
    if not callable(hyper_params.learning_rate):
      _check_learning_rate(type(self).__name__, hyper_params.learning_rate)
    return self.transformation(hyper_params)

  def _with_leaves(self, make: Any, optax_state: Any) -> Any:
    """It makes an object of the leaves that have names in Flax's state."""
    leaves = dict(_named_leaves(optax_state))
    return make(
      **{
        field: leaves[name]
        for field, name in self.optax_names.items()
        if name in leaves
      }
    )

  def _to_optax_state(self, template: Any, step: Any, state: Any) -> Any:
    """It puts step and state in the places of the template's leaves."""
    fields = {name: field for field, name in self.optax_names.items()}
    leaves = []
    for name, initial in _named_leaves(template):
      if name == 'count':
        leaves.append(step)
        continue
      field = fields[name]
      stored = getattr(state, field)
      if jnp.shape(stored) != initial.shape:
        raise ValueError(
          f'{type(self).__name__}: with the hyper-parameters of this step the'
          f' state has {field} of shape {initial.shape}, but the optimizer'
          f' was created with {_describe(stored)}. What decides about the state'
          ' must be given to the constructor, not to apply_gradient.'
        )
      leaves.append(stored)
    return jax.tree.structure(template).unflatten(leaves)


def _check_learning_rate(optimizer: str, learning_rate: Any) -> None:
  if learning_rate is None:
    raise AssertionError('no learning rate provided.')
  if callable(learning_rate):
    raise TypeError(
      f'The learning rate of {optimizer} is a function, not a number: write'
      ' optimizer.apply_gradient(grads,'
      ' learning_rate=schedule(optimizer.state.step)).'
    )


def _named_leaves(optax_state: Any) -> list[tuple[str, Any]]:
  """It returns each leaf with the name of the field that holds it."""
  leaves = jax.tree_util.tree_leaves_with_path(optax_state)
  return [(path[-1].name, leaf) for path, leaf in leaves]


def _replace_leaves(state: Any, leaves: dict[str, Any]) -> Any:
  """It replaces fields of a state; each keeps its dtype."""
  if not leaves:
    return state
  return state.replace(
    **{
      field: jnp.asarray(leaf, jnp.result_type(getattr(state, field)))
      for field, leaf in leaves.items()
    }
  )


def _describe(stored: Any) -> str:
  return 'none' if stored is None else f'shape {jnp.shape(stored)}'


def decayed_weights(weight_decay: Any) -> optax.GradientTransformation:
  """It adds decayed parameters to the updates, unless the rate is plainly 0.

  A rate that is an array, or traced, is used whatever its value is.
  """
  if isinstance(weight_decay, (int, float)) and weight_decay == 0:
    return optax.identity()
  return optax.add_decayed_weights(weight_decay)
