import inspect
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haiku_state.training import orbax_utils


def _sharded(*spec):
  mesh = jax.make_mesh((jax.device_count(),), ('x',))
  spec = jax.sharding.PartitionSpec(*spec)
  return jax.device_put(np.arange(8.0), jax.sharding.NamedSharding(mesh, spec))


def test_is_multi_device_array():
  several = jax.device_count() > 1
  assert orbax_utils.is_multi_device_array(_sharded('x')) == several
  for value in (_sharded(), jnp.ones(2), np.ones(2), 3):
    assert not orbax_utils.is_multi_device_array(value)


_TARGETS = {
  'host': {'a': np.ones(2), 'b': [1, 2.0]},
  'none': {'a': None, 'b': {'c': None, 'd': np.ones(1)}, 'e': [None, 1]},
  'device': {'a': jnp.ones(2), 'n': None},
  'mixed': {'a': jnp.ones(2), 'b': np.ones(2), 'c': 3},
  'sharded': {'a': _sharded('x'), 'b': _sharded()},
}


@pytest.mark.parametrize('name', _TARGETS)
def test_arguments_are_those_of_flax(name):
  pytest.importorskip('orbax.checkpoint')
  theirs = pytest.importorskip('flax.training.orbax_utils')
  target = _TARGETS[name]
  for function, args in {
    'save_args_from_target': (),
    'restore_args_from_target': (),
    'maybe_construct_transformations': (None,),
  }.items():
    ours = getattr(orbax_utils, function)(target, *args)
    assert ours == getattr(theirs, function)(target, *args), function


def test_transforms_of_the_caller():
  transforms = {'a': 1}
  args = {'a': None}, transforms
  assert orbax_utils.maybe_construct_transformations(*args) is transforms


def test_mesh_is_deprecated():
  ocp = pytest.importorskip('orbax.checkpoint')
  mesh = jax.sharding.Mesh(jax.devices()[:1], ('x',))
  with pytest.warns(DeprecationWarning, match='`mesh` arg is deprecated'):
    args = orbax_utils.restore_args_from_target({'a': _sharded('x')}, mesh)
  assert isinstance(args['a'], ocp.ArrayRestoreArgs)
  assert args['a'].sharding.mesh == mesh


@pytest.mark.parametrize(
  'function',
  [
    orbax_utils.save_args_from_target,
    orbax_utils.restore_args_from_target,
    lambda target: orbax_utils.maybe_construct_transformations(target, None),
  ],
)
def test_missing_orbax_names_the_extra(function, monkeypatch):
  monkeypatch.setitem(sys.modules, 'orbax.checkpoint', None)
  with pytest.raises(ImportError) as error:
    function({'a': 1})
  assert "pip install '.[checkpoint]'" in str(error.value)


def test_signatures_are_flax():
  theirs = pytest.importorskip('flax.training.orbax_utils')
  for name, function in inspect.getmembers(theirs, inspect.isfunction):
    ours = inspect.signature(getattr(orbax_utils, name))
    assert str(ours) == str(inspect.signature(function)), name
