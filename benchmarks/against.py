"""Two source trees of haiku_state beside each other, each in its own process.

The processes take turns: while one measures, the other waits.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from benchmarks import processes
from benchmarks.timing import Timer, pass_over_what_is_there


class Tree:
  """A process that measures the haiku_state of one source tree."""

  def __init__(self, path: pathlib.Path) -> None:
    root = str(path.resolve())
    self._process = subprocess.Popen(
      processes.command('benchmarks.against', 'answer', root, first=[root]),
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )

  def ask(self, *question: Any) -> Any:
    """Returns the answer of the process to a question of `answer`."""
    assert self._process.stdin and self._process.stdout
    line = ''
    with contextlib.suppress(BrokenPipeError):
      print(json.dumps(question), file=self._process.stdin, flush=True)
      line = self._process.stdout.readline()
    if not line:
      raise RuntimeError('the process has ended; what it says is above')
    return json.loads(line)

  def close(self) -> None:
    """Ends the process."""
    self._process.communicate()


@contextlib.contextmanager
def trees(**paths: pathlib.Path) -> Iterator[dict[str, Tree]]:
  """Yields the processes of some trees by name."""
  found: dict[str, Tree] = {}
  try:
    for name, path in paths.items():
      found[name] = Tree(path)
    yield found
  finally:
    for tree in found.values():
      tree.close()


def timers(found: dict[str, Tree], name: str) -> dict[str, dict[str, Timer]]:
  """Returns timers of a subject by what they time, and by tree."""
  tasks = [tree.ask('prepare', name) for tree in found.values()]

  def timer(tree: Tree, task: str) -> Timer:
    return lambda depth: tree.ask('time', task, depth)

  return {
    task: {of: timer(tree, task) for of, tree in found.items()}
    for task in tasks[0]
    if all(task in others for others in tasks)
  }


def lowered(found: dict[str, Tree]) -> dict[str, str]:
  """Returns the lowered step of the subject that is prepared, by tree."""
  texts = {of: tree.ask('lower') for of, tree in found.items()}
  return {of: text for of, text in texts.items() if text}


def answer(root: str) -> None:
  """Is the other end of `Tree.ask`: answers questions until there are none."""
  # What haiku_state and others print is no answer.
  out, sys.stdout = sys.stdout, sys.stderr
  sys.setrecursionlimit(10_000)
  import haiku_state
  from benchmarks import subjects

  # Or one tree would be compared with itself.
  found = pathlib.Path(haiku_state.__file__)
  assert found.parents[1] == pathlib.Path(root), f'{root} has not {found}'
  name, prepared = '', {}
  for line in sys.stdin:
    kind, *arguments = json.loads(line)
    if kind == 'prepare':
      (name,) = arguments
      prepared = subjects.timers(name, ['haiku_state'])
      pass_over_what_is_there()
      reply: Any = list(prepared)
    elif kind == 'time':
      task, depth = arguments
      reply = prepared[task]['haiku_state'](depth)
    else:
      reply = subjects.lowered(name, ['haiku_state']).get('haiku_state')
    print(json.dumps(reply), file=out, flush=True)
