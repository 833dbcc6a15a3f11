"""Wherever a module of Haiku's could stand, ours has the name that it would have.

Each place is a function of `make`, which makes a module of four features, and of
`x`; it is run with Haiku's own layer, and with each kind of linen-style module in
its stead. Their names are equal but for the last one.
"""

import collections
import dataclasses
import itertools
import re
from collections.abc import Callable
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haiku_state import linen as nn

KEY = jax.random.PRNGKey(0)
X = jax.random.normal(jax.random.PRNGKey(1), (3, 4))

# --- The kinds of modules ----------------------------------------------------


class InSetup(nn.Module):
  """Makes its submodule in setup."""

  def setup(self):
    self.inner = nn.Dense(4)

  def __call__(self, x):
    return self.inner(x)


class Holder(nn.Module):
  """Holds a module that is made outside of it, and one of its own."""

  inner: nn.Module

  @nn.compact
  def __call__(self, x):
    return nn.Dense(4)(self.inner(x))


class HoldsHaiku(nn.Module):
  """Calls a module of Haiku's."""

  @nn.compact
  def __call__(self, x):
    return hk.Linear(4)(x)


class Normalized(nn.Module):
  """Has state, which hk.vmap does not map."""

  @nn.compact
  def __call__(self, x):
    return nn.BatchNorm(use_running_average=True)(nn.Dense(4)(x))


RematDense = nn.remat(nn.Dense)

KINDS = {
  'dense': lambda **kw: nn.Dense(4, **kw),
  'in_setup': InSetup,
  'holds_haiku': HoldsHaiku,
  'normalized': Normalized,
  'checkpoint_dense': lambda **kw: RematDense(4, **kw),
}


def haikus(**kw):
  return hk.Linear(4, **kw)


# --- The places --------------------------------------------------------------


class InConstructor(hk.Module):
  """Makes two modules in its constructor, one of them below another module."""

  def __init__(self, make, depth=1):
    super().__init__()
    self.one = make()
    self.two = InConstructor(make, depth - 1) if depth else make()

  def __call__(self, x):
    return self.two(self.one(x))

  def second(self, x):
    return self.two(x)


class InMethods(hk.Module):
  """Makes modules in each of its methods."""

  def __init__(self, make):
    super().__init__()
    self.make = make

  def __call__(self, x):
    x = self.make()(self.make()(x))
    return self.as_call(self.see_through(self.other(x)))

  def other(self, x):
    return self.make()(x)

  @hk.name_like('other')
  def as_call(self, x):
    return self.make()(x)

  @hk.transparent
  def see_through(self, x):
    return self.make(name='seen')(x)

  @property
  def prop(self):
    return self.make()


def twice(make, x):
  module = make()
  return module(module(x))


def numbered(make, x):
  for name in (None, 'a', 'a', 'b_3', None, 'b'):
    x = make(name=name)(x)
  return x


def not_called(make, x):
  make(), make(name='idle')
  return make()(x)


def scopes(make, x):
  with hk.name_scope('one'):
    a = make()
    with hk.name_scope('two'):
      b, c = make(), make()
  with hk.name_scope('one'):
    d = make()
  return d(c(b(a(x))))


def forced(make, x):
  a = make(name=hk.force_name('far/away'))
  b = make(name=hk.force_name(a.module_name))
  return b(a(make()(x)))


def sequential(make, x):
  return hk.Sequential([make(), jax.nn.relu, make()])(x)


def as_module(make, x):
  return hk.to_module(lambda x: make()(make()(x)))('fn')(x)


def lifted(lift):
  def place(make, x):
    inner = hk.transform_with_state(lambda x: make()(make()(x)))
    init, updater = lift(inner.init)
    key = hk.next_rng_key() if hk.running_init() else None
    params, state = init(key, x)
    y, state = inner.apply(params, state, None, x)
    updater.update(state)
    return make()(y)

  return place


def lift_with_state(init):
  return hk.lift_with_state(init, name='inner')


def stacked(make, x):
  @hk.layer_stack(2)
  def layers(x):
    return make()(x)

  return make()(layers(x))


