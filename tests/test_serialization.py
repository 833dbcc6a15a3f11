"""haiku_state.serialization, by behaviour and against flax.serialization."""

import builtins
import collections
import pickle
import threading
from typing import Any, NamedTuple

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from haiku_state import serialization, struct
from haiku_state.core.frozen_dict import FrozenDict

msgpack = pytest.importorskip('msgpack')


class Pair(NamedTuple):
  first: Any
  second: Any


@struct.dataclass
class Layer:
  kernel: Any
  bias: Any = 0


CONTAINERS = {
  'dict': ({'a': 1, 'b': {'c': 2}}, {'a': 1, 'b': {'c': 2}}),
  'int keys': ({1: 'x', 2: 'y'}, {'1': 'x', '2': 'y'}),
  'list': ([1, [2, 3]], {'0': 1, '1': {'0': 2, '1': 3}}),
  'tuple': ((1, (2,)), {'0': 1, '1': {'0': 2}}),
  'empty': ({'a': {}, 'b': [], 'c': ()}, {'a': {}, 'b': {}, 'c': {}}),
  'NamedTuple': (Pair(1, Pair(2, 3)), {'first': 1, 'second': {'first': 2, 'second': 3}}),
  'FrozenDict': (FrozenDict({'a': {'b': 1}}), {'a': {'b': 1}}),
  'struct': (Layer(1, [2]), {'kernel': 1, 'bias': {'0': 2}}),
  'None': ({'a': None}, {'a': None}),
  'leaf': (3.5, 3.5),
  'Partial': (
    jax.tree_util.Partial(max, 1, key=2),
    {'args': {'0': 1}, 'keywords': {'key': 2}},
  ),
}  # fmt: skip


@pytest.mark.parametrize('name', CONTAINERS)
def test_state_dict(name):
  target, state = CONTAINERS[name]
  assert serialization.to_state_dict(target) == state


@pytest.mark.parametrize('name', CONTAINERS)
def test_state_dict_comes_back(name):
  target, state = CONTAINERS[name]
  restored = serialization.from_state_dict(target, state)
  assert type(restored) is type(target)
  assert serialization.to_state_dict(restored) == state
  assert jax.tree.structure(restored) == jax.tree.structure(target)


@pytest.mark.parametrize('name', CONTAINERS)
def test_bytes_come_back(name):
  target, state = CONTAINERS[name]
  restored = serialization.from_bytes(target, serialization.to_bytes(target))
  assert serialization.to_state_dict(restored) == state


def test_the_values_of_the_target_are_not_used():
  restored = serialization.from_state_dict(
    {'a': None, 'b': 'text'}, {'a': 1, 'b': [2]}
  )
  assert restored == {'a': 1, 'b': [2]}


def test_more_keys_than_the_target_has_are_left_out():
  assert serialization.from_state_dict({'a': 0}, {'a': 1, 'b': 2}) == {'a': 1}


def test_to_bytes_leaves_the_object_alone():
  target = {'a': jnp.ones(2), 'b': {'c': jnp.zeros(1)}}
  serialization.to_bytes(target)
  serialization.msgpack_serialize(target)
  assert isinstance(target['a'], jax.Array)
  assert isinstance(target['b']['c'], jax.Array)


def test_in_place_replaces_arrays_in_the_given_dict():
  tree = {'a': jnp.ones(2)}
  serialization.msgpack_serialize(tree, in_place=True)
  assert isinstance(tree['a'], np.ndarray)


# Errors: (target, state, message). Where Flax has a message, it is Flax's.
ERRORS = {
  'size of list': (
    [1, 2],
    {'0': 1},
    'The size of the list and the state dict do not match, got 2 and 1 at path .',
  ),
  'size of nested tuple': (
    {'a': (1, 2)},
    {'a': {'0': 1}},
    'The size of the list and the state dict do not match, got 2 and 1 at path'
    ' ./a',
  ),
  'keys of dict': (
    {'a': {'b': 1}},
    {'a': {'c': 1}},
    'The target dict keys and state dict keys do not match, target dict contains'
    " keys {'b'} which are not present in state dict at path ./a",
  ),
  'keys of FrozenDict': (
    {'a': FrozenDict({'b': 1})},
    {'a': {}},
    'The target dict keys and state dict keys do not match, target dict contains'
    " keys {'b'} which are not present in state dict at path ./a",
  ),
  'fields of NamedTuple': (
    [Pair(1, 2)],
    {'0': {'first': 1}},
    'The field names of the state dict and the named tuple do not match, got'
    " {'first'} and FIELDS at path ./0",
  ),
  'field of struct': (
    [Layer(1)],
    {'0': {'bias': 1}},
    'Missing field kernel in state dict while restoring an instance of Layer, at'
    ' path ./0',
  ),
}  # fmt: skip


