"""The variables of a run where its frame cannot be reached.

Haiku shows one frame, that of the innermost run of this thread. Two things hide
that of a run: a lifted transform, which runs its function as a run of its own,
while a module of the run around may be in the closure of that function; and a
thread that a method starts, which has no frame at all. There a module is used
as Flax uses it: what it reads is what the run was given and what was set since,
and what it sets is put into the frame when that can be reached again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from haiku_state.core import _frame
from haiku_state.core._in_run import InRun
from haiku_state.core._store import Make, New


class OutOfReach(InRun):
  """A view of the variables of a run which does without its frame.

  What Haiku's own modules made in the run is not there.

  Args:
    run: the variables; names and values that are set here are set there.
  """

  def __init__(self, run: InRun):
    run.hide()
    vars(self).update(vars(run))
    self.later = ()  # What is to be done to the frame is not done here.
    self._do_later = run.later.append

  def _is_outside(self) -> bool:
    return self.trace.is_current()

  def _at(self, path: str, fn: Callable[..., Any], *args: Any) -> Any:
    return fn(*args)

  def _frame_read(self, path: str, col: str, name: str, leaf: Any) -> Any:
    is_state, key = self._key_of(col, name, leaf)
    for bundles in (self.made[is_state], self.given[is_state]):
      bundle = bundles.get(path)
      if bundle is not None and key in bundle:
        return bundle[key]
    raise _frame.Missing

  def _frame_array(self, path: str, key: str, shape: Any, dtype: Any) -> Any:
    # Its shape is checked by those who asked for it.
    raise ValueError

  def _frame_other(self, path: str, key: str) -> Any:
    return None

  def _frame_param(self, path: str, key: str, value: Any, again: Make) -> Any:
    bundle = self.made[0].setdefault(path, {})
    # Of two threads that make it at once, the first one does.
    made = bundle.setdefault(key, value)
    if made is value:
      new_param = functools.partial(_frame.new_param, is_noted=True)
      self._do_later(functools.partial(new_param, path, key, value, again))
    return made

  def _frame_state(self, path: str, key: str, value: Any, is_new: bool) -> None:
    self._note_state(path, key, value)
    new_state = functools.partial(_frame.new_state, is_noted=True)
    write = new_state if is_new else _frame.write_state
    self._do_later(functools.partial(write, path, key, value))

  def _frame_new(self, new: New) -> None:
    self._note_new(new)
    self._do_later(functools.partial(_frame.put_as_is, *new))

  def _initial(self, make: Make) -> Any:
    # Outside of the transform, so that no value has to leave it.
    with self.trace.entered():
      return super()._initial(make)
