"""Semantics 11: which methods are wrapped, descriptors, interceptors."""

import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
from module_compare import KEY, Programs, X, assert_same_as_flax, attempt

programs = Programs()


@programs
def attribute_errors_in_properties(nn, flax):
  class Foo(nn.Module):
    def setup(self):
      self.ok = 3

    @property
    def bad(self):
      return self.nope

    @property
    def good(self):
      return self.ok

    @property
    def value_error(self):
      raise ValueError('meant')

    def __call__(self, name):
      return getattr(self, name)

  names = ('bad', 'good', 'value_error', 'nope')
  return (
    [attempt(Foo().apply, {}, name) for name in names],
    [attempt(getattr, Foo(), name) for name in names],
    hasattr(Foo(), 'nope'),
    attempt(hasattr, Foo(), 'bad'),
  )


@programs
def properties_can_be_set(nn, flax):
  class Foo(nn.Module):
    def setup(self):
      self._a = 3

    @property
    def a(self):
      return self._a

    @functools.cached_property
    def b(self):
      return 7

    def __call__(self):
      return self.a, self.b, self.b

  class Setter(nn.Module):
    @property
    def a(self):
      return self.__dict__.get('_value', 3)

    @a.setter
    def a(self, value):
      self.__dict__['_value'] = value * 2

    def __call__(self):
      return self.a

    def set(self, value):
      self.a = value
      return self.a

  setter = Setter()
  setter.a = 4
  return (
    attempt(Foo().apply, {}),
    setter.a,
    Setter().apply({}),
    attempt(Setter().apply, {}, 5, method='set'),
  )


@programs
def own_descriptors(nn, flax):
  class Descriptor:
    def __get__(self, obj, objtype=None):
      return 10

    def __set__(self, obj, value):
      obj.__dict__['stored'] = value

    def __set_name__(self, owner, name):
      self.name = name

  class Bad:
    def __get__(self, obj, objtype=None):
      raise AttributeError('inside')

  class Method:
    def __init__(self, fn):
      self.fn = fn

    def __get__(self, obj, objtype=None):
      return functools.partial(self.fn, obj)

  def doubled(fn):
    return Method(lambda obj, x: 2 * fn(obj, x))

  class Foo(nn.Module):
    d = Descriptor()
    bad = Bad()

    @doubled
    def m(self, x):
      return x + 1

    def __call__(self, name):
      return getattr(self, name)

    def call(self, x):
      return self.m(x)

  foo = Foo()
  foo.d = 5
  return (
    [attempt(Foo().apply, {}, name) for name in ('d', 'bad', 'nope')],
    foo.d,
    foo.stored,
    attempt(Foo().apply, {}, 3, method='call'),
    attempt(lambda: foo.m(3)),
  )


@programs
def static_and_class_methods(nn, flax):
  class Foo(nn.Module):
    size: int = 3

    @staticmethod
    def double(x):
      return 2 * x

    @classmethod
    def make(cls, size):
      return cls(size=size)

    @staticmethod
    def build():
      return nn.Dense(2)

    @nn.compact
    def __call__(self, x):
      return self.double(self.build()(x)) + self.make(2).size

  class Nested(nn.Module):
    @nn.compact
    def __call__(self, x):
      return Foo.make(4)(x)

  return (
    Foo.double(3),
    Foo.make(7).size,
    Foo().init_with_output(KEY, X),
    Nested().init_with_output(KEY, X),
  )


@programs
def decorated_methods(nn, flax):
  def twice(fn):
    @functools.wraps(fn)
    def wrapper(self, *args, **kwargs):
      return fn(self, fn(self, *args, **kwargs))

    return wrapper

  def plain(fn):
    def wrapper(*args, **kwargs):
      return fn(*args, **kwargs)

    return wrapper

  class Foo(nn.Module):
    @twice
    @nn.compact
    def __call__(self, x):
      return nn.Dense(3)(x)

  class Bar(nn.Module):
    @nn.compact
    @twice
    def __call__(self, x):
      return nn.Dense(3)(x)

  class Baz(nn.Module):
    @plain
    @nn.compact
    def __call__(self, x):
      return nn.Dense(3)(x)

  class Qux(nn.Module):
    @nn.compact
    @plain
    def __call__(self, x):
      return nn.Dense(3)(x)

  kinds = (Foo, Bar, Baz, Qux)
  return [attempt(c().init_with_output, KEY, X) for c in kinds]


