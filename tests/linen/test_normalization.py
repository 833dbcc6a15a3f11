"""Normalization at its edges; what holds for all layers: test_layers.py."""

import functools
import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax_names import needs_notes, told
from layers_compare import as_dict, assert_same_leaves, assert_same_operations

import haiku_state.linen as nn

few = settings(max_examples=15, deadline=None, derandomize=True)
KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (4, 8, 3))
STATS = ['batch_stats']


@pytest.fixture(scope='module')
def flax_nn():
  return pytest.importorskip('flax.linen')


def start(features=3):
  """Returns the variables of a new BatchNorm."""
  return {
    'params': {'scale': jnp.ones(features), 'bias': jnp.zeros(features)},
    'batch_stats': {'mean': jnp.zeros(features), 'var': jnp.ones(features)},
  }


def train(layer, x, **kwargs):
  """Returns output and new statistics of a training call."""
  y, updates = layer.apply(start(x.shape[-1]), x, mutable=STATS, **kwargs)
  return y, as_dict(updates['batch_stats'])


def close(got, want, tolerance=1e-6):
  assert jax.tree.structure(got) == jax.tree.structure(want)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
    np.testing.assert_allclose(a, b, tolerance, tolerance)


# Programs equal to Flax's, for drawn arguments.


@st.composite
def norms(draw):
  """Draws the name of a layer, its arguments, an input and a mask."""
  kind = draw(
    st.sampled_from(
      ['BatchNorm', 'LayerNorm', 'RMSNorm', 'GroupNorm', 'InstanceNorm']
    )
  )
  dtypes = st.sampled_from([None, 'float32', 'bfloat16', 'float16'])
  options = dict(
    epsilon=draw(st.sampled_from([1e-6, 1e-2])),
    dtype=draw(dtypes),
    param_dtype=draw(dtypes) or 'float32',
    use_scale=draw(st.booleans()),
    use_fast_variance=draw(st.booleans()),
    force_float32_reductions=draw(st.booleans()),
  )
  if kind != 'RMSNorm':
    options['use_bias'] = draw(st.booleans())
  axes = st.lists(
    st.sampled_from([1, 2, -1]), min_size=1, max_size=2, unique=True
  ).map(tuple)
  if kind == 'BatchNorm':
    options.update(
      axis=draw(axes | st.just(-1)),
      momentum=draw(st.sampled_from([0.9, 0.0])),
      use_running_average=draw(st.booleans()),
    )
  if kind in ('LayerNorm', 'RMSNorm'):
    both = draw(axes | st.just(-1))
    options.update(reduction_axes=both, feature_axes=both)
  if kind == 'InstanceNorm':
    options['feature_axes'] = draw(st.sampled_from([-1, (1, -1), 1]))
  if kind == 'GroupNorm':
    options.update(
      draw(
        st.sampled_from(
          [
            {'num_groups': 2},
            {'num_groups': None, 'group_size': 1},
            {'num_groups': 4, 'reduction_axes': (-2, -1)},
          ]
        )
      )
    )
  shape = (2, 3, 5, 4)
  x = jnp.ones(shape, draw(dtypes) or 'float32')
  mask = draw(st.sampled_from([None, shape, (2, 3, 1, 4)]))
  return kind, options, x, mask and jnp.ones(mask, bool)


@few
@given(drawn=norms())
def test_drawn_norms_are_those_of_flax(drawn):
  flax_nn = pytest.importorskip('flax.linen')
  kind, options, x, mask = drawn
  ours, theirs = (getattr(m, kind)(**options) for m in (nn, flax_nn))
  variables, want = (
    as_dict(jax.eval_shape(lambda m=m: m.init(KEY, x, mask=mask)))
    for m in (ours, theirs)
  )
  assert variables == want
  ours, theirs = (
    functools.partial(m.apply, mask=mask, mutable=STATS) for m in (ours, theirs)
  )
  assert_same_operations(ours, theirs, variables, x)


# BatchNorm: the running averages.


def test_averages_move_to_the_biased_statistics():
  _, stats = train(nn.BatchNorm(False, momentum=0.9), X)
  mean, var = X.mean((0, 1)), X.var((0, 1))
  close(stats, {'mean': 0.1 * mean, 'var': 0.9 + 0.1 * var})


def test_evaluation_normalizes_by_the_averages():
  variables = start()
  variables['batch_stats'] = {
    'mean': jnp.array([1.0, 2.0, 3.0]),
    'var': jnp.array([4.0, 9.0, 16.0]),
  }
  y = nn.BatchNorm(epsilon=0.0).apply(variables, X, use_running_average=True)
  close(y, (X - jnp.array([1.0, 2.0, 3.0])) / jnp.array([2.0, 3.0, 4.0]))


