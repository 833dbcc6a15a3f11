"""Tables of modules: what is called, on what, with which variables.

The text is drawn by rich and PyYAML, which come with the extra
`pip install '.[summary]'`.
"""

from __future__ import annotations

import dataclasses
import enum
import io
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from haiku_state.core import meta
from haiku_state.core.filters import CollectionFilter
from haiku_state.core.frozen_dict import unfreeze
from haiku_state.core.keys import LazyRng
from haiku_state.linen._module.calls import DEFAULT_INIT_MUTABLE
from haiku_state.linen._module.context import CallInfo, collecting_calls

if TYPE_CHECKING:
  from haiku_state.linen.module import Module

# What init makes, or a part of it: collections by name, nested.
_Variables = Mapping[str, Any]

# --- Values as a table shows them ---------------------------------------------


class _ValueRepresentation:
  """What is left of a value when its call is over."""

  def render(self) -> str:
    """Returns the text of a cell, with rich's markup."""
    raise NotImplementedError


@dataclasses.dataclass
class _ArrayRepresentation(_ValueRepresentation):
  """An array: its shape and dtype."""

  shape: tuple[int, ...]
  dtype: Any

  def render(self) -> str:
    return f'[dim]{self.dtype}[/dim][{",".join(map(str, self.shape))}]'


@dataclasses.dataclass
class _PartitionedArrayRepresentation(_ValueRepresentation):
  """An array in a box: what it is, and the names of its axes."""

  array_representation: _ArrayRepresentation
  names: Any

  def render(self) -> str:
    return f'{self.array_representation.render()} [dim]P[/dim]{self.names}'


@dataclasses.dataclass
class _ObjectRepresentation(_ValueRepresentation):
  """Anything else."""

  obj: Any

  def render(self) -> str:
    return repr(self.obj)


def _represent_array(x: Any) -> _ArrayRepresentation:
  dtype = jnp.result_type(x)  # It raises if this is no array.
  return _ArrayRepresentation(getattr(x, 'shape', ()), dtype)


def _represent(x: Any) -> _ValueRepresentation:
  if isinstance(x, (int, float, bool, type(None))):
    return _ObjectRepresentation(x)
  if isinstance(x, meta.Partitioned):
    return _PartitionedArrayRepresentation(_represent_array(x.value), x.names)
  try:
    return _represent_array(x)
  except Exception:  # Whatever JAX says of what is no array.
    return _ObjectRepresentation(x)


def _represent_tree(x: Any) -> Any:
  """Returns a tree with a `_ValueRepresentation` in place of each leaf."""
  is_leaf = lambda x: x is None or isinstance(x, meta.Partitioned)
  return jax.tree.map(_represent, x, is_leaf=is_leaf)


def _from_value_representation(x: _ValueRepresentation) -> Any:
  """Returns what can be traced in place of the value that was represented."""
  if isinstance(x, _PartitionedArrayRepresentation):
    x = x.array_representation
  if isinstance(x, _ArrayRepresentation):
    return jax.ShapeDtypeStruct(x.shape, x.dtype)
  assert isinstance(x, _ObjectRepresentation)
  return x.obj


# --- Rows ---------------------------------------------------------------------


@dataclasses.dataclass
class Row:
  """One call of a module.

  Attributes:
    path: the names from the root to the module.
    module_copy: a copy of the module.
    method: the name of the method.
    inputs: what the method was given.
    outputs: what it returned.
    module_variables: the variables of the module, without its submodules.
    counted_variables: those that count for this row; with a limit of depth, the
      variables of submodules that are not shown are among them.
    flops: operations of the call.
    vjp_flops: operations of the call and of its backward pass.
  """

  path: tuple[str, ...]
  module_copy: Module
  method: str
  inputs: Any
  outputs: Any
  module_variables: dict[str, dict[str, Any]]
  counted_variables: dict[str, dict[str, Any]]
  flops: int
  vjp_flops: int

  def size_and_bytes(
    self, collections: Iterable[str]
  ) -> dict[str, tuple[int, int]]:
    """Returns the number of elements and bytes counted for each collection."""
    return {
      col: _size_and_bytes(self.counted_variables.get(col, {}))
      for col in collections
    }


class Table(list[Row]):
  """The rows of a table, in the order of the calls.

  Attributes:
    module: the module at the top.
    collections: the names of its collections.
  """

  def __init__(
    self, module: Module, collections: Sequence[str], rows: Iterable[Row]
  ):
    super().__init__(rows)
    self.module = module
    self.collections = collections


