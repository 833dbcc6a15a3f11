"""Networks as Haiku's users write them, with linen-style layers put in.

Each network is one function, of a namespace of layers and of its batch. It is
built from Haiku's layers, from linen-style ones in the same places, and from both
by turns. Names, losses, gradients and state must not tell which.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from haiku_state import interop
from haiku_state import linen as nn
from haiku_state.interop import layers

KEY = jax.random.PRNGKey(0)
BATCH = 4

# --- The layers --------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Kind:
  """A layer in both libraries, and how its weights go over."""

  haiku: Callable[..., Any]
  linen: Callable[..., Any]
  row: Callable[..., Any]


class HaikuNorm(hk.BatchNorm):
  """Haiku's batch normalization, told once that it is training."""

  def __init__(self, name):
    super().__init__(True, True, 0.9, name=name)

  def __call__(self, x):
    return super().__call__(x, is_training=True)


KINDS = {
  'linear': Kind(
    lambda n, name: hk.Linear(n, name=name),
    lambda n, name: nn.Dense(n, name=name),
    layers.linear,
  ),
  'embed': Kind(
    lambda vocab, n, name: hk.Embed(vocab, n, name=name),
    lambda vocab, n, name: nn.Embed(vocab, n, name=name),
    layers.embed,
  ),
  'layer_norm': Kind(
    lambda name: hk.LayerNorm(-1, True, True, name=name),
    lambda name: nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name=name),
    layers.layer_norm,
  ),
  'attention': Kind(
    lambda n, name: hk.MultiHeadAttention(
      2, n // 2, w_init=hk.initializers.RandomNormal(), name=name
    ),
    lambda n, name: nn.MultiHeadDotProductAttention(
      2, out_features=n, qkv_features=n, name=name
    ),
    lambda path: layers.attention(path, 2),
  ),
  'batch_norm': Kind(
    HaikuNorm,
    lambda name: nn.BatchNorm(False, momentum=0.9, name=name),
    lambda path: layers.batch_norm(path, for_='training', momentum=0.9),
  ),
  'lstm': Kind(
    lambda n, name: hk.LSTM(n, name=name),
    lambda n, name: interop.as_rnn_core(nn.LSTMCell(n, name=name)),
    layers.lstm,
  ),
}


class Layers:
  """Makes layers of one library, or of both by turns, at the top of a function.

  Args:
    which: 'haiku', 'linen' or 'mixed'.

  Attributes:
    kinds: the kind of each linen-style layer that was made, by name.
  """

  def __init__(self, which):
    self.which = which
    self.kinds = {}
    self.made = []

  def __getattr__(self, kind):
    def make(*args, name):
      self.made.append(name)
      by_haiku = self.which == 'haiku' or (
        self.which == 'mixed' and len(self.made) % 2
      )
      if by_haiku:
        return KINDS[kind].haiku(*args, name=name)
      self.kinds[name] = kind
      return KINDS[kind].linen(*args, name=name)

    return make


# --- The networks ------------------------------------------------------------


def vae(L, x):
  """Kingma and Welling, "Auto-Encoding Variational Bayes", 2013."""
  h = jax.nn.relu(L.linear(6, name='encoder')(x))
  mean, log_var = L.linear(2, name='mean')(h), L.linear(2, name='log_var')(h)
  z = mean + jnp.exp(log_var / 2) * jax.random.normal(
    hk.next_rng_key(), mean.shape
  )
  y = L.linear(6, name='decoder')(z)
  y = L.linear(x.shape[-1], name='out')(jax.nn.relu(y))
  kl = 0.5 * (jnp.exp(log_var) + mean**2 - 1 - log_var).sum(-1)
  return (((y - x) ** 2).sum(-1) + kl).mean()


def vq_vae(L, x):
  """Van den Oord et al., "Neural Discrete Representation Learning", 2017."""
  h = L.batch_norm(name='norm')(L.linear(6, name='encoder')(x))
  z = L.linear(2, name='to_code')(jax.nn.relu(h))
  quantizer = hk.nets.VectorQuantizerEMA(2, 5, 0.25, 0.9, name='codes')
  code = quantizer(z, is_training=True)
  y = L.linear(x.shape[-1], name='decoder')(code['quantize'])
  return ((y - x) ** 2).mean() + code['loss']


