"""State dicts and bytes: how objects are written down and read back.

An object becomes a *state dict*, a nested dict with string keys whose leaves
are arrays and Python scalars, by the functions registered for its type. A
state dict becomes bytes in MessagePack, in Flax's own format, so that files
are exchanged with Flax in both directions.

A state dict holds no classes and no code. What is read back takes its
structure from a *target*, an object of the kind that was saved, so bytes of
unknown origin can give wrong values or a `ValueError`, never more.

`to_state_dict` and `from_state_dict` need nothing but JAX. The functions
that make or read bytes need MessagePack:
`pip install '.[serialization]'`.

See https://flax.readthedocs.io/en/latest/api_reference/flax.serialization.html
and https://github.com/msgpack/msgpack/blob/master/spec.md.
"""

import enum
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from haiku_state._extents import Extent, Extents
from haiku_state._plain_arrays import check_content, short

__all__ = [
  'MAX_CHUNK_SIZE',
  'current_path',
  'from_bytes',
  'from_state_dict',
  'is_serializable',
  'msgpack_restore',
  'msgpack_serialize',
  'register_serialization_state',
  'to_bytes',
  'to_state_dict',
]

# One MessagePack object holds less than 2**31 bytes. Arrays above half of that
# are written in pieces, which leaves room for what surrounds them. It is read
# at every call, so that a program (or a test) may set it.
MAX_CHUNK_SIZE = 2**30


# The two functions of a type: `to_state_dict(target)`, and
# `from_state_dict(target, state)`.
_Handler = tuple[Callable[[Any], Any], Callable[[Any, Any], Any]]

# Programs look into it, and change it, under this name of Flax's.
_STATE_DICT_REGISTRY: dict[Any, _Handler] = {}


class _AnyNamedTuple:
  """Stands for every NamedTuple class in the registry."""


class _Path(Extent):
  """Where in the state dict a thread reads just now."""

  __slots__ = ('names',)

  def __init__(self, *names: str):
    self.names = names


_path = Extents(_Path)


def current_path() -> str:
  """Returns the path that is being restored, for messages of errors.

  Returns:
    The names from the root, joined by `/`, beginning with the name given to
    the outermost `from_state_dict` (`.` by default); `''` when nothing is
    being restored.

  >>> current_path()
  ''
  """
  return '/'.join(_path.current().names)


def register_serialization_state(
  ty: Any,
  ty_to_state_dict: Callable[[Any], Any],
  ty_from_state_dict: Callable[[Any, Any], Any],
  override: bool = False,
) -> None:
  """Registers how objects of a type are written and read.

  Only objects of exactly this type are meant, not those of subclasses.

  Args:
    ty: the type.
    ty_to_state_dict: a function of an object that returns its state dict.
    ty_from_state_dict: a function `(target, state)` that returns a copy of
      the target which has the given state.
    override: whether functions registered before are replaced.

  Raises:
    ValueError: the type is registered already and `override` is False.

  >>> class Meter:
  ...   def __init__(self, total):
  ...     self.total = total
  >>> register_serialization_state(
  ...   Meter,
  ...   lambda meter: {'total': meter.total},
  ...   lambda meter, state: Meter(state['total']),
  ... )
  >>> to_state_dict([Meter(3)])
  {'0': {'total': 3}}
  """
  if ty in _STATE_DICT_REGISTRY and not override:
    raise ValueError(
      f'a serialization handler for "{ty.__name__}" is already registered'
    )
  _STATE_DICT_REGISTRY[ty] = (ty_to_state_dict, ty_from_state_dict)


def is_serializable(target: Any) -> bool:
  """Says whether a type, or the type of an object, is registered.

  Args:
    target: a type or an object.

  Returns:
    True if it is registered. False also for arrays and scalars, which are
    leaves of a state dict and need no functions.

  >>> is_serializable({'a': 1}), is_serializable(list), is_serializable(1)
  (True, True, False)
  """
  return (
    target if isinstance(target, type) else type(target)
  ) in _STATE_DICT_REGISTRY


