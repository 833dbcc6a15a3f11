"""
A transformer, and what it attends to
=====================================

A transformer learns to sort: it sees numbers in any order, and has to say at
each place which of them belongs there. Its attention maps show how. In the end
the weights go over to the same transformer written in Haiku, and `compare`
shows layer by layer that the two compute the same.

**A port of** a transformer's encoder as Haiku's users write it, after the model
of Haiku's transformer example, to linen.

**What had to change.** `hk.MultiHeadAttention` is
`nn.MultiHeadDotProductAttention`, which also tells what it attends to: called
with `sow_weights=True` it leaves its maps in the collection `intermediates`.
`hk.LayerNorm` has another epsilon than linen's, and another way to the
variance, so `nn.LayerNorm` is told both. `mapping` says which layer is which;
it is all that the weights need to go over, in either direction.

.. code-block:: bash

   python examples/transformer.py --length 12

Sources: Vaswani et al., "Attention Is All You Need", 2017, with the norms
before the layers (Xiong et al., "On Layer Normalization in the Transformer
Architecture", 2020).
"""

import dataclasses
from functools import partial

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
  fraction,
  parameters,
  positive,
  save_picture,
  say,
  steps,
)

from haiku_state import interop
from haiku_state import linen as nn
from haiku_state.interop import layers
from haiku_state.training import train_state

# %%
# In Haiku
# --------
#
# Both are told their sizes by one record.


@dataclasses.dataclass(frozen=True)
class Config:
  """The sizes of an encoder."""

  vocabulary: int = 64
  width: int = 32
  heads: int = 4
  hidden: int = 64
  depth: int = 2
  dropout: float = 0.0
  length: int = 16  # The longest sequence.


def haiku_encoder(tokens, config: Config, train: bool):
  """Maps tokens [batch, length] to logits [batch, length, vocabulary]."""

  def dropout(x):
    return hk.dropout(hk.next_rng_key(), config.dropout, x) if train else x

  def norm(name):
    return hk.LayerNorm(-1, create_scale=True, create_offset=True, name=name)

  init = hk.initializers.VarianceScaling(1.0)
  x = hk.Embed(config.vocabulary, config.width, name='embed')(tokens)
  place = jnp.arange(tokens.shape[-1])
  x += hk.Embed(config.length, config.width, name='place')(place)
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
  return hk.Linear(config.vocabulary, name='logits')(norm('norm')(x))


# %%
# In linen
# --------
#
# The maps are sown in each run, and kept where `intermediates` is mutable.


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
    place = jnp.arange(tokens.shape[-1])
    x += nn.Embed(config.length, config.width, name='place')(place)
    for i in range(config.depth):
      y = norm(f'norm_{i}_attention')(x)
      attention = nn.MultiHeadDotProductAttention(
        config.heads, name=f'attention_{i}'
      )
      x = x + dropout(attention(y, sow_weights=True))
      y = norm(f'norm_{i}_mlp')(x)
      y = nn.gelu(nn.Dense(config.hidden, name=f'mlp_{i}_in')(y))
      x = x + dropout(nn.Dense(config.width, name=f'mlp_{i}_out')(y))
    return nn.Dense(config.vocabulary, name='logits')(norm('norm')(x))


# %%
# Which layer is which
# --------------------


def mapping(config: Config):
  """Maps the layers of `haiku_encoder` to those of `Encoder`."""
  rows = {
    'embed': layers.embed('embed'),
    'place': layers.embed('place'),
    'norm': layers.layer_norm('norm'),
    'logits': layers.linear('logits'),
  }
  for i in range(config.depth):
    rows |= {
      f'norm_{i}_attention': layers.layer_norm(f'norm_{i}_attention'),
      f'attention_{i}': layers.attention(f'attention_{i}', config.heads),
      f'norm_{i}_mlp': layers.layer_norm(f'norm_{i}_mlp'),
      f'mlp_{i}_in': layers.linear(f'mlp_{i}_in'),
      f'mlp_{i}_out': layers.linear(f'mlp_{i}_out'),
    }
  return rows


# %%
# Learning to sort
# ----------------


def numbers(key, config, count):
  """Returns sequences of different numbers, [count, length]."""
  keys = jax.random.split(key, count)
  every = jnp.arange(config.vocabulary)
  return jax.vmap(
    lambda key: jax.random.permutation(key, every)[: config.length]
  )(keys)


@partial(jax.jit, static_argnums=(2, 3))
def step(state, key, config, batch_size):
  for_numbers, for_dropout = jax.random.split(
    jax.random.fold_in(key, state.step)
  )
  tokens = numbers(for_numbers, config, batch_size)

  def loss_fn(params):
    logits = state.apply_fn(
      {'params': params}, tokens, train=True, rngs={'dropout': for_dropout}
    )
    loss = optax.softmax_cross_entropy_with_integer_labels(
      logits, jnp.sort(tokens)
    )
    right = (logits.argmax(axis=-1) == jnp.sort(tokens)).mean()
    return loss.mean(), right

  (loss, right), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
  return state.apply_gradients(grads=grads), loss, right


