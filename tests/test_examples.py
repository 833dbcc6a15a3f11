"""The examples run, stop when asked to, and say what is wrong."""

import ast
import functools
import importlib
import importlib.util
import pathlib
import re
import runpy
import signal
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

EXAMPLES = pathlib.Path(__file__).parents[1] / 'examples'


# How many steps are done before Ctrl-C ends it.
DONE = 4


class Example(NamedTuple):
  """How an example is run in a few seconds, and what it must return.

  Attributes:
    tiny: its arguments, beside steps and picture.
    check: fails if what `main` returned, after `DONE` steps, is not right.
    needs: a package that it does not run without.
    counts: what is called with a number at the beginning of each step.
  """

  tiny: str
  check: Callable[[Any], None]
  needs: str | None = None
  counts: str = 'showing.trange'


def check_actor_critic(returned):
  params, caught = returned
  assert {'memory/hf', 'torso/Dense_0', 'policy', 'value'} <= set(params)
  assert len(caught) == DONE and all(0 <= part <= 1 for part in caught)


def check_resnet(returned):
  result, losses = returned
  assert result.equal and len(result.rows) == 2 + 8 + 2
  assert len(losses['Haiku']) == DONE
  assert np.allclose(losses['Haiku'], losses['linen'], rtol=1e-3)


def check_seq2seq(returned):
  answers, losses = returned
  assert losses[-1] < losses[0]
  # It answers one character more than the numbers have, and an end.
  said = answers(np.full((1, 4), 1), np.array([4]), np.zeros((1, 3), int))
  assert said.shape == (1, 3)


def check_transformer(returned):
  result, losses = returned
  assert result.equal
  assert {'embed', 'attention_0', 'logits'} <= {
    row.linen for row in result.rows
  }
  assert len(losses) == DONE


def check_vae(returned):
  params, losses = returned
  assert set(params) == {'read', 'mean', 'log_var', 'unfold', 'write'}
  assert losses[-1] < losses[0] < 50


def check_alphafold_weights(returned):
  variables, losses, difference = returned
  params = variables['params']
  kernel = params['evoformer_iteration']['transition_1']['kernel']
  assert kernel.shape == (2, 3, 6)  # Two blocks in one array.
  assert losses[-1] < losses[0]
  assert difference < 1e-6


def check_averages(returned):
  game, good, values = returned
  assert good.shape == (DONE, 2) and values.shape == (DONE, 4)
  # The average of a parameter that was zero lags behind.
  average = game.averages['averages']['params']['Dense_0']['bias']
  now = game.generator['Dense_0']['bias']
  assert (0 < average / now).all() and (average / now < 1).all()
  # Training has changed the norms, and it was found.
  assert (values[-1] != values[0]).all()


def check_characters(returned):
  losses, texts, error = returned
  assert losses[-1] < losses[0]
  # It goes on after the prompt, which is the beginning of the license.
  assert all(text.startswith('Apache L') for text in texts.values())
  assert error < 1e-4  # The cache says what the whole text does.


def check_digits(returned):
  losses, rights = returned
  assert len(losses) == DONE and set(rights) == {0, 1, 2, 3}
  assert losses[-1] < losses[0]


def check_ensemble(returned):
  params, losses = returned
  assert params['Dense_1']['kernel'].shape == (3, 4, 4)
  assert losses.shape == (DONE, 3)
  assert (losses[-1] < losses[0]).all()
  assert len(set(losses[0])) == 3  # The members begin with other weights.


def check_lstm(returned):
  result, losses, said = returned
  assert result.equal
  assert losses[-1] < losses[0]
  assert len(said) == 432


def check_looking_inside(returned):
  params, losses = returned
  assert not any('probe' in name for name in params)
  assert losses[-1] < losses[0]


def check_managing_parameters_and_state(curves):
  for losses, errors in curves.values():
    assert len(losses) == len(errors) == DONE
    assert errors[-1] < errors[0]
  # The average is on its way to the true one: a hundredth of it each step.
  errors = curves['running mean'][1]
  assert 0.95 < errors[1] / errors[0] < 1


def check_old_program(log):
  _, rates, losses, accuracies = log.T
  # The first step is taken at the rate 0, the last is not of the warm-up.
  assert rates[0] == 0 and 0 < rates[1]
  assert losses.shape == (DONE,) and 1 < losses[0] < 4


