"""What the documents show runs, and does what they say.

The blocks of Python in a document run in order, in one namespace; what `>>>`
examples print is compared. A block whose first line names a file, as in
`# train.py` or `<!-- guide.md -->`, is that file. A block of `console` runs what
stands after `$ ` beside those files, and compares what is printed.
"""

import ast
import doctest
import importlib
import os
import pathlib
import pkgutil
import re
import shlex
import socket
import subprocess
import sys

import jax
import pytest
from left_out import all_but

import haiku_state
from haiku_state import port

REPOSITORY = pathlib.Path(__file__).parents[1]
DOCUMENTS = [
  REPOSITORY / 'README.md',
  *sorted((REPOSITORY / 'docs').rglob('*.md')),
]

# What documents may import themselves, of what extras bring.
EXTRAS = {'orbax', 'orbax.checkpoint', 'matplotlib', 'tqdm', 'libcst'}
# Documents and modules whose examples need more than the oldest jax.
NEED_JAX = {
  'docs/exporting.md': (0, 5),
  'docs/many_devices.md': (0, 8),
  'haiku_state.export': (0, 5),
}
# Documents that choose their devices, and so run in a process of their own.
ALONE = {'docs/many_devices.md'}
# Documents that stand for the others in `pytest` alone.
SHORT = {'README.md', 'docs/design.md', 'docs/variables.md'}
# What JAX imports when a program is saved, and says in words only.
JAX_EXTRA = 'flatbuffers'

_BLOCK = re.compile(r'^```python\n(.*?)^```$', re.M | re.S)
_FILE = re.compile(
  r'^(```+)(?:python|markdown)\n((?:# |<!-- )([\w.]+)(?: -->)?\n.*?)^\1$',
  re.M | re.S,
)
_CONSOLE = re.compile(r'^```console\n(.*?)^```$', re.M | re.S)
_COMMAND = re.compile(r'^\$ (.*)\n((?:(?!\$ ).*\n)*)', re.M)
_NUMBER = re.compile(r'\d+\.\d+')
_FLAGS = (
  doctest.ELLIPSIS
  | doctest.NORMALIZE_WHITESPACE
  | doctest.IGNORE_EXCEPTION_DETAIL
)
_LINK = re.compile(r'\]\(([^)#:]+)(#[^)]*)?\)')


def blocks(path: pathlib.Path) -> list[tuple[int, str]]:
  """Returns the blocks of Python in a document, with their lines."""
  text = _FILE.sub(lambda m: '\n' * m[0].count('\n'), path.read_text())
  return [
    (text[: match.start()].count('\n') + 1, match.group(1))
    for match in _BLOCK.finditer(text)
  ]


@pytest.mark.parametrize(
  'path',
  [
    pytest.param(path, id=name, marks=() if name in SHORT else pytest.mark.long)
    for path in DOCUMENTS
    for name in [str(path.relative_to(REPOSITORY))]
  ],
)
def test_document_runs(path, tmp_path, monkeypatch):
  skip_if_jax_is_too_old(str(path.relative_to(REPOSITORY)))
  monkeypatch.chdir(tmp_path)
  if str(path.relative_to(REPOSITORY)) in ALONE:
    run_alone(path)
    return
  namespace = {'__name__': '__main__'}
  for line, block in blocks(path):
    # The lines of errors are those of the document.
    if block.startswith('>>> '):
      run_examples(block, namespace, f'{path.name}, line {line}')
      continue
    code = compile('\n' * line + block, str(path), 'exec')
    try:
      exec(code, namespace)
    except ImportError as e:
      # Documents may use extras; the error says which.
      text = str(e)
      if "pip install '.[" in text or JAX_EXTRA in text or e.name in EXTRAS:
        pytest.skip(text)
      raise


def run_examples(block, namespace, name):
  test = doctest.DocTestParser().get_doctest(block, namespace, name, None, 0)
  # The namespace is that of the document; the runner would empty a copy.
  test.globs = namespace
  said: list[str] = []
  runner = doctest.DocTestRunner(optionflags=_FLAGS)
  assert not runner.run(test, out=said.append, clear_globs=False).failed, (
    ''.join(said)
  )


def run_alone(path):
  """Runs a document in a process of its own, with its own devices."""
  program = ''
  for line, block in blocks(path):
    program += '\n' * (line - program.count('\n')) + block
  process = start_alone(program)
  _, errors = process.communicate(timeout=400)
  assert process.returncode == 0, errors[-3000:]


