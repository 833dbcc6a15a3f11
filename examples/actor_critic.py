"""
An actor-critic agent that has to remember
==========================================

A ball falls, and a paddle has to be below it when it arrives. After the first
frames a fog hides the ball: who wants to catch it has to remember where it was.
The agent is a Haiku function with three entry points, by `hk.multi_transform`:
the state it begins with, one step to act, and a whole episode to learn from.
They share a linen-style torso, a cell of linen's as Haiku's core, and two
heads.

**A port of** the agent of Haiku's IMPALA example (`initial_state`, `step` and
`unroll` over one network, playing catch).

**What had to change.** Nothing in the function but the layers: `nn.Dense`
stands where `hk.Linear` stood, `interop.as_rnn_core(nn.LSTMCell(...))` where
`hk.LSTM` stood. Its several transforms of several functions, which have to make
the same modules in the same order, are one `hk.multi_transform`. The actors'
threads, which kept an accelerator busy, are a `jax.lax.scan` here, and so the
policy that acts is always the policy that learns: plain advantages do for
V-trace.

.. code-block:: bash

   python examples/actor_critic.py --steps 1000

Sources: Mnih et al., "Asynchronous Methods for Deep Reinforcement Learning",
2016; Espeholt et al., "IMPALA", 2018.
"""

from functools import partial
from typing import Any, NamedTuple

import haiku as hk
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
  plot_with_average,
  positive,
  save_picture,
  say,
  steps,
)

from haiku_state import interop
from haiku_state import linen as nn

# %%
# Catch
# -----
#
# A game is its state and two functions of it, so that `jax.vmap` plays many
# games and `jax.lax.scan` a whole episode. The paddle moves left, stays, or
# moves right.

MOVES = ('left', 'stay', 'right')


class Catch(NamedTuple):
  """The state of a game: where ball and paddle are, each a number or many."""

  row: Any
  ball: Any
  paddle: Any


class Rules(NamedTuple):
  rows: int
  columns: int
  visible: int  # The rows from the top in which the ball is seen.


