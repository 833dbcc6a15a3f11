"""
AlphaFold-style weights in a linen module
=========================================

AlphaFold's parameters are published as one npz file, whose names are those of
its Haiku modules: `alphafold/.../left_projection//weights`. Here a small
network of its kind is made and trained in Haiku, to fold chains in the plane;
its weights are written as such a file, and read into a module written in linen.
Both then say the same.

**A port of** the core of AlphaFold's Evoformer, its pair representation and the
triangle updates, from Haiku to linen: small, and with a file that this program
makes, since the published one is large.

**What had to change.** The linen modules bear the names that Haiku's had, so
that the tree needs no table: `checkpoints.load_npz` reads it,
`interop.from_haiku` nests it, and three leaves have another name in linen,
`weights`, `scale` and `offset`. The loop over blocks of the same kind,
`hk.layer_stack`, is `nn.scan`: both keep the weights of all blocks in one
array.

.. code-block:: bash

   python examples/alphafold_weights.py --blocks 4

Source: Jumper et al., "Highly accurate protein structure prediction with
AlphaFold", 2021, supplementary information, 1.6.
"""

import pathlib
import tempfile
from typing import NamedTuple

import haiku as hk
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

from haiku_state import interop
from haiku_state import linen as nn
from haiku_state.interop import checkpoints

# %%
# Chains
# ------
#
# A residue of each kind bends the chain by an angle of its own. The network
# sees the kinds, and is asked how far apart any two residues are.

BENDS = jnp.array([-1.0, -0.5, 0.0, 0.5, 1.0])
KINDS = len(BENDS)


class Config(NamedTuple):
  channels: int  # Of the pair representation.
  blocks: int
  near: int = 8  # The largest distance along the chain that is told apart.


def chains(key, count, length):
  """Returns kinds [count, length], and distances [count, length, length]."""
  kinds = jax.random.randint(key, (count, length), 0, KINDS)
  angles = jnp.cumsum(BENDS[kinds], axis=1)
  moves = jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=-1)
  places = jnp.cumsum(moves, axis=1)
  apart = places[:, :, None] - places[:, None]
  return kinds, jnp.sqrt((apart**2).sum(axis=-1) + 1e-6)


def places_along(length, near):
  """Returns distances along the chain, one-hot [length, length, n]."""
  along = jnp.arange(length)[:, None] - jnp.arange(length)
  return jax.nn.one_hot(jnp.clip(along, -near, near) + near, 2 * near + 1)


# %%
# As AlphaFold has it
# -------------------
#
# Its own layers, on Haiku's: a `Linear` whose leaves are called `weights` and
# `bias`. Each pair of residues learns from the triangles of which it is a side.


class Linear(hk.Module):
  def __init__(self, size, name):
    super().__init__(name)
    self.size = size

  def __call__(self, x):
    shape = x.shape[-1], self.size
    init = hk.initializers.VarianceScaling(1.0)
    weights = hk.get_parameter('weights', shape, init=init)
    return x @ weights + hk.get_parameter('bias', shape[1:], init=jnp.zeros)


def haiku_norm(x, name):
  return hk.LayerNorm(-1, True, True, name=name)(x)


class TriangleMultiplication(hk.Module):
  """A gated product over the third corner of all triangles."""

  def __call__(self, pair):
    size = pair.shape[-1]
    x = haiku_norm(pair, 'layer_norm_input')
    left = Linear(size, 'left_projection')(x)
    left *= jax.nn.sigmoid(Linear(size, 'left_gate')(x))
    right = Linear(size, 'right_projection')(x)
    right *= jax.nn.sigmoid(Linear(size, 'right_gate')(x))
    out = jnp.einsum('...ikc,...kjc->...ijc', left, right) / pair.shape[-2]
    out = Linear(size, 'output_projection')(
      haiku_norm(out, 'center_layer_norm')
    )
    return out * jax.nn.sigmoid(Linear(size, 'gating_linear')(x))


class EvoformerIteration(hk.Module):
  def __call__(self, pair):
    pair += TriangleMultiplication(name='triangle_multiplication')(pair)
    x = haiku_norm(pair, 'transition_norm')
    x = jax.nn.relu(Linear(2 * pair.shape[-1], 'transition_1')(x))
    return pair + Linear(pair.shape[-1], 'transition_2')(x)


