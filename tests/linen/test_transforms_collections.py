"""Lifted transforms and collections: what goes in, comes out, or is mapped."""

import functools

import jax
import jax.numpy as jnp
from module_compare import KEY, Programs, X, assert_same_as_flax, attempt

programs = Programs()
ones = jax.nn.initializers.ones


@programs
def tied_autoencoder(nn, flax):
  def trans(variables):
    return jax.tree.map(lambda x: x.T, variables)

  class TiedAutoencoder(nn.Module):
    features: int
    latents: int

    @nn.compact
    def _call(self, x, decode):
      def f(self):
        return nn.Dense(
          self.features if decode else self.latents, use_bias=False
        )(x)

      if decode:
        map_fn = trans
      else:
        map_fn = lambda x: x
      return nn.map_variables(
        f,
        'params',
        map_fn,
        map_fn,
        mutable=True,
        init=self.is_mutable_collection('params') and not decode,
      )(self)

    def encode(self, x):
      return self._call(x, False)

    def decode(self, x):
      return self._call(x, True)

    def __call__(self, x):
      return self.decode(self.encode(x))

  ae = TiedAutoencoder(latents=4, features=3)
  variables = ae.init(KEY, X)
  z = ae.apply(variables, X, method=ae.encode)
  return (
    variables,
    ae.apply(variables, X),
    ae.apply(variables, z, method='decode'),
  )


@programs
def bit_weights(nn, flax):
  class BitWeights(nn.Module):
    @nn.compact
    def __call__(self, x):
      def sign(x):
        return jax.tree.map(jnp.sign, x)

      BitDense = nn.map_variables(nn.Dense, 'params', sign, init=True)
      return BitDense(4)(x)

  variables = BitWeights().init(KEY, X)
  return variables, BitWeights().apply(variables, X)


def count_of(nn):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      a = self.variable('a', 'v', jnp.zeros, (3,))
      b = self.variable('b', 'v', jnp.ones, (3,))
      w = self.param('w', ones, (3,))
      a.value += x.sum(0)
      if self.is_mutable_collection('b'):
        b.value *= 2
      return x * a.value * w + b.value

  return Foo


@programs
def map_variables_by_init_and_mutable(nn, flax):
  def double(tree):
    return jax.tree.map(lambda x: x * 2, tree)

  def halve(tree):
    return jax.tree.map(lambda x: x / 2, tree)

  given = {
    'params': {'w': jnp.ones((3,))},
    'a': {'v': jnp.ones((3,))},
    'b': {'v': jnp.ones((3,))},
  }
  out = []
  for cols in ('a', ['a', 'b'], True, flax.core.DenyList('params'), False):
    for init in (False, True):
      for mutable in (False, True):
        Lifted = nn.map_variables(
          count_of(nn), cols, double, halve, init=init, mutable=mutable
        )
        out.append(attempt(Lifted().init_with_output, KEY, X))
        out.append(attempt(Lifted().apply, given, X, mutable=['a', 'b']))
        out.append(attempt(Lifted().apply, given, X))
  return out


@programs
def map_variables_with_filters_of_the_rest(nn, flax):
  given = {
    'params': {'w': jnp.ones((3,))},
    'a': {'v': jnp.ones((3,))},
    'b': {'v': jnp.ones((3,))},
  }

  def results(**options):
    Lifted = nn.map_variables(count_of(nn), 'a', mutable=True, **options)
    return Lifted().apply(given, X, mutable=['a', 'b'])

  return [
    attempt(results, variables=('b', 'params')),
    attempt(results, variables=('a', 'b', 'params')),
    attempt(results, variables='b'),
    attempt(results, rngs=False),
  ]


@programs
def map_variables_changes_names(nn, flax):
  def rename(tree):
    return (
      {
        **{k: v for k, v in tree.items() if k != 'kernel'},
        'weights': tree['kernel'],
      }
      if 'kernel' in tree
      else tree
    )

  def back(tree):
    tree = dict(tree.get('params', tree))
    if 'weights' in tree:
      tree['kernel'] = tree.pop('weights')
    return {'params': tree}

  def forth(tree):
    params = dict(tree.get('params', {}))
    if 'kernel' in params:
      params['weights'] = params.pop('kernel')
    return {'params': params}

  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      return x * self.param('weights', ones, (3,))

  Lifted = nn.map_variables(Foo, 'params', forth, back, init=True)
  variables = Lifted().init(KEY, X)
  return variables, Lifted().apply(variables, X), rename({})


