"""Names with an underscore that programs written for Flax use, as they do."""

import importlib
import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import pytest
from module_compare import KEY, Programs, X, assert_same_as_flax, attempt

from haiku_state import linen, traverse_util

programs = Programs()


def module(package, name):
  return importlib.import_module(f'{package.__name__}.{name}')


@programs
def running_module(nn, flax):
  """Libraries of quantized layers ask which module is running."""
  stack = nn.module._context.module_stack
  seen = [stack[-1]]

  def dot_general(*args, **kwargs):
    running = nn.module._context.module_stack[-1]
    seen.append((type(running).__name__, running.path, len(stack)))
    running.variable('seen', 'calls', jnp.zeros, ())
    return jax.lax.dot_general(*args, **kwargs)

  class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
      seen.append((nn.module._context.module_stack[-1] is self, len(stack)))
      return nn.Dense(3, dot_general=dot_general, name='dense')(x), None

  class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
      x, _ = Block(name='plain')(x)
      for lifted in (nn.remat(Block), nn.jit(Block)):
        x, _ = lifted()(x)
      over = {'params': 0, 'seen': 0}
      rngs = {'params': True}
      x, _ = nn.scan(Block, over, split_rngs=rngs, length=2)()(x, None)
      return nn.vmap(Block, over, split_rngs=rngs)()(x)[0]

  variables = Net().init(KEY, X)
  return seen, stack[-1], sorted(variables['seen'])


@programs
def unspecified_parent_as_default(nn, flax):
  """A wrapper that makes modules passes the parent on as it came."""
  unspecified = nn.module._unspecified_parent

  def make(features, parent=unspecified):
    return nn.Dense(features, parent=parent)

  class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
      inside, apart = make(2), make(2, parent=None)
      return inside(x), apart.parent is None, inside.parent is self

  return Net().init_with_output(KEY, X), make(2).parent


@programs
def frozen_attributes(nn, flax):
  value = nn.module._freeze_attr({'a': [1, {'b': (2,)}]})
  return value, type(value).__name__


@programs
def calls_of_a_table(nn, flax):
  """A program that draws a table of its own."""
  summary = module(flax, 'linen.summary')
  leaf = jax.ShapeDtypeStruct((2, 3), jnp.float32)
  inputs = [
    summary._process_inputs(*x)
    for x in [
      ((), {}),
      ((1,), {}),
      ((1, 2), {}),
      ((), {'a': 1}),
      ((1,), {'a': 2}),
    ]
  ]
  variables = {
    'params': {'bias': leaf, 'dense': {'kernel': leaf}, 'other': {'x': leaf}},
    'stats': {'dense': {'mean': leaf}},
    'empty': {},
  }
  paths = {(), ('dense',), ('dense', 'inner')}
  own = summary._get_module_variables((), variables, paths)
  below = summary._get_module_variables(('dense',), variables, paths)
  return inputs, own, below


@programs
def operations_of_a_call(nn, flax):
  summary = module(flax, 'linen.summary')
  represent = summary._represent_tree
  info = nn.module._CallInfo(
    index=0,
    path=(),
    module=nn.Dense(2, parent=None),
    rngs={'params': module(flax, 'core.scope').LazyRng.create(KEY)},
    mutable=['params'],
    method='__call__',
    args=represent((X,)),
    kwargs={},
    outputs=None,
  )
  none = summary._get_call_flops(info, False, False)
  forward, backward = summary._get_call_flops(info, True, True)
  return none, forward, backward, summary._get_call_flops(info, True, False)


@programs
def registry_of_serialization(nn, flax):
  registry = flax.serialization._STATE_DICT_REGISTRY

  class Meter:
    def __init__(self, total):
      self.total = total

  before = dict in registry, Meter in registry
  registry[Meter] = (
    lambda meter: {'total': meter.total},
    lambda meter, state: Meter(state['total']),
  )
  to_state_dict, from_state_dict = registry[Meter]
  out = (
    flax.serialization.to_state_dict([Meter(3)]),
    flax.serialization.from_state_dict(Meter(0), {'total': 5}).total,
    to_state_dict(Meter(2)),
    from_state_dict(Meter(2), {'total': 1}).total,
    flax.serialization.is_serializable(Meter),
  )
  del registry[Meter]
  return before, out, flax.serialization.is_serializable(Meter)


