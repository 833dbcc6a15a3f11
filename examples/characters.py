"""Train a transformer on the characters of a text, and let it write.

In training it sees whole pieces of text at once, behind a causal mask. To write
it sees one character at a time: the keys and values of those before are in the
collection `cache`, which it changes, as it does its position.

  python examples/characters.py --text a_book.txt

The text is this project's license, unless another is given. It prints the loss
in bits per character, what it writes as it learns, and how far the logits
through the cache are from those without: rounding only.
"""

import argparse
import pathlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from showing import save_curves, say, trange

from haiku_state import linen as nn
from haiku_state.training import train_state

LICENSE = pathlib.Path(__file__).parents[1] / 'LICENSE'


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


@jax.jit
def step(state, batch):
  def loss_fn(params):
    logits = state.apply_fn({'params': params}, batch[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(
      logits, batch[:, 1:]
    ).mean()

  loss, grads = jax.value_and_grad(loss_fn)(state.params)
  return state.apply_gradients(grads=grads), loss / jnp.log(2)


@partial(jax.jit, static_argnums=0)
def write(model, params, prompt, key, temperature=0.5):
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


def train(text, length, steps, batch_size, **sizes):
  """Returns the loss of each step, what it wrote, and the cache's error."""
  alphabet = sorted(set(text))
  tokens = np.array([alphabet.index(c) for c in text])
  model = Transformer(len(alphabet), length, **sizes)
  params = model.init(jax.random.key(0), tokens[None, :length])['params']
  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  say(f'{len(text)} characters, {len(alphabet)} different; {count} parameters')
  rate = optax.warmup_cosine_decay_schedule(0.0, 3e-3, steps // 10, steps)
  state = train_state.TrainState.create(
    apply_fn=model.apply, params=params, tx=optax.adamw(rate)
  )
  rng, losses, prompt = np.random.default_rng(0), [], tokens[:8]
  for i in trange(steps):
    starts = rng.integers(len(tokens) - length, size=(batch_size, 1))
    state, loss = step(state, tokens[starts + np.arange(length + 1)])
    losses.append(float(loss))
    if (i + 1) % max(steps // 4, 1) == 0:
      written, logits = write(model, state.params, prompt, jax.random.key(i))
      said = ''.join(alphabet[token] for token in written)
      say(f'--- step {i + 1}, {losses[-1]:.3f} bits per character:\n{said}')
  whole = model.apply({'params': state.params}, written[None])[0]
  error = float(jnp.abs(whole - logits).max())
  say(f'--- Logits through the cache differ by at most {error:.1e}')
  return losses, said, error


def main(argv=None):
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--short', action='store_true', help='a quick try')
  parser.add_argument('--text', default=str(LICENSE))
  parser.add_argument('--steps', type=int, default=600)
  parser.add_argument('--picture', default='characters.png')
  args = parser.parse_args(argv)
  text = ' '.join(pathlib.Path(args.text).read_text().split())
  if args.short:
    sizes = {'length': 16, 'steps': 40, 'batch_size': 8, 'depth': 1}
    sizes |= {'width': 16, 'heads': 2}
  else:
    sizes = {'length': 96, 'steps': args.steps, 'batch_size': 16}
  losses, said, error = train(text, **sizes)
  save_curves({'bits per character': losses}, args.picture, xlabel='step')
  return losses, said, error


if __name__ == '__main__':
  main()
