"""Cells of linen as cores of Haiku, and cores of Haiku as cells of linen.

The two are one step of a loop, written in another order::

  carry, y = cell(carry, x)
  y, state = core(x, state)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import haiku as hk
import jax

from haiku_state.interop._checks import described
from haiku_state.linen._module.binding import usable
from haiku_state.linen._module.haiku_names import haiku_name
from haiku_state.linen.module import Module, compact, nowrap
from haiku_state.linen.recurrent import RNNCellBase

# --- A cell as a core --------------------------------------------------------


class CellCore(hk.RNNCore):
  """A linen-style cell as a core of Haiku; `as_rnn_core` makes it.

  Attributes:
    cell: the cell.
    input_shape: the shape of one input, without a batch; None if unknown.
  """

  AUTO_REPR = False

  def __init__(self, cell: Any, input_shape: Sequence[int] | None):
    # No path leads through this module: its parameters are the cell's. For
    # who asks for its name, that is the cell's, too.
    name = vars(cell).get('module_name') or haiku_name(cell)
    super().__init__(name=hk.force_name(name))
    self.cell = cell
    self.input_shape = None if input_shape is None else tuple(input_shape)

  @hk.transparent
  def __call__(self, inputs: Any, prev_state: Any) -> tuple[Any, Any]:
    carry, outputs = self.cell(prev_state, inputs)
    return outputs, carry

  @hk.transparent
  def initial_state(self, batch_size: int | None) -> Any:
    batch = () if batch_size is None else (batch_size,)
    shape: Any = self.input_shape
    unknown = _Unknown()
    if shape is None and self.cell.num_feature_axes == 1:
      shape = (unknown,)
    if shape is None:
      raise _needs_input_shape(self.cell)
    try:
      try:
        return self.cell.initialize_carry(None, (*batch, *shape))
      except TypeError:
        if unknown.was_asked:
          raise
        # The cell draws its carry. Others leave the keys of what follows alone.
        key = hk.next_rng_key()
        return self.cell.initialize_carry(key, (*batch, *shape))
    except TypeError as e:
      if unknown.was_asked:
        raise _needs_input_shape(self.cell) from e
      raise


class _Unknown:
  """A number of features that nobody should need: it knows if somebody does."""

  def __init__(self) -> None:
    self.was_asked = False

  def _ask(self, *args: Any) -> Any:
    self.was_asked = True
    raise TypeError('the number of features of the inputs is not known')

  __index__ = __int__ = __float__ = __bool__ = _ask
  __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _ask
  __floordiv__ = __truediv__ = __mod__ = __neg__ = __lt__ = __gt__ = _ask


def _needs_input_shape(cell: Any) -> TypeError:
  axes = cell.num_feature_axes
  shape = ', '.join(['...'] * axes) + (',' if axes == 1 else '')
  return TypeError(
    f'The first carry of {type(cell).__name__} depends on the shape of its'
    f' inputs, of which {axes} axes are features. Haiku asks for it by the batch'
    f' size alone: write as_rnn_core(cell, input_shape=({shape})).'
  )


def as_rnn_core(
  cell: Module, *, input_shape: Sequence[int] | None = None
) -> hk.RNNCore:
  """Gives a linen-style cell as a core of Haiku.

  Use it inside of `hk.transform`, wherever a core of Haiku could stand:
  `hk.dynamic_unroll`, `hk.static_unroll`, `hk.DeepRNN`, `hk.ResetCore`. The
  parameters are the cell's own, at the cell's own name.

  >>> import haiku as hk, jax, jax.numpy as jnp
  >>> import haiku_state.linen as nn
  >>> def f(xs):  # [time, batch, features]
  ...   core = hk.DeepRNN([hk.LSTM(4), as_rnn_core(nn.GRUCell(5))])
  ...   return hk.dynamic_unroll(core, xs, core.initial_state(xs.shape[1]))[0]
  >>> params = hk.transform(f).init(jax.random.key(0), jnp.ones((7, 2, 3)))
  >>> sorted(params)[:3]
  ['gru_cell/hn', 'gru_cell/hr', 'gru_cell/hz']

  Args:
    cell: the cell, such as `nn.LSTMCell(4)`. Its carry is the core's state.
    input_shape: the shape of one input without the batch, where the first carry
      depends on it: `(height, width, channels)` for a `ConvLSTMCell`.

  Returns:
    The core. `initial_state` draws a key from Haiku if the cell's first carry
    is drawn, and none if it is not.

  Raises:
    TypeError: it is no cell.
  """
  if isinstance(cell, hk.RNNCore):
    raise TypeError(
      f'{type(cell).__name__} is a core of Haiku: use it as it is.'
    )
  if not isinstance(cell, Module) or not hasattr(cell, 'initialize_carry'):
    raise TypeError(
      f'as_rnn_core takes a linen-style cell, found {described(cell)}. Write'
      ' `as_rnn_core(nn.LSTMCell(features))`; a cell of your own has'
      ' `initialize_carry` and `num_feature_axes`, see `nn.RNNCellBase`.'
    )
  if cell.scope is None:
    # One from outside is named now, as Haiku's own cores are.
    cell = usable(cell) or cell  # type: ignore[assignment]
  return CellCore(cell, input_shape)


# --- A core as a cell --------------------------------------------------------


class CoreCell(RNNCellBase):
  """A core of Haiku as a linen-style cell; `as_rnn_cell` makes it.

  Attributes:
    make: makes the core.
    feature_axes: how many axes of the inputs are features; None if the first
      state of the core tells.
  """

  make: Callable[[], hk.RNNCore]
  feature_axes: int | None = None

  @compact
  def __call__(self, carry: Any, inputs: Any) -> tuple[Any, Any]:
    outputs, state = _made(self.make)(inputs, carry)
    return state, outputs

  @nowrap
  def initialize_carry(self, rng: Any, input_shape: tuple[int, ...]) -> Any:
    """Makes the first state of the core.

    Args:
      rng: a key, for states that are drawn.
      input_shape: the shape of the input of one step, `[batch..., features...]`.

    Returns:
      The state. The core makes it for a batch of the size of all batch axes.
    """
    batch = tuple(input_shape[: len(input_shape) - self.num_feature_axes])
    size = math.prod(batch) if batch else None
    if self.scope is not None:
      state = self._state_here(size)
    else:
      state, params = _state_apart(self.make, size, rng)
      if params:
        raise ValueError(
          'The first state of the core has parameters of its own, which are'
          ' only there in a run. Call `initialize_carry` inside of a module, as'
          ' `nn.RNN` does, or pass the first carry.'
        )
    if len(batch) < 2:
      return state
    return jax.tree.map(lambda x: x.reshape((*batch, *x.shape[1:])), state)

  @hk.name_like('__call__')
  def _state_here(self, batch_size: int | None) -> Any:
    """Makes the first state where the core has its parameters."""
    return _made(self.make).initial_state(batch_size)

  @property
  def num_feature_axes(self) -> int:
    if self.feature_axes is not None:
      return self.feature_axes
    shapes = jax.eval_shape(lambda: _state_apart(self.make, 1, None)[0])
    ranks = [len(x.shape) - 1 for x in jax.tree.leaves(shapes)]
    return ranks[0] if ranks else 1


def _made(make: Callable[[], hk.RNNCore]) -> hk.RNNCore:
  """Makes the core.

  Raises:
    TypeError: it is none.
  """
  core = make()
  if not isinstance(core, hk.RNNCore):
    raise TypeError(
      'The function that was passed to as_rnn_cell returned'
      f' {described(core)} and no hk.RNNCore.'
    )
  return core


def _state_apart(make: Any, batch_size: int | None, rng: Any) -> Any:
  """Returns the first state and the parameters that it took, in no run."""
  first_state = hk.transform_with_state(
    lambda: _made(make).initial_state(batch_size)
  )
  rng = jax.random.key(0) if rng is None else rng
  params, state = first_state.init(rng)
  return first_state.apply(params, state, rng)[0], params


def as_rnn_cell(
  core: Callable[[], hk.RNNCore],
  *,
  num_feature_axes: int | None = None,
  name: str | None = None,
) -> RNNCellBase:
  """Gives a core of Haiku as a linen-style cell.

  Use it wherever a cell could stand: `nn.RNN`, `nn.Bidirectional`, `nn.scan`,
  or by itself. Its carry is the core's state, its parameters are those of the
  core, nested by the parts of Haiku's names.

  >>> import haiku as hk, jax, jax.numpy as jnp
  >>> import haiku_state.linen as nn
  >>> rnn = nn.RNN(as_rnn_cell(lambda: hk.LSTM(4)))
  >>> xs = jnp.ones((2, 7, 3))  # [batch, time, features]
  >>> variables = rnn.init(jax.random.key(0), xs)
  >>> jax.tree.map(jnp.shape, variables.unfreeze())
  {'params': {'cell': {'lstm': {'linear': {'b': (16,), 'w': (7, 16)}}}}}
  >>> rnn.apply(variables, xs).shape
  (2, 7, 4)

  Args:
    core: a function that makes the core. A core itself belongs to the run that
      it was made in, and a loop is another.
    num_feature_axes: how many axes of the inputs are features; by default as
      many as the first leaf of the core's state has, without its batch.
    name: the name of the cell.

  Returns:
    The cell.

  Raises:
    TypeError: it is no function that makes a core.
  """
  if isinstance(core, hk.RNNCore):
    kind = type(core).__name__
    raise TypeError(
      f'as_rnn_cell takes a function that makes a core, found a {kind}. A loop'
      ' is a run of its own, in which modules from outside have no parameters:'
      f' write `as_rnn_cell(lambda: hk.{kind}(...))`.'
    )
  if isinstance(core, RNNCellBase):
    raise TypeError(f'{type(core).__name__} is a cell: use it as it is.')
  if not callable(core) or isinstance(core, Module):
    raise TypeError(
      f'as_rnn_cell takes a function that makes a core, found'
      f' {described(core)}. Write `as_rnn_cell(lambda: hk.LSTM(size))`.'
    )
  return CoreCell(core, num_feature_axes, name=name)
