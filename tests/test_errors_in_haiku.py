"""Errors in somebody's Haiku function: what a Haiku user is told.

A row is a program and the words that must occur: the path as Haiku prints it,
what was found, and what to write instead.
"""

import pickle

import haiku as hk
import jax
import jax.numpy as jnp
import pytest

from haiku_state import errors
from haiku_state import linen as nn

KEY = jax.random.PRNGKey(0)
X = jnp.ones((3, 4))


class Tower(hk.Module):
  def __call__(self, x):
    return nn.Dense(3)(x)


def tower():
  return hk.transform(lambda x: Tower(name='tower_7')(x))


def normed():
  return hk.transform_with_state(
    lambda x: nn.BatchNorm(use_running_average=True, name='bn')(x)
  )


def missing_parameter():
  tower().apply({}, None, X)


def parameter_of_another_name():
  tower().apply({'tower/dense': {'kernel': X}, 'head': {'w': X}}, None, X)


def missing_one_of_two():
  f = tower()
  params = f.init(KEY, X)
  del params['tower_7/dense']['bias']
  f.apply(params, None, X)


def missing_parameter_below_a_lifted_one():
  hk.transform(lambda x: nn.remat(nn.Dense)(3, name='d')(x)).apply({}, None, X)


def missing_state():
  f = normed()
  params, _ = f.init(KEY, X)
  f.apply(params, {}, None, X)


def state_of_another_name():
  f = normed()
  params, state = f.init(KEY, X)
  f.apply(params, {'old_name': state['bn']}, None, X)


def state_that_only_apply_asks_for():
  class Cache(nn.Module):
    @nn.compact
    def __call__(self, x):
      if not self.is_initializing():
        self.variable('cache', 'last', jnp.zeros, ())
      return x

  f = hk.transform_with_state(lambda x: Cache()(x))
  f.apply(*f.init(KEY, X), None, X)


def no_key_in_init():
  tower().init(None, X)


def no_key_in_apply():
  f = hk.transform(lambda x: nn.Dropout(0.5, deterministic=False)(x))
  f.apply({}, None, X)


def inside_of_jit():
  hk.transform(lambda x: jax.jit(nn.Dense(3, name='d'))(x)).init(KEY, X)


def state_set_inside_of_jit():
  class Last(nn.Module):
    @nn.compact
    def __call__(self, x):
      self.variable('last', 'x', jnp.zeros, x.shape).value = x
      return x

  def f(x):
    last = Last()
    return last(x) if hk.running_init() else jax.jit(last)(x)

  f = hk.transform_with_state(f)
  f.apply(*f.init(KEY, X), None, X)


def haiku_s_constructor():
  class Net(nn.Module):
    def __init__(self, size, name=None):
      super().__init__(name=name)
      self.size = size

  hk.transform(lambda x: Net(3)(x)).init(KEY, X)


def parameter_outside_of_a_method():
  hk.transform(lambda x: nn.Dense(3).param('w', jnp.ones, ())).init(KEY, X)


def parameter_of_an_unbound_module():
  nn.Dense(3).param('w', nn.initializers.ones, ())


def variable_of_an_unbound_module():
  nn.Dense(3).variable('c', 'w')


def haiku_s_parameters_in_linen_s_apply():
  params = hk.transform(lambda x: hk.Linear(3)(x)).init(KEY, X)
  nn.Dense(3).apply(params, X)


def two_from_outside():
  a, b = nn.Dense(4), nn.Dense(4)
  hk.transform(lambda x: b(a(x))).init(KEY, X)


ROWS = [
  (
    missing_parameter,
    errors.ScopeParamNotFoundError,
    ['"tower_7/dense"', '"kernel"', 'nothing', 'f.init(key, ...)'],
  ),
  (
    parameter_of_another_name,
    errors.ScopeParamNotFoundError,
    ['"tower_7/dense"', '"tower/dense"', '"head"'],
  ),
  (
    missing_one_of_two,
    errors.ScopeParamNotFoundError,
    ['"tower_7/dense"', '"bias"', 'the module has "kernel"'],
  ),
  (
    missing_parameter_below_a_lifted_one,
    errors.ScopeParamNotFoundError,
    ['"d"', '"kernel"', 'f.init'],
  ),
  (
    missing_state,
    errors.ScopeVariableNotFoundError,
    ['"bn"', '"batch_stats:mean"', 'nothing', 'f.init(key, ...)', 'f.apply'],
  ),
  (
    state_of_another_name,
    errors.ScopeVariableNotFoundError,
    ['"bn"', '"batch_stats:mean"', '"old_name"'],
  ),
  (
    state_that_only_apply_asks_for,
    errors.ScopeVariableNotFoundError,
    ['"cache"', '"cache:last"', '`put_variable`', '`sow`'],
  ),
  (
    no_key_in_init,
    errors.InvalidRngError,
    ['"tower_7/dense"', '"params"', '`f.init(key, ...)`'],
  ),
  (
    no_key_in_apply,
    errors.InvalidRngError,
    ['"dropout"', '`f.apply(params, key, ...)`'],
  ),
  (
    inside_of_jit,
    errors.JaxTransformError,
    ['"d"', '"kernel"', 'hk.vmap', 'hk.scan', 'hk.lift', 'make the module'],
  ),
  (
    state_set_inside_of_jit,
    errors.JaxTransformError,
    ['"last"', '"last:x"', 'hk.vmap'],
  ),
  (
    haiku_s_constructor,
    TypeError,
    ['Net', 'dataclass', 'fields', '@nn.compact', 'hk.Module'],
  ),
  (parameter_outside_of_a_method, ValueError, ['setup()', '@compact']),
  (parameter_of_an_unbound_module, ValueError, ['unbound']),
  (variable_of_an_unbound_module, ValueError, ['unbound']),
  (
    haiku_s_parameters_in_linen_s_apply,
    errors.ScopeCollectionNotFound,
    ['interop.from_haiku', 'linear'],
  ),
  (
    two_from_outside,
    ValueError,
    ['Dense', 'outside of hk.transform', '"dense"', 'name="my_dense"'],
  ),
]


@pytest.mark.parametrize(
  'program, cls, words', ROWS, ids=[row[0].__name__ for row in ROWS]
)
def test_error(program, cls, words):
  with pytest.raises(cls) as caught:
    program()
  text = str(caught.value)
  for word in words:
    assert word in text, text
  if issubclass(cls, errors.FlaxError):
    # `haiku-state explain` knows it by this name; it goes through pickle.
    assert f'(haiku_state.errors.{cls.__name__})' in text
    again = pickle.loads(pickle.dumps(caught.value))
    assert type(again) is type(caught.value) and str(again) == text


@pytest.mark.parametrize(
  'program', [missing_parameter, missing_state, no_key_in_init]
)
def test_it_is_caught_as_haiku_s_own(program):
  with pytest.raises(ValueError):
    program()


def test_what_is_only_written_may_be_new():
  class Writes(nn.Module):
    @nn.compact
    def __call__(self, x):
      if not self.is_initializing():
        self.put_variable('notes', 'last', x.sum())
        self.sow('seen', 'x', x.mean())
      return x

  f = hk.transform_with_state(lambda x: Writes()(x))
  params, state = f.init(KEY, X)
  assert state == {}
  _, state = f.apply(params, state, None, X)
  assert state == {'writes': {'notes:last': 12.0, 'seen:x': (1.0,)}}
