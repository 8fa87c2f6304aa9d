"""Makes images of seeds, one by one or on sheets: mixed styles, several truncations.

python -m sg2jax.tools.generate [KIND] --checkpoint=RUN --seeds=0-31 [--out=DIR]
[--sheet=FILE.png] [--psi=0.7] ...

The same seed gives the same image, always; the weights are the moving average. KIND is
  images   (default) one image for each seed, DIR/seed0000.png ..., or all on one sheet, or both
  mix      a sheet that mixes styles: rows are --seeds, columns --cols; a picture is its row's with
           the --styles of its column; --out=DIR: or each by itself, DIR/seed0000_seed0004.png ...
  sweep    a sheet of --seeds (rows) at several --psi (columns): 1 is the network as it is, 0 its
           mean image, -1 the opposite
RUN is a workdir (its newest checkpoint) or one step of it. A psi between 0 and 1 trades variety for
quality; --cutoff=N applies it to the N coarsest layers only. --edit=FILE:NAME:STRENGTH moves every
image by a direction that `directions` found. images: --latents=FILE.npz makes those of the ws in a
file, such as `project` writes, instead of --seeds. docs/generate.md shows what comes out.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
import math
import pathlib
from typing import Any

from absl import flags
import numpy as np
from tqdm import tqdm

from sg2jax import cli, files, processes, sampler
from sg2jax.edit.direction import Edit
from sg2jax.faults import UsageError
from sg2jax.tools import flags as shared
from sg2jax.tools import sheets
from sg2jax.tools.pictures import names_of_seeds

KINDS = ('images', 'mix', 'sweep')
SWEEP = (1.0, 0.7, 0.5, 0.0, -0.5, -1.0)  # [S1 Fig. 8]


def define_flags() -> None:
  """The command line."""
  shared.define_processes()
  shared.define_image_flags()
  shared.define_psis('Truncation; default: 1, none. sweep: several; default: 1,0.7,0.5,0,-0.5,-1.')
  shared.define_batch()
  shared.define_edit()
  flags.DEFINE_string(
    'out', '', 'images, mix: folder for seed0000.png ...; files of these names are replaced.'
  )
  flags.DEFINE_string('sheet', '', 'PNG file for all images on one sheet.')
  what = 'images: an .npz of ws, or a folder of them, such as `project` writes, instead of --seeds.'
  flags.DEFINE_string('latents', '', what)
  shared.define_seeds('cols', '4-7', 'mix: seeds of the columns.')
  flags.DEFINE_string(
    'styles',
    '0-3',
    'mix: which ws come from the column: first and last, counted from the coarsest, 0.',
  )


def main(argv: list[str]) -> None:
  """Checks, makes, writes."""
  # ---- what is asked, before anything is loaded
  asked = flags.FLAGS
  kind = cli.choice(argv, 'KIND', KINDS, 'images')
  if kind != 'sweep' and not asked.out and not asked.sheet:
    raise UsageError(
      'name a folder for images, --out=DIR, or a file for one sheet, --sheet=FILE.png'
    )
  if kind == 'sweep' and asked.out:
    raise UsageError(f'--out={asked.out} is for images; {kind} writes one sheet: --sheet=FILE.png')
  if asked.latents:
    _check_latents(kind)
  psis = asked.psi or (SWEEP if kind == 'sweep' else [1.0])
  if kind != 'sweep' and len(psis) > 1:
    values = ','.join(f'{psi:g}' for psi in psis)
    raise UsageError(f'--psi={values}: {kind} takes one number, such as 0.7')
  out = cli.folder(asked.out, anywhere=True) if asked.out else None
  sheet = None
  if asked.sheet or kind == 'sweep':
    sheet = cli.file(asked.sheet, ['.png'], 'sheet', anywhere=True)

  # ---- what the network makes of it
  edit = [(move, strength) for move, strength, _ in processes.together(shared.edits)]
  net = processes.together(partial(sampler.load, asked.checkpoint))
  seeds = asked.seeds
  cols = asked.cols if kind == 'mix' else []
  label = shared.labels(net, len(seeds) + len(cols))
  batch = asked.batch or net.batch
  if asked.latents:
    of_latents(net, asked.latents, out, batch, asked.noise, edit)
  elif kind == 'images':
    images(net, seeds, label, out, sheet, batch, asked.noise, psis[0], asked.cutoff, edit)
  elif kind == 'mix':
    styles = shared.ws_range(net, 'styles')
    ws, noise_seeds = mix(net, seeds, cols, styles, label, psi=psis[0], cutoff=asked.cutoff)
    pictures = sheets.render(net, ws, noise_seeds, asked.noise, batch, edit)
    if out:
      write_mixed(out, seeds, cols, pictures[1:, 1:])
    if sheet:
      pictures[0, 0] = 255
      names = sheets.seed_names(net, [*seeds, *cols], label)
      sheets.write_sheet(sheet, pictures, ['', *names[: len(seeds)]], ['', *names[len(seeds) :]])
  else:
    ws, noise_seeds = sweep(net, seeds, psis, label, asked.cutoff)
    pictures = sheets.render(net, ws, noise_seeds, asked.noise, batch, edit)
    rows = sheets.seed_names(net, seeds, label)
    sheets.write_sheet(sheet, pictures, rows, [f'psi {psi:g}' for psi in psis])
  if processes.is_first():
    print(f'wrote {" and ".join(str(path) for path in (out, sheet) if path)}')


def _check_latents(kind):
  """Raises UsageError for what --latents have no use for."""
  asked = flags.FLAGS
  if kind != 'images' or asked.sheet:
    raise UsageError('--latents are for images, each in a file of its own: --out=DIR')
  for name in ('seeds', 'psi', 'cutoff', 'class', 'label'):
    if asked[name].present:
      raise UsageError(f'--{name} is for seeds; --latents are taken as they are')


def of_latents(
  net: sampler.Sampler, path: str, out: pathlib.Path, batch: int, noise: str, edit: Edit
) -> None:
  """Images of the ws in a file, or in a folder of them, into the folder `out`."""
  from sg2jax.tools import latents  # here, because it brings all that projects

  def read():
    # Each process by itself, as arrays aren't agreed on: they see the same files.
    return latents.of_files(net, pathlib.Path(path).expanduser())

  given = processes.together(read)
  made = given.images(net, noise, batch, edit)

  def write():
    for name, image in zip(given.names, made):
      files.write_atomic(out / f'{name}.png', files.png(image))

  processes.agreed(write)


def images(
  net: sampler.Sampler,
  seeds: list[int],
  label: np.ndarray | None,
  out: pathlib.Path | None,
  sheet: pathlib.Path | None,
  batch: int,
  noise: str,
  psi: float,
  cutoff: int | None,
  edit: Edit,
) -> None:
  """An image of each seed into the folder `out`, a sheet of all to the file `sheet`; None: not.

  It takes the memory of a few batches, but for the sheet. label: [N,c_dim], or None: drawn from
  each seed; the others as of a call of `net`.
  """
  if sheet:
    sheets.check_size(net, len(seeds))
  batch = min(batch, len(seeds))
  names = [f'{name}.png' for name in names_of_seeds(seeds)]
  pictures = []  # for the sheet
  writing = ()

  def write(name, image):
    files.write_atomic(out / name, files.png(image))

  # Threads deflate and write a batch while the device makes the next.
  with ThreadPoolExecutor() as pool, tqdm(total=len(seeds), unit=' images', disable=None) as bar:
    for rows, count in sampler.parts(len(seeds), batch):
      part = [seeds[i] for i in rows]
      each = None if label is None else label[rows]
      made = net(part, psi, cutoff, each, noise, batch, edit)[:count]
      # Waits for the files of the batch before, and raises what went wrong.
      processes.agreed(partial(list, writing))
      if out and processes.is_first():
        writing = pool.map(write, [names[i] for i in rows[:count]], made)
      if sheet:
        pictures += list(made)
      bar.update(count)
    processes.agreed(partial(list, writing))
  if sheet:
    # about square, but 8 in a row at least: a few images are read as a line
    cols = min(len(seeds), max(8, math.isqrt(len(seeds) - 1) + 1))
    pictures += [np.full_like(pictures[0], 255)] * (-len(pictures) % cols)
    pictures = np.stack(pictures).reshape(-1, cols, *pictures[0].shape)
    rows = [f'seed {seed} ...' for seed in seeds[::cols]]
    below = [net.labels.name(c) for c in net.c(seeds, label)] if net.labels else []
    sheets.write_sheet(sheet, pictures, rows, below=below)


def write_mixed(out: pathlib.Path, rows: list[int], cols: list[int], pictures: np.ndarray) -> None:
  """Writes each mixed picture, uint8 [R,C,H,W,C], into a folder, called by its two seeds."""

  def write():
    for name, row in zip(names_of_seeds(rows), pictures):
      for other, image in zip(names_of_seeds(cols), row):
        files.write_atomic(out / f'{name}_{other}.png', files.png(image))

  processes.agreed(write)


# ---- sheets: ws [R,C,num_ws,w_dim], and the seed of the noise of each picture [R,C]


def mix(
  net: sampler.Sampler, rows: list[int], cols: list[int], styles: slice, label: Any, **options: Any
) -> tuple[np.ndarray, np.ndarray]:
  """Style mixing [S1 Fig. 3]: 1+rows, 1+cols; the corner isn't to be shown.

  Seeds of rows are on the left, of columns on top, mixed ones between. The slice `styles` of the ws
  comes from the column; the others are the row's, as is its noise. label: as of `net.ws`, each of a
  row and then of a column; options: of `net.ws`.
  """
  # all at once: psi and cutoff go for both
  row_ws, col_ws = np.split(net.ws([*rows, *cols], label=label, **options), [len(rows)])
  # The corner is made of the first column.
  top = np.concatenate([col_ws[:1], col_ws])
  ws = np.stack([top, *np.repeat(row_ws[:, None], len(top), 1)])
  ws[1:, 1:, styles] = col_ws[:, styles]
  number = np.repeat([[cols[0]], *([row] for row in rows)], len(top), 1)
  number[0, 1:] = cols
  return ws, number


def sweep(
  net: sampler.Sampler, seeds: list[int], psis: Sequence[float], label: Any, cutoff: int | None
) -> tuple[np.ndarray, np.ndarray]:
  """Seeds (rows) at several psi (columns) [S1 Fig. 8]. label, cutoff: as of `net.ws`."""
  w = net.map(net.z(seeds), net.c(seeds, label))
  ws = np.stack([net.truncate(w, psi, cutoff) for psi in psis], 1)
  return ws, np.repeat(np.asarray(seeds)[:, None], len(psis), 1)


if __name__ == '__main__':
  define_flags()
  cli.run(main, positional=1)
