"""Methods of modules: what happens around each call of one.

A method of the user is wrapped twice. Haiku's wrapper makes the module current,
so that `hk.get_parameter`, Haiku's interceptors and its naming work inside it.
Ours, around that, runs `setup` when it is due, tracks which module is running,
and gives compact methods their names back when they end.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import jax

from haiku_state import errors
from haiku_state.core import _frame
from haiku_state.core._run import Run
from haiku_state.linen._module.base import ModuleBase
from haiku_state.linen._module.binding import usable
from haiku_state.linen._module.context import (
  CallInfo,
  Calls,
  context,
  named_call_enabled,
  run_interceptors,
)
from haiku_state.linen._module.fields import detached
from haiku_state.linen._module.haiku_names import (
  enter_haiku,
  is_foreign_to_caller,
)
from haiku_state.linen._module.parts import as_part, haiku_method, is_method
from haiku_state.linen._module.state import SetupState
from haiku_state.linen._module.threads import call_at_rest

_F = TypeVar('_F', bound=Callable[..., Any])

# The attribute that says that a function has our wrapper already.
_WRAPPED = 'method_handler_wrapped'


def compact(fun: _F) -> _F:
  """Marks a method that may make submodules and variables where it uses them.

  Calling it again, on the same module, finds them by the same names. A class
  may have one such method.

  Example::

    >>> import haiku_state.linen as nn
    >>> class Block(nn.Module):
    ...   @nn.compact
    ...   def __call__(self, x):
    ...     return nn.relu(nn.Dense(4)(x))

  Args:
    fun: the method.
  """
  fun.compact = True  # type: ignore[attr-defined]
  return fun


def nowrap(fun: _F) -> _F:
  """Marks a method that is called as it is: a helper without variables.

  It may be called on an unbound module too, and modules that it makes belong to
  whoever calls it.

  >>> import jax, jax.numpy as jnp
  >>> import haiku_state.linen as nn
  >>> class Model(nn.Module):
  ...   @nn.nowrap
  ...   def width(self, x):
  ...     return 2 * x.shape[-1]
  ...   @nn.compact
  ...   def __call__(self, x):
  ...     return nn.Dense(self.width(x))(x)
  >>> y, _ = Model().init_with_output(jax.random.key(0), jnp.ones((1, 3)))
  >>> y.shape
  (1, 6)

  Args:
    fun: the method.
  """
  fun.nowrap = True  # type: ignore[attr-defined]
  return fun


def function_name(fn: Callable[..., Any]) -> str:
  """Returns the name of a function, through any `functools.partial`."""
  while isinstance(fn, functools.partial):
    fn = fn.func
  return getattr(fn, '__name__', 'unnamed_function')


def wrap_method(
  fun: Callable[..., Any],
  entered: Callable[..., Any],
  is_transparent: bool = False,
) -> Callable[..., Any]:
  """Returns a method with our wrapper around Haiku's.

  Args:
    fun: the function of the user.
    entered: the same with Haiku's wrapper.
    is_transparent: whether Haiku has none, so that what its modules are named
      after is the method that calls this one.
  """
  name = function_name(fun)
  is_compact = hasattr(fun, 'compact')
  is_setup = name == 'setup'

  @functools.wraps(fun)
  def wrapped(*args, **kwargs):
    # A callable in the body of a class need not be a method.
    if not args or not isinstance(args[0], ModuleBase):
      return fun(*args, **kwargs)
    self, *rest = args
    scope = self.scope
    if scope is None:
      return call_unbound(self, fun, wrapped, rest, kwargs)
    run = scope._run
    if run.is_at_rest:
      return call_at_rest(wrapped, args, kwargs)
    calls = context.current()
    if calls.is_base:
      return _call_outermost(wrapped, args, kwargs)
    state = self._state
    if 'module_name' not in self.__dict__:
      enter_haiku(self)  # It was bound at rest.
    if is_setup:
      is_recurrent, state.in_setup = state.in_setup, True
    elif state.setup_called is not SetupState.DONE:
      self._try_setup()
    if is_compact:
      is_recurrent, state.in_compact_method = state.in_compact_method, True
    stack, names = calls.module_stack, calls.method_names
    stack.append(self)
    names.append(names[-1] if is_transparent else name)
    try:
      with _named_operations(self, run, name):
        if context.call_infos and not is_setup:
          return _call_with_info(self, name, entered, rest, kwargs)
        if context.interceptors or calls.capture:
          return _call_observed(self, name, entered, rest, kwargs)
        return entered(*args, **kwargs)
    finally:
      if stack[-2] is not self:
        # Haiku tells a module of those made in its methods: here, in this call.
        self._submodules.clear()
      if is_compact:
        vars(self)['scope'] = self.scope.rewound()
      # Calls nest, by `super()` for example; only the outermost one ends it.
      if (is_compact or is_setup) and not is_recurrent:
        state.reset()
      names.pop()
      # The last of all: what is left there tells that this was not finished.
      stack.pop()

  setattr(wrapped, _WRAPPED, True)
  return wrapped


def _call_outermost(method: Callable[..., Any], args: Any, kwargs: Any) -> Any:
  """Calls a method where no other one runs, as in a function of Haiku's."""
  with context.begin(Calls(context.current())):
    return method(*args, **kwargs)


