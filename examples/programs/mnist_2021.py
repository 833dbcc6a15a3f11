"""A program of 2021, kept as it was: linen, and optimizers of `flax.optim`.

`examples/old_program.py` runs it. Flax has had no `optim` since version 0.6.
"""

import argparse
import os

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import optim
from flax.training import common_utils, lr_schedule
from sklearn import datasets


class CNN(nn.Module):
  """A simple CNN model, with batch normalization."""

  @nn.compact
  def __call__(self, x, train):
    for features in (16, 32):
      x = nn.Conv(features=features, kernel_size=(3, 3))(x)
      x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
      x = nn.relu(x)
      x = nn.avg_pool(x, window_shape=(2, 2), strides=(2, 2))
    x = x.reshape((x.shape[0], -1))
    x = nn.Dense(features=10)(x)
    return nn.log_softmax(x)


def get_datasets():
  """Load digits: the first 1500 to train on, the others to test."""
  digits = datasets.load_digits()
  images = np.float32(digits.images[..., None]) / 16.0
  return (images[:1500], digits.target[:1500]), (
    images[1500:],
    digits.target[1500:],
  )


def create_optimizer(params, learning_rate, beta, weight_decay):
  """Weights decay, and biases and the scales of the norms do not."""
  kernels = optim.ModelParamTraversal(lambda path, _: path.endswith('kernel'))
  others = optim.ModelParamTraversal(
    lambda path, _: not path.endswith('kernel')
  )
  optimizer_def = optim.MultiOptimizer(
    (kernels, optim.Momentum(learning_rate, beta, weight_decay)),
    (others, optim.Momentum(learning_rate, beta)),
  )
  return optimizer_def.create(params)


@jax.jit
def train_step(optimizer, state, images, labels, lr):
  def loss_fn(params):
    logits, new_state = CNN().apply(
      {'params': params, **state}, images, train=True, mutable=['batch_stats']
    )
    one_hot = common_utils.onehot(labels, 10)
    loss = -jnp.mean(jnp.sum(one_hot * logits, axis=-1))
    return loss, new_state

  grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
  (loss, new_state), grad = grad_fn(optimizer.target)
  optimizer = optimizer.apply_gradient(grad, learning_rate=lr)
  return optimizer, new_state, loss


@jax.jit
def predict(params, state, images):
  logits = CNN().apply({'params': params, **state}, images, train=False)
  return jnp.argmax(logits, axis=-1)


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--workdir', default='.')
  parser.add_argument('--num_train_steps', type=int, default=400)
  parser.add_argument('--batch_size', type=int, default=64)
  parser.add_argument('--learning_rate', type=float, default=0.1)
  args = parser.parse_args()

  (images, labels), (test_images, test_labels) = get_datasets()
  variables = CNN().init(jax.random.PRNGKey(0), images[:1], train=False)
  state, params = variables.pop('params')
  optimizer = create_optimizer(params, args.learning_rate, 0.9, 5e-4)
  learning_rate_fn = lr_schedule.create_cosine_learning_rate_schedule(
    args.learning_rate, 10, args.num_train_steps / 10, warmup_length=1
  )
  np.random.seed(0)
  with open(os.path.join(args.workdir, 'log.csv'), 'w') as log:
    for step in range(args.num_train_steps):
      batch = np.random.randint(len(labels), size=args.batch_size)
      lr = learning_rate_fn(step)
      optimizer, state, loss = train_step(
        optimizer, state, images[batch], labels[batch], lr
      )
      if step % 20 == 0 or step == args.num_train_steps - 1:
        predicted = np.asarray(predict(optimizer.target, state, test_images))
        accuracy = np.mean(predicted == test_labels)
        np.save(os.path.join(args.workdir, 'predicted.npy'), predicted)
        print('step %d: loss %.4f, test %.2f %%' % (step, loss, 100 * accuracy))
      log.write('%d,%f,%f,%f\n' % (step, lr, loss, accuracy))


if __name__ == '__main__':
  main()
