"""The functional core: programs of scopes, compared with Flax."""

import functools

import jax
import jax.numpy as jnp
import pytest
from module_compare import KEY, Programs, X, assert_same_as_flax, attempt, flag

from haiku_state import core

programs = Programs()
ones = jax.nn.initializers.ones
zeros = jax.nn.initializers.zeros
normal = jax.random.normal


def dense(scope, x, features, bias=True):
  kernel = scope.param(
    'kernel', jax.nn.initializers.lecun_normal(), (x.shape[-1], features)
  )
  y = x @ kernel
  return y + scope.param('bias', zeros, (features,)) if bias else y


def mlp(scope, x):
  x = scope.child(dense, 'hidden')(x, 4)
  x = scope.child(dense)(x, 3)
  return scope.child(dense, prefix='out_')(x, 2)


def auto(scope, x):
  """Shares an encoder between two calls."""
  encode = scope.child(dense, 'encoder', features=3)
  return encode(encode(x))


@programs
def init_and_apply(nn, flax):
  init, apply = flax.core.init, flax.core.apply
  results = []
  for fn in (mlp, auto):
    y, variables = init(fn)(KEY, X)
    results.append((y, variables, apply(fn)(variables, X)))
    results.append(apply(fn, mutable=['params'])(variables, X))
    results.append(attempt(apply(fn), {}, X))
    results.append(init(fn)({'params': KEY}, X)[1])
  return results, init(mlp).__name__, apply(mlp).__name__


@programs
def functions_by_keyword_and_partial(nn, flax):
  init = flax.core.init
  fn = functools.partial(dense, features=3)
  return (
    init(fn)(KEY, X),
    init(dense)(KEY, X, features=2, bias=False),
    init(lambda scope, x: scope.child(fn)(x))(KEY, X),
    init(lambda scope, x: scope.child(lambda s, x: dense(s, x, 2))(x))(KEY, X),
  )


@programs
def arguments_are_checked(nn, flax):
  init, apply = flax.core.init, flax.core.apply
  _, good = init(mlp)(KEY, X)
  return (
    [
      attempt(init(mlp), rngs, X)
      for rngs in (3, {'params': 3}, {3: KEY}, 'x', None, jnp.ones(2))
    ],
    [
      attempt(apply(mlp), variables, X)
      for variables in (
        {'params': {'params': good['params']}},
        {'params': jnp.ones(2)},
        {1: {}},
        {'params': {1: 2}},
      )
    ],
    [
      attempt(apply(mlp), good, X, rngs=rngs)
      for rngs in (3, {'a': 3}, KEY, {}, None, {'a': KEY})
    ],
    [
      attempt(init(mlp, mutable=m), KEY, X)
      for m in (True, False, 'params', ['params'], [], 3)
    ],
  )


@programs
def a_scope_by_hand(nn, flax):
  Scope = flax.core.Scope
  scope = Scope({}, {'params': KEY}, mutable=['params'])
  y = dense(scope, X, 3)
  child = scope.push('child')
  z = dense(child, y, 2)
  given = Scope({'params': {'kernel': jnp.ones((3, 2))}})
  return (
    y,
    z,
    scope.variables(),
    child.variables(),
    scope.mutable_variables(),
    dense(given, X, 2, bias=False),
    attempt(dense, given.rewound(), X, 2),
    attempt(dense, given, X, 2),
    given.variables(),
    given.mutable_variables(),
    scope.root is scope,
    child.root is scope,
    child.parent is scope,
    scope.parent,
    child.path,
    child.name,
    scope.name,
    child.path_text,
    scope.path_text,
  )


@programs
def modules_in_a_scope(nn, flax):
  scope = flax.core.Scope({}, {'params': KEY}, mutable=['params'])

  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.Dense(3)(x)

  y = Foo(parent=scope)(X)
  other = nn.Dense(2, parent=scope.push('other'))
  z = other(X)

  def fn(scope, x):
    return Foo(parent=scope.push('foo'))(x)

  return (
    y,
    z,
    scope.variables(),
    other.path,
    other.variables,
    flax.core.init(fn)(KEY, X),
    attempt(nn.Dense(3, parent=flax.core.Scope({})), X),
  )


