"""FrozenDict, an immutable nested dict, and functions for it and for dict.

Below its top level a FrozenDict stores plain dicts and wraps one when it is
taken out. So JAX flattens all but the top level by its own code for dicts, and
no operation but construction, `unfreeze` and pickling copies the levels below.
"""

import collections.abc
from collections.abc import (
  Hashable,
  Iterable,
  Iterator,
  KeysView,
  Mapping,
  ValuesView,
)
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar, overload

import jax

from haiku_state import export, serialization

K = TypeVar('K')
V = TypeVar('V')
_W = TypeVar('_W')
_AnyDict = TypeVar('_AnyDict', bound='FrozenDict[Any, Any] | dict[Any, Any]')


class FrozenKeysView(collections.abc.KeysView):
  """Shows the keys of a FrozenDict, and prints as a list of them."""

  def __repr__(self):
    return f'frozen_dict_keys({list(self)})'


class FrozenValuesView(collections.abc.ValuesView):
  """Shows the values of a FrozenDict, and prints as a list of them."""

  def __repr__(self):
    return f'frozen_dict_values({list(self)})'


class FrozenDict(Mapping[K, V]):
  """An immutable dict, whose dicts are immutable too.

  It is a pytree whose keys are sorted, like a dict, but of another type: trees
  of the two do not match each other. It equals a dict of equal entries.

  Args:
    *args: what `dict` takes: a mapping, or pairs. Dicts in it are copied.
    __unsafe_skip_copy__: whether to take nested dicts as they are. They must
      be plain dicts that nobody changes.
    **kwargs: further entries.

  Example:
    >>> from haiku_state.core.frozen_dict import FrozenDict
    >>> variables = FrozenDict({'params': {'w': 1}, 'batch_stats': {'n': 2}})
    >>> state, params = variables.pop('params')
    >>> params
    FrozenDict({
        w: 1,
    })
    >>> state == {'batch_stats': {'n': 2}}
    True
    >>> variables['params'] = {}
    Traceback (most recent call last):
    ValueError: FrozenDict is immutable.
  """

  __slots__ = ('_dict', '_hash')
  _dict: dict[Any, Any]
  _hash: int | None

  @overload
  def __init__(self) -> None: ...

  @overload
  def __init__(
    self, entries: Mapping[K, V], /, *, __unsafe_skip_copy__: bool = False
  ) -> None: ...

  @overload
  def __init__(self, entries: Iterable[tuple[K, V]], /) -> None: ...

  @overload
  def __init__(self: 'FrozenDict[str, _W]', **kwargs: _W) -> None: ...

  @overload
  def __init__(self, *args: Any, **kwargs: Any) -> None: ...

  def __init__(
    self, *args: Any, __unsafe_skip_copy__: Any = False, **kwargs: Any
  ):
    entries = dict(*args, **kwargs)
    self._dict = entries if __unsafe_skip_copy__ else _thawed_copy(entries)
    self._hash = None

  def __getitem__(self, key: K) -> V:
    value = self._dict[key]
    return _wrap(FrozenDict, value) if isinstance(value, dict) else value

  if not TYPE_CHECKING:  # They are to report that there is none.

    def __setitem__(self, key, value):
      raise ValueError('FrozenDict is immutable.')

  def __contains__(self, key: object) -> bool:
    return key in self._dict

  def __iter__(self) -> Iterator[K]:
    return iter(self._dict)

  def __len__(self) -> int:
    return len(self._dict)

  def __eq__(self, other: object) -> bool:
    if isinstance(other, FrozenDict):
      return self._dict == other._dict
    if isinstance(other, dict):
      return self._dict == other
    if isinstance(other, Mapping):
      return self._dict == dict(other.items())
    return NotImplemented

  def __hash__(self) -> int:
    if self._hash is None:
      self._hash = hash(frozenset(self.items()))
    return self._hash

  def __repr__(self) -> str:
    return self.pretty_repr()

  def __reduce__(self) -> tuple[Any, ...]:
    return type(self), (self.unfreeze(),)

  def __treescope_repr__(self, path: str | None, subtree_renderer: Any) -> Any:
    # Treescope calls it, so it is there.
    from treescope import repr_lib

    return repr_lib.render_dictionary_wrapper(
      object_type=type(self),
      wrapped_dict=self._dict,
      path=path,
      subtree_renderer=subtree_renderer,
      roundtrippable=True,
    )

  def get(self, key: K, default: Any = None) -> Any:
    """Returns the value of a key, or a default if there is none."""
    return self[key] if key in self._dict else default

  def keys(self) -> KeysView[K]:
    """Returns a view of the keys."""
    return FrozenKeysView(self)

  def values(self) -> ValuesView[V]:
    """Returns a view of the values, dicts among them as FrozenDicts."""
    return FrozenValuesView(self)

  def items(self) -> Iterator[tuple[K, V]]:  # type: ignore[override]
    """Yields pairs of key and value, dicts as FrozenDicts."""
    for key in self._dict:
      yield key, self[key]

  def copy(
    self, add_or_replace: Mapping[K, V] = MappingProxyType({})
  ) -> 'FrozenDict[K, V]':
    """Returns a FrozenDict with further or replaced entries.

    Args:
      add_or_replace: the entries; a value replaces the whole value of its key.

    Returns:
      A new FrozenDict.

    Example:
      >>> from haiku_state.core.frozen_dict import FrozenDict
      >>> FrozenDict(a=1, b=2).copy({'b': 3}) == {'a': 1, 'b': 3}
      True
    """
    added = _thawed_copy(dict(add_or_replace))
    return _wrap(type(self), {**self._dict, **added})

  def pop(self, key: K) -> tuple['FrozenDict[K, V]', V]:
    """Returns a FrozenDict without a key, and the key's value.

    Args:
      key: the key to leave out.

    Returns:
      The rest and the value, in this order.

    Raises:
      KeyError: there is no such key.

    Example:
      >>> from haiku_state.core.frozen_dict import FrozenDict
      >>> rest, value = FrozenDict(a=1, b=2).pop('b')
      >>> value, list(rest)
      (2, ['a'])
    """
    value = self[key]
    rest = dict(self._dict)
    del rest[key]
    return _wrap(type(self), rest), value

  def unfreeze(self) -> dict[K, V]:
    """Returns a nested dict of its own with the same entries."""
    return unfreeze(self)

  def pretty_repr(self, num_spaces: int = 4) -> str:
    """Returns the entries as text, a line each, nested ones indented.

    Args:
      num_spaces: how far a level is indented.

    Returns:
      The text.
    """
    return f'FrozenDict({_pretty(self._dict, num_spaces)})'

  def tree_flatten_with_keys(self) -> tuple[tuple[Any, ...], Hashable]:
    """Returns pairs of JAX key and child, and the sorted keys."""
    entries = self._dict
    keys = tuple(sorted(entries))
    key_of = jax.tree_util.DictKey
    return tuple([(key_of(key), entries[key]) for key in keys]), keys

  def tree_flatten(self) -> tuple[tuple[Any, ...], Hashable]:
    """Returns the children, dicts as they are, and the sorted keys."""
    keys = tuple(sorted(self._dict))
    return tuple(map(self._dict.__getitem__, keys)), keys

  @classmethod
  def tree_unflatten(
    cls, keys: Any, values: Iterable[Any]
  ) -> 'FrozenDict[Any, Any]':
    """Makes a FrozenDict of the keys and children of a flattened one."""
    # JAX has just made the dicts among the children, so none is copied.
    return _wrap(cls, dict(zip(keys, values)))


