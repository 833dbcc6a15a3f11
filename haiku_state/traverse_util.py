"""Nested dicts by path, and traversals: which parts of an object to touch.

`flatten_dict`, `unflatten_dict` and `path_aware_map` work on nested
dicts (plain or frozen) by the path of each leaf.

A `Traversal` selects parts of an immutable object: `iterate` gives them,
`update` and `set` return a copy of the object in which they are replaced.
Traversals are composed from the identity by method calls, attributes and
items:

>>> data = [{'foo': 1, 'bar': 2}, {'foo': 3, 'bar': 4}]
>>> foos = t_identity.each()['foo']
>>> list(foos.iterate(data))
[1, 3]
>>> foos.update(lambda x: 10 * x, data)
[{'foo': 10, 'bar': 2}, {'foo': 30, 'bar': 4}]
>>> data[0]
{'foo': 1, 'bar': 2}

See
https://flax.readthedocs.io/en/latest/api_reference/flax.traverse_util.html.
"""

import abc
import copy
import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from haiku_state import struct
from haiku_state.core.frozen_dict import FrozenDict

__all__ = [
  'ModelParamTraversal',
  'Traversal',
  'TraverseAttr',
  'TraverseCompose',
  'TraverseEach',
  'TraverseFilter',
  'TraverseId',
  'TraverseItem',
  'TraverseMerge',
  'TraverseTree',
  'empty_node',
  'flatten_dict',
  'path_aware_map',
  't_identity',
  'unflatten_dict',
]


# A pytree without leaves, so that flat dicts pass through jax.tree.map and jit.
@struct.dataclass
class _EmptyNode:
  pass


empty_node = _EmptyNode()


def flatten_dict(
  xs: Any,
  keep_empty_nodes: bool = False,
  is_leaf: Callable[[tuple[Any, ...], Any], bool] | None = None,
  sep: str | None = None,
) -> dict[Any, Any]:
  """Returns the leaves of a nested dict by their paths.

  Args:
    xs: a nested dict or FrozenDict.
    keep_empty_nodes: whether an empty dict below the top counts as a leaf, in
      whose place `empty_node` stands. If not, it is left out.
    is_leaf: a function of path and dict that says whether the dict is kept
      whole.
    sep: what joins the names of a path to a string. Without it, paths are
      tuples.

  Returns:
    A dict from paths to leaves, in the order of the nested dict.

  Raises:
    AssertionError: not a dict.

  >>> flatten_dict({'a': {'x': 1, 'y': {}}, 'b': 2})
  {('a', 'x'): 1, ('b',): 2}
  >>> flatten_dict({'a': {'x': 1, 'y': {}}}, keep_empty_nodes=True, sep='/')
  {'a/x': 1, 'a/y': _EmptyNode()}
  """
  if not isinstance(xs, (FrozenDict, dict)):
    raise AssertionError(f'expected (frozen)dict; got {type(xs)}')
  return {
    path if sep is None else sep.join(path): leaf
    for path, leaf in _leaves(xs, (), keep_empty_nodes, is_leaf)
  }


def _leaves(
  xs: Any, path: tuple[Any, ...], keep_empty_nodes: bool, is_leaf: Any
) -> Iterator[tuple[tuple[Any, ...], Any]]:
  if not isinstance(xs, (FrozenDict, dict)) or (is_leaf and is_leaf(path, xs)):
    yield path, xs
  elif not xs:
    if keep_empty_nodes and path:
      yield path, empty_node
  else:
    for key, value in xs.items():
      yield from _leaves(value, (*path, key), keep_empty_nodes, is_leaf)


def unflatten_dict(
  xs: dict[Any, Any], sep: str | None = None
) -> dict[Any, Any]:
  """Returns the nested dict of leaves given by their paths.

  Args:
    xs: a dict from paths to leaves; `empty_node` stands for an empty dict.
    sep: what joins the names of a path, if paths are strings.

  Returns:
    A nested dict: `unflatten_dict(flatten_dict(d, True)) == d`.

  Raises:
    AssertionError: not a dict.

  >>> unflatten_dict({'a/x': 1, 'b': 2}, sep='/')
  {'a': {'x': 1}, 'b': 2}
  """
  if not isinstance(xs, dict):
    raise AssertionError(f'input is not a dict; it is a {type(xs)}')
  result: dict[Any, Any] = {}
  for path, value in xs.items():
    *parents, name = path if sep is None else path.split(sep)
    node = result
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = {} if isinstance(value, _EmptyNode) else value
  return result


