"""One run: the variables of a root scope, in a dict or in Haiku's frame.

Between runs the variables are at rest in a dict. `execute` spreads them over
Haiku's frame, calls a function, and gathers what may have changed.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import haiku as hk
import jax
import jax.core
import jax.numpy as jnp

from haiku_state.core import _haiku, tracers
from haiku_state.core._store import AtRest, InHaiku, InRun, Store
from haiku_state.core._suspended import Suspended
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

  __slots__ = ('store', 'haiku_root', 'adopted', '_is_recorded', '_depth')

  def __init__(self, store: Store, haiku_root: str):
    self.store = store
    self.haiku_root = haiku_root
    self.adopted: weakref.WeakValueDictionary[Any, Any] = (
      weakref.WeakValueDictionary()
    )
    self._is_recorded: bool | None = None
    self._depth = len(_active.runs)

  @property
  def is_at_rest(self) -> bool:
    """Whether no run is going on."""
    return type(self.store) is AtRest

  @property
  def is_in_haiku(self) -> bool:
    """Whether this is the run of somebody's `hk.transform`."""
    return type(self.store) is InHaiku

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
    return execute([scope.root], body)

  def has_haiku_rng(self) -> bool:
    """Returns whether keys come from Haiku, and there are some."""
    return self.is_in_haiku and hk.maybe_get_rng_sequence_state() is not None

  def haiku_rng(self) -> jax.Array:
    """Returns the next key of Haiku's."""
    return hk.next_rng_key()

  def check_reachable(self) -> None:
    """Raises if a run of ours hides the `hk.transform` of this run.

    Raises:
      ValueError: it does.
    """
    if len(_active.runs) != self._depth:
      raise ValueError(
        f'Module "{self.haiku_root}" belongs to the hk.transform around, whose'
        ' variables cannot be reached in a lifted transform, nor in init or'
        ' apply of another module. Make the module there, or give it to the'
        ' lifted transform among its modules.'
      )

  def is_recorded(self) -> bool:
    """Returns whether JAX records what is computed here, as under `jax.jit`.

    Under a `jax.vmap` alone it computes, operation by operation.
    """
    if self._is_recorded is None:
      # Where all is recorded, constants are, too.
      self._is_recorded = isinstance(jnp.zeros(()), jax.core.Tracer)
    return self._is_recorded

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


def execute(roots: Sequence[Scope], body: Callable[[], Any]) -> Any:
  """Calls `body` where the variables of some roots are in Haiku's frame.

  Args:
    roots: root scopes, no two of which have the same Haiku name.
    body: the function, without arguments.

  Returns:
    What `body` returns. See `Run.execute`.
  """
  resting = [scope for scope in roots if scope._run.is_at_rest]
  if not resting:
    return body()
  entered = [_Entered(scope) for scope in resting]
  params = _merged(e.params for e in entered)
  state = _merged(e.state for e in entered)
  with_rngs = [scope for scope in resting if scope._streams]
  rng = _rng_of(with_rngs[0]) if with_rngs else None
  if rng is not None:
    body = functools.partial(_count_rng, with_rngs[0], rng, body)
  for e in entered:
    e.run.store = e.frame
  hidden = _suspend_current()
  _active.runs.append(entered)
  try:
    if any(e.mutable('params') for e in entered):
      note = functools.partial(_note, entered)
      out, params, state, first = _haiku.run_init(
        params, state, rng, body, note
      )
      for e in entered:
        if e.initializing:
          e.frame.take_first(state, first)
    else:
      for e in entered:
        e.frame.fixed = e.params
      out, state = _haiku.run_apply(params, state, rng, body)
  finally:
    _active.runs.pop()
    for e in entered:
      e.run.store = e.rest
    for e, _ in hidden:
      e.run.store = e.frame
  for e in entered:
    e.run.store = e.leave(params, state)
  for e, store in hidden:
    store.resume(e.frame)
  return out


