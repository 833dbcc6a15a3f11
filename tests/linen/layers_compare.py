"""Comparisons of layers, of what they return and of what they lower to."""

import jax
import numpy as np
import pytest


@pytest.fixture(autouse=True, scope='module')
def quick_compilation():
  """It halves the time that the tests of the importing file spend in XLA."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


def lowered_text(f, *args):
  """It returns the program without the names of its arguments and results."""

  # Flat lists, because the trees' types are part of a program's text.
  leaves, tree = jax.tree.flatten(args)

  def program(*leaves):
    return jax.tree.leaves(f(*tree.unflatten(leaves)))

  return jax.jit(program, keep_unused=True).lower(*leaves).as_text()


def as_dict(tree):
  """It returns plain dicts for the mappings in a tree of variables."""
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
  """It compares with the tolerance of the coarsest dtype among the leaves."""
  got, want = jax.tree.leaves(as_dict(got)), jax.tree.leaves(as_dict(want))
  assert len(got) == len(want)
  for a, b in zip(got, want):
    assert (a.shape, a.dtype) == (b.shape, b.dtype)
    tolerance = 1e-5 if a.dtype.itemsize > 2 else 2e-2
    a, b = (np.asarray(x, 'complex64') for x in (a, b))
    np.testing.assert_allclose(a, b, tolerance, tolerance)
