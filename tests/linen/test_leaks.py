"""Nothing outlives what it belongs to: no tracer its trace, no class its use."""

import functools
import gc
import weakref

import haiku as hk
import jax
import jax.numpy as jnp
import pytest

from haiku_state import linen as nn

KEY = jax.random.key(0)
XS = jnp.ones((2, 3, 4))


class Step(nn.Module):
  @nn.compact
  def __call__(self, carry, _):
    return nn.Dense(4)(carry), None


class Broadcast(nn.Module):
  """Loops with parameters that are the same in all steps."""

  @nn.compact
  def __call__(self, xs):
    loop = nn.scan(
      Step, variable_broadcast='params', split_rngs={'params': False}, length=2
    )
    return loop()(xs, None)[0]


class Recurrent(nn.Module):
  @nn.compact
  def __call__(self, xs):
    return nn.RNN(nn.LSTMCell(4))(xs)


def in_haiku(module):
  return hk.transform(lambda xs: module.clone()(xs)).init


WAYS = {
  'own run': lambda module: module.init,
  'under jit': lambda module: jax.jit(module.init),
  'in hk.transform': in_haiku,
  'in hk.transform, under jit': lambda module: jax.jit(in_haiku(module)),
}


@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('module', [Broadcast(), Recurrent()], ids=repr)
def test_init_leaks_no_tracer(module, way):
  with jax.checking_leaks():
    WAYS[way](module)(KEY, XS)


def summed(module, xs):
  return module(xs).sum()


def carried(module, carry, _):
  return module(carry), None


# From a class and an input, to an output: what is around the layer.
TRANSFORMS = {
  'nn.jit': lambda layer, xs: nn.jit(lambda m, x: m(x))(layer, xs),
  'nn.remat': lambda layer, xs: nn.remat(lambda m, x: m(x))(layer, xs),
  'nn.vmap': lambda layer, xs: nn.vmap(
    lambda m, x: m(x),
    variable_axes={'params': None, 'batch_stats': None},
    split_rngs={'params': False, 'dropout': True},
  )(layer, xs),
  'nn.scan': lambda layer, xs: nn.scan(
    carried,
    variable_broadcast=['params', 'batch_stats'],
    split_rngs={'params': False, 'dropout': True},
    length=2,
  )(layer, xs, None)[0],
  'nn.grad': lambda layer, xs: nn.grad(summed, layer, xs)[0],
  'nn.cond': lambda layer, xs: nn.cond(
    True, lambda m, x: m(x), lambda m, x: x, layer, xs
  ),
  'jax.grad': lambda layer, xs: jax.grad(lambda x: layer(x).sum())(xs),
  'jax.vmap': lambda layer, xs: jax.vmap(lambda x: layer(x))(xs),
  'jax.lax.scan': lambda layer, xs: jax.lax.scan(
    lambda c, _: (layer(c), None), xs, None, length=2
  )[0],
}
LAYERS = {
  'dense': lambda: nn.Dense(4),
  'averages': lambda: nn.BatchNorm(use_running_average=True),
  'dropout': lambda: nn.Dropout(0.5, deterministic=False),
  'recurrent': lambda: nn.RNN(nn.SimpleCell(4)),
}


class Around(nn.Module):
  """A layer that was called before it is used inside of a transform."""

  layer: str
  transform: str

  @nn.compact
  def __call__(self, xs):
    layer = LAYERS[self.layer]()
    return TRANSFORMS[self.transform](layer, layer(xs))


RNGS = {'params': KEY, 'dropout': KEY}


def run_apply(module, variables):
  module.apply(variables, XS, rngs=RNGS)


def run_bind(module, variables):
  module.bind(variables, rngs=RNGS)(XS)


@pytest.mark.parametrize('transform', TRANSFORMS)
@pytest.mark.parametrize('layer', LAYERS)
def test_no_use_leaks_a_tracer(layer, transform):
  module = Around(layer, transform)
  with jax.checking_leaks():
    variables = jax.eval_shape(module.init, RNGS, XS)
    for use in (run_apply, run_bind):
      jax.eval_shape(functools.partial(use, module), variables)
    module.lazy_init(RNGS, jax.ShapeDtypeStruct(XS.shape, XS.dtype))


@pytest.mark.parametrize('transform', TRANSFORMS)
def test_no_table_leaks_a_tracer(transform):
  with jax.checking_leaks():
    Around('recurrent', transform).tabulate(
      RNGS, XS, compute_flops=True, compute_vjp_flops=True
    )


class Kept:
  """Counts the classes that were made, and are still there."""

  def __init__(self):
    self.refs = []

  def note(self, cls):
    self.refs.append(weakref.ref(cls))
    return cls

  def __len__(self):
    gc.collect()
    return sum(ref() is not None for ref in self.refs)


def test_a_class_that_is_jitted_in_a_method_is_not_kept():
  kept = Kept()

  class Jits(nn.Module):
    @nn.compact
    def __call__(self, x):
      return kept.note(nn.jit(nn.Dense))(3)(x)

  variables = Jits().init(KEY, XS)
  for _ in range(3):
    Jits().apply(variables, XS)
  assert len(kept.refs) == 4
  # The last one is known to the module that was bound last.
  assert len(kept) <= 1


def test_a_new_class_each_time_is_not_kept():
  kept = Kept()

  class Jits(nn.Module):
    @nn.compact
    def __call__(self, x):
      class New(nn.Module):
        @nn.jit
        @nn.compact
        def __call__(self, x):
          return nn.Dense(3)(x)

      return kept.note(New)(name='new')(x)

  variables = Jits().init(KEY, XS)
  for _ in range(3):
    Jits().apply(variables, XS)
  assert len(kept.refs) == 4
  assert len(kept) <= 1
