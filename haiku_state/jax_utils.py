"""Helpers for several devices, lazy shapes and scans over any dimension."""

import collections
import itertools
import warnings
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import ShapedArray
from jax.interpreters import partial_eval
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from haiku_state import _versions


def replicate(tree, devices=None, axis_name='_device_put_sharded'):
  """Copies each array to several devices.

  Args:
    tree: a pytree of arrays or numbers.
    devices: where to; if not given, the local devices in `jax.pmap`'s order.
    axis_name: the name of the mesh axis over the devices.

  Returns:
    The pytree with arrays [devices, ...], one slice on each device.

  Example:
    >>> import jax, numpy as np
    >>> from haiku_state import jax_utils
    >>> copies = jax_utils.replicate({'w': np.ones(3)})
    >>> copies['w'].shape == (jax.local_device_count(), 3)
    True
    >>> jax_utils.unreplicate(copies)['w'].shape
    (3,)
  """
  devices = devices or jax.local_devices()
  sharding = _one_slice_each(devices, axis_name)

  def copy(x):
    numpy = jnp if isinstance(x, jax.Array) else np
    copies = numpy.broadcast_to(x, (len(devices), *np.shape(x)))
    return jax.device_put(copies, sharding)

  return jax.tree.map(copy, tree)


def _one_slice_each(devices, axis_name):
  mesh = jax.sharding.Mesh(np.array(devices), (axis_name,))
  return NamedSharding(mesh, PartitionSpec(axis_name))


def unreplicate(tree):
  """Takes one copy of arrays that `replicate` or `jax.pmap` made.

  >>> import jax.numpy as jnp
  >>> from haiku_state import jax_utils
  >>> replicated = jax_utils.replicate({'w': jnp.ones(2)})
  >>> jax_utils.unreplicate(replicated)
  {'w': Array([1., 1.], dtype=float32)}

  Args:
    tree: a pytree of arrays [devices, ...].

  Returns:
    The pytree with arrays [...]. An array that is whole on every device, and a
    scalar, is returned as it is there.
  """
  return jax.tree.map(_first_copy, tree)


def _first_copy(x):
  if getattr(x, 'ndim', None) == 0:
    return x
  sharding = getattr(x, 'sharding', None)
  if (
    sharding is None
    or isinstance(sharding, SingleDeviceSharding)
    or jax.local_device_count() == 1
  ):
    return x[0]
  # Indexing a sharded array would run a program over all its devices.
  shard = x.addressable_shards[0].data
  # Old versions of `jax.pmap` take the axis out of the shards themselves.
  is_whole = sharding.is_fully_replicated or shard.ndim < x.ndim
  return shard if is_whole else shard.squeeze(0)


def pmean(xs, axis_name):
  """Is `jax.lax.pmean`. Deprecated.

  >>> import jax, jax.numpy as jnp
  >>> from haiku_state import jax_utils
  >>> mean = lambda x: jax_utils.pmean(x, 'batch')
  >>> jax.vmap(mean, axis_name='batch')(jnp.array([1.0, 3.0]))
  Array([2., 2.], dtype=float32)
  """
  warnings.warn('use jax.lax.pmean instead', DeprecationWarning, stacklevel=2)
  return lax.pmean(xs, axis_name)


