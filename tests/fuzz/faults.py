"""Interrupts programs anywhere in the package, and looks at what is left.

An error is raised at one line, or one instruction, of the package while a
program runs: before a line of a method, of what cleans up after it, or of a
saving function. Some are interrupted a second time while they clean up. Then
the same program runs once more, whole, and a fixed one with objects that all
programs share: what they give must be what they gave before anything went wrong.

`python -m tests.fuzz.faults 300` does so 300 times for each kind of error and
each group of programs.
"""

import collections
import concurrent.futures
import dataclasses
import dis
import pathlib
import random
import sys
import traceback
from collections.abc import Callable, Collection
from typing import Any

import haiku as hk
import jax
import numpy as np

import haiku_state
from haiku_state.core import _run
from haiku_state.linen._module.context import context

PACKAGE = str(pathlib.Path(haiku_state.__file__).parent)
ERRORS = (KeyboardInterrupt, MemoryError, RecursionError)


# --- Faults ------------------------------------------------------------------


class Fault:
  """Raises an error at the n-th step of the package, while it is entered.

  Python itself raises nothing between an error and the `__exit__` that is called
  for it; neither does this.

  Args:
    error: the error, a class.
    at: the number of the step, from 1; 0 for none, to count.
    again: at which step after that the error is raised again, 0 for none. The
      frame where it was raised first is left out.
    each: what a step is, a `line` or an `opcode`.

  Attributes:
    seen: the steps so far.
    where: the places where the error was raised.
  """

  def __init__(self, error: Any, at: int, again: int = 0, each: str = 'line'):
    self.error, self.at, self.again, self.each = error, at, again, each
    self.seen = 0
    self.where: list[str] = []

  def __enter__(self):
    sys.settrace(self._enter)
    return self

  def __exit__(self, *_):
    sys.settrace(None)
    sys.setprofile(None)

  def _enter(self, frame, event, arg):
    if not frame.f_code.co_filename.startswith(PACKAGE):
      return None
    frame.f_trace_opcodes = self.each == 'opcode'
    frame.f_trace_lines = self.each == 'line'
    return self._step

  def _step(self, frame, event, arg):
    if event == self.each:
      self.seen += 1
      if self.seen == self.at and _is_on_the_way_to_exit(frame):
        self.at += 1
      elif self.seen == self.at:
        place = frame.f_code.co_filename[len(PACKAGE) + 1 :]
        self.where.append(f'{place}:{frame.f_lineno} {frame.f_code.co_name}')
        self.at += self.again
        if self.again:
          self.again = 0
          sys.setprofile(self._leave)
        # Python ends the trace with this.
        raise self.error('injected')
    return self._step

  def _leave(self, frame, event, arg):
    """Traces on in the frame that an error goes through."""
    if event == 'return' and frame.f_back is not None:
      sys.setprofile(None)
      sys.settrace(self._enter)
      caller = frame.f_back
      while caller is not None:
        caller.f_trace = self._enter(caller, 'call', None)
        caller = caller.f_back


def _is_on_the_way_to_exit(frame) -> bool:
  name = dis.opname[frame.f_code.co_code[frame.f_lasti]]
  return name in ('PUSH_EXC_INFO', 'WITH_EXCEPT_START')


class FewFrames:
  """Lets Python nest so many more calls, while it is entered.

  Args:
    count: how many.

  Attributes:
    where: that number, if there was an error.
  """

  each = 'frame'

  def __init__(self, count: int):
    self.count = count
    self.where: list[str] = []

  def __enter__(self):
    depth, frame = 0, sys._getframe()
    while frame is not None:
      depth, frame = depth + 1, frame.f_back
    self.was = sys.getrecursionlimit()
    sys.setrecursionlimit(depth + self.count)

  def __exit__(self, error, *_):
    sys.setrecursionlimit(self.was)
    if error is not None:
      self.where.append(f'{self.count} frames')


# --- What is left ------------------------------------------------------------


def plain(x: Any) -> Any:
  """Returns leaves that can be compared, in the structure of a tree."""
  leaves, structure = jax.tree.flatten(x)
  return str(structure), [
    x if isinstance(x, (str, bytes)) else np.asarray(x) for x in leaves
  ]


def difference(found: Any, expected: Any) -> str:
  """Returns how two results differ, the empty string if they do not."""
  if found[0] != expected[0]:
    return f'structure {found[0]}, expected {expected[0]}'
  for a, b in zip(found[1], expected[1], strict=True):
    same = a == b if isinstance(b, (str, bytes)) else np.array_equal(a, b)
    if not same:
      return f'{a!r}, expected {b!r}'
  return ''


def is_in_transform() -> bool:
  try:
    hk.running_init()
  except ValueError:
    return False
  return True


