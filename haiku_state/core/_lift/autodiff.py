"""Lifted derivatives, and rematerialisation for them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from haiku_state.core._lift.packing import Pack, lifted
from haiku_state.core.filters import CollectionFilter, PRNGSequenceFilter
from haiku_state.core.frozen_dict import unfreeze
from haiku_state.core.scope import Scope


def _with_aux(fn: Callable[..., Any], has_aux: bool) -> Callable[..., Any]:
  """Returns a function that returns an output and an auxiliary one."""
  if has_aux:
    return fn
  return lambda *args: (fn(*args), ())


def _refuse_reduce_axes(reduce_axes: Any, name: str) -> None:
  if reduce_axes:
    raise NotImplementedError(f'reduce_axes argument to {name} is deprecated')


def vjp(
  fn: Callable[..., Any],
  scope: Scope,
  *primals: Any,
  has_aux: bool = False,
  reduce_axes: Any = (),
  vjp_variables: CollectionFilter = 'params',
  variables: CollectionFilter = True,
  rngs: PRNGSequenceFilter = True,
) -> Any:
  """Returns an output, and a function from cotangents of it to gradients.

  The arguments are those of `haiku_state.linen.vjp`, but for:

  >>> import jax, jax.numpy as jnp
  >>> from haiku_state import core
  >>> def scale(scope, x):
  ...   return x * scope.param('w', jax.nn.initializers.ones, ())
  >>> def slope(scope, x):
  ...   y, bwd = core.vjp(scale, scope, x)
  ...   variable_gradients, x_gradient = bwd(jnp.ones_like(y))
  ...   return variable_gradients['params']['w']
  >>> float(core.apply(slope)({'params': {'w': jnp.ones(())}}, 3.0))
  3.0

  Args:
    fn: takes the scopes, then the arguments.
    scope: a pytree of scopes.

  Returns:
    The gradients of the variables are in the structure of `scope`.
  """
  _refuse_reduce_axes(reduce_axes, 'vjp')
  fn = _with_aux(fn, has_aux)

  def inner(packed: Pack, *args):
    vjp_vars, other_vars = packed.variables

    def pure(vjp_vars, *args):
      (y, aux), out = packed.call(
        fn, (vjp_vars, other_vars), packed.rngs, *args
      )
      return y, (aux, out)

    y, bwd, (aux, out) = jax.vjp(pure, vjp_vars, *args, has_aux=True)
    # A Partial is a pytree: it may leave a transformation of JAX.
    bwd = jax.tree_util.Partial(
      functools.partial(_scope_gradients, packed.treedef), bwd
    )
    return ((y, bwd, aux) if has_aux else (y, bwd)), out

  return lifted(
    inner, (vjp_variables, variables), (variables,), (rngs,), 'vjp'
  )(scope, *primals)


def _scope_gradients(treedef, bwd, cotangents):
  """Returns gradients of variables in the structure of the scopes."""
  variable_gradients, *gradients = bwd(cotangents)
  return (treedef.unflatten(variable_gradients), *gradients)


def value_and_grad(
  fn: Callable[..., Any],
  scope: Scope,
  *primals: Any,
  has_aux: bool = False,
  reduce_axes: Any = (),
  variables: CollectionFilter = True,
  rngs: PRNGSequenceFilter = True,
) -> Any:
  """Returns an output and its gradients with respect to all arguments.

  The arguments are those of `haiku_state.linen.value_and_grad`, but for:

  >>> import jax, jax.numpy as jnp
  >>> from haiku_state import core
  >>> def scale(scope, x):
  ...   return x * scope.param('w', jax.nn.initializers.ones, ())
  >>> def slope(scope, x):
  ...   return core.lift.value_and_grad(scale, scope, x)
  >>> y, (gradient,) = core.apply(slope)({'params': {'w': jnp.ones(())}}, 3.0)
  >>> float(y), float(gradient)
  (3.0, 1.0)

  Args:
    fn: takes the scopes, then the arguments.
    scope: a pytree of scopes.
  """
  _refuse_reduce_axes(reduce_axes, 'value_and_grad')
  fn = _with_aux(fn, has_aux)

  def inner(packed: Pack, *args):
    def pure(*args):
      (y, aux), out = packed.call(fn, packed.variables, packed.rngs, *args)
      return y, (aux, out)

    y, bwd, (aux, out) = jax.vjp(pure, *args, has_aux=True)
    gradients = bwd(jnp.ones_like(y))
    return ((y, aux, gradients) if has_aux else (y, gradients)), out

  return lifted(inner, (variables,), (variables,), (rngs,), 'value_and_grad')(
    scope, *primals
  )


def jvp(
  fn: Callable[..., Any],
  scope: Scope,
  primals: Any,
  tangents: Any,
  variable_tangents: Any,
  variables: CollectionFilter = True,
  rngs: PRNGSequenceFilter = True,
) -> tuple[Any, Any]:
  """Returns an output and its tangent.

  The arguments are those of `haiku_state.linen.jvp`, but for:

  >>> import jax, jax.numpy as jnp
  >>> from haiku_state import core
  >>> def scale(scope, x):
  ...   return x * scope.param('w', jax.nn.initializers.ones, ())
  >>> def slope(scope, x):
  ...   one = {'params': {'w': jnp.ones(())}}
  ...   return core.jvp(scale, scope, (x,), (1.0,), one)
  >>> y, tangent = core.apply(slope)({'params': {'w': jnp.ones(())}}, 3.0)
  >>> float(y), float(tangent)
  (3.0, 4.0)

  Args:
    fn: takes the scopes, then the arguments.
    scope: a pytree of scopes.
    variable_tangents: for each scope, tangents of collections by name.
  """
  treedef = jax.tree.structure(scope)
  # To JAX a collection with nothing in it is not the same as none.
  given = tuple(
    {col: unfreeze(x) for col, x in collections.items() if x}
    for collections in treedef.flatten_up_to(variable_tangents)
  )

  def inner(packed: Pack, *args):
    jvp_vars, other_vars = packed.variables

    def pure(jvp_vars, args):
      return packed.call(fn, (jvp_vars, other_vars), packed.rngs, *args)

    (y, out), (y_tangent, _) = jax.jvp(
      pure, (jvp_vars, args), (given, tangents)
    )
    return (y, y_tangent), out

  return lifted(
    inner, (tuple(given[0]), variables), (variables,), (rngs,), 'jvp'
  )(scope, *primals)


def custom_vjp(
  fn: Callable[..., Any],
  forward_fn: Callable[..., Any],
  backward_fn: Callable[..., Any],
  grad_vars: CollectionFilter = 'params',
  nondiff_argnums: Any = (),
) -> Callable[..., Any]:
  """Gives a function of scopes its own rule for gradients.

  The arguments are those of `haiku_state.linen.custom_vjp`, but for:

  >>> import jax, jax.numpy as jnp
  >>> from haiku_state import core
  >>> def scale(scope, x):
  ...   return x * scope.param('w', jax.nn.initializers.ones, ())
  >>> def forward(scope, x):
  ...   return core.vjp(scale, scope, x)
  >>> def backward(bwd, gradient):
  ...   variables, x = bwd(gradient)
  ...   return variables, jnp.sign(x)
  >>> model = core.custom_vjp(scale, forward, backward)
  >>> f = core.apply(model)
  >>> float(jax.grad(lambda x: f({'params': {'w': jnp.float32(7)}}, x))(3.0))
  1.0

  Args:
    fn: takes the scopes, then the arguments.
    backward_fn: returns the gradients of the variables in the structure of the
      scopes, and gets no scope.
  """

  def inner(packed: Pack, *args):
    grad_vars, other_vars = packed.variables

    def plain(grad_vars, *args):
      return packed.call(fn, (grad_vars, other_vars), packed.rngs, *args)

    def forward(grad_vars, *args):
      (y, kept), out = packed.call(
        forward_fn, (grad_vars, other_vars), packed.rngs, *args
      )
      return (y, out), kept

    def backward(*args):
      *nondiff, kept, (y_cotangents, _) = args
      variable_gradients, *gradients = backward_fn(*nondiff, kept, y_cotangents)
      per_scope = packed.treedef.flatten_up_to(variable_gradients)
      return (tuple(per_scope), *gradients)

    pure = jax.custom_vjp(plain, nondiff_argnums=nondiff_argnums)
    pure.defvjp(forward, backward)
    return pure(grad_vars, *args)

  return lifted(
    inner, (grad_vars, True), (grad_vars, True), (True,), 'custom_vjp'
  )


def checkpoint(
  fn: Callable[..., Any],
  variables: CollectionFilter = True,
  rngs: PRNGSequenceFilter = True,
  concrete: bool = False,
  prevent_cse: bool = True,
  static_argnums: int | tuple[int, ...] = (),
  policy: Callable[..., bool] | None = None,
) -> Callable[..., Any]:
  """Computes a function again for its gradient, instead of keeping values.

  The arguments are those of `haiku_state.linen.checkpoint`, but for:

  >>> import jax, jax.numpy as jnp
  >>> from haiku_state import core
  >>> def scale(scope, x):
  ...   return x * scope.param('w', jax.nn.initializers.ones, ())
  >>> model = core.apply(core.remat(scale))
  >>> gradients = jax.grad(model)({'params': {'w': jnp.ones(())}}, 3.0)
  >>> float(gradients['params']['w'])
  3.0

  Args:
    fn: takes the scopes, then the arguments.
    static_argnums: positions of arguments, after the scopes, that are not
      traced.
  """
  if concrete:
    raise NotImplementedError(
      'The concrete argument is deprecated. Use static_argnums instead. for'
      ' more information, see'
      ' https://docs.jax.dev/en/latest/jep/11830-new-remat-checkpoint.html'
    )
  # The pure function takes variables and keys before the arguments.
  static = jax.tree.map(lambda i: i + 2, static_argnums)

  def inner(packed: Pack, *args, **kwargs):
    @functools.wraps(fn)
    def pure(variables, rngs, *args, **kwargs):
      return packed.call(fn, variables, rngs, *args, **kwargs)

    rematted = jax.checkpoint(
      pure, static_argnums=static, prevent_cse=prevent_cse, policy=policy
    )
    return rematted(packed.variables, packed.rngs, *args, **kwargs)

  return lifted(
    inner, (variables,), (variables,), (rngs,), 'remat', enable_kwargs=True
  )


remat = checkpoint
