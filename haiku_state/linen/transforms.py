"""JAX's transformations for modules.

They take a module class, a partial of one, or a function whose first argument is
a module (a method in a class body, too), and return the same kind of thing, with
variables and key streams carried through the transformation.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar, cast

import jax

from haiku_state import traceback_util
from haiku_state._axes import InOutAxis, InOutScanAxis
from haiku_state.core import lift, meta
from haiku_state.core.filters import CollectionFilter, PRNGSequenceFilter
from haiku_state.core.frozen_dict import FrozenDict
from haiku_state.linen._module import lifting
from haiku_state.linen._module.context import named_call_enabled
from haiku_state.linen._module.methods import function_name, profile_name
from haiku_state.linen.module import Module

traceback_util.register_exclusion(__file__)

Target = TypeVar('Target', bound=Any)
ModuleT = TypeVar('ModuleT', bound=Module)
C = TypeVar('C')


def vmap(
  target: Target,
  variable_axes: Mapping[CollectionFilter, InOutAxis] = FrozenDict(),
  split_rngs: Mapping[PRNGSequenceFilter, bool] = FrozenDict(),
  in_axes: Any = 0,
  out_axes: Any = 0,
  axis_size: int | None = None,
  axis_name: str | None = None,
  spmd_axis_name: str | None = None,
  metadata_params: Mapping[Any, Any] = {},  # noqa: B006
  methods: Any = None,
) -> Target:
  """Maps a module over an axis, as `jax.vmap` does.

  Example, an ensemble of five::

    >>> import haiku_state.linen as nn
    >>> import jax, jax.numpy as jnp
    >>> Ensemble = nn.vmap(
    ...   nn.Dense, variable_axes={'params': 0}, split_rngs={'params': True},
    ...   in_axes=None, axis_size=5)
    >>> y, variables = Ensemble(3).init_with_output(
    ...   jax.random.key(0), jnp.ones((2, 4)))
    >>> y.shape, variables['params']['kernel'].shape
    ((5, 2, 3), (5, 4, 3))

  Args:
    target: a module class, a partial of one, or a function of a module.
    variable_axes: the axis of each group of collections, None for one that is
      the same for all. Collections that are in no group do not exist inside.
    split_rngs: for each group of key streams, whether each element gets its own
      keys. Streams that are in no group do not exist inside.
    in_axes: the axes of the arguments, without the module.
    out_axes: the axes of the outputs.
    axis_size: the size of the axis, where nothing else shows it.
    axis_name: the name of the axis for collective operations.
    spmd_axis_name: the mesh axis that it is sharded over.
    metadata_params: what boxes are told of the axis.
    methods: of a class, the methods to map: None for `__call__`, a sequence of
      names, or these arguments by name of the method.

  Raises:
    ValueError: the sizes of the axes disagree, or there are none.
  """
  return lifting.lift(
    lift.vmap,
    target,
    variable_axes,
    split_rngs,
    methods=methods,
    in_axes=in_axes,
    out_axes=out_axes,
    axis_size=axis_size,
    axis_name=axis_name,
    metadata_params=metadata_params,
    spmd_axis_name=spmd_axis_name,
  )


def jit(
  target: Target,
  variables: CollectionFilter = True,
  rngs: PRNGSequenceFilter = True,
  static_argnums: int | Iterable[int] = (),
  static_argnames: str | Iterable[str] = (),
  donate_argnums: int | Iterable[int] = (),
  device: Any = None,
  backend: str | None = None,
  methods: Any = None,
) -> Target:
  """Compiles a module, once for all modules that are alike.

  Keys are forked at the border: initial values differ from those without it.

  >>> import jax, jax.numpy as jnp
  >>> import haiku_state.linen as nn
  >>> model = nn.Sequential([nn.jit(nn.Dense)(4), nn.jit(nn.Dense)(4)])
  >>> model.init_with_output(jax.random.key(0), jnp.ones((2, 4)))[0].shape
  (2, 4)

  Args:
    target: a module class, a partial of one, or a function of a module.
    variables: the collections that go in, and may be changed.
    rngs: the key streams that go in.
    static_argnums: positions of arguments that are not traced, where the module
      is at 0.
    static_argnames: names of arguments that are not traced.
    donate_argnums: positions of arguments whose memory may be used again.
    device: where to run: see `jax.jit`.
    backend: where to run: see `jax.jit`.
    methods: see `vmap`.
  """
  return lifting.lift(
    lift.jit,
    target,
    lifter=lifting.lift_methods_cached,
    variables=variables,
    rngs=rngs,
    static_argnums=static_argnums,
    static_argnames=static_argnames,
    donate_argnums=donate_argnums,
    device=device,
    backend=backend,
    methods=methods,
  )


def checkpoint(
  target: Target,
  variables: CollectionFilter = True,
  rngs: PRNGSequenceFilter = True,
  concrete: bool = False,
  prevent_cse: bool = True,
  static_argnums: int | tuple[int, ...] = (),
  policy: Callable[..., bool] | None = None,
  methods: Any = None,
) -> Target:
  """Computes a module again for its gradient, instead of keeping values.

  >>> import jax, jax.numpy as jnp
  >>> import haiku_state.linen as nn
  >>> model = nn.checkpoint(nn.Dense)(2)
  >>> variables = model.init(jax.random.key(0), jnp.ones((1, 3)))
  >>> loss = lambda v: model.apply(v, jnp.ones((1, 3))).sum()
  >>> jax.grad(loss)(variables)['params']['bias']
  Array([1., 1.], dtype=float32)

  Args:
    target: a module class, a partial of one, or a function of a module.
    variables: the collections that go in, and may be changed.
    rngs: the key streams that go in.
    concrete: deprecated in JAX: it must be False.
    prevent_cse: see `jax.checkpoint`; False inside of a scan.
    static_argnums: positions of arguments that are not traced, where the module
      is at 0.
    policy: what to save: see `jax.checkpoint_policies`.
    methods: see `vmap`.
  """
  # The lifted function counts without the module.
  static_argnums = jax.tree.map(lambda i: i - 1, static_argnums)
  return lifting.lift(
    lift.checkpoint,
    target,
    variables=variables,
    rngs=rngs,
    concrete=concrete,
    static_argnums=static_argnums,
    prevent_cse=prevent_cse,
    policy=policy,
    methods=methods,
  )


remat = checkpoint


def scan(
  target: Target,
  variable_axes: Mapping[CollectionFilter, InOutScanAxis] = FrozenDict(),
  variable_broadcast: CollectionFilter = False,
  variable_carry: CollectionFilter = False,
  split_rngs: Mapping[PRNGSequenceFilter, bool] = FrozenDict(),
  in_axes: Any = 0,
  out_axes: Any = 0,
  length: int | None = None,
  reverse: bool = False,
  unroll: int = 1,
  data_transform: Callable[..., Any] | None = None,
  metadata_params: Mapping[Any, Any] = {},  # noqa: B006
  methods: Any = None,
  _split_transpose: bool = False,
  check_constancy_invariants: bool = True,
) -> Target:
  """Loops a module over an axis, as `jax.lax.scan` does.

  The method takes the carry, then other arguments, and returns the next carry
  and an output.

  Example, an LSTM over the second axis::

    >>> import haiku_state.linen as nn
    >>> import jax, jax.numpy as jnp
    >>> LSTM = nn.scan(
    ...   nn.OptimizedLSTMCell, variable_broadcast='params',
    ...   split_rngs={'params': False}, in_axes=1, out_axes=1)
    >>> x = jnp.ones((2, 5, 3))
    >>> lstm = LSTM(4)
    >>> carry = lstm.initialize_carry(jax.random.key(0), x[:, 0].shape)
    >>> (_, y), _ = lstm.init_with_output(jax.random.key(1), carry, x)
    >>> y.shape
    (2, 5, 4)

  Args:
    target: a module class, a partial of one, or a function of a module.
    variable_axes: the axis of each group of collections that has one slice for
      each step.
    variable_broadcast: collections that are the same in all steps.
    variable_carry: collections that go from step to step.
    split_rngs: for each group of key streams, whether each step gets its own
      keys. Streams that are in no group do not exist inside.
    in_axes: the axes of the arguments, without module and carry; `nn.broadcast`
      for one that is the same in all steps.
    out_axes: the axes of the outputs; `nn.broadcast` for one that is.
    length: the number of steps, where nothing else shows it.
    reverse: whether to go from the last step to the first.
    unroll: how many steps to unroll into one.
    data_transform: applied to the groups of variables and of keys in each step,
      for sharding constraints.
    metadata_params: what boxes are told of the axis.
    methods: see `vmap`.
    _split_transpose: see `jax.lax.scan`.
    check_constancy_invariants: whether to trace the module once more, to check
      that what is broadcast does not depend on the step. Without it, there is
      no broadcast output, and broadcast collections stay as they are.

  Raises:
    ValueError: the lengths disagree, or there are none; or what is broadcast
      depends on the step.
  """
  return lifting.lift(
    lift.scan,
    target,
    variable_axes=variable_axes,
    variable_broadcast=variable_broadcast,
    variable_carry=variable_carry,
    split_rngs=split_rngs,
    in_axes=in_axes,
    out_axes=out_axes,
    length=length,
    reverse=reverse,
    unroll=unroll,
    _split_transpose=_split_transpose,
    data_transform=data_transform,
    metadata_params=metadata_params,
    methods=methods,
    check_constancy_invariants=check_constancy_invariants,
  )


def remat_scan(
  target: Target,
  lengths: Sequence[int] | None = (),
  policy: Callable[..., bool] | None = None,
  variable_broadcast: CollectionFilter = False,
  variable_carry: CollectionFilter = False,
  variable_axes: Mapping[CollectionFilter, InOutScanAxis] = FrozenDict(
    {True: 0}
  ),
  split_rngs: Mapping[PRNGSequenceFilter, bool] = FrozenDict({True: True}),
) -> Target:
  """Loops a module in nested scans, all but the innermost rematerialised.

  With d nested scans the memory grows as the d-th root of the number of steps.

  >>> import jax, jax.numpy as jnp
  >>> import haiku_state.linen as nn
  >>> model = nn.remat_scan(nn.Dense, lengths=(10, 10))(4)
  >>> y, variables = model.init_with_output(jax.random.key(0), jnp.ones((2, 4)))
  >>> y.shape, variables['params']['kernel'].shape
  ((2, 4), (10, 10, 4, 4))

  Args:
    target: a module class, a partial of one, or a function of a module; it takes
      a carry and returns one of the same type.
    lengths: the lengths of the scans, from the outermost.
    policy: see `checkpoint`.
    variable_broadcast: see `scan`.
    variable_carry: see `scan`.
    variable_axes: see `scan`.
    split_rngs: see `scan`.
  """
  return lifting.lift(
    lift.remat_scan,
    target,
    lengths=lengths,
    variable_broadcast=variable_broadcast,
    variable_carry=variable_carry,
    variable_axes=variable_axes,
    split_rngs=split_rngs,
    policy=policy,
  )


def map_variables(
  target: Target,
  mapped_collections: CollectionFilter = True,
  trans_in_fn: Callable[..., Any] = lift.id_fn,
  trans_out_fn: Callable[..., Any] = lift.id_fn,
  init: bool = False,
  mutable: bool = False,
  rngs: PRNGSequenceFilter = True,
  variables: CollectionFilter = True,
  methods: Any = None,
) -> Target:
  """Shows a module other variables than there are.

  Example, a dense layer with a kernel of ones and minus ones::

    >>> import haiku_state.linen as nn
    >>> import jax, jax.numpy as jnp
    >>> def signs(variables):
    ...   return jax.tree.map(jnp.sign, variables)
    >>> Binary = nn.map_variables(nn.Dense, 'params', signs, init=True)
    >>> y, _ = Binary(3, use_bias=False).init_with_output(
    ...   jax.random.key(0), jnp.ones((1, 1)))
    >>> jnp.abs(y)
    Array([[1., 1., 1.]], dtype=float32)

  Args:
    target: a module class, a partial of one, or a function of a module.
    mapped_collections: the collections that it sees changed.
    trans_in_fn: from the variables to those that the module sees.
    trans_out_fn: from those that it has made or changed to the variables.
    init: whether the module makes variables, which go out and in again.
    mutable: whether it may change the mapped collections.
    rngs: the key streams that go in.
    variables: the other collections that go in.
    methods: see `vmap`.
  """
  return lifting.lift(
    lift.map_variables,
    target,
    mapped_collections,
    trans_in_fn,
    trans_out_fn,
    init,
    mutable,
    rngs,
    variables,
    methods=methods,
  )


def vjp(
  fn: Callable[..., Any],
  mdl: Module,
  *primals: Any,
  has_aux: bool = False,
  reduce_axes: Any = (),
  vjp_variables: CollectionFilter = 'params',
  variables: CollectionFilter = True,
  rngs: PRNGSequenceFilter = True,
  multi_scope: bool = False,
) -> Any:
  """Returns an output, and a function from cotangents of it to gradients.

  >>> import jax, jax.numpy as jnp
  >>> import haiku_state.linen as nn
  >>> class Slope(nn.Module):
  ...   @nn.compact
  ...   def __call__(self, x):
  ...     dense = nn.Dense(1, kernel_init=nn.initializers.constant(2.0))
  ...     y, bwd = nn.vjp(lambda dense, x: dense(x), dense, x)
  ...     variable_gradients, x_gradient = bwd(jnp.ones_like(y))
  ...     return x_gradient
  >>> Slope().init_with_output(jax.random.key(0), jnp.ones((1, 3)))[0]
  Array([[2., 2., 2.]], dtype=float32)

  Args:
    fn: takes the module, then the arguments.
    mdl: the module.
    *primals: the arguments.
    has_aux: whether `fn` returns an output and something else.
    reduce_axes: deprecated in JAX: it must be empty.
    vjp_variables: the collections to differentiate with respect to.
    variables: the other collections that go in, and may be changed.
    rngs: the key streams that go in.
    multi_scope: whether the module may hold modules from elsewhere; the
      gradients of variables are then a list, one for each scope.

  Returns:
    The output of `fn`, the function, and what else `fn` returns if `has_aux`.
    The function returns the gradients of the variables, then those of the
    arguments.
  """
  if reduce_axes:
    raise NotImplementedError('reduce_axes argument to vjp is deprecated')
  return lifting.lift_call(
    lift.vjp,
    (fn,),
    mdl,
    *primals,
    multi_scope=multi_scope,
    has_aux=has_aux,
    vjp_variables=vjp_variables,
    variables=variables,
    rngs=rngs,
  )


def value_and_grad(
  fn: Callable[..., Any],
  mdl: Module,
  *primals: Any,
  has_aux: bool = False,
  reduce_axes: Any = (),
  variables: CollectionFilter = True,
  rngs: PRNGSequenceFilter = True,
) -> Any:
  """Returns an output and its gradients with respect to all arguments.

  >>> import jax, jax.numpy as jnp
  >>> import haiku_state.linen as nn
  >>> class Slope(nn.Module):
  ...   @nn.compact
  ...   def __call__(self, x):
  ...     dense = nn.Dense(1, kernel_init=nn.initializers.constant(2.0))
  ...     return nn.value_and_grad(
  ...       lambda dense, x: dense(x).sum(), dense, x
  ...     )
  >>> x = jnp.ones((1, 3))
  >>> (y, gradients), _ = Slope().init_with_output(jax.random.key(0), x)
  >>> y, gradients
  (Array(6., dtype=float32), (Array([[2., 2., 2.]], dtype=float32),))

  Args:
    fn: takes the module, then the arguments; returns a scalar.
    mdl: the module.
    *primals: the arguments.
    has_aux: whether `fn` returns an output and something else.
    reduce_axes: deprecated in JAX: it must be empty.
    variables: the collections that go in, and may be changed.
    rngs: the key streams that go in.

  Returns:
    The output of `fn`, with what else it returns if `has_aux`, and a tuple of
    gradients.

  Raises:
    ValueError: the output is not a scalar.
  """
  if reduce_axes:
    raise NotImplementedError(
      'reduce_axes argument to value_and_grad is deprecated'
    )
  out, *aux, gradients = lifting.lift_call(
    lift.value_and_grad,
    (fn,),
    mdl,
    *primals,
    has_aux=has_aux,
    variables=variables,
    rngs=rngs,
  )
  if out.shape != ():
    raise ValueError(
      'grad can only work on functions with scalar-valued outputs. out'
      f' shape={out.shape}'
    )
  return ((out, *aux) if has_aux else out), gradients


def grad(
  fn: Callable[..., Any],
  mdl: Module,
  *primals: Any,
  has_aux: bool = False,
  reduce_axes: Any = (),
  variables: CollectionFilter = True,
  rngs: PRNGSequenceFilter = True,
) -> Any:
  """Returns the gradients of an output with respect to all arguments.

  >>> import jax, jax.numpy as jnp
  >>> import haiku_state.linen as nn
  >>> class Slope(nn.Module):
  ...   @nn.compact
  ...   def __call__(self, x):
  ...     dense = nn.Dense(1, kernel_init=nn.initializers.constant(2.0))
  ...     return nn.grad(
  ...       lambda dense, x: dense(x).sum(), dense, x
  ...     )
  >>> Slope().init_with_output(jax.random.key(0), jnp.ones((1, 3)))[0]
  (Array([[2., 2., 2.]], dtype=float32),)

  Args:
    fn: see `value_and_grad`.
    mdl: the module.
    *primals: the arguments.
    has_aux: whether `fn` returns an output and something else.
    reduce_axes: deprecated in JAX: it must be empty.
    variables: the collections that go in, and may be changed.
    rngs: the key streams that go in.

  Returns:
    A tuple of gradients, and with it what else `fn` returns if `has_aux`.
  """
  if reduce_axes:
    raise NotImplementedError('reduce_axes argument to grad is deprecated')
  out, gradients = value_and_grad(
    fn, mdl, *primals, has_aux=has_aux, variables=variables, rngs=rngs
  )
  return (gradients, out[1]) if has_aux else gradients


def jvp(
  fn: Callable[..., Any],
  mdl: Module,
  primals: Any,
  tangents: Any,
  variable_tangents: Any,
  variables: CollectionFilter = True,
  rngs: PRNGSequenceFilter = True,
) -> tuple[Any, Any]:
  """Returns an output and its tangent.

  >>> import jax, jax.numpy as jnp
  >>> import haiku_state.linen as nn
  >>> class Slope(nn.Module):
  ...   @nn.compact
  ...   def __call__(self, x):
  ...     dense = nn.Dense(1, kernel_init=nn.initializers.constant(2.0))
  ...     return nn.jvp(
  ...       lambda dense, x: dense(x), dense, (x,), (jnp.ones_like(x),), {}
  ...     )
  >>> Slope().init_with_output(jax.random.key(0), jnp.ones((1, 3)))[0]
  (Array([[6.]], dtype=float32), Array([[6.]], dtype=float32))

  Args:
    fn: takes the module, then the arguments.
    mdl: the module.
    primals: the arguments.
    tangents: the tangents of the arguments.
    variable_tangents: tangents of collections by name.
    variables: the other collections that go in, and may be changed.
    rngs: the key streams that go in.
  """
  return lifting.lift_call(
    lift.jvp,
    (fn,),
    mdl,
    primals,
    tangents,
    variable_tangents,
    multi_scope=False,
    variables=variables,
    rngs=rngs,
  )


def while_loop(
  cond_fn: Callable[[ModuleT, C], Any],
  body_fn: Callable[[ModuleT, C], C],
  mdl: ModuleT,
  init: C,
  carry_variables: CollectionFilter = False,
  broadcast_variables: CollectionFilter = True,
  split_rngs: Mapping[PRNGSequenceFilter, bool] = FrozenDict(),
) -> C:
  """Calls a function of a module while a condition holds.

  >>> import jax, jax.numpy as jnp
  >>> import haiku_state.linen as nn
  >>> class Doubling(nn.Module):
  ...   @nn.compact
  ...   def __call__(self, x):
  ...     self.variable('counts', 'steps', jnp.zeros, ())
  ...     def double(module, x):
  ...       steps = module.get_variable('counts', 'steps')
  ...       module.put_variable('counts', 'steps', steps + 1)
  ...       return 2 * x
  ...     return nn.while_loop(
  ...       lambda module, x: x < 100, double, self, x, carry_variables='counts'
  ...     )
  >>> variables = Doubling().init({}, 200.0)
  >>> y, updates = Doubling().apply(variables, 1.0, mutable='counts')
  >>> float(y), float(updates['counts']['steps'])
  (128.0, 7.0)

  Args:
    cond_fn: takes the module and the carry; returns whether to go on. It may
      change nothing.
    body_fn: takes the module and the carry; returns the next carry.
    mdl: the module.
    init: the first carry.
    carry_variables: collections that go from step to step. They may change, but
      no variable may appear.
    broadcast_variables: collections that are the same in all steps.
    split_rngs: for each group of key streams, whether each step gets its own
      keys. Streams that are in no group do not exist inside.
  """
  return lifting.lift_call(
    lift.while_loop,
    (cond_fn, body_fn),
    mdl,
    init,
    carry_variables=carry_variables,
    broadcast_variables=broadcast_variables,
    split_rngs=split_rngs,
  )


def cond(
  pred: Any,
  true_fun: Callable[..., C],
  false_fun: Callable[..., C],
  mdl: Module,
  *operands: Any,
  variables: CollectionFilter = True,
  rngs: PRNGSequenceFilter = True,
) -> C:
  """Calls one of two functions of a module, by a condition.

  >>> import jax, jax.numpy as jnp
  >>> import haiku_state.linen as nn
  >>> class Choice(nn.Module):
  ...   @nn.compact
  ...   def __call__(self, x, one):
  ...     head = lambda module, x: nn.Dense(2, name='head')(x)
  ...     return nn.cond(one, head, lambda m, x: 2 * head(m, x), self, x)
  >>> choice, x = Choice(), jnp.ones((1, 3))
  >>> variables = choice.init(jax.random.key(0), x, True)
  >>> one, two = (choice.apply(variables, x, b) for b in (True, False))
  >>> bool((two == 2 * one).all())
  True

  Args:
    pred: the condition.
    true_fun: called if it holds.
    false_fun: called if it does not. Both return the same type, and make the
      same variables.
    mdl: the module.
    *operands: arguments of both.
    variables: the collections that go in, and may be changed.
    rngs: the key streams that go in.
  """

  def _cond_wrapper(true_fn, false_fn, scope, pred, *ops, variables, rngs):
    return lift.cond(
      pred, true_fn, false_fn, scope, *ops, variables=variables, rngs=rngs
    )

  return lifting.lift_call(
    _cond_wrapper,
    (true_fun, false_fun),
    mdl,
    pred,
    *operands,
    variables=variables,
    rngs=rngs,
  )


def switch(
  index: Any,
  branches: Sequence[Callable[..., C]],
  mdl: Module,
  *operands: Any,
  variables: CollectionFilter = True,
  rngs: PRNGSequenceFilter = True,
) -> C:
  """Calls one of several functions of a module, by its number.

  >>> import jax, jax.numpy as jnp
  >>> import haiku_state.linen as nn
  >>> class Choice(nn.Module):
  ...   @nn.compact
  ...   def __call__(self, x, i):
  ...     scale = self.param('scale', nn.initializers.ones, ())
  ...     branches = [lambda module, x, n=n: n * scale * x for n in range(3)]
  ...     return nn.switch(i, branches, self, x)
  >>> choice = Choice()
  >>> variables = choice.init(jax.random.key(0), 5.0, 0)
  >>> [float(choice.apply(variables, 5.0, i)) for i in range(3)]
  [0.0, 5.0, 10.0]

  Args:
    index: which one; clamped to the number of branches.
    branches: the functions. All return the same type, and make the same
      variables.
    mdl: the module.
    *operands: arguments of the functions.
    variables: the collections that go in, and may be changed.
    rngs: the key streams that go in.
  """

  def _switch_wrapper(*args, variables, rngs):
    fns = args[: len(branches)]
    scope, index, *operands = args[len(branches) :]
    return lift.switch(
      index, fns, scope, *operands, variables=variables, rngs=rngs
    )

  return lifting.lift_call(
    _switch_wrapper,
    tuple(branches),
    mdl,
    index,
    *operands,
    variables=variables,
    rngs=rngs,
  )


def custom_vjp(
  fn: Callable[..., Any],
  forward_fn: Callable[..., Any],
  backward_fn: Callable[..., Any],
  grad_vars: CollectionFilter = 'params',
  nondiff_argnums: Any = (),
) -> Callable[..., Any]:
  """Gives a function of a module its own rule for gradients.

  >>> import jax, jax.numpy as jnp
  >>> import haiku_state.linen as nn
  >>> class Clipped(nn.Module):
  ...   @nn.compact
  ...   def __call__(self, x):
  ...     def scale(module, x):
  ...       return x * module.param('w', nn.initializers.ones, ())
  ...     def forward(module, x):
  ...       return nn.vjp(scale, module, x)
  ...     def backward(bwd, gradient):
  ...       variables, x = bwd(gradient)
  ...       return variables, jnp.clip(x, -0.1, 0.1)
  ...     return nn.custom_vjp(scale, forward, backward)(self, x)
  >>> variables = Clipped().init(jax.random.key(0), 3.0)
  >>> jax.grad(lambda x: Clipped().apply(variables, x))(3.0)
  Array(0.1, dtype=float32, weak_type=True)

  Args:
    fn: takes the module, then the arguments.
    forward_fn: like `fn`; returns the output and what `backward_fn` needs.
    backward_fn: takes the arguments at `nondiff_argnums`, what `forward_fn`
      kept, and the cotangents of the output; returns the gradients of the
      variables and those of the arguments. It gets no module: nothing could
      flow out of it.
    grad_vars: the collections to differentiate with respect to.
    nondiff_argnums: positions of arguments that are not differentiated.
  """

  def either(*args, needs_residual, **kwargs):
    return (forward_fn if needs_residual else fn)(*args, **kwargs)

  def transform(scope_fn, backward_fn, grad_vars, nondiff_argnums):
    return lift.custom_vjp(
      functools.partial(scope_fn, needs_residual=False),
      functools.partial(scope_fn, needs_residual=True),
      backward_fn,
      grad_vars,
      nondiff_argnums,
    )

  return lifting.lift(
    transform,
    either,
    backward_fn=backward_fn,
    grad_vars=grad_vars,
    nondiff_argnums=nondiff_argnums,
    multi_scope=False,
  )


def named_call(
  class_fn: Callable[..., Any], force: bool = True
) -> Callable[..., Any]:
  """Names the operations of a method in profiles.

  >>> import jax, jax.numpy as jnp
  >>> import haiku_state.linen as nn
  >>> class Model(nn.Module):
  ...   @nn.named_call
  ...   @nn.compact
  ...   def __call__(self, x):
  ...     return nn.Dense(2)(x)
  >>> Model().init_with_output(jax.random.key(0), jnp.ones((1, 3)))[0].shape
  (1, 2)

  Args:
    class_fn: the method.
    force: whether to do it also where `disable_named_call` was called.
  """

  @functools.wraps(class_fn)
  def wrapped(self, *args, **kwargs):
    if self._state.in_setup or not (force or named_call_enabled()):
      return class_fn(self, *args, **kwargs)
    name = profile_name(self, function_name(class_fn))
    return jax.named_call(class_fn, name=name)(self, *args, **kwargs)

  return wrapped


def add_metadata_axis(
  target: Target,
  variable_axes: Mapping[CollectionFilter, InOutAxis] = FrozenDict(),
  metadata_params: dict[Any, Any] = {},  # noqa: B006
) -> Target:
  """Tells the boxes of variables of an axis, and does not map over it.

  >>> import jax, jax.numpy as jnp
  >>> import haiku_state.linen as nn
  >>> kernel_init = nn.with_partitioning(nn.initializers.ones, ('in', 'out'))
  >>> Stacked = nn.add_metadata_axis(
  ...   nn.Dense, variable_axes={'params': 0},
  ...   metadata_params={nn.PARTITION_NAME: 'layers'})
  >>> variables = Stacked(2, kernel_init=kernel_init).init(
  ...   jax.random.key(0), jnp.ones((1, 3)))
  >>> variables['params']['kernel'].names
  ('layers', 'in', 'out')

  Args:
    target: a module class, a partial of one, or a function of a module.
    variable_axes: the axis of each group of collections.
    metadata_params: what boxes are told of the axis.
  """
  for col, axis in variable_axes.items():
    target = map_variables(
      target,
      col,
      trans_in_fn=functools.partial(
        meta.remove_axis, index=cast(int, axis), params=metadata_params
      ),
      trans_out_fn=functools.partial(
        meta.add_axis, index=cast(int, axis), params=metadata_params
      ),
      mutable=True,
    )
  return target


def fold_rngs(
  target: Target,
  variables: CollectionFilter = True,
  rngs: PRNGSequenceFilter = True,
) -> Target:
  """Derives keys as `jit` does, and does nothing else.

  >>> import jax, jax.numpy as jnp
  >>> import haiku_state.linen as nn
  >>> x, key = jnp.ones((1, 3)), jax.random.key(0)
  >>> folded = nn.fold_rngs(nn.Dense)(2).init_with_output(key, x)[0]
  >>> compiled = nn.jit(nn.Dense)(2).init_with_output(key, x)[0]
  >>> bool(jnp.allclose(folded, compiled))
  True

  Args:
    target: a module class, a partial of one, or a function of a module.
    variables: the collections that go in, and may be changed.
    rngs: the key streams that go in.
  """
  return lifting.lift(
    lift.fold_rngs,
    target,
    lifter=lifting.lift_methods_cached,
    variables=variables,
    rngs=rngs,
  )
