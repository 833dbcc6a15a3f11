"""
A transformer that writes with a cache
======================================

A transformer learns a text character by character. It sees whole pieces of text
at once as it learns, behind a causal mask. To write it sees one character at a
time: the keys and values of those before are in the collection `cache`, which
it changes.

**A port of** Flax's "lm1b" example, the transformer language model, made small.

**What had to change.** The import lines. Attention with `decode=True` keeps
its cache as it does there; the position, which the example hands from step to
step, is one more variable of the cache. The cache is as long as the longest
text, and its shapes come from `jax.eval_shape`, so that nothing is computed to
begin. The text is this project's license, unless another is given.

.. code-block:: bash

   python examples/characters.py --text a_book.txt --steps 5000

Source: Vaswani et al., "Attention Is All You Need", 2017.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from showing import (
  LICENSE,
  above_zero,
  arguments,
  count_of,
  due,
  parameters,
  positive,
  read_text,
  save_picture,
  say,
  steps,
  text_path,
)

from haiku_state import linen as nn
from haiku_state.training import train_state

# %%
# One model, two ways to run it
# -----------------------------
#
# With `decode` it has the same parameters, and a cache.


class Transformer(nn.Module):
  vocabulary: int
  length: int  # The longest text it can write.
  width: int = 64
  heads: int = 4
  depth: int = 2
  decode: bool = False

  @nn.compact
  def __call__(self, tokens):
    x = nn.Embed(self.vocabulary, self.width)(tokens)
    x = x + nn.Embed(self.length, self.width, name='at')(self.positions(tokens))
    mask = None if self.decode else nn.make_causal_mask(tokens)
    attention = partial(
      nn.MultiHeadDotProductAttention, self.heads, decode=self.decode
    )
    for _ in range(self.depth):
      x = x + attention()(nn.LayerNorm()(x), mask=mask)
      y = nn.Dense(4 * self.width)(nn.LayerNorm()(x))
      x = x + nn.Dense(self.width)(nn.gelu(y))
    return nn.Dense(self.vocabulary)(nn.LayerNorm()(x))

  def positions(self, tokens):
    if not self.decode:
      return jnp.arange(tokens.shape[-1])
    position = self.variable('cache', 'position', jnp.zeros, (), int)
    now = position.value
    if not self.is_initializing():
      position.value += 1
    return now[None]


# %%
# Reading
# -------


@jax.jit
def step(state, batch):
  def loss_fn(params):
    logits = state.apply_fn({'params': params}, batch[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(
      logits, batch[:, 1:]
    ).mean()

  loss, grads = jax.value_and_grad(loss_fn)(state.params)
  return state.apply_gradients(grads=grads), loss / jnp.log(2)


# %%
# Writing
# -------
#
# A scan over the places of the text carries the cache along.


@partial(jax.jit, static_argnums=0)
def write(model, params, prompt, key, temperature):
  """Goes on after the prompt, up to the model's length.

  Returns:
    What was written [length], and the logits of all steps [length, vocabulary].
  """
  writer = model.clone(decode=True)
  full = jnp.zeros((1, model.length), int)
  # The shapes of the cache are those of a text of full length.
  cache = jax.eval_shape(writer.init, key, full)['cache']
  cache = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), cache)

  def one(carry, i):
    cache, last = carry
    token = jnp.where(i < len(prompt), prompt[i % len(prompt)], last)
    logits, updates = writer.apply(
      {'params': params, 'cache': cache}, token[None, None], mutable=['cache']
    )
    following = jax.random.categorical(
      jax.random.fold_in(key, i), logits[0, 0] / temperature
    )
    return (updates['cache'], following), (token, logits[0, 0])

  _, written = jax.lax.scan(one, (cache, prompt[0]), jnp.arange(model.length))
  return written


def train(
  model, tokens, alphabet, count, batch_size, learning_rate, temperature
):
  """Returns the parameters, the bits of each step, and what it wrote when."""
  length, prompt = model.length, tokens[: min(8, model.length)]
  params = model.init(jax.random.key(0), tokens[None, :length])['params']
  say(f'{parameters(params)} parameters')
  rate = optax.warmup_cosine_decay_schedule(
    0.0, learning_rate, count // 10, count
  )
  state = train_state.TrainState.create(
    apply_fn=model.apply, params=params, tx=optax.adamw(rate)
  )
  rng, losses, texts = np.random.default_rng(0), [], {}
  for i in steps(count):
    starts = rng.integers(len(tokens) - length, size=(batch_size, 1))
    state, loss = step(state, tokens[starts + np.arange(length + 1)])
    losses.append(float(loss))
    if due(i, count, 5):
      written, logits = write(
        model, state.params, prompt, jax.random.key(3), temperature
      )
      texts[i] = ''.join(alphabet[token] for token in written)
      say(f'--- step {i}, {losses[-1]:.3f} bits per character:\n{texts[i]}')
  whole = model.apply({'params': state.params}, written[None])[0]
  error = float(jnp.abs(whole - logits).max())
  say(f'--- Logits through the cache differ by at most {error:.1e}')
  return losses, texts, error


# %%
# What it wrote as it learned
# ---------------------------


def draw(figure, losses, texts, width=96):
  above, below = figure.subfigures(2, 1, height_ratios=(1, 1.3))
  axis = above.subplots()
  axis.plot(losses)
  axis.set(title='bits per character', xlabel='step')
  for i in texts:
    axis.axvline(i, color='tab:orange', lw=0.8, ls=':')
  axis = below.subplots()
  axis.axis('off')
  for line, (i, text) in enumerate(texts.items()):
    lines = [text[k : k + width] for k in range(0, len(text), width)]
    y = 1 - line / len(texts)
    axis.text(0, y, f'step {i}', va='top', color='tab:orange')
    axis.text(0.1, y, '\n'.join(lines), va='top', family='monospace', size=9)


# %%
# Run it
# ------


def main(argv=None):
  parser = arguments(__doc__, 'characters.png', steps=1000)
  parser.add_argument('--text', type=text_path, default=LICENSE, help='to read')
  parser.add_argument(
    '--length', type=count_of(2), default=96, help='of the longest text'
  )
  parser.add_argument(
    '--width', type=positive, default=64, help='features of a character'
  )
  parser.add_argument('--heads', type=positive, default=4, help='of each layer')
  parser.add_argument('--depth', type=positive, default=2, help='layers')
  parser.add_argument(
    '--batch-size', type=positive, default=16, help='pieces of text of a step'
  )
  parser.add_argument(
    '--learning-rate', type=above_zero, default=3e-3, help='the highest'
  )
  parser.add_argument(
    '--temperature', type=above_zero, default=0.5, help='of what is written'
  )
  args = parser.parse_args(argv)
  if args.width % args.heads:
    parser.error(f'--width must be a multiple of --heads, {args.heads}')
  _, alphabet, tokens = read_text(args.text, args.length)
  losses, texts, error = train(
    Transformer(len(alphabet), args.length, args.width, args.heads, args.depth),
    tokens,
    alphabet,
    args.steps,
    args.batch_size,
    args.learning_rate,
    args.temperature,
  )
  save_picture(args.picture, (10, 6), draw, losses, texts)
  return losses, texts, error


if __name__ == '__main__':
  main()
