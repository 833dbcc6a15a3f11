"""Type checkers say of the programs beside this what their comments say.

Each program is one that a user may write; it runs, but for what stands under
`TYPE_CHECKING`. `# shows: T` is the type that a checker reveals on its line,
without the modules of names; `# shows: T; mypy U` if mypy's differs. `# error: ...` are the errors on it: those whose
names begin with `report` are pyright's, the others mypy's. There are no others.
"""

import importlib.util
import json
import os
import pathlib
import re
import runpy
import subprocess
import sys

import pytest

import haiku_state

PROGRAMS = sorted((pathlib.Path(__file__).parent / 'programs').glob('*.py'))
# Where the package is: installed to be edited, checkers do not find it.
ROOT = pathlib.Path(haiku_state.__file__).parents[1]
MODES = ['pyright basic', 'pyright strict', 'mypy strict']

# A line of a program, and what is said of it.
Said = tuple[str, int, str]


def expected(checker: str) -> set[Said]:
  """Returns what the comments say that a checker finds."""
  found = set()
  for path in PROGRAMS:
    for number, line in enumerate(path.read_text().splitlines(), 1):
      kind, _, text = line.partition('  # ')[2].partition(': ')
      if kind == 'shows':
        theirs, _, mypys = text.partition('; mypy ')
        shown = mypys if mypys and checker == 'mypy' else theirs
        found.add((path.name, number, f'shows {shown}'))
      elif kind == 'error':
        found |= {
          (path.name, number, f'error {name}')
          for name in text.split()
          if name.startswith('report') == (checker == 'pyright')
        }
  return found


def without_modules(text: str) -> str:
  """Returns a type as it is written after `from ... import`."""
  return re.sub(r'\b(?:\w+\.)+(?=\w)', '', text)


def run(command: list[str]) -> str:
  env = dict(os.environ)
  if 'site-packages' not in ROOT.parts:  # There mypy finds it, and says so.
    env['MYPYPATH'] = str(ROOT)
  return subprocess.run(command, capture_output=True, text=True, env=env).stdout


def pyright(mode: str, folder: pathlib.Path) -> set[Said]:
  config = folder / 'pyrightconfig.json'
  config.write_text(
    json.dumps(
      {
        'include': [os.path.relpath(PROGRAMS[0].parent, folder)],
        'typeCheckingMode': mode,
        'extraPaths': [str(ROOT)],
        'reportUnusedExpression': 'none',
      }
    )
  )
  command = ['-m', 'pyright', '--outputjson', '--pythonpath', sys.executable]
  text = run([sys.executable, *command, '--project', str(config)])
  found = set()
  for said in json.loads(text)['generalDiagnostics']:
    place = pathlib.Path(said['file']).name, said['range']['start']['line'] + 1
    shown = re.fullmatch(r'Type of ".*" is "(.*)"', said['message'], re.DOTALL)
    if shown and said['severity'] == 'information':
      found.add((*place, f'shows {shown[1]}'))
    else:
      found.add((*place, f'error {said.get("rule", said["message"])}'))
  return found


def mypy(mode: str, folder: pathlib.Path) -> set[Said]:
  assert mode == 'strict'
  # What is a whole program to a user is one file here: `haiku_state` comes from
  # where it is installed, and errors in other packages are not the user's.
  options = ['--strict', '--no-error-summary', '--no-color-output']
  config = folder / 'mypy.ini'
  config.write_text('[mypy]\nfollow_imports = silent\n')
  options += [
    '--config-file',
    str(config),
    '--cache-dir',
    str(folder / 'cache'),
  ]
  options += ['--hide-error-context', '--no-pretty']
  text = run([sys.executable, '-m', 'mypy', *options, *map(str, PROGRAMS)])
  found = set()
  for line in text.splitlines():
    match = re.fullmatch(r'(.*\.py):(\d+): (\w+): (.*)', line)
    assert match, text
    place = pathlib.Path(match[1]).name, int(match[2])
    shown = re.fullmatch(r'Revealed type is "(.*)"', match[4])
    if shown:
      found.add((*place, f'shows {without_modules(shown[1])}'))
    elif match[3] == 'error':
      name = re.search(r'\[([\w-]+)\]$', match[4])
      found.add((*place, f'error {name[1] if name else match[4]}'))
  return found


CHECKERS = {'pyright': pyright, 'mypy': mypy}


@pytest.mark.parametrize('checker_and_mode', MODES)
def test_checker_says_what_the_programs_say(checker_and_mode, tmp_path):
  checker, mode = checker_and_mode.split()
  if importlib.util.find_spec(checker) is None:
    pytest.skip(f"{checker} is not installed: pip install 'haiku_state[dev]'")
  found = CHECKERS[checker](mode, tmp_path)
  wanted = expected(checker)
  found -= consequences(found, wanted)
  assert not wanted - found, 'it does not say: ' + listed(wanted - found)
  assert not found - wanted, 'it also says: ' + listed(found - wanted)


def consequences(found: set[Said], wanted: set[Said]) -> set[Said]:
  """Returns what is said because of an error: what is wrong is unknown, too."""
  wrong = {said[:2] for said in wanted if said[2].startswith('error')}
  return {
    said
    for said in found
    if said[:2] in wrong and said[2].startswith('error reportUnknown')
  }


def listed(said: set[Said]) -> str:
  return ''.join(f'\n  {file}:{n}: {what}' for file, n, what in sorted(said))


@pytest.mark.parametrize('path', PROGRAMS, ids=lambda path: path.stem)
def test_program_runs(path):
  runpy.run_path(str(path), {'reveal_type': lambda value: value})
