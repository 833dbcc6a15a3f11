"""Tracebacks without the frames between a user's module and its error.

An error in a module of modules passes through binding, lifted transforms, JAX
and Haiku, at every level. `api_boundary` marks the functions that users call;
below one, the frames of files that were registered here are hidden, and JAX's.
How is up to `jax.config.jax_traceback_filtering`, as for JAX's own frames:

- 'off': nothing is hidden.
- 'tracebackhide': hidden frames get a local variable `__tracebackhide__`, by
  which IPython and pytest know to skip them.
- 'remove_frames': they are taken out, and the whole traceback is attached as
  the error's `__cause__`.
- 'quiet_remove_frames': they are taken out, and a note says so. Before Python
  3.11, where tracebacks show no notes, this is 'remove_frames'.
- 'auto': 'tracebackhide' in IPython, else 'quiet_remove_frames'.

JAX does the same with a function that is not public, and with a list of files
that cannot be added to. This one gives the same tracebacks by public means.
"""

import builtins
import functools
import inspect
import os
import traceback
import types
from collections.abc import Callable, Iterator
from typing import TypeVar, cast

import jax
from jax.extend import source_info_util

from haiku_state import _versions
from haiku_state.configurations import config

_F = TypeVar('_F', bound=Callable)

_NOTE = (
  '--------------------\n'
  'For simplicity, internal frames have been removed from the traceback of the '
  'following exception. Set JAX_TRACEBACK_FILTERING=off to include these.'
)
_CAUSE = (
  'The stack trace below excludes internal frames.\n'
  'The preceding is the original exception that occurred, unmodified.\n'
  '\n--------------------'
)

_jax_folder = os.path.dirname(os.path.abspath(jax.__file__))
_exclusions: set[str] = set()
_hidden = config.flax_filter_frames


class UnfilteredStackTrace(Exception):
  """Carries the whole traceback of an error whose own was shortened."""


def register_exclusion(path):
  """Names a file, or a folder, whose frames tracebacks leave out.

  JAX's records of where an operation comes from leave them out as well.

  Args:
    path: the path; a module passes its `__file__`.
  """
  path = os.path.abspath(path)
  _exclusions.add(path)
  if _hidden:
    # JAX compares beginnings: `haiku/` is not to hide `haiku_state/` as well.
    path = os.path.join(path, '') if os.path.isdir(path) else path
    source_info_util.register_exclusion(path)


def hide_flax_in_tracebacks():
  """Hides the frames of the registered files, as is the default."""
  global _hidden
  _hidden = True


def show_flax_in_tracebacks():
  """Shows the frames of the registered files, and still hides JAX's."""
  global _hidden
  _hidden = False


def api_boundary(fun: _F) -> _F:
  """Wraps a function below which tracebacks leave out internal frames.

  Of several boundaries on the stack, the outermost does it.

  Args:
    fun: the function.

  Returns:
    The wrapped function.

  Example:
    >>> from haiku_state import traceback_util
    >>> @traceback_util.api_boundary
    ... def double(x):
    ...   return 2 * x
    >>> double(3)
    6
  """

  @functools.wraps(fun)
  def reraise_with_filtered_traceback(*args, **kwargs):
    __tracebackhide__ = True
    try:
      return fun(*args, **kwargs)
    except Exception as error:
      if not _below_a_boundary(inspect.currentframe()):
        _filter(error)
        if not _versions.RAISE_TAKES_TRACEBACK:
          raise error  # With one frame of ours, this one.
      raise

  return cast(_F, reraise_with_filtered_traceback)


# All wrappers share this code object; it is how a frame of one is known.
_BOUNDARY = api_boundary(len).__code__  # type: ignore[attr-defined]


def _below_a_boundary(frame: types.FrameType | None) -> bool:
  while frame and frame.f_back:
    frame = frame.f_back
    if frame.f_code is _BOUNDARY:
      return True
  return False


def _filter(error: Exception) -> None:
  mode = _filtering_mode()
  if mode == 'off':
    return
  if mode == 'tracebackhide':
    for frame, _ in _internal_frames(error.__traceback__):
      frame.f_locals['__tracebackhide__'] = True
    return
  whole = error.__traceback__
  error.with_traceback(_without_internal_frames(whole))
  if mode == 'quiet_remove_frames':
    _add_note_once(error)
  else:
    _attach_as_cause(error, whole)


def _filtering_mode() -> str:
  mode = jax.config.jax_traceback_filtering  # type: ignore[attr-defined]
  if mode == 'quiet_remove_frames' and not _versions.HAS_NOTES:
    return 'remove_frames'
  if mode not in (None, 'auto'):
    return mode
  if hasattr(builtins, 'get_ipython'):
    return 'tracebackhide'
  return 'quiet_remove_frames' if _versions.HAS_NOTES else 'remove_frames'


def _is_internal(frame: types.FrameType) -> bool:
  path = os.path.abspath(frame.f_code.co_filename)
  return frame.f_code is _BOUNDARY or any(
    path == hidden or path.startswith(hidden + os.sep)
    for hidden in (_jax_folder, *(_exclusions if _hidden else ()))
  )


def _internal_frames(
  tb: types.TracebackType | None,
) -> Iterator[tuple[types.FrameType, int]]:
  return (
    (frame, line)
    for frame, line in traceback.walk_tb(tb)
    if _is_internal(frame)
  )


def _without_internal_frames(
  tb: types.TracebackType | None,
) -> types.TracebackType | None:
  shown = None
  for frame, line in reversed(list(traceback.walk_tb(tb))):
    if not _is_internal(frame):
      shown = types.TracebackType(shown, frame, frame.f_lasti, line)
  return shown


def _add_note_once(error: Exception) -> None:
  # A boundary of JAX's further in may have added its own, of the same sense.
  notes = getattr(error, '__notes__', ())
  if not any('JAX_TRACEBACK_FILTERING' in note for note in notes):
    _versions.add_note(error, _NOTE)


def _attach_as_cause(
  error: Exception, whole: types.TracebackType | None
) -> None:
  message = ''.join(traceback.format_exception_only(type(error), error))
  cause = UnfilteredStackTrace(f'{message.strip()}\n\n{_CAUSE}')
  cause.with_traceback(whole)
  cause.__cause__ = error.__cause__
  cause.__context__ = error.__context__
  cause.__suppress_context__ = error.__suppress_context__
  error.__cause__ = cause


register_exclusion(__file__)
