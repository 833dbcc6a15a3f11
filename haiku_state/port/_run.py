"""Running a program written for Flax as it is: `haiku-state run`."""

from __future__ import annotations

import ast
import builtins
import contextlib
import doctest
import importlib.machinery
import importlib.util
import linecache
import os
import pathlib
import re
import sys
import traceback
import types
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TextIO

from haiku_state import _versions
from haiku_state._extents import restored
from haiku_state.configurations import config
from haiku_state.port import (
  _documents,
  _expects,
  _hook,
  _names,
  _old_jax,
  _old_names,
  _startup,
)

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
  old_jax: bool = True,
) -> int:
  """Runs a script or a document that was written for Flax.

  Inside, `import flax` gives the modules of this package, also in processes
  that the program starts. The blocks of a document run in order in one
  namespace; one that fails is shown, and the next runs all the same.

  >>> import pathlib, tempfile
  >>> from haiku_state import port
  >>> path = pathlib.Path(tempfile.mkdtemp()) / 'program.py'
  >>> _ = path.write_text('import flax.linen as nn; print(nn.Dense(2).name)')
  >>> port.run_path(path)
  None
  0

  Args:
    path: the file: a script, or a document with the suffix `.rst`, `.txt`,
      `.md` or `.ipynb`; `-` is the standard input.
    args: what the program finds in `sys.argv[1:]`.
    frozen: whether `init` and `apply` return FrozenDicts; None is what the
      program seems to expect.
    log: where is told which blocks of a document failed, what of it was left
      out, and which names of `old_jax` it used; by default `sys.stderr`.
    old_jax: whether it finds names that JAX has removed, as for `installed`.

  Returns:
    0, or 1 if a block of a document failed.

  Raises:
    DocumentError: the file is no program.
    Exception: what a script raises.
  """
  with _surroundings():
    return start_path(path, args, frozen, log, old_jax)


def run_module(
  name: str,
  args: Sequence[str] = (),
  frozen: bool | None = None,
  log: TextIO | None = None,
  old_jax: bool = True,
) -> int:
  """Runs a module by its name, as `python -m` does; see `run_path`.

  >>> import pathlib, sys, tempfile
  >>> from haiku_state import port
  >>> folder = pathlib.Path(tempfile.mkdtemp())
  >>> path = folder / 'program.py'
  >>> _ = path.write_text('import flax; print(flax.__name__)')
  >>> sys.path.insert(0, str(folder))
  >>> port.run_module('program')
  flax
  0
  >>> sys.path.remove(str(folder))

  Raises:
    DocumentError: there is no such module.
    Exception: what the module raises.
  """
  with _surroundings():
    return start_module(name, args, frozen, log, old_jax)


def start_path(
  path: str | pathlib.Path,
  args: Sequence[str],
  frozen: bool | None,
  log: TextIO | None = None,
  old_jax: bool = True,
) -> int:
  """Runs a file as `run_path` does, in a process that is the program's.

  Threads, and functions that run at the exit of the process, find everything
  as it was while the program ran.
  """
  path = pathlib.Path(path)
  is_document = path.suffix.lower() in _documents.SUFFIXES
  if str(path) == '-':
    blocks, main, folder = [_standard_input()], _new_main(), ''
  else:
    blocks, main = _documents.read_blocks(path), _new_main()
    folder = str(path.resolve().parent)
    if not is_document:
      main = _main_of_script(os.path.abspath(path))
  if not is_document:
    _check_is_python(blocks[0])
  kind = _Kind.of(blocks, frozen)
  _enter(main, [str(path), *args], folder)
  _prepare(kind, old_jax)
  with _shown_from_the_program(), _telling_of_old_names(log):
    if is_document:
      return _run_blocks(blocks, kind, path, sys.stderr if log is None else log)
    filename = getattr(main, '__file__', blocks[0].filename)
    with _advising(kind):
      _execute(lambda: _compiled(blocks[0].source, filename))
  return 0


def _standard_input() -> _documents.Block:
  block = _documents.Block(sys.stdin.read(), '<stdin>', 1, '<stdin>', False)
  _remember(block)
  return block


def _compiled(source: str | ast.Module, filename: str) -> types.CodeType:
  # Without the `from __future__ import` of this file.
  return compile(source, filename, 'exec', dont_inherit=True)


