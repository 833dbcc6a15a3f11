"""haiku_state.struct, by behaviour and against flax.struct."""

import dataclasses
import functools
import pickle
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
import pytest
from jax_names import needs_jax

from haiku_state import serialization, struct

T = TypeVar('T')


@struct.dataclass
class Point:
  x: Any
  y: Any
  meta: Any = struct.field(pytree_node=False, default=None)


class Node(struct.PyTreeNode):
  x: Any
  y: Any
  meta: Any = struct.field(pytree_node=False, default=None)


@pytest.mark.parametrize('cls', [Point, Node])
class TestBothForms:
  def test_static_fields_are_not_leaves(self, cls):
    assert jax.tree.leaves(cls(1, 2, meta='m')) == [1, 2]

  def test_static_fields_are_part_of_the_structure(self, cls):
    one, other = (jax.tree.structure(cls(1, 2, meta=m)) for m in 'ab')
    assert one != other

  def test_map_keeps_class_and_static_fields(self, cls):
    assert jax.tree.map(lambda v: -v, cls(1, 2, 'm')) == cls(-1, -2, 'm')

  def test_key_paths_are_the_names_of_the_fields(self, cls):
    paths = [
      p for p, _ in jax.tree_util.tree_leaves_with_path(cls(1, {'a': 2}))
    ]
    assert [jax.tree_util.keystr(p) for p in paths] == ['.x', ".y['a']"]

  @needs_jax(0, 4, 36)
  def test_an_error_of_jax_names_the_field(self, cls):
    with pytest.raises(TypeError, match=r'\.x'):
      jax.jit(lambda node: node.y)(cls('text', 1.0))

  def test_frozen(self, cls):
    with pytest.raises(dataclasses.FrozenInstanceError):
      cls(1, 2).x = 3

  def test_replace_changes_a_copy(self, cls):
    old = cls(1, 2)
    assert old.replace(y=5) == cls(1, 5)
    assert old == cls(1, 2)

  def test_replace_refuses_unknown_fields(self, cls):
    with pytest.raises(TypeError, match="unexpected keyword argument 'z'"):
      cls(1, 2).replace(z=3)

  def test_jit_and_grad(self, cls):
    grad = jax.jit(jax.grad(lambda node: node.x * node.y))(cls(2.0, 3.0, 'm'))
    assert grad == cls(3.0, 2.0, 'm')

  def test_pickle(self, cls):
    assert pickle.loads(pickle.dumps(cls(1, 2, 'm'))) == cls(1, 2, 'm')

  def test_equal_values_have_equal_hashes(self, cls):
    assert hash(cls(1, 2, 'm')) == hash(cls(1, 2, 'm'))

  def test_state_dict_has_the_children(self, cls):
    assert serialization.to_state_dict(cls(1, [2], 'm')) == {
      'x': 1,
      'y': {'0': 2},
    }

  def test_state_dict_comes_back(self, cls):
    target = cls(0, [0], 'mine')
    state = {'x': 1, 'y': {'0': 2}}
    assert serialization.from_state_dict(target, state) == cls(1, [2], 'mine')
    assert state == {'x': 1, 'y': {'0': 2}}

  def test_missing_field(self, cls):
    message = (
      f'Missing field y in state dict while restoring an instance of'
      f' {cls.__name__}, at path ./a'
    )
    with pytest.raises(ValueError) as error:
      serialization.from_state_dict({'a': cls(1, 2)}, {'a': {'x': 1}})
    assert str(error.value) == message

  def test_unknown_fields(self, cls):
    message = (
      f'Unknown field(s) "z,w" in state dict while restoring an instance of'
      f' {cls.__name__} at path .'
    )
    with pytest.raises(ValueError) as error:
      serialization.from_state_dict(cls(1, 2), {'x': 1, 'z': 2, 'y': 3, 'w': 4})
    assert str(error.value) == message

  def test_state_must_be_a_dict(self, cls):
    with pytest.raises(ValueError, match=f'state of {cls.__name__}, got int'):
      serialization.from_state_dict(cls(1, 2), 7)


def test_arguments_of_dataclass():
  @struct.dataclass(kw_only=True, order=True)
  class Ordered:
    x: int

  assert Ordered(x=1) < Ordered(x=2)
  with pytest.raises(TypeError):
    Ordered(1)


