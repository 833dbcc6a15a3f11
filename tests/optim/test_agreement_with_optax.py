"""What the docstrings and the guide say about optax: exact, rounding, or none."""

import jax
import jax.numpy as jnp
import numpy as np
import optimizer_table
import pytest
from left_out import all_but

from haiku_state import optim

optax = pytest.importorskip('optax', minversion='0.2.4')

LR = 0.05


def biasless(tree):
  return {name: tree[name] for name in ('conv', 'dense')}


# Each row: the optimizer, the transformation of optax, how they agree.
ROWS = {
  'GradientDescent': (optim.GradientDescent(LR), optax.sgd(LR), 'exact'),
  'Momentum': (optim.Momentum(LR), optax.sgd(LR, 0.9), 'exact'),
  'Momentum, nesterov': (
    optim.Momentum(LR, nesterov=True),
    optax.sgd(LR, 0.9, nesterov=True),
    'exact',
  ),
  'Momentum, decay': (
    optim.Momentum(LR, weight_decay=0.1),
    optax.chain(optax.add_decayed_weights(0.1), optax.sgd(LR, 0.9)),
    'exact',
  ),
  'Adam': (optim.Adam(LR), optax.adam(LR), 'exact'),
  'Adam, decay': (
    optim.Adam(LR, weight_decay=0.1),
    optax.adamw(LR, weight_decay=0.1),
    'exact',
  ),
  'Adam, default of adamw': (optim.Adam(LR), optax.adamw(LR), 'none'),
  'AdaBelief': (
    optim.AdaBelief(LR, eps=1e-4),
    optax.adabelief(LR, eps=1e-4, eps_root=1e-4),
    'exact',
  ),
  'AdaBelief, eps_root=0': (
    optim.AdaBelief(LR, eps=1e-2),
    optax.adabelief(LR, eps=1e-2, eps_root=0.0),
    'none',
  ),
  'Adadelta': (optim.Adadelta(0.5), optax.adadelta(0.5), 'exact'),
  'Adadelta, decay': (
    optim.Adadelta(0.5, weight_decay=0.1),
    optax.adadelta(0.5, weight_decay=0.1),
    'none',
  ),
  'Adagrad': (optim.Adagrad(LR), optax.adagrad(LR), 'none'),
  'RMSProp': (
    optim.RMSProp(LR),
    optax.rmsprop(LR, eps_in_sqrt=False),
    'exact',
  ),
  'RMSProp, centered': (
    optim.RMSProp(LR, eps=1e-3, centered=True),
    optax.rmsprop(LR, eps=1e-3, eps_in_sqrt=False, centered=True),
    'exact',
  ),
  'RMSProp, eps in root': (
    optim.RMSProp(LR, eps=1e-2),
    optax.rmsprop(LR, eps=1e-2),
    'none',
  ),
  'LAMB': (optim.LAMB(LR), optax.lamb(LR), 'none'),
  'LAMB, no zeros': (optim.LAMB(LR), optax.lamb(LR), 'rounding', biasless),
  'LARS': (optim.LARS(LR), optax.lars(LR), 'rounding'),
  'LARS, decay': (
    optim.LARS(LR, weight_decay=0.1, trust_coefficient=1.0),
    optax.lars(LR, weight_decay=0.1, trust_coefficient=1.0),
    'none',
  ),
  'Adafactor': (
    optim.Adafactor(LR, min_dim_size_to_factor=4, beta1=0.9),
    optax.adafactor(LR, min_dim_size_to_factor=4, momentum=0.9),
    'rounding',
  ),
  'Adafactor, decay': (
    optim.Adafactor(LR, weight_decay_rate=0.01, step_offset=-2),
    optax.adafactor(LR, weight_decay_rate=0.01, decay_offset=-2),
    'rounding',
  ),
}


def difference(definition, transformation, part):
  params = jax.tree.map(jnp.asarray, part(optimizer_table.params(np.float32)))
  optimizer, state = definition.create(params), transformation.init(params)

  @jax.jit
  def step_fn(optimizer, params, state, grads):
    updates, state = transformation.update(grads, state, params)
    params = optax.apply_updates(params, updates)
    return optimizer.apply_gradient(grads), params, state

  for step in range(25):
    grads = part(optimizer_table.grads(step, np.float32))
    optimizer, params, state = step_fn(optimizer, params, state, grads)
  return max(
    float(jnp.max(jnp.abs(x - y)))
    for x, y in zip(*map(jax.tree.leaves, (optimizer.target, params)))
  )


CLASSES = [name for name in ROWS if ',' not in name]


@pytest.mark.parametrize('name', all_but(CLASSES, ROWS))
def test_agreement(name):
  definition, transformation, agreement, *part = ROWS[name]
  part = part[0] if part else lambda tree: tree
  found = difference(definition, transformation, part)
  low, high = {
    'exact': (0, 0), 'rounding': (0, 3e-6), 'none': (1e-4, np.inf),
  }[agreement]  # fmt: skip
  assert low <= found <= high
