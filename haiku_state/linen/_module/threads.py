"""Modules that several threads use at once.

Values are no concern of this file: each thread finds the run that goes on in it
(`core/_run.py`). But a module keeps track of its own use, of the names that it
gave and how far its setup has come, and a bound module is one object for all
threads. So a call from outside of any run takes the modules of its root for
itself, and a thread that finds them taken works on copies: other objects for the
same fields, the same variables and the same counts of keys.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax

from haiku_state.core._run import Occupied
from haiku_state.linen._module import submodules
from haiku_state.linen._module.base import ModuleBase
from haiku_state.linen._module.context import Calls, context
from haiku_state.linen._module.fields import PARENT_REF


def call_at_rest(
  method: Callable[..., Any],
  args: tuple[Any, ...],
  kwargs: dict[str, Any],
) -> Any:
  """Calls a method of a bound module where no run goes on in this thread.

  Args:
    method: the method, wrapped.
    args: its arguments; the first one is the module.
    kwargs: its keyword arguments.
  """
  scope = args[0].scope
  modules = scope._modules
  if modules.is_mine:
    return scope.execute(lambda: method(*args, **kwargs))
  if not modules.take():
    args, kwargs, modules = _copied((args, kwargs), modules)
    scope = args[0].scope
  around = context.current()
  calls = Calls(around)
  try:
    with modules.use(), context.begin(calls):
      return scope.execute(lambda: method(*args, **kwargs))
  finally:
    if calls.ends_as_it_began(around):
      modules.release()


@contextlib.contextmanager
def in_use(module: Any) -> Iterator[Any]:
  """Returns a context in which no other thread uses a module.

  Args:
    module: the module.

  Returns:
    A context of the module, or of a copy if another thread uses it.
  """
  scope = module.scope
  if scope is None or not scope._run.is_at_rest or scope._modules.is_mine:
    yield module
    return
  modules = scope._modules
  if not modules.take():
    module, modules = _copied(module, modules)
  around = context.current()
  calls = Calls(around)
  try:
    with modules.use(), context.begin(calls):
      yield module
  finally:
    if calls.ends_as_it_began(around):
      modules.release()


def _copied(tree: Any, taken: Occupied) -> tuple[Any, ...]:
  """Returns a tree with copies of modules that another thread has taken.

  Args:
    tree: a pytree, some of whose leaves may be such modules.
    taken: what all of them share.

  Returns:
    The tree or its parts, and what the copies share, taken by this thread.
  """
  modules = Occupied()
  modules.take()
  copies: dict[Any, Any] = {}

  def copy(x: Any) -> Any:
    if not isinstance(x, ModuleBase) or x.scope is None:
      return x
    if x.scope._modules is not taken:
      return x
    made = copies.get(x._id)
    if made is None:
      fields = {
        name: submodules.map_modules(copy, getattr(x, name))
        for name in x._field_names
      }
      scope = x.scope._for_copies(modules)
      made = type(x)(parent=scope, name=x.name, **fields)
      copies[x._id] = made
      if isinstance(x.parent, ModuleBase):
        # A parent knows its children, and keeps no others alive: here it is
        # the child that does.
        vars(made)[PARENT_REF] = copy(x.parent)
    return made

  new = jax.tree.map(copy, tree)
  return (*new, modules) if type(new) is tuple else (new, modules)
