"""Adafactor."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from haiku_state import struct
from haiku_state.optim._optax import OptaxOptimizerDef, names_of_leaves

__all__ = ['Adafactor']


@struct.dataclass
class _AdafactorHyperParams:
  learning_rate: Any
  factored: bool
  multiply_by_parameter_scale: bool
  beta1: Any
  decay_rate: Any
  step_offset: Any
  clipping_threshold: Any
  weight_decay_rate: Any
  min_dim_size_to_factor: int
  epsilon1: Any
  epsilon2: Any


def _unused():
  return jnp.zeros((1,))


@struct.dataclass
class _AdafactorParamState:
  v_row: Any
  v_col: Any
  v: Any
  m: Any = struct.field(default_factory=_unused)


class Adafactor(OptaxOptimizerDef):
  """Adafactor (https://arxiv.org/abs/1804.04235).

  The average of squared gradients of a large matrix is kept as averages of its
  rows and columns. The step is clipped, and scaled by the root mean square of
  the parameter, so that `learning_rate` is relative. Weight decay is not
  multiplied by the learning rate.

  Agreement: to rounding, with Flax 0.5.3, and with `optax.adafactor` in float32
  (its `epsilon2` is fixed at 1e-3). Everything is computed and stored in
  float32; only the new parameter is rounded to its dtype. optax keeps the state
  in the parameter's dtype. Flax ignored `multiply_by_parameter_scale`,
  `factored` and `min_dim_size_to_factor` as overrides of a step; here the
  first is heeded, and the others, which decide about the state, are an error.

  State of a parameter: `v_row` and `v_col`, or `v`; and `m`, if
  `beta1` is given. Those that are not used have shape (1,).

  >>> import jax.numpy as jnp
  >>> optimizer = Adafactor(learning_rate=0.1).create({'w': jnp.ones(2)})
  >>> optimizer.apply_gradient({'w': jnp.array([3.0, -5.0])}).target['w']
  Array([0.9, 1.1], dtype=float32)
  """

  param_state = _AdafactorParamState
  optax_names = {'v_row': 'v_row', 'v_col': 'v_col', 'v': 'v', 'm': 'ema'}

  def __init__(
    self,
    learning_rate: Any = None,
    factored: bool = True,
    multiply_by_parameter_scale: bool = True,
    beta1: Any = None,
    decay_rate: Any = 0.8,
    step_offset: Any = 0,
    clipping_threshold: Any = 1.0,
    weight_decay_rate: Any = None,
    min_dim_size_to_factor: int = 128,
    epsilon1: Any = 1e-30,
    epsilon2: Any = 1e-3,
    dtype_momentum: Any = jnp.float32,
  ):
    """Takes the hyper-parameters.

    Args:
      learning_rate: the step size, relative to the parameter if
        `multiply_by_parameter_scale`. None if it is given in each step.
      factored: whether averages are kept by rows and columns.
      multiply_by_parameter_scale: whether the step is multiplied by the root
        mean square of the parameter.
      beta1: the decay of an average of steps; None for no average.
      decay_rate: the power of the step number by which the weight of a new
        squared gradient falls.
      step_offset: the number of the first step, when training is continued.
      clipping_threshold: the largest root mean square of the step; None for
        any.
      weight_decay_rate: the fraction by which the parameter shrinks; None for
        none.
      min_dim_size_to_factor: the size that two dimensions must have for an
        average to be kept by rows and columns.
      epsilon1: what is added to squared gradients.
      epsilon2: the least root mean square that a parameter counts as having.
      dtype_momentum: the dtype in which the average of steps is stored.
    """
    super().__init__(
      _AdafactorHyperParams(
        learning_rate,
        factored,
        multiply_by_parameter_scale,
        beta1,
        decay_rate,
        step_offset,
        clipping_threshold,
        weight_decay_rate,
        min_dim_size_to_factor,
        epsilon1,
        epsilon2,
      )
    )
    self.dtype_momentum = jax.dtypes.canonicalize_dtype(dtype_momentum)

  def update_hyper_params(self, **hyper_param_overrides: Any) -> Any:
    """Returns the hyper-parameters of one step.

    Args:
      **hyper_param_overrides: as for `OptimizerDef.update_hyper_params`.

    Raises:
      ValueError: they would need another state than the optimizer has.
    """
    hyper_params = super().update_hyper_params(**hyper_param_overrides)
    for name in ('factored', 'min_dim_size_to_factor'):
      given, created = (
        getattr(hyper_params, name),
        getattr(self.hyper_params, name),
      )
      if given != created:
        raise ValueError(
          f'Adafactor was created with {name}={created}, which decides about its'
          f' state, so a step cannot have {name}={given}: give it to the'
          ' constructor.'
        )
    return hyper_params

  def initial_values(self, param):
    # Shapes depend on what is factored, which optax knows.
    hyper_params = self.hyper_params.replace(learning_rate=0.0)
    optax_state = self.transformation(hyper_params).init(param)
    names, treedef = names_of_leaves(optax_state)
    values = dict(zip(names, treedef.flatten_up_to(optax_state)))
    return {
      field: values[name]
      for field, name in self.optax_names.items()
      if name in values
    }

  def transformation(self, hyper_params):
    hp = hyper_params
    parts = [
      optax.scale_by_factored_rms(
        hp.factored,
        hp.decay_rate,
        hp.step_offset,
        hp.min_dim_size_to_factor,
        hp.epsilon1,
      )
    ]
    if hp.clipping_threshold is not None:
      parts.append(optax.clip_by_block_rms(hp.clipping_threshold))
    parts.append(
      optax.scale_by_learning_rate(hp.learning_rate, flip_sign=False)
    )
    if hp.multiply_by_parameter_scale:
      parts.append(optax.scale_by_param_block_rms(hp.epsilon2))
    if hp.beta1 is not None:
      parts.append(
        optax.ema(hp.beta1, debias=False, accumulator_dtype=self.dtype_momentum)
      )
    if hp.weight_decay_rate is not None:
      parts.append(optax.add_decayed_weights(hp.weight_decay_rate))
    return _in_float32(optax.chain(*parts, optax.scale(-1)))


def _in_float32(
  inner: optax.GradientTransformation,
) -> optax.GradientTransformation:
  """Shows a transformation parameters and gradients in float32.

  Raises:
    TypeError: one is complex.
  """

  def cast_leaf(x):
    if jnp.issubdtype(jnp.result_type(x), jnp.complexfloating):
      raise TypeError(
        f'Adafactor computes in float32, and found {jnp.result_type(x)}, of'
        ' which it would lose the imaginary part. Give it the real and the'
        ' imaginary part as two parameters, or use another optimizer.'
      )
    return jnp.asarray(x, jnp.float32)

  def cast(tree):
    return jax.tree.map(cast_leaf, tree)

  def init(params):
    return inner.init(cast(params))

  def update(updates, state, params=None):
    return inner.update(cast(updates), state, cast(params))

  return optax.GradientTransformation(init, update)
