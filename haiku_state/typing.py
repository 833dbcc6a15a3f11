"""The types that signatures name, and a few small classes behind them.

Most are aliases, of which the checker sees less than a reader: an `Array` may
be anything that stands for one. They are Flax's, under Flax's names.
"""

from __future__ import annotations

import abc
import functools
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import (
  TYPE_CHECKING,
  Any,
  Optional,
  Protocol,
  TypeGuard,
  TypeVar,
  Union,
)

import jax

from haiku_state import _lazy, export

_T = TypeVar('_T')
_HashableK = TypeVar('_HashableK', bound=Hashable)
_HashableV = TypeVar('_HashableV', bound=Hashable)
_Tuple = TypeVar('_Tuple', bound=tuple)
_Function = TypeVar('_Function', bound=Callable[..., Any])

# Arrays and keys. `Union[..., Any]` says what is meant and allows the rest:
# numpy arrays, tracers, ShapeDtypeStructs.

Array = Union[jax.Array, Any]
PRNGKey = jax.Array
RNGSequences = dict[str, PRNGKey]
Dtype = Union[jax.typing.DTypeLike, Any]
Shape = Sequence[int]
PRNGFoldable = Union[int, str]

# Paths


class Key(Hashable, Protocol):
  """A key of a tree: hashable, and with an order."""

  def __lt__(self: _T, value: _T, /) -> bool: ...


def is_key_like(x: Any) -> TypeGuard[Key]:
  """Says whether a value may be a key of a tree.

  Args:
    x: any value.

  Returns:
    Whether it has a hash and an order.

  Example:
    >>> from haiku_state.typing import is_key_like
    >>> is_key_like('a'), is_key_like(1), is_key_like({})
    (True, True, False)
  """
  # A dict, too, has an attribute `__hash__`, but it is None.
  return getattr(x, '__hash__', None) is not None and hasattr(x, '__lt__')


Path = str
PathParts = tuple[Key, ...]
Leaf = Any

# Layers

PrecisionLike = Union[
  None,
  str,
  jax.lax.Precision,
  tuple[str, str],
  tuple[jax.lax.Precision, jax.lax.Precision],
]
DotGeneralT = Callable[..., Array]
ConvGeneralDilatedT = Callable[..., Array]
EinsumT = Callable[..., Array]
PaddingLike = Union[str, int, Sequence[Union[int, tuple[int, int]]]]
LaxPadding = Union[str, Sequence[tuple[int, int]]]
Initializer = Union[jax.nn.initializers.Initializer, Callable[..., Any]]


class PromoteDtypeFn(Protocol):
  """A function that brings several arrays to one dtype."""

  def __call__(
    self, args: _Tuple, /, *, dtype: Any = None, inexact: bool = True
  ) -> _Tuple: ...


# Collections

Collection = Mapping[str, Any]
MutableCollection = dict[str, Any]
VariableDict = Mapping[str, Collection]
MutableVariableDict = dict[str, MutableCollection]

# Axes of lifted transforms

Axis = Optional[int]  # noqa: UP045 (prints as Flax's does)
ScanAxis = int
Axes = Union[int, Sequence[int]]

# Sharding

LogicalNames = tuple[Union[str, None], ...]
AxisName = str | tuple[str, ...] | None
# Pairs of a logical name and the mesh axis, or axes, that it is spread over;
# None keeps it whole on every device.
LogicalRules = Sequence[tuple[str, AxisName]]
ArrayPytree = Any
LogicalPartitionSpec = Any
LogicalPartitionSpecPytree = Any
PartitionSpecPytree = Any
Sharding = tuple[AxisName, ...]

# Trees


class PytreeDeque(deque[_T]):
  """A `collections.deque` that JAX can look into.

  Example:
    >>> import jax
    >>> from haiku_state.typing import PytreeDeque
    >>> jax.tree.map(lambda x: x + 1, PytreeDeque([1, 2]))
    PytreeDeque([2, 3])
  """


jax.tree_util.register_pytree_with_keys(
  PytreeDeque,
  lambda xs: (
    [(jax.tree_util.SequenceKey(i), x) for i, x in enumerate(xs)],
    (),
  ),
  lambda _, children: PytreeDeque(children),
  lambda xs: (xs, ()),
)
export.register_own(PytreeDeque)


class Missing:
  """The type of `MISSING`."""


# Stands for an argument that was not given, where None is one that may be.
MISSING = Missing()

# Sizes


class ShapeDtype(Protocol):
  """Is anything with a shape and a dtype."""

  shape: Shape
  dtype: Dtype


