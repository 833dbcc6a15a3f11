"""What errors teach, and what options do: `haiku-state explain`."""

from __future__ import annotations

import difflib
import inspect

from haiku_state import configurations, errors


def explain(name: str) -> str:
  """Returns the lesson of an error class, or what an option does.

  Args:
    name: the name of a class of `haiku_state.errors`, or of an option of
      `haiku_state.config`; dotted, as messages end with it, or bare.

  Raises:
    LookupError: there is no such name. The message has names like it.

  >>> print(explain('haiku_state.errors.InvalidRngError').splitlines()[2])
  A key is missing, of the wrong kind, or cannot be drawn.
  """
  lessons = _lessons()
  for full, lesson in lessons.items():
    if name in (full, full.rpartition('.')[2]):
      return f'{full}\n\n{lesson}'
  known = {key: full for full in lessons for key in (full, full.split('.')[-1])}
  close = difflib.get_close_matches(name, known, n=3)
  like = dict.fromkeys(known[key] for key in close)
  raise LookupError(
    f'there is no error and no option of the name {name!r}.'
    + (f' Names like it: {", ".join(like)}.' if like else '')
    + ' `haiku-state explain` prints all names.'
  )


def overview() -> str:
  """Returns all names, each with the first line of its lesson."""
  return '\n'.join(
    f'{full}\n  {lesson.splitlines()[0]}' for full, lesson in _lessons().items()
  )


def _lessons() -> dict[str, str]:
  """Returns what there is to explain, by dotted name."""
  lessons = {}
  for cls in vars(errors).values():
    if inspect.isclass(cls) and issubclass(cls, errors.FlaxError):
      lessons[f'{errors.__name__}.{cls.__name__}'] = inspect.getdoc(cls) or ''
  for holder in vars(configurations).values():
    if isinstance(holder, configurations.FlagHolder):
      lessons[f'haiku_state.config.{holder.name}'] = _of_option(holder)
  return lessons


def _of_option(holder: configurations.FlagHolder) -> str:
  assert holder.__doc__ is not None
  help = holder.__doc__.partition('\n\n')[2]
  return (
    f'{help}\n\nIt is {holder.value}. In a program: haiku_state.config.update('
    f'{holder.name!r}, ...). In the environment, before the import:'
    f' {holder.name.upper()}=...'
  )
