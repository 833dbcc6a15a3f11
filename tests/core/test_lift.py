"""Lifted functions of scopes, beside Flax's functional core."""

import jax
import jax.numpy as jnp
from module_compare import KEY, Programs, X, assert_same_as_flax, attempt

programs = Programs()
ones = jax.nn.initializers.ones


def dense(scope, x, features):
  kernel = scope.param(
    'kernel', jax.nn.initializers.lecun_normal(), (x.shape[-1], features)
  )
  return x @ kernel


@programs
def aliases(nn, flax):
  lift, init = flax.core.lift, flax.core.init

  def f(scope):
    a = scope.push('a')

    def g(scopes, _):
      scope, a = scopes
      assert a.parent == scope
      return a.path

    axes = {'variable_axes': {}, 'split_rngs': {}, 'out_axes': None}
    out = []
    lift.vmap(lambda s, x: out.append(g(s, x)), **axes)(
      (scope, a), jnp.zeros(2)
    )
    lift.vmap(lambda s, x: out.append(g(s, x)), **axes)(
      (scope, a), jnp.zeros(2)
    )
    return out

  return init(f)(KEY)


@programs
def a_parameter_that_is_not_there(nn, flax):
  lift, apply = flax.core.lift, flax.core.apply

  def f(scope):
    mapped = lift.vmap(
      dense,
      in_axes=(0, None),
      out_axes=0,
      variable_axes={'params': 0},
      split_rngs={'params': True},
    )
    mapped(scope.push('dense'), jnp.ones((3, 2)), 2)

  return attempt(apply(f), {'params': {'dense': {'abc': jnp.ones((3, 3))}}})


@programs
def compiled_functions(nn, flax):
  lift, core = flax.core.lift, flax.core
  compiles = 0

  @lift.jit
  def f(scope, key, x):
    nonlocal compiles
    compiles += 1
    if scope.is_mutable_collection('intermediates') and not (
      scope.is_mutable_collection('params')
    ):
      scope.put_variable('intermediates', 'x', x + 1)
    return x

  def g(scope, x):
    return f(scope, 'key', x)

  counts = []
  for run in (
    lambda: core.init(g)(KEY, X),
    lambda: core.init(g)(KEY, X),
    lambda: core.apply(g)({}, X),
    lambda: core.apply(g)({}, X),
    lambda: core.apply(g, mutable='intermediates')({}, X),
    lambda: core.apply(g, mutable=['intermediates'])({}, X),
  ):
    run()
    counts.append(compiles)
  return counts


@programs
def derivatives(nn, flax):
  lift, core = flax.core.lift, flax.core

  def g(scope, x, y):
    p = scope.param('test', jax.nn.initializers.constant(0.5), ())
    scope.variable('state', 'counter', lambda: 0).value += 1
    return p * x * y

  def by_vjp(scope, x, y):
    z, bwd = lift.vjp(g, scope, x, y)
    return bwd(jnp.ones(z.shape))

  def by_jvp(scope, x):
    vars_t = jax.tree.map(jnp.ones_like, scope.variables().get('params', {}))
    _, out_t = lift.jvp(
      lambda s, x: g(s, x, x), scope, (x,), (x,), {'params': vars_t}
    )
    return out_t

  def by_value_and_grad(scope, x):
    return lift.value_and_grad(lambda s, x: g(s, x, x).sum(), scope, x)

  x, y = jnp.array([1.0, 2.0, 3.0]), jnp.array([4.0, 5.0, 6.0])
  _, variables = core.init(by_vjp)(KEY, x, y)
  return (
    variables,
    core.apply(by_vjp, mutable=['state'])(variables, x, y),
    core.apply(by_jvp, mutable=['state'])(variables, x),
    core.apply(by_value_and_grad, mutable=['state'])(variables, x),
  )


