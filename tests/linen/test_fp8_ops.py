"""Float8 products: rounding, scales, and gradients that are next values."""

import functools
import warnings

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from drawn import normal
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from same_signature import assert_same_signature

import haiku_state.linen as nn
from haiku_state.linen import fp8_ops

NAMES = (
  'compute_amax_history',
  'compute_scale',
  'dequantize',
  'dot_general_transpose_lhs',
  'dot_general_transpose_rhs',
  'dot_general_with_precision',
  'dot_general_with_precision_jvp',
  'fp8_meta_dtype_wrapper',
  'fp8_scaled_dot_general',
  'Fp8DirectDotGeneralOp',
  'Fp8DotGeneral',
  'Fp8DotGeneralBase',
  'Fp8DotGeneralOp',
  'Fp8Einsum',
  'get_fp8_max',
  'in_q',
  'in_q_bwd',
  'in_q_fwd',
  'in_qdq',
  'in_qdq_bwd',
  'in_qdq_fwd',
  'NANOOFp8DotGeneralOp',
  'out_dq',
  'out_dq_bwd',
  'out_dq_fwd',
  'out_qdq',
  'out_qdq_bwd',
  'out_qdq_fwd',
  'qdq',
  'quantize',
  'quantize_dequantize_update',
  'quantized_dot',
  'quantized_dot_bwd',
  'quantized_dot_fwd',
  'update_fp8_meta',
)
E4M3, E5M2 = jnp.float8_e4m3fn, jnp.float8_e5m2
FLOAT8 = (E4M3, E5M2, jnp.float8_e4m3fnuz, jnp.float8_e5m2fnuz)
META = fp8_ops.fp32_max_grad
outside_of_jit = pytest.mark.skipif(
  not fp8_ops.CAN_USE_EARRAY, reason='JAX has such arrays inside of jit only'
)


@pytest.mark.parametrize('name', NAMES)
def test_signature_is_that_of_flax(name):
  flax = pytest.importorskip('flax.linen.fp8_ops')
  assert_same_signature(getattr(fp8_ops, name), getattr(flax, name))


def test_collection_is_that_of_flax():
  flax = pytest.importorskip('flax.linen.fp8_ops')
  assert fp8_ops.OVERWRITE_WITH_GRADIENT == flax.OVERWRITE_WITH_GRADIENT


@pytest.mark.parametrize('dtype', FLOAT8)
@pytest.mark.parametrize('compute', [jnp.float32, jnp.bfloat16])
def test_quantize_rounds_and_saturates(dtype, compute):
  x = jnp.array([0.0, 1.0, -1.3, 3.3, 1e6, -1e6], compute)
  scale = jnp.array([2.0])
  got = fp8_ops.quantize(x, dtype, scale, compute)
  largest = float(ml_dtypes.finfo(dtype).max)
  halved = np.clip(np.asarray(x, np.float32) / 2, -largest, largest)
  assert got.dtype == dtype
  np.testing.assert_array_equal(got, halved.astype(dtype))
  assert float(fp8_ops.get_fp8_max(dtype, compute)) == largest

  back = fp8_ops.dequantize(got, compute, scale)
  assert back.dtype == compute
  np.testing.assert_array_equal(back, fp8_ops.qdq(x, dtype, scale, compute))
  np.testing.assert_allclose(
    np.asarray(back, np.float32)[:4], np.asarray(x, np.float32)[:4], rtol=0.125
  )


def test_only_float8_has_a_float8_maximum():
  with pytest.raises(AssertionError):
    fp8_ops.get_fp8_max(jnp.float16, jnp.float32)


@pytest.mark.parametrize(
  'amax, expected',
  [(896.0, 2.0), (0.0, 3.0), (np.inf, 3.0), (np.nan, 3.0), (1e-3, 1e-3 / 448)],
)
def test_scale_takes_the_maximum_to_the_largest_float8(amax, expected):
  scale = fp8_ops.compute_scale(jnp.float32(amax), jnp.array([3.0]), 448.0)
  np.testing.assert_allclose(scale, [expected], rtol=1e-6)


def test_margin_leaves_powers_of_two_free():
  scale = fp8_ops.compute_scale(jnp.float32(448.0), jnp.ones(1), 448.0, 2)
  np.testing.assert_allclose(scale, [4.0])


def test_history_forgets_the_oldest():
  history, scale = jnp.zeros(3), jnp.ones(1)
  seen, scales = [1.0, 5.0, -2.0, 0.5, 0.25, 0.0], []
  for x in seen:
    scale, history = fp8_ops.update_fp8_meta(
      jnp.array([x, 0.0]), E4M3, scale, history
    )
    scales.append(float(scale[0]) * 448.0)
    assert float(history[0]) == abs(x)
  # The scale of a step knows the steps before it only.
  np.testing.assert_allclose(
    scales, [448.0, 1.0, 5.0, 5.0, 5.0, 2.0], rtol=1e-6
  )


