"""Feeds `load_pickle` with files that were made to do harm.

`python -m tests.fuzz.pickles 20000` runs so many inputs, 500 to a process of
its own, and tells what did not end as it must: with plain values, or with the
documented error; without a crash, without a hang, with the process unchanged.
"""

import collections
import hashlib
import io
import pickle
import pickletools
import random
import signal
import struct
import subprocess
import sys
import types

import haiku as hk
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from haiku_state import _plain_arrays
from haiku_state.interop import _pickles
from haiku_state.interop.checkpoints import WeightsFileError

SECONDS = 20  # What one input may take; most take a millisecond.
SHARE = 500

_NAMES = [
  *_pickles._NAMES,
  'os.system',
  'builtins.eval',
  'builtins.getattr',
  'numpy.rec.recarray',
  'haiku_state.interop._pickles._jax_array',
  'copyreg._reconstructor',
]


def seeds() -> list[bytes]:
  """Returns pickles of all that Haiku's checkpoints hold."""
  arrays = {
    'w': np.ones((2, 3), np.float32),
    'f': np.ones((2, 2), order='F'),
    'j': jnp.ones((2, 3), jnp.bfloat16),
    'i': np.zeros((), ml_dtypes.int4),
    's': np.float32(3),
    'b': np.array([True, False]),
    'u': np.array(['a', 'bc']),
    'e': np.zeros((0, 3)),
    'big': np.arange(3, dtype='>i4'),
  }
  trees = [
    {'a/b': arrays, 'c': {'w': arrays['w']}},
    hk.data_structures.to_immutable_dict({'a': arrays}),
    collections.OrderedDict(a=arrays, b=[1, 2.5, 'x', None, (True, b'y')]),
    collections.defaultdict(dict, a={1: 2**70, -1: 1j}),
  ]
  return [pickle.dumps(x, p) for x in trees for p in range(6)]


def drawn(rng: random.Random, made: list[bytes]) -> bytes:
  """Returns one hostile input."""
  return rng.choice((_mutated, _mutated, _spliced, _opcodes))(rng, made)


def _mutated(rng, made):
  content = bytearray(rng.choice(made))
  for _ in range(rng.choice((1, 1, 1, 2, 9))):
    i = rng.randrange(len(content))
    match rng.randrange(4):
      case 0:
        content[i] = rng.randrange(256)
      case 1:
        del content[i : i + rng.randrange(1, 9)]
      case 2:
        content[i:i] = content[i : i + rng.randrange(1, 40)]
      case 3:
        content[i] ^= 1 << rng.randrange(8)
    if not content:
      break
  return bytes(content)


def _operations(content):
  """Returns the operations of a pickle, each as its bytes."""
  ends = [at for _, _, at in pickletools.genops(content)]
  ends.append(len(content))
  return [content[a:b] for a, b in zip(ends, ends[1:])]


def _spliced(rng, made):
  one, other = (_operations(rng.choice(made)) for _ in range(2))
  out = list(one)
  for _ in range(rng.randrange(1, 6)):
    i, j = rng.randrange(len(out)), rng.randrange(len(other))
    length = rng.randrange(1, 8)
    out[i : i + rng.randrange(3)] = other[j : j + length]
  return b''.join(out)


def _opcodes(rng, made):
  """Returns random operations with arguments that fit."""
  out = [b'\x80\x04(']
  for _ in range(rng.choice((3, 6, 12, 60))):
    out.append(_operation(rng))
  return b''.join(out) + b't.'  # Whatever is left is the value.


def _operation(rng):
  code = rng.choice(_CODES)
  text = rng.choice(
    ('a', 'latin1', 'C', 'f4', 'O', 'V8', '<', '>', 'U9999', '_mapping', 'S1')
  ).encode()
  number = rng.choice((0, 1, 2, 3, 8, 255))
  match code:
    case 'GLOBAL':
      name = rng.choice(_NAMES)
      return b'c' + name.replace('.', '\n').encode() + b'\n'
    case 'NAME':
      module, _, name = rng.choice(_NAMES).rpartition('.')
      return (
        b''.join(
          b'\x8c' + bytes([len(x)]) + x
          for x in (module.encode(), name.encode())
        )
        + b'\x93'
      )
    case 'TEXT':
      return b'\x8c' + bytes([len(text)]) + text
    case 'BYTES':
      return b'C' + bytes([number]) + rng.randbytes(number)
    case 'LONG':
      content = rng.randbytes(rng.choice((1, 8, 9, 200)))
      return b'\x8a' + bytes([len(content)]) + content
    case 'HUGE':
      return rng.choice((b'\x8e', b'\x96', b'\x8d')) + struct.pack(
        '<Q', rng.choice((2**62, 2**40, 2**31))
      )
    case (
      'DOUBLE'
    ):  # A tuple of itself twice: each makes the result twice as long.
      return b'q\x07h\x07\x86'
    case 'SHAPE':
      return b'J' + struct.pack('<i', rng.choice((-1, 2**31 - 1, 64)))
    case 'K' | 'h' | 'q':
      return code.encode() + bytes([number])
  return code.encode('latin1')


