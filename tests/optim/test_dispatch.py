"""What a step costs that is compiled: its arguments are taken apart, its results made.

By counts of Python's calls: JAX walks containers and states by its own code, and
a state is one object for each parameter, as in Flax.
"""

import jax
import jax.numpy as jnp
import pytest
from counted import calls

from haiku_state import optim
from haiku_state.core import freeze

pytestmark = pytest.mark.skipif(
  jax.__version_info__ < (0, 5), reason='this jax walks dataclasses in Python'
)

STATES = {'GradientDescent': 0, 'Momentum': 1, 'Adam': 1}
each = pytest.mark.parametrize('name', STATES)


def an_optimizer(name, layers, frozen):
  params = {
    f'layer_{i}': {'bias': jnp.zeros(()), 'kernel': jnp.ones(())}
    for i in range(layers)
  }
  definition = getattr(optim, name)(0.1)
  return definition.create(freeze(params) if frozen else params)


def per_parameter(count):
  """Returns the calls that 40 parameters need and 20 do not, for one of them."""
  few, many = count(10), count(20)
  return {k: (many[k] - few[k]) / 20 for k in many if many[k] != few[k]}


@each
@pytest.mark.parametrize('frozen', [False, True])
def test_is_taken_apart_without_a_call_for_each_parameter(name, frozen):
  def count(layers):
    optimizer = an_optimizer(name, layers, frozen)
    return calls(lambda: jax.tree.flatten(optimizer))

  assert per_parameter(count) == {}


@each
@pytest.mark.parametrize('frozen', [False, True])
def test_is_made_by_one_call_for_each_state(name, frozen):
  def count(layers):
    leaves, treedef = jax.tree.flatten(an_optimizer(name, layers, frozen))
    return calls(lambda: treedef.unflatten(leaves))

  wanted = {'__init__': 1.0} if STATES[name] else {}
  assert per_parameter(count) == wanted


@each
@pytest.mark.parametrize('frozen', [False, True])
def test_a_compiled_step_makes_no_other_calls(name, frozen):
  step = jax.jit(lambda optimizer, grads: optimizer.apply_gradient(grads))

  def count(layers):
    optimizer = an_optimizer(name, layers, frozen)
    grads = jax.tree.map(jnp.ones_like, optimizer.target)
    optimizer = step(step(optimizer, grads), grads)
    return calls(lambda: step(optimizer, grads))

  wanted = {'__init__': 1.0} if STATES[name] else {}
  assert per_parameter(count) == wanted


@each
def test_has_the_paths_of_states_by_parameter(name):
  optimizer = an_optimizer(name, 1, False)
  paths = [
    jax.tree_util.keystr(path)
    for path, _ in jax.tree_util.tree_flatten_with_path(optimizer.state)[0]
  ]
  fields = {'Momentum': ['momentum'], 'Adam': ['grad_ema', 'grad_sq_ema']}
  assert paths == ['.step'] + [
    f".param_states['layer_0']['{kind}'].{field}"
    for kind in ('bias', 'kernel')
    for field in fields.get(name, [])
  ]
