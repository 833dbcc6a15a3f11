"""Boxes: taking values out and putting them in, axes, specs, shardings."""

import copy
import inspect
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counted import calls
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec
from jax_names import mesh_of, needs_jax, set_mesh

from haiku_state import errors, serialization, struct
from haiku_state.core import meta
from haiku_state.core.frozen_dict import freeze
from haiku_state.core.meta import PARTITION_NAME, Partitioned

KEYWORD_ONLY = inspect.Parameter.KEYWORD_ONLY
NAMES = [
  'AxisMetadata',
  'PARTITION_NAME',
  'Partitioned',
  'add_axis',
  'get_global_mesh',
  'get_partition_spec',
  'get_sharding',
  'global_mesh_defined',
  'is_axis_metadata',
  'map_axis_meta',
  'remove_axis',
  'replace_boxed',
  'unbox',
  'with_partitioning',
]


class Plain(struct.PyTreeNode, meta.AxisMetadata):
  """A box that has nothing to say."""

  value: Any

  def unbox(self):
    return self.value

  def replace_boxed(self, val):
    return self.replace(value=val)

  def add_axis(self, index, params):
    return self

  def remove_axis(self, index, params):
    return self


@pytest.fixture
def mesh():
  return mesh_of((1,), ('x',))


@pytest.fixture
def flax_meta():
  pytest.importorskip('flax')
  from flax.core import meta as flax_meta

  return flax_meta


boxed = st.recursive(
  st.integers(0, 9) | st.integers(0, 9).map(lambda x: Partitioned(x, ('a',))),
  lambda t: (
    st.dictionaries(st.text('ab', min_size=1), t, max_size=3)
    | st.lists(t, max_size=3)
    | t.map(Plain)
  ),
  max_leaves=6,
)


@settings(deadline=None)
@given(boxed)
def test_replace_boxed_undoes_unbox(tree):
  values = meta.unbox(tree)
  assert not any(map(meta.is_axis_metadata, jax.tree.leaves(values)))
  assert meta.replace_boxed(tree, values) == tree
  added = jax.tree.map(lambda x: x + 1, values)
  assert meta.unbox(meta.replace_boxed(tree, added)) == added


@settings(max_examples=20, deadline=None)
@given(boxed)
def test_remove_axis_undoes_add_axis(tree):
  params = {PARTITION_NAME: 'layers'}
  more = meta.add_axis(tree, 0, params)
  assert meta.remove_axis(more, 0, params) == tree


@pytest.mark.parametrize(
  'leaf', [jnp.ones(2), np.ones(2), np.float32(1), 1, 2.0, True]
)
def test_unbox_hands_an_array_back(leaf):
  assert meta.unbox(leaf) is leaf
  assert meta.replace_boxed(leaf, {'a': 1}) == {'a': 1}


def test_unbox_of_an_array_is_near_free():
  x = jnp.ones(2)
  meta.unbox(x)
  assert calls(lambda: meta.unbox(x)) == {'unbox': 1}


def test_unbox_of_a_tracer_and_of_nothing():
  assert jax.make_jaxpr(meta.unbox)(1.0).eqns == []
  assert meta.unbox(None) is None and meta.unbox({}) == {}


def test_boxes_in_boxes():
  tree = {'w': Plain(Plain({'a': Partitioned(1, ('x',))}))}
  assert meta.unbox(tree) == {'w': {'a': 1}}
  again = meta.replace_boxed(tree, {'w': {'a': 2}})
  assert again == {'w': Plain(Plain({'a': Partitioned(2, ('x',))}))}
  outer = meta.map_axis_meta(lambda box: type(box).__name__, tree)
  assert outer == {'w': 'Plain'}


def test_is_axis_metadata():
  assert meta.is_axis_metadata(Plain(1)) and not meta.is_axis_metadata(1)


def test_the_base_class_is_abstract():
  with pytest.raises(TypeError):
    meta.AxisMetadata()


# names, index, the names then
ADDED = [
  (('a', 'b'), 0, ('new', 'a', 'b')),
  (('a', 'b'), 1, ('a', 'new', 'b')),
  (('a', 'b'), 2, ('a', 'b', 'new')),
  (('a',), 3, ('a', None, None, 'new')),
  (('a', 'b'), -1, ('a', 'new', 'b')),
  ((), 0, ('new',)),
]


@pytest.mark.parametrize('names, index, expected', ADDED)
def test_add_axis(flax_meta, names, index, expected):
  params = {PARTITION_NAME: 'new'}
  assert Partitioned(1, names).add_axis(index, params).names == expected
  theirs = flax_meta.Partitioned(1, names).add_axis(index, params)
  assert theirs.names == expected


