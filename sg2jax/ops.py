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


# ---- products with channels and pixels
#
# What a layer does besides its convolution is products of an image with factors by channel or by
# pixel. Each pair below is linear in all its arguments, so that its gradients are the pair again:
#
#   <scale(x, s), y> = <s, inner(x, y)>           x, y [N,H,W,C], s [N,C]
#   <expand(y, m), x> = <y, contract(x, m)>       x [N,H,W,C], y [N,H,W,J], m [N|1,J,C]
#
# and the gradients by m are inner products with y. They are written by hand, so that the backward
# pass keeps arrays as layers hand them on: differentiating casts to float32 would keep float32
# copies of bfloat16 activations, twice the memory and most of the traffic of a step. J is the few
# channels of an image, or the one of noise. Expanding is a sum over J, which fuses with what comes
# after it, where a product would write all channels once more; contracting and the sums over pixels
# are matrix products, the faster ones on a GPU (docs/performance.md).

THIN = 4  # J at most


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _scale(x, s, dtype):
  return (full_precision(x) * s[:, None, None]).astype(dtype)


@jax.custom_vjp
def _inner(x, y):
  return jnp.sum(_partial_sums(x, y), axis=1)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _expand(y, m, dtype):
  if y.shape[-1] > THIN:  # columns in the channels, see folding.py
    return jnp.einsum('nhwj,njc->nhwc', y, m.astype(y.dtype), **_sums(y)).astype(dtype)
  y = full_precision(y)
  terms = [y[..., j : j + 1] * m[:, None, None, j] for j in range(y.shape[-1])]
  return sum(terms).astype(dtype)


@jax.custom_vjp
def _contract(x, m):
  if m.shape[0] == 1:
    return jnp.einsum('nhwc,jc->nhwj', x, m[0].astype(x.dtype), **_sums(x))
  return jnp.einsum('nhwc,njc->nhwj', x, m.astype(x.dtype), **_sums(x))


def _sums(x):
  """For products whose sums are float32 at least."""
  return {'preferred_element_type': full_precision(x).dtype}


def _scale_fwd(x, s, dtype):
  return _scale(x, s, dtype), (x, s)


def _scale_bwd(dtype, saved, dz):
  x, s = saved
  return _scale(dz, s, x.dtype), _inner(x, dz)


def _inner_fwd(x, y):
  return _inner(x, y), (x, y)


def _inner_bwd(saved, ds):
  x, y = saved
  return _scale(y, ds, x.dtype), _scale(x, ds, y.dtype)


def _expand_fwd(y, m, dtype):
  return _expand(y, m, dtype), (y, m)


def _expand_bwd(dtype, saved, dx):
  y, m = saved
  dy = _sum_to(_contract(dx, m), y.shape)
  return dy.astype(y.dtype), _sum_to(_outer(dx, y), m.shape)


def _contract_fwd(x, m):
  return _contract(x, m), (x, m)


def _contract_bwd(saved, dy):
  x, m = saved
  return _expand(dy, m, x.dtype), _sum_to(_outer(x, dy), m.shape)


_scale.defvjp(_scale_fwd, _scale_bwd)
_inner.defvjp(_inner_fwd, _inner_bwd)
_expand.defvjp(_expand_fwd, _expand_bwd)
_contract.defvjp(_contract_fwd, _contract_bwd)


def _outer(x, y):
  """Sums over pixels of x [N,H,W,C] times y [N|1,H,W,J] -> [N,J,C]."""
  wide = jnp.broadcast_to(y, (*x.shape[:3], y.shape[-1]))
  if y.shape[-1] == 1:
    return jnp.sum(_partial_sums(x, wide), axis=1)[:, None]
  return jnp.einsum('nhwc,nhwj->njc', x, wide.astype(x.dtype), **_sums(x))


def _partial_sums(x, y=None):
  """Sums over pixels of x [N,H,W,C], times y of its shape if there is one, in parts -> [N,P,C]."""
  x = full_precision(x)
  if y is not None:
    x = x * full_precision(y)
  sums = jnp.sum(x, axis=2) if x.shape[1] > 16 else jnp.sum(x, axis=(1, 2))[:, None]
  # The sums that follow are kept apart. Merged with this one they would read x once for each shape
  # of result; and of a few thousand pixels a GPU would make too few blocks to be busy.
  return lax.optimization_barrier(sums)


def _sum_to(x, shape):
  """x summed over the axes along which `shape` was broadcast."""
  axes = tuple(i for i, (n, m) in enumerate(zip(x.shape, shape)) if m == 1 and n != 1)
  return jnp.sum(x, axis=axes, keepdims=True)


def scale_channels(x: jax.Array, s: jax.Array) -> jax.Array:
  """x [N,H,W,C] times s [N,C], in float32 at least, rounded once to x's dtype."""
  return _scale(x, s, x.dtype)


def contract_channels(x: jax.Array, m: jax.Array) -> jax.Array:
  """Products of pixels x [N,H,W,C] with matrices m [N|1,J,C]: [N,H,W,J], float32 at least."""
  return _contract(x, m)


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
  y = full_precision(x)
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
    total = full_precision(x)
    if s is not None:
      total = total * s[:, None, None]
  if y is not None:
    total = total + _expand(y, m, full_precision(y).dtype)
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
    by_sample = jnp.sum(_partial_sums(d), axis=1)  # [N,C]
    db = jnp.sum(by_sample, axis=0)
    rest = rest + by_sample * b
  if y is not None:
    by_sample = _outer(d, y)  # [N,J,C]
    dm = _sum_to(by_sample, m.shape)
    rest = rest + jnp.sum(by_sample * m, axis=1)
    wide = jnp.broadcast_to(m, (*m.shape[:2], d.shape[-1]))
    dy = _sum_to(_contract(d, wide), y.shape).astype(y.dtype)
  if s is not None:
    dx = _scale(d, s, x.dtype)
    # Where it is not clamped, an activation of slopes is its slope times what it is applied to: so
    # d times that is dout times out.
    whole = _inner(out, _slope_times(dout, out, Slope(1, 1, slope.clamp)))
    ds = _told_inner(x, d, lax.stop_gradient((whole - rest) / s))
  elif x is not None:
    dx = d.astype(x.dtype)
  return dx, ds, dy, dm, db


@jax.custom_vjp
def _told_inner(x, d, value):
  """_inner(x, d), whose value is known already.

  So the forward pass has no need to keep x, unless a second derivative asks for it.
  """
  return value


def _told_inner_fwd(x, d, value):
  return value, (x, d)


def _told_inner_bwd(saved, ds):
  return *_inner_bwd(saved, ds), None


_told_inner.defvjp(_told_inner_fwd, _told_inner_bwd)
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
    scale: [N,C], or None.
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
