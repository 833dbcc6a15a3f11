"""Four host devices for the tests that map or shard, and flags that stay."""

import os

import pytest

flags = os.environ.get('XLA_FLAGS', '')
if 'xla_force_host_platform_device_count' not in flags:
  os.environ['XLA_FLAGS'] = (
    f'{flags} --xla_force_host_platform_device_count=4'.strip()
  )


# What is compiled here runs once or twice: compiling it well takes longer than
# running it badly.
os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')


@pytest.fixture(autouse=True)
def flags_stay():
  """It puts the flags back that a test, or a document, has changed."""
  from haiku_state.configurations import config

  before = dict(config._values)
  yield
  for name, value in before.items():
    if config._values[name] != value:
      config.update(name, value)
