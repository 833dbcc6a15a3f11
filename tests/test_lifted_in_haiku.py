"""Haiku's machinery around modules that lift inside, in somebody's transform.

Each row of `MACHINERY` is a use of Haiku around a call of a module; each kind of
`KINDS` is a module whose class, or whose call, is lifted. What the module
computes without any machinery is the oracle.
"""

import concurrent.futures
import dataclasses
import re
from collections.abc import Callable
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haiku_state import linen as nn

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (2, 3))

# --- The modules -------------------------------------------------------------


class Scaled(nn.Module):
  """Keeps its kernel doubled."""

  @nn.compact
  def __call__(self, x):
    Doubled = nn.map_variables(
      nn.Dense,
      'params',
      lambda tree: jax.tree.map(lambda v: v / 2, tree),
      lambda tree: jax.tree.map(lambda v: v * 2, tree),
      mutable=True,
    )
    return Doubled(3)(x)


class Layer(nn.Module):
  """One layer of a scan."""

  @nn.compact
  def __call__(self, x, _):
    return jnp.tanh(nn.Dense(3)(x)), None


class Stacked(nn.Module):
  """Two layers by one scan, each with parameters of its own."""

  @nn.compact
  def __call__(self, x):
    Layers = nn.scan(
      Layer, {'params': 0}, split_rngs={'params': True}, length=2
    )
    return Layers()(x, None)[0]


class Counted(nn.Module):
  """Has parameters and a state that each call changes."""

  @nn.compact
  def __call__(self, x):
    count = self.variable('counts', 'n', jnp.zeros, ())
    if not self.is_initializing():
      count.value += 1
    return nn.Dense(3)(x) + count.value


class Recurrent(nn.Module):
  """Reads a row as a sequence of numbers."""

  @nn.compact
  def __call__(self, x):
    return nn.RNN(nn.GRUCell(3))(x[..., None])[:, -1]


class Normed(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.WeightNorm(nn.Dense(3))(x)


class Spectral(nn.Module):
  @nn.compact
  def __call__(self, x):
    update = not self.is_initializing()
    return nn.SpectralNorm(nn.Dense(3))(x, update_stats=update)


KINDS: dict[str, Callable[..., Any]] = {
  'not lifted': Counted,
  'RNN': Recurrent,
  'WeightNorm': Normed,
  'SpectralNorm': Spectral,
  'remat': nn.remat(Counted),
  'jit': nn.jit(Counted),
  'vmap': nn.vmap(
    Counted, {'params': None, 'counts': None}, split_rngs={'params': False}
  ),
  'vmap over parameters': nn.vmap(
    Counted, {'params': 0, 'counts': 0}, split_rngs={'params': True}
  ),
  'scan': Stacked,
  'map_variables': Scaled,
}
# A layer's parameters are seen as those of one layer, as in `hk.layer_stack`.
MAPPED = ('vmap over parameters', 'scan')

each_kind = pytest.mark.parametrize('kind', KINDS)


def plain(kind):
  """Returns the module's function, its parameters and its state."""
  f = hk.transform_with_state(lambda x: KINDS[kind](name='m')(x))
  return f, *jax.jit(f.init)(KEY, X)


def equal(got, want):
  assert jax.tree.structure(got) == jax.tree.structure(want)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, 1e-5, 1e-5), got, want
  )


def shapes(tree):
  return jax.tree.map(jnp.shape, tree)


# --- What goes around a call -------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Row:
  """One use of Haiku's machinery.

  Attributes:
    around: takes the module and `x`.
    oracle: takes `step` and `x`; `step` calls the module by itself.
  """

  around: Callable[..., Any]
  oracle: Callable[..., Any] = lambda step, x: step(x)


def _eval_shape(module, x):
  assert hk.eval_shape(module, x).shape == x.shape
  return module(x)


def _fast_eval_shape(module, x):
  assert hk.experimental.fast_eval_shape(module, x).shape == x.shape
  return module(x)


def _scan(module, x):
  return hk.scan(lambda c, y: (c, module(y)), 0, jnp.stack([x, x + 1]))[1]


def _cond(module, x):
  if hk.running_init():
    return module(x)
  return hk.cond(x.sum() < 1e9, module, lambda x: 0 * x, x)


def _switch(module, x):
  if hk.running_init():
    return module(x)
  return hk.switch(1, [lambda x: 0 * x, module], x)


def _fori_loop(module, x):
  return hk.fori_loop(0, 2, lambda i, x: module(x), x)


def _grad(module, x):
  return hk.grad(lambda x: (module(x) ** 2).sum())(x)


def _in_haiku(module, x):
  return hk.Sequential([module, jnp.tanh])(x)


