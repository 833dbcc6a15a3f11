"""Train the two documented models, and watch their parameters and state.

Both models have parameters, which the optimizer changes, and state, which the
model itself changes when it is called: a running mean, and the averages of
BatchNorm over a batch that `jax.vmap` maps.

  python examples/managing_parameters_and_state.py --epochs 300

It prints what it sees as it goes, and with matplotlib installed it saves a
picture of the loss, and of the averages on their way to the true ones.
"""

import argparse
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from haiku_state import linen as nn
from haiku_state import optim

try:
  from tqdm import tqdm, trange

  say = tqdm.write
except ImportError:
  say, trange = print, range


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


def start(model, example, learning_rate):
  """Returns an optimizer for the parameters, and the state."""
  variables = model.init(jax.random.PRNGKey(0), example)
  state, params = variables.pop('params')
  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  say(f'\n{type(model).__name__}: {count} parameters, and the state')
  say(f'{jax.tree.map(jnp.shape, state)}')
  optimizer = optim.sgd.GradientDescent(learning_rate=learning_rate)
  return optimizer.create(params), state


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


def train_running_mean(epochs):
  """Returns the loss of each epoch, and how far the mean is off."""
  true_mean = jnp.array([1.0, -2.0, 0.5, 3.0])
  model = BiasAdderWithRunningMean()
  optimizer, state = start(model, true_mean[None], learning_rate=0.1)
  losses, errors = [], []
  for epoch in trange(epochs):
    key = jax.random.PRNGKey(epoch)
    x = true_mean + 0.5 * jax.random.normal(key, (64, 4))
    optimizer, state, loss = running_mean_step(model.apply, x, optimizer, state)
    mean = state['batch_stats']['mean']
    losses.append(float(loss))
    errors.append(float(jnp.abs(mean - true_mean).max()))
    if epoch % max(epochs // 5, 1) == 0 or epoch == epochs - 1:
      report(epoch, loss, mean=mean, bias=optimizer.target['bias'])
  say('  The mean takes over what the bias learned at first.')
  return losses, errors


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


def train_mlp(epochs, batch_size=64):
  """Returns the loss of each epoch, and how far the averages are off."""
  key_x, key_w = jax.random.split(jax.random.PRNGKey(1))
  xs = 2.0 + jax.random.normal(key_x, (8 * batch_size, 20))
  ys = jnp.sin(xs @ jax.random.normal(key_w, (20, 1)) / 5.0)
  model = MLP(hidden_size=32, out_size=1)
  optimizer, state = start(model, xs[0], learning_rate=0.05)
  losses, errors = [], []
  for epoch in trange(epochs):
    for i in range(0, len(xs), batch_size):
      batch = xs[i : i + batch_size], ys[i : i + batch_size]
      optimizer, state, loss = mlp_step(model.apply, *batch, optimizer, state)
    losses.append(float(loss))
    # What BatchNorm averages are the inputs of the first norm: we know them.
    dense = optimizer.target['Dense_0']
    true_mean = (xs @ dense['kernel'] + dense['bias']).mean(axis=0)
    mean = state['batch_stats']['BatchNorm_0']['mean']
    errors.append(float(jnp.abs(mean - true_mean).max()))
    if epoch % max(epochs // 5, 1) == 0 or epoch == epochs - 1:
      report(epoch, loss, mean=mean[:4], of_all=true_mean[:4])
  variables = {'params': optimizer.target, **state}
  predictions = jax.vmap(lambda x: model.apply(variables, x))(xs)
  say(f'  Evaluated: loss {float(((predictions - ys) ** 2).mean()):.4f}')
  return losses, errors


def report(epoch, loss, **values):
  shown = ', '.join(
    f'{k} {np.round(np.asarray(v, float), 2)}' for k, v in values.items()
  )
  say(f'  epoch {epoch}: loss {float(loss):.4f}, {shown}')


def save_picture(curves, path):
  """Saves a picture of losses and averages, if matplotlib is there."""
  try:
    import matplotlib
  except ImportError:
    say("No picture: pip install '.[examples]' brings matplotlib.")
    return
  matplotlib.use('agg')
  from matplotlib import pyplot

  figure, axes = pyplot.subplots(2, len(curves), figsize=(9, 6), sharex=True)
  for column, (name, (losses, errors)) in zip(axes.T, curves.items()):
    column[0].plot(losses)
    column[0].set(title=name, ylabel='loss', yscale='log')
    column[1].plot(errors)
    column[1].set(xlabel='epoch', ylabel='|running - true mean|', yscale='log')
  figure.tight_layout()
  figure.savefig(path)
  say(f'Saved {path}')


def main(argv=None):
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--epochs', type=int, default=300)
  parser.add_argument('--picture', default='managing_parameters_and_state.png')
  args = parser.parse_args(argv)
  curves = {
    'running mean': train_running_mean(args.epochs),
    'BatchNorm': train_mlp(args.epochs),
  }
  save_picture(curves, args.picture)
  return curves


if __name__ == '__main__':
  main()
