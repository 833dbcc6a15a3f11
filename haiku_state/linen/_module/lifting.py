"""From lifted functions of scopes to lifted methods of modules.

A module reaches scopes: its own, those of the modules and variables in its
fields, and those of the modules and variables in the arguments of the call.
All are lifted together. Inside, copies of the modules are bound to the lifted
scopes, the same copy where it was the same module outside.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax

from haiku_state import errors, serialization, struct
from haiku_state._extents import restored
from haiku_state.core.filters import DenyList
from haiku_state.core.keys import LazyRng
from haiku_state.core.scope import Scope, Variable
from haiku_state.linen._module import submodules
from haiku_state.linen._module.base import ModuleBase
from haiku_state.linen._module.binding import bind_in_haiku, usable
from haiku_state.linen._module.calls import resolve_method
from haiku_state.linen._module.fields import is_haikus
from haiku_state.linen._module.methods import wrap_method_once
from haiku_state.linen._module.parts import LiftedNames
from haiku_state.linen._module.threads import in_use


@struct.dataclass
class _Slot:
  """Stands, among the arguments of a call, for a module or a variable.

  Attributes:
    index: which of those that the call reaches.
    kind: what else is static about it: it makes equal calls equal.
  """

  index: int = struct.field(pytree_node=False)
  kind: Any = struct.field(pytree_node=False)


class Reached:
  """The modules and variables that one call reaches.

  Args:
    module: the module whose method is called.
    args: the arguments.
    kwargs: the keyword arguments.

  Attributes:
    scopes: the scopes of all that is reached.
    args: the arguments, with slots for modules and variables.
    kwargs: the keyword arguments, likewise.
    slots: what the slots stand for.
  """

  def __init__(self, module: ModuleBase, args: Any, kwargs: Any):
    self.module = module
    # An unbound module has None, which is no leaf of a pytree.
    self.scopes: list[Any] = []
    self.slots: list[ModuleBase | Variable] = []
    self._places: dict[Any, int] = {}
    self.args, self.kwargs = jax.tree.map(self._take_out, (args, kwargs))
    self._visit(module)

  def _take_out(self, x: Any) -> Any:
    """Returns a slot for a module or variable, anything else as it is."""
    if isinstance(x, Variable):
      if not isinstance(x.scope, Scope):
        return x
      kind: Any = (x.collection, x.name, x.unbox)
    elif isinstance(x, ModuleBase):
      if is_haikus(x):
        bind_in_haiku(x)  # Inside it could not be: that is another run.
      if x.scope is None:
        return x
      kind = weakref.ref(type(x))
    else:
      return x
    self._visit(x)
    self.slots.append(x)
    return _Slot(len(self.slots) - 1, kind)

  def _visit(self, x: Any) -> None:
    """Notes the scope of a module or variable, and what it reaches."""
    key = x._id if isinstance(x, ModuleBase) else id(x)
    if key in self._places:
      return
    self._places[key] = -1  # It is being visited.
    if isinstance(x, ModuleBase):
      with in_use(x) as own:
        own._try_setup(shallow=True)
      for value in _attributes(x).values():
        if not submodules.is_plain(value):
          for leaf in jax.tree.leaves(value):
            if _is_bound(leaf):
              self._visit(leaf)
    self._places[key] = len(self.scopes)
    self.scopes.append(x.scope)

  def bind(
    self, scopes: Sequence[Scope], args: Any, kwargs: Any, cls: Any = None
  ) -> tuple[ModuleBase, Any, Any]:
    """Returns copies of what was reached, bound to other scopes.

    Args:
      scopes: scopes in the order of `self.scopes`.
      args: the arguments, with slots.
      kwargs: the keyword arguments, with slots.
      cls: the class of the copy of the module; by default its own.

    Returns:
      The copy of the module, and the arguments without slots.
    """
    copies: dict[Any, Any] = {}

    def copy(x: Any, cls: Any = None) -> Any:
      if not _is_bound(x) and x is not self.module:
        return x
      key = x._id if isinstance(x, ModuleBase) else id(x)
      if key not in copies:
        scope = scopes[self._places[key]]
        if isinstance(x, Variable):
          copies[key] = Variable(scope, x.collection, x.name, x.unbox)
        else:
          attrs = {
            name: value
            if submodules.is_plain(value)
            else jax.tree.map(copy, value)
            for name, value in _attributes(x).items()
          }
          copies[key] = (cls or type(x))(parent=scope, **attrs)
      return copies[key]

    def put_back(x: Any) -> Any:
      return copy(self.slots[x.index]) if isinstance(x, _Slot) else x

    args, kwargs = jax.tree.map(
      put_back, (args, kwargs), is_leaf=lambda x: isinstance(x, _Slot)
    )
    return copy(self.module, cls), args, kwargs


def _is_bound(x: Any) -> bool:
  return isinstance(x, (ModuleBase, Variable)) and isinstance(x.scope, Scope)


def _attributes(module: ModuleBase) -> dict[str, Any]:
  """Returns the fields of a module, its place left out, with its name."""
  attrs = {name: getattr(module, name) for name in module._field_names}
  attrs['name'] = module.name
  return attrs


def _check_result(result: Any, method_name: str | None) -> None:
  """Raises if a lifted method returns what lives inside of the transform."""
  leaves = jax.tree.leaves(result)
  if any(isinstance(x, (ModuleBase, Variable)) for x in leaves):
    raise errors.TransformedMethodReturnValueError(method_name)


def _usable(module: Any) -> Any:
  """Returns the module, bound in Haiku if that is where it is called.

  An unbound one is lifted without variables: its method may need none.
  """
  return module if module.scope is not None else usable(module) or module


class _Body:
  """One call of a lifted method, as a function of scopes."""

  def __init__(
    self,
    fn: Callable[..., Any],
    reached: Reached,
    cls: Any,
    names: LiftedNames,
  ):
    self.fn = fn
    self.reached = reached
    self.cls = cls
    self.names = names
    self.state = reached.module._state.export()

  def __call__(self, scopes: Any, args: Any, kwargs: Any) -> Any:
    bound, args, kwargs = self.reached.bind(scopes, args, kwargs, self.cls)
    vars(bound)['_state'] = self.state.export()
    self.names.enter(bound)
    result = self.fn(bound, *args, **kwargs)
    self.reached.module._state.reimport(bound._state)
    _check_result(result, getattr(self.fn, '__name__', None))
    return result


def lift_methods(
  transform: Callable[..., Any],
  fns: Sequence[Callable[..., Any]],
  *trafo_args: Any,
  cls: Any = None,
  multi_scope: bool = True,
  **trafo_kwargs: Any,
) -> Callable[..., Any]:
  """Returns a method that runs other methods inside of a lifted transform.

  Args:
    transform: the lifted transform of functions of scopes.
    fns: the methods that it takes, wrapped as methods.
    *trafo_args: further arguments of the transform.
    cls: the class of the modules inside; by default that of those outside.
    multi_scope: whether the call may reach several scopes.
    **trafo_kwargs: keyword arguments of the transform.
  """

  @functools.wraps(fns[0])
  def method(self, *args, **kwargs):
    with in_use(_usable(self)) as self:
      return call(self, args, kwargs)

  def call(self, args, kwargs):
    reached = Reached(self, args, kwargs)
    names = LiftedNames(self, fns)
    scopes: Any = reached.scopes
    if not multi_scope:
      scopes = _only(scopes)

    def as_scope_fn(fn):
      body = _Body(fn, reached, cls, names)

      def scope_fn(scopes, *args, **kwargs):
        return body(scopes if multi_scope else [scopes], args, kwargs)

      return _named_like(fn, scope_fn)

    lifted = transform(*map(as_scope_fn, fns), *trafo_args, **trafo_kwargs)
    result = lifted(scopes, *reached.args, **reached.kwargs)
    names.leave()
    return result

  return method


def _named_like(fn: Callable[..., Any], scope_fn: Any) -> Any:
  """Gives a function of scopes the name of a method, but not its signature.

  JAX names arguments in its errors after the signature.
  """
  functools.update_wrapper(scope_fn, fn)
  del scope_fn.__wrapped__
  return scope_fn


def _only(scopes: Sequence[Scope]) -> Scope:
  """Returns the scope of a transform that takes one.

  Raises:
    NotImplementedError: there are more. Such transforms have arguments in the
      structure of the scopes, of which the user sees only one.
  """
  if len(scopes) != 1:
    raise NotImplementedError(
      'This transform does not yet support'
      ' Modules that include other Modules passed as arguments.'
    )
  return scopes[0]


def lift_methods_cached(
  transform: Callable[..., Any],
  fns: Sequence[Callable[..., Any]],
  *trafo_args: Any,
  cls: Any = None,
  **trafo_kwargs: Any,
) -> Callable[..., Any]:
  """Like `lift_methods`, for a transform that keeps what it has traced.

  One traced function serves all modules that are alike: it gets the module of
  the call from a key that is equal for modules that are.
  """

  def as_scope_fn(fn):
    # Its name is that of the function in what JAX lowers, as Flax has it.
    def core_fn(scopes, key, *args, **kwargs):
      result = key.body(fn, cls)(scopes, args, kwargs)
      if key.names.has_parts:
        # Here: when JAX has compiled the function, it does not run.
        made[key] = key.names.made
      return result

    return core_fn

  made: dict[_StaticKey, set[str]] = {}
  lifted = transform(*map(as_scope_fn, fns), *trafo_args, **trafo_kwargs)

  @functools.wraps(fns[0])
  def method(self, *args, **kwargs):
    with in_use(_usable(self)) as self, _forked_rngs(self.scope):
      reached = Reached(self, args, kwargs)
      key = _StaticKey(reached, LiftedNames(self, fns))
      result = lifted(reached.scopes, key, *reached.args, **reached.kwargs)
      if key.names.has_parts:
        key.names.made = made[key]
        key.names.leave()
      return result

  return method


@contextlib.contextmanager
def _forked_rngs(scope: Any) -> Iterator[None]:
  """Draws a key from each stream, which becomes the root key inside.

  A traced function can then be used at another path: the names of the path are
  not folded in inside.
  """
  if scope is None:
    yield
    return
  streams, suffix = scope._streams, scope._suffix
  set_of = vars(scope).update
  with restored(lambda: set_of(_streams=streams, _suffix=suffix)):
    forked = {name: LazyRng.create(scope.make_rng(name)) for name in streams}
    set_of(_streams=forked, _suffix=())
    yield


class _StaticKey:
  """Says all that is static about a call; equal for calls that are alike.

  JAX keeps the key as long as what it has compiled, out of sight of Python's
  garbage collector. So it holds neither modules nor their classes: a class has
  the compiled function in its methods, and would keep itself alive.

  Args:
    reached: what the call reaches.
    names: the names of Haiku's modules that are taken.
  """

  def __init__(self, reached: Reached, names: LiftedNames):
    self._reached = weakref.ref(reached)
    self.names = names
    # Not just its hash: that of a function is its address, which another one
    # may get when it is gone.
    seen: dict[int, int] = {}
    self._fingerprint = tuple(
      _fingerprint(x, (), seen) for x in (reached.module, *reached.slots)
    )
    if names.taken:
      self._fingerprint += (names.taken,)
    self._hash = hash(self._fingerprint)

  def __hash__(self) -> int:
    return self._hash

  def __eq__(self, other: Any) -> bool:
    return (
      isinstance(other, _StaticKey)
      and self._hash == other._hash
      and self._fingerprint == other._fingerprint
    )

  def body(self, fn: Callable[..., Any], cls: Any) -> _Body:
    """Returns the call, as a function of scopes.

    Args:
      fn: the method.
      cls: the class of the modules inside; by default their own.
    """
    reached = self._reached()
    assert reached is not None
    return _Body(fn, reached, cls, self.names)


def _fingerprint(x: Any, path: tuple[str, ...], seen: dict[Any, int]) -> Any:
  """Returns a hashable for all that can change what a method traces to.

  Args:
    x: a module, a variable, or the value of a field.
    path: where it is, for errors.
    seen: the modules so far; a second mention is a number.

  Raises:
    ValueError: a value is not hashable.
  """

  def named(name: str, value: Any) -> tuple[str, Any]:
    return name, _fingerprint(value, (*path, name), seen)

  if isinstance(x, str):
    return x
  if hasattr(x, '__fn_or_cls__'):  # A config object of PAX.
    return _fingerprint(x.__fn_or_cls__, path, seen)
  if isinstance(x, ModuleBase):
    return _module_fingerprint(x, path, seen)
  if isinstance(x, Variable):
    return Variable, x.collection, x.name, x.unbox
  if isinstance(x, DenyList):
    return DenyList, named('deny', x.deny)
  if dataclasses.is_dataclass(x):
    return type(x), tuple(
      named(f.name, getattr(x, f.name))
      for f in dataclasses.fields(x)
      if hasattr(x, f.name)
    )
  if not isinstance(x, Mapping) and serialization.is_serializable(x):
    state = serialization.to_state_dict(x)
    return type(x), _fingerprint(state, path, seen)
  if isinstance(x, Mapping):
    return tuple(named(str(k), v) for k, v in x.items())
  if isinstance(x, Iterable):
    return tuple(named(str(i), v) for i, v in enumerate(x))
  _check_hashable(path, x)
  return x


def _module_fingerprint(module: ModuleBase, path, seen) -> Any:
  if module._id in seen:
    return weakref.ref(type(module)), seen[module._id]
  seen[module._id] = len(seen)

  def named(name: str, value: Any) -> tuple[str, Any]:
    return name, _fingerprint(value, (*path, name), seen)

  parts = [named(n, getattr(module, n)) for n in module._field_names]
  state = module._state
  parts.append(('in_compact_method', state.in_compact_method))
  parts.append(('in_setup', state.in_setup))
  parts.append(('setup_called', state.setup_called))
  parts.append(('is_initialized', state.is_initialized))
  parts.append(named('autoname_cursor', state.autoname_cursor))
  scope = module.scope
  if scope is not None:
    parts.append(named('mutable', scope.mutable))
    parts.append(named('flags', scope.flags))
    parts.append(named('rng_counts', scope.rng_counters))
    parts.append(named('reservations', scope.reservations))
  return weakref.ref(type(module)), tuple(parts)


def _check_hashable(path: tuple[str, ...], x: Any) -> None:
  try:
    hash(x)
  except Exception as e:
    raise ValueError(f"Value at '{'/'.join(path)}' is not hashable: {e}") from e


def is_module_class(target: Any) -> bool:
  """Returns whether a target is a module class, or a partial of one."""
  while isinstance(target, functools.partial):
    target = target.func
  return inspect.isclass(target) and issubclass(target, ModuleBase)


def lift(
  transform: Callable[..., Any],
  target: Any,
  *trafo_args: Any,
  methods: Any = None,
  lifter: Callable[..., Any] = lift_methods,
  **trafo_kwargs: Any,
) -> Any:
  """Returns a module class, or a method, lifted.

  Args:
    transform: the lifted transform of functions of scopes.
    target: a module class, a partial of one, or a function whose first argument
      is a module.
    *trafo_args: further arguments of the transform.
    methods: of a class, the methods to lift: None for `__call__`, a sequence of
      names, or the arguments of the transform by name of the method.
    lifter: `lift_methods` or `lift_methods_cached`.
    **trafo_kwargs: keyword arguments of the transform.

  Raises:
    TransformTargetError: the target is none of these: an instance, perhaps.
    ValueError: `methods` is none of these.
  """
  if is_module_class(target):
    options = _method_options(methods, trafo_args, trafo_kwargs)
    return _lift_class(transform, target, options, lifter)
  if not callable(target) or isinstance(target, ModuleBase):
    raise errors.TransformTargetError(target)
  method = wrap_method_once(target)
  return lifter(transform, [method], *trafo_args, **trafo_kwargs)


def _method_options(methods: Any, args: Any, kwargs: Any) -> dict[str, Any]:
  """Returns the arguments of the transform for each method."""
  if methods is None:
    return {'__call__': (args, kwargs)}
  if isinstance(methods, (list, tuple)):
    return {name: (args, kwargs) for name in methods}
  if isinstance(methods, dict):
    return {name: ((), options) for name, options in methods.items()}
  raise ValueError(
    'transform methods argument must be None, tuple, list, or dict.'
  )


def _lift_class(
  transform: Callable[..., Any],
  target: Any,
  options: dict[str, Any],
  lifter: Callable[..., Any],
) -> Any:
  """Returns a subclass whose methods run inside of the transform."""
  if isinstance(target, functools.partial):
    lifted = _lift_class(transform, target.func, options, lifter)
    return functools.partial(lifted, *target.args, **target.keywords)
  body: dict[str, Any] = {
    name: lifter(
      transform, [getattr(target, name)], *args, cls=target, **kwargs
    )
    for name, (args, kwargs) in options.items()
  }
  # It would be that of this file.
  body['__module__'] = 'haiku_state.linen.transforms'
  name = transform.__name__.capitalize() + target.__name__
  return type(target)(name, (target,), body)


def lift_call(
  transform: Callable[..., Any],
  targets: Sequence[Callable[..., Any]],
  module: ModuleBase,
  *args: Any,
  multi_scope: bool = True,
  **options: Any,
) -> Any:
  """Calls functions of a module inside of a transform that runs them at once.

  Args:
    transform: takes functions of scopes, the scopes, and the arguments.
    targets: functions of a module, or its methods.
    module: the module.
    *args: arguments, which may hold modules and variables.
    multi_scope: see `lift_methods`.
    **options: keyword arguments of the transform itself. They say how to lift,
      hold nothing that is lifted, and need be no pytrees.

  Raises:
    ValueError: a target is a class, or nothing that can be called.
  """
  for target in targets:
    if is_module_class(target):
      raise ValueError(
        f'The {transform.__name__} transform can only be applied on a Module'
        ' method. That is function that takes a Module instance as its first'
        ' arg.'
      )
    if not callable(target):
      raise ValueError('transform target must be callable')
  fns = [wrap_method_once(resolve_method(module, t)) for t in targets]

  def run(*scope_fns):
    return functools.partial(transform, *scope_fns, **options)

  method = lift_methods(run, fns, multi_scope=multi_scope)
  return method(module, *args)
