"""The Haiku names of modules, in our runs and in Haiku's.

In a run of our own a module has its scope's path as Haiku name. A module that
is made in somebody's `hk.transform`, without a parent of our kind, is named by
Haiku, as one of its own.
"""

from __future__ import annotations

import re
from typing import Any

import haiku as hk

from haiku_state.core import _frame, _names
from haiku_state.core.scope import ORDINARY_FLAGS
from haiku_state.linen._module.base import ModuleBase
from haiku_state.linen._module.context import context

# Haiku's rule from `MyModule` to `my_module`.
_WORD_BEGINS = r'((?<=[a-z0-9])[A-Z]|(?!^)[A-Z](?=[a-z]))'


def haiku_name(module: ModuleBase) -> str:
  """Returns the name of a module at the top, as Haiku would make it."""
  if module.name is not None:
    # At the top Flax takes any name: it is on no path.
    return _names.escape_module(str(module.name))
  name = type(module).__name__
  return _names.escape_module(re.sub(_WORD_BEGINS, r'_\1', name).lower())


def called_by_haiku() -> bool:
  """Returns whether the current Haiku module, or function, is not ours."""
  path = _frame.current_path()
  if path is None:
    return False
  calls = context.current()
  for caller in reversed(calls.module_stack):
    # An unbound module on the way has no place among Haiku's modules.
    if caller is not None and caller.scope is not None:
      return caller.scope.haiku_path != path
  # At the top of a run of ours is the function that was passed to `nn.apply`.
  return path != _TOP or not calls.is_in_apply


def is_foreign_to_caller(module: ModuleBase) -> bool:
  """Returns whether Haiku has named a module, and none of ours is calling it."""
  if type(vars(module).get('module_name')) is not str:
    return False
  try:
    return called_by_haiku()
  except ValueError:
    return False  # The caller is a module of Haiku's that has no name yet.


# Haiku's name of what is in a transform and in no module.
_TOP = '~'


class _Naming(hk.Module):
  """Runs the constructor of Haiku's modules on a module that is there already.

  Haiku then does what it does for one of its own: it numbers the name, puts it
  below that of the caller, tells interceptors and the modules around.
  """

  def __new__(cls, module: ModuleBase, name: str) -> Any:
    del cls, name
    return module

  def __init__(self, module: ModuleBase, name: str):
    del module  # It is `self`.
    hk.Module.__init__(self, name=name)


def name_by_haiku(module: ModuleBase) -> None:
  """Has Haiku name a module, as one of its own that is made here."""
  name = module.name
  if not is_forced(name):
    name = haiku_name(module)
  # It is new: nothing of it is frozen.
  _Naming(module, name)


def name_below(module: ModuleBase, path: str) -> None:
  """Has Haiku name a module that lies below another one of ours.

  Args:
    module: the module; it keeps the name that it has there.
    path: its Haiku name.
  """
  name = module.name
  _Naming(module, hk.force_name(path))
  vars(module)['name'] = name


def is_forced(name: Any) -> bool:
  """Returns whether a name is an absolute one, by `hk.force_name`."""
  return isinstance(name, str) and name.startswith(_FORCE)


class _Placeholder(hk.Module):
  """A module that is there for its name."""

  AUTO_REPR = False


def reserve_in_haiku(path: str) -> None:
  """Has Haiku give a name to no other module that is made in this method.

  Args:
    path: the whole name; it may be taken already.
  """
  _Placeholder(name=hk.force_name(path))


def enter_haiku(module: Any) -> None:
  """Makes a module that was bound a Haiku module of its scope's name.

  Haiku checks each component of the name that it is given, at a cost that grows
  with the depth: it is given a short one, and then the true one.
  """
  shell: Any = object.__new__(_Shell)
  hk.Module.__init__(shell, name=_SHORT_NAME)
  own = vars(shell)
  del own['name']
  own['module_name'] = _name_of_scope(module)
  # At once: a module that has a part of it would not be given the rest.
  vars(module).update(own)


class _Shell(hk.Module):
  """Takes what Haiku gives one of its modules.

  The attributes of a module of ours may be frozen by then.
  """


def move_in_haiku(module: Any) -> None:
  """Gives a Haiku module the name of its scope."""
  vars(module)['module_name'] = _name_of_scope(module)


def _name_of_scope(module: Any) -> str:
  """Returns the name of its scope, and notes that a module of ours is there."""
  scope = module.scope
  path = scope.haiku_path
  run = scope._run
  if run.is_in_haiku:
    return path
  if scope.flags is not ORDINARY_FLAGS:
    run.note_module(path)  # Where variables are made.
  return _OwnPath(path)


class _OwnPath(str):
  """The Haiku name of a module in a run of ours: Haiku enters it, silently.

  Haiku names the operations of a method after its module, at the cost of a new
  function and a Python frame for each call. It asks `if module_name` before it
  does. We name them ourselves, as Flax does, and with neither.
  """

  __slots__ = ()

  def __bool__(self) -> bool:
    return False


_SHORT_NAME = hk.force_name('linen')
_FORCE = hk.force_name('')
