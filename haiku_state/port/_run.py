"""Running a program written for Flax as it is: `haiku-state run`."""

from __future__ import annotations

import ast
import contextlib
import doctest
import importlib.util
import linecache
import pathlib
import re
import runpy
import sys
import traceback
import types
from collections.abc import Callable, Iterator, Sequence
from typing import TextIO

from haiku_state.configurations import config
from haiku_state.port import _documents, _expects, _hook, _names

# As Sphinx checks documents.
_DOCTEST_FLAGS = (
  doctest.ELLIPSIS
  | doctest.NORMALIZE_WHITESPACE
  | doctest.IGNORE_EXCEPTION_DETAIL
)


def run_path(
  path: str | pathlib.Path,
  args: Sequence[str] = (),
  frozen: bool | None = None,
  log: TextIO | None = None,
) -> int:
  """Runs a script or a document that was written for Flax.

  Inside, `import flax` gives the modules of this package. The blocks of a
  document run in order in one namespace; one that fails is shown, and the next
  runs all the same.

  Args:
    path: the file: a script, or a document with the suffix `.rst`, `.txt`,
      `.md` or `.ipynb`.
    args: what the program finds in `sys.argv[1:]`.
    frozen: whether `init` and `apply` return FrozenDicts; None is what the
      program seems to expect.
    log: where the choice and the blocks that failed are told, by default
      `sys.stderr`.

  Returns:
    0, or 1 if a block of a document failed.

  Raises:
    DocumentError: the file is no program.
    Exception: what a script raises.
  """
  out: TextIO = sys.stderr if log is None else log
  path = pathlib.Path(path)
  blocks = _documents.read_blocks(path)
  is_document = path.suffix.lower() in _documents.SUFFIXES
  if not is_document:
    _check_is_python(blocks[0])
  with _prepared(blocks, frozen, out), _main_module(path, args) as main:
    if not is_document:
      block = blocks[0]
      with _advising():
        exec(compile(block.source, block.filename, 'exec'), main.__dict__)
      return 0
    return _run_blocks(blocks, main, path, out)


def run_module(
  name: str,
  args: Sequence[str] = (),
  frozen: bool | None = None,
  log: TextIO | None = None,
) -> int:
  """Runs a module by its name, as `python -m` does; see `run_path`.

  Raises:
    DocumentError: there is no such module.
    Exception: what the module raises.
  """
  out: TextIO = sys.stderr if log is None else log
  before = list(sys.path)
  sys.path.insert(0, '')
  try:
    path = _path_of_module(name)
    blocks = _documents.read_blocks(path)
    with _prepared(blocks, frozen, out), _arguments([str(path), *args]):
      with _advising():
        runpy.run_module(name, run_name='__main__', alter_sys=True)
    return 0
  finally:
    sys.path[:] = before


def _path_of_module(name: str) -> str:
  try:
    spec = importlib.util.find_spec(name)
    if spec is not None and spec.submodule_search_locations is not None:
      spec = importlib.util.find_spec(f'{name}.__main__')
  except ModuleNotFoundError:
    spec = None
  if spec is None or not spec.origin or not spec.origin.endswith('.py'):
    raise _documents.DocumentError(
      f'{name}: there is no module of this name that can be run. Write the name'
      ' as in `import`, with dots; a file is run without -m.'
    )
  return spec.origin


def _check_is_python(block: _documents.Block) -> None:
  """Raises if a script is no Python at all.

  Raises:
    DocumentError: it has bytes that no program has. Errors of syntax are left
      to Python, which shows them best.
  """
  if '\0' in block.source:
    raise _documents.DocumentError(f'{block.filename}: it is no program.')


# --- The surroundings of a program -------------------------------------------


@contextlib.contextmanager
def _prepared(
  blocks: Sequence[_documents.Block], frozen: bool | None, log: TextIO
) -> Iterator[None]:
  """Installs the hook and sets the kind of dicts."""
  if frozen is None:
    frozen = _choose(blocks, log)
  before = config.flax_return_frozendict
  config.update('flax_return_frozendict', frozen)
  try:
    with _hook.installed():
      yield
  finally:
    config.update('flax_return_frozendict', before)


def _choose(blocks: Sequence[_documents.Block], log: TextIO) -> bool:
  evidence = _expects.expected(parsed(blocks))
  frozen = (
    config.flax_return_frozendict if evidence is None else evidence.frozen
  )
  kind, other = 'FrozenDicts', '--dicts for plain dicts'
  if not frozen:
    kind, other = 'plain dicts', '--frozen for FrozenDicts'
  if evidence is None:
    why = 'nothing in the program tells which it expects'
  else:
    why = f'line {evidence.line} has {evidence.text}'
  print(
    f'haiku-state run: init and apply return {kind}: {why}. (Say {other}.)',
    file=log,
  )
  return frozen


