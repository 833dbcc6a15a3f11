"""Haiku's transformed functions as linen-style modules, and the reverse."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import haiku as hk
import jax

from haiku_state import errors
from haiku_state.core.filters import DenyList
from haiku_state.interop import trees
from haiku_state.interop._checks import described
from haiku_state.linen._module.haiku_names import haiku_name
from haiku_state.linen.module import Module, nowrap

# Which stream a Haiku function, which knows one, takes its key from.
_STREAMS = ('haiku', 'apply', 'dropout', 'params')
_NO_STATE = frozenset(('params', 'intermediates'))

Collection = str | Callable[[str, str], str]

# --- A Haiku function as a module --------------------------------------------


class HaikuFunction(Module):
  """A Haiku function as a linen-style module; `as_module` makes it.

  Attributes:
    transformed: what `hk.transform_with_state` or its like returned.
    collection: the collection of the state.
    stream: the stream of the keys.
  """

  transformed: Any
  collection: Collection = 'state'
  stream: str | None = None

  def __call__(self, *args: Any, **kwargs: Any) -> Any:
    fn = self.transformed.apply
    if callable(fn):
      return self._invoke(fn, args, kwargs)
    if not self.is_initializing():
      names = ', '.join(repr(name) for name in _methods_of(self.transformed))
      raise TypeError(
        'A multi-transformed function has no `__call__`. Pass `method=`, one of'
        f' {names}.'
      )
    return self._make(args, kwargs)

  @nowrap
  def _invoke(self, fn: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    if self.is_initializing():
      self._make(args, kwargs)
    params, state = self._read()
    out, new = self._guarded(fn, params, state, self._key(), *args, **kwargs)
    if not self.is_initializing():
      self._write(new)
    return out

  @nowrap
  def _make(self, args: tuple, kwargs: dict[str, Any]) -> None:
    """Makes the parameters and the state, unless an earlier call has."""
    if set(self.variables) - {'intermediates'}:
      return
    rng = self.make_rng('params') if self.has_rng('params') else self._key()
    init = self.transformed.init
    params, state = self._guarded(init, rng, *args, **kwargs)
    tree = trees.from_haiku(params).get('params', {})
    for name, value in tree.items():
      self.put_variable('params', name, value)
    self._write(state)

  @nowrap
  def _collection_of(self, path: str, key: str) -> str:
    """Returns the collection of a value of Haiku's state."""
    col = self.collection
    return col if isinstance(col, str) else col(path, key)

  @nowrap
  def _read(self) -> tuple[trees.Bundles, trees.Bundles]:
    own = self.variables
    params, _ = trees.to_haiku({'params': own.get('params', {})})
    state: trees.Bundles = {}
    for col, tree in own.items():
      if col in _NO_STATE or not tree:
        continue
      # As Haiku's own, and as that of a linen-style module in the function.
      _, plain = trees.to_haiku({'state': tree})
      _, named = trees.to_haiku({col: tree})
      for path, bundle in plain.items():
        for (key, value), full in zip(bundle.items(), named[path]):
          is_haikus = self._collection_of(path, key) == col
          state.setdefault(path, {})[key if is_haikus else full] = value
    return _filled(params), _filled(state)

  @nowrap
  def _write(self, new: Mapping[str, Any]) -> None:
    """Puts what has changed, and what is new, into its collection."""
    parts: dict[str, trees.Bundles] = {}
    for path, bundle in new.items():
      for key, value in bundle.items():
        col, _, name = key.rpartition(':')
        if not col:
          col = self._collection_of(path, key)
        elif self._collection_of(path, name) == col:
          raise ValueError(
            f'The Haiku function has a linen-style module with state in "{col}",'
            ' the collection that was chosen for the state of Haiku modules.'
            ' Pass another `collection=`.'
          )
        parts.setdefault(col, {}).setdefault(path, {})[name] = value
    own = self.variables
    for col, bundles in parts.items():
      tree = trees.from_haiku({}, bundles)['state']
      before = own.get(col, {})
      for name, value in tree.items():
        if not _is_same(value, before.get(name)):
          if not self.is_mutable_collection(col):
            *above, last = name, *_first_change(value, before.get(name))
            path = '/'.join((*self.path, *above))
            raise errors.ModifyScopeVariableError(col, last, f'/{path}')
          self.put_variable(col, name, value)

  @nowrap
  def _key(self) -> jax.Array | None:
    names = _STREAMS if self.stream is None else (self.stream,)
    name = next((n for n in names if self.has_rng(n)), None)
    return None if name is None else self.make_rng(name)

  @nowrap
  def _guarded(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls a function of Haiku's; a missing key is told as linen tells it."""
    try:
      return fn(*args, **kwargs)
    except ValueError as e:
      # Haiku's error is public by its name only.
      if type(e).__name__ != 'MissingRNGError':
        raise
      stream = self.stream or _STREAMS[0]
      raise errors.InvalidRngError(
        f'{type(self).__name__} at "/{"/".join(self.path)}" needs a key for its'
        f' Haiku function. Pass rngs={{{stream!r}: key}}.'
      ) from e


def _first_change(new: Any, old: Any) -> tuple[str, ...]:
  """Returns the names that lead to the first value that is another."""
  if not isinstance(new, Mapping):
    return ()
  old = old if isinstance(old, Mapping) else {}
  for name, value in new.items():
    if not _is_same(value, old.get(name)):
      return name, *_first_change(value, old.get(name))
  return ()


def _is_same(a: Any, b: Any) -> bool:
  """Returns whether two nested dicts have the same objects as leaves."""
  if not isinstance(a, dict) or not isinstance(b, Mapping):
    return a is b
  return a.keys() == b.keys() and all(_is_same(a[k], b[k]) for k in a)


def _filled(bundles: trees.Bundles) -> trees.Bundles:
  """Returns bundles without empty ones, which Haiku does not make."""
  return {path: bundle for path, bundle in bundles.items() if bundle}


def as_module(
  transformed: Any,
  *,
  collection: Collection = 'state',
  stream: str | None = None,
  name: str | None = None,
) -> Module:
  """Gives a transformed Haiku function as a linen-style module.

  Its variables are the function's own, nested by the parts of Haiku's names, so
  `interop.to_haiku(variables)` gives what Haiku would.

  >>> import haiku as hk, jax, jax.numpy as jnp
  >>> f = hk.transform_with_state(lambda x: hk.BatchNorm(True, True, 0.9)(x, True))
  >>> module = as_module(f, collection='batch_stats')
  >>> variables = module.init(jax.random.key(0), jnp.ones((2, 3)))
  >>> _, new = module.apply(variables, jnp.ones((2, 3)), mutable=['batch_stats'])
  >>> list(new)
  ['batch_stats']

  Args:
    transformed: the result of `hk.transform`, `hk.transform_with_state`,
      `hk.multi_transform` or `hk.multi_transform_with_state`. The functions of
      the last two are methods: their names are those of a dict or NamedTuple,
      or `apply_0`, `apply_1` and so on. `init` takes the arguments of the
      template.
    collection: the collection of its state, or a function of a Haiku module's
      name and a name in it. State that is first made in `apply` is kept like
      all other, if the collection is mutable.
    stream: the stream of its keys in `apply`. By default the first that is
      there of `haiku`, `apply`, `dropout` and `params`. `init` uses `params`.
    name: the name of the module.

  Returns:
    The module.

  Raises:
    TypeError: it is no transformed function.
  """
  if isinstance(transformed, Module):
    raise TypeError(
      f'{type(transformed).__name__} is a linen-style module already: use it as'
      ' it is. `as_transformed` gives a module as a Haiku function.'
    )
  if isinstance(transformed, type) or not (
    hasattr(transformed, 'init') and hasattr(transformed, 'apply')
  ):
    raise TypeError(
      f'Expected what hk.transform returns, found {described(transformed)}.'
      ' Write `as_module(hk.transform_with_state(f))`.'
    )
  if isinstance(transformed, (hk.Transformed, hk.MultiTransformed)):
    transformed = _with_empty_state(transformed)
  kind = HaikuFunction
  if not callable(transformed.apply):
    kind = _with_methods(tuple(_methods_of(transformed)))
  return kind(transformed, collection, stream, name=name)


def _with_empty_state(transformed: Any) -> Any:
  """Returns a function without state as one that has none to keep."""

  def init(*args, **kwargs):
    return transformed.init(*args, **kwargs), {}

  def with_state(fn):
    def apply(params, state, rng, *args, **kwargs):
      return fn(params, rng, *args, **kwargs), state

    return apply

  if callable(transformed.apply):
    return hk.TransformedWithState(init, with_state(transformed.apply))
  return hk.MultiTransformedWithState(
    init, jax.tree.map(with_state, transformed.apply)
  )


def _methods_of(transformed: Any) -> dict[str, Callable[..., Any]]:
  """Returns the functions of a multi-transformed function by name."""
  methods = {}
  for path, fn in jax.tree_util.tree_leaves_with_path(transformed.apply):
    parts = [_key_text(key) for key in path]
    name = '_'.join(parts)
    name = name if name.isidentifier() else f'apply_{name}'
    if name in methods or hasattr(Module, name):
      raise ValueError(
        f'The functions of a multi-transform need names of their own: "{name}"'
        ' is taken. Return a dict or a NamedTuple with other names.'
      )
    methods[name] = fn
  return methods


def _key_text(key: Any) -> str:
  for attribute in ('name', 'key', 'idx'):
    if hasattr(key, attribute):
      return str(getattr(key, attribute))
  return str(key)


@functools.lru_cache(maxsize=256)
def _with_methods(names: tuple[str, ...]) -> type[HaikuFunction]:
  """Returns a class of module with a method for each function."""

  def method_of(name):
    def method(self, *args, **kwargs):
      fn = _methods_of(self.transformed)[name]
      return self._invoke(fn, args, kwargs)

    method.__name__ = method.__qualname__ = name
    return method

  methods: dict[str, Any] = {name: method_of(name) for name in names}
  return type(
    'HaikuFunctions', (HaikuFunction,), {**methods, '__module__': __name__}
  )


# --- A module as a Haiku function --------------------------------------------


def as_transformed(
  module: Module,
  method: Callable[..., Any] | str | None = None,
  *,
  streams: Sequence[str] = ('params',),
  root: str | None = None,
) -> hk.TransformedWithState:
  """Gives a linen-style module as a transformed Haiku function.

  `init` makes the same numbers as the module's own, and `apply` updates all
  collections but `params` and `intermediates`, also those that it makes first.

  >>> import jax, jax.numpy as jnp
  >>> import haiku_state.linen as nn
  >>> f = as_transformed(nn.Dense(2))
  >>> params, state = f.init(jax.random.key(0), jnp.ones((1, 3)))
  >>> jax.tree.map(jnp.shape, params)
  {'dense': {'bias': (2,), 'kernel': (3, 2)}}
  >>> y, state = f.apply(params, state, None, jnp.ones((1, 3)))

  Args:
    module: the module, not bound.
    method: what to call, by default `__call__`.
    streams: the streams of keys. One gets the key as it is, and stands for
      `params` by which linen replaces those that are missing; several get a
      part each.
    root: the name of the module among Haiku's, by default as Haiku would name
      it inside of a function.

  Returns:
    The pair `(init, apply)`.

  Raises:
    TypeError: it is no module.
  """
  _check_module(module, 'as_transformed')
  root = haiku_name(module) if root is None else root

  def init(rng, *args, **kwargs) -> Any:
    rngs = _split(rng, streams) or {}
    variables = module.init(rngs, *args, method=method, **kwargs)
    return trees.to_haiku(variables, root)

  return hk.TransformedWithState(init, _apply_of(module, method, streams, root))


def _check_module(module: Any, function: str) -> None:
  if isinstance(module, Module):
    return
  if hasattr(module, 'init') and not isinstance(module, type):
    raise TypeError(
      f'{function} takes a linen-style module, found {described(module)}, which'
      ' is a Haiku function already. `as_module` gives one as a module.'
    )
  raise TypeError(
    f'{function} takes a linen-style module, found {described(module)}. Write'
    f' `{function}(nn.Dense(2))`.'
  )


def _apply_of(module, method, streams, root) -> Callable[..., Any]:
  """Returns a method of a module as Haiku's `apply`."""

  def apply(params, state, rng, *args, **kwargs):
    variables = trees.from_haiku(params, state, root)
    out, new = module.apply(
      variables,
      *args,
      rngs=_split(rng, streams),
      mutable=DenyList(tuple(_NO_STATE)),
      method=method,
      **kwargs,
    )
    return out, trees.to_haiku(new, root)[1]

  return apply


def _split(
  rng: jax.Array | None, streams: Sequence[str]
) -> dict[str, jax.Array] | None:
  """Returns a key for each stream; one stream gets the key itself."""
  if rng is None:
    return None
  if len(streams) == 1:
    return {streams[0]: rng}
  return dict(zip(streams, jax.random.split(rng, len(streams))))


def as_multi_transformed(
  module: Module,
  methods: Any,
  init_method: Callable[..., Any] | str | None = None,
  *,
  streams: Sequence[str] = ('params',),
  root: str | None = None,
) -> hk.MultiTransformedWithState:
  """Gives methods of a linen-style module as a multi-transformed function.

  >>> import jax, jax.numpy as jnp
  >>> import haiku_state.linen as nn
  >>> from haiku_state import interop
  >>> class Coder(nn.Module):
  ...   def setup(self):
  ...     self.down, self.up = nn.Dense(2), nn.Dense(3)
  ...   def encode(self, x):
  ...     return self.down(x)
  ...   def __call__(self, x):
  ...     return self.up(self.encode(x))
  >>> f = interop.as_multi_transformed(Coder(), ('__call__', 'encode'))
  >>> params, state = f.init(jax.random.key(0), jnp.ones((1, 3)))
  >>> code, _ = f.apply[1](params, state, None, jnp.ones((1, 3)))
  >>> code.shape
  (1, 2)

  Args:
    module: the module, not bound.
    methods: names of methods, or methods, in a dict, tuple or NamedTuple.
    init_method: the method that makes the variables, by default `__call__`.
    streams: see `as_transformed`.
    root: see `as_transformed`.

  Returns:
    The pair `(init, apply)`, in which `apply` has the structure of `methods`.

  Raises:
    TypeError: it is no module.
  """
  _check_module(module, 'as_multi_transformed')
  root = haiku_name(module) if root is None else root
  init, _ = as_transformed(module, init_method, streams=streams, root=root)
  return hk.MultiTransformedWithState(
    init,
    jax.tree.map(
      lambda method: _apply_of(module, method, streams, root), methods
    ),
  )
