"""The benchmark takes turns, and writes its tables into a document."""

import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def test_who_begins_changes_from_round_to_round(benchmarks):
  calls = []

  def timer(name):
    return lambda depth: calls.append((name, depth)) or 1.0

  timing = benchmarks.timing
  times = timing.take_turns({name: timer(name) for name in 'abc'}, 0.0)
  assert times == {name: [1.0] * timing.FEWEST_ROUNDS for name in 'abc'}
  assert ''.join(name for name, _ in calls) == 'abcbcacab'
  assert [depth for _, depth in calls[::3]] == [0, 56, 112]


def test_rounds_span_all_depths(benchmarks):
  timing = benchmarks.timing
  n = len(timing.DEPTHS)
  assert len({i * timing.STRIDE % n for i in range(n)}) == n

  def depth_of_stack():
    frame, depth = sys._getframe(), 0
    while frame := frame.f_back:
      depth += 1
    return depth

  here = depth_of_stack()
  assert timing.at_depth(8, depth_of_stack) - here == 9


def test_a_timer_takes_the_least_of_its_repeats(benchmarks):
  clock = iter([0, 5, 10, 12, 20, 29]).__next__
  calls = []
  timed = benchmarks.timing.timer(lambda: calls.append(1), clock, repeats=3)
  assert len(calls) == 1  # To warm up.
  assert timed(8) == 2
  assert len(calls) == 4


def test_a_ratio_is_the_median_of_those_of_the_rounds(benchmarks):
  # A machine that is twice as slow for a while changes nothing.
  others = [1.0, 2.0, 1.0, 2.0, 1.0]
  mine = [0.5 * t for t in others]
  assert str(benchmarks.timing.ratio(mine, others)) == '0.50 ± 0.00'
  mine = [1.0, 2.0, 3.0, 4.0, 100.0]
  assert str(benchmarks.timing.ratio(mine, [1.0] * 5)) == '3.00 ± 1.00'


def test_all_are_those_of_one_size(benchmarks):
  chosen = benchmarks.subjects.chosen
  assert chosen(['all']) == list(benchmarks.subjects.ALL)
  assert chosen(['nested 1']) == [
    'nested 100 deep',
    'nested 1 deep',
    'nested 10 deep',
  ]
  assert chosen(['import']) == ['import']
  assert chosen(['none of them']) == []


@pytest.fixture
def results(benchmarks):
  table, ratio = benchmarks.table, benchmarks.timing.Ratio(0.5, 0.01)
  both = {'init trace': {'flax.linen': ratio, 'pure JAX': ratio}}
  flax = {'init trace': {'flax.linen': ratio}}
  return {
    'first': table.Result(both, {'flax.linen': True, 'pure JAX': False}),
    'second': table.Result(flax, {'flax.linen': True}),
    'import': table.Result({'import': {'Haiku': ratio}}, {}),
  }


def test_tables_have_what_was_measured(benchmarks, results):
  tables = benchmarks.table.markdown(results, 6.0)
  beside_pure, beside_flax, around = tables.split('\n## ')[1:]
  assert '| first | 0.50 ± 0.01 |' in beside_pure
  assert 'second' not in beside_pure
  assert 'operations of the steps are not the same' in beside_pure
  assert '| second | 0.50 ± 0.01 |' in beside_flax
  assert 'each step is the same' in beside_flax
  assert '| import |  |  | 0.50 ± 0.01 |' in around


def test_a_step_that_differs_is_told(benchmarks, results):
  table = benchmarks.table
  results['second'].same_step['flax.linen'] = False
  told = table.steps('flax.linen', {n: results[n] for n in ('first', 'second')})
  assert told == 'The lowered text of the step is not the same in: second.'


def test_writing_keeps_the_prose_and_can_be_repeated(benchmarks, results):
  table = benchmarks.table
  tables = table.markdown(results, 6.0)
  before, after = '# What\n\nIt \\1 costs.\n\n', '\n\n## Why\n\nSo.\n'
  document = f'{before}{table.BEGIN}\nold\n{table.END}{after}'
  written = table.replaced(document, tables)
  assert written == f'{before}{table.BEGIN}\n\n{tables}\n\n{table.END}{after}'
  assert table.replaced(written, tables) == written
  for wrong in (before, document + document, table.END + table.BEGIN):
    with pytest.raises(ValueError, match='the document needs once'):
      table.replaced(wrong, tables)


def test_the_document_has_the_marks(benchmarks):
  table = benchmarks.table
  document = (ROOT / 'docs' / 'cost.md').read_text()
  assert table.replaced(document, 'x').count('x') >= 1


def test_measured_and_written(benchmarks, tmp_path, capsys, monkeypatch):
  # Its own process may go as deep as it likes.
  monkeypatch.setattr(sys, 'setrecursionlimit', lambda limit: None)
  table = benchmarks.table
  document = tmp_path / 'cost.md'
  document.write_text(f'Before.\n\n{table.BEGIN}{table.END}\n\nAfter.\n')
  write = ['--seconds', '0', '--write', str(document)]
  benchmarks.run.main(['nested 1 deep', *write])
  written = document.read_text()
  assert written.startswith('Before.\n\n') and written.endswith('\n\nAfter.\n')
  assert '## Beside pure JAX' in written and '| nested 1 deep | ' in written
  out = capsys.readouterr().out
  assert out.count('pure JAX: ') == 6 and 'pure JAX: same' in out


def test_containers_are_beside_dicts(benchmarks):
  timers = benchmarks.containers.timers(leaves=4)
  assert len(timers) == 5
  for task, by_library in timers.items():
    assert {'haiku_state', 'pure JAX'} <= set(by_library), task
    assert all(timed(0) > 0 for timed in by_library.values())
