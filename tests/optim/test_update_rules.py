"""Every optimizer against its published formula, in NumPy."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optimizer_table
import pytest
from jax_names import as_written, enable_x64
from left_out import all_but
from optimizer_table import ROWS

from haiku_state import optim

# A compiled step costs nothing; one that is not, a hundred operations.
STEPS = {True: 20, False: 8}


def hyper_params(row, **overrides):
  fields = vars(row.make().hyper_params)
  return types.SimpleNamespace(**{**fields, **overrides})


def overrides_at(row, step):
  """Every third step has overrides, so that forgetting them shows too."""
  return row.overrides if step % 3 == 2 else {}


def run_formula(row, steps, with_overrides=False, dtype=np.float64):
  params, treedef = jax.tree.flatten(optimizer_table.params(dtype))
  states = [row.init(hyper_params(row), p) for p in params]
  for step in range(steps):
    hp = hyper_params(
      row, **(overrides_at(row, step) if with_overrides else {})
    )
    gs = jax.tree.leaves(optimizer_table.grads(step, dtype))
    new = [
      row.rule(hp, step + 1, p, s, g) for p, s, g in zip(params, states, gs)
    ]
    params, states = [p for p, _ in new], [s for _, s in new]
  return treedef.unflatten(params), treedef.unflatten(states)


def run_optimizer(row, steps, dtype, jit, with_overrides=False):
  optimizer = row.make().create(
    jax.tree.map(lambda p: jnp.asarray(p, dtype), optimizer_table.params())
  )

  def step_fn(optimizer, grads, **overrides):
    return optimizer.apply_gradient(grads, **overrides)

  for step in range(steps):
    grads = jax.tree.map(
      lambda g: jnp.asarray(g, dtype), optimizer_table.grads(step)
    )
    overrides = overrides_at(row, step) if with_overrides else {}
    step_of_kind = jitted(step_fn, overrides) if jit else step_fn
    optimizer = step_of_kind(optimizer, grads, **overrides)
  return optimizer


def jitted(step_fn, overrides):
  """Numbers are traced; what decides about the program is not."""
  static = tuple(k for k, v in overrides.items() if isinstance(v, bool))
  return _jitted(step_fn, static)


@functools.cache
def _jitted(step_fn, static):
  return jax.jit(step_fn, static_argnames=static)


def assert_agree(optimizer, formula, rtol, atol):
  params, states = formula
  leaves = jax.tree.structure(params).flatten_up_to(optimizer.target)
  for found, expected in zip(leaves, jax.tree.leaves(params)):
    np.testing.assert_allclose(
      np.asarray(found, np.float64), expected, rtol, atol
    )
  treedef = jax.tree.structure(params)
  for found, expected in zip(
    treedef.flatten_up_to(optimizer.state.param_states),
    treedef.flatten_up_to(states),
  ):
    assert (
      (found == ()) if not expected else (vars(found).keys() == expected.keys())
    )
    for name, value in expected.items():
      stored = getattr(found, name)
      if value is None:
        assert stored is None
      else:
        np.testing.assert_allclose(
          np.asarray(stored, np.float64), value, rtol, atol
        )


# What is not compiled takes long: these stand for the others.
NOT_COMPILED = ('GradientDescent', 'Adam')


@pytest.mark.parametrize(
  'name, jit',
  [
    pytest.param(
      name,
      jit,
      id=f'{name}-{"jit" if jit else "eager"}',
      marks=() if jit or name in NOT_COMPILED else pytest.mark.long,
    )
    for name in ROWS
    for jit in (False, True)
  ],
)
def test_float32(name, jit):
  row = ROWS[name]
  steps = STEPS[jit]
  optimizer = run_optimizer(row, steps, jnp.float32, jit)
  assert int(optimizer.state.step) == steps
  assert_agree(optimizer, run_formula(row, steps), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
  'name', all_but([name for name in ROWS if ',' not in name], ROWS)
)
def test_float64_with_overrides(name):
  row, steps = ROWS[name], STEPS[True]
  with enable_x64(True):
    optimizer = run_optimizer(
      row, steps, jnp.float64, jit=True, with_overrides=True
    )
    # Adafactor computes in float32, as it does in Flax.
    tol = 1e-5 if name.startswith('Adafactor') else 1e-11
    assert_agree(
      optimizer,
      run_formula(row, steps, with_overrides=True),
      rtol=tol,
      atol=tol,
    )
    assert all(
      x.dtype == jnp.float64 for x in jax.tree.leaves(optimizer.target)
    )


@pytest.mark.parametrize(
  'dtype', all_but([jnp.bfloat16], [jnp.bfloat16, jnp.float16])
)
@pytest.mark.parametrize(
  'name', [name for name in ROWS if ',' not in name] + ['Adafactor, momentum']
)
def test_half_precision(name, dtype):
  """A parameter moves as far as it should; Flax's Adam did not move at all."""
  row = ROWS[name]
  if 0 < getattr(hyper_params(row), 'eps', 0) < jnp.finfo(dtype).tiny:
    # A program must choose a larger one, in Flax too: 1e-8 is 0 in float16.
    row = row._replace(make=functools.partial(row.make, eps=1e-3))
  optimizer = run_optimizer(row, 5, dtype, jit=True)
  eps = float(jnp.finfo(dtype).eps)
  start = optimizer_table.params()
  expected, _ = run_formula(row, 5)
  for p0, p, q in zip(
    *map(jax.tree.leaves, (start, expected, optimizer.target))
  ):
    assert q.dtype == dtype
    moved = np.max(np.abs(p - p0))
    error = np.max(np.abs(np.asarray(q, np.float64) - p))
    assert error <= 0.1 * moved + 8 * eps * max(1, np.max(np.abs(p)))


