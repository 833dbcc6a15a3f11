"""Dataclasses that JAX sees through: `dataclass`, `field`, `PyTreeNode`.

An instance is a pytree whose children are the fields, with their names as key
paths; fields declared by `field(pytree_node=False)` are static: part of the
tree's structure, compared by `==` where JAX compares structures.

See https://flax.readthedocs.io/en/latest/api_reference/flax.struct.html.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeVar, overload

from haiku_state import _versions, export, serialization
from haiku_state._versions import dataclass_transform

__all__ = ['PyTreeNode', 'dataclass', 'field']

_T = TypeVar('_T')
_Node = TypeVar('_Node', bound='PyTreeNode')

# Programs (and Flax's own modules) ask for this attribute to tell these classes
# from plain dataclasses, so it keeps its name.
_MARK = '_flax_dataclass'


def field(
  pytree_node: bool = True, *, metadata: Any = None, **kwargs: Any
) -> Any:
  """Declares a field of a `dataclass` or `PyTreeNode`.

  Args:
    pytree_node: whether the field is a child of the pytree, to be mapped over,
      traced and differentiated. If not, it is static, and should be hashable.
    metadata: a mapping that is kept with the field.
    **kwargs: as for `dataclasses.field` (`default`, `default_factory`,
      `repr`, `compare`, `kw_only`, ...).

  Returns:
    What `dataclasses.field` returns.

  >>> import jax
  >>> @dataclass
  ... class Layer:
  ...   kernel: float
  ...   name: str = field(pytree_node=False, default='dense')
  >>> jax.tree.map(lambda x: 2 * x, Layer(1.5))
  Layer(kernel=3.0, name='dense')
  """
  return dataclasses.field(
    metadata={**(metadata or {}), 'pytree_node': pytree_node}, **kwargs
  )


@overload
@dataclass_transform(field_specifiers=(field,), frozen_default=True)
def dataclass(clz: type[_T], **kwargs: Any) -> type[_T]: ...


@overload
@dataclass_transform(field_specifiers=(field,), frozen_default=True)
def dataclass(**kwargs: Any) -> Callable[[type[_T]], type[_T]]: ...


@dataclass_transform(field_specifiers=(field,), frozen_default=True)
def dataclass(clz: Any = None, **kwargs: Any) -> Any:
  """Makes a class a dataclass that is a pytree and can be saved.

  Instances are immutable, unless `frozen=False` is given; `replace` returns
  a changed copy. `haiku_state.serialization` knows the class: the state dict
  has the fields that are children of the pytree.

  Args:
    clz: the class. A class that was made by this function already (itself, not
      by its base) is returned as it is.
    **kwargs: as for `dataclasses.dataclass` (`kw_only`, `eq`, `slots`,
      ...); `frozen` is True if it is not given.

  Returns:
    The class; or, without `clz`, a decorator.

  >>> import jax
  >>> @dataclass
  ... class Model:
  ...   params: dict
  ...   apply_fn: object = field(pytree_node=False, default=None)
  >>> model = Model({'w': 1.0})
  >>> model.replace(params={'w': 2.0})
  Model(params={'w': 2.0}, apply_fn=None)
  >>> jax.tree_util.tree_leaves_with_path(model)
  [((GetAttrKey(name='params'), DictKey(key='w')), 1.0)]
  """
  if clz is None:
    return functools.partial(dataclass, **kwargs)
  if _MARK in clz.__dict__:
    return clz
  data_clz = dataclasses.dataclass(**{'frozen': True, **kwargs})(clz)
  children, static = _split_fields(data_clz)
  data_clz.replace = _replace
  _versions.register_dataclass(data_clz, children, static)
  serialization.register_serialization_state(
    data_clz,
    functools.partial(_to_state_dict, children),
    functools.partial(_from_state_dict, children),
  )
  setattr(data_clz, _MARK, True)
  if clz.__module__.partition('.')[0] == __name__.partition('.')[0]:
    # Those of others are theirs to register: JAX refuses to do it twice.
    export.register_own(data_clz)
  return data_clz


def _split_fields(data_clz: Any) -> tuple[list[str], list[str]]:
  children, static = [], []
  for f in dataclasses.fields(data_clz):
    names = children if f.metadata.get('pytree_node', True) else static
    names.append(f.name)
  return children, static


def _replace(self: Any, **updates: Any) -> Any:
  """Returns a copy in which the given fields have the given values."""
  return dataclasses.replace(self, **updates)


_replace.__name__ = 'replace'


def _to_state_dict(children: list[str], x: Any) -> dict[str, Any]:
  return {
    name: serialization.to_state_dict(getattr(x, name)) for name in children
  }


def _from_state_dict(children: list[str], x: Any, state: Any) -> Any:
  """Reads the fields in order, then refuses what is left."""
  clz_name = type(x).__name__
  serialization._check_is_mapping(state, clz_name)
  updates = {}
  for name in children:
    if name not in state:
      raise ValueError(
        f'Missing field {name} in state dict while restoring'
        f' an instance of {clz_name},'
        f' at path {serialization.current_path()}'
      )
    updates[name] = serialization.from_state_dict(
      getattr(x, name), state[name], name=name
    )
  unknown = [str(name) for name in state if name not in updates]
  if unknown:
    raise ValueError(
      f'Unknown field(s) "{",".join(unknown)}" in state dict while'
      f' restoring an instance of {clz_name}'
      f' at path {serialization.current_path()}'
    )
  return x.replace(**updates)


@dataclass_transform(field_specifiers=(field,), frozen_default=True)
class PyTreeNode:
  """A base class whose subclasses are made by `dataclass`.

  Keyword arguments of the class statement are those of `dataclass`.

  >>> import jax
  >>> class Stats(PyTreeNode, kw_only=True):
  ...   mean: float
  ...   count: int = field(pytree_node=False, default=0)
  >>> jax.tree.leaves(Stats(mean=0.5))
  [0.5]
  """

  def __init_subclass__(cls, **kwargs: Any):
    super().__init_subclass__()
    dataclass(cls, **kwargs)

  # Every subclass gets its own of these two; here they tell type checkers.

  def __init__(self, *args: Any, **kwargs: Any):
    raise NotImplementedError

  def replace(self: _Node, **overrides: Any) -> _Node:
    raise NotImplementedError
