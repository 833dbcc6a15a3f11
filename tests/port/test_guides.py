"""The guides' programs run, block by block, in one namespace per file."""

import io
import pathlib
import re

import pytest

from haiku_state.configurations import config
from haiku_state.port import _names, _old_names, run_path

DOCS = pathlib.Path(__file__).parents[2] / 'docs'
GUIDES = [
  'coming_from_flax',
  'coming_from_haiku_flax',
  'flax_optim',
  'moving_weights',
]


@pytest.mark.parametrize('name', GUIDES)
def test_guide_runs(name):
  if name == 'coming_from_flax':
    pytest.importorskip('libcst')
  log = io.StringIO()
  before = config.flax_return_frozendict
  try:
    assert run_path(DOCS / f'{name}.md', frozen=True, log=log) == 0, (
      log.getvalue()
    )
  finally:
    config.update('flax_return_frozendict', before)


@pytest.mark.parametrize(
  'name, module',
  [('coming_from_flax', _names), ('removed_names', _old_names)],
)
def test_guide_prints_the_table(name, module):
  text = (DOCS / f'{name}.md').read_text()
  (table,) = re.findall(
    r'<!-- table -->\n(.*?)<!-- end of table -->', text, re.S
  )
  assert table.strip() == module.as_markdown()
