"""Lifted functions that close over modules of the run around them."""

import functools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layers_compare import as_dict, assert_close, assert_same_operations
from module_compare import KEY, X

from haiku_state import errors, linen

# From the namespace, the module that is lifted, a function that closes over
# another one, and an input, to an output.
ST = {'variable_broadcast': 'st', 'length': 2}
LIFTINGS = {
  'cond': lambda nn, m, f, x: nn.cond(
    True, f, lambda m, c: c, m, x, variables='st'
  ),
  'fold_rngs': lambda nn, m, f, x: nn.fold_rngs(f)(m, x),
  'jit': lambda nn, m, f, x: nn.jit(f, variables='st')(m, x),
  'map_variables': lambda nn, m, f, x: nn.map_variables(f, 'st')(m, x),
  'remat': lambda nn, m, f, x: nn.remat(f, variables='st')(m, x),
  'remat of all': lambda nn, m, f, x: nn.remat(f)(m, x),
  'remat of another': lambda nn, m, f, x: nn.remat(f)(nn.Dense(3), x),
  'scan': lambda nn, m, f, x: nn.scan(lambda m, c, _: (f(m, c), None), **ST)(
    m, x, None
  )[0],
  'vjp': lambda nn, m, f, x: nn.vjp(f, m, x, variables='st')[1](x)[1],
  'vmap': lambda nn, m, f, x: nn.vmap(
    f, variable_axes={'st': None}, split_rngs={}
  )(m, x),
  'while_loop': lambda nn, m, f, x: nn.while_loop(
    lambda m, c: c[1] < 2,
    lambda m, c: (f(m, c[0]), c[1] + 1),
    m,
    (x, 0),
    broadcast_variables='st',
  )[0],
  'remat in remat': lambda nn, m, f, x: nn.remat(
    lambda m, c: nn.remat(f)(nn.Dense(3), c)
  )(m, x),
}
over_liftings = pytest.mark.parametrize('name', LIFTINGS)


def closing(nn, lift):
  class Top(nn.Module):
    @nn.compact
    def __call__(self, x):
      dense, norm = nn.Dense(3), nn.BatchNorm(use_running_average=True)
      self.variable('st', 'i', lambda: jnp.zeros(()))
      norm(dense(x))
      return lift(nn, self, lambda m, c: norm(dense(c)), x)

  return Top()


@over_liftings
def test_what_is_read_is_constant_as_in_flax(name):
  flax_nn = pytest.importorskip('flax.linen')

  def results(nn):
    net = closing(nn, LIFTINGS[name])
    out, variables = net.init_with_output(KEY, X)
    variables = as_dict(variables)

    # Averages are not 0 and 1.
    moved = jax.tree.map(lambda x: x * 1.5 + 0.25, variables)
    _, tangent = jax.jvp(lambda v: net.apply(v, X), (moved,), (moved,))
    return out, variables, net.apply(moved, X), tangent

  ours, theirs = (functools.partial(results, nn) for nn in (linen, flax_nn))
  assert_same_operations(ours, theirs, of_values=assert_close)


@pytest.mark.long
@over_liftings
def test_jit_agrees_and_nothing_leaks(name):
  net = closing(linen, LIFTINGS[name])
  with jax.checking_leaks():
    y, variables = jax.jit(net.init_with_output)(KEY, X)
    again = jax.jit(net.apply)(variables, X)
  want = net.apply(variables, X)
  np.testing.assert_allclose(y, want, 1e-5, 1e-5)
  np.testing.assert_allclose(again, want, 1e-5, 1e-5)


@pytest.mark.parametrize('name', ['remat', 'scan', 'vmap', 'jit'])
def test_a_parameter_may_be_made_through_the_closure(name):
  """In Flax it would be a value that leaves the transform."""

  class Top(linen.Module):
    @linen.compact
    def __call__(self, x):
      dense = linen.Dense(3)
      return LIFTINGS[name](linen, self, lambda m, c: dense(c), x)

  for init in (Top().init, jax.jit(Top().init)):
    with jax.checking_leaks():
      variables = init(KEY, X)
    plainly = linen.Dense(3).init(KEY, X)['params']
    made = variables['params']['Dense_0']
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, plainly)
    assert Top().apply(variables, X).shape == X.shape


def test_a_variable_that_is_set_through_the_closure_may_not_be_traced():
  class Top(linen.Module):
    traced: bool

    @linen.compact
    def __call__(self, x):
      count = self.variable('st', 'count', lambda: jnp.zeros(()))

      def f(m, c):
        count.value = c.sum() if self.traced else np.float32(7)
        assert self.traced or count.value == 7
        return c

      linen.remat(f)(linen.Dense(3), x)
      return count.value

  variables = {'st': {'count': jnp.zeros(())}}
  y, new = Top(False).apply(variables, X, mutable='st')
  assert y == new['st']['count'] == 7
  with pytest.raises(errors.JaxTransformError):
    Top(True).apply(variables, X, mutable='st')


def test_values_are_those_of_the_moment():
  class Top(linen.Module):
    @linen.compact
    def __call__(self, x):
      count = self.variable('st', 'count', lambda: jnp.zeros(()))
      read = linen.remat(lambda m, c: c + count.value)
      other, seen = linen.Dense(1), []
      for _ in range(3):
        count.value = count.value + 1
        seen.append(read(other, jnp.zeros(())))
      return jnp.stack(seen)

  for out in (
    Top().init_with_output(KEY, X)[0],
    Top().apply({'st': {'count': jnp.zeros(())}}, X, mutable='st')[0],
  ):
    np.testing.assert_array_equal(out, [1, 2, 3])


def test_a_module_of_the_haiku_function_around_is_out_of_reach():
  class Top(linen.Module):
    closure: bool

    @linen.compact
    def __call__(self, x, dense):
      f = lambda m, c: (dense if self.closure else m)(c)
      return linen.remat(f)(dense if not self.closure else linen.Dense(3), x)

  def run(closure, x):
    dense = linen.Dense(3, name='dense')
    return dense(x), Top(closure)(x, dense)

  good = hk.transform(functools.partial(run, False))
  params = good.init(KEY, X)
  y, same = good.apply(params, None, X)
  np.testing.assert_allclose(y, same, 1e-6)
  bad = hk.transform(functools.partial(run, True))
  with pytest.raises(ValueError, match='"dense" belongs to the hk.transform'):
    bad.init(KEY, X)
  with pytest.raises(ValueError, match='among its modules'):
    bad.apply(params, None, X)
