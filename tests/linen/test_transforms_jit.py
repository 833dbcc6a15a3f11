"""Semantics 3: one compiled function for all modules that are alike."""

import dataclasses
import functools
import gc
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from module_compare import KEY, Programs, X, assert_same_as_flax, attempt

from haiku_state import linen

programs = Programs()
ones = jax.nn.initializers.ones


@programs
def instances_that_are_alike_are_traced_once(nn, flax):
  traces = []

  class Foo(nn.Module):
    n: int = 3

    @nn.jit
    @nn.compact
    def __call__(self, x):
      traces.append(self.n)
      return nn.Dense(self.n)(x)

  class Top(nn.Module):
    @nn.compact
    def __call__(self, x):
      for _ in range(4):
        x = Foo(3)(x)
      return Foo(2)(x)

  counts = []

  def count(y):
    counts.append(len(traces))
    return y

  variables = count(Top().init(KEY, X))
  y = count(Top().apply(variables, X))
  count(Top().apply(variables, X))
  count(Top().init(KEY, X))
  count(Top().apply(variables, jnp.ones((5, 3))))
  return variables, y, counts


@programs
def a_lifted_class_is_traced_once(nn, flax):
  traces = []

  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      traces.append(self.name)
      return nn.Dense(3)(x)

  JitFoo = nn.jit(Foo)

  class Top(nn.Module):
    names: tuple

    @nn.compact
    def __call__(self, x):
      for name in self.names:
        x = JitFoo(name=name)(x)
      return x

  variables = Top(('a', 'b', 'c')).init(KEY, X)
  after_init = len(traces)
  y = Top(('a', 'b', 'c')).apply(variables, X)
  Top(('c', 'a')).apply(variables, X)
  return variables, y, after_init, len(traces)


@programs
def what_is_part_of_the_fingerprint(nn, flax):
  """What retraces: fields, mutability, counts; what does not: name, path."""
  traces = []

  @dataclasses.dataclass
  class Config:
    a: int = 1
    b: object = None

  class Foo(nn.Module):
    config: object = None
    sub: object = None

    @nn.jit
    @nn.compact
    def __call__(self, x):
      traces.append(1)
      if self.is_mutable_collection('seen'):
        self.sow('seen', 'x', x.sum())
      return x * 2 if self.sub is None else self.sub(x)

  def traced(module, **options):
    before = len(traces)
    result = attempt(module.apply, {}, X, **options)
    if isinstance(result, jax.Array):
      result = 'array'
    return len(traces) - before, result

  return [
    traced(Foo()),
    traced(Foo()),
    traced(Foo(name='other')),
    traced(Foo(1)),
    traced(Foo(Config())),
    traced(Foo(Config())),
    traced(Foo(Config(2))),
    traced(Foo(Config(2, [1, {'x': (3, None)}]))),
    traced(Foo(Config(2, [1, {'x': (3, None)}]))),
    traced(Foo(jnp.float32)),
    traced(Foo(jnp.dtype('float32'))),
    traced(Foo({'a': 1})),
    traced(Foo(flax.core.FrozenDict({'a': 1}))),
    traced(Foo(['a', 1])),
    traced(Foo(('a', 1))),
    traced(Foo(sub=nn.relu)),
    traced(Foo(sub=jnp.tanh)),
    traced(Foo(sub=jnp.tanh)),
    traced(Foo(), mutable=['seen']),
    traced(Foo(), mutable=['seen']),
    traced(Foo(), mutable=True),
    traced(Foo(), mutable=flax.core.DenyList('seen')),
    traced(Foo(), mutable=[]),
    traced(Foo(), rngs={'a': KEY}),
    traced(Foo(), rngs={'a': jax.random.key(5)}),
    traced(Foo(jnp.ones(3))),
    traced(Foo({'a': [np.ones(3)]})),
    traced(Foo({1, 2})),
  ]


@programs
def counters_go_on_after_a_cache_hit(nn, flax):
  class Foo(nn.Module):
    @nn.jit
    @nn.compact
    def __call__(self, x):
      return jax.random.key_data(self.make_rng('noise')), Sub()(x)

  class Sub(nn.Module):
    @nn.compact
    def __call__(self, x):
      return jax.random.key_data(self.make_rng('noise'))

  class Top(nn.Module):
    @nn.compact
    def __call__(self, x):
      a, b = Foo(name='a'), Foo(name='b')
      first = (
        a(x),
        b(x),
        a(x),
        b(x),
        jax.random.key_data(self.make_rng('noise')),
      )
      return first, a.scope.rng_counters.get('noise')

  keys = {'noise': KEY}
  return Top().apply({}, X, rngs=keys), Top().apply({}, X, rngs=keys)


