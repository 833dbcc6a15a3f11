"""Waiting for the other processes of a program, with words and a limit.

A process waits in silence, and for ever, for one that has stopped: a process
that hangs, or whose machine is gone, does not say so. What can be told from
here is what is waited for, and for how long.
"""

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
from absl import logging

# Seconds after which it is told what is waited for, and told again.
TELL_AFTER = 60.0
# Seconds after which waiting ends with an error, if nothing else is said. So
# long may another process still compile.
LIMIT = 1800.0


def for_all_processes(name: str, what: str, limit: float | None) -> None:
  """Returns when all processes have come to one place in the program.

  Args:
    name: the name of the place, the same in all processes.
    what: what is waited for, in words.
    limit: seconds after which to give up; None for never.

  Raises:
    TimeoutError: the limit is over. The thread in which JAX waits remains, as
      JAX has no way to end it: the process should end.
  """
  from jax.experimental.multihost_utils import sync_global_devices

  if jax.process_count() == 1:
    sync_global_devices(name)
    return
  outcome: list[BaseException | None] = []

  def wait() -> None:
    try:
      sync_global_devices(name)
    except BaseException as error:  # Is raised where it can be caught.
      outcome.append(error)
    else:
      outcome.append(None)

  thread = threading.Thread(target=wait, name=name, daemon=True)
  with told(what):
    thread.start()
    thread.join(limit)
  if not outcome:
    raise TimeoutError(
      f'{_here()} has waited for {limit:g} seconds for {what}. One of them was'
      ' killed, or hangs, or does not call this function. End this process,'
      ' too, and start all of them again from the last checkpoint; if they were'
      ' only slow, pass a larger wait_limit.'
    )
  if outcome[0] is not None:
    raise outcome[0]


@contextlib.contextmanager
def told(what: str) -> Iterator[None]:
  """Logs in regular intervals, during a `with` block, what is waited for.

  Args:
    what: what is waited for, in words.
  """
  start = time.monotonic()
  over = threading.Event()

  def tell() -> None:
    while not over.wait(TELL_AFTER):
      seconds = time.monotonic() - start
      logging.warning(
        '%s has been waiting for %s, for %.0f seconds.', _here(), what, seconds
      )

  if jax.process_count() > 1:
    threading.Thread(target=tell, daemon=True).start()
  try:
    yield
  finally:
    over.set()


def _here() -> Any:
  return f'Process {jax.process_index()} of {jax.process_count()}'
