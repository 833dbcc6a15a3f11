"""Trees of this package, and of yours, in programs that `jax.export` saves.

`jax.export` saves a function together with the structure of its arguments and
results, so it must know how to save each type of node in them. It knows those
of this package: FrozenDict, boxes such as `Partitioned`, `TrainState`, and the
optimizers of `haiku_state.optim` with their states. `register` adds others.

>>> import jax, jax.numpy as jnp
>>> import haiku_state.linen as nn
>>> x = jnp.ones((1, 3))
>>> variables = nn.Dense(2).init(jax.random.key(0), x)
>>> saved = jax.export.export(jax.jit(nn.Dense(2).apply))(variables, x)
>>> saved = jax.export.deserialize(saved.serialize())
>>> bool((saved.call(variables, x) == nn.Dense(2).apply(variables, x)).all())
True
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from haiku_state._versions import saved_programs, too_old

# The class that a saved name stands for, and the name of each class. A class
# that is defined again, as in a notebook, takes the place of the one before.
_classes: dict[str, type] = {}
_names: dict[type, str] = {}

# Types that JAX saves itself.
_KNOWN = (dict, list, tuple, type(None))


def register(*what: Any) -> None:
  """Makes types of tree nodes ones that `jax.export` can save and load.

  Call it before `serialize` and, in the program that loads, before
  `deserialize`. A type that is registered already, by whomever, stays as it is.

  What is static in a node (a field with `pytree_node=False`) is compiled into
  the saved program, which is called with trees of equal static parts. Data are
  saved and compared: None, numbers, strings, dtypes, `PartitionSpec`s, and
  tuples, lists and dicts of them. Of functions and other objects only a
  description is saved, by which an equal one is told from another; in a result
  of the saved program a `NotSaved` stands in their place.

  >>> import jax, jax.numpy as jnp, optax
  >>> from haiku_state import struct
  >>> @struct.dataclass
  ... class State:
  ...   params: dict
  ...   opt_state: tuple
  ...   power: int = struct.field(pytree_node=False, default=2)
  >>> params = {'w': jnp.ones(2)}
  >>> state = State(params, optax.adam(0.1).init(params))
  >>> register(state)  # `State`, and the types of optax's states.
  >>> @jax.jit
  ... def step(state):
  ...   return state.replace(params={'w': state.params['w'] ** state.power})
  >>> saved = jax.export.export(step)(state).serialize()
  >>> jax.export.deserialize(saved).call(state).power
  2

  Args:
    *what: classes, and trees whose types of nodes are meant.

  Raises:
    TypeError: a class is no pytree node.
    NotImplementedError: the installed jax cannot save other types than its own.
  """
  if saved_programs is None:
    raise too_old('A program that takes or returns types of yours', '0.4.36')
  for x in what:
    classes = (x,) if isinstance(x, type) else _types_in(jax.tree.structure(x))
    for cls in classes:
      if cls not in _names and cls not in _KNOWN:
        _register_class(cls)


def register_own(cls: type) -> None:
  """Registers a class of this package, if jax can save such a type."""
  if saved_programs is not None:
    register(cls)


def _types_in(structure: Any) -> Iterator[type]:
  data = structure.node_data()
  if data is not None:
    yield data[0]
  for child in structure.children():
    yield from _types_in(child)


def _register_class(cls: type) -> None:
  name = base = _full_name(cls)
  count = 1
  while name in _classes:
    count += 1
    name = f'{base}#{count}'
  try:
    if _is_named_tuple(cls):
      saved_programs.register_namedtuple_serialization(
        cls, serialized_name=name
      )
    else:
      saved_programs.register_pytree_node_serialization(
        cls,
        serialized_name=name,
        serialize_auxdata=_save,
        deserialize_auxdata=_load,
        from_children=_maker(cls, base),
      )
  except ValueError as e:
    if 'Duplicate' not in str(e) and 'already' not in str(e):
      raise TypeError(
        f'{base} is no pytree node: make it one by `struct.dataclass` or'
        f' `jax.tree_util.register_pytree_node_class`. ({e})'
      ) from e
  _names[cls] = name
  _classes[name] = _classes[base] = cls


def _maker(cls: type, name: str) -> Any:
  """Returns what makes a node of a dataclass of its static parts and children.

  None where JAX's own way, which is that of the class itself, will do.
  """
  if not dataclasses.is_dataclass(cls):
    return None

  def make(static, children):
    # Of the class that has the name now: its trees will be passed in.
    example = _classes[name]
    fields = dataclasses.fields(example)
    is_child = [f.metadata.get('pytree_node', True) for f in fields]
    parts = {True: iter(children), False: iter(static)}
    values = {f.name: next(parts[c]) for f, c in zip(fields, is_child)}
    return example(**values)

  return make


# --- What is static ----------------------------------------------------------


class NotSaved:
  """Stands for a static part of a tree that was not saved, a function say.

  It equals what it stands for, as far as names and types can tell. To go on
  with a result that holds one, put the original in its place:
  `state.replace(apply_fn=model.apply)`.
  """

  def __init__(self, description: Any):
    self._description = description

  def __eq__(self, other: Any) -> bool:
    if isinstance(other, NotSaved):
      return self._description == other._description
    return self._description == _describe(other)

  def __hash__(self) -> int:
    return hash(json.dumps(self._description))

  def __repr__(self) -> str:
    return f'NotSaved({json.dumps(self._description)})'

  def __call__(self, *args: Any, **kwargs: Any) -> Any:
    raise TypeError(self._lesson())

  def __getattr__(self, name: str) -> Any:
    if name.startswith('__'):
      raise AttributeError(name)
    raise AttributeError(self._lesson())

  def _lesson(self) -> str:
    return (
      f'{self} is a static part of a result of a program that jax.export saved:'
      ' functions and objects are not saved. Put the original in its place, for'
      ' example `state.replace(apply_fn=model.apply)`.'
    )


def _save(static: Any) -> bytes:
  return json.dumps(_describe(static)).encode()


def _load(text: bytes | bytearray) -> Any:
  return _restored(json.loads(bytes(text)))


def _describe(x: Any) -> Any:
  """Returns a value as JSON: data as they are, of others what is known."""
  if x is None or type(x) in (bool, int, float, str):
    return x
  if isinstance(x, NotSaved):
    return x._description
  if type(x) in (tuple, list):
    return [type(x).__name__, *map(_describe, x)]
  if type(x) is dict:
    return ['dict', *([_describe(k), _describe(v)] for k, v in x.items())]
  if isinstance(x, jax.sharding.PartitionSpec):
    return ['PartitionSpec', *map(_describe, x)]
  if isinstance(x, np.generic):
    return ['scalar', x.dtype.name, _describe(x.item())]
  if isinstance(x, np.dtype):
    return ['dtype', x.name]
  if isinstance(x, type) and _is_scalar_type(x):
    return ['scalar type', np.dtype(x).name]
  if isinstance(x, functools.partial):
    return ['partial', *map(_describe, (x.func, x.args, x.keywords))]
  if _is_named_tuple(type(x)):
    values = (_describe(getattr(x, name)) for name in x._fields)
    return ['object', _full_name(type(x)), *values]
  if dataclasses.is_dataclass(type(x)) and _is_frozen(x):
    values = (_describe(getattr(x, f.name)) for f in dataclasses.fields(x))
    return ['object', _full_name(type(x)), *values]
  if hasattr(x, '__qualname__'):
    return ['name', _full_name(x)]
  return ['object', _full_name(type(x))]


def _restored(saved: Any) -> Any:
  """Returns what `_describe` was given, as far as it was data."""
  if not isinstance(saved, list):
    return saved
  kind, *parts = saved
  if kind == 'tuple':
    return tuple(map(_restored, parts))
  if kind == 'list':
    return list(map(_restored, parts))
  if kind == 'dict':
    return {_restored(key): _restored(value) for key, value in parts}
  if kind == 'PartitionSpec':
    return jax.sharding.PartitionSpec(*map(_restored, parts))
  if kind == 'scalar':
    return jnp.dtype(parts[0]).type(_restored(parts[1]))
  if kind == 'dtype':
    return jnp.dtype(parts[0])
  if kind == 'scalar type':
    return jnp.dtype(parts[0]).type
  return NotSaved(saved)


def _is_named_tuple(cls: type) -> bool:
  return issubclass(cls, tuple) and hasattr(cls, '_fields')


def _is_scalar_type(cls: type) -> bool:
  """Returns whether a class is a type of numbers of NumPy's or JAX's."""
  dtype = getattr(cls, 'dtype', None)
  return issubclass(cls, np.generic) or isinstance(dtype, np.dtype)


def _is_frozen(x: Any) -> bool:
  return x.__dataclass_params__.frozen


def _full_name(x: Any) -> str:
  return f'{x.__module__}.{x.__qualname__}'