def begin(rules, key):
  ball = jax.random.randint(key, (), 0, rules.columns)
  return Catch(jnp.zeros((), int), ball, jnp.array(rules.columns // 2))


def board(rules, game):
  """Returns what is seen of a game, [rows, columns]: ones, and nothing."""
  there = jnp.zeros((rules.rows, rules.columns))
  is_seen = jnp.where(game.row < rules.visible, 1.0, 0.0)
  there = there.at[game.row, game.ball].set(is_seen)
  return there.at[-1, game.paddle].set(1.0)


def move(rules, game, action):
  """Returns the game after a move, and the reward: at the end, 1 or -1."""
  paddle = jnp.clip(game.paddle + action - 1, 0, rules.columns - 1)
  game = Catch(game.row + 1, game.ball, paddle)
  outcome = jnp.where(game.ball == paddle, 1.0, -1.0)
  return game, jnp.where(game.row == rules.rows - 1, outcome, 0.0)


# %%
# The agent
# ---------
#
# All modules are made once, where the function begins, and so have their names
# there: whichever entry point is called, it finds its weights.


class Torso(nn.Module):
  """Features of boards, with any axes before those of the board."""

  features: int

  @nn.compact
  def __call__(self, boards):
    x = boards.reshape(*boards.shape[:-2], -1)
    x = nn.relu(nn.Dense(2 * self.features)(x))
    return nn.relu(nn.Dense(self.features)(x))


class Agent(NamedTuple):
  """The entry points."""

  initial_state: Any
  step: Any
  unroll: Any


def agent(features):
  torso = Torso(features, name='torso')
  core = interop.as_rnn_core(nn.LSTMCell(features, name='memory'))
  policy, value = nn.Dense(len(MOVES), name='policy'), nn.Dense(1, name='value')

  def heads(h):
    return policy(h), value(h)[..., 0]

  def step(boards, state):  # [batch, rows, columns]
    h, state = core(torso(boards), state)
    return heads(h), state

  def unroll(boards):  # [time, batch, rows, columns]
    state = core.initial_state(boards.shape[1])
    h, _ = hk.dynamic_unroll(core, torso(boards), state)
    return heads(h)

  return unroll, Agent(core.initial_state, step, unroll)


# %%
# Acting and learning
# -------------------
#
# To act, `step` is called once per frame inside of a scan. To learn, `unroll`
# reads the whole episodes that were played.


class Episode(NamedTuple):
  """What was seen, done and got, [time, batch, ...]."""

  games: Catch
  boards: Any
  actions: Any
  rewards: Any


def play(rules, network, params, key, batch_size):
  """Plays a batch of games to their end."""
  for_games, for_moves = jax.random.split(key)
  games = jax.vmap(partial(begin, rules))(
    jax.random.split(for_games, batch_size)
  )
  state = network.initial_state(params, None, batch_size)

  def frame(carry, key):
    games, state = carry
    boards = jax.vmap(partial(board, rules))(games)
    (logits, _), state = network.step(params, None, boards, state)
    actions = jax.random.categorical(key, logits)
    following, rewards = jax.vmap(partial(move, rules))(games, actions)
    return (following, state), Episode(games, boards, actions, rewards)

  keys = jax.random.split(for_moves, rules.rows - 1)
  (games, _), episode = jax.lax.scan(frame, (games, state), keys)
  return games, episode


def loss_of(params, network, episode, entropy_cost):
  """Returns the loss of actor and critic together."""
  logits, values = network.unroll(params, None, episode.boards)
  # The reward comes at the end, and is not discounted: it is every return.
  returns = jnp.broadcast_to(episode.rewards.sum(axis=0), values.shape)
  advantages = jax.lax.stop_gradient(returns - values)
  log_p = jax.nn.log_softmax(logits)
  chosen = jnp.take_along_axis(log_p, episode.actions[..., None], -1)[..., 0]
  entropy = -(jnp.exp(log_p) * log_p).sum(axis=-1)
  actor = -(chosen * advantages).mean() - entropy_cost * entropy.mean()
  return actor + 0.5 * ((returns - values) ** 2).mean()


def train(rules, features, count, batch_size, learning_rate, entropy_cost):
  """Returns the network, its parameters, and the part caught in each step."""
  f = hk.multi_transform(partial(agent, features))
  boards = jnp.zeros((1, 1, rules.rows, rules.columns))
  params = f.init(jax.random.key(0), boards)
  say(f'{parameters(params)} parameters: {", ".join(sorted(params))}')
  tx = optax.adam(learning_rate)

  @jax.jit
  def step(params, opt, key):
    _, episode = play(rules, f.apply, params, key, batch_size)
    grads = jax.grad(loss_of)(params, f.apply, episode, entropy_cost)
    updates, opt = tx.update(grads, opt)
    params = optax.apply_updates(params, updates)
    return params, opt, (episode.rewards > 0).sum() / batch_size

  opt, caught = tx.init(params), []
  for i in steps(count):
    params, opt, part = step(params, opt, jax.random.key(i + 1))
    caught.append(float(part))
    if due(i, count):
      say(f'  step {i}: {np.mean(caught[-50:]):.0%} caught of late')
  return f.apply, params, caught


# %%
# An episode on film
# ------------------
#
# The ball is drawn as a ring where the fog hides it from the agent. Below each
# frame is what the policy thinks of the three moves, and what the critic
# expects.


def draw(figure, rules, network, params, caught):
  above, below = figure.subfigures(2, 1, height_ratios=(1, 1.4))
  axis = above.subplots()
  plot_with_average(axis, caught, 30)
  axis.set(title='balls caught', xlabel='step of training', ylim=(0, 1.03))
  axis.legend(loc='lower right')

  last, episode = play(rules, network, params, jax.random.key(4), 1)
  logits, values = network.unroll(params, None, episode.boards)
  chances = np.asarray(jax.nn.softmax(logits))[:, 0]
  games = jax.tree.map(
    lambda past, end: np.append(past[:, 0], end[0]), episode.games, last
  )
  frames = below.subplots(2, rules.rows, height_ratios=(3, 1), squeeze=False)
  for t, (frame, bars) in enumerate(frames.T):
    draw_frame(frame, rules, *(int(x[t]) for x in games))
    if t == rules.rows - 1:
      frame.set_title('caught' if games.ball[t] == games.paddle[t] else 'lost')
      bars.axis('off')
      continue
    frame.set_title(f'{float(values[t, 0]):+.2f}', fontsize=9)
    bars.bar(['←', '·', '→'], chances[t], color='tab:orange')
    bars.set(ylim=(0, 1), yticks=[])
  below.suptitle('one episode: the value above, the policy below')


def draw_frame(axis, rules, row, ball, paddle):
  height, width = rules.rows, rules.columns
  axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), aspect='equal')
  axis.set(xticks=[], yticks=[])
  axis.axhspan(rules.visible - 0.5, height - 1.5, color='0.9')
  axis.bar(paddle, -0.6, 0.95, bottom=height - 0.6, color='tab:blue')
  is_seen = row < rules.visible
  axis.plot(
    ball, row, 'o', color='tab:red', fillstyle='full' if is_seen else 'none'
  )


# %%
# Run it
# ------


def main(argv=None):
  parser = arguments(__doc__, 'actor_critic.png', steps=1000)
  parser.add_argument('--rows', type=count_of(3), default=10, help='of a board')
  parser.add_argument(
    '--columns', type=count_of(2), default=7, help='of a board'
  )
  parser.add_argument(
    '--visible', type=positive, default=2, help='rows above the fog'
  )
  parser.add_argument(
    '--features', type=positive, default=32, help='of torso and memory'
  )
  parser.add_argument(
    '--batch-size', type=positive, default=64, help='games of a step'
  )
  parser.add_argument(
    '--learning-rate', type=above_zero, default=3e-3, help='of Adam'
  )
  parser.add_argument(
    '--entropy-cost', type=above_zero, default=0.02, help='keeps it curious'
  )
  args = parser.parse_args(argv)
  rules = Rules(args.rows, args.columns, args.visible)
  network, params, caught = train(
    rules,
    args.features,
    args.steps,
    args.batch_size,
    args.learning_rate,
    args.entropy_cost,
  )
  drawn = rules, network, params, caught
  save_picture(args.picture, (10, 5.2), draw, *drawn)
  return params, caught


if __name__ == '__main__':
  main()
