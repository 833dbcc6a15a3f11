"""The import hook: Flax's module names give this package's modules."""

import importlib
import sys

import pytest

import haiku_state
from haiku_state import linen, optim, struct
from haiku_state.port import NAMES, _names, installed
from haiku_state.training import train_state

PROGRAMS = {
  'import flax\nfound = flax': haiku_state,
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
    assert importlib.import_module('flax') is haiku_state
    assert importlib.import_module('flax.linen') is linen
    with pytest.raises(ImportError):
      importlib.import_module('flax.nnx')
  assert importlib.import_module('flax') is flax
  assert importlib.import_module('flax.linen') is flax_linen


def test_nests():
  with installed():
    with installed():
      pass
    import flax

    assert flax is haiku_state


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
