"""Names that JAX has removed: a table, put back for programs of their time."""

import importlib
import io
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax_names import told

from haiku_state.port import _old_jax, _old_names, installed, main, run_path
from haiku_state.port._old_names import OLD_NAMES

X = jnp.array([3.0, 1.0, 2.0])
KEY = jax.random.PRNGKey(0)


def run(program):
  names = {'__name__': '__main__', 'X': X, 'KEY': KEY}
  with installed():
    exec(program, names)
  return names.get('found')


def jax_has(name):
  """Returns whether JAX itself has a name."""
  found = jax
  for part in name.split('.')[1:]:
    if not hasattr(found, part):
      try:
        importlib.import_module(f'{found.__name__}.{part}')
      except (ImportError, AttributeError):
        return False
    found = getattr(found, part)
  return True


def version(text):
  return tuple(map(int, text.split('.')))


# --- The table ---------------------------------------------------------------


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
@pytest.mark.parametrize('row', OLD_NAMES, ids=lambda row: row.name)
def test_table_is_true(row):
  if row.keyword:
    return  # See `test_arguments`.
  if row.gone and jax.__version_info__ >= version(row.gone):
    assert not jax_has(row.name)
  parent, _, last = row.name.rpartition('.')
  program = f'from {parent} import {last} as found'
  if jax_has(row.name):
    return
  if not row.is_restored and row.name not in _old_names.PARTS:
    with pytest.raises(ImportError) as e:
      run(program)
    if parent in ('jax', 'jax.lib', 'jax.lax', 'jax.experimental'):
      assert row.advice in str(e.value)  # Elsewhere Python drops it.
    return
  found = run(program)
  assert found is not None
  if row.same:
    assert found is _old_jax._resolved(row.same)
  if parent == 'jax.config':
    return  # There it is an object.
  # And under its whole name.
  run(
    f'import jax\ntry:\n  import {parent}\nexcept ImportError:\n  pass\n{row.name}'
  )


def test_rows_are_of_one_name_each():
  assert len({row.name for row in OLD_NAMES}) == len(OLD_NAMES)
  assert all(row.write or row.same for row in OLD_NAMES)


# What is put back, and what it must be equal to.
EQUAL = {
  'jax.tree_multimap(lambda a, b: a + b, {"a": 1}, {"a": 2})': {'a': 3},
  'jax.tree_leaves({"b": 1, "a": [2]})': [2, 1],
  'jax.ops.index_update(X, 0, 7.0)': [7, 1, 2],
  'jax.ops.index_update(X, jax.ops.index[1:], 7.0)': [3, 7, 7],
  'jax.ops.index_add(X, jax.ops.index[:, None], 1.0)': [4, 2, 3],
  'jax.ops.index_mul(X, [True, False, True], 2.0)': None,
  'jax.ops.index_mul(X, jnp.array([0]), 2.0)': [6, 1, 2],
  'jax.ops.index_min(X, jax.ops.index[...], 2.0)': [2, 1, 2],
  'jax.ops.index_max(np.arange(3.0), 0, 2.0)': [2, 1, 2],
  'jnp.msort(X)': [1, 2, 3],
  'jnp.in1d(X.reshape(1, 3), jnp.array([1.0]))': [False, True, False],
  'jnp.trapz(X)': 3.5,
  'jnp.product(X)': 6.0,
  'jnp.row_stack([X, X]).shape': (2, 3),
  'jnp.NINF': -np.inf,
  'jax.lax.tie_in(X, 2)': 2,
  'jax.host_ids()': [0],
  'jax.util.safe_map(lambda a, b: a + b, [1, 2], [3, 4])': [4, 6],
  'jax.util.unzip2([(1, 2), (3, 4)])': ((1, 3), (2, 4)),
  'jax.util.split_list([1, 2, 3, 4], [1, 2])': [[1], [2, 3], [4]],
  'isinstance(X, jnp.DeviceArray)': True,
  'isinstance(KEY, jax.random.KeyArray)': True,
  'isinstance(1.0, jax.interpreters.xla.DeviceArray)': False,
  'jax.lib.xla_bridge.get_backend().platform': 'cpu',
  'jax.api.grad(lambda x: x * x)(3.0)': 6.0,
  'jax.config.enable_omnistaging()': None,
  'jax.core.raise_to_shaped(jax.core.get_aval(X)).shape': (3,),
  'jax.nn.normalize(X).sum().round()': 0.0,
}
IMPORTS = """
import jax, jax.numpy as jnp, numpy as np
import jax.config, jax.interpreters.xla
for name in ('util', 'api', 'lib.xla_bridge'):
  __import__(f'jax.{name}')
"""


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
@pytest.mark.parametrize('call', EQUAL)
def test_does_what_it_did(call):
  if EQUAL[call] is None and 'index' in call:
    with pytest.raises(TypeError):  # Of lists as indices, as JAX has it.
      run(f'{IMPORTS}found = {call}')
    return
  found = run(f'{IMPORTS}found = {call}')
  found = found.tolist() if hasattr(found, 'tolist') else found
  want = EQUAL[call]
  if 'index_add' in call:
    assert np.array(found).shape == (3,)
  else:
    assert found == want


