"""One run: the variables of a root scope, in a dict or in Haiku's frame.

Between runs the variables are at rest in a dict. `execute` spreads them over
Haiku's frame, calls a function, and gathers what may have changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import weakref

import haiku as hk
import jax

from haiku_state.core import _haiku, tracers
from haiku_state.core._store import AtRest, InHaiku, InRun, Store
from haiku_state.core.filters import in_filter

if TYPE_CHECKING:
  from haiku_state.core.scope import Scope


class Run:
  """What all scopes of one root share.

  Attributes:
    store: where the variables are now.
    haiku_root: the Haiku name of the root.
    adopted: copies of modules from outside, by the id of the original.
  """

  __slots__ = ('store', 'haiku_root', 'adopted')

  def __init__(self, store: Store, haiku_root: str):
    self.store = store
    self.haiku_root = haiku_root
    self.adopted: weakref.WeakValueDictionary[Any, Any] = (
      weakref.WeakValueDictionary()
    )

  @property
  def is_at_rest(self) -> bool:
    """Whether no run is going on."""
    return type(self.store) is AtRest

  @classmethod
  def at_rest(cls, variables: Mapping[str, Any]) -> Run:
    """Returns a run that has not begun."""
    return cls(AtRest(variables), 'scope')  # type: ignore[arg-type]

  @classmethod
  def in_haiku(cls, haiku_root: str) -> Run:
    """Returns the run of somebody's `hk.transform`, seen from one module."""
    return cls(InHaiku(), haiku_root)

  def execute(self, scope: Scope, body: Callable[[], Any]) -> Any:
    """Calls `body` where the variables are in Haiku's frame.

    Args:
      scope: the root, or any scope below it.
      body: the function, without arguments.

    Returns:
      What `body` returns. The variables at rest are changed when it returns,
      and only then: an exception leaves them as they were.
    """
    rest = self.store
    if not isinstance(rest, AtRest):
      return body()
    filters = scope.mutable

    def mutable(col: str) -> bool:
      return in_filter(filters, col)

    root = self.haiku_root
    params, state, names = _haiku.spread(rest.tree, root, mutable)
    rng = self._rng_of(scope.root)
    frame = self.store = InRun(names)
    changed: dict[str, Any] = {}
    try:
      if mutable('params'):
        out, params, state = _haiku.run_init(params, state, rng, body)
        frame.remove_dropped(params)
        frame.remove_dropped(state)
        if params:
          changed = _haiku.from_haiku(params, {}, root)
      else:
        out, state = _haiku.run_apply(params, state, rng, body)
      _haiku.gather_state(changed, state, root, mutable)
      frame.complete(changed, mutable)
    finally:
      self.store = rest
    self.store = AtRest({**rest.tree, **changed})
    return out

  def _rng_of(self, root: Scope) -> jax.Array | None:
    """Returns the key for Haiku's own modules.

    They know one stream: `params` if it is given, else the first by name.
    """
    streams = root._streams
    if not streams:
      return None
    name = 'params' if 'params' in streams else min(streams)
    return _haiku.haiku_rng(streams[name].as_jax_rng())

  def has_haiku_rng(self) -> bool:
    """Returns whether keys come from Haiku, and there are some."""
    return (
      isinstance(self.store, InHaiku)
      and hk.maybe_get_rng_sequence_state() is not None
    )

  def haiku_rng(self) -> jax.Array:
    """Returns the next key of Haiku's."""
    return hk.next_rng_key()

  def check_trace(self, level: Any) -> None:
    """Raises if a JAX transformation has come between a scope and its use.

    Haiku's own transforms (`hk.scan`, `hk.remat`, ...) may: they carry the
    frame along. At rest there is no frame to leave: each call of a bound
    module is a run of its own, on whatever level.

    Raises:
      JaxTransformError: a transformation of JAX, which knows nothing of the
        frame, was entered.
    """
    if tracers.current_trace() == level or not isinstance(self.store, InRun):
      return
    if not _haiku.frame_is_current():
      tracers.check_trace_level(level)