def scanned(make, x):
  module = make()

  def step(c, _):
    return module(c), None

  return hk.scan(step, make()(x), jnp.arange(2))[0]


def mapped(make, x):
  module = make()
  return make()(hk.vmap(module, split_rng=False)(x[:, None])[:, 0])


def rematted(make, x):
  module = make()
  return hk.remat(make())(hk.remat(lambda x: module(x))(x))


def branches(make, x):
  a, b, c = make(), make(), make()
  if hk.running_init():
    return c(b(a(x)))
  x = hk.cond(jnp.sum(x) > 0, a, b, x)
  return hk.switch(jnp.int32(1), [b, c], x)


def loops(make, x):
  a, b = make(), make()
  if hk.running_init():
    return b(a(x))
  x = hk.fori_loop(0, 2, lambda i, x: a(x), x)
  return hk.while_loop(
    lambda c: c[0] < 1, lambda c: (c[0] + 1, b(c[1])), (0, x)
  )[1]


def differentiated(make, x):
  module = make()
  module(x)
  return hk.grad(lambda x: module(x).sum())(x)


def at_top(make, x):
  return make()(make()(x))


PLACES = {
  'at the top': at_top,
  'twice': twice,
  'numbered': numbered,
  'not called': not_called,
  'in name scopes': scopes,
  'with a forced name': forced,
  'in hk.Sequential': sequential,
  'in hk.to_module': as_module,
  'in a constructor': lambda make, x: InConstructor(make)(x),
  'in a constructor, other method': lambda make, x: (
    InConstructor(make)(x),
    InConstructor(make).second(x),
  ),
  'in methods': lambda make, x: InMethods(make)(x),
  'in a property': lambda make, x: InMethods(make).prop(x),
  'in hk.lift_with_state': lifted(lift_with_state),
  'in hk.transparent_lift_with_state': lifted(hk.transparent_lift_with_state),
  'in hk.layer_stack': stacked,
  'in hk.scan': scanned,
  'in hk.vmap': mapped,
  'in hk.remat': rematted,
  'in hk.cond and hk.switch': branches,
  'in loops': loops,
  'in hk.grad': differentiated,
}

each_place = pytest.mark.parametrize('place', PLACES)
each_kind = pytest.mark.parametrize('kind', KINDS)


def run(make, place):
  """Returns the names of all modules as made, the parameters and the state."""
  made = []

  def noted(**kw):
    made.append(make(**kw))
    return made[-1]

  f = hk.transform_with_state(lambda x: PLACES[place](noted, x))
  params, state = jax.eval_shape(f.init, KEY, X)
  names = [module.module_name for module in made]
  jax.eval_shape(lambda: f.apply(params_of(params), params_of(state), None, X))
  # Of init, then of apply.
  return [*names, *(m.module_name for m in made[len(names) :])], params, state


def params_of(shapes):
  return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


def as_kind(path, kind):
  return re.sub(r'(?<![a-z_])linear(?=(_\d+)?(/|$))', kind, path)


@each_place
@each_kind
def test_names_are_those_of_haikus_own_module(place, kind):
  want, want_params, _ = run(haikus, place)
  names, params, state = run(KINDS[kind], place)
  assert names == [as_kind(name, kind) for name in want]
  roots = {as_kind(name, kind) for name in want_params}
  for path in {**params, **state}:
    assert any(path == r or path.startswith(r + '/') for r in roots), path
  for root in roots:
    assert any(p == root or p.startswith(root + '/') for p in params), root


# --- Numbers, under every order of calls -------------------------------------

N = 3


@dataclasses.dataclass(frozen=True)
class Several:
  """A way to make several modules.

  Attributes:
    make: returns functions that call them.
    names: the Haiku names of the dense layers that they call.
  """

  make: Callable[[], list[Any]]
  names: list[list[str]]


class Heads(hk.Module):
  def __init__(self):
    super().__init__()
    self.heads = [nn.Dense(4) for _ in range(N)]

  def call(self, i, x):
    return self.heads[i](x)

  def functions(self):
    return [lambda x, i=i: self.call(i, x) for i in range(N)]


class SharedBy(nn.Module):
  inner: Any

  def __call__(self, x):
    return self.inner(x)


