"""Checkpoints: files in a directory, named by step, of which the last count.

There are two formats. With the flag `flax_use_orbax_checkpointing` (the
default), or with an `orbax_checkpointer`, a checkpoint is a directory that
Orbax writes: `pip install '.[checkpoint]'`. Without it, a checkpoint
is one msgpack file: `pip install '.[serialization]'`. Either is what
Flax writes, and `restore_checkpoint` reads both, whatever the flag says.

A kill at any moment leaves each step as it was or as it was to be: see
`_checkpoint_commit`. In three places that takes other steps than Flax takes:
an overwritten directory is set aside and not deleted first; unfinished files
do not count as checkpoints to `keep`; and with an asynchronous Orbax
checkpointer, what is deleted is judged by the saves that are finished, so that
one checkpoint more remains until the next save.
"""

import functools
import os
import re
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from absl import logging

from haiku_state import _versions, errors, io, serialization
from haiku_state.configurations import config
from haiku_state.core.frozen_dict import FrozenDict, freeze
from haiku_state.training import (
  _checkpoint_commit,
  _checkpoint_paths,
  _multiprocess_arrays,
  _orbax,
  _waiting,
  orbax_utils,
)
from haiku_state.training._checkpoint_paths import (
  MP_ARRAY_POSTFIX,
  ORBAX_CKPT_FILENAME,
  ORBAX_MANIFEST_OCDBT,
  ORBAX_METADATA_FILENAME,
  SCHEME_RE,
  SIGNED_FLOAT_RE,
  UNSIGNED_FLOAT_RE,
  natural_sort,
  safe_normpath,
)

# Under Flax's name, by which programs import it.
from haiku_state.training._checkpoint_paths import (
  checkpoint_path as _checkpoint_path,
)
from haiku_state.training._multiprocess_arrays import (
  COMMIT_SUCCESS_FILE,
  MP_ARRAY_PH,
)
from haiku_state.training._orbax import import_orbax

if TYPE_CHECKING:
  import orbax.checkpoint as ocp
  from jax.experimental.array_serialization.serialization import (
    GlobalAsyncCheckpointManager,
  )

__all__ = [
  'COMMIT_SUCCESS_FILE',
  'MODULE_NUM_RE',
  'MP_ARRAY_PH',
  'MP_ARRAY_POSTFIX',
  'ORBAX_CKPT_FILENAME',
  'ORBAX_MANIFEST_OCDBT',
  'ORBAX_METADATA_FILENAME',
  'SCHEME_RE',
  'SIGNED_FLOAT_RE',
  'UNSIGNED_FLOAT_RE',
  'AsyncManager',
  'MultiprocessArrayType',
  'PyTree',
  'available_steps',
  'convert_pre_linen',
  'latest_checkpoint',
  'natural_sort',
  'restore_checkpoint',
  'safe_normpath',
  'save_checkpoint',
  'save_checkpoint_multiprocess',
]

PyTree = Any
MultiprocessArrayType = Any

# A module's name as Flax numbers it.
MODULE_NUM_RE = re.compile(r'(.*)_\d+$')

# The names under which programs find these times in jax.monitoring.
_READ_EVENT = '/jax/checkpoint/read/durations_sec'
_WRITE_EVENT = '/jax/checkpoint/write/durations_sec'
_SINCE_LAST_EVENT = '/jax/checkpoint/write/duration_since_last_checkpoint_secs'
_ASYNC_EVENT = '/jax/checkpoint/write/async/total_duration_secs'

_CHUNK = 128 << 20  # Bytes that one thread reads at a time.
_READERS = 32  # Threads.


