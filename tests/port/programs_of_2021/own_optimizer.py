"""Optimizers of one's own, gradient accumulation, parameters in flat files."""

import dataclasses
import io
import itertools
import sys
from multiprocessing.pool import ThreadPool

import flax
import jax
import jax.numpy as jnp
import numpy as np
from flax import optim, struct
from flax.optim.adam import _AdamHyperParams, _AdamParamState
from flax.optim.base import Optimizer, OptimizerDef, OptimizerState
from flax.training import checkpoints


@struct.dataclass
class _HyperParams:
  learning_rate: np.ndarray
  beta: np.ndarray
  grad_norm_clip: np.ndarray


@struct.dataclass
class _State:
  momentum: np.ndarray


class ClippedMomentum(flax.optim.OptimizerDef):
  """Momentum in half precision, after the gradients are clipped together."""

  def __init__(
    self, learning_rate=None, beta=0.9, dtype='bfloat16', grad_norm_clip=None
  ):
    super().__init__(_HyperParams(learning_rate, beta, grad_norm_clip))
    self.dtype = dict(bfloat16=jnp.bfloat16, float32=jnp.float32)[dtype]

  def init_param_state(self, param):
    return _State(jnp.zeros_like(param, dtype=self.dtype))

  def apply_gradient(self, hyper_params, params, state, grads):
    step = state.step
    params_flat, treedef = jax.tree_flatten(params)
    states_flat = treedef.flatten_up_to(state.param_states)
    grads_flat = treedef.flatten_up_to(grads)
    if hyper_params.grad_norm_clip:
      grads_l2 = jnp.sqrt(sum([jnp.vdot(p, p) for p in grads_flat]))
      factor = jnp.minimum(1.0, hyper_params.grad_norm_clip / grads_l2)
      grads_flat = jax.tree_map(lambda param: factor * param, grads_flat)
    out = [
      self.apply_param_gradient(step, hyper_params, param, state, grad)
      for param, state, grad in zip(params_flat, states_flat, grads_flat)
    ]
    new_params_flat, new_states_flat = list(zip(*out)) if out else ((), ())
    new_params = jax.tree_unflatten(treedef, new_params_flat)
    new_states = jax.tree_unflatten(treedef, new_states_flat)
    return new_params, OptimizerState(step + 1, new_states)

  def apply_param_gradient(self, step, hyper_params, param, state, grad):
    del step
    assert hyper_params.learning_rate is not None
    momentum = state.momentum
    new_momentum = hyper_params.beta * momentum + grad
    new_param = param - hyper_params.learning_rate * new_momentum
    return new_param, _State(new_momentum.astype(self.dtype))


class ScaledAdam(optim.Adam):
  """Adam whose steps are scaled by the size of the parameters."""

  def apply_param_gradient(self, step, hyper_params, param, state, grad):
    assert isinstance(hyper_params, _AdamHyperParams)
    beta1, beta2 = hyper_params.beta1, hyper_params.beta2
    grad_ema = beta1 * state.grad_ema + (1.0 - beta1) * grad
    grad_sq_ema = beta2 * state.grad_sq_ema + (1.0 - beta2) * lax_square(grad)
    t = step + 1.0
    denom = jnp.sqrt(grad_sq_ema / (1 - beta2**t)) + hyper_params.eps
    update = grad_ema / (1 - beta1**t) / denom
    scale = jnp.maximum(jnp.sqrt(jnp.mean(param**2)), 1e-3)
    new_param = param - hyper_params.learning_rate * scale * update
    return new_param, _AdamParamState(grad_ema, grad_sq_ema)


def lax_square(x):
  return jax.lax.square(x)


def accumulate_gradient(loss_and_grad_fn, params, images, labels, accum_steps):
  """Returns loss and gradient of a batch, a piece at a time."""
  if not accum_steps or accum_steps <= 1:
    return loss_and_grad_fn(params, images, labels)
  step_size = images.shape[0] // accum_steps
  l, g = loss_and_grad_fn(params, images[:step_size], labels[:step_size])

  def acc_grad_and_loss(i, l_and_g):
    imgs = jax.lax.dynamic_slice(
      images, (i * step_size, 0), (step_size,) + images.shape[1:]
    )
    lbls = jax.lax.dynamic_slice(labels, (i * step_size,), (step_size,))
    li, gi = loss_and_grad_fn(params, imgs, lbls)
    l, g = l_and_g
    return (l + li, jax.tree_multimap(lambda x, y: x + y, g, gi))

  l, g = jax.lax.fori_loop(1, accum_steps, acc_grad_and_loss, (l, g))
  return jax.tree_map(lambda x: x / accum_steps, (l, g))


