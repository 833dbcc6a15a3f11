"""
Sequence to sequence: learning to add
=====================================

An encoder reads a question such as `734+58=` one character at a time; a
decoder begins with what the encoder remembers, and writes the answer. Nobody
tells them what a number is.

**A port of** Flax's "seq2seq" example, which is linen's encoder and decoder for
this task.

**What had to change.** The import lines. The example has its own loop of an
encoder with a mask for what is behind the end of a question; `nn.RNN` does
that, told the lengths. The decoder is still `nn.scan` over a module of its own,
which reads the right characters while it learns, and its own when it is asked.
The answer is written from its last digit, as it is by hand, where each digit
needs few of those before: that is learned sooner.

.. code-block:: bash

   python examples/seq2seq.py --digits 2

Source: Sutskever et al., "Sequence to Sequence Learning with Neural Networks",
2014.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from showing import (
  above_zero,
  arguments,
  count_of,
  due,
  parameters,
  positive,
  save_picture,
  say,
  steps,
)

from haiku_state import linen as nn
from haiku_state.training import train_state

# %%
# Questions and answers
# ---------------------
#
# Token 0 is the end; what is behind the end of a sequence is ends, too.

CHARACTERS = '.0123456789+='
END = 0


def make_questions(rng, count, digits):
  """Returns two numbers each, of 1 to `digits` digits, as often of each."""
  most = 10 ** rng.integers(1, digits + 1, size=(count, 2))
  return rng.integers(most)


def encoded(texts, length):
  """Returns tokens [count, length], and the lengths of the texts."""
  tokens = np.full((len(texts), length), END)
  for row, text in zip(tokens, texts):
    row[: len(text)] = [CHARACTERS.index(c) for c in text]
  return tokens, np.array([len(text) for text in texts])


def as_batch(numbers, digits):
  """Returns questions, their lengths, and answers from the last digit on."""
  questions = [f'{a}+{b}=' for a, b in numbers]
  answers = [str(a + b)[::-1] for a, b in numbers]
  # An answer may have one digit more, and has an end.
  return *encoded(questions, 2 * digits + 2), encoded(answers, digits + 2)[0]


def as_text(tokens):
  """Returns what an answer says, read from its first digit."""
  text = ''.join(CHARACTERS[token] for token in tokens)
  return text.split(CHARACTERS[END])[0][::-1]


# %%
# Encoder and decoder
# -------------------
#
# `nn.RNN` returns the carry of each sequence's last step, wherever that is. The
# decoder's carry is that, and the character before.


class DecoderStep(nn.Module):
  hidden: int
  teach: bool  # Whether the character before is the right one.

  @nn.compact
  def __call__(self, carry, right):
    state, before = carry
    x = nn.Embed(len(CHARACTERS), self.hidden)(before)
    state, x = nn.OptimizedLSTMCell(self.hidden)(state, x)
    logits = nn.Dense(len(CHARACTERS))(x)
    following = right if self.teach else logits.argmax(axis=-1)
    return (state, following), logits


class Seq2Seq(nn.Module):
  hidden: int

  @nn.compact
  def __call__(self, questions, lengths, answers, teach):
    x = nn.Embed(len(CHARACTERS), self.hidden)(questions)
    encoder = nn.RNN(nn.OptimizedLSTMCell(self.hidden), return_carry=True)
    state, _ = encoder(x, seq_lengths=lengths)
    Decoder = nn.scan(
      DecoderStep,
      variable_broadcast='params',
      split_rngs={'params': False},
      in_axes=1,
      out_axes=1,
    )
    first = jnp.full(len(questions), END)
    _, logits = Decoder(self.hidden, teach, name='decoder')(
      (state, first), answers
    )
    return logits


# %%
# Training
# --------
#
# What counts is each character of an answer, and its first end.


@jax.jit
def step(state, questions, lengths, answers):
  def loss_fn(params):
    logits = state.apply_fn(
      {'params': params}, questions, lengths, answers, True
    )
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, answers)
    ended = jnp.cumsum(answers == END, axis=1)
    return losses.mean(where=ended <= 1)

  loss, grads = jax.value_and_grad(loss_fn)(state.params)
  return state.apply_gradients(grads=grads), loss


@partial(jax.jit, static_argnums=0)
def answer(model, params, questions, lengths, answers):
  """Returns what the model answers; of the answers only the shape counts."""
  logits = model.apply(
    {'params': params}, questions, lengths, jnp.zeros_like(answers), False
  )
  return logits.argmax(axis=-1)


def is_right(said, answers):
  """Returns which answers are right up to their first end."""
  before_end = np.cumsum(answers == END, axis=1) <= 1
  return ((said == answers) | ~before_end).all(axis=1)


def train(hidden, digits, count, batch_size, learning_rate):
  """Returns a function that answers, the losses, and how much was right."""
  model, rng = Seq2Seq(hidden), np.random.default_rng(0)
  test = as_batch(make_questions(np.random.default_rng(1), 512, digits), digits)
  params = model.init(jax.random.key(0), *test, True)['params']
  say(f'{parameters(params)} parameters')
  tx = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adam(optax.cosine_decay_schedule(learning_rate, count)),
  )
  state = train_state.TrainState.create(
    apply_fn=model.apply, params=params, tx=tx
  )
  losses, rights = [], {}
  for i in steps(count):
    batch = as_batch(make_questions(rng, batch_size, digits), digits)
    state, loss = step(state, *batch)
    losses.append(float(loss))
    if due(i, count, 20):
      said = answer(model, state.params, *test)
      rights[i] = is_right(np.asarray(said), test[2]).mean()
      say(f'  step {i}: loss {losses[-1]:.4f}, {rights[i]:.1%} right')
  return partial(answer, model, state.params), losses, rights


# %%
# What it can add
# ---------------
#
# The numbers of the test were drawn anew; few of them were in the training.


def draw(figure, answers, digits, losses, rights):
  left, middle, right = figure.subplots(1, 3, width_ratios=(4, 3, 3))
  left.plot(losses, color='tab:blue')
  left.set(xlabel='step', yscale='log')
  left.set_ylabel('loss', color='tab:blue')
  other = left.twinx()
  other.plot(rights.keys(), rights.values(), 'o-', color='tab:orange')
  other.set(ylim=(0, 1.05))
  other.set_ylabel('right answers', color='tab:orange')

  rng = np.random.default_rng(2)
  numbers = make_questions(rng, 2000, digits)
  batch = as_batch(numbers, digits)
  said = np.asarray(answers(*batch))
  good = is_right(said, batch[2])
  sizes = np.array([[len(str(x)) - 1 for x in pair] for pair in numbers])
  shape = digits, digits
  counts, hits = np.zeros(shape), np.zeros(shape)
  np.add.at(counts, tuple(sizes.T), 1)
  np.add.at(hits, tuple(sizes.T), good)
  parts = hits / np.maximum(counts, 1)
  middle.imshow(parts, cmap='Greens', vmin=0, vmax=1)
  for (i, j), part in np.ndenumerate(parts):
    color = 'white' if part > 0.6 else 'black'
    middle.text(j, i, f'{part:.0%}', ha='center', va='center', color=color)
  middle.set_xticks(range(digits), range(1, digits + 1))
  middle.set_yticks(range(digits), range(1, digits + 1))
  middle.set(xlabel='digits of the second', ylabel='digits of the first')
  middle.set_title('right answers')

  right.axis('off')
  # Some mistakes, if there are any, among others.
  shown = [*np.flatnonzero(~good)[:3], *np.flatnonzero(good)[:12]][:12]
  for line, i in enumerate(sorted(shown)):
    a, b = numbers[i]
    right.text(
      *(0.05, 1 - line / 12),
      f'{a:>{digits}} + {b:>{digits}} = {as_text(said[i]):>{digits + 1}}'
      + ('' if good[i] else f'  not {a + b}'),
      family='monospace',
      va='top',
      color='black' if good[i] else 'tab:red',
    )


# %%
# Run it
# ------


def main(argv=None):
  parser = arguments(__doc__, 'seq2seq.png', steps=2500)
  parser.add_argument(
    '--digits', type=count_of(1, 9), default=3, help='of a number, at most'
  )
  parser.add_argument(
    '--hidden', type=positive, default=128, help='features of the states'
  )
  parser.add_argument(
    '--batch-size', type=positive, default=128, help='questions of a step'
  )
  parser.add_argument(
    '--learning-rate', type=above_zero, default=5e-3, help='of Adam'
  )
  args = parser.parse_args(argv)
  answers, losses, rights = train(
    args.hidden, args.digits, args.steps, args.batch_size, args.learning_rate
  )
  save_picture(
    args.picture, (12, 4), draw, answers, args.digits, losses, rights
  )
  return answers, losses


if __name__ == '__main__':
  main()
