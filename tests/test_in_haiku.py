"""Modules in a Haiku user's hands, and Haiku modules in linen-style modules.

Each use is compared with the plain computation by the pure function `apply`.
"""

import concurrent.futures
import functools
from typing import Any

import haiku as hk
import haiku_table as table
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counted import calls
from layers_compare import as_dict

from haiku_state import linen as nn
from haiku_state.core import _bundles

KEY = jax.random.PRNGKey(0)
X = jax.random.normal(jax.random.PRNGKey(3), (5, 4))

# Haiku's name of each model at the top of a function.
ROOTS = {
  'running mean': 'bias_adder_with_running_mean',
  'MLP': 'mlp',
  'haiku inside': 'haiku_inside',
}
# Each use with one of its models in turn; `--long` has the others.
CASES = [
  pytest.param(
    row,
    name,
    id=f'{use}-{name}',
    marks=[pytest.mark.long] * ((i + j) % len(row.models) != 0),
  )
  for i, (use, row) in enumerate(table.ROWS.items())
  for j, name in enumerate(row.models)
]
each_case = pytest.mark.parametrize('row, name', CASES)


def collections_of(variables):
  return [col for col in variables if col != 'params']


def step_of(model):
  """Returns the model as a pure function of its variables."""

  def step(variables, x):
    y, new = model.make().apply(
      variables, x, **model.kwargs, mutable=collections_of(variables)
    )
    return y, {**variables, **new}

  return step


def initial_variables(model, x):
  return as_dict(model.make().init(KEY, x, **model.kwargs))


def assert_close(got, want):
  got, want = as_dict(got), as_dict(want)
  assert jax.tree.structure(got) == jax.tree.structure(want)
  for (path, a), b in zip(
    jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want)
  ):
    where = jax.tree_util.keystr(path)
    np.testing.assert_allclose(a, b, 1e-4, 1e-5, err_msg=where)


def variables_of(params, state, root):
  """Returns what lies below a module in Haiku's dictionaries."""

  def below(bundles):
    return {
      path: bundle
      for path, bundle in bundles.items()
      if path == root or path.startswith(root + '/')
    }

  return _bundles.from_haiku(below(params), below(state), root)


# --- Our modules in Haiku's functions ----------------------------------------


def native(around, model):
  def f(x):
    module = model.make()
    return around(lambda x: module(x, **model.kwargs), x)

  return hk.transform_with_state(f)


def root_of(params, state, name):
  """Returns the Haiku name of a model, wherever it was called."""
  paths = [p for p in {**params, **state} if name in p.split('/')]
  (root,) = {p[: p.index(name)] + name for p in paths}
  return root


@each_case
def test_in_a_haiku_function_it_computes_what_apply_computes(row, name):
  model = table.MODELS[name]
  f = native(row.around, model)
  params, state = f.init(KEY, X)
  root = root_of(params, state, ROOTS[name])
  variables = variables_of(params, state, root)
  want = jax.eval_shape(functools.partial(initial_variables, model), X)
  shapes = jax.tree.map(lambda x: (x.shape, x.dtype), (variables, want))
  assert shapes[0] == shapes[1]
  y, new = f.apply(params, state, None, X)
  assert jax.tree.structure(new) == jax.tree.structure(state)
  want_y, want_new = row.plain(step_of(model), variables, X)
  assert_close(y, want_y)
  assert_close(variables_of(params, new, root), want_new)


# --- Haiku in our modules ----------------------------------------------------


def inside(around, model):
  class Outer(nn.Module):
    @nn.compact
    def __call__(self, x):
      module = model.make(name='inner')
      return around(lambda x: module(x, **model.kwargs), x)

  return Outer()


@pytest.mark.long
@each_case
def test_in_a_module_it_computes_what_apply_computes(row, name):
  model = table.MODELS[name]
  outer = inside(row.around, model)
  given = as_dict(outer.init(KEY, X))
  variables = {col: tree.get('inner', {}) for col, tree in given.items()}
  want = jax.eval_shape(functools.partial(initial_variables, model), X)
  shapes = jax.tree.map(lambda x: (x.shape, x.dtype), (variables, want))
  assert shapes[0] == shapes[1]

  y, new = outer.apply(given, X, mutable=collections_of(given))
  want_y, want_new = row.plain(step_of(model), variables, X)
  assert_close(y, want_y)
  assert jax.tree.structure(as_dict({**given, **new})) == (
    jax.tree.structure(given)
  )
  updates = {col: tree['inner'] for col, tree in new.items()}
  assert_close({**variables, **updates}, want_new)


