"""One run: the variables of a root in a dict, or in Haiku's frame.

Between runs the variables are at rest in a dict. `execute` spreads them over
Haiku's frame, calls a function, and gathers what may have changed. What goes on
goes on in one thread: where the variables are now is a question that each
thread answers for itself.
"""

from __future__ import annotations

import types
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import haiku as hk
import jax

from haiku_state._extents import Extent, Extents
from haiku_state.core import _bundles, _haiku_run, _haiku_words, _names, tracers
from haiku_state.core._in_haiku import InHaiku
from haiku_state.core._in_run import InRun
from haiku_state.core._out_of_reach import OutOfReach
from haiku_state.core._place import Place
from haiku_state.core._store import AtRest
from haiku_state.core.filters import CollectionFilter, in_filter

Store = AtRest | InRun | InHaiku


class _Going(Extent):
  """What goes on in a thread.

  Attributes:
    stores: where the variables of each run are that goes on, by the run.
    entered: what was taken into the frame of the innermost run.
    depth: how many runs go on, one in the other.
  """

  __slots__ = ('stores', 'entered', 'depth')

  def __init__(
    self,
    around: _Going | None = None,
    stores: Mapping[Run, Store] = types.MappingProxyType({}),
    entered: Sequence[_Entered] = (),
  ):
    self.entered = entered
    if around is None:
      self.stores: Mapping[Run, Store] = stores
      self.depth = 0
      return
    # The frame of the run around is hidden.
    hidden = {e.run: OutOfReach(e.frame) for e in around.entered}
    self.stores = {**around.stores, **hidden, **stores}
    self.depth = around.depth + 1


_thread = Extents(_Going)


class Run:
  """What all scopes of one root share: a description, the same in all threads.

  Attributes:
    root: the place of the root.
    resting: where the variables are while no run goes on.
    is_in_haiku: whether this is the run of somebody's `hk.transform`.
    owner: of variables that are used in one run only, the run that goes on;
      other threads of its making see them through it.
    drawn: how many keys were drawn.
    in_run: makes the store while a run goes on.
  """

  __slots__ = (
    'root',
    'resting',
    'is_in_haiku',
    'owner',
    'drawn',
    'in_run',
    '_depth',
  )

  def __init__(self, resting: AtRest | InHaiku, haiku_root: str):
    self.root = Place(haiku_root)
    self.resting = resting
    self.is_in_haiku = type(resting) is InHaiku
    self.owner: _Entered | None = None
    self.drawn = 0
    self.in_run: Callable[..., InRun] = InRun
    self._depth = current_depth()

  @classmethod
  def at_rest(cls, variables: Mapping[str, Any]) -> Run:
    """Returns a run that has not begun."""
    return cls(AtRest(variables), 'scope')

  @classmethod
  def in_haiku(cls, haiku_root: str, depth: int) -> Run:
    """Returns the run of somebody's `hk.transform`, seen from one module.

    Args:
      haiku_root: the Haiku name of the module.
      depth: `current_depth` where it was made.
    """
    run = cls(InHaiku(), haiku_root)
    run._depth = depth
    return run

  @property
  def haiku_root(self) -> str:
    """The Haiku name of the root."""
    return self.root.path

  @haiku_root.setter
  def haiku_root(self, name: str) -> None:
    if name != self.root.path:
      self.root = Place(name)

  @property
  def store(self) -> Store:
    """Where the variables are now, for this thread."""
    store = _thread.current().stores.get(self)
    if store is None:
      owner = self.owner
      store = self.resting if owner is None else owner.from_outside()
    return store

  @property
  def is_at_rest(self) -> bool:
    """Whether no run goes on in this thread."""
    return not self.is_in_haiku and self not in _thread.current().stores

  def note_module(self, path: str) -> None:
    """Notes that a module of ours is at a place, in the run that goes on."""
    store = _thread.current().stores.get(self)
    if isinstance(store, InRun) and type(store) is not OutOfReach:
      store.modules.add(path)

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
    if current_depth() != self._depth:
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
    trace = self.store.initial_trace or tracers.Trace()
    return trace.is_recorded()

  def execute(self, root: Root, body: Callable[[], Any]) -> Any:
    """Calls `body` where the variables can be used, in this thread.

    Args:
      root: what is to be known of the root.
      body: the function, without arguments.

    Returns:
      What `body` returns: see `execute`.
    """
    if self.owner is not None and self.is_at_rest:
      return _visit(self, self.owner, body)
    return execute([root], body)