DOTS = {
  'matrix': ((3, 4), (4, 5), (((1,), (0,)), ((), ()))),
  'vector': ((4,), (4,), (((0,), (0,)), ((), ()))),
  'outer': ((3,), (4,), (((), ()), ((), ()))),
  'two axes, swapped': ((2, 3, 4), (4, 5, 3), (((1, 2), (2, 0)), ((), ()))),
  'batch': ((2, 3, 4), (2, 4, 5), (((2,), (1,)), ((0,), (0,)))),
  'batch inside': ((3, 2, 4), (4, 5, 2), (((2,), (0,)), ((1,), (2,)))),
  'batch, two axes': (
    (2, 3, 4, 5),
    (5, 3, 2, 6),
    (((3, 1), (0, 1)), ((0,), (2,))),
  ),
}


@pytest.mark.parametrize('name', DOTS)
def test_transposes_are_those_of_jax(name):
  x_shape, y_shape, numbers = DOTS[name]
  x, y = normal(0, *x_shape), normal(1, *y_shape)
  product = functools.partial(lax.dot_general, dimension_numbers=numbers)
  g = normal(2, *jax.eval_shape(product, x, y).shape)
  options = dict(
    dimension_numbers=numbers, precision=None, preferred_element_type=None
  )

  @jax.jit
  def both(x, y, g):
    got = (
      fp8_ops.dot_general_transpose_lhs(g, x, y, **options),
      fp8_ops.dot_general_transpose_rhs(g, x, y, **options),
    )
    return got, jax.vjp(product, x, y)[1](g)

  for a, b in zip(*both(x, y, g)):
    assert a.shape == b.shape
    np.testing.assert_allclose(a, b, rtol=1e-5)


def test_gradient_of_rounding_is_the_identity_and_the_next_meta():
  x, scale = jnp.array([1.0, -3.1]), jnp.ones(1)
  history = jnp.array([896.0, 0.0, 0.0])

  def loss(x, scale, history, operation):
    y = operation(jnp.float32, E4M3, x, scale, history)
    return jnp.sum(y * jnp.array([2.0, 5.0]))

  grad = jax.jit(jax.grad(loss, (0, 1, 2)), static_argnums=3)
  dx, dscale, dhistory = grad(x, scale, history, fp8_ops.in_qdq)
  np.testing.assert_array_equal(dx, [2.0, 5.0])
  np.testing.assert_array_equal(dscale, [2.0])
  np.testing.assert_allclose(dhistory, [3.1, 0.0, 896.0])

  # That of the output rounds the gradient, and looks at it.
  np.testing.assert_array_equal(
    fp8_ops.out_qdq(jnp.float32, E5M2, x, scale, history), x
  )
  dx, dscale, dhistory = grad(x, scale, history, fp8_ops.out_qdq)
  np.testing.assert_array_equal(dx, [2.0, 5.0])
  np.testing.assert_allclose(dhistory, [5.0, 0.0, 896.0])


