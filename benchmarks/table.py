"""The tables of `docs/cost.md`, which stand there between two marks."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import NamedTuple

from benchmarks.forms import ORACLE, PURE
from benchmarks.subjects import AROUND
from benchmarks.timing import Ratio

BEGIN = '<!-- What benchmarks.run has measured begins here. -->'
END = '<!-- What benchmarks.run has measured ends here. -->'

TITLES = {
  PURE: 'Beside pure JAX',
  ORACLE: 'Beside flax.linen',
  'Haiku': 'Beside plain Haiku',
}


class Result(NamedTuple):
  """What was measured of one subject.

  Attributes:
    ratios: by what was timed, and by library: haiku_state's time to the other's.
    same_step: by library, whether its lowered step is that of haiku_state.
  """

  ratios: dict[str, dict[str, Ratio]]
  same_step: dict[str, bool]


def markdown(results: dict[str, Result], seconds: float) -> str:
  """Returns the tables of all results, by the name of the subject."""
  models = {n: r for n, r in results.items() if n not in AROUND}
  parts = [conditions(seconds)]
  for library, title in TITLES.items():
    rows = {n: r for n, r in models.items() if library in r.same_step}
    if rows:
      parts += [f'## {title}', beside(library, rows), steps(library, rows)]
  around = [r.ratios for n, r in results.items() if n in AROUND]
  if around:
    parts += ['## Around a model', around_a_model(around)]
  return '\n\n'.join(parts)


def conditions(seconds: float) -> str:
  """Says on what was measured."""
  packages = ('jax', 'flax', 'dm-haiku', 'optax')
  versions = ', '.join(f'{name} {version(name)}' for name in packages)
  return (
    f'Measured with Python {platform.python_version()}, {versions}, on'
    f' {os.cpu_count()} cores of a CPU, {seconds:g} s and at least three rounds'
    ' for each figure.'
  )


def version(package: str) -> str:
  """Returns the version of a package, or that it is not there."""
  try:
    return metadata.version(package)
  except metadata.PackageNotFoundError:
    return '(not there)'


def beside(library: str, results: dict[str, Result]) -> str:
  """Returns the ratios to one library, a row for each workload."""
  tasks = next(iter(results.values())).ratios
  return grid(
    ['workload', *tasks],
    (
      [name, *(str(found[library]) for found in result.ratios.values())]
      for name, result in results.items()
    ),
  )


def steps(library: str, results: dict[str, Result]) -> str:
  """Says whose lowered step is that of haiku_state."""
  other = [n for n, r in results.items() if not r.same_step[library]]
  if not other:
    return 'The lowered text of each step is the same, to the byte.'
  if len(other) == len(results):
    return 'The operations of the steps are not the same.'
  return f'The lowered text of the step is not the same in: {", ".join(other)}.'


def around_a_model(found: Sequence[dict[str, dict[str, Ratio]]]) -> str:
  """Returns the ratios of what is measured once, a column for each library."""
  ratios = {task: by for tasks in found for task, by in tasks.items()}
  return grid(
    ['what', *TITLES],
    (
      [task, *(str(by.get(library, '')) for library in TITLES)]
      for task, by in ratios.items()
    ),
  )


def grid(head: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
  """Returns a table in Markdown."""
  lines = [head, ['---'] * len(head), *rows]
  return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def replaced(document: str, tables: str) -> str:
  """Returns the document with other tables between the marks."""
  between = re.compile(f'{re.escape(BEGIN)}.*?{re.escape(END)}', re.S)
  if len(between.findall(document)) != 1:
    raise ValueError(f'the document needs once: {BEGIN!r} ... {END!r}')
  return between.sub(lambda _: f'{BEGIN}\n\n{tables}\n\n{END}', document)
