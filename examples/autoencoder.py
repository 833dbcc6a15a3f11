"""A variational autoencoder in Haiku, whose layers are linen's, or Haiku's.

The function is Haiku's: `hk.multi_transform` has four entry points, and the noise
is drawn by `hk.next_rng_key`. The layers are named where they are made, so an
entry point that calls one of them alone finds its own weights.

  python examples/autoencoder.py
  python examples/autoencoder.py --layers haiku
  python examples/autoencoder.py --layers mixed

It reads the handwritten digits of scikit-learn, prints the loss as it goes, and
with matplotlib installed saves a picture of the latent space: where the digits
lie, and what is decoded from a grid over it. Ctrl-C ends the training early.

Source: Kingma and Welling, "Auto-Encoding Variational Bayes", 2013.
"""

import argparse

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
from showing import say, trange

from haiku_state import linen as nn

LAYERS = {
  'linen': [nn.Dense, nn.Dense],
  'haiku': [hk.Linear, hk.Linear],
  'mixed': [nn.Dense, hk.Linear],
}


def autoencoder(layers, hidden):
  """Makes the layers, and returns the loss and the other entry points."""
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


def load_digits():
  """Returns images [count, 64] between 0 and 1, and the digits on them."""
  try:
    from sklearn import datasets
  except ImportError:
    raise SystemExit(
      "The digits come with scikit-learn: pip install '.[examples]'"
    ) from None
  digits = datasets.load_digits()
  return jnp.asarray(digits.data / 16, jnp.float32), digits.target


def train(model, x, steps, batch_size, learning_rate):
  """Returns the parameters, and the loss of each step until Ctrl-C."""
  params = model.init(jax.random.key(0), x[:batch_size])
  say(', '.join(sorted(params)))
  tx = optax.adam(learning_rate)
  loss_of = model.apply[0]

  @jax.jit
  def step(params, opt, key):
    for_rows, for_noise = jax.random.split(key)
    rows = jax.random.randint(for_rows, (batch_size,), 0, len(x))
    loss, grads = jax.value_and_grad(loss_of)(params, for_noise, x[rows])
    updates, opt = tx.update(grads, opt)
    return optax.apply_updates(params, updates), opt, loss

  opt, losses = tx.init(params), []
  try:
    for i in trange(steps):
      params, opt, loss = step(params, opt, jax.random.key(i + 1))
      losses.append(float(loss))
      if i % max(steps // 10, 1) == 0:
        say(f'  step {i}: loss {losses[-1]:.2f}')
  except KeyboardInterrupt:
    say(f'Stopped after {len(losses)} steps')
  return params, losses


def save_latent_space(model, params, x, digits, path, count=12):
  """Saves where the digits lie, and what is decoded from a grid over it."""
  try:
    import matplotlib
  except ImportError:
    say("No picture: pip install '.[examples]' brings matplotlib.")
    return
  matplotlib.use('agg')
  from matplotlib import pyplot

  _, codes, images = model.apply
  at = np.asarray(codes(params, None, x))
  line = jnp.linspace(-2, 2, count)
  grid = jnp.stack(jnp.meshgrid(line, line[::-1]), axis=-1).reshape(-1, 2)
  tiles = np.asarray(images(params, None, grid)).reshape(count, count, 8, 8)
  figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 5))
  dots = left.scatter(*at.T, c=digits, cmap='tab10', s=6)
  figure.colorbar(dots, ax=left, ticks=range(10))
  left.set(title='where the digits lie', xlim=(-4, 4), ylim=(-4, 4))
  sheet = tiles.swapaxes(1, 2).reshape(8 * count, 8 * count)
  right.imshow(sheet, cmap='gray_r', extent=(-2, 2, -2, 2))
  right.set(title='what is decoded there')
  figure.tight_layout()
  figure.savefig(path)
  say(f'Saved {path}')


def main(argv=None):
  parser = argparse.ArgumentParser(
    description=__doc__.splitlines()[0],
    formatter_class=argparse.ArgumentDefaultsHelpFormatter,
  )
  parser.add_argument('--short', action='store_true', help='a quick try')
  parser.add_argument('--layers', choices=LAYERS, default='linen', help='whose')
  parser.add_argument('--steps', type=int, default=4000, help='of training')
  parser.add_argument('--hidden', type=int, default=128, help='features')
  parser.add_argument('--batch-size', type=int, default=128, help='of a step')
  parser.add_argument('--learning-rate', type=float, default=2e-3, help='Adam')
  parser.add_argument('--picture', default='autoencoder.png', help='where to')
  args = parser.parse_args(argv)
  if args.short:
    args.steps, args.hidden, args.batch_size = 60, 16, 32
  x, digits = load_digits()
  model = hk.multi_transform(lambda: autoencoder(args.layers, args.hidden))
  params, losses = train(
    model, x, args.steps, args.batch_size, args.learning_rate
  )
  save_latent_space(model, params, x, digits, args.picture)
  return params, losses


if __name__ == '__main__':
  main()
