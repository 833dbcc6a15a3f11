"""Logical names to mesh axes, constraints, and the box of logical names."""

import inspect
from unittest import mock

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec
from jax_names import mesh_of, needs_jax, set_mesh

from haiku_state.core import meta
from haiku_state.core.spmd import logical_axis_rules
from haiku_state.linen import spmd
from haiku_state.linen.spmd import LogicallyPartitioned, RulesFallback

RULES = (('batch', 'x'), ('embed', 'y'), ('heads', 'x'), ('length', None))
UNCONSTRAINED = PartitionSpec.UNCONSTRAINED

# names, rules, expected
ASSIGNED = [
  (('batch', 'embed'), RULES, ('x', 'y')),
  (('embed', 'batch'), RULES, ('y', 'x')),
  (('batch', 'heads'), RULES, ('x', None)),
  (('batch', None, 'length', 'unknown'), RULES, ('x', None, None, None)),
  (('a', 'b'), (('a', ('x', 'y')), ('b', 'x'), ('b', 'z')), (('x', 'y'), 'z')),
  (('a',), (('a', None), ('a', 'x')), (None,)),
  ((UNCONSTRAINED, 'batch', UNCONSTRAINED), RULES, None),
  (PartitionSpec('batch', 'embed'), RULES, ('x', 'y')),
  ((), RULES, ()),
  (('batch',), (), (None,)),
]

names = st.sampled_from(['a', 'b', 'c', 'd', None])
mesh_axes = st.sampled_from(['x', 'y', 'z', None, ('x', 'y'), ('z',)])


@pytest.fixture
def mesh():
  return mesh_of((1, 1), ('x', 'y'))


@pytest.fixture
def flax_spmd():
  pytest.importorskip('flax')
  from flax.linen import spmd as flax_spmd

  return flax_spmd


def traced_specs(f, *args):
  """Lists the specs of the constraints that tracing a function meets."""
  # A new function each time, as JAX keeps the trace of one it has seen.
  new = lambda *args: f(*args)
  return [
    eqn.params['sharding'].spec
    for eqn in jax.make_jaxpr(new)(*args).eqns
    if eqn.primitive.name == 'sharding_constraint'
  ]


@pytest.mark.parametrize('array_names, rules, expected', ASSIGNED)
def test_logical_to_mesh_axes(array_names, rules, expected):
  if expected is None:
    expected = (UNCONSTRAINED, 'x', UNCONSTRAINED)
  assert spmd.logical_to_mesh_axes(array_names, rules) == PartitionSpec(
    *expected
  )
  with logical_axis_rules(rules):
    assert spmd.logical_to_mesh_axes(array_names) == PartitionSpec(*expected)


@settings(deadline=None)
@given(
  st.lists(names, max_size=5, unique_by=lambda n: n or object()).map(tuple),
  st.lists(st.tuples(st.sampled_from('abcde'), mesh_axes), max_size=6),
)
def test_logical_to_mesh_axes_as_flax(array_names, rules):
  theirs = pytest.importorskip('flax.linen').logical_to_mesh_axes
  expected = theirs(array_names, rules)
  assert spmd.logical_to_mesh_axes(array_names, rules) == expected


def test_logical_to_mesh_axes_refuses():
  assert spmd.logical_to_mesh_axes(None, RULES) is None
  with pytest.raises(ValueError, match=r"Dimensions \('a',\) occur more than"):
    spmd.logical_to_mesh_axes(('a', 'b', 'a'), RULES)
  with pytest.raises(ValueError, match='Unknown axis rule specification type'):
    spmd.logical_to_mesh_axes(('a',), {'a': 'x'})


def test_logical_to_mesh(mesh):
  tree = {'w': PartitionSpec('batch', 'embed'), 'b': PartitionSpec(), 'n': None}
  expected = {'w': PartitionSpec('x', 'y'), 'b': PartitionSpec(), 'n': None}
  assert spmd.logical_to_mesh(tree, RULES) == expected
  shardings = spmd.logical_to_mesh_sharding(tree, mesh, RULES)
  assert shardings == {
    'w': NamedSharding(mesh, PartitionSpec('x', 'y')),
    'b': NamedSharding(mesh, PartitionSpec()),
    'n': None,
  }


