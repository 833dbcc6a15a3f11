"""What differs between the versions of Python and jax that are supported.

The one file that asks for a version. Each difference is decided once, when this
file is imported, so that nothing is asked where a program runs. A line before a
branch says from which version on it is dead: when the package requires that
version, the branch goes. `docs/versions.md` says what is supported and tested.

What a version of jax cannot do at all raises `too_old`.
"""

from __future__ import annotations

import contextlib
import gc
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import jax
import jax.core
import jax.experimental.layout
import jax.numpy as jnp
import jax.sharding
import jax.tree_util
from jax.extend import linear_util

_JAX = jax.__version_info__

# Modules whose names differ by version, for type checkers, which see one.
_jax: Any = jax
_core: Any = jax.core
_layout: Any = jax.experimental.layout
_sharding: Any = jax.sharding
_tree_util: Any = jax.tree_util


def too_old(what: str, needed: str) -> NotImplementedError:
  """Returns the error for what the installed jax cannot do.

  Args:
    what: what was asked for, as the subject of a sentence.
    needed: the first version of jax that can do it.
  """
  return NotImplementedError(
    f'{what}: this needs jax {needed} or later, and jax {jax.__version__} is'
    f" installed. Install a later one, `pip install 'jax>={needed}'`, or do"
    ' without it.'
  )


# --- Python ------------------------------------------------------------------

if TYPE_CHECKING:
  from typing_extensions import dataclass_transform as dataclass_transform
elif sys.version_info >= (3, 11):
  from typing import dataclass_transform as dataclass_transform
else:  # Dead from Python 3.11 on.

  def dataclass_transform(**_):
    """Returns a decorator that does nothing: it is for type checkers."""
    return lambda x: x


if sys.version_info >= (3, 11):
  HAS_NOTES = True
  RAISE_TAKES_TRACEBACK = True
  IS_PATH_SAFE = bool(sys.flags.safe_path)

  def add_note(error: BaseException, note: str) -> None:
    """Adds a note to an error, which tracebacks show."""
    error.add_note(note)

  def qualified_name(code: Any) -> str:
    """Returns the name of a function, behind those of what it is defined in."""
    return code.co_qualname

else:  # Dead from Python 3.11 on.
  HAS_NOTES = False
  # A bare `raise` goes on with the traceback that was there when it began.
  RAISE_TAKES_TRACEBACK = False
  IS_PATH_SAFE = False  # There is no such flag yet.

  def qualified_name(code: Any) -> str:
    """Returns the name of a function alone: the rest is not known yet."""
    return code.co_name

  def add_note(error: BaseException, note: str) -> None:
    """Adds a note to an error, in its message if that is a text.

    Tracebacks do not show notes yet, so that it would not be seen there.
    """
    match error.args:
      case (str(message),):
        error.args = (f'{message}\n{note}',)
      case _:
        notes = getattr(error, '__notes__', [])
        error.__notes__ = [*notes, note]  # type: ignore[attr-defined]


# --- Programs as data --------------------------------------------------------

if _JAX >= (0, 4, 30):
  from jax.extend import core as _jex_core

  jaxprs: Any = _jex_core
else:  # Dead from jax 0.4.30 on.
  jaxprs = _core

if _JAX >= (0, 5):
  typeof = _jax.typeof
else:  # Dead from jax 0.5 on.

  def typeof(x: Any) -> Any:
    """Returns the shape, dtype and weak type of an array, or a number."""
    return _core.raise_to_shaped(_core.get_aval(x))


if _JAX >= (0, 5):

  def type_sharding(kind: Any) -> Any:
    """Returns the sharding that is part of a type, or None."""
    return None if kind.sharding.mesh.empty else kind.sharding

else:  # Dead from jax 0.5 on.

  def type_sharding(kind: Any) -> Any:
    """Returns None: types have no shardings yet."""
    return None


if _JAX >= (0, 4, 36):
  ShapeDtype = _jax.ShapeDtypeStruct
else:  # Dead from jax 0.4.36 on.

  class ShapeDtype(jax.ShapeDtypeStruct):
    """Is a `jax.ShapeDtypeStruct` that can be weak."""

    __slots__ = ['weak_type']

    def __init__(self, shape, dtype, *, weak_type=False, sharding=None):
      super().__init__(shape, dtype, sharding=sharding)
      self.weak_type = weak_type


