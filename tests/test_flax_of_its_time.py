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
  'attention with a causal mask, and dropout': (lambda nn: causal(nn), ROWS),
  'masked BatchNorm': (
    lambda nn: masked(nn, 'BatchNorm', use_running_average=False),
    IMAGE,
  ),
  'BatchNorm over a mapped axis': (lambda nn: mapped(nn), IMAGE),
  'masked LayerNorm': (lambda nn: masked(nn, 'LayerNorm'), IMAGE),
  'RMSNorm': (lambda nn: nn.RMSNorm(), ROWS),
  'InstanceNorm': (lambda nn: nn.InstanceNorm(), IMAGE),
  'SpectralNorm': (lambda nn: spectral(nn), ROWS),
  'WeightNorm': (lambda nn: nn.WeightNorm(nn.Dense(3)), ROWS),
  'ConvLocal': (lambda nn: nn.ConvLocal(3, (2, 2)), IMAGE),
  'Einsum': (lambda nn: nn.Einsum((4, 3), 'abc,cd->abd'), ROWS),
  'pooling': (
    lambda nn: nn.Sequential(
      [nn.Dense(3), lambda x: nn.avg_pool(x, (2, 2)), nn.softplus]
    ),
    IMAGE,
  ),
  'dropout': (lambda nn: nn.Dropout(0.5, deterministic=False), ROWS),
  'layers one behind the other': (lambda nn: stacked(nn), ROWS),
  'LSTM': (lambda nn: nn.RNN(nn.LSTMCell(4)), ROWS),
  'optimized LSTM, both ways': (
    lambda nn: nn.Bidirectional(
      nn.RNN(nn.OptimizedLSTMCell(4)), nn.RNN(nn.OptimizedLSTMCell(4))
    ),
    ROWS,
  ),
  'GRU': (lambda nn: nn.RNN(nn.GRUCell(4)), ROWS),
  'MLP': (lambda nn: nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(2)]), ROWS),
}


def masked(nn, layer, **fields):
  """Makes a module whose statistics leave some values out.

  Not with an axis that is mapped: there all that is left weighs the same, and in
  Flax all slices do. test_normalization.py has the numbers that it has to be.
  """

  class Masked(nn.Module):
    @nn.compact
    def __call__(self, x):
      return getattr(nn, layer)(**fields)(x, mask=x > -0.5)

  return Masked()


def mapped(nn):
  """Makes a module whose statistics are also over an axis that is mapped."""
  lifted = nn.vmap(
    nn.BatchNorm,
    variable_axes={'params': None, 'batch_stats': None},
    split_rngs={'params': False},
    axis_name='batch',
  )
  return lifted(use_running_average=False, axis_name='batch')


def causal(nn):
  """Makes attention to what came before."""

  class Causal(nn.Module):
    @nn.compact
    def __call__(self, x):
      mask = nn.make_causal_mask(x[..., 0])
      attention = nn.MultiHeadDotProductAttention(2, dropout_rate=0.3)
      return attention(x, mask=mask, deterministic=False)

  return Causal()


def spectral(nn):
  """Makes a layer with a normed matrix, whose norm is estimated on."""

  class Spectral(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.SpectralNorm(nn.Dense(3))(x, update_stats=True)

  return Spectral()


def stacked(nn):
  """Makes layers in a scan, computed anew for gradients."""

  class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
      x = nn.Dropout(0.5, deterministic=False)(nn.tanh(nn.Dense(4)(x)))
      return x, x.sum()

  class Stack(nn.Module):
    @nn.compact
    def __call__(self, x):
      layers = nn.scan(
        nn.remat(Layer, prevent_cse=False),
        variable_axes={'params': 0},
        split_rngs={'params': True, 'dropout': True},
        length=3,
      )
      return layers()(x, None)[0]

  return Stack()


def results(nn, name):
  """Returns variables, output, updates and gradients of a layer."""
  make, x = LAYERS[name]
  model = make(nn)
  variables = model.init({'params': KEY, 'dropout': KEY}, x)
  one_step = x[:, :1] if name == 'decoding' else x

  def step(params):
    rest = {k: v for k, v in variables.items() if k != 'params'}
    y, updates = model.apply(
      {'params': params, **rest},
      one_step,
      mutable=list(rest),
      rngs={'dropout': KEY},
    )
    return (y**2).sum(), (y, updates)

  (_, out), grads = jax.jit(jax.value_and_grad(step, has_aux=True))(
    variables.get('params', {})
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


def decoded(nn):
  """Returns outputs and caches of attention that goes on position by position."""
  model = nn.MultiHeadDotProductAttention(num_heads=2, decode=True)
  variables = model.init(KEY, ROWS[:, :5])
  step = jax.jit(lambda v, x: model.apply(v, x, mutable=['cache']))
  found = []
  for i in range(5):
    y, updates = step(variables, ROWS[:, i : i + 1])
    variables = {**variables, **updates}
    found.append((y, updates))
  return flat(found)


def test_decoding_goes_on(old_flax):
  ours, theirs = decoded(linen), decoded(old_flax.linen)
  assert list(ours) == list(theirs)
  for where in ours:
    np.testing.assert_array_equal(ours[where], theirs[where], where)
