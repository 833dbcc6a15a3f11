"""Haiku functions as modules, modules as Haiku functions."""

import collections

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haiku_state import errors, interop
from haiku_state import linen as nn

KEY = jax.random.PRNGKey(0)
X = jnp.arange(6.0).reshape(2, 3)


def assert_same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


def plain(tree):
  return jax.tree.map(lambda x: x, nn.FrozenDict(tree).unfreeze())


# --- Haiku functions as modules ----------------------------------------------


def with_norm(x, is_training=True):
  w = hk.get_parameter('w', (3,), init=jnp.ones)
  x = hk.nets.MLP([4, 3])(x) * w
  return hk.BatchNorm(True, True, 0.9)(x, is_training)


def counting(x):
  n = hk.get_state('n', (), init=jnp.zeros)
  hk.set_state('n', n + 1)
  return hk.Linear(2)(x) + n


FUNCTIONS = {
  'transform': (hk.transform(lambda x: hk.Linear(2)(x)), []),
  'no parameters': (hk.transform(lambda x: x + 1), []),
  'norm': (hk.transform_with_state(with_norm), ['state']),
  'counting': (hk.transform_with_state(counting), ['state']),
}


@pytest.mark.parametrize('name', FUNCTIONS)
def test_function_as_module(name):
  f, mutable = FUNCTIONS[name]
  stateful = (
    f if isinstance(f, hk.TransformedWithState) else hk.with_empty_state(f)
  )
  module = interop.as_module(f)
  out, variables = module.init_with_output(KEY, X)
  params, state = interop.to_haiku(variables)
  want_params, want_state = jax.eval_shape(stateful.init, KEY, X)
  assert jax.tree.map(jnp.shape, (params, state)) == jax.tree.map(
    jnp.shape, (want_params, want_state)
  )
  want, _ = stateful.apply(params, state, None, X)
  assert_same(out, want)
  for _ in range(2):
    y, new = jax.jit(lambda v: module.apply(v, X, mutable=mutable))(variables)
    want, state = jax.jit(stateful.apply)(params, state, None, X)
    assert_same(y, want)
    assert_same(interop.to_haiku(new)[1] if mutable else state, state)
    variables = {**variables, **new}


def test_module_inside_a_module():
  class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
      f = interop.as_module(FUNCTIONS['norm'][0], name='f')
      return nn.Dense(2)(f(x) + f(x))

  variables = Model().init(KEY, X)
  assert sorted(variables['params']) == ['Dense_0', 'f']
  params, state = interop.to_haiku(
    {col: variables[col]['f'] for col in ('params', 'state')}
  )
  f = FUNCTIONS['norm'][0]
  y1, state = f.apply(params, state, None, X)
  y2, state = f.apply(params, state, None, X)
  y, new = Model().apply(variables, X, mutable=['state'])
  want = nn.Dense(2).apply({'params': variables['params']['Dense_0']}, y1 + y2)
  assert_same(y, want)
  assert_same(interop.to_haiku({'state': new['state']['f']})[1], state)


def test_collection_can_be_chosen():
  f = FUNCTIONS['norm'][0]
  module = interop.as_module(f, collection='batch_stats')
  variables = module.init(KEY, X)
  assert sorted(variables) == ['batch_stats', 'params']
  _, new = module.apply(variables, X, mutable=['batch_stats'])
  assert list(new) == ['batch_stats']
  module = interop.as_module(
    f, collection=lambda path, name: 'counts' if name == 'counter' else 'stats'
  )
  variables = module.init(KEY, X)
  assert sorted(variables) == ['counts', 'params', 'stats']
  assert len(jax.tree.leaves(variables['counts'])) == 2
  _, new = module.apply(variables, X, mutable=['counts', 'stats'])
  assert int(jax.tree.leaves(new['counts'])[0]) == 1


def noisy(x):
  return x + jax.random.normal(hk.next_rng_key(), x.shape)


@pytest.mark.parametrize('stream', ['haiku', 'apply', 'dropout', 'params'])
def test_streams(stream):
  module = interop.as_module(hk.transform(noisy))
  a = module.apply({}, X, rngs={stream: KEY})
  b = module.apply({}, X, rngs={stream: KEY})
  assert_same(a, b)
  assert not np.array_equal(a, X)
  assert not np.array_equal(
    a, module.apply({}, X, rngs={stream: jax.random.PRNGKey(1)})
  )


def test_stream_can_be_chosen_and_missing_key_is_named():
  module = interop.as_module(hk.transform(noisy), stream='noise')
  assert module.apply({}, X, rngs={'noise': KEY}).shape == X.shape
  with pytest.raises(errors.InvalidRngError, match="rngs={'noise': key}"):
    module.apply({}, X)
  with pytest.raises(errors.InvalidRngError, match="rngs={'haiku': key}"):
    interop.as_module(hk.transform(noisy)).apply({}, X)


def late(x):
  if not hk.running_init():
    n = hk.get_state('late', (), init=jnp.zeros)
    hk.set_state('late', n + 1)
  return hk.Linear(2)(x)


def test_state_first_made_in_apply_is_kept():
  module = interop.as_module(hk.transform_with_state(late))
  variables = module.init(KEY, X)
  assert 'state' not in variables
  _, new = module.apply(variables, X, mutable=['state'])
  assert float(new['state']['late']) == 1
  _, new = module.apply({**variables, **new}, X, mutable=['state'])
  assert float(new['state']['late']) == 2


