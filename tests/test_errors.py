"""Every error: its words, its name, its way through pickle, and Flax's own."""

import copy
import inspect
import pickle
from types import SimpleNamespace

import pytest

from haiku_state import errors

FLAX_PAGE = (
  'https://flax.readthedocs.io/en/latest/api_reference/flax.errors.html'
)

A_CURSOR = SimpleNamespace(_path="['a']")
B_CURSOR = SimpleNamespace(_path='.b')

# class name, constructor arguments, words that must occur
ROWS = [
  ('FlaxError', ('all wrong',), ['all wrong']),
  ('TraceContextError', ('wrong trace',), ['wrong trace']),
  ('LazyInitError', ('(2, 3)',), ['Lazy init', 'shape: (2, 3)']),
  ('InvalidRngError', ('needs PRNG for "dropout"',), ['PRNG', '"dropout"']),
  (
    'ApplyScopeInvalidVariablesTypeError',
    (),
    ['first argument', 'dictionary of collections', 'string keys'],
  ),
  (
    'ApplyScopeInvalidVariablesStructureError',
    ({'params': {'params': {}}},),
    ['{"params": {"params": ... } }', 'extra params layer'],
  ),
  ('ScopeParamNotFoundError', ('kernel', '/a'), ['"kernel"', '"/a"']),
  (
    'ScopeCollectionNotFound',
    ('stats', 'mean', '/bn'),
    ['"mean"', 'collection "stats"', '"/bn"', 'is empty'],
  ),
  (
    'ScopeParamShapeError',
    ('kernel', '/a', (5, 2), (3, 2)),
    ['"kernel"', '"/a"', 'generate shape (3, 2)', 'has shape (5, 2)'],
  ),
  (
    'ScopeVariableNotFoundError',
    ('mean', 'stats', '/bn'),
    ['Variable named "mean"', 'collection "stats"', '"/bn"'],
  ),
  ('InvalidFilterError', (3,), ['Invalid Filter: "3"']),
  ('InvalidScopeError', ('a/b',), ['"a/b"', 'no longer valid']),
  (
    'ModifyScopeVariableError',
    ('stats', 'mean', '/bn'),
    ['update variable "mean"', '"/bn"', 'collection "stats" is immutable'],
  ),
  ('ImmutableVariableError', ('cannot set "n"',), ['cannot set "n"']),
  ('JaxTransformError', (), ['Jax transforms', 'cannot be mixed']),
  (
    'PartitioningUnspecifiedError',
    ('Partitioned(...)',),
    ['"partition_name" is not', 'metadata_params: Partitioned(...)'],
  ),
  (
    'NameInUseError',
    ('param', 'bias', 'Foo'),
    ['create param "bias" in Module Foo: Name in use.'],
  ),
  ('AssignSubModuleError', ('Dense',), ['Submodule Dense', '`setup()`']),
  ('SetAttributeInModuleSetupError', (), ['attributes are frozen']),
  (
    'SetAttributeFrozenModuleError',
    ('Foo', 'bar', 3),
    ["Can't set bar=3 for Module of type Foo", 'outside of setup'],
  ),
  ('MultipleMethodsCompactError', (), ['Only one method per class']),
  (
    'ReservedModuleAttributeError',
    ({'name': str},),
    ['`parent` and `name` are reserved', "{'name':"],
  ),
  ('ApplyModuleInvalidMethodError', (3,), ['apply(): 3 is not a valid']),
  ('CallCompactUnboundModuleError', (), ['compact methods on unbound']),
  ('CallSetupUnboundModuleError', (), ['compact methods on unbound']),
  ('CallUnbindOnUnboundModuleError', (), ['`unbind()` on unbound']),
  ('CallShareScopeOnUnboundModuleError', (), ['`share_scope` on unbound']),
  ('InvalidInstanceModuleError', (), ['instance of the Module class']),
  ('IncorrectPostInitOverrideError', (), ['`super().__post_init__()`']),
  ('DescriptorAttributeError', (), ['property', 'non-existent attribute']),
  (
    'InvalidCheckpointError',
    ('/tmp/x', 3),
    ['outdated checkpoint', 'step: "3"', 'path: "/tmp/x"'],
  ),
  ('ConcurrentSaveError', ('/tmp/x_tmp',), ['writing "/tmp/x_tmp"']),
  (
    'MPACheckpointingRequiredError',
    ('/tmp/x', 3),
    ['step: "3"', 'path: "/tmp/x"', 'GlobalAsyncCheckpointManager'],
  ),
  (
    'MPARestoreTargetRequiredError',
    ('/tmp/x', 3),
    ['step: "3"', 'path: "/tmp/x"', '``allow_partial_mpa_restoration=True``'],
  ),
  (
    'MPARestoreTargetRequiredError',
    ('/tmp/x', 3, 'a/b'),
    ['trying to restore array at a/b.'],
  ),
  (
    'MPARestoreDataCorruptedError',
    (3, '/tmp/x'),
    ['step: "3"', '"/tmp/x"', '"commit_success.txt"'],
  ),
  ('TransformedMethodReturnValueError', ('foo',), ['method foo cannot return']),
  ('TransformTargetError', ('Foo()',), ['Module class or callable: Foo()']),
  ('AlreadyExistsError', ('/tmp/x',), ['existing file: "/tmp/x"']),
  ('CursorFindError', (), ['No object found']),
  ('CursorFindError', (A_CURSOR,), ['No object found']),
  (
    'CursorFindError',
    (A_CURSOR, B_CURSOR),
    ['More than one object', "paths: ['a'] and .b"],
  ),
  ('TraverseTreeError', (None, None), ['are None']),
  ('TraverseTreeError', (len, len), ['are not None']),
]