# --- A mapped batch ----------------------------------------------------------


def _mapped(call, x):
  return hk.vmap(call, axis_name='batch', split_rng=False)(x)


def _plain_mapped(step, variables, x):
  return jax.vmap(
    functools.partial(step, variables), out_axes=(0, None), axis_name='batch'
  )(x)


@pytest.mark.parametrize('where', ['native', 'inside'])
def test_batch_norm_over_a_batch_that_haiku_maps(where):
  model = table.MAPPED_MLP
  if where == 'native':
    f = native(_mapped, model)
    params, state = f.init(KEY, X)
    variables = variables_of(params, state, 'mlp')
    y, new = f.apply(params, state, None, X)
    new = variables_of(params, new, 'mlp')
  else:
    outer = inside(_mapped, model)
    given = outer.init(KEY, X)
    variables = {col: tree['inner'] for col, tree in given.items()}
    y, updates = outer.apply(given, X, mutable=['batch_stats'])
    new = {'batch_stats': updates['batch_stats']['inner']}
    new = {**variables, **new}
  want_y, want_new = _plain_mapped(step_of(model), variables, X)
  assert_close(y, want_y)
  assert_close(new, want_new)
  assert not np.allclose(
    new['batch_stats']['BatchNorm_0']['mean'],
    variables['batch_stats']['BatchNorm_0']['mean'],
  )


# --- Haiku's collection ------------------------------------------------------


def test_state_of_haiku_modules_is_the_collection_state():
  model = table.HaikuInside()
  variables = model.init(KEY, X)
  assert set(variables) == {'params', 'state', 'batch_stats'}
  assert set(variables['params']) == {
    'Dense_0',
    'batch_norm',
    'by_haiku',
    'BatchNorm_0',
  }
  # Haiku's `init` returns first values: nothing was averaged yet.
  ema = variables['state']['batch_norm']['~']['mean_ema']
  np.testing.assert_array_equal(ema['hidden'], np.zeros((1, 3)))
  assert ema['counter'] == 0
  y, new = model.apply(variables, X, mutable=['state', 'batch_stats'])
  assert set(new) == {'state', 'batch_stats'}
  # Both layers normalize over the batch; the first sees what `Dense` returns.
  h = nn.Dense(3).apply({'params': variables['params']['Dense_0']}, X)
  ema = new['state']['batch_norm']['~']['mean_ema']
  np.testing.assert_allclose(ema['hidden'][0], 0.1 * h.mean(0), 1e-5, 1e-6)
  np.testing.assert_allclose(ema['average'][0], h.mean(0), 1e-5, 1e-6)
  assert ema['counter'] == 1
  y2, only_state = model.apply(
    {**variables, **new}, X, mutable=['state', 'batch_stats']
  )
  assert only_state['state']['batch_norm']['~']['mean_ema']['counter'] == 2
  np.testing.assert_allclose(y, y2, 1e-5, 1e-6)


def test_beside_haiku_s_own_layers():
  def f(x):
    x = hk.Linear(3)(x)
    x = hk.BatchNorm(True, True, decay_rate=0.9)(x, is_training=True)
    x = table.MLP(4, 3)(x, train=True)
    return hk.Linear(2, name='head')(x)

  f = hk.transform_with_state(f)
  params, state = f.init(KEY, X)
  assert set(params) == {
    'linear',
    'batch_norm',
    'head',
    *(f'mlp/Dense_{i}' for i in range(3)),
    *(f'mlp/BatchNorm_{i}' for i in range(2)),
  }
  y, new = f.apply(params, state, None, X)
  h = X @ params['linear']['w'] + params['linear']['b']
  h = (h - h.mean(0)) / jnp.sqrt(h.var(0) + 1e-5)
  variables = variables_of(params, state, 'mlp')
  h, want = table.MLP(4, 3).apply(
    variables, h, train=True, mutable=['batch_stats']
  )
  np.testing.assert_allclose(
    y, h @ params['head']['w'] + params['head']['b'], 1e-4, 1e-5
  )
  got = variables_of(params, new, 'mlp')
  np.testing.assert_allclose(
    got['batch_stats']['BatchNorm_0']['var'],
    want['batch_stats']['BatchNorm_0']['var'],
    1e-4,
  )
  assert new['batch_norm/~/mean_ema']['counter'] == 1


