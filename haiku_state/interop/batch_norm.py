"""The state of `hk.BatchNorm` as that of linen's `BatchNorm`, and back.

In training the two compute the same. Their averages differ: Haiku's start at
zero and are divided by `1 - decay**counter` where they are used, linen's start
at 0 and 1 and are used as they are. So there are four exact mappings:

| | mean, var | exact for |
| --- | --- | --- |
| from Haiku, 'eval' | `average`, `average` | evaluation |
| from Haiku, 'training' | `hidden`, `hidden + decay**counter` | going on training, as linen would |
| to Haiku, no counter | `hidden = average = mean`, var; `counter = 2**30` | evaluation and training |
| to Haiku, with the counter | the inverse of 'training' | evaluation and training, as Haiku would |

With a counter of `2**30`, `decay**counter` is zero, and Haiku divides by one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from haiku_state.interop import _leaves as lv
from haiku_state.interop import _units as units
from haiku_state.interop._leaves import ConversionError, Leaf

# The largest power of two of int32; `decay**counter` is zero in float32 for
# every decay up to 0.9999999.
FOREVER = 2**30

_EMAS = {'mean': 'mean_ema', 'var': 'var_ema'}


def batch_norm_from_haiku(
  state: Mapping[str, Mapping[str, Any]],
  for_: str = 'eval',
  momentum: float | None = None,
) -> dict[str, Any]:
  """Gives the averages of `hk.BatchNorm` as those of linen's.

  >>> import numpy as np
  >>> ema = {'counter': 1, 'hidden': np.ones((1, 2)), 'average': 10 * np.ones((1, 2))}
  >>> state = {'mean_ema': ema, 'var_ema': ema}
  >>> batch_norm_from_haiku(state)['mean']
  array([10., 10.])
  >>> batch_norm_from_haiku(state, for_='training', momentum=0.9)['var']
  array([1.9, 1.9])

  Args:
    state: `mean_ema` and `var_ema`, each with `counter`, `hidden` and `average`
      of the shape that Haiku keeps, such as `(1, 1, 1, C)`.
    for_: 'eval', for the same outputs in evaluation; or 'training', for the
      averages that linen would have after as many steps, whose evaluation
      differs from Haiku's as long as `momentum**counter` is not small.
    momentum: the decay rate, for 'training'.

  Returns:
    `mean` and `var`, of shape `(C,)`.

  Raises:
    ConversionError: `for_` is something else, `momentum` is missing, or the
      state is not that of one layer.
  """
  _check_has(state, _EMAS.values(), "state['batch_norm/~']")
  mean, var = state['mean_ema'], state['var_ema']
  if for_ == 'eval':
    return {
      'mean': _squeezed(mean['average']),
      'var': _squeezed(var['average']),
    }
  if for_ != 'training':
    raise ConversionError(f"`for_` is 'eval' or 'training', found {for_!r}.")
  d = _checked(momentum, "for_='training'")
  return {
    'mean': _squeezed(mean['hidden']),
    'var': lv.apply(
      lambda hidden, t: hidden + d**t,
      _squeezed(var['hidden']),
      var['counter'],
    ),
  }


def batch_norm_to_haiku(
  stats: Mapping[str, Any],
  counter: Any = None,
  momentum: float | None = None,
  shape: Sequence[int] | None = None,
) -> dict[str, dict[str, Any]]:
  """Gives the averages of linen's `BatchNorm` as those of `hk.BatchNorm`.

  >>> import numpy as np
  >>> stats = {'mean': np.array([10.0]), 'var': np.array([1.0])}
  >>> batch_norm_to_haiku(stats)['mean_ema']['average']
  array([[10.]])

  Args:
    stats: `mean` and `var`.
    counter: how many steps they have seen from linen's own start, None if that
      is not known. Both are exact; with the counter the result is what Haiku
      would have, up to rounding, which grows as `1 / (1 - momentum**counter)`.
    momentum: the decay rate, if there is a counter.
    shape: the shape that Haiku keeps, by default `(1, C)`.

  Returns:
    `mean_ema` and `var_ema`.

  Raises:
    ConversionError: `momentum` is missing, the counter is not positive, or the
      averages are not those of one layer.
  """
  _check_has(stats, _EMAS, "variables['batch_stats']['BatchNorm_0']")
  if counter is None:
    return {
      ema: {
        'counter': _counter(FOREVER, stats[name]),
        'hidden': _shaped(stats[name], shape),
        'average': _shaped(stats[name], shape),
      }
      for name, ema in _EMAS.items()
    }
  d = _checked(momentum, 'a counter')
  _check_counter(counter)
  out = {}
  for name, ema in _EMAS.items():
    start = 0 if name == 'mean' else 1
    x = _shaped(stats[name], shape)
    out[ema] = {
      'counter': _counter(counter, stats[name]),
      'hidden': lv.apply(lambda a, t, s=start: a - s * d**t, x, counter),
      'average': lv.apply(
        lambda a, t, s=start: (a - s * d**t) / (1 - d**t), x, counter
      ),
    }
  return out


def _check_has(given: Any, names: Any, example: str) -> None:
  missing = [name for name in names if name not in given]
  if missing:
    raise ConversionError(
      f'Expected {" and ".join(names)} of one BatchNorm, found'
      f' {sorted(given)}. Pass what is below the name of the layer, such as'
      f' `{example}`.'
    )


def _checked(momentum: float | None, what: str) -> float:
  if momentum is None:
    raise ConversionError(
      f'With {what} the conversion needs the decay rate. Pass `momentum=`.'
    )
  return momentum


def _check_counter(counter: Any) -> None:
  if isinstance(counter, jax.ShapeDtypeStruct):
    return
  try:
    steps = int(counter)
  except jax.errors.ConcretizationTypeError:
    return  # It is traced.
  if steps < 1:
    raise ConversionError(
      f'The counter is {steps}: Haiku has no average before the first'
      ' step. Leave the counter out.'
    )


def _counter(counter: Any, like: Any) -> Any:
  """Returns a counter as Haiku has it."""
  if isinstance(like, jax.ShapeDtypeStruct):
    return jax.ShapeDtypeStruct((), jnp.int32)
  if isinstance(like, np.ndarray) and isinstance(counter, (int, np.generic)):
    return np.asarray(counter, np.int32)
  return jnp.asarray(counter, jnp.int32)


def _squeezed(x: Any) -> Any:
  """Returns a leaf without the axes that Haiku keeps."""
  shape = tuple(n for n in x.shape if n != 1) or (1,)
  return lv.apply(lambda a: a.reshape(shape), x)


def _shaped(x: Any, shape: Sequence[int] | None) -> Any:
  shape = (1, *x.shape) if shape is None else tuple(shape)
  return lv.apply(lambda a: a.reshape(shape), x)


# --- As a kind of layer ------------------------------------------------------


def _leaves(options: lv.Options) -> tuple[Leaf, ...]:
  options = _with_rank(options)
  return (
    units.leaf('scale', 'scale', options),
    units.leaf('offset', 'bias', options),
  )


def _with_rank(options: lv.Options) -> lv.Options:
  """Returns options with a rank, guessed where nothing tells it."""
  if not _is_guessed(options):
    return options
  rank = 1 + max((len(shape) for shape in options['given'].values()), default=1)
  return {**options, 'kept': options['kept']._replace(rank=rank)}


def _is_guessed(options: lv.Options) -> bool:
  kept = options['kept']
  return kept.axes == -1 and kept.rank is None and not options['target']


def _note(options: lv.Options, forward: bool) -> str | None:
  if forward or not _is_guessed(options):
    return None
  rank = _with_rank(options)['kept'].rank
  return (
    f"the rank of the inputs was guessed to be {rank}, by which Haiku's leaves"
    ' have their shape. Pass `rank=` to `layers.batch_norm`, or the parameters'
    ' and state of the Haiku model, or their shapes, as `target=`'
  )


def _name(ema: str, key: str) -> lv.Names:
  return (lv.STATE, '~', ema, key)


def _to_linen(leaves: lv.Leaves, options: lv.Options) -> lv.Leaves:
  state: dict[str, dict[str, Any]] = {ema: {} for ema in _EMAS.values()}
  for ema, values in state.items():
    for key in ('counter', 'hidden', 'average'):
      if _name(ema, key) in leaves:
        values[key] = leaves.pop(_name(ema, key))
  if not any(state.values()):
    return {}  # Only the parameters are converted.
  for ema, values in state.items():
    if len(values) != 3:
      raise ConversionError(
        f'The state "{ema}" of a BatchNorm needs "counter", "hidden" and'
        f' "average". Found {sorted(values)}.'
      )
  stats = batch_norm_from_haiku(state, options['for_'], options['momentum'])
  names = {name: ('batch_stats', name) for name in stats}
  return {
    names[n]: units.dropped(x, options, names[n]) for n, x in stats.items()
  }


def _to_haiku(leaves: lv.Leaves, options: lv.Options) -> lv.Leaves:
  names = [('batch_stats', name) for name in _EMAS]
  if not any(name in leaves for name in names):
    return {}
  missing = [name for name in names if name not in leaves]
  if missing:
    raise ConversionError(f'A BatchNorm needs {lv.text(missing[0])}.')
  stats = {name: leaves.pop(('batch_stats', name)) for name in _EMAS}
  shaped = units.kept(
    stats['mean'], _with_rank(options), _name('mean_ema', 'average')
  )
  state = batch_norm_to_haiku(
    stats, options['counter'], options['momentum'], shaped.shape
  )
  return {
    _name(ema, key): value
    for ema, values in state.items()
    for key, value in values.items()
  }


BATCH_NORM = lv.Kind(
  'BatchNorm(epsilon=1e-5, momentum=decay_rate{axes})',
  _leaves,
  _to_linen,
  _to_haiku,
  note=_note,
)
