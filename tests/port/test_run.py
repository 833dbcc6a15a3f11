"""`haiku-state run`: scripts, modules and documents, as they are."""

import ast
import io
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest
from jax_names import told
from left_out import all_but

import haiku_state
from haiku_state.configurations import config
from haiku_state.port import (
  _documents,
  _expects,
  _names,
  _run,
  main,
  run_path,
)

DOCUMENT = (
  pathlib.Path(__file__).parents[1] / 'data/managing_parameters_and_state.rst'
)


def write(folder, name, text):
  path = folder / name
  path.write_text(text)
  return path


def run(path, *args, frozen=None):
  log = io.StringIO()
  status = run_path(path, args, frozen, log)
  return status, log.getvalue()


# --- What is run -------------------------------------------------------------


def test_document_of_the_issue_runs_unchanged():
  status, log = run(DOCUMENT)
  assert status == 0
  assert '8 of 8 blocks ran' in log
  assert log.count('\n') == 1, 'nothing went wrong, so nothing is told'


SCRIPT = '''"""A program."""
import sys
import dataclasses
import flax
from flax import linen as nn
import jax
import neighbour

@dataclasses.dataclass
class Config:
  name: 'str' = 'a'
  size: int = 0

assert Config.__annotations__ == {'name': 'str', 'size': int}
assert __name__ == '__main__' and sys.modules['__main__'].nn is nn
variables = nn.Dense(2).init(jax.random.PRNGKey(0), jax.numpy.ones((1, 3)))
with open(sys.argv[1], 'w') as f:
  print(nn.__name__, type(variables).__name__, neighbour.x, sys.argv[2:], file=f)
'''


@pytest.mark.parametrize(
  'frozen, kind', [(True, 'FrozenDict'), (False, 'dict')]
)
def test_script(tmp_path, frozen, kind):
  write(tmp_path, 'neighbour.py', 'x = 7')
  script = write(tmp_path, 'script.py', SCRIPT)
  out = tmp_path / 'out'
  before = config.flax_return_frozendict, list(sys.path), sys.argv
  status, log = run(script, str(out), '--lr', '3', frozen=frozen)
  sys.modules.pop('neighbour')
  assert (status, log) == (0, '')
  assert out.read_text() == f"haiku_state.linen {kind} 7 ['--lr', '3']\n"
  assert before == (config.flax_return_frozendict, list(sys.path), sys.argv)


def test_script_fails_as_under_python(tmp_path):
  script = write(tmp_path, 'script.py', 'import flax\n\n1 / 0\n')
  with pytest.raises(ZeroDivisionError) as e:
    run(script)
  assert str(e.traceback[-1].path) == str(script)
  assert e.traceback[-1].lineno == 2  # Counted from 0.
  script = write(tmp_path, 'exits.py', 'import sys\nsys.exit(3)\n')
  with pytest.raises(SystemExit) as e:
    run(script)
  assert e.value.code == 3


def test_name_that_python_itself_misses_has_advice(tmp_path):
  script = write(tmp_path, 's.py', 'from flax.struct import datclass\n')
  with pytest.raises(ImportError) as e:
    run(script)
  assert 'haiku_state.struct.dataclass' in told(e.value)