def profile_name(self: ModuleBase, method_name: str) -> str:
  """Returns the name, in profiles, of the operations of a method."""
  name = self.name or type(self).__name__
  return str(name) if method_name == '__call__' else f'{name}.{method_name}'


_UNNAMED = contextlib.nullcontext()


def _named_operations(self: ModuleBase, run: Run, method_name: str) -> Any:
  """Returns a context in which operations are named after a method."""
  if run.is_in_haiku:
    run.check_reachable()
    return _UNNAMED  # Haiku names them.
  if not named_call_enabled():
    return _UNNAMED
  return jax.named_scope(profile_name(self, method_name))


def call_unbound(
  self: ModuleBase,
  fun: Callable[..., Any],
  wrapped: Callable[..., Any],
  args: list[Any],
  kwargs: dict[str, Any],
) -> Any:
  """Calls a method of a module that has no scope.

  Raises:
    CallSetupUnboundModuleError: the method is `setup`.
    CallCompactUnboundModuleError: the method is compact.
  """
  bound = usable(self)
  if bound is not None:
    return wrapped(bound, *args, **kwargs)
  if function_name(fun) == 'setup':
    raise errors.CallSetupUnboundModuleError()
  if hasattr(fun, 'compact'):
    raise errors.CallCompactUnboundModuleError()
  calls = Calls(context.current())
  calls.module_stack.append(self)
  with context.begin(calls):
    if context.interceptors:
      return run_interceptors(
        fun, function_name(fun), self, tuple(args), kwargs
      )
    return fun(self, *args, **kwargs)


def _call_observed(self: ModuleBase, name: str, entered, args, kwargs) -> Any:
  """Calls a method through interceptors, and captures what it returns."""
  if context.interceptors:
    y = run_interceptors(entered, name, self, args, kwargs)
  else:
    y = entered(self, *args, **kwargs)
  wanted = context.current().capture
  if wanted and wanted(self, name):
    self.sow('intermediates', name, y)
  return y


def _call_with_info(self: ModuleBase, name: str, entered, args, kwargs) -> Any:
  """Calls a method and notes what `tabulate` shows of the call."""
  infos = context.call_infos[-1]
  index = infos.next_index()
  y = _call_observed(self, name, entered, args, kwargs)
  assert self.scope is not None
  shown = infos.represent((tuple(args), kwargs, y))
  infos.calls.append(
    CallInfo(
      index,
      self.path,
      # Detached, or Haiku would name it: a second call would take the name twice.
      self.clone(parent=detached),
      self.scope.rngs,
      self.scope.mutable,
      name,
      *shown,
    )
  )
  return y


def wrap_method_once(fun: Callable[..., Any]) -> Callable[..., Any]:
  """Returns a function as a method, wrapped unless it is already."""
  if hasattr(fun, _WRAPPED):
    return fun
  name = function_name(fun)
  method, part = haiku_method(name, fun), as_part(fun)

  def entered(self, *args, **kwargs):
    own = method if is_method(type(self), name, fun) else part
    return own(self, *args, **kwargs)

  return wrap_method(fun, entered)


def is_wrapped(fun: Any) -> bool:
  """Returns whether a function has our wrapper."""
  return hasattr(fun, _WRAPPED)


