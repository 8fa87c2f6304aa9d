"""Random access to TFDS data sets without TensorFlow: find one, read its images and labels."""

import functools
import hashlib
import io
import os
import pathlib

import numpy as np
from PIL import Image
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from sg2jax import paths
from sg2jax.data import digits, records, remote
from sg2jax.data.labels import FILE, Labels
from sg2jax.faults import DatasetError

MODES = {1: 'L', 2: 'LA', 3: 'RGB', 4: 'RGBA'}  # Pillow's, by channels
_PREPARE = (
  'own pictures: `python -m sg2jax.tools.prepare --source=FOLDER|ZIP --dest=DIR '
  '--resolution={0}x{1}`, then data.name= data.dir=DIR'
)


class Source:
  """Random access to the images of a data set; may be pickled and shared between threads.

  `len(source)` is the number of images; `source[i]` is dict(image=uint8 [H,W,C], label=float32
  [c_dim]), the label one-hot (classes) or as stored (vectors), empty without labels.

  Attributes:
    place: the folder.
    name: of the data set.
    shape: (H, W, C).
    stored: the shape that is decoded for a sample.
    c_dim: length of a label; 0 without labels.
    hash: hex digest of the content: equal for equal data sets wherever they lie.
    resize_filter: by which images were brought to this size; 'unknown' where that isn't stored.
  """

  held_out = None  # of a Part that is trained on, the other one; see holdout.py
  READ_RECORDS = 65_536  # at most, for labels that aren't stored: an image is read with its label

  def __init__(self, builder: tfds.core.DatasetBuilder, labels: bool) -> None:
    self.place = str(builder.data_path)
    self.name = builder.info.name
    self._records = records.open_records(builder)
    features = dict(builder.info.features.items())
    image = features.get('image')
    if not isinstance(image, tfds.features.Image) or not len(self._records):
      raise DatasetError(f"{self.place}: holds no images under the key 'image'")
    # ---- what a sample is
    self.c_dim = 0
    if labels:
      self._read_label_feature(features.get('label'))
    self.shape = tuple(image.shape)
    if None in self.shape:  # TFDS doesn't say; the first picture does
      self.shape = (None, None, self.shape[2] or 3)
      self.shape = self[0]['image'].shape
    self.stored = self.shape
    # ---- which data set it is
    metadata = builder.info.metadata or {}
    self.resize_filter = str(metadata.get('resize_filter', 'unknown'))
    self.hash = self._hash(metadata.get('content_sha256'))

  def _read_label_feature(self, feature: tfds.features.FeatureConnector | None):
    """Sets what a label is: `c_dim` numbers, one-hot of classes or a vector."""
    self._one_hot = isinstance(feature, tfds.features.ClassLabel)
    if self._one_hot and feature.num_classes:
      self._class_names = tuple(feature.names)
      self.c_dim = feature.num_classes
    elif isinstance(feature, tfds.features.Tensor) and len(feature.shape) == 1 and feature.shape[0]:
      self.c_dim = feature.shape[0]
    else:
      raise DatasetError(
        f"{self.place}: labels asked for, but the data set has no class 'label'; set data.labels="
        'False, or prepare it with --labels=folder or --labels=json'
      )

  def _hash(self, digest: str | None) -> str:
    """Our own sets carry a digest of every pixel; of others, 32 records stand for all."""
    count = len(self)
    content = hashlib.sha256(f'{self.shape} {count} {digest}'.encode())
    for i in sorted({round(k * (count - 1) / 31) for k in range(32)}):
      record = self._record(i)  # also shows now, not in an hour, that the files can be read
      if not digest:
        content.update(record)
    return content.hexdigest()

  def __repr__(self) -> str:
    return f'Source({self.name}, {self.hash})'

  # ---- samples

  def __len__(self) -> int:
    return len(self._records)

  @property
  def places(self) -> range:
    """Which images of the data set it has, as a Part: all."""
    return range(len(self))

  def _record(self, i: int) -> bytes:
    try:
      return self._records[i]
    except Exception as e:  # array_record raises RuntimeError, ValueError, IndexError, OSError
      raise DatasetError(
        f'{self.place}: record {i} is unreadable ({_first_line(e)}); make the data set again'
      ) from e

  def _features(self, i: int):
    # Parsed here: the general parser of TFDS takes twice the time of all the rest.
    return tf_example_pb2.Example.FromString(self._record(i)).features.feature

  def __getitem__(self, i: int) -> dict[str, np.ndarray]:
    features = self._features(i)
    mode = MODES[self.shape[2]]
    try:
      data = io.BytesIO(features['image'].bytes_list.value[0])
      with Image.open(data, formats=('PNG', 'JPEG')) as picture:
        image = np.asarray(picture if picture.mode == mode else picture.convert(mode))
    except (OSError, IndexError, SyntaxError) as e:
      raise DatasetError(f'{self.place}: image {i} is unreadable ({e})') from e
    image = image.reshape(*image.shape[:2], self.shape[2])  # [H,W,C]
    if image.shape != self.shape and self.shape[0] is not None:
      raise DatasetError(
        f'{self.place}: image {i} is {image.shape}, others are {self.shape}; bring the pictures to '
        'one size with python -m sg2jax.tools.prepare'
      )
    return {'image': image, 'label': self._label(i, features)}

  def label(self, i: int) -> np.ndarray:
    """The label of image i, float32 [c_dim], without decoding the image."""
    return self._label(i, self._features(i) if self.c_dim else None)

  def _label(self, i: int, features) -> np.ndarray:
    # Also a data set with labels gives none where none were asked for.
    label = np.zeros(self.c_dim, np.float32)
    if not self.c_dim:
      return label
    if not self._one_hot:
      label[:] = features['label'].float_list.value or features['label'].int64_list.value
      return label
    index = features['label'].int64_list.value[0]
    if not 0 <= index < self.c_dim:
      raise DatasetError(
        f'{self.place}: image {i} has class {index} of {self.c_dim}; set data.labels=False'
      )
    label[index] = 1
    return label

  # ---- what labels there are

  @functools.cached_property
  def labels(self) -> Labels | None:
    """Which labels there are, how many images have each, names; None without labels.

    As `prepare` stored it. Of other data sets, and of those that earlier versions prepared, labels
    are read: all, or of more than READ_RECORDS records a subset, the same each time, stands for
    them.
    """
    if not self.c_dim:
      return None
    stored = pathlib.Path(self.place, FILE)
    if stored.exists():
      return self._read_stored(stored)
    some = np.arange(len(self))
    if len(self) > self.READ_RECORDS:
      some = np.sort(np.random.default_rng(0).choice(len(self), self.READ_RECORDS, replace=False))
    labels = [self.label(i) for i in some.tolist()]
    if not self._one_hot:
      return Labels.of_vectors(labels)
    counts = np.bincount(np.argmax(labels, axis=1), minlength=self.c_dim)
    return Labels.of_classes(self._class_names, counts)

  def _read_stored(self, file: pathlib.Path) -> Labels:
    try:
      labels = Labels.from_json(file.read_text(encoding='utf-8'))
      if (labels.c_dim, labels.one_hot) != (self.c_dim, self._one_hot):
        raise ValueError(f'it says {labels.listing()}, unlike the records')
    except Exception as e:  # whatever a file that isn't as it was written leads to
      raise DatasetError(
        f'{file} does not hold the labels of this data set ({_first_line(e)}); make the data set '
        'again, or delete this file: then labels are read from the records'
      ) from e
    return labels


