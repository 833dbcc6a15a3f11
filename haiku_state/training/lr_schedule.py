"""Learning-rate schedules of the old image-classification examples.

Deprecated, as in Flax: new programs use the schedules of optax.

Each function here returns a function of the step (a number or an array, traced
or not). The warm-up is that of Goyal et al., https://arxiv.org/abs/1706.02677:
over the first `warmup_length` epochs the rate grows linearly from 0.
"""

import jax.numpy as jnp
import numpy as np
from absl import logging


def create_constant_learning_rate_schedule(
  base_learning_rate, steps_per_epoch, warmup_length=0.0
):
  """Makes a schedule that stays at the base rate.

  >>> from haiku_state.training import lr_schedule
  >>> rate = lr_schedule.create_constant_learning_rate_schedule(
  ...   0.5, steps_per_epoch=10, warmup_length=1)
  >>> float(rate(5)), float(rate(50))
  (0.25, 0.5)

  Args:
    base_learning_rate: the rate after the warm-up.
    steps_per_epoch: steps in one epoch.
    warmup_length: epochs of warm-up; 0 for none.

  Returns:
    A function of the step that returns the learning rate.
  """
  _warn_deprecated()
  return _with_warmup(
    lambda step: base_learning_rate, steps_per_epoch, warmup_length
  )


def create_stepped_learning_rate_schedule(
  base_learning_rate, steps_per_epoch, lr_sched_steps, warmup_length=0.0
):
  """Makes a schedule that changes by factors at given epochs.

  Args:
    base_learning_rate: the rate after the warm-up, before the first change.
    steps_per_epoch: steps in one epoch.
    lr_sched_steps: pairs `[epoch, factor]` with rising epochs: after `epoch`
      the rate is `base_learning_rate * factor`. A usual choice for ImageNet
      is `[[30, 0.1], [60, 0.01], [80, 0.001]]`.
    warmup_length: epochs of warm-up; 0 for none.

  Returns:
    A function of the step that returns the learning rate.

  Example:
    >>> from haiku_state.training import lr_schedule
    >>> rate = lr_schedule.create_stepped_learning_rate_schedule(
    ...   1.0, 10, [[2, 0.5], [3, 0.25]])
    >>> [float(rate(step)) for step in (0, 20, 21, 31)]
    [1.0, 1.0, 0.5, 0.25]
  """
  _warn_deprecated()
  epochs = np.array([epoch for epoch, _ in lr_sched_steps])
  factors = np.array([1.0] + [factor for _, factor in lr_sched_steps])
  boundaries = np.round(epochs * steps_per_epoch).astype(int)
  rates = factors * base_learning_rate
  return _with_warmup(
    lambda step: jnp.take(rates, jnp.sum(boundaries < step)),
    steps_per_epoch,
    warmup_length,
  )


def create_cosine_learning_rate_schedule(
  base_learning_rate, steps_per_epoch, halfcos_epochs, warmup_length=0.0
):
  """Makes a schedule that falls to 0 along half a cosine wave.

  >>> from haiku_state.training import lr_schedule
  >>> rate = lr_schedule.create_cosine_learning_rate_schedule(
  ...   0.5, steps_per_epoch=10, halfcos_epochs=2)
  >>> float(rate(0)), round(float(rate(10)), 3), round(float(rate(20)), 3)
  (0.5, 0.25, 0.0)

  Args:
    base_learning_rate: the rate at step 0, if there is no warm-up.
    steps_per_epoch: steps in one epoch.
    halfcos_epochs: epochs until the rate is 0.
    warmup_length: epochs of warm-up; 0 for none.

  Returns:
    A function of the step that returns the learning rate.
  """
  _warn_deprecated()
  steps = halfcos_epochs * steps_per_epoch

  def cosine(step):
    # The order of the operations is Flax's, so that the numbers are.
    return base_learning_rate * (jnp.cos(step * jnp.pi / steps) * 0.5 + 0.5)

  return _with_warmup(cosine, steps_per_epoch, warmup_length)


def _warn_deprecated():
  logging.warning(
    'Learning rate schedules in ``flax.training`` are effectively deprecated '
    'in favor of Optax schedules. Please refer to '
    'https://optax.readthedocs.io/en/latest/api.html#optimizer-schedules'
    ' for alternatives.'
  )


def _with_warmup(schedule, steps_per_epoch, warmup_length):
  if not warmup_length > 0.0:
    return schedule
  length = float(warmup_length)
  return lambda step: (
    schedule(step) * jnp.minimum(1.0, step / length / steps_per_epoch)
  )
