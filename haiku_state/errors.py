"""The errors of haiku_state: what was written, why it fails, what to write.

A message ends with the dotted name of its class, by which `haiku-state explain`
prints the lesson below. The words of the messages are Flax's, so that programs
and tests which match on them keep working.

A class is made only for a mistake that needs more than a line to explain. Its
docstring says what you wrote, why that cannot work, and what to write instead.
"""

import re

# A message that was finished before, as when an error is raised again from its
# own text.
_IS_FINISHED = r' \((?:\w+\.)+\w+\)\Z'


def _restore(cls, message):
  """Makes an error of class `cls` from a finished message."""
  error = cls.__new__(cls)
  Exception.__init__(error, message)
  return error


class FlaxError(Exception):
  """The base class of all errors below.

  Catch it to catch any of them. The message of a class of your own that derives
  from it ends with its name, too.

  Args:
    message: what went wrong. A message that already ends with a name, as when
      an error is raised again from its own text, is left alone.

  Example:
    >>> from haiku_state import errors
    >>> try:
    ...   raise errors.InvalidScopeError('decoder')
    ... except errors.FlaxError as error:
    ...   print(str(error).partition(' (')[0])
    The scope "decoder" is no longer valid.
  """

  def __init__(self, message):
    if not re.search(_IS_FINISHED, message):
      cls = type(self)
      message = f'{message} ({cls.__module__}.{cls.__name__})'
    super().__init__(message)

  def __reduce__(self):
    # The subclasses build their message from other arguments, so Exception's
    # own way, calling the class with `args` again, would fail or say it twice.
    return _restore, (type(self), str(self)), self.__dict__


def _with_hint(error, hint):
  """Returns an error whose message also says what may be meant.

  The signatures of the classes are Flax's, and have no place for it.
  """
  message, name = str(error)[:-1].rsplit(' (', 1)
  return _restore(type(error), f'{message} {hint} ({name})') if hint else error


# Tracing and lazy initialization


class TraceContextError(FlaxError):
  """A value was used under another JAX trace than it belongs to.

  An object that holds traced values was made at one level of `jax.jit`,
  `jax.vmap` or `jax.grad` and changed at another. Its values would leak out of
  the trace. Pass it through the transform as an argument and a result.

  Example:
    >>> import jax
    >>> counter = {'n': 0}
    >>> # jax.jit(lambda x: counter.update(n=x))(1)  would leak a tracer.
    >>> counter = jax.jit(lambda c: {'n': c['n'] + 1})(counter)
    >>> int(counter['n'])
    1
  """


class LazyInitError(FlaxError):
  """`lazy_init` met a value that depends on a missing input.

  You gave an input as a `jax.ShapeDtypeStruct`, a shape without data, and an
  initializer needed the data. Pass a real array for each input on which the
  initial variables depend; shapes do for the others.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> import haiku_state.linen as nn
    >>> class Centered(nn.Module):
    ...   @nn.compact
    ...   def __call__(self, x):
    ...     return x - self.param('center', lambda key: x.mean())
    >>> # A jax.ShapeDtypeStruct here has no mean.
    >>> x = jnp.ones((2, 3))
    >>> variables = Centered().lazy_init(jax.random.key(0), x)
    >>> float(variables['params']['center'])
    1.0
  """

  def __init__(self, partial_val):
    super().__init__(
      'Lazy init encountered a value that could with '
      f'the given inputs (shape: {partial_val}).'
    )


# Scopes: keys, variables, filters


class InvalidRngError(FlaxError):
  """A key is missing, of the wrong kind, or cannot be drawn.

  Either a module asked for a stream (`self.make_rng('dropout')`, often inside
  a layer) for which `init` or `apply` got no key, or what was passed as
  `rngs=` is not a key or a dict of keys. Pass one key per stream.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> import haiku_state.linen as nn
    >>> drop = nn.Dropout(0.5, deterministic=False)
    >>> # drop.apply({}, jnp.ones(4))  has no key for 'dropout'.
    >>> y = drop.apply({}, jnp.ones(4), rngs={'dropout': jax.random.key(0)})
    >>> y.shape
    (4,)
  """

  def __init__(self, msg):
    # Written out, though it only passes on, so that the name of the argument
    # is the one that callers know.
    super().__init__(msg)


