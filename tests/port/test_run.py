"""`haiku-state run`: scripts, modules and documents, as they are."""

import io
import json
import pathlib
import subprocess
import sys

import pytest

from haiku_state.configurations import config
from haiku_state.port import _documents, _expects, _run, main, run_path

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
  assert (
    "FrozenDicts: line 67 has state, params = variables.pop('params')" in log
  )


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

assert __name__ == '__main__' and sys.modules['__main__'].nn is nn
variables = nn.Dense(2).init(jax.random.PRNGKey(0), jax.numpy.ones((1, 3)))
with open(sys.argv[1], 'w') as f:
  print(flax.__name__, type(variables).__name__, neighbour.x, sys.argv[2:], file=f)
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
  assert out.read_text() == f"haiku_state {kind} 7 ['--lr', '3']\n"
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
  assert 'haiku_state.struct.dataclass' in e.value.__notes__[0]


@pytest.mark.parametrize('as_module', [False, True])
def test_command(tmp_path, as_module):
  write(
    tmp_path, 'prog.py', 'import flax, sys\nprint(flax.__name__, sys.argv[1:])'
  )
  target = ['-m', 'prog'] if as_module else ['prog.py']
  done = subprocess.run(
    [sys.executable, '-m', 'haiku_state', 'run', '--dicts', *target, '-x', '1'],
    cwd=tmp_path,
    env={'PYTHONPATH': str(DOCUMENT.parents[2]), 'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
  )
  assert done.stdout == "haiku_state ['-x', '1']\n", done.stderr
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


@pytest.mark.parametrize(
  'line, kind',
  [
    ('x = 1', 'FrozenDicts: nothing'),
    ('jax.random.key', 'plain dicts: line 2'),
  ],
)
def test_choice_is_told(tmp_path, line, kind):
  path = write(tmp_path, 's.py', f'import jax\n{line}\n')
  assert kind in run(path)[1]


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
