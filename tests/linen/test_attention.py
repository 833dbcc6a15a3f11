"""Attention: masks, cache, dropout, and what is said of wrong arguments."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import normal
from drawn import variables as variables_of
from hypothesis import given, settings
from hypothesis import strategies as st
from layers_compare import assert_same_program
from same_signature import assert_same_signature

from haiku_state.linen import attention

NAMES = (
  'dot_product_attention_weights',
  'dot_product_attention',
  'MultiHeadDotProductAttention',
  'MultiHeadAttention',
  'SelfAttention',
  'make_attention_mask',
  'make_causal_mask',
  'combine_masks',
)

Attention = attention.MultiHeadDotProductAttention


def by_hand(query, key, value, bias=0.0, mask=True):
  """Attention in float64, from the equation."""
  query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
  logits = np.einsum('...qhd,...khd->...hqk', query, key)
  logits = logits / np.sqrt(query.shape[-1]) + np.asarray(bias, np.float64)
  logits = np.where(mask, logits, -1e300)
  weights = np.exp(logits - logits.max(-1, keepdims=True))
  weights = weights / weights.sum(-1, keepdims=True)
  return weights, np.einsum('...hqk,...khd->...qhd', weights, value)


@pytest.mark.parametrize('name', NAMES)
def test_signature_is_that_of_flax(name):
  flax = pytest.importorskip('flax.linen.attention')
  assert_same_signature(getattr(attention, name), getattr(flax, name))


@settings(
  max_examples=settings.default.max_examples // 5,
  deadline=None,
  derandomize=True,
)
@given(data=st.data())
def test_drawn_attention_is_that_of_flax(data):
  draw = data.draw
  dtypes = st.sampled_from([None, 'float32', 'bfloat16'])
  heads = draw(st.integers(1, 3))
  batch = draw(st.lists(st.integers(1, 2), min_size=1, max_size=2))
  q, k = draw(st.integers(1, 3)), draw(st.integers(1, 3))
  options = dict(
    num_heads=heads,
    qkv_features=draw(st.sampled_from([2 * heads, 4 * heads])),
    out_features=draw(st.none() | st.integers(1, 3)),
    dtype=draw(dtypes),
    param_dtype=draw(dtypes) or 'float32',
    use_bias=draw(st.booleans()),
    normalize_qk=draw(st.booleans()),
    force_fp32_for_softmax=draw(st.booleans()),
    dropout_rate=draw(st.sampled_from([0.0, 0.5])),
    broadcast_dropout=draw(st.booleans()),
    precision=draw(st.sampled_from([None, 'highest'])),
  )
  mask = np.tri(q, k, dtype=bool)[(None,) * (len(batch) + 1)]
  kwargs = dict(
    mask=draw(st.sampled_from([None, mask])),
    deterministic=draw(st.booleans()),
    sow_weights=draw(st.booleans()),
  )
  x, kv = jnp.zeros((*batch, q, 4)), jnp.zeros((*batch, k, 3))
  make = lambda nn: nn.MultiHeadDotProductAttention(**options)
  assert_same_program(make, x, kv, **kwargs)


@pytest.mark.parametrize('batch', [(), (2, 3)])
def test_is_the_equation(batch):
  query, key = normal(0, *batch, 3, 2, 4), normal(1, *batch, 5, 2, 4)
  value, bias = normal(2, *batch, 5, 2, 6), normal(3, *batch, 2, 3, 5)
  mask = normal(4, *batch, 2, 3, 5) > -0.5

  @jax.jit
  def both(query, key, value, bias, mask):
    return (
      attention.dot_product_attention_weights(query, key, bias, mask),
      attention.dot_product_attention(query, key, value, bias, mask),
    )

  got = both(query, key, value, bias, mask)
  for a, b in zip(got, by_hand(query, key, value, bias, mask)):
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_row_that_masks_everything_averages_without_nan():
  query, key, value = normal(0, 3, 1, 4), normal(1, 5, 1, 4), normal(2, 5, 1, 4)
  mask = np.ones((1, 3, 5), bool)
  mask[:, 1] = False

  def second_row(query, key, value):
    y = attention.dot_product_attention(query, key, value, mask=mask)
    return y[1].sum(), y

  grad = jax.jit(jax.grad(second_row, (0, 1, 2), has_aux=True))
  grads, y = grad(query, key, value)
  np.testing.assert_allclose(y[1], np.mean(value, 0), rtol=1e-5)
  assert not np.any(grads[0]) and not np.any(grads[1])
  np.testing.assert_allclose(grads[2], 0.2, rtol=1e-5)


def test_masked_values_do_not_matter():
  layer, x = Attention(num_heads=2), normal(0, 1, 5, 4)
  variables = variables_of(layer, x)
  mask = np.tri(5, dtype=bool)[None, None]
  apply = jax.jit(functools.partial(layer.apply, variables, mask=mask))
  changed = x.copy()
  changed[:, 3:] = 7.0
  np.testing.assert_array_equal(apply(x)[:, :3], apply(changed)[:, :3])
  seen = np.asarray(jax.jit(jax.jacobian(apply))(x))
  reach = np.any(seen[0, :, :, 0], axis=(1, 3))
  np.testing.assert_array_equal(reach, np.tri(5, dtype=bool))


@pytest.mark.parametrize(
  'batch, dtype',
  [((), None), ((2,), None), ((2, 3), None), ((2,), jnp.bfloat16)],
)
def test_decoding_step_by_step_is_causal_attention(batch, dtype):
  x = normal(0, *batch, 4, 6)
  full = Attention(num_heads=2, qkv_features=4, dtype=dtype)
  layer = full.clone(decode=True)
  variables = variables_of(layer, x)
  cache = variables['cache']
  assert cache['cached_key'].shape == (*batch, 4, 2, 2)
  assert cache['cached_key'].dtype == (dtype or jnp.float32)
  assert cache['cache_index'].dtype == jnp.int32
  params = {'params': variables['params']}
  mask = np.tri(4, dtype=bool).reshape(*[1] * len(batch), 1, 4, 4)
  expected = jax.jit(full.apply)(params, x, mask=mask)

  @jax.jit
  def step(cache, x):
    return layer.apply({**params, 'cache': cache}, x, mutable=['cache'])

  for t in range(4):
    y, state = step(cache, x[..., t : t + 1, :])
    cache = state['cache']
    np.testing.assert_allclose(
      np.asarray(y[..., 0, :], np.float32),
      np.asarray(expected[..., t, :], np.float32),
      atol=1e-6 if dtype is None else 2e-2,
    )
  assert int(cache['cache_index']) == 4


def test_decoding_takes_a_mask_of_its_own():
  x = normal(0, 1, 4, 6)
  layer = Attention(num_heads=2, decode=True)
  variables = variables_of(layer, x)
  mask = jnp.array([True, False, True, True])[None, None, None]
  step = jax.jit(functools.partial(layer.apply, mutable=['cache'], mask=mask))
  outs = []
  for hidden in (0.0, 9.0):
    state = dict(variables)
    for t in range(3):
      x_t = x[:, t : t + 1] + (hidden if t == 1 else 0.0)
      y, cache = step(state, x_t)
      state = {**state, **cache}
    outs.append(y)
  np.testing.assert_array_equal(*outs)


def test_weights_are_sown():
  layer, x = Attention(num_heads=2), normal(0, 1, 3, 4)
  variables = variables_of(layer, x)
  assert set(variables) == {'params'}
  _, state = layer.apply(
    variables, x, sow_weights=True, mutable=['intermediates']
  )
  (weights,) = state['intermediates']['attention_weights']
  assert weights.shape == (1, 2, 3, 3)
  np.testing.assert_allclose(weights.sum(-1), 1.0, rtol=1e-6)
  _, state = layer.apply(variables, x, mutable=['intermediates'])
  assert 'intermediates' not in state or not state['intermediates']


@pytest.mark.parametrize('force', [False, True])
def test_softmax_in_float32(force):
  query, key = normal(0, 3, 1, 4, dtype='bfloat16'), normal(1, 3, 1, 4)
  compute = functools.partial(
    attention.dot_product_attention_weights,
    dtype=jnp.bfloat16,
    force_fp32_for_softmax=force,
  )
  assert compute(query, key).dtype == (jnp.float32 if force else jnp.bfloat16)
  text = str(jax.make_jaxpr(compute)(query, key))
  assert ('exp' in text) and ('f32[1,3,3] = exp' in text) == force


class TestDropout:
  layer = Attention(num_heads=2, dropout_rate=0.5)
  x = jnp.ones((3, 4, 6))

  def apply(self, **call):
    variables = variables_of(self.layer, self.x, deterministic=True)
    return self.layer.apply(variables, self.x, **call)

  def weights(self, **options):
    weights = attention.dot_product_attention_weights

    @jax.jit
    def both(query, key, rng):
      dropped = weights(
        query, key, dropout_rng=rng, dropout_rate=0.5, **options
      )
      return weights(query, key), dropped

    return both(normal(0, 3, 4, 2, 5), normal(1, 3, 4, 2, 5), jax.random.key(2))

  def test_draws_from_the_stream_or_from_the_key_that_is_given(self):
    draw = jax.jit(
      lambda stream, given: self.apply(
        deterministic=False, rngs={'dropout': stream}, dropout_rng=given
      )
    )
    one, two, three = (jax.random.key(seed) for seed in (1, 2, 3))
    assert np.any(draw(one, None) != draw(two, None))
    np.testing.assert_array_equal(draw(one, three), draw(two, three))

  def test_must_be_told_whether_to_drop(self):
    with pytest.raises(ValueError, match='deterministic'):
      self.apply()

  def test_needs_no_word_where_nothing_is_dropped(self):
    layer = Attention(num_heads=2)
    jax.eval_shape(layer.init, jax.random.key(0), self.x)

  def test_broadcast_drops_the_same_for_all_examples_and_heads(self):
    _, dropped = self.weights()
    zero = np.asarray(dropped) == 0
    assert zero.any() and np.all(zero == zero[:1, :1])
    _, dropped = self.weights(broadcast_dropout=False)
    zero = np.asarray(dropped) == 0
    assert np.any(zero != zero[:1, :1])

  def test_scales_up_what_stays(self):
    weights, dropped = self.weights()
    stays = np.asarray(dropped) != 0
    np.testing.assert_allclose(
      np.asarray(dropped)[stays], 2 * np.asarray(weights)[stays], rtol=1e-6
    )

  def test_deterministic_drops_nothing(self):
    weights, dropped = self.weights(deterministic=True)
    np.testing.assert_allclose(weights, dropped, rtol=1e-6)


class TestAttentionFn:
  x = jnp.ones((1, 3, 4))

  def run(self, function, **call):
    layer = Attention(num_heads=2, attention_fn=function)
    return layer.apply(variables_of(layer, self.x, **call), self.x, **call)

  def test_gets_the_options_that_it_names(self):
    got = {}

    def function(query, key, value, mask=None, dtype=None):
      got.update(mask=mask, dtype=dtype)
      return value

    assert self.run(function, mask='any').shape == (1, 3, 4)
    assert got == {'mask': 'any', 'dtype': None}

  def test_gets_the_module_if_weights_are_sown(self):
    got = []

    def function(query, key, value, module=None):
      got.append(module)
      return value

    self.run(function)
    self.run(function, sow_weights=True)
    assert got[0] is None and isinstance(got[-1], Attention)

  def test_may_be_a_partial(self):
    function = functools.partial(
      attention.dot_product_attention, bias=jnp.zeros((2, 3, 3))
    )
    np.testing.assert_array_equal(
      self.run(function), self.run(attention.dot_product_attention)
    )


class TestEinsum:
  query, key, value = normal(0, 3, 2, 4), normal(1, 3, 2, 4), normal(2, 3, 2, 4)

  def test_both_are_called(self):
    calls = []

    def einsum(equation, *operands):
      calls.append(equation)
      return jnp.einsum(equation, *operands)

    y = attention.dot_product_attention(
      self.query,
      self.key,
      self.value,
      qk_attn_weights_einsum=einsum,
      attn_weights_value_einsum=einsum,
    )
    assert calls == ['...qhd,...khd->...hqk', '...hqk,...khd->...qhd']
    np.testing.assert_array_equal(
      y,
      attention.dot_product_attention(self.query, self.key, self.value),
    )

  def test_dot_general_is_called(self):
    calls = []

    def dot_general(*args, **kwargs):
      calls.append(args)
      return jax.lax.dot_general(*args, **kwargs)

    attention.dot_product_attention(
      self.query, self.key, self.value, einsum_dot_general=dot_general
    )
    assert len(calls) == 2

  def test_layer_makes_one_einsum_of_each_class(self):
    made = []

    def factory(name):
      made.append(name)
      return jnp.einsum

    layer = Attention(
      num_heads=2,
      qk_attn_weights_einsum_cls=functools.partial(factory, 'weights'),
      attn_weights_value_einsum_cls=functools.partial(factory, 'values'),
    )
    jax.eval_shape(layer.init, jax.random.key(0), jnp.ones((1, 3, 4)))
    assert made == ['weights', 'values']


def weights_of(query, key, **options):
  attention.dot_product_attention_weights(
    jnp.ones(query), jnp.ones(key), **options
  )


def attend(query, key, value, **options):
  attention.dot_product_attention(
    jnp.ones(query), jnp.ones(key), jnp.ones(value), **options
  )


def call(*inputs, num_heads=2, **options):
  layer = Attention(num_heads=num_heads)
  inputs = [x if x is None else jnp.ones(x) for x in inputs]
  init = functools.partial(layer.init, **options)
  jax.eval_shape(init, jax.random.key(0), *inputs)


def decode_two_at_once():
  layer, x = Attention(num_heads=2, decode=True), jnp.ones((3, 5, 4))
  variables = variables_of(layer, x)
  layer.apply(variables, x[:, :2], mutable=['cache'])


QKV = ((2, 3, 1, 4),) * 3
ERRORS = {
  'einsum and precision': (
    lambda: weights_of(*QKV[:2], einsum=jnp.einsum, precision='highest'),
    ValueError,
    'precision/einsum_dot_general and einsum are mutually exclusive. Please '
    'specify only one of them.',
  ),
  'one einsum': (
    lambda: attend(*QKV, qk_attn_weights_einsum=jnp.einsum),
    ValueError,
    'qk_attn_weights_einsum and attn_weights_value_einsum must be specified '
    'together.',
  ),
  'other einsum': (
    lambda: attend(*QKV, attn_weights_value_einsum=jnp.einsum),
    ValueError,
    'qk_attn_weights_einsum and attn_weights_value_einsum must be specified '
    'together.',
  ),
  'einsums and precision': (
    lambda: attend(
      *QKV,
      qk_attn_weights_einsum=jnp.einsum,
      attn_weights_value_einsum=jnp.einsum,
      precision='highest',
    ),
    ValueError,
    'precision/einsum_dot_general and qk_attn_weights_einsum/'
    'attn_weights_value_einsum are mutually exclusive. Please specify only one '
    'of them.',
  ),
  'ranks of q, k': (
    lambda: weights_of((2, 3, 1, 4), (3, 1, 4)),
    AssertionError,
    'q, k must have same rank.',
  ),
  'batches of q, k': (
    lambda: weights_of((2, 3, 1, 4), (3, 3, 1, 4)),
    AssertionError,
    'q, k batch dims must match.',
  ),
  'heads of q, k': (
    lambda: weights_of((3, 1, 4), (3, 2, 4)),
    AssertionError,
    'q, k num_heads must match.',
  ),
  'depths of q, k': (
    lambda: weights_of((3, 1, 4), (3, 1, 5)),
    AssertionError,
    'q, k depths must match.',
  ),
  'ranks of q, k, v': (
    lambda: attend((2, 3, 1, 4), (2, 3, 1, 4), (3, 1, 4)),
    AssertionError,
    'q, k, v must have same rank.',
  ),
  'batches of q, k, v': (
    lambda: attend((2, 3, 1, 4), (2, 3, 1, 4), (1, 3, 1, 4)),
    AssertionError,
    'q, k, v batch dims must match.',
  ),
  'heads of q, k, v': (
    lambda: attend((3, 1, 4), (3, 1, 4), (3, 2, 4)),
    AssertionError,
    'q, k, v num_heads must match.',
  ),
  'lengths of k, v': (
    lambda: attend((3, 1, 4), (3, 1, 4), (2, 1, 4)),
    AssertionError,
    'k, v lengths must match.',
  ),
  'heads that do not divide': (
    lambda: call((1, 3, 4), num_heads=3),
    AssertionError,
    'Memory dimension (4) must be divisible by number of heads (3).',
  ),
  'k and kv': (
    lambda: call((1, 3, 4), (1, 3, 4), inputs_kv=jnp.ones((1, 3, 4))),
    ValueError,
    'If either `inputs_k` or `inputs_v` is not None, `inputs_kv` must be None. '
    'If `inputs_kv` is not None, both `inputs_k` and `inputs_v` must be None. '
    'We recommend using `inputs_k` and `inputs_v` args, since `inputs_kv` will '
    'be deprecated soon. See https://github.com/google/flax/discussions/3389 '
    'for more information.',
  ),
  'v without k': (
    lambda: call((1, 3, 4), None, (1, 3, 4)),
    ValueError,
    '`inputs_k` cannot be None if `inputs_v` is not None. To have both '
    '`inputs_k` and `inputs_v` be the same value, pass in the value to '
    '`inputs_k` and leave `inputs_v` as None.',
  ),
  'two positions for the cache': (
    decode_two_at_once,
    ValueError,
    'Autoregressive cache shape error, expected query shape (3, 1, 2, 2) '
    'instead got (3, 2, 2, 2).',
  ),
  'ranks of masks': (
    lambda: attention.combine_masks(jnp.ones((1, 2)), jnp.ones((1, 1, 2))),
    AssertionError,
    'masks must have same rank: (2, 3)',
  ),
}


@pytest.mark.parametrize('name', ERRORS)
def test_error(name):
  program, error, text = ERRORS[name]
  with pytest.raises(error) as info:
    program()
  # pytest adds to the message of an assertion in a file that it rewrites.
  assert str(info.value).splitlines()[0] == text


class TestWarnings:
  x = jnp.ones((1, 3, 3))

  def warned(self, layer, *args, **kwargs):
    with warnings.catch_warnings(record=True) as caught:
      warnings.simplefilter('always')
      variables = variables_of(Attention(num_heads=3), self.x)
      y = jax.jit(layer.apply)(variables, *args, **kwargs)
    return y, [
      str(w.message) for w in caught if w.category is DeprecationWarning
    ]

  def test_inputs_kv(self):
    layer, kv = Attention(num_heads=3), 2 * self.x
    y, (text,) = self.warned(layer, self.x, inputs_kv=kv)
    assert text.startswith('The inputs_kv arg will be deprecated soon. Use ')
    np.testing.assert_array_equal(y, self.warned(layer, self.x, kv)[0])

  def test_mask_in_the_place_of_values(self):
    layer = Attention(num_heads=3)
    _, (text,) = self.warned(layer, self.x, self.x, self.x)
    assert text.startswith('You are passing an array of shape (1, 3, 3) to ')
    assert self.warned(layer, self.x, self.x)[1] == []

  def test_self_attention(self):
    y, (text,) = self.warned(attention.SelfAttention(num_heads=3), self.x)
    assert text.startswith('SelfAttention will be deprecated soon. Use ')
    same, none = self.warned(Attention(num_heads=3), self.x)
    assert none == []
    np.testing.assert_array_equal(y, same)


@settings(max_examples=8, deadline=None)
@given(
  batch=st.lists(st.integers(1, 3), max_size=2),
  q=st.integers(1, 4),
  kv=st.integers(1, 4),
  extra=st.integers(0, 2),
)
def test_attention_mask_has_a_pair_where_both_are(batch, q, kv, extra):
  rng = np.random.default_rng(q * 5 + kv)
  query, key = rng.random((*batch, q)) < 0.5, rng.random((*batch, kv)) < 0.5
  make = functools.partial(
    attention.make_attention_mask, extra_batch_dims=extra, dtype=bool
  )
  mask = np.asarray(jax.jit(make)(query, key))
  assert mask.dtype == bool
  assert mask.shape == (*[1] * extra, *batch, 1, q, kv)
  expected = query[..., None, :, None] & key[..., None, None, :]
  np.testing.assert_array_equal(mask.reshape(expected.shape), expected)


@pytest.mark.parametrize('extra', [0, 2])
def test_causal_mask_is_a_triangle(extra):
  mask = attention.make_causal_mask(jnp.zeros((2, 3)), extra_batch_dims=extra)
  assert mask.shape == (*[1] * extra, 2, 1, 3, 3)
  assert mask.dtype == jnp.float32
  np.testing.assert_array_equal(mask.reshape(2, 3, 3)[1], np.tri(3))


def test_combined_masks():
  rows, columns = jnp.array([[1, 0]]), jnp.array([[1], [1]])
  both = attention.combine_masks(None, rows, columns, None)
  np.testing.assert_array_equal(both, [[1, 0], [1, 0]])
  assert both.dtype == jnp.float32
  assert attention.combine_masks(rows, dtype=bool).dtype == bool
  assert attention.combine_masks() is attention.combine_masks(None) is None


def test_normalized_queries_and_keys():
  layer = Attention(num_heads=2, normalize_qk=True, use_bias=False)
  x = normal(0, 1, 3, 4)
  params = variables_of(layer, x)['params']
  assert set(params) == {'query', 'key', 'value', 'query_ln', 'key_ln', 'out'}
  assert set(params['query_ln']) == {'scale'} and set(params['out']) == {
    'kernel'
  }
  scaled = {**params, 'key': {'kernel': 7.0 * params['key']['kernel']}}
  apply = jax.jit(lambda params: layer.apply({'params': params}, x))
  np.testing.assert_allclose(apply(dict(params)), apply(scaled), atol=1e-4)
