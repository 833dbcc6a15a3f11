"""Types: the aliases are Flax's; the classes behave."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haiku_state import typing

ALIASES = [
  'Array',
  'ArrayPytree',
  'Axes',
  'Axis',
  'AxisName',
  'Collection',
  'ConvGeneralDilatedT',
  'DotGeneralT',
  'Dtype',
  'EinsumT',
  'Initializer',
  'LaxPadding',
  'Leaf',
  'LogicalNames',
  'LogicalPartitionSpec',
  'LogicalPartitionSpecPytree',
  'LogicalRules',
  'MutableCollection',
  'MutableVariableDict',
  'PRNGFoldable',
  'PRNGKey',
  'PaddingLike',
  'PartitionSpecPytree',
  'Path',
  'PrecisionLike',
  'RNGSequences',
  'ScanAxis',
  'Shape',
  'Sharding',
  'VariableDict',
]
# These name classes of ours, so they cannot be equal to Flax's.
OWN_ALIASES = ['FrozenVariableDict', 'InOutAxis', 'InOutScanAxis', 'PathParts']
OTHERS = [
  'BaseConfigContext',
  'HashableMapping',
  'In',
  'Key',
  'MISSING',
  'Missing',
  'Out',
  'PromoteDtypeFn',
  'PytreeDeque',
  'ShapeDtype',
  'SizeBytes',
  'has_shape_dtype',
  'is_key_like',
]


@pytest.fixture
def flax_typing():
  return pytest.importorskip('flax.typing')


def test_there_are_47_names():
  assert len({*ALIASES, *OWN_ALIASES, *OTHERS}) == 47


@pytest.mark.parametrize('name', ALIASES)
def test_alias_is_flaxs(flax_typing, name):
  assert getattr(typing, name) == getattr(flax_typing, name)


@pytest.mark.parametrize('name', OWN_ALIASES)
def test_alias_reads_as_flaxs(flax_typing, name):
  ours, theirs = (str(getattr(t, name)) for t in (typing, flax_typing))
  assert ours.replace('haiku_state', 'flax') == theirs


@pytest.mark.parametrize('name', OTHERS)
def test_signature_is_flaxs(flax_typing, name):
  ours, theirs = getattr(typing, name), getattr(flax_typing, name)
  if callable(theirs) and name != 'PytreeDeque':
    names = lambda f: [
      (p.name, p.kind, p.default)
      for p in inspect.signature(f).parameters.values()
    ]
    assert names(ours) == names(theirs)


def test_imports_nothing_of_core():
  # At the top level, that is: `core` imports this file.
  lines = inspect.getsource(typing).splitlines()
  assert not [
    line for line in lines if line.startswith('from haiku_state.core')
  ]
  with pytest.raises(AttributeError, match='no attribute .Nothing.'):
    _ = typing.Nothing


def test_in_and_out():
  assert typing.In(1) == typing.In(1) != typing.Out(1)
  assert hash(typing.In('a')) == hash(typing.In('a'))
  with pytest.raises(AttributeError):
    typing.Out(1).axis = 2


@pytest.mark.parametrize(
  'x, expected',
  [
    ('a', True),
    (1, True),
    ((1,), True),
    (None, True),
    ({}, False),
    ([], False),
  ],
)
def test_is_key_like(x, expected):
  # Flax says True of everything: dicts have a `__hash__` as well, None.
  assert typing.is_key_like(x) is expected


@pytest.mark.parametrize(
  'size, nbytes',
  [(0, 0), (1, 999), (3, 1000), (1234, 1001), (5, 2_500_000), (6, 7e9)],
)
def test_size_bytes_text(flax_typing, size, nbytes):
  ours, theirs = (
    typing.SizeBytes(size, nbytes),
    flax_typing.SizeBytes(size, nbytes),
  )
  assert repr(ours) == repr(theirs)
  assert bool(ours) == bool(theirs) == bool(size)


def test_size_bytes_counts():
  tree = {
    'a': jnp.ones((2, 3), jnp.bfloat16),
    'b': [np.zeros(4), 'x', None],
    'c': jax.ShapeDtypeStruct((5,), 'int8'),
    'key': jax.random.key(0),
  }
  total = typing.SizeBytes.from_any(tree)
  assert total == typing.SizeBytes(6 + 4 + 5 + 1, 12 + 32 + 5 + 8)
  assert total + typing.SizeBytes(1, 1) == typing.SizeBytes(17, 58)


def test_pytree_deque():
  deque = typing.PytreeDeque([1, {'a': 2}])
  again = jax.tree.map(lambda x: x + 1, deque)
  assert type(again) is typing.PytreeDeque and list(again) == [2, {'a': 3}]
  paths = [
    jax.tree_util.keystr(path)
    for path, _ in jax.tree_util.tree_flatten_with_path(deque)[0]
  ]
  assert paths == ['[0]', "[1]['a']"]


mappings = st.dictionaries(
  st.text(max_size=2) | st.integers(0, 9), st.integers()
)


@settings(deadline=None)
@given(mappings, mappings)
def test_hashable_mapping(a, b):
  x, y = typing.HashableMapping(a), typing.HashableMapping(b)
  assert (x == y) == (a == b)
  assert hash(x) == hash(typing.HashableMapping(dict(reversed(a.items()))))
  assert dict(x.update(y)) == {**a, **b} and dict(x) == a
  assert repr(x) == repr(a)


def test_hashable_mapping_copies_unless_told_not_to():
  source = {'a': 1}
  copied = typing.HashableMapping(source)
  shared = typing.HashableMapping(source, copy=False)
  source['a'] = 2
  assert (copied['a'], shared['a']) == (1, 2)


def test_hashable_mapping_wants_simple_keys():
  with pytest.raises(ValueError, match='Unsupported key type'):
    hash(typing.HashableMapping({(1,): 2}))


@pytest.fixture(params=['ours', 'flax'])
def context(request):
  if request.param == 'flax':
    base = pytest.importorskip('flax.typing').BaseConfigContext
  else:
    base = typing.BaseConfigContext

  class use_depth(base):
    stack = []

    @classmethod
    def get_default(cls):
      return 0

    @classmethod
    def get_stack(cls):
      return cls.stack

  return use_depth


def test_context_for_good(context):
  assert context.current_value() == 0
  context(1)
  context(2)
  assert context.current_value() == 2 and context.stack == [2]


def test_context_in_a_block(context):
  with context(1):
    with context(2):
      assert context.current_value() == 2
    assert context.current_value() == 1
  assert context.current_value() == 0 and context.stack == []


def test_context_as_a_decorator(context):
  context(1)

  @context(5)
  def f():
    return context.current_value()

  assert context.current_value() == 1
  assert f() == 5
  assert context.current_value() == 1
  with pytest.raises(KeyError):

    @context(6)
    def g():
      raise KeyError

    g()
  assert context.stack == [1]
