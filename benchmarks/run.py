"""Prints what haiku_state costs beside pure JAX, flax.linen and plain Haiku.

    python -m benchmarks.run [NAME ...] [--seconds S]
    python -m benchmarks.run all --write docs/cost.md
    python -m benchmarks.run all --against ../another_tree

NAME chooses what is measured by a part of its name; without one, that is a few
workloads, and `all` is everything but more sizes of the same. The libraries take
turns, so that a busy machine slows all of them; what counts are the ratios: of
haiku_state's time to another's in the same round, the median of the rounds, and
the spread, which is half of the distance between the quartiles.

With `--against`, the ratios are of this tree's haiku_state to that of another
source tree, each in a process of its own.
"""

from __future__ import annotations

import argparse
import pathlib
import statistics
import sys
from collections.abc import Iterator

import jax

from benchmarks import against, subjects, table
from benchmarks.tasks import operations
from benchmarks.timing import Timer, ratio, take_turns

FIRST = ('vmapped', '20 x (D', '100 x (D', 'containers', 'import')
HERE = pathlib.Path(__file__).parents[1]


def measured(
  name: str,
  timers: dict[str, dict[str, Timer]],
  texts: dict[str, str],
  mine: str,
  seconds: float,
) -> table.Result:
  """Measures one subject, and prints its rows as they come.

  Args:
    name: that of the subject.
    timers: by what they time, and by library.
    texts: lowered steps by library.
    mine: the library whose times are divided by those of each other.
    seconds: how long to go on for each row.
  """
  ratios = {}
  for task, by_library in timers.items():
    times = take_turns(by_library, seconds)
    own = times.pop(mine)
    ratios[task] = {lib: ratio(own, others) for lib, others in times.items()}
    took = f'{statistics.median(own) * 1e3:9.2f} ms'
    print_row(name, task, took, {k: str(r) for k, r in ratios[task].items()})
  own_text = texts.get(mine)
  same = {lib: text == own_text for lib, text in texts.items() if lib != mine}
  if own_text is not None:
    counts = {
      lib: 'same' if same[lib] else str(operations(texts[lib])) for lib in same
    }
    print_row(name, 'operations of step', str(operations(own_text)), counts)
  return table.Result(ratios, same)


def print_row(name: str, task: str, mine: str, others: dict[str, str]) -> None:
  cells = ''.join(f'  {lib}: {cell:11}' for lib, cell in others.items())
  print(f'{name:30} {task:23} {mine:>12}{cells}', flush=True)


def beside_others(
  names: list[str], seconds: float
) -> Iterator[tuple[str, table.Result]]:
  """Yields the results of haiku_state beside other libraries."""
  for name in names:
    timers, texts = subjects.timers(name), subjects.lowered(name)
    yield name, measured(name, timers, texts, 'haiku_state', seconds)


def beside_another_tree(
  names: list[str], seconds: float, path: pathlib.Path
) -> Iterator[tuple[str, table.Result]]:
  """Yields the results of this tree's haiku_state beside another's."""
  with against.trees(new=HERE, old=path) as trees:
    for name in names:
      timers, texts = against.timers(trees, name), against.lowered(trees)
      yield name, measured(name, timers, texts, 'new', seconds)


def main(argv: list[str] | None = None) -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('names', nargs='*', default=list(FIRST))
  parser.add_argument(
    '--seconds', type=float, default=6.0, help='for each row, by default 6'
  )
  kind = parser.add_mutually_exclusive_group()
  kind.add_argument('--write', type=pathlib.Path, metavar='DOCUMENT')
  kind.add_argument('--against', type=pathlib.Path, metavar='TREE')
  options = parser.parse_args(argv)
  # JAX's transposition of 200 nested modules is deeper than Python's default.
  sys.setrecursionlimit(10_000)
  names = subjects.chosen(options.names)
  print(f'{jax.devices()[0].device_kind}, jax {jax.__version__}')
  if options.against:
    results = beside_another_tree(names, options.seconds, options.against)
  else:
    results = beside_others(names, options.seconds)
  found = dict(results)
  if options.write:
    tables = table.markdown(found, options.seconds)
    document = options.write.read_text()
    options.write.write_text(table.replaced(document, tables))


if __name__ == '__main__':
  main()
