"""Loss scaling for gradients in half precision."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from haiku_state import struct

__all__ = ['DynamicScale', 'DynamicScaleResult']

_FLOAT32 = jnp.finfo(jnp.float32)


class DynamicScaleResult(NamedTuple):
  """What a gradient function made by `DynamicScale` returns.

  >>> import jax.numpy as jnp
  >>> from haiku_state.training import dynamic_scale
  >>> scaled = dynamic_scale.DynamicScale()
  >>> result = scaled.value_and_grad(lambda x: x**2)(jnp.float32(3))
  >>> bool(result.finite), float(result.aux), float(result.grad)
  (True, 9.0, 6.0)

  Attributes:
    dynamic_scale: the `DynamicScale` for the next step.
    finite: a bool scalar, whether every element of the gradient is finite.
    aux: what the function returned: the loss, or the pair of loss and
      anything else if it was made with `has_aux`.
    grad: the gradient, in float32, no longer scaled.
  """

  dynamic_scale: 'DynamicScale'
  finite: jax.Array
  aux: Any
  grad: Any


class DynamicScale(struct.PyTreeNode):
  """Scales losses so that gradients in float16 neither vanish nor overflow
  (https://arxiv.org/abs/1710.03740, section 3.2).

  The loss is multiplied by `scale` and the gradient divided by it. The scale
  grows after a number of steps with finite gradients, and shrinks at once after
  one with a gradient that is not, which the program should not apply.

  Attributes:
    growth_factor: what the scale is multiplied by when it grows.
    backoff_factor: what the scale is multiplied by when it shrinks.
    growth_interval: the number of finite steps after which it grows.
    fin_steps: the number of finite steps since the scale changed.
    scale: the scale.
    minimum_scale: the least scale; None for any.

  >>> import jax.numpy as jnp
  >>> def loss_fn(w):
  ...   return jnp.sum(w.astype(jnp.float16) ** 2)
  >>> dynamic_scale = DynamicScale(scale=2.0**17)
  >>> dynamic_scale, finite, loss, grad = dynamic_scale.value_and_grad(loss_fn)(
  ...   jnp.float32(1.0)
  ... )
  >>> bool(finite), float(dynamic_scale.scale)
  (False, 65536.0)
  """

  growth_factor: float = struct.field(pytree_node=False, default=2.0)
  backoff_factor: float = struct.field(pytree_node=False, default=0.5)
  growth_interval: int = struct.field(pytree_node=False, default=2000)
  fin_steps: int = 0
  scale: float = 65536.0
  minimum_scale: float | None = struct.field(
    pytree_node=False, default=_FLOAT32.tiny
  )

  def value_and_grad(
    self,
    fun: Callable[..., Any],
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    axis_name: str | None = None,
  ) -> Callable[..., DynamicScaleResult]:
    """Makes a gradient function; like `jax.value_and_grad`.

    Args:
      fun: the function that returns the loss, a scalar; or a pair of the loss
        and anything else, if `has_aux`.
      argnums: which arguments to differentiate by.
      has_aux: whether the function returns a pair.
      axis_name: the name of a mapped axis over which gradients are averaged.

    Returns:
      A function of the same arguments that returns a `DynamicScaleResult`.
    """

    @functools.wraps(fun)
    def scaled_fun(*args):
      result = fun(*args)
      if has_aux:
        loss, aux = result
        return self.scale * loss, aux
      return self.scale * result

    grad_fun = jax.value_and_grad(scaled_fun, argnums, has_aux)

    @functools.wraps(fun)
    def unscaled_grad_fun(*args):
      result, grad = grad_fun(*args)
      if has_aux:
        scaled_loss, aux = result
        result = scaled_loss / self.scale, aux
      else:
        result = result / self.scale
      grad = jax.tree.map(
        lambda g: jnp.asarray(g, jnp.float32) / self.scale, grad
      )
      if axis_name is not None:
        grad = jax.lax.pmean(grad, axis_name)
      finite = jnp.array(True)
      for g in jax.tree.leaves(grad):
        finite &= jnp.all(jnp.isfinite(g))
      return DynamicScaleResult(self._after(finite), finite, result, grad)

    return unscaled_grad_fun

  def _after(self, finite: jax.Array) -> 'DynamicScale':
    """Returns the scaling for the step after a finite or other gradient."""
    grow = self.fin_steps == self.growth_interval
    grown = jnp.minimum(self.scale * self.growth_factor, _FLOAT32.max)
    shrunk = self.scale * self.backoff_factor
    if self.minimum_scale is not None:
      shrunk = jnp.maximum(shrunk, self.minimum_scale)
    return self.replace(
      fin_steps=jnp.where(grow | ~finite, 0, self.fin_steps + 1),
      scale=jnp.where(finite, jnp.where(grow, grown, self.scale), shrunk),
    )
