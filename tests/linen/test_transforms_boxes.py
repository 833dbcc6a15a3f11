"""Semantics 15, below lifted transforms: boxes are told of mapped axes."""

import jax
import jax.numpy as jnp
from module_compare import KEY, Programs, X, assert_same_as_flax, attempt

programs = Programs()
ones = jax.nn.initializers.ones


def boxed_dense(nn):
  init = nn.with_partitioning(jax.nn.initializers.lecun_normal(), ('in', 'out'))

  class Boxed(nn.Module):
    @nn.compact
    def __call__(self, x):
      bias = nn.with_partitioning(ones, ('out',))
      stats = self.variable(
        'stats', 's', lambda: nn.Partitioned(jnp.zeros((3,)), ('in',))
      )
      stats.value += x.sum(0) if x.ndim > 1 else x
      return nn.Dense(3, kernel_init=init, bias_init=bias)(x)

  return Boxed


def described(nn, tree):
  """Returns the names and shapes of boxes."""

  def one(x):
    if isinstance(x, nn.Partitioned):
      return type(x).__name__, x.names, x.value.shape, x.mesh
    return x.shape

  return jax.tree.map(
    one, tree, is_leaf=lambda x: isinstance(x, nn.Partitioned)
  )


@programs
def vmap_adds_its_axis(nn, flax):
  out = []
  for axes, name in (
    ({'params': 0, 'stats': 0}, 'layers'),
    ({'params': 1, 'stats': 0}, 'x'),
    ({'params': 0, 'stats': 1}, None),
  ):
    Lifted = nn.vmap(
      boxed_dense(nn),
      variable_axes=axes,
      split_rngs={'params': True},
      in_axes=None,
      axis_size=2,
      metadata_params={nn.PARTITION_NAME: name},
    )
    variables = Lifted().init(KEY, X)
    y = Lifted().apply(variables, X, mutable=['stats'])
    specs = nn.get_partition_spec(variables)
    out.append((described(nn, variables), y[0], described(nn, y[1]), specs))
  return out


@programs
def no_axis_no_change(nn, flax):
  Lifted = nn.vmap(
    boxed_dense(nn),
    variable_axes={'params': None, 'stats': 0},
    split_rngs={'params': False},
    metadata_params={nn.PARTITION_NAME: 'n'},
  )
  return described(nn, Lifted().init(KEY, X))


@programs
def metadata_params_are_needed(nn, flax):
  Lifted = nn.vmap(
    boxed_dense(nn),
    variable_axes={'params': 0, 'stats': 0},
    split_rngs={'params': True},
  )
  return attempt(Lifted().init, KEY, X)


@programs
def scan_adds_its_axis(nn, flax):
  class Step(nn.Module):
    @nn.compact
    def __call__(self, c, _):
      return boxed_dense(nn)()(c), ()

  out = []
  for axes in ({'params': 0, 'stats': 1}, {'params': 1, 'stats': 0}):
    Lifted = nn.scan(
      Step,
      variable_axes=axes,
      split_rngs={'params': True},
      length=2,
      metadata_params={nn.PARTITION_NAME: 'layers'},
    )
    variables = Lifted().init(KEY, X, None)
    y, updates = Lifted().apply(variables, X, None, mutable=['stats'])
    out.append((described(nn, variables), y, described(nn, updates)))
  Shared = nn.scan(
    Step,
    variable_broadcast='params',
    variable_axes={'stats': 0},
    split_rngs={'params': False},
    length=2,
    metadata_params={nn.PARTITION_NAME: 'layers'},
  )
  return out, described(nn, Shared().init(KEY, X, None))


@programs
def through_both(nn, flax):
  class Step(nn.Module):
    @nn.compact
    def __call__(self, c, _):
      return nn.remat(boxed_dense(nn))()(c), ()

  axes = {'params': 0, 'stats': 0}
  Scanned = nn.scan(
    Step,
    variable_axes=axes,
    split_rngs={'params': True},
    length=2,
    metadata_params={nn.PARTITION_NAME: 'layers'},
  )
  Mapped = nn.vmap(
    Scanned,
    variable_axes=axes,
    split_rngs={'params': True},
    in_axes=None,
    axis_size=2,
    metadata_params={nn.PARTITION_NAME: 'ensemble'},
  )
  variables = Mapped().init(KEY, X, None)
  return described(nn, variables), nn.get_partition_spec(variables)


