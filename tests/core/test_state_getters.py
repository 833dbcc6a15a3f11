"""Getters of state are told the shape and dtype of what they get."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haiku_state import linen as nn

KEY = jax.random.PRNGKey(0)
X = jnp.arange(8.0).reshape(2, 4)


class Counter(nn.Module):
  @nn.compact
  def __call__(self, x):
    n = self.variable('counts', 'n', lambda: jnp.zeros((), jnp.int32))
    n.value += 1
    return x * n.value


class Recurrent(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.RNN(nn.GRUCell(3))(Counter()(x)[None])


def norm():
  return nn.BatchNorm(use_running_average=False, momentum=0.5)


def scanned(x):
  module = norm()
  return hk.scan(lambda c, y: (c, module(y)), (), jnp.stack([x, x]))[1]


class Whole(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.remat(Counter)()(x) + hk.BatchNorm(True, True, 0.9)(x, True)


MODELS = {
  'norm': lambda x: norm()(x),
  'integer': lambda x: Counter()(x),
  'lifted': lambda x: Recurrent()(x),
  'scan of Haiku': scanned,
  'with a module of Haiku': lambda x: Whole()(x),
}


def at_the_top(fn):
  return hk.transform_with_state(fn)


def in_a_module(fn):
  class Outer(nn.Module):
    @nn.compact
    def __call__(self, x):
      return fn(x)

  return hk.transform_with_state(lambda x: Outer()(x))


def in_a_run_of_ours(fn):
  class Outer(nn.Module):
    @nn.compact
    def __call__(self, x):
      return fn(x)

  def apply(params, state, rng, x):
    del state, rng
    y, new = Outer().apply(params, x, mutable=nn.DenyList('params'))
    return y, {**params, **new}

  return hk.TransformedWithState(
    lambda rng, x: (Outer().init(rng, x), {}), apply
  )


PLACES = [at_the_top, in_a_module, in_a_run_of_ours]


@pytest.mark.parametrize('model', MODELS)
@pytest.mark.parametrize('place', PLACES)
def test_shape_and_dtype(place, model):
  seen = []

  def check(next_getter, value, context):
    shape, dtype = context.original_shape, context.original_dtype
    assert jnp.zeros(shape, dtype).shape == value.shape, context.full_name
    assert tuple(shape) == value.shape and len(shape) == value.ndim
    assert list(shape) == list(value.shape)
    assert shape == value.shape or list(shape) == value.shape
    assert dtype == value.dtype and np.dtype(dtype) == value.dtype
    assert value.astype(dtype) is not None
    assert jnp.issubdtype(dtype, jnp.integer) == (value.dtype == jnp.int32)
    seen.append(context.full_name)
    return next_getter(value)

  def fn(x):
    with hk.custom_getter(check, params=False, state=True):
      return MODELS[model](x)

  f = place(fn)
  params, state = f.init(KEY, X)
  seen.clear()
  f.apply(params, state, None, X)
  assert seen
