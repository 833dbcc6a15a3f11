"""Evaluation of a function from values and, where values do not matter, shapes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
from jax.interpreters import partial_eval as pe

from haiku_state import errors
from haiku_state._versions import jaxprs


class DependsOnInput(Exception):
  """A result depends on the value of an input of which only the type is known.

  Args:
    aval: the type of the result.
  """

  def __init__(self, aval: Any):
    super().__init__(aval)
    self.aval = aval


def eval_known(fn: Callable[..., Any], *types: Any) -> Any:
  """Returns what a function returns, which its inputs must not matter for.

  The function is traced, and then only what its results need is computed, one
  operation at a time, as it would be without tracing.

  Args:
    fn: returns a pytree of arrays.
    *types: for each argument a pytree of `jax.ShapeDtypeStruct`.

  Raises:
    DependsOnInput: a result depends on an input.
  """
  # What is a value already stays as it is, a Python number for example. What is
  # traced must not stay here when the trace ends.
  leaves: list[Any] = []
  out_tree: Any = None

  def flat(*args):
    nonlocal leaves, out_tree
    found, out_tree = jax.tree.flatten(fn(*args))
    is_traced = [isinstance(x, jax.core.Tracer) for x in found]
    leaves = [_TRACED if t else x for t, x in zip(is_traced, found)]
    return [x for t, x in zip(is_traced, found) if t]

  closed = jax.make_jaxpr(flat)(*types)
  jaxpr = closed.jaxpr.replace(eqns=_needed_eqns(closed.jaxpr))
  _check_known(jaxpr)
  known = jaxprs.ClosedJaxpr(jaxpr, closed.consts)
  # The inputs are not used, so what stands for them does not matter.
  out = iter(jaxprs.jaxpr_as_fun(known)(*(0 for _ in jaxpr.invars)))
  # A literal of the jaxpr is of a type of JAX's own.
  leaves = [jnp.asarray(next(out)) if x is _TRACED else x for x in leaves]
  return jax.tree.unflatten(out_tree, leaves)


# Stands for a leaf that is traced.
_TRACED = object()


def _check_known(jaxpr: Any) -> None:
  """Raises if an output depends on an input."""

  def is_unknown(v):
    return not isinstance(v, jaxprs.Literal) and v in unknown

  unknown = set(jaxpr.invars)
  for eqn in jaxpr.eqns:
    if any(map(is_unknown, eqn.invars)):
      unknown.update(eqn.outvars)
  for v in jaxpr.outvars:
    if is_unknown(v):
      raise DependsOnInput(v.aval)


def _needed_eqns(jaxpr: Any) -> list[Any]:
  """Returns the equations that the outputs depend on, in order.

  An equation that calls a function keeps of it what the outputs need, so that
  a constant may come out of a call that also has inputs.
  """
  all_outputs = [True] * len(jaxpr.outvars)
  jaxpr, _ = pe.dce_jaxpr(jaxpr, all_outputs, instantiate=True)
  # That keeps what has effects.
  needed = {v for v in jaxpr.outvars if not isinstance(v, jaxprs.Literal)}
  eqns = []
  for eqn in reversed(jaxpr.eqns):
    if not any(v in needed for v in eqn.outvars):
      continue
    eqns.append(eqn)
    needed.update(v for v in eqn.invars if not isinstance(v, jaxprs.Literal))
  return eqns[::-1]


def lazy_init(fn: Callable[..., Any]) -> Callable[..., Any]:
  """Returns `fn` so that arguments may be shapes.

  Args:
    fn: returns a pytree of arrays.

  Returns:
    A function of the same arguments. An argument, or a leaf of one, that is a
    `jax.ShapeDtypeStruct` stands for an array of this shape and dtype that no
    result depends on; nothing is computed from it.

  Raises:
    LazyInitError: a result depends on the value of such an argument.

  Example::

    >>> import jax
    >>> from haiku_state.core.partial_eval import lazy_init
    >>> f = lazy_init(lambda x: jax.numpy.ones(x.shape[-1]))
    >>> f(jax.ShapeDtypeStruct((1024, 2), 'float32')).shape
    (2,)
  """

  @functools.wraps(fn)
  def wrapper(*args, **kwargs):
    leaves, treedef = jax.tree.flatten((args, kwargs))
    unknown = [
      i for i, x in enumerate(leaves) if isinstance(x, jax.ShapeDtypeStruct)
    ]
    if not unknown:
      # Evaluated from shapes or from values, names come in the same order.
      return jax.tree.map(lambda x: x, fn(*args, **kwargs))

    def of_unknown(*values):
      filled = list(leaves)
      for i, value in zip(unknown, values):
        filled[i] = value
      args, kwargs = jax.tree.unflatten(treedef, filled)
      return fn(*args, **kwargs)

    try:
      return eval_known(of_unknown, *(leaves[i] for i in unknown))
    except DependsOnInput as e:
      raise errors.LazyInitError(e.aval) from None

  return wrapper
