"""Tables and samples of the runs of `lab.minipaper`: mean, least and greatest over seeds."""

import contextlib
import json
import pathlib
import statistics
from typing import NamedTuple

from matplotlib.figure import Figure
import numpy as np
from PIL import Image

from sg2jax import charts
from sg2jax.files import write_atomic

LADDER = {  # cells of Table 1
  'a': 'A  StyleGAN',
  'b': 'B  + weight demodulation',
  'c': 'C  + lazy regularization',
  'd': 'D  + path length reg.',
  'e': 'E  no growing, G skip, D resnet',
  'f': 'F  + large networks',
  'msg': 'MSG-GAN, else as E',
}
ARCHITECTURES = ('orig', 'skip', 'resnet')
# Cells of Table 2, by the architectures of G and D; config E is one of them.
PAIRS = {(g, d): f'e:G{g}-D{d}' for g in ARCHITECTURES for d in ARCHITECTURES}
PAIRS['skip', 'resnet'] = 'e'
CELLS = list(dict.fromkeys([*LADDER, *PAIRS.values()]))
# (name in a result, title, format)
QUALITY = (('swd', 'SWD', '.1f'), ('ppl_w_end_pixel_mse', 'PPL_W of pixels', '.3g'))
NETWORKS = (('fid10k_full', 'FID', '.1f'), ('ppl2_4k_wend', 'PPL', '.1f'))  # where the weights are
COST = (
  ('img_per_sec', 'images/s', '.0f'),
  ('img_per_sec_full_size', 'at full size', '.0f'),
  ('train_seconds', 'seconds', '.0f'),
  ('parameters_g', 'parameters G', '.0f'),
  ('parameters_d', 'D', '.0f'),
)
NOTES = """\
SWD: sliced Wasserstein distance x 1000 to the real images, of the moving average of the weights.
It is not FID. PPL_W of pixels: path length in W at the end points, eps 1e-4, with the mean squared
difference of pixels for a distance: not LPIPS, so not a PPL as published. FID (fid10k_full) and PPL
(ppl2_4k_wend) are there if the weights of their networks were found (python -m
sg2jax.tools.fetch_weights). images/s: in training, without compilation and snapshots; growing cells
train faster while small. A run that met a non-finite number is counted as failed (exit 4).
"""


class Run(NamedTuple):
  """One cell with one seed."""

  cell: str
  seed: int
  workdir: pathlib.Path

  def __str__(self) -> str:
    return f'{self.cell}, seed {self.seed}'


def result(run: Run) -> dict | None:
  """What was measured of a finished run, or None."""
  with contextlib.suppress(OSError, ValueError):
    return json.loads((run.workdir / 'result.json').read_text())


def save(out: pathlib.Path, runs: list[Run], settings: dict, failed: dict[Run, int]) -> bool:
  """Writes table.md, table.json and samples.png of the runs with a result. False without any."""
  cells = {}
  for name in CELLS:
    asked = [run for run in runs if run.cell == name]
    if asked:
      cells[name] = {
        'runs': list(filter(None, map(result, asked))),
        'failed': {f'seed {run.seed}': f'exit {failed[run]}' for run in asked if run in failed},
        'asked': len(asked),
      }
  if not any(cell['runs'] for cell in cells.values()):
    return False
  document = {'settings': settings, 'cells': cells}
  write_atomic(out / 'table.json', json.dumps(document, indent=1) + '\n')
  write_atomic(out / 'table.md', tables(cells, settings))
  write_atomic(out / 'samples.png', samples(runs))
  return True


# ---- tables


def tables(cells: dict[str, dict], settings: dict) -> str:
  """Markdown of the ladder, then of the grid; only with the cells that were asked for."""
  measured = [run for cell in cells.values() for run in cell['runs']]
  data, devices = (
    ', '.join(sorted({str(run[key]) for run in measured})) for key in ('data', 'device')
  )
  fields = ''.join(f', {field}={value}' for field, value in settings['set'].items())
  text = [
    f'{data} at {settings["resolution"]} px, {settings["kimg"]:g} kimg a run{fields}; {devices}; '
    'mean [least, greatest] over seeds',
    '',
  ]
  # Those of networks only if all runs have them: else some cells couldn't be compared.
  quality = [*QUALITY, *(x for x in NETWORKS if all(x[0] in run for run in measured))]
  ladder = [['configuration', 'seeds', *(title for _, title, _ in [*quality, *COST])]]
  for name in LADDER:
    if name in cells:
      figures = [spread(cells[name]['runs'], *column) for column in [*quality, *COST]]
      ladder.append([LADDER[name], seeds(cells[name]), *figures])
  if len(ladder) > 1:
    text += ['Table 1', '', *markdown(ladder), '']
  if any(name.startswith('e:') for name in cells):
    grid = [['', *(f'D {d}' for d in ARCHITECTURES)]]
    for g in ARCHITECTURES:
      grid.append([f'G {g}'])
      for d in ARCHITECTURES:
        cell = cells.get(PAIRS[g, d])  # None: it wasn't asked for
        figures = [*(spread(cell['runs'], *x) for x in quality), seeds(cell)] if cell else []
        grid[-1].append('; '.join(figures))
    titles = '; '.join(title for _, title, _ in quality)
    text += [f'Table 2: {titles}; seeds', '', *markdown(grid), '']
  return '\n'.join([*text, NOTES])


def spread(runs: list[dict], name: str, title: str, spec: str) -> str:
  """'mean [least, greatest]' of a number over runs; 'mean' if they agree; '-' without any.

  name, title, spec: of a column, as in QUALITY.
  """
  values = [run[name] for run in runs]
  if not values:
    return '-'
  mean = format(statistics.fmean(values), spec)
  if min(values) == max(values):
    return mean
  return f'{mean} [{min(values):{spec}}, {max(values):{spec}}]'


def seeds(cell: dict) -> str:
  """How many runs there are, out of how many if some are missing, and why."""
  count = f'{len(cell["runs"])}'
  if len(cell['runs']) != cell['asked']:
    count += f' of {cell["asked"]}'
  return count + ''.join(f', {seed}: {why}' for seed, why in cell['failed'].items())


def markdown(rows: list[list[str]]) -> list[str]:
  """Lines of a table, the heading first; its columns line up in a terminal, too."""
  widths = [max(map(len, column)) for column in zip(*rows)]
  lines = []
  for row in rows:
    cells = [text.ljust(width) for text, width in zip(row, widths)]
    lines.append(f'| {" | ".join(cells)} |')
  lines.insert(1, '|' + '|'.join('-' * (width + 2) for width in widths) + '|')
  return lines


# ---- samples


def samples(runs: list[Run]) -> bytes:
  """PNG of real images, and the upper half of the last grid of each cell, of its first seed."""
  shown = {}
  for run in sorted(runs, key=lambda run: CELLS.index(run.cell)):
    if result(run) and run.cell not in shown:
      images = run.workdir / 'images'
      shown.setdefault('real images', images / 'reals.png')
      shown[run.cell] = max(images.glob('fakes_*.png'))
  rows = -(-len(shown) // 3)
  figure = Figure((12, 2.3 * rows), dpi=120, layout='constrained')
  for i, (name, path) in enumerate(shown.items()):
    grid = np.asarray(Image.open(path).convert('RGB'))
    axes = figure.add_subplot(rows, 3, i + 1)
    axes.imshow(grid[: len(grid) // 2])
    axes.set_title(LADDER.get(name, name), loc='left', size=10)
    axes.axis('off')
  return charts.png(figure)
