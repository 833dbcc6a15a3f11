import threading
import time

import pytest

from haiku_state.training.prefetch_iterator import PrefetchIterator


def test_warns():
  with pytest.warns(DeprecationWarning, match='`tf.data` prefetch method'):
    PrefetchIterator(iter([]))


@pytest.mark.parametrize('buffer_size', [1, 2, 10])
def test_items_in_order(buffer_size):
  iterator = PrefetchIterator(iter(range(5)), buffer_size)
  assert iter(iterator) is iterator
  assert list(iterator) == list(range(5))
  with pytest.raises(StopIteration):
    next(iterator)


@pytest.mark.parametrize('buffer_size', [1, 3])
def test_reads_ahead_and_not_further(buffer_size):
  made = []
  reached = threading.Event()

  def source():
    for i in range(10):
      made.append(i)
      if i == buffer_size - 1:
        reached.set()
      yield i

  iterator = PrefetchIterator(source(), buffer_size)
  assert reached.wait(10)
  time.sleep(0.05)
  assert len(made) == buffer_size
  assert next(iterator) == 0
  iterator.close()


def test_error_comes_after_the_items_before_it():
  def source():
    yield 1
    yield 2
    raise KeyError('lost')

  iterator = PrefetchIterator(source(), 5)
  assert [next(iterator), next(iterator)] == [1, 2]
  for _ in range(2):
    with pytest.raises(KeyError, match='lost'):
      next(iterator)


def test_error_at_once():
  class Broken:
    def __next__(self):
      raise OSError('broken')

  with pytest.raises(OSError, match='broken'):
    next(PrefetchIterator(Broken()))


def test_close_ends_the_thread_and_leaves_what_waits():
  iterator = PrefetchIterator(iter(range(10)), 2)
  assert next(iterator) == 0
  iterator.close()
  iterator._thread.join(10)
  assert not iterator._thread.is_alive()
  rest = list(iterator)
  assert rest == list(range(1, 1 + len(rest))) and len(rest) <= 2
