"""The figures of sg2jax.tools.analyze: from titles of networks, and numbers and pictures of each,
to a matplotlib Figure.
"""

import io
import math

from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
import numpy as np

# of the networks [Okabe and Ito 2008]
COLOURS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9')
INK, GREY, PALE = '#1c2026', '#606770', '#e2e5e9'


def contribution(titles, numbers, _, caption):
  """A row per network: shares as bars, and, where training logged them, stacked over kimg as in [S2
  Fig. 8].
  """
  rows, columns = len(titles), 1 + any(len(n['logged']) > 1 for n in numbers)
  figure = blank(
    'What each resolution adds to the image',
    caption,
    rows * (1 + 0.3 * max(len(n['share']) for n in numbers)),
  )
  bars = None
  for i, (title, n) in enumerate(zip(titles, numbers)):
    at, colours = (
      range(len(n['share'])),
      colormaps['viridis'](np.linspace(0.05, 0.92, len(n['share']))),
    )
    bars = plain(figure.add_subplot(rows, columns, columns * i + 1, sharex=bars), 'x', title)
    bars.barh(at, n['share'].values(), 0.75, color=colours)
    bars.plot(n['share_torgb'].values(), at, '|', color=INK, markersize=20, markeredgewidth=2)
    bars.set_yticks(at, [f'{name[1:]} px   {share:.1%}' for name, share in n['share'].items()])
    bars.set_xlabel('share of the standard deviation (mark: as torgb returns it)')
    bars.xaxis.set_major_formatter('{x:.0%}')
    if len(n['logged']) > 1:
      areas = plain(figure.add_subplot(rows, columns, columns * i + 2), 'y', '')
      kimg, *shares = zip(*([row[key] for key in ('kimg', *n['share'])] for row in n['logged']))
      areas.stackplot(kimg, shares, colors=colours)
      areas.set(xmargin=0, ylim=(0, 1), xlabel='kimg of training')
      areas.yaxis.set_major_formatter('{x:.0%}')
  return figure


def droplets(titles, numbers, maps, caption):
  """Ratios of all layers and networks on a logarithmic axis; below, the map of the worst sample of
  each layer.
  """
  names = sorted(set().union(*maps), key=lambda name: (int(name[1:].split('.')[0]), name))
  top = max(3, math.ceil(math.log2(max(x.max() for found in maps for x in found.values()))))
  scale = {'norm': LogNorm(0.5, 2**top), 'cmap': 'magma'}
  figure, chart = sheet(
    "Droplets: how far the tallest pixel stands out of a layer's feature maps",
    caption,
    titles,
    [{name: tallest(x) for name, x in found.items()} for found in maps],
    names,
    **scale,
  )
  plain(
    chart,
    'y',
    'peak / median of the pixels (dot: median of the samples; end of line: 95th percentile)',
  )
  for i, layers in enumerate(n['peak_to_median'] for n in numbers):
    x = np.array([names.index(name) for name in layers]) + 0.08 * (i - (len(titles) - 1) / 2)
    median, p95 = ([v[key] for v in layers.values()] for key in ('median', 'p95'))
    chart.vlines(x, median, p95, COLOURS[i], linewidth=2.5)
    chart.semilogy(
      x, median, 'o-', base=2, color=COLOURS[i], linewidth=1, markersize=8, markeredgecolor='white'
    )
  chart.set_ylim(1, 2 ** math.ceil(math.log2(chart.get_ylim()[1])))
  chart.yaxis.set_major_formatter('{x:g}')
  chart.set_xticks(range(len(names)), [name.replace('.', '\n') for name in names])
  bar = chart.figure.colorbar(
    ScalarMappable(**scale),
    ax=chart,
    location='bottom',
    shrink=0.6,
    aspect=60,
    format='{x:g}',
    ticks=2.0 ** np.arange(-1, top + 1),
    label='norm / median in the maps below',
  )
  bar.minorticks_off()
  bar.outline.set_visible(False)
  return figure


