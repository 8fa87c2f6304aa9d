"""The figure and the table of `lab.small_data`."""

from collections.abc import Sequence
import json
import pathlib

from matplotlib.figure import Figure
import numpy as np

from sg2jax import charts
from sg2jax.files import write_atomic
from sg2jax.lab import tables
from sg2jax.lab.tables import Run

# What runs log, of which there are curves.
LOGGED = (
  'r_t',
  'augment_p',
  'r_v',
  'logits_training',
  'logits_heldout',
  'logits_generated',
  'nearest',
)
# (title, curves of a panel, in the order of STYLES)
PANELS = (
  ('pixelfd, against held-out pictures', ('pixelfd',)),
  ('swd, against held-out pictures', ('swd',)),
  ('r_t, and p (dashed)', ('r_t', 'augment_p')),
  ("D's mean logits", ('logits_training', 'logits_heldout', 'logits_generated')),
  ('r_v', ('r_v',)),
  ('nearest', ('nearest',)),
)
STYLES = ('-', '--', ':')
TITLES = {'without': 'without augmentation', 'ada': 'ADA, bgc'}
CAPTION = (
  "Each line is a run. D's logits: of pictures trained on; dashed: held out; dots: fakes. r_v: 0 "
  'healthy, 1 learnt by heart.\nnearest: 1: new pictures, far below: copies'
)
DENSE = 20  # points of a curve
LAST = 10.0  # kimg at the end whose mean counts, of what runs log
# Columns of the table: (name of `summary`, title, format).
COLUMNS = (
  ('pixelfd_end', 'pixelfd at the end', '.3g'),
  ('pixelfd_best', 'its best', '.3g'),
  ('pixelfd_best_kimg', 'at kimg', '.0f'),
  ('swd_end', 'swd at the end', '.1f'),
  ('swd_best', 'its best', '.1f'),
  ('swd_best_kimg', 'at kimg', '.0f'),
  ('augment_p', 'p', '.2f'),
  ('r_t', 'r_t', '.2f'),
  ('r_v', 'r_v', '.2f'),
  ('nearest', 'nearest', '.2f'),
)


def save(out: pathlib.Path, runs: list[Run], settings: dict) -> None:
  """Writes figure.png, table.md and table.json of finished runs."""
  found = {}
  for run in runs:
    found.setdefault(run.cell, []).append(tables.result(run))
  title = f'{settings["set"]}, {settings["kimg"]:g} kimg'
  document = {
    'settings': settings,
    'summary': {name: [summary(curves) for curves in each] for name, each in found.items()},
    'curves': found,
  }
  write_atomic(out / 'table.json', json.dumps(document, indent=1) + '\n')
  write_atomic(out / 'table.md', f'{title}; mean [least, greatest] over seeds\n\n{table(found)}\n')
  write_atomic(out / 'figure.png', charts.png(figure(title, found)))


def summary(curves: dict) -> dict[str, float]:
  """Numbers of a run, by the names of COLUMNS, as far as it has their curves."""
  numbers = {}
  for name in ('pixelfd', 'swd'):
    kimg, value = np.array(curves[name]).T
    best = value.argmin()
    numbers[f'{name}_end'] = float(value[-1])
    numbers[f'{name}_best'] = float(value[best])
    numbers[f'{name}_best_kimg'] = float(kimg[best])
  for name in set(LOGGED) & curves.keys():
    kimg, value = np.array(curves[name]).T
    numbers[name] = float(value[kimg > kimg[-1] - LAST].mean())
  return numbers


def table(found: dict[str, Sequence[dict]]) -> str:
  """Markdown: a row of each variant, whose runs have curves."""
  numbers = {name: [summary(curves) for curves in each] for name, each in found.items()}
  rows = [['', 'seeds', *(title for _, title, _ in COLUMNS)]]
  for name, each in numbers.items():
    cells = []
    for column in COLUMNS:
      cells.append(tables.spread([x for x in each if column[0] in x], *column))
    rows.append([TITLES[name], f'{len(each)}', *cells])
  return '\n'.join(tables.markdown(rows))


def figure(title: str, found: dict[str, Sequence[dict]]) -> Figure:
  """A panel for each of PANELS; a line for each seed, in the colour of its variant."""
  sheet = charts.blank(f'A few {title}', CAPTION, 6.4)
  for i, (heading, names) in enumerate(PANELS):
    axes = charts.plain(sheet.add_subplot(2, 3, i + 1), 'y', heading)
    for colour, (variant, runs) in zip(charts.COLOURS, found.items()):
      for seed, curves in enumerate(runs):
        for style, name in zip(STYLES, names):
          if name in curves:
            label = TITLES[variant] if not seed and style == STYLES[0] else None
            kimg, value = np.array(curves[name]).T
            # what is measured at snapshots has few points
            marker = '.' if len(kimg) < DENSE else ''
            look = {'linestyle': style, 'marker': marker, 'color': colour, 'linewidth': 1.2}
            axes.plot(kimg, value, label=label, **look)
    axes.set_xlabel('kimg')
    if not i:
      axes.legend(frameon=False, fontsize=9)
  return sheet