@pytest.mark.parametrize('evaluate', [True, False])
def test_init_changes_no_average_and_needs_no_axis(evaluate):
  layer = nn.BatchNorm(evaluate, axis_name='nowhere')
  variables = layer.init(KEY, 100 + X)
  assert_same_leaves(variables['batch_stats'], start()['batch_stats'])


def test_a_shared_layer_moves_twice():
  class Twice(nn.Module):
    @nn.compact
    def __call__(self, x):
      norm = nn.BatchNorm(False, momentum=0.5)
      norm(x)
      return norm(x + 1)

  variables = Twice().init(KEY, X)
  _, updates = Twice().apply(variables, X, mutable=STATS)
  mean = X.mean((0, 1))
  got = updates['batch_stats']['BatchNorm_0']['mean']
  close(got, 0.5 * (0.5 * mean) + 0.5 * (mean + 1))


def test_tuple_of_axes_is_sorted():
  x = jnp.ones((4, 3, 2))
  variables = nn.BatchNorm(False, axis=(2, 1)).init(KEY, x)
  assert variables['params']['scale'].shape == (3, 2)


def test_training_needs_mutable_statistics():
  with pytest.raises(Exception, match='"batch_stats" is immutable') as caught:
    nn.BatchNorm(False).apply(start(), X)
  assert type(caught.value).__name__ == 'ModifyScopeVariableError'


# Extreme inputs.


@pytest.mark.parametrize('value', [4097.3, -1e6, 3e-20])
def test_rounding_makes_no_negative_variance(value):
  y, stats = train(nn.BatchNorm(False, momentum=0.0), jnp.full((7, 3), value))
  assert (stats['var'] >= 0).all() and jnp.isfinite(y).all()


def test_statistics_of_half_precision_are_float32():
  # 1000 and 1001 are one number in bfloat16 arithmetic on sums of them.
  x = jnp.tile(jnp.array([[248.0], [256.0]], jnp.bfloat16), (200, 1))
  y, stats = train(nn.BatchNorm(False, momentum=0.0), x)
  assert stats['mean'].dtype == jnp.float32
  close(stats, {'mean': jnp.array([252.0]), 'var': jnp.array([16.0])})
  close(jnp.abs(y), jnp.ones_like(y), 1e-3)


def test_slow_variance_survives_a_large_mean():
  x = 1e4 + jnp.array([[-1.0], [1.0]] * 8)
  slow, _ = train(nn.BatchNorm(False, use_fast_variance=False), x)
  close(jnp.abs(slow), jnp.ones_like(slow), 1e-3)


@pytest.mark.parametrize('scale', [1e-18, 1e18])
def test_layer_norm_of_extreme_scales(scale):
  layer = nn.LayerNorm(epsilon=1e-38)
  y = layer.apply({'params': start(8)['params']}, scale * jnp.arange(8.0))
  assert jnp.isfinite(y).all()
  close(jnp.abs(y).max(), jnp.float32(1.5275), 1e-3)


def test_one_element_has_no_variance():
  y, stats = train(nn.BatchNorm(False, momentum=0.0), jnp.full((1, 3), 7.0))
  close(y, jnp.zeros((1, 3)))
  close(stats, {'mean': jnp.full(3, 7.0), 'var': jnp.zeros(3)})


@pytest.mark.parametrize('kwargs', [{}, {'mask': jnp.zeros((0, 1), bool)}])
def test_empty_batch_has_no_mean(kwargs):
  y, stats = train(nn.BatchNorm(False), jnp.ones((0, 3)), **kwargs)
  assert y.shape == (0, 3) and jnp.isnan(stats['mean']).all()


def test_complex_variance_is_real():
  x = jnp.array([[1 + 1j], [-1 - 1j]])
  y, variables = nn.LayerNorm(reduction_axes=0, epsilon=0.0).init_with_output(
    KEY, x
  )
  close(y, x / math.sqrt(2))
  _, stats = train(nn.BatchNorm(False, momentum=0.0), x)
  assert stats['var'].dtype == jnp.float32
  close(stats['var'], jnp.array([2.0]))


# Masks.


def test_mask_hides_what_is_under_it():
  x = X.reshape(32, 3)
  mask = (jnp.arange(32) % 3 > 0)[:, None]
  hidden = jnp.where(mask, x, jnp.nan)
  _, got = train(nn.BatchNorm(False), hidden, mask=mask)
  _, want = train(nn.BatchNorm(False), x[mask[:, 0]])
  close(got, want)