@programs
def names_and_reservations(nn, flax):
  scope = flax.core.Scope({}, {'params': KEY}, mutable=True)
  scope.reserve('a')
  scope.reserve('b', 'params')
  seen = [
    scope.name_reserved('a'),
    scope.name_reserved('a', 'params'),
    scope.name_reserved('b'),
    scope.name_reserved('b', 'params'),
    scope.name_reserved('b', 'other'),
    scope.name_reserved('c'),
    attempt(scope.reserve, 'a'),
    attempt(scope.reserve, 'b', 'params'),
    attempt(scope.reserve, 'b', 'other'),
    attempt(scope.reserve, 'b'),
    attempt(scope.reserve, 3).kind,
    scope.default_name('x'),
    scope.default_name('a'),
    attempt(scope.push, 'a'),
    attempt(lambda: scope.push('a', reuse=True).name),
    scope.push(prefix='p').name,
    scope.push(prefix='p').name,
    scope.push().name,
    attempt(scope.param, 'a', ones, (1,)),
    attempt(scope.param, 'pp', ones, (1,)),
    attempt(scope.param, 'pp', ones, (1,)),
    attempt(lambda: scope.variable('c', 'pp', lambda: 1).value),
    attempt(lambda: scope.variable('params', 'pp', lambda: 1).value),
    attempt(scope.push, 'pp'),
    attempt(scope.child(dense, 'd'), X, 2),
    attempt(lambda: scope.child(dense, 'd')),
    attempt(lambda: scope.child(dense)(X, 1).shape),
    attempt(lambda: scope.child(dense)(X, 1).shape),
  ]
  return seen, scope.variables()


@programs
def rewound(nn, flax):
  scope = flax.core.Scope({}, {'params': KEY, 'd': KEY}, mutable=True)
  first = scope.param('a', normal, (2,)), scope.make_rng('d')
  again = scope.rewound()
  second = again.param('a', normal, (2,)), again.make_rng('d')
  fresh = scope.rewound(rewind_rngs=True)
  third = fresh.param('a', normal, (2,)), fresh.make_rng('d')
  child = scope.push('c')
  in_child = child.make_rng('d')
  return (
    first,
    second,
    third,
    in_child,
    scope.rewound().push('c').make_rng('d'),
    attempt(scope.rewound().push('c').param, 'p', normal, ()),
    scope.variables(),
  )


@programs
def temporary_and_invalid(nn, flax):
  scope = flax.core.Scope({}, {'params': KEY}, mutable=True)
  before = scope.invalid
  with scope.temporary() as same:
    inside = same is scope, scope.invalid
    child = scope.push('x')
  leaked = []
  flax.core.init(lambda s: leaked.append(s))(KEY)
  return (
    before,
    inside,
    scope.invalid,
    child.invalid,
    attempt(scope.push, 'a'),
    attempt(scope.make_rng, 'params'),
    attempt(scope.put_variable, 'a', 'b', 1),
    attempt(scope.rewound),
    attempt(scope.get_variable, 'a', 'b'),
    attempt(scope.reserve, 'q'),
    attempt(lambda: scope.variables()),
    leaked[0].invalid,
    attempt(leaked[0].param, 'a', ones, ()),
    attempt(leaked[0].child(dense, 'z') if 0 else leaked[0].push, 'z'),
  )


@programs
def keys(nn, flax):
  own = {'params': KEY, 'd': jax.random.key(1)}
  scope = flax.core.Scope({}, own, mutable=True)
  child = scope.push('a')
  return (
    scope.has_rng('d'),
    scope.has_rng('x'),
    scope.make_rng('d'),
    scope.make_rng('d'),
    scope.make_rng(),
    scope.make_rng('x'),
    child.make_rng('d'),
    child.make_rng('params'),
    child.push('b').make_rng('d'),
    sorted(scope.rngs),
    {k: (v.suffix, v.as_jax_rng()) for k, v in child.rngs.items()},
    attempt(flax.core.Scope({}).make_rng, 'd'),
    attempt(flax.core.Scope({}, {'d': KEY}).push('q').make_rng, 'e'),
    attempt(flax.core.Scope({}, {'d': KEY}, name='n').make_rng),
    flax.core.Scope({}, {'d': KEY}).make_rng('d'),
  )


@programs
def lazy_rngs(nn, flax):
  LazyRng = flax.core.scope.LazyRng
  rng = LazyRng.create(KEY, 'a', 1)
  more = LazyRng.create(rng, 'b')
  keys = [
    LazyRng.create(KEY, *suffix).as_jax_rng()
    for suffix in ((), (0,), (1,), (255, 256), ('é',), ('a', 'b'), ('ab',))
  ]
  with flag(flax, 'flax_fix_rng_separator', True):
    separated = LazyRng.create(KEY, 'a', 'b').as_jax_rng()
  return (
    rng.suffix,
    more.suffix,
    more.clear_suffix().suffix,
    keys,
    separated,
    len(jax.tree.leaves(more)),
    attempt(LazyRng.create(KEY, 1.5).as_jax_rng),
    jax.vmap(lambda k: LazyRng.create(k, 'a').as_jax_rng())(
      jax.random.split(KEY, 2)
    ),
  )


