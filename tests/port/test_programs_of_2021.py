"""Programs as they were written in 2021 run as they are, and rewritten.

They were written for this, in the manner of public training programs of the
time that use `flax.optim`.
"""

import ast
import io
import pathlib
import shutil

import jax
import pytest

from haiku_state import config
from haiku_state.port import _modernize, main, run_path

FOLDER = pathlib.Path(__file__).parent / 'programs_of_2021'
PROGRAMS = sorted(
  path.name for path in FOLDER.iterdir() if path.suffix != '.pyc'
)
OPTIONS = {'images.py': ['half']}

pytestmark = [
  pytest.mark.filterwarnings('ignore::DeprecationWarning'),
  pytest.mark.filterwarnings('ignore:Some donated buffers'),
  pytest.mark.filterwarnings('ignore:jax.process_index has been renamed'),
]


def needs_extras(name):
  if name != 'digits.md':
    pytest.importorskip('msgpack')
  if name in ('images.py', 'fields.py'):
    pytest.importorskip('tensorboardX')


@pytest.mark.parametrize('name', PROGRAMS)
def test_runs_unchanged(name, tmp_path):
  needs_extras(name)
  (tmp_path / 'work').mkdir()
  log = io.StringIO()
  path = FOLDER / name
  args = [str(tmp_path / 'work'), *OPTIONS.get(name, [])]
  assert run_path(path, args, log=log) == 0, log.getvalue()
  if not hasattr(jax, 'tree_map'):
    assert 'jax.tree_map' in log.getvalue()


@pytest.mark.parametrize('name', PROGRAMS)
def test_all_that_it_needs_is_rewritten(name, tmp_path, capsys):
  pytest.importorskip('libcst')
  path = tmp_path / name
  shutil.copy(FOLDER / name, path)
  status = main(['port', '--modernize', '--write', str(path)])
  # What there is to say and not to do.
  left = [x for x in capsys.readouterr().out.splitlines() if 'removed' in x]
  assert all('enable_omnistaging' in x for x in left), left
  assert status == bool(left)
  after = path.read_bytes()
  main(['port', '--modernize', '--write', str(path)])
  assert path.read_bytes() == after
  if path.suffix == '.py':
    found = _modernize.find_old(ast.parse(after))
    assert {x.row.name for x in found} <= {'jax.config.enable_omnistaging'}


def test_runs_rewritten(tmp_path):
  pytest.importorskip('libcst')
  pytest.importorskip('msgpack')
  path = tmp_path / 'own_optimizer.py'
  shutil.copy(FOLDER / path.name, path)
  assert main(['port', '--modernize', '--write', str(path)]) == 0
  assert (
    b'flax.' in path.read_bytes() and b'import flax\n' not in path.read_bytes()
  )
  log = io.StringIO()
  assert run_path(path, [str(tmp_path)], log=log, old_jax=False) == 0
  assert log.getvalue() == ''


CHECKPOINTS = """
from flax import optim
from flax.training import checkpoints

optimizer = optim.Adam(0.1).create({"w": 1.0})
checkpoints.save_checkpoint("saved", optimizer, 1)
assert checkpoints.restore_checkpoint("saved", optimizer).target["w"] == 1
"""


@pytest.mark.parametrize('said', [None, '1', '0'])
def test_its_checkpoints_are_files_of_msgpack(said, tmp_path, monkeypatch):
  pytest.importorskip('msgpack')
  if said is None:
    monkeypatch.delenv('FLAX_USE_ORBAX_CHECKPOINTING', raising=False)
  else:  # As the user wishes.
    monkeypatch.setenv('FLAX_USE_ORBAX_CHECKPOINTING', said)
    config.update('flax_use_orbax_checkpointing', said == '1')
  if said == '1':
    pytest.importorskip('orbax.checkpoint')
  program = tmp_path / 'program.py'
  program.write_text(CHECKPOINTS)
  monkeypatch.chdir(tmp_path)
  before = config.flax_use_orbax_checkpointing
  assert run_path(program, [], log=io.StringIO()) == 0
  assert (tmp_path / 'saved' / 'checkpoint_1').is_dir() == (said == '1')
  assert config.flax_use_orbax_checkpointing == before