def leftovers() -> list[str]:
  """Returns what is left of calls that are over."""
  there = {
    'a frame of Haiku': is_in_transform(),
    'a module that runs': not context.current().is_base,
    'an interceptor': context.interceptors or context.call_infos,
    'a run': _run.current_depth(),
    'a setting of Haiku': not _is_set_as_before(),
  }
  return [name for name, is_there in there.items() if is_there]


def _is_set_as_before() -> bool:
  # Each of them returns what was set before.
  was = hk.experimental.check_jax_usage(False)
  described = hk.experimental.module_auto_repr(True)
  return described and not was


@dataclasses.dataclass
class Program:
  """A program, and what it gives.

  Attributes:
    run: the program.
    expected: what it gave at first.
    steps: its steps, by what a step is.
  """

  run: Callable[[], Any]
  expected: Any
  steps: dict[str, int]

  @classmethod
  def of(cls, run: Callable[[], Any], each: tuple[str, ...]) -> 'Program':
    run()  # What JAX keeps of the first trace is another text from then on.
    expected = plain(run())
    again = difference(plain(run()), expected)
    assert not again, f'without any fault: {again}'
    steps = {}
    for kind in each:
      with Fault(None, 0, each=kind) as fault:
        run()
      steps[kind] = fault.seen
    return cls(run, expected, steps)

  def wrong(self) -> str:
    """Returns what is wrong with the program now."""
    try:
      return difference(plain(self.run()), self.expected)
    except Exception:
      return traceback.format_exc(limit=-6)


def interrupted(program: Program, fault: Any, probe: Program) -> str:
  """Interrupts a program; returns what is wrong afterwards.

  It does so in a thread of its own: what is left of one is not there for the
  next.
  """
  if isinstance(fault, FewFrames):
    # It holds for all threads, of which the others may be deeper.
    return _interrupted(program, fault, probe)
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    return pool.submit(_interrupted, program, fault, probe).result()


def _interrupted(program: Program, fault: Any, probe: Program) -> str:
  # It is kept meanwhile, as an interactive interpreter keeps it.
  error: BaseException | None = None
  try:
    with fault:
      found = plain(program.run())
  except BaseException as e:
    error = e
  else:
    wrong = difference(found, program.expected)
    if wrong:
      return f'it went on: {wrong}'
  problems = [f'left over: {x}' for x in leftovers()]
  for name, p in ('the same', program), ('the probe', probe):
    wrong = p.wrong()
    if wrong:
      problems.append(f'{name}: {wrong}')
  kept = '' if error is None else f'{type(error).__name__}: {error}'
  return '\n'.join([*problems, kept]) if problems else ''


# --- Runs --------------------------------------------------------------------


def draw(program: Program, error: Any, rng: random.Random, once: bool) -> Any:
  if error is RecursionError and rng.random() < 0.5:
    return FewFrames(rng.randrange(5, 140))
  each = rng.choice(list(program.steps))
  again = 0 if once else rng.choice((0, 0, rng.randrange(1, 60)))
  at = rng.randrange(1, program.steps[each] + 1)
  return Fault(error, at, again, each)


def run(
  programs: dict[str, Callable[[], Any]],
  probe: Callable[[], Any],
  count: int,
  seed: int = 0,
  each: tuple[str, ...] = ('line', 'opcode'),
  errors: tuple[Any, ...] = ERRORS,
  once: Collection[str] = (),
) -> tuple[collections.Counter, list[str]]:
  """Interrupts programs, in turn, so often by each error.

  Returns:
    How many were interrupted, by the name of the error, and what went wrong.
  """
  of_probe = Program.of(probe, ())
  made = {name: Program.of(p, each) for name, p in programs.items()}
  results, problems = collections.Counter(), []
  for error in errors:
    # Some come to an end before the fault.
    for i in range(4 * count):
      if results[error.__name__] == count:
        break
      name = list(made)[i % len(made)]
      rng = random.Random(f'{seed}/{error.__name__}/{i}')
      fault = draw(made[name], error, rng, name in once)
      found = interrupted(made[name], fault, of_probe)
      results[error.__name__] += bool(fault.where)
      results['twice'] += len(fault.where) > 1
      if found:
        problems.append(
          f'{name}, {error.__name__} {i} ({fault.each}) at {fault.where}:\n'
          f'{found}'
        )
  return results, problems


def main() -> int:
  from tests.fuzz import fault_programs

  count = int(sys.argv[1])
  groups = sys.argv[2:] or list(fault_programs.GROUPS)
  failed = 0
  for group in groups:
    programs = fault_programs.GROUPS[group]
    once = fault_programs.INTERRUPTED_ONCE
    results, problems = run(programs, fault_programs.probe, count, once=once)
    failed += len(problems)
    print(f'{group}: {dict(results)}, {len(problems)} wrong', flush=True)
    for problem in problems[:40]:
      print(problem, flush=True)
  return 1 if failed else 0


if __name__ == '__main__':
  sys.exit(main())
