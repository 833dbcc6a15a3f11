"""Four host devices for the tests that map or shard; flags and memory."""

import ctypes
import gc
import os
from pathlib import Path

import pytest

flags = os.environ.get('XLA_FLAGS', '')
if 'xla_force_host_platform_device_count' not in flags:
  os.environ['XLA_FLAGS'] = (
    f'{flags} --xla_force_host_platform_device_count=4'.strip()
  )


# What is compiled here runs once or twice: compiling it well takes longer than
# running it badly.
os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')

import jax  # noqa: E402


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
