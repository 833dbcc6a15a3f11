"""Modules that several threads, tasks and generators use at once.

What each of them computes is what it computes alone. Interpreter switches are
made frequent, so that a mistake shows in few calls.
"""

import asyncio
import concurrent.futures
import itertools
import os
import sys
import threading

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haiku_state import errors
from haiku_state import linen as nn

ONES = np.ones((1, 2), np.float32)
KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def _switch_often():
  was = sys.getswitchinterval()
  sys.setswitchinterval(1e-6)
  yield
  sys.setswitchinterval(was)


def in_threads(number, fn):
  """Returns what `fn(i)` returns, each called in a thread of its own."""
  start = threading.Barrier(number)

  def call(i):
    start.wait()
    return fn(i)

  with concurrent.futures.ThreadPoolExecutor(number) as pool:
    return list(pool.map(call, range(number)))


def in_another(fn):
  """Returns what `fn()` returns, called in another thread."""
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    return pool.submit(fn).result(60)


def full(value):
  """Returns the variables of a `Dense` named `d` whose kernel is a constant."""
  return {'params': {'d': {'kernel': np.full((2, 1), value, np.float32)}}}


class Net(nn.Module):
  """Has a submodule that is made in `setup`."""

  def setup(self):
    self.d = nn.Dense(1, use_bias=False)

  def __call__(self, x, other=None):
    own = self.d(x)
    return own if other is None else own + other.peek(x)

  def peek(self, x):
    return self.d(x)

  def while_waiting(self, x, inside, go):
    before = self.d(x)
    inside.set()
    assert go.wait(60)
    return before, self.d(x)


class Deep(nn.Module):
  """Has automatic names, on two levels, and a list of submodules."""

  @nn.compact
  def __call__(self, x):
    for _ in range(2):
      x = nn.relu(nn.Dense(2)(x))
    blocks = [Net(name=f'net_{i}') for i in range(2)]
    return sum(block(x) for block in blocks)


class Lifted(nn.Module):
  """Has lifted submodules of several kinds."""

  @nn.compact
  def __call__(self, x):
    x = nn.jit(nn.Dense)(2, name='jit')(x)
    x = nn.remat(nn.Dense)(2, name='remat')(x)
    x = nn.vmap(
      nn.Dense, variable_axes={'params': 0}, split_rngs={'params': True}
    )(2, name='vmap')(x)
    carry, _ = nn.scan(
      _Step, variable_broadcast='params', split_rngs={'params': False}, length=2
    )(name='scan')(x, None)
    return carry


class _Step(nn.Module):
  @nn.compact
  def __call__(self, carry, _):
    return nn.Dense(2)(carry), None


class Cyclic(nn.Module):
  """A module that is shared by another one, which holds it in a field."""

  def setup(self):
    self.d = nn.Dense(2)
    self.user = User(self.d)

  def __call__(self, x):
    return self.user(x) + self.d(x)


class User(nn.Module):
  shared: nn.Module

  @nn.compact
  def __call__(self, x):
    return nn.Dense(2)(self.shared(x))


SHARED = nn.Dense(2)


class Adopter(nn.Module):
  """Has a submodule that was made outside of all modules."""

  def setup(self):
    self.a = SHARED
    self.b = SHARED

  def __call__(self, x):
    return self.a(self.b(x))


MODULES = [Net(), Deep(), Lifted(), Cyclic(), Adopter(), User(nn.Dense(2))]


def ids_of(module):
  return type(module).__name__


# --- One bound module --------------------------------------------------------


def test_a_bound_module_in_two_threads_reads_its_own_values():
  inside, go = threading.Event(), threading.Event()
  teacher = Net().bind(full(1))
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    slow = pool.submit(teacher.while_waiting, ONES, inside, go)
    assert inside.wait(60)
    try:
      # Another run, in which the bound module is used.
      assert Net().apply(full(10), ONES, teacher) == 22
      assert teacher.peek(ONES) == 2
      assert teacher.d(ONES) == 2
      assert teacher.variables['params']['d']['kernel'][0] == 1
    finally:
      go.set()
    assert slow.result(60) == (2, 2)
  assert teacher.peek(ONES) == 2


