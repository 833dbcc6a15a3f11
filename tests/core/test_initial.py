"""The initializers that JAX has are traced once; the numbers stay those of Flax."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from formulas import formulas
from left_out import all_but

from haiku_state import linen as nn
from haiku_state.core import _fingerprint, _initial
from haiku_state.linen import linear

SHAPE = (4, 6)
INITIALIZERS = {
  'constant': nn.initializers.constant(0.5),
  'delta_orthogonal': nn.initializers.delta_orthogonal(),
  'glorot_normal': nn.initializers.glorot_normal(),
  'he_uniform': nn.initializers.he_uniform(),
  'lecun_normal': nn.initializers.lecun_normal(),
  'normal': nn.initializers.normal(0.3),
  'normal of jax.random': jax.random.normal,
  'ones': nn.initializers.ones,
  'orthogonal': nn.initializers.orthogonal(1.7),
  'partial': functools.partial(nn.initializers.uniform(0.2), dtype=jnp.float16),
  'truncated_normal': nn.initializers.truncated_normal(0.3),
  'uniform': nn.initializers.uniform(0.7),
  'zeros': nn.initializers.zeros_init(),
}
over_initializers = pytest.mark.parametrize('name', INITIALIZERS)


def module(nn, init_fn, shape=SHAPE):
  class Net(nn.Module):
    @nn.compact
    def __call__(self):
      return self.param('w', init_fn, shape), self.param('v', init_fn, shape)

  return Net()


def of(name, nn):
  shape = (3, 4, 4) if name == 'delta_orthogonal' else SHAPE
  return module(nn, INITIALIZERS[name], shape)


def bits(tree):
  return [(x.dtype, np.asarray(x).tobytes()) for x in jax.tree.leaves(tree)]


@pytest.mark.parametrize(
  'around',
  all_but(['jit'], ['', 'jit', 'vmap', 'jit of vmap']),
)
@pytest.mark.parametrize('make_key', [jax.random.key, jax.random.PRNGKey])
@over_initializers
def test_values_are_those_of_flax(name, make_key, around):
  flax_nn = pytest.importorskip('flax.linen')

  def values(lib):
    keys, init = make_key(3), of(name, lib).init
    if 'vmap' in around:
      keys, init = jax.random.split(keys, 2), jax.vmap(init)
    if 'jit' in around:  # The same operations have the same values.
      return formulas(init, keys)
    return bits(init(keys))

  assert values(nn) == values(flax_nn)


@over_initializers
def test_the_program_is_the_initializer_s(name):
  init_fn = INITIALIZERS[name]
  shape = (3, 4, 4) if name == 'delta_orthogonal' else SHAPE
  suffix = ('a', 1)

  def lowered(is_recorded):
    def value(key):
      return _initial.initial_value(
        init_fn, key, suffix, (shape,), {}, lambda: is_recorded
      )

    return jax.jit(value).lower(jax.random.key(0)).as_text()

  assert lowered(True) == lowered(False)


def test_each_is_traced_once_for_a_shape(monkeypatch):
  made = []
  traced_once = _initial._traced_once

  def noting(init_fn, args, kwargs):
    made.append(args)
    return traced_once(init_fn, args, kwargs)

  monkeypatch.setattr(_initial, '_traced_once', noting)
  monkeypatch.setattr(_initial, '_kept', {})
  for size in (4, 4, 5):
    # A function made anew, as in the default of a field or in a method.
    init_fn = nn.initializers.normal(0.125)
    jax.eval_shape(module(nn, init_fn, (size,)).init, jax.random.key(0))
  assert made == [((4,),), ((5,),)]


def test_raw_keys_are_of_the_implementation_in_force():
  flax_nn = pytest.importorskip('flax.linen')

  def values(lib, impl):
    init_fn = lib.initializers.normal(0.25)
    with jax.default_prng_impl(impl):
      init = jax.jit(module(lib, init_fn).init)
      return bits(init(jax.random.PRNGKey(3)))

  # Raw keys of both have one shape, and JAX would keep one program for them.
  for impl in ('rbg', 'unsafe_rbg', 'rbg'):
    assert values(nn, impl) == values(flax_nn, impl)


scale = 1.0


def scaled(key, shape, dtype=None):
  return scale * jnp.ones(shape, dtype)


@pytest.mark.parametrize(
  'net, args',
  [
    (module(nn, scaled), ()),
    (module(nn, functools.partial(scaled, dtype=jnp.float32)), ()),
    (module(nn, lambda key, shape: scaled(key, shape)), ()),
    (nn.DenseGeneral(3, kernel_init=scaled), (jnp.ones(2),)),
  ],
  ids=['function', 'partial', 'lambda', 'DenseGeneral'],
)
def test_functions_of_others_run_each_time(net, args, monkeypatch):
  for value in (1.0, 2.0):
    monkeypatch.setitem(globals(), 'scale', value)
    variables = jax.jit(net.init)(jax.random.key(0), *args)
    assert jax.tree.leaves(variables)[-1].ravel()[0] == value


def test_constants_that_are_equal_are_not_the_same():
  for value in (0.0, -0.0):
    init_fn = nn.initializers.constant(value)
    variables = jax.jit(module(nn, init_fn).init)(jax.random.key(0))
    sign = np.signbit(variables['params']['w'])
    assert np.all(sign == np.signbit(value))


def test_an_initializer_that_has_no_hash():
  class Equal:
    def __eq__(self, other):
      return isinstance(other, Equal)

    def __call__(self, key, shape):
      return jnp.full(shape, 7.0)

  variables = module(nn, Equal()).init(jax.random.key(0))
  assert variables['params']['w'][0, 0] == 7.0


def test_errors_are_those_of_the_initializer():
  net = module(nn, nn.initializers.lecun_normal(), (3,))
  for _ in range(2):
    with pytest.raises(
      ValueError, match='in- and output sizes|input and output'
    ):
      jax.eval_shape(net.init, jax.random.key(0))


class TestLastingFunctions:
  """What is kept of an initializer is not taken if somebody has changed it."""

  def initializer(self):
    return jax.nn.initializers.variance_scaling(1.0, 'fan_in', 'normal')

  def test_it_is_kept_by_itself(self):
    init_fn = self.initializer()
    assert _fingerprint.is_lasting(init_fn)
    assert _fingerprint.is_lasting(init_fn)
    assert _fingerprint.is_lasting(jax.nn.initializers.zeros)

  def test_functions_of_others_are_not(self):
    assert not _fingerprint.is_lasting(lambda key, shape: jnp.zeros(shape))
    assert not _fingerprint.is_lasting(functools.partial(jnp.zeros))

  @pytest.mark.parametrize(
    'part', ['__defaults__', '__kwdefaults__', '__code__', '__dict__', 'cell']
  )
  def test_who_has_changed_is_asked_anew(self, part):
    init_fn = self.initializer()
    assert _fingerprint.is_lasting(init_fn)
    if part == 'cell':
      names = init_fn.__code__.co_freevars
      cell = init_fn.__closure__[names.index('scale')]
      cell.cell_contents = 2.0
    elif part == '__code__':
      init_fn.__code__ = init_fn.__code__.replace(co_name='other')
    elif part == '__dict__':
      init_fn.__wrapped__ = jax.nn.initializers.zeros
    elif part == '__kwdefaults__':
      init_fn.__kwdefaults__ = {}
    else:
      init_fn.__defaults__ = (jnp.float16,)
    assert not _fingerprint.is_lasting(init_fn)

  def test_a_changed_one_makes_other_values(self):
    init_fn = self.initializer()
    init = jax.jit(module(nn, init_fn).init)
    before = init(jax.random.key(0))
    assert module(nn, init_fn).apply(before)[0].dtype == jnp.float32
    init_fn.__defaults__ = (jnp.float16, *init_fn.__defaults__[1:])
    after = jax.jit(module(nn, init_fn).init)(jax.random.key(0))
    assert after['params']['w'].dtype == jnp.float16

  def test_sizes_of_other_types_are_told_apart(self):
    seen = []

    @_fingerprint.kept_if_lasting
    def make(fn, args, kwargs):
      seen.append(args)
      return fn(None, *args, **kwargs)

    ones = jax.nn.initializers.ones
    for args in [((1, 2),), ((1, 2), jnp.int32), ((True, 2),), ((1, 2),)]:
      assert make(ones, args, {}).shape == (1, 2)
    assert [tuple(map(type, args[0])) for args in seen] == [
      (int, int),
      (int, int),
      (bool, int),
    ]
    with pytest.raises(TypeError):
      make(ones, ((1, []),), {})

  def test_data_is_what_its_parts_are(self):
    flat = linear._FlatInit(self.initializer(), (2, 3))
    assert _fingerprint.is_lasting(flat)
    flat = linear._FlatInit(lambda key, shape, dtype: 0, (2, 3))
    assert not _fingerprint.is_lasting(flat)
