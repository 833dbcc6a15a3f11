"""Files that are rewritten: `haiku-state port`."""

from __future__ import annotations

import ast
import contextlib
import difflib
import json
import os
import pathlib
import re
import stat
import tempfile
import tokenize
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from haiku_state.port import _documents, _rewrite
from haiku_state.port._documents import DocumentError
from haiku_state.port._rewrite import Edit, Finding

_SUFFIXES = ('.py', '.ipynb')


class Ported(NamedTuple):
  """A file after rewriting, not yet written.

  Attributes:
    path: the file.
    before: its bytes.
    after: its new bytes.
    findings: what people must look at; the first of each pair is where.
  """

  path: pathlib.Path
  before: bytes
  after: bytes
  findings: tuple[tuple[str, Finding], ...]

  def diff(self) -> str:
    """Returns the change as a unified diff."""
    before, after = (
      x.decode('utf-8', 'replace').splitlines(keepends=True)
      for x in (self.before, self.after)
    )
    lines = difflib.unified_diff(before, after, str(self.path), str(self.path))
    return ''.join(x if x.endswith('\n') else x + '\n' for x in lines)


def files_in(paths: Sequence[str]) -> Iterator[pathlib.Path]:
  """Returns the programs among paths: files, and those in folders.

  Args:
    paths: files and folders. In a folder, files that end in `.py` or `.ipynb`
      are programs; what is hidden is left out.

  Raises:
    DocumentError: there is no such file, or it is no program.
  """
  for name in paths:
    path = pathlib.Path(name)
    if path.is_dir():
      for file in sorted(path.rglob('*')):
        parts = file.relative_to(path).parts
        hidden = any(part.startswith('.') for part in parts)
        if file.suffix in _SUFFIXES and not hidden and file.is_file():
          yield file
    elif not path.exists():
      raise DocumentError(f'{path}: there is no such file.')
    elif path.suffix not in _SUFFIXES:
      raise DocumentError(
        f'{path}: expected a program: {" or ".join(_SUFFIXES)}.'
      )
    else:
      yield path


def port(path: pathlib.Path) -> Ported:
  """Rewrites a file, and writes nothing.

  Args:
    path: a program or a notebook.

  Raises:
    DocumentError: it has an error of syntax, or is no program.
  """
  try:
    before = path.read_bytes()
  except OSError as e:
    raise DocumentError(f'{path}: {e.strerror or e}') from e
  if path.suffix == '.ipynb':
    text, encoding = _decoded(path, before, 'utf-8'), 'utf-8'
    edits, findings = _notebook_edits(text, str(path))
  else:
    encoding = _encoding(path, before)
    text = _decoded(path, before, encoding)
    edits, found = _rewrite.find_edits(text, str(path))
    findings = [(f'{path}:{f.line}', f) for f in found]
  after = _rewrite.apply_edits(text, edits).encode(encoding)
  return Ported(path, before, after, tuple(findings))


def _encoding(path: pathlib.Path, content: bytes) -> str:
  try:
    lines = iter(content.splitlines(keepends=True))
    return tokenize.detect_encoding(lambda: next(lines, b''))[0]
  except SyntaxError as e:
    raise DocumentError(f'{path}:1: {e}. Nothing is changed.') from e


def _decoded(path: pathlib.Path, content: bytes, encoding: str) -> str:
  try:
    return content.decode(encoding)
  except UnicodeDecodeError as e:
    raise DocumentError(f'{path}: it is no text: {e}') from e


# --- Notebooks ---------------------------------------------------------------


class _Piece(NamedTuple):
  """A string in the text of a notebook.

  Attributes:
    start: where its quotation mark is.
    end: behind the other one.
    text: what it stands for.
  """

  start: int
  end: int
  text: str


def _notebook_edits(
  text: str, filename: str
) -> tuple[list[Edit], list[tuple[str, Finding]]]:
  edits: list[Edit] = []
  findings: list[tuple[str, Finding]] = []
  cells = list(_code_cells(text, filename))
  sources = [_documents.without_magics(_joined(cell)) for _, cell in cells]
  trees = []
  for source in sources:
    with contextlib.suppress(SyntaxError, ValueError):
      trees.append(ast.parse(source))
  wanted = _rewrite.needs_dicts_line(trees, sources)
  for (number, cell), source in zip(cells, sources):
    where = f'{filename}, cell {number}'
    own, found = _rewrite.find_edits(source, where, first=False)
    findings += [(f'{where}, line {f.line}', f) for f in found]
    if wanted and (own or _rewrite.OURS in source):
      program = _rewrite.Program(source, where)
      if own or program.imports_of(_rewrite.OURS):
        own.append(_rewrite.dicts_edit(program))
        wanted = False
    edits += _edits_of_pieces(_joined(cell), source, own, cell)
  return edits, findings