def path_aware_map(
  f: Callable[[tuple[Any, ...], Any], Any], nested_dict: Any
) -> dict[Any, Any]:
  """Maps a function of path and leaf over a nested dict.

  Args:
    f: a function `(path, leaf)`; the path is a tuple of names.
    nested_dict: a nested dict or FrozenDict.

  Returns:
    A nested dict of the results; empty dicts are kept.

  >>> params = {'a': {'x': 10, 'y': 3}, 'b': {'x': 20}}
  >>> path_aware_map(lambda path, v: v + 5 if 'x' in path else -v, params)
  {'a': {'x': 15, 'y': -3}, 'b': {'x': 25}}
  """
  flat = flatten_dict(nested_dict, keep_empty_nodes=True)
  return unflatten_dict(
    {
      path: leaf if isinstance(leaf, _EmptyNode) else f(path, leaf)
      for path, leaf in flat.items()
    }
  )


class Traversal(abc.ABC):
  """Selects parts of an object; the base class of all traversals.

  Any other attribute than the methods below, and any item, gives a traversal
  that goes on to that attribute or item of what is selected. Traversals are
  values: two of the same class and contents are equal, so that an optimizer
  made anew from equal parts does not make `jax.jit` trace again.

  They are deprecated, as in Flax: `optim.MultiOptimizer` needs them, and new
  programs have optax's `multi_transform`.

  >>> from haiku_state import traverse_util
  >>> kernels = traverse_util.TraverseItem('kernel')
  >>> list(kernels.iterate({'kernel': 3, 'bias': 4}))
  [3]
  >>> kernels.update(lambda x: 2 * x, {'kernel': 3, 'bias': 4})
  {'kernel': 6, 'bias': 4}
  """

  def __new__(cls, *args: Any, **kwargs: Any):
    warnings.warn(
      '`haiku_state.traverse_util.Traversal` will be deprecated, as it is in'
      ' Flax. In place of `optim.MultiOptimizer` use `optax.multi_transform`,'
      ' and in place of `update` use `traverse_util.path_aware_map`.',
      DeprecationWarning,
      stacklevel=2,
    )
    return super().__new__(cls)

  @abc.abstractmethod
  def update(self, fn: Callable[[Any], Any], inputs: Any) -> Any:
    """Returns a copy of an object with a function applied to the parts.

    Args:
      fn: a function of a selected part that returns what replaces it.
      inputs: the object.
    """

  @abc.abstractmethod
  def iterate(self, inputs: Any) -> Iterator[Any]:
    """Returns an iterator over the selected parts of an object."""

  def set(self, values: Any, inputs: Any) -> Any:
    """Returns a copy of an object with the selected parts replaced.

    Args:
      values: as many values as parts are selected, in the order of `iterate`.
      inputs: the object.

    Raises:
      ValueError: too few or too many values.

    >>> t_identity.each().set([3, 4], (1, 2))
    (3, 4)
    """
    values = list(values)

    def next_value(_):
      if not values:
        raise ValueError('Not enough values provided')
      return values.pop(0)

    outputs = self.update(next_value, inputs)
    if values:
      raise ValueError('Too many values provided')
    return outputs

  def compose(self, other: 'Traversal') -> 'Traversal':
    """Selects, of each part selected by this, what `other` selects."""
    return TraverseCompose(self, other)

  def merge(self, *traversals: 'Traversal') -> 'Traversal':
    """Selects, of each part, what any of the traversals selects."""
    return self.compose(TraverseMerge(*traversals))

  def each(self) -> 'Traversal':
    """Selects each item of each part (a list, a tuple or a dict)."""
    return self.compose(TraverseEach())

  def tree(self) -> 'Traversal':
    """Selects each leaf of each part (a pytree)."""
    return self.compose(TraverseTree())

  def filter(self, fn: Callable[[Any], bool]) -> 'Traversal':
    """Selects the parts of which a function is true."""
    return self.compose(TraverseFilter(fn))

  def __getattr__(self, attr: str) -> 'Traversal':
    # copy and pickle ask for special methods, which nobody means to traverse.
    if attr.startswith('__') and attr.endswith('__'):
      raise AttributeError(f'{type(self).__name__} has no attribute {attr}')
    return self.compose(TraverseAttr(attr))

  def __getitem__(self, key: Any) -> 'Traversal':
    return self.compose(TraverseItem(key))

  def __eq__(self, other: Any) -> bool:
    if type(self) is not type(other):
      return NotImplemented
    return vars(self) == vars(other)

  # A key may be a slice, which has no hash on every Python; equal traversals
  # have equal hashes all the same.
  def __hash__(self) -> int:
    return hash((type(self), *vars(self)))


