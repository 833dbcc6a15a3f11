"""What the core knows of Haiku: names, the map of variables, frames, one run.

A run is one call of a function transformed by `hk.transform_with_state`. All
values of the run live in Haiku's frame, under these names::

    variables['params'][path...][name]   ==  params[path][name]
    variables[col][path...][name]        ==  state[path]['col:name']
    variables['state'][path...][name]    ==  state[path][name]

`path` is joined by `/` and begins with the name of the root, which the nested
form does not show. Haiku accepts identifiers as names of modules, Flax accepts
every string, so what is no identifier is escaped: `layer-1` is `layer_0x2d_1`.
"""

from __future__ import annotations

import ast
import functools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import haiku as hk
import haiku.experimental as hk_experimental
import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from haiku_state import traceback_util
from haiku_state.core.frozen_dict import FrozenDict

# Each call of a module goes through Haiku, several frames deep.
traceback_util.register_exclusion(os.path.dirname(hk.__file__))

# Two levels: by the name of the module, by the name of the value.
Bundles = Any

# Haiku's own modules keep their state without a prefix; their state is the
# collection of this name.
HAIKU_COLLECTION = 'state'


# Asked of the type, and once for each: asked of every value, an abstract class
# costs more than all else that is done with the value.
@functools.lru_cache(maxsize=1024)
def _is_mapping_type(cls: type) -> bool:
  return issubclass(cls, Mapping)


def is_level(value: Any) -> bool:
  """Returns whether a value in a variables dict is a level of names.

  That is a mapping of any type: a dict, a FrozenDict of whichever library,
  Haiku's FlatMap, a `types.MappingProxyType`.
  """
  return _is_mapping_type(type(value))


def with_own_levels(tree: Any) -> Any:
  """Returns a tree whose levels are dicts and FrozenDicts of ours.

  Args:
    tree: levels and values.

  Returns:
    The tree itself if its levels are that already; else with dicts in place of
    mappings of other types, and of what holds them.
  """
  if isinstance(tree, FrozenDict):
    own = with_own_levels(tree._dict)
    return tree if own is tree._dict else FrozenDict(own)
  if not is_level(tree):
    return tree
  own = {name: with_own_levels(value) for name, value in tree.items()}
  if isinstance(tree, dict) and all(own[n] is x for n, x in tree.items()):
    return tree
  return own


# --- Names -------------------------------------------------------------------

# `_0x2d_` stands for `-`, `_0x_` for the empty name. `_0xr31_` is a name that is
# no string but the number 1, by its repr: variables may be dicts with such keys.
_LITERAL = '_0xr'
_TOKEN = re.compile(r'_0x([0-9a-f]*)_')
# A raw underscore that would begin a token is itself escaped.
_UNSAFE_IN_MODULE = re.compile(r'[^A-Za-z0-9_]|_(?=0x)|^[0-9]')
_UNSAFE_IN_KEY = re.compile(r'[:/]|_(?=0x)')


def _token(match: re.Match[str]) -> str:
  return f'_0x{ord(match.group()):x}_'


def _untoken(match: re.Match[str]) -> str:
  return chr(int(match.group(1), 16)) if match.group(1) else ''


def _escape_literal(name: Any) -> str:
  """Returns what stands for a name that is no string: a number, say.

  Raises:
    TypeError: nothing could tell from the text of the name what it was.
  """
  text = repr(name)
  try:
    # None is what a collection without variables has in place of a name.
    is_same = name is not None and ast.literal_eval(text) == name
  except (SyntaxError, ValueError):
    is_same = False
  if not is_same:
    raise TypeError(
      f'A variable is a dict with the key {text} of type'
      f' {type(name).__name__}. Keys must be strings, numbers, or tuples of'
      ' those: store the dict under other keys.'
    )
  return f'{_LITERAL}{text.encode().hex()}_'


