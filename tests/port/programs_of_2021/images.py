"""Trains a small network of convolutions on all devices, and resumes."""

import functools
import os
import sys
import time

import flax
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import jax_utils
from flax import linen as nn
from flax import optim
from flax import struct
from flax.metrics import tensorboard
from flax.training import checkpoints
from flax.training import common_utils
from flax.training import lr_schedule
from jax import lax
from jax import random
from jax.config import config
from jax.lib import xla_bridge

config.enable_omnistaging()

NUM_CLASSES = 3
BATCH_SIZE = 16
STEPS_PER_EPOCH = 4


class Block(nn.Module):
  features: int
  norm: nn.Module

  @nn.compact
  def __call__(self, x):
    y = nn.Conv(self.features, (3, 3), use_bias=False)(x)
    y = nn.relu(self.norm()(y))
    y = nn.Conv(self.features, (3, 3), use_bias=False)(y)
    y = self.norm(scale_init=nn.initializers.zeros)(y)
    if x.shape != y.shape:
      x = nn.Conv(self.features, (1, 1), use_bias=False, name='proj')(x)
    return nn.relu(x + y)


class Net(nn.Module):
  num_classes: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, train=True):
    norm = functools.partial(
      nn.BatchNorm,
      use_running_average=not train,
      momentum=0.9,
      epsilon=1e-5,
      dtype=self.dtype,
    )
    for features in (4,):
      x = Block(features, norm=norm)(x)
    x = jnp.mean(x, axis=(1, 2))
    x = nn.Dense(self.num_classes)(x)
    return jnp.asarray(x, jnp.float32)


@struct.dataclass
class TrainState:
  step: int
  optimizer: optim.Optimizer
  model_state: flax.core.FrozenDict
  dynamic_scale: optim.DynamicScale


def create_train_state(key, model, image_size, half_precision):
  @jax.jit
  def init(*args):
    return model.init(*args)

  shape = (1, image_size, image_size, 3)
  variables = init({'params': key}, jnp.ones(shape, model.dtype))
  model_state, params = variables.pop('params')
  optimizer = optim.Momentum(beta=0.9, nesterov=True).create(params)
  scale = optim.DynamicScale() if half_precision else None
  return TrainState(0, optimizer, model_state, scale)


def cross_entropy_loss(logits, labels):
  onehot = common_utils.onehot(labels, num_classes=NUM_CLASSES)
  return -jnp.mean(jnp.sum(onehot * nn.log_softmax(logits), axis=-1))


def compute_metrics(logits, labels):
  metrics = {
    'loss': cross_entropy_loss(logits, labels),
    'accuracy': jnp.mean(jnp.argmax(logits, -1) == labels),
  }
  return lax.pmean(metrics, axis_name='batch')


def train_step(apply_fn, state, batch, learning_rate_fn):
  def loss_fn(params):
    variables = {'params': params, **state.model_state}
    logits, new_model_state = apply_fn(
      variables, batch['image'], mutable=['batch_stats']
    )
    loss = cross_entropy_loss(logits, batch['label'])
    leaves = jax.tree_leaves(variables['params'])
    weight_l2 = sum([jnp.sum(x**2) for x in leaves if x.ndim > 1])
    return loss + 1e-4 * 0.5 * weight_l2, (new_model_state, logits)

  step = state.step
  optimizer = state.optimizer
  lr = learning_rate_fn(step)
  dynamic_scale = state.dynamic_scale
  if dynamic_scale:
    grad_fn = dynamic_scale.value_and_grad(
      loss_fn, has_aux=True, axis_name='batch'
    )
    dynamic_scale, is_fin, aux, grads = grad_fn(optimizer.target)
  else:
    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
    aux, grads = grad_fn(optimizer.target)
    grads = lax.pmean(grads, axis_name='batch')
  new_model_state, logits = aux[1]
  metrics = compute_metrics(logits, batch['label'])
  metrics['learning_rate'] = lr
  new_optimizer = optimizer.apply_gradient(grads, learning_rate=lr)
  if dynamic_scale:
    new_optimizer = jax.tree_multimap(
      functools.partial(jnp.where, is_fin), new_optimizer, optimizer
    )
    metrics['scale'] = dynamic_scale.scale
  new_state = state.replace(
    step=step + 1,
    optimizer=new_optimizer,
    model_state=new_model_state,
    dynamic_scale=dynamic_scale,
  )
  return new_state, metrics


