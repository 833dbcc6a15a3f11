"""A rule for when training no longer pays."""

import math

from haiku_state import struct


class EarlyStopping(struct.PyTreeNode):
  """Says when a metric that should fall has stopped falling.

  The state is immutable: `update` returns the next one.

  Args:
    min_delta: a fall by no more than this does not count as improvement.
    patience: how many updates in a row may pass without improvement; the one
      after them sets `should_stop`.
    best_metric: the best metric so far.
    patience_count: updates since the last improvement.
    should_stop: whether to stop. Once true it stays true until `reset`, even
      if the metric improves again.
    has_improved: whether the last update was an improvement.

  Example:
    >>> from haiku_state.training.early_stopping import EarlyStopping
    >>> early_stop = EarlyStopping(min_delta=1e-3, patience=2)
    >>> for epoch, loss in enumerate([4, 3, 3, 3, 2, 2, 2, 2, 1, 1]):
    ...   early_stop = early_stop.update(loss)
    ...   if early_stop.should_stop:
    ...     print('stop after epoch', epoch)
    ...     break
    stop after epoch 7
  """

  min_delta: float = 0
  patience: int = 0
  best_metric: float = float('inf')
  patience_count: int = 0
  should_stop: bool = False
  has_improved: bool = False

  def reset(self) -> 'EarlyStopping':
    """Returns the state before the first update, with the same settings."""
    return self.replace(
      best_metric=float('inf'),
      patience_count=0,
      should_stop=False,
      has_improved=False,
    )

  def update(self, metric: float) -> 'EarlyStopping':
    """Returns the state after one more metric.

    Args:
      metric: the new value; less is better.

    Returns:
      The next state, with `has_improved` and `should_stop` set.
    """
    improvement = self.best_metric - metric
    # Of an infinite best metric (none yet) anything is an improvement.
    if math.isinf(self.best_metric) or improvement > self.min_delta:
      return self.replace(
        best_metric=metric, patience_count=0, has_improved=True
      )
    return self.replace(
      patience_count=self.patience_count + 1,
      should_stop=self.patience_count >= self.patience or self.should_stop,
      has_improved=False,
    )
