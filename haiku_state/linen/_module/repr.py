"""How modules print."""

from __future__ import annotations

import dataclasses
from typing import Any

from haiku_state.linen._module.base import ModuleBase


def module_repr(module: ModuleBase, num_spaces: int = 4) -> str:
  """Returns the fields and the submodules of a module as text.

  It runs no `setup`: only submodules that exist already are shown.
  """
  try:
    fields = dataclasses.fields(type(module))  # type: ignore[arg-type]
  except TypeError:
    return object.__repr__(module)  # `Module` itself is no dataclass.
  indent = ' ' * num_spaces
  lines = []
  shown = [f for f in fields if f.repr and f.name not in ('parent', 'name')]
  if shown:
    lines.append('# attributes')
    for field in shown:
      value = module.__dict__.get(field.name)
      lines.append(f'{field.name} = {_attribute_repr(value)}')
  children = {
    name: child
    for name, child in module._state.children.items()
    if hasattr(type(child), '__dataclass_fields__')
  }
  if children:
    lines.append('# children')
    for name, child in children.items():
      lines.append(f'{name} = {module_repr(child, num_spaces)}')
  if not lines:
    return f'{type(module).__name__}()'
  # Blank lines are indented, too: a field may print as several lines.
  body = '\n'.join(indent + line for line in '\n'.join(lines).split('\n'))
  return f'{type(module).__name__}(\n{body}\n)'


def _attribute_repr(value: Any) -> str:
  """Returns a value as text, functions and classes by their name."""
  if callable(value):
    is_module = hasattr(type(value), '_field_names')
    own = vars(value).get('__name__') if is_module else None
    name = own if is_module else getattr(value, '__name__', None)
    if name:
      return name
  return repr(value)
