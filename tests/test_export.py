"""Programs over trees of this package are saved by `jax.export`, and run."""

import collections
import functools
import subprocess
import sys
import textwrap
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimizer_table
import pytest

from haiku_state import export, interop, optim, struct
from haiku_state import linen as nn
from haiku_state.core import FrozenDict, meta
from haiku_state.training.dynamic_scale import DynamicScale
from haiku_state.training.train_state import TrainState
from haiku_state.typing import PytreeDeque

pytest.importorskip('flatbuffers')

KEY = jax.random.PRNGKey(0)
X = jnp.arange(6.0).reshape(2, 3)


class Model(nn.Module):
  @nn.compact
  def __call__(self, x, train=True):
    kernel_init = nn.with_partitioning(nn.initializers.ones, ('in', None))
    x = nn.Dense(3, kernel_init=kernel_init)(x)
    self.sow('intermediates', 'x', x)
    x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(x)
    return nn.Dropout(0.5, deterministic=not train)(x)


VARIABLES = Model().init(KEY, X)
PARAMS = VARIABLES['params']
RNGS = {'dropout': jax.random.PRNGKey(1)}


def there_and_back(fn, *args):
  """Returns a function as a program that was saved and loaded."""
  saved = jax.export.export(jax.jit(fn))(*args).serialize()
  return jax.export.deserialize(saved).call


def assert_same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


# --- Functions of modules ----------------------------------------------------


def evaluate(variables, x):
  return Model().apply(variables, x, train=False)


def train(variables, x):
  return Model().apply(variables, x, rngs=RNGS, mutable=['batch_stats'])


def observe(variables, x):
  return Model().apply(variables, x, rngs=RNGS, mutable=True)


def as_haiku(variables, x):
  f = interop.as_transformed(Model(), streams=('params', 'dropout'))
  params, state = interop.to_haiku(variables, 'model')
  return f.apply(params, state, KEY, x)


FUNCTIONS = [evaluate, train, observe, as_haiku]
CONTAINERS = {'frozen': FrozenDict, 'dict': lambda x: FrozenDict(x).unfreeze()}


@pytest.mark.parametrize('container', CONTAINERS)
@pytest.mark.parametrize('fn', FUNCTIONS)
def test_functions_of_modules(fn, container):
  variables = CONTAINERS[container](VARIABLES)
  assert_same(
    there_and_back(fn, variables, X)(variables, X), jax.jit(fn)(variables, X)
  )


@pytest.mark.parametrize('fn', FUNCTIONS)
def test_batches_of_any_size(fn):
  (batch,) = jax.export.symbolic_shape('batch')
  shape = jax.ShapeDtypeStruct((batch, 3), jnp.float32)
  call = there_and_back(fn, VARIABLES, shape)
  for n in (1, 5):
    x = jnp.arange(3.0 * n).reshape(n, 3)
    out, want = call(VARIABLES, x), jax.jit(fn)(VARIABLES, x)
    assert jax.tree.structure(out) == jax.tree.structure(want)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, 1e-5, 1e-5), out, want
    )


def test_init():
  call = there_and_back(Model().init, KEY, X)
  assert_same(call(KEY, X), jax.jit(Model().init)(KEY, X))


# --- Trees -------------------------------------------------------------------


class Config(NamedTuple):
  rate: float
  name: str = 'a'


def train_state():
  tx = optax.chain(optax.clip(1.0), optax.adam(optax.constant_schedule(0.1)))
  return TrainState.create(apply_fn=Model().apply, params=PARAMS, tx=tx)


def optimizer(name):
  def make():
    params = FrozenDict({'w': jnp.ones((2, 3)), 'b': jnp.zeros(3)})
    return optimizer_table.ROWS[name].make().create(params)

  return make


TREES = {
  'FrozenDict': lambda: FrozenDict({'b': {'c': X}, 'a': 1.0}),
  'numbers as names': lambda: FrozenDict({2: X, 1: {'a': X}}),
  'Partitioned': lambda: VARIABLES,
  'LogicallyPartitioned': lambda: nn.LogicallyPartitioned(
    X, ('a', ('b', None)), rules=(('a', 'data'),)
  ),
  'other box': lambda: meta.Partitioned(X, (meta.Partitioned,)),
  'train state': train_state,
  'dynamic scale': DynamicScale,
  'deque': lambda: PytreeDeque([X, X]),
  'traversal': lambda: optim.MultiOptimizer(
    (optim.ModelParamTraversal(lambda path, x: 'w' in path), optim.Adam(0.1))
  ).create({'w': X}),
  'weight norm': lambda: optim.WeightNorm(optim.Momentum(0.1)).create({'w': X}),
  **{name: optimizer(name) for name in optimizer_table.ROWS},
}


@pytest.mark.parametrize('name', TREES)
def test_trees(name):
  tree = TREES[name]()
  if name == 'train state':
    export.register(tree)  # optax's states are not ours.

  def double(tree):
    return jax.tree.map(lambda x: 2 * x, tree)

  call = there_and_back(double, tree)
  out = call(tree)
  assert_same(out, double(tree))
  assert_same(call(out), double(double(tree)))
  assert type(out) is type(tree)


