"""Random graphs of modules, each a program for Flax and for haiku_state.

A graph is data: nodes, which are modules of some kind with others in their fields
or attributes, and the statements of their methods.
"""

import dataclasses
import random
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from module_compare import Raised, attempt

STREAMS = ('params', 'dropout', 'noise')
CHANGING = ('stats', 'cache', 'batch_stats')
NAMES = ('a', 'b', 'Dense_0', 'Compact_0')
X = jnp.arange(6.0).reshape(2, 3) / 6


class Node(NamedTuple):
  """A module.

  Attributes:
    kind: its class, see `modules`.
    kids: the modules that it has.
    body: the statements of its method.
    shares: whether its first two kids are one module.
  """

  kind: str
  kids: tuple['Node', ...]
  body: tuple[tuple[Any, ...], ...]
  shares: bool


class Statement(NamedTuple):
  """What a method may do.

  Attributes:
    run: takes a module, the input, and what was drawn; returns the output.
    draw: takes the generator, the depth and the number of kids; returns the rest
      of the arguments, or None where it cannot be.
    weight: how often it is drawn.
    in_setup: whether a method that is not compact may do it.
  """

  run: Callable[..., Any]
  draw: Callable[..., Any]
  weight: int
  in_setup: bool


STATEMENTS: dict[str, Statement] = {}


def statement(draw, weight=1, in_setup=False):
  """Returns a decorator that adds a statement to the table."""

  def add(run):
    STATEMENTS[run.__name__] = Statement(run, draw, weight, in_setup)
    return run

  return add


def run_body(module, body, x):
  for kind, *args in body:
    x = STATEMENTS[kind].run(module, x, *args)
  return x


# --- What is drawn -----------------------------------------------------------


def nothing(rng, depth, kids):
  return ()


def name_of_module(rng, depth, kids):
  return (rng.choice(NAMES) if rng.random() < 0.35 else None,)


def name(rng, depth, kids):
  return (rng.choice('pqr'),)


def variable_name(rng, depth, kids):
  return rng.choice(CHANGING[:2]), rng.choice('uvw')


def stream(rng, depth, kids):
  return (rng.choice(STREAMS),)


def kid(rng, depth, kids):
  return (rng.randrange(kids), rng.randrange(1, 3)) if kids else None


def new_module(rng, depth, kids):
  if not depth:
    return None
  lifts = tuple(rng.choices(list(CLASSES), k=rng.choice((0, 0, 1, 2))))
  return *name_of_module(rng, depth, kids), draw_node(rng, depth - 1), lifts


def in_function(rng, depth, kids):
  if not depth:
    return None
  body = draw_body(rng, depth - 1, kids, rng.randint(1, 2))
  return rng.choice(list(FUNCTIONS)), body


def in_transform(rng, depth, kids):
  if not depth:
    return None
  body = draw_body(rng, depth - 1, kids, rng.randint(1, 2))
  return rng.choice(list(TRANSFORMS)), body


def draw_body(rng, depth, kids, count, in_setup=False):
  """Returns some statements."""
  kinds = [k for k, s in STATEMENTS.items() if s.in_setup or not in_setup]
  weights = [STATEMENTS[k].weight for k in kinds]
  body = []
  while len(body) < count:
    (kind,) = rng.choices(kinds, weights)
    args = STATEMENTS[kind].draw(rng, depth, kids)
    if args is not None:
      body.append((kind, *args))
  return tuple(body)


def draw_node(rng, depth):
  """Returns a random module, of at most this depth."""
  kind = rng.choices(list(KINDS), KINDS.values())[0]
  count = rng.choices((0, 1, 2), (4, 3, 2))[0] if depth else 0
  kids = tuple(draw_node(rng, depth - 1) for _ in range(count))
  body = draw_body(rng, depth, count, rng.randint(1, 4), kind == 'setup')
  return Node(kind, kids, body, count == 2 and rng.random() < 0.2)


# --- Statements --------------------------------------------------------------


@statement(name_of_module, weight=5)
def dense(module, x, name):
  return module.nn.Dense(3, name=name)(x)


@statement(name_of_module)
def batch_norm(module, x, name):
  is_fixed = not module.is_mutable_collection('batch_stats')
  return module.nn.BatchNorm(is_fixed, name=name)(x)


@statement(name_of_module)
def dropout(module, x, name):
  return module.nn.Dropout(0.5, deterministic=False, name=name)(x)


@statement(name_of_module)
def weight_norm(module, x, name):
  return module.nn.WeightNorm(module.nn.Dense(3, name=name))(x)


@statement(name, weight=2)
def param(module, x, name):
  return x + module.param(name, module.nn.initializers.normal(), (3,))


