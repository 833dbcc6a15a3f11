"""Small programs of many kinds, each about more than one point."""

import collections
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, get_type_hints

import jax
import jax.numpy as jnp
from module_compare import KEY, Programs, X, assert_same_as_flax, attempt

programs = Programs()
ones = jax.nn.initializers.ones


@programs
def scopes_by_hand(nn, flax):
  class MLP(nn.Module):
    def setup(self):
      self.dense = nn.Dense(3)

    def __call__(self, x):
      return self.dense(x)

  scope = flax.core.Scope({}, {'params': KEY}, mutable=['params'])
  clone = MLP(parent=scope).clone()
  y = MLP(parent=scope)(X)
  bound = MLP(parent=flax.core.Scope(scope.variables()))
  return y, scope.variables(), clone.scope, bound(X), bound.dense.path


@programs
def fields_filled_in_before_use(nn, flax):
  class Bar(nn.Module):
    a: int

    def setup(self):
      self.b = self.param('b', ones, ())

    def __call__(self, x):
      return x + self.b * self.a

  class Foo(nn.Module):
    bars: Sequence[Bar]

    def __call__(self, x):
      for bar in self.bars:
        x = bar(x)
      return x

  foo = Foo(bars=[])
  foo.bars = [Bar(a=1), Bar(a=2)]
  variables = foo.init(KEY, jnp.ones(()))
  bound = foo.bind(variables)
  foo.bars = [*foo.bars, Bar(a=3)]
  return (
    variables,
    repr(bound.bars[1]),
    bound.bars[0].b,
    foo.init(KEY, jnp.ones(())),
    bound(2.0),
  )


@programs
def modules_made_in_helpers_and_comprehensions(nn, flax):
  def helper(x, features):
    return nn.Dense(features)(x)

  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      layers = {'a': nn.Dense(2), 'b': [nn.Dense(2), nn.Dense(3)]}
      x = layers['b'][1](layers['a'](x))
      x = functools.reduce(helper, (2, 3), x)
      return sum(layer(x) for layer in [nn.Dense(1) for _ in range(2)])

    def other(self, x):
      return helper(x, 3)

  return Foo().init_with_output(KEY, X), attempt(
    Foo().init, KEY, X, method='other'
  )


@programs
def modules_as_arguments(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x, inner):
      return inner(x), inner.path

  class Top(nn.Module):
    @nn.compact
    def __call__(self, x):
      outer = nn.Dense(2, name='z')
      return Foo()(x, nn.Dense(2)), Foo()(x, outer), Foo()(x, inner=outer)

  class Types(nn.Module):
    make: Callable[..., Any]
    norm: Any = nn.LayerNorm

    @nn.compact
    def __call__(self, x):
      return self.norm(name='n')(self.make()(self.make(name='own')(x)))

  return (
    Top().init_with_output(KEY, X),
    Types(functools.partial(nn.Dense, 3)).init_with_output(KEY, X),
    repr(Types(nn.Dense).norm),
  )


@programs
def cloning_fields_in_setup(nn, flax):
  class Foo(nn.Module):
    inner: nn.Module

    def setup(self):
      self.proj = self.inner.clone(name='proj', features=5)
      self.more = [self.inner.clone() for _ in range(2)]
      self.copied = self.inner.copy(name='k')

    def __call__(self, x):
      for m in (self.inner, self.proj, *self.more, self.copied):
        x = m(x)
      return x

  return attempt(Foo(nn.Dense(3)).init, KEY, X), attempt(
    Foo(nn.Dense(3)).apply, {}, X
  )


@programs
def layers_in_class_defaults(nn, flax):
  class Foo(nn.Module):
    layers: tuple = (nn.Dense(3), nn.Dense(3))

    def __call__(self, x):
      for layer in self.layers:
        x = layer(x)
      return x

  class Top(nn.Module):
    @nn.compact
    def __call__(self, x):
      sequential = nn.Sequential([nn.Dense(3), lambda x: x, Foo(), Foo()])
      return sequential(Foo()(Foo()(x)))

  return Foo().init(KEY, X), Top().init(KEY, X)


@programs
def value_of_a_parameter_is_changed_in_place(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self):
      w = self.variable('c', 'w', lambda: jnp.zeros(3))
      w.value = w.value.at[0].set(5)
      return w.value, self.get_variable('c', 'w')

  return Foo().init_with_output(KEY)


@programs
def exceptions_of_every_stage(nn, flax):
  class InInit(nn.Module):
    def __init__(self):
      raise ValueError('init')

  class PostInit(nn.Module):
    def __post_init__(self):
      raise ValueError('post init')

  class Setup(nn.Module):
    def setup(self):
      raise ValueError('setup')

    def __call__(self):
      pass

  class Initializer(nn.Module):
    @nn.compact
    def __call__(self):
      return self.param('w', lambda key: 1 / 0)

  class Missing(nn.Module):
    @nn.compact
    def __call__(self, x):
      return self.nope(x)

  class Arguments(nn.Module):
    def __call__(self, a, b):
      return a

  return (
    attempt(InInit),
    attempt(PostInit),
    attempt(Setup().init, KEY),
    attempt(Initializer().init, KEY),
    attempt(Missing().init, KEY, X),
    attempt(Arguments().init, KEY, 1),
    attempt(lambda: Arguments().init(KEY, 1, c=3)),
  )


