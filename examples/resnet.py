"""
ResNet in both libraries
========================

The same residual network is there twice: Haiku's own `hk.nets.ResNet`, and one
written in linen. The weights of the one go into the other, and `compare` shows
layer by layer how far outputs and gradients are apart. Then both take some
steps of training, each with its own library's parameters and state, and the
losses stay together.

**A port of** Haiku's ImageNet example, whose network is `hk.nets.ResNet50`, to
linen.

**What had to change.** Haiku's BatchNorm divides its averages by how far they
have come, linen's begins with 0 and 1: in training both normalize alike, and so
the weights are converted with `for_='training'`. Convolutions are at the same
places under other names; `mapping` says which is which. Haiku's initial weights
of the last norm of a block are zeros, and so are the logits': for the
comparison all are moved a little, since zeros hide what is before them.

.. code-block:: bash

   python examples/resnet.py --blocks 3,4,6,3

Source: He et al., "Deep Residual Learning for Image Recognition", 2015.
"""

import argparse
import functools
from collections.abc import Sequence

import haiku as hk
import jax
import jax.numpy as jnp
import optax
from showing import (
  above_zero,
  arguments,
  count_of,
  due,
  positive,
  save_picture,
  say,
  steps,
)

from haiku_state import interop
from haiku_state import linen as nn
from haiku_state.interop import layers

# %%
# In linen
# --------
#
# Names are given where the default would not say which layer it is.

DECAY = 0.9


class Block(nn.Module):
  """A block with a bottleneck: 1x1, 3x3 and 1x1 convolutions.

  Attributes:
    channels: the channels of its output.
    stride: the stride of its 3x3 convolution.
    project: whether its input is projected before it is added.
  """

  channels: int
  stride: int
  project: bool

  @nn.compact
  def __call__(self, x, train: bool):
    norm = functools.partial(
      nn.BatchNorm, use_running_average=not train, momentum=DECAY, epsilon=1e-5
    )
    inner = self.channels // 4
    shortcut = x
    if self.project:
      shortcut = nn.Conv(
        self.channels,
        (1, 1),
        strides=self.stride,
        use_bias=False,
        name='shortcut_conv',
      )(x)
      shortcut = norm(name='shortcut_norm')(shortcut)
    x = nn.Conv(inner, (1, 1), use_bias=False, name='conv_0')(x)
    x = nn.relu(norm(name='norm_0')(x))
    x = nn.Conv(
      inner, (3, 3), strides=self.stride, use_bias=False, name='conv_1'
    )(x)
    x = nn.relu(norm(name='norm_1')(x))
    x = nn.Conv(self.channels, (1, 1), use_bias=False, name='conv_2')(x)
    # A block begins as the identity.
    x = norm(name='norm_2', scale_init=nn.initializers.zeros)(x)
    return nn.relu(x + shortcut)


class ResNet(nn.Module):
  """A residual network for images of shape (batch, height, width, channels).

  Attributes:
    blocks: how many blocks each of the four groups has.
    num_classes: how many logits there are.
    channels: the channels of each group.
  """

  blocks: Sequence[int]
  num_classes: int
  channels: Sequence[int] = (256, 512, 1024, 2048)

  @nn.compact
  def __call__(self, x, train: bool):
    x = nn.Conv(64, (7, 7), strides=2, use_bias=False, name='initial_conv')(x)
    x = nn.BatchNorm(
      use_running_average=not train,
      momentum=DECAY,
      epsilon=1e-5,
      name='initial_norm',
    )(x)
    x = nn.relu(x)
    x = nn.max_pool(x, (3, 3), strides=(2, 2), padding='SAME')
    for group, count in enumerate(self.blocks):
      for i in range(count):
        stride = 2 if group and not i else 1
        block = Block(
          self.channels[group], stride, i == 0, name=f'group_{group}_block_{i}'
        )
        x = block(x, train)
    x = jnp.mean(x, axis=(1, 2))
    return nn.Dense(
      self.num_classes, kernel_init=nn.initializers.zeros, name='logits'
    )(x)


# %%
# Which layer is which
# --------------------
#
# The names of Haiku's are those that its parameters have.

RESNET50 = (3, 4, 6, 3)


