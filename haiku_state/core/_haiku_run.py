"""One run of Haiku's: a call of a function that Haiku has transformed.

All values of a run live in Haiku's frame (`_frame.py`). What is put there at the
start and taken at the end are bundles (`_bundles.py`).
"""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.core
import jax.numpy as jnp

from haiku_state._extents import Extent, Extents
from haiku_state.core import _frame
from haiku_state.core._bundles import Bundles

# --- What lasts as long as a run ---------------------------------------------


class _Noted(NamedTuple):
  """What was noted in a run.

  Attributes:
    held: what Haiku holds until the run is over; None in a run of ours.
    initializing: whether it is a run of `init`.
    notes: what was noted.
    probe: what can be used in this run only, and Haiku does not know of.
  """

  held: Any
  initializing: bool
  notes: dict[Any, Any]
  probe: Any = None

  @classmethod
  def of_haiku(cls) -> _Noted:
    """Returns what is noted from here on in a run of Haiku's."""
    _, updater = hk.lift_with_state(lambda: ({}, {}), name=_frame.LIFTED_NAME)
    probe = copy.copy(updater)
    updater.ignore_update()
    return cls(updater, hk.running_init(), {}, probe)

  def is_current(self) -> bool:
    """Returns whether Haiku's run is the one that goes on."""
    if self.held is None:
      return self.initializing == hk.running_init()
    try:
      copy.copy(self.probe).ignore_update()
    except ValueError:
      return False
    return True

  def is_over(self) -> bool:
    """Returns whether Haiku's run has ended, and nothing is kept of it."""
    return self.held is not None and _references(self) == _ONE_REFERENCE


def _references(noted: _Noted) -> int:
  return sys.getrefcount(noted.held)


_ONE_REFERENCE = _references(_Noted(object(), False, {}))


class _Notes(Extent):
  """The runs that noted something, the innermost last.

  They are those of Haiku's in one of ours, which is the first, or outside.
  """

  __slots__ = ('runs',)

  def __init__(self, *runs: _Noted) -> None:
    self.runs = list(runs)


_notes = Extents(_Notes)


def notes_of_run() -> dict[Any, Any]:
  """Returns a dict that is the same one during one run, of Haiku's or of ours.

  Haiku shows no identity of a run, but what updates the state of a lifted
  function can be used in one run only, and Haiku keeps it until that is over.

  A run inside of one of ours, of the same kind, gets the dict of ours.
  """
  noted = _noted_here()
  if noted is None:
    noted = _Noted.of_haiku()
    _notes.current().runs.append(noted)
  return noted.notes


def notes_if_any() -> Mapping[Any, Any]:
  """Returns `notes_of_run`, or nothing where nobody has asked for them."""
  noted = _noted_here()
  return {} if noted is None else noted.notes


def _noted_here() -> _Noted | None:
  """Returns what is noted of the run that goes on, None if nothing is."""
  runs = _notes.current().runs
  while runs and runs[-1].is_over():
    runs.pop()
  return next((noted for noted in reversed(runs) if noted.is_current()), None)


# --- One run -----------------------------------------------------------------


def _call(body: Callable[[], Any], initializing: bool) -> Any:
  """Calls what runs, with notes of its own."""
  with _notes.begin(_Notes(_Noted(None, initializing, {}))):
    return body()


_RUN = hk.transform_with_state(_call)


def run_apply(
  params: Bundles, state: Bundles, rng: Any, body: Callable[[], Any]
) -> tuple[Any, Bundles]:
  """Runs `body` with frozen parameters; returns its output and the state."""
  return _RUN.apply(params, state, rng, body, False)


def run_init(
  params: Bundles,
  state: Bundles,
  rng: Any,
  body: Callable[[], Any],
  note: Callable[[str, str, bool], None],
  check: Callable[[str], None],
) -> tuple[Any, Bundles, Bundles, Bundles]:
  """Runs `body` where parameters may be added.

  Haiku adds parameters only in `init`, which starts from nothing, returns the
  first value of each state, and drops the output: so what is given is put in
  at the start, and what came of it is taken at the end.

  Args:
    params: the parameters at the start.
    state: the state at the start.
    rng: the key of Haiku's own modules, or None.
    body: the function, without arguments.
    note: told of each value that is new, and of each state that is set: its
      module, its key, whether it is a parameter.
    check: told of each module, or name scope, of Haiku's own that asks for a
      parameter.

  Returns:
    The output, the parameters, the state, and the first value of each state.
  """
  out: Any = None
  last_state: Bundles = {}

  def noting_creator(
    next_creator: Any, shape, dtype, init, context: Any, is_param: bool
  ):
    if not _frame.is_noted(context):
      note(*_place(context), is_param)
    try:
      return next_creator(shape, dtype, init)
    finally:
      _frame.release(next_creator)

  def checking_getter(next_getter, value, context):
    if not _frame.is_noted(context) and _is_haikus(context.module):
      check(hk.current_name())
    try:
      return next_getter(value)
    finally:
      _frame.release(next_getter)

  def noting_setter(next_setter, value, context):
    note(*_place(context), False)
    try:
      return next_setter(value)
    finally:
      _frame.release(next_setter)

  def whole() -> None:
    nonlocal out, last_state
    _frame.put_as_is(params, state)
    of_param: Any = functools.partial(noting_creator, is_param=True)
    of_state: Any = functools.partial(noting_creator, is_param=False)
    with (
      hk.custom_getter(checking_getter),
      hk.custom_creator(of_param),
      hk.custom_creator(of_state, params=False, state=True),
      hk.custom_setter(noting_setter),
    ):
      out = body()
    last_state = hk.get_current_state()

  made, first_state = _RUN.init(rng, whole, True)
  return out, made, last_state, first_state


def _place(context: Any) -> tuple[str, str]:
  """Returns the module and the key, which may have a `/`."""
  path = hk.current_name()
  return path, context.full_name[len(path) + 1 :]


def _is_haikus(module: Any) -> bool:
  """Returns whether a module is one of Haiku's own, or a name scope."""
  return type(getattr(module, 'module_name', None)) is str


def apart(rng: Any, fn: Callable[[], Any]) -> Any:
  """Calls a function where Haiku's keys are those of a key, and no others.

  Args:
    rng: the key.
    fn: the function. What it makes of parameters and state is gone afterwards.

  Returns:
    What it returns.
  """
  out: list[Any] = []
  _RUN.init(haiku_rng(rng), lambda: out.append(fn()), True)
  return out[0]


def haiku_rng(rng: jax.Array) -> jax.Array:
  """Returns a key for Haiku's own modules; a typed key is cheap to check."""
  if jnp.issubdtype(rng.dtype, jax.dtypes.prng_key):
    return rng
  if isinstance(rng, jax.core.Tracer):
    return jax.random.wrap_key_data(rng)
  # A key that is not traced must not get into the program that is.
  with jax.ensure_compile_time_eval():
    return jax.random.wrap_key_data(rng)


def rng_was_used(rng: jax.Array) -> bool:
  """Returns whether a run that began with this key has drawn from it."""
  state = hk.maybe_get_rng_sequence_state()
  return state is None or state[0] is not rng or bool(state[1])
