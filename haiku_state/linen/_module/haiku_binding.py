"""Modules as Haiku modules: their Haiku names, in our runs and in Haiku's.

In a run of our own a module has its scope's path as Haiku name. A module that
is called inside somebody's `hk.transform`, without a parent of our kind, is
bound there: Haiku names it as it would name one of its own.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import haiku as hk

from haiku_state.core import _haiku
from haiku_state.core._run import Run
from haiku_state.core.filters import DenyList
from haiku_state.core.scope import Scope
from haiku_state.linen._module.context import context

if TYPE_CHECKING:
  from haiku_state.linen.module import Module

# Haiku's rule from `MyModule` to `my_module`.
_WORD_BEGINS = re.compile(r'((?<=[a-z0-9])[A-Z]|(?!^)[A-Z](?=[a-z]))')


def haiku_name(module: Module) -> str:
  """Returns the name of a module at the top, as Haiku would make it."""
  if module.name is not None:
    # At the top Flax takes any name: it is on no path.
    return _haiku.escape_module(str(module.name))
  name = type(module).__name__
  return _haiku.escape_module(_WORD_BEGINS.sub(r'_\1', name).lower())


def called_by_haiku() -> bool:
  """Returns whether the current Haiku module, or function, is not ours."""
  path = _haiku.current_path()
  if path is None:
    return False
  for caller in reversed(context.module_stack):
    # An unbound module on the way has no place among Haiku's modules.
    if caller is not None and caller.scope is not None:
      return caller.scope.haiku_path != path
  # At the top of a run of ours is the function that was passed to `nn.apply`.
  return path != _TOP or not context.captures


# Haiku's name of what is in a transform and in no module.
_TOP = '~'


class _Named(hk.Module):
  """A module that is there for the name that Haiku gives it."""

  AUTO_REPR = False


def bind_in_haiku(module: Module) -> Module:
  """Binds a module to the run of Haiku that is current.

  Args:
    module: an unbound module. One that was made in this run stays bound, so
      that its second call shares what the first one made, as in Haiku; one from
      outside the run is copied, and stays as it is.

  Returns:
    The bound module.
  """
  path = _Named(name=haiku_name(module)).module_name
  initializing = hk.running_init()
  hidden = ['intermediates'] if initializing else ['params', 'intermediates']
  scope = Scope(
    {}, mutable=DenyList(hidden), flags={'initializing': initializing}
  )
  scope._run = Run.in_haiku(path)
  if not module.__dict__.get('_made_in_haiku'):
    return module.clone(parent=scope, _deep_clone=True, name=module.name)
  module.parent = scope
  module.__post_init__()
  return module


def enter_haiku(module: Any) -> None:
  """Makes a module that was bound a Haiku module of its scope's name.

  Haiku checks each component of the name that it is given, at a cost that grows
  with the depth: it is given a short one, and then the true one.
  """
  name = module.__dict__.get('name')
  state = module._state
  # Haiku sets attributes, also of a module whose own are frozen by now.
  was_initialized, state.is_initialized = state.is_initialized, False
  was_in_setup, state.in_setup = state.in_setup, False
  hk.Module.__init__(module, name=_SHORT_NAME)
  state.is_initialized, state.in_setup = was_initialized, was_in_setup
  # Haiku has set `name` to the last component.
  vars(module)['name'] = name
  move_in_haiku(module)


def move_in_haiku(module: Any) -> None:
  """Gives a Haiku module the name of its scope."""
  scope = module.scope
  path = scope.haiku_path
  in_haiku = scope._run.is_in_haiku
  vars(module)['module_name'] = path if in_haiku else _OwnPath(path)


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