def test_gradients_are_those_of_apply():
  f = native(lambda call, x: call(x), table.MODELS['haiku inside'])
  params, state = f.init(KEY, X)

  def loss(params):
    y, new = f.apply(params, state, None, X)
    return (y**2 + y).sum(), new

  grads, _ = jax.grad(loss, has_aux=True)(params)
  variables = variables_of(params, state, 'haiku_inside')
  step = step_of(table.MODELS['haiku inside'])

  def plain_loss(tree):
    y, _ = step({**variables, 'params': tree}, X)
    return (y**2 + y).sum()

  want = jax.grad(plain_loss)(variables['params'])
  assert_close(_bundles.from_haiku(grads, {}, 'haiku_inside')['params'], want)


# --- Layers that are stacked -------------------------------------------------


class Stack(nn.Module):
  depth: int

  @nn.compact
  def __call__(self, x):
    @hk.layer_stack(self.depth)
    def layers(x):
      return jnp.tanh(nn.Dense(x.shape[-1], name='dense')(x))

    return layers(x)


def _stacked_by_hand(kernels, biases, x):
  for kernel, bias in zip(kernels, biases):
    x = jnp.tanh(x @ kernel + bias)
  return x


def test_layer_stack_of_our_layers_in_a_haiku_function():
  def f(x):
    @hk.layer_stack(3)
    def layers(x):
      return jnp.tanh(nn.Dense(4)(x))

    return layers(x)

  f = hk.transform(f)
  params = f.init(KEY, X)
  ((path, bundle),) = params.items()
  assert path.endswith('dense')
  assert bundle['kernel'].shape == (3, 4, 4)
  assert not np.allclose(bundle['kernel'][0], bundle['kernel'][1])
  want = _stacked_by_hand(bundle['kernel'], bundle['bias'], X)
  np.testing.assert_allclose(f.apply(params, None, X), want, 1e-5, 1e-6)


def test_layer_stack_in_a_module():
  variables = Stack(3).init(KEY, X)
  kernels, biases = (
    x for _, x in sorted(_flat(variables['params']).items(), reverse=True)
  )
  assert kernels.shape == (3, 4, 4)
  want = _stacked_by_hand(kernels, biases, X)
  np.testing.assert_allclose(Stack(3).apply(variables, X), want, 1e-5, 1e-6)


def _flat(tree):
  return {
    jax.tree_util.keystr(path): x
    for path, x in jax.tree_util.tree_leaves_with_path(tree)
  }


# --- Getters, creators, setters ----------------------------------------------

each_place = pytest.mark.parametrize('where', ['native', 'inside'])


def run_at(where, around, name, variables):
  """Returns what a program computes with given variables of its model.

  Args:
    where: 'native' for a Haiku function, 'inside' for a module.
    around: the program, see `haiku_table.Row`.
    name: the name of the model.
    variables: its variables.

  Returns:
    The output, and the model's variables afterwards.
  """
  model = table.MODELS[name]
  if where == 'native':
    params, state = _bundles.to_haiku(variables, ROOTS[name])
    y, state = native(around, model).apply(params, state, None, X)
    return y, _bundles.from_haiku(params, state, ROOTS[name])
  outer = inside(around, model)
  given = {col: {'inner': tree} for col, tree in variables.items()}
  y, new = outer.apply(given, X, mutable=collections_of(variables))
  return y, {**variables, **{col: x['inner'] for col, x in new.items()}}


def test_run_at_computes_what_apply_computes():
  for name, model in table.MODELS.items():
    variables = initial_variables(model, X)
    for where in ('native', 'inside'):
      got = run_at(where, lambda call, x: call(x), name, variables)
      assert_close(got, step_of(model)(variables, X))