def eval_step(apply_fn, state, batch):
  variables = {'params': state.optimizer.target, **state.model_state}
  logits = apply_fn(variables, batch['image'], train=False, mutable=False)
  return compute_metrics(logits, batch['label'])


def batches(seed):
  generator = np.random.RandomState(seed)
  while True:
    label = generator.randint(0, NUM_CLASSES, (BATCH_SIZE,))
    image = generator.randn(BATCH_SIZE, 8, 8, 3) + label[:, None, None, None]
    yield {'image': image.astype(np.float32), 'label': label.astype(np.int32)}


def create_input_iter(seed):
  return jax_utils.prefetch_to_device(map(common_utils.shard, batches(seed)), 2)


@functools.partial(jax.pmap, axis_name='x')
def cross_replica_mean(x):
  return lax.pmean(x, 'x')


def sync_batch_stats(state):
  if not state.model_state.keys():
    return state
  stats = cross_replica_mean(state.model_state['batch_stats'])
  return state.replace(
    model_state=state.model_state.copy({'batch_stats': stats})
  )


def save_checkpoint(state, workdir):
  if jax.host_id() == 0:
    state = jax.device_get(jax.tree_map(lambda x: x[0], state))
    checkpoints.save_checkpoint(workdir, state, int(state.step), keep=3)


def train_and_evaluate(workdir, num_steps, half_precision):
  if jax.host_id() == 0:
    summary_writer = tensorboard.SummaryWriter(os.path.join(workdir, 'logs'))
    summary_writer.hparams({'steps': num_steps, 'half': half_precision})
  platform = xla_bridge.get_backend().platform
  dtype = jnp.float32
  if half_precision:
    dtype = jnp.bfloat16 if platform == 'tpu' else jnp.float16
  model = Net(num_classes=NUM_CLASSES, dtype=dtype)
  learning_rate_fn = lr_schedule.create_cosine_learning_rate_schedule(
    0.2, STEPS_PER_EPOCH, 4, warmup_length=1
  )
  state = create_train_state(random.PRNGKey(0), model, 8, half_precision)
  state = checkpoints.restore_checkpoint(workdir, state)
  step_offset = int(state.step)
  state = jax_utils.replicate(state)
  p_train_step = jax.pmap(
    functools.partial(
      train_step, model.apply, learning_rate_fn=learning_rate_fn
    ),
    axis_name='batch',
  )
  p_eval_step = jax.pmap(
    functools.partial(eval_step, model.apply), axis_name='batch'
  )
  train_iter, eval_iter = create_input_iter(1), create_input_iter(2)
  epoch_metrics = []
  start = time.time()
  for step, batch in zip(range(step_offset, num_steps), train_iter):
    state, metrics = p_train_step(state, batch)
    epoch_metrics.append(metrics)
    if (step + 1) % STEPS_PER_EPOCH == 0:
      epoch_metrics = common_utils.get_metrics(epoch_metrics)
      summary = jax.tree_map(lambda x: x.mean(), epoch_metrics)
      for key, value in epoch_metrics.items():
        for i, x in enumerate(value):
          summary_writer.scalar(key, x, step - len(value) + i + 1)
      summary_writer.scalar('steps per second', step / (time.time() - start), 1)
      epoch_metrics = []
      state = sync_batch_stats(state)
      eval_metrics = common_utils.get_metrics(
        [p_eval_step(state, next(eval_iter))]
      )
      eval_summary = jax.tree_map(lambda x: x.mean(), eval_metrics)
      logging.info('eval loss: %.4f', eval_summary['loss'])
      summary_writer.flush()
      save_checkpoint(state, workdir)
  random.normal(jax.random.PRNGKey(0), ()).block_until_ready()
  return summary, jax_utils.unreplicate(state)


if __name__ == '__main__':
  workdir = sys.argv[1]
  half_precision = 'half' in sys.argv
  train_and_evaluate(workdir, 4, half_precision)
  summary, state = train_and_evaluate(workdir, 12, half_precision)
  assert int(state.step) == int(state.optimizer.state.step) == 12
  assert sorted(x for x in os.listdir(workdir) if 'check' in x) == [
    'checkpoint_12',
    'checkpoint_4',
    'checkpoint_8',
  ]
  assert summary['accuracy'] > 0.5, summary
