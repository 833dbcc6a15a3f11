"""Pickles, read by an interpreter of our own that knows arrays and dicts only.

A pickle is a program for a machine with a stack. Python's own interpreter for
it makes whatever object the program asks for. The one below knows the
operations that occur in Haiku's checkpoints, and makes dicts, lists, tuples,
numbers, text and arrays; what else an operation may mean is not in it.

A name in the file (`numpy.ndarray`, `jax._src.array._reconstruct_array`) is
looked up in `_NAMES` and stands for a function of this file. Objects that a
pickle makes in two steps, an array or a dtype, are `_Array` and `_Dtype` until
the end, so that no step of the file's choice ever happens to a real one.

The cost is bounded by the size of the file: each operation takes constant time,
the bytes of arrays are not more than those in the file, dicts have keys that
cannot be made to collide, and what is shared is not multiplied without end.
"""

from __future__ import annotations

import dataclasses
import math
import pickletools
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np

from haiku_state._plain_arrays import (
  ML_DTYPES,
  check_content,
  dtype_from_text,
  short,
)
from haiku_state.interop._plain import MAX_DEPTH, WeightsFileError

# A checkpoint has about 25 operations for an array.
MAX_OPERATIONS = 5_000_000
# NumPy's limit.
_MAX_DIMENSIONS = 64
# A random state of NumPy has integers of 128 bits.
_MAX_INTEGER = 1 << 512


@dataclasses.dataclass(eq=False)
class _Array:
  """An array that may wait for its content."""

  value: Any = None


@dataclasses.dataclass(eq=False)
class _Dtype:
  """A dtype that may wait for the order of its bytes."""

  value: np.dtype


@dataclasses.dataclass(eq=False)
class _Mapping:
  """One of Haiku's mappings: what it holds is an argument, or set later."""

  content: Any = None


@dataclasses.dataclass(eq=False, frozen=True)
class _Name:
  """A name in the file, and the function that stands for it here."""

  text: str
  call: Callable[..., Any] | None


@dataclasses.dataclass
class _Budget:
  """Bytes of arrays and texts that may still be made."""

  left: int

  def take(self, size: int) -> None:
    self.left -= size
    if self.left < 0:
      raise WeightsFileError('it makes more bytes of arrays than it holds')


# --- What names stand for ----------------------------------------------------


def _mapping(budget: _Budget, content: Any = None) -> _Mapping:
  return _Mapping(content)


def _ordered_dict(budget: _Budget, items: Any = ()) -> dict[Any, Any]:
  """Returns a dict of pairs, as protocols 0 and 1 of old write them."""
  out: dict[Any, Any] = {}
  for pair in _checked(items, (list, tuple)):
    if not isinstance(pair, (list, tuple)) or len(pair) != 2:
      raise WeightsFileError('an OrderedDict in it is not made of pairs')
    _set_item(out, *pair)
  return out


def _default_dict(budget: _Budget, factory: Any = None) -> dict[Any, Any]:
  return {}


def _encode(budget: _Budget, text: Any, encoding: Any = None) -> bytes:
  """Returns bytes, which old protocols write as text."""
  if encoding != 'latin1':
    raise WeightsFileError(f'bytes in it are encoded by {_told(encoding)}')
  budget.take(len(_checked(text, str)))
  try:
    return text.encode('latin1')
  except UnicodeEncodeError as e:
    raise WeightsFileError('bytes in it are beyond latin1') from e


def _make_bytes(budget: _Budget, content: Any = b'') -> bytes:
  return _checked(content, bytes)


def _complex(budget: _Budget, real: Any, imag: Any = 0.0) -> complex:
  return complex(_checked(real, (int, float)), _checked(imag, (int, float)))


def _dtype(
  budget: _Budget, kind: Any, align: Any = False, copy: Any = False
) -> _Dtype:
  if isinstance(kind, _Name):
    scalar = ML_DTYPES.get(kind.text.removeprefix('ml_dtypes.'))
    if scalar is None:
      raise WeightsFileError(f'{kind.text} is no dtype')
    return _Dtype(scalar)
  return _Dtype(dtype_from_text(kind))