@functools.lru_cache(maxsize=65536)
def escape_module(name: Any) -> str:
  """Returns the component of a Haiku module name that stands for `name`."""
  if not isinstance(name, str):
    return _escape_literal(name)
  if not name:
    return '_0x_'
  # Haiku puts `~` before names that come from a constructor or a method.
  tilde = name[0] == '~' and (len(name) == 1 or name[1] in _WORD_START)
  head, rest = ('~', name[1:]) if tilde else ('', name)
  return head + _UNSAFE_IN_MODULE.sub(_token, rest)


# Names of parameters of Haiku's own layers, which no layer of linen's has.
LAYER_KEYS = frozenset(('w', 'b', 'w_i', 'w_h', 'offset', 'embeddings'))

_WORD_START = frozenset('abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_')


@functools.lru_cache(maxsize=65536)
def escape_key(name: Any) -> str:
  """Returns the key of a bundle that stands for the variable `name`."""
  if not isinstance(name, str):
    return _escape_literal(name)
  return _UNSAFE_IN_KEY.sub(_token, name) if name else '_0x_'


def unescape(name: str) -> Any:
  """Returns the name that `escape_module` or `escape_key` was given."""
  if name.startswith(_LITERAL):
    return ast.literal_eval(bytes.fromhex(name[len(_LITERAL) : -1]).decode())
  return _TOKEN.sub(_untoken, name)


@functools.lru_cache(maxsize=65536)
def state_key(col: str, name: str) -> str:
  """Returns the key, in a bundle of state, of a variable of a collection."""
  if col == HAIKU_COLLECTION:
    return escape_key(name)
  return f'{escape_key(col)}:{escape_key(name)}'


@functools.lru_cache(maxsize=65536)
def _split_state_key(key: str) -> tuple[str, str | None]:
  """Returns collection and name; no name stands for the collection itself."""
  col, colon, name = key.rpartition(':')
  if not colon:
    return HAIKU_COLLECTION, unescape(name)
  return unescape(col), unescape(name) if name else None


@functools.lru_cache(maxsize=65536)
def _split_path(bundle: str, root: str) -> tuple[str, ...]:
  """Returns the names from the root to a bundle."""
  if bundle == root:
    return ()
  if bundle.startswith(root + '/'):
    return tuple(unescape(c) for c in bundle[len(root) + 1 :].split('/'))
  # A module with a forced name lies outside the root: one absolute component.
  return ('/' + bundle,)


def _is_absolute(name: str, value: Mapping[str, Any], root: str) -> bool:
  """Returns whether a name at the root is what `_split_path` made absolute."""
  bundle = name[1:]
  return (
    name.startswith('/')
    and bundle != root
    and not bundle.startswith(root + '/')
    and not any(map(is_level, value.values()))
  )


# --- The map between variables and Haiku's dictionaries ----------------------


def to_haiku(
  variables: Mapping[str, Any], root: str
) -> tuple[Bundles, Bundles]:
  """Spreads a variables dict over Haiku's parameters and state.

  Args:
    variables: collections by name, nested dicts whose leaves are values.
    root: the Haiku name of the root module.

  Returns:
    `(params, state)`, two levels each. `from_haiku` is the inverse.
  """
  params, state, _ = spread(variables, root, lambda col: False)
  return params, state


# In a tree of names, the leaf of a parameter that is None: Haiku has no such.
NONE = 'none'
# The leaf of state that is one array, for sure: it is in no box.
ARRAY = 'array'


class FrozenNode(dict):
  """A level of names whose values the user gave as a FrozenDict."""


def spread(
  variables: Mapping[str, Any], root: str, mutable: Callable[[str], bool]
) -> tuple[Bundles, Bundles, dict[str, Any]]:
  """Returns `to_haiku` of the variables and the tree of their names.

  Args:
    variables: collections by name.
    root: the Haiku name of the root module.
    mutable: whether a collection may change: then its levels are plain dicts,
      whatever the user gave.

  Returns:
    `(params, state, names)`. `names` has a dict for each level of a collection
    and `True` for each leaf, or `NONE` or `ARRAY`.
  """
  params: Bundles = {}
  state: Bundles = {}
  names: dict[str, Any] = {}
  for col, tree in variables.items():
    frozen = isinstance(tree, FrozenDict) and not mutable(col)
    node = names[col] = FrozenNode() if frozen else {}
    if isinstance(tree, FrozenDict):
      tree = tree._dict  # Its levels below the first are plain dicts.
    if col == 'params':
      target, key = params, escape_key
      # A bundle with nothing in it shows that the collection is there.
      params.setdefault(root, {})
    else:
      target, key = state, functools.partial(state_key, col)
      if not tree:
        state.setdefault(root, {})[f'{escape_key(col)}:'] = {}
    _spread_level(tree, root, target, key, node, root, params)
  return params, state, names


