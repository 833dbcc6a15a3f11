"""The examples run, in a short form, and do what they say."""

import importlib.util
import pathlib
import runpy

import numpy as np
import pytest
from layers_compare import quick_compilation as quick_compilation

EXAMPLES = pathlib.Path(__file__).parents[1] / 'examples'


def test_managing_parameters_and_state(tmp_path, capsys):
  picture = tmp_path / 'picture.png'
  program = runpy.run_path(str(EXAMPLES / 'managing_parameters_and_state.py'))
  curves = program['main'](['--epochs', '30', '--picture', str(picture)])
  losses, errors = curves['running mean']
  # The averages are on their way to the true ones: 0.99 ** 30 of the way left.
  assert errors[-1] < 0.8 * errors[0]
  assert losses[-1] < losses[0]
  losses, errors = curves['BatchNorm']
  assert losses[-1] < 0.5 * losses[0]
  assert np.mean(errors[-5:]) < 0.5
  out = ''.join(capsys.readouterr())
  assert 'MLP: 1889 parameters' in out
  assert 'Evaluated: loss' in out
  try:
    import matplotlib  # noqa: F401
  except ImportError:
    assert 'No picture' in out
  else:
    assert picture.read_bytes().startswith(b'\x89PNG')


@pytest.fixture
def run_short(tmp_path, monkeypatch):
  """Runs an example in its short form, as its folder's programs run."""
  monkeypatch.syspath_prepend(EXAMPLES)
  monkeypatch.chdir(tmp_path)

  def run(name):
    returned = runpy.run_path(str(EXAMPLES / name))['main'](['--short'])
    if importlib.util.find_spec('matplotlib'):
      picture = tmp_path / name.replace('.py', '.png')
      assert picture.read_bytes().startswith(b'\x89PNG')
    return returned

  return run


def test_digits(run_short):
  pytest.importorskip('sklearn')
  losses, accuracies = run_short('digits.py')
  assert losses[-1] < losses[0]
  assert accuracies[-1] > 0.5  # By chance it would be a tenth.


def test_characters(run_short):
  losses, said, error = run_short('characters.py')
  assert losses[-1] < 0.9 * losses[0]
  assert said.startswith('Apache L') and len(said) == 16
  assert error < 1e-4  # The cache says what the whole text does.


def test_sequence(run_short):
  losses, answers, sums = run_short('sequence.py')
  assert np.mean(losses[-5:]) < 0.5 * losses[0]
  # Better than to answer with the mean always.
  assert np.mean((answers - sums) ** 2) < 0.95 * np.var(sums)


def test_autoencoder(run_short):
  pytest.importorskip('sklearn')
  params, losses = run_short('autoencoder.py')
  assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
  assert set(params) == {'read', 'mean', 'log_var', 'unfold', 'write'}