UNKNOWN = {
  'dense': {
    'kernel': PartitionSpec('embed', 'mlp'),
    'bias': PartitionSpec('mlp'),
  },
  'scale': PartitionSpec(None, UNCONSTRAINED, 'length'),
  'step': None,
}


def test_a_name_without_a_rule_is_told(mesh):
  with pytest.warns(UserWarning) as told:
    shardings = spmd.logical_to_mesh_sharding(UNKNOWN, mesh, RULES)
  (warning,) = told
  text = str(warning.message)
  for part in (
    "'mlp' of ['dense']['bias'], ['dense']['kernel']",
    repr(list(RULES)),
  ):
    assert part in text
  # A rule that says None is one, and so is one whose axis is taken.
  names, _ = text.split('The rules are')
  assert 'length' not in names and 'embed' not in names
  assert warning.filename == __file__
  assert shardings['dense']['kernel'].spec == PartitionSpec('y', None)
  with pytest.raises(ValueError, match="No rule for the logical name 'mlp'"):
    spmd.logical_to_mesh_sharding(UNKNOWN, mesh, RULES, strict=True)


def test_rules_of_all_names_are_not_told(mesh, recwarn):
  rules = [*RULES, ('mlp', None)]
  with logical_axis_rules(rules):
    for kwargs in ({}, {'strict': True}):
      spmd.logical_to_mesh_sharding(UNKNOWN, mesh, **kwargs)
  assert not recwarn.list
  with pytest.raises(ValueError, match=r"'embed'.*The rules are \[\]"):
    spmd.logical_to_mesh_sharding(UNKNOWN, mesh, strict=True)


@pytest.fixture
def constraints():
  """Catches the constraints instead of applying them."""
  with mock.patch.object(spmd, '_with_sharding_constraint') as seen:
    yield seen


def test_no_rules_no_constraint(constraints):
  x = jnp.ones((2, 2))
  assert spmd.with_logical_constraint(x, ('batch', 'embed')) is x
  assert spmd.with_logical_constraint(x, None, rules=RULES) is x
  constraints.assert_not_called()


@pytest.mark.parametrize(
  'array_names, fallback, expected',
  [
    (('batch', 'embed'), RulesFallback.NO_CONSTRAINT, ('x', 'y')),
    (('batch', 'other'), RulesFallback.AXIS_IS_UNSHARDED, ('x', None)),
    (('batch', 'other'), RulesFallback.NO_CONSTRAINT, None),
    (('batch', 'length'), RulesFallback.RAISE_ERROR, ('x', None)),
    (('batch', None), RulesFallback.RAISE_ERROR, ('x', None)),
  ],
)
def test_fallback(constraints, array_names, fallback, expected):
  x = jnp.ones((2, 2))
  with logical_axis_rules(RULES):
    y = spmd.with_logical_constraint(x, array_names, fallback=fallback)
  if expected is None:
    constraints.assert_not_called()
    assert y is x
  else:
    spec = PartitionSpec(*expected)
    constraints.assert_called_once_with(x, spec, mesh=None)


def test_fallback_raises():
  with pytest.raises(
    ValueError, match=r"Axis names \('batch', 'other'\) did not match a rule"
  ):
    spmd.with_logical_constraint(
      jnp.ones((2, 2)),
      ('batch', 'other'),
      rules=RULES,
      fallback=RulesFallback.RAISE_ERROR,
    )


@needs_jax(0, 7)
def test_constraint_is_applied_where_there_is_a_mesh(mesh):
  x = jnp.ones((2, 2))
  constrain = lambda **kw: spmd.with_logical_constraint(
    x, ('batch', 'embed'), rules=RULES, **kw
  )
  expected = NamedSharding(mesh, PartitionSpec('x', 'y'))
  assert constrain() is x
  assert constrain(mesh=mesh).sharding == expected
  with set_mesh(mesh):
    assert traced_specs(constrain) == [expected.spec]


