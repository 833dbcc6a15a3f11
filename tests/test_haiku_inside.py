"""Haiku's modules inside of linen-style ones: names, places and state.

Inside of a linen-style module they follow linen's rules where the two meet.
"""

import functools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layers_compare import as_dict

from haiku_state import errors, interop, serialization
from haiku_state import linen as nn

KEY = jax.random.PRNGKey(0)
X = jax.random.normal(jax.random.PRNGKey(1), (3, 4))

shapes = functools.partial(jax.tree.map, jnp.shape)

# --- A lifted function names them as the plain function would ----------------


def two(module, x):
  del module
  return hk.Linear(4)(hk.Linear(4, name='named')(x))


LIFTED = {
  'remat': nn.remat,
  'jit': nn.jit,
  'a partial': lambda fn: nn.remat(functools.partial(fn)),
  'a lambda': lambda fn: nn.remat(lambda module, x: fn(module, x)),
  'vmap': lambda fn: nn.vmap(
    fn, variable_axes={'params': None}, split_rngs={'params': False}
  ),
  'map_variables': lambda fn: (
    lambda m, x: nn.map_variables(fn, 'params', init=m.is_initializing())(m, x)
  ),
  'twice': lambda fn: nn.remat(nn.jit(fn)),
  'in another': lambda fn: nn.jit(lambda m, x: nn.remat(fn)(m, x)),
}


class Calls(nn.Module):
  """Calls a function between Haiku's own layers, in one of two methods."""

  lift: str = ''
  method: str = '__call__'

  @nn.compact
  def __call__(self, x):
    return self.body(x) if self.method == '__call__' else self.encode(x)

  def encode(self, x):
    return self.body(x)

  @hk.transparent
  def body(self, x):
    fn = LIFTED[self.lift](two) if self.lift else two
    x = fn(self, hk.Linear(4)(x))
    if self.method == '__call__':
      x = nn.Dense(4)(x)
    return hk.Linear(4)(fn(self, hk.Linear(4)(x)))


@pytest.mark.parametrize('lift', LIFTED)
@pytest.mark.parametrize('method', ['__call__', 'encode'])
def test_lifting_a_function_renames_nothing(lift, method):
  plain, lifted = Calls('', method), Calls(lift, method)
  want = as_dict(plain.init(KEY, X))
  assert shapes(as_dict(jax.eval_shape(lifted.init, KEY, X))) == shapes(want)
  y = plain.apply(want, X)
  for _ in range(2):  # A function that is compiled does not run again.
    np.testing.assert_allclose(lifted.apply(want, X), y, 1e-5, 1e-6)


@pytest.mark.parametrize('lift', LIFTED)
def test_lifting_a_function_renames_nothing_in_a_haiku_function(lift):
  plain = hk.transform(lambda x: Calls()(x))
  lifted = hk.transform(lambda x: Calls(lift)(x))
  params = plain.init(KEY, X)
  assert shapes(jax.eval_shape(lifted.init, KEY, X)) == shapes(params)
  y = plain.apply(params, None, X)
  np.testing.assert_allclose(lifted.apply(params, None, X), y, 1e-5, 1e-6)


def test_a_lifted_method_is_named_as_a_method():
  class Net(nn.Module):
    @nn.remat
    def encode(self, x):
      return hk.Linear(4)(x)

    @nn.compact
    def __call__(self, x):
      return hk.Linear(4)(self.encode(x))

  params = Net().init(KEY, X)['params']
  assert set(params) == {'~encode', 'linear'}


# --- One namespace -----------------------------------------------------------


def ours(x):
  return nn.LayerNorm(name='layer_norm')(x)


def haikus(x):
  return hk.LayerNorm(-1, True, False)(x)


class InOrder(nn.Module):
  fns: tuple = ()

  @nn.compact
  def __call__(self, x):
    for fn in self.fns:
      x = fn(x)
    return x


class InSetup(nn.Module):
  def setup(self):
    self.linear = nn.Dense(4)

  def __call__(self, x):
    return hk.Linear(4)(self.linear(x))


@pytest.mark.parametrize(
  'module',
  [InOrder((ours, haikus)), InOrder((haikus, ours)), InSetup()],
  ids=['ours first', "Haiku's first", 'in setup'],
)
def test_one_name_for_both_kinds_is_an_error(module):
  with pytest.raises(errors.NameInUseError, match='"(layer_norm|linear)"'):
    module.init(KEY, X)


def test_in_a_haiku_function_haiku_finds_another_name():
  f = hk.transform(lambda x: InOrder((ours, haikus))(x))
  params = f.init(KEY, X)
  assert set(params) == {'in_order/layer_norm', 'in_order/layer_norm_1'}
  want = haikus_norm(params['in_order/layer_norm_1']['scale'] * 2)
  params['in_order/layer_norm_1']['scale'] *= 2
  np.testing.assert_allclose(f.apply(params, None, X), want, 1e-4, 1e-5)
  with pytest.raises(errors.NameInUseError):
    hk.transform(lambda x: InOrder((haikus, ours))(x)).init(KEY, X)