def _joined(pieces: Sequence[_Piece]) -> str:
  return ''.join(piece.text for piece in pieces)


def _edits_of_pieces(
  original: str, source: str, edits: Sequence[Edit], pieces: Sequence[_Piece]
) -> Iterator[Edit]:
  """Returns edits of a cell as edits of the strings that it is made of.

  Args:
    original: the cell.
    source: the cell with its magics as comments, which the edits are of. Its
      lines are those of the cell, not always as long.
    edits: what to change.
    pieces: the strings.
  """
  ours, theirs = _line_starts(source), _line_starts(original)
  moved = []
  for start, end, text in edits:
    line = max(n for n, s in enumerate(ours) if s <= start)
    shift = theirs[line] - ours[line]
    moved.append(Edit(start + shift, end + shift, text))
  begin = 0
  for number, piece in enumerate(pieces):
    end = begin + len(piece.text)
    is_last = number == len(pieces) - 1
    own = [
      Edit(e.start - begin, e.end - begin, e.text)
      for e in moved
      if begin <= e.start < end or (is_last and e.start == end)
    ]
    if own:
      new = _rewrite.apply_edits(piece.text, own)
      yield Edit(piece.start, piece.end, json.dumps(new, ensure_ascii=False))
    begin = end


def _line_starts(text: str) -> list[int]:
  return [0] + [m.end() for m in re.finditer(r'\r\n|\r|\n', text)]


_SPACE = re.compile(r'[ \t\r\n]*')
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_SCALAR = re.compile(r'[-+.\w]+')


def _code_cells(text: str, filename: str) -> Iterator[tuple[int, list[_Piece]]]:
  """Returns the cells of code, with the strings that each is made of."""
  try:
    tree, _ = _json_value(text, 0)
    json.loads(text)
  except (ValueError, IndexError) as e:
    raise DocumentError(f'{filename}: it is no notebook: {e}') from e
  cells = tree.get('cells') if isinstance(tree, dict) else None
  if not isinstance(cells, list):
    raise DocumentError(
      f'{filename}: it is no notebook of format 4: there is no list "cells".'
    )
  for number, cell in enumerate(cells, 1):
    kind, source = cell.get('cell_type'), cell.get('source')
    if kind is None or source is None or kind.text != 'code':
      continue
    yield number, [source] if isinstance(source, _Piece) else source


def _json_value(text: str, i: int) -> tuple[Any, int]:
  """Returns a value of JSON, its strings as pieces, and where it ends."""
  i = _skip(text, i)
  if text[i] == '"':
    match = _STRING.match(text, i)
    if match is None:
      raise ValueError(f'the string at {i} has no end')
    return _Piece(i, match.end(), json.loads(match.group())), match.end()
  if text[i] == '{':
    return _json_items(text, i, {}, '}')
  if text[i] == '[':
    return _json_items(text, i, [], ']')
  match = _SCALAR.match(text, i)
  if match is None:
    raise ValueError(f'unexpected {text[i]!r} at {i}')
  return match.group(), match.end()


def _json_items(text: str, i: int, out: Any, close: str) -> tuple[Any, int]:
  i = _skip(text, i + 1)
  while text[i] != close:
    value, i = _json_value(text, i)
    if isinstance(out, dict):
      i = _skip(text, i)
      if text[i] != ':':
        raise ValueError(f'expected ":" at {i}')
      out[value.text], i = _json_value(text, i + 1)
    else:
      out.append(value)
    i = _skip(text, i)
    if text[i] == ',':
      i = _skip(text, i + 1)
    elif text[i] != close:
      raise ValueError(f'expected "," or "{close}" at {i}')
  return out, i + 1


def _skip(text: str, i: int) -> int:
  match = _SPACE.match(text, i)
  return match.end() if match else i


# --- Writing -----------------------------------------------------------------


def write(ported: Ported) -> None:
  """Replaces a file by its new content, whole or not at all."""
  path = ported.path.resolve()  # A link stays a link.
  handle, name = tempfile.mkstemp(prefix='.haiku_state-', dir=path.parent)
  try:
    with os.fdopen(handle, 'wb') as file:
      file.write(ported.after)
      file.flush()
      os.fsync(file.fileno())
    os.chmod(name, stat.S_IMODE(path.stat().st_mode))
    os.replace(name, path)
  except BaseException:
    with contextlib.suppress(OSError):
      os.unlink(name)
    raise