@each_place
def test_custom_getter_of_parameters(where):
  def twice_of_kernels(next_getter, value, context):
    value = next_getter(value)
    return 2 * value if context.full_name.endswith('/kernel') else value

  def around(call, x):
    with hk.custom_getter(twice_of_kernels):
      return call(x)

  variables = initial_variables(table.MODELS['MLP'], X)
  y, new = run_at(where, around, 'MLP', variables)
  doubled = jax.tree_util.tree_map_with_path(
    lambda path, x: 2 * x if path[-1].key == 'kernel' else x, variables
  )
  want_y, want = step_of(table.MODELS['MLP'])(doubled, X)
  assert_close(y, want_y)
  assert_close(new['batch_stats'], want['batch_stats'])
  # What is stored is not what the getter returns.
  assert_close(new['params'], variables['params'])


@each_place
def test_custom_getter_of_state(where):
  def ones(next_getter, value, context):
    seen.add(context.full_name.rsplit('/', 1)[-1])
    return jnp.ones_like(next_getter(value))

  def around(call, x):
    with hk.custom_getter(ones, params=False, state=True):
      return call(x)

  seen = set()
  variables = initial_variables(table.MODELS['running mean'], X)
  y, new = run_at(where, around, 'running mean', variables)
  assert seen == {'batch_stats:mean'}
  np.testing.assert_allclose(y, np.ones(4), 1e-6)
  np.testing.assert_allclose(
    new['batch_stats']['mean'], 0.9 + 0.1 * X.mean(0), 1e-5
  )


def init_at(where, around, name):
  """Returns the variables that a program makes of its model."""
  model = table.MODELS[name]
  if where == 'native':
    params, state = native(around, model).init(KEY, X)
    return variables_of(params, state, ROOTS[name])
  given = as_dict(inside(around, model).init(KEY, X))
  return {col: tree['inner'] for col, tree in given.items()}


@each_place
def test_custom_creator_of_parameters(where):
  def constant(next_creator, shape, dtype, init, context):
    del init
    name = context.full_name.rsplit('/', 2)[-2:]
    seen.append((*name, type(context.module), tuple(shape), dtype))
    return next_creator(shape, dtype, lambda s, d: jnp.full(s, 0.5, d))

  def around(call, x):
    with hk.custom_creator(constant):
      return call(x)

  seen = []
  made = init_at(where, around, 'MLP')
  want = initial_variables(table.MODELS['MLP'], X)
  assert_close(
    made['params'],
    jax.tree.map(lambda x: jnp.full_like(x, 0.5), want['params']),
  )
  assert_close(made['batch_stats'], want['batch_stats'])
  assert seen[:3] == [
    ('Dense_0', 'kernel', nn.Dense, (4, 4), jnp.float32),
    ('Dense_0', 'bias', nn.Dense, (4,), jnp.float32),
    ('BatchNorm_0', 'scale', nn.BatchNorm, (4,), jnp.float32),
  ]


@pytest.mark.parametrize('size', [(), (2,)], ids=['', 'and a shape'])
def test_a_creator_chooses_the_dtype_in_which_is_drawn(size):
  def creator(next_creator, shape, dtype, init, context):
    del dtype, context
    return next_creator((*size, *shape), jnp.bfloat16, init)

  def getter(next_getter, value, context):
    assert value.dtype == jnp.bfloat16
    return next_getter(value.astype(jnp.float32)[(0,) * len(size)])

  def made(make):
    def f(x):
      with hk.custom_creator(creator), hk.custom_getter(getter):
        return make()(x)

    return list(jax.tree.leaves(hk.transform(f).init(KEY, X)))

  class Kernel(nn.Module):
    options: dict[str, Any]

    @nn.compact
    def __call__(self, x):
      kernel = self.param('kernel', normal, (4, 4), **self.options)
      return x @ kernel

  normal = hk.initializers.RandomNormal()
  want = made(lambda: hk.Linear(4, w_init=normal))
  got = made(lambda: nn.Dense(4, kernel_init=normal))
  for a, b in zip(got, want, strict=True):
    np.testing.assert_array_equal(a, b)
  for options in ({}, {'dtype': jnp.float32}):
    (kernel,) = made(lambda options=options: Kernel(options))
    np.testing.assert_array_equal(kernel, want[1])


