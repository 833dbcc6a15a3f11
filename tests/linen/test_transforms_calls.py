"""Semantics 18: control flow and derivatives of modules, beside Flax."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from module_compare import KEY, Programs, X, assert_same_as_flax, attempt

from haiku_state import linen

programs = Programs()
ones = jax.nn.initializers.ones


@programs
def while_loop(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      key_zero = jax.random.key(0)
      del key_zero
      self.param('inc', lambda _: 1)
      self.put_variable('state', 'acc', 0)
      self.put_variable('state', 'rng_params', jnp.zeros((2, 2), jnp.uint32))

      def cond_fn(mdl, c):
        acc = mdl.get_variable('state', 'acc')
        return acc < x

      def body_fn(mdl, c):
        i = mdl.get_variable('state', 'acc')
        p_rng = jax.random.key_data(mdl.make_rng('params'))
        l_rng = jax.random.key_data(mdl.make_rng('loop'))
        keys = jnp.stack([p_rng, l_rng])
        mdl.put_variable('state', 'rng_params', keys)
        inc = mdl.get_variable('params', 'inc')
        mdl.put_variable('state', 'acc', i + inc)
        return c + 1

      return nn.while_loop(
        cond_fn,
        body_fn,
        self,
        0,
        carry_variables='state',
        split_rngs={'params': False, 'loop': True},
      )

  keys = {'params': KEY, 'loop': jax.random.key(1)}
  y, variables = Foo().apply(
    {'params': {'inc': 1}}, 3, mutable=['state'], rngs=keys
  )
  return y, variables


@programs
def what_a_while_loop_may_not(nn, flax):
  def loop(cond_fn, body_fn, carried='state', **options):
    class Foo(nn.Module):
      @nn.compact
      def __call__(self, x):
        self.variable('state', 'n', jnp.zeros, ())
        return nn.while_loop(
          cond_fn, body_fn, self, x, carry_variables=carried, **options
        )

    variables = {'state': {'n': jnp.zeros(())}, 'params': {'a': 1.0}}
    return attempt(
      Foo().apply, variables, 0, mutable=['state', 'params'], rngs={'a': KEY}
    )

  def new(m, c):
    m.put_variable('state', 'new', 1)
    return c + 1

  def change(m, c):
    m.put_variable('state', 'n', m.get_variable('state', 'n') + 1)
    return c + 1

  def change_params(m, c):
    m.put_variable('params', 'a', 2.0)
    return c + 1

  def small(m, c):
    return c < 3

  def changing(m, c):
    m.put_variable('state', 'n', 1)
    return c < 3

  def drawing(m, c):
    m.make_rng('a')
    return c + 1

  def other_type(m, c):
    return c + 0.5

  return [
    loop(small, change),
    loop(small, change_params),
    loop(changing, change),
    loop(small, change, carried=False),
    loop(small, drawing),
    loop(small, drawing, split_rngs={'a': True}),
    loop(small, change, carried=True),
    'refused' if isinstance(loop(small, new), tuple) is False else 'new',
    type(loop(small, other_type)).__name__,
  ]


@programs
def cond(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x, pred):
      self.variable('state', 'true_count', lambda: 0)
      self.variable('state', 'false_count', lambda: 0)

      def true_fn(mdl, x):
        mdl.variable('state', 'true_count').value += 1
        return nn.Dense(2, name='dense')(x)

      def false_fn(mdl, x):
        mdl.variable('state', 'false_count').value += 1
        return -nn.Dense(2, name='dense')(x)

      return nn.cond(pred, true_fn, false_fn, self, x)

  module = Foo()
  y1, vars = module.init_with_output(KEY, X, True)
  y2, vars2 = module.apply(vars, X, False, mutable='state')
  return y1, vars, y2, vars2


@programs
def switch(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x, index):
      names = 'abc'
      for name in names:
        self.variable('state', name, lambda: 0)

      def branch(name, mdl, x):
        mdl.variable('state', name).value += 1
        return -nn.Dense(2, name='dense')(x)

      fns = [functools.partial(branch, name) for name in names]
      return nn.switch(index, fns, self, x)

  y, variables = Foo().init_with_output(KEY, X, 1)
  return (
    y,
    variables,
    [Foo().apply(variables, X, i, mutable='state') for i in (-1, 0, 2, 7)],
  )


@programs
def heads_by_switch(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x, index):
      def head_fn(features):
        return lambda mdl, x: (
          mdl(features)(x) if False else make(mdl, features, x)
        )

      def make(mdl, features, x):
        for i, f in enumerate(features):
          x = nn.Dense(f, name=f'{features}_{i}')(x)
        return x

      branches = [head_fn((2,)), head_fn((4, 2)), head_fn((3, 3, 2))]
      if self.is_mutable_collection('params'):
        for branch in branches:
          branch(self, x)
      return nn.switch(index, branches, self, x)

  y, variables = Foo().init_with_output(KEY, X, 1)
  return y, variables, [Foo().apply(variables, X, i) for i in range(3)]


@programs
def bound_methods(nn, flax):
  class CondModel(nn.Module):
    def setup(self):
      self.dense = nn.Dense(3)

    def f1(self, arr):
      return self.dense(arr)

    def f2(self, arr):
      return self.dense(arr) * 2

    def __call__(self, x):
      return (
        nn.cond(True, self.f1, self.f2, self, x),
        nn.switch(1, (self.f1, self.f2), self, x),
        nn.cond(x.sum() > 99, CondModel.f1, CondModel.f2, self, x),
      )

  class OfSubmodule(nn.Module):
    @nn.compact
    def __call__(self, x):
      dense = nn.Dense(3)
      dense(x)
      return nn.cond(True, dense.__call__, nn.Dense.__call__, dense, x)

  return (
    CondModel().init_with_output(KEY, X),
    attempt(OfSubmodule().init_with_output, KEY, X),
  )


@programs
def loops_and_branches_by_setup(nn, flax):
  class Foo(nn.Module):
    def setup(self):
      self.a = nn.Dense(3)
      self.b = nn.Dense(3)

    def __call__(self, x):
      if self.is_initializing():
        return self.a(x) + self.b(x)
      x = nn.cond(True, lambda m, x: m.a(x), lambda m, x: m.b(x), self, x)
      x = nn.while_loop(
        lambda m, c: c[0] < 2,
        lambda m, c: (c[0] + 1, m.b(c[1])),
        self,
        (0, x),
      )[1]
      return nn.switch(0, [lambda m, x: m.b(x)] * 2, self, x)

  variables = Foo().init(KEY, X)
  return Foo().apply(variables, X)


@programs
def branches_that_disagree(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.cond(
        True,
        lambda m, x: nn.Dense(3, name='a')(x),
        lambda m, x: nn.Dense(3, name='b')(x),
        self,
        x,
      )

  return type(attempt(Foo().init, KEY, X)).__name__, attempt(
    Foo().init, KEY, X
  ).kind


@programs
def vmap_and_cond_pass_modules_through(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      dense = nn.Dense(3)
      dense(x)
      return nn.cond(
        True, lambda m, x: dense_of(m)(x), lambda m, x: x, dense, x
      )

  def dense_of(m):
    return m

  class Bar(nn.Module):
    @nn.compact
    def __call__(self, x):
      Mapped = nn.vmap(Foo, {'params': 0}, split_rngs={'params': True})
      return Mapped()(x)

  return Bar().init_with_output(KEY, X[:, None])


@programs
def vjp(nn, flax):
  class Bar(nn.Module):
    @nn.compact
    def __call__(self, x, y):
      p = self.param('test', jax.nn.initializers.constant(0.5), ())
      self.variable('state', 'counter', lambda: 0).value += 1
      return p * x * y

  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x, y):
      z, bwd = nn.vjp(Bar.__call__, Bar(), x, y)
      return bwd(jnp.ones(z.shape))

  x, y = jnp.array([1.0, 2.0, 3.0]), jnp.array([4.0, 5.0, 6.0])
  params = Foo().init(KEY, x, y)
  return params, Foo().apply(params, x, y, mutable=['state'])


@programs
def vjp_with_options(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      dense = nn.Dense(2)

      def with_aux(m, x):
        y = m(x)
        return y, {'sum': y.sum()}

      y, bwd, aux = nn.vjp(with_aux, dense, x, has_aux=True)
      z, bwd2 = nn.vjp(lambda m, x: m(x), dense, x, vjp_variables=False)
      w, bwd3 = nn.vjp(
        lambda m, x: m(x), dense, x, vjp_variables=('params', 'stats')
      )
      return y, aux, bwd(y), bwd2(z), bwd3(w)

  class Two(nn.Module):
    @nn.compact
    def __call__(self, x):
      shared = nn.Dense(3, name='shared')
      shared(x)

      class User(nn.Module):
        other: nn.Module

        @nn.compact
        def __call__(self, x):
          return nn.Dense(2)(self.other(x))

      user = User(shared)
      y, bwd = nn.vjp(lambda m, x: m(x), user, x, multi_scope=True)
      return (
        y,
        bwd(jnp.ones_like(y)),
        attempt(nn.vjp, lambda m, x: m(x), user, x),
      )

  return Foo().init_with_output(KEY, X), Two().init_with_output(KEY, X)


@programs
def vjp_function_leaves_a_transform(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      def fwd(m, x):
        return nn.vjp(lambda m, x: m(x), nn.Dense(2), x)

      y, bwd = nn.jit(fwd)(self, x)
      return y, bwd(y)

  return Foo().init_with_output(KEY, X)


@programs
def jvp(nn, flax):
  class Bar(nn.Module):
    @nn.compact
    def __call__(self, x):
      p = self.param('test', ones, ())
      self.variable('state', 'counter', lambda: 0).value += 1
      return p * x * x

  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      bar = Bar()
      vars_t = jax.tree.map(jnp.ones_like, bar.variables.get('params', {}))
      _, out_t = nn.jvp(
        Bar.__call__, bar, (x,), (jnp.zeros_like(x),), {'params': vars_t}
      )
      return out_t

  x = jnp.ones((3,))
  params = Foo().init(KEY, x)
  y_t, counters = Foo().apply(params, x, mutable=['state'])
  return params, y_t, counters


@programs
def grad_and_value_and_grad(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x, y):
      dense = nn.Dense(1)

      def loss(m, x, y):
        return (m(x) * y).sum()

      def with_aux(m, x, y):
        return loss(m, x, y), {'x': x + 1}

      return (
        nn.grad(loss, dense, x, y),
        nn.value_and_grad(loss, dense, x, y),
        nn.grad(with_aux, dense, x, y, has_aux=True),
        nn.value_and_grad(with_aux, dense, x, y, has_aux=True),
        attempt(nn.grad, lambda m, x, y: m(x), dense, x, y),
        attempt(nn.grad, loss, dense, x, y, reduce_axes=('a',)),
        attempt(nn.vjp, loss, dense, x, y, reduce_axes=('a',)),
        attempt(nn.value_and_grad, loss, dense, x, y, reduce_axes=('a',)),
      )

  return Foo().init_with_output(KEY, X, 2.0)


@programs
def value_and_grad_over_shared_modules(nn, flax):
  class Foo(nn.Module):
    bar: nn.Module

    @nn.compact
    def __call__(self, x, y):
      def loss(m, x, y):
        m.sow('seen', 'y', y)
        return (m.bar(x) * y + nn.Dense(1)(x)).sum()

      z, grads = nn.value_and_grad(loss, self, x, y)
      return z, grads, self.bar(x)

  class Bar(nn.Module):
    @nn.compact
    def __call__(self, x):
      self.variable('state', 'n', jnp.zeros, ()).value += 1
      return nn.Dense(1)(x)

  class Top(nn.Module):
    @nn.compact
    def __call__(self, x, y):
      bar = Bar(name='bar')
      return Foo(bar)(x, y), Foo(Bar())(x, y)

  variables = Top().init(KEY, X, 2.0)
  return variables, Top().apply(variables, X, 2.0, mutable=['state', 'seen'])


@programs
def custom_vjp(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      def f(mdl, x):
        return mdl(x)

      def fwd(mdl, x):
        return nn.vjp(f, mdl, x)

      def bwd(vjp_fn, y_t):
        params_t, *inputs_t = vjp_fn(y_t)
        params_t = jax.tree.map(jnp.sign, params_t)
        return (params_t, *inputs_t)

      sign_grad = nn.custom_vjp(f, forward_fn=fwd, backward_fn=bwd)
      return sign_grad(nn.Dense(1), x).reshape(())

  x = jnp.ones((2,))
  variables = Foo().init(KEY, x)
  return variables, jax.grad(Foo().apply)(variables, x)


@programs
def custom_vjp_with_static_arguments_and_state(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      def f(mdl, x, power):
        count = mdl.variable('state', 'n', jnp.zeros, ())
        count.value += 1
        return mdl.param('w', ones, (3,)) * x**power

      def fwd(mdl, x, power):
        return f(mdl, x, power), x * 3

      def bwd(power, res, y_t):
        return ({'params': {'w': res.sum(0) * power}}, y_t * 7)

      g = nn.custom_vjp(f, fwd, bwd, nondiff_argnums=(2,))
      return g(self, x, 2)

  variables = Foo().init(KEY, X)

  def loss(params, x):
    y, new = Foo().apply({**variables, 'params': params}, x, mutable=['state'])
    return y.sum(), new

  return jax.grad(loss, (0, 1), has_aux=True)(variables['params'], X)


@programs
def transforms_of_functions_refuse_classes(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      dense = nn.Dense(3)

      def f(m, x):
        return x

      return [
        attempt(nn.vjp, nn.Dense, dense, x),
        attempt(nn.grad, nn.Dense, dense, x),
        attempt(nn.jvp, nn.Dense, dense, (x,), (x,), {}),
        attempt(nn.cond, True, nn.Dense, f, dense, x),
        attempt(nn.switch, 0, [nn.Dense], dense, x),
        attempt(nn.while_loop, nn.Dense, f, dense, x),
        attempt(nn.vjp, 3, dense, x),
        attempt(nn.cond, True, 'a', f, dense, x),
      ]

  return Foo().init_with_output(KEY, X)[0]


@programs
def bound_methods_and_instances_in_lifted_functions(nn, flax):
  class Foo(nn.Module):
    def setup(self):
      self.dense = nn.Dense(3)

    def f(self, x):
      return self.dense(x)

    def __call__(self, x):
      return (
        nn.grad(self.f_sum, self, x),
        attempt(nn.vjp, self.dense, self.dense, x),
        attempt(lambda: nn.remat(self.f)(x)),
      )

    def f_sum(self, x):
      return self.f(x).sum()

  out = Foo().init_with_output(KEY, X)[0]
  return [type(o).__name__ for o in out], out[0]


@programs
def derivatives_inside_other_transforms(nn, flax):
  class Inner(nn.Module):
    @nn.compact
    def __call__(self, c, x):
      def energy(m, x):
        return m(x).sum()

      g = nn.grad(energy, nn.Dense(1), c)[0]
      return c - 0.1 * g + x, g.sum()

  Scanned = nn.scan(
    nn.remat(Inner),
    variable_broadcast='params',
    split_rngs={'params': False},
  )
  Mapped = nn.vmap(Scanned, {'params': 0}, split_rngs={'params': True})
  xs = jnp.arange(12.0).reshape(2, 2, 3)
  y, variables = Mapped().init_with_output(KEY, X, xs)
  grads = jax.grad(lambda v: Mapped().apply(v, X, xs)[0].sum())(variables)
  return y, variables, grads


@programs
def unbound_modules_whose_methods_need_no_variables(nn, flax):
  lifts = [
    nn.remat,
    nn.jit,
    nn.fold_rngs,
    functools.partial(nn.vmap, variable_axes={}, split_rngs={}),
  ]

  def scaled_by(lift):
    class Scale(nn.Module):
      factor: float = 3.0

      @lift
      def __call__(self, x):
        return self.factor * x

      @lift
      def dense(self, x):
        return nn.Dense(3)(x)

      @lift
      @nn.compact
      def compact(self, x):
        return x

    return Scale

  class Branches(nn.Module):
    factor: float = 3.0

    def __call__(self, x):
      up = lambda m, x: m.factor * x
      same = lambda m, x: x
      return (
        nn.cond(True, up, same, self, x),
        nn.switch(1, [up, same], self, x),
        nn.grad(lambda m, x: up(m, x).sum(), self, x),
      )

  return (
    [
      (
        attempt(scaled_by(lift)(), X),
        attempt(scaled_by(lift)().dense, X),
        attempt(scaled_by(lift)().compact, X),
      )
      for lift in lifts
    ],
    attempt(Branches(), X),
    attempt(nn.remat(nn.Dense)(3), X),
  )


@programs.parametrize()
def test_as_flax(program):
  assert_same_as_flax(program)


# Where Flax fails by accident, and nothing speaks against an answer.
def test_lifted_classes_that_are_not_bound():
  class Double(linen.Module):
    def __call__(self, x):
      return 2 * x

  for lift in linen.jit, linen.remat, linen.fold_rngs:
    np.testing.assert_array_equal(lift(Double)()(X), 2 * X)


def test_loops_and_gradients_of_unbound_modules():
  class Scale(linen.Module):
    factor: float = 3.0

    def loop(self, x):
      return linen.while_loop(
        lambda m, x: x.sum() < 9, lambda m, x: m.factor * x, self, x
      )

    @linen.scan
    def scan(self, carry, x):
      return self.factor * carry, x

    def gradient(self, x):
      return linen.vjp(lambda m, x: m.factor * x, self, x)[1](x)[1]

  ones = jnp.ones(2)
  assert Scale().loop(ones).sum() == 18
  assert Scale().scan(1.0, ones)[0] == 9
  np.testing.assert_array_equal(Scale().gradient(ones), 3 * ones)
