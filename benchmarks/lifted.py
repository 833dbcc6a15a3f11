"""Transforms lifted over modules, beside those of JAX over functions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from benchmarks.forms import (
  WIDTH,
  Keys,
  Program,
  Workload,
  dense,
  dense_params,
  haiku_program,
  keys_from,
  linen_program,
  pure_program,
)


def remat(n: int) -> Workload:
  """n dense layers, each rematerialised."""

  def linen(nn):
    class Remat(nn.Module):
      @nn.compact
      def __call__(self, x):
        for _ in range(n):
          x = nn.remat(nn.Dense)(WIDTH)(x)
        return x

    return linen_program(Remat())

  def haiku_fn(x):
    for _ in range(n):
      x = hk.remat(hk.Linear(WIDTH))(x)
    return x

  def pure():
    def make(keys):
      params = {f'CheckpointDense_{i}': dense_params(keys) for i in range(n)}
      return {'params': params}

    def apply(variables, x):
      for i in range(n):
        params = variables['params'][f'CheckpointDense_{i}']
        # A new function for each layer, as modules have.
        x = jax.checkpoint(lambda p, x: dense(x, p))(params, x)
      return x, {}

    return pure_program(make, apply)

  return Workload(
    (jnp.ones((4, WIDTH)),), linen, lambda: haiku_program(haiku_fn), pure
  )


def scan_layers(n: int) -> Workload:
  """One dense layer with n sets of parameters, scanned over."""

  def linen(nn):
    class Body(nn.Module):
      @nn.compact
      def __call__(self, x, _):
        return nn.Dense(WIDTH)(x), None

    class Scan(nn.Module):
      @nn.compact
      def __call__(self, x):
        stack = nn.scan(
          Body,
          variable_axes={'params': 0},
          split_rngs={'params': True},
          length=n,
        )
        return stack()(x, None)[0]

    return linen_program(Scan())

  def haiku_fn(x):
    return hk.layer_stack(n)(lambda x: hk.Linear(WIDTH)(x))(x)

  def pure():
    def init(key, x):
      def body(x, key):
        params = dense_params(keys_from(key))
        return dense(x, params), params

      _, params = jax.lax.scan(body, x, jax.random.split(key, n))
      return {'params': {'ScanBody_0': {'Dense_0': params}}}

    def apply(variables, x):
      def body(x, params):
        return dense(x, params['Dense_0']), None

      params = variables['params']['ScanBody_0']
      return jax.lax.scan(body, x, params)[0], {}

    return Program(init, apply)

  return Workload(
    (jnp.ones((4, WIDTH)),), linen, lambda: haiku_program(haiku_fn), pure
  )


MLP_LAYERS = 4


def _mlp_of(nn: Any) -> Any:
  class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
      for _ in range(MLP_LAYERS):
        x = jnp.tanh(nn.Dense(WIDTH)(x))
      return x

  return MLP


def _mlp_haiku(x: jax.Array) -> jax.Array:
  for _ in range(MLP_LAYERS):
    x = jnp.tanh(hk.Linear(WIDTH)(x))
  return x


def _mlp_params(keys: Keys) -> Any:
  return {f'Dense_{i}': dense_params(keys) for i in range(MLP_LAYERS)}


def _mlp(params: Any, x: jax.Array) -> jax.Array:
  for i in range(MLP_LAYERS):
    x = jnp.tanh(dense(x, params[f'Dense_{i}']))
  return x


def ensemble(n: int) -> Workload:
  """n perceptrons of four layers side by side, by `nn.vmap`."""

  def linen(nn):
    many = nn.vmap(
      _mlp_of(nn),
      variable_axes={'params': 0},
      split_rngs={'params': True},
      in_axes=None,
      axis_size=n,
    )
    return linen_program(many())

  def mapped(init, apply):
    # `hk.vmap` shares the parameters: an ensemble maps the pure functions.
    return Program(
      lambda key, x: jax.vmap(init, (0, None))(jax.random.split(key, n), x),
      lambda v, x: (jax.vmap(apply, (0, None))(v, x), {}),
    )

  def haiku():
    transformed = hk.without_apply_rng(hk.transform(_mlp_haiku))
    return mapped(transformed.init, transformed.apply)

  def pure():
    one = pure_program(
      lambda keys: {'params': _mlp_params(keys)},
      lambda variables, x: _mlp(variables['params'], x),
    )
    return mapped(*one)

  return Workload((jnp.ones((4, WIDTH)),), linen, haiku, pure)


def _call(m: Any, x: jax.Array) -> jax.Array:
  return m(x)


def _negative(m: Any, x: jax.Array) -> jax.Array:
  return -m(x)


# A perceptron inside of each of the other transforms: how linen does it, and
# how JAX does it with a function of parameters and input.
LIFTED: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
  'jit': (
    lambda nn, m, x: nn.jit(type(m))(name='jitted')(x),
    lambda f, p, x: _jitted(f)(p, x),
  ),
  'cond': (
    lambda nn, m, x: nn.cond(x[0, 0] > 0, _call, _negative, m, x),
    lambda f, p, x: jax.lax.cond(
      x[0, 0] > 0, lambda x: f(p, x), lambda x: -f(p, x), x
    ),
  ),
  'switch': (
    lambda nn, m, x: nn.switch(1, [_negative, _call], m, x),
    lambda f, p, x: jax.lax.switch(
      1, [lambda x: -f(p, x), lambda x: f(p, x)], x
    ),
  ),
  'jvp': (
    lambda nn, m, x: nn.jvp(_call, m, (x,), (x,), variable_tangents={})[1],
    lambda f, p, x: jax.jvp(lambda x: f(p, x), (x,), (x,))[1],
  ),
  'vjp': (
    lambda nn, m, x: nn.vjp(_call, m, x)[1](x)[1],
    lambda f, p, x: jax.vjp(f, p, x)[1](x)[1],
  ),
  'custom_vjp': (
    lambda nn, m, x: nn.custom_vjp(
      _call,
      forward_fn=functools.partial(nn.vjp, _call),
      backward_fn=lambda back, g: back(g),
    )(m, x),
    lambda f, p, x: _own_gradient(f)(p, x),
  ),
  'map_variables': (
    lambda nn, m, x: nn.map_variables(
      type(m), 'params', _doubled, init=m.is_initializing()
    )(name='mapped')(x),
    lambda f, p, x: f(_doubled(p), x),
  ),
}


def _plain(f: Callable[..., Any], p: Any, x: jax.Array) -> jax.Array:
  return f(p, x)


# What `init` does in their place: the first three make no variables, and no
# variable has a gradient where it is made.
FIRST: dict[str, Callable[..., Any]] = {
  'cond': _plain,
  'switch': _plain,
  'jvp': _plain,
  'vjp': lambda f, p, x: jax.vjp(lambda x: f(p, x), x)[1](x),
}


def _doubled(tree: Any) -> Any:
  return jax.tree.map(lambda x: 2 * x, tree)


def _jitted(f: Callable[..., Any]) -> Callable[..., Any]:
  def core_fn(p, x):  # The name that linen's has in the lowered text.
    return f(p, x)

  return jax.jit(core_fn)


def _own_gradient(f: Callable[..., Any]) -> Callable[..., Any]:
  own = jax.custom_vjp(lambda p, x: f(p, x))
  own.defvjp(functools.partial(jax.vjp, f), lambda back, g: back(g))
  return own


def lifted(name: str) -> Workload:
  """A perceptron of four layers, called inside of a transform."""
  by_linen, by_jax = LIFTED[name]

  def linen(nn):
    mlp = _mlp_of(nn)

    class Lifted(nn.Module):
      @nn.compact
      def __call__(self, x):
        m = mlp(name='mlp')
        if FIRST.get(name) is _plain and self.is_initializing():
          return m(x)
        return by_linen(nn, m, x)

    return linen_program(Lifted())

  def pure():
    at = {'jit': 'jitted', 'map_variables': 'mapped'}.get(name, 'mlp')

    def make(keys):
      return {'params': {at: _mlp_params(keys)}}

    def apply(variables, x):
      return by_jax(_mlp, variables['params'][at], x), {}

    def first(variables, x):
      by = FIRST.get(name, by_jax)
      return by(_mlp, variables['params'][at], x)

    return pure_program(make, apply, first)

  return Workload((jnp.ones((4, WIDTH)),), linen, pure=pure)