@programs
def signatures_and_names(nn, flax):
  class Foo(nn.Module):
    def __call__(self, x: int, *, y: str = 'a') -> float:
      """The docstring."""

    @nn.compact
    def method(self, z):
      """Another."""

    @nn.nowrap
    def helper(self, q):
      pass

  names = ('__call__', 'method', 'helper', 'setup', 'param', 'init', 'apply')
  own = names[:3]
  return (
    [list(inspect.signature(getattr(Foo, n)).parameters) for n in names[:4]],
    [getattr(Foo, n).__name__ for n in names],
    [getattr(Foo, n).__qualname__ for n in own],
    [getattr(Foo, n).__doc__ for n in own],
    [callable(getattr(Foo(), n)) for n in names],
    Foo.__call__.__annotations__ == {'x': int, 'y': str, 'return': float},
  )


@programs
def callables_in_the_class_body(nn, flax):
  class Callable:
    def __call__(self, *args):
      return ('called', len(args))

  def times_size(self, x):
    return x * self.size

  class Foo(nn.Module):
    size: int = 3
    kind = nn.Dense
    function = times_size
    lam = lambda self, x: x + self.size
    obj = Callable()
    part = functools.partial(lambda x: x + 1)
    jitted = jax.jit(lambda x: x + 1)
    number = 7

    def __call__(self, x):
      return (
        self.function(x),
        self.lam(x),
        self.obj(x),
        self.part(x),
        self.number,
        self.kind is nn.Dense,
      )

  return attempt(Foo().apply, {}, 2), attempt(lambda: Foo().jitted(2))