def language_model(L, x):
  tokens = jnp.clip(jnp.abs(x * 4).astype(int), 0, 8)
  h = L.embed(9, 4, name='tokens')(tokens)
  length = tokens.shape[1]
  mask = jnp.tril(jnp.ones((1, 1, length, length)))
  normed = L.layer_norm(name='norm_1')(h)
  h += L.attention(4, name='attention')(normed, normed, normed, mask=mask)
  normed = L.layer_norm(name='norm_2')(h)
  h += L.linear(4, name='down')(
    jax.nn.gelu(L.linear(8, name='up')(normed), approximate=True)
  )
  logits = L.linear(9, name='logits')(L.layer_norm(name='norm_3')(h))
  return optax.softmax_cross_entropy_with_integer_labels(
    logits[:, :-1], tokens[:, 1:]
  ).mean()


def actor_critic(L, x):
  """An agent whose core forgets where an episode ends."""
  frames = x.T[..., None]  # [time, batch, features]
  torso = L.linear(4, name='torso')
  core = hk.ResetCore(L.lstm(3, name='core'))
  policy, value = L.linear(2, name='policy'), L.linear(1, name='value')
  h = jax.nn.relu(torso(frames))
  ends = frames[..., 0] > 1
  state = core.initial_state(x.shape[0])
  h, _ = hk.dynamic_unroll(core, (h, ends), state)
  log_p = jax.nn.log_softmax(policy(h))[..., 0]
  v = value(h)[..., 0]
  advantage = frames[..., 0] - v
  return (advantage**2).mean() - (
    log_p * jax.lax.stop_gradient(advantage)
  ).mean()


def byol(L, x):
  """Grill et al., "Bootstrap Your Own Latent", 2020, with two heads."""
  encoder = L.linear(5, name='encoder')
  heads = []
  for i in range(2):
    heads.append(
      hk.Sequential(
        [
          L.linear(4, name=f'project_{i}_a'),
          L.batch_norm(name=f'norm_{i}'),
          jax.nn.relu,
          L.linear(3, name=f'project_{i}_b'),
        ]
      )
    )
  predict = L.linear(3, name='predict')

  def unit(v):
    return v / jnp.sqrt((v**2).sum(-1, keepdims=True) + 1e-3)

  total = 0.0
  for head in heads:
    online = unit(predict(head(encoder(x))))
    target = jax.lax.stop_gradient(unit(head(encoder(x[:, ::-1]))))
    total += ((online - target) ** 2).sum(-1).mean()
  return total


def graph_network(L, x):
  """Two rounds of messages around a ring, with the same weights."""
  embed = L.linear(4, name='nodes')
  message = hk.Sequential([L.linear(4, name='message'), jax.nn.relu])
  update, norm = L.linear(4, name='update'), L.layer_norm(name='norm')
  nodes = embed(x[..., None])
  n = x.shape[1]
  senders, receivers = jnp.arange(n), (jnp.arange(n) + 1) % n
  for _ in range(2):
    pairs = jnp.concatenate([nodes[:, senders], nodes[:, receivers]], axis=-1)
    received = jnp.zeros_like(nodes).at[:, receivers].add(message(pairs))
    nodes = norm(nodes + update(jnp.concatenate([nodes, received], -1)))
  return (L.linear(1, name='out')(nodes.mean(1))[:, 0] - x.sum(1)).var()


NETWORKS = {
  f.__name__: f
  for f in (vae, vq_vae, language_model, actor_critic, byol, graph_network)
}
X = jax.random.normal(KEY, (BATCH, 6))

each_network = pytest.mark.parametrize('name', NETWORKS)
each_mix = pytest.mark.parametrize('which', ['linen', 'mixed'])


def built(name, which):
  """Returns a network, and what kinds its linen-style layers have."""
  made = []

  def network(x):
    made.append(Layers(which))
    return NETWORKS[name](made[-1], x)

  f = hk.transform_with_state(network)
  shapes = jax.eval_shape(f.init, KEY, X)
  return f, made[-1].kinds, shapes


def split(tree, kinds):
  """Returns the bundles of the layers in `kinds`, and the others."""
  inside = {p: b for p, b in tree.items() if p.split('/')[0] in kinds}
  return inside, {p: b for p, b in tree.items() if p not in inside}


