"""The programs in documents: their blocks, each with its lines.

reStructuredText, Markdown and notebooks hold programs in pieces. A block keeps
the lines of the document, so that tracebacks show them.
"""

from __future__ import annotations

import ast
import doctest
import json
import pathlib
import re
import textwrap
from collections.abc import Iterator
from typing import NamedTuple

SUFFIXES = {
  '.rst': 'rst',
  '.rest': 'rst',
  '.txt': 'rst',
  '.md': 'markdown',
  '.markdown': 'markdown',
  '.ipynb': 'notebook',
}


class DocumentError(ValueError):
  """A file that is no program and no document with one."""


class Block(NamedTuple):
  """A piece of a program.

  Attributes:
    source: its text, not indented.
    filename: what tracebacks call it.
    line: the line in that file where it begins, from 1.
    where: how people are told where it is.
    doctest: whether it consists of `>>>` examples.
    left_out: what of it is no Python and does not run, for people.
  """

  source: str
  filename: str
  line: int
  where: str
  doctest: bool
  left_out: tuple[str, ...] = ()


def read_blocks(path: str | pathlib.Path) -> list[Block]:
  """Returns the blocks of a document, or a script as one block.

  Args:
    path: the file. Its suffix says what it is.

  Raises:
    DocumentError: the file cannot be read as what its suffix says, or has no
      program in it.
  """
  path = pathlib.Path(path)
  text = read_text(path)
  kind = SUFFIXES.get(path.suffix.lower())
  if kind is None:
    return [Block(text, str(path), 1, str(path), False)]
  blocks = blocks_of(text, kind, str(path))
  if not blocks:
    raise DocumentError(
      f'{path}: there is no program in it. {_LOOKED_FOR[kind]}'
    )
  return blocks


def blocks_of(text: str, kind: str, filename: str) -> list[Block]:
  """Returns the blocks of the text of a document.

  Args:
    text: the text.
    kind: one of the values of `SUFFIXES`.
    filename: its name.
  """
  find = {'rst': _rst, 'markdown': _markdown, 'notebook': _notebook}[kind]
  return list(find(text, filename))


_LOOKED_FOR = {
  'rst': (
    'Expected a directive testsetup, testcode, doctest or'
    ' code-block:: python, or an example with >>>.'
  ),
  'markdown': 'Expected a fence that begins with ```python.',
  'notebook': 'Expected a cell of code.',
}


def read_text(path: pathlib.Path) -> str:
  """Returns the text of a file.

  Raises:
    DocumentError: it cannot be read, or is no text.
  """
  try:
    if path.suffix == '.py':
      import tokenize

      with tokenize.open(path) as file:
        return file.read()
    return path.read_text(encoding='utf-8-sig')
  except OSError as e:
    raise DocumentError(f'{path}: {e.strerror or e}') from e
  except (UnicodeDecodeError, SyntaxError) as e:
    raise DocumentError(f'{path}: it is no text, so no program: {e}') from e


def _block(lines: list[str], first: int, filename: str) -> Block | None:
  """Returns lines of a document as a block, None if there is nothing."""
  while lines and not lines[0].strip():
    lines, first = lines[1:], first + 1
  source = textwrap.dedent('\n'.join(lines)).rstrip() + '\n'
  if not source.strip():
    return None
  last = first + source.count('\n') - 1
  where = f'{filename}, lines {first} to {last}'
  is_doctest = any(line.startswith('>>> ') for line in source.split('\n'))
  return Block(source, filename, first, where, is_doctest)


# --- reStructuredText --------------------------------------------------------

_DIRECTIVE = re.compile(r'^(\s*)\.\. ([\w-]+)::[ \t]*(.*?)\s*$')
_CODE = ('code-block', 'code', 'sourcecode', 'codeblock')
_RUN = ('testsetup', 'testcode', 'doctest')
_PYTHON = frozenset(
  ('python', 'python3', 'py', 'py3', 'pycon', 'python-console', 'ipython')
  + ('ipython3', '{code-cell}', '{testcode}', '{testsetup}', '{doctest}')
)
_OPTION = re.compile(r'^\s*:[\w-]+:')