def haikus_norm(scale):
  x = X - X.mean(-1, keepdims=True)
  x = x / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)
  x = x - x.mean(-1, keepdims=True)
  return scale * x / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)


def test_own_parameters_and_name_scopes_of_haiku_are_no_clash():
  class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = x + hk.get_parameter('z', (4,), init=jnp.ones)
      dense = nn.Dense(4, name='dense')
      with hk.name_scope('other'):
        x = x + hk.get_parameter('z', (4,), init=jnp.ones)
      x = dense(x)
      # Read from outside of its own method.
      assert dense.get_variable('params', 'kernel').shape == (4, 4)
      return x + dense.variables['params']['bias']

  variables = Net().init(KEY, X)
  assert set(variables['params']) == {'z', 'dense', 'other'}
  Net().apply(variables, X)


# --- Forced names ------------------------------------------------------------


def shared_layers(module, x):
  del module
  x = hk.Linear(4, name=hk.force_name('shared/w'))(x)
  return hk.BatchNorm(True, True, 0.9, name=hk.force_name('far/bn'))(x, True)


class Forced(nn.Module):
  lift: str = ''
  depth: int = 1

  @nn.compact
  def __call__(self, x):
    if self.depth:
      return Forced(self.lift, self.depth - 1)(x)
    fn = LIFTED[self.lift](shared_layers) if self.lift else shared_layers
    return hk.Linear(4, name=hk.force_name('shared/w'))(fn(self, x))


FORCED = {
  'params': {
    'haiku:/shared/w': {'b': (4,), 'w': (4, 4)},
    'haiku:/far/bn': {'offset': (1, 4), 'scale': (1, 4)},
  },
  'state': {
    f'haiku:/far/bn/~/{name}': {
      'average': (1, 4),
      'counter': (),
      'hidden': (1, 4),
    }
    for name in ('mean_ema', 'var_ema')
  },
}


def by_haiku(params, state):
  f = hk.transform_with_state(
    lambda x: hk.Linear(4, name=hk.force_name('shared/w'))(
      shared_layers(None, x)
    )
  )
  return f.apply(params, state, None, X)


@pytest.mark.parametrize('lift', ['', 'remat', 'jit'])
@pytest.mark.parametrize('depth', [0, 1])
def test_what_has_a_forced_name_is_kept_and_found(lift, depth):
  model = Forced(lift, depth)
  variables = model.init(KEY, X)
  assert shapes(as_dict(variables)) == FORCED
  params, state = interop.to_haiku(variables, 'forced')
  assert set(params) == {'shared/w', 'far/bn'}
  again = interop.from_haiku(params, state, 'forced')
  assert shapes(as_dict(again)) == FORCED
  want, want_state = by_haiku(params, state)

  def check(y, new):
    np.testing.assert_allclose(y, want, 1e-5, 1e-6)
    _, new = interop.to_haiku(new, 'forced')
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, 1e-5, 1e-6),
      dict(new),
      {k: v for k, v in want_state.items() if k in new},
    )

  apply = functools.partial(model.apply, mutable=['state'])
  check(*apply(variables, X))
  check(*jax.jit(apply)(variables, X))
  restored = serialization.from_bytes(
    variables, serialization.to_bytes(variables)
  )
  check(*apply(restored, X))
  bound = model.bind(variables, mutable=['state'])
  check(bound(X), {'state': bound.variables['state']})


def test_forced_names_below_a_scan():
  class Step(nn.Module):
    @nn.compact
    def __call__(self, carry, _):
      return hk.Linear(4, name=hk.force_name('w'))(carry), None

  class Loop(nn.Module):
    @nn.compact
    def __call__(self, x):
      scan = nn.scan(
        Step,
        variable_broadcast='params',
        split_rngs={'params': False},
        length=3,
      )
      return scan()(x, None)[0]

  variables = Loop().init(KEY, X)
  assert set(variables['params']) == {'haiku:/w'}
  w = variables['params']['haiku:/w']['w']
  y = Loop().apply(variables, X)
  np.testing.assert_allclose(y, X @ w @ w @ w, 1e-4, 1e-5)


# --- State -------------------------------------------------------------------


class Norm(nn.Module):
  lift: str = ''

  @nn.compact
  def __call__(self, x, train=True):
    x = nn.BatchNorm(use_running_average=not train)(x)

    def norm(module, x):
      del module
      return hk.BatchNorm(True, True, 0.9)(x, train)

    return (LIFTED[self.lift](norm) if self.lift else norm)(self, x)


@pytest.mark.parametrize('lift', ['', 'remat', 'jit'])
def test_state_that_is_not_mutable_does_not_change_unheard(lift):
  model = Norm(lift)
  variables = model.init(KEY, X)
  with pytest.raises(
    errors.ModifyScopeVariableError, match=r"mean_ema.*mutable=\['state'\]"
  ):
    model.apply(variables, X, mutable=['batch_stats'])
  _, new = model.apply(variables, X, mutable=['batch_stats', 'state'])
  counter = new['state']['batch_norm']['~']['mean_ema']['counter']
  assert counter == 1
  # Reading is free.
  y = model.apply({**variables, **new}, X, train=False)
  assert y.shape == X.shape


