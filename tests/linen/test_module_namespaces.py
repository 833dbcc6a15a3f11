"""Semantics 4: one namespace for parameters, variables and submodules."""

import jax
import jax.numpy as jnp
from module_compare import KEY, Programs, X, assert_same_as_flax, attempt

programs = Programs()
zeros = jax.nn.initializers.zeros


def compact_of(nn, *steps):
  """Returns a module whose compact method does the steps in order."""

  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      for step in steps:
        step(self, x)
      return x

  return Foo()


def steps_of(nn):
  return {
    'param': lambda m, x: m.param('n', zeros, (2,)),
    'variable': lambda m, x: m.variable('stats', 'n', jnp.zeros, (2,)),
    'other': lambda m, x: m.variable('cache', 'n', jnp.zeros, (2,)),
    'submodule': lambda m, x: nn.Dense(2, name='n')(x),
    'unused': lambda m, x: nn.Dense(2, name='n'),
    'sow': lambda m, x: m.sow('stats', 'n', x),
    'sow_other': lambda m, x: m.sow('intermediates', 'n', x),
    'perturb': lambda m, x: m.perturb('n', x),
    'put': lambda m, x: m.put_variable('stats', 'n', x),
  }


@programs
def every_pair_of_uses_of_a_name(nn, flax):
  steps = steps_of(nn)
  return {
    f'{a} {b}': attempt(compact_of(nn, steps[a], steps[b]).init, KEY, X)
    for a in steps
    for b in steps
  }


@programs
def every_pair_in_setup_and_call(nn, flax):
  steps = steps_of(nn)

  class Foo(nn.Module):
    first: str
    second: str

    def setup(self):
      steps[self.first](self, X)

    @nn.compact
    def __call__(self, x):
      steps[self.second](self, x)

  kinds = ('param', 'variable', 'other', 'submodule')
  return {
    f'{a} {b}': attempt(Foo(a, b).init, KEY, X) for a in kinds for b in kinds
  }


@programs
def same_name_in_two_collections(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self):
      a = self.variable('a', 'n', jnp.zeros, ())
      b = self.variable('b', 'n', jnp.ones, ())
      p = self.param('n', zeros, (1,))
      return a.value, b.value, p

  variables = Foo().init(KEY)
  return variables, Foo().apply(variables)


