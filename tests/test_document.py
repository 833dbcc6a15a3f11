"""The documented programs run with only their import lines changed.

What Flax would compute is computed by Flax itself: the same blocks, of which
only the line of `optim`, which Flax no longer has, is changed.
"""

import functools

import document
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec
from jax_names import shard_map
from layers_compare import as_dict, assert_same_leaves

from haiku_state import linen, optim
from haiku_state.core import FrozenDict

RUNNING_MEAN, BATCH_NORM = document.programs()
PROGRAMS = {'running mean': RUNNING_MEAN, 'batch norm': BATCH_NORM}
each_program = pytest.mark.parametrize(
  'blocks', PROGRAMS.values(), ids=PROGRAMS.keys()
)
FLAX_LINES = {
  'from flax import optim': document.IMPORT_LINES['from flax import optim']
}


@pytest.fixture
def flax():
  """Flax, which returns frozen dicts as it did when the document was new."""
  flax = pytest.importorskip('flax')
  with flax.config.temp_flip_flag('return_frozendict', True):
    yield flax


def assert_close(ours, theirs, tolerance=1e-6):
  ours, theirs = as_dict(ours), as_dict(theirs)
  assert jax.tree.structure(ours) == jax.tree.structure(theirs)
  for (path, a), b in zip(
    jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs)
  ):
    where = jax.tree_util.keystr(path)
    np.testing.assert_allclose(a, b, tolerance, tolerance, err_msg=where)


def step_of(ns, train=True, compiled=True):
  """Returns the document's step as `step(optimizer, state) -> (...)`.

  Args:
    ns: the namespace of a program that has run.
    train: whether `train=True` is passed to the model.
    compiled: whether the step is compiled.
  """
  if 'MLP' not in ns:
    data, apply_fn = (ns['dummy_input'],), ns['model'].apply
  else:
    data, apply_fn = (ns['X'], ns['Y']), ns['model'].apply
    if train:
      apply_fn = functools.partial(apply_fn, train=True)

  def step(optimizer, state, *data):
    return ns['update_step'](apply_fn, *data, optimizer, state)

  fn = jax.jit(step) if compiled else step
  return lambda optimizer, state: fn(optimizer, state, *data)


def start(ns):
  """Returns what the program's first lines make: optimizer and state."""
  variables = ns['model'].init(jax.random.PRNGKey(0), ns['dummy_input'])
  state, params = variables.pop('params')
  return ns['optim'].sgd.GradientDescent(learning_rate=0.02).create(
    params
  ), state


# --- As they stand -----------------------------------------------------------


def test_copy_is_the_document():
  if not document.ORIGINAL.exists():
    pytest.skip('the document is not beside this repository')
  assert document.COPY.read_bytes() == document.ORIGINAL.read_bytes()


def test_document_has_two_programs_of_four_blocks():
  assert [len(blocks) for blocks in PROGRAMS.values()] == [4, 4]


@each_program
def test_only_import_lines_change(blocks):
  changed = [
    (old, new)
    for block in blocks
    for old, new in zip(
      block.split('\n'),
      document.ported(block, document.IMPORT_LINES).split('\n'),
    )
    if old != new
  ]
  assert changed == list(document.IMPORT_LINES.items())


def test_programs_run_in_one_namespace():
  ns = document.run(RUNNING_MEAN)
  ns = document.run(BATCH_NORM, namespace=ns)
  assert ns['nn'] is linen and ns['optim'] is optim
  assert np.isfinite(ns['loss'])


def test_running_mean_program():
  ns = document.run(RUNNING_MEAN)
  # The update adds 0.1 of a mean of ones; the bias takes one step of 0.02.
  assert_close(ns['state'], {'batch_stats': {'mean': np.full((1, 4), 0.1)}})
  (bias,) = jax.tree.leaves(ns['optimizer'].target)
  np.testing.assert_allclose(bias, 0.02 * 2 * 3 * 0.9 * np.ones(4), 1e-6)
  assert ns['optimizer'].state.step == 1


def test_batch_norm_program():
  ns = document.run(BATCH_NORM)
  assert isinstance(ns['state'], FrozenDict)
  assert set(ns['state']) == {'batch_stats'}
  # As it stands, the program does not pass `train=True`: nothing moves.
  for layer in ns['state']['batch_stats'].values():
    np.testing.assert_array_equal(layer['mean'], np.zeros(10))
    np.testing.assert_array_equal(layer['var'], np.ones(10))
  assert ns['loss'].shape == ()


# --- Equal to Flax -----------------------------------------------------------


@each_program
def test_initial_variables_are_flax_s(flax, blocks):
  ours, theirs = document.run(blocks), document.run(blocks, FLAX_LINES)
  assert theirs['nn'] is flax.linen
  x = ours['dummy_input']
  for seed in range(3):
    key = jax.random.PRNGKey(seed)
    variables = ours['model'].init(key, x)
    assert isinstance(variables, FrozenDict)
    want = theirs['model'].init(key, x)
    assert list(variables) == list(want)
    assert_same_leaves(variables, want)


