"""Semantics 5: calling a module again shares what the first call made."""

import jax
import jax.numpy as jnp
from module_compare import KEY, Programs, X, assert_same_as_flax, attempt

programs = Programs()
ones = jax.nn.initializers.ones


@programs
def a_module_called_twice_shares_parameters(nn, flax):
  class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.relu(nn.Dense(3)(nn.Dense(3)(x)))

  class Top(nn.Module):
    @nn.compact
    def __call__(self, x):
      mlp = MLP()
      return mlp(x) + mlp(mlp(x)) + MLP()(x)

  variables = Top().init(KEY, X)
  return variables, Top().apply(variables, X)


@programs
def nested_compact_calls_rewind_the_names(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x, again=True):
      y = self.param('w', ones, (3,))
      return x + y

  class Bar(Foo):
    @nn.compact
    def __call__(self, x):
      # The nested call ends with all names free again, also `w`.
      x = super().__call__(x)
      x = super().__call__(x)
      return x + self.param('w', ones, (3,))

  return attempt(Bar().init, KEY, X)


@programs
def names_of_setup_stay_taken(nn, flax):
  class Foo(nn.Module):
    def setup(self):
      self.dense = nn.Dense(3)
      self.w = self.param('w', ones, (3,))

    @nn.compact
    def __call__(self, x):
      return x + self.param('w', ones, (3,))

  class Bar(Foo):
    @nn.compact
    def __call__(self, x):
      return nn.Dense(3, name='dense')(x)

  class Baz(Foo):
    @nn.compact
    def __call__(self, x):
      return nn.Dense(3)(self.dense(x))

  return [attempt(c().init, KEY, X) for c in (Foo, Bar, Baz)]


@programs
def a_taken_name_is_free_after_the_first_call(nn, flax):
  class Foo(nn.Module):
    def setup(self):
      self.w = self.param('w', ones, (3,))

    @nn.compact
    def __call__(self, x):
      return nn.Dense(3)(x)

    def again(self, x):
      self(x)
      return self(x)

  return attempt(Foo().init, KEY, X, method='again')


@programs
def a_method_calls_the_compact_one_twice(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.Dense(3)(x)

    def twice(self, x):
      return self(self(x))

  return Foo().init_with_output(KEY, X, method=Foo.twice)


@programs
def different_branches_on_calls(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x, wide):
      return nn.Dense(4 if wide else 3)(x)

  class Top(nn.Module):
    @nn.compact
    def __call__(self, x):
      foo = Foo()
      return foo(x, False), foo(x, True)

  return attempt(Top().init, KEY, X)


@programs
def second_call_makes_more(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x, n):
      for _ in range(n):
        x = nn.Dense(3)(x)
      return x

  class Top(nn.Module):
    @nn.compact
    def __call__(self, x):
      foo = Foo()
      return foo(x, 1) + foo(x, 3)

  return Top().init_with_output(KEY, X)


@programs
def counters_go_on_where_names_do_not(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      w = self.param('w', jax.random.normal, (3,))
      return x * w, self.make_rng('params')

  class Top(nn.Module):
    @nn.compact
    def __call__(self, x):
      foo = Foo()
      return foo(x), foo(x)

  return Top().init_with_output(KEY, X)


@programs
def a_submodule_kept_from_one_call_to_the_next(nn, flax):
  class Foo(nn.Module):
    def setup(self):
      self.layers = [nn.Dense(3) for _ in range(3)]

    def __call__(self, x):
      for layer in self.layers + self.layers:
        x = layer(x)
      return x

  return Foo().init_with_output(KEY, X)


@programs
def variable_updates_are_seen_by_the_next_call(nn, flax):
  class Counter(nn.Module):
    @nn.compact
    def __call__(self):
      n = self.variable('state', 'n', lambda: jnp.zeros((), int))
      n.value += 1
      return n.value

  class Top(nn.Module):
    @nn.compact
    def __call__(self):
      counter = Counter()
      return counter(), counter(), Counter()()

  out, variables = Top().init_with_output(KEY)
  return out, variables, Top().apply(variables, mutable=['state'])


@programs
def exception_in_a_call_leaves_the_module_usable(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x, fail):
      x = nn.Dense(3)(x)
      if fail:
        raise ValueError('meant')
      return x

  class Top(nn.Module):
    @nn.compact
    def __call__(self, x):
      foo = Foo()
      try:
        foo(x, True)
      except ValueError:
        pass
      return foo(x, False)

  return Top().init_with_output(KEY, X)


@programs
def order_of_the_variables(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      self.variable('z', 'b', jnp.zeros, ())
      self.param('b', ones, (1,))
      x = nn.Dense(2, name='c')(x)
      self.param('a', ones, (1,))
      self.variable('y', 'b', jnp.zeros, ())

  variables = Foo().init(KEY, X)
  paths, _ = zip(*jax.tree_util.tree_leaves_with_path(variables))
  return list(map(jax.tree_util.keystr, paths)), list(variables)


@programs.parametrize()
def test_same_as_flax(program):
  assert_same_as_flax(program)