@pytest.mark.parametrize('name', [n for n, row in ROWS.items() if row.exact])
@as_written
def test_exact(name):
  """Not compiled, so that no multiplication is fused with an addition."""
  row = ROWS[name]
  optimizer = run_optimizer(row, 20, jnp.float32, jit=False)
  params, states = run_formula(row, 20, dtype=np.float32)
  assert_agree(optimizer, (params, states), rtol=0, atol=0)


def test_lamb_leaves_a_parameter_that_never_had_a_gradient():
  """Flax made NaN of it."""
  optimizer = optim.LAMB(0.1).create({'w': jnp.ones(3)})
  optimizer = optimizer.apply_gradient({'w': jnp.zeros(3)})
  np.testing.assert_array_equal(optimizer.target['w'], np.ones(3))


def test_lamb_never_moves_zeros():
  optimizer = run_optimizer(ROWS['LAMB'], 3, jnp.float32, jit=False)
  np.testing.assert_array_equal(optimizer.target['zeros'], np.zeros(3))


def test_adam_moves_bfloat16():
  optimizer = optim.Adam(0.1).create(jnp.ones(3, jnp.bfloat16))
  optimizer = optimizer.apply_gradient(jnp.ones(3, jnp.bfloat16))
  np.testing.assert_allclose(
    optimizer.target.astype(jnp.float32), np.full(3, 0.9), rtol=4e-3
  )


def test_adafactor_stores_float32_for_bfloat16():
  optimizer = optim.Adafactor(0.1, beta1=0.9).create(jnp.ones(3, jnp.bfloat16))
  optimizer = optimizer.apply_gradient(jnp.ones(3, jnp.bfloat16))
  state = optimizer.state.param_states
  assert {x.dtype for x in jax.tree.leaves(state)} == {jnp.dtype(jnp.float32)}
  assert optimizer.target.dtype == jnp.bfloat16


def test_adafactor_stores_momentum_in_the_given_dtype():
  definition = optim.Adafactor(0.1, beta1=0.9, dtype_momentum=jnp.bfloat16)
  optimizer = definition.create(jnp.ones(3)).apply_gradient(jnp.ones(3))
  assert optimizer.state.param_states.m.dtype == jnp.bfloat16
