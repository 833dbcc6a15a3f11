"""What a module is to the machinery: a place, a phase, and fields.

All files beside this one ask `isinstance(x, ModuleBase)`. The class that users
derive from, `Module`, stands on them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from haiku_state.core.scope import Scope
from haiku_state.linen._module.state import UNINITIALIZED, ModuleState

if TYPE_CHECKING:
  import weakref

_M = TypeVar('_M', bound='ModuleBase')


class ModuleBase:
  """The base of `haiku_state.linen.Module`, without what users call.

  Attributes:
    scope: the scope that the module is bound to, None while it is unbound.
  """

  if TYPE_CHECKING:
    # Annotations that no reader of a subclass's type hints should meet.
    name: str | None
    parent: Any
    scope: Scope | None
    path: tuple[str, ...]
    module_name: str
    _submodules: set[str]
    _id: Any
    _state: ModuleState
    _field_names: tuple[str, ...]
    _compact_name_scope_methods: tuple[str, ...]
    _compact_name_scope_modules: Mapping[str, Any]
    __dataclass_fields__: dict[str, Any]

    def __init__(self, *args: Any, **kwargs: Any): ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

    def __post_init__(self) -> None: ...

    def setup(self) -> None: ...

    def sow(self, col: str, name: str, value: Any) -> bool: ...

    def _try_setup(self, shallow: bool = False) -> None: ...

    @property
    def _initialization_allowed(self) -> bool: ...

    def clone(
      self: _M,
      *,
      parent: Any = None,
      _deep_clone: bool | weakref.WeakValueDictionary[Any, Any] = False,
      _reset_names: bool = False,
      **updates: Any,
    ) -> _M: ...

  scope = None
  _state = UNINITIALIZED
  _field_names = ()
  _compact_name_scope_methods = ()
  _setup_needed = False
  # Whether an adopted copy keeps its name rather than that of the attribute.
  _named_by_itself = False


CaptureFilter = bool | Callable[[ModuleBase, str], bool]
