"""Random access to TFDS data sets without TensorFlow, and the deterministic stream of batches.

The sample at stream position p is a function of (seed, p) alone, whatever the batch size, the
number of processes or the point of resumption: position p is in epoch p // len(source), each
epoch has its own permutation, and whether a sample is mirrored is drawn per position.
"""

from collections.abc import Iterator
import functools
import hashlib
import io
import os
import sys

from etils import epath
import grain
import numpy as np
from PIL import Image
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from sg2jax import faults, paths
from sg2jax.data import digits, images, sources
from sg2jax.data import labels as label_module

_MODES = {1: 'L', 2: 'LA', 3: 'RGB', 4: 'RGBA'}
_PREPARE = (
  'own pictures: `python -m sg2jax.tools.prepare --source=FOLDER|ZIP --dest=DIR '
  '--resolution={height}x{width}`, then data.name= data.dir=DIR'
)
_BUILD = (
  '`pip install tensorflow && tfds build {name} --file_format=array_record '
  '--data_dir=DIR`, then data.dir=DIR'
)


class Source:
  """Random access to the images of a data set; may be pickled and shared between threads.

  `len(source)` is the number of images; `source[i]` is dict(image=uint8 [H,W,C], label=float32
  [c_dim]), the label one-hot (classes) or as stored (vectors), empty without labels.

  Attributes:
    name: of the data set.
    shape: (H, W, C).
    stored: the shape that is decoded for a sample.
    c_dim: length of a label; 0 without labels.
    hash: hex digest of the content: equal for equal data sets wherever they lie.
    resize_filter: by which the images were brought to this size; 'unknown' if the data set doesn't
    say.
  """

  READ_RECORDS = 65_536  # of which labels are read at most
  READ_BYTES = 2**34  # and what these may hold; an image is read with its label

  def __init__(self, builder: tfds.core.DatasetBuilder, labels: bool):
    self.place = str(builder.data_path)
    self.name = builder.info.name
    self._records = _records(builder)
    features = dict(builder.info.features.items())
    image = features.get('image')
    if not isinstance(image, tfds.features.Image) or len(self._records) == 0:
      raise faults.DatasetError(f"{self.place}: holds no images under the key 'image'")
    self.c_dim = self._label_dim(features.get('label')) if labels else 0
    self.shape = tuple(image.shape)
    if None in self.shape:  # TFDS doesn't say; the first picture does
      self.shape = (None, None, self.shape[2] or 3)
      self.shape = self[0]['image'].shape
    metadata = builder.info.metadata or {}
    self.resize_filter = str(metadata.get('resize_filter', 'unknown'))
    self.hash = self._hash(metadata)

  @property
  def stored(self) -> tuple[int, int, int]:
    """See the class."""
    return self.shape

  @functools.cached_property
  def labels(self) -> label_module.Labels | None:
    """Which labels there are, how many images have each, names; None without labels.

    As `prepare` stored it. Of other data sets, and of those that earlier versions prepared, labels
    are read: all, or of more than READ_RECORDS records or READ_BYTES a subset, the same each time,
    stands for them.
    """
    if not self.c_dim:
      return None
    stored = self._stored_labels()
    if stored is not None:
      return stored
    size = np.mean([len(self._record(i)) for i in range(0, len(self), max(1, len(self) // 16))])
    most = min(self.READ_RECORDS, max(1024, int(self.READ_BYTES / size)))
    some = range(len(self))
    if len(self) > most:
      some = np.sort(np.random.default_rng(0).choice(len(self), most, replace=False)).tolist()
    read = [self.label(i) for i in some]
    if not self._one_hot:
      return label_module.Labels.of_vectors(read)
    counts = np.bincount([label.argmax() for label in read], minlength=self.c_dim)
    return label_module.Labels.of_classes(self._class_names, counts)

  def _stored_labels(self) -> label_module.Labels | None:
    place = epath.Path(self.place) / label_module.FILE
    try:
      stored = label_module.Labels.from_json(place.read_text())
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
      return None  # it can be told from the records
    if (
      (stored.c_dim, stored.one_hot) != (self.c_dim, self._one_hot)
      or self._one_hot
      and stored.counts.sum() != len(self)
    ):
      return None
    return stored

  def _label_dim(self, feature) -> int:
    """Number of classes, or length of the vector; sets how labels are read."""
    self._one_hot = isinstance(feature, tfds.features.ClassLabel)
    if self._one_hot and feature.num_classes:
      self._class_names = tuple(feature.names)
      return feature.num_classes
    if isinstance(feature, tfds.features.Tensor) and len(feature.shape) == 1 and feature.shape[0]:
      return feature.shape[0]
    raise faults.DatasetError(
      f"{self.place}: labels asked for, but the data set has no class 'label'; set data.labels="
      'False, or prepare it with --labels=folder or --labels=json'
    )

  def _hash(self, metadata: dict) -> str:
    """Our own sets carry a digest of every pixel; of others, 32 records stand for all."""
    count = len(self)
    content = hashlib.sha256(f'{self.shape} {count} '.encode())
    digest = metadata.get('content_sha256')
    content.update(str(digest).encode())
    for i in sorted({round(k * (count - 1) / 31) for k in range(32)}):
      record = self._record(i)  # also shows now, not in an hour, that the files can be read
      content.update(b'' if digest else record)
    return content.hexdigest()

  def __repr__(self) -> str:
    return f'Source({self.name}, {self.hash})'

  def __len__(self) -> int:
    return len(self._records)

  def _record(self, i: int) -> bytes:
    try:
      return self._records[i]
    except Exception as err:  # array_record raises RuntimeError, ValueError, IndexError, OSError
      raise faults.DatasetError(
        f'{self.place}: record {i} is unreadable ({str(err).split(chr(10))[0]}); '
        'delete the data set and make it again'
      ) from err

  def _features(self, i: int):
    # Parsed here: the general parser of TFDS takes twice the time of all the rest.
    return tf_example_pb2.Example.FromString(self._record(i)).features.feature

  def __getitem__(self, i: int) -> dict[str, np.ndarray]:
    features = self._features(i)
    try:
      with Image.open(
        io.BytesIO(features['image'].bytes_list.value[0]), formats=('PNG', 'JPEG')
      ) as picture:
        mode = _MODES[self.shape[2]]
        image = np.asarray(picture if picture.mode == mode else picture.convert(mode))
    except (OSError, IndexError, SyntaxError) as err:
      raise faults.DatasetError(f'{self.place}: image {i} is unreadable ({err})') from err
    image = image.reshape(*image.shape[:2], self.shape[2])  # [H,W,C]
    if self.shape[0] is not None and image.shape != self.shape:
      raise faults.DatasetError(
        f'{self.place}: image {i} is {_size(image.shape)}, others are {_size(self.shape)}; '
        'bring the pictures to one size with python -m sg2jax.tools.prepare'
      )
    return {'image': image, 'label': self._label(i, features)}

  def label(self, i: int) -> np.ndarray:
    """The label of image i, float32 [c_dim], without decoding the image."""
    return self._label(i, self._features(i) if self.c_dim else None)

  def _label(self, i: int, features) -> np.ndarray:
    label = np.zeros(self.c_dim, np.float32)
    if self.c_dim and self._one_hot:
      index = features['label'].int64_list.value[0]
      if not 0 <= index < self.c_dim:
        raise faults.DatasetError(
          f'{self.place}: image {i} has class {index} of {self.c_dim}; set '
          'data.labels=False or label it'
        )
      label[index] = 1
    elif self.c_dim:
      label[:] = features['label'].float_list.value or features['label'].int64_list.value
    return label


class Shrunk:
  """A Source at 1/factor of its size, by box means, for the early stages of a network that grows.

  Decoding a large picture for a few pixels of it would dwarf training, so what fits into MEMORY is
  kept.
  """

  MEMORY = 2**30  # bytes

  def __init__(self, source: Source, factor: int):
    height, width, channels = source.shape
    self._source, self._factor, self._kept = source, factor, {}
    self.shape, self.c_dim = (height // factor, width // factor, channels), source.c_dim
    # 600: Python's share
    self._keep = len(source) * (int(np.prod(self.shape)) + 600) <= self.MEMORY
    self.place, self.stored = source.place, source.shape

  @property
  def labels(self) -> label_module.Labels | None:
    """As of the Source."""
    return self._source.labels

  def __repr__(self) -> str:
    return f'Shrunk({self._source}, {self._factor})'

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, i: int) -> dict[str, np.ndarray]:
    sample = self._kept.get(i)
    if sample is None:
      sample = self._source[i]
      sample = {**sample, 'image': images.shrink(sample['image'], self._factor)}
      if self._keep:
        self._kept[i] = sample
    return sample


def load(
  name: str, data_dir: str, resolution: tuple[int, int], channels: int, labels: bool
) -> Source:
  """Opens a data set and checks that it is what the configuration says.

  Args:
    name: 'digits' (bundled, any resolution), a TFDS name, 'name/config:version', the folder of a
      data set, or '' if `data_dir` is that folder.
    data_dir: TFDS data directory, or the folder of a data set; '' for TFDS's default directory.
    resolution: (height, width) in pixels.
    channels: 1 grey, 3 RGB, 4 RGBA.
    labels: whether labels are wanted.

  Raises:
    DatasetError: missing, unreadable, in another record format, or unlike the arguments.
    WriteError: the bundled digits can't be written to `data_dir`.
  """
  builder = _builder(name, data_dir, resolution)
  try:
    source = Source(builder, labels)
  except (OSError, RuntimeError, ValueError) as err:  # TFDS or array_record on damaged files
    raise faults.DatasetError(
      f'{builder.data_path}: unreadable ({err}); delete it and make it again'
    ) from err
  if source.shape[:2] != tuple(resolution):
    raise faults.DatasetError(
      f'{source.place}: its images are {_size(source.shape)}, resolution says '
      f'{_size(resolution)}; set resolution=({source.shape[0]}, {source.shape[1]}) or prepare '
      f'it again with --resolution={_size(resolution)}'
    )
  if name == 'digits' and channels in _MODES:
    source.shape = (*source.shape[:2], channels)  # grey, in whatever mode is asked for
  if source.shape[2] != channels:
    raise faults.DatasetError(
      f'{source.place}: its images have {source.shape[2]} channels, the configuration says '
      f'{channels}; set data.channels={source.shape[2]}'
      + (f' or prepare it again with --channels={channels}' if channels in (1, 3, 4) else '')
    )
  return source


def _size(shape) -> str:
  return f'{shape[0]}x{shape[1]}'


def _is_dataset(place: str) -> bool:
  return bool(place) and (epath.Path(place).expanduser() / 'dataset_info.json').exists()


def _below(place: str, most: int = 5) -> list[str]:
  """Names of data sets in a folder."""
  try:
    names = sorted(os.listdir(os.path.expanduser(place)))[:1000] if place else []
  except OSError:
    return []
  return [sources.text(n) for n in names if n[0] != '.' and _is_dataset(os.path.join(place, n))][
    :most
  ]


def _builder(name: str, data_dir: str, resolution: tuple[int, int]) -> tfds.core.DatasetBuilder:
  """Finds the files; never downloads and never runs a data set's own code."""
  place = None
  if any('\ud800' <= char <= '\udfff' for char in f'{data_dir}{name}'):  # bytes that are no text
    raise faults.DatasetError(
      f'data.dir={data_dir!r} data.name={name!r} is no UTF-8, which the libraries that read need; '
      'rename it'
    )
  if _is_dataset(data_dir):
    if name and epath.Path(name).name != epath.Path(data_dir).name:
      raise faults.DatasetError(
        f'data.dir={data_dir} is itself a data set, so data.name={name!r} '
        'is not looked for in it; set data.name= (empty) to train on it'
      )
    place = data_dir
  elif _is_dataset(name):
    place = name
  elif name and name != 'digits' and data_dir and _is_dataset(os.path.join(data_dir, name)):
    place = os.path.join(data_dir, name)
  elif name == 'digits':
    own = tfds.core.constants.DATA_DIR  # starts with ~ where there is no home folder
    place = digits.prepare(
      data_dir
      or (paths.cache() / 'data' if own.startswith('~') and not paths.home_cache() else own),
      *resolution,
    )
  height, width = resolution
  remedy = f'to make one, {_PREPARE.format(height=height, width=width)}'
  if place is None and not name:
    there = _below(data_dir)
    remedy = f'in it are {", ".join(there)}: set data.name={there[0]}' if there else remedy
    raise faults.DatasetError(
      f'no data set in data.dir={data_dir!r} and data.name is empty; {remedy}'
    )
  try:
    if place is not None:
      return tfds.builder_from_directory(place)
    return tfds.core.read_only_builder.builder_from_files(name, data_dir=data_dir or None)
  except tfds.core.DatasetNotFoundError:
    where = data_dir or tfds.core.constants.DATA_DIR
    raise faults.DatasetError(
      f'data set {name!r} is not in {where}; {remedy}; a set of the TFDS catalogue: '
      f'{_BUILD.format(name=name)}'
    ) from None
  except Exception as err:
    raise faults.DatasetError(
      f'{place or name}: its dataset_info.json or features.json is unreadable '
      f'({(str(err) or repr(err)).splitlines()[0]}); make it again'
    ) from err


def _records(builder: tfds.core.DatasetBuilder):
  """The array_record files of split 'train', or of the only split, for random access."""
  info, place = builder.info, builder.data_path
  splits = list(info.splits)
  if 'train' not in splits and len(splits) != 1:
    raise faults.DatasetError(f"{place}: has no split 'train' (splits: {splits or 'none'})")
  split = 'train' if 'train' in splits else splits[0]
  formats = [info.file_format, *info.alternative_file_formats]
  if tfds.core.FileFormat.ARRAY_RECORD not in formats:
    raise faults.DatasetError(
      f'{place}: stored as {info.file_format.value}, which has no random access; rebuild it: '
      f'{_BUILD.format(name=info.name)}'
    )
  if info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
    builder = tfds.builder_from_directory(place, file_format='array_record')
  for path in builder.info.splits[split].filepaths:
    # etils' stat() wants to know the name of the owner
    if not path.exists() or not os.stat(path).st_size:
      raise faults.DatasetError(f'{path}: missing or empty; make the data set again')
  return builder.as_data_source(split=split).data_source


def _mirror(sample: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
  if rng.integers(2):
    return {**sample, 'image': sample['image'][:, ::-1]}
  return sample


def check_size(source: Source | Shrunk, batch: int):
  """Raises DatasetError if the data set has fewer images than a batch."""
  if len(source) < batch:
    raise faults.DatasetError(
      f'{source.place}: {len(source)} images, fewer than batch={batch}; '
      f'set batch (and grow.batch) to {len(source)} or less'
    )


def stream(source: Source | Shrunk, *, seed: int, mirror: bool) -> grain.MapDataset:
  """The endless stream of samples in the order of training, each by its position: `stream(...)[p]`
  as `source[i]`.
  """
  samples = grain.MapDataset.source(source).seed(seed % 2**32).shuffle().repeat()
  return samples.random_map(_mirror) if mirror else samples


def batches(
  source: Source | Shrunk,
  *,
  batch: int,
  microbatch: int,
  seed: int,
  mirror: bool,
  nimg: int,
  process_index: int = 0,
  process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
  """The endless stream of batches from position `nimg` on; reads and decodes ahead in threads.

  Args:
    source: what to read.
    batch: images per minibatch, of all processes; a multiple of `microbatch`.
    microbatch: images per accumulation round, of all processes; a multiple of `process_count`.
    seed: of the order and of the mirroring.
    mirror: whether half of the samples, drawn at random, are flipped left to right.
    nimg: stream position of the first sample; starting anywhere costs nothing.
    process_index: which slice of each round this process reads.
    process_count: how many slices there are.

  Returns:
    An iterator (with `close()`) of dict(image=uint8 [rounds,micro_local,H,W,C], label=float32
    [rounds,micro_local,c_dim]); rounds = batch / microbatch, micro_local = microbatch /
    process_count.

  Raises:
    DatasetError: fewer images than a batch.
  """
  check_size(source, batch)
  if batch % microbatch or microbatch % process_count:
    raise faults.UsageError(
      f'batch={batch} must be a multiple of microbatch={microbatch}, and '
      f'that of the number of processes, {process_count}'
    )
  rounds, micro_local = batch // microbatch, microbatch // process_count
  samples = stream(source, seed=seed, mirror=mirror)

  def read_round(r: int) -> dict[str, np.ndarray]:
    """This process's slice of accumulation round r, counted from `nimg`."""
    first = nimg + r * microbatch + process_index * micro_local
    return _stack([samples[first + k] for k in range(micro_local)])

  # A small picture decodes in less time than threads need to pass the GIL around (measured at 64
  # pixels: one thread 4,200 images/s, sixteen 3,600); a large one decodes outside the GIL.
  threads = 1 if source.stored[0] * source.stored[1] < 128**2 else min(16, os.cpu_count() or 1)
  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(2 * rounds, threads))
  endless = grain.MapDataset.range(sys.maxsize // microbatch - nimg).map(read_round)
  return iter(endless.to_iter_dataset(options).batch(rounds, batch_fn=_stack))


def _stack(samples: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
  return {k: np.stack([s[k] for s in samples]) for k in samples[0]}
