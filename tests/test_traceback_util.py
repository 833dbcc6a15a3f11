"""Tracebacks: which frames are seen in which mode, through JAX's as well."""

import importlib.util
import textwrap
import traceback

import jax
import jax.numpy as jnp
import pytest
from jax_names import needs_notes

from haiku_state import traceback_util

# A file that stands for our machinery: every call of the user's function goes
# through a boundary, two frames of the file, and two JAX transforms.
MACHINERY = textwrap.dedent("""
  import jax
  from haiku_state import traceback_util

  @traceback_util.api_boundary
  def call(fun, *args):
    return inner(fun, *args)

  def inner(fun, *args):
    return jax.jit(jax.checkpoint(fun))(*args)
""")


@pytest.fixture
def machinery(tmp_path):
  path = tmp_path / 'machinery.py'
  path.write_text(MACHINERY)
  traceback_util.register_exclusion(str(path))
  spec = importlib.util.spec_from_file_location('machinery', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture
def mode():
  """Sets the mode, and puts the earlier one back."""
  before = jax.config.jax_traceback_filtering
  yield lambda value: jax.config.update('jax_traceback_filtering', value)
  jax.config.update('jax_traceback_filtering', before)


@pytest.fixture(autouse=True)
def hidden():
  yield
  traceback_util.hide_flax_in_tracebacks()


def fail(x):
  raise ValueError('here')


def fail_twice_as_deep(machinery):
  return lambda x: machinery.call(fail, x)


def error_of(machinery, fun=fail):
  try:
    machinery.call(fun, jnp.ones(()))
  except ValueError as error:
    return error
  raise AssertionError('no error')


def frames(tb):
  return [frame for frame, _ in traceback.walk_tb(tb)]


def visible(tb):
  return [
    frame.f_code.co_name
    for frame in frames(tb)
    if '__tracebackhide__' not in frame.f_locals
  ]


@pytest.mark.parametrize(
  'value', ['remove_frames', 'quiet_remove_frames', 'tracebackhide', 'auto']
)
def test_only_the_users_frames_are_seen(machinery, mode, value):
  mode(value)
  assert visible(error_of(machinery).__traceback__) == ['error_of', 'fail']


@pytest.mark.parametrize('value', ['remove_frames', 'tracebackhide'])
def test_the_outermost_boundary_hides(machinery, mode, value):
  mode(value)
  error = error_of(machinery, fail_twice_as_deep(machinery))
  assert visible(error.__traceback__) == ['error_of', '<lambda>', 'fail']


def test_only_the_outermost_boundary_attaches_a_cause(machinery, mode):
  mode('remove_frames')
  cause = error_of(machinery, fail_twice_as_deep(machinery)).__cause__
  seen = []
  while cause is not None:
    seen.append(type(cause))
    cause = cause.__cause__
  assert seen.count(traceback_util.UnfilteredStackTrace) == 1


def test_off_shows_all(machinery, mode):
  mode('off')
  error = error_of(machinery)
  assert len(visible(error.__traceback__)) > 6
  assert error.__cause__ is None and not hasattr(error, '__notes__')


def test_remove_frames_keeps_the_whole_as_the_cause(machinery, mode):
  mode('remove_frames')
  error = error_of(machinery)
  assert isinstance(error.__cause__, traceback_util.UnfilteredStackTrace)
  assert 'ValueError: here' in str(error.__cause__)
  names = [
    frame.f_code.co_name for frame in frames(error.__cause__.__traceback__)
  ]
  assert 'inner' in names and 'call' in names


@needs_notes
def test_quiet_remove_frames_says_so_once(machinery, mode):
  mode('quiet_remove_frames')
  notes = error_of(machinery).__notes__
  assert len([n for n in notes if 'JAX_TRACEBACK_FILTERING=off' in n]) == 1


@pytest.mark.parametrize('value', ['remove_frames', 'tracebackhide'])
def test_show_and_hide(machinery, mode, value):
  mode(value)
  traceback_util.show_flax_in_tracebacks()
  names = visible(error_of(machinery).__traceback__)
  assert names == ['error_of', 'call', 'inner', 'fail']
  traceback_util.hide_flax_in_tracebacks()
  names = visible(error_of(machinery).__traceback__)
  assert names == ['error_of', 'fail']


def test_a_folder_may_be_registered(machinery, mode, tmp_path):
  mode('remove_frames')
  path = tmp_path / 'package' / 'module.py'
  path.parent.mkdir()
  path.write_text('def passing_on(x): fail(x)')
  namespace = {'fail': fail}
  exec(compile(path.read_text(), str(path), 'exec'), namespace)
  passing_on = namespace['passing_on']
  shown = ['error_of', 'passing_on', 'fail']
  assert visible(error_of(machinery, passing_on).__traceback__) == shown
  traceback_util.register_exclusion(str(path.parent))
  shown.remove('passing_on')
  assert visible(error_of(machinery, passing_on).__traceback__) == shown


def test_wraps():
  @traceback_util.api_boundary
  def double(x):
    """Doubles."""
    return 2 * x

  assert double(3) == 6
  assert (double.__name__, double.__doc__) == ('double', 'Doubles.')


def test_same_as_flax(mode):
  theirs = pytest.importorskip('flax.traceback_util')
  for name in (
    'api_boundary',
    'hide_flax_in_tracebacks',
    'register_exclusion',
    'show_flax_in_tracebacks',
  ):
    assert hasattr(theirs, name) and hasattr(traceback_util, name)
