import os
import socket
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haiku_state import errors
from haiku_state.configurations import config
from haiku_state.training import _multiprocess_arrays, checkpoints

pytest.importorskip('tensorstore')


@pytest.fixture(autouse=True)
def _msgpack():
  with config.temp_flip_flag('use_orbax_checkpointing', False):
    yield


@pytest.fixture
def manager():
  from jax.experimental.array_serialization import serialization

  return serialization.GlobalAsyncCheckpointManager()


def _is_array(x):
  return isinstance(x, jax.Array)


@pytest.fixture(autouse=True)
def _all_arrays_count(monkeypatch):
  """In one process none spans several, so here all JAX arrays do."""
  monkeypatch.setattr(_multiprocess_arrays, 'is_multiprocess_array', _is_array)


def _state(number):
  return {
    'a': {'w': jnp.full(4, number), 'empty': {}},
    'b': np.full((), number),
    'c': [jnp.full((2, 1), number)],
  }


_TARGETS = {'tree': _state(3), 'leaf': jnp.arange(3.0)}


def _zeros(target):
  return jax.tree.map(lambda x: x * 0, target)


def _assert_equal(x, y):
  assert jax.tree.structure(x) == jax.tree.structure(y)
  jax.tree.map(np.testing.assert_array_equal, x, y)


@pytest.mark.parametrize('target', _TARGETS.values(), ids=_TARGETS)
@pytest.mark.parametrize('with_async_manager', [False, True])
def test_saved_is_restored(target, with_async_manager, tmp_path, manager):
  for step in (1, 2):
    checkpoints.save_checkpoint_multiprocess(
      tmp_path,
      target,
      step,
      gda_manager=manager,
      async_manager=checkpoints.AsyncManager() if with_async_manager else None,
    )
  # Restoring waits for the save.
  manager.wait_until_finished()
  restored = checkpoints.restore_checkpoint(
    tmp_path, _zeros(target), gda_manager=manager
  )
  _assert_equal(restored, target)
  assert sorted(os.listdir(tmp_path)) == ['checkpoint_2', 'checkpoint_2_gda']
  assert checkpoints.available_steps(tmp_path) == [2]


@pytest.mark.parametrize(
  'target, from_flax',
  [
    (_TARGETS['tree'], False),
    (_TARGETS['tree'], True),
    # Flax cannot read a single array: it asks for its truth.
    (_TARGETS['leaf'], True),
  ],
)
def test_flax_reads_ours_and_the_reverse(
  target, from_flax, tmp_path, manager, monkeypatch
):
  flax = pytest.importorskip('flax')
  from flax.training import checkpoints as theirs

  monkeypatch.setattr(theirs, '_is_multiprocess_array', _is_array)
  writer, reader = (theirs, checkpoints) if from_flax else (checkpoints, theirs)
  with flax.config.temp_flip_flag('use_orbax_checkpointing', False):
    writer.save_checkpoint_multiprocess(
      tmp_path, target, 1, gda_manager=manager
    )
    manager.wait_until_finished()
    restored = reader.restore_checkpoint(
      tmp_path, _zeros(target), gda_manager=manager
    )
  _assert_equal(restored, target)


def test_without_arrays_no_manager_is_needed(tmp_path):
  state = {'a': np.arange(3)}
  path = checkpoints.save_checkpoint_multiprocess(tmp_path, state, 1)
  assert os.listdir(tmp_path) == ['checkpoint_1']
  _assert_equal(checkpoints.restore_checkpoint(path, state), state)


@pytest.fixture
def saved(tmp_path, manager):
  path = checkpoints.save_checkpoint_multiprocess(
    tmp_path, _state(3), 1, gda_manager=manager
  )
  manager.wait_until_finished()
  return path


def test_manager_is_required(saved, tmp_path):
  for call in (
    lambda: checkpoints.save_checkpoint_multiprocess(tmp_path, _state(4), 2),
    lambda: checkpoints.restore_checkpoint(saved, _state(0)),
  ):
    with pytest.raises(errors.MPACheckpointingRequiredError):
      call()
  assert checkpoints.available_steps(tmp_path) == [1]


@pytest.mark.parametrize(
  'target', [None, {}, {'a': {'w': 1, 'empty': {}}, 'b': 2, 'c': [3]}]
)
def test_target_is_required(target, saved, manager):
  with pytest.raises(errors.MPARestoreTargetRequiredError) as error:
    checkpoints.restore_checkpoint(saved, target, gda_manager=manager)
  # Of a target that lacks an array, the error says which.
  where = "This error fired when trying to restore array at ('a', 'w')."
  assert (where in str(error.value)) == bool(target)