@programs
def automatic_names_count_per_class(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      class Dense(nn.Dense):
        pass

      x = nn.Dense(2)(x)
      x = nn.LayerNorm()(x)
      x = nn.Dense(3)(x)
      x = Dense(2)(x)
      return nn.LayerNorm()(x)

  return Foo().init(KEY, X)


@programs
def automatic_names_do_not_skip_taken_ones(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = nn.Dense(2, name='Dense_0')(x)
      return nn.Dense(2)(x)

  class Bar(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = nn.Dense(2, name='Dense_1')(x)
      x = nn.Dense(2)(x)
      return nn.Dense(2)(x)

  return attempt(Foo().init, KEY, X), attempt(Bar().init, KEY, X)


@programs
def names_given_do_not_count(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = nn.Dense(2)(x)
      x = nn.Dense(2, name='mine')(x)
      return nn.Dense(2)(x)

  return Foo().init(KEY, X)


@programs
def super_calls_share_the_count(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.Dense(2)(x)

  class Bar(Foo):
    @nn.compact
    def __call__(self, x):
      x = nn.Dense(3)(x)
      x = super().__call__(x)
      return nn.Dense(4)(x)

  class Baz(Bar):
    def __call__(self, x):
      return super().__call__(x)

  class Qux(Baz):
    @nn.compact
    def __call__(self, x):
      return super().__call__(x) + nn.Dense(4)(x)

  return [attempt(c().init, KEY, X) for c in (Foo, Bar, Baz, Qux)]


@programs
def recursive_compact_call(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x, depth=2):
      x = nn.Dense(3)(x)
      return self(x, depth - 1) if depth else x

  variables = Foo().init(KEY, X)
  return variables, Foo().apply(variables, X)


@programs
def two_nested_compact_methods(nn, flax):
  def make():
    class Foo(nn.Module):
      @nn.compact
      def __call__(self, x):
        return self.other(nn.Dense(2)(x))

      @nn.compact
      def other(self, x):
        return nn.Dense(2)(x)

    return Foo().init(KEY, X)

  return attempt(make)


@programs
def only_one_compact_method_through_inheritance(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def call1(self):
      pass

  def other():
    class Bar(Foo):
      @nn.compact
      def call2(self):
        pass

    return Bar.__name__

  def same():
    class Bar(Foo):
      @nn.compact
      def call1(self):
        return super().call1()

    return Bar().init(KEY, method='call1')

  def hidden():
    class Bar(Foo):
      def call1(self):
        pass

      @nn.compact
      def call2(self):
        return 3

    return Bar().apply({}, method='call2')

  return attempt(other), attempt(same), attempt(hidden)


@programs
def submodules_outside_of_compact(nn, flax):
  class Foo(nn.Module):
    def __call__(self, x):
      return nn.Dense(2)(x)

  class Param(nn.Module):
    def __call__(self, x):
      return self.param('a', zeros, (2,))

  class Var(nn.Module):
    def __call__(self, x):
      return self.variable('a', 'b', jnp.zeros, ())

  class Named(nn.Module):
    def __call__(self, x):
      return nn.Dense(2, name='foo', parent=self)(x)

  class Outer(nn.Module):
    @nn.compact
    def __call__(self, x):
      return Foo()(x)

  kinds = (Foo, Param, Var, Named, Outer)
  return [attempt(c().init, KEY, X) for c in kinds]


@programs
def names_made_in_lifted_functions_are_free_outside(nn, flax):
  def results(lift, *names):
    class Foo(nn.Module):
      @nn.compact
      def __call__(self, x):
        for i, name in enumerate(names):

          def norm(module, x, name=name):
            return nn.BatchNorm(use_running_average=False, name=name)(x)

          x = (lift(norm) if i == 0 else norm)(self, x)
        return x

    foo = Foo()
    y, variables = foo.init_with_output(KEY, X)
    return y, variables, foo.apply(variables, X, mutable=['batch_stats'])

  def by_name(lift):
    return (
      attempt(results, lift, 'b', 'b'),
      attempt(results, lift, 'b', 'b', 'b'),
      attempt(results, lift, None, 'BatchNorm_0', None),
      attempt(results, lift, 'BatchNorm_0', None),
    )

  return [
    *by_name(nn.remat),
    *by_name(nn.jit),
    *by_name(lambda f: lambda module, x: nn.vjp(f, module, x)[0]),
    *by_name(lambda f: nn.vmap(f, variable_axes={True: None})),
  ]


@programs
def names_that_are_no_identifiers(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      for name in ('0', 'layer-1', 'a/b', 'a:b', '~', 'Ω', '_0x2d_', '', ' '):
        x = nn.Dense(3, name=name)(x)
      self.variable('a:b/c', 'd:e/f', jnp.zeros, ())
      self.param('x/y', zeros, (1,))
      return x

  variables = Foo().init(KEY, X)
  return variables, Foo().apply(variables, X)


@programs
def names_that_are_no_strings(nn, flax):
  class Foo(nn.Module):
    name_of: object

    @nn.compact
    def __call__(self, x):
      return nn.Dense(3, name=self.name_of)(x)

  class Param(nn.Module):
    name_of: object

    @nn.compact
    def __call__(self, x):
      return self.param(self.name_of, zeros, (1,))

  # Flax's text has a placeholder where ours has the name.
  return [
    attempt(c(n).init, KEY, X).kind
    for c in (Foo, Param)
    for n in (3, ('a',), b'x')
  ]


@programs
def any_name_at_the_top(nn, flax):
  def results(name):
    dense = nn.Dense(3, name=name)
    variables = dense.init(KEY, X)
    bound = dense.bind(variables)
    return variables, dense.apply(variables, X), bound(X), bound.name

  return [results(name) for name in (3, 0, True, ('a',), b'x', '', 'a/b')]


@programs
def reserved_fields(nn, flax):
  def name():
    class Foo(nn.Module):
      name: int = 3

    return Foo

  def parent():
    class Foo(nn.Module):
      parent: int

    return Foo

  def fine():
    class Foo(nn.Module):
      name: str | None = None

    return Foo().init(KEY, method=lambda m: None)

  def string():
    class Foo(nn.Module):
      name: 'str' = 'foo'

    return Foo().name

  return [plain_error(attempt(f)) for f in (name, parent, fine, string)]


def plain_error(result):
  """Leaves out the repr of a class's annotations."""
  return result.kind if hasattr(result, 'kind') else result


@programs
def a_field_as_a_name_of_a_parameter(nn, flax):
  class Foo(nn.Module):
    bias: bool = True

    @nn.compact
    def __call__(self, x):
      return self.param('bias', zeros, (1,))

  class Bar(nn.Module):
    dense: nn.Module

    @nn.compact
    def __call__(self, x):
      y = self.dense(x)
      return y + self.param('dense', zeros, (1,))

  return Foo().init(KEY, X), attempt(Bar(nn.Dense(2)).init, KEY, X)


@programs.parametrize()
def test_same_as_flax(program):
  assert_same_as_flax(program)
