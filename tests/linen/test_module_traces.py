"""Semantics 19: trace levels, leaks, cycles and threads."""

import concurrent.futures
import functools
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from module_compare import KEY, X

import haiku_state.linen as nn
from haiku_state import errors


class MLP(nn.Module):
  features: int = 3

  def setup(self):
    self.first = nn.Dense(self.features)
    self.layers = [nn.Dense(3), {'norm': nn.LayerNorm()}]

  @nn.compact
  def __call__(self, x):
    x = self.layers[1]['norm'](self.layers[0](self.first(x)))
    return nn.Dense(2)(x)


def by_jit(fn, x):
  return jax.jit(fn)(x)


def by_grad(fn, x):
  return jax.grad(lambda x: jnp.sum(fn(x)))(x)


def by_vmap(fn, x):
  return jax.vmap(fn)(x)


def by_scan(fn, x):
  return jax.lax.scan(lambda c, y: (c, fn(y)), 0, x)[1]


def by_checkpoint(fn, x):
  return jax.checkpoint(fn)(x)


def by_cond(fn, x):
  return jax.lax.cond(True, fn, lambda x: x, x)


def by_while(fn, x):
  return jax.lax.while_loop(lambda x: False, fn, x)


def by_map(fn, x):
  return jax.lax.map(fn, x)


TRANSFORMS = [
  by_jit,
  by_grad,
  by_vmap,
  by_scan,
  by_checkpoint,
  by_cond,
  by_while,
  by_map,
]


def makes_a_submodule(self, x):
  return nn.Dense(3, parent=self)(x)


def makes_a_parameter(self, x):
  return x + self.param('w', nn.initializers.ones, (3,))


def draws_a_key(self, x):
  return x + jax.random.normal(self.make_rng('params'), (3,))


def sets_a_variable(self, x):
  self.put_variable('cache', 'c', x)
  return x


USES = [
  makes_a_submodule,
  makes_a_parameter,
  draws_a_key,
  sets_a_variable,
]
# What these compute from values of outside is not theirs.
COMPUTE_OUTSIDE = (by_grad, by_vmap)
NAMES = {
  by_jit: ('jax.jit', 'nn.jit'),
  by_grad: ('jax.grad', 'nn.grad'),
  by_vmap: ('jax.vmap', 'nn.vmap'),
  by_scan: ('jax.lax.scan', 'nn.scan'),
  by_checkpoint: ('jax.checkpoint', 'nn.remat'),
  by_cond: ('jax.lax.cond', 'nn.cond'),
  by_while: ('jax.lax.while_loop', 'nn.while_loop'),
  by_map: ('jax.lax.map', 'nn.scan'),
}
VARIABLES = {
  makes_a_submodule: ('kernel', '/Inner_0/Dense_0', 'params'),
  makes_a_parameter: ('w', '/Inner_0', 'params'),
  sets_a_variable: ('c', '/Inner_0', 'cache'),
}


def leaks(transform, use):
  """Returns whether a value would leave the transform, as it does in Flax."""
  if use is sets_a_variable:
    return True
  return use is not draws_a_key and transform not in COMPUTE_OUTSIDE


@pytest.mark.parametrize('is_jitted', [False, True], ids=['', 'jitted'])
@pytest.mark.parametrize('use', USES, ids=lambda f: f.__name__)
@pytest.mark.parametrize('transform', TRANSFORMS, ids=lambda f: f.__name__)
def test_a_value_may_not_leave_a_transform_of_jax(transform, use, is_jitted):
  class Inner(nn.Module):
    @nn.compact
    def __call__(self, x):
      return transform(functools.partial(use, self), x)

  class Outer(nn.Module):
    @nn.compact
    def __call__(self, x):
      return Inner()(x)

  def init(key, x):
    return Outer().init(key, x)

  if is_jitted:
    init = functools.partial(jax.eval_shape, init)
  with jax.checking_leaks():
    if not leaks(transform, use):
      init(KEY, X)
      return
    with pytest.raises(errors.JaxTransformError, match='cannot be mixed') as e:
      init(KEY, X)
  text = str(e.value)
  around, lifted = NAMES[transform]
  name, path, col = VARIABLES[use]
  assert f'"{name}" of "{path}", in the collection "{col}"' in text
  assert f'inside of {around},' in text
  assert f'use {lifted}' in text


def test_what_is_of_outside_may_be_set():
  """Also where all is traced: it is not the inner transform's."""

  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      last = self.variable('cache', 'last', jnp.zeros, (2, 3))

      def f(y):
        last.value = x
        return y

      return jax.jit(f)(x)

  init = Foo().init
  for run in (
    init,
    jax.jit(init),
    lambda k, x: jax.vmap(lambda y: init(k, y))(x[None]),
  ):
    with jax.checking_leaks():
      cache = run(KEY, X)['cache']
    np.testing.assert_array_equal(np.ravel(cache['last']), X.ravel())


