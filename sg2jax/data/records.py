"""How a data set lies on disk: a TFDS folder whose records random access is possible to.

Files of array_record hold TFDS examples: `image`, a PNG, and `label`, a class or a vector. Beside
them are TFDS's dataset_info.json and features.json, and `labels.FILE`.
"""

from collections.abc import Iterable, Sequence
import contextlib
import pathlib
import re
import struct
import zlib

from array_record.python.array_record_module import ArrayRecordWriter
import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from sg2jax.faults import DatasetError

INFO = 'dataset_info.json'  # a folder with it is a data set
# What a data set may consist of, in this version or an earlier one.
FILES = re.compile(
  r'images-train\.array_record-\d+-of-\d+|(dataset_info|features|metadata|labels|report)\.json'
  r'|label\.labels\.txt'
)
BUILD = (
  '`pip install tensorflow && tfds build {name} --file_format=array_record '
  '--data_dir=DIR`, then data.dir=DIR'
)


def png(image: np.ndarray) -> bytes:
  """uint8 [H,W,C], C of 1, 3 or 4 -> a PNG file [PNG, W3C, sections 5 and 9] that is read fast.

  Not deflated: the record file compresses. Every row is the difference to the one above (filter
  Up): Pillow chooses filters by row, mostly Paeth, which it undoes at 140 MB/s. Per image of 256
  and 1024 pixels it decodes 1.33 and 22.4 ms of its own, 0.27 and 3.7 ms of these, which take 5 %
  and 2 % more on disk, and encodes them in a fifteenth of the time.
  """
  height, width, channels = image.shape
  rows = image.reshape(height, width * channels)
  filtered = np.empty((height, 1 + rows.shape[1]), np.uint8)
  filtered[:, 0] = 2  # the filter of the row
  filtered[0, 1:] = rows[0]
  np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])  # modulo 256
  colour = {1: 0, 3: 2, 4: 6}[channels]
  header = struct.pack('>IIBBBBB', width, height, 8, colour, 0, 0, 0)
  data = zlib.compress(filtered, 0)
  chunks = (_chunk(b'IHDR', header), _chunk(b'IDAT', data), _chunk(b'IEND', b''))
  return b'\x89PNG\r\n\x1a\n' + b''.join(chunks)


def _chunk(kind, content):
  check = zlib.crc32(content, zlib.crc32(kind))
  return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', check)


def example(png: bytes, label: int | Sequence[float] | None) -> bytes:
  """A record: an image with its class, a vector, or no label."""
  record = tf_example_pb2.Example()
  feature = record.features.feature
  feature['image'].bytes_list.value.append(png)
  if isinstance(label, int):
    feature['label'].int64_list.value.append(label)
  elif label is not None:
    feature['label'].float_list.value.extend(label)
  return record.SerializeToString(deterministic=True)


def write_file(path: pathlib.Path, examples: Iterable[bytes]) -> tuple[int, int]:
  """Writes serialized examples as a file of array_record: (how many, bytes of all).

  Closes it also where an error comes. Raises OSError or RuntimeError, as array_record does.
  """
  count = 0
  size = 0
  # Groups of 1: a sample is read without its neighbours.
  with contextlib.closing(ArrayRecordWriter(str(path), 'group_size:1')) as file:
    for example in examples:
      file.write(example)
      count += 1
      size += len(example)
  return count, size


def describe(
  place: pathlib.Path,
  name: str,
  lengths: Sequence[int],
  num_bytes: int,
  shape: tuple[int, int, int],
  label: tfds.features.FeatureConnector | None,
  metadata: dict[str, str],
  **info: str,
) -> list[str]:
  """Writes what TFDS wants to know of a split `train`.

  Directly, not through a TFDS builder, which would hold everything on disk twice.

  Args:
    place: the folder. The files need not be there yet; an empty one takes the first one's place.
    name: of the data set.
    lengths: records in each file.
    num_bytes: of all records.
    shape: (H, W, C) of all images.
    label: what the labels are; None: there are none.
    metadata: `Source` reads its content_sha256 and resize_filter.
    **info: of tfds.core.DatasetInfo.

  Returns:
    The names that the files have to get.
  """
  features = {'image': tfds.features.Image(shape=shape, encoding_format='png')}
  if label is not None:
    features['label'] = label
  template = tfds.core.ShardedFileTemplate(
    data_dir=place, dataset_name=name, split='train', filetype_suffix='array_record'
  )
  count = len(lengths)
  paths = [template.sharded_filepath(shard_index=i, num_shards=count) for i in range(count)]
  paths[0].touch()  # TFDS asks for a file with such a name
  split = tfds.core.SplitInfo(
    name='train', shard_lengths=list(lengths), num_bytes=num_bytes, filename_template=template
  )
  tfds.folder_dataset.write_metadata(
    data_dir=place,
    features=tfds.features.FeaturesDict(features),
    split_infos=[split],
    filename_template=template,
    check_data=False,  # the check needs TensorFlow
    metadata=tfds.core.MetadataDict(metadata),
    disable_shuffling=True,
    **info,
  )
  return [path.name for path in paths]


def open_records(builder: tfds.core.DatasetBuilder) -> Sequence[bytes]:
  """The records of split 'train', or of the only split: len(...), and bytes by index.

  Raises:
    DatasetError: no such split, or another record format.
  """
  info = builder.info
  place = builder.data_path
  splits = list(info.splits)
  if 'train' not in splits and len(splits) != 1:
    raise DatasetError(f"{place}: has no split 'train' (splits: {splits or 'none'})")
  split = 'train' if 'train' in splits else splits[0]
  if info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
    raise DatasetError(
      f'{place}: stored as {info.file_format.value}, which has no random access; rebuild it: '
      f'{BUILD.format(name=info.name)}'
    )
  return builder.as_data_source(split=split).data_source
