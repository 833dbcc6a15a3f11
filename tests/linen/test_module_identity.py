"""Semantics 10: hash and equality of modules, and modules as static values."""

import copy
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from module_compare import KEY, Programs, X, assert_same_as_flax, attempt

programs = Programs()


@programs
def equality(nn, flax):
  class Foo(nn.Module):
    a: int = 1
    b: Any = None

  class Bar(Foo):
    pass

  foo = Foo(1)
  return [
    foo == Foo(1),
    foo == Foo(2),
    foo == Bar(1),
    foo != Foo(1),
    foo == 3,
    foo == Foo(1, name='x'),
    Foo(1, name='x') == Foo(1, name='x'),
    Foo(b=nn.Dense(3)) == Foo(b=nn.Dense(3)),
    Foo(b=nn.Dense(3)) == Foo(b=nn.Dense(4)),
    Foo(b=[1]) == Foo(b=[1]),
    Foo(b=[1]) == Foo(b=(1,)),
    foo == foo.clone(),
    foo == foo.copy(),
    foo == copy.copy(foo),
    foo == copy.deepcopy(foo),
  ]


@programs
def hashes(nn, flax):
  class Foo(nn.Module):
    a: Any = 1

    def __call__(self):
      return hash(self)

  return (
    hash(Foo(1)) == hash(Foo(1)),
    hash(Foo(1)) == hash(Foo(2)),
    hash(Foo(nn.Dense(3))) == hash(Foo(nn.Dense(3))),
    hash(Foo(1, name='x')) == hash(Foo(1)),
    attempt(hash, Foo([1])),
    attempt(hash, Foo({'a': 1})),
    attempt(hash, Foo(jnp.ones(2))),
    attempt(Foo(1).apply, {}),
    attempt(lambda: hash(Foo(1).bind({}))),
    len({Foo(1), Foo(1), Foo(2)}),
  )


@programs
def own_hash(nn, flax):
  class Foo(nn.Module):
    a: Any = 1

    def __hash__(self):
      return 42 + self.a

    def __call__(self):
      return hash(self)

  class Bar(Foo):
    b: int = 1

  class Eq(nn.Module):
    a: Any = 1

    def __eq__(self, other):
      return True

  return (
    hash(Foo(1)),
    attempt(Foo(1).apply, {}),
    attempt(hash, Foo('x')),
    hash(Bar(1)) == 43,
    hash(Bar(1)) == hash(Bar(1)),
    Eq(1) == 3,
    attempt(lambda: hash(Eq(1)) == hash(Eq(1))),
  )


@programs
def fields_without_init_are_left_out(nn, flax):
  class Foo(nn.Module):
    a: int = 1
    b: Any = dataclasses.field(init=False)

    def setup(self):
      self.b = [self.a]

    def __call__(self):
      return self.b

  class Compared(nn.Module):
    a: int = 1
    b: int = dataclasses.field(default=3, compare=False)

  return (
    Foo(1) == Foo(1),
    hash(Foo(1)) == hash(Foo(1)),
    Foo(1).apply({}),
    repr(Foo(1)),
    Compared(1, 2) == Compared(1, 3),
    hash(Compared(1, 2)) == hash(Compared(1, 3)),
  )


@programs
def bound_modules_compare(nn, flax):
  class Foo(nn.Module):
    def setup(self):
      self.a = nn.Dense(3)
      self.b = nn.Dense(3)

    def __call__(self):
      return self.a == self.a, self.a == self.b, self.a != self.b

  return Foo().apply({})


@programs
def static_argument_of_jit(nn, flax):
  traces = []

  @functools.partial(jax.jit, static_argnums=0)
  def f(model, variables, x):
    traces.append(type(model).__name__)
    return model.apply(variables, x)

  class Foo(nn.Module):
    size: int
    inner: Any = None

    @nn.compact
    def __call__(self, x):
      x = nn.Dense(self.size)(x)
      return x if self.inner is None else self.inner(x)

  outs = []
  for make in (
    lambda: Foo(3),
    lambda: Foo(3),
    lambda: Foo(4),
    lambda: Foo(3, nn.Dense(2)),
    lambda: Foo(3, nn.Dense(2)),
    lambda: nn.Sequential((nn.Dense(2), nn.relu)),
    lambda: nn.Sequential((nn.Dense(2), nn.relu)),
  ):
    model = make()
    outs.append(f(model, model.init(KEY, X), X))
  return outs, traces, attempt(f, nn.Sequential([nn.relu]), {}, X).kind


@programs
def jitted_methods(nn, flax):
  traces = []

  class Foo(nn.Module):
    size: int = 3

    @nn.compact
    def __call__(self, x):
      traces.append(self.size)
      return nn.Dense(self.size)(x)

  init = jax.jit(Foo().init)
  variables = init(KEY, X)
  init(KEY, X)
  out = jax.jit(Foo().apply)(variables, X)
  out2 = jax.jit(Foo().apply)(variables, X)
  state = jax.jit(Foo(2).init_with_output)(KEY, X)
  return variables, out, out2, state, traces


@programs
def modules_as_keys_and_in_trees(nn, flax):
  class Foo(nn.Module):
    a: int = 1

  leaves = jax.tree.leaves({'a': Foo(1), 'b': [Foo(2)]})
  table = {Foo(1): 'x', Foo(2): 'y'}
  return [m.a for m in leaves], table[Foo(1)], table.get(Foo(3))


@programs.parametrize()
def test_same_as_flax(program):
  assert_same_as_flax(program)
