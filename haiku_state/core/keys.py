"""Derivation of random keys from a stream's root key, names and a count.

A key is `fold_in(root, h)`, where `h` is the first 32 bits (big-endian) of the
SHA-1 digest of the names of the scopes from the root, then the count of keys
drawn there. However deep the scope, that is one `fold_in`. The numbers are
those of Flax, so that equal seeds give equal initial values.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from typing import Any, Union

import jax
import jax.numpy as jnp
import numpy as np

from haiku_state import struct
from haiku_state.configurations import config

PRNGKey = jax.Array
PRNGFoldable = Union[int, str]


class LazyRng(struct.PyTreeNode):
  """A root key, and what is to be folded into it when a key is wanted.

  Attributes:
    rng: the root key, typed or raw.
    suffix: names and counts to fold in.
  """

  rng: PRNGKey
  suffix: tuple[PRNGFoldable, ...] = struct.field(pytree_node=False)

  def as_jax_rng(self) -> PRNGKey:
    """Returns the key."""
    return fold_in_static(self.rng, self.suffix)

  @staticmethod
  def create(rng: LazyRng | PRNGKey, *suffix: PRNGFoldable) -> LazyRng:
    """Returns `rng` with `suffix` behind what it has already."""
    if isinstance(rng, LazyRng):
      return LazyRng(rng.rng, rng.suffix + suffix)
    return LazyRng(rng, suffix)

  def clear_suffix(self) -> LazyRng:
    """Returns the root key with nothing to fold in."""
    return LazyRng(self.rng, ())


def fold_in_static(rng: PRNGKey, data: tuple[PRNGFoldable, ...]) -> PRNGKey:
  """Folds names and counts into a key; nothing is folded for no data."""
  if not data:
    return rng
  return jax.random.fold_in(rng, static_hash(data))


def static_hash(data: tuple[PRNGFoldable, ...]) -> np.uint32:
  """Returns what `fold_in_static` folds in for names and counts."""
  return _static_hash(data, config.flax_fix_rng_separator)


# Names and counts repeat from call to call, their digests need not.
@functools.lru_cache(maxsize=65536)
def _static_hash(data: tuple[PRNGFoldable, ...], separator: bool) -> np.uint32:
  digest = hashlib.sha1()
  for x in data:
    if separator:
      # Without it ('ab', 'c') and ('a', 'bc') have the same digest.
      digest.update(b'\00')
    if isinstance(x, str):
      digest.update(x.encode('utf-8'))
    elif isinstance(x, int):
      digest.update(x.to_bytes((x.bit_length() + 7) // 8, byteorder='big'))
    else:
      raise ValueError(f'Expected int or string, got: {x}')
  return np.uint32(int.from_bytes(digest.digest()[:4], byteorder='big'))


def is_valid_rng(rng: Any) -> bool:
  """Returns whether `rng` is one key: a `LazyRng`, a typed or a raw key."""
  if isinstance(rng, LazyRng):
    return True
  if not isinstance(rng, (np.ndarray, jax.Array)):
    return False
  if jnp.issubdtype(rng.dtype, jax.dtypes.prng_key):
    return rng.shape == ()
  shape, dtype = _raw_key_type(raw_key_impl())
  return rng.shape == shape and rng.dtype == dtype


def raw_key_impl() -> str:
  """Returns the name of the implementation that raw keys are of."""
  return str(jax.config.jax_default_prng_impl)  # type: ignore[attr-defined]


@functools.lru_cache
def _raw_key_type(impl: str) -> tuple[tuple[int, ...], Any]:
  """Shape and dtype of raw keys; the argument is what they depend on."""
  del impl
  raw = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))
  return raw.shape, raw.dtype


def streams(rngs: Mapping[str, PRNGKey | LazyRng] | None) -> dict[str, LazyRng]:
  """Returns the streams of a run by name, each as a `LazyRng`."""
  if not rngs:
    return {}
  return {name: LazyRng.create(rng) for name, rng in rngs.items()}
