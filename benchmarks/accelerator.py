"""Checks and measures on the accelerator at hand, for at most 8 minutes or so.

    python -m benchmarks.accelerator > accelerator.md
    python -m benchmarks.accelerator --short      # small sizes, as on a CPU

Three parts, each a table in Markdown for `docs/cost.md`:

* *agreement*: a layer of each family, each lifted transform, batch normalization
  over a mapped axis and mixed precision, beside flax.linen on the same device: the
  initial variables, the outputs, and the gradients;
* *documents*: the Python of the README and of `docs/` runs;
* *steps*: time of a training step, and peak of the device's memory, of ResNet-50
  and of a transformer, beside flax.linen and plain Haiku, each in a process of its
  own.

What begins after the time is up is left out, which the table says.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

ROOT = pathlib.Path(__file__).parents[1]
LIMIT = 450.0
LIBRARIES = ('haiku_state', 'flax.linen', 'Haiku')

# --- Agreement ----------------------------------------------------------------

TRAIN = {'use_running_average': False}


def _in(transform: str, **options: Any) -> Any:
  """Returns what makes a layer in a lifted transform."""
  return lambda nn: getattr(nn, transform)(nn.Dense, **options)(16)


def _scan(nn: Any) -> Any:
  class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
      return nn.relu(nn.Dense(16)(x)), None

  class Layers(nn.Module):
    @nn.compact
    def __call__(self, x):
      scanned = nn.scan(
        Layer,
        variable_axes={'params': 0},
        split_rngs={'params': True},
        length=3,
      )
      return scanned()(x, None)[0]

  return Layers()


def _mapped_norm(nn: Any) -> Any:
  """Returns a batch normalization that sees one example at a time."""
  mapped = nn.vmap(
    nn.BatchNorm,
    variable_axes={'params': None, 'batch_stats': None},
    split_rngs={'params': False},
    axis_name='batch',
  )
  return mapped(axis_name='batch', **TRAIN)


VECTOR, IMAGE = (8, 16), (2, 16, 16, 4)

# By name: what makes the module, and the shape of its input.
CASES: dict[str, tuple[Callable[[Any], Any], tuple[int, ...]]] = {
  'dense': (lambda nn: nn.Dense(16), VECTOR),
  'dense, general': (lambda nn: nn.DenseGeneral((2, 8)), VECTOR),
  'einsum': (lambda nn: nn.Einsum((16, 8), 'ab,bc->ac'), VECTOR),
  'convolution': (lambda nn: nn.Conv(8, (3, 3)), IMAGE),
  'convolution, transposed': (lambda nn: nn.ConvTranspose(8, (3, 3)), IMAGE),
  'batch norm': (lambda nn: nn.BatchNorm(**TRAIN), VECTOR),
  'layer norm': (lambda nn: nn.LayerNorm(), VECTOR),
  'group norm': (lambda nn: nn.GroupNorm(2), IMAGE),
  'attention': (lambda nn: nn.MultiHeadDotProductAttention(2), (2, 8, 16)),
  'recurrent': (lambda nn: nn.RNN(nn.LSTMCell(16)), (2, 8, 16)),
  'jit': (_in('jit'), VECTOR),
  'remat': (_in('remat'), VECTOR),
  'vmap': (
    _in('vmap', variable_axes={'params': 0}, split_rngs={'params': True}),
    VECTOR,
  ),
  'scan': (_scan, VECTOR),
  'batch norm over a mapped axis': (_mapped_norm, VECTOR),
  'mixed precision, dense': (
    lambda nn: nn.Dense(16, dtype=jnp.bfloat16),
    VECTOR,
  ),
  'mixed precision, convolution': (
    lambda nn: nn.Conv(8, (3, 3), dtype=jnp.bfloat16),
    IMAGE,
  ),
  'mixed precision, attention': (
    lambda nn: nn.MultiHeadDotProductAttention(2, dtype=jnp.bfloat16),
    (2, 8, 16),
  ),
}


def agreement(name: str) -> str:
  """Compares one case with flax.linen on this device.

  Returns:
    'bit for bit', or the largest difference, relative to the largest value.
  """
  from flax import linen as theirs

  from haiku_state import linen as ours

  make, shape = CASES[name]
  mine, other = (_computed(make(nn), shape) for nn in (ours, theirs))
  if len(mine) != len(other):
    return f'{len(mine)} arrays, not {len(other)}'
  worst = 0.0
  for a, b in zip(mine, other):
    if (a.shape, a.dtype) != (b.shape, b.dtype):
      return f'{a.dtype}{a.shape}, not {b.dtype}{b.shape}'
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    if not np.array_equal(a, b):
      worst = max(worst, np.abs(a - b).max() / max(np.abs(b).max(), 1e-30))
  return f'to {worst:.0e}' if worst else 'bit for bit'


def _computed(module: Any, shape: tuple[int, ...]) -> list[Any]:
  """Returns variables, output, updates and gradients of a module."""
  x = jax.random.normal(jax.random.key(1), shape)
  variables = jax.jit(module.init)(jax.random.key(0), x)

  def loss(variables, x):
    y, updates = module.apply(variables, x, mutable=['batch_stats'])
    return jnp.sum(jnp.square(y).astype(jnp.float32)), (y, updates)

  out = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(variables, x)
  return jax.tree.leaves((_plain(variables), out))


def _plain(tree: Any) -> Any:
  return dict(tree.items()) if hasattr(tree, 'items') else tree


# --- Documents ----------------------------------------------------------------

_BLOCK = re.compile(r'^```python\n(.*?)^```$', re.M | re.S)


def documents() -> list[str]:
  """Returns the documents that run on one device, by their paths."""
  found = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
  texts = {str(path.relative_to(ROOT)): path.read_text() for path in found}
  return [
    name
    for name, text in texts.items()
    if _BLOCK.search(text) and 'xla_force_host_platform' not in text
  ]


def runs(name: str) -> str:
  """Runs the Python of a document; returns 'runs', or what went wrong."""
  code = '\n'.join(_BLOCK.findall((ROOT / name).read_text()))
  with _elsewhere(), contextlib.redirect_stdout(io.StringIO()):
    try:
      exec(compile(code, name, 'exec'), {'__name__': '__main__'})
    except Exception as error:
      return f'{type(error).__name__}: {str(error)[:80]!r}'
  return 'runs'


@contextlib.contextmanager
def _elsewhere() -> Iterator[None]:
  """Works in a folder that is thrown away, and puts the flags back."""
  from haiku_state.configurations import config

  before, flags = os.getcwd(), dict(config._values)
  with tempfile.TemporaryDirectory() as folder:
    os.chdir(folder)
    try:
      yield
    finally:
      os.chdir(before)
      for name, value in flags.items():
        config.update(name, value)


# --- Steps --------------------------------------------------------------------

# The sizes that people have; the benchmark's own are small.
SIZES: dict[str, dict[str, Any]] = {
  'resnet50': {'CHANNELS': 64, 'CLASSES': 1000, 'inputs': (32, 224, 224, 3)},
  'transformer': {
    'HEADS': 12,
    'HEAD_WIDTH': 64,
    'MODEL_WIDTH': 768,
    'HIDDEN': 3072,
    'inputs': (8, 512, 768),
  },
}


def step(model: str, library: str, short: bool) -> dict[str, float]:
  """Measures a step of training in this process.

  Args:
    model: a name of `SIZES`.
    library: a name of `LIBRARIES`.
    short: whether with the small sizes of the benchmark.

  Returns:
    `compile` in s, `step` in ms, and `peak` in MiB, where the device tells.
  """
  from benchmarks import models
  from benchmarks.forms import programs

  sizes = {} if short else dict(SIZES[model])
  shape = sizes.pop('inputs', None)
  for name, value in sizes.items():
    setattr(models, name, value)
  workload = getattr(models, model)()
  if shape:
    workload = workload._replace(inputs=(jnp.ones(shape),))
  program = programs(workload, [library])[library]

  def train_step(variables, *inputs):
    def loss(variables):
      y, updates = program.apply(variables, *inputs)
      return jnp.mean(jnp.square(y)), updates

    return jax.value_and_grad(loss, has_aux=True, allow_int=True)(variables)

  variables = jax.jit(program.init)(jax.random.key(0), *workload.inputs)
  start = time.perf_counter()
  compiled = jax.jit(train_step).lower(variables, *workload.inputs).compile()
  found = {'compile': time.perf_counter() - start}
  times = []
  for _ in range(3 if short else 30):
    start = time.perf_counter()
    jax.block_until_ready(compiled(variables, *workload.inputs))
    times.append(time.perf_counter() - start)
  found['step'] = 1e3 * statistics.median(times)
  memory = jax.devices()[0].memory_stats() or {}
  if 'peak_bytes_in_use' in memory:
    found['peak'] = memory['peak_bytes_in_use'] / (1 << 20)
  return found


def step_in_a_process(*arguments: Any) -> dict[str, float]:
  """Calls `step` in a process of its own, which alone has the device."""
  done = subprocess.run(
    [sys.executable, '-m', 'benchmarks.accelerator']
    + ['--call', json.dumps(arguments)],
    cwd=ROOT,
    # So that the peak is that of what is used.
    env={**os.environ, 'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'},
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  return json.loads(done.stdout.splitlines()[-1])


# --- All of it ----------------------------------------------------------------


def tables(short: bool, until: float) -> Iterator[list[list[str]]]:
  """Yields the tables, each a list of rows of which the first is the head.

  Args:
    short: whether with small sizes.
    until: the time, by `time.monotonic`, after which nothing new begins.
  """

  def rows(names: Any, fn: Callable[[Any], list[str]]) -> list[list[str]]:
    return [
      fn(name) if time.monotonic() < until else [str(name), 'left out: no time']
      for name in names
    ]

  # First what has processes of its own: this one then has no memory yet.
  pairs = [(model, library) for model in SIZES for library in LIBRARIES]

  def measured(pair: tuple[str, str]) -> list[str]:
    found = step_in_a_process(*pair, short)
    figures = (found.get(name) for name in ('compile', 'step', 'peak'))
    return [
      ', '.join(pair),
      *('' if f is None else f'{f:.1f}' for f in figures),
    ]

  yield [
    ['model', 'compile, s', 'step, ms', 'peak, MiB'],
    *rows(pairs, measured),
  ]
  yield [
    ['beside flax.linen', 'agreement'],
    *rows(CASES, lambda name: [name, agreement(name)]),
  ]
  yield [
    ['document', 'outcome'],
    *rows(documents(), lambda name: [name, runs(name)]),
  ]


def main(argv: list[str] | None = None) -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--short', action='store_true')
  parser.add_argument('--limit', type=float, default=LIMIT, help='in seconds')
  parser.add_argument('--call', help=argparse.SUPPRESS)
  options = parser.parse_args(argv)
  if options.call:
    print(json.dumps(step(*json.loads(options.call))))
    return
  start = time.monotonic()
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  for head, *rows in tables(options.short, start + options.limit):
    print('| ' + ' | '.join(head) + ' |')
    print('| ' + ' | '.join(['---'] * len(head)) + ' |')
    for row in rows:
      print('| ' + ' | '.join([*row, *[''] * (len(head) - len(row))]) + ' |')
    print(flush=True)
  print(
    f'{jax.devices()[0].device_kind}, jax {jax.__version__},'
    f' {time.monotonic() - start:.0f} s in all.'
  )


if __name__ == '__main__':
  main()