class ApplyScopeInvalidVariablesTypeError(FlaxError):
  """The variables given to `apply` are not a dict of collections.

  You passed something else, often the arguments in another order, or a dict
  whose keys are not strings. The first argument is `{collection: {name: ...}}`.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> import haiku_state.linen as nn
    >>> x = jnp.ones((1, 3))
    >>> variables = nn.Dense(2).init(jax.random.key(0), x)
    >>> # nn.Dense(2).apply(x, variables)  has them the wrong way round.
    >>> nn.Dense(2).apply(variables, x).shape
    (1, 2)
  """

  def __init__(self):
    super().__init__(
      'The first argument passed to an apply function should be a dictionary '
      'of collections. Each collection should be a dictionary with string '
      'keys.'
    )


class ApplyScopeInvalidVariablesStructureError(FlaxError):
  """The variables given to `apply` hold `params` inside `params`.

  You wrapped a dict that already is `{'params': ...}` in another one, so no
  module would find its parameters. Pass it as it is.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> import haiku_state.linen as nn
    >>> x = jnp.ones((1, 3))
    >>> variables = nn.Dense(2).init(jax.random.key(0), x)
    >>> # nn.Dense(2).apply({'params': variables}, x)  has one layer too many.
    >>> nn.Dense(2).apply({'params': variables['params']}, x).shape
    (1, 2)
  """

  def __init__(self, variables):
    # `variables` is part of the signature, not of the message: printing the
    # parameters of a model would bury the sentence.
    super().__init__(
      'Expect the `variables` (first argument) passed to apply() to be a dict '
      'with the structure {"params": ...}, but got a dict with an extra params '
      'layer, i.e.  {"params": {"params": ... } }. You should instead pass in '
      'your dict\'s ["params"].'
    )


class ScopeParamNotFoundError(FlaxError):
  """A parameter is not among the variables that were given.

  You called `apply` with variables of another model, or with only a part of
  them, or the model makes other submodules now than it did at `init`.
  Parameters are made by `init` alone: call it again, or pass the right ones.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> import haiku_state.linen as nn
    >>> x = jnp.ones((1, 3))
    >>> # nn.Dense(2).apply({'params': {}}, x)  lacks the kernel.
    >>> variables = nn.Dense(2).init(jax.random.key(0), x)
    >>> nn.Dense(2).apply(variables, x).shape
    (1, 2)
  """

  def __init__(self, param_name, scope_path):
    super().__init__(
      f'Could not find parameter named "{param_name}" in scope "{scope_path}".'
    )


class ScopeCollectionNotFound(FlaxError):
  """A variable was wanted from a collection that was not given.

  The collection is missing from the variables passed to `apply`, or empty, and
  it is not mutable, so it cannot be filled. Pass it along with the parameters,
  or name it in `mutable=` to have it made anew.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> import haiku_state.linen as nn
    >>> norm = nn.BatchNorm(use_running_average=True)
    >>> x = jnp.ones((4, 3))
    >>> variables = norm.init(jax.random.key(0), x)
    >>> # norm.apply({'params': variables['params']}, x)  has no averages.
    >>> norm.apply(variables, x).shape
    (4, 3)
  """

  def __init__(self, col_name, var_name, scope_path):
    super().__init__(
      f'Tried to access "{var_name}" from collection "{col_name}" in '
      f'"{scope_path}" but the collection is empty.'
    )


class ScopeParamShapeError(FlaxError):
  """A parameter has another shape than the model gives it.

  The parameters were made for an input, or for a number of features, other
  than those of this call. Give an input of the shape seen at `init`, or make
  new parameters.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> import haiku_state.linen as nn
    >>> model = nn.Dense(2)
    >>> variables = model.init(jax.random.key(0), jnp.ones((1, 3)))
    >>> # model.apply(variables, jnp.ones((1, 5)))  needs a (5, 2) kernel.
    >>> model.apply(variables, jnp.ones((7, 3))).shape
    (7, 2)
  """

  def __init__(self, param_name, scope_path, value_shape, init_shape):
    super().__init__(
      f'For parameter "{param_name}" in "{scope_path}", the given initializer '
      f'is expected to generate shape {init_shape}, but the existing parameter '
      f'it received has shape {value_shape}.'
    )


