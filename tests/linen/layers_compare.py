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


def assert_same_program(make, *args, **kwargs):
  """Compares the shapes of variables and the forward operations with Flax's.

  Args:
    make: from the namespace to the layer.
    *args: arguments of the call.
    **kwargs: more of them, which are no arrays of the program.
  """
  flax_nn = pytest.importorskip('flax.linen')
  keys = {name: jax.random.key(i) for i, name in enumerate(STREAMS)}
  shapes, programs = [], []
  for namespace in (nn, flax_nn):
    layer = make(namespace)
    init = functools.partial(layer.init, **kwargs)
    shapes.append(as_dict(jax.eval_shape(init, keys, *args)))
    apply = functools.partial(layer.apply, rngs=keys, **kwargs)
    programs.append(apply)
  assert shapes[0] == shapes[1]
  if formulas(programs[0], shapes[0], *args) != formulas(
    programs[1], shapes[0], *args
  ):
    texts = [
      lowered_text(f, shapes[0], *args, keep_unused=False) for f in programs
    ]
    assert texts[0] == texts[1]


def assert_same_operations(ours, theirs, *args, of_values=None):
  """Compares what two functions compute, by the values where operations differ.

  Returns the shapes of what they return.
  """
  if formulas(ours, *args) != formulas(theirs, *args):
    args = jax.tree.map(some_value, args)
    compare = of_values or assert_same_leaves
    compare(*(jax.jit(fn)(*args) for fn in (ours, theirs)))
  got, want = (as_dict(jax.eval_shape(fn, *args)) for fn in (ours, theirs))
  assert jax.tree.structure(got) == jax.tree.structure(want)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
    assert (a.shape, a.dtype) == (b.shape, b.dtype)
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