@programs
def variables_that_a_library_binds(nn, flax):
  scope = module(flax, 'core.scope')
  frozen = flax.core.freeze({'params': {'a': {'b': 1}}, 'stats': {'c': 2}})
  out = scope._unfreeze_variables(frozen, ['stats'])
  out['stats']['c'] = 3
  return out, attempt(lambda: out['params'].__setitem__('a', 0)).kind, frozen


@programs
def axes_of_a_scan_of_ones_own(nn, flax):
  partitioning = module(flax, 'linen.partitioning')

  class Cell(nn.Module):
    @nn.compact
    def __call__(self, x, _):
      kernel = partitioning.param_with_axes(
        'kernel', nn.initializers.ones, (3, 3), axes=('embed', 'mlp')
      )
      return x @ kernel, None

  scanned = nn.scan(
    Cell,
    variable_axes={'params': 1, 'params_axes': 1},
    split_rngs={'params': True},
    length=2,
  )
  scanned = partitioning._add_axis_to_metadata(
    scanned, axis_pos=1, axis_name='layers', axis_col='params_axes'
  )
  return scanned().init(KEY, X, None)


@programs
def paths_of_checkpoints(nn, flax):
  path = module(flax, 'training.checkpoints')._checkpoint_path
  return path('/tmp', 3), path('/tmp', 'tmp', 'model_')


@programs
def items_in_order(nn, flax):
  return flax.traverse_util._sorted_items({('b',): 1, ('a', 'c'): 2})


@programs.parametrize()
def test_same_as_flax(program):
  assert_same_as_flax(program)


def test_running_module_belongs_to_the_thread():
  stack = linen.module._context.module_stack
  assert list(stack) == [None]


def test_traversals_warn_of_their_deprecation():
  """Each that is made warns, in the line that makes it."""
  for make in (
    lambda: traverse_util.TraverseId(),
    lambda: traverse_util.ModelParamTraversal(lambda path, _: True),
  ):
    with pytest.warns(DeprecationWarning, match='path_aware_map') as found:
      make()
    assert [w.filename for w in found] == [__file__]
  program = 'from haiku_state import optim, traverse_util'
  run(program, '.', '-W', 'error:`haiku_state:DeprecationWarning')


@pytest.mark.parametrize('name', ['orbax_utils', 'checkpoints'])
def test_orbax_comes_with_the_modules_that_use_it(tmp_path, name):
  """`import orbax` is all that a program writes; any Orbax will do."""
  package = tmp_path / 'orbax' / 'checkpoint'
  package.mkdir(parents=True)
  (package / '__init__.py').write_text('class PyTreeCheckpointer: pass')
  program = f"""
    from haiku_state.training import {name}
    import orbax
    assert orbax.checkpoint.PyTreeCheckpointer.__module__ == 'orbax.checkpoint'
    assert orbax.checkpoint.__file__.startswith({str(tmp_path)!r})
  """
  run(program, tmp_path)


@pytest.mark.parametrize('text', ["raise ImportError('no')", '1 / 0'])
def test_broken_orbax_breaks_nothing_else(tmp_path, text):
  package = tmp_path / 'orbax' / 'checkpoint'
  package.mkdir(parents=True)
  (package / '__init__.py').write_text(text)
  program = f"""
    from haiku_state.training import checkpoints, orbax_utils
    import haiku_state
    haiku_state.config.update('flax_use_orbax_checkpointing', False)
    assert checkpoints.latest_checkpoint({str(tmp_path)!r}) is None
    try:
      orbax_utils.save_args_from_target(1)
    except (ImportError, ZeroDivisionError):
      pass
    else:
      raise AssertionError
  """
  run(program, tmp_path)


def run(program, folder, *options):
  env = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(folder), *sys.path])}
  command = [sys.executable, *options, '-c', textwrap.dedent(program)]
  subprocess.run(command, check=True, env=env)
