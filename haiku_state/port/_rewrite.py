"""Rewriting the import lines of a program, and nothing else.

libcst finds the imports and what each name stands for; the text is then changed
at their places only, so that every other byte stays.
"""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from haiku_state.port import _documents, _expects, _modernize, _names, _uses
from haiku_state.port._modernize import Edit
from haiku_state.port._names import OURS, THEIRS

# Sets the kind of dicts that `init` and `apply` return.
_DICTS = f"{OURS}.config.update('flax_return_frozendict', False)"
_SETS_DICTS = re.compile(r"update\(\s*['\"]flax_return_frozendict['\"]")


class Finding(NamedTuple):
  """Something that people must look at.

  Attributes:
    line: its line, from 1.
    name: the name of Flax, or of JAX.
    missing: whether it is not here, rather than otherwise.
    advice: what to do.
  """

  line: int
  name: str
  missing: bool
  advice: str

  @property
  def kind(self) -> str:
    """What is the matter with it, as people are told."""
    if _names.is_package(self.name, 'jax'):
      return 'has been removed' if self.missing else 'is deprecated'
    return 'is missing' if self.missing else 'differs'


@dataclasses.dataclass(frozen=True)
class Rewritten:
  """A program after rewriting.

  Attributes:
    text: the new text.
    findings: what people must look at, by line.
  """

  text: str
  findings: tuple[Finding, ...]


def rewrite(
  text: str, filename: str = '<program>', modernize: bool = False
) -> Rewritten:
  """Rewrites the import lines of a program.

  Args:
    text: the program.
    filename: its name, for errors.
    modernize: whether to rewrite names that JAX has removed, too.

  Returns:
    The new text, and the names that are missing or behave otherwise.

  Raises:
    DocumentError: it has an error of syntax.
  """
  if modernize:
    text = modernized(text, filename)
  edits, findings = find_edits(text, filename)
  return Rewritten(_modernize.apply(text, edits), tuple(findings))


def modernized(text: str, filename: str) -> str:
  """Returns a program without those names that JAX has removed.

  Args:
    text: the program.
    filename: its name, for errors.

  Raises:
    DocumentError: it has an error of syntax.
  """
  _parsed_by_python(text, filename)
  after = _modernize.apply(text, _modernize.find_edits(text))
  check_parses(after, filename)
  return after


def check_parses(text: str, where: str) -> None:
  """Raises unless a program that was rewritten can be parsed.

  Args:
    text: the program.
    where: its name, for errors.

  Raises:
    DocumentError: it cannot.
  """
  try:
    ast.parse(text)
  except (SyntaxError, ValueError) as e:
    raise _documents.DocumentError(
      f'{where}: rewritten by --modernize it could not be parsed ({e}). Nothing'
      ' is changed. Port it without --modernize, and write by hand what is'
      ' reported.'
    ) from e


def find_edits(
  text: str,
  filename: str,
  first: bool = True,
  before: Iterable[ast.Module] = (),
) -> tuple[list[Edit], list[Finding]]:
  """Returns what to change in a program, and what to look at.

  Args:
    text: the program.
    filename: its name, for errors.
    first: whether a line that sets the kind of dicts may be added.
    before: what runs before it in the same namespace.

  Raises:
    DocumentError: it has an error of syntax.
  """
  tree = _parsed_by_python(text, filename)
  old = [
    Finding(line, row.name, bool(row.gone), row.advice)
    for line, row in _modernize.find_old(tree, before)
  ]
  if THEIRS not in text and OURS not in text:
    return [], old
  program = Program(text, filename)
  edits = [edit for node in program.imports for edit in program.edits_of(node)]
  uses_ours = bool(edits) or program.imports_of(OURS)
  if first and uses_ours and needs_dicts_line([tree], [text]):
    edits.append(dicts_edit(program))
  return edits, sorted([*program.findings(), *old])


def _parsed_by_python(text: str, filename: str) -> ast.Module:
  try:
    return ast.parse(text)
  except (RecursionError, MemoryError) as e:
    raise _documents.DocumentError(
      f'{filename}: it is nested too deep to be parsed. Nothing is changed.'
    ) from e
  except (SyntaxError, ValueError) as e:
    line = getattr(e, 'lineno', None)
    where = f'{filename}:{line}' if line else filename
    raise _documents.DocumentError(
      f'{where}: {getattr(e, "msg", e)}. Nothing is changed.'
    ) from e


def needs_dicts_line(trees: Sequence[ast.AST], texts: Sequence[str]) -> bool:
  """Returns whether a program expects plain dicts and does not say so."""
  if any(_SETS_DICTS.search(text) for text in texts):
    return False
  evidence = _expects.expected(trees)
  return evidence is not None and not evidence.frozen


def wants_dicts(text: str) -> bool:
  """Returns `needs_dicts_line` of the text of a program."""
  return needs_dicts_line([ast.parse(text)], [text])


