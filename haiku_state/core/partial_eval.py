"""Evaluation of a function from values and, where values do not matter, shapes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core as jex_core

from haiku_state import errors


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
      return fn(*args, **kwargs)
    out_tree: Any = None

    def of_unknown(*values):
      nonlocal out_tree
      filled = list(leaves)
      for i, value in zip(unknown, values):
        filled[i] = value
      args, kwargs = jax.tree.unflatten(treedef, filled)
      out, out_tree = jax.tree.flatten(fn(*args, **kwargs))
      return out

    closed = jax.make_jaxpr(of_unknown)(*(leaves[i] for i in unknown))
    return jax.tree.unflatten(out_tree, _eval_known(closed))

  return wrapper


def _eval_known(closed: jex_core.ClosedJaxpr) -> list[Any]:
  """Returns the outputs of a jaxpr, none of which may need its inputs."""
  jaxpr = closed.jaxpr
  eqns = _needed_eqns(jaxpr)
  inputs = set(jaxpr.invars)
  # What the needed equations and the outputs take.
  used = [v for eqn in eqns for v in eqn.invars] + list(jaxpr.outvars)
  for v in used:
    if not isinstance(v, jex_core.Literal) and v in inputs:
      raise errors.LazyInitError(v.aval)
  known = jex_core.ClosedJaxpr(jaxpr.replace(eqns=eqns), closed.consts)
  # The inputs are not used, so what stands for them does not matter.
  return list(jex_core.jaxpr_as_fun(known)(*(0 for _ in jaxpr.invars)))


def _needed_eqns(jaxpr: jex_core.Jaxpr) -> list[Any]:
  """Returns the equations that the outputs depend on, in order."""
  needed = {v for v in jaxpr.outvars if not isinstance(v, jex_core.Literal)}
  eqns = []
  for eqn in reversed(jaxpr.eqns):
    if any(v in needed for v in eqn.outvars):
      eqns.append(eqn)
      needed.update(
        v for v in eqn.invars if not isinstance(v, jex_core.Literal)
      )
  return eqns[::-1]
