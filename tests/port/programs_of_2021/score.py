"""Learns the score of a distribution; averages of parameters, scans of steps."""

import functools
import sys
from typing import Any, Tuple

import flax
import flax.jax_utils as flax_utils
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.training import checkpoints
from jax.experimental import optimizers
from jax.tree_util import tree_multimap


@flax.struct.dataclass
class State:
  step: int
  optimizer: flax.optim.Optimizer
  lr: float
  model_state: Any
  ema_rate: float
  params_ema: Any
  rng: Any


class ScoreNet(nn.Module):
  @nn.compact
  def __call__(self, x, t, train=True):
    count = self.variable('stats', 'count', lambda: jnp.zeros((), jnp.int32))
    h = jnp.concatenate([x, t[:, None], jnp.sin(6 * t)[:, None]], axis=-1)
    for _ in range(2):
      h = nn.swish(nn.Dense(32)(h))
      h = nn.Dropout(0.05)(h, deterministic=not train)
    if train:
      count.value = count.value + 1
    return nn.Dense(x.shape[-1], kernel_init=jax.nn.initializers.zeros)(h)


def init_model(rng, model):
  params_rng, dropout_rng = jax.random.split(rng)
  variables = model.init(
    {'params': params_rng, 'dropout': dropout_rng},
    jnp.zeros((2, 2)),
    jnp.zeros((2,)),
  )
  init_model_state, initial_params = variables.pop('params')
  return init_model_state, initial_params


def get_model_fn(model, params, states, train=False):
  def model_fn(x, labels, rng=None):
    variables = {'params': params, **states}
    if not train:
      return model.apply(
        variables, x, labels, train=False, mutable=False
      ), states
    return model.apply(
      variables,
      x,
      labels,
      train=True,
      mutable=list(states.keys()),
      rngs={'dropout': rng},
    )

  return model_fn


batch_mul = jax.vmap(lambda a, b: a * b)


def get_loss_fn(model):
  def loss_fn(rng, params, states, batch):
    model_fn = get_model_fn(model, params, states, train=True)
    rng, step_rng = jax.random.split(rng)
    t = jax.random.uniform(step_rng, (batch.shape[0],), minval=1e-3)
    rng, step_rng = jax.random.split(rng)
    z = jax.random.normal(step_rng, batch.shape)
    perturbed = batch + batch_mul(z, t)
    rng, step_rng = jax.random.split(rng)
    score, new_model_state = model_fn(perturbed, t, rng=step_rng)
    losses = jnp.square(batch_mul(score, t) + z)
    return jnp.mean(losses), new_model_state

  return loss_fn


def optimization_manager(warmup=20, grad_clip=1.0):
  def optimize_fn(state, grad):
    lr = state.lr * jnp.minimum(state.step / warmup, 1.0)
    grad_norm = optimizers.l2_norm(grad)
    clipped = jax.tree_map(
      lambda x: x * grad_clip / jnp.maximum(grad_norm, grad_clip), grad
    )
    return state.optimizer.apply_gradient(clipped, learning_rate=lr)

  return optimize_fn


def get_step_fn(loss_fn, optimize_fn):
  def step_fn(carry_state: Tuple, batch):
    rng, state = carry_state
    rng, step_rng = jax.random.split(rng)
    grad_fn = jax.value_and_grad(loss_fn, argnums=1, has_aux=True)
    params = state.optimizer.target
    (loss, new_model_state), grad = grad_fn(
      step_rng, params, state.model_state, batch
    )
    grad = jax.lax.pmean(grad, axis_name='batch')
    new_optimizer = optimize_fn(state, grad)
    new_params_ema = jax.tree_multimap(
      lambda p_ema, p: p_ema * state.ema_rate + p * (1.0 - state.ema_rate),
      state.params_ema,
      new_optimizer.target,
    )
    new_state = state.replace(
      step=state.step + 1,
      optimizer=new_optimizer,
      model_state=new_model_state,
      params_ema=new_params_ema,
    )
    return (rng, new_state), jax.lax.pmean(loss, axis_name='batch')

  return step_fn


def main(workdir):
  rng = jax.random.PRNGKey(0)
  rng, step_rng = jax.random.split(rng)
  model = ScoreNet()
  init_model_state, initial_params = init_model(step_rng, model)
  optimizer = flax.optim.Adam(2e-2, beta1=0.9, eps=1e-8, weight_decay=0).create(
    initial_params
  )
  state = State(
    step=0,
    optimizer=optimizer,
    lr=2e-2,
    model_state=init_model_state,
    ema_rate=0.9,
    params_ema=initial_params,
    rng=rng,
  )
  state = checkpoints.restore_checkpoint(workdir, state)
  initial_step = int(state.step)
  train_step_fn = get_step_fn(get_loss_fn(model), optimization_manager())
  p_train_step = jax.pmap(
    functools.partial(jax.lax.scan, train_step_fn),
    axis_name='batch',
    donate_argnums=1,
  )
  pstate = flax_utils.replicate(state)
  rng = jax.random.fold_in(rng, jax.process_index())
  generator = np.random.RandomState(0)
  losses = []
  for step in range(initial_step, 60, 5):
    shape = (jax.local_device_count(), 5, 16, 2)
    batch = 0.1 * generator.randn(*shape).astype(np.float32) + 1.0
    rng, *next_rng = jax.random.split(rng, num=jax.local_device_count() + 1)
    next_rng = jnp.asarray(next_rng)
    (_, pstate), ploss = p_train_step((next_rng, pstate), batch)
    losses.append(flax_utils.unreplicate(ploss).mean())
    if jax.host_id() == 0 and step % 20 == 0:
      saved_state = flax_utils.unreplicate(pstate)
      saved_state = saved_state.replace(rng=rng)
      checkpoints.save_checkpoint(workdir, saved_state, step=step // 20, keep=9)
  state = flax_utils.unreplicate(pstate)
  difference = tree_multimap(
    lambda a, b: jnp.abs(a - b).max(), state.params_ema, state.optimizer.target
  )
  assert 0 < max(jax.tree_leaves(difference)) < 0.5
  assert (
    int(state.model_state['stats']['count']) == 61
  )  # Initialization is one.
  return float(losses[-1]), float(losses[0])


if __name__ == '__main__':
  last, first = main(sys.argv[1])
  assert last < 0.9 * first, (first, last)
