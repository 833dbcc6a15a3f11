"""Semantics 7: attributes that setup sets, and those nobody may set."""

import collections
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from module_compare import KEY, Programs, X, assert_same_as_flax, attempt

programs = Programs()
Pair = collections.namedtuple('Pair', 'left right')


def attributes_of(nn, **values):
  """Returns what attributes of setup are, seen from a method."""

  class Foo(nn.Module):
    def setup(self):
      for name, make in values.items():
        setattr(self, name, make(nn))

    def __call__(self, x):
      seen = {}
      for name in values:
        value = getattr(self, name)
        seen[name] = (type(value).__name__, value)
        for leaf in jax.tree.leaves(
          value, is_leaf=lambda v: isinstance(v, nn.Module)
        ):
          if isinstance(leaf, nn.Module):
            x = leaf(x)
      return seen, x

  return attempt(Foo().init_with_output, KEY, X)


def dense(nn):
  return nn.Dense(3)


@programs
def containers(nn, flax):
  return attributes_of(
    nn,
    a=lambda nn: [dense(nn), dense(nn)],
    b=lambda nn: (dense(nn), [1, 2]),
    c=lambda nn: {'z': dense(nn), 'a': dense(nn)},
    d=lambda nn: [[dense(nn)], {'k': [dense(nn), {'m': dense(nn)}]}],
    e=lambda nn: [],
    f=lambda nn: {},
    g=lambda nn: (),
    h=lambda nn: {'x': {}, 'y': [], 'm': dense(nn)},
    i=lambda nn: Pair(dense(nn), [3]),
    j=lambda nn: [None, dense(nn), 'text', 3.5],
    k=lambda nn: np.arange(3),
    l=lambda nn: jnp.arange(3),
  )


@programs
def frozen_dicts(nn, flax):
  return attributes_of(
    nn,
    a=lambda nn: flax.core.FrozenDict({'z': dense(nn), 'a': [dense(nn)]}),
    b=lambda nn: {'f': flax.core.freeze({'m': dense(nn)})},
  )


@programs
def keys_that_are_no_strings(nn, flax):
  return [
    attributes_of(nn, a=lambda nn: {(1, 2): dense(nn)}),
    attributes_of(nn, a=lambda nn: {1: dense(nn)}),
    attributes_of(nn, a=lambda nn: {None: dense(nn), 'b': dense(nn)}),
    attributes_of(nn, a=lambda nn: {(1, 2): 3, 1: {2: [4]}}),
    attributes_of(nn, a=lambda nn: {1.5: [dense(nn)]}),
    attributes_of(nn, a=lambda nn: {'a/b': dense(nn), 'c d': dense(nn)}),
  ]


@programs
def keys_read_back(nn, flax):
  class Foo(nn.Module):
    def setup(self):
      self.a = {(1, 2): nn.Dense(3), 3: nn.Dense(4)}

    def __call__(self, x):
      return self.a[(1, 2)](x), list(self.a)

  class Text(nn.Module):
    def setup(self):
      self.a = {(1, 2): nn.Dense(3)}

    def __call__(self, x):
      return self.a['(1, 2)'](x)

  return [attempt(c().init_with_output, KEY, X) for c in (Foo, Text)]


@programs
def dataclasses_and_structs(nn, flax):
  @flax.struct.dataclass
  class Box:
    module: Any
    other: Any = 3

  @dataclasses.dataclass
  class Plain:
    module: Any

  class Foo(nn.Module):
    kind: Any

    def setup(self):
      self.a = self.kind(nn.Dense(3))
      self.b = [self.kind(nn.Dense(3)), {'k': self.kind(nn.Dense(3))}]

    def __call__(self, x):
      return self.a.module(self.b[0].module(self.b[1]['k'].module(x)))

  return [attempt(Foo(kind).init, KEY, X) for kind in (Box, Plain, Pair)]


@programs
def sets_and_other_objects_are_not_searched(nn, flax):
  class Bag:
    def __init__(self, module):
      self.module = module

  class Foo(nn.Module):
    def setup(self):
      self.bag = Bag(nn.Dense(3))

    def __call__(self, x):
      return self.bag.module(x)

  class Set(nn.Module):
    def setup(self):
      self.bag = {1, 2}

    def __call__(self, x):
      return self.bag

  return [attempt(c().init_with_output, KEY, X) for c in (Foo, Set)]


@programs
def lists_are_tuples_also_in_fields(nn, flax):
  class Foo(nn.Module):
    a: Any
    b: Any = None

    def __call__(self, x):
      return type(self.a).__name__, self.a, type(self.b).__name__, self.b

  values = ([1, [2]], (1, [2]), {'a': [1]}, Pair([1], 2), [X], {1, 2})
  return [
    (type(Foo(v).a).__name__, attempt(Foo(v, v).apply, {}, X)) for v in values
  ]


@programs
def same_module_twice_in_one_attribute(nn, flax):
  class Foo(nn.Module):
    def setup(self):
      shared = nn.Dense(3)
      self.a = [shared, shared, nn.Dense(3)]
      self.b = {'again': shared}

    def __call__(self, x):
      for m in (*self.a, self.b['again']):
        x = m(x)
      return x, [m.name for m in self.a]

  return attempt(Foo().init_with_output, KEY, X)


