"""Semantics 9: modules as dataclasses: order of fields, parent, bases."""

import abc
import copy
import dataclasses
import functools
import inspect
import pickle
import typing
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import haiku as hk
import jax.numpy as jnp
import pytest
from module_compare import KEY, Programs, X, assert_same_as_flax, attempt

from haiku_state import linen

programs = Programs()
T = TypeVar('T')
A = TypeVar('A')


def order_of(cls):
  return [f.name for f in dataclasses.fields(cls)]


def facts(cls):
  """Returns the parameters of a class, those by keyword in no order.

  In Flax `parent` and `name` are refused as positional arguments by a check of
  their number; by their signature they could be given so. Ours could not.
  """
  parameters = inspect.signature(cls).parameters.values()
  required = {p.name: p.default is p.empty for p in parameters}
  positional = [
    p.name
    for p in parameters
    if p.kind is not p.KEYWORD_ONLY and p.name not in ('parent', 'name')
  ]
  return positional, required, set(order_of(cls))


def refusal(fn, *args):
  """Returns the text of a TypeError; ours has the name of the class too."""
  result = attempt(fn, *args)
  return result.kind, result.text[result.text.find('__init__') :]


@programs
def order_through_inheritance(nn, flax):
  class A0(nn.Module):
    bar: int

  class A1(A0):
    baz: int

  class A2(A1):
    qux: int = 3

  class A3(A2):
    last: int = 4

  class A4(A3):
    qux: int = 5

  class NoFields(A3):
    pass

  kinds = (A0, A1, A2, A3, A4, NoFields)
  return [(facts(c), order_of(c)) for c in kinds]


@programs
def positional_parent_and_name(nn, flax):
  class Foo(nn.Module):
    bar: int

  return (
    refusal(Foo, 1, None),
    refusal(Foo, 1, None, 'x'),
    refusal(Foo),
    refusal(lambda: Foo(1, nope=3)),
    repr(Foo(1, name='x', parent=None)),
    Foo(1, name='x').name,
    Foo(bar=2).bar,
  )


@programs
def required_after_default(nn, flax):
  class Foo(nn.Module):
    a: int = 1

  def make():
    class Bar(Foo):
      b: int

    return facts(Bar)

  def marked():
    class Bar(Foo):
      _: dataclasses.KW_ONLY
      b: int

    return facts(Bar), Bar(b=3).b, Bar(4, b=3).a

  return attempt(make), attempt(marked)


@programs
def kw_only_classes(nn, flax):
  class Base(nn.Module, kw_only=True):
    a: int
    b: int = 2

  class Mixed(Base):
    c: int
    d: int = 4

  class Both(Base, kw_only=True):
    e: int

  class Rev(Both):
    f: int

  return (
    [attempt(facts, c) for c in (Base, Mixed, Both, Rev)],
    attempt(Base, 1),
    attempt(lambda: Mixed(3, a=1).c),
    attempt(lambda: Both(a=1, e=2).e),
    attempt(lambda: Rev(7, a=1, e=2).f),
    attempt(lambda: Base(a=1, name='n').name),
  )


@programs
def kw_only_fields(nn, flax):
  class Foo(nn.Module):
    a: int
    b: int = dataclasses.field(default=3, kw_only=True)

  class Bar(Foo):
    c: int = 2

  class Baz(Bar):
    b: int = 5
    d: int = dataclasses.field(default=3, kw_only=True)

  return (
    [attempt(facts, c) for c in (Foo, Bar, Baz)],
    attempt(lambda: Bar(1, 2, b=4).b),
    attempt(lambda: Baz(1, 2, d=4).b),
  )


