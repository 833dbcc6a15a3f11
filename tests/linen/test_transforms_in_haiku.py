"""Lifted transforms with Haiku: around its modules, inside of it, and below it."""

import concurrent.futures

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import haiku_state.linen as nn

X = jnp.arange(6.0).reshape(2, 3) / 6
KEY = jax.random.key(0)


class WithHaiku(nn.Module):
  """Has Haiku's modules, with parameters, state and a key of their own."""

  @nn.compact
  def __call__(self, x):
    x = nn.Dense(3)(x)
    x = hk.BatchNorm(True, True, 0.9, name='bn')(x, is_training=True)
    x = hk.Linear(3, name='linear')(x)
    noise = jax.random.normal(hk.next_rng_key(), x.shape)
    self.sow('noise', 'n', noise)
    return x + 0 * noise


class Unlifted(nn.Module):
  @nn.compact
  def __call__(self, x):
    module = WithHaiku()
    return module(module(x))


class Lifted(nn.Module):
  lift: object

  @nn.compact
  def __call__(self, x):
    module = self.lift(WithHaiku)(name='WithHaiku_0')
    return module(module(x))


def shapes(tree):
  return jax.tree.map(jnp.shape, tree)


@pytest.mark.parametrize('lift', [nn.jit, nn.remat, nn.fold_rngs])
def test_values_of_haiku_modules_are_lifted(lift):
  rngs = {'params': KEY}
  mutable = ['state', 'noise']
  variables = Unlifted().init(rngs, X)
  made = Lifted(lift).init(rngs, X)
  assert shapes(made) == shapes(variables)
  variables = {k: v for k, v in variables.items() if k != 'noise'}
  want, updates = Unlifted().apply(variables, X, rngs=rngs, mutable=mutable)
  y, new = Lifted(lift).apply(variables, X, rngs=rngs, mutable=mutable)
  np.testing.assert_allclose(y, want, 1e-5, 1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, 1e-5, 1e-5),
    new['state'],
    updates['state'],
  )
  before, after = (
    v['state']['WithHaiku_0']['bn']['~']['mean_ema']['counter']
    for v in (variables, new)
  )
  assert after == before + 2
  first, second = new['noise']['WithHaiku_0']['n']
  assert not np.array_equal(first, second)


class BatchNormInHaiku(hk.Module):
  """A module of Haiku's, which makes one of ours."""

  def __call__(self, x):
    return nn.BatchNorm(use_running_average=False, name='norm')(x)


class OverHaiku(nn.Module):
  @nn.compact
  def __call__(self, x):
    return BatchNormInHaiku(name='in_haiku')(x)


