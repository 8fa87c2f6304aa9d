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
from sg2jax.data import digits, records, wording
from sg2jax.data import labels as label_lib
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

  # Of data sets that don't store their labels, so many records are read at most, and so many bytes:
  # an image is read with its label.
  READ_RECORDS = 65_536
  READ_BYTES = 2**34

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
  def labels(self) -> label_lib.Labels | None:
    """Which labels there are, how many images have each, names; None without labels.

    As `prepare` stored it. Of other data sets, and of those that earlier versions prepared, labels
    are read: all, or of more than READ_RECORDS records or READ_BYTES a subset, the same each time,
    stands for them.
    """
    if not self.c_dim:
      return None
    stored = self._stored_labels()
    return self._read_labels() if stored is None else stored

  def _stored_labels(self) -> label_lib.Labels | None:
    try:
      stored = label_lib.Labels.from_json(pathlib.Path(self.place, label_lib.FILE).read_text())
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
      return None
    if (stored.c_dim, stored.one_hot) != (self.c_dim, self._one_hot):
      return None
    # Of vectors only some may be stored, so their counts say nothing.
    if self._one_hot and stored.counts.sum() != len(self):
      return None
    return stored

  def _read_labels(self) -> label_lib.Labels:
    # A mean of 16 records tells how many fit into READ_BYTES.
    probe = range(0, len(self), max(1, len(self) // 16))
    record_bytes = np.mean([len(self._record(i)) for i in probe])
    most = min(self.READ_RECORDS, max(1024, int(self.READ_BYTES / record_bytes)))
    some = range(len(self))
    if len(self) > most:
      some = np.sort(np.random.default_rng(0).choice(len(self), most, replace=False)).tolist()
    labels = [self.label(i) for i in some]
    if not self._one_hot:
      return label_lib.Labels.of_vectors(labels)
    counts = np.bincount(np.argmax(labels, axis=1), minlength=self.c_dim)
    return label_lib.Labels.of_classes(self._class_names, counts)


def _first_line(error: Exception) -> str:
  return (str(error) or repr(error)).splitlines()[0]


# ---- finding


def open_source(name: str, data_dir: str, resolution: tuple[int, int], labels: bool) -> Source:
  """Opens a data set; the arguments and what it raises are those of `pipeline.load`."""
  builder = _find(name, data_dir, resolution)
  try:
    return Source(builder, labels)
  except (OSError, RuntimeError, ValueError) as e:  # TFDS or array_record on damaged files
    raise DatasetError(f'{builder.data_path}: unreadable ({e}); delete it and make it again') from e


def _find(name: str, data_dir: str, resolution: tuple[int, int]) -> tfds.core.DatasetBuilder:
  """Never downloads and never runs a data set's own code."""
  if any('\ud800' <= char <= '\udfff' for char in f'{data_dir}{name}'):  # bytes that are no text
    raise DatasetError(
      f'data.dir={data_dir!r} data.name={name!r} is no UTF-8, which the libraries that read need; '
      'rename it'
    )
  prepare = f'to make one, {_PREPARE.format(*resolution)}'
  place = _folder(name, data_dir, resolution)
  if place is None and not name:
    siblings = _below(data_dir)
    remedy = (
      f'in it are {", ".join(siblings)}: set data.name={siblings[0]}' if siblings else prepare
    )
    raise DatasetError(f'no data set in data.dir={data_dir!r} and data.name is empty; {remedy}')
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
    return digits.prepare(data_dir or _default_data_dir(), *resolution)
  if name and data_dir and _is_dataset(os.path.join(data_dir, name)):
    return os.path.join(data_dir, name)
  return None


def _default_data_dir() -> str | os.PathLike:
  """TFDS's own, unless that begins with the ~ of a user without home folder."""
  own = tfds.core.constants.DATA_DIR
  if own.startswith('~') and not paths.home_cache():
    return paths.cache() / 'data'
  return own


def _is_dataset(place: str) -> bool:
  return bool(place) and os.path.exists(os.path.join(os.path.expanduser(place), records.INFO))


def _below(place: str) -> list[str]:
  """Names of the first few data sets in a folder."""
  try:
    names = sorted(os.listdir(os.path.expanduser(place)))[:1000] if place else []
  except OSError:
    return []
  found = [n for n in names if n[0] != '.' and _is_dataset(os.path.join(place, n))]
  return [wording.printable(n) for n in found[:5]]
