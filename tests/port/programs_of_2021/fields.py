"""A field of colours along rays: a state with an optimizer, losses, restarts."""

import collections
import functools
import gc
import os
import sys
from typing import Any, Callable

import flax
import jax
import jax.numpy as jnp
import numpy as np
from flax.metrics import tensorboard
from flax.training import checkpoints
from jax import random
from jax.config import config
import flax.linen as nn

config.update('jax_debug_nans', False)
Rays = collections.namedtuple('Rays', ('origins', 'directions', 'viewdirs'))


@flax.struct.dataclass
class TrainState:
  optimizer: flax.optim.Optimizer


@flax.struct.dataclass
class Stats:
  loss: float
  psnr: float
  weight_l2: float


def namedtuple_map(fn, tup):
  return type(tup)(*map(fn, tup))


class MLP(nn.Module):
  net_depth: int = 3
  net_width: int = 16
  net_activation: Callable[..., Any] = nn.relu
  skip_layer: int = 2

  @nn.compact
  def __call__(self, x):
    dense = functools.partial(
      nn.Dense, kernel_init=jax.nn.initializers.glorot_uniform()
    )
    inputs = x
    for i in range(self.net_depth):
      x = self.net_activation(dense(self.net_width)(x))
      if i % self.skip_layer == 0 and i > 0:
        x = jnp.concatenate([x, inputs], axis=-1)
    return dense(3)(x), dense(1)(x)


class Model(nn.Module):
  num_samples: int

  @nn.compact
  def __call__(self, rng, rays, randomized):
    key, rng = random.split(rng)
    t = jnp.linspace(0.0, 1.0, self.num_samples)
    t = jnp.broadcast_to(t, [rays.origins.shape[0], self.num_samples])
    if randomized:
      t += random.uniform(key, t.shape) / self.num_samples
    points = rays.origins[:, None] + t[..., None] * rays.directions[:, None]
    encoded = [points] + [
      f(2.0**i * points) for i in range(2) for f in (jnp.sin, jnp.cos)
    ]
    rgb, density = MLP()(jnp.concatenate(encoded, axis=-1))
    rgb = nn.sigmoid(rgb)
    alpha = 1.0 - jnp.exp(-nn.softplus(density[..., 0]))
    trans = jnp.concatenate(
      [
        jnp.ones_like(alpha[:, :1]),
        jnp.cumprod(1.0 - alpha[:, :-1] + 1e-10, axis=-1),
      ],
      axis=-1,
    )
    weights = alpha * trans
    color = (weights[..., None] * rgb).sum(axis=-2)
    return [(color, weights.sum(axis=-1))]


def learning_rate_decay(step, lr_init, lr_final, max_steps):
  t = np.clip(step / max_steps, 0, 1)
  return np.exp(np.log(lr_init) * (1 - t) + np.log(lr_final) * t)


def train_step(model, rng, state, batch, lr):
  rng, key = random.split(rng)

  def loss_fn(variables):
    ret = model.apply(variables, key, batch['rays'], True)
    rgb, _ = ret[-1]
    loss = ((rgb - batch['pixels'][..., :3]) ** 2).mean()

    def tree_sum_fn(fn):
      return jax.tree_util.tree_reduce(
        lambda x, y: x + fn(y), variables, initializer=0
      )

    weight_l2 = tree_sum_fn(lambda z: jnp.sum(z**2)) / tree_sum_fn(
      lambda z: jnp.prod(jnp.array(z.shape))
    )
    psnr = -10.0 * jnp.log(loss) / jnp.log(10.0)
    return loss + 1e-5 * weight_l2, Stats(loss, psnr, weight_l2)

  (_, stats), grad = jax.value_and_grad(loss_fn, has_aux=True)(
    state.optimizer.target
  )
  grad = jax.lax.pmean(grad, axis_name='batch')
  stats = jax.lax.pmean(stats, axis_name='batch')
  grad = jax.tree_map(lambda z: jnp.clip(z, -0.1, 0.1), grad)
  grad_norm = jnp.sqrt(
    jax.tree_util.tree_reduce(
      lambda x, y: x + jnp.sum(y**2), grad, initializer=0
    )
  )
  mult = jnp.minimum(1, 1.0 / (1e-7 + grad_norm))
  grad = jax.tree_util.tree_map(lambda z: mult * z, grad)
  new_optimizer = state.optimizer.apply_gradient(grad, learning_rate=lr)
  return state.replace(optimizer=new_optimizer), stats, rng


