"""Semantics 12: what init and apply take and give."""

import concurrent.futures
import functools
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
from module_compare import KEY, Programs, X, assert_same_as_flax, attempt

import haiku_state.linen as nn

programs = Programs()


def net_of(nn):
  class Net(nn.Module):
    def setup(self):
      self.dense = nn.Dense(3)
      self.norm = nn.BatchNorm(momentum=0.5)

    def __call__(self, x, train=True):
      x = self.norm(self.dense(x), use_running_average=not train)
      self.sow('intermediates', 'h', x)
      self.sow('other', 'h', x)
      return x

    def half(self, x):
      return self.dense(x)

    def state(self):
      n = self.get_variable('batch_stats', 'n')
      return n

  return Net()


@programs
def forms_of_mutable(nn, flax):
  net = net_of(nn)
  variables = net.init(KEY, X)
  deny = flax.core.DenyList
  return {
    str(m): attempt(net.apply, variables, X, mutable=m)
    for m in (
      False,
      True,
      'batch_stats',
      ['batch_stats'],
      ('batch_stats', 'other'),
      {'other'},
      frozenset({'other'}),
      [],
      (),
      'nope',
      ['nope', 'batch_stats'],
      deny('params'),
      deny(['params', 'batch_stats']),
      deny(True),
      deny(False),
      deny('intermediates'),
      ['params', 'batch_stats'],
      3,
      None,
      'params',
    )
  }


@programs
def mutable_of_init(nn, flax):
  net = net_of(nn)
  deny = flax.core.DenyList
  return {
    str(m): attempt(net.init, KEY, X, mutable=m)
    for m in (
      True,
      ['params'],
      ['params', 'batch_stats'],
      'params',
      False,
      [],
      deny('params'),
      deny('batch_stats'),
      deny([]),
      ['intermediates', 'params', 'batch_stats'],
    )
  }


@programs
def forms_of_rngs(nn, flax):
  net = nn.Sequential([nn.Dense(2), nn.Dropout(0.5, deterministic=False)])
  raw = jax.random.PRNGKey(0)
  forms = {
    'key': KEY,
    'raw': raw,
    'numpy raw': np.asarray(raw),
    'dict': {'params': KEY, 'dropout': KEY},
    'only dropout': {'dropout': KEY},
    'empty': {},
    'none': None,
    'int': 3,
    'list': [KEY],
    'float array': jnp.ones(2),
    'two keys': jax.random.split(KEY),
    'bad value': {'params': 3},
    'bad name': {3: KEY},
    'shape': jnp.ones((3,), jnp.uint32),
    'string': 'abc',
  }
  variables = net.init(KEY, X)
  return {
    name: (
      attempt(net.init, rngs, X),
      attempt(net.init_with_output, rngs, X),
      attempt(net.apply, variables, X, rngs=rngs),
    )
    for name, rngs in forms.items()
  }


@programs
def forms_of_variables(nn, flax):
  dense = nn.Dense(2)
  good = dense.init(KEY, X)
  params = good['params']
  forms = {
    'good': good,
    'frozen': flax.core.freeze(good),
    'params only': params,
    'doubled': {'params': {'params': params}},
    'doubled with more': {'params': {'params': params, 'x': 1}},
    'frozen doubled': flax.core.freeze({'params': {'params': params}}),
    'empty': {},
    'empty params': {'params': {}},
    'extra': {'params': params, 'extra': {}},
    'extra values': {'params': params, 'extra': {'a': jnp.ones(2)}},
    'array': {'params': jnp.ones(2)},
    'none': {'params': None},
    'int names': {'params': {1: 2}},
    'int collection': {1: {}},
    'list': [good],
    'missing bias': {'params': {'kernel': params['kernel']}},
    'more parameters': {'params': {**params, 'more': jnp.ones(2)}},
    'numpy': jax.tree.map(np.asarray, good),
    'tuple': (good, 1),
  }
  results = {
    name: attempt(dense.apply, form, X) for name, form in forms.items()
  }
  for name in ('list', 'tuple', 'params only'):
    if hasattr(results[name], 'kind'):
      results[name] = results[name].kind
  return results


