"""Semantics 23: how modules print."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from module_compare import KEY, Programs, X, assert_same_as_flax, attempt

programs = Programs()


@programs
def unbound(nn, flax):
  class Empty(nn.Module):
    pass

  class Foo(nn.Module):
    a: Any = 3
    b: Any = None

  class Hidden(nn.Module):
    a: int = 3
    b: int = dataclasses.field(default=4, repr=False)

  def named(x):
    return x

  values = [
    1,
    'text',
    [1, [2, 'x']],
    {'k': nn.Dense(2)},
    nn.Dense(2),
    [nn.Dense(2), Foo(5)],
    jnp.tanh,
    nn.relu,
    named,
    lambda x: x,
    int,
    nn.Dense,
    jnp.float32,
    jax.nn.initializers.zeros,
    (1, 2),
    jnp.arange(2),
    None,
    'multi\nline',
    Foo(Foo(Foo())),
  ]
  return [repr(Foo(v)) for v in values] + [
    repr(Empty()),
    repr(Hidden()),
    str(Foo(name='n')),
    repr(nn.Sequential([nn.Dense(2), nn.relu])),
    repr(nn.Dense(3, name='x')),
    repr(nn.BatchNorm()),
    repr(nn.Conv(3, (2, 2))),
    repr([Foo()]),
    f'{Foo()}',
  ]


@programs
def partials(nn, flax):
  class Foo(nn.Module):
    a: Any = functools.partial(jnp.sum, axis=0)

  return repr(Foo())


@programs
def bound_in_a_run(nn, flax):
  class Bar(nn.Module):
    size: int = 2

    @nn.compact
    def __call__(self, x):
      y = nn.Dense(self.size)(x)
      self.param('w', jax.nn.initializers.ones, (2,))
      return y, repr(self)

  class Foo(nn.Module):
    inner: Any

    def setup(self):
      self.d = nn.Dense(3)
      self.l = [nn.Dense(2), {'k': nn.Dense(2)}]
      self.v = self.variable('c', 'v', lambda: 1)

    def __call__(self, x):
      before = repr(self.inner)
      _, text = self.inner(self.d(x))
      return before, text, repr(self), repr(self.d), repr(self.l[1])

  out, variables = Foo(Bar()).init_with_output(KEY, X)
  return out, Foo(Bar()).apply(variables, X)


@programs
def repr_runs_no_setup(nn, flax):
  log = []

  class Foo(nn.Module):
    def setup(self):
      log.append('setup')
      self.d = nn.Dense(3)

    def __call__(self, x):
      return self.d(x)

  class Top(nn.Module):
    @nn.compact
    def __call__(self, x):
      foo = Foo()
      before = repr(foo), repr(self), list(log)
      foo(x)
      return before, repr(foo), repr(self), list(log)

  return Top().init_with_output(KEY, X)


@programs
def own_reprs(nn, flax):
  class Foo(nn.Module):
    a: int = 1

    def __repr__(self):
      return f'<Foo {self.a}>'

  class Bar(Foo):
    pass

  class Holder(nn.Module):
    inner: Any

  return repr(Foo()), repr(Bar(2)), repr(Holder(Bar(2))), repr([Foo()])


@programs
def lines_of_a_field(nn, flax):
  # As a configuration prints that is shown as YAML, with a line end behind it.
  class Config:
    def __init__(self, text):
      self.text = text

    def __repr__(self):
      return self.text

  class Foo(nn.Module):
    config: object
    inner: object = None

  texts = ['a: 1\n', 'a: 1\n\nb: 2\n', '\n', '', 'a\r\nb\x0bc\n']
  return [repr(Foo(Config(t), Foo(Config(t)))) for t in texts]


@programs
def half_made(nn, flax):
  class Foo(nn.Module):
    a: int = 1

    def __post_init__(self):
      self.text = repr(self)
      super().__post_init__()

  class NoSuper(nn.Module):
    a: int = 1

    def __post_init__(self):
      pass

  class Missing(nn.Module):
    a: int = dataclasses.field(init=False)
    b: Any = 3

  return Foo().text, attempt(repr, NoSuper()), attempt(repr, Missing())


@programs
def classes(nn, flax):
  class Foo(nn.Module):
    a: int = 1

  class WithDoc(nn.Module):
    """The doc."""

    a: int = 1

  return Foo.__name__, WithDoc.__doc__, str(Foo) == repr(Foo)


@programs
def variables_print(nn, flax):
  variables = nn.Dense(2).init(KEY, X)
  shapes = jax.tree.map(jnp.shape, variables)
  return str(shapes), repr(shapes)


@programs.parametrize()
def test_same_as_flax(program):
  assert_same_as_flax(program)


@programs.parametrize()
def test_same_as_flax_with_frozen_results(program):
  assert_same_as_flax(program, frozen=True)