ROWS = {
  'actor_critic': Example(
    '--rows 3 --columns 2 --visible 1 --features 2 --batch-size 2',
    check_actor_critic,
  ),
  'alphafold_weights': Example(
    '--length 4 --channels 3 --blocks 2 --batch-size 32',
    check_alphafold_weights,
  ),
  'averages_and_spectral_norm': Example(
    '--hidden 4 --batch-size 4 --decay 0.5', check_averages
  ),
  'characters': Example(
    '--length 10 --width 4 --heads 2 --depth 1 --learning-rate 0.1',
    check_characters,
  ),
  'digits': Example(
    '--channels 2 --dropout 0 --learning-rate 0.03', check_digits, 'sklearn'
  ),
  'ensemble': Example('--members 3 --points 4 --hidden 4', check_ensemble),
  'looking_inside': Example(
    '--count 2 --channels 2 --learning-rate 0.05',
    check_looking_inside,
    'sklearn',
  ),
  'lstm': Example(
    '--hidden 4 --length 4 --batch-size 8 --learning-rate 0.05', check_lstm
  ),
  'managing_parameters_and_state': Example(
    '--hidden 4 --batch-size 8', check_managing_parameters_and_state
  ),
  'old_program': Example(
    '--batch-size 4',
    check_old_program,
    'sklearn',
    counts='numpy.random.randint',
  ),
  'resnet': Example(
    '--blocks 1,0,0,0 --channels 4 --size 8 --batch-size 2', check_resnet
  ),
  'seq2seq': Example(
    '--digits 1 --hidden 4 --batch-size 16 --learning-rate 0.05',
    check_seq2seq,
  ),
  'transformer': Example(
    '--numbers 4 --length 3 --width 4 --heads 2 --depth 1 --batch-size 2',
    check_transformer,
  ),
  'vae': Example(
    '--layers mixed --hidden 8 --learning-rate 0.05', check_vae, 'sklearn'
  ),
}

each = pytest.mark.parametrize('name', ROWS)


@pytest.fixture
def showing(monkeypatch):
  monkeypatch.syspath_prepend(EXAMPLES)
  import showing

  yield showing
  if pyplot := sys.modules.get('matplotlib.pyplot'):
    pyplot.close('all')


@pytest.fixture
def main(name, showing):
  """Returns the function `main` of an example."""
  return runpy.run_path(str(EXAMPLES / f'{name}.py'))['main']


def test_every_example_has_a_row():
  files = {path.stem for path in EXAMPLES.glob('*.py')}
  # What they share, and the one that is run on several devices.
  assert files - {'showing', 'many_devices'} == set(ROWS)


# --- As it should go ---------------------------------------------------------


def presses(fn):
  """Returns the function that counts steps, and has Ctrl-C pressed.

  Args:
    fn: `trange`, which gives the steps, or what each step calls at its begin.
  """
  calls = []

  def press_in_last_step(count, **options):
    for i in range(count):
      if i == DONE - 1:
        signal.raise_signal(signal.SIGINT)
      yield i

  def press_in_the_call_after(*args, **options):
    calls.append(args)
    if len(calls) == DONE + 1:
      signal.raise_signal(signal.SIGINT)
    return fn(*args, **options)

  is_trange = fn.__name__ == 'trange'
  return press_in_last_step if is_trange else press_in_the_call_after


@each
def test_runs_until_ctrl_c(name, main, tmp_path, monkeypatch, capsys):
  if needs := ROWS[name].needs:
    pytest.importorskip(needs)
  module, _, function = ROWS[name].counts.rpartition('.')
  counts = getattr(importlib.import_module(module), function)
  monkeypatch.setattr(ROWS[name].counts, presses(counts))
  monkeypatch.chdir(tmp_path)
  before = signal.getsignal(signal.SIGINT)
  picture = tmp_path / 'picture.png'
  args = ['--steps', '9', '--picture', str(picture), *ROWS[name].tiny.split()]
  ROWS[name].check(main(args))
  assert signal.getsignal(signal.SIGINT) is before
  out = capsys.readouterr().out
  assert f'Stopped after {DONE} of 9 steps.' in out
  if importlib.util.find_spec('matplotlib'):
    assert picture.read_bytes().startswith(b'\x89PNG')
    assert f'Saved {picture}' in out
  assert set(tmp_path.iterdir()) <= {picture}  # It leaves nothing else.


@each
def test_is_written_for_the_gallery(name):
  text = (EXAMPLES / f'{name}.py').read_text()
  doc = ast.get_docstring(ast.parse(text))
  title, underline, *_ = doc.splitlines()
  assert underline == len(title) * '='
  assert 'port of' in doc.lower() and 'had to change' in doc
  # Each cell begins with a heading, and its line.
  cells = re.findall(r'^# %%\n# (.+)\n# (-+)$', text, re.M)
  assert len(cells) == text.count('# %%') >= 3
  assert all(len(heading) == len(line) for heading, line in cells)


# --- As it should not --------------------------------------------------------


def refused(main, capsys, *args):
  """Returns what an example says as it refuses arguments."""
  with pytest.raises(SystemExit) as e:
    main(list(args))
  assert e.value.code == 2
  return capsys.readouterr().err


