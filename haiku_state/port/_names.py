"""Names of Flax that are missing here or behave otherwise: the one table.

The import hook, the rewriter and the guide "Coming from Flax" read it.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import pkgutil
import types
from typing import NamedTuple

# What Flax's programs call the package, and what it is called here.
THEIRS = 'flax'
OURS = 'haiku_state'
# The version of Flax that this package behaves as.
VERSION = '0.12.8'


class Name(NamedTuple):
  """A name of Flax, and what to know of it.

  >>> from haiku_state import port
  >>> port.Name('flax.example', missing=True, advice='write another').missing
  True

  Attributes:
    name: the dotted name, as Flax's programs write it.
    missing: whether it is not here; otherwise it behaves otherwise.
    advice: what to write instead, or what is different.
  """

  name: str
  missing: bool
  advice: str


NAMES = (
  Name(
    'flax.nnx',
    True,
    'nnx is another library of modules, whose objects hold their arrays. Write'
    ' the model with `linen`, whose modules are made without values, or leave'
    ' this part of the program on Flax.',
  ),
  Name(
    'flax.experimental.nnx',
    True,
    'nnx is another library of modules, whose objects hold their arrays. Write'
    ' the model with `linen`, or leave this part of the program on Flax.',
  ),
  Name(
    'flax.nn',
    True,
    'This is the API before linen, which Flax removed. Write `nn.Module` of'
    ' `haiku_state.linen`: a dataclass, with `@nn.compact` on `__call__`.',
  ),
  Name(
    'flax.deprecated',
    True,
    'This is the API before linen, which Flax removed. Write `nn.Module` of'
    ' `haiku_state.linen`: a dataclass, with `@nn.compact` on `__call__`.',
  ),
  Name(
    'flax.serialization.to_json',
    True,
    'Use `serialization.to_state_dict` and `json`.',
  ),
  Name(
    'flax.linen.Module.get_summary',
    True,
    'Use `Module.tabulate`.',
  ),
  Name(
    'flax.version',
    True,
    'Use `haiku_state.__version__`.',
  ),
  Name(
    'flax.core.nn.dense_general',
    False,
    'The bias is added to the new axes, whichever axes are contracted. In Flax'
    ' that is so where the contracted axes are the last.',
  ),
  Name(
    'flax.core.tracers.trace_level',
    True,
    'Use `core.current_trace`.',
  ),
  Name(
    'flax.__version__',
    False,
    'It is the version of haiku_state; under `haiku-state run` that of the Flax'
    f' that it behaves as, {VERSION}. Look for a name, such as'
    " `hasattr(nn, 'RNN')`, rather than at a version.",
  ),
  Name(
    'flax.configurations.flax_return_frozendict',
    False,
    'It is True: `init` and `apply` return a FrozenDict, as before Flax 0.7.1.'
    " `config.update('flax_return_frozendict', False)` gives plain dicts.",
  ),
  Name(
    'flax.configurations.nnx_graph_mode',
    False,
    'It can be set and read, and steers nothing: there is no nnx here.',
  ),
)

_BY_NAME = {row.name: row for row in NAMES}


def row_of(name: str) -> Name | None:
  """Returns the row of a dotted name, or of what it is a part of."""
  while name:
    if name in _BY_NAME:
      return _BY_NAME[name]
    name = name.rpartition('.')[0]
  return None


def ours(name: str) -> str:
  """Returns what a dotted name of Flax is called here."""
  return OURS + name.removeprefix(THEIRS)


def theirs(name: str) -> str:
  """Returns what a dotted name of this package is called in Flax."""
  return THEIRS + name.removeprefix(OURS)


def is_package(name: str, package: str) -> bool:
  """Returns whether a dotted name is a package or something in it."""
  return name == package or name.startswith(package + '.')


def module_exists(name: str) -> bool:
  """Returns whether there is a module of this name here."""
  try:
    return importlib.util.find_spec(name) is not None
  except ModuleNotFoundError:
    return False


def find_missing(name: str) -> str | None:
  """Returns the shortest part of a dotted name that is not here.

  What lies below a class or a function is not looked at: fields without a
  default are not attributes of their class.

  Args:
    name: a dotted name as Flax's programs write it.

  Returns:
    That part, as Flax's programs write it, or None if nothing is missing.
  """
  found: object = importlib.import_module(OURS)
  path = THEIRS
  for part in name.split('.')[1:]:
    if not isinstance(found, types.ModuleType):
      return None
    path = f'{path}.{part}'
    if hasattr(found, part):
      found = getattr(found, part)
    elif module_exists(ours(path)):
      found = importlib.import_module(ours(path))
    else:
      return path
  return None


def advice_on_missing(name: str) -> str:
  """Returns what to write instead of a name that is not here."""
  row = row_of(name)
  if row is not None and row.missing:
    return row.advice
  parent, _, last = name.rpartition('.')
  if parent and find_missing(parent) is None:
    module = importlib.import_module(OURS)
    for part in parent.split('.')[1:]:
      module = getattr(module, part)
    inside = pkgutil.iter_modules(getattr(module, '__path__', ()))
    names = {*dir(module), *(m.name for m in inside)}
    public = sorted(n for n in names if not n.startswith('_'))
    close = difflib.get_close_matches(last, public, n=3, cutoff=0.7)
    if close:
      names = ', '.join(f'`{ours(parent)}.{n}`' for n in close)
      return f'Names like it: {names}.'
  return (
    'It is none of the names that this package has from Flax 0.12 or from'
    ' flax.optim 0.5.'
  )


def missing_message(name: str) -> str:
  """Returns the message of the error for a name that is not here."""
  return f'haiku_state has no `{name}`. {advice_on_missing(name)}'


def as_markdown() -> str:
  """Returns the table as the guide prints it."""
  lines = ['| name | | what to do |', '| --- | --- | --- |']
  for row in NAMES:
    kind = 'missing' if row.missing else 'differs'
    lines.append(f'| `{row.name}` | {kind} | {row.advice} |')
  return '\n'.join(lines)
