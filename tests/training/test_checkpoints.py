import inspect
import os
import pathlib
import subprocess
import sys
import threading
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax_names import told

from haiku_state import errors, serialization, struct
from haiku_state.configurations import config
from haiku_state.core.frozen_dict import FrozenDict, freeze
from haiku_state.training import _checkpoint_commit, checkpoints
from haiku_state.training.train_state import TrainState


@pytest.fixture
def flax_checkpoints():
  flax = pytest.importorskip('flax')
  from flax.training import checkpoints as theirs

  with flax.config.temp_flip_flag('use_orbax_checkpointing', False):
    yield theirs


@pytest.fixture(autouse=True)
def _msgpack():
  with config.temp_flip_flag('use_orbax_checkpointing', False):
    yield


@pytest.fixture(params=['msgpack', 'orbax'])
def a_format(request):
  """Runs a test with the flag both ways."""
  use_orbax = request.param == 'orbax'
  if use_orbax:
    pytest.importorskip('orbax.checkpoint')
  with config.temp_flip_flag('use_orbax_checkpointing', use_orbax):
    yield request.param


def _state(number):
  return {'w': np.full(3, number)}


def _number(state):
  return int(state['w'][0])


# What is saved is restored


class _Pair(NamedTuple):
  left: np.ndarray
  right: int


@struct.dataclass
class _Stats:
  mean: np.ndarray
  name: str = struct.field(pytree_node=False)


_TARGETS = {
  'dict': {'a': np.arange(3), 'b': {'c': np.float32(2)}},
  'frozen': freeze({'a': {'b': np.arange(2)}}),
  'tuple': (np.arange(2), [np.ones((2, 2))]),
  'named tuple': _Pair(np.arange(2), 3),
  'dataclass': _Stats(np.arange(2), 'x'),
  'None inside': {'a': None, 'b': np.arange(1)},
  'optimizer': optax.adam(0.1).init({'w': jnp.ones(2)}),
  'bfloat16': {'a': jnp.ones(3, jnp.bfloat16)},
}


@pytest.mark.parametrize('name', _TARGETS)
def test_saved_is_restored(name, a_format, tmp_path):
  target = _TARGETS[name]
  path = checkpoints.save_checkpoint(tmp_path, target, 1)
  assert path == str(tmp_path / 'checkpoint_1')
  zeros = jax.tree.map(lambda x: x * 0, target)
  for place in (tmp_path, path):
    restored = checkpoints.restore_checkpoint(place, zeros)
    assert jax.tree.structure(restored) == jax.tree.structure(target)
    jax.tree.map(np.testing.assert_array_equal, restored, target)
  # Without a target the leaves come in the same order, in dicts.
  leaves = jax.tree.leaves(checkpoints.restore_checkpoint(path, None))
  assert len(leaves) == len(jax.tree.leaves(target))


@pytest.mark.parametrize('name', _TARGETS)
@pytest.mark.parametrize('from_flax', [False, True])
def test_flax_reads_ours_and_the_reverse(
  name, from_flax, a_format, tmp_path, flax_checkpoints
):
  import flax

  if name in ('frozen', 'dataclass'):
    pytest.skip('Flax knows only its own classes; see the next test.')
  target = _TARGETS[name]
  ours_theirs = (checkpoints, flax_checkpoints)
  writer, reader = reversed(ours_theirs) if from_flax else ours_theirs
  with flax.config.temp_flip_flag(
    'use_orbax_checkpointing', a_format == 'orbax'
  ):
    writer.save_checkpoint(tmp_path, target, 1)
    restored = reader.restore_checkpoint(tmp_path, target)
  jax.tree.map(np.testing.assert_array_equal, restored, target)
  assert reader.available_steps(tmp_path) == [1]


@pytest.mark.parametrize('from_flax', [False, True])
def test_train_state_from_and_to_flax(
  from_flax, a_format, tmp_path, flax_checkpoints
):
  import flax
  from flax.training import train_state

  def create(cls, freeze):
    params = freeze({'dense': {'kernel': jnp.arange(4.0)}})
    state = cls.create(apply_fn=None, params=params, tx=optax.adam(0.1))
    return state.apply_gradients(grads=params)

  ours = create(TrainState, freeze)
  theirs = create(train_state.TrainState, flax.core.freeze)
  with flax.config.temp_flip_flag(
    'use_orbax_checkpointing', a_format == 'orbax'
  ):
    if from_flax:
      flax_checkpoints.save_checkpoint(tmp_path, theirs, 1)
      restored = checkpoints.restore_checkpoint(tmp_path, ours)
      assert isinstance(restored.params, FrozenDict)
    else:
      checkpoints.save_checkpoint(tmp_path, ours, 1)
      restored = flax_checkpoints.restore_checkpoint(tmp_path, theirs)
  for x, y in zip(jax.tree.leaves(restored), jax.tree.leaves(ours)):
    np.testing.assert_array_equal(x, y)