def train(config, count, batch_size, learning_rate):
  """Returns the parameters, and loss and accuracy of each step."""
  model = Encoder(config)
  tokens = numbers(jax.random.key(0), config, 1)
  params = model.init(jax.random.key(1), tokens, train=False)['params']
  say(f'{parameters(params)} parameters')
  rate = optax.warmup_cosine_decay_schedule(
    0.0, learning_rate, count // 10, count
  )
  state = train_state.TrainState.create(
    apply_fn=model.apply, params=params, tx=optax.adam(rate)
  )
  losses, rights = [], []
  for i in steps(count):
    state, loss, right = step(state, jax.random.key(2), config, batch_size)
    losses.append(float(loss))
    rights.append(float(right))
    if due(i, count):
      say(f'  step {i}: loss {losses[-1]:.4f}, {rights[-1]:.1%} at their place')
  return state.params, losses, rights


# %%
# The maps
# --------
#
# A row is a place in the sorted sequence. In the first layer it looks at
# numbers of about the size that belongs there: with the columns in the order of
# the numbers there is a band along the diagonal. In the layers after that it
# looks at other places, most of all at its neighbours, to settle which of them
# has which number.


def attention_maps(config, params, tokens):
  """Returns the maps of all layers, [layers, heads, places, numbers]."""
  _, sown = Encoder(config).apply(
    {'params': params}, tokens[None], train=False, mutable=['intermediates']
  )
  layers = sown['intermediates']
  return np.stack(
    [
      layers[f'attention_{i}']['attention_weights'][0][0]
      for i in range(config.depth)
    ]
  )


def draw(figure, config, params, losses, rights, tokens):
  maps = attention_maps(config, params, tokens)
  above, below = figure.subfigures(2, 1, height_ratios=(1, 1.6 * config.depth))
  left, right = above.subplots(1, 2)
  left.plot(losses)
  left.set(title='loss', xlabel='step', yscale='log')
  right.plot(rights)
  right.set(title='numbers at their place', xlabel='step', ylim=(0, 1.03))

  axes = below.subplots(config.depth, config.heads, squeeze=False)
  order, places = np.argsort(tokens), 1 + np.arange(len(tokens))
  for i, (row, of_heads) in enumerate(zip(axes, maps)):
    columns, labels = (places - 1, places) if i else (order, tokens[order])
    for j, (axis, weights) in enumerate(zip(row, of_heads)):
      axis.imshow(weights[:, columns], cmap='Blues', vmin=0)
      axis.set_title(f'layer {i + 1}, head {j + 1}', fontsize=9)
      axis.set_xticks(range(len(tokens)), labels, fontsize=7)
      axis.set_yticks(range(len(tokens)), places, fontsize=7)
    row[0].set(ylabel='place', xlabel='place' if i else 'number')


# %%
# Run it
# ------
#
# The table is of the weights that were learned: the encoder in linen learned
# them, the one in Haiku has them by `weights_to_haiku`.


def main(argv=None):
  parser = arguments(__doc__, 'transformer.png', steps=1000)
  parser.add_argument(
    '--numbers', type=count_of(2), default=32, help='that there are'
  )
  parser.add_argument(
    '--length', type=count_of(2), default=10, help='numbers to sort at once'
  )
  parser.add_argument(
    '--width', type=positive, default=64, help='features of a place'
  )
  parser.add_argument('--heads', type=positive, default=4, help='of each layer')
  parser.add_argument('--depth', type=positive, default=2, help='layers')
  parser.add_argument(
    '--dropout', type=fraction, default=0.0, help='part of features left out'
  )
  parser.add_argument(
    '--batch-size', type=positive, default=64, help='sequences of a step'
  )
  parser.add_argument(
    '--learning-rate', type=above_zero, default=3e-3, help='the highest'
  )
  args = parser.parse_args(argv)
  if args.width % args.heads:
    parser.error(f'--width must be a multiple of --heads, {args.heads}')
  if args.length > args.numbers:
    parser.error(f'--length must be at most --numbers, {args.numbers}')
  config = Config(
    args.numbers,
    args.width,
    args.heads,
    2 * args.width,
    args.depth,
    args.dropout,
    args.length,
  )
  params, losses, rights = train(
    config, args.steps, args.batch_size, args.learning_rate
  )
  tokens = numbers(jax.random.key(3), config, 2)
  encoder = hk.transform(lambda x: haiku_encoder(x, config, train=False))
  weights = interop.weights_to_haiku({'params': params}, mapping(config))[:2]
  result = interop.compare(
    encoder,
    Encoder(config),
    mapping(config),
    [tokens],
    weights=weights,
    linen_kwargs={'train': False},
    tolerance=1e-3,  # The gradients are sums over many places.
  )
  say(str(result))
  drawn = config, params, losses, rights, np.asarray(tokens[0])
  save_picture(args.picture, (11, 3 + 2.6 * args.depth), draw, *drawn)
  return result, losses


if __name__ == '__main__':
  main()
