"""Every public name of Flax is here, at its place and with its signature.

The names are data (`data/public_names.txt`); Flax, where it is installed, says
what their signatures are.
"""

import functools
import importlib
import inspect
import pathlib
import re

import pytest

DATA = pathlib.Path(__file__).parent / 'data' / 'public_names.txt'

# Names that are not here yet. A name that exists must not be listed.
ABSENT: set[str] = set()

# Parameters that differ from Flax's, and why.
DIFFERENT = {
  'flax.linen.Module': 'a Haiku module takes a name',
  'flax.core.apply': 'one more, by keyword only: the Haiku name of the root',
  'flax.core.lift.TransformContext': 'it is an object of one thread',
  'flax.training.checkpoints.save_checkpoint': 'one more, by keyword only',
  'flax.training.checkpoints.restore_checkpoint': 'one more, by keyword only',
  'flax.linen.logical_to_mesh_sharding': 'one more, by keyword only',
  'flax.core.meta.get_partition_spec': 'more, by keyword only',
  'flax.core.meta.get_sharding': 'more, by keyword only',
  'flax.linen.get_partition_spec': 'more, by keyword only',
  'flax.linen.get_sharding': 'more, by keyword only',
  'flax.training.checkpoints.save_checkpoint_multiprocess': (
    'one more, by keyword only'
  ),
  'flax.core.init': 'one more, by keyword only: the Haiku name of the root',
}


# Public names of ours that Flax does not have, by module.
EXTRA = {
  'flax.errors': {'ConcurrentSaveError'},
  'flax.core.partial_eval': {'DependsOnInput', 'Traced', 'eval_known'},
  'flax.traceback_util': {'UnfilteredStackTrace'},
}


def read_names() -> dict[str, dict[str, str]]:
  """Returns the kind of each name, by module or class."""
  found: dict[str, dict[str, str]] = {}
  for line in DATA.read_text().splitlines():
    if line.startswith('['):
      names = found[line.strip('[]')] = {}
    elif line and not line.startswith('#'):
      name, kind = line.split(':')
      names[name] = kind
  return found


NAMES = read_names()
CASES = [
  (place, name)
  for place, names in NAMES.items()
  if place != 'flax.config'
  for name in names
]
each_name = pytest.mark.parametrize(
  'place, name', CASES, ids=[f'{p}.{n}' for p, n in CASES]
)


def find(place: str):
  """Returns a module, or a class of one."""
  try:
    return importlib.import_module(place)
  except ImportError as e:
    module, _, name = place.rpartition('.')
    try:
      return getattr(importlib.import_module(module), name)
    except AttributeError:
      raise e from None


def here(place: str):
  return find(place.replace('flax', 'haiku_state', 1))


def test_list_is_whole():
  assert len(NAMES['flax.linen']) == 124
  assert len(NAMES['flax.errors']) == 39
  assert sum(map(len, NAMES.values())) > 500


@each_name
def test_name_is_there(place, name):
  if f'{place}.{name}' not in ABSENT:
    owner = here(place)
    if NAMES[place][name] == 'attribute':
      owner = here('flax.linen.Dense')(1)  # Objects have it.
    assert hasattr(owner, name)


def test_absent_names_are_absent():
  for full in ABSENT:
    place, _, name = full.rpartition('.')
    assert name in NAMES[place], full
    try:
      owner = here(place)
    except ImportError:
      continue
    assert not hasattr(owner, name), f'{full} exists: take it off the list'


@each_name
def test_kind_is_flax_s(place, name):
  if f'{place}.{name}' in ABSENT:
    return
  kind = NAMES[place][name]
  value = getattr(here(place), name, None)
  if kind in ('K', 'M', 'e', 'enum') and inspect.isclass(_theirs(place, name)):
    assert inspect.isclass(value)
  if kind == 'M':
    from haiku_state import linen

    assert issubclass(value, linen.Module)
  if kind == 'e':
    assert issubclass(value, Exception)
  if kind in ('f', 'method'):
    assert callable(value)
  if kind == 'property':
    assert isinstance(value, property)
  if kind == 'module':
    assert inspect.ismodule(value)


def _theirs(place, name):
  """Returns Flax's value, a class where Flax is not installed."""
  try:
    return getattr(find(place), name, None)
  except ImportError:
    return type