ROWS = {
  'call': Row(lambda module, x: module(x)),
  'twice': Row(
    lambda module, x: module(module(x)), lambda step, x: step(step(x))
  ),
  'hk.eval_shape': Row(_eval_shape),
  'fast_eval_shape': Row(_fast_eval_shape),
  'hk.scan': Row(_scan, lambda step, x: jnp.stack([step(x), step(x + 1)])),
  'hk.remat': Row(lambda module, x: hk.remat(module)(x)),
  'hk.cond': Row(_cond),
  'hk.switch': Row(_switch),
  'hk.fori_loop': Row(_fori_loop, lambda step, x: step(step(x))),
  'hk.vmap': Row(
    lambda module, x: hk.vmap(module, split_rng=False)(x[:, None])[:, 0]
  ),
  'optimize_rng_use': Row(
    lambda module, x: hk.experimental.optimize_rng_use(module)(x)
  ),
  'hk.Sequential': Row(_in_haiku, lambda step, x: jnp.tanh(step(x))),
}


@pytest.mark.parametrize('row', ROWS)
@each_kind
def test_computes_what_it_does_by_itself(kind, row):
  f, params, state = plain(kind)
  if row == 'hk.vmap' and state:
    pytest.skip('hk.vmap refuses state that a call changes')
  entry = ROWS[row]
  g = hk.transform_with_state(lambda x: entry.around(KINDS[kind](name='m'), x))
  made, made_state = jax.jit(g.init)(KEY, X)
  assert shapes(made) == shapes(params)
  assert shapes(made_state) == shapes(state)

  def oracle(params, state, x):
    def step(x):
      nonlocal state
      y, state = f.apply(params, state, None, x)
      return y

    return entry.oracle(step, x), state

  got = jax.jit(lambda p, s: g.apply(p, s, None, X))(params, state)
  want = jax.jit(lambda p, s: oracle(p, s, X))(params, state)
  equal(got, want)


@each_kind
def test_a_layer_of_a_layer_stack(kind):
  _, params, state = plain(kind)
  if state:
    pytest.skip('hk.layer_stack refuses state')

  @hk.transform
  def stacked(x):
    return hk.layer_stack(2)(lambda x: KINDS[kind](name='m')(x))(x)

  made = jax.jit(stacked.init)(KEY, X)
  own = {path: re.search(r'(?<=/)m(/.*)?$', path).group() for path in made}
  found = {own[path]: x for path, x in made.items()}
  want = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), params)
  assert shapes(found) == shapes(want)
  values = {path: want[own[path]] for path in made}
  f, _, _ = plain(kind)
  y = X
  for i in range(2):
    layer = jax.tree.map(lambda x, i=i: x[i], want)
    y, _ = f.apply(layer, state, None, y)
  np.testing.assert_allclose(stacked.apply(values, None, X), y, 1e-5, 1e-5)


# --- Custom functions: each value once ---------------------------------------


def shapes_seen(kind, tree):
  """Returns the shapes that functions see, by the whole name of each value."""
  seen = {
    f'{path}/{key}': value.shape
    for path, bundle in tree.items()
    for key, value in bundle.items()
  }
  if kind in MAPPED:
    return {name: shape[1:] for name, shape in seen.items()}
  return seen


def created(kind, state):
  """Returns what a creator sees, and what it makes of the values."""
  seen = []

  def creator(next_creator, shape, dtype, init, context):
    seen.append((context.full_name, tuple(shape)))
    return 2.0 * next_creator(shape, dtype, init) + 1

  def around(x):
    with hk.custom_creator(creator, params=not state, state=state):
      return KINDS[kind](name='m')(x)

  return seen, hk.transform_with_state(around).init(KEY, X)


@each_kind
@pytest.mark.parametrize('state', [False, True])
def test_creators_see_each_value_once(kind, state):
  _, *plainly = plain(kind)
  seen, made = created(kind, state)
  assert shapes(made) == shapes(tuple(plainly))
  assert dict(seen) == shapes_seen(kind, plainly[state])
  if kind != 'scan':  # Whose body is traced twice, as in Flax.
    assert len(seen) == len(dict(seen))
  if kind not in ('WeightNorm', 'SpectralNorm', 'map_variables'):
    want = jax.tree.map(lambda x: 2 * x + 1, plainly[state])
    equal(made[state], want)


@each_kind
def test_creators_choose_the_values(kind):
  def ones(next_creator, shape, dtype, init, context):
    del init, context
    return next_creator(shape, dtype, jnp.ones)

  def around(x, how):
    with hk.custom_creator(ones):
      return how(KINDS[kind](name='m'), x)

  how = {'call': ROWS['call'].around, 'hk.scan': _scan}
  for around_call in how.values():
    f = hk.transform_with_state(lambda x, h=around_call: around(x, h))
    params, _ = jax.jit(f.init)(KEY, X)
    for path, bundle in params.items():
      for key, value in bundle.items():
        assert np.ptp(value) == 0, (path, key)