class TestMaximum:
  """The dtype whose cotangents are combined by the maximum."""

  def use_thrice(self, meta_dtype):
    def loss(x, scale, history):
      meta = [lax.convert_element_type(m, meta_dtype) for m in (scale, history)]

      def body(x, factor):
        x = fp8_ops.in_qdq(jnp.float32, E4M3, factor * x, *meta)
        return x, None

      x, _ = lax.scan(body, x, jnp.array([1.0, 2.0, 0.25]))
      return jnp.sum(x)

    return jax.grad(loss, (0, 1, 2))

  @pytest.mark.parametrize(
    'jit', [True, pytest.param(False, marks=outside_of_jit)]
  )
  def test_is_taken_over_all_uses(self, jit):
    grad = self.use_thrice(META)
    grad = jax.jit(grad) if jit else grad
    dx, scale, history = grad(
      jnp.array([2.0]), jnp.ones(1), jnp.array([896.0, 0.0])
    )
    np.testing.assert_array_equal(dx, [0.5])
    np.testing.assert_array_equal(scale, [2.0])
    np.testing.assert_array_equal(history, [4.0, 896.0])
    assert scale.dtype == history.dtype == jnp.float32

  @outside_of_jit
  def test_is_taken_outside_of_jit(self):
    """In Flax 0.12.8 this is a KeyError."""
    meta = (jnp.ones(1), jnp.zeros(2))

    def loss(*meta):
      meta = [lax.convert_element_type(m, META) for m in meta]
      xs = jnp.array([2.0]), jnp.array([-3.0])
      return sum(
        jnp.sum(fp8_ops.in_qdq(jnp.float32, E4M3, x, *meta)) for x in xs
      )

    _, history = jax.grad(loss, (0, 1))(*meta)
    np.testing.assert_array_equal(history, [3.0, 0.0])

  def test_would_be_the_sum_in_float32(self):
    _, scale, history = self.use_thrice(jnp.float32)(
      jnp.array([2.0]), jnp.ones(1), jnp.array([896.0, 0.0])
    )
    np.testing.assert_array_equal(scale, [6.0])
    np.testing.assert_array_equal(history, [7.0, 3 * 896.0])

  @outside_of_jit
  def test_neutral_element(self):
    zero = fp8_ops.Fp8MetaTyRules.zero(META)
    value = lax.convert_element_type(jnp.float32(-3.0), META)
    total = fp8_ops.Fp8MetaTyRules.add(META, zero, value)
    assert float(lax.convert_element_type(total, jnp.float32)) == -3.0
    # A float8 without infinity.
    small = fp8_ops.fp8_meta_dtype_wrapper(jnp.dtype(E4M3))
    lowest = fp8_ops.Fp8MetaTyRules.zero(small)
    assert float(lax.convert_element_type(lowest, E4M3)) == -448.0

  @outside_of_jit
  def test_is_a_dtype(self):
    assert META == fp8_ops.fm32 and hash(META) == hash(fp8_ops.fm32)
    assert repr(META) == META.name == 'fp8_meta32'
    assert jax.dtypes.issubdtype(META, fp8_ops.fp8_meta_dtype)
    assert jax.dtypes.issubdtype(META, jax.dtypes.extended)
    full = lax.full((2,), 3.0, META)
    assert full.dtype == META and full.shape == (2,)
    for function in (lambda x: x, jax.jit(lambda x: x)):
      back = lax.convert_element_type(function(full), jnp.float32)
      np.testing.assert_array_equal(back, [3.0, 3.0])

  @outside_of_jit
  def test_a_jitted_function_tells_it_from_float32(self):
    dtypes = []

    @jax.jit
    def function(x):
      dtypes.append(x.dtype)
      return lax.convert_element_type(x, jnp.float32)

    x = jnp.ones(2)
    for argument in (x, lax.convert_element_type(x, META), x):
      np.testing.assert_array_equal(function(argument), x)
    assert dtypes == [jnp.float32, META]

  @outside_of_jit
  def test_converts_to_its_own_float_only(self):
    with pytest.raises(ValueError, match='fp8_meta32'):
      lax.convert_element_type(jnp.ones(2, jnp.bfloat16), META)
    with pytest.raises(ValueError, match='fp8_meta32'):
      lax.convert_element_type(lax.full((2,), 1.0, META), jnp.bfloat16)


@settings(max_examples=8, deadline=None)
@given(
  st.lists(st.floats(-1e4, 1e4, width=32), min_size=4, max_size=4),
  st.floats(0.5, 100.0, width=32),
)
def test_product_is_that_of_the_rounded_operands(values, amax):
  x = jnp.array(values, jnp.float32).reshape(2, 2)
  kernel = jnp.array([[1.0, -0.3], [0.7, 2.0]])
  history, one = jnp.full((2,), amax), jnp.ones(1)
  numbers = (((1,), (0,)), ((), ()))
  scale = jnp.array([amax / 448.0], jnp.float32)
  got = fp8_ops.fp8_scaled_dot_general(
    x,
    kernel,
    numbers,
    preferred_element_type=jnp.float32,
    lhs_scale=one,
    rhs_scale=one,
    grad_scale=one,
    lhs_amax_history=history,
    rhs_amax_history=history,
    grad_amax_history=history,
  )
  rounded = [fp8_ops.qdq(m, E4M3, scale, jnp.float32) for m in (x, kernel)]
  np.testing.assert_allclose(got, rounded[0] @ rounded[1], rtol=1e-4, atol=1e-4)


def test_products_with_precision():
  numbers = (((1,), (0,)), ((), ()))
  x, y = jnp.ones((2, 3)), jnp.full((3, 2), 2.0)
  dot = functools.partial(
    fp8_ops.dot_general_with_precision, dimension_numbers=numbers
  )
  text = str(jax.make_jaxpr(lambda x, y: jax.jvp(dot, (x, y), (x, y)))(x, y))
  assert text.count('precision=(Precision.DEFAULT') == 1 or (
    text.count('precision=Precision.DEFAULT') == 1
  )
  assert text.count('HIGHEST') >= 2
  _, tangent = jax.jvp(dot, (x, y), (x, y))
  np.testing.assert_array_equal(tangent, 2 * (x @ y))


