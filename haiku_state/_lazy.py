"""Names of a module that are imported when they are first used.

An import of the module then takes what every program needs, and no more. Type
checkers see plain imports beside the table; a test compares the two.
"""

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def names_of(
  module: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
  """Returns `__getattr__`, `__dir__` and `__all__` of a module.

  Args:
    module: its name.
    homes: modules of its package that wait, each with the names, separated by
      spaces, that it has from there. If it is the package, a module that waits
      is one of its names as well.
  """
  own = vars(sys.modules[module])
  package = own['__package__']
  modules = homes if module == package else ()
  home_of = {name: home for home in homes for name in homes[home].split()}

  def __getattr__(name: str) -> Any:
    if name in modules:
      value = importlib.import_module(f'{package}.{name}')
    elif name in home_of:
      home = importlib.import_module(f'{package}.{home_of[name]}')
      value = getattr(home, name)
    else:
      raise AttributeError(f'module {module!r} has no attribute {name!r}')
    own[name] = value  # From now on Python finds it by itself.
    return value

  def __dir__() -> list[str]:
    return sorted({*own, *modules, *home_of})

  here = [name for name in own if not name.startswith('_')]
  return __getattr__, __dir__, [*here, *modules, *home_of]
