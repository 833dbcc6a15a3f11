"""How arrays lie on a mesh: constraints, and specs that fit a shape."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.core import Tracer
from jax.sharding import PartitionSpec

from haiku_state import _versions

_Shape = tuple[int, ...]
_Path = tuple[Any, ...]


def constrain(
  value: Any,
  spec: PartitionSpec,
  mesh: 'jax.sharding.AbstractMesh | jax.sharding.Mesh | None' = None,
) -> Any:
  """Lays an array out along the axes of a mesh, of whatever kinds they are.

  Along automatic axes this is a constraint for the compiler; along explicit
  ones it changes the type of the array. Inside of `jax.shard_map` the axes are
  manual: there the array is the part of one device, and stays as it is.

  Args:
    value: the array.
    spec: for each axis of the array the mesh axes along which it lies.
    mesh: the mesh; if None, the one set by `jax.set_mesh`. Without one, nothing
      happens.

  Returns:
    The array.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from haiku_state.core import _specs
    >>> mesh = jax.sharding.Mesh(jax.devices()[:1], ('data',))
    >>> spec = jax.sharding.PartitionSpec('data')
    >>> constrained = jax.jit(lambda x: _specs.constrain(x, spec, mesh))
    >>> float(constrained(jnp.ones(2)).sum())
    2.0
  """
  around: Any = _versions.current_mesh() if mesh is None else mesh
  if around is None:
    return value
  axes = {
    kind: _versions.axes_of_kind(around, kind) for kind in ('Explicit', 'Auto')
  }

  def target(kind) -> Any:
    # A name that the mesh does not have stays: JAX says that it has not.
    part = without_names(spec, set(around.axis_names) - axes[kind])
    return part if mesh is None else jax.sharding.NamedSharding(mesh, part)  # type: ignore

  def lay_out(x):
    if axes['Explicit']:
      x = _versions.reshard(x, target('Explicit'))
    if axes['Auto']:
      x = jax.lax.with_sharding_constraint(x, target('Auto'))
    return x

  # Of two steps, the second would undo the first if it were done at once.
  in_one = all(axes.values()) and not isinstance(value, Tracer)
  return jax.jit(lay_out)(value) if in_one else lay_out(value)


def without_names(spec: PartitionSpec, names: set[str]) -> PartitionSpec:
  """Returns a spec without some mesh axes.

  Args:
    spec: mesh axes, tuples of such, and None.
    names: the mesh axes to leave out.

  Returns:
    A spec as long as the one given.
  """

  def rest(entry):
    if isinstance(entry, tuple):
      return tuple(name for name in entry if name not in names) or None
    return None if entry in names else entry

  return PartitionSpec(*map(rest, spec)) if names else spec


def spec_for_shape(
  spec: PartitionSpec, param_shape: _Shape | None, shape: _Shape
) -> PartitionSpec:
  """Returns what is left of a parameter's spec for an array made of it.

  Args:
    spec: the spec of the parameter.
    param_shape: the shape of the parameter; None if it is not known.
    shape: the shape of the array: that of the parameter, or with axes reduced
      to size 1 or away, or with more axes.

  Returns:
    The names of those axes of the array that are axes of the parameter, by
    their sizes and order. The empty spec where these allow several answers.

  Example:
    >>> spec = PartitionSpec('data', 'model')
    >>> tuple(spec_for_shape(spec, (4, 6), (1, 6)))
    (None, 'model')
    >>> tuple(spec_for_shape(spec, (4, 6), (4,)))
    ('data',)
    >>> tuple(spec_for_shape(spec, (4, 6), (3, 4, 6)))
    (None, 'data', 'model')
    >>> tuple(spec_for_shape(spec, (4, 4), (4,)))
    ()
  """
  if shape == param_shape:
    return spec
  if param_shape is None:
    return spec if len(shape) >= len(spec) else PartitionSpec()
  names = (*spec, *[None] * (len(param_shape) - len(spec)))
  answers = {_named(names, axes) for axes in _origins(param_shape, shape)}
  return answers.pop() if len(answers) == 1 else PartitionSpec()


def _origins(
  param_shape: _Shape, shape: _Shape
) -> list[tuple[int | None, ...]]:
  """Lists which axis of the parameter each axis of an array may be."""
  more = len(shape) - len(param_shape)
  if more == 0:
    pairs = enumerate(zip(param_shape, shape))
    return [tuple(i if a == b else None for i, (a, b) in pairs)]
  if more < 0:
    # Axes were reduced away.
    return [
      axes
      for axes in itertools.combinations(range(len(param_shape)), len(shape))
      if tuple(param_shape[i] for i in axes) == shape
    ]
  if shape[more:] == param_shape:
    # Several arrays like the parameter were stacked.
    return [(None,) * more + tuple(range(len(param_shape)))]
  return []


def _named(names: Sequence[Any], axes: Sequence[int | None]) -> PartitionSpec:
  return PartitionSpec(*(None if i is None else names[i] for i in axes))


class ParamShapes:
  """The shapes of parameters, by where they are in a tree.

  What an optimizer keeps of a parameter has its names, and the end of its path:
  `.params['dense']['kernel']` and `.opt_state[0].mu['dense']['kernel']`.
  """

  def __init__(self) -> None:
    self._shapes: dict[tuple[PartitionSpec, _Path], _Shape] = {}

  def add(self, place: _Path, spec: PartitionSpec, shape: _Shape) -> None:
    """Adds a parameter.

    Args:
      place: its path in the tree of parameters, as JAX gives it.
      spec: its spec.
      shape: its shape. Of several at one place the largest counts, if it has as
        many axes as the spec: nothing that is made of a parameter by reducing
        it is larger.
    """

    def rank(shape: _Shape) -> tuple[bool, int]:
      return len(shape) == len(spec), math.prod(shape)

    known = self._shapes.get((spec, place))
    if known is None or rank(shape) > rank(known):
      self._shapes[spec, place] = shape

  def of(self, path: _Path, spec: PartitionSpec) -> _Shape | None:
    """Returns the shape of the parameter that an array belongs to, or None."""
    ends = ((spec, path[i:]) for i in range(len(path) + 1))
    return next((self._shapes[e] for e in ends if e in self._shapes), None)


def place_of_param(path: _Path) -> _Path | None:
  """Returns where a parameter is below what holds parameters, or None.

  Args:
    path: a path in a tree in which the parameters are under `params`, an
      attribute or a key, or under the attribute `target`.
  """
  for i in range(len(path), 0, -1):
    name = getattr(path[i - 1], 'name', None)
    if name in ('params', 'target') or getattr(path[i - 1], 'key', None) == (
      'params'
    ):
      return path[i:]
  return None
