"""Classify handwritten digits with a small residual network.

The data is scikit-learn's: 1797 images of 8x8 pixels. A fifth is held out. The
network has parameters, batch statistics, and noise from dropout; optax trains
it, and a train state holds what one step leaves to the next.

  python examples/digits.py

It prints the accuracy on held-out images after each epoch, about 99 % at the
end. With matplotlib installed it saves a picture of the curves.
"""

import argparse
from functools import partial
from typing import Any

import jax
import numpy as np
import optax
from showing import save_curves, say, trange
from sklearn.datasets import load_digits

from haiku_state import linen as nn
from haiku_state.training import train_state


class Block(nn.Module):
  channels: int
  strides: int = 1

  @nn.compact
  def __call__(self, x, train):
    norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
    conv = partial(nn.Conv, self.channels, use_bias=False)
    y = nn.relu(norm()(conv((3, 3), strides=self.strides)(x)))
    # A block begins as the identity.
    y = norm(scale_init=nn.initializers.zeros)(conv((3, 3))(y))
    if x.shape != y.shape:
      x = conv((1, 1), strides=self.strides, name='shortcut')(x)
    return nn.relu(x + y)


class ResNet(nn.Module):
  channels: tuple[int, ...] = (16, 32)

  @nn.compact
  def __call__(self, x, train):
    x = nn.relu(nn.Conv(self.channels[0], (3, 3))(x))
    for i, channels in enumerate(self.channels):
      x = Block(channels, strides=1 if i == 0 else 2)(x, train)
    x = x.reshape(len(x), -1)
    x = nn.Dropout(0.3, deterministic=not train)(x)
    return nn.Dense(10)(x)


class TrainState(train_state.TrainState):
  batch_stats: Any


def load(seed=0):
  """Returns images [n, 8, 8, 1] and labels [n]: to train on, and held out."""
  digits = load_digits()
  order = np.random.default_rng(seed).permutation(len(digits.target))
  images = (digits.images[order, :, :, None] / 16.0).astype(np.float32)
  labels, n = digits.target[order], len(order) // 5
  return (images[n:], labels[n:]), (images[:n], labels[:n])


def start(model, example, steps, learning_rate=3e-3):
  variables = model.init(jax.random.key(0), example, train=False)
  state, params = variables.pop('params')
  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  say(f'{count} parameters')
  rate = optax.cosine_decay_schedule(learning_rate, steps)
  return TrainState.create(
    apply_fn=model.apply, params=params, tx=optax.adamw(rate), **state
  )


@jax.jit
def step(state, images, labels, key):
  def loss_fn(params):
    logits, updates = state.apply_fn(
      {'params': params, 'batch_stats': state.batch_stats},
      images,
      train=True,
      mutable=['batch_stats'],
      rngs={'dropout': jax.random.fold_in(key, state.step)},
    )
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean(), updates

  (loss, updates), grads = jax.value_and_grad(loss_fn, has_aux=True)(
    state.params
  )
  return state.apply_gradients(grads=grads, **updates), loss


@jax.jit
def accuracy(state, images, labels):
  variables = {'params': state.params, 'batch_stats': state.batch_stats}
  logits = state.apply_fn(variables, images, train=False)
  return (logits.argmax(axis=-1) == labels).mean()


def train(channels, epochs, batch_size=64):
  """Returns the loss and the held-out accuracy of each epoch."""
  (images, labels), (test_images, test_labels) = load()
  steps = len(labels) // batch_size
  state = start(ResNet(channels), images[:1], steps * epochs)
  key, rng = jax.random.key(1), np.random.default_rng(1)
  losses, accuracies = [], []
  for epoch in trange(epochs):
    order, epoch_loss = rng.permutation(len(labels)), 0.0
    for batch in order[: steps * batch_size].reshape(steps, batch_size):
      state, loss = step(state, images[batch], labels[batch], key)
      epoch_loss += float(loss) / steps
    losses.append(epoch_loss)
    accuracies.append(float(accuracy(state, test_images, test_labels)))
    say(
      f'  epoch {epoch}: loss {losses[-1]:.4f}, held out {accuracies[-1]:.2%}'
    )
  return losses, accuracies


def main(argv=None):
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--short', action='store_true', help='a quick try')
  parser.add_argument('--epochs', type=int, default=15)
  parser.add_argument('--picture', default='digits.png')
  args = parser.parse_args(argv)
  channels, epochs = ((4,), 2) if args.short else ((16, 32), args.epochs)
  losses, accuracies = train(channels, epochs)
  curves = {'loss': losses, 'held-out accuracy': accuracies}
  save_curves(curves, args.picture, xlabel='epoch')
  return losses, accuracies


if __name__ == '__main__':
  main()