@pytest.mark.parametrize('flag', NAMES['flax.config'])
def test_flag_has_its_default(flag):
  from haiku_state import configurations

  words = NAMES['flax.config'][flag].removeprefix('flag=')
  holder = getattr(configurations, flag, None)
  if flag == 'flax_return_frozendict':
    words = 'True'  # The documented `variables.pop('params')` needs it.
  value = configurations.config._values[flag]
  assert repr(value) == words
  assert holder is None or holder.value == value


def test_config_is_at_the_top():
  import haiku_state

  assert haiku_state.config is haiku_state.configurations.config


# --- With Flax ---------------------------------------------------------------


@pytest.fixture(scope='module')
def flax():
  return pytest.importorskip('flax')


# Classes of values that stand for "not given", as each package calls them.
SENTINELS = {'Sentinel', 'DefaultSentinel', 'Unspecified'}


def text_of(default):
  """Returns what can be compared of a default value."""
  if default is inspect.Parameter.empty:
    return 'required'
  if type(default).__name__.lstrip('_') in SENTINELS:
    return 'not given'
  if isinstance(default, functools.partial):
    return text_of(default.func)
  if callable(default):
    return f'function {getattr(default, "__name__", type(default).__name__)}'
  text = re.sub(r' at 0x[0-9a-f]+', '', repr(default))
  return re.sub(r'(flax|haiku_state)(\.\w+)*\.', '', text)


def parameters(f):
  """Returns names, kinds and defaults; None where a callable hides them."""
  try:
    signature = inspect.signature(f)
  except (TypeError, ValueError):
    return None
  return [
    (p.name, p.kind.name, text_of(p.default))
    for p in signature.parameters.values()
  ]


ANYTHING = [
  ('args', 'VAR_POSITIONAL', 'required'),
  ('kwargs', 'VAR_KEYWORD', 'required'),
]


def same_parameters(ours, theirs):
  if theirs in (None, ANYTHING):
    return True
  if ours is None or len(ours) != len(theirs):
    return False
  return all(map(same_parameter, ours, theirs))


def same_parameter(ours, theirs):
  name, kind, default = theirs
  if name in ('parent', 'name') and ours[1] == 'KEYWORD_ONLY':
    kind = 'KEYWORD_ONLY'  # Flax documents that they are, and takes either.
  if default == 'function <lambda>' and ours[2].startswith('function '):
    default = ours[2]
  return ours == (name, kind, default)


def own_methods(cls):
  """Returns the names of public methods that a class of Flax's defines."""
  return [
    name
    for name, value in vars(cls).items()
    if (not name.startswith('_') or name in ('__call__', '__init__'))
    and 'nnx' not in name
    and inspect.isfunction(inspect.unwrap(value, stop=lambda f: False))
  ]


def compare(full, ours, theirs):
  same = same_parameters(parameters(ours), parameters(theirs))
  if full in DIFFERENT:
    assert not same, f'{full} is as Flax has it: take it off the list'
  else:
    assert same, (full, parameters(ours), parameters(theirs))


@each_name
def test_signature_is_flax_s(flax, place, name):
  full = f'{place}.{name}'
  if full in ABSENT:
    return
  theirs = getattr(find(place), name, None)
  ours = getattr(here(place), name, None)
  if not callable(theirs) or getattr(theirs, '__module__', '') == 'typing':
    return
  if not str(getattr(theirs, '__module__', '')).startswith('flax'):
    return  # It is JAX's, or Python's.
  if parameters(theirs) is not None and not issubclass_of(theirs, Exception):
    compare(full, ours, theirs)
  if inspect.isclass(theirs):
    for method in own_methods(theirs):
      if method == '__init__' and not is_dataclass_free(theirs):
        continue
      mine = getattr(ours, method, None)
      assert mine is not None, f'{full}.{method}'
      compare(f'{full}.{method}', mine, getattr(theirs, method))


def issubclass_of(value, cls):
  return inspect.isclass(value) and issubclass(value, cls)


def is_dataclass_free(cls):
  return not hasattr(cls, '__dataclass_fields__')


MODULES = [place for place in NAMES if place not in ('flax.config',)]


@pytest.mark.parametrize('place', MODULES)
def test_nothing_else_is_public(flax, place):
  """Finds no public name of ours that Flax's module has not."""
  theirs, ours = find(place), here(place)
  if not inspect.ismodule(ours):
    return
  extra = {
    name
    for name, value in vars(ours).items()
    if not name.startswith('_')
    and not inspect.ismodule(value)
    and getattr(value, '__module__', None) == ours.__name__
    and not hasattr(theirs, name)
  }
  assert extra == EXTRA.get(place, set())
