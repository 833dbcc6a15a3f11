"""Imports go one way, and reach nothing that a user need not have.

A new file must be entered in `LAYERS`: where it stands is a decision.
"""

import ast
import dataclasses
import functools
import importlib
import pathlib
import subprocess
import sys
import textwrap

import haiku
import pytest

import haiku_state

ROOT = pathlib.Path(haiku_state.__file__).parent

# A module imports, when it is imported itself, only what stands before it.
LAYERS = {
  'words': '_lazy _extents _temporary_files _versions errors configurations export typing _axes _sizes ids _plain_arrays',
  'trees': 'serialization struct core.frozen_dict traverse_util cursor',
  'arrays': 'jax_utils io traceback_util',
  'below the scope': """
    core._names core._bundles core._frame core._haiku_run core._haiku_words
    core._initializers core.filters core.tracers
    core.keys core._specs core.meta core.partial_eval core.spmd core._fingerprint
    core._shapes core._initial core.axes_scan core._jax_around core._place core._store
    core._in_run core._in_loop core._in_haiku
    core._out_of_reach core._run""",
  'scope': 'core.scope core.variables',
  'lift': """
    core._lift core._lift.packing core._lift.autodiff core._lift.caching
    core._lift.one_trace core._lift.collections core._lift.mapping core._lift.control core.lift""",
  'core': 'core',
  'module': """
    linen.kw_only_dataclasses linen._module linen._module.state
    linen._module.base linen._module.pure_methods linen._module.context
    linen._module.fields
    linen._module.submodules linen._module.haiku_names linen._module.binding
    linen._module.threads linen._module.parts linen._module.methods linen._module.metaclass
    linen._module.calls linen._module.repr linen._module.arguments
    linen._module.sharing linen._module.checked linen.module""",
  'transforms': 'linen._module.lifting linen.transforms',
  'layers': """
    linen.dtypes linen.initializers linen.activation linen.batch_apply
    linen.combinators linen.linear linen.fp8_ops linen.normalization
    linen.pooling linen.stochastic linen.attention linen.recurrent linen.spmd
    linen.partitioning linen.summary linen.experimental
    linen.experimental.layers_with_named_axes linen""",
  'layers of scopes': """
    core.nn.linear core.nn.normalization core.nn.stochastic core.nn.attention
    core.nn""",
  'training': """
    training training.common_utils training.dynamic_scale
    training.early_stopping training.lr_schedule training.prefetch_iterator
    training.train_state training._checkpoint_paths
    training._checkpoint_commit training._multiprocess_arrays training._orbax training._waiting
    training.orbax_utils training.checkpoints""",
  'metrics': 'metrics metrics.tensorboard',
  'optim': """
    optim._trees optim.base
    optim._optax optim.adabelief optim.adadelta optim.adafactor optim.adagrad
    optim.adam optim.dynamic_scale optim.lamb optim.lars optim.momentum
    optim.rmsprop optim.sgd optim.weight_norm optim""",
  'interop': """
    interop._checks interop._plain interop._pickles interop._npz
    interop._safetensors interop._leaves interop._units interop.batch_norm
    interop.layers interop.weights
    interop.checkpoints
    interop.trees interop.functions interop.recurrent interop.comparison interop""",
  'port': """
    port._names port._old_names port._documents port._uses port._expects
    port._stand_ins port._old_jax port._hook port._modernize port._rewrite
    port._port port._startup port._startup.sitecustomize port._run
    port._explain port._cli port __main__""",
  'all': 'haiku_state',
}
ORDER = [name for names in LAYERS.values() for name in names.split()]

# Looked up when they are used: these stand above the module that uses them.
LAZY = {
  ('linen.module', 'linen.summary'),
}

# Types of files above, which only type checkers import: files in the wrong
# order, or two concepts in one class.
FOR_TYPES = {
  ('typing', '_axes'),
  ('typing', '_sizes'),
  ('typing', 'core.frozen_dict'),
  ('typing', 'core.scope'),
}

# All that a package which stands apart may use of ours.
APART = {
  'optim': {
    '_lazy',
    'serialization',
    '_versions',
    'struct',
    'traverse_util',
    'core.frozen_dict',
    'training.dynamic_scale',
  },
  'port': {
    '_extents',
    '_temporary_files',
    '_versions',
    'configurations',
    'errors',
  },
  'metrics': set(),
}