def start_alone(program, **environ):
  environ = {
    **os.environ,
    'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
    'PYTHONPATH': str(REPOSITORY),
    **environ,
  }
  return subprocess.Popen(
    [sys.executable, '-c', program],
    env=environ,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


@pytest.mark.long
def test_two_processes_of_the_document(tmp_path):
  name = 'docs/many_devices.md'
  skip_if_jax_is_too_old(name)
  pytest.importorskip('orbax.checkpoint')
  text = (REPOSITORY / name).read_text()
  (program,) = re.findall(
    r'^```python two-processes\n(.*?)^```$', text, re.M | re.S
  )
  with socket.create_server(('localhost', 0)) as server:
    address = f'localhost:{server.getsockname()[1]}'
  processes = [
    start_alone(
      program,
      ADDRESS=address,
      PROCESS=str(n),
      FOLDER=str(tmp_path),
      XLA_FLAGS='--xla_force_host_platform_device_count=2',
    )
    for n in range(2)
  ]
  try:
    said = [process.communicate(timeout=200) for process in processes]
  finally:
    for process in processes:
      process.kill()
  assert [p.returncode for p in processes] == [0, 0], said[0][1][-3000:]
  assert ['mean' in out for out, _ in said] == [True, False]
  assert [path.name for path in tmp_path.iterdir()] == ['checkpoint_1']


def skip_if_jax_is_too_old(name):
  needed = NEED_JAX.get(name, ())
  if jax.__version_info__ < needed:
    pytest.skip('needs jax ' + '.'.join(map(str, needed)))


WITH_COMMANDS = [p for p in DOCUMENTS if _CONSOLE.search(p.read_text())]


@pytest.mark.parametrize(
  'path', WITH_COMMANDS, ids=[p.stem for p in WITH_COMMANDS]
)
def test_commands_print_what_is_shown(path, tmp_path, monkeypatch, capsys):
  pytest.importorskip('libcst')
  monkeypatch.chdir(tmp_path)
  text = path.read_text()
  for match in _FILE.finditer(text):
    (tmp_path / match[3]).write_text(match[2])
  for block in _CONSOLE.findall(text):
    for command, shown in _COMMAND.findall(block):
      assert command.startswith('haiku-state '), 'other commands are not run'
      port.main(shlex.split(command)[1:])
      printed = capsys.readouterr()
      assert_same_words(printed.out + printed.err, shown)


def assert_same_words(printed, shown):
  """Compares lines, and numbers as far as another version rounds them."""
  assert _NUMBER.sub('0', printed).split() == _NUMBER.sub('0', shown).split()
  numbers = [[float(n) for n in _NUMBER.findall(t)] for t in (printed, shown)]
  if jax.__version_info__ < (0, 5):
    return  # Other keys give other numbers.
  assert numbers[0] == pytest.approx(numbers[1], rel=0.05, abs=0.01)


def test_readme_has_python_and_both_commands():
  assert len(blocks(REPOSITORY / 'README.md')) >= 3
  text = (REPOSITORY / 'README.md').read_text()
  for command in (
    "pip install '.[examples]' && "
    'python examples/managing_parameters_and_state.py',
    "pip install -e '.[test]' && pytest -n 2",
  ):
    assert f'\n{command}\n' in text


@pytest.mark.parametrize(
  'path', DOCUMENTS, ids=[str(p.relative_to(REPOSITORY)) for p in DOCUMENTS]
)
def test_links_lead_somewhere(path):
  for target, _ in _LINK.findall(path.read_text()):
    assert (path.parent / target).exists(), target


# --- Examples in docstrings --------------------------------------------------

MODULES = [
  'haiku_state',
  *(
    info.name
    for info in pkgutil.walk_packages(haiku_state.__path__, 'haiku_state.')
    if not info.name.endswith('__main__')
  ),
]


# Whose examples call layers that other tests compare, and compile them.
LAYERS = re.compile(
  r'haiku_state\.(linen|core\.nn)\.(experimental|recurrent|attention|fp8_ops'
  r'|normalization|linear|activation)\b|haiku_state\.interop\.recurrent'
)


@pytest.mark.parametrize(
  'name',
  all_but(
    [name for name in MODULES if not LAYERS.match(name)],
    MODULES,
  ),
)
def test_docstring_examples(name, tmp_path, monkeypatch):
  skip_if_jax_is_too_old(name)
  monkeypatch.chdir(tmp_path)
  if name == 'haiku_state.export':
    pytest.importorskip(JAX_EXTRA)
  if name == 'haiku_state.training.checkpoints':
    pytest.importorskip('orbax.checkpoint')
  module = importlib.import_module(name)
  failed, _ = doctest.testmod(module, optionflags=_FLAGS, extraglobs={})
  assert not failed


def test_doctests_are_found():
  finder = doctest.DocTestFinder()
  module = importlib.import_module('haiku_state.linen.module')
  assert any(test.examples for test in finder.find(module))


# What no docstring has; files without it need not be parsed.
_OTHER_VOICE = re.compile(r'``|["\'\\]\s*It ')


def test_docstrings_speak_with_one_voice():
  wrong = [
    f'{path.relative_to(REPOSITORY)}:{line}'
    for folder in ('haiku_state', 'tests', 'examples', 'benchmarks')
    for path in (REPOSITORY / folder).rglob('*.py')
    for line in lines_of_another_voice(path.read_text())
  ]
  assert not wrong, 'begin with a verb, or a noun for a class; one backtick'


def lines_of_another_voice(text: str) -> list[int]:
  if not _OTHER_VOICE.search(text):
    return []
  return [
    node.lineno
    for node in ast.walk(ast.parse(text))
    if isinstance(node, (ast.ClassDef, ast.FunctionDef))
    for doc in [ast.get_docstring(node) or '']
    if doc.startswith('It ') or '``' in doc
  ]


@pytest.mark.parametrize('doc', ['It is.', '\n It is.', 'Is.\n\n``it``\n'])
@pytest.mark.parametrize('quotes', ['"""', "'''", 'r"""'])
def test_another_voice_is_heard(doc, quotes):
  docstring = f'{quotes}{doc}{quotes[-3:]}'
  assert lines_of_another_voice(f'class A:\n  def f(self):\n    {docstring}\n')
