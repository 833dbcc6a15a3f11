"""
An LSTM that learns to write
============================

A recurrent network reads a text one character at a time, and guesses the next.
What it guesses well and what surprises it shows in the picture, with a text
that it wrote itself. Before it learns, its weights are those of the same model
in Haiku, and `compare` shows layer by layer that the two are one.

**A port of** Haiku's example of a character-level language model, an LSTM
trained on Shakespeare.

**What had to change.** `hk.LSTM` with `hk.dynamic_unroll` is `nn.RNN` around a
cell. Carry and output stand in another order, and Haiku adds one to the bias of
the forget gate where linen's has it inside; `layers.lstm` knows. To write, the
model has a second method, `step`, in place of a second transformed function.
The text is this project's license, unless another is given.

.. code-block:: bash

   python examples/lstm.py --text a_book.txt --steps 5000

Source: Hochreiter and Schmidhuber, "Long Short-Term Memory", 1997.
"""

from functools import partial

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
from showing import (
  LICENSE,
  above_zero,
  arguments,
  count_of,
  due,
  fraction,
  parameters,
  positive,
  read_text,
  save_picture,
  say,
  steps,
  text_path,
)

from haiku_state import interop
from haiku_state import linen as nn
from haiku_state.interop import layers
from haiku_state.training import train_state

# %%
# In Haiku
# --------


def haiku_model(x, hidden: int, outputs: int, dropout: float, train: bool):
  """Maps sequences of shape (batch, time, features), as Haiku users do."""
  x = hk.Linear(hidden, name='inputs')(x)
  core = hk.LSTM(hidden, name='lstm')
  state = core.initial_state(x.shape[0])
  x, _ = hk.dynamic_unroll(core, x, state, time_major=False)
  if train:
    x = hk.dropout(hk.next_rng_key(), dropout, x)
  return hk.Linear(outputs, name='outputs')(x)


# %%
# In linen
# --------
#
# Modules are made in `setup`, for two methods to use them: all of a sequence,
# and one step of it.


class SequenceModel(nn.Module):
  """The same in linen style.

  Attributes:
    hidden: the size of the state.
    outputs: the size of the output at each time.
    dropout: the rate of dropout in training.
  """

  hidden: int
  outputs: int
  dropout: float = 0.0

  def setup(self):
    self.inputs = nn.Dense(self.hidden)
    self.lstm = nn.OptimizedLSTMCell(self.hidden)
    self.rnn = nn.RNN(self.lstm)
    self.logits = nn.Dense(self.outputs)
    self.drop = nn.Dropout(self.dropout)

  def __call__(self, x, train: bool):
    x = self.rnn(self.inputs(x))
    return self.logits(self.drop(x, deterministic=not train))

  def step(self, carry, x):
    carry, x = self.lstm(carry, self.inputs(x))
    return carry, self.logits(x)


MAPPING = {
  'inputs': layers.linear('inputs'),
  # Haiku adds one to the forget gate; linen's bias has it inside.
  'lstm': layers.lstm('lstm'),
  'outputs': layers.linear('logits'),
}


# %%
# Reading
# -------


@partial(jax.jit, static_argnums=0)
def step(model, state, tokens, key):
  def loss_fn(params):
    logits = model.apply(
      {'params': params},
      jax.nn.one_hot(tokens[:, :-1], model.outputs),
      train=True,
      rngs={'dropout': jax.random.fold_in(key, state.step)},
    )
    return optax.softmax_cross_entropy_with_integer_labels(
      logits, tokens[:, 1:]
    ).mean()

  loss, grads = jax.value_and_grad(loss_fn)(state.params)
  return state.apply_gradients(grads=grads), loss / jnp.log(2)


def train(model, params, tokens, count, length, batch_size, learning_rate):
  """Returns the parameters, and the bits per character of each step."""
  tx = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adam(optax.cosine_decay_schedule(learning_rate, count)),
  )
  state = train_state.TrainState.create(
    apply_fn=model.apply, params=params, tx=tx
  )
  rng, losses = np.random.default_rng(0), []
  for i in steps(count):
    starts = rng.integers(len(tokens) - length, size=(batch_size, 1))
    batch = tokens[starts + np.arange(length + 1)]
    state, loss = step(model, state, batch, jax.random.key(1))
    losses.append(float(loss))
    if due(i, count):
      say(f'  step {i}: {losses[-1]:.3f} bits per character')
  return state.params, losses


# %%
# Writing
# -------
#
# The carry of the cell is all that is kept from one character to the next.


