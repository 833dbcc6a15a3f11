"""Modules: the building blocks of models, as in Flax linen, on Haiku."""

from __future__ import annotations

import types
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, Union, overload

import jax
import jax.numpy as jnp

from haiku_state import core, errors, ids, traceback_util
from haiku_state.core.filters import CollectionFilter
from haiku_state.core.frozen_dict import FrozenDict as FrozenDict
from haiku_state.core.scope import FrozenVariableDict as FrozenVariableDict
from haiku_state.core.scope import Scope, Variable
from haiku_state.core.scope import VariableDict as VariableDict
from haiku_state.linen._module import binding, calls, methods, submodules
from haiku_state.linen._module.arguments import merge_param as merge_param
from haiku_state.linen._module.base import CaptureFilter, ModuleBase
from haiku_state.linen._module.calls import DEFAULT_INIT_MUTABLE
from haiku_state.linen._module.calls import apply as apply
from haiku_state.linen._module.calls import (
  capture_call_intermediates as capture_call_intermediates,
)
from haiku_state.linen._module.calls import init as init
from haiku_state.linen._module.calls import (
  init_with_output as init_with_output,
)
from haiku_state.linen._module.context import CallInfo, context
from haiku_state.linen._module.context import (
  disable_named_call as disable_named_call,
)
from haiku_state.linen._module.context import (
  enable_named_call as enable_named_call,
)
from haiku_state.linen._module.context import (
  override_named_call as override_named_call,
)
from haiku_state.linen._module.fields import (
  PARENT_REF,
  check_attribute,
  detached,
  is_haikus,
  make_dataclass,
  parent_ref,
  unspecified,
)
from haiku_state.linen._module.fields import (
  # Programs that document their modules import it by Flax's name.
  Unspecified as _Sentinel,
)
from haiku_state.linen._module.methods import compact as compact
from haiku_state.linen._module.methods import nowrap as nowrap
from haiku_state.linen._module.methods import (
  wrap_method_once as wrap_method_once,
)
from haiku_state.linen._module.pure_methods import pure_method
from haiku_state.linen._module.repr import module_repr
from haiku_state.linen._module.sharing import (
  compact_name_scope as compact_name_scope,
)
from haiku_state.linen._module.sharing import share_scope as share_scope
from haiku_state.linen._module.state import (
  UNINITIALIZED,
  ModuleState,
  SetupState,
)
from haiku_state.linen._module.threads import in_use
from haiku_state.linen.kw_only_dataclasses import field

if TYPE_CHECKING:
  import contextlib
  import dataclasses

  from haiku_state.core.meta import AxisMetadata
  from haiku_state.linen._module import checked
  from haiku_state.linen._module.checked import HaikuModule, ModuleMeta
else:
  from haiku import Module as HaikuModule

  from haiku_state.linen._module.context import (
    InterceptorContext as InterceptorContext,
  )
  from haiku_state.linen._module.context import (
    intercept_methods as intercept_methods,
  )
  from haiku_state.linen._module.metaclass import ModuleMeta

traceback_util.register_exclusion(__file__)

T = TypeVar('T')
K = TypeVar('K')
M = TypeVar('M', bound='Module')
R = TypeVar('R')
RNGs = Union[jax.Array, Mapping[str, jax.Array]]

# Python asks for these when it copies and pickles; a module has none.
_COPY_METHODS = frozenset(
  {
    '__getstate__',
    '__setstate__',
    '__getnewargs_ex__',
    '__reduce__',
    '__reduce_ex__',
    '__copy__',
    '__deepcopy__',
  }
)


def tuple_reduce(xs: Any, x: Any) -> Any:
  """Returns the tuple of what was sown so far with one more value."""
  return xs + (x,)


def tuple_init() -> tuple[()]:
  """Returns what `sow` begins with."""
  return ()


