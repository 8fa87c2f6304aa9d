"""The directions that a run has saved, for a viewer."""

import functools
import pathlib

from sg2jax.edit import direction
from sg2jax.edit.direction import Direction
from sg2jax.faults import Fault
from sg2jax.sampler import Sampler

FOLDERS = ('directions', 'edits')  # of a workdir: what `directions` and `edit` write
MOST = 64  # sliders; more can't be used, and take long to draw


def find(net: Sampler) -> tuple[dict[tuple[str, str], Direction], list[str]]:
  """The directions below a run's FOLDERS that fit a network, and why others can't be used.

  Returns: {(file, name): Direction}, newest files first, MOST at most; lines for people.
  """
  found = {}
  notes = []
  root = net.workdir
  if not isinstance(root, pathlib.Path):
    return found, [f'directions are not looked for in {root}: viewers read them from a disk']
  places = [(place, place.stat()) for name in FOLDERS for place in (root / name).rglob('*.npz')]
  for place, stat in sorted(places, key=lambda item: (-item[1].st_mtime, item[0])):
    if place.name.startswith('latents') or 'projections' in place.parts:
      continue  # latents of images, which lie beside directions
    try:
      for one in _read(place, stat.st_mtime_ns, stat.st_size):
        if misfit := one.misfit(net):
          notes.append(f'{place.relative_to(root)}: {one.name} does not fit: {misfit}')
        elif len(found) < MOST:
          found[str(place), one.name] = one
    except Fault as e:
      notes.append(str(e))
  return found, notes


@functools.lru_cache(256)
def _read(place, *_):
  """The directions in a file that has not changed since: a run is looked at every few seconds."""
  return tuple(direction.read_all(place))