def test_msgpack_files_equal_flax(tmp_path, flax_checkpoints):
  target = {'b': np.arange(3), 'a': (jnp.ones(2), 1, 'x')}
  ours = checkpoints.save_checkpoint(tmp_path / 'ours', target, 1)
  theirs = flax_checkpoints.save_checkpoint(tmp_path / 'theirs', target, 1)
  data = pathlib.Path(ours).read_bytes()
  assert data == pathlib.Path(theirs).read_bytes()


@pytest.mark.parametrize('target', [1, 2.5, np.arange(3), 'word'])
def test_single_leaf(target, tmp_path):
  path = checkpoints.save_checkpoint(tmp_path, target, 1)
  restored = checkpoints.restore_checkpoint(path, target)
  np.testing.assert_array_equal(restored, target)


def test_single_leaf_by_orbax(tmp_path):
  ocp = pytest.importorskip('orbax.checkpoint')
  with config.temp_flip_flag('use_orbax_checkpointing', True):
    with pytest.raises(ValueError, match='Orbax backend only accept pytree'):
      checkpoints.save_checkpoint(tmp_path, np.arange(3), 1)
  arrays = ocp.Checkpointer(ocp.ArrayCheckpointHandler())
  checkpoints.save_checkpoint(
    tmp_path, np.arange(3), 1, orbax_checkpointer=arrays
  )
  restored = checkpoints.restore_checkpoint(
    tmp_path, None, orbax_checkpointer=arrays
  )
  np.testing.assert_array_equal(restored, np.arange(3))


@pytest.mark.parametrize('parallel', [False, True])
@pytest.mark.parametrize('chunk', [1, 7, 10**9])
def test_reading_in_parallel(parallel, chunk, tmp_path, monkeypatch):
  monkeypatch.setattr(checkpoints, '_CHUNK', chunk)
  checkpoints.save_checkpoint(tmp_path, _state(5), 1)
  restored = checkpoints.restore_checkpoint(tmp_path, None, parallel=parallel)
  np.testing.assert_array_equal(restored['w'], _state(5)['w'])


# Which checkpoint


def test_nothing_there_returns_the_target(tmp_path):
  target = object()
  for place in (tmp_path / 'no such', tmp_path, tmp_path / 'checkpoint_1'):
    assert checkpoints.restore_checkpoint(place, target) is target
  assert checkpoints.latest_checkpoint(tmp_path / 'no such') is None
  assert checkpoints.available_steps(tmp_path / 'no such') == []


def test_missing_step_raises(tmp_path):
  checkpoints.save_checkpoint(tmp_path, _state(1), 1)
  path = tmp_path / 'checkpoint_2'
  with pytest.raises(ValueError) as error:
    checkpoints.restore_checkpoint(tmp_path, None, step=2)
  assert str(error.value) == f'Matching checkpoint not found: {path}'


@pytest.mark.parametrize(
  'steps', [[1, 2, 10], [0.5, 1.0, 2.25], [-1.0, 0.1, 1e5], [1e-3, 0.01, 0.1]]
)
def test_the_highest_step_is_the_latest(steps, tmp_path):
  for step in steps:
    checkpoints.save_checkpoint(tmp_path, _state(step * 1000), step, keep=9)
  latest = str(tmp_path / f'checkpoint_{steps[-1]}')
  assert checkpoints.latest_checkpoint(tmp_path) == latest
  step_type = type(steps[0])
  found = checkpoints.available_steps(tmp_path, step_type=step_type)
  assert found == steps
  for step in steps:
    state = checkpoints.restore_checkpoint(tmp_path, None, step=step)
    assert _number(state) == int(step * 1000)
  state = checkpoints.restore_checkpoint(str(tmp_path) + '//.', None)
  assert _number(state) == int(steps[-1] * 1000)


@pytest.mark.parametrize('prefix', ['', 'run', 'a_1_', 'below/ckpt_'])
def test_prefixes_are_apart(prefix, tmp_path):
  if prefix:
    checkpoints.save_checkpoint(tmp_path, _state(9), 9, prefix='other_')
  for step in (3, 20):
    checkpoints.save_checkpoint(
      tmp_path, _state(step), step, prefix=prefix, keep=2
    )
  assert checkpoints.available_steps(tmp_path, prefix) == [3, 20]
  state = checkpoints.restore_checkpoint(tmp_path, None, prefix=prefix)
  assert _number(state) == 20


