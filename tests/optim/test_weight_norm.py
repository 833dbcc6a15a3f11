"""The optimizer WeightNorm against its formula, in NumPy."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optimizer_table
import pytest
from jax_names import enable_x64
from optimizer_table import ROWS

from haiku_state import optim, serialization


def split(p, eps):
  axes = tuple(range(p.ndim - 1))
  scale = np.sqrt((p**2).sum(axes, keepdims=True) + eps)
  return p / scale, scale


def merge(direction, scale, eps):
  axes = tuple(range(direction.ndim - 1))
  square = (direction**2).sum(axes, keepdims=True) + eps
  return direction * scale / np.sqrt(square)


def pair_grad(direction, scale, grad, eps, decay):
  """Differentiates `merge`, by hand."""
  axes = tuple(range(direction.ndim - 1))
  norm = np.sqrt((direction**2).sum(axes, keepdims=True) + eps)
  along = (grad * direction).sum(axes, keepdims=True)
  direction_grad = scale * (grad / norm - direction * along / norm**3)
  return direction_grad + decay * direction, along / norm


def run_formula(row, wn_eps, wn_decay, p, steps, grad_of):
  hp = types.SimpleNamespace(**vars(row.make().hyper_params))
  direction, scale = split(p, wn_eps)
  states = [row.init(hp, direction), row.init(hp, scale)]
  for step in range(steps):
    grads = pair_grad(direction, scale, grad_of(step), wn_eps, wn_decay)
    direction, states[0] = row.rule(
      hp, step + 1, direction, states[0], grads[0]
    )
    scale, states[1] = row.rule(hp, step + 1, scale, states[1], grads[1])
  return merge(direction, scale, wn_eps), direction, scale


@pytest.mark.parametrize('leaf', ['conv', 'kernel'])
@pytest.mark.parametrize(
  'inner', ['GradientDescent', 'Adam', 'Momentum, decay']
)
@pytest.mark.parametrize('wn_eps, wn_decay', [(1e-8, 0), (1e-2, 0.3)])
def test_formula(inner, wn_eps, wn_decay, leaf):
  def pick(tree):
    return {**tree, **tree['dense']}[leaf]

  row = ROWS[inner]
  definition = optim.WeightNorm(row.make(), wn_decay, wn_eps)
  with enable_x64(True):
    optimizer = definition.create(jnp.asarray(pick(optimizer_table.params())))
    step_fn = jax.jit(lambda o, g: o.apply_gradient(g))
    for step in range(50):
      optimizer = step_fn(optimizer, pick(optimizer_table.grads(step)))
    param, direction, scale = run_formula(
      row, wn_eps, wn_decay, pick(optimizer_table.params()), 50,
      lambda step: pick(optimizer_table.grads(step)),
    )  # fmt: skip
    state = optimizer.state.param_states
    for found, expected in [
      (optimizer.target, param), (state.direction, direction), (state.scale, scale),
    ]:  # fmt: skip
      np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize('shape', [(), (1,), (3,), (1, 3)])
def test_parameters_of_one_vector_are_not_split(shape):
  definition = optim.WeightNorm(optim.Momentum(0.1), wn_decay=5.0)
  optimizer = definition.create(jnp.ones(shape))
  state = optimizer.state.param_states
  assert (state.scale, state.scale_state) == ((), ())
  plain = optim.Momentum(0.1).create(jnp.ones(shape))
  for _ in range(2):
    optimizer = optimizer.apply_gradient(jnp.ones(shape))
    plain = plain.apply_gradient(jnp.ones(shape))
  np.testing.assert_array_equal(optimizer.target, plain.target)


def test_what_the_optimizer_inside_sees():
  """Its focus can tell directions from scales by their paths."""
  inner = optim.MultiOptimizer(
    (
      optim.ModelParamTraversal(lambda path, _: path.startswith('/direction')),
      optim.GradientDescent(0.1),
    )
  )
  optimizer = optim.WeightNorm(inner).create({'w': jnp.eye(3)})
  before = optimizer.state.param_states['w']
  after = optimizer.apply_gradient({'w': jnp.ones((3, 3))})
  after = after.state.param_states['w']
  assert jnp.any(after.direction != before.direction)
  np.testing.assert_array_equal(after.scale, before.scale)


def test_overrides_for_inside_and_outside():
  definition = optim.WeightNorm(optim.GradientDescent(0.1), 0.2, 0.3)
  hyper_params = definition.update_hyper_params(learning_rate=1.0, wn_decay=2.0)
  assert hyper_params.inner.learning_rate == 1.0
  assert (hyper_params.wn_decay, hyper_params.wn_eps) == (2.0, 0.3)
  whole = definition.update_hyper_params(hyper_params=hyper_params, wn_eps=4.0)
  assert whole == hyper_params.replace(wn_eps=4.0)
  inner = definition.hyper_params.inner.replace(learning_rate=5.0)
  assert definition.update_hyper_params(hyper_params=inner).inner == inner


def test_checkpoints_of_flax_0_3():
  """They have, beside the states, what the direction was multiplied by."""
  inner = optim.Momentum(0.1)
  optimizer = optim.WeightNorm(inner).create(
    {'bias': jnp.ones(2), 'kernel': jnp.full((3, 2), 4.0)}
  )
  direction = np.arange(1.0, 7.0, dtype=np.float32).reshape(3, 2)
  mult = np.array([[2.0, 0.5]], np.float32)
  saved = {
    'target': {'bias': np.zeros(2), 'kernel': direction * mult},
    'state': {
      'step': np.int32(3),
      'param_states': {
        'bias': {
          'direction_state': {'momentum': np.ones(2)},
          'scale_state': {},
          'mult': {},
        },
        'kernel': {
          'direction_state': {'momentum': direction},
          'scale_state': {'momentum': mult},
          'mult': mult,
        },
      },
    },
  }
  restored = serialization.from_state_dict(optimizer, saved)
  assert jax.tree.structure(restored) == jax.tree.structure(optimizer)
  kernel = restored.state.param_states['kernel']
  np.testing.assert_allclose(kernel.direction, direction)
  assert restored.state.param_states['bias'].scale == ()
  still = restored.apply_gradient(
    jax.tree.map(jnp.zeros_like, restored.target), learning_rate=0.0
  )
  np.testing.assert_allclose(
    still.target['kernel'], direction * mult, rtol=1e-6
  )
  np.testing.assert_array_equal(still.target['bias'], [0, 0])


def test_half_precision_stays():
  optimizer = optim.WeightNorm(optim.Adam(0.1)).create(
    jnp.ones((3, 2), jnp.bfloat16)
  )
  optimizer = optimizer.apply_gradient(jnp.ones((3, 2), jnp.float32))
  assert {x.dtype for x in jax.tree.leaves(optimizer.target)} == {
    jnp.dtype(jnp.bfloat16)
  }
