"""Which layer of a converted model parts first.

`compare` runs a Haiku function and a linen-style module on the same weights and
the same inputs, and sets the outputs and gradients of each pair of layers side
by side.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from haiku_state.core.filters import DenyList
from haiku_state.core.tracers import current_trace
from haiku_state.interop._checks import described
from haiku_state.interop.weights import Mappings, weights_from_haiku
from haiku_state.linen.module import Module, intercept_methods

# The row of the whole model.
OUTPUT = 'output'


@dataclasses.dataclass(frozen=True)
class LayerDifference:
  """How far two layers are apart.

  Attributes:
    haiku: the name of the Haiku module, `output` for the whole.
    linen: the names of the linen module, joined by `/`.
    output: the largest difference of their outputs; None where one of them was
      not called, or only inside of a loop; NaN or infinite where theirs are, or where shapes differ.
    gradient: the largest difference of the gradients of their parameters, in
      Haiku's layout; of the inputs for the whole. None if there are none.
  """

  haiku: str
  linen: str
  output: float | None
  gradient: float | None

  def parts(self, tolerance: float) -> bool:
    """Returns whether a difference is larger than the tolerance, or NaN."""
    found = (self.output, self.gradient)
    return any(x is not None and not x <= tolerance for x in found)


@dataclasses.dataclass(frozen=True)
class Comparison:
  """A table of differences, layer by layer in the order of Haiku's calls.

  >>> import haiku as hk, jax.numpy as jnp
  >>> import haiku_state.linen as nn
  >>> from haiku_state import interop
  >>> from haiku_state.interop import layers
  >>> f = hk.transform(lambda x: hk.Linear(2)(x))
  >>> comparison = interop.compare(
  ...   f, nn.Dense(2), {'linear': layers.linear('')}, [jnp.ones((1, 3))])
  >>> comparison.equal, len(comparison.rows)
  (True, 2)

  Attributes:
    rows: the layers, and the whole model at the end.
    tolerance: what counts as equal.
  """

  rows: tuple[LayerDifference, ...]
  tolerance: float

  @property
  def first(self) -> LayerDifference | None:
    """The first layer whose outputs part; else the first of the gradients."""
    by_output = (
      row
      for row in self.rows
      if row.output is not None and not row.output <= self.tolerance
    )
    parted = (row for row in self.rows if row.parts(self.tolerance))
    return next(by_output, None) or next(parted, None)

  @property
  def equal(self) -> bool:
    """Whether all differences are within the tolerance."""
    return self.first is None

  def __str__(self) -> str:
    first = self.first
    cells = [('haiku', 'linen', 'output', 'gradient', '')]
    for row in self.rows:
      mark = '<- parts first' if row is first else ''
      cells.append(
        (row.haiku, row.linen, _text(row.output), _text(row.gradient), mark)
      )
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = [
      '  '.join(text.ljust(n) for text, n in zip(row, widths)).rstrip()
      for row in cells
    ]
    return '\n'.join(lines)

  def plot(self, ax: Any = None) -> Any:
    """Draws the table; returns the axes of matplotlib.

    Args:
      ax: the axes to draw into, by default new ones.

    Raises:
      ImportError: matplotlib is not installed.
    """
    try:
      import matplotlib.pyplot as plt
    except ImportError as e:
      raise ImportError(
        "A picture needs, in a clone of haiku_state: pip install '.[plot]'"
      ) from e
    if ax is None:
      _, ax = plt.subplots(figsize=(6, 1 + 0.25 * len(self.rows)))
    # A difference of zero has no place on a logarithmic axis.
    least = self.tolerance * 1e-4
    places = np.arange(len(self.rows))
    for attribute, mark in (('output', 'o'), ('gradient', 'x')):
      values = [getattr(row, attribute) for row in self.rows]
      drawn = [np.nan if v is None else max(v, least) for v in values]
      ax.plot(drawn, places, mark, label=attribute)
    ax.axvline(self.tolerance, linestyle=':', color='gray', label='tolerance')
    ax.set_xscale('log')
    ax.set_yticks(places, [row.haiku for row in self.rows])
    ax.invert_yaxis()
    ax.set_xlabel('largest difference')
    ax.legend()
    return ax


def _text(x: float | None) -> str:
  return '-' if x is None else f'{x:.1e}'


# --- Running both ------------------------------------------------------------


def compare(
  haiku_function: Any,
  linen_module: Module,
  mapping: Mappings,
  inputs: Sequence[Any],
  *,
  weights: tuple[Mapping[str, Any], Mapping[str, Any]] | None = None,
  rng: jax.Array | None = None,
  haiku_kwargs: Mapping[str, Any] | None = None,
  linen_kwargs: Mapping[str, Any] | None = None,
  tolerance: float = 1e-5,
) -> Comparison:
  """Runs a Haiku function and a linen-style module on the same weights.

  >>> import haiku_state.linen as nn
  >>> from haiku_state.interop import layers
  >>> f = hk.transform(lambda x: hk.Linear(2)(x))
  >>> mapping = {'linear': layers.linear('')}
  >>> compare(f, nn.Dense(2), mapping, [jnp.ones((1, 3))]).equal
  True

  Args:
    haiku_function: the result of `hk.transform` or `hk.transform_with_state`.
    linen_module: the module.
    mapping: which layer is which, as for `weights_from_haiku`.
    inputs: the arguments of both.
    weights: parameters and state of Haiku's; by default `init` makes them.
    rng: the key of `init` and of dropout. With dropout the two are not equal.
    haiku_kwargs: further arguments of the Haiku function.
    linen_kwargs: further arguments of the module.
    tolerance: what counts as equal.

  Returns:
    The differences. Gradients are those of a fixed weighted sum of the outputs.

  Raises:
    ConversionError: the mapping does not fit.
    TypeError: the first is no Haiku function, or the second no module.
  """
  if isinstance(haiku_function, Module) or not isinstance(linen_module, Module):
    raise TypeError(
      'compare takes the Haiku function first and the linen-style module second,'
      f' found {described(haiku_function)} and {described(linen_module)}.'
    )
  f = haiku_function
  if isinstance(f, hk.Transformed):
    f = hk.with_empty_state(f)
  haiku_kwargs, linen_kwargs = (
    dict(haiku_kwargs or {}),
    dict(linen_kwargs or {}),
  )
  key = jax.random.PRNGKey(0) if rng is None else rng
  params, state = weights or f.init(key, *inputs, **haiku_kwargs)
  weights_from_haiku(params, state, mapping)  # For its errors.
  order: list[str] = []

  def run_haiku(params, inputs):
    with _haiku_outputs(mapping, order) as outputs:
      y, _ = f.apply(params, state, rng, *inputs, **haiku_kwargs)
    return y, dict(outputs)

  def run_linen(params, inputs):
    variables, _ = weights_from_haiku(params, state, mapping)
    rngs = None if rng is None else {'params': rng}
    with _linen_outputs(mapping) as outputs:
      y, _ = linen_module.apply(
        variables,
        *inputs,
        rngs=rngs,
        mutable=DenyList('params'),
        **linen_kwargs,
      )
    return y, dict(outputs)

  ours = _outputs_and_gradients(run_linen, params, inputs)
  theirs = _outputs_and_gradients(run_haiku, params, inputs)
  paths = list(dict.fromkeys([*order, *mapping]))
  rows = [_row(path, mapping, ours, theirs) for path in paths]
  last = LayerDifference(
    OUTPUT, OUTPUT, _largest(ours.y, theirs.y), _largest(ours.dx, theirs.dx)
  )
  return Comparison((*rows, last), tolerance)


@contextlib.contextmanager
def _haiku_outputs(
  mapping: Mappings, order: list[str]
) -> Iterator[dict[str, Any]]:
  """Gathers what the mapped Haiku modules return, call after call.

  What is returned inside of a loop cannot leave it.
  """
  outputs: dict[str, list[Any]] = {}
  outside = current_trace()

  def take(next_f, args, kwargs, context):
    out = next_f(*args, **kwargs)
    path = context.module.module_name
    if (
      path is not None and context.method_name == '__call__' and path in mapping
    ):
      order.append(path)
      if current_trace() == outside:
        outputs.setdefault(path, []).append(out)
    return out

  with hk.intercept_methods(take):
    yield outputs


@contextlib.contextmanager
def _linen_outputs(mapping: Mappings) -> Iterator[dict[str, Any]]:
  """Gathers what the mapped linen modules return, by Haiku's names."""
  names = {layer.names: path for path, layer in mapping.items()}
  outputs: dict[str, list[Any]] = {}
  outside = current_trace()

  def take(next_f, args, kwargs, context):
    out = next_f(*args, **kwargs)
    path = names.get(tuple(context.module.path))
    if path is None or context.method_name != '__call__':
      return out
    if current_trace() == outside:
      outputs.setdefault(path, []).append(out)
    return out

  with intercept_methods(take):
    yield outputs


