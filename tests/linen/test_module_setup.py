"""Semantics 6: setup runs late, once, and never without a scope."""

import jax
import jax.numpy as jnp
from module_compare import KEY, Programs, X, assert_same_as_flax, attempt

programs = Programs()
ones = jax.nn.initializers.ones


@programs
def setup_is_lazy(nn, flax):
  log = []

  class Foo(nn.Module):
    def setup(self):
      log.append('foo')
      self.dense = nn.Dense(2)

    def __call__(self, x):
      log.append('call')
      return self.dense(x)

  class Top(nn.Module):
    used: bool

    def setup(self):
      log.append('top')
      self.foo = Foo()

    def __call__(self, x):
      log.append('call top')
      if self.used:
        return self.foo(x) + self.foo(x)

  out = [Top(used).init(KEY, X) for used in (False, True)]
  return out, log


@programs
def what_triggers_setup(nn, flax):
  log = []

  class Foo(nn.Module):
    size: int = 3
    default = 4

    def setup(self):
      log.append('setup')
      self.a = 5
      self.dense = nn.Dense(2)

    def method(self):
      log.append('method')

    @nn.nowrap
    def helper(self):
      return self.size

    @property
    def prop(self):
      return self.a

  def look(name):
    def fn(m):
      log.append(name)
      getattr(m, name)
      log.append('looked')

    return fn

  names = ['size', 'default', 'helper', 'prop', 'a', 'dense', 'name', 'scope']
  for name in names + ['method', 'variables', 'path', 'nope', 'parent']:
    log.append(attempt(Foo().apply, {}, method=look(name)))
  Foo().apply({}, method=lambda m: dir(m))
  Foo().apply({}, method=lambda m: log.append('helper') or m.helper())
  Foo().apply({}, method=lambda m: hasattr(m, 'nope'))
  Foo().apply({}, method=lambda m: repr(m))
  return log


@programs
def properties_that_are_set(nn, flax):
  class Foo(nn.Module):
    @property
    def doubled(self):
      return self.double

    @doubled.setter
    def doubled(self, value):
      self.double = 2 * value

    @property
    def layer(self):
      return self.dense

    @layer.setter
    def layer(self, module):
      self.dense = module

    def setup(self):
      self.doubled = 3
      self.layer = nn.Dense(2)

    def __call__(self, x):
      return self.doubled, self.layer(x), self.layer.name

  def without_setter(value):
    class Fixed(nn.Module):
      @property
      def fixed(self):
        return 2

      def setup(self):
        self.fixed = value

      def __call__(self):
        return self.fixed

    return Fixed().init(KEY)

  class Path(nn.Module):
    def setup(self):
      self.path = 2

    def __call__(self):
      pass

  return (
    Foo().init_with_output(KEY, X),
    attempt(without_setter, 3),
    attempt(without_setter, nn.Dense(2)),
    attempt(Path().init, KEY),
  )


@programs
def never_without_a_scope(nn, flax):
  class Foo(nn.Module):
    def setup(self):
      self.a = 5

    def method(self):
      return self.a

    def plain(self):
      return 7

  foo = Foo()
  return (
    attempt(lambda: foo.a),
    attempt(foo.method),
    foo.plain(),
    attempt(foo.setup),
    'a' in dir(foo),
    hasattr(foo, 'a'),
  )


@programs
def calling_setup_by_hand(nn, flax):
  log = []

  class Foo(nn.Module):
    def setup(self):
      log.append('setup')
      self.a = 5

    def __call__(self):
      self.setup()
      return self.a

  return attempt(Foo().init_with_output, KEY), log


@programs
def methods_called_in_setup(nn, flax):
  class Foo(nn.Module):
    def setup(self):
      self.dense = nn.Dense(3)
      self.y = self.helper()
      self.z = self.dense(X)

    def helper(self):
      return self.dense(X) + self.param('w', ones, (3,))

    def __call__(self):
      return self.y + self.z

  return attempt(Foo().init_with_output, KEY)


