"""Takes dictionaries of odd names to linen's form and back.

`python -m tests.fuzz.names 3000` tells how many came back the same, and how many
were refused because a value and a module have one name.
"""

import collections
import random
import sys

from haiku_state import interop

PIECES = ['a', 'b', '~', '/', ':', '_0x', '_0xr', '7b7d_', '-', '_', '3a_']
PIECES += ['haiku:', 'params', 'é', '\n', '\0']


def drawn(rng: random.Random) -> dict:
  """Returns parameters or state by module and name."""

  def name():
    return ''.join(rng.choice(PIECES) for _ in range(rng.randrange(5)))

  return {
    name(): {name(): n for n in range(rng.randrange(1, 3))}
    for _ in range(rng.randrange(4))
  }


def run(count: int, seed: int = 0) -> collections.Counter:
  """Returns what became of so many dictionaries."""
  rng, results = random.Random(seed), collections.Counter()
  for _ in range(count):
    params, state = drawn(rng), drawn(rng)
    try:
      variables = interop.from_haiku(params, state)
    except ValueError as e:
      assert 'of a value and of a module' in str(e)
      results['refused'] += 1
      continue
    assert interop.to_haiku(variables) == (params, state), (params, state)
    results['same'] += 1
  return results


if __name__ == '__main__':
  print(dict(run(int(sys.argv[1]))))