@programs
def own_kw_only_dataclasses(nn, flax):
  kw = importlib(flax, 'linen.kw_only_dataclasses')

  @kw.dataclass
  class Foo:
    a: int
    b: int = kw.field(default=3, kw_only=True)

  @kw.dataclass
  class Bar(Foo):
    c: int
    _: kw.KW_ONLY
    d: int = 5

  @kw.dataclass
  class Baz(Bar):
    b: int = 7
    d: int
    e: int

  def twice():
    @kw.dataclass
    class Foo:
      _: kw.KW_ONLY
      a: int = 1
      __: kw.KW_ONLY
      b: int = 2

  def no_default():
    @kw.dataclass
    class Foo:
      _: kw.KW_ONLY
      a: int

  def no_default_field():
    @kw.dataclass
    class Foo:
      a: int = kw.field(kw_only=True)

  return (
    [[f.name for f in dataclasses.fields(c)] for c in (Foo, Bar, Baz)],
    dataclasses.astuple(Foo(1)),
    dataclasses.astuple(Bar(1, 2)),
    dataclasses.astuple(Baz(1, 2, 3, d=4)),
    refusal(Foo, 1, 2),
    [attempt(f) for f in (twice, no_default, no_default_field)],
    repr(kw.KW_ONLY),
  )


def importlib(package, name):
  """Returns a module below a package, whatever the package is called."""
  for part in name.split('.'):
    package = getattr(package, part)
  return package


@programs
def class_vars_and_init_vars(nn, flax):
  class Foo(nn.Module):
    kind: ClassVar[str] = 'k'
    size: int
    seed: dataclasses.InitVar[int] = 3

    def __post_init__(self, seed):
      self.double = seed * 2
      super().__post_init__()

    def __call__(self):
      return self.size

  foo = Foo(4, seed=5)
  return (
    facts(Foo),
    foo.double,
    foo.kind,
    attempt(foo.apply, {}),
    attempt(lambda: foo.clone()),
    attempt(lambda: hash(foo) == hash(Foo(4, seed=5))),
  )


@programs
def mixins_with_annotations(nn, flax):
  class Mixin:
    extra: int = 4

    def helper(self):
      return self.extra

  @dataclasses.dataclass
  class DataMixin:
    more: int = 5

  class Foo(Mixin, nn.Module):
    a: int = 1

    def __call__(self):
      return self.helper(), self.a

  class Bar(DataMixin, nn.Module):
    a: int = 1

    def __call__(self):
      return self.more, self.a

  class Baz(nn.Module, DataMixin):
    a: int = 1

    def __call__(self):
      return self.more, self.a

  kinds = (Foo, Bar, Baz)
  return [
    (attempt(facts, c), attempt(lambda c=c: c().apply({}))) for c in kinds
  ]


@programs
def module_mixins(nn, flax):
  class Mixin(nn.Module):
    extra: int = 4

    def helper(self, x):
      return x * self.extra

  class Base(nn.Module):
    size: int = 2

    @nn.compact
    def __call__(self, x):
      return nn.Dense(self.size)(x)

  class Foo(Mixin, Base):
    pass

  class Bar(Base, Mixin):
    own: int = 7

    @nn.compact
    def __call__(self, x):
      return self.helper(super().__call__(x))

  def third():
    class Both(Bar, Foo):
      pass

    return facts(Both)

  return (
    attempt(facts, Foo),
    attempt(facts, Bar),
    attempt(lambda: Foo(size=3).init(KEY, X)),
    attempt(lambda: Bar(size=3).init_with_output(KEY, X)),
    attempt(third),
  )


@programs
def generic_modules(nn, flax):
  class Foo(nn.Module, Generic[T]):
    inner: T

    @nn.compact
    def __call__(self, x: T):
      return nn.Dense(3)(x)

  class Bar(Foo[int]):
    more: int = 3

  class Front(Generic[T], nn.Module):
    inner: T = 3

    def __call__(self, x):
      return x

  class Two(nn.Module, Generic[T, A]):
    a: T
    b: A

    def __call__(self):
      return self.a, self.b

  return (
    [facts(c) for c in (Foo, Bar, Front, Two)],
    Foo[int](3).init(KEY, X),
    Bar(3).init(KEY, X),
    repr(Foo[int](3)),
    Foo[int](3) == Foo(3),
    Two[int, str](1, 'x').apply({}),
    typing.get_args(Foo[int]),
  )


