"""Products in 8-bit floating point, with scales that follow the data.

An operand is divided by a scale, clipped and cast to float8; the product is
multiplied by the scales again. The scale comes from the largest absolute values
(`amax`) of past steps, so a step need not look at its data twice. Scales and
histories are variables, in the collection `OVERWRITE_WITH_GRADIENT`: their
"gradient" is their next value, by which an optimizer is to overwrite them (as
`haiku_state.training.train_state.TrainState` does).

Where one such variable serves several products, their "gradients" must be
combined by the maximum, not by the sum. A float32 that is converted to the
dtype `fp32_max_grad` before use is combined so.

Sources: Micikevicius et al., "FP8 Formats for Deep Learning"
(arXiv:2209.05433), and the delayed scaling of NVIDIA's Transformer Engine.
"""

import dataclasses
import functools
import itertools
import warnings
from typing import Any

import jax
import numpy as np
from jax import core, dtypes, lax
from jax import numpy as jnp
from jax.typing import DTypeLike

from haiku_state._versions import HAS_EXTENDED_ARRAYS
from haiku_state.linen import initializers
from haiku_state.linen.module import Module

DType = Any

OVERWRITE_WITH_GRADIENT = '_overwrite_with_gradient'

# An array of an extended dtype can live outside of `jax.jit`, too.
CAN_USE_EARRAY = HAS_EXTENDED_ARRAYS


class Fp8MetaTyRules:
  """Tells JAX how to treat a `fp8_meta_dtype_wrapper`."""

  @staticmethod
  def physical_element_aval(dtype) -> core.ShapedArray:
    """What one element is stored as."""
    return core.ShapedArray((), dtype.float_dtype)

  @staticmethod
  def convert_from(fp8_meta_dtype, other_dtype) -> bool:
    """Whether `lax.convert_element_type` may convert to `other_dtype`."""
    return fp8_meta_dtype.float_dtype == other_dtype

  @staticmethod
  def convert_to(other_dtype, fp8_meta_dtype) -> bool:
    """Whether `lax.convert_element_type` may convert from `other_dtype`."""
    return fp8_meta_dtype.float_dtype == other_dtype

  @staticmethod
  def add(dt, x, y):
    """What differentiation does with two cotangents: the maximum."""
    del dt  # Outside of `jax.jit`, what JAX passes here is no dtype.
    dtype = x.dtype
    x, y = (lax.convert_element_type(z, dtype.float_dtype) for z in (x, y))
    return lax.convert_element_type(lax.max(x, y), dtype)

  @staticmethod
  def zero(dt):
    """The neutral element of `add`."""
    lowest = np.array(-np.inf, dt.float_dtype)
    if not np.isinf(lowest):
      lowest = np.array(jnp.finfo(dt.float_dtype).min, dt.float_dtype)
    return lax.convert_element_type(lowest, dt)

  @staticmethod
  def tangent_dtype(dtype):
    """The dtype of cotangents: the same."""
    return dtype

  @staticmethod
  def full(shape, fill_value, dtype):
    """What `lax.full` does."""
    fill_value = lax.convert_element_type(fill_value, dtype.float_dtype)
    filled = lax.full(shape, fill_value, dtype.float_dtype)
    return lax.convert_element_type(filled, dtype)

  @staticmethod
  def global_sharded_result_handler(aval, out_sharding, committed):
    """What makes an array of the buffers that a computation returns."""

    def array_of(buffers):
      if not CAN_USE_EARRAY:
        raise NotImplementedError(
          f'On this version of JAX, arrays of dtype {aval.dtype} exist inside'
          ' of `jax.jit` only: call the function that converts to it there.'
        )
      array: Any = jax.make_array_from_single_device_arrays(
        aval.shape, out_sharding, buffers, dtype=aval.dtype.float_dtype
      )
      array.aval = aval
      return array

    return array_of


class fp8_meta_dtype(dtypes.extended):  # noqa: N801
  """Is what `jax.dtypes.issubdtype` calls all such dtypes."""


# JAX makes extended dtypes by a base class without a public name; the public
# dtype of a random key has it as its base.
_ExtendedDType: Any = type(jax.eval_shape(jax.random.key, 0).dtype).__base__


