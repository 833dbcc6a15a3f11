"""Orbax, which comes with an extra.

Where it is installed it is imported, since programs that import the modules
above write `import orbax` and find `orbax.checkpoint`. Where it is not, or is
broken, who needs it is told.
"""

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