def _rst(text: str, filename: str) -> Iterator[Block]:
  lines = text.split('\n')
  i = 0
  while i < len(lines):
    match = _DIRECTIVE.match(lines[i])
    if match is None:
      if lines[i].lstrip().startswith('>>> '):
        end = _paragraph_end(lines, i)
        block = _block(lines[i:end], i + 1, filename)
        if block is not None:
          yield block
        i = end
      else:
        i += 1
      continue
    indent, name, argument = match.groups()
    end = _body_end(lines, i + 1, len(indent))
    runs = name in _RUN or (
      name in _CODE and argument.lower().split(' ')[0] in _PYTHON
    )
    if runs:
      begin = i + 1
      while begin < end and _OPTION.match(lines[begin]):
        begin += 1
      block = _block(lines[begin:end], begin + 1, filename)
      if block is not None:
        yield block
    # What is in a note or a tab is looked at for itself.
    other = name in (*_CODE, 'testoutput', 'testcleanup', 'math', 'raw')
    i = end if runs or other else i + 1


def _paragraph_end(lines: list[str], i: int) -> int:
  while i < len(lines) and lines[i].strip():
    i += 1
  return i


def _body_end(lines: list[str], i: int, indent: int) -> int:
  """Returns the line after the indented body of a directive."""
  end = i
  for j in range(i, len(lines)):
    line = lines[j]
    if not line.strip():
      continue
    if len(line) - len(line.lstrip()) <= indent:
      break
    end = j + 1
  return end


# --- Markdown ----------------------------------------------------------------

_FENCE = re.compile(r'^(\s*(?:>\s*)?)(`{3,}|~{3,})\s*([^`\s]*).*$')


def _markdown(text: str, filename: str) -> Iterator[Block]:
  lines = text.split('\n')
  i = 0
  while i < len(lines):
    match = _FENCE.match(lines[i])
    i += 1
    if match is None:
      continue
    fence, language = match.group(2), match.group(3).lower()
    begin = i
    while i < len(lines) and not _closes(lines[i], fence):
      i += 1
    # `python title="x"`, and `python,ignore`.
    if language.split(',')[0] in _PYTHON:
      body_begin = begin
      while body_begin < i and _OPTION.match(lines[body_begin]):
        body_begin += 1
      block = _block(lines[body_begin:i], body_begin + 1, filename)
      if block is not None:
        yield block
    i += 1


def _closes(line: str, fence: str) -> bool:
  line = line.strip().lstrip('>').strip()
  return set(line) == {fence[0]} and len(line) >= len(fence)


# --- Notebooks ---------------------------------------------------------------


def _notebook(text: str, filename: str) -> Iterator[Block]:
  for number, source in code_cells(text, filename):
    source, left_out = split_magics(source)
    if source.strip():
      where = f'{filename}, cell {number}'
      name = f'{filename}[{number}]'
      yield Block(source, name, 1, where, False, tuple(left_out))


def code_cells(text: str, filename: str) -> Iterator[tuple[int, str]]:
  """Returns the cells of code of a notebook, with their numbers.

  Raises:
    DocumentError: it is no notebook.
  """
  try:
    tree = json.loads(text)
  except (ValueError, RecursionError) as e:
    raise DocumentError(f'{filename}: it is no notebook: {e}') from e
  cells = tree.get('cells') if isinstance(tree, dict) else None
  if not isinstance(cells, list):
    raise DocumentError(
      f'{filename}: it is no notebook of format 4: there is no list "cells".'
    )
  for number, cell in enumerate(cells, 1):
    if not isinstance(cell, dict):
      raise DocumentError(
        f'{filename}, cell {number}: expected an object of JSON, found'
        f' {type(cell).__name__}.'
      )
    source = cell.get('source', '')
    if cell.get('cell_type') != 'code':
      continue
    lines = [source] if isinstance(source, str) else source
    if not isinstance(lines, list) or not all(
      isinstance(line, str) for line in lines
    ):
      raise DocumentError(
        f'{filename}, cell {number}: expected text, or a list of lines, as its'
        ' source.'
      )
    yield number, ''.join(lines)


def without_magics(source: str) -> str:
  """Returns a cell whose magics are comments: see `split_magics`."""
  return split_magics(source)[0]


