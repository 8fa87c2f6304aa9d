"""Adam and Ranger, as StyleCLIP's three methods need them.

Not optax's Adam and RAdam: they compute 1 - beta^t by a difference, which in float32 has an error
of 3e-5 at the second step. That is enough to take other paths through the kinks of a network.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax


class Moments(NamedTuple):
  """Moving averages of the gradient and of its square, after `count` steps."""

  count: jax.Array
  mean: optax.Params
  square: optax.Params


def adam(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> optax.GradientTransformation:
  """Adam's direction, m / (sqrt(v) + eps) without bias [Kingma and Ba 2015, arXiv 1412.6980]."""

  def update(grads, moments, params=None):
    del params
    moments = _advanced(moments, grads, b1, b2)
    first, second = _unbias(moments.count, b1), _unbias(moments.count, b2)

    def direction(mean, square):
      return mean / first / (jnp.sqrt(square / second) + eps)

    return jax.tree.map(direction, moments.mean, moments.square), moments

  return optax.GradientTransformation(_begin, update)


def _begin(params):
  zeros = optax.tree.zeros_like
  return Moments(jnp.zeros((), jnp.int32), zeros(params), zeros(params))


def _advanced(moments, grads, b1, b2):
  return Moments(
    moments.count + 1,
    optax.tree.update_moment(grads, moments.mean, b1, 1),
    optax.tree.update_moment(grads, moments.square, b2, 2),
  )


def _unbias(count, decay):
  """1 - decay^count to the last digit: what averages that began at 0 are divided by."""
  dtype = jnp.zeros(()).dtype  # 64 bits where they are on
  return -jnp.expm1(count.astype(dtype) * math.log(decay))


def ranger(
  lr: float, b1: float = 0.95, b2: float = 0.999, eps: float = 1e-5, period: int = 6
) -> optax.GradientTransformation:
  """Rectified Adam on centred gradients [Liu et al. 2020, Yong et al. 2020], with lookahead.

  Its params are optax.LookaheadParams, as of Zhang et al. 2019; of matrices [in,out] the mean of a
  gradient over `in` is taken off. Not optax's own RAdam: here eps is added to what still has its
  bias, as in the program that StyleCLIP uses, and with gradients as small as a mapper's (1e-8) eps
  is the larger part.
  """
  most = 2 / (1 - b2) - 1

  def update(grads, moments, params=None):
    del params
    moments = _advanced(moments, jax.tree.map(_centred, grads), b1, b2)
    count = moments.count
    first, second = _unbias(count, b1), _unbias(count, b2)
    length = most - 2 * count * (1 - second) / second  # of the averages, in steps
    is_long = length > 5
    long = jnp.where(is_long, length, 6)  # no root of a negative number, where it isn't taken
    rectified = (long - 4) * (long - 2) * most / ((most - 4) * (most - 2) * long)

    def step(mean, square):
      adapted = jnp.sqrt(second * rectified) * mean / (jnp.sqrt(square) + eps)
      return -lr / first * jnp.where(is_long, adapted, mean)

    return jax.tree.map(step, moments.mean, moments.square), moments

  return optax.lookahead(optax.GradientTransformation(_begin, update), period, 0.5)


def _centred(grad):
  return grad - grad.mean(0) if grad.ndim == 2 else grad
