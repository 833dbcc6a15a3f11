"""Files that are to take another one's place when they are whole."""

import contextlib
import os
import pathlib
import threading
from typing import BinaryIO


def temporary_path(folder: pathlib.Path, prefix: str) -> str:
  """Returns the path of the temporary file of this thread in a folder.

  It is the same each time: so what is left of a save that was cut off, at
  whatever moment, is removed by the next one.

  Args:
    folder: the folder of the file whose place it will take.
    prefix: what its name begins with; a number of the process and one of the
      thread follow.
  """
  own = f'{prefix}{os.getpid()}-{threading.get_native_id()}'
  return os.path.join(folder, own)


def create(path: str, mode: int = 0o666) -> BinaryIO:
  """Makes a file, and opens it for writing.

  Args:
    path: the file; what is there is removed.
    mode: what others may do with it, less what the user's mask forbids.
  """
  with contextlib.suppress(FileNotFoundError):
    os.unlink(path)
  # A link that somebody puts there is not followed.
  flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, 'O_BINARY', 0)
  return open(path, 'wb', opener=lambda name, _: os.open(name, flags, mode))