def dicts_edit(program: Program) -> Edit:
  """Returns the edit that adds the line, behind the imports at the top."""
  end = program.end_of_imports()
  newline = program.newline
  lines = dicts_lines(newline)
  if end < len(program.text) or program.text.endswith(('\n', '\r')):
    return Edit(end, end, lines + newline)
  return Edit(end, end, newline + lines)


def dicts_lines(newline: str = '\n') -> str:
  """Returns the statements that set the kind of dicts."""
  return f'import {OURS}{newline}{_DICTS}'


def check_same(before: str, after: str, where: str) -> None:
  """Raises unless two programs are the same but for their imports.

  Args:
    before: a program that can be parsed.
    after: what it was rewritten to.
    where: its name, for errors.

  Raises:
    DocumentError: they differ, or the second cannot be parsed.
  """
  try:
    same = _without_imports(before) == _without_imports(after)
  except (SyntaxError, ValueError):
    same = False
  if not same:
    raise _documents.DocumentError(
      f'{where}: rewriting would change more than its imports: there is a'
      ' character before one, perhaps a form feed, by which its place is'
      ' misread. Nothing is changed.'
    )


class _Imports(ast.NodeTransformer):
  """Removes imports, and the statement that sets the kind of dicts."""

  def visit_Import(self, node: ast.Import) -> None:
    return None

  def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
    return None

  def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
    return None if ast.unparse(node) == _DICTS else node


def _without_imports(text: str) -> str:
  return ast.dump(_Imports().visit(ast.parse(text)))


# --- One program -------------------------------------------------------------


def _libcst() -> Any:
  try:
    import libcst
    import libcst.metadata
  except ImportError as e:
    raise ImportError(
      "Rewriting a program needs libcst: pip install '.[port]' in a clone of"
      ' haiku_state.'
    ) from e
  return libcst


