"""Scopes: cursors into the variables of a run.

A `Scope` knows its path, its key streams and what it may change. It holds names
and counts, never values: those are in the store of the run (`core/_store.py`),
which each thread finds for itself (`core/_run.py`).
`init` and `apply` turn a function of a scope into a pure function of a
variables dict; `bind` makes a scope that outlives any run.
"""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

import jax
import numpy as np

from haiku_state import errors
from haiku_state.configurations import config as config
from haiku_state.core import _bundles, _haiku_words, _names, keys, meta, tracers
from haiku_state.core._initial import UNUSED_KEY, initial_value, uses_key
from haiku_state.core._initializers import FromHaiku, as_linen, call_keyless
from haiku_state.core._jax_around import Leaks
from haiku_state.core._place import Place
from haiku_state.core._run import Occupied, Root, Run, execute
from haiku_state.core._store import CannotChange, WrongShape
from haiku_state.core.filters import CollectionFilter as CollectionFilter
from haiku_state.core.filters import DenyList as DenyList
from haiku_state.core.filters import Filter as Filter
from haiku_state.core.filters import PRNGSequenceFilter as PRNGSequenceFilter
from haiku_state.core.filters import filter_to_set as filter_to_set
from haiku_state.core.filters import group_collections as group_collections
from haiku_state.core.filters import in_filter as in_filter
from haiku_state.core.filters import intersect_filters as intersect_filters
from haiku_state.core.filters import is_filter_empty as is_filter_empty
from haiku_state.core.filters import named_in
from haiku_state.core.filters import subtract_filters as subtract_filters
from haiku_state.core.filters import union_filters as union_filters
from haiku_state.core.frozen_dict import FrozenDict, freeze, unfreeze
from haiku_state.core.keys import LazyRng as LazyRng
from haiku_state.core.partial_eval import lazy_init as _lazy_init
from haiku_state.typing import Array as Array
from haiku_state.typing import Collection as Collection
from haiku_state.typing import MutableCollection as MutableCollection
from haiku_state.typing import MutableVariableDict as MutableVariableDict
from haiku_state.typing import PRNGKey as PRNGKey
from haiku_state.typing import RNGSequences as RNGSequences
from haiku_state.typing import VariableDict as VariableDict

T = TypeVar('T')
FrozenVariableDict = FrozenDict[str, Collection]
RNGs = jax.Array | Mapping[str, jax.Array]


class _Sentinel:
  """A value that is like no other."""


# Marks, in a scope's counts of keys, the counts of a child scope.
child_rng_token = _Sentinel()
# Tells a missing default from None.
no_flag = _Sentinel()

ORDINARY_FLAGS: Mapping[str, Any] = FrozenDict()

# The flag of a run of somebody's `hk.transform`, also in what is lifted there.
IN_HAIKU = 'in_haiku'

# Under Flax's name: libraries whose keys are objects of their own wrap it.
_is_valid_rng = keys.is_valid_rng


class Variable(Generic[T]):
  """A value of a collection that can be read and set by name.

  >>> import jax, jax.numpy as jnp
  >>> import haiku_state.linen as nn
  >>> class Counter(nn.Module):
  ...   @nn.compact
  ...   def __call__(self):
  ...     n = self.variable('counts', 'n', jnp.zeros, ())
  ...     n.value += 1
  ...     return n.value
  >>> int(Counter().init_with_output({})[0])
  1

  Attributes:
    scope: the scope that the variable belongs to.
    collection: the name of its collection.
    name: its name.
    unbox: whether `value` is without the box of metadata, if it is in one.
  """

  def __init__(self, scope: Scope, collection: str, name: str, unbox: bool):
    self.scope = scope
    self.collection = collection
    self.name = name
    self.unbox = unbox

  @property
  def value(self) -> T:
    """The current value; setting it raises if the collection is immutable."""
    value = self.scope.get_variable(self.collection, self.name)
    return meta.unbox(value) if self.unbox else value

  @value.setter
  def value(self, value: T) -> None:
    scope, col, name = self.scope, self.collection, self.name
    # Where one array is, there is no box, nor any need to look at the value.
    if self.unbox and not scope._is_array(col, name):
      value = self._boxed(value)
    scope.put_variable(col, name, value)

  def _boxed(self, value: T) -> Any:
    """Returns a new value in the boxes of the old one, where they fit."""
    old = self.scope.get_variable(self.collection, self.name)
    boxed = functools.partial(jax.tree.structure, is_leaf=meta.is_axis_metadata)
    structure = boxed(old)
    if structure != boxed(value):
      return value
    if not any(map(meta.is_axis_metadata, structure.flatten_up_to(old))):
      return value
    return meta.replace_boxed(old, value)

  def is_mutable(self) -> bool:
    """Returns whether the value may be set."""
    return self.scope.is_mutable_collection(self.collection)


