"""How the gallery runs the examples."""

import ast
import pathlib

EXAMPLES = pathlib.Path(__file__).parents[2] / 'examples'

# How many steps each example takes on the site, in the order of the gallery:
# enough for a picture, and few enough for a build of some minutes in all. The
# others follow, with as many as `OTHERS`.
STEPS = {
  'managing_parameters_and_state': 300,
  'digits': 100,
  'vae': 500,
  'characters': 100,
  'lstm': 200,
  'transformer': 200,
  'resnet': 20,
  'ensemble': 500,
  'seq2seq': 300,
  'actor_critic': 200,
  'averages_and_spectral_norm': 300,
  'looking_inside': 200,
  'alphafold_weights': 200,
  'old_program': 100,
}
OTHERS = 100


def is_shown(path: pathlib.Path) -> bool:
  """Says whether a file is an example: its docstring begins with a title."""
  return path.read_text().partition('\n====')[0].count('\n') == 1


def not_shown() -> str:
  """Returns a pattern of the files that the examples share."""
  names = [p.stem for p in EXAMPLES.rglob('*.py') if not is_shown(p)]
  return rf'(^|/)({"|".join(names)})\.py$'


def arguments(conf, script):
  """Returns what an example is given: few steps, and a picture to show only.

  Sphinx-gallery hides two names of a program from it, which the examples use.
  """
  path = pathlib.Path(script['src_file'])
  doc = ast.get_docstring(ast.parse(path.read_text()), clean=False)
  script['example_globals'].update(__doc__=doc, __file__=str(path))
  return ['--steps', str(STEPS.get(path.stem, OTHERS)), '--picture', '']


def place(file: str) -> tuple[int, str]:
  """Returns what the files of the gallery are sorted by."""
  name = pathlib.Path(file).stem
  order = list(STEPS)
  return (order.index(name) if name in STEPS else len(order), name)
