"""Logical axis rules, and shardings written in terms of them.

A rule pairs the name that a program gives to an axis ('embed') with the mesh
axis that it lies along ('model'). The rules are set per thread.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from haiku_state import _versions
from haiku_state._extents import restored
from haiku_state._versions import Format
from haiku_state.core import _specs, meta
from haiku_state.typing import LogicalRules, Sharding


class _Rules(threading.local):
  current: LogicalRules = ()


_rules = _Rules()


def set_logical_axis_rules(rules: LogicalRules):
  """Sets the rules of this thread.

  >>> import haiku_state.linen as nn
  >>> nn.set_logical_axis_rules([('batch', 'data')])
  >>> nn.get_logical_axis_rules()
  [('batch', 'data')]
  >>> nn.set_logical_axis_rules(())

  Args:
    rules: pairs of logical name and mesh axis, of which earlier ones go first.
  """
  _rules.current = rules


def get_logical_axis_rules() -> LogicalRules:
  """Returns the rules of this thread.

  >>> import haiku_state.linen as nn
  >>> with nn.logical_axis_rules([('batch', 'data')]):
  ...   nn.get_logical_axis_rules()
  [('batch', 'data')]
  """
  return _rules.current


@contextlib.contextmanager
def logical_axis_rules(rules: LogicalRules) -> Iterator[None]:
  """Sets the rules of this thread for the duration of a `with` block.

  Args:
    rules: pairs of logical name and mesh axis, of which earlier ones go first.

  Example:
    >>> from haiku_state.core import spmd
    >>> with spmd.logical_axis_rules([('embed', 'model')]):
    ...   spmd.get_logical_axis_rules()
    [('embed', 'model')]
    >>> spmd.get_logical_axis_rules()
    ()
  """
  before = _rules.current
  with restored(lambda: set_logical_axis_rules(before)):
    set_logical_axis_rules(rules)
    yield


def composite_rules(rule1, rule2):
  """Joins two sets of rules.

  Args:
    rule1: pairs of logical name and mesh axis.
    rule2: further ones.

  Returns:
    All of them.

  Raises:
    ValueError: the two give a name different mesh axes.

  Example:
    >>> from haiku_state.core import spmd
    >>> spmd.composite_rules([('a', 'x')], [('b', 'y')])
    (('a', 'x'), ('b', 'y'))
  """
  if not rule1 or not rule2:
    return rule1 or rule2 or ()
  joined = dict(rule1)
  for name, mesh_axis in rule2:
    if joined.setdefault(name, mesh_axis) != mesh_axis:
      raise ValueError(
        f'Inconsistent logical axis annotations for {name}: '
        f'{joined[name]} vs {mesh_axis}'
      )
  return tuple(joined.items())


def from_sharding_rules(
  sharding: Sharding, sharding_rules: LogicalRules
) -> Sharding:
  """Replaces logical names by mesh axes.

  Args:
    sharding: names, and None.
    sharding_rules: pairs of logical name and mesh axis.

  Returns:
    The mesh axes; a name without a rule, and None, stay.
  """
  rules = dict(sharding_rules)
  return tuple(
    rules.get(str(name), name) if name else name for name in sharding
  )


def map_sharding(f: Callable[[Any], Any], sharding):
  """Maps a function over the entries of a sharding.

  Args:
    f: a function of an entry: an axis, a tuple of axes, or None.
    sharding: a tuple or PartitionSpec, or a NamedSharding or Format with one.

  Returns:
    A sharding of the same kind; a PartitionSpec for a tuple, and None for
    anything else.
  """
  if isinstance(sharding, (PartitionSpec, tuple)):
    return PartitionSpec(*map(f, sharding))
  if isinstance(sharding, NamedSharding):
    spec: Any = map_sharding(f, sharding.spec)
    return NamedSharding(sharding.mesh, spec)
  if isinstance(sharding, Format):
    inner: Any = map_sharding(f, sharding.sharding)
    return Format(_versions.layout_of(sharding), inner)
  return None


def get_mesh(sharding):
  """Returns the mesh that a sharding names.

  Args:
    sharding: a tuple, PartitionSpec, NamedSharding or Format.

  Returns:
    The mesh, or None if it names none.
  """
  if isinstance(sharding, Format):
    return get_mesh(sharding.sharding)
  return sharding.mesh if isinstance(sharding, NamedSharding) else None


def apply_rules(sharding, sharding_rules):
  """Replaces logical names in a sharding by mesh axes.

  Args:
    sharding: a tuple, PartitionSpec, NamedSharding or Format.
    sharding_rules: rules beside those of the thread, or None.

  Returns:
    The sharding; a name without a rule, and None, stay.

  Raises:
    ValueError: these rules and the thread's contradict each other.

  Example:
    >>> from haiku_state.core import spmd
    >>> tuple(spmd.apply_rules(('embed', None), [('embed', 'model')]))
    ('model', None)
  """
  rules = dict(composite_rules(get_logical_axis_rules(), sharding_rules))
  return map_sharding(lambda axis: rules.get(axis, axis), sharding)


def get_pspec(sharding, sharding_rules=None) -> PartitionSpec:
  """Returns a sharding in terms of mesh axes; see `apply_rules`."""
  return apply_rules(sharding, sharding_rules)  # type: ignore[return-value]


def shard_value(value, out_sharding, sharding_rules, mesh):
  """Spreads an array over the devices of a mesh.

  Args:
    value: the array.
    out_sharding: a tuple of logical names or mesh axes, a PartitionSpec, a
      NamedSharding or a Format; if empty or None, nothing is done.
    sharding_rules: rules beside those of the thread, or None.
    mesh: the mesh; if None, the sharding's own or the one of `jax.set_mesh`.

  Returns:
    The array, spread.

  Raises:
    ValueError: there is no mesh, or two that differ.
  """
  if not out_sharding:
    return value
  mesh = mesh if mesh is not None else meta.get_global_mesh()
  target: Any = apply_rules(out_sharding, sharding_rules)
  mesh = _one_mesh(mesh, get_mesh(target), target)
  if isinstance(target, PartitionSpec):
    target = NamedSharding(mesh, target)
  if isinstance(target, Format):
    return jax.lax.with_sharding_constraint(value, target)
  return _specs.constrain(value, target.spec, target.mesh)


def _one_mesh(given, own, out_sharding) -> Any:
  if given is None and own is None:
    raise ValueError(
      'An auto mesh context or metadata is required if creating a variable'
      f' with annotation {out_sharding=}. Enter one by'
      f' {_versions.SET_MESH}, or pass `mesh`.'
    )
  if given is None or own is None:
    return own if given is None else given
  # `jax.set_mesh` tells the abstract mesh only, without the devices.
  if not _versions.same_mesh(given, own):
    raise ValueError(
      f'Got a mesh {given} and a sharding over another mesh, {own}. Give one of'
      ' them, or the same mesh for both.'
    )
  return own
