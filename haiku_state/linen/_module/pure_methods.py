"""The methods of a module that are pure functions: equal if the modules are.

Programs keep `model.apply` where JAX compares it with the one of the step
before: as a static argument, or as a field of a train state that is no leaf.
Python's bound methods are equal only if their objects are one and the same, so
that a model made anew in each step, equal to the last one, would cost a trace
each time.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast

from haiku_state.linen._module.base import ModuleBase

_F = TypeVar('_F', bound=Callable[..., Any])


def pure_method(fun: _F) -> _F:
  """Makes a function of a class body a method that is compared by value.

  Args:
    fun: the function, whose result depends on nothing but its arguments and
      what makes two modules equal.
  """
  return cast(_F, _PureMethod(fun))


class _PureMethod:
  """What stands in the class: a descriptor, as a function is one."""

  def __init__(self, fun: Callable[..., Any]):
    functools.update_wrapper(self, fun)  # type: ignore[arg-type]

  def __get__(self, obj: Any, objtype: Any = None) -> Any:
    fun = self.__wrapped__  # type: ignore[attr-defined]
    return fun if obj is None else BoundPureMethod(fun, obj)


class BoundPureMethod(functools.partial):
  """A method with its module: equal to the same method of an equal module.

  Python calls a partial without a frame of its own, as it does a method, so that
  none is in tracebacks.

  A module that cannot be hashed, or that holds variables, is equal to itself
  only, and so is one that was made in a run of Haiku.

  Args:
    fun: the function.
    module: the module.

  Example:
    >>> import haiku_state.linen as nn
    >>> nn.Dense(2).apply == nn.Dense(2).apply
    True
    >>> nn.Dense(2).apply == nn.Dense(3).apply
    False
    >>> nn.Dense(2).apply == nn.Dense(2).init
    False
  """

  def __new__(cls, fun: Callable[..., Any], module: ModuleBase) -> Any:
    self = super().__new__(cls, fun, module)
    # These two the class has, too, and would come first.
    self.__doc__ = fun.__doc__
    self.__module__ = fun.__module__
    return self

  @property
  def __func__(self) -> Callable[..., Any]:
    return self.func

  @property
  def __self__(self) -> Any:
    return self.args[0]

  def __eq__(self, other: Any) -> bool:
    if not isinstance(other, BoundPureMethod):
      return NotImplemented
    if self.__func__ is not other.__func__:
      return False
    mine, others = self.__self__, other.__self__
    if mine is others:
      return True
    if _hash(mine) is None or _hash(others) is None:
      return False
    return bool(mine == others)

  def __hash__(self) -> int:
    value = _hash(self.__self__)
    return hash((self.__func__, id(self.__self__) if value is None else value))

  def __getattr__(self, name: str) -> Any:
    # Its name, its documentation, its code: as Python's bound methods do.
    return getattr(self.__func__, name)

  @property
  def __signature__(self) -> inspect.Signature:
    whole = inspect.signature(self.__func__)
    _, *rest = whole.parameters.values()
    return whole.replace(parameters=rest)

  def __repr__(self) -> str:
    return f'<bound method {self.__func__.__qualname__} of {self.__self__!r}>'

  def __reduce__(self) -> Any:
    return getattr, (self.__self__, self.__func__.__name__)


def _hash(module: ModuleBase) -> int | None:
  """Returns the hash of a module, None for one that has no lasting value."""
  try:
    return hash(module)
  except TypeError:
    return None