class ScopeVariableNotFoundError(FlaxError):
  """A variable was read that nobody has made.

  The collection is there, but holds no variable of that name in this module.
  Check the name, or give an initial value where it is declared.

  Example:
    >>> import haiku_state.linen as nn
    >>> class Counter(nn.Module):
    ...   @nn.compact
    ...   def __call__(self):
    ...     # self.variable('counts', 'n')  has nothing to begin with.
    ...     n = self.variable('counts', 'n', lambda: 0)
    ...     n.value += 1
    ...     return n.value
    >>> Counter().apply({}, mutable=['counts'])[0]
    1
  """

  def __init__(self, name, col, scope_path):
    super().__init__(
      f'No Variable named "{name}" for collection "{col}" '
      f'exists in "{scope_path}".'
    )


class InvalidFilterError(FlaxError):
  """Something is not a filter of collections or streams.

  A filter is a bool (all or none), a string (that one), a container of
  strings (those), or a `DenyList` of any of them (all but those).

  Example:
    >>> import haiku_state.linen as nn
    >>> class Noop(nn.Module):
    ...   def __call__(self):
    ...     return 1
    >>> # Noop().apply({}, mutable=3)
    >>> y, updates = Noop().apply({}, mutable=nn.DenyList('params'))
    >>> y
    1
  """

  def __init__(self, filter_like):
    super().__init__(f'Invalid Filter: "{filter_like}"')


class InvalidScopeError(FlaxError):
  """A scope was used after the run to which it belonged.

  You kept a scope, or a module bound to one, beyond the `init`, `apply` or
  lifted transform that made it. Return values, not scopes; or use `bind` for
  a module that stays usable.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from haiku_state import core
    >>> def f(scope):
    ...   # `return scope` would hand out a dead one.
    ...   return scope.param('w', jax.nn.initializers.ones, (2,))
    >>> w, variables = core.init(f)(jax.random.key(0))
    >>> w.shape
    (2,)
  """

  def __init__(self, scope_name):
    super().__init__(f'The scope "{scope_name}" is no longer valid.')


class ModifyScopeVariableError(FlaxError):
  """A variable was set whose collection is not mutable.

  By default `apply` changes nothing and returns the output alone. Name the
  collections that it may change; they come back beside the output.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> import haiku_state.linen as nn
    >>> norm = nn.BatchNorm(use_running_average=False)
    >>> x = jnp.ones((4, 3))
    >>> variables = norm.init(jax.random.key(0), x)
    >>> # norm.apply(variables, x)  may not update the averages.
    >>> y, updates = norm.apply(variables, x, mutable=['batch_stats'])
    >>> list(updates)
    ['batch_stats']
  """

  def __init__(self, col, variable_name, scope_path):
    super().__init__(
      f'Cannot update variable "{variable_name}" in "{scope_path}" '
      f'because collection "{col}" is immutable.'
    )


class ImmutableVariableError(FlaxError):
  """A variable was set that can no longer be changed.

  A lifted transform passes some variables in only to be read. Declare, in the
  transform, the collection as one that comes out as well.

  Example:
    >>> import jax
    >>> import haiku_state.linen as nn
    >>> class Counter(nn.Module):
    ...   @nn.compact
    ...   def __call__(self, carry, _):
    ...     n = self.variable('counts', 'n', lambda: 0)
    ...     n.value += 1
    ...     return carry, n.value
    >>> # With variable_broadcast='counts' the steps could only read it.
    >>> count = nn.scan(Counter, variable_carry='counts', length=3)()
    >>> (_, ns), _ = count.apply({'counts': {'n': 0}}, 0, None, mutable='counts')
    >>> ns.tolist()
    [1, 2, 3]
  """

  def __init__(self, message):
    super().__init__(message)


