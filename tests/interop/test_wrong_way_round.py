"""What is passed the wrong way round is told, with what to write instead."""

import haiku as hk
import jax
import jax.numpy as jnp
import pytest

from haiku_state import errors, interop
from haiku_state import linen as nn
from haiku_state.interop import layers

KEY = jax.random.PRNGKey(0)
X = jnp.ones((2, 3))
LINEAR = {'linear': {'w': jnp.ones((3, 2)), 'b': jnp.ones(2)}}
MLP = {'mlp/~/linear_0': LINEAR['linear']}
MAPPING = {'linear': layers.linear('')}
VARIABLES = nn.Dense(2).init(KEY, X)
STATE = {'norm': {'batch_stats:mean': jnp.ones(3)}}
FUNCTION = hk.transform(lambda x: hk.Linear(2)(x))

# Haiku's trees where linen's variables belong.
APPLIED = {
  'parameters': LINEAR,
  'parameters with paths': MLP,
  'in params': {'params': LINEAR},
  'in params, with paths': {'params': MLP},
  'flat map': hk.data_structures.to_immutable_dict(LINEAR),
}


@pytest.mark.parametrize('name', APPLIED)
def test_apply_points_at_the_conversion(name):
  for use in (nn.Dense(2).apply, lambda v, x: nn.Dense(2).bind(v)(x)):
    with pytest.raises(
      (errors.ScopeCollectionNotFound, errors.ScopeParamNotFoundError),
      match=r'interop.from_haiku.*weights_from_haiku.*\(haiku_state.errors',
    ):
      use(APPLIED[name], X)


OTHERS = {
  'other names': {'params': {'dense': {'kernel': X}}},
  'another collection': {'cache': {'dense': {'kernel': X}}},
  'a module of such a name': {'params': {'dense': {'b': {'kernel': X}}}},
  'variables of such names': {'stats': {'w': X, 'norm': {'mean': X}}},
  'nothing': {},
}


@pytest.mark.parametrize('name', OTHERS)
def test_apply_does_not_where_it_would_not_help(name):
  with pytest.raises(errors.FlaxError) as error:
    nn.Dense(2).apply(OTHERS[name], X)
  assert 'haiku(' not in str(error.value)


WRONG = {
  'variables to from_haiku': (
    lambda: interop.from_haiku(VARIABLES),
    r"the collections \['params'\].*`interop.to_haiku`",
  ),
  'nested variables': (
    lambda: interop.from_haiku({'params': {'a': {'kernel': X}}}),
    "takes Haiku's parameters, found variables",
  ),
  'a pair': (
    lambda: interop.from_haiku((LINEAR, {})),
    r'one by one, found a tuple.*from_haiku\(\*pair',
  ),
  'state first': (
    lambda: interop.from_haiku(STATE, LINEAR),
    'parameters first and the state second: "batch_stats:mean" of "norm"',
  ),
  'an array': (
    lambda: interop.from_haiku(X),
    'a dict of dicts by module and name; found an ArrayImpl',
  ),
  "Haiku's trees to to_haiku": (
    lambda: interop.to_haiku(MLP),
    r"Haiku's trees with the modules \['mlp/~/linear_0'\].*`interop.from_haiku`",
  ),
  'parameters alone': (
    lambda: interop.to_haiku(VARIABLES['params']),
    r"\['kernel', 'bias'\] are no dicts.*`{'params': params}`",
  ),
  'variables to weights_from_haiku': (
    lambda: interop.weights_from_haiku(VARIABLES, None, MAPPING),
    'found variables.*weights_to_haiku',
  ),
  'a pair to weights_from_haiku': (
    lambda: interop.weights_from_haiku((LINEAR, {}), None, MAPPING),
    'found a tuple',
  ),
  'a mapping to Haiku': (
    lambda: interop.weights_from_haiku(
      LINEAR, {}, {'Dense_0': layers.linear('linear')}
    ),
    r"`{'linear': layers.linear\('Dense_0'\)}`",
  ),
  "Haiku's trees to weights_to_haiku": (
    lambda: interop.weights_to_haiku(LINEAR, MAPPING),
    "takes variables, found Haiku's trees.*weights_from_haiku",
  ),
  'a target that is no pair': (
    lambda: interop.weights_to_haiku(VARIABLES, MAPPING, target=LINEAR),
    r'`target=\(params, state\)`',
  ),
  'state of a network': (
    lambda: interop.batch_norm_from_haiku({'norm/~/mean_ema': {}}),
    r"found \['norm/~/mean_ema'\].*`state\['batch_norm/~'\]`",
  ),
  'averages of a network': (
    lambda: interop.batch_norm_to_haiku({'batch_stats': {}}),
    r"found \['batch_stats'\].*BatchNorm_0",
  ),
  'a module as module': (
    lambda: interop.as_module(nn.Dense(2)),
    'Dense is a linen-style module already.*`as_transformed`',
  ),
  'a class as module': (
    lambda: interop.as_module(hk.Linear),
    r'found the class Linear.*hk.transform_with_state\(f\)',
  ),
  'a function as transformed': (
    lambda: interop.as_transformed(FUNCTION),
    'found a Transformed, which is a Haiku function already.*`as_module`',
  ),
  'a class as transformed': (
    lambda: interop.as_transformed(nn.Dense),
    r'found the class Dense. Write `as_transformed\(nn.Dense\(2\)\)`',
  ),
  'a function as multi-transformed': (
    lambda: interop.as_multi_transformed(FUNCTION, {}),
    'as_multi_transformed takes a linen-style module',
  ),
  'comparison': (
    lambda: interop.compare(nn.Dense(2), FUNCTION, MAPPING, [X]),
    'the Haiku function first.*found a Dense and a Transformed',
  ),
}


@pytest.mark.parametrize('name', WRONG)
def test_wrong_way_round(name):
  fn, words = WRONG[name]
  with pytest.raises((TypeError, interop.ConversionError), match=words):
    fn()
