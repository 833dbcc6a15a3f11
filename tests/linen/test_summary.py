"""Tables of modules: the text, the rows and the counts that Flax has."""

import builtins
import dataclasses
import enum
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest
from module_compare import KEY, Programs, X, assert_same_as_flax, attempt

import haiku_state.linen as nn
from haiku_state.linen import summary

programs = Programs()
WIDE = {'width': 200}
IMAGE = jnp.ones((2, 8, 8, 3))


def cnn(nn):
  class Block(nn.Module):
    features: int
    test_sow: bool = False

    def setup(self):
      self.conv = nn.Conv(self.features, (3, 3), use_bias=False)
      self.bn = nn.BatchNorm()
      self.dropout = nn.Dropout(0.5)

    def block_method(self, x, training):
      x = self.conv(x)
      x = self.bn(x, use_running_average=not training)
      x = self.dropout(x, deterministic=not training)
      return nn.relu(x)

    __call__ = block_method

  class CNN(nn.Module):
    def setup(self):
      self.block1 = Block(4)
      self.block2 = Block(2)
      self.dense1 = nn.Dense(5)

    def __call__(self, x, training):
      return self.cnn_method(x, training=training)

    def cnn_method(self, x, training):
      x = self.block1.block_method(x, training=training)
      x = self.block2.block_method(x, training=training)
      x = x.mean(axis=(1, 2))
      return self.dense1(x), dict(a=x, b=x + 1)

  return CNN()


@programs
def a_network_with_state(nn, flax):
  keys = {'params': KEY, 'dropout': KEY}
  options = [
    {},
    {'depth': 0},
    {'depth': 1},
    {'depth': 9},
    {'show_repeated': True},
    {'mutable': ['params']},
    {'mutable': True},
    {'compute_flops': True, 'depth': 0},
    {'console_kwargs': WIDE},
    {'console_kwargs': {'force_terminal': False, 'width': 240}},
    {'table_kwargs': {'safe_box': False, 'expand': True}},
    {'column_kwargs': {'width': 400}, 'console_kwargs': {'width': 400}},
  ]
  return {
    str(o): attempt(
      lambda o=o: cnn(nn).tabulate(keys, IMAGE, training=True, **o)
    )
    for o in options
  }


