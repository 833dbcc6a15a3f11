"""The dtype rule of the layers, against Flax's for every kind of argument."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax_names import enable_x64

from haiku_state.linen import activation, dtypes, initializers, linear

F32, BF16, I32 = jnp.float32, jnp.bfloat16, jnp.int32
ARGUMENTS = {
  'none': None,
  'float': 1.5,
  'int': 2,
  'bool': True,
  'complex': 1j,
  'numpy64': np.ones(2),
  'numpy_scalar': np.float32(1),
  'numpy_ints': np.arange(2),
  'list': [1.0, 2.0],
  'float32': jnp.ones(2),
  'weak': jnp.asarray(1.0),
  'weak_int': jnp.asarray(1),
  'bfloat16': jnp.ones(2, BF16),
  'float16': jnp.ones(2, jnp.float16),
  'int32': jnp.arange(2),
  'uint8': jnp.arange(2, dtype=jnp.uint8),
  'bools': jnp.ones(2, bool),
  'complex64': jnp.ones(2, jnp.complex64),
}
PAIRS = list(itertools.combinations_with_replacement(ARGUMENTS, 2))


@pytest.fixture(scope='module')
def flax_dtypes():
  return pytest.importorskip('flax.linen.dtypes')


def outcome(f, *args, **kwargs):
  """Describes what a call returns, or raises."""
  found = []
  describe = lambda x: x if x is None else (x.shape, x.dtype, x.weak_type)

  def describe_all():
    out = f(*args, **kwargs)
    found.append(list(map(describe, out)) if isinstance(out, list) else out)

  try:
    jax.eval_shape(describe_all)  # Traced, because nothing need be computed.
  except Exception as error:
    return type(error), str(error)
  return found


@pytest.mark.parametrize('x64', [False, True])
@pytest.mark.parametrize('inexact', [True, False])
def test_dtypes_are_those_of_flax(inexact, x64, flax_dtypes):
  with enable_x64(x64):
    for names in PAIRS:
      args = [ARGUMENTS[name] for name in names]
      if names == ('none', 'none'):
        continue
      for name in ('canonicalize_dtype', 'promote_dtype'):
        got, want = (
          outcome(getattr(m, name), *args, inexact=inexact)
          for m in (dtypes, flax_dtypes)
        )
        assert got == want, (name, names)


@pytest.mark.parametrize('dtype', [F32, 'bfloat16', I32, np.dtype('f2'), bool])
@pytest.mark.parametrize('inexact', [True, False])
def test_given_dtype_is_obeyed_as_in_flax(dtype, inexact, flax_dtypes):
  for name, value in ARGUMENTS.items():
    if name.startswith('complex') or name == 'none':
      continue
    for f in ('canonicalize_dtype', 'promote_dtype'):
      got, want = (
        outcome(getattr(m, f), value, None, dtype=dtype, inexact=inexact)
        for m in (dtypes, flax_dtypes)
      )
      assert got == want, (f, name)


@pytest.mark.filterwarnings('ignore:Explicitly requested dtype')
def test_wide_arrays_are_narrowed_outside_x64(flax_dtypes):
  """An array can outlive the setting under which it was made."""
  with enable_x64(True):
    wide = jnp.ones(2, 'float64')
  for args in [(wide,), (wide, wide), (wide, jnp.ones(2))]:
    assert outcome(dtypes.promote_dtype, *args) == outcome(
      flax_dtypes.promote_dtype, *args
    )


def test_what_has_the_dtype_is_passed_through():
  x, y = jnp.ones(2), jnp.zeros(3)
  for got in (
    dtypes.promote_dtype(x, None, y),
    dtypes.promote_dtype(x, None, y, dtype=F32),
  ):
    assert got[0] is x and got[1] is None and got[2] is y


def test_nothing_is_traced_for_what_has_the_dtype():
  f = lambda x, y: dtypes.promote_dtype(x, y, dtype=F32)
  assert not jax.make_jaxpr(f)(jnp.ones(2), jnp.ones(3)).eqns


def test_error_names_the_dtype():
  with pytest.raises(ValueError, match='Dtype must be inexact: int32'):
    dtypes.promote_dtype(jnp.ones(2), dtype=jnp.dtype('int32'))


def test_initializers_and_activations_are_those_of_jax():
  """The core knows by identity which initializers ignore their key."""
  assert initializers.zeros_init() is jax.nn.initializers.zeros
  assert initializers.ones_init() is jax.nn.initializers.ones
  assert linear.Dense(1).bias_init is jax.nn.initializers.zeros
  for name in (
    'celu elu gelu glu hard_sigmoid hard_silu hard_swish hard_tanh leaky_relu '
    'log_sigmoid log_softmax logsumexp one_hot relu relu6 selu sigmoid silu '
    'soft_sign softmax softplus standardize swish'
  ).split():
    assert getattr(activation, name) is getattr(jax.nn, name)
  assert activation.tanh is jnp.tanh
  assert activation.normalize is jax.nn.standardize
  for name in (
    'constant delta_orthogonal glorot_normal glorot_uniform he_normal '
    'he_uniform kaiming_normal kaiming_uniform lecun_normal lecun_uniform '
    'normal ones orthogonal truncated_normal uniform variance_scaling '
    'xavier_normal xavier_uniform zeros'
  ).split():
    assert getattr(initializers, name) is getattr(jax.nn.initializers, name)


def test_prelu_is_linear_on_each_side():
  layer = activation.PReLU(negative_slope_init=0.25)
  x = jnp.array([-4.0, -0.0, 0.0, 2.0])
  y, variables = layer.init_with_output(jax.random.key(0), x)
  np.testing.assert_array_equal(y, [-1.0, 0.0, 0.0, 2.0])
  slope = jax.grad(lambda v: layer.apply(v, x).sum())(variables)
  np.testing.assert_array_equal(slope['params']['negative_slope'], -4.0)