class AlphaFold(hk.Module):
  def __init__(self, config, name='alphafold'):
    super().__init__(name)
    self.config = config

  def __call__(self, kinds):
    channels, blocks, near = self.config
    one_hot = jax.nn.one_hot(kinds, KINDS)
    pair = Linear(channels, 'left_single')(one_hot)[..., :, None, :]
    pair += Linear(channels, 'right_single')(one_hot)[..., None, :, :]
    along = places_along(kinds.shape[-1], near)
    pair += Linear(channels, 'pair_activations')(along)

    @hk.layer_stack(blocks)
    def evoformer(pair):
      return EvoformerIteration(name='evoformer_iteration')(pair)

    pair = haiku_norm(evoformer(pair), 'final_norm')
    pair = Linear(1, 'distances')(pair + pair.swapaxes(-2, -3))[..., 0]
    return jax.nn.softplus(pair)


# %%
# The same in linen
# -----------------
#
# Each module is named as Haiku's. Of linen's own names only those of classes
# remain.


def linen_norm(name):
  # Haiku's epsilon, and its way to compute the variance.
  return nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name=name)


class LinenTriangles(nn.Module):
  @nn.compact
  def __call__(self, pair):
    size = pair.shape[-1]

    def gated(side):
      gate = nn.sigmoid(nn.Dense(size, name=f'{side}_gate')(x))
      return gate * nn.Dense(size, name=f'{side}_projection')(x)

    x = linen_norm('layer_norm_input')(pair)
    out = jnp.einsum('...ikc,...kjc->...ijc', gated('left'), gated('right'))
    out = linen_norm('center_layer_norm')(out / pair.shape[-2])
    out = nn.Dense(size, name='output_projection')(out)
    return out * nn.sigmoid(nn.Dense(size, name='gating_linear')(x))


class LinenIteration(nn.Module):
  @nn.compact
  def __call__(self, pair, _):
    pair += LinenTriangles(name='triangle_multiplication')(pair)
    x = linen_norm('transition_norm')(pair)
    x = nn.relu(nn.Dense(2 * pair.shape[-1], name='transition_1')(x))
    return pair + nn.Dense(pair.shape[-1], name='transition_2')(x), None


class LinenAlphaFold(nn.Module):
  config: Config

  @nn.compact
  def __call__(self, kinds):
    channels, blocks, near = self.config
    one_hot = jax.nn.one_hot(kinds, KINDS)
    pair = nn.Dense(channels, name='left_single')(one_hot)[..., :, None, :]
    pair += nn.Dense(channels, name='right_single')(one_hot)[..., None, :, :]
    along = places_along(kinds.shape[-1], near)
    pair += nn.Dense(channels, name='pair_activations')(along)

    Evoformer = nn.scan(
      LinenIteration,
      variable_axes={'params': 0},
      split_rngs={'params': True},
      length=blocks,
    )
    pair, _ = Evoformer(name='evoformer_iteration')(pair, None)

    pair = linen_norm('final_norm')(pair)
    pair = nn.Dense(1, name='distances')(pair + pair.swapaxes(-2, -3))
    return nn.softplus(pair[..., 0])


# %%
# The file, and the way into linen
# --------------------------------
#
# `load_npz` gives Haiku's two levels, `scope` and `name`. The scopes become the
# tree of linen's modules; only leaves have other names, and the level that
# `hk.layer_stack` puts between is left out.

LEAVES = {
  'weights': 'kernel',
  'bias': 'bias',
  'scale': 'scale',
  'offset': 'bias',
}
STACK = '__layer_stack_no_per_layer/'


def read(path):
  """Returns the variables of `LinenAlphaFold` from an AlphaFold-style file."""
  params = {
    scope.replace(STACK, ''): {LEAVES[k]: v for k, v in leaves.items()}
    for scope, leaves in checkpoints.load_npz(path).items()
  }
  return interop.from_haiku(params, {}, root='alphafold')


def tell_names(path, most=8):
  with np.load(path) as file:
    for name in file.files[:most]:
      say(f'  {name} {file[name].shape}')
    if len(file.files) > most:
      say(f'  and {len(file.files) - most} more')


# %%
# Training, in Haiku
# ------------------