def _spread_level(tree, path, target, key, node, root, params) -> None:
  """Puts the leaves of one level into their bundle, and goes below."""
  bundle = None
  for name, value in tree.items():
    if _is_mapping_type(type(value)) and value:
      child = node[name] = type(node)()
      if path == root and _is_absolute(name, value, root):
        below = name[1:]
      else:
        below = f'{path}/{escape_module(name)}'
      _spread_level(value, below, target, key, child, root, params)
    else:
      # An empty dict is a leaf: Haiku's two levels cannot show it otherwise.
      if bundle is None:
        bundle = target.setdefault(path, {})
      bundle[key(name)] = value
      if _is_mapping_type(type(value)):
        node[name] = type(node)()
      elif target is params:
        node[name] = NONE if value is None else True
      else:
        node[name] = ARRAY if isinstance(value, jax.Array) else True


def from_haiku(
  params: Mapping[str, Mapping[str, Any]],
  state: Mapping[str, Mapping[str, Any]],
  root: str,
) -> dict[str, Any]:
  """Gathers Haiku's parameters and state into a variables dict.

  Args:
    params: parameters by module and name.
    state: state by module and name.
    root: the Haiku name of the root module.

  Returns:
    Collections by name, as nested dicts.

  Raises:
    ValueError: a value and a module have the same name at the same place, of
      which a nested dict can hold only one.
  """
  variables: dict[str, Any] = {}
  for bundle, values in params.items():
    path = _split_path(bundle, root)
    level = _level(variables.setdefault('params', {}), path, bundle)
    for key, value in values.items():
      _place(level, unescape(key), value, bundle)
  gather_state(variables, state, root, lambda col: True)
  return variables


def gather_state(
  variables: dict[str, Any],
  state: Mapping[str, Mapping[str, Any]],
  root: str,
  wanted: Callable[[str], bool],
) -> None:
  """Adds the state of the wanted collections to a variables dict."""
  chosen: dict[str, bool] = {}
  for bundle, values in state.items():
    levels: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
      col, name = _split_state_key(key)
      keep = chosen.get(col)
      if keep is None:
        keep = chosen[col] = wanted(col)
      if not keep:
        continue
      if name is None:
        variables.setdefault(col, {})
        continue
      level = levels.get(col)
      if level is None:
        path = _split_path(bundle, root)
        level = _level(variables.setdefault(col, {}), path, bundle)
        levels[col] = level
      _place(level, name, value, bundle)


def place_of(
  root: str, path: str, key: str, is_param: bool
) -> tuple[str, tuple[str, ...], str | None]:
  """Returns the collection, the names from the root, and the name of a key."""
  names = _split_path(path, root)
  if is_param:
    return 'params', names, unescape(key)
  col, name = _split_state_key(key)
  return col, names, name


def _level(tree: dict[str, Any], path: tuple[str, ...], bundle: str):
  """Returns the dict at `path`, made where it is missing."""
  for name in path:
    below = tree.get(name)
    if below is None and name not in tree:
      below = tree[name] = {}
    elif not isinstance(below, dict):
      raise _both(name, bundle)
    tree = below
  return tree


def _place(level: dict[str, Any], name: str, value: Any, bundle: str) -> None:
  """Puts a leaf into its level; an empty dict only makes sure of its place."""
  if is_level(value) and not value:
    level.setdefault(name, {})
  elif isinstance(level.get(name), dict) and level[name]:
    raise _both(name, bundle)
  else:
    level[name] = value


