"""An import hook: `import flax` gives the modules of this package.

>>> from haiku_state import linen
>>> from haiku_state.port import installed
>>> with installed():
...   import flax.linen as nn
>>> nn is linen
True
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Callable, Iterator, Sequence

from haiku_state.port import _names
from haiku_state.port._names import OURS, THEIRS


class _Alias(importlib.abc.Loader):
  """Loads a module of this package under Flax's name: the same object."""

  def __init__(self, finder: _Finder, module: types.ModuleType):
    self._finder = finder
    self._module = module
    self._spec = module.__spec__

  def create_module(self, spec) -> types.ModuleType:
    return self._module

  def exec_module(self, module: types.ModuleType) -> None:
    # It has run under its own name; import has put Flax's spec on it.
    module.__spec__ = self._spec
    self._finder.explain_missing(module)


class _Finder(importlib.abc.MetaPathFinder):
  """Finds `flax` and all that is in it, and nothing else."""

  def __init__(self) -> None:
    self._explained: dict[str, types.ModuleType] = {}
    self._getters: dict[str, Callable[[str], object]] = {}
    self.hidden: dict[str, types.ModuleType] = {}

  def find_spec(
    self,
    fullname: str,
    path: Sequence[str] | None,
    target: types.ModuleType | None = None,
  ) -> importlib.machinery.ModuleSpec | None:
    if fullname.startswith(OURS + '.'):
      # `from flax import nnx` asks for a submodule of the module's own name.
      if importlib.machinery.PathFinder.find_spec(fullname, path) is None:
        raise _no_module(_names.theirs(fullname))
      return None
    if not _names.is_package(fullname, THEIRS):
      return None
    name = _names.ours(fullname)
    if not _names.module_exists(name):
      raise _no_module(fullname)
    module = importlib.import_module(name)
    return importlib.machinery.ModuleSpec(
      fullname, _Alias(self, module), is_package=hasattr(module, '__path__')
    )

  def explain_missing(self, module: types.ModuleType) -> None:
    """Makes the error for an attribute that is missing say what to write."""
    name = module.__name__
    if name in self._explained:
      return
    before = module.__dict__.get('__getattr__')

    def getter(attribute: str) -> object:
      if before is not None:
        try:
          return before(attribute)
        except AttributeError:
          pass
      if attribute.startswith('__'):
        raise AttributeError(f'module {name!r} has no attribute {attribute!r}')
      full = f'{_names.theirs(name)}.{attribute}'
      if _names.module_exists(_names.ours(full)):
        # `import flax` alone does not import all of its modules.
        return importlib.import_module(_names.ours(full))
      raise AttributeError(
        _names.missing_message(full), name=attribute, obj=module
      )

    self._explained[name] = module
    if before is not None:
      self._getters[name] = before
    module.__dict__['__getattr__'] = getter

  def forget(self) -> None:
    """Leaves the modules as they were."""
    for name, module in self._explained.items():
      module.__dict__.pop('__getattr__', None)
      if name in self._getters:
        module.__dict__['__getattr__'] = self._getters[name]


def _no_module(name: str) -> ModuleNotFoundError:
  # With `name=` Python would take it for "no such submodule" and go on, in
  # `from flax import nnx`, to an error that gives no advice.
  return ModuleNotFoundError(_names.missing_message(name))


def _take_modules() -> dict[str, types.ModuleType]:
  """Removes `flax` and its submodules from the modules that are loaded."""
  names = [n for n in sys.modules if _names.is_package(n, THEIRS)]
  return {name: sys.modules.pop(name) for name in names}


def _current() -> _Finder | None:
  return next((f for f in sys.meta_path if isinstance(f, _Finder)), None)


def install() -> None:
  """Makes `import flax` give the modules of this package.

  `flax.linen` is then `haiku_state.linen`, the same object, and so on. The real
  Flax, also one that was imported before, is out of reach. A name that is not
  here raises an error that says what to write instead.
  """
  if _current() is not None:
    return
  finder = _Finder()
  finder.hidden = _take_modules()
  sys.meta_path.insert(0, finder)
  importlib.import_module(OURS)


def uninstall() -> None:
  """Makes `import flax` give Flax again, if it is installed."""
  finder = _current()
  if finder is None:
    return
  sys.meta_path.remove(finder)
  finder.forget()
  _take_modules()
  sys.modules.update(finder.hidden)


@contextlib.contextmanager
def installed() -> Iterator[None]:
  """Installs the hook for the duration of a `with` block."""
  was = _current()
  install()
  try:
    yield
  finally:
    if was is None:
      uninstall()
