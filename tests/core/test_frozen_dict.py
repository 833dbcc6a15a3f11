"""FrozenDict: laws, agreement with Flax, and cost beside a dict."""

import copy as copy_lib
import inspect
import pickle
import tracemalloc
from collections import OrderedDict
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counted import calls
from hypothesis import given, settings
from hypothesis import strategies as st

from haiku_state import serialization
from haiku_state.core import frozen_dict
from haiku_state.core.frozen_dict import (
  FrozenDict,
  FrozenKeysView,
  FrozenValuesView,
  copy,
  freeze,
  pop,
  pretty_repr,
  unfreeze,
)

NESTED = {
  'params': {'dense': {'kernel': 1, 'bias': 2}},
  'batch_stats': {'mean': 3},
  'empty': {},
  'list': [{'a': 4}, 5],
  'none': None,
}

names = st.text('abcz_0', min_size=1, max_size=3)
leaves = st.integers(0, 9) | st.lists(st.integers(0, 3), max_size=2)
trees = st.dictionaries(
  names,
  st.recursive(
    leaves, lambda t: st.dictionaries(names, t, max_size=3), max_leaves=8
  ),
  max_size=4,
)
law = settings(deadline=None)


@pytest.fixture
def flax_core():
  pytest.importorskip('flax')
  from flax.core import frozen_dict as flax_frozen_dict

  return flax_frozen_dict


# Laws


@law
@given(trees)
def test_unfreeze_inverts_freeze(tree):
  assert unfreeze(freeze(tree)) == tree
  assert freeze(unfreeze(freeze(tree))) == freeze(tree)


@law
@given(trees)
def test_equals_a_dict_both_ways(tree):
  frozen = freeze(tree)
  assert frozen == tree and tree == frozen
  assert frozen != {**tree, 'other': 1} and {**tree, 'other': 1} != frozen


@law
@given(trees)
def test_flatten_round_trip_gives_an_equal_treedef(tree):
  frozen = freeze(tree)
  children, treedef = jax.tree.flatten(frozen)
  again = jax.tree.unflatten(treedef, children)
  assert type(again) is FrozenDict and again == frozen
  assert jax.tree.structure(again) == treedef
  assert hash(jax.tree.structure(again)) == hash(treedef)
  assert children == jax.tree.leaves(tree)


@law
@given(trees)
def test_key_paths_are_those_of_a_dict(tree):
  of = lambda t: jax.tree_util.tree_flatten_with_path(t)[0]
  assert of(freeze(tree)) == of(tree)


@law
@given(trees)
def test_pickle_and_copy(tree):
  frozen = freeze(tree)
  for again in (
    pickle.loads(pickle.dumps(frozen)),
    copy_lib.copy(frozen),
    copy_lib.deepcopy(frozen),
  ):
    assert type(again) is FrozenDict and again == frozen


@law
@given(trees)
def test_state_dict_round_trip(tree):
  frozen = freeze(tree)
  state = serialization.to_state_dict(frozen)
  assert state == serialization.to_state_dict(tree)
  zeros = jax.tree.map(lambda x: 0, frozen)
  again = serialization.from_state_dict(zeros, state)
  assert type(again) is FrozenDict and again == frozen


@law
@given(trees, trees)
def test_copy_and_pop_do_the_same_to_both_kinds(tree, added):
  for kind in (dict, FrozenDict):
    x, add = kind(tree), kind(added)
    assert type(copy(x, add)) is kind
    assert copy(x, add) == {**tree, **added}
    for key in tree:
      rest, value = pop(x, key)
      assert type(rest) is kind and value == tree[key]
      assert rest == {k: v for k, v in tree.items() if k != key}
    assert x == tree


@law
@given(trees)
def test_same_text_as_flax(tree):
  core = pytest.importorskip('flax').core
  assert repr(freeze(tree)) == repr(core.freeze(tree))
  assert pretty_repr(tree, 2) == core.pretty_repr(tree, 2)
  assert list(unfreeze(freeze(tree))) == list(core.unfreeze(core.freeze(tree)))


# Immutability


def test_treescope_shows_the_entries():
  treescope = pytest.importorskip('treescope')
  text = treescope.render_to_text(freeze({'a': {'b': 1}, 'c': [2]}))
  assert text == "FrozenDict({'a': {'b': 1}, 'c': [2]})"


def test_is_immutable():
  frozen = freeze(NESTED)
  with pytest.raises(ValueError, match='FrozenDict is immutable.'):
    frozen['params'] = 1
  with pytest.raises(ValueError, match='FrozenDict is immutable.'):
    frozen['params']['dense'] = 1
  with pytest.raises((AttributeError, TypeError)):
    del frozen['params']
  with pytest.raises(AttributeError):
    frozen.extra = 1


@pytest.mark.parametrize(
  'make', [freeze, FrozenDict, lambda d: FrozenDict(d.items())]
)
def test_does_not_follow_its_source(make):
  source = copy_lib.deepcopy(NESTED)
  frozen = make(source)
  source['params']['dense']['kernel'] = 100
  assert frozen['params']['dense']['kernel'] == 1


def test_copy_does_not_follow_what_is_added():
  added = {'new': {'a': 1}}
  frozen = freeze(NESTED).copy(added)
  added['new']['a'] = 2
  assert frozen['new']['a'] == 1


def test_what_unfreeze_returns_may_be_changed():
  frozen = freeze(NESTED)
  thawed = frozen.unfreeze()
  thawed['params']['dense']['kernel'] = 100
  thawed['list'].append(6)
  assert frozen == NESTED


