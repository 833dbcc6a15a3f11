"""Changes to a directory of checkpoints that a kill at any moment survives.

The rule: at every moment each step is there whole, as it was or as it will be.
What is written goes to another name, reaches the disk, and is renamed. What is
deleted is renamed first. What cannot be replaced by one rename, a directory,
is set aside first, where readers still find it (`_checkpoint_paths.locate`),
until its replacement is in place. `settle` clears up after a kill.
"""

import contextlib
import os

from absl import logging

from haiku_state import io
from haiku_state.training import _checkpoint_paths as paths
from haiku_state.training._checkpoint_paths import MP_ARRAY_POSTFIX


def write_file(path: str, data: bytes) -> None:
  """Writes a file and returns when the disk has it."""
  with io.GFile(path, 'wb') as file:
    file.write(data)
    file.flush()
    # Otherwise a power failure could leave the new name without the content.
    if hasattr(file, 'fileno'):
      os.fsync(file.fileno())


def commit(tmp_path: str, path: str, overwrite: bool, has_arrays: bool) -> None:
  """Gives what was written to `tmp_path` its name.

  Args:
    tmp_path: the file that is written.
    path: its name as a checkpoint.
    overwrite: whether to replace a checkpoint at `path`.
    has_arrays: whether a directory of multiprocess arrays, written to
      `tmp_path` + '_gda', belongs to it. In object stores it is in its place
      already.

  Raises:
    AlreadyExistsError: `path` exists and `overwrite` is false.
  """
  arrays = path + MP_ARRAY_POSTFIX
  move_arrays = has_arrays and paths.is_local(path)
  # One file is replaced by one file in one step; anything else is set aside.
  if overwrite and (io.isdir(path) or move_arrays):
    set_aside(path)
  if move_arrays and not io.exists(path):
    if paths.locate(path) == path:
      # Arrays without a checkpoint: a commit was cut off between the two.
      discard(arrays)
    set_aside(arrays)
    io.rename(tmp_path + MP_ARRAY_POSTFIX, arrays)
  io.rename(tmp_path, path, overwrite=overwrite)
  _sync_directory(os.path.dirname(path))
  _settle_checkpoint(path)
  if not has_arrays:
    discard(arrays)
  logging.info('Saved checkpoint at %s', path)


def set_aside(path: str) -> None:
  """Hides what is at `path`, if anything, until `settle`."""
  if io.exists(path):
    io.rename(path, paths.hidden_path(path, 'replaced'))


def discard(path: str) -> None:
  """Deletes the file or directory at `path`, if there is one."""
  if not io.exists(path):
    return
  if not io.isdir(path):
    io.remove(path)
  elif not paths.is_local(path):
    io.rmtree(path)
  else:
    _discard_directory(path)


def _discard_directory(path):
  # A directory half deleted would still be taken for a checkpoint.
  doomed = paths.hidden_path(path, 'discarded')
  if io.exists(doomed):
    io.rmtree(doomed)
  io.rename(path, doomed)
  io.rmtree(doomed)


def _sync_directory(path):
  if io.io_mode != io.BackendMode.DEFAULT or os.name != 'posix':
    return
  descriptor = os.open(path or '.', os.O_RDONLY)
  try:
    # Not every file system can; none has anything better to offer.
    with contextlib.suppress(OSError):
      os.fsync(descriptor)
  finally:
    os.close(descriptor)


def settle(base_path: str) -> None:
  """Finishes, or takes back, what a save that was cut off had begun.

  Only the one process that writes to the directory may call it, and only
  while no save is running.

  Args:
    base_path: directory and prefix of the checkpoints.
  """
  for path in paths.hidden_paths(base_path, 'discarded'):
    io.rmtree(paths.hidden_path(path, 'discarded'))
  for path in paths.hidden_paths(base_path, 'replaced'):
    if not path.endswith(MP_ARRAY_POSTFIX):
      _settle_checkpoint(path)
  # What is left belongs to checkpoints that are in place.
  for path in paths.hidden_paths(base_path, 'replaced'):
    discard(paths.hidden_path(path, 'replaced'))


def _settle_checkpoint(path):
  arrays = path + MP_ARRAY_POSTFIX
  aside = paths.hidden_path(path, 'replaced')
  arrays_aside = paths.hidden_path(arrays, 'replaced')
  if paths.locate(path) == path:
    discard(arrays_aside)
    discard(aside)
    return
  # The arrays first: as long as the checkpoint is aside, readers look for
  # arrays aside, too.
  if io.exists(arrays_aside):
    discard(arrays)
    io.rename(arrays_aside, arrays)
  io.rename(aside, path)


def remove_outdated(
  path: str,
  base_path: str,
  keep: int,
  overwrite: bool,
  keep_every_n_steps: int | None,
) -> None:
  """Deletes the checkpoints that are no longer wanted after a save.

  Args:
    path: the checkpoint that was saved.
    base_path: directory and prefix of all of them.
    keep: how many of the last to keep.
    overwrite: whether those of later steps are deleted.
    keep_every_n_steps: if given, also keep older ones that are at least this
      many steps apart.
  """
  checkpoints = paths.all_checkpoints(base_path)
  if overwrite and path in checkpoints:
    position = checkpoints.index(path) + 1
    for newer in checkpoints[position:]:
      _remove_checkpoint(newer)
    del checkpoints[position:]
  if len(checkpoints) <= keep:
    return
  for old in _not_apart(checkpoints[:-keep], keep_every_n_steps):
    _remove_checkpoint(old)
  _remove_remains(base_path, checkpoints[-keep])


def newer_checkpoints(path: str, base_path: str) -> list[str]:
  """Lists the checkpoints that come after `path`."""
  others = paths.all_checkpoints(base_path)
  others = [other for other in others if other != path]
  # Last, so that what sorts equal (steps 1 and 1.0) comes before.
  ordered = paths.natural_sort([*others, path])
  return ordered[ordered.index(path) + 1 :]


def _not_apart(old_checkpoints, every_n_steps):
  """Leaves out, of checkpoints in order, those n steps apart."""
  last_kept = -float('inf')
  for path in old_checkpoints:
    step = paths.step_of(path)
    if every_n_steps and step and step - last_kept >= every_n_steps:
      last_kept = step
    else:
      yield path


def _remove_checkpoint(path):
  logging.info('Removing checkpoint at %s', path)
  # Without its arrays a checkpoint would be there and could not be read.
  discard(path)
  discard(path + MP_ARRAY_POSTFIX)


def _remove_remains(base_path, oldest_kept):
  """Deletes what killed saves left behind from before a checkpoint."""
  directory, prefix = os.path.split(base_path)
  for name in paths.entries(directory):
    path = os.path.join(directory, name)
    if (
      name.startswith(prefix)
      and _is_remainder(path)
      and paths.natural_sort([path, oldest_kept])[0] == path
    ):
      discard(path)


def _is_remainder(path):
  if paths.ORBAX_TMP in os.path.basename(path):
    return True
  checkpoint = path.removesuffix(MP_ARRAY_POSTFIX)
  return checkpoint != path and not io.exists(paths.locate(checkpoint))