@dataclasses.dataclass(frozen=True)
class fp8_meta_dtype_wrapper(_ExtendedDType):  # noqa: N801
  """Is a float dtype whose cotangents are combined by the maximum.

  >>> import jax, jax.numpy as jnp
  >>> from haiku_state.linen import fp8_ops
  >>> def loss(history, xs):
  ...   meta = (jnp.ones((1,)), history)
  ...   meta = [jax.lax.convert_element_type(m, fp8_ops.fm32) for m in meta]
  ...   f32, e4m3 = jnp.float32, jnp.float8_e4m3fn
  ...   return sum(jnp.sum(fp8_ops.in_qdq(f32, e4m3, x, *meta)) for x in xs)
  >>> xs = [jnp.array([2.0]), jnp.array([-3.0])]
  >>> print(jax.jit(jax.grad(loss))(jnp.zeros((2,)), xs))
  [3. 0.]

  Attributes:
    float_dtype: the dtype in which the values are stored.
  """

  float_dtype: Any
  _rules: Any = Fp8MetaTyRules
  type: Any = fp8_meta_dtype

  def __repr__(self) -> str:
    return f'fp8_meta{jnp.finfo(self.float_dtype).bits}'

  name = property(__repr__)


fm32 = fp8_meta_dtype_wrapper(jnp.float32)
fp32_max_grad = fp8_meta_dtype_wrapper(jnp.float32)


def _as_float32(meta):
  if meta.dtype == fm32:
    return lax.convert_element_type(meta, jnp.float32)
  return meta


def get_fp8_max(fp8_dtype, out_dtype):
  """Returns the largest finite number of `fp8_dtype`, as `out_dtype`.

  >>> import jax.numpy as jnp
  >>> from haiku_state.linen import fp8_ops
  >>> float(fp8_ops.get_fp8_max(jnp.float8_e4m3fn, jnp.float32))
  448.0

  Args:
    fp8_dtype: e4m3fn, e5m2, or the same of AMD, e4m3fnuz and e5m2fnuz.
    out_dtype: the dtype of the result.

  Returns:
    A scalar.
  """
  assert fp8_dtype in (
    jnp.float8_e4m3fn,
    jnp.float8_e5m2,
    jnp.float8_e4m3fnuz,
    jnp.float8_e5m2fnuz,
  )
  return jnp.finfo(fp8_dtype).max.astype(out_dtype)


def quantize(x, q_dtype, scale, compute_dtype):
  """Divides by the scale, clips and casts to `q_dtype`.

  >>> import jax.numpy as jnp
  >>> from haiku_state.linen import fp8_ops
  >>> x, scale = jnp.array([1.0, 3.1, 1e4]), jnp.ones((1,))
  >>> fp8_ops.quantize(x, jnp.float8_e4m3fn, scale, jnp.float32)
  Array([1, 3, 448], dtype=float8_e4m3fn)

  Args:
    x: an array.
    q_dtype: a float8 dtype.
    scale: a float32 that broadcasts to the shape of `x`.
    compute_dtype: the dtype in which to divide and clip.

  Returns:
    An array like `x`, of dtype `q_dtype`.
  """
  # In the dtype of the computation, or else all of it would be in float32.
  largest = get_fp8_max(q_dtype, compute_dtype)
  scaled = x / jnp.broadcast_to(scale.astype(compute_dtype), x.shape)
  return jnp.clip(scaled, -largest, largest).astype(q_dtype)


def dequantize(x, dq_dtype, scale):
  """Casts to `dq_dtype` and multiplies by the scale: undoes `quantize`.

  Args:
    x: an array of a float8 dtype.
    dq_dtype: the dtype of the result.
    scale: a float32 that broadcasts to the shape of `x`.

  Returns:
    An array like `x`, of dtype `dq_dtype`.
  """
  return x.astype(dq_dtype) * jnp.broadcast_to(scale.astype(dq_dtype), x.shape)


def qdq(x, q_dtype, scale, compute_dtype):
  """Rounds to what `q_dtype` can hold, and keeps the dtype.

  >>> import jax.numpy as jnp
  >>> from haiku_state.linen import fp8_ops
  >>> x, scale = jnp.array([1.0, 3.1, 1e4]), jnp.ones((1,))
  >>> fp8_ops.qdq(x, jnp.float8_e4m3fn, scale, jnp.float32)
  Array([  1.,   3., 448.], dtype=float32)

  Args:
    x: an array.
    q_dtype: a float8 dtype.
    scale: a float32 that broadcasts to the shape of `x`.
    compute_dtype: the dtype in which to divide and clip.

  Returns:
    An array like `x`.
  """
  return dequantize(quantize(x, q_dtype, scale, compute_dtype), x.dtype, scale)


