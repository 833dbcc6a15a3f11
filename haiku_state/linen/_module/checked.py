"""What type checkers see of modules in the place of what they cannot follow.

Nothing imports this file at run time. Haiku's metaclass has a base that is
computed, `type(Protocol)`: for a checker it is `Any`, and so would be whatever a
module class is called to make.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, Literal, Protocol, TypeVar, Union

import haiku as hk
import jax

from haiku_state.core.filters import DenyList
from haiku_state.linen.kw_only_dataclasses import dataclass_transform, field

R_co = TypeVar('R_co', covariant=True)

# Mypy takes a variable of this name for true, whatever is assigned to it.
MYPY: Literal[False] = False


@dataclass_transform(field_specifiers=(field, dataclasses.field))
class ModuleMeta(abc.ABCMeta):
  """The metaclass of modules: their classes are dataclasses, themselves too."""


if MYPY:

  class HaikuModule:
    """What users call of `hk.Module`, whose metaclass would be in conflict."""

    def params_dict(self) -> Mapping[str, jax.Array]: ...  # type: ignore

    def state_dict(self) -> Mapping[str, jax.Array]: ...  # type: ignore

    @property
    def submodules(self) -> tuple[hk.Module, ...]: ...  # type: ignore

else:

  class HaikuModule(hk.Module):
    """A module of Haiku."""


class Returns(Protocol[R_co]):
  """A module by what its `__call__` returns."""

  def __call__(self, *args: Any, **kwargs: Any) -> R_co: ...


# The values of `mutable` with which `apply` returns a pair, and the one with
# which it does not. A `bool` may be either.
Some = Union[Literal[True], str, Collection[str], DenyList]
Nothing = Literal[False]
Unboxed = Literal[True]
