"""Rewriting names that JAX has removed to what they are called today.

Text is changed at the places of names only, so that every other byte stays.
What has no exact successor, and what is written so that a place cannot be told
for certain, is left.
"""

from __future__ import annotations

import ast
import bisect
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from haiku_state.port import _old_names, _uses
from haiku_state.port._old_names import PARTS, Old
from haiku_state.port._uses import Import, Use


class Edit(NamedTuple):
  """A piece of text that is replaced.

  Attributes:
    start: where it begins.
    end: where it ends.
    text: what is written instead.
  """

  start: int
  end: int
  text: str


class OldUse(NamedTuple):
  """A name of the table in a program.

  Attributes:
    line: its line, from 1.
    row: the name.
  """

  line: int
  row: Old


def find_old(
  tree: ast.Module, before: Iterable[ast.Module] = ()
) -> list[OldUse]:
  """Returns the names of a program that JAX has removed.

  Args:
    tree: the program.
    before: what runs before it in the same namespace.
  """
  uses, imports = _uses.read(tree, before)
  names = [(use.line, use.name) for use in uses]
  for node, _ in imports:
    names += [
      (alias.lineno, _imported_as(node, full))
      for alias, full in _imported(node)
    ]
  found = {
    OldUse(line, row)
    for line, name in names
    if (row := _old_names.row_around(name)) is not None
  }
  found |= {OldUse(node.lineno, row) for node, row in _arguments(tree, uses)}
  return sorted(found, key=lambda old: (old.line, old.row.name))


def _arguments(
  tree: ast.Module, uses: Sequence[Use]
) -> Iterator[tuple[ast.keyword, Old]]:
  """Returns the arguments in calls that functions have no more."""
  functions = {
    id(use.node): _old_names.ARGUMENTS[use.name]
    for use in uses
    if use.name in _old_names.ARGUMENTS
  }
  for node in ast.walk(tree) if functions else ():
    if isinstance(node, ast.Call) and id(node.func) in functions:
      for keyword in node.keywords:
        row = functions[id(node.func)].get(keyword.arg or '')
        if row is not None:
          yield keyword, row


def _imported_as(node: ast.Import | ast.ImportFrom, name: str) -> str:
  """Returns the name whose row tells of an import."""
  if isinstance(node, ast.Import) and name in _old_names.IMPORTED_AS:
    return PARTS[name][0].name
  return name


def _imported(
  node: ast.Import | ast.ImportFrom,
) -> Iterator[tuple[ast.alias, str]]:
  """Returns what an import imports, each with its full name."""
  if isinstance(node, ast.Import):
    yield from ((alias, alias.name) for alias in node.names)
  elif not node.level:
    for alias in node.names:
      star = alias.name == '*'
      yield alias, str(node.module) + ('' if star else f'.{alias.name}')


def find_edits(text: str) -> list[Edit]:
  """Returns what to change in a program."""
  return _Program(text, [], {}, in_lines=True).edits()


def find_edits_of_pieces(
  sources: Sequence[str], in_lines: bool
) -> list[list[Edit]]:
  """Returns what to change in pieces that run in order in one namespace.

  Args:
    sources: the pieces. One that cannot be parsed is left.
    in_lines: whether an import that is added may have a line of its own.

  Returns:
    The edits of each piece.
  """
  trees = [_parsed(source) for source in sources]
  found: list[list[Edit]] = [[] for _ in sources]
  later: dict[str, bool] = {}
  # From the last: an import is of no more use when what follows is rewritten.
  for number in reversed(range(len(sources))):
    tree, source = trees[number], sources[number]
    if tree is None:
      continue
    before = [other for other in trees[:number] if other is not None]
    found[number] = _Program(source, before, later, in_lines).edits()
    after = _parsed(apply(source, found[number]))
    left = _names_in(after) if after is not None else set()
    for name in _names_in(tree) | left:
      later[name] = later.get(name, False) or name in left
  return found


def apply(text: str, edits: Sequence[Edit]) -> str:
  """Returns a text with pieces replaced."""
  for edit in sorted(edits, reverse=True):
    text = text[: edit.start] + edit.text + text[edit.end :]
  return text


def _parsed(source: str) -> ast.Module | None:
  try:
    return ast.parse(source)
  except (SyntaxError, ValueError, RecursionError, MemoryError):
    return None