def tabulate(
  module: Module,
  rngs: Any,
  depth: int | None = None,
  show_repeated: bool = False,
  mutable: CollectionFilter = DEFAULT_INIT_MUTABLE,
  console_kwargs: Mapping[str, Any] | None = None,
  table_kwargs: Mapping[str, Any] = types.MappingProxyType({}),
  column_kwargs: Mapping[str, Any] = types.MappingProxyType({}),
  compute_flops: bool = False,
  compute_vjp_flops: bool = False,
  **kwargs: Any,
) -> Callable[..., str]:
  """Returns a function that shows a module as a table.

  Nothing is computed for it: the module is traced.

  Example::

    >>> import haiku_state.linen as nn
    >>> import jax, jax.numpy as jnp
    >>> mlp = nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(2)])
    >>> table = nn.tabulate(mlp, jax.random.key(0))(jnp.ones((1, 9)))
    >>> 'Total Parameters: 50' in table
    True

  Args:
    module: the module.
    rngs: a key for the stream `params`, or keys by name of the stream.
    depth: how many levels of submodules to show; None for all. What is not
      shown is counted with the module above it.
    show_repeated: whether to show the second and later calls of a module.
    mutable: which collections are made.
    console_kwargs: arguments of `rich.console.Console`, beside
      `force_terminal=True` and `force_jupyter=False`.
    table_kwargs: arguments of `rich.table.Table`.
    column_kwargs: arguments of `rich.table.Table.add_column`.
    compute_flops: whether to show the operations of each call, as XLA
      estimates them.
    compute_vjp_flops: whether to show those of each call with its backward
      pass; 0 for what has none.
    **kwargs: arguments of `Module.init`, such as `method`.

  Returns:
    A function of the arguments of the method that returns the table as text.

  Raises:
    ImportError: rich or PyYAML is not installed.
  """
  if mutable != DEFAULT_INIT_MUTABLE:
    # Otherwise it is left to `init`, which a class may have with fewer
    # arguments.
    kwargs['mutable'] = mutable

  def tabulate_call(*fn_args: Any, **fn_kwargs: Any) -> str:
    _import_rich()  # Before any work is done.
    table = _get_module_table(
      module,
      depth=depth,
      show_repeated=show_repeated,
      compute_flops=compute_flops,
      compute_vjp_flops=compute_vjp_flops,
    )(rngs, *fn_args, **fn_kwargs, **kwargs)
    columns = ['inputs', 'outputs']
    columns += ['flops'] * compute_flops + ['vjp_flops'] * compute_vjp_flops
    drawn = _draw(table, columns, table_kwargs, column_kwargs)
    return _print(drawn, console_kwargs or {})

  return tabulate_call


def _get_module_table(
  module: Module,
  depth: int | None,
  show_repeated: bool,
  compute_flops: bool,
  compute_vjp_flops: bool,
) -> Callable[..., Table]:
  """Returns a function with the arguments of `module.init`.

  It returns the table of the module. See `tabulate` for the arguments.
  """

  def make(*args: Any, **kwargs: Any) -> Table:
    # What is noted of the calls may hold tracers, which nobody uses.
    calls = collecting_calls(_represent_tree)
    with calls as infos, jax.check_tracer_leaks(False):
      variables = jax.eval_shape(lambda: module.init(*args, **kwargs))
    calls = sorted(infos.calls, key=lambda call: call.index)
    modules = {call.path for call in calls}
    rows = []
    seen: set[tuple[str, ...]] = set()
    for call in calls:
      is_first = call.path not in seen and hasattr(call.module, call.method)
      own, counted = {}, {}
      if is_first:
        if depth is not None and len(call.path) > depth:
          continue
        own, _ = _get_module_variables(call.path, variables, modules)
        counted = own
        if len(call.path) == depth:
          counted = _variables_at(call.path, variables)
      elif not show_repeated:
        continue
      seen.add(call.path)
      flops = _get_call_flops(call, compute_flops, compute_vjp_flops)
      rows.append(_row(call, own, counted, *flops))
    # In the order of a set, as Flax has them.
    return Table(module, tuple(set(variables)), rows)

  return make


def _row(call: CallInfo, own, counted, flops: int, vjp_flops: int) -> Row:
  return Row(
    path=call.path,
    module_copy=call.module.copy(parent=None),
    method=call.method,
    inputs=_process_inputs(call.args, call.kwargs),
    outputs=call.outputs,
    module_variables=own,
    counted_variables=counted,
    flops=flops,
    vjp_flops=vjp_flops,
  )