def test_partial_restoration(saved, manager):
  target = {'a': {'w': 1, 'empty': {}}, 'b': 2, 'c': [jnp.zeros((2, 1))]}
  restored = checkpoints.restore_checkpoint(
    saved, target, gda_manager=manager, allow_partial_mpa_restoration=True
  )
  assert restored['a']['w'] == checkpoints.MP_ARRAY_PH + 'a/w'
  np.testing.assert_array_equal(restored['c'][0], np.full((2, 1), 3))
  whole = checkpoints.restore_checkpoint(
    saved, None, gda_manager=manager, allow_partial_mpa_restoration=True
  )
  assert whole['c']['0'] == checkpoints.MP_ARRAY_PH + 'c/0'


def test_an_outdated_save_is_refused(saved, tmp_path, manager):
  with pytest.raises(errors.InvalidCheckpointError):
    checkpoints.save_checkpoint_multiprocess(
      tmp_path, _state(4), 1, gda_manager=manager
    )
  assert sorted(os.listdir(tmp_path)) == ['checkpoint_1', 'checkpoint_1_gda']


def test_arrays_of_an_overwritten_checkpoint_go(saved, tmp_path):
  checkpoints.save_checkpoint(tmp_path, {'a': np.ones(1)}, 1, overwrite=True)
  assert os.listdir(tmp_path) == ['checkpoint_1']


def test_an_object_store_needs_the_mark_of_success(saved, manager, monkeypatch):
  monkeypatch.setattr(
    _multiprocess_arrays.paths, 'is_local', lambda path: False
  )
  with pytest.raises(errors.MPARestoreDataCorruptedError):
    checkpoints.restore_checkpoint(saved, _state(0), gda_manager=manager)
  checkpoints.save_checkpoint_multiprocess(
    os.path.dirname(saved), _state(5), 2, gda_manager=manager
  )
  manager.wait_until_finished()
  folder = saved.replace('checkpoint_1', 'checkpoint_2_gda')
  assert checkpoints.COMMIT_SUCCESS_FILE in os.listdir(folder)
  restored = checkpoints.restore_checkpoint(
    os.path.dirname(saved), _state(0), gda_manager=manager
  )
  _assert_equal(restored, _state(5))


_PROCESS = """
  import os, sys, warnings
  warnings.simplefilter('ignore')
  os.environ['XLA_FLAGS'] = ''
  import jax, numpy as np
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  folder, address, rank = sys.argv[1:]
  jax.distributed.initialize(address, 2, int(rank))
  from jax.experimental import multihost_utils
  from jax.experimental.array_serialization import serialization
  from haiku_state.configurations import config
  from haiku_state.training import checkpoints

  mesh = jax.make_mesh((2,), ('x',))
  spec = jax.sharding.PartitionSpec('x')
  sharding = jax.sharding.NamedSharding(mesh, spec)

  def state(n):
    w = np.arange(4) + n
    w = jax.make_array_from_callback((4,), sharding, lambda i: w[i])
    return {'w': w, 'b': np.full((), n)}

  def values(state):
    return [x.data.tolist() for x in state['w'].addressable_shards]

  saves = [(1, {}), (2, {'keep': 2}), (1, {'overwrite': True})]
  manager = serialization.GlobalAsyncCheckpointManager()
  for use_orbax in (False, True):
    config.update('flax_use_orbax_checkpointing', use_orbax)
    path = os.path.join(folder, str(use_orbax))
    for n, (step, kwargs) in enumerate(saves):
      checkpoints.save_checkpoint_multiprocess(
        path, state(n), step, gda_manager=manager, **kwargs)
      manager.wait_until_finished()
      multihost_utils.sync_global_devices('saved')
      restored = checkpoints.restore_checkpoint(
        path, state(9), gda_manager=manager)
      assert values(restored) == values(state(n)), (rank, n, restored)
      assert int(restored['b']) == n
    assert checkpoints.available_steps(path) == [1]
  print('done')
"""


def test_two_processes(tmp_path):
  pytest.importorskip('orbax.checkpoint')
  with socket.create_server(('localhost', 0)) as server:
    port = server.getsockname()[1]
  processes = [
    subprocess.Popen(
      [sys.executable, '-c', textwrap.dedent(_PROCESS), tmp_path]
      + [f'localhost:{port}', str(rank)],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for rank in (0, 1)
  ]
  try:
    results = [process.communicate(timeout=100) for process in processes]
  finally:
    for process in processes:
      process.kill()
  for stdout, stderr in results:
    assert stdout.endswith('done\n'), stderr[-3000:]