_LEFTOVERS = [
  'checkpoint_tmp',
  'checkpoint_9_gda',
  'checkpoint_9.orbax-checkpoint-tmp',
  'checkpoint_0.orbax-checkpoint-tmp-123',
  '.checkpoint_9.discarded',
]


def test_leftovers_are_no_checkpoints(a_format, tmp_path):
  # Flax, too, ignores them when it restores; but not when it counts.
  for name in _LEFTOVERS:
    if name.endswith('tmp') and 'orbax' not in name:
      (tmp_path / name).write_bytes(b'half a file')
    else:
      (tmp_path / name).mkdir()
  assert checkpoints.latest_checkpoint(tmp_path) is None
  assert checkpoints.available_steps(tmp_path) == []
  for step in (1, 2):
    checkpoints.save_checkpoint(tmp_path, _state(step), step)
    assert checkpoints.available_steps(tmp_path) == [step]
  assert _number(checkpoints.restore_checkpoint(tmp_path, None)) == 2
  left = set(os.listdir(tmp_path)) & set(_LEFTOVERS)
  # Saves of later steps might be running; earlier ones are not.
  assert left - {'checkpoint_tmp'} == set(_LEFTOVERS[1:3])


_REMAINS = [
  'checkpoint_2_gda',
  'checkpoint_2.orbax-checkpoint-tmp-1',
  'checkpoint_3.orbax-checkpoint-tmp',
  'checkpoint_4.orbax-checkpoint-tmp',
  'other_2.orbax-checkpoint-tmp',
]


def test_remains_go_when_they_are_an_hour_old(tmp_path):
  def save_and_list(step, **kwargs):
    checkpoints.save_checkpoint(tmp_path, _state(0), step, keep=9, **kwargs)
    return set(os.listdir(tmp_path)) & set(_REMAINS)

  for name in _REMAINS:
    (tmp_path / name / 'part').mkdir(parents=True)
    (tmp_path / name / 'part' / 'file').write_bytes(b'half')
  # What is younger may belong to a save that is going on.
  _grow_old(tmp_path, 3590)
  assert save_and_list(3) == set(_REMAINS)
  _grow_old(tmp_path, 3610)
  # One file that is being written keeps all of it.
  (tmp_path / _REMAINS[0] / 'part' / 'file').write_bytes(b'more')
  assert save_and_list(3, overwrite=True) == {_REMAINS[0], *_REMAINS[3:]}
  _grow_old(tmp_path, 3610)
  assert save_and_list(5) == {_REMAINS[4]}


def _grow_old(folder, seconds):
  then = time.time() - seconds
  for path in folder.rglob('*'):
    os.utime(path, (then, then))


def test_what_was_set_aside_is_found_and_put_back(a_format, tmp_path):
  path = pathlib.Path(checkpoints.save_checkpoint(tmp_path, _state(1), 7))
  aside = path.with_name('.checkpoint_7.replaced')
  path.rename(aside)
  assert checkpoints.available_steps(tmp_path) == [7]
  assert checkpoints.latest_checkpoint(tmp_path) == str(aside)
  for kwargs in ({}, {'step': 7}):
    restored = checkpoints.restore_checkpoint(tmp_path, None, **kwargs)
    assert _number(restored) == 1
  assert _number(checkpoints.restore_checkpoint(path, None)) == 1
  checkpoints.save_checkpoint(tmp_path, _state(2), 8, keep=2)
  names = ['checkpoint_7', 'checkpoint_8']
  assert sorted(os.listdir(tmp_path)) == names


# What is deleted, and what is refused. A row: arguments of each save, by step.

_HISTORIES = {
  'keep 1': [(1, {}), (2, {}), (3, {})],
  'keep 2': [(s, {'keep': 2}) for s in (1, 2, 3, 4)],
  'keep all': [(s, {'keep': 0}) for s in (1, 2, 3)],
  'keep infinitely many': [(s, {'keep': float('inf')}) for s in (1, 2)],
  'every 2': [(s, {'keep_every_n_steps': 2}) for s in range(8)],
  'every 3 and 2': [
    (s, {'keep': 2, 'keep_every_n_steps': 3}) for s in range(9)
  ],
  'the same': [(1, {}), (1, {})],
  'an earlier one': [(3, {}), (2, {}), (4, {})],
  'overwrite the same': [(1, {}), (1, {'overwrite': True})],
  'overwrite an earlier one': [
    *((s, {'keep': 9}) for s in (1, 2, 3, 4)),
    (2, {'overwrite': True, 'keep': 9}),
    (3, {'keep': 9}),
  ],
  'overwrite between': [
    (1, {'keep': 9}),
    (3, {'keep': 9}),
    (2, {'overwrite': True, 'keep': 9}),
  ],
  'floats': [(0.1, {'keep': 2}), (1.5, {'keep': 2}), (0.9, {'keep': 2})],
  'equal numbers': [(1, {'keep': 3}), (1.0, {'keep': 3})],
}