def test_false_mask_makes_nan_as_in_flax(flax_nn):
  mask = jnp.zeros((4, 8, 1), bool)
  got = train(nn.BatchNorm(False), X, mask=mask)
  assert_same_leaves(got, train(flax_nn.BatchNorm(False), X, mask=mask))
  assert jnp.isnan(got[1]['mean']).all()


# Mapped axes.


def over_batch(layer, x, **masks):
  """Maps a training call over the first axis; statistics come out once."""

  def step(x, masks):
    return train(layer, x, **masks)

  return jax.vmap(step, out_axes=(0, None), axis_name='batch')(x, masks)


@pytest.mark.parametrize('fast', [True, False])
def test_mapped_statistics_are_those_of_the_batch(fast):
  layer = nn.BatchNorm(False, use_fast_variance=fast, axis_name='batch')
  got = over_batch(layer, X)
  close(got, train(layer.clone(axis_name=None), X), 1e-5)


def test_mapped_program_is_that_of_flax(flax_nn):
  for fast in (True, False):
    ours, theirs = (
      m.BatchNorm(False, use_fast_variance=fast, axis_name='batch')
      for m in (nn, flax_nn)
    )
    assert_same_operations(
      functools.partial(over_batch, ours),
      functools.partial(over_batch, theirs),
      X,
    )


def test_statistics_over_two_names():
  layer = nn.BatchNorm(False, axis_name=('a', 'b'))
  step = lambda x: train(layer, x[None])
  for name in ('b', 'a'):
    step = jax.vmap(step, out_axes=(0, None), axis_name=name)
  y, stats = step(X)
  want = train(nn.BatchNorm(False), X)
  close((y[:, :, 0], stats), want, 1e-5)


@pytest.mark.parametrize('mask', [None, jnp.ones((2, 1), bool)])
def test_groups_of_indices_reach_the_reduction(mask):
  groups = [[0, 2], [1, 3]]
  layer = nn.BatchNorm(False, axis_name='d', axis_index_groups=groups)
  jaxpr = jax.make_jaxpr(
    lambda x: train(layer, x, mask=mask), axis_env=[('d', 4)]
  )(jnp.ones((2, 3)))
  assert 'axis_index_groups=((0, 2), (1, 3))' in str(jaxpr)


@pytest.mark.parametrize('fast', [True, False])
@pytest.mark.parametrize('kind', ['BatchNorm', 'LayerNorm', 'RMSNorm'])
def test_masked_mapped_statistics_are_global(kind, fast):
  """Shards with 8, 2, 0 and 5 elements count by elements, not as shards."""
  mask = jnp.arange(8) < jnp.array([8, 2, 0, 5])[:, None]
  if kind == 'BatchNorm':
    layer = nn.BatchNorm(False, use_fast_variance=fast, axis_name='batch')
    got = over_batch(layer, X, mask=mask[..., None])
    want = train(layer.clone(axis_name=None), X, mask=mask[..., None])
  else:
    layer = getattr(nn, kind)(
      reduction_axes=0, use_fast_variance=fast, axis_name='batch'
    )
    variables = {'params': start()['params']}
    got = jax.vmap(
      lambda x, m: layer.apply(variables, x, mask=m), axis_name='batch'
    )(X, mask[..., None])
    whole = layer.clone(axis_name=None).apply(
      variables, X.reshape(32, 3), mask=mask.reshape(32, 1)
    )
    want = whole.reshape(X.shape)
  close(got, want, 1e-5)


def test_masked_mapped_statistics_differ_from_flax(flax_nn):
  """The one deviation: Flax averages the shards' means."""
  mask = (jnp.arange(8) < jnp.array([8, 2, 4, 5])[:, None])[..., None]
  _, ours = over_batch(nn.BatchNorm(False, axis_name='batch'), X, mask=mask)
  theirs = flax_nn.BatchNorm(False, axis_name='batch')
  _, other = over_batch(theirs, X, mask=mask)
  assert (jnp.abs(ours['mean'] - other['mean']) > 1e-5).any()


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'complex64'])
@pytest.mark.parametrize('force', [True, False])
def test_masked_mapped_statistics_keep_the_dtype(dtype, force, flax_nn):
  mask = jnp.ones((4, 8, 1), bool)
  options = dict(
    axis_name='batch',
    use_fast_variance=False,
    param_dtype='bfloat16' if dtype == 'bfloat16' else 'float32',
    force_float32_reductions=force,
  )

  def dtypes(m):
    layer = m.BatchNorm(False, **options)
    out = jax.eval_shape(lambda: over_batch(layer, X.astype(dtype), mask=mask))
    return jax.tree.map(lambda x: x.dtype, out)

  assert dtypes(nn) == dtypes(flax_nn)


