"""From functions of a module to pure functions of a variables dict."""

from __future__ import annotations

import functools
import inspect
import types
import weakref
from collections.abc import Callable
from typing import Any

from haiku_state import core, errors
from haiku_state.core.filters import CollectionFilter, DenyList, union_filters
from haiku_state.linen._module.base import CaptureFilter, ModuleBase
from haiku_state.linen._module.context import Calls, context
from haiku_state.linen._module.haiku_names import haiku_name
from haiku_state.linen._module.pure_methods import BoundPureMethod

DEFAULT_INIT_MUTABLE = DenyList('intermediates')

_METHODS = types.MethodType, BoundPureMethod


def _scope_function(
  fn: Callable[..., Any], module: ModuleBase, capture: CaptureFilter
) -> Callable[..., Any]:
  """Returns a function of a module as one of a scope."""

  @functools.wraps(fn)
  def scope_fn(scope, *args, **kwargs):
    with context.begin(_in_apply(capture)):
      bound = module.clone(parent=scope, _deep_clone=True)
      return fn(bound, *args, **kwargs)

  return scope_fn


def _in_apply(capture: CaptureFilter) -> Calls:
  """Returns the calls of a run that begins."""
  calls = Calls(context.current())
  calls.capture, calls.is_in_apply = capture, True
  return calls


def capture_call_intermediates(module: Any, method_name: str) -> bool:
  """Returns whether a call is captured where no other choice is given."""
  del module
  return method_name == '__call__'


def _capturing(
  capture: CaptureFilter, mutable: CollectionFilter
) -> tuple[CaptureFilter, CollectionFilter]:
  """Returns which calls to capture, and what must be mutable for it."""
  if capture is True:
    capture = capture_call_intermediates
  if capture:
    mutable = union_filters(mutable, 'intermediates')
  return capture, mutable


def apply(
  fn: Callable[..., Any],
  module: ModuleBase,
  mutable: CollectionFilter = False,
  capture_intermediates: CaptureFilter = False,
) -> Callable[..., Any]:
  """Turns a function of a module into one of a variables dict.

  Example::

    >>> import haiku_state.linen as nn
    >>> import jax, jax.numpy as jnp
    >>> def twice(dense, x):
    ...   return dense(dense(x))
    >>> dense = nn.Dense(2)
    >>> variables = nn.init(twice, dense)(jax.random.key(0), jnp.ones((1, 2)))
    >>> nn.apply(twice, dense)(variables, jnp.ones((1, 2))).shape
    (1, 2)

  Args:
    fn: takes the bound module, then any arguments.
    module: the module.
    mutable: which collections may be changed.
    capture_intermediates: whether to store what methods return in the
      collection `intermediates`: True for `__call__`, or a function of module
      and name of the method.

  Returns:
    A function of `(variables, *args, rngs=None, **kwargs)`. It returns what
    `fn` returns, and with it, unless `mutable` is False, the mutable
    collections after the call.
  """
  capture, mutable = _capturing(capture_intermediates, mutable)
  scope_fn = _scope_function(fn, module, capture)
  return core.scope.apply(scope_fn, mutable, haiku_root=haiku_name(module))


def init_with_output(
  fn: Callable[..., Any],
  module: ModuleBase,
  mutable: CollectionFilter = DEFAULT_INIT_MUTABLE,
  capture_intermediates: CaptureFilter = False,
) -> Callable[..., tuple[Any, Any]]:
  """Turns a function of a module into one that makes its variables.

  >>> import jax, jax.numpy as jnp
  >>> import haiku_state.linen as nn
  >>> twice = lambda module, x: 2 * module(x)
  >>> y, variables = nn.init_with_output(twice, nn.Dense(2))(
  ...   jax.random.key(0), jnp.ones((1, 3)))
  >>> y.shape, sorted(variables['params'])
  ((1, 2), ['bias', 'kernel'])

  Args:
    fn: takes the bound module, then any arguments.
    module: the module.
    mutable: which collections are made.
    capture_intermediates: see `apply`.

  Returns:
    A function of `(rngs, *args, **kwargs)` that returns what `fn` returns, and
    the variables.
  """
  capture, mutable = _capturing(capture_intermediates, mutable)
  scope_fn = _scope_function(fn, module, capture)
  return core.scope.init(scope_fn, mutable, haiku_root=haiku_name(module))


def init(
  fn: Callable[..., Any],
  module: ModuleBase,
  mutable: CollectionFilter = DEFAULT_INIT_MUTABLE,
  capture_intermediates: CaptureFilter = False,
) -> Callable[..., Any]:
  """Turns a function of a module into one that makes and returns variables.

  >>> import jax, jax.numpy as jnp
  >>> import haiku_state.linen as nn
  >>> twice = lambda module, x: 2 * module(x)
  >>> init = nn.init(twice, nn.Dense(2))
  >>> variables = init(jax.random.key(0), jnp.ones((1, 3)))
  >>> sorted(variables['params'])
  ['bias', 'kernel']

  Args:
    fn: takes the bound module, then any arguments.
    module: the module.
    mutable: which collections are made.
    capture_intermediates: see `apply`.

  Returns:
    A function of `(rngs, *args, **kwargs)` that returns the variables.
  """
  init_fn = init_with_output(fn, module, mutable, capture_intermediates)

  @functools.wraps(init_fn)
  def wrapper(*args, **kwargs):
    return init_fn(*args, **kwargs)[1]

  return wrapper


# Functions that were found to take at least one argument.
_takes_module: weakref.WeakSet[Callable[..., Any]] = weakref.WeakSet()


def resolve_method(
  module: ModuleBase, method: Callable[..., Any] | str | None
) -> Callable[..., Any]:
  """Returns the function that `method=` stands for, unbound.

  Args:
    module: the module.
    method: None for `__call__`, the name of a method or of a submodule, a
      method, or a function of a module.

  Raises:
    TypeError: the name is that of something else.
    ApplyModuleInvalidMethodError: it is nothing that takes a module.
  """
  if isinstance(method, str):
    name = method
    method = getattr(module, name)
    if not callable(method):
      raise TypeError(
        f"'{type(module).__name__}.{name}' must be a callable, got"
        f' {type(method)}.'
      )
    if isinstance(method, ModuleBase):
      # The submodule must be that of the bound copy.
      return lambda m, *args, **kwargs: getattr(m, name)(*args, **kwargs)
  elif method is None:
    method = module.__call__
  if isinstance(method, _METHODS) and isinstance(method.__self__, ModuleBase):
    method = method.__func__
  _check_takes_module(method)
  assert method is not None
  return method


def _check_takes_module(method: Any) -> None:
  try:
    if method in _takes_module:
      return
  except TypeError:
    pass  # Not hashable, or not weakly referable: looked at each time.
  if not callable(method) or not inspect.signature(method).parameters:
    raise errors.ApplyModuleInvalidMethodError(method)
  try:
    _takes_module.add(method)
  except TypeError:
    pass
