"""Semantics 18: axes of variables, arguments and keys in `vmap` and `scan`."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from module_compare import KEY, Programs, X, assert_same_as_flax, attempt

import haiku_state.linen as nn

programs = Programs()
ones = jax.nn.initializers.ones
KEYS = {'params': KEY, 'noise': jax.random.key(1), 'other': jax.random.key(2)}


def bits(tree):
  """Returns arrays as text, which compares exactly."""

  def text(x):
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
      x = jax.random.key_data(x)
    return np.asarray(x).tobytes().hex()

  return jax.tree.map(text, tree)


def drawer_of(nn):
  """Returns a class that draws keys in all the ways there are."""

  class Drawer(nn.Module):
    @nn.compact
    def __call__(self, c, x):
      nn.Dense(2)(x)
      key = jax.random.key_data(self.make_rng('noise'))
      other = jax.random.key_data(self.make_rng('missing'))
      nn.Dense(2)(x)
      self.param('p', jax.random.normal, (2,))
      return c, (key, other, jax.random.key_data(self.make_rng('noise')))

  return Drawer


@programs
def keys_below_each_transform(nn, flax):
  Drawer = drawer_of(nn)
  split = {'params': True, 'noise': True}
  own = {'params': 0}
  fs = {
    'none': lambda t: t,
    'jit': nn.jit,
    'remat': nn.remat,
    'fold_rngs': nn.fold_rngs,
    'vmap': functools.partial(
      nn.vmap,
      variable_axes=own,
      split_rngs=split,
      in_axes=None,
      axis_size=2,
    ),
    'vmap, one key': functools.partial(
      nn.vmap,
      variable_axes=own,
      split_rngs={'params': False, 'noise': False},
      in_axes=None,
      axis_size=2,
    ),
    'scan': functools.partial(
      nn.scan,
      variable_axes=own,
      split_rngs=split,
      in_axes=nn.broadcast,
      length=2,
    ),
    'scan, no check': functools.partial(
      nn.scan,
      variable_axes=own,
      split_rngs=split,
      in_axes=nn.broadcast,
      length=2,
      check_constancy_invariants=False,
    ),
    'scan, shared': functools.partial(
      nn.scan,
      variable_broadcast='params',
      split_rngs={'params': False, 'noise': True},
      in_axes=nn.broadcast,
      length=2,
    ),
    'map_variables': functools.partial(
      nn.map_variables, mapped_collections='params', init=True
    ),
  }

  class Top(nn.Module):
    lift: object

    @nn.compact
    def __call__(self, x):
      before = jax.random.key_data(self.make_rng('noise'))
      Lifted = self.lift(Drawer)
      first = Lifted()(jnp.zeros(()), x)
      second = Lifted(name='again')(jnp.zeros(()), x)
      nn.Dense(2)(x)
      after = jax.random.key_data(self.make_rng('noise'))
      return before, first, second, after

  def results(lift):
    y, variables = Top(lift).init_with_output(KEYS, X)
    return bits(variables), bits(y)

  return {name: results(lift) for name, lift in fs.items()}


@programs
def keys_with_the_separator(nn, flax):
  Drawer = drawer_of(nn)
  before = flax.config.flax_fix_rng_separator
  flax.config.update('flax_fix_rng_separator', True)
  try:
    return bits(nn.jit(Drawer)().init(KEYS, 0.0, X))
  finally:
    flax.config.update('flax_fix_rng_separator', before)


@programs
def raw_keys(nn, flax):
  Drawer = drawer_of(nn)
  keys = {'params': jax.random.PRNGKey(0), 'noise': jax.random.PRNGKey(1)}
  Mapped = nn.vmap(
    Drawer,
    variable_axes={'params': 0},
    split_rngs={'params': True, 'noise': True},
    in_axes=(None, 0),
  )
  return bits(Mapped().init(keys, 0.0, X)), bits(
    nn.jit(Drawer)().init(keys, 0.0, X)
  )


@programs
def filters_as_keys_of_split_rngs(nn, flax):
  Drawer = drawer_of(nn)
  DenyList = flax.core.DenyList

  def results(split):
    Lifted = nn.vmap(
      Drawer,
      variable_axes={'params': 0},
      split_rngs=split,
      in_axes=None,
      axis_size=2,
    )
    y, variables = Lifted().init_with_output(KEYS, 0.0, X)
    return bits(y), bits(variables)

  return [
    attempt(results, split)
    for split in (
      {True: True},
      {True: False},
      {('params', 'noise'): True},
      {DenyList('params'): True, 'params': False},
      {DenyList('noise'): False, 'noise': True},
      {'params': True, DenyList('params'): False},
      {'params': True},
      {'noise': True},
      {},
    )
  ]


@programs
def filters_as_keys_of_variable_axes(nn, flax):
  DenyList = flax.core.DenyList

  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      v = self.variable('stats', 'v', jnp.zeros, (3,))
      v.value += x
      return nn.Dense(2)(v.value)

  def results(axes):
    Lifted = nn.vmap(Foo, axes, split_rngs={True: True})
    variables = Lifted().init(KEY, X)
    return variables, Lifted().apply(variables, X, mutable=['stats'])

  return [
    attempt(results, axes)
    for axes in (
      {True: 0},
      {('params', 'stats'): 0},
      {DenyList('stats'): 0, 'stats': 1},
      {'params': -1, True: 0},
      {'params': 0},
      {'stats': 0},
      {'params': None, 'stats': 0},
      {'params': 0, 'stats': None},
    )
  ]


@programs
def in_and_out_axes(nn, flax):
  In, Out = flax.typing.In, flax.typing.Out

  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      y = nn.Dense(2)(x)
      self.sow('seen', 'y', y)
      scale = self.get_variable('given', 'scale', jnp.ones((3,)))
      return y * scale.sum()

  class Step(nn.Module):
    @nn.compact
    def __call__(self, c, x):
      return c + Foo()(x).sum(), x

  Mapped = nn.vmap(
    Foo,
    {'params': 0, 'seen': Out(1), 'given': In(None)},
    split_rngs={'params': True},
  )
  Looped = nn.scan(
    Step,
    {'params': 0, 'seen': Out(-1), 'given': In(0)},
    split_rngs={'params': True},
  )
  variables = Mapped().init(KEY, X)
  looped = Looped().init(KEY, 0.0, X)
  given = {'given': {'scale': jnp.arange(3.0)}}
  per_step = {'given': {'Foo_0': {'scale': jnp.arange(6.0).reshape(2, 3)}}}
  params, looped_params = (
    {'params': variables['params']},
    {'params': looped['params']},
  )
  return (
    variables,
    Mapped().apply({**params, **given}, X, mutable=['seen']),
    attempt(Mapped().apply, {**params, **given}, X, mutable=['seen', 'given']),
    looped,
    Looped().apply({**looped_params, **per_step}, 0.0, X, mutable=['seen']),
  )


@programs
def axes_of_arguments(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x, tree, fixed):
      y = nn.Dense(2)(x) + tree['a'].sum() + tree['b'] + fixed
      return y, {'c': tree['a']}

  Mapped = nn.vmap(
    Foo,
    {'params': None},
    {'params': False},
    in_axes=(1, {'a': 0, 'b': None}, None),
    out_axes=(-1, {'c': 1}),
  )
  args = X, {'a': jnp.ones((3, 4)), 'b': 2.0}, 3.0
  return Mapped().init_with_output(KEY, *args)


@programs
def sizes_that_are_given_missing_or_disagree(nn, flax):
  def mapped(*args, **kwargs):
    Lifted = nn.vmap(
      nn.Dense, {'params': 0}, split_rngs={'params': True}, **kwargs
    )
    return jax.tree.map(jnp.shape, Lifted(2).init(KEY, *args))

  def scanned(*args, **kwargs):
    class Foo(nn.Module):
      @nn.compact
      def __call__(self, c, *xs):
        return nn.Dense(3)(c), ()

    kwargs = {'split_rngs': {'params': True}, **kwargs}
    Lifted = nn.scan(Foo, {'params': 0}, **kwargs)
    return jax.tree.map(jnp.shape, Lifted().init(KEY, *args))

  return [
    attempt(mapped, X, axis_size=2),
    attempt(mapped, X, axis_size=3),
    attempt(mapped, X, in_axes=None),
    attempt(mapped, X, in_axes=None, axis_size=5),
    attempt(scanned, X),
    attempt(scanned, X, length=4),
    attempt(scanned, X, jnp.ones((2, 3)), jnp.ones((3, 3))),
    attempt(scanned, X, jnp.ones((2, 3)), length=2),
    attempt(scanned, X, jnp.ones((2, 3)), length=3),
    attempt(scanned, X, jnp.ones((2, 3)), in_axes=nn.broadcast),
    attempt(scanned, X, jnp.ones((2, 3)), in_axes=nn.broadcast, length=3),
    attempt(scanned, X, (), length=2),
  ]


@programs
def variables_whose_axes_disagree(nn, flax):
  Mapped = nn.vmap(nn.Dense, {'params': 0}, {'params': True})
  Looped = nn.scan(
    nn.Dense, {'params': 0}, split_rngs={'params': True}, length=2
  )
  variables = Mapped(2).init(KEY, X)
  return (
    attempt(Mapped(2).apply, variables, jnp.ones((3, 3))),
    attempt(Mapped(2).apply, variables, jnp.ones((2, 4))),
    attempt(nn.Dense(2).apply, variables, X),
    attempt(Looped(2).apply, {'params': {}}, X),
    attempt(Mapped(2).apply, {'params': {'kernel': jnp.ones((2, 3, 2))}}, X),
  )


@programs
def keywords_are_not_for_vmap_and_scan(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x, scale=1.0):
      return nn.Dense(2)(x) * scale

  Mapped = nn.vmap(Foo, {'params': None}, {'params': False})
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    y = Mapped().init_with_output(KEY, X, scale=3.0)
  return y, [
    (w.category, str(w.message)) for w in caught if w.category is RuntimeWarning
  ]


@programs
def named_axes(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = nn.BatchNorm(use_running_average=False, axis_name='batch')(x)
      return jax.lax.psum(x, 'batch') + nn.Dense(3)(x)

  Mapped = nn.vmap(
    Foo,
    {'params': None, 'batch_stats': None},
    split_rngs={'params': False},
    axis_name='batch',
  )
  variables = Mapped().init(KEY, X)
  return variables, Mapped().apply(variables, X, mutable=['batch_stats'])


def accumulator_of(nn):
  class Step(nn.Module):
    @nn.compact
    def __call__(self, c, x):
      count = self.variable('count', 'n', jnp.zeros, ())
      count.value += 1
      c = jnp.tanh(nn.Dense(3)(c + x)) * count.value
      self.sow('seen', 'c', c)
      return c, c.sum(-1)

  return Step


@programs
def options_of_scan(nn, flax):
  base = {
    'variable_broadcast': 'params',
    'variable_carry': 'count',
    'variable_axes': {'seen': 0},
    'split_rngs': {'params': False},
  }
  init_count = {'count': {'n': jnp.zeros(())}}
  xs = jnp.stack([X, X + 1, X * 2])
  out = []
  for options in (
    {'reverse': True},
    {'unroll': 2, 'length': 3},
    {'_split_transpose': True},
    {'in_axes': 1, 'out_axes': -1},
    {'in_axes': -1, 'out_axes': 1},
    {'check_constancy_invariants': False},
  ):
    Lifted = nn.scan(accumulator_of(nn), **{**base, **options})
    axis = options.get('in_axes', 0)
    args = X, jnp.moveaxis(xs, 0, axis)
    params = {'params': nn.Dense(3).init(KEY, X)['params']}
    variables = {'params': {'Dense_0': params['params']}, **init_count}
    out.append(Lifted().apply(variables, *args, mutable=['count', 'seen']))
    out.append(Lifted().apply(variables, *args, mutable=['count']))
  return out


@programs
def a_carry_that_begins_in_the_loop(nn, flax):
  Lifted = nn.scan(
    accumulator_of(nn),
    variable_broadcast='params',
    variable_carry='count',
    split_rngs={'params': False},
  )
  return attempt(Lifted().init, KEY, X, jnp.stack([X, X]))


@programs
def broadcast_inputs_and_outputs(nn, flax):
  class Step(nn.Module):
    @nn.compact
    def __call__(self, c, fixed, x, tree):
      w = self.param('w', ones, (3,))
      return c + x * fixed + tree['a'], (w * 2, c.sum(), {'b': x})

  def results(**options):
    Lifted = nn.scan(
      Step,
      variable_broadcast='params',
      split_rngs={'params': False},
      in_axes=(nn.broadcast, 0, {'a': nn.broadcast}),
      **options,
    )
    return Lifted().init_with_output(KEY, X[0], 2.0, X, {'a': jnp.ones((3,))})

  return [
    attempt(results, out_axes=(nn.broadcast, 0, {'b': 1})),
    attempt(results, out_axes=(nn.broadcast, nn.broadcast, {'b': 0})),
    attempt(
      results,
      out_axes=(nn.broadcast, 0, {'b': 0}),
      check_constancy_invariants=False,
    ),
    attempt(results, out_axes=0),
  ]


@programs
def broadcast_variables_must_not_change(nn, flax):
  class Step(nn.Module):
    by: object = None

    @nn.compact
    def __call__(self, c, x):
      v = self.variable('stats', 'v', lambda: jnp.zeros((3,)))
      v.value = v.value + (x if self.by is None else self.by)
      return c, v.value

  def results(module, **options):
    Lifted = nn.scan(module, variable_broadcast='stats', **options)
    variables = {'stats': {'v': jnp.ones((3,))}}
    return Lifted().apply(variables, 0.0, X, mutable=['stats'])

  return [
    attempt(results, Step),
    attempt(results, functools.partial(Step, 1.0)),
    attempt(
      results, functools.partial(Step, 1.0), check_constancy_invariants=False
    ),
  ]


@programs
def immutable_broadcast_collections(nn, flax):
  class Step(nn.Module):
    @nn.compact
    def __call__(self, c, x):
      return c + self.get_variable('consts', 'k') * x, self.variable(
        'consts', 'k'
      ).value

  Lifted = nn.scan(Step, variable_broadcast=['params', 'consts'])
  variables = {'consts': {'k': 2.0}}
  return (
    Lifted().apply(variables, X[0], X),
    Lifted().apply(variables, X[0], X, mutable=['params']),
    Lifted().apply(variables, X[0], X, mutable=['consts']),
  )


@programs
def data_transform(nn, flax):
  seen = []

  def change(variable_groups, rng_groups):
    seen.append((jax.tree.structure(variable_groups), len(rng_groups)))
    return jax.tree.map(lambda x: x * 2, variable_groups), rng_groups

  class Step(nn.Module):
    @nn.compact
    def __call__(self, c, x):
      return c + self.param('w', ones, (3,)) * x, ()

  Lifted = nn.scan(
    Step,
    {'params': 0},
    split_rngs={'params': True},
    data_transform=change,
  )
  variables = Lifted().init(KEY, X[0], X)
  return (
    variables,
    Lifted().apply(variables, X[0], X),
    [(str(s).replace('PyTreeDef', ''), n) for s, n in seen[-1:]],
  )


@programs
def scan_in_a_scan_and_vmap_of_that(nn, flax):
  class Inner(nn.Module):
    @nn.compact
    def __call__(self, c, x):
      return jnp.tanh(nn.Dense(3)(c)) + x, c.sum(-1)

  class Middle(nn.Module):
    @nn.compact
    def __call__(self, c, xs):
      return nn.scan(
        nn.remat(Inner, prevent_cse=False),
        {'params': 0},
        split_rngs={'params': True},
      )()(c, xs)

  Outer = nn.scan(Middle, {'params': 1}, split_rngs={'params': True})
  Mapped = nn.vmap(
    Outer,
    {'params': 0},
    split_rngs={'params': True},
    in_axes=(None, None),
    axis_size=2,
  )
  xs = jnp.arange(12.0).reshape(2, 2, 3)
  y, variables = Mapped().init_with_output(KEY, X[0], xs)
  return y, bits(variables)


@programs
def scan_over_layers(nn, flax):
  class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
      y = nn.LayerNorm()(x)
      y = nn.Dense(6)(y)
      return x + nn.Dense(3)(nn.relu(y)), None

  Layers = nn.scan(
    Block,
    {'params': 0},
    split_rngs={'params': True},
    length=3,
    metadata_params={nn.PARTITION_NAME: None},
  )
  return Layers().init_with_output(KEY, X, None)


@programs
def remat_scan_with_options(nn, flax):
  class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
      return jnp.tanh(nn.Dense(3)(x))

  def results(**options):
    return bits(nn.remat_scan(Block, **options)().init_with_output(KEY, X))

  return [
    attempt(results, lengths=(2, 2)),
    attempt(results, lengths=(4,)),
    attempt(results, lengths=(2, 1, 2)),
    attempt(results).kind,  # No length at all.
    attempt(results, lengths=[]).kind,
    attempt(
      results,
      lengths=(2, 2),
      policy=jax.checkpoint_policies.everything_saveable,
      variable_broadcast='params',
      variable_axes={},
      split_rngs={'params': False},
    ),
  ]


@programs
def nested_modules_in_fields_of_a_vmapped_class(nn, flax):
  class Foo(nn.Module):
    modules: object
    extra: nn.Module

    @nn.compact
    def __call__(self, x):
      for m in self.modules:
        x = m(x)
      return self.extra(x)

  class Top(nn.Module):
    @nn.compact
    def __call__(self, x):
      shared = nn.Dense(3)
      Mapped = nn.vmap(Foo, {'params': 0}, split_rngs={'params': True})
      return Mapped([nn.Dense(3), shared, nn.Dense(2)], nn.Dense(2))(x)

  y, variables = Top().init_with_output(KEY, X)
  return y, bits(variables)


@programs
def vmap_over_parameters_given(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      def run(m, x):
        return m(x)

      dense = nn.Dense(2)
      mapped = nn.vmap(run, {'params': None}, split_rngs={'params': False})
      return mapped(dense, x) + nn.vmap(
        lambda m, x, y: m(x) * y,
        in_axes=(0, None),
        variable_axes={'params': None},
        split_rngs={'params': False},
      )(dense, x, 2.0)

  return Foo().init_with_output(KEY, X)


@programs.parametrize()
def test_as_flax(program):
  assert_same_as_flax(program)


def test_scan_traces_its_body_once_where_twice_shows_nothing_more():
  traces = []

  class Body(nn.Module):
    @nn.compact
    def __call__(self, carry, x):
      traces.append(1)
      return nn.Dense(3)(carry) + x, ()

  options = dict(variable_broadcast='params', split_rngs={'params': False})
  scan = nn.scan(Body, **options)()
  xs = jnp.ones((4, 2, 3))

  def traces_of(run):
    traces.clear()
    jax.eval_shape(run)
    return len(traces)

  def of_apply(**options):
    return traces_of(lambda: scan.apply(variables, xs[0], xs, **options))

  variables = scan.init(KEY, xs[0], xs)
  # Each key is for a parameter, which is there when the loop goes on.
  assert traces_of(lambda: scan.init(KEY, xs[0], xs)) == 1
  assert of_apply() == 1
  assert of_apply(mutable=['params']) == 1
  assert of_apply(rngs={'params': KEY}) == 1
  assert of_apply(rngs={'dropout': KEY}) == 1  # It does not go in.
  # For others, keys are counted in each of two traces.
  options = dict(variable_axes={'params': 0}, split_rngs={'params': True})
  scan = nn.scan(Body, **options)()
  assert traces_of(lambda: scan.init(KEY, xs[0], xs)) == 2
