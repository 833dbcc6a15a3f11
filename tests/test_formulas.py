"""Formulas are the same for the same values, and tell others apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from formulas import formulas

X = np.arange(6.0, dtype=np.float32).reshape(2, 3)
KEY = jax.random.key(0)
ONES = np.ones(3, np.float32)
ON_DEVICE = jnp.asarray(ONES)
MANY = np.arange(2e4, dtype=np.float32)


def scanned(body):
  return lambda x: jax.lax.scan(body, x[0], x)[0]


@jax.custom_jvp
def twice(x):
  return 2 * x


twice.defjvps(lambda dx, y, x: 2 * dx)


@pytest.mark.parametrize(
  'one, other',
  [
    (lambda x: (x + 1, x * 2), lambda x: (x + 1, x * 2)[::-1][::-1]),
    (lambda x: jnp.sin(x) * 2, lambda x: [jnp.cos(x), jnp.sin(x) * 2][1]),
    (jnp.tanh, jax.jit(jnp.tanh)),
    (lambda x: 2 * x, twice),
    (lambda x: jnp.zeros(4).reshape(2, 2), lambda x: jnp.zeros((2, 2))),
    (lambda x: x + ONES, lambda x: x + ON_DEVICE),
    (
      scanned(lambda c, x: (c + x, None)),
      scanned(lambda c, x: (c + x, jnp.sin(c))[:1] + (None,)),
    ),
    (
      lambda x: jax.random.normal(jax.random.fold_in(KEY, 1), (3,)),
      jax.jit(lambda x: jax.random.normal(jax.random.fold_in(KEY, 1), (3,))),
    ),
  ],
)
def test_same_operations(one, other):
  assert formulas(one, X) == formulas(other, X)


@pytest.mark.parametrize(
  'one, other',
  [
    (jnp.sin, jnp.cos),
    (lambda x: jnp.ones((4, 1)), lambda x: jnp.ones((1, 4))),
    (lambda x: jnp.ones((4, 1)), lambda x: jnp.zeros((4, 1))),
    (lambda x: x.reshape(3, 2), lambda x: x.T),
    (lambda x: x + 1, lambda x: x + 2),
    (lambda x: x * 0.0, lambda x: x * -0.0),
    (lambda x: x - x[:1], lambda x: x[:1] - x),
    (lambda x: x.sum(0), lambda x: x.sum(1)),
    (lambda x: x + np.ones(3), lambda x: x + np.arange(3.0)),
    (lambda x: x[0, 0] + MANY, lambda x: x[0, 0] + MANY[::-1].copy()),
    (lambda x: (x, x + 1), lambda x: (x + 1, x)),
    (lambda x: jax.lax.top_k(x, 2)[0], lambda x: jax.lax.top_k(x, 2)[1]),
    (lambda x: x.astype('float16'), lambda x: x.astype('bfloat16')),
    (
      scanned(lambda c, x: (c + x, None)),
      scanned(lambda c, x: (c - x, None)),
    ),
    (
      lambda x: jax.lax.cond(x[0, 0] > 0, jnp.sin, jnp.cos, x),
      lambda x: jax.lax.cond(x[0, 0] > 0, jnp.cos, jnp.sin, x),
    ),
    (
      lambda x: jax.random.normal(KEY, (3,)),
      lambda x: jax.random.normal(jax.random.key(1), (3,)),
    ),
    (
      lambda x: jax.random.normal(jax.random.fold_in(KEY, 1), (3,)),
      lambda x: jax.random.normal(jax.random.fold_in(KEY, 2), (3,)),
    ),
    (
      lambda x: jax.random.key_data(jax.random.key(0)),
      lambda x: jax.random.key_data(jax.random.key(0, impl='rbg')),
    ),
  ],
)
def test_other_operations(one, other):
  assert formulas(one, X) != formulas(other, X)


def test_other_arguments():
  assert formulas(jnp.sin, X) != formulas(jnp.sin, X[0])
  assert formulas(lambda x, y: x, X, X) != formulas(lambda x, y: y, X, X)
