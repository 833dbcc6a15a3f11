"""What the examples share: arguments, progress, pictures and data.

Each example is run as a program, `python examples/NAME.py --steps 100`, and by
sphinx-gallery. An extra that is missing costs its part of the show, and is
named at the start.
"""

import argparse
import importlib.util
import pathlib
import signal
import sys

try:
  from tqdm import tqdm, trange

  say = tqdm.write
except ImportError:
  say = print

  def trange(count, **options):
    return range(count)


__all__ = [
  'LICENSE',
  'above_zero',
  'arguments',
  'count_of',
  'due',
  'fraction',
  'load_digits',
  'load_digits_in_order',
  'parameters',
  'plot_with_average',
  'positive',
  'read_text',
  'save_picture',
  'say',
  'seed',
  'steps',
  'text_path',
]

LICENSE = pathlib.Path(__file__).parents[1] / 'LICENSE'
INSTALL = "pip install '.[examples]'"
SHOWS = {'matplotlib': 'the picture', 'tqdm': 'the bar of progress'}

# --- Arguments ---------------------------------------------------------------


def arguments(doc, picture, steps):
  """Returns a parser that has `--steps` and `--picture`.

  Args:
    doc: the docstring of the example, which begins with its title; empty in the
      gallery.
    picture: where the picture goes, unless told otherwise.
    steps: how many steps of training there are, unless told otherwise.
  """
  parser = Parser(
    description=doc.strip().partition('\n')[0],
    formatter_class=argparse.ArgumentDefaultsHelpFormatter,
  )
  parser.add_argument(
    '--steps', type=positive, default=steps, help='how many steps to train'
  )
  parser.add_argument(
    '--picture',
    type=picture_path,
    default=picture,
    help="where the picture goes; '' draws it, and saves nothing",
  )
  return parser


class Parser(argparse.ArgumentParser):
  """A parser that says, once the arguments are right, what will be missing."""

  def parse_args(self, args=None, namespace=None):
    parsed = super().parse_args(args, namespace)
    for package, part in SHOWS.items():
      if not installed(package):
        say(f'Without {part}: {INSTALL} brings {package}.')
    return parsed


def installed(package):
  try:
    return importlib.util.find_spec(package) is not None
  except ValueError:  # None stands in its place in sys.modules.
    return False


def count_of(least, most=None):
  """Returns a type of argument: whole numbers of at least `least`."""
  words = f'a whole number of at least {least}'
  if most is not None:
    words += f', and at most {most}'

  def number(text):
    try:
      value = int(text)
    except ValueError:
      value = None
    if value is None or value < least or (most is not None and value > most):
      raise argparse.ArgumentTypeError(f'{text!r} is not {words}')
    return value

  return number


positive = count_of(1)
seed = count_of(0, 2**32 - 1)


def above_zero(text):
  """Returns a number above zero, such as a rate of learning."""
  value = as_float(text)
  # What is no number is not below infinity either.
  if not 0 < value < float('inf'):
    raise argparse.ArgumentTypeError(f'{text!r} is not a number above 0')
  return value


def fraction(text):
  """Returns a number from 0 to below 1, such as a rate of dropout."""
  value = as_float(text)
  if not 0 <= value < 1:
    raise argparse.ArgumentTypeError(
      f'{text!r} is not a number from 0 to below 1'
    )
  return value


def as_float(text):
  try:
    return float(text)
  except ValueError:
    return float('nan')


def picture_path(text):
  """Returns the path of a picture, or None for a picture that is not saved."""
  if not text:
    return None
  path = folder_of(pathlib.Path(text))
  if path.suffix not in ('.png', '.svg', '.pdf', '.jpg'):
    raise argparse.ArgumentTypeError(
      f'{text!r} does not end in .png, .svg, .pdf or .jpg'
    )
  return path


def folder_of(path):
  """Returns a path whose folder exists."""
  if not path.parent.is_dir():
    raise argparse.ArgumentTypeError(f'there is no folder {str(path.parent)!r}')
  if path.is_dir():
    raise argparse.ArgumentTypeError(f'{str(path)!r} is a folder')
  return path