# All files that know Haiku.
KNOWS_HAIKU = {
  'core._frame',
  'core._haiku_run',
  'core._initializers',
  'core._haiku_words',
  'core._run',
  'interop.comparison',
  'interop.functions',
  'interop.recurrent',
  'linen.module',
  'linen._module.binding',
  'linen._module.haiku_names',
  'linen._module.checked',
  'linen._module.metaclass',
  'linen._module.parts',
}

# What jax, dm-haiku and optax bring along.
RUN_TIME = {
  'absl',
  'haiku',
  'jax',
  'jaxlib',
  'ml_dtypes',
  'numpy',
  'opt_einsum',
  'optax',
}


@dataclasses.dataclass(frozen=True)
class Import:
  """One name that a file imports.

  Attributes:
    name: the module, as far as it is one.
    lazy: whether it is imported in a function, or guarded by `try`.
    for_types: whether only type checkers import it.
  """

  name: str
  lazy: bool
  for_types: bool


def modules() -> dict[str, pathlib.Path]:
  """Returns the files of the package by the names in `LAYERS`."""
  found = {}
  for path in ROOT.rglob('*.py'):
    parts = path.relative_to(ROOT).with_suffix('').parts
    if parts[-1] == '__init__':
      parts = parts[:-1]
    found['.'.join(parts) or 'haiku_state'] = path
  return found


MODULES = modules()


def short(name: str) -> str:
  return name.removeprefix('haiku_state.')


def imports(tree: ast.AST, lazy=False, for_types=False) -> list[Import]:
  found = []
  for node in ast.iter_child_nodes(tree):
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, 'imports are absolute'
      assert node.module is not None
      inner = [f'{node.module}.{alias.name}' for alias in node.names]
      names = [n if short(n) in MODULES else node.module for n in inner]
    elif isinstance(node, ast.If) and 'TYPE_CHECKING' in ast.dump(node.test):
      found += imports(ast.Module(node.body, []), lazy, True)
      found += imports(ast.Module(node.orelse, []), lazy, for_types)
      continue
    else:
      later = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Try))
      found += imports(node, lazy or later, for_types)
      continue
    found += [Import(name, lazy, for_types) for name in names]
  return found


@functools.cache
def all_imports() -> dict[str, list[Import]]:
  """Returns the imports of each file of the package."""
  return {
    name: imports(ast.parse(path.read_text())) for name, path in MODULES.items()
  }


def ours(name: str, for_types: bool = False) -> list[tuple[str, bool]]:
  """Returns the modules of ours that one uses, and whether it is lazy.

  Args:
    name: the module that uses them.
    for_types: whether to return those that only type checkers import.
  """
  return [
    (short(found.name), found.lazy)
    for found in all_imports()[name]
    if found.name.split('.')[0] == 'haiku_state'
    and found.for_types == for_types
  ]


def test_every_file_is_in_the_table():
  assert len(set(ORDER)) == len(ORDER)
  assert set(MODULES) == set(ORDER), (
    'enter new files of the package in LAYERS, in tests/test_imports.py'
  )


@pytest.mark.parametrize('name', sorted(MODULES))
def test_imports_go_one_way(name):
  before = set(ORDER[: ORDER.index(name)])
  for used, lazy in ours(name):
    if (name, used) not in LAZY or not lazy:
      assert used in before, f'{name} imports {used}, which is not before it'


def test_lazy_imports_are_those_of_the_table():
  upward = {
    (name, used)
    for name in MODULES
    for used, lazy in ours(name)
    if lazy and ORDER.index(used) > ORDER.index(name)
  }
  assert upward == LAZY


def test_imports_for_types_go_one_way():
  upward = {
    (name, used)
    for name in MODULES
    for used, _ in ours(name, for_types=True)
    if ORDER.index(used) >= ORDER.index(name)
  }
  assert upward == FOR_TYPES


def test_each_file_of_core_can_be_read_after_those_that_it_imports():
  used_by = {
    name: {short(found.name) for found in all_imports()[name]} & set(MODULES)
    for name in MODULES
    if name.split('.')[0] == 'core'
  }
  upward = {
    (name, used)
    for name, names in used_by.items()
    for used in names
    if ORDER.index(used) >= ORDER.index(name)
  }
  assert not upward


@pytest.mark.parametrize('package', APART)
def test_packages_that_stand_apart(package):
  for name in MODULES:
    if name.split('.')[0] == package:
      used = {u for u, _ in ours(name) if u.split('.')[0] != package}
      assert used <= APART[package], name