class JaxTransformError(FlaxError):
  """A variable would keep a value that a JAX transform traces.

  A module may be used inside of `jax.grad`, `jax.vmap`, `jax.jit` and the like,
  where its variables are constants. But what is traced there must not be kept
  when the transform is over: a parameter that is first made inside of `jax.jit`,
  or a variable that is set to what was computed inside of `jax.vmap`. Use the
  lifted transform of the same name, which hands variables out; or call the
  module once before; or put the JAX one around `init` and `apply`.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> import haiku_state.linen as nn
    >>> class Model(nn.Module):
    ...   @nn.compact
    ...   def __call__(self, x):
    ...     # dense = nn.Dense(2); jax.jit(lambda x: dense(x))(x)  would leak.
    ...     return nn.jit(nn.Dense)(2)(x)
    >>> y, _ = Model().init_with_output(jax.random.key(0), jnp.ones((1, 3)))
    >>> y.shape
    (1, 2)
  """

  def __init__(self):
    super().__init__('Jax transforms and Flax models cannot be mixed.')


# Metadata


class PartitioningUnspecifiedError(FlaxError):
  """A transform adds an axis to `Partitioned` without its name.

  `nn.vmap` and `nn.scan` add an axis to the variables of their body. Variables
  boxed by `nn.with_partitioning` carry a name per axis, so the new one needs a
  name too: give it in `metadata_params`.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> import haiku_state.linen as nn
    >>> init = nn.with_partitioning(nn.initializers.ones, (None, 'model'))
    >>> heads = nn.vmap(
    ...   nn.Dense, in_axes=None, axis_size=4,
    ...   variable_axes={'params': 0}, split_rngs={'params': True},
    ...   metadata_params={nn.PARTITION_NAME: 'heads'},
    ... )(2, kernel_init=init)
    >>> variables = heads.init(jax.random.key(0), jnp.ones(3))
    >>> variables['params']['kernel'].names
    ('heads', None, 'model')
  """

  def __init__(self, target):
    super().__init__(
      'Trying to transform a Partitioned variable but "partition_name" is not '
      f'specified in metadata_params: {target}'
    )


# Modules: names, setup, binding


class NameInUseError(FlaxError):
  """A name is taken twice within one module.

  Parameters, variables and submodules of a module share one set of names: two
  of them may not be called the same, except that variables of different
  collections may. Choose another name.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> import haiku_state.linen as nn
    >>> class Model(nn.Module):
    ...   @nn.compact
    ...   def __call__(self, x):
    ...     x = nn.Dense(2, name='a')(x)
    ...     # nn.Dense(2, name='a')(x)  is a second 'a'.
    ...     return nn.Dense(2, name='b')(x)
    >>> variables = Model().init(jax.random.key(0), jnp.ones((1, 2)))
    >>> sorted(variables['params'])
    ['a', 'b']
  """

  def __init__(self, key_type, value, module_name):
    super().__init__(
      f'Could not create {key_type} "{value}" in Module {module_name}: '
      'Name in use.'
    )


class AssignSubModuleError(FlaxError):
  """A submodule was made in an ordinary method.

  Submodules get their names in the order in which they are made, which is
  known only for `setup` and for a method marked `@nn.compact`. Make it there.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> import haiku_state.linen as nn
    >>> class Model(nn.Module):
    ...   def setup(self):
    ...     self.dense = nn.Dense(2)
    ...
    ...   def __call__(self, x):
    ...     # `nn.Dense(2)(x)` cannot be named here.
    ...     return self.dense(x)
    >>> variables = Model().init(jax.random.key(0), jnp.ones((1, 3)))
    >>> list(variables['params'])
    ['dense']
  """

  def __init__(self, cls):
    super().__init__(
      f'Submodule {cls} must be defined in `setup()` or in a method wrapped in '
      '`@compact`'
    )


