"""Semantics 13: what a parameter that exists is held against."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from module_compare import KEY, Programs, X, assert_same_as_flax, attempt

programs = Programs()
zeros = jax.nn.initializers.zeros


def one_param(nn, init_fn, *args, **kwargs):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self):
      return self.param('w', init_fn, *args, **kwargs)

  return Foo()


@programs
def shapes_given_and_expected(nn, flax):
  values = {
    'same': jnp.ones((2, 3)),
    'other': jnp.ones((3, 2)),
    'rank': jnp.ones((2,)),
    'scalar': jnp.ones(()),
    'number': 3.0,
    'int dtype': jnp.ones((2, 3), int),
    'half': jnp.ones((2, 3), jnp.float16),
    'numpy': np.ones((2, 3)),
    'numpy other': np.ones((3, 3)),
    'dict': {'a': jnp.ones((2, 3))},
    'dict other': {'a': jnp.ones((3,))},
    'list': [jnp.ones((2, 3))],
    'struct': jax.ShapeDtypeStruct((2, 3), 'float32'),
    'none': None,
    'string': 'abc',
    'bool': True,
    'two leaves': (jnp.ones((2, 3)), jnp.ones((7,))),
    'empty': {},
  }
  foo = one_param(nn, zeros, (2, 3))
  return {
    name: attempt(foo.apply, {'params': {'w': value}})
    for name, value in values.items()
  }


@programs
def initializers_that_make_trees(nn, flax):
  @flax.struct.dataclass
  class Pair:
    a: Any
    b: Any

  cases = {
    'dict': lambda k: {'a': jnp.zeros(2), 'b': {'c': jnp.ones((3, 1))}},
    'list': lambda k: [jnp.zeros(2), jnp.ones(3)],
    'tuple': lambda k: (jnp.zeros(2), (jnp.ones(3), 3)),
    'pair': lambda k: Pair(jnp.zeros(2), jnp.ones(3)),
    'number': lambda k: 3,
    'float': lambda k: 3.5,
    'numpy': lambda k: np.arange(3),
    'empty dict': lambda k: {},
    'key': lambda k: k,
    'bool': lambda k: True,
    'bfloat16': lambda k: jnp.zeros(3, jnp.bfloat16),
    'complex': lambda k: jnp.zeros(3, complex),
    'none': lambda k: None,
    'zero size': lambda k: jnp.zeros((0, 3)),
  }
  results = {}
  for name, init_fn in cases.items():
    foo = one_param(nn, init_fn)
    made = attempt(foo.init_with_output, KEY)
    again = None
    if isinstance(made, tuple):
      again = attempt(foo.apply, made[1])
    results[name] = made, again
  return results


@programs
def wrong_trees(nn, flax):
  foo = one_param(nn, lambda k: {'a': jnp.zeros(2), 'b': jnp.zeros(3)})
  values = [
    {'a': jnp.ones(2), 'b': jnp.ones(3)},
    {'a': jnp.ones(2), 'b': jnp.ones(4)},
    {'a': jnp.ones(3), 'b': jnp.ones(2)},
    {'a': jnp.ones(2)},
    {'c': jnp.ones(2), 'd': jnp.ones(3)},
    jnp.ones(2),
    [jnp.ones(2), jnp.ones(3)],
  ]
  return [attempt(foo.apply, {'params': {'w': v}}) for v in values]


@programs
def missing_parameters(nn, flax):
  dense = nn.Dense(3)

  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.Dense(3, name='a')(nn.Dense(3, name='b')(x))

  good = Foo().init(KEY, X)['params']
  results = [
    attempt(dense.apply, {'params': {'bias': jnp.ones(3)}}, X),
    attempt(dense.apply, {'params': {}}, X),
    attempt(dense.apply, {}, X),
    attempt(dense.apply, {'other': {'a': 1}}, X),
    attempt(Foo().apply, {'params': {'b': good['b']}}, X),
    attempt(Foo().apply, {'params': {'a': good['a']}}, X),
    attempt(Foo().apply, {'params': {'a': good['a'], 'b': {}}}, X),
    attempt(Foo().apply, {'params': {'a': {}, 'b': {}}}, X),
    attempt(
      Foo().apply, {'params': {'b': good['b']}}, X, mutable=['batch_stats']
    ),
    attempt(Foo().apply, {'params': {'b': good['b']}}, X, mutable=['params']),
    attempt(
      Foo().apply, {'params': {'b': good['b']}}, X, mutable=True, rngs=KEY
    ),
  ]
  return results


@programs
def wrong_shapes_of_layers(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = nn.Dense(4, name='first')(x)
      x = nn.LayerNorm()(x)
      return nn.Dense(2)(x)

  variables = Foo().init(KEY, X)
  one = jnp.array(1)
  return (
    attempt(Foo().apply, variables, jnp.ones((2, 5))),
    attempt(nn.Dense(4).apply, nn.Dense(3).init(KEY, X), X),
    attempt(nn.Embed(3, 4).apply, nn.Embed(5, 4).init(KEY, one), one),
    attempt(
      nn.Conv(3, (3,)).apply,
      nn.Conv(3, (2,)).init(KEY, jnp.ones((1, 4, 2))),
      jnp.ones((1, 4, 2)),
    ),
  )


@programs
def arguments_of_the_initializer(nn, flax):
  def init_fn(key, shape, dtype=jnp.float32, *, scale=1.0):
    return scale * jax.random.normal(key, shape, dtype)

  return [
    attempt(one_param(nn, init_fn, *args, **kwargs).init, KEY)
    for args, kwargs in (
      (((2,),), {}),
      (((2,), jnp.float16), {}),
      (((2,),), {'scale': 2.0}),
      (((2,),), {'dtype': jnp.bfloat16, 'scale': 3.0}),
      ((), {'shape': (3,)}),
      ((), {}),
      (((2,),), {'nope': 3}),
    )
  ]


@programs
def initializers_that_close_over_values(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      w = self.param('w', lambda k: jnp.mean(x, 0))
      n = x.shape[-1]
      v = self.param('v', lambda k, m: jnp.ones((m, n)), 2)
      return w, v

  variables = Foo().init(KEY, X)
  return (
    variables,
    Foo().apply(variables, X),
    attempt(Foo().apply, variables, jnp.ones((2, 4))),
    jax.jit(Foo().apply)(variables, X),
    jax.eval_shape(Foo().init, KEY, X),
  )


@programs
def the_initializer_is_not_run_in_apply(nn, flax):
  calls = []

  def init_fn(key, shape):
    calls.append(type(key).__name__ != 'ArrayImpl')
    return jnp.zeros(shape)

  foo = one_param(nn, init_fn, (2,))
  variables = foo.init(KEY)
  calls.clear()
  foo.apply(variables)
  # It may be traced, to know its shapes.
  return all(calls)


@programs
def traced_by_jax(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.Dense(2)(x) * self.param('s', jax.nn.initializers.ones, ())

  foo = Foo()
  variables = foo.init(KEY, X)

  def loss(params, x):
    return jnp.sum(foo.apply({'params': params}, x) ** 2)

  return (
    jax.eval_shape(foo.init, KEY, X),
    jax.jit(foo.init)(KEY, X),
    jax.grad(loss)(variables['params'], X),
    jax.vmap(loss, (None, 0))(variables['params'], X),
    jax.vmap(foo.init, (0, None))(jax.random.split(KEY, 3), X),
    jax.jit(jax.grad(loss))(variables['params'], X),
    jax.jvp(loss, (variables['params'], X), (variables['params'], X)),
  )


@programs
def get_put_has_variable(nn, flax):
  class Bar(nn.Module):
    @nn.compact
    def __call__(self):
      return self.param('w', zeros, (2,))

  class Foo(nn.Module):
    @nn.compact
    def __call__(self):
      seen = [
        self.has_variable('params', 'w'),
        self.get_variable('params', 'w'),
        self.get_variable('params', 'w', 3),
        self.has_variable('params', 'bar'),
      ]
      self.param('w', zeros, (2,))
      bar = Bar(name='bar')
      bar()
      seen += [
        self.has_variable('params', 'w'),
        self.get_variable('params', 'w'),
        self.has_variable('params', 'bar'),
        jax.tree.map(jnp.shape, self.get_variable('params', 'bar')),
        bar.get_variable('params', 'w'),
        self.has_variable('nope', 'w'),
        self.get_variable('nope', 'w'),
      ]
      self.put_variable('cache', 'c', 7)
      seen.append(self.get_variable('cache', 'c'))
      return seen

  out, variables = Foo().init_with_output(KEY)
  return (
    out,
    variables,
    attempt(Foo().apply, variables),
    attempt(Foo().apply, variables, mutable=['cache']),
  )


@programs
def put_a_parameter(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self):
      w = self.param('w', zeros, (2,))
      self.put_variable('params', 'w', w + 1)
      self.put_variable('params', 'new', w + 2)
      return w, self.get_variable('params', 'w'), self.variables['params']['w']

  class Before(nn.Module):
    @nn.compact
    def __call__(self):
      self.put_variable('params', 'w', jnp.ones(2))
      return self.param('w', zeros, (2,))

  class Tree(nn.Module):
    @nn.compact
    def __call__(self):
      self.put_variable('params', 'w', {'a': 1, 'b': {'c': jnp.ones(2)}})
      self.put_variable('params', 'w', {'b': {'c': jnp.zeros(3)}})
      return self.get_variable('params', 'w')

  given = {'params': {'w': jnp.ones(2) * 5}}
  return [
    (
      attempt(c().init_with_output, KEY),
      attempt(c().apply, given, mutable=['params']),
      attempt(c().apply, given),
    )
    for c in (Foo, Before, Tree)
  ]


@programs
def variables_of_params_collection(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self):
      v = self.variable('params', 'w', jnp.zeros, (2,))
      v.value = v.value + 1
      return v.value

  out, variables = Foo().init_with_output(KEY)
  return (
    out,
    variables,
    attempt(Foo().apply, variables),
    Foo().apply(variables, mutable=['params']),
  )


@programs.parametrize()
def test_same_as_flax(program):
  assert_same_as_flax(program)