class Module(ModuleBase, HaikuModule, metaclass=ModuleMeta):  # type: ignore
  """The base class of layers and models.

  A subclass is a dataclass: its fields are its hyper-parameters. Submodules and
  variables are declared in `setup`, or in one method marked by `compact`. A
  module is made without values; `init` makes its variables, `apply` calls it
  with them. It is a Haiku module too: inside of `hk.transform` it is called as
  such.

  Example::

    >>> import haiku_state.linen as nn
    >>> import jax, jax.numpy as jnp
    >>> class MLP(nn.Module):
    ...   features: int
    ...   @nn.compact
    ...   def __call__(self, x):
    ...     x = nn.relu(nn.Dense(self.features)(x))
    ...     return nn.Dense(1)(x)
    >>> x = jnp.ones((2, 3))
    >>> variables = MLP(4).init(jax.random.key(0), x)
    >>> MLP(4).apply(variables, x).shape
    (2, 1)

  Attributes:
    name: the name in the parent, None at the top.
    parent: the module that this one belongs to, a `Scope`, or None.
    scope: the scope that the module is bound to, None while it is unbound.
  """

  AUTO_REPR = False  # Haiku's is slow, and ours is Flax's.

  if TYPE_CHECKING:
    # For type checkers: every module has these fields, behind its own.
    parent: Module | Scope | _Sentinel | None = field(
      default=None, kw_only=True
    )
    name: str | None = field(default=None, kw_only=True)

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

  # --- The class ---

  def __init_subclass__(cls, kw_only: bool = False, **kwargs: Any) -> None:
    super().__init_subclass__(**kwargs)
    make_dataclass(cls, kw_only, _ParentType)
    above = set(cls.__mro__).difference(Module.__mro__)
    cls._compact_name_scope_methods = tuple(
      name
      for name in sorted(set().union(*map(vars, above)))
      # A library that is an attribute has a function of this name.
      if callable(method := getattr(cls, name, None))
      and hasattr(method, 'compact_name_scope')
    )
    cls._state = UNINITIALIZED
    cls.scope = None
    cls._setup_needed = cls.setup is not Module.setup or bool(
      cls._compact_name_scope_methods
    )

  # --- The life of an object ---

  # Haiku's needs a transform. Each subclass has that of a dataclass.
  def __init__(self, *args: Any, **kwargs: Any):
    if args or kwargs:
      raise TypeError(
        f'{type(self).__name__} passes arguments to the `__init__` of'
        ' haiku_state.linen.Module, as modules of Haiku do. A module of this kind'
        ' is a dataclass: declare what it takes as fields, such as `features:'
        ' int`, and make its submodules in `setup` or in a method marked by'
        ' `@nn.compact`; `name` is a field of all. To keep an `__init__`, derive'
        ' from hk.Module.'
      )

  def __post_init__(self) -> None:
    own = vars(self)
    own['_id'] = ids.uuid()
    own['_state'] = ModuleState()
    parent: Any = self.parent
    if parent is unspecified:
      parent = binding.find_parent()
      own[PARENT_REF] = parent_ref(parent)
    if parent is None:
      binding.name_where_made(self)
    elif parent is detached:
      self.parent = None
    else:
      binding.settle(self, parent)

  def setup(self) -> None:
    """Declares submodules and variables, as attributes.

    It runs once for each bound module, before its first method or at the first
    look at an attribute that is missing. What is assigned to an attribute gets
    the name of the attribute.
    """

  def _try_setup(self, shallow: bool = False) -> None:
    """Runs `setup` if it is due.

    Args:
      shallow: whether to attach the modules in fields only, and to check
        `setup` abstractly: it then runs inside of the lifted transform that is
        about to begin.
    """
    state = self._state
    if self.scope is None and is_haikus(self):
      binding.bind_in_haiku(self)
    if self.scope is None or state.in_setup:
      return
    if state.setup_called is SetupState.DONE:
      return
    if not self._setup_needed:
      if not shallow:
        state.setup_called = SetupState.DONE
      elif context.interceptors and state.setup_called is SetupState.NEW:
        _check_setup(self)  # There is nothing to check, only to be seen.
      return
    calls = context.current()
    calls.half_done += 1
    try:
      state.in_setup = True
      for name in self._field_names:
        binding.register(self, name, getattr(self, name))
      if not shallow:
        _run_setup(self)
      elif state.setup_called is SetupState.NEW:
        _check_setup(self)
    finally:
      state.in_setup = False
      if not shallow:
        state.setup_called = SetupState.DONE
    calls.half_done -= 1

  # --- Attributes ---

  def __setattr__(self, name: str, val: Any) -> None:
    state = self._state
    if not state.in_setup:
      if state.is_initialized and not name.startswith('__'):
        raise errors.SetAttributeFrozenModuleError(
          type(self).__name__, name, val
        )
      object.__setattr__(self, name, val)
      return
    own_field = self.__dataclass_fields__.get(name)
    if own_field is not None and own_field.init:
      raise errors.SetAttributeInModuleSetupError()
    assert self.scope, 'Trying to register submodules on unbound scope.'
    check_attribute(type(self), name)
    binding.register(self, name, val)

  if not TYPE_CHECKING:  # They are to report a name that is misspelt.

    def __getattr__(self, name: str) -> Any:
      if name in _COPY_METHODS:
        raise AttributeError()
      with in_use(self) as module:
        module._try_setup()
        if name in module.__dict__:
          return module.__dict__[name]
      text = f'"{type(self).__name__}" object has no attribute "{name}".'
      if self.scope is None:
        text += (
          f' If "{name}" is defined in \'.setup()\', remember these fields are'
          " only accessible from inside 'init' or 'apply'."
        )
      raise AttributeError(text)

  def __dir__(self) -> list[str]:
    with in_use(self) as module:
      module._try_setup()
      return object.__dir__(module)  # type: ignore[return-value]

  def __repr__(self) -> str:
    return module_repr(self)

  @property
  def _initialization_allowed(self) -> bool:
    """Whether submodules and variables may be declared now."""
    state = self._state
    return state.in_compact_method or state.in_setup or not state.is_initialized

  @property
  def path(self) -> tuple[str, ...]:
    """The names from the root to this module; () for the root.

    Raises:
      ValueError: the module is unbound.
    """
    return _bound_scope(
      self, "Can't access module paths on unbound modules."
    ).path

  # --- Copies ---

  def clone(
    self: M,
    *,
    parent: Scope | Module | _Sentinel | None = None,
    _deep_clone: bool | weakref.WeakValueDictionary[Any, Any] = False,
    _reset_names: bool = False,
    **updates: Any,
  ) -> M:
    """Returns a copy with the same fields and another place.

    `copy` has better defaults for users.

    Args:
      parent: the parent of the copy.
      _deep_clone: whether modules in fields are copied too, or the copies made
        so far by the ids of their originals.
      _reset_names: whether copies of modules in fields lose their names.
      **updates: new values of fields.
    """
    attrs = {f: getattr(self, f) for f in self._field_names}
    attrs['name'] = self.name
    attrs.update(parent=parent, **updates)
    if _deep_clone is not False:
      copies = (
        weakref.WeakValueDictionary() if _deep_clone is True else _deep_clone
      )
      # The fields hold the copies; until then this keeps them alive.
      attrs = {
        name: value
        if name == 'parent'
        else submodules.map_modules(
          lambda m: _copy_once(m, copies, _reset_names), value
        )
        for name, value in attrs.items()
      }
    copy = type(self)(**attrs)
    binding.take_over(copy, self)
    return copy

  def copy(
    self: M,
    *,
    parent: Scope | Module | _Sentinel | None = unspecified,
    name: str | None = None,
    **updates: Any,
  ) -> M:
    """Returns a copy, a new submodule of the module whose method is running.

    Args:
      parent: the parent of the copy.
      name: the name of the copy; by default an automatic one.
      **updates: new values of fields.
    """
    return self.clone(
      parent=parent, name=name, _deep_clone=True, _reset_names=False, **updates
    )

  # --- Variables ---

  @overload
  def variable(
    self,
    col: str,
    name: str,
    init_fn: None = None,
    *,
    unbox: bool = True,
  ) -> Variable[Any]: ...

  @overload
  def variable(
    self,
    col: str,
    name: str,
    init_fn: Callable[..., T],
    *init_args: Any,
    unbox: bool = True,
    **init_kwargs: Any,
  ) -> Variable[T]: ...

  def variable(
    self,
    col: str,
    name: str,
    init_fn: Callable[..., Any] | None = None,
    *init_args: Any,
    unbox: bool = True,
    **init_kwargs: Any,
  ) -> Variable[Any]:
    """Declares a variable; its `value` can be read and set.

    Args:
      col: the name of its collection.
      name: its name.
      init_fn: returns the initial value, called only if there is none.
      *init_args: arguments of `init_fn`.
      unbox: whether `value` is without its box of metadata.
      **init_kwargs: keyword arguments of `init_fn`.

    Raises:
      NameInUseError: the name is taken.
      ValueError: the module is not in `setup` or a compact method.
    """
    scope = self.scope
    if scope is None:
      scope = _bound_scope(self, "Can't make variables on unbound modules")
    if not self._initialization_allowed:
      raise ValueError(
        'Variables must be initialized in `setup()` or in a method '
        'wrapped in `@compact`'
      )
    if not scope.take_name(name, col):
      raise errors.NameInUseError('variable', name, type(self).__name__)
    v = scope._variable(col, name, init_fn, init_args, init_kwargs, unbox)
    self._state.children[name] = col
    return v

  @overload
  def param(
    self,
    name: str,
    init_fn: Callable[..., AxisMetadata[T]],
    *init_args: Any,
    unbox: checked.Unboxed = True,
    **init_kwargs: Any,
  ) -> T: ...

  @overload
  def param(
    self,
    name: str,
    init_fn: Callable[..., T],
    *init_args: Any,
    unbox: bool = True,
    **init_kwargs: Any,
  ) -> T: ...

  def param(
    self,
    name: str,
    init_fn: Callable[..., Any],
    *init_args: Any,
    unbox: bool = True,
    **init_kwargs: Any,
  ) -> Any:
    """Declares a parameter and returns its value.

    Args:
      name: its name.
      init_fn: takes a key, then the arguments, and returns the initial value.
      *init_args: arguments of `init_fn`.
      unbox: whether the value is without its box of metadata.
      **init_kwargs: keyword arguments of `init_fn`.

    Raises:
      NameInUseError: the name is taken.
      ScopeParamNotFoundError: there is no such parameter in `apply`.
      ScopeParamShapeError: it has another shape than `init_fn` makes.
      ValueError: the module is not in `setup` or a compact method.
    """
    scope = self.scope
    if scope is None:
      scope = _bound_scope(self, "Can't make parameters on unbound modules")
    if not self._initialization_allowed:
      raise ValueError(
        'Parameters must be initialized in `setup()` or in a method '
        'wrapped in `@compact`'
      )
    if not scope.take_name(name, 'params'):
      raise errors.NameInUseError('param', name, type(self).__name__)
    value = scope._param(name, init_fn, init_args, init_kwargs, unbox)
    self._state.children[name] = 'params'
    return value

  def has_variable(self, col: str, name: str) -> bool:
    """Returns whether a variable, or a submodule with some, is there."""
    message = "Can't access variables on unbound modules"
    return _bound_scope(self, message).has_variable(col, name)

  def get_variable(self, col: str, name: str, default: Any = None) -> Any:
    """Returns the value of a variable, `default` where there is none."""
    message = "Can't access variables on unbound modules"
    return _bound_scope(self, message).get_variable(col, name, default)

  def put_variable(self, col: str, name: str, value: Any) -> None:
    """Sets the value of a variable, whether or not it is declared.

    Raises:
      ModifyScopeVariableError: the collection is immutable.
    """
    message = "Can't access variables on unbound modules"
    _bound_scope(self, message).put_variable(col, name, value)

  @property
  def variables(self) -> FrozenDict[str, Any]:
    """The variables of this module and those below it, by collection."""
    return _bound_scope(
      self, "Can't access variables on unbound modules"
    ).variables()

  def sow(
    self,
    col: str,
    name: str,
    value: Any,
    reduce_fn: Callable[[K, Any], K] = tuple_reduce,
    init_fn: Callable[[], K] = tuple_init,  # type: ignore[assignment]
  ) -> bool:
    """Stores a value in a collection, if that is mutable.

    Args:
      col: the name of the collection.
      name: the name of the variable.
      value: what to store.
      reduce_fn: joins what is stored so far with `value`; by default a tuple
        grows.
      init_fn: returns what the first value is joined with.

    Returns:
      Whether the value was stored.
    """
    scope = _bound_scope(self, "Can't store variables on unbound modules")
    if not scope.is_mutable_collection(col):
      return False
    if scope.has_variable(col, name):
      xs = scope.get_variable(col, name)
    else:
      scope.reserve(name, col)
      self._state.children[name] = col
      xs = init_fn()
    scope.put_variable(col, name, reduce_fn(xs, value))
    return True

  def perturb(
    self, name: str, value: T, collection: str = 'perturbations'
  ) -> T:
    """Adds a variable of zeros to a value, to take gradients with respect to.

    It does nothing in `apply` unless the collection is passed.

    Args:
      name: the name of the variable.
      value: an array, or a pytree of arrays.
      collection: the name of its collection.

    Returns:
      The value plus the variable.

    Raises:
      ValueError: the collection is passed without this variable.
    """
    scope = _bound_scope(self, "Can't store variables on unbound modules")
    found = scope.has_variable(collection, name)
    if scope.is_mutable_collection(collection) and not found:
      scope.reserve(name, collection)
      self._state.children[name] = collection
      zeros = jax.tree.map(jnp.zeros_like, value)
      scope.put_variable(collection, name, zeros)
      found = True
    if found:
      noise = scope.get_variable(collection, name)
      return jax.tree.map(jnp.add, value, noise)
    if scope._run.store.has_collection(collection):
      raise ValueError(
        f'Perturbation collection {collection} present, but missing'
        f' perturbation variable {name}'
      )
    return value

  def is_mutable_collection(self, col: str) -> bool:
    """Returns whether the collection may be changed."""
    message = "Can't check mutability on unbound modules"
    return _bound_scope(self, message).is_mutable_collection(col)

  def is_initializing(self) -> bool:
    """Returns whether this is a call of `init`."""
    scope = _bound_scope(
      self, "Can't check if running under init() on unbound modules"
    )
    return scope.get_flag('initializing', False)

  def has_rng(self, name: str) -> bool:
    """Returns whether there is a key stream of this name."""
    message = "Can't query for RNGs on unbound modules"
    return _bound_scope(self, message).has_rng(name)

  def make_rng(self, name: str = 'params') -> jax.Array:
    """Returns a new key of a stream, `params` if there is no such stream.

    Raises:
      InvalidRngError: there is neither.
    """
    message = "Can't use RNGs on unbound modules"
    return _bound_scope(self, message).make_rng(name)

  # --- Pure functions ---

  @pure_method
  @traceback_util.api_boundary
  def init(
    self,
    rngs: RNGs,
    *args: Any,
    method: Callable[..., Any] | str | None = None,
    mutable: CollectionFilter = DEFAULT_INIT_MUTABLE,
    capture_intermediates: CaptureFilter = False,
    **kwargs: Any,
  ) -> FrozenDict[str, Any]:
    """Makes the variables of the module.

    Args:
      rngs: a key for the stream `params`, or keys by name of the stream.
      *args: arguments of the method.
      method: what to call, by default `__call__`: the name of a method, a
        method, or a function of the module.
      mutable: which collections are made.
      capture_intermediates: see `apply`.
      **kwargs: keyword arguments of the method.

    Returns:
      The variables, by collection.
    """
    Module._module_checks(self)
    return self.init_with_output(
      rngs,
      *args,
      method=method,
      mutable=mutable,
      capture_intermediates=capture_intermediates,
      **kwargs,
    )[1]

  @overload
  def init_with_output(
    self: checked.Returns[R],
    rngs: RNGs,
    *args: Any,
    method: None = None,
    mutable: CollectionFilter = DEFAULT_INIT_MUTABLE,
    capture_intermediates: CaptureFilter = False,
    **kwargs: Any,
  ) -> tuple[R, FrozenDict[str, Any]]: ...

  @overload
  def init_with_output(
    self,
    rngs: RNGs,
    *args: Any,
    method: Callable[..., R],
    mutable: CollectionFilter = DEFAULT_INIT_MUTABLE,
    capture_intermediates: CaptureFilter = False,
    **kwargs: Any,
  ) -> tuple[R, FrozenDict[str, Any]]: ...

  @overload
  def init_with_output(
    self,
    rngs: RNGs,
    *args: Any,
    method: str,
    mutable: CollectionFilter = DEFAULT_INIT_MUTABLE,
    capture_intermediates: CaptureFilter = False,
    **kwargs: Any,
  ) -> tuple[Any, FrozenDict[str, Any]]: ...

  @pure_method
  @traceback_util.api_boundary
  def init_with_output(
    self,
    rngs: RNGs,
    *args: Any,
    method: Callable[..., Any] | str | None = None,
    mutable: CollectionFilter = DEFAULT_INIT_MUTABLE,
    capture_intermediates: CaptureFilter = False,
    **kwargs: Any,
  ) -> tuple[Any, FrozenDict[str, Any]]:
    """Makes the variables of the module, and calls it.

    Args:
      rngs: see `init`.
      *args: arguments of the method.
      method: see `init`.
      mutable: see `init`.
      capture_intermediates: see `apply`.
      **kwargs: keyword arguments of the method.

    Returns:
      What the method returns, and the variables.
    """
    Module._module_checks(self)
    fn = calls.resolve_method(self, method)
    run = init_with_output(fn, self, mutable, capture_intermediates)
    return run(_checked_rngs(self, rngs), *args, **kwargs)

  @overload
  def apply(
    self: checked.Returns[R],
    variables: Mapping[str, Any],
    *args: Any,
    rngs: RNGs | None = None,
    method: None = None,
    mutable: checked.Nothing = False,
    capture_intermediates: checked.Nothing = False,
    **kwargs: Any,
  ) -> R: ...

  @overload
  def apply(
    self,
    variables: Mapping[str, Any],
    *args: Any,
    rngs: RNGs | None = None,
    method: Callable[..., R],
    mutable: checked.Nothing = False,
    capture_intermediates: checked.Nothing = False,
    **kwargs: Any,
  ) -> R: ...

  @overload
  def apply(
    self: checked.Returns[R],
    variables: Mapping[str, Any],
    *args: Any,
    rngs: RNGs | None = None,
    method: None = None,
    mutable: checked.Some,
    capture_intermediates: CaptureFilter = False,
    **kwargs: Any,
  ) -> tuple[R, FrozenDict[str, Any]]: ...

  @overload
  def apply(
    self,
    variables: Mapping[str, Any],
    *args: Any,
    rngs: RNGs | None = None,
    method: Callable[..., R],
    mutable: checked.Some,
    capture_intermediates: CaptureFilter = False,
    **kwargs: Any,
  ) -> tuple[R, FrozenDict[str, Any]]: ...

  @overload
  def apply(
    self,
    variables: Mapping[str, Any],
    *args: Any,
    rngs: RNGs | None = None,
    method: str,
    mutable: checked.Some,
    capture_intermediates: CaptureFilter = False,
    **kwargs: Any,
  ) -> tuple[Any, FrozenDict[str, Any]]: ...

  @overload
  def apply(
    self,
    variables: Mapping[str, Any],
    *args: Any,
    rngs: RNGs | None = None,
    method: Callable[..., Any] | str | None = None,
    mutable: CollectionFilter = False,
    capture_intermediates: CaptureFilter = False,
    **kwargs: Any,
  ) -> Any: ...

  @pure_method
  @traceback_util.api_boundary
  def apply(
    self,
    variables: Mapping[str, Any],
    *args: Any,
    rngs: RNGs | None = None,
    method: Callable[..., Any] | str | None = None,
    mutable: CollectionFilter = False,
    capture_intermediates: CaptureFilter = False,
    **kwargs: Any,
  ) -> Any:
    """Calls the module with the variables given.

    Args:
      variables: collections by name.
      *args: arguments of the method.
      rngs: keys by name of the stream, or one for the stream `params`.
      method: see `init`.
      mutable: which collections may be changed.
      capture_intermediates: whether to store what methods return in the
        collection `intermediates`: True for `__call__`, or a function of module
        and name of the method.
      **kwargs: keyword arguments of the method.

    Returns:
      What the method returns, if `mutable` is False. Otherwise that and the
      mutable collections after the call, whether or not they have changed.
    """
    Module._module_checks(self)
    if rngs is not None:
      rngs = _checked_rngs(self, rngs)
    fn = calls.resolve_method(self, method)
    run = apply(fn, self, mutable, capture_intermediates)
    return run(variables, *args, **kwargs, rngs=rngs)

  @pure_method
  @traceback_util.api_boundary
  def lazy_init(
    self,
    rngs: RNGs,
    *args: Any,
    method: Callable[..., Any] | None = None,
    mutable: CollectionFilter = DEFAULT_INIT_MUTABLE,
    **kwargs: Any,
  ) -> FrozenDict[str, Any]:
    """Makes the variables of the module from the shapes of its inputs.

    Args:
      rngs: see `init`.
      *args: arguments of the method. A `jax.ShapeDtypeStruct` stands for an
        array whose values no variable depends on; nothing is computed from it.
      method: see `init`.
      mutable: see `init`.
      **kwargs: keyword arguments of the method.

    Returns:
      The variables.

    Raises:
      LazyInitError: a variable depends on the values of such an argument.
    """
    Module._module_checks(self)

    def init_fn(rngs, *args, **kwargs):
      return self.init(rngs, *args, method=method, mutable=mutable, **kwargs)

    return core.partial_eval.lazy_init(init_fn)(rngs, *args, **kwargs)

  def bind(
    self: M,
    variables: Mapping[str, Any],
    *args: Any,
    rngs: Mapping[str, jax.Array] | None = None,
    mutable: CollectionFilter = False,
  ) -> M:
    """Returns a copy that holds variables, and is used as an object.

    Each call of a method is a run of its own; what it changes in mutable
    collections stays.

    Args:
      variables: collections by name.
      *args: nothing; more arguments are left unused, as in Flax.
      rngs: keys by name of the stream.
      mutable: which collections may be changed.
    """
    Module._module_checks(self)
    del args
    scope = core.scope.bind(variables, rngs=rngs, mutable=mutable)
    return self.clone(parent=scope, _deep_clone=True)

  def unbind(self: M) -> tuple[M, FrozenDict[str, Any]]:
    """Returns the module without its variables, and the variables.

    Raises:
      CallUnbindOnUnboundModuleError: the module is not bound.
    """
    Module._module_checks(self)
    if self.scope is None:
      raise errors.CallUnbindOnUnboundModuleError()
    module = self.clone(_deep_clone=True, _reset_names=True, name=None)
    return module, self.variables

  def _module_checks(self) -> None:
    """Raises if this is a class, or was not made as modules are."""
    if not isinstance(self, Module):
      raise errors.InvalidInstanceModuleError()
    if '_id' not in self.__dict__:
      raise errors.IncorrectPostInitOverrideError()

  # --- For people ---

  def tabulate(
    self,
    rngs: RNGs,
    *args: Any,
    depth: int | None = None,
    show_repeated: bool = False,
    mutable: CollectionFilter = DEFAULT_INIT_MUTABLE,
    console_kwargs: Mapping[str, Any] | None = None,
    table_kwargs: Mapping[str, Any] = types.MappingProxyType({}),
    column_kwargs: Mapping[str, Any] = types.MappingProxyType({}),
    compute_flops: bool = False,
    compute_vjp_flops: bool = False,
    **kwargs: Any,
  ) -> str:
    """Returns a table of the module and its submodules as text.

    Args:
      rngs: see `init`.
      *args: arguments of `__call__`.
      depth: how many levels of submodules to show; None for all.
      show_repeated: whether to show the second and later calls of a module.
      mutable: see `init`.
      console_kwargs: arguments of `rich.console.Console`.
      table_kwargs: arguments of `rich.table.Table`.
      column_kwargs: arguments of `rich.table.Table.add_column`.
      compute_flops: whether to show the operations of a forward pass.
      compute_vjp_flops: whether to show those of a backward pass.
      **kwargs: keyword arguments of `__call__`.
    """
    from haiku_state.linen import summary  # It shows modules: it is above them.

    return summary.tabulate(
      self,
      rngs,
      depth=depth,
      show_repeated=show_repeated,
      mutable=mutable,
      console_kwargs=console_kwargs,
      table_kwargs=table_kwargs,
      column_kwargs=column_kwargs,
      compute_flops=compute_flops,
      compute_vjp_flops=compute_vjp_flops,
    )(*args, **kwargs)

  def module_paths(
    self,
    rngs: RNGs,
    *args: Any,
    show_repeated: bool = False,
    mutable: CollectionFilter = DEFAULT_INIT_MUTABLE,
    **kwargs: Any,
  ) -> dict[str, Module]:
    """Returns copies of the module and its submodules by their paths.

    Args:
      rngs: see `init`.
      *args: arguments of `__call__`.
      show_repeated: whether second and later calls of a module count.
      mutable: see `init`.
      **kwargs: keyword arguments of `__call__`.
    """
    from haiku_state.linen import summary  # It shows modules: it is above them.

    table = summary._get_module_table(
      module=self,
      depth=None,
      show_repeated=show_repeated,
      compute_flops=False,
      compute_vjp_flops=False,
    )(rngs, *args, **kwargs, mutable=mutable)
    return {'/'.join(row.path): row.module_copy for row in table}


