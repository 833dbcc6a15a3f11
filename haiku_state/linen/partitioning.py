"""Names of axes kept beside the variables, in collections of their own.

This is the older way to say how variables are laid out over devices: the names
of the axes of `params` are in the collection `params_axes`. New programs put
values in boxes instead: see `with_logical_partitioning` in `linen.spmd`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax

from haiku_state import errors, struct
from haiku_state._axes import In as ScanIn
from haiku_state._axes import InOutAxis, InOutScanAxis
from haiku_state._axes import Out as ScanOut
from haiku_state.core import lift
from haiku_state.core.filters import CollectionFilter as CollectionFilter
from haiku_state.core.filters import PRNGSequenceFilter as PRNGSequenceFilter
from haiku_state.core.filters import union_filters
from haiku_state.core.frozen_dict import freeze, unfreeze
from haiku_state.core.scope import Scope, Variable
from haiku_state.core.spmd import get_logical_axis_rules as get_axis_rules
from haiku_state.core.spmd import logical_axis_rules as axis_rules
from haiku_state.core.spmd import set_logical_axis_rules as set_axis_rules
from haiku_state.linen import transforms
from haiku_state.linen._module import lifting
from haiku_state.linen._module.context import context
from haiku_state.linen.module import Module
from haiku_state.linen.spmd import RulesFallback as RulesFallback
from haiku_state.linen.spmd import _is_logical_spec
from haiku_state.linen.spmd import (
  _with_sharding_constraint as _with_sharding_constraint,
)
from haiku_state.linen.spmd import logical_to_mesh as logical_to_mesh
from haiku_state.linen.spmd import logical_to_mesh_axes as logical_to_mesh_axes
from haiku_state.linen.spmd import (
  with_logical_constraint as with_sharding_constraint,
)
from haiku_state.traverse_util import flatten_dict, unflatten_dict
from haiku_state.typing import Array as Array
from haiku_state.typing import ArrayPytree as ArrayPytree
from haiku_state.typing import LogicalPartitionSpec as LogicalPartitionSpec
from haiku_state.typing import (
  LogicalPartitionSpecPytree as LogicalPartitionSpecPytree,
)
from haiku_state.typing import LogicalRules as LogicalRules
from haiku_state.typing import PartitionSpecPytree as PartitionSpecPytree

# Flax has these names for what is defined elsewhere.
__all__ = [
  'AxisMetadata',
  'PartitionedVariable',
  'ScanIn',
  'ScanOut',
  'axis_rules',
  'core_remat_static',
  'get_axis_names',
  'get_axis_rules',
  'logical_to_mesh',
  'logical_to_mesh_axes',
  'param_with_axes',
  'remat',
  'scan_with_axes',
  'set_axis_rules',
  'variable_with_axes',
  'vmap_with_axes',
  'with_sharding_constraint',
]

_Axes = tuple[str, ...] | None

# --- Variables with names of axes ---------------------------------------------


@struct.dataclass
class AxisMetadata:
  """The names of a variable's axes: a value without arrays.

  Attributes:
    names: a name for each axis, or a tree of such tuples.
  """

  names: LogicalPartitionSpecPytree = struct.field(pytree_node=False)


def param_with_axes(
  name: str,
  init_fn: Callable[..., Any],
  *init_args: Any,
  axes: _Axes = None,
  module: Module | None = None,
  **init_kwargs: Any,
) -> Any:
  """Declares a parameter of the module that is running, and names its axes.

  Example::

    >>> import haiku_state.linen as nn
    >>> import jax, jax.numpy as jnp
    >>> from haiku_state.linen import partitioning
    >>> class Scale(nn.Module):
    ...   @nn.compact
    ...   def __call__(self, x):
    ...     return x * partitioning.param_with_axes(
    ...       'scale', jax.nn.initializers.ones, x.shape[-1:],
    ...       axes=('embed',))
    >>> variables = Scale().init(jax.random.key(0), jnp.ones((1, 2)))
    >>> names = partitioning.get_axis_names(variables['params_axes'])
    >>> names['scale'] == jax.sharding.PartitionSpec('embed')
    True

  Args:
    name: the name of the parameter.
    init_fn: see `Module.param`.
    *init_args: arguments of `init_fn`.
    axes: the names of the axes; None leaves the parameter without.
    module: the module, if it is not the one that is running.
    **init_kwargs: keyword arguments of `init_fn`.

  Returns:
    The value, laid out as the rules for the names say.
  """
  module = _running(module)
  value = module.param(name, init_fn, *init_args, **init_kwargs)
  if axes is None:
    return value
  spec = jax.sharding.PartitionSpec(*axes)
  value = with_sharding_constraint(value, spec)
  _note_axes(module, 'params', name, axes)
  return value


def variable_with_axes(
  collection: str,
  name: str,
  init_fn: Callable[..., Any],
  *init_args: Any,
  axes: _Axes = None,
  module: Module | None = None,
  fallback: RulesFallback = RulesFallback.AXIS_IS_UNSHARDED,
  **init_kwargs: Any,
) -> PartitionedVariable:
  """Declares a variable of the module that is running, and names its axes.

  Args:
    collection: the name of its collection.
    name: the name of the variable.
    init_fn: returns the initial value.
    *init_args: arguments of `init_fn`.
    axes: the names of the axes; None leaves the variable without.
    module: the module, if it is not the one that is running.
    fallback: what to do where no rule covers a name.
    **init_kwargs: keyword arguments of `init_fn`.

  Raises:
    ScopeVariableNotFoundError: it is missing, and the collection immutable.
  """
  module = _running(module)
  scope = module.scope
  assert scope is not None
  scope.reserve(name)
  if not scope.has_variable(collection, name):
    if not scope.is_mutable_collection(collection):
      raise errors.ScopeVariableNotFoundError(name, collection, scope.path_text)
    scope.check_may_make(collection, name)
    value = init_fn(*init_args, **init_kwargs)
    value = _constrained(value, axes, fallback)
    scope.put_variable(collection, name, value)
  if axes is not None:
    _note_axes(module, collection, name, axes)
  return PartitionedVariable(scope, collection, name, axes, fallback)


class PartitionedVariable(Variable):
  """A variable whose value is laid out by the names of its axes.

  Args:
    scope: the scope of the variable.
    collection: the name of its collection.
    name: its name.
    axes: the names of its axes.
    fallback: what to do where no rule covers a name.
  """

  def __init__(
    self,
    scope: Scope,
    collection: str,
    name: str,
    axes: _Axes = None,
    fallback: RulesFallback = RulesFallback.AXIS_IS_UNSHARDED,
  ):
    super().__init__(scope, collection, name, unbox=False)
    self.axes = axes
    self.fallback = fallback

  @property
  def value(self) -> Any:
    """The current value, constrained when it is read and when it is set."""
    value = self.scope.get_variable(self.collection, self.name)
    return _constrained(value, self.axes, self.fallback)

  @value.setter
  def value(self, value: Any) -> None:
    value = _constrained(value, self.axes, self.fallback)
    self.scope.put_variable(self.collection, self.name, value)


def get_axis_names(axes_metadata: Any) -> Any:
  """Returns specs for the variables of a collection.

  Args:
    axes_metadata: a collection of names of axes, such as `params_axes`.

  Returns:
    A FrozenDict like the collection itself, of `jax.sharding.PartitionSpec`s
    with names of axes.
  """

  def spec(names):
    return None if names is None else jax.sharding.PartitionSpec(*names)

  flat = flatten_dict(unfreeze(axes_metadata))
  specs = {
    # A slash in a name parts it, as in Flax.
    tuple(re.sub(r'_axes$', '', '/'.join(path)).split('/')): jax.tree.map(
      spec, metadata.names, is_leaf=_is_logical_spec
    )
    for path, metadata in flat.items()
  }
  return freeze(unflatten_dict(specs))


def _running(module: Module | None) -> Module:
  """Returns the module that was given, or that whose method runs."""
  if module is None:
    module = context.current().module_stack[-1]
    assert module is not None, 'No method of a module is running.'
  return module


def _constrained(value: Any, axes: _Axes, fallback: RulesFallback) -> Any:
  if axes is None:
    return value
  return with_sharding_constraint(value, axes, fallback=fallback)


def _note_axes(module: Module, col: str, name: str, axes: Any) -> None:
  """Stores the names of a variable's axes, where they may be stored."""
  module.sow(
    f'{col}_axes', f'{name}_axes', AxisMetadata(axes), reduce_fn=_same_axes
  )


