"""Variables and Haiku's dictionaries are two forms of one thing."""

import haiku as hk
import jax.numpy as jnp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from haiku_state.core import FrozenDict, _bundles, _names

quick = settings(
  deadline=None,
  suppress_health_check=[HealthCheck.too_slow],
)

# Names that the two forms could take for something else.
AWKWARD = (
  '',
  '0',
  '007',
  'a',
  'layer-1',
  'a/b',
  '/a',
  'a/',
  '/',
  '//',
  ':',
  'a:b',
  'state:x',
  ':x',
  'x:',
  '~',
  '~a',
  '~/a',
  '~0',
  '_0x2d_',
  '_0x_',
  '__0x2d_',
  '_0x',
  '0x2d_',
  'root',
  'root/a',
  '/root',
  '/other/a',
  'params',
  'state',
  'ünï',
  '名前',
  '\N{GRINNING FACE}',
  'a\nb',
  '\n',
  'a b',
  '\x00',
  'None',
  'class',
  'haiku:',
  'haiku:a',
  'haiku:-',
  'haiku:haiku:-',
  'haiku:/',
  'haiku:/other/a',
  'haiku:/root/a',
  'haiku:/root/haiku_0x3a__0x2f_x',
  'haiku:x:',
  'haiku:params:w',
  'haiku:_0xr_',
  'haiku:_0x_',
  'haiku:_0xr31_',
  'haiku:haiku:',
  'haiku_0x3a_a',
  'haiku_0x3a__0x2d_',
  '_0xr_',
  '_0xr7b7d_',
  '_0xr5b5d_',
  '_0xr31_',
  '_0xr31',
  '_0xr3031_',
  '_0xrzz_',
  '_0xr4e6f6e65_',
  '_0xffffffffff_',
  '_0x2D_',
  'params:w',
  'params::w',
  'root/-',
)
names = st.one_of(
  st.sampled_from(AWKWARD),
  st.text(max_size=4),
  st.text(alphabet='_0x2d~:/a', max_size=7),
  st.lists(
    st.sampled_from(
      ['haiku:', '_0x', '3a', '_', '-', '/', '0xr', 'a', ':', '_0x_', '_0xr31_']
    ),
    max_size=6,
  ).map(''.join),
)
leaves = st.one_of(st.integers(), st.just(()), st.tuples(st.integers()))
# Variables may be dicts, whose keys may be no strings.
numbers = st.one_of(st.integers(), st.floats(-9, 9), st.booleans())
keys = st.one_of(names, numbers, st.tuples(names, numbers))
below = st.recursive(
  st.dictionaries(keys, leaves, max_size=4),
  lambda below: st.dictionaries(keys, st.one_of(leaves, below), max_size=3),
  max_leaves=12,
)
trees = st.dictionaries(names, st.one_of(leaves, below), max_size=3)
collections = st.one_of(
  st.sampled_from(['params', 'state', 'batch_stats', 'cache']), names
)
variables = st.dictionaries(collections, trees, max_size=4)
roots = st.sampled_from(['root', 'mlp', 'a', '_0x_', '~', 'root/inner'])


# --- From variables and back -------------------------------------------------


@quick
@given(variables, roots)
def test_variables_come_back(v, root):
  try:
    params, state = _bundles.to_haiku(v, root)
  except ValueError as e:
    # The one kind that Haiku's two levels cannot hold is refused.
    assert 'would be read back as the collection' in str(e)
    return
  for bundles in (params, state):
    for path, bundle in bundles.items():
      assert isinstance(path, str)
      for key, value in bundle.items():
        assert isinstance(key, str)
        # Two levels: what lies below is a leaf, or an empty dict in its place.
        assert not (isinstance(value, dict) and value)
  assert _bundles.from_haiku(params, state, root) == v


@quick
@given(variables, roots)
def test_frozen_variables_come_back_as_plain_dicts(v, root):
  frozen = {col: FrozenDict(tree) for col, tree in v.items()}
  try:
    plain = _bundles.to_haiku(v, root)
  except ValueError as e:
    # The one kind that Haiku's two levels cannot hold: it is refused alike.
    assert 'would be read back as the collection' in str(e)
    with pytest.raises(ValueError, match='would be read back'):
      _bundles.to_haiku(frozen, root)
    return
  params, state = _bundles.to_haiku(frozen, root)
  assert (params, state) == plain
  assert _bundles.from_haiku(params, state, root) == v


