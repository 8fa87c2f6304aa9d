"""What people ask of a network - seeds, classes, label vectors - as checked numbers and arrays."""

from collections.abc import Iterable, Sequence

import numpy as np

from sg2jax.data.labels import Labels
from sg2jax.faults import UsageError

Seeds = int | Iterable[int]
LabelsLike = str | float | Sequence | np.ndarray  # of images, as people give them


def is_number(value: object, kinds: str = 'iuf') -> bool:
  """Whether this is one number, of Python, NumPy or JAX; kinds: of dtypes, 'iu' for whole ones."""
  return np.ndim(value) == 0 and np.asarray(value).dtype.kind in kinds


def check_seeds(seeds: Seeds) -> list[int]:
  """Seeds, or one, as a list. Raises UsageError for none, or another than integers in [0, 2^32)."""
  is_one = isinstance(seeds, str) or not hasattr(seeds, '__iter__')
  seeds = [seeds] if is_one else list(seeds)
  if not seeds or not all(is_number(s) and 0 <= s < 2**32 and s == int(s) for s in seeds):
    raise UsageError(f'seeds={seeds} must be whole numbers in [0, 2^32), one for each image')
  return [int(s) for s in seeds]


def label_vectors(labels: Labels | None, given: LabelsLike, count: int) -> np.ndarray:
  """What people call labels -> float32 [count,c_dim], which may be read-only.

  Args:
    labels: of the network; None: it has none.
    given: as `sampler.Sampler.c` takes it, but not None.
    count: images that want a label.

  Raises: UsageError, naming what was given and the choices.
  """
  shown = ' '.join(str(given).split())[:100]
  if not labels:
    raise UsageError(f'label {shown}: this network was trained without labels; leave it out')
  try:
    array = np.asarray(given)
    if labels.one_hot and _are_classes(array, labels.c_dim, count):
      vectors = _of_classes(labels, array.ravel().tolist())
    else:
      vectors = array.astype(np.float32)
  except (TypeError, ValueError):  # rows of unlike lengths, or what is no number
    vectors = np.zeros(0)
  shapes = [(labels.c_dim,), (1, labels.c_dim), (count, labels.c_dim)]
  if vectors.shape not in shapes or not np.isfinite(vectors).all():
    choices = f'classes, as 0 or [0, 1] ({labels.listing()}), or {labels.c_dim} finite numbers'
    if not labels.one_hot:
      choices = f'no classes but {labels.listing()}, as in --label={labels.name(labels.values[0])}'
    raise UsageError(
      f'label {shown}: labels of this network are {choices}; give one for all seeds, or {count}'
    )
  return np.broadcast_to(vectors, (count, labels.c_dim))


def _are_classes(array, c_dim, count):
  """Whether these are names or numbers of classes, and no components of vectors.

  [0,1,0] is both where there are three classes: classes for three seeds, a vector for any other
  number. Fractions are always a vector.
  """
  if array.ndim != 1:
    return not array.ndim
  if array.dtype.kind == 'U':
    return True
  return array.dtype.kind in 'iu' and (len(array) in (1, count) or len(array) != c_dim)


def _of_classes(labels, classes):
  """Classes by name or number -> float32 [N,c_dim]; text may be either."""
  vectors = np.zeros((len(classes), labels.c_dim), np.float32)
  for vector, given in zip(vectors, classes):
    if not isinstance(given, str) and given not in range(labels.c_dim):
      raise UsageError(f'class {given}: there is no such class; choose from {labels.listing()}')
    vector[labels.index(given) if isinstance(given, str) else int(given)] = 1
  return vectors
