"""The commands `haiku-state run` and `haiku-state port`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from haiku_state.port import _documents, _run


def main(argv: Sequence[str] | None = None) -> int:
  """It runs a command.

  Args:
    argv: the arguments, by default those of the process.

  Returns:
    The exit status: 0 if all is well, 1 if something was found, 2 if the
    arguments or a file cannot be used.
  """
  args = _parser().parse_args(argv)
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
  commands = parser.add_subparsers(required=True, metavar='COMMAND')
  _add_run(commands)
  return parser


def _add_run(commands) -> None:
  parser = commands.add_parser(
    'run',
    help='run a program written for Flax as it is',
    description=(
      'Runs a program written for Flax as it is: `import flax` gives the'
      ' modules of haiku_state. FILE is a script, or a document (.rst, .txt,'
      ' .md, .ipynb) whose blocks run in order in one namespace.'
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
    '-m', dest='module', action='store_true', help='FILE is a module'
  )
  parser.add_argument('file', metavar='FILE')
  parser.add_argument('args', nargs=argparse.REMAINDER, metavar='ARGS')
  parser.set_defaults(command=_do_run)


def _do_run(args: argparse.Namespace) -> int:
  run = _run.run_module if args.module else _run.run_path
  return run(args.file, args.args, args.frozen)
