"""Users' pictures -> a TFDS data set (array_record) and a report that names every file left out.

Which files are looked at is stated in `sources.py`, what is done to a picture in `images.py`.
"""

import collections
from collections.abc import Callable, Iterator
import concurrent.futures
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import sys
import warnings

from array_record.python.array_record_module import ArrayRecordWriter
import numpy as np
import tensorflow_datasets as tfds
import tqdm

from sg2jax import faults
from sg2jax.data import images, sources

REPORT = 'report.json'
TOOL = 'sg2jax.tools.prepare'
SHARD_BYTES = 256 * 2**20


@dataclasses.dataclass(frozen=True)
class Options:
  """How pictures become images.

  Attributes:
    height: pixels.
    width: pixels.
    channels: 3 RGB, 1 grey.
    fit: crop rule, see images.fit_image.
    resize_filter: see images.FILTERS.
    background: RGB in 0..255 behind transparency and, with fit='pad', around the picture.
    allow_upscale: take pictures smaller than the target.
    labels: rule, see sources.labels.
  """
  height: int
  width: int
  channels: int = 3
  fit: str = 'center'
  resize_filter: str = 'box'
  background: tuple[int, int, int] = (255, 255, 255)
  allow_upscale: bool = False
  labels: str = 'none'

  @property
  def shape(self) -> tuple[int, int, int]:
    """(H, W, C) of the images that come out."""
    return self.width if self.fit == 'wide' else self.height, self.width, self.channels


def build(source: str, dest: str, options: Options, workers: int | None = None) -> dict:
  """Writes the data set and its report; all or nothing.

  Args:
    source: folder or zip.
    dest: folder to make; may be empty, or an earlier result of this tool, which is replaced.
    options: see Options.
    workers: threads, by default one per core; the result doesn't depend on them.

  Returns:
    The report, as in DEST/report.json: `images` (count), `unusable` ([{file, reason}]),
    `content_sha256`, and the options. If `images` is 0, nothing was made.

  Raises:
    UsageError: `dest` holds something else, or lies inside `source`.
    DatasetError: `source` missing or unreadable, or labels missing.
    WriteError: `dest` can't be written.
  """
  source = pathlib.Path(source).expanduser()
  dest = pathlib.Path(dest).expanduser().absolute()
  _check_dest(source, dest)
  listing = sources.listing(source)
  labels, classes = sources.labels(options.labels, listing)
  scratch = dest.with_name(f'.{dest.name}.building-{os.getpid()}')
  try:
    scratch.mkdir(parents=True)
    with warnings.catch_warnings():
      # Pillow warns of oddities that it can read; the report is for what it can't.
      warnings.simplefilter('ignore')
      report = _write(scratch, listing, labels, classes, options, workers or os.cpu_count())
    report = {'tool': TOOL, 'source': str(source), **dataclasses.asdict(options), **report}
    report['unusable'] = sorted(listing.unusable + report['unusable'], key=lambda e: e['file'])
    if report['images']:
      (scratch / REPORT).write_text(json.dumps(report, indent=1) + '\n')
      _replace(scratch, dest)
  except (OSError, RuntimeError) as err:
    raise faults.WriteError(f'{dest}: the data set could not be written ({err}); '
                            'free some space or choose another --dest') from err
  finally:
    shutil.rmtree(scratch, ignore_errors=True)
  return report


def summary(report: dict, most: int = 20) -> str:
  """The report for people: the counts, then the first `most` unusable files with their reasons."""
  bad = report['unusable']
  most = most if report['images'] else len(bad)  # then there is no report.json that names them all
  lines = [f"{report['images']} images, {len(bad)} unusable files"]
  lines += [f"  {e['file']}: {e['reason']}" for e in bad[:most]]
  if len(bad) > most:
    lines.append(f'  ... and {len(bad) - most} more')
  return '\n'.join(lines)


def _check_dest(source: pathlib.Path, dest: pathlib.Path):
  if dest.resolve().is_relative_to(source.resolve()):
    raise faults.UsageError(f'--dest={dest} lies inside --source={source}; choose a place outside')
  if dest.exists() and not dest.is_dir():
    raise faults.UsageError(f'--dest={dest} is a file; choose a new folder')
  if dest.exists() and any(dest.iterdir()) and not _is_ours(dest):
    raise faults.UsageError(f'--dest={dest} is not empty and was not made by this tool; '
                            'choose a new folder')


def _is_ours(dest: pathlib.Path) -> bool:
  try:
    return json.loads((dest / REPORT).read_text()).get('tool') == TOOL
  except (OSError, ValueError, AttributeError):
    return False