@pytest.mark.parametrize(
  'make',
  [
    lambda: hk.Linear(4, w_init=hk.initializers.Constant(3)),
    lambda: nn.Dense(4, kernel_init=hk.initializers.Constant(3)),
    lambda: nn.Dense(4, kernel_init=nn.initializers.constant(3)),
  ],
  ids=['of Haiku', 'with an initializer of Haiku', 'of ours'],
)
def test_what_is_not_stored_may_be_made_in_apply(make):
  def do_not_store(next_creator, shape, dtype, init, context):
    del next_creator, context
    init(shape, dtype)
    return hk.experimental.DO_NOT_STORE

  def anew(next_getter, value, context):
    assert value is hk.experimental.DO_NOT_STORE
    shape, dtype = context.original_shape, context.original_dtype
    return next_getter(context.original_init(shape, dtype))

  def f(x):
    with hk.custom_creator(do_not_store), hk.custom_getter(anew):
      return make()(x)

  f = hk.transform(f)
  assert f.init(KEY, X) == {}
  np.testing.assert_allclose(
    f.apply({}, None, X), X @ jnp.full((4, 4), 3.0), 1e-5, 1e-5
  )


@pytest.mark.parametrize(
  'make',
  [lambda: hk.Linear(4), lambda: nn.Dense(4)],
  ids=['of Haiku', 'of ours'],
)
def test_a_creator_in_apply_makes_no_parameter(make):
  def f(x):
    with hk.custom_creator(lambda create, s, d, init, context: init(s, d)):
      return make()(x)

  for key in (None, KEY):
    with pytest.raises(ValueError, match='parameter.*(w|kernel)'):
      hk.transform(f).apply({}, key, X)


@each_place
def test_custom_creator_of_state(where):
  def sevens(next_creator, shape, dtype, init, context):
    del init
    seen.append(context.full_name.rsplit('/', 2)[-2:])
    return next_creator(shape, dtype, lambda s, d: jnp.full(s, 7, d))

  def around(call, x):
    with hk.custom_creator(sevens, params=False, state=True):
      return call(x)

  seen = []
  made = init_at(where, around, 'MLP')
  assert ['BatchNorm_0', 'batch_stats:mean'] in seen
  for leaf in jax.tree.leaves(made['batch_stats']):
    np.testing.assert_array_equal(leaf, np.full(4, 7))


@each_place
def test_custom_setter(where):
  def halved(next_setter, value, context):
    seen.add(context.full_name.rsplit('/', 1)[-1])
    return next_setter(value / 2)

  def around(call, x):
    with hk.custom_setter(halved):
      return call(x)

  seen = set()
  variables = initial_variables(table.MODELS['running mean'], X)
  _, new = run_at(where, around, 'running mean', variables)
  np.testing.assert_allclose(
    new['batch_stats']['mean'], 0.05 * X.mean(0), 1e-5, 1e-7
  )
  assert seen == {'batch_stats:mean'}


# --- Interceptors and policies -----------------------------------------------


@each_place
def test_intercept_methods(where):
  def watch(next_f, args, kwargs, context):
    y = next_f(*args, **kwargs)
    if context.method_name != '__call__':
      return y
    path = context.module.module_name.removeprefix(root + '/')
    seen.append((type(context.module).__name__, path))
    return 2 * y if isinstance(context.module, nn.Dense) else y

  def around(call, x):
    with hk.intercept_methods(watch):
      return call(x)

  seen = []
  root = 'outer/inner' if where == 'inside' else 'haiku_inside'
  model = table.MODELS['haiku inside']
  variables = initial_variables(model, X)
  y, _ = run_at(where, around, 'haiku inside', variables)
  assert seen == [
    ('Dense', 'Dense_0'),
    ('ExponentialMovingAverage', 'batch_norm/~/mean_ema'),
    ('ExponentialMovingAverage', 'batch_norm/~/var_ema'),
    ('BatchNorm', 'batch_norm'),
    ('Linear', 'by_haiku'),
    ('BatchNorm', 'BatchNorm_0'),
    ('HaikuInside', root),
  ]
  dense = jax.tree.map(lambda x: 2 * x, variables['params']['Dense_0'])
  doubled = {**variables, 'params': {**variables['params'], 'Dense_0': dense}}
  assert_close(y, step_of(model)(doubled, X)[0])