def _reconstruct(
  budget: _Budget, kind: Any, shape: Any = None, dtype: Any = None
) -> _Array:
  if not isinstance(kind, _Name) or kind.text != 'numpy.ndarray':
    raise WeightsFileError(
      f'an array in it is of the class {_told(kind)}, not of numpy.ndarray'
    )
  return _Array()


def _scalar(budget: _Budget, dtype: Any, content: Any) -> Any:
  """Returns a NumPy scalar."""
  return _made(budget, (), dtype, False, content).value[()]


def _from_buffer(
  budget: _Budget, content: Any, dtype: Any, shape: Any, order: Any
) -> _Array:
  if order not in ('C', 'F'):
    raise WeightsFileError(f'an array in it has the order {_told(order)}')
  return _made(budget, shape, dtype, order == 'F', content)


def _jax_array(
  budget: _Budget, fun: Any, args: Any, state: Any, aval: Any = None
) -> _Array:
  """Returns the NumPy array that JAX pickles in an array."""
  # Not by itself again, which could be nested without end.
  make = fun.call if isinstance(fun, _Name) else None
  if make is None or make not in (_reconstruct, _from_buffer):
    raise WeightsFileError(f'an array of JAX in it is made by {_told(fun)}')
  array = make(budget, *_checked(args, tuple))
  if state is not None:
    _build_array(budget, array, state)
  return array


def _names() -> dict[str, _Name]:
  """Returns what a pickle may name."""
  calls: dict[str, Callable[..., Any] | None] = {
    'collections.OrderedDict': _ordered_dict,
    'collections.defaultdict': _default_dict,
    '_codecs.encode': _encode,
    'numpy.dtype': _dtype,
    'numpy.ndarray': None,
    'jax._src.array._reconstruct_array': _jax_array,
    'jax._src.device_array.reconstruct_device_array': _jax_array,
  }
  for builtins in ('builtins', '__builtin__'):
    calls[f'{builtins}.bytes'] = _make_bytes
    calls[f'{builtins}.bytearray'] = _make_bytes
    calls[f'{builtins}.complex'] = _complex
    # What a defaultdict would make.
    for kind in ('dict', 'list', 'int', 'float'):
      calls[f'{builtins}.{kind}'] = None
  for kind in ('FlatMapping', 'FlatMap', 'frozendict'):
    calls[f'haiku._src.data_structures.{kind}'] = _mapping
  for core in ('numpy.core', 'numpy._core'):
    calls[f'{core}.multiarray._reconstruct'] = _reconstruct
    calls[f'{core}.multiarray.scalar'] = _scalar
    calls[f'{core}.numeric._frombuffer'] = _from_buffer
  calls |= dict.fromkeys(f'ml_dtypes.{name}' for name in ML_DTYPES)
  return {text: _Name(text, call) for text, call in calls.items()}


_NAMES = _names()


# --- Arrays ------------------------------------------------------------------


def _made(
  budget: _Budget, shape: Any, dtype: Any, fortran: Any, content: Any
) -> _Array:
  """Returns an array of bytes that are exactly as many as it needs."""
  dtype = _checked(dtype, _Dtype).value
  sizes = _checked(shape, tuple)
  content = _checked(content, (bytes, bytearray))
  if len(sizes) > _MAX_DIMENSIONS or not all(
    type(size) is int and 0 <= size < 1 << 62 for size in sizes
  ):
    raise WeightsFileError('an array in it has a shape that is none')
  count = math.prod(sizes)
  if count * dtype.itemsize != len(content):
    raise WeightsFileError(
      f'an array in it of shape {short(sizes)} and dtype {dtype} has'
      f' {len(content)} bytes, and needs {short(count * dtype.itemsize)}'
    )
  budget.take(len(content))
  # A copy, so that the array can be written to and is aligned.
  flat = np.zeros(0, dtype)
  if content:
    flat = np.frombuffer(bytearray(content), dtype)
  check_content(flat)
  try:
    return _Array(flat.reshape(sizes, order='F' if fortran else 'C'))
  except ValueError as e:  # Empty, and yet too large for NumPy.
    raise WeightsFileError(
      f'an array in it has the shape {short(sizes)}'
    ) from e


