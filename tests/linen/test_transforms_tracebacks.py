"""Semantics 24: of an error in nested lifted modules one sees the user's frames."""

import traceback

import jax
import jax.numpy as jnp
import pytest
from jax.extend import source_info_util

import haiku_state.linen as nn

X = jnp.ones((2, 3))
KEY = jax.random.key(0)
HIDING = ('tracebackhide', 'remove_frames', 'quiet_remove_frames', 'auto')


@pytest.fixture
def mode():
  """Sets the mode, and puts the earlier one back."""
  before = jax.config.jax_traceback_filtering
  yield lambda value: jax.config.update('jax_traceback_filtering', value)
  jax.config.update('jax_traceback_filtering', before)


def by_decorator(outer, inner):
  class First(nn.Module):
    @outer
    @nn.compact
    def __call__(self, x):
      return Second()(x)

  class Second(nn.Module):
    @inner
    @nn.compact
    def __call__(self, x):
      raise ValueError('here')

  return First()


def by_class(outer, inner):
  class First(nn.Module):
    @nn.compact
    def __call__(self, x):
      return inner(Second)()(x)

  class Second(nn.Module):
    def setup(self):
      self.dense = nn.Dense(3)

    def __call__(self, x):
      raise ValueError('here')

  return outer(First)()


def plain(lifted):
  return lifted


def visible(error):
  return [
    frame.f_code.co_name
    for frame, _ in traceback.walk_tb(error.__traceback__)
    if '__tracebackhide__' not in frame.f_locals
  ]


def frames(error):
  return [f.f_code.co_name for f, _ in traceback.walk_tb(error.__traceback__)]


LIFTS = [
  pytest.param(nn.jit, nn.remat, id='jit of remat'),
  pytest.param(nn.remat, nn.jit, id='remat of jit'),
  pytest.param(nn.remat, plain, id='remat'),
  pytest.param(plain, plain, id='none'),
]
DOORS = {
  'init': lambda m: m.init(KEY, X),
  'init_with_output': lambda m: m.init_with_output(KEY, X),
  'apply': lambda m: m.apply({}, X),
  'lazy_init': lambda m: m.lazy_init(KEY, X),
}


@pytest.mark.parametrize('make', [by_decorator, by_class])
@pytest.mark.parametrize(('outer', 'inner'), LIFTS)
@pytest.mark.parametrize('hiding', HIDING)
def test_three_frames_are_seen(hiding, outer, inner, make, mode):
  mode(hiding)
  module = make(outer, inner)
  try:
    module.init(KEY, X)
  except ValueError as e:
    error = e
  assert visible(error) == [
    'test_three_frames_are_seen',
    '__call__',
    '__call__',
  ]
  if hiding == 'tracebackhide':
    assert len(frames(error)) > 20
  else:
    assert len(frames(error)) == 3


@pytest.mark.parametrize('door', DOORS)
def test_every_door_hides_what_is_behind_it(door, mode):
  mode('quiet_remove_frames')
  module = by_decorator(nn.jit, nn.remat)
  with pytest.raises(ValueError, match='here') as caught:
    DOORS[door](module)
  names = [n for n in frames(caught.value) if n != '<lambda>']
  assert names[1:] == ['__call__', '__call__']


def test_nothing_is_hidden_when_that_is_off(mode):
  mode('off')
  module = by_decorator(nn.jit, nn.remat)
  with pytest.raises(ValueError, match='here') as caught:
    module.init(KEY, X)
  assert len(frames(caught.value)) > 20


def test_operations_are_said_to_come_from_the_user():
  class Foo(nn.Module):
    @nn.remat
    @nn.compact
    def __call__(self, x):
      return jnp.sin(x * self.param('w', nn.initializers.ones, (3,)))

  variables = Foo().init(KEY, X)
  jaxpr = jax.make_jaxpr(Foo().apply)(variables, X)
  (remat,) = jaxpr.eqns
  assert remat.params['jaxpr'].eqns
  for eqn in remat.params['jaxpr'].eqns:
    where = source_info_util.summarize(eqn.source_info)
    assert 'test_transforms_tracebacks' in where
