"""What holds as long as a `with` statement, however that ends.

A run, or the call of a module, changes what holds in its thread, and has to
change it back. An error may come at any time, in what changes it back too: the
user's Ctrl-C between two instructions, or the end of Python's stack. So the
things that numbers depend on are not changed back. They are in an object that a
`with` statement enters, and hold as long as it has not left that. Python enters
and leaves it in one step each, as a lock of its own.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:

  class _RLock:
    def __enter__(self) -> bool: ...
    def __exit__(self, *args: Any) -> None: ...
    def _is_owned(self) -> bool: ...
else:
  # The only context manager that Python has in C and lets one derive from.
  _RLock = type(threading.RLock())


class Extent(_RLock):
  """What a `with` statement holds on to.

  Nothing else may for long: Python drops what a statement has, even if an error
  comes in place of its end.
  """

  __slots__ = ()


E = TypeVar('E', bound=Extent)


class Extents(threading.local, Generic[E]):
  """The extents that a thread is in.

  Args:
    outermost: makes what holds outside of all of them.

  Attributes:
    refs: weak references, the innermost last. What it refers to holds unless
      it is None or not owned: see `current`.
  """

  def __init__(self, outermost: Callable[[], E]):
    base = outermost()
    base.__enter__()
    self.refs: list[Callable[[], E | None]] = [lambda: base]

  def current(self) -> E:
    """Returns the innermost one that was not left."""
    refs = self.refs
    while (extent := refs[-1]()) is None or not extent._is_owned():
      refs.pop()
    return extent

  def begin(self, extent: E) -> E:
    """Returns what a `with` statement is to enter at once."""
    self.current()
    self.refs.append(weakref.ref(extent))
    return extent


@contextlib.contextmanager
def restored(restore: Callable[[], Any]) -> Iterator[None]:
  """Returns a context at whose end something is called.

  For settings that a user can make for good, too, and that no extent holds. If
  an error comes while it is called, or just before, it is called once more. It
  is called at first, too: if Python's stack has no room for it, it is better to
  know before there is anything to restore.

  Args:
    restore: makes it as it is now, however often.
  """
  restore()
  try:
    try:
      yield
    finally:
      restore()
  finally:
    restore()
