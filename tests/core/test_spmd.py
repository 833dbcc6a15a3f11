"""Logical axis rules: setting and joining them, shardings in their terms."""

import functools
import inspect
import threading

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from jax_names import JAX, layout_of, mesh_of, set_mesh

from haiku_state.core import _specs, spmd

NAMES = [
  'apply_rules',
  'composite_rules',
  'from_sharding_rules',
  'get_logical_axis_rules',
  'get_mesh',
  'get_pspec',
  'logical_axis_rules',
  'map_sharding',
  'set_logical_axis_rules',
  'shard_value',
]
RULES = (('embed', 'x'), ('mlp', ('x', 'y')), ('length', None))


@pytest.fixture(autouse=True)
def no_rules():
  yield
  assert spmd.get_logical_axis_rules() == ()


@pytest.fixture
def mesh():
  return mesh_of((1, 1), ('x', 'y'))


@pytest.fixture
def explicit_mesh():
  return mesh_of((1, 1), ('x', 'y'), 'Explicit')


@pytest.fixture
def mixed_mesh():
  return mesh_of((2, 2), ('x', 'y'), ['Auto', 'Explicit'])


@pytest.fixture
def flax_spmd():
  pytest.importorskip('flax')
  from flax.core import spmd as flax_spmd

  return flax_spmd


def test_rules_are_set_and_put_back():
  spmd.set_logical_axis_rules(RULES)
  try:
    with spmd.logical_axis_rules([('a', 'x')]):
      assert spmd.get_logical_axis_rules() == [('a', 'x')]
    assert spmd.get_logical_axis_rules() == RULES
    with pytest.raises(KeyError), spmd.logical_axis_rules(()):
      raise KeyError
    assert spmd.get_logical_axis_rules() == RULES
  finally:
    spmd.set_logical_axis_rules(())


def test_rules_are_per_thread():
  seen = []
  with spmd.logical_axis_rules(RULES):
    thread = threading.Thread(
      target=lambda: seen.append(spmd.get_logical_axis_rules())
    )
    thread.start()
    thread.join()
  assert seen == [()]


JOINED = [
  (None, None),
  ((), RULES),
  (RULES, None),
  ([('a', 'x')], RULES),
  (RULES, RULES),
]


@pytest.mark.parametrize('a, b', JOINED)
def test_composite_rules(flax_spmd, a, b):
  assert spmd.composite_rules(a, b) == flax_spmd.composite_rules(a, b)
  assert dict(spmd.composite_rules(a, b)) == {**dict(a or ()), **dict(b or ())}


def test_rules_that_contradict_each_other():
  with pytest.raises(ValueError, match='Inconsistent .* for embed: x vs y'):
    spmd.composite_rules(RULES, [('embed', 'y')])
  with spmd.logical_axis_rules(RULES), pytest.raises(ValueError):
    spmd.apply_rules(('embed',), [('embed', 'y')])


def test_from_sharding_rules(flax_spmd):
  sharding = ('embed', None, 'other', 'mlp', 'length')
  expected = ('x', None, 'other', ('x', 'y'), None)
  assert spmd.from_sharding_rules(sharding, RULES) == expected
  assert flax_spmd.from_sharding_rules(sharding, RULES) == expected


def shardings(mesh):
  spec = PartitionSpec('embed', None)
  expected = PartitionSpec('x', None)
  named = lambda spec: NamedSharding(mesh, spec)
  layout = layout_of((0, 1))
  yield ('embed', None), expected
  yield spec, expected
  yield named(PartitionSpec('x', None)), named(PartitionSpec('y', None))
  in_format = lambda spec: spmd.Format(layout, named(spec))
  yield (
    in_format(PartitionSpec('x', None)),
    in_format(PartitionSpec('y', None)),
  )


def test_apply_rules_to_each_kind(mesh):
  for sharding, expected in shardings(mesh):
    rules = (('embed', 'x'), ('x', 'y'))
    assert spmd.apply_rules(sharding, rules) == expected
    assert spmd.get_pspec(sharding, rules) == expected
    with spmd.logical_axis_rules(rules):
      assert spmd.apply_rules(sharding, None) == expected
      assert spmd.get_pspec(sharding) == expected


def test_apply_rules_without_rules(mesh):
  for sharding, _ in shardings(mesh):
    same = spmd.apply_rules(sharding, None)
    assert tuple(same) == sharding if isinstance(sharding, tuple) else True
    assert same == spmd.map_sharding(lambda axis: axis, sharding)


def test_get_mesh(mesh):
  seen = [spmd.get_mesh(sharding) for sharding, _ in shardings(mesh)]
  assert seen == [None, None, mesh, mesh]
  assert spmd.get_mesh(3) is None and spmd.map_sharding(str, 3) is None


def test_shard_value(mesh, explicit_mesh):
  x = jnp.ones((2, 2))
  assert spmd.shard_value(x, None, RULES, mesh) is x
  for m in (mesh, explicit_mesh):
    expected = NamedSharding(m, PartitionSpec('x', None))
    shard = functools.partial(spmd.shard_value, x, sharding_rules=RULES)
    assert shard(('embed', None), mesh=m).sharding == expected
    assert shard(expected, mesh=None).sharding == expected
    with set_mesh(m):
      # Flax compares the abstract mesh with the concrete one and gives up on
      # the second of these.
      for out in (('embed', None), expected):
        jaxpr = jax.make_jaxpr(functools.partial(shard, out, mesh=None))()
        (eqn,) = jaxpr.eqns
        target = eqn.params.get('sharding') or eqn.params['dst_sharding']
        assert target.spec == expected.spec


def test_shard_value_on_axes_of_both_kinds(mixed_mesh):
  # Flax refuses this.
  x = jnp.ones((2, 4))
  out = jax.jit(lambda x: spmd.shard_value(x, ('embed', 'y'), RULES, None))
  with set_mesh(mixed_mesh):
    assert out(x).sharding.spec == PartitionSpec('x', 'y')
  placed = spmd.shard_value(x, ('embed', 'y'), RULES, mixed_mesh)
  assert placed.sharding.spec == PartitionSpec('x', 'y')


def test_shard_value_refuses(mesh):
  x = jnp.ones((2, 2))
  with pytest.raises(ValueError, match='An auto mesh context or metadata is'):
    spmd.shard_value(x, ('embed', None), RULES, None)
  other = mesh_of((1,), ('x',))
  with pytest.raises(ValueError, match='over another mesh'):
    spmd.shard_value(
      x, NamedSharding(mesh, PartitionSpec('x', None)), None, other
    )


@pytest.mark.parametrize('name', NAMES)
def test_same_signature_as_flax(flax_spmd, name):
  names = lambda f: [
    (p.name, p.kind, p.default)
    for p in inspect.signature(f).parameters.values()
  ]
  assert names(getattr(spmd, name)) == names(getattr(flax_spmd, name))


def test_explicit_axes_need_a_jax_that_has_them():
  if JAX >= (0, 7) or not hasattr(jax.sharding, 'AxisType'):
    pytest.skip('for a jax in which explicit axes were another thing')
  explicit = jax.sharding.AxisType.Explicit
  mesh = jax.make_mesh((1,), ('data',), axis_types=(explicit,))
  with pytest.raises(NotImplementedError, match='explicit axes.*0.7'):
    _specs.constrain(jnp.ones(2), PartitionSpec('data'), mesh)