def _outcomes(module, folder, history, names_of_errors):
  """Saves in turn, and lists after each save what is there or raised."""
  for step, kwargs in history:
    try:
      module.save_checkpoint(folder, _state(step), step, **kwargs)
      error = None
    except names_of_errors as e:
      text = str(e).partition(' (')[0]  # Without the link.
      error = type(e).__name__, text.replace(str(folder), '')
    yield error, sorted(os.listdir(folder))


@pytest.mark.parametrize('name', _HISTORIES)
def test_history_is_that_of_flax(name, a_format, tmp_path, flax_checkpoints):
  import flax

  history = _HISTORIES[name]
  raised = (ValueError, errors.FlaxError, flax.errors.FlaxError)
  ours = _outcomes(checkpoints, tmp_path / 'a', history, raised)
  theirs = _outcomes(flax_checkpoints, tmp_path / 'b', history, raised)
  with flax.config.temp_flip_flag(
    'use_orbax_checkpointing', a_format == 'orbax'
  ):
    assert list(ours) == list(theirs)


def test_errors_without_flax(tmp_path):
  checkpoints.save_checkpoint(tmp_path, _state(2), 2)
  for step in (1, 2):
    with pytest.raises(
      errors.InvalidCheckpointError,
      match=f'Trying to save an outdated checkpoint at step: "{step}" and path',
    ):
      checkpoints.save_checkpoint(tmp_path, _state(1), step)
  assert os.listdir(tmp_path) == ['checkpoint_2']


def test_a_damaged_file_is_named(tmp_path):
  path = checkpoints.save_checkpoint(tmp_path, _state(2), 2)
  data = pathlib.Path(path).read_bytes()
  pathlib.Path(path).write_bytes(data[:-1])
  with pytest.raises(ValueError) as error:
    checkpoints.restore_checkpoint(tmp_path, None)
  assert path in told(error.value)


def test_another_structure_is_named(tmp_path):
  path = checkpoints.save_checkpoint(tmp_path, _state(2), 2)
  with pytest.raises(ValueError, match='do not match') as error:
    checkpoints.restore_checkpoint(tmp_path, {'other': np.ones(3)})
  assert path in told(error.value)


# Asynchronous saves


def test_async_manager_saves_in_turn(tmp_path):
  manager = checkpoints.AsyncManager()
  for step in (1, 2, 3):
    checkpoints.save_checkpoint(
      tmp_path, _state(step), step, async_manager=manager
    )
  manager.wait_previous_save()
  assert manager.save_future.done()
  assert os.listdir(tmp_path) == ['checkpoint_3']


def test_async_save_takes_the_values_of_now(tmp_path):
  manager, go = checkpoints.AsyncManager(), threading.Event()
  manager.save_async(lambda: None)
  state = _state(1)
  manager.executor.submit(go.wait)
  checkpoints.save_checkpoint(tmp_path, state, 1, async_manager=manager)
  state['w'][:] = 2
  assert checkpoints.available_steps(tmp_path) == []
  go.set()
  manager.wait_previous_save()
  assert _number(checkpoints.restore_checkpoint(tmp_path, None)) == 1


def test_error_in_the_background_is_raised_once(tmp_path, monkeypatch):
  def fail(*args):
    raise OSError('no space')

  monkeypatch.setattr(os, 'fsync', fail)
  manager = checkpoints.AsyncManager()
  checkpoints.save_checkpoint(tmp_path, _state(1), 1, async_manager=manager)
  with pytest.raises(OSError, match='no space'):
    manager.wait_previous_save()
  manager.wait_previous_save()


def test_orbax_by_a_relative_path(tmp_path, monkeypatch):
  pytest.importorskip('orbax.checkpoint')
  monkeypatch.chdir(tmp_path)
  tree = {'w': jnp.arange(3.0)}
  with config.temp_flip_flag('use_orbax_checkpointing', True):
    path = checkpoints.save_checkpoint('saved', tree, 1)
  assert path == os.path.join('saved', 'checkpoint_1') and os.path.isdir(path)
  for target in (tree, None):
    restored = checkpoints.restore_checkpoint('saved', target)
    np.testing.assert_array_equal(restored['w'], tree['w'])