class SetAttributeInModuleSetupError(FlaxError):
  """`setup` assigned to one of the module's own fields.

  The fields are what the module was made with, and stay so, as equality,
  hashing and `clone` rest on them. Assign to a new attribute.

  Example:
    >>> import jax.numpy as jnp
    >>> import haiku_state.linen as nn
    >>> class Scale(nn.Module):
    ...   factor: float = 2.0
    ...
    ...   def setup(self):
    ...     # `self.factor = -self.factor` would change the field.
    ...     self.negative = -self.factor
    ...
    ...   def __call__(self, x):
    ...     return x * self.negative
    >>> float(Scale().apply({}, jnp.ones(())))
    -2.0
  """

  def __init__(self):
    super().__init__('Module construction attributes are frozen.')


class SetAttributeFrozenModuleError(FlaxError):
  """An attribute was set on a module outside `setup`.

  A module describes a computation and is not changed by it. What changes from
  call to call is a variable; what differs between two modules is a field, set
  when the module is made or by `clone`.

  Example:
    >>> import haiku_state.linen as nn
    >>> dense = nn.Dense(2)
    >>> # dense.features = 3
    >>> dense.clone(features=3).features
    3
  """

  def __init__(self, module_cls, attr_name, attr_val):
    super().__init__(
      f"Can't set {attr_name}={attr_val} for Module of type {module_cls}: "
      'Module instance is frozen outside of setup method.'
    )


class MultipleMethodsCompactError(FlaxError):
  """Two methods of one class are marked `@nn.compact`.

  A compact method names what it makes by counting, and two of them would count
  to the same names. Keep one, and make in `setup` what several methods use.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> import haiku_state.linen as nn
    >>> class AutoEncoder(nn.Module):
    ...   def setup(self):
    ...     self.down, self.up = nn.Dense(2), nn.Dense(3)
    ...
    ...   def encode(self, x):
    ...     return self.down(x)
    ...
    ...   def __call__(self, x):
    ...     return self.up(self.encode(x))
    >>> variables = AutoEncoder().init(jax.random.key(0), jnp.ones((1, 3)))
    >>> sorted(variables['params'])
    ['down', 'up']
  """

  def __init__(self):
    super().__init__('Only one method per class can be @compact')


class ReservedModuleAttributeError(FlaxError):
  """A module class declares a field `parent` or `name`.

  Every module has these two already. Call yours something else.

  Example:
    >>> import haiku_state.linen as nn
    >>> class Labelled(nn.Module):
    ...   label: str  # `name: str` is taken.
    >>> Labelled(label='a').label
    'a'
  """

  def __init__(self, annotations):
    super().__init__(
      f'properties `parent` and `name` are reserved: {annotations}'
    )


class ApplyModuleInvalidMethodError(FlaxError):
  """`method=` is nothing that can be run on the module.

  It may be the name of a method or of a submodule, a method of the class, or a
  function whose first argument is the module.

  Example:
    >>> import jax.numpy as jnp
    >>> import haiku_state.linen as nn
    >>> class Model(nn.Module):
    ...   def double(self, x):
    ...     return 2 * x
    >>> # Model().apply({}, 1, method=jnp.ones(2))
    >>> Model().apply({}, 1, method=Model.double)
    2
  """

  def __init__(self, method):
    super().__init__(
      f'Cannot call apply(): {method} is not a valid function for apply().'
    )


class CallCompactUnboundModuleError(FlaxError):
  """A module was called outside any run.

  A module made by itself has no variables. `init` makes them, `apply` runs the
  module with them, and `bind` gives a module that holds them. (Within
  `hk.transform` a module binds itself when it is called.)

  Example:
    >>> import jax, jax.numpy as jnp
    >>> import haiku_state.linen as nn
    >>> dense, x = nn.Dense(2), jnp.ones((1, 3))
    >>> # dense(x)  has no kernel.
    >>> variables = dense.init(jax.random.key(0), x)
    >>> dense.apply(variables, x).shape
    (1, 2)
  """

  def __init__(self):
    super().__init__("Can't call compact methods on unbound modules")


