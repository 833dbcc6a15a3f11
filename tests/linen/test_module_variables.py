"""Semantics 14: variables, sow and perturb."""

import jax
import jax.numpy as jnp
from module_compare import KEY, Programs, X, assert_same_as_flax, attempt

programs = Programs()


@programs
def variables_with_and_without_an_initial_value(nn, flax):
  class Foo(nn.Module):
    with_init: bool

    @nn.compact
    def __call__(self):
      if self.with_init:
        v = self.variable('c', 'v', lambda a, b=1: a + b, 3, b=4)
      else:
        v = self.variable('c', 'v')
      return v.value, v.is_mutable()

  given = {'c': {'v': 10}}
  return [
    (
      attempt(Foo(w).init_with_output, KEY),
      attempt(Foo(w).apply, given),
      attempt(Foo(w).apply, given, mutable=['c']),
      attempt(Foo(w).apply, {}),
      attempt(Foo(w).apply, {'c': {}}),
      attempt(Foo(w).apply, {'c': {'x': 1}}),
      attempt(Foo(w).apply, {}, mutable=['c']),
    )
    for w in (True, False)
  ]


@programs
def values_of_every_kind(nn, flax):
  @flax.struct.dataclass
  class Box:
    a: object

  values = {
    'array': jnp.ones(2),
    'none': None,
    'dict': {'a': 1, 'b': {'c': jnp.ones(2)}},
    'empty': {},
    'list': [1, {'a': 2}],
    'tuple': (),
    'string': 'text',
    'box': Box({'a': 1}),
    'function': len,
    'bool': False,
  }

  class Foo(nn.Module):
    name_of: str

    @nn.compact
    def __call__(self):
      value = values[self.name_of]
      v = self.variable('c', 'v', lambda: value)
      before = v.value
      w = self.variable('c', 'w', lambda: 0)
      w.value = value
      return before, w.value, type(v.value).__name__, type(w.value).__name__

  results = {}
  for name in values:
    foo = Foo(name)
    out, variables = foo.init_with_output(KEY)
    kept = attempt(foo.apply, variables)
    results[name] = out, variables, kept, foo.apply(variables, mutable=['c'])
  return results


@programs
def a_value_of_another_kind_is_set(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, *values):
      v = self.variable('c', 'v', lambda: 0)
      seen = []
      for value in values:
        v.value = value
        # A copy: Flax's value may be the very dict that changes next.
        seen.append(jax.tree.map(lambda x: x, v.value))
      return seen

  # Made anew for each use: Flax changes the dicts that it is given.
  sequences = lambda: [
    ({'a': 1}, {'a': 2, 'b': 3}, {'c': 4}),
    ({'a': {'b': 1}}, {'a': 5}, 6, {'a': {'c': 7}}),
    (1, {'a': 1}, [1], {}),
    ({}, {'a': {}}, {'a': {'b': {}}}, {}),
    (jnp.ones(2), {'x': jnp.ones(3)}, jnp.ones(4)),
  ]
  foo = Foo()
  init = [attempt(foo.init_with_output, KEY, *s) for s in sequences()]
  deep = [
    attempt(foo.apply, {'c': {'v': {'old': 1}}}, *s, mutable=['c'])
    for s in sequences()
  ]
  flat = [
    attempt(foo.apply, {'c': {'v': 1, 'k': 2}}, *s, mutable=True)
    for s in sequences()
  ]
  return init, deep, flat


@programs
def variables_between_modules(nn, flax):
  class Counter(nn.Module):
    def setup(self):
      self.n = self.variable('c', 'n', lambda: 0)

    def __call__(self):
      self.n.value += 1
      return self.n.value

  class Foo(nn.Module):
    def setup(self):
      self.counter = Counter()

    def __call__(self):
      self.counter()
      self.counter.n.value = 10
      self.counter()
      return self.counter.n.value, self.counter.variables

  return Foo().init_with_output(KEY), attempt(Foo().apply, {'c': {}})


