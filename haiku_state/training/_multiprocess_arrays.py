"""Saving arrays that no single process holds, beside a msgpack checkpoint.

Each process writes its part of such an array by TensorStore, into a directory
named after the checkpoint. The checkpoint itself has a placeholder there.

The manager that does the writing is JAX's `GlobalAsyncCheckpointManager`.
"""

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
from absl import logging

from haiku_state import errors, io, serialization, traverse_util
from haiku_state.training import _checkpoint_paths as paths
from haiku_state.training._checkpoint_paths import MP_ARRAY_POSTFIX

if TYPE_CHECKING:
  from jax.experimental.array_serialization.serialization import (
    GlobalAsyncCheckpointManager,
  )

MP_ARRAY_PH = '//GDAPlaceholder:'
# Written last where renaming is not one step: without it, arrays are not whole.
COMMIT_SUCCESS_FILE = 'commit_success.txt'

# An array and its path below the directory of arrays.
ArrayAndPath = tuple[jax.Array, str]


def is_multiprocess_array(value: Any) -> bool:
  """Says whether a part of an array lies on another process's devices."""
  return isinstance(value, jax.Array) and not value.is_fully_addressable


def split(state_dict: Any) -> tuple[Any, list[ArrayAndPath]]:
  """Takes the multiprocess arrays out of a state dict.

  Returns:
    The state dict with placeholders, and the arrays with their paths.
  """
  arrays = []

  def placeholder(path, value):
    if not is_multiprocess_array(value):
      return value
    arrays.append((value, path))
    return MP_ARRAY_PH + path

  if not isinstance(state_dict, Mapping):
    return placeholder('', state_dict), arrays
  flat = traverse_util.flatten_dict(state_dict, keep_empty_nodes=True)
  flat = {key: placeholder('/'.join(key), x) for key, x in flat.items()}
  return traverse_util.unflatten_dict(flat), arrays


def make_directories(arrays: list[ArrayAndPath], tmp_path: str) -> None:
  """Makes the directories to write to; one process does this for all."""
  if not paths.is_local(tmp_path):
    return  # Object stores have none.
  directory = tmp_path + MP_ARRAY_POSTFIX
  if io.exists(directory):
    logging.info('Removing outdated MPA temporary files at %s', directory)
    io.rmtree(directory)
  for _, path in arrays:
    io.makedirs(os.path.join(directory, path))


def save(
  gda_manager: 'GlobalAsyncCheckpointManager',
  arrays: list[ArrayAndPath],
  tmp_path: str,
  path: str,
  on_commit: Callable[[], None],
) -> None:
  """Starts to write the arrays.

  Args:
    gda_manager: writes in the background.
    arrays: the arrays and their paths.
    tmp_path: the checkpoint's temporary path.
    path: the checkpoint's path.
    on_commit: called, by one process, when all processes have written.
  """
  local = paths.is_local(path)
  directory = (tmp_path if local else path) + MP_ARRAY_POSTFIX

  def committed():
    if not local:
      with io.GFile(os.path.join(directory, COMMIT_SUCCESS_FILE), 'w') as file:
        file.write(f'Checkpoint commit was successful to {directory}')
    on_commit()

  gda_manager.serialize(
    [array for array, _ in arrays],
    [_tensorstore_spec(directory, subpath) for _, subpath in arrays],
    on_commit_callback=committed,
  )


def _tensorstore_spec(directory, path):
  from jax.experimental.array_serialization import serialization as arrays_io

  return arrays_io.get_tensorstore_spec(os.path.join(directory, path))


def restore(
  state_dict: Any,
  target: Any | None,
  path: str,
  step: int | float | None,
  gda_manager: 'GlobalAsyncCheckpointManager | None',
  allow_partial: bool = False,
) -> Any:
  """Puts the arrays of a checkpoint where its placeholders are.

  Args:
    state_dict: what the checkpoint file held.
    target: an object with arrays placed as the restored ones should be.
    path: the path of the checkpoint.
    step: its step, for the messages of errors.
    gda_manager: reads the arrays.
    allow_partial: whether placeholders for which the target has no array may
      stay.

  Returns:
    The state dict with arrays.

  Raises:
    MPACheckpointingRequiredError: there are placeholders and no manager.
    MPARestoreTargetRequiredError: the target lacks an array.
    MPARestoreDataCorruptedError: the arrays were not written to the end.
  """
  if not isinstance(state_dict, Mapping):
    saved, wanted = {(): state_dict}, {(): target}
  else:
    flatten = traverse_util.flatten_dict
    saved = flatten(state_dict, keep_empty_nodes=True)
    wanted = {}
    if not _is_empty(target):
      wanted = serialization.to_state_dict(target)
      wanted = flatten(wanted, keep_empty_nodes=True)
  found = {key: x for key, x in saved.items() if _is_placeholder(x)}
  if not found:
    return state_dict
  if not gda_manager:
    raise errors.MPACheckpointingRequiredError(path, step)
  if _is_empty(target) and not allow_partial:
    raise errors.MPARestoreTargetRequiredError(path, step)
  found = {
    key: placeholder[len(MP_ARRAY_PH) :]
    for key, placeholder in found.items()
    if _has_array(wanted, key, path, step, allow_partial)
  }
  if found:
    targets = [wanted[key] for key in found]
    values = _read(gda_manager, targets, list(found.values()), path, step)
    saved.update(zip(found, values))
  if not isinstance(state_dict, Mapping):
    return saved[()]
  return traverse_util.unflatten_dict(saved)


def _is_empty(target):
  return target is None or (isinstance(target, Mapping) and not target)


def _is_placeholder(value):
  return isinstance(value, str) and value.startswith(MP_ARRAY_PH)


def _has_array(wanted, key, path, step, allow_partial):
  if is_multiprocess_array(wanted.get(key)):
    return True
  if not allow_partial:
    raise errors.MPARestoreTargetRequiredError(path, step, key)
  logging.warning(
    'Multiprocess array %s could not be restored because a valid'
    ' array is not found in target at the corresponding location.'
    ' Proceed to restore other arrays because'
    ' allow_partial_restoration=True',
    key,
  )
  return False


def _read(gda_manager, targets, subpaths, path, step):
  gda_manager.wait_until_finished()
  directory = paths.locate_arrays(path)
  commit_success = os.path.join(directory, COMMIT_SUCCESS_FILE)
  if not paths.is_local(path) and not io.exists(commit_success):
    raise errors.MPARestoreDataCorruptedError(step, path)
  return gda_manager.deserialize(
    [target.sharding for target in targets],
    [_tensorstore_spec(directory, subpath) for subpath in subpaths],
  )
