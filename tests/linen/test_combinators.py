"""Sequential and BatchApply; what holds for all layers: test_layers.py."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layers_compare import assert_same_leaves

import haiku_state.linen as nn
from haiku_state.linen import batch_apply

KEY = jax.random.key(0)
Pair = collections.namedtuple('Pair', 'a b')


def run(layers, *args, **kwargs):
  return nn.Sequential(layers).apply({}, *args, **kwargs)


def test_the_first_layer_gets_all_arguments():
  assert run([lambda a, b, *, c: a + b + c], 1, 2, c=3) == 6


@pytest.mark.parametrize(
  'between, after, want',
  [
    (lambda x: (x, 2), lambda a, b: a + b, 3),
    (lambda x: Pair(x, 2), lambda a, b: a + b, 3),
    (lambda x: {'b': x, 'a': 5}, lambda a, b: a - b, 4),
    (lambda x: [x, 2], lambda xs: sum(xs), 3),
    (lambda x: (), lambda: 7, 7),
    (lambda x: nn.FrozenDict(a=x), lambda d: d['a'], 1),
    (lambda x: None, lambda x: x, None),
  ],
  ids=['tuple', 'namedtuple', 'dict', 'list', 'empty', 'FrozenDict', 'None'],
)
def test_outputs_are_spread(between, after, want):
  assert run([between, after], 1) == want
  assert run((between, after), 1) == want


def test_output_of_the_last_layer_is_returned_as_it_is():
  assert run([lambda x: (x,)], 1) == (1,)


def test_layers_in_line_see_shapes():
  model = nn.Sequential([lambda x: nn.Dense(x.shape[-1])(x), nn.Dense(2)])
  variables = model.init(KEY, jnp.ones((1, 3)))
  assert variables['params']['Dense_0']['kernel'].shape == (3, 3)


def test_names_are_those_of_flax():
  flax_nn = pytest.importorskip('flax.linen')

  def variables(nn):
    shared = nn.Dense(3)
    model = nn.Sequential(
      [shared, nn.relu, nn.Sequential([nn.Dense(3), shared]), nn.Dense(1)]
    )
    return model.init(KEY, jnp.ones((2, 3)))

  assert_same_leaves(variables(nn), variables(flax_nn))


@pytest.mark.parametrize('layers', [jnp.tanh, {1: jnp.tanh}, {jnp.tanh}])
def test_layers_must_be_a_sequence(layers):
  with pytest.raises(ValueError, match="'layers' must be a sequence, got"):
    nn.Sequential(layers)


@pytest.mark.parametrize('layers', [[], ()])
def test_no_layers_are_an_error_at_the_call(layers):
  with pytest.raises(ValueError, match='Empty Sequential module seq.'):
    nn.Sequential(layers, name='seq').init(KEY, 1)


# BatchApply.


def test_leading_axes_are_merged_and_split():
  seen = []

  def f(x, w, *, scale):
    seen.append((x.shape, w.shape, scale.shape))
    return {'y': x @ w, 'rows': jnp.arange(len(x))}

  x, w = jnp.arange(24.0).reshape(2, 3, 4), jnp.arange(4.0)
  out = nn.BatchApply(f)(x, w, scale=jnp.ones(()))
  assert seen == [((6, 4), (4,), ())]
  np.testing.assert_array_equal(out['y'], x @ w)
  np.testing.assert_array_equal(out['rows'], np.arange(6).reshape(2, 3))


def test_module_and_number_of_axes():
  layer = nn.Dense(2)
  x = jnp.ones((2, 3, 4, 5))
  variables = layer.init(KEY, x)
  wrapped = nn.BatchApply(lambda x: layer.apply(variables, x), num_dims=3)
  np.testing.assert_allclose(wrapped(x), layer.apply(variables, x), 1e-6)


def test_sizes_come_from_the_first_leaf_with_enough_axes():
  f = lambda *args, **kwargs: jnp.zeros(6)
  assert nn.BatchApply(f)(jnp.ones(3), np.ones((2, 3))).shape == (2, 3)
  assert nn.BatchApply(f)(1.0, x=jnp.ones((3, 2))).shape == (3, 2)


def test_some_argument_must_have_enough_axes():
  words = 'BatchApply requires at least one input with ndim >= 3.'
  with pytest.raises(ValueError, match=words):
    nn.BatchApply(lambda x: x, 3)(jnp.ones((2, 3)))


def test_merge_and_split_are_inverse():
  x = np.arange(24).reshape(2, 3, 4)
  for n in (1, 2, 3):
    merged = batch_apply.merge_leading_dims(x, n)
    split = batch_apply.split_leading_dim(merged, x.shape[:n])
    np.testing.assert_array_equal(split, x)
  assert batch_apply.merge_leading_dims(x, 4) is x