@pytest.mark.parametrize('number', [8, 32])
@pytest.mark.parametrize('module', MODULES, ids=ids_of)
def test_a_bound_module_in_many_threads(module, number):
  variables = module.init(KEY, ONES)
  expected = np.asarray(module.apply(variables, ONES))
  bound = module.bind(variables)

  def call(i):
    return [np.asarray(bound(ONES)) for _ in range(2 if number == 32 else 5)]

  for outputs in in_threads(number, call):
    for y in outputs:
      np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize('number', [8, 32])
def test_students_that_call_one_bound_teacher(number):
  teacher = Net().bind(full(1))

  def call(i):
    student = Net()
    return [
      float(student.apply(full(i), ONES, teacher).item()) for _ in range(5)
    ]

  for i, outputs in enumerate(in_threads(number, call)):
    assert outputs == [2.0 * i + 2] * 5


def test_attributes_while_another_thread_is_in_setup():
  inside, go = threading.Event(), threading.Event()

  class Slow(nn.Module):
    def setup(self):
      self.first = nn.Dense(1, use_bias=False, name='d')
      if threading.current_thread() is not threading.main_thread():
        inside.set()
        assert go.wait(60)
      self.last = nn.Dense(1, use_bias=False, name='e')

    def __call__(self, x):
      return self.first(x) + self.last(x)

  variables = {'params': {**full(1)['params'], 'e': full(2)['params']['d']}}
  bound = Slow().bind(variables)
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    slow = pool.submit(bound, ONES)
    assert inside.wait(60)
    try:
      assert bound.last(ONES) == 4
      assert bound(ONES) == 6
      assert 'last' in dir(bound)
      with pytest.raises(AttributeError, match='no attribute "other"'):
        getattr(bound, 'other')  # noqa: B009
    finally:
      go.set()
    assert slow.result(60) == 6
  assert bound(ONES) == 6


def test_a_copy_for_another_thread_has_a_parent():
  inside, go = threading.Event(), threading.Event()

  class Child(nn.Module):
    def __call__(self, x):
      return self.parent.scale * x

    def wait(self):
      inside.set()
      assert go.wait(60)
      return self.parent.scale

  class Parent(nn.Module):
    scale: int = 3

    def setup(self):
      self.child = Child()

  child = (parent := Parent().bind({})).child
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    slow = pool.submit(child.wait)
    assert inside.wait(60)
    try:
      assert child(2) == 6
    finally:
      go.set()
    assert slow.result(60) == 3
  assert parent.child is child


def test_at_rest_is_what_the_last_run_wrote():
  class Count(nn.Module):
    @nn.compact
    def __call__(self, at_once=True, inside=None, go=None):
      n = self.variable('counts', 'n', lambda: 0)
      n.value += 1
      if inside is not None:
        inside.set()
        assert go.wait(60)
      return n.value

  inside, go = threading.Event(), threading.Event()
  bound = Count().bind({'counts': {'n': 5}}, mutable=['counts'])
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    slow = pool.submit(bound, True, inside, go)
    assert inside.wait(60)
    assert [bound(), bound()] == [6, 7]
    assert bound.variables['counts']['n'] == 7
    go.set()
    assert slow.result(60) == 6
  assert bound.variables['counts']['n'] == 6
  assert bound() == 7


def test_keys_of_a_bound_module_go_on_in_other_threads():
  class Draw(nn.Module):
    def __call__(self):
      return self.make_rng('noise')

  def drawn(call):
    bound = Draw().bind({}, rngs={'noise': KEY})
    return [jax.random.key_data(call(bound)).tolist() for _ in range(4)]

  assert drawn(in_another) == drawn(lambda bound: bound())


def test_a_lifted_function_of_a_bound_module():
  variables = Net().init(KEY, ONES)
  expected = np.asarray(Net().apply(variables, ONES))
  bound = Net().bind(variables)
  peek = nn.jit(lambda module, x: module.peek(x))

  def call(i):
    return [np.asarray(peek(bound, ONES)) for _ in range(5)]

  for outputs in in_threads(8, call):
    for y in outputs:
      np.testing.assert_array_equal(y, expected)


# --- One unbound module, one class, one hk.transform -------------------------


@pytest.mark.parametrize('module', MODULES, ids=ids_of)
def test_one_module_object_in_many_threads(module):
  variables = [
    jax.tree.map(np.asarray, module.init(jax.random.key(i), ONES))
    for i in range(8)
  ]
  expected = [np.asarray(module.apply(v, ONES)) for v in variables]

  def call(i):
    made = module.init(jax.random.key(i), ONES)
    return made, module.apply(variables[i], ONES)

  for i, (made, y) in enumerate(in_threads(8, call)):
    jax.tree.map(np.testing.assert_array_equal, dict(made), dict(variables[i]))
    np.testing.assert_array_equal(y, expected[i])