def to_state_dict(target: Any) -> Any:
  """Returns the state dict of an object.

  Args:
    target: any object. Dicts, lists, tuples, NamedTuples, FrozenDicts, the
      classes of `haiku_state.struct` and every registered type become dicts
      with string keys; anything else is a leaf and is returned as it is.

  Returns:
    A nested dict with string keys, or the leaf.

  Raises:
    ValueError: two keys of a dict are the same string.
    AssertionError: a registered function gave a dict with other keys than
      strings.

  >>> to_state_dict({'layers': [{'bias': 0.0}, {'bias': 1.0}]})
  {'layers': {'0': {'bias': 0.0}, '1': {'bias': 1.0}}}
  """
  handler = _handler_of(target)
  if handler is None:
    return target
  state_dict = handler[0](target)
  if isinstance(state_dict, dict) and not all(
    isinstance(key, str) for key in state_dict
  ):
    raise AssertionError('A state dict must only have string keys.')
  return state_dict


def from_state_dict(target: Any, state: Any, name: str = '.') -> Any:
  """Returns a copy of a target that has the values of a state dict.

  Args:
    target: an object with the structure of the result. The values of its
      leaves are not used; neither are their shapes, which are not checked.
    state: a state dict as `to_state_dict` returns it.
    name: the name of the target in the paths of error messages.

  Returns:
    An object with the target's structure and the state's leaves. If the type
    of the target is not registered, it is the state itself.

  Raises:
    ValueError: the names or sizes of state and target differ.

  >>> from_state_dict((1, {'a': 2}), {'0': 10, '1': {'a': 20}})
  (10, {'a': 20})
  """
  handler = _handler_of(target)
  if handler is None:
    return state
  with _path.begin(_Path(*_path.current().names, name)):
    return handler[1](target, state)


def _handler_of(target: Any) -> _Handler | None:
  return _STATE_DICT_REGISTRY.get(
    _AnyNamedTuple if _is_namedtuple(target) else type(target)
  )


def _is_namedtuple(x: Any) -> bool:
  return isinstance(x, tuple) and hasattr(x, '_fields')


# Containers


def _check_is_mapping(state: Any, kind: str) -> None:
  """Raises ValueError unless a state is a mapping (a dict, a FrozenDict)."""
  if not isinstance(state, Mapping):
    raise ValueError(
      f'Expected a dict as the state of {kind}, got {type(state).__name__} at'
      f' path {current_path()}'
    )


def _dict_to_state_dict(xs: dict[Any, Any]) -> dict[str, Any]:
  str_keys = {str(key) for key in xs}
  if len(str_keys) != len(xs):
    raise ValueError(
      'Dict keys do not have a unique string representation: '
      f'{str_keys} vs given: {xs}'
    )
  return {str(key): to_state_dict(value) for key, value in xs.items()}


def _dict_from_state_dict(xs: dict[Any, Any], states: Any) -> dict[Any, Any]:
  _check_is_mapping(states, 'a dict')
  missing = {str(key) for key in xs}.difference(states.keys())
  if missing:
    raise ValueError(
      'The target dict keys and state dict keys do not match, target dict'
      f' contains keys {missing} which are not present in state dict at path'
      f' {current_path()}'
    )
  return {
    key: from_state_dict(value, states[str(key)], name=str(key))
    for key, value in xs.items()
  }


def _list_to_state_dict(xs: list[Any] | tuple[Any, ...]) -> dict[str, Any]:
  return {str(i): to_state_dict(x) for i, x in enumerate(xs)}


def _list_from_state_dict(
  xs: list[Any] | tuple[Any, ...], states: Any
) -> list[Any]:
  _check_is_mapping(states, f'a {type(xs).__name__}')
  if len(states) != len(xs):
    raise ValueError(
      'The size of the list and the state dict do not match,'
      f' got {len(xs)} and {len(states)} '
      f'at path {current_path()}'
    )
  missing = [str(i) for i in range(len(xs)) if str(i) not in states]
  if missing:
    raise ValueError(
      f'The state of a {type(xs).__name__} has the names "0", "1", ..., but'
      f' {", ".join(missing)} is missing and'
      f' {", ".join(map(str, states))} is present at path {current_path()}'
    )
  return [
    from_state_dict(x, states[str(i)], name=str(i)) for i, x in enumerate(xs)
  ]


