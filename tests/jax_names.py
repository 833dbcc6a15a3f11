"""Names of jax that are not in each supported version, for tests.

A test of what an old jax has not is skipped there.
"""

import sys

import jax
import jax.experimental.layout
import numpy as np
import optax
import pytest

JAX = jax.__version_info__


needs_notes = pytest.mark.skipif(
  sys.version_info < (3, 11), reason='notes of errors need Python 3.11'
)


def told(error):
  """Returns what a traceback shows of an error: its text, and its notes."""
  return '\n'.join([str(error), *getattr(error, '__notes__', ())])


def needs_jax(*version):
  """Returns the mark of tests that need a version of jax."""
  text = '.'.join(map(str, version))
  return pytest.mark.skipif(JAX < version, reason=f'needs jax {text}')


def needs_optax(version):
  """Returns the mark of tests that need a version of optax."""
  numbers = lambda text: tuple(int(n) for n in text.split('.')[:3])
  return pytest.mark.skipif(
    numbers(optax.__version__) < numbers(version),
    reason=f'needs optax {version}',
  )


# Tests of programs that are compiled as they are written.
as_written = needs_jax(0, 5)


def enable_x64(value=True):
  """Is `jax.enable_x64`, wherever it stands."""
  if JAX >= (0, 9):
    return jax.enable_x64(value)
  from jax.experimental import enable_x64 as experimental

  return experimental(value)


def mesh_of(shape, names, kinds='Auto'):
  """Makes a mesh of the first devices.

  Args:
    shape: devices along each axis.
    names: the names of the axes.
    kinds: 'Auto' or 'Explicit', for all axes or for each.
  """
  kinds = [kinds] * len(names) if isinstance(kinds, str) else kinds
  if set(kinds) != {'Auto'} and JAX < (0, 7):
    pytest.skip('explicit meshes need jax 0.7')
  devices = np.array(jax.devices()[: np.prod(shape)]).reshape(shape)
  if JAX < (0, 7):
    return jax.sharding.Mesh(devices, names)
  kinds = tuple(getattr(jax.sharding.AxisType, kind) for kind in kinds)
  return jax.sharding.Mesh(devices, names, axis_types=kinds)


def set_mesh(mesh):
  """Is `jax.set_mesh`, or what came before it."""
  if JAX >= (0, 7):
    return jax.set_mesh(mesh)
  if JAX < (0, 5):
    pytest.skip('a mesh can be set from jax 0.5 on')
  return jax.sharding.use_mesh(mesh)


def layout_of(order):
  """Makes the layout of an array by the order of its axes in memory."""
  if JAX < (0, 6, 2):
    pytest.skip('layouts beside shardings need jax 0.6.2')
  kind = 'Layout' if JAX >= (0, 7) else 'DeviceLocalLayout'
  return getattr(jax.experimental.layout, kind)(order)


def shard_map(fn, *, mesh, in_specs, out_specs, check=True):
  """Is `jax.shard_map`, wherever it stands."""
  specs = dict(mesh=mesh, in_specs=in_specs, out_specs=out_specs)
  if JAX >= (0, 6, 2):
    return jax.shard_map(fn, **specs, check_vma=check)
  from jax.experimental.shard_map import shard_map as experimental

  return experimental(fn, **specs, check_rep=check)
