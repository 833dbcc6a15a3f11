"""What holds for every optimizer, whatever its rule."""

import pickle
import warnings
from typing import Any

import cloudpickle
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimizer_table
import pytest
from left_out import all_but
from optimizer_table import ROWS

from haiku_state import optim, serialization, struct
from haiku_state.core.frozen_dict import FrozenDict, freeze


@struct.dataclass
class HyperParams:
  learning_rate: Any
  power: Any


class PowerDescent(optim.OptimizerDef):
  """A user's optimizer: a rule of its own."""

  def __init__(self, learning_rate=None, power=0.5):
    super().__init__(HyperParams(learning_rate, power))

  def init_param_state(self, param):
    return {'steps': jnp.zeros((), jnp.float32)}

  def apply_param_gradient(self, step, hyper_params, param, state, grad):
    size = jnp.abs(grad) ** hyper_params.power
    new = param - hyper_params.learning_rate * jnp.sign(grad) * size
    return new, {'steps': state['steps'] + 1}


class LateAdam(optim.Adam):
  """A user's optimizer: a subclass that calls the rule it changes."""

  def apply_param_gradient(self, step, hyper_params, param, state, grad):
    new, state = super().apply_param_gradient(
      step, hyper_params, param, state, grad
    )
    return jnp.where(step >= 2, new, param), state


def is_kernel(path, value):
  return path.endswith('kernel')


def is_vector(path, value):
  return value.ndim == 1


def focused(learning_rate=0.05):
  return optim.MultiOptimizer(
    (optim.ModelParamTraversal(is_kernel), optim.Adam(learning_rate))
  )


def multi(learning_rate=0.05):
  return optim.MultiOptimizer(
    (optim.ModelParamTraversal(is_vector), optim.Momentum(learning_rate)),
    (
      optim.ModelParamTraversal(is_kernel),
      optim.WeightNorm(optim.GradientDescent(learning_rate)),
    ),
  )


def weight_norm(learning_rate=0.05):
  return optim.WeightNorm(optim.Adam(learning_rate))


# One row of the table for each class, and for each layout of the state.
OF_TABLE = [
  'GradientDescent',
  'Momentum, nesterov',
  'Adam, decay',
  'AdaBelief',
  'Adadelta, decay',
  'Adagrad',
  'RMSProp',
  'RMSProp, centered',
  'LAMB, decay',
  'LARS, decay',
  'Adafactor',
  'Adafactor, momentum',
]
MAKERS = {
  **{name: ROWS[name].make for name in OF_TABLE},
  'WeightNorm': weight_norm,
  'MultiOptimizer': multi,
  'focus': focused,
  'own class': lambda learning_rate=0.05: PowerDescent(learning_rate),
  'own subclass': lambda learning_rate=0.05: LateAdam(learning_rate),
}
EVERY = pytest.mark.parametrize('name', MAKERS)


def params(dtype=jnp.float32):
  dense = optimizer_table.params()['dense']
  return {'dense': jax.tree.map(lambda p: jnp.asarray(p, dtype), dense)}


def grads(step=0, dtype=jnp.float32):
  dense = optimizer_table.grads(step)['dense']
  return {'dense': jax.tree.map(lambda g: jnp.asarray(g, dtype), dense)}


@jax.jit
def apply_gradient(optimizer, grads, overrides):
  return optimizer.apply_gradient(grads, **overrides)


def run(optimizer, steps=3, **overrides):
  """Takes some steps, compiled once for all tests: definitions are equal."""
  for step in range(steps):
    optimizer = apply_gradient(optimizer, grads(step), overrides)
  return optimizer


def at(tree, i):
  return jax.tree.map(lambda x: x[i], tree)


def program(optimizer, grads, **overrides):
  """Returns the text of what a step computes, which costs no compilation."""
  step_fn = lambda o, g: o.apply_gradient(g, **overrides)
  return str(jax.make_jaxpr(step_fn)(optimizer, grads))


def assert_close(tree, other, rtol=1e-5, atol=1e-6):
  assert jax.tree.structure(tree) == jax.tree.structure(other)
  for x, y in zip(jax.tree.leaves(tree), jax.tree.leaves(other)):
    assert x.dtype == y.dtype
    np.testing.assert_allclose(x, y, rtol, atol)


def assert_equal(tree, other):
  assert_close(tree, other, 0, 0)


@EVERY
def test_no_warning(name):
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    # What selects parameters says itself that it is deprecated.
    warnings.filterwarnings('ignore', '.*traverse_util.Traversal')
    jax.eval_shape(lambda: run(MAKERS[name]().create(params()), 1))


