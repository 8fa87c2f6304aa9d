"""The figures of `lab.analyze`: of several networks' Measured numbers, a matplotlib Figure.

All take titles of the networks, their Measured, and a caption.
"""

from collections.abc import Sequence
import math
from typing import Any

from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
import numpy as np

from sg2jax import charts
from sg2jax.charts import COLOURS, GREY, INK
from sg2jax.evaluation import artifacts


def contribution(titles: Sequence[str], measured: Sequence[Any], caption: str) -> Figure:
  """A row per network: shares as bars and, if logged, stacked over training [S2 Fig. 8]."""
  networks = [m.numbers for m in measured]
  rows = len(networks)
  columns = 1 + any(len(n['logged']) > 1 for n in networks)
  height = 1 + 0.3 * max(len(n['share']) for n in networks)
  figure = charts.blank('What each resolution adds to the image', caption, rows * height)
  bars = None
  for i, (title, n) in enumerate(zip(titles, networks)):
    places = range(len(n['share']))
    colours = colormaps['viridis'](np.linspace(0.05, 0.92, len(places)))
    bars = figure.add_subplot(rows, columns, columns * i + 1, sharex=bars)
    charts.plain(bars, 'x', title)
    bars.barh(places, n['share'].values(), 0.75, color=colours)
    bars.plot(n['share_torgb'].values(), places, '|', color=INK, markersize=20, markeredgewidth=2)
    bars.set_yticks(places, [f'{name[1:]} px   {share:.1%}' for name, share in n['share'].items()])
    bars.set_xlabel('share of the standard deviation (mark: as torgb returns it)')
    bars.xaxis.set_major_formatter('{x:.0%}')
    if len(n['logged']) > 1:
      areas = figure.add_subplot(rows, columns, columns * i + 2)
      charts.plain(areas, 'y', '')
      kimg = [row['kimg'] for row in n['logged']]
      shares = [[row[name] for row in n['logged']] for name in n['share']]
      areas.stackplot(kimg, shares, colors=colours)
      areas.set(xmargin=0, ylim=(0, 1), xlabel='kimg of training')
      areas.yaxis.set_major_formatter('{x:.0%}')
  return figure


def droplets(titles: Sequence[str], measured: Sequence[Any], caption: str) -> Figure:
  """Ratios of all layers and networks, logarithmic; below, each layer's map of its worst sample."""
  maps = [{name: np.log2(_tallest(x)) for name, x in m.pictures.items()} for m in measured]
  names = sorted(set().union(*maps), key=lambda name: (artifacts.resolution(name), name))
  top = max(3, *(x.max() for layers in maps for x in layers.values()))
  figure, chart = charts.sheet(
    "Droplets: how far the tallest pixel stands out of a layer's feature maps",
    caption,
    'peak / median of the pixels (dot: median of the samples; end of line: 95th percentile)',
    titles,
    maps,
    names,
    cmap='magma',
    vmin=-1,
    vmax=top,
  )
  for i, m in enumerate(measured):
    layers = m.numbers['peak_to_median']
    # Side by side, where several networks have the layer.
    x = np.array([names.index(name) for name in layers]) + 0.08 * (i - (len(titles) - 1) / 2)
    median, p95 = np.array([[layer['median'], layer['p95']] for layer in layers.values()]).T
    chart.errorbar(x, median, (0 * x, p95 - median), fmt='o-', color=COLOURS[i], elinewidth=3)
  chart.set_yscale('log', base=2)
  chart.set_ylim(1, 2 ** math.ceil(math.log2(chart.get_ylim()[1])))
  chart.yaxis.set_major_formatter('{x:g}')
  chart.set_xticks(range(len(names)), [name.replace('.', '\n') for name in names])
  scale = ScalarMappable(Normalize(-1, top), 'magma')
  label = 'log2(norm / median) in the maps below'
  chart.figure.colorbar(scale, ax=chart, location='bottom', aspect=60, label=label)
  return figure


def _tallest(x):
  """A map [h,w] at 128 px or less, of the tallest pixels: a mean would hide a spike."""
  k = 2 ** max(0, math.ceil(math.log2(max(x.shape) / 128)))
  return x.reshape(x.shape[0] // k, k, x.shape[1] // k, k).max((1, 3))


def phase(titles: Sequence[str], measured: Sequence[Any], caption: str) -> Figure:
  """Shares per octave and network; below, one path of each network in pictures."""
  headings = [
    f'{title};  preference mod 8: {m.numbers["grid_preference"]:.3f}, mod 7: '
    f'{m.numbers["grid_preference_control"]:.3f}'
    for title, m in zip(titles, measured)
  ]
  pictures = [_path_pictures(*m.pictures) for m in measured]
  figure, chart = charts.sheet(
    'Phase: how much of the detail stays on its pixels while w moves',
    caption,
    'share of energy that stays on its pixels (line: standard error; dashes: unrelated images)',
    headings,
    pictures,
    list(pictures[0]),
    cmap='magma',
    vmin=0,
    vmax=2,
  )
  width = min(0.2, 0.8 / len(titles))
  for i, m in enumerate(measured):
    octaves = m.numbers['octaves']
    x = np.arange(len(octaves)) + width * (i - (len(titles) - 1) / 2)
    fixed, error, unrelated = (
      [octave[key] for octave in octaves] for key in ('fixed', 'error', 'unrelated')
    )
    bars = chart.bar(x, fixed, 0.94 * width, yerr=error, color=COLOURS[i], ecolor=INK)
    chart.bar_label(bars, fmt='{:.2f}', padding=2, color=GREY, size=9)
    chart.hlines(unrelated, x - 0.47 * width, x + 0.47 * width, INK, 'dashed')
  octaves = max((m.numbers['octaves'] for m in measured), key=len)
  periods = ['details of {} to {} px'.format(*octave['period_px']) for octave in octaves]
  chart.set_xticks(range(len(periods)), periods)
  chart.set(yticks=[0, 0.25, 0.5, 0.75, 1], ylim=(None, 1.08))
  return figure


def _path_pictures(frames, folded):
  """{name: [h,w,3] in [0,1]} of a path's frames [F,h,w,C] in [-1,1], and the map modulo 8."""
  frames = frames[..., :3] if frames.shape[-1] >= 3 else frames[..., :1].repeat(3, -1)
  x = np.clip(frames / 2 + 0.5, 0, 1)
  return {
    'first frame': x[0],
    'middle': x[len(x) // 2],
    'last': x[-1],
    'mean of all': x.mean(0),
    'column over time': x[:, :, x.shape[2] // 2].swapaxes(0, 1),
    'mod 8': folded,
  }
