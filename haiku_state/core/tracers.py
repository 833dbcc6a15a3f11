"""Which JAX transformation is being traced."""

from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.core
import jax.numpy as jnp

from haiku_state._versions import current_trace as current_trace
from haiku_state._versions import keep_trace


def check_trace_level(base_level: Any) -> None:
  """Allows what is done at any trace level, as Flax has come to do.

  A scope can be used inside of JAX's own transforms. What must not leave them
  is found where a variable is set.

  >>> from haiku_state import core
  >>> core.check_trace_level(core.current_trace())

  Args:
    base_level: a token from `current_trace`.
  """
  del base_level


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
