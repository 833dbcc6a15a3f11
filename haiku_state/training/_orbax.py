"""Orbax, which comes with an extra.

Where it is installed it is imported, since programs that import the modules
above write `import orbax` and find `orbax.checkpoint`. Where it is not, or is
broken, who needs it is told.
"""

import contextlib
import re
import warnings
from collections.abc import Iterator

from absl import logging

try:
  import orbax.checkpoint as _  # noqa: F401
except Exception:  # Whatever is wrong with it is told by `import_orbax`.
  pass


def import_orbax():
  """Returns the module `orbax.checkpoint`.

  Raises:
    ImportError: it is not installed. The message names the extra.
  """
  try:
    import orbax.checkpoint
  except ImportError as error:
    raise ImportError(
      'Orbax checkpoints need the package orbax-checkpoint, which is not'
      " installed. Run `pip install '.[checkpoint]'` in a clone of haiku_state."
      ' To write checkpoints as single msgpack files, without Orbax, use'
      " haiku_state.config.update('flax_use_orbax_checkpointing', False)."
    ) from error
  return orbax.checkpoint


# What Orbax says of how it is called by this package: that programs which call
# this package cannot change.
_OF_THE_CALL = (
  r'ParamInfo\(.*\) created with ts_context=None|Sharding info not provided'
)
_OF_TRANSFORMATIONS = 'The transformations API will eventually be replaced'


@contextlib.contextmanager
def quiet(transforms: bool = False) -> Iterator[None]:
  """Keeps from users what Orbax says of calls that are not theirs.

  Args:
    transforms: whether the user has asked for transformations.
  """
  words = (
    _OF_THE_CALL if transforms else f'{_OF_THE_CALL}|{_OF_TRANSFORMATIONS}'
  )

  def is_for_users(record) -> bool:
    return re.match(words, record.getMessage()) is None

  logger = logging.get_absl_logger()
  logger.addFilter(is_for_users)
  try:
    with warnings.catch_warnings():
      warnings.filterwarnings('ignore', words)
      yield
  finally:
    logger.removeFilter(is_for_users)