class CallSetupUnboundModuleError(FlaxError):
  """`setup` was called by hand.

  `setup` runs by itself, once a bound module is first used. To reach what it
  makes, bind the module.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> import haiku_state.linen as nn
    >>> class Model(nn.Module):
    ...   def setup(self):
    ...     self.dense = nn.Dense(2)
    ...
    ...   def __call__(self, x):
    ...     return self.dense(x)
    >>> x = jnp.ones((1, 3))
    >>> # Model().setup()
    >>> variables = Model().init(jax.random.key(0), x)
    >>> Model().bind(variables).dense(x).shape
    (1, 2)
  """

  def __init__(self):
    super().__init__("Can't call compact methods on unbound modules")


class CallUnbindOnUnboundModuleError(FlaxError):
  """`unbind` was called on a module that holds no variables.

  `unbind` takes a bound module apart into a module and its variables. A module
  that was never bound is already apart.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> import haiku_state.linen as nn
    >>> dense, x = nn.Dense(2), jnp.ones((1, 3))
    >>> # dense.unbind()
    >>> bound = dense.bind(dense.init(jax.random.key(0), x))
    >>> module, variables = bound.unbind()
    >>> module == dense
    True
  """

  def __init__(self):
    super().__init__("Can't call `unbind()` on unbound modules")


class CallShareScopeOnUnboundModuleError(FlaxError):
  """`nn.share_scope` was called with a module that is not bound.

  Sharing joins the names and variables of two modules, which they have only in
  a run. Call it in `setup`, on the module itself and a submodule.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> import haiku_state.linen as nn
    >>> class Wrapped(nn.Module):
    ...   def setup(self):
    ...     self.dense = nn.Dense(2)
    ...     nn.share_scope(self, self.dense)
    ...
    ...   def __call__(self, x):
    ...     return self.dense(x)
    >>> variables = Wrapped().init(jax.random.key(0), jnp.ones((1, 3)))
    >>> sorted(variables['params'])
    ['bias', 'kernel']
  """

  def __init__(self):
    super().__init__("Can't call `share_scope` on unbound modules")


class InvalidInstanceModuleError(FlaxError):
  """`init` or `apply` was called on a class, not on a module.

  `Model.init(key, x)` takes the key for the module. Make one first.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> import haiku_state.linen as nn
    >>> # nn.Dense.init(jax.random.key(0), jnp.ones((1, 3)))
    >>> variables = nn.Dense(2).init(jax.random.key(0), jnp.ones((1, 3)))
    >>> sorted(variables['params'])
    ['bias', 'kernel']
  """

  def __init__(self):
    super().__init__(
      'Can only call init, init_with_output or apply methods on an instance of '
      'the Module class, not the Module class itself'
    )


class IncorrectPostInitOverrideError(FlaxError):
  """`__post_init__` was overridden without calling the original.

  The original registers the module with its parent. Call it, after setting
  the fields that you compute.

  Example:
    >>> import haiku_state.linen as nn
    >>> class Model(nn.Module):
    ...   width: int = 1
    ...
    ...   def __post_init__(self):
    ...     self.width = max(self.width, 8)
    ...     super().__post_init__()
    >>> Model(3).width
    8
  """

  def __init__(self):
    super().__init__(
      'Overrode `.__post_init__()` without calling `super().__post_init__()`'
    )


class DescriptorAttributeError(FlaxError):
  """A property of a module raised an AttributeError.

  Python would answer with "no attribute" for the property itself, which is
  there, and hide the attribute that is not. The cause is printed above: define
  what the property reads.

  Example:
    >>> import haiku_state.linen as nn
    >>> class Model(nn.Module):
    ...   width: int = 4
    ...
    ...   @property
    ...   def double(self):
    ...     return 2 * self.width  # `self.wdith` would raise.
    ...
    ...   def __call__(self):
    ...     return self.double
    >>> Model().apply({})
    8
  """

  def __init__(self):
    super().__init__(
      'Trying to access a property that is accessing a non-existent attribute.'
    )


# Checkpoints