def test_shuffle_gives_the_numbers_that_it_gave():
  found = run('import jax\nfound = jax.random.shuffle(KEY, X)')
  same = jax.random.permutation(KEY, X, independent=True)
  np.testing.assert_array_equal(found, same)
  # What jax 0.4.26 gives, with the random bits of its time.
  with jax.threefry_partitionable(False):
    found = run(
      'import jax\nfound = jax.random.shuffle(KEY, jax.numpy.arange(5))'
    )
  assert found.tolist() == [1, 0, 4, 3, 2]


def test_copies_to_devices():
  devices = jax.local_devices()
  program = 'import jax\nfound = jax.device_put_{}(X, jax.local_devices())'
  copies = run(program.format('replicated'))
  assert copies.shape == (len(devices), 3)
  assert [s.device for s in copies.addressable_shards] == devices
  shards = run(
    'import jax\nfound = jax.device_put_sharded('
    '[{"a": X + n} for n in range(len(jax.devices()))], jax.devices())'
  )
  np.testing.assert_array_equal(
    jax.pmap(lambda x: 2 * x)(shards['a'])[-1], 2 * (X + len(devices) - 1)
  )


def test_program_in_hlo():
  found = run('import jax\nfound = jax.xla_computation(lambda x: 2 * x)(X)')
  assert 'HloModule' in found.as_hlo_text()


ARGUMENTS = {
  'jax.numpy.clip(a_min=)': ('jnp.clip(X, a_min=1.5)', [3, 1.5, 2]),
  'jax.numpy.clip(a_max=)': ('np.clip(X, a_min=1.5, a_max=2)', [2, 1.5, 2]),
  'jax.numpy.reshape(newshape=)': (
    'jnp.reshape(X, newshape=(1, 3))',
    [[3, 1, 2]],
  ),
  'jax.numpy.quantile(interpolation=)': (
    'jnp.quantile(X, 0.4, interpolation="lower")',
    1,
  ),
  'jax.numpy.percentile(interpolation=)': (
    'jnp.percentile(X, 40.0, interpolation="lower")',
    1,
  ),
}


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
@pytest.mark.parametrize(
  'row', [r for r in OLD_NAMES if r.keyword], ids=lambda row: row.name
)
def test_arguments(row):
  if jax.__version_info__ < version(row.gone):
    pytest.skip('this jax has it')
  if jax.__version_info__ < (0, 6) and 'reshape' in row.name:
    pytest.skip('this jax has it, and refuses it')
  call, want = ARGUMENTS[row.name]
  program = f'import jax.numpy as jnp\nimport jax.numpy as np\nfound = {call}'
  with pytest.raises((TypeError, ValueError)):
    exec(program, {'X': X})
  assert run(program).tolist() == want
  with installed(), pytest.raises((TypeError, ValueError)):
    exec(program, {'X': X, '__name__': 'optax.x'})
  assert {row.name} <= {use.row.name for use in uses_of(program)}
  assert not isinstance(vars(type(jnp)).get('clip'), property)


def uses_of(program):
  with installed():
    exec(program, {'X': X, '__name__': '__main__'})
    return _old_jax.used()


def test_functions_are_one_object_and_can_be_replaced():
  was = jnp.clip
  assert run('import jax.numpy as jnp\nfound = jnp.clip is jnp.clip')
  names = {'jnp': jnp, '__name__': '__main__'}
  with installed():
    exec('f = jnp.clip\njnp.clip = len\nfound = jnp.clip([1])', names)
  assert jnp.clip is len and names['found'] == 1
  jnp.clip = was


# --- Where it is there -------------------------------------------------------


gone = pytest.mark.skipif(
  hasattr(jax, 'tree_map'), reason='this jax has not removed it yet'
)


@gone
def test_nothing_is_there_before_and_after():
  before = {m: type(m) for m in list(sys.modules.values())}
  names = {m: set(vars(m)) for m in (jax, jax.experimental, jax.lib)}
  run('from jax.experimental import stax\nimport jax.config\nimport jax.api')
  assert not hasattr(jax, 'tree_map')
  assert all(type(m) is before.get(m, type(m)) for m in before)
  assert names == {m: set(vars(m)) for m in names}
  assert not {'jax.config', 'jax.api', 'jax.experimental.stax'} & {*sys.modules}
  for module in ('jax.experimental.stax', 'jax.config'):
    with pytest.raises(ImportError):
      importlib.import_module(module)