@programs
def compact_call_in_setup(nn, flax):
  class Bar(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.Dense(3)(x)

  class Foo(nn.Module):
    def setup(self):
      self.bar = Bar()
      self.y = self.bar(X)

    def __call__(self):
      return self.y

  class Own(nn.Module):
    def setup(self):
      self.y = self.inner(X)

    @nn.compact
    def inner(self, x):
      return nn.Dense(3)(x)

    def __call__(self):
      return self.y

  return attempt(Foo().init, KEY), attempt(Own().init, KEY)


@programs
def super_setup(nn, flax):
  class Foo(nn.Module):
    def setup(self):
      self.a = nn.Dense(3)

  class Bar(Foo):
    def setup(self):
      super().setup()
      self.b = nn.Dense(3)

    def __call__(self, x):
      return self.b(self.a(x))

  return Bar().init_with_output(KEY, X)


@programs
def unnamed_submodules_in_setup(nn, flax):
  class Local(nn.Module):
    def setup(self):
      dense = nn.Dense(3)
      self.y = dense(X)

    def __call__(self):
      return self.y

  class Named(nn.Module):
    def setup(self):
      self.y = nn.Dense(3, name='mine')(X)
      self.other = nn.Dense(3, name='given')

    def __call__(self):
      return self.other(self.y)

  class Late(nn.Module):
    def setup(self):
      dense = nn.Dense(3)
      self.a = dense
      self.b = dense

    def __call__(self):
      return self.b(X), self.a.name, self.b.name

  return [attempt(c().init_with_output, KEY) for c in (Local, Named, Late)]


@programs
def error_in_setup(nn, flax):
  log = []

  class Foo(nn.Module):
    def setup(self):
      log.append('setup')
      raise ValueError('meant')

    def __call__(self):
      return 1

  class Top(nn.Module):
    def setup(self):
      self.foo = Foo()

    def __call__(self):
      for _ in range(2):
        try:
          return self.foo()
        except ValueError as e:
          log.append(str(e))

  class Attribute(nn.Module):
    def setup(self):
      self.a = self.nope

    def __call__(self):
      return self.a

  return (
    attempt(Foo().init, KEY),
    attempt(Top().init_with_output, KEY),
    attempt(Attribute().init, KEY),
    log,
  )


@programs
def a_parameter_of_setup_is_made_even_if_unused(nn, flax):
  class Foo(nn.Module):
    def setup(self):
      self.w = self.param('w', ones, (2,))
      self.v = self.variable('state', 'v', jnp.zeros, (2,))
      self.unused = nn.Dense(2)

    def __call__(self):
      return 1

    def use(self):
      return self.w + self.v.value

  variables = Foo().init(KEY)
  return variables, Foo().apply(variables, method='use')


@programs
def variable_names_need_not_be_attribute_names(nn, flax):
  class Foo(nn.Module):
    def setup(self):
      self.a = self.param('b', ones, (2,))
      self.b = self.variable('state', 'a', jnp.zeros, (2,))

    def __call__(self):
      return self.a + self.b.value

  class Clash(nn.Module):
    def setup(self):
      self.a = self.param('dense', ones, (2,))
      self.dense = nn.Dense(2)

    def __call__(self, x):
      return self.dense(x)

  return Foo().init_with_output(KEY), attempt(Clash().init, KEY, X)


@programs
def setup_and_compact_together(nn, flax):
  class Foo(nn.Module):
    def setup(self):
      self.first = nn.Dense(3)

    @nn.compact
    def __call__(self, x):
      return nn.Dense(2)(self.first(x))

  return Foo().init_with_output(KEY, X)


@programs
def other_methods_see_what_setup_made(nn, flax):
  class AutoEncoder(nn.Module):
    def setup(self):
      self.encoder = nn.Dense(2)
      self.decoder = nn.Dense(3)

    def __call__(self, x):
      return self.decode(self.encode(x))

    def encode(self, x):
      return self.encoder(x)

    def decode(self, z):
      return self.decoder(z)

  ae = AutoEncoder()
  variables = ae.init(KEY, X)
  z = ae.apply(variables, X, method=ae.encode)
  only = ae.init(KEY, X, method='encode')
  return variables, z, ae.apply(variables, z, method=AutoEncoder.decode), only


@programs
def submodules_of_submodules_from_outside(nn, flax):
  class Bar(nn.Module):
    def setup(self):
      self.dense = nn.Dense(3)
      self.size = 3

    def __call__(self, x):
      return self.dense(x)

  class Foo(nn.Module):
    def setup(self):
      self.bar = Bar()
      self.inner = self.bar.dense

    def __call__(self, x):
      return self.bar.dense(x) * self.bar.size + self.inner(x)

  class Compact(nn.Module):
    @nn.compact
    def __call__(self, x):
      bar = Bar()
      return bar.dense(x) * bar.size

  return [c().init_with_output(KEY, X) for c in (Foo, Compact)]


@programs
def submodule_created_through_a_helper_of_another(nn, flax):
  class Bar(nn.Module):
    def setup(self):
      self.x = 1

    def make(self):
      return nn.Dense(2)

  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      return Bar().make()(x)

  class Nowrap(nn.Module):
    @nn.nowrap
    def make(self):
      return nn.Dense(2)

    @nn.compact
    def __call__(self, x):
      return self.make()(x)

  class Outside(nn.Module):
    helper: nn.Module

    @nn.compact
    def __call__(self, x):
      return self.helper.make()(x)

  return (
    attempt(Foo().init, KEY, X),
    attempt(Nowrap().init, KEY, X),
    attempt(Outside(Nowrap()).init, KEY, X),
    repr(Nowrap().make()),
  )


@programs.parametrize()
def test_same_as_flax(program):
  assert_same_as_flax(program)