@programs
def calling_through_the_class(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.Dense(3)(x)

  class Bar(nn.Module):
    @nn.compact
    def __call__(self, x):
      foo = Foo()
      return Foo.__call__(foo, x) + type(foo).__call__(foo, x)

  return Bar().init_with_output(KEY, X)


@programs
def not_implemented_call(nn, flax):
  class Foo(nn.Module):
    pass

  class Bar(Foo):
    def other(self):
      return 3

  class Top(nn.Module):
    @nn.compact
    def __call__(self):
      return Foo()()

  return (
    attempt(Foo().init, KEY),
    attempt(Foo().apply, {}),
    attempt(lambda: Foo()()),
    Bar().apply({}, method='other'),
    attempt(Top().init, KEY),
    callable(Foo()),
  )


@programs
def unbound_calls(nn, flax):
  class Foo(nn.Module):
    size: int = 3

    def setup(self):
      self.a = 4

    @nn.compact
    def __call__(self, x):
      return nn.Dense(3)(x)

    def plain(self, x):
      return x * self.size

    def needs_setup(self, x):
      return self.a

    def makes(self):
      return nn.Dense(3)

    @nn.nowrap
    def helper(self):
      return nn.Dense(3)

  foo = Foo()
  uses = {
    'call': lambda: foo(X),
    'plain': lambda: foo.plain(2),
    'needs_setup': lambda: foo.needs_setup(2),
    'makes': lambda: repr(foo.makes()),
    'helper': lambda: repr(foo.helper()),
    'setup': lambda: foo.setup(),
    'has_variable': lambda: foo.has_variable('a', 'b'),
    'get_variable': lambda: foo.get_variable('a', 'b'),
    'put_variable': lambda: foo.put_variable('a', 'b', 1),
    'make_rng': lambda: foo.make_rng('a'),
    'has_rng': lambda: foo.has_rng('a'),
    'variables': lambda: foo.variables,
    'sow': lambda: foo.sow('a', 'b', 1),
    'perturb': lambda: foo.perturb('a', X),
    'path': lambda: foo.path,
    'is_mutable': lambda: foo.is_mutable_collection('a'),
    'is_initializing': lambda: foo.is_initializing(),
    'unbind': lambda: foo.unbind(),
    'name': lambda: foo.name,
    'parent': lambda: foo.parent,
    'scope': lambda: foo.scope,
  }
  return {name: attempt(use) for name, use in uses.items()}


def recorder(log, tag):
  def interceptor(next_fun, args, kwargs, context):
    log.append(
      (
        tag,
        type(context.module).__name__,
        context.method_name,
        len(args),
        sorted(kwargs),
        context.orig_method.__name__
        if hasattr(context.orig_method, '__name__')
        else type(context.orig_method).__name__,
      )
    )
    out = next_fun(*args, **kwargs)
    log.append((tag, 'out', context.method_name))
    return out

  return interceptor


@programs
def what_interceptors_see(nn, flax):
  log = []

  class Base(nn.Module):
    def setup(self):
      self.a = nn.Dense(3)

    def __call__(self, x, *, y=1):
      return self.a(x) * y

  class Foo(Base):
    size: int = 3

    def setup(self):
      super().setup()
      self.b = 3

    def __call__(self, x, *, y=1):
      return super().__call__(x, y=y) + self.method(x) + self.helper(x)

    def method(self, x):
      return x * self.prop

    @property
    def prop(self):
      return self.size

    @nn.nowrap
    def helper(self, x):
      return x

    @staticmethod
    def static(x):
      return x

  with nn.intercept_methods(recorder(log, 'outer')):
    with nn.intercept_methods(recorder(log, 'inner')):
      out = Foo().init_with_output(KEY, X, y=2)
    Foo().apply(out[1], X)
  Foo().apply(out[1], X)
  return out, log


@programs
def interceptors_see_special_methods(nn, flax):
  log = []

  class Foo(nn.Module):
    def __str__(self):
      return 'foo'

    def __bool__(self):
      return True

    def __iter__(self):
      return iter((1, 2))

    def __contains__(self, x):
      return x == 1

    def __call__(self):
      return str(self), bool(self), list(self), 1 in self

  with nn.intercept_methods(recorder(log, 'one')):
    return Foo().apply({}), f'{Foo()}', log


@programs
def interceptors_change_the_call(nn, flax):
  def add_one(next_fun, args, kwargs, context):
    args = tuple(a + 1 for a in args)
    return next_fun(*args, **kwargs)

  def double(next_fun, args, kwargs, context):
    return 2 * next_fun(*args, **kwargs)

  def skip(next_fun, args, kwargs, context):
    if context.method_name == '__call__' and context.module.name == 'b':
      return args[0]
    return next_fun(*args, **kwargs)

  def original(next_fun, args, kwargs, context):
    return context.orig_method(*args, **kwargs)

  def twice(next_fun, args, kwargs, context):
    next_fun(*args, **kwargs)
    return next_fun(*args, **kwargs)

  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.Dense(3, name='b')(nn.Dense(3, name='a')(x))

  class Plain(nn.Module):
    def __call__(self, x):
      return x * 2

  def through(interceptors, module, *args):
    import contextlib

    with contextlib.ExitStack() as stack:
      for interceptor in interceptors:
        stack.enter_context(nn.intercept_methods(interceptor))
      return attempt(module.init_with_output, *args)

  results = []
  for interceptors in (
    [add_one],
    [double],
    [add_one, double],
    [double, add_one],
    [skip],
    [double, original],
    [original, double],
    [twice],
  ):
    results.append(through(interceptors, Plain(), KEY, 3.0))
    if interceptors != [double] and double not in interceptors:
      results.append(through(interceptors, Foo(), KEY, X))
  with nn.intercept_methods(double):
    results.append(Plain()(3.0))
  return results


@programs
def interceptor_context(nn, flax):
  seen = []

  def look(next_fun, args, kwargs, context):
    seen.append(
      (
        sorted(vars(context)),
        context.module.path,
        context.module.scope is not None,
        context.module.is_initializing(),
        context.orig_method.func.__name__,
      )
    )
    if context.method_name == '__call__':
      context.module.sow('intermediates', 'seen', args[0])
    return next_fun(*args, **kwargs)

  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.Dense(3)(x)

  with nn.intercept_methods(look):
    variables = Foo().init(KEY, X)
    out = Foo().apply(variables, X, mutable=['intermediates'])
  return variables, out, seen


@programs
def capture_intermediates(nn, flax):
  class Bar(nn.Module):
    def setup(self):
      self.d = nn.Dense(2)

    def __call__(self, x):
      return self.other(self.d(x))

    def other(self, x):
      return x + 1

  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      bar = Bar()
      return bar(x) + bar(x) + nn.Dense(2)(x)

  foo = Foo()
  variables = foo.init(KEY, X)
  results = [
    foo.apply(variables, X, capture_intermediates=True),
    foo.apply(variables, X, capture_intermediates=True, mutable=['a']),
    foo.apply(variables, X, capture_intermediates=True, mutable=False),
    foo.apply(
      variables,
      X,
      capture_intermediates=lambda m, name: isinstance(m, Bar),
    ),
    foo.apply(
      variables,
      X,
      capture_intermediates=lambda m, name: name == 'other',
      mutable=['intermediates'],
    ),
    foo.apply(
      variables,
      X,
      capture_intermediates=lambda m, name: isinstance(m, nn.Dense),
    ),
    foo.apply(variables, X, mutable=['intermediates']),
    foo.init(KEY, X, capture_intermediates=True),
    foo.init_with_output(KEY, X, capture_intermediates=True),
    nn.apply(lambda m, x: m(x), foo, capture_intermediates=True)(variables, X),
    nn.init(lambda m, x: m(x), foo, capture_intermediates=True)(KEY, X),
  ]
  return results


@programs
def capture_with_sow_of_the_same_name(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      self.sow('intermediates', '__call__', x)
      self.sow('intermediates', 'h', x)
      return x * 2

  return [
    attempt(
      Foo().apply, {}, X, mutable=['intermediates'], capture_intermediates=c
    )
    for c in (True, False)
  ]


@programs
def methods_that_return_many_things(nn, flax):
  class Foo(nn.Module):
    @nn.compact
    def __call__(self, x):
      return {'a': (x, None), 'b': [1, 'text']}

  return Foo().apply({}, X, capture_intermediates=True)


@programs
def generators_and_context_managers(nn, flax):
  import contextlib

  class Foo(nn.Module):
    def items(self):
      for i in range(3):
        yield i * 2

    @contextlib.contextmanager
    def context(self):
      yield 5

    def __call__(self):
      with self.context() as value:
        return list(self.items()), value

  return attempt(Foo().apply, {})


@programs
def methods_with_a_first_argument_of_another_name(nn, flax):
  class Foo(nn.Module):
    def __call__(this, self):
      return self * 2

    def keyword(self, fn, args, kwargs, name, method):
      return fn, args, kwargs, name, method

  return (
    Foo().apply({}, 3),
    Foo().apply({}, 1, 2, 3, 4, 5, method='keyword'),
    attempt(
      lambda: Foo().apply({}, fn=1, args=2, kwargs=3, name=4, method='keyword')
    ),
  )


@programs
def deferred_any_type(nn, flax):
  class Foo(nn.Module):
    fn: Any

    @nn.compact
    def __call__(self, x):
      return self.fn(self, x)

  out = Foo(lambda m, x: nn.Dense(3)(x)).init_with_output(KEY, X)
  bad = attempt(Foo(nn.Dense.__call__).init, KEY, X)
  return out, bad.kind, jnp.sum(out[0])


@programs.parametrize()
def test_same_as_flax(program):
  assert_same_as_flax(program)
