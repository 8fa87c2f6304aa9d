"""Convolutions for a TPU, whose vectors and products have 128 lanes for the channels.

Where there are fewer channels, `fold` columns of an image lie in them: [N,H,W,C] is kept as
[N,H,W/fold,fold*C], which is the same array, differently read. The kernel is folded alike, with
zeros where columns do not meet; it computes more, and in a quarter of the time for 32 channels at
1024 px. FIR filters are merged into the kernels of the convolutions next to them, because a filter
on its own costs as much as a convolution of 128 channels.

Values and parameters are those of conv.conv2d_resample, which says what is computed.
"""

from collections.abc import Sequence
from functools import partial

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

LANES = 128
Folds = tuple[int, int]  # of what a layer takes, and of what it makes
NONE = (1, 1)


def factor(channels: int, width: int) -> int:
  """How many of `width` columns to fold into the channels: a power of 2 that fills the lanes."""
  fold = 1
  while 2 * fold * channels <= LANES and width % (2 * fold) == 0:
    fold *= 2
  return fold


def refold(x: jax.Array, before: int, after: int) -> jax.Array:
  """[N,H,W/before,before*C] -> [N,H,W/after,after*C]; 1 is an image as it is elsewhere."""
  n, h, w, c = x.shape
  return x.reshape(n, h, w * before // after, c // before * after)


def blocks(m: jax.Array, fold: int) -> jax.Array:
  """Matrices [...,I,O] for folded pixels, each column for itself: [...,fold*I,fold*O]."""
  m = jnp.einsum('...io,pq->...piqo', m, np.eye(fold, dtype=m.dtype))
  return m.reshape(*m.shape[:-4], m.shape[-4] * m.shape[-3], m.shape[-2] * m.shape[-1])


# ---- three bilinear functions, as in conv.py, but the two axes may have different strides
#
#   <down(x, w), y> = <x, up(y, w)> = <w, kernel(x, y)>
#
# x [N,H,W,I] has `stride` times as many rows and columns as y [N,P,Q,O].


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _down(x, w, stride, pad):
  """Strided correlation, y[m] = sum_t w[t] x[stride*m + t - pad]."""
  return lax.conv_general_dilated(
    x,
    w.astype(x.dtype),
    stride,
    _margins(w.shape[:2], stride, pad),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _up(y, w, stride, pad):
  """The transpose of _down in x: x[stride*q + r - pad] = sum_j w[stride*j + r] y[q - j].

  All phases r at once, as channels of one convolution of y. A TPU would run a dilated convolution
  on the inserted zeros: as many products, and a filter could not be merged into it.
  """
  # Zeros before the kernel, so that the padding is whole pixels of y, and after it.
  before = [-p % s for p, s in zip(pad, stride)]
  after = [-(b + k) % s for b, k, s in zip(before, w.shape, stride)]
  w = jnp.pad(w.astype(y.dtype), [*zip(before, after), (0, 0), (0, 0)])
  taps = [k // s for k, s in zip(w.shape, stride)]
  w = w.reshape(taps[0], stride[0], taps[1], stride[1], *w.shape[2:])
  w = w[::-1, :, ::-1].transpose(0, 2, 5, 1, 3, 4)
  whole = [(b + p) // s for b, p, s in zip(before, pad, stride)]
  y = lax.conv_general_dilated(
    y,
    w.reshape(*w.shape[:3], -1),
    (1, 1),
    [(t - 1 - a, a) for t, a in zip(taps, whole)],
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )
  if stride == (1, 1):
    return y
  # By the order in which a TPU keeps them, or it would reorder them twice; and in their own dtype,
  # or it would reorder what is made of them.
  n, h, v, _ = y.shape
  y = y.transpose(1, 2, 0, 3).reshape(h, v, n, *stride, -1).transpose(0, 3, 1, 4, 2, 5)
  y = y.reshape(h * stride[0], v * stride[1], n, -1).transpose(2, 0, 1, 3)
  return lax.optimization_barrier(y)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _kernel(x, y, stride, pad, size):
  """The gradient of _down in w [*size,I,O], float32 at least."""
  return lax.conv_general_dilated(
    x,
    y,
    (1, 1),
    _margins(size, stride, pad),
    rhs_dilation=stride,
    dimension_numbers=('CHWN', 'IHWO', 'HWNC'),
    preferred_element_type=jnp.promote_types(x.dtype, jnp.float32),
  )


def _margins(size, stride, pad):
  """Padding before and after, for as many outputs as there are strides."""
  return [(p, k - s - p) for k, s, p in zip(size, stride, pad, strict=True)]


def _down_fwd(x, w, stride, pad):
  return _down(x, w, stride, pad), (x, w)


def _down_bwd(stride, pad, saved, dy):
  x, w = saved
  dw = _kernel(x, dy, stride, pad, w.shape[:2])
  return _up(dy, w, stride, pad), dw.astype(w.dtype)


def _up_fwd(y, w, stride, pad):
  return _up(y, w, stride, pad), (y, w)


def _up_bwd(stride, pad, saved, dx):
  y, w = saved
  dw = _kernel(dx, y, stride, pad, w.shape[:2])
  return _down(dx, w, stride, pad), dw.astype(w.dtype)


def _kernel_fwd(x, y, stride, pad, size):
  return _kernel(x, y, stride, pad, size), (x, y)


def _kernel_bwd(stride, pad, size, saved, dw):
  x, y = saved
  return _up(y, dw, stride, pad).astype(x.dtype), _down(x, dw, stride, pad).astype(y.dtype)


_down.defvjp(_down_fwd, _down_bwd)
_up.defvjp(_up_fwd, _up_bwd)
_kernel.defvjp(_kernel_fwd, _kernel_bwd)


# ---- kernels


def _merged(w, taps):
  """Filter and kernel in one, on both axes: [k,k,I,O] -> [k+n-1,k+n-1,I,O]."""
  k = w.shape[0]
  places = np.zeros((k + len(taps) - 1, k))
  for t in range(k):
    places[t : t + len(taps), t] = taps
  return _product('at,bu,tuio->abio', places, places, w)


def _folded(w, stride, pad, fold):
  """The kernel of _down where stride*fold columns of x and `fold` of y are in their channels.

  Column p of block M + d of x and column a of block M of y meet at a tap of
  stride * fold * d + p - stride * a + pad.

  Returns:
    [k,D,stride*fold*I,fold*O], and blocks before M.
  """
  k = w.shape[1]
  reach = k // (stride * fold) + 1
  d, p, a, t = np.ogrid[-reach : reach + 1, : stride * fold, :fold, :k]
  meets = stride * fold * d + p - stride * a + pad == t
  used = np.flatnonzero(meets.any((1, 2, 3)))
  w = _product('dpat,ktio->kdpiao', meets[used[0] : used[-1] + 1], w)
  rows, columns, p, i, a, o = w.shape
  return w.reshape(rows, columns, p * i, a * o), reach - int(used[0])


def _product(terms, *factors):
  """einsum of constants and, last, an array; exact in float32 on every machine."""
  *constants, x = factors
  constants = [jnp.asarray(c, x.dtype) for c in constants]
  return jnp.einsum(terms, *constants, x, precision=lax.Precision.HIGHEST)


def conv2d(
  x: jax.Array, w: jax.Array, taps: Sequence[float], up: int, down: int, folds: Folds
) -> jax.Array:
  """conv.conv2d_resample with padding k//2, up or down of 2 or neither, and true correlations.

  Args:
    x: [N,H,W/fold,fold*I], of the first of `folds`.
    w: [k,k,I,O], as it is on every machine.
    taps: 1-D resampling filter, normalised here.
    up: 1 or 2.
    down: 1 or 2.
    folds: of x and of the result.

  Returns:
    [N,H*up/down,W*up/down/fold,fold*O], of the second.
  """
  stride = max(up, down)
  pad = w.shape[0] // 2
  f = np.asarray(taps, np.float64) / np.sum(taps)
  if up > 1:  # the transpose of down-sampling, with the kernel's transpose
    pad += (len(f) - 2) // 2
    w = _merged(jnp.swapaxes(w[::-1, ::-1], 2, 3), f * up)
  elif down > 1:
    pad += (len(f) - 1) // 2
    w = _merged(w, f[::-1])
  low, high = folds if up > 1 else folds[::-1]
  inside = stride * low  # columns in the channels of the larger image
  w, before = _folded(w, stride, pad, low)
  strides, pads = (stride, 1), (pad, before)
  if up > 1:
    return refold(_up(x, w, strides, pads), inside, high)
  return _down(refold(x, high, inside), w, strides, pads)