class TraverseId(Traversal):
  """Selects the whole object.

  >>> list(TraverseId().iterate(5))
  [5]
  """

  def update(self, fn, inputs):
    return fn(inputs)

  def iterate(self, inputs):
    yield inputs


with warnings.catch_warnings():
  warnings.simplefilter('ignore', DeprecationWarning)
  t_identity = TraverseId()


class TraverseMerge(Traversal):
  """Selects what any of several traversals selects, in their order.

  >>> ends = TraverseMerge(TraverseItem(0), TraverseItem(2))
  >>> list(ends.iterate([1, 2, 3])), ends.update(lambda x: -x, [1, 2, 3])
  ([1, 3], [-1, 2, -3])
  """

  def __init__(self, *traversals: Traversal):
    self._traversals = traversals

  def update(self, fn, inputs):
    for traversal in self._traversals:
      inputs = traversal.update(fn, inputs)
    return inputs

  def iterate(self, inputs):
    for traversal in self._traversals:
      yield from traversal.iterate(inputs)


class TraverseCompose(Traversal):
  """Selects by one traversal in the parts that another selects.

  >>> inner = TraverseCompose(TraverseItem('a'), TraverseEach())
  >>> inner.update(lambda x: x + 1, {'a': (1, 2)})
  {'a': (2, 3)}
  """

  def __init__(self, x: Traversal, y: Traversal):
    self._x = x
    self._y = y

  def update(self, fn, inputs):
    return self._x.update(lambda part: self._y.update(fn, part), inputs)

  def iterate(self, inputs):
    for part in self._x.iterate(inputs):
      yield from self._y.iterate(part)


class TraverseFilter(Traversal):
  """Selects the whole object if a function of it is true, else nothing.

  >>> positive = t_identity.each().filter(lambda x: x > 0)
  >>> positive.update(lambda x: 2 * x, [-1, 3])
  [-1, 6]
  """

  def __init__(self, fn: Callable[[Any], bool]):
    self._fn = fn

  def update(self, fn, inputs):
    return fn(inputs) if self._fn(inputs) else inputs

  def iterate(self, inputs):
    if self._fn(inputs):
      yield inputs


class TraverseAttr(Traversal):
  """Selects an attribute of an object, NamedTuple or dataclass.

  >>> list(TraverseAttr('imag').iterate(2j))
  [2.0]
  """

  def __init__(self, attr: str):
    self._attr = attr

  def update(self, fn, inputs):
    value = fn(getattr(inputs, self._attr))
    if _is_namedtuple(inputs):
      return inputs._replace(**{self._attr: value})
    if dataclasses.is_dataclass(inputs) and not isinstance(inputs, type):
      return dataclasses.replace(inputs, **{self._attr: value})
    outputs = copy.copy(inputs)
    setattr(outputs, self._attr, value)
    return outputs

  def iterate(self, inputs):
    yield getattr(inputs, self._attr)


