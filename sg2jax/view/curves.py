"""What a run logged, as curves."""

import math

from sg2jax import paths
from sg2jax.faults import Fault
from sg2jax.training import report

POINTS = 1000  # of a curve, at most: more, no page shows
WITHOUT = ('step', 'nimg', 'time')
FIRST = ('fid', 'pixelfd', 'swd', 'loss_g', 'loss_d')  # what is shown unless told: those there are


def read(workdir: paths.Path) -> dict[str, list[tuple[float, float]]]:
  """{metric: [(kimg, value) ...]} of metrics.jsonl; {} without one that can be read."""
  found = {}
  try:
    rows = report.logged(workdir)
  except (OSError, ValueError, Fault):
    return found
  for row in rows:
    if not isinstance(row.get('nimg'), (int, float)):
      continue
    for name, value in row.items():
      if name not in WITHOUT and isinstance(value, (int, float)) and math.isfinite(value):
        found.setdefault(name, []).append((row['nimg'] / 1000, value))
  return {name: _thinned(points) for name, points in sorted(found.items())}


def _thinned(points):
  step = -(-len(points) // POINTS)
  # the last always: it is what people look for
  return points[-1::-step][::-1]


def first(names: list[str]) -> list[str]:
  """Those of the names that are shown unless told: one of each of FIRST."""
  found = [next((x for x in names if x.startswith(start)), '') for start in FIRST]
  return [name for name in found if name][:3]
