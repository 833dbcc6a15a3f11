"""The programs that `tests/fuzz/faults.py` interrupts.

Each makes what it needs, or uses what is here for all of them, and returns a
tree of arrays and text that is the same each time.
"""

import contextlib
import io
import itertools
import os
import pathlib
import pickle
import sys
import tempfile
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax

from haiku_state import interop, optim, serialization, struct
from haiku_state import io as files
from haiku_state import linen as nn
from haiku_state.configurations import config
from haiku_state.core import spmd
from haiku_state.interop import checkpoints as weights
from haiku_state.port import _port, installed, run_path
from haiku_state.training import checkpoints, train_state

KEY = jax.random.key(0)
X = np.arange(6, dtype=np.float32).reshape(2, 3) / 8


# --- Modules -----------------------------------------------------------------


class Compact(nn.Module):
  """Nested, with all kinds of variables."""

  depth: int = 2

  @nn.compact
  def __call__(self, x, train=True):
    n = self.variable('counts', 'n', lambda: jnp.zeros(()))
    if self.is_mutable_collection('counts'):
      n.value = n.value + 1
    scale = self.param('scale', nn.initializers.ones, (x.shape[-1],))
    x = nn.Dense(3)(x) * scale
    if self.depth:
      x = Compact(self.depth - 1)(x, train)
    else:
      x = nn.BatchNorm(use_running_average=not train)(x)
    self.sow('intermediates', 'x', x)
    return nn.Dense(3)(x) + n.value


class Setup(nn.Module):
  """Submodules in attributes, one of them from outside."""

  shared: Any = None

  def setup(self):
    self.layers = [nn.Dense(3), nn.Dense(3)]
    self.tail = self.shared.copy() if self.shared is not None else nn.Dense(2)
    self.w = self.param('w', nn.initializers.normal(), (3,))

  def __call__(self, x):
    for layer in self.layers:
      x = layer(x)
    return self.decode(x)

  def decode(self, x):
    return self.tail(x * self.w)

  @property
  def size(self):
    return self.w.size


class Holder(nn.Module):
  """Holds modules that were made outside."""

  inner: nn.Module
  others: Any = ()

  def setup(self):
    self.head = nn.Dense(2)

  def __call__(self, x):
    for m in (self.inner, *self.others, self.inner):
      x = m(x)
    return self.head(x)


