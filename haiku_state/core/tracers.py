"""Which JAX transformation is being traced."""

from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.core
import jax.numpy as jnp

from haiku_state import errors
from haiku_state._versions import current_trace as current_trace
from haiku_state._versions import keep_trace


def check_trace_level(base_level: Any) -> None:
  """Raises unless `base_level` is the trace that is current.

  Args:
    base_level: a token from `current_trace`.

  Raises:
    JaxTransformError: a JAX transformation was entered or left since then.
  """
  if current_trace() != base_level:
    raise errors.JaxTransformError()


class Trace:
  """The trace that is current when this object is made."""

  def __init__(self) -> None:
    self._state = current_trace()
    self._enter = keep_trace()
    self._is_recorded: bool | None = None

  def is_current(self) -> bool:
    """Returns whether no transformation was entered or left since then."""
    return current_trace() == self._state

  def is_recorded(self) -> bool:
    """Returns whether JAX records what is computed here, as under `jax.jit`.

    Under a `jax.vmap` alone it computes, operation by operation.
    """
    if self._is_recorded is None:
      # Where all is recorded, constants are, too.
      self._is_recorded = isinstance(jnp.zeros(()), jax.core.Tracer)
    return self._is_recorded

  def entered(self) -> AbstractContextManager[None]:
    """Returns a context in which the trace is current once more."""
    return self._enter()