def shared_by_blocks():
  shared = nn.Dense(4)
  return [shared, SharedBy(shared), SharedBy(shared)]


def nested_owners():
  inner = nn.Dense(4)
  block = SharedBy(inner)
  return [inner, block, SharedBy(block)]


def in_list():
  layers = [nn.Dense(4) for _ in range(2)]
  return [*layers, nn.Sequential(layers)]


OUTSIDE = nn.Dense(4)


def outside_and_inside():
  return [OUTSIDE, SharedBy(OUTSIDE), SharedBy([nn.Dense(4, name='in')][0])]


SEVERAL = {
  'layers': Several(
    lambda: [nn.Dense(4) for _ in range(N)],
    [['dense'], ['dense_1'], ['dense_2']],
  ),
  'lifted': Several(
    lambda: [RematDense(4) for _ in range(N)],
    [['checkpoint_dense'], ['checkpoint_dense_1'], ['checkpoint_dense_2']],
  ),
  'heads of a module': Several(
    lambda: Heads().functions(),
    [['heads/~/dense'], ['heads/~/dense_1'], ['heads/~/dense_2']],
  ),
  'one shared by blocks': Several(shared_by_blocks, [['shared_by/inner']] * 3),
  'one in one in one': Several(
    nested_owners, [['shared_by_1/inner/inner']] * 3
  ),
  'layers of a list': Several(
    in_list,
    [
      ['sequential/layers_0'],
      ['sequential/layers_1'],
      ['sequential/layers_0', 'sequential/layers_1'],
    ],
  ),
}


def check(f, params, several, i, y):
  want = X
  for name in several.names[i]:
    want = want @ params[name]['kernel'] + params[name]['bias']
  np.testing.assert_allclose(y, want, 1e-5, 1e-6)


@pytest.mark.parametrize(
  'order', list(itertools.permutations(range(N))), ids=str
)
@pytest.mark.parametrize('which', SEVERAL)
def test_no_order_of_calls_changes_a_name_or_a_number(which, order):
  several = SEVERAL[which]

  def f(x, order):
    modules = several.make()
    return {i: modules[i](x) for i in order}

  f = hk.transform(f)
  params = f.init(KEY, X, order)
  assert set(params) == {name for names in several.names for name in names}
  for some in (order, order[1:], order[::-1], order[:1]):
    for i, y in f.apply(params, None, X, some).items():
      check(f, params, several, i, y)


@pytest.mark.parametrize('which', SEVERAL)
def test_entry_points_find_their_own_weights(which):
  several = SEVERAL[which]

  def build():
    modules = several.make()
    return lambda x: [m(x) for m in modules], tuple(modules)

  f = hk.multi_transform(build)
  params = f.init(KEY, X)
  for i, apply in enumerate(f.apply):
    check(f, params, several, i, apply(params, None, X))


def test_statistics_stay_with_their_layer():
  def build():
    a, b = (nn.BatchNorm(use_running_average=False) for _ in range(2))
    return lambda x: (a(x), b(x)), (a, b)

  f = hk.multi_transform_with_state(build)
  params, state = f.init(KEY, X)
  _, new = f.apply[1](params, state, None, X + 5)
  for key in ('batch_stats:mean', 'batch_stats:var'):
    np.testing.assert_array_equal(
      new['batch_norm'][key], state['batch_norm'][key]
    )
  assert np.all(new['batch_norm_1']['batch_stats:mean'] > 0.01)


class Passes(nn.Module):
  """Calls a module that it is given, in a lifted transform."""

  @nn.compact
  def __call__(self, x, module):
    return nn.remat(lambda _, x, m: m(x))(self, x, module)


@pytest.mark.parametrize('first', ['itself', 'passed'])
def test_a_module_that_is_passed_to_a_lifted_one_stays_where_it_is(first):
  def f(x):
    module, passes = nn.Dense(4), Passes()
    a = module(x) if first == 'itself' else 0
    b = passes(x, module)
    return b - (module(x) if first == 'passed' else a)

  f = hk.transform(f)
  params = f.init(KEY, X)
  assert set(params) == {'dense'}
  np.testing.assert_allclose(
    f.apply(params, None, X), np.zeros((3, 4)), 0, 1e-6
  )