@pytest.mark.parametrize(
  'v',
  [
    {},
    {'params': {}},
    {'state': {}},
    {'': {}},
    {'params': {}, 'state': {}, 'a:b': {}},
    {'params': {'a': {}}},
    {'state': {'a': {}, 'b': {'c': {}}}},
    {'params': {'': {'': 1}}, '': {'': {'': 1}}},
    {'state': {'a:b': 1}, 'a': {'b': 2}},
    {'params': {'a/b': {'c': 1}, 'a': {'b': {'d': 2}}}},
    {'params': {'a/b': 1, 'a': {'b': 2}}},
    {'params': {'_0x2d_': {'x': 1}, '-': {'x': 2}}},
    {'state': {'params:a': 1}, 'params': {'a': 2}},
    {'params': {'/other/a': {'b': 1}}},
    {'params': {'haiku:/other/a': {'b': 1, 'c': {'d': 2}}}},
    {'params': {'haiku:/root': {'b': 1}, 'haiku:/root/a': {'b': 1}}},
    {'state': {'haiku:x:': 1, 'haiku:a:b:c': 1, 'haiku:a:b': 1}},
    {'params': {'/root': {'b': 1}, '/root/a': {'b': 1}}},
    {'cache': {'~': {'~': {'x': 1}}}},
  ],
  ids=repr,
)
def test_examples_come_back(v):
  assert _bundles.from_haiku(*_bundles.to_haiku(v, 'root'), 'root') == v


def test_the_map_is_the_documented_one():
  v = {
    'params': {'Dense_0': {'kernel': 1}, 'scale': 2},
    'batch_stats': {'BatchNorm_0': {'mean': 3}},
    'state': {'linear': {'counter': 4}},
    'cache': {'attend': {'index': {'now': 5}}},
  }
  assert _bundles.to_haiku(v, 'net') == (
    {'net': {'scale': 2}, 'net/Dense_0': {'kernel': 1}},
    {
      'net/BatchNorm_0': {'batch_stats:mean': 3},
      'net/linear': {'counter': 4},
      'net/attend/index': {'cache:now': 5},
    },
  )


# --- From Haiku's dictionaries and back --------------------------------------

# What Haiku itself accepts as a component of a module's name.
components = st.one_of(
  st.from_regex(r'~?[A-Za-z_][A-Za-z0-9_]{0,5}', fullmatch=True),
  st.sampled_from(['~', 'linear', 'linear_1', '__', 'a']),
).filter(lambda c: '_0x' not in c)
keys = st.text(alphabet='abw_01', min_size=1, max_size=4).filter(
  lambda k: '_0x' not in k
)
paths = st.lists(components, min_size=0, max_size=3)


@st.composite
def haiku_dictionaries(draw):
  """Returns parameters and state such as Haiku's modules make."""

  def bundles():
    found = {}
    for path in draw(st.lists(paths, max_size=4)):
      bundle = draw(st.dictionaries(keys, st.integers(), min_size=1))
      found['/'.join(['net', *path])] = bundle
    return found

  return bundles(), bundles()


def _is_ambiguous(bundles):
  """Returns whether a value and a module have the same place."""
  return any(
    path == f'{other}/{key}' or path.startswith(f'{other}/{key}/')
    for path in bundles
    for other, bundle in bundles.items()
    for key in bundle
  )


@quick
@given(haiku_dictionaries())
def test_haiku_s_dictionaries_come_back(dictionaries):
  params, state = dictionaries
  if _is_ambiguous(params) or _is_ambiguous(state):
    with pytest.raises(ValueError, match='of a value and of a module'):
      _bundles.from_haiku(params, state, 'net')
    return
  v = _bundles.from_haiku(params, state, 'net')
  assert set(v) <= {'params', 'state'}
  back, back_state = _bundles.to_haiku(v, 'net')
  back = {path: bundle for path, bundle in back.items() if bundle}
  assert (back, back_state) == (params, state)


@quick
@given(st.dictionaries(keys, st.integers(), min_size=1), paths)
def test_a_module_outside_of_the_root_comes_back(bundle, path):
  outside = '/'.join(['elsewhere', *path])
  v = _bundles.from_haiku({outside: bundle}, {}, 'net')
  assert v == {'params': {'haiku:/' + outside: bundle}}
  params, state = _bundles.to_haiku(v, 'net')
  assert {p: b for p, b in params.items() if b} == {outside: bundle}
  assert state == {}


# Dictionaries that no module of Haiku's makes, but a file may hold.
hostile = st.dictionaries(
  names | st.lists(names, max_size=3).map(lambda x: '/'.join(['root', *x])),
  st.dictionaries(names, st.integers(), min_size=1, max_size=3),
  max_size=4,
)