class AsyncManager:
  """Writes checkpoints in the background, one after the other.

  Pass one instance to all calls of `save_checkpoint`. An exception in the
  background is raised by the next wait, so none is lost.

  Args:
    max_workers: threads to write with.

  Example:
    >>> from haiku_state.training import checkpoints
    >>> manager, written = checkpoints.AsyncManager(), []
    >>> manager.save_async(lambda: written.append(1))
    >>> manager.wait_previous_save()
    >>> written
    [1]
  """

  def __init__(self, max_workers: int = 1):
    self.executor = ThreadPoolExecutor(max_workers=max_workers)
    self.save_future = None

  def wait_previous_save(self):
    """Returns when the save before is finished.

    Raises:
      Exception: whatever that save raised; once.
    """
    future = self.save_future
    if future is None:
      return
    if not future.done():
      logging.warning(
        'The previous async save_checkpoint has not finished yet. Waiting '
        'for it to complete before the next save.'
      )
    error = future.exception()
    if error is not None:
      self.save_future = None
      raise error

  def save_async(self, task: Callable[[], Any]):
    """Runs `task` in the background, once the save before is finished."""
    self.wait_previous_save()
    self.save_future = self.executor.submit(task)


class _Save(NamedTuple):
  """One save: where it goes, and what it does to the other checkpoints."""

  step: int | float
  path: str
  tmp_path: str
  base_path: str
  keep: int
  overwrite: bool
  keep_every_n_steps: int | None
  start_time: float


def save_checkpoint(
  ckpt_dir: str | os.PathLike,
  target: PyTree,
  step: int | float,
  prefix: str = 'checkpoint_',
  keep: int = 1,
  overwrite: bool = False,
  keep_every_n_steps: int | None = None,
  async_manager: AsyncManager | None = None,
  orbax_checkpointer: 'ocp.Checkpointer | None' = None,
  *,
  checksum: bool = False,
) -> str:
  """Saves a checkpoint, from one process.

  Args:
    ckpt_dir: the directory; it is made if it is not there.
    target: the object to save: a pytree such as a `TrainState`. For a msgpack
      file it may be anything that `serialization.to_bytes` takes.
    step: a number that orders the checkpoints: a training step, or a metric of
      which more is better.
    prefix: the beginning of the names of the checkpoints.
    keep: how many checkpoints remain, this one included.
    overwrite: whether checkpoints of this and later steps may be there; this
      one is replaced, later ones are deleted.
    keep_every_n_steps: if given, older checkpoints that are at least this many
      steps apart remain, too.
    async_manager: if given, a msgpack file is written in the background.
    orbax_checkpointer: if given, it writes the checkpoint.
    checksum: whether to note the SHA-256 of a msgpack file beside it;
      `restore_checkpoint` then checks it.

  Returns:
    The path of the checkpoint.

  Raises:
    InvalidCheckpointError: there is a checkpoint of this or a later step (of
      msgpack files), and `overwrite` is false.
    ConcurrentSaveError: somebody else is saving msgpack files to this directory
      and prefix.
    ValueError: Orbax has a checkpoint of this step and `overwrite` is false;
      or the target is a single array or number, which Orbax does not save; or
      `checksum` is asked of Orbax, whose files have checksums of their own.
    ImportError: the package for the format is not installed.

  Example:
    >>> import tempfile
    >>> import numpy as np
    >>> from haiku_state.configurations import config
    >>> from haiku_state.training import checkpoints
    >>> folder = tempfile.mkdtemp()
    >>> with config.temp_flip_flag('use_orbax_checkpointing', False):
    ...   for step in (1, 2, 3):
    ...     _ = checkpoints.save_checkpoint(
    ...       folder, {'w': np.arange(step)}, step, keep=2)
    >>> checkpoints.available_steps(folder)
    [2, 3]
    >>> checkpoints.restore_checkpoint(folder, target=None)
    {'w': array([0, 1, 2])}
  """
  jax.monitoring.record_event('/jax/flax/checkpoint/save')
  save = _plan(ckpt_dir, step, prefix, keep, overwrite, keep_every_n_steps)
  if async_manager:
    async_manager.wait_previous_save()
  if config.flax_use_orbax_checkpointing or orbax_checkpointer:
    if checksum:
      raise ValueError(
        'checksum=True is for msgpack files; the files of Orbax have checksums'
        ' of their own. Leave it out, or set the flag'
        ' flax_use_orbax_checkpointing to False.'
      )
    if jax.process_count() > 1:
      logging.warning(
        'Multiple JAX processes detected when calling single-process'
        ' `save_checkpoint`. Your devices will HANG if this function is only'
        ' called on process 0! Troubleshoot at:'
        ' https://flax.readthedocs.io/en/latest/guides/training_techniques/use_checkpointing.html#if-your-devices-hang-when-writing-checkpoints'
      )
    _save_by_orbax(save, target, orbax_checkpointer)
  else:
    _warn_of_msgpack()
    _save_by_msgpack(save, target, async_manager, checksum)
  _record_duration(_WRITE_EVENT, save.start_time)
  return save.path