@EVERY
def test_step_counts(name):
  optimizer = MAKERS[name]().create(params())
  assert optimizer.state.step.dtype == jnp.int32
  assert [int(run(optimizer, n).state.step) for n in (0, 1, 3)] == [0, 1, 3]


@EVERY
def test_the_old_optimizer_is_unchanged(name):
  optimizer = MAKERS[name]().create(params())
  before = jax.tree.map(np.array, optimizer)
  run(optimizer, 1)
  assert_equal(before, jax.tree.map(np.array, optimizer))


@EVERY
def test_children_are_state_and_target(name):
  optimizer = MAKERS[name]().create(params())
  state, target = optimizer.state, optimizer.target
  assert jax.tree.leaves(optimizer) == jax.tree.leaves((state, target))
  paths = jax.tree_util.tree_leaves_with_path(optimizer)
  assert jax.tree_util.keystr(paths[0][0]) == '.state.step'
  assert jax.tree_util.keystr(paths[-1][0]) == ".target['dense']['kernel']"


@EVERY
def test_jit(name):
  make = MAKERS[name]
  traces = []

  @jax.jit
  def step_fn(optimizer, grads):
    traces.append(1)
    return optimizer.apply_gradient(grads)

  compiled = make().create(params())
  for step in range(2):
    # A definition that is made anew is equal, so nothing is traced again.
    compiled = step_fn(compiled.replace(optimizer_def=make()), grads(step))
  assert len(traces) == 1
  assert isinstance(compiled, optim.Optimizer)
  assert_close(compiled, run(make().create(params()), 2))


@pytest.mark.parametrize('name', all_but(['own class', 'own subclass'], MAKERS))
def test_jit_agrees_with_steps_that_are_not_compiled(name):
  eager = MAKERS[name]().create(params())
  for step in range(2):
    eager = eager.apply_gradient(grads(step))
  assert_close(run(MAKERS[name]().create(params()), 2), eager)


@EVERY
def test_create_in_jit(name):
  create = lambda p: MAKERS[name]().create(p)
  traced = jax.eval_shape(create, params())
  assert jax.tree.structure(traced) == jax.tree.structure(create(params()))


@EVERY
def test_vmap(name):
  make = MAKERS[name]
  several = jax.tree.map(lambda p: jnp.stack([p, 2 * p + 1]), params())
  several_grads = jax.tree.map(lambda g: jnp.stack([g, -3 * g]), grads())

  @jax.jit  # Each operation by itself would take long to compile.
  @jax.vmap
  def created_and_applied(params, grads):
    return make().create(params).apply_gradient(grads)

  result = created_and_applied(several, several_grads)
  for i in range(2):
    one = make().create(at(several, i))
    assert_close(at(result, i), apply_gradient(one, at(several_grads, i), {}))


@EVERY
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_scan_keeps_dtypes(name, dtype):
  """Neither float32 gradients nor an array as learning rate change them."""
  if name == 'own class':
    pytest.skip('the rule of a user may promote')
  optimizer = MAKERS[name]().create(params(dtype))
  gs = jax.tree.map(lambda *g: jnp.stack(g), *map(grads, range(3)))

  def body(optimizer, g):
    return optimizer.apply_gradient(g, learning_rate=jnp.float32(0.1)), ()

  result, _ = jax.eval_shape(
    lambda *args: jax.lax.scan(body, *args), optimizer, gs
  )
  dtypes = {x.dtype for x in jax.tree.leaves(result.target)}
  assert dtypes == {jnp.dtype(dtype)}


@EVERY
def test_donation(name):
  optimizer = MAKERS[name]().create(params())
  expected = run(optimizer, 1)
  donated = jax.tree.map(jnp.array, optimizer)
  step_fn = jax.jit(lambda o, g: o.apply_gradient(g), donate_argnums=0)
  assert_close(step_fn(donated, grads()), expected)
  # WeightNorm has no use for the target: it keeps direction and scale.
  given = donated.state if name == 'WeightNorm' else donated
  assert any(x.is_deleted() for x in jax.tree.leaves(given))


@EVERY
@pytest.mark.parametrize('pickler', [pickle, cloudpickle])
def test_pickle(name, pickler):
  optimizer = run(MAKERS[name]().create(params()), 1)
  restored = pickler.loads(pickler.dumps(optimizer))
  assert_equal(restored, optimizer)
  assert_equal(run(restored, 1), run(optimizer, 1))


