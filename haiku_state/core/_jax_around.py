"""The transforms of JAX between the frame of a run and what is computed now.

JAX's own transforms (`jax.grad`, `jax.vmap`, `jax.lax.scan`, ...) know nothing of
the variables of a run. What is read inside of one is a constant of it, and all
that the user computes from it is right. One thing cannot be: that a value which
is traced inside is kept outside, where the trace is over.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.core

from haiku_state._versions import (
  is_traced_by,
  qualified_name,
  trace_name,
  traces_inside,
)


class Leaks(Exception):
  """A value would leave the transform of JAX that traced it.

  Args:
    name: the name of the variable.
    around: the transform.
  """

  def __init__(self, name: str, around: Around):
    super().__init__(name, around)
    self.name = name
    self.around = around

  def text(self, col: str, path: str) -> str:
    """Says what would leak, and what to write instead, in a run of ours.

    Args:
      col: the collection of the variable.
      path: the path of its module.
    """
    around, lifted, _ = self.around
    use = f'use {_or(lifted)}, which hands variables out, or ' if lifted else ''
    if col == 'params':
      before = f'call the module once before, outside of {around}'
    else:
      before = f'return the value from {around} and set it outside'
    return (
      f'The variable "{self.name}" of "{path}", in the collection "{col}", is'
      f' made or set inside of {around}, to a value that is traced there and'
      f' would leak. To keep it, {use}{before}.'
    )

  def text_in_haiku(self, col: str, path: str) -> str:
    """Says the same in a run of somebody's `hk.transform`."""
    around, lifted, in_haiku = self.around
    use = _or((*in_haiku, *lifted, 'another transform that knows of the frame'))
    what = self.name if col == 'params' else f'{col}:{self.name}'
    return (
      f'Module "{path}" makes or sets "{what}" inside of {around}, which the'
      f' value would leave: Haiku would keep a tracer. Use {use} (hk.vmap,'
      ' hk.scan, hk.grad, hk.remat, hk.cond, ...) in its place, or call the module'
      ' once before, or make the module inside of a function that hk.transform'
      ' transforms, and lift that by hk.lift.'
    )


def _or(names: tuple[str, ...]) -> str:
  return ' or '.join(names)


class Around(NamedTuple):
  """A transform of JAX, as far as its trace and the stack of calls tell.

  Attributes:
    jax: what it is called in JAX.
    lifted: the lifted forms of it.
    in_haiku: Haiku's forms of it.
  """

  jax: str
  lifted: tuple[str, ...]
  in_haiku: tuple[str, ...]


def check_stays(name: str, value: Any, is_outside: Callable[[], bool]) -> None:
  """Raises if a value that is kept from here on would leave its transform.

  Args:
    name: the name of the variable that has it.
    value: a pytree.
    is_outside: whether the trace that is current is that in which variables are
      kept.

  Raises:
    Leaks: it would.
  """
  if isinstance(value, jax.core.Tracer):
    traced = [value]
  elif isinstance(value, jax.Array):
    return
  else:
    leaves = jax.tree.leaves(value)
    traced = [x for x in leaves if isinstance(x, jax.core.Tracer)]
  if not traced or is_outside():
    return
  inside = traces_inside(is_outside)
  for x in traced:
    for trace in inside:
      if is_traced_by(x, trace):
        raise Leaks(name, _describe(trace))


# --- What it is called -------------------------------------------------------


class _Kind(NamedTuple):
  """Transforms that trace alike.

  Attributes:
    words: parts of the names of their traces.
    usual: what such a transform is called if nothing else tells.
    known: by the name of JAX's function, the name of the transform in JAX, that
      of the lifted one, and that of Haiku's; empty if there is none.
  """

  words: tuple[str, ...]
  usual: Around
  known: dict[str, Around]


def _around(name: str, lifted: str = '', in_haiku: str = '') -> Around:
  return Around(name, tuple(lifted.split()), tuple(in_haiku.split()))


_DERIVATIVES = _Kind(
  ('JVP', 'Linearize'),
  _around('jax.grad', 'nn.grad nn.vjp nn.jvp', 'hk.grad'),
  {
    'grad': _around('jax.grad', 'nn.grad', 'hk.grad'),
    'value_and_grad': _around(
      'jax.value_and_grad', 'nn.value_and_grad', 'hk.value_and_grad'
    ),
    'jacfwd': _around('jax.jacfwd', 'nn.jvp'),
    'jacrev': _around('jax.jacrev', 'nn.vjp'),
    'vjp': _around('jax.vjp', 'nn.vjp'),
    'jvp': _around('jax.jvp', 'nn.jvp'),
    'linearize': _around('jax.linearize', 'nn.jvp'),
  },
)
_MAPS = _Kind(
  ('Batch', 'ShardMap'),
  _around('jax.vmap', 'nn.vmap', 'hk.vmap'),
  {
    'vmap': _around('jax.vmap', 'nn.vmap', 'hk.vmap'),
    'jacfwd': _around('jax.jacfwd', 'nn.jvp'),
    'jacrev': _around('jax.jacrev', 'nn.vjp'),
    'vectorize': _around('jnp.vectorize', 'nn.vmap', 'hk.vmap'),
    '_shard_map': _around('jax.shard_map'),
  },
)
# Of those that record a program.
_RECORDED = _Kind(
  (),
  _around('jax.jit', 'nn.jit'),
  {
    '_cpp_pjit': _around('jax.jit', 'nn.jit'),
    'checkpoint': _around('jax.checkpoint', 'nn.remat', 'hk.remat'),
    'scan': _around('jax.lax.scan', 'nn.scan', 'hk.scan'),
    'map': _around('jax.lax.map', 'nn.scan', 'hk.map'),
    'fori_loop': _around(
      'jax.lax.fori_loop', 'nn.scan nn.while_loop', 'hk.fori_loop'
    ),
    'while_loop': _around(
      'jax.lax.while_loop', 'nn.while_loop', 'hk.while_loop'
    ),
    'cond': _around('jax.lax.cond', 'nn.cond', 'hk.cond'),
    'switch': _around('jax.lax.switch', 'nn.switch', 'hk.switch'),
    'custom_vjp': _around('jax.custom_vjp', 'nn.custom_vjp'),
    'custom_jvp': _around('jax.custom_jvp'),
    '_shard_map': _around('jax.shard_map'),
  },
)


def _describe(trace: Any) -> Around:
  """Returns which transform a trace is of."""
  name = trace_name(trace)
  kinds = (_DERIVATIVES, _MAPS)
  kind = next(
    (k for k in kinds if any(word in name for word in k.words)), _RECORDED
  )
  for names in _calls_of_jax():
    # One function of JAX may use another: `jax.grad` is made of `jax.vjp`.
    known = [kind.known[n] for n in names if n in kind.known]
    if known:
      return known[-1]
  return kind.usual


def _calls_of_jax() -> Iterator[list[str]]:
  """Yields the functions of JAX in the stack of calls, from the innermost.

  Those that call each other, without anybody else between, are in one list.
  """
  names: list[str] = []
  frame = sys._getframe(1)
  while frame is not None:
    module = frame.f_globals.get('__name__', '')
    if module.partition('.')[0] == 'jax':
      names.append(qualified_name(frame.f_code).partition('.')[0])
    elif names:
      yield names
      names = []
    frame = frame.f_back
  if names:
    yield names
