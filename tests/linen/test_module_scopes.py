"""Semantics 20: share_scope, compact_name_scope, copy and clone."""

from typing import Any

import jax
import jax.numpy as jnp
from module_compare import KEY, Programs, X, assert_same_as_flax, attempt

programs = Programs()
ones = jax.nn.initializers.ones


@programs
def share_scope_in_setup(nn, flax):
  class DenseLoRA(nn.Module):
    inner: nn.Dense
    rank: int = 2

    def setup(self):
      nn.share_scope(self, self.inner)

    @nn.compact
    def __call__(self, x):
      n = x.shape[-1]
      a = self.param('A', ones, (n, self.rank))
      b = self.param('B', ones, (self.rank, self.inner.features))
      return self.inner(x) + x @ a @ b

  class Top(nn.Module):
    @nn.compact
    def __call__(self, x):
      return DenseLoRA(nn.Dense(4))(x), DenseLoRA(nn.Dense(4), name='mine')(x)

  class Setup(nn.Module):
    def setup(self):
      self.a = DenseLoRA(nn.Dense(3))
      self.b = [DenseLoRA(nn.Dense(3))]

    def __call__(self, x):
      return self.a(x) + self.b[0](x)

  results = []
  for m in (DenseLoRA(nn.Dense(4)), Top(), Setup()):
    out, variables = m.init_with_output(KEY, X)
    results.append((out, variables, m.apply(variables, X)))
  return results


@programs
def share_scope_both_directions(nn, flax):
  class Inner(nn.Module):
    def setup(self):
      self.d = nn.Dense(3)

    @nn.compact
    def __call__(self, x):
      return nn.Dense(3, name='made')(self.d(x))

  class Parent(nn.Module):
    order: str

    def setup(self):
      self.inner = Inner()
      self.other = nn.Dense(3)
      if self.order == 'self first':
        nn.share_scope(self, self.inner)
      elif self.order == 'child first':
        nn.share_scope(self.inner, self)
      elif self.order == 'siblings':
        nn.share_scope(self.inner, self.other)
      elif self.order == 'siblings back':
        nn.share_scope(self.other, self.inner)
      elif self.order == 'same':
        nn.share_scope(self, self)

    @nn.compact
    def __call__(self, x):
      y = self.other(self.inner(x))
      return nn.Dense(2, name='last')(y), self.inner.path, self.other.path

  orders = ('self first', 'child first', 'siblings', 'siblings back', 'same')
  return {o: attempt(Parent(o).init_with_output, KEY, X) for o in orders}


