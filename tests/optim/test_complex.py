"""Complex parameters: where Flax squared the number, optax takes its size."""

import jax.numpy as jnp
import numpy as np
import pytest

from haiku_state import optim

PARAMS = np.array([1 + 2j, 3 - 1j, 0.5 + 0.5j], np.complex64)
GRADS = np.array([0.3 + 0.4j, -1j, 2.0 - 1j], np.complex64)


def first_step(definition):
  optimizer = definition.create({'w': jnp.asarray(PARAMS)})
  optimizer = optimizer.apply_gradient({'w': jnp.asarray(GRADS)})
  assert optimizer.target['w'].dtype == jnp.complex64
  return PARAMS - np.asarray(optimizer.target['w'])


@pytest.mark.parametrize(
  'definition, size',
  [
    # The first average of squares is that of the first gradient, corrected.
    (optim.Adam(0.1), 0.1),
    (optim.RMSProp(0.1, beta2=0.75), 0.1 / np.sqrt(0.25)),
    (optim.RMSProp(0.1, beta2=0.0), 0.1),
    (optim.AdaBelief(0.1), None),
    (optim.LAMB(0.1), None),
  ],
)
def test_moves_along_the_gradient(definition, size):
  step = first_step(definition) / (GRADS / abs(GRADS))
  np.testing.assert_allclose(step.imag, 0, atol=1e-5)
  assert (step.real > 0).all()
  if size is not None:
    np.testing.assert_allclose(step.real, size, rtol=1e-4)


@pytest.mark.parametrize(
  'definition', [optim.Adagrad(0.1), optim.Adadelta(0.1)]
)
def test_squares_the_number_as_flax_did(definition):
  step = first_step(definition)
  np.testing.assert_allclose(step.imag, 0, atol=1e-6)
  assert abs(step.real).min() > 0


@pytest.mark.parametrize(
  'definition', [optim.GradientDescent(0.1), optim.Momentum(0.1)]
)
def test_has_nothing_to_square(definition):
  np.testing.assert_allclose(first_step(definition), 0.1 * GRADS, rtol=1e-5)


def test_adafactor_refuses_rather_than_lose_a_part():
  with pytest.raises(TypeError, match='complex64.*two parameters'):
    first_step(optim.Adafactor(0.1))