def _tuple_from_state_dict(xs: tuple[Any, ...], states: Any) -> tuple[Any, ...]:
  return tuple(_list_from_state_dict(xs, states))


def _namedtuple_to_state_dict(xs: Any) -> dict[str, Any]:
  return {name: to_state_dict(getattr(xs, name)) for name in xs._fields}


def _namedtuple_from_state_dict(xs: Any, states: Any) -> Any:
  _check_is_mapping(states, f'the NamedTuple {type(xs).__name__}')
  if set(states.keys()) == {'name', 'fields', 'values'}:
    states = _from_oldest_namedtuple(states)
  state_names, names = set(states.keys()), set(xs._fields)
  if state_names != names:
    raise ValueError(
      'The field names of the state dict and the named tuple do not match,'
      f' got {state_names} and {names} at path {current_path()}'
    )
  return type(xs)(
    **{
      name: from_state_dict(getattr(xs, name), value, name=name)
      for name, value in states.items()
    }
  )


def _from_oldest_namedtuple(states: Any) -> dict[str, Any]:
  """Files of Flax before 2022 name the fields and number the values."""
  fields, values = states['fields'], states['values']
  _check_is_mapping(fields, 'the field names of a NamedTuple')
  _check_is_mapping(values, 'the values of a NamedTuple')
  if fields.keys() != values.keys():
    raise ValueError(
      f'A NamedTuple with fields numbered {sorted(map(str, fields))} and values'
      f' numbered {sorted(map(str, values))} at path {current_path()}'
    )
  return {str(fields[i]): values[i] for i in fields}


def _partial_to_state_dict(x: Any) -> dict[str, Any]:
  return {
    'args': to_state_dict(x.args),
    'keywords': to_state_dict(x.keywords),
  }


def _partial_from_state_dict(x: Any, states: Any) -> Any:
  _check_is_mapping(states, 'a Partial')
  missing = {'args', 'keywords'}.difference(states.keys())
  if missing:
    raise ValueError(
      f'The state of a Partial has no {" and no ".join(sorted(missing))} at'
      f' path {current_path()}'
    )
  return jax.tree_util.Partial(
    x.func,
    *from_state_dict(x.args, states['args'], name='args'),
    **from_state_dict(x.keywords, states['keywords'], name='keywords'),
  )


register_serialization_state(dict, _dict_to_state_dict, _dict_from_state_dict)
register_serialization_state(list, _list_to_state_dict, _list_from_state_dict)
register_serialization_state(tuple, _list_to_state_dict, _tuple_from_state_dict)
register_serialization_state(
  _AnyNamedTuple, _namedtuple_to_state_dict, _namedtuple_from_state_dict
)
register_serialization_state(
  jax.tree_util.Partial, _partial_to_state_dict, _partial_from_state_dict
)


# Bytes


class _MalformedBytesError(ValueError):
  """The bytes are not what `to_bytes` writes: cut off, damaged, or hostile."""

  def __init__(self, message: str):
    ValueError.__init__(self, message)

  def __str__(self) -> str:
    return self.args[0]


def _malformed(kind: type[Exception], message: str) -> _MalformedBytesError:
  """Returns an error that is also of MessagePack's kind, if it has one.

  Programs catch `msgpack.exceptions.ExtraData`, say, as Flax raises it.
  """
  if kind.__module__.split('.')[0] != 'msgpack':
    return _MalformedBytesError(message)
  body = {'__reduce__': lambda self: (_malformed, (kind, message))}
  return type(kind.__name__, (_MalformedBytesError, kind), body)(message)


def to_bytes(target: Any) -> bytes:
  """Writes the state dict of an object as MessagePack bytes.

  Args:
    target: any object whose state dict has arrays, numbers, strings, bytes,
      bools and None as leaves. An array must lie wholly on this host.

  Returns:
    The bytes, the same as Flax writes.

  Raises:
    ImportError: MessagePack is not installed.
    TypeError: a leaf is of a type that cannot be written; a typed PRNG key,
      for instance, of which `jax.random.key_data` can.
    ValueError: an array of objects, or of structured or raw (void) dtype, or
      something else that would not come back as it is. An array of another
      order of bytes comes back in the order of the machine.

  >>> import numpy as np
  >>> from_bytes({'a': None}, to_bytes({'a': np.arange(3)}))
  {'a': array([0, 1, 2])}
  """
  return msgpack_serialize(to_state_dict(target), in_place=True)