def compute_scale(amax, scale, fp8_max, margin=0):
  """Computes the scale that takes `amax` to the largest float8.

  It is `amax * 2**margin / fp8_max`, by the steps of Transformer Engine,
  whose scale is the reciprocal of this one.

  Args:
    amax: the largest absolute value of past steps, a scalar.
    scale: the scale so far, which stays where `amax` is zero or not finite.
    fp8_max: the largest number of the float8 dtype.
    margin: how many powers of two to leave free.

  Returns:
    The new scale, of the shape of `scale`.
  """
  inverse = 1.0 / scale
  wanted = (fp8_max / amax) / (2**margin)
  wanted = jnp.where(amax > 0.0, wanted, inverse)
  wanted = jnp.where(jnp.isfinite(amax), wanted, inverse)
  return 1.0 / wanted


def compute_amax_history(x, amax_history):
  """Enters the largest absolute value of `x`, and forgets the oldest.

  >>> import jax.numpy as jnp
  >>> from haiku_state.linen import fp8_ops
  >>> fp8_ops.compute_amax_history(jnp.array([1.0, -5.0]), jnp.arange(3.0))
  Array([5., 2., 0.], dtype=float32)

  Args:
    x: an array.
    amax_history: `[amax_history_length]`.

  Returns:
    The next history: the new value first, the rest rotated by one.
  """
  amax = jnp.max(jnp.abs(x)).astype(amax_history.dtype)
  return jnp.roll(amax_history, shift=-1, axis=0).at[0].set(amax)


def update_fp8_meta(x, q_dtype, scale, amax_history):
  """Computes the next scale, from the past, and the next history, from `x`.

  Args:
    x: an array.
    q_dtype: the float8 dtype that it will be cast to.
    scale: the scale so far, float32 or `fm32`.
    amax_history: `[amax_history_length]`, likewise.

  Returns:
    Scale and history, of the dtype `fm32` if both were.
  """
  is_meta = scale.dtype == fm32 and amax_history.dtype == fm32
  if is_meta:
    amax_history = lax.convert_element_type(amax_history, jnp.float32)
    scale = lax.convert_element_type(scale, jnp.float32)

  largest = get_fp8_max(q_dtype, jnp.float32)
  new_scale = compute_scale(jnp.max(amax_history, axis=0), scale, largest)
  new_history = compute_amax_history(x, amax_history)

  if is_meta:
    new_history = lax.convert_element_type(new_history, fp32_max_grad)
    new_scale = lax.convert_element_type(new_scale, fp32_max_grad)
  return new_scale, new_history


def quantize_dequantize_update(x, q_dtype, scale, amax_history, compute_dtype):
  """Rounds to `q_dtype` by the next scale; see `qdq` and `update_fp8_meta`.

  Returns:
    The rounded `x`, the next scale and the next history.
  """
  scale, history = update_fp8_meta(x, q_dtype, scale, amax_history)
  return qdq(x, q_dtype, _as_float32(scale), compute_dtype), scale, history


def dot_general_transpose_lhs(
  g,
  x,
  y,
  *,
  dimension_numbers,
  precision,
  preferred_element_type: DTypeLike | None,
  swap_ans=False,
):
  """Computes the cotangent of the left operand of `lax.dot_general`.

  >>> import jax.numpy as jnp
  >>> from haiku_state.linen import fp8_ops
  >>> g, x, y = jnp.ones((2, 4)), jnp.ones((2, 3)), jnp.ones((3, 4))
  >>> fp8_ops.dot_general_transpose_lhs(
  ...   g, x, y, dimension_numbers=(((1,), (0,)), ((), ())), precision=None,
  ...   preferred_element_type=None,
  ... ).shape
  (2, 3)

  Args:
    g: the cotangent of the product.
    x: the left operand; only its rank matters.
    y: the right operand.
    dimension_numbers: those of the product.
    precision: as of `jax.lax.Precision`, for this product.
    preferred_element_type: the dtype of the result.
    swap_ans: whether the operands were swapped, so that in `g` the axes of `y`
      come before those of `x`.

  Returns:
    An array of the shape of `x`.
  """
  (x_contract, y_contract), (x_batch, y_batch) = dimension_numbers
  x_kept = _axes_but(x, x_contract, x_batch)
  y_kept = _axes_but(y, y_contract, y_batch)
  # The axes of `g`: batch, then what each operand kept.
  first = len(x_batch) + (0 if swap_ans else len(x_kept))
  g_of_y = range(first, first + len(y_kept))
  g_batch = range(len(x_batch))
  product = lax.dot_general(
    g,
    y,
    ((g_of_y, y_kept), (g_batch, y_batch)),
    precision=precision,
    preferred_element_type=preferred_element_type,
  )
  # The axes of `product`, named by the axes of `x` that they belong to; those
  # from `y` come in the order in which `y` has them.
  contracted = [x_contract[i] for i in np.argsort(y_contract)]
  of_x = [*x_batch, *x_kept, *contracted]
  return lax.transpose(product, tuple(np.argsort(of_x)))


