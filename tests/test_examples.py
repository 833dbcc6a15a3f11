"""The examples run, in a short form, and do what they say."""

import pathlib
import runpy

import numpy as np

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