def save_checkpoint_multiprocess(
  ckpt_dir: str | os.PathLike,
  target: PyTree,
  step: int | float,
  prefix: str = 'checkpoint_',
  keep: int = 1,
  overwrite: bool = False,
  keep_every_n_steps: int | None = None,
  async_manager: AsyncManager | None = None,
  gda_manager: 'GlobalAsyncCheckpointManager | None' = None,
  orbax_checkpointer: 'ocp.Checkpointer | None' = None,
  *,
  wait_limit: float | None = _waiting.LIMIT,
) -> str:
  """Saves a checkpoint from several processes into one directory.

  Every process calls it. The first writes what all of them hold, and deletes
  what is outdated; each writes its parts of arrays that span the processes.

  A process that waits for the others says so after 60 seconds, and again every
  60 seconds, in a warning of absl's log.

  >>> import tempfile
  >>> from haiku_state.training import checkpoints
  >>> folder = tempfile.mkdtemp()
  >>> import numpy as np
  >>> target = {'w': np.ones(1)}
  >>> path = checkpoints.save_checkpoint_multiprocess(folder, target, step=3)
  >>> checkpoints.restore_checkpoint(folder, target={'w': np.zeros(1)})
  {'w': array([1.])}

  Args:
    ckpt_dir: as for `save_checkpoint`, and so are the next six.
    target: see there.
    step: see there.
    prefix: see there.
    keep: see there.
    overwrite: see there.
    keep_every_n_steps: see there.
    async_manager: see there.
    gda_manager: writes the arrays that span several processes, in the
      background, if the checkpoint is a msgpack file.
    orbax_checkpointer: if given, it writes the checkpoint.
    wait_limit: seconds after which it is an error if not all processes have
      come here; None for never. While Orbax writes, its own limits hold.

  Returns:
    The path of the checkpoint.

  Raises:
    TimeoutError: other processes did not come within `wait_limit`.
    MPACheckpointingRequiredError: the target has an array that spans several
      processes, and there is neither `gda_manager` nor Orbax.
    InvalidCheckpointError: as `save_checkpoint`.
    ValueError: as `save_checkpoint`.
    ImportError: as `save_checkpoint`.
  """
  jax.monitoring.record_event('/jax/flax/checkpoint/save')
  save = _plan(ckpt_dir, step, prefix, keep, overwrite, keep_every_n_steps)

  def meet(place: str) -> None:
    _waiting.for_all_processes(
      f'Flax:Checkpoint:{place}',
      f'the other processes to save {save.path} ({place})',
      wait_limit,
    )

  meet('StartSave')
  if async_manager:
    async_manager.wait_previous_save()
  if gda_manager:
    gda_manager.wait_until_finished()
    meet('WaitLastSaveDone')
  if config.flax_use_orbax_checkpointing or orbax_checkpointer:
    with _waiting.told(f'Orbax to write {save.path} with the other processes'):
      _save_by_orbax(save, target, orbax_checkpointer)
  else:
    _warn_of_msgpack()
    _save_multiprocess_msgpack(save, target, async_manager, gda_manager, meet)
  _record_duration(_WRITE_EVENT, save.start_time)
  return save.path


def _plan(ckpt_dir, step, prefix, keep, overwrite, keep_every_n_steps):
  logging.info('Saving checkpoint at step: %s', step)
  ckpt_dir = safe_normpath(os.fspath(ckpt_dir))
  return _Save(
    step,
    _checkpoint_path(ckpt_dir, step, prefix),
    _checkpoint_path(ckpt_dir, 'tmp', prefix),
    os.path.join(ckpt_dir, prefix),
    keep,
    overwrite,
    keep_every_n_steps,
    time.time(),
  )


