"""Layers with named axes: names, numbers, and where Flax's own fail."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import haiku_state.linen as nn
from haiku_state.linen.experimental import layers_with_named_axes as named

X = np.random.default_rng(0).standard_normal((2, 3, 4)).astype('float32')


def initialized(layer, *args):
  y, variables = jax.jit(layer.init_with_output)(jax.random.key(0), *args)
  return y, variables['params'], variables.get('params_axes', {})


@pytest.mark.parametrize('name', ['Dense', 'Embed', 'LayerNorm'])
def test_fields_are_those_of_flax(name):
  flax = pytest.importorskip('flax.linen.experimental.layers_with_named_axes')
  ours, theirs = (
    inspect.signature(getattr(module, name)).parameters
    for module in (named, flax)
  )
  assert list(ours) == list(theirs)


def test_dense_is_dense_with_names():
  dense = named.Dense(5, kernel_axes=('embed', 'mlp'))
  y, params, axes = initialized(dense, X)
  want, variables = nn.Dense(5).init_with_output(jax.random.key(0), X)
  np.testing.assert_allclose(y, want, rtol=1e-6)
  jax.tree_util.tree_map(
    np.testing.assert_array_equal, dict(params), dict(variables['params'])
  )
  assert axes['kernel_axes'].names == ('embed', 'mlp')
  assert axes['bias_axes'].names == ('mlp',)


def test_dense_needs_no_names():
  """In Flax 0.12.8 the bias of the default `kernel_axes=()` is an IndexError."""
  y, params, _ = initialized(named.Dense(5), X)
  np.testing.assert_allclose(y, X @ params['kernel'], rtol=1e-5)
  assert params['bias'].shape == (5,)


@pytest.mark.parametrize('one_hot', [False, True])
def test_embed_looks_up_and_attends(one_hot):
  embed = named.Embed(6, 4, one_hot=one_hot)
  ids = np.array([[1, 5, 0]])
  y, params, axes = initialized(embed, ids)
  np.testing.assert_allclose(y, np.asarray(params['embedding'])[ids], rtol=1e-6)
  assert axes['embedding_axes'].names == ('vocab', 'embed')
  logits = embed.apply({'params': params}, X, method='attend')
  np.testing.assert_allclose(logits, X @ params['embedding'].T, rtol=1e-5)


def test_embed_takes_integers_only():
  with pytest.raises(ValueError) as info:
    initialized(named.Embed(6, 4), X)
  assert str(info.value) == 'Input type must be an integer or unsigned integer.'
  y, _, _ = initialized(named.Embed(6, 4, cast_input_dtype='int32'), np.ones(3))
  assert y.shape == (3, 4)


@pytest.mark.parametrize('use_scale', [False, True])
@pytest.mark.parametrize('use_bias', [False, True])
def test_layer_norm_is_layer_norm_with_names(use_scale, use_bias):
  """In Flax 0.12.8 scale and bias of this layer are an AttributeError."""
  fields = dict(
    use_scale=use_scale,
    use_bias=use_bias,
    scale_init=nn.initializers.constant(3.0),
    bias_init=nn.initializers.constant(-2.0),
  )
  layer, x = named.LayerNorm(**fields), 5 * X + 7
  y, variables = layer.init_with_output(jax.random.key(0), x)
  want, _ = nn.LayerNorm(**fields).init_with_output(jax.random.key(0), x)
  np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5)
  names = {
    name: axes.names
    for name, axes in dict(variables).get('params_axes', {}).items()
  }
  assert names == {
    f'{name}_axes': ('embed',)
    for name, used in (('scale', use_scale), ('bias', use_bias))
    if used
  }


def test_layer_norm_of_half_precision_has_float32_statistics():
  x = (1000 + X).astype(jnp.bfloat16)
  layer = named.LayerNorm(use_bias=False, use_scale=False, dtype=jnp.bfloat16)
  y = layer.apply({}, x)
  assert y.dtype == jnp.bfloat16
  exact = np.asarray(x, np.float64)
  exact = (exact - exact.mean(-1, keepdims=True)) / np.sqrt(
    exact.var(-1, keepdims=True) + 1e-6
  )
  np.testing.assert_allclose(np.asarray(y, np.float32), exact, atol=0.2)
