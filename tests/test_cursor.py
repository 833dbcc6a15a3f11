"""Cursors: changes by every way, over every kind of structure, as Flax's."""

import copy
import dataclasses
import inspect
import operator
import pickle
from collections import OrderedDict
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haiku_state import cursor as ours
from haiku_state import struct
from haiku_state.core.frozen_dict import FrozenDict, freeze
from haiku_state.cursor import (
  AccessType,
  Cursor,
  Indexable,
  ParentKey,
  _traverse_tree,
  cursor,
  is_named_tuple,
)
from haiku_state.errors import CursorFindError, TraverseTreeError


class Point(NamedTuple):
  x: Any
  y: Any


@struct.dataclass
class State:
  step: int
  params: Any
  fn: Any = struct.field(pytree_node=False, default=len)


@dataclasses.dataclass
class WithHidden:
  shown: int
  hidden: int = dataclasses.field(default=5, init=False)


# kind, structure, key, access type, structure with 9 at the key
KINDS = [
  ('dict', {'a': 1, 'b': 2}, 'a', 'item', {'a': 9, 'b': 2}),
  ('dict with numbers as keys', {1: 1, 2: 2}, 1, 'item', {1: 9, 2: 2}),
  (
    'OrderedDict',
    OrderedDict(b=1, a=2),
    'b',
    'item',
    OrderedDict(b=9, a=2),
  ),
  ('FrozenDict', freeze({'a': 1}), 'a', 'item', freeze({'a': 9})),
  ('list', [1, 2], 1, 'item', [1, 9]),
  ('tuple', (1, 2), -1, 'item', (1, 9)),
  ('NamedTuple', Point(1, 2), 'y', 'attr', Point(1, 9)),
  ('NamedTuple by index', Point(1, 2), 1, 'item', Point(1, 9)),
  ('dataclass', State(1, {}), 'step', 'attr', State(9, {})),
]
each_kind = pytest.mark.parametrize(
  'obj, key, access, expected',
  [kind[1:] for kind in KINDS],
  ids=[kind[0] for kind in KINDS],
)


def child_of(c, key, access):
  return c[key] if access == 'item' else getattr(c, key)


def assign(c, key, access, value):
  if access == 'item':
    c[key] = value
  else:
    setattr(c, key, value)


def same(a, b):
  return type(a) is type(b) and a == b


@each_kind
def test_set(obj, key, access, expected):
  before = copy.deepcopy(obj)
  assert same(child_of(cursor(obj), key, access).set(9), expected)
  assert same(obj, before)


@each_kind
def test_assign_and_build(obj, key, access, expected):
  c = cursor(obj)
  assign(c, key, access, 9)
  assert same(c.build(), expected)
  assert child_of(c, key, access) == 9


@each_kind
def test_apply_update(obj, key, access, expected):
  value = child_of(cursor(obj), key, access)._obj
  names = []

  def update(path, x):
    names.append(path)
    return 9 if same(x, value) else x

  assert same(cursor(obj).apply_update(update).build(), expected)
  assert '' not in names


@each_kind
def test_find(obj, key, access, expected):
  value = child_of(cursor(obj), key, access)._obj
  found = cursor(obj).find(lambda path, x: same(x, value))
  assert same(found.set(9), expected)


@each_kind
def test_inside_another(obj, key, access, expected):
  for outer, step in (({'o': obj}, 'o'), ([0, obj], 1), ((obj,), 0)):
    changed = child_of(cursor(outer)[step], key, access).set(9)
    assert same(changed[step], expected)


def test_unchanged_parts_are_shared():
  obj = {'a': {'b': [1]}, 'c': {'d': [2]}}
  changed = cursor(obj)['a']['b'][0].set(3)
  assert changed == {'a': {'b': [3]}, 'c': {'d': [2]}}
  assert changed['c'] is obj['c']


def test_set_at_the_root_and_twice():
  c = cursor({'a': 1, 'b': 2})
  assert c.set(5) == 5
  assert c['a'].set(3) == {'a': 3, 'b': 2}
  assert c['b'].set(4) == {'a': 3, 'b': 4}


