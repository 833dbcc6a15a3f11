"""The site builds without a warning, and has what errors link to."""

import inspect
import pathlib
import subprocess
import sys

import pytest

from haiku_state import errors

pytest.importorskip('sphinx')
pytest.importorskip('myst_parser')

DOCS = pathlib.Path(__file__).parents[1] / 'docs'


@pytest.fixture(scope='module')
def site(tmp_path_factory):
  """Builds the site, and returns its folder."""
  folder = tmp_path_factory.mktemp('site')
  built = subprocess.run(
    [sys.executable, '-m', 'sphinx', '-qW', '--keep-going', DOCS, folder],
    capture_output=True,
    text=True,
  )
  assert built.returncode == 0, built.stderr
  return folder


def test_every_error_has_its_place(site):
  page = (site / 'errors.html').read_text()
  classes = [
    c
    for c in vars(errors).values()
    if inspect.isclass(c) and issubclass(c, errors.FlaxError)
  ]
  assert len(classes) > 20
  for c in classes:
    # As `FlaxError` links to it.
    assert f'id="{c.__module__}.{c.__name__}"' in page


def test_names_are_where_users_find_them(site):
  for page, name in (
    ('linen', 'haiku_state.linen.Dense'),
    ('linen', 'haiku_state.linen.compact'),
    ('linen', 'haiku_state.linen.scan'),
    ('core', 'haiku_state.core.Scope'),
    ('optim', 'haiku_state.optim.Adam'),
    ('training', 'haiku_state.training.train_state.TrainState'),
  ):
    assert f'id="{name}"' in (site / 'api' / f'{page}.html').read_text()


def test_links_to_the_readme_lead_to_its_page(site):
  assert 'href="first_program.html"' in (site / 'index.html').read_text()
  assert 'href="design.html"' in (site / 'first_program.html').read_text()
