"""Boxed parameters under a mesh that is set, with axes of each kind."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from jax_names import mesh_of, needs_jax, set_mesh, shard_map

from haiku_state import linen as nn

pytestmark = needs_jax(0, 7)

KEY = jax.random.key(0)
X = jnp.ones((2, 4, 8))
normal = nn.initializers.lecun_normal()


def split(names, init=normal):
  return nn.with_partitioning(init, names)


heads = split((None, 'model', None))
heads_by_rule = nn.with_logical_partitioning(
  normal, ('in', 'heads', 'size'), rules=[('heads', 'model')]
)
columns = split((None, 'model'))
bias = split(('model', None), nn.initializers.normal())

# Each layer with a kernel that is split along the mesh axis 'model'.
LAYERS = {
  'Dense': lambda: nn.Dense(4, kernel_init=columns),
  'DenseGeneral': lambda: nn.DenseGeneral(
    (2, 4), kernel_init=heads, bias_init=bias
  ),
  'DenseGeneral, two axes': lambda: nn.DenseGeneral(
    4, axis=(1, 2), kernel_init=split((None, None, 'model'))
  ),
  'DenseGeneral, batch': lambda: nn.DenseGeneral(
    (2, 4),
    batch_dims=0,
    kernel_init=split((None, None, 'model', None)),
    use_bias=False,
  ),
  'DenseGeneral, by rules': lambda: nn.DenseGeneral(
    (2, 4), kernel_init=heads_by_rule
  ),
  'attention': lambda: nn.MultiHeadDotProductAttention(2, kernel_init=heads),
  'attention, by rules': lambda: nn.MultiHeadAttention(
    2, kernel_init=heads_by_rule
  ),
  'SelfAttention': lambda: nn.SelfAttention(2, kernel_init=heads),
  'Einsum': lambda: nn.Einsum((8, 2, 4), 'abc,cde->abde', kernel_init=heads),
  'BatchNorm': lambda: nn.BatchNorm(
    use_running_average=False,
    scale_init=split(('model',), nn.initializers.ones),
  ),
  'WeightNorm': lambda: nn.WeightNorm(nn.Dense(4, kernel_init=columns)),
  'ConvLocal': lambda: nn.ConvLocal(
    4, (2,), kernel_init=split((None, None, 'model'))
  ),
}
# Along explicit axes, JAX wants to be told how the result of these lies.
AMBIGUOUS = {
  'Conv': lambda: nn.Conv(4, (2,), kernel_init=split((None, None, 'model'))),
  'RNN': lambda: nn.RNN(nn.LSTMCell(4, kernel_init=columns)),
}
KINDS = ['Auto', 'Explicit', ['Auto', 'Explicit'], ['Explicit', 'Auto']]
CASES = [(name, kinds) for name in LAYERS for kinds in KINDS]
CASES += [(name, 'Auto') for name in AMBIGUOUS]


def specs_of(model):
  return nn.get_partition_spec(jax.eval_shape(model.init, KEY, X))


@pytest.mark.parametrize('name, kinds', CASES)
def test_boxed_parameters_under_a_mesh(name, kinds):
  model = (LAYERS | AMBIGUOUS)[name]()
  without = specs_of(model)
  assert any('model' in s or 'heads' in s for s in jax.tree.leaves(without))
  with set_mesh(mesh_of((2, 2), ('data', 'model'), kinds)):
    variables = jax.eval_shape(model.init, KEY, X)
    assert nn.get_partition_spec(variables) == without
    text = str(
      jax.make_jaxpr(lambda v: model.apply(v, X, **mutable(name)))(variables)
    )
  assert 'model' in text


def mutable(name):
  return {'mutable': ['batch_stats']} if name == 'BatchNorm' else {}


@pytest.mark.parametrize(
  'name, kinds', [('DenseGeneral', 'Auto'), ('attention', 'Explicit')]
)
def test_values_are_those_without_a_mesh(name, kinds):
  model = LAYERS[name]()
  # Anew each time, as JAX keeps what it has traced.
  init = lambda: jax.jit(lambda: model.init_with_output(KEY, X))()
  y, expected = init()
  with set_mesh(mesh_of((2, 2), ('data', 'model'), kinds)):
    z, variables = init()
  assert jax.tree.structure(variables) == jax.tree.structure(expected)
  jax.tree.map(
    lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)),
    jax.tree.leaves(variables),
    jax.tree.leaves(expected),
  )
  np.testing.assert_allclose(z, y, rtol=1e-6)


def test_a_parameter_lies_along_the_axes_that_its_box_names():
  for kinds in KINDS[1:3]:
    mesh = mesh_of((2, 2), ('data', 'model'), kinds)
    box = nn.Partitioned(jnp.ones((4, 4)), (None, ('data', 'model')))
    with set_mesh(mesh):
      lies = jax.jit(lambda box=box: box.unbox())().sharding.spec
      # The compiler's axes come after the explicit ones.
      assert lies[0] is None and set(lies[1]) == {'data', 'model'}
    # And so does one that brings its mesh.
    assert box.replace(mesh=mesh).unbox().addressable_shards[0].data.size == 4


def test_inside_of_shard_map_a_parameter_is_the_part_of_a_device():
  mesh = mesh_of((2, 2), ('data', 'model'))
  box = nn.Partitioned(jnp.arange(8.0), ('model',))
  part = shard_map(
    lambda box: box.unbox() + 1,
    mesh=mesh,
    in_specs=(PartitionSpec('model'),),
    out_specs=PartitionSpec('model'),
  )
  with set_mesh(mesh):
    np.testing.assert_array_equal(part(box), jnp.arange(8.0) + 1)


def test_a_name_that_the_mesh_does_not_have_is_an_error():
  box = nn.Partitioned(jnp.ones((4, 4)), (None, 'elsewhere'))
  for kinds in KINDS:
    with set_mesh(mesh_of((2, 2), ('data', 'model'), kinds)):
      with pytest.raises(ValueError, match='elsewhere'):
        jax.jit(lambda: box.unbox())()


def test_a_box_of_a_users_own_keeps_its_array():
  class Named(nn.meta.AxisMetadata):
    def __init__(self, value, name):
      self.value, self.name = value, name

    def unbox(self):
      return self.value

    def replace_boxed(self, val):
      return Named(val, self.name)

    def add_axis(self, index, params):
      return self

    def remove_axis(self, index, params):
      return self

  def init(*args):
    return Named(split((None, 'model', None))(*args), 'mine')

  layer = nn.DenseGeneral((2, 4), kernel_init=init)
  with set_mesh(mesh_of((2, 2), ('data', 'model'))):
    kernel = layer.init(KEY, X)['params']['kernel']
  assert kernel.name == 'mine' and kernel.value.names == (None, 'model', None)
  assert kernel.value.value.shape == (8, 2, 4)
