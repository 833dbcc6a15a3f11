"""Cursors: changing one place of a nested immutable structure.

A cursor points to a place in a structure of dicts, FrozenDicts, lists, tuples,
NamedTuples and dataclasses. One goes down by `[key]` and `.name`, assigns as if
all of it could be changed, and builds a changed copy in the end:

  >>> from haiku_state.cursor import cursor
  >>> c = cursor({'a': 1, 'b': (2, 3), 'c': [4, 5]})
  >>> c['b'][0] = 10
  >>> c['c'][1] += 1
  >>> c.build()
  {'a': 1, 'b': (10, 3), 'c': [4, 6]}
"""

import dataclasses
import enum
import operator
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from haiku_state.core.frozen_dict import FrozenDict
from haiku_state.errors import CursorFindError, TraverseTreeError

_A = TypeVar('_A')
Key = Any


@runtime_checkable
class Indexable(Protocol):
  """Is anything that can be indexed by square brackets."""

  def __getitem__(self, key) -> Any: ...


class AccessType(enum.Enum):
  """Says how a child is reached: by `[key]` or by `.key`."""

  ITEM = enum.auto()
  ATTR = enum.auto()


@dataclasses.dataclass
class ParentKey(Generic[_A]):
  """Says which child of which cursor a cursor is.

  Attributes:
    parent: the cursor above.
    key: the key, index or attribute name.
    access_type: whether it is a key or an attribute.
  """

  parent: 'Cursor[_A]'
  key: Key
  access_type: AccessType


def is_named_tuple(obj):
  """Says whether an object is a NamedTuple.

  Args:
    obj: any object.

  Returns:
    True for an instance of a `NamedTuple` or `namedtuple` class.
  """
  return isinstance(obj, tuple) and all(
    hasattr(obj, name) for name in ('_fields', '_asdict', '_replace')
  )


def _children(obj) -> Iterator[tuple[Key, AccessType, Any]]:
  """Yields key, way of access and value of each child of an object."""
  if isinstance(obj, (FrozenDict, dict)):
    for key, value in obj.items():
      yield key, AccessType.ITEM, value
  elif is_named_tuple(obj):
    for name in obj._fields:
      yield name, AccessType.ATTR, getattr(obj, name)
  elif isinstance(obj, (list, tuple)):
    for i, value in enumerate(obj):
      yield i, AccessType.ITEM, value
  elif dataclasses.is_dataclass(obj) and not isinstance(obj, type):
    for field in dataclasses.fields(obj):
      if field.init:
        yield field.name, AccessType.ATTR, getattr(obj, field.name)


def _traverse_tree(path, obj, *, update_fn=None, cond_fn=None):
  """Yields what is found in a structure by one of two functions.

  Where something is found it goes no deeper. The object that it starts from,
  if its path is empty, is not given to the function.

  Args:
    path: where the object is: pairs of key and access type.
    obj: the object.
    update_fn: a function of path text and value that returns a new value.
    cond_fn: a function of path text and value that returns a bool.

  Yields:
    The path and the new value where `update_fn` returned another object, or
    the path where `cond_fn` returned True.

  Raises:
    TraverseTreeError: not exactly one of the functions is given.
  """
  if bool(update_fn) == bool(cond_fn):
    raise TraverseTreeError(update_fn, cond_fn)
  if path:
    text = '/'.join(str(key) for key, _ in path)
    if update_fn:
      new = update_fn(text, obj)
      if new is not obj:
        yield path, new
        return
    elif cond_fn and cond_fn(text, obj):
      yield path
      return
  for key, access_type, child in _children(obj):
    yield from _traverse_tree(
      (*path, (key, access_type)), child, update_fn=update_fn, cond_fn=cond_fn
    )


def _with_changes(obj, changes) -> Any:
  """Returns a copy of an object in which children are replaced."""
  if isinstance(obj, FrozenDict):
    return obj.copy(changes)
  if is_named_tuple(obj):
    return obj._replace(**changes)
  if isinstance(obj, (dict, list, tuple)):
    new = list(obj) if isinstance(obj, tuple) else obj.copy()
    for key, value in changes.items():
      new[key] = value
    return tuple(new) if isinstance(obj, tuple) else new
  if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
    return dataclasses.replace(obj, **changes)
  # A leaf. It has "changes" if attributes of it, such as a shape, were read.
  return obj


