"""Comparisons of layers, of what they return and of what they lower to."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from formulas import formulas

import haiku_state.linen as nn


def lowered_text(f, *args, keep_unused=True):
  """Returns the program without the names of its arguments and results.

  With `keep_unused=False` it has only what its results need.
  """

  # Flat lists, because the trees' types are part of a program's text.
  leaves, tree = jax.tree.flatten(args)

  def program(*leaves):
    return jax.tree.leaves(f(*tree.unflatten(leaves)))

  return jax.jit(program, keep_unused=keep_unused).lower(*leaves).as_text()


def assert_same_program(make, *args, keep_unused=True, **kwargs):
  """Compares variables and forward programs with those of Flax.

  Args:
    make: from the namespace to the layer.
    *args: arguments of the call.
    keep_unused: see `lowered_text`.
    **kwargs: more of them, which are no arrays of the program.
  """
  flax_nn = pytest.importorskip('flax.linen')
  keys = {name: jax.random.key(i) for i, name in enumerate(STREAMS)}
  shapes, texts = [], []
  for namespace in (nn, flax_nn):
    layer = make(namespace)
    init = functools.partial(layer.init, **kwargs)
    shapes.append(as_dict(jax.eval_shape(init, keys, *args)))
    apply = functools.partial(layer.apply, rngs=keys, **kwargs)
    texts.append(lowered_text(apply, shapes[0], *args, keep_unused=keep_unused))
  assert shapes[0] == shapes[1]
  assert texts[0] == texts[1]


def assert_same_operations(ours, theirs, *args):
  """Compares what two functions compute, by the values where operations differ.

  Returns the shapes of what they return.
  """
  if formulas(ours, *args) != formulas(theirs, *args):
    args = jax.tree.map(some_value, args)
    assert_same_leaves(*(jax.jit(fn)(*args) for fn in (ours, theirs)))
  got, want = (as_dict(jax.eval_shape(fn, *args)) for fn in (ours, theirs))
  assert jax.tree.structure(got) == jax.tree.structure(want)
  assert jax.tree.leaves(got) == jax.tree.leaves(want)
  return got


def some_value(x):
  """Returns an array where there is only the shape of one."""
  if isinstance(x, jax.Array):
    return x
  return (jnp.arange(x.size) % 7 - 3).astype(x.dtype).reshape(x.shape)


STREAMS = ('params', 'dropout')


def as_dict(tree):
  """Returns plain dicts for the mappings in a tree of variables."""
  if isinstance(tree, tuple):
    return tuple(map(as_dict, tree))
  if hasattr(tree, 'items'):
    return {k: as_dict(v) for k, v in tree.items()}
  return tree


def assert_same_leaves(ours, theirs):
  ours, theirs = as_dict(ours), as_dict(theirs)
  assert jax.tree.structure(ours) == jax.tree.structure(theirs)
  for (path, a), b in zip(
    jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs)
  ):
    where = jax.tree_util.keystr(path)
    assert (a.shape, a.dtype) == (b.shape, b.dtype), where
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b), where)


def assert_close(got, want):
  """Compares with the tolerance of the coarsest dtype among the leaves."""
  got, want = jax.tree.leaves(as_dict(got)), jax.tree.leaves(as_dict(want))
  assert len(got) == len(want)
  for a, b in zip(got, want):
    assert (a.shape, a.dtype) == (b.shape, b.dtype)
    tolerance = 1e-5 if a.dtype.itemsize > 2 else 2e-2
    a, b = (np.asarray(x, 'complex64') for x in (a, b))
    np.testing.assert_allclose(a, b, tolerance, tolerance)
