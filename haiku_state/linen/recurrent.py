"""Recurrent cells, and the layers that run a cell over a sequence.

A cell takes a carry and the input of one step, and returns the next carry and
an output; `RNN` scans a cell along the time axis, `Bidirectional` runs one
`RNN` each way. In the equations `s` is the logistic function, `*`
multiplies elementwise, and a product with a `W` is a matrix product.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax import random

from haiku_state.core._initializers import as_linen
from haiku_state.core.frozen_dict import FrozenDict
from haiku_state.core.scope import CollectionFilter, PRNGSequenceFilter
from haiku_state.linen import initializers, transforms
from haiku_state.linen.activation import sigmoid, tanh
from haiku_state.linen.dtypes import promote_dtype
from haiku_state.linen.linear import Conv, Dense, default_kernel_init
from haiku_state.linen.module import Module, compact, nowrap
from haiku_state.typing import (
  Array,
  Dtype,
  Initializer,
  InOutScanAxis,
  PrecisionLike,
  PRNGKey,
)

Carry = Any
CarryHistory = Any
Output = Any


class RNNCellBase(Module):
  """Is what a cell must be for `RNN` to run it.

  A cell of your own says how its first carry looks, and how many of the last
  axes of its input are features:

  >>> import jax, jax.numpy as jnp
  >>> import haiku_state.linen as nn
  >>> class Sum(nn.RNNCellBase):
  ...   def __call__(self, carry, x):
  ...     return carry + x, carry + x
  ...
  ...   @nn.nowrap
  ...   def initialize_carry(self, rng, input_shape):
  ...     return jnp.zeros(input_shape)
  ...
  ...   @property
  ...   def num_feature_axes(self):
  ...     return 1
  >>> x = jnp.ones((1, 4, 1))  # batch, time, features
  >>> nn.RNN(Sum()).apply({}, x)[0, :, 0]
  Array([1., 2., 3., 4.], dtype=float32)
  """

  @nowrap
  def initialize_carry(
    self, rng: PRNGKey, input_shape: tuple[int, ...]
  ) -> Carry:
    """Makes the carry of the first step.

    Args:
      rng: a key, for carries that are drawn.
      input_shape: the shape of the input of one step, `[batch..., features]`.

    Returns:
      The carry, a tree of arrays.
    """
    raise NotImplementedError

  @property
  def num_feature_axes(self) -> int:
    """The number of axes at the end of the input that are no batch axes."""
    raise NotImplementedError


def _initial_state(cell, rng, input_shape):
  """Makes one state per example, of shape [batch..., features]."""
  batch = input_shape[: -cell.num_feature_axes]
  signal = input_shape[-cell.num_feature_axes : -1]
  return as_linen(cell.carry_init)(
    rng, (*batch, *signal, cell.features), cell.param_dtype
  )


def _initial_states(cell, rng, input_shape):
  """Makes the two states of an LSTM: its memory and its output."""
  # Splitting a key that nobody looks at would be traced all the same.
  ignored = cell.carry_init is initializers.zeros
  memory_key, output_key = (rng, rng) if ignored else random.split(rng)
  return (
    _initial_state(cell, memory_key, input_shape),
    _initial_state(cell, output_key, input_shape),
  )


class LSTMCell(RNNCellBase):
  """Keeps a memory `c` behind three gates (long short-term memory).

  ::

    i  = s(W_ii x + W_hi h + b_hi)         input gate
    f  = s(W_if x + W_hf h + b_hf)         forget gate
    g  = tanh(W_ig x + W_hg h + b_hg)      candidate
    o  = s(W_io x + W_ho h + b_ho)         output gate
    c' = f * c + i * g
    h' = o * tanh(c')

  Each `W` is a `Dense` of its own, named `ii`, `hi`, `if` ...; compare
  `OptimizedLSTMCell`. Source: Hochreiter and Schmidhuber, "Long Short-Term
  Memory", 1997; the forget gate: Gers et al., 2000.

  >>> import jax, jax.numpy as jnp
  >>> import haiku_state.linen as nn
  >>> x, cell = jnp.ones((2, 3)), nn.LSTMCell(features=4)
  >>> carry = cell.initialize_carry(jax.random.key(0), x.shape)
  >>> variables = cell.init(jax.random.key(1), carry, x)
  >>> (c, h), y = cell.apply(variables, carry, x)
  >>> c.shape, y.shape
  ((2, 4), (2, 4))

  Attributes:
    features: the size of memory and output.
    gate_fn: the `s` of the gates.
    activation_fn: the `tanh` of candidate and output.
    kernel_init: the initializer of the kernels on the input.
    recurrent_kernel_init: that of the kernels on the state.
    bias_init: the initializer of the biases.
    dtype: the dtype of the computation; None: inferred from inputs and
      parameters.
    param_dtype: the dtype of the parameters and of the first carry.
    carry_init: the initializer of the first carry.
  """

  features: int
  gate_fn: Callable[..., Any] = sigmoid
  activation_fn: Callable[..., Any] = tanh
  kernel_init: Initializer = default_kernel_init
  recurrent_kernel_init: Initializer = initializers.orthogonal()
  bias_init: Initializer = initializers.zeros_init()
  dtype: Dtype | None = None
  param_dtype: Dtype = jnp.float32
  carry_init: Initializer = initializers.zeros_init()

  @compact
  def __call__(
    self, carry: tuple[Array, Array], inputs: Array
  ) -> tuple[tuple[Array, Array], Array]:
    """Goes one step.

    Args:
      carry: `(c, h)`, each `[batch..., features]`.
      inputs: `[batch..., input_features]`.

    Returns:
      The next carry, and its `h` as output.
    """
    c, h = carry
    common: dict[str, Any] = dict(
      features=h.shape[-1], dtype=self.dtype, param_dtype=self.param_dtype
    )
    # Summed, the two need one bias between them.
    of_input = partial(
      Dense, use_bias=False, kernel_init=self.kernel_init, **common
    )
    of_state = partial(
      Dense,
      use_bias=True,
      kernel_init=self.recurrent_kernel_init,
      bias_init=self.bias_init,
      **common,
    )
    i = self.gate_fn(of_input(name='ii')(inputs) + of_state(name='hi')(h))
    f = self.gate_fn(of_input(name='if')(inputs) + of_state(name='hf')(h))
    g = self.activation_fn(of_input(name='ig')(inputs) + of_state(name='hg')(h))
    o = self.gate_fn(of_input(name='io')(inputs) + of_state(name='ho')(h))
    c = f * c + i * g
    h = o * self.activation_fn(c)
    return (c, h), h

  @nowrap
  def initialize_carry(
    self, rng: PRNGKey, input_shape: tuple[int, ...]
  ) -> tuple[Array, Array]:
    """Makes the first `(c, h)`, each `[batch..., features]`.

    Args:
      rng: a key; zeros, the default, do not look at it.
      input_shape: `[batch..., input_features]`.

    Returns:
      The pair.
    """
    return _initial_states(self, rng, input_shape)

  @property
  def num_feature_axes(self) -> int:
    return 1


class DenseParams(Module):
  """Makes the parameters of a `Dense`, and leaves the product to the caller.

  >>> import jax, jax.numpy as jnp
  >>> from haiku_state.linen.recurrent import DenseParams
  >>> layer, x = DenseParams(features=4), jnp.ones((2, 3))
  >>> (kernel, bias), _ = layer.init_with_output(jax.random.key(0), x)
  >>> kernel.shape, bias.shape
  ((3, 4), (4,))

  Attributes:
    features: the size of the last axis.
    use_bias: whether there is a bias.
    param_dtype: the dtype of the parameters.
    precision: for the caller's product.
    kernel_init: the initializer of the kernel.
    bias_init: the initializer of the bias.
  """

  features: int
  use_bias: bool = True
  param_dtype: Dtype = jnp.float32
  precision: PrecisionLike = None
  kernel_init: Initializer = default_kernel_init
  bias_init: Initializer = initializers.zeros_init()

  @compact
  def __call__(self, inputs: Array) -> tuple[Array, Array | None]:
    """Returns kernel and bias.

    Args:
      inputs: `[..., input_features]`; only its shape matters.

    Returns:
      The kernel, `[input_features, features]`, and the bias, `[features]`
      or None.
    """
    kernel = self.param(
      'kernel',
      self.kernel_init,
      (inputs.shape[-1], self.features),
      self.param_dtype,
    )
    if not self.use_bias:
      return kernel, None
    bias = self.param(
      'bias', self.bias_init, (self.features,), self.param_dtype
    )
    return kernel, bias


def _joined_dense(inputs, params, dtype):
  """Multiplies by all kernels at once, and splits the result again.

  Args:
    inputs: `[batch..., input_features]`.
    params: pairs of kernel and bias; all biases are None, or none is.
    dtype: the dtype of the computation, or None.

  Returns:
    A list of arrays `[batch..., features]`, one for each pair.
  """
  kernels, biases = zip(*params)
  kernel = jnp.concatenate(kernels, axis=-1)
  bias = None if biases[0] is None else jnp.concatenate(biases, axis=-1)
  inputs, kernel, bias = promote_dtype(inputs, kernel, bias, dtype=dtype)
  y = jnp.dot(inputs, kernel)
  if bias is not None:
    y += jnp.reshape(bias, (1,) * (y.ndim - 1) + (-1,))
  ends = np.cumsum([kernel.shape[-1] for kernel in kernels])
  return jnp.split(y, ends[:-1], axis=-1)


class OptimizedLSTMCell(RNNCellBase):
  """Is an `LSTMCell` that joins its eight products into two.

  Equations and parameters are those of `LSTMCell`, so that either takes the
  other's variables. Up to about 2048 features this one is faster.

  >>> import jax, jax.numpy as jnp
  >>> import haiku_state.linen as nn
  >>> x, cell = jnp.ones((2, 3)), nn.OptimizedLSTMCell(features=4)
  >>> carry = cell.initialize_carry(jax.random.key(0), x.shape)
  >>> variables = cell.init(jax.random.key(1), carry, x)
  >>> _, y = cell.apply(variables, carry, x)
  >>> _, same = nn.LSTMCell(features=4).apply(variables, carry, x)
  >>> bool(jnp.allclose(y, same, atol=1e-6))
  True

  Attributes: those of `LSTMCell`.
  """

  features: int
  gate_fn: Callable[..., Any] = sigmoid
  activation_fn: Callable[..., Any] = tanh
  kernel_init: Initializer = default_kernel_init
  recurrent_kernel_init: Initializer = initializers.orthogonal()
  bias_init: Initializer = initializers.zeros_init()
  dtype: Dtype | None = None
  param_dtype: Dtype = jnp.float32
  carry_init: Initializer = initializers.zeros_init()

  @compact
  def __call__(
    self, carry: tuple[Array, Array], inputs: Array
  ) -> tuple[tuple[Array, Array], Array]:
    """Goes one step.

    Args:
      carry: `(c, h)`, each `[batch..., features]`.
      inputs: `[batch..., input_features]`.

    Returns:
      The next carry, and its `h` as output.
    """
    c, h = carry
    params = partial(
      DenseParams,
      features=h.shape[-1],
      param_dtype=self.param_dtype,
      bias_init=self.bias_init,
    )
    of_input = partial(params, use_bias=False, kernel_init=self.kernel_init)
    of_state = partial(
      params, use_bias=True, kernel_init=self.recurrent_kernel_init
    )
    pairs = [
      (of_input(name=f'i{gate}')(inputs), of_state(name=f'h{gate}')(h))
      for gate in 'ifgo'
    ]
    params_i, params_h = zip(*pairs)
    from_state = _joined_dense(h, params_h, self.dtype)
    from_input = _joined_dense(inputs, params_i, self.dtype)

    i = self.gate_fn(from_state[0] + from_input[0])
    f = self.gate_fn(from_state[1] + from_input[1])
    g = self.activation_fn(from_state[2] + from_input[2])
    o = self.gate_fn(from_state[3] + from_input[3])
    c = f * c + i * g
    h = o * self.activation_fn(c)
    return (c, h), h

  @nowrap
  def initialize_carry(
    self, rng: PRNGKey, input_shape: tuple[int, ...]
  ) -> tuple[Array, Array]:
    """Makes the first `(c, h)`, each `[batch..., features]`.

    Args:
      rng: a key; zeros, the default, do not look at it.
      input_shape: `[batch..., input_features]`.

    Returns:
      The pair.
    """
    return _initial_states(self, rng, input_shape)

  @property
  def num_feature_axes(self) -> int:
    return 1


class SimpleCell(RNNCellBase):
  """Mixes input and state, without gates.

  ::

    h' = tanh(W_i x + b_i + W_h h)
    h' = tanh(W_i x + b_i + W_h h + h)     with residual=True

  Source: Elman, "Finding Structure in Time", 1990; the residual: Yue et al.,
  "Residual Recurrent Neural Networks" (arXiv:1801.06105).

  >>> import jax, jax.numpy as jnp
  >>> import haiku_state.linen as nn
  >>> x, cell = jnp.ones((2, 3)), nn.SimpleCell(features=4)
  >>> carry = cell.initialize_carry(jax.random.key(0), x.shape)
  >>> variables = cell.init(jax.random.key(1), carry, x)
  >>> carry, y = cell.apply(variables, carry, x)
  >>> y.shape
  (2, 4)

  Attributes:
    features: the size of the state.
    activation_fn: the `tanh`.
    kernel_init: the initializer of the kernel on the input.
    recurrent_kernel_init: that of the kernel on the state.
    bias_init: the initializer of the bias.
    dtype: the dtype of the computation; None: inferred from inputs and
      parameters.
    param_dtype: the dtype of the parameters and of the first carry.
    carry_init: the initializer of the first carry.
    residual: whether to add the state before the activation.
  """

  features: int
  activation_fn: Callable[..., Any] = tanh
  kernel_init: Initializer = default_kernel_init
  recurrent_kernel_init: Initializer = initializers.orthogonal()
  bias_init: Initializer = initializers.zeros_init()
  dtype: Dtype | None = None
  param_dtype: Dtype = jnp.float32
  carry_init: Initializer = initializers.zeros_init()
  residual: bool = False

  @compact
  def __call__(self, carry: Array, inputs: Array) -> tuple[Array, Array]:
    """Goes one step.

    Args:
      carry: the state, `[batch..., features]`.
      inputs: `[batch..., input_features]`.

    Returns:
      The next state, twice: as carry and as output.
    """
    common: dict[str, Any] = dict(
      features=carry.shape[-1], dtype=self.dtype, param_dtype=self.param_dtype
    )
    of_input = Dense(
      use_bias=True,
      kernel_init=self.kernel_init,
      bias_init=self.bias_init,
      name='i',
      **common,
    )
    of_state = Dense(
      use_bias=False,
      kernel_init=self.recurrent_kernel_init,
      name='h',
      **common,
    )
    state = of_input(inputs) + of_state(carry)
    if self.residual:
      state += carry
    state = self.activation_fn(state)
    return state, state

  @nowrap
  def initialize_carry(
    self, rng: PRNGKey, input_shape: tuple[int, ...]
  ) -> Array:
    """Makes the first state, `[batch..., features]`.

    Args:
      rng: a key; zeros, the default, do not look at it.
      input_shape: `[batch..., input_features]`.

    Returns:
      The state.
    """
    return _initial_state(self, rng, input_shape)

  @property
  def num_feature_axes(self) -> int:
    return 1


class GRUCell(RNNCellBase):
  """Mixes the old state with a new one, by two gates (gated recurrent unit).

  ::

    r  = s(W_ir x + b_ir + W_hr h)                    reset gate
    z  = s(W_iz x + b_iz + W_hz h)                    update gate
    n  = tanh(W_in x + b_in + r * (W_hn h + b_hn))    candidate
    h' = (1 - z) * n + z * h

  Source: Cho et al. (arXiv:1406.1078), with the reset gate behind the product,
  as in cuDNN.

  >>> import jax, jax.numpy as jnp
  >>> import haiku_state.linen as nn
  >>> x, cell = jnp.ones((2, 3)), nn.GRUCell(features=4)
  >>> carry = cell.initialize_carry(jax.random.key(0), x.shape)
  >>> variables = cell.init(jax.random.key(1), carry, x)
  >>> carry, y = cell.apply(variables, carry, x)
  >>> y.shape
  (2, 4)

  Attributes:
    features: the size of the state.
    gate_fn: the `s` of the gates.
    activation_fn: the `tanh` of the candidate.
    kernel_init: the initializer of the kernels on the input.
    recurrent_kernel_init: that of the kernels on the state.
    bias_init: the initializer of the biases.
    dtype: the dtype of the computation; None: inferred from inputs and
      parameters.
    param_dtype: the dtype of the parameters and of the first carry.
    carry_init: the initializer of the first carry.
  """

  features: int
  gate_fn: Callable[..., Any] = sigmoid
  activation_fn: Callable[..., Any] = tanh
  kernel_init: Initializer = default_kernel_init
  recurrent_kernel_init: Initializer = initializers.orthogonal()
  bias_init: Initializer = initializers.zeros_init()
  dtype: Dtype | None = None
  param_dtype: Dtype = jnp.float32
  carry_init: Initializer = initializers.zeros_init()

  @compact
  def __call__(self, carry: Array, inputs: Array) -> tuple[Array, Array]:
    """Goes one step.

    Args:
      carry: the state, `[batch..., features]`.
      inputs: `[batch..., input_features]`.

    Returns:
      The next state, twice: as carry and as output.
    """
    h = carry
    dense = partial(
      Dense,
      features=h.shape[-1],
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      bias_init=self.bias_init,
    )
    of_input = partial(dense, use_bias=True, kernel_init=self.kernel_init)
    of_state = partial(
      dense, use_bias=False, kernel_init=self.recurrent_kernel_init
    )
    r = self.gate_fn(of_input(name='ir')(inputs) + of_state(name='hr')(h))
    z = self.gate_fn(of_input(name='iz')(inputs) + of_state(name='hz')(h))
    # A bias of its own, since the gate stands between the two products.
    n = self.activation_fn(
      of_input(name='in')(inputs) + r * of_state(name='hn', use_bias=True)(h)
    )
    h = (1.0 - z) * n + z * h
    return h, h

  @nowrap
  def initialize_carry(
    self, rng: PRNGKey, input_shape: tuple[int, ...]
  ) -> Array:
    """Makes the first state, `[batch..., features]`.

    Args:
      rng: a key; zeros, the default, do not look at it.
      input_shape: `[batch..., input_features]`.

    Returns:
      The state.
    """
    return _initial_state(self, rng, input_shape)

  @property
  def num_feature_axes(self) -> int:
    return 1


class MGUCell(RNNCellBase):
  """Mixes the old state with a new one, by one gate (minimal gated unit).

  ::

    f  = s(W_if x + b_if + W_hf h)                    forget gate
    n  = tanh(W_in x + b_in + f * (W_hn h + b_hn))    candidate
    h' = (1 - f) * n + f * h

  and with `reset_gate=False`, `n = tanh(W_in x + b_in + W_hn h)`.
  Source: Zhou et al. (arXiv:1603.09420).

  >>> import jax, jax.numpy as jnp
  >>> import haiku_state.linen as nn
  >>> x, cell = jnp.ones((2, 3)), nn.MGUCell(features=4)
  >>> carry = cell.initialize_carry(jax.random.key(0), x.shape)
  >>> variables = cell.init(jax.random.key(1), carry, x)
  >>> carry, y = cell.apply(variables, carry, x)
  >>> y.shape
  (2, 4)

  Attributes:
    features: the size of the state.
    gate_fn: the `s` of the gate.
    activation_fn: the `tanh` of the candidate.
    kernel_init: the initializer of the kernels on the input.
    recurrent_kernel_init: that of the kernels on the state.
    forget_bias_init: that of `b_if`: ones, so that gradients do not vanish
      at first (Jozefowicz et al., 2015, section 2.2).
    activation_bias_init: that of `b_in` and `b_hn`.
    dtype: the dtype of the computation; None: inferred from inputs and
      parameters.
    param_dtype: the dtype of the parameters and of the first carry.
    carry_init: the initializer of the first carry.
    reset_gate: whether the gate acts on the candidate as well.
  """

  features: int
  gate_fn: Callable[..., Any] = sigmoid
  activation_fn: Callable[..., Any] = tanh
  kernel_init: Initializer = default_kernel_init
  recurrent_kernel_init: Initializer = initializers.orthogonal()
  forget_bias_init: Initializer = initializers.ones_init()
  activation_bias_init: Initializer = initializers.zeros_init()
  dtype: Dtype | None = None
  param_dtype: Dtype = jnp.float32
  carry_init: Initializer = initializers.zeros_init()
  reset_gate: bool = True

  @compact
  def __call__(self, carry: Array, inputs: Array) -> tuple[Array, Array]:
    """Goes one step.

    Args:
      carry: the state, `[batch..., features]`.
      inputs: `[batch..., input_features]`.

    Returns:
      The next state, twice: as carry and as output.
    """
    h = carry
    dense = partial(
      Dense,
      features=h.shape[-1],
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      bias_init=self.activation_bias_init,
    )
    of_input = partial(dense, use_bias=True, kernel_init=self.kernel_init)
    of_state = partial(
      dense, use_bias=False, kernel_init=self.recurrent_kernel_init
    )
    f = self.gate_fn(
      of_input(name='if', bias_init=self.forget_bias_init)(inputs)
      + of_state(name='hf')(h)
    )
    # Without the gate the products are summed, and one bias is enough.
    recurrent = of_state(name='hn', use_bias=self.reset_gate)(h)
    if self.reset_gate:
      recurrent *= f
    n = self.activation_fn(of_input(name='in')(inputs) + recurrent)
    h = (1.0 - f) * n + f * h
    return h, h

  @nowrap
  def initialize_carry(
    self, rng: PRNGKey, input_shape: tuple[int, ...]
  ) -> Array:
    """Makes the first state, `[batch..., features]`.

    Args:
      rng: a key; zeros, the default, do not look at it.
      input_shape: `[batch..., input_features]`.

    Returns:
      The state.
    """
    return _initial_state(self, rng, input_shape)

  @property
  def num_feature_axes(self) -> int:
    return 1


class ConvLSTMCell(RNNCellBase):
  """Is an LSTM whose products are convolutions and whose states are images.

  ::

    i  = s(W_ii (*) x + W_hi (*) h + b_i)
    f  = s(W_if (*) x + W_hf (*) h + b_f + 1)
    g  = tanh(W_ig (*) x + W_hg (*) h + b_g)
    o  = s(W_io (*) x + W_ho (*) h + b_o)
    c' = f * c + i * g
    h' = o * tanh(c')

  with `(*)` for convolution. The four kernels lie side by side in the last
  axis of two `Conv`, `ih` and `hh`, in the order i, g, f, o. Source: Shi
  et al. (arXiv:1506.04214); the 1 that keeps the forget gate open at first:
  Jozefowicz et al., 2015.

  >>> import jax, jax.numpy as jnp
  >>> import haiku_state.linen as nn
  >>> x = jnp.ones((3, 5, 5, 1))  # batch, height, width, features
  >>> cell = nn.ConvLSTMCell(features=4, kernel_size=(2, 2))
  >>> carry = cell.initialize_carry(jax.random.key(0), x.shape)
  >>> variables = cell.init(jax.random.key(1), carry, x)
  >>> carry, y = cell.apply(variables, carry, x)
  >>> y.shape
  (3, 5, 5, 4)

  Attributes:
    features: the features of memory and output.
    kernel_size: the size of the kernels, one number for each spatial axis.
    strides: the strides of both convolutions; None: 1.
    padding: as of `Conv`; the state must keep its shape.
    use_bias: whether both convolutions have biases.
    dtype: the dtype of the computation; None: inferred from inputs and
      parameters.
    param_dtype: the dtype of the parameters and of the first carry.
    carry_init: the initializer of the first carry.
  """

  features: int
  kernel_size: Sequence[int]
  strides: Sequence[int] | None = None
  padding: str | Sequence[tuple[int, int]] = 'SAME'
  use_bias: bool = True
  dtype: Dtype | None = None
  param_dtype: Dtype = jnp.float32
  carry_init: Initializer = initializers.zeros_init()

  @compact
  def __call__(
    self, carry: tuple[Array, Array], inputs: Array
  ) -> tuple[tuple[Array, Array], Array]:
    """Goes one step.

    Args:
      carry: `(c, h)`, each `[batch..., space..., features]`.
      inputs: `[batch..., space..., input_features]`.

    Returns:
      The next carry, and its `h` as output.
    """
    c, h = carry
    conv = partial(
      Conv,
      features=4 * self.features,
      kernel_size=self.kernel_size,
      strides=self.strides,
      padding=self.padding,
      use_bias=self.use_bias,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
    )
    gates = conv(name='ih')(inputs) + conv(name='hh')(h)
    i, g, f, o = jnp.split(gates, indices_or_sections=4, axis=-1)
    f = sigmoid(f + 1)
    c = f * c + sigmoid(i) * jnp.tanh(g)
    h = sigmoid(o) * jnp.tanh(c)
    return (c, h), h

  @nowrap
  def initialize_carry(
    self, rng: PRNGKey, input_shape: tuple[int, ...]
  ) -> tuple[Array, Array]:
    """Makes the first `(c, h)`, each `[batch..., space..., features]`.

    Args:
      rng: a key; zeros, the default, do not look at it.
      input_shape: `[batch..., space..., input_features]`.

    Returns:
      The pair.
    """
    return _initial_states(self, rng, input_shape)

  @property
  def num_feature_axes(self) -> int:
    return len(self.kernel_size) + 1


class RNN(Module):
  """Runs a cell over a sequence, by `nn.scan`.

  >>> import jax, jax.numpy as jnp
  >>> import haiku_state.linen as nn
  >>> x = jnp.ones((10, 50, 32))  # batch, time, features
  >>> rnn = nn.RNN(nn.LSTMCell(64))
  >>> variables = rnn.init(jax.random.key(0), x)
  >>> rnn.apply(variables, x).shape
  (10, 50, 64)
  >>> (c, h), y = rnn.apply(variables, x, return_carry=True)
  >>> h.shape
  (10, 64)

  Sequences of different lengths are padded at the end, and their lengths passed
  along. Outputs at the padding are whatever they come to; the carry is that of
  each sequence's last step:

  >>> lengths = jnp.arange(1, 11)
  >>> (c, h), y = rnn.apply(
  ...   variables, x, seq_lengths=lengths, return_carry=True
  ... )
  >>> bool(jnp.all(h[3] == y[3, 3]))
  True

  Attributes:
    cell: the cell.
    time_major: whether the time comes first, `[time, batch..., features...]`,
      and not before the features, `[batch..., time, features...]`.
    return_carry: whether to return the last carry, too.
    reverse: whether to go from the end to the beginning. Outputs then come in
      the order in which they were made, unless:
    keep_order: whether to turn reversed outputs around again.
    unroll: how many steps of the loop to unroll into one.
    variable_axes: collections with a value for each step, and their time axis;
      this and the following are passed to `nn.scan`.
    variable_broadcast: collections that are the same in all steps.
    variable_carry: collections that are carried from step to step.
    split_rngs: which streams give each step a key of its own.
  """

  cell: RNNCellBase
  time_major: bool = False
  return_carry: bool = False
  reverse: bool = False
  keep_order: bool = False
  unroll: int = 1
  variable_axes: Mapping[CollectionFilter, InOutScanAxis] = FrozenDict()
  variable_broadcast: CollectionFilter = 'params'
  variable_carry: CollectionFilter = False
  split_rngs: Mapping[PRNGSequenceFilter, bool] = FrozenDict({'params': False})

  def __call__(
    self,
    inputs: jax.Array,
    *,
    initial_carry: Carry | None = None,
    init_key: PRNGKey | None = None,
    seq_lengths: Array | None = None,
    return_carry: bool | None = None,
    time_major: bool | None = None,
    reverse: bool | None = None,
    keep_order: bool | None = None,
  ) -> Output | tuple[Carry, Output]:
    """Runs the cell over `inputs`.

    Args:
      inputs: `[batch..., time, features...]`, or with `time_major`,
        `[time, batch..., features...]`.
      initial_carry: the first carry; None: the cell's `initialize_carry`.
      init_key: the key for that; None: `jax.random.key(0)`, since most cells
        do not look at it.
      seq_lengths: integers `[batch...]`, at least 1: how many steps of each
        sequence are no padding. None: all.
      return_carry: in place of the attribute of that name, as the following.
      time_major: likewise.
      reverse: likewise. Padding stays at the end.
      keep_order: likewise.

    Returns:
      The outputs, with their time axis where that of the inputs is, and before
      them the last carry if `return_carry`.
    """
    return_carry = _given(return_carry, self.return_carry)
    time_major = _given(time_major, self.time_major)
    reverse = _given(reverse, self.reverse)
    keep_order = _given(keep_order, self.keep_order)

    feature_axes = self.cell.num_feature_axes
    num_batch_dims = inputs.ndim - (feature_axes + 1)
    if num_batch_dims < 0:
      # Fewer axes than the cell has: count from the end.
      num_batch_dims += inputs.ndim
    time_axis = 0 if time_major else num_batch_dims
    flip = partial(
      flip_sequences,
      seq_lengths=seq_lengths,
      num_batch_dims=num_batch_dims,
      time_major=time_major,
    )
    if reverse:
      inputs = jax.tree_util.tree_map(flip, inputs)

    carry = initial_carry
    if carry is None:
      step_shape = inputs.shape[:time_axis] + inputs.shape[time_axis + 1 :]
      key = random.key(0) if init_key is None else init_key
      carry = self.cell.initialize_carry(key, step_shape)

    # The carry at the end of each sequence is picked from all carries: that
    # takes memory, and less time than to select at each step.
    all_carries = seq_lengths is not None and return_carry

    def step(cell, carry, x):
      carry, y = cell(carry, x)
      return carry, ((carry, y) if all_carries else y)

    scan = transforms.scan(
      step,
      in_axes=time_axis,
      out_axes=(0, time_axis) if all_carries else time_axis,
      unroll=self.unroll,
      variable_axes=self.variable_axes,
      variable_broadcast=self.variable_broadcast,
      variable_carry=self.variable_carry,
      split_rngs=self.split_rngs,
    )
    carry, outputs = scan(self.cell, carry, inputs)
    if all_carries:
      carries, outputs = outputs
      carry = _last_carry(carries, seq_lengths)

    if reverse and keep_order:
      outputs = jax.tree_util.tree_map(flip, outputs)
    return (carry, outputs) if return_carry else outputs


def _given(value, default):
  return default if value is None else value


def _last_carry(carries, seq_lengths):
  """Picks each sequence's carry from [time, batch..., ...]."""
  last = seq_lengths - 1

  def pick(x):
    return x[(last, *jnp.indices(last.shape, sparse=True))]

  return jax.tree_util.tree_map(pick, carries)


