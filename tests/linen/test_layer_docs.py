"""The examples in the documentation of the layers run."""

import importlib
import inspect

import pytest

MODULES = (
  'activation batch_apply combinators dtypes initializers linear normalization '
  'pooling stochastic'
).split()


@pytest.mark.parametrize('name', MODULES)
def test_every_public_definition_is_described_by_an_example(name):
  module = importlib.import_module(f'haiku_state.linen.{name}')
  for key, value in vars(module).items():
    own = getattr(value, '__module__', None) == module.__name__
    if own and callable(value) and not key.startswith('_'):
      assert inspect.getdoc(value), key
      protocol = getattr(value, '_is_protocol', False)
      assert protocol or '>>>' in inspect.getdoc(value), key
