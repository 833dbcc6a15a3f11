"""Every cell of the cheat sheet runs."""

import contextlib
import functools
import io
import pathlib
import pickle
import re
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import optax
import pytest
from left_out import all_but
from test_docs import blocks

PAGE = pathlib.Path(__file__).parents[1] / 'docs' / 'cheat_sheet.md'
COLUMNS = ('Haiku', 'Flax linen', 'here')
_CODE = re.compile(r'`([^`]*)`')


class Row(NamedTuple):
  name: str
  cells: dict[str, str]


@functools.cache
def rows(section: str) -> list[Row]:
  """Returns the rows of the table of a section, with the code of each cell."""
  text = PAGE.read_text().partition(f'## {section}\n')[2].partition('\n## ')[0]
  lines = [line for line in text.splitlines() if line.startswith('| ')][2:]
  found = []
  for line in lines:
    name, *cells = (cell.strip() for cell in line.strip('|').split(' | '))
    code = ['\n'.join(_CODE.findall(cell)) for cell in cells]
    if cells[-1] == 'the same':
      code[-1] = code[-2]
    found.append(Row(name, dict(zip(COLUMNS, code, strict=True))))
  return found


def names_of(column: str) -> dict[str, Any]:
  """Returns what the lines of a column may use."""
  mesh = jax.sharding.Mesh(jax.devices()[:1], ('model',))
  names = {
    'hk': hk,
    'jax': jax,
    'jnp': jnp,
    'pickle': pickle,
    'key': jax.random.PRNGKey(0),
    'keys': jax.random.split(jax.random.PRNGKey(0), 2),
    'x': jnp.ones((4, 3)),
    'xs': jnp.ones((2, 5, 8)),
    'images': jnp.ones((1, 4, 4, 3)),
    'tokens': jnp.zeros(2, int),
    'train': True,
    'opt': optax.sgd(0.1),
    'init': hk.initializers.VarianceScaling(),
    'everywhere': jax.sharding.NamedSharding(
      mesh, jax.sharding.PartitionSpec()
    ),
  }
  if column == 'Haiku':
    return names
  if column == 'here':
    from haiku_state import linen, serialization, traverse_util
    from haiku_state.training import train_state
  else:
    pytest.importorskip('flax')
    from flax import linen, serialization, traverse_util
    from flax.training import train_state
  return names | {
    'nn': linen,
    'init': linen.initializers.lecun_normal(),
    'serialization': serialization,
    'traverse_util': traverse_util,
    'train_state': train_state,
  }


@pytest.mark.parametrize('column', COLUMNS)
def test_from_outside(column):
  pytest.importorskip('rich')
  pytest.importorskip('msgpack')
  names = names_of(column)
  # The model of the page, with the `nn` of the column.
  ((_, block),) = blocks(PAGE)
  if column != 'here':
    block = block.replace('from haiku_state', 'from flax')
  if column == 'Haiku':
    block = block[: block.index('class Net')].replace('from flax', '# ')
  exec(block, names)
  for row in rows('From outside'):
    with told(row, column), contextlib.redirect_stdout(io.StringIO()):
      exec(row.cells[column], names)


@contextlib.contextmanager
def told(row, column):
  """Names the cell that an error came of."""
  try:
    yield
  except Exception as e:
    raise AssertionError(f'{row.name}, {column}: {row.cells[column]}') from e


@pytest.mark.parametrize('column', all_but(['here'], COLUMNS))
@pytest.mark.parametrize('row', rows('Inside'), ids=lambda row: row.name)
def test_inside(row, column):
  names = names_of(column)
  code = compile(row.cells[column], f'{row.name}, {column}', 'exec')
  if column == 'Haiku':
    model = hk.transform_with_state(lambda: exec(code, names))
    params, state = model.init(names['key'])
    model.apply(params, state, names['key'])
    return

  class Inside(names['nn'].Module):
    @names['nn'].compact
    def __call__(self):
      exec(code, names | {'self': self})

  keys = {'params': names['key'], 'dropout': names['key']}
  variables = Inside().init(keys)
  state = sorted({*variables, 'intermediates'} - {'params'})
  Inside().apply(variables, rngs=keys, mutable=state)


def test_no_cell_is_empty_but_what_haiku_has_not():
  table = [*rows('From outside'), *rows('Inside')]
  assert len(table) > 35
  empty = [(row.name, c) for row in table for c in COLUMNS if not row.cells[c]]
  assert empty == [('what layers return', 'Haiku')]