@dataclasses.dataclass(frozen=True)
class _Run:
  """The outputs and gradients of one of the two."""

  y: Any
  layers: Mapping[str, Any]
  dparams: Mapping[str, Any]
  dx: Any


def _outputs_and_gradients(
  run: Callable[..., Any], params: Any, inputs: Sequence[Any]
) -> _Run:
  floats = [_is_float(x) for x in jax.tree.leaves(inputs)]

  @jax.jit
  def both(params, inputs):
    def loss(params, leaves):
      given = iter(leaves)
      full = [
        next(given) if is_float else x
        for is_float, x in zip(floats, jax.tree.leaves(inputs))
      ]
      y, layers = run(params, jax.tree.unflatten(structure, full))
      return _weighted(y), (y, layers)

    structure = jax.tree.structure(inputs)
    moving = [x for x in jax.tree.leaves(inputs) if _is_float(x)]
    grad = jax.grad(loss, argnums=(0, 1), has_aux=True)
    (dparams, dx), (y, layers) = grad(params, moving)
    return y, layers, dparams, dx

  return _Run(*both(params, list(inputs)))


def _is_float(x: Any) -> bool:
  return jnp.issubdtype(jnp.result_type(x), jnp.floating)


def _weighted(y: Any) -> Any:
  """Returns a sum in which every output has a weight of its own."""
  total = jnp.zeros(())
  for leaf in jax.tree.leaves(y):
    if _is_float(leaf):
      weights = jnp.cos(jnp.arange(leaf.size, dtype=leaf.dtype))
      total += jnp.sum(leaf * weights.reshape(leaf.shape))
  return total


