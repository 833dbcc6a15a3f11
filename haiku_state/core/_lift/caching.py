"""Lifted `jit`, and `fold_rngs`, which derives keys as `jit` does."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar

import jax

from haiku_state import traverse_util
from haiku_state._extents import restored
from haiku_state.core._lift.packing import Pack, lifted
from haiku_state.core._names import OUTSIDE, is_below, is_outside
from haiku_state.core.filters import (
  CollectionFilter,
  DenyList,
  PRNGSequenceFilter,
)
from haiku_state.core.keys import LazyRng
from haiku_state.core.scope import IN_HAIKU

A = TypeVar('A')


class TransformContext(threading.local, Generic[A]):
  """A value for a function that JAX calls when it pleases."""

  def __init__(self) -> None:
    self._value: A | None = None

  @contextlib.contextmanager
  def push(self, a: A) -> Iterator[None]:
    """Returns a context in which `get` returns `a`."""
    before = self._value
    with restored(lambda: setattr(self, '_value', before)):
      self._value = a
      yield

  def get(self) -> A:
    """Returns the value that was pushed last."""
    assert self._value is not None
    return self._value


class CountsHolder:
  """Counts of keys by path, as a leaf of a pytree.

  Args:
    flat_d: counts by tuples of keys.
  """

  def __init__(self, flat_d: dict[Any, int]):
    self.flat_d = flat_d

  @classmethod
  def make(cls, d: Mapping[Any, Any]) -> CountsHolder:
    """Returns nested counts as one flat dict."""
    return cls(dict(traverse_util.flatten_dict(d)))

  def sub(self, other: CountsHolder) -> CountsHolder:
    """Returns how far these counts are ahead of the others."""
    return CountsHolder(
      {k: n - other.flat_d.get(k, 0) for k, n in self.flat_d.items()}
    )

  def add(self, other: CountsHolder) -> CountsHolder:
    """Returns these counts and the others together."""
    return CountsHolder(
      {k: n + other.flat_d.get(k, 0) for k, n in self.flat_d.items()}
    )

  def unflat(self) -> dict[Any, Any]:
    """Returns the counts nested again."""
    return traverse_util.unflatten_dict(self.flat_d)


def set_from_dict(original: dict[Any, Any], updates: Mapping[Any, Any]) -> None:
  """Sets values of a nested dict in place, and leaves the others."""
  for key, value in updates.items():
    if key in original and isinstance(value, dict):
      set_from_dict(original[key], value)
    else:
      original[key] = value


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Effects:
  """What a function did beside what it returned, where it was traced.

  When JAX has compiled the function, it does not run: then this tells what to
  do in its place. It is a part of what the function returns, without arrays, so
  that JAX keeps it with the code that it belongs to.

  Attributes:
    touched: the parameters that it made or set, for each top: bundles from
      there on and names. See `Pack.touched`.
    drawn: how many keys it drew, for each top: by path.
  """

  touched: tuple[frozenset[tuple[str, str]] | None, ...]
  drawn: tuple[tuple[tuple[Any, int], ...], ...]

  @classmethod
  def of(cls, packed: Pack, before: list[CountsHolder]) -> _Effects:
    """Returns them as they are at any other path.

    Args:
      packed: the scopes, after the function has run.
      before: how many keys had been drawn before that.
    """
    touched = (
      None
      if names is None
      else frozenset((_from(top.haiku_path, x), n) for x, n in names)
      for top, names in zip(packed.tops, packed.touched)
    )
    drawn = (
      tuple(new.sub(old).flat_d.items())
      for new, old in zip(_counts(packed), before)
    )
    return cls(tuple(touched), tuple(drawn))

  def repeat(self, packed: Pack, before: list[CountsHolder]) -> None:
    """Brings other scopes to where the function would have brought them.

    Args:
      packed: the scopes.
      before: how many keys had been drawn before the function.
    """
    packed.touched = [
      None
      if names is None
      else {(_at(top.haiku_path, path), name) for path, name in names}
      for top, names in zip(packed.tops, self.touched)
    ]
    for top, drawn, old in zip(packed.tops, self.drawn, before):
      now = CountsHolder(dict(drawn)).add(old)
      set_from_dict(top.rng_counters, now.unflat())


def _from(top: str, path: str) -> str:
  """Returns the rest of a path below the top; marked, one outside of it."""
  return path[len(top) :] if is_below(path, top) else OUTSIDE + path


def _at(top: str, path: str) -> str:
  return path[len(OUTSIDE) :] if is_outside(path) else top + path


def _counts(packed: Pack) -> list[CountsHolder]:
  return [CountsHolder.make(top.rng_counters) for top in packed.tops]


def _hashable_filter(x: Any) -> Any:
  if isinstance(x, str):
    return (x,)
  if isinstance(x, DenyList):
    return DenyList(_hashable_filter(x.deny))
  return tuple(sorted(x)) if isinstance(x, Iterable) else x


def _without_suffixes(rng_groups: Any) -> Any:
  """Returns key streams as they are at the root: the same at every path."""
  return jax.tree.map(
    lambda x: x.clear_suffix() if isinstance(x, LazyRng) else x,
    rng_groups,
    is_leaf=lambda x: isinstance(x, LazyRng),
  )


def _cached(
  fn: Callable[..., Any],
  wrap: Callable[[Callable[..., Any]], Callable[..., Any]],
  variables: CollectionFilter,
  rngs: PRNGSequenceFilter,
  name: str,
) -> Callable[..., Any]:
  """Returns a lifted function that one compiled function serves everywhere.

  In somebody's `hk.transform` it is compiled for each call.

  Args:
    fn: takes the scopes, a key that says all that is static about them, then
      the arguments.
    wrap: what makes the pure function a compiled one; its first argument is
      static.
    variables: the collections that go in, and may be changed.
    rngs: the key streams that go in.
    name: the name of the transform.
  """
  # The pure function is one for all calls; the scopes of each reach it here.
  current: TransformContext[Pack] = TransformContext()

  def compiled() -> tuple[Callable[..., Any], object]:
    @functools.wraps(fn)
    def pure(fingerprint, variables, rngs, *args, **kwargs):
      *_, static_key = fingerprint

      def with_key(scopes, *args, **kwargs):
        return fn(scopes, static_key, *args, **kwargs)

      packed = current.get()
      before = _counts(packed)
      result = packed.call(with_key, variables, rngs, *args, **kwargs)
      return result, _Effects.of(packed, before)

    # JAX compares what is static with that of all other functions: here is what
    # tells them apart at first sight.
    return wrap(pure), object()

  shared = compiled()

  def inner(packed: Pack, static_key, *args, **kwargs):
    # Haiku does not tell which getters, setters, interceptors or policies are
    # around, and they are in what is compiled: Haiku's own `jit` traces anew in
    # each call as well.
    in_haiku = any(IN_HAIKU in top.flags for top in packed.tops)
    run, own = compiled() if in_haiku else shared
    mutable = tuple(_hashable_filter(top.mutable) for top in packed.tops)
    places = tuple((packed.tops.index(top), x) for top, x in packed.places)
    fingerprint = (own, mutable, places, static_key)
    before = _counts(packed)
    with current.push(packed):
      result, effects = run(
        fingerprint,
        packed.variables,
        _without_suffixes(packed.rngs),
        *args,
        **kwargs,
      )
    effects.repeat(packed, before)
    return result

  return lifted(
    inner, (variables,), (variables,), (rngs,), name, enable_kwargs=True
  )


def jit(
  fn: Callable[..., Any],
  variables: CollectionFilter = True,
  rngs: PRNGSequenceFilter = True,
  static_argnums: int | Iterable[int] = (),
  static_argnames: str | Iterable[str] = (),
  donate_argnums: int | Iterable[int] = (),
  device: Any = None,
  backend: str | None = None,
) -> Callable[..., Any]:
  """Compiles a function of scopes.

  The arguments are those of `haiku_state.linen.jit`, but for:

  >>> import jax, jax.numpy as jnp
  >>> from haiku_state import core
  >>> def scale(scope, statics, x):
  ...   return x * scope.param('w', jax.nn.initializers.ones, ())
  >>> model = lambda scope, x: core.jit(scale)(scope, 'scale', x)
  >>> float(core.apply(model)({'params': {'w': jnp.ones(())}}, 3.0))
  3.0

  Args:
    fn: takes the scopes, a hashable that says all that is static about them,
      then the arguments.
    static_argnums: positions of arguments that are not traced, where the scopes
      are at 0.
  """
  # The pure function takes fingerprint, variables and keys before arguments,
  # the caller counts the scopes as one.
  static = (0, *(i + 2 for i in _as_tuple(static_argnums) if i > 0))
  donated = tuple(i + 2 for i in _as_tuple(donate_argnums) if i > 0)
  options: dict[str, Any] = {}
  if device is not None:
    options['device'] = device
  if backend is not None:
    options['backend'] = backend
  compile_fn = functools.partial(
    jax.jit,
    static_argnums=static,
    static_argnames=static_argnames,
    donate_argnums=donated,
    **options,
  )
  return _cached(fn, compile_fn, variables, rngs, 'jit')


def _as_tuple(x: int | Iterable[int]) -> tuple[int, ...]:
  return tuple(x) if isinstance(x, Iterable) else (x,)


def fold_rngs(
  fn: Callable[..., Any],
  variables: CollectionFilter = True,
  rngs: PRNGSequenceFilter = True,
) -> Callable[..., Any]:
  """Derives keys as `jit` does, and does nothing else.

  The arguments are those of `haiku_state.linen.fold_rngs`, but for:

  >>> import jax, jax.numpy as jnp
  >>> from haiku_state import core
  >>> def draw(scope, statics):
  ...   return jax.random.normal(scope.make_rng('noise'))
  >>> def model(scope, lift):
  ...   return lift(draw)(scope, 'draw')
  >>> run, rngs = core.apply(model), {'noise': jax.random.key(0)}
  >>> compiled = run({}, core.jit, rngs=rngs)
  >>> bool(run({}, core.lift.fold_rngs, rngs=rngs) == compiled)
  True

  Args:
    fn: see `jit`.
  """
  return _cached(fn, lambda pure: pure, variables, rngs, 'fold_rngs')