_ParentType = Union[Module, Scope, _Sentinel, None]


# What follows is not in the class, so that subclasses may use the names.


def _run_setup(module: Module) -> None:
  module.setup()
  scopes = {
    name: CompactNameScope(
      getattr(type(module), name).inner_fun,
      weakref.ref(module),
      parent=module,
      name=name,
    )
    for name in module._compact_name_scope_methods
  }
  if scopes:
    module._compact_name_scope_modules = scopes


def _check_setup(module: Module) -> None:
  """Runs `setup` on shapes only, for the errors that it raises."""

  def run(x):
    with TestScope({}, mutable=True).temporary() as root:
      root.execute(lambda: _identity(module.clone(parent=root), x))
    return x

  jax.eval_shape(run, 0)


# Interceptors see the run of `setup` as a call of this method, of Flax's name.
_identity = methods.wrap_method_once(lambda module, x: x)


class TestScope(Scope):
  """A scope whose keys are all the same, to look at shapes with.

  Programs leave such a run of `setup` out by the name of this class, Flax's.
  """

  def _next_rng(self, name: str) -> tuple[jax.Array, tuple[str | int, ...]]:
    del name
    return jax.random.key(0), ()


def _bound_scope(module: Module, message: str) -> Scope:
  if module.scope is None and is_haikus(module):
    binding.bind_in_haiku(module)
  if module.scope is None:
    raise ValueError(message)
  return module.scope


