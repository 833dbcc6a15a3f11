"""Haiku's frame: how the values of the run that goes on are read and written.

The stores above it (`_in_run.py`, `_in_haiku.py`) know which values there are;
here is how Haiku gives and takes one.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import haiku as hk
import jax
import numpy as np

from haiku_state import traceback_util
from haiku_state.core import _bundles
from haiku_state.core._bundles import Bundles

# Each call of a module goes through Haiku, several frames deep.
traceback_util.register_exclusion(os.path.dirname(hk.__file__))

# Of what is lifted by us. Forced, so that no other name is counted after it.
LIFTED_NAME = hk.force_name('haiku_state_run')


# Keys by the name of the module, as a set that is ordered.
Names = dict[str, dict[str, None]]


class Missing(Exception):
  """A parameter that was asked for is not in the frame."""


def _raise_missing(shape: Any, dtype: Any) -> Any:
  raise Missing


class _Noted:
  """Makes the initial value of a variable whose name was noted by its store."""

  __slots__ = ('_init',)

  def __init__(self, init: Callable[[Any, Any], Any]):
    self._init = init

  def __call__(self, wanted_shape: Any, wanted_dtype: Any) -> Any:
    return self._init(wanted_shape, wanted_dtype)


def is_noted(context: Any) -> bool:
  """Returns whether a store knows of the variable that is made or read.

  Args:
    context: what Haiku tells a custom creator or getter.
  """
  init = context.original_init
  return type(init) is _Noted or init is _raise_missing


def current_path() -> str | None:
  """Returns the Haiku name that is current, None outside of any transform.

  Raises:
    ValueError: a module of Haiku's has not called the constructor above yet.
  """
  try:
    return hk.current_name()
  except ValueError:
    if _is_in_transform():
      raise
    return None


def _is_in_transform() -> bool:
  try:
    hk.running_init()
  except ValueError:
    return False
  return True


def at(path: str, fn: Callable[..., Any], *args: Any) -> Any:
  """Calls `fn` where `path` is Haiku's current name.

  Inside a method of the module at `path` it is already; entering a name scope
  costs as much as calling a module.
  """
  if hk.current_name() == path:
    return fn(*args)
  # The scope is a module, which would describe itself at half of the cost.
  with hk.config.context(module_auto_repr=False):
    scope = hk.name_scope(hk.force_name(path))
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
    release(next_getter)
    return _OfShape(tuple(shape))

  # Haiku runs the getter that was registered last on the result of the others.
  with hk.custom_getter(take):
    hk.get_parameter(key, shape, dtype, init=init)
  return seen[-1]


def release(chain: Callable[..., Any]) -> None:
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


def new_param(
  path: str,
  key: str,
  value: Any,
  again: Callable[..., Any],
  is_noted: bool = False,
) -> Any:
  """Adds a parameter to the frame, and returns it as the getters give it.

  Args:
    path: Haiku's name of the module.
    key: the name in its bundle.
    value: the initial value.
    again: makes another initial value, for a custom creator that asks for
      more than one; of another shape, if that is given.
    is_noted: whether its name was noted already.
  """
  values = iter((value,))
  shape, dtype = shape_of(value), dtype_of(value)

  def init(wanted_shape, wanted_dtype):
    if tuple(wanted_shape) != shape:
      new = again(wanted_shape)
    else:
      new = next(values, None)
      new = again() if new is None else new
    return fit(new, wanted_shape, wanted_dtype, key)

  init = _Noted(init) if is_noted else init
  if isinstance(value, (jax.Array, np.ndarray)):
    return at(path, hk.get_parameter, key, shape, dtype, init)
  return at(path, _get_any, key, shape, dtype, init)


def fit(value, wanted_shape, wanted_dtype, key) -> Any:
  """Returns an initial value as a custom creator wants it."""
  shape, dtype = shape_of(value), dtype_of(value)
  if tuple(wanted_shape) != shape:
    raise ValueError(
      f'A custom creator asked for "{key}" with shape {tuple(wanted_shape)},'
      f' but its initializer makes shape {shape}. Pass another `init` to the next'
      ' creator to make another shape.'
    )
  if wanted_dtype is dtype or wanted_dtype == dtype:
    return value
  return value.astype(wanted_dtype)


def is_missing(error: ValueError) -> bool:
  """Returns whether Haiku says that `apply` was not given a parameter."""
  return 'Unable to retrieve parameter' in str(error)


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

  def __hash__(self) -> int:
    return hash(self.dtype)

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


def new_state(path: str, key: str, value: Any, is_noted: bool = False) -> None:
  """Adds state to the frame; custom creators may replace the value."""
  shape, dtype = shape_of(value), dtype_of(value)

  def init(wanted_shape, wanted_dtype):
    return fit(value, wanted_shape, wanted_dtype, key)

  init = _Noted(init) if is_noted else init
  at(path, hk.get_state, key, shape, dtype, init)


def write_state(path: str, key: str, value: Any) -> None:
  """Sets the current value of state."""
  if hk.current_name() == path:
    hk.set_state(key, value)
  else:
    at(path, hk.set_state, key, value)


def is_initializing() -> bool:
  """Returns whether parameters may be added to the frame."""
  return hk.running_init()


def put_as_is(params: Bundles, state: Bundles) -> None:
  """Puts values into the frame of an `init`, unseen by anybody's functions.

  Custom creators and setters are for what is made and set in a run. What a run
  begins with, and what an inner run has made, they have seen, or never will: to
  ask them again would change the values, or show them another shape.

  Args:
    params: parameters; None stands for none.
    state: state, the first value and the current one.
  """
  params = {
    path: {key: x for key, x in bundle.items() if x is not None}
    for path, bundle in params.items()
  }
  if not any(params.values()) and not any(state.values()):
    return
  _lift()(params, state)


@functools.cache
def _lift() -> Callable[[Bundles, Bundles], tuple[Bundles, Bundles]]:
  """Returns a function by which Haiku lifts bundles into the frame as they are.

  It is one for all runs: Haiku looks for the frame when it is called.

  Returns:
    A function of parameters and state by whole names. In `init` it puts them
    into the frame; in `apply` it returns what the frame holds.
  """
  made: list[Any] = []

  def take(next_f: Any, args: Any, kwargs: Any, context: Any) -> Any:
    made.append(context.module)
    return next_f(*args, **kwargs)

  with hk.config.context(module_auto_repr=False), hk.intercept_methods(take):
    _, updater = hk.lift_with_state(
      lambda params, state: (params, state), name=LIFTED_NAME, allow_reuse=True
    )
  updater.ignore_update()
  lifting = made[-1]
  lifting.prefix_name = ''  # The names are whole ones.
  # It is no module of the user's: no interceptor is told of the call.
  return functools.partial(inspect.unwrap(type(lifting).__call__), lifting)


def write_as_is(path: str, key: str, value: Any) -> None:
  """Sets the current value of state to one that setters have seen already.

  They are called once more, and what they make of it is not taken.
  """

  def take(next_setter: Any, changed: Any, context: Any) -> Any:
    del changed, context
    release(next_setter)
    return value

  # Haiku asks last the setter that was registered last.
  with hk.custom_setter(take):
    write_state(path, key, value)


def shape_of(value: Any) -> tuple[int, ...]:
  """Returns the shape of an array; () for what has none."""
  shape = getattr(value, 'shape', ())
  return shape if isinstance(shape, tuple) else ()


def dtype_of(value: Any) -> Any:
  """Returns the dtype of an array; float32 for what has none."""
  return getattr(value, 'dtype', np.float32)


def frame_variables(
  root: str, made: tuple[Names, Names], only: str | None = None
) -> dict[str, Any]:
  """Returns what the frame holds at and below a module.

  The cost grows with all that the frame holds.

  Args:
    root: Haiku's name of the module.
    made: the names of parameters, and of state, that were made by it. Inside of
      `hk.remat` and the like Haiku does not list them before those end.
    only: the collection that is wanted; all without it.
  """
  has_params, has_state = only in (None, 'params'), only != 'params'
  if hk.running_init():
    params = _made_params(root, made[0]) if has_params else {}
    state = _made_state(root, made[1]) if has_state else {}
  else:
    params, state = (_bundles.below(held, root) for held in _lift()({}, {}))
  variables: dict[str, Any] = {}
  if has_params:
    variables = _bundles.from_haiku(params, {}, root)
  if has_state:
    _bundles.gather_state(
      variables, state, root, lambda col: only in (None, col)
    )
  return variables


def _made_params(root: str, made: Names) -> Bundles:
  params = _bundles.below(hk.get_params(), root)
  for path, names in _bundles.below(made, root).items():
    listed = params.get(path, {})
    more = [key for key in names if key not in listed]
    if more:
      params[path] = {**listed, **_values(read_any_param, Missing, path, more)}
  return params


def _made_state(root: str, made: Names) -> Bundles:
  state = _bundles.below(hk.get_current_state(), root)
  # Inside of them, the values that Haiku lists are those from outside.
  return {
    path: _values(read_state, ValueError, path, {**listed, **names})
    for path, listed, names in _joined(state, _bundles.below(made, root))
  }


def _joined(first: Any, second: Any) -> Iterator[tuple[str, Any, Any]]:
  """Yields the keys of either mapping, with the values of both."""
  for key in {**first, **second}:
    yield key, first.get(key, {}), second.get(key, {})


def _values(
  read: Callable[[str, str], Any],
  absent: type[Exception],
  path: str,
  keys: Iterable[str],
) -> dict[str, Any]:
  """Returns those values of a bundle that are there.

  Args:
    read: reads one by the module and the key.
    absent: what it raises if there is none.
    path: the module.
    keys: the keys.
  """

  def read_here() -> dict[str, Any]:
    found = {}
    for key in keys:
      try:
        found[key] = read(path, key)
      except absent:
        pass  # What made it was not kept, as in `hk.eval_shape`.
    return found

  return at(path, read_here)


def frame_is_current() -> bool:
  """Returns whether Haiku's frame belongs to the JAX trace that is current."""
  with hk.config.context(check_jax_usage=True):
    try:
      # It checks first, and to reserve nothing changes nothing.
      hk.reserve_rng_keys(0)
    except ValueError as e:
      # Haiku's error for a wrong trace is public by its name only.
      return type(e).__name__ != 'JaxUsageError'
  return True
