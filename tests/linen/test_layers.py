"""What holds for every layer, over the rows of layers_table.py.

The comparisons with Flax look at lowered programs rather than at numbers: where
the text is the same, so is every number, for each input.
"""

import functools
import importlib
import importlib.util

import jax
import jax.numpy as jnp
import layers_table
import pytest
from jax_names import enable_x64
from layers_compare import (
  as_dict,
  assert_close,
  assert_same_leaves,
  assert_same_operations,
  lowered_text,
)
from left_out import all_but

import haiku_state.linen as nn
from haiku_state.core import _shapes

ROWS = list(layers_table.ROWS)
if importlib.util.find_spec('layers_table_b'):
  ROWS += importlib.import_module('layers_table_b').ROWS


def one_of_each(rows):
  """Returns the first row of each class of layers."""
  return list({type(row.make(nn)): row for row in reversed(rows)}.values())


over_rows = pytest.mark.parametrize('row', ROWS, ids=lambda row: row.name)
# The other rows are left to `--long`.
over_classes = pytest.mark.parametrize(
  'row', all_but(one_of_each(ROWS), ROWS), ids=lambda row: row.name
)
# One of them for `pytest` alone.
over_dtypes = pytest.mark.parametrize(
  'row, dtype',
  [
    pytest.param(
      row,
      dtype,
      id=f'{row.name}-{dtype}',
      marks=() if dtype == row.dtypes[0] else pytest.mark.long,
    )
    for row in ROWS
    for dtype in row.dtypes
  ],
)


@pytest.fixture(scope='module')
def flax_nn():
  return pytest.importorskip('flax.linen')


@functools.cache
def initialized(row):
  """Returns the layer and its variables, which no test changes."""
  layer = row.make(nn)
  return layer, initializer(layer, row)(row.keys(), *row.args())


@functools.cache
def outlined(row):
  """Returns the layer and the shapes of its variables."""
  layer = row.make(nn)
  init = initializer(layer, row)
  return layer, jax.eval_shape(init, row.keys(), *row.args())


def initializer(layer, row):
  """Returns a function (keys, *args) to variables."""
  return functools.partial(layer.init, **row.call_kwargs())


def forward(layer, row, dtype=jnp.float32):
  """Returns a function (variables, *args) to (output, updates)."""
  kwargs = row.call_kwargs(dtype)
  keys = {name: row.keys()[name] for name in row.rngs}

  def run(variables, *args):
    return layer.apply(
      variables, *args, rngs=keys, mutable=list(row.updates), **kwargs
    )

  return run


def gradient(layer, row, dtype=jnp.float32):
  """Returns a function (variables, *args) to the gradients of a sum."""
  run = forward(layer, row, dtype)

  def run_grad(variables, *args):
    def loss(variables, *args):
      out = jax.tree.leaves(run(variables, *args))
      return sum(jnp.sum(jnp.abs(x).astype('float32') ** 2) for x in out)

    argnums = tuple(
      i
      for i, x in enumerate((variables, *args))
      if all(jnp.issubdtype(y.dtype, jnp.floating) for y in jax.tree.leaves(x))
    )
    return jax.grad(loss, argnums)(variables, *args)

  return run_grad


def mapped(layer, row):
  """Returns the forward function for arguments with one more axis."""
  return jax.vmap(forward(layer, row), (None,) + (0,) * len(row.inputs))


@over_rows
def test_variables_are_those_of_flax(row, flax_nn):
  ours, theirs = (initializer(row.make(lib), row) for lib in (nn, flax_nn))
  got = assert_same_operations(ours, theirs, row.keys(), *row.args())
  assert sorted(got) == sorted(row.collections)


@over_rows
def test_output_and_updates_are_those_of_flax(row, flax_nn):
  layer, variables = outlined(row)
  ours, theirs = (forward(x, row) for x in (layer, row.make(flax_nn)))
  args = as_dict(variables), *row.args()
  _, updates = assert_same_operations(ours, theirs, *args)
  assert sorted(updates) == sorted(row.updates)


@pytest.mark.long
@over_rows
def test_values_are_those_of_flax(row, flax_nn):
  layer, ours = initialized(row)
  flax_layer = row.make(flax_nn)
  theirs = initializer(flax_layer, row)(row.keys(), *row.args())
  assert_same_leaves(ours, theirs)
  got = forward(layer, row)(ours, *row.args())
  want = forward(flax_layer, row)(as_dict(ours), *row.args())
  assert_same_leaves(got, want)


@over_classes
@pytest.mark.parametrize(
  'transform', all_but([gradient], [gradient, mapped]), ids=['grad', 'vmap']
)
def test_lowered_transform_is_that_of_flax(row, transform, flax_nn):
  layer, variables = outlined(row)
  theirs = row.make(flax_nn)
  args = (as_dict(variables), *row.args())
  if transform is mapped:
    args = (args[0], *jax.tree.map(lambda x: jnp.stack([x, x]), args[1:]))
  assert lowered_text(transform(layer, row), *args) == lowered_text(
    transform(theirs, row), *args
  )


@over_dtypes
def test_lowered_forward_is_that_of_flax_in_each_dtype(row, dtype, flax_nn):
  with enable_x64(dtype == 'float64'):
    args = row.args(dtype)

    def variables(namespace):
      def init(*args):
        return row.make(namespace).init(
          row.keys(), *args, **row.call_kwargs(dtype)
        )

      return as_dict(jax.eval_shape(init, *args))

    ours = variables(nn)
    assert ours == variables(flax_nn)
    texts = [
      lowered_text(forward(row.make(namespace), row, dtype), ours, *args)
      for namespace in (nn, flax_nn)
    ]
    assert texts[0] == texts[1]


@pytest.mark.long
@over_classes
def test_jit_agrees_and_traces_once(row):
  layer, variables = initialized(row)
  run, args = forward(layer, row), row.args()
  variables = as_dict(variables)
  traces = []

  @jax.jit
  def jitted(variables, *args):
    traces.append(1)
    return run(variables, *args)

  with jax.checking_leaks():
    got = jitted(variables, *args)
  assert_close(got, run(variables, *args))
  jitted({**variables, **as_dict(got[1])}, *args)
  assert len(traces) == 1


@over_rows
def test_vmap_adds_an_axis_to_output_and_updates(row):
  layer, variables = outlined(row)
  args = jax.tree.map(lambda x: jnp.stack([x, x]), row.args())
  got = jax.eval_shape(mapped(layer, row), variables, *args)
  want = jax.eval_shape(forward(layer, row), variables, *row.args())
  assert [(x.shape, x.dtype) for x in jax.tree.leaves(got)] == [
    ((2, *x.shape), x.dtype) for x in jax.tree.leaves(want)
  ]


@over_rows
def test_a_second_trace_makes_no_initializer_anew(row, monkeypatch):
  layer, variables = outlined(row)
  forward_shapes = functools.partial(jax.eval_shape, forward(layer, row))
  forward_shapes(variables, *row.args())
  traced = []
  trace = _shapes.trace

  def noting(init_fn, args, kwargs):
    traced.append(init_fn)
    return trace(init_fn, args, kwargs)

  monkeypatch.setattr(_shapes, 'trace', noting)
  # A layer made anew is equal to this one, so its initializers are, too.
  layer = row.make(nn)
  jax.eval_shape(forward(layer, row), variables, *row.args())
  assert not traced