def test_haiku_s_and_linen_s_interceptors_work_together():
  def add(n):
    def interceptor(next_f, args, kwargs, context):
      y = next_f(*args, **kwargs)
      return y + n if isinstance(context.module, nn.Dense) else y

    return interceptor

  class Outer(nn.Module):
    @nn.compact
    def __call__(self, x):
      with hk.intercept_methods(add(1)), nn.intercept_methods(add(10)):
        return nn.Dense(3, name='dense')(x)

  variables = Outer().init(KEY, X)
  plain = nn.Dense(3).apply({'params': variables['params']['dense']}, X)
  np.testing.assert_allclose(Outer().apply(variables, X), plain + 11, 1e-6)


@each_place
def test_mixed_precision_policy(where):
  jmp = pytest.importorskip('jmp')
  policy = jmp.get_policy('params=float32,compute=bfloat16,output=float32')
  dense = nn.Dense(3)
  variables = dense.init(KEY, X)

  def run():
    hk.mixed_precision.set_policy(nn.Dense, policy)
    if where == 'native':
      params, _ = _bundles.to_haiku(variables, 'dense')
      return hk.transform(lambda x: nn.Dense(3)(x)).apply(params, None, X)
    return dense.apply(variables, X)

  # Haiku's interceptor for policies stays with its thread for good.
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    y = pool.submit(run).result()
  assert y.dtype == jnp.float32
  half = nn.Dense(3, dtype=jnp.bfloat16).apply(variables, X)
  np.testing.assert_array_equal(y, half.astype(jnp.float32))
  assert not np.array_equal(y, dense.apply(variables, X))


# --- Looking at modules ------------------------------------------------------


def test_tabulate_shows_both_kinds_of_modules():
  pytest.importorskip('tabulate')
  f = native(lambda call, x: call(x), table.MODELS['haiku inside'])
  text = hk.experimental.tabulate(f)(X)
  for name in ('haiku_inside/Dense_0', 'by_haiku', 'BatchNorm_0'):
    assert name in text
  rows = hk.experimental.eval_summary(f)(X)
  sizes = {
    row.module_details.module.module_name: sum(
      np.prod(p.shape) for p in row.module_details.params.values()
    )
    for row in rows
  }
  assert sizes['haiku_inside/Dense_0'] == 4 * 3 + 3
  assert sizes['haiku_inside/by_haiku'] == 3 * 3 + 3


def test_to_dot_shows_our_modules():
  pytest.importorskip('tree')

  class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = jnp.sin(nn.Dense(3)(x))  # Haiku's `to_dot` fails on `jax.nn.relu`.
      return hk.Linear(2)(nn.BatchNorm(use_running_average=False)(x))

  f = hk.transform_with_state(lambda x: Net()(x))
  params, state = f.init(KEY, X)
  dot = hk.to_dot(f.apply)(params, state, None, X)
  assert dot.startswith('digraph')
  for name in ('net', 'Dense_0', 'BatchNorm_0', 'linear'):
    assert name in dot


# --- Several functions over the same modules ---------------------------------


def test_multi_transform_with_state():
  def build():
    encoder, decoder = table.MLP(4, 3), nn.Dense(4, name='decoder')

    def encode(x):
      return encoder(x, train=True)

    def decode(z):
      return decoder(z)

    return lambda x: decode(encode(x)), (encode, decode)

  f = hk.multi_transform_with_state(build)
  params, state = f.init(KEY, X)
  encode, decode = f.apply
  z, new = encode(params, state, None, X)
  variables = variables_of(params, state, 'mlp')
  want_z, want = table.MLP(4, 3).apply(
    variables, X, train=True, mutable=['batch_stats']
  )
  assert_close(z, want_z)
  assert_close(variables_of({}, new, 'mlp'), want)
  y, after = decode(params, new, None, z)
  assert_close(y, z @ params['decoder']['kernel'] + params['decoder']['bias'])
  assert_close(after, new)


def test_methods_of_one_module_share_its_parameters():
  class Tied(nn.Module):
    def setup(self):
      self.embed = nn.Embed(7, 4)

    def encode(self, ids):
      return self.embed(ids)

    def decode(self, x):
      return self.embed.attend(x)

  def build():
    tied = Tied()
    return lambda ids: tied.decode(tied.encode(ids)), (tied.encode, tied.decode)

  f = hk.multi_transform_with_state(build)
  params, state = f.init(KEY, jnp.arange(3))
  assert set(params) == {'tied/embed'}
  x, _ = f.apply[0](params, state, None, jnp.arange(3))
  weights = params['tied/embed']['embedding']
  np.testing.assert_allclose(x, weights[:3], 1e-6)
  y, _ = f.apply[1](params, state, None, x)
  np.testing.assert_allclose(y, x @ weights.T, 1e-6)


