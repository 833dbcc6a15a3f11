"""
Managing parameters and state
=============================

Two models have parameters, which the optimizer changes, and state, which the
model itself changes when it is called: a running mean, and the averages of
BatchNorm over a batch that `jax.vmap` maps. Both are watched as they train.

**A port of** the guide "Managing parameters and state" of Flax's documents: its
two models, and its two functions `update_step`.

**What had to change.** The two import lines: `from haiku_state import linen as
nn`, and `from haiku_state import optim`, which Flax itself no longer has. The
rest is what the guide leaves to its reader: data, a loop, and a look at what
the state becomes.

.. code-block:: bash

   python examples/managing_parameters_and_state.py --steps 500
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from showing import (
  above_zero,
  arguments,
  due,
  parameters,
  plot_with_average,
  positive,
  save_picture,
  say,
  steps,
)

from haiku_state import linen as nn
from haiku_state import optim

# %%
# Two models with state
# ---------------------
#
# A variable of a collection other than `params` is state. The first model makes
# and changes its own, the second has layers that do.


class BiasAdderWithRunningMean(nn.Module):
  momentum: float = 0.99

  @nn.compact
  def __call__(self, x):
    is_initialized = self.has_variable('batch_stats', 'mean')
    mean = self.variable('batch_stats', 'mean', jnp.zeros, x.shape[1:])
    bias = self.param('bias', lambda rng, shape: jnp.zeros(shape), x.shape[1:])
    if is_initialized:
      batch_mean = jnp.mean(x, axis=0)
      mean.value = (
        self.momentum * mean.value + (1.0 - self.momentum) * batch_mean
      )
    return mean.value + bias


class MLP(nn.Module):
  hidden_size: int
  out_size: int

  @nn.compact
  def __call__(self, x, train=False):
    norm = partial(
      nn.BatchNorm,
      use_running_average=not train,
      momentum=0.9,
      epsilon=1e-5,
      axis_name='batch',  # The name that `jax.vmap` gives to the batch.
    )
    x = nn.relu(norm()(nn.Dense(self.hidden_size)(x)))
    x = nn.relu(norm()(nn.Dense(self.hidden_size)(x)))
    return nn.Dense(self.out_size)(x)


# %%
# Parameters and state part ways
# ------------------------------
#
# `init` returns both; `pop` takes the parameters out, for the optimizer.


def start(model, example, learning_rate):
  """Returns an optimizer for the parameters, and the state."""
  variables = model.init(jax.random.PRNGKey(0), example)
  state, params = variables.pop('params')
  say(
    f'\n{type(model).__name__}: {parameters(params)} parameters, and the state'
  )
  say(f'{jax.tree.map(jnp.shape, state)}')
  optimizer = optim.sgd.GradientDescent(learning_rate=learning_rate)
  return optimizer.create(params), state


# %%
# The running mean
# ----------------
#
# The collections that may change are `mutable`, and come back beside the
# output. The gradient is of the parameters alone; the new state is carried
# along by `has_aux`.


@partial(jax.jit, static_argnums=0)
def running_mean_step(apply_fn, x, optimizer, state):
  def loss(params):
    y, updated_state = apply_fn(
      {'params': params, **state}, x, mutable=list(state.keys())
    )
    return ((x - y) ** 2).mean(), updated_state

  (value, state), grads = jax.value_and_grad(loss, has_aux=True)(
    optimizer.target
  )
  return optimizer.apply_gradient(grads), state, value


def train_running_mean(count, batch_size, learning_rate):
  """Returns the loss of each step, and how far the mean is off."""
  true_mean = jnp.array([1.0, -2.0, 0.5, 3.0])
  model = BiasAdderWithRunningMean()
  optimizer, state = start(model, true_mean[None], learning_rate)
  losses, errors = [], []
  for i in steps(count):
    noise = jax.random.normal(jax.random.PRNGKey(i), (batch_size, 4))
    optimizer, state, loss = running_mean_step(
      model.apply, true_mean + 0.5 * noise, optimizer, state
    )
    mean = state['batch_stats']['mean']
    losses.append(float(loss))
    errors.append(float(jnp.abs(mean - true_mean).max()))
    if due(i, count, 5):
      report(i, loss, mean=mean, bias=optimizer.target['bias'])
  say('  The mean takes over what the bias learned at first.')
  return losses, errors


# %%
# BatchNorm over a mapped batch
# -----------------------------
#
# The loss is that of one example, mapped by `jax.vmap`. All examples agree on
# the state, since BatchNorm averages over the axis that is called `batch`.


@partial(jax.jit, static_argnums=0)
def mlp_step(apply_fn, x_batch, y_batch, optimizer, state):
  def batch_loss(params):
    def loss_fn(x, y):
      pred, updated_state = apply_fn(
        {'params': params, **state}, x, train=True, mutable=list(state.keys())
      )
      return (pred - y) ** 2, updated_state

    loss, updated_state = jax.vmap(
      loss_fn,
      out_axes=(0, None),  # All examples agree on the state.
      axis_name='batch',
    )(x_batch, y_batch)
    return jnp.mean(loss), updated_state

  (loss, state), grads = jax.value_and_grad(batch_loss, has_aux=True)(
    optimizer.target
  )
  return optimizer.apply_gradient(grads), state, loss


def train_mlp(count, hidden_size, batch_size, learning_rate):
  """Returns the loss of each step, and how far the averages are off."""
  key_x, key_w = jax.random.split(jax.random.PRNGKey(1))
  xs = 2.0 + jax.random.normal(key_x, (8, batch_size, 20))
  ys = jnp.sin(xs @ jax.random.normal(key_w, (20, 1)) / 5.0)
  model = MLP(hidden_size, out_size=1)
  optimizer, state = start(model, xs[0, 0], learning_rate)
  losses, errors = [], []
  for i in steps(count):
    optimizer, state, loss = mlp_step(
      model.apply, xs[i % 8], ys[i % 8], optimizer, state
    )
    losses.append(float(loss))
    # What BatchNorm averages are the inputs of the first norm: we know them.
    dense = optimizer.target['Dense_0']
    true_mean = (xs @ dense['kernel'] + dense['bias']).mean(axis=(0, 1))
    mean = state['batch_stats']['BatchNorm_0']['mean']
    errors.append(float(jnp.abs(mean - true_mean).max()))
    if due(i, count, 5):
      report(i, loss, mean=mean[:4], of_all=true_mean[:4])
  # In evaluation nothing is mutable, and only the output comes back.
  variables = {'params': optimizer.target, **state}
  predict = jax.vmap(jax.vmap(lambda x: model.apply(variables, x)))
  say(f'  Evaluated: loss {float(((predict(xs) - ys) ** 2).mean()):.4f}')
  return losses, errors


def report(step, loss, **values):
  shown = ', '.join(
    f'{k} {np.round(np.asarray(v, float), 2)}' for k, v in values.items()
  )
  say(f'  step {step}: loss {float(loss):.4f}, {shown}')


# %%
# Losses and averages
# -------------------
#
# Above is the loss, below how far the state is from what it is the average of.


def draw(figure, curves):
  axes = figure.subplots(2, len(curves), sharex=True)
  for column, (name, (losses, errors)) in zip(axes.T, curves.items()):
    # The MLP sees eight batches by turns.
    plot_with_average(column[0], losses, 8)
    column[0].set(title=name, ylabel='loss', yscale='log')
    plot_with_average(column[1], errors, 8, 'tab:orange')
    column[1].set(xlabel='step', ylabel='|running - true mean|', yscale='log')


# %%
# Run it
# ------


def main(argv=None):
  name = 'managing_parameters_and_state.png'
  parser = arguments(__doc__, name, steps=1500)
  parser.add_argument(
    '--hidden', type=positive, default=32, help='features of the MLP'
  )
  parser.add_argument(
    '--batch-size', type=positive, default=64, help='examples of a step'
  )
  parser.add_argument(
    '--learning-rate', type=above_zero, default=0.1, help='of both'
  )
  args = parser.parse_args(argv)
  curves = {
    'running mean': train_running_mean(
      args.steps, args.batch_size, args.learning_rate
    ),
    'BatchNorm over a vmapped batch': train_mlp(
      args.steps, args.hidden, args.batch_size, args.learning_rate
    ),
  }
  save_picture(args.picture, (9, 6), draw, curves)
  return curves


if __name__ == '__main__':
  main()