@programs
def sow_forms(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      done = [self.sow('intermediates', 'h', x)]
      done.append(self.sow('intermediates', 'h', x + 1))
      done.append(self.sow('other', 'h', x))
      add = lambda a, b: a + b
      done.append(self.sow('sums', 's', x, init_fn=lambda: 0.0, reduce_fn=add))
      done.append(self.sow('sums', 's', x, init_fn=lambda: 0.0, reduce_fn=add))
      last = lambda a, b: b
      done.append(
        self.sow('sums', 'l', {'a': x}, reduce_fn=last, init_fn=lambda: None)
      )
      return done

  foo = Foo()
  return [
    foo.apply({}, X, mutable=m)
    for m in (False, True, ['intermediates'], ['other', 'sums'], [])
  ] + [
    foo.init_with_output(KEY, X),
    foo.init_with_output(KEY, X, mutable=True),
    foo.init_with_output(KEY, X, mutable=['intermediates']),
    foo.apply({'intermediates': {'h': (1,)}}, X, mutable=['intermediates']),
    foo.apply({'sums': {'s': X}}, X, mutable=['sums']),
    attempt(foo.apply, {'intermediates': {'h': 1}}, X, mutable=True),
  ]


@programs
def sow_in_repeated_calls(nn, flax):
  class Bar(nn.Module):
    @nn.compact
    def __call__(self, x):
      self.sow('intermediates', 'x', x)
      return x + 1

  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      bar = Bar()
      for _ in range(3):
        x = bar(x)
      return Bar()(x)

  out, state = Foo().apply({}, X, mutable=['intermediates'])
  again = Foo().apply(state, X, mutable=['intermediates'])
  return out, state, again


@programs
def sow_where_no_variables_may_be_made(nn, flax):
  class Foo(nn.Module):
    def setup(self):
      self.sow('intermediates', 'a', 1)

    def __call__(self, x):
      self.sow('intermediates', 'b', x)
      self.perturb('p', x)
      return self.helper(x)

    @nn.nowrap
    def helper(self, x):
      self.sow('intermediates', 'c', x)
      return x

  return Foo().apply({}, X, mutable=['intermediates'])


@programs
def perturb_forms(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      h = self.perturb('h', nn.Dense(3)(x))
      h = self.perturb('tree', {'a': h, 'b': x})
      return self.perturb('out', h['a'], collection='mine')

  foo = Foo()
  variables = foo.init(KEY, X)
  params = {'params': variables['params']}
  noise = jax.tree.map(jnp.ones_like, variables['perturbations'])

  def loss(perturbations):
    return jnp.sum(
      foo.apply({**params, 'perturbations': perturbations}, X) ** 2
    )

  return (
    variables,
    foo.apply(variables, X),
    foo.apply(params, X),
    attempt(foo.apply, {**params, 'perturbations': {}}, X),
    attempt(foo.apply, {**params, 'perturbations': {'h': noise['h']}}, X),
    attempt(foo.apply, {**params, 'perturbations': {'nope': X}}, X),
    foo.apply({**params, 'perturbations': noise}, X),
    foo.apply(params, X, mutable=['perturbations']),
    foo.apply(variables, X, mutable=True),
    jax.grad(loss)(noise),
    attempt(foo.apply, {**params, 'mine': {}}, X),
  )


@programs
def perturb_of_setup_modules_and_twice(nn, flax):
  class Bar(nn.Module):
    def setup(self):
      self.d = nn.Dense(3)

    def __call__(self, x):
      return self.perturb('p', self.d(x))

  class Foo(nn.Module):
    def setup(self):
      self.bar = Bar()

    def __call__(self, x):
      return self.bar(self.bar(x))

  class Twice(nn.Module):
    @nn.compact
    def __call__(self, x):
      return self.perturb('p', self.perturb('p', x))

  variables = Foo().init(KEY, X)
  return (
    variables,
    Foo().apply(variables, X),
    attempt(Twice().init_with_output, KEY, X),
    attempt(Twice().apply, {'perturbations': {'p': X}}, X),
    attempt(Twice().apply, {}, X, mutable=['perturbations']),
  )


@programs
def batch_stats_of_flax_documents(nn, flax):
  class Norm(nn.Module):
    @nn.compact
    def __call__(self, x):
      is_initialized = self.has_variable('batch_stats', 'mean')
      mean = self.variable('batch_stats', 'mean', lambda s: jnp.zeros(s), (3,))
      bias = self.param('bias', lambda k, s: jnp.zeros(s), (3,))
      if is_initialized:
        mean.value = 0.9 * mean.value + 0.1 * jnp.mean(x, 0)
      return x - mean.value + bias

  norm = Norm()
  variables = norm.init(KEY, X)
  y, updated = norm.apply(variables, X, mutable=['batch_stats'])
  z, again = norm.apply({**variables, **updated}, X, mutable=['batch_stats'])
  return variables, y, updated, z, again


@programs
def dicts_with_keys_that_are_no_strings(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      p = self.param('p', lambda key: {0: jnp.ones(2), 1: {-2: jnp.ones(3)}})
      v = self.variable('c', 'v', lambda: {(1, 'a'): 3.0, (2, 'b'): {7: x}})
      v.value = jax.tree.map(lambda a: a + 1, v.value)
      add = {'init_fn': dict, 'reduce_fn': lambda a, b: {**a, **b, 5: 6}}
      self.sow('i', 'sown', {4: 1}, **add)
      self.sow('i', 'sown', {5: 2}, **add)
      return p, v.value, nn.Dense(2)(x)

  class Two(nn.Module):
    @nn.compact
    def __call__(self, x):
      many = nn.vmap(
        Foo,
        variable_axes={'params': 0, 'c': 0, 'i': 0},
        split_rngs={'params': True},
      )
      return nn.jit(Foo)()(x), many()(jnp.ones((3, 2)))

  results = []
  for module in (Foo(), Two()):
    y, variables = module.init_with_output(KEY, X)
    more = {**variables, 'extra': {'z': {1: 2}}}
    bound = module.bind(more, mutable=['c'])
    results += [y, variables, module.apply(more, X, mutable=True), bound(X)]
    results += [bound.variables]
  return results


@programs
def variable_objects(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self):
      v = self.variable('c', 'v', lambda: 3)
      return (
        v.collection,
        v.name,
        v.unbox,
        v.is_mutable(),
        type(v).__name__,
        isinstance(v, nn.Variable),
        attempt(lambda: self.variable('c', 'v', lambda: 4)),
      )

  return Foo().init_with_output(KEY)


@programs.parametrize()
def test_same_as_flax(program):
  assert_same_as_flax(program)
