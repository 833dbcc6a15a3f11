"""Names that JAX has removed: the one table.

`haiku-state run` puts back what is small, `haiku-state port` reports and
rewrites, and the guide "Names that JAX has removed" prints it. What Flax has
removed stands in `_names`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple


class Old(NamedTuple):
  """A public name that JAX had, and what to write now.

  Attributes:
    name: the dotted name, as programs write it.
    gone: a version of JAX that has it no more, the first one known; '' if the
      newest still has it, and advises against it.
    same: the dotted name of the same thing, or of what takes its arguments and
      does the same; '' if there is none.
    write: what to write now; by default, `same`.
    put_back: whether `run` has a function that does what it did; what has the
      `same` is always put back.
    at: the method of `x.at[...]` that a call of it is now.
    keyword: for an argument, named `function(argument=)`, what it is called now.
  """

  name: str
  gone: str
  same: str = ''
  write: str = ''
  put_back: bool = False
  at: str = ''
  keyword: str = ''

  @property
  def advice(self) -> str:
    """What to write now, as a sentence."""
    return f'Write {self.write or f"`{self.same}`"}.'

  @property
  def is_restored(self) -> bool:
    """Whether `run` puts it back."""
    return bool(self.same or self.put_back or self.keyword)

  @property
  def is_rewritten(self) -> bool:
    """Whether `port --modernize` rewrites it."""
    return bool(self.same or self.at or self.keyword)


def _at(method: str, gone: str = '0.3.2') -> dict:
  write = f'`x.at[i].{method}(y)` of a JAX array'
  return dict(gone=gone, write=write, put_back=True, at=method)


def _argument(name: str, gone: str, keyword: str) -> Old:
  return Old(name, gone, write=f'`{keyword}=`', keyword=keyword)


# By package; what is put back only in part is followed by its parts.
OLD_NAMES = (
  # --- Trees ---
  Old('jax.tree_map', '0.6.0', 'jax.tree.map'),
  Old('jax.tree_multimap', '0.3.16', 'jax.tree.map'),
  Old('jax.tree_flatten', '0.6.0', 'jax.tree.flatten'),
  Old('jax.tree_unflatten', '0.6.0', 'jax.tree.unflatten'),
  Old('jax.tree_leaves', '0.6.0', 'jax.tree.leaves'),
  Old('jax.tree_structure', '0.6.0', 'jax.tree.structure'),
  Old('jax.tree_transpose', '0.6.0', 'jax.tree.transpose'),
  Old('jax.treedef_is_leaf', '0.6.0', 'jax.tree_util.treedef_is_leaf'),
  Old('jax.tree_util.tree_multimap', '0.3.16', 'jax.tree_util.tree_map'),
  # --- Updates of arrays ---
  Old('jax.ops.index', '0.3.2', 'jax.numpy.s_'),
  Old('jax.ops.index_update', **_at('set')),
  Old('jax.ops.index_add', **_at('add')),
  Old('jax.ops.index_mul', **_at('multiply')),
  Old('jax.ops.index_min', **_at('min')),
  Old('jax.ops.index_max', **_at('max')),
  # --- The configuration ---
  Old('jax.config.config', '0.4.25', 'jax.config'),
  Old(
    'jax.config.enable_omnistaging',
    '0.4.25',
    write='nothing: all is staged out since jax 0.2',
    put_back=True,
  ),
  # --- Functions of jax itself, and of its modules ---
  Old('jax.partial', '0.4.14', 'functools.partial'),
  Old('jax.curry', '0.4.14', write='`functools.partial`'),
  Old('jax.api', '0.2.22', 'jax'),
  Old('jax.linear_util', '0.4.24', 'jax.extend.linear_util'),
  Old(
    'jax.host_id',
    '',
    'jax.process_index',
  ),
  Old('jax.host_count', '', 'jax.process_count'),
  Old('jax.host_ids', '', write='`range(jax.process_count())`', put_back=True),
  Old(
    'jax.device_put_sharded',
    '0.10.0',
    write='`jax.device_put(jnp.stack(shards), sharding)` with a'
    ' `jax.sharding.NamedSharding` over the devices',
    put_back=True,
  ),
  Old(
    'jax.device_put_replicated',
    '0.10.0',
    write='`flax.jax_utils.replicate(x, devices)`',
    put_back=True,
  ),
  Old(
    'jax.xla_computation',
    '0.4.34',
    write="`jax.jit(f).lower(*args).compiler_ir('hlo')`",
    put_back=True,
  ),
  Old('jax.clear_backends', '0.4.36', 'jax.extend.backend.clear_backends'),
  Old(
    'jax.custom_transforms',
    '0.2.13',
    write='`jax.custom_jvp` or `jax.custom_vjp`',
  ),
  Old('jax.defjvp', '0.2.13', write='`@jax.custom_jvp` and `f.defjvp`'),
  Old('jax.defjvp_all', '0.2.13', write='`@jax.custom_jvp` and `f.defjvp`'),
  Old('jax.defvjp', '0.2.13', write='`@jax.custom_vjp` and `f.defvjp`'),
  Old('jax.defvjp_all', '0.2.13', write='`@jax.custom_vjp` and `f.defvjp`'),
  Old('jax.invertible', '0.3.10', write='`jax.custom_vjp`'),
  Old(
    'jax.mask', '0.3.16', write='the function with an array of what is masked'
  ),
  Old('jax.shapecheck', '0.3.16', write='`jax.eval_shape`'),
  Old('jax.soft_pmap', '0.3.20', write='`jax.pmap` of `jax.vmap`'),
  Old(
    'jax.ad_util',
    '0.2.17',
    write='`jax.lax.stop_gradient`, `jax.custom_jvp` or'
    ' `jax.interpreters.ad`, whichever it was used for',
  ),
  Old('jax.prng', '0.4.24', write='`jax.extend.random`'),
  Old('jax.abstract_arrays', '0.4.16', write='`jax.core.ShapedArray`'),
  Old('jax.abstract_arrays.ShapedArray', '0.4.16', 'jax.core.ShapedArray'),
  Old('jax.ShapedArray', '0.4.14', 'jax.core.ShapedArray'),
  Old(
    'jax.util',
    '0.9.0',
    write='functions of your own, or of `functools` and `itertools`',
  ),
  Old('jax.util.partial', '0.2.22', 'functools.partial'),
  Old(
    'jax.util.safe_map',
    '0.7.0',
    write='`list(map(f, xs, ys))`, after a look at the lengths',
    put_back=True,
  ),
  Old(
    'jax.util.safe_zip',
    '0.7.0',
    write='`list(zip(xs, ys, strict=True))`',
    put_back=True,
  ),
  Old('jax.util.unzip2', '0.7.0', write='`zip(*pairs)`', put_back=True),
  Old('jax.util.split_list', '0.7.0', write='slices', put_back=True),
  # --- Arrays and keys ---
  Old('jax.numpy.DeviceArray', '0.4.14', 'jax.Array'),
  Old('jax.interpreters.xla.DeviceArray', '0.4.12', 'jax.Array'),
  Old('jax.interpreters.xla._DeviceArray', '0.4.9', 'jax.Array'),
  Old('jax.interpreters.pxla.ShardedDeviceArray', '0.4.14', 'jax.Array'),
  Old('jax.random.KeyArray', '0.4.24', 'jax.Array'),
  Old('jax.random.PRNGKeyArray', '0.4.24', 'jax.Array'),
  Old(
    'jax.random.shuffle',
    '0.4.31',
    write='`jax.random.permutation(key, x, axis, independent=True)`',
    put_back=True,
  ),
  Old('jax.random.threefry_2x32', '0.4.24', 'jax.extend.random.threefry_2x32'),
  # --- NumPy ---
  Old('jax.numpy.row_stack', '0.4.24', 'jax.numpy.vstack'),
  Old('jax.numpy.trapz', '0.4.24', 'jax.numpy.trapezoid'),
  Old('jax.numpy.product', '0.4.16', 'jax.numpy.prod'),
  Old('jax.numpy.cumproduct', '0.4.16', 'jax.numpy.cumprod'),
  Old('jax.numpy.sometrue', '0.4.16', 'jax.numpy.any'),
  Old('jax.numpy.alltrue', '0.4.16', 'jax.numpy.all'),
  Old('jax.numpy.round_', '0.5.3', 'jax.numpy.round'),
  Old('jax.numpy.fix', '0.10.0', 'jax.numpy.trunc'),
  Old('jax.numpy.msort', '0.4.9', write='`jnp.sort(x, axis=0)`', put_back=True),
  Old(
    'jax.numpy.in1d',
    '0.4.24',
    write='`jnp.isin(jnp.ravel(x), y)`',
    put_back=True,
  ),
  Old('jax.numpy.NINF', '0.4.24', write='`-jnp.inf`', put_back=True),
  Old('jax.scipy.linalg.tril', '0.4.24', 'jax.numpy.tril'),
  Old('jax.scipy.linalg.triu', '0.4.24', 'jax.numpy.triu'),
  Old('jax.scipy.misc', '0.2.9', write='`jax.scipy.special.logsumexp`'),
  Old('jax.scipy.misc.logsumexp', '0.2.9', 'jax.scipy.special.logsumexp'),
  _argument('jax.numpy.clip(a_min=)', '0.10.0', 'min'),
  _argument('jax.numpy.clip(a_max=)', '0.10.0', 'max'),
  _argument('jax.numpy.reshape(newshape=)', '0.4.36', 'shape'),
  _argument('jax.numpy.quantile(interpolation=)', '0.9.0', 'method'),
  _argument('jax.numpy.percentile(interpolation=)', '0.9.0', 'method'),
  # --- Operations and layers ---
  Old('jax.lax.tie_in', '0.4.30', write='`y` alone', put_back=True),
  Old('jax.lax.zeros_like_array', '0.9.0', 'jax.numpy.zeros_like'),
  Old('jax.lax.pdot', '0.4.31', write='`jnp.einsum` and `jax.lax.psum`'),
  Old('jax.lax.infeed', '0.7.0', write='`jax.pure_callback`'),
  Old('jax.lax.outfeed', '0.7.0', write='`jax.experimental.io_callback`'),
  Old('jax.nn.normalize', '0.4.29', 'jax.nn.standardize'),
  # --- The profiler ---
  Old(
    'jax.profiler.StepTraceContext',
    '0.3.15',
    'jax.profiler.StepTraceAnnotation',
  ),
  Old('jax.profiler.TraceContext', '0.3.15', 'jax.profiler.TraceAnnotation'),
  Old(
    'jax.profiler.trace_function', '0.3.15', 'jax.profiler.annotate_function'
  ),
  # --- The core ---
  Old('jax.core.Primitive', '0.6.0', 'jax.extend.core.Primitive'),
  Old('jax.core.Jaxpr', '0.6.0', 'jax.extend.core.Jaxpr'),
  Old('jax.core.ClosedJaxpr', '0.6.0', 'jax.extend.core.ClosedJaxpr'),
  Old('jax.core.JaxprEqn', '0.6.0', 'jax.extend.core.JaxprEqn'),
  Old('jax.core.Literal', '0.6.0', 'jax.extend.core.Literal'),
  Old('jax.core.Var', '0.6.0', 'jax.extend.core.Var'),
  Old('jax.core.get_aval', '0.10.0', 'jax.typeof'),
  Old(
    'jax.core.ConcretizationTypeError',
    '0.7.0',
    'jax.errors.ConcretizationTypeError',
  ),
  Old('jax.core.raise_to_shaped', '0.6.0', write='its argument', put_back=True),
  Old('jax.core.Shape', '0.4.30', write='`Sequence[int]`', put_back=True),
  Old('jax.core.unit', '0.4.6', write='`None`'),
  Old(
    'jax.core.ConcreteArray',
    '0.4.36',
    write='`not isinstance(x, jax.core.Tracer)`',
  ),
  Old('jax.core.axis_frame', '0.7.0', write='`jax.lax.axis_size(name)`'),
  Old(
    'jax.core.thread_local_state',
    '0.4.36',
    write='`isinstance(x, jax.core.Tracer)` for a value that may be traced',
  ),
  # --- What lies below ---
  Old(
    'jax.lib.xla_bridge',
    '0.9.0',
    write='`jax.extend.backend.get_backend()`, or `jax.devices()`',
  ),
  Old(
    'jax.lib.xla_bridge.get_backend',
    '0.8.0',
    'jax.extend.backend.get_backend',
  ),
  Old('jax.lib.xla_bridge.device_count', '0.4.6', 'jax.device_count'),
  Old(
    'jax.lib.xla_bridge.local_device_count', '0.4.6', 'jax.local_device_count'
  ),
  Old('jax.lib.xla_bridge.devices', '0.2.22', 'jax.devices'),
  Old('jax.lib.xla_bridge.local_devices', '0.2.22', 'jax.local_devices'),
  Old('jax.lib.xla_bridge.host_id', '0.2.22', 'jax.process_index'),
  Old('jax.lib.xla_bridge.host_count', '0.2.22', 'jax.process_count'),
  Old('jax.lib.xla_bridge.process_index', '0.4.6', 'jax.process_index'),
  Old('jax.lib.xla_bridge.process_count', '0.4.6', 'jax.process_count'),
  Old(
    'jax.lib.xla_client',
    '0.9.0',
    write='`jax.jit(f).lower(*args)` for programs and, by its'
    ' `cost_analysis`, for what they cost, `jax.devices()` for devices,'
    ' `jax.ffi` for calls of C++',
  ),
  Old(
    'jax.lib.xla_client.XlaRuntimeError',
    '0.6.0',
    'jax.errors.JaxRuntimeError',
  ),
  Old(
    'jax.lib.xla_extension',
    '0.9.0',
    write='what `jax.lib.xla_client` is replaced by',
  ),
  Old('jax.dlpack.to_dlpack', '0.8.0', write='the array itself'),
  Old(
    'jax.interpreters.sharded_jit',
    '0.3.16',
    write='`jax.jit` with `in_shardings` and `out_shardings`',
  ),
  # --- jax.experimental ---
  Old(
    'jax.experimental.optimizers', '0.3.16', 'jax.example_libraries.optimizers'
  ),
  Old('jax.experimental.stax', '0.3.16', 'jax.example_libraries.stax'),
  Old('jax.experimental.optix', '0.2.9', 'optax'),
  Old(
    'jax.experimental.loops',
    '0.3.16',
    write='`jax.lax.fori_loop`, `while_loop` or `scan`',
  ),
  Old(
    'jax.experimental.vectorize',
    '0.2.9',
    write='`jnp.vectorize` with `signature=`',
  ),
  Old(
    'jax.experimental.maps',
    '0.4.31',
    write='`jax.shard_map`, or `jax.jit` with shardings',
  ),
  Old('jax.experimental.maps.Mesh', '0.4.12', 'jax.sharding.Mesh'),
  Old('jax.experimental.PartitionSpec', '0.4.12', 'jax.sharding.PartitionSpec'),
  Old(
    'jax.experimental.pjit.PartitionSpec',
    '0.4.12',
    'jax.sharding.PartitionSpec',
  ),
  Old(
    'jax.experimental.pjit.with_sharding_constraint',
    '0.4.24',
    'jax.lax.with_sharding_constraint',
  ),
  Old(
    'jax.experimental.host_callback',
    '0.8.0',
    write='`jax.debug.print` or `jax.debug.callback` for what was tapped,'
    ' `jax.pure_callback` for calls',
  ),
  Old(
    'jax.experimental.global_device_array',
    '0.4.9',
    write='`jax.make_array_from_callback`',
  ),
  Old(
    'jax.experimental.enable_x64',
    '0.9.0',
    write='`jax.enable_x64(True)`',
    put_back=True,
  ),
  Old(
    'jax.experimental.disable_x64',
    '0.9.0',
    write='`jax.enable_x64(False)`',
    put_back=True,
  ),
  Old(
    'jax.experimental.compilation_cache.compilation_cache.initialize_cache',
    '0.8.0',
    write="`jax.config.update('jax_compilation_cache_dir', path)`",
    put_back=True,
  ),
  Old(
    'jax.tools.colab_tpu',
    '0.10.0',
    write='nothing: JAX finds the TPUs of Colab itself',
  ),
)

# What was a module and is an object today: an import of it imports this.
IMPORTED_AS = {'jax.config': 'jax'}

_BY_NAME = {row.name: row for row in OLD_NAMES}
# The arguments that functions had, by the name of the function.
ARGUMENTS: dict[str, dict[str, Old]] = {}
for _row in OLD_NAMES:
  if _row.keyword:
    _function, _, _old = _row.name.removesuffix('=)').partition('(')
    ARGUMENTS.setdefault(_function, {})[_old] = _row
# The modules of which parts are put back, though they are no more.
PARTS: dict[str, list[Old]] = {}
for _row in OLD_NAMES:
  if _row.is_restored:
    PARTS.setdefault(_row.name.rpartition('.')[0], []).append(_row)


def row_of(name: str) -> Old | None:
  """Returns the row of a dotted name, None if there is none."""
  return _BY_NAME.get(name)


def row_around(name: str) -> Old | None:
  """Returns the row of a dotted name, or of what it is a part of."""
  while name:
    if name in _BY_NAME:
      return _BY_NAME[name]
    name = name.rpartition('.')[0]
  return None


def successor(name: str) -> str | None:
  """Returns the dotted name of what is the same today.

  Args:
    name: a dotted name, of something in the table or of a part of it.

  Returns:
    The new name, or None if there is none, or the name is in no row.

  >>> successor('jax.experimental.stax.Dense')
  'jax.example_libraries.stax.Dense'
  """
  new = name
  while (row := row_around(new)) is not None and row.same:
    new = row.same + new.removeprefix(row.name)
  return None if new == name else new


def missing_message(row: Old) -> str:
  """Returns the message of the error for a name that is not put back."""
  return f'JAX has no `{row.name}` any more. {row.advice}'


def as_markdown() -> str:
  """Returns the table as the guide prints it."""
  return '\n'.join(_lines())


def _lines() -> Iterator[str]:
  yield '| name | gone | write | run | port |'
  yield '| --- | --- | --- | --- | --- |'
  for row in OLD_NAMES:
    write = row.write or f'`{row.same}`'
    run = 'puts it back' if row.is_restored else ''
    if not row.is_restored and row.name in PARTS:
      run = 'puts back what follows'
    port = 'rewrites it' if row.is_rewritten else 'reports it'
    yield f'| `{row.name}` | {row.gone or "not yet"} | {write} | {run} | {port} |'