def warned(function):
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    function()
  return [str(w.message) for w in caught]


def test_warnings():
  numbers = (((1,), (0,)), ((), ()))
  x, one, history = jnp.ones((1, 1)), jnp.ones(1), jnp.zeros(2)
  meta = {
    f'{of}_{what}': value
    for of in ('lhs', 'rhs', 'grad')
    for what, value in (('scale', one), ('amax_history', history))
  }
  assert warned(
    lambda: fp8_ops.fp8_scaled_dot_general(
      x, x, numbers, 'highest', jnp.float32, **meta
    )
  ) == [
    'The function fp8_scaled_dot_general will set the "precision" and '
    'disregard any provided "precision" argument.'
  ]
  assert warned(
    lambda: fp8_ops.dot_general_with_precision(x, x, numbers, 'highest')
  ) == [
    'The function dot_general_with_precision will set the '
    'precision/preferred_element_type and disregard any provided values.'
  ]
  assert warned(fp8_ops.Fp8DotGeneralOp) == [
    'The Fp8DotGeneralOp is deprecated. Use Fp8DirectDotGeneralOp or '
    'Fp8Einsum instead.'
  ]
  assert warned(fp8_ops.NANOOFp8DotGeneralOp) == []


def test_steps_of_training_follow_the_data():
  """Two steps by hand, as in the layers' documentation."""
  layer = nn.Dense(
    2,
    use_bias=False,
    kernel_init=nn.initializers.ones,
    dot_general_cls=functools.partial(
      nn.Fp8DirectDotGeneralOp, amax_history_length=2
    ),
  )
  variables = jax.jit(layer.init)(jax.random.key(0), jnp.ones((1, 2)))
  meta = variables['_overwrite_with_gradient']
  (op,) = meta
  assert op == 'Fp8DirectDotGeneralOp_0'
  assert {k: v.shape for k, v in meta[op].items()} == {
    'input_amax_history': (2,),
    'kernel_amax_history': (2,),
    'output_grad_amax_history': (2,),
    'input_scale': (1,),
    'kernel_scale': (1,),
    'output_grad_scale': (1,),
  }

  @jax.jit
  @jax.grad
  def next_values(variables, x):
    return jnp.sum(layer.apply(variables, x)) * 8.0

  params = variables['params']
  for x in (3.0, 5.0):
    grads = next_values(
      {'params': params, '_overwrite_with_gradient': meta},
      jnp.full((1, 2), x),
    )
    meta = grads['_overwrite_with_gradient']
  np.testing.assert_array_equal(meta[op]['input_amax_history'], [5.0, 3.0])
  np.testing.assert_allclose(meta[op]['input_scale'], [3.0 / 448])
  np.testing.assert_allclose(meta[op]['kernel_scale'], [1.0 / 448])
  np.testing.assert_allclose(meta[op]['output_grad_scale'], [8.0 / 57344])
  # The input is clipped at the maximum of the step before.
  np.testing.assert_allclose(
    grads['params']['kernel'], np.full((2, 2), 24.0), rtol=1e-6
  )


def test_no_key_is_traced():
  layer = nn.Dense(2, dot_general_cls=nn.Fp8DirectDotGeneralOp)
  x = jnp.ones((1, 2))
  variables = jax.eval_shape(layer.init, jax.random.key(0), x)
  assert 'random' not in str(jax.make_jaxpr(layer.apply)(variables, x))


def test_einsum_is_that_of_flax():
  flax = pytest.importorskip('flax.linen')
  x, kernel = (
    jnp.linspace(-1, 3, 12).reshape(2, 3, 2),
    jnp.ones((2, 4), 'bfloat16'),
  )
  results = []
  for namespace in (nn, flax):
    einsum = namespace.Fp8Einsum(amax_history_length=4)
    variables = einsum.init(jax.random.key(0), 'bij,jk->bik', x, kernel)

    def loss(variables, x, kernel, einsum=einsum):
      y = einsum.apply(variables, 'bij,jk->bik', x, kernel)
      assert y.dtype == jnp.bfloat16
      return jnp.sum(y.astype(jnp.float32) ** 2)

    grad = jax.jit(jax.grad(loss, (0, 1, 2)))
    meta = dict(variables['_overwrite_with_gradient'])
    args = ({'_overwrite_with_gradient': meta}, x, kernel)
    results.append((grad(*args), grad.lower(*args).as_text()))
  ours, theirs = results
  assert ours[1] == theirs[1]
  jax.tree_util.tree_map(np.testing.assert_array_equal, ours[0], theirs[0])