@gone
def test_packages_of_today_see_jax_as_it_is():
  with installed():
    for name, has in (('program', True), ('haiku.x', False), ('optax', False)):
      names = {'__name__': name, 'jax': jax}
      exec('found = hasattr(jax, "tree_map")', names)
      assert names['found'] is has


@gone
def test_functions_that_use_jax_can_be_pickled():
  cloudpickle = pytest.importorskip('cloudpickle')
  names = {'__name__': '__main__', 'jax': jax, 'jnp': jnp}
  with installed():
    exec('def f(x):\n  return jax.tree_map(jnp.sum, x)', names)
    data = cloudpickle.dumps(names['f'])
    assert cloudpickle.loads(data)([X])[0] == 6


@gone
def test_it_is_a_choice():
  with installed(old_jax=False):
    assert not hasattr(jax, 'tree_map')
    with installed():
      assert hasattr(jax, 'tree_map')
    assert not hasattr(jax, 'tree_map')
  with installed():
    with installed(old_jax=False):
      assert hasattr(jax, 'tree_map'), 'the one around it asked for it'
    assert hasattr(jax, 'tree_map')


def test_jax_says_what_it_says():
  with installed():
    with pytest.raises(
      AttributeError, match="'jax' has no attribute 'nothing'"
    ):
      exec('jax.nothing', {'jax': jax})
    with pytest.raises(ModuleNotFoundError, match=r'jax\.nothing'):
      importlib.import_module('jax.nothing')


# --- What is told ------------------------------------------------------------

PROGRAM = """\
from jax.config import config
import jax
import flax
print(jax.tree_leaves(
  jax.tree_map(lambda x: x, {'a': 1})))
for _ in range(3):
  jax.tree_map(abs, 1)
"""


def run_program(folder, text, **options):
  (folder / 'old.py').write_text(text)
  log = io.StringIO()
  status = run_path(folder / 'old.py', log=log, **options)
  return status, log.getvalue()


@gone
def test_run_tells_once_what_was_used(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  status, log = run_program(tmp_path, PROGRAM)
  assert status == 0
  assert log.splitlines() == [
    'haiku-state run: JAX has removed names that were put back for this run:',
    '  jax.config.config (old.py:1). Write `jax.config`.',
    '  jax.tree_leaves (old.py:4). Write `jax.tree.leaves`.',
    '  jax.tree_map (old.py:5, old.py:7). Write `jax.tree.map`.',
    '`haiku-state port --modernize` rewrites most of them.',
  ]
  assert run_program(tmp_path, 'import flax\n') == (0, '')


@gone
def test_run_tells_also_if_the_program_fails(tmp_path):
  (tmp_path / 'old.py').write_text('import jax\njax.tree_map\n1 / 0\n')
  log = io.StringIO()
  with pytest.raises(ZeroDivisionError):
    run_path(tmp_path / 'old.py', log=log)
  assert 'jax.tree_map' in log.getvalue()


@gone
def test_command_can_leave_it_out(tmp_path):
  (tmp_path / 'old.py').write_text('import jax\njax.tree_map\n')
  assert main(['run', str(tmp_path / 'old.py')]) == 0
  with pytest.raises(AttributeError):
    main(['run', '--no-old-jax', str(tmp_path / 'old.py')])


ADVISED = {
  'from jax.core import unit': 'Write `None`',
  'from jax.experimental.maps import xmap': '`jax.shard_map`',
  'from jax.lib import xla_client\nxla_client.ops': '`jax.ffi`',
  'import jax\njax.custom_transforms': '`jax.custom_vjp`',
  'import jax.experimental.host_callback as hcb': '`jax.debug.print`',
}


@pytest.mark.parametrize('program', ADVISED)
def test_what_is_too_large_says_what_to_write(tmp_path, program):
  if jax.__version_info__ < (0, 9):
    pytest.skip('this jax has not removed all of them')
  with pytest.raises((ImportError, AttributeError)) as e:
    run_program(tmp_path, program)
  assert ADVISED[program] in told(e.value)


PROCESSES = """
from jax.config import config
import jax, multiprocessing

def twice(x):
  return jax.tree_map(lambda x: 2 * x, x)

if __name__ == '__main__':
  with multiprocessing.get_context('spawn').Pool(1) as pool:
    print(pool.map(twice, [1]))
"""


@gone
@pytest.mark.parametrize('option, status', [([], 0), (['--no-old-jax'], 1)])
def test_processes_have_them(tmp_path, option, status):
  (tmp_path / 'old.py').write_text(PROCESSES)
  root = os.path.dirname(os.path.dirname(os.path.dirname(_old_jax.__file__)))
  done = subprocess.run(
    [sys.executable, '-m', 'haiku_state', 'run', *option, 'old.py'],
    cwd=tmp_path,
    env={'PYTHONPATH': root, 'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
  )
  assert done.returncode == status, done.stderr
  assert done.stdout == ('[2]\n' if status == 0 else '')