@programs
def add_metadata_axis(nn, flax):
  vars_copy = None

  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      nonlocal vars_copy
      dense = nn.Dense(3, kernel_init=nn.with_partitioning(ones, ('in', 'out')))
      y = dense(x)
      vars_copy = described(nn, self.variables)
      return y

  class Test(nn.Module):
    @nn.compact
    def __call__(self, x):
      foo = nn.add_metadata_axis(
        Foo,
        variable_axes={'params': 0},
        metadata_params={nn.PARTITION_NAME: 'foo'},
      )(name='foo')
      return foo(x)

  def apply_only(v):
    return Test().apply(v, X)

  given = {
    'params': {
      'foo': {
        'Dense_0': {
          'kernel': nn.Partitioned(jnp.ones((3, 3)), ('foo', 'in', 'out')),
          'bias': jnp.zeros((3,)),
        }
      }
    }
  }
  made = attempt(lambda: described(nn, Test().init(KEY, X)))
  return made, vars_copy, attempt(apply_only, given), vars_copy


@programs
def logical_boxes(nn, flax):
  init = nn.with_logical_partitioning(ones, ('a', 'b'))

  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.Dense(3, kernel_init=init)(x)

  Lifted = nn.vmap(
    Foo,
    variable_axes={'params': 0},
    split_rngs={'params': True},
    metadata_params={nn.PARTITION_NAME: 'layers'},
  )
  variables = Lifted().init(KEY, X)
  rules = (('a', 'x'), ('layers', 'y'), ('b', None))
  specs = nn.get_partition_spec(variables)
  return described(nn, variables), specs, nn.logical_to_mesh(specs, rules)


@programs
def a_box_of_ones_own(nn, flax):
  class Meta(flax.struct.PyTreeNode, flax.core.meta.AxisMetadata):
    value: object
    added: tuple = flax.struct.field(default=(), pytree_node=False)

    def unbox(self):
      return self.value

    def replace_boxed(self, value):
      return self.replace(value=value)

    def add_axis(self, index, params):
      return self.replace(added=(*self.added, (index, params['tag'])))

    def remove_axis(self, index, params):
      return self.replace(
        added=tuple(a for a in self.added if a != (index, params['tag']))
      )

  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      w = self.param('w', lambda k: Meta(jnp.ones((3,))))
      return x * w, self.get_variable('params', 'w').added

  def run(m, x):
    y, added = m(x)
    assert added == (), added
    return y

  class Top(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.vmap(
        run,
        variable_axes={'params': 1},
        split_rngs={'params': True},
        metadata_params={'tag': 't'},
      )(Foo(), x)

  variables = Top().init(KEY, X)
  box = variables['params']['Foo_0']['w']
  return box.added, box.value, Top().apply(variables, X)


@programs
def map_variables_sees_boxes(nn, flax):
  seen = []

  def look(tree):
    seen.append(described(nn, tree))
    return tree

  Lifted = nn.map_variables(boxed_dense(nn), 'params', look, look, init=True)
  variables = Lifted().init(KEY, X)
  return described(nn, variables), seen


@programs
def jit_and_remat_keep_boxes(nn, flax):
  Boxed = boxed_dense(nn)
  out = []
  for lift in (nn.jit, nn.remat, nn.fold_rngs):
    variables = lift(Boxed)().init(KEY, X)
    y, updates = lift(Boxed)().apply(variables, X, mutable=['stats'])
    out.append((described(nn, variables), y, described(nn, updates)))
  return out


@programs
def gradients_of_boxes(nn, flax):
  class Top(nn.Module):
    @nn.compact
    def __call__(self, x):
      init = nn.with_partitioning(ones, ('in', 'out'))
      dense = nn.Dense(3, kernel_init=init)
      y, bwd = nn.vjp(lambda m, x: m(x), dense, x)
      grads, dx = bwd(jnp.ones_like(y))
      return described(nn, grads), dx

  return attempt(lambda: Top().init_with_output(KEY, X)[0])


@programs.parametrize()
def test_as_flax(program):
  assert_same_as_flax(program)