@pytest.mark.parametrize('transform', TRANSFORMS, ids=lambda f: f.__name__)
def test_raw_transform_around_whole_runs_is_fine(transform):
  dense = nn.Dense(3)
  variables = dense.init(KEY, X)

  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = nn.Dense(3)(x)
      return transform(lambda x: dense.apply(variables, x), x)

  out = Foo().init_with_output(KEY, X)[0]
  assert jax.tree.leaves(out)[0].shape == (2, 3)


@pytest.mark.parametrize('transform', TRANSFORMS, ids=lambda f: f.__name__)
def test_raw_transform_around_pure_functions_is_fine(transform):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      w = self.param('w', nn.initializers.ones, (3,))
      x = transform(lambda x: x * w, nn.Dense(3)(x))
      return nn.Dense(3)(x)

  variables = Foo().init(KEY, X)
  Foo().apply(variables, X)


def test_no_reference_cycles():
  model = MLP()
  variables = model.init(KEY, X)
  refs = []

  class Note(nn.Module):
    inner: nn.Module

    @nn.compact
    def __call__(self, x):
      made = MLP()
      y = self.inner(made(x))
      refs.extend(
        weakref.ref(o)
        for o in (self, self.scope, made, made.scope, self.inner, made.first)
      )
      return y

  gc.collect()
  gc.disable()
  try:
    note = Note(MLP())
    note_variables = note.init(KEY, X)
    jax.jit(note.apply)(note_variables, X)
    bound = model.bind(variables)
    bound(X)
    refs.extend((weakref.ref(bound), weakref.ref(bound.first)))
    del bound
    assert [r() for r in refs] == [None] * len(refs)
  finally:
    gc.enable()


def test_an_error_leaves_no_state_behind():
  class Fails(nn.Module):
    @nn.compact
    def __call__(self, x):
      nn.Dense(3)(x)
      raise ValueError('meant')

  class Top(nn.Module):
    @nn.compact
    def __call__(self, x):
      return Fails()(x)

  for _ in range(2):
    with pytest.raises(ValueError, match='meant'):
      Top().init(KEY, X)
  assert MLP().init_with_output(KEY, X)[0].shape == (2, 2)
  assert nn.Dense(2).parent is None


def test_no_leaked_tracers(monkeypatch):
  # JAX looks for leaks by collecting garbage: without that, cycles are leaks.
  monkeypatch.setattr(gc, 'collect', lambda *args: 0)
  boxed = nn.with_partitioning(nn.initializers.ones, ('in', 'out'))
  model = nn.Sequential(
    [
      MLP(),
      nn.BatchNorm(use_running_average=False),
      nn.Dense(2, kernel_init=boxed),
    ]
  )
  gc.disable()
  try:
    with jax.checking_leaks():
      variables = jax.jit(model.init)(KEY, X)

      @jax.jit
      def step(variables, x):
        def loss(params):
          y, state = model.apply(
            {**variables, 'params': params}, x, mutable=['batch_stats']
          )
          return jnp.sum(y**2), state

        return jax.value_and_grad(loss, has_aux=True)(variables['params'])

      step(variables, X)
      jax.vmap(lambda k: model.init(k, X))(jax.random.split(KEY, 2))
      jax.eval_shape(model.init, KEY, X)
      jax.jit(lambda v, x: model.bind(v).layers[0](x))(variables, X)
  finally:
    gc.enable()


def test_the_same_model_in_eight_threads():
  model = nn.Sequential([nn.BatchNorm(use_running_average=False), MLP()])
  want = jax.jit(model.init_with_output)(KEY, X)

  def one(i):
    with nn.intercept_methods(lambda f, args, kwargs, context: f(*args)):
      out, variables = jax.jit(model.init_with_output)(KEY, X + 0 * i)
      again, _ = model.apply(variables, X, mutable=True)
    return out, variables, again

  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    results = list(pool.map(one, range(8)))
  for out, variables, again in results:
    np.testing.assert_allclose(out, want[0], 1e-5, 1e-6)
    np.testing.assert_allclose(again, want[0], 1e-5, 1e-6)
    jax.tree.map(np.testing.assert_array_equal, variables, want[1])


def test_interceptors_belong_to_their_thread():
  seen = []

  def note(next_fun, args, kwargs, context):
    seen.append(context.method_name)
    return next_fun(*args, **kwargs)

  with nn.intercept_methods(note):
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
      pool.submit(MLP().init, KEY, X).result()
  assert seen == []