class Scope:
  """A cursor into the variables, key streams and names of a run.

  Two scopes at one place of one run cannot disagree: neither holds a value.

  >>> import jax, jax.numpy as jnp
  >>> from haiku_state import core
  >>> def dense(scope, x):
  ...   w = scope.param('w', jax.nn.initializers.ones, (x.shape[-1], 2))
  ...   return x @ w
  >>> def model(scope, x):
  ...   return scope.child(dense, 'first')(x).sum()
  >>> y, variables = core.init(model)(jax.random.key(0), jnp.ones((1, 3)))
  >>> y, jax.tree.map(jnp.shape, variables.unfreeze())
  (Array(6., dtype=float32), {'params': {'first': {'w': (3, 2)}}})

  Args:
    variables: collections by name, to read and, where mutable, to change.
    rngs: root keys by name of the stream.
    name: the name of this scope in its parent.
    mutable: which collections may be changed.
    parent: the scope above; its run is shared, and `variables` must be empty.
    path: names from the root to this scope.
    debug_path: like `path`, with the transforms on the way shown.
    flags: facts about the run, such as `initializing`.
  """

  def __init__(
    self,
    variables: VariableDict,
    rngs: Mapping[str, jax.Array | LazyRng] | None = None,
    name: str | None = None,
    mutable: CollectionFilter = False,
    parent: Scope | None = None,
    path: Iterable[str] = (),
    debug_path: Iterable[str] = (),
    flags: Mapping[str, Any] | None = None,
  ):
    if parent is None:
      run = Run.at_rest(variables)
      self._modules = Occupied()
    elif variables:
      raise ValueError(
        'A scope with a parent reads the variables of its parent: pass {}.'
      )
    else:
      run = parent._run
      self._modules = parent._modules
    self._run = run
    self._streams = keys.streams(rngs)
    # Names to fold into the streams' keys: those below the scope that has them.
    self._suffix: tuple[str, ...] = ()
    self.name = name
    self.mutable = mutable
    self.parent = parent
    self.path = tuple(path)
    self.debug_path = tuple(debug_path) or self.path
    self.flags = FrozenDict(flags) if flags else ORDINARY_FLAGS
    self._root = parent.root if parent is not None else None
    self.trace_level = tracers.current_trace()
    self.rng_counters: dict[Any, Any] = dict.fromkeys(self._streams, 0)
    self.reservations: dict[str, set[str | None]] = {}
    self._invalid = False
    self._place: Place | None = None

  # --- Identity and place ---

  def __eq__(self, other: Any) -> bool:
    return self is other or (
      isinstance(other, Scope)
      and self._run is other._run
      and self.path == other.path
      and self.rng_counters is other.rng_counters
    )

  def __hash__(self) -> int:
    return hash((id(self._run), self.path, id(self.rng_counters)))

  @property
  def root(self) -> Scope:
    """The scope without a parent, at the top."""
    return self._root or self

  @property
  def path_text(self) -> str:
    """The path for people, with transforms: `/vmap(encoder)/dense`."""
    return '/' + '/'.join(self.debug_path)

  @property
  def place(self) -> Place:
    """Where the scope is among the scopes of its run."""
    place = self._place
    if place is None:
      if self.parent is None:
        return self._run.root
      assert self.name is not None
      place = self._place = self.parent.place.below(self.name)
    return place

  @property
  def haiku_path(self) -> str:
    """The Haiku name of the module at this scope."""
    return (self._place or self.place).path

  # --- Life ---

  @property
  def invalid(self) -> bool:
    """Whether the run that the scope was made for is over."""
    return self._invalid

  def invalidate(self) -> None:
    """Ends the life of the scope: no key, no write, no child from here on."""
    self._invalid = True

  @contextlib.contextmanager
  def temporary(self) -> Iterator[Scope]:
    """Returns a context at whose end the scope is invalid."""
    try:
      yield self
    finally:
      self.invalidate()

  def _check_valid(self) -> None:
    if self._invalid:
      raise errors.InvalidScopeError(self.name)

  def rewound(self, rewind_rngs: bool = False) -> Scope:
    """Returns this scope with all names free again.

    Args:
      rewind_rngs: whether the counts of keys begin anew too.
    """
    self._check_valid()
    scope = self._sibling()
    if rewind_rngs:
      scope.rng_counters = dict.fromkeys(self._streams, 0)
    return scope

  def _for_copies(self, modules: Occupied) -> Scope:
    """Returns this scope for copies of modules: all names are free there."""
    scope = self._sibling()
    scope._modules = modules
    return scope

  def _as_root(self) -> Root:
    """Returns what a run needs to know of the root."""
    root = self._root or self
    return Root(
      run=root._run,
      mutable=root.mutable,
      streams=root._streams,
      counts=root.rng_counters,
      initializing=root.flags.get('initializing', False),
      in_haiku=IN_HAIKU in root.flags,
    )

  def execute(self, body: Callable[[], T]) -> T:
    """Calls `body` in a run of the variables, if none goes on.

    Args:
      body: the function, without arguments.

    Returns:
      What `body` returns. The variables at rest are changed when it returns,
      and only then: an exception leaves them as they were.
    """
    return self._run.execute(self._as_root(), body)

  def _sibling(self) -> Scope:
    """Returns a scope that is like this one, with no name reserved."""
    scope = object.__new__(Scope)
    scope.__dict__ = {**self.__dict__, 'reservations': {}}
    return scope

  # --- Names ---

  def name_reserved(self, name: str, col: str | None = None) -> bool:
    """Returns whether a name is taken.

    Args:
      name: the name.
      col: the collection of the variable that wants it, None for a scope. Two
        variables of different collections may share a name.
    """
    taken = self.reservations.get(name)
    if taken is None:
      return False
    return None in taken or col is None or col in taken

  def reserve(self, name: str, col: str | None = None) -> None:
    """Takes a name.

    Raises:
      TypeError: the name is no string.
      ValueError: the name is taken.
    """
    if not self.take_name(name, col):
      raise ValueError(f'Duplicate use of scope name: "{name}"')

  def take_name(self, name: str, col: str | None = None) -> bool:
    """Takes a name if it is free; returns whether it was.

    Raises:
      TypeError: the name is no string.
    """
    if not isinstance(name, str):
      raise TypeError(
        f'The type of scope "{name}" should be string but it is {type(name)}'
      )
    taken = self.reservations.get(name)
    if taken is None:
      self.reservations[name] = {col}
      return True
    if self.name_reserved(name, col):
      return False
    taken.add(col)
    return True

  def default_name(self, prefix: str) -> str:
    """Returns the first of `prefix0`, `prefix1`, ... that is free."""
    i = 0
    while f'{prefix}{i}' in self.reservations:
      i += 1
    return f'{prefix}{i}'

  # --- Children ---

  def push(
    self, name: str | None = None, prefix: str = '', reuse: bool = False
  ) -> Scope:
    """Returns a child scope.

    Args:
      name: its name; by default the first free one with `prefix`.
      prefix: see `name`.
      reuse: whether the name may be taken already.

    Raises:
      ValueError: the name is taken.
    """
    self._check_valid()
    if name is None:
      name = self.default_name(prefix)
    if not reuse or name not in self.reservations:
      self.reserve(name)
    return self.below(name)

  def below(self, name: str) -> Scope:
    """Returns the child scope of a name that was taken for it."""
    self._check_valid()
    counters = self.rng_counters.get((child_rng_token, name))
    if counters is None:
      counters = dict.fromkeys(self._streams, 0)
      self.rng_counters[child_rng_token, name] = counters
    scope = object.__new__(Scope)
    scope.__dict__ = {
      **self.__dict__,
      'name': name,
      'parent': self,
      'path': (*self.path, name),
      'debug_path': (*self.debug_path, name),
      '_suffix': (*self._suffix, name),
      '_root': self._root or self,
      'rng_counters': counters,
      'reservations': {},
      '_place': (self._place or self.place).below(name),
    }
    return scope

  def _move_below(self, parent: Scope) -> None:
    """Makes this the child of another scope; its keys stay the same."""
    self.parent = parent
    self._place = None

  def child(
    self,
    fn: Callable[..., Any],
    name: str | None = None,
    prefix: str | None = None,
    named_call: bool = True,
    **partial_kwargs: Any,
  ) -> Callable[..., Any]:
    """Returns a function of a scope as a function in a child scope.

    Args:
      fn: takes a scope, then any arguments.
      name: the name of the child; by default that of the function, numbered.
      prefix: what an automatic name begins with.
      named_call: whether its operations carry the name in profiles.
      **partial_kwargs: keyword arguments of `fn`.
    """
    if name is None:
      if prefix is None:
        prefix = fn.__name__ + '_' if hasattr(fn, '__name__') else ''
      name = self.default_name(prefix)
    scope = self.push(name)

    @functools.wraps(fn)
    def wrapper(*args, **kwargs):
      kwargs = dict(partial_kwargs, **kwargs)
      if not named_call:
        return fn(scope.rewound(), *args, **kwargs)
      with jax.named_scope(name):
        return fn(scope.rewound(), *args, **kwargs)

    return wrapper

  # --- Collections ---

  def is_mutable_collection(self, col: str) -> bool:
    """Returns whether the collection may be changed."""
    return in_filter(self.mutable, col)

  def is_collection_empty(self, col: str) -> bool:
    """Returns whether the collection has no variable in the whole run."""
    return self._run.store.is_empty(col)

  def variables(self) -> Any:
    """Returns the collections below this scope, all of them."""
    return _as_flagged(self._run.store.variables(self.place))

  def mutable_variables(self) -> Any:
    """Returns the collections below this scope that may be changed."""
    found = self._run.store.variables(self.place)
    return _as_flagged(
      {col: x for col, x in found.items() if in_filter(self.mutable, col)}
    )

  # --- Keys ---

  @property
  def rngs(self) -> dict[str, LazyRng]:
    """The key streams by name, each with the path to this scope folded in."""
    return {
      name: LazyRng.create(rng, *self._suffix)
      for name, rng in self._streams.items()
    }

  def streams_to_lift(
    self, filters: Sequence[PRNGSequenceFilter]
  ) -> dict[str, LazyRng]:
    """Returns the key streams that a lifted transform takes inside.

    Keys that come from Haiku become a stream for each name in the filters, and
    one for `params`, from which all others fall back.

    Args:
      filters: the groups of streams that are wanted.
    """
    if not self._run.has_haiku_rng():
      return self.rngs
    names = dict.fromkeys(
      ['params', *(n for f in filters for n in named_in(f))]
    )
    return {
      name: LazyRng.create(self._run.haiku_rng())
      for name in names
      if any(in_filter(f, name) for f in filters)
    }

  def has_rng(self, name: str) -> bool:
    """Returns whether there is a key stream of this name."""
    return name in self._streams or self._run.has_haiku_rng()

  def make_rng(self, name: str = 'params') -> jax.Array:
    """Returns a new key.

    Args:
      name: the stream; the stream `params` stands in for one that is missing.

    Raises:
      InvalidRngError: neither is there.
    """
    rng, suffix = self._next_rng(name)
    return keys.fold_in_static(rng, suffix) if suffix else rng

  def initial_param(self, init_fn: Callable[..., Any], args, kwargs) -> Any:
    """Returns the initial value of a new parameter, by a new key."""
    if isinstance(init_fn, FromHaiku) and self._run.is_in_haiku:
      # It draws its own key, as in a module of Haiku's.
      return call_keyless(init_fn.initializer, *args, **kwargs)
    if (
      IN_HAIKU in self.flags
      and 'params' not in self._streams
      and not uses_key(init_fn, args, kwargs)
    ):
      return init_fn(UNUSED_KEY, *args, **kwargs)
    rng, suffix = self._next_rng('params')
    is_recorded = self._run.is_recorded
    return initial_value(init_fn, rng, suffix, args, kwargs, is_recorded)

  def _new_param(
    self,
    name: str,
    init_fn: Callable[..., Any],
    args,
    kwargs,
    shape=None,
    dtype=None,
  ) -> Any:
    """Returns `initial_param`, or raises if no parameter may be made.

    Args:
      name: its name.
      init_fn: its initializer.
      args: the arguments of the initializer, behind the key.
      kwargs: its keyword arguments.
      shape: the shape that a custom creator wants, None for its own.
      dtype: the dtype that it wants.
    """
    if shape is not None:
      args, kwargs = _as_wanted(init_fn, args, kwargs, shape, dtype)
    if not in_filter(self.mutable, 'params'):
      if not self._must_be_given:
        raise self._missing_param(name)
      if not self._run.is_in_haiku:
        raise _haiku_words.missing_parameter(self.haiku_path, name)
      # Haiku raises, after its creators were asked.
    return self.initial_param(init_fn, args, kwargs)

  def _missing_param(self, name: str) -> Exception:
    error: Exception
    if self.is_collection_empty('params'):
      error = errors.ScopeCollectionNotFound('params', name, self.path_text)
    else:
      error = errors.ScopeParamNotFoundError(name, self.path_text)
    tree: Any = getattr(self._run.store, 'tree', {})
    return errors._with_hint(error, _haiku_words.hint_at_conversion(tree))

  def _next_rng(self, name: str) -> tuple[jax.Array, tuple[str | int, ...]]:
    """Counts a key; returns its root and what is to be folded in."""
    stream = self._streams.get(name)
    if stream is None:
      if self._run.has_haiku_rng():
        return self._run.haiku_rng(), ()
      stream = self._streams.get('params')
      if stream is None:
        if IN_HAIKU in self.flags:
          raise _haiku_words.missing_key(self.haiku_path, name)
        raise errors.InvalidRngError(f'{self.name} needs PRNG for "{name}"')
      name = 'params'
    self._check_valid()
    # Where keys come from Haiku, a scope has no streams until it is lifted.
    count = self.rng_counters.get(name, 0) + 1
    self.rng_counters[name] = count
    self._run.drawn += 1
    return stream.rng, (*stream.suffix, *self._suffix, count)

  # --- Variables ---

  @property
  def _must_be_given(self) -> bool:
    """Whether variables that are asked for must be there, as parameters must.

    So it is in `apply` of somebody's `hk.transform`. Made anew there, statistics
    would silently be those of an untrained model.
    """
    flags = self.flags
    return IN_HAIKU in flags and not flags['initializing']

  def get_variable(self, col: str, name: str, default: Any = None) -> Any:
    """Returns the value of a variable, or `default` where there is none."""
    place = self._place or self.place
    return self._run.store.get(place, col, name, default)

  def _is_array(self, col: str, name: str) -> bool:
    """Returns whether the variable is one array; False if that is not known."""
    place = self._place or self.place
    return self._run.store.is_array(place, col, name)

  def has_variable(self, col: str, name: str) -> bool:
    """Returns whether the variable is there."""
    return self._run.store.has(self.place, col, name)

  def put_variable(self, col: str, name: str, value: Any) -> None:
    """Sets the value of a variable.

    Raises:
      ModifyScopeVariableError: the collection is immutable.
      JaxTransformError: the value would leave a transform of JAX.
    """
    self._check_valid()
    if not in_filter(self.mutable, col):
      raise errors.ModifyScopeVariableError(col, name, self.path_text)
    place = self._place or self.place
    try:
      self._run.store.put(place, col, name, value)
    except CannotChange as e:
      raise errors.ModifyScopeVariableError(
        col, e.name, self.path_text
      ) from None
    except Leaks as e:
      raise self._leaks(col, e) from None

  def _merge(self, col: str, tree: Mapping[str, Any], only: Any) -> None:
    """Puts a tree of variables here; of parameters, those in `only`.

    What lies outside of the root goes there.
    """
    if self.parent is not None and any(map(_names.is_outside, tree)):
      outside = {n: x for n, x in tree.items() if _names.is_outside(n)}
      self.root._merge(col, outside, only)
      tree = {n: x for n, x in tree.items() if n not in outside}
      if not tree:
        return
    try:
      self._run.store.merge(self.place, col, tree, only)
    except CannotChange as e:
      raise errors.ModifyScopeVariableError(
        col, e.name, self.path_text
      ) from None
    except Leaks as e:
      raise self._leaks(col, e) from None

  def _leaks(self, col: str, leaks: Leaks) -> Exception:
    """Returns the error of a value that would leave a transform of JAX."""
    if self._run.is_in_haiku:
      text = leaks.text_in_haiku(col, self.haiku_path)
      return _haiku_words.wrong_trace(text)
    text = leaks.text(col, self.path_text)
    return errors._with_hint(errors.JaxTransformError(), text)

  def variable(
    self,
    col: str,
    name: str,
    init_fn: Callable[..., T] | None = None,
    *init_args: Any,
    unbox: bool = True,
    **init_kwargs: Any,
  ) -> Variable[T]:
    """Returns a variable, made if it is missing.

    Args:
      col: its collection.
      name: its name.
      init_fn: returns the initial value.
      *init_args: arguments of `init_fn`.
      unbox: whether `value` is without its box of metadata.
      **init_kwargs: keyword arguments of `init_fn`.

    Raises:
      ScopeCollectionNotFound: the collection is empty and immutable.
      ScopeVariableNotFoundError: the variable is missing, and the collection
        immutable, or `init_fn` None, or this is `apply` of a Haiku function.
      ValueError: the name is taken.
    """
    self.reserve(name, col)
    return self._variable(col, name, init_fn, init_args, init_kwargs, unbox)

  def _variable(
    self, col: str, name: str, init_fn: Any, args, kwargs, unbox: bool
  ) -> Variable[Any]:
    """Returns `variable`, for one whose name was taken for it."""
    place = self._place or self.place
    if not self._run.store.has_or_will(place, col, name):
      self.check_may_make(col, name, init_fn is not None)
      self.put_variable(col, name, call_keyless(init_fn, *args, **kwargs))
    return Variable(self, col, name, unbox)

  def check_may_make(self, col: str, name: str, can: bool = True) -> None:
    """Raises unless a variable that is asked for, and missing, may be made.

    Args:
      col: its collection.
      name: its name.
      can: whether there is a way to make it.

    Raises:
      ScopeCollectionNotFound: the collection is empty.
      ScopeVariableNotFoundError: it is not.
    """
    if self._must_be_given:
      key = _names.state_key(col, name)
      raise _haiku_words.missing_state(self.haiku_path, key)
    if can and in_filter(self.mutable, col):
      return
    if self.is_collection_empty(col):
      raise errors.ScopeCollectionNotFound(col, name, self.path_text)
    raise errors.ScopeVariableNotFoundError(name, col, self.path_text)

  def param(
    self,
    name: str,
    init_fn: Callable[..., T],
    *init_args: Any,
    unbox: bool = True,
    **init_kwargs: Any,
  ) -> T:
    """Returns a parameter, made if it is missing.

    Args:
      name: its name.
      init_fn: takes a key, then the arguments; returns the initial value. Or
        an object of `hk.initializers`.
      *init_args: arguments of `init_fn`.
      unbox: whether the result is without its box of metadata.
      **init_kwargs: keyword arguments of `init_fn`.

    Raises:
      ScopeCollectionNotFound: there are no parameters, and none may be made.
      ScopeParamNotFoundError: this one is missing, and none may be made.
      ScopeParamShapeError: it has another shape than `init_fn` makes.
      JaxTransformError: its initial value would leave a transform of JAX.
      ValueError: the name is taken.
    """
    self.reserve(name, 'params')
    return self._param(name, init_fn, init_args, init_kwargs, unbox)

  def _param(self, name: str, init_fn: Any, args, kwargs, unbox: bool) -> Any:
    """Returns `param`, for one whose name was taken for it."""
    if type(init_fn) is not types.FunctionType:
      init_fn = as_linen(init_fn)
    make = functools.partial(self._new_param, name, init_fn, args, kwargs)
    place = self._place or self.place
    try:
      value = self._run.store.param(place, name, init_fn, args, kwargs, make)
    except WrongShape as e:
      raise errors.ScopeParamShapeError(
        name, self.path_text, e.found, e.wanted
      ) from None
    except Leaks as e:
      raise self._leaks('params', e) from None
    return meta.unbox(value) if unbox else value

  # --- Flags ---

  def has_flag(self, key: str) -> bool:
    """Returns whether the run has the flag."""
    return key in self.flags

  def get_flag(self, key: str, default: Any = no_flag) -> Any:
    """Returns a flag of the run.

    Raises:
      ValueError: there is none, and no default.
    """
    if key not in self.flags and default is no_flag:
      raise ValueError(f'Flag {key} not present on scope.')
    return self.flags.get(key, default)


