"""Names of axes beside the variables, compared with Flax."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax_names import set_mesh
from module_compare import KEY, Programs, X, assert_same_as_flax, attempt

programs = Programs()
ones = jax.nn.initializers.ones
zeros = jax.nn.initializers.zeros


def partitioning_of(flax):
  return importlib.import_module(f'{flax.__name__}.linen.partitioning')


def dense_of(nn, flax):
  part = partitioning_of(flax)

  class Dense(nn.Module):
    features: int = 3

    @nn.compact
    def __call__(self, x):
      kernel = part.param_with_axes(
        'kernel',
        nn.initializers.lecun_normal(),
        (x.shape[-1], self.features),
        axes=('in', 'out'),
      )
      bias = part.param_with_axes(
        'bias', zeros, (self.features,), axes=('out',)
      )
      free = part.param_with_axes('free', ones, ())
      return x @ kernel * free + bias

  return Dense


@programs
def parameters(nn, flax):
  part = partitioning_of(flax)
  Dense = dense_of(nn, flax)

  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      dense = Dense()
      return Dense(name='last')(dense(dense(x)))

  variables = Foo().init(KEY, X)
  names = part.get_axis_names(variables['params_axes'])
  params = {'params': variables['params']}
  return (
    variables,
    names,
    Foo().apply(variables, X),
    Foo().apply(params, X),
    Foo().apply(params, X, mutable=['params_axes']),
    Foo().apply(variables, X, mutable=True),
    part.logical_to_mesh(names, (('in', 'model'), ('out', None))),
    jax.tree.leaves(variables['params_axes']),
  )


@programs
def variables_of_collections(nn, flax):
  part = partitioning_of(flax)

  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      v = part.variable_with_axes(
        'cache', 'v', jnp.zeros, (2, 3), axes=('a', 'b')
      )
      w = part.variable_with_axes('cache', 'w', lambda: 3)
      v.value = v.value + x
      seen = (v.axes, v.collection, v.name, v.fallback.name, w.axes)
      return v.value, w.value, v.is_mutable(), seen, type(v).__name__

  foo = Foo()
  out, variables = foo.init_with_output(KEY, X)
  return (
    out,
    variables,
    foo.apply(variables, X, mutable=['cache']),
    attempt(foo.apply, variables, X),
    attempt(foo.apply, {}, X),
    part.get_axis_names(variables['cache_axes']),
    isinstance(part.PartitionedVariable(None, 'c', 'n'), nn.Variable),
  )


@programs
def explicit_module(nn, flax):
  part = partitioning_of(flax)

  class Inner(nn.Module):
    @nn.compact
    def __call__(self, outer):
      return part.param_with_axes(
        'w', ones, (2,), axes=('a',), module=outer
      ), part.variable_with_axes('c', 'v', lambda: 1, module=outer).value

  class Foo(nn.Module):
    @nn.compact
    def __call__(self):
      return Inner()(self)

  return Foo().init_with_output(KEY)


@programs
def errors_of_names(nn, flax):
  part = partitioning_of(flax)

  class Twice(nn.Module):
    @nn.compact
    def __call__(self, axes):
      return part.param_with_axes('w', ones, (2,), axes=axes)

  class Taken(nn.Module):
    @nn.compact
    def __call__(self):
      self.param('v', ones, ())
      part.variable_with_axes('c', 'v', lambda: 1)

  given = {
    'params': {'w': jnp.ones(2)},
    'params_axes': {'w_axes': part.AxisMetadata(('a',))},
  }
  mutable = {'mutable': ['params_axes']}
  return (
    attempt(Twice().apply, given, ('b',), **mutable),
    attempt(Twice().apply, given, ('a',), **mutable),
    attempt(Twice().apply, given, None, **mutable),
    attempt(
      Twice().apply,
      {**given, 'params_axes': {'w_axes': 3}},
      ('a',),
      **mutable,
    ),
    attempt(Taken().init, KEY),
    attempt(part.param_with_axes, 'w', ones, (2,)).kind,
  )


@programs
def names_of_axes(nn, flax):
  part = partitioning_of(flax)
  meta = part.AxisMetadata
  trees = [
    {},
    {'a_axes': meta(('x', None))},
    {'a': {'b_axes': meta(('x',))}, 'c_axes_axes': meta(())},
    {'a_axes': meta(None)},
    {'a_axes': meta((('x', 'y'), None, ('z',)))},
    {'a/b_axes': meta(('x',))},
    flax.core.freeze({'a': {'b_axes': meta(('x',))}}),
  ]
  return [attempt(part.get_axis_names, tree) for tree in trees] + [
    repr(meta(('a', 'b'))),
    meta(('a',)) == meta(('a',)),
    hash(meta(('a',))) == hash(meta(('a',))),
  ]


@programs
def scans(nn, flax):
  part = partitioning_of(flax)
  Dense = dense_of(nn, flax)

  class Block(nn.Module):
    @nn.compact
    def __call__(self, carry, y):
      return Dense()(carry) + y, carry.sum()

  def scanned(axis, name='layers', **kwargs):
    return part.scan_with_axes(
      Block,
      variable_axes={'params': axis},
      split_rngs={'params': True},
      axis_name=name,
      length=2,
      **kwargs,
    )

  results = []
  for axis in (0, 1):
    # The free parameter has no room for a second axis.
    module = scanned(axis if axis == 0 else part.ScanIn(0), f'n{axis}')()
    y = jnp.ones((2, 2, 3))
    out = attempt(module.init_with_output, KEY, X, y)
    results.append(out)
    if axis == 0:
      variables = out[1]
      results.append(part.get_axis_names(variables['params_axes']))
      results.append(module.apply(variables, X, y))
      results.append(module.apply({'params': variables['params']}, X, y))
      bad = {
        'params': variables['params'],
        'params_axes': jax.tree.map(
          lambda m: m.replace(names=('wrong', 'x')),
          variables['params_axes'],
          is_leaf=lambda m: isinstance(m, part.AxisMetadata),
        ),
      }
      results.append(attempt(module.apply, bad, X, y))
  return results, scanned(0).__name__


@programs
def vmaps(nn, flax):
  part = partitioning_of(flax)
  Dense = dense_of(nn, flax)

  def mapped(names, axes):
    return part.vmap_with_axes(
      Dense,
      variable_axes=axes,
      split_rngs={'params': True},
      partitioning_axis_names=names,
    )

  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      return mapped({'params': 'heads'}, {'params': 0})(4)(x)

  results = []
  for names, axes in (
    ({'params': 'heads'}, {'params': 0}),
    ({}, {'params': 0, 'params_axes': None}),
  ):
    module = mapped(names, axes)(4)
    out, variables = module.init_with_output(KEY, X)
    results.append((out, variables, module.apply(variables, X)))
  variables = Foo().init(KEY, X)
  return results, variables, Foo().apply(variables, X)


@programs
def new_axes_that_are_not_first(nn, flax):
  part = partitioning_of(flax)

  class Scale(nn.Module):
    @nn.compact
    def __call__(self, x):
      return x * part.param_with_axes('w', ones, (3,), axes=('embed',))

  class Block(nn.Module):
    @nn.compact
    def __call__(self, carry, _):
      return Scale()(carry), None

  mapped = part.vmap_with_axes(
    Scale,
    variable_axes={'params': 1},
    split_rngs={'params': True},
    partitioning_axis_names={'params': 'heads'},
  )
  scanned = part.scan_with_axes(
    Block,
    variable_axes={'params': 1},
    split_rngs={'params': True},
    length=2,
  )
  results = []
  for module, args in ((mapped(), (X,)), (scanned(), (X, None))):
    variables = module.init(KEY, *args)
    names = part.get_axis_names(variables['params_axes'])
    results.append((variables, names, module.apply(variables, *args)))
  return results


@programs
def remats(nn, flax):
  part = partitioning_of(flax)

  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x, scale, names):
      if scale:
        x = x * 2 * len(names['a'])
      return nn.Dense(3)(x)

    def other(self, x):
      return x + 1

  Remat = part.remat(Foo, static_argnums=(1, 2))
  args = (X, True, {'a': [1, 2]})

  class Top(nn.Module):
    @nn.compact
    def __call__(self, x):
      return Remat()(x, False, {'a': ''})

  variables = Remat().init(KEY, *args)
  top = Top().init(KEY, X)
  return (
    Remat.__name__,
    variables,
    Remat().apply(variables, *args),
    top,
    jax.grad(lambda v: Top().apply(v, X).sum())(top),
    attempt(part.remat(Foo, concrete=True)().init, KEY, *args).kind,
    part.remat(Foo, methods=['other'])().apply({}, X, method='other'),
    part.core_remat_static.__name__,
  )


@programs
def names_that_are_here(nn, flax):
  part = partitioning_of(flax)
  with part.axis_rules((('a', 'b'),)):
    inside = part.get_axis_rules()
  names = (
    'AxisMetadata ScanIn ScanOut axis_rules core_remat_static get_axis_names'
    ' get_axis_rules logical_to_mesh logical_to_mesh_axes param_with_axes'
    ' remat scan_with_axes set_axis_rules variable_with_axes vmap_with_axes'
    ' with_sharding_constraint CollectionFilter PRNGSequenceFilter RulesFallback'
  ).split()
  return inside, part.get_axis_rules(), [hasattr(part, n) for n in names]


@programs
def layout_by_the_rules(nn, flax):
  part = partitioning_of(flax)

  class Foo(nn.Module):
    @nn.compact
    def __call__(self):
      w = part.param_with_axes('w', ones, (4, 2), axes=('a', 'b'))
      v = part.variable_with_axes('c', 'v', jnp.ones, (4, 2), axes=('a', 'b'))
      return w, v.value

  mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ('x',))
  with set_mesh(mesh), part.axis_rules((('a', 'x'), ('b', None))):
    out = jax.jit(Foo().init_with_output)(KEY)
  arrays = jax.tree.leaves(out)
  return [[s.data.shape for s in x.addressable_shards] for x in arrays]


@programs.parametrize()
def test_same_as_flax(program):
  if program is layout_by_the_rules and len(jax.devices()) < 2:
    pytest.skip('needs two devices')
  assert_same_as_flax(program)
