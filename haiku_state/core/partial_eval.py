"""Evaluation of a function from values and, where values do not matter, shapes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
from jax.interpreters import partial_eval as pe

from haiku_state import errors
from haiku_state._versions import jaxprs, typeof


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

  Args:
    fn: returns a pytree of arrays.
    *types: see `Traced`.

  Raises:
    DependsOnInput: a result depends on an input.
  """
  return Traced(lambda *args: (fn(*args),), *types).known(0)


class Traced:
  """A function that was traced, whose results can be computed by themselves.

  Args:
    fn: returns a tuple of results, which are pytrees of arrays.
    *types: for each argument a pytree of `jax.ShapeDtypeStruct`.

  Attributes:
    closes_over: the arrays that it uses and does not get.
  """

  def __init__(self, fn: Callable[..., Any], *types: Any):
    # What is a value already stays as it is, a Python number for example. What
    # is traced must not stay here when the trace ends.
    self._leaves: list[list[Any]] = []
    self._trees: list[Any] = []

    def flat(*args):
      traced = []
      for result in fn(*args):
        found, tree = jax.tree.flatten(result)
        is_traced = [isinstance(x, jax.core.Tracer) for x in found]
        traced += [x for t, x in zip(is_traced, found) if t]
        self._trees.append(tree)
        self._leaves.append(
          [_TRACED if t else x for t, x in zip(is_traced, found)]
        )
      return traced

    closed = jax.make_jaxpr(flat)(*types)
    self._jaxpr = closed.jaxpr
    self.closes_over = closed.consts

  def can_call(self, i: int, *args: Any) -> bool:
    """Returns whether `call` returns what another trace for arguments would."""
    if any(map(_is_literal, self._part(i).outvars)):
      return False  # It does not tell all of its type.
    found = jax.tree.leaves(args)
    return len(found) == len(self._jaxpr.invars) and all(
      typeof(x) == v.aval for x, v in zip(found, self._jaxpr.invars)
    )

  def call(self, i: int, *args: Any) -> Any:
    """Returns a result for arguments of these types."""
    return self._evaluated(i, self._part(i), jax.tree.leaves(args))

  def known(self, i: int) -> Any:
    """Returns a result that the inputs must not matter for.

    Only what it needs is computed, one operation at a time, as it would be
    without tracing.

    Raises:
      DependsOnInput: it depends on an input.
    """
    jaxpr = self._part(i)
    constants = dict(zip(jaxpr.constvars, self.closes_over))
    if all(v in constants for v in _variables(jaxpr.outvars)):
      # Nothing is to be computed.
      out = (v.val if _is_literal(v) else constants[v] for v in jaxpr.outvars)
      return self._result(i, out)
    jaxpr = jaxpr.replace(eqns=_needed_eqns(jaxpr))
    _check_known(jaxpr)
    # The inputs are not used, so what stands for them does not matter.
    return self._evaluated(i, jaxpr, [0] * len(jaxpr.invars))

  def _part(self, i: int) -> Any:
    """Returns the program of one result."""
    sizes = [sum(x is _TRACED for x in leaves) for leaves in self._leaves]
    start = sum(sizes[:i])
    return self._jaxpr.replace(
      outvars=self._jaxpr.outvars[start : start + sizes[i]]
    )

  def _evaluated(self, i: int, jaxpr: Any, args: Sequence[Any]) -> Any:
    closed = jaxprs.ClosedJaxpr(jaxpr, self.closes_over)
    return self._result(i, jaxprs.jaxpr_as_fun(closed)(*args))

  def _result(self, i: int, traced: Iterable[Any]) -> Any:
    """Returns a result that was not traced, but computed."""
    values = iter(traced)
    leaves = [next(values) if x is _TRACED else x for x in self._leaves[i]]
    # A literal of the jaxpr is of a type of JAX's own.
    leaves = [
      jnp.asarray(x) if was is _TRACED and not isinstance(x, jax.Array) else x
      for was, x in zip(self._leaves[i], leaves)
    ]
    return jax.tree.unflatten(self._trees[i], leaves)


def _is_literal(v: Any) -> bool:
  return isinstance(v, jaxprs.Literal)


def _variables(atoms: Iterable[Any]) -> list[Any]:
  return [v for v in atoms if not _is_literal(v)]


# Stands for a leaf that is traced.
_TRACED = object()


def _check_known(jaxpr: Any) -> None:
  """Raises if an output depends on an input."""

  unknown = set(jaxpr.invars)
  for eqn in jaxpr.eqns:
    if not unknown.isdisjoint(_variables(eqn.invars)):
      unknown.update(eqn.outvars)
  for v in _variables(jaxpr.outvars):
    if v in unknown:
      raise DependsOnInput(v.aval)


def _needed_eqns(jaxpr: Any) -> list[Any]:
  """Returns the equations that the outputs depend on, in order.

  An equation that calls a function keeps of it what the outputs need, so that
  a constant may come out of a call that also has inputs.
  """
  all_outputs = [True] * len(jaxpr.outvars)
  jaxpr, _ = pe.dce_jaxpr(jaxpr, all_outputs, instantiate=True)
  # That keeps what has effects.
  needed = set(_variables(jaxpr.outvars))
  eqns = []
  for eqn in reversed(jaxpr.eqns):
    if not any(v in needed for v in eqn.outvars):
      continue
    eqns.append(eqn)
    needed.update(_variables(eqn.invars))
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
