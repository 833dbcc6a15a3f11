"""The layouts of variables: every leaf arrives, and comes back."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from haiku_state import interop
from haiku_state import linen as nn
from haiku_state.core import freeze

KEY = jax.random.PRNGKey(0)
names = st.sampled_from(
  ['a', 'b', 'Dense_0', '~', 'x-1', 'a/b', 'é', '0', '', 'haiku:', 'haiku:/a']
)
plain_names = st.sampled_from(['a', 'b', 'Dense_0', 'x-1', 'é', '0'])
# Sets of leaves: a leaf below another is left out.
paths = st.lists(st.lists(names, min_size=1, max_size=4), max_size=6)
plain_paths = st.lists(
  st.lists(plain_names, min_size=1, max_size=4), max_size=6
)


def nest(paths):
  """Returns nested dicts with a number at each path that has room."""
  tree = {}
  for number, path in enumerate(paths):
    level = tree
    for name in path[:-1]:
      level = level.setdefault(name, {})
      if not isinstance(level, dict):
        break
    else:
      level.setdefault(path[-1], number)
  return tree


def holds_a_leaf(tree):
  return isinstance(tree, dict) and any(
    not isinstance(value, dict) for value in tree.values()
  )


def dropping_empty(variables):
  return {col: tree for col, tree in variables.items() if tree}


@settings(deadline=None)
@given(paths, paths, st.sampled_from([None, 'mlp', 'a/~/b']))
def test_to_haiku_and_back(params, stats, root):
  variables = dropping_empty(
    {'params': nest(params), 'batch_stats': nest(stats), 'state': nest(params)}
  )
  tops = [tree.get(n) for tree in variables.values() for n in ('~', 'haiku:/a')]
  if root is None and any(holds_a_leaf(top) for top in tops):
    with pytest.raises(ValueError, match='root='):
      interop.to_haiku(variables)
    return
  back = interop.from_haiku(*interop.to_haiku(variables, root), root=root)
  assert back == variables


bundles = st.dictionaries(
  st.sampled_from(['~', 'linear', 'mlp/~/linear_0', 'mlp', 'other/~m/x']),
  st.dictionaries(
    st.sampled_from(['w', 'b', 'a_b']), st.integers(), min_size=1
  ),
)


@settings(deadline=None)
@given(bundles, bundles)
def test_from_haiku_and_back(params, state):
  assert interop.to_haiku(interop.from_haiku(params, state)) == (params, state)
  module = interop.to_flax_module(params, state)
  assert interop.from_flax_module(module) == (params, state)


# Names that a file may have, and no module of Haiku's.
odd = st.text(alphabet='a~/:-_0xr7b d', max_size=8) | st.text(max_size=3)
odd_bundles = st.dictionaries(
  odd, st.dictionaries(odd, st.integers(), min_size=1), max_size=4
)


@settings(deadline=None, max_examples=3 * settings.default.max_examples)
@given(odd_bundles, odd_bundles, st.sampled_from([None, 'a', 'a/~/b']))
@example({}, {'': {'': 0}, 'b': {'/:0': 0}}, None)
@example({}, {'': {'': 0}, '~': {'/:b': 0}}, None)
def test_every_haiku_dictionary_comes_back_or_is_refused(params, state, root):
  try:
    variables = interop.from_haiku(params, state, root)
  except ValueError as e:
    assert 'is the name of a value and of a module' in str(e)
    return
  try:
    assert interop.to_haiku(variables, root) == (params, state)
  except TypeError as e:
    # A collection `/` with a variable `b` looks like a module of Haiku's.
    assert "found Haiku's trees" in str(e)
    assert any('/' in col for col in variables)


@settings(deadline=None)
@given(plain_paths, plain_paths)
def test_lifted_and_back(params, stats):
  variables = dropping_empty({'params': nest(params), 'st': nest(stats)})
  lifted = interop.to_lifted(variables, name='o/l')
  assert interop.from_lifted(*lifted, name='o/l') == variables


CLASHES = {
  'value and module': lambda: interop.from_haiku(
    {'~': {'a': 1}, 'a': {'w': 2}}
  ),
  'value and module, in order': lambda: interop.from_haiku(
    {'a': {'w': 2}, '~': {'a': 1}}
  ),
  'lifted': lambda: interop.from_lifted(
    {'l/~': {'a': 1}, 'l/a': {'w': 2}}, name='l'
  ),
  'lifted, in order': lambda: interop.from_lifted(
    {'l/a': {'w': 2}, 'l/~': {'a': 1}}, name='l'
  ),
  'flax module': lambda: interop.to_flax_module(
    {'a': {'w': 1}, 'a/w': {'b': 2}}
  ),
}


@pytest.mark.parametrize('name', CLASHES)
def test_clash_is_an_error_with_the_name(name):
  with pytest.raises(ValueError, match='"(a|w)"'):
    CLASHES[name]()


NO_PLACE = {
  'slash': (
    lambda: interop.to_lifted({'params': {'a/b': {'c': 1}}}, name='l'),
    'a/b',
  ),
  'top': (
    lambda: interop.to_lifted({'params': {'~': {'c': 1}}}, name='l'),
    '~',
  ),
  'collection': (
    lambda: interop.from_flax_module({'batch_stats': {}}),
    'batch_stats',
  ),
  'value at the top': (
    lambda: interop.from_flax_module({'params': {'w': 1}}),
    '"w"',
  ),
}


@pytest.mark.parametrize('name', NO_PLACE)
def test_what_a_layout_cannot_hold_is_an_error(name):
  make, words = NO_PLACE[name]
  with pytest.raises(ValueError, match=words):
    make()


def test_leaves_may_be_anything():
  x = jax.ShapeDtypeStruct((2,), jnp.float32)
  params, _ = interop.to_haiku(freeze({'params': {'a': {'w': x}}}), 'r')
  assert params == {'r/a': {'w': x}}
  assert interop.from_haiku({'a': {'w': None}}) == {
    'params': {'a': {'w': None}}
  }


# --- As Haiku and Flax make them ---------------------------------------------


class Odd(hk.Module):
  """A module with a parameter and state of any name."""

  def __init__(self, param, state):
    super().__init__(name='odd')
    self.param, self.state = param, state

  def __call__(self):
    w = hk.get_parameter(self.param, (2,), init=jnp.ones)
    n = hk.get_state(self.state, (), init=jnp.zeros)
    hk.set_state(self.state, n + 1)
    return w + n


class Around(nn.Module):
  weight: str
  count: str

  @nn.compact
  def __call__(self):
    return Odd(self.weight, self.count)()


@pytest.mark.parametrize(
  'param', ['w/x', 'w:x', '', '_0xr_', '_0xr7b7d_', '_0x2f_', 'haiku:w']
)
@pytest.mark.parametrize(
  'state',
  ['a:b', 'a:b:c', 's/t', 'x:', ':', '', 'state:x', 'params:w', 'params:'],
)
def test_what_haiku_makes_inside_of_ours_apply_finds(param, state):
  model = Around(param, state)
  variables = model.init(KEY)
  # At init Haiku's state is the first value; state of a collection the last.
  others = [col for col in variables if col != 'params']
  (first,) = jax.tree.leaves([variables[col] for col in others])
  y, changed = model.apply(variables, mutable=others)
  np.testing.assert_array_equal(y, 1 + first * jnp.ones(2))
  (n,) = jax.tree.leaves(changed)
  assert n == first + 1
  params, states = interop.to_haiku(variables, root='around')
  assert list(params) == ['around/odd'] and list(params['around/odd']) == [
    param
  ]
  assert list(states['around/odd']) == [state]


class Block(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.Dense(3)(x) + self.param('b', nn.initializers.ones, (3,))
    return nn.BatchNorm(use_running_average=True)(x)


X = jnp.ones((2, 3))


def test_root_is_what_haiku_makes():
  f = hk.transform_with_state(lambda x: Block()(x))
  want = f.init(KEY, X)
  got = interop.to_haiku(Block().init(KEY, X), root='block')
  assert jax.tree.structure(got) == jax.tree.structure(
    jax.tree.map(lambda x: x, want)
  )
  y = Block().apply(interop.from_haiku(*want, root='block'), X)
  np.testing.assert_array_equal(y, f.apply(*want, None, X)[0])


def test_lifted_is_what_haiku_makes():
  pytest.importorskip('flax')
  import flax.linen as fnn

  class FlaxBlock(fnn.Module):
    @fnn.compact
    def __call__(self, x):
      x = fnn.Dense(3)(x) + self.param('b', fnn.initializers.ones, (3,))
      return fnn.BatchNorm(use_running_average=True)(x)

  def f(x):
    return hk.experimental.flax.lift(FlaxBlock(), name='l')(hk.Linear(3)(x))

  f = hk.transform_with_state(f)
  params, state = f.init(KEY, X)
  variables = interop.from_lifted(params, state, name='l')
  want = FlaxBlock().init(KEY, X)
  assert jax.tree.structure(variables) == jax.tree.structure(dict(want))
  # Our module reads them, and they go back to where they were.
  x = hk.transform(lambda x: hk.Linear(3)(x)).apply(params, None, X)
  y = Block().apply(variables, x)
  np.testing.assert_allclose(y, f.apply(params, state, None, X)[0], 1e-6)
  back_params, back_state = interop.to_lifted(variables, name='l')
  assert {**back_params, 'linear': params['linear']} == params
  assert back_state == state


def test_flax_module_is_what_haiku_makes():
  pytest.importorskip('flax')

  def f(x):
    w = hk.get_parameter('w', (3,), init=jnp.ones)
    return hk.BatchNorm(True, True, 0.9)(hk.Linear(3)(x) + w, True)

  f = hk.transform_with_state(f)
  variables = hk.experimental.flax.Module(f).init(KEY, X)
  params, state = interop.from_flax_module(variables)
  assert jax.tree.structure((params, state)) == jax.tree.structure(
    jax.tree.map(lambda x: x, f.init(KEY, X))
  )
  assert interop.to_flax_module(params, state) == variables
