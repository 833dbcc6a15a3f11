"""What the first trace of a loop's body shows.

Flax traces it once for what is the same in all steps, and then for the loop. What
was made in the first trace is there in the second, and keys are counted in both.
So the first is all that is needed if every key in it was for a parameter that is
the same in all steps: the second would draw none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from haiku_state.core import tracers
from haiku_state.core._in_loop import InLoop
from haiku_state.core._in_run import InRun
from haiku_state.core._lift.packing import Pack
from haiku_state.core.filters import (
  CollectionFilter,
  in_filter,
  intersect_filters,
  is_filter_empty,
)
from haiku_state.core.scope import Scope


class FirstTrace:
  """The first trace of a loop's body.

  Args:
    packed: the scopes.
    broadcast: the collections that are the same in all steps.
    step: the body: a function of the variables that are broadcast, and of other
      arguments. It returns them, as they are after it, and other things.
    keys_are_split: whether parameters may have other keys in each step.

  Attributes:
    is_needed: whether it could show anything.
    shows_all: whether another trace would show the same program.
  """

  def __init__(
    self,
    packed: Pack,
    broadcast: CollectionFilter,
    step: Callable[..., Any],
    keys_are_split: bool,
  ):
    self._packed = packed
    self._filter = broadcast
    self._step = step
    self._around = tracers.Trace()
    self._stores: dict[Scope, InLoop] = {}
    self.shows_all = False
    makes = any(map(self._may_make, packed.tops))
    self.is_needed = makes or any(
      streams for group in packed.rngs for streams in group
    )
    self._is_watched = self.is_needed and not (makes and keys_are_split)

  def _may_make(self, top: Scope) -> bool:
    """Returns whether a scope may change what is broadcast."""
    return not is_filter_empty(intersect_filters(top.mutable, self._filter))

  def step(self, given: Any, *args: Any) -> Any:
    """Is the body; it is watched where it is called first."""
    if not self._is_watched:
      return self._step(given, *args)
    self._is_watched = False
    before = self._drawn()
    self._packed.in_run = self._in_run
    try:
      broadcast, *others = self._step(given, *args)
    finally:
      self._packed.in_run = None
    # They know of keys of the trace, which is over soon.
    stores, self._stores = self._stores, {}
    self.shows_all = all(
      self._is_clear(top, store, broadcast) for top, store in stores.items()
    ) and self._drawn() - before == sum(s.keys for s in stores.values())
    return broadcast, *others

  def _is_clear(self, top: Scope, store: InLoop, broadcast: Any) -> bool:
    found = broadcast[self._packed.tops.index(top)]
    return store.is_clear and all(
      map(store.is_from_outside, jax.tree.leaves(found))
    )

  def _in_run(self, top: Scope, inner: Scope) -> Callable[..., InRun]:
    """Returns what makes the store of an inner scope."""
    if not self._may_make(top):
      return InRun

    def is_same(col: str) -> bool:
      return in_filter(self._filter, col) and in_filter(top.mutable, col)

    run = inner._run

    def make(*args: Any) -> InLoop:
      run.in_run = InRun  # It refers to the run, and is called once.
      store = self._stores[top] = InLoop(
        *args,
        around=self._around,
        is_same=is_same,
        drawn=lambda: run.drawn,
      )
      return store

    return make

  def _drawn(self) -> int:
    """Returns how many keys have been drawn, here and below."""
    return sum(_total(top.rng_counters) for top in self._packed.tops)


def _total(counts: dict[Any, Any]) -> int:
  return sum(_total(n) if isinstance(n, dict) else n for n in counts.values())
