"""Which JAX transformation is being traced."""

from typing import Any

from jax.extend import core as jex_core

from haiku_state import errors


def current_trace() -> Any:
  """Returns a token of the trace that is current; compare it with `==`."""
  return jex_core.get_opaque_trace_state(convention='haiku_state')


def check_trace_level(base_level: Any) -> None:
  """Raises unless `base_level` is the trace that is current.

  Args:
    base_level: a token from `current_trace`.

  Raises:
    JaxTransformError: a JAX transformation was entered or left since then.
  """
  if current_trace() != base_level:
    raise errors.JaxTransformError()