class InvalidCheckpointError(FlaxError):
  """A checkpoint is older than one that is already there.

  Steps go up; saving step 1 after step 2 would make it the latest by time and
  not by number. Save a later step, or pass `overwrite=True`, which deletes the
  ones after it.

  Example:
    >>> import pathlib, tempfile
    >>> from haiku_state.training import checkpoints
    >>> folder = tempfile.mkdtemp()
    >>> pathlib.Path(folder, 'checkpoint_2').touch()  # Saved at step 2.
    >>> # save_checkpoint(folder, state, step=1)
    >>> steps = checkpoints.available_steps(folder)
    >>> max(steps) + 1  # The next step to save.
    3
  """

  def __init__(self, path, step):
    super().__init__(
      f'Trying to save an outdated checkpoint at step: "{step}" and path: '
      f'"{path}".'
    )


class ConcurrentSaveError(FlaxError):
  """Somebody else is saving a checkpoint to the same directory and prefix.

  One writer at a time keeps each step whole. Save from one process, or give
  each its own directory or prefix.

  Example:
    >>> from haiku_state import errors
    >>> isinstance(errors.ConcurrentSaveError('a/checkpoint_tmp'), Exception)
    True
  """

  def __init__(self, path):
    super().__init__(
      f'Another process or thread is writing "{path}". Nothing is saved. Save'
      ' from one of them, or give each its own directory or prefix.'
    )


class MPACheckpointingRequiredError(FlaxError):
  """An array spread over several processes cannot be saved so.

  No single process holds all of it. Let every process call
  `save_checkpoint_multiprocess` with a manager that writes the parts, or
  gather the array first.

  Example:
    >>> import jax
    >>> state = {'w': jax.numpy.ones(2)}
    >>> # A whole array can be saved by any process.
    >>> state['w'].is_fully_addressable
    True
  """

  def __init__(self, path, step):
    super().__init__(
      f'Checkpoint failed at step: "{step}" and path: "{path}": Target '
      'contains a multiprocess array should be saved/restored with a '
      'GlobalAsyncCheckpointManager.'
    )


class MPARestoreTargetRequiredError(FlaxError):
  """A checkpoint of multiprocess arrays needs a target.

  The file knows the numbers, not on which devices they belong. Pass, as
  `target`, a tree with arrays placed as the restored ones should be.

  Example:
    >>> import jax
    >>> import jax.numpy as jnp
    >>> target = jax.device_put({'w': jnp.zeros(2)}, jax.devices()[0])
    >>> # restore_checkpoint(folder, target=None) lacks the placement;
    >>> # restore_checkpoint(folder, target=target) has it.
    >>> len(target['w'].sharding.device_set)
    1
  """

  def __init__(self, path, step, key=None):
    message = (
      f'Restore checkpoint failed at step: "{step}" and path: "{path}": '
      'Checkpoints containing a multiprocess array need to be restored with a '
      'target with pre-created arrays. If you cannot provide a full valid '
      'target, consider ``allow_partial_mpa_restoration=True``. '
    )
    if key:
      message += f'This error fired when trying to restore array at {key}.'
    super().__init__(message)


class MPARestoreDataCorruptedError(FlaxError):
  """The save of a multiprocess array was not finished.

  The file that is written last, once all processes are done, is missing.
  Restore an earlier step.

  Example:
    >>> import pathlib, tempfile
    >>> from haiku_state.training import checkpoints
    >>> folder = tempfile.mkdtemp()
    >>> for step in (1, 2):
    ...   pathlib.Path(folder, f'checkpoint_{step}').touch()
    >>> # restore_checkpoint(folder, target) takes step 2, which is broken.
    >>> checkpoints.available_steps(folder)[-2]  # Pass it as `step`.
    1
  """

  def __init__(self, step, path):
    super().__init__(
      f'Restore checkpoint failed at step: "{step}" on multiprocess array at '
      f' "{path}": No "commit_success.txt" found on this "_gda" directory. '
      'Was its save halted before completion?'
    )


# Lifted transforms


