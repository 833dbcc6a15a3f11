"""The documented programs, from the text of the document itself."""

import pathlib
import re
import textwrap

HERE = pathlib.Path(__file__).resolve().parent
COPY = HERE / 'data' / 'managing_parameters_and_state.rst'
ORIGINAL = (
  HERE.parents[1] / 'shared/documents/managing_parameters_and_state.rst'
)

# The only changes that are made to a program.
IMPORT_LINES = {
  'from flax import linen as nn': 'from haiku_state import linen as nn',
  'from flax import optim': 'from haiku_state import optim',
}

_DIRECTIVE = re.compile(r'^\.\. test(setup|code)::\n((?:[ \t].*\n|\n)+)', re.M)


def programs() -> list[list[str]]:
  """Returns the programs of the document, as lists of blocks.

  A `testsetup` block begins a program, `testcode` blocks go on with it.
  """
  found: list[list[str]] = []
  for kind, body in _DIRECTIVE.findall(COPY.read_text() + '\n'):
    if kind == 'setup':
      found.append([])
    found[-1].append(textwrap.dedent(body))
  return found


def ported(block: str, lines: dict[str, str]) -> str:
  """Returns a block with some of its lines replaced."""
  return '\n'.join(lines.get(line, line) for line in block.split('\n'))


def run(
  blocks: list[str],
  lines: dict[str, str] = IMPORT_LINES,
  namespace: dict | None = None,
) -> dict:
  """Runs blocks one after the other and returns their namespace."""
  if namespace is None:
    namespace = {'__name__': 'document'}
  for number, block in enumerate(blocks):
    code = compile(ported(block, lines), f'{COPY.name}[{number}]', 'exec')
    exec(code, namespace)
  return namespace
