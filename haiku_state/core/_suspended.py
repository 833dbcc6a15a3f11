"""The variables of a run while another run goes on inside of it.

A lifted transform runs a function as a run of its own, and Haiku's frame of the
run around it is out of reach. A module of that run, over which the function
closes, is used as Flax uses it: what it reads are constants of the transform.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.core

from haiku_state import errors
from haiku_state.core import tracers
from haiku_state.core._store import AtRest, InRun

if TYPE_CHECKING:
  from haiku_state.core.scope import Scope


class Suspended(AtRest):
  """Variables of a run whose frame is hidden by that of another run.

  Args:
    read: returns the variables as they are now. It is called when they are
      wanted, which is seldom.
    trace: the trace that the run began in.
  """

  def __init__(self, read: Callable[[], dict[str, Any]], trace: tracers.Trace):
    self.touched = None
    self._read = read
    self._trace = trace
    self._later: list[tuple[str, tuple[Any, ...]]] = []

  @functools.cached_property
  def tree(self) -> dict[str, Any]:  # type: ignore[override]
    return self._read()

  def put(self, scope: Scope, col: str, name: str, value: Any) -> None:
    self._set_later('put', scope, col, name, value)
    super().put(scope, col, name, value)

  def merge(self, scope: Scope, col: str, tree: Any, only: Any) -> None:
    """Puts a tree of variables below a scope: see `InRun.merge`."""
    if only is None or only:
      self._set_later('merge', scope, col, tree, only)
      super().merge(scope, col, tree, only)

  def _set_later(self, method: str, *args: Any) -> None:
    """Notes what to do when the frame can be reached again.

    Raises:
      JaxTransformError: a value would leave the transform that made it.
    """
    if not self._trace.is_current() and any(
      isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(args[1:])
    ):
      raise errors.JaxTransformError()
    self._later.append((method, args))

  def param(self, scope: Scope, name: str, init_fn, args, kwargs) -> Any:
    # Outside of the transform, so that no value has to leave it.
    with self._trace.entered():
      return super().param(scope, name, init_fn, args, kwargs)

  def resume(self, frame: InRun) -> None:
    """Puts into the frame what was set in the meantime."""
    for method, args in self._later:
      getattr(frame, method)(*args)
