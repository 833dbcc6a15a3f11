"""The examples in the documentation of layers_table_b's layers run."""

import importlib

import pytest

MODULES = (
  'attention',
  'recurrent',
  'fp8_ops',
  'experimental.layers_with_named_axes',
)


@pytest.mark.parametrize('name', MODULES)
def test_every_public_definition_is_described(name):
  module = importlib.import_module(f'haiku_state.linen.{name}')
  for key, value in vars(module).items():
    own = getattr(value, '__module__', None) == module.__name__
    if own and callable(value) and not key.startswith('_'):
      assert value.__doc__ and value.__doc__.strip(), key
