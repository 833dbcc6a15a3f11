"""Cells as cores of Haiku, and cores of Haiku as cells, each in a table."""

import dataclasses
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haiku_state import interop
from haiku_state import linen as nn
from haiku_state.linen._module.haiku_names import haiku_name

KEY = jax.random.PRNGKey(0)
TIME, BATCH = 2, 3


def noise(*shape):
  return jax.random.normal(jax.random.PRNGKey(1), shape)


def assert_close(a, b, tolerance=1e-5):
  a, b = (jax.tree.leaves(x) for x in (a, b))
  assert len(a) == len(b)
  for x, y in zip(a, b):
    np.testing.assert_allclose(x, y, tolerance, tolerance)


def shapes(tree):
  return jax.tree.map(jnp.shape, tree)


def loss_of(fn):
  return lambda *args: sum(
    jnp.sum(jnp.sin(3 * y)) for y in jax.tree.leaves(fn(*args))
  )


def with_gradients(fn):
  def run(*args):
    return fn(*args), jax.grad(loss_of(fn), (0, 1))(*args)

  return run


# --- Cells as cores ----------------------------------------------------------


class Counting(nn.RNNCellBase):
  """A cell with state of its own, whose carry needs the shape of its input."""

  @nn.compact
  def __call__(self, carry, x):
    n = self.variable('counts', 'n', lambda: jnp.zeros(()))
    carry = carry + nn.Dense(x.shape[-1], name='dense')(x) * n.value
    n.value += 1
    return carry, carry

  @nn.nowrap
  def initialize_carry(self, rng, input_shape):
    return jnp.zeros(input_shape)

  @property
  def num_feature_axes(self):
    return 1


@dataclasses.dataclass(eq=False)
class Cell:
  """A cell, the shape of one input, and whether Haiku must be told of it."""

  make: Any
  shape: tuple[int, ...] = (4,)
  needs_shape: bool = False

  def core(self):
    shape = self.shape if self.needs_shape else None
    return interop.as_rnn_core(self.make(), input_shape=shape)


CELLS = {
  'LSTM': Cell(lambda: nn.LSTMCell(5)),
  'optimized LSTM': Cell(lambda: nn.OptimizedLSTMCell(5)),
  'simple': Cell(lambda: nn.SimpleCell(5)),
  'residual': Cell(lambda: nn.SimpleCell(5, residual=True)),
  'GRU': Cell(lambda: nn.GRUCell(5)),
  'MGU': Cell(lambda: nn.MGUCell(5)),
  'named': Cell(lambda: nn.GRUCell(5, name='memory')),
  'conv1d': Cell(lambda: nn.ConvLSTMCell(2, (2,)), (3, 1), True),
  'conv2d': Cell(lambda: nn.ConvLSTMCell(2, (2, 2)), (3, 4, 1), True),
  'conv3d': Cell(lambda: nn.ConvLSTMCell(2, (2, 2, 2)), (2, 3, 2, 1), True),
  'counting': Cell(Counting, (4,), True),
  'core as cell': Cell(lambda: interop.as_rnn_cell(lambda: hk.LSTM(5))),
}
each_cell = pytest.mark.parametrize('cell', CELLS.values(), ids=CELLS.keys())


def dynamic(core, xs, state):
  return hk.dynamic_unroll(core, xs, state)


def batch_major(core, xs, state):
  ys, state = hk.dynamic_unroll(
    core, jnp.swapaxes(xs, 0, 1), state, time_major=False
  )
  return jnp.swapaxes(ys, 0, 1), state


def static(core, xs, state):
  return hk.static_unroll(core, xs, state)


def deep(core, xs, state):
  core = hk.DeepRNN([core, hk.IdentityCore(), lambda x: x])
  ys, (state, _) = hk.dynamic_unroll(core, xs, (state, ()))
  return ys, state


def reset(core, xs, state):
  inputs = xs, jnp.zeros(xs.shape[:2], bool)
  return hk.dynamic_unroll(hk.ResetCore(core), inputs, state)


UNROLLS = [dynamic, batch_major, static, deep, reset]


def inputs_of(cell, batch=(BATCH,)):
  return noise(TIME, *batch, *cell.shape)


def function_of(cell, unroll):
  def f(xs):
    core = cell.core()
    assert isinstance(core, hk.RNNCore)
    return unroll(core, xs, core.initial_state(xs.shape[1]))

  return hk.transform_with_state(f)


