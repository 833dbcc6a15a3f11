"""Which names in a program stand for something imported, in linear time.

A name is looked up as Python does: in the scope where it is used, then in those
around it, but for classes. Where it is bound several times in one scope, all of
its bindings count.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator
from typing import NamedTuple


class Use(NamedTuple):
  """A dotted name in a program.

  Attributes:
    line: its line, from 1.
    name: the full name of what is imported.
  """

  line: int
  name: str


@dataclasses.dataclass(eq=False)
class _Scope:
  """What is bound in one module, class or function.

  Attributes:
    outer: the scope around it.
    is_class: whether it is a class.
    imports: the full names of what is imported, by the name it is bound to.
    bound: all names that are bound.
    elsewhere: the scopes of names that are `global` or `nonlocal`.
    found: what names stand for, as far as they were asked for.
  """

  outer: _Scope | None
  is_class: bool = False
  imports: dict[str, set[str]] = dataclasses.field(default_factory=dict)
  bound: set[str] = dataclasses.field(default_factory=set)
  elsewhere: dict[str, _Scope | None] = dataclasses.field(default_factory=dict)
  found: dict[str, set[str]] = dataclasses.field(default_factory=dict)


_NOTHING: set[str] = set()


def find_uses(tree: ast.Module) -> Iterator[Use]:
  """Returns the dotted names that stand for something imported."""
  finder = _Finder()
  finder.visit(tree)
  for scope, line, root, rest in finder.uses:
    for name in _look_up(scope, root):
      yield Use(line, name + rest)


def _look_up(scope: _Scope, name: str) -> set[str]:
  """Returns what a name may stand for, as far as that is imported."""
  if name not in scope.found:
    at: _Scope | None = scope
    while at is not None:
      if name in at.elsewhere:
        at = at.elsewhere[name]
        continue
      if name in at.bound and (at is scope or not at.is_class):
        break
      at = at.outer
    scope.found[name] = at.imports.get(name, _NOTHING) if at else _NOTHING
  return scope.found[name]


class _Finder(ast.NodeVisitor):
  """Collects scopes, their bindings, and the names that are used in them."""

  def __init__(self) -> None:
    self.module = self.scope = _Scope(None)
    self.uses: list[tuple[_Scope, int, str, str]] = []

  def bind(self, name: str) -> None:
    scope = self.scope.elsewhere.get(name, self.scope) or self.module
    scope.bound.add(name)

  def within(self, nodes, is_class: bool = False, bound=()) -> None:
    """Visits nodes in a new scope."""
    outer = self.scope
    self.scope = _Scope(outer, is_class)
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
      self.uses.append((self.scope, node.lineno, at.id, rest))
    else:
      self.visit(at)

  def visit_Name(self, node: ast.Name) -> None:
    if not isinstance(node.ctx, ast.Load):
      self.bind(node.id)
    self.uses.append((self.scope, node.lineno, node.id, ''))

  # --- Bindings ---

  def visit_Import(self, node: ast.Import) -> None:
    for alias in node.names:
      first = alias.name.split('.')[0]
      self._import(alias.asname or first, alias.name if alias.asname else first)

  def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
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