@programs
def an_attribute_that_does_not_exist(nn, flax):
  class Foo(nn.Module):
    def setup(self):
      self.a = 1

    def __call__(self, how):
      if how == 'get':
        return getattr(self, 'nope', 'default')
      if how == 'has':
        return hasattr(self, 'nope'), hasattr(self, 'a')
      return self.nope

  hows = ('get', 'has', 'plain')
  return [attempt(Foo().apply, {}, how) for how in hows]


@programs
def class_attributes_and_constants(nn, flax):
  class Foo(nn.Module):
    RATE = 0.5
    table = {'a': 1}
    kinds = (nn.Dense, nn.LayerNorm)
    size: int = 2

    def setup(self):
      self.RATES = [self.RATE] * 2
      self.table2 = self.table

    def __call__(self, x):
      return self.RATE, self.table, self.table2, self.RATES, len(self.kinds)

  class Bar(Foo):
    RATE = 0.25

  return Foo().apply({}, X), Bar().apply({}, X), Foo.RATE


@programs
def named_tuples_and_ordered_dicts(nn, flax):
  Pair = collections.namedtuple('Pair', 'a b')

  class Foo(nn.Module):
    inner: Any

    def __call__(self, x):
      if isinstance(self.inner, tuple):
        return self.inner.b(self.inner.a(x)), type(self.inner).__name__
      return self.inner['b'](self.inner['a'](x)), type(self.inner).__name__

  made = [
    Pair(nn.Dense(2), nn.Dense(3)),
    Pair(a=nn.Dense(2), b=nn.Sequential([nn.Dense(3)])),
    collections.OrderedDict(b=nn.Dense(2), a=nn.Dense(3)),
    collections.defaultdict(list, a=nn.Dense(2), b=nn.Dense(2)),
  ]
  return [attempt(Foo(m).init_with_output, KEY, X) for m in made]


@programs
def tied_weights(nn, flax):
  class Tied(nn.Module):
    def setup(self):
      self.embed = nn.Embed(5, 3)
      self.out = nn.Dense(3)

    def __call__(self, ids):
      return self.embed.attend(self.out(self.embed(ids)))

    def logits(self, h):
      return h @ self.embed.embedding.T

  ids = jnp.array([1, 2])
  out, variables = Tied().init_with_output(KEY, ids)
  return out, variables, Tied().apply(variables, X, method='logits')


@programs
def states_of_a_training_loop(nn, flax):
  class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train):
      x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(x)
      x = nn.Dropout(0.5, deterministic=not train)(x)
      return nn.Dense(1)(x)

  net = Net()
  variables = net.init({'params': KEY, 'dropout': KEY}, X, train=False)
  params, state = variables['params'], variables['batch_stats']
  losses = []

  @jax.jit
  def step(params, state, key):
    def loss(params):
      y, new = net.apply(
        {'params': params, 'batch_stats': state},
        X,
        train=True,
        mutable=['batch_stats'],
        rngs={'dropout': key},
      )
      return jnp.mean(y**2), new['batch_stats']

    (value, state), grads = jax.value_and_grad(loss, has_aux=True)(params)
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), state, value

  for i in range(3):
    params, state, value = step(params, state, jax.random.key(i))
    losses.append(value)
  return params, state, losses


@programs
def documented_pop(nn, flax):
  class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.BatchNorm(use_running_average=False)(nn.Dense(2)(x))

  state, params = flax.core.pop(Net().init(KEY, X), 'params')
  more = flax.core.copy(state, {'params': params})
  return state, params, Net().apply(more, X, mutable=['batch_stats'])


@programs
def recursion_of_modules(nn, flax):
  class Tree(nn.Module):
    depth: int

    @nn.compact
    def __call__(self, x):
      if not self.depth:
        return nn.Dense(2)(x)
      left, right = (Tree(self.depth - 1, name=n) for n in ('l', 'r'))
      return left(x) + right(x) + Tree(0)(x)

  class Setup(nn.Module):
    depth: int

    def setup(self):
      self.leaf = nn.Dense(2)
      self.below = Setup(self.depth - 1) if self.depth else None

    def __call__(self, x):
      y = self.leaf(x)
      return y if self.below is None else y + self.below(x)

  return Tree(2).init_with_output(KEY, X), Setup(3).init_with_output(KEY, X)


@programs
def weights_from_another_method(nn, flax):
  class Hyper(nn.Module):
    @nn.compact
    def __call__(self, x):
      made = nn.Dense(4)(x.mean(0)).reshape(2, 2)
      inner = nn.Dense(2, use_bias=False, parent=None)
      return inner.apply({'params': {'kernel': made}}, x[:, :2])

  return Hyper().init_with_output(KEY, X)


