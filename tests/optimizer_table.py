"""Every optimizer once: how it is made, its rule in NumPy, its state.

The rules are the published formulas of flax.optim 0.5.3, for one parameter:
`rule(hp, t, p, s, g)` returns the new parameter and state, where `t` counts
from 1 and `s` is a dict with Flax's names. They compute in the dtype of their
arguments.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from haiku_state import optim


def gradient_descent(hp, t, p, s, g):
  return p - hp.learning_rate * g, s


def momentum(hp, t, p, s, g):
  if np.any(hp.weight_decay != 0):
    g = g + hp.weight_decay * p
  m = hp.beta * s['momentum'] + g
  d = g + hp.beta * m if hp.nesterov else m
  return p - hp.learning_rate * d, {'momentum': m}


def _corrected(hp, t, m, v):
  return m / (1 - hp.beta1**t), v / (1 - hp.beta2**t)


def adam(hp, t, p, s, g):
  m = hp.beta1 * s['grad_ema'] + (1 - hp.beta1) * g
  v = hp.beta2 * s['grad_sq_ema'] + (1 - hp.beta2) * g**2
  mh, vh = _corrected(hp, t, m, v)
  lr = hp.learning_rate
  new = p - lr * mh / (np.sqrt(vh) + hp.eps) - lr * hp.weight_decay * p
  return new, {'grad_ema': m, 'grad_sq_ema': v}


def adabelief(hp, t, p, s, g):
  m = hp.beta1 * s['grad_ema'] + (1 - hp.beta1) * g
  v = hp.beta2 * s['grad_sq_ema'] + (1 - hp.beta2) * (g - m) ** 2 + hp.eps
  mh, vh = _corrected(hp, t, m, v)
  lr = hp.learning_rate
  new = p - lr * mh / (np.sqrt(vh) + hp.eps) - lr * hp.weight_decay * p
  return new, {'grad_ema': m, 'grad_sq_ema': v}


def adadelta(hp, t, p, s, g):
  a = hp.rho * s['sq_avg'] + g**2 * (1 - hp.rho)
  d = np.sqrt(s['acc_delta'] + hp.eps) / np.sqrt(a + hp.eps) * g
  lr = hp.learning_rate
  new = p - lr * d
  if np.any(hp.weight_decay != 0):
    new = new - lr * hp.weight_decay * p
  x = hp.rho * s['acc_delta'] + d**2 * (1 - hp.rho)
  return new, {'sq_avg': a, 'acc_delta': x}


def adagrad(hp, t, p, s, g):
  total = s['G'] + g**2
  return p - hp.learning_rate * g / (np.sqrt(total) + hp.eps), {'G': total}


def rmsprop(hp, t, p, s, g):
  v = hp.beta2 * s['v'] + (1 - hp.beta2) * g**2
  mg, centered = s['mg'], v
  if hp.centered:
    mg = hp.beta2 * mg + (1 - hp.beta2) * g
    centered = v - mg**2
  new = p - hp.learning_rate * g / (np.sqrt(centered) + hp.eps)
  return new, {'v': v, 'mg': mg}


def lamb(hp, t, p, s, g):
  m = hp.beta1 * s['grad_ema'] + (1 - hp.beta1) * g
  v = hp.beta2 * s['grad_sq_ema'] + (1 - hp.beta2) * g**2
  mh, vh = _corrected(hp, t, m, v)
  u = mh / (np.sqrt(vh) + hp.eps) + hp.weight_decay * p
  p_norm, u_norm = np.linalg.norm(p), np.linalg.norm(u)
  ratio = p_norm / u_norm if p_norm + u_norm > 0 else 1.0
  new = p - ratio * hp.learning_rate * u
  return new, {'grad_ema': m, 'grad_sq_ema': v}


def lars(hp, t, p, s, g):
  p_norm, g_norm = np.linalg.norm(p), np.linalg.norm(g)
  ratio = 1.0
  if p_norm != 0 and g_norm != 0:
    ratio = (
      hp.trust_coefficient
      * p_norm
      / (g_norm + hp.weight_decay * p_norm + hp.eps)
    )
  scaled = hp.learning_rate * ratio * (g + hp.weight_decay * p)
  m = hp.beta * s['momentum'] + scaled
  return p - (scaled + hp.beta * m if hp.nesterov else m), {'momentum': m}


def _factored_axes(hp, shape):
  if not hp.factored or len(shape) < 2:
    return None
  *_, d1, d0 = np.argsort(shape)
  return (d1, d0) if shape[d1] >= hp.min_dim_size_to_factor else None


def _rms(x):
  return np.sqrt(np.mean(x**2))


def adafactor(hp, t, p, s, g):
  decay = 1 - (t - 1 - hp.step_offset + 1.0) ** -hp.decay_rate
  g2 = g**2 + hp.epsilon1
  new = dict(s)
  axes = _factored_axes(hp, p.shape)
  if axes is None:
    new['v'] = decay * s['v'] + (1 - decay) * g2
    y = g * new['v'] ** -0.5
  else:
    d1, d0 = axes
    row = decay * s['v_row'] + (1 - decay) * g2.mean(axis=d0)
    col = decay * s['v_col'] + (1 - decay) * g2.mean(axis=d1)
    new['v_row'], new['v_col'] = row, col
    mean = row.mean(axis=d1 - 1 if d1 > d0 else d1, keepdims=True)
    y = (
      g
      * np.expand_dims((row / mean) ** -0.5, d0)
      * np.expand_dims(col**-0.5, d1)
    )
  if hp.clipping_threshold is not None:
    y = y / max(1.0, _rms(y) / hp.clipping_threshold)
  u = hp.learning_rate * y
  if hp.multiply_by_parameter_scale:
    u = u * max(_rms(p), hp.epsilon2)
  if hp.beta1 is not None:
    u = new['m'] = hp.beta1 * s['m'] + (1 - hp.beta1) * u
  decayed = (
    p if hp.weight_decay_rate is None else (1 - hp.weight_decay_rate) * p
  )
  return decayed - u, new


def _adafactor_state(hp, p):
  s = {name: np.zeros(1) for name in ('v_row', 'v_col', 'v', 'm')}
  axes = _factored_axes(hp, p.shape)
  if axes is None:
    s['v'] = np.zeros(p.shape)
  else:
    d1, d0 = axes
    s['v_row'] = np.zeros(np.delete(p.shape, d0))
    s['v_col'] = np.zeros(np.delete(p.shape, d1))
  if hp.beta1 is not None:
    s['m'] = np.zeros(p.shape)
  return s


def _zeros(*names: str, none: tuple[str, ...] = ()):
  def init(hp, p):
    return {**{n: np.zeros_like(p) for n in names}, **dict.fromkeys(none)}

  return init


class Row(NamedTuple):
  """An optimizer with some hyper-parameters.

  Attributes:
    make: a function of keyword arguments that makes the definition.
    rule: its formula in NumPy.
    init: the initial state of the formula.
    exact: whether it agrees with the formula to the last bit when not compiled.
    overrides: hyper-parameters that a step may set, with other values than
      those of `make`.
  """

  make: Callable[..., optim.OptimizerDef]
  rule: Any
  init: Any
  exact: bool = False
  overrides: dict[str, Any] = {}


def _row(cls, rule, init, *, exact=False, overrides=None, **hyper_params):
  hyper_params = {'learning_rate': 0.05, **hyper_params}
  return Row(
    lambda **kwargs: cls(**{**hyper_params, **kwargs}),
    rule,
    init,
    exact,
    {'learning_rate': 0.02, **(overrides or {})},
  )


_EMAS = _zeros('grad_ema', 'grad_sq_ema')
_DECAY = {'weight_decay': 0.2}

ROWS = {
  'GradientDescent': _row(
    optim.GradientDescent, gradient_descent, _zeros(), exact=True
  ),
  'Momentum': _row(
    optim.Momentum, momentum, _zeros('momentum'), exact=True,
    overrides={'beta': 0.5, **_DECAY},
  ),
  'Momentum, decay': _row(
    optim.Momentum, momentum, _zeros('momentum'), exact=True, beta=0.8,
    weight_decay=0.1, overrides=_DECAY,
  ),
  'Momentum, nesterov': _row(
    optim.Momentum, momentum, _zeros('momentum'), exact=True, nesterov=True,
    weight_decay=0.1, overrides={'nesterov': False},
  ),
  'Adam': _row(
    optim.Adam, adam, _EMAS,
    overrides={'beta1': 0.8, 'beta2': 0.99, 'eps': 1e-3},
  ),
  'Adam, decay': _row(
    optim.Adam, adam, _EMAS, beta1=0.7, beta2=0.9, eps=1e-2, weight_decay=0.1,
    overrides=_DECAY,
  ),
  'AdaBelief': _row(optim.AdaBelief, adabelief, _EMAS, eps=1e-8),
  'AdaBelief, decay': _row(
    optim.AdaBelief, adabelief, _EMAS, beta1=0.7, eps=1e-3, weight_decay=0.1,
    overrides={'beta2': 0.9, 'eps': 1e-2, **_DECAY},
  ),
  'Adadelta': _row(
    optim.Adadelta, adadelta, _zeros('sq_avg', 'acc_delta'), exact=True,
    learning_rate=0.5, overrides={'rho': 0.8, 'eps': 1e-3},
  ),
  'Adadelta, decay': _row(
    optim.Adadelta, adadelta, _zeros('sq_avg', 'acc_delta'), rho=0.8,
    learning_rate=0.5, eps=1e-3, weight_decay=0.1, overrides=_DECAY,
  ),
  'Adagrad': _row(optim.Adagrad, adagrad, _zeros('G')),
  'Adagrad, eps': _row(
    optim.Adagrad, adagrad, _zeros('G'), eps=1e-2, overrides={'eps': 1e-1}
  ),
  'RMSProp': _row(
    optim.RMSProp, rmsprop, _zeros('v', none=('mg',)), overrides={'beta2': 0.5}
  ),
  'RMSProp, centered': _row(
    optim.RMSProp, rmsprop, _zeros('v', 'mg'), beta2=0.8, eps=1e-2,
    centered=True, overrides={'eps': 1e-1, 'centered': False},
  ),
  'LAMB': _row(optim.LAMB, lamb, _EMAS, overrides=_DECAY),
  'LAMB, decay': _row(
    optim.LAMB, lamb, _EMAS, beta1=0.8, beta2=0.9, eps=1e-3, weight_decay=0.1,
    overrides=_DECAY,
  ),
  'LARS': _row(
    optim.LARS, lars, _zeros('momentum'),
    overrides={'trust_coefficient': 0.01, **_DECAY},
  ),
  'LARS, decay': _row(
    optim.LARS, lars, _zeros('momentum'), beta=0.8, weight_decay=0.1,
    trust_coefficient=0.5, eps=1e-2, overrides={'eps': 0.1, **_DECAY},
  ),
  'LARS, nesterov': _row(
    optim.LARS, lars, _zeros('momentum'), weight_decay=0.1,
    trust_coefficient=0.5, nesterov=True,
  ),
  'Adafactor': _row(optim.Adafactor, adafactor, _adafactor_state),
  'Adafactor, factored': _row(
    optim.Adafactor, adafactor, _adafactor_state, min_dim_size_to_factor=4,
    overrides={
      'decay_rate': 0.6, 'clipping_threshold': 0.5, 'epsilon1': 1e-3,
      'weight_decay_rate': 0.05, 'multiply_by_parameter_scale': False,
    },
  ),
  'Adafactor, momentum': _row(
    optim.Adafactor, adafactor, _adafactor_state, min_dim_size_to_factor=4,
    beta1=0.8, weight_decay_rate=0.01, step_offset=-3, decay_rate=0.7,
    overrides={'beta1': 0.5, 'epsilon2': 10.0},
  ),
  'Adafactor, plain': _row(
    optim.Adafactor, adafactor, _adafactor_state, factored=False,
    clipping_threshold=None, multiply_by_parameter_scale=False, epsilon1=1e-4,
  ),
}  # fmt: skip


# A tree with every kind of leaf: a kernel, a bias, zeros, a scalar, and three
# axes, the largest two of which are not the last.
def params(dtype=np.float64):
  rng = np.random.default_rng(0)
  return {
    'conv': rng.normal(size=(6, 5, 2)).astype(dtype),
    'dense': {
      'bias': rng.normal(size=(4,)).astype(dtype),
      'kernel': rng.normal(size=(5, 4)).astype(dtype),
    },
    'scale': np.asarray(0.7, dtype),
    'zeros': np.zeros(3, dtype),
  }


def grads(step, dtype=np.float64):
  rng = np.random.default_rng(step + 1)
  return {
    'conv': rng.normal(size=(6, 5, 2)).astype(dtype),
    'dense': {
      'bias': rng.normal(size=(4,)).astype(dtype),
      'kernel': rng.normal(size=(5, 4)).astype(dtype),
    },
    'scale': np.asarray(rng.normal(), dtype),
    'zeros': rng.normal(size=(3,)).astype(dtype),
  }