def _unary(function) -> Any:
  return lambda self: function(self._obj)


def _binary(function) -> Any:
  return lambda self, other: function(self._obj, other)


def _reflected(function) -> Any:
  return lambda self, other: function(other, self._obj)


class Cursor(Generic[_A]):
  """Points to a place in a structure, and remembers changes below it.

  Make one by `cursor(obj)`. In expressions it acts as the object that it
  points to: it can be added, compared, measured by `len`; the result is not a
  cursor.

  >>> from haiku_state.cursor import cursor
  >>> c = cursor({'layers': [{'w': 1}, {'w': 2}]})
  >>> c['layers'][1]['w'] += 10
  >>> c.build()
  {'layers': [{'w': 1}, {'w': 12}]}

  Args:
    obj: the object that it points to.
    parent_key: which child of which cursor it is; None at the root.
  """

  _obj: _A
  _parent_key: ParentKey[_A] | None
  _changes: dict[Any, 'Cursor[_A]']

  def __init__(self, obj: _A, parent_key: ParentKey[_A] | None):
    # Past `__setattr__`, which would record changes.
    vars(self).update(_obj=obj, _parent_key=parent_key, _changes={})

  @property
  def _root(self) -> 'Cursor[_A]':
    at = self
    while at._parent_key is not None:
      at = at._parent_key.parent
    return at

  @property
  def _path(self) -> str:
    if self._parent_key is None:
      return ''
    above, key = self._parent_key.parent._path, self._parent_key.key
    if self._parent_key.access_type is AccessType.ATTR:
      return f'{above}.{key}'
    return f"{above}['{key}']" if isinstance(key, str) else f'{above}[{key}]'

  def _child(self, key, access_type, value) -> 'Cursor[Any]':
    child = Cursor(value, ParentKey(self, key, access_type))
    self._changes[key] = child  # type: ignore[assignment]
    return child

  def __getitem__(self, key) -> 'Cursor[_A]':
    if key in self._changes:
      return self._changes[key]
    if not isinstance(self._obj, Indexable):
      raise TypeError(f'Cannot index into {self._obj}')
    if isinstance(self._obj, Mapping) and key not in self._obj:
      raise KeyError(f'Key {key} not found in {self._obj}')
    if is_named_tuple(self._obj):
      return getattr(self, self._obj._fields[key])  # type: ignore
    return self._child(key, AccessType.ITEM, self._obj[key])

  def __getattr__(self, name) -> 'Cursor[_A]':
    if name in ('_obj', '_parent_key', '_changes'):
      # `copy` and `pickle` ask for attributes before there are any.
      raise AttributeError(name)
    if name in self._changes:
      return self._changes[name]
    if not hasattr(self._obj, name):
      raise AttributeError(f'Attribute {name} not found in {self._obj}')
    return self._child(name, AccessType.ATTR, getattr(self._obj, name))

  def __setitem__(self, key, value):
    if is_named_tuple(self._obj):
      setattr(self, self._obj._fields[key], value)  # type: ignore
    else:
      self._child(key, AccessType.ITEM, value)

  def __setattr__(self, name, value):
    self._child(name, AccessType.ATTR, value)

  def set(self, value) -> _A:
    """Returns a copy of the whole structure with a value at this place.

    Changes recorded elsewhere in the structure are in the copy as well.

    Args:
      value: the value.

    Returns:
      The copy, from the root.

    Example:
      >>> from haiku_state.cursor import cursor
      >>> cursor({'a': 1, 'b': (2, 3)})['b'][0].set(10)
      {'a': 1, 'b': (10, 3)}
    """
    if self._parent_key is None:
      return value
    parent, key = self._parent_key.parent, self._parent_key.key
    parent._child(key, self._parent_key.access_type, value)
    return parent._root.build()

  def build(self) -> _A:
    """Returns a copy of the object with the changes recorded below it.

    Returns:
      The copy; what is not changed is shared with the original.

    Example:
      >>> import optax
      >>> from haiku_state.cursor import cursor
      >>> from haiku_state.training import train_state
      >>> state = train_state.TrainState.create(
      ...   apply_fn=None, params={'a': 1.0, 'b': (2.0, 3.0)}, tx=optax.sgd(0.1)
      ... )
      >>> c = cursor(state)
      >>> c.params['b'][1] = 10.0
      >>> c.step += 1
      >>> state = c.build()
      >>> state.params, state.step
      ({'a': 1.0, 'b': (2.0, 10.0)}, 1)
    """
    changes = {key: child.build() for key, child in self._changes.items()}
    return _with_changes(self._obj, changes)

  def apply_update(
    self,
    update_fn: Callable[[str, Any], Any],
  ) -> 'Cursor[_A]':
    """Records the changes that a function makes anywhere in the structure.

    The function is asked from the top down, beginning with the children. Where
    it returns another object than it was given, that is the change, and the
    function is not asked further down. So it must not change a list in place
    and return it: that looks like no change.

    Args:
      update_fn: a function of a path, keys joined by '/', and the value there,
        that returns the new value.

    Returns:
      This cursor; call `build` for the changed copy.

    Example:
      >>> from haiku_state.cursor import cursor
      >>> params = {'dense': {'kernel': 1, 'bias': 2}, 'norm': {'bias': 3}}
      >>> double = lambda path, value: 2 * value if 'bias' in path else value
      >>> cursor(params).apply_update(double).build()
      {'dense': {'kernel': 1, 'bias': 4}, 'norm': {'bias': 6}}
    """
    for path, value in _traverse_tree((), self._obj, update_fn=update_fn):
      *above, (key, access_type) = path
      parent = self._descend(above)
      if access_type is AccessType.ITEM:
        parent[key] = value
      else:
        setattr(parent, key, value)
    return self

  def find(self, cond_fn: Callable[[str, Any], bool]) -> 'Cursor[_A]':
    """Returns the cursor of the one place that meets a condition.

    Args:
      cond_fn: a function of a path, keys joined by '/', and the value there,
        that returns a bool. Below a place where it is True it is not asked.

    Returns:
      A cursor within this one.

    Raises:
      CursorFindError: no place meets the condition, or more than one.

    Example:
      >>> from haiku_state.cursor import cursor
      >>> params = {'dense_0': {'bias': 1}, 'dense_1': {'bias': 2}}
      >>> second = cursor(params).find(lambda path, _: 'dense_1' in path)
      >>> second['bias'].set(3)
      {'dense_0': {'bias': 1}, 'dense_1': {'bias': 3}}
    """
    found = self.find_all(cond_fn)
    first, second = next(found, None), next(found, None)
    if first is None or second is not None:
      raise CursorFindError(first, second)
    return first

  def find_all(
    self, cond_fn: Callable[[str, Any], bool]
  ) -> Generator['Cursor[_A]', None, None]:
    """Yields the cursors of all places that meet a condition.

    Args:
      cond_fn: a function of a path, keys joined by '/', and the value there,
        that returns a bool. Below a place where it is True it is not asked.

    Yields:
      Cursors within this one.

    Example:
      >>> from haiku_state.cursor import cursor
      >>> c = cursor({'dense_0': {'bias': 1}, 'dense_1': {'bias': 2}})
      >>> for dense in c.find_all(lambda path, _: 'dense' in path):
      ...   dense['bias'] += 10
      >>> c.build()
      {'dense_0': {'bias': 11}, 'dense_1': {'bias': 12}}
    """
    for path in _traverse_tree((), self._obj, cond_fn=cond_fn):
      yield self._descend(path)

  def _descend(self, path) -> 'Cursor[_A]':
    at = self
    for key, access_type in path:
      is_item = access_type is AccessType.ITEM
      at = at[key] if is_item else getattr(at, key)
    return at

  def __str__(self):
    return str(self._obj)

  def __repr__(self):
    return self._pretty_repr()

  def _pretty_repr(self, indent=2, _prefix_indent=0):
    outer, inner = ' ' * _prefix_indent, ' ' * (_prefix_indent + indent)
    obj = repr(self._obj).replace('\n', f'\n{inner}')
    changes = ',\n'.join(
      self._pretty_change(f'{inner}{" " * indent}{key!r}: ', child, indent)
      for key, child in self._changes.items()
    )
    if changes:
      changes = f'\n{changes}\n{inner}'
    return (
      f'Cursor(\n{inner}_obj={obj},\n{inner}_changes={{{changes}}}\n{outer})'
    )

  @staticmethod
  def _pretty_change(prefix, child, indent):
    return prefix + child._pretty_repr(indent, len(prefix))

  def __len__(self):
    return len(self._obj)  # type: ignore[arg-type]

  def __iter__(self):
    return iter([self[i] for i in self._indices('__iter__')])

  def __reversed__(self):
    return iter([self[i] for i in reversed(self._indices('__reversed__'))])

  def _indices(self, method):
    if not isinstance(self._obj, (tuple, list)):
      raise NotImplementedError(
        f'{method} method only implemented for tuples and lists, not type'
        f' {type(self._obj)}'
      )
    return range(len(self._obj))

  def __round__(self, ndigits=None):
    return round(self._obj, ndigits)  # type: ignore[call-overload]

  # In an expression a cursor is what it points to.

  __neg__ = _unary(operator.neg)
  __pos__ = _unary(operator.pos)
  __abs__ = _unary(operator.abs)
  __invert__ = _unary(operator.invert)

  __lt__ = _binary(operator.lt)
  __le__ = _binary(operator.le)
  __eq__ = _binary(operator.eq)
  __ne__ = _binary(operator.ne)
  __gt__ = _binary(operator.gt)
  __ge__ = _binary(operator.ge)
  __hash__ = None  # type: ignore[assignment]

  __add__ = _binary(operator.add)
  __sub__ = _binary(operator.sub)
  __mul__ = _binary(operator.mul)
  __matmul__ = _binary(operator.matmul)
  __truediv__ = _binary(operator.truediv)
  __floordiv__ = _binary(operator.floordiv)
  __mod__ = _binary(operator.mod)
  __divmod__ = _binary(divmod)
  __pow__ = _binary(operator.pow)
  __lshift__ = _binary(operator.lshift)
  __rshift__ = _binary(operator.rshift)
  __and__ = _binary(operator.and_)
  __xor__ = _binary(operator.xor)
  __or__ = _binary(operator.or_)

  __radd__ = _reflected(operator.add)
  __rsub__ = _reflected(operator.sub)
  __rmul__ = _reflected(operator.mul)
  __rmatmul__ = _reflected(operator.matmul)
  __rtruediv__ = _reflected(operator.truediv)
  __rfloordiv__ = _reflected(operator.floordiv)
  __rmod__ = _reflected(operator.mod)
  __rdivmod__ = _reflected(divmod)
  __rpow__ = _reflected(operator.pow)
  __rlshift__ = _reflected(operator.lshift)
  __rrshift__ = _reflected(operator.rshift)
  __rand__ = _reflected(operator.and_)
  __rxor__ = _reflected(operator.xor)
  __ror__ = _reflected(operator.or_)


def cursor(obj: _A) -> Cursor[_A]:
  """Returns a cursor that points to an object.

  Changes are made by `set`, which returns the changed copy at once; by
  assignments, or by `apply_update`, and then `build`. The children of a list or
  tuple can also be iterated over.

  Args:
    obj: a dict, FrozenDict, list, tuple, NamedTuple or dataclass, of any depth.

  Returns:
    The cursor.

  Example:
    >>> from haiku_state.cursor import cursor
    >>> c = cursor(((1, 2), (3, 4)))
    >>> for pair in c:
    ...   pair[1] *= -1
    >>> c.build()
    ((1, -2), (3, -4))
  """
  return Cursor(obj, None)