def _checked_rngs(module: Module, rngs: Any) -> Any:
  """Returns keys by name of the stream, from those or one key.

  Raises:
    InvalidRngError: it is neither.
  """
  if isinstance(rngs, Mapping):
    return rngs
  if not core.scope._is_valid_rng(rngs):
    raise errors.InvalidRngError(
      'RNGs should be of shape (2,) or PRNGKey in Module '
      f'{type(module).__name__}, but rngs are: {rngs}'
    )
  return {'params': rngs}


def _copy_once(
  module: Any, copies: weakref.WeakValueDictionary, reset_names: bool
) -> Any:
  """Returns the copy of a module, the same one for the same module."""
  if '_id' not in module.__dict__:
    return module  # It was not made as modules are: a mock, for example.
  copy = copies.get(module._id)
  if copy is None:
    updates = {'name': None} if reset_names else {}
    copy = module.clone(
      parent=detached, _deep_clone=copies, _reset_names=reset_names, **updates
    )
    copies[module._id] = copy
  return copy


class CompactNameScope(Module):
  """The submodule that a method marked by `compact_name_scope` runs in."""

  fn: Callable[..., Any]
  module_fn: Callable[[], Any]
  _named_by_itself = True

  @compact
  def __call__(self, *args: Any, **kwargs: Any) -> Any:
    return self.fn(self.module_fn(), *args, **kwargs)


if TYPE_CHECKING:
  # The files below, which make and use it, know of `ModuleBase` only.

  @dataclasses.dataclass(frozen=True)
  class InterceptorContext:
    module: Module
    method_name: str
    orig_method: Callable[..., Any]

  Interceptor = Callable[
    [
      Callable[..., Any],
      tuple[Any, ...],
      dict[str, Any],
      InterceptorContext,
    ],
    Any,
  ]

  def intercept_methods(
    interceptor: Interceptor,
  ) -> contextlib.AbstractContextManager[None]: ...


# Programs look at these, by Flax's names: libraries of quantized layers ask
# `_context.module_stack[-1]` which module is running.
_context = context
_CallInfo = CallInfo
_unspecified_parent = unspecified
_freeze_attr = submodules.freeze_attr
_get_suffix_value_pairs = submodules.suffixed_leaves
_get_local_method_names = methods.local_method_names
