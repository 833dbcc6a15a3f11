"""
A program of 2021, run unchanged
================================

`programs/mnist_2021.py` trains a small network with the optimizers of
`flax.optim`, as programs and papers of its time do. Flax has had no `optim`
since version 0.6; under `haiku-state run` the program runs as it is, with no
Flax installed.

.. code-block:: bash

   haiku-state run examples/programs/mnist_2021.py --num_train_steps 100

**A port of** nothing: it is not ported. It is written after Flax's MNIST
example as it was in 2021, with what other programs of the time had: batch
statistics taken from the variables by `pop`, one optimizer for the kernels and
another for the rest (`MultiOptimizer` over `ModelParamTraversal`), a learning
rate for each step from `flax.training.lr_schedule`.

**What had to change.** Not a byte of it. What is on this page runs it from
Python, with `port.run_path`, which is what the command calls, and draws what
the program left in its folder.
"""

import pathlib
import tempfile

import numpy as np
from showing import (
  above_zero,
  arguments,
  load_digits_in_order,
  positive,
  save_picture,
  say,
)

from haiku_state import port

try:
  PROGRAM = pathlib.Path(__file__).parent / 'programs' / 'mnist_2021.py'
except NameError:  # In a notebook.
  PROGRAM = pathlib.Path('programs', 'mnist_2021.py')

# %%
# The program
# -----------
#
# Some of its lines tell its age, and are shown before it runs.

OLD = (
  'from flax',
  'optim.',
  'pop(',
  'create(',
  'optimizer.target',
  'apply_gradient',
)


def lines_of_its_time(program):
  """Returns the lines of a program that tell its age, with their numbers."""
  return [
    f'{number:4d}  {line}'
    for number, line in enumerate(program.read_text().splitlines(), 1)
    if any(word in line for word in OLD)
  ]


# %%
# Running it
# ----------
#
# The program has its own arguments, and writes a line of its log in each step:
# what it has written is there after Ctrl-C, too.


def run(count, batch_size, learning_rate):
  """Returns the log, [steps, 4], and what the program takes the digits for."""
  with tempfile.TemporaryDirectory() as folder:
    args = {
      'workdir': folder,
      'num_train_steps': count,
      'batch_size': batch_size,
      'learning_rate': learning_rate,
    }
    stopped = False
    try:
      port.run_path(PROGRAM, [f'--{k}={v}' for k, v in args.items()])
    except KeyboardInterrupt:
      stopped = True
    log = np.loadtxt(f'{folder}/log.csv', delimiter=',', ndmin=2)
    if stopped:
      say(f'Stopped after {len(log)} of {count} steps.')
    return log, np.load(f'{folder}/predicted.npy')


# %%
# What it learned
# ---------------
#
# The curves are from its log. The digits are some of those it had never seen,
# those that it takes for another first.


def draw(figure, log, predicted, side=6):
  _, rates, losses, accuracies = log.T
  left, right = figure.subfigures(1, 2)
  above, below = left.subplots(2, 1, sharex=True)
  above.plot(losses)
  above.set(title='loss', yscale='log')
  other = above.twinx()
  other.plot(rates, color='tab:orange')
  other.set_ylabel('learning rate', color='tab:orange')
  below.plot(accuracies)
  below.set(title='accuracy on digits not seen', xlabel='step')

  images, labels = (x[-len(predicted) :] for x in load_digits_in_order())
  order = np.argsort(predicted == labels, kind='stable')
  axes = right.subplots(side, side).flat
  for axis, i in zip(axes, order):
    is_right = predicted[i] == labels[i]
    axis.imshow(images[i], cmap='gray_r' if is_right else 'Reds')
    axis.set_title(
      predicted[i] if is_right else f'{labels[i]}, not {predicted[i]}',
      fontsize=8,
      color='black' if is_right else 'tab:red',
    )
  for axis in right.axes:
    axis.axis('off')


# %%
# Run it
# ------


def main(argv=None):
  parser = arguments(__doc__, 'old_program.png', steps=400)
  parser.add_argument(
    '--batch-size', type=positive, default=64, help='digits of a step'
  )
  parser.add_argument(
    '--learning-rate', type=above_zero, default=0.1, help='of Momentum'
  )
  args = parser.parse_args(argv)
  load_digits_in_order()  # To be told now if they are not there.
  say('\n'.join(lines_of_its_time(PROGRAM)))
  log, predicted = run(args.steps, args.batch_size, args.learning_rate)
  save_picture(args.picture, (11, 5.5), draw, log, predicted)
  return log


if __name__ == '__main__':
  main()