def test_build_may_go_on():
  c = cursor({'a': [1, 2]})
  c['a'][0] += 10
  assert c.build() == {'a': [11, 2]}
  c['a'][1] *= 5
  assert c.build() == {'a': [11, 10]}
  assert c['a'].build() == [11, 10]


def test_replaced_container_takes_changes():
  c = cursor({'a': 1})
  c['a'] = {'b': [1, 2]}
  c['a']['b'][0] = 3
  assert c.build() == {'a': {'b': [3, 2]}}


def test_new_keys():
  c = cursor(freeze({'a': 1}))
  c['new'] = {'b': 2}
  assert same(c.build(), freeze({'a': 1, 'new': {'b': 2}}))


def test_reading_attributes_of_leaves_changes_nothing():
  x = jnp.ones((2, 3))
  c = cursor({'x': x})
  assert c['x'].shape == (2, 3)
  assert c.build()['x'] is x


def test_update_is_not_asked_below_a_change():
  asked = []

  def update(path, value):
    asked.append(path)
    return 0 if path == 'a' else value

  obj = {'a': {'b': 1}, 'c': (2, State(3, [4], len))}
  assert cursor(obj).apply_update(update).build()['a'] == 0
  assert asked == [
    'a', 'c', 'c/0', 'c/1', 'c/1/step', 'c/1/params', 'c/1/params/0', 'c/1/fn'
  ]  # fmt: skip


def test_update_of_fields_that_cannot_be_given():
  c = cursor(WithHidden(1)).apply_update(lambda path, x: x + 1)
  assert c.build() == WithHidden(2)


def test_a_class_is_a_leaf():
  assert cursor([State]).apply_update(lambda path, x: x).build() == [State]


def test_find_all():
  c = cursor({'d0': {'b': 1}, 'd1': {'b': 2}, 'n': {'b': 3}})
  found = c.find_all(lambda path, value: 'd' in path)
  assert inspect.isgenerator(found)
  for child in found:
    child['b'] += 10
  assert c.build() == {'d0': {'b': 11}, 'd1': {'b': 12}, 'n': {'b': 3}}
  assert list(c.find_all(lambda path, value: False)) == []


def test_find_wants_one():
  c = cursor({'a': [1, 2], 'b': State(3, None)})
  with pytest.raises(CursorFindError, match='No object found'):
    c.find(lambda path, value: False)
  # Flax fails here, as it asks for the length of numbers.
  with pytest.raises(CursorFindError, match=r"\['a'\]\[0\] and \['b'\].step"):
    c.find(lambda path, value: value in (1, 3))


@pytest.mark.parametrize('fns', [{}, {'update_fn': len, 'cond_fn': len}])
def test_traverse_tree_wants_one_function(fns):
  with pytest.raises(TraverseTreeError):
    next(_traverse_tree((), {'a': 1}, **fns))


def test_traverse_tree():
  found = _traverse_tree((), {'a': Point(1, 2)}, cond_fn=lambda p, x: x == 2)
  path = (('a', AccessType.ITEM), ('y', AccessType.ATTR))
  assert list(found) == [path]
  found = _traverse_tree(
    (), {'a': Point(1, 2)}, update_fn=lambda p, x: 3 if x == 2 else x
  )
  assert list(found) == [(path, 3)]


def test_path_and_root():
  c = cursor({'a': {1: Point(State(1, [2]), 0)}})
  deep = c['a'][1].x.params[0]
  assert deep._path == "['a'][1].x.params[0]"
  assert deep._root is c and c._path == ''


def test_missing_places():
  c = cursor({'a': 1, 'f': freeze({}), 's': State(1, 2)})
  for place, error, match in (
    (lambda: c['b'], KeyError, 'Key b not found in'),
    (lambda: c['f']['b'], KeyError, 'Key b not found in FrozenDict'),
    (lambda: c['a'][0], TypeError, 'Cannot index into 1'),
    (lambda: c.b, AttributeError, 'Attribute b not found in'),
    (lambda: c['s'].b, AttributeError, 'Attribute b not found in State'),
  ):
    with pytest.raises(error, match=match):
      place()