def test_masked_mapped_sums_and_counts_are_added_in_float32():
  """In bfloat16, 256 + 1 is 256."""
  layer = nn.BatchNorm(False, axis_name='d', force_float32_reductions=False)
  x, mask = jnp.ones((2, 3), jnp.bfloat16), jnp.ones((2, 1), bool)
  jaxpr = jax.make_jaxpr(
    lambda x: train(layer, x, mask=mask), axis_env=[('d', 2)]
  )(x)
  added = [
    v.aval.dtype
    for eqn in jaxpr.eqns
    if eqn.primitive.name == 'psum'
    for v in eqn.invars
  ]
  assert added == [jnp.float32] * 3


def test_masks_false_everywhere_make_no_nan():
  layer = nn.BatchNorm(False, momentum=0.5, axis_name='batch')
  y, stats = over_batch(layer, X, mask=jnp.zeros((4, 8, 1), bool))
  assert jnp.isfinite(y).all()
  close(stats, {'mean': jnp.zeros(3), 'var': jnp.full(3, 0.5)})


def test_gradient_of_masked_mapped_statistics_is_the_global_one():
  mask = (jnp.arange(8) < jnp.array([8, 2, 0, 5])[:, None])[..., None]
  layer = nn.BatchNorm(False, axis_name='batch')
  weight = jnp.cos(jnp.arange(X.size, dtype='float32')).reshape(X.shape)

  def loss(x, run):
    return (weight * jnp.where(mask, run(x), 0)).sum()

  def gradient(run):
    return jax.jit(jax.grad(lambda x: loss(x, run)))(X)

  mapped = gradient(lambda x: over_batch(layer, x, mask=mask)[0])
  whole = layer.clone(axis_name=None)
  want = gradient(lambda x: train(whole, x, mask=mask)[0])
  close(mapped, want, 1e-5)


@pytest.mark.parametrize('axis_name', ['batch', ('outer', 'batch')])
def test_unbound_name_is_explained(axis_name):
  class Model(nn.Module):
    @nn.compact
    def __call__(self, x, evaluate):
      return nn.BatchNorm(axis_name=axis_name, name='bn')(x, evaluate)

  variables = Model().init(KEY, X, False)
  with pytest.raises(NameError, match='unbound axis name') as caught:
    Model().apply(variables, X, False, mutable=STATS)
  note = told(caught.value)
  for words in (
    'BatchNorm "/bn"',
    f'axis_name={axis_name!r}',
    "in_axes=(None, 0), out_axes=(0, None), axis_name='batch')",
    'use_running_average=True',
  ):
    assert words in note
  Model().apply(variables, X, True)


@needs_notes
def test_unbound_name_keeps_the_text_of_jax():
  def message(f):
    with pytest.raises(NameError) as caught:
      f()
    return str(caught.value)

  layer = nn.LayerNorm(axis_name='model')
  variables = {'params': start()['params']}
  got = message(lambda: layer.apply(variables, X))
  assert got == message(lambda: jax.lax.pmean(jnp.ones(()), 'model'))


def test_the_advice_on_an_unbound_name_works():
  """Runs the line that the note of the error shows."""
  layer = nn.BatchNorm(False, axis_name='batch')
  with pytest.raises(NameError) as caught:
    layer.apply(start(), X, mutable=STATS)
  lines = told(caught.value).splitlines()
  line = next(line for line in lines if line.startswith('  jax.vmap'))

  def step(variables, x):
    return layer.apply(variables, x, mutable=STATS)

  y, updates = eval(
    line, {'jax': jax, 'step': step, 'variables': start(), 'batch': X}
  )
  close(y, train(nn.BatchNorm(False), X)[0], 1e-5)
  assert updates['batch_stats']['mean'].shape == (3,)


# The same normalization under its other names.


def test_special_cases_agree():
  x = jax.random.normal(KEY, (2, 3, 4, 6))
  params = {'params': start(6)['params']}
  close(
    nn.GroupNorm(1).apply(params, x),
    nn.LayerNorm(reduction_axes=(1, 2, 3)).apply(params, x),
    1e-5,
  )
  instance = nn.InstanceNorm().apply(params, x)
  for layer in (
    nn.GroupNorm(None, 1),
    nn.LayerNorm(reduction_axes=(1, 2), feature_axes=-1),
  ):
    close(layer.apply(params, x), instance, 1e-5)


