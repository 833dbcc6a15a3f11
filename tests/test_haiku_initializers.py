"""Initializers of Haiku where linen takes an initializer."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layers_compare import assert_same_operations

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
  shapes = assert_same_operations(ours.init, theirs.init, KEY, x)
  assert_same_operations(ours.apply, theirs.apply, shapes, x)
  f = hk.transform(lambda x: make(hk.initializers.RandomNormal())(x))
  params = jax.eval_shape(f.init, KEY, x)
  jax.eval_shape(f.apply, params, None, x)


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


# --- Keys that nobody looks at -----------------------------------------------


class Ones(nn.Module):
  @nn.compact
  def __call__(self, x):
    return x * self.param('w', lambda key, shape: jnp.ones(shape), x.shape[1:])


def key_after(make):
  """Returns the key that Haiku hands out after a module has initialized."""

  def f(x):
    make()(x)
    hk.set_state('key', hk.next_rng_key())

  return hk.transform_with_state(f).init(KEY, X)[1]['~']['key']


@pytest.mark.parametrize(
  'ours, haikus',
  [
    (lambda: nn.Dense(3), lambda: hk.Linear(3)),
    (
      lambda: nn.Dense(3, bias_init=nn.initializers.constant(2.0)),
      lambda: hk.Linear(3),
    ),
    (nn.LayerNorm, lambda: hk.LayerNorm(-1, True, True)),
    (Ones, lambda: hk.Bias()),
  ],
)
def test_a_key_is_drawn_where_it_is_looked_at(ours, haikus):
  np.testing.assert_array_equal(key_after(ours), key_after(haikus))


@pytest.mark.parametrize(
  'make',
  [
    nn.LayerNorm,
    nn.remat(nn.LayerNorm),
    nn.BatchNorm,
    Ones,
    lambda: nn.Dense(3, kernel_init=nn.initializers.ones),
  ],
)
def test_no_key_is_needed_where_none_is_looked_at(make):
  def f(x):
    module = make()
    is_norm = isinstance(module, nn.BatchNorm)
    return module(x, use_running_average=False) if is_norm else module(x)

  hk.transform_with_state(f).init(None, X)


def test_a_function_that_begins_to_look_at_its_key_is_given_one():
  made = []

  class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
      return x + self.param('w', lambda key, shape: made[-1](key, shape), (4,))

  for init in (lambda key, shape: jnp.zeros(shape), jax.random.normal):
    made.append(init)
    f = hk.transform(lambda x: Net()(x))
    a, b = (f.init(jax.random.PRNGKey(seed), X)['net']['w'] for seed in (1, 2))
  assert (a != b).all()
