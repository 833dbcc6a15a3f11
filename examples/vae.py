"""
A variational autoencoder, and its latent space
===============================================

An encoder puts each handwritten digit at a place in a plane, a decoder draws a
digit for each place. The model is a Haiku function whose layers are linen's,
Haiku's, or both by turns: `--layers linen`, `haiku`, `mixed`.

**A port of** Haiku's VAE example, which trains on MNIST, and of Flax's, which
is the same model in linen.

**What had to change.** Of Haiku's, the layers: `nn.Dense` stands where
`hk.Linear` stood, and the noise still comes from `hk.next_rng_key`. Of Flax's,
the methods: `model.apply(..., method=model.decode)` is an entry point of
`hk.multi_transform` here. The layers are named where they are made, so that an
entry point which calls one of them alone finds its weights. The digits are
scikit-learn's, of 8x8 pixels, and the latent space has two dimensions, so that
it can be drawn.

.. code-block:: bash

   python examples/vae.py --layers mixed

Source: Kingma and Welling, "Auto-Encoding Variational Bayes", 2013.
"""

from functools import partial

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
from showing import (
  above_zero,
  arguments,
  due,
  load_digits,
  parameters,
  positive,
  save_picture,
  say,
  steps,
)

from haiku_state import linen as nn

LAYERS = {
  'linen': (nn.Dense, nn.Dense),
  'haiku': (hk.Linear, hk.Linear),
  'mixed': (nn.Dense, hk.Linear),
}

# %%
# The model
# ---------
#
# One Haiku function makes the layers and returns the entry points: the loss,
# the codes of images, and the images of codes.


def autoencoder(layers, hidden):
  """Makes the layers, and returns the loss and the entry points."""
  Encoder, Decoder = LAYERS[layers]
  read = Encoder(hidden, name='read')
  mean, log_var = Encoder(2, name='mean'), Encoder(2, name='log_var')
  unfold, write = Decoder(hidden, name='unfold'), Decoder(64, name='write')

  def encode(x):
    h = jax.nn.relu(read(x))
    return mean(h), log_var(h)

  def decode(z):
    return write(jax.nn.relu(unfold(z)))

  def loss(x):
    mu, log_variance = encode(x)
    noise = jax.random.normal(hk.next_rng_key(), mu.shape)
    logits = decode(mu + jnp.exp(log_variance / 2) * noise)
    error = optax.sigmoid_binary_cross_entropy(logits, x).sum(axis=-1)
    kl = 0.5 * (jnp.exp(log_variance) + mu**2 - 1 - log_variance).sum(axis=-1)
    return (error + kl).mean()

  def codes(x):
    return encode(x)[0]

  def images(z):
    return jax.nn.sigmoid(decode(z))

  return loss, (loss, codes, images)


# %%
# Training
# --------
#
# The parameters are Haiku's dict of dicts, whoever's the layers are, and any
# optimizer of optax takes them.


def train(model, x, count, batch_size, learning_rate):
  """Returns the parameters, and the loss of each step."""
  params = model.init(jax.random.key(0), x[:1])
  say(f'{parameters(params)} parameters: {", ".join(sorted(params))}')
  tx = optax.adam(optax.cosine_decay_schedule(learning_rate, count))
  loss_of, _, _ = model.apply

  @jax.jit
  def step(params, opt, key):
    for_rows, for_noise = jax.random.split(key)
    rows = jax.random.randint(for_rows, (batch_size,), 0, len(x))
    loss, grads = jax.value_and_grad(loss_of)(params, for_noise, x[rows])
    updates, opt = tx.update(grads, opt)
    return optax.apply_updates(params, updates), opt, loss

  opt, losses = tx.init(params), []
  for i in steps(count):
    params, opt, loss = step(params, opt, jax.random.key(i + 1))
    losses.append(float(loss))
    if due(i, count):
      say(f'  step {i}: loss {losses[-1]:.2f}')
  return params, losses


# %%
# The latent space
# ----------------
#
# Left is where the encoder puts the digits, right what the decoder draws on a
# grid over the same part of the plane.


def draw(figure, model, params, x, labels, side=12, reach=2.5):
  _, codes, images = model.apply
  at = np.asarray(codes(params, None, x))
  left, right = figure.subplots(1, 2)
  dots = left.scatter(*at.T, c=labels, cmap='tab10', s=8, vmin=-0.5, vmax=9.5)
  figure.colorbar(dots, ax=left, ticks=range(10), shrink=0.8)
  left.set(title='where the digits lie', aspect='equal')
  left.set(xlim=(-reach, reach), ylim=(-reach, reach))

  line = jnp.linspace(-reach, reach, side)
  grid = jnp.stack(jnp.meshgrid(line, line[::-1]), axis=-1).reshape(-1, 2)
  tiles = np.asarray(images(params, None, grid)).reshape(side, side, 8, 8)
  tiles = np.pad(tiles, ((0, 0), (0, 0), (1, 1), (1, 1)))  # A margin.
  sheet = tiles.swapaxes(1, 2).reshape(10 * side, 10 * side)
  right.imshow(sheet, cmap='gray_r', extent=(-reach, reach, -reach, reach))
  right.set(title='what is drawn there')


# %%
# Run it
# ------


def main(argv=None):
  parser = arguments(__doc__, 'vae.png', steps=4000)
  parser.add_argument(
    '--layers', choices=LAYERS, default='linen', help='whose they are'
  )
  parser.add_argument(
    '--hidden', type=positive, default=128, help='features of hidden layers'
  )
  parser.add_argument(
    '--batch-size', type=positive, default=128, help='digits of a step'
  )
  parser.add_argument(
    '--learning-rate', type=above_zero, default=3e-3, help='of Adam'
  )
  args = parser.parse_args(argv)
  images, labels = load_digits()
  x = jnp.asarray(images.reshape(len(images), -1))
  model = hk.multi_transform(partial(autoencoder, args.layers, args.hidden))
  params, losses = train(
    model, x, args.steps, args.batch_size, args.learning_rate
  )
  save_picture(args.picture, (11, 5), draw, model, params, x, labels)
  return params, losses


if __name__ == '__main__':
  main()