def test_changed_state_must_be_mutable():
  module = interop.as_module(FUNCTIONS['norm'][0])
  variables = module.init(KEY, X)
  with pytest.raises(errors.ModifyScopeVariableError, match='state'):
    module.apply(variables, X)
  assert module.apply(variables, X, is_training=False).shape == X.shape


def autoencoder(kind):
  def f():
    encoder, decoder = hk.Linear(2, name='enc'), hk.Linear(3, name='dec')

    def template(x):
      return decoder(encoder(x))

    return template, kind(encoder, decoder)

  return f


Methods = collections.namedtuple('Methods', 'encode decode')
KINDS = {
  'namedtuple': (Methods, ['encode', 'decode']),
  'dict': (lambda e, d: {'encode': e, 'decode': d}, ['encode', 'decode']),
  'tuple': (lambda e, d: (e, d), ['apply_0', 'apply_1']),
  'nested': (lambda e, d: {'a': {'b': e}, 'c': d}, ['a_b', 'c']),
}


@pytest.mark.parametrize('with_state', [False, True])
@pytest.mark.parametrize('kind', KINDS)
def test_multi_transform_as_module(kind, with_state):
  make, (encode, decode) = KINDS[kind]
  transform = (
    hk.multi_transform_with_state if with_state else hk.multi_transform
  )
  module = interop.as_module(transform(autoencoder(make)))
  variables = module.init(KEY, X)
  assert sorted(variables['params']) == ['dec', 'enc']
  code = module.apply(variables, X, method=encode)
  enc = variables['params']['enc']
  np.testing.assert_allclose(code, X @ enc['w'] + enc['b'], 1e-5)
  assert module.apply(variables, code, method=decode).shape == X.shape
  assert sorted(module.init(KEY, X, method=encode)['params']) == ['dec', 'enc']
  with pytest.raises(TypeError, match=f"'{encode}'"):
    module.apply(variables, X)


def test_what_is_no_transformed_function():
  with pytest.raises(TypeError, match='hk.transform'):
    interop.as_module(lambda x: x)
  with pytest.raises(ValueError, match='"init"'):
    interop.as_module(
      hk.multi_transform(autoencoder(lambda e, d: {'init': e, 'd': d}))
    )


# --- Modules as Haiku functions ----------------------------------------------


class Model(nn.Module):
  def setup(self):
    self.dense = nn.Dense(3)
    self.norm = nn.BatchNorm(momentum=0.9)

  def __call__(self, x, train=True):
    return self.decode(self.dense(x), train)

  def decode(self, x, train=True):
    return self.norm(x, use_running_average=not train)


class Noisy(nn.Module):
  @nn.compact
  def __call__(self, x):
    n = self.variable('counts', 'n', lambda: jnp.zeros(()))
    n.value += 1
    if not self.is_initializing():
      self.variable('late', 'n', lambda: jnp.ones(()))
    return nn.Dropout(0.5, deterministic=False)(nn.Dense(3)(x))


def test_module_as_transformed():
  f = interop.as_transformed(Model())
  params, state = f.init(KEY, X)
  variables = Model().init(KEY, X)
  assert_same((params, state), interop.to_haiku(variables, 'model'))
  y, state = jax.jit(f.apply)(params, state, None, X)
  want, new = jax.jit(
    lambda: Model().apply(variables, X, mutable=['batch_stats'])
  )()
  assert_same(y, want)
  assert_same(state, interop.to_haiku(new, 'model')[1])
  # The trees are those of the module inside of a Haiku function.
  native = hk.transform_with_state(lambda x: Model()(x)).init(KEY, X)
  assert jax.tree.structure(native) == jax.tree.structure((params, state))


def test_module_as_transformed_keeps_keys_and_late_state():
  f = interop.as_transformed(Noisy(), streams=('params', 'dropout'), root='r')
  params, state = f.init(KEY, X)
  assert set(state) == {'r'} and set(params) == {'r/Dense_0'}
  _, dropout = jax.random.split(KEY)
  y, state = f.apply(params, state, KEY, X)
  variables = interop.from_haiku(params, {'r': {'counts:n': jnp.ones(())}}, 'r')
  want = Noisy().apply(variables, X, rngs={'dropout': dropout}, mutable=True)[0]
  assert_same(y, want)
  assert sorted(state['r']) == ['counts:n', 'late:n']
  assert float(state['r']['counts:n']) == 2
  one = interop.as_transformed(Noisy())
  one_params = {'noisy/Dense_0': params['r/Dense_0']}
  y, _ = one.apply(one_params, {}, KEY, X)
  want = Noisy().apply(variables, X, rngs={'params': KEY}, mutable=True)[0]
  assert_same(y, want)


@pytest.mark.parametrize(
  'methods', [Methods('__call__', 'decode'), {'d': 'decode'}]
)
def test_module_as_multi_transformed(methods):
  f = interop.as_multi_transformed(Model(), methods)
  assert jax.tree.structure(f.apply) == jax.tree.structure(methods)
  params, state = f.init(KEY, X)
  y, state = jax.tree.leaves(f.apply)[-1](params, state, None, X)
  assert y.shape == X.shape and list(state) == ['model/norm']


def test_there_and_back():
  f = interop.as_transformed(interop.as_module(FUNCTIONS['norm'][0]), root='r')
  params, state = f.init(KEY, X)
  variables = interop.from_haiku(params, state, 'r')
  want = FUNCTIONS['norm'][0].apply(*interop.to_haiku(variables), None, X)
  y, new = f.apply(params, state, None, X)
  assert_same(y, want[0])
  assert_same(interop.to_haiku(interop.from_haiku({}, new, 'r'))[1], want[1])