def plain(cell, xs, variables):
  rnn = nn.RNN(
    cell.make(),
    time_major=True,
    return_carry=True,
    variable_carry='counts',
  )
  variables = {col: {'cell': tree} for col, tree in variables.items()}
  (carry, ys), new = rnn.apply(variables, xs, mutable=['counts'])
  return (ys, carry), {col: tree['cell'] for col, tree in new.items()}


@pytest.mark.parametrize(
  'name, unroll',
  [
    *((name, dynamic) for name in CELLS),
    *((n, u) for u in UNROLLS[1:] for n in ('GRU', 'counting')),
  ],
)
def test_cell_as_core(name, unroll):
  cell = CELLS[name]
  xs = inputs_of(cell)
  f = function_of(cell, unroll)
  root = haiku_name(cell.make())
  params, state = jax.jit(f.init)(KEY, xs)
  # One set of parameters, where the module itself would have them.
  carry = cell.make().initialize_carry(KEY, xs.shape[1:])
  variables = jax.eval_shape(cell.make().init, KEY, carry, xs[0])
  assert shapes((params, state)) == shapes(interop.to_haiku(variables, root))

  def core(params, xs):
    return f.apply(params, state, None, xs)

  def rnn(params, xs):
    out, new = plain(cell, xs, interop.from_haiku(params, state, root))
    return out, interop.to_haiku(new, root)[1] if new else {}

  # Values and gradients in one program each.
  core, rnn = (jax.jit(with_gradients(fn))(params, xs) for fn in (core, rnn))
  assert_close(core, rnn, 1e-4)


@each_cell
def test_cell_as_core_without_a_batch(cell):
  xs = inputs_of(cell)

  def unroll(batch_size):
    def f(xs):
      core = cell.core()
      return hk.dynamic_unroll(core, xs, core.initial_state(batch_size))

    return hk.transform_with_state(f)

  params, state = jax.jit(unroll(BATCH).init)(KEY, xs)
  want, _ = jax.jit(unroll(BATCH).apply)(params, state, None, xs)
  f = unroll(None)
  made = jax.eval_shape(f.init, KEY, xs[:, 0])
  assert shapes(made) == shapes((params, state))
  y, _ = jax.jit(f.apply)(params, state, None, xs[:, 0])
  assert_close(y[0], want[0][:, 0])


@pytest.mark.parametrize('name', ['LSTM', 'conv1d', 'counting'])
def test_resets(name):
  cell = CELLS[name]
  xs = inputs_of(cell)

  def f(xs):
    core = hk.ResetCore(cell.core())
    resets = jnp.zeros((TIME, BATCH), bool).at[1, 0].set(True)
    state = core.initial_state(BATCH)
    return hk.dynamic_unroll(core, (xs, resets), state)[0]

  f = hk.transform_with_state(f)
  params, state = f.init(KEY, xs)
  ys, _ = f.apply(params, state, None, xs)
  whole = function_of(cell, dynamic).apply(params, state, None, xs)[0][0]
  assert_close(ys[:, 1], whole[:, 1])
  if 'n' not in str(jax.tree.structure(state)):
    later = function_of(cell, dynamic).apply(params, state, None, xs[1:])[0][0]
    assert_close(ys[1:, 0], later[:, 0])


def names_of(fn):
  params = hk.transform(fn).init(KEY, noise(TIME, BATCH, 4))
  return sorted({path.rpartition('/')[0] or path for path in params})


def test_cores_of_both_libraries_in_one():
  def f(xs):
    core = hk.DeepRNN(
      [
        interop.as_rnn_core(nn.GRUCell(4)),
        hk.IdentityCore(),
        hk.LSTM(4),
        interop.as_rnn_core(nn.GRUCell(4)),
        jax.nn.relu,
      ]
    )
    return hk.dynamic_unroll(core, xs, core.initial_state(BATCH))[0]

  assert names_of(f) == ['gru_cell', 'gru_cell_1', 'lstm']


