"""The directions that a run has saved, for a viewer."""

from sg2jax.addresses import Address
from sg2jax.edit import direction
from sg2jax.edit.direction import Direction
from sg2jax.faults import CheckpointError, Fault
from sg2jax.sampler import Sampler

FOLDERS = ('directions', 'edits')  # of a workdir: what `directions` and `edit` write
MOST = 64  # sliders; more can't be used, and take long to draw
MOST_NOTES = 8  # lines on what can't be used


def find(
  net: Sampler, known: dict | None = None
) -> tuple[dict[tuple[str, str], Direction], list[str]]:
  """The directions below a run's FOLDERS that fit a network, and why others can't be used.

  Args:
    net: the network.
    known: what the look before has read, by file and time: a run is looked at every few seconds.
      Becomes that of this look. Files that weren't written again give the same objects.

  Returns: {(file, name): Direction}, newest files first, MOST at most; lines for people.
  """
  found = {}
  notes = []
  known = {} if known is None else known
  before = dict(known)
  known.clear()
  is_full = False
  root = net.workdir
  for place, stamp in _files(root):
    inside = str(place).removeprefix(f'{root}/')
    if place.name.startswith('latents') or 'projections' in inside.split('/'):
      continue  # latents of images, which lie beside directions
    if len(found) == MOST:
      is_full = True
      break  # files beyond would be read for nothing, at every look
    try:
      directions = before[place, stamp] if (place, stamp) in before else _read(place)
    except Fault as e:  # it can't be read now, on a disk that is away: the next look tries again
      notes.append(str(e))
      continue
    known[place, stamp] = directions
    if isinstance(directions, CheckpointError):
      notes.append(str(directions))
      continue
    for one in directions:
      if misfit := one.misfit(net):
        notes.append(f'{inside}: {one.name} does not fit: {misfit}')
      elif len(found) < MOST:  # one file may hold more
        found[str(place), one.name] = one
      else:
        is_full = True
  if len(notes) > MOST_NOTES:
    notes[MOST_NOTES:] = [f'{len(notes) - MOST_NOTES:,} more can not be used']
  if is_full:
    notes.append(f'Only {MOST} directions are shown, of the newest files')
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


def _read(place):
  """The directions in a file, or the error that its content is. Raises Fault: it can't be read."""
  try:
    return tuple(direction.read_all(place))
  except CheckpointError as e:
    return e