class Noise(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.Dropout(0.5, deterministic=False)(x)
    return x + jax.random.normal(self.make_rng('noise'), x.shape)


# What all programs share.
COMPACT, SETUP, OUTSIDE = Compact(1), Setup(), nn.Dense(3)
HOLDER = Holder(nn.Dense(3), (nn.Dense(3),))
COMPACT_VARIABLES = COMPACT.init(KEY, X)
SETUP_VARIABLES = SETUP.init(KEY, X)
HOLDER_VARIABLES = HOLDER.init(KEY, X)
BOUND = COMPACT.bind(COMPACT_VARIABLES)
BOUND_SETUP = SETUP.bind(SETUP_VARIABLES)
BOUND_HOLDER = HOLDER.bind(HOLDER_VARIABLES)
IN_HAIKU = hk.transform_with_state(lambda x: SETUP(OUTSIDE(OUTSIDE(x))))


def probe():
  """Uses what all programs share, in each way."""
  params, state = IN_HAIKU.init(KEY, X)
  return (
    COMPACT.apply(COMPACT_VARIABLES, X, train=False),
    BOUND(X, train=False),
    BOUND_SETUP(X),
    BOUND_SETUP.decode(X),
    BOUND_SETUP.tail(X),
    BOUND_HOLDER(X),
    params,
    IN_HAIKU.apply(params, state, None, X),
    str(jax.eval_shape(HOLDER.init, KEY, X)),
    hk.transform(lambda x: hk.Linear(2)(x)).init(KEY, X),
    len(sys.meta_path),
    config.flax_return_frozendict,
    config.flax_profile,
    str(files.io_mode),
    str(spmd.get_logical_axis_rules()),
  )


def kept(make, use):
  """Returns a program that makes what it uses, and keeps it if it fails.

  So what was interrupted is what is used afterwards.
  """
  made = []

  def run():
    if not made:
      made.append(make())
    result = use(made[0])
    made.clear()
    return result

  return run


# --- Methods -----------------------------------------------------------------


def init_apply():
  variables = Compact().init(KEY, X)
  y, new = Compact().apply(variables, X, mutable=['counts', 'batch_stats'])
  return variables, y, new


def setup():
  model = Setup(nn.Dense(2))
  variables = model.init(KEY, X)
  return (
    variables,
    model.apply(variables, X, method='decode'),
    model.apply(variables, method=lambda m: m.size),
  )


def adopted():
  shared = nn.Dense(3)
  model = Holder(shared, [shared, Compact(0)])
  variables = model.init(KEY, X)
  return variables, model.apply(variables, X, mutable=True)


def keys():
  rngs = {'params': KEY, 'dropout': KEY, 'noise': KEY}
  return Noise().apply({}, X, rngs=rngs)


def bound():
  fields, variables = BOUND_SETUP.unbind()
  return (
    BOUND(X, train=False),
    BOUND_SETUP(X),
    BOUND_SETUP.layers[1](X),
    BOUND_SETUP.tail.variables,
    BOUND_SETUP.size,
    BOUND_HOLDER.head(X),
    BOUND_HOLDER.inner(X),
    fields.bind(variables)(X),
    str(BOUND_SETUP),
    sorted(dir(BOUND_SETUP))[:3],
  )


def bound_mutable():
  model = Compact(0).bind(Compact(0).init(KEY, X), mutable=['counts'])
  for _ in range(2):
    model(X, train=False)
  model.put_variable('counts', 'n', 3 * model.get_variable('counts', 'n'))
  return model.variables['counts'], model(X, train=False)


class Nest(nn.Module):
  depth: int

  @nn.compact
  def __call__(self, x):
    x = nn.Dense(3)(x)
    return Nest(self.depth - 1)(x) + nn.Dense(3)(x) if self.depth else x


LARGE = Holder(Nest(2), (nn.Dense(3), Setup(nn.Dense(3))))
LARGE_VARIABLES = LARGE.init(KEY, X)


class Adopting(nn.Module):
  @nn.compact
  def __call__(self, x):
    return Holder(OUTSIDE, (OUTSIDE, Nest(0)))(x)


ADOPTING_VARIABLES = Adopting().init(KEY, X)

first_use = kept(
  lambda: LARGE.bind(LARGE_VARIABLES),
  lambda m: (m(X), m.head(X), m.others[1](X), m.inner(X), m(X)),
)
first_look = kept(
  lambda: LARGE.bind(LARGE_VARIABLES),
  lambda m: (m.others[1].layers[0](X), m.others[1].size, m.head.variables),
)
first_adoption = kept(
  lambda: Adopting().bind(ADOPTING_VARIABLES),
  lambda m: (m(X), m(X)),
)


def copies():
  clone = BOUND_HOLDER.clone()
  copy = HOLDER.copy(parent=None)
  return clone.apply(HOLDER_VARIABLES, X), copy.apply(HOLDER_VARIABLES, X)


class Scoped(nn.Module):
  a: nn.Module

  def setup(self):
    self.b = nn.Dense(3)
    nn.share_scope(self, self.b)

  def __call__(self, x):
    return self.b(self.a(x))


class Rooms(nn.Module):
  @nn.compact
  def __call__(self, x):
    return self.room(x, 'a') + self.room(x, 'b')

  @nn.compact_name_scope
  def up(self, x):
    return nn.Dense(3)(x)

  @nn.nowrap
  def room(self, x, name):
    return self.up(nn.Dense(3, name=name)(x))


def scopes():
  return (
    nn.tabulate(Rooms(), KEY, console_kwargs={'width': 200})(X),
    Scoped(nn.Dense(3)).init_with_output(KEY, X),
  )


def observed():
  def double(next_fun, args, kwargs, about):
    return 2 * next_fun(*args, **kwargs)

  with nn.intercept_methods(double), nn.override_named_call(False):
    y = COMPACT.apply(COMPACT_VARIABLES, X, train=False)
    z = BOUND(X, train=False)
  kept = COMPACT.apply(
    COMPACT_VARIABLES, X, train=False, capture_intermediates=True
  )
  with config.temp_flip_flag('return_frozendict', False):
    variables = COMPACT.init(KEY, X)
  with nn.logical_axis_rules([('a', 'b')]):
    rules = str(nn.get_logical_axis_rules())
  return y, z, kept, variables, rules


def tables():
  return (
    nn.tabulate(HOLDER, KEY, console_kwargs={'width': 200})(X),
    COMPACT.tabulate(KEY, X, depth=1, console_kwargs={'width': 200}),
  )


def lazy():
  shape = jax.ShapeDtypeStruct((2, 3), jnp.float32)
  return COMPACT.lazy_init(KEY, shape)


# --- Lifted transforms -------------------------------------------------------


def lifted(call, is_traced=False):
  """Returns a program that runs a compact method, or traces it."""

  class Lifted(nn.Module):
    @nn.compact
    def __call__(self, x):
      return call(self, x)

  def run(key=KEY, x=X):
    variables = Lifted().init(key, x)
    y, new = Lifted().apply(variables, x, mutable=['counts', 'batch_stats'])
    return variables, y, new

  return traced(run) if is_traced else run


def traced(run):
  """Returns a program that traces another one: to compile it takes longer."""
  # JAX would not trace the same function twice.
  return lambda: str(jax.make_jaxpr(lambda *args: run(*args))(KEY, X))


class Cell(nn.Module):
  @nn.compact
  def __call__(self, carry, x):
    y = nn.Dense(3)(x) + carry
    n = self.variable('counts', 'n', lambda: jnp.zeros(()))
    n.value = n.value + 1
    return y, y


def scan(self, x):
  options = {'variable_broadcast': 'params', 'variable_axes': {'counts': 0}}
  cells = nn.scan(Cell, **options, split_rngs={'params': False})
  return cells()(x[0], x)


def rnn(self, x):
  return nn.RNN(nn.LSTMCell(2))(x[None])


def vmap(self, x):
  mapped = nn.vmap(
    Compact, {'params': 0, 'counts': 0, 'batch_stats': 0, 'intermediates': 0},
    split_rngs={'params': True}, in_axes=(0, None),
  )  # fmt: skip
  return mapped(0)(x[:, None], False)


def remat(self, x):
  return nn.remat(Compact, static_argnums=(2,))(1)(x, True)


def jit(self, x):
  return nn.jit(nn.Dense)(3)(nn.jit(Compact, static_argnums=(2,))(0)(x, True))


def jit_methods(self, x):
  f = nn.jit(lambda m, x: m(x))
  dense = nn.Dense(3)
  return f(dense, x) + f(dense, x)


def cond(self, x):
  a, b = nn.Dense(3), nn.Dense(3)
  if self.is_initializing():
    a(x), b(x)
  y = nn.cond(True, lambda m, x: a(x), lambda m, x: b(x), self, x)
  return nn.switch(1, [lambda m, x: a(x), lambda m, x: b(x)], self, y)


class Loop(nn.Module):
  def setup(self):
    self.dense = nn.Dense(3)
    self.n = self.variable('counts', 'n', lambda: jnp.zeros(()))

  def __call__(self, x):
    if self.is_initializing():
      return self.dense(x)

    def body(m, x):
      m.n.value += 1
      return m.dense(x)

    return nn.while_loop(
      lambda m, x: m.n.value < 2, body, self, x,
      carry_variables='counts', broadcast_variables='params',
    )  # fmt: skip


def while_loop(self, x):
  return Loop()(x)


def gradients(self, x):
  dense = nn.Dense(3)
  y, pull = nn.vjp(lambda m, x: m(x), dense, x)
  value, grads = nn.value_and_grad(lambda m, x: m(x).sum(), dense, x)
  params_t = {'params': dense.variables['params']} if self.scope else {}
  _, tangent = nn.jvp(lambda m, x: m(x), dense, (x,), (x,), params_t)
  return y, pull(y), value, grads, tangent


def map_variables(self, x):
  dense = nn.map_variables(
    nn.Dense,
    'params',
    lambda v: jax.tree.map(lambda a: 2 * a, v),
    lambda v: jax.tree.map(lambda a: a / 2, v),
    init=self.is_initializing(),
    mutable=True,
  )
  return dense(3)(x)


def custom_vjp(self, x):
  def forward(m, x):
    return nn.vjp(lambda m, x: m(x), m, x)

  def backward(pull, y_t):
    grads, x_t = pull(y_t)
    return jax.tree.map(jnp.sign, grads), x_t

  f = nn.custom_vjp(lambda m, x: m(x), forward_fn=forward, backward_fn=backward)
  return f(nn.Dense(3), x)


def stacked(self, x):
  return nn.remat_scan(nn.Dense, lengths=(2, 1))(3)(x)


def metadata(self, x):
  options = {nn.PARTITION_NAME: 'a'}
  return nn.add_metadata_axis(nn.Dense, metadata_params=options)(3)(x)


class Noisy(nn.Module):
  kind: Any

  @nn.compact
  def __call__(self, x):
    for _ in range(3):
      x = self.kind()(x)
    return x + jax.random.uniform(self.make_rng('noise'))


class HaikuInside(nn.Module):
  kind: Any

  @nn.compact
  def __call__(self, x):
    f = self.kind
    return f(self, x) + f(self, x) + hk.Linear(3)(x)


def draw_keys(kind):
  def draw(key):
    rngs = {'dropout': key, 'noise': key}
    return [Noisy(kind).apply({}, X, rngs=rngs) for _ in range(2)]

  return str(jax.make_jaxpr(draw)(KEY))


# What JAX has compiled, or has not, is there the next time.
compiled_keys = kept(lambda: nn.jit(Noise), draw_keys)
compiled_parts = kept(
  lambda: nn.jit(lambda self, x: hk.Linear(3)(x)),
  lambda f: str(
    jax.make_jaxpr(
      lambda key: [HaikuInside(f).init_with_output(key, X) for _ in range(2)]
    )(KEY)
  ),
)

LIFTED = (vmap, remat, gradients, map_variables, custom_vjp, metadata)
TRACED = (scan, rnn, jit, jit_methods, cond, while_loop, stacked)


# --- Tracing -----------------------------------------------------------------


def traced_init():
  return str(jax.make_jaxpr(lambda k: Compact().init(k, X))(KEY))


def traced_step():
  def loss(params, x):
    variables = {**COMPACT_VARIABLES, 'params': params}
    y, _ = COMPACT.apply(variables, x, mutable=['counts', 'batch_stats'])
    return jnp.sum(y**2)

  step = jax.jit(lambda p, x: jax.value_and_grad(loss)(p, x))
  return str(step.trace(COMPACT_VARIABLES['params'], X).jaxpr)


def traced_bound():
  f = jax.jit(lambda x: BOUND_SETUP(x) + BOUND_HOLDER(x))
  return str(jax.make_jaxpr(f)(X)), jax.vmap(BOUND_SETUP)(X)


def traced_shapes():
  return str(jax.eval_shape(HOLDER.init, KEY, X))


def traced_lifted():
  class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
      return rnn(self, jit(self, x))

  def f(key, x):
    variables = Model().init(key, x)
    return Model().apply(variables, x, mutable=True)

  return str(jax.eval_shape(f, KEY, X))


# --- In Haiku ----------------------------------------------------------------


def in_haiku(fn, is_traced=False):
  def run(key=KEY, x=X):
    f = hk.transform_with_state(fn)
    params, state = f.init(key, x)
    return params, state, f.apply(params, state, key, x)

  return traced(run) if is_traced else run


class Agent(hk.Module):
  def __init__(self):
    super().__init__()
    self.torso = Setup(nn.Dense(2))

  def __call__(self, x):
    x = self.torso(x) + Compact(0)(x).sum()
    return hk.BatchNorm(True, True, 0.9)(hk.Linear(2)(x), True)


def agent(x):
  return Agent()(x)


def made_outside(x):
  return HOLDER(OUTSIDE(x)) + HOLDER(OUTSIDE(x))


first_in_haiku = kept(
  lambda: Holder(nn.Dense(3), (nn.Dense(3),)),
  lambda m: in_haiku(lambda x: m(x) + m(x))(),
)


def haiku_scan(x):
  cell = Cell()
  if hk.running_init():
    return cell(x[0], x[0])
  return hk.scan(lambda c, x: cell(c, x), x[0], x)


def haiku_lifted(x):
  mapped = nn.vmap(nn.Dense, {'params': 0}, split_rngs={'params': True})
  x = mapped(3)(x)
  return nn.jit(nn.remat(Setup))()(x)


def recurrent(x):
  core = interop.as_rnn_core(nn.GRUCell(3))
  return hk.dynamic_unroll(core, x[None], core.initial_state(2))


def inner_run(x):
  variables = COMPACT.init(hk.next_rng_key(), x)
  return COMPACT.apply(variables, x, train=False) + OUTSIDE(x)


def multi():
  def make():
    enc, dec = Setup(), nn.Dense(2)
    return (lambda x: dec(enc(x))), (lambda x: enc(x), lambda x: dec(enc(x)))

  f = hk.multi_transform(make)
  params = f.init(KEY, X)
  return params, [apply(params, KEY, X) for apply in f.apply]


class Both(nn.Module):
  """Haiku's modules in one of ours."""

  @nn.compact
  def __call__(self, x):
    x = nn.Dense(3)(hk.Linear(3)(x))
    w = hk.get_parameter('w', (3,), init=jnp.ones)
    return hk.BatchNorm(True, True, 0.9)(x * w, True)


def haiku_inside():
  variables = Both().init(KEY, X)
  return variables, Both().apply(variables, X, mutable=['state'])


def rename(n):
  names = f'layer-{n}', (n, 'a'), f'w:{n}', f'{n}/x'
  variables = {
    'params': {names[0]: {names[2]: X, names[3]: {names[1]: X}}},
    'state': {names[0]: {names[1]: X}},
  }
  params, state = interop.to_haiku(variables, root='r')
  assert interop.from_haiku(params, state, root='r') == variables


NUMBERS = itertools.count(10**6)
# What is known of a name is kept: a name that was interrupted comes again.
odd_names_program = kept(lambda: next(NUMBERS), rename)


def odd_names():
  odd_names_program()
  return 'as they were'


def functions():
  f = hk.transform_with_state(agent)
  module = interop.as_module(f)
  variables = module.init(KEY, X)
  y = module.apply(variables, X, mutable=True)
  params, state = interop.to_haiku(variables)
  back = interop.as_transformed(SETUP)
  return variables, y, params, back.init(KEY, X)


# --- Optimizers, structs -----------------------------------------------------


def optimizers():
  params = SETUP_VARIABLES['params']
  optimizer = optim.Momentum(0.1, 0.9).create(params)
  for _ in range(2):
    optimizer = optimizer.apply_gradient(params)
  state = train_state.TrainState.create(
    apply_fn=SETUP.apply, params=params, tx=optax.sgd(0.1)
  ).apply_gradients(grads=params)
  return (
    serialization.to_state_dict(optimizer),
    serialization.to_bytes(optimizer),
    state.params,
    state.step,
  )


def bytes_of_trees():
  content = serialization.to_bytes(COMPACT_VARIABLES)
  back = serialization.from_bytes(COMPACT_VARIABLES, content)
  return content, back, serialization.msgpack_restore(content)


@struct.dataclass
class Point:
  x: Any
  name: str = struct.field(pytree_node=False, default='a')


def structs():
  p = Point(X).replace(name='b')
  return p, serialization.from_state_dict(p, serialization.to_state_dict(p))


# --- Files -------------------------------------------------------------------

FOLDER = tempfile.TemporaryDirectory()


def folder(name):
  path = pathlib.Path(FOLDER.name) / name
  path.mkdir(exist_ok=True)
  return path


def listed(path):
  """Returns the names of all files there, hidden ones too."""
  return ' '.join(sorted(os.listdir(path)))


def checkpoint():
  path = folder('checkpoints')
  config.update('flax_use_orbax_checkpointing', False)
  for step in (1, 2):
    checkpoints.save_checkpoint(
      path, SETUP_VARIABLES, step, keep=1, overwrite=True, checksum=True
    )
  whole = checkpoints.restore_checkpoint(path, SETUP_VARIABLES)
  return whole, listed(path)


def weight_files():
  path = folder('weights')
  params = {'a': {'w': X, 'b': np.ones(2, np.int8)}}
  weights.save_npz(path / 'w.npz', params)
  weights.save_safetensors(path / 'w.safetensors', params)
  weights.save_msgpack(path / 'w.msgpack', params)
  return (
    weights.load_npz(path / 'w.npz'),
    weights.load_safetensors(path / 'w.safetensors'),
    weights.load_msgpack(path / 'w.msgpack'),
    listed(path),
  )


def pickled():
  path = folder('pickles') / 'w.pickle'
  path.write_bytes(pickle.dumps({'a': {'w': X, 'b': [1, (2.0, 'x')]}}))
  return weights.load_pickle(path, trust=True)


def other_files():
  path = folder('other') / 'a'
  with files.override_mode(files.BackendMode.DEFAULT):
    with files.GFile(str(path), 'wb') as file:
      file.write(b'a')
    return files.exists(str(path)), listed(path.parent)


PROGRAM = 'import flax\nfrom flax import linen as nn\nfound = nn.Dense(3)\n'


def port():
  path = folder('port') / 'p.py'
  path.write_text(PROGRAM)
  _port.write(_port.port(path))
  return path.read_text(), listed(path.parent)


def hook():
  names = {}
  with installed():
    exec(PROGRAM, names)
  assert type(names['found']) is nn.Dense
  return is_clean()


def is_clean():
  return 'haiku_state' not in repr(sys.meta_path), 'PYTHONPATH' in os.environ


def runner():
  path = folder('run') / 'p.py'
  path.write_text(PROGRAM)
  log = io.StringIO()
  with contextlib.redirect_stdout(log):
    status = run_path(path, [], None, log)
  return status, is_clean()


# --- The table ---------------------------------------------------------------

# Settings that hold in a `with` block are put back twice, not three times.
INTERRUPTED_ONCE = {'observed', 'other_files', 'hook', 'runner'}


def named(*programs):
  return {p.__name__: p for p in programs}


GROUPS = {
  'methods': {
    'first_use': first_use,
    'first_look': first_look,
    'first_adoption': first_adoption,
    **named(
      *(init_apply, setup, adopted, keys, bound, bound_mutable, copies, scopes),
      *(observed, tables, lazy),
    ),
  },
  'lifted': {
    **{f.__name__: lifted(f) for f in LIFTED},
    **{f.__name__: lifted(f, is_traced=True) for f in TRACED},
    'compiled_keys': compiled_keys,
    'compiled_parts': compiled_parts,
  },
  'tracing': named(
    traced_init, traced_step, traced_bound, traced_shapes, traced_lifted
  ),
  'haiku': {
    **{f.__name__: in_haiku(f) for f in (agent, made_outside, inner_run)},
    **{
      f.__name__: in_haiku(f, is_traced=True)
      for f in (haiku_scan, haiku_lifted, recurrent)
    },
    **named(multi, haiku_inside, functions, odd_names),
    'first_in_haiku': first_in_haiku,
  },
  'saving': named(
    *(optimizers, bytes_of_trees, structs, checkpoint, weight_files, pickled),
    *(other_files, port, hook, runner),
  ),
}
