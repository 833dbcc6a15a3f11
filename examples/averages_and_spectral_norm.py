"""
A small GAN, with spectral norm and averages as state
=====================================================

A generator learns to put points where the data has them, on a ring of eight
spots; a critic learns to tell the two apart. Both keep state that no gradient
moves: the critic the largest singular value of each of its weights, by which it
divides them; the generator an average of its own parameters, which is calmer
than they are.

**A port of** what Haiku has as `hk.SNParamsTree` and `hk.EMAParamsTree`, two
modules that take all parameters of a network and return others, as their
documents use them for GANs; and of the experiment with a ring of spots that is
common for them.

**What had to change.** Haiku's two are transformed on their own, next to the
network, and their results are given to it in place of its parameters.
`nn.SpectralNorm` wraps the layers where they are, and its state is in the
collection `batch_stats` of the model. The average is a module of ten lines
here, whose state is a whole tree of parameters in one variable. Whether a run
changes its state is said where it is called, by `mutable`, and not by an
argument such as `update_stats` alone.

.. code-block:: bash

   python examples/averages_and_spectral_norm.py --decay 0.99

Sources: Miyato et al., "Spectral Normalization for Generative Adversarial
Networks", 2018; Yazıcı et al., "The Unusual Effectiveness of Averaging in GAN
Training", 2019.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from showing import (
  above_zero,
  arguments,
  due,
  fraction,
  parameters,
  positive,
  save_picture,
  say,
  steps,
)

from haiku_state import linen as nn
from haiku_state.core import unfreeze

# %%
# The data
# --------
#
# A point is good if it is near to one of the spots.

SPOTS = 8
WIDTH = 0.08
IN, OUT = 4, 12  # How steep the critic may be.
NOISE = 8


def spots():
  angles = 2 * jnp.pi * jnp.arange(SPOTS) / SPOTS
  return jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def real_points(key, count):
  for_spot, for_noise = jax.random.split(key)
  at = spots()[jax.random.randint(for_spot, (count,), 0, SPOTS)]
  return at + WIDTH * jax.random.normal(for_noise, (count, 2))


def part_of_good(points):
  """Returns the part of points that three widths around a spot have in them."""
  distances = jnp.linalg.norm(points[:, None] - spots(), axis=-1).min(axis=1)
  return (distances < 3 * WIDTH).mean()


# %%
# Generator and critic
# --------------------
#
# The critic's layers are wrapped one by one. `update_stats` is whether one more
# step of the power iteration is kept.


class Generator(nn.Module):
  hidden: int

  @nn.compact
  def __call__(self, z):
    for _ in range(3):
      z = nn.relu(nn.Dense(self.hidden)(z))
    return nn.Dense(2)(z)


class Critic(nn.Module):
  hidden: int

  @nn.compact
  def __call__(self, x, update_stats):
    # Layers of norm 1 do not make it steeper.
    x = IN * x
    for _ in range(3):
      x = nn.SpectralNorm(nn.Dense(self.hidden))(x, update_stats=update_stats)
      x = nn.leaky_relu(x, 0.2)
    return OUT * nn.SpectralNorm(nn.Dense(1))(x, update_stats=update_stats)


# %%
# The average
# -----------
#
# A variable may hold a tree. In `init` it is the parameters themselves; after
# that it follows them, if its collection is mutable.


class Average(nn.Module):
  decay: float

  @nn.compact
  def __call__(self, params):
    average = self.variable('averages', 'params', lambda: params)
    if self.is_mutable_collection('averages') and not self.is_initializing():
      average.value = jax.tree.map(
        lambda old, new: self.decay * old + (1 - self.decay) * new,
        average.value,
        unfreeze(params),  # As what a variable has.
      )
    return average.value


# %%
# Training
# --------
#
# All that changes is in one tuple: two sets of parameters, what two optimizers
# remember, and two kinds of state.


class Game(NamedTuple):
  generator: Any
  critic: Any
  of_generator: Any
  of_critic: Any
  norms: Any  # The critic's state.
  averages: Any


class Players(NamedTuple):
  generator: Generator
  critic: Critic
  average: Average
  of_generator: Any  # Optimizers.
  of_critic: Any


def start(players, noise):
  keys = jax.random.split(jax.random.key(0))
  generator = players.generator.init(keys[0], noise)['params']
  norms, critic = players.critic.init(
    keys[1], jnp.zeros((1, 2)), update_stats=False
  ).pop('params')
  return Game(
    generator,
    critic,
    players.of_generator.init(generator),
    players.of_critic.init(critic),
    norms,
    players.average.init({}, generator),
  )


def generate(players, params, noise):
  return players.generator.apply({'params': params}, noise)


@partial(jax.jit, static_argnums=(0, 3))
def step(players, game, key, batch_size):
  """Lets critic and generator learn; returns the game and measures."""
  keys = jax.random.split(key, 3)
  real = real_points(keys[0], batch_size)
  noise = jax.random.normal(keys[1], (2, batch_size, NOISE))

  def critic_loss(params):
    fake = generate(players, game.generator, noise[0])
    scores, norms = players.critic.apply(
      {'params': params, **game.norms},
      jnp.concatenate([real, fake]),
      update_stats=True,
      mutable=['batch_stats'],
    )
    of_real, of_fake = jnp.split(scores, 2)
    return (nn.relu(1 - of_real) + nn.relu(1 + of_fake)).mean(), norms

  grads, norms = jax.grad(critic_loss, has_aux=True)(game.critic)
  updates, of_critic = players.of_critic.update(grads, game.of_critic)
  critic = optax.apply_updates(game.critic, updates)

  def generator_loss(params):
    fake = generate(players, params, noise[1])
    return -players.critic.apply(
      {'params': critic, **norms}, fake, update_stats=False
    ).mean()

  grads = jax.grad(generator_loss)(game.generator)
  updates, of_generator = players.of_generator.update(grads, game.of_generator)
  generator = optax.apply_updates(game.generator, updates)
  average, averages = players.average.apply(
    game.averages, generator, mutable=['averages']
  )

  test = jax.random.normal(keys[2], (512, NOISE))
  good = jnp.stack(
    [part_of_good(generate(players, p, test)) for p in (generator, average)]
  )
  game = Game(generator, critic, of_generator, of_critic, norms, averages)
  return game, good, largest_values(norms)


def largest_values(norms):
  """Returns the singular values that the critic's state has, layer by layer."""
  return jnp.stack(
    [
      value
      for name, layer in sorted(norms['batch_stats'].items())
      for key, value in layer.items()
      if key.endswith('sigma')
    ]
  )