def _build_array(budget: _Budget, array: _Array, state: Any) -> None:
  if array.value is not None:
    raise WeightsFileError('an array in it is filled twice')
  state = _checked(state, tuple)
  if len(state) != 5 or state[0] != 1:
    raise WeightsFileError('an array in it is of a form not known')
  _, shape, dtype, fortran, content = state
  array.value = _made(
    budget, shape, dtype, _checked(fortran, (bool, int)), content
  ).value


def _build_dtype(dtype: _Dtype, state: Any) -> None:
  state = _checked(state, tuple)
  # The version, the order of bytes, what only fields have, sizes; behind that,
  # the units of dates.
  if len(state) != 8 or state[0] != 3 or any(x for x in state[2:5]):
    raise WeightsFileError(
      f'the dtype {dtype.value} in it has fields, or is not known'
    )
  order = state[1]
  if not isinstance(order, str) or order not in ('<', '>', '|', '='):
    raise WeightsFileError(
      f'the dtype {dtype.value} in it has the order {_told(order)}'
    )
  if order in '<>' and dtype.value.isbuiltin != 2:
    dtype.value = dtype.value.newbyteorder(order)


def _checked(x: Any, kind: Any) -> Any:
  if not isinstance(x, kind):
    raise WeightsFileError(f'a value of type {_kind(x)} is misplaced')
  return x


def _kind(x: Any) -> str:
  return type(x).__name__.strip('_').lower()


def _told(x: Any) -> str:
  """Returns what stands for a value in the text of an error.

  The `repr` of a tuple can be longer than the file, without end.
  """
  if isinstance(x, _Name):
    return f'`{x.text}`'
  return short(x) if isinstance(x, (str, int)) else f'a {_kind(x)}'


def _set_item(target: Any, key: Any, value: Any) -> None:
  """Sets an item of a dict; keys that can be made to collide are refused."""
  if type(key) is int and -(1 << 63) <= key < 1 << 64:
    pass
  elif type(key) not in (str, bool, float, type(None)):
    raise WeightsFileError(
      f'a dict in it has a key of type {_kind(key)}, where'
      ' names are strings or numbers'
    )
  target[key] = value


# --- The interpreter ---------------------------------------------------------


class _Source:
  """A file that gives no more than it has, however much is asked for."""

  def __init__(self, file: BinaryIO, size: int):
    self.file = file
    self.left = size
    self.readline = file.readline
    self.tell = file.tell

  def read(self, size: int) -> bytes:
    return self.file.read(min(size, self.left))


