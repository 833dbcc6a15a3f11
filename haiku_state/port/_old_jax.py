"""The names that JAX has removed, for a program that needs them.

>>> import jax
>>> from haiku_state.port import installed
>>> with installed():
...   exec('print(jax.tree_map(lambda x: 2 * x, [1, 2]))', {'jax': jax})
[2, 4]

Nothing is set in JAX's modules, but their class. Where a lookup has failed, in a
module of the program, the table `_old_names` is asked; modules of today's
packages, such as this one, see JAX as it is.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.abc
import importlib.machinery
import inspect
import sys
import types
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from haiku_state.port import _old_names, _stand_ins
from haiku_state.port._old_names import Old

# Packages that are written for the JAX that is installed.
_OF_TODAY = frozenset(
  ('chex', 'haiku', 'haiku_state', 'jax', 'jaxlib', 'optax', 'orbax')
)


class Use(NamedTuple):
  """A place where a program uses a name that was put back.

  Attributes:
    row: the name.
    filename: the file.
    line: the line in it.
  """

  row: Old
  filename: str
  line: int


class _WithOldNames(types.ModuleType):
  """A module whose missing names are looked up in the table."""

  def __getattr__(self, name: str) -> object:
    row = _old_names.row_of(f'{self.__name__}.{name}')
    frame = _asking(sys._getframe(1))
    if row is None or frame is None or current() is None:
      # Fails once more, in the words of JAX.
      return super().__getattribute__(name)
    return _given(self, row, frame)

  def __reduce__(self) -> tuple:
    # What pickles modules asks for their exact class.
    return importlib.import_module, (self.__name__,)


def _with_old_arguments(module: types.ModuleType) -> type:
  """Returns the class that a module has while its old names are there.

  A function that had other arguments is looked up in it before the module, so
  that programs find one that takes them.
  """
  members = {}
  for full, arguments in _old_names.ARGUMENTS.items():
    parent, _, name = full.rpartition('.')
    if parent == module.__name__ and name in vars(module):
      taken = inspect.signature(getattr(module, name)).parameters
      gone = {k: row for k, row in arguments.items() if k not in taken}
      if gone:
        members[name] = _function_with(name, gone)
  return type('_WithOldNames', (_WithOldNames,), members)


def _function_with(name: str, arguments: dict[str, Old]) -> property:
  """Returns what gives a function, to programs with arguments that it had."""

  def get(module: types.ModuleType) -> Any:
    function = vars(module)[name]
    return function if _asking(sys._getframe(1)) is None else taking(function)

  @functools.cache  # What is asked for twice is one object, as it was.
  def taking(function: Callable) -> Callable:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
      for old in kwargs.keys() & arguments.keys():
        frame = _asking(sys._getframe(1))
        if frame is not None:
          _note(arguments[old], frame)
        kwargs[arguments[old].keyword] = kwargs.pop(old)
      return function(*args, **kwargs)

    return call

  def put(module: types.ModuleType, value: object) -> None:
    vars(module)[name] = value  # As a program would have it.

  return property(get, put)


class _Remainder(types.ModuleType):
  """A module that JAX has removed: those of its names that are put back."""

  def __getattr__(self, name: str) -> object:
    full = f'{self.__name__}.{name}'
    row = _old_names.row_of(full)
    frame = _asking(sys._getframe(1))
    if row is not None and frame is not None and current() is not None:
      return _given(self, row, frame)
    around = _old_names.row_around(full)
    raise AttributeError(
      f'JAX has no `{full}` any more.'
      + (f' {around.advice}' if around is not None else ''),
      name=name,
      obj=self,
    )


def _given(
  module: types.ModuleType, row: Old, frame: types.FrameType
) -> object:
  """Returns what a module gives a program under a name of the table."""
  found = _restored(row)
  if found is None:
    last = row.name.rpartition('.')[2]
    raise AttributeError(_old_names.missing_message(row), name=last, obj=module)
  _note(row, frame)
  return found


class _Given(importlib.abc.Loader):
  """Loads a module that is there already, as it is."""

  def __init__(self, module: types.ModuleType):
    self._module = module
    self._spec = module.__spec__

  def create_module(self, spec) -> types.ModuleType:
    return self._module

  def exec_module(self, module: types.ModuleType) -> None:
    # `import` has put another one on it.
    module.__spec__ = self._spec


class _Finder(importlib.abc.MetaPathFinder):
  """Finds modules that JAX has removed; the last that is asked."""

  def __init__(self) -> None:
    self.used: dict[Use, None] = {}
    self.found: set[str] = set()
    self.modules: list[types.ModuleType] = []

  def find_spec(
    self,
    fullname: str,
    path: Sequence[str] | None,
    target: types.ModuleType | None = None,
  ) -> importlib.machinery.ModuleSpec | None:
    if not fullname.startswith('jax.'):
      return None
    row = _old_names.row_of(fullname)
    frame = _asking(sys._getframe(1))
    if frame is None or (row is None and fullname not in _old_names.PARTS):
      return None
    found = _remainder(fullname) if row is None else _restored(row)
    if row is not None and found is None:
      # With `name=` Python would go on to an error that gives no advice.
      raise ModuleNotFoundError(_old_names.missing_message(row))
    if not isinstance(found, types.ModuleType):
      return None
    if row is not None and row.is_restored:
      _note(row, frame)
    self.found.add(fullname)
    return importlib.machinery.ModuleSpec(fullname, _Given(found))


def _asking(frame: types.FrameType | None) -> types.FrameType | None:
  """Returns the frame that asks for a name, None if it may not have it."""
  while frame is not None:
    package = str(frame.f_globals.get('__name__')).partition('.')[0]
    if package != 'importlib':
      return None if package in _OF_TODAY else frame
    frame = frame.f_back
  return None


def _note(row: Old, frame: types.FrameType) -> None:
  finder = current()
  if finder is not None:
    use = Use(row, frame.f_code.co_filename, frame.f_lineno)
    finder.used[use] = None


def _restored(row: Old) -> object:
  """Returns what a name stands for, None if it is not put back."""
  if row.same:
    return _resolved(row.same)
  if row.put_back:
    return getattr(_stand_ins, row.name.rpartition('.')[2])
  return _remainder(row.name)


@functools.cache
def _remainder(name: str) -> types.ModuleType | None:
  """Returns a module with what is put back of it, None if that is nothing."""
  return _Remainder(name) if name in _old_names.PARTS else None


@functools.cache
def _resolved(name: str) -> object:
  """Returns what a dotted name stands for."""
  first, *rest = name.split('.')
  found: object = importlib.import_module(first)
  for number, part in enumerate(rest, 1):
    if not hasattr(found, part):
      importlib.import_module('.'.join([first, *rest[:number]]))
    found = getattr(found, part)
  return found


def current() -> _Finder | None:
  """Returns what finds the old names, None if it is not installed."""
  return next((f for f in sys.meta_path if isinstance(f, _Finder)), None)


def install() -> None:
  """Gives programs the names that JAX has removed, where it has."""
  if current() is not None:
    return
  finder = _Finder()
  for name in _PARENTS:
    with contextlib.suppress(ImportError):  # If it is gone: see `_Finder`.
      module = _imported(name)
      if type(module) is types.ModuleType:
        finder.modules.append(module)
  sys.meta_path.append(finder)
  # From here on `uninstall` puts them back, whatever happens.
  _put_on_configuration()
  for module in finder.modules:
    module.__class__ = _with_old_arguments(module)


def _put_on_configuration() -> None:
  """Makes `jax.config`, an object today, the module too that it was."""
  module = _remainder('jax.config')
  assert module is not None
  # An import by a finder would put the module in place of the object.
  sys.modules.setdefault('jax.config', module)
  config: Any = jax.config
  if not hasattr(config, _CONFIG_METHOD):
    setattr(config, _CONFIG_METHOD, _enable_omnistaging)


def _enable_omnistaging() -> None:
  row = _old_names.row_of(f'jax.config.{_CONFIG_METHOD}')
  frame = _asking(sys._getframe(1))
  if row is not None and frame is not None:
    _note(row, frame)


def _take_off_configuration() -> None:
  if isinstance(sys.modules.get('jax.config'), _Remainder):
    del sys.modules['jax.config']
  vars(jax.config).pop(_CONFIG_METHOD, None)


_CONFIG_METHOD = 'enable_omnistaging'
# To import `jax.config`, where it can be, would put a module in place of the object.
_PARENTS = sorted(
  {row.name.rpartition('.')[0] for row in _old_names.OLD_NAMES} - {'jax.config'}
)


def _imported(name: str) -> types.ModuleType:
  """Returns a module of JAX, without a word if it is to be removed.

  Raises:
    ImportError: it is gone.
  """
  if name not in sys.modules:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')
      importlib.import_module(name)
  return sys.modules[name]


def uninstall() -> list[Use]:
  """Leaves JAX as it was.

  Returns:
    Which names were used, and where.
  """
  finder = current()
  if finder is None:
    return []
  for module in finder.modules:
    module.__class__ = types.ModuleType
  for name in finder.found:
    parent, _, last = name.rpartition('.')
    sys.modules.pop(name, None)
    vars(sys.modules[parent]).pop(last, None)
  _take_off_configuration()
  # Last: until then it can be called again.
  sys.meta_path.remove(finder)
  return list(finder.used)


def used() -> list[Use]:
  """Returns which of the names a program has used so far, and where."""
  finder = current()
  return [] if finder is None else list(finder.used)