# --- Transforms in transforms ------------------------------------------------


def test_transformed_function_as_a_parameter_of_a_module():
  inner = hk.transform(lambda x: hk.Linear(2)(nn.Dense(3)(x)))

  class Holder(nn.Module):
    @nn.compact
    def __call__(self, x):
      params = self.param('net', inner.init, x)
      return inner.apply(params, None, x)

  variables = Holder().init(KEY, X)
  net = as_dict(variables['params']['net'])
  assert set(net) == {'dense', 'linear'}
  want = inner.apply(net, None, X)
  np.testing.assert_allclose(Holder().apply(variables, X), want, 1e-6)


@pytest.mark.parametrize('lift', ['lift', 'transparent_lift'])
@pytest.mark.parametrize('where', ['native', 'inside'])
def test_lifted_transform(lift, where):
  inner = hk.transform(lambda x: hk.Linear(2)(nn.Dense(3)(x)))

  def lifted(x):
    init = getattr(hk, lift)(inner.init)
    rng = hk.next_rng_key() if hk.running_init() else None
    return inner.apply(init(rng, x), None, x)

  class Holder(nn.Module):
    @nn.compact
    def __call__(self, x):
      return lifted(x)

  if where == 'native':
    f = hk.transform(lifted)
    params = f.init(KEY, X)
    y = f.apply(params, None, X)
  else:
    variables = Holder().init(KEY, X)
    y = Holder().apply(variables, X)
    params, _ = _bundles.to_haiku(variables, 'holder')
  dense = next(b for p, b in params.items() if p.endswith('dense'))
  linear = next(b for p, b in params.items() if p.endswith('linear'))
  want = (X @ dense['kernel'] + dense['bias']) @ linear['w'] + linear['b']
  np.testing.assert_allclose(y, want, 1e-5, 1e-6)


def test_apply_inside_of_a_haiku_function_is_a_run_of_its_own():
  model = table.HaikuInside()
  variables = model.init(KEY, X)

  def f(x):
    y, _ = model.apply(variables, x, mutable=['state', 'batch_stats'])
    return hk.Linear(2)(y)

  f = hk.transform(f)
  params = f.init(KEY, X)
  assert set(params) == {'linear'}
  y, _ = model.apply(variables, X, mutable=['state', 'batch_stats'])
  want = y @ params['linear']['w'] + params['linear']['b']
  np.testing.assert_allclose(f.apply(params, None, X), want, 1e-5, 1e-6)


# --- Randomness --------------------------------------------------------------


def test_dropout_takes_haiku_s_keys():
  def f(x):
    return nn.Dropout(0.5, deterministic=False)(x)

  f = hk.transform(f)
  assert f.init(KEY, X) == {}
  ones = jnp.ones((100, 10))
  a, b, c = (f.apply({}, jax.random.PRNGKey(seed), ones) for seed in (1, 1, 2))
  np.testing.assert_array_equal(a, b)
  assert not np.array_equal(a, c)
  assert set(np.unique(a)) == {0.0, 2.0}


def test_haiku_dropout_takes_our_keys():
  class Drop(nn.Module):
    @nn.compact
    def __call__(self, x):
      return hk.dropout(hk.next_rng_key(), 0.5, x)

  ones = jnp.ones((100, 10))
  a, b, c = (
    Drop().apply({}, ones, rngs={'dropout': jax.random.PRNGKey(seed)})
    for seed in (1, 1, 2)
  )
  np.testing.assert_array_equal(a, b)
  assert not np.array_equal(a, c)


# --- Errors ------------------------------------------------------------------


def test_jax_transform_in_a_haiku_function_raises_haiku_s_error():
  def f(x):
    module = nn.Dense(3)
    return jax.jit(lambda x: module(x))(x)

  before = hk.experimental.check_jax_usage(True)
  try:
    with pytest.raises(ValueError, match='Haiku overloaded transform'):
      hk.transform(f).init(KEY, X)
  finally:
    hk.experimental.check_jax_usage(before)