@each_kind
def test_creators_choose_the_shape(kind):
  if kind in ('WeightNorm', 'SpectralNorm'):
    pytest.skip('the module looks at the parameter, which is not its own')

  def two(next_creator, shape, dtype, init, context):
    del context
    return next_creator((2, *shape), dtype, init)

  def second(next_getter, value, context):
    assert value.shape == (2, *context.original_shape)
    return next_getter(value[1])

  def around(x):
    with hk.custom_creator(two), hk.custom_getter(second):
      return KINDS[kind](name='m')(x)

  f, plain_params, state = plain(kind)
  both = hk.transform_with_state(around)
  params, _ = jax.jit(both.init)(KEY, X)
  axis = 1 if kind in MAPPED else 0
  want = jax.tree.map(lambda v: jnp.stack([v, v], axis), plain_params)
  assert shapes(params) == shapes(want)
  one = jax.tree.map(lambda v: jnp.take(v, 1, axis), params)
  y, want = (
    f.apply(params, state, None, X)[0]
    for f, params in ((both, params), (f, one))
  )
  np.testing.assert_allclose(y, want, 1e-5, 1e-5)


@each_kind
@pytest.mark.parametrize('initializing', [False, True])
def test_getters_see_each_parameter(kind, initializing):
  seen = {}

  def getter(next_getter, value, context):
    seen.setdefault(context.full_name, set()).add(value.shape)
    return next_getter(value)

  def around(x):
    with hk.custom_getter(getter):
      return KINDS[kind](name='m')(x)

  _, params, state = plain(kind)
  f = hk.transform_with_state(around)
  if initializing:
    f.init(KEY, X)
  else:
    f.apply(params, state, None, X)
  wanted = shapes_seen(kind, params)
  assert seen == {name: {shape} for name, shape in wanted.items()}


@each_kind
def test_getters_act_once(kind):
  if kind in ('WeightNorm', 'SpectralNorm', 'map_variables'):
    pytest.skip('a parameter is seen as the module inside gets it')
  f, params, state = plain(kind)
  twice = jax.tree.map(lambda v: 2 * v, params)
  want = f.apply(twice, state, None, X)[0]
  got = doubling(kind).apply(params, state, None, X)[0]
  np.testing.assert_allclose(got, want, 1e-5, 1e-5)


def doubling(kind):
  def around(x):
    with hk.custom_getter(lambda next_getter, v, context: next_getter(2 * v)):
      return KINDS[kind](name='m')(x)

  return hk.transform_with_state(around)


def intercepted(fn):
  def add(next_f, args, kwargs, context):
    y = next_f(*args, **kwargs)
    return y + 10 if context.method_name == '__call__' else y

  with hk.intercept_methods(add):
    return fn()


def in_half(fn):
  jmp = pytest.importorskip('jmp')
  half = jmp.get_policy('params=float32,compute=float16,output=float16')
  hk.mixed_precision.set_policy(Counted, half)
  try:
    return fn()
  finally:
    hk.mixed_precision.clear_policy(Counted)


def customized(custom, **what):
  def around(fn):
    with custom(lambda next_f, v, context: next_f(v + 1), **what):
      return fn()

  return around


# What Haiku has in a program that is traced, and does not tell of.
AROUND_A_CALL = {
  'getter': customized(hk.custom_getter),
  'getter of state': customized(hk.custom_getter, params=False, state=True),
  'setter': customized(hk.custom_setter),
  'interceptor': intercepted,
  'policy': in_half,
}


@pytest.mark.parametrize('around', AROUND_A_CALL)
def test_jit_sees_what_is_around_each_call(around):
  around = AROUND_A_CALL[around]
  _, params, state = plain('jit')

  def model(kind, *arounds):
    def calls(x):
      m = KINDS[kind](name='m')
      return [around(lambda: m(x)) for around in arounds]

    return hk.transform_with_state(calls).apply(params, state, None, X)

  def alone(fn):
    return fn()

  for arounds in [(alone, around, alone), (around, alone)]:
    equal(model('jit', *arounds), model('not lifted', *arounds))


STATEFUL = ('not lifted', 'remat', 'jit', 'vmap', 'vmap over parameters')


