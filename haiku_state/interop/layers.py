"""Weights of Haiku's layers as those of linen's, and back.

A mapping says which layer is which: Haiku's module name on the left, what it is
and where it goes on the right::

  mapping = {
    'mlp/~/linear_0': layers.linear('Dense_0'),
    'batch_norm': layers.batch_norm('BatchNorm_0'),
  }

Each kind of layer is one row of `KINDS`: the leaves on both sides, and what the
two layers must agree in for their outputs to be equal.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from haiku_state.interop import _leaves as lv
from haiku_state.interop import _units as units
from haiku_state.interop._leaves import ConversionError as ConversionError
from haiku_state.interop._leaves import Leaf, same
from haiku_state.interop.batch_norm import BATCH_NORM

Bundles = dict[str, dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Layer:
  """A layer of a mapping: its kind, its place among linen's, its options.

  Attributes:
    kind: the name of a row of `KINDS`.
    path: the names of the linen module from the root, joined by `/`.
    options: what the conversion needs to know.
  """

  kind: str
  path: str | tuple[str, ...]
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def names(self) -> tuple[str, ...]:
    """The names of the linen module from the root."""
    if isinstance(self.path, tuple):
      return self.path
    return tuple(self.path.split('/')) if self.path else ()


# --- Kinds of one leaf for one leaf ------------------------------------------


def _renamed(requires: str, **names: str) -> lv.Kind:
  """Returns a kind that renames parameters, and leaves them as they are."""
  return lv.Kind(
    requires,
    lambda options: tuple(
      Leaf((name,), ('params', to), same, same) for name, to in names.items()
    ),
  )


def _swap(x: Any) -> Any:
  return lv.apply(lambda a: a.swapaxes(-1, -2), x)


def _flip(x: Any) -> Any:
  """Returns a kernel with its spatial axes reversed."""
  return lv.apply(lambda a: a[(slice(None, None, -1),) * (a.ndim - 2)], x)


def _conv(options: lv.Options) -> tuple[Leaf, ...]:
  kernel = ('params', 'kernel')
  return Leaf(('w',), kernel, same, same), _conv_bias(options)


def _conv_transpose(options: lv.Options) -> tuple[Leaf, ...]:
  fn = _flip if options['transpose_kernel'] else _swap
  return Leaf(('w',), ('params', 'kernel'), fn, fn), _conv_bias(options)


def _conv_bias(options: lv.Options) -> Leaf:
  """Returns the bias: `(C, 1, 1)` in Haiku where the channels come first."""
  kernel = options['given'].get(('params', 'kernel'))
  if options['kept'].rank is None and kernel is not None:
    kept = options['kept']._replace(rank=len(kernel) - 1)
    options = {**options, 'kept': kept}
  return units.leaf('b', 'bias', options)


def _conv_note(options: lv.Options, forward: bool) -> str | None:
  is_first = options['kept'].axes == 0
  if len(options['given'].get(('b',), ())) > 1 or is_first:
    return (
      'the channels come first in Haiku; linen takes them last, so transpose'
      ' its inputs'
    )
  return None


# --- Norms -------------------------------------------------------------------


def _norm(requires: str, *names: str, note: Any = None) -> lv.Kind:
  """Returns a kind with scale, and offset, over axes that Haiku keeps."""
  to = {'scale': 'scale', 'offset': 'bias'}

  def leaves(options):
    return tuple(units.leaf(name, to[name], options) for name in names)

  return lv.Kind(requires, leaves, note=note or _axes_note)


def _axes_note(options: lv.Options, forward: bool) -> str | None:
  """Says which axes have features, where only the leaf shows it."""
  if options['kept'].axes is not None or not forward:
    return None
  for name in ('scale', 'offset'):
    shape = options['given'].get((name,), ())
    if len(shape) > 1:
      axes = tuple(i for i, n in enumerate(shape) if n != 1)
      return (
        f'"{name}" has the shape {shape} in Haiku, so the features were taken'
        f' to be on the axes {axes}: linen needs feature_axes={axes}. If an'
        ' axis of size one has features, pass `param_axis=`'
      )
  return None


def _channels_note(options: lv.Options, forward: bool) -> str | None:
  """Says that a layer of linen's has its channels last."""
  if options['kept'].axes == 0 or len(options['given'].get(('scale',), ())) > 1:
    return _conv_note({**options, 'kept': units.Kept(0)}, forward)
  return None


