"""Small helpers for data-parallel training loops."""

import jax
import jax.numpy as jnp
from jax import lax

from haiku_state import jax_utils


def shard(xs):
  """Splits the leading dimension of each array over the local devices.

  Args:
    xs: a pytree of arrays [batch, ...] whose batch the number of local
      devices divides.

  Returns:
    The same pytree with arrays [devices, batch // devices, ...].

  Example:
    >>> import jax, numpy as np
    >>> from haiku_state.training import common_utils
    >>> n = jax.local_device_count()
    >>> common_utils.shard(np.zeros((6 * n, 3))).shape == (n, 6, 3)
    True
  """
  devices = jax.local_device_count()
  return jax.tree.map(lambda x: x.reshape((devices, -1) + x.shape[1:]), xs)


def shard_prng_key(prng_key):
  """Makes one key per local device, so that each draws its own numbers.

  >>> import jax
  >>> from haiku_state.training import common_utils
  >>> keys = common_utils.shard_prng_key(jax.random.key(0))
  >>> len(keys) == jax.local_device_count()
  True

  Args:
    prng_key: a key, typed or raw.

  Returns:
    An array of keys with the local devices as its leading dimension.
  """
  return jax.random.split(prng_key, num=jax.local_device_count())


def stack_forest(forest):
  """Turns a sequence of equal pytrees into one pytree of stacked arrays.

  Args:
    forest: a sequence of pytrees of one structure and matching leaf shapes.

  Returns:
    A pytree of that structure with leaves [len(forest), ...].

  Example:
    >>> from haiku_state.training import common_utils
    >>> common_utils.stack_forest([{'loss': 1.0}, {'loss': 2.0}])['loss'].shape
    (2,)
  """
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *forest)


def get_metrics(device_metrics):
  """Takes the metrics of one device and stacks them over time.

  >>> import jax, jax.numpy as jnp
  >>> from haiku_state.training import common_utils
  >>> step = jax.pmap(lambda loss: {'loss': loss})
  >>> losses = [step(jnp.full(jax.local_device_count(), x)) for x in (3.0, 2.0)]
  >>> common_utils.get_metrics(losses)
  {'loss': Array([3., 2.], dtype=float32)}

  Args:
    device_metrics: a sequence (over time) of pytrees of arrays [devices, ...],
      the same on each device, as `jax.pmap` returns them.

  Returns:
    One pytree of arrays [time, ...], computed from copies on the host.
  """
  one_device = jax_utils.unreplicate(device_metrics)
  return stack_forest(jax.device_get(one_device))


def onehot(labels, num_classes, on_value=1.0, off_value=0.0):
  """Makes one-hot vectors. In new programs use `jax.nn.one_hot`.

  Args:
    labels: integers [...] in the range of `num_classes`; any other number gets
      a vector without an `on_value`.
    num_classes: the length of a vector.
    on_value: the value at the label.
    off_value: the value elsewhere.

  Returns:
    A float32 array [..., num_classes].

  Example:
    >>> import jax.numpy as jnp
    >>> from haiku_state.training import common_utils
    >>> common_utils.onehot(jnp.array([1, 0]), 3).tolist()
    [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]
  """
  classes = lax.expand_dims(jnp.arange(num_classes), range(labels.ndim))
  is_label = labels[..., None] == classes
  values = lax.select(
    is_label,
    jnp.full(is_label.shape, on_value),
    jnp.full(is_label.shape, off_value),
  )
  return values.astype(jnp.float32)