if _JAX >= (0, 5):

  def wrap_init(
    fn: Callable, why: str, described: Callable, args: tuple
  ) -> Any:
    """Returns a function as JAX's transformations take it.

    Args:
      fn: the function.
      why: what it is traced for.
      described: the function that messages are to speak of.
      args: its arguments.
    """
    debug_info = jax.api_util.debug_info(why, described, args, {})
    return linear_util.wrap_init(fn, debug_info=debug_info)

else:  # Dead from jax 0.5 on.

  def wrap_init(
    fn: Callable, why: str, described: Callable, args: tuple
  ) -> Any:
    """Returns a function as JAX's transformations take it."""
    del why, described, args
    return linear_util.wrap_init(fn)  # type: ignore[call-arg]


# --- Traces ------------------------------------------------------------------

if _JAX >= (0, 10):
  _traces: Any = jaxprs
  _set_current_trace: Any = _traces.set_current_trace
elif _JAX >= (0, 4, 36):  # Dead from jax 0.10 on.
  _traces = _core
  with warnings.catch_warnings():
    # Deprecated in 0.9, and public nowhere else.
    warnings.simplefilter('ignore', DeprecationWarning)
    _set_current_trace = _core.set_current_trace

if _JAX >= (0, 4, 36):

  def current_trace() -> Any:
    """Returns a token of the trace that is current; compare it with `==`."""
    return _traces.get_opaque_trace_state(convention='haiku_state')

  def keep_trace() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """Returns what makes a context in which this trace is current once more."""
    trace = _traces.find_top_trace(())
    return lambda: _set_current_trace(trace)

  def traces_inside(is_outside: Callable[[], bool]) -> list[Any]:
    """Returns the traces here, from the innermost to the last that is inside.

    Args:
      is_outside: whether the current trace is one that is not.
    """
    inside = []
    trace: Any = _traces.find_top_trace(())
    while trace is not None:
      with _set_current_trace(trace):
        if is_outside():
          break
      inside.append(trace)
      trace = getattr(trace, 'parent_trace', None)
    return inside

  def is_traced_by(tracer: Any, trace: Any) -> bool:
    """Returns whether a tracer belongs to a trace."""
    # Public JAX does not tell. Python does: it is what the tracer refers to.
    return any(x is trace for x in gc.get_referents(tracer))

  def trace_name(trace: Any) -> str:
    """Returns the name of the type of a trace."""
    return type(trace).__name__

else:  # Dead from jax 0.4.36 on.
  # There a thread has a stack of traces. What it computes belongs to the one
  # that its inputs belong to, and without any to the "dynamic" one, the
  # innermost that records. A "sublevel" tells calls within one trace apart.

  class _Token:
    """Tells the innermost trace, and the one that records, from all others."""

    __slots__ = ('_top', '_dynamic')

    def __init__(self, top: Any, dynamic: Any):
      # A trace that is over must not live on here: JAX would call it a leak.
      self._top = weakref.ref(top)
      self._dynamic = weakref.ref(dynamic)

    def __eq__(self, other: Any) -> bool:
      top, dynamic = self._top(), self._dynamic()
      return (
        isinstance(other, _Token)
        and top is not None
        and top is other._top()
        and dynamic is other._dynamic()
      )

    __hash__ = None  # type: ignore[assignment]

  def traces_inside(is_outside: Callable[[], bool]) -> list[Any]:
    """Returns the innermost trace, and the innermost that records."""
    if is_outside():
      return []
    traces = _trace_state().trace_stack
    both = (traces.stack[-1], traces.dynamic)
    return [x for x in dict.fromkeys(both) if x.level > 0]

  def is_traced_by(tracer: Any, trace: Any) -> bool:
    """Returns whether a tracer belongs to a trace."""
    return tracer._trace.main is trace

  def trace_name(trace: Any) -> str:
    """Returns the name of the type of a trace."""
    return trace.trace_type.__name__

  def _trace_state() -> Any:
    return _core.thread_local_state.trace_state

  def current_trace() -> Any:
    """Returns a token of the trace that is current; compare it with `==`."""
    traces = _trace_state().trace_stack
    return _Token(traces.stack[-1], traces.dynamic)

  def keep_trace() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """Returns what makes a context in which this trace is current once more."""
    state = _trace_state()
    is_recorded = state.trace_stack.dynamic.level > 0
    sublevels = list(state.substack)
    dynamic = weakref.ref(state.trace_stack.dynamic)

    @contextlib.contextmanager
    def entered() -> Iterator[None]:
      state = _trace_state()
      traces = state.trace_stack
      before = state.substack, traces.dynamic
      with contextlib.ExitStack() as stack:
        if not is_recorded:
          stack.enter_context(jax.ensure_compile_time_eval())
        state.substack, traces.dynamic = list(sublevels), dynamic()
        try:
          yield
        finally:
          state.substack, traces.dynamic = before

    return entered


