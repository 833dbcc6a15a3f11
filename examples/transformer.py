"""A transformer encoder, in Haiku and in linen style, with the same weights.

Run it to see both side by side: `python examples/transformer.py`.

Source: Vaswani et al., "Attention Is All You Need", 2017, with the norms before
the layers (Xiong et al., "On Layer Normalization in the Transformer
Architecture", 2020).
"""

import dataclasses

import haiku as hk
import jax
import jax.numpy as jnp

from haiku_state import interop
from haiku_state import linen as nn
from haiku_state.interop import layers


@dataclasses.dataclass(frozen=True)
class Config:
  """The sizes of an encoder."""

  vocabulary: int = 64
  width: int = 32
  heads: int = 4
  hidden: int = 64
  depth: int = 2
  dropout: float = 0.0


def haiku_encoder(tokens, config: Config, train: bool):
  """Encodes tokens of shape (batch, length), as a Haiku user writes it."""

  def dropout(x):
    return hk.dropout(hk.next_rng_key(), config.dropout, x) if train else x

  def norm(name):
    return hk.LayerNorm(-1, create_scale=True, create_offset=True, name=name)

  init = hk.initializers.VarianceScaling(1.0)
  x = hk.Embed(config.vocabulary, config.width, name='embed')(tokens)
  for i in range(config.depth):
    y = norm(f'norm_{i}_attention')(x)
    size = config.width // config.heads
    attention = hk.MultiHeadAttention(
      config.heads, size, w_init=init, name=f'attention_{i}'
    )
    x = x + dropout(attention(y, y, y))
    y = norm(f'norm_{i}_mlp')(x)
    y = jax.nn.gelu(hk.Linear(config.hidden, name=f'mlp_{i}_in')(y))
    x = x + dropout(hk.Linear(config.width, name=f'mlp_{i}_out')(y))
  return norm('norm')(x)


class Encoder(nn.Module):
  """The same in linen style.

  Attributes:
    config: the sizes.
  """

  config: Config

  @nn.compact
  def __call__(self, tokens, train: bool):
    config = self.config

    def dropout(x):
      return nn.Dropout(config.dropout, deterministic=not train)(x)

    def norm(name):
      # Haiku's epsilon, and its way to compute the variance.
      return nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name=name)

    x = nn.Embed(config.vocabulary, config.width, name='embed')(tokens)
    for i in range(config.depth):
      y = norm(f'norm_{i}_attention')(x)
      attention = nn.MultiHeadDotProductAttention(
        config.heads, name=f'attention_{i}'
      )
      x = x + dropout(attention(y))
      y = norm(f'norm_{i}_mlp')(x)
      y = nn.gelu(nn.Dense(config.hidden, name=f'mlp_{i}_in')(y))
      x = x + dropout(nn.Dense(config.width, name=f'mlp_{i}_out')(y))
    return norm('norm')(x)


def mapping(config: Config):
  """Maps the layers of `haiku_encoder` to those of `Encoder`."""
  rows = {'embed': layers.embed('embed'), 'norm': layers.layer_norm('norm')}
  for i in range(config.depth):
    rows |= {
      f'norm_{i}_attention': layers.layer_norm(f'norm_{i}_attention'),
      f'attention_{i}': layers.attention(f'attention_{i}', config.heads),
      f'norm_{i}_mlp': layers.layer_norm(f'norm_{i}_mlp'),
      f'mlp_{i}_in': layers.linear(f'mlp_{i}_in'),
      f'mlp_{i}_out': layers.linear(f'mlp_{i}_out'),
    }
  return rows


def main():
  config = Config()
  encoder = hk.transform(lambda x: haiku_encoder(x, config, train=False))
  tokens = jnp.arange(24).reshape(2, 12)
  print(
    interop.compare(
      encoder,
      Encoder(config),
      mapping(config),
      [tokens],
      linen_kwargs={'train': False},
    )
  )


if __name__ == '__main__':
  main()
