"""The functional core: scopes, variables, and functions of them."""

import os as _os
from typing import TYPE_CHECKING

from haiku_state import _lazy
from haiku_state import traceback_util as _traceback_util
from haiku_state.core import axes_scan as axes_scan
from haiku_state.core import filters as filters
from haiku_state.core import frozen_dict as frozen_dict
from haiku_state.core import keys as keys
from haiku_state.core import meta as meta
from haiku_state.core import partial_eval as partial_eval
from haiku_state.core import scope as scope
from haiku_state.core import spmd as spmd
from haiku_state.core import tracers as tracers
from haiku_state.core import variables as variables
from haiku_state.core.axes_scan import broadcast as broadcast
from haiku_state.core.frozen_dict import FrozenDict as FrozenDict
from haiku_state.core.frozen_dict import copy as copy
from haiku_state.core.frozen_dict import freeze as freeze
from haiku_state.core.frozen_dict import pop as pop
from haiku_state.core.frozen_dict import pretty_repr as pretty_repr
from haiku_state.core.frozen_dict import unfreeze as unfreeze
from haiku_state.core.meta import AxisMetadata as AxisMetadata
from haiku_state.core.meta import map_axis_meta as map_axis_meta
from haiku_state.core.meta import unbox as unbox
from haiku_state.core.scope import DenyList as DenyList
from haiku_state.core.scope import Scope as Scope
from haiku_state.core.scope import apply as apply
from haiku_state.core.scope import bind as bind
from haiku_state.core.scope import init as init
from haiku_state.core.scope import lazy_init as lazy_init
from haiku_state.core.tracers import check_trace_level as check_trace_level
from haiku_state.core.tracers import current_trace as current_trace
from haiku_state.typing import Array as Array

_traceback_util.register_exclusion(_os.path.dirname(__file__))

if TYPE_CHECKING:
  from haiku_state.core import lift as lift
  from haiku_state.core.lift import custom_vjp as custom_vjp
  from haiku_state.core.lift import jit as jit
  from haiku_state.core.lift import jvp as jvp
  from haiku_state.core.lift import remat as remat
  from haiku_state.core.lift import remat_scan as remat_scan
  from haiku_state.core.lift import scan as scan
  from haiku_state.core.lift import vjp as vjp
  from haiku_state.core.lift import vmap as vmap
  from haiku_state.core.lift import while_loop as while_loop
else:
  __getattr__, __dir__, __all__ = _lazy.names_of(
    __name__,
    {
      'lift': """
        custom_vjp jit jvp remat remat_scan scan vjp vmap while_loop
      """,
    },
  )