class DescriptorWrapper:
  """Marks a descriptor whose AttributeError is told from a missing name."""


def wrap_descriptor(descriptor: Any) -> Any:
  """Returns a descriptor whose errors are not taken for a missing attribute.

  When a property raises AttributeError, Python goes on to `__getattr__`, which
  would say that there is no such property.
  """
  if isinstance(descriptor, DescriptorWrapper):
    return descriptor
  body: dict[str, Any] = {}

  is_property = isinstance(descriptor, property)

  def get(self, obj, *args):
    try:
      if is_property and obj is not None and is_foreign_to_caller(obj):
        # Haiku's frame is asked in it for what is the module's.
        return _frame.at(obj.module_name, descriptor.__get__, obj, *args)
      return descriptor.__get__(obj, *args)
    except AttributeError as e:
      raise errors.DescriptorAttributeError() from e

  def set_(self, *args):
    descriptor.__set__(*args)

  def delete(self, *args):
    descriptor.__delete__(*args)

  def set_name(self, *args):
    descriptor.__set_name__(*args)

  def getattr_(self, name):
    return getattr(descriptor, name)

  # What a descriptor can do depends on which methods its type has.
  for name, method in (
    ('__get__', get),
    ('__set__', set_),
    ('__delete__', delete),
    ('__set_name__', set_name),
  ):
    if hasattr(descriptor, name):
      body[name] = method
  body['__getattr__'] = getattr_
  if hasattr(descriptor, '__isabstractmethod__'):
    body['__isabstractmethod__'] = descriptor.__isabstractmethod__
  return type('WrappedDescriptor', (DescriptorWrapper,), body)()


# Python calls these on modules in any phase; they have no variables.
_UNWRAPPED = frozenset(
  f'__{name}__'
  for name in (
    'eq ne repr init hash post_init new del init_subclass class_getitem'
    ' getattr getattribute setattr delattr dir reduce reduce_ex getstate'
    ' setstate copy deepcopy subclasshook instancecheck set_name'
  ).split()
)


def wrap_class_body(
  cls: Any,
  body: dict[str, Any],
) -> None:
  """Wraps the methods and descriptors in the body of a module class.

  Args:
    cls: the class, in which Haiku has wrapped plain methods already.
    body: the body as the user wrote it.
  """
  fields = cls.__dataclass_fields__
  own_methods = local_method_names(cls, exclude=_UNWRAPPED)
  for name, value in body.items():
    if name in fields:
      if inspect.isfunction(value):
        setattr(cls, name, value)  # A default, which Haiku took for a method.
    elif name in own_methods:
      setattr(cls, name, _wrap_callable(cls, name, value))
    elif _is_own_descriptor(value) and name not in ('__dict__', '__weakref__'):
      keep = hasattr(value, 'nowrap')
      setattr(cls, name, value if keep else wrap_descriptor(value))


def local_method_names(
  cls: type, exclude: Iterable[str] = ()
) -> tuple[str, ...]:
  """Returns the names of the methods that a class itself defines.

  Args:
    cls: the class.
    exclude: names to leave out.
  """
  return tuple(
    name
    for name, value in vars(cls).items()
    if callable(value)
    and not isinstance(value, (type, staticmethod, classmethod))
    and name not in exclude
  )


def _wrap_callable(cls: Any, name: str, value: Any) -> Any:
  if hasattr(value, 'nowrap') or is_wrapped(value):
    return value
  by_haiku = cls.__dict__.get(name)
  if by_haiku is value and _is_for_haiku(name, value):
    # Marked by `hk.transparent`.
    return wrap_method(value, value, is_transparent=True)
  if by_haiku is None or by_haiku is value:
    # Haiku leaves special methods, and callables that are no functions.
    return wrap_method_once(getattr(cls, name))
  return wrap_method(value, by_haiku)


def _is_for_haiku(name: str, value: Any) -> bool:
  """Returns whether Haiku wraps a value in the body of a class."""
  special = name.startswith('__') and name != '__call__'
  return inspect.isfunction(value) and not special


def _is_own_descriptor(value: Any) -> bool:
  """Returns whether a value is a property, or anything that works as one."""
  if callable(value) or isinstance(value, classmethod):
    return False
  return any(
    hasattr(value, name) for name in ('__get__', '__set__', '__delete__')
  )
