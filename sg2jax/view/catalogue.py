"""The directions that a run has saved, for a viewer."""

import functools

from sg2jax.addresses import Address
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
  for place, stamp in _files(root):
    if len(found) == MOST:
      break  # files beyond would be read for nothing, at every look
    inside = str(place).removeprefix(f'{root}/')
    if place.name.startswith('latents') or 'projections' in inside.split('/'):
      continue  # latents of images, which lie beside directions
    try:
      for one in _read(place, stamp):
        if misfit := one.misfit(net):
          notes.append(f'{inside}: {one.name} does not fit: {misfit}')
        elif len(found) < MOST:  # one file may hold more
          found[str(place), one.name] = one
    except Fault as e:
      notes.append(str(e))
  return found, notes


def _files(root):
  """[(place, what is another once the file is)] of .npz files below FOLDERS, newest first."""
  if isinstance(root, Address):
    # Stores name times in ways of their own. Folders are named by steps.
    files = [
      (root / folder / name, repr(details))
      for folder in FOLDERS
      for name, details in sorted((root / folder).objects().items(), reverse=True)
    ]
    return [(place, stamp) for place, stamp in files if place.suffix == '.npz']
  places = [(place, place.stat()) for name in FOLDERS for place in (root / name).rglob('*.npz')]
  places.sort(key=lambda item: (-item[1].st_mtime, item[0]))
  return [(place, f'{stat.st_mtime_ns} {stat.st_size}') for place, stat in places]


@functools.lru_cache(256)
def _read(place, _):
  """The directions in a file that has not changed since: a run is looked at every few seconds."""
  return tuple(direction.read_all(place))