each_row = pytest.mark.parametrize(
  'name, args, words', ROWS, ids=[f'{i}-{row[0]}' for i, row in enumerate(ROWS)]
)


def error_classes(module):
  return {
    name: cls
    for name, cls in vars(module).items()
    if inspect.isclass(cls) and issubclass(cls, Exception)
  }


def test_every_class_has_a_row():
  assert set(error_classes(errors)) == {name for name, _, _ in ROWS}


@each_row
def test_message(name, args, words):
  message = str(getattr(errors, name)(*args))
  for word in words:
    assert word in message
  assert message.endswith(f' (haiku_state.errors.{name})')


@each_row
def test_docstring_shows_an_example(name, args, words):
  doc = getattr(errors, name).__doc__
  assert not doc.startswith('It ') and '>>> ' in doc


@each_row
@pytest.mark.parametrize(
  'through',
  [lambda e: pickle.loads(pickle.dumps(e)), copy.copy, copy.deepcopy],
  ids=['pickle', 'copy', 'deepcopy'],
)
def test_survives(through, name, args, words):
  error = getattr(errors, name)(*args)
  error.__notes__ = ['seen in the encoder']
  again = through(error)
  assert type(again) is type(error)
  assert again.args == error.args
  assert again.__notes__ == ['seen in the encoder']


def test_a_message_with_a_name_is_left_alone():
  once = str(errors.InvalidScopeError('a'))
  assert str(errors.FlaxError(once)) == once


class MyError(errors.FlaxError):
  pass


def test_subclass_ends_with_its_own_name():
  assert str(MyError('x')) == f'x ({__name__}.MyError)'
  assert type(pickle.loads(pickle.dumps(MyError('x')))) is MyError


@pytest.fixture
def flax_errors():
  return pytest.importorskip('flax.errors')


def test_same_classes_as_flax(flax_errors):
  own = {'ConcurrentSaveError'}
  assert set(error_classes(errors)) - own <= set(error_classes(flax_errors))


@each_row
def test_same_as_flax(flax_errors, name, args, words):
  if not hasattr(flax_errors, name):
    pytest.skip('It is only here.')
  ours, theirs = getattr(errors, name), getattr(flax_errors, name)
  assert inspect.signature(ours) == inspect.signature(theirs)
  assert [c.__name__ for c in ours.__mro__] == [
    c.__name__ for c in theirs.__mro__
  ]
  expected = str(theirs(*args)).replace(
    f'{FLAX_PAGE}#flax.errors.', 'haiku_state.errors.'
  )
  assert str(ours(*args)) == expected
