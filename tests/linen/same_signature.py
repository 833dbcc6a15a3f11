"""Compares signatures with Flax's."""

import inspect


def assert_same_signature(ours, theirs):
  """Compares names, order, kinds and defaults, of a class also the call's.

  Left out are the fields that every module has, and the values of defaults that
  are functions or types: each package has its own.
  """
  if inspect.isclass(ours) and '__call__' in vars(ours):
    assert_same_signature(vars(ours)['__call__'], vars(theirs)['__call__'])
  assert _described(ours) == _described(theirs)


def _described(function):
  of_class = inspect.isclass(function)
  return [
    (p.name, p.kind, 'callable' if callable(p.default) else p.default)
    for p in inspect.signature(function).parameters.values()
    if not (of_class and p.name in ('parent', 'name'))
  ]
