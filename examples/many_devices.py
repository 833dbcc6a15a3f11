"""Train one model on one device, on many, and in many processes.

The model has batch normalization over all examples and kernels that are split
over devices. How it is run is an option; the losses are the same to rounding:

  python examples/many_devices.py                    # all devices there are
  python examples/many_devices.py --devices 8        # 8 of this machine's CPU
  python examples/many_devices.py --devices 8 --by shard_map
  python examples/many_devices.py --devices 8 --processes 2
  python examples/many_devices.py --devices 8 --optimizer optim --in-haiku

With `--checkpoints FOLDER` it goes on from the last checkpoint in the folder,
whatever the number of devices and processes was: `pip install '.[checkpoint]'`.
`docs/many_devices.md` tells what each part is for.
"""

import argparse
import functools
import json
import os
import socket
import subprocess
import sys
import time
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec
from showing import say, trange

from haiku_state import interop, optim, struct
from haiku_state import linen as nn
from haiku_state.training import checkpoints
from haiku_state.training.train_state import TrainState

INPUTS, HIDDEN, BATCH = 16, 64, 64

# --- The model ----------------------------------------------------------------


class Net(nn.Module):
  """A network whose hidden features lie along the mesh axis 'model'.

  Attributes:
    axis_name: the axis over which batches are normalized, where each device
      sees its part of a batch only.
  """

  axis_name: str | None = None

  @nn.compact
  def __call__(self, x):
    init = nn.initializers.lecun_normal()
    columns = nn.with_partitioning(init, (None, 'model'))
    rows = nn.with_partitioning(init, ('model', None))
    norm = functools.partial(
      nn.BatchNorm, use_running_average=False, axis_name=self.axis_name
    )
    y = nn.Dense(HIDDEN, kernel_init=columns)(x)
    y = nn.relu(norm()(y))
    y = nn.Dense(INPUTS, kernel_init=rows)(y)
    return nn.Dense(1)(nn.relu(norm()(y)))[:, 0]


class Program(NamedTuple):
  """A model as two functions.

  Attributes:
    init: takes a key and a batch, returns parameters and statistics.
    apply: takes both and a batch, returns outputs and new statistics.
  """

  init: Any
  apply: Any


def in_linen(axis_name):
  model = Net(axis_name)

  def init(key, x):
    stats, params = model.init(key, x).pop('params')
    return params, stats

  def apply(params, stats, x):
    variables = {'params': params, **stats}
    return model.apply(variables, x, mutable=['batch_stats'])

  return Program(init, apply)


def in_haiku(axis_name):
  network = hk.transform_with_state(lambda x: Net(axis_name)(x))

  def init(key, x):
    # `network.init(key, x)` would draw by Haiku's keys, and lose comparison.
    return interop.to_haiku(Net(axis_name).init(key, x), 'net')

  def apply(params, stats, x):
    return network.apply(params, stats, None, x)

  return Program(init, apply)


# --- Training -----------------------------------------------------------------


class State(struct.PyTreeNode):
  """All that a step changes.

  Attributes:
    step: how many steps were made.
    trained: a `TrainState`, or an `optim.Optimizer`.
    stats: the statistics of the batches.
  """

  step: Any
  trained: Any
  stats: Any


OPTIMIZERS = {
  'optax': optax.adafactor(0.05, min_dim_size_to_factor=16),
  'optim': optim.Adafactor(0.05, min_dim_size_to_factor=16),
}


def make_state(program, optimizer):
  params, stats = program.init(jax.random.key(0), jnp.zeros((2, INPUTS)))
  if isinstance(optimizer, optim.OptimizerDef):
    trained = optimizer.create(params)
  else:
    trained = TrainState.create(
      apply_fn=program.apply, params=params, tx=optimizer
    )
  return State(jnp.zeros((), jnp.int32), trained, stats)


def train_step(program, axis_name, state, x, y):
  """Takes a step; with an axis name, on the part of a batch of one device."""

  def loss_and_stats(params):
    outputs, stats = program.apply(params, state.stats, x)
    loss = jnp.mean((outputs - y) ** 2)
    return jax.lax.pmean(loss, axis_name) if axis_name else loss, stats

  gradient = jax.value_and_grad(loss_and_stats, has_aux=True)
  trained = state.trained
  if isinstance(trained, optim.Optimizer):
    (loss, stats), grads = gradient(trained.target)
    trained = trained.apply_gradient(grads)
  else:
    (loss, stats), grads = gradient(trained.params)
    trained = trained.apply_gradients(grads=grads)
  return State(state.step + 1, trained, stats), loss


def make_batch(step):
  """Makes the batch of a step: x [BATCH, INPUTS] and y [BATCH], of NumPy."""
  rng = np.random.default_rng(step)
  x = rng.normal(size=(BATCH, INPUTS)).astype(np.float32)
  return x, np.sin(x[:, 0]) * x[:, 1] + x[:, 2]


# --- Where things are -----------------------------------------------------------


def make_mesh():
  """Arranges all devices, of all processes, as data x model."""
  devices = jax.device_count()
  model = 2 if devices % 2 == 0 else 1
  grid = np.array(jax.devices()).reshape(devices // model, model)
  return jax.sharding.Mesh(grid, ('data', 'model'))


def begin(make, shapes, shardings, folder):
  """Makes the state where it is to be, or restores it to there."""
  if folder and checkpoints.latest_checkpoint(folder):
    target = jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      shapes,
      shardings,
    )
    return checkpoints.restore_checkpoint(folder, target)
  return jax.jit(make, out_shardings=shardings)()


