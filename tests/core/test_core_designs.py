"""Models written with scopes only, plain and lifted, compared with Flax."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from module_compare import KEY, Programs, X, assert_same_as_flax, attempt

programs = Programs()
lecun = jax.nn.initializers.lecun_normal()
zeros = jax.nn.initializers.zeros
ones = jax.nn.initializers.ones


def lift_of(flax):
  # Flax has it as an attribute of its core, once anything has imported it.
  return flax.core.lift


def dense(scope, x, features=3):
  w = scope.param('kernel', lecun, (x.shape[-1], features))
  return x @ w + scope.param('bias', zeros, (features,))


def batch_norm(scope, x, train, axis_name=None):
  mean = scope.variable('stats', 'mean', jnp.zeros, x.shape[-1:])
  if train:
    now = x.mean(0)
    if axis_name is not None:
      now = jax.lax.pmean(now, axis_name)
    mean.value = 0.9 * mean.value + 0.1 * now
    return x - now
  return x - mean.value


def run(flax, fn, *args, **kwargs):
  """Returns what init makes and what apply makes of it."""
  y, variables = flax.core.init(fn)(KEY, *args, **kwargs)
  return (
    y,
    variables,
    attempt(flax.core.apply(fn), variables, *args, **kwargs),
    attempt(flax.core.apply(fn, mutable=True), variables, *args, **kwargs),
  )


@programs
def auto_encoder_as_a_dataclass(nn, flax):
  @dataclass
  class AutoEncoder:
    latents: int

    def __call__(self, scope, x):
      return self.decode(scope, self.encode(scope, x))

    def encode(self, scope, x):
      return scope.child(dense, 'encoder')(x, self.latents)

    def decode(self, scope, z):
      return scope.child(dense, 'decoder')(z, 3)

  ae = AutoEncoder(2)
  _, variables = flax.core.init(ae)(KEY, X)
  encode = flax.core.apply(ae.encode)
  return variables, encode(variables, X), flax.core.apply(ae)(variables, X)


@programs
def auto_encoder_that_holds_its_scope(nn, flax):
  class AutoEncoder:
    def __init__(self, scope, latents, features):
      self.encoder = scope.child(dense, 'encoder', features=latents)
      self.decoder = scope.child(dense, 'decoder', features=features)

    def __call__(self, x):
      return self.decoder(self.encoder(x))

  def fn(scope, x):
    return AutoEncoder(scope, 2, 3)(x)

  return run(flax, fn, X)


@programs
def tied_weights(nn, flax):
  lift = lift_of(flax)

  def transpose(fn):
    def trans(variables):
      if 'params' not in variables:
        return variables
      return {
        'params': {
          name: x.T if name == 'kernel' else x
          for name, x in variables['params'].items()
        }
      }

    return lift.map_variables(fn, 'params', trans, mutable=False)

  def fn(scope, x):
    plain = functools.partial(no_bias, features=2)
    encode = scope.child(plain, 'encoder')
    z = encode(x)
    decode = transpose(functools.partial(no_bias, features=3))
    return z, decode(scope.push('encoder', reuse=True), z)

  def no_bias(scope, x, features):
    return x @ scope.param('kernel', lecun, (x.shape[-1], features))

  return run(flax, fn, X)


@programs
def residual_blocks_by_scan(nn, flax):
  lift = lift_of(flax)

  def block(scope, x):
    x = x + jnp.tanh(scope.child(dense, 'dense')(x, 3))
    x = scope.child(batch_norm, 'norm')(x, True)
    noise = jax.random.normal(scope.make_rng('params'), ())
    return x + 0 * noise, noise

  def scanned(scope, x):
    return lift.scan(
      block,
      variable_axes={'params': 0, 'stats': 0},
      split_rngs={'params': True},
      length=3,
    )(scope, x)

  def big(scope, x):
    rematted = lift.remat_scan(
      lambda scope, x: block(scope, x)[0],
      lengths=(2, 2),
      variable_axes={'params': 0, 'stats': 0},
      split_rngs={'params': True},
    )
    return rematted(scope, x)

  return run(flax, scanned, X), run(flax, big, X)


@programs
def dense_by_vmap(nn, flax):
  lift = lift_of(flax)

  def many(scope, x):
    kwargs = dict(variable_axes={'params': 0}, split_rngs={'params': True})
    return lift.vmap(dense, in_axes=(None,), axis_size=4, **kwargs)(scope, x)

  def shared(scope, x):
    return lift.vmap(
      dense, variable_axes={'params': None}, split_rngs={'params': False}
    )(scope, x)

  def normed(scope, x):
    return lift.vmap(
      lambda scope, x: batch_norm(scope, x[None], True, 'batch')[0],
      variable_axes={'stats': None},
      split_rngs={},
      axis_name='batch',
    )(scope, x)

  return [run(flax, fn, X) for fn in (many, shared, normed)]


@programs
def semi_supervised_batches(nn, flax):
  """Separate statistics for each half of a batch, shared parameters."""
  lift = lift_of(flax)

  def net(scope, x):
    x = scope.child(dense, 'dense')(x, 2)
    return scope.child(batch_norm, 'norm')(x, True)

  def fn(scope, x):
    return lift.vmap(
      net,
      variable_axes={'params': None, 'stats': 0},
      split_rngs={'params': False},
    )(scope, x)

  return run(flax, fn, jnp.stack([X, X + 1]))


@programs
def flow_with_an_inverse(nn, flax):
  @dataclass
  class Bijector:
    forward: Callable[..., Any]
    inverse: Callable[..., Any]

  def affine():
    def forward(scope, x):
      scale = scope.param('scale', ones, x.shape[-1:])
      return x * jnp.exp(scale) + scope.param('bias', ones, x.shape[-1:])

    def inverse(scope, y):
      bias = scope.param('bias', ones, y.shape[-1:])
      return (y - bias) * jnp.exp(-scope.param('scale', ones, y.shape[-1:]))

    return Bijector(forward, inverse)

  def chain(*parts):
    def forward(scope, x):
      for i, part in enumerate(parts):
        x = scope.child(part.forward, name=f'part{i}')(x)
      return x

    def inverse(scope, y):
      for i, part in reversed(list(enumerate(parts))):
        y = scope.child(part.inverse, name=f'part{i}')(y)
      return y

    return Bijector(forward, inverse)

  flow = chain(affine(), affine())
  y, variables = flax.core.init(flow.forward)(KEY, X)
  return y, variables, flax.core.apply(flow.inverse)(variables, y)


@programs
def standardized_weights(nn, flax):
  lift = lift_of(flax)

  def standardize(variables):
    if 'params' not in variables:
      return variables
    return {
      'params': jax.tree.map(
        lambda w: (w - w.mean()) / (w.std() + 1e-3), variables['params']
      )
    }

  def fn(scope, x):
    mapped = lift.map_variables(dense, 'params', standardize, init=True)
    return scope.child(mapped, 'dense')(x, 4)

  return run(flax, fn, X)


@programs
def gradients_and_jit_inside(nn, flax):
  lift = lift_of(flax)

  def by_vjp(scope, x):
    y, pull_back = lift.vjp(lambda s, x: dense(s, x).sum(), scope, x)
    return y, pull_back(jnp.ones(()))

  def by_jit(scope, x):
    # What is behind the scope is the key of the cache.
    return lift.jit(lambda s, _, x: dense(s, x))(scope, 'dense', x)

  def by_checkpoint(scope, x):
    return lift.checkpoint(dense)(scope, x)

  def by_custom(scope, x):
    def forward(scope, x):
      return lift.vjp(dense, scope, x)

    def backward(residual, g):
      params, x = residual(g)
      return jax.tree.map(jnp.sign, params), x

    return lift.custom_vjp(dense, forward, backward)(scope, x)

  kinds = (by_vjp, by_jit, by_checkpoint, by_custom)
  return [run(flax, fn, X) for fn in kinds]


@programs
def attention_over_heads(nn, flax):
  lift = lift_of(flax)

  def head(scope, x):
    q, k, v = (
      scope.child(dense, name)(x, 2) for name in ('query', 'key', 'value')
    )
    weights = jax.nn.softmax(q @ k.T)
    scope.put_variable('intermediates', 'weights', weights)
    return weights @ v

  def fn(scope, x):
    heads = lift.vmap(
      head,
      in_axes=(None,),
      out_axes=-1,
      variable_axes={'params': 0, 'intermediates': 0},
      split_rngs={'params': True},
      axis_size=2,
    )
    y = heads(scope.push('heads'), x)
    return scope.child(dense, 'out')(y.reshape(x.shape[0], -1), 3)

  return run(flax, fn, X)


@programs
def loops_and_branches(nn, flax):
  lift = lift_of(flax)

  def counted(scope, x):
    n = scope.variable('state', 'n', lambda: 0)

    def cond(scope, c):
      return scope.get_variable('state', 'n') < 3

    def body(scope, c):
      n = scope.get_variable('state', 'n')
      scope.put_variable('state', 'n', n + 1)
      return c + n

    x = lift.while_loop(cond, body, scope, x, carry_variables='state')
    return x, n.value

  def branched(scope, x, i):
    scope.variable('state', 'n', lambda: 0)

    def branch(k):
      def fn(scope, x):
        scope.put_variable('state', 'n', k)
        return scope.child(dense, 'd')(x, 2) * k

      return fn

    if scope.get_flag('initializing', False):
      return branch(1)(scope, x)
    return lift.switch(i, [branch(0), branch(1), branch(2)], scope, x)

  def chosen(scope, x):
    a, b = scope.push('a'), scope.push('b')
    one = lambda s, x: dense(s[0], x)
    two = lambda s, x: dense(s[1], x)
    if scope.get_flag('initializing', False):
      return one((a, b), x) + two((a, b), x)
    return lift.cond(x.sum() > 100, one, two, (a, b), x)

  return (
    run(flax, counted, X),
    [run(flax, branched, X, i) for i in (0, 2)],
    run(flax, chosen, X),
  )


@programs.parametrize()
def test_same_as_flax(program):
  assert_same_as_flax(program)
