"""Parameter-free maths of StyleGAN2: FIR resampling, (modulated) convolution, activation, minibatch
stddev.

Images are [N,H,W,C], kernels [kh,kw,in,out]. Everything is differentiable any number of times. Two
facts shape the file, both measured (docs/performance.md): XLA is slow at depthwise convolutions and
at differentiating dilated ones. So a FIR filter is a weighted sum of shifted slices, whose
transpose is again a FIR filter; and convolution, its input gradient and its weight gradient are
three bilinear functions, each the derivative of the others.
"""

from functools import partial
import math

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

BOX = np.array([0.5, 0.5])  # filter of the growing path and of image pyramids
SQRT2 = math.sqrt(2)  # Python floats throughout: a NumPy scalar would widen bfloat16

# name -> (function of (x, alpha), default gain), S2's `lrelu` and the others of the reference
# vectors.
ACTIVATIONS = {
  'linear': (lambda x, a: x, 1),
  'relu': (lambda x, a: jnp.where(x > 0, x, 0), SQRT2),
  'lrelu': (lambda x, a: jnp.where(x > 0, x, x * a), SQRT2),
  'tanh': (lambda x, a: jnp.tanh(x), 1),
  'sigmoid': (lambda x, a: jax.nn.sigmoid(x), 1),
  'elu': (lambda x, a: jax.nn.elu(x), 1),
  'selu': (lambda x, a: jax.nn.selu(x), 1),
  'softplus': (lambda x, a: jax.nn.softplus(x), 1),
  'swish': (lambda x, a: jax.nn.silu(x), SQRT2),
}


def full_precision(x):
  """float32, or x's own dtype where that is wider."""
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def bias_act(x, b=None, act='lrelu', *, alpha=0.2, gain=None, clamp=None, dtype=None):
  """clamp(gain * act(x + b)) [S2 App. B]. x: [...,C], b: [C] or None; gain None is the activation's
  own.

  The gradient is zero where the value is clamped. Computed in float32 at least and rounded once, to
  `dtype` (None: x's): the gradient of b is a sum over all pixels, which in bfloat16 stops growing
  at 256 times its terms. XLA fuses the casts.
  """
  dtype = x.dtype if dtype is None else dtype
  fn, default_gain = ACTIVATIONS[act]
  x = full_precision(x)
  if b is not None:
    x = x + b
  x = fn(x, alpha)
  gain = default_gain if gain is None else gain
  if gain != 1:
    x = x * gain
  if clamp is not None:
    x = jnp.clip(x, -clamp, clamp)
  return x.astype(dtype)


def normalize_2nd_moment(x, eps=1e-8):
  """x / sqrt(mean x^2 + eps) over the last axis [S1 3.1]. x: [N,C]."""
  return x * lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps)


# ---- FIR filters


def setup_filter(taps, *, normalize=True, flip=False, gain=1, separable=None):
  """Filter coefficients as a NumPy array: 1-D lists under 8 taps become an outer product [fh,fw],
  longer ones stay 1-D.

  normalize: unit sum; flip: both axes; gain: of the whole 2-D filter (sqrt of it per axis where
  separable).
  """
  f = np.asarray(1.0 if taps is None else taps, np.float64).reshape(np.shape(taps) or (1,))
  separable = f.ndim == 1 and f.size >= 8 if separable is None else separable
  if f.ndim == 1 and not separable:
    f = np.outer(f, f)
  if normalize:
    f = f / f.sum()
  return (f[(slice(None, None, -1),) * f.ndim] if flip else f) * gain ** (f.ndim / 2)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4, 5))
