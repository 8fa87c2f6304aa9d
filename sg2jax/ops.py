"""Parameter-free maths of a layer: activation with bias, normalization, minibatch stddev.

Images are [N,H,W,C]. Filters are in resample.py, convolutions in conv.py. Everything is
differentiable any number of times. Elementwise work and sums are done in float32 and rounded once,
at the end: test_bfloat16.py sees that no step sums in 16 bits.
"""

from functools import partial
import math
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

# A Python float, as every constant that meets an array: a NumPy scalar would widen bfloat16.
SQRT2 = math.sqrt(2)


def _linear(x):
  return x


def _relu(x):
  return jnp.where(x > 0, x, 0)


def _lrelu(x, alpha):
  return jnp.where(x > 0, x, x * alpha)


# name -> (function, gain that keeps the variance). StyleGAN2 uses 'lrelu' and 'linear'; the others
# are those of the reference vectors.
ACTIVATIONS = {
  'linear': (_linear, 1),
  'relu': (_relu, SQRT2),
  'lrelu': (_lrelu, SQRT2),
  'tanh': (jnp.tanh, 1),
  'sigmoid': (jax.nn.sigmoid, 1),
  'elu': (jax.nn.elu, 1),
  'selu': (jax.nn.selu, 1),
  'softplus': (jax.nn.softplus, 1),
  'swish': (jax.nn.silu, SQRT2),
}


def full_precision(x: jax.Array) -> jax.Array:
  """Casts to float32, or leaves x's own dtype where that is wider."""
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def bias_act(
  x: jax.Array,
  b: jax.Array | None = None,
  act: str = 'lrelu',
  *,
  alpha: float = 0.2,
  gain: float | None = None,
  clamp: float | None = None,
  dtype: Any = None,
) -> jax.Array:
  """clamp(gain * act(x + b)) [S2 App. B]. The gradient is zero where the value is clamped.

  Args:
    x: [...,C].
    b: [C], or None.
    act: a name of ACTIVATIONS.
    alpha: slope of 'lrelu' below 0.
    gain: None for the activation's own.
    clamp: largest absolute value, None for no limit.
    dtype: of the result, None for x's.
  """
  dtype = x.dtype if dtype is None else dtype
  function, default_gain = ACTIVATIONS[act]
  # The gradient of b is a sum over all pixels: in bfloat16 it stops growing at 256 times its terms
  # and was off by a factor of 16. XLA fuses the casts, so they cost no memory.
  x = full_precision(x)
  if b is not None:
    x = x + b
  x = function(x, alpha) if act == 'lrelu' else function(x)
  gain = default_gain if gain is None else gain
  if gain != 1:
    x = x * gain
  if clamp is not None:
    x = jnp.clip(x, -clamp, clamp)
  return x.astype(dtype)


def normalize_2nd_moment(x: jax.Array, eps: float = 1e-8) -> jax.Array:
  """x / sqrt(mean x^2 + eps) over the last axis [S1 3.1]. x: [N,C]."""
  return x * lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps)


def minibatch_stddev(x: jax.Array, group_size: int = 4, num_channels: int = 1) -> jax.Array:
  """Appends the standard deviation over groups of samples as channels [Karras et al. 2018, S2].

  Args:
    x: [N,H,W,C].
    group_size: samples of a group, N at most; 0 for N. Sample i is in group i mod N/G.
    num_channels: F; the channels are split into so many contiguous blocks.

  Returns:
    [N,H,W,C+F] in x's dtype, computed in float32 at least.

  Raises:
    ValueError: N is no multiple of the group size.
  """
  n, h, w, c = x.shape
  group = min(group_size or n, n)
  if n % group:
    raise ValueError(
      f"a batch of {n} can't be split into minibatch-stddev groups of {group}; "
      f'use a multiple of {group} or another mbstd_group_size'
    )
  groups = n // group
  dtype = jnp.promote_types(x.dtype, jnp.float32)
  # Group sums are products with a membership matrix rather than sums of a reshaped batch: over a
  # sharded batch they become all-reduces of [M,...], where the reshape would gather x everywhere.
  member = jnp.asarray(np.arange(n)[None] % groups == np.arange(groups)[:, None], dtype)  # [M,N]
  dot = partial(jnp.einsum, precision=lax.Precision.HIGHEST)
  y = x.astype(dtype)
  y = y - dot('mn,mhwc->nhwc', member, dot('mn,nhwc->mhwc', member / group, y))
  y = jnp.sqrt(dot('mn,nhwc->mhwc', member / group, y**2) + 1e-8)  # [M,H,W,C]
  y = y.reshape(groups, h, w, num_channels, c // num_channels).mean(axis=(1, 2, 4))  # [M,F]
  y = dot('mn,mf->nf', member, y)[:, None, None].astype(x.dtype)  # [N,1,1,F]
  return jnp.concatenate([x, jnp.broadcast_to(y, (n, h, w, num_channels))], axis=-1)
