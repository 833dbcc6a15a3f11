"""What a training step takes and returns."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import optax

from haiku_state import struct
from haiku_state.core.frozen_dict import FrozenDict, unfreeze

# The collection of `linen.fp8_ops` whose new values come in place of
# gradients. Named here, too, so that a train state needs no layers.
OVERWRITE_WITH_GRADIENT = '_overwrite_with_gradient'

_State = TypeVar('_State', bound='TrainState')


class TrainState(struct.PyTreeNode):
  """Holds the step, the parameters and the optimizer's state.

  It serves the usual case of one optax optimizer, and any model. For more,
  such as batch statistics, derive a class with further fields, and pass their
  new values to `apply_gradients`.

  Args:
    step: how many updates there were; an int or an integer array [].
    apply_fn: the model's function, mostly `model.apply`. Not a leaf.
    params: the parameters: a pytree, mostly a FrozenDict or dict.
    tx: the optimizer, an optax gradient transformation. Not a leaf.
    opt_state: the optimizer's state.

  Example:
    >>> import jax, jax.numpy as jnp, optax
    >>> from haiku_state.training.train_state import TrainState
    >>> state = TrainState.create(
    ...   apply_fn=lambda params, x: params['w'] * x,
    ...   params={'w': jnp.ones(())},
    ...   tx=optax.sgd(0.25))
    >>> loss = lambda params: (state.apply_fn(params, 3.0) - 1.0) ** 2
    >>> state = state.apply_gradients(grads=jax.grad(loss)(state.params))
    >>> print(state.step, state.params['w'])
    1 -2.0
  """

  step: int | jax.Array
  apply_fn: Callable[..., Any] = struct.field(pytree_node=False)
  params: Any = struct.field(pytree_node=True)
  tx: optax.GradientTransformation = struct.field(pytree_node=False)
  opt_state: optax.OptState = struct.field(pytree_node=True)

  def apply_gradients(self: _State, *, grads: Any, **kwargs: Any) -> _State:
    """Takes one step of the optimizer.

    Args:
      grads: the gradients, a pytree of the structure of `params`. Where the
        one has a FrozenDict the other may have a dict.
      **kwargs: new values of other fields.

    Returns:
      The next state. If `grads` has the collection `_overwrite_with_gradient`,
      the parameters are the optimizer's update of the collection `params`, and
      that collection as it is in `grads`.
    """
    if not _has_overwrites(grads):
      params, opt_state = self._update(self.params, grads)
    else:
      trained, opt_state = self._update(self.params['params'], grads['params'])
      params = {
        'params': trained,
        OVERWRITE_WITH_GRADIENT: grads[OVERWRITE_WITH_GRADIENT],
      }
      params = _in_containers_of(self.params, params)
    return self.replace(
      step=self.step + 1, params=params, opt_state=opt_state, **kwargs
    )

  def _update(self, params: Any, grads: Any) -> tuple[Any, Any]:
    grads = _in_containers_of(params, grads)
    updates, opt_state = self.tx.update(grads, self.opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  @classmethod
  def create(
    cls: type[_State],
    *,
    apply_fn: Callable[..., Any],
    params: Any,
    tx: optax.GradientTransformation,
    **kwargs: Any,
  ) -> _State:
    """Makes the state at step 0.

    Args:
      apply_fn: the model's function.
      params: the parameters. If they have the collection
        `_overwrite_with_gradient`, the optimizer gets the collection `params`.
      tx: the optimizer.
      **kwargs: values of fields of a derived class.

    Returns:
      The state.
    """
    trained = params['params'] if _has_overwrites(params) else params
    return cls(
      step=0,
      apply_fn=apply_fn,
      params=params,
      tx=tx,
      opt_state=tx.init(trained),
      **kwargs,
    )


def _has_overwrites(tree):
  return isinstance(tree, Mapping) and OVERWRITE_WITH_GRADIENT in tree


def _in_containers_of(like, tree):
  """Makes FrozenDicts dicts, and the reverse, as they are in `like`.

  A tree that differs in more is left as it is: optax will say in what.
  """
  structure = jax.tree.structure(like)
  if jax.tree.structure(tree) == structure:
    return tree
  leaves, plain = jax.tree.flatten(_thawed(tree))
  if plain != jax.tree.structure(_thawed(like)):
    return tree
  # Both kinds sort their keys, so the leaves are in one order.
  return jax.tree.unflatten(structure, leaves)


def _thawed(tree):
  return jax.tree.map(
    lambda x: _thawed(unfreeze(x)) if isinstance(x, FrozenDict) else x,
    tree,
    is_leaf=lambda x: isinstance(x, FrozenDict),
  )