def _both(name: str, bundle: str) -> ValueError:
  return ValueError(
    f'"{name}" is the name of a value and of a module in Haiku module'
    f' "{bundle}". Nested variables can hold only one of them: rename one, for'
    ' example with the argument `name=` of the module.'
  )


# --- The current frame -------------------------------------------------------


class Missing(Exception):
  """A parameter that was asked for is not in the frame."""


def _raise_missing(shape: Any, dtype: Any) -> Any:
  raise Missing


def current_path() -> str | None:
  """Returns the Haiku name that is current, None outside of any transform."""
  try:
    return hk.current_name()
  except ValueError:
    return None


def at(path: str, fn: Callable[..., Any], *args: Any) -> Any:
  """Calls `fn` where `path` is Haiku's current name.

  Inside a method of the module at `path` it is already; entering a name scope
  costs as much as calling a module.
  """
  if hk.current_name() == path:
    return fn(*args)
  # The scope is a module, which would describe itself at half of the cost.
  was = hk_experimental.module_auto_repr(False)
  try:
    scope = hk.name_scope(hk.force_name(path))
  finally:
    hk_experimental.module_auto_repr(was)
  with scope:
    return fn(*args)


def read_param(path: str, key: str, shape: Any, dtype: Any) -> Any:
  """Returns the parameter, which must be an array of this shape.

  Raises:
    Missing: there is none.
    ValueError, AttributeError: it has another shape, or is no array. The
      caller then asks `read_any_param`.
  """
  if hk.current_name() == path:
    return hk.get_parameter(key, shape, dtype, init=_raise_missing)
  return at(path, read_param, path, key, shape, dtype)


class _OfShape(NamedTuple):
  """Passes Haiku's check of shapes; the true value was taken before it."""

  shape: tuple[int, ...]


def _get_any(key: str, shape: Any, dtype: Any, init: Any) -> Any:
  seen = []

  def take(next_getter: Any, value: Any, context: Any) -> Any:
    del context
    seen.append(next_getter(value))
    _release(next_getter)
    return _OfShape(tuple(shape))

  # Haiku runs the getter that was registered last on the result of the others.
  with hk.custom_getter(take):
    hk.get_parameter(key, shape, dtype, init=init)
  return seen[-1]


def _release(chain: Callable[..., Any]) -> None:
  """Frees Haiku's chain of custom functions, once all of them have run.

  The chain is a function that refers to itself, and to the current module: it
  would keep that, and the tracers that it reaches, until garbage is collected.
  """
  for cell in chain.__closure__ or ():
    try:
      if cell.cell_contents is chain:
        del cell.cell_contents
    except ValueError:
      pass  # A run inside of this one has freed it.


def read_any_param(path: str, key: str) -> Any:
  """Returns the parameter, be it an array, a tuple or a box.

  Raises:
    Missing: there is none.
  """
  return at(path, _get_any, key, (), None, _raise_missing)


def new_param(path: str, key: str, value: Any, again: Callable[[], Any]) -> Any:
  """Adds a parameter to the frame, and returns it as the getters give it.

  Args:
    path: Haiku's name of the module.
    key: the name in its bundle.
    value: the initial value.
    again: makes another initial value, for a custom creator that asks for
      more than one.
  """
  values = iter((value,))
  shape, dtype = shape_of(value), dtype_of(value)

  def init(wanted_shape, wanted_dtype):
    new = next(values, None)
    new = again() if new is None else new
    return fit(new, shape, dtype, wanted_shape, wanted_dtype, key)

  if isinstance(value, (jax.Array, np.ndarray)):
    return at(path, hk.get_parameter, key, shape, dtype, init)
  return at(path, _get_any, key, shape, dtype, init)


def fit(value, shape, dtype, wanted_shape, wanted_dtype, key) -> Any:
  """Returns an initial value as a custom creator wants it."""
  if tuple(wanted_shape) != tuple(shape):
    raise ValueError(
      f'A custom creator asked for "{key}" with shape {tuple(wanted_shape)},'
      f' but its initializer makes shape {tuple(shape)}. Pass another `init` to'
      ' the next creator to make another shape.'
    )
  if wanted_dtype is dtype or wanted_dtype == dtype:
    return value
  return value.astype(wanted_dtype)