WRONG = {
  '--steps=0': "'0' is not a whole number of at least 1",
  '--steps=1.5': "'1.5' is not a whole number of at least 1",
  '--steps=many': "'many' is not a whole number of at least 1",
  '--picture=nowhere/a.png': "there is no folder 'nowhere'",
  '--picture=a.txt': "'a.txt' does not end in .png, .svg, .pdf or .jpg",
  '--picture=a.png': "'a.png' is a folder",
  '--unheard-of': 'unrecognized arguments: --unheard-of',
}


@each
def test_wrong_arguments(name, main, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'a.png').mkdir()
  for arg, words in WRONG.items():
    assert words in refused(main, capsys, arg)


# What does not fit together: the example, its arguments, and words of the error.
UNFIT = [
  (
    'characters',
    '--width 6 --heads 4',
    '--width must be a multiple of --heads',
  ),
  (
    'characters',
    '--text short.txt',
    'short.txt has 3 characters, and is read 96',
  ),
  ('characters', '--text bytes', 'bytes is no text in UTF-8'),
  ('lstm', '--text nowhere.txt', "there is no file 'nowhere.txt'"),
  (
    'lstm',
    '--text short.txt --length 3',
    'a longer text, or a smaller --length',
  ),
  ('lstm', '--dropout 1', "'1' is not a number from 0 to below 1"),
  ('resnet', '--blocks 3,4,6', "'3,4,6' is not as in 3,4,6,3"),
  ('transformer', '--numbers 4 --length 5', 'must be at most --numbers, 4'),
  ('vae', '--layers torch', "invalid choice: 'torch'"),
  ('vae', '--learning-rate 0', "'0' is not a number above 0"),
]


@pytest.mark.parametrize('name, args, words', UNFIT)
def test_what_does_not_fit(main, args, words, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  pathlib.Path('short.txt').write_text('abc')
  pathlib.Path('bytes').write_bytes(b'\xff' * 200)
  with pytest.raises(SystemExit) as e:
    main(args.split())
  assert words in f'{e.value.code} {capsys.readouterr().err}'


@each
def test_no_option_takes_a_senseless_value(name, main, capsys):
  with pytest.raises(SystemExit) as e:
    main(['--help'])
  assert e.value.code == 0
  options = re.findall(r'^  (--[\w-]+)', capsys.readouterr().out, re.M)
  assert {'--steps', '--picture'} <= set(options)
  for option in options:
    for value in '-1', 'nan':
      assert re.search(
        f"argument {option}: .*'?{value}", refused(main, capsys, option, value)
      )


@each
def test_options_are_described(name, main, capsys):
  with pytest.raises(SystemExit):
    main(['--help'])
  out = ' '.join(capsys.readouterr().out.split())
  options = re.findall(r' --[\w-]+ (?:[A-Z_]+|{.*?}) (.*?)\(default: ', out)
  # All but `--help` have one.
  assert len(options) == out.count('(default: ') == out.count(' --') - 1
  assert all(len(words) > 2 for words in options)


@each
@pytest.mark.parametrize('package', ['matplotlib', 'tqdm', 'sklearn'])
def test_says_what_is_not_installed(
  name, package, main, showing, monkeypatch, capsys
):
  class Parsed(Exception):
    pass

  def parse_args(self, args):
    raise Parsed(parse(self, args))

  monkeypatch.setitem(sys.modules, package, None)
  if package == 'sklearn':
    if ROWS[name].needs == 'sklearn':
      with pytest.raises(SystemExit, match=r"scikit-learn: pip install '"):
        main([])
    return
  parse = showing.Parser.parse_args
  monkeypatch.setattr(showing.Parser, 'parse_args', parse_args)
  with pytest.raises(Parsed):
    main([])
  out = capsys.readouterr().out
  assert f"pip install '.[examples]' brings {package}." in out


def test_arguments_need_no_docstring(showing):
  # The gallery runs the cells without it.
  parser = showing.arguments('', picture='a.png', steps=3)
  args = parser.parse_args(['--picture', ''])
  assert args.steps == 3 and args.picture is None


def test_a_second_ctrl_c_ends_it_at_once(showing):
  with pytest.raises(KeyboardInterrupt):
    for _ in showing.steps(3):
      signal.raise_signal(signal.SIGINT)
      signal.raise_signal(signal.SIGINT)


def test_reports_some_times_and_at_the_end(showing):
  assert [i for i in range(95) if showing.due(i, 95)][-3:] == [81, 90, 94]
  assert [i for i in range(3) if showing.due(i, 3)] == [0, 1, 2]


# --- Many devices ------------------------------------------------------------


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
