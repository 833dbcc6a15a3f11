"""Trees of parameters: those of one structure, and those that are equal."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from haiku_state.core.frozen_dict import FrozenDict, unfreeze


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


def comparable(tree: Any) -> Any:
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
