"""The commands `haiku-state run`, `port` and `explain`."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from haiku_state.port import _documents, _explain, _names, _port, _rewrite, _run


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a command.

  >>> from haiku_state import port
  >>> port.main(['explain', 'flax_fix_rng_separator'])
  haiku_state.config.flax_fix_rng_separator
  ...
  0

  Args:
    argv: the arguments, by default those of the process. The process is then
      the program's that is run, and stays so when it ends: for its threads, and
      for what it has registered with `atexit`.

  Returns:
    The exit status: 0 if all is well, 1 if something was found, 2 if the
    arguments or a file cannot be used.
  """
  args = _parser().parse_args(argv)
  args.owns_process = argv is None
  try:
    return args.command(args)
  except _documents.DocumentError as e:
    print(f'haiku-state: {e}', file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog='haiku-state',
    description='Moves programs written for Flax onto haiku_state.',
  )
  parser.add_argument(
    '--version',
    action='version',
    version=f'haiku_state {importlib.import_module(_names.OURS).__version__}',
  )
  commands = parser.add_subparsers(required=True, metavar='COMMAND')
  _add_run(commands)
  _add_port(commands)
  _add_explain(commands)
  return parser


def _add_run(commands) -> None:
  parser = commands.add_parser(
    'run',
    usage=(
      'haiku-state run [--dicts | --frozen] [--no-old-jax] FILE [ARGS ...]\n'
      '       haiku-state run [--dicts | --frozen] [--no-old-jax] -m MODULE'
      ' [ARGS ...]'
    ),
    help='run a program written for Flax as it is',
    description=(
      'Runs a program written for Flax as it is: `import flax` gives the'
      ' modules of haiku_state, and names that JAX has removed, such as'
      ' jax.tree_map, are there again where they are small. FILE is a script,'
      ' or a document (.rst, .txt, .md, .ipynb) whose blocks run in order in one'
      ' namespace, or - for the standard input.'
    ),
  )
  kind = parser.add_mutually_exclusive_group()
  kind.add_argument(
    '--dicts',
    dest='frozen',
    action='store_false',
    default=None,
    help='init and apply return plain dicts, as in Flax since 2023',
  )
  kind.add_argument(
    '--frozen',
    dest='frozen',
    action='store_true',
    default=None,
    help='init and apply return FrozenDicts, as in Flax before',
  )
  parser.add_argument(
    '--no-old-jax',
    dest='old_jax',
    action='store_false',
    help='leave JAX as it is, without the names that it has removed',
  )
  parser.add_argument(
    '-m', dest='module', action='store_true', help='FILE is a module'
  )
  # One argument, so that an error names what is missing, and nothing more.
  parser.add_argument('program', nargs=argparse.REMAINDER, metavar='FILE')
  parser.set_defaults(command=_do_run, parser=parser)


def _do_run(args: argparse.Namespace) -> int:
  if not args.program:
    args.parser.error('the name of a program is missing: FILE, or -m MODULE')
  target, *rest = args.program
  if args.owns_process:
    run = _run.start_module if args.module else _run.start_path
  else:
    run = _run.run_module if args.module else _run.run_path
  return run(target, rest, args.frozen, old_jax=args.old_jax)


def _add_port(commands) -> None:
  parser = commands.add_parser(
    'port',
    help='rewrite the import lines of programs written for Flax',
    description=(
      'Rewrites import lines of programs (.py, .ipynb) and of documents (.rst,'
      ' .md) from flax to haiku_state, and reports each name that is missing or'
      ' behaves otherwise. Without an option it shows the change as a diff.'
    ),
    epilog=(
      'Exit status: 0 all is well; 1 a name is missing, or, with --check, a'
      ' file would change; 2 a file cannot be used.'
    ),
  )
  kind = parser.add_mutually_exclusive_group()
  kind.add_argument(
    '--diff', action='store_true', help='show the change, write nothing'
  )
  kind.add_argument(
    '--write', action='store_true', help='replace the files that change'
  )
  kind.add_argument(
    '--check', action='store_true', help='only name the files that would change'
  )
  parser.add_argument(
    '--modernize',
    action='store_true',
    help='also rewrite names that JAX has removed, such as jax.tree_map',
  )
  parser.add_argument(
    '--follow-links',
    action='store_true',
    help='also port files outside of a folder to which links in it lead',
  )
  parser.add_argument('paths', nargs='+', metavar='PATH')
  parser.set_defaults(command=_do_port)


def _do_port(args: argparse.Namespace) -> int:
  status = 0
  changed = 0
  packages = set()
  left: list = []
  paths = list(_port.files_in(args.paths, args.follow_links, left))
  for link in left:
    print(f'{link}: left, as it leads out of the folder (see --follow-links).')
  for path in paths:
    try:
      ported = _port.port(path, args.modernize)
      if ported.after != ported.before:
        _show(ported, args)
        changed += 1
      packages.add(ported.package)
    except (_documents.DocumentError, OSError) as e:
      # The others are no worse for it.
      print(f'haiku-state: {e}', file=sys.stderr)
      status = 2
      continue
    except ImportError as e:  # libcst is an extra.
      print(f'haiku-state: {e}', file=sys.stderr)
      return 2
    for where, finding in ported.findings:
      print(f'{where}: {finding.name} {finding.kind}. {finding.advice}')
      if finding.missing:
        status = max(status, 1)
  for package in sorted(packages - {None}):
    print(
      f'{package}: the package expects plain dicts. In the program that uses it'
      f' write:\n{_rewrite.dicts_lines()}'
    )
  done = 'changed' if args.write else 'to change'
  print(f'haiku-state port: {changed} of {len(paths)} files {done}.')
  if args.check and changed:
    status = max(status, 1)
  return status


def _show(ported: _port.Ported, args: argparse.Namespace) -> None:
  if args.write:
    _port.write(ported)
    print(f'{ported.path}: changed')
  elif args.check:
    print(f'{ported.path}: would change')
  else:
    print(ported.diff(), end='')


def _add_explain(commands) -> None:
  parser = commands.add_parser(
    'explain',
    help='print the lesson of an error, or what an option does',
    description=(
      'Prints the lesson of an error by the name at the end of its message, or'
      ' what an option of haiku_state.config does. Without NAME it prints all'
      ' names.'
    ),
    epilog='Exit status: 0 all is well; 2 there is no such name.',
  )
  parser.add_argument('name', metavar='NAME', nargs='?')
  parser.set_defaults(command=_do_explain)


def _do_explain(args: argparse.Namespace) -> int:
  if args.name is None:
    print(_explain.overview())
    return 0
  try:
    print(_explain.explain(args.name))
  except LookupError as e:
    print(f'haiku-state: {e.args[0]}', file=sys.stderr)
    return 2
  return 0