def test_few_files_know_haiku():
  found = {
    name
    for name in MODULES
    if any(i.name.split('.')[0] == 'haiku' for i in all_imports()[name])
  }
  assert found == KNOWS_HAIKU


@pytest.mark.parametrize('name', sorted(MODULES))
def test_nothing_private_and_no_flax(name):
  for found in all_imports()[name]:
    parts = found.name.split('.')
    assert parts[0] != 'flax', found
    assert '_src' not in parts, found
    if parts[0] not in {'haiku_state', *sys.stdlib_module_names}:
      assert parts[0] in RUN_TIME or found.lazy or found.for_types, (
        f'{found.name} is not there at run time: import it where it is used'
      )
  # Nor by way of an attribute, as in `jax._src.core`.
  tree = ast.parse(MODULES[name].read_text())
  for node in ast.walk(tree):
    if isinstance(node, ast.Attribute):
      assert node.attr != '_src', f'line {node.lineno}'


def test_extras_are_not_needed_to_import_the_package():
  if tuple(map(int, haiku.__version__.split('.')[:3])) < (0, 0, 16):
    pytest.skip('this Haiku itself looks for Flax')
  names = ['haiku_state.' + n for n in ORDER if n not in ('haiku_state',)]
  names = [n for n in names if not n.endswith('__main__')]
  extras = sorted(
    {
      i.name.split('.')[0]
      for found in all_imports().values()
      for i in found
      if i.name.split('.')[0]
      not in {'haiku_state', *RUN_TIME, *sys.stdlib_module_names}
    }
    | {'flax', 'msgpack', 'orbax', 'rich', 'matplotlib', 'tqdm', 'tensorflow'}
  )
  program = f"""
    import importlib
    import sys

    for name in {extras}:
      sys.modules[name] = None  # As if it were not installed.
    for name in {names}:
      importlib.import_module(name)
    import haiku_state.linen as nn, jax, jax.numpy as jnp
    x = jnp.ones((1, 2))
    variables = nn.Dense(3).init(jax.random.key(0), x)
    assert nn.Dense(3).apply(variables, x).shape == (1, 3)
    loaded = [
      name
      for name, module in sys.modules.items()
      if name.split('.')[0] in {extras} and module is not None
    ]
    assert not loaded, loaded
  """
  subprocess.run([sys.executable, '-c', textwrap.dedent(program)], check=True)


def test_optax_is_imported_with_the_optimizers_only():
  program = """
    import sys
    import haiku_state

    assert 'optax' not in sys.modules
    assert haiku_state.optim.sgd.GradientDescent
    assert 'optax' in sys.modules
    assert not hasattr(haiku_state, 'optimizers')
  """
  subprocess.run([sys.executable, '-c', textwrap.dedent(program)], check=True)


def test_an_import_brings_what_every_program_needs():
  """By count: what has to wait waits, and little is compiled meanwhile."""
  program = """
    import collections
    import sys

    import haiku

    known = set(sys.modules)
    calls = collections.Counter()
    sys.setprofile(lambda frame, event, _: calls.update(
        [frame.f_code.co_filename] if event == 'call' else []
    ))
    import haiku_state
    from haiku_state import linen as nn
    import haiku_state.linen as nn
    sys.setprofile(None)
    print(*sorted(set(sys.modules) - known))
    print(calls['<string>'], sum(calls.values()))
    assert nn.Dense and nn.linear and 'haiku_state.linen.linear' in sys.modules
  """
  run = [sys.executable, '-c', textwrap.dedent(program)]
  printed = subprocess.run(run, check=True, capture_output=True, text=True)
  names, counts = printed.stdout.splitlines()
  loaded = {short(n) for n in names.split() if n.startswith('haiku_state')}
  groups = ('words', 'trees', 'below the scope', 'scope', 'core', 'module')
  needed = {name for group in groups for name in LAYERS[group].split()}
  assert loaded <= needed - WAITS | {'haiku_state', 'linen', 'traceback_util'}
  foreign = {name.split('.')[0] for name in names.split()}
  assert not foreign & {'optax', 'msgpack', 'orbax', 'flax', 'chex', 'rich'}
  # A method that a dataclass gets is such a text, and calls twice.
  texts, calls = map(int, counts.split())
  assert texts < 120, 'a class is made that could wait'
  assert calls < 25_000


# What is above a module, and is imported when it is first used.
WAITS = {'_axes', '_sizes', 'traverse_util', 'cursor', 'jax_utils', 'io'}