def from_bytes(target: Any, encoded_bytes: bytes) -> Any:
  """Returns a copy of a target that has the values of saved bytes.

  >>> import numpy as np
  >>> from haiku_state import serialization
  >>> data = serialization.to_bytes({'w': np.ones(2)})
  >>> serialization.from_bytes({'w': np.zeros(2)}, data)
  {'w': array([1., 1.])}

  Args:
    target: an object with the structure of the one that was saved.
    encoded_bytes: what `to_bytes` returned, here or in Flax.

  Returns:
    An object with the target's structure and the saved leaves, as (read-only)
    NumPy arrays.

  Raises:
    ImportError: MessagePack is not installed.
    ValueError: the bytes are malformed, or the names or sizes differ from the
      target's.
  """
  return from_state_dict(target, msgpack_restore(encoded_bytes))


def msgpack_serialize(pytree: Any, in_place: bool = False) -> bytes:
  """Writes a tree of dicts, lists and leaves as MessagePack bytes.

  Arrays above `MAX_CHUNK_SIZE` bytes are written in pieces, where they are
  values of dicts. Objects of other types are written by `to_bytes`.

  Args:
    pytree: dicts, lists, arrays, numbers, strings, bytes, bools and None.
    in_place: whether arrays may be replaced in the given dicts, which saves a
      copy of the dicts. If not, keys are written in sorted order.

  Returns:
    The bytes, the same as Flax writes.

  Raises:
    ImportError: MessagePack is not installed.
    TypeError: a leaf is of a type that cannot be written.
    ValueError: an array of objects, or of structured or raw (void) dtype, or
      something else that would not come back as it is. An array of another
      order of bytes comes back in the order of the machine.

  >>> msgpack_restore(msgpack_serialize({'a': [1, 2j, 'x']}))
  {'a': [1, 2j, 'x']}
  """
  msgpack = _import_msgpack()
  if not in_place:
    pytree = jax.tree.map(lambda x: x, pytree)
  pytree = _to_numpy_in_place(pytree)
  _check_writable(pytree, ())
  pytree = _chunk_array_leaves_in_place(pytree)
  return msgpack.packb(pytree, default=_ext_pack, strict_types=True)


def msgpack_restore(encoded_pytree: bytes) -> Any:
  """Reads a tree of dicts, lists and leaves from MessagePack bytes.

  >>> import numpy as np
  >>> from haiku_state import serialization
  >>> data = serialization.msgpack_serialize({'w': np.ones(2)})
  >>> serialization.msgpack_restore(data)
  {'w': array([1., 1.])}

  Args:
    encoded_pytree: what `msgpack_serialize` or `to_bytes` returned, here
      or in Flax.

  Returns:
    The tree, with (read-only) NumPy arrays.

  Raises:
    ImportError: MessagePack is not installed.
    TypeError: not bytes.
    MemoryError: there is not enough memory.
    ValueError: the bytes are cut off, damaged or of another format.
  """
  msgpack = _import_msgpack()
  size = memoryview(encoded_pytree).nbytes
  try:
    tree = msgpack.unpackb(
      encoded_pytree,
      ext_hook=_ext_unpack,
      object_pairs_hook=_dict_of_pairs,
      raw=False,
      strict_map_key=False,
    )
    return _unchunk_array_leaves_in_place(tree)
  except MemoryError:  # The bytes may be whole.
    raise
  # What can go wrong in bytes made to do harm is open-ended (unhashable keys,
  # unknown dtypes, nesting beyond the recursion limit): it all means the same.
  except Exception as error:
    raise _malformed(
      type(error),
      f'These {size} bytes are not a saved state: {_reason(error)}. Expected'
      ' the bytes that to_bytes or msgpack_serialize returned; a file may have'
      ' been cut off, or be of another format.',
    ) from error


