"""`haiku-state explain`: the lessons of errors, and what options do."""

import inspect

import pytest

from haiku_state import errors
from haiku_state.configurations import config
from haiku_state.port import main

ERRORS = [
  name
  for name, cls in vars(errors).items()
  if inspect.isclass(cls) and issubclass(cls, errors.FlaxError)
]
OPTIONS = list(config._values)


def said(capsys, *args):
  status = main(['explain', *args])
  return status, *capsys.readouterr()


@pytest.mark.parametrize('name', ERRORS)
def test_every_error(name, capsys):
  status, out, _ = said(capsys, name)
  lesson = inspect.getdoc(getattr(errors, name))
  assert (status, out) == (0, f'haiku_state.errors.{name}\n\n{lesson}\n')
  assert said(capsys, f'haiku_state.errors.{name}') == (0, out, '')


def test_name_at_the_end_of_a_message(capsys):
  message = str(errors.InvalidScopeError('a'))
  name = message.rpartition('(')[2].rstrip(')')
  assert said(capsys, name)[1].startswith(
    'haiku_state.errors.InvalidScopeError'
  )


@pytest.mark.parametrize('name', OPTIONS)
def test_every_option(name, capsys):
  status, out, _ = said(capsys, name)
  assert status == 0 and out.startswith(f'haiku_state.config.{name}\n\n')
  assert f"update('{name}'" in out and f'{name.upper()}=' in out
  assert f'It is {getattr(config, name)}.' in out


@pytest.mark.parametrize(
  'name, like',
  [
    ('InvalidRngEror', 'haiku_state.errors.InvalidRngError'),
    ('flax.errors.InvalidRngError', 'haiku_state.errors.InvalidRngError'),
    ('flax_profil', 'haiku_state.config.flax_profile'),
    ('', None),
    ('zzzzzz', None),
  ],
)
def test_unknown_name(name, like, capsys):
  status, out, err = said(capsys, name)
  assert (status, out) == (2, '')
  assert repr(name) in err and 'prints all names' in err
  assert like in err if like else 'Names like it' not in err


def test_all_names(capsys):
  status, out, _ = said(capsys)
  names = [line for line in out.splitlines() if not line.startswith(' ')]
  assert status == 0 and len(names) == len(ERRORS) + len(OPTIONS)
  assert all(said(capsys, name)[0] == 0 for name in names)