@EVERY
def test_equal_definitions(name):
  make = MAKERS[name]
  assert make() == make()
  assert hash(make()) == hash(make())
  assert make(learning_rate=0.3) != make()
  assert make() != 'another kind'
  trees = [make().create(params()) for _ in range(2)]
  assert jax.tree.structure(trees[0]) == jax.tree.structure(trees[1])


@EVERY
def test_bytes(name):
  pytest.importorskip('msgpack')
  optimizer = run(MAKERS[name]().create(params()))
  data = serialization.to_bytes(optimizer)
  fresh = MAKERS[name]().create(jax.tree.map(jnp.zeros_like, params()))
  restored = serialization.from_bytes(fresh, data)
  assert_equal(jax.tree.map(jnp.asarray, restored), optimizer)
  assert_close(run(restored), run(optimizer))


@EVERY
def test_bytes_are_those_of_flax(name):
  """Flax can write and read the state dict, whose layout it is."""
  flax_serialization = pytest.importorskip('flax.serialization')
  optimizer = run(MAKERS[name]().create(params()))
  state_dict = optimizer.state_dict()
  data = serialization.to_bytes(optimizer)
  assert data == flax_serialization.to_bytes(state_dict)
  restored = optimizer.restore_state(flax_serialization.msgpack_restore(data))
  assert_equal(jax.tree.map(jnp.asarray, restored), optimizer)


@EVERY
def test_state_dict_layout(name):
  optimizer = MAKERS[name]().create(params())
  state_dict = serialization.to_state_dict(optimizer)
  assert state_dict == optimizer.state_dict()
  assert state_dict.keys() == {'target', 'state'}
  assert state_dict['state'].keys() == {'step', 'param_states'}
  assert state_dict['state']['param_states'].keys() == params().keys()


@EVERY
@pytest.mark.parametrize('kind', [dict, FrozenDict])
def test_containers(name, kind):
  """The target keeps its containers, whatever those of the gradients."""
  target = params() if kind is dict else freeze(params())
  other = freeze(grads()) if kind is dict else grads()
  optimizer = MAKERS[name]().create(target)
  result = jax.eval_shape(lambda o, g: o.apply_gradient(g), optimizer, other)
  assert type(result.target) is kind
  assert jax.tree.structure(result) == jax.tree.structure(optimizer)
  plain = MAKERS[name]().create(params())
  assert program(optimizer, other) == program(plain, grads())


@EVERY
def test_state_of_another_container(name):
  optimizer = MAKERS[name]().create(params())
  frozen = optimizer.replace(target=freeze(optimizer.target))
  assert program(frozen, grads()) == program(optimizer, grads())


@EVERY
def test_gradients_of_another_structure(name):
  optimizer = MAKERS[name]().create(params())
  with pytest.raises(ValueError, match='gradients must have the structure'):
    optimizer.apply_gradient({'dense': 1.0})


@EVERY
def test_an_override_is_for_one_step(name):
  optimizer = MAKERS[name]().create(params())
  once = run(optimizer, 1, learning_rate=0.0)
  assert once.optimizer_def == optimizer.optimizer_def
  assert np.any(
    run(once, 3).target['dense']['kernel'] != once.target['dense']['kernel']
  )


@EVERY
def test_a_traced_learning_rate(name):
  optimizer = MAKERS[name]().create(params())
  static = jax.jit(lambda o, g: o.apply_gradient(g, learning_rate=0.3))
  assert_close(run(optimizer, 1, learning_rate=0.3), static(optimizer, grads()))


@pytest.mark.parametrize(
  'name', [n for n in ROWS if hasattr(ROWS[n].make().hyper_params, 'weight_decay')]
)  # fmt: skip
@pytest.mark.parametrize('decay', all_but([0.3], [0.0, 0.3]))
def test_a_traced_weight_decay(name, decay):
  optimizer = ROWS[name].make().create(params())
  static = jax.jit(lambda o, g: o.apply_gradient(g, weight_decay=decay))
  assert_close(
    run(optimizer, 1, weight_decay=decay), static(optimizer, grads())
  )


@EVERY
def test_unknown_hyper_parameter(name):
  optimizer = MAKERS[name]().create(params())
  with pytest.raises(
    TypeError, match=r"__init__\(\) got an unexpected keyword argument 'lr'"
  ) as error:
    optimizer.apply_gradient(grads(), lr=0.1)
  assert 'learning_rate' in str(error.value)


NEED_A_RATE = pytest.mark.parametrize(
  'name', sorted(set(MAKERS) - {'own class'})
)