@pytest.mark.parametrize('as_module', [False, True])
def test_command(tmp_path, as_module):
  write(
    tmp_path,
    'prog.py',
    'import flax, sys\nprint(flax.linen.__name__, sys.argv[1:])',
  )
  target = ['-m', 'prog'] if as_module else ['prog.py']
  done = subprocess.run(
    [sys.executable, '-m', 'haiku_state', 'run', '--dicts', *target, '-x', '1'],
    cwd=tmp_path,
    env={'PYTHONPATH': str(DOCUMENT.parents[2]), 'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
  )
  assert done.stdout == "haiku_state.linen ['-x', '1']\n", done.stderr
  assert done.returncode == 0


RST = """
Title
=====

.. testsetup:: group

  import flax.linen as nn
  n = 1

.. testcode::
  :hide:

  n += 1

.. code-block:: bash

  rm -rf nothing

.. code-block:: python

  def f():
    return n

  n = f() + 1

.. note::

  .. doctest::

    >>> n
    3
    >>> class A(nn.Module):
    ...   x: int
    >>> A(2).x
    2

An example in the text:

>>> n = n + 1

.. testoutput::

  >>> not run

.. testcode::

  assert n == 4
"""

MARKDOWN = """
# Title

```python
import flax.linen as nn
n = 1
```

```
not run
```

```bash
not run
```

- in a list

  ```py
  n += 1
  if n:
    n += 1
  ```

~~~python
>>> n
3
~~~

```{code-cell} ipython3
:tags: [x]

assert n == 3
```
"""

NOTEBOOK = json.dumps(
  {
    'nbformat': 4,
    'cells': [
      {'cell_type': 'markdown', 'source': ['# not run']},
      {
        'cell_type': 'code',
        'source': ['!pip install flax\n', 'import flax.linen as nn\n', 'n = 1'],
      },
      {'cell_type': 'code', 'source': '%%bash\necho no'},
      {'cell_type': 'code', 'source': '%%time\nx = (7\n% 4)\nn = n + 1'},
      {'cell_type': 'code', 'source': ['if n:\n', '  %time n\n', 'n += 1']},
      {'cell_type': 'code', 'source': 'assert n == 3'},
    ],
  }
)

DOCUMENTS = {
  'a.rst': (RST, 6),
  'a.md': (MARKDOWN, 4),
  'a.ipynb': (NOTEBOOK, 5),
}


@pytest.mark.parametrize('name', DOCUMENTS)
def test_document(tmp_path, name):
  text, count = DOCUMENTS[name]
  status, log = run(write(tmp_path, name, text))
  assert status == 0, log
  assert f'{count} of {count} blocks ran.' in log


FAILING = {
  'a.md': '# T\n\n```python\nx = 1\n```\n\n```python\ny = 2\n\nx / 0\n```\n\n'
  '```python\nx += 1\n```\n',
  'a.rst': '.. testcode::\n\n  x = 1\n\n.. x\n\n.. testcode::\n\n  \n  x / 0\n\n'
  '.. testcode::\n\n  x += 1\n',
}


@pytest.mark.parametrize('name', FAILING)
def test_failing_block_is_shown_with_its_lines(tmp_path, name):
  path = write(tmp_path, name, FAILING[name])
  status, log = run(path)
  assert status == 1
  assert '\n   10 | x / 0' in log
  assert f'File "{path}", line 10, in <module>' in log
  assert 'ZeroDivisionError' in log and 'port/_run.py' not in log
  assert '2 of 3 blocks ran, 1 failed.' in log


def test_failing_doctest_and_syntax_error_and_cell(tmp_path):
  text = '# T\n\n```python\n>>> 1 + 1\n3\n```\n\n```python\nx = \n```\n'
  status, log = run(write(tmp_path, 'a.md', text))
  assert status == 1
  assert 'Expected:\n    3\nGot:\n    2' in log
  assert 'line 9' in log and 'SyntaxError' in log
  cells = [{'cell_type': 'code', 'source': 'x = 1\nx.none'}]
  path = write(tmp_path, 'a.ipynb', json.dumps({'cells': cells}))
  status, log = run(path)
  assert f'{path}, cell 1 failed' in log and '\n    x.none\n' in log


# --- Which kind of dict ------------------------------------------------------

PROGRAMS = {
  "state, params = v.pop('params')": True,
  'from flax import optim': True,
  'import flax.optim.sgd': True,
  'p = v.unfreeze()': True,
  "v = v.copy({'params': p})": True,
  "params = v.pop('params')": False,
  "v = m.init(k, x)\nv['params']['a'] = 1": False,
  "v = m.init(k, x)\ndel v['cache']": False,
  "v = m.init(k, x)\nv = unfreeze(v)\nv['params']['a'] = 1": None,
  'key = jax.random.key(0)': False,
  'import flax.nnx': False,
  "jax.tree.map(f, x)\nstate, params = v.pop('params')": True,
  "jax.tree.map(f, x)\nfrom flax import optim\nparams = v.pop('params')": False,
  'x = 1': None,
  "a, b = stack.pop('x', 1)": None,
}


@pytest.mark.parametrize('program', PROGRAMS)
def test_expected_kind(program):
  block = _documents.Block(program, 'x.py', 1, 'x.py', False)
  evidence = _expects.expected(_run.parsed([block]))
  assert (evidence and evidence.frozen) == PROGRAMS[program]


# What programs fail of, and what is then told of the kind of dict they got.
FAILING_OF = {
  "v['params'] = 1": 'FrozenDicts: nothing in the program tells',
  'del v["a"]': 'FrozenDicts: nothing in the program tells',
  "v.unfreeze()\na, b, c = v.pop('params')": 'FrozenDicts: line 3 has',
  'jax.tree.map\ndict(v).unfreeze': 'plain dicts: line 3 has',
  'jax.numpy.ones(3) @ jax.numpy.ones(4)': None,
  'import nowhere': None,
}
BEGIN = "import jax, flax\nv = flax.core.freeze({'params': {}})\n"


@pytest.mark.parametrize('frozen', [None, True])
@pytest.mark.parametrize('program', FAILING_OF)
def test_choice_is_told_where_it_may_matter(tmp_path, program, frozen):
  path = write(tmp_path, 'a.py', BEGIN + program)
  with pytest.raises(Exception) as e:
    run(path, frozen=frozen)
  text = told(e.value)
  words = FAILING_OF[program] if frozen is None else None  # The user knows.
  assert words in text if words else 'init and apply' not in text


def test_choice_is_told_of_a_block(tmp_path):
  status, log = run(write(tmp_path, 'a.md', '```python\n1 / 0\n```\n'))
  assert status == 1 and 'init and apply return' not in log
  text = '```python\n>>> import flax\n>>> flax.core.freeze({})\n{}\n```\n'
  status, log = run(write(tmp_path, 'a.md', text))
  assert status == 1 and 'init and apply return FrozenDicts' in log


# --- Bad input ---------------------------------------------------------------

BAD = {
  'none.py': (None, 'No such file'),
  'a.rst': ('Only text.\n', 'no program in it'),
  'a.md': ('Only text.\n', '```python'),
  'a.ipynb': ('{"cells": [', 'no notebook'),
  'b.ipynb': ('{}', 'cells'),
  'a.py': (b'\xff\xfe\x00', 'no program'),
  'b.py': (b'x\x00', 'no program'),
}


@pytest.mark.parametrize('name', BAD)
def test_bad_input_names_the_file(tmp_path, name, capsys):
  content, words = BAD[name]
  path = tmp_path / name
  if content is not None:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
  assert main(['run', str(path)]) == 2
  err = capsys.readouterr().err
  assert str(path) in err and words in err


def test_missing_module(capsys):
  assert main(['run', '-m', 'no.such.module']) == 2
  assert 'no.such.module' in capsys.readouterr().err


# --- As a command ------------------------------------------------------------

ROOT = DOCUMENT.parents[2]
ENVIRONMENT = {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'}


def command(folder, *args, stdin='', path=''):
  """Returns what a command does that has its process for itself."""
  return subprocess.run(
    [sys.executable, '-u', '-m', 'haiku_state', *args],
    cwd=folder,
    env={**ENVIRONMENT, 'PYTHONPATH': f'{ROOT}{path}'},
    input=stdin,
    capture_output=True,
    text=True,
    timeout=100,
  )


def python(folder, *args):
  return subprocess.run(
    [sys.executable, *args], cwd=folder, capture_output=True, text=True
  )


SHOWN = {
  'an error': 'import sys\n\ndef f():\n  1 / 0\n\nf()\n',
  'of syntax': 'import sys\nx = (\n',
  'chained': 'try:\n  1 / 0\nexcept Exception as e:\n  raise KeyError(1) from e\n',
  'interrupt': 'import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\n'
  'time.sleep(9)',
  'exit': 'import sys\nsys.exit("told")',
  'own hook': 'import sys\ndef hook(kind, value, tb):\n  print(kind, tb.tb_lineno)'
  '\nsys.excepthook = hook\n1 / 0\n',
}


@pytest.mark.parametrize('name', all_but(['an error'], SHOWN))
def test_error_is_shown_as_under_python(tmp_path, name):
  write(tmp_path, 'script.py', SHOWN[name])
  ours = command(tmp_path, 'run', 'script.py')
  theirs = python(tmp_path, 'script.py')
  assert ours.stderr == theirs.stderr
  assert (ours.stdout, ours.returncode) == (theirs.stdout, theirs.returncode)


MAIN = """
import sys
print(sorted(globals().items(), key=str), sys.argv)
print(sys.path[0], sys.modules['__main__'].__dict__ is globals())
class A:
  x: int
print(A.__annotations__)
"""


@pytest.mark.parametrize(
  'how', all_but([['script.py']], [['script.py'], ['-m', 'script']])
)
def test_main_is_as_under_python(tmp_path, how):
  write(tmp_path, 'script.py', MAIN)
  ours, theirs = (
    re.sub(r'0x[0-9a-f]+', '', done.stdout)
    for done in (
      command(tmp_path, 'run', *how, '-a'),
      python(tmp_path, *how, '-a'),
    )
  )
  assert ours == theirs and '__file__' in ours


def test_standard_input(tmp_path):
  write(tmp_path, 'neighbour.py', 'x = 7')
  text = (
    'import flax.linen, neighbour, sys\nprint(flax.linen.__name__, sys.argv)'
  )
  done = command(tmp_path, 'run', '-', 'a', stdin=text + '\n1 / 0')
  assert done.stdout == "haiku_state.linen ['-', 'a']\n"
  assert 'File "<stdin>", line 3, in <module>' in done.stderr
  assert done.returncode == 1


PROCESSES = """
import atexit, importlib.metadata, multiprocessing, subprocess, sys, threading
import flax.linen as nn

def kind(_):
  import flax, jax, jax.numpy as jnp
  variables = nn.Dense(1).init(jax.random.key(0), jnp.ones((1, 2)))
  return flax.linen.__name__, flax.__version__, type(variables).__name__

def late(name):
  threading.main_thread().join()
  import flax.struct
  print(name, flax.struct.__name__)

def leave():
  import flax.struct
  print('atexit', flax.struct.__name__)

if __name__ == '__main__':
  for method in ('spawn', 'forkserver'):
    with multiprocessing.get_context(method).Pool(1) as pool:
      print(method, *pool.map(kind, [0]))
  other = 'import haiku, flax.linen; print(flax.linen.__name__, flax.__version__)'
  subprocess.run([sys.executable, '-c', other])
  threading.Thread(target=late, args=['thread']).start()
  atexit.register(leave)
"""


@pytest.mark.long
def test_processes_and_threads_and_exit_have_the_hook(tmp_path):
  write(tmp_path, 'script.py', PROCESSES)
  folder = tmp_path / 'site'
  folder.mkdir()
  # Another file of the name that Python imports at its start is not lost.
  write(folder, 'sitecustomize.py', 'print("customized", flush=True)')
  done = command(tmp_path, 'run', '--dicts', 'script.py', path=f':{folder}')
  lines = done.stdout.splitlines()
  assert lines.count('customized') >= 4, done.stderr
  version = _names.VERSION
  assert [x for x in lines if x != 'customized'] == [
    f"spawn ('haiku_state.linen', '{version}', 'dict')",
    f"forkserver ('haiku_state.linen', '{version}', 'dict')",
    f'haiku_state.linen {version}',
    'thread haiku_state.struct',
    'atexit haiku_state.struct',
  ]
  assert not done.stderr and done.returncode == 0


@pytest.mark.parametrize(
  'first',
  all_but(
    ['haiku'],
    ['haiku', 'haiku_state', 'haiku.experimental', 'haiku_state.port', 'jax']
    + ['jax.numpy', 'jax.config'],
  ),
)
def test_order_of_imports_in_a_process(first):
  program = f"""
import {first}, sys
first = sys.modules[{first.split('.')[0]!r}]
import flax.linen, haiku, haiku_state, importlib.metadata
assert flax.linen is haiku_state.linen
assert issubclass(haiku_state.linen.Module, haiku.Module)
assert haiku.__spec__.name == 'haiku'
assert haiku_state.__spec__.name == 'haiku_state'
assert sys.modules[first.__name__] is first
assert vars(first)['__spec__'].loader.__class__.__name__ != 'Loaded'
assert haiku_state.core.scope.jax is sys.modules['jax']
sys.modules['jax'].tree_map
assert importlib.metadata.version('flax') == flax.__version__
assert not any(type(f).__module__ == 'sitecustomize' for f in sys.meta_path)
"""
  startup = ROOT / 'haiku_state' / 'port' / '_startup'
  subprocess.run(
    [sys.executable, '-c', program],
    env={**ENVIRONMENT, 'PYTHONPATH': f'{startup}:{ROOT}'},
    check=True,
  )


def test_surroundings_come_back(tmp_path):
  before = dict(os.environ), list(sys.meta_path), sys.excepthook
  text = 'import os\nassert "_startup" in os.environ["PYTHONPATH"]\n1 / 0'
  with pytest.raises(ZeroDivisionError):
    run(write(tmp_path, 'a.py', text))
  assert (dict(os.environ), list(sys.meta_path), sys.excepthook) == before


USAGE = [
  (['run'], 2, 'run [--dicts | --frozen] [--no-old-jax] FILE [ARGS ...]'),
  (['run', '-m'], 2, 'name of a program is missing'),
  (['--version'], 0, f'haiku_state {haiku_state.__version__}\n'),
  ([], 2, 'COMMAND'),
]


@pytest.mark.parametrize('args, status, words', USAGE)
def test_usage_and_version(args, status, words, capsys):
  with pytest.raises(SystemExit) as e:
    main(args)
  told = capsys.readouterr()
  assert e.value.code == status and words in told.out + told.err


# --- Magics ------------------------------------------------------------------

# Cells, what of them runs, and how much is left out.
CELLS = {
  '!pip install flax\nx = 1': ('#pip install flax\nx = 1', 1),
  '!pip install \\\n  flax\nx': ('#pip install \\\n# flax\nx', 1),
  'x = !ls': ('x = None', 1),
  'a, b.c = %magic x': ('a, b.c = None', 1),
  'd["a"] = !ls': ('d["a"] = None', 1),
  'if x:\n  %cd a': ('if x:\n  pass', 1),
  '%time f(1)': ('None; f(1)', 0),
  '%timeit -n 3 -r2 f(x)': ('None;            f(x)', 0),
  'if n:\n  %time n\nn': ('if n:\n  None; n\nn', 0),
  'x.y?\nprint??\n?x\ny': ('#.y?\n#rint??\n#x\ny', 3),
  '%matplotlib inline': ('#matplotlib inline', 1),
  '%%bash\necho a': ('#%bash\n#cho a', 1),
  '%%time\n!ls\nx': ('##time\n#ls\nx', 1),
  's = """\n!a\n%b\n"""\n!c': ('s = """\n!a\n%b\n"""\n#c', 1),
  "s = '''!a''' + '\"\"\"'\n!c": ("s = '''!a''' + '\"\"\"'\n#c", 1),
  'f(x\n% 4)\n!c': ('f(x\n% 4)\n#c', 1),
  'x = 5 \\\n  % 4\n!c': ('x = 5 \\\n  % 4\n#c', 1),
  'x = a != b  # (\n!c': ('x = a != b  # (\n#c', 1),
  '!ls (\nx\n!c': ('#ls (\nx\n#c', 2),
  'x = "= !a"\n!c': ('x = "= !a"\n#c', 1),
  'x = (7\n% 4)': ('x = (7\n% 4)', 0),
}


@pytest.mark.parametrize('cell', CELLS)
def test_magics(cell):
  source, left_out = _documents.split_magics(cell)
  assert (source, len(left_out)) == CELLS[cell]
  ast.parse(source)


def test_what_is_left_out_is_told(tmp_path):
  cells = ['files = !ls\nassert files is None', '%time x = 3', '%%html\n<p>']
  cells = [{'cell_type': 'code', 'source': x} for x in [*cells, 'x?\nx += 1']]
  path = write(tmp_path, 'a.ipynb', json.dumps({'cells': cells}))
  status, log = run(path)
  assert status == 0 and '4 of 4 blocks ran.' in log
  cell = f'haiku-state run: {path}, cell'
  assert log.splitlines()[:-1] == [
    f'{cell} 1: left out line 1: files = !ls',
    f'{cell} 3: left out the cell %%html',
    f'{cell} 4: left out line 1: x?',
  ]


CELLS_OF_2021 = [
  'nn.LSTMCell()',
  'nn.LSTMCell.initialize_carry(jax.random.PRNGKey(0), (2,), 4)',
]


@pytest.mark.parametrize('cell', CELLS_OF_2021)
def test_cells_of_2021_say_what_to_write(tmp_path, cell):
  path = write(tmp_path, 'a.py', f'import jax, flax.linen as nn\n{cell}')
  with pytest.raises((TypeError, AttributeError)) as e:
    run(path)
  assert '`nn.LSTMCell(features)`' in told(e.value)
