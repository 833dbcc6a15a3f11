"""How long something takes, beside others that take turns with it.

What counts are ratios: of two times that were taken one directly after the
other, and of which there are many.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

# From a depth of the stack to the seconds that something takes there.
Timer = Callable[[int], float]

# Python allocates its frames in chunks: code that happens to run at the end of
# one allocates and frees a chunk for each call, and takes up to twice as long.
# Where that is depends on the depth of the stack and says nothing of a library,
# so that the rounds begin at each of these depths: 136 frames are about a chunk.
DEPTHS = range(0, 136, 8)
# From one round to the next, so that a few of them span all depths.
STRIDE = 7
FEWEST_ROUNDS = 3


# What is read before and after. Other programs on the machine matter less to the
# CPU's time, of the one thread where only Python works, than to the clock's, which
# is that of a compiled step: it is what a user waits for.
PYTHON, CPU, WALL = time.thread_time, time.process_time, time.perf_counter


def timer(
  fn: Callable[[], Any],
  clock: Callable[[], float] = PYTHON,
  repeats: int = 1,
) -> Timer:
  """Returns a timer of a function, which is called once to warm up.

  Args:
    fn: what to time.
    clock: `PYTHON`, `CPU` or `WALL`.
    repeats: how often it is called for one time, the least of which is taken:
      the first call after another library's is slow.
  """
  fn()

  def seconds() -> float:
    times = []
    for _ in range(repeats):
      start = clock()
      fn()
      times.append(clock() - start)
    return min(times)

  def timed(depth: int) -> float:
    gc.collect()
    return at_depth(depth, seconds)

  return timed


def at_depth(depth: int, fn: Callable[[], float]) -> float:
  """Calls a function so many Python frames further down."""
  return at_depth(depth - 1, fn) if depth else fn()


def pass_over_what_is_there() -> None:
  """Makes later collections quick, which look at what is made from here on."""
  gc.unfreeze()
  gc.collect()
  gc.freeze()


def take_turns(
  timers: dict[str, Timer], seconds: float
) -> dict[str, list[float]]:
  """Returns the times of each round by name.

  Args:
    timers: by name, what to time. Who begins changes from round to round.
    seconds: how long to go on; there are a few rounds in any case.
  """
  pass_over_what_is_there()
  names = list(timers)
  times: dict[str, list[float]] = {name: [] for name in names}
  end = time.monotonic() + seconds
  rounds = 0
  while rounds < FEWEST_ROUNDS or time.monotonic() < end:
    depth = DEPTHS[rounds * STRIDE % len(DEPTHS)]
    first = rounds % len(names)
    for name in names[first:] + names[:first]:
      times[name].append(timers[name](depth))
    rounds += 1
  return times


class Ratio(NamedTuple):
  """The ratio of two times.

  Attributes:
    median: that of the rounds.
    spread: half of the distance between the quartiles.
  """

  median: float
  spread: float

  def __str__(self) -> str:
    return f'{self.median:.2f} ± {self.spread:.2f}'


def ratio(times: Sequence[float], others: Sequence[float]) -> Ratio:
  """Returns the ratio of times to those of the same rounds."""
  ratios = [a / b for a, b in zip(times, others)]
  low, median, high = statistics.quantiles(ratios, n=4, method='inclusive')
  return Ratio(median, (high - low) / 2)