# Access


def test_access():
  frozen = freeze(NESTED)
  assert isinstance(frozen['params']['dense'], FrozenDict)
  assert frozen['list'] == [{'a': 4}, 5] and frozen['none'] is None
  assert frozen.get('params') == NESTED['params']
  assert frozen.get('missing') is None and frozen.get('missing', 7) == 7
  assert 'params' in frozen and 'missing' not in frozen
  assert len(frozen) == 5 and list(frozen) == list(NESTED)
  assert dict(**frozen) == NESTED
  with pytest.raises(KeyError):
    frozen['missing']


def test_views():
  frozen = freeze({'a': 1, 'b': {'c': 2}})
  assert isinstance(frozen.keys(), FrozenKeysView)
  assert isinstance(frozen.values(), FrozenValuesView)
  assert repr(frozen.keys()) == "frozen_dict_keys(['a', 'b'])"
  assert repr(frozen.values()).startswith('frozen_dict_values([1, FrozenDict({')
  assert next(frozen.items()) == ('a', 1)
  assert [type(value) for _, value in frozen.items()] == [int, FrozenDict]


def test_dicts_of_other_kinds_become_plain_ones():
  inside = freeze({'a': OrderedDict(b=freeze({'c': 1}))})
  assert jax.tree.structure(inside) == jax.tree.structure(
    freeze({'a': {'b': {'c': 1}}})
  )
  assert freeze(MappingProxyType({'a': 1})) == {'a': 1}
  assert freeze({'a': 1}) == MappingProxyType({'a': 1})


def test_pop_of_a_missing_key():
  for x in ({'a': 1}, freeze({'a': 1})):
    with pytest.raises(KeyError):
      pop(x, 'b')


def test_functions_refuse_other_types():
  with pytest.raises(TypeError, match='Expected FrozenDict or dict'):
    copy([1])
  with pytest.raises(TypeError, match='Expected FrozenDict or dict'):
    pop([1], 'a')
  assert unfreeze(3) == 3 and pretty_repr('a') == "'a'"


def test_comparison_with_anything_else():
  assert freeze({'a': 1}) != 1 and freeze({}) != []


def test_hash():
  a, b = freeze({'a': 1, 'b': {'c': 2}}), freeze({'b': {'c': 2}, 'a': 1})
  assert hash(a) == hash(b) and {a: 1}[b] == 1
  assert hash(a) != hash(freeze({'a': 1, 'b': {'c': 3}}))
  with pytest.raises(TypeError):
    hash(freeze({'a': np.zeros(2)}))


def test_hash_is_kept():
  class Counting:
    calls = 0

    def __hash__(self):
      Counting.calls += 1
      return 1

  frozen = freeze({'a': Counting()})
  hash(frozen), hash(frozen)
  assert Counting.calls == 1


def test_num_spaces_holds_for_both_kinds():
  tree = {'a': {'b': 1}}
  assert pretty_repr(freeze(tree), 2) == f'FrozenDict({pretty_repr(tree, 2)})'


# As a pytree


def test_tree_map_gives_a_frozen_dict():
  doubled = jax.tree.map(lambda x: 2 * x, freeze({'a': {'b': 1}, 'c': 2}))
  assert type(doubled) is FrozenDict and doubled == {'a': {'b': 2}, 'c': 4}


def test_tree_map_may_give_dicts_for_leaves():
  wrapped = jax.tree.map(lambda x: {'w': x}, freeze({'a': {'b': 1}}))
  assert type(wrapped['a']['b']) is FrozenDict
  assert wrapped == {'a': {'b': {'w': 1}}}


def test_through_jit_grad_and_vmap():
  params = freeze({'w': jnp.arange(3.0), 'b': {'c': jnp.ones(3)}})
  loss = lambda p: (p['w'] * p['b']['c']).sum()
  grads = jax.jit(jax.grad(loss))(params)
  assert type(grads) is FrozenDict
  np.testing.assert_array_equal(grads['w'], np.ones(3))
  assert jax.vmap(lambda p: p['w'])(params).shape == (3,)


def test_same_pytree_as_flax(flax_core):
  ours, theirs = freeze(NESTED), flax_core.freeze(NESTED)
  assert str(jax.tree.structure(ours)) == str(jax.tree.structure(theirs))
  of = lambda t: jax.tree_util.tree_flatten_with_path(t)[0]
  assert of(ours) == of(theirs)


def test_same_signatures_as_flax(flax_core):
  for name in (
    'freeze',
    'unfreeze',
    'copy',
    'pop',
    'pretty_repr',
    'FrozenDict',
  ):
    ours = inspect.signature(getattr(frozen_dict, name)).parameters.values()
    theirs = inspect.signature(getattr(flax_core, name)).parameters.values()
    assert [(p.name, p.kind) for p in ours] == [
      (p.name, p.kind) for p in theirs
    ]


@pytest.mark.parametrize('layers', [1, 100])
def test_no_node_takes_a_call(layers):
  tree = {f'layer_{i}': {f'p_{j}': i for j in range(9)} for i in range(layers)}
  frozen = freeze(tree)
  children, treedef = jax.tree.flatten(frozen)
  assert calls(lambda: jax.tree.flatten(frozen)).total() < 6
  assert calls(lambda: jax.tree.unflatten(treedef, children)).total() < 8


def test_access_does_not_copy():
  frozen = freeze({'a': {str(i): i for i in range(10_000)}})
  frozen['a']
  tracemalloc.start()
  try:
    frozen['a']
    _, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert peak < 10_000  # Bytes; a copy takes some 300,000.
