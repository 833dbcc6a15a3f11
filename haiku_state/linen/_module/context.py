"""What is going on in this thread: which method of which module runs.

All ambient state of the module system is here. It belongs to one thread, and to
the outermost call there: it is gone with that.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from haiku_state._extents import Extent, Extents, restored
from haiku_state.configurations import config
from haiku_state.linen._module.base import ModuleBase


class Calls(Extent):
  """The calls that go on, one in the other, since the outermost one.

  Whatever is pushed here is gone when that is over, also if it was cut off.

  Attributes:
    module_stack: the modules whose methods run, the innermost last; None for
      a function that belongs to no module.
    method_names: the names of those methods.
    capture: which calls the run captures as intermediates.
    is_in_apply: whether it is inside of our `init` or `apply`.
    half_done: how many modules are being set up or adopted.
    is_base: whether no call goes on: nothing may be pushed.
  """

  __slots__ = (
    'module_stack',
    'method_names',
    'capture',
    'is_in_apply',
    'half_done',
    'is_base',
  )

  def __init__(self, around: Calls | None = None):
    self.module_stack: list[Any] = [None]
    self.method_names: list[str] = ['__call__']
    self.capture: Any = False
    self.is_in_apply = False
    self.half_done = 0
    self.is_base = around is None
    if around is not None:
      self.module_stack = around.module_stack.copy()
      self.method_names = around.method_names.copy()
      self.capture = around.capture
      self.is_in_apply = around.is_in_apply

  def ends_as_it_began(self, around: Calls) -> bool:
    """Returns whether all that was begun since `around` was finished.

    Each call takes its module off the stack last of all.
    """
    is_same = len(self.module_stack) == len(around.module_stack)
    return is_same and not self.half_done


class _Context(Extents[Calls]):
  """What goes on in one thread.

  Attributes:
    interceptors: the interceptors that are active, the innermost last.
    call_infos: lists that collect what `tabulate` shows of each call.
  """

  def __init__(self) -> None:
    super().__init__(Calls)
    self.interceptors: tuple[Interceptor, ...] = ()
    self.call_infos: tuple[CallInfos, ...] = ()

  def __reduce__(self) -> str:
    # By its name: the methods of a class that is pickled by value refer to it.
    return 'context'

  @property
  def module_stack(self) -> Sequence[Any]:
    """What runs, for programs that keep the stack and look at it later."""
    return _ModuleStack()


class _ModuleStack(Sequence[Any]):
  """The modules whose methods run now, the innermost last."""

  def __getitem__(self, index: Any) -> Any:
    return context.current().module_stack[index]

  def __len__(self) -> int:
    return len(context.current().module_stack)


@dataclasses.dataclass(frozen=True)
class InterceptorContext:
  """What an interceptor is told of the call.

  Attributes:
    module: the module whose method is called.
    method_name: the name of the method.
    orig_method: the method without any interceptor, bound to the module.
  """

  module: ModuleBase
  method_name: str
  orig_method: Callable[..., Any]


Interceptor = Callable[
  [Callable[..., Any], tuple[Any, ...], dict[str, Any], InterceptorContext], Any
]


class CallInfo(NamedTuple):
  """One call of a method, as `tabulate` shows it.

  Attributes:
    index: its place in the order in which calls began.
    path: the path of the module.
    module: a copy of the module.
    rngs: the key streams of its scope.
    mutable: which collections were mutable.
    method: the name of the method.
    args: shapes and dtypes of the arguments.
    kwargs: shapes and dtypes of the keyword arguments.
    outputs: shapes and dtypes of the outputs.
  """

  index: int
  path: tuple[str, ...]
  module: Any
  rngs: dict[str, Any] | None
  mutable: Any
  method: str
  args: tuple[Any, ...]
  kwargs: dict[str, Any]
  outputs: Any


class CallInfos:
  """Calls in the order in which they ended, numbered as they began.

  Args:
    represent: returns what is shown of arguments and outputs.
  """

  def __init__(self, represent: Callable[[Any], Any]) -> None:
    self.represent = represent
    self.calls: list[CallInfo] = []
    self._next = 0

  def next_index(self) -> int:
    self._next += 1
    return self._next - 1


context = _Context()


@contextlib.contextmanager
def collecting_calls(represent: Callable[[Any], Any]) -> Iterator[CallInfos]:
  """Returns a context in which calls of methods are collected: `CallInfos`."""
  infos, before = CallInfos(represent), context.call_infos
  with restored(lambda: setattr(context, 'call_infos', before)):
    context.call_infos = (*before, infos)
    yield infos


@contextlib.contextmanager
def intercept_methods(interceptor: Interceptor) -> Iterator[None]:
  """Returns a context in which calls of methods go through a function.

  Interceptors nest: the one entered last is nearest to the method. Methods
  marked by `nowrap`, `__init__`, `__eq__`, `__hash__`, `__repr__` and
  `__post_init__`, fields and properties are not intercepted. Haiku's own
  `hk.intercept_methods` works at the same time, inside these.

  Example::

    >>> import haiku_state.linen as nn
    >>> import jax, jax.numpy as jnp
    >>> def double(next_fun, args, kwargs, context):
    ...   return 2 * next_fun(*args, **kwargs)
    >>> class Add(nn.Module):
    ...   def __call__(self, x):
    ...     return x + 1
    >>> with nn.intercept_methods(double):
    ...   print(Add().apply({}, 1))
    4

  Args:
    interceptor: called as `interceptor(next_fun, args, kwargs, context)` with
      the function that continues the call, its arguments and an
      `InterceptorContext`.
  """
  before = context.interceptors
  with restored(lambda: setattr(context, 'interceptors', before)):
    context.interceptors = (*before, interceptor)
    yield


def run_interceptors(
  method: Callable[..., Any],
  method_name: str,
  module: ModuleBase,
  args: tuple[Any, ...],
  kwargs: dict[str, Any],
) -> Any:
  """Calls a method through the active interceptors."""
  fun = functools.partial(method, module)
  about = InterceptorContext(module, method_name, fun)

  def intercepted(interceptor, inner):
    @functools.wraps(inner)
    def wrapped(*args, **kwargs):
      return interceptor(inner, args, kwargs, about)

    return wrapped

  for interceptor in reversed(context.interceptors):
    fun = intercepted(interceptor, fun)
  return fun(*args, **kwargs)


class _NamedCall:
  """Whether operations carry the name of their module in profiles."""

  enabled: bool = config.flax_profile


def enable_named_call() -> None:
  """Names the operations of modules in profiles, as is the default.

  >>> import haiku_state.linen as nn
  >>> nn.disable_named_call()
  >>> nn.enable_named_call()
  >>> from haiku_state.linen.transforms import named_call_enabled
  >>> named_call_enabled()
  True
  """
  _NamedCall.enabled = True


def disable_named_call() -> None:
  """Leaves operations in profiles without the method they belong to.

  >>> import haiku_state.linen as nn
  >>> nn.disable_named_call()
  >>> from haiku_state.linen.transforms import named_call_enabled
  >>> named_call_enabled()
  False
  >>> nn.enable_named_call()
  """
  _NamedCall.enabled = False


@contextlib.contextmanager
def override_named_call(enable: bool = True) -> Iterator[None]:
  """Returns a context in which operations are named in profiles, or not.

  >>> import haiku_state.linen as nn
  >>> from haiku_state.linen.transforms import named_call_enabled
  >>> with nn.override_named_call(False):
  ...   named_call_enabled()
  False
  """
  before = _NamedCall.enabled
  with restored(lambda: setattr(_NamedCall, 'enabled', before)):
    _NamedCall.enabled = enable
    yield


def named_call_enabled() -> bool:
  """Returns whether operations carry the name of their module in profiles."""
  return _NamedCall.enabled