def test_a_lifted_function_that_closes_over_one_says_what_to_do():
  class Closes(nn.Module):
    fn: Any

    @nn.compact
    def __call__(self, x):
      return nn.remat(lambda _, x: self.fn(x))(self, x)

  for used in (False, True):

    def f(x, used=used):
      module = nn.Dense(4)
      if used:
        module(x)
      return Closes(lambda x: module(x))(x)

    with pytest.raises(ValueError, match='give it to the lifted transform'):
      hk.transform(f).init(KEY, X)


# --- A module from outside ---------------------------------------------------


def distance(a, b):
  return OUTSIDE(a) - OUTSIDE(b)


class Inside(hk.Module):
  def __call__(self, x):
    return OUTSIDE(x)


@pytest.mark.parametrize(
  'program',
  [
    lambda: distance(X, X),
    lambda: SharedBy(OUTSIDE)(X) - SharedBy(OUTSIDE)(X),
    lambda: SharedBy(OUTSIDE)(X) - OUTSIDE(X),
    lambda: OUTSIDE(X) - SharedBy(OUTSIDE)(X),
    lambda: OUTSIDE(X) - Inside()(X),
    lambda: Inside()(X) - OUTSIDE(X),
    lambda: hk.vmap(OUTSIDE, split_rng=False)(X) - OUTSIDE(X),
    lambda: nn.Sequential([OUTSIDE])(X) - nn.Sequential([OUTSIDE])(X),
  ],
)
def test_one_object_is_one_module(program):
  f = hk.transform(program)
  for _ in range(2):
    params = f.init(KEY)
    assert len(params) == 1
    np.testing.assert_allclose(
      f.apply(params, None), jnp.zeros((3, 4)), 0, 1e-6
    )
  assert OUTSIDE == nn.Dense(4) and OUTSIDE.scope is None


def test_a_name_that_the_order_of_calls_would_choose_is_an_error():
  a, b = nn.Dense(4), nn.Dense(4)

  def first_from_outside(x):
    y = a(x)
    return nn.Dense(4)(y)

  for program in (
    lambda x: b(a(x)),
    lambda x: a(nn.Dense(4)(x)),
    first_from_outside,
  ):
    with pytest.raises(
      ValueError, match=r'made outside of hk.transform.*name="my_dense'
    ):
      hk.transform(program).init(KEY, X)
  b = nn.Dense(4, name='b')
  assert set(hk.transform(lambda x: b(a(x))).init(KEY, X)) == {'dense', 'b'}


def test_a_forced_name_below_a_linen_module_is_an_error():
  class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.Dense(4, name=hk.force_name('shared'))(x)

  for init in (hk.transform(lambda x: Net()(x)).init, Net().init):
    with pytest.raises(ValueError, match=r'force_name\("shared"\).*outside'):
      init(KEY, X)


def test_a_run_that_failed_leaves_nothing_behind():
  enc = nn.Dense(4)

  def f(x, fail):
    y = enc(x)
    if fail:
      raise KeyError('for the test')
    return y - enc(x)

  f = hk.transform(f)
  params = f.init(KEY, X, False)
  try:
    f.apply(params, None, X, True)
  except KeyError as e:
    kept = e  # And with it all that the run had.
    assert np.all(f.apply(params, None, X, False) == 0)
    assert set(f.init(KEY, X, False)) == {'dense'}
    del kept


# --- Equality ----------------------------------------------------------------


def test_jit_in_apply_takes_no_weights_of_another_run():
  f = hk.transform(
    lambda x: nn.Dense(4)(x) if hk.running_init() else jax.jit(nn.Dense(4))(x)
  )
  for seed in range(3):
    params = f.init(jax.random.PRNGKey(seed), X)
    want = X @ params['dense']['kernel'] + params['dense']['bias']
    np.testing.assert_allclose(f.apply(params, None, X), want, 1e-5, 1e-6)


def test_setup_is_there_before_the_first_call():
  def f(x):
    module = InSetup()
    return module.inner(x), module.inner.path

  f = hk.transform(f)
  params = f.init(KEY, X)
  assert set(params) == {'in_setup/inner'}
  assert f.apply(params, None, X)[1] == ('inner',)


