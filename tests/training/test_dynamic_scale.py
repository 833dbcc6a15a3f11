"""DynamicScale, by behaviour and against Flax's."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haiku_state import optim
from haiku_state.training import dynamic_scale
from haiku_state.training.dynamic_scale import DynamicScale


def square(w):
  return jnp.sum(w.astype(jnp.float16) ** 2).astype(jnp.float32)


def test_the_gradient_is_not_scaled():
  scale = DynamicScale(scale=128.0)
  result = scale.value_and_grad(lambda w: jnp.sum(w**2))(jnp.array([1.0, 2.0]))
  new_scale, finite, loss, grad = result
  assert bool(finite)
  assert float(loss) == 5.0
  np.testing.assert_array_equal(grad, [2.0, 4.0])
  assert int(new_scale.fin_steps) == 1


def test_gradients_that_would_vanish():
  w = jnp.full(4096, 1e-4, jnp.float16)
  loss_fn = lambda w: jnp.mean(w**2)
  expected = 2 * 1e-4 / 4096  # less than float16 has
  plain = np.asarray(jax.grad(loss_fn)(w), np.float64)
  result = DynamicScale(scale=2.0**14).value_and_grad(loss_fn)(w)
  assert result.grad.dtype == jnp.float32
  assert not np.allclose(plain, expected, rtol=0.05, atol=0)
  np.testing.assert_allclose(result.grad, expected, rtol=0.01)


def test_scale_shrinks_at_once_and_grows_in_time():
  scale = DynamicScale(growth_interval=3, scale=2.0**17)
  step_fn = jax.jit(lambda scale, w: scale.value_and_grad(square)(w))
  scales, finites = [], []
  for _ in range(8):
    scale, finite, _, _ = step_fn(scale, jnp.float32(1.0))
    scales.append(float(scale.scale) / 2**16)
    finites.append(bool(finite))
  # 2**17 overflows float16; at 2**16 the gradient 2 does too.
  assert finites == [False, False, False, True, True, True, True, False]
  assert scales == [1, 0.5, 0.25, 0.25, 0.25, 0.25, 0.5, 0.25]


def test_scale_has_a_least_and_a_largest_value():
  low = DynamicScale(minimum_scale=1.0, scale=1.5)
  low = low.value_and_grad(lambda w: w * jnp.inf)(1.0).dynamic_scale
  assert float(low.scale) == 1.0
  none = DynamicScale(minimum_scale=None, scale=1e-38)
  none = none.value_and_grad(lambda w: w * jnp.inf)(1.0).dynamic_scale
  assert float(none.scale) < 1e-38
  largest = float(jnp.finfo(jnp.float32).max)
  high = DynamicScale(growth_interval=0, scale=largest)
  high = high.value_and_grad(lambda w: w * 0)(1.0).dynamic_scale
  assert float(high.scale) == largest


def test_aux_and_argnums():
  scale = DynamicScale(scale=4.0)
  grad_fn = scale.value_and_grad(
    lambda x, y: (x * y, {'sum': x + y}), argnums=(0, 1), has_aux=True
  )
  _, _, (loss, aux), grads = grad_fn(2.0, 3.0)
  assert (float(loss), aux) == (6.0, {'sum': 5.0})
  assert [float(g) for g in grads] == [3.0, 2.0]


def test_the_gradient_is_averaged_over_an_axis():
  def step_fn(x):
    grad_fn = DynamicScale().value_and_grad(lambda w: w * x, axis_name='batch')
    return grad_fn(1.0)

  result = jax.vmap(step_fn, axis_name='batch')(jnp.array([1.0, 3.0]))
  np.testing.assert_array_equal(result.grad, [2.0, 2.0])


def test_a_nan_on_one_device_counts_on_all():
  def step_fn(x):
    grad_fn = DynamicScale().value_and_grad(lambda w: w * x, axis_name='batch')
    return grad_fn(1.0).finite

  finite = jax.vmap(step_fn, axis_name='batch')(jnp.array([1.0, jnp.nan]))
  assert not finite.any()


def test_where_optim_had_it():
  assert optim.DynamicScale is DynamicScale
  assert optim.dynamic_scale.DynamicScale is DynamicScale
  assert (
    optim.dynamic_scale.DynamicScaleResult is dynamic_scale.DynamicScaleResult
  )


@pytest.mark.parametrize('minimum_scale', [None, 2.0**14])
@pytest.mark.parametrize('growth_interval', [2, 5])
def test_same_as_flax(growth_interval, minimum_scale):
  flax_module = pytest.importorskip('flax.training.dynamic_scale')
  fields = {
    'growth_interval': growth_interval,
    'minimum_scale': minimum_scale,
    'growth_factor': 4.0,
    'backoff_factor': 0.25,
  }
  ours, theirs = DynamicScale(**fields), flax_module.DynamicScale(**fields)
  for w in np.random.default_rng(0).exponential(size=30).astype(np.float32):
    results = [
      scale.value_and_grad(square)(jnp.float32(w)) for scale in (ours, theirs)
    ]
    (ours, *rest), (theirs, *their_rest) = results
    assert vars(ours) == vars(theirs)
    np.testing.assert_array_equal(rest, their_rest)


def test_signature_of_flax():
  flax_module = pytest.importorskip('flax.training.dynamic_scale')
  for method in ('__init__', 'value_and_grad'):
    ours, theirs = (
      inspect.signature(getattr(module.DynamicScale, method)).parameters
      for module in (dynamic_scale, flax_module)
    )
    assert {n: p.default for n, p in ours.items()} == {
      n: p.default for n, p in theirs.items()
    }
  assert (
    dynamic_scale.DynamicScaleResult._fields
    == flax_module.DynamicScaleResult._fields
  )
