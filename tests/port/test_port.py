"""`haiku-state port`: import lines change, every other byte stays."""

import ast
import json
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haiku_state.port import _documents, _port, main

pytest.importorskip('libcst')
from haiku_state.port import _rewrite  # noqa: E402

DICTS = _rewrite.dicts_lines()

REWRITES = {
  'import flax\n': 'import haiku_state as flax\n',
  'import flax as fx\n': 'import haiku_state as fx\n',
  'import flax.linen as nn\n': 'import haiku_state.linen as nn\n',
  'import flax.linen\nflax.linen.Dense\n': (
    'import haiku_state.linen, haiku_state as flax\nflax.linen.Dense\n'
  ),
  'import flax, jax\n': 'import haiku_state as flax, jax\n',
  'import flax.linen, flax.optim, flax\n': (
    'import haiku_state.linen, haiku_state as flax, haiku_state.optim,'
    ' haiku_state as flax\n'
  ),
  'from flax import linen as nn, optim, struct  # c\n': (
    'from haiku_state import linen as nn, optim, struct  # c\n'
  ),
  'from flax.core import (  # why\n  freeze,\r\n  unfreeze,)\n': (
    'from haiku_state.core import (  # why\n  freeze,\r\n  unfreeze,)\n'
  ),
  'from flax.training.train_state import TrainState; x = 1\n': (
    'from haiku_state.training.train_state import TrainState; x = 1\n'
  ),
  'from flax.linen import *\n': 'from haiku_state.linen import *\n',
  'if x:\n\timport  flax . linen  as  nn\n': (
    'if x:\n\timport  haiku_state . linen  as  nn\n'
  ),
  'def f():\n  from flax import linen\n': (
    'def f():\n  from haiku_state import linen\n'
  ),
  'try:\n  import flax\nexcept ImportError: flax = None': (
    'try:\n  import haiku_state as flax\nexcept ImportError: flax = None'
  ),
  'import \\\n  flax.linen as nn\n': 'import \\\n  haiku_state.linen as nn\n',
  '"""import flax"""\ns = "from flax import linen"  # import flax\n': None,
  'from . import flax\nfrom .flax import linen\nimport flaxformer\n': None,
  'from flax import nnx\nimport flax.nnx\n': None,
  'from flax import linen as nn, nnx\n': (
    f'from haiku_state import linen as nn, nnx\n{DICTS}\n'
  ),
  'flax = 1\n': None,
  '': None,
  # Line ends, tabs and a missing end of line.
  'import flax\r\nx = 1\ry = "é"\t\n\f\nz=1': (
    'import haiku_state as flax\r\nx = 1\ry = "é"\t\n\f\nz=1'
  ),
  # Programs that expect dicts.
  "from flax import linen as nn\nimport jax\n\nparams = v.pop('params')\n": (
    f'from haiku_state import linen as nn\nimport jax\n{DICTS}\n\n'
    "params = v.pop('params')\n"
  ),
  "import flax\r\n\r\nparams = v.pop('params')\r\n": (
    f'import haiku_state as flax\r\n{_rewrite.dicts_lines(chr(13) + chr(10))}'
    "\r\n\r\nparams = v.pop('params')\r\n"
  ),
  "try:\n  import flax\nexcept ImportError:\n  raise\np = v.pop('params')\n": (
    'try:\n  import haiku_state as flax\nexcept ImportError:\n  raise\n'
    f"{DICTS}\np = v.pop('params')\n"
  ),
  "# c\n\n@g\ndef f():\n  import flax\n  params = v.pop('params')": (
    f'# c\n\n{DICTS}\n@g\ndef f():\n  import haiku_state as flax\n'
    "  params = v.pop('params')"
  ),
  '"""Doc."""\nimport jax\ndef f():\n  import flax\n  jax.tree.map': (
    f'"""Doc."""\nimport jax\n{DICTS}\ndef f():\n'
    '  import haiku_state as flax\n  jax.tree.map'
  ),
  "import flax\nflax.config.update('flax_return_frozendict', True)\n"
  "params = v.pop('params')\n": (
    'import haiku_state as flax\n'
    "flax.config.update('flax_return_frozendict', True)\n"
    "params = v.pop('params')\n"
  ),
  "params = v.pop('params')\n": None,
}


@pytest.mark.parametrize('before', REWRITES)
def test_rewrite(before):
  want = REWRITES[before]
  want = before if want is None else want
  got = _rewrite.rewrite(before).text
  assert got == want
  assert _rewrite.rewrite(got).text == got
  ast.parse(got)


