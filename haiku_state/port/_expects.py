"""Whether a program expects plain dicts or FrozenDicts from `init`.

Flax returned FrozenDicts before version 0.7.1, of July 2023, and dicts since.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Evidence(NamedTuple):
  """Something in a program that tells what it expects.

  Attributes:
    frozen: whether it tells of FrozenDicts.
    use: whether it is a use, which fails otherwise; else it tells the age.
    line: its line, from 1.
    text: what it is.
  """

  frozen: bool
  use: bool
  line: int
  text: str


def expected(trees: Iterable[ast.AST]) -> Evidence | None:
  """Returns what tells best what a program expects, None if nothing does.

  Args:
    trees: the parsed program, with the lines of its file.
  """
  found = [e for tree in trees for e in _evidence(tree)]
  # Uses before age; FrozenDict before dict, which most of its uses allow.
  found.sort(key=lambda e: (not e.use, not e.frozen, e.line))
  return found[0] if found else None


def _evidence(tree: ast.AST) -> Iterator[Evidence]:
  made = _made_by_init(tree)
  for node in ast.walk(tree):
    if isinstance(node, ast.Assign):
      yield from _of_assignment(node, made)
    elif isinstance(node, ast.Delete):
      yield from _of_writes(node.targets, made, node.lineno)
    elif isinstance(node, ast.Call):
      yield from _of_call(node)
    elif isinstance(node, (ast.Import, ast.ImportFrom)):
      yield from _of_import(node)
    elif isinstance(node, ast.Attribute):
      yield from _of_age(node)


def _is_pop(node: ast.AST) -> bool:
  """Returns whether a node is `<variables>.pop('params')`."""
  return (
    isinstance(node, ast.Call)
    and isinstance(node.func, ast.Attribute)
    and node.func.attr == 'pop'
    and len(node.args) == 1
    and not node.keywords
    and isinstance(node.args[0], ast.Constant)
    and isinstance(node.args[0].value, str)
  )


def _of_assignment(node: ast.Assign, made: set[str]) -> Iterator[Evidence]:
  if _is_pop(node.value):
    target = node.targets[0]
    text = ast.unparse(node)
    if isinstance(target, (ast.Tuple, ast.List)) and len(target.elts) == 2:
      yield Evidence(True, True, node.lineno, text)
    elif isinstance(target, ast.Name) and _popped(node.value) == 'params':
      yield Evidence(False, True, node.lineno, text)
  yield from _of_writes(node.targets, made, node.lineno)


def _popped(node: ast.AST) -> object:
  assert isinstance(node, ast.Call) and isinstance(node.args[0], ast.Constant)
  return node.args[0].value


def _of_writes(
  targets: list[ast.expr], made: set[str], line: int
) -> Iterator[Evidence]:
  for target in targets:
    base: ast.expr = target
    while isinstance(base, ast.Subscript):
      base = base.value
    if base is not target and isinstance(base, ast.Name) and base.id in made:
      yield Evidence(False, True, line, f'{ast.unparse(target)} is changed')


def _made_by_init(tree: ast.AST) -> set[str]:
  """Returns names that hold what `init` returned, and nothing else."""
  made: set[str] = set()
  other: set[str] = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
      call = node.value
      by_init = (
        isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr == 'init'
      )
      (made if by_init else other).add(node.targets[0].id)
  return made - other


def _of_call(node: ast.Call) -> Iterator[Evidence]:
  if not isinstance(node.func, ast.Attribute):
    return
  name, line = node.func.attr, node.lineno
  if name == 'unfreeze' and not node.args and not node.keywords:
    yield Evidence(True, True, line, ast.unparse(node))
  if name == 'copy' and (
    any(isinstance(a, ast.Dict) for a in node.args)
    or any(k.arg == 'add_or_replace' for k in node.keywords)
  ):
    yield Evidence(True, True, line, ast.unparse(node))


def has_optim(trees: Iterable[ast.AST]) -> bool:
  """Returns whether a program imports `flax.optim`, which Flax had until 2022."""
  return any(
    _is_below(name, 'flax.optim')
    for tree in trees
    for node in ast.walk(tree)
    if isinstance(node, (ast.Import, ast.ImportFrom))
    for name in _imported(node)
  )


def _imported(node: ast.Import | ast.ImportFrom) -> list[str]:
  names = [alias.name for alias in node.names]
  if isinstance(node, ast.ImportFrom):
    names = [f'{node.module}.{name}' for name in names]
  return names


def _is_below(name: str, module: str) -> bool:
  return f'{name}.'.startswith(f'{module}.')


def _of_import(node: ast.Import | ast.ImportFrom) -> Iterator[Evidence]:
  for name in _imported(node):
    # As written for Flax, and as rewritten.
    library, _, below = name.partition('.')
    if library not in ('flax', 'haiku_state'):
      continue
    if _is_below(below, 'optim'):
      text = f'{ast.unparse(node)}, which Flax had until 2022'
      yield Evidence(True, False, node.lineno, text)
    elif _is_below(below, 'nnx'):
      text = f'{ast.unparse(node)}, which Flax has since 2023'
      yield Evidence(False, False, node.lineno, text)


# Of JAX, since August 2023 and February 2024.
_YOUNG = ('jax.random.key', 'random.key', 'jax.tree.map', 'jax.tree.leaves')


def _of_age(node: ast.Attribute) -> Iterator[Evidence]:
  text = ast.unparse(node)
  if text in _YOUNG:
    yield Evidence(False, False, node.lineno, f'{text}, which is younger')
  elif text in ('jax.tree_multimap', 'jax.tree_util.tree_multimap'):
    yield Evidence(True, False, node.lineno, f'{text}, which is older')
