"""Shardings in logical names: one set of names per model, rules per machine.

A model names the axes of its arrays for what they are ('batch', 'embed'). Rules
say along which axes of the mesh each lies, and can differ from run to run. They
are set by `logical_axis_rules`, or passed.
"""

import collections
import enum
import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
from jax.sharding import NamedSharding, PartitionSpec

from haiku_state import struct
from haiku_state.core import _specs, meta
from haiku_state.core._initializers import as_linen
from haiku_state.core.spmd import get_logical_axis_rules
from haiku_state.typing import (
  Array,
  ArrayPytree,
  LogicalNames,
  LogicalPartitionSpec,
  LogicalPartitionSpecPytree,
  LogicalRules,
)

_A = TypeVar('_A')


class _Unassigned:
  """The place of a logical name for which no rule has been found."""

  def __repr__(self):
    return 'UnassignedAxis'

  def __bool__(self):
    return False


_UNASSIGNED = _Unassigned()


def logical_to_mesh_axes(
  array_dim_names: Sequence[str | None] | None,
  rules: LogicalRules | None = None,
) -> PartitionSpec | None:
  """Finds the mesh axes for the logical names of an array's axes.

  Rules are tried in order. One applies if its name is among the array's, that
  axis has no mesh axis yet, and the array does not lie along the mesh axis
  already. A name may have several rules: the later ones are for when the
  earlier cannot apply.

  Args:
    array_dim_names: a name or None for each axis of the array.
    rules: pairs of logical name and mesh axis; if None, the thread's.

  Returns:
    The mesh axes, None for a name to which no rule applied; or None for None.

  Raises:
    ValueError: a name occurs twice, or the rules are no list or tuple.

  Example:
    >>> from haiku_state.linen.spmd import logical_to_mesh_axes
    >>> rules = [('batch', 'x'), ('embed', 'x'), ('heads', 'y'), ('batch', 'z')]
    >>> tuple(logical_to_mesh_axes(('batch', 'length', 'heads', 'embed'), rules))
    ('x', None, 'y', None)
  """
  axes = _assign_axes(array_dim_names, rules)
  return None if axes is None else _spec_of(axes)


def _assign_axes(names, rules) -> list[Any] | None:
  """Does `logical_to_mesh_axes`, and marks names that found no rule."""
  if names is None:
    return None
  if rules is None:
    rules = get_logical_axis_rules()
  _check_unique(names)
  if not isinstance(rules, (tuple, list)):
    raise ValueError('Unknown axis rule specification type.')
  # None and UNCONSTRAINED are no names; they stay as they are.
  axes = [_UNASSIGNED if isinstance(name, str) else name for name in names]
  for name, mesh_axis in rules:
    if name not in names:
      continue
    i = names.index(name)
    if axes[i] is _UNASSIGNED and _is_free(mesh_axis, axes):
      axes[i] = mesh_axis
  return axes


def _check_unique(names):
  counts = collections.Counter(name for name in names if isinstance(name, str))
  repeated = tuple(name for name, count in counts.items() if count > 1)
  if repeated:
    raise ValueError(
      f'Unsupported: Dimensions {repeated} occur more than once in array names.'
    )


def _is_free(mesh_axis, axes):
  wanted = set(jax.tree.leaves(mesh_axis)) - {PartitionSpec.UNCONSTRAINED}
  return wanted.isdisjoint(jax.tree.leaves(axes))


def _spec_of(axes):
  return PartitionSpec(*(None if a is _UNASSIGNED else a for a in axes))


def _is_spec(x):
  return isinstance(x, PartitionSpec)


def logical_to_mesh(tree: Any, rules: LogicalRules | None = None) -> Any:
  """Finds the mesh axes for each PartitionSpec of logical names in a tree.

  >>> import jax
  >>> import haiku_state.linen as nn
  >>> specs = {'kernel': jax.sharding.PartitionSpec('embed', 'heads')}
  >>> rules = [('embed', None), ('heads', 'model')]
  >>> tuple(nn.logical_to_mesh(specs, rules)['kernel'])
  (None, 'model')

  Args:
    tree: a pytree of specs, such as `nn.get_partition_spec` returns.
    rules: pairs of logical name and mesh axis; if None, the thread's.

  Returns:
    The tree with specs of mesh axes.
  """
  return jax.tree_util.tree_map(
    lambda spec: logical_to_mesh_axes(spec, rules), tree, is_leaf=_is_spec
  )