def test_orbax_in_the_background(tmp_path):
  ocp = pytest.importorskip('orbax.checkpoint')
  with ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:

    def save(step, number=None, **kwargs):
      checkpoints.save_checkpoint(
        tmp_path, _state(number or step), step,
        orbax_checkpointer=checkpointer, **kwargs,
      )  # fmt: skip

    for step in (1, 2, 3):
      save(step)
      # What is finished stays until there is more that is.
      assert checkpoints.available_steps(tmp_path)[:1] in ([], [step - 1])
    restored = checkpoints.restore_checkpoint(
      tmp_path, None, orbax_checkpointer=checkpointer
    )
    assert _number(restored) == 3
    assert checkpoints.available_steps(tmp_path) == [2, 3]
    # The replaced one stays until the new one is there.
    save(3, 30, overwrite=True, keep=9)
    assert 3 in checkpoints.available_steps(tmp_path)
    save(2, 20, overwrite=True, keep=9)  # Deletes 3, so it waits.
    assert checkpoints.available_steps(tmp_path) == [2]
    assert _number(checkpoints.restore_checkpoint(tmp_path, None)) == 20
    assert os.listdir(tmp_path) == ['checkpoint_2']


def test_orbax_failing_leaves_the_old_one(tmp_path, monkeypatch):
  ocp = pytest.importorskip('orbax.checkpoint')
  checkpointer = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
  checkpoints.save_checkpoint(
    tmp_path, _state(1), 1, orbax_checkpointer=checkpointer
  )

  def fail(*args, **kwargs):
    raise OSError('no space')

  monkeypatch.setattr(checkpointer, 'save', fail)
  with pytest.raises(OSError, match='no space'):
    checkpoints.save_checkpoint(
      tmp_path, _state(2), 1, overwrite=True, orbax_checkpointer=checkpointer
    )
  assert os.listdir(tmp_path) == ['checkpoint_1']
  assert _number(checkpoints.restore_checkpoint(tmp_path, None)) == 1


def test_orbax_restores_to_the_devices_of_the_target(tmp_path):
  pytest.importorskip('orbax.checkpoint')
  mesh = jax.make_mesh((jax.device_count(),), ('x',))
  spec = jax.sharding.PartitionSpec('x')
  sharding = jax.sharding.NamedSharding(mesh, spec)
  state = {'w': jax.device_put(np.arange(8.0), sharding)}
  with config.temp_flip_flag('use_orbax_checkpointing', True):
    checkpoints.save_checkpoint(tmp_path, state, 1)
  restored = checkpoints.restore_checkpoint(tmp_path, state)
  assert restored['w'].sharding.is_equivalent_to(sharding, 1)
  np.testing.assert_array_equal(restored['w'], state['w'])


@pytest.fixture
def of_other_devices(tmp_path):
  """Saves an array on devices of which one is not there any more."""
  pytest.importorskip('orbax.checkpoint')
  mesh = jax.make_mesh((jax.device_count(),), ('x',))
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('x'))
  state = {
    'w': jax.device_put(np.arange(8.0), sharding),
    'inner': {'b': jnp.ones(3), 'n': 3, 'np': np.arange(2)},
  }
  with config.temp_flip_flag('use_orbax_checkpointing', True):
    path = pathlib.Path(checkpoints.save_checkpoint(tmp_path, state, 1))
  notes = path / '_sharding'
  last, gone = (f'\\"id\\": {n}}}' for n in (jax.device_count() - 1, 99))
  if last not in notes.read_text():
    pytest.skip('Orbax of this version notes devices in another way')
  notes.write_text(notes.read_text().replace(last, gone))
  return path, state


def test_orbax_without_target_on_other_devices(of_other_devices, tmp_path):
  _, state = of_other_devices
  restored = checkpoints.restore_checkpoint(tmp_path, None)
  jax.tree.map(np.testing.assert_array_equal, restored, state)
  assert isinstance(restored['w'], np.ndarray)
  assert restored['inner']['n'] == 3
  # A target says where to put it, also if it has no values.
  target = jax.tree.map(np.asarray, state)
  here = jax.sharding.SingleDeviceSharding(jax.devices()[1])
  target['w'] = jax.ShapeDtypeStruct((8,), np.float32, sharding=here)
  restored = checkpoints.restore_checkpoint(tmp_path, target)
  assert restored['w'].sharding == here
  np.testing.assert_array_equal(restored['w'], state['w'])


def test_orbax_without_target_says_what_to_pass(of_other_devices, monkeypatch):
  path, _ = of_other_devices
  monkeypatch.delattr('orbax.checkpoint.Checkpointer.metadata')
  with pytest.raises(ValueError) as error:
    checkpoints.restore_checkpoint(path, None)
  assert 'Pass one: its arrays' in told(error.value)


