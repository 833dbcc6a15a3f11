"""A definition together with what it optimizes: the object programs carry."""

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar, overload

import jax
import jax.numpy as jnp

from haiku_state import serialization, struct
from haiku_state.optim._definition import OptimizerDef, OptimizerState

T = TypeVar('T')
Loss = TypeVar('Loss')
Aux = TypeVar('Aux')


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