def test_missing_parameter_in_a_haiku_function_is_named():
  f = hk.transform(lambda x: nn.Dense(3)(x))
  params = f.init(KEY, X)
  del params['dense']['bias']
  with pytest.raises(Exception, match='bias'):
    f.apply(params, None, X)
  with pytest.raises(Exception, match='kernel'):
    f.apply({}, None, X)


# --- Names -------------------------------------------------------------------


def test_second_call_of_a_module_shares_its_parameters():
  def f(x):
    dense = nn.Dense(4)
    return dense(dense(x))

  f = hk.transform(f)
  params = f.init(KEY, X)
  assert set(params) == {'dense'}
  kernel, bias = params['dense']['kernel'], params['dense']['bias']
  want = (X @ kernel + bias) @ kernel + bias
  np.testing.assert_allclose(f.apply(params, None, X), want, 1e-5, 1e-6)


def test_module_from_outside_stays_unbound():
  dense = nn.Dense(4)
  f = hk.transform(lambda x: dense(x))
  params = f.init(KEY, X)
  assert set(params) == {'dense'}
  assert dense.scope is None and dense.name is None
  assert 'module_name' not in vars(dense)
  f.apply(params, None, X)
  assert dense == nn.Dense(4)


def test_asking_for_a_variable_leaves_no_trace():
  class Asks(nn.Module):
    @nn.compact
    def __call__(self, x):
      assert not self.has_variable('cache', 'index')
      return nn.Dense(2)(x)

  # Haiku's `transform` refuses any state, also an empty bundle.
  f = hk.transform(lambda x: Asks()(x))
  params = f.init(KEY, X)
  assert f.apply(params, None, X).shape == (5, 2)
  f = hk.transform_with_state(lambda x: Asks()(x))
  _, state = f.init(KEY, X)
  assert state == {}
  assert f.apply(params, state, None, X)[1] == {}


# --- State that init makes ---------------------------------------------------


class Tree(nn.Module):
  """Keeps a tree of numbers as one variable."""

  @nn.compact
  def __call__(self):
    made = self.variable('counts', 'n', lambda: {'a': 0, 'b': {'c': 0}})
    made.value = jax.tree.map(lambda n: n + 1, made.value)
    return made.value


class Outer(hk.Module):
  """Makes a module at the same place in each call."""

  def __call__(self):
    return Tree(name='tree')()


def test_init_finds_a_tree_that_another_module_has_made_there():
  seen = []
  f = hk.transform_with_state(lambda: seen.append([m() for m in [Outer()] * 3]))
  f.init(None)
  assert seen == [[{'a': n, 'b': {'c': n}} for n in (1, 2, 3)]]


class InHaikus(hk.Module):
  """Has a module of ours that counts, in one of Haiku's."""

  def __call__(self):
    return Tree(name='tree')()


class Looks(nn.Module):
  """Asks for what lies below a module of Haiku's."""

  @nn.compact
  def __call__(self):
    InHaikus(name='inside')()
    return self.get_variable('counts', 'inside')


@pytest.mark.parametrize('initializing', [True, False])
def test_state_of_ours_in_haikus_in_ours_is_found(initializing):
  seen = []
  f = hk.transform_with_state(lambda: seen.append(as_dict(Looks()())))
  _, state = f.init(None)
  if not initializing:
    f.apply({}, state, None)
  assert seen[-1] == {'tree': {'n': {'a': 1, 'b': {'c': 1}}}}


class Numbers(nn.Module):
  """Has many numbers that it sets."""

  n: int

  @nn.compact
  def __call__(self):
    for i in range(self.n):
      self.variable('counts', f'n_{i}', jnp.zeros, ()).value += 1


class Norms(nn.Module):
  """Normalizes many times."""

  n: int

  @nn.compact
  def __call__(self):
    x = jnp.ones((2, 3))
    for _ in range(self.n):
      x = nn.BatchNorm(use_running_average=False)(x)


@pytest.mark.parametrize('kind', [Numbers, Norms])
def test_init_costs_the_same_for_each_state(kind):
  def cost(n):
    f = hk.transform_with_state(lambda: kind(n)())

    def init():
      jax.eval_shape(lambda key: f.init(key), KEY)  # Not traced before.

    init()
    return calls(init).total() / n

  assert cost(64) < 1.05 * cost(16)