def logical_to_mesh_sharding(
  tree: Any,
  mesh: jax.sharding.Mesh,
  rules: LogicalRules | None = None,
  *,
  strict: bool = False,
) -> Any:
  """Finds the sharding for each PartitionSpec of logical names in a tree.

  A name that has no rule is told, by a warning or an error: its axis would be
  whole on every device, be it ever so large. The rule `(name, None)` says that
  it is to be so.

  >>> import jax
  >>> import haiku_state.linen as nn
  >>> mesh = jax.sharding.Mesh(jax.devices()[:1], ('model',))
  >>> specs = {'kernel': jax.sharding.PartitionSpec('embed', 'heads')}
  >>> rules = [('embed', None), ('heads', 'model')]
  >>> tuple(nn.logical_to_mesh_sharding(specs, mesh, rules)['kernel'].spec)
  (None, 'model')

  Args:
    tree: a pytree of specs, such as `nn.get_partition_spec` returns.
    mesh: the mesh.
    rules: pairs of logical name and mesh axis; if None, the thread's.
    strict: whether a name without a rule is an error.

  Returns:
    The tree with NamedShardings over the mesh.

  Raises:
    ValueError: a name has no rule, and `strict` is true.

  Example:
    >>> import jax
    >>> import haiku_state.linen as nn
    >>> mesh = jax.sharding.Mesh(jax.devices()[:1], ('data',))
    >>> specs = {'kernel': jax.sharding.PartitionSpec('embed', 'mlp')}
    >>> nn.logical_to_mesh_sharding(
    ...   specs, mesh, [('embed', 'data')], strict=True)
    Traceback (most recent call last):
    ValueError: No rule for the logical name 'mlp' of ['kernel']...
  """
  rules = get_logical_axis_rules() if rules is None else rules
  specs = logical_to_mesh(tree, rules)
  missing = _without_rule(tree, rules)
  if missing and strict:
    raise ValueError(missing)
  if missing:
    # Python shows the same warning of the same line once.
    warnings.warn(missing, stacklevel=2)
  return jax.tree_util.tree_map(
    lambda spec: NamedSharding(mesh, spec), specs, is_leaf=_is_spec
  )


def _without_rule(tree: Any, rules: LogicalRules) -> str | None:
  """Returns what to say of names in a tree that have no rule."""
  known = {name for name, _ in rules}
  found: dict[str, list[str]] = {}
  specs = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_spec)[0]
  for path, spec in specs:
    for name in spec if _is_spec(spec) else ():
      if isinstance(name, str) and name not in known:
        found.setdefault(name, []).append(jax.tree_util.keystr(path))
  if not found:
    return None
  names = '; '.join(
    f'{name!r} of {_listed(places)}' for name, places in found.items()
  )
  first = next(iter(found))
  return (
    f'No rule for the logical name {names}: such an axis is whole on every'
    f' device. The rules are {list(rules)!r}. Add ({first!r}, axis) with an axis'
    f' of the mesh, or ({first!r}, None) if it is to be whole.'
  )


def _listed(places: list[str], shown: int = 3) -> str:
  more = f' and {len(places) - shown} more' if len(places) > shown else ''
  return ', '.join(places[:shown]) + more


class RulesFallback(enum.Enum):
  """Says what a constraint does with a name to which no rule applies."""

  AXIS_IS_UNSHARDED = 'axis_is_unsharded'
  RAISE_ERROR = 'raise_error'
  NO_CONSTRAINT = 'no_constraint'


def with_logical_constraint(
  x: ArrayPytree,
  logical_axis_resources: LogicalPartitionSpecPytree,
  rules: LogicalRules | None = None,
  mesh: jax.sharding.Mesh | None = None,
  fallback: RulesFallback = RulesFallback.AXIS_IS_UNSHARDED,
) -> ArrayPytree:
  """Constrains the sharding of arrays, by the logical names of their axes.

  Without rules, or without a mesh, nothing happens.

  Args:
    x: a pytree of arrays.
    logical_axis_resources: a tuple or PartitionSpec of names for each array; in
      a tree, None for one that is whole on every device.
    rules: pairs of logical name and mesh axis; if None, the thread's.
    mesh: the mesh; if None, the one set by `jax.set_mesh`.
    fallback: what to do with a name to which no rule applies: take its axis as
      whole on every device, raise, or leave the whole array alone.

  Returns:
    The tree of arrays.

  Raises:
    ValueError: no rule applies to a name, and `fallback` is `RAISE_ERROR`.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> import haiku_state.linen as nn
    >>> mesh = jax.sharding.Mesh(jax.devices()[:1], ('data',))
    >>> def constrain(x):
    ...   with nn.logical_axis_rules([('batch', 'data')]):
    ...     return nn.with_logical_constraint(x, ('batch',), mesh=mesh)
    >>> 'sharding_constraint' in str(jax.make_jaxpr(constrain)(jnp.ones(4)))
    True
  """
  if rules is None:
    rules = get_logical_axis_rules()
  if not rules or logical_axis_resources is None:
    return x
  constrain = functools.partial(
    _constrain, rules=rules, mesh=mesh, fallback=fallback
  )
  return jax.tree_util.tree_map(
    constrain, logical_axis_resources, x, is_leaf=_is_logical_spec
  )


