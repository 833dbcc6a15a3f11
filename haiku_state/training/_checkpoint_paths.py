"""Where a checkpoint lies, and in which order checkpoints come.

A checkpoint is named by its directory, a prefix and a step. Beside it there
may be, for a while or after a kill, what is not a checkpoint:

  checkpoint_7                          the checkpoint of step 7
  checkpoint_7_gda                      its arrays that span several processes
  checkpoint_tmp                        a file that is being written
  checkpoint_7.orbax-checkpoint-tmp...  the same, by Orbax
  .checkpoint_7.replaced                the old step 7 while a new one is put
                                        in its place
  .checkpoint_7.discarded               one that is being deleted
  .checkpoint_7.checksum                the checksums that its file may have

A checkpoint that is set aside for its replacement still counts: if the
replacement never comes, `locate` finds the old one. Flax ignores the last three.
"""

import os
import pathlib
import re
from collections.abc import Iterable

from haiku_state import io

_FLOAT = r'(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?'
SIGNED_FLOAT_RE = re.compile(rf'([-+]?{_FLOAT})')
UNSIGNED_FLOAT_RE = re.compile(rf'[-+]?({_FLOAT})')
SCHEME_RE = re.compile('^(?P<scheme>[a-z][a-z0-9.+-]+://)?(?P<path>.*)', re.I)

MP_ARRAY_POSTFIX = '_gda'
ORBAX_CKPT_FILENAME = 'checkpoint'
ORBAX_MANIFEST_OCDBT = 'manifest.ocdbt'
ORBAX_METADATA_FILENAME = '_METADATA'

# What Orbax puts into the name of a directory that it has not committed.
ORBAX_TMP = '.orbax-checkpoint-tmp'

_HIDDEN_RE = re.compile(r'\.(?P<name>.+)\.(?P<why>replaced|discarded|checksum)')


def natural_sort(file_list: Iterable[str], signed: bool = True) -> list[str]:
  """Sorts names so that the numbers in them are in order.

  Args:
    file_list: names that contain integers or decimals, also with exponents.
    signed: whether a '-' or '+' before a number belongs to it.

  Returns:
    The sorted list.

  Example:
    >>> from haiku_state.training import checkpoints
    >>> checkpoints.natural_sort(['file_10', 'file_2', 'file_-1.5'])
    ['file_-1.5', 'file_2', 'file_10']
  """
  number = SIGNED_FLOAT_RE if signed else UNSIGNED_FLOAT_RE

  def key(name):
    # Words and numbers alternate, so that like is compared with like.
    parts = number.split(name)
    return [float(x) if i % 2 else x for i, x in enumerate(parts)]

  return sorted(file_list, key=key)


def safe_normpath(path: str) -> str:
  """Normalizes a path and leaves a scheme such as `gs://` alone.

  Example:
    >>> from haiku_state.training import checkpoints
    >>> checkpoints.safe_normpath('gs://bucket//run/./a/..')
    'gs://bucket/run'
  """
  scheme, path = SCHEME_RE.match(path).groups()  # type: ignore
  return (scheme or '') + os.path.normpath(path)


def checkpoint_path(
  ckpt_dir: str, step: int | float | str, prefix: str = 'checkpoint_'
) -> str:
  """Returns the path of the checkpoint of a step."""
  return os.path.join(ckpt_dir, f'{prefix}{step}')


def step_of(path: str) -> float | None:
  """Returns the last number in a path, or None."""
  numbers = SIGNED_FLOAT_RE.findall(path)
  return float(numbers[-1]) if numbers else None


def all_checkpoints(base_path: str) -> list[str]:
  """Lists the checkpoints whose paths begin with `base_path`, in order."""
  directory, prefix = os.path.split(base_path)
  names = {_shown_name(name) for name in entries(directory)}
  return natural_sort(
    os.path.join(directory, name)
    for name in sorted(names)
    if name.startswith(prefix) and not _is_unfinished(name, prefix)
  )


def entries(directory: str) -> list[str]:
  """Lists the names in a directory; there are none if it is not there."""
  try:
    paths = io.listdir(directory or '.')
  except (FileNotFoundError, io.NotFoundError):  # type: ignore
    return []
  # Object stores mark directories by a slash at the end.
  return [pathlib.PurePath(path).name for path in paths]


def _shown_name(name: str) -> str:
  hidden = _HIDDEN_RE.fullmatch(name)
  return hidden['name'] if hidden and hidden['why'] == 'replaced' else name


def _is_unfinished(name: str, prefix: str) -> bool:
  return (
    name == f'{prefix}tmp'
    or name.endswith(MP_ARRAY_POSTFIX)
    or ORBAX_TMP in name
    or _HIDDEN_RE.fullmatch(name) is not None
  )


def hidden_path(path: str, why: str) -> str:
  """Returns where a path goes when it is 'replaced' or 'discarded'.

  And where its 'checksum' is.
  """
  directory, name = os.path.split(path)
  hidden = _HIDDEN_RE.fullmatch(name)
  name = hidden['name'] if hidden else name
  return os.path.join(directory, f'.{name}.{why}')


def hidden_paths(base_path: str, why: str) -> list[str]:
  """Lists the paths from `base_path` on that are hidden for one reason."""
  directory, prefix = os.path.split(base_path)
  found = map(_HIDDEN_RE.fullmatch, sorted(entries(directory)))
  return [
    os.path.join(directory, hidden['name'])
    for hidden in found
    if hidden and hidden['why'] == why and hidden['name'].startswith(prefix)
  ]


def locate(path: str) -> str:
  """Returns where a checkpoint lies: at its path, or set aside."""
  aside = hidden_path(path, 'replaced')
  return aside if not io.exists(path) and io.exists(aside) else path


def locate_arrays(path: str) -> str:
  """Returns where the multiprocess arrays of a checkpoint lie."""
  arrays = path + MP_ARRAY_POSTFIX
  # They are set aside after their checkpoint, so with it or not at all.
  return arrays if locate(path) == path else _aside_or_at(arrays)


def _aside_or_at(path: str) -> str:
  aside = hidden_path(path, 'replaced')
  return aside if io.exists(aside) else path


def is_orbax_checkpoint(path: str) -> bool:
  """Says whether the directory `path` was written by Orbax."""
  files = ORBAX_CKPT_FILENAME, ORBAX_METADATA_FILENAME, ORBAX_MANIFEST_OCDBT
  return any(io.exists(os.path.join(path, file)) for file in files)


def is_local(path: str) -> bool:
  """Says whether a path has no scheme: renaming is one step only there."""
  return not SCHEME_RE.match(path)['scheme']  # type: ignore
