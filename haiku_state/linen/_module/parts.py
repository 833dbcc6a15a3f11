"""Functions of a module that are lifted, but are no methods of its class.

For Haiku's own modules that such a function makes, it is a part of the method
that calls it: they have the names that they would have if it were not lifted. It
runs in a frame of its own, where Haiku counts names anew, so the names that are
taken already go in, and those that were made come out.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import haiku as hk

from haiku_state.core import _names
from haiku_state.linen._module.base import ModuleBase
from haiku_state.linen._module.context import context
from haiku_state.linen._module.haiku_names import reserve_in_haiku


def is_method(cls: type, name: str, fun: Callable[..., Any]) -> bool:
  """Returns whether a function is the method of this name of a class."""
  own = getattr(cls, name, None)
  return own is not None and inspect.unwrap(own) is inspect.unwrap(fun)


def _is_known_method(cls: type, fn: Callable[..., Any]) -> bool:
  """Returns `is_method`, for most methods by a look at the class."""
  name = fn.__name__
  if getattr(cls, name, None) is fn:
    return True
  # A class that was made by a lifted transform has it from the class above.
  return any(vars(base).get(name) is fn for base in cls.__mro__) or is_method(
    cls, name, fn
  )


def as_part(fun: Callable[..., Any]) -> Callable[..., Any]:
  """Returns a function of a module as a part of the method that calls it."""

  def part(self, *args, **kwargs):
    methods = context.current().method_names
    methods[-1] = methods[-2]
    return _method(methods[-1])(self, fun, args, kwargs)

  return part


@functools.lru_cache(maxsize=1024)
def _method(name: str) -> Callable[..., Any]:
  """Returns what calls a function where Haiku takes it for a method."""
  return haiku_method(name, _run_part)


def _run_part(self: ModuleBase, fun: Callable[..., Any], args, kwargs) -> Any:
  names: LiftedNames | None = vars(self).get(_NAMES)
  if names is None:
    return fun(self, *args, **kwargs)
  _take(names.taken)
  names.is_running = True
  result = fun(self, *args, **kwargs)
  names.made |= _taken(self) - names.taken
  return result


# The attribute of a module inside of a lifted function: its `LiftedNames`.
_NAMES = '_lifted_names'


class LiftedNames:
  """The names of Haiku's modules that cross the border of one lifted call.

  Args:
    module: the module whose functions are lifted.
    fns: the functions, wrapped as methods.

  Attributes:
    taken: the names that are taken outside, from the root.
    made: those that were made inside.
    is_running: whether a function has begun: what it lifts in turn runs in its
      method, and what is lifted twice does not.
  """

  def __init__(self, module: ModuleBase, fns: Sequence[Callable[..., Any]]):
    self.has_parts = not all(_is_known_method(type(module), fn) for fn in fns)
    self.taken = _taken(module) if self.has_parts else frozenset()
    self.made: set[str] = set()
    self.is_running = False
    self._paths: set[str] = vars(module).get('_submodules', set())
    self._before = frozenset(self._paths)
    around: LiftedNames | None = vars(module).get(_NAMES)
    self._around = None if around is None or around.is_running else around
    if self._around is not None:
      self.taken |= self._around.taken

  def enter(self, module: ModuleBase) -> None:
    """Takes the names that are taken along with the copy of the module inside."""
    if self.has_parts:
      vars(module)[_NAMES] = self

  def leave(self) -> None:
    """Takes the names that were made inside, outside.

    Those of our own modules are free, as in Flax: what was made below them has
    come out under their names, which Haiku then takes for modules of its own.
    """
    self._paths &= self._before
    if self._around is not None:
      self._around.made |= self.made
    else:
      _take(self.made)


def _taken(module: ModuleBase) -> frozenset[str]:
  """Returns the names of Haiku's modules that the running method has made."""
  paths = vars(module).get('_submodules')
  if not paths:
    return frozenset()
  method = context.current().method_names[-1]
  start = f'{module.module_name}/'
  if method != '__call__':
    start += f'~{method}/'
  own = {
    start + _names.escape_module(name)
    for name, child in module._state.children.items()
    if not isinstance(child, str)
  }
  return frozenset(
    path
    for path in paths
    if path.startswith(start)
    and '/' not in path[len(start) :]
    and path not in own
  )


def haiku_method(name: str, fun: Callable[..., Any]) -> Callable[..., Any]:
  """Returns a function as Haiku wraps a method of this name."""

  def method(self, *args, **kwargs):
    return fun(self, *args, **kwargs)

  # Haiku wraps the methods in the body of a class, but no special ones.
  key = name if name == '__call__' or not name.startswith('__') else '_special'
  carrier = type(hk.Module)('Carrier', (hk.Module,), {key: method})
  return carrier.__dict__[key]


def _take(paths: Iterable[str]) -> None:
  for path in paths:
    reserve_in_haiku(path)
