"""Modules are dataclasses: their fields, `parent` and `name` among them."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import operator
import weakref
from collections.abc import Callable
from typing import Any, Union

from haiku_state import errors
from haiku_state.linen import kw_only_dataclasses

# Fields that say where a module is, not what it is.
PLACE = ('parent', 'name')

# Haiku keeps facts of its own in these attributes of every module.
_OF_HAIKU = ('module_name', '_submodules')


class Unspecified:
  """The default of `parent`: the module whose method is running.

  There is one object of this class; copies and pickles are that object.
  """

  def __copy__(self) -> Unspecified:
    return self

  def __deepcopy__(self, memo: Any) -> Unspecified:
    return self

  def __reduce__(self) -> Any:
    return _get_unspecified, ()


unspecified = Unspecified()
# As a parent: none, nor a name from Haiku. A copy that is about to get its place
# is not made by whoever makes it.
detached = Unspecified()


def _get_unspecified() -> Unspecified:
  return unspecified


class ParentField:
  """The attribute `parent`, held weakly.

  A strong reference would close a cycle of parent and child, and keep the
  tracers of a run alive until the garbage collector comes by.
  """

  def __get__(self, obj: Any, objtype: Any = None) -> Any:
    if obj is None:
      return None
    parent = obj.__dict__.get(PARENT_REF)
    return parent() if isinstance(parent, weakref.ref) else parent

  def __set__(self, obj: Any, value: Any) -> None:
    vars(obj)[PARENT_REF] = parent_ref(value)


# The attribute in which a module keeps its parent.
PARENT_REF = '_parent_ref'


def parent_ref(parent: Any) -> Any:
  """Returns what is kept of a parent: of a module a weak reference."""
  is_module = hasattr(type(parent), '__dataclass_fields__')
  return weakref.ref(parent) if is_module else parent


def make_dataclass(cls: Any, kw_only: bool, parent_type: Any) -> None:
  """Makes a module class a dataclass.

  Args:
    cls: the class, changed in place.
    kw_only: whether all its fields are keyword-only.
    parent_type: the annotation of `parent`.

  Raises:
    ReservedModuleAttributeError: the class declares `parent` or `name` as
      something else.
    ValueError: it declares an attribute that Haiku sets.
  """
  annotations = dict(inspect.get_annotations(cls))
  if annotations.get('parent', parent_type) != parent_type:
    raise errors.ReservedModuleAttributeError(annotations)
  if annotations.get('name', str) not in ('str', str, str | None):
    raise errors.ReservedModuleAttributeError(annotations)
  _leave_out_of_comparison(cls, annotations)
  place = [
    (
      'parent',
      parent_type,
      kw_only_dataclasses.field(repr=False, default=unspecified, kw_only=True),
    ),
    (
      'name',
      Union[str, None],
      kw_only_dataclasses.field(default=None, kw_only=True),
    ),
  ]
  options: dict[str, Any] = {'eq': False, 'repr': False}
  if kw_only:
    options['kw_only'] = True
  kw_only_dataclasses.dataclass(cls, extra_fields=place, **options)
  if not kw_only and '__match_args__' in cls.__dict__:
    cls.__match_args__ = tuple(shown_fields(cls))
  _add_comparison(cls)
  cls.parent = ParentField()
  cls._field_names = tuple(
    f.name for f in dataclasses.fields(cls) if f.init and f.name not in PLACE
  )
  for name in _OF_HAIKU:
    if hasattr(cls, name) or name in cls.__dataclass_fields__:
      check_attribute(cls, name)


def shown_fields(cls: Any) -> list[str]:
  """Returns the fields that are shown as positional ones.

  Flax shows `parent` and `name` like the fields before them; they are
  keyword-only all the same.
  """
  return [
    f.name
    for f in dataclasses.fields(cls)
    if f.init and (not f.kw_only or f.name in PLACE)
  ]


def shown_signature(cls: Any, signature: inspect.Signature) -> Any:
  """Returns the signature of a class as Flax shows it, from the true one."""
  wanted = [f.name for f in dataclasses.fields(cls) if f.init]
  if shown_fields(cls) != wanted or PLACE[0] not in signature.parameters:
    return signature  # Others are keyword-only, or the user wrote `__init__`.
  either = inspect.Parameter.POSITIONAL_OR_KEYWORD
  return signature.replace(
    parameters=[
      p.replace(kind=either) if p.name in PLACE else p
      for p in signature.parameters.values()
    ]
  )


def check_attribute(cls: type, name: str) -> None:
  """Raises if Haiku sets an attribute of this name.

  Raises:
    ValueError: it does; the module would find Haiku's value in its own place.
  """
  if name in _OF_HAIKU:
    raise ValueError(
      f'Module class {cls.__name__} has an attribute "{name}", in which Haiku'
      f' keeps a value of its own. Give it another name: "own_{name}", say.'
    )


def _leave_out_of_comparison(cls: Any, annotations: dict[str, Any]) -> None:
  """Takes fields that only setup sets out of `==`, `hash` and `repr`."""
  for name in annotations:
    field = getattr(cls, name, None)
    if isinstance(field, dataclasses.Field) and not field.init:
      field.compare = False
      field.hash = False
      field.repr = False


# The attribute of a module that was made in a run of Haiku's, without a parent:
# the name that the user gave it.
GIVEN_NAME = '_given_name'


def is_haikus(module: Any) -> bool:
  """Returns whether a module was made in a run of Haiku, without a parent.

  It is as much itself as a module of Haiku is: JAX, which keeps what it traced
  by the equality of functions, must not take the one of another run for it.
  """
  return GIVEN_NAME in module.__dict__


def _add_comparison(cls: Any) -> None:
  """Adds `==` and `hash` by fields, where the class has none of its own.

  Those that dataclasses write are compiled anew for each class, which is most
  of what it takes to make one.
  """
  fields = dataclasses.fields(cls)
  compared = (f.name for f in fields if f.compare)
  hashed = (f.name for f in fields if (f.compare if f.hash is None else f.hash))
  # In a tuple, so that nobody takes them for methods.
  cls._by_fields = operator.attrgetter(*compared), operator.attrgetter(*hashed)
  own = vars(cls)
  if '__hash__' not in own:  # Python puts None there beside an `__eq__`.
    cls.__hash__ = _ByFields.__hash__
  else:
    cls.__hash__ = _checked_hash(cls.__hash__)
  if '__eq__' not in own:
    cls.__eq__ = _ByFields.__eq__


def _checked_hash(hash_fn: Callable[[Any], int]) -> Callable[[Any], int]:
  """Returns a hash that refuses what has no lasting value."""

  @functools.wraps(hash_fn)
  def wrapped(self):
    if is_haikus(self):
      return object.__hash__(self)
    if self.scope is not None:
      raise TypeError("Can't call __hash__ on modules that hold variables.")
    try:
      return hash_fn(self)
    except TypeError as e:
      raise TypeError(
        'Failed to hash Flax Module.  The module probably contains unhashable'
        f' attributes.  Module={self}'
      ) from e

  return wrapped


class _ByFields:
  """How modules compare; a module of Haiku's run is equal to itself only."""

  def __eq__(self: Any, other: Any) -> Any:
    if self is other:
      return True
    if is_haikus(self):
      return False
    if other.__class__ is not self.__class__:
      return NotImplemented
    compared, _ = self._by_fields
    return compared(self) == compared(other)

  @_checked_hash
  def __hash__(self: Any) -> int:
    _, hashed = self._by_fields
    return hash(hashed(self))
