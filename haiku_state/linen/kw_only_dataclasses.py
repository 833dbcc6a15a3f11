"""Dataclasses with keyword-only fields that come last, through inheritance.

Python's own keyword-only fields do not move: a subclass's fields follow those
of its base. Modules need `parent` and `name` behind all fields of the user, in
each subclass again.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, TypeVar

from haiku_state._versions import dataclass_transform

FieldName = str
Annotation = Any
Default = Any
_T = TypeVar('_T')


class _KwOnlyType:
  """The type of the annotation that begins the keyword-only fields."""

  def __repr__(self) -> str:
    return 'KW_ONLY'


KW_ONLY = _KwOnlyType()

_NO_DEFAULT = 'Keyword-only fields with no default are not supported.'


def field(
  *, metadata: Any = None, kw_only: Any = dataclasses.MISSING, **kwargs: Any
) -> Any:
  """Returns a field, as `dataclasses.field` does.

  Args:
    metadata: what the user wants to keep with the field.
    kw_only: whether it is keyword-only and comes last.
    **kwargs: arguments of `dataclasses.field`.

  Raises:
    ValueError: a keyword-only field has no default.
  """
  if kw_only is dataclasses.MISSING or not kw_only:
    return dataclasses.field(metadata=metadata, **kwargs)
  if 'default' not in kwargs and 'default_factory' not in kwargs:
    raise ValueError(_NO_DEFAULT)
  metadata = {**(metadata or {}), KW_ONLY: True}
  return dataclasses.field(metadata=metadata, kw_only=True, **kwargs)


@dataclass_transform(field_specifiers=(field,))
def dataclass(
  cls: type[_T] | None = None,
  extra_fields: Sequence[tuple[str, Any, Any]] | None = None,
  **kwargs: Any,
) -> Any:
  """Makes a class a dataclass whose keyword-only fields come last.

  Fields that follow the annotation `KW_ONLY`, and those made by
  `field(kw_only=True)`, are keyword-only, here and where a subclass declares
  them again.

  Args:
    cls: the class.
    extra_fields: fields to add, as (name, annotation, field).
    **kwargs: arguments of `dataclasses.dataclass`.

  Raises:
    TypeError: there is more than one `KW_ONLY`.
    ValueError: a keyword-only field has no default, or an extra field is
      malformed.
  """
  if cls is None:
    return lambda cls: dataclass(cls, extra_fields, **kwargs)
  annotations = _own_annotations(cls)
  _mark_after_kw_only(cls, annotations)
  for name, annotation, default in extra_fields or ():
    if not isinstance(name, str) or not isinstance(default, dataclasses.Field):
      raise ValueError(
        'Expected extra_fields to a be a list of (name, type, Field) tuples.'
      )
    setattr(cls, name, default)
    annotations[name] = annotation
  _mark_redeclared(cls, annotations)
  cls.__annotations__ = annotations
  cls = dataclasses.dataclass(cls, **kwargs)
  _move_kw_only_last(cls)
  return cls


def _own_annotations(cls: type) -> dict[str, Any]:
  """Returns a copy of the annotations in the body of the class."""
  return dict(inspect.get_annotations(cls))


def _mark_after_kw_only(cls: type, annotations: dict[str, Any]) -> None:
  """Makes the fields behind the annotation `KW_ONLY` keyword-only."""
  markers = [n for n, a in annotations.items() if a is KW_ONLY]
  if not markers:
    return
  if len(markers) > 1:
    raise TypeError('Multiple KW_ONLY markers')
  names = list(annotations)
  for name in names[names.index(markers[0]) + 1 :]:
    if not hasattr(cls, name):
      raise ValueError(_NO_DEFAULT)
    _mark(cls, name)
  del annotations[markers[0]]


def _mark(cls: type, name: str) -> None:
  """Makes one field keyword-only."""
  default = cls.__dict__.get(name, getattr(cls, name, dataclasses.MISSING))
  if isinstance(default, dataclasses.Field):
    default.metadata = MappingProxyType({**default.metadata, KW_ONLY: True})
    default.kw_only = True
  else:
    setattr(cls, name, field(default=default, kw_only=True))


def _mark_redeclared(cls: type, annotations: dict[str, Any]) -> None:
  """Keeps a field keyword-only where a subclass declares it again."""
  inherited = getattr(cls, '__dataclass_fields__', {})
  for name in annotations:
    old = inherited.get(name)
    if old is not None and old.metadata.get(KW_ONLY):
      if name not in cls.__dict__:
        # Without a value of its own it keeps the default that it had.
        setattr(cls, name, _again(old))
      _mark(cls, name)


def _again(old: dataclasses.Field) -> Any:
  """Returns a new field with the default of an old one."""
  if old.default_factory is not dataclasses.MISSING:
    return dataclasses.field(default_factory=old.default_factory)
  return dataclasses.field(default=old.default)


def _move_kw_only_last(cls: type) -> None:
  """Moves keyword-only fields behind the others."""
  fields: dict[str, Any] = cls.__dataclass_fields__  # type: ignore
  last = {n: f for n, f in fields.items() if f.metadata.get(KW_ONLY)}
  rest = {n: f for n, f in fields.items() if n not in last}
  cls.__dataclass_fields__ = {**rest, **last}  # type: ignore
