"""Lifted `vmap`, `scan` and `remat_scan`: over an axis of variables."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from haiku_state import _versions
from haiku_state._axes import In, InOutAxis, InOutScanAxis, Out
from haiku_state.core import axes_scan, meta
from haiku_state.core._lift import one_trace
from haiku_state.core._lift.autodiff import checkpoint
from haiku_state.core._lift.packing import Pack, lifted, unzip
from haiku_state.core.filters import (
  CollectionFilter,
  PRNGSequenceFilter,
)


def split_axes(
  axes: Mapping[CollectionFilter, Any],
) -> tuple[dict[Any, Any], dict[Any, Any]]:
  """Returns the axes of what goes in, and of what comes out."""

  def axis_of(x):
    return x.axis if isinstance(x, (In, Out)) else x

  going_in = {k: axis_of(v) for k, v in axes.items() if not isinstance(v, Out)}
  coming_out = {k: axis_of(v) for k, v in axes.items() if not isinstance(v, In)}
  return going_in, coming_out


def tree_map_rngs(fn: Callable[[Any], Any], tree: Any) -> Any:
  """Applies a function to the keys in a tree, typed or raw."""

  def is_typed_key(x):
    return hasattr(x, 'dtype') and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)

  return jax.tree.map(fn, tree, is_leaf=is_typed_key)


def _with_axes(change, groups, axes, metadata_params) -> tuple[Any, ...]:
  """Adds or removes, in boxes, the axis that each group is mapped over."""
  return tuple(
    group if axis is None else change(group, axis, metadata_params)
    for group, axis in zip(groups, axes)
  )


def vmap(
  fn: Callable[..., Any],
  variable_axes: Mapping[CollectionFilter, InOutAxis],
  split_rngs: Mapping[PRNGSequenceFilter, bool],
  in_axes: Any = 0,
  out_axes: Any = 0,
  axis_size: int | None = None,
  axis_name: str | None = None,
  spmd_axis_name: str | None = None,
  metadata_params: Mapping[Any, Any] = {},  # noqa: B006
) -> Callable[..., Any]:
  """Maps a function of scopes over an axis, as `jax.vmap` does.

  The arguments are those of `haiku_state.linen.vmap`, but for:

  >>> import jax, jax.numpy as jnp
  >>> from haiku_state import core
  >>> def scale(scope, x):
  ...   return x * scope.param('w', jax.nn.initializers.normal(), ())
  >>> each = core.vmap(
  ...   scale, variable_axes={'params': 0}, split_rngs={'params': True})
  >>> _, variables = core.init(each)(jax.random.key(0), jnp.ones(5))
  >>> variables['params']['w'].shape
  (5,)

  Args:
    fn: takes the scopes, then the arguments.
  """
  in_of, out_of = split_axes(variable_axes)
  in_groups, variable_in_axes = unzip(in_of.items())
  out_groups, variable_out_axes = unzip(out_of.items())
  rng_groups, splits = unzip(split_rngs.items())
  rng_axes = tuple(0 if split else None for split in splits)

  def inner(packed: Pack, *args):
    variables = _with_axes(
      meta.remove_axis, packed.variables, variable_in_axes, metadata_params
    )
    size = _axis_size((variable_in_axes, in_axes), (variables, args), axis_size)
    split = functools.partial(
      _split_for_vmap, size, spmd_axis_name, in_axes, args
    )
    rngs = tuple(
      tree_map_rngs(split, group) if is_split else group
      for group, is_split in zip(packed.rngs, splits)
    )

    @functools.wraps(fn)
    def mapped(variables, rngs, args):
      return packed.call(fn, variables, rngs, *args)

    y, out = jax.vmap(
      mapped,
      in_axes=(variable_in_axes, rng_axes, in_axes),
      out_axes=(out_axes, variable_out_axes),
      axis_name=axis_name,
      axis_size=axis_size,
      spmd_axis_name=spmd_axis_name,
    )(variables, rngs, args)
    return y, _with_axes(meta.add_axis, out, variable_out_axes, metadata_params)

  return lifted(inner, in_groups, out_groups, rng_groups, 'vmap')


def _axis_size(axes: Any, trees: Any, given: int | None) -> int:
  """Returns the size of the mapped axis.

  Raises:
    ValueError: sizes disagree, or there are none.
  """

  def size_of(axis, tree):
    leaves = jax.tree.leaves(tree) if axis is not None else ()
    return leaves[0].shape[axis] if leaves else ()

  found = jax.tree.map(size_of, axes, trees, is_leaf=lambda x: x is None)
  sizes = set(jax.tree.leaves(found))
  if len(sizes) > 1:
    raise ValueError(f'Inconsistent batch axis sizes: {sizes}')
  if given is not None:
    return given
  if not sizes:
    raise ValueError('axis_size should be specified manually.')
  return sizes.pop()


def _split_for_vmap(size, spmd_axis_name, in_axes, args, rng):
  rngs = jax.random.split(jax.random.clone(rng), size)
  if spmd_axis_name is None:
    return rngs
  axes = jax.tree.map(
    lambda axis, tree: jax.tree.map(lambda _: axis, tree),
    in_axes,
    args,
    is_leaf=lambda x: x is None,
  )
  axes = jax.tree.leaves(axes, is_leaf=lambda x: x is None)
  is_sharded = any(
    _is_over(spmd_axis_name, x, axis)
    for x, axis in zip(jax.tree.leaves(args), axes)
    if axis is not None
  )
  if is_sharded:
    rngs = _versions.reshard(rngs, jax.sharding.PartitionSpec(spmd_axis_name))
  return rngs


def _is_over(mesh_axis, x, axis):
  sharding = _versions.type_sharding(_versions.typeof(x))
  return sharding is not None and sharding.spec[axis] == mesh_axis


def scan(
  fn: Callable[..., Any],
  variable_axes: Mapping[CollectionFilter, InOutScanAxis] = {},  # noqa: B006
  variable_broadcast: CollectionFilter = False,
  variable_carry: CollectionFilter = False,
  split_rngs: Mapping[PRNGSequenceFilter, bool] = {},  # noqa: B006
  in_axes: Any = 0,
  out_axes: Any = 0,
  length: int | None = None,
  reverse: bool = False,
  unroll: int = 1,
  _split_transpose: bool = False,
  data_transform: Callable[..., Any] | None = None,
  metadata_params: Mapping[Any, Any] = {},  # noqa: B006
  check_constancy_invariants: bool = True,
) -> Callable[..., Any]:
  """Loops a function of scopes over an axis, as `jax.lax.scan` does.

  The arguments are those of `haiku_state.linen.scan`, but for:

  >>> import jax, jax.numpy as jnp
  >>> from haiku_state import core
  >>> def add(scope, total, x):
  ...   total += x * scope.param('w', jax.nn.initializers.ones, ())
  ...   return total, total
  >>> sums = core.scan(
  ...   add, variable_broadcast='params', split_rngs={'params': False})
  >>> core.init(sums)(jax.random.key(0), 0.0, jnp.arange(4.0))[0][1]
  Array([0., 1., 3., 6.], dtype=float32)

  Args:
    fn: takes the scopes, the carry, then the arguments; returns a carry and an
      output.
  """
  in_of, out_of = split_axes(variable_axes)
  in_groups, variable_in_axes = unzip(in_of.items())
  out_groups, variable_out_axes = unzip(out_of.items())
  assert all(isinstance(axis, int) for axis in variable_in_axes)
  assert all(isinstance(axis, int) for axis in variable_out_axes)
  rng_groups, splits = unzip(split_rngs.items())
  rng_axes = tuple(0 if split else axes_scan.broadcast for split in splits)
  has_broadcast_outputs = axes_scan.broadcast in jax.tree.leaves(out_axes)

  def keys_are_split(packed: Pack) -> bool:
    """Returns whether parameters have other keys in each step, for all we know."""
    return data_transform is not None or any(
      is_split and any('params' in streams for streams in group)
      for group, is_split in zip(packed.rngs, splits)
    )

  def inner(packed: Pack, init, *args):
    steps = _scan_length(in_axes, args, length)

    def split(rng):
      return jax.random.split(jax.random.clone(rng), steps)

    rngs = tuple(
      tree_map_rngs(split, group) if is_split else group
      for group, is_split in zip(packed.rngs, splits)
    )

    def step(broadcast_vars, carry, scanned_vars, rngs, args):
      carry_vars, c = carry
      groups = (broadcast_vars, carry_vars, *scanned_vars)
      if data_transform is not None:
        groups, rngs = data_transform(groups, rngs)
      (c, y), out = packed.call(fn, groups, rngs, c, *args)
      broadcast_out, carry_vars, *scanned_out = out
      # The loop itself needs the immutable ones too.
      for given, made in zip(broadcast_vars, broadcast_out):
        for col in given:
          made.setdefault(col, given[col])
      return broadcast_out, (carry_vars, c), (y, tuple(scanned_out))

    first = one_trace.FirstTrace(
      packed, variable_broadcast, step, keys_are_split(packed)
    )
    loop = axes_scan._scan(
      first.step,
      in_axes=(variable_in_axes, rng_axes, in_axes),
      out_axes=(out_axes, variable_out_axes),
      check_constancy_invariants=check_constancy_invariants
      and (first.is_needed or has_broadcast_outputs),
      shows_all=lambda: first.shows_all,
      length=length,
      reverse=reverse,
      unroll=unroll,
      _split_transpose=_split_transpose,
    )
    broadcast_vars, carry_vars, *scanned = packed.variables
    scanned = _with_axes(
      meta.remove_axis, scanned, variable_in_axes, metadata_params
    )
    broadcast_vars, (carry_vars, c), (ys, scanned) = loop(
      broadcast_vars, (carry_vars, init), scanned, rngs, args
    )
    scanned = _with_axes(
      meta.add_axis, scanned, variable_out_axes, metadata_params
    )
    return (c, ys), (broadcast_vars, carry_vars, *scanned)

  return lifted(
    inner,
    (variable_broadcast, variable_carry, *in_groups),
    (variable_broadcast, variable_carry, *out_groups),
    rng_groups,
    'scan',
  )


def _scan_length(in_axes: Any, args: Any, given: int | None) -> int:
  """Returns the number of steps.

  Raises:
    ValueError: lengths disagree, or there are none.
  """

  def length_of(axis, tree):
    leaves = () if axis is axes_scan.broadcast else jax.tree.leaves(tree)
    return leaves[0].shape[axis] if leaves else ()

  lengths = set(jax.tree.leaves(jax.tree.map(length_of, in_axes, args)))
  if given is not None and len(lengths) <= 1:
    return given
  if len(lengths) > 1:
    raise ValueError(f'Inconsistent scan lengths: {lengths}')
  if not lengths:
    raise ValueError('length should be specified manually.')
  return lengths.pop()


def remat_scan(
  body_fn: Callable[..., Any],
  lengths: Sequence[int],
  policy: Callable[..., bool] | None = None,
  variable_broadcast: CollectionFilter = False,
  variable_carry: CollectionFilter = False,
  variable_axes: Mapping[CollectionFilter, InOutScanAxis] = {True: 0},  # noqa: B006
  split_rngs: Mapping[PRNGSequenceFilter, bool] = {True: True},  # noqa: B006
) -> Callable[..., Any]:
  """Loops a function in nested scans, all but the innermost rematerialised.

  The arguments are those of `haiku_state.linen.remat_scan`, but for:

  >>> import jax, jax.numpy as jnp
  >>> from haiku_state import core
  >>> def scale(scope, x):
  ...   return x * scope.param('w', jax.nn.initializers.ones, ())
  >>> deep = core.remat_scan(scale, lengths=(2, 3))
  >>> y, variables = core.init(deep)(jax.random.key(0), 5.0)
  >>> y, variables['params']['w'].shape
  (Array(5., dtype=float32), (2, 3))

  Args:
    body_fn: takes the scopes and the carry; returns a carry of the same type.
  """
  if not len(lengths):
    raise IndexError(
      f'remat_scan expected at least one length, found lengths={lengths}. '
      'Write lengths=(8,) for eight steps, or lengths=(4, 2).'
    )
  scan_fn = functools.partial(
    scan,
    variable_broadcast=variable_broadcast,
    variable_carry=variable_carry,
    variable_axes=variable_axes,
    split_rngs=split_rngs,
  )
  if len(lengths) == 1:

    def body(scope, carry):
      return body_fn(scope, carry), ()
  else:
    below = remat_scan(
      body_fn,
      lengths[1:],
      policy,
      variable_broadcast,
      variable_carry,
      variable_axes,
      split_rngs,
    )
    body = checkpoint(
      lambda scope, carry: (below(scope, carry), ()),
      policy=policy,
      prevent_cse=False,
    )

  def wrapper(scope, carry):
    return scan_fn(body, length=lengths[0])(scope, carry)[0]

  return wrapper