def _message(error):
  # The order of a set of two differs from run to run.
  text = str(error.value)
  for fields in ("{'first', 'second'}", "{'second', 'first'}"):
    text = text.replace(fields, 'FIELDS')
  return text


@pytest.mark.parametrize('name', ERRORS)
def test_errors_name_the_path(name):
  target, state, message = ERRORS[name]
  with pytest.raises(ValueError) as error:
    serialization.from_state_dict(target, state)
  assert _message(error) == message
  assert serialization.current_path() == ''


@pytest.mark.parametrize(
  'name', sorted(set(ERRORS) - {'keys of FrozenDict', 'field of struct'})
)
def test_errors_are_those_of_flax(name):
  flax_serialization = pytest.importorskip('flax.serialization')
  target, state, message = ERRORS[name]
  with pytest.raises(ValueError) as error:
    flax_serialization.from_state_dict(target, state)
  assert _message(error) == message


@pytest.mark.parametrize(
  'target, state, words',
  [
    ({'a': 1}, 3, 'state of a dict, got int at path .'),
    ([1], [2], 'state of a list, got list at path .'),
    ((1,), 'x', 'state of a tuple, got str'),
    (Pair(1, 2), None, 'NamedTuple Pair, got NoneType'),
    ([1, 2], {'0': 1, 'x': 2}, '1 is missing and 0, x is present at path .'),
    (jax.tree_util.Partial(max, 1), {'args': {}}, 'no keywords at path .'),
    (jax.tree_util.Partial(max, 1), 4, 'state of a Partial, got int'),
    (Layer(1), 4, 'state of Layer, got int'),
    (
      Pair(1, 2),
      {'name': 'Pair', 'fields': {'0': 'first'}, 'values': {}},
      "fields numbered ['0'] and values numbered []",
    ),
  ],
)
def test_a_state_of_another_kind(target, state, words):
  with pytest.raises(ValueError) as error:
    serialization.from_state_dict(target, state)
  assert words in str(error.value)


def test_keys_that_are_one_string():
  with pytest.raises(ValueError, match='do not have a unique string'):
    serialization.to_state_dict({1: 'a', '1': 'b'})


def test_named_tuples_of_the_oldest_files():
  state = {
    'name': 'Pair',
    'fields': {'0': 'first', '1': 'second'},
    'values': {'0': 1, '1': {'0': 2}},
  }
  assert serialization.from_state_dict(Pair(0, [0]), state) == Pair(1, [2])


class Meter:
  def __init__(self, total):
    self.total = total


@pytest.fixture
def registered_meter():
  serialization.register_serialization_state(
    Meter,
    lambda meter: {'total': meter.total},
    lambda meter, state: Meter((state['total'], serialization.current_path())),
    override=True,
  )
  yield
  del serialization._STATE_DICT_REGISTRY[Meter]


def test_a_registered_type(registered_meter):
  assert serialization.is_serializable(Meter)
  assert serialization.is_serializable(Meter(1))
  assert serialization.to_state_dict([Meter(1)]) == {'0': {'total': 1}}
  (meter,) = serialization.from_state_dict([Meter(0)], {'0': {'total': 2}})
  assert meter.total == (2, './0')
  (meter,) = serialization.from_state_dict(
    [Meter(0)], {'0': {'total': 2}}, name='root'
  )
  assert meter.total == (2, 'root/0')


def test_registering_twice(registered_meter):
  with pytest.raises(
    ValueError,
    match='a serialization handler for "Meter" is already registered',
  ):
    serialization.register_serialization_state(Meter, vars, vars)
  serialization.register_serialization_state(
    Meter, lambda meter: {1: 2}, None, override=True
  )
  with pytest.raises(AssertionError, match='must only have string keys'):
    serialization.to_state_dict(Meter(1))


def test_a_subclass_of_a_registered_type_is_a_leaf():
  ordered = collections.OrderedDict(a=1)
  assert serialization.to_state_dict(ordered) is ordered
  assert not serialization.is_serializable(ordered)


