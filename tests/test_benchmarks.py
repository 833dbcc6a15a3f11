"""Every workload of the benchmark runs in each of its forms."""

from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parent.parent
# The others differ from one of these in a number only.
NAMES = (
  'vmapped BatchNorm MLP',
  '20 x (Dense, BatchNorm)',
  'nested 1 deep',
  '1 module, 10 parameters',
  '1 module, 100 variables',
  'scan over 10 layers',
  'ensemble of 10 by vmap',
  'MLP in jit',
  'MLP in cond',
  'MLP in switch',
  'MLP in jvp',
  'MLP in vjp',
  'MLP in custom_vjp',
  'MLP in map_variables',
  'LSTM by nn.RNN',
  'transformer, 12 layers',
  'ResNet-50',
)


@pytest.fixture
def benchmarks(monkeypatch):
  # It is no part of the package, and stands beside it.
  monkeypatch.syspath_prepend(ROOT)
  import benchmarks.run

  return benchmarks


@pytest.mark.parametrize('name', NAMES)
def test_forms_agree_in_shapes(benchmarks, name):
  workload = benchmarks.workloads.WORKLOADS[name]()

  def shapes(program):
    key = jax.random.key(0)
    variables = jax.eval_shape(program.init, key, *workload.inputs)
    y, _ = jax.eval_shape(program.apply, variables, *workload.inputs)
    return jax.tree.map(lambda x: x.shape, y)

  forms = benchmarks.run.programs(workload)
  expected = shapes(forms.pop('haiku_state'))
  for program in forms.values():
    assert shapes(program) == expected


def test_measuring_counts_each_round(benchmarks):
  calls = []
  timed = {name: lambda n=name: calls.append(n) for name in 'ab'}
  times = benchmarks.run.measure(timed, 3, depths=[0, 8])
  assert calls == ['a', 'b'] * 7  # Once to warm up.
  assert set(times) == {'a', 'b'} and all(t >= 0 for t in times.values())


LIBRARIES = ('haiku_state', 'flax.linen', 'Haiku')
SMALL = dict(layers=2, width=8, heads=2, vocabulary=16, length=4)


@pytest.mark.parametrize('form', ['loop', 'scan'])
def test_the_large_model_is_one_model(benchmarks, form):
  pytest.importorskip('flax.linen')
  from benchmarks import fresh

  found = [fresh.large(library, form, **SMALL) for library in LIBRARIES]
  assert len({row['parameters'] for row in found}) == 1
  assert set(found[0]) == {'init', 'trace', 'lower', 'operations', 'parameters'}
  # Ours and Flax's are the same program.
  assert found[0]['operations'] == found[1]['operations'] > 100
  if form == 'scan':
    deeper = fresh.large('haiku_state', form, **{**SMALL, 'layers': 9})
    assert deeper['operations'] == found[0]['operations']


@pytest.mark.parametrize('library', LIBRARIES)
def test_the_first_minute(benchmarks, library, monkeypatch):
  from benchmarks import fresh, models

  pytest.importorskip(fresh.LIBRARIES[library])
  monkeypatch.setattr(models, 'transformer', lambda: models.lstm())
  found = fresh.first(library, 'transformer, 12 layers')
  assert set(found) == {'import jax', 'import', 'first init', 'first step'}


def test_a_fresh_process_answers(benchmarks, monkeypatch, capsys):
  from benchmarks import fresh

  monkeypatch.chdir(ROOT)
  found = fresh.in_a_process('large', library='Haiku', form='scan', **SMALL)
  assert found['peak MiB'] > 10
  fresh.show([('decoder', 'Haiku', {'init': 0.5, 'parameters': 2e9})])
  out = capsys.readouterr().out
  assert out.splitlines()[-1] == '| decoder | Haiku | 0.50 | 2.0 billion |'
