"""Changes to a directory of checkpoints that a kill at any moment survives.

The rule: at every moment each step is there whole, as it was or as it will be.
What is written goes to another name, reaches the disk, and is renamed. What is
deleted is renamed first. What cannot be replaced by one rename, a directory,
is set aside first, where readers still find it (`_checkpoint_paths.locate`),
until its replacement is in place. `settle` clears up after a kill.
"""

import contextlib
import hashlib
import io as python_io
import os
import time

from absl import logging

from haiku_state import errors, io
from haiku_state.training import _checkpoint_paths as paths
from haiku_state.training._checkpoint_paths import MP_ARRAY_POSTFIX


class Hold(python_io.FileIO):
  """The one writer of a prefix, until the file is closed.

  `with` closes it in one step, whatever comes in between.

  Args:
    path: the file that is about to be written.
  """

  def __init__(self, path: str):
    super().__init__(path, 'a')
    self._path = path

  def again(self) -> 'Hold':
    """Returns another one, for another thread, of the same lock."""
    other = Hold(self._path)
    os.dup2(self.fileno(), other.fileno(), inheritable=False)
    return other

  def let_go(self) -> None:
    """Lets others write, and removes the file if it is still there."""
    if self.closed:
      return
    if _is_at(self.fileno(), self._path):
      os.unlink(self._path)
    # A process that was forked meanwhile has the descriptor, too.
    with contextlib.suppress(OSError, ImportError):
      import fcntl

      fcntl.flock(self.fileno(), fcntl.LOCK_UN)
    self.close()


class _NoHold(contextlib.nullcontext):
  """Stands for a hold where files cannot be locked."""

  def __init__(self):
    super().__init__(self)

  def again(self) -> '_NoHold':
    return self

  def let_go(self) -> None:
    pass


def hold(tmp_path: str) -> Hold | _NoHold:
  """Makes this the one writer of a prefix; another one gets an error.

  The file that is about to be written is locked; a process that is killed holds
  no lock, and what it left is written over. In object stores, and where files
  cannot be locked, nothing is held.

  Args:
    tmp_path: the file, which is made with its directory.

  Returns:
    What is to be let go, in a `with` statement.

  Raises:
    ConcurrentSaveError: somebody else is writing.
  """
  try:
    import fcntl
  except ImportError:  # Not on Windows.
    return _NoHold()
  if io.io_mode != io.BackendMode.DEFAULT or not paths.is_local(tmp_path):
    return _NoHold()
  io.makedirs(os.path.dirname(tmp_path) or '.')
  while True:
    held = Hold(tmp_path)
    try:
      with contextlib.suppress(OSError):  # A file system without locks.
        try:
          fcntl.flock(held.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
          raise errors.ConcurrentSaveError(tmp_path) from None
      # Between the two another writer may have given the file its name.
      if _is_at(held.fileno(), tmp_path):
        return held
    except BaseException:
      held.close()
      raise
    held.close()


def _is_at(descriptor: int, path: str) -> bool:
  try:
    return os.path.samestat(os.fstat(descriptor), os.stat(path))
  except FileNotFoundError:
    return False


def write_file(path: str, data: bytes) -> None:
  """Writes a file and returns when the disk has it.

  If that fails, what was written is removed: it may be what filled the disk.
  """
  try:
    with io.GFile(path, 'wb') as file:
      file.write(data)
      file.flush()
      # Otherwise a power failure could leave the new name without the content.
      if hasattr(file, 'fileno'):
        os.fsync(file.fileno())
  except Exception:
    with contextlib.suppress(Exception):
      io.remove(path)
    raise


# --- Checksums ---------------------------------------------------------------


def note_checksum(path: str, data: bytes | None) -> None:
  """Notes what the file at a path may be, before it is put there.

  Until it is there, what was there before is right, too.

  Args:
    path: the checkpoint.
    data: what is to be its content; None if its checksum is not wanted.
  """
  place = paths.hidden_path(path, 'checksum')
  if data is None:
    discard(place)
    return
  sums = [_checksum(data), *_checksums(path)[:1]]
  tmp = place + '.tmp'
  write_file(tmp, '\n'.join(sums).encode())
  io.rename(tmp, place, overwrite=True)


def _checksum(data: bytes) -> str:
  return hashlib.sha256(data).hexdigest()


def _checksums(path: str) -> list[str]:
  place = paths.hidden_path(path, 'checksum')
  if not io.exists(place):
    return []
  with io.GFile(place, 'rb') as file:
    return file.read().decode('ascii', 'replace').split()


def check(path: str, data: bytes) -> None:
  """Raises if a checkpoint has noted checksums and its content none of them.

  Args:
    path: the checkpoint.
    data: its content.

  Raises:
    ValueError: it was changed since it was saved, or is damaged.
  """
  wanted = _checksums(path)
  found = _checksum(data) if wanted else ''
  if wanted and found not in wanted:
    raise ValueError(
      f'The checkpoint {path} is not what was saved: its SHA-256 is {found},'
      f' expected {wanted[0]} as in {paths.hidden_path(path, "checksum")}.'
      ' Restore another step; remove that file to restore this one all the same.'
    )


# --- Names -------------------------------------------------------------------


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
  for path in paths.hidden_paths(base_path, 'checksum'):
    if not io.exists(paths.locate(path)):
      discard(paths.hidden_path(path, 'checksum'))
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
  if len(checkpoints) > keep:
    for old in _not_apart(checkpoints[:-keep], keep_every_n_steps):
      _remove_checkpoint(old)
    _remove_remains(base_path, checkpoints[-keep])
  _remove_remains(base_path, path, REMAINS_AGE)


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
  discard(paths.hidden_path(path, 'checksum'))


# What a save has left unfinished is taken for that of a killed process when
# nothing in it has been written for so many seconds.
REMAINS_AGE = 3600.0


def _remove_remains(base_path, checkpoint, age=None):
  """Deletes what killed saves left behind.

  Args:
    base_path: directory and prefix of the checkpoints.
    checkpoint: what is from before this one is deleted.
    age: if given, only what is as old as that, in seconds, and then also what
      is of this checkpoint. Object stores do not tell.
  """
  directory, prefix = os.path.split(base_path)
  for name in paths.entries(directory):
    path = os.path.join(directory, name)
    if not name.startswith(prefix) or not _is_remainder(path):
      continue
    first = paths.natural_sort([_checkpoint_of(path), checkpoint])[0]
    if age is None:
      doomed = first != checkpoint
    else:
      doomed = first == _checkpoint_of(path) and _seconds_at_rest(path) > age
    if doomed:
      logging.info('Removing what a killed save has left at %s', path)
      discard(path)


def _is_remainder(path):
  if paths.ORBAX_TMP in os.path.basename(path):
    return True
  checkpoint = _checkpoint_of(path)
  return checkpoint != path and not io.exists(paths.locate(checkpoint))


def _checkpoint_of(path):
  """Returns the path of the checkpoint to which a remainder belongs."""
  directory, name = os.path.split(path)
  name = name.split(paths.ORBAX_TMP)[0]
  return os.path.join(directory, name.removesuffix(MP_ARRAY_POSTFIX))


def _seconds_at_rest(path):
  """Returns for how long nothing at a path has changed; 0 if not known."""
  if io.io_mode != io.BackendMode.DEFAULT or not paths.is_local(path):
    return 0.0
  changed = []
  for folder, _, files in os.walk(path):
    for place in [folder, *(os.path.join(folder, file) for file in files)]:
      with contextlib.suppress(OSError):  # Somebody else removes it, too.
        changed.append(os.stat(place).st_mtime)
  return time.time() - max(changed) if changed else 0.0