@programs
def share_scope_in_compact(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      a = nn.Dense(3)
      nn.share_scope(self, a)
      w = self.param('w', ones, (3,))
      return a(x) * w + nn.Dense(3)(x)

  class Bar(nn.Module):
    inner: Any

    @nn.compact
    def __call__(self, x):
      nn.share_scope(self, self.inner)
      return self.inner(x)

  class Late(nn.Module):
    @nn.compact
    def __call__(self, x):
      a = nn.Dense(3)
      y = a(x)
      nn.share_scope(self, a)
      return a(y)

  modules = (Foo(), Bar(nn.Dense(3)), Bar(Bar(nn.Dense(3))), Late())
  return [attempt(m.init_with_output, KEY, X) for m in modules]


@programs
def share_scope_conflicts(nn, flax):
  class Inner(nn.Module):
    def setup(self):
      self.d = nn.Dense(3)

    def __call__(self, x):
      return self.d(x)

  class Foo(nn.Module):
    def setup(self):
      self.d = nn.Dense(3)
      self.inner = Inner()
      nn.share_scope(self, self.inner)

    def __call__(self, x):
      return self.inner(self.d(x))

  return (
    attempt(Foo().init, KEY, X),
    attempt(nn.share_scope, nn.Dense(2), nn.Dense(3)),
    attempt(lambda: nn.share_scope(nn.Dense(2).bind({}), nn.Dense(3))),
  )


@programs
def share_scope_keys(nn, flax):
  class Foo(nn.Module):
    def setup(self):
      self.a = nn.Dense(3)
      self.b = nn.Dropout(0.5, deterministic=False)
      nn.share_scope(self, self.a)

    @nn.compact
    def __call__(self, x):
      return self.b(self.a(x)), self.make_rng('params'), self.a.make_rng()

  return Foo().init_with_output(KEY, X)


@programs
def a_library_that_has_a_function_of_that_name(nn, flax):
  class Base(nn.Module):
    library = nn

  class Net(Base):
    @nn.compact
    def __call__(self, x):
      return self.library.Dense(2)(x)

  return Net().init_with_output(KEY, X)


@programs
def compact_name_scopes(nn, flax):
  class Foo(nn.Module):
    @nn.compact_name_scope
    def up(self, x):
      return nn.Dense(3)(x)

    @nn.compact_name_scope
    def down(self, x):
      return nn.Dense(3)(x)

    def __call__(self, x):
      return self.up(x) + self.down(x) + self.up(x)

  class Mixed(Foo):
    size: int = 2

    def setup(self):
      self.d = nn.Dense(3)

    @nn.compact
    def __call__(self, x):
      return nn.Dense(self.size)(self.up(self.d(x)))

  class Own(nn.Module):
    @nn.compact_name_scope
    def up(self, x):
      w = self.param('w', ones, (3,))
      return x + w

    def __call__(self, x):
      return self.up(x)

  class Clash(nn.Module):
    @nn.compact_name_scope
    def up(self, x):
      return nn.Dense(3)(x)

    @nn.compact
    def __call__(self, x):
      return nn.Dense(3, name='up')(self.up(x))

  foo = Foo()
  variables = foo.init(KEY, X)
  return (
    [
      attempt(m.init_with_output, KEY, X)
      for m in (Foo(), Mixed(), Own(), Clash())
    ],
    foo.apply(variables, X),
    foo.apply(variables, X, method='up'),
    foo.apply(variables, X, method=foo.down),
    foo.apply(variables, X, method=Foo.down),
    attempt(foo.init, KEY, X, method='up'),
    attempt(foo.up, X),
    attempt(lambda: foo.bind(variables).up(X)),
  )


@programs
def clone_and_copy(nn, flax):
  class Foo(nn.Module):
    a: Any
    b: int = 3

    @nn.compact
    def __call__(self, x):
      return self.a(x)

  foo = Foo(nn.Dense(3), name='foo')
  results = [
    (m.name, m.parent, m.b, m.a.features, m.a is foo.a, m == foo)
    for m in (
      foo.clone(),
      foo.clone(b=4),
      foo.clone(name='other'),
      foo.clone(name=None),
      foo.copy(),
      foo.copy(name='mine'),
      foo.copy(b=7),
      foo.clone(a=nn.Dense(4)),
      foo.clone(parent=None),
    )
  ]
  return results, attempt(lambda: foo.clone(nope=3))


@programs
def clone_and_copy_inside(nn, flax):
  class Foo(nn.Module):
    def setup(self):
      self.a = nn.Dense(3)
      self.b = self.a.copy()
      self.c = [self.a.clone(), self.a.copy(features=4)]
      self.d = self.a.clone(name='given')

    def __call__(self, x):
      modules = (self.a, self.b, *self.c, self.d)
      return [attempt(m, x) for m in modules], [m.name for m in modules]

  class Compact(nn.Module):
    @nn.compact
    def __call__(self, x):
      a = nn.Dense(3)
      modules = (a, a.copy(), a.copy(name='x'), a.copy(features=2))
      return [attempt(m, x) for m in modules], [m.name for m in modules]

  class Clone(nn.Module):
    @nn.compact
    def __call__(self, x):
      a = nn.Dense(3)
      return a(x) + a.clone()(x)

  kinds = (Foo, Compact, Clone)
  return [attempt(c().init_with_output, KEY, X) for c in kinds]


@programs
def copies_keep_sharing(nn, flax):
  class Foo(nn.Module):
    a: Any
    b: Any

    def __call__(self, x):
      return self.b[0](self.a(x))

  shared = nn.Dense(3)
  foo = Foo(shared, [shared])
  twin = foo.copy()
  return (
    twin.init(KEY, X),
    foo.clone().init(KEY, X),
    twin.a is twin.b[0],
    foo.clone().a is shared,
  )


@programs
def paths(nn, flax):
  class Bar(nn.Module):
    def setup(self):
      self.d = nn.Dense(3)

    def __call__(self):
      return self.path, self.d.path, self.name

  class Foo(nn.Module):
    @nn.compact
    def __call__(self):
      bars = [Bar(), Bar(name='x'), Bar(parent=None)]
      return self.path, [b() for b in bars[:2]], attempt(lambda: bars[2].path)

  return Foo().apply({}), Foo(name='top').apply({})


@programs
def module_paths(nn, flax):
  class Bar(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.Dense(3)(nn.Dense(3)(x))

  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      bar = Bar(name='bar')
      return nn.Dense(2)(bar(bar(x)))

  found = Foo().module_paths(KEY, X)
  again = Foo().module_paths(KEY, X, show_repeated=True)
  return (
    [(path, type(m).__name__, m.name, m.parent) for path, m in found.items()],
    list(again),
    repr(found['Dense_0']),
    found['bar/Dense_0'].init(KEY, jnp.ones((1, 2))),
  )


@programs.parametrize()
def test_same_as_flax(program):
  assert_same_as_flax(program)


def test_compact_name_scopes_of_a_submodule():
  """In Flax they land in the parent, so that two submodules collide."""
  import haiku_state.linen as nn

  class Foo(nn.Module):
    @nn.compact_name_scope
    def up(self, x):
      return nn.Dense(3)(x)

    def __call__(self, x):
      return self.up(self.up(x))

  class Top(nn.Module):
    def setup(self):
      self.a = Foo()

    @nn.compact
    def __call__(self, x):
      return Foo()(self.a.up(x))

  variables = Top().init(KEY, X)
  assert jax.tree.map(jnp.shape, variables).unfreeze() == {
    'params': {
      name: {'up': {'Dense_0': {'kernel': (3, 3), 'bias': (3,)}}}
      for name in ('a', 'Foo_0')
    }
  }
  Top().apply(variables, X)
