"""What people ask of a network - seeds, classes, label vectors - as checked numbers and arrays."""

from collections.abc import Iterable, Sequence

import numpy as np

from sg2jax.data.labels import Labels
from sg2jax.faults import UsageError

Seeds = int | Iterable[int]
LabelsLike = str | float | Sequence | np.ndarray  # of images, as people give them


def check_seeds(seeds: Seeds) -> list[int]:
  """Seeds, or one, as a list. Raises UsageError for none, or another than integers in [0, 2^32)."""
  seeds = list(seeds) if hasattr(seeds, '__iter__') else [seeds]
  if not seeds or not all(0 <= s < 2**32 and s == int(s) for s in seeds):
    raise UsageError(f'seeds={seeds} must be whole numbers in [0, 2^32), one for each image')
  return [int(s) for s in seeds]


def class_number(labels: Labels, given: str | float) -> int:
  """A class by name or number; text may be either.

  Raises: UsageError, naming the choices.
  """
  if isinstance(given, str):
    return labels.index(given)
  if isinstance(given, bool) or given not in range(labels.c_dim):
    raise UsageError(f'class {given}: there is no such class; choose from {labels.listing()}')
  return int(given)


def label_vectors(labels: Labels | None, given: LabelsLike, count: int) -> np.ndarray:
  """What people call labels -> float32 [count,c_dim].

  Args:
    labels: of the network; None: it has none.
    given: as `sampler.Sampler.c` takes it, but not None.
    count: images that want a label.

  Raises: UsageError, naming what was given and the choices.
  """
  shown = ' '.join(str(given).split())[:100]
  if not labels:
    raise UsageError(f'class {shown}: this network was trained without labels; leave the class out')
  try:
    array = np.asarray(given)
  except ValueError:  # rows of unlike lengths
    array = np.zeros(0)
  if labels.one_hot and _are_classes(array, labels.c_dim, count):
    if array.size not in (1, count):
      raise UsageError(
        f'classes {shown}: these are {array.size}; give one for all, or one for each of {count} '
        'seeds'
      )
    # One class stands for all seeds.
    numbers = [class_number(labels, x) for x in array.ravel().tolist()]
    return np.eye(labels.c_dim, dtype=np.float32)[np.resize(numbers, count)]
  if not labels.one_hot and (array.dtype.kind == 'U' or not array.ndim):
    raise UsageError(
      f'class {shown}: the labels of this network are no classes but {labels.listing()}; give a '
      f'vector, as in --label={labels.name(labels.values[0])}'
    )
  try:
    vectors = array.astype(np.float32)
  except (TypeError, ValueError):
    vectors = np.zeros(0)
  if vectors.shape not in [(labels.c_dim,), (1, labels.c_dim), (count, labels.c_dim)]:
    raise UsageError(
      f'labels of shape {list(np.shape(array))} ({shown}): they must be a class '
      f'({labels.listing()}), a list of classes, or vectors [{count},{labels.c_dim}]'
    )
  if not np.isfinite(vectors).all():
    raise UsageError(f'label {shown}: must be finite numbers')
  return np.broadcast_to(vectors, (count, labels.c_dim)).copy()


def _are_classes(array: np.ndarray, c_dim: int, count: int) -> bool:
  """Whether these are names or numbers of classes, and no components of vectors.

  [0,1,0] is both where there are three classes: classes for three seeds, a vector for any other
  number. Fractions are always a vector.
  """
  if array.ndim != 1:
    return not array.ndim
  if array.dtype.kind == 'U':
    return True
  return array.dtype.kind in 'iu' and (len(array) in (1, count) or len(array) != c_dim)