def test_names_are_given_when_the_core_is_made():
  class Agent(hk.Module):
    def __init__(self):
      super().__init__()
      self.a, self.b = (interop.as_rnn_core(nn.GRUCell(4)) for _ in range(2))

    def __call__(self, xs):
      b = hk.dynamic_unroll(self.b, xs, self.b.initial_state(BATCH))[0]
      return hk.dynamic_unroll(self.a, b, self.a.initial_state(BATCH))[0]

  def haikus(xs):
    class Agent(hk.Module):
      def __init__(self):
        super().__init__()
        self.a = hk.GRU(4, name='gru_cell')

      def __call__(self, xs):
        return hk.dynamic_unroll(self.a, xs, self.a.initial_state(BATCH))[0]

    return Agent()(xs)

  (path,) = hk.transform(haikus).init(KEY, noise(TIME, BATCH, 4))
  assert names_of(lambda xs: Agent()(xs)) == [path, path + '_1']
  f = hk.transform(lambda xs: Agent()(xs))
  xs = noise(TIME, BATCH, 4)
  params = f.init(KEY, xs)
  zero = {
    p: jax.tree.map(jnp.zeros_like, x) if 'cell_1' in p else x
    for p, x in params.items()
  }
  # The second is run first: it hides its inputs if its weights are zero.
  np.testing.assert_allclose(
    f.apply(zero, None, xs), f.apply(zero, None, 2 * xs), 1e-6
  )


def test_a_cell_from_outside_is_one_module():
  cell = nn.GRUCell(4)

  def f(xs):
    core = interop.as_rnn_core(cell)
    return hk.static_unroll(core, xs, core.initial_state(BATCH))[0]

  assert names_of(f) == ['gru_cell']


def test_inside_of_a_linen_style_module():
  class Model(nn.Module):
    @nn.compact
    def __call__(self, xs):
      core = hk.DeepRNN([interop.as_rnn_core(nn.GRUCell(4)), hk.LSTM(4)])
      return hk.dynamic_unroll(core, xs, core.initial_state(BATCH))[0]

  xs = noise(TIME, BATCH, 4)
  variables = Model().init(KEY, xs)
  assert sorted(variables['params']) == ['GRUCell_0', 'lstm']
  assert Model().apply(variables, xs).shape == (TIME, BATCH, 4)


def test_a_key_is_drawn_only_for_a_carry_that_is():
  def f(carry_init):
    core = interop.as_rnn_core(nn.LSTMCell(4, carry_init=carry_init))
    return core.initial_state(BATCH), hk.next_rng_key()

  zeros = nn.initializers.zeros
  f = hk.transform(f)
  _, key = f.apply({}, KEY, zeros)
  _, first = hk.transform(lambda: (0, hk.next_rng_key())).apply({}, KEY)
  assert (key == first).all()
  (c, h), key = f.apply({}, KEY, nn.initializers.normal())
  assert not (key == first).all() and not (c == h).any()


# --- Cores as cells ----------------------------------------------------------


class Learned(hk.LSTM):
  """A core whose first state is a parameter."""

  def initial_state(self, batch_size):
    h = hk.get_parameter('h', (self.hidden_size,), init=jnp.ones)
    shape = h.shape if batch_size is None else (batch_size, *h.shape)
    return hk.LSTMState(*2 * (jnp.broadcast_to(h, shape),))


def deep_core():
  return hk.DeepRNN([hk.LSTM(5), jax.nn.relu, hk.GRU(3)])


def skipping_core():
  return hk.deep_rnn_with_skip_connections([hk.LSTM(5), hk.GRU(3)])


# The function that makes a core, the shape of one input, its feature axes.
CORES = {
  'LSTM': (lambda: hk.LSTM(5), (4,), 1),
  'GRU': (lambda: hk.GRU(5), (4,), 1),
  'VanillaRNN': (lambda: hk.VanillaRNN(5), (4,), 1),
  'one bias': (lambda: hk.VanillaRNN(5, double_bias=False), (4,), 1),
  'named': (lambda: hk.LSTM(5, name='memory'), (4,), 1),
  'conv1d': (lambda: hk.Conv1DLSTM((3,), 2, 2), (3, 1), 2),
  'conv2d': (lambda: hk.Conv2DLSTM((3, 4), 2, 2), (3, 4, 1), 3),
  'conv3d': (lambda: hk.Conv3DLSTM((2, 3, 2), 2, 2), (2, 3, 2, 1), 4),
  'deep': (deep_core, (4,), 1),
  'skip connections': (skipping_core, (4,), 1),
  'identity': (hk.IdentityCore, (4,), 1),
  'learned': (lambda: Learned(5), (4,), 1),
}
some_cores = pytest.mark.parametrize(
  'core', [CORES[n] for n in ('LSTM', 'conv1d', 'deep', 'learned', 'identity')]
)
each_core = pytest.mark.parametrize('core', CORES.values(), ids=CORES.keys())


def haikus_own(make):
  def f(xs):
    core = make()
    return hk.dynamic_unroll(core, xs, core.initial_state(xs.shape[1]))

  return hk.transform(f)


