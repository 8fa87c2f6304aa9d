"""The labels of a finished data set: which there are, how many images have each, their names.

How `prepare` finds them is in label_rules. This is read by everything that uses a trained network,
so it imports NumPy alone.
"""

from collections.abc import Sequence
import json
from typing import NamedTuple, Self

import numpy as np

from sg2jax.data import wording
from sg2jax.faults import UsageError

FILE = 'labels.json'  # in a data set, and in the folder of a run beside config.json
MAX_C_DIM = 2**20  # of strangers' files
MAX_VECTORS = 1024  # distinct label vectors that are stored; of more, a subset stands for all


class Labels(NamedTuple):
  """What the labels of a data set are; labels are drawn from it as the data has them.

  Attributes:
    names: of the classes; () if nobody named them, or labels are vectors.
    one_hot: each image has exactly one class, and `values` are rows of the identity matrix.
    values: float32 [K,c_dim], the distinct labels that at least one image has.
    counts: int64 [K], images with each.
  """

  names: tuple[str, ...]
  one_hot: bool
  values: np.ndarray
  counts: np.ndarray

  @property
  def c_dim(self) -> int:
    """Components of a label."""
    return self.values.shape[1]

  @classmethod
  def of_classes(cls, names: Sequence[str], counts: Sequence[int] | np.ndarray) -> Self:
    """Labels that are classes: counts of images [c_dim]; names [c_dim], or () for numbers."""
    names = tuple(names)
    if names == tuple(map(str, range(len(names)))):
      names = ()  # TFDS makes such names up
    counts = np.asarray(counts, np.int64)
    present = np.flatnonzero(counts)
    return cls(names, True, _one_hot(present, len(counts)), counts[present])

  @classmethod
  def of_vectors(cls, vectors: Sequence | np.ndarray) -> Self:
    """Labels that are vectors: those of all images, [N,c_dim]."""
    vectors = np.asarray(vectors, np.float32)
    values, counts = np.unique(vectors, axis=0, return_counts=True)
    if len(values) > MAX_VECTORS:
      some = np.sort(np.random.default_rng(0).choice(len(values), MAX_VECTORS, replace=False))
      values = values[some]
      counts = counts[some]
    return cls((), False, values, counts.astype(np.int64))

  @classmethod
  def unknown(cls, c_dim: int) -> Self:
    """Where nothing is known of the data: c_dim classes, all as frequent."""
    return cls.of_classes((), np.ones(c_dim, np.int64))

  def draw(self, key: np.random.RandomState, count: int) -> np.ndarray:
    """`count` labels as frequent as in the data: float32 [count,c_dim]."""
    # Image number i has the label whose interval of cumulated counts it is in.
    ends = np.cumsum(self.counts)
    return self.values[np.searchsorted(ends, key.randint(ends[-1], size=count), 'right')]

  def index(self, text: str) -> int:
    """The class called `text`, or where no class is called so, the one of this number.

    Raises:
      UsageError: there is no such class.
    """
    text = str(text)
    if text in self.names:
      return self.names.index(text)
    if text.isascii() and text.isdigit() and int(text) < self.c_dim:
      return int(text)
    raise UsageError(f'class {text}: there is no such class; choose from {self.listing()}')

  def name(self, label: np.ndarray) -> str:
    """What a person calls a label [c_dim]: the name or number of its class, or its components."""
    if self.one_hot and np.count_nonzero(label) == 1 and label.max() == 1:
      index = int(label.argmax())
      return self.names[index] if self.names else str(index)
    return ','.join(f'{x:g}' for x in label)

  def class_counts(self) -> dict[str, int]:
    """{class: images}, with 0 for classes that no image has; {} for vectors."""
    if not self.one_hot:
      return {}
    counts = np.zeros(self.c_dim, np.int64)
    counts[self.values.argmax(axis=1)] = self.counts
    names = self.names or map(str, range(self.c_dim))
    return dict(zip(names, counts.tolist(), strict=True))

  def listing(self) -> str:
    """The first classes by name for messages, or what a label vector looks like."""
    if not self.one_hot:
      return f'vectors of {self.c_dim} components, such as {self.name(self.values[0])}'
    return wording.enumerate_names(self.names or map(str, range(self.c_dim)))

  def to_json(self) -> str:
    """As text of JSON; `from_json` reads it."""
    # The rows of an identity matrix are stored as their numbers: 100,000 classes would be 40 GB.
    values = self.values.argmax(axis=1) if self.one_hot else self.values
    fields = {
      'names': self.names,
      'one_hot': self.one_hot,
      'c_dim': self.c_dim,
      'values': values.tolist(),
      'counts': self.counts.tolist(),
    }
    return json.dumps(fields) + '\n'

  @classmethod
  def from_json(cls, text: str) -> Self:
    """What `to_json` wrote. Raises ValueError, KeyError or TypeError for anything else, and
    RecursionError for JSON that is too deep.
    """
    fields = json.loads(text)
    c_dim = fields['c_dim']
    counts = _whole_numbers(fields['counts'], 1, 2**63)
    if type(c_dim) is not int or c_dim > MAX_C_DIM:
      raise ValueError(f'c_dim is a whole number up to {MAX_C_DIM:,}')
    if fields['one_hot']:
      classes = _whole_numbers(fields['values'], 0, c_dim)
      is_double = len(np.unique(classes)) < len(classes)
      values = _one_hot(classes, c_dim)
    else:
      values = np.array(fields['values'], np.float32)
      is_double = len(np.unique(values, axis=0)) < len(values)
      if not np.isfinite(values).all():
        raise ValueError('labels are finite')
    if is_double:
      raise ValueError('each label is there once')
    if values.shape != (len(counts), c_dim):
      raise ValueError('as many counts as labels, of one length')
    if len(fields['names']) not in (0, c_dim):
      raise ValueError('as many names as classes')
    if not all(isinstance(name, str) for name in fields['names']):
      raise TypeError('names are texts')
    return cls(tuple(fields['names']), fields['one_hot'], values, counts)


def _whole_numbers(given, low, end):
  """int64 [K], K > 0, of JSON. Raises ValueError: they are none, or not in [low, end)."""
  found = np.array(given)
  if found.dtype.kind not in 'iu' or found.ndim != 1 or found.min() < low or found.max() >= end:
    raise ValueError(f'classes and counts are whole numbers, here from {low}')
  return found.astype(np.int64)


def _one_hot(classes: np.ndarray, c_dim: int) -> np.ndarray:
  values = np.zeros((len(classes), c_dim), np.float32)
  values[np.arange(len(classes)), classes] = 1
  return values
