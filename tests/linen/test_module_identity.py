"""Semantics 10: hash and equality of modules, and modules as static values."""

import copy
import dataclasses
import functools
import inspect
import pickle
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from module_compare import KEY, Programs, X, assert_same_as_flax, attempt

from haiku_state import linen
from haiku_state.training.train_state import TrainState

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


# --- Methods that are pure functions, which Flax compares by identity ---------


class Net(linen.Module):
  size: Any = 3

  @linen.compact
  def __call__(self, x):
    return linen.Dense(3)(x)


PURE = ('apply', 'init', 'init_with_output', 'lazy_init')


@pytest.mark.parametrize('name', PURE)
def test_equal_modules_have_equal_methods(name):
  def of(model):
    return getattr(model, name)

  assert of(Net()) == of(Net()) and hash(of(Net())) == hash(of(Net()))
  assert of(Net(1)) != of(Net(2)) and of(Net()) != of(Net(name='x'))
  assert of(Net()) != Net().bind and of(Net()) != name
  assert len({getattr(Net(), n) for n in PURE}) == len(PURE)
  method = pickle.loads(pickle.dumps(of(Net())))
  assert method == of(Net()) == copy.deepcopy(method)
  assert (
    method.__name__ == name and method.__doc__ == getattr(Net, name).__doc__
  )
  assert 'self' not in inspect.signature(method).parameters
  assert name in repr(method)


@pytest.mark.parametrize(
  'make',
  [
    lambda: Net([1]),
    lambda: Net(jnp.ones(2)),
    lambda: Net().bind({}),
    lambda: Net(linen.Sequential([])),
  ],
)
def test_a_module_without_hash_is_equal_to_itself_only(make):
  one, other = make(), make()
  assert one.apply == one.apply and hash(one.apply) == hash(one.apply)
  assert one.apply != other.apply and one.apply != Net().apply


def test_a_module_of_haikus_run_is_equal_to_itself_only():
  def fn():
    one, other = Net(), Net()
    assert one.apply == one.apply and hash(one.apply) == hash(one.apply)
    return one.apply != other.apply

  assert hk.transform(fn).apply({}, None)


def test_a_module_made_anew_costs_no_trace():
  traces, tx = [], optax.sgd(0.1)
  variables = Net().init(KEY, X)

  @jax.jit
  def step(state):
    traces.append(1)

    def loss(params):
      return state.apply_fn({'params': params}, X).sum()

    return state.apply_gradients(grads=jax.grad(loss)(state.params))

  state = TrainState.create(
    apply_fn=Net().apply, params=variables['params'], tx=tx
  )
  state = state.replace(step=jnp.zeros((), jnp.int32))
  for _ in range(4):
    state = step(state.replace(apply_fn=Net().apply))
  assert len(traces) == 1
  step(state.replace(apply_fn=Net(4).apply))
  assert len(traces) == 2


def test_a_pure_method_says_what_to_call():
  # As a bound method of Python does: it stands for its function.
  assert Net().apply({}, method=Net().has_rng, name='x') is False
  y, variables = Net().init_with_output(KEY, X)
  np.testing.assert_array_equal(Net.apply(Net(), variables, X), y)
