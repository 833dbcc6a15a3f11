"""Linear layers at their edges; what holds for all layers: test_layers.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from layers_compare import (
  assert_same_leaves,
  assert_same_program,
)

import haiku_state.linen as nn
from haiku_state.linen import linear

few = settings(max_examples=12, deadline=None, derandomize=True)


@pytest.fixture(scope='module')
def flax_nn():
  return pytest.importorskip('flax.linen')


@few
@given(data=st.data())
def test_drawn_dense_is_that_of_flax(data):
  draw = data.draw
  shape = draw(st.lists(st.integers(0, 3), min_size=0, max_size=3))
  dtypes = st.sampled_from([None, 'float32', 'bfloat16', 'float16'])
  x = jnp.zeros((*shape, draw(st.integers(1, 4))), draw(dtypes) or 'int32')
  options = dict(
    features=draw(st.integers(1, 4)),
    use_bias=draw(st.booleans()),
    dtype=draw(dtypes),
    param_dtype=draw(dtypes) or 'float32',
    precision=draw(st.sampled_from([None, 'high', lax.Precision.HIGHEST])),
  )
  assert_same_program(lambda nn: nn.Dense(**options), x)
  assert_same_program(lambda nn: nn.DenseGeneral(**options), x)


@few
@given(data=st.data())
def test_drawn_dense_general_is_that_of_flax(data):
  draw = data.draw
  ndim = draw(st.integers(2, 4))
  x = jnp.zeros((2, 3, 2, 4)[:ndim])
  n_batch = draw(st.integers(0, ndim - 1))
  rest = st.sampled_from(range(n_batch, ndim))
  axis = draw(st.lists(rest, min_size=1, unique=True))
  axis = [a - ndim if draw(st.booleans()) else a for a in axis]
  sizes = st.lists(st.integers(1, 3), min_size=1, max_size=2)
  options = dict(
    features=draw(st.integers(1, 3) | sizes.map(tuple)),
    axis=tuple(axis),
    batch_dims=draw(st.permutations(range(n_batch))),
    use_bias=draw(st.booleans()),
  )
  assert_same_program(lambda nn: nn.DenseGeneral(**options), x)


@st.composite
def conv_arguments(draw, paddings):
  """Draws an input and what `Conv` and `ConvLocal` share."""
  rank = draw(st.integers(1, 2))

  def per_axis(high, low=1):
    number = st.integers(low, high)
    return st.tuples(*[number] * rank) | number

  size = st.tuples(*[st.integers(1, 3)] * rank)
  pair = st.tuples(st.integers(0, 2), st.integers(0, 2))
  padding = (
    st.sampled_from(paddings)
    | st.integers(0, 2)
    | st.tuples(*[pair | st.integers(0, 2)] * rank)
  )
  padding = draw(padding)
  # JAX refuses to dilate the input under a padding that is a word.
  dilation = 1 if isinstance(padding, str) else draw(per_axis(2))
  n_batch = draw(st.integers(0, 2))
  shape = [2] * n_batch + [draw(st.integers(5, 7)) for _ in range(rank)] + [2]
  return jnp.zeros(shape), dict(
    features=draw(st.integers(1, 2)) * 2,
    kernel_size=draw(size),
    strides=draw(per_axis(2) | st.none()),
    padding=padding,
    input_dilation=dilation,
    kernel_dilation=draw(per_axis(2)),
    use_bias=draw(st.booleans()),
  )


@few
@given(drawn=conv_arguments(['SAME', 'VALID', 'CIRCULAR', 'REFLECT']))
def test_drawn_convolutions_are_those_of_flax(drawn):
  x, options = drawn
  assert_same_program(lambda nn: nn.Conv(**options), x)
  options['feature_group_count'] = 2
  assert_same_program(lambda nn: nn.Conv(**options), x)


@few
@given(drawn=conv_arguments(['SAME', 'VALID', 'CIRCULAR', 'REFLECT']))
def test_drawn_local_convolutions_are_those_of_flax(drawn):
  x, options = drawn
  assert_same_program(lambda nn: nn.ConvLocal(**options), x)


@few
@given(drawn=conv_arguments(['SAME', 'VALID', 'CIRCULAR']), flip=st.booleans())
def test_drawn_transposed_convolutions_are_those_of_flax(drawn, flip):
  x, options = drawn
  del options['input_dilation']
  make = lambda nn: nn.ConvTranspose(transpose_kernel=flip, **options)
  assert_same_program(make, x)


@few
@given(data=st.data())
def test_drawn_einsum_is_that_of_flax(data):
  draw = data.draw
  equation, shape, sizes = draw(
    st.sampled_from(
      [
        ('ab,bc->ac', (4, 3), (3, 2)),
        ('abc,cd->abd', (2, 4, 3), (3, 2)),
        ('...ab,bc->...ac', (2, 4, 3), (3, 2)),
        ('bc,abc->ab', (4, 3), (2, 4, 3)),
        ('ab,abc->c', (4, 3), (4, 3, 2)),
      ]
    )
  )
  dtypes = st.sampled_from([None, 'float32', 'bfloat16'])
  options = dict(
    shape=sizes,
    einsum_str=equation,
    use_bias=draw(st.booleans()),
    dtype=draw(dtypes),
    param_dtype=draw(dtypes) or 'float32',
    precision=draw(st.sampled_from([None, 'highest'])),
  )
  assert_same_program(lambda nn: nn.Einsum(**options), jnp.zeros(shape))


@few
@given(data=st.data())
def test_drawn_embedding_is_that_of_flax(data):
  draw = data.draw
  dtypes = st.sampled_from([None, 'float32', 'bfloat16', 'float16'])
  options = dict(
    num_embeddings=draw(st.integers(1, 4)),
    features=draw(st.integers(1, 4)),
    dtype=draw(dtypes),
    param_dtype=draw(dtypes) or 'float32',
  )
  # Of one row Flax takes no index without an axis, nor do we.
  ndim = draw(st.integers(options['num_embeddings'] == 1, 3))
  shape = [draw(st.integers(0, 3)) for _ in range(ndim)]
  kind = draw(st.sampled_from(['int32', 'uint8']))
  assert_same_program(lambda nn: nn.Embed(**options), jnp.zeros(shape, kind))


@pytest.mark.parametrize('size', [1, 2, 3])
@pytest.mark.parametrize('dilation', [1, 2])
def test_causal_convolution_sees_no_later_place(size, dilation):
  layer = nn.Conv(1, size, padding='CAUSAL', kernel_dilation=dilation)
  x = jnp.arange(6.0).reshape(6, 1)
  variables = layer.init(jax.random.key(0), x)
  jacobian = jax.jacobian(lambda x: layer.apply(variables, x))(x)[:, 0, :, 0]
  assert (jnp.triu(jacobian, 1) == 0).all()
  assert (jnp.diag(jacobian) != 0).all()


@pytest.mark.parametrize('padding', ['CIRCULAR', 'REFLECT'])
def test_padding_continues_the_input(padding):
  x = np.arange(5.0).reshape(5, 1)
  layer = nn.Conv(1, 3, padding=padding, use_bias=False)
  variables = {
    'params': {'kernel': jnp.array([1.0, 10.0, 100.0])[:, None, None]}
  }
  left, right = (4, 0) if padding == 'CIRCULAR' else (1, 3)
  padded = np.array([left, 0, 1, 2, 3, 4, right])
  want = padded[:-2] + 10 * padded[1:-1] + 100 * padded[2:]
  np.testing.assert_allclose(layer.apply(variables, x)[:, 0], want)


@pytest.mark.parametrize('padding', ['SAME', 'VALID', 'CIRCULAR'])
@pytest.mark.parametrize('size, stride', [(3, 2), (4, 2), (3, 1)])
def test_transpose_kernel_makes_the_transpose(padding, size, stride):
  x = jax.random.normal(jax.random.key(0), (6 * stride, 2))
  conv = nn.Conv(3, size, stride, padding, use_bias=False)
  variables = conv.init(jax.random.key(1), x)
  y, pull = jax.vjp(lambda x: conv.apply(variables, x), x)
  back = nn.ConvTranspose(
    2, (size,), (stride,), padding, use_bias=False, transpose_kernel=True
  )
  got = back.apply(variables, y)
  (want,) = pull(y)
  # VALID forgets what of the input no window reached.
  np.testing.assert_allclose(got, want[: len(got)], 1e-5, 1e-5)


@few
@given(
  sizes=st.tuples(st.integers(1, 6), st.integers(1, 6)),
  kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
  strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
  dilations=st.tuples(*[st.integers(1, 2)] * 4),
  padding=st.sampled_from(['SAME', 'VALID', ((1, 0), (2, 2))]),
)
def test_places_are_those_of_the_convolution(
  sizes, kernel, strides, dilations, padding
):
  x = jax.ShapeDtypeStruct((1, *sizes, 2), jnp.float32)
  shape = (*kernel, 2, 3)
  geometry = dict(
    lhs_dilation=(1, 1) if isinstance(padding, str) else dilations[:2],
    rhs_dilation=dilations[2:],
    dimension_numbers=linear._conv_dimension_numbers(x.shape),
  )
  operation = lax.conv_general_dilated
  arguments = (x, shape, strides, padding, geometry)
  assert linear._conv_places(operation, *arguments) == linear._conv_places(
    lambda **kwargs: operation(**kwargs), *arguments
  )


def recorder(operation, calls):
  """Returns the operation, which notes that it was called."""

  @functools.wraps(operation)
  def recorded(*args, **kwargs):
    calls.append(operation.__name__)
    return operation(*args, **kwargs)

  return recorded


@pytest.mark.parametrize(
  'kind, argument, operation, shape',
  [
    ('Dense', 'dot_general', lax.dot_general, (2, 3)),
    ('DenseGeneral', 'dot_general', lax.dot_general, (2, 3)),
    ('Conv', 'conv_general_dilated', lax.conv_general_dilated, (4, 3)),
    ('ConvLocal', 'conv_general_dilated', lax.conv_general_dilated, (4, 3)),
  ],
)
def test_operation_can_be_replaced(kind, argument, operation, shape):
  calls, others = [], []
  options = {'kernel_size': (2,)} if kind.startswith('Conv') else {}
  make = functools.partial(getattr(nn, kind), 2, **options)
  x = jnp.ones(shape)
  want, variables = make().init_with_output(jax.random.key(0), x)
  once = recorder(operation, calls)
  np.testing.assert_array_equal(
    make(**{argument: once}).apply(variables, x), want
  )
  assert calls == [operation.__name__]
  both = {
    argument: recorder(operation, others),
    argument + '_cls': lambda: once,
  }
  make(**both).apply(variables, x)
  assert calls == [operation.__name__] * 2 and not others


@pytest.mark.parametrize(
  'make, x',
  [
    (lambda **k: nn.Dense(2, **k), jnp.ones((2, 3))),
    (lambda **k: nn.DenseGeneral(2, **k), jnp.ones((2, 3))),
    (lambda **k: nn.Einsum((3, 2), 'ab,bc->ac', **k), jnp.ones((2, 3))),
    (lambda **k: nn.Conv(2, 2, **k), jnp.ones((4, 3))),
    (lambda **k: nn.ConvLocal(2, 2, **k), jnp.ones((4, 3))),
    (lambda **k: nn.ConvTranspose(2, 2, **k), jnp.ones((4, 3))),
    (lambda **k: nn.Embed(2, 2, **k), jnp.array([0])),
  ],
)
def test_promotion_can_be_replaced(make, x):
  seen = []

  def promote(*args, dtype=None, inexact=True):
    seen.append((len(args), dtype))
    return nn.dtypes.promote_dtype(*args, dtype=jnp.float16, inexact=inexact)

  layer = make(promote_dtype=promote, dtype=jnp.float32)
  y, _ = layer.init_with_output(jax.random.key(0), x)
  assert y.dtype == jnp.float16
  assert seen == [(1 if isinstance(layer, nn.Embed) else 3, jnp.float32)]


def test_flat_initializers_of_two_calls_are_equal():
  """The core remembers what it checked by the initializer and its arguments."""
  init = nn.initializers.normal()
  assert linear._FlatInit(init, (2, 3)) == linear._FlatInit(init, (2, 3))
  assert hash(linear._FlatInit(init, (2, 3))) == hash(
    linear._FlatInit(init, (2, 3))
  )
  assert linear._FlatInit(init, (2, 3)) != linear._FlatInit(init, (3, 2))


def test_dense_general_keeps_the_names_of_axes(flax_nn):
  """An initializer may return a box; what it holds is reshaped inside."""

  def variables(nn):
    boxed = nn.with_partitioning
    layer = nn.DenseGeneral(
      (2, 3),
      kernel_init=boxed(nn.initializers.lecun_normal(), ('in', 'a', 'b')),
      bias_init=boxed(nn.initializers.ones, ('a', 'b')),
    )
    return layer.init(jax.random.key(0), jnp.ones((2, 4)))['params']

  ours, theirs = variables(nn), variables(flax_nn)
  for name in ('kernel', 'bias'):
    assert ours[name].names == theirs[name].names
    assert_same_leaves(ours[name].value, theirs[name].value)


def test_initializers_see_the_flat_shapes(flax_nn):
  """Fans are counted on the matrix; zeros and ones look at no shape."""

  def shapes(nn):
    seen = []

    def init(key, shape, dtype):
      seen.append(shape)
      return jnp.full(shape, len(shape), dtype)

    layer = nn.DenseGeneral(
      (2, 3), axis=(1, -1), batch_dims=(0,), kernel_init=init, bias_init=init
    )
    variables = layer.init(jax.random.key(0), jnp.ones((5, 3, 2, 4)))
    return set(seen), variables

  ours, theirs = shapes(nn), shapes(flax_nn)
  assert ours[0] == theirs[0] == {(60, 6), (30,)}
  assert_same_leaves(ours[1], theirs[1])


@pytest.mark.parametrize('name', ['zeros', 'ones'])
def test_constant_bias_is_that_of_flax(name, flax_nn):
  variables = [
    m.DenseGeneral((2, 2), bias_init=getattr(m.initializers, name)).init(
      jax.random.key(0), jnp.ones((2, 3))
    )
    for m in (nn, flax_nn)
  ]
  assert_same_leaves(*variables)


@pytest.mark.parametrize('kind', ['Dense', 'Conv', 'Embed'])
def test_numpy_variables_and_inputs(kind):
  layer, x = {
    'Dense': (nn.Dense(2), np.ones((2, 3), 'f4')),
    'Conv': (nn.Conv(2, 2), np.ones((4, 3), 'f4')),
    'Embed': (nn.Embed(4, 2), np.array([[1, 3]])),
  }[kind]
  want, variables = layer.init_with_output(jax.random.key(0), jnp.asarray(x))
  variables = jax.tree.map(np.asarray, variables)
  np.testing.assert_array_equal(layer.apply(variables, x), want)
  jitted = jax.jit(lambda x: layer.apply(variables, x))
  np.testing.assert_allclose(jitted(x), want, 1e-6)


@pytest.mark.parametrize('shape', [(0, 3), (2, 0, 3), (3,)])
def test_dense_of_nothing_and_of_one(shape):
  y, _ = nn.Dense(2).init_with_output(jax.random.key(0), jnp.ones(shape))
  assert y.shape == (*shape[:-1], 2)


def test_convolution_of_an_empty_batch():
  for layer in (nn.Conv(2, 3), nn.ConvLocal(2, 3), nn.ConvTranspose(2, 3)):
    y, _ = layer.init_with_output(jax.random.key(0), jnp.ones((0, 5, 3)))
    assert y.shape == (0, 5, 2)


def test_embed_looks_up_and_attends():
  embed = nn.Embed(4, 3)
  variables = embed.init(jax.random.key(0), jnp.array([0]))
  table = variables['params']['embedding']
  y = embed.apply(variables, jnp.array([[0, -1], [3, 4]]))
  np.testing.assert_array_equal(y[0, 0], table[0])
  np.testing.assert_array_equal(y[0, 1], table[3])
  np.testing.assert_array_equal(y[1, 0], table[3])
  assert jnp.isnan(y[1, 1]).all()
  logits = embed.apply(variables, table, method=embed.attend)
  np.testing.assert_allclose(logits, table @ table.T, 1e-6)


def test_embed_of_one_row_ignores_the_index():
  embed = nn.Embed(1, 3)
  y, variables = embed.init_with_output(jax.random.key(0), jnp.array([[7, -9]]))
  table = variables['params']['embedding']
  np.testing.assert_array_equal(y, jnp.broadcast_to(table, (1, 2, 3)))


def test_embed_attend_in_a_model():
  class Tied(nn.Module):
    def setup(self):
      self.embed = nn.Embed(5, 3, dtype=jnp.bfloat16)

    def __call__(self, x):
      return self.embed.attend(self.embed(x))

  y, variables = Tied().init_with_output(jax.random.key(0), jnp.array([1, 2]))
  assert y.shape == (2, 5) and y.dtype == jnp.bfloat16
  assert variables['params']['embed']['embedding'].dtype == jnp.float32