def get_or_make_param(path: str, key: str, shape: Any, dtype: Any, make) -> Any:
  """Returns the parameter, made by `make(shape, dtype)` if it is missing."""
  return at(path, hk.get_parameter, key, shape, dtype, make)


class _LateShape(Sequence):
  """The shape of a value of state, found when somebody looks at it.

  Haiku wants shape and dtype before it looks for the value, to tell custom
  getters of them. To find them takes a look at all state: that is for getters
  to pay that ask, and few do.
  """

  __slots__ = ('path', 'key')

  def __init__(self, path: str, key: str):
    self.path, self.key = path, key

  def now(self) -> tuple[int, ...] | None:
    return getattr(_raw_state(self.path, self.key), 'shape', None)

  def __getitem__(self, index):
    return (self.now() or ())[index]

  def __len__(self) -> int:
    return len(self.now() or ())

  def __eq__(self, other: Any) -> bool:
    return self.now() == (tuple(other) if isinstance(other, list) else other)

  __hash__ = None  # type: ignore[assignment]

  def __repr__(self) -> str:
    return repr(self.now())


class _LateDtype:
  """The dtype of a value of state, for whatever takes what has a dtype."""

  __slots__ = ('path', 'key')

  def __init__(self, path: str, key: str):
    self.path, self.key = path, key

  @property
  def dtype(self) -> Any:
    return np.dtype(dtype_of(_raw_state(self.path, self.key)))

  def __eq__(self, other: Any) -> bool:
    return self.dtype == other

  __hash__ = None  # type: ignore[assignment]

  def __repr__(self) -> str:
    return repr(self.dtype)


def _raw_state(path: str, key: str) -> Any:
  """Returns the current value of state, which no getter has seen."""
  return hk.get_current_state()[path][key]


@functools.lru_cache(maxsize=65536)
def _late(path: str, key: str) -> tuple[_LateShape, Any]:
  return _LateShape(path, key), _LateDtype(path, key)


def read_state(path: str, key: str) -> Any:
  """Returns the current value of state; it must be there."""
  if hk.current_name() == path:
    return hk.get_state(key, *_late(path, key))
  return at(path, hk.get_state, key, *_late(path, key))


def find_state(path: str, key: str) -> Any:
  """Returns the current value of state, or raises `Missing`."""
  try:
    return read_state(path, key)
  except ValueError:
    # Without an initializer Haiku raises before any custom creator runs.
    raise Missing from None


def new_state(path: str, key: str, value: Any) -> None:
  """Adds state to the frame; custom creators may replace the value."""
  shape, dtype = shape_of(value), dtype_of(value)

  def init(wanted_shape, wanted_dtype):
    return fit(value, shape, dtype, wanted_shape, wanted_dtype, key)

  at(path, hk.get_state, key, shape, dtype, init)


def write_state(path: str, key: str, value: Any) -> None:
  """Sets the current value of state."""
  if hk.current_name() == path:
    hk.set_state(key, value)
  else:
    at(path, hk.set_state, key, value)


def shape_of(value: Any) -> tuple[int, ...]:
  """Returns the shape of an array; () for what has none."""
  shape = getattr(value, 'shape', ())
  return shape if isinstance(shape, tuple) else ()


def dtype_of(value: Any) -> Any:
  """Returns the dtype of an array; float32 for what has none."""
  return getattr(value, 'dtype', np.float32)


def frame_variables(root: str) -> dict[str, Any]:
  """Returns what the frame holds at and below a module.

  The cost grows with all that the frame holds.
  """
  params, names = hk.get_params(), hk.get_current_state()
  # Inside of `hk.scan` and the like the values there are those from outside.
  state = {
    path: at(path, _current_values, path, bundle)
    for path, bundle in below(names, root).items()
  }
  return from_haiku(below(params, root), state, root)


def _current_values(path: str, names: Any) -> dict[str, Any]:
  return {key: read_state(path, key) for key in names}


def is_below(path: str, root: str) -> bool:
  """Returns whether a bundle belongs to a module or to one below it."""
  return path == root or path.startswith(root + '/')