def _is_logical_spec(x):
  return x is None or (isinstance(x, tuple) and all(map(_is_axis_name, x)))


def _is_axis_name(x):
  return x is None or isinstance(x, str) or x is PartitionSpec.UNCONSTRAINED


def _constrain(
  names: LogicalPartitionSpec,
  x: Array,
  rules: LogicalRules,
  mesh: jax.sharding.Mesh | None,
  fallback: RulesFallback,
):
  axes = _assign_axes(names, rules)
  if axes is None:  # Without names the array is whole on every device.
    return _with_sharding_constraint(x, None, mesh=mesh)
  if any(axis is _UNASSIGNED for axis in axes):
    if fallback is RulesFallback.RAISE_ERROR:
      raise ValueError(f'Axis names {names} did not match a rule')
    if fallback is RulesFallback.NO_CONSTRAINT:
      return x
  return _with_sharding_constraint(x, _spec_of(axes), mesh=mesh)


def _with_sharding_constraint(
  x: Array,
  axis_resources: PartitionSpec | None,
  mesh: jax.sharding.Mesh | None = None,
):
  """Constrains an array to mesh axes, if there is a mesh."""
  if axis_resources is None:
    axis_resources = PartitionSpec()
  return _specs.constrain(x, axis_resources, mesh)


class LogicallyPartitioned(meta.Partitioned[_A]):
  """A box that gives the axes of an array logical names.

  >>> import jax.numpy as jnp
  >>> import haiku_state.linen as nn
  >>> rules = [('embed', None), ('heads', 'model')]
  >>> box = nn.LogicallyPartitioned(
  ...   jnp.ones((2, 4)), names=('embed', 'heads'), rules=rules)
  >>> tuple(nn.logical_to_mesh(box.get_partition_spec(), rules))
  (None, 'model')

  Attributes:
    value: the array.
    names: a logical name or None for each axis of the array.
    mesh: the mesh; if None, the one set by `jax.set_mesh`.
    rules: pairs of logical name and mesh axis; if None, the thread's.
  """

  rules: LogicalRules | None = struct.field(default=None, pytree_node=False)

  # Named again, or the dataclass would make one that fails for arrays.
  __eq__ = meta.Partitioned.__eq__

  def unbox(self, apply_constraint: bool = True) -> Any:
    """Returns the array, constrained by the rules if there is a mesh.

    Args:
      apply_constraint: False for the array as it is.

    Returns:
      The array.
    """
    if not apply_constraint:
      return self.value
    if self.mesh is None and not meta.global_mesh_defined():
      return self.value
    return with_logical_constraint(
      self.value, self.get_partition_spec(), rules=self.rules, mesh=self.mesh
    )


def with_logical_partitioning(
  fn: Callable[..., _A],
  names: LogicalNames,
  mesh: jax.sharding.Mesh | None = None,
  rules: LogicalRules | None = None,
) -> Callable[..., LogicallyPartitioned[_A]]:
  """Wraps an initializer so that it returns a `LogicallyPartitioned` box.

  Args:
    fn: the initializer, or any function that returns an array.
    names: a logical name or None for each axis of the array.
    mesh: the mesh; if None, the one set by `jax.set_mesh`.
    rules: pairs of logical name and mesh axis; if None, the thread's.

  Returns:
    The wrapped function.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> import haiku_state.linen as nn
    >>> init = nn.with_logical_partitioning(nn.initializers.ones, ('in', 'out'))
    >>> variables = nn.Dense(3, kernel_init=init).init(
    ...   jax.random.key(0), jnp.ones((1, 2))
    ... )
    >>> specs = nn.get_partition_spec(variables)
    >>> specs = nn.logical_to_mesh(specs, [('out', 'model')])
    >>> tuple(specs['params']['kernel'])
    (None, 'model')
  """

  init_fn = as_linen(fn)

  @functools.wraps(fn)
  def wrapper(*args, **kwargs):
    return LogicallyPartitioned(
      init_fn(*args, **kwargs), names, mesh=mesh, rules=rules
    )

  return wrapper