@programs
def dataclass_features(nn, flax):
  class Foo(nn.Module):
    a: int = 1
    b: list = dataclasses.field(default_factory=lambda: [1, 2])
    c: Any = dataclasses.field(default=None, metadata={'doc': 'text'})

    def __call__(self):
      return self.a, self.b

  foo = dataclasses.replace(Foo(2), a=5)
  fields = {f.name: dict(f.metadata) for f in dataclasses.fields(Foo)}
  return foo.a, foo.apply({}), fields['c'], Foo().b is Foo().b, foo == Foo(5)


@programs
def match_and_unpacking(nn, flax):
  class Foo(nn.Module):
    a: int = 1
    b: int = 2

  match Foo(3, 4):
    case Foo(a=a, b=b):
      found = a, b
  return found, Foo.__match_args__[:2]


@programs
def a_module_without_fields_of_its_own(nn, flax):
  class Foo(nn.Dense):
    pass

  class Bar(nn.Dense):
    use_bias: bool = False

    @nn.compact
    def __call__(self, x):
      return super().__call__(x) * self.param('gain', ones, ())

  class Wrapped(nn.Module):
    @nn.compact
    def __call__(self, x):
      return Bar(2)(Foo(3)(x))

  return Wrapped().init_with_output(KEY, X), repr(Bar(2))


@programs
def many_streams(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self):
      names = ('noise', 'params', 'dropout', 'noise', 'other')
      return [self.make_rng(n) for n in names]

  keys = dict(zip(('params', 'noise', 'dropout'), jax.random.split(KEY, 3)))
  return Foo().apply({}, rngs=keys), Foo().init_with_output(keys)


@programs
def eval_shape_and_abstract_values(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      self.sow('intermediates', 'x', x)
      n = self.variable('c', 'n', lambda: jnp.zeros((), int))
      n.value += 1
      return nn.Dense(2)(x)

  foo = Foo()
  shapes = jax.eval_shape(foo.init, KEY, X)
  out = jax.eval_shape(
    lambda v: foo.apply(v, X, mutable=['c', 'intermediates']), shapes
  )
  partial = jax.eval_shape(functools.partial(foo.init, KEY), X)
  return shapes, out, partial


@programs
def vmapped_and_stacked_models(nn, flax):
  model = nn.Sequential([nn.Dense(3), nn.relu, nn.Dense(1)])
  keys = jax.random.split(KEY, 3)
  stacked = jax.vmap(model.init, (0, None))(keys, X)
  outs = jax.vmap(model.apply, (0, None))(stacked, X)
  _, scanned = jax.lax.scan(lambda c, v: (c, model.apply(v, X)), None, stacked)
  return stacked, outs, scanned


@programs
def higher_derivatives(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      return jnp.sum(jnp.tanh(nn.Dense(2)(x)))

  foo = Foo()
  variables = foo.init(KEY, X[0])
  f = functools.partial(foo.apply, variables)
  return jax.hessian(f)(X[0]), jax.jacfwd(f)(X[0]), jax.grad(f)(X[0])


@programs
def names_that_tests_of_flax_look_at(nn, flax):
  class Pair(NamedTuple):
    a: Any
    b: int

  class Base:
    same = jnp.tanh

    def method(self):
      pass

    @staticmethod
    def static():
      pass

  class Sub(Base):
    @classmethod
    def of_class(cls):
      pass

    @property
    def prop(self):
      pass

    def own(self):
      pass

  m = nn.module
  trees = [(), [], {}, None, 0, {'b': [3, {'x': 4}], 'a': Pair(1, 2), 'c': ()}]
  bound = nn.Dense(2, parent=flax.core.Scope({}, {'params': KEY}, mutable=True))
  before = bound._state.setup_called
  bound(X)
  return (
    [m._freeze_attr(t) for t in (*trees, [Pair([1], 2)])],
    [m._get_suffix_value_pairs(t) for t in trees],
    sorted(m._get_local_method_names(Base)),
    m._get_local_method_names(Sub),
    m._get_local_method_names(Sub, exclude=('own',)),
    m.tuple_reduce(m.tuple_init(), 1),
    [m.capture_call_intermediates(None, n) for n in ('__call__', 'setup')],
    [(s.name, s.value) for s in m.SetupState],
    before == m.SetupState.NEW,
    bound._state.setup_called == m.SetupState.DONE,
  )


@programs
def type_hints(nn, flax):
  class Foo(nn.Module):
    size: int
    act: Callable[..., Any] = nn.relu

  hints = get_type_hints(Foo)
  return hints['size'], sorted(hints), sorted(get_type_hints(nn.Dense))


@programs.parametrize()
def test_same_as_flax(program):
  assert_same_as_flax(program)


@programs.parametrize()
def test_same_as_flax_with_frozen_results(program):
  assert_same_as_flax(program, frozen=True)