STATEMENTS = [
  'import flax',
  'import flax.linen as nn, jax',
  'from flax import optim, struct',
  'import flax.core',
  'if True:\n  from flax.core import freeze  # c',
  'x = """\nimport flax\n"""',
  "params = v.pop('params')",
  'def f(x):\n    import flax.linen\n    return flax',
  '# import flax',
  '',
]


@settings(deadline=None, max_examples=25)
@given(
  st.lists(st.sampled_from(STATEMENTS), max_size=6),
  st.sampled_from(['\n', '\r\n']),
)
def test_only_import_lines_change_and_twice_is_once(statements, newline):
  before = '\n'.join(statements).replace('\n', newline)
  after = _rewrite.rewrite(before).text
  assert _rewrite.rewrite(after).text == after
  ast.parse(after)
  rest = [x for x in before.split(newline) if 'import' not in x]
  kept = [
    x
    for x in after.split(newline)
    if 'import' not in x and 'haiku_state.config' not in x
  ]
  assert kept == rest


@pytest.mark.parametrize(
  'program, names',
  [
    (
      'import flax.linen as nn\nnn.Dense(3)\nnn.Dence(3)\n',
      [(2 + 1, 'flax.linen.Dence')],
    ),
    ('from flax import nnx\nnnx.Module\n', [(1, 'flax.nnx'), (2, 'flax.nnx')]),
    ('from flax import linen as nn, nnx\n', [(1, 'flax.nnx')]),
    ('import flax\nprint(flax.__version__)', [(2, 'flax.__version__')]),
    ('import flax\nflax.nnx.Module\nflax.linen.Dense.x.y', [(2, 'flax.nnx')]),
    ('def f():\n  from flax import nnx\n', [(2, 'flax.nnx')]),
    ('from flax.linen import *\n', []),
    ('import flax.linen as nn\ndef f(nn): return nn.Dence\n', []),
    (
      'import importlib\nimportlib.import_module("flax.linen")',
      [(2, 'flax.linen')],
    ),
    ('import haiku_state.linen as nn\nnn.Dence\n', [(2, 'flax.linen.Dence')]),
  ],
)
def test_findings_by_line(program, names):
  result = _rewrite.rewrite(program)
  assert [(f.line, f.name) for f in result.findings] == names
  assert all(f.advice for f in result.findings)
  again = _rewrite.rewrite(result.text)
  assert [(f.line, f.name) for f in again.findings] == names


# --- Files -------------------------------------------------------------------


def cell(*source, kind='code'):
  return {'cell_type': kind, 'metadata': {}, 'source': list(source)}


def notebook_text():
  cells = [
    cell('# import flax\n', kind='markdown'),
    cell('!pip install flax\n', '%matplotlib inline\n', 'import jax'),
    cell(
      'if jax:\n', '  %time x\n', '  import flax\n', 'import flax.linen as nn'
    ),
    cell('import é\n', "params = v.pop('params')\n", "'\\u00e9 \\n'"),
  ]
  cells[1]['source'] = ''.join(cells[1]['source'])
  text = json.dumps(
    {'cells': cells, 'nbformat': 4, 'x': [1.5, None, {}]}, indent=1
  )
  return text + '\n\n'


def test_notebook(tmp_path):
  path = tmp_path / 'a.ipynb'
  path.write_text(notebook_text())
  ported = _port.port(path)
  after = ported.after.decode()
  old, new = json.loads(notebook_text()), json.loads(after)
  assert ''.join(new['cells'][2]['source']) == (
    'if jax:\n  %time x\n  import haiku_state as flax\n'
    f'import haiku_state.linen as nn\n{DICTS}'
  )
  old['cells'][2] = new['cells'][2]
  assert old == new
  changed = [
    (a, b)
    for a, b in zip(notebook_text().split('\n'), after.split('\n'), strict=True)
    if a != b
  ]
  assert len(changed) == 2
  path.write_bytes(ported.after)
  assert _port.port(path).after == ported.after


ENCODED = {
  'bom': b'\xef\xbb\xbfimport flax\n',
  'latin': b'# -*- coding: latin-1 -*-\nimport flax  # \xe9\n',
  'crlf': b'import flax\r\n\r\nx = 1\r\n',
}


@pytest.mark.parametrize('name', ENCODED)
def test_bytes_stay(tmp_path, name):
  path = tmp_path / 'a.py'
  path.write_bytes(ENCODED[name])
  want = ENCODED[name].replace(b'import flax', b'import haiku_state as flax')
  assert _port.port(path).after == want


