"""Draws inputs and variables by NumPy, which has nothing to compile."""

import functools

import jax
import numpy as np


def normal(seed, *shape, dtype='float32'):
  return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def variables(layer, *args, **kwargs):
  """Returns what `init` would, with parameters of variance 1/4, and zeros."""
  rng = np.random.default_rng(7)
  init = functools.partial(layer.init, **kwargs)
  shapes = jax.eval_shape(init, jax.random.key(0), *args)

  def draw(path, leaf):
    if path[0].key != 'params':
      return np.zeros(leaf.shape, leaf.dtype)
    return (rng.standard_normal(leaf.shape) / 2).astype(leaf.dtype)

  return jax.tree_util.tree_map_with_path(draw, dict(shapes))
