"""Four host devices for the tests that map or shard over devices."""

import os

flags = os.environ.get('XLA_FLAGS', '')
if 'xla_force_host_platform_device_count' not in flags:
  os.environ['XLA_FLAGS'] = (
    f'{flags} --xla_force_host_platform_device_count=4'.strip()
  )