def _traverse_with_names(tree):
  """Yields the leaves of a tree with their names."""
  if dataclasses.is_dataclass(tree):
    tree = flax.serialization.to_state_dict(tree)
  if isinstance(tree, (dict, flax.core.FrozenDict)):
    for key in sorted(tree.keys()):
      for path, v in _traverse_with_names(tree[key]):
        yield (key + '/' + path).rstrip('/'), v
  else:
    yield '', tree


def tree_flatten_with_names(tree):
  vals, tree_def = jax.tree_flatten(tree)
  token_tree = tree_def.unflatten(range(len(vals)))
  val_names, perm = zip(*_traverse_with_names(token_tree))
  inv_perm = np.argsort(perm)
  assert len(val_names) == len(vals)
  return [(val_names[i], v) for i, v in zip(inv_perm, vals)], tree_def


def save(tree, path):
  names_and_vals, _ = tree_flatten_with_names(tree)
  buffer = io.BytesIO()
  np.savez(buffer, **{k: v for k, v in names_and_vals})
  with open(path, 'wb') as f:
    f.write(buffer.getvalue())


def load(tree, path):
  with np.load(path) as data:
    loaded = dict(data)
  names_and_vals, tree_def = tree_flatten_with_names(tree)
  return tree_def.unflatten([loaded[name] for name, _ in names_and_vals])


def loss_fn(params, x, y):
  hidden = jnp.tanh(x @ params['hidden']['kernel'] + params['hidden']['bias'])
  logits = hidden @ params['out']['kernel']
  return jnp.mean((logits[:, 0] - y) ** 2)


def train(definition, params, steps, accum_steps=2, **hyper_params):
  opt = definition.create(params)

  @jax.jit
  def update(opt, x, y):
    l, g = accumulate_gradient(
      jax.value_and_grad(loss_fn), opt.target, x, y, accum_steps
    )
    return opt.apply_gradient(g, **hyper_params), l

  generator = np.random.RandomState(0)
  losses = []
  for _ in range(steps):
    x = generator.randn(16, 3).astype(np.float32)
    opt, l = update(opt, x, np.tanh(x[:, 0]))
    losses.append(float(l))
  assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5]), losses
  return opt


def main(workdir):
  rng = jax.random.PRNGKey(0)
  init = jax.nn.initializers.lecun_normal()
  params = flax.core.freeze(
    {
      'hidden': {'kernel': init(rng, (3, 8)), 'bias': jnp.zeros((8,))},
      'out': {'kernel': init(rng, (8, 1))},
    }
  )
  opt = train(
    ClippedMomentum(grad_norm_clip=1.0), params, 60, learning_rate=0.05
  )
  assert isinstance(opt, Optimizer) and isinstance(
    opt.optimizer_def, OptimizerDef
  )
  momentum = opt.state.param_states['hidden']['bias'].momentum
  assert momentum.dtype == jnp.bfloat16

  opt = train(ScaledAdam(0.03), params, 60)
  states = jax.tree_leaves(
    opt.state.param_states, is_leaf=lambda x: isinstance(x, _AdamParamState)
  )
  assert len(states) == 3 and all(
    isinstance(state, _AdamParamState) for state in states
  )

  # Flat files, of the parameters and of all.
  opt_cpu = jax.tree_map(np.array, opt)
  names = [name for name, _ in tree_flatten_with_names(opt_cpu)[0]]
  assert 'target/hidden/kernel' in names and 'state/step' in names
  assert 'state/param_states/out/kernel/grad_ema' in names
  pool = ThreadPool()
  pool.apply_async(save, (opt_cpu, f'{workdir}/all.npz')).get()
  blank = ScaledAdam(0.03).create(jax.tree_map(jnp.zeros_like, params))
  for a, b in itertools.chain(
    zip(
      jax.tree_leaves(load(blank, f'{workdir}/all.npz')), jax.tree_leaves(opt)
    )
  ):
    np.testing.assert_array_equal(a, b)

  # An optimizer without a target, by way of its state.
  checkpoints.save_checkpoint(workdir, opt, 60, prefix='opt_')
  state = checkpoints.restore_checkpoint(workdir, target=None, prefix='opt_')
  assert set(state) == {'target', 'state'}
  restored = blank.restore_state(state)
  assert int(restored.state.step) == 60
  kernel = restored.target['hidden']['kernel']
  np.testing.assert_array_equal(kernel, opt.target['hidden']['kernel'])
  state_dict = restored.state_dict()
  np.testing.assert_array_equal(
    state_dict['target']['out']['kernel'], opt.target['out']['kernel']
  )

  # Parameters of another run, in an optimizer of this one.
  fresh = optim.Momentum(learning_rate=0.1, weight_decay=1e-4).create(params)
  fresh = fresh.replace(target=flax.core.freeze(restored.target))
  fresh = fresh.replace(
    state=dataclasses.replace(fresh.state, step=restored.state.step)
  )
  assert int(fresh.state.step) == 60


if __name__ == '__main__':
  main(sys.argv[1])