@statement(variable_name, weight=2)
def variable(module, x, col, name):
  found = module.variable(col, name, jnp.zeros, 3)
  if module.is_mutable_collection(col):
    found.value += x.mean(0)
  return x + found.value


@statement(variable_name, in_setup=True)
def put(module, x, col, name):
  if module.is_mutable_collection(col):
    module.put_variable(col, name, x.mean(0))
  return x


@statement(variable_name, in_setup=True)
def get(module, x, col, name):
  return x + module.get_variable(col, name, jnp.zeros(3))


@statement(variable_name, in_setup=True)
def has(module, x, col, name):
  return x + module.has_variable(col, name)


@statement(name, weight=2, in_setup=True)
def sow(module, x, name):
  module.sow('intermediates', name, x)
  return x


@statement(name)
def perturb(module, x, name):
  return module.perturb(name, x)


@statement(stream, in_setup=True)
def draw(module, x, stream):
  return x + jax.random.normal(module.make_rng(stream), (3,))


@statement(nothing, in_setup=True)
def look(module, x):
  return x + len(module.path) + module.is_initializing()


@statement(kid, weight=4, in_setup=True)
def call_kid(module, x, i, times):
  for _ in range(times):
    x = module.kid(i)(x)
  return x


@statement(new_module, weight=5)
def call_new(module, x, name, node, lifts):
  cls = module.classes[node.kind]
  for lift in lifts:
    cls = CLASSES[lift](module.nn, cls)
  return make(module.classes, node, cls, name=name)(x)


@statement(in_function, weight=3, in_setup=True)
def call_function(module, x, lift, body):
  def fn(module, x):
    return run_body(module, body, x)

  return FUNCTIONS[lift](module.nn, fn, module, x)


@statement(in_transform, weight=2, in_setup=True)
def call_transform(module, x, transform, body):
  return TRANSFORMS[transform](lambda x: run_body(module, body, x), x)


# --- Transforms --------------------------------------------------------------

EACH = dict.fromkeys((*CHANGING, 'intermediates', 'perturbations'), 0)
SPLIT = dict.fromkeys(STREAMS, True)
CARRY = {'variable_carry': ['stats', 'batch_stats'], 'length': 2}


def scanned(nn, cls, **options):
  """Returns a class whose call is a scan over a module."""

  class Step(nn.Module):
    node: Any
    kids: Any = ()

    @nn.compact
    def __call__(self, x, _):
      return cls(self.node, self.kids)(x), None

  class Scanned(nn.Module):
    node: Any
    kids: Any = ()

    @nn.compact
    def __call__(self, x):
      steps = nn.scan(Step, **CARRY, **options)
      return steps(self.node, self.kids)(x, None)[0]

  return Scanned


def doubled(tree):
  return jax.tree.map(lambda x: x * 2, tree)


def halved(tree):
  return jax.tree.map(lambda x: x / 2, tree)


CLASSES: dict[str, Callable[..., Any]] = {
  'jit': lambda nn, cls: nn.jit(cls),
  'remat': lambda nn, cls: nn.remat(cls),
  'vmap': lambda nn, cls: nn.vmap(
    cls, variable_axes={'params': 0, **EACH}, split_rngs=SPLIT
  ),
  'scan': lambda nn, cls: scanned(
    nn,
    cls,
    variable_axes={'params': 0, 'cache': 0, 'intermediates': 0},
    split_rngs=SPLIT,
  ),
  'scan with the same parameters': lambda nn, cls: scanned(
    nn,
    cls,
    variable_broadcast='params',
    variable_axes={'cache': 0, 'intermediates': 0},
    split_rngs={**SPLIT, 'params': False},
  ),
  'map_variables': lambda nn, cls: nn.map_variables(
    cls, 'params', doubled, halved, init=True, mutable=True
  ),
}


def by_vjp(nn, fn, module, x):
  y, back = nn.vjp(fn, module, x)
  return y + back(y)[1]


def unless_initializing(lift):
  """Returns a lifted function for branches, which `init` runs as they are."""

  def call(nn, fn, module, x):
    if module.is_initializing():
      return fn(module, x)
    return lift(nn, fn, module, x)

  return call


def the_same(module, x):
  return x


FUNCTIONS: dict[str, Callable[..., Any]] = {
  'jit': lambda nn, fn, module, x: nn.jit(fn)(module, x),
  'remat': lambda nn, fn, module, x: nn.remat(fn)(module, x),
  'fold_rngs': lambda nn, fn, module, x: nn.fold_rngs(fn)(module, x),
  'vjp': by_vjp,
  'jvp': lambda nn, fn, module, x: nn.jvp(fn, module, (x,), (x,), {})[1],
  'vmap': lambda nn, fn, module, x: nn.vmap(
    fn, variable_axes={'params': 0, **EACH}, split_rngs=SPLIT
  )(module, x),
  'scan': lambda nn, fn, module, x: nn.scan(
    lambda module, x, _: (fn(module, x), None),
    variable_broadcast='params',
    variable_axes={'intermediates': 0, 'cache': 0},
    split_rngs={**SPLIT, 'params': False},
    **CARRY,
  )(module, x, None)[0],
  'cond': unless_initializing(
    lambda nn, fn, module, x: nn.cond(x.sum() > 0, fn, the_same, module, x)
  ),
  'switch': unless_initializing(
    lambda nn, fn, module, x: nn.switch(1, [the_same, fn], module, x)
  ),
}

