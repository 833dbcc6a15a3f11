"""A process that waits for others says so, and does not wait for ever."""

import threading
from unittest import mock

import jax
import pytest
from absl import logging
from jax.experimental import multihost_utils

from haiku_state.training import _waiting, checkpoints


@pytest.fixture
def two_processes(monkeypatch):
  """Is process 1 of 2, and returns what decides how a meeting ends."""
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  monkeypatch.setattr(jax, 'process_index', lambda: 1)
  monkeypatch.setattr(_waiting, 'TELL_AFTER', 0.01)
  met = mock.Mock()
  monkeypatch.setattr(multihost_utils, 'sync_global_devices', met)
  return met


@pytest.fixture
def warnings():
  with mock.patch.object(logging, 'warning') as seen:
    yield seen


def text(call):
  return call.args[0] % call.args[1:]


def test_the_limit_is_an_error(two_processes, warnings, tmp_path):
  over = threading.Event()
  two_processes.side_effect = lambda name: over.wait(10)
  with pytest.raises(TimeoutError) as error:
    checkpoints.save_checkpoint_multiprocess(
      tmp_path, {'w': 1}, 3, wait_limit=0.1
    )
  over.set()
  for part in ('Process 1 of 2', '0.1 seconds', 'checkpoint_3', 'StartSave'):
    assert part in str(error.value)
  first = text(warnings.call_args_list[0])
  assert first.startswith('Process 1 of 2 has been waiting for the other')
  assert len(warnings.call_args_list) > 1
  two_processes.assert_called_once_with('Flax:Checkpoint:StartSave')


def test_who_comes_in_time_goes_on(two_processes, warnings):
  _waiting.for_all_processes('name', 'them', 10)
  with _waiting.told('them'):
    pass
  warnings.assert_not_called()
  assert not [t for t in threading.enumerate() if t.name == 'name']


def test_an_error_of_the_others_is_raised_here(two_processes):
  two_processes.side_effect = ValueError('Connection reset by peer')
  with pytest.raises(ValueError, match='reset by peer'):
    _waiting.for_all_processes('name', 'them', None)


def test_one_process_waits_for_nobody(warnings, monkeypatch):
  threads = threading.active_count()
  monkeypatch.setattr(threading, 'Thread', None)
  _waiting.for_all_processes('name', 'them', 1)
  with _waiting.told('them'):
    assert threading.active_count() == threads
