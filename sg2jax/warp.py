"""Affine maps of images, resampled between two low-pass filters [ADA, arXiv 2006.06676, App. B.2].

Differentiable by the images any number of times.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sg2jax import resample

# A low-pass filter whose squares sum to 1, the symlet of 12 taps [Daubechies 1992, chapter 8].
SYM6 = np.array([
  0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633,
  0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252,
  -0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148
])  # fmt: skip
TAPS = SYM6 / SYM6.sum()
# Pixels around the result that its last filter reads, and around images that the first one does.
MARGIN = len(SYM6) // 4


class Geometry(NamedTuple):
  """Where each pixel of the result comes from: origin + x * x_axis + y * y_axis, [N,2] each (x, y).

  In pixels, from the middle of an image. It is the inverse of the paper's G, and grows from the
  right: each transform is done to the coordinates before those that are there.
  """

  x_axis: jax.Array
  y_axis: jax.Array
  origin: jax.Array

  def scale(self, x: jax.Array, y: jax.Array) -> 'Geometry':
    """Coordinates times x, y [N]."""
    return self._replace(x_axis=self.x_axis * x[:, None], y_axis=self.y_axis * y[:, None])

  def rotate(self, angle: jax.Array) -> 'Geometry':
    """Coordinates turned by an angle [N] in radians, from x to y."""
    cos = jnp.cos(angle)[:, None]
    sin = jnp.sin(angle)[:, None]
    return self._replace(
      x_axis=self.x_axis * cos + self.y_axis * sin, y_axis=self.y_axis * cos - self.x_axis * sin
    )

  def shift(self, x: jax.Array, y: jax.Array) -> 'Geometry':
    """Coordinates plus x, y [N] pixels."""
    moved = self.x_axis * x[:, None] + self.y_axis * y[:, None]
    return self._replace(origin=self.origin + moved)


def warp(images: jax.Array, geometry: Geometry, padding: Sequence[int] | None = None) -> jax.Array:
  """Images through affine maps, resampled between two low-pass filters [ADA App. B.2].

  They are enlarged twofold, read at the places of a grid twice as fine as the result, between
  pixels linearly, and reduced again. Beyond its edge an image goes on as its mirror image.

  Args:
    images: [N,H,W,C].
    geometry: from the result to the images.
    padding: (left, right, top, bottom) pixels for which it goes on, with 0 beyond, as in the
      reference code, where they depend on the batch; None: for ever.
  """
  _, height, width, _ = images.shape
  phases, (left, top) = _enlarge(images, padding)
  # ---- the places that are read, in pixels of what is twice as large
  x = (np.arange(2 * (width + 2 * MARGIN)) + 1) / 2 - MARGIN - width / 2
  y = (np.arange(2 * (height + 2 * MARGIN)) + 1) / 2 - MARGIN - height / 2

  def places(axis, half, before):
    along_x = geometry.x_axis[:, axis, None, None] * x[None, None]
    along_y = geometry.y_axis[:, axis, None, None] * y[None, :, None]
    return 2 * (along_x + along_y + geometry.origin[:, axis, None, None] + half + before) - 1

  read = _read_periodic if padding is None else _read_padded
  result = read(phases, places(0, width / 2, left), places(1, height / 2, top))
  crop = -2 * MARGIN
  return resample.downsample2d(result, TAPS, padding=crop, flip_filter=True)


def _enlarge(images, padding):
  """Images [N,H,W,C] at twice the size as phases, and the pixels (left, top) put before them.

  Phases as of resample.upsample_phases, [N,2,2,h,w,C]. With padding None one period of what goes on
  for ever: h = 2H-2, w = 2W-2.
  """
  _, height, width, _ = images.shape
  if padding is not None:
    left, right, top, bottom = padding
    padded = jnp.pad(images, ((0, 0), (top, bottom), (left, right), (0, 0)), mode='reflect')
    return resample.upsample_phases(padded, TAPS), (left, top)
  # The filter reads so many pixels beyond; what is made of them goes.
  halo = MARGIN
  around = [(halo, max(side - 2, 0) + halo) for side in (height, width)]
  padded = jnp.pad(images, ((0, 0), *around, (0, 0)), mode='reflect')
  return resample.upsample_phases(padded, TAPS)[:, :, :, halo:-halo, halo:-halo], (0, 0)


def _read_periodic(phases, x, y):
  """What an endless repetition of an enlarged image is at places x, y [N,P,Q]: [N,P,Q,C].

  phases: [N,2,2,h,w,C], see `_enlarge`. Places are in pixels of the enlarged image.
  """
  _, _, _, height, width, _ = phases.shape

  def neighbours(place, period):
    return [(i % period, weight) for i, weight in _between(place)]

  return _read(phases, neighbours(x, 2 * width), neighbours(y, 2 * height))


def _read_padded(phases, x, y):
  """The same with 0 around the enlarged image."""
  _, _, _, height, width, _ = phases.shape

  def neighbours(place, size):
    return [
      (jnp.clip(i, 0, size - 1), jnp.where((i >= 0) & (i < size), weight, 0))
      for i, weight in _between(place)
    ]

  return _read(phases, neighbours(x, 2 * width), neighbours(y, 2 * height))


def _between(place):
  """The two pixels that places lie between: ((index, weight), ...)."""
  first = jnp.floor(place)
  index = first.astype(jnp.int32)
  part = place - first
  return (index, 1 - part), (index + 1, part)


def _read(phases, columns, rows):
  """Sums of weighted pixels of `phases`; columns, rows: of ((index, weight), ...)."""
  n, _, _, height, width, channels = phases.shape
  pixels = phases.reshape(n, 4 * height * width, channels)
  total = 0
  for row, row_weight in rows:
    for column, column_weight in columns:
      phase = 2 * (row % 2) + column % 2
      index = ((phase * height + row // 2) * width + column // 2).reshape(n, -1)
      read = jax.vmap(lambda x, i: x.at[i].get(mode='promise_in_bounds'))(pixels, index)
      weight = row_weight * column_weight
      total = total + read.reshape(*row.shape, channels) * weight[..., None]
  return total