@programs
def collections(nn, flax):
  given = {'params': {'a': 1, 'sub': {'b': 2}}, 'empty': {}}
  scope = flax.core.Scope(given, mutable=['state'])
  sub = scope.push('sub')
  seen = [
    scope.is_collection_empty('params'),
    scope.is_collection_empty('empty'),
    scope.is_collection_empty('nope'),
    sub.is_collection_empty('params'),
    scope.is_mutable_collection('state'),
    scope.is_mutable_collection('params'),
    scope.has_variable('params', 'a'),
    scope.has_variable('params', 'sub'),
    scope.has_variable('nope', 'a'),
    scope.get_variable('params', 'a'),
    scope.get_variable('params', 'sub'),
    scope.get_variable('params', 'x'),
    scope.get_variable('params', 'x', 7),
    sub.get_variable('params', 'b'),
    attempt(scope.put_variable, 'params', 'a', 3),
    attempt(scope.put_variable, 'state', 'a', 3),
    attempt(sub.put_variable, 'state', 'b', {'c': 4}),
    sub.get_variable('state', 'b'),
    scope.variables(),
    scope.mutable_variables(),
    sub.variables(),
    sub.mutable_variables(),
  ]
  return seen


@programs
def variables_of_a_scope(nn, flax):
  def fn(scope):
    v = scope.variable('state', 'n', lambda: 0)
    v.value += 1
    w = scope.push('sub').variable('state', 'n', lambda a: a, 5)
    w.value = w.value * 2
    return v.value, w.value, v.is_mutable(), scope.get_variable('state', 'n')

  init, apply = flax.core.init, flax.core.apply
  out, variables = init(fn)(KEY)
  return (
    out,
    variables,
    apply(fn, mutable=['state'])(variables),
    attempt(apply(fn), variables),
    attempt(apply(fn), {}),
    attempt(apply(fn), {'state': {'x': 1}}),
    attempt(apply(fn, mutable=True), {'state': {'n': 3}}),
  )


@programs
def flags(nn, flax):
  def fn(scope):
    child = scope.push('c')
    return (
      scope.has_flag('initializing'),
      scope.get_flag('initializing', None),
      scope.has_flag('mine'),
      child.get_flag('mine', 3),
    )

  init, apply = flax.core.init, flax.core.apply
  scope = flax.core.Scope({}, flags={'a': 1})
  return (
    init(fn)(KEY)[0],
    init(fn, flags={'mine': 5})(KEY)[0],
    apply(fn)({}),
    apply(fn, flags={'mine': 5})({}),
    scope.get_flag('a'),
    scope.push('x').get_flag('a'),
  )


@programs
def bind(nn, flax):
  _, variables = flax.core.init(mlp)(KEY, X)
  scope = flax.core.bind(variables)
  mutable = flax.core.bind(
    {'state': {'n': 1}}, rngs={'d': KEY}, mutable=['state']
  )
  mutable.put_variable('state', 'n', 2)
  return (
    mlp(scope, X),
    attempt(mlp, scope, X),
    mlp(scope.rewound(), X),
    mutable.variables(),
    mutable.make_rng('d'),
    attempt(flax.core.bind, {'a': 1}),
    attempt(flax.core.bind, {}, rngs={'a': 3}),
    attempt(flax.core.bind, {}, rngs=KEY),
    flax.core.bind({}, flags={'f': 1}).get_flag('f'),
  )


@programs
def params_checks(nn, flax):
  def fn(scope, shape):
    return scope.push('sub').param('w', ones, shape)

  init, apply = flax.core.init, flax.core.apply
  _, variables = init(fn)(KEY, (2,))
  return (
    apply(fn)(variables, (2,)),
    attempt(apply(fn), variables, (3,)),
    attempt(apply(fn), {}, (3,)),
    attempt(apply(fn), {'params': {'x': 1}}, (3,)),
    attempt(apply(fn), {'params': {'sub': {'w': 3}}}, (2,)),
  )


@programs
def variables_with_a_parent(nn, flax):
  Scope = flax.core.Scope
  scope = Scope({}, mutable=True)
  return (
    attempt(lambda: Scope({}, parent=scope, name='x', path=('x',)).path),
    Scope({}, path=('a', 'b')).path_text,
    Scope({}, name='n', path=['n']).path,
    Scope({'params': {}}).variables(),
  )


@programs
def equality_and_hash(nn, flax):
  scope = flax.core.Scope({}, {'params': KEY}, mutable=True)
  child = scope.push('a')
  twin = scope.rewound().push('a')
  return (
    scope == scope,
    scope == scope.rewound(),
    scope == flax.core.Scope({}, {'params': KEY}, mutable=True),
    child == scope,
    child == twin,
    hash(scope) == hash(scope.rewound()),
    scope != 3,
  )