def rnn_of(make, **options):
  return nn.RNN(
    interop.as_rnn_cell(make), time_major=True, return_carry=True, **options
  )


def cells_part(variables):
  """Returns the parameters of the cell, as Haiku's own core has them."""
  params = nn.FrozenDict(variables).unfreeze().get('params', {})
  return interop.to_haiku({'params': params.get('cell', {})})[0]


@each_core
def test_core_as_cell(core):
  make, shape, axes = core
  assert interop.as_rnn_cell(make).num_feature_axes == axes
  xs = noise(TIME, BATCH, *shape)
  rnn = rnn_of(make)
  variables = jax.jit(rnn.init)(KEY, xs)
  f = haikus_own(make)
  params = jax.eval_shape(f.init, KEY, xs)
  own = cells_part(variables)
  assert {p: x for p, x in shapes(own).items() if x} == shapes(dict(params))

  def linen(variables, xs):
    return rnn.apply(variables, xs)[::-1]

  def haiku(variables, xs):
    return f.apply(cells_part(variables), None, xs)

  linen, haiku = (
    jax.jit(with_gradients(fn))(variables, xs) for fn in (linen, haiku)
  )
  assert_close(linen, haiku, 1e-4)


@some_cores
def test_core_as_cell_in_other_loops(core):
  make, shape, _ = core
  xs = noise(BATCH, TIME, *shape)
  layer = nn.Bidirectional(
    nn.RNN(interop.as_rnn_cell(make)), nn.RNN(interop.as_rnn_cell(make))
  )
  variables = jax.jit(layer.init)(KEY, xs)
  names = set(variables.get('params', {}))
  assert names in ({'forward_rnn', 'backward_rnn'}, set())
  forward = variables.get('params', {}).get('forward_rnn', {})
  rnn = nn.RNN(interop.as_rnn_cell(make))
  ys = jax.jit(rnn.apply)({'params': forward}, xs)
  out = jax.jit(layer.apply)(variables, xs)
  assert_close(out[..., : ys.shape[-1]], ys)

  class Scanned(nn.Module):
    @nn.compact
    def __call__(self, xs):
      cell = interop.as_rnn_cell(make, name='cell')
      carry = cell.initialize_carry(KEY, xs[:, 0].shape)
      scan = nn.scan(
        lambda cell, carry, x: cell(carry, x),
        variable_broadcast='params',
        split_rngs={'params': False},
        in_axes=1,
        out_axes=1,
      )
      return scan(cell, carry, xs)[1]

  assert_close(jax.jit(Scanned().apply)({'params': forward}, xs), ys)
  made = jax.eval_shape(Scanned().init, KEY, xs)
  assert shapes(made.get('params', {})) == shapes(forward)


@some_cores
def test_core_as_cell_in_a_haiku_function(core):
  make, shape, _ = core
  xs = noise(TIME, BATCH, *shape)
  f = hk.transform(lambda xs: rnn_of(make)(xs)[::-1])
  params = jax.jit(f.init)(KEY, xs)
  assert all(path.startswith('rnn/cell/') for path in params)
  own = {path.removeprefix('rnn/cell/'): x for path, x in params.items()}
  assert_close(
    jax.jit(f.apply)(params, None, xs),
    jax.jit(haikus_own(make).apply)(own, None, xs),
  )


def test_resetting_core_takes_pairs():
  xs = noise(TIME, BATCH, 4)
  resets = jnp.zeros((TIME, BATCH), bool).at[1, 0].set(True)

  def make():
    return hk.ResetCore(hk.LSTM(5))

  class Model(nn.Module):
    @nn.compact
    def __call__(self, inputs):
      cell = interop.as_rnn_cell(make, name='cell')
      carry = cell.initialize_carry(KEY, inputs[0][0].shape)
      scan = nn.scan(
        lambda cell, carry, x: cell(carry, x),
        variable_broadcast='params',
        split_rngs={'params': False},
      )
      return scan(cell, carry, inputs)

  variables = Model().init(KEY, (xs, resets))
  carry, ys = Model().apply(variables, (xs, resets))

  def f(inputs):
    core = make()
    return hk.dynamic_unroll(core, inputs, core.initial_state(BATCH))

  params = cells_part(variables)
  assert_close((ys, carry), hk.transform(f).apply(params, None, (xs, resets)))


