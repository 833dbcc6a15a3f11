"""Recurrent cells by their equations, and sequences by their steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import normal
from drawn import variables as variables_of
from hypothesis import given, settings
from hypothesis import strategies as st
from layers_compare import assert_same_program
from left_out import all_but
from same_signature import assert_same_signature

import haiku_state.linen as nn
from haiku_state.linen import recurrent

CELLS = ('LSTMCell', 'OptimizedLSTMCell', 'GRUCell', 'MGUCell', 'SimpleCell')
NAMES = (
  *CELLS,
  'Bidirectional',
  'ConvLSTMCell',
  'DenseParams',
  'flip_sequences',
  'RNN',
  'RNNBase',
  'RNNCellBase',
)

tree_map = jax.tree_util.tree_map


def assert_close(a, b):
  tree_map(functools.partial(np.testing.assert_allclose, atol=1e-5), a, b)


@pytest.mark.parametrize('name', NAMES)
def test_signature_is_that_of_flax(name):
  flax = pytest.importorskip('flax.linen.recurrent')
  ours, theirs = getattr(recurrent, name), getattr(flax, name)
  assert_same_signature(ours, theirs)
  if 'initialize_carry' in vars(theirs):
    assert_same_signature(ours.initialize_carry, theirs.initialize_carry)


@settings(
  max_examples=settings.default.max_examples // 5,
  deadline=None,
  derandomize=True,
)
@given(data=st.data())
def test_drawn_rnn_is_that_of_flax(data):
  draw = data.draw
  cell, features = draw(st.sampled_from(CELLS)), draw(st.integers(1, 3))
  dtype = draw(st.sampled_from(['float32', 'bfloat16']))
  of_cell = {'dtype': dtype, 'param_dtype': dtype}
  if cell == 'MGUCell':
    of_cell['reset_gate'] = draw(st.booleans())
  if cell == 'SimpleCell':
    of_cell['residual'] = draw(st.booleans())
  options = dict(
    time_major=draw(st.booleans()),
    reverse=draw(st.booleans()),
    keep_order=draw(st.booleans()),
    unroll=draw(st.integers(1, 2)),
    return_carry=draw(st.booleans()),
  )
  batch, steps = draw(st.integers(1, 3)), draw(st.integers(1, 4))
  lengths = np.arange(batch) % (steps + 1)
  shape = (steps, batch, 2) if options['time_major'] else (batch, steps, 2)
  assert_same_program(
    lambda nn: nn.RNN(getattr(nn, cell)(features, **of_cell), **options),
    jnp.zeros(shape, dtype),
    seq_lengths=draw(st.sampled_from([None, lengths])),
  )


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def lstm(of_x, of_h, carry):
  c, h = carry
  i, f, o = (sigmoid(of_x('i' + k) + of_h('h' + k, h)) for k in 'ifo')
  g = np.tanh(of_x('ig') + of_h('hg', h))
  c = f * c + i * g
  return c, o * np.tanh(c)


def gru(of_x, of_h, h):
  r, z = (sigmoid(of_x('i' + k) + of_h('h' + k, h)) for k in 'rz')
  n = np.tanh(of_x('in') + r * of_h('hn', h))
  return (1 - z) * n + z * h


def mgu(of_x, of_h, h):
  f = sigmoid(of_x('if') + of_h('hf', h))
  n = np.tanh(of_x('in') + f * of_h('hn', h))
  return (1 - f) * n + f * h


def mgu_without_reset(of_x, of_h, h):
  f = sigmoid(of_x('if') + of_h('hf', h))
  return (1 - f) * np.tanh(of_x('in') + of_h('hn', h)) + f * h


def simple(of_x, of_h, h):
  return np.tanh(of_x('i') + of_h('h', h))


def simple_residual(of_x, of_h, h):
  return np.tanh(of_x('i') + of_h('h', h) + h)


EQUATIONS = {
  'lstm': (nn.LSTMCell, {}, lstm),
  'optimized_lstm': (nn.OptimizedLSTMCell, {}, lstm),
  'gru': (nn.GRUCell, {}, gru),
  'mgu': (nn.MGUCell, {}, mgu),
  'mgu_without_reset': (
    nn.MGUCell,
    {'reset_gate': False},
    mgu_without_reset,
  ),
  'simple': (nn.SimpleCell, {}, simple),
  'simple_residual': (nn.SimpleCell, {'residual': True}, simple_residual),
}


@pytest.mark.parametrize('name', EQUATIONS)
def test_cell_is_its_equation(name):
  cls, fields, equation = EQUATIONS[name]
  cell, x = cls(3, **fields), normal(0, 2, 4)
  carry = cell.initialize_carry(jax.random.key(0), x.shape)
  carry = tree_map(lambda c: normal(1, *c.shape), carry)
  variables = variables_of(cell, carry, x)
  params = variables['params']

  def dense(name, x):
    return x @ params[name]['kernel'] + params[name].get('bias', 0.0)

  got, y = jax.jit(cell.apply)(variables, carry, x)
  want = equation(lambda name: dense(name, np.asarray(x)), dense, carry)
  assert_close(got, want)
  assert_close(y, jax.tree_util.tree_leaves(want)[-1])


def test_conv_lstm_of_one_pixel_is_an_lstm_with_open_forget_gate():
  conv = nn.ConvLSTMCell(3, (1,))
  x, carry = normal(0, 2, 1, 4), (normal(1, 2, 1, 3), normal(2, 2, 1, 3))
  variables = variables_of(conv, carry, x)
  for layer in variables['params'].values():
    layer['bias'][:] = 0.0
  params = {}
  for i, gate in enumerate('igfo'):
    part = slice(3 * i, 3 * i + 3)
    params['i' + gate] = {
      'kernel': variables['params']['ih']['kernel'][0, :, part]
    }
    params['h' + gate] = {
      'kernel': variables['params']['hh']['kernel'][0, :, part],
      'bias': jnp.full(3, float(gate == 'f')),
    }
  want, _ = nn.LSTMCell(3).apply({'params': params}, carry, x)
  assert_close(conv.apply(variables, carry, x)[0], want)


class TestFirstCarry:
  @pytest.mark.parametrize('name', CELLS)
  @pytest.mark.parametrize('init', ['zeros', 'normal'])
  def test_is_that_of_flax(self, name, init):
    flax = pytest.importorskip('flax.linen')
    carries = []
    for namespace in (nn, flax):
      fields = (
        {}
        if init == 'zeros'
        else {'carry_init': namespace.initializers.normal()}
      )
      cell = getattr(namespace, name)(3, param_dtype='bfloat16', **fields)
      carries.append(cell.initialize_carry(jax.random.key(1), (2, 5, 4)))
    for ours, theirs in zip(*map(jax.tree_util.tree_leaves, carries)):
      assert ours.shape == (2, 5, 3) and ours.dtype == jnp.bfloat16
      np.testing.assert_array_equal(ours, theirs)

  def test_of_images_keeps_their_size(self):
    cell = nn.ConvLSTMCell(3, (2, 2), carry_init=nn.initializers.normal())
    c, h = cell.initialize_carry(jax.random.key(0), (2, 1, 3, 2, 4))
    assert c.shape == h.shape == (2, 1, 3, 2, 3)
    assert np.any(c != h)
    assert cell.num_feature_axes == 3

  def test_of_zeros_needs_no_key(self):
    traced = jax.make_jaxpr(
      lambda key: nn.LSTMCell(3).initialize_carry(key, (2, 4))
    )(jax.random.key(0))
    assert 'random' not in str(traced)

  def test_base_has_none(self):
    with pytest.raises(NotImplementedError):
      nn.RNNCellBase().initialize_carry(jax.random.key(0), (1,))
    with pytest.raises(NotImplementedError):
      _ = nn.RNNCellBase().num_feature_axes


def stepped(cell, variables, x, carry=None):
  """Runs a cell over [batch, time, features] by a loop."""
  if carry is None:
    carry = cell.initialize_carry(jax.random.key(0), x[:, 0].shape)
  params, ys = {'params': variables['params']['cell']}, []
  step = jax.jit(cell.apply)
  for t in range(x.shape[1]):
    carry, y = step(params, carry, x[:, t])
    ys.append(y)
  return carry, jnp.stack(ys, 1)


@pytest.fixture(scope='module')
def rnn():
  layer, x = nn.RNN(nn.GRUCell(3)), normal(0, 2, 4, 5)
  return layer, variables_of(layer, x), x


class TestRNN:
  def test_is_a_loop(self, rnn):
    layer, variables, x = rnn
    carry, y = stepped(nn.GRUCell(3), variables, x)
    assert_close(layer.apply(variables, x, return_carry=True), (carry, y))
    assert_close(layer.apply(variables, x), y)
    assert_close(layer.clone(unroll=4).apply(variables, x), y)

  def test_starts_from_the_carry_that_is_given(self, rnn):
    layer, variables, x = rnn
    first = normal(1, 2, 3)
    _, y = stepped(nn.GRUCell(3), variables, x, first)
    assert_close(layer.apply(variables, x, initial_carry=first), y)

  def test_draws_the_first_carry_from_the_key_that_is_given(self, rnn):
    _, variables, x = rnn
    cell = nn.GRUCell(3, carry_init=nn.initializers.normal())
    layer, key = nn.RNN(cell), jax.random.key(5)
    first = cell.initialize_carry(key, (2, 5))
    _, y = stepped(cell, variables, x, first)
    assert_close(layer.apply(variables, x, init_key=key), y)
    assert np.any(layer.apply(variables, x) != y)

  @pytest.mark.parametrize('of_call', [False, True])
  def test_time_may_come_first(self, rnn, of_call):
    layer, variables, x = rnn
    flags = dict(time_major=True, return_carry=True)
    fields, call = ({}, flags) if of_call else (flags, {})
    carry, y = layer.clone(**fields).apply(
      variables, jnp.swapaxes(x, 0, 1), **call
    )
    want = layer.apply(variables, x, return_carry=True)
    assert_close((carry, jnp.swapaxes(y, 0, 1)), want)

  @pytest.mark.parametrize('of_call', [False, True])
  @pytest.mark.parametrize('keep_order', [False, True])
  def test_may_run_backward(self, rnn, of_call, keep_order):
    layer, variables, x = rnn
    flags = dict(reverse=True, keep_order=keep_order)
    fields, call = ({}, flags) if of_call else (flags, {})
    y = layer.clone(**fields).apply(variables, x, **call)
    _, want = stepped(nn.GRUCell(3), variables, x[:, ::-1])
    assert_close(y, want[:, ::-1] if keep_order else want)

  def test_the_call_overrides_the_fields(self, rnn):
    layer, variables, x = rnn
    other = layer.clone(reverse=True, keep_order=True, return_carry=True)
    y = other.apply(
      variables, x, reverse=False, keep_order=False, return_carry=False
    )
    assert_close(y, layer.apply(variables, x))
    # On the way forward there is nothing to turn around.
    assert_close(layer.apply(variables, x, keep_order=True), y)

  @pytest.mark.parametrize('time_major', all_but([False], [False, True]))
  @pytest.mark.parametrize('reverse', [False, True])
  @pytest.mark.parametrize('keep_order', [False, True])
  def test_padding_changes_nothing(self, rnn, time_major, reverse, keep_order):
    layer, variables, x = rnn
    lengths, options = [3, 1], dict(reverse=reverse, keep_order=keep_order)
    swap = (lambda a: jnp.swapaxes(a, 0, 1)) if time_major else (lambda a: a)
    apply = functools.partial(layer.apply, return_carry=True, **options)
    padded = functools.partial(
      apply, seq_lengths=jnp.array(lengths), time_major=time_major
    )
    carry, y = jax.jit(padded)(variables, swap(x))
    for i, n in enumerate(lengths):
      want = jax.jit(apply)(variables, x[i : i + 1, :n])
      assert_close((carry[i : i + 1], swap(y)[i : i + 1, :n]), want)

  def test_padding_gets_no_gradient(self, rnn):
    layer, variables, x = rnn

    def loss(x):
      carry, _ = layer.apply(
        variables, x, seq_lengths=jnp.array([3, 1]), return_carry=True
      )
      return jnp.sum(carry)

    reached = np.any(np.asarray(jax.grad(loss)(x)) != 0, axis=-1)
    np.testing.assert_array_equal(
      reached, [[True, True, True, False], [True, False, False, False]]
    )

  def test_lengths_of_more_batch_axes(self, rnn):
    """In Flax 0.12.8 the carries come from wrong places, or there is an error."""
    layer, variables, _ = rnn
    x, lengths = normal(3, 2, 3, 4, 5), np.array([[1, 2, 3], [4, 3, 1]])
    carry, y = layer.apply(variables, x, seq_lengths=lengths, return_carry=True)
    assert carry.shape == (2, 3, 3) and y.shape == (2, 3, 4, 3)
    for i, n in np.ndenumerate(lengths):
      assert_close(carry[i], y[i][n - 1])

  def test_needs_no_batch_axis(self, rnn):
    layer, variables, x = rnn
    want = layer.apply(variables, x[:1], return_carry=True)
    got = layer.apply(variables, x[0], return_carry=True)
    assert_close(got, tree_map(lambda a: a[0], want))
    carry, y = layer.apply(
      variables, x[0], seq_lengths=jnp.array(2), return_carry=True
    )
    assert_close(carry, y[1])

  def test_carry_may_be_a_tree_and_output_too(self):
    class Cell(nn.RNNCellBase):
      @nn.compact
      def __call__(self, carry, x):
        total = {'sum': carry['sum'] + x}
        return total, {'sum': total['sum'], 'x': x}

      @nn.nowrap
      def initialize_carry(self, rng, input_shape):
        return {'sum': jnp.zeros(input_shape)}

      @property
      def num_feature_axes(self):
        return 1

    x = jnp.arange(1.0, 5.0).reshape(1, 4, 1)
    layer = nn.RNN(Cell(), reverse=True, keep_order=True)
    carry, y = layer.apply({}, x, seq_lengths=jnp.array([3]), return_carry=True)
    np.testing.assert_array_equal(carry['sum'], [[6.0]])
    np.testing.assert_array_equal(y['sum'][0, :3, 0], [6.0, 5.0, 3.0])
    np.testing.assert_array_equal(y['x'], x)

  def test_images(self):
    layer = nn.RNN(nn.ConvLSTMCell(2, (2, 2)), return_carry=True)
    x = normal(0, 2, 3, 4, 4, 1)
    variables = variables_of(layer, x)
    (c, h), y = jax.jit(layer.apply)(variables, x, seq_lengths=np.array([2, 3]))
    assert c.shape == h.shape == (2, 4, 4, 2) and y.shape == (2, 3, 4, 4, 2)
    np.testing.assert_array_equal(h[0], y[0, 1])
    assert set(variables['params']['cell']) == {'ih', 'hh'}


def noisy_counter(namespace):
  """A cell that counts its steps, keeps a trace and draws noise."""

  class Cell(namespace.RNNCellBase):
    @namespace.compact
    def __call__(self, carry, x):
      steps = self.variable('memory', 'steps', jnp.zeros, ())
      trace = self.variable('trace', 'x', jnp.zeros, x.shape)
      steps.value += 1
      trace.value = x
      noise = jax.random.normal(self.make_rng('noise'), x.shape)
      return carry, namespace.Dense(2)(x) + noise[..., :1]

    @namespace.nowrap
    def initialize_carry(self, rng, input_shape):
      return ()

    @property
    def num_feature_axes(self):
      return 1

  return namespace.RNN(
    Cell(),
    variable_carry='memory',
    variable_axes={'trace': 1},
    split_rngs={'params': False, 'noise': True},
  )


def test_collections_and_streams_are_those_of_flax():
  flax = pytest.importorskip('flax.linen')
  x, results = normal(0, 2, 4, 3), []
  for namespace in (nn, flax):
    layer = noisy_counter(namespace)
    # What is carried must be there before: `scan` adds nothing to it.
    y, variables = layer.apply(
      {'memory': {'cell': {'steps': jnp.zeros(())}}},
      x,
      rngs={'params': jax.random.key(0), 'noise': jax.random.key(1)},
      mutable=['params', 'memory', 'trace'],
    )
    y2, updates = layer.apply(
      dict(variables),
      x,
      rngs={'noise': jax.random.key(2)},
      mutable=['memory', 'trace'],
    )
    results.append((dict(variables), y, dict(updates), y2))
  ours, theirs = results
  for a, b in zip(*map(jax.tree_util.tree_leaves, (ours, theirs))):
    np.testing.assert_array_equal(a, b)
  _, y, updates, _ = ours
  np.testing.assert_array_equal(updates['trace']['cell']['x'], x)
  assert float(updates['memory']['cell']['steps']) == 8.0
  assert np.any(y[:, 0] != y[:, 1])


@settings(max_examples=15, deadline=None)
@given(
  st.lists(st.integers(0, 4), min_size=1, max_size=3),
  st.booleans(),
  st.integers(0, 2),
)
def test_flipping_twice_is_nothing(lengths, time_major, feature_axes):
  batch, features = len(lengths), (2,) * feature_axes
  x = np.random.default_rng(0).integers(0, 99, (batch, 4, *features))
  lengths = np.array(lengths)

  def flip(x):
    x = jnp.swapaxes(x, 0, 1) if time_major else x
    y = recurrent.flip_sequences(x, lengths, 1, time_major)
    return np.asarray(jnp.swapaxes(y, 0, 1) if time_major else y)

  once = flip(x)
  for row, flipped, n in zip(x, once, lengths):
    np.testing.assert_array_equal(flipped[:n], row[:n][::-1])
    np.testing.assert_array_equal(flipped[n:], row[n:][::-1])
  np.testing.assert_array_equal(flip(once), x)


def test_flipping_without_lengths_flips_all():
  x = jnp.arange(6).reshape(2, 3)
  np.testing.assert_array_equal(
    recurrent.flip_sequences(x, None, 1, False), x[:, ::-1]
  )
  np.testing.assert_array_equal(
    recurrent.flip_sequences(x, None, 1, True), x[::-1]
  )


class TestBidirectional:
  x = normal(0, 2, 4, 5)
  lengths = jnp.array([4, 2])

  def make(self, **fields):
    # Different cells, so that mixing them up shows.
    return nn.Bidirectional(
      nn.RNN(nn.SimpleCell(3)), nn.RNN(nn.GRUCell(2)), **fields
    )

  def each(self, variables, **call):
    params = variables['params']
    forward = nn.RNN(nn.SimpleCell(3), return_carry=True)
    backward = nn.RNN(
      nn.GRUCell(2), return_carry=True, reverse=True, keep_order=True
    )
    return (
      forward.apply({'params': params['forward_rnn']}, self.x, **call),
      backward.apply({'params': params['backward_rnn']}, self.x, **call),
    )

  @pytest.mark.parametrize('time_major', [False, True])
  @pytest.mark.parametrize('with_lengths', [False, True])
  def test_runs_both_ways(self, time_major, with_lengths):
    layer = self.make(return_carry=True)
    variables = variables_of(layer, self.x)
    call = {'seq_lengths': self.lengths} if with_lengths else {}
    (carry_f, y_f), (carry_b, y_b) = self.each(variables, **call)
    x = jnp.swapaxes(self.x, 0, 1) if time_major else self.x
    apply = functools.partial(layer.apply, time_major=time_major, **call)
    carries, y = jax.jit(apply)(variables, x)
    y = jnp.swapaxes(y, 0, 1) if time_major else y
    assert_close(carries, (carry_f, carry_b))
    assert_close(y, jnp.concatenate([y_f, y_b], axis=-1))

  def test_starts_from_the_carries_that_are_given(self):
    layer = self.make()
    variables = variables_of(layer, self.x)
    carries = normal(1, 2, 3), normal(2, 2, 2)
    y = layer.apply(variables, self.x, initial_carry=carries)
    assert y.shape == (2, 4, 5)
    params = variables['params']
    forward = nn.RNN(nn.SimpleCell(3)).apply(
      {'params': params['forward_rnn']}, self.x, initial_carry=carries[0]
    )
    assert_close(y[..., :3], forward)

  def test_merges_as_it_is_told(self):
    layer = nn.Bidirectional(
      nn.RNN(nn.GRUCell(2)), nn.RNN(nn.GRUCell(2)), merge_fn=lambda a, b: a - b
    )
    variables = variables_of(layer, self.x)
    y = layer.apply(variables, self.x)
    both = layer.clone(merge_fn=lambda a, b: jnp.stack([a, b]))
    a, b = both.apply(variables, self.x)
    assert_close(y, a - b)

  def test_warns_of_one_object_for_both(self, caplog):
    one = nn.RNN(nn.GRUCell(2))
    with caplog.at_level('WARNING', logger='absl'):
      variables = variables_of(nn.Bidirectional(one, one), self.x)
    assert set(variables['params']) == {'forward_rnn'}
    assert (
      'forward_rnn and backward_rnn is the same object, so they will share '
      'parameters.'
    ) in caplog.text