def _record_duration(event, start_time, **kwargs):
  seconds = time.time() - start_time
  jax.monitoring.record_event_duration_secs(event, seconds, **kwargs)


# Orbax


def _save_by_orbax(save: _Save, target, checkpointer):
  ocp = import_orbax()
  checkpointer = checkpointer or _default_checkpointer()
  is_async = isinstance(checkpointer, ocp.AsyncCheckpointer)
  if is_async:
    checkpointer.wait_until_finished()
  if jax.tree_util.treedef_is_leaf(
    jax.tree.structure(target)
  ) and not isinstance(checkpointer.handler, ocp.ArrayCheckpointHandler):
    raise ValueError(
      'Orbax backend only accept pytree as save target. To save singular'
      ' objects like numbers or Numpy arrays, checkout'
      ' https://flax.readthedocs.io/en/latest/guides/training_techniques/use_checkpointing.html#if-you-don-t-save-pytrees'
    )
  # Orbax waits for all processes first, so none looks before this is done.
  if jax.process_index() == 0:
    # This removes what a kill has left.
    _checkpoint_commit.hold(save.tmp_path).let_go()
    _checkpoint_commit.settle(save.base_path)
    if save.overwrite and _checkpoint_paths.is_local(save.path):
      _checkpoint_commit.set_aside(save.path)
  try:
    with _orbax.quiet():
      path = _absolute(save.path)
      checkpointer.save(path, target, force=save.overwrite)
  except ValueError as error:
    _versions.add_note(
      error,
      f'{save.path} is not saved. Arrays that Orbax does not save (without'
      ' elements, of text, of some small dtypes) a msgpack file holds: set the'
      ' flag flax_use_orbax_checkpointing to False.',
    )
    raise
  finally:
    # While Orbax still writes in the background, what was set aside stays.
    if jax.process_index() == 0 and not is_async:
      _checkpoint_commit.settle(save.base_path)
  if jax.process_index() == 0:
    _remove_after_orbax(save, checkpointer if is_async else None)


def _absolute(path: str) -> str:
  """Returns a path as Orbax wants it."""
  return os.path.abspath(path) if _checkpoint_paths.is_local(path) else path


def _default_checkpointer():
  ocp = import_orbax()
  return ocp.Checkpointer(ocp.PyTreeCheckpointHandler())


def _remove_after_orbax(save, async_checkpointer):
  # Until the replacement is there, later checkpoints must not go.
  if async_checkpointer and save.overwrite:
    if _checkpoint_commit.newer_checkpoints(save.path, save.base_path):
      async_checkpointer.wait_until_finished()
      _checkpoint_commit.settle(save.base_path)
  _remove_outdated(save)


def _remove_outdated(save: _Save):
  _checkpoint_commit.remove_outdated(
    save.path,
    save.base_path,
    save.keep,
    save.overwrite,
    save.keep_every_n_steps,
  )


# Msgpack files


def _warn_of_msgpack():
  warnings.warn(
    'Flax Checkpointing will soon be deprecated in favor of Orbax'
    ' (https://github.com/google/orbax). Please refer to the Checkpoint'
    ' Upgrade Guide'
    ' (https://flax.readthedocs.io/en/latest/guides/converting_and_upgrading/orbax_upgrade_guide.html)'
    ' to self-migrate your code to ocp.',
    DeprecationWarning,
    stacklevel=3,
  )


def _save_by_msgpack(save: _Save, target, async_manager, checksum: bool):
  with _checkpoint_commit.hold(save.tmp_path) as held:
    try:
      _checkpoint_commit.settle(save.base_path)
      _check_is_last(save)
      data = serialization.to_bytes(target)
      own = held.again() if async_manager else held
      note = data if checksum else None
      _run(async_manager, functools.partial(_write_held, own, save, data, note))
    except BaseException:
      held.let_go()
      raise


