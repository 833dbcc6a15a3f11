"""Four host devices for the tests that map or shard; flags and memory."""

import ctypes
import functools
import gc
import importlib.metadata
import itertools
import os
import sys
from pathlib import Path

import hypothesis
import pytest

flags = os.environ.get('XLA_FLAGS', '')
if 'xla_force_host_platform_device_count' not in flags:
  flags += ' --xla_force_host_platform_device_count=4'
# What XLA fuses it compiles for much longer than it runs here. A flag that XLA
# does not know ends the process: only of these versions is it known.
KNOWN = ('0.10.',)
if importlib.metadata.version('jaxlib').startswith(KNOWN):
  flags += ' --xla_cpu_use_fusion_emitters=false'
os.environ['XLA_FLAGS'] = flags.strip()


import haiku as hk  # noqa: E402, F401
import jax  # noqa: E402

# What is compiled here runs once or twice: compiling it well takes longer than
# running it badly. Before jax 0.5, compiled badly, the gradient of
# `jax.checkpoint` in a scan is wrong.
if 'JAX_DISABLE_MOST_OPTIMIZATIONS' not in os.environ:
  jax.config.update(
    'jax_disable_most_optimizations', jax.__version_info__ >= (0, 5)
  )

# The Flax that the tests compare with. Others have other words, signatures and
# names: they are compared with in test_flax_of_its_time.py alone, and are not
# there for other tests. That of an old Haiku's own imports is no matter.
ORACLE = (0, 12)

flax_of_its_time = None
modules_of_its_time = {}
try:
  import flax
except ImportError:
  pass
else:
  if tuple(map(int, flax.__version__.split('.')[:2])) < ORACLE:
    import flax.linen

    flax_of_its_time = flax
    for name in [n for n in sys.modules if n.split('.')[0] == 'flax']:
      modules_of_its_time[name] = sys.modules[name]
      sys.modules[name] = None


# What stands for Flax in some versions of Haiku refuses even `__file__`, for
# which hypothesis asks all modules.
for name in [n for n in sys.modules if n.split('.')[0] == 'haiku']:
  try:
    getattr(sys.modules[name], '__file__', None)
  except ImportError:
    del sys.modules[name]


# What takes long, and tells least of a change: these files, and single tests
# with the mark `long`. `pytest` alone leaves it out, and of what hypothesis draws
# it tries a fifth. `--long` has just that, and the name of a file or `--all` has
# all.
LONG = (
  'core/test_core_designs.py',
  'core/test_nn.py',
  'test_benchmark_forms.py',
  'test_benchmark_processes.py',
  'test_benchmarks.py',
  'test_document.py',
  'test_examples.py',
  'test_lifted_in_haiku.py',
  'test_site.py',
  'fuzz/',
  'interop/test_examples.py',
  'interop/test_layers.py',
  'interop/test_networks.py',
  'interop/test_recurrent.py',
  'linen/test_jax_transforms.py',
  'linen/test_layers_in_haiku.py',
  'linen/test_layers_unused.py',
  'linen/test_leaks.py',
  'linen/test_scan_keys.py',
  'linen/test_threads.py',
  'linen/test_transforms_axes.py',
  'linen/test_transforms_in_haiku.py',
  'linen/test_transforms_kinds.py',
  'linen/test_transforms_sharing.py',
  'port/test_guides.py',
  'port/test_programs_of_2021.py',
  'typing/',
)
# For the processes that pytest-xdist starts, which get all paths by name.
WHICH = 'HAIKU_STATE_TESTS'


def pytest_addoption(parser):
  add = parser.getgroup('haiku_state').addoption
  add('--long', action='store_true', help='only the tests that take long')
  add('--all', action='store_true', help='also the tests that take long')


def pytest_configure(config):
  config.addinivalue_line('markers', 'long: left out by `pytest` alone')
  if not hasattr(config, 'workerinput'):
    is_named = config.args_source is not config.ArgsSource.TESTPATHS
    is_whole = is_named or config.option.all
    os.environ[WHICH] = (
      'long' if config.option.long else 'all' if is_whole else 'short'
    )
  if os.environ[WHICH] == 'short':
    few = hypothesis.settings.default.max_examples // 5
    hypothesis.settings.register_profile('short', max_examples=few)
    hypothesis.settings.load_profile('short')


@functools.cache
def is_long(path):
  return path.relative_to(Path(__file__).parent).as_posix().startswith(LONG)


def pytest_ignore_collect(collection_path):
  return os.environ[WHICH] == 'short' and is_long(collection_path) or None


def pytest_collection_modifyitems(config, items):
  which = os.environ[WHICH]
  if which == 'all':
    return

  def is_left_out(item):
    is_marked = is_long(item.path) or item.get_closest_marker('long')
    if which == 'short':
      return is_marked
    return not is_marked and not hypothesis.is_hypothesis_test(item.obj)

  left_out = list(filter(is_left_out, items))
  config.hook.pytest_deselected(items=left_out)
  items[:] = itertools.filterfalse(is_left_out, list(items))


def pytest_collection_finish():
  """Has Python look for garbage seldom, and not among what is there to stay."""
  gc.freeze()
  gc.set_threshold(20_000, 20, 20)


@pytest.fixture
def benchmarks(monkeypatch):
  """Returns the benchmarks, which are no part of the package: they stand beside it."""
  monkeypatch.syspath_prepend(Path(__file__).parents[1])
  import benchmarks.run

  return benchmarks


@pytest.fixture
def old_flax(monkeypatch):
  """Returns the Flax that is there if it is older than the tests' oracle."""
  if flax_of_its_time is None:
    pytest.skip('only with a Flax that is older than the one of the tests')
  for name, module in modules_of_its_time.items():
    monkeypatch.setitem(sys.modules, name, module)
  return flax_of_its_time


@pytest.fixture(autouse=True)
def flags_stay():
  """Puts the flags back that a test, or a document, has changed."""
  from haiku_state.configurations import config

  before = dict(config._values)
  yield
  for name, value in before.items():
    if config._values[name] != value:
      config.update(name, value)


# JAX keeps what it has compiled: thousands of tests would fill the memory of a
# small machine.
MOST_GROWTH = 1 << 30
resident_when_clean = 0


@pytest.fixture(scope='module', autouse=True)
def memory_stays():
  """Drops what JAX has compiled when that has become much."""
  yield
  global resident_when_clean
  if resident_bytes() > resident_when_clean + MOST_GROWTH:
    jax.clear_caches()
    gc.collect()
    give_back_memory()
    resident_when_clean = resident_bytes()


def give_back_memory():
  """Has the C library give back what is free, which it else may keep."""
  try:
    ctypes.CDLL('libc.so.6').malloc_trim(0)
  except (OSError, AttributeError):
    pass  # Another C library.


def resident_bytes():
  """Returns the memory that this process uses; 0 where that is not known."""
  statm = Path('/proc/self/statm')
  if not statm.exists():
    return 0
  return int(statm.read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')
