import inspect
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from haiku_state import serialization
from haiku_state.core.frozen_dict import FrozenDict, freeze
from haiku_state.training import train_state
from haiku_state.training.train_state import TrainState

OWG = '_overwrite_with_gradient'


def _params():
  return {'a': {'w': jnp.arange(3.0), 'b': jnp.ones(())}, 'c': [jnp.ones(2)]}


def _state(params, tx=None):
  tx = tx or optax.sgd(0.5, momentum=0.9)
  return TrainState.create(apply_fn=None, params=params, tx=tx)


def _assert_equal(x, y):
  assert jax.tree.structure(x) == jax.tree.structure(y)
  jax.tree.map(np.testing.assert_array_equal, x, y)


# Transformations that look at parameters, at paths, and at types of nodes.
_OPTIMIZERS = {
  'sgd': lambda: optax.sgd(0.1),
  'adamw': lambda: optax.adamw(0.1, mask=lambda p: jax.tree.map(jnp.ndim, p)),
  'chain': lambda: optax.chain(optax.clip(0.5), optax.adam(0.1)),
  'masked': lambda: optax.masked(
    optax.sgd(0.1), lambda p: jax.tree.map(lambda x: x.ndim > 0, p)
  ),
}


@pytest.mark.parametrize('tx', _OPTIMIZERS)
@pytest.mark.parametrize('jit', [False, True])
def test_steps_are_those_of_flax(tx, jit):
  theirs = pytest.importorskip('flax.training.train_state')
  tx = _OPTIMIZERS[tx]()

  def train(cls):
    state = cls.create(apply_fn=None, params=_params(), tx=tx)

    def step(state):
      grads = jax.tree.map(lambda x: x - 2, state.params)
      return state.apply_gradients(grads=grads)

    for _ in range(3):
      state = (jax.jit(step) if jit else step)(state)
    return state

  ours, theirs = train(TrainState), train(theirs.TrainState)
  assert int(ours.step) == 3
  _assert_equal(ours.params, theirs.params)
  _assert_equal(ours.opt_state, theirs.opt_state)


@pytest.mark.parametrize('tx', _OPTIMIZERS)
@pytest.mark.parametrize('freeze_params', [False, True])
@pytest.mark.parametrize('freeze_grads', [False, True])
def test_either_container(tx, freeze_params, freeze_grads):
  tx = _OPTIMIZERS[tx]()
  grads = jax.tree.map(jnp.ones_like, _params())
  expected = _state(_params(), tx).apply_gradients(grads=grads)

  params = freeze(_params()) if freeze_params else _params()
  state = _state(params, tx)
  new = state.apply_gradients(grads=freeze(grads) if freeze_grads else grads)
  assert jax.tree.structure(new) == jax.tree.structure(
    state.replace(step=new.step)
  )
  for x, y in zip(jax.tree.leaves(new), jax.tree.leaves(expected)):
    np.testing.assert_array_equal(x, y)


def test_containers_within():
  params = {'a': freeze({'w': jnp.ones(2)}), 'b': ({'w': jnp.ones(1)},)}
  grads = freeze({'a': {'w': jnp.ones(2)}, 'b': (freeze({'w': jnp.ones(1)}),)})
  new = _state(params).apply_gradients(grads=grads)
  assert jax.tree.structure(new.params) == jax.tree.structure(params)
  np.testing.assert_array_equal(new.params['b'][0]['w'], [0.5])


def test_gradients_of_other_names_are_refused():
  with pytest.raises(ValueError):
    _state({'a': jnp.ones(1)}).apply_gradients(grads={'b': jnp.ones(1)})


@pytest.mark.parametrize('make', [dict, freeze])
def test_overwrite_with_gradient(make):
  params = make({'params': {'w': jnp.ones(2)}, OWG: {'scale': jnp.zeros(1)}})
  state = _state(params)
  # The optimizer knows nothing of them.
  assert len(jax.tree.leaves(state.opt_state)) == 1
  grads = {'params': {'w': jnp.ones(2)}, OWG: {'scale': jnp.full(1, 7.0)}}
  for given in (grads, freeze(grads)):
    new = state.apply_gradients(grads=given)
    np.testing.assert_array_equal(new.params['params']['w'], [0.5, 0.5])
    np.testing.assert_array_equal(new.params[OWG]['scale'], [7])
    assert jax.tree.structure(new.params) == jax.tree.structure(params)


def test_overwrite_with_gradient_is_the_name_of_fp8_ops():
  fp8_ops = pytest.importorskip('haiku_state.linen.fp8_ops')
  assert train_state.OVERWRITE_WITH_GRADIENT == fp8_ops.OVERWRITE_WITH_GRADIENT


def test_an_array_is_enough():
  state = _state(jnp.ones(2)).apply_gradients(grads=jnp.ones(2))
  np.testing.assert_array_equal(state.params, [0.5, 0.5])
  assert state.step == 1


def test_derived_class():
  class WithStats(TrainState):
    batch_stats: FrozenDict

  state = WithStats.create(
    apply_fn=len, params=_params(), tx=optax.sgd(1.0), batch_stats=freeze({})
  )
  grads = jax.tree.map(jnp.ones_like, _params())
  new = state.apply_gradients(grads=grads, batch_stats=freeze({'mean': 1}))
  assert isinstance(new, WithStats)
  assert new.batch_stats == {'mean': 1} and state.batch_stats == {}
  assert new.apply_fn is len and new.step == 1 and state.step == 0


def test_functions_are_no_leaves():
  state = TrainState.create(
    apply_fn=len, params={'w': jnp.ones(1)}, tx=optax.sgd(1.0)
  )
  assert len(jax.tree.leaves(state)) == 2
  assert set(serialization.to_state_dict(state)) == {
    'step',
    'params',
    'opt_state',
  }


def test_bytes_there_and_back():
  state = _state(freeze(_params()))
  state = state.apply_gradients(grads=state.params)
  data = serialization.to_bytes(state)
  restored = serialization.from_bytes(_state(freeze(_params())), data)
  for x, y in zip(jax.tree.leaves(restored), jax.tree.leaves(state)):
    np.testing.assert_array_equal(x, y)


def test_pickle():
  state = _state(_params()).replace(tx=None)
  _assert_equal(pickle.loads(pickle.dumps(state)), state)


def test_scan_over_steps():
  def step(state, grad):
    return state.apply_gradients(grads={'w': grad}), state.step

  state = _state(freeze({'w': jnp.zeros(2)})).replace(step=jnp.zeros((), int))
  state, steps = jax.lax.scan(step, state, jnp.ones((4, 2)))
  assert steps.tolist() == [0, 1, 2, 3] and int(state.step) == 4


def test_fields_and_signatures_are_flax():
  theirs = pytest.importorskip('flax.training.train_state').TrainState
  fields = list(theirs.__dataclass_fields__)
  assert list(TrainState.__dataclass_fields__) == fields
  for name in ('create', 'apply_gradients'):
    ours, flaxs = (
      [
        (p.name, p.kind, p.default)  # Ours have types as well.
        for p in inspect.signature(getattr(cls, name)).parameters.values()
      ]
      for cls in (TrainState, theirs)
    )
    assert ours == flaxs