def _write_held(held: _checkpoint_commit.Hold, save: _Save, data: bytes, note):
  """Writes the file, and lets others write when it is there."""
  with held:
    try:
      _checkpoint_commit.note_checksum(save.path, note)
      _write(save, data)
    finally:
      held.let_go()


def _check_is_last(save: _Save):
  """Raises if this or a later step is there and is not to be replaced."""
  if save.overwrite:
    return
  checkpoints = _checkpoint_paths.all_checkpoints(save.base_path)
  if save.path in checkpoints or _checkpoint_commit.newer_checkpoints(
    save.path, save.base_path
  ):
    raise errors.InvalidCheckpointError(save.path, save.step)


def _run(async_manager, task):
  if async_manager:
    async_manager.save_async(task)
  else:
    task()


def _write(save: _Save, data: bytes, has_arrays: bool = False):
  """Writes the file and, unless arrays are still to come, commits it."""
  jax.monitoring.record_event('/jax/flax/checkpoint/save_main_ckpt_task')
  io.makedirs(os.path.dirname(save.path))
  _checkpoint_commit.write_file(save.tmp_path, data)
  if not has_arrays:
    _commit(save, has_arrays=False)


def _commit(save: _Save, has_arrays: bool):
  _checkpoint_commit.commit(
    save.tmp_path, save.path, save.overwrite, has_arrays
  )
  _remove_outdated(save)
  _record_since_last(save.start_time)


def _record_since_last(start_time):
  global _last_start_time
  seconds = start_time - _last_start_time
  jax.monitoring.record_event_duration_secs(_SINCE_LAST_EVENT, seconds)
  _last_start_time = start_time


_last_start_time = time.time()  # Before the first save: of the program.


def _save_multiprocess_msgpack(
  save: _Save, target, async_manager, gda_manager, meet
):
  state_dict, arrays = _multiprocess_arrays.split(
    serialization.to_state_dict(target)
  )
  data = serialization.msgpack_serialize(state_dict)
  is_first = jax.process_index() == 0
  if is_first:
    _checkpoint_commit.settle(save.base_path)
  # The one process may not begin to write while another still looks.
  meet('Settled')
  _check_is_last(save)
  meet('CheckOverwriteBeforeSave')
  if arrays and not gda_manager:
    raise errors.MPACheckpointingRequiredError(save.path, save.step)
  if is_first:
    _run(
      async_manager,
      functools.partial(_write, save, data, has_arrays=bool(arrays)),
    )
  if not arrays:
    return
  if is_first:
    _multiprocess_arrays.make_directories(arrays, save.tmp_path)
  meet('AfterCreateMPADir')
  _multiprocess_arrays.save(
    gda_manager,
    arrays,
    save.tmp_path,
    save.path,
    on_commit=functools.partial(_commit_arrays, save, async_manager),
  )


def _commit_arrays(save: _Save, async_manager):
  # The file comes last: with it the checkpoint is there.
  if async_manager:
    async_manager.wait_previous_save()
  _commit(save, has_arrays=True)
  if async_manager:
    _record_duration(_ASYNC_EVENT, save.start_time, storage_type='unknown')


# Looking


def latest_checkpoint(
  ckpt_dir: str | os.PathLike, prefix: str = 'checkpoint_'
) -> str | None:
  """Returns the path of the checkpoint with the highest step.

  >>> import tempfile
  >>> from haiku_state.training import checkpoints
  >>> folder = tempfile.mkdtemp()
  >>> print(checkpoints.latest_checkpoint(folder))
  None
  >>> path = checkpoints.save_checkpoint(folder, {'w': 1.0}, step=3)
  >>> checkpoints.latest_checkpoint(folder) == path
  True

  Args:
    ckpt_dir: the directory.
    prefix: the beginning of the names of the checkpoints.

  Returns:
    The path, or None if there is no checkpoint.
  """
  checkpoints = _all_checkpoints(ckpt_dir, prefix)
  return _checkpoint_paths.locate(checkpoints[-1]) if checkpoints else None