@programs
def forms_of_method(nn, flax):
  net = net_of(nn)
  variables = net.init(KEY, X)
  Net = type(net)
  other = net_of(nn)

  class NoArgs:
    def method(self):
      pass

  def free(m, x):
    return m.half(x) * 2

  def no_arguments():
    return 3

  def keyword_only(*, x):
    return x

  forms = {
    'none': None,
    'name': 'half',
    'call name': '__call__',
    'unbound': Net.half,
    'bound': net.half,
    'bound elsewhere': other.half,
    'free': free,
    'lambda': lambda m, x: m.dense(x),
    'partial': functools.partial(free),
    'partial with keyword': functools.partial(lambda m, x, y: x * y, y=3),
    'missing name': 'nope',
    'attribute of setup': 'dense',
    'attribute that is no method': 'name',
    'no arguments': no_arguments,
    'method of another class': NoArgs().method,
    'number': 3,
    'list': [],
    'a class': NoArgs,
    'the module': net,
    'builtin': max,
    'keyword only': keyword_only,
    'init': Net.init,
    'empty': '',
    'parent class': nn.Dense.__call__,
  }
  results = {
    name: attempt(net.apply, variables, X, method=method)
    for name, method in forms.items()
    if name not in ('init', 'builtin')
  }
  inits = {
    name: attempt(net.init, KEY, X, method=method)
    for name, method in forms.items()
    if name not in ('init', 'builtin', 'call name', 'none')
  }
  return results, inits


@programs
def methods_by_the_name_of_a_submodule(nn, flax):
  class Foo(nn.Module):
    inner: nn.Module
    many: tuple = ()

    def __call__(self, x):
      return self.inner(x)

  class Setup(nn.Module):
    def setup(self):
      self.inner = nn.Dense(3)

    def __call__(self, x):
      return self.inner(x)

  foo = Foo(nn.Dense(3))
  variables = foo.init(KEY, X)
  return (
    variables,
    attempt(foo.apply, variables, X, method='inner'),
    attempt(foo.apply, variables, X, method='many'),
    attempt(foo.apply, variables, X, method=foo.inner),
    attempt(foo.apply, variables, X, method=foo.inner.__call__),
    attempt(Setup().init, KEY, X, method='inner'),
  )


@programs
def calls_on_a_class(nn, flax):
  Net = type(net_of(nn))
  return (
    attempt(Net.init, KEY, X),
    attempt(nn.Dense.init, KEY, X),
    attempt(nn.Dense.init_with_output, KEY, X),
    attempt(nn.Dense.apply, {}, X),
    attempt(nn.Dense.bind, {}),
    attempt(nn.Dense.lazy_init, KEY, X),
    attempt(nn.Dense.tabulate, KEY, X).kind,
    attempt(nn.Dense.unbind, {}),
  )


@programs
def arguments_named_like_ours(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x, variables=1, fn=2, module=3, scope=4, self_=5):
      return x, variables, fn, module, scope, self_

  out = Foo().apply({}, 1, module=4, self_=6)
  kwargs = {'variables': 2, 'module': 4, 'self_': 5}
  return (
    out,
    attempt(lambda: Foo().init_with_output(KEY, 1, **kwargs)),
    attempt(lambda: Foo().init(KEY, 1, **kwargs)),
  )


@programs
def results_of_init(nn, flax):
  class Empty(nn.Module):
    def __call__(self, x):
      return x

  class OnlyState(nn.Module):
    @nn.compact
    def __call__(self, x):
      self.variable('a', 'b', jnp.zeros, ())
      self.sow('intermediates', 'h', x)

  class Nested(nn.Module):
    @nn.compact
    def __call__(self, x):
      Empty()(x)
      OnlyState()(x)

  return [attempt(c().init, KEY, X) for c in (Empty, OnlyState, Nested)]


