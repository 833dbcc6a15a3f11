"""What is done with a program: traced, run, lowered.

How long XLA takes is not timed: it sees the lowered text, which is compared.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.forms import Program
from benchmarks.timing import CPU, WALL, Timer, timer


def train_step(program: Program) -> Callable[..., Any]:
  """Returns the loss and its gradient as a function of variables and inputs."""

  def step(variables, *inputs):
    def loss(variables):
      y, updates = program.apply(variables, *inputs)
      return jnp.sum(y**2), updates

    return jax.value_and_grad(loss, has_aux=True, allow_int=True)(variables)

  return step


def timers(program: Program, inputs: Any) -> dict[str, Timer]:
  """Returns timers of one program by what they time."""
  key = jax.random.key(0)
  variables = program.init(key, *inputs)
  step = train_step(program)
  jitted = jax.jit(step)

  # A new function each time: JAX keeps what it has traced.
  def trace_init():
    jax.make_jaxpr(lambda k: program.init(k, *inputs))(key)

  def trace_apply():
    jax.make_jaxpr(lambda v: program.apply(v, *inputs))(variables)

  def trace_step():
    jax.make_jaxpr(lambda v: step(v, *inputs))(variables)

  def apply():
    jax.block_until_ready(program.apply(variables, *inputs))

  def run_step():
    jax.block_until_ready(jitted(variables, *inputs))

  return {
    'init trace': timer(trace_init),
    'apply trace': timer(trace_apply),
    'step trace': timer(trace_step),
    'un-jitted apply': timer(apply, CPU),
    'jitted step': timer(run_step, WALL, repeats=20),
  }


def lowered(program: Program, inputs: Any) -> str:
  """Returns the lowered text of a training step."""
  variables = jax.eval_shape(program.init, jax.random.key(0), *inputs)
  return jax.jit(train_step(program)).lower(variables, *inputs).as_text()


def operations(text: str) -> int:
  """Returns the number of operations in a lowered text."""
  return len(re.findall(r'= "?(stablehlo|chlo)\.', text))