def _same_axes(old: Any, new: Any) -> Any:
  """Returns the new names of axes, which must be those of before.

  Raises:
    TypeError: the new value is no `AxisMetadata`.
    ValueError: the names differ.
    AssertionError: the old value is something else.
  """
  if not isinstance(new, AxisMetadata):
    raise TypeError('Expected newly sown value to be an AxisMetadata')
  if isinstance(old, AxisMetadata):
    if old != new:
      raise ValueError(
        'If axis names are sown twice, expected them to match. '
        f'Got {old} and {new}.'
      )
  elif old:
    raise AssertionError(
      f'Non-initial-or-AxisMetadata value encountered: {old}'
    )
  return new


# --- Transforms that add an axis ----------------------------------------------


def scan_with_axes(
  target: Any,
  variable_axes: Mapping[CollectionFilter, InOutScanAxis] = {},  # noqa: B006
  variable_broadcast: CollectionFilter = False,
  variable_carry: CollectionFilter = False,
  split_rngs: Mapping[PRNGSequenceFilter, bool] = {},  # noqa: B006
  in_axes: Any = 0,
  out_axes: Any = 0,
  length: int | None = None,
  reverse: bool = False,
  unroll: int = 1,
  axis_name: str = 'layers',
  axes_collections: tuple[str, ...] = ('params',),
  data_transform: Callable[..., Any] | None = None,
  methods: Any = None,
) -> Any:
  """Loops a module as `nn.scan` does, and names the axis of the steps.

  Args:
    target: see `nn.scan`, as the other arguments are.
    variable_axes: the axes of collections with one slice for each step.
    variable_broadcast: collections that are the same in all steps.
    variable_carry: collections that go from step to step.
    split_rngs: whether each step gets its own keys, by streams.
    in_axes: the axes of the arguments.
    out_axes: the axes of the outputs.
    length: the number of steps.
    reverse: whether to go backwards.
    unroll: how many steps to unroll into one.
    axis_name: the name of the axis of the steps.
    axes_collections: the collections that have names of axes beside them.
    data_transform: applied to variables and keys in each step.
    methods: the methods to lift.
  """
  names = tuple(f'{col}_axes' for col in axes_collections)
  scanned = transforms.scan(
    target,
    variable_axes=variable_axes,
    # Names are no arrays: they do not depend on the step.
    variable_broadcast=union_filters(variable_broadcast, names),
    variable_carry=variable_carry,
    split_rngs=split_rngs,
    in_axes=in_axes,
    out_axes=out_axes,
    length=length,
    reverse=reverse,
    unroll=unroll,
    data_transform=data_transform,
    methods=methods,
  )
  for col in axes_collections:
    if col in variable_axes:
      scanned = _add_axis_to_metadata(
        scanned, variable_axes[col], axis_name, f'{col}_axes'
      )
  return scanned


