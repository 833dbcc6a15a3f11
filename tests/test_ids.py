"""Ids: never twice, not by copies, not by threads."""

import copy
import threading

from haiku_state.ids import FlaxId, UUIDManager, uuid


def test_ids_differ():
  assert len({uuid() for _ in range(100)}) == 100


def test_an_id_equals_itself_alone():
  a = uuid()
  assert a == FlaxId(a.id) and hash(a) == hash(FlaxId(a.id))
  assert a != a.id
  assert repr(FlaxId(3)) == 'FlaxId(3)'


def test_copies_are_new():
  a = uuid()
  deep = copy.deepcopy([a, a])
  assert len({a, copy.copy(a), *deep}) == 4 - (deep[0] == deep[1])
  assert a not in deep


def test_managers_count_apart():
  assert UUIDManager()() == UUIDManager()() == FlaxId(1)


def test_threads():
  manager, seen = UUIDManager(), []
  draw = lambda: seen.extend(manager() for _ in range(500))
  threads = [threading.Thread(target=draw) for _ in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(set(seen)) == 2000
