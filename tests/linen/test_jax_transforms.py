"""JAX's own transforms around modules inside of modules, against Flax.

A transform makes a function of one of the same shape; a place is what uses
modules inside. In Flax a value that is first made inside of a transform that
records a program leaks: there we must raise, and say what to write instead.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haiku_state import errors
from haiku_state import linen as ours

theirs = pytest.importorskip('flax.linen')

X = jnp.arange(6.0).reshape(2, 3) / 5

# --- The transforms: from a function of an array, to one ----------------------


def summed(f):
  return lambda x: jnp.sum(jnp.sin(f(x)))


def by_custom_vjp(f):
  rule = jax.custom_vjp(f)
  rule.defvjp(lambda x: (f(x), x), lambda x, g: (g * 2,))
  return jax.grad(summed(rule))


def by_custom_jvp(f):
  rule = jax.custom_jvp(f)
  rule.defjvp(lambda p, t: (f(*p), t[0] * 2))
  return jax.grad(summed(rule))


def by_shard_map(f):
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ('i',))
  spec = jax.sharding.PartitionSpec()
  # Compiled at once: operation by operation takes ten times as long.
  return jax.jit(jax.shard_map(f, mesh=mesh, in_specs=spec, out_specs=spec))


def by_make_jaxpr(f):
  def run(x):
    program = jax.make_jaxpr(f)(x)
    return jax.core.eval_jaxpr(program.jaxpr, program.consts, x)[0]

  return run


def by_jvp(f):
  return lambda x: jax.jvp(f, (x,), (x,))


def by_linearize(f):
  def run(x):
    y, linear = jax.linearize(f, x)
    return y, linear(x)

  return run


def by_vjp(f):
  def run(x):
    y, back = jax.vjp(f, x)
    return y, back(y)

  return run


def by_while_loop(f):
  def run(x):
    def step(c):
      return c[0] + 1, f(c[1])

    return jax.lax.while_loop(lambda c: c[0] < 2, step, (0, x))

  return run


# In these, a value that is first made inside does not depend on what is traced.
CONSTANT = {
  'grad': lambda f: jax.grad(summed(f)),
  'value_and_grad': lambda f: jax.value_and_grad(summed(f)),
  'vmap': jax.vmap,
  'jacfwd': jax.jacfwd,
  'jacrev': jax.jacrev,
  'hessian': lambda f: jax.hessian(summed(f)),
  'vjp': by_vjp,
  'jvp': by_jvp,
  'linearize': by_linearize,
  'vectorize': lambda f: jnp.vectorize(f, signature='(n)->(n)'),
  'custom_vjp': by_custom_vjp,
  'custom_jvp': by_custom_jvp,
}
# These record a program.
RECORDED = {
  'checkpoint': lambda f: jax.grad(summed(jax.checkpoint(f))),
  'jit': jax.jit,
  'eval_shape': lambda f: lambda x: jnp.zeros(jax.eval_shape(f, x).shape),
  'make_jaxpr': by_make_jaxpr,
  'scan': lambda f: lambda x: jax.lax.scan(lambda c, y: (c + f(y), c), x[0], x),
  'map': lambda f: lambda x: jax.lax.map(f, x),
  'fori_loop': lambda f: (
    lambda x: jax.lax.fori_loop(0, 2, lambda i, c: f(c), x)
  ),
  'while_loop': by_while_loop,
  'cond': lambda f: lambda x: jax.lax.cond(x[0, 0] < 9, f, lambda x: x, x),
  'switch': lambda f: (
    lambda x: jax.lax.switch(jnp.int32(x[0, 0]), [f, lambda x: x], x)
  ),
  'shard_map': by_shard_map,
  'pmap': lambda f: lambda x: jax.pmap(f)(x[None])[0],
}
TRANSFORMS = {**CONSTANT, **RECORDED}

# --- The places: from the namespace and a transform, to a module ---------------

PLACES = {}
# Those in which `init` makes a parameter inside.
MAKES = set()
# Those in which a lifted transform inside returns a parameter that was made
# before. Flax sets it, to a value that leaks; it stays as it was here.
RETURNS = set()


def place(fn):
  PLACES[fn.__name__] = fn
  return fn


def makes(fn):
  MAKES.add(fn.__name__)
  return place(fn)


def returns(fn):
  RETURNS.add(fn.__name__)
  return place(fn)


def init(key, shape, dtype):
  """Returns initial values that depend on the key, and compile fast."""
  bits = jax.random.bits(key, shape, 'uint8')
  return bits.astype(dtype) / 256


def compact(nn, body):
  class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
      return body(self, x)

  return Net()


@place
def a_submodule_that_was_called(nn, t):
  def body(self, x):
    dense = nn.Dense(3, kernel_init=init)
    dense(x)
    return t(lambda y: dense(y))(x)

  return compact(nn, body)


@makes
def a_submodule(nn, t):
  def body(self, x):
    dense = nn.Dense(3, kernel_init=init)
    return t(lambda y: dense(y))(x)

  return compact(nn, body)


@makes
def a_module_made_inside(nn, t):
  return compact(
    nn, lambda self, x: t(lambda y: nn.Dense(3, kernel_init=init)(y))(x)
  )


@place
def a_nested_one_of_setup(nn, t):
  class Inner(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.Dense(3, kernel_init=init)(
        nn.tanh(nn.Dense(2, kernel_init=init)(x))
      )

  class Net(nn.Module):
    def setup(self):
      self.inner = Inner()

    def __call__(self, x):
      y = self.inner(x)
      return y.sum(), t(lambda y: self.inner(y))(x)

  return Net()


@makes
def a_method_of_its_own(nn, t):
  class Net(nn.Module):
    def setup(self):
      self.a, self.b = (
        nn.Dense(4, kernel_init=init),
        nn.Dense(3, kernel_init=init),
      )

    def encode(self, x):
      return self.b(nn.tanh(self.a(x)))

    def __call__(self, x):
      return t(self.encode)(x)

  return Net()


@place
def dropout(nn, t):
  def body(self, x):
    drop = nn.Dropout(0.5, deterministic=False)
    return t(lambda y: drop(y))(x), drop(x)

  return compact(nn, body)


@place
def a_key(nn, t):
  def body(self, x):
    def noisy(y):
      return y * jax.random.normal(self.make_rng('dropout'), y.shape)

    return t(noisy)(x), self.make_rng('dropout')

  return compact(nn, body)


@place
def statistics_that_stay(nn, t):
  def body(self, x):
    norm = nn.BatchNorm(use_running_average=True)
    norm(x)
    return t(lambda y: norm(y))(x)

  return compact(nn, body)


@place
def sow_where_it_is_not_kept(nn, t):
  def body(self, x):
    def f(y):
      if not self.is_initializing():
        self.sow('intermediates', 'y', y)
      return y * self.variables['params']['Dense_0']['bias'][0]

    nn.Dense(1, kernel_init=init)(x)
    return t(f)(x)

  return compact(nn, body)


@returns
def a_remat_inside(nn, t):
  def body(self, x):
    dense = nn.remat(nn.Dense)(3, kernel_init=init)
    dense(x)
    return t(lambda y: dense(y))(x)

  return compact(nn, body)


@returns
def a_jit_inside(nn, t):
  def body(self, x):
    dense = nn.jit(nn.Dense)(3, kernel_init=init)
    dense(x)
    return t(lambda y: dense(y))(x)

  return compact(nn, body)


# Keys of which XLA compiles programs fast.
RNGS = {
  name: jax.random.key(i, impl='unsafe_rbg')
  for i, name in enumerate(('params', 'dropout'))
}


def data(x):
  if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
    return jax.random.key_data(x)
  return x


def flat(tree):
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {jax.tree_util.keystr(path): data(x) for path, x in leaves}


def assert_close(a, b):
  a, b = flat(a), flat(b)
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_allclose(a[name], b[name], 1e-5, 1e-5, err_msg=name)


def leaks(variables):
  leaves = jax.tree.leaves(variables)
  return any(isinstance(x, jax.core.Tracer) for x in leaves)


@functools.cache
def plainly(place):
  """Returns the variables that Flax makes without a transform."""
  return dict(PLACES[place](theirs, lambda f: f).init(RNGS, X))


@pytest.mark.parametrize('transform', TRANSFORMS)
@pytest.mark.parametrize('place', PLACES)
def test_apply_computes_as_in_flax(place, transform):
  variables = jax.tree.map(lambda x: x * 1.5 + 0.25, plainly(place))
  results = [
    PLACES[place](nn, TRANSFORMS[transform]).apply(variables, X, rngs=RNGS)
    for nn in (ours, theirs)
  ]
  assert_close(*results)


@pytest.mark.parametrize('transform', TRANSFORMS)
@pytest.mark.parametrize('place', PLACES)
def test_init_computes_as_in_flax_or_says_what_leaks(place, transform):
  net, of_flax = (
    PLACES[place](nn, TRANSFORMS[transform]) for nn in (ours, theirs)
  )
  out, variables = of_flax.init_with_output(RNGS, X)
  may_leak = transform in RECORDED and place in MAKES | RETURNS
  assert leaks(variables) == may_leak
  if may_leak and place in MAKES:
    with pytest.raises(errors.JaxTransformError, match='"(kernel|bias)" of'):
      net.init(RNGS, X)
    return
  wanted = plainly(place) if may_leak else variables
  assert_close(net.init_with_output(RNGS, X), (out, dict(wanted)))
