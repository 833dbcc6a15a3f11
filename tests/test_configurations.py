"""Flags: names, defaults, environment variables, updates, cost of a read."""

import importlib
import inspect
import os
import subprocess
import sys
from unittest import mock

import pytest
from counted import calls

from haiku_state import configurations
from haiku_state.configurations import (
  Config,
  FlagHolder,
  bool_flag,
  config,
  int_flag,
  static_bool_env,
  static_int_env,
)

# name, default, name of the holder
FLAGS = [
  ('flax_filter_frames', True, 'flax_filter_frames'),
  ('flax_profile', True, 'flax_profile'),
  ('flax_use_orbax_checkpointing', True, 'flax_use_orbax_checkpointing'),
  ('flax_preserve_adopted_names', False, 'flax_preserve_adopted_names'),
  ('flax_return_frozendict', True, 'flax_return_frozendict'),
  ('flax_fix_rng_separator', False, 'flax_fix_rng'),
  ('flax_use_flaxlib', False, 'flax_use_flaxlib'),
  ('flax_array_ref', False, 'flax_array_ref'),
  ('flax_pytree_module', True, 'flax_pytree_module'),
  ('flax_max_repr_depth', None, 'flax_max_repr_depth'),
  ('flax_always_shard_variable', True, 'flax_always_shard_variable'),
  ('flax_hijax_variable', False, 'flax_hijax_variable'),
  ('nnx_graph_mode', True, 'nnx_graph_mode'),
  ('nnx_graph_updates', True, 'nnx_graph_updates'),
]
each_flag = pytest.mark.parametrize('name, default, holder', FLAGS)


@pytest.fixture
def registry():
  """Gives the test a register of flags of its own."""
  with mock.patch.object(config, '_values', {}):
    yield


@pytest.fixture
def flax():
  pytest.importorskip('flax')
  return importlib.import_module('flax.configurations')


@each_flag
def test_default(name, default, holder):
  if name.upper() in os.environ:
    pytest.skip('set by the environment')
  assert getattr(config, name) is default
  assert getattr(configurations, holder).value is default


@each_flag
def test_environment(name, default, holder):
  value = '3' if default is None else str(not default)
  program = f"""
import importlib.util
spec = importlib.util.spec_from_file_location('c', {configurations.__file__!r})
c = importlib.util.module_from_spec(spec)
spec.loader.exec_module(c)
print(c.config.{name})
"""
  seen = subprocess.run(
    [sys.executable, '-S', '-c', program],
    env={**os.environ, name.upper(): value},
    capture_output=True,
    text=True,
    check=True,
  )
  assert seen.stdout.strip() == value


def test_flags_are_attributes_of_the_instance():
  # Not properties: those cost several times as much, and flags are read for
  # every module call.
  for name, _, _ in FLAGS:
    assert name in vars(config) and not hasattr(Config, name)


def test_reading_costs_like_a_plain_attribute():
  assert not calls(lambda: config.flax_profile)


@pytest.mark.parametrize('key', ['flax_profile', configurations.flax_profile])
def test_update(key):
  try:
    config.update(key, False)
    assert config.flax_profile is False
    assert configurations.flax_profile.value is False
  finally:
    config.update(key, True)
  assert config.flax_profile is True


def test_temp_flip_flag_restores_after_an_error():
  with pytest.raises(KeyError), config.temp_flip_flag('profile', False):
    assert config.flax_profile is False
    raise KeyError
  assert config.flax_profile is True


def test_unknown_flags():
  with pytest.raises(LookupError, match='Unrecognized config option: unknown'):
    config.update('unknown', True)
  with pytest.raises(AttributeError):
    _ = config.unknown
  with pytest.raises(AttributeError):
    with config.temp_flip_flag('unknown', True):
      pass


def test_assignment_points_to_update():
  with pytest.raises(
    AttributeError, match=r"`config.update\('flax_profile', False\)`"
  ):
    config.flax_profile = False
  assert config.flax_profile is True


def test_new_flags(registry):
  flag = bool_flag('Test', default=False, help='A flag of a test.')
  number = int_flag('number', default=3, help='Another.')
  assert (flag.name, flag.value, config.test) == ('test', False, False)
  assert (number.value, config.number) == (3, 3)
  config.update(flag, True)
  assert flag.value is True and config.test is True
  with pytest.raises(RuntimeError, match='test already defined'):
    bool_flag('test', default=False, help='Again.')
  assert not hasattr(config, 'flax_profile')


def test_registry_comes_back():
  with mock.patch.object(config, '_values', {'test': 1}):
    assert config.test == 1 and not hasattr(config, 'flax_profile')
  assert config.flax_profile is True and not hasattr(config, 'test')


def test_holder():
  holder = FlagHolder('flax_profile', 'What it does.')
  assert 'What it does.' in holder.__doc__
  with pytest.raises(TypeError, match="'FlagHolder.value' instead"):
    bool(holder)


@pytest.mark.parametrize(
  'word, expected',
  [(w, True) for w in ('y', 'Yes', 't', 'TRUE', 'on', '1')]
  + [(w, False) for w in ('n', 'No', 'f', 'FALSE', 'off', '0')],
)
def test_static_bool_env(monkeypatch, word, expected):
  monkeypatch.setenv('HS_TEST', word)
  assert static_bool_env('HS_TEST', not expected) is expected


def test_static_env_defaults_and_errors(monkeypatch):
  monkeypatch.delenv('HS_TEST', raising=False)
  assert static_bool_env('HS_TEST', True) is True
  assert static_int_env('HS_TEST', None) is None
  monkeypatch.setenv('HS_TEST', '12')
  assert static_int_env('HS_TEST', 3) == 12
  monkeypatch.setenv('HS_TEST', 'maybe')
  with pytest.raises(ValueError, match="truth value 'maybe'.*'HS_TEST'"):
    static_bool_env('HS_TEST', True)
  with pytest.raises(ValueError, match="integer value 'maybe'.*'HS_TEST'"):
    static_int_env('HS_TEST', 3)


def test_same_flags_as_flax(flax):
  differing = {'flax_return_frozendict'}
  names = [name for name, _, _ in FLAGS]
  assert list(config._values) == names
  # Flax adds flags for nnx from version to version.
  assert set(names) <= set(flax.config._values)
  assert {
    name for name, default, _ in FLAGS if getattr(flax.config, name) != default
  } == differing
  for _, _, holder in FLAGS:
    ours = getattr(configurations, holder)
    theirs = getattr(flax, holder)
    assert (ours.name, ours.__name__) == (theirs.name, theirs.__name__)


def test_same_repr_as_flax(flax):
  with mock.patch.object(config, '_values', dict(flax.config._values)):
    assert repr(config) == repr(flax.config)


@pytest.mark.parametrize(
  'name',
  ['bool_flag', 'int_flag', 'static_bool_env', 'static_int_env', 'FlagHolder'],
)
def test_same_signatures_as_flax(flax, name):
  ours = inspect.signature(getattr(configurations, name))
  theirs = inspect.signature(getattr(flax, name))
  assert list(ours.parameters) == list(theirs.parameters)
  assert [p.kind for p in ours.parameters.values()] == [
    p.kind for p in theirs.parameters.values()
  ]