def flip_sequences(
  inputs: Array,
  seq_lengths: Array | None,
  num_batch_dims: int,
  time_major: bool,
) -> Array:
  """Reverses sequences in time, and leaves their padding at the end.

  >>> import jax.numpy as jnp
  >>> from haiku_state.linen.recurrent import flip_sequences
  >>> x = jnp.array([[1, 0, 0], [2, 3, 0], [4, 5, 6]])
  >>> print(flip_sequences(x, jnp.array([1, 2, 3]), 1, time_major=False))
  [[1 0 0]
   [3 2 0]
   [6 5 4]]

  Args:
    inputs: `[batch..., time, features...]`, or with `time_major`,
      `[time, batch..., features...]`.
    seq_lengths: integers `[batch...]`; None: there is no padding.
    num_batch_dims: the number of batch axes.
    time_major: whether the time axis comes first.

  Returns:
    An array like `inputs`. (The padding comes out reversed.)
  """
  time_axis = 0 if time_major else num_batch_dims
  if seq_lengths is None:
    return jnp.flip(inputs, axis=time_axis)

  steps = inputs.shape[time_axis]
  lengths = jnp.expand_dims(seq_lengths, axis=time_axis)
  shape = [1] * num_batch_dims
  shape.insert(time_axis, steps)
  # Counted down from the last step, and shifted by the length of the sequence,
  # modulo all steps.
  index = (jnp.arange(steps - 1, -1, -1).reshape(shape) + lengths) % steps
  index = index.reshape(index.shape + (1,) * (inputs.ndim - index.ndim))
  return jnp.take_along_axis(inputs, index, axis=time_axis)