@programs
def is_initializing(nn, flax):
  class Bar(nn.Module):
    def __call__(self):
      return self.is_initializing()

  class Foo(nn.Module):
    def setup(self):
      self.at_setup = self.is_initializing()

    @nn.compact
    def __call__(self):
      return self.is_initializing(), self.at_setup, Bar()()

  foo = Foo()
  return (
    foo.init_with_output(KEY),
    foo.apply({}),
    foo.apply({}, mutable=True),
    foo.bind({})(),
    nn.init_with_output(lambda m: m(), foo)(KEY),
  )


@programs
def is_mutable_collection(nn, flax):
  class Foo(nn.Module):
    def __call__(self):
      names = ('params', 'batch_stats', 'intermediates', 'x')
      return [self.is_mutable_collection(n) for n in names]

  foo = Foo()
  return (
    foo.init_with_output(KEY),
    foo.init_with_output(KEY, mutable=['params']),
    foo.apply({}),
    foo.apply({}, mutable=['x']),
    foo.apply({}, mutable=True),
    foo.apply({}, mutable='x'),
  )


@programs
def changes_without_mutable(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self):
      n = self.variable('state', 'n', lambda: 0)
      n.value = n.value + 1
      return n.value

  foo = Foo()
  variables = foo.init(KEY)
  return (
    variables,
    attempt(foo.apply, variables),
    attempt(foo.apply, variables, mutable=['other']),
    attempt(foo.apply, {}, mutable=['state']),
    attempt(foo.apply, {}),
    attempt(foo.apply, {'state': {}}),
    attempt(foo.apply, {'state': {'m': 1}}),
    foo.apply(variables, mutable=['state']),
    variables,
  )


@programs
def input_is_not_changed(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self):
      d = self.variable('state', 'd', lambda: {'a': 1})
      d.value = {'a': 2, 'b': 3}
      self.put_variable('state', 'new', 5)
      self.put_variable('params', 'w', 6)

  given = {'state': {'d': {'a': 1}}, 'params': {'w': 1}}
  out = Foo().apply(given, mutable=True)
  frozen = flax.core.freeze(given)
  out2 = Foo().apply(frozen, mutable=['state', 'params'])
  return out, given, out2, frozen


@programs
def functional_forms(nn, flax):
  net = net_of(nn)

  def fn(m, x, *, scale=1):
    return m.half(x) * scale

  variables = nn.init(fn, net)(KEY, X)
  out = nn.init_with_output(fn, net)(KEY, X, scale=2)
  more = nn.init(lambda m, x: m(x), net)({'params': KEY}, X)
  return (
    variables,
    out,
    more,
    nn.apply(fn, net)(variables, X, scale=3),
    nn.apply(lambda m, x: m(x), net, mutable=['batch_stats'])(more, X),
    nn.apply(lambda m: m.has_rng('a'), net)(variables, rngs={'a': KEY}),
    attempt(nn.apply(fn, net), variables),
    attempt(nn.init(fn, net), 3, X),
    attempt(nn.apply(fn, net), variables, X, rngs=3),
    nn.apply(fn, net).__name__,
    nn.init(fn, net).__name__,
  )


@programs
def static_values_and_pytrees_pass(nn, flax):
  class Foo(nn.Module):
    def __call__(self, *args, **kwargs):
      return args, kwargs

  return Foo().apply({}, 'x', None, [1, {'a': X}], key=3, flag=True)


@programs
def apply_inside_of_apply(nn, flax):
  inner = nn.Dense(3)

  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      variables = inner.init(KEY, x)
      made = nn.Dense(3)
      y = made(inner.apply(variables, x))
      return y, nn.Dense(3).name

  class SelfApply(nn.Module):
    @nn.compact
    def __call__(self, x, depth=2):
      w = self.param('w', jax.nn.initializers.ones, ())
      if depth:
        return self.apply({'params': {'w': w * 2}}, x, depth - 1)
      return x * w

  class Copy(nn.Module):
    @nn.compact
    def __call__(self, x, deep=True):
      d = nn.Dense(3)
      if deep:
        clone = self.clone(parent=None)
        return d(x) + clone.apply(self.variables, x, False)
      return d(x)

  kinds = (Foo, SelfApply)
  variables = Copy().init(KEY, X, False)
  return [attempt(c().init_with_output, KEY, X) for c in kinds] + [
    attempt(Copy().apply, variables, X)
  ]


