"""Nested values as the text of a YAML block, in the cells of a table.

The cells of `tabulate` are laid out as PyYAML dumps them, so that tables read
as Flax's do; quotes are left out at the end. Leaves are text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

# Text is broken at the first space behind this column.
_WIDTH = 80

# What YAML would not read back as the same text: it is quoted.
_INDICATORS = re.compile(
  r"""
  ^[\#,\[\]{}&*!|>'"%@`=~<]     # begins with an indicator
  | ^[-?:](\s|$) | ^---|^\.\.\. # or looks like one
  | :(\s|$) | \s\#              # a key or a comment inside
  | ^\s | \s$ | \n
  | ^[-+.]?\d[\d_.:e+-]*$ | ^(yes|no|true|false|on|off|null)$
  """,
  re.VERBOSE | re.IGNORECASE,
)
# Only text in double quotes, with escapes, can hold these.
_SPECIAL = re.compile(r'[^\n\x20-\x7e]|\ \n|\n\ ')
# The names that YAML has for characters; others go by their number.
_ESCAPES = dict(
  zip('\0\a\b\t\n\v\f\r\x1b"\\\x85\xa0\u2028\u2029', '0abtnvfre"\\N_LP')
)


def dump(value: Any) -> str:
  """Returns a tree of dicts and tuples, whose leaves are text, as a block.

  Example::

    >>> print(dump({'bias': 'float32[2]', 'norm': {'scale': '[dim]'}}))
    bias: float32[2]
    norm:
      scale: [dim]
  """
  lines = ''.join(_node(value, 0, 0, in_mapping=False))
  return lines.replace("'", '').strip()


def _node(
  value: Any, indent: int, column: int, *, in_mapping: bool
) -> Iterator[str]:
  """Yields the text of a value, which begins at `column` of its line."""
  if isinstance(value, Mapping) and value:
    yield from _mapping(value, indent, starts_line=not in_mapping)
  elif isinstance(value, (tuple, list)) and value:
    # Items stand below their key, not indented.
    at = indent - 2 if in_mapping else indent
    yield from _sequence(value, at, starts_line=not in_mapping)
  else:
    if column:
      yield ' '
      column += 1
    yield _scalar(value, column, max(indent, 2))


def _mapping(
  value: Mapping[Any, Any], indent: int, starts_line: bool
) -> Iterator[str]:
  for i, (key, item) in enumerate(value.items()):
    if i or not starts_line:
      yield '\n' + ' ' * indent
    name = _scalar(key, 0, 0)
    yield f'{name}:'
    column = indent + len(name) + 1
    yield from _node(item, indent + 2, column, in_mapping=True)


def _sequence(value: Any, indent: int, starts_line: bool) -> Iterator[str]:
  for i, item in enumerate(value):
    if i or not starts_line:
      yield '\n' + ' ' * indent
    is_block = isinstance(item, (Mapping, tuple, list)) and len(item) > 0
    yield '- ' if is_block else '-'
    yield from _node(item, indent + 2, indent + 1, in_mapping=False)


def _scalar(value: Any, column: int, indent: int) -> str:
  """Returns a leaf, on several lines if it goes beyond the width."""
  if isinstance(value, Mapping):
    return '{}'
  if isinstance(value, (tuple, list)):
    return '[]'
  text = str(value)
  if _SPECIAL.search(text):
    return _escaped(text, column, indent)
  if not text or _INDICATORS.search(text):
    quoted = "'" + text.replace("'", "''") + "'"
    return _broken(quoted, column, indent)
  return _broken(text, column, indent)


def _escaped(text: str, column: int, indent: int) -> str:
  """Returns text in double quotes, which go on behind a backslash."""
  margin = '\\\n' + ' ' * indent
  out = ['"']
  column += 1
  for i, char in enumerate(text):
    shown = _escape(char)
    # A line ends before a space, or behind an escape.
    may_break = indent and 0 < i < len(text) - 1
    if may_break and char == ' ' and column > _WIDTH:
      out.append(margin + '\\')
      column = indent + 1
    out.append(shown)
    column += len(shown)
    if may_break and len(shown) > 1 and column > _WIDTH:
      before_space = text[i + 1] == ' '
      out.append(margin + '\\' * before_space)
      column = indent + before_space
  return ''.join(out) + '"'


def _escape(char: str) -> str:
  if char in _ESCAPES:
    return '\\' + _ESCAPES[char]
  if ' ' <= char <= '~':
    return char
  code = ord(char)
  if code < 0x100:
    return f'\\x{code:02X}'
  return f'\\u{code:04X}' if code < 0x10000 else f'\\U{code:08X}'


def _broken(text: str, column: int, indent: int) -> str:
  """Returns text with line breaks as YAML writes them.

  A single space behind the width becomes a break; a break is written twice,
  since one alone would be read as a space.
  """
  if not indent or ('\n' not in text and column + len(text) <= _WIDTH):
    return text
  margin = '\n' + ' ' * indent
  out = []
  for part in re.split(r"(\n+| +(?!'$))", text):
    if part.startswith('\n'):
      out.append('\n' * len(part) + margin)
      column = indent
    elif part == ' ' and column > _WIDTH:
      out.append(margin)
      column = indent
    else:
      out.append(part)
      column += len(part)
  return ''.join(out)
