"""`jax.lax.scan` with axes, and with inputs and outputs that do not change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from haiku_state import _versions
from haiku_state.core.partial_eval import DependsOnInput, Traced

ScanAxis = int | None


class _Broadcast:
  """The axis of what is the same in all steps."""


broadcast = _Broadcast()


def build_shaped_array(x: Any, batch_dim: bool = False) -> jax.ShapeDtypeStruct:
  """Returns what JAX knows of an array without its values.

  Args:
    x: an array, or what becomes one.
    batch_dim: whether to leave out the first axis.

  Raises:
    ValueError: the axis that is left out is sharded.
  """
  kind = _versions.typeof(x)
  sharding = _versions.type_sharding(kind)
  if not batch_dim:
    return _abstract(kind.shape, kind, sharding)
  if sharding is not None and len(sharding.spec) == len(kind.shape):
    if sharding.spec[0] is not None:
      raise ValueError('Batch dimension in scan `xs` cannot be sharded.')
    spec = jax.sharding.PartitionSpec(*sharding.spec[1:])
    sharding = jax.sharding.NamedSharding(sharding.mesh, spec)
  return _abstract(kind.shape[1:], kind, sharding)


def _abstract(shape, kind, sharding) -> jax.ShapeDtypeStruct:
  return _versions.ShapeDtype(
    shape, kind.dtype, weak_type=kind.weak_type, sharding=sharding
  )


def _to_front(axis: Any, xs: Any) -> Any:
  """Moves the axis of all leaves to the front; `()` for what has no axis."""
  if axis is broadcast:
    return ()
  if axis == 0:
    return xs

  def move(x):
    rest = np.delete(np.arange(x.ndim), axis)
    return jnp.transpose(x, (axis, *map(int, rest)))

  return jax.tree.map(move, xs)


def _from_front(axis: Any, xs: Any) -> Any:
  """Moves the front axis of all leaves to where it belongs."""
  if axis is broadcast:
    return ()
  if axis == 0:
    return xs

  def move(x):
    place = axis + x.ndim if axis < 0 else axis
    assert place < x.ndim
    order = (*range(1, place + 1), 0, *range(place + 1, x.ndim))
    return jnp.transpose(x, order)

  return jax.tree.map(move, xs)


def _choose(axes: Any, fixed: Any, changing: Any) -> Any:
  """Returns, by axis, what is fixed or what changes."""
  return jax.tree.map(
    lambda axis, x, y: x if axis is broadcast else y, axes, fixed, changing
  )


def scan(
  fn: Callable[..., Any],
  in_axes: Any,
  out_axes: Any,
  length: int | None = None,
  reverse: bool = False,
  unroll: int = 1,
  _split_transpose: bool = False,
  check_constancy_invariants: bool = True,
) -> Callable[..., Any]:
  """Loops a function over an axis of its arguments.

  Args:
    fn: takes `(broadcast, carry, *args)` and returns
      `(broadcast_out, carry, outputs)`.
    in_axes: the axes of the arguments; `broadcast` for one that is the same in
      all steps.
    out_axes: the axes of the outputs; `broadcast` for one that is.
    length: the number of steps, where nothing else shows it.
    reverse: whether to go from the last step to the first.
    unroll: how many steps to unroll into one.
    _split_transpose: see `jax.lax.scan`.
    check_constancy_invariants: whether to trace `fn` once more to compute
      `broadcast_out` and broadcast outputs, and to check that they do not
      depend on the step.

  Returns:
    A function like `fn`, for the whole loop.

  Raises:
    ValueError: what is broadcast depends on the step, or is asked for without
      the check.
  """
  return _scan(
    fn,
    in_axes,
    out_axes,
    check_constancy_invariants,
    lambda: False,
    length=length,
    reverse=reverse,
    unroll=unroll,
    _split_transpose=_split_transpose,
  )


def _scan(
  fn: Callable[..., Any],
  in_axes: Any,
  out_axes: Any,
  check_constancy_invariants: bool,
  shows_all: Callable[[], bool],
  **options: Any,
) -> Callable[..., Any]:
  """Returns `scan`, of a function that may be traced once only.

  Args:
    fn: see `scan`.
    in_axes: see `scan`.
    out_axes: see `scan`.
    check_constancy_invariants: see `scan`.
    shows_all: tells, after the trace that checks, whether another one with
      `broadcast_out` would trace the same program: then it is not traced again.
    **options: options of `jax.lax.scan`.
  """

  def loop(body, init, xs):
    return lax.scan(body, init, xs, **options)

  def fixed_in(ys):
    return jax.tree.map(
      lambda axis, y: y if axis is broadcast else (), out_axes, ys
    )

  def changing_in(ys):
    return jax.tree.map(
      lambda axis, y: () if axis is broadcast else y, out_axes, ys
    )

  def checked(broadcast_in, init, *args):
    xs = jax.tree.map(_to_front, in_axes, args)

    def step(broadcast_vars, c, xs):
      return fn(broadcast_vars, c, *_choose(in_axes, args, xs))

    def by_axis(c, xs):
      broadcast_out, c, ys = step(broadcast_in, c, xs)
      return (broadcast_out, fixed_in(ys)), (c, changing_in(ys))

    carry_type = jax.tree.map(build_shaped_array, init)
    step_type = jax.tree.map(lambda x: build_shaped_array(x, True), xs)
    first = Traced(by_axis, carry_type, step_type)
    try:
      broadcast_out, fixed = first.known(0)
    except DependsOnInput:
      raise ValueError(
        'broadcasted variable has a data dependency on the scan body.'
      ) from None
    computes: Any = jax.config.jax_disable_jit  # type: ignore[attr-defined]
    is_final = shows_all() and not computes

    def body(c, xs):
      if is_final and first.can_call(1, c, xs):
        return first.call(1, c, xs)
      _, c, ys = step(broadcast_out, c, xs)
      return c, changing_in(ys)

    c, ys = loop(body, init, xs)
    ys = jax.tree.map(_from_front, out_axes, ys)
    return broadcast_out, c, _choose(out_axes, fixed, ys)

  def unchecked(broadcast_in, init, *args):
    if broadcast in jax.tree.leaves(out_axes):
      raise ValueError(
        'nn.scan run with check_constancy_invariants=False does not support'
        ' broadcast non-carry function outputs.  out_axes was given as'
        f' {out_axes}'
      )
    xs = jax.tree.map(_to_front, in_axes, args)

    def body(c, xs):
      _, c, ys = fn(broadcast_in, c, *_choose(in_axes, args, xs))
      return c, ys

    c, ys = loop(body, init, xs)
    return broadcast_in, c, jax.tree.map(_from_front, out_axes, ys)

  return checked if check_constancy_invariants else unchecked