def on_devices(array, sharding):
  """Places an array; each process reads the part of its own devices only."""
  return jax.make_array_from_callback(
    array.shape, sharding, lambda index: array[index]
  )


def describe(state):
  """Tells where each array is that is split, and how large its parts are."""
  whole = 0
  for path, x in jax.tree_util.tree_leaves_with_path(state):
    part = x.addressable_shards[0].data
    if part.shape == x.shape:
      whole += 1
      continue
    say(
      f'{jax.tree_util.keystr(path)} {x.shape}: {x.sharding.spec},'
      f' {part.shape} on each device'
    )
    if x.shape == (INPUTS, HIDDEN) and x.is_fully_addressable:
      try:
        jax.debug.visualize_array_sharding(x)
      except ImportError:
        pass  # The picture takes `rich`.
  say(f'{whole} more, of which each device holds the whole')


def train(options):
  """Trains, and returns the loss of each step that was made."""
  mesh = make_mesh()
  axis_name = 'data' if options.by == 'shard_map' else None
  program = (in_haiku if options.in_haiku else in_linen)(axis_name)
  make = functools.partial(make_state, program, OPTIMIZERS[options.optimizer])

  shapes = jax.eval_shape(make)
  shardings = nn.get_sharding(shapes, mesh, keep_boxes=True)
  state = begin(make, shapes, shardings, options.checkpoints)

  batch = NamedSharding(mesh, PartitionSpec('data'))
  step_fn = functools.partial(train_step, program, axis_name)
  if axis_name:
    # Each device gets its part of the batch; 'model' is left to the compiler.
    part, whole = PartitionSpec('data'), PartitionSpec()
    step_fn = jax.shard_map(
      step_fn,
      mesh=mesh,
      axis_names={'data'},
      in_specs=(whole, part, part),
      out_specs=whole,
    )
  step_fn = jax.jit(
    step_fn,
    in_shardings=(shardings, batch, batch),
    out_shardings=(shardings, None),
    donate_argnums=0,
  )

  is_first = jax.process_index() == 0
  if is_first:
    say(f'{mesh} of {jax.process_count()} process(es)')
    describe(state)
  losses, first = [], int(state.step)
  progress = trange if is_first else range
  for n in progress(first, first + options.steps):
    if n == first + 1:
      start = time.perf_counter()  # The first step is compiled.
    state, loss = step_fn(state, *(on_devices(a, batch) for a in make_batch(n)))
    losses.append(float(loss))
  if is_first:
    seconds = time.perf_counter() - start
    rate = (options.steps - 1) * BATCH / seconds
    say(f'Loss {losses[0]:.4f} to {losses[-1]:.4f}, {rate:.0f} examples/s')
  if options.checkpoints:
    path = checkpoints.save_checkpoint_multiprocess(
      options.checkpoints, state, int(state.step)
    )
    say(f'Saved {path}')
  return losses


# --- Processes ------------------------------------------------------------------


def supervise(options, argv):
  """Runs this program in several processes; if one fails, ends all.

  On a cluster this is what its scheduler does.
  """
  with socket.create_server(('localhost', 0)) as server:
    address = f'localhost:{server.getsockname()[1]}'
  command = [sys.executable, __file__, *argv, '--address', address]
  processes = [
    subprocess.Popen(
      [*command, '--process', str(i)], stdout=subprocess.PIPE, text=True
    )
    for i in range(options.processes)
  ]
  try:
    while any(process.poll() is None for process in processes):
      failed = [i for i, p in enumerate(processes) if p.poll()]
      if failed:
        raise SystemExit(f'Process {failed[0]} failed: all are ended.')
      time.sleep(0.1)
    *said, losses = processes[0].communicate()[0].splitlines()
  finally:
    for process in processes:
      process.kill()
  say('\n'.join(said))
  return json.loads(losses)


def use_cpu(devices):
  """Makes the CPU look like several devices, before JAX looks for any."""
  jax.config.update('jax_platforms', 'cpu')
  flags = os.environ.get('XLA_FLAGS', '')
  os.environ['XLA_FLAGS'] = (
    f'{flags} --xla_force_host_platform_device_count={devices}'
  )


def join(options):
  """Makes this process one of several, before JAX looks for devices."""
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  jax.distributed.initialize(
    options.address,
    options.processes,
    options.process,
    heartbeat_timeout_seconds=30,
  )


def main(argv=None):
  argv = sys.argv[1:] if argv is None else argv
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--steps', type=int, default=300)
  parser.add_argument('--devices', type=int, help='of the CPU, in all')
  parser.add_argument('--processes', type=int, default=1)
  parser.add_argument('--by', choices=['jit', 'shard_map'], default='jit')
  parser.add_argument('--optimizer', choices=OPTIMIZERS, default='optax')
  parser.add_argument('--in-haiku', action='store_true')
  parser.add_argument('--checkpoints', help='a folder')
  parser.add_argument('--short', action='store_true', help='a few steps')
  parser.add_argument('--address', help=argparse.SUPPRESS)
  parser.add_argument('--process', type=int, help=argparse.SUPPRESS)
  options = parser.parse_args(argv)
  if options.short:
    options.steps = 5
  if options.processes > 1 and options.process is None:
    return supervise(options, argv)
  if options.devices:
    use_cpu(options.devices // options.processes)
  if options.process is not None:
    join(options)
  losses = train(options)
  if options.process == 0:
    print(json.dumps(losses))
  return losses


if __name__ == '__main__':
  main()