def start_module(
  name: str,
  args: Sequence[str],
  frozen: bool | None,
  log: TextIO | None = None,
  old_jax: bool = True,
) -> int:
  """Runs a module as `run_module` does, in a process that is the program's."""
  _put_first(os.getcwd())
  spec = _spec_of_module(name)
  assert spec.origin is not None
  kind = _Kind.of(_documents.read_blocks(spec.origin), frozen)
  _enter(_main_of_module(spec), [spec.origin, *args], os.getcwd())
  _prepare(kind, old_jax)
  with (
    _shown_from_the_program(),
    _telling_of_old_names(log),
    _advising(kind),
  ):
    _execute(lambda: spec.loader.get_code(spec.name))  # type: ignore
  return 0


def _spec_of_module(name: str) -> importlib.machinery.ModuleSpec:
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
  return spec


def _check_is_python(block: _documents.Block) -> None:
  """Raises if a script is no Python at all.

  Raises:
    DocumentError: it has bytes that no program has. Errors of syntax are left
      to Python, which shows them best.
  """
  if '\0' in block.source:
    raise _documents.DocumentError(f'{block.filename}: it is no program.')


# --- Dicts or FrozenDicts ----------------------------------------------------


# The variable of the environment that says whether checkpoints are Orbax's.
_ORBAX = 'FLAX_USE_ORBAX_CHECKPOINTING'


class _Kind(NamedTuple):
  """What `init` and `apply` return, and why.

  Attributes:
    frozen: whether it is FrozenDicts.
    hint: what to tell the user if that may be what a program fails of.
    by_orbax: whether checkpoints are Orbax's. A program with `flax.optim` is of
      a time when they were files of msgpack.
  """

  frozen: bool
  hint: str
  by_orbax: bool

  @classmethod
  def of(cls, blocks: Sequence[_documents.Block], frozen: bool | None) -> _Kind:
    """Returns what a program seems to expect, if it is not given."""
    trees = parsed(blocks)
    by_orbax = config.flax_use_orbax_checkpointing
    if _ORBAX not in os.environ:  # Else the user has said it.
      by_orbax = by_orbax and not _expects.has_optim(trees)
    if frozen is not None:
      return cls(frozen, '', by_orbax)
    evidence = _expects.expected(trees)
    chosen = bool(
      config.flax_return_frozendict if evidence is None else evidence.frozen
    )
    kind, other = 'FrozenDicts', '--dicts for plain dicts'
    if not chosen:
      kind, other = 'plain dicts', '--frozen for FrozenDicts'
    why = 'nothing in the program tells which it expects'
    if evidence is not None:
      why = f'line {evidence.line} has {evidence.text}'
    return cls(
      chosen,
      f'haiku-state run: init and apply return {kind}: {why}. (Say {other}.)',
      by_orbax,
    )

  def hint_on(self, message: str) -> str:
    """Returns the hint, '' if an error has nothing to do with it."""
    return self.hint if _ABOUT_DICTS.search(message) else ''


_ABOUT_DICTS = re.compile('dict|tuple|unpack|__delitem__', re.I)


def parsed(blocks: Sequence[_documents.Block]) -> list[ast.AST]:
  """Returns the trees of those blocks that are Python."""
  trees = []
  for block in blocks:
    for source, line in _documents.statements(block):
      with contextlib.suppress(SyntaxError, ValueError):
        trees.append(ast.increment_lineno(ast.parse(source), line - 1))
  return trees


# --- The surroundings of a program -------------------------------------------


def _new_main() -> types.ModuleType:
  """Returns what is `__main__` in a prompt: it has no file."""
  main = types.ModuleType('__main__')
  main.__dict__.update(__builtins__=builtins, __annotations__={})
  return main


def _main_of_script(path: str) -> types.ModuleType:
  """Returns what `__main__` is in `python FILE`."""
  main = _new_main()
  loader = importlib.machinery.SourceFileLoader('__main__', path)
  main.__dict__.update(__file__=path, __cached__=None, __loader__=loader)
  return main


