"""What is paid once, and what an accelerator does, can be measured."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

ROOT = Path(__file__).parent.parent


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


@pytest.fixture
def accelerator(benchmarks):
  pytest.importorskip('flax.linen')
  from benchmarks import accelerator

  return accelerator


@pytest.mark.parametrize(
  'name', ['batch norm over a mapped axis', 'scan', 'mixed precision, dense']
)
def test_the_accelerators_cases_agree(accelerator, name):
  found = accelerator.agreement(name)
  assert found in ('bit for bit', 'to 1e-07', 'to 2e-07')


def test_the_accelerators_cases_can_be_made(accelerator):
  from haiku_state import linen

  for make, shape in accelerator.CASES.values():
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    assert jax.eval_shape(make(linen).init, jax.random.key(0), x)


def test_the_accelerators_comparison_can_fail(accelerator, monkeypatch):
  def make(nn):
    return nn.Dense(3 if nn.__name__.startswith('flax') else 4)

  def scaled(nn):
    return nn.Dense(
      4, kernel_init=lambda *_: jnp.ones((2, 4)) * len(nn.__name__)
    )

  cases = {'shape': (make, (2, 2)), 'values': (scaled, (2, 2))}
  monkeypatch.setattr(accelerator, 'CASES', cases)
  assert 'not float32(3,)' in accelerator.agreement('shape')
  assert accelerator.agreement('values').startswith('to ')


def test_the_accelerators_report(accelerator, monkeypatch, capsys):
  monkeypatch.setattr(accelerator, 'SIZES', {'lstm': {}})
  monkeypatch.setattr(accelerator, 'LIBRARIES', ('haiku_state',))
  monkeypatch.setattr(
    accelerator, 'step_in_a_process', lambda *args: accelerator.step(*args)
  )
  cases = dict(list(accelerator.CASES.items())[:1])
  monkeypatch.setattr(accelerator, 'CASES', cases)
  names = accelerator.documents()
  assert 'README.md' in names and 'docs/many_devices.md' not in names
  monkeypatch.setattr(accelerator, 'documents', lambda: ['docs/errors.md'])
  monkeypatch.setattr(accelerator, 'runs', lambda name: 'runs')
  accelerator.main(['--short'])
  out = capsys.readouterr().out
  assert re.search(r'\| lstm, haiku_state \| [\d.]+ \| [\d.]+ \|', out)
  assert '| dense | bit for bit |' in out
  assert '| docs/errors.md | runs |' in out
  accelerator.main(['--short', '--limit', '0'])
  assert capsys.readouterr().out.count('left out: no time') == 3


def test_a_document_that_fails_is_told(accelerator, monkeypatch, tmp_path):
  (tmp_path / 'bad.md').write_text('```python\nassert False, "why"\n```\n')
  monkeypatch.setattr(accelerator, 'ROOT', tmp_path)
  before = Path.cwd()
  assert accelerator.runs('bad.md') == "AssertionError: 'why'"
  (tmp_path / 'good.md').write_text('```python\nopen("file", "w")\n```\n')
  assert accelerator.runs('good.md') == 'runs'
  assert not Path('file').exists()
  assert Path.cwd() == before
