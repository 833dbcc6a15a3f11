import dataclasses

import jax
import pytest

from haiku_state.training.early_stopping import EarlyStopping

# (settings, metrics, after which update to stop or None, which improve)
_RUNS = [
  ({}, [3, 2, 1], None, [1, 1, 1]),
  ({}, [3, 3], 1, [1, 0]),
  ({'patience': 2}, [3, 3, 3, 3], 3, [1, 0, 0, 0]),
  ({'patience': 2}, [3, 3, 3, 2, 3, 3, 3], 6, [1, 0, 0, 1, 0, 0, 0]),
  ({'min_delta': 1}, [3, 2, 1.9], 1, [1, 0, 1]),
  ({'patience': 1, 'min_delta': 0.5}, [3, 2.6, 2.4], None, [1, 0, 1]),
  ({'best_metric': 1.0}, [2], 0, [0]),
]


@pytest.mark.parametrize('settings, metrics, stop, improve', _RUNS)
def test_run(settings, metrics, stop, improve):
  state = EarlyStopping(**settings)
  stops = []
  for metric, improves in zip(metrics, improve):
    state = state.update(metric)
    assert state.has_improved == bool(improves)
    stops.append(state.should_stop)
  assert stops.index(True) == stop if stop is not None else not any(stops)


@pytest.mark.parametrize('settings, metrics, stop, improve', _RUNS)
def test_run_is_that_of_flax(settings, metrics, stop, improve):
  flax = pytest.importorskip('flax.training.early_stopping')
  ours, theirs = EarlyStopping(**settings), flax.EarlyStopping(**settings)
  for metric in [*metrics, *metrics]:
    ours, theirs = ours.update(metric), theirs.update(metric)
    assert dataclasses.asdict(ours) == dataclasses.asdict(theirs)


def test_once_stopped_is_stopped_until_reset():
  state = EarlyStopping(min_delta=0.25).update(3).update(3).update(1)
  assert state.should_stop and state.has_improved
  assert state.reset() == EarlyStopping(min_delta=0.25)


def test_fields_are_flax():
  flax = pytest.importorskip('flax.training.early_stopping')
  assert dataclasses.asdict(EarlyStopping()) == dataclasses.asdict(
    flax.EarlyStopping()
  )
  ours = jax.tree.structure(EarlyStopping()).num_leaves
  assert ours == jax.tree.structure(flax.EarlyStopping()).num_leaves
