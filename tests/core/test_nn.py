"""Layers as functions of a scope, compared with Flax's, bit for bit."""

import functools
import importlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from left_out import all_but
from module_compare import Programs, Raised, assert_same_as_flax, attempt

import haiku_state
from haiku_state import core
from haiku_state.core import nn

KEY = jax.random.key(0)
RNGS = {'params': KEY, 'dropout': jax.random.key(1)}
# No initializer gives zeros or ones: what is not used would not show.
BIAS = jax.nn.initializers.normal(1.0)


def array(*shape, dtype=jnp.float32):
  return jax.random.normal(jax.random.key(7), shape).astype(dtype)


class Row(NamedTuple):
  """A call of a layer."""

  name: str
  inputs: tuple
  options: dict[str, Any] = {}


X = array(2, 3, 4)
IMAGE = array(2, 5, 6, 4)
QKV = array(2, 3, 5, 2, 4)
PADDING = jnp.array([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])[..., None]
SEGMENTS = jnp.array([[1, 1, 2], [1, 2, 2]])[..., None]

ROWS = [
  Row('dense', (X, 5)),
  Row('dense', (X, 5), {'bias_init': BIAS}),
  Row('dense', (X, 5), {'bias': False, 'dtype': jnp.bfloat16}),
  Row('dense', (X, 5), {'precision': 'highest'}),
  Row('dense_general', (X, 5), {'bias_init': BIAS}),
  Row('dense_general', (X, (5, 2)), {'axis': (-2, -1), 'bias_init': BIAS}),
  Row('dense_general', (X, (5, 2)), {'axis': (2, 1), 'bias': False}),
  Row('dense_general', (X, 5), {'batch_dims': 0, 'bias_init': BIAS}),
  Row('dense_general', (X, [5]), {'batch_dims': (0, 1), 'bias_init': BIAS}),
  Row('dense_general', (X, 5), {'batch_dims': (1,)}),
  Row('conv', (IMAGE, 5, (3, 2)), {'bias_init': BIAS}),
  Row('conv', (IMAGE, 4, (3, 3)), {'strides': (2, 1), 'padding': 'VALID'}),
  Row('conv', (IMAGE, 4, (3, 3)), {'feature_group_count': 2, 'bias': False}),
  Row('conv', (IMAGE, 4, (3, 3)), {'feature_group_count': 3}),
  Row('conv', (X, 4, (3,)), {'kernel_dilation': (2,), 'padding': [(2, 1)]}),
  Row('conv', (X, 4, (3,)), {'input_dilation': (2,), 'padding': [(1, 1)]}),
  Row('conv', (X, 4, (3,)), {'dtype': jnp.bfloat16}),
  Row('conv_transpose', (IMAGE, 5, (3, 2)), {'bias_init': BIAS}),
  Row('conv_transpose', (X, 5, (3,)), {'strides': (2,), 'bias': False}),
  Row('conv_transpose', (X, 5, (3,)), {'kernel_dilation': (2,)}),
  Row('batch_norm', (X,), {'bias_init': BIAS, 'scale_init': BIAS}),
  Row('batch_norm', (X,), {'use_running_average': True}),
  Row('batch_norm', (X,), {'axis': (0, -1), 'momentum': 0.5}),
  Row('batch_norm', (X,), {'scale': False, 'bias': False, 'epsilon': 0.1}),
  Row('batch_norm', (array(3, 4, dtype=jnp.bfloat16),), {'kind': 'other'}),
  Row('layer_norm', (X,), {'bias_init': BIAS, 'scale_init': BIAS}),
  Row('layer_norm', (X,), {'scale': False, 'bias': False, 'epsilon': 0.1}),
  Row('layer_norm', (array(3, 4, dtype=jnp.bfloat16),)),
  Row('group_norm', (IMAGE, 2), {'bias_init': BIAS, 'scale_init': BIAS}),
  Row('group_norm', (IMAGE, None, 1), {'dtype': jnp.bfloat16}),
  Row('group_norm', (IMAGE, 2, 2)),
  Row('group_norm', (IMAGE, None, 3)),
  Row('dropout', (X, 0.5)),
  Row('dropout', (X, 0.0)),
  Row('dropout', (X, 0.5, True)),
  Row('dropout', (X, 0.25), {'rng': jax.random.key(3)}),
  Row('dot_product_attention', (QKV, QKV + 1, QKV * 2)),
  Row('dot_product_attention', (QKV, QKV, QKV), {'axis': 1}),
  Row('dot_product_attention', (QKV, QKV, QKV), {'axis': 3}),
  Row('dot_product_attention', (QKV, QKV, QKV), {'dropout_rate': 0.5}),
  Row(
    'dot_product_attention',
    (QKV, QKV, QKV),
    {'dropout_rate': 0.5, 'broadcast_dropout': False, 'axis': (2,)},
  ),
  Row('multi_head_dot_product_attention', (X, None, 2), {'bias_init': BIAS}),
  Row(
    'multi_head_dot_product_attention',
    (X, X + 1, 2),
    {'qkv_features': 6, 'out_features': 3, 'bias': False},
  ),
  Row('multi_head_dot_product_attention', (X, None, 2), {'causal_mask': True}),
  Row(
    'multi_head_dot_product_attention',
    (X, None, 2),
    {'padding_mask': PADDING, 'segmentation': SEGMENTS, 'causal_mask': True},
  ),
  Row(
    'multi_head_dot_product_attention',
    (X, X + 1, 2),
    {'padding_mask': PADDING, 'key_padding_mask': 1 - PADDING},
  ),
  Row(
    'multi_head_dot_product_attention',
    (IMAGE, None, 2),
    {'attention_axis': (2,), 'dropout_rate': 0.5},
  ),
  Row(
    'multi_head_dot_product_attention',
    (IMAGE, None, 1),
    {'causal_mask': True, 'dtype': jnp.bfloat16},
  ),
]


