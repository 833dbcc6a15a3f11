"""What a Haiku user puts around a model, and what it must then compute.

Each row is one program over a model: `around(call, x)` uses Haiku, in somebody's
`hk.transform_with_state` or in a linen-style module; `plain(step, variables, x)`
computes the same by calls of the pure function `step(variables, x)`, which
returns `(y, new_variables)`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import document
import haiku as hk
import jax
import jax.numpy as jnp

from haiku_state import linen as nn

_RUNNING_MEAN, _BATCH_NORM = document.programs()
_NO_AXIS = [
  block.replace('axis_name="batch"', 'axis_name=None') for block in _BATCH_NORM
]

# As documented, the first update of the mean gives it another axis, which no
# loop allows.
_STEADY = [
  block.replace('keepdims=True', 'keepdims=False') for block in _RUNNING_MEAN
]

BiasAdder = document.run(_RUNNING_MEAN[:2])['BiasAdderWithRunningMean']
SteadyAdder = document.run(_STEADY[:2])['BiasAdderWithRunningMean']
MappedMLP = document.run(_BATCH_NORM[:2])['MLP']
MLP = document.run(_NO_AXIS[:2])['MLP']


class HaikuInside(nn.Module):
  """Has Haiku modules, one of them with state, between its own layers."""

  @nn.compact
  def __call__(self, x):
    x = nn.Dense(3)(x)
    x = hk.BatchNorm(True, True, decay_rate=0.9)(x, is_training=True)
    x = hk.Linear(3, name='by_haiku')(x)
    return nn.BatchNorm(use_running_average=False)(x)


@dataclasses.dataclass(frozen=True)
class Model:
  """A model of the tables.

  Attributes:
    make: returns the module.
    kwargs: arguments of its call.
    axis_name: the mapped axis that it needs.
  """

  make: Callable[..., nn.Module]
  kwargs: Any = dataclasses.field(default_factory=dict)
  axis_name: str | None = None


MODELS = {
  'running mean': Model(SteadyAdder),
  'MLP': Model(functools.partial(MLP, 4, 3), {'train': True}),
  'haiku inside': Model(HaikuInside),
}
MAPPED_MLP = Model(functools.partial(MappedMLP, 4, 3), {'train': True}, 'batch')


@dataclasses.dataclass(frozen=True)
class Row:
  """One use of a model by Haiku.

  Attributes:
    around: takes the model as a function, and `x`; uses Haiku.
    plain: takes `step`, the variables and `x`; does not.
    models: the names of the models that it is for.
  """

  around: Callable[..., Any]
  plain: Callable[..., Any]
  models: tuple[str, ...] = tuple(MODELS)


def once(step, v, x):
  return step(v, x)


def twice(step, v, x):
  _, v = step(v, x)
  return step(v, x)


def each(step, v, xs):
  """Calls the model on one batch after the other."""
  ys = []
  for x in xs:
    y, v = step(v, x)
    ys.append(y)
  return jnp.stack(ys), v


def batches(x):
  return jnp.stack([x, 2 * x + 1, x**2])


def _scan(call, x):
  def body(carry, x):
    return carry + 1, call(x)

  count, ys = hk.scan(body, 0, batches(x))
  del count
  return ys


def _unrolled(call, x):
  return jnp.stack([call(x) for x in batches(x)])


def _while_loop(call, x):
  def body(carry):
    i, y = carry
    return i + 1, y + call(x).mean()

  if hk.running_init():
    return call(x).mean()  # Haiku has no `while_loop` at init.
  return hk.while_loop(lambda carry: carry[0] < 3, body, (0, 0.0))[1]


def _fori_loop(call, x):
  return hk.fori_loop(0, 3, lambda i, y: y + call(x).mean(), 0.0)


def _sum_of_means(step, v, x):
  total = 0.0
  for _ in range(3):
    y, v = step(v, x)
    total += y.mean()
  return total, v


def _cond(pred, call, x):
  if hk.running_init():
    return call(x)  # Haiku makes nothing in a branch.
  return hk.cond(pred, call, lambda x: jnp.full(shape_of(call, x), 7.0), x)


def shape_of(call, x):
  return hk.eval_shape(call, x).shape


def _not_taken(step, v, x):
  return jnp.full_like(step(v, x)[0], 7.0), v


def _switch(call, x):
  def negated(x):
    return -call(x)

  if hk.running_init():
    return negated(x)
  return hk.switch(1, [call, negated], x)


def _grad(call, x):
  return hk.grad(lambda x: (call(x) ** 2).sum())(x)


def _plain_grad(step, v, x):
  def loss(x):
    y, new = step(v, x)
    return (y**2).sum(), new

  return jax.grad(loss, has_aux=True)(x)


def _value_and_grad(call, x):
  def loss(x):
    y = call(x)
    return (y**2).sum(), y

  (_, y), grad = hk.value_and_grad(loss, has_aux=True)(x)
  return y, grad


def _plain_value_and_grad(step, v, x):
  y, _ = step(v, x)
  grad, new = _plain_grad(step, v, x)
  return (y, grad), new


def _in_module(call, x):
  class Holder(hk.Module):
    def __call__(self, x):
      return call(hk.Bias(b_init=hk.initializers.Constant(1.0))(x))

  return Holder()(x)


def _plain_biased(step, v, x):
  return step(v, x + 1.0)


def _named(call, x):
  with hk.name_scope('below'):
    return call(x)


def _checked(call, x):
  before = hk.experimental.check_jax_usage(True)
  try:
    return _scan(call, x)
  finally:
    hk.experimental.check_jax_usage(before)


def _eval_shape_first(call, x):
  shape = hk.eval_shape(call, x)
  y = call(x)
  assert y.shape == shape.shape
  return y


ROWS = {
  'call': Row(lambda call, x: call(x), once),
  'twice': Row(lambda call, x: (call(x), call(x))[1], twice),
  'unrolled': Row(_unrolled, lambda step, v, x: each(step, v, batches(x))),
  'scan': Row(_scan, lambda step, v, x: each(step, v, batches(x))),
  'map': Row(
    lambda call, x: hk.map(call, batches(x)),
    lambda step, v, x: each(step, v, batches(x)),
  ),
  'while_loop': Row(_while_loop, _sum_of_means),
  'fori_loop': Row(_fori_loop, _sum_of_means),
  'remat': Row(lambda call, x: hk.remat(call)(x), once),
  'remat of grad': Row(lambda call, x: _grad(hk.remat(call), x), _plain_grad),
  'cond, taken': Row(functools.partial(_cond, True), once),
  'cond, not taken': Row(functools.partial(_cond, False), _not_taken),
  'switch': Row(
    _switch,
    lambda step, v, x: (-step(v, x)[0], step(v, x)[1]),
  ),
  'grad': Row(_grad, _plain_grad),
  'value_and_grad': Row(_value_and_grad, _plain_value_and_grad),
  'in an hk.Module': Row(_in_module, _plain_biased),
  'in a name scope': Row(_named, once),
  'eval_shape first': Row(_eval_shape_first, once),
  'checked usage': Row(_checked, lambda step, v, x: each(step, v, batches(x))),
}
