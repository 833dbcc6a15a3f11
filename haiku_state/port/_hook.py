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
import importlib.metadata
import os
import sys
import types
from collections.abc import Callable, Iterator, Sequence

from haiku_state._extents import restored
from haiku_state.port import _names, _old_jax
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
    self._finder.explain_missing(module, _names.theirs(module.__name__))


class _Package(types.ModuleType):
  """`flax` itself: all that this package has, and the version of Flax.

  What a program sets on it is set on this package.
  """

  def __init__(self, ours: types.ModuleType):
    super().__init__(THEIRS, ours.__doc__)
    own = vars(self)
    own.update({k: v for k, v in vars(ours).items() if not k.startswith('_')})
    own.update(__file__=ours.__file__, __version__=_names.VERSION)
    for name in ('__all__', '__dir__', '__getattr__'):
      own[name] = vars(ours)[name]
    own['_ours'] = ours

  def __setattr__(self, name: str, value: object) -> None:
    super().__setattr__(name, value)
    if not name.startswith('__'):
      setattr(self._ours, name, value)

  def __delattr__(self, name: str) -> None:
    super().__delattr__(name)
    if not name.startswith('__'):
      delattr(self._ours, name)


class _PackageLoader(importlib.abc.Loader):
  """Loads `flax` itself."""

  def __init__(self, finder: _Finder):
    self._finder = finder

  def create_module(self, spec) -> types.ModuleType:
    return _Package(importlib.import_module(OURS))

  def exec_module(self, module: types.ModuleType) -> None:
    self._finder.explain_missing(module, THEIRS)


class _Distribution(importlib.metadata.Distribution):
  """What programs that ask for Flax's version are told is installed."""

  def read_text(self, filename: str) -> str | None:
    if filename != 'METADATA':
      return None
    return f'Metadata-Version: 2.1\nName: {THEIRS}\nVersion: {_names.VERSION}\n'

  def locate_file(self, path: str | os.PathLike[str]):
    # There are no files: the package is this one.
    raise FileNotFoundError(path)


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
    if fullname == THEIRS:
      loader = _PackageLoader(self)
      spec = importlib.machinery.ModuleSpec(THEIRS, loader, is_package=True)
      ours = importlib.import_module(OURS)
      spec.submodule_search_locations = list(ours.__path__)
      return spec
    if fullname.startswith(OURS + '.'):
      # `from flax.x import y` asks for a submodule of the module's own name.
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

  def find_distributions(
    self, context: importlib.metadata.DistributionFinder.Context
  ) -> Iterator[importlib.metadata.Distribution]:
    """Returns Flax, which a program may ask for its version."""
    if context.name is None or context.name.lower() == THEIRS:
      yield _Distribution()

  def explain_missing(self, module: types.ModuleType, name: str) -> None:
    """Makes the error for an attribute that is missing say what to write.

    Args:
      module: the module.
      name: what Flax's programs call it.
    """
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
        raise AttributeError(
          f'module {module.__name__!r} has no attribute {attribute!r}'
        )
      full = f'{name}.{attribute}'
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


def loaded() -> dict[str, types.ModuleType]:
  """Returns `flax` and its submodules, of the modules that are loaded."""
  modules = list(sys.modules.items())
  return {n: module for n, module in modules if _names.is_package(n, THEIRS)}


def _unload() -> None:
  """Removes `flax` and its submodules from the modules that are loaded."""
  for name in loaded():
    del sys.modules[name]


def current() -> _Finder | None:
  """Returns the hook, None if it is not installed."""
  return next((f for f in sys.meta_path if isinstance(f, _Finder)), None)


def install(old_jax: bool = True) -> None:
  """Makes `import flax` give the modules of this package.

  `flax.linen` is then `haiku_state.linen`, the same object, and so on; `flax`
  itself has what `haiku_state` has, and the version of the Flax that it behaves
  as. The real Flax, also one that was imported before, is out of reach. A name
  that is not here raises an error that says what to write instead.

  >>> from haiku_state import linen, port
  >>> port.install()
  >>> import flax.linen as nn
  >>> nn is linen
  True
  >>> port.uninstall()

  Args:
    old_jax: whether programs also find the names that JAX has removed, such as
      `jax.tree_map`, where they are small; see "Names that JAX has removed".
  """
  if old_jax:
    _old_jax.install()
  if current() is not None:
    return
  # It brings Haiku, which itself looks for Flax when it is imported.
  importlib.import_module(f'{OURS}.linen')
  finder = _Finder()
  finder.hidden = loaded()
  sys.meta_path.insert(0, finder)
  # From here on `uninstall` brings them back, whatever happens.
  _unload()


def uninstall() -> None:
  """Makes `import flax` give Flax again, if it is installed, and JAX as it is.

  >>> from haiku_state import port
  >>> port.install()
  >>> port.uninstall()
  """
  _old_jax.uninstall()
  finder = current()
  if finder is None:
    return
  put_back(finder.hidden)


def put_back(hidden: dict[str, types.ModuleType]) -> None:
  """Removes the hook, and makes `import flax` give what it gave before.

  Args:
    hidden: what was `loaded` then.
  """
  finder = current()
  if finder is not None:
    finder.forget()
  _unload()
  sys.modules.update(hidden)
  if finder is not None:
    # Last: until then this can be done again.
    sys.meta_path.remove(finder)


@contextlib.contextmanager
def installed(old_jax: bool = True) -> Iterator[None]:
  """Installs the hook for the duration of a `with` block.

  >>> from haiku_state import linen, port
  >>> with port.installed():
  ...   import flax.linen as nn
  >>> nn is linen
  True

  Args:
    old_jax: whether programs also find the names that JAX has removed, as for
      `install`.
  """
  with restored(as_it_is()):
    install(old_jax)
    yield


def as_it_is() -> Callable[[], None]:
  """Returns a function that removes what is not installed now."""
  is_installed, has_old = current() is not None, _old_jax.current() is not None
  hidden = loaded()

  def restore() -> None:
    if not has_old:
      _old_jax.uninstall()
    if not is_installed:
      put_back(hidden)

  return restore