class TraverseItem(Traversal):
  """Selects the item of a key or index, or the items of a slice.

  >>> TraverseItem(slice(1, 3)).update(lambda x: -x, (1, 2, 3))
  (1, -2, -3)
  """

  def __init__(self, key: Any):
    self._key = key

  def update(self, fn, inputs):
    if isinstance(inputs, tuple):
      return self._update_tuple(fn, inputs)
    outputs = copy.copy(inputs)
    outputs[self._key] = fn(outputs[self._key])
    return outputs

  def _update_tuple(self, fn, inputs):
    n = len(inputs)
    if isinstance(self._key, slice):
      selected = range(n)[self._key]
    else:
      # A negative index counts from the end; one out of range selects nothing.
      selected = [i for i in range(n) if i - self._key in (0, n)]
    items = [fn(x) if i in selected else x for i, x in enumerate(inputs)]
    ty = type(inputs)
    return ty(*items) if _is_namedtuple(inputs) else ty(items)

  def iterate(self, inputs):
    if isinstance(self._key, slice):
      yield from inputs[self._key]
    else:
      yield inputs[self._key]


def _is_namedtuple(x: Any) -> bool:
  return isinstance(x, tuple) and hasattr(x, '_fields')


class TraverseEach(Traversal):
  """Selects each item of a list or tuple, or each value of a dict.

  >>> TraverseEach().update(str, {'a': 1})
  {'a': '1'}
  """

  def update(self, fn, inputs):
    ty = type(inputs)
    if ty is dict:
      return {key: fn(value) for key, value in inputs.items()}
    if ty not in {list, tuple}:
      raise ValueError('Only the entries of a list or tuple can be traversed.')
    return ty(fn(x) for x in inputs)

  def iterate(self, inputs):
    yield from inputs.values() if isinstance(inputs, dict) else inputs


class TraverseTree(Traversal):
  """Selects each leaf of a pytree.

  >>> TraverseTree().update(lambda x: -x, [1, (2, {'a': 3})])
  [-1, (-2, {'a': -3})]
  """

  def update(self, fn, inputs):
    return jax.tree_util.tree_map(fn, inputs)

  def iterate(self, inputs):
    yield from jax.tree_util.tree_leaves(inputs)


# Under Flax's name, by which programs import it.
def _sorted_items(x: Mapping[Any, Any]) -> list[tuple[Any, Any]]:
  """Returns the items of a dict in the order of their keys."""
  return sorted(x.items(), key=lambda item: item[0])


class ModelParamTraversal(Traversal):
  """Selects leaves of a nested dict of parameters by their names.

  Leaves come in the sorted order of their paths.

  >>> kernels = ModelParamTraversal(lambda path, _: path.endswith('kernel'))
  >>> kernels.update(lambda x: -x, {'dense': {'bias': 1, 'kernel': 2}})
  {'dense': {'bias': 1, 'kernel': -2}}
  """

  def __init__(self, filter_fn: Callable[[str, Any], bool]):
    """Takes the function that selects.

    Args:
      filter_fn: a function of path and leaf that says whether the leaf is
        selected. A path is a string such as `'/module/submodule/kernel'`.
    """
    self._filter_fn = filter_fn

  def iterate(self, inputs):
    for path, leaf in self._sorted_leaves(inputs):
      if self._selects(path, leaf):
        yield leaf

  def update(self, fn, inputs):
    outputs = unflatten_dict(
      {
        path: fn(leaf) if self._selects(path, leaf) else leaf
        for path, leaf in self._sorted_leaves(inputs)
      }
    )
    return FrozenDict(outputs) if isinstance(inputs, FrozenDict) else outputs

  def _sorted_leaves(self, inputs):
    if not isinstance(inputs, (dict, FrozenDict)):
      raise ValueError(
        'Can only traverse a flax Model instance or a nested dict, not '
        f'{type(inputs)}'
      )
    flat = flatten_dict(inputs, keep_empty_nodes=True)
    return _sorted_items(flat)

  def _selects(self, path, leaf):
    # An empty dict is kept in its place, and is no parameter.
    if isinstance(leaf, _EmptyNode):
      return False
    return self._filter_fn('/' + '/'.join(path), leaf)
