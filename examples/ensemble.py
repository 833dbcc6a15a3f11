"""
An ensemble, and what it is not sure of
=======================================

Ten networks learn the same few points of a curve. Where there are points they
agree, and where there are none they do not: their spread says how far the mean
can be trusted. All ten are one network, mapped over its weights.

**A port of** the guide "Ensembling on multiple devices" of Flax's documents,
which trains an ensemble with `jax.pmap`, a member for each device; of the
regression that "Deep Ensembles" begins with.

**What had to change.** The import line; and `jax.pmap` to `jax.vmap`, which
needs no devices: `model.init` is mapped over keys, and the step of training
over the train states. A second way is shown below it: `nn.vmap` makes a module
whose parameters have an axis for the members, for use inside of another module
or of a Haiku function. With the same parameters it says the same.

.. code-block:: bash

   python examples/ensemble.py --members 20

Source: Lakshminarayanan et al., "Simple and Scalable Predictive Uncertainty
Estimation using Deep Ensembles", 2017.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from showing import (
  above_zero,
  arguments,
  count_of,
  due,
  parameters,
  positive,
  save_picture,
  say,
  steps,
)

from haiku_state import linen as nn
from haiku_state.training import train_state

# %%
# The points
# ----------
#
# They lie in two pieces of the axis, with noise; between and beyond is nothing.


def curve(x):
  return jnp.sin(3 * x) + 0.3 * x


def make_points(key, count):
  """Returns places and values of points, each of shape [count, 1]."""
  for_left, for_right, for_noise = jax.random.split(key, 3)
  left = jax.random.uniform(for_left, (count // 2, 1), minval=-2, maxval=-0.6)
  right = jax.random.uniform(
    for_right, (count - count // 2, 1), minval=0.4, maxval=1.8
  )
  x = jnp.concatenate([left, right])
  return x, curve(x) + 0.08 * jax.random.normal(for_noise, x.shape)


# %%
# One member
# ----------
#
# It knows nothing of the others.


class Member(nn.Module):
  hidden: int

  @nn.compact
  def __call__(self, x):
    for _ in range(2):
      x = nn.tanh(nn.Dense(self.hidden)(x))
    return nn.Dense(1)(x)


def start(model, tx, key):
  params = model.init(key, jnp.zeros((1, 1)))['params']
  return train_state.TrainState.create(
    apply_fn=model.apply, params=params, tx=tx
  )


def step(state, x, y):
  def loss_fn(params):
    return ((state.apply_fn({'params': params}, x) - y) ** 2).mean()

  loss, grads = jax.value_and_grad(loss_fn)(state.params)
  return state.apply_gradients(grads=grads), loss


# %%
# All of them
# -----------
#
# A train state is a pytree, so it is mapped like an array: every leaf of the
# parameters, and of what Adam remembers, has a first axis of members.


def train(model, x, y, members, count, learning_rate):
  """Returns the states, and the losses of each step, [steps, members]."""
  keys = jax.random.split(jax.random.key(0), members)
  tx = optax.adam(optax.cosine_decay_schedule(learning_rate, count))
  states = jax.vmap(lambda key: start(model, tx, key))(keys)
  say(f'{members} members, {parameters(states.params)} parameters in all')
  step_all = jax.jit(jax.vmap(step, in_axes=(0, None, None)))
  losses = []
  for i in steps(count):
    states, loss = step_all(states, x, y)
    losses.append(np.asarray(loss))
    if due(i, count):
      best, worst = losses[-1].min(), losses[-1].max()
      say(f'  step {i}: losses from {best:.4f} to {worst:.4f}')
  return states, np.stack(losses)


# %%
# The ensemble as a module
# ------------------------
#
# `nn.vmap` maps the module itself. Its variables are those that `jax.vmap`
# made, below the name of the mapped module.


class Ensemble(nn.Module):
  """Mean and standard deviation of the members' answers."""

  hidden: int
  members: int

  @nn.compact
  def __call__(self, x):
    Members = nn.vmap(
      Member,
      variable_axes={'params': 0},
      split_rngs={'params': True},
      in_axes=None,
      axis_size=self.members,
    )
    y = Members(self.hidden, name='members')(x)
    return y.mean(axis=0), y.std(axis=0)


# %%
# The spread
# ----------
#
# Thin lines are the members; the band is two standard deviations wide to each
# side of the mean.


def draw(figure, states, hidden, x, y, losses):
  line = jnp.linspace(-3.2, 3.2, 400)[:, None]
  members = jax.vmap(lambda s: s.apply_fn({'params': s.params}, line))(states)
  variables = {'params': {'members': states.params}}
  mean, std = Ensemble(hidden, len(members)).apply(variables, line)

  at = line[:, 0]
  left, right = figure.subplots(1, 2, width_ratios=(3, 1))
  for member in members:
    left.plot(at, member[:, 0], color='tab:blue', lw=0.6, alpha=0.5)
  low, high = (mean - 2 * std)[:, 0], (mean + 2 * std)[:, 0]
  left.fill_between(at, low, high, color='tab:blue', alpha=0.2, lw=0)
  left.plot(
    at, mean[:, 0], color='tab:blue', lw=2, label='mean of the ensemble'
  )
  left.plot(at, curve(at), 'k--', lw=1, label='the curve')
  left.plot(x, y, 'o', color='tab:orange', ms=4, label='points that were seen')
  left.set(title='what the members say', ylim=(-3.5, 3.5))
  left.legend(loc='upper left')
  right.plot(losses, color='tab:blue', lw=0.6)
  right.set(title='loss of each member', xlabel='step', yscale='log')


# %%
# Run it
# ------


def main(argv=None):
  parser = arguments(__doc__, 'ensemble.png', steps=2000)
  parser.add_argument(
    '--members', type=count_of(2), default=10, help='of the ensemble'
  )
  parser.add_argument(
    '--points', type=count_of(2), default=40, help='that are seen'
  )
  parser.add_argument(
    '--hidden', type=positive, default=64, help='features of a hidden layer'
  )
  parser.add_argument(
    '--learning-rate', type=above_zero, default=5e-3, help='of Adam'
  )
  args = parser.parse_args(argv)
  x, y = make_points(jax.random.key(1), args.points)
  states, losses = train(
    Member(args.hidden), x, y, args.members, args.steps, args.learning_rate
  )
  drawn = states, args.hidden, x, y, losses
  save_picture(args.picture, (11, 4.5), draw, *drawn)
  return states.params, losses


if __name__ == '__main__':
  main()