def _row(
  path: str, mapping: Mappings, ours: _Run, theirs: _Run
) -> LayerDifference:
  output = None
  if path in ours.layers and path in theirs.layers:
    output = _largest(ours.layers[path], theirs.layers[path])
  own = [p for p in theirs.dparams if p == path or p.startswith(path + '/')]
  pairs = [(ours.dparams[p], theirs.dparams[p]) for p in own]
  gradient = _largest(*zip(*pairs)) if pairs else None
  return LayerDifference(path, '/'.join(mapping[path].names), output, gradient)


def _largest(a: Any, b: Any) -> float | None:
  """Returns the largest difference of two trees; infinite if shapes differ."""
  a, b = jax.tree.leaves(a), jax.tree.leaves(b)
  if not a and not b:
    return None
  if [jnp.shape(x) for x in a] != [jnp.shape(x) for x in b]:
    # Layers with state beside their output may order it in their own ways.
    a, b = sorted(a, key=jnp.size), sorted(b, key=jnp.size)
    if [jnp.shape(x) for x in a] != [jnp.shape(x) for x in b]:
      return float('inf')
  differences = [
    float(np.max(np.abs(np.asarray(x, np.float64) - np.asarray(y, np.float64))))
    for x, y in zip(a, b)
    if jnp.size(x)
  ]
  # The maximum of NumPy keeps NaN, that of Python does not.
  return float(np.max(differences)) if differences else None
