"""Semantics 8: modules made outside are copied, named and shared."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from module_compare import KEY, Programs, X, assert_same_as_flax, attempt, flag

programs = Programs()


def call_all(m, x):
  for field in dataclasses.fields(m):
    if field.name in ('parent', 'name'):
      continue
    leaves = jax.tree.leaves(
      getattr(m, field.name), is_leaf=lambda v: hasattr(v, 'clone')
    )
    for leaf in leaves:
      if hasattr(leaf, 'clone'):
        x = leaf(x)
  return x


def holders_of(nn):
  class Setup(nn.Module):
    a: Any
    b: Any = None

    def setup(self):
      pass

    def __call__(self, x):
      return call_all(self, x)

  class Plain(nn.Module):
    a: Any
    b: Any = None

    def __call__(self, x):
      return call_all(self, x)

  class Compact(nn.Module):
    a: Any
    b: Any = None

    @nn.compact
    def __call__(self, x):
      return call_all(self, x)

  class Assigns(nn.Module):
    a: Any
    b: Any = None

    def setup(self):
      self.z = self.a
      self.y = [self.b]

    def __call__(self, x):
      return call_all(self, x)

  return Setup, Plain, Compact, Assigns


@programs
def names_by_the_field(nn, flax):
  dense = lambda **kw: nn.Dense(3, **kw)
  values = [
    lambda: dense(),
    lambda: dense(name='own'),
    lambda: [dense(), dense()],
    lambda: (dense(), {'k': dense()}),
    lambda: {'b': dense(), 'a': dense()},
    lambda: {'B_foo': dense(), 'A_bar': dense(), 'c': {'d': [dense()]}},
    lambda: flax.core.FrozenDict({'z': dense(), 'a': dense()}),
    lambda: [dense(name='x'), dense(name='x')],
    lambda: [[], {}, dense()],
  ]
  return [
    attempt(holder(make()).init_with_output, KEY, X)
    for holder in holders_of(nn)
    for make in values
  ]


@programs
def two_fields_share_one_module(nn, flax):
  def shared():
    m = nn.Dense(3)
    return m, m

  def in_trees():
    m = nn.Dense(3)
    return [m, nn.Dense(3)], {'k': m}

  def nested():
    m = nn.Dense(3)
    return nn.Sequential([m, jnp.tanh]), nn.Sequential([m, nn.Sequential([m])])

  def parent_and_child():
    m = nn.Dense(3)
    s = nn.Sequential([m])
    return s, m

  def child_first():
    m = nn.Dense(3)
    s = nn.Sequential([m])
    return m, s

  def equal_but_not_same():
    return nn.Dense(3), nn.Dense(3)

  cases = (
    shared,
    in_trees,
    nested,
    parent_and_child,
    child_first,
    equal_but_not_same,
  )
  return {
    (holder.__name__, case.__name__): attempt(
      holder(*case()).init_with_output, KEY, X
    )
    for holder in holders_of(nn)
    for case in cases
  }


@programs
def shared_between_siblings(nn, flax):
  class Foo(nn.Module):
    inner: Any

    @nn.compact
    def __call__(self, x):
      return self.inner(x)

  class Top(nn.Module):
    def setup(self):
      shared = nn.Dense(3)
      self.a = Foo(shared)
      self.b = Foo(shared)

    def __call__(self, x):
      return self.b(self.a(x))

  class Compact(nn.Module):
    @nn.compact
    def __call__(self, x):
      shared = nn.Dense(3)
      return Foo(shared)(x) + Foo(shared)(x)

  class Named(nn.Module):
    def setup(self):
      self.shared = nn.Dense(3)
      self.a = Foo(self.shared)
      self.b = Foo(self.shared)

    def __call__(self, x):
      return self.b(self.a(x))

  class Later(nn.Module):
    def setup(self):
      shared = nn.Dense(3)
      self.a = Foo(shared)
      self.shared = shared

    def __call__(self, x):
      return self.shared(self.a(x))

  shared = nn.Dense(3)
  kinds = (Top, Compact, Named, Later)
  return [attempt(c().init_with_output, KEY, X) for c in kinds] + [
    attempt(nn.Sequential([Foo(shared), Foo(shared)]).init, KEY, X)
  ]


@programs
def outside_module_stays_as_it_was(nn, flax):
  class Foo(nn.Module):
    inner: Any

    @nn.compact
    def __call__(self, x):
      return self.inner(x), self.inner.name, self.inner is inner

  inner = nn.Dense(3)
  foo = Foo(inner)
  out = foo.init_with_output(KEY, X)
  return out, foo.inner is inner, inner.name, inner.scope, inner.parent


@programs
def passed_as_an_argument(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x, inner):
      return inner(x)

  class Top(nn.Module):
    @nn.compact
    def __call__(self, x):
      inner = nn.Dense(3)
      return Foo()(x, inner), inner.name, inner.path

  class Closure(nn.Module):
    @nn.compact
    def __call__(self, x):
      inner = nn.Dense(3)

      class Bar(nn.Module):
        @nn.compact
        def __call__(self, x):
          return inner(x)

      return Bar()(x) + Bar()(x)

  return (
    Top().init_with_output(KEY, X),
    Closure().init_with_output(KEY, X),
    attempt(Foo().init, KEY, X, nn.Dense(3)),
  )


@programs
def made_inside_keeps_the_scope_of_its_maker(nn, flax):
  class Foo(nn.Module):
    inner: Any

    @nn.compact
    def __call__(self, x):
      return self.inner(x)

  class Top(nn.Module):
    @nn.compact
    def __call__(self, x):
      a = Foo(nn.Dense(3))
      b = Foo(nn.Dense(3, name='own'))
      c = Foo(nn.Dense(3, parent=None))
      d = Foo(Foo(Foo(nn.Dense(3, parent=None), parent=None)))
      for m in (a, b, c, d):
        x = m(x)
      return x, [m.inner.path for m in (a, b, c, d)]

  return Top().init_with_output(KEY, X)


@programs
def explicit_parent(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.Dense(3)(x)

  class Top(nn.Module):
    @nn.compact
    def __call__(self, x):
      foo = Foo(name='foo')
      mine = nn.Dense(3, parent=self)
      return mine(foo(x))

  class Wrong(nn.Module):
    @nn.compact
    def __call__(self, x):
      foo = Foo()
      return nn.Dense(3, parent=foo)(x)

  class Unbound(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.Dense(3, parent=None)(x)

  class Kinds(nn.Module):
    parent_of: Any

    @nn.compact
    def __call__(self, x):
      return nn.Dense(3, parent=self.parent_of)(x)

  modules = [Top(), Wrong(), Unbound(), Kinds(3), Kinds('x')]
  return [attempt(m.init_with_output, KEY, X) for m in modules]


@programs
def module_outside_with_parent_argument(nn, flax):
  return (
    attempt(nn.Dense, 3, parent=nn.Dense(3)),
    attempt(nn.Dense, 3, parent=4),
    repr(nn.Dense(3, parent=None).parent),
  )


@programs
def called_outside_module_that_is_not_a_field(nn, flax):
  outside = nn.Dense(3)

  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      return outside(x)

  class Copied(nn.Module):
    @nn.compact
    def __call__(self, x):
      return outside.copy()(x) + outside.copy(name='mine')(x)

  class Assigned(nn.Module):
    def setup(self):
      self.a = outside
      self.b = outside

    def __call__(self, x):
      return self.a(x) + self.b(x)

  kinds = (Foo, Copied, Assigned)
  return [attempt(c().init_with_output, KEY, X) for c in kinds]


@programs
def default_field_is_a_module(nn, flax):
  class Foo(nn.Module):
    inner: nn.Module = nn.Dense(3)
    act: Any = dataclasses.field(default_factory=lambda: nn.Dense(3))

    @nn.compact
    def __call__(self, x):
      return self.act(self.inner(x))

  class Top(nn.Module):
    @nn.compact
    def __call__(self, x):
      return Foo()(Foo()(x))

  return Foo().init_with_output(KEY, X), Top().init_with_output(KEY, X)


@programs
def deep_nesting_from_outside(nn, flax):
  class Wrap(nn.Module):
    inner: Any

    def __call__(self, x):
      return self.inner(x)

  deep = nn.Dense(3)
  for _ in range(5):
    deep = Wrap(deep)
  three = nn.Sequential([deep, Wrap(deep), nn.Sequential([deep.inner])])
  return (
    deep.init_with_output(KEY, X),
    three.init_with_output(KEY, X),
    Wrap(three).init(KEY, X),
  )


@programs
def preserving_names(nn, flax):
  class Foo(nn.Module):
    a: Any
    b: Any = None

    def __call__(self, x):
      return call_all(self, x)

  class Preserves(Foo):
    preserve_adopted_names = True

  class DoesNot(Foo):
    preserve_adopted_names = False

  def cases():
    m = nn.Dense(3, name='own')
    return [
      (m,),
      (nn.Dense(3),),
      (m, m),
      ([m, nn.Dense(3, name='two')],),
      (m, nn.Dense(3, name='own')),
      (Foo(m, nn.Dense(3, name='x'), name='foo'),),
      (nn.Dense(3, name='b'), nn.Dense(3)),
      (nn.Sequential([m], name='seq'), m),
    ]

  results = []
  for value in (False, True):
    with flag(flax, 'flax_preserve_adopted_names', value):
      for kind in (Foo, Preserves, DoesNot):
        for case in cases():
          results.append(attempt(kind(*case).init, KEY, X))
  return results


@programs
def adopted_in_apply_too(nn, flax):
  class Foo(nn.Module):
    a: Any
    b: Any

    @nn.compact
    def __call__(self, x):
      return self.b(nn.Dense(3)(self.a(x)))

  norm = nn.BatchNorm(use_running_average=False)
  foo = Foo(nn.Sequential([nn.Dense(3), norm]), norm)
  variables = foo.init(KEY, X)
  return variables, foo.apply(variables, X, mutable=['batch_stats'])


@programs
def setup_assigns_a_field_to_another_name(nn, flax):
  class Foo(nn.Module):
    inner: Any

    def setup(self):
      self.alias = self.inner
      self.list = [self.inner, nn.Dense(3)]

    def __call__(self, x):
      out = self.list[1](self.list[0](self.alias(self.inner(x))))
      return out, self.alias is self.inner, self.list[0] is self.alias

  return Foo(nn.Dense(3)).init_with_output(KEY, X)


@programs
def a_module_returned_from_a_method(nn, flax):
  class Foo(nn.Module):
    def setup(self):
      self.dense = nn.Dense(3)

    def get(self):
      return self.dense

  class Top(nn.Module):
    @nn.compact
    def __call__(self, x):
      foo = Foo()
      return foo.get()(x), foo.get() is foo.dense

  class Made(nn.Module):
    @nn.compact
    def make(self):
      return nn.Dense(3)

  class TopMade(nn.Module):
    @nn.compact
    def __call__(self, x):
      return Made().make()(x)

  kinds = (Top, TopMade)
  return [attempt(c().init_with_output, KEY, X) for c in kinds]


@programs
def two_applications_do_not_share(nn, flax):
  inner = nn.BatchNorm(use_running_average=False)
  a = nn.Sequential([inner, nn.Dense(3)])
  b = nn.Sequential([nn.Dense(3), inner])
  va, vb = a.init(KEY, X), b.init(KEY, X)
  return va, vb, a.apply(va, X, mutable=True), b.apply(vb, X, mutable=True)


@programs
def variable_as_a_field(nn, flax):
  class Foo(nn.Module):
    n: Any

    @nn.compact
    def __call__(self):
      self.n.value += 1
      return self.n.value

  class Top(nn.Module):
    @nn.compact
    def __call__(self):
      n = self.variable('state', 'n', lambda: 0)
      Foo(n)()
      Foo([n][0])()
      return n.value

  return Top().init_with_output(KEY)


@programs.parametrize()
def test_same_as_flax(program):
  assert_same_as_flax(program)