@programs
def init_inside_of_a_module_sees_no_outer_mutability(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      def body(variables, x):
        return nn.Dense(3, parent=None).apply(variables, x)

      dense = nn.Dense(3, parent=None)
      params = self.param('dense', lambda k: dense.init(k, x)['params'])
      return jax.vmap(body, (None, 0))({'params': params}, x)

  variables = Foo().init(KEY, X)
  return variables, Foo().apply(variables, X)


@programs
def variables_property(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      d = nn.Dense(2)
      before = jax.tree.map(jnp.shape, d.variables)
      y = d(x)
      self.variable('state', 'n', lambda: 1)
      return before, d.variables, self.variables, y

  out, variables = Foo().init_with_output(KEY, X)
  return out, Foo().apply(variables, X), Foo().apply(variables, X, mutable=True)


@programs
def merge_param(nn, flax):
  cases = [(None, None), (1, None), (None, 2), (1, 2), (False, None), (0, None)]
  return [attempt(nn.merge_param, 'n', *case) for case in cases]


@programs
def exact_signatures(nn, flax):
  import inspect

  def shape(fn):
    return [
      (p.name, p.kind.name, p.default is p.empty)
      for p in inspect.signature(fn).parameters.values()
    ]

  methods = (
    'init init_with_output apply bind unbind lazy_init clone copy variable'
    ' param has_variable get_variable put_variable sow perturb make_rng has_rng'
    ' is_initializing is_mutable_collection tabulate module_paths setup'
  ).split()
  functions = (
    'init init_with_output apply compact nowrap intercept_methods merge_param'
    ' share_scope compact_name_scope override_named_call enable_named_call'
  ).split()
  return (
    {m: shape(getattr(nn.Module, m)) for m in methods},
    {f: shape(getattr(nn, f)) for f in functions},
  )


@programs
def names_in_profiles(nn, flax):
  class Net(nn.Module):
    def setup(self):
      self.dense = nn.Dense(3)
      self.norm = nn.BatchNorm(use_running_average=True)

    def encode(self, x):
      return self.dense(x)

    def __call__(self, x):
      return jnp.sum(nn.relu(self.norm(self.encode(x))))

  net = Net()
  variables = net.init(KEY, X)

  def names():
    grad = jax.jit(jax.grad(lambda v: net.apply(v, X)))
    text = grad.lower(variables).as_text(debug_info=True)
    return sorted(set(re.findall(r'loc\("(jit[^"]*)"', text)))

  named = names()
  assert any('Net.encode/dense' in name for name in named)
  with nn.override_named_call(False):
    return named, names()


@programs.parametrize()
def test_same_as_flax(program):
  assert_same_as_flax(program)


@programs.parametrize()
def test_same_as_flax_with_frozen_results(program):
  assert_same_as_flax(program, frozen=True)


def test_modules_nest_190_deep_at_the_default_recursion_limit():
  class Nested(nn.Module):
    depth: int

    @nn.compact
    def __call__(self, x):
      x = x + self.param('p', nn.initializers.zeros_init(), (3,))
      return Nested(self.depth - 1)(x) if self.depth > 1 else x

  def run():
    net = Nested(190)
    variables = net.init(KEY, X)
    return net.apply(variables, X).shape

  # A new thread begins with an empty stack, whatever the tests run in.
  limit = sys.getrecursionlimit()
  sys.setrecursionlimit(1000)
  try:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
      assert pool.submit(run).result() == X.shape
  finally:
    sys.setrecursionlimit(limit)
