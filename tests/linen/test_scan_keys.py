"""Loops of any body draw the keys, and make the variables, that those of Flax do."""

import functools

import flax.linen
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st
from module_compare import KEY, Raised, assert_equal, attempt, run

import haiku_state.linen

STEPS = 2
uniform = jax.nn.initializers.uniform()


def bits(key, shape=()):
  """Is an initializer that is no known one; what it makes adds up exactly."""
  return jax.random.bits(key, shape, jnp.uint16).astype(jnp.float32) / 2**16


def simple(nn, module, op, i, c, x):
  """Does one thing in the body of a loop; returns what it came to."""
  name = f'{op}{i}'
  match op:
    case 'known':
      return module.param(name, uniform, ())
    case 'unknown':
      return module.param(name, lambda key: bits(key) + jnp.zeros_like(c))
    case 'constant':
      return module.param(name, jax.nn.initializers.ones, ())
    case 'of the step':
      return module.param(name, lambda key: bits(key) + x)
    case 'number':
      return module.param(name, lambda key: 2.0)
    case 'two keys':
      return module.param(name, lambda key: bits(module.make_rng('noise')))
    case 'boxed':
      return module.param(name, nn.with_partitioning(uniform, ()), ())
    case 'params' | 'noise':
      return bits(module.make_rng(op))
    case 'dense':
      return nn.Dense(1, name=name)(c[None])[0]
    case 'sow':
      module.sow('seen', name, c)
    case 'count':
      n = module.variable('counts', name, lambda: 0.0)
      n.value += 1
      return n.value
    case 'drawn':
      return module.variable(
        'made', name, lambda: bits(module.make_rng())
      ).value
    case 'set':
      v = module.variable('made', 'v', lambda: jnp.zeros(()))
      v.value += 1.0
      return v.value
    case 'look':
      return jnp.float32(module.has_variable('params', 'later'))
    case 'later' if not module.scope.name_reserved('later', 'params'):
      return module.param('later', bits)
    case 'once' if not module.has_variable('params', 'later'):
      return bits(module.make_rng())
    case 'replace' if module.is_mutable_collection('made'):
      was = module.get_variable('made', 'v', 1.0)
      module.put_variable('made', 'v', 2.0)
      return was
    case 'read':
      return jnp.float32(len(module.variables.get('params', {})))
  return 0.0


SIMPLE = st.sampled_from(
  ['known', 'unknown', 'constant', 'of the step', 'number', 'two keys', 'boxed']
  + ['params', 'noise', 'dense', 'sow', 'count', 'drawn', 'set', 'look']
  + ['later', 'once', 'replace', 'read']
)
USUAL = st.sampled_from(['known', 'unknown', 'constant', 'boxed', 'dense'])
OPTIONS = st.fixed_dictionaries(
  {
    'variable_broadcast': st.sampled_from(
      [False, 'params', ('params', 'made'), 'made']
    ),
    'variable_carry': st.sampled_from([False, 'counts', 'made']),
    'split_rngs': st.fixed_dictionaries(
      {'params': st.sampled_from([False, False, True]), 'noise': st.booleans()}
    ),
    'check_constancy_invariants': st.sampled_from([True, True, True, False]),
  }
)


def nested(ops):
  return st.one_of(
    st.tuples(st.sampled_from(['child', 'setup', 'remat', 'jit']), ops),
    st.tuples(st.just('scan'), ops, OPTIONS),
  )


OPS = st.recursive(
  st.lists(st.one_of(USUAL, SIMPLE), max_size=4),
  lambda ops: st.lists(st.one_of(USUAL, SIMPLE, nested(ops)), max_size=3),
  max_leaves=3,
)


def body_of(nn, ops):
  """Returns a class of modules that do something in a step of a loop."""

  class Body(nn.Module):
    def setup(self):
      for i, op in enumerate(ops):
        if op[0] == 'setup':
          setattr(self, f'part{i}', body_of(nn, op[1])())

    @nn.compact
    def __call__(self, c, x):
      total = jnp.float32(0)
      for i, op in enumerate(ops):
        if isinstance(op, str):
          total += simple(nn, self, op, i, c, x)
        elif op[0] == 'setup':
          total += getattr(self, f'part{i}')(c, x)[1]
        else:
          total += made_of(nn, op, f'inner{i}')(c, self.xs(op, x))[1].sum()
      return c + x, total

    @nn.nowrap
    def xs(self, op, x):
      return x * jnp.ones(STEPS) if op[0] == 'scan' else x

  return Body