class Root(NamedTuple):
  """What a run needs to know of the scope that it begins with.

  Attributes:
    run: its run.
    mutable: which collections may be changed.
    streams: its key streams.
    counts: its counts of keys.
    initializing: whether its variables are made.
    in_haiku: whether it is a part of somebody's `hk.transform`.
  """

  run: Run
  mutable: CollectionFilter
  streams: Mapping[str, Any]
  counts: dict[Any, Any]
  initializing: bool
  in_haiku: bool


def execute(
  roots: Sequence[Root], body: Callable[[], Any], once: bool = False
) -> Any:
  """Calls `body` where the variables of some roots are in Haiku's frame.

  Args:
    roots: roots, no two of which have the same Haiku name.
    body: the function, without arguments.
    once: whether the scopes of these roots are used in this run only. Then a
      thread that `body` starts finds the variables of this run.

  Returns:
    What `body` returns. The variables at rest are changed when it returns, and
    only then: an exception leaves them as they were.
  """
  resting = [root for root in roots if root.run.is_at_rest]
  if not resting:
    return body()
  entered = [_Entered(root) for root in resting]
  rng_root = next((root for root in resting if root.streams), None)
  rng = None if rng_root is None else _rng_of(rng_root)
  if once:
    for e in entered:
      e.run.owner = e

  def whole() -> Any:
    out = body()
    for e in entered:
      e.frame.catch_up()
    if rng_root and rng is not None and _haiku_run.rng_was_used(rng):
      _count_rng(rng_root)
    return out

  try:
    stores = {e.run: e.frame for e in entered}
    with _thread.begin(_Going(_thread.current(), stores, entered)):
      out, params, state = _run(entered, rng, whole)
  finally:
    if once:
      for e in entered:
        e.run.owner = None
  _check_made_anew(entered, state)
  # All of them, or none: each may find a mistake.
  rests = [
    e.leave(own_params, own_state)
    for e, own_params, own_state in zip(
      entered, _shares(entered, params), _shares(entered, state)
    )
  ]
  for e, rest in zip(entered, rests):
    e.run.resting = rest
  return out


def _check_made_anew(entered: list[_Entered], state: _bundles.Bundles) -> None:
  """Raises if a module of Haiku's of the run around has made its state anew.

  The run of a lifted transform has what lies below the modules that it is given.
  What another module asks for there would be made, and be another value.

  Raises:
    ValueError: one has.
  """
  given = {path for e in entered for path in e.frame.given[1]}
  new = [
    path
    for path, bundle in state.items()
    if bundle
    and path not in given
    and not any(_names.is_below(path, e.path) for e in entered)
  ]
  if new:
    _haiku_words.check_not_around(new)


def _shares(
  entered: list[_Entered], bundles: _bundles.Bundles
) -> list[_bundles.Bundles]:
  """Returns the bundles of each root.

  What Haiku's modules with forced names have is below none: it is the first's.
  """
  if len(entered) == 1:
    return [bundles]
  shares = [_bundles.below(bundles, e.path) for e in entered]
  for path, bundle in bundles.items():
    if not any(path in share for share in shares):
      shares[0][path] = bundle
  return shares


def _run(entered: list[_Entered], rng: Any, body: Callable[[], Any]) -> Any:
  """Returns the output of `body`, and the parameters and state after it."""
  params = _merged([e.frame.given[0] for e in entered])
  state = _merged([e.frame.given[1] for e in entered])
  if all(e.frame.has_fixed_params for e in entered):
    out, state = _haiku_run.run_apply(params, state, rng, body)
    return out, params, state

  def note(path: str, key: str, is_param: bool) -> None:
    if _thread.current().entered is not entered:
      return  # It is new in a run inside of this one.
    own = [e for e in entered if _names.is_below(path, e.path)]
    for e in own or entered[:1]:
      e.frame.note(e.path, path, key, is_param)

  def check(path: str) -> None:
    if _thread.current().entered is entered:
      for e in entered:
        e.frame.check_place(path)

  out, params, state, first = _haiku_run.run_init(
    params, state, rng, body, note, check
  )
  for e in entered:
    if e.initializing:
      e.frame.take_first(e.path, state, first)
    if e.frame.first is not None:
      e.frame.first = first  # Of these, creators have made what they wanted.
  return out, params, state


def _visit(run: Run, owner: _Entered, body: Callable[[], Any]) -> Any:
  """Calls `body` in a thread that is not the one in which the run goes on."""
  stores = {run: owner.from_outside()}
  with _thread.begin(_Going(_thread.current(), stores)):
    # Haiku calls methods in a frame only; here it is an empty one.
    return _haiku_run.run_apply({}, {}, None, body)[0]