class TransformedMethodReturnValueError(FlaxError):
  """A lifted transform returned a module or a variable.

  Only values can come out of a transform: a module is bound to the run inside
  of it. Return what the module computes.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> import haiku_state.linen as nn
    >>> class Model(nn.Module):
    ...   @nn.jit
    ...   @nn.compact
    ...   def __call__(self, x):
    ...     dense = nn.Dense(2)
    ...     # `return dense` cannot leave nn.jit.
    ...     return dense(x)
    >>> y, _ = Model().init_with_output(jax.random.key(0), jnp.ones((1, 3)))
    >>> y.shape
    (1, 2)
  """

  def __init__(self, name):
    super().__init__(
      f'Transformed module method {name} cannot return Modules or Variables.'
    )


class TransformTargetError(FlaxError):
  """A lifted transform was put around something it cannot lift.

  It takes a module class, giving a class, or a function whose first argument
  is a module. You passed, most often, a module: transform its class, or a
  function that calls it.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> import haiku_state.linen as nn
    >>> class Model(nn.Module):
    ...   @nn.compact
    ...   def __call__(self, x):
    ...     # nn.remat(nn.Dense(2))(x)
    ...     return nn.remat(nn.Dense)(2)(x)
    >>> y, _ = Model().init_with_output(jax.random.key(0), jnp.ones((1, 3)))
    >>> y.shape
    (1, 2)
  """

  def __init__(self, target):
    super().__init__(
      'Linen transformations must be applied to Modules classes or functions '
      'taking a Module instance as the first argument. The provided target is '
      f'not a Module class or callable: {target}'
    )


# Files


class AlreadyExistsError(FlaxError):
  """A file is there already and would be overwritten.

  Write to another path, or allow it with `overwrite=True`.

  Example:
    >>> import os, tempfile
    >>> from haiku_state import io
    >>> folder = tempfile.mkdtemp()
    >>> path = os.path.join(folder, 'a.txt')
    >>> with io.GFile(path, 'w') as file:
    ...   _ = file.write('1')
    >>> # io.copy(path, path)
    >>> io.copy(path, os.path.join(folder, 'b.txt'))
    >>> sorted(io.listdir(folder))
    ['a.txt', 'b.txt']
  """

  def __init__(self, path):
    super().__init__(f'Trying overwrite an existing file: "{path}".')


# Cursors


class CursorFindError(FlaxError):
  """`Cursor.find` did not find exactly one object.

  None, or more than one, meets the condition. Narrow it down, or use
  `find_all` to have each of them.

  Example:
    >>> from haiku_state.cursor import cursor
    >>> c = cursor({'a': {'w': 1}, 'b': {'w': 2}})
    >>> # c.find(lambda path, value: 'w' in path)  finds two.
    >>> c.find(lambda path, value: path == 'b/w').set(3)
    {'a': {'w': 1}, 'b': {'w': 3}}
  """

  def __init__(self, cursor=None, cursor2=None):
    # Compared with None, as the truth of a cursor is that of what it points
    # to: Flax asks for it and fails on numbers.
    if cursor is not None and cursor2 is not None:
      super().__init__(
        'More than one object found given the conditions of the cond_fn. '
        'The first two objects found have the following paths: '
        f'{cursor._path} and {cursor2._path}'
      )
    else:
      super().__init__('No object found given the conditions of the cond_fn.')


class TraverseTreeError(FlaxError):
  """A traversal was to update and to search at once, or neither.

  `Cursor.apply_update` needs its `update_fn`, `Cursor.find` and
  `Cursor.find_all` need their `cond_fn`. Pass a function, not None.

  Example:
    >>> from haiku_state.cursor import cursor
    >>> c = cursor({'a': 1})
    >>> # c.apply_update(None)
    >>> c.apply_update(lambda path, value: value + 1).build()
    {'a': 2}
  """

  def __init__(self, update_fn, cond_fn):
    if update_fn is None and cond_fn is None:
      super().__init__(
        'Both update_fn and cond_fn are None. Exactly one of them must be None.'
      )
    else:
      super().__init__(
        'Both update_fn and cond_fn are not None. Exactly one of them must be '
        'not None.'
      )
