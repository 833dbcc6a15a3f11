"""Linen-style modules and state for Haiku."""

from typing import TYPE_CHECKING

from haiku_state import _lazy

__version__ = '0.1.0'

if TYPE_CHECKING:
  from haiku_state import configurations as configurations
  from haiku_state import core as core
  from haiku_state import cursor as cursor
  from haiku_state import errors as errors
  from haiku_state import export as export
  from haiku_state import ids as ids
  from haiku_state import jax_utils as jax_utils
  from haiku_state import linen as linen
  from haiku_state import optim as optim
  from haiku_state import serialization as serialization
  from haiku_state import struct as struct
  from haiku_state import traceback_util as traceback_util
  from haiku_state import traverse_util as traverse_util
  from haiku_state import typing as typing
  from haiku_state.configurations import config as config
else:
  __getattr__, __dir__, __all__ = _lazy.names_of(
    __name__,
    {
      'configurations': 'config',
      'core': '',
      'cursor': '',
      'errors': '',
      'export': '',
      'ids': '',
      'jax_utils': '',
      'linen': '',
      'optim': '',
      'serialization': '',
      'struct': '',
      'traceback_util': '',
      'traverse_util': '',
      'typing': '',
    },
  )