def _first_line(error: Exception) -> str:
  return (str(error) or repr(error)).splitlines()[0]


# ---- finding


def open_source(name: str, data_dir: str, resolution: tuple[int, int], labels: bool) -> Source:
  """Opens a data set; the arguments and what it raises are those of `pipeline.load`."""
  if paths.is_address(data_dir):
    data_dir = _downloaded(name, paths.place(data_dir, f'data.dir={data_dir}'))
    name = ''
  builder = _find(name, data_dir, resolution)
  try:
    return Source(builder, labels)
  except (OSError, RuntimeError, ValueError) as e:  # TFDS or array_record on damaged files
    raise DatasetError(f'{builder.data_path}: unreadable ({e}); delete it and make it again') from e


def _downloaded(name, place):
  """The folder that the data set at an address, or that of the name below it, was copied to."""
  try:
    is_above = name and not (place / records.INFO).exists()
  except OSError as e:
    raise DatasetError(f'data.dir={place} can not be read: {e.strerror or e}') from e
  return str(remote.local(place / name if is_above else place))


def _find(name: str, data_dir: str, resolution: tuple[int, int]) -> tfds.core.DatasetBuilder:
  """Never downloads and never runs a data set's own code."""
  place = _folder(name, data_dir, resolution)
  prepare = f'to make one, {_PREPARE.format(*resolution)}'
  if place is None and not name:
    raise DatasetError(f'no data set in data.dir={data_dir!r} and data.name is empty; {prepare}')
  try:
    if place is not None:
      return tfds.builder_from_directory(place)
    return tfds.core.read_only_builder.builder_from_files(name, data_dir=data_dir or None)
  except tfds.core.DatasetNotFoundError:
    raise DatasetError(
      f'data set {name!r} is not in {data_dir or tfds.core.constants.DATA_DIR}; {prepare}; a set '
      f'of the TFDS catalogue: {records.BUILD.format(name=name)}'
    ) from None
  except Exception as e:
    raise DatasetError(
      f'{place or name}: its dataset_info.json or features.json is unreadable '
      f'({_first_line(e)}); make it again'
    ) from e


def _folder(name: str, data_dir: str, resolution: tuple[int, int]) -> str | os.PathLike | None:
  """The folder of the data set; None: TFDS has to look for it."""
  # A folder that is a data set counts before a name of TFDS.
  if _is_dataset(data_dir):
    if name and pathlib.Path(name).name != pathlib.Path(data_dir).name:
      raise DatasetError(
        f'data.dir={data_dir} is itself a data set, so data.name={name!r} '
        'is not looked for in it; set data.name= (empty) to train on it'
      )
    return data_dir
  if _is_dataset(name):
    return name
  if name == 'digits':
    return digits.prepare(data_dir or paths.cache() / 'data', *resolution)
  below = os.path.join(data_dir, name)
  return below if name and _is_dataset(below) else None


def _is_dataset(place: str) -> bool:
  return bool(place) and os.path.exists(os.path.join(os.path.expanduser(place), records.INFO))