def train(players, count, batch_size):
  """Returns the game, and per step the good parts and the singular values."""
  game = start(players, jnp.zeros((1, NOISE)))
  say(f'Parameters: {parameters(game.generator)} and {parameters(game.critic)}')
  measured = []
  for i in steps(count):
    game, *measures = step(players, game, jax.random.key(i), batch_size)
    measured.append([np.asarray(m) for m in measures])
    if due(i, count):
      now, average = measured[-1][0]
      say(f'  step {i}: good now {now:.0%}, of the average {average:.0%}')
  good, values = zip(*measured)
  return game, np.stack(good), np.stack(values)


# %%
# The points, and the state
# -------------------------
#
# To use the average, nothing is mutable: the module returns what it has.


def draw(figure, players, game, good, values):
  above, below = figure.subfigures(2, 1, height_ratios=(3, 2))
  noise = jax.random.normal(jax.random.key(1), (2000, NOISE))
  average = players.average.apply(game.averages, game.generator)
  shown = {
    'data': real_points(jax.random.key(2), 2000),
    'generator': generate(players, game.generator, noise),
    'average of the generator': generate(players, average, noise),
  }
  side = jnp.linspace(-1.6, 1.6, 80)
  field = players.critic.apply(
    {'params': game.critic, **game.norms},
    jnp.stack(jnp.meshgrid(side, side), axis=-1),
    update_stats=False,
  )[..., 0]
  for axis, (title, points) in zip(above.subplots(1, 3), shown.items()):
    axis.contourf(side, side, field, 20, cmap='Greys_r', alpha=0.5)
    axis.plot(*points.T, '.', ms=2, color='tab:blue')
    axis.set(title=title, xlim=(-1.6, 1.6), ylim=(-1.6, 1.6), aspect='equal')
    axis.set(xticks=[], yticks=[])

  left, right = below.subplots(1, 2)
  left.plot(good[:, 0], lw=0.5, color='lightsteelblue', label='generator')
  left.plot(good[:, 1], label='average')
  left.set(title='part of points near to a spot', xlabel='step')
  left.legend(loc='lower right')
  right.plot(values, label=[f'layer {i}' for i in range(values.shape[1])])
  right.set(title="largest singular values of the critic's weights")
  right.set(xlabel='step')
  right.legend(fontsize=8)


# %%
# Run it
# ------


def main(argv=None):
  parser = arguments(__doc__, 'averages_and_spectral_norm.png', steps=3000)
  parser.add_argument(
    '--hidden', type=positive, default=64, help='features of a hidden layer'
  )
  parser.add_argument(
    '--batch-size', type=positive, default=256, help='points of a step'
  )
  parser.add_argument(
    '--decay', type=fraction, default=0.995, help='of the average, in a step'
  )
  parser.add_argument(
    '--learning-rate',
    type=above_zero,
    default=1e-3,
    help='of the generator; the critic learns four times as fast',
  )
  args = parser.parse_args(argv)
  players = Players(
    Generator(args.hidden),
    Critic(args.hidden),
    Average(args.decay),
    optax.adam(args.learning_rate, b1=0.5),
    optax.adam(4 * args.learning_rate, b1=0.5),
  )
  game, good, values = train(players, args.steps, args.batch_size)
  drawn = players, game, good, values
  save_picture(args.picture, (10.5, 6.5), draw, *drawn)
  return game, good, values


if __name__ == '__main__':
  main()
