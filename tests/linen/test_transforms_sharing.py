"""Semantics 16: modules and variables that reach into a lifted transform.

A call reaches the module, and the modules and variables in its fields and
arguments. All are lifted together; what is the same outside is the same inside.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from module_compare import KEY, Programs, X, assert_same_as_flax, attempt

from haiku_state import linen

programs = Programs()
ones = jax.nn.initializers.ones


def counter_of(nn):
  class Counter(nn.Module):
    @nn.compact
    def __call__(self):
      v = self.variable('counter', 'foo', lambda: jnp.array([0]))
      v.value += jnp.array([1])
      return v.value

  return Counter


def init_and_apply(module, *args, mutable=('counter',)):
  variables = module.init(KEY, *args)
  return variables, module.apply(variables, *args, mutable=list(mutable))


@programs
def a_field_shared_by_two_lifted_modules(nn, flax):
  class Outer(nn.Module):
    @nn.compact
    def __call__(self, x):
      nn.jit(counter_of(nn))(name='cntr')()
      return x

  class Inner(nn.Module):
    outer_module: nn.Module

    @nn.compact
    def __call__(self, x):
      return self.outer_module(x)

  class Test(nn.Module):
    @nn.compact
    def __call__(self, x):
      outer = nn.jit(Outer)(name='outer')
      inner = nn.jit(Inner)(outer, name='inner1')
      inner2 = nn.jit(Inner)(outer, name='inner2')
      return inner(x) + inner2(x)

  return init_and_apply(Test(), X)


@programs
def the_same_by_decorators(nn, flax):
  class Outer(nn.Module):
    @nn.jit
    @nn.compact
    def __call__(self, x):
      counter_of(nn)(name='cntr')()
      return x

  class Inner(nn.Module):
    outer_module: nn.Module

    @nn.jit
    @nn.compact
    def __call__(self, x):
      return self.outer_module(x)

  class Test(nn.Module):
    @nn.compact
    def __call__(self, x):
      outer = Outer(name='outer')
      return Inner(outer, name='a')(x) + Inner(outer, name='b')(x)

  return init_and_apply(Test(), X)


@programs
def a_module_as_argument(nn, flax):
  class Outer(nn.Module):
    @nn.compact
    def __call__(self, x):
      nn.jit(counter_of(nn))(name='cntr')()
      return x

  class Inner(nn.Module):
    @nn.compact
    def __call__(self, outer_module, x):
      return outer_module(x)

  class Test(nn.Module):
    @nn.compact
    def __call__(self, x):
      outer = nn.jit(Outer)(name='outer')
      inner = nn.jit(Inner)(name='inner1')
      inner2 = nn.jit(Inner)(name='inner2')
      return inner(outer, x) + inner2(outer, x)

  return init_and_apply(Test(), X)


@programs
def a_module_as_argument_of_decorated_setup(nn, flax):
  class Outer(nn.Module):
    def setup(self):
      self.cntr = counter_of(nn)()

    @nn.jit
    def __call__(self, x):
      self.cntr()
      return x

  class Inner(nn.Module):
    outer_module: nn.Module

    @nn.jit
    def __call__(self, x):
      return self.outer_module(x)

  class Test(nn.Module):
    def setup(self):
      self.outer = Outer()
      self.inner1 = Inner(self.outer)
      self.inner2 = Inner(self.outer)

    @nn.jit
    def __call__(self, x):
      return self.inner1(x) + self.inner2(x)

  return init_and_apply(Test(), X)


@programs
def lifted_classes_in_setup_that_share(nn, flax):
  class Outer(nn.Module):
    def setup(self):
      self.cntr = nn.jit(counter_of(nn))()

    def __call__(self, x):
      self.cntr()
      return x

  class Inner(nn.Module):
    outer_module: nn.Module

    def __call__(self, x):
      return self.outer_module(x)

  class Test(nn.Module):
    def setup(self):
      self.outer = nn.jit(Outer)()
      self.inner1 = nn.jit(Inner)(self.outer)
      self.inner2 = nn.jit(Inner)(self.outer)

    def __call__(self, x):
      return self.inner1(x) + self.inner2(x)

  return init_and_apply(Test(), X)


@programs
def adoption_of_unbound_modules(nn, flax):
  class A(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.Dense(3)(x)

  class B(nn.Module):
    a: nn.Module

    @nn.compact
    def __call__(self, x):
      return self.a(x)

  class C(nn.Module):
    a: nn.Module
    b: nn.Module

    @nn.jit
    @nn.compact
    def __call__(self, x):
      return self.b(x) + self.a(x)

  class D(nn.Module):
    a: nn.Module
    b: nn.Module
    c: nn.Module

    @nn.compact
    def __call__(self, x):
      return self.b(x) + self.a(x) + self.c(x)

  def top(cls, lift):
    a = A()
    b = B(a)
    return lift(cls)(a, b) if cls is C else lift(cls)(a, b, C(a, b))

  return [
    top(C, nn.jit).init(KEY, X),
    init_and_apply(top(D, nn.remat), X),
  ]


@programs
def adoption_in_pytrees(nn, flax):
  class A(nn.Module):
    @nn.compact
    def __call__(self, c, x):
      counter = self.variable('counter', 'i', jnp.zeros, ())
      counter.value += 1
      return c, nn.Dense(1)(x)

  class B(nn.Module):
    bs: list
    a: nn.Module

    @nn.compact
    def __call__(self, c, x):
      for b in self.bs.values() if hasattr(self.bs, 'values') else self.bs:
        c, y = b(c, x)
      return self.a(c, y)

  scanned = functools.partial(
    nn.scan,
    in_axes=(),
    variable_broadcast='params',
    split_rngs={'params': False},
    variable_carry='counter',
    length=2,
  )

  def run(make):
    a = A()
    module = make(a)
    variables = module.init(KEY, 0.0, X)
    return variables, module.apply(variables, 0.0, X, mutable=['counter'])

  return [
    attempt(run, lambda a: nn.jit(B)([a, a], a)),
    attempt(run, lambda a: nn.jit(B)({'x': a, 'y': A()}, a)),
    attempt(run, lambda a: nn.remat(B)([A(), a], a)),
    attempt(scanned, 3),
  ]


@programs
def variables_as_arguments_and_fields(nn, flax):
  class User(nn.Module):
    somevar: nn.Variable

    @nn.jit
    @nn.compact
    def __call__(self, x):
      self.somevar.value += x.sum()
      return x

  class Middle(nn.Module):
    somevar: nn.Variable

    @nn.jit
    @nn.compact
    def __call__(self, x):
      return User(self.somevar)(x)

  class ByArgument(nn.Module):
    @nn.jit
    @nn.compact
    def __call__(self, x, var):
      var.value += x.sum()
      return x * var.value

  class Top(nn.Module):
    @nn.jit
    @nn.compact
    def __call__(self, x):
      counter = self.variable('counter', 'counter', jnp.zeros, ())
      x = Middle(counter)(x)
      x = ByArgument()(x, counter)
      x = ByArgument()(x, var=counter)
      return x, counter.value

  return init_and_apply(Top(), X)


@programs
def a_variable_of_another_module_as_argument(nn, flax):
  class Inner(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.jit(Deep)()(x, self.variable('counter', 'v', jnp.zeros, (3,)))

  class Deep(nn.Module):
    @nn.compact
    def __call__(self, x, v):
      v.value += x.sum(0)
      return x + nn.Dense(3)(v.value)

  return init_and_apply(nn.remat(Inner)(), X)


@programs
def instances_as_arguments_in_pytrees(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, args):
      x, modules = args
      for name in sorted(modules):
        x = modules[name](x)
      return x

  class Top(nn.Module):
    lift: object

    @nn.compact
    def __call__(self, x):
      a, b = nn.Dense(3, name='a'), nn.Dense(3, name='b')
      a(x)
      foo = self.lift(Foo)()
      return foo((x, {'a': a, 'b': b, 'c': a}))

  return [init_and_apply(Top(lift), X) for lift in (nn.remat, nn.jit)]


@programs
def changes_through_one_alias_are_seen_through_the_other(nn, flax):
  class Store(nn.Module):
    @nn.compact
    def __call__(self, x):
      v = self.variable('counter', 'v', jnp.zeros, (3,))
      v.value += x.sum(0)
      return v.value

  class User(nn.Module):
    store: nn.Module

    @nn.jit
    def __call__(self, x, same, var):
      a = self.store(x)
      b = same(x)
      var.value = var.value * 2
      return a, b, self.store(x), same.get_variable('counter', 'v')

  class Top(nn.Module):
    @nn.compact
    def __call__(self, x):
      store = Store(name='store')
      store(x)
      var = nn.Variable(store.scope, 'counter', 'v', True)
      out = User(store)(x, store, var)
      return out, var.value, store.get_variable('counter', 'v'), store(x)

  return init_and_apply(Top(), X)


@programs
def a_parent_and_its_child_together(nn, flax):
  class Parent(nn.Module):
    @nn.compact
    def __call__(self, x):
      return self.param('w', ones, (3,)) * x

    @nn.compact
    def child(self, x):
      return nn.Dense(3, name='child')

  class User(nn.Module):
    @nn.jit
    @nn.compact
    def __call__(self, x, parent, child):
      y = parent(x) + child(x) + nn.Dense(3)(x)
      assert child.scope.parent == parent.scope
      assert child.path == (*parent.path, 'child')
      return y

  class Top(nn.Module):
    @nn.compact
    def __call__(self, x):
      parent = Parent()
      child = nn.Dense(3, name='child', parent=parent.scope.push('child'))
      return User()(x, parent, child)

  return attempt(init_and_apply, Top(), X)


@programs
def a_lifted_method_of_the_parent(nn, flax):
  class Child(nn.Module):
    @nn.compact
    def __call__(self, x):
      return self.parent.helper(x)

  class Top(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.Dense(3)(x) + self.helper(x)

    def helper(self, x):
      return 2 * x

  class Lifted(Top):
    @nn.remat
    @nn.compact
    def __call__(self, x):
      y = super().__call__(x)
      return y + nn.Dense(3)(y)

  return init_and_apply(Lifted(), X)


@programs
def setup_on_the_outside_shared_across_transforms(nn, flax):
  class A(nn.Module):
    def setup(self):
      self.foo = self.param('foo', ones, (2, 2))

    def __call__(self, x):
      return self.foo

  class B(nn.Module):
    a: nn.Module

    @nn.compact
    def __call__(self, x):
      return self.a(x)

  class C(nn.Module):
    def setup(self):
      self.a = A()
      self.b = nn.jit(B)(self.a)

    def __call__(self, x):
      b = self.b(x)
      a = self.a(x)
      return a + b

  class D(nn.Module):
    def setup(self):
      self.a = A()

    def __call__(self, x):
      return nn.remat(lambda m, x: m.a(x) + m.foo(x))(self, x) + self.a(x)

    def foo(self, x):
      return self.a(x)

  return init_and_apply(C(), X), init_and_apply(D(), X)


@programs
def methods_of_lifted_submodules(nn, flax):
  class Foo(nn.Module):
    def setup(self):
      self.inner = nn.Dense(3)

    def helper(self, x, m):
      return 2 * m + self.inner(x)

    def __call__(self, x):
      return self.inner(x)

  class Bar(nn.Module):
    def setup(self):
      self.a = nn.jit(Foo, methods=['helper', '__call__'])()
      self.b = nn.remat(Foo, methods={'helper': {}})()

    def __call__(self, x):
      y = self.a.helper(x, jnp.ones(()))
      y = y + self.a(x) + self.a.inner(x)
      return y + self.b.helper(x, 1.0) + self.b(x)

  return init_and_apply(Bar(), X)


@programs
def names_of_lifted_classes(nn, flax):
  Foo = nn.Dense
  vmap = functools.partial(
    nn.vmap, variable_axes={'params': 0}, split_rngs={'params': True}
  )
  lifted = [
    nn.jit(Foo),
    nn.remat(Foo),
    nn.checkpoint(Foo),
    nn.fold_rngs(Foo),
    vmap(Foo),
    nn.map_variables(Foo, 'params', init=True),
    nn.add_metadata_axis(Foo, {'params': 0}),
    vmap(nn.remat(nn.jit(Foo))),
    nn.scan(Foo),
    nn.remat_scan(Foo),
    nn.jit(functools.partial(Foo, 3)).func,
  ]

  class Top(nn.Module):
    @nn.compact
    def __call__(self, x):
      for cls in lifted[:8]:
        if 'Vmap' not in cls.__name__:
          x = cls(3)(x)
          x = cls(3)(x)
      return lifted[4](3)(x), lifted[7](2)(x)

  variables = Top().init(KEY, X)
  # With mutable collections `map_variables(init=True)` would look for new ones.
  names = [(c.__name__, c.__qualname__, c.__module__) for c in lifted]
  return names, variables, Top().apply(variables, X)


@programs
def lifted_modules_are_named_and_equal_like_others(nn, flax):
  Dense = nn.remat(nn.Dense)
  d = Dense(3, name='d')
  return (
    repr(d),
    d == Dense(3, name='d'),
    d == nn.Dense(3, name='d'),
    isinstance(d, nn.Dense),
    hash(d) == hash(Dense(3, name='d')),
    d.copy(features=4, name='e').features,
    [f for f in Dense.__dataclass_fields__],
  )


@programs
def names_cannot_be_taken_twice_through_aliases(nn, flax):
  class Foo(nn.Module):
    m: nn.Module

    @nn.compact
    def __call__(self, x):
      x = nn.Dense(2, name='dense')(x)
      return self.m(x)

  class Bar(nn.Module):
    @nn.compact
    def __call__(self, x):
      foo = nn.jit(Foo)(m=self)
      return foo(x)

  class ByArgument(nn.Module):
    @nn.compact
    def __call__(self, x, other):
      return nn.Dense(3, name='dense')(x) + other(x)

  class Baz(nn.Module):
    @nn.compact
    def __call__(self, x):
      dense = nn.Dense(3, name='dense')
      nn.Dense(3)(x)
      return nn.jit(ByArgument)(name='by')(x, dense)

  class Taken(nn.Module):
    @nn.compact
    def __call__(self, x):
      nn.Dense(3, name='dense')(x)
      return nn.jit(nn.Dense)(3, name='dense')(x)

  return init_and_apply(Baz(), X), attempt(Taken().init, KEY, X)


@programs
def autonames_go_on_after_lifted_methods(nn, flax):
  class Top(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = nn.Dense(3)(x)
      x = self.helper(x)
      x = nn.Dense(3)(x)
      x = nn.remat(lambda m, x: nn.Dense(3)(x))(self, x)
      return nn.Dense(3)(x)

    @nn.jit
    def helper(self, x):
      return nn.Dense(3)(nn.Dense(3)(x))

  return init_and_apply(Top(), X)


@programs
def lifted_helpers_with_setup(nn, flax):
  class JitModel(nn.Module):
    def setup(self):
      self.a = nn.Dense(3)
      self.c = nn.Dense(3)

    @nn.jit
    def helper(self, x):
      return self.a(x)

    @nn.remat
    def other(self, x):
      return self.c(self.helper(x))

    def __call__(self, x):
      return self.other(x) + self.helper(x) + self.other(x)

  return init_and_apply(JitModel(), X)


@programs
def setup_runs_when_it_is_due(nn, flax):
  calls = []

  class Inner(nn.Module):
    def setup(self):
      calls.append('setup')
      self.w = self.param('w', ones, (3,))

    def __call__(self, x):
      calls.append('call')
      return x * self.w

  class Top(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.jit(Inner)()(x) + nn.remat(Inner)()(x)

  variables = Top().init(KEY, X)
  return variables, calls.count('call')


@programs
def parameters_of_setup_in_a_scan(nn, flax):
  class Body(nn.Module):
    def setup(self):
      self.w = self.param('w', ones, (3,))
      self.dense = nn.Dense(3)

    def __call__(self, x, _):
      return self.dense(x) * self.w, ()

  Scanned = nn.scan(
    Body, variable_axes={'params': 0}, split_rngs={'params': True}, length=2
  )

  class Top(nn.Module):
    def setup(self):
      self.body = Scanned()

    def __call__(self, x):
      return self.body(x, None)[0]

  return init_and_apply(Top(), X)


@programs
def partial_of_a_class_in_a_module(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      dense = nn.jit(functools.partial(nn.Dense, use_bias=False))
      also = functools.partial(nn.remat(functools.partial(nn.Dense, 3)))
      return also(name='b')(dense(3, name='a')(x))

  return init_and_apply(Foo(), X)


@programs
def partial_of_a_method(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def inner(self, x):
      return nn.Dense(2, use_bias=False)(x)

    def __call__(self, x):
      return nn.jit(functools.partial(Foo.inner))(self, x)

  return attempt(init_and_apply, Foo(), X)


@programs
def a_static_method_and_a_plain_callable(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.remat(Foo.run)(self, x)

    @staticmethod
    def run(m, x):
      return nn.Dense(3)(x)

  return init_and_apply(Foo(), X)


@programs
def copies_of_lifted_modules(nn, flax):
  class Top(nn.Module):
    inner: nn.Module

    @nn.compact
    def __call__(self, x):
      return self.inner.copy()(x) + self.inner.clone(parent=None, name='c')(x)

  lifted = nn.remat(nn.Dense)(3, parent=None)
  return attempt(init_and_apply, Top(lifted), X), attempt(
    init_and_apply, lifted.copy(features=2), X
  )


@programs
def optional_modules_and_none(nn, flax):
  class Block(nn.Module):
    norm: object = None

    @nn.compact
    def __call__(self, x, mask=None, module=None):
      x = x if self.norm is None else self.norm(x)
      x = x if module is None else module(x)
      return x if mask is None else x * mask

  class Top(nn.Module):
    @nn.compact
    def __call__(self, x):
      block = nn.remat(Block)()
      y = block(x) + block(x, None) + block(x, module=nn.Dense(3))
      return y + nn.jit(Block)(nn.LayerNorm())(x, jnp.ones((3,)))

  return init_and_apply(Top(), X)


@programs
def share_scope_and_a_lifted_transform(nn, flax):
  class Adapter(nn.Module):
    @nn.compact
    def __call__(self, x, kernel):
      return x @ kernel + self.param('b', ones, (3,))

  class Top(nn.Module):
    def setup(self):
      self.adapter = Adapter()
      self.dense = nn.Dense(3)
      nn.share_scope(self, self.adapter)

    @nn.remat
    def __call__(self, x):
      y = self.dense(x)
      return self.adapter(y, self.dense.variables['params']['kernel'])

  return attempt(init_and_apply, Top(), X)


@programs
def deep_nesting_of_lifted_modules(nn, flax):
  class Nest(nn.Module):
    depth: int

    @nn.remat
    @nn.compact
    def __call__(self, x):
      x = nn.Dense(3)(x)
      return Nest(self.depth - 1)(x) if self.depth else x

  return init_and_apply(Nest(4), X)


@programs.parametrize()
def test_as_flax(program):
  assert_same_as_flax(program)


# Where Flax fails by accident, and nothing speaks against an answer.


class Wrap(linen.Module):
  inner: linen.Module
  scale: float = 2.0

  @linen.compact
  def __call__(self, x):
    return self.scale * self.inner(x)


class WrapUser(linen.Module):
  lift: object

  @linen.compact
  def __call__(self, x):
    dense = linen.Dense(3)
    wrap = Wrap(dense, 3.0)
    use = self.lift(lambda m, x, module: module(module(x)))
    return use(self, x, wrap) + dense(x) + wrap(x)


@pytest.mark.parametrize('lift', [linen.remat, linen.jit])
def test_modules_with_modules_in_fields_as_arguments(lift):
  module, plain = WrapUser(lift), WrapUser(lambda fn: fn)
  variables = plain.init(KEY, X)
  assert jax.tree.structure(module.init(KEY, X)) == jax.tree.structure(
    variables
  )
  np.testing.assert_allclose(
    module.apply(variables, X), plain.apply(variables, X), 1e-6
  )


class NameScopes(linen.Module):
  @linen.compact_name_scope
  def up(self, x):
    return linen.Dense(3)(x)

  def __call__(self, x):
    return self.up(x) + self.up(x)


@pytest.mark.parametrize('lift', [linen.remat, linen.jit])
def test_compact_name_scopes_in_a_lifted_class(lift):
  variables = NameScopes().init(KEY, X)
  lifted = lift(NameScopes)()
  assert set(lifted.init(KEY, X)['params']) == {'up'}
  # Compiled as one, or operation by operation: the last place may differ.
  np.testing.assert_allclose(
    lifted.apply(variables, X), NameScopes().apply(variables, X), 1e-6, 1e-6
  )