class _Machine:
  """The stack, the memo, and what operations do to them."""

  def __init__(self, budget: _Budget):
    self.budget = budget
    self.stack: list[Any] = []
    self.below: list[list[Any]] = []
    self.memo: dict[int, Any] = {}

  def step(self, name: str, arg: Any) -> None:
    """Does one operation."""
    if name in _PUSHED:
      self.stack.append(arg)
    elif name in _CONSTANTS:
      self.stack.append(_CONSTANTS[name]())
    else:
      operation = _OPERATIONS.get(name)
      if operation is None:
        raise WeightsFileError(
          f'the operation {name} occurs in no checkpoint of Haiku'
        )
      operation(self, arg)

  def integer(self, value: Any) -> None:
    if type(value) is int and abs(value) >= _MAX_INTEGER:
      raise WeightsFileError(f'an integer in it has {value.bit_length()} bits')
    self.stack.append(value)

  def mark(self, _: Any) -> None:
    self.below.append(self.stack)
    self.stack = []

  def marked(self) -> list[Any]:
    items = self.stack
    self.stack = self.below.pop()
    return items

  def push_tuple(self, _: Any) -> None:
    items = self.marked()
    self.stack.append(tuple(items))

  def push_short_tuple(self, count: int) -> None:
    items = self.stack[-count:]
    if len(items) < count:
      raise IndexError('the stack is empty')
    self.stack[-count:] = [tuple(items)]

  def push_list(self, _: Any) -> None:
    items = self.marked()
    self.stack.append(items)

  def append(self, _: Any) -> None:
    value = self.stack.pop()
    self._list().append(value)

  def extend(self, _: Any) -> None:
    items = self.marked()
    self._list().extend(items)

  def _list(self) -> list[Any]:
    return _checked(self.stack[-1], list)

  def push_dict(self, _: Any) -> None:
    items = self.marked()
    self.stack.append({})
    self._set_all(items)

  def set_item(self, _: Any) -> None:
    value, key = self.stack.pop(), self.stack.pop()
    self._set_all([key, value])

  def set_items(self, _: Any) -> None:
    self._set_all(self.marked())

  def _set_all(self, items: list[Any]) -> None:
    target = _checked(self.stack[-1], dict)
    if len(items) % 2:
      raise WeightsFileError('a dict in it has a key without a value')
    for key, value in zip(items[::2], items[1::2]):
      _set_item(target, key, value)

  def put(self, index: Any) -> None:
    if not 0 <= index < 1 << 32:
      raise WeightsFileError(
        'it numbers what it remembers by too large a number'
      )
    self.memo[index] = self.stack[-1]

  def memoize(self, _: Any) -> None:
    self.memo[len(self.memo)] = self.stack[-1]

  def get(self, index: Any) -> None:
    if index not in self.memo:
      raise WeightsFileError('it asks for what it has not remembered')
    self.stack.append(self.memo[index])

  def name(self, text: Any) -> None:
    self.stack.append(_found(*text.split(' ', 1)))

  def name_of_stack(self, _: Any) -> None:
    name, module = self.stack.pop(), self.stack.pop()
    self.stack.append(_found(_checked(module, str), _checked(name, str)))

  def call(self, _: Any) -> None:
    args = _checked(self.stack.pop(), tuple)
    name = _checked(self.stack.pop(), _Name)
    if name.call is None:
      raise WeightsFileError(f'`{name.text}` is called in it')
    try:
      self.stack.append(name.call(self.budget, *args))
    except TypeError as e:
      raise WeightsFileError(
        f'`{name.text}` is called with other arguments'
      ) from e

  def build(self, _: Any) -> None:
    state = self.stack.pop()
    target = self.stack[-1]
    if isinstance(target, _Array):
      _build_array(self.budget, target, state)
    elif isinstance(target, _Dtype):
      _build_dtype(target, state)
    elif isinstance(target, _Mapping) and target.content is None:
      target.content = _of_mapping(state)
    else:
      kind = _kind(target)
      raise WeightsFileError(f'a value of type {kind} is changed in it')


def _found(module: str, name: str) -> _Name:
  text = f'{module}.{name}'
  if text not in _NAMES:
    raise WeightsFileError(
      f'it names `{short(text)}`, which is neither an array nor a dict, and is'
      ' not looked up'
    )
  return _NAMES[text]


def _of_mapping(state: Any) -> Any:
  """Returns what one of Haiku's mappings holds, from its attributes."""
  if isinstance(state, tuple) and len(state) == 2 and state[0] is None:
    state = state[1]
  if isinstance(state, dict):
    for attribute in ('_mapping', '_storage'):
      if attribute in state:
        return state[attribute]
  raise WeightsFileError('a mapping of Haiku in it is of a form not known')