@each_program
def test_program_ends_as_flax_s_does(flax, blocks):
  ours, theirs = document.run(blocks), document.run(blocks, FLAX_LINES)
  assert_close(ours['state'], theirs['state'])
  assert_close(ours['optimizer'].target, theirs['optimizer'].target)
  assert_close(ours.get('loss', 0.0), theirs.get('loss', 0.0))


def gradient_of(ns, train):
  """Returns the loss, the updated state and the gradient of a batch."""
  optimizer, state = start(ns)
  model = ns['model']

  if 'MLP' in ns:

    def loss(params):
      def one(x, y):
        pred, new = model.apply(
          {'params': params, **state}, x, train=train, mutable=['batch_stats']
        )
        return (pred - y) ** 2, new

      values, new = jax.vmap(one, out_axes=(0, None), axis_name='batch')(
        ns['X'], ns['Y']
      )
      return jnp.mean(values), new
  else:

    def loss(params):
      x = ns['dummy_input']
      y, new = model.apply(
        {'params': params, **state}, x, mutable=['batch_stats']
      )
      return ((x - y) ** 2).sum(), new

  (value, new), grads = jax.value_and_grad(loss, has_aux=True)(optimizer.target)
  return value, new, grads


@each_program
@pytest.mark.parametrize('train', [False, True])
def test_outputs_updates_and_gradients_are_flax_s(flax, blocks, train):
  ours, theirs = document.run(blocks), document.run(blocks, FLAX_LINES)
  assert_close(gradient_of(ours, train), gradient_of(theirs, train))


@each_program
def test_many_steps_are_flax_s(flax, blocks):
  ours, theirs = document.run(blocks), document.run(blocks, FLAX_LINES)
  here, there = start(ours), start(theirs)
  our_step, their_step = step_of(ours), step_of(theirs)
  for _ in range(100):
    here, there = our_step(*here)[:2], their_step(*there)[:2]
  assert_close(here[1], there[1], 1e-5)
  assert_close(here[0].target, there[0].target, 1e-5)


@each_program
def test_lowered_step_is_flax_s(flax, blocks):
  """The same program for the compiler, line for line."""

  def text(ns):
    optimizer, state = start(ns)
    leaves, tree = jax.tree.flatten((optimizer, state))

    def program(*leaves):
      out = step_of(ns, compiled=False)(*tree.unflatten(leaves))
      return jax.tree.leaves(out)

    return jax.jit(program).lower(*leaves).as_text()

  ours, theirs = document.run(blocks), document.run(blocks, FLAX_LINES)
  assert text(ours) == text(theirs)


# --- Compiled, and for long --------------------------------------------------


@each_program
def test_compiled_step_is_the_step(blocks):
  ns = document.run(blocks)
  plain_out = step_of(ns, compiled=False)(*start(ns))
  assert_close(step_of(ns)(*start(ns)), plain_out)


@each_program
def test_document_s_step_compiles_with_the_method_as_static_argument(blocks):
  ns = document.run(blocks)
  traces = []
  step = ns['update_step']

  def counted(*args):
    traces.append(args)
    return step(*args)

  ns['update_step'] = jax.jit(counted, static_argnums=0)
  ns['num_epochs'] = 5
  document.run(blocks[-1:], namespace=ns)
  # The documented running mean is (4,) at first, and (1, 4) from then on.
  assert len(traces) == (2 if blocks is RUNNING_MEAN else 1)


def test_running_mean_approaches_the_mean():
  ns = document.run(RUNNING_MEAN)
  ns['num_epochs'] = 300
  document.run(RUNNING_MEAN[-1:], namespace=ns)
  assert_close(ns['state'], {'batch_stats': {'mean': np.ones((1, 4))}}, 1e-3)
  (bias,) = jax.tree.leaves(ns['optimizer'].target)
  np.testing.assert_allclose(bias, np.zeros(4), atol=1e-3)


def test_training_lowers_the_loss():
  ns = document.run(BATCH_NORM)
  step, here = step_of(ns), start(ns)
  losses = []
  for _ in range(200):
    *here, loss = step(*here)
    losses.append(float(loss))
  assert losses[-1] < 0.2 * losses[0]
  evaluated, _, _ = gradient_of({**ns, 'start': None}, train=False)
  assert np.isfinite(evaluated)


# --- State that changes ------------------------------------------------------


def whole_batch_state(ns, variables, x):
  """Returns the state after one call on the whole batch, unmapped."""

  def call(x):
    return ns['model'].apply(variables, x, train=True, mutable=['batch_stats'])

  # The axis that the model names must be there: one with a single index.
  _, state = jax.vmap(call, out_axes=(0, None), axis_name='batch')(x[None])
  return state


