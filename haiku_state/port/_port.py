"""Files that are rewritten: `haiku-state port`."""

from __future__ import annotations

import ast
import contextlib
import difflib
import functools
import json
import os
import pathlib
import re
import shutil
import tokenize
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from haiku_state._temporary_files import create, temporary_path
from haiku_state.port import _documents, _modernize, _rewrite
from haiku_state.port._documents import DocumentError
from haiku_state.port._rewrite import Edit, Finding

_SUFFIXES = ('.py', '.ipynb', '.rst', '.md')


class Ported(NamedTuple):
  """A file after rewriting, not yet written.

  Attributes:
    path: the file.
    before: its bytes.
    after: its new bytes.
    findings: what people must look at; the first of each pair is where.
    package: the folder of the package that the file belongs to, if the file
      expects plain dicts and does not say so; else None.
  """

  path: pathlib.Path
  before: bytes
  after: bytes
  findings: tuple[tuple[str, Finding], ...]
  package: pathlib.Path | None = None

  def diff(self) -> str:
    """Returns the change as a unified diff."""
    before, after = (
      x.decode('utf-8', 'replace').splitlines(keepends=True)
      for x in (self.before, self.after)
    )
    lines = difflib.unified_diff(before, after, str(self.path), str(self.path))
    return ''.join(x if x.endswith('\n') else x + '\n' for x in lines)


def files_in(
  paths: Sequence[str],
  follow_links: bool = False,
  left: list[pathlib.Path] | None = None,
) -> Iterator[pathlib.Path]:
  """Returns the programs among paths: files, and those in folders.

  Args:
    paths: files and folders. In a folder, files that end in `.py`, `.ipynb`,
      `.rst` or `.md` are programs; what is hidden is left out.
    follow_links: whether links in a folder to what is outside of it count.
    left: takes the links that were left.

  Raises:
    DocumentError: there is no such file, or it is no program; or there is none
      in a folder.
  """
  for name in paths:
    path = pathlib.Path(name)
    if path.is_dir():
      yield from _files_in_folder(path, follow_links, left)
    elif not path.exists():
      raise DocumentError(f'{path}: there is no such file.')
    elif path.suffix not in _SUFFIXES:
      raise DocumentError(
        f'{path}: expected a program: {" or ".join(_SUFFIXES)}.'
      )
    else:
      yield path


def _files_in_folder(
  folder: pathlib.Path, follow_links: bool, left: list[pathlib.Path] | None
) -> Iterator[pathlib.Path]:
  root = folder.resolve()
  seen: set[pathlib.Path] = set()
  for file in sorted(folder.rglob('*')):
    hidden = any(x.startswith('.') for x in file.relative_to(folder).parts)
    if file.suffix not in _SUFFIXES or hidden or not file.is_file():
      continue
    real = file.resolve()
    if not follow_links and not real.is_relative_to(root):
      if left is not None:
        left.append(file)
    elif real not in seen:
      seen.add(real)
      yield file
  if not seen:
    raise DocumentError(
      f'{folder}: there is no program in it: {" or ".join(_SUFFIXES)}.'
    )


def port(path: pathlib.Path, modernize: bool = False) -> Ported:
  """Rewrites a file, and writes nothing.

  What comes out parses, and is what went in but for imports and, in a program
  that is no part of a package, the statement that sets the kind of dicts.

  Args:
    path: a program, a notebook, or a document.
    modernize: whether to rewrite names that JAX has removed, too. What is found
      is then found in what comes out.

  Raises:
    DocumentError: it has an error of syntax, or is no program.
    ImportError: libcst is not installed.
  """
  try:
    before = path.read_bytes()
  except OSError as e:
    raise DocumentError(f'{path}: {e.strerror or e}') from e
  try:
    return _ported(path, before, modernize)
  except (DocumentError, ImportError):
    raise
  except Exception as e:  # One file must not keep the others from being ported.
    raise DocumentError(
      f'{path}: it cannot be rewritten ({type(e).__name__}: {str(e)[:200]}).'
      ' Nothing is changed.'
    ) from e


def _ported(path: pathlib.Path, before: bytes, modernize: bool) -> Ported:
  kind = _documents.SUFFIXES.get(path.suffix)
  encoding = 'utf-8' if kind else _encoding(path, before)
  text = _decoded(path, before, encoding)
  if modernize:
    text = _modernized(path, kind, text)
  package = None
  if kind == 'notebook':
    edits, findings = _notebook_edits(text, str(path))
  elif kind:
    edits, findings = _document_edits(text, kind, str(path))
  else:
    library = _package_of(path)
    edits, found = _rewrite.find_edits(text, str(path), first=library is None)
    findings = [(f'{path}:{f.line}', f) for f in found]
    if library and edits and _rewrite.wants_dicts(text):
      package = library
  after = _modernize.apply(text, edits)
  if edits:
    _check(path, kind, text, after)
  return Ported(path, before, after.encode(encoding), tuple(findings), package)