def folder(tmp_path):
  (tmp_path / 'sub' / '.hidden').mkdir(parents=True)
  files = {
    'a.py': 'import flax\n',
    'sub/b.py': 'import jax\n',
    'sub/c.ipynb': notebook_text(),
    'sub/.hidden/d.py': 'import flax\n',
    'e.txt': 'import flax\n',
  }
  for name, text in files.items():
    (tmp_path / name).write_text(text)
  return {name: (tmp_path / name).read_bytes() for name in files}


def contents(tmp_path, names):
  return {name: (tmp_path / name).read_bytes() for name in names}


def test_diff_and_check_write_nothing(tmp_path, capsys):
  before = folder(tmp_path)
  assert main(['port', str(tmp_path)]) == 0
  out = capsys.readouterr().out
  assert '-import flax\n+import haiku_state as flax\n' in out
  assert '2 of 3 files to change' in out
  assert main(['port', str(tmp_path), '--check']) == 1
  assert 'a.py: would change' in capsys.readouterr().out
  assert contents(tmp_path, before) == before


def test_write_then_nothing_is_left_to_do(tmp_path, capsys):
  before = folder(tmp_path)
  os.chmod(tmp_path / 'a.py', 0o755)
  assert main(['port', str(tmp_path), '--write']) == 0
  after = contents(tmp_path, before)
  assert {n for n in before if before[n] != after[n]} == {'a.py', 'sub/c.ipynb'}
  assert os.stat(tmp_path / 'a.py').st_mode & 0o777 == 0o755
  assert not [f for f in os.listdir(tmp_path) if 'haiku_state' in f]
  assert main(['port', str(tmp_path), '--check']) == 0
  assert main(['port', str(tmp_path), '--write']) == 0
  assert contents(tmp_path, before) == after


def test_missing_names_fail(tmp_path, capsys):
  path = tmp_path / 'a.py'
  path.write_text('import jax\nfrom flax import nnx\n')
  assert main(['port', str(path)]) == 1
  assert (
    f'{path}:2: flax.nnx is missing. nnx is another' in capsys.readouterr().out
  )


def test_a_write_that_fails_leaves_the_file(tmp_path, monkeypatch, capsys):
  path = tmp_path / 'a.py'
  path.write_text('import flax\n')

  def fail(*args):
    raise OSError('no room')

  monkeypatch.setattr(_port.os, 'replace', fail)
  assert main(['port', '--write', str(path)]) == 2
  assert path.read_text() == 'import flax\n'
  assert os.listdir(tmp_path) == ['a.py']
  assert 'no room' in capsys.readouterr().err


BAD = {
  'a.py': ('import flax\nx = (\n', 'a.py:2'),
  'b.py': (b'import flax\n\xff', 'no text'),
  'c.txt': ('import flax', '.py or .ipynb'),
  'd.py': (None, 'no such file'),
  'e.ipynb': ('{"cells": [{', 'no notebook'),
  'f.ipynb': ('[]', '"cells"'),
  'g.py': ('# coding: none\nimport flax', 'none'),
  'h.ipynb': (
    json.dumps({'cells': [cell('x = 1'), cell('import flax\n', 'x = (')]}),
    'cell 2:2',
  ),
}


@pytest.mark.parametrize('name', BAD)
def test_bad_input_names_the_place(tmp_path, name, capsys):
  content, words = BAD[name]
  path = tmp_path / name
  if content is not None:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
  assert main(['port', '--write', str(path)]) == 2
  err = capsys.readouterr().err
  assert name in err and words in err
  if content is not None:
    was = content.encode() if isinstance(content, str) else content
    assert path.read_bytes() == was


def test_bad_file_does_not_stop_the_others(tmp_path):
  (tmp_path / 'a.py').write_text('import flax\nx = (\n')
  (tmp_path / 'b.py').write_text('import flax\n')
  assert main(['port', '--write', str(tmp_path)]) == 2
  assert (tmp_path / 'b.py').read_text() == 'import haiku_state as flax\n'


PROGRAM = """import flax
import flax.linen
from flax import linen as nn, struct
from flax.core import freeze
import jax

variables = nn.Dense(2).init(jax.random.PRNGKey(0), jax.numpy.ones((1, 3)))
params = variables.pop('params')
variables['x'] = {}
print(type(variables).__name__, flax.linen.Dense is nn.Dense, flax.__name__)
"""


