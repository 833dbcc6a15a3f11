import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging

from haiku_state.training import lr_schedule

# name: arguments between base rate and warm-up
_SCHEDULES = {
  'create_constant_learning_rate_schedule': (7,),
  'create_stepped_learning_rate_schedule': (7, [[1, 0.5], [2.5, 0.1]]),
  'create_cosine_learning_rate_schedule': (7, 3),
}


@pytest.mark.parametrize('name', _SCHEDULES)
@pytest.mark.parametrize('warmup', [(), (0.0,), (2,), (0.5,)])
def test_rates_are_those_of_flax(name, warmup):
  theirs = pytest.importorskip('flax.training.lr_schedule')
  args = (0.3, *_SCHEDULES[name], *warmup)
  ours = getattr(lr_schedule, name)(*args)
  theirs = getattr(theirs, name)(*args)
  for step in [0, 1, 6, 7, 8, 13, 14, 17, 18, 30]:
    for number in (step, jnp.int32(step)):
      x, y = ours(number), theirs(number)
      assert type(x) is type(y)
      np.testing.assert_array_equal(x, y)
    x, y = jax.jit(ours)(step), jax.jit(theirs)(step)
    np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize(
  'name, warmup, step, rate',
  [
    ('create_constant_learning_rate_schedule', 0, 100, 1.0),
    ('create_constant_learning_rate_schedule', 2, 7, 0.5),
    ('create_stepped_learning_rate_schedule', 0, 7, 1.0),
    ('create_stepped_learning_rate_schedule', 0, 8, 0.5),
    ('create_stepped_learning_rate_schedule', 0, 100, 0.1),
    ('create_cosine_learning_rate_schedule', 0, 0, 1.0),
    ('create_cosine_learning_rate_schedule', 0, 7, 0.75),
    ('create_cosine_learning_rate_schedule', 0, 21, 0.0),
    ('create_cosine_learning_rate_schedule', 2, 7, 0.375),
  ],
)
def test_rates(name, warmup, step, rate):
  schedule = getattr(lr_schedule, name)(1.0, *_SCHEDULES[name], warmup)
  np.testing.assert_allclose(schedule(step), rate, atol=1e-6)


@pytest.mark.parametrize('name', _SCHEDULES)
def test_deprecation_is_logged(name, monkeypatch):
  messages = []
  monkeypatch.setattr(logging, 'warning', messages.append)
  getattr(lr_schedule, name)(1.0, *_SCHEDULES[name])
  (message,) = messages
  assert 'effectively deprecated in favor of Optax schedules' in message


@pytest.mark.parametrize('name', _SCHEDULES)
def test_signature_is_that_of_flax(name):
  theirs = pytest.importorskip('flax.training.lr_schedule')
  ours = inspect.signature(getattr(lr_schedule, name))
  assert ours == inspect.signature(getattr(theirs, name))