@programs
def loops_and_branches(nn, flax):
  lift, core = flax.core.lift, flax.core

  def loop(scope, x):
    scope.param('inc', lambda _: 1)
    scope.put_variable('state', 'acc', 0)

    def body(scope, c):
      acc = scope.get_variable('state', 'acc')
      scope.put_variable(
        'state', 'acc', acc + scope.get_variable('params', 'inc')
      )
      scope.make_rng('loop')
      return c + 1

    return lift.while_loop(
      lambda scope, c: scope.get_variable('state', 'acc') < x,
      body,
      scope,
      0,
      carry_variables='state',
      split_rngs={'params': False, 'loop': True},
    )

  def branch(scope, x, i):
    scope.variable('state', 'n', lambda: 0)

    def add(by):
      def fn(scope, x):
        scope.variable('state', 'n').value += by
        return dense(scope.push('dense', reuse=True), x, 2)

      return fn

    y = lift.switch(i, [add(1), add(2), add(3)], scope, x)
    return y, lift.cond(i > 0, add(10), add(20), scope, x)

  keys = {'params': KEY, 'loop': KEY}
  return core.apply(loop, mutable=True)({}, 3, rngs=keys), attempt(
    core.init(branch), KEY, X, 1
  )


@programs
def aliases_of_variables_through_a_loop(nn, flax):
  lift, core = flax.core.lift, flax.core

  def f(scope, x):
    child = scope.push(name='a')
    child.put_variable('state', 'x', 0.0)
    lift.while_loop(
      lambda scope, x: False,
      lambda scope, x: x,
      scope,
      jnp.array(0, jnp.float32),
      carry_variables=['state'],
    )
    child.put_variable('state', 'x', 1.0)
    return scope.get_variable('state', 'a')['x'], child.get_variable(
      'state', 'x'
    )

  return core.init(f)(KEY, X)


@programs
def scans_of_scopes(nn, flax):
  lift, core = flax.core.lift, flax.core

  def body(scope, c, x):
    return dense(scope.push('d'), c, 3) + x, c.sum()

  def layers(scope, c, xs):
    return lift.scan(
      body, variable_axes={'params': 0}, split_rngs={'params': True}
    )(scope, c, xs)

  def deep(scope, x):
    return lift.remat_scan(lambda scope, x: dense(scope, x, 3), lengths=(2, 2))(
      scope, x
    )

  return core.init(layers)(KEY, X, jnp.stack([X, X])), core.init(deep)(KEY, X)


@programs
def swapped_collections(nn, flax):
  lift, core = flax.core.lift, flax.core

  def g(scope, x):
    scope.put_variable('a', 'v', x.sum())
    return scope.get_variable('b', 'v', -1.0)

  def f(scope, x):
    scope.put_variable('a', 'v', 7.0)
    return lift.swap_collection(g, 'a', 'b')(scope, x)

  def one_is_empty(scope, x):
    elsewhere = lift.swap_collection(
      lambda s, x: dense(s, x, 2), 'params', 'other'
    )
    return elsewhere(scope.push('a'), x) + dense(scope.push('b'), x, 2)

  y, variables = core.init(one_is_empty)(KEY, X)
  return (
    core.apply(f, mutable=True)({}, X),
    (y, variables),
    core.apply(one_is_empty, mutable=True)(variables, X),
  )


@programs
def a_transform_of_ones_own(nn, flax):
  lift, core = flax.core.lift, flax.core

  def doubled(fn):
    def inner(scope_fn, repack_fn, variables, rngs, x):
      variables = jax.tree.map(lambda v: v * 2, variables)
      scope = scope_fn(variables, rngs)
      y = fn(scope, x)
      return y, repack_fn(scope)

    return lift.pack(inner, (True,), (False,), (True,), name='doubled')

  def f(scope, x):
    return doubled(lambda s, x: dense(s, x, 2))(scope, x), attempt(
      doubled(lambda s, x: dense(s.push('missing'), x, 2)), scope, x
    )

  return core.apply(f)({'params': {'kernel': jnp.ones((3, 2))}}, X)


@programs.parametrize()
def test_as_flax(program):
  assert_same_as_flax(program)