@programs
def some_collections_and_keys_do_not_go_in(nn, flax):
  given = {
    'params': {'w': jnp.ones((3,))},
    'a': {'v': jnp.ones((3,))},
    'b': {'v': jnp.ones((3,))},
  }

  class Draws(nn.Module):
    @nn.compact
    def __call__(self):
      return jax.random.key_data(self.make_rng('a'))

  out = []
  for lift in (nn.jit, nn.remat):
    for cols in (
      True,
      ['params', 'a', 'b'],
      ['params', 'a'],
      flax.core.DenyList('b'),
      False,
    ):
      Lifted = lift(count_of(nn), variables=cols)
      out.append(attempt(Lifted().apply, given, X, mutable=['a', 'b']))
      out.append(attempt(Lifted().init, KEY, X))
    for rngs in (True, 'a', 'params', flax.core.DenyList('a'), False):
      Lifted = lift(Draws, rngs=rngs)
      out.append(attempt(Lifted().apply, {}, rngs={'a': KEY, 'params': KEY}))
  return out


@programs
def mutable_is_seen_inside(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self):
      return [
        self.is_mutable_collection(c) for c in ('params', 'a', 'intermediates')
      ] + [self.is_initializing(), self.has_rng('a'), self.has_rng('params')]

  def lifts():
    yield nn.jit
    yield nn.remat
    yield functools.partial(nn.jit, variables=['a'])
    yield functools.partial(nn.remat, rngs='a')
    yield functools.partial(
      nn.vmap,
      variable_axes={'a': 0},
      split_rngs={'a': True},
      axis_size=2,
      in_axes=None,
      out_axes=None,
    )
    yield functools.partial(nn.map_variables, mapped_collections='a')

  return [
    (
      lift(Foo)().apply({}, rngs={'a': KEY}, mutable=mutable)
      if mutable is False
      else lift(Foo)().apply({}, rngs={'a': KEY}, mutable=mutable)[0]
    )
    for lift in lifts()
    for mutable in (False, True, ['a'], [], flax.core.DenyList('a'))
  ]


@programs
def intermediates_of_lifted_modules(nn, flax):
  class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
      y = nn.Dense(3)(x)
      self.sow('intermediates', 'h', y)
      self.sow(
        'sums', 's', y.sum(), reduce_fn=lambda a, b: a + b, init_fn=lambda: 0.0
      )
      return y

    def other(self, x):
      return x

  class Top(nn.Module):
    lift: object

    @nn.compact
    def __call__(self, x):
      block = self.lift(Block)()
      return block(block(x))

  out = []
  for lift in (
    nn.jit,
    nn.remat,
    functools.partial(
      nn.vmap,
      variable_axes={'params': None, 'intermediates': 0, 'sums': 0},
      split_rngs={'params': False},
    ),
  ):
    variables = Top(lift).init(KEY, X)
    params = {'params': variables['params']}
    out.append(variables)
    out.append(Top(lift).apply(params, X, mutable=['intermediates', 'sums']))
    out.append(Top(lift).apply(params, X, capture_intermediates=True))
    out.append(
      Top(lift).apply(
        params,
        X,
        capture_intermediates=lambda m, name: isinstance(m, nn.Dense),
        mutable=['intermediates'],
      )
    )
  return out


@programs
def sow_in_a_scan(nn, flax):
  class Step(nn.Module):
    @nn.compact
    def __call__(self, c, x):
      c = nn.Dense(3)(c) + x
      self.sow('intermediates', 'c', c)
      return c, ()

  Lifted = nn.scan(
    Step,
    variable_broadcast='params',
    variable_axes={'intermediates': 0},
    split_rngs={'params': False},
  )
  xs = jnp.stack([X, X])
  variables = Lifted().init(KEY, X, xs)
  return (
    variables,
    Lifted().apply(variables, X, xs, mutable=['intermediates']),
    Lifted().apply(variables, X, xs, capture_intermediates=True),
    Lifted().apply(variables, X, xs),
  )


