"""The type of module classes: Haiku's, with the rules of dataclasses."""

from __future__ import annotations

import abc
import sys
from typing import Any, Protocol

import haiku as hk

from haiku_state.linen._module.fields import shown_signature
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
    # Python takes it, where `type` is called by hand, from the frame that makes
    # the class: that would be in `abc`.
    own.setdefault('__module__', sys._getframe(1).f_globals.get('__name__'))
    cls: Any = super().__new__(mcs, name, bases, {**own, _KEYWORDS: keywords})
    if '__repr__' not in own:
      del cls.__repr__  # Haiku's would hide that of the base class.
    module_type = _base(cls)
    for key, value in own.items():
      if isinstance(value, property):
        # Python told it to the one that Haiku made in its place.
        value.__set_name__(cls, key)  # type: ignore[attr-defined]
    if not _insists_on_abstract_methods(cls):
      cls.__abstractmethods__ = frozenset()
    if module_type is cls:
      # Our own methods need no wrapper.
      for key, value in own.items():
        if key not in _IMPLICIT and (
          callable(value) or isinstance(value, property)
        ):
          setattr(cls, key, value)
    else:
      wrap_class_body(cls, own)
    return cls

  def __init__(cls, name: str, bases: Any, body: dict[str, Any], **keywords):
    super().__init__(name, bases, body)

  @property
  def __signature__(cls) -> Any:
    # Asked for seldom, while classes are made in every call of some transforms.
    signature = super().__signature__
    if '__dataclass_fields__' not in vars(cls):
      return signature
    return shown_signature(cls, signature)

  def __call__(cls, /, *args: Any, **kwargs: Any) -> Any:
    # Haiku's would insist on a transform; ours are bound when they are used.
    return type.__call__(cls, *args, **kwargs)


def _insists_on_abstract_methods(cls: type) -> bool:
  """Returns whether a class without all methods may not be made.

  The type of Haiku's modules is one for abstract classes, that of Flax's is
  not: there it takes a base class such as `abc.ABC`.
  """
  return any(
    isinstance(c, abc.ABCMeta) and not issubclass(c, hk.Module)
    for c in cls.__mro__
  )


def _base(cls: ModuleMeta) -> type:
  """Returns the class `Module`, the first that has this metaclass."""
  return [c for c in cls.__mro__ if isinstance(c, ModuleMeta)][-1]