def vmap_with_axes(
  target: Any,
  variable_axes: Mapping[CollectionFilter, InOutAxis],
  split_rngs: Mapping[PRNGSequenceFilter, bool] = {},  # noqa: B006
  in_axes: Any = 0,
  out_axes: Any = 0,
  axis_size: int | None = None,
  axis_name: str | None = None,
  partitioning_axis_names: Mapping[Any, str] = {},  # noqa: B006
  spmd_axis_name: str | None = None,
  methods: Any = None,
) -> Any:
  """Maps a module as `nn.vmap` does, and names the axis that is mapped.

  Args:
    target: see `nn.vmap`, as the other arguments are.
    variable_axes: the axes of collections.
    split_rngs: whether each slice gets its own keys, by streams.
    in_axes: the axes of the arguments.
    out_axes: the axes of the outputs.
    axis_size: the size of the axis.
    axis_name: the name of the axis for collective operations.
    partitioning_axis_names: the name of the axis among a variable's, by
      collection.
    spmd_axis_name: see `jax.vmap`.
    methods: the methods to lift.
  """
  names = dict.fromkeys(f'{col}_axes' for col in partitioning_axis_names)
  mapped = transforms.vmap(
    target,
    variable_axes={**variable_axes, **names},  # type: ignore[dict-item]
    split_rngs=split_rngs,
    in_axes=in_axes,
    out_axes=out_axes,
    axis_size=axis_size,
    axis_name=axis_name,
    spmd_axis_name=spmd_axis_name,
    methods=methods,
  )
  for col, axis in variable_axes.items():
    if col in partitioning_axis_names:
      new_name = partitioning_axis_names[col]
      mapped = _add_axis_to_metadata(mapped, axis, new_name, f'{col}_axes')
  return mapped