# Under Flax's name, by which programs that draw other tables import it, as the
# other two that say so.
def _process_inputs(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
  """Returns the arguments of a call, in as few containers as will do."""
  if kwargs:
    return (*args, kwargs) if args else kwargs
  return args[0] if len(args) == 1 else args


def _variables_at(
  path: tuple[str, ...], variables: _Variables
) -> dict[str, dict[str, Any]]:
  """Returns the variables at and below a path, by collection."""
  found = {}
  for col, level in variables.items():
    for name in path:
      if name not in level:
        break
      level = level[name]
    else:
      found[col] = unfreeze(level)
  return found


# Under Flax's name.
def _get_module_variables(
  path: tuple[str, ...], variables: _Variables, all_paths: set[tuple[str, ...]]
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
  """Returns the variables at a path: its own, and those of modules below it.

  Args:
    path: the path of a module.
    variables: all variables, by collection.
    all_paths: the paths of all modules.
  """
  own, below = {}, {}
  for col, level in _variables_at(path, variables).items():
    names = {name for name in level if (*path, name) in all_paths}
    own[col] = {k: v for k, v in level.items() if k not in names}
    below[col] = {k: level[k] for k in names}
  return own, below


def _size_and_bytes(tree: Any) -> tuple[int, int]:
  """Returns how many elements and bytes the arrays in a tree have."""
  arrays = [x for x in jax.tree.leaves(tree) if hasattr(x, 'size')]
  size = sum(x.size for x in arrays)
  return size, sum(x.size * x.dtype.itemsize for x in arrays)


# --- Operations ---------------------------------------------------------------


# Under Flax's name.
def _get_call_flops(
  c: CallInfo, compute_flops: bool, compute_vjp_flops: bool
) -> tuple[int, int]:
  """Returns the operations of a call and of its VJP; -1 if not wanted.

  The call is traced and lowered once more, not compiled.
  """
  if not compute_flops and not compute_vjp_flops:
    return -1, -1
  rngs = {name: _key_type(rng) for name, rng in (c.rngs or {}).items()}
  inputs = jax.tree.map(_from_value_representation, (c.args, c.kwargs))
  leaves, treedef = jax.tree.flatten(inputs)
  is_array = [isinstance(x, jax.ShapeDtypeStruct) for x in leaves]
  arrays = [x for x, is_one in zip(leaves, is_array) if is_one]

  def with_inputs(fn: Callable[..., Any], first: Any, arrays: Any, **more: Any):
    """Calls `init` or `apply` with the call's arguments."""
    rest = iter(arrays)
    filled = [
      next(rest) if is_one else x for x, is_one in zip(leaves, is_array)
    ]
    args, kwargs = jax.tree.unflatten(treedef, filled)
    return fn(
      first,
      *args,
      method=c.method,
      mutable=c.mutable,
      **more,
      **kwargs,
    )

  def init(rngs, arrays):
    return with_inputs(c.module.init, rngs, arrays)

  def apply(variables, rngs, arrays):
    return with_inputs(c.module.apply, variables, arrays, rngs=rngs)

  def vjp(*args):
    out, pull_back = jax.vjp(apply, *args)
    return pull_back(out)

  variables = jax.eval_shape(init, rngs, arrays)
  return (
    _flops_of(apply, variables, rngs, arrays) if compute_flops else -1,
    _flops_of(vjp, variables, rngs, arrays) if compute_vjp_flops else -1,
  )


def _key_type(rng: LazyRng | Any) -> jax.ShapeDtypeStruct:
  key = rng.rng if isinstance(rng, LazyRng) else rng
  return jax.ShapeDtypeStruct(key.shape, key.dtype)


def _flops_of(fn: Callable[..., Any], *args: Any) -> int:
  cost = jax.jit(fn).lower(*args).cost_analysis()
  return int(cost.get('flops', 0)) if cost else 0


# --- Text ---------------------------------------------------------------------


def _import_rich() -> Any:
  """Returns the package rich.

  Raises:
    ImportError: it, or PyYAML, is not installed. The message names the extra.
  """
  try:
    import rich.console
    import rich.table
    import rich.text
    import yaml  # noqa: F401  Cells are laid out with it.
  except ImportError as error:
    raise ImportError(
      'Tables of modules need the packages rich and PyYAML, which are not both'
      " installed. Run `pip install '.[summary]'` in a clone of haiku_state."
    ) from error
  return rich


def _as_yaml(value: Any) -> str:
  """Returns a tree of dicts and tuples, whose leaves are text, as a block."""
  import yaml

  text = yaml.safe_dump(value, default_flow_style=False, sort_keys=False)
  # A lone value ends with a marker; quotes would only be noise in a cell.
  return text.replace('\n...', '').replace("'", '').strip()


# Names of methods that go without saying.
_SILENT_METHODS = ('__call__', '<lambda>')


def _draw(
  table: Table,
  columns: list[str],
  table_kwargs: Mapping[str, Any],
  column_kwargs: Mapping[str, Any],
) -> Any:
  """Returns a table of rich: path, module, `columns`, and the collections."""
  rich = _import_rich()
  drawn = rich.table.Table(
    show_header=True,
    show_lines=True,
    show_footer=True,
    title=f'{type(table.module).__name__} Summary',
    **table_kwargs,
  )
  for name in ('path', 'module', *columns, *table.collections):
    drawn.add_column(name, **column_kwargs)
  totals: dict[str, tuple[int, int]] = dict.fromkeys(table.collections, (0, 0))
  for row in table:
    counts = row.size_and_bytes(table.collections)
    drawn.add_row(
      '/'.join(row.path),
      _module_cell(row),
      *(_cell(getattr(row, name)) for name in columns),
      *(_variables_cell(row, col, *count) for col, count in counts.items()),
    )
    for col, count in counts.items():
      totals[col] = _add(totals[col], count)
  named, counted = drawn.columns[: len(columns) + 2], list(totals.values())
  named[-1].footer = rich.text.Text.from_markup('Total', justify='right')
  for column, count in zip(drawn.columns[len(named) :], counted):
    column.footer = _count_text(*count)
  drawn.caption_style = 'bold'
  total = (sum(size for size, _ in counted), sum(n for _, n in counted))
  drawn.caption = f'\nTotal Parameters: {_count_text(*total)}'
  return drawn


def _add(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
  return a[0] + b[0], a[1] + b[1]


def _module_cell(row: Row) -> str:
  name = type(row.module_copy).__name__
  if row.method in _SILENT_METHODS:
    return name
  return f'{name} [dim]({row.method})[/dim]'


def _variables_cell(row: Row, col: str, size: int, num_bytes: int) -> str:
  text = ''
  if col in row.module_variables:
    text = _cell(_represent_tree(row.module_variables[col]))
  count = f'[bold]{_count_text(size, num_bytes)}[/bold]'
  return f'{text}\n\n{count}' if text else count


def _cell(value: Any) -> str:
  """Returns a tree of values as the text of a cell."""
  tree = _without_classes(value)
  shown = jax.tree.map(_text, tree, is_leaf=lambda x: x is None)
  return '' if hasattr(shown, '__len__') and not shown else _as_yaml(shown)


def _text(x: Any) -> str:
  return x.render() if hasattr(x, 'render') else repr(x)


def _without_classes(value: Any) -> Any:
  """Returns a tree of tuples and dicts only, named as the fields are."""
  if isinstance(value, _ValueRepresentation):
    return value
  if isinstance(value, (tuple, list)):
    return tuple(map(_without_classes, value))
  if isinstance(value, Mapping):
    return {_without_classes(k): _without_classes(v) for k, v in value.items()}
  if dataclasses.is_dataclass(value):
    return {
      f.name: _without_classes(getattr(value, f.name))
      for f in dataclasses.fields(value)
    }
  return value.value if isinstance(value, enum.Enum) else value


def _count_text(size: int, num_bytes: int) -> str:
  """Returns how many elements, and in brackets bytes, there are."""
  if not size:
    return ''
  return f'{size:,} [dim]({_bytes_text(num_bytes)})[/dim]'


def _bytes_text(num_bytes: int) -> str:
  for limit, unit in ((1e9, 'GB'), (1e6, 'MB'), (1e3, 'KB')):
    if num_bytes > limit:
      return f'{num_bytes / limit:,.1f} {unit}'
  return f'{num_bytes:,} B'


def _print(drawn: Any, console_kwargs: Mapping[str, Any]) -> str:
  """Returns the text of what rich prints."""
  out = io.StringIO()
  options = {'force_terminal': True, 'force_jupyter': False, **console_kwargs}
  _import_rich().console.Console(file=out, **options).print(drawn)
  return f'\n{out.getvalue()}\n'
