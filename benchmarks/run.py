"""Prints what haiku_state costs beside flax.linen, plain Haiku and pure JAX.

    python -m benchmarks.run [NAME ...] [--rounds N] [--markdown]

NAME chooses workloads by a part of their name; without one, those of the first
landing are run, `all` runs everything. The libraries take turns, so that a busy
machine slows all of them; what counts are the ratios.
"""

from __future__ import annotations

import argparse
import gc
import math
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.forms import Program, Workload
from benchmarks.workloads import WORKLOADS

FIRST = ('vmapped', '20 x (D', '100 x (D', '300 x (D')
ORACLE = 'flax.linen'


def programs(workload: Workload) -> dict[str, Program]:
  """Returns the forms of a workload by library, those that are there."""
  from haiku_state import linen

  found = {'haiku_state': workload.linen(linen)}
  try:
    from flax import linen as flax_linen

    found[ORACLE] = workload.linen(flax_linen)
  except ImportError:
    pass
  if workload.haiku is not None:
    found['Haiku'] = workload.haiku()
  if workload.pure is not None:
    found['pure JAX'] = workload.pure()
  return found


def tasks(program: Program, inputs: Any) -> dict[str, Callable[[], Any]]:
  """Returns what is timed for one program, ready to be called."""
  key = jax.random.key(0)
  variables = program.init(key, *inputs)

  def step(variables, *inputs):
    def loss(variables):
      y, updates = program.apply(variables, *inputs)
      return jnp.sum(y**2), updates

    return jax.value_and_grad(loss, has_aux=True, allow_int=True)(variables)

  compiled = jax.jit(step).lower(variables, *inputs).compile()
  # A new function each time: JAX keeps what it has traced.
  return {
    'init trace': lambda: jax.make_jaxpr(lambda k: program.init(k, *inputs))(
      key
    ),
    'apply trace': lambda: jax.make_jaxpr(lambda v: program.apply(v, *inputs))(
      variables
    ),
    'un-jitted apply': lambda: jax.block_until_ready(
      program.apply(variables, *inputs)
    ),
    'jitted step': lambda: jax.block_until_ready(compiled(variables, *inputs)),
    'compile': lambda: (
      jax.jit(lambda *a: step(*a)).lower(variables, *inputs).compile()
    ),
  }


def lowered(program: Program, inputs: Any) -> str:
  """Returns the lowered text of a training step, without its name."""
  variables = program.init(jax.random.key(0), *inputs)

  def step(variables, *inputs):
    def loss(variables):
      y, updates = program.apply(variables, *inputs)
      return jnp.sum(y**2), updates

    return jax.value_and_grad(loss, has_aux=True, allow_int=True)(variables)

  return jax.jit(step).lower(variables, *inputs).as_text()


def operations(text: str) -> int:
  """Returns the number of operations in a lowered text."""
  return len(re.findall(r'= "?(stablehlo|chlo)\.', text))


# Python allocates its frames in chunks: code that happens to run at the end of
# one allocates and frees a chunk for each call, and takes up to twice as long.
# Where that is depends on the depth of the stack and says nothing of a library,
# so that a round begins at each of these depths: 136 frames are about a chunk.
DEPTHS = range(0, 136, 8)


def measure(
  timed: dict[str, Callable[[], Any]], rounds: int, depths: Sequence[int]
) -> dict[str, float]:
  """Returns typical times in seconds; the libraries take turns.

  The least of the rounds is taken at each depth, and the mean of the depths.
  """
  for fn in timed.values():
    fn()
  times = {name: [math.inf] * len(depths) for name in timed}
  gc.collect()
  gc.freeze()  # To collect again and again is quick without what is there.
  for _ in range(rounds):
    for i, depth in enumerate(depths):
      for name, fn in timed.items():
        gc.collect()
        took = at_depth(depth, lambda fn=fn: seconds(fn))
        times[name][i] = min(times[name][i], took)
  gc.unfreeze()
  return {name: statistics.mean(t) for name, t in times.items()}


def at_depth(depth: int, fn: Callable[[], float]) -> float:
  """Calls a function so many Python frames further down."""
  return at_depth(depth - 1, fn) if depth else fn()


def seconds(fn: Callable[[], Any]) -> float:
  """Returns how long one call takes."""
  start = time.perf_counter()
  fn()
  return time.perf_counter() - start


def rows(name: str, workload: Workload, rounds: int) -> list[list[str]]:
  """Returns the rows of the table for one workload."""
  forms = programs(workload)
  of = {lib: tasks(p, workload.inputs) for lib, p in forms.items()}
  base = ORACLE if ORACLE in forms else 'haiku_state'
  result = []
  for task in of['haiku_state']:
    # XLA's part of the time does not depend on Python's stack.
    depths = {'compile': DEPTHS[:1], 'jitted step': DEPTHS[:1]}
    # A step is short, and the first call after another one's is slow.
    more = 50 if task == 'jitted step' else 1
    times = measure(
      {lib: t[task] for lib, t in of.items()},
      rounds * more,
      depths.get(task, DEPTHS),
    )
    row = [name, task, f'{times[base] * 1e3:.2f} ms']
    for lib in ('haiku_state', 'Haiku', 'pure JAX'):
      ratio = f'{times[lib] / times[base]:.2f}' if lib in times else ''
      row.append(ratio)
    result.append(row)
  texts = {lib: lowered(p, workload.inputs) for lib, p in forms.items()}
  same = 'identical' if texts['haiku_state'] == texts[base] else 'DIFFERENT'
  counts = {lib: str(operations(text)) for lib, text in texts.items()}
  result.append(
    [
      name,
      f'lowered operations ({same})',
      counts[base],
      *(counts.get(lib, '') for lib in ('haiku_state', 'Haiku', 'pure JAX')),
    ]
  )
  return result


def show(table: list[list[str]], markdown: bool) -> None:
  """Prints a table."""
  head = ['workload', 'what', ORACLE, 'haiku_state', 'Haiku', 'pure JAX']
  if markdown:
    for row in [head, ['---'] * len(head), *table]:
      print('| ' + ' | '.join(row) + ' |')
    return
  widths = [max(len(r[i]) for r in [head, *table]) for i in range(len(head))]
  for row in [head, *table]:
    print('  '.join(cell.ljust(width) for cell, width in zip(row, widths)))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('names', nargs='*', default=list(FIRST))
  parser.add_argument('--rounds', type=int, default=2)
  parser.add_argument('--markdown', action='store_true')
  options = parser.parse_args()
  # JAX's transposition of 200 nested modules is deeper than Python's default.
  sys.setrecursionlimit(10_000)
  chosen = [
    name
    for name in WORKLOADS
    if 'all' in options.names or any(part in name for part in options.names)
  ]
  print(f'{jax.devices()[0].device_kind}, jax {jax.__version__}')
  print(f'Ratios to {ORACLE}, whose own figure is in its column.')
  for name in chosen:
    show(rows(name, WORKLOADS[name](), options.rounds), options.markdown)
    print(flush=True)


if __name__ == '__main__':
  main()
