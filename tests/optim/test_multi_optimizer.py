"""MultiOptimizer and focus."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax_names import needs_optax

from haiku_state import optim, serialization, traverse_util
from haiku_state.core.frozen_dict import freeze


def params():
  return {
    'a': {'kernel': jnp.ones((2, 2)), 'bias': jnp.ones(2)},
    'b': {'kernel': jnp.ones((2, 2)), 'bias': jnp.ones(2)},
  }


def by_name(word):
  return optim.ModelParamTraversal(lambda path, _: word in path)


def means(tree):
  return {
    '/'.join(path): round(float(jnp.mean(leaf)), 4)
    for path, leaf in traverse_util.flatten_dict(tree).items()
  }


def two():
  return optim.MultiOptimizer(
    (by_name('kernel'), optim.GradientDescent(0.1)),
    (by_name('a/bias'), optim.Momentum(0.5)),
  )


def test_each_leaf_by_its_own():
  result = two().create(params()).apply_gradient(params())
  assert means(result.target) == {
    'a/kernel': 0.9, 'a/bias': 0.5, 'b/kernel': 0.9, 'b/bias': 1.0,
  }  # fmt: skip


def test_one_step_and_states_by_leaf():
  optimizer = two().create(params()).apply_gradient(params())
  assert int(optimizer.state.step) == 1
  states = optimizer.state.param_states
  assert states['b'] == {'bias': None, 'kernel': ()}
  np.testing.assert_array_equal(states['a']['bias'].momentum, [1.0, 1.0])


def test_state_dict():
  state_dict = serialization.to_state_dict(two().create(params()))
  states = state_dict['state']['param_states']
  assert states['b'] == {'bias': None, 'kernel': {}}
  assert states['a']['bias'].keys() == {'momentum'}


def test_focus_leaves_the_rest_alone():
  optimizer = optim.Adam(0.1).create(params(), focus=by_name('kernel'))
  result = jax.jit(lambda o: o.apply_gradient(params()))(optimizer)
  assert means(result.target) == {
    'a/kernel': 0.9, 'a/bias': 1.0, 'b/kernel': 0.9, 'b/bias': 1.0,
  }  # fmt: skip
  assert isinstance(result.optimizer_def, optim.MultiOptimizer)
  assert result.state.param_states['a']['bias'] is None


def test_focus_of_a_frozen_target():
  optimizer = optim.Adam(0.1).create(freeze(params()), focus=by_name('kernel'))
  result = optimizer.apply_gradient(params())
  assert jax.tree.structure(result) == jax.tree.structure(optimizer)


def test_a_keyword_is_for_all():
  optimizer = two().create(params())
  result = optimizer.apply_gradient(params(), learning_rate=0.25)
  assert means(result.target) == {
    'a/kernel': 0.75, 'a/bias': 0.75, 'b/kernel': 0.75, 'b/bias': 1.0,
  }  # fmt: skip


def test_hyper_params_for_each():
  definition = two()
  assert isinstance(definition.hyper_params, list)
  first, second = definition.hyper_params
  result = jax.jit(
    lambda o, rate: o.apply_gradient(
      params(), hyper_params=[first.replace(learning_rate=rate), second]
    )
  )(definition.create(params()), 0.25)
  assert means(result.target) == {
    'a/kernel': 0.75, 'a/bias': 0.5, 'b/kernel': 0.75, 'b/bias': 1.0,
  }  # fmt: skip


def test_hyper_params_of_wrong_number():
  definition = two()
  optimizer = definition.create(params())
  with pytest.raises(ValueError):
    optimizer.apply_gradient(params(), hyper_params=definition.hyper_params[:1])
  with pytest.raises(ValueError, match='2 optimizers, but hyper_params for 1'):
    definition.apply_gradient(
      definition.hyper_params[:1], optimizer.target, optimizer.state, params()
    )


def test_two_for_one_leaf():
  definition = optim.MultiOptimizer(
    (by_name('kernel'), optim.Adam(0.1)), (by_name('a/'), optim.Adam(0.1))
  )
  with pytest.raises(ValueError) as error:
    definition.create(params())
  assert str(error.value) == (
    "Multiple optimizers match the same leaves : {'a': {'bias': [1], 'kernel':"
    " [0, 1]}, 'b': {'bias': [], 'kernel': [0]}}"
  )


def test_filters_by_shape():
  """In Flax they worked in create and failed in apply_gradient."""
  seen = set()

  def is_matrix(path, value):
    seen.add((path, value.shape, value.dtype.name, value.size))
    return value.ndim == 2 and len(value.shape) == 2

  optimizer = optim.Adam(0.1).create(
    params(), focus=optim.ModelParamTraversal(is_matrix)
  )
  result = optimizer.apply_gradient(params())
  assert means(result.target)['a/kernel'] == 0.9
  assert means(result.target)['a/bias'] == 1.0
  assert seen == {
    (f'/{layer}/{name}', shape, 'float32', size)
    for layer in 'ab'
    for name, shape, size in [('kernel', (2, 2), 4), ('bias', (2,), 2)]
  }


def test_traversals_of_other_trees():
  target = ({'w': jnp.ones(1)}, [jnp.ones(1), jnp.ones(1)])
  focus = traverse_util.t_identity[1].each()
  optimizer = optim.GradientDescent(0.5).create(target, focus=focus)
  result = optimizer.apply_gradient(target)
  assert [float(x[0]) for x in jax.tree.leaves(result.target)] == [1, 0.5, 0.5]


def test_a_traversal_of_more_than_leaves():
  focus = traverse_util.t_identity['a']
  with pytest.raises(
    ValueError, match=r'selects a dict: go on with \.tree\(\)'
  ):
    optim.Adam(0.1).create(params(), focus=focus)
  optimizer = optim.GradientDescent(0.5).create(params(), focus=focus.tree())
  result = optimizer.apply_gradient(params())
  assert means(result.target) == {
    'a/kernel': 0.5, 'a/bias': 0.5, 'b/kernel': 1.0, 'b/bias': 1.0,
  }  # fmt: skip


def test_optimizers_within_optimizers():
  inner = optim.MultiOptimizer(
    (traverse_util.t_identity[0], optim.GradientDescent(0.5))
  )
  definition = optim.MultiOptimizer(
    (by_name('kernel'), inner),
    (by_name('bias'), optim.WeightNorm(optim.GradientDescent(0.25))),
  )
  optimizer = definition.create(params()).apply_gradient(params())
  result = optimizer.apply_gradient(params(), learning_rate=0.0)
  # Of the kernels, the inner traversal selects the first.
  assert means(result.target) == {
    'a/kernel': 0.5, 'a/bias': 0.75, 'b/kernel': 1.0, 'b/bias': 0.75,
  }  # fmt: skip


def test_same_definitions_made_anew():
  kernels, biases = by_name('kernel'), by_name('bias')

  def make():
    return optim.MultiOptimizer(
      (kernels, optim.Adam(0.1)), (biases, optim.Adam(0.2))
    )

  assert make() == make()
  assert make() != optim.MultiOptimizer((kernels, optim.Adam(0.1)))


@needs_optax('0.2.4')
def test_like_optax_partition():
  """Under another name: the leaves that nobody selects are set to zero."""
  labels = {
    'a': {'kernel': 'k', 'bias': 'b'}, 'b': {'kernel': 'k', 'bias': 'none'},
  }  # fmt: skip
  transformation = optax.partition(
    {
      'k': optax.sgd(0.1),
      'b': optax.sgd(0.5, momentum=0.9),
      'none': optax.set_to_zero(),
    },
    labels,
  )
  target, state = params(), transformation.init(params())
  optimizer = two().create(params())
  for _ in range(3):
    updates, state = transformation.update(params(), state, target)
    target = optax.apply_updates(target, updates)
    optimizer = optimizer.apply_gradient(params())
  assert means(target) == means(optimizer.target)