@NEED_A_RATE
def test_no_learning_rate(name):
  definition = MAKERS[name](learning_rate=None)
  optimizer = definition.create(params())
  with pytest.raises(AssertionError) as error:
    optimizer.apply_gradient(grads())
  assert str(error.value) == 'no learning rate provided.'
  given = MAKERS[name](learning_rate=0.05).create(params())
  assert program(optimizer, grads(), learning_rate=0.05) == program(
    given, grads()
  )


@NEED_A_RATE
def test_a_schedule_as_learning_rate(name):
  optimizer = MAKERS[name](learning_rate=lambda step: 0.1).create(params())
  with pytest.raises(TypeError, match=r'learning_rate=schedule\(optimizer.sta'):
    optimizer.apply_gradient(grads())


@EVERY
def test_hyper_params_replace_all(name):
  optimizer = MAKERS[name]().create(params())
  hyper_params = MAKERS[name](learning_rate=0.01).hyper_params
  assert program(optimizer, grads(), hyper_params=hyper_params) == program(
    optimizer, grads(), learning_rate=0.01
  )


@EVERY
def test_to_optax(name):
  """optax updates alone make the same steps, in a plain optax program."""
  optimizer = MAKERS[name]().create(params())
  transformation = MAKERS[name]().to_optax()
  target = params()
  state = transformation.init(target)
  update = jax.jit(transformation.update)
  for step in range(3):
    updates, state = update(grads(step), state, target)
    target = optax.apply_updates(target, updates)
  assert_close(target, run(optimizer).target)


@EVERY
def test_to_optax_with_overrides(name):
  definition = MAKERS[name](learning_rate=None)
  programs = [
    str(jax.make_jaxpr(t.update)(grads(), t.init(params()), params()))
    for t in (
      definition.to_optax(learning_rate=0.01),
      MAKERS[name](learning_rate=0.01).to_optax(),
    )
  ]
  assert programs[0] == programs[1]


def test_to_optax_with_a_schedule():
  schedule = optax.linear_schedule(0.1, 0.0, 3)
  transformation = optim.Adam().to_optax(learning_rate=schedule)
  update = jax.jit(transformation.update)
  target, state = params(), transformation.init(params())
  optimizer = optim.Adam().create(params())
  for step in range(3):
    updates, state = update(grads(step), state, target)
    target = optax.apply_updates(target, updates)
    rate = schedule(optimizer.state.step)
    optimizer = apply_gradient(optimizer, grads(step), {'learning_rate': rate})
  assert_close(target, optimizer.target)


def test_to_optax_needs_a_learning_rate():
  with pytest.raises(AssertionError, match='no learning rate provided.'):
    optim.Adam().to_optax()


def test_to_optax_of_an_own_rule_needs_the_parameters():
  transformation = PowerDescent(0.1).to_optax()
  with pytest.raises(ValueError, match='PowerDescent needs the parameters'):
    transformation.update(grads(), transformation.init(params()))


SOME = pytest.mark.parametrize(
  'name', ['GradientDescent', 'Adam, decay', 'Adafactor', 'MultiOptimizer']
)


@SOME
def test_sharded_over_devices(name):
  if len(jax.devices()) < 2:
    pytest.skip('needs two devices')
  mesh = jax.sharding.Mesh(jax.devices()[:2], ('device',))
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('device'))

  def place(x):
    return jax.device_put(
      x, rows if x.ndim and x.shape[0] % 2 == 0 else sharding
    )

  optimizer = MAKERS[name]().create(jax.tree.map(place, params()))
  result = apply_gradient(optimizer, jax.tree.map(place, grads()), {})
  assert_close(result.target, run(MAKERS[name]().create(params()), 1).target)


@SOME
def test_replicated_over_devices(name):
  n = min(2, len(jax.local_devices()))
  optimizer = MAKERS[name]().create(params())
  replicated = optimizer.replicate(jax.local_devices()[:n])
  shares = jax.tree.map(
    lambda g: jnp.stack([g * (i + 0.5) * 2 / n for i in range(n)]), grads()
  )
  replicated = jax.pmap(
    lambda o, g: o.apply_gradient(g), axis_name='batch',
    devices=jax.local_devices()[:n],
  )(replicated, shares)  # fmt: skip
  mean = jax.tree.map(lambda g: g.mean(0), shares)
  expected = apply_gradient(optimizer, mean, {})
  assert_close(replicated.unreplicate(), expected)
  saved = replicated.state_dict()
  assert_close(
    jax.tree.map(np.asarray, saved),
    jax.tree.map(np.asarray, expected.state_dict()),
  )
  assert_close(replicated.restore_state(saved), replicated)
