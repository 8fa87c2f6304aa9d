"""Pictures that are kept aside: never trained on, to see whether D knows only those it was shown.

On which side a picture is follows from its pixels alone, as they are decoded: from their SHA-256,
a number in [0,1), which is compared with the share. So equal pictures are on one side wherever they
stand, what is added to a data set moves none of the others across, and a larger share keeps those
aside that a smaller one does, and more. Another size or another number of channels makes other
pixels, and other sides.
"""

from concurrent import futures
import functools
import hashlib
import json
import math
import os
import pathlib
from typing import TYPE_CHECKING

import numpy as np

from sg2jax import files, paths
from sg2jax.data.labels import Labels
from sg2jax.faults import DatasetError
from sg2jax.progress import Progress

if TYPE_CHECKING:  # it imports TFDS
  from sg2jax.data.dataset import Source

FORMAT = 1  # of the files in the cache
SIDES = '<f8'  # the numbers in them
CHUNK = 1024  # images that are handed to threads at once


class Part:
  """Some images of a Source, itself like one.

  Attributes, besides those of a Source:
    places: int64 [N], ascending: which images of the data set they are.
    held_out: of the part that is trained on, the other Part; else None.
  """

  def __init__(
    self, source: 'Source', places: np.ndarray, name: str, held_out: 'Part | None' = None
  ) -> None:
    self._source = source
    self.places = places
    self.name = name
    self.held_out = held_out
    self.place = source.place
    self.shape = source.shape
    self.stored = source.stored
    self.c_dim = source.c_dim
    self.resize_filter = source.resize_filter
    content = hashlib.sha256(f'{source.hash} {len(source)}'.encode())
    content.update(places.tobytes())
    self.hash = content.hexdigest()

  def __repr__(self) -> str:
    return f'Part({self.name}, {self.hash})'

  def __len__(self) -> int:
    return len(self.places)

  def __getitem__(self, i: int) -> dict[str, np.ndarray]:
    return self._source[int(self.places[i])]

  def label(self, i: int) -> np.ndarray:
    """The label of image i, float32 [c_dim], without decoding the image."""
    return self._source.label(int(self.places[i]))

  @functools.cached_property
  def labels(self) -> Labels | None:
    """As of a Source, of these images: of very many a subset stands for all."""
    whole = self._source.labels
    if whole is None:
      return None
    some = np.arange(len(self))
    if len(self) > self._source.READ_RECORDS:
      random = np.random.default_rng(0)
      some = np.sort(random.choice(len(self), self._source.READ_RECORDS, replace=False))
    labels = [self.label(i) for i in some.tolist()]
    if not whole.one_hot:
      return Labels.of_vectors(labels)
    counts = np.bincount(np.argmax(labels, axis=1), minlength=self.c_dim)
    return Labels.of_classes(whole.names, counts)


def split(source: 'Source', share: float) -> Part:
  """The part of a data set that is trained on; its `held_out` is the rest, about `share` of it.

  Reads every image once. What it found stays in the cache, so that a run that goes on, and its
  evaluation, begin at once.

  Raises: DatasetError if one of the two parts is empty; WriteError.
  """
  is_held_out = sides(source) < share
  count = int(is_held_out.sum())
  if not count or count == len(source):
    few = 'none' if not count else 'all'
    raise DatasetError(
      f'{source.place}: data.holdout={share} keeps {few} of its {len(source)} images aside; give '
      f'a {"larger" if not count else "smaller"} share, such as 0.1, or 0 to train on all'
    )
  held_out = Part(source, np.flatnonzero(is_held_out), f'{source.name} (held out)')
  return Part(source, np.flatnonzero(~is_held_out), source.name, held_out)


# ---- the side of each image


def side(image: np.ndarray) -> float:
  """The number in [0,1) of an image, uint8 [H,W,C], by its content alone."""
  digest = hashlib.sha256(f'{image.shape}'.encode())
  digest.update(np.ascontiguousarray(image))
  return (int.from_bytes(digest.digest()[:8]) >> 11) / 2**53


def sides(source: 'Source') -> np.ndarray:
  """`side` of all images, float64 [N]: out of the cache, or computed and left there."""
  about = json.dumps([FORMAT, source.hash, len(source), list(source.shape)])
  path = paths.cache() / 'holdout' / hashlib.sha256(about.encode()).hexdigest()[:32]
  found = _read(path)
  if found is None or len(found) != len(source):
    found = _compute(source)
    content = found.astype(SIDES).tobytes()
    files.write_atomic(path, hashlib.sha256(content).digest() + content)
  return found


def _read(path: pathlib.Path) -> np.ndarray | None:
  """What is there, if it is as it was written."""
  try:
    data = path.read_bytes()
  except OSError:
    return None
  digest, content = data[:32], data[32:]
  if hashlib.sha256(content).digest() != digest:
    return None
  return np.frombuffer(content, SIDES)


def _compute(source) -> np.ndarray:
  # As for minibatches: small images are read in less time than threads need.
  threads = 1 if math.prod(source.stored[:2]) < 128**2 else min(16, os.cpu_count() or 1)
  found = []

  def look(i):
    return side(source[i]['image'])

  with (
    futures.ThreadPoolExecutor(threads) as pool,
    Progress(len(source), 'data.holdout: reading the data set', 'images') as progress,
  ):
    for first in range(0, len(source), CHUNK):
      for number in pool.map(look, range(first, min(first + CHUNK, len(source)))):
        found.append(number)
        progress.update()
  return np.array(found)
