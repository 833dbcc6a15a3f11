"""Binding: how a module gets its scope, from a parent or in Haiku's hands.

A module takes its place when it is made, if it has a parent then. One that was
made outside and comes in a field is adopted: a copy of it, one for each run,
becomes a submodule of the first module that holds it.

In somebody's `hk.transform` a module without a parent of ours is named by Haiku
where it is made, and bound when it is first used. Until then it may become the
submodule of a module that is made with it in a field: of the first one that is
made, in whatever order they are called.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import haiku as hk

from haiku_state import errors
from haiku_state.configurations import config
from haiku_state.core import _frame, _haiku_run
from haiku_state.core._run import Run, current_depth, rules_at
from haiku_state.core.filters import DenyList
from haiku_state.core.scope import IN_HAIKU, Scope
from haiku_state.linen._module import submodules
from haiku_state.linen._module.base import ModuleBase
from haiku_state.linen._module.context import context
from haiku_state.linen._module.fields import (
  GIVEN_NAME,
  detached,
  is_haikus,
  unspecified,
)
from haiku_state.linen._module.haiku_names import (
  called_by_haiku,
  enter_haiku,
  haiku_name,
  is_forced,
  move_in_haiku,
  name_below,
  name_by_haiku,
)
from haiku_state.linen._module.state import SetupState

# --- By a parent -------------------------------------------------------------


def find_parent() -> ModuleBase | None:
  """Returns the module whose method makes a new one, if there is one."""
  caller = context.current().module_stack[-1]
  scope = None if caller is None else caller.scope
  if scope is not None:
    path = _frame.current_path()
    if path is not None and path != scope.haiku_path:
      return None  # A Haiku module is between: the new one belongs to that.
  return caller


def settle(module: ModuleBase, parent: Any) -> None:
  """Binds a module at the place that its parent says, if that can be done now.

  Args:
    module: the module.
    parent: its parent, a module or a scope.

  Raises:
    AssignSubModuleError: the parent is in no method that may have submodules.
    NameInUseError: the name is taken.
    ValueError: the parent is neither a module nor a scope.
  """
  if isinstance(parent, ModuleBase):
    if not _attach(module, parent):
      return
  elif isinstance(parent, Scope):
    vars(module)['scope'] = parent
  else:
    raise ValueError('parent must be None, Module or Scope')
  _bind(module)


def _attach(module: ModuleBase, parent: ModuleBase) -> bool:
  """Takes a name and a scope below a parent; returns whether it could yet."""
  state = parent._state
  name = module.name
  if name is None and state.in_setup:
    return False  # It gets its name when it is assigned to an attribute.
  if not parent._initialization_allowed:
    raise errors.AssignSubModuleError(type(module).__name__)
  if name is None:
    prefix = type(module).__name__
    count = state.autoname_cursor.get(prefix, 0)
    name = f'{prefix}_{count}'
    vars(module)['name'] = name
    state.autoname_cursor[prefix] = count + 1
  elif is_forced(name):
    raise _forced_below(module, parent)
  above = parent.scope
  assert above is not None
  # In a lifted transform setup runs again, on names that it took outside.
  reuse = state.in_setup and state.setup_called is SetupState.TRANSFORMED
  if not above.take_name(name) and not reuse:
    raise errors.NameInUseError('submodule', name, type(parent).__name__)
  is_known = name in state.children
  state.children[name] = module
  scope = vars(module)['scope'] = above.below(name)
  if not is_known:
    _check_haikus_names(module, parent, scope)
  return True


def _forced_below(module: ModuleBase, parent: ModuleBase) -> ValueError:
  kind, name = type(module).__name__, str(module.name).rpartition(':')[2]
  return ValueError(
    f'{kind}(name=hk.force_name("{name}")) in a method of'
    f' {type(parent).__name__}: a forced name is for modules that lie outside of'
    ' others, and a linen-style module lies below the one that makes it. To'
    ' share its parameters make it once, outside, and pass the module on; to'
    f' name it, write name="{name}".'
  )


def _check_haikus_names(
  module: ModuleBase, parent: ModuleBase, scope: Scope
) -> None:
  """Raises if a module of Haiku's in a method that runs has the name of a new one.

  In somebody's `hk.transform` Haiku then gives the name to no other module, and
  tells interceptors of this one.

  Args:
    module: the new one.
    parent: the module whose method runs.
    scope: the place of the new one.

  Raises:
    NameInUseError: it has.
  """
  own = vars(parent)
  made = own.get('_submodules')
  if made and scope.haiku_path in made:
    raise errors.NameInUseError('submodule', scope.name, type(parent).__name__)
  if type(own.get('module_name')) is str:
    name_below(module, scope.haiku_path)


def _bind(module: ModuleBase) -> None:
  """Makes a module that has a scope ready for use."""
  scope = module.scope
  assert scope is not None
  run = scope._run
  if run.is_at_rest:
    if scope.parent is None:
      run.haiku_root = haiku_name(module)
  elif is_haikus(module):
    vars(module).pop(_OWNER, None)
    move_in_haiku(module)
  elif 'module_name' not in module.__dict__:
    enter_haiku(module)
  own = module.__dict__
  for name in module._field_names:
    value = own.get(name, unspecified)
    if type(value) in submodules.PLAIN_TYPES or value is unspecified:
      continue
    if not submodules.is_plain(value):
      register(module, name, value)
  module._state.is_initialized = True


# --- By an attribute ---------------------------------------------------------


def register(owner: ModuleBase, name: str, value: Any) -> None:
  """Sets an attribute of a bound module, and attaches the modules in it.

  Args:
    owner: the bound module.
    name: the name of the attribute.
    value: its value.
  """
  if submodules.is_plain(value):
    object.__setattr__(owner, name, value)  # It may be a property that is set.
    return
  attached: list[ModuleBase] = []
  calls = context.current()
  calls.half_done += 1

  def adopt(suffix: str, leaf: Any) -> Any:
    if not isinstance(leaf, ModuleBase):
      return leaf
    return _adopt(owner, f'{name}{suffix}', leaf, attached)

  if isinstance(value, ModuleBase):
    new = adopt('', value)
  else:
    new = submodules.freeze_attr(submodules.map_leaves(adopt, value))
  for module in attached:
    if is_haikus(module):
      settle(module, owner)  # It is the user's own object, made already.
    else:
      module.__post_init__()
  # Now, so that an attribute is there whole or not at all.
  object.__setattr__(owner, name, new)
  calls.half_done -= 1


def _adopt(
  owner: ModuleBase,
  place: str,
  module: ModuleBase,
  attached: list[ModuleBase],
) -> ModuleBase:
  """Returns the module to hold in place of one that was assigned."""
  assert owner.scope is not None
  given_name = None
  if module.parent is None:
    if is_haikus(module):
      return _adopt_in_haiku(owner, place, module, attached)
    # Sharing by reference survives: one copy for each object and run.
    if _preserves_names(owner):
      given_name = module.name
    adopted = _adopted(owner.scope)
    copy = adopted.get(module._id)
    if copy is None:
      own_name = module.name
      copy = module.clone(parent=detached, name=None)
      if copy._named_by_itself:
        given_name = own_name
      adopted[module._id] = copy
    module = copy
  if module.name is None:
    # It may be bound to a scope, and frozen: from here on it is the owner's.
    object.__setattr__(module, 'parent', owner)
    vars(module)['name'] = place if given_name is None else given_name
    attached.append(module)
  return module


def _adopted(scope: Scope) -> Any:
  """Returns the copies of modules from outside, by the ids of the originals."""
  if scope._run.is_in_haiku:
    return _haiku_run.notes_of_run()
  return scope._modules.adopted


def _preserves_names(owner: ModuleBase) -> bool:
  """Returns whether adopted modules keep the names that they came with."""
  preserve = getattr(type(owner), 'preserve_adopted_names', None)
  return config.flax_preserve_adopted_names if preserve is None else preserve


# --- In Haiku's hands --------------------------------------------------------

# The attribute of a module that was made there and belongs below another one:
# that one. It is gone when the module is bound, so that it closes no cycle of
# what knows of a run.
_OWNER = '_owner'
# And how many runs of ours were around: one more hides the frame of its run.
_DEPTH = '_depth_where_made'


def name_where_made(module: ModuleBase) -> None:
  """Gives a new module without a parent its Haiku name, in a run of Haiku.

  It claims the modules in its fields.
  """
  if not called_by_haiku():
    return
  _name(module, module.name)
  for leaf in _free_modules_in_fields(module):
    vars(leaf).setdefault(_OWNER, module)


def take_over(copy: ModuleBase, original: ModuleBase) -> None:
  """Has a copy own what its original does, which was made to be copied."""
  if is_haikus(copy):
    for leaf in _free_modules_in_fields(copy):
      if vars(leaf).get(_OWNER) is original:
        vars(leaf)[_OWNER] = copy


def _free_modules_in_fields(module: ModuleBase) -> Iterator[ModuleBase]:
  for field in module._field_names:
    for leaf in submodules.modules_in(vars(module).get(field)):
      if is_haikus(leaf) and leaf.scope is None:
        yield leaf


def _name(module: ModuleBase, given: str | None) -> None:
  wanted = None if is_forced(module.name) else haiku_name(module)
  own = vars(module)
  # From here on it is equal to itself only, whoever is told of it.
  own[GIVEN_NAME] = given
  own[_DEPTH] = current_depth()
  name_by_haiku(module)
  if wanted is not None:
    _check_not_second(module, wanted)


def _adopt_in_haiku(
  owner: ModuleBase,
  place: str,
  module: ModuleBase,
  attached: list[ModuleBase],
) -> ModuleBase:
  """Puts a module that was made in a run of Haiku below the one it belongs to.

  One that belongs to another, or to none, stays where that, or Haiku, put it.
  """
  if vars(module).get(_OWNER) is not owner:
    bind_in_haiku(module)
    return module
  name = vars(module)[GIVEN_NAME] if _preserves_names(owner) else None
  module.parent = owner
  vars(module)['name'] = place if name is None else name
  attached.append(module)
  return module


def usable(module: ModuleBase) -> ModuleBase | None:
  """Returns an unbound module as it is used here, bound; None if it cannot be.

  Args:
    module: an unbound module. One that was made in a run of Haiku is bound
      itself. One that was made outside has one bound copy in each run, and
      stays as it is.

  Raises:
    ValueError: it was made outside, and another module has the name that it
      would have.
  """
  if is_haikus(module):
    bind_in_haiku(module)
    return None if module.scope is None else module
  return _inside(module) if called_by_haiku() else None


def bind_in_haiku(module: ModuleBase) -> None:
  """Binds a module that was made in a run of Haiku, if it is not bound yet.

  Where no run of Haiku's goes on it stays unbound, and while it is being named.
  """
  if module.scope is not None or 'module_name' not in vars(module):
    return
  if _frame.current_path() is None:
    return
  owner = vars(module).get(_OWNER)
  if owner is not None:
    bind_in_haiku(owner)  # That adopts it.
  if module.scope is None:
    module.parent = scope = _scope_in_haiku(module)
    settle(module, scope)


# Among the notes of a run: the whole names of modules from outside.
_FROM_OUTSIDE = 'from outside'


def _inside(module: ModuleBase) -> ModuleBase:
  """Returns the copy, in this run of Haiku, of a module from outside."""
  if '_id' not in vars(module):
    raise errors.IncorrectPostInitOverrideError()
  adopted = _haiku_run.notes_of_run()
  copy = adopted.get(module._id)
  if copy is None:
    copy = module.clone(parent=detached)
    _name(copy, module.name)
    path, wanted = copy.module_name, haiku_name(module)
    if not is_forced(module.name) and path.rpartition('/')[2] != wanted:
      raise _depends_on_order(copy, wanted)
    adopted.setdefault(_FROM_OUTSIDE, set()).add(path)
    adopted[module._id] = copy
    bind_in_haiku(copy)
  return copy


def _check_not_second(module: ModuleBase, wanted: str) -> None:
  """Raises if Haiku numbered a name because one from outside came first."""
  from_outside = _haiku_run.notes_if_any().get(_FROM_OUTSIDE)
  if from_outside:
    above, slash, name = module.module_name.rpartition('/')
    if name != wanted and above + slash + wanted in from_outside:
      raise _depends_on_order(module, wanted)


def _depends_on_order(module: ModuleBase, wanted: str) -> ValueError:
  """Returns the error of a name that depends on the order of calls."""
  kind, name = type(module).__name__, module.module_name.rpartition('/')[2]
  return ValueError(
    f'Two modules want the name "{wanted}", and one of them was made outside of'
    ' hk.transform, so that it is named when it is first called: which of the two'
    f' would be "{name}" would depend on the order of the calls. Make both inside'
    ' of the transformed function, or give this one a name of its own:'
    f' {kind}(..., name="my_{wanted}").'
  )


def _scope_in_haiku(module: ModuleBase) -> Scope:
  """Returns a scope at the place of a Haiku module, in Haiku's hands."""
  path = module.module_name
  rules = rules_at(path)
  if rules is not None:
    # Haiku's module is one in a run of ours: linen's rules hold.
    mutable, initializing = rules
    flags = {'initializing': initializing}
  else:
    initializing = hk.running_init()
    hidden = ['intermediates'] if initializing else ['params', 'intermediates']
    mutable = DenyList(hidden)
    flags = {'initializing': initializing, IN_HAIKU: True}
  shown = path.split('/')  # In errors, the path as Haiku prints it.
  scope = Scope({}, mutable=mutable, debug_path=shown, flags=flags)
  scope._run = Run.in_haiku(path, vars(module)[_DEPTH])
  return scope
