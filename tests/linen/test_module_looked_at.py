"""What programs find when they look at modules, compared with Flax."""

import inspect

import jax
import pytest
from jax_names import told
from module_compare import KEY, Programs, X, assert_same_as_flax, attempt

import haiku_state
from haiku_state import linen
from haiku_state.port import run_path

programs = Programs()


@programs
def fields_as_people_see_them(nn, flax):
  class Plain(nn.Module):
    a: int
    b: int = 2

  class More(Plain):
    c: int = 3

  class Named(nn.Module, kw_only=True):
    a: int

  def shown(cls):
    parameters = inspect.signature(cls).parameters.values()
    return cls.__match_args__, [(p.name, p.kind.name) for p in parameters]

  matched = None
  match More(1):
    case More(1, 2, c, _, name):
      matched = c, name
  too_many = attempt(Plain, 1, 2, None, 'name').kind
  return [shown(c) for c in (Plain, More, Named, nn.Dense)], matched, too_many


@programs
def own_initializer(nn, flax):
  class Own(nn.Module):
    def __init__(self, size):
      self.size = size

  return list(inspect.signature(Own).parameters)


@programs
def metaclass_of_ones_own(nn, flax):
  class Registry(type(nn.Module)):
    known = []

    def __init__(cls, name, bases, body, **options):
      super().__init__(name, bases, body)
      Registry.known.append(name)

  class Net(nn.Module, metaclass=Registry):
    @nn.compact
    def __call__(self, x):
      return nn.Dense(2)(x)

  class Other(Net):
    pass

  return Registry.known, Other().init(KEY, X)


@programs
def parts_that_are_bound_to_the_scope_of_the_whole(nn, flax):
  class Part(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.Dense(2)(x)

  class Whole(nn.Module):
    a: int
    b: nn.Module

    @nn.compact
    def __call__(self, x):
      return self.b(x)

  scope = flax.core.Scope({}, {'params': KEY}, mutable=True)
  whole = Whole(parent=scope, a=1, b=Part(parent=scope))
  y = whole(X)
  return whole.b.name, whole.b.path, whole.scope is scope, scope.variables(), y


@programs
def abstract_run_of_setup(nn, flax):
  """Programs leave it out by the name of the class of its scope."""
  seen = []

  class Part(nn.Module):
    def setup(self):
      seen.append(type(self.scope).__name__)
      self.dense = nn.Dense(2)

    def __call__(self, x):
      return self.dense(x)

  nn.remat(Part)().init(KEY, X)
  nn.jit(Part)().init(KEY, X)
  return seen


@programs
def calls_of_lifted_classes(nn, flax):
  """Interceptors see the abstract run of `setup` that goes before."""
  seen = []

  def note(next_fun, args, kwargs, context):
    seen.append((type(context.module).__name__, context.method_name))
    return next_fun(*args, **kwargs)

  class Part(nn.Module):
    def setup(self):
      self.dense = nn.Dense(3)

    def __call__(self, x):
      return self.dense(x)

  class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
      over = {'variable_axes': {'params': 0}, 'split_rngs': {'params': True}}
      for lifted in (nn.remat, nn.jit, lambda c: nn.vmap(c, **over)):
        x = lifted(nn.Dense)(3)(x)
      x = nn.remat(lambda module, x: module.helper(x))(self, x)
      part = nn.remat(Part)()
      return part(part(x))

    @nn.jit
    def helper(self, x):
      return x

  with nn.intercept_methods(note):
    variables = Net().init(KEY, X)
    Net().apply(variables, X)
    Net().apply(variables, X, method='helper')
  return seen


@programs
def variables_that_are_none(nn, flax):
  kinds = [
    isinstance(_raised(f), TypeError)
    for f in (
      lambda: nn.Dense(1).apply(None, X),
      lambda: nn.Dense(1).apply(3, X),
      lambda: flax.core.apply(lambda scope: 1)(None),
    )
  ]
  return kinds


def _raised(fn):
  try:
    fn()
  except Exception as e:
    return e


@programs.parametrize()
def test_same_as_flax(program):
  assert_same_as_flax(program)


def test_conflict_of_metaclasses_says_what_to_write(tmp_path):
  program = tmp_path / 'program.py'
  program.write_text(
    'import flax.linen as nn\nclass Registry(type): pass\n'
    'class Net(nn.Module, metaclass=Registry): pass\n'
  )
  with pytest.raises(TypeError, match='metaclass conflict') as e:
    run_path(program)
  assert 'class Registry(type(nn.Module))' in told(e.value)


def test_names_of_the_package_are_listed():
  assert 'optim' in dir(haiku_state) and 'linen' in dir(haiku_state)
  assert dir(haiku_state) == sorted(set(dir(haiku_state)))


def test_nothing_is_run_for_who_does_not_look(monkeypatch):
  def fail(*_):
    raise AssertionError('setup was run abstractly')

  monkeypatch.setattr(linen.module, '_check_setup', fail)
  jax.eval_shape(linen.remat(linen.Dense)(2).init, KEY, X)