@programs
def perturbations_of_lifted_modules(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = nn.Dense(3)(x)
      x = self.perturb('before', x)
      return jnp.tanh(x).sum()

  out = []
  for lift in (nn.jit, nn.remat):
    variables = lift(Foo)().init(KEY, X)

    def loss(v, lift=lift):
      return lift(Foo)().apply(v, X)

    out.append((variables, jax.grad(loss)(variables)))
    out.append(lift(Foo)().apply({'params': variables['params']}, X))
  return out


@programs
def empty_collections_and_dicts_as_values(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      v = self.variable('state', 'tree', lambda: {'a': x, 'b': {}})
      v.value = {'a': v.value['a'] + 1, 'b': {}}
      self.variable('state', 'none', lambda: None)
      self.variable('state', 'tuple', lambda: (x, [x]))
      return v.value['a']

  return [
    (
      lift(Foo)().init_with_output(KEY, X),
      attempt(lift(Foo)().apply, {'empty': {}}, X, mutable=True),
    )
    for lift in (lambda c: c, nn.jit, nn.remat)
  ]


@programs
def parameters_change_inside(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      w = self.param('w', ones, (3,))
      self.put_variable('params', 'w', w * 2)
      return x * self.get_variable('params', 'w')

  class Top(nn.Module):
    lift: object

    @nn.compact
    def __call__(self, x):
      foo = self.lift(Foo)()
      x = foo(x)
      w = foo.get_variable('params', 'w')
      return foo(x), w, foo.get_variable('params', 'w')

  given = {'params': {'CheckpointFoo_0': {'w': jnp.full((3,), 5.0)}}}
  return (
    Top(nn.remat).init_with_output(KEY, X),
    Top(nn.remat).apply(given, X, mutable=['params']),
    attempt(Top(nn.remat).apply, given, X),
    Top(nn.jit).init_with_output(KEY, X),
  )


@programs
def parameters_set_in_branches_and_loops(nn, flax):
  def a(m, x):
    m.put_variable('params', 'a', x.sum())
    return x

  def b(m, x):
    m.put_variable('params', 'b', x.sum())
    return x

  def step(m, c):
    b(m, a(m, c))
    return 2 * c

  small = lambda m, c: c.sum() < 40
  bodies = {
    'cond': lambda m, x, i: nn.cond(i == 0, a, b, m, x),
    'switch': lambda m, x, i: nn.switch(i, [a, b, lambda m, x: x], m, x),
    'while': lambda m, x, i: nn.while_loop(
      small, step, m, x, carry_variables='params'
    ),
    'vjp': lambda m, x, i: nn.vjp(step, m, x)[0],
  }

  class Top(nn.Module):
    body: str

    def __call__(self, x, i):
      return bodies[self.body](self, x, i)

  variables = {'params': {'a': jnp.array(100.0), 'b': jnp.array(200.0)}}
  return [
    Top(body).apply(variables, X, i, mutable='params')
    for body in bodies
    for i in range(3)
  ]


@programs
def parameters_set_to_none(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      n = self.param('none', lambda key: None)
      tree = self.param('tree', lambda key: {'a': x, 'b': (x, x)})
      return n, tree['b'][1]

  return [
    (variables := lift(Foo)().init(KEY, X), lift(Foo)().apply(variables, X))
    for lift in (nn.jit, nn.remat)
  ]


@programs
def a_bound_module(nn, flax):
  class Foo(nn.Module):
    def setup(self):
      self.inner = nn.remat(nn.Dense)(3)
      self.count = self.variable('state', 'n', jnp.zeros, ())

    @nn.jit
    def __call__(self, x):
      self.count.value += 1
      return self.inner(x)

  variables = Foo().init(KEY, X)
  bound = Foo().bind(variables, mutable=['state'])
  y = bound(X)
  z = bound.inner(X)
  inner, inner_variables = bound.inner.unbind()
  return (
    y,
    z,
    bound(X),
    bound.variables,
    inner.apply(inner_variables, X),
    type(inner).__name__,
  )


@programs.parametrize()
def test_as_flax(program):
  assert_same_as_flax(program)
