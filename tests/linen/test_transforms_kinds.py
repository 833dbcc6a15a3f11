"""Every lifted transform on every kind of target, beside Flax.

A target is a class, a partial of one, a method in a class body, a function of a
module, or methods of a class by name; its submodules are declared in `setup` or
where they are used. Initial variables must be equal to the bit, and outputs,
updates and gradients up to rounding.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from module_compare import assert_equal, flag, plain

X = jnp.arange(6.0).reshape(2, 3) / 6
KEYS = {'params': jax.random.key(0), 'noise': jax.random.key(1)}


@dataclasses.dataclass(frozen=True)
class Lifting:
  """One lifted transform, or several, the innermost first.

  Attributes:
    steps: names of transforms, each with a function from `nn` to its options.
    carry: whether the method takes a carry and an input, and returns a carry and
      an output.
    args: from an array to the arguments of the lifted method.
  """

  steps: tuple[tuple[str, Callable[[Any], dict[str, Any]]], ...]
  carry: bool = False
  args: Callable[[Any], tuple[Any, ...]] = lambda x: (x,)


def lifting(name, *, carry=False, args=lambda x: (x,), **options):
  return Lifting(((name, lambda nn: options),), carry, args)


def stacked(x):
  return (jnp.stack([x, x + 1]),)


def looped(x):
  return x, jnp.stack([x, x + 1])


def doubled(nn):
  return {
    'mapped_collections': 'stats',
    'trans_in_fn': functools.partial(jax.tree.map, lambda x: x * 2),
    'trans_out_fn': functools.partial(jax.tree.map, lambda x: x / 2),
    'mutable': True,
  }


ALL_SPLIT = {'params': True, 'noise': True}
OWN = {'params': 0, 'stats': 0}
jit = ('jit', lambda nn: {})
remat = ('remat', lambda nn: {})
vmap = ('vmap', lambda nn: {'variable_axes': OWN, 'split_rngs': ALL_SPLIT})
scan = ('scan', lambda nn: {'variable_axes': OWN, 'split_rngs': ALL_SPLIT})

LIFTINGS = {
  'jit': Lifting((jit,)),
  'remat': Lifting((remat,)),
  'remat, policy': lifting(
    'remat', policy=jax.checkpoint_policies.dots_saveable, prevent_cse=False
  ),
  'fold_rngs': lifting('fold_rngs'),
  'vmap': Lifting((vmap,), args=stacked),
  'vmap, one set of parameters': lifting(
    'vmap',
    variable_axes={'params': None, 'stats': 0},
    split_rngs={'params': False, 'noise': True},
    args=stacked,
  ),
  'vmap, ensemble': lifting(
    'vmap',
    variable_axes={'params': -1, 'stats': 0},
    split_rngs={('params', 'noise'): True},
    in_axes=None,
    out_axes=1,
    axis_size=2,
  ),
  'scan': Lifting((scan,), True, looped),
  'scan, one set of parameters': lifting(
    'scan',
    variable_broadcast='params',
    variable_axes={'stats': 0},
    split_rngs={'params': False, 'noise': True},
    reverse=True,
    unroll=2,
    carry=True,
    args=looped,
  ),
  'scan, other axes': lifting(
    'scan',
    variable_axes={'params': -1, 'stats': 0},
    split_rngs={'params': True, 'noise': False},
    in_axes=1,
    out_axes=-1,
    carry=True,
    args=lambda x: (x, jnp.stack([x, x + 1], 1)),
  ),
  'remat_scan': Lifting((('remat_scan', lambda nn: {'lengths': (2, 2)}),)),
  'map_variables': Lifting((('map_variables', doubled),)),
  'add_metadata_axis': lifting(
    'add_metadata_axis', variable_axes={'params': 0}
  ),
  'remat of jit': Lifting((jit, remat)),
  'jit of remat': Lifting((remat, jit)),
  'scan of remat': Lifting((remat, scan), True, looped),
  'vmap of scan of remat': Lifting(
    (remat, scan, vmap), True, lambda x: jax.tree.map(stack, looped(x))
  ),
  'jit of vmap of map_variables': Lifting(
    (('map_variables', doubled), vmap, jit), args=stacked
  ),
}
# These have no argument `methods`, or pass none of theirs on by method.
NOT_IN_LIST = {'remat_scan', 'add_metadata_axis', 'fold_rngs'}
NOT_IN_DICT = {*NOT_IN_LIST, 'map_variables'}


def stack(x):
  return jnp.stack([x, x + 1])


def lift(nn, chosen, target, methods=None):
  """Applies the transforms to a target, as a user would."""
  for name, options in chosen.steps:
    options = options(nn)
    if methods == 'list':
      options = {**options, 'methods': ['__call__']}
    elif methods == 'dict':
      options = {'methods': {'__call__': options}}
    target = getattr(nn, name)(target, **options)
  return target


def use(m, x, dense, inner):
  """Does what all targets do, with two submodules of `m`."""
  seen = m.variable('stats', 'seen', jnp.zeros, (3,))
  seen.value += x.mean(0)
  noise = jax.random.normal(m.make_rng('noise'), x.shape)
  m.sow('stats', 'sown', x.sum())
  return inner(jnp.tanh(dense(x))) + noise


def declared(nn, carry, in_setup, decorate=lambda method: method):
  """Returns a class whose call is decorated."""

  def call(self, *args):
    x = args[0]
    if in_setup:
      self.seen.value += x.mean(0)
      noise = jax.random.normal(self.make_rng('noise'), x.shape)
      self.sow('stats', 'sown', x.sum())
      x = self.inner(jnp.tanh(self.dense(x))) + noise
    else:
      x = use(self, x, nn.Dense(self.features), nn.Dense(3, use_bias=False))
    return (x, x + args[1]) if carry else x

  method = call if in_setup else nn.compact(call)

  class Block(nn.Module):
    features: int = 3

    if in_setup:

      def setup(self):
        self.dense = nn.Dense(self.features)
        self.inner = nn.Dense(3, use_bias=False)
        self.seen = self.variable('stats', 'seen', jnp.zeros, (3,))

    __call__ = decorate(method)

  return Block


def by_class(nn, chosen, in_setup):
  return lift(nn, chosen, declared(nn, chosen.carry, in_setup))()


def by_partial(nn, chosen, in_setup):
  block = functools.partial(declared(nn, chosen.carry, in_setup), features=3)
  return lift(nn, chosen, block)()


def by_decorator(nn, chosen, in_setup):
  decorate = functools.partial(lift, nn, chosen)
  return declared(nn, chosen.carry, in_setup, decorate)()


def by_function(nn, chosen, in_setup):
  block = declared(nn, chosen.carry, in_setup)

  class Outer(nn.Module):
    def setup(self):
      if in_setup:
        self.block = block()

    @nn.compact
    def __call__(self, *args):
      def run(m, *args):
        y = (m.block if in_setup else block(name='block'))(*args)
        return y

      return lift(nn, chosen, run)(self, *args)

  return Outer()


def by_submodule(nn, chosen, in_setup):
  lifted = lift(nn, chosen, declared(nn, chosen.carry, in_setup))

  class Outer(nn.Module):
    if in_setup:

      def setup(self):
        self.first = lifted()
        self.rest = [lifted(), nn.Dense(3)]

      def __call__(self, *args):
        self.first(*args)
        self.rest[1](args[0])
        return self.rest[0](*args)
    else:

      @nn.compact
      def __call__(self, *args):
        lifted()(*args)
        nn.Dense(3)(args[0])
        return lifted(name='again')(*args)

  return Outer()


def by_methods(nn, chosen, in_setup, methods):
  block = declared(nn, chosen.carry, in_setup)
  return lift(nn, chosen, block, methods)()


KINDS = {
  'class': by_class,
  'partial': by_partial,
  'decorator': by_decorator,
  'function': by_function,
  'submodule': by_submodule,
  'methods in a list': functools.partial(by_methods, methods='list'),
  'methods in a dict': functools.partial(by_methods, methods='dict'),
}


def bits(tree):
  return jax.tree.map(lambda x: plain(x).tobytes().hex(), tree)


def results(package, nn, make, chosen, in_setup, *, gradient):
  """Returns initial variables, output and updates, and gradients."""
  with flag(package, 'flax_return_frozendict', False):
    module = make(nn, chosen, in_setup)
    args = chosen.args(X)
    variables = module.init(KEYS, *args)
    rngs = {'noise': KEYS['noise']}

    def loss(params, args):
      y, updates = module.apply(
        {**variables, 'params': params}, *args, rngs=rngs, mutable=['stats']
      )
      return sum(map(jnp.sum, jax.tree.leaves(y))), (y, updates)

    if not gradient:
      # Without `init` the tuple of `sow` grows, which a scan does not allow.
      apply = functools.partial(module.apply, rngs=KEYS, mutable=['stats'])
      return plain(bits(variables)), plain(
        jax.eval_shape(apply, variables, *args)
      )
    # One program compiles faster than many operations, loops above all.
    grad = jax.jit(jax.grad(loss, (0, 1), has_aux=True))
    grads, out = grad(variables['params'], args)
    return plain(bits(variables)), plain(grads), plain(out)


ALL_KINDS = {'jit', 'remat', 'vmap', 'scan', 'map_variables'}


def rows():
  for i, (name, chosen) in enumerate(LIFTINGS.items()):
    steps = {step for step, _ in chosen.steps}
    for j, (kind, make) in enumerate(KINDS.items()):
      # Kinds of targets and transforms know nothing of each other: some pairs
      # will do.
      if name not in ALL_KINDS and make not in (by_decorator, by_submodule):
        continue
      if kind == 'methods in a list' and NOT_IN_LIST & steps:
        continue
      if kind == 'methods in a dict' and NOT_IN_DICT & steps:
        continue
      for in_setup in (False, True):
        # Of the other rows either one or the other, which takes half the time.
        if name != 'vmap' and (i + j) % 2 == in_setup:
          continue
        # There Flax looks for the axis in what `setup` reads, and so do we.
        if in_setup and name.endswith('of map_variables'):
          continue
        how = 'setup' if in_setup else 'compact'
        yield pytest.param(make, chosen, in_setup, id=f'{name}, {kind}, {how}')


@pytest.mark.parametrize(('make', 'chosen', 'in_setup'), list(rows()))
def test_as_flax(make, chosen, in_setup):
  flax = pytest.importorskip('flax')
  import flax.linen  # noqa: F811

  import haiku_state
  import haiku_state.linen

  gradient = make in (by_decorator, by_submodule)
  args = make, chosen, in_setup
  theirs = results(flax, flax.linen, *args, gradient=gradient)
  ours = results(haiku_state, haiku_state.linen, *args, gradient=gradient)
  assert_equal(ours, theirs)
