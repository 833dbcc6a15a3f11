"""Definitions as values, errors of states, and the old convenience methods."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax_names import needs_optax

from haiku_state import optim, serialization, struct
from haiku_state.core.frozen_dict import FrozenDict
from haiku_state.optim import adam, base


# Equality: pairs of hyper-parameters, and whether they are the same.
@pytest.mark.parametrize(
  'one, other, equal',
  [
    (0.1, 0.1, True),
    (0.1, 0.2, False),
    (1, 1.0, False),
    (None, None, True),
    (np.float32(0.1), np.float32(0.1), True),
    (np.float32(0.5), 0.5, False),
    (np.array([1.0, 2.0]), np.array([1.0, 2.0]), True),
    (np.array([1.0, 2.0]), np.array([1.0, 3.0]), False),
    (np.zeros(2, 'float32'), np.zeros(2, 'int32'), False),
    (jnp.float32(0.1), jnp.float32(0.1), True),
    (jnp.float32(0.1), jnp.float32(0.2), False),
    (float('nan'), float('nan'), False),
  ],
)
def test_equality_of_hyper_parameters(one, other, equal):
  definitions = optim.Adam(one), optim.Adam(other)
  assert (definitions[0] == definitions[1]) is equal
  if equal:
    assert hash(definitions[0]) == hash(definitions[1])


def test_equality_of_what_has_no_hash():
  value = {1, 2}
  assert optim.Adam(value) == optim.Adam(value)
  assert optim.Adam(value) != optim.Adam({1, 2})
  hash(optim.Adam(value))


def test_equality_of_traced_values_is_identity():
  def program(x):
    assert optim.Adam(x) == optim.Adam(x)
    assert optim.Adam(x) != optim.Adam(x + 0)
    return optim.Adam(x).create(1.0).apply_gradient(1.0).target

  assert jax.jit(program)(0.5) == pytest.approx(0.5, rel=1e-4)


def test_other_attributes_count():
  half = optim.Adafactor(0.1, dtype_momentum=jnp.bfloat16)
  assert half != optim.Adafactor(0.1)
  assert optim.Adam(0.1) != optim.AdaBelief(0.1, eps=1e-8)
  assert optim.WeightNorm(optim.Adam(0.1)) != optim.WeightNorm(optim.LAMB(0.1))


def test_an_array_as_hyper_parameter():
  optimizer = optim.GradientDescent(jnp.array([0.1, 1.0])).create(jnp.ones(2))
  traces = []

  @jax.jit
  def step_fn(optimizer):
    traces.append(1)
    return optimizer.apply_gradient(jnp.ones(2))

  for _ in range(2):
    remade = optim.GradientDescent(jnp.array([0.1, 1.0]))
    optimizer = step_fn(optimizer.replace(optimizer_def=remade))
  np.testing.assert_allclose(optimizer.target, [0.8, -1.0], rtol=1e-6)
  assert len(traces) == 1


def test_repr_names_class_and_hyper_parameters():
  assert repr(optim.GradientDescent(0.1)) == (
    'GradientDescent(_GradientDescentHyperParams(learning_rate=0.1))'
  )


def test_the_learning_rate_may_be_a_vector_or_a_numpy_number():
  for rate in (np.float32(0.5), np.array(0.5), jnp.array(0.5)):
    optimizer = optim.GradientDescent(rate).create(jnp.ones(2))
    result = optimizer.apply_gradient(jnp.ones(2))
    np.testing.assert_array_equal(result.target, [0.5, 0.5])


# Targets of every kind


class Model(struct.PyTreeNode):
  weights: object
  name: str = struct.field(pytree_node=False, default='m')


TARGETS = {
  'array': jnp.ones(2),
  'number': 1.0,
  'NumPy array': np.ones(2, np.float32),
  'tuple with None': (jnp.ones(2), None, [jnp.ones(())]),
  'struct': Model({'a': jnp.ones(2)}),
  'mixed': {'a': (FrozenDict({'b': jnp.ones(2)}), {'c': jnp.ones(1)})},
  'nothing': {},
  'dict of ints': {1: jnp.ones(1), 2: jnp.ones(2)},
}


@pytest.mark.parametrize('name', TARGETS)
@pytest.mark.parametrize(
  'definition', [optim.GradientDescent(0.5), optim.Adam(0.5)]
)
def test_targets(name, definition):
  target = TARGETS[name]
  optimizer = definition.create(target)
  result = optimizer.apply_gradient(target)
  assert jax.tree.structure(result) == jax.tree.structure(optimizer)
  for leaf in jax.tree.leaves(result.target):
    np.testing.assert_allclose(leaf, 0.5, rtol=1e-4)


@needs_optax('0.2.4')
@pytest.mark.parametrize(
  'definition, stays',
  [
    (optim.GradientDescent(0.1), True),
    (optim.Momentum(0.1, 0.2), True),
    (optim.Adam(0.1), False),
    (optim.LARS(0.1), False),
  ],
)
def test_numpy_arrays_stay_where_the_rule_is_plain(definition, stays):
  optimizer = definition.create(np.ones(1))
  state = jax.tree.map(np.array, optimizer.state.param_states)
  new, _ = definition.apply_gradient(
    definition.hyper_params,
    np.ones(1),
    optim.OptimizerState(0, state),
    np.array([3.0]),
  )
  assert isinstance(new, np.ndarray if stays else jax.Array)
  if stays:
    np.testing.assert_array_equal(new, np.array([0.7]))


@pytest.mark.parametrize('param', [1, np.int32(1), jnp.array([1])])
@pytest.mark.parametrize(
  'definition', [optim.GradientDescent(0.25), optim.Momentum(0.25)]
)
def test_integers_are_not_rounded(definition, param):
  optimizer = definition.create(param)
  for _ in range(2):
    optimizer = optimizer.apply_gradient(jnp.ones(jnp.shape(param)))
  moved = 0.5 if isinstance(definition, optim.GradientDescent) else 0.275
  np.testing.assert_allclose(optimizer.target, moved, rtol=1e-6)


def test_replace_of_the_target():
  optimizer = optim.GradientDescent(0.5).create({'w': jnp.ones(2)})
  optimizer = optimizer.replace(target={'w': jnp.zeros(2)})
  result = optimizer.apply_gradient({'w': jnp.ones(2)})
  np.testing.assert_array_equal(result.target['w'], [-0.5, -0.5])


# What a step may not override


def test_rmsprop_cannot_become_centered():
  optimizer = optim.RMSProp(0.1).create({'w': jnp.ones(2)})
  with pytest.raises(ValueError, match='RMSProp needs mg in its state'):
    optimizer.apply_gradient({'w': jnp.ones(2)}, centered=True)


def test_rmsprop_need_not_stay_centered():
  optimizer = optim.RMSProp(0.1, centered=True).create({'w': jnp.ones(2)})
  optimizer = optimizer.apply_gradient({'w': jnp.ones(2)}, centered=False)
  assert optimizer.state.param_states['w'].mg is not None


@pytest.mark.parametrize(
  'override', [{'factored': False}, {'min_dim_size_to_factor': 4}]
)
def test_adafactor_cannot_change_the_layout_of_its_state(override):
  optimizer = optim.Adafactor(0.1).create({'w': jnp.ones((2, 2))})
  (name,) = override
  with pytest.raises(ValueError, match=f'created with {name}='):
    optimizer.apply_gradient({'w': jnp.ones((2, 2))}, **override)


def test_adafactor_heeds_the_parameter_scale():
  optimizer = optim.Adafactor(0.1).create(jnp.full(4, 2.0))
  scaled = optimizer.apply_gradient(jnp.ones(4))
  plain = optimizer.apply_gradient(
    jnp.ones(4), multiply_by_parameter_scale=False
  )
  np.testing.assert_allclose(scaled.target, 1.8, rtol=1e-6)
  np.testing.assert_allclose(plain.target, 1.9, rtol=1e-6)


# Rules of the user's own


def test_a_definition_without_rules():
  definition = optim.OptimizerDef(None)
  with pytest.raises(NotImplementedError, match='init_param_state'):
    definition.create(1.0)
  with pytest.raises(NotImplementedError, match='apply_param_gradient'):
    definition.apply_param_gradient(0, None, 1.0, (), 1.0)


def test_a_subclass_may_change_the_state():
  """As published programs do, with the classes of the module."""

  class Signed(optim.Adam):
    def init_param_state(self, param):
      return adam._AdamParamState(jnp.ones_like(param), jnp.ones_like(param))

  optimizer = Signed(0.1).create(jnp.ones(2))
  np.testing.assert_array_equal(optimizer.state.param_states.grad_ema, [1, 1])
  transformation = Signed(0.1).to_optax()
  updates, _ = transformation.update(
    jnp.ones(2), transformation.init(jnp.ones(2)), jnp.ones(2)
  )
  expected = optimizer.apply_gradient(jnp.ones(2)).target
  moved: Any = optax.apply_updates(jnp.ones(2), updates)
  np.testing.assert_allclose(moved, expected, rtol=1e-6)


def test_a_subclass_may_have_other_hyper_parameters():
  """The state, which it takes over, does not depend on those of its base."""

  @struct.dataclass
  class SignHyperParams:
    rate: float

  class SignMomentum(optim.Momentum):
    def __init__(self, rate):
      optim.OptimizerDef.__init__(self, SignHyperParams(rate))

    def apply_param_gradient(self, step, hyper_params, param, state, grad):
      momentum = state.momentum + jnp.sign(grad)
      return param - hyper_params.rate * momentum, state.replace(
        momentum=momentum
      )

  optimizer = SignMomentum(0.5).create(jnp.ones(2))
  for _ in range(2):
    optimizer = optimizer.apply_gradient(jnp.array([3.0, -4.0]))
  np.testing.assert_array_equal(optimizer.target, [-0.5, 2.5])
  optimizer = optimizer.apply_gradient(jnp.ones(2), rate=1.0)
  np.testing.assert_array_equal(optimizer.target, [-3.5, 3.5])


def test_one_parameter_alone_gets_the_same_numbers():
  definition = optim.Adam(0.1)
  optimizer = definition.create({'w': jnp.ones(3)})
  grad = jnp.array([1.0, -2.0, 3.0])
  new, state = definition.apply_param_gradient(
    jnp.int32(0),
    definition.hyper_params,
    optimizer.target['w'],
    optimizer.state.param_states['w'],
    grad,
  )
  result = optimizer.apply_gradient({'w': grad})
  np.testing.assert_array_equal(new, result.target['w'])
  np.testing.assert_array_equal(
    state.grad_sq_ema, result.state.param_states['w'].grad_sq_ema
  )


# Old convenience methods


def loss_fn(target):
  return jnp.sum(target['w'] ** 2)


def test_compute_gradient():
  optimizer = optim.GradientDescent(0.1).create({'w': jnp.ones(2)})
  loss, grad = optimizer.compute_gradient(loss_fn)
  assert float(loss) == 2.0
  np.testing.assert_array_equal(grad['w'], [2.0, 2.0])
  loss, aux, grad = optimizer.compute_gradients(
    lambda target: (loss_fn(target), {'size': 2})
  )
  assert aux == {'size': 2}
  np.testing.assert_array_equal(grad['w'], [2.0, 2.0])


def test_optimize():
  optimizer = optim.GradientDescent(0.1).create({'w': jnp.ones(2)})
  new, loss = optimizer.optimize(loss_fn, learning_rate=0.5)
  np.testing.assert_array_equal(new.target['w'], [0.0, 0.0])
  new, loss, aux = jax.jit(
    lambda o: o.optimize(lambda target: (loss_fn(target), 'static')[0:1] + (1,))
  )(optimizer)
  np.testing.assert_allclose(new.target['w'], [0.8, 0.8], rtol=1e-6)
  assert aux == 1


def test_unreplicate_of_what_was_not_replicated():
  with pytest.raises(ValueError) as error:
    optim.Adam(0.1).create(1.0).unreplicate()
  assert str(error.value) == (
    'Cannot unreplicate an optimizer that is not replicated.'
  )


# State dicts that flax.optim 0.5.3 wrote (its layout, with made-up numbers)


def leaf(x):
  return np.full(2, x, np.float32)


CHECKPOINTS = {
  'GradientDescent': (optim.GradientDescent(0.1), {}),
  'Momentum': (optim.Momentum(0.1), {'momentum': leaf(1)}),
  'Adam': (optim.Adam(0.1), {'grad_ema': leaf(1), 'grad_sq_ema': leaf(2)}),
  'AdaBelief': (
    optim.AdaBelief(0.1),
    {'grad_ema': leaf(1), 'grad_sq_ema': leaf(2)},
  ),
  'LAMB': (optim.LAMB(0.1), {'grad_ema': leaf(1), 'grad_sq_ema': leaf(2)}),
  'Adadelta': (
    optim.Adadelta(0.1),
    {'sq_avg': leaf(1), 'acc_delta': leaf(2)},
  ),
  'Adagrad': (optim.Adagrad(0.1), {'G': leaf(1)}),
  'RMSProp': (optim.RMSProp(0.1), {'v': leaf(1), 'mg': None}),
  'RMSProp, centered': (
    optim.RMSProp(0.1, centered=True),
    {'v': leaf(1), 'mg': leaf(0.5)},
  ),
  'LARS': (optim.LARS(0.1), {'momentum': leaf(1)}),
  'Adafactor': (
    optim.Adafactor(0.1),
    {
      'v_row': np.zeros(1, np.float32),
      'v_col': np.zeros(1, np.float32),
      'v': leaf(1),
      'm': np.zeros(1, np.float32),
    },
  ),
  'WeightNorm': (
    optim.WeightNorm(optim.Momentum(0.1)),
    {
      'direction_state': {'momentum': leaf(1)},
      'scale_state': {},
      'direction': leaf(2),
      'scale': {},
    },
  ),
  'focus': (
    optim.MultiOptimizer(
      (optim.ModelParamTraversal(lambda p, _: 'x' in p), optim.Adam())
    ),
    None,
  ),
}


@pytest.mark.parametrize('name', CHECKPOINTS)
@pytest.mark.parametrize('kind', [dict, FrozenDict])
def test_old_checkpoints(name, kind):
  definition, param_state = CHECKPOINTS[name]
  saved = {
    'target': {'w': leaf(3)},
    'state': {'step': np.int32(7), 'param_states': {'w': param_state}},
  }
  optimizer = definition.create(kind({'w': jnp.zeros(2)}))
  empty = serialization.to_state_dict(optimizer)
  assert jax.tree.structure(empty) == jax.tree.structure(saved)
  restored = serialization.from_state_dict(optimizer, saved)
  assert type(restored.target) is kind
  assert serialization.to_state_dict(restored) == saved
  stepped = restored.apply_gradient({'w': jnp.ones(2)}, learning_rate=0.1)
  assert int(stepped.state.step) == 8


@pytest.mark.parametrize(
  'saved, words',
  [
    (
      {'target': {}, 'state': {'step': 0, 'param_states': {'w': {}}}},
      "keys {'w'} which are not present in state dict at path optimizer/target",
    ),
    (
      {'target': {'w': 1}, 'state': {'step': 0, 'param_states': {'w': {}}}},
      'Missing field grad_ema in state dict while restoring an instance of'
      ' _AdamParamState, at path optimizer/state/param_states/w',
    ),
  ],
)
def test_checkpoints_of_another_program(saved, words):
  optimizer = optim.Adam(0.1).create({'w': jnp.zeros(2)})
  with pytest.raises(ValueError) as error:
    optimizer.restore_state(saved)
  assert words in str(error.value)


def test_names_are_those_of_flax():
  classes = (
    'OptimizerState', 'OptimizerDef', 'Optimizer', 'MultiOptimizer',
    'ModelParamTraversal',
  )  # fmt: skip
  for name in classes:
    assert getattr(base, name) is getattr(optim, name)
  for module, name in [
    ('sgd', 'GradientDescent'), ('momentum', 'Momentum'), ('adam', 'Adam'),
    ('adabelief', 'AdaBelief'), ('adadelta', 'Adadelta'),
    ('adafactor', 'Adafactor'), ('adagrad', 'Adagrad'), ('lamb', 'LAMB'),
    ('lars', 'LARS'), ('rmsprop', 'RMSProp'), ('weight_norm', 'WeightNorm'),
    ('dynamic_scale', 'DynamicScale'),
  ]:  # fmt: skip
    assert getattr(getattr(optim, module), name) is getattr(optim, name)


@pytest.mark.parametrize('state', [{}, {'target': 3}, {'state': {}}])
def test_state_dict_that_is_not_whole(state):
  with pytest.raises(KeyError, match='is missing among'):
    optim.Adam(0.1).restore_state(3, {}, state)