def test_static_data_comes_back_and_the_rest_is_named():
  state = train_state()
  export.register(state)
  call = there_and_back(lambda s: s.apply_gradients(grads=s.params), state)
  new = call(state)
  assert int(new.step) == 1
  for use in (
    lambda: new.apply_fn(VARIABLES, X),
    lambda: new.tx.update(PARAMS, new.opt_state),
    lambda: new.apply_gradients(grads=PARAMS),
  ):
    with pytest.raises(
      (TypeError, AttributeError), match='replace.apply_fn=model.apply'
    ):
      use()
  again = new.replace(apply_fn=state.apply_fn, tx=state.tx)
  assert int(again.apply_gradients(grads=PARAMS).step) == 2
  assert_same(call(new).params, call(again).params)


@struct.dataclass
class Holder:
  x: Any
  static: Any = struct.field(pytree_node=False, default=None)
  y: Any = 1.0


def by_ten(x):
  return 10 * x


STATIC = {
  'none': (None, 0),
  'number': (3, 4),
  'float': (0.1, 0.2),
  'not a number of another type': (1, 1.5),
  # JAX compares it with all of these, and NumPy a dtype with its name, 'a' say.
  'text': ('one', 'two'),
  'scalar': (np.float32(0.1), np.float32(0.2)),
  'tuple': ((1, ('a', None)), (1, ('b', None))),
  'list': ([1, 2], [1]),
  'dict': ({'a': (1,)}, {'a': (2,)}),
  'spec': (jax.sharding.PartitionSpec('a'), jax.sharding.PartitionSpec()),
  'dtype': (jnp.dtype('bfloat16'), jnp.dtype('float32')),
  'scalar type': (np.float32, np.int32),
  'scalar type of JAX': (jnp.bfloat16, jnp.int32),
  'class': (Holder, TrainState),
  'function': (by_ten, np.tanh),
  'partial': (functools.partial(by_ten, x=1), functools.partial(by_ten, x=2)),
  'method': (Model().apply, Model().init),
  'function in data': ((1, by_ten), (2, by_ten)),
  'NamedTuple': (Config(0.1), Config(0.2)),
  'frozen dataclass': (Holder(1.0, 'a'), Holder(1.0, 'b')),
  'optax': (optax.adam(0.1), optax.identity()),
}
# Those that are data, and come back as they are.
DATA = list(STATIC)[:13]


@pytest.mark.parametrize('name', STATIC)
def test_static_parts(name):
  # JAX compares what is static with what it has seen, which it must not have: a
  # scalar of NumPy is compared with each item of a list.
  jax.clear_caches()
  export.register(Holder)
  static, other = STATIC[name]
  tree = Holder(X, static)
  call = there_and_back(lambda tree: tree.replace(x=2 * tree.x), tree)
  out = call(tree)
  np.testing.assert_array_equal(out.x, 2 * X)
  assert out.static == static and static == out.static
  if name in DATA:
    assert not isinstance(out.static, export.NotSaved)
  elif name != 'function in data':
    assert isinstance(out.static, export.NotSaved)
  call(out)
  assert out.static != other
  with pytest.raises(ValueError, match='pytree|tree'):
    call(Holder(X, other))


def test_classes_that_are_defined_again():
  def define(value):
    @struct.dataclass
    class Again:
      x: Any
      n: int = struct.field(pytree_node=False, default=value)

    return Again

  for value in (1, 2):
    cls = define(value)
    export.register(cls)
    export.register(cls)  # Again, which changes nothing.
    tree = cls(X)
    out = there_and_back(lambda t: t, tree)(tree)
    assert type(out) is cls and out.n == value


def test_who_has_registered_a_type_keeps_it():
  Pair = collections.namedtuple('Pair', 'a b')
  jax.export.register_namedtuple_serialization(Pair, serialized_name='pair')
  export.register(Pair)
  tree = Pair(X, X)
  assert_same(there_and_back(lambda t: t, tree)(tree), tree)


def test_what_is_no_node():
  class Plain:
    pass

  with pytest.raises(TypeError, match='Plain is no pytree node.*struct.data'):
    export.register(Plain)


def test_a_program_is_loaded_elsewhere(tmp_path):
  (batch,) = jax.export.symbolic_shape('b')
  shape = jax.ShapeDtypeStruct((batch, 3), jnp.float32)
  saved = jax.export.export(jax.jit(train))(VARIABLES, shape)
  (tmp_path / 'program').write_bytes(saved.serialize())
  program = f"""
    import pathlib
    import jax
    import jax.numpy as jnp
    from haiku_state.core import FrozenDict, meta

    saved = pathlib.Path({str(tmp_path)!r}, 'program').read_bytes()
    kernel = meta.Partitioned(jnp.ones((3, 3)), ('in', None))
    three = {{'bias': jnp.ones(3)}}
    variables = FrozenDict({{
      'params': {{
        'Dense_0': {{**three, 'kernel': kernel}},
        'BatchNorm_0': {{**three, 'scale': jnp.ones(3)}},
      }},
      'batch_stats': {{
        'BatchNorm_0': {{'mean': jnp.ones(3), 'var': jnp.ones(3)}},
      }},
    }})
    y, new = jax.export.deserialize(bytearray(saved)).call(
      variables, jnp.ones((4, 3))
    )
    assert y.shape == (4, 3)
    assert isinstance(new, FrozenDict) and list(new) == ['batch_stats']
  """
  subprocess.run([sys.executable, '-c', textwrap.dedent(program)], check=True)