TRANSFORMS: dict[str, Callable[..., Any]] = {
  'grad': lambda fn, x: x + jax.grad(lambda x: fn(x).sum())(x),
  'vmap': lambda fn, x: jax.vmap(fn)(x[None])[0],
  'jit': lambda fn, x: jax.jit(fn)(x),
  'checkpoint': lambda fn, x: jax.checkpoint(fn)(x),
  'scan': lambda fn, x: jax.lax.scan(lambda x, _: (fn(x), 0), x, None, 2)[0],
}

# --- Modules -----------------------------------------------------------------

# How often a module is of each kind.
KINDS = {'compact': 5, 'setup': 3, 'both': 2}


def modules(library):
  """Returns the classes of modules of a library, by kind."""
  classes = {}

  class Base(library.Module):
    node: Any
    kids: Any = ()

    def kid(self, i):
      return self.kids[i]

  Base.nn, Base.classes = library, classes

  class Compact(Base):
    @library.compact
    def __call__(self, x):
      return run_body(self, self.node.body, x)

  class Setup(Base):
    def setup(self):
      self.own = kids_of(classes, self.node)
      self.first = library.Dense(3)

    def kid(self, i):
      return self.own[i]

    def __call__(self, x):
      return run_body(self, self.node.body, self.first(x))

  class Both(Setup):
    @library.compact
    def __call__(self, x):
      return run_body(self, self.node.body, self.first(x))

  classes.update(compact=Compact, setup=Setup, both=Both)
  return classes


def make(classes, node, cls, **kwargs):
  """Returns a module; one that has `setup` makes its kids itself."""
  kids = kids_of(classes, node) if node.kind == 'compact' else ()
  return cls(node, kids, **kwargs)


def kids_of(classes, node):
  kids = [make(classes, kid, classes[kid.kind]) for kid in node.kids]
  return (kids[0], kids[0]) if node.shares else tuple(kids)


# --- Programs ----------------------------------------------------------------

# Where a value would leave a transform of JAX, ours raises; Flax returns it, or
# JAX raises.
LEAKS = 'leaks'
ERRORS_OF_LEAKS = ('JaxTransformError', 'UnexpectedTracerError')


def outcome(fn, *args, **kwargs):
  """Returns what a call returns or raises, or that it leaks."""
  found = attempt(fn, *args, **kwargs)
  if isinstance(found, Raised):
    # Further lines of JAX's tell of the functions of the library.
    first_line = dataclasses.replace(found, text=found.text.partition('\n')[0])
    return LEAKS if found.kind in ERRORS_OF_LEAKS else first_line
  is_computed = not isinstance(jnp.zeros(()) + X.sum(), jax.core.Tracer)
  if is_computed and any(
    isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(found)
  ):
    return LEAKS
  return found


@dataclasses.dataclass(frozen=True)
class Graph:
  """A program that makes a module, and uses it in all ways.

  Attributes:
    seed: what it is drawn from.
  """

  seed: int

  def __call__(self, nn, flax):
    node = draw_node(random.Random(self.seed), 2)
    classes = modules(nn)
    module = make(classes, node, classes[node.kind])
    rngs = {name: jax.random.key(i) for i, name in enumerate(STREAMS)}
    first = outcome(module.init_with_output, rngs, X)
    if first is LEAKS or isinstance(first, Raised):
      return first
    variables = first[1]
    others = {name: jax.random.fold_in(key, 7) for name, key in rngs.items()}
    bound = module.bind(variables, rngs=others, mutable=['stats'])

    def apply(variables, **kwargs):
      return outcome(module.apply, variables, X, rngs=others, **kwargs)

    return {
      'init': first,
      'init with one key': outcome(module.init, rngs['params'], X),
      'apply': apply(variables),
      'mutable': apply(variables, mutable=[*CHANGING, 'intermediates']),
      'all mutable': apply(variables, mutable=True),
      'captured': apply(
        variables, capture_intermediates=True, mutable=['intermediates']
      ),
      'parameters alone': apply({'params': variables.get('params', {})}),
      'bound': [outcome(bound, X), outcome(bound, X)],
      'unbound': outcome(lambda: bound.unbind()[1]),
    }
