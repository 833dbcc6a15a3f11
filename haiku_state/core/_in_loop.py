"""The variables of a loop's body, some of which are the same in all steps."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.core

from haiku_state._versions import is_traced_by, traces_inside
from haiku_state.core import tracers
from haiku_state.core._in_run import InRun
from haiku_state.core._initial import is_pure
from haiku_state.core._place import Place
from haiku_state.core._store import MAPPINGS, Make
from haiku_state.core.partial_eval import Traced

_MISSING = object()


class InLoop(InRun):
  """Variables in a run of a loop's body.

  A parameter that is the same in all steps is made in the trace around the loop
  when the body first asks for it, and is a constant of the loop.

  Args:
    *args: see `InRun`.
    around: the trace around the loop.
    is_same: whether a collection is the same in all steps.
    drawn: returns how many keys were drawn in this run.

  Attributes:
    is_clear: whether another trace, where all of what is the same is there from
      the beginning, would be like this one: nobody has set or seen such things
      here, but for parameters that are asked for.
    keys: how many keys were drawn for what was made around the loop.
  """

  def __init__(
    self,
    *args: Any,
    around: tracers.Trace,
    is_same: Callable[[str], bool],
    drawn: Callable[[], int],
  ):
    super().__init__(*args)
    self.is_clear = True
    self.keys = 0
    self._is_same = is_same
    self._drawn = drawn
    self._is_pure: Callable[[], bool] = lambda: False
    self._outside: dict[int, Any] = {}
    if is_same('params'):
      self.initial_trace = around

  def is_from_outside(self, value: Any) -> bool:
    """Returns whether a value was given, made around the loop, or not traced."""
    if not self._outside:
      for bundles in self.given:
        self._note_outside(bundles)
    return not isinstance(value, jax.core.Tracer) or id(value) in self._outside

  def _note_outside(self, tree: Any) -> None:
    self._outside.update((id(x), x) for x in jax.tree.leaves(tree))

  # --- Making ---

  def param(
    self, place: Place, name: str, init_fn, args, kwargs, make: Make
  ) -> Any:
    self._is_pure = functools.partial(is_pure, init_fn, args, kwargs)
    return super().param(place, name, init_fn, args, kwargs, make)

  def _initial(self, make: Make) -> Any:
    if not self._is_same('params') or not self.trace.is_current():
      return super()._initial(make)
    before = self._drawn()
    value = self._made_around(make)
    self.keys += self._drawn() - before
    return value

  def _made_around(self, make: Make) -> Any:
    around = self.initial_trace
    if self._is_pure():
      with around.entered():
        value = make()
    else:
      inside = traces_inside(around.is_current)
      with around.entered():
        traced = Traced(lambda: (make(),))
        if any(_is_inside(x, inside) for x in traced.closes_over):
          around = self.trace  # It uses values of the step.
      with around.entered():
        value = traced.known(0)
    if around is self.initial_trace:
      self._note_outside(value)
    return value

  # --- What another trace might answer otherwise ---

  def has(self, place: Place, col: str, name: str) -> bool:
    found = super().has(place, col, name)
    self._look(col, found)
    return found

  def get(self, place: Place, col: str, name: str, default: Any = None) -> Any:
    found = super().get(place, col, name, _MISSING)
    # Below a level there may be more.
    self._look(col, found is not _MISSING and not isinstance(found, MAPPINGS))
    return default if found is _MISSING else found

  def is_empty(self, col: str) -> bool:
    self._look(col)
    return super().is_empty(col)

  def has_collection(self, col: str) -> bool:
    self._look(col)
    return super().has_collection(col)

  def variables(self, place: Place) -> dict[str, Any]:
    self.is_clear = False
    return super().variables(place)

  def put(self, place: Place, col: str, name: str, value: Any) -> None:
    self._look(col)
    super().put(place, col, name, value)

  def merge(self, place: Place, col: str, tree: Any, only: Any) -> None:
    self._look(col)
    super().merge(place, col, tree, only)

  def hide(self) -> None:
    self.is_clear = False

  def _look(self, col: str, stays: bool = False) -> None:
    """Notes that somebody looks at a collection, and whether that stays so."""
    if not stays and self._is_same(col):
      self.is_clear = False


def _is_inside(value: Any, traces: list[Any]) -> bool:
  return isinstance(value, jax.core.Tracer) and any(
    is_traced_by(value, trace) for trace in traces
  )