def made_of(nn, op, name):
  kind, ops, *options = op
  cls = body_of(nn, ops)
  if kind == 'scan':
    return nn.scan(cls, **with_axes(*options))(name=name)
  lifts = {'child': lambda cls: cls, 'remat': nn.remat, 'jit': nn.jit}
  return lifts[kind](cls)(name=name)


def with_axes(options):
  """Adds an axis for each collection that nothing else is said of."""
  said = options['variable_broadcast'], options['variable_carry']
  flat = {x for f in said if f for x in ((f,) if isinstance(f, str) else f)}
  others = ('params', 'made', 'counts', 'seen')
  return {**options, 'variable_axes': {c: 0 for c in others if c not in flat}}


def program_of(ops, options, is_compiled):
  """Returns a program that makes a loop, and applies it."""
  keys = {'params': KEY, 'noise': jax.random.key(1)}
  c, xs = jnp.float32(1), jnp.arange(float(STEPS))
  compiled = jax.jit if is_compiled else lambda f: f

  def program(nn, package):
    class Root(nn.Module):
      @nn.compact
      def __call__(self, c, xs):
        y = made_of(nn, ('scan', ops, options), 'loop')(c, xs)
        return y, bits(self.make_rng()), bits(self.make_rng('noise'))

    def applied(mutable):
      apply = functools.partial(Root().apply, rngs=keys, mutable=mutable)
      return outcome(compiled(apply), made[1], c, xs)

    made = outcome(compiled(Root().init_with_output), keys, c, xs)
    if made == RAISED:
      return made
    return made, *map(applied, (False, ['params', 'seen'], True))

  return program


RAISED = 'raised'


def outcome(fn, *args):
  """Returns what is returned, and whether an error is raised, not which."""
  found = attempt(fn, *args)
  return RAISED if isinstance(found, Raised) else found


def exact(x):
  """Returns plain values whose arrays compare by their bits."""
  if isinstance(x, np.ndarray):
    return x.shape, str(x.dtype), x.tobytes().hex()
  if isinstance(x, dict):
    return {k: exact(v) for k, v in x.items()}
  return tuple(map(exact, x)) if isinstance(x, tuple) else x


def options_of(broadcast=('params', 'made'), carry='counts', split=False):
  return {
    'variable_broadcast': broadcast,
    'variable_carry': carry,
    'split_rngs': {'params': split, 'noise': True},
    'check_constancy_invariants': True,
  }


def example(*ops, is_compiled=True, **options):
  """Adds what is tried each time."""
  return hypothesis.example(list(ops), options_of(**options), is_compiled)


# All that the first trace may not show, beside what it does.
@example('known', 'unknown', 'constant', 'boxed', 'number', 'count')
@example('known', 'unknown', 'dense', is_compiled=False)
@example('known', 'noise', 'known')
@example('known', 'two keys', 'params')
@example('known', 'drawn')
@example('known', 'set')
@example('look', 'later', 'known')
@example('once', 'later')
@example('known', 'replace')
@example('read', 'known', 'read')
@example('of the step', 'known')
@example('of the step', 'known', broadcast='made')
@example('known', ('remat', ['known', 'noise']), 'known')
@example('known', ('scan', ['known', 'count'], options_of()))
@example('constant', 'sow', split=True)
@example('known', 'params', split=True, broadcast=False)
@hypothesis.settings(max_examples=15, deadline=None)
@hypothesis.given(OPS, OPTIONS, st.booleans())
def test_as_flax(ops, options, is_compiled):
  program = program_of(ops, options, is_compiled)
  ours = run(haiku_state, haiku_state.linen, program, True)
  theirs = run(flax, flax.linen, program, True)
  assert_equal(exact(ours), exact(theirs))
