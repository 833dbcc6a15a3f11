"""
Digits, with BatchNorm over a vmapped batch
===========================================

A small residual network learns handwritten digits. It is written for one image,
and `jax.vmap` maps it over a batch: what an image needs to know of the others,
BatchNorm asks for by the name of the mapped axis.

**A port of** Flax's MNIST example, with the network of its ImageNet example
made small, and the batch mapped as the guide "Managing parameters and state"
does it.

**What had to change.** The import lines, and the optimizer: a train state with
optax in place of `optim.Momentum`. The two examples hand whole batches to the
model; here the loss is that of one image, and `jax.vmap` has
`axis_name='batch'` and, since all images agree on the averages,
`out_axes=None` for them. A model that is mapped draws noise for each image:
dropout gets as many keys. The data is scikit-learn's.

.. code-block:: bash

   python examples/digits.py --channels 8 --steps 200

Source: Ioffe and Szegedy, "Batch Normalization", 2015.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from showing import (
  above_zero,
  arguments,
  due,
  fraction,
  load_digits,
  parameters,
  positive,
  save_picture,
  say,
  steps,
)

from haiku_state import linen as nn
from haiku_state.training import train_state

# %%
# The network
# -----------
#
# It sees one image, [height, width, channels]. Without an axis of that name, as
# in `init` and in evaluation, the norms need none.


class Block(nn.Module):
  channels: int
  strides: int = 1

  @nn.compact
  def __call__(self, x, train):
    norm = partial(
      nn.BatchNorm,
      use_running_average=not train,
      momentum=0.9,
      axis_name='batch',
    )
    conv = partial(nn.Conv, self.channels, use_bias=False)
    y = nn.relu(norm()(conv((3, 3), strides=self.strides)(x)))
    # A block begins as the identity.
    y = norm(scale_init=nn.initializers.zeros)(conv((3, 3))(y))
    if x.shape != y.shape:
      x = conv((1, 1), strides=self.strides, name='shortcut')(x)
    return nn.relu(x + y)


class ResNet(nn.Module):
  channels: int
  dropout: float

  @nn.compact
  def __call__(self, x, train):
    x = nn.relu(nn.Conv(self.channels, (3, 3))(x))
    x = Block(self.channels)(x, train)
    x = Block(2 * self.channels, strides=2)(x, train)
    x = nn.Dropout(self.dropout, deterministic=not train)(x.reshape(-1))
    return nn.Dense(10)(x)


# %%
# A step of training
# ------------------
#
# The train state has a place for the averages, which are not trained.


class TrainState(train_state.TrainState):
  batch_stats: Any


def start(model, image, tx):
  variables = model.init(jax.random.key(0), image, train=False)
  state, params = variables.pop('params')
  say(f'{parameters(params)} parameters')
  return TrainState.create(apply_fn=model.apply, params=params, tx=tx, **state)


@jax.jit
def step(state, images, labels, key):
  keys = jax.random.split(jax.random.fold_in(key, state.step), len(labels))

  def batch_loss(params):
    def loss_fn(image, label, key):
      logits, updates = state.apply_fn(
        {'params': params, 'batch_stats': state.batch_stats},
        image,
        train=True,
        mutable=['batch_stats'],
        rngs={'dropout': key},
      )
      loss = optax.softmax_cross_entropy_with_integer_labels(logits, label)
      return loss, updates

    # All images agree on the averages.
    mapped = jax.vmap(loss_fn, out_axes=(0, None), axis_name='batch')
    losses, updates = mapped(images, labels, keys)
    return losses.mean(), updates

  (loss, updates), grads = jax.value_and_grad(batch_loss, has_aux=True)(
    state.params
  )
  return state.apply_gradients(grads=grads, **updates), loss


@jax.jit
def classify(state, images):
  variables = {'params': state.params, 'batch_stats': state.batch_stats}
  logits = jax.vmap(lambda x: state.apply_fn(variables, x, train=False))(images)
  return logits.argmax(axis=-1)


def train(model, seen, held_out, count, batch_size, learning_rate):
  """Returns the losses, when how much was right, and the last answers."""
  (images, labels), (test_images, test_labels) = seen, held_out
  tx = optax.adamw(optax.cosine_decay_schedule(learning_rate, count))
  state = start(model, images[0], tx)
  rng, losses, rights = np.random.default_rng(1), [], {}
  for i in steps(count):
    batch = rng.integers(len(labels), size=batch_size)
    state, loss = step(state, images[batch], labels[batch], jax.random.key(1))
    losses.append(float(loss))
    if due(i, count):
      answers = classify(state, test_images)
      rights[i] = float((answers == test_labels).mean())
      say(f'  step {i}: loss {losses[-1]:.4f}, held out {rights[i]:.2%}')
  return losses, rights, classify(state, test_images)


# %%
# What it takes for what
# ----------------------


def draw(figure, losses, rights, answers, labels):
  left, middle, right = figure.subplots(1, 3)
  left.plot(losses)
  left.set(title='loss', xlabel='step', yscale='log')
  middle.plot(rights.keys(), rights.values(), 'o-', color='tab:orange')
  middle.set(title='held-out digits that are right', xlabel='step')
  middle.set(ylim=(0, 1.03))

  table = np.zeros((10, 10), int)
  np.add.at(table, (labels, np.asarray(answers)), 1)
  right.imshow(np.log1p(table), cmap='Blues')
  for (i, j), number in np.ndenumerate(table):
    color = 'white' if i == j else 'tab:red'
    if number:
      right.text(j, i, number, ha='center', va='center', color=color, size=8)
  right.set(title=f'held out: {(labels == answers).mean():.1%}')
  right.set(xlabel='taken for', ylabel='digit')
  right.set(xticks=range(10), yticks=range(10))


# %%
# Run it
# ------


def main(argv=None):
  parser = arguments(__doc__, 'digits.png', steps=400)
  parser.add_argument(
    '--channels', type=positive, default=16, help='of the first block'
  )
  parser.add_argument(
    '--dropout', type=fraction, default=0.3, help='part of features left out'
  )
  parser.add_argument(
    '--batch-size', type=positive, default=64, help='digits of a step'
  )
  parser.add_argument(
    '--learning-rate', type=above_zero, default=3e-3, help='of Adam'
  )
  args = parser.parse_args(argv)
  images, labels = load_digits()
  images, n = jnp.asarray(images[..., None]), len(labels) // 5
  losses, rights, answers = train(
    ResNet(args.channels, args.dropout),
    (images[n:], labels[n:]),
    (images[:n], labels[:n]),
    args.steps,
    args.batch_size,
    args.learning_rate,
  )
  save_picture(args.picture, (12, 4), draw, losses, rights, answers, labels[:n])
  return losses, rights


if __name__ == '__main__':
  main()