def _fir(x, taps, axis, up, down, pad):
  """y[m] = sum_j taps[j] xup[m*down + j - pad[0]] along one axis; xup[i*up] = x[i], zeros between
  and outside.

  Summed in float32 at least, rounded once.
  """
  n = x.shape[axis]
  full = n * up + sum(pad) - len(taps) + 1  # outputs before decimation
  step, count = (down, -(-full // down)) if up == 1 else (1, -(-full // up))
  phases = []
  # output m = q*up + r reads only the taps that meet a sample, at x[q + offset]
  for r in range(up):
    hits = [
      (t, (r + j - pad[0]) // up)
      for j, t in enumerate(taps)
      if (r + j - pad[0]) % up == 0 and t != 0
    ]
    phases.append(hits or [(0.0, 0)])
  offsets = [o for hits in phases for _, o in hits]
  span = (count - 1) * step + 1
  lo, hi = max(0, -min(offsets)), max(0, max(offsets) + span - n)
  x = jnp.pad(x, [(lo, hi) if a == axis else (0, 0) for a in range(x.ndim)])
  part = lambda o: full_precision(lax.slice_in_dim(x, o + lo, o + lo + span, step, axis))
  ys = [_like(sum(t * part(o) for t, o in hits), x) for hits in phases]
  if up == 1:
    return ys[0]
  y = jnp.stack(ys, axis + 1)
  y = y.reshape(y.shape[:axis] + (count * up,) + y.shape[axis + 2 :])
  return lax.slice_in_dim(y, 0, full, down, axis)


def _fir_fwd(x, *static):
  return _fir(x, *static), x.shape


def _fir_bwd(taps, axis, up, down, pad, shape, dy):
  lo = len(taps) - 1 - pad[0]
  hi = (shape[axis] - 1) * up + len(taps) - dy.shape[axis] * down - lo
  return (_fir(dy, taps[::-1], axis, down, up, (lo, hi)),)


_fir.defvjp(_fir_fwd, _fir_bwd)


def _pair(v):
  return (v, v) if np.ndim(v) == 0 else tuple(v)


def _pad4(padding):
  """int, [x,y] or [x_before, x_after, y_before, y_after] -> the last."""
  p = _pair(padding)
  return (p[0], p[0], p[1], p[1]) if len(p) == 2 else p


def upfirdn2d(x, f, *, up=1, down=1, padding=0, flip_filter=False, gain=1):
  """Zero insertion, padding (negative crops), FIR filter, decimation. x: [N,H,W,C].

  f: [taps] (separable) or [fh,fw], None for the identity. up, down: int or [x, y]. padding: int,
  [x, y] or [x0, x1, y0, y1], applied after zero insertion. flip_filter False is a true convolution.
  gain: once, in 2-D.
  """
  f = np.ones(1) if f is None else np.asarray(f, np.float64)
  f = f if flip_filter else f[(slice(None, None, -1),) * f.ndim]
  (ux, uy), (dx, dy), (x0, x1, y0, y1) = _pair(up), _pair(down), _pad4(padding)
  if f.ndim == 1:
    f = f * np.sqrt(gain)
    x = _fir(x, tuple(f.tolist()), 1, uy, dy, (y0, y1))
    return _fir(x, tuple(f.tolist()), 2, ux, dx, (x0, x1))
  y = 0
  for i, row in enumerate(f * gain):  # any 2-D filter is a sum of rows, each shifted by its index
    if row.any():
      shift = tuple(float(i == j) for j in range(len(f)))
      y = y + _fir(_fir(x, shift, 1, uy, dy, (y0, y1)), tuple(row.tolist()), 2, ux, dx, (x0, x1))
  return y


def filter2d(x, f, *, padding=0, flip_filter=False, gain=1):
  """FIR filter that keeps the size of x [N,H,W,C] (plus padding)."""
  (fh, fw), (x0, x1, y0, y1) = _taps2(f), _pad4(padding)
  p = (x0 + fw // 2, x1 + (fw - 1) // 2, y0 + fh // 2, y1 + (fh - 1) // 2)
  return upfirdn2d(x, f, padding=p, flip_filter=flip_filter, gain=gain)


def upsample2d(x, f, up=2, *, padding=0, flip_filter=False, gain=1):
  """Up-sampling by `up` (int or [x, y]) with brightness kept: [N,H,W,C] -> [N,H*up,W*up,C]."""
  (fh, fw), (ux, uy), (x0, x1, y0, y1) = _taps2(f), _pair(up), _pad4(padding)
  p = (x0 + (fw + ux - 1) // 2, x1 + (fw - ux) // 2, y0 + (fh + uy - 1) // 2, y1 + (fh - uy) // 2)
  return upfirdn2d(x, f, up=up, padding=p, flip_filter=flip_filter, gain=gain * ux * uy)


def downsample2d(x, f, down=2, *, padding=0, flip_filter=False, gain=1):
  """Down-sampling by `down` (int or [x, y]): [N,H,W,C] -> [N,H/down,W/down,C]."""
  (fh, fw), (dx, dy), (x0, x1, y0, y1) = _taps2(f), _pair(down), _pad4(padding)
  p = (x0 + (fw - dx + 1) // 2, x1 + (fw - dx) // 2, y0 + (fh - dy + 1) // 2, y1 + (fh - dy) // 2)
  return upfirdn2d(x, f, down=down, padding=p, flip_filter=flip_filter, gain=gain)


def half(x):
  """The mean of each 2x2: [N,H,W,C] -> [N,H/2,W/2,C]."""
  return downsample2d(x, BOX)


def nearest(x, factor=2):
  """Every pixel `factor` x `factor` times: [N,H,W,C] -> [N,H*factor,W*factor,C]."""
  return x if factor == 1 else jnp.repeat(jnp.repeat(x, factor, 1), factor, 2)


def _taps2(f):
  f = np.ones(1) if f is None else np.asarray(f)
  return (f.shape[0], f.shape[-1])


# ---- Convolution: three bilinear functions with <conv(x,w), y> = <x, conv_t(y,w)> = <w, conv_w(x,y

_DIMS = ('NHWC', 'HWIO', 'NHWC')


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv(x, w, stride, pad):
  """Correlation: x [N,H,W,I], w [k,k,I,O] -> [N,P,Q,O], zero padding `pad` on each side."""
  if _pointwise(w.shape[0], stride, pad):
    return jnp.einsum('nhwi,io->nhwo', x, w[0, 0].astype(x.dtype))
  return lax.conv_general_dilated(
    x, w.astype(x.dtype), (stride, stride), [(pad, pad)] * 2, dimension_numbers=_DIMS
  )


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _conv_t(y, w, stride, pad, size):
  """The transpose of _conv in x: y [N,P,Q,O], w [k,k,I,O] -> [N,*size,I]."""
  k = w.shape[0]
  if _pointwise(k, stride, pad):
    return jnp.einsum('nhwo,io->nhwi', y, w[0, 0].astype(y.dtype))
  pads = [(k - 1 - pad, n - 1 - (m - 1) * stride + pad) for n, m in zip(size, y.shape[1:3])]
  w = jnp.swapaxes(w[::-1, ::-1], 2, 3).astype(y.dtype)
  return lax.conv_general_dilated(
    y, w, (1, 1), pads, lhs_dilation=(stride, stride), dimension_numbers=_DIMS
  )


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _conv_w(x, y, stride, pad, k):
  """The gradient of _conv in w: x [N,H,W,I], y [N,P,Q,O] -> [k,k,I,O], float32 at least."""
  dtype = jnp.promote_types(x.dtype, jnp.float32)
  if _pointwise(k, stride, pad):
    return jnp.einsum('nhwi,nhwo->io', x, y, preferred_element_type=dtype)[None, None]
  return lax.platform_dependent(
    x,
    y,
    cpu=partial(_conv_w_matmul, stride=stride, pad=pad, k=k, dtype=dtype),
    default=partial(_conv_w_conv, stride=stride, pad=pad, k=k, dtype=dtype),
  )


def _pointwise(k, stride, pad):
  """Whether a convolution is a plain product of pixels with a matrix, which XLA does better than a
  convolution.
  """
  return k == 1 and stride == 1 and pad == 0


def _conv_w_matmul(x, y, stride, pad, k, dtype):
  """One matmul of y with all shifts of x, by chunks of rows that stay in the cache: 10x as fast as
  XLA's form on a CPU.
  """
  (n, p, q, o), i = y.shape, x.shape[3]
  x = jnp.pad(x, [(0, 0), (pad, pad), (pad, pad), (0, 0)])
  # rows of y in a chunk
  h = max(d for d in range(1, p + 1) if p % d == 0 and (d == 1 or n * d * q <= 1024))
  span = lambda m: (m - 1) * stride + 1

  def chunk(r, total):
    yt = lax.dynamic_slice_in_dim(y, r * h, h, 1).transpose(3, 0, 1, 2).reshape(o, -1)
    rows = lax.dynamic_slice_in_dim(x, r * h * stride, span(h) + k - 1, 1)
    shifts = [
      rows[:, a : a + span(h) : stride, b : b + span(q) : stride].reshape(-1, i)
      for a in range(k)
      for b in range(k)
    ]
    return total + jnp.dot(yt, jnp.concatenate(shifts, axis=1), preferred_element_type=dtype)

  total = lax.fori_loop(0, p // h, chunk, jnp.zeros((o, k * k * i), dtype))
  return total.reshape(o, k, k, i).transpose(1, 2, 3, 0)


def _conv_w_conv(x, y, stride, pad, k, dtype):
  """The batch contracted as if it were channels, the form that cuDNN and the TPU compiler
  recognise.
  """
  pads = [
    (pad, k - 1 - pad + (m - 1) * stride - (n - 1)) for n, m in zip(x.shape[1:3], y.shape[1:3])
  ]
  return lax.conv_general_dilated(
    x,
    y,
    (1, 1),
    pads,
    rhs_dilation=(stride, stride),
    dimension_numbers=('CHWN', 'IHWO', 'HWNC'),
    preferred_element_type=dtype,
  )


_conv.defvjp(
  lambda x, w, s, p: (_conv(x, w, s, p), (x, w)),
  lambda s, p, r, dy: (
    _conv_t(dy, r[1], s, p, r[0].shape[1:3]),
    _like(_conv_w(r[0], dy, s, p, r[1].shape[0]), r[1]),
  ),
)
_conv_t.defvjp(
  lambda y, w, s, p, size: (_conv_t(y, w, s, p, size), (y, w)),
  lambda s, p, size, r, dx: (
    _conv(dx, r[1], s, p),
    _like(_conv_w(dx, r[0], s, p, r[1].shape[0]), r[1]),
  ),
)
_conv_w.defvjp(
  lambda x, y, s, p, k: (_conv_w(x, y, s, p, k), (x, y)),
  lambda s, p, k, r, dw: (
    _like(_conv_t(r[1], dw, s, p, r[0].shape[1:3]), r[0]),
    _like(_conv(r[0], dw, s, p), r[1]),
  ),
)


def _like(x, other):
  return x.astype(other.dtype)


def conv2d_resample(x, w, *, taps=(1, 3, 3, 1), up=1, down=1, padding=0, flip_weight=True):
  """Convolution with fused up- or down-sampling [S2 App. B]. x: [N,H,W,I], w: [k,k,I,O] ->
  [N,H*up/down,...,O].

  taps: 1-D resampling filter, normalised here; padding: of the un-resampled convolution (k//2 keeps
  the size); flip_weight True is a correlation, False a true convolution. Up-sampling keeps
  brightness (gain up^2).
  """
  f = np.asarray(taps, np.float64) / np.sum(taps)
  n, k = len(f), w.shape[0]
  w = w if flip_weight else w[::-1, ::-1]
  if up == 1 and down == 1:
    return _conv(x, w, 1, padding)
  p0, p1 = padding, padding
  if up > 1:
    p0, p1 = p0 + (n + up - 1) // 2, p1 + (n - up) // 2
  if down > 1:
    p0, p1 = p0 + (n - down + 1) // 2, p1 + (n - down) // 2
  fir = partial(upfirdn2d, f=f, gain=up**2)
  if up > 1:
    if k == 1:  # the 1x1 product where there are fewer pixels
      x = fir(_conv(x, w, 1, 0), up=up, padding=(p0, p1, p0, p1))
    else:  # zero insertion and convolution in one, then the filter; linear, so the order is free
      size = tuple((m - 1) * up + k for m in x.shape[1:3])
      x = _conv_t(x, jnp.swapaxes(w[::-1, ::-1], 2, 3), up, 0, size)
      # it has added k-1 at both ends, but not the up-1 trailing zeros
      q0, q1 = p0 - k + 1, p1 - k + up
      x = fir(x, padding=(q0, q1, q0, q1))
    # with both, one filter for each change of rate
    return x if down == 1 else upfirdn2d(x, f, down=down)
  if k == 1:
    return _conv(fir(x, down=down, padding=(p0, p1, p0, p1)), w, 1, 0)
  return _conv(fir(x, padding=(p0, p1, p0, p1)), w, down, 0)


def nearest_conv2d(x, w):
  """Nearest-neighbour up-sampling by 2, then a 3x3 correlation [S1], in one strided product. x:
  [N,H,W,I] -> [N,2H,2W,O].
  """
  size = (2 * x.shape[1], 2 * x.shape[2])
  return _conv_t(x, _shifts(jnp.swapaxes(w[::-1, ::-1], 2, 3)), 2, 1, size)


def conv2d_mean(x, w):
  """3x3 correlation, then the mean of each 2x2 [S1], in one strided product. x: [N,H,W,I] ->
  [N,H/2,W/2,O].
  """
  return _conv(x, _shifts(w) / 4, 2, 1)


def _shifts(w):
  """The sum of the four one-pixel shifts of a kernel: [3,3,I,O] -> [4,4,I,O]."""
  return sum(jnp.pad(w, [(a, 1 - a), (b, 1 - b), (0, 0), (0, 0)]) for a in (0, 1) for b in (0, 1))


def modulated_conv2d(
  x,
  w,
  styles,
  *,
  noise=None,
  taps=(1, 3, 3, 1),
  up=1,
  down=1,
  padding=0,
  demodulate=True,
  flip_weight=True,
  dtype=None,
):
  """Convolution whose weights are scaled by `styles` and demodulated [S2 Eq. 1-3]. ->
  [N,H*up/down,W*up/down,O].

  x: [N,H,W,I], w: [k,k,I,O], styles: [N,I] (float32), noise: broadcastable to the result, added
  last. dtype: of the result, None for x's; everything but the convolution itself is computed in
  float32 at least, gradients of styles and noise too. Computed un-fused: scale the input, convolve
  with the shared weight, scale the output by rsqrt(sum (s w)^2 + 1e-8), which is the same by
  linearity and needs no per-sample kernels.
  """
  scaled = _like(full_precision(x) * styles[:, None, None], x)
  y = full_precision(
    conv2d_resample(
      scaled, w, taps=taps, up=up, down=down, padding=padding, flip_weight=flip_weight
    )
  )
  if demodulate:
    # [N,O]
    energy = jnp.dot(styles**2, jnp.sum(w**2, axis=(0, 1)), precision=lax.Precision.HIGHEST)
    y = y * lax.rsqrt(energy + 1e-8)[:, None, None]
  if noise is not None:
    y = y + noise
  return y.astype(x.dtype if dtype is None else dtype)


def minibatch_stddev(x, group_size=4, num_channels=1):
  """Appends the standard deviation over groups of samples as channels [Karras et al. 2018, S2].
  [N,H,W,C] -> [N,H,W,C+F].

  group_size: G = min(group_size, N), None for N; sample i is in group i mod N/G. Channels are split
  into num_channels contiguous blocks. Group sums are products with a membership matrix rather than
  reshapes: over a sharded batch they become all-reduces of [N/G,...], never a gather of x. float32
  at least.
  Raises: ValueError if N is no multiple of G.
  """
  n, h, w, c = x.shape
  group = min(group_size or n, n)
  if n % group:
    raise ValueError(
      f"a batch of {n} can't be split into minibatch-stddev groups of {group}; "
      f'use a multiple of {group} or another mbstd_group_size'
    )
  dtype = jnp.promote_types(x.dtype, jnp.float32)
  # [M,N]
  member = jnp.asarray(np.arange(n)[None] % (n // group) == np.arange(n // group)[:, None], dtype)
  dot = partial(jnp.einsum, precision=lax.Precision.HIGHEST)
  y = x.astype(dtype)
  y = y - dot('mn,mhwc->nhwc', member, dot('mn,nhwc->mhwc', member / group, y))
  y = jnp.sqrt(dot('mn,nhwc->mhwc', member / group, y**2) + 1e-8)  # [M,H,W,C]
  y = y.reshape(n // group, h, w, num_channels, c // num_channels).mean(axis=(1, 2, 4))  # [M,F]
  y = dot('mn,mf->nf', member, y)[:, None, None].astype(x.dtype)
  return jnp.concatenate([x, jnp.broadcast_to(y, (n, h, w, num_channels))], axis=-1)
