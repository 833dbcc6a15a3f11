"""Semantics 21: bound modules hold variables; unbind gives them back."""

from typing import Any

import jax
import jax.numpy as jnp
from module_compare import KEY, Programs, X, assert_same_as_flax, attempt

programs = Programs()


def auto_encoder(nn):
  class AutoEncoder(nn.Module):
    def setup(self):
      self.encoder = nn.Dense(2)
      self.decoder = nn.Sequential([nn.Dense(4), nn.Dense(3)])
      self.sizes = [2, 3]
      self.n = self.variable('state', 'n', lambda: jnp.zeros((), int))

    def __call__(self, x):
      self.n.value = self.n.value + 1
      return self.decoder(self.encoder(x))

    def encode(self, x):
      return self.encoder(x)

    @property
    def size(self):
      return self.sizes[0]

  return AutoEncoder()


@programs
def calls_and_attributes(nn, flax):
  ae = auto_encoder(nn)
  variables = ae.init(KEY, X)
  bound = ae.bind(variables, mutable=['state'])
  return (
    bound(X),
    bound.encode(X),
    bound.encoder(X),
    bound.decoder(bound.encoder(X)),
    bound.decoder.layers[0](bound.encoder(X)),
    bound.sizes,
    bound.size,
    bound.n.value,
    bound.path,
    bound.encoder.path,
    bound.decoder.layers[1].path,
    bound.encoder.name,
    bound.name,
    attempt(lambda: bound.nope),
    bound.variables,
    bound.encoder.variables,
    bound.encoder.get_variable('params', 'kernel'),
    bound.has_variable('params', 'encoder'),
    bound.is_initializing(),
    bound.is_mutable_collection('state'),
    bound.is_mutable_collection('params'),
    bound.has_rng('params'),
    variables,
  )


@programs
def writes_stay(nn, flax):
  ae = auto_encoder(nn)
  variables = ae.init(KEY, X)
  bound = ae.bind(variables, mutable=['state'])
  seen = []
  for _ in range(3):
    bound(X)
    seen.append(bound.variables['state']['n'])
  bound.n.value = 10
  bound(X)
  bound.put_variable('state', 'more', 5)
  bound.encoder.put_variable('state', 'deep', 6)
  return seen, bound.variables, bound.encoder.variables, variables


@programs
def writes_that_are_refused(nn, flax):
  ae = auto_encoder(nn)
  bound = ae.bind(ae.init(KEY, X))

  def set_value():
    bound.n.value = 3

  def set_attribute():
    bound.sizes = 3

  return (
    attempt(bound, X),
    bound.encode(X),
    attempt(set_value),
    attempt(set_attribute),
    attempt(bound.put_variable, 'state', 'n', 4),
    attempt(bound.sow, 'intermediates', 'x', 1),
    attempt(bound.make_rng, 'params'),
    attempt(bound.param, 'w', jax.nn.initializers.ones, ()),
  )