def _modernized(path: pathlib.Path, kind: str | None, text: str) -> str:
  """Returns the text of a file without those names that JAX has removed."""
  if kind is None:
    return _rewrite.modernized(text, str(path))
  if kind == 'notebook':
    edits = _modern_notebook_edits(text, str(path))
  else:
    edits = _modern_document_edits(text, kind, str(path))
  after = _modernize.apply(text, list(edits))
  for source, where in _pieces(after, kind, str(path)):
    _rewrite.check_parses(source, where)
  return after


def _package_of(path: pathlib.Path) -> pathlib.Path | None:
  """Returns the folder of the package that a file is a part of, if any."""
  folder = path.resolve().parent
  if path.name == '__main__.py' or not (folder / '__init__.py').exists():
    return None
  while (folder.parent / '__init__.py').exists():
    folder = folder.parent
  return folder


def _check(path: pathlib.Path, kind: str | None, before: str, after: str):
  """Raises unless a file is what it was but for imports."""
  if kind is None:
    _rewrite.check_same(before, after, str(path))
    return
  old, new = (_pieces(text, kind, str(path)) for text in (before, after))
  if len(old) != len(new):
    raise DocumentError(
      f'{path}: rewriting would change its blocks. Nothing is changed.'
    )
  for (was, where), (now, _) in zip(old, new):
    if was != now:
      _rewrite.check_same(was, now, where)
  if kind == 'notebook' and _without_code(before) != _without_code(after):
    raise DocumentError(
      f'{path}: rewriting would change more than code. Nothing is changed.'
    )


def _pieces(text: str, kind: str, filename: str) -> list[tuple[str, str]]:
  return [
    (source, f'{filename}:{line}' if kind != 'notebook' else block.where)
    for block in _blocks(text, kind, filename)
    for source, line in _documents.statements(block)
  ]


def _blocks(text: str, kind: str, filename: str) -> list[_documents.Block]:
  # Their lines are those of the document, whatever ends them.
  return _documents.blocks_of(text.replace('\r\n', '\n'), kind, filename)


def _without_code(text: str) -> Any:
  tree = json.loads(text)
  for cell in tree['cells']:
    if cell.get('cell_type') == 'code':
      cell['source'] = ''
  return tree


# --- Documents ---------------------------------------------------------------


def _document_edits(
  text: str, kind: str, filename: str
) -> tuple[list[Edit], list[tuple[str, Finding]]]:
  """Returns what to change in the blocks of a document."""
  edits: list[Edit] = []
  findings: list[tuple[str, Finding]] = []
  before: list[ast.Module] = []
  for block in _blocks(text, kind, filename):
    for source, line in _documents.statements(block):
      try:
        own, found = _rewrite.find_edits(source, filename, False, before)
        before.append(ast.parse(source))
      except DocumentError:
        own, found = [], []
        if _rewrite.THEIRS in source:
          found = [Finding(1, 'flax', False, _UNPARSED)]
      findings += [(f'{filename}:{line + f.line - 1}', f) for f in found]
      edits += _in_document(text, source, line, own)
  return edits, findings


def _modern_document_edits(
  text: str, kind: str, filename: str
) -> Iterator[Edit]:
  """Returns what to change of names that JAX has removed."""
  pieces = [
    piece
    for block in _blocks(text, kind, filename)
    for piece in _documents.statements(block)
  ]
  sources = [source for source, _ in pieces]
  # A line that is added would need what each line begins with.
  found = _modernize.find_edits_of_pieces(sources, in_lines=False)
  for (source, line), edits in zip(pieces, found):
    yield from _in_document(text, source, line, edits)


def _in_document(
  text: str, source: str, line: int, edits: Sequence[Edit]
) -> Iterator[Edit]:
  """Returns edits of a piece of a document as edits of the document."""
  if not edits:
    return
  starts = [0] + [m.end() for m in re.finditer('\n', text)]
  lines = text.split('\n')
  for edit in edits:
    start, end = (
      _place_in_document(source, place, lines, starts, line - 1)
      for place in (edit.start, edit.end)
    )
    yield Edit(start, end, edit.text)


_UNPARSED = 'The block cannot be parsed, and is left as it is.'


def _place_in_document(
  source: str, place: int, lines: list[str], starts: list[int], first: int
) -> int:
  """Returns where a place in a block is in its document.

  The lines of a block are those of the document without their beginnings.
  """
  number = source.count('\n', 0, place)
  begin = source.rfind('\n', 0, place) + 1
  line = source[begin:].split('\n', 1)[0]
  whole = lines[first + number]
  return starts[first + number] + whole.rindex(line.rstrip()) + place - begin


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
  before: list[ast.Module] = []
  for (number, cell), source in zip(cells, sources):
    where = f'{filename}, cell {number}'
    own, found = _rewrite.find_edits(source, where, False, before)
    before.append(ast.parse(source))
    findings += [(f'{where}, line {f.line}', f) for f in found]
    if wanted and (own or _rewrite.OURS in source):
      program = _rewrite.Program(source, where)
      if own or program.imports_of(_rewrite.OURS):
        own.append(_rewrite.dicts_edit(program))
        wanted = False
    edits += _edits_of_pieces(_joined(cell), source, own, cell)
  return edits, findings


