"""haiku_state.traverse_util, by behaviour and against flax.traverse_util."""

import copy
import dataclasses
import pickle
import warnings
from typing import Any, NamedTuple

import hypothesis
import hypothesis.strategies as st
import jax
import pytest

from haiku_state import traverse_util
from haiku_state.core.frozen_dict import FrozenDict, freeze
from haiku_state.traverse_util import (
  ModelParamTraversal,
  TraverseAttr,
  TraverseCompose,
  TraverseEach,
  TraverseFilter,
  TraverseId,
  TraverseItem,
  TraverseMerge,
  TraverseTree,
  empty_node,
  flatten_dict,
  path_aware_map,
  t_identity,
  unflatten_dict,
)

# Nested dicts by path

NESTED = {'a': {'x': 1, 'y': {'z': 2}}, 'b': {}, 'c': 3}


def test_flatten():
  assert flatten_dict(NESTED) == {('a', 'x'): 1, ('a', 'y', 'z'): 2, ('c',): 3}


def test_flatten_with_separator():
  assert list(flatten_dict(NESTED, sep='/')) == ['a/x', 'a/y/z', 'c']


def test_flatten_keeps_empty_dicts():
  flat = flatten_dict(NESTED, keep_empty_nodes=True)
  assert flat[('b',)] is empty_node
  assert unflatten_dict(flat) == NESTED


@pytest.mark.parametrize('keep', [False, True])
def test_flatten_of_nothing(keep):
  assert flatten_dict({}, keep_empty_nodes=keep) == {}


def test_flatten_to_chosen_leaves():
  seen = []

  def is_leaf(path, node):
    seen.append(path)
    return path == ('a', 'y')

  flat = flatten_dict(NESTED, is_leaf=is_leaf, sep='.')
  assert flat == {'a.x': 1, 'a.y': {'z': 2}, 'c': 3}
  assert seen == [(), ('a',), ('a', 'y'), ('b',)]


def test_flatten_and_map_frozen():
  assert flatten_dict(freeze(NESTED)) == flatten_dict(NESTED)
  assert path_aware_map(lambda path, x: -x, freeze(NESTED)) == {
    'a': {'x': -1, 'y': {'z': -2}},
    'b': {},
    'c': -3,
  }


def test_empty_nodes_pass_through_tree_map():
  """jax.tree.map makes an object of its own for the empty node."""
  flat = flatten_dict({'a': 1, 'b': {}}, keep_empty_nodes=True)
  flat = jax.tree.map(lambda x: x + 1, flat)
  assert unflatten_dict(flat) == {'a': 2, 'b': {}}


@pytest.mark.parametrize(
  'program, message',
  [
    (lambda: flatten_dict([1]), "expected (frozen)dict; got <class 'list'>"),
    (
      lambda: unflatten_dict([1]),
      "input is not a dict; it is a <class 'list'>",
    ),
  ],
)
def test_what_is_no_dict(program, message):
  with pytest.raises(AssertionError) as error:
    program()
  assert str(error.value) == message


_NESTED = st.recursive(
  st.integers(),
  lambda inner: st.dictionaries(st.text('abc.', max_size=3), inner, max_size=4),
  max_leaves=10,
)
_DICTS = st.dictionaries(st.text('abc.', max_size=3), _NESTED, max_size=4)


@hypothesis.settings(deadline=None)
@hypothesis.given(_DICTS)
def test_unflatten_is_the_inverse(nested):
  assert unflatten_dict(flatten_dict(nested, keep_empty_nodes=True)) == nested
  flat = flatten_dict(nested, keep_empty_nodes=True, sep='/')
  assert unflatten_dict(flat, sep='/') == nested


@hypothesis.settings(deadline=None)
@hypothesis.given(
  _DICTS, st.booleans(), st.sampled_from([None, '/', '.']), st.booleans()
)
def test_flat_dicts_are_those_of_flax(nested, keep, sep, with_leaves):
  flax_util = pytest.importorskip('flax.traverse_util')
  is_leaf = (lambda path, node: 'a' in path) if with_leaves else None
  flat = flatten_dict(nested, keep, is_leaf, sep)
  theirs = flax_util.flatten_dict(nested, keep, is_leaf, sep)
  assert list(flat) == list(theirs)
  assert [repr(v) for v in flat.values()] == [repr(v) for v in theirs.values()]
  assert path_aware_map(
    lambda p, v: (p, v), nested
  ) == flax_util.path_aware_map(lambda p, v: (p, v), nested)


# Traversals. Each row: a traversal, an object, what it selects, and the object
# after each selected part x has become -x.


@dataclasses.dataclass
class Data:
  foo: Any = 0
  bar: Any = 0


class Pair(NamedTuple):
  foo: Any
  bar: Any


class Plain:
  def __init__(self, foo):
    self.foo = foo

  def __eq__(self, other):
    return vars(self) == vars(other)


def is_odd(x):
  return x % 2 == 1


def is_kernel(path, value):
  return path.endswith('/kernel')


PARAMS = {'b': {'kernel': 1, 'bias': 2, 'empty': {}}, 'a': {'kernel': 3}}
NEGATED = {'b': {'kernel': -1, 'bias': 2, 'empty': {}}, 'a': {'kernel': -3}}