def phase(titles, numbers, shown, caption):
  """Shares per octave and network; below, one path of each network in pictures."""
  headings = [
    f'{title};  preference mod 8: {n["grid_preference"]:.3f}, mod 7: '
    f'{n["grid_preference_control"]:.3f}'
    for title, n in zip(titles, numbers)
  ]
  pictures = []
  for x, folded in shown:
    x = np.clip((x[..., :3] if x.shape[-1] >= 3 else x[..., :1].repeat(3, -1)) / 2 + 0.5, 0, 1)
    pictures.append(
      {
        'first frame': x[0],
        'middle': x[len(x) // 2],
        'last': x[-1],
        'mean of all': x.mean(0),
        'column over time': x[:, :, x.shape[2] // 2].swapaxes(0, 1),
        'mod 8': folded,
      }
    )
  figure, chart = sheet(
    'Phase: how much of the detail stays on its pixels while w moves',
    caption,
    headings,
    pictures,
    list(pictures[0]),
    cmap='magma',
    vmin=0,
    vmax=2,
  )
  plain(
    chart,
    'y',
    'share of energy that stays on its pixels (line: standard error; dashes: among unrelated '
    'images)',
  )
  width = min(0.2, 0.8 / len(titles))
  for i, octaves in enumerate(n['octaves'] for n in numbers):
    x = np.arange(len(octaves)) + width * (i - (len(titles) - 1) / 2)
    fixed, error, unrelated = (
      [octave[key] for octave in octaves] for key in ('fixed', 'error', 'unrelated')
    )
    bars = chart.bar(x, fixed, 0.94 * width, yerr=error, color=COLOURS[i], ecolor=INK)
    chart.bar_label(bars, fmt='{:.2f}', padding=2, color=GREY, size=9)
    chart.hlines(unrelated, x - 0.47 * width, x + 0.47 * width, INK, 'dashed')
  periods = max(([octave['period_px'] for octave in n['octaves']] for n in numbers), key=len)
  chart.set_xticks(
    range(len(periods)), ['details of {} to {} px'.format(*period) for period in periods]
  )
  chart.set(yticks=[0, 0.25, 0.5, 0.75, 1], ylim=(None, 1.08))
  return figure


def png(figure):
  """Bytes of a PNG file."""
  out = io.BytesIO()
  figure.savefig(out, format='png')
  return out.getvalue()


def blank(title, caption, height):
  """A Figure with nothing on it, 1200 px wide; height: of the rest, inches."""
  figure = Figure((10, height + 0.9), dpi=120, layout='constrained')
  figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08, wspace=0.01, hspace=0.01)
  figure.suptitle(title, x=0.01, ha='left', size=15, color=INK)
  figure.supxlabel(caption, x=0.01, ha='left', size=9, color=GREY)
  return figure


def plain(axes, grid, title):
  """The axes, with a title, a line at the bottom and a light grid."""
  axes.set_title(title, loc='left', size=10, color=INK)
  axes.spines[['top', 'right', 'left']].set_visible(False)
  axes.tick_params(length=0, labelcolor=GREY, labelsize=9)
  axes.xaxis.label.set(color=GREY, size=9)
  axes.grid(axis=grid, color=PALE)
  axes.set_axisbelow(True)
  return axes


def sheet(title, caption, headings, pictures, names, **options):
  """(Figure, axes of a chart), below it a strip per network of its pictures {name: [h,w,...]},
  every name in its own place.
  """
  lines = -(-len(names) // 10)
  columns = -(-len(names) // lines)
  ratios = [x.shape[0] / x.shape[1] for x in (next(iter(found.values())) for found in pictures)]
  heights = [3.6] + [0.35 + lines * (0.4 + 8.4 / columns * ratio) for ratio in ratios]
  figure = blank(title, caption, sum(heights))
  top, *strips = figure.subfigures(len(heights), 1, height_ratios=heights)
  for strip, heading, colour, found, ratio in zip(strips, headings, COLOURS, pictures, ratios):
    strip.suptitle(heading, x=0.01, ha='left', size=10, weight='bold', color=colour)
    for k, name in enumerate(names):
      axes = strip.add_subplot(lines, columns, k + 1, xticks=[], yticks=[], anchor='N')
      axes.spines[:].set_visible(False)
      if name in found:
        axes.imshow(found[name], extent=(0, 1, 0, ratio), **options)
        axes.set_xlabel(name, size=9, color=GREY)
  return figure, top.add_subplot()


def tallest(x):
  """A map [h,w] at 128 px or less, of the tallest pixels."""
  k = 2 ** max(0, math.ceil(math.log2(max(x.shape) / 128)))
  return x.reshape(x.shape[0] // k, k, x.shape[1] // k, k).max((1, 3))