@programs
def abstract_modules(nn, flax):
  class Foo(nn.Module, abc.ABC):
    size: int = 3

    @abc.abstractmethod
    def __call__(self, x):
      pass

    @property
    @abc.abstractmethod
    def prop(self):
      pass

  class Half(Foo):
    def __call__(self, x):
      return x

  class Bar(Half):
    @property
    def prop(self):
      return self.size

    def __call__(self, x):
      return x * self.prop

  class Meta(nn.Module, metaclass=abc.ABCMeta):
    @abc.abstractmethod
    def method(self):
      pass

  # Nobody asked for a check here.
  class Unchecked(nn.Module):
    size: int = 3

    @property
    @abc.abstractmethod
    def width(self):
      pass

    @abc.abstractmethod
    def method(self):
      return self.size

  class Checked(Unchecked, abc.ABC):
    @abc.abstractmethod
    def other(self):
      pass

  class Done(Checked):
    def other(self):
      return self.method()

  def meta():
    class Mine(Meta):
      def method(self):
        return 4

    return Mine().apply({}, method='method')

  return (
    attempt(Foo),
    attempt(Half),
    Bar().apply({}, X),
    inspect.isabstract(Foo),
    inspect.isabstract(Bar),
    sorted(Foo.__abstractmethods__),
    meta(),
    Unchecked().apply({}, method='method'),
    inspect.isabstract(Unchecked),
    attempt(Checked),
    sorted(Checked.__abstractmethods__),
    Done().apply({}, method='other'),
  )


@programs
def protocols(nn, flax):
  @typing.runtime_checkable
  class HasCall(Protocol):
    def method(self, x): ...

  class Foo(nn.Module, HasCall):
    size: int = 3

    def method(self, x):
      return x * self.size

  class Other(nn.Module):
    def method(self, x):
      return x

  class Attr(Protocol):
    size: int

  class Bar(Attr, nn.Module):
    size: int = 4

    def __call__(self):
      return self.size

  return (
    facts(Foo),
    Foo().apply({}, X, method='method'),
    isinstance(Foo(), HasCall),
    isinstance(Other(), HasCall),
    attempt(facts, Bar),
    attempt(lambda: Bar().apply({})),
  )


@programs
def typed_decorations(nn, flax):
  class Foo(nn.Module):
    a: 'int'
    b: 'Any' = None
    c: int | None = None
    d: typing.Callable[..., Any] = jnp.tanh
    e: list[int] = dataclasses.field(default_factory=list)

  def mutable_default():
    class Foo(nn.Module):
      a: list = []  # noqa: RUF012

    return Foo

  return facts(Foo), Foo(1).e, attempt(mutable_default)


@programs
def methods_in_annotations_and_partials(nn, flax):
  class Foo(nn.Module):
    f: Any = lambda x: x + 1
    g: Any = functools.partial(lambda y, x: x + y, 2)

    def __call__(self, x):
      return self.f(x), self.g(x)

  return attempt(Foo().apply, {}, 3), attempt(lambda: Foo().f(3))


@programs
def applying_dataclass_again(nn, flax):
  def again():
    @dataclasses.dataclass
    class Foo(nn.Module):
      a: int = 1

      def __call__(self):
        return self.a

    return Foo(2).apply({}), Foo(2) == Foo(2)

  return attempt(again)


@programs
def own_init(nn, flax):
  class Foo(nn.Module):
    size: int = 3

    def __init__(self, size):
      self.size = size * 2
      self.parent = None
      self.name = None
      super().__post_init__()

    def __call__(self):
      return self.size

  return attempt(lambda: Foo(2).size), attempt(lambda: Foo(2).apply({})).kind


@programs
def own_init_that_calls_that_of_module(nn, flax):
  class Foo(nn.Module):
    def __init__(self, size, **place):
      super().__init__(**place)
      self.size = size

  foo = Foo(2)
  return foo.size, repr(foo), attempt(foo.apply, {})


@programs
def names_of_our_machinery(nn, flax):
  def method(self, x):
    return nn.Dense(2)(x)

  def call(self, x):
    return sum(getattr(self, name)(x) for name in names)

  names = ('_bind', '_attach', '_checked', '_run_setup', '_find_parent')
  body = {**dict.fromkeys(names, method), '__call__': nn.compact(call)}
  Foo = type(nn.Module)('Foo', (nn.Module,), body)
  return nn.Sequential([Foo()]).init(KEY, X), nn.jit(Foo)().init(KEY, X)