def _wrap(cls, entries) -> Any:
  """Makes a FrozenDict that holds, not copies, a dict of plain dicts."""
  frozen = object.__new__(cls)
  frozen._dict = entries
  frozen._hash = None
  return frozen


def _thawed_copy(xs):
  """Copies nested dicts, and takes what a FrozenDict holds as it is."""
  if isinstance(xs, FrozenDict):
    return xs._dict
  if isinstance(xs, dict):
    return {key: _thawed_copy(value) for key, value in xs.items()}
  return xs


def _pretty(x, num_spaces):
  if not isinstance(x, dict):
    return repr(x)
  if not x:
    return '{}'
  lines = [f'{key}: {_pretty(value, num_spaces)},' for key, value in x.items()]
  margin = '\n' + ' ' * num_spaces
  return '{' + margin + '\n'.join(lines).replace('\n', margin) + '\n}'


def freeze(xs: Mapping[K, V]) -> FrozenDict[K, V]:
  """Returns a FrozenDict with the entries of a nested dict.

  Args:
    xs: the dict. It is copied down to its leaves.

  Returns:
    The FrozenDict.

  Example:
    >>> from haiku_state.core.frozen_dict import freeze
    >>> freeze({'a': {'b': 1}})['a']['b']
    1
  """
  return FrozenDict(xs)


