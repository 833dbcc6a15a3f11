"""`compare` names the layer that parts first."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haiku_state import interop
from haiku_state import linen as nn
from haiku_state.interop import layers

X = jax.random.normal(jax.random.PRNGKey(0), (3, 4))


def haiku_fn(x):
  x = jax.nn.relu(hk.Linear(5, name='a')(x))
  x = hk.LayerNorm(-1, True, True, name='norm')(x)
  return hk.Linear(2, name='b')(x)


class Model(nn.Module):
  epsilon: float = 1e-5
  power: float = 1.0

  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Dense(5, name='one')(x))
    x = nn.LayerNorm(self.epsilon, use_fast_variance=False, name='norm')(x)
    return nn.Dense(2, name='two')(x) ** self.power


MAPPING = {
  'b': layers.linear('two'),
  'a': layers.linear('one'),
  'norm': layers.layer_norm('norm'),
}


def compare(model=None, fn=haiku_fn, **kwargs):
  return interop.compare(
    hk.transform(fn), model or Model(), MAPPING, [X], **kwargs
  )


def test_equal_models():
  result = compare()
  assert result.equal and result.first is None
  # In the order of the calls, not of the mapping.
  assert [row.haiku for row in result.rows] == ['a', 'norm', 'b', 'output']
  assert all(row.output <= 1e-5 and row.gradient <= 1e-5 for row in result.rows)
  assert 'parts first' not in str(result)


@pytest.mark.parametrize(
  'model, first', [(Model(epsilon=1e-2), 'norm'), (Model(power=2.0), 'output')]
)
def test_first_layer_that_parts(model, first):
  result = compare(model)
  assert result.first.haiku == first
  (line,) = [x for x in str(result).split('\n') if 'parts first' in x]
  assert line.startswith(first)


def test_layer_whose_gradients_part():
  def fn(x):
    return haiku_fn(jax.lax.stop_gradient(x))

  result = compare(fn=fn)
  assert result.first.haiku == 'output'
  assert result.first.output <= 1e-5 < result.first.gradient


def test_nan_is_a_difference():
  params = hk.transform(haiku_fn).init(jax.random.PRNGKey(0), X)
  params['norm']['scale'] *= jnp.nan
  assert compare(weights=(params, {})).first.haiku == 'norm'


def test_state_and_arguments():
  def fn(x, is_training):
    return hk.BatchNorm(True, True, 0.9, name='norm')(x, is_training)

  class Norm(nn.Module):
    @nn.compact
    def __call__(self, x, train):
      return nn.BatchNorm(not train, momentum=0.9, name='n')(x)

  f = hk.transform_with_state(fn)
  weights = f.init(jax.random.PRNGKey(0), X, True)
  for train in (True, False):
    result = interop.compare(
      f,
      Norm(),
      {'norm': layers.batch_norm('n')},
      [X],
      weights=weights,
      haiku_kwargs={'is_training': train},
      linen_kwargs={'train': train},
    )
    assert result.equal, result


def test_mapping_that_misses_a_layer():
  with pytest.raises(interop.ConversionError, match='norm'):
    interop.compare(
      hk.transform(haiku_fn), Model(), {'a': layers.linear('one')}, [X]
    )


def test_picture():
  matplotlib = pytest.importorskip('matplotlib')
  matplotlib.use('agg')
  ax = compare(Model(epsilon=1e-2)).plot()
  labels = [text.get_text() for text in ax.get_yticklabels()]
  assert labels == ['a', 'norm', 'b', 'output']
  drawn = ax.get_lines()[0].get_xdata()
  assert np.argmax(drawn > 1e-5) == 1