def test_beside_somebodys_transform():
  inside = hk.transform_with_state(lambda x: Deep()(x) + hk.Linear(1)(x))
  own = Deep()
  params, state = inside.init(jax.random.key(1), ONES)
  variables = own.init(KEY, ONES)
  expected = (
    np.asarray(inside.apply(params, state, None, ONES)[0]),
    np.asarray(own.apply(variables, ONES)),
  )
  bound = own.bind(variables)

  def call(i):
    kind = i % 3
    if kind == 0:
      return 0, inside.apply(params, state, None, ONES)[0]
    return 1, own.apply(variables, ONES) if kind == 1 else bound(ONES)

  for which, y in in_threads(9, call):
    np.testing.assert_array_equal(y, expected[which])


# --- Generators and tasks ----------------------------------------------------


class Stream(nn.Module):
  """Yields, and awaits, between two uses of its variables."""

  def setup(self):
    self.d = nn.Dense(1, use_bias=False)

  def __call__(self, x):
    return self.d(x)

  def steps(self, x):
    for _ in range(3):
      x = jnp.full_like(x, self.d(x)[0, 0])
      yield x[0, 0].item()

  async def task(self, x):
    for _ in range(3):
      x = jnp.full_like(x, self.d(x)[0, 0])
      await asyncio.sleep(0)
    return x[0, 0].item()


def test_generators_that_take_turns():
  a, b = Stream().bind(full(1)), Stream().bind(full(2))
  pairs = zip(a.steps(ONES), b.steps(ONES), a.steps(ONES))
  assert list(pairs) == [(2, 4, 2), (4, 16, 4), (8, 64, 8)]
  assert a(ONES) == 2 and b(ONES) == 4


def test_a_generator_that_is_resumed_in_other_runs_and_threads():
  steps = Stream().bind(full(1)).steps(ONES)

  class Reader(nn.Module):
    @nn.compact
    def __call__(self, x):
      y = next(steps)
      d = nn.Dense(1, use_bias=False, name='d')
      return y, d(x)[0, 0].item()

  assert Reader().apply(full(5), ONES) == (2, 10)
  assert in_another(lambda: next(steps)) == 4
  assert Reader().apply(full(5), ONES) == (8, 10)


def test_a_generator_of_a_copy_outlives_the_call():
  inside, go = threading.Event(), threading.Event()

  class Holder(Stream):
    def hold(self, x):
      inside.set()
      assert go.wait(60)
      return self.d(x)

  bound = Holder().bind(full(1))
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    held = pool.submit(bound.hold, ONES)
    assert inside.wait(60)
    steps = bound.steps(ONES)
    first = next(steps)
    go.set()
    assert held.result(60) == 2
  assert [first, *steps] == [2, 4, 8]


def test_tasks_that_take_turns():
  a, b = Stream().bind(full(1)), Stream().bind(full(2))

  async def both():
    return await asyncio.gather(a.task(ONES), b.task(ONES), a.task(ONES))

  assert asyncio.run(both()) == [8, 64, 8]


# --- Threads that a method starts --------------------------------------------


class Helped(nn.Module):
  """Makes and reads its variables in threads of its own."""

  def setup(self):
    self.d = nn.Dense(2)
    self.norm = nn.BatchNorm(use_running_average=False)

  @nn.compact
  def __call__(self, x):
    bias = in_another(lambda: self.param('bias', nn.initializers.ones, (2,)))
    count = in_another(lambda: self.variable('counts', 'n', lambda: 0))
    if not self.is_initializing():
      in_another(lambda: self.put_variable('counts', 'n', count.value + 1))
    y = in_another(lambda: self.d(x))
    y = y + in_another(lambda: self.d(x))
    y = in_another(lambda: self.norm(y))
    assert self.get_variable('params', 'bias') is not None
    return y + bias + self.d(x), count.value


class Plain(nn.Module):
  """The same without threads."""

  def setup(self):
    self.d = nn.Dense(2)
    self.norm = nn.BatchNorm(use_running_average=False)

  @nn.compact
  def __call__(self, x):
    bias = self.param('bias', nn.initializers.ones, (2,))
    count = self.variable('counts', 'n', lambda: 0)
    if not self.is_initializing():
      count.value += 1
    y = self.norm(2 * self.d(x))
    return y + bias + self.d(x), count.value


