"""Leaves of one layer: renamed, reshaped, joined; arrays or only shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# The leaves of a layer by their names below it. Haiku's: `(key,)` or
# `(submodule, key)`, behind STATE if it is state. Linen's begin with the
# collection.
Names = tuple[str, ...]
Leaves = dict[Names, Any]
Options = Mapping[str, Any]

STATE = ':state'


class ConversionError(ValueError):
  """Weights or a mapping that cannot be converted.

  >>> import haiku as hk, jax, jax.numpy as jnp
  >>> from haiku_state import interop
  >>> from haiku_state.interop import layers
  >>> f = hk.transform(lambda x: hk.Linear(2)(x))
  >>> params = f.init(jax.random.key(0), jnp.ones((1, 3)))
  >>> try:
  ...   interop.weights_from_haiku(params, None, {})
  ... except interop.ConversionError as error:
  ...   print('linear' in str(error))
  True
  """


class Leaf(NamedTuple):
  """A leaf that has one counterpart.

  Attributes:
    haiku: its name below the Haiku module.
    linen: its collection and its names below the linen module.
    to_linen: Haiku's value as linen's.
    to_haiku: the inverse.
  """

  haiku: Names
  linen: Names
  to_linen: Callable[[Any], Any]
  to_haiku: Callable[[Any], Any]


class Kind(NamedTuple):
  """How one kind of layer is converted.

  Attributes:
    requires: the linen layer, with the arguments that make it equal, in which
      options may stand in braces.
    leaves: the leaves that have one counterpart. Those that a layer does not
      have, such as a bias, are left out.
    to_linen: converts the other leaves, which need each other.
    to_haiku: its inverse.
    needs: the names of Haiku's that `to_linen` needs.
    needs_linen: the names of linen's that `to_haiku` needs.
    note: says what the leaves alone do not tell, given the options and whether
      the way is from Haiku; None if there is nothing to say.
  """

  requires: str
  leaves: Callable[[Options], tuple[Leaf, ...]]
  to_linen: Callable[[Leaves, Options], Leaves] | None = None
  to_haiku: Callable[[Leaves, Options], Leaves] | None = None
  needs: tuple[Names, ...] = ()
  needs_linen: tuple[Names, ...] = ()
  note: Callable[[Options, bool], str | None] = lambda options, forward: None


def same(x: Any) -> Any:
  """Returns a leaf as it is."""
  return x


def apply(fn: Callable[..., Any], *leaves: Any) -> Any:
  """Returns what `fn` makes of leaves, or its shape if they are only shapes."""
  if any(isinstance(x, jax.ShapeDtypeStruct) for x in leaves):
    return jax.eval_shape(fn, *map(_shape_of, leaves))
  return fn(*leaves)


def _shape_of(x: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(x.shape, x.dtype)


def concat(xs: Sequence[Any], axis: int) -> Any:
  """Returns arrays one behind the other: NumPy's if all are NumPy's."""
  if all(isinstance(x, np.ndarray) for x in xs):
    return np.concatenate(xs, axis)
  return jnp.concatenate(xs, axis)


def shapes(leaves: Leaves) -> dict[Names, tuple[int, ...]]:
  """Returns the shapes of leaves, by name."""
  return {name: tuple(getattr(x, 'shape', ())) for name, x in leaves.items()}


def convert(
  kind: Kind, given: Leaves, options: Options, forward: bool, where: str
) -> Leaves:
  """Converts the leaves of one layer.

  Args:
    kind: its kind.
    given: its leaves. Those that are converted are taken out.
    options: the options of its row, and by name the shapes of the leaves that
      are `given` and of those of the `target`, as far as there is one.
    forward: from Haiku to linen, or back.
    where: its place, for errors.

  Returns:
    The leaves on the other side.

  Raises:
    ConversionError: a leaf that is needed is not there, or has no shape that
      such a layer's has.
  """
  out: Leaves = {}
  try:
    for leaf in kind.leaves(options):
      source, target = leaf.haiku, leaf.linen
      if not forward:
        source, target = target, source
      if source in given:
        fn = leaf.to_linen if forward else leaf.to_haiku
        out[target] = fn(given.pop(source))
    fn = kind.to_linen if forward else kind.to_haiku
    needs = kind.needs if forward else kind.needs_linen
    if fn is not None:
      missing = [name for name in needs if name not in given]
      if missing:
        raise ConversionError(
          f'"{where}" has no {" or ".join(map(text, missing))}. Found'
          f' {", ".join(map(text, given)) or "nothing"}.'
        )
      out.update(fn(given, options))
      for name in needs:
        del given[name]
  except ConversionError:
    raise
  except (TypeError, ValueError, IndexError, AttributeError) as e:
    shapes = {text(k): getattr(v, 'shape', None) for k, v in given.items()}
    raise ConversionError(
      f'"{where}" cannot be converted: {e} (leaves not converted yet: {shapes})'
    ) from e
  if not out:
    raise ConversionError(
      f'"{where}" has none of the leaves of its kind. Found'
      f' {", ".join(map(text, given)) or "nothing"}.'
    )
  return out


def text(names: Names) -> str:
  """Returns names as people read them."""
  return '"' + '/'.join(names) + '"'
