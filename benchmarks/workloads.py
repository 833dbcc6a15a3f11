"""Models in four forms: haiku_state, flax.linen, plain Haiku, pure JAX.

A `Program` is a pair of functions, `init(key, *inputs)` and
`apply(variables, *inputs)`, whatever the library. The first two forms are one
source text, with `nn` standing for either.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp


class Program(NamedTuple):
  """One model of one library.

  Attributes:
    init: from a key and inputs to variables.
    apply: from variables and inputs to an output and the variables that
      changed.
  """

  init: Callable[..., Any]
  apply: Callable[..., Any]


class Workload(NamedTuple):
  """One model in all forms that there are.

  Attributes:
    inputs: what it is called with.
    linen: from `haiku_state.linen` or `flax.linen` to the program.
    haiku: the program in plain Haiku, if there is one.
    pure: the program in pure JAX, if there is one.
  """

  inputs: tuple[Any, ...]
  linen: Callable[[Any], Program]
  haiku: Callable[[], Program] | None = None
  pure: Callable[[], Program] | None = None


def linen_program(module: Any, mutable: tuple[str, ...] = ()) -> Program:
  """Returns a module as a program that returns its mutable collections."""

  def apply(variables, *inputs):
    return module.apply(variables, *inputs, mutable=list(mutable))

  return Program(module.init, apply)


def haiku_program(fn: Callable[..., Any]) -> Program:
  """Returns a Haiku function as a program."""
  transformed = hk.transform_with_state(fn)

  def apply(variables, *inputs):
    return transformed.apply(*variables, None, *inputs)

  return Program(transformed.init, apply)


WIDTH = 16


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


def _deep_pure(n: int, norm: bool) -> Program:
  initializer = jax.nn.initializers.lecun_normal()

  def init(key, x):
    del x
    layers = []
    for i in range(n):
      kernel = initializer(jax.random.fold_in(key, i), (WIDTH, WIDTH))
      layers.append([kernel, jnp.zeros(WIDTH)])
      if norm:
        layers[-1] += [jnp.ones(WIDTH), jnp.zeros(WIDTH)]
    stats = [(jnp.zeros(WIDTH), jnp.ones(WIDTH)) for _ in range(n * norm)]
    return layers, stats

  def apply(variables, x):
    layers, stats = variables
    new_stats = []
    for i, layer in enumerate(layers):
      x = _dense(x, layer[0], layer[1])
      if norm:
        x, new = _batch_norm(x, *layer[2:], *stats[i], mean=jnp.mean)
        new_stats.append(new)
    return x, new_stats

  return Program(init, apply)


def _dense(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
  y = jax.lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))
  return y + jnp.reshape(bias, (1,) * (y.ndim - 1) + (-1,))


def _batch_norm(x, scale, bias, ra_mean, ra_var, mean, mix=lambda *m: m):
  mu, mu2 = mix(mean(x, 0), mean(jax.lax.square(x), 0))
  var = jnp.maximum(0.0, mu2 - jax.lax.square(mu))
  new = (0.99 * ra_mean + 0.01 * mu, 0.99 * ra_var + 0.01 * var)
  shape = (1,) * (x.ndim - 1) + (-1,)
  y = x - mu.reshape(shape)
  y = y * (jax.lax.rsqrt(var.reshape(shape) + 1e-5) * scale.reshape(shape))
  return y + bias.reshape(shape), new


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
  initializer = jax.nn.initializers.lecun_normal()
  sizes = (100, hidden, hidden, 1)

  def init(key, batch):
    del batch
    layers = [
      (initializer(jax.random.fold_in(key, i), pair), jnp.zeros(pair[1]))
      for i, pair in enumerate(zip(sizes, sizes[1:]))
    ]
    norms = [(jnp.ones(hidden), jnp.zeros(hidden)) for _ in range(2)]
    stats = [(jnp.zeros(hidden), jnp.ones(hidden)) for _ in range(2)]
    return layers, norms, stats

  def over_batch(mu, mu2):
    return jax.lax.pmean(jnp.stack([mu, mu2]), 'batch')

  def apply(variables, batch):
    layers, norms, stats = variables

    def one(x):
      new_stats = []
      for i in range(2):
        x = _dense(x, *layers[i])
        x, new = _batch_norm(
          x, *norms[i], *stats[i], mean=lambda x, axis: x, mix=over_batch
        )
        new_stats.append(new)
        x = jax.nn.relu(x)
      return _dense(x, *layers[2]), new_stats

    return jax.vmap(one, out_axes=(0, None), axis_name='batch')(batch)

  return Program(init, apply)


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
    def apply(ps, x):
      for p in ps:
        x = x + p
      return x, {}

    return Program(lambda key, x: [jnp.zeros(WIDTH) for _ in range(n)], apply)

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

  return Workload((jnp.ones((4, WIDTH)),), linen)


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

  return Workload((jnp.ones((4, WIDTH)),), linen)


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

  return Workload((jnp.ones((4, WIDTH)),), linen)


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

  return Workload((jnp.ones((4, WIDTH)),), linen)


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

  return Workload((jnp.ones((4, WIDTH)),), linen)


def bound(n: int) -> Workload:
  """n dense layers, bound to their variables and called as an object."""

  def linen(nn):
    module = _deep_module(nn, n, norm=False)
    return Program(module.init, lambda v, x: (module.bind(v)(x), {}))

  return Workload((jnp.ones((4, WIDTH)),), linen)


# --- Lifted transforms ---


def _dense_params(key: jax.Array) -> Any:
  kernel = jax.nn.initializers.lecun_normal()(key, (WIDTH, WIDTH))
  return kernel, jnp.zeros(WIDTH)


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
    def init(key, x):
      del x
      return [_dense_params(k) for k in jax.random.split(key, n)]

    def apply(layers, x):
      for params in layers:
        # A new function for each layer, as modules have.
        x = jax.checkpoint(lambda p, x: _dense(x, *p))(params, x)
      return x, {}

    return Program(init, apply)

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
      del x
      return jax.vmap(_dense_params)(jax.random.split(key, n))

    def apply(layers, x):
      step = lambda x, params: (_dense(x, *params), None)
      return jax.lax.scan(step, x, layers)[0], {}

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


def _mlp_params(key: jax.Array) -> Any:
  return [_dense_params(k) for k in jax.random.split(key, MLP_LAYERS)]


def _mlp(layers: Any, x: jax.Array) -> jax.Array:
  for params in layers:
    x = jnp.tanh(_dense(x, *params))
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

  return Workload(
    (jnp.ones((4, WIDTH)),),
    linen,
    haiku,
    lambda: mapped(lambda key, x: _mlp_params(key), _mlp),
  )


def _call(m: Any, x: jax.Array) -> jax.Array:
  return m(x)


def _negative(m: Any, x: jax.Array) -> jax.Array:
  return -m(x)


# A perceptron inside of each of the other transforms: how linen does it, and
# how JAX does it with a function of parameters and input.
LIFTED: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
  'jit': (
    lambda nn, m, x: nn.jit(type(m))(name='jitted')(x),
    lambda f, p, x: jax.jit(lambda p, x: f(p, x))(p, x),
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


def _doubled(tree: Any) -> Any:
  return jax.tree.map(lambda x: 2 * x, tree)


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
        if name in ('cond', 'switch', 'jvp') and self.is_initializing():
          return m(x)  # These make no variables.
        return by_linen(nn, m, x)

    return linen_program(Lifted())

  def pure():
    return Program(
      lambda key, x: _mlp_params(key), lambda p, x: (by_jax(_mlp, p, x), {})
    )

  return Workload((jnp.ones((4, WIDTH)),), linen, pure=pure)


def lstm() -> Workload:
  """An LSTM over 20 steps."""
  x = jnp.ones((2, 20, WIDTH))

  def haiku_fn(x):
    core = hk.LSTM(WIDTH)
    return hk.dynamic_unroll(
      core, x, core.initial_state(x.shape[0]), time_major=False
    )[0]

  return Workload(
    (x,),
    lambda nn: linen_program(nn.RNN(nn.LSTMCell(WIDTH))),
    lambda: haiku_program(haiku_fn),
    _lstm_pure,
  )


def _lstm_pure() -> Program:
  def init(key, x):
    del x
    make = jax.nn.initializers.lecun_normal()
    return [
      (
        make(jax.random.fold_in(key, 2 * i), (WIDTH, WIDTH)),
        make(jax.random.fold_in(key, 2 * i + 1), (WIDTH, WIDTH)),
        jnp.zeros(WIDTH),
      )
      for i in range(4)
    ]

  def apply(gates, x):
    def step(carry, x):
      c, h = carry
      i, f, g, o = (x @ w + h @ u + b for w, u, b in gates)
      c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
      h = jax.nn.sigmoid(o) * jnp.tanh(c)
      return (c, h), h

    zeros = jnp.zeros((x.shape[0], WIDTH))
    _, y = jax.lax.scan(step, (zeros, zeros), jnp.swapaxes(x, 0, 1))
    return jnp.swapaxes(y, 0, 1), {}

  return Program(init, apply)


# --- Models ---


def transformer(layers: int = 12) -> Workload:
  """A transformer encoder of small width."""
  x = jnp.ones((2, 8, 32))

  def linen(nn):
    class Block(nn.Module):
      @nn.compact
      def __call__(self, x):
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(4)(y, y)
        y = nn.LayerNorm()(x)
        return x + nn.Dense(32)(nn.gelu(nn.Dense(64)(y)))

    class Transformer(nn.Module):
      @nn.compact
      def __call__(self, x):
        for _ in range(layers):
          x = Block()(x)
        return nn.LayerNorm()(x)

    return linen_program(Transformer())

  def haiku_fn(x):
    norm = functools.partial(hk.LayerNorm, -1, True, True)
    init = hk.initializers.VarianceScaling(1.0)
    for _ in range(layers):
      y = norm()(x)
      attention = hk.MultiHeadAttention(4, 8, w_init=init, model_size=32)
      x = x + attention(y, y, y)
      y = norm()(x)
      x = x + hk.Linear(32)(jax.nn.gelu(hk.Linear(64)(y)))
    return norm()(x)

  return Workload((x,), linen, lambda: haiku_program(haiku_fn))


def resnet50() -> Workload:
  """ResNet-50 with few channels on small images."""
  x = jnp.ones((1, 32, 32, 3))

  def linen(nn):
    conv = functools.partial(nn.Conv, use_bias=False)
    norm = functools.partial(nn.BatchNorm, use_running_average=False)

    class Block(nn.Module):
      features: int
      stride: int

      @nn.compact
      def __call__(self, x):
        strides = (self.stride, self.stride)
        y = nn.relu(norm()(conv(self.features, (1, 1))(x)))
        y = nn.relu(norm()(conv(self.features, (3, 3), strides)(y)))
        y = norm()(conv(4 * self.features, (1, 1))(y))
        if x.shape != y.shape:
          x = norm()(conv(4 * self.features, (1, 1), strides)(x))
        return nn.relu(x + y)

    class ResNet(nn.Module):
      @nn.compact
      def __call__(self, x):
        x = nn.relu(norm()(conv(8, (7, 7), (2, 2))(x)))
        x = nn.max_pool(x, (3, 3), (2, 2), 'SAME')
        for i, blocks in enumerate((3, 4, 6, 3)):
          for j in range(blocks):
            x = Block(8 * 2**i, 2 if i and not j else 1)(x)
        return nn.Dense(10)(x.mean((1, 2)))

    return linen_program(ResNet(), ('batch_stats',))

  def haiku_fn(x):
    net = hk.nets.ResNet50(10, resnet_v2=False)
    return net(x, is_training=True)

  return Workload((x,), linen, lambda: haiku_program(haiku_fn))


WORKLOADS: dict[str, Callable[[], Workload]] = {
  'vmapped BatchNorm MLP': vmapped,
  '20 x (Dense, BatchNorm)': lambda: deep(20),
  '100 x (Dense, BatchNorm)': lambda: deep(100),
  '300 x (Dense, BatchNorm)': lambda: deep(300),
  '100 x Dense': lambda: deep(100, norm=False),
  '100 x Dense in setup': lambda: setup_style(100),
  'one Dense called 100 x': lambda: shared(100),
  '200 modules, 1 parameter each': lambda: many_modules(200),
  **{
    f'nested {n} deep': functools.partial(nested, n) for n in (1, 10, 100, 200)
  },
  **{
    f'1 module, {n} parameters': functools.partial(many_params, n)
    for n in (1, 10, 100, 1000)
  },
  '1 module, 100 variables': lambda: many_variables(100),
  '1 module, 1000 variables': lambda: many_variables(1000),
  '100 x Dense by bind': lambda: bound(100),
  '50 remat blocks': lambda: remat(50),
  '200 remat blocks': lambda: remat(200),
  'scan over 10 layers': lambda: scan_layers(10),
  'scan over 100 layers': lambda: scan_layers(100),
  'ensemble of 10 by vmap': lambda: ensemble(10),
  **{f'MLP in {name}': functools.partial(lifted, name) for name in LIFTED},
  'LSTM by nn.RNN': lstm,
  'transformer, 12 layers': transformer,
  'ResNet-50': resnet50,
}
