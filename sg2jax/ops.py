"""Parameter-free maths of a layer: activation with bias, normalization, minibatch stddev.

Images are [N,H,W,C]. Filters are in resample.py, convolutions in conv.py. Everything is
differentiable any number of times. Elementwise work and sums are done in float32 and rounded once,
at the end: test_bfloat16.py sees that no step sums in 16 bits.
"""

from functools import partial
import math
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from sg2jax import products

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


# ---- activation


class Slope(NamedTuple):
  """An activation that is linear on each side of 0: gain * max(x, alpha x), clamped."""

  alpha: float
  gain: float
  clamp: float | None

  def value(self, x: jax.Array) -> jax.Array:
    """The activation of x [...]."""
    if self.alpha != 1:
      x = jnp.where(x > 0, x, x * self.alpha)
    if self.gain != 1:
      x = x * self.gain
    return x if self.clamp is None else jnp.clip(x, -self.clamp, self.clamp)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _slope_times(x, out, slope):
  """x times the derivative of the activation where its result is `out`; 0 where it is clamped."""
  y = products.full_precision(x)
  if slope.alpha != 1:
    y = jnp.where(out > 0, y, y * slope.alpha)
  if slope.gain != 1:
    y = y * slope.gain
  if slope.clamp is not None:
    y = jnp.where(jnp.abs(out) < slope.clamp, y, 0)
  return y.astype(x.dtype)


def _slope_times_fwd(x, out, slope):
  return _slope_times(x, out, slope), out


def _slope_times_bwd(slope, out, dy):
  return _slope_times(dy, out, slope), None


_slope_times.defvjp(_slope_times_fwd, _slope_times_bwd)


@partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _activate(x, s, y, m, b, slope, dtype):
  """slope(x s + sum_j y[..., j] m[:, j] + b) -> dtype. All but (x or y) may be None.

  x: [N,H,W,C], s: [N,C], y: [N|1,H,W,J], m: [N|1,J,C|1], b: [C].
  """
  out = slope.value(_total(x, s, y, m, b)).astype(dtype)
  if x is None:
    # A TPU would compute so short a sum again in each convolution that reads it.
    out = lax.platform_dependent(out, tpu=lax.optimization_barrier, default=_linear)
  return out


def _total(x, s, y, m, b):
  """What an activation is applied to, in float32 at least; arguments as of _activate."""
  total = 0
  if x is not None:
    total = products.full_precision(x)
    if s is not None:
      total = total * s[:, None, None]
  if y is not None:
    total = total + products.expand(y, m, products.full_precision(y).dtype)
  if b is not None:
    total = total + b
  return total


def _activate_fwd(x, s, y, m, b, slope, dtype):
  out = _activate(x, s, y, m, b, slope, dtype)
  return out, (x, s, y, m, b, out)


def _activate_bwd(slope, dtype, saved, dout):
  x, s, y, m, b, out = saved
  out = lax.stop_gradient(out)
  d = _slope_times(dout, out, slope)  # [N,H,W,C]
  dx, ds, dy, dm, db = [None] * 5
  rest = 0  # of the sums over pixels of d times what the slope was applied to, but for x s: [N,C]
  if b is not None:
    sums = products.partial_sums(d)  # [N,P,C]
    db = jnp.sum(sums, axis=(0, 1))
    rest = rest + jnp.sum(sums, axis=1) * b
  if y is not None:
    by_sample = products.outer(d, y)  # [N,J,C]
    dm = products.sum_to(by_sample, m.shape)
    rest = rest + jnp.sum(by_sample * m, axis=1)
    wide = jnp.broadcast_to(m, (*m.shape[:2], d.shape[-1]))
    dy = products.sum_to(products.contract(d, wide), y.shape).astype(y.dtype)
  if s is not None:
    dx = products.scale(d, s, x.dtype)
    # Where it is not clamped, an activation of slopes is its slope times what it is applied to: so
    # d times that is dout times out. Only rounding of out is felt more, where x s is the least of
    # what is added.
    whole = products.inner(out, _slope_times(dout, out, Slope(1, 1, slope.clamp)))
    ds = products.told_inner(x, d, lax.stop_gradient((whole - rest) / s))
  elif x is not None:
    dx = d.astype(x.dtype)
  return dx, ds, dy, dm, db


_activate.defvjp(_activate_fwd, _activate_bwd)


def bias_act(
  x: jax.Array | None,
  b: jax.Array | None = None,
  act: str = 'lrelu',
  *,
  alpha: float = 0.2,
  gain: float | None = None,
  clamp: float | None = None,
  scale: jax.Array | None = None,
  thin: tuple[jax.Array, jax.Array] | None = None,
  dtype: Any = None,
) -> jax.Array:
  """clamp(gain * act(x * scale + thin + b)) [S2 App. B]; the gradient is 0 where it is clamped.

  Args:
    x: [N,H,W,C]; [...,C] without scale and thin; None where there is only thin.
    b: [C], or None.
    act: a name of ACTIVATIONS.
    alpha: slope of 'lrelu' below 0.
    gain: None for the activation's own.
    clamp: largest absolute value, None for no limit.
    scale: [N,C], none of them 0; or None.
    thin: (y [N|1,H,W,J], m [N|1,J,C|1]), whose product is added: noise and its strength, an image
      and what makes features of it; or None.
    dtype: of the result, None for x's or that of thin.
  """
  y, m = (None, None) if thin is None else thin
  if dtype is None:
    dtype = y.dtype if x is None else x.dtype
  dtype = jnp.dtype(dtype)
  function, default_gain = ACTIVATIONS[act]
  gain = default_gain if gain is None else gain
  slopes = {'linear': 1, 'lrelu': alpha, 'relu': 0}
  # The result tells on which side of 0 it comes from, if it has the sign of the input.
  is_told = act in slopes and slopes[act] >= 0 and gain > 0
  if is_told and (x is None or x.ndim == 4):
    return _activate(x, scale, y, m, b, Slope(slopes[act], gain, clamp), dtype)
  # The gradient of b is a sum over all pixels: in bfloat16 it stops growing at 256 times its terms
  # and was off by a factor of 16. XLA fuses the casts, so they cost no memory.
  x = _total(x, scale, y, m, b)
  x = function(x, alpha) if act == 'lrelu' else function(x)
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
