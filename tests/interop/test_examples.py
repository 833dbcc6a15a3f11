"""The converted models in `examples/`: outputs, gradients, and back."""

import importlib.util
import pathlib

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haiku_state import interop

EXAMPLES = pathlib.Path(__file__).parents[2] / 'examples'
KEY = jax.random.PRNGKey(0)


@pytest.fixture(autouse=True)
def folder_of_programs(monkeypatch):
  """Has programs find what they share, as when they are run."""
  monkeypatch.syspath_prepend(EXAMPLES)


def load(name):
  spec = importlib.util.spec_from_file_location(name, EXAMPLES / f'{name}.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def shaken(tree):
  """Returns weights none of which is as it was initialized."""
  keys = iter(jax.random.split(KEY, len(jax.tree.leaves(tree))))
  return jax.tree.map(
    lambda x: x + 0.1 * jax.random.normal(next(keys), x.shape), tree
  )


def check(f, weights, module, mapping, x, train_name, linen_kwargs):
  """Holds outputs and gradients of both together, and the way back."""
  for train in (True, False):
    result = interop.compare(
      f,
      module,
      mapping,
      [x],
      weights=weights,
      rng=KEY,
      haiku_kwargs={train_name: train},
      linen_kwargs={linen_kwargs: train},
    )
    assert result.rows[-1].output is not None
    assert result.equal, str(result)
  variables, _ = interop.weights_from_haiku(*weights, mapping)
  shapes = jax.eval_shape(lambda: module.init(KEY, x, **{linen_kwargs: True}))
  assert jax.tree.map(jnp.shape, variables) == jax.tree.map(
    jnp.shape, dict(shapes)
  )
  params, state, _ = interop.weights_to_haiku(
    variables, mapping, target=weights
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, 1e-6, 1e-6),
    params,
    jax.tree.map(lambda x: x, weights[0]),
  )
  before, _ = f.apply(*weights, KEY, x, **{train_name: False})
  after, _ = f.apply(params, state, KEY, x, **{train_name: False})
  np.testing.assert_allclose(before, after, 1e-5, 1e-5)


def test_resnet():
  resnet = load('resnet')
  blocks, channels = (2, 1, 0, 0), (8, 8, 8, 8)
  f = hk.transform_with_state(
    lambda x, is_training: hk.nets.ResNet(
      blocks, 3, channels_per_group=channels
    )(x, is_training)
  )
  x = jax.random.normal(KEY, (2, 32, 32, 3))
  params, state = jax.jit(f.init, static_argnums=2)(KEY, x, True)
  _, state = jax.jit(f.apply, static_argnums=4)(
    params, state, None, 2 * x, True
  )
  check(
    f,
    (shaken(params), state),
    resnet.ResNet(blocks, 3, channels),
    resnet.mapping(blocks, root='res_net'),
    x,
    'is_training',
    'train',
  )


def test_resnet50_has_a_place_for_every_weight():
  resnet = load('resnet')
  f = hk.transform_with_state(lambda x: hk.nets.ResNet50(10)(x, True))
  module = resnet.ResNet(resnet.RESNET50, 10)
  x = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  weights = jax.eval_shape(f.init, KEY, x)
  target = jax.eval_shape(lambda x: module.init(KEY, x, train=True), x)
  mapping = resnet.mapping(resnet.RESNET50)
  variables, report = interop.weights_from_haiku(
    *weights, mapping, target=target
  )
  assert len(report.rows) == 107
  assert len(jax.tree.leaves(variables)) == 53 + 4 * 53 + 2
  params, state, _ = interop.weights_to_haiku(
    variables, mapping, target=weights
  )
  assert jax.tree.map(jnp.shape, (params, state)) == jax.tree.map(
    jnp.shape, tuple(map(dict, weights))
  )


def test_transformer():
  transformer = load('transformer')
  config = transformer.Config(11, 8, 2, 12, depth=1)
  f = hk.with_empty_state(
    hk.transform(lambda x, train: transformer.haiku_encoder(x, config, train))
  )
  x = jnp.arange(14).reshape(2, 7) % 11
  params, state = f.init(KEY, x, True)
  check(
    f,
    (shaken(params), state),
    transformer.Encoder(config),
    transformer.mapping(config),
    x,
    'train',
    'train',
  )


def test_lstm():
  lstm = load('lstm')
  f = hk.with_empty_state(
    hk.transform(lambda x, train: lstm.haiku_model(x, 5, 2, 0.0, train))
  )
  x = jax.random.normal(KEY, (2, 6, 3))
  params, state = f.init(KEY, x, True)
  check(
    f,
    (shaken(params), state),
    lstm.SequenceModel(5, 2),
    lstm.MAPPING,
    x,
    'train',
    'train',
  )