def _replace(scratch: pathlib.Path, dest: pathlib.Path):
  """Puts the finished folder in place; an earlier one is deleted once the new one is there."""
  old = dest.with_name(f'.{dest.name}.old-{os.getpid()}')
  if dest.exists():
    os.rename(dest, old)
  os.rename(scratch, dest)
  shutil.rmtree(old, ignore_errors=True)


def _features(options: Options, labels: dict, classes) -> tfds.features.FeaturesDict:
  features = {'image': tfds.features.Image(shape=options.shape, encoding_format='png')}
  if isinstance(classes, list):
    features['label'] = tfds.features.ClassLabel(names=classes)
  elif classes and isinstance(next(iter(labels.values())), int):
    features['label'] = tfds.features.ClassLabel(num_classes=classes)
  elif classes:
    features['label'] = tfds.features.Tensor(shape=(classes,), dtype=np.float32)
  return tfds.features.FeaturesDict(features)


def _write(place: pathlib.Path, listing: sources.Listing, labels: dict, classes, options: Options,
           workers: int) -> dict:
  """Writes records and metadata of the usable pictures into `place`, in the order of the names."""
  features = _features(options, labels, classes)

  def convert(name: str) -> tuple[str, bytes | str, bytes]:
    """(name, record or reason, digest of pixels and label); runs in a thread."""
    try:
      if classes and name not in labels:
        raise images.Unusable(f'no label by --labels={options.labels}')
      image = images.fit_image(
          images.decode(listing.read(name), options.channels, options.background), options.fit,
          options.height, options.width, options.resize_filter, options.background,
          options.allow_upscale)
    except images.Unusable as err:
      return name, str(err), b''
    example = {'image': images.encode_png(image)}
    if classes:
      example['label'] = labels[name]
    digest = hashlib.sha256(image.tobytes() + json.dumps(labels.get(name)).encode()).digest()
    return name, features.serialize_example(example), digest

  unusable, shards = [], _Shards(place)
  content = hashlib.sha256(repr(options.shape).encode())
  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    done = _ordered(pool, convert, listing.names, 4 * workers)
    for name, record, digest in tqdm.tqdm(done, total=len(listing.names), unit='files',
                                          disable=not sys.stderr.isatty()):
      if isinstance(record, str):
        unusable.append(sources.entry(name, record))
      else:
        content.update(digest)
        shards.add(record)
  shards.finish(features, content_sha256=content.hexdigest(), resize_filter=options.resize_filter)
  return {'images': sum(shards.lengths), 'unusable': unusable,
          'content_sha256': content.hexdigest()}


def _ordered(pool: concurrent.futures.Executor, function: Callable, items: list,
             ahead: int) -> Iterator:
  """`pool.map` that holds at most `ahead` results in memory."""
  waiting = collections.deque()
  for item in items:
    waiting.append(pool.submit(function, item))
    if len(waiting) >= ahead:
      yield waiting.popleft().result()
  while waiting:
    yield waiting.popleft().result()


class _Shards:
  """Record files of about SHARD_BYTES, named as TFDS wants once their number is known.

  Written directly, not through a TFDS builder, which would hold everything on disk twice.
  """

  def __init__(self, place: pathlib.Path):
    self.place, self.lengths, self.sizes, self.writer = place, [], [], None

  def add(self, record: bytes):
    if self.writer is None or self.sizes[-1] >= SHARD_BYTES:
      self._close()
      self.writer = ArrayRecordWriter(str(self.place / f'part-{len(self.lengths)}'), 'group_size:1')
      self.lengths.append(0)
      self.sizes.append(0)
    self.writer.write(record)
    self.lengths[-1] += 1
    self.sizes[-1] += len(record)

  def _close(self):
    if self.writer is not None:
      self.writer.close()

  def finish(self, features: tfds.features.FeaturesDict, **metadata: str):
    """Closes, renames and describes the record files."""
    self._close()
    if not self.lengths:
      return
    template = tfds.core.ShardedFileTemplate(
        data_dir=self.place, dataset_name='images', split='train', filetype_suffix='array_record')
    count = len(self.lengths)
    for i in range(count):
      os.rename(self.place / f'part-{i}',
                template.sharded_filepath(shard_index=i, num_shards=count))
    split = tfds.core.SplitInfo(name='train', shard_lengths=self.lengths,
                                num_bytes=sum(self.sizes), filename_template=template)
    tfds.folder_dataset.write_metadata(
        data_dir=self.place, features=features, split_infos=[split], filename_template=template,
        check_data=False,  # the check needs TensorFlow
        metadata=tfds.core.MetadataDict(metadata), disable_shuffling=True,
        description='Pictures converted by python -m sg2jax.tools.prepare.')
