"""The parts of `haiku_state.linen.Module`."""

import os

from haiku_state import traceback_util

traceback_util.register_exclusion(os.path.dirname(__file__))
