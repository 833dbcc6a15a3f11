"""
Looking inside of a Haiku model
===============================

Which part of a picture made the network say "eight"? Grad-CAM answers with a
map: the features of an inner layer, each weighted by how much the answer would
change with it. That takes values from inside of a model, and gradients with
respect to them. Linen has a method for either, `sow` and `perturb`, and here
they look into a network of Haiku's own layers.

**A port of** the guide "Extracting intermediate values" of Flax's documents,
and of what Flax's documents say of `Module.perturb`, to a Haiku function.

**What had to change.** Haiku's network stays as it is: a module of five lines,
the probe, is called between its layers. What linen's `apply` returns in
collections is in Haiku's state here, under the keys `seen:value` and
`perturbations:added` of the probe. What is sown goes into a collection with a
name of its own: those called `intermediates` are kept by linen's `apply` if it
is asked to, and never by Haiku's. The perturbation is added only if it is in
the state that is passed; training passes none, and costs what it did.

.. code-block:: bash

   python examples/looking_inside.py --count 8

Source: Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via
Gradient-based Localization", 2017.
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
  count_of,
  due,
  load_digits,
  parameters,
  positive,
  save_picture,
  say,
  steps,
)

from haiku_state import linen as nn

# %%
# The probe
# ---------
#
# It passes on what it is given. What it sows replaces what it has sown before;
# by default `sow` appends, and state that is passed on from step to step grows.


class Probe(nn.Module):
  @nn.compact
  def __call__(self, x):
    self.sow('seen', 'value', x, reduce_fn=lambda old, new: new)
    return self.perturb('added', x)


# %%
# A network of Haiku's layers
# ---------------------------
#
# The probes are called where a value is of interest. They have no parameters.


def network(channels, images):
  x = images[..., None]
  for i in range(3):
    x = hk.Conv2D(channels, 3, name=f'conv_{i}')(x)
    x = jax.nn.relu(hk.LayerNorm(-1, True, True, name=f'norm_{i}')(x))
    x = Probe(name=f'probe_{i}')(x)
  return hk.Linear(10, name='logits')(x.mean(axis=(1, 2)))


def train(f, images, labels, count, batch_size, learning_rate):
  """Returns the parameters, and the loss of each step."""
  params, state = f.init(jax.random.key(0), images[:1])
  say(f'{parameters(params)} parameters: {", ".join(sorted(params))}')
  for name, values in sorted(state.items()):
    say(f'  state of {name}: {", ".join(sorted(values))}')
  tx = optax.adam(optax.cosine_decay_schedule(learning_rate, count))

  @jax.jit
  def step(params, opt, images, labels):
    def loss_fn(params):
      logits, _ = f.apply(params, {}, None, images)
      return optax.softmax_cross_entropy_with_integer_labels(
        logits, labels
      ).mean()

    loss, grads = jax.value_and_grad(loss_fn)(params)
    updates, opt = tx.update(grads, opt)
    return optax.apply_updates(params, updates), opt, loss

  opt, losses, rng = tx.init(params), [], np.random.default_rng(0)
  for i in steps(count):
    batch = rng.integers(len(images), size=batch_size)
    params, opt, loss = step(params, opt, images[batch], labels[batch])
    losses.append(float(loss))
    if due(i, count):
      say(f'  step {i}: loss {losses[-1]:.4f}')
  return params, losses


# %%
# Values and gradients
# --------------------
#
# One run gives the values, which are in the state that comes back; the gradient
# of the answer with respect to the state that goes in has those of the probes.


def look(f, params, images, answers, probe):
  """Returns an inner value, and the gradients of answers to it.

  Args:
    f: the network, transformed.
    params: its parameters.
    images: of shape [batch, height, width].
    answers: the class whose logit is asked about, for each image.
    probe: the name of the probe.

  Returns:
    Two arrays of shape [batch, height, width, channels].
  """
  _, state = jax.eval_shape(f.init, jax.random.key(0), images)
  added = {
    name: {
      key: jnp.zeros(leaf.shape, leaf.dtype)
      for key, leaf in values.items()
      if key.startswith('perturbations:')
    }
    for name, values in state.items()
  }

  def asked(added):
    logits, state = f.apply(params, added, None, images)
    return jnp.take_along_axis(logits, answers[:, None], 1).sum(), state

  gradients, state = jax.grad(asked, has_aux=True)(added)
  return (
    state[probe]['seen:value'],
    gradients[probe]['perturbations:added'],
  )


def maps(f, params, images, answers, probe='probe_1'):
  """Returns Grad-CAM's maps, of shape [batch, height, width]."""
  values, gradients = look(f, params, images, answers, probe)
  weights = gradients.mean(axis=(1, 2), keepdims=True)
  return jax.nn.relu((weights * values).sum(axis=-1))


# %%
# The maps
# --------
#
# Below each digit is what speaks for the class that the network names first,
# and for the one that it names second.


def draw(figure, f, params, images):
  logits, _ = f.apply(params, {}, None, images)
  second, first = jnp.argsort(logits, axis=-1)[:, -2:].T
  rows = figure.subplots(3, len(images), squeeze=False)
  for axis, image in zip(rows[0], images):
    axis.imshow(image, cmap='gray_r')
  for axes, answers in zip(rows[1:], (first, second)):
    found = maps(f, params, images, answers)
    for axis, image, answer, heat in zip(axes, images, answers, found):
      axis.imshow(image, cmap='gray_r')
      axis.imshow(heat, cmap='inferno', alpha=0.65, interpolation='bicubic')
      axis.set_title(f'why {answer}?', fontsize=9)
  for axis in rows.flat:
    axis.axis('off')


# %%
# Run it
# ------


def main(argv=None):
  parser = arguments(__doc__, 'looking_inside.png', steps=600)
  parser.add_argument(
    '--count', type=count_of(1, 10), default=10, help='digits to look at'
  )
  parser.add_argument(
    '--channels', type=positive, default=24, help='of each layer'
  )
  parser.add_argument(
    '--batch-size', type=positive, default=64, help='digits of a step'
  )
  parser.add_argument(
    '--learning-rate', type=above_zero, default=5e-3, help='of Adam'
  )
  args = parser.parse_args(argv)
  images, labels = load_digits()
  # One of each kind is looked at, and not trained on.
  shown = np.unique(labels, return_index=True)[1][: args.count]
  f = hk.transform_with_state(partial(network, args.channels))
  params, losses = train(
    f,
    np.delete(images, shown, axis=0),
    np.delete(labels, shown),
    args.steps,
    args.batch_size,
    args.learning_rate,
  )
  size = 1.2 * args.count, 4.1
  save_picture(args.picture, size, draw, f, params, images[shown])
  return params, losses


if __name__ == '__main__':
  main()