def _names_in(tree: ast.Module) -> set[str]:
  return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


class _Program:
  """A program, and what is changed in it.

  Args:
    text: the program.
    before: what runs before it in the same namespace.
    later: the names that are used in what runs after it, each with whether that
      is so when it is rewritten.
    in_lines: whether an import that is added may have a line of its own.
  """

  def __init__(
    self,
    text: str,
    before: Iterable[ast.Module],
    later: dict[str, bool],
    in_lines: bool,
  ) -> None:
    self.text = text
    self.later = later
    self.in_lines = in_lines
    self.tree = ast.parse(text)
    self.uses, self.imports = _uses.read(self.tree, before)
    self.starts = [0] + [m.end() for m in re.finditer(r'\r\n|\r|\n', text)]
    newline = re.search(r'\r\n|\r|\n', text)
    self.newline = newline.group() if newline else '\n'
    self.done: set[int] = set()  # Nodes of names that are rewritten.
    self.needed: dict[str, None] = {}  # Modules that must be imported.

  def edits(self) -> list[Edit]:
    """Returns all edits."""
    edits = [*self._calls(), *self._keywords()]
    for use in self.uses:
      edits += self._name(use)
    for statement in self.imports:
      edits += self._import(statement)
    return [*edits, *self._added_imports()]

  # --- Places ---

  def offset(self, line: int, column: int) -> int:
    """Returns the place of a line, from 1, and a column in bytes."""
    start = self.starts[line - 1]
    content = self.text[start : start + column].encode()[:column]
    return start + len(content.decode(errors='ignore'))

  def span(self, node: ast.expr | ast.stmt | ast.alias) -> tuple[int, int]:
    """Returns where a node begins and ends."""
    assert node.end_lineno is not None and node.end_col_offset is not None
    return (
      self.offset(node.lineno, node.col_offset),
      self.offset(node.end_lineno, node.end_col_offset),
    )

  # --- Calls that are methods today ---

  def _calls(self) -> Iterator[Edit]:
    """Returns the edits of `index_update(x, i, y)` and the like."""
    by_node = {id(use.node): use for use in self.uses}
    for node in ast.walk(self.tree):
      use = by_node.get(id(node.func)) if isinstance(node, ast.Call) else None
      row = _old_names.row_of(use.name) if use is not None else None
      if use is not None and row is not None and row.at:
        assert isinstance(node, ast.Call)
        edits = self._call(node, row.at, by_node)
        if edits and self._is_written(use):
          self.done.add(id(use.node))
          yield from edits

  def _call(
    self, node: ast.Call, method: str, by_node: dict[int, Use]
  ) -> list[Edit]:
    """Returns the edits of a call, none if it cannot be written so."""
    if len(node.args) != 3 or any(
      isinstance(x, (ast.Starred, ast.GeneratorExp)) for x in node.args
    ):
      return []
    start, _ = self.span(node)
    (x, x_end), (i, i_end), (y, _) = map(self.span, node.args)
    # Brackets around arguments are in between; strings cannot be.
    between = self.text[i_end:y]
    if '#' in self.text[start:x] + self.text[x_end:i] + between:
      return []
    array, index, _ = node.args
    simple = isinstance(
      array, (ast.Name, ast.Attribute, ast.Subscript, ast.Call)
    )
    simple = simple and '\n' not in self.text[x:x_end]
    opened, closed = ('', '') if simple else ('(', ')')
    if isinstance(index, ast.Subscript):
      name = by_node.get(id(index.value))
      if name is not None and name.name in _INDICES:
        self.done.add(id(index.value))
        i, i_end = self.span(index.slice)
    y -= len(between) - between.index(',') - 1
    y += len(self.text[y:]) - len(self.text[y:].lstrip())
    return [
      Edit(start, x, opened),
      Edit(x_end, i, f'{closed}.at['),
      Edit(i_end, y, f'].{method}('),
    ]

  def _keywords(self) -> Iterator[Edit]:
    """Returns the edits of arguments that have another name today."""
    for node, row in _arguments(self.tree, self.uses):
      start = self.offset(node.lineno, node.col_offset)
      end = start + len(node.arg or '')
      if self.text[start:end] == node.arg:
        yield Edit(start, end, row.keyword)

  # --- Names ---

  def _name(self, use: Use) -> Iterator[Edit]:
    """Returns the edit of a dotted name."""
    new = _old_names.successor(use.name)
    if (
      new is None
      or id(use.node) in self.done
      # Then the import is rewritten, and the name stays.
      or _old_names.successor(use.imported) is not None
      or isinstance(use.node.ctx, (ast.Store, ast.Del))
      or len(_uses.look_up(use.scope, use.root)) > 1
    ):
      return
    spelled = self._is_written(use) and self._spelled(new, use)
    if spelled:
      self.done.add(id(use.node))
      yield Edit(*self.span(use.node), spelled)

  def _is_written(self, use: Use) -> bool:
    """Returns whether a name is where Python says it is.

    In f-strings Python says it wrong before version 3.12, and a comment may be
    in between.
    """
    start, end = self.span(use.node)
    written = re.sub(r'[\s\\]', '', self.text[start:end])
    return written == use.root + use.name.removeprefix(use.imported)

  def _spelled(self, new: str, use: Use) -> str:
    """Returns how a name is written there, '' if it cannot be."""
    module = _module_of(new)
    for full, name in self._bound(use):
      if (
        full == new
        or full == module
        or (full == new.partition('.')[0] and module in _WITH_JAX)
      ):
        return name + new.removeprefix(full)
    first = new.partition('.')[0]
    scope = _uses.binding(use.scope, first)
    if scope is not None and _uses.look_up(use.scope, first) != {first}:
      return ''  # The name stands for something else.
    self.needed[module] = None
    return new

  def _bound(self, use: Use) -> Iterator[tuple[str, str]]:
    """Returns what is imported, and by which name it is called there."""
    yield use.imported, use.root
    for node, scope in self.imports:
      for alias, full in _imported(node):
        if isinstance(node, ast.Import) and alias.asname is None:
          full = full.partition('.')[0]
        name = alias.asname or full.rpartition('.')[2]
        is_seen = _uses.binding(use.scope, name) is scope
        if is_seen and _uses.look_up(use.scope, name) == {full}:
          yield full, name

  # --- Imports ---

  def _import(self, statement: Import) -> Iterator[Edit]:
    """Returns the edits of an import."""
    node, _ = statement
    if isinstance(node, ast.Import):
      for alias in node.names:
        yield from self._plain_import(statement, alias)
    elif not node.level:
      yield from self._from_import(statement, node)

  def _plain_import(
    self, statement: Import, alias: ast.alias
  ) -> Iterator[Edit]:
    new = _old_names.successor(alias.name)
    if alias.asname is None:
      new = _old_names.IMPORTED_AS.get(alias.name, new)
    elif new is None and self._is_used_up(statement, alias):
      yield Edit(*self.span(alias), 'jax')
    if new is None and alias.name in PARTS and self._is_unused(alias.name):
      new = 'jax'
    start, _ = self.span(alias)
    end = start + len(alias.name)
    if new is None or self.text[start:end] != alias.name:
      return
    first = alias.name.partition('.')[0]
    if alias.asname is None and new.partition('.')[0] != first:
      new = f'{first}, {new}'
    yield Edit(start, end, new)

  def _from_import(
    self, statement: Import, node: ast.ImportFrom
  ) -> Iterator[Edit]:
    module = str(node.module)
    if node.names[0].name == '*':
      new = _old_names.successor(module)
      if new is not None:
        yield from self._root(node, new)
      return
    kept, moved, gone = [], {}, []
    for alias, full in _imported(node):
      new = _old_names.successor(full)
      if self._is_used_up(statement, alias):
        gone.append(alias)
      elif new is None:
        kept.append(alias)
      else:
        moved[alias] = new
    if not moved and not gone:
      return
    parents = {new.rpartition('.')[0] for new in moved.values()}
    if not kept and not gone and len(parents) == 1 and all(parents):
      yield from self._root(node, parents.pop())
      for alias, new in moved.items():
        yield Edit(*self.span(alias), _alias(alias, new.rpartition('.')[2]))
      return
    yield from self._split(node, kept, moved)

  def _is_unused(self, module: str) -> bool:
    """Returns whether all names of a gone module are rewritten."""
    return _old_names.row_of(module) is not None and not any(
      use.name.startswith(module + '.') and id(use.node) not in self.done
      for use in self.uses
    )

  def _is_used_up(self, statement: Import, alias: ast.alias) -> bool:
    """Returns whether all that a name was imported for is rewritten."""
    name = alias.asname or alias.name
    full = dict(_imported(statement.node))[alias]
    if _old_names.row_of(full) is None:
      return False  # It is there today, perhaps for what was rewritten.
    uses = [
      use
      for use in self.uses
      if use.root == name and _uses.binding(use.scope, name) is statement.scope
    ]
    if statement.scope.outer is None and self.later.get(name):
      return False
    is_used = bool(uses) or (
      statement.scope.outer is None and name in self.later
    )
    return is_used and all(id(use.node) in self.done for use in uses)

  def _root(self, node: ast.ImportFrom, new: str) -> Iterator[Edit]:
    """Returns the edit of the module from which something is imported."""
    start, end = self.span(node)
    match = _FROM.match(self.text, start, end)
    if match and re.sub(r'[\s\\]', '', match.group(1)) == node.module:
      yield Edit(*match.span(1), new)

  def _split(
    self,
    node: ast.ImportFrom,
    kept: Sequence[ast.alias],
    moved: dict[ast.alias, str],
  ) -> Iterator[Edit]:
    """Returns the edit of an import, a part of which goes elsewhere."""
    start, end = self.span(node)
    if '#' in self.text[start:end]:
      return
    lines = []
    if kept:
      names = ', '.join(_alias(alias, alias.name) for alias in kept)
      lines.append(f'from {node.module} import {names}')
    for alias, new in moved.items():
      parent, _, last = new.rpartition('.')
      name = _alias(alias, last)
      lines.append(
        f'from {parent} import {name}' if parent else f'import {name}'
      )
    line_start = self.starts[bisect.bisect_right(self.starts, start) - 1]
    indent = self.text[line_start:start]
    alone = self.in_lines and not indent.strip()
    separator = self.newline + indent if alone else '; '
    line_end = _END_OF_LINE.match(self.text, end)
    if not lines and alone and line_end and node in self.tree.body:
      yield Edit(start, line_end.end(), '')
    else:
      # Where nothing is left, a block may still need a statement.
      yield Edit(start, end, separator.join(lines) or 'pass')

  def _added_imports(self) -> Iterator[Edit]:
    """Returns the edit that adds imports, before the first one."""
    have = {
      _old_names.successor(full) or full
      for node, scope in self.imports
      if scope.outer is None and isinstance(node, ast.Import)
      for _, full in _imported(node)
    }
    lines = [f'import {name}' for name in self.needed if name not in have]
    if lines:
      start = self._begin()
      separator = self.newline if self.in_lines else '; '
      yield Edit(start, start, ''.join(line + separator for line in lines))

  def _begin(self) -> int:
    """Returns the place of the first statement that imports may precede."""
    for statement in self.tree.body:
      is_docstring = (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
      )
      is_future = (
        isinstance(statement, ast.ImportFrom)
        and statement.module == '__future__'
      )
      if not is_docstring and not is_future:
        decorators = getattr(statement, 'decorator_list', ())
        if decorators:
          return self.starts[decorators[0].lineno - 1]
        return self.span(statement)[0]
    return len(self.text)


_END_OF_LINE = re.compile(r'[ \t]*(\r\n|\r|\n|$)')
_FROM = re.compile(r'from[\s\\]+([\w.\s\\]*?)[\s\\]+import\b')
_INDICES = ('jax.ops.index', 'jax.numpy.s_')
# Modules that are there when `jax` is imported.
_WITH_JAX = frozenset(
  ('jax', 'jax.tree', 'jax.tree_util', 'jax.numpy', 'jax.lax', 'jax.nn')
  + ('jax.core', 'jax.profiler', 'jax.sharding', 'jax.errors', 'jax.random')
)
_MODULES = ('jax.example_libraries.optimizers', 'jax.example_libraries.stax')


def _module_of(name: str) -> str:
  """Returns the module that must be imported for a name of today."""
  for module in _MODULES:
    if name == module or name.startswith(module + '.'):
      return module
  return name.rpartition('.')[0] or name


def _alias(alias: ast.alias, new: str) -> str:
  """Returns what binds the name that an alias has bound."""
  bound = alias.asname or alias.name
  return new if new == bound and not alias.asname else f'{new} as {bound}'