def _attention(options: Mapping[str, Any]) -> tuple[Leaf, ...]:
  heads = options['num_heads']

  def split(x):
    """Puts the heads on an axis of their own."""
    return lv.apply(lambda a: a.reshape((*a.shape[:-1], heads, -1)), x)

  def join(x):
    return lv.apply(lambda a: a.reshape((*a.shape[:-2], -1)), x)

  def split_in(x):
    return lv.apply(lambda a: a.reshape((heads, -1, a.shape[-1])), x)

  def join_in(x):
    return lv.apply(lambda a: a.reshape((-1, a.shape[-1])), x)

  leaves = [
    Leaf(('linear', 'w'), ('params', 'out', 'kernel'), split_in, join_in),
    Leaf(('linear', 'b'), ('params', 'out', 'bias'), same, same),
  ]
  for name in ('query', 'key', 'value'):
    for key, to in (('w', 'kernel'), ('b', 'bias')):
      leaves.append(Leaf((name, key), ('params', name, to), split, join))
  return tuple(leaves)


# --- LSTM --------------------------------------------------------------------

# In the order of Haiku's `w`. Haiku adds one to the forget gate, linen does not.
_GATES = ('i', 'g', 'f', 'o')


def _lstm_to_linen(leaves: lv.Leaves, options: Mapping[str, Any]) -> lv.Leaves:
  del options
  w, b = leaves[('linear', 'w')], leaves[('linear', 'b')]
  size = b.shape[0] // 4
  inputs = w.shape[0] - size
  out: lv.Leaves = {}
  for n, gate in enumerate(_GATES):
    part = slice(n * size, (n + 1) * size)
    out['params', 'i' + gate, 'kernel'] = lv.apply(
      lambda a, part=part: a[:inputs, part], w
    )
    out['params', 'h' + gate, 'kernel'] = lv.apply(
      lambda a, part=part: a[inputs:, part], w
    )
    shift = 1 if gate == 'f' else 0
    out['params', 'h' + gate, 'bias'] = lv.apply(
      lambda a, part=part, shift=shift: a[part] + shift if shift else a[part], b
    )
  return out


def _lstm_to_haiku(leaves: lv.Leaves, options: Mapping[str, Any]) -> lv.Leaves:
  del options

  def of(prefix, name):
    return [leaves['params', prefix + gate, name] for gate in _GATES]

  def weights(*kernels):
    below = lv.concat(kernels[4:], 1)
    return lv.concat([lv.concat(kernels[:4], 1), below], 0)

  def biases(i, g, f, o):
    return lv.concat([i, g, f - 1, o], 0)

  kernels = of('i', 'kernel') + of('h', 'kernel')
  return {
    ('linear', 'w'): lv.apply(weights, *kernels),
    ('linear', 'b'): lv.apply(biases, *of('h', 'bias')),
  }


_LSTM = lv.Kind(
  'LSTMCell or OptimizedLSTMCell with their defaults',
  lambda options: (),
  _lstm_to_linen,
  _lstm_to_haiku,
  needs=(('linear', 'w'), ('linear', 'b')),
  needs_linen=tuple(
    ('params', side + gate, name)
    for side, name in (('i', 'kernel'), ('h', 'kernel'), ('h', 'bias'))
    for gate in _GATES
  ),
)

_NORM = 'epsilon=1e-5, use_fast_variance=False'

KINDS: dict[str, lv.Kind] = {
  'linear': _renamed('Dense', w='kernel', b='bias'),
  'conv': lv.Kind('Conv', _conv, note=_conv_note),
  'conv_transpose': lv.Kind(
    'ConvTranspose(transpose_kernel={transpose_kernel})',
    _conv_transpose,
    note=_conv_note,
  ),
  'depthwise_conv': lv.Kind(
    'Conv(feature_group_count=channels of the input)', _conv, note=_conv_note
  ),
  'layer_norm': _norm(f'LayerNorm({_NORM}{{axes}})', 'scale', 'offset'),
  'rms_norm': _norm('RMSNorm(epsilon=1e-5{axes})', 'scale'),
  'group_norm': _norm(
    f'GroupNorm({_NORM}{{axes}})', 'scale', 'offset', note=_channels_note
  ),
  'instance_norm': _norm(f'InstanceNorm({_NORM}{{axes}})', 'scale', 'offset'),
  'embed': _renamed('Embed', embeddings='embedding'),
  'attention': lv.Kind(
    'MultiHeadDotProductAttention(num_heads={num_heads})', _attention
  ),
  'lstm': _LSTM,
  'batch_norm': BATCH_NORM,
}

