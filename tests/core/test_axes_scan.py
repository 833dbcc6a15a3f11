"""`axes_scan`: a scan with axes, and with what does not change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haiku_state.core import axes_scan
from haiku_state.core.axes_scan import broadcast

XS = jnp.arange(24.0).reshape(2, 3, 4)


def add(b, c, x):
  return b, c + x.sum(), x * 2


@pytest.mark.parametrize('in_axis', [0, 1, 2, -1, -2, -3])
@pytest.mark.parametrize('out_axis', [0, 1, 2, -1, -2, -3])
def test_axes_move_there_and_back(in_axis, out_axis):
  scan = axes_scan.scan(add, (in_axis,), out_axis)
  _, total, ys = scan((), 0.0, XS)
  assert total == XS.sum()
  front = jnp.moveaxis(XS, in_axis, 0)
  np.testing.assert_array_equal(ys, jnp.moveaxis(2 * front, 0, out_axis))


@pytest.mark.parametrize('checked', [True, False])
def test_broadcast_inputs_are_the_same_in_all_steps(checked):
  def fn(b, c, fixed, x):
    assert fixed.shape == (3,)
    return b, c + fixed.sum(), (fixed * x.sum())

  scan = axes_scan.scan(
    fn, (broadcast, 0), 0, check_constancy_invariants=checked
  )
  _, total, ys = scan((), 0.0, jnp.ones(3), XS)
  assert total == 6.0
  np.testing.assert_array_equal(ys, XS.sum((1, 2))[:, None] * jnp.ones(3))


def test_broadcast_outputs_are_computed_once():
  def fn(b, c, x):
    return b * 2, c, (b + 1, x)

  scan = axes_scan.scan(fn, (0,), (broadcast, 0))
  b, _, (fixed, ys) = scan(jnp.array(3.0), 0.0, XS)
  assert (b, fixed) == (6.0, 4.0)
  np.testing.assert_array_equal(ys, XS)


@pytest.mark.parametrize('which', ['broadcast', 'output'])
def test_what_is_broadcast_must_not_depend_on_the_step(which):
  def fn(b, c, x):
    return (x.sum(), c, 1.0) if which == 'broadcast' else (b, c, c)

  scan = axes_scan.scan(fn, (0,), broadcast)
  with pytest.raises(ValueError, match='has a data dependency on the scan'):
    scan(0.0, jnp.array(0.0), XS)


def test_without_the_check_there_is_no_broadcast_output():
  scan = axes_scan.scan(add, (0,), broadcast, check_constancy_invariants=False)
  with pytest.raises(ValueError, match='does not support broadcast'):
    scan((), 0.0, XS)


@pytest.mark.parametrize('call', [jax.jit, jax.checkpoint])
def test_constants_come_out_of_calls_that_have_inputs(call):
  def fn(b, c, x):
    c, b = call(lambda c, x: (c + x.sum(), jnp.sin(jnp.ones(2))))(c, x)
    return b, c, ()

  b, c, _ = axes_scan.scan(fn, (0,), 0)(jnp.zeros(2), 0.0, XS)
  np.testing.assert_allclose(b, np.sin(np.ones(2)), 1e-6)
  assert c == XS.sum()


def test_options_go_to_jax():
  scan = axes_scan.scan(add, (0,), 0, length=2, reverse=True, unroll=2)
  jaxpr = jax.make_jaxpr(lambda xs: scan((), 0.0, xs))(XS)
  (eqn,) = (e for e in jaxpr.eqns if e.primitive.name == 'scan')
  params = eqn.params
  assert params['reverse']
  assert (params['length'], params['unroll']) == (2, 2)