def test_orbax_transforms(tmp_path):
  ocp = pytest.importorskip('orbax.checkpoint')
  with config.temp_flip_flag('use_orbax_checkpointing', True):
    checkpoints.save_checkpoint(tmp_path, {'old': np.arange(3)}, 1)
  restored = checkpoints.restore_checkpoint(
    tmp_path,
    {'new': np.zeros(3, int)},
    orbax_transforms={'new': ocp.Transform(original_key='old')},
  )
  np.testing.assert_array_equal(restored['new'], np.arange(3))


# The extras


@pytest.mark.parametrize(
  'module, flag, extra',
  [
    ('orbax.checkpoint', True, '.[checkpoint]'),
    ('msgpack', False, '.[serialization]'),
  ],
)
def test_missing_package_names_the_extra(
  module, flag, extra, tmp_path, monkeypatch
):
  monkeypatch.setitem(sys.modules, module, None)
  with config.temp_flip_flag('use_orbax_checkpointing', flag):
    with pytest.raises(ImportError) as error:
      checkpoints.save_checkpoint(tmp_path, _state(1), 1)
  assert f"pip install '{extra}'" in str(error.value)


def test_import_needs_no_extra():
  code = """
import sys
for name in ('orbax', 'msgpack', 'tensorstore', 'tensorflow', 'flax'):
  sys.modules[name] = None
from haiku_state import io, jax_utils
from haiku_state.training import (
  checkpoints, common_utils, early_stopping, lr_schedule, orbax_utils,
  prefetch_iterator, train_state)
"""
  subprocess.run([sys.executable, '-c', code], check=True)


# Names


_NUMBERED = st.text('-+.e0123ab_/', max_size=8)


@given(st.lists(_NUMBERED, max_size=6), st.booleans())
@settings(deadline=None)
def test_natural_sort_is_flax(names, signed):
  theirs = pytest.importorskip('flax.training.checkpoints')
  ours = checkpoints.natural_sort(names, signed)
  assert ours == theirs.natural_sort(names, signed)


@pytest.mark.parametrize(
  'names',
  [
    ['a_1', 'a_2', 'a_10'],
    ['a_-0.2', 'a_0.1', 'a_2.0'],
    ['x1e-3y', 'x0.01y', 'x.1y', 'x1e5y'],
    ['a1b2', 'a1b10', 'a2b1'],
  ],
)
def test_natural_sort(names):
  assert checkpoints.natural_sort(reversed(names)) == names


def test_natural_sort_unsigned():
  names = ['a-1', 'a-2', 'a-10']
  assert checkpoints.natural_sort(names[::-1], signed=False) == names
  assert checkpoints.natural_sort(names) == names[::-1]


@pytest.mark.parametrize(
  'path, expected',
  [
    ('./a/./b//c/', 'a/b/c'),
    ('gs://a//b/../c', 'gs://a/c'),
    ('/a', '/a'),
    ('', '.'),
    ('file:///a/b/', 'file:///a/b'),
  ],
)
def test_safe_normpath(path, expected):
  assert checkpoints.safe_normpath(path) == expected


def test_convert_pre_linen():
  old = {
    'Block_0': {'Conv_0': 1, 'Dense_1': 2, 'Conv_10': 3, 'Conv_2': 4},
    'Block_3': {'x': 5},
    'head': {'Dense_7': [6]},
    'Conv_1': {},
  }
  new = {
    'Block_0': {'Conv_0': 1, 'Dense_0': 2, 'Conv_2': 3, 'Conv_1': 4},
    'Block_1': {'x': 5},
    'head': {'Dense_0': [6]},
    'Conv_0': {},
  }
  assert checkpoints.convert_pre_linen(old) == new
  assert checkpoints.convert_pre_linen(new) == new
  frozen = checkpoints.convert_pre_linen(freeze(old))
  assert isinstance(frozen, FrozenDict) and frozen == freeze(new)
  assert checkpoints.convert_pre_linen(3) == 3


def test_constants_and_signatures_are_flax(flax_checkpoints):
  for name in checkpoints.__all__:
    ours, theirs = getattr(checkpoints, name), getattr(flax_checkpoints, name)
    if inspect.isfunction(theirs):
      ours, theirs = (
        [(p.name, p.kind, p.default) for p in ps.parameters.values()]
        for ps in map(inspect.signature, (ours, theirs))
      )
      # What is only here can only be said by its name.
      added = name in (
        'save_checkpoint',
        'save_checkpoint_multiprocess',
        'restore_checkpoint',
      )
      assert ours[: len(theirs)] == theirs, name
      assert len(ours) == len(theirs) + added
      for _, kind, _ in ours[len(theirs) :]:
        assert kind is inspect.Parameter.KEYWORD_ONLY
    elif hasattr(theirs, 'pattern'):
      assert (ours.pattern, ours.flags) == (theirs.pattern, theirs.flags)
    elif not inspect.isclass(theirs):
      assert ours == theirs, name


