"""Each file-system step of a save is, once, the last thing the process does.

Python raises an audit event before each change to the file system, also those
made within `shutil.rmtree` and by Orbax's Python code. The n-th event raises,
and from then on every change does, as from a process that is dead.
"""

import os
import shutil
import signal
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from left_out import all_but

from haiku_state.configurations import config
from haiku_state.training import _multiprocess_arrays, checkpoints

# Threads are killed, too.
pytestmark = pytest.mark.filterwarnings(
  'ignore::pytest.PytestUnhandledThreadExceptionWarning'
)

_CHANGES = {'os.rename', 'os.remove', 'os.rmdir', 'os.mkdir', 'os.link'}


class _Killed(BaseException):
  pass


class _Bomb:
  """Counts changes to the file system; change number `at` kills."""

  def __init__(self):
    self.armed, self.at, self.count = False, 0, 0

  def __call__(self, event, args):
    if not self.armed or not self.is_change(event, args):
      return
    self.count += 1
    if self.count >= self.at:
      raise _Killed(event)

  @staticmethod
  def is_change(event, args):
    if event == 'open':
      return bool((args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    return event in _CHANGES

  def kill_at(self, number, save, *args, **kwargs):
    """Runs `save`, and says whether it was killed."""
    self.armed, self.at, self.count = True, number, 0
    try:
      save(*args, **kwargs)
    except _Killed:
      pass
    finally:
      self.armed = False
    return self.count >= number


@pytest.fixture(scope='module')
def bomb():
  hook = _Bomb()
  sys.addaudithook(hook)  # For good; it is idle unless armed.
  return hook


@pytest.fixture(autouse=True)
def _keep_flag():
  with config.temp_flip_flag('use_orbax_checkpointing', False):
    yield


def _state(generation):
  return {'a': {'w': np.full(3, generation)}, 'b': np.full((), generation)}


def _generation(state):
  """Checks that a state is whole and says which one it is."""
  (number,) = {int(x) for x in np.ravel(jax.tree.leaves(state)[0])} | {
    int(state['b'])
  }
  return number


def _save(folder, generation, step, use_orbax, **kwargs):
  with config.temp_flip_flag('use_orbax_checkpointing', use_orbax):
    checkpoints.save_checkpoint(folder, _state(generation), step, **kwargs)


OLD, NEW, LAST = 1, 2, 3

# name: (old saves, the save that is killed, the steps after it, how many
# places there are to be killed at, at least).
# A save is (step, whether by Orbax, arguments).
_SCENARIOS = {
  'the first': ([], (1, False, {}), [1], 3),
  'the next': ([(1, False, {})], (2, False, {}), [2], 3),
  'the next of several': (
    [(1, False, {}), (2, False, {'keep': 2})],
    (3, False, {'keep': 2}),
    [2, 3],
    3,
  ),
  'the same': ([(1, False, {})], (1, False, {'overwrite': True}), [1], 2),
  'one before others': (
    [(1, False, {}), (2, False, {'keep': 9}), (3, False, {'keep': 9})],
    (1, False, {'overwrite': True}),
    [1],
    4,
  ),
  'a file over a directory': (
    [(1, True, {})],
    (1, False, {'overwrite': True}),
    [1],
    8,
  ),
  'orbax, the next': ([(1, True, {})], (2, True, {}), [2], 8),
  'orbax, the same': ([(1, True, {})], (1, True, {'overwrite': True}), [1], 8),
  'orbax, one before another': (
    [(1, True, {}), (2, True, {'keep': 9})],
    (1, True, {'overwrite': True}),
    [1],
    12,
  ),
  'a directory over a file': (
    [(1, False, {})],
    (1, True, {'overwrite': True}),
    [1],
    4,
  ),
}

# Orbax takes long.
_SHORT = [name for name in _SCENARIOS if 'orbax' not in name] + [
  'orbax, the next'
]


@pytest.mark.parametrize('name', all_but(_SHORT, _SCENARIOS))
def test_old_or_new_is_there_whole(name, tmp_path, bomb):
  old_saves, (step, use_orbax, kwargs), steps_after, at_least = _SCENARIOS[name]
  if use_orbax or any(orbax for _, orbax, _ in old_saves):
    pytest.importorskip('orbax.checkpoint')
  before = tmp_path / 'before'
  before.mkdir()
  for old_step, old_orbax, old_kwargs in old_saves:
    _save(before, OLD, old_step, old_orbax, **old_kwargs)
  old_steps = checkpoints.available_steps(before)

  number, is_killed = 0, True
  while is_killed:
    number += 1
    folder = str(tmp_path / str(number))
    shutil.copytree(before, folder)

    is_killed = bomb.kill_at(
      number, _save, folder, NEW, step, use_orbax, **kwargs
    )

    steps = checkpoints.available_steps(folder)
    found = {
      there: _generation(
        checkpoints.restore_checkpoint(folder, None, step=there)
      )
      for there in steps
    }
    if found.get(step) == NEW:
      assert set(found) - {step} <= set(old_steps)
    else:  # Nothing is deleted before the new one is there.
      assert found == dict.fromkeys(old_steps, OLD)
    state = checkpoints.restore_checkpoint(folder, _state(0))
    assert _generation(state) in ({OLD, NEW} if old_steps else {0, NEW})
    if old_steps:
      assert os.path.exists(checkpoints.latest_checkpoint(folder))
    if not is_killed:
      assert steps == steps_after and _generation(state) == NEW

    # The next save clears up.
    last_step = max([*old_steps, step]) + 1
    _save(folder, LAST, last_step, use_orbax=False)
    assert os.listdir(folder) == [f'checkpoint_{last_step}']
    assert _generation(checkpoints.restore_checkpoint(folder, None)) == LAST
  assert number > at_least


@pytest.mark.parametrize('had_arrays', [False, True])
@pytest.mark.parametrize('same_step', [False, True])
def test_multiprocess_arrays_are_those_of_their_checkpoint(
  had_arrays, same_step, tmp_path, bomb, monkeypatch
):
  pytest.importorskip('tensorstore')
  from jax.experimental.array_serialization import serialization

  monkeypatch.setattr(
    _multiprocess_arrays,
    'is_multiprocess_array',
    lambda x: isinstance(x, jax.Array),
  )
  manager = serialization.GlobalAsyncCheckpointManager()

  def state(generation, as_array=True):
    w = np.full(3, generation)
    w = jnp.asarray(w) if as_array else w
    return {'a': {'w': w}, 'b': np.full((), generation)}

  def save(generation, step, as_array=True):
    # The arrays are committed in a thread of the manager's, whose exception
    # the wait raises.
    checkpoints.save_checkpoint_multiprocess(
      folder,
      state(generation, as_array),
      step,
      overwrite=True,
      gda_manager=manager,
    )
    manager.wait_until_finished()

  number, is_killed = 0, True
  while is_killed:
    number += 1
    folder = str(tmp_path / str(number))
    save(OLD, 1, had_arrays)
    step = 1 if same_step else 2
    is_killed = bomb.kill_at(number, save, NEW, step)
    if is_killed:
      manager = serialization.GlobalAsyncCheckpointManager()
    restored = checkpoints.restore_checkpoint(
      folder, state(0), gda_manager=manager
    )
    assert _generation(restored) in ({OLD, NEW} if is_killed else {NEW})
    save(LAST, 3)
    assert sorted(os.listdir(folder)) == ['checkpoint_3', 'checkpoint_3_gda']
  assert number > 6


def test_the_content_is_on_the_disk_before_it_has_the_name(
  tmp_path, monkeypatch
):
  events = []
  sync, rename = os.fsync, os.replace
  monkeypatch.setattr(
    os, 'fsync', lambda file: (events.append('fsync'), sync(file))
  )
  monkeypatch.setattr(
    os, 'replace', lambda *args: (events.append('rename'), rename(*args))
  )
  _save(tmp_path, OLD, 1, use_orbax=False)
  # The second is for the directory, which holds the name.
  expected = ['fsync', 'rename'] + ['fsync'] * (os.name == 'posix')
  assert events == expected


_WRITER = """
  import sys, warnings
  import numpy as np
  from haiku_state.configurations import config
  from haiku_state.training import checkpoints
  warnings.simplefilter('ignore')
  config.update('flax_use_orbax_checkpointing', False)
  for i in range(10**6):
    state = {'w': np.full(200_000, i), 'b': np.full((), i)}
    checkpoints.save_checkpoint(sys.argv[1], state, 7, overwrite=True)
    if i == 3:
      print('writing', flush=True)
"""


def test_sigkill_while_writing(tmp_path):
  generation = -1
  for milliseconds in (31, 57):
    writer = subprocess.Popen(
      [sys.executable, '-c', textwrap.dedent(_WRITER), str(tmp_path)],
      stdout=subprocess.PIPE,
      text=True,
    )
    try:
      assert writer.stdout.readline() == 'writing\n'
      with pytest.raises(subprocess.TimeoutExpired):
        writer.wait(milliseconds / 1000)
    finally:
      writer.send_signal(signal.SIGKILL)
      writer.wait()
    state = checkpoints.restore_checkpoint(tmp_path, None)
    np.testing.assert_array_equal(state['w'], state['b'])
    assert checkpoints.available_steps(tmp_path) == [7]
    generation = int(state['b'])
    assert generation >= 3
