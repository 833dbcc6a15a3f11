"""An iterator that fetches its next items in a background thread."""

import threading
import warnings


class PrefetchIterator:
  """Wraps an iterator so that its next items are made while you compute.

  Deprecated, as in Flax: `tf.data` and other loaders prefetch by themselves.

  Items come in their order. An exception of the wrapped iterator is raised
  after the items that came before it.

  Args:
    data_iter: the iterator to read from; only the background thread reads it.
    buffer_size: how many items wait ready at most.

  Example:
    >>> import warnings
    >>> from haiku_state.training import prefetch_iterator
    >>> with warnings.catch_warnings():
    ...   warnings.simplefilter('ignore', DeprecationWarning)
    ...   batches = prefetch_iterator.PrefetchIterator(iter([1, 2, 3]))
    >>> list(batches)
    [1, 2, 3]
  """

  def __init__(self, data_iter, buffer_size=1):
    warnings.warn(
      'PrefetchIterator is deprecated. Use the standard `tf.data`'
      ' prefetch method instead',
      DeprecationWarning,
      stacklevel=2,
    )
    self.buffer_size = buffer_size
    self._data_iter = data_iter
    self._buffer = []
    self._error = None
    self._active = True
    self._cond = threading.Condition()
    # Started last: it reads all of the above.
    self._thread = threading.Thread(target=self._fill, daemon=True)
    self._thread.start()

  def __iter__(self):
    return self

  def __next__(self):
    with self._cond:
      self._cond.wait_for(lambda: self._buffer or not self._active)
      if self._buffer:
        item = self._buffer.pop(0)
        self._cond.notify_all()
        return item
      raise StopIteration if self._error is None else self._error

  def close(self):
    """Stops the background thread; items that wait can still be taken."""
    with self._cond:
      self._active = False
      self._cond.notify_all()

  def _fill(self):
    try:
      while self._put(next(self._data_iter)):
        pass
    except Exception as error:  # StopIteration, too, ends in __next__.
      with self._cond:
        self._error = error
        self._active = False
        self._cond.notify_all()

  def _put(self, item):
    """Adds an item, waits for room, and says whether to go on."""
    with self._cond:
      self._buffer.append(item)
      self._cond.notify_all()
      self._cond.wait_for(
        lambda: len(self._buffer) < self.buffer_size or not self._active
      )
      return self._active
