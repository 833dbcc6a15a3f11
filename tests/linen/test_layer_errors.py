"""Wrong calls of layers: class and text of the error, which are Flax's."""

import re

import jax
import jax.numpy as jnp
import pytest

import haiku_state.linen as nn

X = jnp.ones((2, 3, 4))


def init(layer, *args, **kwargs):
  return layer.init(jax.random.key(0), *args, **kwargs)


# (name, program, class, words of the text)
ERRORS = (
  (
    'dense_general_batch_dims',
    lambda nn: init(nn.DenseGeneral(2, batch_dims=(1,)), X),
    ValueError,
    r'batch_dims (1,) must be consecutive leading dimensions starting from 0.',
  ),
  (
    'einsum_arrow',
    lambda nn: init(nn.Einsum((4, 2), 'abc,cd'), X),
    ValueError,
    '`einsum_str` equation must be explicit and include "->".',
  ),
  (
    'einsum_operands',
    lambda nn: init(nn.Einsum((4, 2), 'abc->ab'), X),
    ValueError,
    'exactly one comma character, instead of 0',
  ),
  (
    'einsum_three_operands',
    lambda nn: init(nn.Einsum((4, 2), 'a,b,c->ab'), X),
    ValueError,
    'exactly one comma character, instead of 2',
  ),
  (
    'einsum_none',
    lambda nn: init(nn.Einsum((4, 2)), X),
    ValueError,
    'Parameter "einsum_str" must be passed to the constructor or at call time.',
  ),
  (
    'einsum_twice',
    lambda nn: init(nn.Einsum((4, 2), 'abc,cd->abd'), X, 'abc,cd->abd'),
    ValueError,
    'was passed to the constructor and at call time. Should be passed just',
  ),
  (
    'dense_integer_dtype',
    lambda nn: init(nn.Dense(2, dtype=jnp.int32), X),
    ValueError,
    'Dtype must be inexact',
  ),
  (
    'conv_causal',
    lambda nn: init(nn.Conv(2, (2, 2), padding='CAUSAL'), X),
    ValueError,
    'Causal padding is only implemented for 1D convolutions.',
  ),
  (
    'conv_padding',
    lambda nn: init(nn.Conv(2, (2,), padding=(1, 2)), X),
    ValueError,
    'Invalid padding format: (1, 2), should be str, int, or a sequence of len 1'
    ' where each element is an int or pair of ints.',
  ),
  (
    'conv_padding_triple',
    lambda nn: init(nn.ConvTranspose(2, (2,), padding=[(1, 2, 3)]), X),
    ValueError,
    'Invalid padding format: ((1, 2, 3),), should be str',
  ),
  (
    'conv_mask',
    lambda nn: init(nn.Conv(2, (2,), mask=jnp.ones((2, 4, 1))), X),
    ValueError,
    'Mask needs to have the same shape as weights. Shapes are: (2, 4, 1), (2, '
    '4, 2)',
  ),
  (
    'conv_transpose_mask',
    lambda nn: init(nn.ConvTranspose(2, (2,), mask=jnp.ones((2, 4, 1))), X),
    ValueError,
    'Mask needs to have the same shape as weights.',
  ),
  (
    'conv_local_groups',
    lambda nn: init(nn.ConvLocal(2, (2,), feature_group_count=2), X),
    NotImplementedError,
    'does not support `feature_group_count != 1`, got `2`.',
  ),
  (
    'conv_dilated_same',
    lambda nn: init(nn.ConvLocal(2, (2,), input_dilation=2), X),
    ValueError,
    'String padding is not implemented for transposed convolution',
  ),
  (
    'embed_floats',
    lambda nn: init(nn.Embed(2, 2), X),
    ValueError,
    'Input type must be an integer or unsigned integer.',
  ),
  (
    'batch_norm_none',
    lambda nn: init(nn.BatchNorm(), X),
    ValueError,
    'Parameter "use_running_average" must be passed to the constructor or at '
    'call time.',
  ),
  (
    'batch_norm_twice',
    lambda nn: init(nn.BatchNorm(True), X, use_running_average=True),
    ValueError,
    'Should be passed just once.',
  ),
  (
    'dropout_none',
    lambda nn: init(nn.Dropout(0.5), X),
    ValueError,
    'Parameter "deterministic" must be passed to the constructor',
  ),
  (
    'group_norm_axes',
    lambda nn: init(nn.GroupNorm(2, reduction_axes=(0, 1)), X),
    ValueError,
    'The reduction axes must include the final dimension as this is assumed',
  ),
  (
    'group_norm_both',
    lambda nn: init(nn.GroupNorm(2, 2), X),
    ValueError,
    'Either `num_groups` or `group_size` should be specified.',
  ),
  (
    'group_norm_neither',
    lambda nn: init(nn.GroupNorm(None), X),
    ValueError,
    'pass `num_groups=None` as argument to override the default',
  ),
  (
    'group_norm_size',
    lambda nn: init(nn.GroupNorm(None, 3), X),
    ValueError,
    'Number of channels (4) is not multiple of the group size (3).',
  ),
  (
    'group_norm_default',
    lambda nn: init(nn.GroupNorm(), X),
    ValueError,
    'Number of groups (32) does not divide the number of channels (4).',
  ),
  (
    'group_norm_zero',
    lambda nn: init(nn.GroupNorm(0), X),
    ValueError,
    'Number of groups (0) does not divide the number of channels (4).',
  ),
  (
    'instance_norm_batch',
    lambda nn: init(nn.InstanceNorm(feature_axes=(0, -1)), X),
    ValueError,
    'The channel axes cannot include the leading dimension as this is assumed',
  ),
)


@pytest.mark.parametrize(
  'program, kind, words',
  [pytest.param(*row[1:], id=row[0]) for row in ERRORS],
)
def test_error_is_that_of_flax(program, kind, words):
  with pytest.raises(kind, match=re.escape(words)) as ours:
    program(nn)
  assert type(ours.value) is kind
  flax_nn = pytest.importorskip('flax.linen')
  with pytest.raises(kind) as theirs:
    program(flax_nn)
  assert str(ours.value) == str(theirs.value)


def test_groups_that_do_not_come_out_even():
  with pytest.raises(AssertionError, match='4 input features of Conv'):
    init(nn.Conv(3, (1,), feature_group_count=3), X)
