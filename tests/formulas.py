"""What a function computes, told without computing it.

Tracing an operation takes a hundredth of what compiling it takes. Arrays that
come of the same operations on the same values are equal, to the bit.
"""

import functools

import jax
import numpy as np

# Their results are those of the program in them.
STAND_FOR_OTHERS = (
  'closed_call',
  'core_call',
  'custom_jvp_call',
  'custom_vjp_call',
  'custom_vjp_call_jaxpr',
  'jit',
  'pjit',
)
INNER = ('jaxpr', 'call_jaxpr', 'fun_jaxpr')


def formulas(fn, *args):
  """Returns a number for each array that a function returns.

  Those of two functions are equal if the same operations make the arrays, in
  whatever order, and with whatever operations that lead to none of them.
  """
  program = jax.make_jaxpr(fn)(*args)
  inputs = [number('input', i, str(x)) for i, x in enumerate(program.in_avals)]
  return results_of(program, inputs)


def results_of(program, inputs):
  """Returns the numbers of a program's results, from those of its arguments."""
  consts = map(number_of_value, getattr(program, 'consts', ()))
  program = getattr(program, 'jaxpr', program)
  known = dict(zip(program.constvars, consts, strict=True))
  known.update(zip(program.invars, inputs, strict=True))

  def read(x):
    is_literal = hasattr(x, 'val')
    return number_of_value(x.val, x.aval.dtype) if is_literal else known[x]

  for eqn in program.eqns:
    operands = list(map(read, eqn.invars))
    if eqn.primitive.name in STAND_FOR_OTHERS:
      (inner,) = (eqn.params[name] for name in INNER if name in eqn.params)
      results = results_of(inner, operands)
    elif is_filled(eqn, operands):
      results = [filled(eqn.outvars[0].aval.shape, *operands)]
    else:
      made = number(eqn.primitive.name, number_of(eqn.params), *operands)
      results = [number(made, i) for i in range(len(eqn.outvars))]
    known.update(zip(eqn.outvars, results, strict=True))
  return list(map(read, program.outvars))


def is_filled(eqn, operands):
  """Tells whether a result is one value everywhere, however it got its shape."""
  name = eqn.primitive.name
  is_scalar = name == 'broadcast_in_dim' and eqn.invars[0].aval.shape == ()
  return is_scalar or name == 'reshape' and operands[0] in values_filled


def filled(shape, value):
  value = values_filled.get(value, value)
  found = number('filled', shape, value)
  values_filled[found] = value
  return found


values_filled = {}


def number_of(param):
  """Returns the number of what a parameter of an operation says."""
  program = getattr(param, 'jaxpr', param)
  if hasattr(program, 'eqns'):
    inputs = [
      number('inner', i, str(x.aval)) for i, x in enumerate(program.invars)
    ]
    return number('program', *results_of(param, inputs))
  if isinstance(param, dict):
    said = [(k, number_of(v)) for k, v in sorted(param.items()) if k != 'name']
    return number('dict', *said)
  if isinstance(param, (tuple, list)):
    return number('tuple', *map(number_of, param))
  if isinstance(param, (np.ndarray, jax.Array)):
    return number_of_value(param)
  return number(type(param).__name__, str(param))


def number_of_value(x, dtype=None):
  if jax.dtypes.issubdtype(getattr(x, 'dtype', None), jax.dtypes.prng_key):
    data = jax.random.key_data(x)
    return number('key', str(x.dtype), number_of_value(data))
  x = np.asarray(x, dtype)
  return number('value', str(x.dtype), x.shape, x.tobytes())


@functools.cache
def number(*said):
  """Returns the same number for the same, another one for all else."""
  return number.cache_info().misses
