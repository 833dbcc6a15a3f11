"""Pooling: values by hand, and programs equal to Flax's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from layers_compare import assert_same_operations

import haiku_state.linen as nn
from haiku_state.linen import pooling


@pytest.fixture(scope='module')
def flax_pooling():
  return pytest.importorskip('flax.linen.pooling')


CASES = {
  'plain': ((2, 6, 5, 3), ((2, 2),), {}),
  'strides': ((2, 6, 5, 3), ((3, 2), (2, 1)), {}),
  'same': ((2, 6, 5, 3), ((3, 2), (2, 2), 'SAME'), {}),
  'pairs': ((2, 6, 5, 3), ((2, 2), None, [(1, 0), [0, 1]]), {}),
  'no_batch': ((6, 5, 3), ((2, 2), (2, 2), 'SAME'), {}),
  'batches': ((2, 2, 6, 5, 3), ((2, 2), (2, 2), 'SAME'), {}),
  'one_axis': ((2, 6, 3), ((2,),), {'padding': ((1, 1),)}),
  'empty': ((0, 6, 3), ((2,),), {}),
}
over_cases = pytest.mark.parametrize('case', CASES)


@over_cases
@pytest.mark.parametrize('name', ['avg_pool', 'max_pool', 'min_pool'])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_program_and_gradient_are_those_of_flax(
  name, case, dtype, flax_pooling
):
  shape, args, kwargs = CASES[case]

  def both(m):
    f = lambda x: getattr(m, name)(x, *args, **kwargs)
    return lambda x: (f(x), jax.grad(lambda x: f(x).sum())(x))

  x = jnp.ones(shape, dtype)
  assert_same_operations(both(pooling), both(flax_pooling), x)


@over_cases
def test_average_without_padding_is_that_of_flax(case, flax_pooling):
  shape, args, kwargs = CASES[case]
  averages = (
    functools.partial(m.avg_pool, **kwargs, count_include_pad=False)
    for m in (pooling, flax_pooling)
  )
  ours, theirs = ((lambda x, f=f: f(x, *args)) for f in averages)
  assert_same_operations(ours, theirs, jnp.ones(shape))


X = jnp.array([1.0, 4.0, 2.0, 8.0])[None, :, None]


@pytest.mark.parametrize(
  'f, kwargs, want',
  [
    (nn.avg_pool, {}, [2.5, 3.0, 5.0]),
    (nn.avg_pool, {'strides': (2,)}, [2.5, 5.0]),
    (nn.avg_pool, {'padding': 'SAME'}, [2.5, 3.0, 5.0, 4.0]),
    (
      nn.avg_pool,
      {'padding': 'SAME', 'count_include_pad': False},
      [2.5, 3.0, 5.0, 8.0],
    ),
    (nn.max_pool, {'padding': ((1, 0),)}, [1.0, 4.0, 4.0, 8.0]),
    (pooling.min_pool, {'padding': ((1, 0),)}, [1.0, 1.0, 2.0, 2.0]),
  ],
)
def test_values(f, kwargs, want):
  for x, got_of in ((X, lambda y: y[0]), (X[0], lambda y: y)):
    np.testing.assert_allclose(got_of(f(x, (2,), **kwargs))[:, 0], want)


def test_pool_takes_any_reduction():
  y = nn.pool(X, 1.0, lax.mul, (2,), (1,), 'VALID')
  np.testing.assert_allclose(y[0, :, 0], [4.0, 8.0, 16.0])


@pytest.mark.parametrize(
  'args, words',
  [
    (((2,), (1, 1)), r'len\(\(2,\)\) must equal len\(\(1, 1\)\)'),
    (((2,), None, [(0, 0), (0, 0)]), 'same number of dims as window_shape'),
    (((2,), None, [(0, 0, 0)]), 'must be length 2'),
    (((2, 2, 2), None), r'len\(\(1, 4, 1\)\) != len'),
  ],
)
def test_errors(args, words, flax_pooling):
  texts = []
  for m in (pooling, flax_pooling):
    with pytest.raises(AssertionError, match=words) as caught:
      m.max_pool(X, *args)
    # pytest may append to the text of an assertion that it rewrote.
    texts.append(str(caught.value).splitlines()[0])
  assert texts[0] == texts[1]
