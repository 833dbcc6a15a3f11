"""Every leaf of a state gets a spec that it can have: it is placed by it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimizer_table
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from jax_names import mesh_of

from haiku_state import linen as nn
from haiku_state import optim
from haiku_state.core import freeze
from haiku_state.training.train_state import TrainState
from haiku_state.traverse_util import t_identity

# Shape and names of each parameter; the last has no box.
PARAMS = {
  'conv': ((4, 6, 8), (None, 'data', 'model')),
  'dense': {
    'bias': ((8,), ('model',)),
    'kernel': ((16, 8), ('data', 'model')),
  },
  'square': ((8, 8), ('model', None)),
  'kernel': ((4, 10), (('data', 'model'), None)),
  'scale': ((), ()),
  'plain': ((3,), None),
}
MESH_AXES = ('data', 'model')
is_box = nn.meta.is_axis_metadata

pytestmark = pytest.mark.filterwarnings('ignore::DeprecationWarning')


def make_params(box=nn.Partitioned):
  rng = np.random.default_rng(0)

  def make(leaf):
    shape, names = leaf
    value = jnp.asarray(rng.normal(size=shape), jnp.float32)
    return value if names is None else box(value, names)

  return freeze(
    jax.tree.map(make, PARAMS, is_leaf=lambda x: isinstance(x, tuple))
  )


factored = functools.partial(optim.Adafactor, 0.1, min_dim_size_to_factor=4)
DEFINITIONS = {
  **{name: row.make for name, row in optimizer_table.ROWS.items()},
  'WeightNorm of Adam': lambda: optim.WeightNorm(optim.Adam(0.1)),
  'WeightNorm of Adafactor': lambda: optim.WeightNorm(factored(beta1=0.9)),
}


def test_all_optimizers_are_here():
  names = {name.split(',')[0].split(' ')[0] for name in DEFINITIONS}
  defined = {
    name
    for name in optim.__all__
    if isinstance(getattr(optim, name), type)
    and issubclass(getattr(optim, name), optim.OptimizerDef)
  }
  assert names == defined - {'OptimizerDef', 'MultiOptimizer'}
  assert len(names) == 11


TRANSFORMATIONS = {
  'adam': optax.adam(0.1),
  'adafactor': optax.adafactor(0.1, min_dim_size_to_factor=4),
  'adafactor, momentum': optax.chain(
    optax.clip(1.0),
    optax.adafactor(0.1, min_dim_size_to_factor=4, momentum=0.9),
  ),
  'accumulated': optax.MultiSteps(
    optax.adafactor(0.1, min_dim_size_to_factor=4), 2
  ),
  'averaged': optax.chain(optax.ema(0.9), optax.scale_by_factored_rms()),
}
if hasattr(optax, 'lbfgs'):
  TRANSFORMATIONS['stacked'] = optax.lbfgs(0.1, memory_size=4)


@pytest.fixture
def mesh():
  return mesh_of((2, 2), MESH_AXES)


def check_placed(tree, mesh, **kwargs):
  """Places a tree by its shardings, in each form that they have."""
  specs = nn.get_partition_spec(tree, keep_boxes=True, **kwargs)
  assert jax.tree.structure(specs) == jax.tree.structure(tree)
  shardings = nn.get_sharding(tree, mesh, keep_boxes=True, **kwargs)
  placed = jax.tree.map(jax.device_put, tree, shardings)
  for x, spec, before in zip(*map(jax.tree.leaves, (placed, specs, tree))):
    assert x.sharding == NamedSharding(mesh, spec)
    np.testing.assert_array_equal(x, before)
  # Without the boxes it is a prefix of the same.
  prefix = nn.get_sharding(tree, mesh, **kwargs)
  again = jax.device_put(tree, prefix)
  jax.tree.map(lambda x, y: _same_place(x, y), placed, again)
  return specs


def _same_place(x, y):
  assert x.sharding == y.sharding


@pytest.mark.parametrize('name', DEFINITIONS)
def test_optimizers(mesh, name):
  optimizer = DEFINITIONS[name]().create(make_params())
  specs = check_placed(optimizer, mesh)
  for tree in (optimizer, optimizer.target):
    assert nn.get_partition_spec(tree, params=optimizer.target) == (
      nn.get_partition_spec(tree)
    )
  # What has the shape of its parameter lies as it does.
  for path, x in jax.tree_util.tree_leaves_with_path(optimizer.state):
    if x.shape == (16, 8) and 'kernel' in jax.tree_util.keystr(path):
      spec = _at(specs.state, path)
      assert spec == PartitionSpec('data', 'model')


def _at(tree, path):
  return dict(jax.tree_util.tree_leaves_with_path(tree))[path]


def test_several_optimizers(mesh):
  definition = optim.MultiOptimizer(
    (t_identity['dense'].tree(), optim.WeightNorm(optim.Adam(0.1))),
    (t_identity['conv'].tree(), factored()),
  )
  specs = check_placed(definition.create(make_params()), mesh)
  states = specs.state.param_states
  assert states['square'].value is None
  assert states['conv'].value.v_row == PartitionSpec(None, 'data')


@pytest.mark.parametrize('name', TRANSFORMATIONS)
def test_train_states(mesh, name):
  params = make_params()
  tx = TRANSFORMATIONS[name]
  state = TrainState.create(apply_fn=None, params=params, tx=tx)
  state = state.replace(step=jnp.zeros((), jnp.int32))
  specs = check_placed(state, mesh)
  # The state of the optimizer alone must be told what the parameters are.
  alone = check_placed(state.opt_state, mesh, params=params)
  assert jax.tree.leaves(alone) == jax.tree.leaves(specs.opt_state)
  in_dict = {'params': params, 'a': state.opt_state}
  assert jax.tree.leaves(nn.get_partition_spec(in_dict)['a']) == (
    jax.tree.leaves(specs.opt_state)
  )


def test_a_state_is_made_where_it_is_to_be(mesh):
  def make(definition):
    def init():
      state = TrainState.create(
        apply_fn=None,
        params=make_params(),
        tx=TRANSFORMATIONS['adafactor'],
      )
      return state, definition.create(make_params())

    return init

  init = make(optim.WeightNorm(factored()))
  shapes = jax.eval_shape(init)
  shardings = tuple(nn.get_sharding(tree, mesh) for tree in shapes)
  state, optimizer = jax.jit(init, out_shardings=shardings)()
  part = optimizer.state.param_states['dense']['kernel'].value.direction
  assert part.addressable_shards[0].data.shape == (8, 4)
  v_col = state.opt_state[0].v_col['dense']['kernel'].value
  assert v_col.addressable_shards[0].data.shape == (8,)


def test_axes_that_are_reduced_lose_their_names():
  definition = optim.WeightNorm(factored())
  state = definition.create(make_params()).state.param_states
  params = make_params()
  specs = nn.get_partition_spec(state, params=params)

  def of(name):
    return specs[name].value if name in specs else specs['dense'][name].value

  kernel = of('kernel')
  assert specs['dense']['kernel'].value.scale == PartitionSpec(None, 'model')
  direction = specs['dense']['kernel'].value.direction_state
  assert direction.v_row == PartitionSpec('model')
  assert direction.v_col == PartitionSpec('data')
  assert direction.v == PartitionSpec()
  assert kernel.direction == PartitionSpec(('data', 'model'), None)
  # Of a square one sizes do not tell which axis is left.
  assert of('square').direction_state.v_row == PartitionSpec()
  assert of('conv').direction_state.v_row == PartitionSpec(None, 'data')
  assert of('conv').direction_state.v_col == PartitionSpec(None, 'model')


def test_logical_names(mesh):
  params = make_params(nn.LogicallyPartitioned)
  state = factored().create(params)
  specs = nn.get_partition_spec(state)
  rules = [('data', 'model'), ('model', 'data')]
  with nn.logical_axis_rules(rules):
    shardings = nn.logical_to_mesh_sharding(specs, mesh, strict=True)
  placed = jax.device_put(state, shardings)
  kernel = placed.state.param_states['dense']['kernel'].value
  assert kernel.v_row.sharding.spec == PartitionSpec('data')


def test_boxes_without_parameters_are_as_they_were():
  variables = {
    'batch_stats': {'mean': nn.Partitioned(jnp.ones((2, 1)), ('data', 'model'))}
  }
  specs = nn.get_partition_spec(variables)
  assert specs['batch_stats']['mean'] == PartitionSpec('data', 'model')
  # Fewer axes than names cannot be what the names are of.
  lost = {'v_row': nn.Partitioned(jnp.ones(2), ('data', 'model'))}
  assert nn.get_partition_spec(lost) == {'v_row': PartitionSpec()}


def test_a_variable_is_not_taken_for_what_is_made_of_a_parameter():
  variables = {
    'params': {'w': nn.Partitioned(jnp.ones((8, 4)), ('data', 'model'))},
    'cache': {
      'layer': {'w': nn.Partitioned(jnp.ones((2, 6)), ('model', 'data'))},
      'w': nn.Partitioned(jnp.ones((3, 6)), (None, 'data')),
    },
  }
  # One name for two axes is enough; the box of a parameter may have fewer.
  variables['params']['layer'] = {
    'w': nn.Partitioned(jnp.ones((2, 6)), ('data',))
  }
  specs = nn.get_partition_spec(variables)
  flat = dict(jax.tree_util.tree_leaves_with_path(specs))
  for path, box in jax.tree_util.tree_leaves_with_path(
    variables, is_leaf=is_box
  ):
    assert flat[path] == PartitionSpec(*box.names)


def test_boxes_with_an_idea_of_their_own(mesh):
  where = NamedSharding(mesh, PartitionSpec('model'))

  class Own(nn.meta.AxisMetadata):
    unbox = replace_boxed = add_axis = remove_axis = None

    def get_sharding(self, mesh):
      return where

  class OnlySpec(Own):
    get_sharding = property()

    def get_partition_spec(self):
      return PartitionSpec('data')

  tree = {'a': Own(), 'b': OnlySpec()}
  assert nn.get_partition_spec(tree) == {'a': None, 'b': PartitionSpec('data')}
  assert nn.get_sharding(tree, mesh) == {
    'a': where,
    'b': NamedSharding(mesh, PartitionSpec('data')),
  }


def test_parameters_of_one_name_are_told_by_their_path(mesh):
  params = {
    'a': {'kernel': nn.Partitioned(jnp.ones((4, 8)), ('data', 'model'))},
    'b': {'kernel': nn.Partitioned(jnp.ones((8, 4)), ('data', 'model'))},
    'kernel': nn.Partitioned(jnp.ones((8, 6)), ('data', 'model')),
  }
  tx = TRANSFORMATIONS['adafactor']
  state = TrainState.create(apply_fn=None, params=params, tx=tx)
  state = state.replace(step=jnp.zeros(()))
  check_placed(state, mesh)
  v_row = nn.get_partition_spec(state).opt_state[0].v_row
  assert v_row['a']['kernel'] == PartitionSpec('data')
  assert v_row['b']['kernel'] == PartitionSpec('model')
  assert v_row['kernel'] == PartitionSpec('model')