def test_paths_of_threads_are_apart(registered_meter):
  inside, done = threading.Event(), threading.Event()

  def restore(meter, state):
    inside.set()
    done.wait(10)
    return serialization.current_path()

  serialization.register_serialization_state(
    Meter, vars, restore, override=True
  )
  paths = []
  thread = threading.Thread(
    target=lambda: paths.append(
      serialization.from_state_dict({'a': Meter(0)}, {'a': {}})
    )
  )
  thread.start()
  assert inside.wait(10)
  assert serialization.current_path() == ''
  done.set()
  thread.join()
  assert paths == [{'a': './a'}]


# Leaves and their bytes

DTYPES = [
  'bool', 'int8', 'uint8', 'int16', 'int32', 'uint64', 'int64', 'float16',
  'float32', 'float64', 'complex64', 'complex128', ml_dtypes.bfloat16,
  ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.int4,
]  # fmt: skip


def _same(a, b):
  if isinstance(a, (np.ndarray, np.generic, jax.Array)):
    return (
      a.dtype == b.dtype
      and a.shape == b.shape
      and np.asarray(a).tobytes() == np.asarray(b).tobytes()
    )
  return type(a) is type(b) and a == b


@pytest.mark.parametrize('shape', [(), (3,), (2, 3), (0, 2)])
@pytest.mark.parametrize('dtype', DTYPES)
def test_arrays(dtype, shape):
  array = np.ones(shape, dtype)
  restored = serialization.msgpack_restore(
    serialization.to_bytes({'a': array})
  )['a']
  assert isinstance(restored, np.ndarray)
  assert _same(array, restored)


@pytest.mark.parametrize('dtype', DTYPES)
def test_numpy_scalars(dtype):
  scalar = np.dtype(dtype).type(1)
  restored = serialization.msgpack_restore(serialization.to_bytes(scalar))
  assert type(restored) is type(scalar)
  assert restored == scalar


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16, jnp.int8])
def test_jax_arrays(dtype):
  array = jnp.arange(6, dtype=dtype).reshape(2, 3)
  restored = serialization.from_bytes(array, serialization.to_bytes(array))
  assert _same(array, restored)


@pytest.mark.parametrize(
  'leaf', [1, -(2**63), 2**64 - 1, 1.5, True, None, 'text', b'\x00\xff', 1 - 2j]
)
def test_python_leaves(leaf):
  assert _same(
    leaf, serialization.msgpack_restore(serialization.to_bytes(leaf))
  )


def test_byte_order_is_kept():
  """Flax writes the bytes as they lie, under a name that does not tell."""
  array = np.array([1.0, 2.0], '>f4')
  restored = serialization.msgpack_restore(serialization.to_bytes(array))
  np.testing.assert_array_equal(restored, [1.0, 2.0])


@pytest.mark.parametrize(
  'text', [np.array(['ab', 'c']), np.array([b'ab', b'c']), np.str_('ab')]
)
def test_strings_come_back(text):
  """Flax writes them but cannot read them."""
  restored = serialization.msgpack_restore(serialization.to_bytes(text))
  np.testing.assert_array_equal(restored, text)


@pytest.mark.parametrize(
  'array',
  [
    np.array([object()]),
    np.zeros(2, [('a', 'i4'), ('b', 'f4')]),
    np.zeros(2, 'V3'),
  ],
)
def test_arrays_that_have_no_bytes(array):
  with pytest.raises(
    ValueError, match='Object and structured dtypes not supported'
  ):
    serialization.to_bytes({'a': array})


@pytest.mark.parametrize('leaf', [object(), {1, 2}, jax.random.key(0)])
def test_leaves_that_have_no_bytes(leaf):
  with pytest.raises(TypeError):
    serialization.to_bytes({'a': leaf})


@pytest.fixture
def small_chunks(monkeypatch):
  monkeypatch.setattr(serialization, 'MAX_CHUNK_SIZE', 91)


@pytest.mark.parametrize(
  'shape, dtype',
  [((21, 37), 'float64'), ((91,), 'int8'), ((92,), 'int8'), ((5, 0), 'int8'),
   ((3, 40), ml_dtypes.bfloat16), ((7, 1, 5), 'complex128')],
)  # fmt: skip
def test_chunks(small_chunks, shape, dtype):
  array = np.random.default_rng(0).normal(size=shape).astype(dtype)
  tree = {'a': {'b': array}, 'c': 1}
  restored = serialization.msgpack_restore(serialization.to_bytes(tree))
  assert _same(array, restored['a']['b'])
  assert _same(
    array, serialization.msgpack_restore(serialization.to_bytes(array))
  )


