"""FIR filters: up- and down-sampling of images [N,H,W,C] [S2 App. B, Karras et al. 2018].

A filter is a weighted sum of shifted slices of the image, one axis after the other. A depthwise
convolution, the other way to say it, is slow but on TPUs, and slower still when differentiated
(docs/performance.md). Filter coefficients are NumPy arrays or tuples: static, never traced.

Networks take theirs from models.variant.Variant.taps; config A has stylegan1.BLUR.
"""

from collections.abc import Sequence
from functools import partial

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from sg2jax.products import full_precision

TAPS = (1, 3, 3, 1)  # the paper's filter [S2 App. B]
BOX = np.array([0.5, 0.5])  # filter of the growing path and of image pyramids


def setup_filter(
  taps: float | Sequence | np.ndarray | None,
  *,
  normalize: bool = True,
  flip: bool = False,
  gain: float = 1,
  separable: bool | None = None,
) -> np.ndarray:
  """Filter coefficients: of a 1-D list under 8 taps the outer product [fh,fw], else as it is.

  Args:
    taps: [n], [fh,fw], a number, or None for the identity.
    normalize: to a sum of 1.
    flip: along all axes.
    gain: of the whole 2-D filter; a separable one gets its root, as it is applied twice.
    separable: True keeps a 1-D list as it is, False never does; None: from 8 taps on.
  """
  f = np.atleast_1d(np.asarray(1.0 if taps is None else taps, np.float64))
  if separable is None:
    separable = f.ndim == 1 and f.size >= 8
  if f.ndim == 1 and not separable:
    f = np.outer(f, f)
  if normalize:
    f = f / f.sum()
  if flip:
    f = np.flip(f)
  return f * gain ** (f.ndim / 2)


# ---- one axis
#
#   y[m] = sum_j taps[j] xup[m*down + j - pad[0]],   xup[i*up] = x[i], zeros between and outside
#
# Before decimation, output m = q*up + r meets samples only where r + j - pad[0] divides by up; the
# other taps fall on inserted zeros. So each phase r is a short sum of taps times x[q + offset],
# that is, of slices of x shifted by the offsets. No zero is ever multiplied, and the phases are
# interleaved at the end.
#
# The transpose reads the same sum by x: dx[i] = sum_m taps[i*up + pad[0] - m*down] dy[m]. That is
# the filter with up and down exchanged and the taps reversed. It is written by hand, because jax
# would add up padded slices; and as it is `_fir` again, every further derivative is fast, too.


def _phases(taps, up, first):
  """For each phase r: [(tap, offset)], the taps that meet samples. first: padding before."""
  phases = []
  for r in range(up):
    hits = []
    for j, tap in enumerate(taps):
      offset, between = divmod(r + j - first, up)
      if tap != 0 and not between:
        hits.append((tap, offset))
    phases.append(hits or [(0.0, 0)])  # with fewer taps than phases some are 0
  return phases


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4, 5))
def _fir(x, taps, axis, up, down, pad):
  """The sum above along one axis, in float32 at least, rounded once. Negative padding crops."""
  options = dict(taps=taps, axis=axis, up=up, down=down, pad=pad)
  form = partial(_fir_slices, **options)
  is_exact = np.array_equal(np.asarray(taps, x.dtype).astype(np.float64), taps)
  if x.dtype != jnp.bfloat16 or not is_exact or np.count_nonzero(taps) < 2:
    return form(x)
  return lax.platform_dependent(x, tpu=partial(_fir_depthwise, **options), default=form)


def _fir_depthwise(x, taps, axis, up, down, pad):
  """_fir as a depthwise convolution: a third of a TPU's cycles, and many times a GPU's.

  Taps must be exact in x's dtype. Products and sums are float32.
  """
  size, strides, dilation, pads = [1, 1], [1, 1], [1, 1], [(0, 0), (0, 0)]
  size[axis - 1] = len(taps)
  strides[axis - 1] = down
  dilation[axis - 1] = up
  pads[axis - 1] = (pad[0], pad[1] + up - 1)  # dilation ends with a sample, the sum with zeros
  kernel = jnp.asarray(taps, x.dtype).reshape(*size, 1, 1)
  return lax.conv_general_dilated(
    x,
    jnp.broadcast_to(kernel, (*size, 1, x.shape[3])),
    strides,
    pads,
    lhs_dilation=dilation,
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=x.shape[3],
  )


