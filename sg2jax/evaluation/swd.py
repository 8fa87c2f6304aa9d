"""Sliced Wasserstein distance on Laplacian pyramid patches: a quality figure that needs no network.

Written from Karras et al. 2018 (arXiv 1710.10196, section 5), after Rabin et al. 2011. The paper
fixes: 7x7 patches of each level of a Laplacian pyramid (Burt & Adelson 1983) down to the 16 px low
pass; 128 per image; both sets normalised with mean and standard deviation of each colour channel;
512 random directions. Its sets are 16,384 images; smaller ones raise the floor that two samples of
one distribution reach, about as 1 / sqrt(images). Decided here, where the paper leaves room:
  - Each set is normalised with its own statistics. So a constant offset or a changed contrast of a
    whole level costs nothing: the figure sees structure, not exposure.
  - Image i of either set is cut at the same places: equal sets are exactly 0 apart.
  - The 1-D distance is the area between the two cumulative distributions on a grid of 2^16 cells,
    which equals the mean difference of sorted projections to about 1e-4 of it, 10 times sooner.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

PATCH = 7
PATCHES_PER_IMAGE = 128
DIRECTIONS = 512
SMALLEST = 16  # px, shorter side of the lowest level
CELLS = 2**16
MIN_STD = 0.01  # grey levels; a channel below it has no structure and becomes zeros
CHUNK = 2**21  # numbers in a work array, about


def blur(x: np.ndarray, axis: int, gain: float = 1, step: int = 1, xp: Any = np) -> np.ndarray:
  """Filters float32 x [N,H,W,C] with [1,4,6,4,1]/16 * gain along `axis`, borders mirrored.

  step: from tap to tap, in pixels; xp: numpy, or jax.numpy for its arrays.
  """
  pad = [(2 * step, 2 * step) if a == axis else (0, 0) for a in range(4)]
  p = xp.pad(x, pad, mode='reflect')
  n = x.shape[axis]
  tap = [p[(slice(None),) * axis + (slice(k, k + n),)] for k in range(0, 5 * step, step)]
  return ((tap[0] + tap[4]) + 4 * (tap[1] + tap[3]) + 6 * tap[2]) * np.float32(gain / 16)


def _split(x):
  """float32 [N,H,W,C] -> its detail [N,H,W,C] and the next level [N,ceil(H/2),ceil(W/2),C]."""
  coarse = blur(blur(x, 1)[:, ::2], 2)[:, :, ::2]
  up = np.zeros_like(x)
  up[:, ::2, ::2] = coarse
  return x - blur(blur(up, 1, gain=2), 2, gain=2), coarse


def _descriptors(images, places, lowest):
  """Cuts normalised patches from one pyramid level and makes the next Gaussian level.

  Args:
    images: [N,H,W,C], uint8 or float32, 0..255: the Gaussian level.
    places: (rows, columns), each int [N,128]: upper left corners.
    lowest: whether this is the low-pass end of the pyramid (no difference is taken).

  Returns:
    float32 [N*128,C*49], mean 0 and deviation 1 per channel; float32 [N,ceil(H/2),ceil(W/2),C].
  """
  n, height, width, channels = images.shape
  out = np.empty((n, PATCHES_PER_IMAGE, channels, PATCH, PATCH), np.float32)
  coarse = np.empty((n, -(-height // 2), -(-width // 2), channels), np.float32)
  chunk = max(1, CHUNK // (channels * max(height * width, PATCHES_PER_IMAGE * PATCH**2)))
  for i in range(0, n, chunk):
    part = slice(i, i + chunk)
    x = images[part].astype(np.float32)
    if not lowest:
      x, coarse[part] = _split(x)
    views = np.lib.stride_tricks.sliding_window_view(x, (PATCH, PATCH), axis=(1, 2))
    out[part] = views[np.arange(len(x))[:, None], places[0][part], places[1][part]]
  for c in range(channels):
    plane = out[:, :, c]
    std = plane.std(dtype=np.float64)
    plane -= float(plane.mean(dtype=np.float64))
    plane *= float(1 / std if std > MIN_STD else 0)
  return out.reshape(n * PATCHES_PER_IMAGE, -1), coarse


def wasserstein(x: np.ndarray, y: np.ndarray) -> float:
  """Wasserstein-1 distance of two samples of one size: float32 [M], [M] -> float, their unit."""
  low = min(x.min(), y.min())
  cell = (max(x.max(), y.max()) - low) / (CELLS - 1)
  if not cell > 0:
    return 0.0
  x, y = (np.bincount(((v - low) / cell).astype(np.uint16), minlength=CELLS) for v in (x, y))
  return float(np.abs(np.cumsum(x - y)).sum() * cell / x.sum())


def _level(sets, key, lowest):
  """Distance x 1e3 of two sets [N,H,W,C] at one level, and the two sets at the next one."""
  n, height, width, channels = sets[0].shape
  places = [key.integers(0, s - PATCH + 1, (n, PATCHES_PER_IMAGE)) for s in (height, width)]
  (x, x_next), (y, y_next) = (_descriptors(s, places, lowest) for s in sets)
  directions = key.standard_normal((DIRECTIONS, PATCH**2 * channels), np.float32)
  directions /= np.linalg.norm(directions, axis=1, keepdims=True)
  total = 0
  for block in np.split(directions, DIRECTIONS // 32):  # bounds the memory
    total += sum(map(wasserstein, block @ x.T, block @ y.T))
  return 1e3 * total / DIRECTIONS, [x_next, y_next]


def swd(
  reals: np.ndarray, fakes: np.ndarray, seed: int = 0, tick: Callable = lambda: None
) -> dict[str, float]:
  """Sliced Wasserstein distance of two sets of images, level by level (Karras et al. 2018, 5).

  Args:
    reals: uint8 [N,H,W,C]; H and W at least 7, any C.
    fakes: uint8 [M,H,W,C]; if N != M, a random subset of the larger set is taken, because samples
      of unlike size have unlike floors.
    seed: int; places, directions and subset follow from it.
    tick: called before each level; what it raises ends the work.

  Returns:
    dict: '<H>x<W>' of each level -> distance x 1e3, >= 0, finest first, then 'mean' of the levels.
    Symmetric in its arguments; 0 for equal sets. Memory: about 75 kB x C per pair of images.
  """
  n = min(len(reals), len(fakes))
  key = np.random.default_rng(seed)
  subset = np.sort(key.permutation(max(len(reals), len(fakes)))[:n])
  sets = [s if len(s) == n else s[subset] for s in (reals, fakes)]
  result = {}
  lowest = False
  while not lowest:
    tick()
    height, width = sets[0].shape[1:3]
    lowest = min(height, width) < 2 * SMALLEST
    result[f'{height}x{width}'], sets = _level(sets, key, lowest)
  return {**result, 'mean': float(np.mean(list(result.values())))}