def test_chunks_are_as_large_as_allowed(small_chunks):
  pieces = serialization._chunk(np.zeros((10, 10), 'int16'))
  assert [len(piece) for piece in pieces['chunks'].values()] == [45, 45, 10]
  assert _same(np.zeros((10, 10), 'int16'), serialization._unchunk(pieces))


def _trees(leaves):
  return st.recursive(
    leaves,
    lambda inner: (
      st.dictionaries(st.text(max_size=5), inner, max_size=4)
      | st.lists(inner, max_size=3)
    ),
    max_leaves=8,
  )


_LEAVES = (
  st.none()
  | st.booleans()
  | st.integers(-(2**63), 2**64 - 1)
  | st.floats(allow_nan=False)
  | st.text(max_size=8)
  | st.binary(max_size=8)
  | st.complex_numbers(allow_nan=False)
  | st.sampled_from([np.dtype(d) for d in DTYPES]).flatmap(
    lambda dtype: st.lists(st.integers(0, 3), max_size=3).map(
      lambda shape: np.ones(shape, dtype)
    )
  )
)


@hypothesis.settings(deadline=None)
@hypothesis.given(_trees(_LEAVES))
def test_any_tree_comes_back(tree):
  data = serialization.to_bytes(tree)
  restored = serialization.from_bytes(tree, data)
  assert jax.tree.structure(restored) == jax.tree.structure(tree)
  assert all(map(_same, jax.tree.leaves(tree), jax.tree.leaves(restored)))