def _import_msgpack() -> Any:
  try:
    import msgpack
  except ImportError as error:
    raise ImportError(
      'Writing and reading bytes needs MessagePack, which is not installed:'
      " pip install '.[serialization]' in a clone of haiku_state. (to_state_dict"
      ' and from_state_dict work without it.)'
    ) from error
  return msgpack


def _reason(error: Exception) -> str:
  text = short(str(error)).rstrip('.')
  return f'{type(error).__name__}: {text}' if text else type(error).__name__


class _Ext(enum.IntEnum):
  """The numbers of Flax's extensions of MessagePack."""

  NDARRAY = 1
  NATIVE_COMPLEX = 2
  NPSCALAR = 3


_PLAIN_KEYS = (str, bytes, int, float, bool, type(None))


def _is_plain_key(key: Any) -> bool:
  """Returns whether a key of a dict cannot be made to collide with others.

  The time to read a dict of complex numbers, say, can be made to grow with the
  square of its size.
  """
  return type(key) in _PLAIN_KEYS


def _dict_of_pairs(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
  for key, _ in pairs:
    if not _is_plain_key(key):
      raise ValueError(f'a dict with a key of type {type(key).__name__}')
  return dict(pairs)


def _check_writable(x: Any, path: tuple[Any, ...]) -> None:
  """Raises if a leaf or a key would not come back as it is."""
  if type(x) is dict:
    for key, value in x.items():
      _check_writable_key(key, path)
      _check_writable(value, (*path, key))
  elif type(x) is list:
    for number, value in enumerate(x):
      _check_writable(value, (*path, number))
  elif isinstance(x, (np.ndarray, np.generic, jax.Array)):
    try:
      _check_writable_array(x)
    except ValueError as error:
      raise ValueError(f'{error} {_at(path)}') from error
  elif type(x) is int and not -(2**63) <= x < 2**64:
    raise ValueError(
      f'An integer of {x.bit_length()} bits; MessagePack has 64. Write it as'
      f' text. {_at(path)}'
    )
  elif type(x) is str:
    _check_text(x, path)


def _check_writable_key(key: Any, path: tuple[Any, ...]) -> None:
  if not _is_plain_key(key):
    raise ValueError(
      f'A dict has the key {short(key)} of type {type(key).__name__}. Write it'
      f' under strings. {_at(path)}'
    )
  if key == _CHUNKED:
    raise ValueError(
      f'"{_CHUNKED}" is the mark of an array in pieces. Rename it. {_at(path)}'
    )
  if type(key) is str:
    _check_text(key, path)


def _check_text(text: str, path: tuple[Any, ...]) -> None:
  try:
    text.encode()
  except UnicodeEncodeError as error:
    raise ValueError(
      f'The text {short(text)} cannot be encoded. {_at(path)}'
    ) from error


def _check_writable_array(x: Any) -> None:
  if isinstance(x, np.ma.MaskedArray):
    raise ValueError('A masked array: write its `data` and its `mask`.')
  dtype = x.dtype
  if dtype.hasobject or issubclass(dtype.type, np.void):
    raise ValueError(
      'Object and structured dtypes not supported for serialization of'
      ' ndarrays. A npz file (`interop.checkpoints.save_npz`) holds fields; no'
      ' file holds objects.'
    )
  native = dtype.newbyteorder('=')
  if not dtype.itemsize or _dtype_from_name(dtype.name) != native:
    raise ValueError(
      f'The dtype {dtype} has no name by which it would come back. A npz file'
      ' (`interop.checkpoints.save_npz`) may hold it.'
    )


def _at(path: tuple[Any, ...]) -> str:
  return f'It is at "{short("/".join(map(str, path)))}".'


def _ext_pack(x: Any) -> Any:
  """Encodes what MessagePack itself cannot; the rest it refuses."""
  msgpack = _import_msgpack()
  if isinstance(x, (np.ndarray, jax.Array)):
    return msgpack.ExtType(_Ext.NDARRAY, _ndarray_to_bytes(x))
  if isinstance(x, np.generic):
    return msgpack.ExtType(_Ext.NPSCALAR, _ndarray_to_bytes(np.asarray(x)))
  if isinstance(x, complex):
    return msgpack.ExtType(_Ext.NATIVE_COMPLEX, msgpack.packb((x.real, x.imag)))
  return x


def _ext_unpack(code: int, data: bytes) -> Any:
  msgpack = _import_msgpack()
  if code == _Ext.NDARRAY:
    return _ndarray_from_bytes(data)
  if code == _Ext.NATIVE_COMPLEX:
    real, imag = msgpack.unpackb(data)
    return complex(real, imag)
  if code == _Ext.NPSCALAR:
    return _ndarray_from_bytes(data)[()]
  return msgpack.ExtType(code, data)


def _ndarray_to_bytes(arr: Any) -> bytes:
  arr = np.asarray(arr)
  # The name of a dtype does not tell the order of its bytes.
  arr = arr.astype(arr.dtype.newbyteorder('='), copy=False)
  return _import_msgpack().packb(
    (arr.shape, arr.dtype.name, arr.tobytes('C')), use_bin_type=True
  )


def _ndarray_from_bytes(data: bytes) -> np.ndarray:
  shape, dtype_name, buffer = _import_msgpack().unpackb(data, raw=True)
  if not isinstance(shape, list) or not all(
    type(size) is int and size >= 0 for size in shape
  ):
    raise ValueError(f'an array of shape {short(shape)}')
  dtype = _dtype_from_name(dtype_name.decode())
  # NumPy takes nothing from an empty buffer if the items have no size.
  items = np.frombuffer(buffer, dtype=dtype) if buffer else np.zeros(0, dtype)
  check_content(items)
  return items.reshape(shape)


def _dtype_from_name(name: str) -> np.dtype:
  """Reads the names that NumPy gives to dtypes, and nothing more."""
  if not re.fullmatch(r'[a-z][a-z0-9_]*(\[\w+\])?', name):
    raise ValueError(f'a dtype of name {short(name)}')
  # NumPy does not read its own names of strings.
  text = re.fullmatch(r'(str|bytes)(\d+)', name)
  if text and text[1] == 'str':
    return np.dtype(f'U{int(text[2]) // 32}')
  if text:
    return np.dtype(f'S{int(text[2]) // 8}')
  dtype = jnp.dtype(name)
  if dtype.hasobject or issubclass(dtype.type, np.void):
    raise ValueError('an array of objects or of fields')
  return dtype


# Arrays in pieces. The names and the layout below are Flax's file format.

_CHUNKED = '__msgpack_chunked_array__'


def _to_numpy_in_place(d: Any) -> Any:
  """Takes JAX arrays to the host; the value of a dict is replaced there."""
  if isinstance(d, jax.Array):
    return np.asarray(d)
  if isinstance(d, dict):
    for key, value in d.items():
      d[key] = _to_numpy_in_place(value)
  return d


def _chunk_array_leaves_in_place(d: Any) -> Any:
  """Cuts arrays above the limit; the value of a dict is replaced there."""
  if isinstance(d, np.ndarray) and d.nbytes > MAX_CHUNK_SIZE:
    return _chunk(d)
  if isinstance(d, dict):
    for key, value in d.items():
      d[key] = _chunk_array_leaves_in_place(value)
  return d


def _unchunk_array_leaves_in_place(d: Any) -> Any:
  """Puts arrays together; the value of a dict is replaced there."""
  if not isinstance(d, dict):
    return d
  if _CHUNKED in d:
    return _unchunk(d)
  for key, value in d.items():
    d[key] = _unchunk_array_leaves_in_place(value)
  return d


def _chunk(arr: Any) -> dict[str, Any]:
  length = max(1, int(MAX_CHUNK_SIZE / arr.dtype.itemsize))
  flat = arr.reshape(-1)
  pieces = [flat[i : i + length] for i in range(0, flat.size, length)]
  return {
    _CHUNKED: True,
    'shape': {str(i): size for i, size in enumerate(arr.shape)},
    'chunks': {str(i): piece for i, piece in enumerate(pieces)},
  }


def _unchunk(data: dict[str, Any]) -> np.ndarray:
  shape, pieces = data['shape'], data['chunks']
  sizes = tuple(shape[str(i)] for i in range(len(shape)))
  flat = np.concatenate([pieces[str(i)] for i in range(len(pieces))])
  return flat.reshape(sizes)