def text_path(text):
  """Returns the path of a file that is there."""
  path = pathlib.Path(text)
  if not path.is_file():
    raise argparse.ArgumentTypeError(f'there is no file {text!r}')
  return path


# --- Progress ----------------------------------------------------------------


def steps(count):
  """Counts steps, with a bar, until Ctrl-C.

  The step in which Ctrl-C is pressed is the last one, and is finished, so that
  all that it changes is changed. A second Ctrl-C ends the program.

  Args:
    count: how many steps there are at most.

  Yields:
    The number of each step, from 0.
  """
  pressed = []

  def press(signum, frame):
    if pressed:
      raise KeyboardInterrupt
    pressed.append(signum)

  try:
    before = signal.signal(signal.SIGINT, press)
  except ValueError:  # Only the main thread is told of Ctrl-C.
    before = None
  try:
    # None: no bar where nobody watches it, as in a file.
    for i in trange(count, disable=None):
      yield i
      if pressed:
        say(f'Stopped after {i + 1} of {count} steps.')
        break
  finally:
    if before is not None:
      signal.signal(signal.SIGINT, before)


def due(i, count, times=10):
  """Returns whether to report of step `i`: some times, and at the end."""
  return i % max(count // times, 1) == 0 or i == count - 1


def parameters(params):
  """Returns how many numbers there are in a tree of parameters."""
  import jax

  return sum(leaf.size for leaf in jax.tree.leaves(params))


# --- Pictures ----------------------------------------------------------------


def save_picture(path, size, draw, *args):
  """Saves what `draw` draws, if matplotlib is there.

  Args:
    path: where the picture goes. None leaves it with pyplot, which shows it in
      notebooks and in the gallery.
    size: its width and height, in inches.
    draw: a function of the figure, and of the arguments that follow.
    *args: what is drawn.
  """
  if not installed('matplotlib'):
    return
  import matplotlib

  if 'matplotlib.pyplot' not in sys.modules:
    matplotlib.use('agg')  # A window is not needed, and may not be possible.
  from matplotlib import pyplot

  figure = pyplot.figure(figsize=size, layout='constrained')
  draw(figure, *args)
  if path is not None:
    figure.savefig(path, dpi=120)
    say(f'Saved {path}')


def plot_with_average(axis, values, width, color='tab:blue'):
  """Draws the values of all steps, and above them their moving average."""
  import numpy as np

  axis.plot(values, lw=0.6, alpha=0.4, color=color, label='each step')
  width = max(min(width, len(values)), 1)
  average = np.convolve(values, np.ones(width) / width, mode='valid')
  at = np.arange(len(average)) + width - 1
  axis.plot(at, average, color=color, label=f'average of {width}')


# --- Data --------------------------------------------------------------------


def load_digits():
  """Returns scikit-learn's handwritten digits, in an order drawn by lot.

  Returns:
    Images of shape [1797, 8, 8], from 0 to 1 and float32, and their labels.
  """
  import numpy as np

  images, labels = load_digits_in_order()
  order = np.random.default_rng(0).permutation(len(labels))
  return images[order], labels[order]


def read_text(path, length):
  """Reads a text whose white space is single spaces.

  Args:
    path: of a file in UTF-8.
    length: how many characters it must have more than.

  Returns:
    The text, its characters in order, and which of them each of the text is.
  """
  import numpy as np

  try:
    text = ' '.join(path.read_text(encoding='utf-8').split())
  except UnicodeDecodeError:
    raise SystemExit(f'{path} is no text in UTF-8') from None
  if len(text) <= length:
    raise SystemExit(
      f'{path} has {len(text)} characters, and is read {length} at once:'
      ' take a longer text, or a smaller --length'
    )
  alphabet = sorted(set(text))
  say(f'{len(text)} characters, {len(alphabet)} different')
  return text, alphabet, np.array([alphabet.index(c) for c in text])


def load_digits_in_order():
  """Returns the digits as they come, by writer."""
  try:
    from sklearn import datasets
  except ImportError:
    raise SystemExit(f'The digits come with scikit-learn: {INSTALL}') from None
  digits = datasets.load_digits()
  return (digits.images / 16).astype('float32'), digits.target