@programs
def shared_and_repeated_modules(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      dense = nn.Dense(3, name='shared')
      x = dense(dense(x))
      return nn.Sequential([nn.Dense(3), dense])(x)

  return [
    Foo().tabulate(KEY, X, show_repeated=repeated, console_kwargs=WIDE)
    for repeated in (False, True)
  ]


class Color(enum.Enum):
  RED = 1
  BLUE = 'b'


@dataclasses.dataclass(frozen=True)
class Config:
  a: int = 1
  b: tuple = (1, None)


class Pair(NamedTuple):
  left: Any
  right: Any


@programs
def every_kind_of_input(nn, flax):
  class Inner(nn.Module):
    @nn.compact
    def __call__(self, *args, **kwargs):
      return args, kwargs

  class Foo(nn.Module):
    inputs: Any

    @nn.compact
    def __call__(self):
      args, kwargs = self.inputs()
      return Inner()(*args, **kwargs)

  @flax.struct.dataclass
  class Struct:
    a: Any
    b: Any = flax.struct.field(pytree_node=False, default=3)

  inputs = {
    'nothing': lambda: ((), {}),
    'numbers': lambda: ((1, 2.5, True, None, 3j), {}),
    'text': lambda: (('text', "it's", 'two\nlines', ''), {}),
    'arrays': lambda: ((X, X[0], jnp.ones((), int)), {'k': X}),
    'keywords': lambda: ((), {'b': X, 'a': {'c': 1}}),
    'lists': lambda: (([X, [X, (1, X)]],), {}),
    'dicts': lambda: (({'a': X, 'b': {'c': X}, 'd': {}, 'e': []},), {}),
    'empty': lambda: (({}, [], ()), {}),
    'struct': lambda: ((Struct(X, 'x'),), {}),
    'dataclass': lambda: ((Config(),), {}),
    'named': lambda: ((Pair(X, 1),), {}),
    'enum': lambda: ((Color.RED, {'c': Color.BLUE}), {}),
    'types': lambda: ((int, jnp.float32, X.dtype), {}),
    'frozen': lambda: ((flax.core.freeze({'a': X}),), {}),
    'box': lambda: ((nn.Partitioned(X, ('a', None)),), {}),
    'shape': lambda: ((jax.ShapeDtypeStruct((2,), 'int8'),), {}),
    'key': lambda: ((KEY, jax.random.PRNGKey(0)), {}),
    'markup': lambda: (('[bold]x[/bold]', '[dim]'), {}),
    'bfloat16': lambda: ((jnp.ones(3, jnp.bfloat16), X > 1), {}),
    'long': lambda: (('word ' * 40, {'é': 'é ' * 60}), {}),
  }
  return {
    name: attempt(
      lambda make=make: Foo(make).tabulate(KEY, console_kwargs=WIDE)
    )
    for name, make in inputs.items()
  }


@programs
def methods(nn, flax):
  class Foo(nn.Module):
    def setup(self):
      self.dense = nn.Dense(2)

    def __call__(self, x):
      return self.other(x)

    def other(self, x):
      return self.dense(x) + self.third(x)

    def third(self, x):
      return self.dense(x)

    @nn.nowrap
    def helper(self, x):
      return x

  def table(**kwargs):
    return nn.tabulate(Foo(), KEY, console_kwargs=WIDE, **kwargs)(X)

  return (
    table(),
    table(method='other'),
    table(method=Foo.other),
    table(method=lambda m, x: m.third(x)),
    table(show_repeated=True, compute_flops=True, compute_vjp_flops=True),
    table(method='other', show_repeated=True),
  )


@programs
def variables_of_every_kind(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      self.param('tree', lambda k: {'a': jnp.ones(2), 'b': [jnp.ones(3)]})
      self.param('half', nn.initializers.ones, (7, 9), jnp.bfloat16)
      boxed = nn.with_partitioning(nn.initializers.ones, ('in', None))
      self.param('boxed', boxed, (3, 4))
      self.param('empty', lambda k: jnp.ones((0, 3)))
      return x

  return Foo().tabulate(KEY, X, console_kwargs=WIDE)


@programs
def large_numbers(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      for i in (1, 10, 250, 251, 10**3, 10**6, 10**9):
        self.param(f'w{i}', nn.initializers.ones, (i,))
      return nn.Dense(10**7)(x)

  # Nothing of this size is ever made.
  return Foo().tabulate(KEY, X, console_kwargs=WIDE)


@programs
def rows_of_the_table(nn, flax):
  def rows(**kwargs):
    options = dict(
      depth=None,
      show_repeated=False,
      compute_flops=False,
      compute_vjp_flops=False,
    )
    options.update(kwargs)
    summary = flax.linen.summary
    table = summary._get_module_table(cnn(nn), **options)(
      {'params': KEY, 'dropout': KEY}, IMAGE, training=True
    )
    return (
      sorted(table.collections),
      type(table.module).__name__,
      [
        (
          row.path,
          type(row.module_copy).__name__,
          row.module_copy.scope,
          row.method,
          row.inputs,
          row.outputs,
          jax.tree.map(summary._from_value_representation, row.inputs),
          row.module_variables,
          row.counted_variables,
          row.flops,
          row.vjp_flops,
          row.size_and_bytes(['params', 'batch_stats', 'nope']),
        )
        for row in table
      ],
    )

  flops = {'compute_flops': True, 'compute_vjp_flops': True}
  return rows(**flops), rows(depth=1), rows(show_repeated=True)


@programs
def without_variables(nn, flax):
  class Foo(nn.Module):
    def __call__(self, x):
      return x

  class Bar(nn.Module):
    @nn.compact
    def __call__(self, x):
      Foo()(x)

  return (
    Foo().tabulate(KEY, X, console_kwargs=WIDE),
    Bar().tabulate(KEY, X, console_kwargs=WIDE, compute_flops=True),
  )


@programs
def sown_values(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      self.sow('intermediates', 'x', x)
      return nn.Dense(2)(x)

  return [
    Foo().tabulate(KEY, X, mutable=m, console_kwargs=WIDE)
    for m in (['intermediates', 'params'], ['params'], True)
  ]


@programs
def through_lifted_transforms(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = nn.jit(nn.Dense)(4)(x)
      x = nn.remat(nn.Dense)(4)(x)
      return nn.vmap(
        nn.Dense,
        variable_axes={'params': 0},
        split_rngs={'params': True},
      )(3)(x)

  class Cell(nn.Module):
    @nn.compact
    def __call__(self, carry, x):
      y = nn.Dense(3)(carry + x)
      return y, y

  class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x):
      scan = nn.scan(
        Cell, variable_broadcast='params', split_rngs={'params': False}
      )
      return scan()(x[0], x)

  flops = {'compute_flops': True, 'compute_vjp_flops': True}
  return (
    Foo().tabulate(KEY, X, console_kwargs=WIDE, **flops),
    Scanned().tabulate(KEY, X, console_kwargs=WIDE, **flops),
  )


@programs
def recurrent_and_attention_layers(nn, flax):
  rnn = nn.RNN(nn.LSTMCell(4))
  attention = nn.MultiHeadDotProductAttention(2, qkv_features=4)
  x = jnp.ones((2, 5, 4))
  return (
    rnn.tabulate(KEY, x, console_kwargs=WIDE),
    attention.tabulate(KEY, x, x, console_kwargs=WIDE),
  )


@programs
def errors_go_through(nn, flax):
  class Foo(nn.Module):
    def __call__(self, x):
      raise ValueError('meant')

  def nope():
    return nn.Dense(2).tabulate(KEY, X, nope=3)

  first = attempt(Foo().tabulate, KEY, X), attempt(nope)
  # Nothing of the first table is left behind.
  return first, nn.Dense(2).tabulate(KEY, X, console_kwargs=WIDE)


@programs.parametrize()
def test_same_as_flax(program):
  pytest.importorskip('rich')
  assert_same_as_flax(program)


def test_without_rich_the_extra_is_named(monkeypatch):
  real = builtins.__import__

  def without_rich(name, *args, **kwargs):
    if name.partition('.')[0] == 'rich':
      raise ImportError(name)
    return real(name, *args, **kwargs)

  monkeypatch.setattr(builtins, '__import__', without_rich)
  with pytest.raises(ImportError, match=r"pip install '\.\[summary\]'"):
    nn.Dense(2).tabulate(KEY, X)
  # Paths need no rich.
  assert list(nn.Dense(2).module_paths(KEY, X)) == ['']


def test_a_table_costs_nothing_to_keep():
  table = summary._get_module_table(nn.Dense(2), None, False, False, False)
  (row,) = table(KEY, X)
  assert isinstance(row.inputs, summary._ArrayRepresentation)
  assert row.inputs == summary._ArrayRepresentation(
    (2, 3), jnp.dtype('float32')
  )


def test_a_module_may_be_called_twice_by_a_compact_method():
  class Twice(nn.Module):
    @nn.compact
    def __call__(self, x):
      dense = nn.Dense(4, name='both')
      return dense(dense(x))

  x = jnp.ones((2, 4))
  text = Twice().tabulate(jax.random.key(0), x, show_repeated=True)
  assert text.count('both') == 2
