"""What an optimizer is: hyper-parameters, and a rule for one parameter."""

from typing import TYPE_CHECKING, Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from haiku_state import serialization, struct
from haiku_state.core.frozen_dict import FrozenDict, unfreeze

if TYPE_CHECKING:
  from haiku_state.optim import base

T = TypeVar('T')


@struct.dataclass
class OptimizerState:
  """The state of an optimizer.

  Attributes:
    step: an int32 scalar, the number of gradients applied.
    param_states: a tree like the target, with the state of the parameter in the
      place of each parameter.
  """

  step: Any
  param_states: Any


class OptimizerDef:
  """The definition of an optimizer, and the base class of all.

  A subclass overrides `init_param_state` and `apply_param_gradient`, which
  see one parameter each. `create` makes an `Optimizer` of the definition
  and parameters; programs then use that.

  Definitions are values: two are equal if they are of one class and have equal
  attributes. Numbers are compared with their types, arrays by dtype and
  contents, and values that are being traced by identity. So a definition that is
  made anew in each step does not make `jax.jit` trace again. (In Flax, each
  definition was equal to itself only.)

  >>> import jax.numpy as jnp
  >>> from haiku_state import optim, struct
  >>> @struct.dataclass
  ... class SignHyperParams:
  ...   learning_rate: float
  >>> class SignDescent(optim.OptimizerDef):
  ...   def __init__(self, learning_rate=None):
  ...     super().__init__(SignHyperParams(learning_rate))
  ...   def init_param_state(self, param):
  ...     return ()
  ...   def apply_param_gradient(self, step, hyper_params, param, state, grad):
  ...     return param - hyper_params.learning_rate * jnp.sign(grad), state
  >>> optimizer = SignDescent(0.5).create({'w': jnp.ones(2)})
  >>> optimizer.apply_gradient({'w': jnp.array([3.0, -1.0])}).target
  {'w': Array([0.5, 1.5], dtype=float32)}
  >>> SignDescent(0.5) == SignDescent(0.5)
  True
  """

  def __init__(self, hyper_params: Any):
    """Keeps the hyper-parameters.

    Args:
      hyper_params: an instance of a `struct.dataclass`, whose fields may be
        overridden in each step.
    """
    self.hyper_params = hyper_params

  def init_param_state(self, param: Any) -> Any:
    """Returns the initial state for one parameter.

    Args:
      param: an array.

    Returns:
      A pytree; `()` if there is nothing to remember.
    """
    raise NotImplementedError(
      f'{type(self).__name__} does not define init_param_state(param)'
    )

  def apply_param_gradient(
    self, step: Any, hyper_params: Any, param: Any, state: Any, grad: Any
  ) -> tuple[Any, Any]:
    """Applies the gradient of one parameter.

    Args:
      step: an int32 scalar, 0 for the first gradient.
      hyper_params: the hyper-parameters of this step.
      param: the parameter, an array.
      state: its state, as `init_param_state` returned it.
      grad: its gradient, an array.

    Returns:
      The new parameter and its new state.
    """
    raise NotImplementedError(
      f'{type(self).__name__} does not define apply_param_gradient(step,'
      ' hyper_params, param, state, grad)'
    )

  def init_state(self, params: Any) -> OptimizerState:
    """Returns the state before the first gradient of a tree of parameters."""
    param_states = jax.tree.map(self.init_param_state, params)
    return OptimizerState(jnp.zeros((), jnp.int32), param_states)

  def apply_gradient(
    self, hyper_params: Any, params: Any, state: OptimizerState, grads: Any
  ) -> tuple[Any, OptimizerState]:
    """Applies the gradients of a tree of parameters.

    Args:
      hyper_params: the hyper-parameters of this step.
      params: a tree of arrays.
      state: its state.
      grads: a tree like `params`, but for FrozenDicts in place of dicts, or
        dicts in place of FrozenDicts.

    Returns:
      The new parameters, in the containers of `params`, and the new state.
    """
    leaves, treedef = jax.tree.flatten(params)
    updated = [
      self.apply_param_gradient(state.step, hyper_params, param, s, grad)
      for param, s, grad in zip(
        leaves,
        flatten_like(params, state.param_states, 'state'),
        flatten_like(params, grads, 'gradients'),
      )
    ]
    return (
      treedef.unflatten([param for param, _ in updated]),
      OptimizerState(
        state.step + 1, treedef.unflatten([new for _, new in updated])
      ),
    )

  def update_hyper_params(self, **hyper_param_overrides: Any) -> Any:
    """Returns the hyper-parameters of one step.

    Args:
      **hyper_param_overrides: values for some of the hyper-parameters; or
        `hyper_params=` for all of them.

    Returns:
      An object of the kind of `hyper_params`.

    Raises:
      TypeError: there is no hyper-parameter of that name.
    """
    hyper_params = hyper_param_overrides.pop('hyper_params', self.hyper_params)
    if not hyper_param_overrides:
      return hyper_params
    try:
      return hyper_params.replace(**hyper_param_overrides)
    except TypeError as error:
      names = ', '.join(vars(hyper_params))
      raise TypeError(
        f'{error}: the hyper-parameters of {type(self).__name__} are {names}.'
      ) from None

  def create(self, target: T, focus: Any = None) -> 'base.Optimizer[T]':
    """Makes an optimizer for a target.

    Args:
      target: a tree of arrays to be optimized, in any containers.
      focus: a `traverse_util.Traversal` that selects the leaves to be
        optimized; the others stay as they are. All of them without it.

    Returns:
      An `Optimizer`.
    """
    # These two are defined in terms of this class.
    from haiku_state.optim import base

    definition = self if focus is None else base.MultiOptimizer((focus, self))
    return base.Optimizer(definition, definition.init_state(target), target)

  def to_optax(
    self, **hyper_param_overrides: Any
  ) -> optax.GradientTransformation:
    """Returns this optimizer as an optax transformation.

    Args:
      **hyper_param_overrides: as for `apply_gradient`, for all steps.

    Returns:
      A transformation whose updates are the differences of new and old
      parameters, and whose state is an `OptimizerState`. The optimizers of
      this package return the expression of optax that they consist of instead.
    """
    hyper_params = self.update_hyper_params(**hyper_param_overrides)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
      if params is None:
        raise ValueError(
          f'{type(self).__name__} needs the parameters: write'
          ' update(grads, state, params)'
        )
      new_params, state = self.apply_gradient(
        hyper_params, params, state, updates
      )
      return jax.tree.map(jnp.subtract, new_params, params), state

    init: Any = self.init_state
    return optax.GradientTransformation(init, update)

  def state_dict(self, target: Any, state: OptimizerState) -> dict[str, Any]:
    """Returns `{'target': ..., 'state': ...}` with nested state dicts."""
    return serialization.to_state_dict({'target': target, 'state': state})

  def restore_state(
    self, opt_target: Any, opt_state: OptimizerState, state_dict: Any
  ) -> tuple[Any, OptimizerState]:
    """Returns target and state with the values of a state dict.

    Args:
      opt_target: a target with the structure of the result.
      opt_state: a state with the structure of the result.
      state_dict: what `state_dict` returned, here or in Flax.

    Raises:
      KeyError: the state dict has no `target` or no `state`.
      ValueError: names or sizes differ.
    """
    for part in ('target', 'state'):
      if part not in state_dict:
        raise KeyError(
          f'The state dict of an optimizer has the names "target" and "state";'
          f' here "{part}" is missing among {sorted(state_dict)}. Pass what'
          ' `state_dict` returned, whole.'
        )
    restored = serialization.from_state_dict(
      {'target': opt_target, 'state': opt_state}, state_dict, name='optimizer'
    )
    return restored['target'], restored['state']

  def __repr__(self) -> str:
    name = type(self).__name__
    return f'{name}({getattr(self, "hyper_params", None)})'

  def __eq__(self, other: Any) -> bool:
    if self is other:
      return True
    if type(self) is not type(other):
      return NotImplemented
    return _value(vars(self)) == _value(vars(other))

  def __hash__(self) -> int:
    return hash((type(self), _value(vars(self))))