@settings(parent=quick, max_examples=5 * settings.default.max_examples)
@given(hostile, hostile, roots)
def test_every_dictionary_comes_back_or_is_refused(params, state, root):
  try:
    v = _bundles.from_haiku(params, state, root)
  except ValueError as e:
    assert 'is the name of a value and of a module' in str(e)
    assert _is_ambiguous_here(params, state, root)
    return
  back, back_state = _bundles.to_haiku(v, root)
  assert {path: bundle for path, bundle in back.items() if bundle} == params
  assert back_state == state


def _is_ambiguous_here(params, state, root):
  """Returns whether a leaf has the place of another, or of a level."""
  places = [
    _bundles.place_of(root, path, key, is_param)
    for bundles, is_param in ((params, True), (state, False))
    for path, bundle in bundles.items()
    for key in bundle
  ]
  whole = [(col, *names, name) for col, names, name in places]
  return any(
    one != other and other[: len(one)] == one
    for one in whole
    for other in whole
  )


@pytest.mark.parametrize('name', ['haiku:x:', 'haiku:_0x_:'])
def test_what_would_be_read_as_an_empty_collection_is_refused(name):
  with pytest.raises(ValueError, match=name):
    _bundles.to_haiku({'state': {name: {}}}, 'root')


# --- Names -------------------------------------------------------------------


@quick
@given(names)
def test_names_come_back(name):
  assert _names.unescape_module(_names.escape_module(name)) == name
  assert _names.unescape_key(_names.escape_key(name)) == name
  for col in ('c', 'params'):
    key = _names.state_key(col, name)
    assert _bundles.place_of('root', 'root', key, False) == (col, (), name)
  assert _names.split_state_key(_names.state_key('state', name)) == (
    'state',
    name,
  )


@quick
@given(names)
def test_names_of_haiku_come_back(text):
  component = text.replace('/', '')
  name = _names.unescape_module(component)
  assert _names.escape_module(name) == component
  assert _names.escape_key(_names.unescape_key(text)) == text
  assert _names.state_key(*_names.split_state_key(text)) == text


@quick
@given(st.lists(names, min_size=2, max_size=2, unique=True))
def test_different_names_stay_different(pair):
  a, b = pair
  assert _names.escape_module(a) != _names.escape_module(b)
  assert _names.escape_key(a) != _names.escape_key(b)
  assert _names.state_key(a, 'x') != _names.state_key(b, 'x')
  assert _names.state_key('x', a) != _names.state_key('x', b)


@quick
@given(names, names, names, names)
def test_collection_and_name_are_told_apart(col, name, col2, name2):
  same = (col, name) == (col2, name2)
  assert (_names.state_key(col, name) == _names.state_key(col2, name2)) is same


def _is_own(name):
  """Returns whether a name is not marked as one that Haiku would not make."""
  return not name.startswith(_names.RAW)


@quick
@given(st.lists(names.filter(_is_own), min_size=1, max_size=3))
def test_haiku_accepts_every_escaped_name(path):
  whole = '/'.join(['net', *map(_names.escape_module, path)])

  class Net(hk.Module):
    def __init__(self):
      super().__init__(name=hk.force_name(whole))

    def __call__(self):
      return hk.get_parameter('w', (), init=jnp.zeros)

  params = hk.transform(lambda: Net()()).init(None)
  assert set(params) == {whole}
  assert _bundles.from_haiku(params, {}, 'net') == {
    'params': _nested(path, {'w': 0.0})
  }


def _nested(path, leaf):
  for name in reversed(path):
    leaf = {name: leaf}
  return leaf


@pytest.mark.parametrize(
  'name', [n for n in AWKWARD if _is_own(n) and n != 'params'], ids=repr
)
def test_haiku_accepts_awkward_names(name):
  escaped = _names.escape_module(name)

  def f():
    with hk.name_scope(hk.force_name(f'net/{escaped}')):
      return hk.get_state(_names.state_key(name, name), (), init=jnp.ones)

  _, state = hk.transform_with_state(f).init(None)
  ((path, _),) = state.items()
  assert path == f'net/{escaped}'
  assert _bundles.from_haiku({}, state, 'net') == {name: {name: {name: 1.0}}}


@pytest.mark.parametrize('key', [object(), None, float('nan'), jnp.int32])
def test_keys_that_no_text_stands_for_are_refused(key):
  with pytest.raises(TypeError, match=f'of type {type(key).__name__}.*strings'):
    _bundles.to_haiku({'cache': {'x': {key: 1}}}, 'root')
