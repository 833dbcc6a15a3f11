"""Modules and methods that share a scope, or have one more."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from haiku_state import errors
from haiku_state.core.scope import Scope
from haiku_state.linen._module.base import ModuleBase
from haiku_state.linen._module.haiku_names import move_in_haiku


def compact_name_scope(fun: Callable[..., Any]) -> Callable[..., Any]:
  """Marks a method that may make submodules, in a scope of the method's name.

  A class may have several, beside a compact one.

  >>> import jax, jax.numpy as jnp
  >>> import haiku_state.linen as nn
  >>> class Coder(nn.Module):
  ...   @nn.compact_name_scope
  ...   def down(self, x):
  ...     return nn.Dense(2)(x)
  ...   @nn.compact_name_scope
  ...   def up(self, x):
  ...     return nn.Dense(3)(x)
  ...   def __call__(self, x):
  ...     return self.up(self.down(x))
  >>> variables = Coder().init(jax.random.key(0), jnp.ones((1, 3)))
  >>> sorted(variables['params']), list(variables['params']['up'])
  (['down', 'up'], ['Dense_0'])

  Args:
    fun: the method.
  """

  @functools.wraps(fun)
  def wrapper(self, *args, **kwargs):
    name = fun.__name__
    if not hasattr(self, '_compact_name_scope_modules'):
      raise ValueError(
        f'Cannot call compact_name_scope method {name!r} on a Module that has'
        f' not been setup. This is likely because you are calling {name!r} from'
        ' outside of init or apply.'
      )
    return self._compact_name_scope_modules[name](*args, **kwargs)

  wrapper.compact_name_scope = True  # type: ignore[attr-defined]
  wrapper.inner_fun = fun  # type: ignore[attr-defined]
  wrapper.nowrap = True  # type: ignore[attr-defined]
  return wrapper


def share_scope(module: ModuleBase, other: ModuleBase, /) -> None:
  """Makes two modules use one scope, so that their names do not nest.

  If `other` is below `module`, it takes its scope; otherwise `module` takes
  that of `other`. Submodules come along.

  >>> import jax, jax.numpy as jnp
  >>> import haiku_state.linen as nn
  >>> class Wrapper(nn.Module):
  ...   layer: nn.Module
  ...   def setup(self):
  ...     nn.share_scope(self, self.layer)
  ...   def __call__(self, x):
  ...     return 2 * self.layer(x)
  >>> variables = Wrapper(nn.Dense(2)).init(jax.random.key(0), jnp.ones((1, 3)))
  >>> sorted(variables['params'])
  ['bias', 'kernel']

  Args:
    module: a bound module.
    other: another.

  Raises:
    CallShareScopeOnUnboundModuleError: one of them is unbound.
    ValueError: both have a submodule of the same name.
  """
  if module.scope is None or other.scope is None:
    raise errors.CallShareScopeOnUnboundModuleError()
  below: Scope | None = other.scope
  while below is not None and below is not module.scope:
    below = below.parent
  if below is None:
    moved, scope = module, other.scope
  else:
    moved, scope = other, module.scope
  old = moved.scope
  _move(moved, scope)
  for child in moved._state.children.values():
    # Other children are variables, of which the collection is noted.
    if not isinstance(child, str) and child.scope.parent == old:
      if isinstance(child.scope.name, str):
        scope.reserve(child.scope.name)
      child.scope._move_below(scope)
      _move(child, child.scope)


def _move(module: ModuleBase, scope: Scope) -> None:
  vars(module)['scope'] = scope
  if 'module_name' in module.__dict__:
    move_in_haiku(module)
