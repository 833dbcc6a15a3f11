"""What JAX's removed functions did, for those that have no exact successor.

Each stands here under the last part of its name; `_old_names` has the names.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Newer and older than what type checkers see.
_jax: Any = jax

Shape = Sequence[int]
NINF = -jnp.inf


def _index_function(method: str) -> Callable:
  def index_function(
    x: Any,
    idx: Any,
    y: Any,
    indices_are_sorted: bool = False,
    unique_indices: bool = False,
  ) -> jax.Array:
    """Returns an array with a part of it updated."""
    update = getattr(jnp.asarray(x).at[idx], method)
    return update(
      y, indices_are_sorted=indices_are_sorted, unique_indices=unique_indices
    )

  return index_function


index_update = _index_function('set')
index_add = _index_function('add')
index_mul = _index_function('multiply')
index_min = _index_function('min')
index_max = _index_function('max')


def enable_omnistaging() -> None:
  """Does nothing: all is staged out, and there is no other way."""


def host_ids(backend: str | None = None) -> list[int]:
  """Returns the numbers of all processes."""
  return list(range(jax.process_count(backend)))


def device_put_replicated(x: Any, devices: Sequence[Any]) -> Any:
  """Copies a pytree to devices: arrays [devices, ...]."""
  return device_put_sharded([x] * len(devices), devices)


def device_put_sharded(shards: Sequence[Any], devices: Sequence[Any]) -> Any:
  """Puts one pytree on each device, as one of arrays [devices, ...]."""
  if len(shards) != len(devices):
    raise ValueError(
      f'device_put_sharded: there are {len(shards)} shards for {len(devices)}'
      ' devices. Give one to each.'
    )
  mesh = jax.sharding.Mesh(np.array(devices), ('devices',))
  spec = jax.sharding.PartitionSpec('devices')
  sharding = jax.sharding.NamedSharding(mesh, spec)

  def put(*arrays):
    # Each goes where it belongs: all of them may not fit on one device.
    parts = [jax.device_put(x, d)[None] for x, d in zip(arrays, devices)]
    shape = (len(parts), *parts[0].shape[1:])
    return jax.make_array_from_single_device_arrays(shape, sharding, parts)

  return jax.tree.map(put, *shards)


def xla_computation(
  fun: Callable,
  static_argnums: int | Iterable[int] = (),
  donate_argnums: int | Iterable[int] = (),
) -> Callable[..., Any]:
  """Returns a function that returns the program of a function in HLO."""
  fun = jax.jit(
    fun,
    static_argnums=static_argnums,  # type: ignore[arg-type]
    donate_argnums=donate_argnums,  # type: ignore[arg-type]
  )
  return lambda *args, **kwargs: fun.lower(*args, **kwargs).compiler_ir('hlo')


def safe_map(f: Callable, *args: Iterable) -> list:
  """Is `map`, of sequences of one length."""
  return [f(*xs) for xs in safe_zip(*args)]


def safe_zip(*args: Iterable) -> list:
  """Is `zip`, of sequences of one length."""
  return list(zip(*args, strict=True))


def unzip2(pairs: Iterable[tuple]) -> tuple[tuple, tuple]:
  """Returns the first and the second parts of pairs."""
  firsts, seconds = [], []
  for first, second in pairs:
    firsts.append(first)
    seconds.append(second)
  return tuple(firsts), tuple(seconds)


def split_list(args: Sequence, ns: Sequence[int]) -> list[list]:
  """Returns the parts of a list of the lengths given, and the rest."""
  rest = collections.deque(args)
  parts = [[rest.popleft() for _ in range(n)] for n in ns]
  return [*parts, list(rest)]


def shuffle(key: jax.Array, x: Any, axis: int = 0) -> jax.Array:
  """Returns an array with its entries in another order."""
  return jax.random.permutation(key, x, axis, independent=True)


def msort(a: Any) -> jax.Array:
  """Returns an array sorted along its first axis."""
  return jnp.sort(a, axis=0)


def in1d(
  ar1: Any, ar2: Any, assume_unique: bool = False, invert: bool = False
) -> jax.Array:
  """Returns which of the entries of a flat array are in another."""
  return jnp.isin(
    jnp.ravel(ar1), ar2, assume_unique=assume_unique, invert=invert
  )


def tie_in(x: Any, y: Any) -> Any:
  """Returns `y`: all is staged out, whatever it depends on."""
  del x
  return y


def raise_to_shaped(aval: Any, weak_type: bool | None = None) -> Any:
  """Returns a type, which has a shape and no value today."""
  if weak_type is None or weak_type == aval.weak_type:
    return aval
  return aval.update(weak_type=weak_type)


def enable_x64(new_val: bool = True) -> Any:
  """Returns a context with types of 64 bits."""
  return _jax.enable_x64(new_val)


def disable_x64() -> Any:
  """Returns a context without types of 64 bits."""
  return _jax.enable_x64(False)


def initialize_cache(path: Hashable) -> None:
  """Keeps compiled programs in a folder."""
  jax.config.update('jax_compilation_cache_dir', str(path))
