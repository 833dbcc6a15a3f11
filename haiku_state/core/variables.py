"""Variables: values that a function of a scope can read and set by name.

A variables dict holds collections by name, each a nested dict whose levels are
the scopes and whose leaves are values::

  {
    'params': {'Dense_0': {'kernel': ..., 'bias': ...}},
    'batch_stats': {'BatchNorm_0': {'mean': ..., 'var': ...}},
  }
"""

from haiku_state.core.scope import Variable as Variable