# Layers that look alike and are not.
REFUSED = {
  'gru': (
    'hk.GRU applies its reset gate to the state before the product,'
    ' linen.GRUCell to the product: no weights make them equal. Run the Haiku'
    ' layer itself, inside a linen-style module or by `interop.as_module`.'
  ),
}


# --- Rows of a mapping -------------------------------------------------------


def linear(path: str) -> Layer:
  """Maps `hk.Linear` to `Dense`."""
  return Layer('linear', path)


def _of_channels(data_format: str, axis: int, rank: int | None) -> units.Kept:
  """Returns where the channels are in a leaf, if they come first at `axis`.

  Args:
    data_format: Haiku's name of the layout.
    axis: the axis of the channels in the leaf, 0 if Haiku leaves out the batch.
    rank: the rank of the inputs, if the name does not tell.
  """
  if not units.has_channels_first(data_format):
    return units.Kept()
  rank = units.rank_of(data_format) or rank
  return units.Kept(
    axis,
    None if rank is None else rank - (1 - axis),
    how='`rank=`, or the names of all axes (`data_format="NCHW"`)',
  )


def conv(path: str, data_format: str = 'channels_last') -> Layer:
  """Maps `hk.ConvND` (`hk.Conv1D`, `2D`, `3D`) to `Conv`.

  Args:
    path: where the linen module is.
    data_format: that of the Haiku module, such as 'NCHW'. Where the channels
      come first in Haiku, the inputs of the linen module must be transposed.
  """
  return Layer('conv', path, {'kept': _of_channels(data_format, 0, None)})


def conv_transpose(
  path: str,
  transpose_kernel: bool = False,
  data_format: str = 'channels_last',
) -> Layer:
  """Maps `hk.ConvNDTranspose` to `ConvTranspose`.

  Args:
    path: where the linen module is.
    transpose_kernel: the argument of the linen module.
    data_format: see `conv`.
  """
  options = {
    'transpose_kernel': transpose_kernel,
    'kept': _of_channels(data_format, 0, None),
  }
  return Layer('conv_transpose', path, options)


def depthwise_conv(path: str, data_format: str = 'channels_last') -> Layer:
  """Maps `hk.DepthwiseConvND` to `Conv` with a group for each channel.

  Args:
    path: where the linen module is.
    data_format: see `conv`.
  """
  options = {'kept': _of_channels(data_format, 0, None)}
  return Layer('depthwise_conv', path, options)


def _axes_text(**axes: Any) -> str:
  given = {name: x for name, x in axes.items() if x is not None}
  return ''.join(f', {name}={x}' for name, x in given.items())


def _norm_over(
  kind: str,
  path: str,
  axis: units.Axes,
  param_axis: units.Axes | None,
  rank: int | None,
) -> Layer:
  """Returns the row of a norm over any axes."""

  def shown(axes):
    # A slice is no argument of linen's; with the rank its axes are known.
    if not isinstance(axes, slice):
      return None if axes == -1 else axes
    return (
      units.absolute(axes, rank) if rank is not None else f'those of {axes}'
    )

  text = _axes_text(
    reduction_axes=shown(axis),
    feature_axes=None if param_axis is None else shown(param_axis),
  )
  kept = units.Kept(param_axis, rank, how='`param_axis=` and `rank=`')
  return Layer(kind, path, {'kept': kept, 'axes': text})


def layer_norm(
  path: str,
  axis: units.Axes = -1,
  param_axis: units.Axes | None = None,
  rank: int | None = None,
) -> Layer:
  """Maps `hk.LayerNorm` to `LayerNorm(epsilon=1e-5)`.

  Args:
    path: where the linen module is.
    axis: that of the Haiku module, `reduction_axes` of linen's.
    param_axis: that of the Haiku module, `feature_axes` of linen's; by default
      what the weights show.
    rank: the rank of the inputs, which Haiku's parameters have unless their
      only axis is the last. Needed to go to Haiku without a `target=`.
  """
  return _norm_over('layer_norm', path, axis, param_axis, rank)


