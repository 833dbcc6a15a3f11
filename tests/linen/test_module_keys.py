"""Semantics 1: which key each parameter and each `make_rng` gets."""

import jax
import jax.numpy as jnp
from module_compare import KEY, Programs, X, assert_same_as_flax, attempt, flag

programs = Programs()
normal = jax.random.normal


@programs
def params_count_with_make_rng(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self):
      a = self.param('a', normal, (2,))
      k1 = self.make_rng('params')
      k2 = self.make_rng()
      b = self.param('b', normal, (2,))
      return a, b, k1, k2

  return Foo().init_with_output(KEY)


@programs
def raw_keys(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self):
      return self.param('a', normal, (2,)), self.make_rng()

  return Foo().init_with_output(jax.random.PRNGKey(3))


@programs
def missing_stream_falls_back_to_params(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self):
      return self.make_rng('dropout'), self.make_rng('dropout')

  own = {'params': KEY, 'dropout': jax.random.key(1)}
  return (
    Foo().init_with_output(KEY),
    Foo().init_with_output(own),
    Foo().apply({}, rngs=KEY),
    Foo().apply({}, rngs={'dropout': KEY}),
    attempt(Foo().apply, {}),
    attempt(Foo().apply, {}, rngs={'noise': KEY}),
    attempt(Foo().apply, {}, rngs={}),
  )


@programs
def missing_stream_in_a_child(nn, flax):
  class Bar(nn.Module):
    def __call__(self):
      return self.make_rng('dropout')

  class Foo(nn.Module):
    @nn.compact
    def __call__(self):
      return Bar(name='bar')()

  return attempt(Foo().apply, {}), attempt(Foo().init, {})


@programs
def path_and_count(nn, flax):
  class Bar(nn.Module):
    @nn.compact
    def __call__(self):
      return self.make_rng('params'), self.param('w', normal, (2,))

  class Foo(nn.Module):
    @nn.compact
    def __call__(self):
      a = Bar(name='a')
      return a(), a(), Bar(name='b')(), Bar()(), self.make_rng('params')

  out, variables = Foo().init_with_output(KEY)
  return out, variables, Foo().apply(variables, rngs={'params': KEY})


@programs
def deep_names(nn, flax):
  class Leaf(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.Dense(2)(x)

  class Node(nn.Module):
    depth: int

    @nn.compact
    def __call__(self, x):
      below = Node(self.depth - 1) if self.depth else Leaf()
      return below(x) + nn.Dense(2, name='é/ü:x')(x)

  return Node(5).init(KEY, X)


@programs
def separator_flag(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.Dense(3, name='a')(nn.Dense(3, name='ab')(x))

  with flag(flax, 'flax_fix_rng_separator', True):
    separated = Foo().init(KEY, X)
  return separated, Foo().init(KEY, X)


@programs
def counters_survive_repeated_calls(nn, flax):
  class Noise(nn.Module):
    @nn.compact
    def __call__(self):
      return normal(self.make_rng('noise'), ())

  class Foo(nn.Module):
    @nn.compact
    def __call__(self):
      noise = Noise()
      return [noise() for _ in range(3)] + [Noise()() for _ in range(2)]

  return Foo().apply({}, rngs={'noise': KEY})


@programs
def existing_parameters_draw_nothing(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self):
      a = self.param('a', normal, (2,))
      b = self.param('b', normal, (2,))
      return a, b, self.make_rng('params')

  given = {'params': {'a': jnp.ones(2)}}
  return (
    Foo().apply(given, mutable=['params'], rngs={'params': KEY}),
    attempt(Foo().apply, given, mutable=['params']),
  )


@programs
def has_rng(nn, flax):
  class Foo(nn.Module):
    def __call__(self):
      return [self.has_rng(n) for n in ('params', 'dropout', 'noise')]

  return (
    Foo().apply({}),
    Foo().apply({}, rngs={'dropout': KEY}),
    Foo().init_with_output(KEY),
    Foo().apply({}, rngs=KEY),
  )


@programs
def setup_draws_before_the_call(nn, flax):
  class Foo(nn.Module):
    def setup(self):
      self.a = self.param('a', normal, (2,))
      self.k = self.make_rng('params')
      self.dense = nn.Dense(2)

    def __call__(self, x):
      return self.dense(x), self.k, self.make_rng('params')

  return Foo().init_with_output(KEY, X)


@programs
def dropout_masks(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      drop = nn.Dropout(0.5, deterministic=False)
      return drop(x), drop(x), nn.Dropout(0.5)(x, deterministic=False)

  return Foo().apply({}, jnp.ones((4, 4)), rngs={'dropout': KEY})


@programs
def stream_order_does_not_matter(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self):
      self.make_rng('b')
      self.make_rng('a')
      return self.make_rng('a'), self.make_rng('b')

  keys = jax.random.split(KEY)
  return (
    Foo().apply({}, rngs={'a': keys[0], 'b': keys[1]}),
    Foo().apply({}, rngs={'b': keys[1], 'a': keys[0]}),
  )


@programs.parametrize()
def test_same_as_flax(program):
  assert_same_as_flax(program)
