"""Python in other processes, which finds modules where this one does."""

from __future__ import annotations

import json
import pathlib
import sys
from collections.abc import Sequence

ROOT = str(pathlib.Path(__file__).resolve().parents[1])
# The module is taken from here also where another tree, which may have one of its
# name, comes first for all that it imports.
_CODE = """
import importlib, json, sys
root, module, function, path, *arguments = map(json.loads, sys.argv[1:])
sys.path.insert(0, root)
call = getattr(importlib.import_module(module), function)
sys.path[:] = path
call(*arguments)
"""


def command(
  module: str, function: str, *arguments: object, first: Sequence[str] = ()
) -> list[str]:
  """Returns the command that calls a function in a new process.

  Args:
    module: the name of the module of the function.
    function: its name.
    *arguments: for the function; what JSON can express.
    first: paths where the function finds modules first.
  """
  call = (ROOT, module, function, [*first, *sys.path], *arguments)
  return [sys.executable, '-c', _CODE, *map(json.dumps, call)]
