"""A small transformer: two groups of parameters, schedules, a cache."""

import functools
from typing import Any, Callable

import jax
import numpy as np
from flax import (
  jax_utils,
  linen as nn,
  optim,
  serialization,
  struct,
  traverse_util,
)
from flax.core import freeze, unfreeze
from flax.training import common_utils
from jax import lax, numpy as jnp, partial, tree_flatten, tree_unflatten
from jax.ops import index, index_update

VOCAB, LENGTH = 7, 6


@struct.dataclass
class TransformerConfig:
  vocab_size: int
  dtype: Any = jnp.float32
  emb_dim: int = 8
  num_heads: int = 2
  dropout_rate: float = 0.1
  deterministic: bool = False
  decode: bool = False
  kernel_init: Callable = nn.initializers.xavier_uniform()


def shift_right(x):
  return jnp.pad(x, [(0, 0), (1, 0)], mode='constant')[:, :-1]


class Block(nn.Module):
  config: TransformerConfig

  @nn.compact
  def __call__(self, inputs, mask=None):
    config = self.config
    x = nn.LayerNorm(dtype=config.dtype)(inputs)
    x = nn.SelfAttention(
      num_heads=config.num_heads,
      qkv_features=config.emb_dim,
      kernel_init=config.kernel_init,
      use_bias=False,
      dropout_rate=config.dropout_rate,
      deterministic=config.deterministic,
      decode=config.decode,
    )(x, mask)
    x = nn.Dropout(rate=config.dropout_rate)(
      x, deterministic=config.deterministic
    )
    x = x + inputs
    y = nn.LayerNorm(dtype=config.dtype)(x)
    y = nn.Dense(4 * config.emb_dim, kernel_init=config.kernel_init)(y)
    return x + nn.Dense(config.emb_dim)(nn.relu(y))


class LM(nn.Module):
  config: TransformerConfig

  @nn.compact
  def __call__(self, inputs):
    config = self.config
    mask = None
    x = inputs
    if not config.decode:
      x = shift_right(x)
      mask = nn.make_causal_mask(inputs)
    x = nn.Embed(config.vocab_size, config.emb_dim)(x)
    for i in range(2):
      x = Block(config, name=f'block_{i}')(x, mask)
    return nn.Dense(config.vocab_size, name='logits')(nn.LayerNorm()(x))


def create_learning_rate_scheduler(base_learning_rate=0.5, warmup_steps=10):
  def step_fn(step):
    ret = base_learning_rate
    ret *= jnp.minimum(1.0, step / warmup_steps)
    ret /= jnp.sqrt(jnp.maximum(step, warmup_steps))
    return jnp.asarray(ret, dtype=jnp.float32)

  return step_fn


def compute_loss(logits, targets):
  soft_targets = common_utils.onehot(targets, VOCAB)
  return -jnp.sum(soft_targets * nn.log_softmax(logits)) / targets.size


def train_step(optimizer, batch, config, learning_rate_fn, dropout_rng=None):
  dropout_rng = jax.random.fold_in(dropout_rng, optimizer.state.step)

  def loss_fn(params):
    logits = LM(config).apply(
      {'params': params}, batch, rngs={'dropout': dropout_rng}
    )
    return compute_loss(logits, batch), logits

  lr = learning_rate_fn(optimizer.state.step)
  (loss, _), grad = jax.value_and_grad(loss_fn, has_aux=True)(optimizer.target)
  grad = lax.pmean(grad, 'batch')
  decay, no_decay = optimizer.optimizer_def.hyper_params
  new_optimizer = optimizer.apply_gradient(
    grad,
    hyper_params=[
      decay.replace(learning_rate=lr),
      no_decay.replace(learning_rate=lr),
    ],
  )
  return new_optimizer, {'loss': lax.pmean(loss, 'batch'), 'learning_rate': lr}