ROWS = {
  'identity': (TraverseId(), 1, [1], -1),
  'item of list': (TraverseItem(1), [1, 2, 3], [2], [1, -2, 3]),
  'item of dict': (TraverseItem('a'), {'a': 1, 'b': 2}, [1], {'a': -1, 'b': 2}),
  'item of tuple': (TraverseItem(1), (1, 2, 3), [2], (1, -2, 3)),
  'last item of tuple': (TraverseItem(-1), (1, 2, 3), [3], (1, 2, -3)),
  'slice of tuple': (TraverseItem(slice(1, None)), (1, 2, 3), [2, 3], (1, -2, -3)),
  'slice with steps': (TraverseItem(slice(None, None, 2)), (1, 2, 3), [1, 3], (-1, 2, -3)),
  'item of NamedTuple': (TraverseItem(0), Pair(1, 2), [1], Pair(-1, 2)),
  'attribute of dataclass': (TraverseAttr('foo'), Data(1, 2), [1], Data(-1, 2)),
  'attribute of NamedTuple': (TraverseAttr('bar'), Pair(1, 2), [2], Pair(1, -2)),
  'attribute of object': (TraverseAttr('foo'), Plain(1), [1], Plain(-1)),
  'each of list': (TraverseEach(), [1, 2], [1, 2], [-1, -2]),
  'each of tuple': (TraverseEach(), (1, 2), [1, 2], (-1, -2)),
  'each of dict': (TraverseEach(), {'b': 1, 'a': 2}, [1, 2], {'b': -1, 'a': -2}),
  'tree': (TraverseTree(), {'a': [1, (2, None)]}, [1, 2], {'a': [-1, (-2, None)]}),
  'filter, true': (TraverseFilter(is_odd), 3, [3], -3),
  'filter, false': (TraverseFilter(is_odd), 4, [], 4),
  'merge': (TraverseMerge(TraverseItem(0), TraverseItem(2)), [1, 2, 3], [1, 3], [-1, 2, -3]),
  'compose': (TraverseCompose(TraverseItem(0), TraverseEach()), [(1, 2), 3], [1, 2], [(-1, -2), 3]),
  'params': (ModelParamTraversal(is_kernel), PARAMS, [3, 1], NEGATED),
  'frozen params': (ModelParamTraversal(is_kernel), freeze(PARAMS), [3, 1], freeze(NEGATED)),
  'chain': (
    t_identity['layers'].each().filter(lambda d: d.bar > 0).foo,
    {'layers': [Data(1, 0), Data(2, 1)]},
    [2],
    {'layers': [Data(1, 0), Data(-2, 1)]},
  ),
  'chain of merge and tree': (
    t_identity.merge(TraverseItem(0), TraverseItem(1)).tree(),
    ([1], {'a': 2}, 3),
    [1, 2],
    ([-1], {'a': -2}, 3),
  ),
}  # fmt: skip


@pytest.mark.parametrize('name', ROWS)
class TestTraversals:
  def test_iterate(self, name):
    traversal, value, parts, _ = ROWS[name]
    assert list(traversal.iterate(value)) == parts

  def test_update(self, name):
    traversal, value, _, updated = ROWS[name]
    before = copy.deepcopy(value)
    result = traversal.update(lambda x: -x, value)
    assert result == updated
    assert type(result) is type(value)
    assert value == before

  def test_set_puts_values_in_the_order_of_iterate(self, name):
    traversal, value, parts, updated = ROWS[name]
    values = [-part for part in parts]
    assert traversal.set(values, value) == updated
    assert values == [-part for part in parts]

  def test_set_with_too_few(self, name):
    traversal, value, parts, _ = ROWS[name]
    if parts:
      with pytest.raises(ValueError, match='Not enough values provided'):
        traversal.set(parts[:-1], value)

  def test_set_with_too_many(self, name):
    traversal, value, parts, _ = ROWS[name]
    with pytest.raises(ValueError, match='Too many values provided'):
      traversal.set([*parts, 1], value)

  def test_copies_are_equal(self, name):
    traversal, *_ = ROWS[name]
    for made in (copy.copy(traversal), copy.deepcopy(traversal)):
      assert made == traversal
      assert hash(made) == hash(traversal)


def test_pickle():
  for traversal in (ModelParamTraversal(is_kernel), t_identity.each()['a'].b):
    assert pickle.loads(pickle.dumps(traversal)) == traversal


def test_different_contents_are_unequal():
  assert TraverseItem(0) != TraverseItem(1)
  assert ModelParamTraversal(is_kernel) != ModelParamTraversal(is_odd)
  assert TraverseItem(0) != 0


@pytest.mark.parametrize(
  'traversal, value, message',
  [
    (
      TraverseEach(),
      {1, 2},
      'Only the entries of a list or tuple can be traversed.',
    ),
    (
      ModelParamTraversal(is_kernel),
      [1],
      'Can only traverse a flax Model instance or a nested dict, not <class'
      " 'list'>",
    ),
  ],
)
def test_errors(traversal, value, message):
  with pytest.raises(ValueError) as error:
    traversal.update(lambda x: x, value)
  assert str(error.value) == message


def test_filters_see_paths_and_values():
  seen = []
  ModelParamTraversal(lambda path, value: seen.append((path, value))).update(
    None, FrozenDict(PARAMS)
  )
  assert seen == [('/a/kernel', 3), ('/b/bias', 2), ('/b/kernel', 1)]


@pytest.mark.parametrize(
  'name', sorted(set(ROWS) - {'last item of tuple', 'frozen params'})
)
def test_same_as_flax(name):
  flax_util = pytest.importorskip('flax.traverse_util')
  _, value, parts, updated = ROWS[name]
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    theirs = _translated(ROWS[name][0], flax_util)
  assert list(theirs.iterate(value)) == parts
  assert theirs.update(lambda x: -x, value) == updated


def _translated(x, module):
  """Makes the traversal of the same name and contents in Flax."""
  if isinstance(x, tuple):
    return tuple(_translated(y, module) for y in x)
  if not isinstance(x, traverse_util.Traversal):
    return x
  made = object.__new__(getattr(module, type(x).__name__))
  vars(made).update({k: _translated(v, module) for k, v in vars(x).items()})
  return made