def train(f, length, count, batch_size, learning_rate):
  """Returns the parameters, and the error of each step."""
  kinds, _ = chains(jax.random.key(0), 1, length)
  params = f.init(jax.random.key(1), kinds)
  say(f'{parameters(params)} parameters')
  tx = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adam(optax.cosine_decay_schedule(learning_rate, count)),
  )

  @jax.jit
  def step(params, opt, key):
    kinds, distances = chains(key, batch_size, length)

    def loss_fn(params):
      return jnp.abs(f.apply(params, None, kinds) - distances).mean()

    loss, grads = jax.value_and_grad(loss_fn)(params)
    updates, opt = tx.update(grads, opt)
    return optax.apply_updates(params, updates), opt, loss

  opt, losses = tx.init(params), []
  for i in steps(count):
    params, opt, loss = step(params, opt, jax.random.key(i + 2))
    losses.append(float(loss))
    if due(i, count):
      say(f'  step {i}: distances are off by {losses[-1]:.3f} on average')
  return params, losses


# %%
# Folded chains
# -------------
#
# Distances are all that is predicted. Where the residues lie comes from them by
# multidimensional scaling, up to a turn, which is taken from the true chain.


def fold(distances, like):
  """Returns places [length, 2] for distances, turned to be like others."""
  n = len(distances)
  center = np.eye(n) - 1 / n
  values, vectors = np.linalg.eigh(-0.5 * center @ distances**2 @ center)
  places = vectors[:, -2:] * np.sqrt(np.maximum(values[-2:], 0))
  u, _, v = np.linalg.svd(places.T @ (like - like.mean(axis=0)))
  return places @ u @ v + like.mean(axis=0)


def draw(figure, f, params, model, variables, kinds, distances, count=3):
  of_haiku = np.asarray(f.apply(params, None, kinds))
  of_linen = np.asarray(model.apply(variables, kinds))
  rows = figure.subplots(count, 4, squeeze=False)
  for row, kind, true, haiku, linen in zip(
    rows, kinds, np.asarray(distances), of_haiku, of_linen
  ):
    for axis, shown in zip(row, (true, haiku, linen)):
      axis.imshow(shown, cmap='viridis', vmax=true.max())
    angles = np.cumsum(np.asarray(BENDS)[kind])
    moves = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    like = np.cumsum(moves, axis=0)
    row[3].plot(*like.T, '-', color='0.8', lw=5, label='true')
    row[3].plot(*fold(linen, like).T, '.-', color='tab:red', label='folded')
    row[3].set(aspect='equal', adjustable='datalim')
    for axis in row:
      axis.set(xticks=[], yticks=[])
  titles = 'true distances', 'by Haiku', 'by linen', 'the chain'
  for axis, title in zip(rows[0], titles):
    axis.set_title(title)
  rows[0, 3].legend(fontsize=8)


# %%
# Run it
# ------


def main(argv=None):
  parser = arguments(__doc__, 'alphafold_weights.png', steps=1200)
  parser.add_argument(
    '--length', type=count_of(4), default=16, help='residues of a chain'
  )
  parser.add_argument(
    '--channels', type=positive, default=16, help='of the pair representation'
  )
  parser.add_argument('--blocks', type=positive, default=3, help='of Evoformer')
  parser.add_argument(
    '--batch-size', type=positive, default=16, help='chains of a step'
  )
  parser.add_argument(
    '--learning-rate', type=above_zero, default=5e-3, help='of Adam'
  )
  args = parser.parse_args(argv)
  config = Config(args.channels, args.blocks)
  f = hk.transform(lambda kinds: AlphaFold(config)(kinds))
  params, losses = train(
    f, args.length, args.steps, args.batch_size, args.learning_rate
  )
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder, 'params.npz')
    checkpoints.save_npz(path, params)
    tell_names(path)
    variables = read(path)
  model = LinenAlphaFold(config)
  kinds, distances = chains(jax.random.key(1), 3, args.length)
  of_both = f.apply(params, None, kinds), model.apply(variables, kinds)
  difference = float(jnp.abs(of_both[0] - of_both[1]).max())
  say(f'Distances of Haiku and of linen differ by at most {difference:.1e}')
  drawn = f, params, model, variables, kinds, distances
  save_picture(args.picture, (10, 7), draw, *drawn)
  return variables, losses, difference


if __name__ == '__main__':
  main()
