"""How a data set lies on disk: a TFDS folder whose records random access is possible to.

Files of array_record hold TFDS examples: `image`, a PNG, and `label`, a class or a vector. Beside
them are TFDS's dataset_info.json and features.json, and `labels.FILE`.
"""

from collections.abc import Sequence
import os
import pathlib
import re
from typing import Self

from array_record.python.array_record_module import ArrayRecordWriter
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from sg2jax.faults import DatasetError

SHARD_BYTES = 256 * 2**20
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


class Writer:
  """Writes the records of a split `train` and what TFDS wants to know of them.

  Directly, not through a TFDS builder, which would hold everything on disk twice. `add` records,
  then `finish`; closes its file also where an error comes between.
  """

  def __init__(self, place: pathlib.Path, name: str) -> None:
    self._place = place
    self._name = name
    self._lengths = []  # records in each file
    self._sizes = []  # bytes in each file
    self._file = None

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *_: object) -> None:
    self._close()

  def _close(self):
    if self._file is not None:
      self._file.close()
    self._file = None

  def add(self, record: bytes) -> None:
    """Writes one serialized example; begins another file where one has SHARD_BYTES."""
    if self._file is None or self._sizes[-1] >= SHARD_BYTES:
      self._close()
      # Groups of 1: a sample is read without its neighbours.
      self._file = ArrayRecordWriter(str(self._place / f'part-{len(self._sizes)}'), 'group_size:1')
      self._lengths.append(0)
      self._sizes.append(0)
    self._file.write(record)
    self._lengths[-1] += 1
    self._sizes[-1] += len(record)

  def finish(
    self,
    shape: tuple[int, int, int],
    label: tfds.features.FeatureConnector | None,
    metadata: dict[str, str],
    **info: str,
  ) -> None:
    """Names the files as TFDS does, now that their number is known, and describes them.

    Args:
      shape: (H, W, C) of all images.
      label: what the labels are; None: there are none.
      metadata: `Source` reads its content_sha256 and resize_filter.
      **info: of tfds.core.DatasetInfo.
    """
    features = {'image': tfds.features.Image(shape=shape, encoding_format='png')}
    if label is not None:
      features['label'] = label
    self._close()
    template = tfds.core.ShardedFileTemplate(
      data_dir=self._place, dataset_name=self._name, split='train', filetype_suffix='array_record'
    )
    count = len(self._lengths)
    # Their number is part of each name.
    for i in range(count):
      final = template.sharded_filepath(shard_index=i, num_shards=count)
      os.rename(self._place / f'part-{i}', final)
    split = tfds.core.SplitInfo(
      name='train',
      shard_lengths=self._lengths,
      num_bytes=sum(self._sizes),
      filename_template=template,
    )
    tfds.folder_dataset.write_metadata(
      data_dir=self._place,
      features=tfds.features.FeaturesDict(features),
      split_infos=[split],
      filename_template=template,
      check_data=False,  # the check needs TensorFlow
      metadata=tfds.core.MetadataDict(metadata),
      disable_shuffling=True,
      **info,
    )


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
