"""Sheets: many images on one PNG file, with names around them."""

from collections.abc import Sequence
from functools import partial
import math
import pathlib

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sg2jax import files, grids, processes
from sg2jax.data.images import MAX_PIXELS
from sg2jax.edit.direction import Edit
from sg2jax.faults import UsageError
from sg2jax.inputs import LabelsLike
from sg2jax.sampler import Sampler

LINE = 18  # px, of text
MARGIN = 8  # px, around text


def check_size(net: Sampler, count: int) -> None:
  """Raises UsageError if `count` images of a network make a sheet that image viewers refuse."""
  h, w = net.generator.synthesis.resolution
  factor = max(1, grids.READABLE // min(h, w))
  if count * (factor * h + LINE) * factor * w > MAX_PIXELS:
    raise UsageError(
      f'a sheet of {count} images of {h}x{w} would have more than {MAX_PIXELS:,} pixels; ask for '
      'fewer'
    )


def render(
  net: Sampler,
  ws: np.ndarray,
  seeds: np.ndarray,
  noise: str = 'const',
  batch: int | None = None,
  edit: Edit | None = None,
) -> np.ndarray:
  """The pictures of a sheet: uint8 [R,C,H,W,C].

  ws: [R,C,num_ws,w_dim]; seeds: [R,C], of their noise; the others as of `Sampler.images`.
  """
  check_size(net, seeds.size)
  pictures = net.images(ws.reshape(-1, *ws.shape[2:]), noise, seeds.ravel(), batch, edit)
  return pictures.reshape(*seeds.shape, *pictures.shape[1:])


def seed_names(net: Sampler, seeds: Sequence[int], label: LabelsLike | None) -> list[str]:
  """What a sheet calls the images of seeds; label: as `Sampler.c` takes it."""
  if not net.labels:
    return [f'seed {seed}' for seed in seeds]
  return [f'seed {seed}\n{net.labels.name(c)}' for seed, c in zip(seeds, net.c(seeds, label))]


def write_sheet(
  path: pathlib.Path,
  pictures: np.ndarray,
  rows: Sequence[str] = (),
  cols: Sequence[str] = (),
  below: Sequence[str] = (),
) -> None:
  """Writes a PNG of pictures, with names around them.

  Args:
    path: of the file.
    pictures: uint8 [R,C,h,w,channels].
    rows: names of the rows, left of them; of one or more lines.
    cols: names of the columns, above them.
    below: names of the pictures, row by row, each below its own and cut to its width.

  Raises: WriteError.
  """
  tiles = grids.readable_grid(pictures.reshape(-1, *pictures.shape[2:]), pictures.shape[1])
  h = tiles.shape[0] // pictures.shape[0]
  w = tiles.shape[1] / pictures.shape[1]
  if below:
    # a blank line under each row of tiles
    tiles = tiles.reshape(-1, h, *tiles.shape[1:])  # [R,h,C*w,channels]
    tiles = np.pad(tiles, [(0, 0), (0, LINE), (0, 0), (0, 0)], constant_values=255)
    tiles = tiles.reshape(-1, *tiles.shape[2:])
    h += LINE
  font = ImageFont.load_default(14)
  lengths = [font.getlength(line) for name in rows for line in name.split('\n')]
  left = math.ceil(max(lengths)) + 2 * MARGIN if rows else 0
  top = max([MARGIN + LINE * (name.count('\n') + 1) for name in cols], default=0)

  # ---- the tiles on white
  sheet = np.full((top + tiles.shape[0], left + tiles.shape[1], tiles.shape[2]), 255, np.uint8)
  sheet[top:, left:] = tiles
  picture = Image.fromarray(sheet[..., 0] if sheet.shape[2] == 1 else sheet)
  # ---- names
  draw = ImageDraw.Draw(picture)
  black = (0, 0, 0, 255) if sheet.shape[2] == 4 else 0
  for i, name in enumerate(rows):
    draw.text((left - MARGIN, top + h * (i + 0.5)), name, black, font, 'rm')
  for j, name in enumerate(cols):
    draw.text((left + w * (j + 0.5), top / 2), name, black, font, 'mm', align='center')
  for i, name in enumerate(below):
    row, col = divmod(i, pictures.shape[1])
    if font.getlength(name) > w - 4:
      while name and font.getlength(name + '\u2026') > w - 4:
        name = name[:-1]
      name += '\u2026'
    draw.text((left + w * (col + 0.5), top + h * (row + 1) - LINE / 2), name, black, font, 'mm')
  png = files.png(np.asarray(picture).reshape(sheet.shape))
  processes.agreed(partial(files.write_atomic, path, png))