def ran(nn, package, row):
  """Returns all that comes of a call: of `init` and of a step."""
  layer = functools.partial(getattr(nn, row.name), **row.options)
  init, apply = package.core.init, package.core.apply
  y, variables = init(layer)(RNGS, *row.inputs)
  step = apply(layer, mutable=['batch_stats', 'other'])
  rngs = {'dropout': RNGS['dropout']}
  return y, variables, step(variables, *row.inputs, rngs=rngs)


def plain(tree):
  """Returns dicts, tuples and arrays, each with its dtype."""
  if isinstance(tree, tuple):
    return tuple(map(plain, tree))
  if hasattr(tree, 'items'):
    return {name: plain(value) for name, value in tree.items()}
  return str(tree.dtype), np.asarray(tree)


# The last row of each layer, which has the most options, for `pytest` alone.
LAST = {row.name: i for i, row in enumerate(ROWS)}


@pytest.mark.parametrize(
  'i', all_but(LAST.values(), range(len(ROWS))), ids=lambda i: ROWS[i].name
)
def test_same_as_flax(i):
  row = ROWS[i]
  flax = pytest.importorskip('flax')
  theirs_nn = importlib.import_module('flax.core.nn')
  theirs = attempt(ran, theirs_nn, flax, row)
  ours = attempt(ran, nn, haiku_state, row)
  if isinstance(theirs, Raised):
    assert ours.kind == theirs.kind, ours
    return
  jax.tree.map(np.testing.assert_array_equal, plain(ours), plain(theirs))


@pytest.mark.long
def test_rows_are_mostly_no_errors():
  assert (
    sum(isinstance(attempt(ran, nn, haiku_state, r), Raised) for r in ROWS) == 5
  )


programs = Programs()


def functional(package):
  return importlib.import_module(f'{package.__name__}.core.nn')


@programs
def cache(_, package):
  """Decodes two steps, from the cache that the first call left to make."""
  attend = functools.partial(
    functional(package).multi_head_dot_product_attention,
    inputs_kv=None,
    num_heads=2,
    causal_mask=True,
    cache=True,
  )
  _, variables = package.core.init(attend)(KEY, X)
  params, cache = variables['params'], variables['cache']
  not_made = attempt(
    package.core.apply(attend, mutable=['cache']), variables, X[:, :1]
  )
  cache = {'entry': cache['entry']((2, 3))}
  out = []
  for step in range(2):
    y, new = package.core.apply(attend, mutable=['cache'])(
      {'params': params, 'cache': cache}, X[:, step : step + 1]
    )
    cache = new['cache']
    entry = cache['entry']
    out.append((y, entry.key, entry.value, entry.i))
  too_long = attempt(
    package.core.apply(attend, mutable=['cache']),
    {'params': params, 'cache': cache},
    X,
  )
  return params, out, not_made.kind, too_long.kind


@programs
def embeddings(_, package):
  def fn(scope, x):
    table = functional(package).embedding(scope, 7, 4)
    found = table.lookup(x)
    return found, table.attend(found), attempt(table.lookup, found)

  (found, logits, error), variables = package.core.init(fn)(
    KEY, jnp.array([[1, 6], [0, 2]])
  )
  return found, logits, error.kind, variables


@programs
def layers_of_the_guide_to_lifting(_, package):
  """Layers of a scope below lifted transforms."""
  core, nn = package.core, functional(package)

  def block(scope, x):
    x = scope.child(nn.dense, 'dense')(x, 4)
    x = scope.child(nn.batch_norm, 'norm')(x, axis_name='batch')
    return scope.child(nn.dropout)(nn.relu(x), 0.5)

  def fn(scope, x):
    mapped = core.vmap(
      block,
      variable_axes={'params': None, 'batch_stats': None},
      split_rngs={'params': False, 'dropout': True},
      in_axes=(0,),
      axis_name='batch',
    )
    return scope.child(core.remat(mapped), 'block')(x)

  y, variables = core.init(fn)(RNGS, X)
  again = core.apply(fn, mutable=['batch_stats'])(variables, X, rngs=RNGS)
  return y, variables, again


@programs.parametrize()
def test_program(program):
  assert_same_as_flax(program)


def test_bias_where_axes_in_front_are_contracted():
  # Flax gives the bias its axes as if those contracted were behind the others,
  # and so adds it to other axes, or fails.
  layer = functools.partial(
    nn.dense_general, features=5, axis=1, bias_init=BIAS
  )
  y, variables = core.init(layer)(KEY, X)
  params = variables['params']
  expected = jnp.einsum('bic,if->bcf', X, params['kernel']) + params['bias']
  np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
