"""A decoder of any size, as a loop over its layers and as a scan with remat."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import optax

from benchmarks.forms import Program, haiku_program, linen_program


@dataclasses.dataclass(frozen=True)
class Size:
  """The sizes of a decoder: with 12 to 96 layers, 2 to 15 billion parameters."""

  layers: int = 12
  width: int = 3584
  heads: int = 28
  vocabulary: int = 32_000
  length: int = 512


def programs(size: Size, scanned: bool, library: str) -> Program:
  """Returns the decoder in one library.

  Args:
    size: the sizes.
    scanned: whether the layers are a scan with remat, or a loop.
    library: 'haiku_state', 'flax.linen' or 'Haiku'.
  """
  if library == 'Haiku':
    return haiku_program(functools.partial(_haiku, size, scanned))
  if library == 'haiku_state':
    from haiku_state import linen as nn
  else:
    from flax import linen as nn
  return linen_program(_linen(nn, size, scanned))


def _linen(nn: Any, size: Size, scanned: bool) -> Any:
  class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
      y = nn.LayerNorm()(x)
      mask = nn.make_causal_mask(y[..., 0])
      x = x + nn.MultiHeadDotProductAttention(size.heads)(y, mask=mask)
      y = nn.gelu(nn.Dense(4 * size.width)(nn.LayerNorm()(x)))
      return x + nn.Dense(size.width)(y), None

  class Decoder(nn.Module):
    @nn.compact
    def __call__(self, tokens):
      x = nn.Embed(size.vocabulary, size.width)(tokens)
      if scanned:
        x, _ = nn.scan(
          nn.remat(Block, prevent_cse=False),
          variable_axes={'params': 0},
          split_rngs={'params': True},
          length=size.layers,
        )()(x, None)
      else:
        for _ in range(size.layers):
          x, _ = Block()(x, None)
      return nn.Dense(size.vocabulary)(nn.LayerNorm()(x))

  return Decoder()


def _haiku(size: Size, scanned: bool, tokens: jax.Array) -> jax.Array:
  norm = functools.partial(hk.LayerNorm, -1, True, True)

  def block(x):
    init = hk.initializers.VarianceScaling(1.0)
    y = norm()(x)
    attention = hk.MultiHeadAttention(
      size.heads,
      size.width // size.heads,
      w_init=init,
      model_size=size.width,
    )
    length = x.shape[-2]
    mask = jnp.tril(jnp.ones((1, 1, length, length)))
    x = x + attention(y, y, y, mask=mask)
    y = jax.nn.gelu(hk.Linear(4 * size.width)(norm()(x)))
    return x + hk.Linear(size.width)(y)

  x = hk.Embed(size.vocabulary, size.width)(tokens)
  if scanned:
    x = hk.layer_stack(size.layers)(hk.remat(block))(x)
  else:
    for _ in range(size.layers):
      x = block(x)
  return hk.Linear(size.vocabulary)(norm()(x))


def train_step(program: Program) -> tuple[Any, Any]:
  """Returns the optimizer's `init`, and a step of training.

  The step takes variables, the optimizer's state and tokens.
  """
  optimizer = optax.adam(1e-3)

  def step(variables, opt_state, tokens):
    def loss(variables):
      logits, _ = program.apply(variables, tokens[:, :-1])
      losses = optax.softmax_cross_entropy_with_integer_labels(
        logits, tokens[:, 1:]
      )
      return losses.mean()

    grads = jax.grad(loss)(variables)
    updates, opt_state = optimizer.update(grads, opt_state, variables)
    return optax.apply_updates(variables, updates), opt_state

  return optimizer.init, step