def test_remove_axis():
  box = Partitioned(1, ('a', 'b'))
  assert box.remove_axis(0, {PARTITION_NAME: 'a'}).names == ('b',)
  with pytest.raises(AssertionError, match="axis 1 of .* 'a', .* is 'b'"):
    box.remove_axis(1, {PARTITION_NAME: 'a'})


@pytest.mark.parametrize('change', [meta.add_axis, meta.remove_axis])
def test_the_name_of_the_axis_is_needed(change):
  with pytest.raises(errors.PartitioningUnspecifiedError, match='Partitioned'):
    change({'w': Partitioned(1, ('a',))}, 0, {})


def test_partitioned_is_a_pytree_with_one_child():
  box = Partitioned(jnp.ones(2), ('a',))
  doubled = jax.jit(lambda b: jax.tree.map(lambda x: 2 * x, b))(box)
  assert doubled.names == ('a',) and doubled.value.tolist() == [2, 2]
  ((path, _),) = jax.tree_util.tree_flatten_with_path({'w': box})[0]
  assert jax.tree_util.keystr(path) == "['w'].value"


def test_partitioned_equality():
  x = jnp.ones(2)
  assert Partitioned(x, ('a',)) == Partitioned(x, ('a',))
  assert Partitioned(x, ('a',)) != Partitioned(x, ('b',))
  assert Partitioned(x, ('a',)) != x.shape


@pytest.mark.parametrize(
  'through',
  [lambda b: pickle.loads(pickle.dumps(b)), copy.copy, copy.deepcopy],
)
def test_partitioned_survives(through):
  assert through(Partitioned(1, ('a', None))) == Partitioned(1, ('a', None))


def test_partitioned_is_saved_by_its_value():
  box = Partitioned(1, ('a',))
  assert serialization.to_state_dict(box) == {'value': 1}
  assert serialization.from_state_dict(box, {'value': 2}).names == ('a',)


@needs_jax(0, 7)
def test_unbox_constrains_only_under_a_mesh(mesh):
  x = jnp.ones(2)
  free, bound = Partitioned(x, ('x',)), Partitioned(x, ('x',), mesh)
  assert free.unbox() is x and meta.unbox({'w': free}) == {'w': x}
  count = lambda box: str(jax.make_jaxpr(box.unbox)()).count(
    'sharding_constraint['
  )
  assert (count(free), count(bound)) == (0, 1)
  with set_mesh(mesh):
    assert (count(free), count(bound)) == (1, 1)
    assert free.unbox(apply_constraint=False) is x
  assert bound.unbox(apply_constraint=False) is x
  assert bound.unbox().sharding == NamedSharding(mesh, PartitionSpec('x'))


def test_global_mesh(mesh):
  assert meta.get_global_mesh() is None and not meta.global_mesh_defined()
  with set_mesh(mesh):
    assert meta.get_global_mesh() == mesh.abstract_mesh
    assert meta.global_mesh_defined()


def test_with_partitioning(mesh):
  def init(key, shape, dtype=jnp.float32):
    """Makes ones."""
    return jnp.ones(shape, dtype)

  wrapped = meta.with_partitioning(init, (None, 'x'), mesh)
  box = wrapped(jax.random.key(0), (2, 3), dtype=jnp.bfloat16)
  assert isinstance(box, Partitioned)
  assert (box.names, box.mesh) == ((None, 'x'), mesh)
  assert (box.value.shape, box.value.dtype) == ((2, 3), jnp.bfloat16)
  assert wrapped.__doc__ == 'Makes ones.'


def test_get_partition_spec_and_sharding(mesh):
  tree = freeze(
    {
      'w': Partitioned(jnp.ones((2, 2)), ('x', None)),
      'shape': Partitioned(jax.ShapeDtypeStruct((2,), 'int8'), ('x',)),
      'b': jnp.ones(2),
      'step': 0,
    }
  )
  expected = {
    'w': PartitionSpec('x', None),
    'shape': PartitionSpec('x'),
    'b': PartitionSpec(),
    'step': None,
  }
  assert meta.get_partition_spec(tree) == expected
  assert meta.get_sharding(tree, mesh) == {
    name: spec if spec is None else NamedSharding(mesh, spec)
    for name, spec in expected.items()
  }


@pytest.mark.parametrize('name', NAMES)
def test_same_signature_as_flax(flax_meta, name):
  ours, theirs = getattr(meta, name), getattr(flax_meta, name)
  if not callable(theirs):
    assert ours == theirs
    return
  names = lambda f: [
    (p.name, p.kind, p.default)
    for p in inspect.signature(f).parameters.values()
  ]
  more = {'get_partition_spec', 'get_sharding'}
  found = [p for p in names(ours) if name not in more or p[1] != KEYWORD_ONLY]
  assert found == names(theirs)


def test_same_repr_as_flax(flax_meta):
  args = (1, ('a', None))
  assert repr(Partitioned(*args)) == repr(flax_meta.Partitioned(*args))