def test_a_module_around_lists_what_ours_has():
  class Around(hk.Module):
    def __call__(self, x):
      nn.Dense(2)(x)
      return set(self.params_dict())

  f = hk.transform(lambda x: Around()(x))
  assert f.apply(f.init(KEY, X), None, X) == {
    'around/dense/kernel',
    'around/dense/bias',
  }


class HaikuPair(hk.Module):
  """Makes two modules in its method."""

  def __call__(self, x):
    return hk.Linear(4, name='b')(hk.Linear(4, name='a')(x))


class LinenPair(nn.Module):
  """The same as a linen-style module."""

  @nn.compact
  def __call__(self, x):
    return nn.Dense(4, name='b')(nn.Dense(4, name='a')(x))


@pytest.mark.parametrize(
  'haikus, ours',
  [(lambda: hk.Linear(4), lambda: nn.Dense(4)), (HaikuPair, LinenPair)],
  ids=['a layer', 'with submodules'],
)
def test_interceptors_see_modules_as_haikus_own(haikus, ours):
  def calls(make):
    seen = []

    def watch(next_f, args, kwargs, context):
      module = context.module
      seen.append([type(module).__name__, context.method_name])
      seen[-1].append(hasattr(module, 'module_name'))
      place = len(seen) - 1
      y = next_f(*args, **kwargs)
      seen[place].append(module.module_name)
      return y

    def f(x):
      with hk.intercept_methods(watch):
        return make()(x)

    jax.eval_shape(hk.transform(f).init, KEY, X)
    return str(seen)

  want = calls(haikus).replace('Linear', 'Dense').replace('linear', 'dense')
  want = want.replace('HaikuPair', 'LinenPair')
  assert calls(ours) == want.replace('haiku_pair', 'linen_pair')


@pytest.mark.parametrize('make', [lambda: hk.Linear(4), lambda: nn.Dense(4)])
def test_a_module_is_equal_to_itself_from_its_constructor_on(make):
  calls = collections.Counter()

  def count(next_f, args, kwargs, context):
    calls[context.module] += 1
    return next_f(*args, **kwargs)

  def f(x):
    with hk.intercept_methods(count):
      return make()(make()(x))

  jax.eval_shape(hk.transform(f).init, KEY, X)
  assert list(calls.values()) == [2, 2]


# --- Properties --------------------------------------------------------------


class WithProperty:
  @property
  def width(self):
    return 4

  @property
  def scale(self):
    return hk.get_parameter('scale', (), init=jnp.ones)

  @property
  def key(self):
    return hk.current_name()

  def __call__(self, x):
    return x * self.scale


class HaikusProperty(WithProperty, hk.Module):
  def __init__(self):
    super().__init__('own')

  # Haiku sees what is in the body of the class.
  width, scale = WithProperty.width, WithProperty.scale
  key = WithProperty.key
  __call__ = WithProperty.__call__


class OurProperty(nn.Module):
  width, scale = WithProperty.width, WithProperty.scale
  key = WithProperty.key
  __call__ = WithProperty.__call__


class Asks(hk.Module):
  """Looks at properties of another module."""

  def __init__(self, module):
    super().__init__()
    self.module = module

  def __call__(self, x):
    return x * self.module.scale * self.module.width, self.module.key


@pytest.mark.parametrize(
  'make', [HaikusProperty, lambda: OurProperty(name='own')]
)
def test_a_property_belongs_to_its_module_whoever_asks(make):
  def f(x):
    module = make()
    asked = module.scale, module.key
    return asked, module(x), Asks(module)(x)[1]

  f = hk.transform(f)
  params = f.init(KEY, X)
  assert list(params) == ['own']
  (_, key), _, asked = f.apply(params, None, X)
  assert (key, asked) == ('own', 'own')


def test_a_module_that_has_no_name_yet_may_look_at_a_property():
  class Early(hk.Module):
    def __init__(self, module):
      self.width = module.width
      super().__init__()

  f = hk.transform(lambda: Early(OurProperty()).width)
  assert f.apply({}, None) == 4