class _Entered:
  """Variables of a run that are taken into Haiku's frame.

  Attributes:
    run: the run.
    path: the Haiku name of the root.
    frame: the variables in the frame.
    initializing: whether the variables are made.
    mutable: which collections may be changed.
  """

  def __init__(self, root: Root):
    self.run = root.run
    self.path = root.run.root.path
    self.initializing = root.initializing
    self._rest: Any = root.run.resting
    self.mutable = root.mutable
    params, state, names = _bundles.spread(
      self._rest.tree, self.path, self._is_mutable
    )
    self.frame = root.run.in_run(
      names, (params, state), not self._is_mutable('params'), tracers.Trace()
    )

    if root.in_haiku and root.initializing:
      self.frame.first = {}

  def _is_mutable(self, col: str) -> bool:
    return in_filter(self.mutable, col)

  def from_outside(self) -> OutOfReach:
    """Returns the variables for a thread that has not got the frame."""
    return OutOfReach(self.frame)

  def leave(self, params: _bundles.Bundles, state: _bundles.Bundles) -> AtRest:
    """Returns the variables at rest after the run."""
    frame = self.frame
    if frame.first is not None:
      frame.take_first_of_ours(state)
    frame.remove_dropped(params)
    frame.remove_dropped(state)
    changed: dict[str, Any] = {}
    if not frame.has_fixed_params and params:
      changed = _bundles.from_haiku(params, {}, self.path)
    if not self._is_mutable(_names.HAIKU_COLLECTION):
      frame.check_unchanged(state)
    _bundles.gather_state(changed, state, self.path, self._is_mutable)
    frame.complete(changed, self._is_mutable)
    return AtRest({**self._rest.tree, **changed}, frame.touched())


def _merged(bundles: Sequence[_bundles.Bundles]) -> _bundles.Bundles:
  """Returns the bundles of several runs as one."""
  first, *rest = bundles
  for more in rest:
    first = {**first, **more}
  return first


# Among a scope's counts of keys: the runs in which Haiku's modules drew keys.
_HAIKU_RUNS = 'haiku_runs'


def _rng_of(root: Root) -> jax.Array:
  """Returns the key for Haiku's own modules, another one for each run.

  They know one stream: `params` if it is given, else the first by name.
  """
  streams = root.streams
  name = 'params' if 'params' in streams else min(streams)
  rng = _haiku_run.haiku_rng(streams[name].as_jax_rng())
  count = root.counts.get(_HAIKU_RUNS, 0)
  return jax.random.fold_in(rng, count) if count else rng


def _count_rng(root: Root) -> None:
  """Counts a run in which Haiku's modules drew keys."""
  root.counts[_HAIKU_RUNS] = root.counts.get(_HAIKU_RUNS, 0) + 1


def current_depth() -> int:
  """Returns how many runs of ours go on in this thread, one in the other."""
  return _thread.current().depth


def rules_at(path: str) -> tuple[CollectionFilter, bool] | None:
  """Returns what may change at a Haiku module in a run of ours, if it is in one.

  Args:
    path: the Haiku name of the module.

  Returns:
    Which collections are mutable, and whether variables are made; None in
    somebody's `hk.transform`.
  """
  for e in _thread.current().entered:
    if _names.is_below(path, e.path):
      return e.mutable, e.initializing
  return None


class Occupied:
  """Which thread uses the modules that are bound below one scope.

  A module keeps track of its names and of its setup while it is used: two
  threads at once would mix them up. A thread takes the modules for as long as a
  call of its own lasts; another one that comes meanwhile uses copies. So does
  everybody after a call that was cut off while it kept track of something.

  Attributes:
    adopted: copies of modules from outside, by the id of the original.
  """

  __slots__ = ('adopted', '_by', '_taken')

  def __init__(self) -> None:
    self.adopted: weakref.WeakValueDictionary[Any, Any] = (
      weakref.WeakValueDictionary()
    )
    self._by: dict[None, Callable[[], Extent | None]] = {}
    self._taken: Extent | None = None

  @property
  def is_mine(self) -> bool:
    """Whether this thread uses the modules."""
    by = self._by.get(None)
    use = None if by is None else by()
    return use is not None and use._is_owned()

  def take(self) -> bool:
    """Returns whether this thread may use the modules, from `use` on."""
    use = Extent()
    by = weakref.ref(use)
    # Python does this at once: of two threads one is the first.
    if self._by.setdefault(None, by) is not by:
      return False
    self._taken = use
    return True

  def use(self) -> Extent:
    """Returns what a `with` statement is to enter, after `take`."""
    use, self._taken = self._taken, None
    assert use is not None
    return use

  def release(self) -> None:
    """Leaves the modules to the next one that wants them."""
    self._by.clear()
