"""How figures look: matplotlib Figures of 1200 px, colours, a chart above strips of pictures."""

from collections.abc import Sequence
import io
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
import numpy as np

# Told apart by the colour-blind, too [Okabe and Ito 2008].
COLOURS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9')
INK = '#1c2026'
GREY = '#606770'
PALE = '#e2e5e9'


def png(figure: Figure) -> bytes:
  """A figure as a PNG file."""
  out = io.BytesIO()
  figure.savefig(out, format='png')
  return out.getvalue()


def blank(title: str, caption: str, height: float) -> Figure:
  """A Figure with nothing on it between title and caption, `height` inches for the rest."""
  figure = Figure((10, height + 0.9), dpi=120, layout='constrained')
  figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08, wspace=0.01, hspace=0.01)
  figure.suptitle(title, x=0.01, ha='left', size=15, color=INK)
  figure.supxlabel(caption, x=0.01, ha='left', size=9, color=GREY)
  return figure


def plain(axes: Axes, grid: str, title: str) -> Axes:
  """The axes, with a title, a line at the bottom and a light grid along 'x' or 'y'."""
  axes.set_title(title, loc='left', size=10, color=INK)
  axes.spines[['top', 'right', 'left']].set_visible(False)
  axes.tick_params(length=0, labelcolor=GREY, labelsize=9)
  axes.xaxis.label.set(color=GREY, size=9)
  axes.grid(axis=grid, color=PALE)
  axes.set_axisbelow(True)
  return axes


def sheet(
  title: str,
  caption: str,
  chart_title: str,
  headings: Sequence[str],
  pictures: Sequence[dict[str, np.ndarray]],
  names: Sequence[str],
  **options: Any,
) -> tuple[Figure, Axes]:
  """A chart, still empty, and below it a strip of pictures for each network.

  Args:
    title: above.
    caption: below.
    chart_title: of the chart, above it.
    headings: of the strips, in COLOURS.
    pictures: of each strip, {name: [h,w,...]}, all of one shape.
    names: of all pictures; each has its own place in every strip.
    **options: of `imshow`.
  """
  # At most 10 in a line; as many in each, so that none is nearly empty.
  lines = -(-len(names) // 10)
  columns = -(-len(names) // lines)
  ratios = []
  for strip in pictures:
    height, width = next(iter(strip.values())).shape[:2]
    ratios.append(height / width)
  # Inches: the chart, then for each network its heading and pictures as high as they are wide.
  heights = [3.6] + [0.35 + lines * (0.4 + 8.4 / columns * ratio) for ratio in ratios]
  figure = blank(title, caption, sum(heights))
  top, *strips = figure.subfigures(len(heights), 1, height_ratios=heights)
  for i, strip in enumerate(strips):
    strip.suptitle(headings[i], x=0.01, ha='left', size=10, weight='bold', color=COLOURS[i])
    for k, name in enumerate(names):
      axes = strip.add_subplot(lines, columns, k + 1, xticks=[], yticks=[], anchor='N')
      axes.spines[:].set_visible(False)
      if name in pictures[i]:
        axes.imshow(pictures[i][name], extent=(0, 1, 0, ratios[i]), **options)
        axes.set_xlabel(name, size=9, color=GREY)
  return figure, plain(top.add_subplot(), 'y', chart_title)
