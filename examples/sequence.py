"""Add two marked numbers of a sequence, with an LSTM.

Each step of a sequence has a number and a mark. Two numbers are marked, and
their sum is asked for: the LSTM has to remember the first until the end. The
sequences have different lengths; they are padded, and `nn.RNN` is told their
lengths, so that its carry is that of each sequence's last step.

  python examples/sequence.py

It prints the error as it goes. Who always answers with the mean, 1, is wrong by
1/6 on average of the squares. With matplotlib installed it saves a picture.

Source: Hochreiter and Schmidhuber, "Long Short-Term Memory", 1997, section 5.4.
"""

import argparse
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from showing import save_curves, say, trange

from haiku_state import linen as nn
from haiku_state.training import train_state


class Adder(nn.Module):
  hidden_size: int

  @nn.compact
  def __call__(self, x, lengths):
    lstm = nn.RNN(nn.OptimizedLSTMCell(self.hidden_size), return_carry=True)
    (_, last), _ = lstm(x, seq_lengths=lengths)
    return nn.Dense(1)(last)[:, 0]


def make_data(key, count, length):
  """Makes sequences [count, length, 2], their lengths, and the sums.

  What is behind the end of a sequence is noise with marks on it: to read it
  is to be wrong.
  """
  keys = jax.random.split(key, 4)
  lengths = jax.random.randint(keys[0], (count,), length // 2, length + 1)
  numbers = jax.random.uniform(keys[1], (count, length))
  first = jax.random.randint(keys[2], (count,), 0, lengths // 2)
  second = jax.random.randint(keys[3], (count,), lengths // 2, lengths)
  time = jnp.arange(length)
  marked = (time == first[:, None]) | (time == second[:, None])
  sums = (numbers * marked).sum(axis=1)
  padding = time >= lengths[:, None]
  x = jnp.stack([numbers, jnp.where(marked | padding, 1.0, 0.0)], axis=-1)
  return x, lengths, sums


def squared_errors(apply_fn, params, x, lengths, sums):
  return (apply_fn({'params': params}, x, lengths) - sums) ** 2


@partial(jax.jit, static_argnums=(2, 3))
def step(state, key, batch_size, length):
  batch = make_data(jax.random.fold_in(key, state.step), batch_size, length)
  loss, grads = jax.value_and_grad(
    lambda params: squared_errors(state.apply_fn, params, *batch).mean()
  )(state.params)
  return state.apply_gradients(grads=grads), loss


def start(model, example, learning_rate=5e-3):
  x, lengths, _ = example
  params = model.init(jax.random.key(0), x, lengths)['params']
  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  say(f'{count} parameters')
  tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(learning_rate))
  return train_state.TrainState.create(
    apply_fn=model.apply, params=params, tx=tx
  )


def train(hidden_size, length, steps, batch_size):
  """Returns the loss of each step, and answers to new sequences."""
  test = make_data(jax.random.key(1), 256, length)
  state = start(Adder(hidden_size), test)
  key, losses = jax.random.key(2), []
  for i in trange(steps):
    state, loss = step(state, key, batch_size, length)
    losses.append(float(loss))
    if i % max(steps // 10, 1) == 0:
      say(f'  step {i}: loss {losses[-1]:.5f}')
  x, lengths, sums = test
  answers = state.apply_fn({'params': state.params}, x, lengths)
  say(f'New sequences: {float(((answers - sums) ** 2).mean()):.5f}')
  for n, answer, true in zip(lengths[:3], answers, sums):
    say(f'  {n} steps: {float(answer):.3f}, in truth {float(true):.3f}')
  return losses, np.asarray(answers), np.asarray(sums)


def main(argv=None):
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--short', action='store_true', help='a quick try')
  parser.add_argument('--steps', type=int, default=2000)
  parser.add_argument('--picture', default='sequence.png')
  args = parser.parse_args(argv)
  if args.short:
    sizes = {'hidden_size': 16, 'length': 6, 'steps': 60, 'batch_size': 32}
  else:
    sizes = {'hidden_size': 32, 'length': 40, 'batch_size': 64}
    sizes['steps'] = args.steps
  losses, answers, sums = train(**sizes)
  save_curves({'squared error': losses}, args.picture, 'step', yscale='log')
  return losses, answers, sums


if __name__ == '__main__':
  main()