def test_the_suffix_is_orbax():
  ocp = pytest.importorskip('orbax.checkpoint')
  from haiku_state.training import _checkpoint_paths

  assert _checkpoint_paths.ORBAX_TMP == ocp.utils.TMP_DIR_SUFFIX


# --- Nothing is lost ---------------------------------------------------------


@pytest.fixture
def msgpack_files():
  with config.temp_flip_flag('use_orbax_checkpointing', False):
    yield


def test_a_fault_leaves_no_file_behind(tmp_path, monkeypatch, msgpack_files):
  """As when the disk is full."""

  def fail(descriptor):
    raise OSError('No space left on device')

  with monkeypatch.context() as patched:
    patched.setattr(_checkpoint_commit.os, 'fsync', fail)
    with pytest.raises(OSError, match='No space'):
      checkpoints.save_checkpoint(tmp_path, _state(1), 1)
  assert os.listdir(tmp_path) == []
  checkpoints.save_checkpoint(tmp_path, _state(1), 1)
  assert os.listdir(tmp_path) == ['checkpoint_1']


def test_the_second_writer_gets_an_error(tmp_path, msgpack_files):
  pytest.importorskip('fcntl')
  held = _checkpoint_commit.hold(str(tmp_path / 'checkpoint_tmp'))
  for step in (1, 2):
    with pytest.raises(errors.ConcurrentSaveError, match='checkpoint_tmp'):
      checkpoints.save_checkpoint(tmp_path, _state(1), step)
  checkpoints.save_checkpoint(tmp_path, _state(1), 1, prefix='other_')
  held.let_go()
  held.let_go()
  assert os.listdir(tmp_path) == ['other_1']
  checkpoints.save_checkpoint(tmp_path, _state(1), 1)


def test_a_save_that_is_refused_lets_others_save(tmp_path, msgpack_files):
  checkpoints.save_checkpoint(tmp_path, _state(2), 2)
  for target, step in ((_state(1), 1), ({'a': object()}, 3)):
    with pytest.raises((errors.InvalidCheckpointError, TypeError)):
      checkpoints.save_checkpoint(tmp_path, target, step)
  assert os.listdir(tmp_path) == ['checkpoint_2']
  checkpoints.save_checkpoint(tmp_path, _state(3), 3)


def test_of_many_writers_one_wins_and_readers_see_it_whole(
  tmp_path, msgpack_files
):
  pytest.importorskip('fcntl')
  outcomes, seen, stop = [], [], threading.Event()

  def write(number):
    try:
      checkpoints.save_checkpoint(tmp_path, _state(number), 1)
      outcomes.append(number)
    except (errors.ConcurrentSaveError, errors.InvalidCheckpointError):
      outcomes.append(None)

  def read():
    while not stop.is_set():
      state = checkpoints.restore_checkpoint(tmp_path, None)
      if state is not None:
        seen.append(_number(state))

  reader = threading.Thread(target=read)
  reader.start()
  writers = [threading.Thread(target=write, args=(n,)) for n in range(8)]
  for thread in writers:
    thread.start()
  for thread in writers:
    thread.join()
  stop.set()
  reader.join()
  (winner,) = [x for x in outcomes if x is not None]
  assert set(seen) <= {winner} and len(outcomes) == 8
  assert os.listdir(tmp_path) == ['checkpoint_1']


def test_a_checksum_is_checked(tmp_path, msgpack_files):
  path = checkpoints.save_checkpoint(tmp_path, _state(1), 1, checksum=True)
  assert _number(checkpoints.restore_checkpoint(tmp_path, None)) == 1
  content = bytearray(pathlib.Path(path).read_bytes())
  content[-1] ^= 1
  pathlib.Path(path).write_bytes(content)
  for place in (tmp_path, path):
    with pytest.raises(ValueError, match='is not what was saved: its SHA-256'):
      checkpoints.restore_checkpoint(place, None)
  # What comes after needs none, and leaves none behind.
  checkpoints.save_checkpoint(tmp_path, _state(1), 1, overwrite=True)
  assert os.listdir(tmp_path) == ['checkpoint_1']
  checkpoints.save_checkpoint(tmp_path, _state(2), 2, checksum=True)
  checkpoints.save_checkpoint(tmp_path, _state(3), 3)
  assert os.listdir(tmp_path) == ['checkpoint_3']