# Operations whose argument is the value.
_PUSHED = frozenset(
  """
  BININT BININT1 BININT2 FLOAT BINFLOAT UNICODE BINUNICODE
  SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8
  """.split()
)
_CONSTANTS: dict[str, Callable[[], Any]] = {
  'NONE': lambda: None,
  'NEWTRUE': lambda: True,
  'NEWFALSE': lambda: False,
  'EMPTY_DICT': dict,
  'EMPTY_LIST': list,
  'EMPTY_TUPLE': tuple,
}
_OPERATIONS: dict[str, Callable[[_Machine, Any], None]] = {
  'PROTO': lambda machine, version: None,
  'FRAME': lambda machine, size: None,
  'INT': _Machine.integer,
  'LONG': _Machine.integer,
  'LONG1': _Machine.integer,
  'LONG4': _Machine.integer,
  'MARK': _Machine.mark,
  'TUPLE': _Machine.push_tuple,
  'TUPLE1': lambda machine, _: machine.push_short_tuple(1),
  'TUPLE2': lambda machine, _: machine.push_short_tuple(2),
  'TUPLE3': lambda machine, _: machine.push_short_tuple(3),
  'LIST': _Machine.push_list,
  'APPEND': _Machine.append,
  'APPENDS': _Machine.extend,
  'DICT': _Machine.push_dict,
  'SETITEM': _Machine.set_item,
  'SETITEMS': _Machine.set_items,
  'PUT': _Machine.put,
  'BINPUT': _Machine.put,
  'LONG_BINPUT': _Machine.put,
  'MEMOIZE': _Machine.memoize,
  'GET': _Machine.get,
  'BINGET': _Machine.get,
  'LONG_BINGET': _Machine.get,
  'GLOBAL': _Machine.name,
  'STACK_GLOBAL': _Machine.name_of_stack,
  'REDUCE': _Machine.call,
  'NEWOBJ': _Machine.call,
  'BUILD': _Machine.build,
}


def read(file: BinaryIO, size: int) -> Any:
  """Reads the pickle that a file begins with; see the top of this file.

  Args:
    file: the file.
    size: its length in bytes from where it is.

  Raises:
    WeightsFileError: it is no pickle, or holds something else; the text tells
      at which byte.
  """
  machine = _Machine(_Budget(2 * size + 4096))
  where = count = 0
  try:
    for name, arg, at in _operations(file, size):
      where, count = at, count + 1
      if name == 'STOP':
        break
      machine.step(name, arg)
      if count > MAX_OPERATIONS:
        raise WeightsFileError(
          f'it has more than {MAX_OPERATIONS} operations, where a checkpoint'
          ' has about 25 for an array'
        )
    if machine.below or len(machine.stack) != 1:
      raise WeightsFileError('it ends with other than one value')
    return _Finish(10 * count + 10_000).value(machine.stack[0], 0)
  except ValueError as e:
    raise WeightsFileError(f'at byte {where}: {e}.') from e
  except IndexError as e:
    raise WeightsFileError(
      f'at byte {where}: it takes what is not there; it is damaged.'
    ) from e


def _operations(file: BinaryIO, size: int) -> Iterator[tuple[str, Any, int]]:
  """Returns name, argument and place of each operation."""
  begin = file.tell()
  operations = pickletools.genops(_Source(file, size))  # type: ignore
  where = 0
  while True:
    try:
      opcode, arg, position = next(operations)
    except StopIteration:
      raise WeightsFileError('it has no end') from None
    except MemoryError:
      raise
    except Exception as e:  # Wherever a program is cut, something else fails.
      raise WeightsFileError(
        f'it is no pickle, or is damaged: {short(str(e))}'
      ) from e
    where = (position or begin) - begin
    yield opcode.name, arg, where


class _Finish:
  """Makes the result: real arrays, and dicts for all mappings."""

  def __init__(self, limit: int):
    self.left = limit

  def value(self, x: Any, depth: int) -> Any:
    self.left -= 1
    if self.left < 0:
      raise WeightsFileError('it shares values so that they become too many')
    if depth > MAX_DEPTH:
      raise WeightsFileError(f'it is nested more than {MAX_DEPTH} levels deep')
    kind = type(x)
    if kind is dict:
      return {key: self.value(y, depth + 1) for key, y in x.items()}
    if kind is list:
      return [self.value(y, depth + 1) for y in x]
    if kind is tuple:
      return tuple(self.value(y, depth + 1) for y in x)
    if kind is _Array:
      if x.value is None:
        raise WeightsFileError('an array in it has no content')
      return x.value
    if kind is _Mapping:
      return self._mapping(x, depth)
    if kind in (_Name, _Dtype):
      raise WeightsFileError(f'a {_kind(x)} in it stands where a value does')
    return x

  def _mapping(self, x: _Mapping, depth: int) -> Any:
    content = {} if x.content is None else x.content
    if type(content) not in (dict, _Mapping):
      raise WeightsFileError('a mapping of Haiku in it is of a form not known')
    return self.value(content, depth + 1)