def _modern_notebook_edits(text: str, filename: str) -> Iterator[Edit]:
  """Returns what to change of names that JAX has removed."""
  cells = [cell for _, cell in _code_cells(text, filename)]
  sources = [_documents.without_magics(_joined(cell)) for cell in cells]
  found = _modernize.find_edits_of_pieces(sources, in_lines=True)
  for cell, source, edits in zip(cells, sources, found):
    yield from _edits_of_pieces(_joined(cell), source, edits, cell)


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

  def shifted(place: int) -> int:
    line = max(n for n, s in enumerate(ours) if s <= place)
    return place + theirs[line] - ours[line]

  moved = [Edit(shifted(e.start), shifted(e.end), e.text) for e in edits]
  begin = 0
  for number, piece in enumerate(pieces):
    end = begin + len(piece.text)
    is_last = number == len(pieces) - 1
    own = [
      Edit(e.start - begin, min(e.end, end) - begin, e.text)
      for e in moved
      if begin <= e.start < end or (is_last and e.start == end)
    ]
    # What is replaced may go on in the next ones.
    own += [
      Edit(0, min(e.end, end) - begin, '')
      for e in moved
      if e.start < begin < e.end
    ]
    if own:
      new = _modernize.apply(piece.text, own)
      yield Edit(piece.start, piece.end, json.dumps(new, ensure_ascii=False))
    begin = end


def _line_starts(text: str) -> list[int]:
  return [0] + [m.end() for m in re.finditer(r'\r\n|\r|\n', text)]


_SPACE = re.compile(r'[ \t\r\n]*')
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_SCALAR = re.compile(r'[-+.\w]+')


def _code_cells(text: str, filename: str) -> Iterator[tuple[int, list[_Piece]]]:
  """Returns the cells of code, with the strings that each is made of."""
  numbers = [number for number, _ in _documents.code_cells(text, filename)]
  try:
    tree, _ = _json_value(text, 0)
  except RecursionError as e:
    raise DocumentError(f'{filename}: it is nested too deep.') from e
  for number in numbers:
    source = tree['cells'][number - 1].get('source', [])
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
  """Replaces a file by its new content, and leaves all else as it is.

  The file is replaced whole or not at all, where that keeps its owner, its mode
  and its extended attributes. A file with several names is written in place.

  Raises:
    DocumentError: it has changed since it was read; it is left.
    OSError: it cannot be written; it is left.
  """
  path = ported.path.resolve()  # A link stays a link.
  _remove_remains(path.parent)
  name = temporary_path(path.parent, _TEMPORARY_PREFIX)
  try:
    with create(name, 0o600) as file:
      file.write(ported.after)
      file.flush()
      os.fsync(file.fileno())
    can_replace = path.stat().st_nlink == 1 and _take_attributes(path, name)
    if path.read_bytes() != ported.before:
      raise DocumentError(
        f'{ported.path}: it has changed since it was read, and is left as it is.'
        ' Port it again.'
      )
    if can_replace:
      os.replace(name, path)
    else:
      _write_in_place(path, ported)
  finally:
    with contextlib.suppress(FileNotFoundError):
      os.unlink(name)


def _take_attributes(path: pathlib.Path, name: str) -> bool:
  """Gives a file what another has beside its content; returns if it could."""
  was = path.stat()
  try:
    if hasattr(os, 'chown'):
      os.chown(name, was.st_uid, was.st_gid)
    shutil.copystat(path, name)
    os.utime(name)
  except OSError:
    return False
  return _attributes(path) == _attributes(name)


def _attributes(path: Any) -> Any:
  found = os.stat(path)
  extended = {}
  if hasattr(os, 'listxattr'):
    with contextlib.suppress(OSError):  # The file system has none.
      extended = {x: os.getxattr(path, x) for x in os.listxattr(path)}
  return found.st_mode, found.st_uid, found.st_gid, extended


def _write_in_place(path: pathlib.Path, ported: Ported) -> None:
  """Writes the content of a file; if that fails, its old content again."""
  with open(path, 'r+b', buffering=0) as file:
    try:
      _write_all(file, ported.after)
    except BaseException:
      _write_all(file, ported.before)
      raise


def _write_all(file: Any, content: bytes) -> None:
  file.seek(0)
  view = memoryview(content)
  while view:
    view = view[file.write(view) :]
  file.truncate()
  os.fsync(file.fileno())


_TEMPORARY_PREFIX = '.haiku_state-port-'
_TEMPORARY = re.compile(rf'{re.escape(_TEMPORARY_PREFIX)}(\d+)-\w+')


@functools.cache
def _remove_remains(folder: pathlib.Path) -> None:
  """Removes the temporary files of processes that were killed."""
  for entry in os.scandir(folder):
    match = _TEMPORARY.fullmatch(entry.name)
    if match and not _is_alive(int(match.group(1))):
      with contextlib.suppress(OSError):
        os.unlink(entry.path)


def _is_alive(pid: int) -> bool:
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  except (OSError, OverflowError):
    pass
  return True
