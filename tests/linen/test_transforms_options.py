"""Options of lifted transforms: filters and axes are no data of the call.

They need be no pytrees: a dict whose keys cannot be ordered is none. Only the
arguments of the user's function may hold modules and variables.
"""

import functools
import importlib
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layers_compare import assert_same_operations
from left_out import all_but
from module_compare import KEY

X = jnp.arange(6.0).reshape(2, 3) / 5


def package(name):
  if name == 'flax':
    pytest.importorskip('flax')
  core = importlib.import_module(f'{name}.core')
  return SimpleNamespace(
    nn=importlib.import_module(f'{name}.linen'), DenyList=core.DenyList
  )


# What a filter may be: `params` and all else that there is.
FILTERS = {
  'str': lambda p: 'params',
  'True': lambda p: True,
  'tuple': lambda p: ('params', 'st'),
  'list': lambda p: ['params', 'st'],
  'set': lambda p: {'params', 'st'},
  'DenyList of str': lambda p: p.DenyList('other'),
  'DenyList of a tuple': lambda p: p.DenyList(('other', 'another')),
}
# What cannot be a key of a dict, or not in order, says most.
UNORDERED = ('list', 'set', 'DenyList of str')


def f(m, x):
  return m(x)


def keyed(p, params, rest):
  """Returns a dict by filters that cannot be ordered."""
  return {'params': params, p.DenyList(('params',)): rest}


def of_while_loop(p, m, x, only):
  return p.nn.while_loop(
    lambda m, c: c[0] < 2,
    lambda m, c: (c[0] + 1, m(c[1])),
    m,
    (0, x),
    carry_variables=p.DenyList(True),
    broadcast_variables=only,
    split_rngs=keyed(p, False, True),
  )


def of_custom_vjp(p, m, x, only):
  def forward(m, x):
    return p.nn.vjp(f, m, x)

  rule = p.nn.custom_vjp(f, forward, lambda kept, g: kept(g), grad_vars=only)
  return rule(m, x)


def of_scan(p, m, x, only):
  del only  # In two groups, each variable is in the first.
  loop = p.nn.scan(
    lambda m, c, x: (m(c), x),
    variable_axes={p.DenyList(True): 0},
    variable_broadcast=p.DenyList('other'),
    split_rngs=keyed(p, False, True),
  )
  return loop(m, x, x)


def of_remat_scan(p, m, x, only):
  loop = p.nn.remat_scan(
    f,
    lengths=(2,),
    variable_broadcast=only,
    variable_axes={p.DenyList(True): 0},
    split_rngs=keyed(p, False, True),
  )
  return loop(m, x)


def of_vmap(p, m, x, only):
  del only
  return p.nn.vmap(
    f, variable_axes=keyed(p, None, None), split_rngs=keyed(p, False, True)
  )(m, x)


def of_jvp(p, m, x, only):
  none = {'params': jax.tree.map(jnp.ones_like, dict(m.variables['params']))}
  return p.nn.jvp(f, m, (x,), (x,), none, variables=only, rngs=only)


def of_vjp(p, m, x, only):
  y, back = p.nn.vjp(f, m, x, vjp_variables=only, variables=only, rngs=only)
  return y, back(y)


def summed(m, x):
  return m(x).sum()


CALLS = {
  'add_metadata_axis': lambda p, m, x, only: p.nn.add_metadata_axis(
    f, variable_axes=keyed(p, 0, 1)
  )(m, x),
  'checkpoint': lambda p, m, x, only: p.nn.checkpoint(
    f, variables=only, rngs=only
  )(m, x),
  'cond': lambda p, m, x, only: p.nn.cond(
    True, f, f, m, x, variables=only, rngs=only
  ),
  'custom_vjp': of_custom_vjp,
  'fold_rngs': lambda p, m, x, only: p.nn.fold_rngs(
    f, variables=only, rngs=only
  )(m, x),
  'grad': lambda p, m, x, only: p.nn.grad(
    summed, m, x, variables=only, rngs=only
  ),
  'jit': lambda p, m, x, only: p.nn.jit(f, variables=only, rngs=only)(m, x),
  'jvp': of_jvp,
  'map_variables': lambda p, m, x, only: p.nn.map_variables(
    f, only, trans_in_fn=lambda v: v, rngs=only, variables=only
  )(m, x),
  'named_call': lambda p, m, x, only: p.nn.named_call(f, force=True)(m, x),
  'remat_scan': of_remat_scan,
  'scan': of_scan,
  'switch': lambda p, m, x, only: p.nn.switch(
    1, [f, f], m, x, variables=only, rngs=only
  ),
  'value_and_grad': lambda p, m, x, only: p.nn.value_and_grad(
    summed, m, x, variables=only, rngs=only
  ),
  'vjp': of_vjp,
  'vmap': of_vmap,
  'while_loop': of_while_loop,
}


def computed(name, call, kind):
  p = package(name)
  only = FILTERS[kind](p)

  class Top(p.nn.Module):
    @p.nn.compact
    def __call__(self, x):
      dense = p.nn.Dense(3)
      dense(x)
      return CALLS[call](p, dense, x, only)

  variables = {'params': {'Dense_0': {'kernel': jnp.eye(3), 'bias': X[0]}}}
  return Top().apply(variables, X, rngs={'params': KEY})


@pytest.mark.parametrize('kind', all_but(UNORDERED, FILTERS))
@pytest.mark.parametrize('call', CALLS)
def test_options_pass_as_they_are(call, kind):
  got, wanted = (
    functools.partial(computed, x, call, kind) for x in ('haiku_state', 'flax')
  )
  assert_same_operations(got, wanted, of_values=assert_close)


def assert_close(got, wanted):
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted)):
    np.testing.assert_allclose(a, b, 1e-6)