def partial_eval_by_shape(fn, input_spec, *args, **kwargs):
  """Calls `fn` on inputs of which only shape and dtype are known.

  Other than with `jax.eval_shape`, an output that does not depend on the
  inputs is computed: this is how variables are initialized without data.

  Args:
    fn: a function of arrays.
    input_spec: for each array a shape, or a pair of shape and dtype. Without a
      dtype it is float32.
    *args: further arguments of `fn`, with their values.
    **kwargs: further keyword arguments of `fn`, with their values.

  Returns:
    What `fn` returns, with a `jax.ShapeDtypeStruct` for each array that
    depends on the inputs.

  Example:
    >>> import jax.numpy as jnp
    >>> from haiku_state import jax_utils
    >>> jax_utils.partial_eval_by_shape(
    ...   lambda x: (x @ jnp.ones((3, 5)), 7), [(2, 3)])
    (ShapeDtypeStruct(shape=(2, 5), dtype=float32), 7)
  """
  inputs = [_parse_spec(spec) for spec in input_spec]
  out_tree = None

  def flat_fn(*arrays):
    nonlocal out_tree
    leaves, out_tree = jax.tree.flatten(fn(*arrays, *args, **kwargs))
    return leaves

  # JAX has no public function for this; these are the modules it documents
  # for building transformations.
  unknown = [
    partial_eval.PartialVal.unknown(ShapedArray(x.shape, x.dtype))
    for x in inputs
  ]
  wrapped = _versions.wrap_init(
    flat_fn, 'partial_eval_by_shape', fn, tuple(inputs)
  )
  _, outputs, _ = partial_eval.trace_to_jaxpr_nounits(wrapped, unknown)
  leaves = [
    value if aval is None else jax.ShapeDtypeStruct(aval.shape, aval.dtype)
    for aval, value in outputs
  ]
  return jax.tree.unflatten(out_tree, leaves)


def _parse_spec(spec):
  spec = tuple(spec)
  if len(spec) == 2 and isinstance(spec[0], Iterable):
    shape, dtype = spec
    return jax.ShapeDtypeStruct(tuple(shape), dtype)
  return jax.ShapeDtypeStruct(spec, jnp.float32)


def prefetch_to_device(
  iterator, size, devices=None, axis_name='_device_put_sharded'
):
  """Puts batches onto the devices before they are needed.

  On GPUs this overlaps the transfer of the next batch with the current step.

  Args:
    iterator: yields pytrees of arrays [devices, ...].
    size: how many batches to hold on the devices; 2 is enough to overlap one
      transfer with one step.
    devices: where to; if not given, the local devices in `jax.pmap`'s order.
    axis_name: the name of the mesh axis over the devices.

  Yields:
    The same pytrees with each slice of the arrays on its device.

  Example:
    >>> import jax, numpy as np
    >>> from haiku_state import jax_utils
    >>> batches = (np.full((jax.local_device_count(), 2), i) for i in range(3))
    >>> [int(x[0, 0]) for x in jax_utils.prefetch_to_device(batches, 2)]
    [0, 1, 2]
  """
  devices = jax.local_devices() if devices is None else devices
  sharding = _one_slice_each(devices, axis_name)
  # A list, say, would start anew at each look.
  iterator = iter(iterator)
  queue = collections.deque()

  def put(x):
    x = x if isinstance(x, jax.Array) else np.asarray(x)
    return jax.device_put(x, sharding)

  def enqueue(count):
    for batch in itertools.islice(iterator, count):
      queue.append(jax.tree.map(put, batch))

  enqueue(size)
  while queue:
    yield queue.popleft()
    enqueue(1)