def test_iteration():
  c = cursor([(1, 2), (3, 4)])
  assert len(c) == 2
  assert [child._path for child in c] == ['[0]', '[1]']
  assert [child._path for child in reversed(c)] == ['[1]', '[0]']
  for a, b in c:
    assert isinstance(a, Cursor)
    b.set(0)
  assert c.build() == [(1, 0), (3, 0)]
  for iterate, name in ((iter, '__iter__'), (reversed, '__reversed__')):
    with pytest.raises(NotImplementedError, match=f'{name} .*tuples and lists'):
      iterate(cursor({'a': 1}))


BINARY = [
  operator.add, operator.sub, operator.mul, operator.truediv,
  operator.floordiv, operator.mod, divmod, operator.pow, operator.lshift,
  operator.rshift, operator.and_, operator.xor, operator.or_, operator.lt,
  operator.le, operator.eq, operator.ne, operator.gt, operator.ge,
]  # fmt: skip


@pytest.mark.parametrize('op', BINARY)
def test_binary_operators(op):
  c = cursor([13, 3])
  expected = op(13, 3)
  for left, right in ((c[0], 3), (13, c[1]), (c[0], c[1])):
    result = op(left, right)
    assert same(result, expected)


@pytest.mark.parametrize(
  'op',
  [operator.neg, operator.pos, operator.abs, operator.invert, round, str],
)
def test_unary_operators(op):
  assert same(op(cursor([-13])[0]), op(-13))


def test_other_operators():
  assert round(cursor(1.256), 2) == 1.26
  a = np.arange(4.0).reshape(2, 2)
  np.testing.assert_array_equal(cursor([a])[0] @ a, a @ a)
  np.testing.assert_array_equal(jnp.asarray(a) @ cursor(a), a @ a)
  with pytest.raises(TypeError, match='unhashable'):
    hash(cursor(1))


@pytest.mark.parametrize(
  'through',
  [lambda c: pickle.loads(pickle.dumps(c)), copy.copy, copy.deepcopy],
)
def test_survives(through):
  # Flax's cursors recurse without end here.
  c = cursor({'a': (1, 2)})
  c['a'][0] = 5
  assert through(c).build() == {'a': (5, 2)}


def test_small_names():
  assert isinstance([], Indexable) and not isinstance(1, Indexable)
  assert is_named_tuple(Point(1, 2)) and not is_named_tuple((1, 2))
  parent = cursor([1])
  assert parent[0]._parent_key == ParentKey(parent, 0, AccessType.ITEM)


# As Flax's

leaves = st.integers(0, 9) | st.text('ab\n', max_size=2)
trees = st.dictionaries(
  st.text('abc', min_size=1, max_size=2),
  st.recursive(
    leaves,
    lambda t: (
      st.dictionaries(st.text('abc', min_size=1, max_size=2), t, max_size=3)
      | st.lists(t, max_size=3)
      | st.tuples(t, t)
      | st.builds(Point, t, t)
    ),
    max_leaves=8,
  ),
  max_size=4,
)


@settings(deadline=None)
@given(trees, st.integers(0, 9))
def test_same_as_flax(tree, number):
  theirs = pytest.importorskip('flax.cursor')
  asked = []

  def update(path, value):
    asked.append(path)
    return (number, {'new': value}) if value == number else value

  results = []
  for make in (cursor, theirs.cursor):
    c = make(tree)
    found = [child._path for child in c.find_all(lambda p, v: v == number)]
    c.apply_update(update)
    results.append((found, c.build(), repr(c), list(asked)))
    asked.clear()
  assert results[0] == results[1]


@pytest.mark.parametrize(
  'name', ['Cursor', 'Indexable', 'ParentKey', 'cursor', 'is_named_tuple']
)
def test_same_signature_as_flax(name):
  theirs = pytest.importorskip('flax.cursor')
  names = lambda f: [
    (p.name, p.kind, p.default)
    for p in inspect.signature(f).parameters.values()
  ]
  assert names(getattr(ours, name)) == names(getattr(theirs, name))


def test_same_methods_as_flax():
  theirs = pytest.importorskip('flax.cursor')
  missing = set(vars(theirs.Cursor)) - set(vars(Cursor))
  assert missing <= {'__static_attributes__', '__firstlineno__'}
  assert {a.name: a.value for a in AccessType} == {
    a.name: a.value for a in theirs.AccessType
  }
  assert type(cursor(FrozenDict(a=1)).build()) is FrozenDict
