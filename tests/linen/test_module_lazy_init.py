"""Semantics 27: initialization from shapes, as Flax has it up to 0.12.8."""

import jax
import jax.numpy as jnp
import pytest
from module_compare import KEY, Programs, X, assert_same_as_flax, attempt

programs = Programs()
SHAPE = jax.ShapeDtypeStruct((2, 3), 'float32')


@programs
def same_as_init(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x, scale=1.0, *, y=None):
      x = nn.Dense(4)(x) * scale
      x = nn.BatchNorm(use_running_average=False)(x)
      x = nn.Dropout(0.5, deterministic=False)(x)
      return nn.Dense(2)(x if y is None else x + y)

    def method(self, x):
      return nn.relu(x)

  foo = Foo()
  y = jax.ShapeDtypeStruct((4,), 'float32')
  return (
    foo.lazy_init(KEY, SHAPE),
    foo.lazy_init(KEY, X),
    foo.init(KEY, X),
    foo.lazy_init(KEY, SHAPE, 2.0, y=y),
    foo.lazy_init({'params': KEY, 'dropout': KEY}, SHAPE),
    attempt(lambda: foo.lazy_init(KEY, SHAPE, mutable=['params'])),
    foo.lazy_init(KEY, SHAPE, method=Foo.method),
    attempt(lambda: foo.lazy_init(KEY, SHAPE, method='__call__')),
    attempt(foo.lazy_init, 3, SHAPE),
  )


@programs
def order_of_names(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      self.variable('z', 'v', jnp.zeros, ())
      self.variable('a', 'v', jnp.zeros, ())
      return nn.Dense(2)(x)

  def names(variables):
    return list(variables), list(variables['params']['Dense_0'])

  return [names(Foo().lazy_init(KEY, x)) for x in (SHAPE, X)]


@programs
def values_that_are_needed(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      self.param('mean', lambda key: jnp.mean(x))
      return x

  class State(nn.Module):
    @nn.compact
    def __call__(self, x):
      self.variable('c', 'shape', lambda: jnp.zeros(x.shape))
      self.variable('c', 'x', lambda: x * 2)

  class Shapes(nn.Module):
    @nn.compact
    def __call__(self, x):
      self.variable('c', 'shape', lambda: jnp.zeros(x.shape, x.dtype))
      return self.param('w', lambda key: jnp.ones(x.shape[-1]))

  return [attempt(c().lazy_init, KEY, SHAPE) for c in (Foo, State, Shapes)]


@programs
def huge_inputs_cost_nothing(nn, flax):
  huge = jax.ShapeDtypeStruct((1024**4, 3), 'float32')
  return nn.Dense(2).lazy_init(KEY, huge)


@programs
def trees_of_shapes(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, batch):
      return nn.Dense(2)(batch['x']) + nn.Dense(2)(batch['y'][0])

  batch = {'x': SHAPE, 'y': (X, SHAPE)}
  return Foo().lazy_init(KEY, batch), Foo().lazy_init(KEY, {'x': X, 'y': [X]})


@programs
def sown_values(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      self.sow('intermediates', 'x', x)
      return nn.Dense(2)(x)

  return (
    Foo().lazy_init(KEY, SHAPE),
    attempt(lambda: Foo().lazy_init(KEY, SHAPE, mutable=True)),
    attempt(lambda: Foo().lazy_init(KEY, X, mutable=True)),
  )


@programs
def of_the_core(nn, flax):
  def f(scope, x):
    w = scope.param('w', lambda k, s: jax.random.normal(k, s), (x.shape[-1],))
    return x * w

  def needs(scope, x):
    scope.variable('c', 'x', lambda: x)

  return (
    flax.core.lazy_init(f)(KEY, SHAPE),
    flax.core.lazy_init(f)(KEY, X),
    attempt(flax.core.lazy_init(needs), KEY, SHAPE),
    flax.core.partial_eval.lazy_init(lambda x, y: x.shape[0] * y)(SHAPE, 3),
  )


@programs.parametrize()
def test_same_as_flax(program):
  flax = pytest.importorskip('flax')
  if tuple(map(int, flax.__version__.split('.')[:3])) > (0, 12, 8):
    pytest.skip('Newer versions of Flax compute with zeros.')
  assert_same_as_flax(program)
