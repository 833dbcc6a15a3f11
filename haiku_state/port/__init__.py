"""Moving a program written for Flax over: run it as it is, or rewrite it.

On the command line: `haiku-state run FILE` and `haiku-state port PATH`; and
`haiku-state explain NAME`, for what an error says.
"""

from haiku_state.port._cli import main as main
from haiku_state.port._hook import install as install
from haiku_state.port._hook import installed as installed
from haiku_state.port._hook import uninstall as uninstall
from haiku_state.port._names import NAMES as NAMES
from haiku_state.port._names import Name as Name
from haiku_state.port._run import run_module as run_module
from haiku_state.port._run import run_path as run_path