def _as_wanted(init_fn: Any, args, kwargs, shape, dtype) -> Any:
  """Returns arguments by which an initializer makes another shape and dtype.

  Those that are no shape, and no dtype, are left.
  """
  if not args or not isinstance(args[0], (tuple, list)):
    return args, kwargs
  rest = list(args[1:])
  if dtype is not None:
    if rest and _is_dtype(rest[0]):
      rest[0] = dtype
    elif 'dtype' in kwargs or (not rest and isinstance(init_fn, FromHaiku)):
      kwargs = {**kwargs, 'dtype': dtype}
  return (tuple(shape), *rest), kwargs


def _is_dtype(x: Any) -> bool:
  try:
    return x is not None and np.dtype(x) is not None
  except TypeError:
    return False


def _as_flagged(variables: dict[str, Any]) -> Any:
  """Returns variables in the container that the flag asks for."""
  return freeze(variables) if config.flax_return_frozendict else variables


# --- From functions of a scope to pure functions of variables ----------------


def bind(
  variables: VariableDict,
  rngs: Mapping[str, jax.Array] | None = None,
  mutable: CollectionFilter = False,
  flags: Mapping[str, Any] | None = None,
) -> Scope:
  """Returns a scope with these variables, that no run ends.

  >>> from haiku_state import core
  >>> scope = core.bind({'params': {'w': 2.0}})
  >>> scope.get_variable('params', 'w')
  2.0

  Args:
    variables: collections by name. Those that are mutable are copied.
    rngs: keys by name of the stream.
    mutable: which collections may be changed.
    flags: facts about the run.

  Raises:
    ApplyScopeInvalidVariablesTypeError: `variables` maps no names to dicts.
    InvalidRngError: `rngs` maps no names to keys.
  """
  _check_variables(variables)
  if rngs is not None and not _is_valid_rngs(rngs):
    raise errors.InvalidRngError(
      'rngs should be a dictionary mapping strings to `jax.PRNGKey`.'
    )
  own = _unfreeze_variables(variables, mutable)
  return Scope(own, rngs=rngs, mutable=mutable, flags=flags)


