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


def _conv_transpose(options: Mapping[str, Any]) -> tuple[Leaf, ...]:
  fn = _flip if options['transpose_kernel'] else _swap
  return (
    Leaf(('w',), ('params', 'kernel'), fn, fn),
    Leaf(('b',), ('params', 'bias'), same, same),
  )


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
  'conv': _renamed('Conv', w='kernel', b='bias'),
  'conv_transpose': lv.Kind(
    'ConvTranspose(transpose_kernel={transpose_kernel})', _conv_transpose
  ),
  'depthwise_conv': _renamed(
    'Conv(feature_group_count=channels of the input)', w='kernel', b='bias'
  ),
  'layer_norm': _renamed(f'LayerNorm({_NORM})', scale='scale', offset='bias'),
  'rms_norm': _renamed('RMSNorm(epsilon=1e-5)', scale='scale'),
  'group_norm': _renamed(f'GroupNorm({_NORM})', scale='scale', offset='bias'),
  'instance_norm': _renamed(
    f'InstanceNorm({_NORM})', scale='scale', offset='bias'
  ),
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


def conv(path: str) -> Layer:
  """Maps `hk.ConvND` (`hk.Conv1D`, `2D`, `3D`) to `Conv`."""
  return Layer('conv', path)


def conv_transpose(path: str, transpose_kernel: bool = False) -> Layer:
  """Maps `hk.ConvNDTranspose` to `ConvTranspose`.

  Args:
    path: where the linen module is.
    transpose_kernel: the argument of the linen module.
  """
  options = {'transpose_kernel': transpose_kernel}
  return Layer('conv_transpose', path, options)


def depthwise_conv(path: str) -> Layer:
  """Maps `hk.DepthwiseConvND` to `Conv` with a group for each channel."""
  return Layer('depthwise_conv', path)


def layer_norm(path: str) -> Layer:
  """Maps `hk.LayerNorm` to `LayerNorm(epsilon=1e-5)`."""
  return Layer('layer_norm', path)


def rms_norm(path: str) -> Layer:
  """Maps `hk.RMSNorm` to `RMSNorm(epsilon=1e-5)`."""
  return Layer('rms_norm', path)


def group_norm(path: str) -> Layer:
  """Maps `hk.GroupNorm` to `GroupNorm(epsilon=1e-5)`."""
  return Layer('group_norm', path)


def instance_norm(path: str) -> Layer:
  """Maps `hk.InstanceNorm` to `InstanceNorm(epsilon=1e-5)`."""
  return Layer('instance_norm', path)


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
      axes; by default that of the Haiku tree that is given as `target`, or 2.
  """
  options = {
    'for_': for_,
    'momentum': momentum,
    'counter': counter,
    'rank': rank,
  }
  return Layer('batch_norm', path, options)
