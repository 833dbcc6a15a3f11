"""Every layer, over the rows of the tables, in the hands of a Haiku user."""

import concurrent.futures
import functools

import drawn
import haiku as hk
import jax
import jax.numpy as jnp
import layers_table_b
import numpy as np
import pytest
from layers_compare import (
  as_dict,
  assert_close,
  assert_same_leaves,
  lowered_text,
)
from left_out import all_but
from test_layers import ROWS, forward, one_of_each

import haiku_state.linen as nn
from haiku_state import serialization
from haiku_state.core import _bundles

ALL_ROWS = [*ROWS, *layers_table_b.UNUSED]


def over(rows):
  """Returns the mark that leaves all but one of each class to `--long`."""
  values = all_but(one_of_each(rows), rows)
  return pytest.mark.parametrize('row', values, ids=lambda row: row.name)


over_rows = over(ALL_ROWS)


@functools.cache
def with_variables(row):
  """Returns the layer and variables, which no test changes."""
  layer = row.make(nn)
  return layer, drawn.variables(layer, *row.args(), **row.call_kwargs())


def call(f, *args):
  return f(*args)


def in_haiku(row, around=call):
  """Returns a function of Haiku's that calls the layer, named `layer`."""

  def f(*args):
    layer = row.make(nn).clone(name='layer')
    kwargs = row.call_kwargs()
    return around(lambda *args: layer(*args, **kwargs), *args)

  return hk.transform_with_state(f)


def native(row, around=call):
  """Returns what `forward` does, by Haiku."""
  f = in_haiku(row, around)
  key = jax.random.key(0) if row.rngs else None

  def run(variables, *args):
    params, state = _bundles.to_haiku(variables, 'layer')
    y, state = f.apply(params, state, key, *args)
    updates = _bundles.from_haiku({}, state, 'layer')
    return y, {col: updates[col] for col in row.updates}

  return run


def shapes(tree):
  return jax.tree.map(lambda x: (x.shape, x.dtype), as_dict(tree))


@over_rows
def test_variables_become_bytes_and_come_back(row):
  _, variables = with_variables(row)
  zeros = jax.tree.map(jnp.zeros_like, variables)
  read = serialization.from_bytes(zeros, serialization.to_bytes(variables))
  assert_same_leaves(read, variables)


@over_rows
def test_variables_are_those_that_haiku_makes_and_come_back(row):
  _, variables = with_variables(row)
  moved = _bundles.to_haiku(as_dict(variables), 'layer')
  assert_same_leaves(_bundles.from_haiku(*moved, 'layer'), variables)
  made = jax.eval_shape(in_haiku(row).init, jax.random.key(0), *row.args())
  for got, want in zip(made, moved):
    assert shapes(got) == shapes({k: x for k, x in want.items() if x})


@over_rows
def test_the_program_in_a_haiku_function_is_that_of_apply(row):
  _, variables = with_variables(row)
  variables, args = as_dict(variables), row.args()
  got, want = native(row), lambda *args: forward(row.make(nn), row)(*args)
  if row.rngs:  # Haiku's keys are others.
    got, want = (jax.eval_shape(f, variables, *args) for f in (got, want))
    assert shapes(got) == shapes(want)
  else:
    texts = [lowered_text(f, variables, *args) for f in (got, want)]
    assert texts[0] == texts[1]


@over_rows
def test_rematerialised_in_a_haiku_function(row):
  _, variables = with_variables(row)
  args = (as_dict(variables), *row.args())
  got, want = (
    jax.eval_shape(native(row, around), *args)
    for around in (lambda f, *args: hk.remat(f)(*args), call)
  )
  assert shapes(got) == shapes(want)


def scanned(f, *args):
  """Calls a function twice, by a scan."""
  twice = jax.tree.map(lambda x: jnp.stack([x, x]), args)
  return hk.scan(lambda carry, args: (carry, f(*args)), 0, twice)[1]


@over_rows
def test_scanned_in_a_haiku_function(row):
  _, variables = with_variables(row)
  variables, args = as_dict(variables), row.args()
  looped = native(row, scanned)
  y, updates = jax.eval_shape(looped, variables, *args)
  once, once_updates = jax.eval_shape(native(row), variables, *args)
  stacked = jax.tree.map(lambda x: ((2, *x.shape), x.dtype), as_dict(once))
  assert shapes(y) == stacked
  assert shapes(updates) == shapes(once_updates)


@over([row for row in ALL_ROWS if row.updates and not row.rngs])
def test_state_is_carried_from_step_to_step(row):
  layer, variables = with_variables(row)
  variables, args = as_dict(variables), row.args()
  first, updates = forward(layer, row)(variables, *args)
  second, updates = forward(layer, row)({**variables, **updates}, *args)
  ys = jax.tree.map(lambda *ys: jnp.stack(ys), first, second)
  got = jax.jit(native(row, scanned))(variables, *args)
  assert_close(got, (ys, updates))


@over_rows
def test_a_policy_of_mixed_precision_casts_the_result(row):
  jmp = pytest.importorskip('jmp')
  policy = jmp.get_policy('params=float32,compute=bfloat16,output=float16')
  _, variables = with_variables(row)
  args = (as_dict(variables), *row.args())

  def run():
    with hk.mixed_precision.push_policy(type(row.make(nn)), policy):
      return jax.eval_shape(native(row), *args)

  # Haiku's interceptor for policies stays with its thread for good.
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    y, updates = pool.submit(run).result()
  want, want_updates = jax.eval_shape(native(row), *args)
  for a, b in zip(jax.tree.leaves(y), jax.tree.leaves(want), strict=True):
    real = jnp.issubdtype(b.dtype, jnp.floating)
    assert (a.shape, a.dtype) == (b.shape, jnp.float16 if real else b.dtype)
  assert jax.tree.map(jnp.shape, updates) == jax.tree.map(
    jnp.shape, want_updates
  )


def size(tree):
  return sum(x.size for x in jax.tree.leaves(tree))


@over_rows
def test_tables_show_all_parameters(row):
  pytest.importorskip('rich')
  layer, variables = with_variables(row)
  args, kwargs = row.args(), row.call_kwargs()
  text = layer.tabulate(row.keys(), *args, **kwargs)
  assert type(layer).__name__ in text
  total = size(variables)
  assert f'{total:,}' in text or total == 0
  summary = hk.experimental.eval_summary(in_haiku(row))(*args)
  details = [r.module_details for r in summary]
  (of_layer,) = {
    sum(np.prod(x.shape, dtype=int) for x in d.params.values())
    for d in details
    if d.module.module_name == 'layer'
  }
  assert of_layer == size(variables.get('params', {}))