def mapping(blocks: Sequence[int], root: str = 'res_net50', **options):
  """Maps the layers of `hk.nets.ResNet` to those of `ResNet`.

  Args:
    blocks: how many blocks each group has.
    root: the name of the Haiku module.
    **options: of `layers.batch_norm`, such as `for_='training'`.
  """

  def norm(path):
    return layers.batch_norm(path, momentum=DECAY, rank=4, **options)

  rows = {
    'initial_conv': layers.conv('initial_conv'),
    'initial_batchnorm': norm('initial_norm'),
    'logits': layers.linear('logits'),
  }
  for group, count in enumerate(blocks):
    for i in range(count):
      haiku = f'block_group_{group}/~/block_{i}/~'
      linen = f'group_{group}_block_{i}'
      if i == 0:
        rows[f'{haiku}/shortcut_conv'] = layers.conv(f'{linen}/shortcut_conv')
        rows[f'{haiku}/shortcut_batchnorm'] = norm(f'{linen}/shortcut_norm')
      for n in range(3):
        rows[f'{haiku}/conv_{n}'] = layers.conv(f'{linen}/conv_{n}')
        rows[f'{haiku}/batchnorm_{n}'] = norm(f'{linen}/norm_{n}')
  return {f'{root}/~/{path}': layer for path, layer in rows.items()}


# %%
# Steps of training in both
# -------------------------
#
# One function for either: it is given how to compute logits and new state.


def train(apply, params, state, images, labels, count, learning_rate, name):
  """Returns the loss of each step.

  Args:
    apply: a function of parameters, state and images to logits and new state.
    params: its parameters.
    state: its first state.
    images: of shape [batch, height, width, 3].
    labels: of shape [batch].
    count: how many steps there are.
    learning_rate: of gradient descent.
    name: what is trained.
  """

  @jax.jit
  def step(params, state):
    def loss_fn(params):
      logits, new = apply(params, state, images)
      losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
      return losses.mean(), new

    (loss, new), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    params = jax.tree.map(lambda p, g: p - learning_rate * g, params, grads)
    return params, new, loss

  losses = []
  for i in steps(count):
    params, state, loss = step(params, state)
    losses.append(float(loss))
    if due(i, count, 5):
      say(f'  {name}, step {i}: loss {losses[-1]:.5f}')
  return losses


# %%
# How far they are apart
# ----------------------


def draw(figure, result, losses):
  left, right = figure.subplots(1, 2, width_ratios=(3, 2))
  result.plot(left)
  left.tick_params(axis='both', labelsize=5)
  for (name, values), style in zip(losses.items(), ('-', '--')):
    right.plot(values, style, lw=3 if style == '-' else 2, label=name)
  right.set(title='loss', xlabel='step of training')
  right.legend()


# %%
# Run it
# ------


def four_counts(text):
  """Returns four numbers that are given with commas between."""
  counts = tuple(count_of(0)(count) for count in text.split(','))
  if len(counts) != 4:
    raise argparse.ArgumentTypeError(f'{text!r} is not as in 3,4,6,3')
  return counts


def main(argv=None):
  parser = arguments(__doc__, 'resnet.png', steps=20)
  parser.add_argument(
    '--blocks',
    type=four_counts,
    default='1,1,1,1',
    help='of the four groups; ResNet-50 has 3,4,6,3',
  )
  parser.add_argument(
    '--channels', type=count_of(4), default=64, help='of the first group'
  )
  parser.add_argument(
    '--size', type=positive, default=32, help='pixels of a side of an image'
  )
  parser.add_argument(
    '--batch-size', type=count_of(2), default=8, help='images'
  )
  parser.add_argument(
    '--learning-rate', type=above_zero, default=0.02, help='of both'
  )
  args = parser.parse_args(argv)
  channels = tuple(args.channels * 2**i for i in range(4))
  network = hk.transform_with_state(
    lambda x, is_training: hk.nets.ResNet(
      args.blocks, 10, channels_per_group=channels
    )(x, is_training)
  )
  module = ResNet(args.blocks, 10, channels)
  rows = mapping(args.blocks, 'res_net', for_='training')

  key_x, key_y, key = jax.random.split(jax.random.key(0), 3)
  shape = args.batch_size, args.size, args.size, 3
  images = jax.random.normal(key_x, shape)
  labels = jax.random.randint(key_y, shape[:1], 0, 10)
  params, state = jax.jit(network.init, static_argnums=2)(key, images, True)
  params = jax.tree.map(lambda x: x + 0.01, params)
  result = interop.compare(
    network,
    module,
    rows,
    [images],
    weights=(params, state),
    haiku_kwargs={'is_training': True},
    linen_kwargs={'train': True},
    tolerance=1e-3,
  )
  say(str(result))

  def haiku_apply(params, state, images):
    return network.apply(params, state, None, images, True)

  def linen_apply(params, state, images):
    return module.apply(
      {'params': params, **state}, images, train=True, mutable=['batch_stats']
    )

  variables, _ = interop.weights_from_haiku(params, state, rows)
  linen = variables['params'], {'batch_stats': variables['batch_stats']}
  data = images, labels, args.steps, args.learning_rate
  losses = {
    'Haiku': train(haiku_apply, params, state, *data, 'Haiku'),
    'linen': train(linen_apply, *linen, *data, 'linen'),
  }
  save_picture(args.picture, (12, 6), draw, result, losses)
  return result, losses


if __name__ == '__main__':
  main()