def _main_of_module(spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
  """Returns what `__main__` is in `python -m NAME`."""
  main = _new_main()
  main.__dict__.update(
    __file__=spec.origin,
    __cached__=spec.cached,
    __loader__=spec.loader,
    __package__=spec.parent,
    __spec__=spec,
  )
  return main


def _enter(main: types.ModuleType, argv: list[str], folder: str) -> None:
  """Makes what a program finds around it."""
  sys.modules['__main__'] = main
  sys.argv = argv
  _put_first(folder)


def _put_first(folder: str) -> None:
  """Puts a folder where Python has put that of its own program."""
  if not _versions.IS_PATH_SAFE:
    sys.path[0] = folder


def _prepare(kind: _Kind, old_jax: bool) -> None:
  """Installs the hook, here and in all processes that the program starts."""
  config.update('flax_return_frozendict', kind.frozen)
  config.update('flax_use_orbax_checkpointing', kind.by_orbax)
  os.environ['FLAX_RETURN_FROZENDICT'] = str(kind.frozen)
  os.environ[_ORBAX] = str(kind.by_orbax)
  os.environ['HAIKU_STATE_OLD_JAX'] = str(old_jax)
  (startup,) = _startup.__path__
  before = os.environ.get('PYTHONPATH')
  folders = before.split(os.pathsep) if before else []
  if startup not in folders:
    os.environ['PYTHONPATH'] = os.pathsep.join([startup, *folders])
  _hook.install(old_jax)


@contextlib.contextmanager
def _surroundings() -> Iterator[None]:
  """Gives a program surroundings of its own, which end with it."""
  main, argv, path = sys.modules['__main__'], sys.argv, list(sys.path)
  excepthook = sys.excepthook
  frozen = config.flax_return_frozendict
  by_orbax = config.flax_use_orbax_checkpointing
  environment = {x: os.environ.get(x) for x in _VARIABLES}
  remove_hook = _hook.as_it_is()

  def restore():
    remove_hook()
    for name, value in environment.items():
      if value is None:
        os.environ.pop(name, None)
      else:
        os.environ[name] = value
    config.update('flax_return_frozendict', frozen)
    config.update('flax_use_orbax_checkpointing', by_orbax)
    sys.excepthook = excepthook
    sys.modules['__main__'], sys.argv, sys.path[:] = main, argv, path

  with restored(restore):
    if not _versions.IS_PATH_SAFE:
      sys.path.insert(0, '')
    yield


_VARIABLES = (
  'PYTHONPATH',
  'FLAX_RETURN_FROZENDICT',
  _ORBAX,
  'HAIKU_STATE_OLD_JAX',
)


def _execute(code: Callable[[], types.CodeType]) -> None:
  """Runs the code that a function returns; where tracebacks begin."""
  exec(code(), sys.modules['__main__'].__dict__)


@contextlib.contextmanager
def _shown_from_the_program() -> Iterator[None]:
  """Makes Python show an error as if there were no frames around a program."""
  try:
    yield
  except BaseException as e:
    error, before = e, sys.excepthook
    shown = _from_the_program(e.__traceback__)

    def show(kind, value, tb):
      if value is error:
        tb = shown
        value = value.with_traceback(tb)
      before(kind, value, tb)

    sys.excepthook = show
    raise


def _from_the_program(
  tb: types.TracebackType | None,
) -> types.TracebackType | None:
  """Returns the part of a traceback that begins in the program."""
  whole = tb
  while tb is not None and tb.tb_frame.f_code is not _execute.__code__:
    tb = tb.tb_next
  if tb is None:
    return whole
  while tb is not None and tb.tb_frame.f_code.co_filename in _AROUND:
    tb = tb.tb_next
  return tb


# `compile` and the loaders of modules have frames, too.
_AROUND = (
  __file__,
  '<frozen importlib._bootstrap>',
  '<frozen importlib._bootstrap_external>',
)


# Python makes this error itself, from an AttributeError that it drops.
_CANNOT_IMPORT = re.compile(r"cannot import name '(\w+)' from '([\w.]+)'")


@contextlib.contextmanager
def _advising(kind: _Kind) -> Iterator[None]:
  """Adds to errors of the program what to write instead."""
  try:
    yield
  except ImportError as e:
    if match := _CANNOT_IMPORT.match(str(e)):
      if note := _on_missing(f'{match.group(2)}.{match.group(1)}'):
        _versions.add_note(e, note)
    raise
  except Exception as e:
    for kind_of_error, words, note in _NOTES:
      if isinstance(e, kind_of_error) and words.search(str(e)):
        _versions.add_note(e, note)
    if hint := kind.hint_on(str(e)):
      _versions.add_note(e, hint)
    raise


def _on_missing(name: str) -> str:
  """Returns what to write instead of a name that cannot be imported."""
  if _names.is_package(name, _names.OURS):
    return _names.missing_message(_names.theirs(name))
  row = _old_names.row_around(name)
  return '' if row is None else _old_names.missing_message(row)


_ABOUT_METACLASSES = (
  "Modules have a metaclass of their own, Haiku's. Derive yours from it: write"
  ' `class Registry(type(nn.Module)):` in place of `class Registry(type):`.'
)

_ABOUT_CELLS = (
  'Until Flax 0.7 a recurrent cell took the size of its state from its carry.'
  ' Write `nn.LSTMCell(features)`, and in place of'
  ' `nn.LSTMCell.initialize_carry(rng, batch_dims, features)`'
  ' `nn.LSTMCell(features).initialize_carry(rng, (*batch_dims, input_size))`.'
)
# What errors are about that do not say what to write, and what is.
_NOTES = (
  (TypeError, re.compile('^metaclass conflict'), _ABOUT_METACLASSES),
  (TypeError, re.compile(r"Cell.*missing.*'features'"), _ABOUT_CELLS),
  (AttributeError, re.compile("no attribute 'carry_init'"), _ABOUT_CELLS),
)

# --- Names that JAX has removed ----------------------------------------------


@contextlib.contextmanager
def _telling_of_old_names(log: TextIO | None) -> Iterator[None]:
  """Tells at the end which names a program has used that JAX has not."""
  try:
    yield
  finally:
    for line in _on_old_names(_old_jax.used()):
      print(line, file=sys.stderr if log is None else log)


def _on_old_names(uses: Sequence[_old_jax.Use]) -> Iterator[str]:
  """Returns the lines that tell of old names."""
  if not uses:
    return
  yield 'haiku-state run: JAX has removed names that were put back for this run:'
  places: dict[_old_names.Old, dict[str, None]] = {}
  for use in sorted(uses, key=lambda use: (use.row.name, *use[1:])):
    places.setdefault(use.row, {})[_shown(use)] = None
  for row, found in ((row, list(found)) for row, found in places.items()):
    more = f' and {len(found) - 3} more' if len(found) > 3 else ''
    yield f'  {row.name} ({", ".join(found[:3])}{more}). {row.advice}'
  if any(row.is_rewritten for row in places):
    yield '`haiku-state port --modernize` rewrites most of them.'


def _shown(use: _old_jax.Use) -> str:
  """Returns a place for people: a file is told from here, if it is below."""
  if example := _EXAMPLE.match(use.filename):
    return example.group(1)
  try:
    path = pathlib.Path(use.filename).relative_to(os.getcwd())
  except (ValueError, OSError):
    path = use.filename
  return f'{path}:{use.line}'


# The name that doctest makes of that of a block.
_EXAMPLE = re.compile(r'<doctest (.*)\[\d+\]>$')


# --- Documents ---------------------------------------------------------------


def _run_blocks(
  blocks: Sequence[_documents.Block],
  kind: _Kind,
  path: pathlib.Path,
  log: TextIO,
) -> int:
  failed = 0
  for block in blocks:
    if block.filename != str(path):  # A cell: there is no file of its name.
      _remember(block)
    run = _run_doctest if block.doctest else _run_python
    message = run(block, kind)
    for line in block.left_out:
      print(f'haiku-state run: {block.where}: left out {line}', file=log)
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


def _remember(block: _documents.Block) -> None:
  """Lets tracebacks show the lines of a block that is in no file."""
  lines = block.source.splitlines(keepends=True)
  entry = len(block.source), None, lines, block.filename
  linecache.cache[block.filename] = entry


def _run_python(block: _documents.Block, kind: _Kind) -> str:
  """Runs a block; returns how it failed, '' if it did not."""
  try:
    tree = ast.parse(block.source, block.filename)
  except SyntaxError as e:
    e.lineno = (e.lineno or 1) + block.line - 1
    return ''.join(traceback.format_exception_only(e))
  ast.increment_lineno(tree, block.line - 1)
  try:
    with _advising(kind):
      _execute(lambda: _compiled(tree, block.filename))
  except Exception as e:
    tb = _from_the_program(e.__traceback__)
    return ''.join(traceback.format_exception(type(e), e, tb))
  return ''


def _run_doctest(block: _documents.Block, kind: _Kind) -> str:
  """Runs the examples of a block; returns how they failed."""
  globs = sys.modules['__main__'].__dict__
  test = doctest.DocTest(
    _documents.examples(block),
    globs,
    block.where,
    block.filename,
    block.line - 1,
    block.source,
  )
  test.globs = globs  # It has made a copy.
  text: list[str] = []
  runner = doctest.DocTestRunner(verbose=False, optionflags=_DOCTEST_FLAGS)
  runner.run(test, out=text.append, clear_globs=False)
  message = ''.join(text)
  hint = kind.hint_on(message)
  return f'{message}\n{hint}' if hint else message


def _numbered(block: _documents.Block) -> str:
  lines = block.source.rstrip('\n').split('\n')
  return '\n'.join(f'{n:5} | {x}' for n, x in enumerate(lines, block.line))