class RNNBase(Protocol):
  """Is anything that can be called as an `RNN` is."""

  def __call__(
    self,
    inputs: jax.Array,
    *,
    initial_carry: Carry | None = None,
    init_key: PRNGKey | None = None,
    seq_lengths: Array | None = None,
    return_carry: bool | None = None,
    time_major: bool | None = None,
    reverse: bool | None = None,
    keep_order: bool | None = None,
  ) -> Output | tuple[Carry, Output]: ...


def _concatenate(a: Array, b: Array) -> Array:
  return jnp.concatenate([a, b], axis=-1)


class Bidirectional(Module):
  """Runs one `RNN` forward and another backward, and merges their outputs.

  Source: Schuster and Paliwal, "Bidirectional Recurrent Neural Networks", 1997.

  >>> import jax, jax.numpy as jnp
  >>> import haiku_state.linen as nn
  >>> layer = nn.Bidirectional(nn.RNN(nn.GRUCell(4)), nn.RNN(nn.GRUCell(4)))
  >>> x = jnp.ones((2, 3, 5))
  >>> variables = layer.init(jax.random.key(0), x)
  >>> layer.apply(variables, x).shape
  (2, 3, 8)

  Attributes:
    forward_rnn: the one that goes forward.
    backward_rnn: the one that goes backward; if it is the same object, they
      share their parameters, of which a warning is logged.
    merge_fn: takes the outputs of both, at the same steps, to one.
    time_major: whether the time axis comes first.
    return_carry: whether to return both last carries, too.
  """

  forward_rnn: RNNBase
  backward_rnn: RNNBase
  merge_fn: Callable[[Array, Array], Array] = _concatenate
  time_major: bool = False
  return_carry: bool = False

  def __call__(
    self,
    inputs: jax.Array,
    *,
    initial_carry: Carry | None = None,
    init_key: PRNGKey | None = None,
    seq_lengths: Array | None = None,
    return_carry: bool | None = None,
    time_major: bool | None = None,
    reverse: bool | None = None,
    keep_order: bool | None = None,
  ) -> Output | tuple[Carry, Output]:
    """Runs both over `inputs`.

    Args:
      inputs: `[batch..., time, features...]`, or with `time_major`,
        `[time, batch..., features...]`.
      initial_carry: the first carries, forward and backward, as a pair.
      init_key: the key that the first carries are drawn from.
      seq_lengths: integers `[batch...]`: how many steps of each sequence are
        no padding.
      return_carry: in place of the attribute of that name, as the following.
      time_major: likewise.
      reverse: there for the sake of `RNNBase`: both directions are run anyway.
      keep_order: likewise: outputs are always in the order of the inputs.

    Returns:
      The merged outputs, and before them the pair of last carries if
      `return_carry`.
    """
    del reverse, keep_order
    time_major = _given(time_major, self.time_major)
    return_carry = _given(return_carry, self.return_carry)
    keys = (None, None) if init_key is None else random.split(init_key)
    carries = (None, None) if initial_carry is None else initial_carry
    forward_key, backward_key = keys
    forward_carry, backward_carry = carries
    if self.forward_rnn is self.backward_rnn:
      logging.warning(
        'forward_rnn and backward_rnn is the same object, so '
        'they will share parameters.'
      )

    forward_carry, forward = self.forward_rnn(
      inputs,
      initial_carry=forward_carry,
      init_key=forward_key,
      seq_lengths=seq_lengths,
      return_carry=True,
      time_major=time_major,
      reverse=False,
    )
    backward_carry, backward = self.backward_rnn(
      inputs,
      initial_carry=backward_carry,
      init_key=backward_key,
      seq_lengths=seq_lengths,
      return_carry=True,
      time_major=time_major,
      reverse=True,
      keep_order=True,
    )
    outputs = jax.tree_util.tree_map(self.merge_fn, forward, backward)
    if return_carry:
      return (forward_carry, backward_carry), outputs
    return outputs