@partial(jax.jit, static_argnums=(0, 4))
def write(model, params, first, key, length, temperature):
  """Returns what the model writes, and the bits of each character, [length]."""
  carry = nn.OptimizedLSTMCell(model.hidden).initialize_carry(
    key, (model.hidden,)
  )

  def one(state, key):
    carry, token = state
    carry, logits = model.apply(
      {'params': params},
      carry,
      jax.nn.one_hot(token, model.outputs),
      method='step',
    )
    following = jax.random.categorical(key, logits / temperature)
    return (carry, following), (following, bits(logits, following))

  keys = jax.random.split(key, length)
  return jax.lax.scan(one, (carry, first), keys)[1]


def bits(logits, tokens):
  """Returns how surprising tokens are."""
  return optax.softmax_cross_entropy_with_integer_labels(
    logits, tokens
  ) / jnp.log(2)


def surprise(model, params, tokens):
  """Returns the bits of each token but the first of a text."""
  x = jax.nn.one_hot(tokens[None, :-1], model.outputs)
  logits = model.apply({'params': params}, x, train=False)
  return bits(logits[0], tokens[1:])


# %%
# What surprises it
# -----------------


def draw(figure, losses, texts):
  above, below = figure.subfigures(2, 1, height_ratios=(1, 2.2))
  axis = above.subplots()
  axis.plot(losses)
  axis.set(title='bits per character', xlabel='step')
  axes = below.subplots(len(texts), 1)
  for axis, (title, (text, surprises)) in zip(axes, texts.items()):
    sheet = draw_text(axis, text, np.asarray(surprises))
    axis.set_title(title)
  below.colorbar(sheet, ax=axes, shrink=0.8, label='bits')


def draw_text(axis, text, surprises, width=72):
  """Draws a text, each character on a ground as red as it is surprising."""
  rows = -(-len(text) // width)
  sheet = np.full(rows * width, np.nan)
  sheet[: len(text)] = surprises
  axis.axis('off')
  for i, character in enumerate(text):
    row, column = divmod(i, width)
    axis.text(
      column, row, character, family='monospace', ha='center', va='center'
    )
  return axis.imshow(
    sheet.reshape(rows, width), cmap='Reds', vmin=0, vmax=8, aspect='auto'
  )


# %%
# Run it
# ------


def main(argv=None):
  parser = arguments(__doc__, 'lstm.png', steps=1000)
  parser.add_argument('--text', type=text_path, default=LICENSE, help='to read')
  parser.add_argument(
    '--hidden', type=positive, default=128, help='features of the state'
  )
  parser.add_argument(
    '--length', type=count_of(2), default=64, help='characters read at once'
  )
  parser.add_argument(
    '--batch-size', type=positive, default=32, help='pieces of text of a step'
  )
  parser.add_argument(
    '--dropout', type=fraction, default=0.2, help='part of features left out'
  )
  parser.add_argument(
    '--learning-rate', type=above_zero, default=5e-3, help='of Adam'
  )
  parser.add_argument(
    '--temperature', type=above_zero, default=0.6, help='of what is written'
  )
  args = parser.parse_args(argv)
  text, alphabet, tokens = read_text(args.text, args.length)
  outputs = len(alphabet)

  reader = hk.transform(
    lambda x: haiku_model(x, args.hidden, outputs, 0.0, train=False)
  )
  model = SequenceModel(args.hidden, outputs, args.dropout)
  x = jax.nn.one_hot(tokens[None, : args.length], outputs)
  weights = reader.init(jax.random.key(0), x), {}
  result = interop.compare(
    reader,
    model,
    MAPPING,
    [x],
    weights=weights,
    linen_kwargs={'train': False},
    tolerance=1e-4,
  )
  say(str(result))

  params = interop.weights_from_haiku(*weights, MAPPING)[0]['params']
  say(f'{parameters(params)} parameters')
  params, losses = train(
    model,
    params,
    tokens,
    args.steps,
    args.length,
    args.batch_size,
    args.learning_rate,
  )
  written, of_written = write(
    model,
    params,
    tokens[0],
    jax.random.key(2),
    432,
    args.temperature,
  )
  said = ''.join(alphabet[token] for token in written)
  say(f'It writes:\n{text[0]}{said}')
  piece = tokens[:433]
  texts = {
    'how surprising the text is': (
      text[1:433],
      surprise(model, params, piece),
    ),
    'how surprising to itself is what it writes': (said, of_written),
  }
  save_picture(args.picture, (11, 6.5), draw, losses, texts)
  return result, losses, said


if __name__ == '__main__':
  main()
