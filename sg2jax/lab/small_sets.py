"""The data sets of `lab.small_data`: a few pictures to train on, and all the others."""

import hashlib
import os
import pathlib
import tempfile
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from sg2jax import files
from sg2jax.data import dataset, holdout, images, prepare, records
from sg2jax.faults import DatasetError

SIDE = 32  # px
SHARE = 0.5  # data.holdout of the runs
DRAW = 0  # seed of the choice


class Kind(NamedTuple):
  """A set of pictures."""

  train: int  # how many are trained on
  channels: int
  labels: bool  # then as many of each class


KINDS = {'digits': Kind(200, 1, True), 'emoji': Kind(300, 3, False)}


class Sets(NamedTuple):
  """Folders of data sets."""

  train: pathlib.Path  # what is trained on, and what data.holdout=SHARE keeps aside
  held_out: pathlib.Path  # everything that isn't trained on


def make(name: str, pictures: str, out: pathlib.Path) -> Sets:
  """The Sets of one of KINDS in a folder, made on first use.

  Args:
    name: of the kind.
    pictures: folder or zip of the emoji; the digits are bundled.
    out: the folder.

  Raises: DatasetError: too few pictures; WriteError.
  """
  sets = Sets(out / 'train', out / 'held_out')
  if all(map(pathlib.Path.exists, sets)):
    return sets
  kind = KINDS[name]
  if name == 'digits':
    source = dataset.open_source('digits', '', (SIDE, SIDE), kind.labels)
  else:
    prepare.build(pictures, str(out / 'all'), images.Options(SIDE, SIDE, kind.channels))
    source = dataset.open_source('', str(out / 'all'), (SIDE, SIDE), kind.labels)
  aside = holdout.sides(source) < SHARE
  chosen = choose(source, kind, np.flatnonzero(~aside))
  is_chosen = np.isin(np.arange(len(source)), chosen)
  for place, wanted in zip(sets, (is_chosen | aside, ~is_chosen)):
    if not place.exists():
      _write(source, wanted, place)
  return sets


def choose(source: Any, kind: Kind, places: np.ndarray) -> np.ndarray:
  """Places of the pictures that are trained on, out of some places: as many of each class."""
  random = np.random.RandomState(DRAW)
  groups = [places]
  if kind.labels:
    classes = np.array([source.label(i).argmax() for i in places.tolist()])
    groups = [places[classes == c] for c in range(source.c_dim)]
  each = kind.train // len(groups)
  if min(map(len, groups)) < each:
    raise DatasetError(
      f'{source.place}: {len(source)} pictures are too few to train on {kind.train} of a half'
    )
  return np.concatenate([random.permutation(group)[:each] for group in groups])


def _write(source, wanted, place):
  """Makes a data set of the pictures where `wanted` [N] is true."""
  label = tfds.features.ClassLabel(num_classes=source.c_dim) if source.c_dim else None
  content = hashlib.sha256(f'{source.hash} {np.flatnonzero(wanted).tolist()}'.encode())

  def examples():
    for i in np.flatnonzero(wanted).tolist():
      sample = source[i]
      number = int(sample['label'].argmax()) if source.c_dim else None
      yield records.example(records.png(sample['image']), number)

  with files.writing(place):
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix='.', dir=place.parent) as scratch:
      built = pathlib.Path(scratch, place.name)
      built.mkdir()
      count, size = records.write_file(built / 'part', examples())
      metadata = {'content_sha256': content.hexdigest(), 'resize_filter': source.resize_filter}
      (name,) = records.describe(
        built, 'images', [count], size, source.shape, label, metadata, description='Of a study.'
      )
      os.rename(built / 'part', built / name)
      os.rename(built, place)