def test_a_checksum_while_a_step_is_replaced(tmp_path, msgpack_files):
  """Between the note and the file, the old file is right, too."""
  path = checkpoints.save_checkpoint(tmp_path, _state(1), 1, checksum=True)
  _checkpoint_commit.note_checksum(path, serialization.to_bytes(_state(2)))
  assert _number(checkpoints.restore_checkpoint(tmp_path, None)) == 1
  checkpoints.save_checkpoint(
    tmp_path, _state(3), 1, overwrite=True, checksum=True
  )
  assert _number(checkpoints.restore_checkpoint(tmp_path, None)) == 3


MISFITS = {
  'missing': (
    {'w': np.ones(2)},
    {'w': np.ones(2), 'b': np.ones(1)},
    'b.* missing',
  ),
  'more': (
    {'w': np.ones(2), 'b': np.ones(1)},
    {'w': np.ones(2)},
    'b.* unexpected',
  ),
  'shape': (
    {'w': np.ones(2)},
    {'w': np.ones(3)},
    r'w.* float\S+\[2\], expected',
  ),
  'dtype': (
    {'w': np.ones(2, np.float32)},
    {'w': np.ones(2, np.int32)},
    'w.* float32.*int32',
  ),
}


@pytest.mark.parametrize('name', MISFITS)
def test_strict_restoring_refuses_what_does_not_fit(name, a_format, tmp_path):
  saved, target, words = MISFITS[name]
  checkpoints.save_checkpoint(tmp_path, saved, 1)
  with pytest.raises(ValueError, match=words):
    checkpoints.restore_checkpoint(tmp_path, target, strict=True)
  checkpoints.restore_checkpoint(tmp_path, saved, strict=True)


def test_strict_restoring_needs_a_checkpoint(tmp_path):
  for place in (tmp_path / 'no such', tmp_path, tmp_path / 'checkpoint_1'):
    for target in (None, _state(1)):
      with pytest.raises(ValueError, match='There is no checkpoint at'):
        checkpoints.restore_checkpoint(place, target, strict=True)


ODD_ARRAYS = {
  **{
    name: np.ones((2, 3), name)
    for name in 'bfloat16 float8_e4m3fn float4_e2m1fn int4 uint4 complex64'.split()
  },
  'text': np.array(['a']),
  'none': np.ones((0, 3)),
  '0-d': np.float16(2),
  'transposed': np.ones((2, 3)).T,
}


@pytest.mark.parametrize('name', ODD_ARRAYS)
def test_an_array_comes_back_or_nothing_is_saved(name, a_format, tmp_path):
  array = np.asarray(ODD_ARRAYS[name])
  try:
    checkpoints.save_checkpoint(tmp_path, {'a': array}, 1)
  except ValueError as e:
    assert a_format == 'orbax' and 'msgpack file holds' in told(e)
    assert checkpoints.available_steps(tmp_path) == []
    return
  for target in (None, {'a': array}):
    restored = checkpoints.restore_checkpoint(tmp_path, target)['a']
    restored = np.asarray(restored)
    assert restored.dtype == array.dtype and restored.shape == array.shape
    assert restored.tobytes() == array.tobytes()


@pytest.mark.parametrize('target', [None, {'a': jnp.ones(2), 'b': None}])
def test_orbax_says_nothing_of_calls_that_are_not_the_users(
  target, tmp_path, caplog
):
  pytest.importorskip('orbax.checkpoint')
  import logging
  import warnings

  with (
    config.temp_flip_flag('use_orbax_checkpointing', True),
    warnings.catch_warnings(record=True) as caught,
    caplog.at_level(logging.WARNING),
  ):
    warnings.simplefilter('always')
    checkpoints.save_checkpoint(tmp_path, {'a': jnp.ones(2), 'b': None}, 1)
    checkpoints.restore_checkpoint(tmp_path, target)
  assert not [x.getMessage() for x in caplog.records]
  assert not [str(x.message) for x in caught if 'orbax' in x.filename]


def test_orbax_warns_of_transformations_that_are_the_users(tmp_path, caplog):
  ocp = pytest.importorskip('orbax.checkpoint')
  transforms = {'b': ocp.Transform(original_key='a')}
  with config.temp_flip_flag('use_orbax_checkpointing', True):
    checkpoints.save_checkpoint(tmp_path, {'a': jnp.ones(2)}, 1)
    restored = checkpoints.restore_checkpoint(
      tmp_path, {'b': jnp.zeros(2)}, orbax_transforms=transforms
    )
  np.testing.assert_array_equal(restored['b'], np.ones(2))
  told = [x.getMessage() for x in caplog.records]
  assert [x[:31] for x in told] == ['The transformations API will ev']