@each_core
def test_first_carry(core):
  make, shape, axes = core
  cell = interop.as_rnn_cell(make, num_feature_axes=axes)
  if make is CORES['learned'][0]:
    with pytest.raises(ValueError, match='parameters of its own.*nn.RNN'):
      cell.initialize_carry(KEY, (BATCH, *shape))
    return
  for size in (None, BATCH):
    batch = () if size is None else (size,)
    carry = cell.initialize_carry(KEY, (*batch, *shape))
    f = hk.transform(lambda size=size: make().initial_state(size))
    want = f.apply({}, None)
    assert jax.tree.structure(carry) == jax.tree.structure(want)
    assert shapes(carry) == shapes(want)
  carry = cell.initialize_carry(KEY, (BATCH, 7, *shape))
  assert all(x.shape[:2] == (BATCH, 7) for x in jax.tree.leaves(carry))


@pytest.mark.parametrize('name', ['VanillaRNN', 'identity'])
def test_several_axes_of_batches(name):
  make, shape, _ = CORES[name]
  xs = noise(TIME, BATCH, 2, *shape)
  rnn = rnn_of(make)
  variables = rnn.init(KEY, xs)
  ys = rnn.apply(variables, xs)[1]
  assert_close(ys[:, :, 0], rnn.apply(variables, xs[:, :, 0])[1])


def test_state_and_keys_of_a_core():
  class Noisy(hk.GRU):
    def __call__(self, inputs, state):
      n = hk.get_state('n', (), init=jnp.zeros)
      hk.set_state('n', n + 1)
      noise = jax.random.normal(hk.next_rng_key(), state.shape)
      y, state = super().__call__(inputs, state + noise)
      return y + n, state

  split_rngs = {'params': False, 'noise': True}
  rnn = rnn_of(lambda: Noisy(5), variable_carry='state', split_rngs=split_rngs)
  xs = noise(TIME, BATCH, 4)
  cell = rnn.cell
  own = cell.init({'params': KEY, 'noise': KEY}, jnp.zeros((BATCH, 5)), xs[0])
  variables = {col: {'cell': tree} for col, tree in own.items()}

  def run(seed):
    rngs = {'noise': jax.random.PRNGKey(seed)}
    (_, ys), new = rnn.apply(variables, xs, rngs=rngs, mutable=['state'])
    return ys, new['state']['cell']['noisy']['n']

  ys, n = run(0)
  assert n - own['state']['noisy']['n'] == TIME
  assert not np.allclose(ys, run(1)[0])


# --- The wrong way round -----------------------------------------------------


def in_haiku(fn):
  return lambda: hk.transform(lambda: fn()).init(KEY)


WRONG = {
  'core as core': (
    in_haiku(lambda: interop.as_rnn_core(hk.LSTM(3))),
    'LSTM is a core of Haiku: use it as it is',
  ),
  'cell as cell': (
    lambda: interop.as_rnn_cell(nn.LSTMCell(3)),
    'LSTMCell is a cell: use it as it is',
  ),
  'layer': (
    in_haiku(lambda: interop.as_rnn_core(nn.Dense(3))),
    r'takes a linen-style cell, found a Dense.*nn.LSTMCell',
  ),
  'class of cells': (
    in_haiku(lambda: interop.as_rnn_core(nn.LSTMCell)),
    'found the class LSTMCell',
  ),
  'function of a cell': (
    in_haiku(lambda: interop.as_rnn_core(lambda: nn.LSTMCell(3))),
    'found a function',
  ),
  'core that was made': (
    in_haiku(lambda: interop.as_rnn_cell(hk.LSTM(3))),
    r'found a LSTM.*`as_rnn_cell\(lambda: hk.LSTM\(...\)\)`',
  ),
  'module as core': (
    lambda: interop.as_rnn_cell(nn.Dense(3)),
    'found a Dense.*lambda: hk.LSTM',
  ),
  'function of something else': (
    lambda: interop.as_rnn_cell(lambda: hk.Linear(3)).initialize_carry(
      KEY, (2, 3)
    ),
    'returned a Linear and no hk.RNNCore',
  ),
  'shape of images': (
    in_haiku(
      lambda: interop.as_rnn_core(nn.ConvLSTMCell(2, (2, 2))).initial_state(2)
    ),
    r'ConvLSTMCell.*3 axes are features.*input_shape=\(..., ..., ...\)',
  ),
  'shape of features': (
    in_haiku(lambda: interop.as_rnn_core(Counting()).initial_state(2)),
    r'Counting depends.*input_shape=\(...,\)',
  ),
}


@pytest.mark.parametrize('name', WRONG)
def test_wrong_way_round(name):
  fn, words = WRONG[name]
  with pytest.raises(TypeError, match=words):
    fn()
