"""The import hook: Flax's module names give this package's modules."""

import importlib
import subprocess
import sys
import textwrap

import pytest

import haiku_state
from haiku_state import linen, optim, struct
from haiku_state.port import NAMES, _names, installed
from haiku_state.training import train_state

PROGRAMS = {
  'import flax.linen as nn\nfound = nn': linen,
  'import flax.linen\nfound = flax.linen': linen,
  'from flax import linen as nn, optim\nfound = optim': optim,
  'from flax.linen import Dense\nfound = Dense': linen.Dense,
  'from flax.optim.sgd import GradientDescent as found': (
    optim.sgd.GradientDescent
  ),
  'from flax.training import train_state as found': train_state,
  'import flax.training.train_state as found': train_state,
  'import flax\nfound = flax.training.train_state': train_state,
  'from flax.struct import dataclass as found': struct.dataclass,
  'import importlib\nfound = importlib.import_module("flax.optim")': optim,
}


def run(program):
  names = {}
  with installed():
    exec(program, names)
  return names


@pytest.mark.parametrize('program', PROGRAMS)
def test_same_object(program):
  assert run(program)['found'] is PROGRAMS[program]


def test_modules_stay_as_they_are():
  spec, own = linen.__spec__, set(vars(linen))
  run('import flax.linen')
  assert linen.__spec__ is spec and linen.__spec__.name == 'haiku_state.linen'
  assert set(vars(linen)) == own
  assert not any(_names.is_package(m, 'flax') for m in sys.modules) or (
    sys.modules['flax'] is not haiku_state
  )


def test_real_flax_is_out_of_reach_and_comes_back():
  flax = pytest.importorskip('flax')
  flax_linen = importlib.import_module('flax.linen')
  with installed():
    assert importlib.import_module('flax').linen is linen
    assert importlib.import_module('flax.linen') is linen
    with pytest.raises(ImportError):
      importlib.import_module('flax.nnx')
  assert importlib.import_module('flax') is flax
  assert importlib.import_module('flax.linen') is flax_linen


def test_flax_has_the_version_that_this_behaves_as():
  program = """
import importlib.metadata
import flax
found = flax.__version__, importlib.metadata.version('flax')
metadata = importlib.metadata.metadata('Flax')
names = {d.metadata['Name'] for d in importlib.metadata.distributions()}
"""
  names = run(program)
  assert names['found'] == (_names.VERSION, _names.VERSION)
  assert names['metadata']['Name'] == 'flax'
  assert {'flax', 'jax'} <= names['names']
  assert haiku_state.__version__ != _names.VERSION


def test_version_is_that_of_the_oracle():
  flax = pytest.importorskip('flax')
  assert flax.__version__ == _names.VERSION


def test_flax_itself_has_what_this_package_has(monkeypatch):
  names = run('import flax\nfrom flax import *')
  flax = names['flax']
  public = {n for n in dir(haiku_state) if not n.startswith('_')}
  assert all(getattr(flax, n) is getattr(haiku_state, n) for n in public)
  assert public <= set(dir(flax))
  assert set(haiku_state.__all__) <= set(names)
  assert flax.__name__ == 'flax' and flax.__file__ == haiku_state.__file__
  # What a program sets, all of this package sees.
  monkeypatch.setattr(haiku_state, 'config', haiku_state.config)
  flax.config = other = object()
  assert haiku_state.config is other
  flax.mine = 1
  del flax.mine
  assert not hasattr(haiku_state, 'mine')


def test_can_be_the_first_that_is_imported():
  # Haiku looks for Flax when it is imported: it must not find half of this.
  program = """
    from haiku_state import port
    port.install()
    import flax.linen as nn
    import haiku_state.linen
    assert nn is haiku_state.linen and nn.LSTMCell
  """
  run = [sys.executable, '-c', textwrap.dedent(program)]
  subprocess.run(run, check=True)


def test_nests():
  with installed():
    with installed():
      pass
    import flax

    assert flax.linen is linen


MISSING = {
  'from flax import nnx': 'linen',
  'import flax.nnx': 'linen',
  'import flax\nflax.nnx': 'linen',
  'from flax.metrics import tensorbord': 'haiku_state.metrics.tensorboard',
  'import flax.deprecated.nn': 'dataclass',
  'import flax.linen as nn\nnn.Dence': 'haiku_state.linen.Dense',
  'from flax.linen import Dence': 'haiku_state.linen.Dense',
}


@pytest.mark.parametrize('program', MISSING)
def test_missing_name_says_what_to_write(program):
  with pytest.raises((ImportError, AttributeError)) as e:
    run(program)
  assert 'flax.' in str(e.value) and MISSING[program] in str(e.value)


def test_missing_name_can_be_asked_for():
  program = """
import flax
import flax.linen as nn
found = [hasattr(nn, 'Nothing'), getattr(flax, 'nothing', 3)]
try:
  from flax import nnx
except ImportError:
  found.append('no nnx')
"""
  assert run(program)['found'] == [False, 3, 'no nnx']


@pytest.mark.parametrize('row', NAMES, ids=lambda row: row.name)
def test_table_is_true(row):
  missing = _names.find_missing(row.name)
  if '.Module.' in row.name:
    assert not hasattr(linen.Module, row.name.rpartition('.')[2])
  else:
    assert (missing is not None) == row.missing
