"""A sequence model with an LSTM, in Haiku and in linen style, same weights.

Run it to see both side by side: `python examples/lstm.py`.

Source: Hochreiter and Schmidhuber, "Long Short-Term Memory", 1997.
"""

import haiku as hk
import jax

from haiku_state import interop
from haiku_state import linen as nn
from haiku_state.interop import layers


def haiku_model(x, hidden: int, outputs: int, dropout: float, train: bool):
  """Maps sequences of shape (batch, time, features), as Haiku users do."""
  x = hk.Linear(hidden, name='inputs')(x)
  core = hk.LSTM(hidden, name='lstm')
  state = core.initial_state(x.shape[0])
  x, _ = hk.dynamic_unroll(core, x, state, time_major=False)
  if train:
    x = hk.dropout(hk.next_rng_key(), dropout, x)
  return hk.Linear(outputs, name='outputs')(x)


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

  @nn.compact
  def __call__(self, x, train: bool):
    x = nn.Dense(self.hidden, name='inputs')(x)
    x = nn.RNN(nn.OptimizedLSTMCell(self.hidden, name='lstm'))(x)
    x = nn.Dropout(self.dropout, deterministic=not train)(x)
    return nn.Dense(self.outputs, name='outputs')(x)


MAPPING = {
  'inputs': layers.linear('inputs'),
  # Haiku adds one to the forget gate; linen's bias has it inside.
  'lstm': layers.lstm('lstm'),
  'outputs': layers.linear('outputs'),
}


def main():
  model = hk.transform(lambda x: haiku_model(x, 16, 3, 0.0, train=False))
  x = jax.random.normal(jax.random.key(0), (2, 10, 4))
  print(
    interop.compare(
      model,
      SequenceModel(16, 3),
      MAPPING,
      [x],
      linen_kwargs={'train': False},
    )
  )


if __name__ == '__main__':
  main()