def _fir_slices(x, taps, axis, up, down, pad):
  """_fir as a sum of shifted slices."""
  n = x.shape[axis]
  full = n * up + sum(pad) - len(taps) + 1  # outputs before decimation
  # With one phase the slices themselves are taken in steps; otherwise the interleaved result is.
  step = down if up == 1 else 1
  count = -(-full // (down if up == 1 else up))  # outputs of a phase
  phases = _phases(taps, up, pad[0])
  offsets = [offset for hits in phases for _, offset in hits]
  span = (count - 1) * step + 1  # from the first sample of a slice to its last
  before = max(0, -min(offsets))
  after = max(0, max(offsets) + span - n)
  x = jnp.pad(x, [(before, after) if a == axis else (0, 0) for a in range(x.ndim)])

  def shifted(offset):
    start = offset + before
    return full_precision(lax.slice_in_dim(x, start, start + span, step, axis))

  ys = [sum(tap * shifted(offset) for tap, offset in hits).astype(x.dtype) for hits in phases]
  if up == 1:
    return ys[0]
  y = jnp.stack(ys, axis + 1)
  y = y.reshape(y.shape[:axis] + (count * up,) + y.shape[axis + 2 :])
  return lax.slice_in_dim(y, 0, full, down, axis)


def _fir_fwd(x, taps, axis, up, down, pad):
  return _fir(x, taps, axis, up, down, pad), x.shape


def _fir_bwd(taps, axis, up, down, pad, shape, dy):
  before = len(taps) - 1 - pad[0]
  # as much as it takes for as many outputs as x has samples
  after = (shape[axis] - 1) * up + len(taps) - dy.shape[axis] * down - before
  return (_fir(dy, taps[::-1], axis, down, up, (before, after)),)


_fir.defvjp(_fir_fwd, _fir_bwd)


# ---- two axes


def _pair(v):
  """A number or (x, y) -> (x, y)."""
  return (v, v) if np.ndim(v) == 0 else tuple(v)


def _pad4(padding):
  """A number, (x, y) or (x_before, x_after, y_before, y_after) -> the last."""
  p = _pair(padding)
  return (p[0], p[0], p[1], p[1]) if len(p) == 2 else p


def upfirdn2d(
  x: jax.Array,
  f: Sequence[float] | np.ndarray | None,
  *,
  up: int | tuple[int, int] = 1,
  down: int | tuple[int, int] = 1,
  padding: int | Sequence[int] = 0,
  flip_filter: bool = False,
  gain: float = 1,
) -> jax.Array:
  """Zero insertion, padding, FIR filter, decimation. x: [N,H,W,C].

  Args:
    x: [N,H,W,C].
    f: [taps], separable, or [fh,fw]; None for the identity.
    up: a number, or (x, y).
    down: the same.
    padding: a number, (x, y) or (x0, x1, y0, y1), after zero insertion; negative crops.
    flip_filter: False is a true convolution, True a correlation.
    gain: of the 2-D filter.
  """
  f = np.ones(1) if f is None else np.asarray(f, np.float64)
  if not flip_filter:
    f = np.flip(f)
  up_x, up_y = _pair(up)
  down_x, down_y = _pair(down)
  x0, x1, y0, y1 = _pad4(padding)
  if f.ndim == 1:
    taps = tuple((f * np.sqrt(gain)).tolist())
    x = _fir(x, taps, 1, up_y, down_y, (y0, y1))
    return _fir(x, taps, 2, up_x, down_x, (x0, x1))
  # any 2-D filter is a sum of rows, each shifted down by its index
  y = 0
  for i, row in enumerate(f * gain):
    if row.any():
      shift = tuple(float(i == j) for j in range(len(f)))
      rows = _fir(x, shift, 1, up_y, down_y, (y0, y1))
      y = y + _fir(rows, tuple(row.tolist()), 2, up_x, down_x, (x0, x1))
  return y


def _size(f):
  """(fh, fw) of a filter as upfirdn2d takes it."""
  f = np.ones(1) if f is None else np.asarray(f)
  return f.shape[0], f.shape[-1]


def up_padding(taps: int, up: int) -> tuple[int, int]:
  """(before, after) with which a filter of so many taps makes n*up of n samples, centred."""
  return (taps + up - 1) // 2, (taps - up) // 2


def down_padding(taps: int, down: int) -> tuple[int, int]:
  """(before, after) with which a filter of so many taps makes n/down of n samples, centred."""
  return (taps - down + 1) // 2, (taps - down) // 2


def upsample2d(
  x: jax.Array,
  f: Sequence[float] | np.ndarray | None,
  up: int | tuple[int, int] = 2,
  *,
  padding: int | Sequence[int] = 0,
  flip_filter: bool = False,
  gain: float = 1,
) -> jax.Array:
  """Up-sampling by `up` (int or (x, y)) with brightness kept: [N,H,W,C] -> [N,H*up,W*up,C]."""
  height, width = _size(f)
  up_x, up_y = _pair(up)
  margins = (*up_padding(width, up_x), *up_padding(height, up_y))
  pad = tuple(a + b for a, b in zip(margins, _pad4(padding), strict=True))
  # zero insertion spreads each pixel over up_x * up_y of them
  return upfirdn2d(x, f, up=up, padding=pad, flip_filter=flip_filter, gain=gain * up_x * up_y)


def upsample_phases(x: jax.Array, f: Sequence[float] | np.ndarray) -> jax.Array:
  """Up-sampling by 2 as of upsample2d, with f [taps], whose result isn't interleaved.

  To interleave is to copy, on TPUs at many times the cost of the filter: who reads pixel by pixel
  can do without.

  Returns:
    [N,2,2,H,W,C]: the pixel at (2 y + i, 2 x + j) is [:, i, j, y, x].
  """
  taps = np.flip(f) * 2  # zero insertion halves the brightness, along each axis
  before, _ = up_padding(len(taps), 2)

  def phases(x, axis):
    results = []
    for hits in _phases(taps, 2, before):
      first = hits[0][1]
      pad = (-first, first + len(hits) - 1)
      results.append(_fir(x, tuple(float(tap) for tap, _ in hits), axis, 1, 1, pad))
    return results

  rows = [jnp.stack(phases(y, 2), 1) for y in phases(x, 1)]
  return jnp.stack(rows, 1)


def downsample2d(
  x: jax.Array,
  f: Sequence[float] | np.ndarray | None,
  down: int | tuple[int, int] = 2,
  *,
  padding: int | Sequence[int] = 0,
  flip_filter: bool = False,
  gain: float = 1,
) -> jax.Array:
  """Down-sampling by `down` (int or (x, y)): [N,H,W,C] -> [N,H/down,W/down,C]."""
  height, width = _size(f)
  down_x, down_y = _pair(down)
  margins = (*down_padding(width, down_x), *down_padding(height, down_y))
  pad = tuple(a + b for a, b in zip(margins, _pad4(padding), strict=True))
  return upfirdn2d(x, f, down=down, padding=pad, flip_filter=flip_filter, gain=gain)


def filter2d(
  x: jax.Array,
  f: Sequence[float] | np.ndarray | None,
  *,
  padding: int | Sequence[int] = 0,
  flip_filter: bool = False,
  gain: float = 1,
) -> jax.Array:
  """FIR filter that keeps the size of x [N,H,W,C] (plus padding)."""
  return upsample2d(x, f, 1, padding=padding, flip_filter=flip_filter, gain=gain)


def half(x: jax.Array) -> jax.Array:
  """The mean of each 2x2: [N,H,W,C] -> [N,H/2,W/2,C]."""
  return downsample2d(x, BOX)


def nearest(x: jax.Array, factor: int = 2) -> jax.Array:
  """Every pixel `factor` x `factor` times: [N,H,W,C] -> [N,H*factor,W*factor,C]."""
  return x if factor == 1 else jnp.repeat(jnp.repeat(x, factor, 1), factor, 2)
