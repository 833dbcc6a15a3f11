"""Layers for which Flax traces what nobody uses.

For a first carry of zeros it splits a key, for the scales and histories of
float8 it makes six, and in front of a scan it leaves remains of a trial run. Our
programs have none of it, and are the same as Flax's as soon as JAX has removed
what is not used.
"""

import jax
import jax.numpy as jnp
import layers_table_b
import pytest
import test_layers
from layers_compare import as_dict, assert_close, assert_same_leaves
from left_out import all_but
from test_layers import forward, gradient, initialized, initializer

import haiku_state.linen as nn

# One of each kind for `pytest` alone.
KINDS = (
  'attention_fp8',
  'rnn_lstm',
  'fp8_direct',
  'fp8_nanoo',
  'bidirectional',
)
over_rows = pytest.mark.parametrize(
  'row',
  all_but(
    [row for row in layers_table_b.UNUSED if row.name in KINDS],
    layers_table_b.UNUSED,
  ),
  ids=lambda row: row.name,
)


@pytest.fixture(scope='module')
def flax_nn():
  return pytest.importorskip('flax.linen')


@over_rows
def test_variables_outputs_and_programs_are_those_of_flax(row, flax_nn):
  results, texts = [], []
  for namespace in (nn, flax_nn):
    layer = row.make(namespace)
    variables = initializer(layer, row)(row.keys(), *row.args())
    variables = as_dict(variables)
    leaves, tree = jax.tree.flatten((variables, *row.args()))
    for make in (forward, gradient):

      def program(*leaves, run=make(layer, row), tree=tree):
        return jax.tree.leaves(run(*tree.unflatten(leaves)))

      texts.append(jax.jit(program).lower(*leaves).as_text())
    output, updates = forward(layer, row)(variables, *row.args())
    results.append({'variables': variables, 'out': output, **updates})
  assert sorted(results[0]['variables']) == sorted(row.collections)
  assert_same_leaves(*results)
  assert texts[:2] == texts[2:]


@over_rows
def test_no_key_is_traced(row):
  layer, variables = initialized(row)
  traced = str(jax.make_jaxpr(forward(layer, row))(variables, *row.args()))
  # Each `RNN` makes one, because a cell of the user's may look at it.
  directions = row.name.startswith('rnn') + 2 * (row.name == 'bidirectional')
  assert traced.count('random_seed') == directions
  assert 'random_split' not in traced


@over_rows
def test_jit_agrees_and_traces_once(row):
  test_layers.test_jit_agrees_and_traces_once(row)


@pytest.mark.long
@over_rows
def test_vmap_agrees(row):
  layer, variables = initialized(row)
  args = row.args()
  stacked = jax.tree.map(lambda x: jnp.stack([x]), args)
  mapped = jax.jit(test_layers.mapped(layer, row))(variables, *stacked)
  mapped = jax.tree.map(lambda x: x[0], as_dict(mapped))
  assert_close(mapped, jax.jit(forward(layer, row))(variables, *args))