def has_shape_dtype(x: Any) -> TypeGuard[ShapeDtype]:
  """Says whether a value has a shape and a dtype.

  Args:
    x: any value.

  Returns:
    True for arrays, tracers and ShapeDtypeStructs.

  Example:
    >>> import jax
    >>> from haiku_state.typing import has_shape_dtype
    >>> has_shape_dtype(jax.ShapeDtypeStruct((2,), 'float32'))
    True
    >>> has_shape_dtype([1.0, 2.0])
    False
  """
  return hasattr(x, 'shape') and hasattr(x, 'dtype')


# Mappings and contexts


class HashableMapping(Mapping[_HashableK, _HashableV], Hashable):
  """A mapping with a hash, whose keys are strings or whole numbers.

  Args:
    mapping: the entries.
    copy: whether to copy them. Without, nobody may change them.

  Example:
    >>> from haiku_state.typing import HashableMapping
    >>> {HashableMapping({'a': 1, 'b': 2}): 3}[HashableMapping({'b': 2, 'a': 1})]
    3
  """

  _mapping: Mapping[_HashableK, _HashableV]

  def __init__(
    self, mapping: Mapping[_HashableK, _HashableV], copy: bool = True
  ):
    self._mapping = dict(mapping) if copy else mapping

  def __contains__(self, key: object) -> bool:
    return key in self._mapping

  def __getitem__(self, key: _HashableK) -> _HashableV:
    return self._mapping[key]

  def __iter__(self) -> Iterator[_HashableK]:
    return iter(self._mapping)

  def __len__(self) -> int:
    return len(self._mapping)

  def __hash__(self) -> int:
    for key in self._mapping:
      if not isinstance(key, (int, str)):
        raise ValueError(f'Unsupported key type: {type(key)!r}')
    return hash(frozenset(self._mapping.items()))

  def __eq__(self, other: Any) -> bool:
    return (
      isinstance(other, HashableMapping) and self._mapping == other._mapping
    )

  def __repr__(self) -> str:
    return repr(self._mapping)

  def update(
    self, other: Mapping[_HashableK, _HashableV]
  ) -> HashableMapping[_HashableK, _HashableV]:
    """Returns a new mapping with further or replaced entries."""
    return HashableMapping({**self._mapping, **other}, copy=False)


class BaseConfigContext(abc.ABC):
  """Sets a value for good, for a `with` block, or for a function's calls.

  A subclass says where the stack of values is and what holds when it is empty.

  Args:
    value: the value, set at once. In a `with` statement it is taken back at
      the end; as a decorator it holds while the function runs.

  Example:
    >>> from haiku_state.typing import BaseConfigContext
    >>> class use_depth(BaseConfigContext):
    ...   stack = []
    ...
    ...   @classmethod
    ...   def get_default(cls):
    ...     return 0
    ...
    ...   @classmethod
    ...   def get_stack(cls):
    ...     return cls.stack
    >>> with use_depth(3):
    ...   use_depth.current_value()
    3
    >>> use_depth.current_value()
    0
  """

  @classmethod
  @abc.abstractmethod
  def get_default(cls):
    """Returns the value that holds when none is set."""

  @classmethod
  @abc.abstractmethod
  def get_stack(cls) -> list:
    """Returns the stack of values, a list that is always the same."""

  def __init__(self, value, /):
    stack = self.get_stack()
    self.prev_value = stack.pop() if stack else None
    self.new_value = value
    stack.append(value)

  @classmethod
  def current_value(cls):
    """Returns the value that holds now."""
    stack = cls.get_stack()
    return stack[-1] if stack else cls.get_default()

  def __enter__(self):
    # The value is set already; put below it the one to return to.
    if self.prev_value is not None:
      self.get_stack().insert(-1, self.prev_value)

  def __exit__(self, exc_type, exc_value, traceback):
    self.get_stack().pop()

  def __call__(self, f: _Function) -> _Function:
    stack = self.get_stack()
    stack.pop()
    if self.prev_value is not None:
      stack.append(self.prev_value)

    @functools.wraps(f)
    def wrapper(*args, **kwargs):
      self.get_stack().append(self.new_value)
      try:
        return f(*args, **kwargs)
      finally:
        self.get_stack().pop()

    return wrapper  # type: ignore[return-value]


# What takes longer to make than all before, and what stands above this file.
if TYPE_CHECKING:
  from haiku_state._axes import In as In
  from haiku_state._axes import InOutAxis as InOutAxis
  from haiku_state._axes import InOutScanAxis as InOutScanAxis
  from haiku_state._axes import Out as Out
  from haiku_state._sizes import SizeBytes as SizeBytes
  from haiku_state.core.frozen_dict import FrozenDict as FrozenDict
  from haiku_state.core.scope import FrozenVariableDict as FrozenVariableDict
else:
  __getattr__, __dir__, __all__ = _lazy.names_of(
    __name__,
    {
      '_axes': 'In InOutAxis InOutScanAxis Out',
      '_sizes': 'SizeBytes',
      'core.frozen_dict': 'FrozenDict',
      'core.scope': 'FrozenVariableDict',
    },
  )
