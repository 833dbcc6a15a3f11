"""Prints what is paid once: large models by shape, and the first minute.

    python -m benchmarks.fresh large [--layers 12 24 48 96]
    python -m benchmarks.fresh first

`large`: a decoder of 2 to 15 billion parameters, as a loop and as a scan with
remat. No array is made: the initialization and the training step are traced, and
the step is lowered. `first`: import, the first initialization and the first
compiled step of ResNet-50 and of a transformer.

Each row of each library is a process of its own, whose peak of resident memory is
told, too. What belongs to JAX alone, its import, is a column of its own. Seconds
are those that the process, with all its threads, had the CPU, so that a busy
machine changes little.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from benchmarks import processes

# No library is imported here: that is what is measured.

LIBRARIES = {
  'haiku_state': 'haiku_state.linen',
  'flax.linen': 'flax.linen',
  'Haiku': 'haiku',
}
MODELS = {'transformer, 12 layers': 'transformer', 'ResNet-50': 'resnet50'}


class Watch:
  """Takes the CPU time of one part of a program after the other."""

  def __init__(self) -> None:
    self.times: dict[str, float] = {}
    self.start = time.process_time()

  def note(self, name: str, result: Any = None) -> Any:
    """Notes the time since the last note, and hands the result through."""
    now = time.process_time()
    self.times[name] = now - self.start
    self.start = time.process_time()
    return result


def large(library: str, form: str, **size: int) -> dict[str, float]:
  """Measures a decoder by shape.

  Args:
    library: a name of `LIBRARIES`.
    form: 'loop' or 'scan'.
    **size: fields of `decoder.Size`.

  Returns:
    Seconds by name, and `parameters`, and `operations` of the lowered step.
  """
  import jax
  import jax.numpy as jnp

  from benchmarks import decoder
  from benchmarks.tasks import operations

  chosen = decoder.Size(**size)
  program = decoder.programs(chosen, form == 'scan', library)
  tokens = jax.ShapeDtypeStruct((1, chosen.length + 1), jnp.int32)
  inputs = jax.ShapeDtypeStruct((1, chosen.length), jnp.int32)
  key = jax.random.key(0)
  watch = Watch()
  variables = watch.note('init', jax.eval_shape(program.init, key, inputs))
  init, step = decoder.train_step(program)
  opt_state = jax.eval_shape(init, variables)
  watch.note('')
  jitted = jax.jit(step)
  traced = watch.note('trace', jitted.trace(variables, opt_state, tokens))
  lowered = watch.note('lower', traced.lower())
  del watch.times['']
  return {
    **watch.times,
    'operations': operations(lowered.as_text()),
    'parameters': sum(x.size for x in jax.tree.leaves(variables)),
  }


def first(library: str, model: str) -> dict[str, float]:
  """Measures the first minute with a model.

  Args:
    library: a name of `LIBRARIES`.
    model: a name of `MODELS`.

  Returns:
    Seconds by name.
  """
  watch = Watch()
  jax = watch.note('import jax', importlib.import_module('jax'))
  watch.note('import', importlib.import_module(LIBRARIES[library]))
  from benchmarks import forms, models, tasks

  workload = getattr(models, MODELS[model])()
  program = forms.programs(workload, [library])[library]
  step = tasks.train_step(program)
  key = jax.random.key(0)
  watch.note('')
  variables = program.init(key, *workload.inputs)
  watch.note('first init', jax.block_until_ready(variables))
  out = jax.jit(step)(variables, *workload.inputs)
  watch.note('first step', jax.block_until_ready(out))
  del watch.times['']
  return watch.times


def peak_memory() -> float:
  """Returns the peak of this process's resident memory, in MiB."""
  import resource

  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak / (1 << 20 if sys.platform == 'darwin' else 1 << 10)


def imports(library: str) -> dict[str, float]:
  """Measures the import of a library where jax is there already."""
  importlib.import_module('jax')
  watch = Watch()
  watch.note('import', importlib.import_module(LIBRARIES[library]))
  return watch.times


def timers(
  libraries: Sequence[str] = tuple(LIBRARIES),
) -> dict[str, dict[str, Callable[[int], float]]]:
  """Returns timers of the import, each time in a new process, by library."""

  def timer(library: str) -> Callable[[int], float]:
    def timed(depth: int) -> float:
      del depth
      return in_a_process('imports', library=library)['import']

    timed(0)  # Python compiles what it has not compiled yet.
    return timed

  def is_there(library: str) -> bool:
    package = LIBRARIES[library].split('.')[0]
    return importlib.util.find_spec(package) is not None

  there = [lib for lib in LIBRARIES if lib in libraries and is_there(lib)]
  return {'import': {library: timer(library) for library in there}}


def in_a_process(what: str, **arguments: Any) -> dict[str, float]:
  """Calls one of the functions of this file in a process of its own."""
  done = subprocess.run(
    processes.command('benchmarks.fresh', 'answer', what, arguments),
    stdout=subprocess.PIPE,
    check=True,
    text=True,
  )
  return json.loads(done.stdout.splitlines()[-1])


def answer(what: str, arguments: dict[str, Any]) -> None:
  """Is the other end of `in_a_process`."""
  functions: dict[str, Callable[..., dict[str, float]]] = {
    'large': large,
    'first': first,
    'imports': imports,
  }
  found = functions[what](**arguments)
  print(json.dumps({**found, 'peak MiB': peak_memory()}))


def show(rows: Iterable[tuple[str, str, dict[str, float]]]) -> None:
  """Prints rows of (workload, library, figures) as they come, in Markdown."""
  for number, (where, library, found) in enumerate(rows):
    if number == 0:
      _print_row('workload', 'library', *found)
      _print_row(*['---'] * (len(found) + 2))
    _print_row(where, library, *map(_shown, found.values()))


def _print_row(*cells: str) -> None:
  print('| ' + ' | '.join(cells) + ' |', flush=True)


def _shown(value: float) -> str:
  if value != int(value):
    return f'{value:.2f}' if value < 100 else f'{value:.0f}'
  return f'{value / 1e9:.1f} billion' if value > 1e8 else str(int(value))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('what', choices=['large', 'first'])
  parser.add_argument('--layers', type=int, nargs='+', default=[12, 24, 48, 96])
  options = parser.parse_args()
  sets: list[tuple[str, dict[str, Any]]] = [
    (f'{n} layers, {form}', {'form': form, 'layers': n})
    for form in ('loop', 'scan')
    for n in options.layers
  ]
  if options.what == 'first':
    sets = [(model, {'model': model}) for model in MODELS]
  # The libraries take turns, as a busy machine slows all of them.
  show(
    (name, library, in_a_process(options.what, library=library, **arguments))
    for name, arguments in sets
    for library in LIBRARIES
  )


if __name__ == '__main__':
  main()