def below(bundles: Bundles, root: str) -> Bundles:
  """Returns the bundles of a module and those below it."""
  return {path: x for path, x in bundles.items() if is_below(path, root)}


def frame_is_current() -> bool:
  """Returns whether Haiku's frame belongs to the JAX trace that is current."""
  was = hk_experimental.check_jax_usage(True)
  try:
    # It checks first, and to reserve nothing changes nothing.
    hk.reserve_rng_keys(0)
  except ValueError as e:
    # Haiku's error for a wrong trace is public by its name only.
    return type(e).__name__ != 'JaxUsageError'
  finally:
    hk_experimental.check_jax_usage(was)
  return True


# --- One run -----------------------------------------------------------------


def _call(body: Callable[[], Any]) -> Any:
  return body()


_RUN = hk.transform_with_state(_call)


def run_apply(
  params: Bundles, state: Bundles, rng: Any, body: Callable[[], Any]
) -> tuple[Any, Bundles]:
  """Runs `body` with frozen parameters; returns its output and the state."""
  return _RUN.apply(params, state, rng, body)


def run_init(
  params: Bundles,
  state: Bundles,
  rng: Any,
  body: Callable[[], Any],
  note: Callable[[str, str, bool], None],
) -> tuple[Any, Bundles, Bundles, Bundles]:
  """Runs `body` where parameters may be added.

  Haiku adds parameters only in `init`, which starts from nothing, returns the
  first value of each state, and drops the output: so what is given is put in
  at the start, and what came of it is taken at the end.

  Args:
    params: the parameters at the start.
    state: the state at the start.
    rng: the key of Haiku's own modules, or None.
    body: the function, without arguments.
    note: told of each value that is new, and of each state that is set: its
      module, its key, whether it is a parameter.

  Returns:
    The output, the parameters, the state, and the first value of each state.
  """
  out: Any = None
  last_state: Bundles = {}

  def noting_creator(
    next_creator: Any, shape, dtype, init, context: Any, is_param: bool
  ):
    path, _, key = context.full_name.rpartition('/')
    note(path, key, is_param)
    try:
      return next_creator(shape, dtype, init)
    finally:
      _release(next_creator)

  def noting_setter(next_setter, value, context):
    path, _, key = context.full_name.rpartition('/')
    note(path, key, False)
    try:
      return next_setter(value)
    finally:
      _release(next_setter)

  def whole() -> None:
    nonlocal out, last_state
    for path, bundle in params.items():
      at(path, _put_params, bundle)
    for path, bundle in state.items():
      at(path, _put_state, bundle)
    of_param: Any = functools.partial(noting_creator, is_param=True)
    of_state: Any = functools.partial(noting_creator, is_param=False)
    with (
      hk.custom_creator(of_param),
      hk.custom_creator(of_state, params=False, state=True),
      hk.custom_setter(noting_setter),
    ):
      out = body()
    last_state = hk.get_current_state()

  made, first_state = _RUN.init(rng, whole)
  return out, made, last_state, first_state


def _put_params(bundle: Mapping[str, Any]) -> None:
  for key, value in bundle.items():
    if value is not None:
      _get_any(key, (), None, lambda shape, dtype, v=value: v)


def _put_state(bundle: Mapping[str, Any]) -> None:
  for key, value in bundle.items():
    hk.set_state(key, value)


def haiku_rng(rng: jax.Array) -> jax.Array:
  """Returns a key for Haiku's own modules; a typed key is cheap to check."""
  if jnp.issubdtype(rng.dtype, jax.dtypes.prng_key):
    return rng
  if isinstance(rng, jax.core.Tracer):
    return jax.random.wrap_key_data(rng)
  # A key that is not traced must not get into the program that is.
  with jax.ensure_compile_time_eval():
    return jax.random.wrap_key_data(rng)


def rng_was_used(rng: jax.Array) -> bool:
  """Returns whether a run that began with this key has drawn from it."""
  state = hk.maybe_get_rng_sequence_state()
  return state is None or state[0] is not rng or bool(state[1])