# Under Flax's name: libraries that change how variables are made call it.
def _unfreeze_variables(
  variables: Mapping[str, Any], mutable: CollectionFilter
) -> dict[str, Any]:
  """Returns collections by name, those that are mutable as dicts of our own."""
  own = {col: _bundles.with_own_levels(x) for col, x in variables.items()}
  for col in own:
    if in_filter(mutable, col):
      own[col] = unfreeze(own[col])
  return own


def _execute_once(scopes: Sequence[Scope], body: Callable[[], T]) -> T:
  """Calls `body` in the only run of the variables of some scopes.

  Args:
    scopes: scopes that were made for this run.
    body: the function, without arguments.

  Returns:
    What `body` returns; then the variables of the scopes are what it made them.
  """
  for scope in scopes:
    scope._modules.take()  # A thread that `body` starts uses copies.
  return execute([scope._as_root() for scope in scopes], body, once=True)


def _check_variables(variables: Any) -> None:
  if not _bundles.is_level(variables):
    # Flax does not look: Python raises this for `in`, or else for `.items`.
    is_container = hasattr(variables, '__contains__')
    raise (AttributeError if is_container else TypeError)(
      f'Found {type(variables).__name__} in place of the variables.'
      f' {errors.ApplyScopeInvalidVariablesTypeError()}'
    )
  for col, tree in variables.items():
    if not isinstance(col, str) or not _bundles.is_level(tree):
      raise errors.ApplyScopeInvalidVariablesTypeError()
    if not all(isinstance(name, str) for name in tree):
      raise errors.ApplyScopeInvalidVariablesTypeError()