@programs
def filters(nn, flax):
  core = flax.core.scope
  deny = flax.core.DenyList
  values = [
    True,
    False,
    'a',
    'b',
    [],
    ['a'],
    ('a', 'b'),
    {'a', 'c'},
    deny('a'),
    deny(['a', 'b']),
    deny(True),
    deny(False),
    deny(deny('a')),
    3,
    None,
  ]
  return (
    [[attempt(core.in_filter, f, n) for n in 'abc'] for f in values],
    [attempt(core.is_filter_empty, f) for f in values],
    [attempt(core.filter_to_set, f) for f in values],
    [
      attempt(op, f, g)
      for op in (
        core.union_filters,
        core.intersect_filters,
        core.subtract_filters,
      )
      for f in values
      for g in values
    ],
    core.group_collections(
      {'a': {'x': 1}, 'b': {}, 'c': {'y': 2}}, ['a', ['b', 'c'], True]
    ),
    core.group_collections({'a': {'x': 1}}, [deny('a'), False]),
  )


@programs
def named_calls(nn, flax):
  def fn(scope, x):
    plain = scope.child(dense, 'plain', named_call=False)(x, 2)
    return scope.child(dense, 'named')(plain, 2)

  _, variables = flax.core.init(fn)(KEY, X)
  jaxpr = jax.make_jaxpr(flax.core.apply(fn))(variables, X)
  return [str(e.source_info.name_stack) for e in jaxpr.eqns]


@programs
def a_weight_shared_between_functions(nn, flax):
  def fn(scope, x):
    embed = scope.param('embed', normal, (4, 3))

    def decode(scope, h):
      return h @ embed.T + scope.param('b', zeros, (4,))

    return scope.child(decode, 'decoder')(x)

  y, variables = flax.core.init(fn)(KEY, X)
  return y, variables, flax.core.apply(fn)(variables, X)


@programs
def normalization_with_state(nn, flax):
  def norm(scope, x):
    mean = scope.variable('stats', 'mean', jnp.zeros, (3,))
    if scope.is_mutable_collection('stats'):
      mean.value = 0.9 * mean.value + 0.1 * x.mean(0)
    return x - mean.value

  def fn(scope, x):
    x = scope.child(norm)(x)
    return scope.child(dense, features=3)(scope.child(norm)(x))

  init, apply = flax.core.init, flax.core.apply
  y, variables = init(fn)(KEY, X)
  return (
    y,
    variables,
    apply(fn)(variables, X),
    apply(fn, mutable=['stats'])(variables, X),
    apply(fn, mutable=True)(variables, X),
    jax.jit(apply(fn, mutable=['stats']))(variables, X),
    jax.grad(lambda p: apply(fn)({**variables, 'params': p}, X).sum())(
      variables['params']
    ),
  )


@programs.parametrize()
def test_same_as_flax(program):
  assert_same_as_flax(program)


@programs.parametrize()
def test_same_as_flax_with_frozen_results(program):
  assert_same_as_flax(program, frozen=True)


def test_a_flag_that_is_missing_raises():
  """Flax returns the error instead."""
  with pytest.raises(ValueError, match='Flag b not present on scope'):
    core.Scope({}).get_flag('b')


def test_a_name_that_is_no_string_is_told():
  """Flax's text has a placeholder in the name's place."""
  with pytest.raises(TypeError, match='type of scope "3" should be string'):
    core.Scope({}).reserve(3)  # type: ignore[arg-type]


@pytest.mark.parametrize('transform', [jax.jit, jax.vmap, jax.checkpoint])
def test_any_trace_level_will_do_as_in_flax(transform):
  here = core.current_trace()

  def inside(x):
    assert core.current_trace() != here
    core.check_trace_level(here)
    return x

  transform(inside)(X)


class OwnKey:
  """A key that is an object of a library's own."""

  def __init__(self, key):
    self.key = key


def test_a_library_can_let_keys_of_its_own_pass(monkeypatch):
  theirs = pytest.importorskip('flax').core.scope
  # Flax has this check under this name, and libraries wrap it.
  for scope in (theirs, core.scope):
    before = scope._is_valid_rng
    monkeypatch.setattr(
      scope,
      '_is_valid_rng',
      lambda rng, before=before: isinstance(rng, OwnKey) or before(rng),
    )
    bound = scope.bind({}, rngs={'params': OwnKey(KEY)})
    assert bound.has_rng('params')
    with pytest.raises(Exception, match='rngs should be a dictionary'):
      scope.bind({}, rngs={'params': 'no key'})