def rms_norm(
  path: str,
  axis: units.Axes = -1,
  param_axis: units.Axes | None = None,
  rank: int | None = None,
) -> Layer:
  """Maps `hk.RMSNorm` to `RMSNorm(epsilon=1e-5)`; see `layer_norm`."""
  return _norm_over('rms_norm', path, axis, param_axis, rank)


def group_norm(
  path: str,
  data_format: str = 'channels_last',
  rank: int | None = None,
  axis: units.Axes | None = None,
) -> Layer:
  """Maps `hk.GroupNorm` to `GroupNorm(epsilon=1e-5)`.

  Args:
    path: where the linen module is.
    data_format: that of the Haiku module. Where the channels come first in
      Haiku, the inputs of the linen module must be transposed.
    rank: the rank of the inputs, for 'channels_first' without a `target=`.
    axis: that of the Haiku module, `reduction_axes` of linen's.
  """
  options = {
    'kept': _of_channels(data_format, 0, rank),
    'axes': _axes_text(reduction_axes=axis),
  }
  return Layer('group_norm', path, options)


def instance_norm(
  path: str, data_format: str = 'channels_last', rank: int | None = None
) -> Layer:
  """Maps `hk.InstanceNorm` to `InstanceNorm(epsilon=1e-5)`.

  Args:
    path: where the linen module is.
    data_format: that of the Haiku module. Where the channels come first, the
      linen module needs `feature_axes=1`.
    rank: the rank of the inputs, for 'channels_first' without a `target=`.
  """
  kept = _of_channels(data_format, 1, rank)
  options = {'kept': kept, 'axes': _axes_text(feature_axes=kept.axes)}
  return Layer('instance_norm', path, options)


def embed(path: str) -> Layer:
  """Maps `hk.Embed` to `Embed`."""
  return Layer('embed', path)


def attention(path: str, num_heads: int) -> Layer:
  """Maps `hk.MultiHeadAttention` to `MultiHeadDotProductAttention`.

  Args:
    path: where the linen module is.
    num_heads: the number of heads, which Haiku's weights do not show.
  """
  return Layer('attention', path, {'num_heads': num_heads})


def lstm(path: str) -> Layer:
  """Maps `hk.LSTM` to `LSTMCell` or `OptimizedLSTMCell`.

  Haiku adds one to its forget gate; the bias of linen's gets that one.
  """
  return Layer('lstm', path)


def gru(path: str) -> Layer:
  """Refuses `hk.GRU`, which has no exact counterpart.

  Raises:
    ConversionError: always, with the reason.
  """
  raise ConversionError(f'{path}: {REFUSED["gru"]}')


def batch_norm(
  path: str,
  for_: str = 'eval',
  momentum: float | None = None,
  counter: Any = None,
  rank: int | None = None,
  data_format: str = 'channels_last',
) -> Layer:
  """Maps `hk.BatchNorm` to `BatchNorm`; see `interop.batch_norm`.

  Args:
    path: where the linen module is.
    for_: what the averages are exact for when they come from Haiku: 'eval', or
      'training', which needs `momentum`.
    momentum: the decay rate, which is the same on both sides.
    counter: how many steps the averages have seen, when they go to Haiku. None
      if it is not known.
    rank: the rank of the inputs in Haiku, whose parameters keep the reduced
      axes; by default that of the Haiku tree that is given as `target=`, or of
      `data_format`, or as small as can be, which the report tells.
    data_format: that of the Haiku module. Where the channels come first, the
      linen module needs `axis=1`.
  """
  kept = _of_channels(data_format, 1, rank)
  if kept.axes is None:
    kept = units.Kept(-1, units.rank_of(data_format) or rank)
  options = {
    'for_': for_,
    'momentum': momentum,
    'counter': counter,
    'kept': kept._replace(bare_last=False),
    'axes': ', axis=1' if kept.axes == 1 else '',
  }
  return Layer('batch_norm', path, options)