def apply(
  fn: Callable[..., Any],
  mutable: CollectionFilter = False,
  flags: Mapping[str, Any] | None = None,
  *,
  haiku_root: str = 'scope',
) -> Callable[..., Any]:
  """Turns a function of a scope into one of a variables dict.

  >>> from haiku_state import core
  >>> def count(scope, x):
  ...   n = scope.variable('counts', 'n', lambda: 0)
  ...   n.value += 1
  ...   return x
  >>> core.apply(count, mutable=['counts'])({'counts': {'n': 4}}, 'x')
  ('x', FrozenDict({
      counts: {
          n: 5,
      },
  }))

  Args:
    fn: takes a scope, then any arguments.
    mutable: which collections may be changed.
    flags: facts about the run.
    haiku_root: the name of the root among Haiku's modules.

  Returns:
    A function of `(variables, *args, rngs=None, **kwargs)`. It returns what
    `fn` returns, and with it, unless `mutable` is False, the mutable
    collections after the call.
  """

  @functools.wraps(fn)
  def wrapper(variables, *args, rngs: RNGs | None = None, **kwargs):
    streams = _as_streams(rngs)
    _check_variables(variables)
    params = variables.get('params')
    if _bundles.is_level(params) and 'params' in params:
      raise errors.ApplyScopeInvalidVariablesStructureError(variables)
    scope = Scope(variables, rngs=streams, mutable=mutable, flags=flags)
    scope._run.haiku_root = haiku_root
    with scope.temporary():
      y = _execute_once([scope], lambda: fn(scope, *args, **kwargs))
    return y if mutable is False else (y, scope.mutable_variables())

  return wrapper


