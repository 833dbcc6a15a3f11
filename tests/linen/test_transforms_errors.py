"""Errors of lifted transforms: Flax's classes and words."""

import functools

import jax
import jax.numpy as jnp
from module_compare import KEY, Programs, X, assert_same_as_flax, attempt

programs = Programs()
ones = jax.nn.initializers.ones


def lifts(nn):
  """Returns one lift of each kind that keeps a call as it is."""
  return {
    'jit': nn.jit,
    'remat': nn.remat,
    'map_variables': functools.partial(
      nn.map_variables, mapped_collections='x'
    ),
    'vmap': functools.partial(
      nn.vmap,
      variable_axes={'params': None, 'state': None},
      split_rngs={'params': False},
    ),
    'scan': functools.partial(
      nn.scan,
      variable_broadcast=['params', 'state'],
      split_rngs={'params': False},
    ),
  }


@programs
def instances_are_no_targets(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.remat(nn.Dense(3))(x)

  return [
    *(attempt(lift, nn.Dense(3)) for lift in lifts(nn).values()),
    attempt(Foo().init, KEY, X),
    attempt(nn.remat_scan, nn.Dense(3), (2,)),
    attempt(nn.fold_rngs, nn.Dense(3)),
    attempt(nn.add_metadata_axis, nn.Dense(3), {'params': 0}),
    attempt(nn.jit, 3),
    attempt(nn.remat, None),
  ]


@programs
def methods_are_named_by_a_sequence_or_a_dict(nn, flax):
  return [
    attempt(nn.remat, nn.Dense, methods='__call__'),
    attempt(nn.remat, nn.Dense, methods={'__call__'}),
    attempt(nn.remat, nn.Dense, methods=['nothing']),
  ]


@programs
def modules_and_variables_are_not_returned(nn, flax):
  class Bar(nn.Module):
    what: str

    @nn.compact
    def __call__(self, x):
      if self.what == 'module':
        return nn.Dense(3)
      if self.what == 'self':
        return {'a': (x, self)}
      if self.what == 'variable':
        return self.variable('state', 'v', jnp.zeros, ())
      return x

    def named(self, x):
      return self(x)

  out = []
  for lift in (nn.jit, nn.remat):
    for what in ('module', 'self', 'variable', 'x'):
      out.append(attempt(lift(Bar)(what).init_with_output, KEY, X))

  class Deco(nn.Module):
    @nn.jit
    def helper(self, x):
      return nn.Dense(3, parent=None), self

    def __call__(self, x):
      return self.helper(x)

  class Func(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.remat(lambda m, x: m)(self, x)

  lifted = nn.remat(Bar, methods=['named'])('self')
  return (
    out,
    attempt(Deco().init, KEY, X),
    attempt(Func().init, KEY, X),
    attempt(lifted.init, KEY, X, method='named'),
  )


@programs
def immutable_collections(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      self.put_variable('state', 'n', x.sum())
      return x

  class Bar(nn.Module):
    @nn.compact
    def __call__(self, x):
      self.put_variable('params', 'w', x.sum())
      return x

  class Carry(nn.Module):
    @nn.compact
    def __call__(self, c, x):
      return Foo()(c), x

  given = {'state': {'n': 1.0}, 'params': {'w': 1.0}}
  in_carry = {'state': {'Foo_0': {'n': 1.0}}}
  scan = functools.partial(nn.scan, length=2)
  return [
    attempt(nn.jit(Foo)().apply, given, X),
    attempt(nn.remat(Bar)().apply, given, X),
    attempt(nn.remat(Foo, variables='params')().apply, given, X, mutable=True),
    attempt(
      nn.vmap(Foo, {'state': None}, {})().apply, given, X, mutable=['state']
    ),
    attempt(
      nn.vmap(Foo, {'params': 0}, {})().apply, given, X, mutable=['state']
    ),
    attempt(scan(Carry)().apply, in_carry, X, X, mutable=['state']),
    attempt(scan(Carry, variable_broadcast='state')().apply, in_carry, X, X),
    attempt(
      nn.map_variables(Foo, 'state')().apply, given, X, mutable=['state']
    ),
  ]


@programs
def streams_that_do_not_go_in(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      return x + jax.random.normal(self.make_rng('noise'), x.shape)

  class Carry(nn.Module):
    @nn.compact
    def __call__(self, c, x):
      return Foo()(c), x

  keys = {'noise': KEY, 'params': KEY}
  return [
    attempt(nn.vmap(Foo, {}, {})().apply, {}, X, rngs=keys),
    attempt(nn.vmap(Foo, {}, {'other': True})().apply, {}, X, rngs=keys),
    attempt(nn.scan(Carry)().apply, {}, X[0], X, rngs=keys),
    attempt(nn.remat(Foo, rngs='other')().apply, {}, X, rngs=keys),
    attempt(nn.jit(Foo, rngs=[])().apply, {}, X, rngs=keys),
    attempt(nn.vmap(nn.Dense, {'params': 0}, {})(3).init, KEY, X),
  ]


@programs
def paths_show_the_transforms(nn, flax):
  class Missing(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.Dense(3, name='dense')(x)

  class Inner(nn.Module):
    lift: object

    @nn.compact
    def __call__(self, x):
      return self.lift(Missing)(name='missing')(x)

  class Top(nn.Module):
    lift: object

    @nn.compact
    def __call__(self, x):
      return nn.remat(Inner)(self.lift, name='inner')(x)

  class Carry(nn.Module):
    @nn.compact
    def __call__(self, c, x):
      return Missing(name='missing')(c), x

  def step(m, c, x):
    return m(c), x

  some = {'params': {'abc': 1.0}}
  out = [
    attempt(Top(lift).apply, some, X)
    for name, lift in lifts(nn).items()
    if name != 'scan'
  ]
  out += [
    attempt(nn.scan(Carry, length=2)().apply, some, X, X),
    attempt(nn.scan(Carry, variable_broadcast='params')().apply, some, X, X),
    attempt(
      nn.vmap(nn.Dense, {'params': 0}, {'params': True})(3).apply,
      {'params': {'kernel': jnp.ones((2, 3, 4))}},
      X,
    ),
  ]

  class Calls(nn.Module):
    @nn.compact
    def __call__(self, x):
      def use(m, *args):
        return m.variable('none', 'v').value

      return [
        attempt(nn.cond, True, use, use, self, x),
        attempt(nn.switch, 0, [use], self, x),
        attempt(nn.while_loop, use, use, self, x),
        attempt(nn.vjp, use, self, x),
        attempt(nn.grad, use, self, x),
        attempt(nn.jvp, use, self, (x,), (x,), {}),
        attempt(lambda: nn.custom_vjp(use, use, use)(self, x)),
        attempt(lambda: nn.fold_rngs(use)(self, x)),
      ]

  return out, Calls().apply(some, X)


@programs
def shapes_that_are_wrong_inside(nn, flax):
  given = {'params': {'kernel': jnp.ones((4, 3)), 'bias': jnp.ones((3,))}}
  wrong_scan = {'params': {'kernel': jnp.ones((2, 3, 4))}}
  return [
    attempt(nn.jit(nn.Dense)(3).apply, given, X),
    attempt(nn.remat(nn.Dense)(3).apply, given, X),
    attempt(
      nn.vmap(nn.Dense, {'params': None}, {'params': False})(3).apply, given, X
    ),
    attempt(
      nn.vmap(nn.Dense, {'params': 0}, {'params': False})(
        3, use_bias=False
      ).apply,
      wrong_scan,
      X,
    ),
  ]


@programs
def a_custom_vjp_over_several_scopes(nn, flax):
  class User(nn.Module):
    other: nn.Module

    @nn.compact
    def __call__(self, x):
      return self.other(x)

  class Top(nn.Module):
    @nn.compact
    def __call__(self, x):
      dense = nn.Dense(3)

      def f(m, x):
        return m(x)

      user = User(dense)
      return [
        attempt(lambda: nn.custom_vjp(f, f, f)(user, x)),
        attempt(nn.jvp, f, user, (x,), (x,), {}),
      ]

  return Top().init_with_output(KEY, X)[0]


@programs.parametrize()
def test_as_flax(program):
  assert_same_as_flax(program)