def to_linen(params, state, kinds):
  """Returns Haiku's trees with those layers as linen-style ones."""
  (own, params), (own_state, state) = split(params, kinds), split(state, kinds)
  mapping = {name: KINDS[kind].row(name) for name, kind in kinds.items()}
  variables, _ = interop.weights_from_haiku(own, own_state, mapping)
  for name in kinds:
    below = {c: x[name] for c, x in variables.items() if name in x}
    more, more_state = interop.to_haiku(below, root=name)
    params, state = {**params, **more}, {**state, **more_state}
  return params, state


def close(got, want):
  assert sorted(got) == sorted(want)
  for path in want:
    assert set(got[path]) == set(want[path])
    for key, value in want[path].items():
      np.testing.assert_allclose(
        got[path][key], value, 2e-4, 2e-5, err_msg=f'{path}/{key}'
      )


def shapes_of(tree):
  return {p: {k: x.shape for k, x in b.items()} for p, b in tree.items()}


@each_mix
@each_network
def test_names_are_those_of_haikus_layers(name, which):
  _, kinds, shapes = built(name, which)
  assert kinds
  haiku_f, _, _ = built(name, 'haiku')
  weights = jax.jit(haiku_f.init)(KEY, X)
  got = tuple(map(shapes_of, to_linen(*weights, kinds)))
  assert got == tuple(map(shapes_of, shapes))


def trained(f, params, state, steps=3):
  """Returns the losses of some steps, and the weights after them."""
  tx = optax.sgd(0.1)

  @jax.jit
  def step(params, state, opt, key):
    (loss, state), grads = jax.value_and_grad(
      lambda p: f.apply(p, state, key, X), has_aux=True
    )(params)
    updates, opt = tx.update(grads, opt)
    return optax.apply_updates(params, updates), state, opt, loss

  opt, losses = tx.init(params), []
  for i in range(steps):
    key = jax.random.fold_in(KEY, i)
    params, state, opt, loss = step(params, state, opt, key)
    losses.append(loss)
  return jnp.stack(losses), params, state


@each_mix
@each_network
def test_trains_as_haikus_layers_do(name, which):
  haiku_f, _, _ = built(name, 'haiku')
  f, kinds, _ = built(name, which)
  weights = jax.jit(haiku_f.init)(KEY, X)
  want, *after = trained(haiku_f, *weights)
  got, params, state = trained(f, *to_linen(*weights, kinds))
  np.testing.assert_allclose(got, want, 1e-4, 1e-5)
  want_params, want_state = to_linen(*after, kinds)
  close(params, want_params)
  close(state, want_state)


@each_network
def test_four_devices_compute_what_one_does(name):
  f, _, _ = built(name, 'linen')
  params, state = jax.jit(f.init)(KEY, X)
  loss = jax.jit(jax.value_and_grad(f.apply, has_aux=True))
  want, _ = loss(params, state, KEY, X)
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:BATCH]), ('data',))
  spec = jax.sharding.PartitionSpec
  everywhere = jax.sharding.NamedSharding(mesh, spec())
  by_rows = jax.sharding.NamedSharding(mesh, spec('data'))
  params, state = jax.device_put((params, state), everywhere)
  (got, new), grads = loss(params, state, KEY, jax.device_put(X, by_rows))
  assert len(got.sharding.device_set) == BATCH
  np.testing.assert_allclose(got, want[0], 1e-5, 1e-6)
  close(new, want[1])


# --- Several entry points ----------------------------------------------------


@pytest.mark.parametrize('which', ['haiku', 'linen', 'mixed'])
def test_entry_points_share_the_torso(which):
  made = []

  def agent():
    made.append(L := Layers(which))
    torso = L.linear(4, name='torso')
    policy, value = L.linear(2, name='policy'), L.linear(1, name='value')
    return lambda x: (policy(torso(x)), value(torso(x))), (
      lambda x: policy(torso(x)),
      lambda x: value(torso(x)),
    )

  f = hk.multi_transform(agent)
  params = f.init(KEY, X)
  assert set(params) == {'torso', 'policy', 'value'}

  def dense(name, x):
    w, b = sorted(params[name].values(), key=lambda v: -v.ndim)
    return x @ w + b

  for name, apply in zip(('policy', 'value'), f.apply):
    np.testing.assert_allclose(
      apply(params, None, X), dense(name, dense('torso', X)), 1e-5, 1e-5
    )