def unfreeze(x: FrozenDict[Any, Any] | dict[Any, Any]) -> dict[Any, Any]:
  """Returns a nested dict with the entries of a FrozenDict.

  Args:
    x: the FrozenDict, or a dict that may hold some.

  Returns:
    A nested dict which shares no dict with `x`, so that it may be changed.
    Anything else than a dict or FrozenDict is returned as it is.

  Example:
    >>> from haiku_state.core.frozen_dict import FrozenDict, unfreeze
    >>> unfreeze({'a': FrozenDict({'b': 1})})
    {'a': {'b': 1}}
  """
  if isinstance(x, FrozenDict):
    # Copies the containers between the dicts as well, lists among them, and
    # is the fastest way through JAX's own code for dicts.
    return jax.tree_util.tree_map(lambda leaf: leaf, x._dict)
  if isinstance(x, dict):
    return {key: unfreeze(value) for key, value in x.items()}
  return x


def copy(
  x: _AnyDict,
  add_or_replace: FrozenDict[Any, Any] | dict[Any, Any] = FrozenDict({}),
) -> _AnyDict:
  """Returns a dict or FrozenDict with further or replaced entries.

  Args:
    x: the dict or FrozenDict, which is not changed.
    add_or_replace: the entries.

  Returns:
    A new one of the same kind.

  Raises:
    TypeError: `x` is neither.

  Example:
    >>> from haiku_state.core.frozen_dict import copy
    >>> copy({'a': 1, 'b': 2}, {'b': 3})
    {'a': 1, 'b': 3}
  """
  if isinstance(x, FrozenDict):
    return x.copy(add_or_replace)  # type: ignore[return-value]
  new = _copy_of_dict(x)
  new.update(add_or_replace)
  return new


def pop(x: _AnyDict, key: Hashable) -> tuple[_AnyDict, Any]:
  """Returns a dict or FrozenDict without a key, and the key's value.

  Args:
    x: the dict or FrozenDict, which is not changed.
    key: the key to leave out.

  Returns:
    The rest, of the same kind, and the value.

  Raises:
    KeyError: there is no such key.
    TypeError: `x` is neither.

  Example:
    >>> from haiku_state.core.frozen_dict import pop
    >>> pop({'params': 1, 'batch_stats': 2}, 'params')
    ({'batch_stats': 2}, 1)
  """
  if isinstance(x, FrozenDict):
    return x.pop(key)  # type: ignore[return-value]
  new = _copy_of_dict(x)
  value = new.pop(key)
  return new, value


def _copy_of_dict(x):
  if not isinstance(x, dict):
    raise TypeError(f'Expected FrozenDict or dict, got {type(x)}')
  return jax.tree_util.tree_map(lambda leaf: leaf, x)


def pretty_repr(x: Any, num_spaces: int = 4) -> str:
  """Returns a dict or FrozenDict as text, nested entries indented.

  Args:
    x: the dict or FrozenDict; anything else gives its `repr`.
    num_spaces: how far a level is indented.

  Returns:
    The text.

  Example:
    >>> from haiku_state.core.frozen_dict import pretty_repr
    >>> print(pretty_repr({'a': {'b': 1}}, num_spaces=2))
    {
      a: {
        b: 1,
      },
    }
  """
  if isinstance(x, FrozenDict):
    return x.pretty_repr(num_spaces)
  return _pretty(x, num_spaces)


def _from_state_dict(target, state):
  return FrozenDict(serialization._dict_from_state_dict(target, state))


jax.tree_util.register_pytree_with_keys(
  FrozenDict,
  FrozenDict.tree_flatten_with_keys,
  FrozenDict.tree_unflatten,
  FrozenDict.tree_flatten,
)
serialization.register_serialization_state(
  FrozenDict, serialization._dict_to_state_dict, _from_state_dict
)
export.register_own(FrozenDict)
