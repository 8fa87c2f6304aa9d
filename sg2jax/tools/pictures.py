"""Pictures that are to be projected: a file or a folder of them; what results are called."""

from collections import Counter
from collections.abc import Sequence
import hashlib
import pathlib
import sys
from typing import NamedTuple

import numpy as np

from sg2jax import sampler
from sg2jax.data import images, sources
from sg2jax.faults import DatasetError, UsageError

ENDINGS = ('.png', '_projected.png', '.npz', '.mp4')  # of the files of a result


class Item(NamedTuple):
  """A picture to be projected."""

  name: str  # of the files of its results
  source: str  # where it is from
  image: np.ndarray  # uint8 [H,W,C] of the network's size

  @property
  def hash(self) -> str:
    """SHA-256 of the image and its shape, hex digits."""
    return hashlib.sha256(f'{self.image.shape}'.encode() + self.image.tobytes()).hexdigest()


def read_items(
  path: str, net: sampler.Sampler, out: pathlib.Path, most: int | None = None, seed: int = 0
) -> list[Item]:
  """Items of a picture, or of those in a folder and its folders; says which files can't be used.

  Args:
    path: of the picture or folder.
    net: whose size they get.
    out: folder of results.
    most: so many at most are taken, drawn at random: folders are often sorted by what they show.
    seed: of that.

  Raises: DatasetError if there are none, UsageError if results would be among them.
  """
  path = pathlib.Path(path).expanduser().absolute()
  root = path.parent
  names = [path.name]
  unusable = {}
  if path.is_dir():
    root = path
    names, unusable, *_ = sources.listing(path)
  # Results among the pictures would be pictures of the next command.
  if out == root or path in out.parents:
    raise UsageError(f'--out={out} is among the pictures of {path}; use another folder')
  if most:
    names = np.random.RandomState(seed).permutation(names).tolist()
  options = images.Options(*net.generator.synthesis.resolution, net.config.data.channels)
  items = []
  for name in names:
    if len(items) == most:
      break
    try:
      image = images.convert((root / name).read_bytes(), options)
      items.append(Item(name.replace('/', '_'), str(root / name), image))
    except images.Unusable as e:
      unusable[name] = e.reason()
    except OSError as e:
      unusable[name] = e.strerror or e
  lines = [f'{name}: {reason}' for name, reason in unusable.items()]
  if not items:
    reasons = '; '.join(lines[:3]) or 'it is empty'
    raise DatasetError(
      f'{path} has no picture that can be projected: {reasons}; give PNG or JPEG files of '
      f'{options.width}x{options.height} or more'
    )
  for line in lines:
    print(f'left out: {line}', file=sys.stderr)
  items.sort(key=lambda item: item.source)
  names = result_names([item.name for item in items])
  return [item._replace(name=name) for item, name in zip(items, names)]


def result_names(file_names: list[str]) -> list[str]:
  """Names of the results of pictures: 'cat' of cat.jpg, or where there is cat.png, too, 'cat.jpg'.

  Where files of results would still be called the same, as of a/b.png and a_b.png, all but the
  first get a number.
  """
  stems = [name.rpartition('.')[0] or name for name in file_names]
  pictures = Counter(stems)
  names = []
  taken = set()
  for whole, stem in zip(file_names, stems):
    wanted = stem if pictures[stem] == 1 else whole
    name = wanted
    count = 1
    while not taken.isdisjoint(name + ending for ending in ENDINGS):
      count += 1
      name = f'{wanted}_{count}'
    taken.update(name + ending for ending in ENDINGS)
    names.append(name)
  return names


def unique(names: Sequence[str], taken: Sequence[str] = ()) -> list[str]:
  """The same names, but what is there before, or among `taken`, gets a number."""
  taken = set(taken)
  found = []
  for wanted in names:
    name, count = wanted, 1
    while name in taken:
      count += 1
      name = f'{wanted}_{count}'
    taken.add(name)
    found.append(name)
  return found


def names_of_seeds(seeds: Sequence[int]) -> list[str]:
  """A name for the image of each seed; of the second one of a seed (for another label) with 2."""
  return unique([f'seed{seed:04d}' for seed in seeds])