@pytest.mark.parametrize(
  'name', ['haiku_state', 'core', 'linen', 'optim', 'typing']
)
def test_checkers_see_the_names_that_wait(name):
  tree = ast.parse(MODULES[name].read_text())
  (table,) = [
    ast.literal_eval(node.args[1])
    for node in ast.walk(tree)
    if isinstance(node, ast.Call) and 'names_of' in ast.dump(node.func)
  ]
  is_package = MODULES[name].stem == '__init__'
  waiting = {(home, n) for home in table for n in table[home].split()}
  if is_package:
    waiting |= {('', home) for home in table}
  package = 'haiku_state' if not is_package else f'haiku_state.{name}'
  package = package.replace('.haiku_state', '')
  (checked,) = [n for n in tree.body if 'TYPE_CHECKING' in ast.dump(n)][1:]
  assert isinstance(checked, ast.If)
  seen = {
    (node.module[len(package) + 1 :], alias.name)
    for node in checked.body
    if isinstance(node, ast.ImportFrom) and node.module
    for alias in node.names
  }
  assert seen == waiting

  module = importlib.import_module(
    f'haiku_state.{name}'.replace('haiku_state.haiku_state', 'haiku_state')
  )
  names = {n for _, n in waiting}
  assert names <= set(dir(module))
  assert names <= set(module.__all__)
  assert len(set(module.__all__)) == len(module.__all__)
  for each in module.__all__:
    assert hasattr(module, each), each
  assert not hasattr(module, 'nothing_of_this_name')


def test_one_file_knows_versions():
  """Nothing else compares versions, or looks whether jax has a name."""
  others = [name for name in MODULES if name != '_versions']
  wrong = [
    f'{MODULES[name].relative_to(ROOT)}:{line}'
    for name in others
    for line in questions_of_version(MODULES[name].read_text())
  ]
  assert not wrong, 'ask in haiku_state/_versions.py'


@pytest.mark.parametrize(
  'program',
  [
    'import sys\nsys.version_info',
    'from sys import version_info',
    'import jax\njax.__version__',
    'import haiku as hk\nhk.__version__',
    'import jax\nhasattr(jax, "P")',
    'import jax\ngetattr(jax.lax, "pcast", None)',
    'from jax import numpy as jnp\nhasattr(jnp.linalg, "outer")',
    'try:\n  from jax import P\nexcept ImportError:\n  P = None',
    'from importlib import metadata\nmetadata.version("jax")',
  ],
)
def test_a_question_of_version_is_seen(program):
  assert questions_of_version(program)


def questions_of_version(text: str) -> list[int]:
  """Returns the lines of a file that ask which version of something is there."""
  tree = ast.parse(text)
  lines = []
  for node in ast.walk(tree):
    match node:
      case ast.Attribute(attr='version_info' | '__version_info__'):
        lines.append(node.lineno)
      case ast.ImportFrom(module='sys') if 'version_info' in names_of(node):
        lines.append(node.lineno)
      case ast.Attribute(value=value, attr='__version__') if is_foreign(
        value, tree
      ):
        lines.append(node.lineno)
      case (
        ast.Call(func=ast.Name(id='hasattr'), args=[value, *_])
        | ast.Call(func=ast.Name(id='getattr'), args=[value, _, _])
      ) if is_foreign(value, tree):
        lines.append(node.lineno)
      case ast.Call(
        func=ast.Attribute(attr='version'), args=[ast.Constant(value=name)]
      ) if name in VERSIONED:
        lines.append(node.lineno)
      case ast.Try():
        lines += [
          part.lineno
          for part in node.body
          if isinstance(part, (ast.Import, ast.ImportFrom))
          and any(
            found.name.split('.')[0] in VERSIONED
            for found in imports(ast.Module([part], []))
          )
        ]
  return lines


VERSIONED = {'jax', 'jaxlib', 'haiku', 'optax'}


def names_of(node: ast.Import | ast.ImportFrom) -> set[str]:
  return {alias.asname or alias.name.split('.')[0] for alias in node.names}


def is_foreign(value: ast.expr, tree: ast.AST) -> bool:
  """Returns whether an expression is a module, or a class, of `VERSIONED`."""
  while isinstance(value, ast.Attribute):
    value = value.value
  return isinstance(value, ast.Name) and any(
    value.id in names_of(node)
    for node in ast.walk(tree)
    if isinstance(node, (ast.Import, ast.ImportFrom))
    for found in imports(ast.Module([node], []))
    if found.name.split('.')[0] in VERSIONED
  )