def scan_in_dim(body_fn, init, xs, axis=(0,), unroll=(1,), keepdims=False):
  """Is `jax.lax.scan` over any dimensions of the inputs.

  Args:
    body_fn: a function `(carry, x) -> (carry, y)`.
    init: the first carry.
    xs: a pytree of arrays.
    axis: the dimension, or dimensions from the outermost loop to the
      innermost, to scan over.
    unroll: iterations to unroll, for each loop. A shorter tuple is for the
      innermost loops: with `axis=(1, 2, 3)`, 5 means `(1, 1, 5)`.
    keepdims: whether the body sees, and returns, the scanned dimensions with
      size 1.

  Returns:
    The last carry, and the pytree of the ys with the scanned dimensions where
    those of the inputs are.

  Example:
    >>> import jax.numpy as jnp
    >>> from haiku_state import jax_utils
    >>> total, sums = jax_utils.scan_in_dim(
    ...   lambda c, x: (c + x, c + x), jnp.zeros(2), jnp.ones((2, 3)), axis=1)
    >>> total.tolist(), sums.shape
    ([3.0, 3.0], (2, 3))
  """
  axis = tuple(axis) if isinstance(axis, Iterable) else (axis,)
  unroll = tuple(unroll) if isinstance(unroll, Iterable) else (unroll,)
  unroll = (1,) * (len(axis) - len(unroll)) + unroll
  scanned = tuple(range(len(axis)))

  def to_front(x):
    return jnp.moveaxis(x, axis, scanned)

  def to_place(x):
    return jnp.moveaxis(x, scanned, axis)

  def body(carry, x):
    if keepdims:
      x = jax.tree.map(lambda a: to_place(jnp.expand_dims(a, scanned)), x)
    carry, y = body_fn(carry, x)
    if keepdims:
      y = jax.tree.map(lambda a: to_front(a).reshape(_inner(a)), y)
    return carry, y

  def _inner(y):
    return to_front(y).shape[len(axis) :]

  carry, ys = _nested_scan(body, init, jax.tree.map(to_front, xs), unroll)
  return carry, jax.tree.map(to_place, ys)


def _nested_scan(body, init, xs, unroll):
  """Scans over as many leading dimensions as `unroll` has entries."""
  outer, *inner = unroll
  if not inner:
    return lax.scan(body, init, xs, unroll=outer)
  return lax.scan(
    lambda carry, x: _nested_scan(body, carry, x, inner),
    init,
    xs,
    unroll=outer,
  )


def pad_shard_unpad(
  wrapped, static_argnums=(0,), static_argnames=(), static_return=False
):
  """Lets a function over devices take a batch of any size.

  The arguments are padded with zeros to a multiple of the number of local
  devices and reshaped to [devices, batch per device, ...]; the results are
  brought to the host, reshaped and cut back. The idea is Big Vision's
  (https://github.com/google-research/big_vision).

  Args:
    wrapped: the function, often a `jax.pmap`.
    static_argnums: positions of the arguments that are passed as they are; by
      default the first, for the parameters.
    static_argnames: names of keyword arguments that are passed as they are.
    static_return: whether the result is returned as it is, as for metrics that
      were summed over the devices.

  Returns:
    A function with the arguments of `wrapped` and one more, by keyword only:
    `min_device_batch`, a smallest batch per device. With it a last, smaller
    batch does not compile anew.

  Example:
    >>> import jax, numpy as np
    >>> from haiku_state import jax_utils
    >>> double = jax_utils.pad_shard_unpad(lambda _, x: 2 * x)
    >>> double(None, np.arange(3)).tolist()
    [0, 2, 4]
  """

  def pad_shard_unpad_wrapper(*args, min_device_batch=None, **kw):
    def convert(args, kw, fn):
      args = [a if i in static_argnums else fn(a) for i, a in enumerate(args)]
      kw = {k: v if k in static_argnames else fn(v) for k, v in kw.items()}
      return args, kw

    sizes = set()
    convert(
      args, kw, lambda tree: sizes.update(map(len, jax.tree.leaves(tree)))
    )
    assert len(sizes) == 1, f'Inconsistent batch-sizes: {sizes}'
    (batch,) = sizes

    devices = jax.local_device_count()
    device_batch = max(-(-batch // devices), min_device_batch or 0)
    padding = devices * device_batch - batch

    def shard(x):
      zeros = np.zeros((padding, *x.shape[1:]), x.dtype)
      x = np.concatenate([x, zeros]) if padding else x
      return x.reshape(devices, device_batch, *x.shape[1:])

    def unshard(x):
      # Cut on the host: on the devices each batch size would compile anew.
      return jax.device_get(x).reshape(-1, *x.shape[2:])[:batch]

    args, kw = convert(args, kw, lambda tree: jax.tree.map(shard, tree))
    result = wrapped(*args, **kw)
    return result if static_return else jax.tree.map(unshard, result)

  return pad_shard_unpad_wrapper
