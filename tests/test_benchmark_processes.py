"""The benchmark measures in other processes, and beside another source tree."""

import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def test_imports_are_measured_in_new_processes(benchmarks):
  timers = benchmarks.fresh.timers(['Haiku'])
  assert set(timers['import']) == {'Haiku'}
  assert 0.01 < timers['import']['Haiku'](0) < 60


def test_two_trees_are_compared(benchmarks, tmp_path, capsys):
  # It has a benchmark of its own, which must not be taken for this one.
  (tmp_path / 'benchmarks').mkdir()
  (tmp_path / 'benchmarks' / '__init__.py').write_text('raise ValueError')
  package = tmp_path / 'haiku_state'
  shutil.copytree(
    ROOT / 'haiku_state', package, ignore=shutil.ignore_patterns('__pycache__')
  )
  with (package / 'linen' / 'module.py').open('a') as file:
    file.write('\nprint("Hello")\n')  # It is no answer.
  main = benchmarks.run.main
  main(['nested 1 deep', '--seconds', '0', '--against', str(tmp_path)])
  out = capsys.readouterr().out
  assert out.count('old: ') == 6 and 'old: same' in out


def test_a_tree_without_haiku_state_is_told(benchmarks, tmp_path):
  with benchmarks.against.trees(old=tmp_path) as trees:
    with pytest.raises(RuntimeError, match='the process has ended'):
      benchmarks.against.timers(trees, 'nested 1 deep')


def test_help_runs(tmp_path):
  done = subprocess.run(
    [sys.executable, '-m', 'benchmarks.run', '--help'],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  assert '--against' in done.stdout