def _all_checkpoints(ckpt_dir, prefix):
  base_path = os.path.join(os.fspath(ckpt_dir), prefix)
  return _checkpoint_paths.all_checkpoints(base_path)


def available_steps(
  ckpt_dir: str | os.PathLike,
  prefix: str = 'checkpoint_',
  step_type: type = int,
) -> list[int | float]:
  """Lists the steps of which there are checkpoints.

  >>> import tempfile
  >>> from haiku_state.training import checkpoints
  >>> folder = tempfile.mkdtemp()
  >>> for step in (1, 2, 3):
  ...   _ = checkpoints.save_checkpoint(folder, {'w': 1.0}, step, keep=2)
  >>> checkpoints.available_steps(folder)
  [2, 3]

  Args:
    ckpt_dir: the directory.
    prefix: the beginning of the names of the checkpoints.
    step_type: int or float.

  Returns:
    The steps in order; none if there is no checkpoint.

  Raises:
    ValueError: what follows the prefix in a name is no number of that type.
  """
  # A prefix may contain directories.
  name_prefix = os.path.basename(prefix)
  names = map(os.path.basename, _all_checkpoints(ckpt_dir, prefix))
  return [step_type(name.removeprefix(name_prefix)) for name in names]


# Restoring


def restore_checkpoint(
  ckpt_dir: str | os.PathLike,
  target: Any | None,
  step: int | float | None = None,
  prefix: str = 'checkpoint_',
  parallel: bool = True,
  gda_manager: 'GlobalAsyncCheckpointManager | None' = None,
  allow_partial_mpa_restoration: bool = False,
  orbax_checkpointer: 'ocp.Checkpointer | None' = None,
  orbax_transforms: dict | None = None,
  *,
  strict: bool = False,
) -> PyTree:
  """Restores a checkpoint: the last one, or that of a step.

  Args:
    ckpt_dir: the directory of checkpoints, or the path of one.
    target: an object with the structure of the one that was saved, whose
      leaves' values do not matter. Without it, the result is a nested dict; of
      arrays that Orbax saved on devices that this program does not have, it
      holds NumPy arrays.
    step: the step to restore. If not given, the highest.
    prefix: the beginning of the names of the checkpoints.
    parallel: whether to read a large msgpack file by several threads.
    gda_manager: reads the arrays that span several processes of a msgpack
      checkpoint.
    allow_partial_mpa_restoration: whether such arrays may be left out where
      the target has none.
    orbax_checkpointer: reads the checkpoint, if Orbax wrote it.
    orbax_transforms: passed to Orbax's `restore` as `transforms`.
    strict: whether it is an error, in either format, if there is no checkpoint;
      or if the names, the shapes or the dtypes in it are not those of the
      target. A checkpoint of Orbax is then read twice.

  Returns:
    An object like `target` with the values of the checkpoint; `target` itself
    if no step is given and there is no checkpoint.

  Raises:
    ValueError: there is no checkpoint of `step`; or the structure of the
      checkpoint is not that of `target`; or a msgpack file is damaged, or is
      not what its checksum says; or what `strict` is about.
    ImportError: the package for the format is not installed.

  Example:
    >>> import tempfile
    >>> from haiku_state.training import checkpoints
    >>> with tempfile.TemporaryDirectory() as folder:  # Nothing there yet.
    ...   checkpoints.restore_checkpoint(folder, target={'w': 0})
    {'w': 0}
  """
  jax.monitoring.record_event('/jax/flax/checkpoint/restore')
  start_time = time.time()
  if orbax_checkpointer and isinstance(
    orbax_checkpointer, import_orbax().AsyncCheckpointer
  ):
    orbax_checkpointer.wait_until_finished()
  path = _find(safe_normpath(os.fspath(ckpt_dir)), step, prefix)
  if path is None:
    if strict:
      raise ValueError(
        f'There is no checkpoint at {os.fspath(ckpt_dir)} with the prefix'
        f' "{prefix}". Without strict=True the target is returned.'
      )
    return target
  location = _checkpoint_paths.locate(path)
  if _checkpoint_paths.is_orbax_checkpoint(location):
    logging.info('Restoring orbax checkpoint from %s', location)
    if strict and target is not None:
      whole = _restore_by_orbax(location, None, orbax_checkpointer, None)
      _check_fits(target, whole, location)
    result = _restore_by_orbax(
      location, target, orbax_checkpointer, orbax_transforms
    )
  else:
    logging.info('Restoring legacy Flax checkpoint from %s', location)
    state_dict = _multiprocess_arrays.restore(
      _read(location, path, parallel),
      target,
      path,
      step,
      gda_manager,
      allow_partial_mpa_restoration,
    )
    if strict and target is not None:
      _check_fits(target, state_dict, location)
    result = _fill(target, state_dict, location)
  _record_duration(_READ_EVENT, start_time)
  return result