@programs
def class_of_a_module(nn, flax):
  class Foo(nn.Module):
    a: int = 1

  return (
    Foo.name,
    Foo.a,
    Foo.parent,
    Foo.scope,
    dataclasses.is_dataclass(Foo),
    dataclasses.is_dataclass(nn.Module),
    Foo.__name__,
    Foo.__qualname__,
    dataclasses.replace(Foo(3), a=4).a,
    sorted(dataclasses.asdict(Foo(3))),
  )


@programs
def parent_sentinel(nn, flax):
  class Foo(nn.Module):
    a: int = 1

  default = [f for f in dataclasses.fields(Foo) if f.name == 'parent'][0]
  sentinel = default.default
  return (
    copy.copy(sentinel) is sentinel,
    copy.deepcopy(sentinel) is sentinel,
    pickle.loads(pickle.dumps(sentinel)) is sentinel,
    isinstance(sentinel, nn.module._Sentinel),
    Foo(3).parent,
  )


@programs
def reserved_and_dunder_methods(nn, flax):
  class Foo(nn.Module):
    def __getitem__(self, i):
      return i * 2

    def __len__(self):
      return 3

    def __add__(self, other):
      return 'sum'

    def __iter__(self):
      return iter([1, 2])

    def __contains__(self, x):
      return x == 1

  foo = Foo()
  return (
    foo[3],
    len(foo),
    foo + 1,
    list(foo),
    1 in foo,
    foo.apply({}, 4, method='__getitem__'),
    foo.apply({}, method=lambda m: (m[1], len(m), m + 2, list(m), 2 in m)),
  )


@programs
def inner_classes(nn, flax):
  class Foo(nn.Module):
    class Config:
      a = 3

    class Inner(nn.Module):
      @nn.compact
      def __call__(self, x):
        return nn.Dense(2)(x)

    @nn.compact
    def __call__(self, x):
      return self.Inner()(x) * self.Config().a

  return Foo().init_with_output(KEY, X)


@programs
def override_of_properties_and_methods_by_fields(nn, flax):
  class Foo(nn.Module):
    def size(self):
      return 3

    def __call__(self):
      return self.size()

  def by_field():
    class Bar(Foo):
      size: Any = None

    return Bar(size=lambda: 5).apply({})

  def by_property():
    class Bar(Foo):
      @property
      def size(self):
        return lambda: 6

    return Bar().apply({})

  return attempt(by_field), attempt(by_property)


@programs.parametrize()
def test_same_as_flax(program):
  assert_same_as_flax(program)


def test_subclasses_may_use_all_names_but_these():
  theirs = dir(pytest.importorskip('flax.linen').Module)
  more = set(dir(linen.Module)) - set(theirs) - set(dir(hk.Module))
  assert more <= {
    'AUTO_REPR',
    '_compact_name_scope_methods',
    '_field_names',
    '_named_by_itself',
    '_setup_needed',
    '_state',
    'scope',
  }


def own_field(name):
  return type(linen.Module)(
    'Foo', (linen.Module,), {'__annotations__': {name: int}}
  )()


def own_constant(name):
  return type(linen.Module)('Foo', (linen.Module,), {name: 3})()


def of_a_mixin(name):
  mixin = type('Mixin', (), {name: 3})
  return type(linen.Module)('Foo', (mixin, linen.Module), {})()


def set_in_setup(name):
  class Foo(linen.Module):
    def setup(self):
      setattr(self, name, 3)

    def __call__(self):
      pass

  Foo().apply({})


@pytest.mark.parametrize('name', ['module_name', '_submodules'])
@pytest.mark.parametrize(
  'use', [own_field, own_constant, of_a_mixin, set_in_setup]
)
def test_names_that_haiku_sets_are_refused(use, name):
  with pytest.raises(ValueError, match=f'Foo has an attribute "{name}"'):
    use(name)
