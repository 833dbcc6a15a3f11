"""The classes that all optimizers share: what each is, and what it is of.

An `OptimizerDef` is hyper-parameters and a rule for one parameter. It makes an
`Optimizer`, the object that programs carry: a definition with its target and
state. A `MultiOptimizer` is a definition that consists of others.
"""

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar, overload

import jax
import jax.numpy as jnp
import optax

from haiku_state import serialization, struct, traverse_util
from haiku_state.optim._trees import comparable, flatten_like
from haiku_state.traverse_util import ModelParamTraversal

__all__ = [
  'ModelParamTraversal',
  'MultiOptimizer',
  'Optimizer',
  'OptimizerDef',
  'OptimizerState',
  'ReplicatedOptimizer',
]

T = TypeVar('T')
Loss = TypeVar('Loss')
Aux = TypeVar('Aux')


@struct.dataclass
class OptimizerState:
  """The state of an optimizer.

  >>> import jax.numpy as jnp
  >>> from haiku_state import optim
  >>> optimizer = optim.Momentum(learning_rate=0.1).create({'w': jnp.ones(3)})
  >>> optimizer = optimizer.apply_gradient({'w': jnp.ones(3)})
  >>> int(optimizer.state.step), optimizer.state.param_states['w'].momentum
  (1, Array([1., 1., 1.], dtype=float32))

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

  def create(self, target: T, focus: Any = None) -> 'Optimizer[T]':
    """Makes an optimizer for a target.

    Args:
      target: a tree of arrays to be optimized, in any containers.
      focus: a `traverse_util.Traversal` that selects the leaves to be
        optimized; the others stay as they are. All of them without it.

    Returns:
      An `Optimizer`.
    """
    definition = self if focus is None else MultiOptimizer((focus, self))
    return Optimizer(definition, definition.init_state(target), target)

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
    return comparable(vars(self)) == comparable(vars(other))

  def __hash__(self) -> int:
    return hash((type(self), comparable(vars(self))))


class Optimizer(struct.PyTreeNode, Generic[T]):
  """A target, the state of its optimizer, and the optimizer's definition.

  It is immutable: `apply_gradient` returns a new one. It is a pytree with the
  children `state` and `target`, so it goes through `jax.jit`, `jax.vmap`
  and `jax.pmap`, and `haiku_state.serialization` can save it.

  Attributes:
    optimizer_def: the definition, which is static.
    state: an `OptimizerState`.
    target: the tree of arrays that is optimized.

  >>> import jax
  >>> from haiku_state import optim
  >>> optimizer = optim.GradientDescent(learning_rate=0.1).create({'w': 3.0})
  >>> grads = jax.grad(lambda params: params['w'] ** 2)(optimizer.target)
  >>> optimizer = optimizer.apply_gradient(grads)
  >>> round(float(optimizer.target['w']), 6), int(optimizer.state.step)
  (2.4, 1)
  """

  optimizer_def: OptimizerDef = struct.field(pytree_node=False)
  state: Any = struct.field(pytree_node=True)
  target: T = struct.field(pytree_node=True)

  def apply_gradient(
    self, grads: Any, **hyper_param_overrides: Any
  ) -> 'Optimizer[T]':
    """Returns the optimizer after one step.

    Args:
      grads: a tree of gradients like the target. A dict may stand for a
        FrozenDict and the other way round; the target keeps its containers.
      **hyper_param_overrides: hyper-parameters for this step alone, such as
        `learning_rate=schedule(optimizer.state.step)`; they may be traced.
        `hyper_params=` replaces all of them.

    Returns:
      A new optimizer.

    Raises:
      AssertionError: neither the definition nor the step has a learning rate.
      TypeError: there is no hyper-parameter of that name.
      ValueError: the gradients have another structure than the target.
    """
    definition = self.optimizer_def
    target, state = definition.apply_gradient(
      definition.update_hyper_params(**hyper_param_overrides),
      self.target,
      self.state,
      grads,
    )
    return self.replace(target=target, state=state)

  @overload
  def compute_gradient(
    self, loss_fn: Callable[[T], tuple[Loss, Aux]]
  ) -> tuple[Loss, Aux, T]: ...

  @overload
  def compute_gradient(
    self, loss_fn: Callable[[T], Loss]
  ) -> tuple[Loss, T]: ...

  def compute_gradient(self, loss_fn: Any) -> tuple[Any, ...]:
    """Computes a loss and its gradient; like `jax.value_and_grad`.

    Args:
      loss_fn: a function of the target that returns the loss, or a pair of
        the loss and anything else.

    Returns:
      `(loss, grad)`, or `(loss, aux, grad)`.

    >>> from haiku_state import optim
    >>> optimizer = optim.GradientDescent(0.1).create(3.0)
    >>> loss, grad = optimizer.compute_gradient(lambda w: w**2)
    >>> float(loss), float(grad)
    (9.0, 6.0)
    """

    def loss_and_aux(target):
      result = loss_fn(target)
      # Whether there is aux is known only here, where the loss is traced.
      loss, *aux = result if isinstance(result, (tuple, list)) else (result,)
      return loss, tuple(aux)

    (loss, aux), grad = jax.value_and_grad(loss_and_aux, has_aux=True)(
      self.target
    )
    return (loss, *aux, grad)

  compute_gradients = compute_gradient

  @overload
  def optimize(
    self,
    loss_fn: Callable[[T], tuple[Loss, Aux]],
    **hyper_param_overrides: Any,
  ) -> 'tuple[Optimizer[T], Loss, Aux]': ...

  @overload
  def optimize(
    self, loss_fn: Callable[[T], Loss], **hyper_param_overrides: Any
  ) -> 'tuple[Optimizer[T], Loss]': ...

  def optimize(
    self, loss_fn: Any, **hyper_param_overrides: Any
  ) -> tuple[Any, ...]:
    """Computes the gradient of a loss and applies it.

    Args:
      loss_fn: as for `compute_gradient`.
      **hyper_param_overrides: as for `apply_gradient`.

    Returns:
      `(optimizer, loss)`, or `(optimizer, loss, aux)`.
    """
    *loss_and_aux, grad = self.compute_gradient(loss_fn)
    return (self.apply_gradient(grad, **hyper_param_overrides), *loss_and_aux)

  def replicate(
    self, devices: Sequence[Any] | None = None, axis_name: str = 'batch'
  ) -> 'Optimizer[T]':
    """Copies the optimizer to several devices, for use under `jax.pmap`.

    The copy averages the gradients over the devices in `apply_gradient`, which
    must be called in a `jax.pmap` with this `axis_name`. Its state dict is
    that of one device.

    Args:
      devices: the devices; all that are local without it.
      axis_name: the name of the axis of devices.

    Returns:
      An optimizer whose arrays have a leading axis of devices.
    """
    definition = ReplicatedOptimizer(self.optimizer_def, devices, axis_name)
    optimizer = _replicate(self, definition.devices)
    return optimizer.replace(optimizer_def=definition)

  def unreplicate(self) -> 'Optimizer[T]':
    """Returns the optimizer of the first device.

    Raises:
      ValueError: the optimizer was not made by `replicate`.
    """
    definition = self.optimizer_def
    if not isinstance(definition, ReplicatedOptimizer):
      raise ValueError(
        'Cannot unreplicate an optimizer that is not replicated.'
      )
    return _unreplicate(self).replace(optimizer_def=definition.optimizer_def)

  def state_dict(self) -> dict[str, Any]:
    """Returns `{'target': ..., 'state': ...}`, in Flax's layout."""
    return self.optimizer_def.state_dict(self.target, self.state)

  def restore_state(self, state: Any) -> 'Optimizer[T]':
    """Returns the optimizer with the values of a state dict.

    Args:
      state: what `state_dict` returned, here or in Flax.

    Raises:
      ValueError: names or sizes differ from this optimizer's.
    """
    target, state = self.optimizer_def.restore_state(
      self.target, self.state, state
    )
    return self.replace(target=target, state=state)