def create_optimizer(params):
  def is_decayed(path, _):
    return 'bias' not in path and 'LayerNorm' not in path

  with_decay = traverse_util.ModelParamTraversal(is_decayed)
  without = optim.ModelParamTraversal(lambda p, v: not is_decayed(p, v))
  adam = partial(optim.Adam, beta1=0.9, beta2=0.98, eps=1e-9)
  return optim.MultiOptimizer(
    (with_decay, adam(weight_decay=1e-2)), (without, adam(weight_decay=0.0))
  ).create(params)


def pad_examples(x, desired_batch_size):
  batch_pad = desired_batch_size - x.shape[0]
  return np.concatenate([x, np.tile(x[-1], (batch_pad, 1))], axis=0)


@functools.partial(jax.jit, static_argnums=(2,))
def predict(params, prompt, config):
  """Goes on greedily, one token at a time, with a cache."""
  model = LM(config.replace(decode=True, deterministic=True))
  shape = (prompt.shape[0], LENGTH)
  cache = model.init(jax.random.PRNGKey(0), jnp.ones(shape, jnp.int32))['cache']
  tokens = jnp.zeros(shape, jnp.int32)
  tokens = index_update(tokens, index[:, 0], prompt)

  def body(i, state):
    tokens, last, cache = state
    logits, new_vars = model.apply(
      {'params': params, 'cache': cache}, last, mutable=['cache']
    )
    last = jnp.argmax(logits, -1).astype(jnp.int32)
    tokens = index_update(tokens, index[:, i], last[:, 0])
    return tokens, last, new_vars['cache']

  first = jnp.zeros((prompt.shape[0], 1), jnp.int32)
  tokens, _, _ = lax.fori_loop(0, LENGTH, body, (tokens, first, cache))
  return tokens


def main():
  n_devices = jax.local_device_count()
  rng = jax.random.PRNGKey(0)
  rng, init_rng = jax.random.split(rng)
  config = TransformerConfig(VOCAB)
  eval_config = config.replace(deterministic=True)
  data = np.tile(np.arange(1, LENGTH + 1), (4 * n_devices - 1, 1))
  data = pad_examples(data, 4 * n_devices)

  @jax.jit
  def initialize_variables(init_rng):
    init_batch = jnp.ones((4, LENGTH), jnp.int32)
    return LM(eval_config).init(init_rng, init_batch)

  initial_variables = initialize_variables(init_rng)
  optimizer = create_optimizer(initial_variables['params'])
  del initial_variables
  assert optimizer.state.param_states['logits']['bias'].grad_ema.shape == (7,)
  optimizer = jax_utils.replicate(optimizer)
  p_train_step = jax.pmap(
    functools.partial(
      train_step,
      config=config,
      learning_rate_fn=create_learning_rate_scheduler(),
    ),
    axis_name='batch',
    donate_argnums=(0,),
  )
  dropout_rngs = jax.random.split(rng, n_devices)
  metrics_all = []
  for _ in range(40):
    batch = common_utils.shard(jax.tree_map(lambda x: x, data))
    optimizer, metrics = p_train_step(
      optimizer, batch, dropout_rng=dropout_rngs
    )
    metrics_all.append(metrics)
  metrics_all = common_utils.get_metrics(metrics_all)
  assert metrics_all['loss'][-1] < 0.2 * metrics_all['loss'][0]
  optimizer = jax_utils.unreplicate(optimizer)

  # What is written is what is read.
  data = serialization.to_bytes(optimizer)
  blank = jax.tree_map(jnp.zeros_like, optimizer)
  restored = serialization.from_bytes(blank, data)
  leaves, treedef = tree_flatten(optimizer)
  for a, b in zip(leaves, jax.tree_leaves(restored)):
    np.testing.assert_array_equal(a, b)
  assert jax.tree_structure(restored) == treedef
  again = tree_unflatten(treedef, leaves)

  params = unfreeze(again.target)
  params['block_0'].pop('Dense_0', None)
  assert set(freeze(params)['block_0']) < set(again.target['block_0'])
  out = predict(again.target, jnp.array([0, 0]), config)
  np.testing.assert_array_equal(out, [[1, 2, 3, 4, 5, 6]] * 2)


if __name__ == '__main__':
  main()