# --- Pytrees -----------------------------------------------------------------

if _JAX >= (0, 4, 30):
  register_dataclass = _tree_util.register_dataclass
else:  # Dead from jax 0.4.30 on.

  def register_dataclass(cls: Any, children: list, static: list) -> Any:
    """Makes a dataclass a pytree.

    Args:
      cls: the class.
      children: the names of the fields that are children.
      static: the names of all others.
    """

    def flatten(x):
      return [getattr(x, n) for n in children], tuple(
        getattr(x, n) for n in static
      )

    def flatten_with_keys(x):
      values, rest = flatten(x)
      keys = map(_tree_util.GetAttrKey, children)
      return list(zip(keys, values)), rest

    def unflatten(rest, values):
      return cls(**dict(zip(children, values)), **dict(zip(static, rest)))

    _tree_util.register_pytree_with_keys(
      cls, flatten_with_keys, unflatten, flatten
    )
    return cls


if _JAX >= (0, 5):

  def path_text(path: Any) -> str:
    """Returns a path of JAX's keys as text, with `/` between them."""
    return _tree_util.keystr(path, simple=True, separator='/')

else:  # Dead from jax 0.5 on.

  def path_text(path: Any) -> str:
    """Returns a path of JAX's keys as text, with `/` between them."""

    def text(key):
      match key:
        case (
          _tree_util.SequenceKey(idx=name) | _tree_util.GetAttrKey(name=name)
        ):
          return str(name)
      return str(key.key)

    return '/'.join(map(text, path))


# --- Sums over devices --------------------------------------------------------

if _JAX >= (0, 9):
  psum_all = _jax.lax.psum
else:  # Dead from jax 0.9 on.

  def psum_all(
    xs: Any, axis_name: Any, *, axis_index_groups: Any = None
  ) -> Any:
    """Returns the sums over a mapped axis, each by an operation of its own.

    The gradient of one operation for all fails on an assertion of JAX if some
    of the arrays are constants for it.
    """
    return [
      jax.lax.psum(x, axis_name, axis_index_groups=axis_index_groups)
      for x in xs
    ]


# --- Meshes and layouts ------------------------------------------------------

if _JAX >= (0, 7):
  SET_MESH = '`with jax.set_mesh(mesh):`'
elif _JAX >= (0, 5):  # Dead from jax 0.7 on.
  SET_MESH = '`with jax.sharding.use_mesh(mesh):`'
else:  # Dead from jax 0.5 on.
  SET_MESH = '`with jax.set_mesh(mesh):` (which needs jax 0.7 or later)'

if _JAX >= (0, 5):

  def current_mesh() -> Any:
    """Returns the mesh set by `jax.set_mesh`, or None."""
    mesh = _sharding.get_abstract_mesh()
    return None if mesh is None or mesh.empty else mesh

  def same_mesh(a: Any, b: Any) -> bool:
    """Says whether two meshes, of devices or abstract, are the same."""
    return _abstract(a) == _abstract(b)

  def _abstract(mesh: Any) -> Any:
    return mesh.abstract_mesh if isinstance(mesh, _sharding.Mesh) else mesh

else:  # Dead from jax 0.5 on.

  def current_mesh() -> Any:
    """Returns None: jax cannot set a mesh yet."""
    return None

  def same_mesh(a: Any, b: Any) -> bool:
    """Says whether two meshes are the same."""
    return a == b


if _JAX >= (0, 7):

  def reshard(x: Any, sharding: Any) -> Any:
    """Is `jax.sharding.reshard`."""
    return _sharding.reshard(x, sharding)

  def axes_of_kind(mesh: Any, kind: str) -> set[str]:
    """Returns the axes of a mesh that are 'Auto', 'Explicit' or 'Manual'."""
    kinds = zip(mesh.axis_names, mesh.axis_types)
    return {name for name, found in kinds if found.name == kind}