def test_training_changes_state_as_one_call_on_the_whole_batch():
  ns = document.run(BATCH_NORM)
  optimizer, state = start(ns)
  _, after, _ = step_of(ns)(optimizer, state)
  variables = {'params': optimizer.target, **state}
  assert_close(after, whole_batch_state(ns, variables, ns['X']))
  first = after['batch_stats']['BatchNorm_0']
  h = ns['X'] @ optimizer.target['Dense_0']['kernel']
  np.testing.assert_allclose(first['mean'], 0.1 * h.mean(0), 1e-5, 1e-6)
  np.testing.assert_allclose(first['var'], 0.9 + 0.1 * h.var(0), 1e-5, 1e-6)


def test_without_out_axes_none_the_state_has_one_copy_for_each_example():
  ns = document.run(BATCH_NORM)
  optimizer, state = start(ns)
  variables = {'params': optimizer.target, **state}

  def call(x):
    return ns['model'].apply(variables, x, train=True, mutable=['batch_stats'])

  _, copies = jax.vmap(call, axis_name='batch')(ns['X'])
  for copy, one in zip(
    jax.tree.leaves(copies),
    jax.tree.leaves(whole_batch_state(ns, variables, ns['X'])),
  ):
    np.testing.assert_allclose(
      copy, np.broadcast_to(one, copy.shape), 1e-5, 1e-6
    )


# --- Over devices ------------------------------------------------------------

DEVICES = 4
needs_devices = pytest.mark.skipif(
  jax.device_count() < DEVICES, reason=f'needs {DEVICES} devices'
)
BOTH_AXES = (
  'axis_name="batch", # Name',
  'axis_name=("batch", "devices"), # Name',
)


def across_devices():
  """Returns the program with statistics over examples and devices."""
  blocks = [block.replace(*BOTH_AXES) for block in BATCH_NORM]
  assert blocks != BATCH_NORM
  return document.run(blocks[:-1])


def shards(ns):
  """Returns the data of each device, with an axis for devices in front."""
  if 'MLP' in ns:
    data = ns['X'], ns['Y']
  else:
    data = (jax.random.normal(jax.random.PRNGKey(1), (12, 4)),)
  return [x.reshape(DEVICES, -1, *x.shape[1:]) for x in data]


def mapped_by_pmap(step, ns):
  """Returns what `step` returns for each shard, as `jax.pmap` runs it."""
  return jax.pmap(step, axis_name='devices')(*shards(ns))


def mapped_by_shard_map(step, ns):
  """Returns what `step` returns for each shard, by `jax.shard_map`."""
  mesh = Mesh(np.array(jax.devices()[:DEVICES]), ('devices',))
  split = PartitionSpec('devices')

  def on_shard(*data):
    out = step(*(x[0] for x in data))
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], out)

  mapped = shard_map(
    on_shard,
    mesh=mesh,
    in_specs=split,
    out_specs=split,
    # JAX cannot check a `lax.pmean` over an axis of `vmap` (an assertion of
    # its own fails, under Flax's BatchNorm too).
    check='MLP' not in ns,
  )
  return jax.jit(mapped)(*shards(ns))


each_map = pytest.mark.parametrize(
  'mapped', [mapped_by_pmap, mapped_by_shard_map], ids=['pmap', 'shard_map']
)


def of_device(outs, device):
  return jax.tree.map(lambda leaf: leaf[device], outs)


@needs_devices
@each_map
@each_program
def test_each_device_trains_on_its_shard(blocks, mapped):
  ns = document.run(blocks)
  optimizer, state = start(ns)
  apply_fn = ns['model'].apply
  if 'MLP' in ns:
    apply_fn = functools.partial(apply_fn, train=True)

  def step(*data):
    # Parameters that devices share would have one gradient, summed over them.
    mine = jax.tree.map(lambda x: x + 0 * data[0].sum(), optimizer.target)
    own = optimizer.replace(target=mine)
    new, *rest = ns['update_step'](apply_fn, *data, own, state)
    return new.target, *rest

  outs = mapped(step, ns)
  for device, data in enumerate(zip(*shards(ns))):
    assert_close(of_device(outs, device), jax.jit(step)(*data))


@needs_devices
@each_map
def test_over_both_axes_it_is_one_step_on_the_whole_batch(mapped):
  ns = document.run(BATCH_NORM)
  optimizer, state = start(ns)
  over_devices = across_devices()
  model = over_devices['MLP'](hidden_size=10, out_size=1)
  apply_fn = functools.partial(model.apply, train=True)

  def step(x, y):
    after, new_state, loss = over_devices['update_step'](
      apply_fn, x, y, optimizer, state
    )
    mean = functools.partial(jax.lax.pmean, axis_name='devices')
    return mean(after.target), new_state, mean(loss)

  outs = mapped(step, ns)
  after, new_state, loss = step_of(ns)(optimizer, state)
  for device in range(DEVICES):
    assert_close(of_device(outs, device), (after.target, new_state, loss))
