"""ResNet (v1) in linen style, with the weights of `hk.nets.ResNet50`.

Run it to see both networks side by side: `python examples/resnet.py`.

Source: He et al., "Deep Residual Learning for Image Recognition", 2015.
"""

import functools
from collections.abc import Sequence

import haiku as hk
import jax
import jax.numpy as jnp

from haiku_state import interop
from haiku_state import linen as nn
from haiku_state.interop import layers

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


def main():
  network = hk.transform_with_state(
    lambda x, is_training: hk.nets.ResNet50(10)(x, is_training)
  )
  images = jax.random.normal(jax.random.key(0), (2, 64, 64, 3))
  params, state = network.init(jax.random.key(1), images, True)
  # Some weights begin as zeros, which would hide all that is before them.
  params = jax.tree.map(lambda x: x + 0.01, params)
  print(
    interop.compare(
      network,
      ResNet(RESNET50, 10),
      mapping(RESNET50),
      [images],
      weights=(params, state),
      haiku_kwargs={'is_training': True},
      linen_kwargs={'train': True},
    )
  )


if __name__ == '__main__':
  main()
