"""The commands, as `python -m haiku_state`."""

import sys

from haiku_state.port._cli import main

if __name__ == '__main__':
  sys.exit(main())
