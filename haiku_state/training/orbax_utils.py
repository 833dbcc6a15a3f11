"""Arguments for Orbax, made from the pytree that is saved or restored.

Orbax comes with the extra: `pip install '.[checkpoint]'`.
"""

import warnings
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from haiku_state.training._orbax import import_orbax

PyTree = Any


def is_multi_device_array(value: Any) -> bool:
  """Says whether `value` is an array whose parts differ by device."""
  return isinstance(value, jax.Array) and not value.is_fully_replicated


def save_args_from_target(target: Any) -> Any:
  """Makes Orbax's default `SaveArgs` for each leaf of `target`.

  Raises:
    ImportError: Orbax is not installed.
  """
  ocp = import_orbax()
  return jax.tree.map(lambda _: ocp.SaveArgs(), target)


def maybe_construct_transformations(target: Any, transforms: Any | None) -> Any:
  """Makes the transformations that let a target's None stay None.

  Args:
    target: the pytree that will be restored.
    transforms: transformations of the caller, which then are used instead.

  Returns:
    `transforms`, or a dict from the path (joined by '/') of each None in
    `target` to a transformation that takes it from `target`.

  Raises:
    ImportError: Orbax is not installed.
  """
  if transforms is not None:
    return transforms
  ocp = import_orbax()
  leaves = ocp.utils.to_flat_dict(target, sep='/', keep_empty_nodes=True)
  return {
    path: ocp.Transform(use_fallback=True)
    for path, leaf in leaves.items()
    if leaf is None
  }


def restore_args_from_target(target: Any, mesh: Mesh | None = None) -> Any:
  """Makes Orbax's restore arguments from a target.

  Args:
    target: a pytree of the checkpoint's structure. Where it has JAX arrays the
      restored ones are put on the same devices.
    mesh: deprecated. Where given, arrays are placed on this mesh by the
      partition specs of the target's arrays.

  Returns:
    A pytree of `RestoreArgs`. If no leaf has a sharding, each asks for numpy
    arrays.

  Raises:
    ImportError: Orbax is not installed.
  """
  ocp = import_orbax()
  shardings = jax.tree.map(lambda x: getattr(x, 'sharding', None), target)
  if not any(jax.tree.leaves(shardings)):
    return jax.tree.map(
      lambda _: ocp.RestoreArgs(restore_type=np.ndarray), target
    )
  if mesh is not None:
    warnings.warn(
      'restore_args_from_target(): `mesh` arg is deprecated. Simply'
      ' calling the function with target pytree should suffice.',
      DeprecationWarning,
      stacklevel=2,
    )
    shardings = jax.tree.map(
      lambda s: jax.sharding.NamedSharding(mesh, s.spec), shardings
    )
  return ocp.checkpoint_utils.construct_restore_args(
    target, shardings, set_global_shape=False
  )
