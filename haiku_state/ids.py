"""Ids that are never used twice, not even by a copy.

Modules and variables are shared by reference, and lifted transforms and
adoption have to know which are the same. Python's own `id` will not do, as it
is used again once its object is gone.
"""

import itertools


class UUIDManager:
  """Gives out ids, each one once, to all threads.

  Example:
    >>> from haiku_state.ids import uuid
    >>> uuid() == uuid()
    False
  """

  def __init__(self):
    # Python counts at once: no lock that a fork could leave locked is needed.
    self._next = itertools.count(1).__next__

  def __call__(self):
    return FlaxId(self._next())


uuid = UUIDManager()


class FlaxId:
  """An id. A copy of it is a new id, as the object copied is a new one.

  Args:
    rawid: a number.

  Example:
    >>> import copy
    >>> from haiku_state.ids import uuid
    >>> a = uuid()
    >>> a == a, copy.copy(a) == a, copy.deepcopy(a) == a
    (True, False, False)
  """

  def __init__(self, rawid):
    self.id = rawid

  def __eq__(self, other):
    return isinstance(other, FlaxId) and other.id == self.id

  def __hash__(self):
    return hash(self.id)

  def __repr__(self):
    return f'FlaxId({self.id})'

  def __copy__(self):
    return uuid()

  def __deepcopy__(self, memo):
    return uuid()