@pytest.mark.parametrize('lift', [lambda cls: cls, nn.jit, nn.remat])
def test_variables_of_ours_in_a_haiku_module_are_seen_when_made(lift):
  seen = []

  class Top(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = lift(OverHaiku)(name='over')(x)
      seen.append(shapes({**self.variables}))
      return x

  made = Top().init(KEY, X)
  assert seen == [shapes({**made})]
  norm = made['batch_stats']['over']['in_haiku']['norm']
  assert shapes({**norm}) == {'mean': (3,), 'var': (3,)}
  y, new = Top().apply(made, X, mutable='batch_stats')
  assert seen[1] == seen[0]
  mean = new['batch_stats']['over']['in_haiku']['norm']['mean']
  np.testing.assert_allclose(mean, 0.01 * X.mean(0), 1e-5)


@pytest.mark.parametrize('lift', [nn.jit, nn.remat])
def test_a_haiku_function_as_a_parameter_of_a_lifted_module(lift):
  f = hk.transform(lambda x: hk.Linear(3)(x))

  class Top(nn.Module):
    @nn.compact
    def __call__(self, x):
      return f.apply(self.param('f', f.init, x), None, x)

  y, variables = lift(Top)().init_with_output(KEY, X)
  params = {'linear': {**variables['params']['f']['linear']}}
  np.testing.assert_allclose(y, f.apply(params, None, X), 1e-6)


def test_an_ensemble_of_haiku_modules():
  Ensemble = nn.vmap(
    WithHaiku,
    variable_axes={'params': 0, 'state': 0, 'noise': 0},
    split_rngs={'params': True},
    in_axes=None,
    axis_size=4,
  )
  y, variables = Ensemble().init_with_output(KEY, X)
  assert y.shape == (4, 2, 3)
  w = variables['params']['linear']['w']
  assert w.shape == (4, 3, 3)
  assert len({np.asarray(x).tobytes() for x in w}) == 4
  one = jax.tree.map(lambda v: v[1], variables)
  y, new = Ensemble().apply(
    variables, X, rngs={'params': KEY}, mutable=['state']
  )
  want, _ = WithHaiku().apply(one, X, rngs={'params': KEY}, mutable=['state'])
  # Of two rows BatchNorm makes plus and minus one: it magnifies rounding.
  np.testing.assert_allclose(y[1], want, 1e-4, 1e-4)
  assert new['state']['bn']['~']['mean_ema']['average'].shape == (4, 1, 3)


class Block(nn.Module):
  """A transformer block in small."""

  @nn.compact
  def __call__(self, x, _=None):
    h = nn.LayerNorm()(x)
    x = x + nn.SelfAttention(num_heads=1)(h)
    h = nn.gelu(nn.Dense(6)(nn.LayerNorm()(x)))
    return x + nn.Dense(3)(h), None


Layers = nn.scan(Block, {'params': 0}, split_rngs={'params': True}, length=3)
RematLayers = nn.scan(
  nn.remat(Block, prevent_cse=False),
  {'params': 0},
  split_rngs={'params': True},
  length=3,
)


def test_scan_over_layers_is_layer_stack_and_the_unrolled_model():
  x = X[None]
  variables = Layers().init(KEY, x, None)
  want = x
  for i in range(3):
    layer = jax.tree.map(lambda v, i=i: v[i], variables)
    want, _ = Block().apply(layer, want)

  def stacked(x):
    return hk.experimental.layer_stack(3)(lambda x: Block(name='block')(x)[0])(
      x
    )

  stack = hk.transform_with_state(stacked)
  params, state = stack.init(KEY, x)
  # The same block has the same names below either stack.
  names = {
    tuple(p.key for p in path): v
    for path, v in jax.tree_util.tree_flatten_with_path(
      dict(variables['params'])
    )[0]
  }

  def value_of(path, _):
    module, name = path[0].key, path[1].key
    return names[(*module.split('/block/')[-1].split('/'), name)]

  params = jax.tree_util.tree_map_with_path(value_of, params)
  y, _ = stack.apply(params, state, None, x)
  np.testing.assert_allclose(y, want, 1e-5, 1e-5)
  for layers in (Layers, RematLayers):
    y, _ = layers().apply(variables, x, None)
    np.testing.assert_allclose(y, want, 1e-5, 1e-5)


class Counting(nn.Module):
  @nn.compact
  def __call__(self, x):
    count = self.variable('state', 'n', jnp.zeros, ())
    if not self.is_initializing():
      count.value += 1
    return nn.Dense(3)(x)


LIFTS = {
  'jit': nn.jit,
  'remat': nn.remat,
  'vmap': lambda c: nn.vmap(
    c, {'params': None, 'state': None}, split_rngs={'params': False}
  ),
}


@pytest.mark.parametrize('lift', LIFTS.values(), ids=LIFTS)
def test_a_lifted_class_in_a_function_of_haiku(lift):
  LiftedCounting = lift(Counting)

  def fn(x):
    module = LiftedCounting(name='c')
    return hk.Linear(2)(module(x)) + module(x)[:, :2]

  f = hk.transform_with_state(fn)
  params, state = f.init(KEY, X)
  assert shapes(params) == {
    'c/Dense_0': {'kernel': (3, 3), 'bias': (3,)},
    'linear': {'w': (3, 2), 'b': (2,)},
  }
  y, state = f.apply(params, state, None, X)
  assert state['c']['n'] == 2
  dense = X @ params['c/Dense_0']['kernel']
  want = dense @ params['linear']['w'] + dense[:, :2]
  np.testing.assert_allclose(y, want, 1e-5, 1e-5)
  grads = jax.grad(lambda p: f.apply(p, state, None, X)[0].sum())(params)
  assert jax.tree.structure(grads) == jax.tree.structure(params)


def test_different_parameters_in_a_function_of_haiku():
  def fn(x):
    return nn.remat(nn.Dense)(3)(nn.jit(nn.Dense)(3)(x))

  params = hk.transform(fn).init(KEY, X)
  one, two = (v['kernel'] for v in params.values())
  assert not np.array_equal(one, two)


def test_a_vmapped_class_in_a_scan_of_haiku():
  Mapped = nn.vmap(
    Counting, {'params': 0, 'state': 0}, split_rngs={'params': True}
  )

  def fn(xs):
    module = Mapped(name='m')
    return hk.scan(lambda c, x: (c + 1, module(x)), 0, xs)

  f = hk.transform_with_state(fn)
  xs = jnp.stack([X, X + 1, X + 2])
  params, state = f.init(KEY, xs)
  assert params['m/Dense_0']['kernel'].shape == (2, 3, 3)
  (count, ys), state = f.apply(params, state, None, xs)
  assert count == 3 and ys.shape == (3, 2, 3)
  np.testing.assert_array_equal(state['m']['n'], [3, 3])
  kernel = params['m/Dense_0']['kernel']
  np.testing.assert_allclose(
    ys, jnp.einsum('tbi,bij->tbj', xs, kernel), 1e-5, 1e-5
  )


def test_a_scan_of_haiku_in_a_vmapped_class():
  class Inner(nn.Module):
    @nn.compact
    def __call__(self, xs):
      module = Counting()
      return hk.scan(lambda c, x: (c, module(x)), 0, xs)[1]

  Mapped = nn.vmap(
    Inner, {'params': 0, 'state': 0}, split_rngs={'params': True}, in_axes=1
  )
  xs = jnp.stack([X, X + 1, X + 2])
  variables = Mapped().init(KEY, xs)
  ys, new = Mapped().apply(variables, xs, mutable=['state'])
  kernel = variables['params']['Counting_0']['Dense_0']['kernel']
  np.testing.assert_allclose(
    ys, jnp.einsum('tbi,bij->btj', xs, kernel), 1e-5, 1e-5
  )
  np.testing.assert_array_equal(new['state']['Counting_0']['n'], [3, 3])


def double(next_getter, value, context):
  del context
  return next_getter(value) * 2


@pytest.mark.parametrize('lift', LIFTS.values(), ids=LIFTS)
def test_custom_getters_reach_inside_once(lift):
  class Top(nn.Module):
    @nn.compact
    def __call__(self, x):
      with hk.custom_getter(double):
        return lift(nn.Dense)(3, use_bias=False, name='d')(x)

  params = nn.Dense(3, use_bias=False).init(KEY, X)['params']
  y = Top().apply({'params': {'d': params}}, X)
  np.testing.assert_allclose(y, 2 * X @ params['kernel'], 1e-5, 1e-5)


@pytest.mark.parametrize('lift', [nn.jit, nn.remat])
def test_interceptors_of_both_kinds_reach_inside(lift):
  seen = []

  def of_haiku(next_fun, args, kwargs, context):
    seen.append(('haiku', type(context.module).__name__, context.method_name))
    return next_fun(*args, **kwargs)

  def of_linen(next_fun, args, kwargs, context):
    seen.append(('linen', type(context.module).__name__, context.method_name))
    return next_fun(*args, **kwargs)

  class Top(nn.Module):
    @nn.compact
    def __call__(self, x):
      return lift(WithHaiku)()(x)

  with hk.intercept_methods(of_haiku), nn.intercept_methods(of_linen):
    Top().init(KEY, X)
  assert ('haiku', 'Dense', '__call__') in seen
  assert ('linen', 'Dense', '__call__') in seen
  assert ('haiku', 'Linear', '__call__') in seen


def test_a_policy_of_mixed_precision_reaches_inside():
  jmp = pytest.importorskip('jmp')
  policy = jmp.get_policy('params=float32,compute=bfloat16,output=float32')
  seen = []

  class Mine(nn.Module):
    @nn.compact
    def __call__(self, x):
      seen.append(x.dtype)
      return x @ self.param('w', nn.initializers.ones, (3, 3))

  def run():
    hk.mixed_precision.set_policy(Mine, policy)
    variables = nn.remat(Mine)().init(KEY, X)
    return variables, nn.remat(Mine)().apply(variables, X)

  # Haiku's interceptor for policies stays with its thread for good.
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    variables, y = pool.submit(run).result()
  assert seen and seen[-1] == jnp.bfloat16
  assert variables['params']['w'].dtype == jnp.float32
  assert y.dtype == jnp.float32


def test_nothing_leaks_from_lifted_transforms():
  class Top(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = nn.jit(nn.Dense)(3)(nn.remat(nn.Dense)(3)(x))
      Mapped = nn.vmap(nn.Dense, {'params': 0}, split_rngs={'params': True})
      x = Mapped(3)(x)
      Looped = nn.scan(
        Block, {'params': 0}, split_rngs={'params': True}, length=2
      )
      x = Looped()(x[None], None)[0][0]
      x = nn.cond(True, lambda m, x: x, lambda m, x: x, self, x)
      g = nn.grad(lambda m, x: m(x).sum(), nn.Dense(1), x)[0]
      return x + g

  with jax.checking_leaks():
    variables = jax.jit(Top().init)(KEY, X)
    jax.jit(jax.grad(lambda v: Top().apply(v, X).sum()))(variables)


@pytest.mark.parametrize('lift', [nn.jit, nn.remat])
def test_a_module_from_outside_of_a_lifted_function(lift):
  class Top(nn.Module):
    @nn.compact
    def __call__(self, x):
      dense = nn.Dense(3)
      dense(x)
      return lift(lambda m, x: dense(x) * 2)(self, x)

  variables = Top().init(KEY, X)
  with jax.checking_leaks():
    y = Top().apply(variables, X)
  want = nn.Dense(3).apply({'params': variables['params']['Dense_0']}, X)
  np.testing.assert_allclose(y, 2 * want, 1e-6)