def test_constraint_on_a_tree(constraints):
  tree = {'a': jnp.ones(2), 'b': (jnp.ones((2, 2)), jnp.ones(2))}
  resources = {'a': ('batch',), 'b': (('batch', 'embed'), None)}
  spmd.with_logical_constraint(tree, resources, rules=RULES)
  specs = [call.args[1] for call in constraints.call_args_list]
  assert specs == [PartitionSpec('x'), PartitionSpec('x', 'y'), None]


@needs_jax(0, 7)
def test_box_unboxes_by_the_rules(mesh):
  x = jnp.ones((2, 2))
  box = LogicallyPartitioned(x, ('batch', 'embed'), mesh, RULES)
  expected = NamedSharding(mesh, PartitionSpec('x', 'y'))
  assert box.unbox().sharding == expected
  assert meta.unbox([box])[0].sharding == expected
  assert box.unbox(apply_constraint=False) is x
  no_mesh = box.replace(mesh=None)
  assert no_mesh.unbox() is x
  no_rules = no_mesh.replace(rules=None)
  unbox = lambda box: box.unbox()
  with set_mesh(mesh):
    assert traced_specs(unbox, no_mesh) == [expected.spec]
    assert traced_specs(unbox, no_rules) == []
    with logical_axis_rules(RULES):
      assert traced_specs(unbox, no_rules) == [expected.spec]


def test_box_equality():
  x = jnp.ones(2)
  same = [LogicallyPartitioned(x, ('a',), rules=RULES) for _ in range(2)]
  assert same[0] == same[1]
  # Flax compares the values alone.
  assert same[0] != LogicallyPartitioned(x, ('b',), rules=RULES)
  assert same[0] != meta.Partitioned(x, ('a',))


def test_box_changes_axes():
  box = LogicallyPartitioned(1, ('a',), rules=RULES)
  more = box.add_axis(0, {meta.PARTITION_NAME: 'layers'})
  assert (more.names, more.rules) == (('layers', 'a'), RULES)
  assert more.remove_axis(0, {meta.PARTITION_NAME: 'layers'}) == box


def test_with_logical_partitioning(mesh):
  init = spmd.with_logical_partitioning(
    jax.nn.initializers.ones, ('batch', 'embed'), mesh, RULES
  )
  box = init(jax.random.key(0), (2, 3))
  assert type(box) is LogicallyPartitioned and box.value.shape == (2, 3)
  assert (box.names, box.mesh, box.rules) == (('batch', 'embed'), mesh, RULES)
  specs = meta.get_partition_spec({'w': box})
  assert specs == {'w': PartitionSpec('batch', 'embed')}


@pytest.mark.parametrize(
  'name',
  [
    'LogicallyPartitioned',
    'RulesFallback',
    'get_logical_axis_rules',
    'logical_to_mesh',
    'logical_to_mesh_axes',
    'logical_to_mesh_sharding',
    'with_logical_constraint',
    'with_logical_partitioning',
  ],
)
def test_same_signature_as_flax(flax_spmd, name):
  ours, theirs = getattr(spmd, name), getattr(flax_spmd, name)
  values = lambda f: [
    (p.name, p.kind, str(p.default))
    for p in inspect.signature(f).parameters.values()
  ]
  more = [('strict', inspect.Parameter.KEYWORD_ONLY, 'False')]
  has_more = name == 'logical_to_mesh_sharding'
  assert values(ours) == values(theirs) + more * has_more


def test_same_repr_as_flax(flax_spmd):
  args = (1, ('a',), None, RULES)
  ours, theirs = (
    LogicallyPartitioned(*args),
    flax_spmd.LogicallyPartitioned(*args),
  )
  assert repr(ours) == repr(theirs)
  assert {f.name: f.value for f in RulesFallback} == {
    f.name: f.value for f in flax_spmd.RulesFallback
  }
