"""Semantics 22: modules, their classes and errors survive copies and pickles."""

import copy
import pickle
import sys
import types

import cloudpickle
import jax
from module_compare import KEY, Programs, X, assert_same_as_flax, attempt

programs = Programs()

TEXT = """
import dataclasses
from typing import Any

class Foo(nn.Module):
  size: int = 3
  inner: Any = None

  def setup(self):
    self.dense = nn.Dense(self.size)

  def __call__(self, x):
    x = nn.relu(self.dense(x))
    return x if self.inner is None else self.inner(x)

  @property
  def double(self):
    return 2 * self.size

  def method(self, x):
    return self.dense(x)

class Compact(nn.Module):
  size: int

  @nn.compact
  def __call__(self, x):
    return nn.Dense(self.size)(x)

class Box(nn.Module):
  inner: Any

  def __call__(self, x):
    return self.inner(x)

Called = type('Called', (Compact,), {})
"""


def importable(nn, flax):
  """Returns a module of Python that pickle can import by its name."""
  name = f'pickled_with_{flax.__name__}'
  if name not in sys.modules:
    module = types.ModuleType(name)
    module.nn = nn
    sys.modules[name] = module
    exec(TEXT, module.__dict__)
  return sys.modules[name]


def again(x):
  return pickle.loads(pickle.dumps(x))


COPIES = {
  'pickle': again,
  'copy': copy.copy,
  'deepcopy': copy.deepcopy,
  'cloudpickle': lambda x: cloudpickle.loads(cloudpickle.dumps(x)),
}


@programs
def instances(nn, flax):
  m = importable(nn, flax)
  shared = m.Compact(3)
  modules = [
    m.Foo(),
    m.Foo(4, m.Compact(2), name='n'),
    m.Box(m.Compact(3)),
    m.Box(nn.Sequential([shared, shared])),
    nn.LayerNorm(),
  ]
  results = {}
  for how, fn in COPIES.items():
    # An initializer is a closure, which only cloudpickle takes.
    for i, module in enumerate(modules + [nn.Dense(3)] * (how != 'pickle')):
      twin = fn(module)
      results[how, i] = (
        twin == module,
        twin.name,
        twin.parent,
        twin.scope,
        repr(twin),
        twin.init(KEY, X),
      )
  return results


@programs
def classes_and_methods(nn, flax):
  m = importable(nn, flax)
  foo = m.Foo()
  return (
    again(m.Foo) is m.Foo,
    again(nn.Dense) is nn.Dense,
    again(nn.Module) is nn.Module,
    attempt(lambda: again(m.Called) is m.Called),
    attempt(lambda: again(m.Called(2)) == m.Called(2)),
    type('Called', (nn.Module,), {}).__module__,
    again(foo.double),
    attempt(lambda: again(m.Foo.method) is m.Foo.method),
    attempt(lambda: again(foo.method).__name__),
    attempt(lambda: copy.deepcopy(m.Foo) is m.Foo),
  )


@programs
def cloudpickle_of_local_classes(nn, flax):
  class Foo(nn.Module):
    size: int = 3

    def setup(self):
      self.dense = nn.Dense(self.size)

    def __call__(self, x):
      return self.dense(x)

    @property
    def double(self):
      return 2 * self.size

  class Bar(Foo):
    @nn.compact
    def __call__(self, x):
      return super().__call__(x) + nn.Dense(3)(x) + self.double

  def through(x):
    return cloudpickle.loads(cloudpickle.dumps(x))

  foo, bar = through(Foo(3)), through(Bar(3))
  return (
    foo.init(KEY, X),
    foo.double,
    foo.apply({}, method=lambda m: m.double),
    bar.init_with_output(KEY, X),
    through(Bar)(3).init(KEY, X),
    type(foo).__name__,
    repr(foo),
  )


@programs
def in_the_middle_of_things(nn, flax):
  m = importable(nn, flax)
  results = []

  class Top(nn.Module):
    @nn.compact
    def __call__(self, x):
      dense = nn.Dense(3)
      copied = attempt(lambda: repr(copy.copy(dense)))
      results.append(copied)
      results.append(attempt(lambda: copy.copy(self).name))
      return dense(x)

  Top().init(KEY, X)
  foo = m.Foo()
  variables = foo.init(KEY, X)
  foo.extra = 5
  twin = again(foo)
  return results, twin.extra, twin.apply(variables, X)


@programs
def dunders_of_copying(nn, flax):
  dense = nn.Dense(3)
  names = ('__copy__', '__deepcopy__', '__setstate__', '__getnewargs_ex__')
  return [attempt(getattr, dense, n) for n in names], [
    hasattr(dense, n) for n in names
  ]


@programs
def errors_survive(nn, flax):
  class Bad(nn.Module):
    def __call__(self, x):
      return nn.Dense(3)(x)

  caught = []
  for use in (
    lambda: nn.Dense(3).apply({}, X),
    lambda: nn.Dense(3).apply({'params': {'bias': 1}}, X),
    lambda: Bad().init(KEY, X),
    lambda: nn.Dense(3)(X),
    lambda: nn.Dropout(0.5, deterministic=False).apply({}, X),
  ):
    try:
      use()
    except Exception as e:
      twin = again(e)
      caught.append(
        (
          str(twin) == str(e),
          str(copy.copy(e)) == str(e),
          isinstance(e, flax.errors.FlaxError),
          isinstance(e, ValueError),
        )
      )
  return caught


@programs
def variables_of_pickled_modules_are_plain(nn, flax):
  m = importable(nn, flax)
  variables = m.Compact(3).init(KEY, X)
  twin = again(jax.device_get(variables))
  return twin, again(m.Compact(3)).apply(twin, X)


@programs.parametrize()
def test_same_as_flax(program):
  assert_same_as_flax(program)