@pytest.mark.parametrize('kind', STATEFUL)
@pytest.mark.parametrize('what', ['getter', 'setter'])
def test_functions_of_state_act_once(kind, what):
  _, params, state = plain(kind)
  state = jax.tree.map(lambda n: n + 3, state)
  custom = {
    'getter': lambda fn: hk.custom_getter(fn, params=False, state=True),
    'setter': hk.custom_setter,
  }[what]

  def around(x):
    with custom(lambda next_f, v, context: next_f(v + 10)):
      return KINDS[kind](name='m')(x)

  g = hk.transform_with_state(around)
  _, new = g.apply(params, state, None, X)
  assert set(np.ravel(jax.tree.leaves(new)[0])) == {14.0}


# --- What init has just made -------------------------------------------------

AROUND = {
  'remat': hk.remat,
  'vmap': lambda f: hk.vmap(f, split_rng=False),
  'cond': lambda f: lambda x: hk.cond(True, f, f, x),
  'grad': lambda f: lambda x: x + hk.grad(lambda x: f(x).sum())(x),
}


class Looks(nn.Module):
  """Asks for what it has just made."""

  @nn.compact
  def __call__(self, x):
    w = self.param('w', nn.initializers.ones, (3,))
    m = self.variable('stats', 'm', jnp.zeros, (3,))
    assert self.has_variable('params', 'w') and self.has_variable('stats', 'm')
    assert self.get_variable('params', 'w') is w
    assert set(self.variables) == {'params', 'stats'}
    return x * w + m.value


@pytest.mark.parametrize('around', AROUND)
def test_what_was_just_made_is_there(around):
  def f(x):
    return AROUND[around](Looks())(x)

  params, state = hk.transform_with_state(f).init(KEY, X)
  assert set(params['looks']) == {'w'} and set(state['looks']) == {'stats:m'}


@pytest.mark.parametrize('around', AROUND)
def test_a_second_call_makes_nothing_anew(around):
  def f(x, around=lambda f: f):
    m = nn.remat(nn.Dense)(3)
    return around(lambda x: m(m(x)))(x)

  got = hk.transform(lambda x: f(x, AROUND[around])).init(KEY, X)
  equal(got, hk.transform(f).init(KEY, X))


class Counter(nn.Module):
  @nn.compact
  def __call__(self, x):
    count = self.variable('counts', 'n', jnp.zeros, ())
    count.value += 1
    return x * count.value


@pytest.mark.parametrize(
  'make',
  [
    Counter,
    nn.remat(Counter),
    nn.jit(Counter),
    nn.vmap(Counter, {'counts': None}),
    nn.vmap(Counter, {True: None}),
  ],
)
def test_init_leaves_the_first_value_of_state(make):
  f = hk.transform_with_state(lambda x: make()(x))
  params, state = f.init(KEY, X)
  assert jax.tree.leaves(state) == [0.0]
  assert jax.tree.leaves(f.apply(params, state, None, X)[1]) == [1.0]


# --- Around the whole function -----------------------------------------------


@each_kind
def test_summaries_show_what_is_there(kind):
  f, params, state = plain(kind)
  rows = hk.experimental.eval_summary(f)(X)
  names = {row.module_details.module.module_name for row in rows}
  assert 'm' in names
  assert all(name == 'm' or name.startswith('m/') for name in names)
  for row in rows:
    details = row.module_details
    assert set(details.params) <= set(shapes_seen(kind, params))
  text = hk.experimental.tabulate(f)(X)
  assert all(f' {name} ' in text for name in names)


@each_kind
def test_nothing_leaks(kind):
  f, params, state = plain(kind)
  with jax.checking_leaks():
    jax.jit(f.init)(KEY, X)

    def loss(params):
      y, new = f.apply(params, state, None, X)
      return y.sum(), new

    jax.jit(jax.grad(loss, has_aux=True))(params)


@each_kind
def test_a_policy_of_mixed_precision(kind):
  jmp = pytest.importorskip('jmp')
  policy = jmp.get_policy('params=float32,compute=bfloat16,output=float32')
  f, params, state = plain(kind)
  seen = []

  class Around(hk.Module):
    def __call__(self, x):
      seen.append(x.dtype)
      y = KINDS[kind](name=hk.force_name('m'))(x)
      seen.append(y.dtype)
      return y

  def run():
    hk.mixed_precision.set_policy(Around, policy)
    g = hk.transform_with_state(lambda x: Around()(x))
    made, _ = g.init(KEY, X)
    return made, g.apply(params, state, None, X)[0]

  # Haiku's interceptor for policies stays with its thread for good.
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    made, y = pool.submit(run).result()
  assert shapes(made) == shapes(params)
  assert {x.dtype for x in jax.tree.leaves(made)} == {jnp.dtype('float32')}
  assert y.dtype == jnp.float32
  assert seen[0] == jnp.bfloat16
  want, _ = f.apply(params, state, None, X)
  np.testing.assert_allclose(y, want, 0.1, 0.1)