def test_ported_program_runs_without_the_hook(tmp_path):
  path = tmp_path / 'a.py'
  path.write_text(PROGRAM)
  assert main(['port', '--write', str(path)]) == 0
  root = os.path.dirname(os.path.dirname(_documents.__file__))
  done = subprocess.run(
    [sys.executable, str(path)],
    env={'PYTHONPATH': os.path.dirname(root), 'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
  )
  assert done.stdout == 'dict True haiku_state\n', done.stderr


# --- Nothing is lost ---------------------------------------------------------


def port_one(tmp_path, content, name='a.py'):
  path = tmp_path / name
  path.write_bytes(content)
  return path, _port.port(path)


@pytest.mark.parametrize(
  'program',
  [
    '\x0cimport flax\n',
    'x = 1\n\x0c\nimport flax\n',
    'def f():\n \x0c import flax',
  ],
)
def test_what_would_not_parse_is_not_written(tmp_path, program, capsys):
  path = tmp_path / 'a.py'
  path.write_text(program)
  status = main(['port', '--write', str(path)])
  out = path.read_text()
  if status == 2:
    assert out == program
    assert 'Nothing is changed' in capsys.readouterr().err
  else:
    assert out == program.replace('import flax', 'import haiku_state as flax')


def test_the_check_of_what_was_rewritten():
  same = 'import flax\nx = 1\n', 'import haiku_state as flax\nx = 1\n'
  _rewrite.check_same(*same, 'a.py')
  for after in ('import haiku_state\nx = 2\n', 'import haiku_statex\n', '('):
    with pytest.raises(_documents.DocumentError, match=r'a\.py'):
      _rewrite.check_same(same[0], after, 'a.py')


def test_one_broken_file_does_not_keep_the_others(tmp_path, capsys):
  broken = {
    'a.ipynb': '{"cells": [1, 2]}',
    'b.ipynb': '[' * 5000,
    'c.ipynb': '{"cells": [{"cell_type": "code", "source": 1}]}',
    'd.py': 'import flax\n' + '-' * 5000 + '1\n',
    'e.py': 'import flax\n(',
  }
  for name, text in broken.items():
    (tmp_path / name).write_text(text)
  (tmp_path / 'z.py').write_text('import flax\n')
  assert main(['port', '--write', str(tmp_path)]) == 2
  assert (tmp_path / 'z.py').read_text() == 'import haiku_state as flax\n'
  out, err = capsys.readouterr()
  for name, text in broken.items():
    assert (tmp_path / name).read_text() == text
    assert name in err
  assert '1 of 6 files changed' in out


def test_a_file_that_changed_meanwhile_is_left(tmp_path):
  path, ported = port_one(tmp_path, b'import flax\n')
  path.write_bytes(b'import flax  # mine\n')
  with pytest.raises(_documents.DocumentError, match='changed since'):
    _port.write(ported)
  assert path.read_bytes() == b'import flax  # mine\n'
  assert os.listdir(tmp_path) == ['a.py']


def test_all_but_the_content_stays(tmp_path):
  path, ported = port_one(tmp_path, b'import flax\n')
  os.chmod(path, 0o640)
  try:
    os.setxattr(path, 'user.note', b'x')
  except (AttributeError, OSError):
    pass
  was = _port._attributes(path)
  _port.write(ported)
  assert path.read_bytes() == ported.after
  assert _port._attributes(path) == was
  assert os.listdir(tmp_path) == ['a.py']


def test_a_second_name_of_a_file_stays(tmp_path):
  path, ported = port_one(tmp_path, b'import flax\n')
  os.link(path, tmp_path / 'b.py')
  _port.write(ported)
  assert (tmp_path / 'b.py').read_bytes() == ported.after
  assert os.path.samefile(path, tmp_path / 'b.py')


def test_a_write_in_place_that_fails_is_taken_back(tmp_path, monkeypatch):
  path, ported = port_one(tmp_path, b'import flax\n')
  os.link(path, tmp_path / 'b.py')
  calls = []

  def fsync(handle):
    calls.append(handle)
    if len(calls) == 2:  # The first is of the temporary file.
      raise OSError('disk full')

  monkeypatch.setattr(_port.os, 'fsync', fsync)
  with pytest.raises(OSError):
    _port.write(ported)
  assert path.read_bytes() == b'import flax\n'
  assert sorted(os.listdir(tmp_path)) == ['a.py', 'b.py']


def test_a_failed_write_is_not_counted(tmp_path, monkeypatch, capsys):
  (tmp_path / 'a.py').write_text('import flax\n')

  def write(ported):
    raise OSError('disk full')

  monkeypatch.setattr(_port, 'write', write)
  assert main(['port', '--write', str(tmp_path)]) == 2
  assert '0 of 1 files changed' in capsys.readouterr().out


def test_remains_of_a_killed_process_are_removed(tmp_path):
  path, ported = port_one(tmp_path, b'import flax\n')
  dead = subprocess.run([sys.executable, '-c', 'import os; print(os.getpid())'],
                        capture_output=True, text=True, check=True).stdout  # fmt: skip
  (tmp_path / f'.haiku_state-port-{dead.strip()}-abc').write_text('')
  mine = tmp_path / f'.haiku_state-port-{os.getpid()}-abc'
  mine.write_text('')
  _port.write(ported)
  assert sorted(os.listdir(tmp_path)) == [mine.name, 'a.py']


def test_links_out_of_the_folder_are_not_followed(tmp_path, capsys):
  inside, outside = tmp_path / 'in', tmp_path / 'out'
  inside.mkdir()
  outside.mkdir()
  (outside / 'a.py').write_text('import flax\n')
  (inside / 'b.py').write_text('import flax\n')
  (inside / 'a.py').symlink_to(outside / 'a.py')
  (inside / 'c.py').symlink_to(inside / 'b.py')
  assert main(['port', '--write', str(inside)]) == 0
  assert (outside / 'a.py').read_text() == 'import flax\n'
  assert (inside / 'c.py').is_symlink()
  out = capsys.readouterr().out
  assert 'a.py: left' in out and '1 of 1 files' in out
  assert main(['port', '--write', '--follow-links', str(inside)]) == 0
  assert (outside / 'a.py').read_text() == 'import haiku_state as flax\n'
  assert (inside / 'a.py').is_symlink()


def test_a_folder_without_programs_is_an_error(tmp_path, capsys):
  (tmp_path / 'a.txt').write_text('import flax')
  assert main(['port', str(tmp_path)]) == 2
  assert 'no program in it' in capsys.readouterr().err


def test_the_kind_of_dicts_is_set_in_programs_not_in_packages(tmp_path, capsys):
  text = "import flax\nparams = v.pop('params')\n"
  files = ['pkg/a.py', 'pkg/sub/b.py', 'pkg/__main__.py', 'train.py']
  for name in ['pkg/__init__.py', 'pkg/sub/__init__.py', *files]:
    (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
    (tmp_path / name).write_text(text if name in files else '')
  assert main(['port', '--write', str(tmp_path)]) == 0
  for name, has in zip(files, (False, False, True, True)):
    lines = (tmp_path / name).read_text().split('\n')
    assert lines[0] == 'import haiku_state as flax'
    assert (lines[1:3] == DICTS.split('\n')) is has
  out = capsys.readouterr().out
  assert out.count('expects plain dicts') == 1
  assert f'{tmp_path / "pkg"}: the package' in out


DOCUMENT = """\
Text with import flax in it.

```python
import flax
from flax import linen as nn  # é
```

    >>> import flax

```bash
import flax
```

- An item:

  ```python
  import flax.linen as nn
  def f():
    from flax.core import freeze
  ```

```python
import flax ... and so on
```
"""
RST = """\
Title
=====

.. note::

  .. code-block:: python
    :linenos:

    import flax

    from flax.core import freeze

>>> import flax
>>> def f():
...   from flax import struct

.. code-block:: bash

  import flax
"""


@pytest.mark.parametrize('newline', ['\n', '\r\n'])
@pytest.mark.parametrize('name', ['a.md', 'a.rst'])
def test_documents(tmp_path, name, newline):
  text = {'a.md': DOCUMENT, 'a.rst': RST}[name].replace('\n', newline)
  path, ported = port_one(tmp_path, text.encode(), name)
  want = (
    text.replace('from flax', 'from haiku_state')
    .replace('import flax.linen', 'import haiku_state.linen')
    .replace(f'import flax{newline}', f'import haiku_state as flax{newline}')
  )
  for language in ('```bash', 'bash' + newline):
    at = want.rfind(language)
    if at >= 0:
      want = want[:at] + want[at:].replace(
        'import haiku_state as flax', 'import flax', 1
      )
  if name == 'a.md':
    want = want.replace(
      '    >>> import haiku_state as flax', '    >>> import flax'
    )
  assert ported.after.decode() == want
  assert not any(finding.missing for _, finding in ported.findings)


def test_many_assignments_take_no_more_than_so_many():
  """Twice as many lines, twice as many calls of libcst's functions."""
  import cProfile
  import pstats

  def calls(count):
    text = 'import flax\n' + 'x = flax.core.freeze(x)\n' * count
    profile = cProfile.Profile()
    profile.runcall(_rewrite.rewrite, text)
    return pstats.Stats(profile).total_calls

  few, many = calls(50), calls(200)
  assert many < 4.5 * few