def split_magics(source: str) -> tuple[str, list[str]]:
  """Returns a cell as Python, and what of it is none.

  `%time` and the like are taken off what they run; all other magics, commands
  and questions become comments, and a cell in another language (`%%bash`)
  altogether. A name that is assigned one is None.

  Args:
    source: the cell.

  Returns:
    The cell with as many lines, and what is left out, with its lines.
  """
  cell_magic = _CELL_MAGIC.match(source)
  if cell_magic:
    if cell_magic.group(1) not in _RUNNERS:
      name = source.strip().split('\n')[0]
      return re.sub(r'^.', '#', source, flags=re.M), [f'the cell {name}']
    source = source.replace('%%', '##', 1)
  try:
    ast.parse(source)
  except (SyntaxError, ValueError, RecursionError, MemoryError):
    return _split_lines(source)
  return source, []  # A line of Python may begin with `%`, in brackets.


_CELL_MAGIC = re.compile(r'\s*%%(\w*)')
# Magics that run what stands behind them.
_RUNNERS = ('time', 'timeit', 'capture', 'prun')
_RUN_LINE = re.compile(
  rf'(?P<indent>\s*)(?P<magic>%(?:{"|".join(_RUNNERS)})(?:\s+-[a-zA-Z]\w*(?:\s+\d+)?)*)\s+(?=\S)'
)
_LINE_MAGIC = re.compile(r'(?P<indent>\s*)(?:[%!?]|[%\w.\[\]]+\?\??\s*$)')
_ASSIGNED = re.compile(
  r'(?P<target>\s*[\w.]+(?:\[[^]]*\])*(?:\s*,\s*[\w.]+)*\s*=\s*)[!%]'
)


def _split_lines(source: str) -> tuple[str, list[str]]:
  """Returns what `split_magics` does, of a cell that is not all Python."""
  out, left_out = [], []
  inside = _Inside()
  goes_on = False  # Whether the line before was a magic with `\\` at its end.
  for number, line in enumerate(source.split('\n'), 1):
    kept = line
    if goes_on:
      kept = '#' + line[1:]
    elif inside.nothing():
      kept = _without_magic(line)
    if kept is not line:
      if not _RUN_LINE.match(line) and not goes_on:
        left_out.append(f'line {number}: {line.strip()}')
      goes_on = line.rstrip().endswith('\\')
    inside.go_on(kept)
    out.append(kept)
  return '\n'.join(out), left_out


def _without_magic(line: str) -> str:
  """Returns a line of Python in place of one that begins with a magic.

  What stays of the line stays in its columns.
  """
  if match := _RUN_LINE.match(line):
    start, end = match.end('indent'), match.end()
    return line[:start] + 'None;'.ljust(end - start) + line[end:]
  if match := _LINE_MAGIC.match(line):
    indent = match.group('indent')
    # A block needs a statement.
    return indent + 'pass' if indent else '#' + line[1:]
  if match := _ASSIGNED.match(line):
    return match.group('target') + 'None'
  return line


class _Inside:
  """Whether the next line goes on with a string, a bracket or a statement."""

  _TOKEN = re.compile(
    r"""#.*|(?P<quotes>\'{3}|"{3})|\'(?:\\.|[^\'\\])*\'|"(?:\\.|[^"\\])*\""""
    r"""|(?P<open>[(\[{])|(?P<close>[)\]}])|(?P<more>\\$)|.""",
    re.S,
  )

  def __init__(self) -> None:
    self._quotes = ''
    self._depth = 0
    self._more = False

  def nothing(self) -> bool:
    """Returns whether the next line begins a statement."""
    return not self._quotes and self._depth <= 0 and not self._more

  def go_on(self, line: str) -> None:
    """Takes a line."""
    self._more = False
    place = 0
    while place < len(line):
      if self._quotes:
        end = line.find(self._quotes, place)
        if end < 0:
          return
        place, self._quotes = end + 3, ''
        continue
      match = self._TOKEN.match(line, place)
      assert match is not None  # Any character is one.
      place = match.end()
      self._quotes = match.group('quotes') or ''
      self._depth += bool(match.group('open')) - bool(match.group('close'))
      self._more = bool(match.group('more'))


# --- Doctests ----------------------------------------------------------------


def examples(block: Block) -> list[doctest.Example]:
  """Returns the `>>>` examples of a block, with lines from the block's."""
  return doctest.DocTestParser().get_examples(block.source, block.where)


def statements(block: Block) -> list[tuple[str, int]]:
  """Returns the pieces of Python in a block, each with its first line."""
  if not block.doctest:
    return [(block.source, block.line)]
  return [(e.source, block.line + e.lineno) for e in examples(block)]