# Under Flax's name: libraries with scans of their own call it.
def _add_axis_to_metadata(
  fn: Any, axis_pos: Any, axis_name: str, axis_col: str = 'params_axes'
) -> Any:
  """Returns a target outside of which each variable has one more axis."""
  # It may be in `ScanIn` or `ScanOut`.
  position = getattr(axis_pos, 'axis', axis_pos)

  def insert(names):
    names = list(names)
    names.insert(position, axis_name)
    return tuple(names)

  def remove(names):
    names = list(names)
    if names[position] != axis_name:
      raise ValueError(
        f'Expected axis {axis_name} at position {position} in axis metadata'
        f' {names}.'
      )
    del names[position]
    return tuple(names)

  return transforms.map_variables(
    fn,
    axis_col,
    mutable=_is_mutable(axis_col),
    trans_in_fn=functools.partial(_map_names, remove),
    trans_out_fn=functools.partial(_map_names, insert),
  )


def _map_names(fn: Callable[[Any], Any], tree: Any) -> Any:
  """Applies a function to the names in a tree; other leaves stay."""

  def on_names(names):
    return None if names is None else fn(names)

  def on_leaf(x):
    if not isinstance(x, AxisMetadata):
      return x
    names = jax.tree.map(on_names, x.names, is_leaf=_is_logical_spec)
    return x.replace(names=names)  # type: ignore[attr-defined]

  is_leaf = lambda x: isinstance(x, AxisMetadata)
  return jax.tree.map(on_leaf, tree, is_leaf=is_leaf)


def _is_mutable(col: str) -> bool:
  """Returns whether the running module may change a collection.

  Outside of all modules it is not known yet, and the answer is yes.
  """
  module = context.current().module_stack[-1]
  return module is None or module.is_mutable_collection(col)


# --- Rematerialization --------------------------------------------------------


def core_remat_static(
  fn: Callable[..., Any],
  variables: CollectionFilter = True,
  rngs: PRNGSequenceFilter = True,
  concrete: bool = False,
  prevent_cse: bool = True,
  static_argnums: tuple[int, ...] = (),
  policy: Callable[..., bool] | None = None,
) -> Callable[..., Any]:
  """Computes a function of scopes again for its gradient.

  Args:
    fn: takes the scopes, then positional arguments.
    variables: the collections that go in, and may be changed.
    rngs: the key streams that go in.
    concrete: deprecated in JAX: it must be False.
    prevent_cse: see `jax.checkpoint`.
    static_argnums: positions of arguments, without the scopes, that are not
      traced. Unlike in `nn.remat` they need not be hashable.
    policy: what to save: see `jax.checkpoint_policies`.
  """
  static = frozenset(static_argnums)

  @functools.wraps(fn)
  def rematted(scopes, *given):
    # JAX names the traced ones after this signature in its errors.
    def of_traced(scopes, *args):
      rest = iter(args)
      filled = (x if i in static else next(rest) for i, x in enumerate(given))
      return fn(scopes, *filled)

    lifted = lift.checkpoint(
      of_traced,
      variables=variables,
      rngs=rngs,
      concrete=concrete,
      prevent_cse=prevent_cse,
      policy=policy,
    )
    return lifted(scopes, *(x for i, x in enumerate(given) if i not in static))

  return rematted


def remat(
  target: Any,
  variables: CollectionFilter = True,
  rngs: PRNGSequenceFilter = True,
  concrete: bool = False,
  prevent_cse: bool = True,
  static_argnums: tuple[int, ...] = (),
  policy: Callable[..., bool] | None = None,
  methods: Any = None,
) -> Any:
  """Computes a module again for its gradient, instead of keeping values.

  Args:
    target: see `nn.remat`, as the other arguments are.
    variables: the collections that go in, and may be changed.
    rngs: the key streams that go in.
    concrete: deprecated in JAX: it must be False.
    prevent_cse: see `jax.checkpoint`.
    static_argnums: positions of arguments that are not traced, where the first
      argument after the module is at 0.
    policy: what to save.
    methods: the methods to lift.
  """
  return lifting.lift(
    core_remat_static,
    target,
    variables=variables,
    rngs=rngs,
    concrete=concrete,
    prevent_cse=prevent_cse,
    static_argnums=static_argnums,
    policy=policy,
    methods=methods,
  )