def test_arguments_of_the_class_statement():
  class Mutable(struct.PyTreeNode, kw_only=True, frozen=False):
    x: int = 1
    y: int

  node = Mutable(y=2)
  node.x = 5
  assert jax.tree.leaves(node) == [5, 2]


def test_slots():
  @struct.dataclass(slots=True)
  class Slotted:
    x: int
    name: str = struct.field(pytree_node=False, default='')

  assert Slotted.__slots__ == ('x', 'name')
  assert jax.tree.map(lambda v: v + 1, Slotted(1, 'a')).replace(
    name='b'
  ) == Slotted(2, 'b')
  restored = serialization.from_state_dict(Slotted(0, 'a'), {'x': 4})
  assert restored == Slotted(4, 'a')


def test_wrapping_twice_is_wrapping_once():
  assert struct.dataclass(Point) is Point

  @struct.dataclass
  class Derived(Node):
    z: Any = 0

  assert jax.tree.leaves(Derived(1, 2, z=3)) == [1, 2, 3]


def test_a_subclass_gets_its_own_fields():
  class Derived(Node):
    z: Any = 0

  assert jax.tree.leaves(Derived(1, 2, z=3)) == [1, 2, 3]
  assert serialization.is_serializable(Derived)


def test_generic_in_either_order():
  class First(Generic[T], struct.PyTreeNode):
    x: T

  class Second(struct.PyTreeNode, Generic[T]):
    x: T

  assert First[int](1) == First(1)
  assert jax.tree.leaves([First(1), Second[int](2)]) == [1, 2]


def test_field_keeps_metadata_and_defaults():
  @struct.dataclass
  class Plain:
    x: Any = struct.field(metadata={'unit': 'm'}, default_factory=list)
    y: Any = dataclasses.field(default=1)

  x, y = dataclasses.fields(Plain)
  assert dict(x.metadata) == {'unit': 'm', 'pytree_node': True}
  assert dict(y.metadata) == {}
  assert jax.tree.leaves(Plain(x=[2])) == [2, 1]


def test_static_functions_do_not_retrace():
  traces = []

  @jax.jit
  def double(node):
    traces.append(1)
    return jax.tree.map(lambda v: 2 * v, node)

  for i in range(3):
    double(Point(jnp.ones(2), float(i), meta=functools.partial))
  assert len(traces) == 1


def test_the_base_class_itself_has_no_instances():
  with pytest.raises(NotImplementedError):
    struct.PyTreeNode()
  with pytest.raises(NotImplementedError):
    struct.PyTreeNode.replace(Node(1, 2))


def _outcomes(s):
  """Returns what a battery of small programs does with a struct module."""

  def init_false():
    @s.dataclass
    class A:
      x: int
      z: int = s.field(init=False, default=3)

    return jax.tree.leaves(A(1))

  def frozen_from_unfrozen():
    class A(s.PyTreeNode, frozen=False):
      x: int

    class B(A):
      y: int

  def slotted_node():
    class A(s.PyTreeNode, slots=True):
      x: int

  def over_plain_dataclass():
    @s.dataclass
    @dataclasses.dataclass
    class A:
      x: int

    A(1)

  def marked():
    @s.dataclass
    class A:
      x: int

    return A._flax_dataclass, A.replace.__name__

  def unhashable_static():
    @s.dataclass
    class A:
      x: Any = s.field(pytree_node=False)

    hash(jax.tree.structure(A([])))
    jax.jit(lambda a: 1)(A([]))

  def inherited_static():
    class A(s.PyTreeNode):
      x: int = s.field(pytree_node=False)

    class B(A):
      y: int = 2

    return str(jax.tree.structure(B(1)))

  def outcome(program):
    try:
      return repr(program())
    except Exception as error:
      return f'{type(error).__name__}: {error}'

  programs = [
    init_false,
    frozen_from_unfrozen,
    slotted_node,
    over_plain_dataclass,
    marked,
    unhashable_static,
    inherited_static,
  ]
  return {p.__name__: outcome(p).replace('flax', 'F') for p in programs}


def test_same_as_flax():
  flax_struct = pytest.importorskip('flax.struct')
  assert _outcomes(struct) == _outcomes(flax_struct)