def _suspend_current() -> list[tuple[_Entered, Suspended]]:
  """Takes the run that goes on out of its frame, which is about to be hidden."""
  hidden = []
  for e in _active.runs[-1] if _active.runs else ():
    store = e.run.store = Suspended(e.variables_now, e.trace)
    hidden.append((e, store))
  return hidden


class _Active(threading.local):
  """The runs that go on in this thread, the innermost last."""

  def __init__(self) -> None:
    self.runs: list[list[_Entered]] = []


_active = _Active()


class _Entered:
  """A run whose variables are taken into Haiku's frame."""

  def __init__(self, scope: Scope):
    self.run = scope._run
    self.rest: Any = self.run.store
    self.trace = tracers.Trace()
    self.filter = scope.mutable
    self.initializing = scope.get_flag('initializing', False)
    self.root = self.run.haiku_root
    self.params, self.state, names = _haiku.spread(
      self.rest.tree, self.root, self.mutable
    )
    self.frame = InRun(names)

  def mutable(self, col: str) -> bool:
    return in_filter(self.filter, col)

  def leave(self, params: _haiku.Bundles, state: _haiku.Bundles) -> AtRest:
    """Returns the variables at rest after the run."""
    # Scopes that outlive the run know the frame: it must hold no tracers.
    self.frame.made = ({}, {})
    return AtRest(self._gathered(params, state), self.frame.touched)

  def variables_now(self) -> dict[str, Any]:
    """Returns the variables, without looking into Haiku's frame.

    What Haiku's modules made in this run is not among them.
    """
    params, state = self.frame.made
    return self._gathered(
      _overlaid(self.params, params), _overlaid(self.state, state)
    )

  def _gathered(self, params: _haiku.Bundles, state: _haiku.Bundles) -> Any:
    self.frame.remove_dropped(params)
    self.frame.remove_dropped(state)
    changed: dict[str, Any] = {}
    if self.mutable('params'):
      own = _haiku.below(params, self.root)
      changed = _haiku.from_haiku(own, {}, self.root) if own else {}
    own = _haiku.below(state, self.root)
    _haiku.gather_state(changed, own, self.root, self.mutable)
    self.frame.complete(changed, self.mutable)
    return {**self.rest.tree, **changed}


def _note(entered, path: str, key: str, is_param: bool) -> None:
  """Tells the run that it belongs to of a variable that is new."""
  if _active.runs[-1] is not entered:
    return  # It is new in a run inside of this one.
  for e in entered:
    if _haiku.is_below(path, e.root):
      e.frame.note(e.root, path, key, is_param)


def _merged(bundles: Any) -> Any:
  """Returns the bundles of several runs as one."""
  first, *rest = bundles
  for more in rest:
    first = {**first, **more}
  return first


def _overlaid(bundles: _haiku.Bundles, more: _haiku.Bundles) -> Any:
  return {
    path: {**bundles.get(path, {}), **more.get(path, {})}
    for path in {**bundles, **more}
  }


# Among a scope's counts of keys: the runs in which Haiku's modules drew keys.
_HAIKU_RUNS = 'haiku_runs'


def _rng_of(root: Scope) -> jax.Array:
  """Returns the key for Haiku's own modules, another one for each run.

  They know one stream: `params` if it is given, else the first by name.
  """
  streams = root._streams
  name = 'params' if 'params' in streams else min(streams)
  rng = _haiku.haiku_rng(streams[name].as_jax_rng())
  count = root.rng_counters.get(_HAIKU_RUNS, 0)
  return jax.random.fold_in(rng, count) if count else rng


def _count_rng(root: Scope, rng: jax.Array, body: Callable[[], Any]) -> Any:
  """Calls `body`, and counts the run if it drew from Haiku's keys."""
  out = body()
  if _haiku.rng_was_used(rng):
    count = root.rng_counters.get(_HAIKU_RUNS, 0)
    root.rng_counters[_HAIKU_RUNS] = count + 1
  return out