def test_rms_norm_is_not_centered():
  y, variables = nn.RMSNorm(epsilon=0.0).init_with_output(
    KEY, jnp.array([[3.0, 4.0]])
  )
  close(y, jnp.array([[3.0, 4.0]]) / math.sqrt(12.5))
  assert set(variables['params']) == {'scale'}


# Normalization of weights.


def test_spectral_norm_finds_the_largest_singular_value():
  layer = nn.SpectralNorm(nn.Dense(3, use_bias=False), n_steps=50)
  x = jnp.eye(4)
  variables = layer.init(KEY, x, update_stats=False)
  kernel = variables['params']['layer_instance']['kernel']
  y, updates = layer.apply(variables, x, update_stats=True, mutable=STATS)
  largest = jnp.linalg.norm(kernel, 2)
  close(updates['batch_stats']['layer_instance/kernel/sigma'], largest, 1e-4)
  close(y, kernel / largest, 1e-4)


def test_spectral_norm_leaves_zeros_and_vectors():
  zeros = nn.initializers.zeros
  ones = nn.initializers.ones
  layer = nn.SpectralNorm(nn.Dense(3, kernel_init=zeros, bias_init=ones))
  y, variables = layer.init_with_output(
    KEY, jnp.ones((1, 2)), update_stats=True
  )
  close(y, jnp.ones((1, 3)))
  assert set(variables['batch_stats']) == {
    'layer_instance/kernel/u',
    'layer_instance/kernel/sigma',
  }


def test_spectral_norm_without_steps_changes_nothing():
  dense = nn.Dense(3)
  layer = nn.SpectralNorm(dense, n_steps=0)
  y, variables = layer.init_with_output(KEY, X, update_stats=True)
  params = variables['params']['layer_instance']
  close(y, dense.apply({'params': params}, X))
  assert 'batch_stats' not in variables


def test_spectral_norm_of_a_higher_tensor():
  x = jnp.ones((1, 5, 2))
  with pytest.raises(
    ValueError, match='Input is 3D but error_on_non_matrix is True'
  ):
    nn.SpectralNorm(nn.Conv(3, (2,)), error_on_non_matrix=True).init(
      KEY, x, update_stats=False
    )
  variables = nn.SpectralNorm(nn.Conv(3, (2,))).init(KEY, x, update_stats=False)
  assert variables['batch_stats']['layer_instance/kernel/u'].shape == (1, 3)


@pytest.mark.parametrize('axes, count', [(-1, 3), (None, 1), ((0, 1), 12)])
def test_weight_norm_makes_lengths_of_one(axes, count):
  layer = nn.WeightNorm(nn.Dense(3, use_bias=False), feature_axes=axes)
  y, variables = layer.init_with_output(KEY, jnp.eye(4))
  scale = variables['params']['layer_instance/kernel/scale']
  assert scale.size == count
  lengths = (y**2).sum({-1: 0, None: None, (0, 1): ()}[axes])
  close(lengths, jnp.ones_like(lengths), 1e-5)


def test_weight_norm_learns_the_length():
  layer = nn.WeightNorm(nn.Dense(3, use_bias=False))
  x = jnp.eye(4)
  variables = as_dict(layer.init(KEY, x))
  variables['params']['layer_instance/kernel/scale'] *= 2
  close((layer.apply(variables, x) ** 2).sum(0), jnp.full(3, 4.0), 1e-5)


def test_weight_norm_filters_by_path():
  class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.Dense(2, name='b')(nn.Dense(2, name='a')(x))

  for part, names in {
    'a': {'layer_instance/a/kernel/scale', 'layer_instance/a/bias/scale'},
    'bias': {'layer_instance/a/bias/scale', 'layer_instance/b/bias/scale'},
  }.items():
    # 'a' occurs in 'layer_instance' and 'bias', '/a/' only where it is meant.
    part = f'/{part}'
    layer = nn.WeightNorm(Model(), variable_filter={part})
    params = layer.init(KEY, jnp.ones((1, 2)))['params']
    assert set(params) - {'layer_instance'} == names


def test_signatures_are_those_of_flax(flax_nn):
  for kind in ('BatchNorm', 'LayerNorm', 'RMSNorm', 'GroupNorm'):
    ours, theirs = getattr(nn, kind), getattr(flax_nn, kind)
    assert list(inspect.signature(ours).parameters) == list(
      inspect.signature(theirs).parameters
    )