@programs
def attributes_of_one_name_collide(nn, flax):
  class List(nn.Module):
    def setup(self):
      self.a = [nn.Dense(3)]
      self.a_0 = nn.Dense(3)

    def __call__(self, x):
      return self.a_0(self.a[0](x))

  class Twice(nn.Module):
    def setup(self):
      self.a = nn.Dense(3)
      self.a = nn.Dense(4)

    def __call__(self, x):
      return self.a(x)

  class Values(nn.Module):
    def setup(self):
      self.a = 1
      self.a = 2

    def __call__(self, x):
      return self.a

  kinds = (List, Twice, Values)
  return [attempt(c().init_with_output, KEY, X) for c in kinds]


@programs
def setting_a_field_in_setup(nn, flax):
  class Foo(nn.Module):
    size: int = 3

    def setup(self):
      self.size = 4

    def __call__(self):
      return self.size

  class NotInit(nn.Module):
    size: int = dataclasses.field(init=False)

    def setup(self):
      self.size = 4

    def __call__(self):
      return self.size

  class Name(nn.Module):
    def setup(self):
      self.name = 'foo'

    def __call__(self):
      return self.name

  kinds = (Foo, NotInit, Name)
  return [attempt(c().init_with_output, KEY) for c in kinds]


@programs
def setting_outside_of_setup(nn, flax):
  def set_(m, name='attr', value=3):
    setattr(m, name, value)
    return getattr(m, name)

  class Foo(nn.Module):
    size: int = 3

    def __call__(self, name, value):
      setattr(self, name, value)
      return getattr(self, name)

    @nn.compact
    def compact(self, name, value):
      setattr(self, name, value)
      return getattr(self, name)

    def plain(self):
      return getattr(self, 'attr', None)

  foo = Foo()
  foo.attr = 5
  foo.size = 7
  foo.__dunder__ = 8
  results = [(foo.attr, foo.size, foo.__dunder__), repr(foo)]
  results.append(Foo().plain())
  for method in ('__call__', 'compact', set_):
    for name, value in (
      ('attr', 1),
      ('size', 1),
      ('name', 'x'),
      ('__dunder__', 1),
      ('dense', nn.Dense(2)),
      ('_private', 1),
    ):
      results.append(attempt(Foo().apply, {}, name, value, method=method))
  return results


@programs
def mutating_a_container_of_setup(nn, flax):
  class Foo(nn.Module):
    def setup(self):
      self.a = [1]
      self.b = {'x': 1}

    def __call__(self, what):
      if what == 'append':
        self.a.append(2)
      if what == 'set':
        self.a[0] = 2
      if what == 'item':
        self.b['y'] = 2
      if what == 'delete':
        del self.a
      return self.a, dict(self.b)

  return [
    attempt(Foo().apply, {}, what)
    for what in ('', 'append', 'set', 'item', 'delete')
  ]


@programs
def submodule_attributes_are_frozen(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self):
      bar = nn.Dense(3)
      bar.features = 4
      return bar.features

  class Setup(nn.Module):
    def setup(self):
      self.bar = nn.Dense(3)
      self.bar.features = 4

    def __call__(self):
      return self.bar.features

  class Before(nn.Module):
    def setup(self):
      bar = nn.Dense(3)
      bar.features = 4
      self.bar = bar

    def __call__(self, x):
      return self.bar(x)

  return (
    attempt(Foo().init_with_output, KEY),
    attempt(Setup().init_with_output, KEY),
    attempt(Before().init_with_output, KEY, X),
  )


@programs
def setting_before_super_post_init(nn, flax):
  class Foo(nn.Module):
    size: int = 3

    def __post_init__(self):
      self.half = self.size / 2
      self.size = self.size * 2
      super().__post_init__()

    def __call__(self):
      return self.size, self.half

  class After(nn.Module):
    size: int = 3

    def __post_init__(self):
      super().__post_init__()
      self.half = self.size / 2

    def __call__(self):
      return self.half

  class Without(nn.Module):
    def __post_init__(self):
      pass

    def __call__(self):
      return 1

  class Top(nn.Module):
    kind: Any

    @nn.compact
    def __call__(self):
      return self.kind()()

  return [
    attempt(m.init_with_output, KEY)
    for m in (Foo(), Top(Foo), After(), Top(After), Without(), Top(Without))
  ]


@programs
def delete_attributes(nn, flax):
  class Foo(nn.Module):
    size: int = 3

    def __call__(self):
      del self.size
      return self.size

  foo = Foo(4)
  del foo.size
  return foo.size, attempt(Foo(5).apply, {})


@programs
def functions_and_methods_as_attributes(nn, flax):
  class Foo(nn.Module):
    act: Any = jnp.tanh

    def setup(self):
      self.f = lambda x: x + 1
      self.g = nn.relu
      self.h = self.helper
      self.dense = nn.Dense(3)
      self.call = self.dense.__call__

    def helper(self, x):
      return x * 2

    def __call__(self, x):
      return self.act(self.call(self.h(self.g(self.f(x)))))

  return attempt(Foo().init_with_output, KEY, X)


@programs.parametrize()
def test_same_as_flax(program):
  assert_same_as_flax(program)