def _find(ckpt_dir, step, prefix):
  """Returns the path of the checkpoint to restore, or None."""
  if step is not None:
    path = _checkpoint_path(ckpt_dir, step, prefix)
    if not io.exists(_checkpoint_paths.locate(path)):
      raise ValueError(f'Matching checkpoint not found: {path}')
    return path
  location = _checkpoint_paths.locate(ckpt_dir)
  if not io.exists(location):
    logging.info('Found no checkpoint directory at %s', ckpt_dir)
    return None
  if not io.isdir(location) or _checkpoint_paths.is_orbax_checkpoint(location):
    return ckpt_dir
  checkpoints = _all_checkpoints(ckpt_dir, prefix)
  if not checkpoints:
    logging.info(
      'Found no checkpoint files in %s with prefix %s', ckpt_dir, prefix
    )
    return None
  return checkpoints[-1]


def _restore_by_orbax(path, target, checkpointer, transforms):
  ocp = import_orbax()
  path = _absolute(path)
  checkpointer = checkpointer or _default_checkpointer()
  if target is None:
    with _orbax.quiet():
      restored = _restore_without_target(path, checkpointer)
    return serialization.to_state_dict(restored)
  arguments: dict[str, Any] = {
    'restore_args': orbax_utils.restore_args_from_target(target)
  }
  if isinstance(checkpointer.handler, ocp.PyTreeCheckpointHandler):
    arguments['transforms'] = orbax_utils.maybe_construct_transformations(
      target, transforms
    )
  with _orbax.quiet(transforms is not None):
    restored = checkpointer.restore(path, item=target, **arguments)
  return _fill(target, serialization.to_state_dict(restored), path)


def _restore_without_target(path, checkpointer):
  """Restores arrays to where they were; as NumPy's if they were elsewhere.

  Orbax notes the devices of each array. A program with other devices, or
  fewer, has not those.
  """
  try:
    return checkpointer.restore(path, item=None)
  except Exception as error:
    try:
      arguments = _numpy_restore_args(checkpointer, path)
      restored = checkpointer.restore(path, item=None, restore_args=arguments)
    except Exception:
      _versions.add_note(
        error,
        f'This is about the checkpoint {path}, which was restored without a'
        ' target. Pass one: its arrays, or `jax.ShapeDtypeStruct`s with a'
        ' `sharding`, say on which devices the restored ones go.',
      )
      raise error from None
  logging.info('Restored %s, of other devices, as NumPy arrays.', path)
  return restored


def _numpy_restore_args(checkpointer, path):
  """Makes arguments that ask for NumPy's arrays where JAX's were saved."""
  ocp = import_orbax()
  found = checkpointer.metadata(path)
  found = getattr(found, 'item_metadata', found)
  return jax.tree.map(
    lambda x: (
      ocp.RestoreArgs()
      if getattr(x, 'sharding', None) is None
      else ocp.RestoreArgs(restore_type=np.ndarray)
    ),
    getattr(found, 'tree', found),
  )


def _fill(target, state_dict, path):
  if target is None:
    return state_dict
  try:
    return serialization.from_state_dict(target, state_dict)
  except Exception as error:
    _versions.add_note(error, f'This is about the checkpoint {path}.')
    raise