@programs
def parameters_after_a_cache_hit(nn, flax):
  """A hit does not run the body: what it makes must be written all the same."""

  class Foo(nn.Module):
    @nn.jit
    @nn.compact
    def __call__(self, x):
      self.variable('state', 'n', jnp.zeros, ()).value += 1
      return nn.Dense(3)(x)

  class Top(nn.Module):
    @nn.compact
    def __call__(self, x):
      for _ in range(3):
        x = Foo()(x)
      return Foo(name='Foo_0')(x) if False else x

  first = Top().init(KEY, X)
  second = Top().init(jax.random.key(3), X)
  again = Top().apply(second, X, mutable=True)
  return first, second, again, Top().apply(second, X, mutable=True)


@programs
def static_arguments(nn, flax):
  kinds = []

  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x, n, flag=False):
      kinds.append((type(n).__name__, type(flag).__name__))
      x = nn.Dense(n)(x)
      return -x if flag else x

  Lifted = nn.jit(Foo, static_argnums=(2,), static_argnames=('flag',))
  Dropout = nn.jit(nn.Dropout, static_argnames='deterministic')
  variables = Lifted().init(KEY, X, 3)
  return (
    attempt(Lifted().apply, variables, X, 3, flag=True),
    attempt(Lifted().apply, variables, X, n=3, flag=True).kind,
    kinds,
    Dropout(0.5).apply({}, X, deterministic=True),
  )


@programs
def donated_arguments_and_devices(nn, flax):
  Lifted = nn.jit(nn.Dense, donate_argnums=(1,))
  variables = Lifted(3).init(KEY, X + 0)
  On = nn.jit(nn.Dense, backend='cpu')
  return variables, Lifted(3).apply(variables, X + 0), On(3).apply(variables, X)


@programs
def keyword_arguments(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x, scale=1.0, *, tree=None):
      y = nn.Dense(3)(x) * scale
      return y if tree is None else y + tree['a']

  out = []
  for lift in (nn.jit, nn.remat, nn.fold_rngs):
    module = lift(Foo)()
    variables = module.init(KEY, X)
    out.append(module.apply(variables, X, scale=2.0, tree={'a': X}))
    out.append(module.apply(variables, x=X))
  return out


