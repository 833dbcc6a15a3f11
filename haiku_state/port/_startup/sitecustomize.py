"""Gives the import hook to the Python processes that a program starts.

`haiku-state run` puts the folder of this file into `PYTHONPATH`, so that Python
imports it wherever a program starts another process: `multiprocessing`, pools
of workers, `subprocess`. It imports nothing but the standard library: a process
that asks neither for Flax nor for JAX pays nothing.
"""

import importlib.machinery
import importlib.util
import os
import sys

_FOLDER = os.path.dirname(os.path.abspath(__file__))


class Finder:
  """Installs the hook when it is first needed, and is gone from then on.

  Haiku imports Flax where it is installed. So the hook comes with Haiku, behind
  what Haiku has imported, which it hides. And it comes with JAX, since programs
  import what JAX has removed before they import Flax.
  """

  def find_spec(self, fullname, path=None, target=None):
    """Returns what the hook finds, or what came with it."""
    if fullname not in ('flax', 'haiku', 'haiku_state', 'jax'):
      return None
    hook = self._make_way()
    if fullname in sys.modules:
      module = sys.modules[fullname]
      spec = importlib.machinery.ModuleSpec(fullname, Loaded(module))  # type: ignore
      # By the module's own, Python would run it once more, as a second module.
      module.__spec__ = spec
      return spec
    return hook.find_spec(fullname, path, target)

  def find_distributions(self, context):
    """Returns what the hook finds."""
    if (context.name or '').lower() != 'flax':
      return ()
    return self._make_way().find_distributions(context)

  def _make_way(self):
    """Installs the hook in place of this, and returns it."""
    sys.meta_path.remove(self)
    if importlib.util.find_spec('haiku_state') is None:
      # The program was started in a folder from which it could be imported.
      sys.path.append(
        os.path.dirname(os.path.dirname(os.path.dirname(_FOLDER)))
      )
    from haiku_state.port import _hook

    _hook.install(os.environ.get('HAIKU_STATE_OLD_JAX') != 'False')
    hook = _hook.current()
    assert hook is not None
    return hook


class Loaded:
  """Loads a module that is there already, as it is."""

  def __init__(self, module):
    self.module = module
    self.spec = module.__spec__

  def create_module(self, spec):
    """Returns the module, on which import will put another `__spec__`."""
    return self.module

  def exec_module(self, module):
    """Puts its own back."""
    module.__spec__ = self.spec


def _run_the_next_one():
  """Runs the file of this name that stands behind this one, if there is one."""
  behind = [p for p in sys.path if os.path.abspath(p) != _FOLDER]
  spec = importlib.machinery.PathFinder.find_spec('sitecustomize', behind)
  if spec is not None and spec.loader is not None:
    module = importlib.util.module_from_spec(spec)
    sys.modules['sitecustomize'] = module
    spec.loader.exec_module(module)


if __name__ == 'sitecustomize':  # Not where it is only looked at.
  sys.meta_path.insert(0, Finder())
  _run_the_next_one()
