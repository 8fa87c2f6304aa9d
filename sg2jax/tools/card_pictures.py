"""The pictures of a card: samples by fixed seeds, curves, nearest neighbours."""

import pathlib
import tempfile

import numpy as np

from sg2jax.sampler import Sampler
from sg2jax.tools import card_facts, sheets
from sg2jax.tools.card_facts import Facts

COLUMNS = 8
ROWS = 4  # without classes
CLASSES = 10  # at most, each a row
PANELS = 6
TITLES = {'swd': 'SWD x 1000', 'r_t': 'r_t', 'augment_p': 'p of the augmentation'}


def make(net: Sampler, facts: Facts) -> dict[str, bytes]:
  """{name without .png: PNG}."""
  pictures = {'samples': samples(net, 1.0), 'samples_psi07': samples(net, 0.7)}
  if picture := curves(facts):
    pictures['curves'] = picture
  return pictures | {f'neighbours_{x.metric}': x.picture for x in facts.measured if x.picture}


def classes(net: Sampler) -> list[int]:
  """The classes that the samples show, each in a row; [] where labels are none, or vectors."""
  if not net.labels or not net.labels.one_hot:
    return []
  return net.labels.values.argmax(axis=1)[:CLASSES].tolist()


def samples(net: Sampler, psi: float) -> bytes:
  """Images of seeds 0 and up: one row for each class, or 32."""
  rows = classes(net)
  if rows:
    seeds = list(range(COLUMNS))
    made = np.stack([net(seeds, psi, label=label) for label in rows])
    counts = net.labels.class_counts()
    names = [name for name, count in counts.items() if count][:CLASSES]
    return _sheet(made, names, [f'seed {seed}' for seed in seeds])
  made = net(range(ROWS * COLUMNS), psi)
  made = made.reshape(ROWS, COLUMNS, *made.shape[1:])
  return _sheet(made, [f'seed {COLUMNS * row} ...' for row in range(ROWS)], [])


def _sheet(pictures, rows, cols):
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / 'sheet.png'
    sheets.write_sheet(path, pictures, rows, cols)
    return path.read_bytes()


def panels(facts: Facts) -> list[dict[str, str]]:
  """{name in metrics.jsonl: what it is called there} of each picture of the curves."""
  names = ['swd', *card_facts.measured(facts.lines), 'r_t', 'augment_p']
  found = [{'loss_g': 'G', 'loss_d': 'D'}] + [{name: ''} for name in dict.fromkeys(names)]
  found = [p for p in found if any(card_facts.series(facts.lines, name)[0] for name in p)]
  return found[:PANELS]


def curves(facts: Facts) -> bytes | None:
  """Losses and what was measured in training, by images; None without a log."""
  from sg2jax import charts  # here: it needs matplotlib, and export of a file does without

  shown = panels(facts)
  if not shown:
    return None
  rows = -(-len(shown) // 2)
  figure = charts.blank('', 'thousands of images', 2.6 * rows)
  grid = figure.subplots(rows, 2, squeeze=False)
  for axes in grid.flat[len(shown) :]:
    axes.remove()
  for axes, panel in zip(grid.flat, shown):
    first = next(iter(panel))
    axes.set_xlim(0, facts.lines[-1]['nimg'] / 1000 * 1.02)
    charts.plain(axes, 'y', 'loss' if len(panel) > 1 else TITLES.get(first, first))
    for colour, (name, label) in zip(charts.COLOURS, panel.items()):
      x, y = card_facts.series(facts.lines, name)
      axes.plot(x, y, color=colour, label=label, marker='o' if len(x) < 8 else '')
    if len(panel) > 1:
      axes.legend(frameon=False, fontsize=9)
  return charts.png(figure)