@programs
def static_arguments_of_remat(nn, flax):
  seen = []

  class Static(nn.Module):
    @functools.partial(nn.remat, static_argnums=(2,))
    @nn.compact
    def __call__(self, x, train: bool):
      seen.append(type(train) is bool)
      return nn.Dense(3)(x)

  class Dynamic(nn.Module):
    @functools.partial(nn.remat, static_argnums=())
    @nn.compact
    def __call__(self, x, train: bool):
      seen.append(type(train) is bool)
      return nn.Dense(3)(x)

  class Kw(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
      seen.append(type(train) is bool)
      return nn.Dense(3)(x)

  return (
    Static().init(KEY, X, True),
    Dynamic().init(KEY, X, True),
    nn.remat(Kw)().init(KEY, X, train=True),
    nn.remat(Kw, static_argnums=2)().init(KEY, X, True),
    seen,
    attempt(nn.remat(Kw, concrete=True)().init, KEY, X),
  )


@programs
def lifted_jaxprs(nn, flax):
  """JAX gets the same options, and the same amount of work."""

  class Top(nn.Module):
    lift: object

    @nn.compact
    def __call__(self, x):
      return self.lift(nn.Dense)(3)(x).sum()

  policy = jax.checkpoint_policies.dots_saveable
  out = []
  for lift in (
    nn.remat,
    functools.partial(nn.remat, prevent_cse=False),
    functools.partial(nn.remat, policy=policy),
    nn.jit,
  ):
    variables = nn.Dense(3).init(KEY, X)
    name = lift(nn.Dense).__name__ + '_0'
    given = {'params': {name: variables['params']}}
    grad = jax.grad(Top(lift).apply)
    jaxpr = jax.make_jaxpr(grad)(given, X)
    for eqn in jaxpr.eqns:
      out.append(
        (
          str(eqn.primitive),
          str(eqn.params.get('prevent_cse')),
          eqn.params.get('policy') is policy,
        )
      )
  return out


@programs
def jit_inside_of_jit(nn, flax):
  traces = []

  class Foo(nn.Module):
    @nn.jit
    @nn.compact
    def __call__(self, x):
      traces.append(1)
      return nn.jit(nn.Dense)(3)(x)

  variables = Foo().init(KEY, X)
  apply = jax.jit(Foo().apply)
  y = apply(variables, X), apply(variables, X)
  return variables, y, len(traces)


@programs
def recursion(nn, flax):
  class Rec(nn.Module):
    n: int

    @nn.jit
    @nn.compact
    def __call__(self, x):
      x = nn.Dense(3)(x)
      return x if self.n == 0 else Rec(self.n - 1)(x)

  return Rec(3).init_with_output(KEY, X)


@programs
def modules_in_fields_of_jitted_modules(nn, flax):
  traces = []

  class Foo(nn.Module):
    a: nn.Module
    b: nn.Module

    @nn.jit
    def __call__(self, x):
      traces.append(1)
      return self.a(x) + self.b(x)

  class Top(nn.Module):
    @nn.compact
    def __call__(self, x):
      d, e = nn.Dense(3), nn.Dense(3)
      one = Foo(d, e)(x) + Foo(e, d)(x)
      two = Foo(d, d)(x)
      return one + two + Foo(nn.Dense(3), nn.Dense(3, use_bias=False))(x)

  variables = Top().init(KEY, X)
  first = len(traces)
  y = Top().apply(variables, X)
  return variables, y, first, len(traces) - first


@programs
def setup_and_jit(nn, flax):
  traces = []

  class Foo(nn.Module):
    def setup(self):
      traces.append('setup')
      self.dense = nn.Dense(3)

    @nn.jit
    def __call__(self, x):
      traces.append('call')
      return self.dense(x)

    @nn.jit
    def twice(self, x):
      return self(self(x))

  variables = Foo().init(KEY, X)
  y = Foo().apply(variables, X), Foo().apply(variables, X, method='twice')
  Foo().apply(variables, X)
  return variables, y, traces.count('call')


@programs
def config_objects_with_a_class(nn, flax):
  class Config:
    __fn_or_cls__ = nn.Dense

    def __init__(self, n):
      self.n = n

  class Foo(nn.Module):
    config: object

    @nn.jit
    @nn.compact
    def __call__(self, x):
      return self.config.__fn_or_cls__(self.config.n)(x)

  return Foo(Config(2)).init(KEY, X)


@programs
def parameters_set_after_a_cache_hit(nn, flax):
  class Sum(nn.Module):
    @nn.jit
    def __call__(self, x):
      self.put_variable('params', 'ab'[x.ndim - 1], x.sum())
      return x

  class Top(nn.Module):
    @nn.compact
    def __call__(self, *inputs):
      return [Sum()(x) for x in inputs]

  value = {'a': jnp.array(100.0), 'b': jnp.array(200.0)}
  variables = {'params': {f'Sum_{i}': value for i in range(4)}}
  row = X[0]
  return (
    Top().apply(variables, row, row, X, X, mutable='params'),
    Top().apply(variables, X, X, row, row, mutable='params'),
  )


@programs
def modules_as_arguments_are_told_apart(nn, flax):
  class Scale(nn.Module):
    factor: float

    def __call__(self, x):
      return self.factor * x

  class Use(nn.Module):
    @nn.jit
    def __call__(self, module, x):
      return module(x)

  class Top(nn.Module):
    factor: float

    @nn.compact
    def __call__(self, x):
      return Use()(Scale(self.factor), x)

  class Dense(nn.Module):
    init_fn: object

    @nn.compact
    def __call__(self, x):
      return Use()(nn.Dense(3, kernel_init=self.init_fn), x)

  class Siblings(nn.Module):
    def setup(self):
      self.a, self.b = nn.Dense(3), nn.Dense(3)
      self.v = self.variable('state', 'v', lambda: jnp.ones(()))
      self.w = self.variable('state', 'w', lambda: 2 * jnp.ones(()))

    @nn.jit
    def use(self, layer, x):
      return layer(x)

    @nn.jit
    def both(self, one, other, x):
      return one(x) - 2 * other(x)

    @nn.jit
    def times(self, variable, x):
      variable.value = variable.value + 1
      return variable.value * x

    def __call__(self, x):
      layers = (self.a, self.b)
      return (
        [self.use(layer, x) for layer in layers],
        [self.both(*two, x) for two in itertools.product(layers, repeat=2)],
        [self.times(variable, x) for variable in (self.v, self.w, self.v)],
      )

  normal, ones = nn.initializers.normal(), nn.initializers.ones
  variables = Siblings().init(KEY, X)
  return (
    [Top(factor).apply({}, 1.0) for factor in (1.0, 2.0, 1.0)],
    [Dense(init_fn).init(KEY, X) for init_fn in (normal, ones)],
    variables,
    Siblings().apply(variables, X, mutable='state'),
  )


@programs.parametrize()
def test_as_flax(program):
  assert_same_as_flax(program)


# Flax answers with what it has compiled for another function, or class, that
# had the same address before it was gone.
def test_functions_and_classes_that_are_gone_are_not_mistaken():
  class Apply(linen.Module):
    fn: object

    @linen.jit
    def __call__(self, x):
      return self.fn(x)

  def scale_by(factor):
    return lambda x: factor * x

  assert [Apply(scale_by(i))(1) for i in range(5)] == list(range(5))
  assert [Apply(scale_by(i)).apply({}, 1) for i in range(5)] == list(range(5))

  call = linen.jit(lambda module, x: module(x))
  outputs = []
  for i in range(3):

    class Scale(linen.Module):
      def __call__(self, x, i=i):
        return i * x

    outputs.append(call(Scale(), 1))
    del Scale
    gc.collect()
  assert outputs == [0, 1, 2]
