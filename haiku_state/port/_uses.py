"""Which names in a program stand for something imported, in linear time.

A name is looked up as Python does: in the scope where it is used, then in those
around it, but for classes. Where it is bound several times in one scope, all of
its bindings count.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Use(NamedTuple):
  """A dotted name in a program.

  Attributes:
    line: its line, from 1.
    name: the full name of what is imported.
    imported: the part of it that is imported, as a full name.
    node: where it stands.
    scope: the scope around it.
  """

  line: int
  name: str
  imported: str
  node: ast.Attribute | ast.Name
  scope: Scope

  @property
  def root(self) -> str:
    """The name by which the program calls what is imported."""
    at: ast.expr = self.node
    while isinstance(at, ast.Attribute):
      at = at.value
    assert isinstance(at, ast.Name)
    return at.id


@dataclasses.dataclass(eq=False)
class Scope:
  """What is bound in one module, class or function.

  Attributes:
    outer: the scope around it.
    is_class: whether it is a class.
    imports: the full names of what is imported, by the name it is bound to.
    bound: all names that are bound.
    elsewhere: the scopes of names that are `global` or `nonlocal`.
    found: what names stand for, as far as they were asked for.
  """

  outer: Scope | None
  is_class: bool = False
  imports: dict[str, set[str]] = dataclasses.field(default_factory=dict)
  bound: set[str] = dataclasses.field(default_factory=set)
  elsewhere: dict[str, Scope | None] = dataclasses.field(default_factory=dict)
  found: dict[str, set[str]] = dataclasses.field(default_factory=dict)


_NOTHING: set[str] = set()


class Import(NamedTuple):
  """A statement that imports something.

  Attributes:
    node: the statement.
    scope: the scope in which it binds names.
  """

  node: ast.Import | ast.ImportFrom
  scope: Scope


def find_uses(tree: ast.Module) -> Iterator[Use]:
  """Returns the dotted names that stand for something imported."""
  return iter(read(tree)[0])


def read(
  tree: ast.Module, before: Iterable[ast.Module] = ()
) -> tuple[list[Use], list[Import]]:
  """Returns the names that stand for something imported, and the imports.

  Args:
    tree: the program.
    before: what runs before it in the same namespace, such as other cells.
  """
  finder = _Finder()
  for other in before:
    finder.visit(other)
  finder.uses.clear()
  finder.statements.clear()
  finder.visit(tree)
  uses = [
    Use(node.lineno, name + rest, name, node, scope)
    for scope, node, root, rest in finder.uses
    for name in look_up(scope, root)
  ]
  return uses, finder.statements


def look_up(scope: Scope, name: str) -> set[str]:
  """Returns what a name may stand for, as far as that is imported."""
  if name not in scope.found:
    at = binding(scope, name)
    scope.found[name] = at.imports.get(name, _NOTHING) if at else _NOTHING
  return scope.found[name]


def binding(scope: Scope, name: str) -> Scope | None:
  """Returns the scope in which a name is bound, None if it is in none."""
  at: Scope | None = scope
  while at is not None:
    if name in at.elsewhere:
      at = at.elsewhere[name]
      continue
    if name in at.bound and (at is scope or not at.is_class):
      break
    at = at.outer
  return at


class _Finder(ast.NodeVisitor):
  """Collects scopes, their bindings, and the names that are used in them."""

  def __init__(self) -> None:
    self.module = self.scope = Scope(None)
    self.uses: list[tuple[Scope, ast.Attribute | ast.Name, str, str]] = []
    self.statements: list[Import] = []

  def bind(self, name: str) -> None:
    scope = self.scope.elsewhere.get(name, self.scope) or self.module
    scope.bound.add(name)

  def within(self, nodes, is_class: bool = False, bound=()) -> None:
    """Visits nodes in a new scope."""
    outer = self.scope
    self.scope = Scope(outer, is_class)
    self.scope.bound.update(bound)
    for node in nodes:
      self.visit(node)
    self.scope = outer

  # --- Uses ---

  def visit_Attribute(self, node: ast.Attribute) -> None:
    parts: list[str] = []
    at: ast.expr = node
    while isinstance(at, ast.Attribute):
      parts.append(at.attr)
      at = at.value
    if isinstance(at, ast.Name):
      rest = ''.join('.' + part for part in reversed(parts))
      self.uses.append((self.scope, node, at.id, rest))
    else:
      self.visit(at)

  def visit_Name(self, node: ast.Name) -> None:
    if not isinstance(node.ctx, ast.Load):
      self.bind(node.id)
    self.uses.append((self.scope, node, node.id, ''))

  # --- Bindings ---

  def visit_Import(self, node: ast.Import) -> None:
    self.statements.append(Import(node, self.scope))
    for alias in node.names:
      first = alias.name.split('.')[0]
      self._import(alias.asname or first, alias.name if alias.asname else first)

  def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
    self.statements.append(Import(node, self.scope))
    for alias in node.names:
      name = alias.asname or alias.name
      if node.level or name == '*':
        self.bind(name)
      else:
        self._import(name, f'{node.module}.{alias.name}')

  def _import(self, name: str, full: str) -> None:
    self.bind(name)
    scope = self.scope.elsewhere.get(name, self.scope) or self.module
    scope.imports.setdefault(name, set()).add(full)

  def visit_Global(self, node: ast.Global) -> None:
    self.scope.elsewhere.update(dict.fromkeys(node.names, self.module))

  def visit_Nonlocal(self, node: ast.Nonlocal) -> None:
    self.scope.elsewhere.update(dict.fromkeys(node.names, self.scope.outer))

  def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
    if node.name:
      self.bind(node.name)
    self.generic_visit(node)

  def _visit_capture(self, node) -> None:
    if node.name:
      self.bind(node.name)
    self.generic_visit(node)

  visit_MatchAs = visit_MatchStar = _visit_capture

  def visit_MatchMapping(self, node: ast.MatchMapping) -> None:
    if node.rest:
      self.bind(node.rest)
    self.generic_visit(node)

  # --- Scopes ---

  def _visit_function(self, node) -> None:
    self.bind(node.name)
    for outside in (*node.decorator_list, node.returns):
      if outside is not None:
        self.visit(outside)
    self._visit_body(node.args, node.body)

  visit_FunctionDef = visit_AsyncFunctionDef = _visit_function

  def visit_Lambda(self, node: ast.Lambda) -> None:
    self._visit_body(node.args, [node.body])

  def _visit_body(self, arguments: ast.arguments, body) -> None:
    args = [
      *(*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs),
      *(arg for arg in (arguments.vararg, arguments.kwarg) if arg),
    ]
    outside = [arg.annotation for arg in args]
    for node in (*outside, *arguments.defaults, *arguments.kw_defaults):
      if node is not None:
        self.visit(node)
    self.within(body, bound=[arg.arg for arg in args])

  def visit_ClassDef(self, node: ast.ClassDef) -> None:
    self.bind(node.name)
    for outside in (*node.decorator_list, *node.bases, *node.keywords):
      self.visit(outside)
    self.within(node.body, is_class=True)

  def _visit_comprehension(self, node) -> None:
    self.visit(node.generators[0].iter)
    self.within(ast.iter_child_nodes(node))

  visit_ListComp = visit_SetComp = _visit_comprehension
  visit_DictComp = visit_GeneratorExp = _visit_comprehension