class Program:
  """A program, its imports of Flax, and what its names stand for."""

  def __init__(self, text: str, filename: str):
    self.cst = _libcst()
    self.text = text
    self.filename = filename
    try:
      wrapper = self.cst.metadata.MetadataWrapper(
        self.cst.parse_module(text), unsafe_skip_copy=True
      )
    except self.cst.ParserSyntaxError as e:
      raise _documents.DocumentError(
        f'{filename}:{e.raw_line}: {e.message} Nothing is changed.'
      ) from e
    self.module = wrapper.module
    self.newline = self.module.default_newline
    meta = self.cst.metadata
    self.positions = wrapper.resolve(meta.PositionProvider)
    self.starts = [0] + [m.end() for m in re.finditer(r'\r\n|\r|\n', text)]
    self.imports: list[Any] = []
    self.calls: list[Any] = []
    self._collect(self.module)

  def _collect(self, node: Any) -> None:
    cst = self.cst
    if isinstance(node, (cst.Import, cst.ImportFrom)):
      self.imports.append(node)
      return
    if isinstance(node, cst.Call):
      self.calls.append(node)
    for child in node.children:
      self._collect(child)

  def imports_of(self, package: str) -> bool:
    """Returns whether the program imports a package, or something in it."""
    return any(
      _names.is_package(name, package)
      for node in self.imports
      for name in self._modules(node)
    )

  def offset(self, line: int, column: int) -> int:
    """Returns the place of a line, from 1, and a column, from 0."""
    return self.starts[line - 1] + column

  def span(self, node: Any) -> tuple[int, int]:
    """Returns where a node begins and ends."""
    place = self.positions[node]
    return (
      self.offset(place.start.line, place.start.column),
      self.offset(place.end.line, place.end.column),
    )

  def line(self, node: Any) -> int:
    """Returns the line of a node, from 1."""
    return self.positions[node].start.line

  def dotted(self, node: Any) -> str:
    """Returns a dotted name as it is imported."""
    if isinstance(node, self.cst.Attribute):
      return f'{self.dotted(node.value)}.{node.attr.value}'
    return node.value

  def _modules(self, node: Any) -> list[str]:
    """Returns the modules that an import names."""
    if isinstance(node, self.cst.Import):
      return [self.dotted(alias.name) for alias in node.names]
    if node.relative or node.module is None:
      return []
    return [self.dotted(node.module)]

  # --- Edits ---

  def edits_of(self, node: Any) -> Iterator[Edit]:
    """Returns what to change in an import."""
    if isinstance(node, self.cst.Import):
      yield from self._edits_of_import(node)
    elif any(_names.is_package(m, THEIRS) for m in self._modules(node)):
      names = self._imported(node)
      # An import of which nothing is here stays Flax's.
      if not all(_names.find_missing(name) for name in names) or not names:
        yield self._root_edit(node.module, OURS)

  def _edits_of_import(self, node: Any) -> Iterator[Edit]:
    bound = any(
      alias.asname is not None
      and self.dotted(alias.name) == OURS
      and alias.asname.name.value == THEIRS
      for alias in node.names
    )
    for alias in node.names:
      name = self.dotted(alias.name)
      if not _names.is_package(name, THEIRS) or _names.find_missing(name):
        continue
      if alias.asname is not None:
        yield self._root_edit(alias.name, OURS)
      elif name == THEIRS:
        yield self._root_edit(alias.name, f'{OURS} as {THEIRS}')
        bound = True
      else:
        # The rest of the program goes on to say `flax.linen`.
        start, end = self.span(alias.name)
        new = _names.ours(name)
        if not bound:
          new += f', {OURS} as {THEIRS}'
          bound = True
        yield Edit(start, end, new)

  def _root_edit(self, node: Any, new: str) -> Edit:
    """Returns the edit of the first name of a dotted name."""
    while isinstance(node, self.cst.Attribute):
      node = node.value
    start, end = self.span(node)
    return Edit(start, end, new)

  def _imported(self, node: Any) -> list[str]:
    """Returns the full names that `from ... import ...` imports."""
    module = self.dotted(node.module)
    if isinstance(node.names, self.cst.ImportStar):
      return [module]
    return [f'{module}.{self.dotted(alias.name)}' for alias in node.names]

  def end_of_imports(self) -> int:
    """Returns the place behind the imports at the top of the program.

    It is behind the last import of the block in which the first one of Flax is.
    """
    last, seen = None, False
    for statement in self.module.body:
      if self._imports_below(statement):
        seen = seen or any(
          _in_either(name)
          for node in self._imports_below(statement)
          for name in self._modules(node)
        )
        last = statement
      elif seen:
        break
    if last is None or not seen:
      return self._begin_of_statements()
    # A compound statement may end where its last line's newline is.
    place = self.positions[last]
    line = place.end.line
    if place.end.column == 0 and line > place.start.line:
      line -= 1
    return self.starts[line] if line < len(self.starts) else len(self.text)

  def _begin_of_statements(self) -> int:
    """Returns the place behind the docstring and the imports that begin it."""
    for number, statement in enumerate(self.module.body):
      is_docstring = number == 0 and self.module.get_docstring() is not None
      if not is_docstring and not self._imports_below(statement):
        places = [statement, *getattr(statement, 'decorators', ())]
        return self.starts[min(map(self.line, places)) - 1]
    return len(self.text)

  def _imports_below(self, statement: Any) -> list[Any]:
    cst = self.cst
    if isinstance(statement, (cst.FunctionDef, cst.ClassDef)):
      return []
    found = []
    stack = [statement]
    while stack:
      node = stack.pop()
      if isinstance(node, (cst.Import, cst.ImportFrom)):
        found.append(node)
      elif not isinstance(node, (cst.FunctionDef, cst.ClassDef, cst.Lambda)):
        stack.extend(node.children)
    return found

  # --- Findings ---

  def findings(self) -> list[Finding]:
    """Returns what people must look at, each name once for each line."""
    found = {}
    for line, name in self._uses():
      finding = _finding(line, name)
      if finding is not None:
        found[line, finding.name] = finding
    for call in self.calls:
      finding = self._by_text(call)
      if finding is not None:
        found[finding.line, finding.name] = finding
    return sorted(found.values())

  def _uses(self) -> Iterator[tuple[int, str]]:
    """Returns the names of Flax that are used, with their lines."""
    for node in self.imports:
      if isinstance(node, self.cst.Import):
        for alias in node.names:
          yield self.line(alias), self.dotted(alias.name)
      elif self._modules(node):
        star = isinstance(node.names, self.cst.ImportStar)
        places = [node] if star else node.names
        for place, name in zip(places, self._imported(node)):
          yield self.line(place), name
    # libcst knows this, too, in time that grows with the square.
    for use in _uses.find_uses(ast.parse(self.text)):
      yield use.line, use.name

  def _by_text(self, call: Any) -> Finding | None:
    """Returns a finding for an import by a name in a string."""
    name = self.dotted(call.func) if _is_dotted(self.cst, call.func) else ''
    if name not in _IMPORTERS or not call.args:
      return None
    value = call.args[0].value
    if not isinstance(value, self.cst.SimpleString):
      return None
    module = value.evaluated_value
    if not isinstance(module, str) or not _names.is_package(module, THEIRS):
      return None
    return Finding(
      self.line(call),
      module,
      False,
      f'It is imported by a string, which is left. Write {_names.ours(module)!r}.',
    )


_IMPORTERS = ('importlib.import_module', 'import_module', '__import__')


def _is_dotted(cst: Any, node: Any) -> bool:
  while isinstance(node, cst.Attribute):
    node = node.value
  return isinstance(node, cst.Name)


def _in_either(name: str) -> bool:
  return _names.is_package(name, THEIRS) or _names.is_package(name, OURS)


def _finding(line: int, name: str) -> Finding | None:
  """Returns what there is to say of a name, if it is one of Flax's."""
  if _names.is_package(name, OURS):
    name = _names.theirs(name)
  if not _names.is_package(name, THEIRS):
    return None
  missing = _names.find_missing(name)
  if missing is not None:
    return Finding(line, missing, True, _names.advice_on_missing(missing))
  row = _names.row_of(name)
  if row is not None:
    return Finding(line, row.name, row.missing, row.advice)
  return None