def get_batch(generator, n):
  shape = (jax.local_device_count(), n, 3)
  origins = generator.rand(*shape).astype(np.float32)
  directions = generator.rand(*shape).astype(np.float32)
  pixels = np.repeat(origins[..., :1] > 0.5, 3, axis=-1).astype(np.float32)
  return {'pixels': pixels, 'rays': Rays(origins, directions, directions)}


def render_image(render_fn, rays, rng, chunk=8):
  n = rays[0].shape[0]
  results = []
  for i in range(0, n, chunk):
    chunk_rays = namedtuple_map(lambda r: r[i : i + chunk], rays)
    start = jax.host_id() * chunk
    chunk_rays = namedtuple_map(
      lambda r: r[start:].reshape((jax.local_device_count(), -1, 3)), chunk_rays
    )
    chunk_results = render_fn(rng, chunk_rays)[0]
    results.append([x[0].reshape((chunk, -1)) for x in chunk_results])
  return [jnp.concatenate(r, axis=0) for r in zip(*results)]


def main(train_dir, max_steps=60):
  rng = random.PRNGKey(20200823)
  rng = rng + jax.host_id()
  np.random.seed(20201473 + jax.host_id())
  if 64 % jax.device_count() != 0:
    raise ValueError('Batch size must be divisible by the number of devices.')
  generator = np.random.RandomState(0)
  rng, key = random.split(rng)
  example = jax.tree_map(lambda x: x[0], get_batch(generator, 4))
  model = Model(num_samples=4)
  variables = jax.jit(functools.partial(model.init, randomized=False))(
    {'params': key}, key, example['rays']
  )
  num_params = jax.tree_util.tree_reduce(
    lambda x, y: x + jnp.prod(jnp.array(y.shape)), variables, initializer=0
  )
  assert num_params > 100
  optimizer = flax.optim.Adam(0.01).create(variables)
  state = TrainState(optimizer=optimizer)
  del optimizer, variables

  train_pstep = jax.pmap(
    functools.partial(train_step, model),
    axis_name='batch',
    in_axes=(0, 0, 0, None),
    donate_argnums=(2,),
  )

  def render_eval_fn(variables, _, rays):
    return jax.lax.all_gather(
      model.apply(variables, random.PRNGKey(0), rays, False), axis_name='batch'
    )

  render_eval_pfn = jax.pmap(
    render_eval_fn,
    in_axes=(None, None, 0),
    donate_argnums=(2,),
    axis_name='batch',
  )
  state = checkpoints.restore_checkpoint(train_dir, state)
  init_step = state.optimizer.state.step + 1
  state = flax.jax_utils.replicate(state)
  if jax.host_id() == 0:
    summary_writer = tensorboard.SummaryWriter(train_dir)
  rng = rng + jax.host_id()
  keys = random.split(rng, jax.local_device_count())
  gc.disable()
  stats_trace = []
  pdataset = flax.jax_utils.prefetch_to_device(
    (get_batch(generator, 16) for _ in iter(int, 1)), 3
  )
  for step, batch in zip(range(init_step, max_steps + 1), pdataset):
    lr = learning_rate_decay(step, 2e-2, 5e-3, 60)
    state, stats, keys = train_pstep(keys, state, batch, lr)
    if jax.host_id() == 0:
      stats_trace.append(stats)
    if step % 20 == 0:
      gc.collect()
      stats_trace = flax.training.common_utils.stack_forest(stats_trace)
      summary_writer.scalar('train_loss', stats.loss[0], step)
      summary_writer.scalar('train_avg_psnr', np.mean(stats_trace.psnr), step)
      stats_trace = []
      state_to_save = jax.device_get(jax.tree_map(lambda x: x[0], state))
      checkpoints.save_checkpoint(train_dir, state_to_save, int(step), keep=2)
  variables = jax.device_get(
    jax.tree_map(lambda x: x[0], state)
  ).optimizer.target
  test = namedtuple_map(
    lambda r: r.reshape(-1, 3), get_batch(generator, 8)['rays']
  )
  rgb, acc = render_image(
    functools.partial(render_eval_pfn, variables), test, keys[0]
  )
  summary_writer.image('test_pred', rgb.reshape(1, 8, -1, 3), step)
  assert rgb.shape == test.origins.shape and acc.shape == (rgb.shape[0], 1)
  gc.enable()
  return float(stats.loss[0])


if __name__ == '__main__':
  main(sys.argv[1], 20)
  assert main(sys.argv[1]) < 0.2
  assert 'checkpoint_60' in os.listdir(sys.argv[1])
