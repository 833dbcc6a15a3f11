"""The flags of haiku_state, their environment variables, and `config`.

Each flag has Flax's name, and an environment variable of that name in upper
case which is read once, at import. `config.update` changes a flag later on:

  >>> from haiku_state.configurations import config
  >>> config.flax_preserve_adopted_names
  False
  >>> config.update('flax_preserve_adopted_names', True)
  >>> config.flax_preserve_adopted_names
  True
  >>> config.update('flax_preserve_adopted_names', False)

One default differs from Flax's: `flax_return_frozendict` is True, so that the
documented `state, params = variables.pop('params')` works as it is written.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar, overload

_T = TypeVar('_T')

_TRUE_WORDS = ('y', 'yes', 't', 'true', 'on', '1')
_FALSE_WORDS = ('n', 'no', 'f', 'false', 'off', '0')


class Config:
  """Holds the value of every flag, as a plain attribute.

  Flags are read for every module call and every parameter, hence attributes
  and not properties. They change through `update` alone.

  Example:
    >>> from haiku_state.configurations import config
    >>> config.flax_profile
    True
  """

  _values: dict[str, Any]

  if TYPE_CHECKING:

    def __getattr__(self, name: str) -> Any: ...

  def __init__(self):
    self._values = {}

  def __setattr__(self, name: str, value: Any) -> None:
    # `_values` is the register, the other attributes repeat it. Tests put an
    # empty register in its place for a while, and then this one back.
    if name != '_values':
      raise AttributeError(
        f'Cannot set {name!r} on the config. Write '
        f'`config.update({name!r}, {value!r})` instead.'
      )
    attributes = vars(self)
    attributes.clear()
    attributes.update(value, _values=value)

  def _write(self, name, value):
    self._values[name] = vars(self)[name] = value

  def _add_option(self, name, default):
    if name in self._values:
      raise RuntimeError(f'Config option {name} already defined')
    self._write(name, default)

  def _read(self, name):
    if name not in self._values:
      raise LookupError(f'Unrecognized config option: {name}')
    return self._values[name]

  @overload
  def update(self, name: str, value: Any, /) -> None: ...

  @overload
  def update(self, holder: 'FlagHolder[_T]', value: _T, /) -> None: ...

  def update(self, name_or_holder, value, /):
    """Sets a flag.

    Args:
      name_or_holder: the name of the flag, or what `bool_flag` returned.
      value: the new value.

    Raises:
      LookupError: there is no such flag.
    """
    if isinstance(name_or_holder, FlagHolder):
      name_or_holder = name_or_holder.name
    self._read(name_or_holder)
    self._write(name_or_holder, value)

  @contextlib.contextmanager
  def temp_flip_flag(self, var_name: str, var_value: bool) -> Iterator[None]:
    """Sets a flag for the duration of a `with` block.

    Args:
      var_name: the name of the flag without the leading `flax_`.
      var_value: the value within the block.

    Example:
      >>> from haiku_state.configurations import config
      >>> with config.temp_flip_flag('profile', False):
      ...   config.flax_profile
      False
      >>> config.flax_profile
      True
    """
    name = f'flax_{var_name}'
    before = getattr(self, name)
    # Twice, for an error that comes in place of the first time. This file is
    # also read alone: it imports nothing of ours.
    try:
      try:
        self.update(name, var_value)
        yield
      finally:
        self.update(name, before)
    finally:
      self.update(name, before)

  def __repr__(self):
    lines = ', '.join(f'\n  {k}={v!r}' for k, v in self._values.items())
    return f'Config({lines}\n)'


config = Config()


class FlagHolder(Generic[_T]):
  """Stands for one flag: `holder.value` is the flag's value now.

  Args:
    name: the name of the flag.
    help: what the flag does, for the docstring.
  """

  def __init__(self, name, help):
    self.name = name
    self.__name__ = name.removeprefix('flax')
    self.__doc__ = f'Flag holder for `{name}`.\n\n{help}'

  def __bool__(self) -> NoReturn:
    # `if flax_profile:` would be true whatever the flag says.
    kind = type(self).__name__
    raise TypeError(
      f"bool() not supported for instances of type '{kind}' "
      f"(did you mean to use '{kind}.value' instead?)"
    )

  @property
  def value(self) -> _T:
    """The value of the flag now."""
    return config._read(self.name)


def bool_flag(name: str, *, default: bool, help: str) -> FlagHolder[bool]:
  """Defines a flag that is true or false.

  Args:
    name: the flag's name; lower case in `config`, upper case in the
      environment.
    default: the value if the environment does not say.
    help: what the flag does.

  Returns:
    A holder of the flag.

  Raises:
    RuntimeError: the name is taken.
    ValueError: the environment variable is not a truth value.
  """
  name = name.lower()
  config._add_option(name, static_bool_env(name.upper(), default))
  return FlagHolder[bool](name, help)


def int_flag(name: str, *, default: int | None, help: str) -> FlagHolder[int]:
  """Defines a flag that is a number, or None.

  Args:
    name: the flag's name; lower case in `config`, upper case in the
      environment.
    default: the value if the environment does not say.
    help: what the flag does.

  Returns:
    A holder of the flag.

  Raises:
    RuntimeError: the name is taken.
    ValueError: the environment variable is not a number.
  """
  name = name.lower()
  config._add_option(name, static_int_env(name.upper(), default))
  return FlagHolder[int](name, help)


def static_bool_env(varname: str, default: bool) -> bool:
  """Reads an environment variable as a truth value.

  Args:
    varname: the name of the variable.
    default: the value if it is not set.

  Returns:
    True for y, yes, t, true, on and 1, False for n, no, f, false, off and 0,
    in upper or lower case.

  Raises:
    ValueError: it is set to anything else.
  """
  word = os.getenv(varname, str(default)).lower()
  if word in _TRUE_WORDS:
    return True
  if word in _FALSE_WORDS:
    return False
  raise ValueError(f'invalid truth value {word!r} for environment {varname!r}')


def static_int_env(varname: str, default: int | None) -> int | None:
  """Reads an environment variable as a whole number.

  Args:
    varname: the name of the variable.
    default: the value if it is not set.

  Returns:
    The number.

  Raises:
    ValueError: it is set to something that is not a number.
  """
  word = os.getenv(varname)
  if word is None:
    return default
  try:
    return int(word)
  except ValueError:
    raise ValueError(
      f'invalid integer value {word!r} for environment {varname!r}'
    ) from None


flax_filter_frames = bool_flag(
  'flax_filter_frames',
  default=True,
  help='Whether tracebacks leave out the frames of this package.',
)

flax_profile = bool_flag(
  'flax_profile',
  default=True,
  help='Whether methods of modules run under `jax.named_scope`, for profiles.',
)

flax_use_orbax_checkpointing = bool_flag(
  'flax_use_orbax_checkpointing',
  default=True,
  help='Whether checkpoints are saved by Orbax.',
)

flax_preserve_adopted_names = bool_flag(
  'flax_preserve_adopted_names',
  default=False,
  help='Whether a module that is adopted from outside keeps its own name.',
)

flax_return_frozendict = bool_flag(
  'flax_return_frozendict',
  default=True,
  help='Whether init and apply return a FrozenDict, not a dict.',
)

flax_fix_rng = bool_flag(
  'flax_fix_rng_separator',
  default=False,
  help='Whether names folded into a key are kept apart by a separator.',
)

# Nothing below concerns linen-style modules: these flags steer Flax's other
# API. They are defined so that programs which set or print them run.

flax_use_flaxlib = bool_flag(
  'flax_use_flaxlib',
  default=False,
  help='Whether Flax uses its C++ library. Not read here.',
)

flax_array_ref = bool_flag(
  'flax_array_ref',
  default=False,
  help='Whether nnx variables hold array references. Not read here.',
)

flax_pytree_module = bool_flag(
  'flax_pytree_module',
  default=True,
  help='Whether nnx modules are pytrees. Not read here.',
)

flax_max_repr_depth = int_flag(
  'flax_max_repr_depth',
  default=None,
  help='How deep an nnx repr goes; None is all the way. Not read here.',
)

flax_always_shard_variable = bool_flag(
  'flax_always_shard_variable',
  default=True,
  help='Whether annotated nnx variables are sharded. Not read here.',
)

flax_hijax_variable = bool_flag(
  'flax_hijax_variable',
  default=False,
  help='Whether nnx variables are HiJAX types. Not read here.',
)

nnx_graph_mode = bool_flag(
  'nnx_graph_mode',
  default=True,
  help='Whether nnx treats modules as graphs, not trees. Not read here.',
)

nnx_graph_updates = bool_flag(
  'nnx_graph_updates',
  default=True,
  help='Whether nnx walks graphs dynamically. Not read here.',
)
