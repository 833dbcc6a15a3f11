"""Dropout at its edges; what holds for all layers: test_layers.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layers_compare import assert_same_program

import haiku_state.linen as nn

KEY = jax.random.key(0)


def drop(rate, x, **options):
  kwargs = {k: options.pop(k) for k in ('rng',) if k in options}
  layer = nn.Dropout(rate, deterministic=False, **options)
  return layer.apply({}, x, rngs={'dropout': KEY}, **kwargs)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(data=st.data())
def test_drawn_dropout_is_that_of_flax(data):
  draw = data.draw
  shape = draw(st.lists(st.integers(0, 3), min_size=2, max_size=3))
  dims = st.lists(st.sampled_from([0, 1, -1]), max_size=2).map(tuple)
  options = dict(
    rate=draw(st.sampled_from([0.0, 0.3, 1.0])),
    broadcast_dims=draw(dims),
    deterministic=draw(st.booleans()),
  )
  x = jnp.zeros(shape, draw(st.sampled_from(['float32', 'bfloat16'])))
  assert_same_program(lambda nn: nn.Dropout(**options), x)


@pytest.mark.parametrize('rate', [0.1, 0.5, 0.9])
def test_what_stays_is_scaled_up(rate):
  y = drop(rate, jnp.ones(4000))
  kept = y[y != 0]
  np.testing.assert_allclose(kept, 1 / (1 - rate), 1e-6)
  assert abs(len(kept) / 4000 - (1 - rate)) < 0.03


def test_rate_zero_is_the_identity_and_needs_no_key():
  x = jnp.array([1.0, jnp.nan])
  y = nn.Dropout(0.0, deterministic=False).apply({}, x)
  np.testing.assert_array_equal(y, x)


def test_rate_one_gives_zeros_without_nan_in_the_gradient():
  x = jnp.array([1.0, jnp.inf])
  layer = nn.Dropout(1.0, deterministic=False)
  y, pull = jax.vjp(lambda x: layer.apply({}, x), x)
  np.testing.assert_array_equal(y, [0, 0])
  np.testing.assert_array_equal(pull(jnp.ones(2))[0], [0, 0])


def test_deterministic_is_the_identity_and_needs_no_key():
  x = jnp.arange(3.0)
  np.testing.assert_array_equal(
    nn.Dropout(0.5).apply({}, x, deterministic=True), x
  )


@pytest.mark.parametrize('dims', [(0,), (-1,), (0, 2), (0, 1, 2)])
def test_dims_share_a_draw(dims):
  dropped = drop(0.5, jnp.ones((16, 16, 16)), broadcast_dims=dims) == 0
  for dim in range(3):
    shared = (dropped == jnp.take(dropped, jnp.array([0]), dim)).all()
    assert shared == (dim in {d % 3 for d in dims})


def test_a_given_key_is_used():
  x = jnp.ones(64)
  a, b = (drop(0.5, x, rng=jax.random.key(i)) for i in (1, 1))
  np.testing.assert_array_equal(a, b)
  assert (a != drop(0.5, x, rng=jax.random.key(2))).any()
  layer = nn.Dropout(0.5)
  y = layer.apply({}, x, deterministic=False, rng=jax.random.key(1))
  np.testing.assert_array_equal(y, a)


def test_the_stream_has_the_given_name():
  layer = nn.Dropout(0.5, deterministic=False, rng_collection='noise')
  assert (layer.apply({}, jnp.ones(64), rngs={'noise': KEY}) == 0).any()
  with pytest.raises(Exception, match='needs PRNG for "noise"') as caught:
    layer.apply({}, jnp.ones(64), rngs={'dropout': KEY})
  assert type(caught.value).__name__ == 'InvalidRngError'


def test_two_layers_draw_apart():
  class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
      make = lambda: nn.Dropout(0.5, deterministic=False)
      return make()(x), make()(x)

  a, b = Model().apply({}, jnp.ones(64), rngs={'dropout': KEY})
  assert (a != b).any()


@pytest.mark.parametrize('shape', [(), (0,), (3, 0)])
def test_of_nothing_and_of_one(shape):
  assert drop(0.5, jnp.ones(shape)).shape == shape
