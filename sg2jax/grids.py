"""Many images as one picture."""

import math

import numpy as np

READABLE = 64  # px; images of smaller sides are enlarged
# px of a grid's longer side, unless one image is larger: more, no viewer shows and TensorBoard
# chokes on
GRID_SIDE = 4096


def grid_shape(height: int, width: int, most: int) -> tuple[int, int]:
  """(rows, columns) of the grid of images [height,width] that holds the most of them.

  It has no gaps, at most `most` images and GRID_SIDE on a side, small ones enlarged as in
  `readable_grid`.
  """
  factor = max(1, READABLE // min(height, width))

  def fit(side):
    return min(max(1, GRID_SIDE // (factor * side)), most)

  shapes = [(rows, min(fit(width), most // rows)) for rows in range(1, fit(height) + 1)]
  # Of those that hold as many, the one nearest to a square, wide rather than high.
  return max(shapes, key=lambda shape: (shape[0] * shape[1], -max(shape), shape[1]))


def image_grid(images: np.ndarray, cols: int | None = None) -> np.ndarray:
  """Lays out uint8 [N,H,W,C] row by row as one picture, uint8 [rows*H, cols*W, C].

  Without `cols`: the least number from square to 2:1 that leaves no gap, else square. Gaps are 0.
  """
  n, height, width, channels = images.shape
  if cols is None:
    square = math.isqrt(n - 1) + 1
    cols = next((c for c in range(square, n + 1) if n % c == 0 and c * c <= 2 * n), square)
  rows = -(-n // cols)
  grid = np.zeros((rows * cols, height, width, channels), np.uint8)
  grid[:n] = images
  grid = grid.reshape(rows, cols, height, width, channels)
  grid = grid.transpose(0, 2, 1, 3, 4)  # [rows,H,cols,W,C]
  return grid.reshape(rows * height, cols * width, channels)


def readable_grid(images: np.ndarray, cols: int | None = None, side: int = READABLE) -> np.ndarray:
  """`image_grid` as a person sees it: small images enlarged by a whole factor, 1, 3 or 4 channels.

  side: px; images of smaller sides are enlarged, by the largest factor that leaves them at most so.

  1 and 2 channels become grey, 4 stay RGBA, others become RGB of the first three.
  """
  factor = max(1, side // min(images.shape[1:3]))
  grid = image_grid(np.asarray(images), cols)
  grid = grid.repeat(factor, 0).repeat(factor, 1)
  return grid[..., : {1: 1, 2: 1, 4: 4}.get(grid.shape[2], 3)]
