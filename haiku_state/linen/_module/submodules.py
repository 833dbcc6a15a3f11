"""Modules in the attributes of modules: finding them."""

from __future__ import annotations

import enum
import types
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from haiku_state import serialization
from haiku_state.core.frozen_dict import FrozenDict
from haiku_state.linen._module.base import ModuleBase

# Values of these types hold no modules, and need not be searched.
PLAIN_TYPES = frozenset(
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
  if kind in PLAIN_TYPES:
    return True
  if kind is tuple:
    # Shapes, axes, paddings: the most common of all fields.
    return all(map(is_plain, value))
  if kind is FrozenDict:
    # Filters of collections and of streams.
    return all(type(k) is str and is_plain(x) for k, x in value.items())
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
  from haiku_state import traverse_util  # Few programs come here.

  flat = traverse_util.flatten_dict(nested, keep_empty_nodes=True)
  new = {path: fn(_suffix(path), leaf) for path, leaf in _in_order(flat)}
  return serialization.from_state_dict(tree, traverse_util.unflatten_dict(new))


def suffixed_leaves(tree: Any) -> list[tuple[str, Any]]:
  """Returns the suffix and value of each leaf that `map_leaves` would see."""
  nested = serialization.to_state_dict(tree)
  if not isinstance(nested, dict) or not nested:
    return [('', tree)]
  from haiku_state import traverse_util

  flat = traverse_util.flatten_dict(nested)
  return [(_suffix(path), leaf) for path, leaf in _in_order(flat)]


def _suffix(path: tuple[str, ...]) -> str:
  return '_' + '_'.join(path)


def _in_order(flat: dict[tuple[str, ...], Any]) -> list[Any]:
  return sorted(flat.items(), key=lambda item: item[0])


def map_modules(fn: Callable[[Any], Any], tree: Any) -> Any:
  """Applies a function to the modules in an attribute, and freezes it."""
  if is_plain(tree):
    return tree
  if isinstance(tree, ModuleBase):
    return fn(tree)

  def on_leaf(suffix, leaf):
    del suffix
    return fn(leaf) if isinstance(leaf, ModuleBase) else leaf

  return freeze_attr(map_leaves(on_leaf, tree))


def modules_in(value: Any) -> Iterator[ModuleBase]:
  """Yields the modules in the value of an attribute."""
  if not is_plain(value):
    for _, leaf in suffixed_leaves(value):
      if isinstance(leaf, ModuleBase):
        yield leaf