def _check_fits(target, state_dict, path):
  """Raises unless a checkpoint has the leaves of a target."""
  wanted, found = (
    dict(_leaves(serialization.to_state_dict(x), ()))
    for x in (target, state_dict)
  )
  wrong = [f'"{name}" is missing' for name in wanted if name not in found]
  wrong += [f'"{name}" is unexpected' for name in found if name not in wanted]
  for name in wanted.keys() & found.keys():
    was, now = map(_kind_of, (found[name], wanted[name]))
    if was != now:
      wrong.append(f'"{name}" is {was}, expected {now}')
  if wrong:
    more = f' and {len(wrong) - 9} more' if len(wrong) > 9 else ''
    raise ValueError(
      f'The checkpoint {path} does not fit the target:'
      f' {"; ".join(sorted(wrong)[:9])}{more}.'
    )


def _leaves(state_dict, names):
  if isinstance(state_dict, dict):
    for name, value in state_dict.items():
      yield from _leaves(value, (*names, name))
  elif state_dict is not None:
    yield '/'.join(names), state_dict


def _kind_of(leaf):
  if hasattr(leaf, 'shape') and hasattr(leaf, 'dtype'):
    return f'{leaf.dtype}{list(leaf.shape)}'
  # Orbax makes arrays of numbers.
  is_number = isinstance(leaf, (bool, int, float, complex))
  return _Number() if is_number else type(leaf).__name__


class _Number:
  """A number of Python, which fits whatever array has no axes."""

  def __eq__(self, other):
    return isinstance(other, _Number) or str(other).endswith('[]')

  __hash__ = None  # type: ignore

  def __str__(self):
    return 'a number'


def _read(path, shown_path, parallel):
  with io.GFile(path, 'rb') as file:
    if parallel and file.seekable():
      data = _read_in_parallel(path, file)
    else:
      data = file.read()
  _checkpoint_commit.check(shown_path, data)  # type: ignore
  try:
    return serialization.msgpack_restore(data)  # type: ignore
  except ValueError as error:
    _versions.add_note(error, f'This is about the checkpoint {path}.')
    raise


def _read_in_parallel(path, file):
  file.seek(0, os.SEEK_END)
  data = bytearray(file.tell())

  def read_chunk(start):
    # A view, so that a file that has become shorter raises.
    chunk = memoryview(data)[start : start + _CHUNK]
    # All from the one file that is open, even if another takes its name.
    if hasattr(file, 'fileno') and hasattr(os, 'pread'):
      chunk[:] = os.pread(file.fileno(), len(chunk), start)
      return
    with io.GFile(path, 'rb') as own_file:
      own_file.seek(start)
      chunk[:] = own_file.read(len(chunk))

  with ThreadPoolExecutor(_READERS) as pool:
    # Going through the results raises what a thread raised.
    list(pool.map(read_chunk, range(0, len(data), _CHUNK)))
  return data


def convert_pre_linen(params: PyTree) -> PyTree:
  """Renames the parameters of Flax models from before linen.

  There submodules of one parent were numbered through (`Conv_0`, `Dense_1`);
  in linen each class is numbered for itself (`Conv_0`, `Dense_0`).

  Args:
    params: the parameters, or another collection, as nested dicts.

  Returns:
    Dicts, or FrozenDicts if given such, with linen's names. Parameters that
    have them already are returned equal.

  Example:
    >>> from haiku_state.training import checkpoints
    >>> checkpoints.convert_pre_linen({'Conv_0': {'bias': 0}, 'Dense_1': {}})
    {'Conv_0': {'bias': 0}, 'Dense_0': {}}
  """
  if not isinstance(params, (dict, FrozenDict)):
    return params
  renamed = {}
  counts: dict[str, int] = {}
  for name in natural_sort(params.keys()):
    value = convert_pre_linen(params[name])
    numbered = MODULE_NUM_RE.match(name)
    if numbered:
      module = numbered[1]
      counts[module] = counts.get(module, -1) + 1
      name = f'{module}_{counts[module]}'
    renamed[name] = value
  return freeze(renamed) if isinstance(params, FrozenDict) else renamed