@programs
def keys_of_bound_modules(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.Dropout(0.5, deterministic=False)(x)

  bound = Foo().bind({}, rngs={'dropout': KEY})
  ones = jnp.ones((3, 4))
  return (
    bound(ones),
    bound(ones),
    bound.make_rng('dropout'),
    bound.make_rng('dropout'),
    bound.has_rng('dropout'),
    attempt(Foo().bind, {}, rngs=KEY),
    attempt(Foo().bind, {}, rngs={'a': 3}),
    attempt(Foo().bind, {'a': 3}),
    attempt(Foo().bind, {3: {}}),
  )


@programs
def unbind_the_top(nn, flax):
  ae = auto_encoder(nn)
  variables = ae.init(KEY, X)
  module, given = ae.bind(variables).unbind()
  return (
    module == ae,
    module.scope,
    module.name,
    module.parent,
    given,
    module.apply(given, X, mutable=True),
    attempt(ae.unbind),
  )


@programs
def unbind_a_submodule(nn, flax):
  ae = auto_encoder(nn)
  variables = ae.init(KEY, X)
  bound = ae.bind(variables)
  encoder, encoder_variables = bound.encoder.unbind()
  decoder, decoder_variables = bound.decoder.unbind()
  layer, layer_variables = bound.decoder.layers[0].unbind()
  return (
    encoder == nn.Dense(2),
    encoder_variables,
    encoder.apply(encoder_variables, X),
    decoder == nn.Sequential([nn.Dense(4), nn.Dense(3)]),
    repr(decoder),
    decoder_variables,
    decoder.apply(decoder_variables, encoder.apply(encoder_variables, X)),
    layer == nn.Dense(4),
    layer_variables,
    [m.name for m in (encoder, decoder, layer)],
  )


@programs
def unbind_inside_of_apply(nn, flax):
  class Foo(nn.Module):
    def setup(self):
      self.encoder = nn.Dense(3)

    def __call__(self, x):
      encoder, variables = self.encoder.unbind()
      if self.is_initializing():
        return self.encoder(x)
      return encoder.apply(variables, x), encoder.name

  variables = Foo().init(KEY, X)
  return variables, Foo().apply(variables, X)


@programs
def bound_compact_modules(nn, flax):
  class Foo(nn.Module):
    inner: Any

    @nn.compact
    def __call__(self, x):
      return self.inner(nn.Dense(3)(x))

  foo = Foo(nn.Dense(2))
  variables = foo.init(KEY, X)
  bound = foo.bind(variables)
  first = bound(X)
  return (
    first,
    bound(X),
    bound.inner(X),
    bound.inner.variables,
    attempt(lambda: bound.Dense_0),
    attempt(lambda: Foo(nn.Dense(5)).bind(variables)(X)),
    attempt(lambda: foo.bind({})(X)),
    attempt(lambda: foo.bind({'params': {}})(X)),
  )


@programs
def bound_with_mutable_params(nn, flax):
  foo = nn.Sequential([nn.Dense(3), nn.Dense(2)])
  bound = foo.bind({}, rngs={'params': KEY}, mutable=['params'])
  out = bound(X)
  return out, bound.variables, foo.init(KEY, X)


@programs
def bound_under_transforms(nn, flax):
  ae = auto_encoder(nn)
  variables = ae.init(KEY, X)

  def loss(params):
    bound = ae.bind({**variables, 'params': params})
    return jnp.sum(bound.encode(X) ** 2)

  return (
    jax.grad(loss)(variables['params']),
    jax.jit(lambda v: ae.bind(v).encoder(X))(variables),
    jax.vmap(lambda x: ae.bind(variables).encode(x))(X),
    attempt(lambda: jax.jit(ae.bind(variables).encode)(X)),
    attempt(lambda: jax.jit(ae.bind(variables).encoder)(X)),
    jax.jit(lambda x: ae.bind(variables).encode(x))(X),
    jax.vmap(ae.bind(variables).encode)(X),
    jax.grad(lambda x: ae.bind(variables).encode(x).sum())(X),
  )


@programs
def bound_modules_in_others(nn, flax):
  ae = auto_encoder(nn)
  bound = ae.bind(ae.init(KEY, X))

  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.Dense(3)(bound.encode(x))

  class Held(nn.Module):
    inner: Any

    @nn.compact
    def __call__(self, x):
      return nn.Dense(3)(self.inner.encode(x))

  return attempt(Foo().init_with_output, KEY, X), attempt(
    Held(bound).init_with_output, KEY, X
  )


@programs
def bound_modules_print(nn, flax):
  ae = auto_encoder(nn)
  bound = ae.bind(ae.init(KEY, X))
  before = repr(bound)
  bound.encode(X)
  return before, repr(bound), repr(bound.encoder)


@programs
def apply_of_a_bound_module(nn, flax):
  ae = auto_encoder(nn)
  variables = ae.init(KEY, X)
  bound = ae.bind(variables)
  return (
    attempt(bound.apply, variables, X, mutable=['state']),
    attempt(bound.init, KEY, X),
    attempt(bound.encoder.apply, {'params': variables['params']['encoder']}, X),
    bound == ae,
    attempt(lambda: bound.clone().encode(X)),
    bound.clone().scope,
    bound.copy().scope,
  )


@programs
def sow_into_bound(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      self.sow('intermediates', 'x', x)
      return nn.Dense(2)(x)

  variables = Foo().init(KEY, X)
  bound = Foo().bind(variables, mutable=['intermediates'])
  bound(X)
  bound(X + 1)
  return bound.variables


@programs
def extra_positional_arguments(nn, flax):
  dense = nn.Dense(2)
  variables = dense.init(KEY, X)
  return dense.bind(variables, 1, 2)(X)


@programs.parametrize()
def test_same_as_flax(program):
  assert_same_as_flax(program)
