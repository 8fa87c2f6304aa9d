"""Convolution: plain, resampled and modulated. Images are [N,H,W,C], kernels [kh,kw,in,out].

XLA is slow at differentiating dilated convolutions, and R1 and path lengths differentiate twice. So
convolution, its input gradient and its weight gradient are three functions with a fast form each,
and their derivatives are one another.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from sg2jax import folding, products
from sg2jax.products import full_precision
from sg2jax.resample import TAPS, down_padding, up_padding, upfirdn2d

# ---- three bilinear functions
#
#   <conv(x, w), y> = <x, conv_t(y, w)> = <w, conv_w(x, y)>
#
# This one number is linear in x, w and y, and each function is its gradient by one of them. So
# whichever is differentiated by whichever argument, the answer is another of the three:
#   conv(x, w):    dx = conv_t(dy, w)    dw = conv_w(x, dy)
#   conv_t(y, w):  dy = conv(dx, w)      dw = conv_w(dx, y)
#   conv_w(x, y):  dx = conv_t(y, dw)    dy = conv(x, dw)

_DIMS = ('NHWC', 'HWIO', 'NHWC')


def _is_product(k, stride, pad):
  """Whether a convolution is a plain product of pixels with a matrix, at which XLA is faster."""
  return k == 1 and stride == 1 and pad == 0


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv(x, w, stride, pad):
  """Correlation: x [N,H,W,I], w [k,k,I,O] -> [N,P,Q,O], zero padding `pad` on each side."""
  if _is_product(w.shape[0], stride, pad):
    return jnp.einsum('nhwi,io->nhwo', x, w[0, 0].astype(x.dtype))
  return lax.conv_general_dilated(
    x, w.astype(x.dtype), (stride, stride), [(pad, pad)] * 2, dimension_numbers=_DIMS
  )


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _conv_t(y, w, stride, pad, size):
  """The transpose of _conv in x: y [N,P,Q,O], w [k,k,I,O] -> [N,*size,I]."""
  k = w.shape[0]
  w = w.astype(y.dtype)
  if _is_product(k, stride, pad):
    return jnp.einsum('nhwo,io->nhwi', y, w[0, 0])
  options = dict(stride=stride, pad=pad, size=size)
  dilated = partial(_conv_t_dilated, **options)
  if stride == 1 or k < stride:
    return dilated(y, w)
  phases = partial(_conv_t_phases, **options)
  # A TPU computes the inserted zeros, too, and yet is as fast with as few channels as lanes.
  tpu = phases if min(w.shape[2:]) > folding.LANES else dilated
  return lax.platform_dependent(y, w, cpu=phases, tpu=tpu, default=dilated)


def _conv_t_dilated(y, w, stride, pad, size):
  """_conv_t as a convolution of y with zeros between its pixels."""
  k = w.shape[0]
  pads = [(k - 1 - pad, n - 1 - (m - 1) * stride + pad) for n, m in zip(size, y.shape[1:3])]
  if stride > 1:
    # cuDNN computes it without the inserted zeros, if XLA finds the reversal next to it. Without
    # the barrier it is moved behind casts and scaling, and there is four times the work.
    w = lax.optimization_barrier(w)
  return lax.conv_general_dilated(
    y,
    lax.rev(w, (0, 1)),
    (1, 1),
    pads,
    lhs_dilation=(stride, stride),
    dimension_numbers=('NHWC', 'HWOI', 'NHWC'),
  )


def _conv_t_phases(y, w, stride, pad, size):
  """_conv_t by phase: output m meets the taps a = m + pad (mod stride) only, and no zeros.

  1.25 to 3.0 times as fast on a CPU for y of 16 to 128 px, and as fast at 8. A TPU adds the phases
  up while it filters them.
  """
  k = w.shape[0]
  axes = []  # for y and x, of each phase: (its taps, padding of y, place in the output)
  for n, m in zip(size, y.shape[1:3]):
    phases = []
    for r in range(min(stride, n)):
      shift, first = divmod(r + pad, stride)
      taps = len(range(first, k, stride))
      count = -(-(n - r) // stride)  # outputs of this phase
      place = (r, n - 1 - r - (count - 1) * stride, stride - 1)
      phases.append((slice(first, k, stride), (taps - 1 - shift, count + shift - m), place))
    axes.append(phases)

  x = 0
  for taps_y, pad_y, place_y in axes[0]:
    for taps_x, pad_x, place_x in axes[1]:
      part = lax.conv_general_dilated(
        y,
        lax.rev(w[taps_y, taps_x], (0, 1)),
        (1, 1),
        (pad_y, pad_x),
        dimension_numbers=('NHWC', 'HWOI', 'NHWC'),
      )
      zero = np.zeros((), part.dtype)
      x = x + lax.pad(part, zero, [(0, 0, 0), place_y, place_x, (0, 0, 0)])
  return x


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _conv_w(x, y, stride, pad, k):
  """The gradient of _conv in w: x [N,H,W,I], y [N,P,Q,O] -> [k,k,I,O], float32 at least."""
  dtype = jnp.promote_types(x.dtype, jnp.float32)
  if _is_product(k, stride, pad):
    return jnp.einsum('nhwi,nhwo->io', x, y, preferred_element_type=dtype)[None, None]
  # The form is chosen when it is compiled for a platform, not when it is traced.
  options = dict(stride=stride, pad=pad, k=k, dtype=dtype)
  return lax.platform_dependent(
    x,
    y,
    cpu=partial(_conv_w_matmul, **options),
    tpu=partial(_conv_w_conv, result=dtype, **options),
    # Sums of bfloat16 are float32 inside a GPU's kernel, too, and rounded once. To ask for them
    # would make XLA write float32 copies of x and y, from the forward pass on.
    default=partial(_conv_w_conv, result=x.dtype, **options),
  )


def _conv_w_matmul(x, y, stride, pad, k, dtype):
  """_conv_w as one product of y with all shifts of x: 10 times as fast as XLA's form on a CPU.

  By chunks of rows whose shifts stay in the cache: 1024 positions were the fastest of those tried,
  and faster than a product for each shift (docs/performance.md).
  """
  n, p, q, o = y.shape
  i = x.shape[3]
  x = jnp.pad(x, [(0, 0), (pad, pad), (pad, pad), (0, 0)])
  # rows of y in a chunk: as many as divide them evenly
  height = max(d for d in range(1, p + 1) if p % d == 0 and (d == 1 or n * d * q <= 1024))

  def span(count):
    return (count - 1) * stride + 1

  def add_chunk(index, total):
    part = lax.dynamic_slice_in_dim(y, index * height, height, 1)
    part = part.transpose(3, 0, 1, 2).reshape(o, -1)  # [O, positions]
    rows = lax.dynamic_slice_in_dim(x, index * height * stride, span(height) + k - 1, 1)
    shifts = [
      rows[:, a : a + span(height) : stride, b : b + span(q) : stride].reshape(-1, i)
      for a in range(k)
      for b in range(k)
    ]
    shifts = jnp.concatenate(shifts, axis=1)  # [positions, k*k*I]
    return total + jnp.dot(part, shifts, preferred_element_type=dtype)

  total = lax.fori_loop(0, p // height, add_chunk, jnp.zeros((o, k * k * i), dtype))
  return total.reshape(o, k, k, i).transpose(1, 2, 3, 0)


def _conv_w_conv(x, y, stride, pad, k, dtype, result):
  """_conv_w with the batch contracted like channels, which cuDNN and the TPU compiler recognise."""
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
    preferred_element_type=result,
  ).astype(dtype)


# Each derivative has the dtype of what it is a derivative of, as custom_vjp demands: _conv_w is
# float32 where x and y are bfloat16.


def _conv_fwd(x, w, stride, pad):
  return _conv(x, w, stride, pad), (x, w)


def _conv_bwd(stride, pad, saved, dy):
  x, w = saved
  dx = _conv_t(dy, w, stride, pad, x.shape[1:3])
  dw = _conv_w(x, dy, stride, pad, w.shape[0])
  return dx, dw.astype(w.dtype)


def _conv_t_fwd(y, w, stride, pad, size):
  return _conv_t(y, w, stride, pad, size), (y, w)


def _conv_t_bwd(stride, pad, size, saved, dx):
  y, w = saved
  dy = _conv(dx, w, stride, pad)
  dw = _conv_w(dx, y, stride, pad, w.shape[0])
  return dy, dw.astype(w.dtype)


def _conv_w_fwd(x, y, stride, pad, k):
  return _conv_w(x, y, stride, pad, k), (x, y)


def _conv_w_bwd(stride, pad, k, saved, dw):
  x, y = saved
  dx = _conv_t(y, dw, stride, pad, x.shape[1:3])
  dy = _conv(x, dw, stride, pad)
  return dx.astype(x.dtype), dy.astype(y.dtype)


_conv.defvjp(_conv_fwd, _conv_bwd)
_conv_t.defvjp(_conv_t_fwd, _conv_t_bwd)
_conv_w.defvjp(_conv_w_fwd, _conv_w_bwd)


# ---- with resampling


def _transposed(w):
  """The kernel of the transpose, a correlation with dilated input: [k,k,I,O] -> [k,k,O,I]."""
  return jnp.swapaxes(w[::-1, ::-1], 2, 3)


def conv2d_resample(
  x: jax.Array,
  w: jax.Array,
  *,
  taps: Sequence[float] = TAPS,
  up: int = 1,
  down: int = 1,
  padding: int = 0,
  flip_weight: bool = True,
  folds: folding.Folds = folding.NONE,
) -> jax.Array:
  """Convolution with up- or down-sampling [S2 App. B]: [N,H,W,I] -> [N,H*up/down,W*up/down,O].

  Args:
    x: [N,H,W,I].
    w: [k,k,I,O].
    taps: 1-D resampling filter, normalised here.
    up: factor; brightness is kept.
    down: factor.
    padding: of the convolution without resampling; k//2 keeps the size.
    flip_weight: True is a correlation, False a true convolution.
    folds: columns in the channels of x and of the result (folding.py); padding is k//2 then.
  """
  if not flip_weight:
    w = w[::-1, ::-1]
  if folds != folding.NONE:
    return folding.conv2d(x, w, taps, up, down, folds)
  if up == 1 and down == 1:
    return _conv(x, w, 1, padding)
  f = np.asarray(taps, np.float64) / np.sum(taps)
  before, after = padding, padding  # of the filter, which pads for the convolution too
  if up > 1:
    more = up_padding(len(f), up)
    before, after = before + more[0], after + more[1]
  if down > 1:
    more = down_padding(len(f), down)
    before, after = before + more[0], after + more[1]
  if up > 1:
    x = _up_conv(x, w, f, up, before, after)
    # with both, one filter for each change of rate
    return x if down == 1 else upfirdn2d(x, f, down=down)
  pads = (before, after, before, after)
  if w.shape[0] == 1:  # the product where there are fewer pixels
    return _conv(upfirdn2d(x, f, down=down, padding=pads), w, 1, 0)
  return _conv(upfirdn2d(x, f, padding=pads), w, down, 0)


def _up_conv(x, w, f, up, before, after):
  """Up-sampling by the filter f with this padding, then a correlation with w, in another order."""
  k = w.shape[0]
  if k == 1:  # the product where there are fewer pixels
    pads = (before, after, before, after)
    return upfirdn2d(_conv(x, w, 1, 0), f, up=up, padding=pads, gain=up**2)
  # Zero insertion and convolution in one, then the filter: all are linear and shift-invariant, so
  # their order is free, and no zeros are stored.
  size = tuple((m - 1) * up + k for m in x.shape[1:3])
  x = _conv_t(x, _transposed(w), up, 0, size)
  # it has added k-1 at both ends, but not the up-1 trailing zeros
  before = before - k + 1
  after = after - k + up
  return upfirdn2d(x, f, padding=(before, after, before, after), gain=up**2)


def nearest_conv2d(x: jax.Array, w: jax.Array) -> jax.Array:
  """Nearest-neighbour up-sampling by 2, then a 3x3 correlation [S1]: [N,H,W,I] -> [N,2H,2W,O].

  In one strided product, as repeating pixels is a convolution with a 2x2 of ones.
  """
  size = (2 * x.shape[1], 2 * x.shape[2])
  return _conv_t(x, _shifts(_transposed(w)), 2, 1, size)


def conv2d_mean(x: jax.Array, w: jax.Array) -> jax.Array:
  """3x3 correlation, then the mean of each 2x2 [S1]: [N,H,W,I] -> [N,H/2,W/2,O]. One product."""
  return _conv(x, _shifts(w) / 4, 2, 1)


def _shifts(w):
  """The sum of the four one-pixel shifts of a kernel: [3,3,I,O] -> [4,4,I,O]."""
  return sum(jnp.pad(w, [(a, 1 - a), (b, 1 - b), (0, 0), (0, 0)]) for a in (0, 1) for b in (0, 1))


# ---- modulated


def modulated_conv2d(
  x: jax.Array,
  w: jax.Array,
  styles: jax.Array,
  *,
  noise: jax.Array | None = None,
  demodulate: bool = True,
  dtype: Any = None,
  **resampling: Any,
) -> jax.Array:
  """Convolution whose weights are scaled by `styles` and demodulated [S2 Eq. 1-3].

  All but the convolution itself is float32 at least, the gradients of styles and noise too.

  Args:
    x: [N,H,W,I].
    w: [k,k,I,O].
    styles: [N,I], float32.
    noise: broadcastable to the result [N,H*up/down,W*up/down,O], added last; or None.
    demodulate: whether the result is scaled to unit variance.
    dtype: of the result, None for x's.
    resampling: taps, up, down, padding and flip_weight of conv2d_resample.
  """
  y, demod = modulate(x, w, styles, demodulate=demodulate, **resampling)
  y = y.astype(full_precision(y).dtype)
  if demodulate:
    y = products.scale(y, demod, y.dtype)
  if noise is not None:
    y = y + noise
  return y.astype(x.dtype if dtype is None else dtype)


def modulate(
  x: jax.Array,
  w: jax.Array,
  styles: jax.Array,
  *,
  demodulate: bool = True,
  folds: folding.Folds = folding.NONE,
  **resampling: Any,
) -> tuple[jax.Array, jax.Array | None]:
  """modulated_conv2d in two parts: the convolution, and what demodulates it.

  Returns:
    [N,H*up/down,W*up/down,O] in x's dtype; and factors [N,O] by which it is to be scaled, or None.
    Both folded as `folds` says.
  """
  # Un-fused: scale the input, convolve with the shared weight, scale the output. By linearity that
  # is the same as a kernel for each sample. Those would need a grouped convolution, for which the
  # partitioner gathers the activations of a sharded batch on every device.
  if w.shape[0] == 1 and not demodulate and not resampling and w.shape[3] <= products.THIN:
    matrices = styles[:, None] * w[0, 0].T
    return products.contract(x, folding.blocks(matrices, folds[0])), None
  before, after = folds
  x = products.scale(x, jnp.tile(styles, before), x.dtype)
  y = conv2d_resample(x, w, folds=folds, **resampling)
  if not demodulate:
    return y, None
  energy = jnp.dot(styles**2, jnp.sum(w**2, axis=(0, 1)), precision=lax.Precision.HIGHEST)
  return y, jnp.tile(lax.rsqrt(energy + 1e-8), after)
