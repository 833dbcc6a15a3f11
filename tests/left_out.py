"""Parameters of tests that are left to `--long`."""

import pytest


def all_but(short, values):
  """Returns the values, marked as long but for those in `short`."""
  return [
    value if value in short else pytest.param(value, marks=pytest.mark.long)
    for value in values
  ]
