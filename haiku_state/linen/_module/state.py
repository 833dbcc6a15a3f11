"""The state of a module while it is in use: what phase it is in, what it has."""

from __future__ import annotations

import enum
from typing import Any


class SetupState(enum.IntEnum):
  """How far `setup` has come.

  NEW: it was not called.
  TRANSFORMED: it was called outside of a lifted transform, in which this copy
    of the module is; its names are taken already, by right.
  DONE: it was called.
  """

  NEW = 0
  TRANSFORMED = 1
  DONE = 2


class ModuleState:
  """What a module knows of its own use.

  Attributes:
    in_compact_method: whether a compact method is running.
    in_setup: whether `setup` is running.
    setup_called: how far `setup` has come.
    is_initialized: whether the module is bound, and its fields are frozen.
    autoname_cursor: the next number of each automatic name.
    children: the names that were given: a module, or the collection of a
      variable.
  """

  __slots__ = (
    'in_compact_method',
    'in_setup',
    'setup_called',
    'is_initialized',
    'autoname_cursor',
    'children',
  )

  def __init__(self) -> None:
    self.in_compact_method = False
    self.in_setup = False
    self.setup_called = SetupState.NEW
    self.is_initialized = False
    self.autoname_cursor: dict[str, int] = {}
    self.children: dict[str, Any] = {}

  def reset(self) -> None:
    """Ends a compact method or setup: automatic names begin anew."""
    self.in_compact_method = False
    self.in_setup = False
    self.autoname_cursor = {}

  def export(self) -> ModuleState:
    """Returns the state for the copy of the module inside of a transform."""
    copy = ModuleState()
    copy.reimport(self)
    if self.setup_called is not SetupState.NEW:
      copy.setup_called = SetupState.TRANSFORMED
    return copy

  def reimport(self, other: ModuleState) -> None:
    """Takes over what happened to the copy inside of a transform."""
    self.in_compact_method = other.in_compact_method
    self.in_setup = other.in_setup
    self.is_initialized = other.is_initialized
    self.autoname_cursor = dict(other.autoname_cursor)


# What a module has before its `__post_init__`, and a class without objects.
UNINITIALIZED = ModuleState()