@hypothesis.settings(
  deadline=None,
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(_trees(_LEAVES), st.booleans())
def test_the_bytes_are_those_of_flax(monkeypatch, tree, chunked):
  flax_serialization = pytest.importorskip('flax.serialization')
  for module in (serialization, flax_serialization):
    monkeypatch.setattr(module, 'MAX_CHUNK_SIZE', 16 if chunked else 2**30)
  data = serialization.to_bytes(tree)
  assert data == flax_serialization.to_bytes(tree)
  ours, theirs = (
    serialization.msgpack_restore(data),
    flax_serialization.msgpack_restore(data),
  )
  assert jax.tree.structure(ours) == jax.tree.structure(theirs)
  assert all(map(_same, jax.tree.leaves(ours), jax.tree.leaves(theirs)))


@pytest.mark.parametrize('in_place', [False, True])
def test_the_order_of_keys_is_that_of_flax(in_place):
  flax_serialization = pytest.importorskip('flax.serialization')
  tree = {'b': 1, 'a': {'d': np.ones(2), 'c': 2}}
  data = serialization.msgpack_serialize(tree, in_place=in_place)
  assert data == flax_serialization.msgpack_serialize(tree, in_place=in_place)


# Bytes that were not written by to_bytes

VALID = serialization.to_bytes(
  {'a': np.arange(6.0).reshape(2, 3), 'b': [1j, np.float32(2)], 'c': 'text'}
)


def _restore_or_refuse(data, target=None):
  try:
    return serialization.from_bytes(target, data)
  except ValueError as error:
    return error


@hypothesis.settings(
  max_examples=3 * hypothesis.settings.default.max_examples, deadline=None
)
@hypothesis.given(st.data())
def test_damaged_bytes(data):
  damaged = bytearray(VALID)
  for _ in range(data.draw(st.integers(1, 4))):
    damaged[data.draw(st.integers(0, len(VALID) - 1))] = data.draw(
      st.integers(0, 255)
    )
  damaged = damaged[: data.draw(st.integers(0, len(VALID)))]
  _restore_or_refuse(bytes(damaged))
  _restore_or_refuse(bytes(damaged), {'a': 1, 'b': [1, 2], 'c': Layer(1)})


@hypothesis.settings(
  max_examples=3 * hypothesis.settings.default.max_examples, deadline=None
)
@hypothesis.given(st.binary(max_size=60))
def test_random_bytes(data):
  _restore_or_refuse(data)
  _restore_or_refuse(data, Layer(Pair(1, [2]), {'a': FrozenDict({'b': 1})}))


def _ndarray(*content):
  return msgpack.packb(msgpack.ExtType(1, msgpack.packb(content)))


def _chunked(**content):
  return msgpack.packb({'__msgpack_chunked_array__': True, **content})


HOSTILE = {
  'nothing': b'',
  'cut off': VALID[:-1],
  'more than one': VALID + VALID,
  'nested deeply': b'\x91' * 100_000 + b'\x01',
  'dicts nested deeply': b'\x81\xa1a' * 1000 + b'\x01',
  'key that is a dict': b'\x81\x80\x01',
  'huge list announced': b'\xdd\xff\xff\xff\xff',
  'array of objects': _ndarray([1], 'object', b'12345678'),
  'no array of objects': _ndarray([0], 'object', b''),
  'array of pointers': _ndarray([1], 'O', b'12345678'),
  'array of records': _ndarray([1], 'i4,i4', b'12345678'),
  'unknown dtype': _ndarray([1], 'float33', b'1234'),
  'dtype that is code': _ndarray([1], '__import__("os")', b'1234'),
  'dtype that is a number': _ndarray([1], 4, b'1234'),
  'bytes that do not fit': _ndarray([3], 'float32', b'1234'),
  'part of an item': _ndarray([1], 'float32', b'123'),
  'negative size': _ndarray([-1], 'float32', b'1234'),
  'size of no number': _ndarray(['a'], 'float32', b'1234'),
  'shape of no list': _ndarray('a', 'float32', b'1234'),
  'two of three': _ndarray([1], 'float32'),
  'items of no size': _ndarray([2**40], 'str0', b''),
  'array of no bytes': _ndarray([2], 'float32', b''),
  'array that is no array': msgpack.packb(msgpack.ExtType(1, b'\x01')),
  'scalar of many': msgpack.packb(
    msgpack.ExtType(3, msgpack.packb(([1], 'f4', b'12')))
  ),
  'complex of three': msgpack.packb(
    msgpack.ExtType(2, msgpack.packb((1, 2, 3)))
  ),
  'complex of text': msgpack.packb(msgpack.ExtType(2, msgpack.packb('ab'))),
  'chunks without shape': _chunked(chunks={}),
  'chunks of no arrays': _chunked(shape={'0': 1}, chunks={'0': 'x'}),
  'no chunks': _chunked(shape={'0': 0}, chunks={}),
  'chunks that do not fit': _chunked(shape={'0': 9}, chunks={'0': 1}),
  'chunks of a list': _chunked(shape=[1], chunks=[1]),
  'huge shape': _chunked(shape={'0': 2**62, '1': 4}, chunks={'0': 1}),
}


@pytest.mark.parametrize('name', HOSTILE)
def test_hostile_bytes(name):
  with pytest.raises(
    ValueError, match=r'^These \d+ bytes are not a saved state'
  ):
    serialization.msgpack_restore(HOSTILE[name])


def test_what_is_not_bytes_is_a_mistake_of_the_caller():
  with pytest.raises(TypeError):
    serialization.msgpack_restore('text')


def test_extensions_of_others_are_left_alone():
  extension = msgpack.ExtType(42, b'data')
  assert serialization.msgpack_restore(msgpack.packb(extension)) == extension


def test_without_msgpack(monkeypatch):
  """State dicts need no MessagePack; the error of bytes names the extra."""
  real_import = builtins.__import__

  def no_msgpack(name, *args, **kwargs):
    if name == 'msgpack':
      raise ImportError(name)
    return real_import(name, *args, **kwargs)

  monkeypatch.setattr(builtins, '__import__', no_msgpack)
  state = serialization.to_state_dict({'a': np.ones(2)})
  serialization.from_state_dict({'a': 0}, state)
  for program in (
    lambda: serialization.to_bytes({}),
    lambda: serialization.from_bytes({}, b''),
  ):
    with pytest.raises(ImportError, match=r"'.\[serialization\]'"):
      program()


@pytest.mark.parametrize('data', [b'abc', b'', b'\xc1', b'\x92\x01'])
def test_malformed_bytes_are_also_what_messagepack_raises(data):
  """Programs catch `ExtraData`, say; ours has a longer message."""
  theirs = pytest.importorskip('flax.serialization')
  with pytest.raises(Exception) as expected:
    theirs.msgpack_restore(data)
  with pytest.raises(expected.type, match='are not a saved state') as e:
    serialization.msgpack_restore(data)
  assert isinstance(e.value, ValueError)
  again = pickle.loads(pickle.dumps(e.value))
  assert type(again).__mro__[1:] == type(e.value).__mro__[1:]
  assert str(again) == str(e.value)
