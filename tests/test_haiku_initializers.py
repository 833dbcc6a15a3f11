"""Initializers of Haiku where linen takes an initializer."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haiku_state import linen as nn

KEY = jax.random.PRNGKey(0)
X = jax.random.normal(jax.random.PRNGKey(1), (3, 4))

INITIALIZERS = {
  'constant': hk.initializers.Constant(0.5),
  'identity': hk.initializers.Identity(),
  'orthogonal': hk.initializers.Orthogonal(),
  'normal': hk.initializers.RandomNormal(stddev=2.0),
  'uniform': hk.initializers.RandomUniform(),
  'truncated normal': hk.initializers.TruncatedNormal(),
  'uniform scaling': hk.initializers.UniformScaling(),
  'variance scaling': hk.initializers.VarianceScaling(2.0, 'fan_avg'),
}
each = pytest.mark.parametrize('name', INITIALIZERS)


@each
def test_a_layer_in_a_haiku_function_draws_as_haiku_s_own(name):
  init = INITIALIZERS[name]
  ours = hk.transform(lambda x: nn.Dense(4, kernel_init=init)(x))
  theirs = hk.transform(lambda x: hk.Linear(4, w_init=init)(x))
  for _ in range(2):
    np.testing.assert_array_equal(
      ours.init(KEY, X)['dense']['kernel'], theirs.init(KEY, X)['linear']['w']
    )


class Params(nn.Module):
  initializer: object

  @nn.compact
  def __call__(self, x):
    w = self.param('w', self.initializer, (4, 4))
    v = self.variable('v', 'v', self.initializer, (4, 4))
    return x @ w + v.value[0]


@each
def test_parameters_and_variables(name):
  model = Params(INITIALIZERS[name])
  for _ in range(2):
    variables = model.init(KEY, X)
    again = jax.jit(model.init)(KEY, X)
    for col, leaf in (('params', 'w'), ('v', 'v')):
      assert variables[col][leaf].shape == (4, 4)
      np.testing.assert_allclose(
        variables[col][leaf], again[col][leaf], 1e-5, 1e-6
      )
  assert model.apply(variables, X).shape == (3, 4)
  f = hk.transform_with_state(lambda x: model.clone(name='m')(x))
  params, state = f.init(KEY, X)
  assert params['m']['w'].dtype == state['m']['v:v'].dtype == jnp.float32
  f.apply(params, state, None, X)


LAYERS = {
  'dense': (lambda init: nn.Dense(4, kernel_init=init), X),
  'dense general': (lambda init: nn.DenseGeneral((2, 2), kernel_init=init), X),
  'conv': (lambda init: nn.Conv(2, (3,), kernel_init=init), X),
  'embed': (lambda init: nn.Embed(5, 4, embedding_init=init), jnp.arange(3)),
  'norm': (lambda init: nn.LayerNorm(scale_init=init), X),
  'cell': (
    lambda init: nn.RNN(nn.LSTMCell(4, kernel_init=init, carry_init=init)),
    X[None],
  ),
  'attention': (
    lambda init: nn.MultiHeadDotProductAttention(2, kernel_init=init),
    X[None],
  ),
  'boxed': (
    lambda init: nn.Dense(
      4, kernel_init=nn.with_partitioning(init, ('a', 'b'))
    ),
    X,
  ),
  'logical': (
    lambda init: nn.Dense(
      4, kernel_init=nn.with_logical_partitioning(init, ('a', 'b'))
    ),
    X,
  ),
  'lifted': (lambda init: nn.remat(nn.Dense)(4, kernel_init=init), X),
}


@pytest.mark.parametrize('layer', LAYERS)
def test_layers(layer):
  make, x = LAYERS[layer]
  ours, theirs = (
    make(hk.initializers.Constant(0.5)),
    make(nn.initializers.constant(0.5)),
  )
  got, want = ours.init(KEY, x), theirs.init(KEY, x)
  jax.tree.map(np.testing.assert_array_equal, got, want)
  y = ours.apply(want, x)
  jax.tree.map(np.testing.assert_array_equal, y, theirs.apply(want, x))
  f = hk.transform(lambda x: make(hk.initializers.RandomNormal())(x))
  params = f.init(KEY, x)
  f.apply(params, None, x)


def draws(key, shape, dtype):
  del key
  return jax.random.uniform(hk.next_rng_key(), shape, dtype)


@pytest.mark.parametrize('features', [13, 17])
def test_a_function_that_draws_from_haiku_s_keys(features):
  f = hk.transform(lambda x: nn.Dense(features, kernel_init=draws)(x))
  first, second = (f.init(KEY, X)['dense']['kernel'] for _ in range(2))
  np.testing.assert_array_equal(first, second)
  model = nn.Dense(features, kernel_init=draws)
  first, second = (model.init(KEY, X)['params']['kernel'] for _ in range(2))
  np.testing.assert_array_equal(first, second)
  # In apply its shape is looked at, and nothing is drawn.
  assert model.apply(model.init(KEY, X), X).shape == (3, features)
  assert f.apply(f.init(KEY, X), None, X).shape == (3, features)


def test_checks_of_shapes_draw_nothing():
  def f(x):
    nn.Dense(3, kernel_init=draws)(x)
    return jax.random.uniform(hk.next_rng_key())

  f = hk.transform(f)
  g = hk.transform(lambda x: jax.random.uniform(hk.next_rng_key()))
  params = f.init(KEY, X)
  assert f.apply(params, KEY, X) == g.apply({}, KEY, X)