else:  # Dead from jax 0.7 on.

  def reshard(x: Any, sharding: Any) -> Any:
    """Raises an error: explicit meshes were another thing."""
    raise too_old(f'A mesh with explicit axes, as in {sharding}', '0.7')

  def axes_of_kind(mesh: Any, kind: str) -> set[str]:
    """Returns the axes of a mesh that are 'Auto', 'Explicit' or 'Manual'."""
    # A tuple from 0.5.1 on; nothing before, when all were automatic.
    types = getattr(mesh, 'axis_types', None)
    if not isinstance(types, tuple):
      return set(mesh.axis_names) if kind == 'Auto' else set()
    return {n for n, found in zip(mesh.axis_names, types) if found.name == kind}


if _JAX >= (0, 6, 2):
  Format = _layout.Format
else:  # Dead from jax 0.6.2 on.

  class Format:
    """Stands for the class of layouts with a sharding, of which there is none.

    Raises:
      NotImplementedError: always.
    """

    sharding: Any
    layout: Any

    def __init__(self, layout: Any = None, sharding: Any = None):
      raise too_old('A layout beside a sharding', '0.6.2')


if _JAX >= (0, 7):

  def layout_of(sharding: Any) -> Any:
    """Returns the layout of a `Format`."""
    return sharding.layout

else:  # Dead from jax 0.7 on.

  def layout_of(sharding: Any) -> Any:
    """Returns the layout of a `Format`."""
    return sharding.device_local_layout


# --- optax --------------------------------------------------------------------


def scale_by_rms(centered: bool, decay: Any, eps: Any) -> Any:
  """Returns the scaling by the root of the average square, plus `eps`.

  Args:
    centered: whether the squared average is subtracted from that square.
    decay: of the averages.
    eps: what is added to the root.
  """
  import optax  # With the optimizers, not with the package.

  scale: Any = optax.scale_by_stddev if centered else optax.scale_by_rms
  if _numbers(optax.__version__) >= (0, 2, 4):
    return scale(decay, eps, eps_in_sqrt=False)
  # Dead from optax 0.2.4 on: there `eps` was always below the root.
  average = scale(decay, eps)

  def update(updates, state, params=None):
    del params
    _, state = average.update(updates, state)
    mean = state.mu if centered else jax.tree.map(jnp.zeros_like, state.nu)
    scaled = jax.tree.map(
      lambda g, m, n: g / (jnp.sqrt(n - m * m) + eps), updates, mean, state.nu
    )
    return scaled, state

  return optax.GradientTransformation(average.init, update)


def scale_by_belief(b1: Any, b2: Any, eps: Any, eps_root: Any) -> Any:
  """Returns AdaBelief's scaling.

  Args:
    b1: the decay of the averages.
    b2: the decay of the averages of squares.
    eps: what is added to the root.
    eps_root: what is added to the squares.
  """
  import optax  # With the optimizers, not with the package.

  belief: Any = optax.scale_by_belief
  if _numbers(optax.__version__) >= (0, 2, 4):
    return belief(b1, b2, eps=eps, eps_root=eps_root)
  # Dead from optax 0.2.4 on: there an update was compared with the average
  # before it, not with the one that has it.
  init = belief().init

  def update(updates, state, params=None):
    del params
    count = state.count + 1
    mu = jax.tree.map(lambda m, g: (1 - b1) * g + b1 * m, state.mu, updates)
    nu = jax.tree.map(
      lambda n, g, m: (1 - b2) * jnp.abs(g - m) ** 2 + b2 * n + eps_root,
      state.nu,
      updates,
      mu,
    )

    def scaled(m, n):
      m = m / (1 - b1**count).astype(m.dtype)
      n = n / (1 - b2**count).astype(n.dtype)
      return m / (jnp.sqrt(n) + eps)

    state = state._replace(count=count, mu=mu, nu=nu)
    return jax.tree.map(scaled, mu, nu), state

  return optax.GradientTransformation(init, update)


def _numbers(version: str) -> tuple[int, ...]:
  return tuple(int(n) for n in version.split('.')[:3] if n.isdigit())


# --- Programs in files, and numbers ------------------------------------------

if _JAX >= (0, 4, 36):
  import jax.export as _jax_export

  saved_programs: Any = _jax_export
else:  # Dead from jax 0.4.36 on: it saves only its own types of nodes.
  saved_programs = None

# Dead from jax 0.12 on: whether an array of an extended dtype can live outside
# of `jax.jit`, too.
HAS_EXTENDED_ARRAYS = _JAX < (0, 12)
