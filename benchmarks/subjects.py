"""Whatever is measured, by name: workloads, and what is around a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks import containers, fresh, tasks
from benchmarks.forms import LIBRARIES, programs
from benchmarks.timing import Timer
from benchmarks.workloads import OTHER_SIZES, WORKLOADS

# What is measured once, not for each model.
AROUND: dict[str, Callable[..., dict[str, dict[str, Timer]]]] = {
  'containers of 1000 leaves': containers.timers,
  'import': fresh.timers,
}
ALL = (*WORKLOADS, *AROUND)
_MODELS = {**WORKLOADS, **OTHER_SIZES}


def timers(
  name: str, libraries: Sequence[str] = LIBRARIES
) -> dict[str, dict[str, Timer]]:
  """Returns timers by what they time, and by library."""
  if name in AROUND:
    return AROUND[name](libraries)
  workload = _MODELS[name]()
  found: dict[str, dict[str, Timer]] = {}
  for library, program in programs(workload, libraries).items():
    for task, timed in tasks.timers(program, workload.inputs).items():
      found.setdefault(task, {})[library] = timed
  return found


def lowered(name: str, libraries: Sequence[str] = LIBRARIES) -> dict[str, str]:
  """Returns the lowered step of a workload by library."""
  if name in AROUND:
    return {}
  workload = _MODELS[name]()
  return {
    library: tasks.lowered(program, workload.inputs)
    for library, program in programs(workload, libraries).items()
  }


def chosen(parts: Sequence[str]) -> list[str]:
  """Returns the names in which one of the parts is.

  `all` is all of them but workloads that differ in their size alone.
  """
  return [
    name
    for name in (*_MODELS, *AROUND)
    if ('all' in parts and name in ALL) or any(part in name for part in parts)
  ]