_CODES = [
  *('GLOBAL', 'NAME', 'TEXT', 'BYTES', 'LONG', 'HUGE', 'DOUBLE', 'SHAPE'),
  *('K', 'h', 'q', 'N', '\x88', '\x89', '(', '(', 't', '\x85', '\x86', '\x87'),
  *(']', '}', ')', 'l', 'd', 'a', 'e', 's', 'u', 'R', 'R', 'R', 'b', 'b'),
  *('\x81', '\x93', '\x94', '0', '2', 'Q', '\x8f', '\x92', 'GLOBAL', 'BYTES'),
]


def check(content: bytes) -> str:
  """Reads one input; returns what it gave. Raises if that may not be."""
  try:
    value = _pickles.read(io.BytesIO(content), len(content))
  except WeightsFileError as e:
    assert len(str(e)) < 1000, 'a text without end'
    return 'refused'
  stack = [value]
  while stack:
    x = stack.pop()
    assert type(x) in _PLAIN or isinstance(x, np.generic), type(x)
    if isinstance(x, np.ndarray):
      assert not x.dtype.hasobject and x.flags.aligned
      repr(x), x.tolist(), x.tobytes()
    stack.extend(x.values() if type(x) is dict else ())
    stack.extend(x if type(x) in (list, tuple) else ())
  return 'read'


_PLAIN = (
  *(np.ndarray, dict, list, tuple, str, bytes, bytearray),
  *(int, float, complex, bool, type(None)),
)


def fingerprint() -> str:
  """Returns what no input may change: our functions, and dtypes."""
  parts = []
  for module in (_pickles, _plain_arrays, np.lib.format):
    for name, x in sorted(vars(module).items()):
      if isinstance(x, types.FunctionType):
        parts.append((name, x.__defaults__, x.__kwdefaults__, x.__code__))
        parts.append(sorted(x.__dict__))
      elif isinstance(x, (int, str, float, frozenset)):
        parts.append((name, repr(x)))
  parts.append([(name, x.text, x.call) for name, x in _pickles._NAMES.items()])
  parts.append(
    [(n, str(d), d.itemsize) for n, d in _plain_arrays.ML_DTYPES.items()]
  )
  parts.append(sorted(sys.modules))
  return hashlib.sha256(repr(parts).encode()).hexdigest()


def run(count: int, seed: int) -> collections.Counter:
  """Runs inputs in this process."""
  made, results = seeds(), collections.Counter()
  for content in made:
    check(content)
  before = fingerprint()
  for number in range(count):
    content = drawn(random.Random(f'{seed}/{number}'), made)
    signal.alarm(SECONDS)
    try:
      results[check(content)] += 1
    except BaseException:
      print(f'seed {seed}, input {number}: {content!r}', file=sys.stderr)
      raise
    signal.alarm(0)
  assert fingerprint() == before, 'the process is not as it was'
  return results


def main() -> int:
  count = int(sys.argv[1])
  if len(sys.argv) > 2:
    print(*run(count, int(sys.argv[2])).elements(), sep='\n')
    return 0
  results, failed = collections.Counter(), 0
  for seed in range(0, count, SHARE):
    command = [sys.executable, '-X', 'faulthandler', '-m', __spec__.name]
    own = subprocess.run(
      [*command, str(min(SHARE, count - seed)), str(seed)],
      capture_output=True,
      text=True,
    )
    results.update(own.stdout.split())
    if own.returncode:
      failed += 1
      print(f'exit status {own.returncode}:\n{own.stderr[-2000:]}')
  print(dict(results), f'{failed} processes failed')
  return 1 if failed else 0


if __name__ == '__main__':
  sys.exit(main())
