"""The labels of a data set: which there are, how many images have each, and what the classes are
called.
"""

import json
from typing import NamedTuple

import numpy as np

from sg2jax import faults

FILE = 'labels.json'  # in the folder of a run, beside config.json
MOST = 1024  # distinct label vectors that are kept; of more, a subset stands for all


class Labels(NamedTuple):
  """What the labels of a data set are; labels are drawn from it as the data has them.

  Attributes:
    names: names of the c_dim components: of the classes where `one_hot`; () if nobody named them.
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
  def of_classes(cls, names, counts) -> 'Labels':
    """Labels of classes from the images in each [c_dim]; names: [c_dim], or () for '0', '1', ..."""
    counts = np.asarray(counts, np.int64)
    some = np.flatnonzero(counts)
    return cls(_real_names(names), True, _one_hot(some, len(counts)), counts[some])

  @classmethod
  def of_vectors(cls, vectors, names=()) -> 'Labels':
    """Labels of vectors [N,c_dim], one for each image; of more than MOST distinct ones, MOST stand
    for all.
    """
    values, counts = np.unique(np.asarray(vectors, np.float32), axis=0, return_counts=True)
    if len(values) > MOST:
      some = np.sort(np.random.default_rng(0).choice(len(values), MOST, replace=False))
      values, counts = values[some], counts[some]
    return cls(tuple(names), False, values, counts.astype(np.int64))

  @classmethod
  def unknown(cls, c_dim: int) -> 'Labels':
    """Where nothing is known of the data: c_dim classes, all as frequent."""
    return cls.of_classes((), np.ones(c_dim, np.int64))

  def draw(self, key: np.random.RandomState, count: int) -> np.ndarray:
    """`count` labels as frequent as in the data: float32 [count,c_dim]."""
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
    raise faults.UsageError(f'class {text}: there is no such class; choose from {self.listing()}')

  def name(self, label: np.ndarray) -> str:
    """What a person calls a label [c_dim]: the class by name or number, or the components of a
    vector.
    """
    if self.one_hot and np.count_nonzero(label) == 1 and label.max() == 1:
      return self.names[int(label.argmax())] if self.names else str(int(label.argmax()))
    return ','.join(f'{x:g}' for x in label)

  def class_counts(self) -> dict[str, int]:
    """{class: images}, with 0 for classes that no image has; {} for vectors."""
    if not self.one_hot:
      return {}
    counts = np.zeros(self.c_dim, np.int64)
    counts[self.values.argmax(axis=1)] = self.counts
    return dict(zip(self.names or map(str, range(self.c_dim)), counts.tolist(), strict=True))

  def listing(self, most: int = 20) -> str:
    """The first classes by name for messages, or what a label vector looks like."""
    if not self.one_hot:
      return f'vectors of {self.c_dim} components, such as {self.name(self.values[0])}'
    names = list(self.class_counts())
    return ', '.join(names[:most]) + (f' ... ({len(names)} in all)' if len(names) > most else '')

  def to_json(self) -> str:
    """As text of JSON; `from_json` reads it."""
    return (
      json.dumps(
        {
          'names': self.names,
          'one_hot': self.one_hot,
          'c_dim': self.c_dim,
          'values': self.values.argmax(axis=1).tolist() if self.one_hot else self.values.tolist(),
          'counts': self.counts.tolist(),
        }
      )
      + '\n'
    )

  @classmethod
  def from_json(cls, text: str) -> 'Labels':
    """What `to_json` wrote. Raises ValueError, KeyError or TypeError for anything else."""
    read = json.loads(text)
    values = np.array(read['values'], np.float32)
    if read['one_hot']:
      values = _one_hot(np.array(read['values'], np.int64), read['c_dim'])
    if values.shape != (len(read['counts']), read['c_dim']):
      raise ValueError('as many counts as labels, of one length')
    return cls(tuple(read['names']), read['one_hot'], values, np.array(read['counts'], np.int64))


def _real_names(names) -> tuple[str, ...]:
  """Without those that only say the number, which some readers of data sets make up."""
  names = tuple(names)
  return () if names == tuple(map(str, range(len(names)))) else names


def _one_hot(classes: np.ndarray, c_dim: int) -> np.ndarray:
  values = np.zeros((len(classes), c_dim), np.float32)
  values[np.arange(len(classes)), classes] = 1
  return values
