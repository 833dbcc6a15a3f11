"""The type of module classes: Haiku's, with the rules of dataclasses."""

from __future__ import annotations

from typing import Any, Protocol

import haiku as hk

from haiku_state.linen._module.methods import wrap_class_body

# Haiku's metaclass takes no keyword arguments of classes: they travel in the
# body of the class, under this key, to the type above it.
_KEYWORDS = '__haiku_state_class_keywords__'


# Python makes a class method of it by itself.
_IMPLICIT = frozenset({'__init_subclass__'})


class _TakesKeywords(type(Protocol)):
  """Hands the keyword arguments of a class on to `__init_subclass__`."""

  def __new__(mcs, name, bases, body):
    keywords = body.pop(_KEYWORDS, {})
    return super().__new__(mcs, name, bases, body, **keywords)


class ModuleMeta(type(hk.Module), _TakesKeywords):
  """Makes module classes; their objects need no Haiku transform to be made."""

  def __new__(
    mcs, name: str, bases: Any, body: dict[str, Any], **keywords: Any
  ):
    own = dict(body)
    cls: Any = super().__new__(mcs, name, bases, {**body, _KEYWORDS: keywords})
    if '__repr__' not in own:
      del cls.__repr__  # Haiku's would hide that of the base class.
    module_type = _base(cls)
    if module_type is cls:
      # Our own methods need no wrapper.
      for key, value in own.items():
        if key not in _IMPLICIT and (
          callable(value) or isinstance(value, property)
        ):
          setattr(cls, key, value)
    else:
      wrap_class_body(cls, own, module_type)
    return cls

  def __init__(cls, name: str, bases: Any, body: dict[str, Any], **keywords):
    super().__init__(name, bases, body)

  def __call__(cls, *args: Any, **kwargs: Any) -> Any:
    # Haiku's would insist on a transform; ours are bound when they are used.
    return type.__call__(cls, *args, **kwargs)


def _base(cls: ModuleMeta) -> type:
  """Returns the class `Module`, the first that has this metaclass."""
  return [c for c in cls.__mro__ if isinstance(c, ModuleMeta)][-1]
