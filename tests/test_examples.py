"""The examples run, in a short form, and do what they say."""

import functools
import importlib.util
import pathlib
import runpy

import jax
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


@pytest.fixture
def many_devices(monkeypatch):
  if not hasattr(jax, 'shard_map'):
    pytest.skip('needs jax.shard_map')
  monkeypatch.syspath_prepend(EXAMPLES)
  return importlib.import_module('many_devices')


def use_one_device(many_devices, monkeypatch):
  one = jax.sharding.Mesh(np.array([[jax.devices()[0]]]), ('data', 'model'))
  monkeypatch.setattr(many_devices, 'make_mesh', lambda: one)


@functools.cache
def losses_of_many_devices(many_devices, *options):
  return many_devices.main(['--short', *options])


def test_many_devices(many_devices, monkeypatch, capsys):
  by_jit = losses_of_many_devices(many_devices)
  out = ''.join(capsys.readouterr())
  assert "v_col['Dense_0']['kernel'].value (64,)" in out
  assert '(16, 64): ' in out and '(16, 32) on each device' in out
  assert by_jit[-1] < 0.7 * by_jit[0]
  otherwise = losses_of_many_devices(
    many_devices, '--by', 'shard_map', '--optimizer', 'optim', '--in-haiku'
  )
  np.testing.assert_allclose(otherwise, by_jit, rtol=1e-5)


def test_many_processes(many_devices, tmp_path, monkeypatch):
  pytest.importorskip('orbax.checkpoint')
  expected = losses_of_many_devices(many_devices)
  monkeypatch.setenv('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')
  options = ['--checkpoints', str(tmp_path)]
  losses = many_devices.main(
    ['--devices', '4', '--processes', '2', '--steps', '3', *options]
  )
  # It goes on in one process, on one device.
  use_one_device(many_devices, monkeypatch)
  losses += many_devices.main(['--steps', '2', *options])
  np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_many_devices_ends_all_processes_if_one_fails(
  many_devices, tmp_path, monkeypatch
):
  program = tmp_path / 'program.py'
  program.write_text(
    'import sys, time\nif sys.argv[-1] == "1": sys.exit(3)\ntime.sleep(100)'
  )
  monkeypatch.setattr(many_devices, '__file__', str(program))
  with pytest.raises(SystemExit, match='Process 1 failed: all are ended'):
    many_devices.main(['--processes', '2'])
