"""JAX's transformations for functions of scopes."""

from haiku_state.core._lift.autodiff import checkpoint as checkpoint
from haiku_state.core._lift.autodiff import custom_vjp as custom_vjp
from haiku_state.core._lift.autodiff import jvp as jvp
from haiku_state.core._lift.autodiff import remat as remat
from haiku_state.core._lift.autodiff import value_and_grad as value_and_grad
from haiku_state.core._lift.autodiff import vjp as vjp
from haiku_state.core._lift.caching import CountsHolder as CountsHolder
from haiku_state.core._lift.caching import TransformContext as TransformContext
from haiku_state.core._lift.caching import fold_rngs as fold_rngs
from haiku_state.core._lift.caching import jit as jit
from haiku_state.core._lift.caching import set_from_dict as set_from_dict
from haiku_state.core._lift.collections import id_fn as id_fn
from haiku_state.core._lift.collections import map_variables as map_variables
from haiku_state.core._lift.collections import (
  swap_collection as swap_collection,
)
from haiku_state.core._lift.control import cond as cond
from haiku_state.core._lift.control import switch as switch
from haiku_state.core._lift.control import while_loop as while_loop
from haiku_state.core._lift.mapping import remat_scan as remat_scan
from haiku_state.core._lift.mapping import scan as scan
from haiku_state.core._lift.mapping import tree_map_rngs as tree_map_rngs
from haiku_state.core._lift.mapping import vmap as vmap
from haiku_state.core._lift.packing import pack as pack
