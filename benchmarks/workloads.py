"""The models that are measured, by name.

The forms of linen, haiku_state and flax, are one source text, with `nn`
standing for either.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from benchmarks.forms import (
  WIDTH,
  Program,
  Workload,
  batch_norm,
  dense,
  dense_params,
  haiku_program,
  linen_program,
  norm_averages,
  norm_params,
  pure_program,
)
from benchmarks.lifted import LIFTED, ensemble, lifted, remat, scan_layers
from benchmarks.models import lstm, resnet50, transformer

# --- n x (Dense, BatchNorm) ---


def deep(n: int, norm: bool = True) -> Workload:
  """n dense layers, each with a batch normalisation behind it or not."""
  mutable = ('batch_stats',) if norm else ()
  return Workload(
    (jnp.ones((4, WIDTH)),),
    lambda nn: linen_program(_deep_module(nn, n, norm), mutable),
    lambda: haiku_program(functools.partial(_deep_haiku, n, norm)),
    lambda: _deep_pure(n, norm),
  )


def _deep_module(nn: Any, n: int, norm: bool) -> Any:
  class Deep(nn.Module):
    @nn.compact
    def __call__(self, x):
      for _ in range(n):
        x = nn.Dense(WIDTH)(x)
        if norm:
          x = nn.BatchNorm(use_running_average=False)(x)
      return x

  return Deep()


def _deep_haiku(n: int, norm: bool, x: jax.Array) -> jax.Array:
  for _ in range(n):
    x = hk.Linear(WIDTH)(x)
    if norm:
      x = hk.BatchNorm(True, True, 0.99)(x, is_training=True)
  return x


def _deep_pure(n: int, norm: bool, name: str = 'Dense') -> Program:
  def make(keys):
    params = {f'{name}_{i}': dense_params(keys) for i in range(n)}
    if not norm:
      return {'params': params}
    norms = [f'BatchNorm_{i}' for i in range(n)]
    return {
      'params': params | {name: norm_params() for name in norms},
      'batch_stats': {name: norm_averages() for name in norms},
    }

  def apply(variables, x, first=False):
    params, averages = variables['params'], variables.get('batch_stats')
    new = {}
    for i in range(n):
      x = dense(x, params[f'{name}_{i}'])
      if norm:
        at = f'BatchNorm_{i}'
        x, new[at] = batch_norm(x, params[at], averages[at], first=first)
    return x, {'batch_stats': new} if norm else {}

  return pure_program(make, apply, functools.partial(apply, first=True))


# --- The documented model: BatchNorm over a batch axis made by vmap ---


def vmapped(hidden: int = 10) -> Workload:
  """The vmapped multi-layer perceptron of the documentation."""
  batch = jnp.ones((64, 100))
  return Workload(
    (batch,),
    lambda nn: _vmapped_linen(nn, hidden),
    None,
    lambda: _vmapped_pure(hidden),
  )


def _vmapped_linen(nn: Any, hidden: int) -> Program:
  class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
      norm = functools.partial(
        nn.BatchNorm,
        use_running_average=False,
        momentum=0.99,
        epsilon=1e-5,
        axis_name='batch',
      )
      x = nn.relu(norm()(nn.Dense(hidden)(x)))
      x = nn.relu(norm()(nn.Dense(hidden)(x)))
      return nn.Dense(1)(x)

  model = MLP()

  def apply(variables, batch):
    def one(x):
      return model.apply(variables, x, mutable=['batch_stats'])

    return jax.vmap(one, out_axes=(0, None), axis_name='batch')(batch)

  return Program(lambda key, batch: model.init(key, batch[0]), apply)


def _vmapped_pure(hidden: int) -> Program:
  sizes = (100, hidden, hidden, 1)
  norms = ('BatchNorm_0', 'BatchNorm_1')

  def make(keys):
    params = {
      f'Dense_{i}': dense_params(keys, *pair)
      for i, pair in enumerate(zip(sizes, sizes[1:]))
    }
    return {
      'params': params | {name: norm_params(hidden) for name in norms},
      'batch_stats': {name: norm_averages(hidden) for name in norms},
    }

  def one(variables, x, first=False):
    params, averages = variables['params'], variables['batch_stats']
    new = {}
    for i, at in enumerate(norms):
      x = dense(x, params[f'Dense_{i}'])
      x, new[at] = batch_norm(
        x, params[at], averages[at], axes=(), axis_name='batch', first=first
      )
      x = jax.nn.relu(x)
    return dense(x, params['Dense_2']), {'batch_stats': new}

  def apply(variables, batch):
    return jax.vmap(
      functools.partial(one, variables), out_axes=(0, None), axis_name='batch'
    )(batch)

  return pure_program(
    make, apply, lambda v, batch: one(v, batch[0], first=True)
  )


# --- Small modules, nesting, sharing ---


def many_modules(n: int) -> Workload:
  """n modules of one parameter each."""

  def linen(nn):
    class One(nn.Module):
      @nn.compact
      def __call__(self, x):
        return x + self.param('p', nn.initializers.zeros_init(), (WIDTH,))

    class Many(nn.Module):
      @nn.compact
      def __call__(self, x):
        for _ in range(n):
          x = One()(x)
        return x

    return linen_program(Many())

  def haiku_fn(x):
    for i in range(n):
      with hk.name_scope(f'one_{i}'):
        x = x + hk.get_parameter('p', (WIDTH,), init=jnp.zeros)
    return x

  def pure():
    def make(keys):
      return {'params': {f'One_{i}': {'p': jnp.zeros(WIDTH)} for i in range(n)}}

    def apply(variables, x):
      for i in range(n):
        x = x + variables['params'][f'One_{i}']['p']
      return x, {}

    return pure_program(make, apply)

  return Workload(
    (jnp.ones((4, WIDTH)),), linen, lambda: haiku_program(haiku_fn), pure
  )


def nested(depth: int) -> Workload:
  """Modules inside of modules, with one parameter each."""

  def linen(nn):
    class Nested(nn.Module):
      depth: int

      @nn.compact
      def __call__(self, x):
        x = x + self.param('p', nn.initializers.zeros_init(), (WIDTH,))
        if self.depth > 1:
          x = Nested(self.depth - 1)(x)
        return x

    return linen_program(Nested(depth))

  def pure():
    def make(keys):
      params = {}
      for _ in range(depth):
        params = {'p': jnp.zeros(WIDTH), 'Nested_0': params}
      return {'params': params}

    def call(params, depth, x):
      x = x + params['p']
      return call(params['Nested_0'], depth - 1, x) if depth > 1 else x

    return pure_program(make, lambda v, x: (call(v['params'], depth, x), {}))

  return Workload((jnp.ones((4, WIDTH)),), linen, pure=pure)


def many_params(n: int) -> Workload:
  """One module with n parameters."""

  def linen(nn):
    class Params(nn.Module):
      @nn.compact
      def __call__(self, x):
        zeros = nn.initializers.zeros_init()
        params = [self.param(f'p{i}', zeros, (WIDTH,)) for i in range(n)]
        # One sum: XLA takes very long for a chain of a thousand.
        return x + jnp.sum(jnp.stack(params), axis=0)

    return linen_program(Params())

  def pure():
    def make(keys):
      return {'params': {f'p{i}': jnp.zeros(WIDTH) for i in range(n)}}

    def apply(variables, x):
      params = [variables['params'][f'p{i}'] for i in range(n)]
      return x + jnp.sum(jnp.stack(params), axis=0), {}

    return pure_program(make, apply)

  return Workload((jnp.ones((4, WIDTH)),), linen, pure=pure)


def many_variables(n: int) -> Workload:
  """One module with n variables that it changes."""

  def linen(nn):
    class Variables(nn.Module):
      @nn.compact
      def __call__(self, x):
        counts = [
          self.variable('counts', f'v{i}', jnp.zeros, (WIDTH,))
          for i in range(n)
        ]
        for count in counts:
          count.value += 1
        return x + jnp.sum(jnp.stack([c.value for c in counts]), axis=0)

    return linen_program(Variables(), ('counts',))

  def pure():
    def apply(variables, x):
      counts = {f'v{i}': variables['counts'][f'v{i}'] + 1 for i in range(n)}
      y = x + jnp.sum(jnp.stack(list(counts.values())), axis=0)
      return y, {'counts': counts}

    def init(key, x):
      # Linen's starting values are those that `__call__` leaves.
      zeros = {f'v{i}': jnp.zeros(WIDTH) for i in range(n)}
      return apply({'counts': zeros}, x)[1]

    return Program(init, apply)

  return Workload((jnp.ones((4, WIDTH)),), linen, pure=pure)


def setup_style(n: int) -> Workload:
  """n dense layers made in `setup`."""

  def linen(nn):
    class Setup(nn.Module):
      def setup(self):
        self.layers = [nn.Dense(WIDTH) for _ in range(n)]

      def __call__(self, x):
        for layer in self.layers:
          x = layer(x)
        return x

    return linen_program(Setup())

  return Workload(
    (jnp.ones((4, WIDTH)),),
    linen,
    pure=lambda: _deep_pure(n, norm=False, name='layers'),
  )


def shared(n: int) -> Workload:
  """One dense layer called n times."""

  def linen(nn):
    class Shared(nn.Module):
      @nn.compact
      def __call__(self, x):
        layer = nn.Dense(WIDTH)
        for _ in range(n):
          x = layer(x)
        return x

    return linen_program(Shared())

  def pure():
    def make(keys):
      return {'params': {'Dense_0': dense_params(keys)}}

    def apply(variables, x):
      for _ in range(n):
        x = dense(x, variables['params']['Dense_0'])
      return x, {}

    return pure_program(make, apply)

  return Workload((jnp.ones((4, WIDTH)),), linen, pure=pure)


def bound(n: int) -> Workload:
  """n dense layers, bound to their variables and called as an object."""

  def linen(nn):
    module = _deep_module(nn, n, norm=False)
    return Program(module.init, lambda v, x: (module.bind(v)(x), {}))

  return Workload(
    (jnp.ones((4, WIDTH)),), linen, pure=lambda: _deep_pure(n, norm=False)
  )


WORKLOADS: dict[str, Callable[[], Workload]] = {
  'vmapped BatchNorm MLP': vmapped,
  '20 x (Dense, BatchNorm)': lambda: deep(20),
  '100 x (Dense, BatchNorm)': lambda: deep(100),
  '100 x Dense': lambda: deep(100, norm=False),
  '100 x Dense in setup': lambda: setup_style(100),
  '100 x Dense by bind': lambda: bound(100),
  'one Dense called 100 x': lambda: shared(100),
  '200 modules, 1 parameter each': lambda: many_modules(200),
  'nested 100 deep': lambda: nested(100),
  '1 module, 1000 parameters': lambda: many_params(1000),
  '1 module, 1000 variables': lambda: many_variables(1000),
  '200 remat blocks': lambda: remat(200),
  'scan over 100 layers': lambda: scan_layers(100),
  'ensemble of 10 by vmap': lambda: ensemble(10),
  **{f'MLP in {name}': functools.partial(lifted, name) for name in LIFTED},
  'LSTM by nn.RNN': lstm,
  'LSTM by nn.scan': lambda: lstm('scan'),
  'transformer, 12 layers': transformer,
  'ResNet-50': resnet50,
}

# The same in other sizes, to see how cost grows.
OTHER_SIZES: dict[str, Callable[[], Workload]] = {
  '300 x (Dense, BatchNorm)': lambda: deep(300),
  **{f'nested {n} deep': functools.partial(nested, n) for n in (1, 10, 200)},
  **{
    f'1 module, {n} parameters': functools.partial(many_params, n)
    for n in (1, 10, 100)
  },
  '1 module, 100 variables': lambda: many_variables(100),
  '50 remat blocks': lambda: remat(50),
  'scan over 10 layers': lambda: scan_layers(10),
}