def flatten_like(params: Any, tree: Any, what: str) -> list[Any]:
  """Returns the parts of a tree that stand where parameters stand.

  Args:
    params: a tree of parameters.
    tree: a tree like it, with anything in the place of the parameters;
      FrozenDicts and dicts count as the same.
    what: the name of the tree in the error message.

  Returns:
    A list, in the order of `jax.tree.leaves(params)`.

  Raises:
    ValueError: the tree is of another structure.
  """
  try:
    return jax.tree.structure(params).flatten_up_to(tree)
  except ValueError:
    pass
  try:
    return jax.tree.structure(_unfrozen(params)).flatten_up_to(_unfrozen(tree))
  except ValueError as error:
    raise ValueError(
      f'The {what} must have the structure of the target: {error}'
    ) from None


def _unfrozen(tree: Any) -> Any:
  """Replaces FrozenDicts by dicts, also those inside other containers."""
  return jax.tree.map(
    lambda x: _unfrozen(unfreeze(x)) if isinstance(x, FrozenDict) else x,
    tree,
    is_leaf=lambda x: isinstance(x, FrozenDict),
  )


def _value(tree: Any) -> Any:
  """Returns something that is equal, and has equal hash, for equal trees."""
  leaves, treedef = jax.tree.flatten(tree)
  return treedef, tuple(map(_leaf_value, leaves))


def _leaf_value(x: Any) -> Any:
  if _is_array_with_value(x):
    value = np.asarray(x)
    return type(x), value.shape, str(value.dtype), value.tobytes()
  if isinstance(x, Tracer) or not _has_hash(x):
    # The definition keeps it alive, so nothing else has this number while the
    # two are compared.
    return type(x), id(x)
  return type(x), x


def _has_hash(x: Any) -> bool:
  try:
    hash(x)
  except TypeError:
    return False
  return True


def _is_array_with_value(x: Any) -> bool:
  if isinstance(x, jax.Array):
    return (
      not isinstance(x, Tracer)
      and x.is_fully_addressable
      and not jnp.issubdtype(x.dtype, jax.dtypes.extended)
    )
  return isinstance(x, (np.ndarray, np.generic))
