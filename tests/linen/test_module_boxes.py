"""Semantics 15: values in boxes of metadata."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from module_compare import KEY, Programs, X, assert_same_as_flax, attempt

programs = Programs()
lecun = jax.nn.initializers.lecun_normal()
zeros = jax.nn.initializers.zeros


def boxed_dense(nn):
  return nn.Dense(
    4,
    kernel_init=nn.with_partitioning(lecun, ('in', 'out')),
    bias_init=nn.with_partitioning(zeros, ('out',)),
  )


def kinds(tree, nn):
  """Returns the tree with the boxes as text."""
  return jax.tree.map(
    lambda v: (
      (type(v).__name__, getattr(v, 'names', None), kinds(v.value, nn))
      if isinstance(v, nn.meta.AxisMetadata)
      else jnp.shape(v)
    ),
    tree,
    is_leaf=lambda v: isinstance(v, nn.meta.AxisMetadata),
  )


@programs
def partitioned_layers(nn, flax):
  dense = boxed_dense(nn)
  variables = dense.init(KEY, X)
  plain = nn.meta.unbox(variables)
  return (
    kinds(variables, nn),
    plain,
    dense.apply(variables, X),
    dense.apply(plain, X),
    nn.get_partition_spec(variables),
    nn.get_partition_spec(jax.eval_shape(dense.init, KEY, X)),
    kinds(jax.jit(dense.init)(KEY, X), nn),
    kinds(dense.apply(variables, X, mutable=['params'])[1], nn),
  )


@programs
def boxes_of_wrong_shape(nn, flax):
  dense = boxed_dense(nn)
  variables = dense.init(KEY, X)
  return (
    attempt(dense.apply, variables, jnp.ones((2, 5))),
    attempt(dense.apply, nn.meta.unbox(variables), jnp.ones((2, 5))),
    attempt(nn.Dense(4).apply, variables, X),
    attempt(nn.Dense(5).apply, variables, X),
  )


@programs
def unbox_argument(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self):
      init_fn = nn.with_partitioning(zeros, ('a',))
      p = self.param('p', init_fn, (2,))
      q = self.param('q', init_fn, (2,), unbox=False)
      v = self.variable('c', 'v', init_fn, None, (2,))
      w = self.variable('c', 'w', init_fn, None, (2,), unbox=False)
      return [
        type(x).__name__
        for x in (
          p,
          q,
          v.value,
          w.value,
          self.get_variable('params', 'p'),
          self.get_variable('c', 'v'),
          self.variables['params']['p'],
        )
      ][0:2] + [isinstance(x, nn.Partitioned) for x in (p, q, v.value, w.value)]

  out, variables = Foo().init_with_output(KEY)
  return out[2:], kinds(variables, nn), Foo().apply(variables)[2:]


@programs
def setting_a_boxed_variable(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, value, unbox=True):
      init_fn = nn.with_partitioning(jnp.zeros, ('a',))
      v = self.variable('c', 'v', init_fn, (2,), unbox=unbox)
      v.value = value(v.value)
      return v.value

  values = {
    'array': lambda old: old + 1,
    'tree': lambda old: {'a': old},
    'box': lambda old: nn.Partitioned(jnp.ones(2), ('b',)),
    'number': lambda old: 3,
    'shape': lambda old: jnp.ones((4, 4)),
  }
  results = {}
  for name, value in values.items():
    for first in ('init', 'apply'):
      if first == 'init':
        out = attempt(Foo().init_with_output, KEY, value)
      else:
        given = {'c': {'v': nn.Partitioned(jnp.ones(2), ('z',))}}
        out = attempt(Foo().apply, given, value, mutable=['c'])
      if isinstance(out, tuple):
        out = jax.tree.map(jnp.shape, nn.meta.unbox(out)), kinds(out[1], nn)
      results[name, first] = out
  return results


@programs
def boxes_in_trees(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, add):
      def make():
        return {
          'a': nn.Partitioned(jnp.zeros(2), ('x',)),
          'b': jnp.ones(3),
        }

      v = self.variable('c', 'v', make)
      old = v.value
      v.value = jax.tree.map(lambda x: x + add, v.value)
      return old, v.value

  out, variables = Foo().init_with_output(KEY, 1)
  return out, kinds(variables, nn), Foo().apply(variables, 2, mutable=['c'])[0]


@programs
def own_boxes(nn, flax):
  @flax.struct.dataclass
  class Scaled(nn.meta.AxisMetadata):
    value: Any
    scale: float = flax.struct.field(default=2.0, pytree_node=False)

    def unbox(self):
      return self.value * self.scale

    def replace_boxed(self, value):
      return self.replace(value=value / self.scale)

    def add_axis(self, index, params):
      return self

    def remove_axis(self, index, params):
      return self

  class Foo(nn.Module):
    @nn.compact
    def __call__(self):
      w = self.param('w', lambda k: Scaled(jnp.ones(2)))
      v = self.variable('c', 'v', lambda: Scaled(jnp.ones(2), 4.0))
      v.value = v.value + 4
      return w, v.value

  out, variables = Foo().init_with_output(KEY)
  leaves = jax.tree.leaves(variables)
  return out, leaves, Foo().apply(variables, mutable=['c'])[0]


@programs
def perturb_and_sow_boxes(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      box = nn.Partitioned(x, ('a', 'b'))
      self.sow('c', 's', box)
      self.put_variable('c', 'p', box)
      return self.perturb('n', x)

  out, variables = Foo().init_with_output(KEY, X)
  return out, kinds(variables, nn)


@programs
def logical_partitioning(nn, flax):
  dense = nn.Dense(
    4, kernel_init=nn.with_logical_partitioning(lecun, ('in', 'out'))
  )
  variables = dense.init(KEY, X)
  rules = (('in', 'data'), ('out', None))
  specs = nn.get_partition_spec(variables)
  return (
    kinds(variables, nn),
    specs,
    nn.logical_to_mesh(specs, rules),
    dense.apply(variables, X),
  )


@programs
def boxes_with_gradients(nn, flax):
  dense = boxed_dense(nn)
  variables = dense.init(KEY, X)

  def loss(params):
    return jnp.sum(dense.apply({'params': params}, X) ** 2)

  grads = jax.grad(loss)(variables['params'])
  return kinds(grads, nn), nn.meta.unbox(grads)


@programs
def nested_boxes(nn, flax):
  make = functools.partial(nn.with_partitioning, names=('a',))

  class Foo(nn.Module):
    @nn.compact
    def __call__(self):
      twice = nn.with_partitioning(make(zeros), ('b',))
      return attempt(lambda: type(self.param('w', twice, (2,))).__name__)

  out, variables = Foo().init_with_output(KEY)
  return kinds(variables, nn), jax.tree.leaves(variables)


@programs.parametrize()
def test_same_as_flax(program):
  assert_same_as_flax(program)