# Through the methods, so that a definition may say how its state is written.
serialization.register_serialization_state(
  Optimizer, Optimizer.state_dict, Optimizer.restore_state, override=True
)


class ReplicatedOptimizer(OptimizerDef):
  """Averages gradients over devices and leaves the rest to another definition.

  `Optimizer.replicate` makes it.
  """

  def __init__(
    self,
    optimizer_def: OptimizerDef,
    devices: Sequence[Any] | None = None,
    axis_name: str = 'batch',
  ):
    super().__init__(optimizer_def.hyper_params)
    self.optimizer_def = optimizer_def
    self.devices = list(jax.local_devices() if devices is None else devices)
    self.axis_name = axis_name

  def init_state(self, params: Any) -> OptimizerState:
    return self.optimizer_def.init_state(params)

  def apply_gradient(self, hyper_params, params, state, grads):
    grads = jax.lax.pmean(grads, self.axis_name)
    return self.optimizer_def.apply_gradient(hyper_params, params, state, grads)

  def update_hyper_params(self, **hyper_param_overrides: Any) -> Any:
    return self.optimizer_def.update_hyper_params(**hyper_param_overrides)

  def state_dict(self, target, state):
    # All devices hold the same.
    return _unreplicate(self.optimizer_def.state_dict(target, state))

  def restore_state(self, opt_target, opt_state, state_dict):
    target, state = self.optimizer_def.restore_state(
      opt_target, opt_state, state_dict
    )
    return _replicate((target, state), self.devices)


def _replicate(tree: Any, devices: Sequence[Any]) -> Any:
  mesh = jax.sharding.Mesh(list(devices), ('device',))
  spec = jax.sharding.PartitionSpec('device')
  sharding = jax.sharding.NamedSharding(mesh, spec)
  return jax.tree.map(
    lambda x: jax.device_put(jnp.stack([x] * len(devices)), sharding), tree
  )


def _unreplicate(tree: Any) -> Any:
  return jax.tree.map(lambda x: x[0], tree)


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