class Counts(nn.Module):
  @nn.compact
  def __call__(self, x, step=1):
    count = hk.get_state('count', (), init=jnp.zeros)
    if step:
      hk.set_state('count', count + step)
    return x + count


def test_state_that_was_not_passed_is_not_made_unheard():
  assert Counts().apply({'state': {'count': 2.0}}, 0.0, 0) == 2
  for step in (0, 1):
    with pytest.raises(errors.ModifyScopeVariableError, match='makes it'):
      Counts().apply({}, 0.0, step)
  for mutable in (False, [], ['params']):
    with pytest.raises(errors.ModifyScopeVariableError, match='sets it'):
      Counts().apply({'state': {'count': 2.0}}, 0.0, mutable=mutable)
  _, new = Counts().apply({}, 0.0, mutable=['state'])
  assert new['state']['count'] == 1


def test_a_bound_module_keeps_its_state_after_such_an_error():
  variables = Norm().init(KEY, X)
  bound = Norm().bind(variables, mutable=['batch_stats'])
  with pytest.raises(errors.ModifyScopeVariableError):
    bound(X)
  jax.tree.map(
    np.testing.assert_array_equal, as_dict(bound.variables), as_dict(variables)
  )


class Between(hk.Module):
  """A module of Haiku's, between one of linen's and another."""

  def __call__(self, x):
    x = nn.BatchNorm(use_running_average=False)(x)
    return nn.Dropout(0.5, deterministic=False)(nn.Dense(4)(x))


class Around(nn.Module):
  @nn.compact
  def __call__(self, x):
    return Between()(x)


def test_linens_rules_hold_behind_a_module_of_haiku():
  variables = Around().init({'params': KEY, 'dropout': KEY}, X)
  stats = {'between': {'batch_norm': {'mean': (4,), 'var': (4,)}}}
  assert shapes(as_dict(variables['batch_stats'])) == stats
  keys = {'dropout': KEY}
  with pytest.raises(
    errors.ModifyScopeVariableError, match='between/batch_norm'
  ):
    Around().apply(variables, X, rngs=keys)
  with pytest.raises(
    errors.ScopeParamNotFoundError, match='between/batch_norm'
  ):
    Around().apply({'params': {}}, X, rngs=keys, mutable=['batch_stats'])
  # As in linen, what may change may be new.
  _, new = Around().apply(
    {'params': variables['params']}, X, rngs=keys, mutable=['batch_stats']
  )
  assert shapes(as_dict(new)) == {'batch_stats': stats}

  # A pure function is a run of its own.
  f = hk.transform_with_state(lambda x: Between()(x))
  params, state = f.init(KEY, X)

  class Pure(nn.Module):
    def __call__(self, x):
      return f.apply(params, state, KEY, x)[0]

  assert Pure().apply({}, X).shape == X.shape


@pytest.mark.parametrize('transparent', [False, True])
def test_lifted_state_has_its_first_value(transparent):
  def lifted(x):
    inner = hk.transform_with_state(
      lambda x: hk.BatchNorm(True, True, 0.9)(x, True)
    )
    if transparent:
      init, updater = hk.transparent_lift_with_state(inner.init)
    else:
      init, updater = hk.lift_with_state(inner.init, name='l')
    key = hk.next_rng_key() if hk.running_init() else None
    params, state = init(key, x)
    y, state = inner.apply(params, state, None, x)
    updater.update(state)
    return y

  class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
      return lifted(x)

  variables = Net().init(KEY, X)
  _, want = hk.transform_with_state(lifted).init(KEY, X)
  _, state = interop.to_haiku(variables, 'net')
  for (_, got), (_, expected) in zip(
    sorted(state.items()), sorted(want.items()), strict=True
  ):
    jax.tree.map(np.testing.assert_array_equal, dict(got), dict(expected))
  _, new = Net().apply(variables, X, mutable=['state'])
  counters = [
    x
    for path, x in jax.tree_util.tree_leaves_with_path(as_dict(new))
    if 'counter' in str(path)
  ]
  assert counters == [1, 1]


def test_a_stack_of_layers_finds_what_init_has_made():
  class Net(nn.Module):
    kind: type

    def setup(self):
      self.dense = self.kind(4)

    def __call__(self, x):
      return hk.layer_stack(2)(lambda x: x + self.dense(x))(x)

  x = jnp.ones((3, 4))
  for kind in (nn.Dense, hk.Linear):
    y, variables = Net(kind).init_with_output(jax.random.PRNGKey(0), x)
    np.testing.assert_allclose(Net(kind).apply(variables, x), y, 1e-5)
    with pytest.raises(Exception, match='kernel|w'):
      Net(kind).apply({}, x)