def parsed(blocks: Sequence[_documents.Block]) -> list[ast.AST]:
  """Returns the trees of those blocks that are Python."""
  trees = []
  for block in blocks:
    for source, line in _documents.statements(block):
      with contextlib.suppress(SyntaxError, ValueError):
        trees.append(ast.increment_lineno(ast.parse(source), line - 1))
  return trees


@contextlib.contextmanager
def _main_module(
  path: pathlib.Path, args: Sequence[str]
) -> Iterator[types.ModuleType]:
  """Makes a new `__main__`, and what else a script finds around it."""
  main = types.ModuleType('__main__')
  main.__dict__.update(__file__=str(path), __builtins__=__builtins__)
  before, was_path = sys.modules.get('__main__'), list(sys.path)
  sys.modules['__main__'] = main
  sys.path.insert(0, str(path.resolve().parent))
  try:
    with _arguments([str(path), *args]):
      yield main
  finally:
    sys.path[:] = was_path
    if before is not None:
      sys.modules['__main__'] = before


@contextlib.contextmanager
def _arguments(argv: list[str]) -> Iterator[None]:
  before, sys.argv = sys.argv, argv
  try:
    yield
  finally:
    sys.argv = before


# Python makes this error itself, from an AttributeError that it drops.
_CANNOT_IMPORT = re.compile(r"cannot import name '(\w+)' from '([\w.]+)'")


@contextlib.contextmanager
def _advising() -> Iterator[None]:
  """Adds to the error of `from flax.x import y` what to write instead."""
  try:
    yield
  except ImportError as e:
    match = _CANNOT_IMPORT.match(str(e))
    if match and _names.is_package(match.group(2), _names.OURS):
      name = f'{_names.theirs(match.group(2))}.{match.group(1)}'
      e.add_note(_names.missing_message(name))
    raise


# --- Documents ---------------------------------------------------------------


def _run_blocks(
  blocks: Sequence[_documents.Block],
  main: types.ModuleType,
  path: pathlib.Path,
  log: TextIO,
) -> int:
  failed = 0
  for block in blocks:
    if block.filename != str(path):  # A cell: there is no file of its name.
      lines = block.source.splitlines(keepends=True)
      linecache.cache[block.filename] = (
        len(block.source),
        None,
        lines,
        block.filename,
      )
    run: Callable[[], str] = lambda b=block: _run_python(b, main)
    if block.doctest:
      run = lambda b=block: _run_doctest(b, main)
    message = run()
    if message:
      failed += 1
      print(f'\n{block.where} failed:\n{_numbered(block)}', file=log)
      print(message.rstrip(), file=log)
  passed = len(blocks) - failed
  print(
    f'haiku-state run: {path}: {passed} of {len(blocks)} blocks ran'
    + (f', {failed} failed.' if failed else '.'),
    file=log,
  )
  return 1 if failed else 0


def _run_python(block: _documents.Block, main: types.ModuleType) -> str:
  """Runs a block; returns how it failed, '' if it did not."""
  try:
    tree = ast.parse(block.source, block.filename)
  except SyntaxError as e:
    e.lineno = (e.lineno or 1) + block.line - 1
    return ''.join(traceback.format_exception_only(e))
  ast.increment_lineno(tree, block.line - 1)
  try:
    with _advising():
      exec(compile(tree, block.filename, 'exec'), main.__dict__)
  except Exception as e:
    return _traceback(e)
  return ''


def _traceback(error: Exception) -> str:
  """Returns a traceback that begins in the program."""
  tb = error.__traceback__
  own = (__file__, contextlib.__file__)
  while tb is not None and tb.tb_frame.f_code.co_filename in own:
    tb = tb.tb_next
  return ''.join(
    traceback.format_exception(type(error), error, tb or error.__traceback__)
  )


def _run_doctest(block: _documents.Block, main: types.ModuleType) -> str:
  """Runs the examples of a block; returns how they failed."""
  test = doctest.DocTest(
    _documents.examples(block),
    main.__dict__,
    block.where,
    block.filename,
    block.line - 1,
    block.source,
  )
  test.globs = main.__dict__  # It has made a copy.
  text: list[str] = []
  runner = doctest.DocTestRunner(verbose=False, optionflags=_DOCTEST_FLAGS)
  runner.run(test, out=text.append, clear_globs=False)
  return ''.join(text)


def _numbered(block: _documents.Block) -> str:
  lines = block.source.rstrip('\n').split('\n')
  return '\n'.join(f'{n:5} | {x}' for n, x in enumerate(lines, block.line))
