"""Boxes: variables that carry facts about their axes.

A box is a pytree node around the value of a variable. Modules see the value,
the variables dict holds the box. A lifted transform that adds an axis to a
variable tells the box, by `add_axis` and `remove_axis`.

`Partitioned` is the box for the names of the mesh axes along which an array is
spread over devices.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import jax
import numpy as np

from haiku_state import _versions, errors, struct
from haiku_state.core import _specs
from haiku_state.core._initializers import as_linen
from haiku_state.typing import LogicalNames

_A = TypeVar('_A')
_B = TypeVar('_B')
_Box = TypeVar('_Box', bound='AxisMetadata[Any]')

# The key of `metadata_params` under which `nn.vmap` and `nn.scan` pass on the
# name of the axis that they add.
PARTITION_NAME = 'partition_name'


class AxisMetadata(Generic[_A], metaclass=abc.ABCMeta):
  """The base class of boxes.

  A subclass should be a pytree node whose one child is the value, so that JAX
  maps over the value and keeps the box. Adding an axis and removing it again
  must give an equal box.

  Example:
    >>> from typing import Any
    >>> from haiku_state import struct
    >>> from haiku_state.core import meta
    >>> class Counted(struct.PyTreeNode, meta.AxisMetadata):
    ...   value: Any
    ...   ndim: int = struct.field(pytree_node=False, default=0)
    ...
    ...   def unbox(self):
    ...     return self.value
    ...
    ...   def replace_boxed(self, val):
    ...     return self.replace(value=val)
    ...
    ...   def add_axis(self, index, params):
    ...     return self.replace(ndim=self.ndim + 1)
    ...
    ...   def remove_axis(self, index, params):
    ...     return self.replace(ndim=self.ndim - 1)
    >>> meta.add_axis({'w': Counted(1.0)}, 0, {})
    {'w': Counted(value=1.0, ndim=1)}
  """

  @abc.abstractmethod
  def unbox(self) -> _A:
    """Returns the value, which may be a box again."""

  @abc.abstractmethod
  def replace_boxed(self, val: _B) -> 'AxisMetadata[_B]':
    """Returns a box with the same facts around another value.

    Args:
      val: the value.

    Returns:
      A new box.
    """

  @abc.abstractmethod
  def add_axis(self: _Box, index: int, params: dict[Any, Any]) -> _Box:
    """Returns the box for a value that has one more axis.

    Args:
      index: where the axis is inserted.
      params: the `metadata_params` of the lifted transform.

    Returns:
      A new box around the same value.
    """

  @abc.abstractmethod
  def remove_axis(self: _Box, index: int, params: dict[Any, Any]) -> _Box:
    """Returns the box for a value that has one axis less.

    Args:
      index: which axis is taken away.
      params: the `metadata_params` of the lifted transform.

    Returns:
      A new box around the same value.
    """


def is_axis_metadata(val: Any) -> bool:
  """Says whether a value is a box.

  Args:
    val: any value.

  Returns:
    Whether it is an instance of `AxisMetadata`.
  """
  return isinstance(val, AxisMetadata)


def map_axis_meta(fn: Callable[[AxisMetadata[Any]], Any], tree: Any) -> Any:
  """Maps a function over the boxes of a tree.

  >>> import jax.numpy as jnp
  >>> from haiku_state import core
  >>> from haiku_state.core.meta import Partitioned
  >>> box = Partitioned(jnp.ones((2, 3)), names=(None, 'model'))
  >>> core.map_axis_meta(lambda box: box.names, {'kernel': box, 'bias': 0})
  {'bias': 0, 'kernel': (None, 'model')}

  Args:
    fn: a function of a box.
    tree: a pytree. What is not in a box stays as it is, and so does what is in
      a box within another.

  Returns:
    The tree with the function's results in place of the boxes.
  """
  return jax.tree_util.tree_map(
    lambda x: fn(x) if isinstance(x, AxisMetadata) else x,
    tree,
    is_leaf=is_axis_metadata,
  )


def add_axis(tree: Any, index: int, params: dict[Any, Any]) -> Any:
  """Tells each box of a tree that its value gets an axis.

  Args:
    tree: a pytree.
    index: where the axis is inserted.
    params: the `metadata_params` of the lifted transform.

  Returns:
    The tree with new boxes.
  """
  return map_axis_meta(lambda box: box.add_axis(index, params), tree)


def remove_axis(tree: Any, index: int, params: dict[Any, Any]) -> Any:
  """Tells each box of a tree that its value loses an axis.

  Args:
    tree: a pytree.
    index: which axis is taken away.
    params: the `metadata_params` of the lifted transform.

  Returns:
    The tree with new boxes.
  """
  return map_axis_meta(lambda box: box.remove_axis(index, params), tree)


# Types seen to be those of arrays, which hold no box. Every parameter is
# unboxed, and looking up a type costs less than asking for an `isinstance`.
_array_types: set[type] = set()


def _is_array(x: Any) -> bool:
  if isinstance(x, (jax.Array, np.ndarray, np.generic, int, float)):
    _array_types.add(type(x))
    return True
  return False


def unbox(tree: Any) -> Any:
  """Takes the values of a tree out of their boxes.

  Args:
    tree: a pytree; boxes may hold boxes.

  Returns:
    The tree without boxes; an array is returned as it is.

  Example:
    >>> from haiku_state.core import meta
    >>> meta.unbox({'w': meta.Partitioned(1.0, names=('data',)), 'b': 2.0})
    {'b': 2.0, 'w': 1.0}
  """
  if type(tree) in _array_types or _is_array(tree):
    return tree
  if isinstance(tree, AxisMetadata):
    return unbox(tree.unbox())
  return map_axis_meta(lambda box: unbox(box.unbox()), tree)


def replace_boxed(tree: Any, updates: Any) -> Any:
  """Puts other values into the boxes of a tree.

  Args:
    tree: a pytree.
    updates: a tree of the structure of `unbox(tree)`.

  Returns:
    The updates, in boxes where the tree has some.

  Example:
    >>> from haiku_state.core import meta
    >>> boxed = {'w': meta.Partitioned(1.0, names=('data',)), 'b': 2.0}
    >>> meta.unbox(meta.replace_boxed(boxed, {'w': 3.0, 'b': 4.0}))
    {'b': 4.0, 'w': 3.0}
  """
  if _is_array(tree):
    return updates
  return jax.tree_util.tree_map(
    _replace_in_box, tree, updates, is_leaf=is_axis_metadata
  )


def _replace_in_box(old, new):
  if isinstance(old, AxisMetadata):
    return old.replace_boxed(replace_boxed(old.unbox(), new))
  return new


def get_global_mesh() -> 'jax.sharding.AbstractMesh | jax.sharding.Mesh | None':
  """Returns the mesh set by `jax.set_mesh`, or None."""
  return _versions.current_mesh()


def global_mesh_defined() -> bool:
  """Says whether a mesh is set by `jax.set_mesh`."""
  return get_global_mesh() is not None


class Partitioned(struct.PyTreeNode, AxisMetadata[_A]):
  """A box that names, for each axis of an array, the mesh axes it is over.

  Attributes:
    value: the array.
    names: for each axis of the array the name of a mesh axis, or a tuple of
      such names, or None if it is whole on every device.
    mesh: the mesh; if None, the one set by `jax.set_mesh`.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> import haiku_state.linen as nn
    >>> from jax.sharding import PartitionSpec
    >>> class MLP(nn.Module):
    ...   @nn.compact
    ...   def __call__(self, x):
    ...     ones = nn.initializers.ones
    ...     up = nn.with_partitioning(ones, ('data', 'model'))
    ...     down = nn.with_partitioning(ones, ('model', 'data'))
    ...     h = nn.relu(nn.Dense(8, kernel_init=up)(x))
    ...     return nn.Dense(4, kernel_init=down)(h)
    >>> shapes = jax.eval_shape(MLP().init, jax.random.key(0), jnp.ones((2, 4)))
    >>> specs = nn.get_partition_spec(shapes)
    >>> specs['params']['Dense_0']['kernel'] == PartitionSpec('data', 'model')
    True
  """

  value: Any
  names: LogicalNames = struct.field(pytree_node=False)
  mesh: jax.sharding.Mesh | None = struct.field(default=None, pytree_node=False)

  def __eq__(self, other):
    # As tuples, since from Python 3.13 on dataclasses compare field by field,
    # which fails for an array even if it is the same one on both sides.
    if type(other) is not type(self):
      return NotImplemented
    return _field_values(self) == _field_values(other)

  def unbox(self, apply_constraint: bool = True) -> _A:  # type: ignore[override]
    """Returns the array, constrained to its names if there is a mesh.

    Args:
      apply_constraint: False for the array as it is.

    Returns:
      The array.
    """
    if not apply_constraint:
      return self.value
    return _specs.constrain(self.value, self.get_partition_spec(), self.mesh)

  def replace_boxed(self, val: _B) -> 'Partitioned[_B]':
    """Returns a box with the same names around another array."""
    return self.replace(value=val)  # type: ignore[return-value]

  def add_axis(self, index: int, params: dict[Any, Any]) -> 'Partitioned[_A]':
    """Returns the box with `params[PARTITION_NAME]` as a further name.

    Args:
      index: where the name is inserted.
      params: the `metadata_params` of the lifted transform.

    Returns:
      A new box.

    Raises:
      PartitioningUnspecifiedError: there is no name in `params`.
    """
    name = self._partition_name(params)
    names = list(self.names)
    names.extend([None] * (index - len(names)))
    names.insert(index, name)
    return self.replace(names=tuple(names))

  def remove_axis(
    self, index: int, params: dict[Any, Any]
  ) -> 'Partitioned[_A]':
    """Returns the box without the name at an index.

    Args:
      index: which name is taken away; it must be `params[PARTITION_NAME]`.
      params: the `metadata_params` of the lifted transform.

    Returns:
      A new box.

    Raises:
      AssertionError: the name at the index is another.
      PartitioningUnspecifiedError: there is no name in `params`.
    """
    expected = self._partition_name(params)
    names = list(self.names)
    found = names.pop(index)
    if found != expected:
      raise AssertionError(
        f'Expected the axis {index} of {self.names} to be {expected!r}, the '
        f'{PARTITION_NAME!r} of metadata_params, but it is {found!r}.'
      )
    return self.replace(names=tuple(names))

  def _partition_name(self, params):
    if PARTITION_NAME not in params:
      raise errors.PartitioningUnspecifiedError(self)
    return params[PARTITION_NAME]

  def get_partition_spec(self) -> jax.sharding.PartitionSpec:
    """Returns the names as a PartitionSpec."""
    return jax.sharding.PartitionSpec(*self.names)

  def get_sharding(self, mesh: jax.sharding.Mesh) -> jax.sharding.Sharding:
    """Returns the names as a NamedSharding over a mesh."""
    return jax.sharding.NamedSharding(mesh, self.get_partition_spec())


def _field_values(box):
  return tuple(getattr(box, field.name) for field in dataclasses.fields(box))


def with_partitioning(
  fn: Callable[..., _A],
  names: LogicalNames,
  mesh: jax.sharding.Mesh | None = None,
) -> Callable[..., Partitioned[_A]]:
  """Wraps an initializer so that it returns a `Partitioned` box.

  Args:
    fn: the initializer, or any function that returns an array.
    names: a name, a tuple of names or None for each axis of the array.
    mesh: the mesh; if None, the one set by `jax.set_mesh`.

  Returns:
    The wrapped function.

  Example:
    >>> import jax
    >>> import haiku_state.linen as nn
    >>> init = nn.with_partitioning(nn.initializers.ones, (None, 'model'))
    >>> init(jax.random.key(0), (2, 3)).names
    (None, 'model')
  """

  init_fn = as_linen(fn)

  @functools.wraps(fn)
  def wrapper(*args, **kwargs):
    return Partitioned(init_fn(*args, **kwargs), names, mesh=mesh)

  return wrapper


def get_partition_spec(
  tree: Any, *, params: Any = None, keep_boxes: bool = False
) -> Any:
  """Returns the PartitionSpec of each array of a tree.

  The tree may hold the state of an optimizer beside the parameters: it may be a
  `TrainState`, an `optim.Optimizer`, or anything with `params` in it. What an
  optimizer keeps of a parameter is in the parameter's box, but need not have
  its shape, as the averages of rows and columns of Adafactor have not. Such an
  array gets the names of those axes that it has of the parameter, as far as
  sizes tell them, and is whole on every device else. So each spec is one that
  the array can have.

  Args:
    tree: a pytree of arrays, boxed or not, or of their shapes.
    params: the boxed parameters, or their shapes, where the tree has none: with
      the state of an optimizer alone.
    keep_boxes: whether the specs are in boxes as the arrays are. The result
      then has the structure of the tree, for `jax.tree.map`.

  Returns:
    A tree with a spec for each box; the empty one, which stands for "whole on
    every device", for each array without a box; and None for anything else.
    A box that holds a whole tree, as in an `optim.Optimizer`, remains, around
    the specs of that tree. So it is a prefix of `tree`, such as `out_shardings`
    and `jax.device_put` take.

  Example:
    >>> import jax.numpy as jnp, optax
    >>> from haiku_state.core import meta
    >>> w = meta.Partitioned(jnp.ones((2, 3)), names=(None, 'model'))
    >>> specs = meta.get_partition_spec({'w': w, 'b': jnp.ones(3), 'step': 0})
    >>> tuple(specs['w']), tuple(specs['b']), specs['step']
    ((None, 'model'), (), None)
    >>> state = optax.adafactor(0.1, min_dim_size_to_factor=2).init({'w': w})
    >>> specs = meta.get_partition_spec({'params': {'w': w}, 'state': state})
    >>> averages = specs['state'][0]
    >>> tuple(averages.v_row['w']), tuple(averages.v_col['w'])
    ((None,), ('model',))
  """
  return _map_specs(lambda box, spec: spec, tree, params, keep_boxes)


def get_sharding(
  tree: Any,
  mesh: jax.sharding.Mesh,
  *,
  params: Any = None,
  keep_boxes: bool = False,
) -> Any:
  """Returns the sharding over a mesh of each array of a tree.

  >>> import jax, jax.numpy as jnp
  >>> import haiku_state.linen as nn
  >>> mesh = jax.sharding.Mesh(jax.devices()[:1], ('model',))
  >>> box = nn.Partitioned(jnp.ones((2, 3)), names=(None, 'model'))
  >>> tuple(nn.get_sharding({'kernel': box}, mesh)['kernel'].spec)
  (None, 'model')

  Args:
    tree: a pytree of arrays, boxed or not, or of their shapes; see
      `get_partition_spec`.
    mesh: the mesh.
    params: see `get_partition_spec`.
    keep_boxes: see `get_partition_spec`.

  Returns:
    A tree with a NamedSharding for each array, boxed or not, and None for
    anything else.
  """

  def sharding_of(x: Any, spec: Any) -> Any:
    # A box may have its own idea, which is about what has its own spec.
    if hasattr(x, 'get_sharding') and spec == _own_spec(x):
      return x.get_sharding(mesh)
    return None if spec is None else jax.sharding.NamedSharding(mesh, spec)

  return _map_specs(sharding_of, tree, params, keep_boxes)


def _map_specs(
  fn: Callable[[Any, Any], Any], tree: Any, params: Any, keep_boxes: bool
) -> Any:
  """Maps a function over each array, or the box around it, and its spec."""
  known = _param_shapes(tree, params)

  def in_box(path: Any, box: Any) -> Any:
    spec = box.get_partition_spec()
    shape = known.of(path, spec)

    def on_array(x: Any) -> Any:
      if not hasattr(x, 'shape'):
        return fn(x, None)
      return fn(box, _specs.spec_for_shape(spec, shape, x.shape))

    inner = _raw(box)
    if _is_leaf(inner) and not keep_boxes:
      return on_array(inner)
    return box.replace_boxed(jax.tree_util.tree_map(on_array, inner))

  def on_leaf(path: Any, x: Any) -> Any:
    return (
      in_box(path, x) if isinstance(x, Partitioned) else fn(x, _own_spec(x))
    )

  return jax.tree_util.tree_map_with_path(
    on_leaf, tree, is_leaf=is_axis_metadata
  )


def _param_shapes(tree: Any, params: Any) -> _specs.ParamShapes:
  """Returns the shapes of the boxed parameters, those of a tree if not given."""
  found = _specs.ParamShapes()
  leaves, _ = jax.tree_util.tree_flatten_with_path(
    tree if params is None else params, is_leaf=is_axis_metadata
  )
  for path, box in leaves:
    place = _specs.place_of_param(path)
    if place is None and params is not None:
      place = path
    if place is not None and isinstance(box, Partitioned):
      if hasattr(_raw(box), 'shape'):
        found.add(place, box.get_partition_spec(), _raw(box).shape)
  return found


def _raw(box: Partitioned[Any]) -> Any:
  inner = box.unbox(apply_constraint=False)
  return _raw(inner) if isinstance(inner, Partitioned) else inner


def _is_leaf(x: Any) -> bool:
  return jax.tree_util.treedef_is_leaf(jax.tree_util.tree_structure(x))


def _own_spec(x: Any) -> jax.sharding.PartitionSpec | None:
  if hasattr(x, 'get_partition_spec'):
    return x.get_partition_spec()
  return jax.sharding.PartitionSpec() if hasattr(x, 'shape') else None