def _is_valid_rngs(rngs: Any) -> bool:
  """Returns whether `rngs` maps names of streams to keys."""
  return isinstance(rngs, Mapping) and all(
    isinstance(name, str) and _is_valid_rng(rng) for name, rng in rngs.items()
  )


def _as_streams(rngs: Any) -> Any:
  """Returns key streams by name, from those or from one key."""
  if rngs is None:
    return None
  if _is_valid_rng(rngs):
    return {'params': rngs}
  if not _is_valid_rngs(rngs):
    raise ValueError(
      'The ``rngs`` argument passed to an apply function should be a '
      '``jax.PRNGKey`` or a dictionary mapping strings to ``jax.PRNGKey``.'
    )
  return rngs


def init(
  fn: Callable[..., Any],
  mutable: CollectionFilter = True,
  flags: Mapping[str, Any] | None = None,
  *,
  haiku_root: str = 'scope',
) -> Callable[..., Any]:
  """Turns a function of a scope into one that makes its variables.

  >>> import jax, jax.numpy as jnp
  >>> from haiku_state import core
  >>> def scale(scope, x):
  ...   return x * scope.param('w', jax.nn.initializers.ones, ())
  >>> y, variables = core.init(scale)(jax.random.key(0), 3.0)
  >>> y, sorted(variables['params'])
  (Array(3., dtype=float32), ['w'])

  Args:
    fn: takes a scope, then any arguments.
    mutable: which collections are made and returned.
    flags: facts about the run.
    haiku_root: the name of the root among Haiku's modules.

  Returns:
    A function of `(rngs, *args, **kwargs)`, where `rngs` is a key for the
    stream `params` or keys by name of the stream. It returns what `fn` returns,
    and the variables.
  """
  init_flags = {**(flags or {}), 'initializing': True}
  run = apply(fn, mutable, init_flags, haiku_root=haiku_root)

  @functools.wraps(fn)
  def wrapper(rngs, *args, **kwargs):
    if not _is_valid_rng(rngs) and not _is_valid_rngs(rngs):
      raise ValueError(
        'First argument passed to an init function should be a '
        '``jax.PRNGKey`` or a dictionary mapping strings to ``jax.PRNGKey``.'
      )
    return run({}, *args, rngs=rngs, **kwargs)

  return wrapper


def lazy_init(
  fn: Callable[..., Any],
  mutable: CollectionFilter = True,
  flags: Mapping[str, Any] | None = None,
) -> Callable[..., Any]:
  """Turns a function of a scope into one that makes its variables from shapes.

  >>> import jax, jax.numpy as jnp
  >>> from haiku_state import core
  >>> def dense(scope, x):
  ...   return x @ scope.param('w', jax.nn.initializers.ones, (x.shape[-1], 2))
  >>> x = jax.ShapeDtypeStruct((64, 3), jnp.float32)
  >>> core.lazy_init(dense)(jax.random.key(0), x)['params']['w'].shape
  (3, 2)

  Args:
    fn: takes a scope, then any arguments.
    mutable: which collections are made and returned.
    flags: facts about the run.

  Returns:
    A function of `(rngs, *args, **kwargs)` that returns the variables. An
    argument that is a `jax.ShapeDtypeStruct` stands for a value that no
    variable depends on, and nothing is computed from it.
  """
  init_fn = init(fn, mutable, flags)
  return _lazy_init(lambda *args, **kwargs: init_fn(*args, **kwargs)[1])
