"""Modules in the attributes of modules: finding, naming and adopting them."""

from __future__ import annotations

import enum
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from haiku_state import serialization, traverse_util
from haiku_state.configurations import config
from haiku_state.core.frozen_dict import FrozenDict

if TYPE_CHECKING:
  from haiku_state.linen.module import Module

# Values of these types hold no modules, and need not be searched.
_PLAIN = frozenset(
  {
    int,
    float,
    bool,
    str,
    bytes,
    complex,
    type(None),
    type,
    types.FunctionType,
    types.BuiltinFunctionType,
    np.dtype,
    type(jax.numpy.float32),
    type(jax.jit(lambda: 0)),
  }
)


def is_plain(value: Any) -> bool:
  """Returns whether a value can hold no modules, at the cost of one look."""
  kind = type(value)
  if kind in _PLAIN:
    return True
  if kind is tuple:
    # Shapes, axes, paddings: the most common of all fields.
    return all(map(is_plain, value))
  return isinstance(value, (np.dtype, enum.Enum))


def freeze_attr(value: Any) -> Any:
  """Returns an attribute without lists and dicts, which could be changed."""
  if isinstance(value, (dict, FrozenDict)):
    return FrozenDict({k: freeze_attr(v) for k, v in value.items()})
  if isinstance(value, list):
    return tuple(freeze_attr(v) for v in value)
  if isinstance(value, tuple):
    items = [freeze_attr(v) for v in value]
    # Named tuples and partition specs take their items one by one.
    by_item = hasattr(value, '_fields') or isinstance(
      value, jax.sharding.PartitionSpec
    )
    return type(value)(*items) if by_item else tuple(items)
  return value


def map_leaves(fn: Callable[[str, Any], Any], tree: Any) -> Any:
  """Applies a function to the leaves of an attribute.

  Args:
    fn: takes the suffix of the leaf's name, such as `_0_key`, and the leaf.
    tree: the value of an attribute: any tree that has a state dict.

  Returns:
    The tree with the new leaves.
  """
  nested = serialization.to_state_dict(tree)
  if not isinstance(nested, dict) or not nested:
    return fn('', tree)
  flat = traverse_util.flatten_dict(nested, keep_empty_nodes=True)
  new = {path: fn(_suffix(path), leaf) for path, leaf in _in_order(flat)}
  return serialization.from_state_dict(tree, traverse_util.unflatten_dict(new))


def suffixed_leaves(tree: Any) -> list[tuple[str, Any]]:
  """Returns the suffix and value of each leaf that `map_leaves` would see."""
  nested = serialization.to_state_dict(tree)
  if not isinstance(nested, dict) or not nested:
    return [('', tree)]
  flat = traverse_util.flatten_dict(nested)
  return [(_suffix(path), leaf) for path, leaf in _in_order(flat)]


def _suffix(path: tuple[str, ...]) -> str:
  return '_' + '_'.join(path)


def _in_order(flat: dict[tuple[str, ...], Any]) -> list[Any]:
  return sorted(flat.items(), key=lambda item: item[0])


def map_modules(fn: Callable[[Any], Any], tree: Any, module_type: type) -> Any:
  """Applies a function to the modules in an attribute, and freezes it."""
  if is_plain(tree):
    return tree
  if isinstance(tree, module_type):
    return fn(tree)

  def on_leaf(suffix, leaf):
    del suffix
    return fn(leaf) if isinstance(leaf, module_type) else leaf

  return freeze_attr(map_leaves(on_leaf, tree))


def register(owner: Module, name: str, value: Any, module_type: type) -> None:
  """Sets an attribute of a bound module, and attaches the modules in it.

  A module that was made outside is adopted: a copy of it, one for each run,
  becomes a submodule of the first module that holds it, and takes its name from
  the attribute. The user's object stays as it was.

  Args:
    owner: the bound module.
    name: the name of the attribute.
    value: its value.
    module_type: the class `Module`.
  """
  if is_plain(value):
    object.__setattr__(owner, name, value)  # It may be a property that is set.
    return
  attached: list[Any] = []

  def adopt(suffix: str, leaf: Any) -> Any:
    if not isinstance(leaf, module_type):
      return leaf
    return _adopt(owner, f'{name}{suffix}', leaf, attached)

  if isinstance(value, module_type):
    new = adopt('', value)
  else:
    new = freeze_attr(map_leaves(adopt, value))
  object.__setattr__(owner, name, new)
  for module in attached:
    module.__post_init__()


def _adopt(owner: Module, place: str, module: Any, attached: list[Any]) -> Any:
  """Returns the module to hold in place of one that was assigned."""
  assert owner.scope is not None
  given_name = None
  if module.parent is None:
    # Sharing by reference survives: one copy for each object and run.
    if _preserves_names(owner):
      given_name = module.name
    adopted = owner.scope._modules.adopted
    copy = adopted.get(module._id)
    if copy is None:
      own_name = module.name
      copy = module.clone(name=None)
      if copy._named_by_itself:
        given_name = own_name
      adopted[module._id] = copy
    module = copy
  if module.name is None:
    module.parent = owner
    vars(module)['name'] = place if given_name is None else given_name
    attached.append(module)
  return module


def _preserves_names(owner: Module) -> bool:
  """Returns whether adopted modules keep the names that they came with."""
  preserve = getattr(type(owner), 'preserve_adopted_names', None)
  return config.flax_preserve_adopted_names if preserve is None else preserve