def _axes_but(x, *taken):
  taken = set(itertools.chain(*taken))
  return [axis for axis in range(np.ndim(x)) if axis not in taken]


def dot_general_transpose_rhs(
  g,
  x,
  y,
  *,
  dimension_numbers,
  precision,
  preferred_element_type: DTypeLike | None,
):
  """Computes the cotangent of the right operand of `lax.dot_general`.

  Args:
    g: the cotangent of the product.
    x: the left operand.
    y: the right operand; only its rank matters.
    dimension_numbers: those of the product.
    precision: as of `jax.lax.Precision`, for this product.
    preferred_element_type: the dtype of the result.

  Returns:
    An array of the shape of `y`.
  """
  (x_contract, y_contract), (x_batch, y_batch) = dimension_numbers
  return dot_general_transpose_lhs(
    g,
    y,
    x,
    dimension_numbers=((y_contract, x_contract), (y_batch, x_batch)),
    precision=precision,
    preferred_element_type=preferred_element_type,
    swap_ans=True,
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def in_qdq(compute_dtype, q_dtype, inp, scale, amax_history):
  """Rounds an operand to `q_dtype`.

  Gradients pass through it as they are; those of scale and history are their
  next values.

  >>> import jax, jax.numpy as jnp
  >>> from haiku_state.linen import fp8_ops
  >>> def loss(x, scale, history):
  ...   x = fp8_ops.in_qdq(jnp.float32, jnp.float8_e4m3fn, x, scale, history)
  ...   return jnp.sum(x)
  >>> grads = jax.grad(loss, (0, 1, 2))(
  ...   jnp.array([2.0, 3.0]), jnp.ones((1,)), jnp.array([448.0, 0.0])
  ... )
  >>> for grad in grads:
  ...   print(grad)
  [1. 1.]
  [1.]
  [  3. 448.]

  Args:
    compute_dtype: the dtype in which to round.
    q_dtype: a float8 dtype.
    inp: an array.
    scale: float32 or `fm32`, `[1]`.
    amax_history: likewise, `[amax_history_length]`.

  Returns:
    An array like `inp`.
  """
  return quantize_dequantize_update(
    inp, q_dtype, scale, amax_history, compute_dtype
  )[0]


def in_qdq_fwd(compute_dtype, q_dtype, inp, scale, amax_history):
  """Is the forward rule of `in_qdq`."""
  rounded, *meta = quantize_dequantize_update(
    inp, q_dtype, scale, amax_history, compute_dtype
  )
  return rounded, tuple(meta)


def in_qdq_bwd(compute_dtype, q_dtype, res, g):
  """Is the backward rule of `in_qdq`."""
  del compute_dtype, q_dtype
  return g, *res


in_qdq.defvjp(in_qdq_fwd, in_qdq_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def out_qdq(compute_dtype, q_dtype, out, scale, amax_history):
  """Leaves a product as it is, and rounds its gradient to `q_dtype`.

  The gradients of scale and history are their next values.

  Args:
    compute_dtype: the dtype in which to round.
    q_dtype: a float8 dtype.
    out: an array.
    scale: float32 or `fm32`, `[1]`.
    amax_history: likewise, `[amax_history_length]`.

  Returns:
    `out`.
  """
  del compute_dtype, q_dtype, scale, amax_history
  return out


def out_qdq_fwd(compute_dtype, q_dtype, out, scale, amax_history):
  """Is the forward rule of `out_qdq`."""
  del compute_dtype, q_dtype
  return out, (scale, amax_history)


def out_qdq_bwd(compute_dtype, q_dtype, res, g):
  """Is the backward rule of `out_qdq`."""
  scale, history = res
  return quantize_dequantize_update(g, q_dtype, scale, history, compute_dtype)


out_qdq.defvjp(out_qdq_fwd, out_qdq_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def in_q(compute_dtype, q_dtype, inp, scale, amax_history):
  """Casts an operand to `q_dtype`; `quantized_dot` sees to its gradient.

  The gradients of scale and history are their next values.

  Args:
    compute_dtype: the dtype in which to divide and clip.
    q_dtype: a float8 dtype.
    inp: an array.
    scale: float32 or `fm32`, `[1]`.
    amax_history: likewise, `[amax_history_length]`.

  Returns:
    An array of dtype `q_dtype`, and the scale that was used.
  """
  outputs, _ = in_q_fwd(compute_dtype, q_dtype, inp, scale, amax_history)
  return outputs


def in_q_fwd(compute_dtype, q_dtype, inp, scale, amax_history):
  """Is the forward rule of `in_q`."""
  meta = update_fp8_meta(inp, q_dtype, scale, amax_history)
  quantized = quantize(inp, q_dtype, _as_float32(meta[0]), compute_dtype)
  return (quantized, meta[0]), meta


def in_q_bwd(compute_dtype, q_dtype, res, _):
  """Is the backward rule of `in_q`."""
  del compute_dtype, q_dtype
  return None, *res


in_q.defvjp(in_q_fwd, in_q_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def out_dq(dq_type, lhs_scale, rhs_scale, out):
  """Multiplies a product by the scales of both operands.

  Gradients pass through it as they are: `quantized_dot` scales them.

  Args:
    dq_type: the dtype of the result.
    lhs_scale: float32 or `fm32`, `[1]`.
    rhs_scale: likewise.
    out: the product of the quantized operands.

  Returns:
    An array like `out`, of dtype `dq_type`.
  """
  return dequantize(
    out, dq_type, _as_float32(lhs_scale) * _as_float32(rhs_scale)
  )


def out_dq_fwd(dq_type, lhs_scale, rhs_scale, out):
  """Is the forward rule of `out_dq`."""
  return out_dq(dq_type, lhs_scale, rhs_scale, out), None


def out_dq_bwd(dq_type, _, g):
  """Is the backward rule of `out_dq`."""
  del dq_type
  return None, None, g


out_dq.defvjp(out_dq_fwd, out_dq_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(8, 9))
def quantized_dot(
  lhs,
  q_lhs,
  lhs_scale,
  rhs,
  q_rhs,
  rhs_scale,
  out_grad_scale,
  out_grad_amax_history,
  dimension_numbers,
  preferred_element_type=None,
):
  """Multiplies quantized operands, and quantizes the gradient likewise.

  Args:
    lhs: the left operand before it was quantized: it gets the gradient.
    q_lhs: the left operand.
    lhs_scale: its scale in this step.
    rhs: the right operand before it was quantized.
    q_rhs: the right operand.
    rhs_scale: its scale in this step.
    out_grad_scale: the scale of the product's gradient in the step before.
    out_grad_amax_history: its history.
    dimension_numbers: as of `lax.dot_general`.
    preferred_element_type: the dtype of product and gradients.

  Returns:
    The product, not yet multiplied by the scales.
  """
  del lhs, lhs_scale, rhs, rhs_scale, out_grad_scale, out_grad_amax_history
  return lax.dot_general(
    q_lhs,
    q_rhs,
    dimension_numbers,
    precision=lax.Precision.DEFAULT,
    preferred_element_type=preferred_element_type,
  )


def quantized_dot_fwd(
  lhs,
  q_lhs,
  lhs_scale,
  rhs,
  q_rhs,
  rhs_scale,
  out_grad_scale,
  out_grad_amax_history,
  dimension_numbers,
  preferred_element_type,
):
  """Is the forward rule of `quantized_dot`."""
  res = (
    lhs,
    q_lhs,
    lhs_scale,
    rhs,
    q_rhs,
    rhs_scale,
    out_grad_scale,
    out_grad_amax_history,
  )
  # The product itself: the primal function would appear as a call.
  product = lax.dot_general(
    q_lhs,
    q_rhs,
    dimension_numbers,
    precision=lax.Precision.DEFAULT,
    preferred_element_type=preferred_element_type,
  )
  return product, res


def quantized_dot_bwd(dimension_numbers, preferred_element_type, res, g):
  """Is the backward rule of `quantized_dot`."""
  lhs, q_lhs, lhs_scale, rhs, q_rhs, rhs_scale, g_scale, g_history = res
  g_meta = update_fp8_meta(g, jnp.float8_e5m2, g_scale, g_history)
  g_scale = g_meta[0]
  q_g = quantize(
    g, jnp.float8_e5m2, _as_float32(g_scale), preferred_element_type
  )
  options: dict[str, Any] = dict(
    dimension_numbers=dimension_numbers,
    precision=lax.Precision.HIGHEST,
    preferred_element_type=preferred_element_type,
  )
  # Each gradient is scaled by the two factors that it is the product of.
  grad_lhs = dequantize(
    dot_general_transpose_lhs(q_g, lhs, q_rhs, **options),
    preferred_element_type,
    _as_float32(rhs_scale) * _as_float32(g_scale),
  )
  grad_rhs = dequantize(
    dot_general_transpose_rhs(q_g, q_lhs, rhs, **options),
    preferred_element_type,
    _as_float32(lhs_scale) * _as_float32(g_scale),
  )
  return grad_lhs, None, None, grad_rhs, None, None, *g_meta


quantized_dot.defvjp(quantized_dot_fwd, quantized_dot_bwd)


def fp8_scaled_dot_general(
  lhs,
  rhs,
  dimension_numbers,
  precision=None,
  preferred_element_type=None,
  *,
  lhs_scale=None,
  rhs_scale=None,
  grad_scale=None,
  lhs_amax_history=None,
  rhs_amax_history=None,
  grad_amax_history=None,
  quantize_compute_type=jnp.float32,
) -> Any:
  """Does what `lax.dot_general` does, in float8.

  The operands become e4m3fn, the gradient of the product becomes e5m2.

  >>> import jax.numpy as jnp
  >>> from haiku_state.linen import fp8_ops
  >>> one, none = jnp.ones((1,)), jnp.zeros((16,))
  >>> fp8_ops.fp8_scaled_dot_general(
  ...   jnp.full((1, 2), 3.1), jnp.ones((2, 1)), (((1,), (0,)), ((), ())),
  ...   preferred_element_type=jnp.float32, lhs_scale=one, rhs_scale=one,
  ...   grad_scale=one, lhs_amax_history=none, rhs_amax_history=none,
  ...   grad_amax_history=none,
  ... )
  Array([[6.]], dtype=float32)

  Args:
    lhs: the left operand.
    rhs: the right operand.
    dimension_numbers: as of `lax.dot_general`.
    precision: None; the precision is given by what is computed.
    preferred_element_type: the dtype of the product.
    lhs_scale: float32 or `fm32`, `[1]`.
    rhs_scale: likewise.
    grad_scale: likewise.
    lhs_amax_history: float32 or `fm32`, `[amax_history_length]`.
    rhs_amax_history: likewise.
    grad_amax_history: likewise.
    quantize_compute_type: the dtype in which to divide and clip.

  Returns:
    The product.
  """
  if precision is not None:
    warnings.warn(
      'The function fp8_scaled_dot_general will set the "precision" and '
      'disregard any provided "precision" argument.',
      stacklevel=2,
    )
  q_lhs, lhs_scale = in_q(  # pyright: ignore[reportGeneralTypeIssues]
    quantize_compute_type, jnp.float8_e4m3fn, lhs, lhs_scale, lhs_amax_history
  )
  q_rhs, rhs_scale = in_q(  # pyright: ignore[reportGeneralTypeIssues]
    quantize_compute_type, jnp.float8_e4m3fn, rhs, rhs_scale, rhs_amax_history
  )
  y = quantized_dot(
    lhs,
    q_lhs,
    lhs_scale,
    rhs,
    q_rhs,
    rhs_scale,
    grad_scale,
    grad_amax_history,
    dimension_numbers,
    preferred_element_type,
  )
  return out_dq(preferred_element_type, lhs_scale, rhs_scale, y)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3, 4))
def dot_general_with_precision(
  lhs, rhs, dimension_numbers, precision=None, preferred_element_type=None
):
  """Multiplies with the default precision, and its gradients with the highest.

  Args:
    lhs: the left operand.
    rhs: the right operand.
    dimension_numbers: as of `lax.dot_general`.
    precision: None.
    preferred_element_type: None.

  Returns:
    The product.
  """
  if precision is not None or preferred_element_type is not None:
    warnings.warn(
      'The function dot_general_with_precision will set the '
      'precision/preferred_element_type and disregard any provided '
      'values.',
      stacklevel=2,
    )
  return lax.dot_general(
    lhs, rhs, dimension_numbers, precision=lax.Precision.DEFAULT
  )


@dot_general_with_precision.defjvp
def dot_general_with_precision_jvp(
  dimension_numbers, precision, preferred_element_type, primals, tangents
):
  """Is the forward-mode rule of `dot_general_with_precision`."""
  del precision, preferred_element_type
  lhs, rhs = primals
  lhs_dot, rhs_dot = tangents
  exact = functools.partial(
    lax.dot_general,
    dimension_numbers=dimension_numbers,
    precision=lax.Precision.HIGHEST,
  )
  out = lax.dot_general(
    lhs, rhs, dimension_numbers, precision=lax.Precision.DEFAULT
  )
  return out, exact(lhs_dot, rhs) + exact(lhs, rhs_dot)


class Fp8DotGeneralBase(Module):
  """Keeps scale and history of two operands and of their product's gradient.

  For `input`, `kernel` and `output_grad` each, in the collection
  `OVERWRITE_WITH_GRADIENT`: `*_scale`, float32 `[1]`, at first one, and
  `*_amax_history`, float32 `[amax_history_length]`, at first zero.

  Attributes:
    amax_history_length: how many steps the scale looks back.
    e4m3_dtype: the dtype of the operands.
    e5m2_dtype: the dtype of the gradient.
  """

  amax_history_length: int = 1024
  e4m3_dtype: DType = jnp.float8_e4m3fn
  e5m2_dtype: DType = jnp.float8_e5m2

  def setup(self) -> None:
    # These initializers do not look at their key, so none is made.
    history = (
      initializers.zeros_init(),
      None,
      (self.amax_history_length,),
      jnp.float32,
    )
    scale = (initializers.ones_init(), None, (1,), jnp.float32)
    variable = functools.partial(self.variable, OVERWRITE_WITH_GRADIENT)
    self.input_amax_history = variable('input_amax_history', *history)
    self.kernel_amax_history = variable('kernel_amax_history', *history)
    self.output_grad_amax_history = variable(
      'output_grad_amax_history', *history
    )
    self.input_scale = variable('input_scale', *scale)
    self.kernel_scale = variable('kernel_scale', *scale)
    self.output_grad_scale = variable('output_grad_scale', *scale)


def _operands(lhs, rhs, dimension_numbers):
  # Casts to the dtype of the kernel: that is the dtype of the layer.
  return jnp.asarray(lhs, rhs.dtype), rhs, dimension_numbers


class Fp8DotGeneralOp(Fp8DotGeneralBase):
  """Rounds operands and gradient to float8, and multiplies as before.

  Compilers recognize the pattern and multiply in float8. Deprecated in favour
  of `Fp8DirectDotGeneralOp`, which does not leave it to them.

  Attributes: those of `Fp8DotGeneralBase`.

  >>> import jax, jax.numpy as jnp
  >>> import haiku_state.linen as nn
  >>> model = nn.Dense(2, dot_general_cls=nn.Fp8DotGeneralOp)
  >>> variables = model.init(jax.random.key(0), jnp.ones((1, 3)))
  >>> sorted(variables)
  ['_overwrite_with_gradient', 'params']
  """

  def __post_init__(self):
    super().__post_init__()
    if type(self) is Fp8DotGeneralOp:
      warnings.warn(
        'The Fp8DotGeneralOp is deprecated. Use Fp8DirectDotGeneralOp or '
        'Fp8Einsum instead.',
        DeprecationWarning,
        stacklevel=2,
      )

  def __call__(self, *args, **kwargs):
    """Multiplies.

    Args:
      *args: operands and dimension numbers, as of `lax.dot_general`.
      **kwargs: its other arguments, which a layer passes along; precision and
        dtype are given by what is computed.

    Returns:
      The product, of the dtype of the right operand.
    """
    del kwargs
    lhs, rhs, dimension_numbers = _operands(*args)
    dtype = rhs.dtype
    lhs = in_qdq(
      dtype,
      self.e4m3_dtype,
      lhs,
      self.input_scale.value,
      self.input_amax_history.value,
    )
    rhs = in_qdq(
      dtype,
      self.e4m3_dtype,
      rhs,
      self.kernel_scale.value,
      self.kernel_amax_history.value,
    )
    return out_qdq(
      dtype,
      self.e5m2_dtype,
      dot_general_with_precision(lhs, rhs, dimension_numbers),
      self.output_grad_scale.value,
      self.output_grad_amax_history.value,
    )


class Fp8DirectDotGeneralOp(Fp8DotGeneralBase):
  """Multiplies in float8: give it to a layer as `dot_general_cls`.

  >>> import jax, jax.numpy as jnp
  >>> import haiku_state.linen as nn
  >>> dense = nn.Dense(4, dot_general_cls=nn.Fp8DirectDotGeneralOp)
  >>> x = jnp.ones((2, 3))
  >>> variables = dense.init(jax.random.key(0), x)
  >>> sorted(variables)
  ['_overwrite_with_gradient', 'params']
  >>> dense.apply(variables, x).shape
  (2, 4)

  Attributes: those of `Fp8DotGeneralBase`.
  """

  def __call__(self, *args, **kwargs):
    """Multiplies.

    Args:
      *args: operands and dimension numbers, as of `lax.dot_general`.
      **kwargs: its other arguments, which a layer passes along; precision and
        dtype are given by what is computed.

    Returns:
      The product, of the dtype of the right operand.
    """
    del kwargs
    lhs, rhs, dimension_numbers = _operands(*args)
    return fp8_scaled_dot_general(
      lhs,
      rhs,
      dimension_numbers,
      preferred_element_type=lhs.dtype,
      **_meta(self, rhs.dtype),
    )


def _meta(op, dtype):
  """Collects the options of `fp8_scaled_dot_general` that `op` keeps."""
  return dict(
    lhs_scale=op.input_scale.value,
    rhs_scale=op.kernel_scale.value,
    grad_scale=op.output_grad_scale.value,
    lhs_amax_history=op.input_amax_history.value,
    rhs_amax_history=op.kernel_amax_history.value,
    grad_amax_history=op.output_grad_amax_history.value,
    quantize_compute_type=dtype,
  )


class NANOOFp8DotGeneralOp(Fp8DotGeneralOp):
  """Is `Fp8DotGeneralOp` with AMD's float8, which has NaN and no infinity.

  Attributes: those of `Fp8DotGeneralBase`.

  >>> import jax, jax.numpy as jnp
  >>> import haiku_state.linen as nn
  >>> model = nn.Dense(2, dot_general_cls=nn.NANOOFp8DotGeneralOp)
  >>> variables = model.init(jax.random.key(0), jnp.ones((1, 3)))
  >>> sorted(variables)
  ['_overwrite_with_gradient', 'params']
  """

  e4m3_dtype: DType = jnp.float8_e4m3fnuz
  e5m2_dtype: DType = jnp.float8_e5m2fnuz


class Fp8Einsum(Fp8DotGeneralBase):
  """Is an einsum in float8.

  >>> import jax, jax.numpy as jnp
  >>> import haiku_state.linen as nn
  >>> x, w, einsum = jnp.ones((2, 3)), jnp.ones((3, 4)), nn.Fp8Einsum()
  >>> variables = einsum.init(jax.random.key(0), 'bi,io->bo', x, w)
  >>> einsum.apply(variables, 'bi,io->bo', x, w).shape
  (2, 4)

  Attributes: those of `Fp8DotGeneralBase`.
  """

  def __call__(
    self,
    eqn,
    lhs: jnp.ndarray,
    rhs: jnp.ndarray,
    precision: lax.Precision | None = None,
    preferred_element_type: DTypeLike | None = None,
  ) -> jnp.ndarray:
    """Computes the einsum of two operands.

    Args:
      eqn: the equation.
      lhs: the left operand.
      rhs: the right operand, e.g. a kernel; its dtype is that of the
        computation.
      precision: None; the precision is given by what is computed.
      preferred_element_type: the dtype of the product.

    Returns:
      The product.
    """
    dot_general = functools.partial(
      fp8_scaled_dot_general, **_meta(self, rhs.dtype)
    )
    return jnp.einsum(
      eqn,
      lhs.astype(rhs.dtype),
      rhs,
      precision=precision,
      preferred_element_type=preferred_element_type,
      _dot_general=dot_general,
    )


# The name before there were two of them.
Fp8DotGeneral = Fp8DirectDotGeneralOp
