"""The same numbers, bit for bit, as the Flax of an old jax.

The other tests compare with the newest Flax only, which an old jax has not.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haiku_state import linen

KEY = jax.random.PRNGKey(0)
IMAGE = jnp.cos(jnp.arange(2 * 6 * 6 * 4.0)).reshape(2, 6, 6, 4)
ROWS = IMAGE.reshape(2, 36, 4)

# By name: the layer as a function of the package's `linen`, and its input.
LAYERS = {
  'Dense': (lambda nn: nn.Dense(8), ROWS),
  'DenseGeneral': (lambda nn: nn.DenseGeneral((2, 4)), ROWS),
  'Conv': (lambda nn: nn.Conv(8, (3, 3)), IMAGE),
  'ConvTranspose': (lambda nn: nn.ConvTranspose(8, (3, 3)), IMAGE),
  'BatchNorm': (lambda nn: nn.BatchNorm(use_running_average=False), IMAGE),
  'LayerNorm': (lambda nn: nn.LayerNorm(), ROWS),
  'GroupNorm': (lambda nn: nn.GroupNorm(2), IMAGE),
  'attention': (
    lambda nn: nn.MultiHeadDotProductAttention(num_heads=2),
    ROWS,
  ),
  'decoding': (
    lambda nn: nn.MultiHeadDotProductAttention(num_heads=2, decode=True),
    ROWS[:, :5],
  ),
  'LSTM': (lambda nn: nn.RNN(nn.LSTMCell(4)), ROWS),
  'GRU': (lambda nn: nn.RNN(nn.GRUCell(4)), ROWS),
  'MLP': (lambda nn: nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(2)]), ROWS),
}


def results(nn, name):
  """Returns variables, output, updates and gradients of a layer."""
  make, x = LAYERS[name]
  model = make(nn)
  variables = model.init(KEY, x)
  one_step = x[:, :1] if name == 'decoding' else x

  def step(params):
    rest = {k: v for k, v in variables.items() if k != 'params'}
    y, updates = model.apply(
      {'params': params, **rest}, one_step, mutable=list(rest)
    )
    return (y**2).sum(), (y, updates)

  (_, out), grads = jax.jit(jax.value_and_grad(step, has_aux=True))(
    variables['params']
  )
  return flat(variables), flat(out), flat(grads)


def flat(tree):
  return {
    jax.tree_util.keystr(path): np.asarray(x)
    for path, x in jax.tree_util.tree_leaves_with_path(tree)
  }


@pytest.mark.parametrize('name', LAYERS)
def test_numbers(old_flax, name):
  for ours, theirs in zip(results(linen, name), results(old_flax.linen, name)):
    assert list(ours) == list(theirs)
    for where in ours:
      np.testing.assert_array_equal(ours[where], theirs[where], where)
