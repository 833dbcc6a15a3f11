"""Variables and keys may be mappings of any type, at every level."""

import collections
import types

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haiku_state import core
from haiku_state import linen as nn

KEY = jax.random.PRNGKey(0)
X = jnp.arange(6.0).reshape(2, 3)


class Block(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.Dense(3)(x)
    return nn.BatchNorm(use_running_average=False, momentum=0.5)(x)


class Model(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.Dropout(0.5, deterministic=False)(Block()(x))
    return nn.remat(nn.Dense)(2)(x)


def flax_frozen_dict(x):
  return pytest.importorskip('flax').core.FrozenDict(x)


# From a dict, one level.
TYPES = {
  'dict': dict,
  'FrozenDict': core.FrozenDict,
  'FrozenDict of Flax': flax_frozen_dict,
  'FlatMap': hk.data_structures.to_immutable_dict,
  'mappingproxy': types.MappingProxyType,
  'OrderedDict': collections.OrderedDict,
  'UserDict': collections.UserDict,
  'ChainMap': collections.ChainMap,
}
each_type = pytest.mark.parametrize('kind', TYPES)
# Which levels of the tree are of that type, counted from the top.
LEVELS = {
  'all': lambda level: True,
  'collections': lambda level: level == 0,
  'top modules': lambda level: level == 1,
  'below': lambda level: level == 2,
}


def rebuilt(tree, kind, is_of_kind, level=0):
  if not isinstance(tree, dict):
    return tree
  below = {k: rebuilt(x, kind, is_of_kind, level + 1) for k, x in tree.items()}
  return TYPES[kind](below) if is_of_kind(level) else below


def assert_same(a, b):
  jax.tree.map(
    np.testing.assert_array_equal, core.unfreeze(a), core.unfreeze(b)
  )


@pytest.fixture(scope='module')
def variables():
  return core.unfreeze(Model().init(KEY, X))


@each_type
@pytest.mark.parametrize('levels', LEVELS)
def test_apply_and_bind(kind, levels, variables):
  given = rebuilt(variables, kind, LEVELS[levels])
  for tree in (given, core.FrozenDict(given)):
    for mutable in (['batch_stats'], True):
      want = Model().apply(variables, X, rngs=KEY, mutable=mutable)
      got = Model().apply(tree, X, rngs=KEY, mutable=mutable)
      assert_same(got[0], want[0])
      assert jax.tree.structure(got[1]) == jax.tree.structure(want[1])
      assert_same(got[1], want[1])
  bound = Model().bind(given, rngs={'params': KEY}, mutable=['batch_stats'])
  assert_same(bound(X), want[0])
  assert_same(bound.variables['batch_stats'], want[1]['batch_stats'])
  assert_same(bound.variables['params'], variables['params'])
  assert_same(
    given['params']['Block_0']['Dense_0']['kernel'],
    variables['params']['Block_0']['Dense_0']['kernel'],
  )


@each_type
def test_inside_of_a_run_they_are_as_dicts(kind, variables):
  class Reader(nn.Module):
    def setup(self):
      self.model = Model()

    def __call__(self):
      return self.variables, self.model.variables

  below = {col: {'model': tree} for col, tree in variables.items()}
  given = rebuilt(below, kind, lambda level: True)
  own, models = Reader().apply(given)
  assert jax.tree.structure(own) == jax.tree.structure(core.freeze(below))
  assert_same(models, variables)


@each_type
def test_keys(kind):
  rngs = TYPES[kind]({'params': KEY, 'dropout': jax.random.PRNGKey(1)})
  want = Model().init(dict(rngs), X)
  for init in (Model().init, Model().lazy_init):
    assert_same(init(rngs, X), want)
  assert_same(Model().init_with_output(rngs, X)[1], want)
  y, _ = Model().apply(want, X, rngs=rngs, mutable=['batch_stats'])
  bound = Model().bind(want, rngs=rngs, mutable=['batch_stats'])
  assert_same(bound(X), y)

  def fn(scope):
    return scope.param('w', nn.initializers.normal(), (2,))

  assert_same(core.init(fn)(rngs), core.init(fn)(dict(rngs)))


@each_type
def test_empty_levels(kind):
  empty = TYPES[kind]({})
  variables = {'params': empty, 'cache': TYPES[kind]({'a': empty})}

  class Empty(nn.Module):
    def __call__(self):
      return self.variables

  assert Empty().apply(variables) == {'params': {}, 'cache': {'a': {}}}
  _, new = Empty().apply(variables, mutable=True)
  assert new == {'params': {}, 'cache': {'a': {}}}


def test_levels_of_ours_are_not_copied():
  tree = {'a': {'b': X}, 'c': core.FrozenDict({'d': X})}
  own = core._bundles.with_own_levels
  assert own(tree) is tree
  frozen = core.FrozenDict(tree)
  assert own(frozen) is frozen