def test_threads_of_a_method():
  (y, n), variables = Helped().init_with_output(KEY, ONES)
  (expected, _), same = Plain().init_with_output(KEY, ONES)
  assert n == 0
  np.testing.assert_array_equal(y, expected)
  jax.tree.map(np.testing.assert_array_equal, dict(variables), dict(same))
  (y, n), updates = Helped().apply(
    variables, ONES, mutable=['batch_stats', 'counts']
  )
  (expected, _), same = Plain().apply(
    variables, ONES, mutable=['batch_stats', 'counts']
  )
  assert n == 1
  np.testing.assert_array_equal(y, expected)
  jax.tree.map(np.testing.assert_array_equal, dict(updates), dict(same))


def test_threads_of_a_method_raise_what_the_method_would():
  class Sets(nn.Module):
    @nn.compact
    def __call__(self):
      in_another(lambda: self.put_variable('counts', 'n', 1))

  with pytest.raises(errors.ModifyScopeVariableError, match='"n" in "/"'):
    Sets().apply({'counts': {'n': 0}})

  class Asks(nn.Module):
    @nn.compact
    def __call__(self):
      return in_another(lambda: self.param('w', nn.initializers.ones, (3,)))

  with pytest.raises(errors.ScopeParamShapeError):
    Asks().apply({'params': {'w': ONES}})
  with pytest.raises(errors.ScopeParamNotFoundError):
    Asks().apply({'params': {'v': ONES}})


def test_a_pool_that_a_method_maps_over_a_submodule():
  class Pooled(nn.Module):
    @nn.compact
    def __call__(self, xs):
      d = nn.Dense(1, use_bias=False, name='d')
      d(xs[0])
      return in_threads(len(xs), lambda i: d(xs[i])[0, 0].item())

  xs = [i * ONES for i in range(8)]
  assert Pooled().apply(full(1), xs) == [2 * i for i in range(8)]
  made = Pooled().init(KEY, xs)
  assert jax.tree.map(jnp.shape, made['params']['d']) == {'kernel': (2, 1)}


def test_a_lifted_method_in_a_thread_of_a_method():
  class Outer(nn.Module):
    def setup(self):
      self.d = nn.jit(nn.Dense)(1, use_bias=False)

    def __call__(self, x):
      return in_another(lambda: self.d(x)) + self.d(x)

  variables = Outer().init(KEY, ONES)
  assert jax.tree.map(jnp.shape, variables['params']['d']) == {'kernel': (2, 1)}
  assert Outer().apply(full(1), ONES) == 4


def test_a_closure_over_the_run_around_that_sets():
  class Around(nn.Module):
    @nn.compact
    def __call__(self, x):
      v = self.variable('counts', 'n', lambda: 0)

      def inner(module, x):
        v.value += 1
        return x * v.value

      y = nn.remat(inner)(nn.Dense(1, name='unused'), x)
      return y, v.value

  (y, n), updates = Around().apply(
    {'counts': {'n': 1}}, ONES, mutable=['counts']
  )
  assert n == 2 and updates['counts']['n'] == 2
  np.testing.assert_array_equal(y, 2 * ONES)


# --- fork --------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='there is no fork')
@pytest.mark.filterwarnings('ignore')
def test_fork_while_other_threads_make_modules():
  stop = threading.Event()

  def make():
    while not stop.is_set():
      nn.Dense(1)

  threads = [threading.Thread(target=make) for _ in range(3)]
  for thread in threads:
    thread.start()
  try:
    for _ in range(20):
      pid = os.fork()
      if pid == 0:
        signal_when_stuck()
        nn.Dense(1)
        os._exit(0)
      _, status = os.waitpid(pid, 0)
      assert status == 0
  finally:
    stop.set()
    for thread in threads:
      thread.join()


def signal_when_stuck():
  import signal

  signal.signal(signal.SIGALRM, signal.SIG_DFL)
  signal.alarm(20)


def test_ids_are_counted_once_by_all_threads():
  from haiku_state.ids import uuid

  found = in_threads(8, lambda i: [uuid() for _ in range(200)])
  assert len(set(itertools.chain(*found))) == 1600
