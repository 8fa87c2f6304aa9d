"""Users' pictures -> a TFDS data set (array_record) and a report that names every file left out.

Which files are looked at is stated in `sources.py`, what is done to a picture in `images.py`, where
labels come from in `label_rules.py`.
"""

import collections
from collections.abc import Callable, Iterator
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import shutil
import sys
from typing import NamedTuple
import warnings

from array_record.python.array_record_module import ArrayRecordWriter
import numpy as np
from PIL import Image
import tensorflow_datasets as tfds
import tqdm

from sg2jax import faults
from sg2jax.data import classes, destination, images, label_rules, labels, sources, summary
from sg2jax.models import stylegan2

REPORT = destination.REPORT
SHARD_BYTES = 256 * 2**20


@dataclasses.dataclass(frozen=True)
class Options:
  """How pictures become images.

  Attributes:
    height: pixels.
    width: pixels.
    channels: 3 RGB, 1 grey, 4 RGBA.
    fit: crop rule, see images.fit_image.
    resize_filter: see images.FILTERS.
    background: RGB in 0..255 behind transparency and, with fit='pad', around the picture.
    allow_upscale: take pictures smaller than the target.
    labels: rule, see label_rules.assign.
    max_pixels: larger pictures are refused.
    animation: 'refuse', or 'first' for the first picture of several.
    max_value: value of 16-bit grey that becomes white; 0: 65535.
  """

  height: int
  width: int
  channels: int = 3
  fit: str = 'center'
  resize_filter: str = 'box'
  background: tuple[int, int, int] = (255, 255, 255)
  allow_upscale: bool = False
  labels: str = 'none'
  max_pixels: int = images.MAX_PIXELS
  animation: str = 'refuse'
  max_value: int = 0

  @property
  def shape(self) -> tuple[int, int, int]:
    """(H, W, C) of the images that come out."""
    return self.width if self.fit == 'wide' else self.height, self.width, self.channels

  @property
  def rules(self) -> images.Rules:
    """What is asked of a picture before it is cropped and resized."""
    return images.Rules(
      self.channels, self.background, self.max_pixels, self.animation, self.max_value
    )

  def check_resolution(self):
    """Raises UsageError if no network has the size of the images that come out."""
    height, width, _ = self.shape
    try:
      stylegan2.block_sizes((height, width))
    except ValueError as err:
      near = re.search(r'try (\d+)x(\d+)', str(err))
      near = [int(side) for side in near.groups()] if near else [height, width]
      if self.fit == 'wide':  # the width alone counts; the height follows it
        near = [max(1, round(near[1] * self.height / self.width)), near[1]]
      raise faults.UsageError(
        f'--resolution={_size(self.height, self.width)}: no network makes images of '
        f'{height}x{width} (both sides are '
        f'h0*2^k, the longer h0 in 4..7); try --resolution={_size(*near)}'
      ) from None


def build(source: str, dest: str, options: Options, workers: int | None = None) -> dict:
  """Writes the data set and its report; all or nothing.

  Args:
    source: folder or zip.
    dest: folder to make; may be empty, or an earlier result of this tool, which is replaced.
    options: see Options.
    workers: threads, by default one per core; the result doesn't depend on them.

  Returns:
    The report, as in DEST/report.json: `images` (count), `unusable` ([{file, reason}]),
    `content_sha256`, `classes` ({name: images}, by index) or `components` (images in which each is
    not 0), `warnings`, `stale_labels`, and the options. If `images` is 0, nothing was made.

  Raises:
    UsageError: `dest` holds something else, or lies inside `source`.
    DatasetError: `source` missing or unreadable, or labels missing.
    WriteError: `dest` can't be written.
  """
  options.check_resolution()
  source, named = pathlib.Path(source).expanduser(), dest
  dest = destination.resolved(dest)
  destination.check(source, dest)
  listing = sources.listing(source)
  if not listing.names and not listing.unusable:
    raise faults.DatasetError(
      f'--source={source}: there is no file in it (hidden ones are not looked at); nothing was made'
    )
  scratch = destination.scratch(dest)
  new_parents = [folder for folder in scratch.parents if not folder.exists()]
  try:
    with _pillow(options):
      pictures = _Pictures(listing, options)
      assigned = label_rules.assign(options.labels, listing, pictures.usable)
      scratch.mkdir(parents=True)
      report = _write(scratch, pictures, assigned, workers or os.cpu_count())
    report = {
      'tool': destination.TOOL,
      'source': sources.text(str(source)),
      **dataclasses.asdict(options),
      **report,
    }
    report['unusable'] = sorted(listing.unusable + report['unusable'], key=lambda e: e['file'])
    report['stale_labels'] = list(assigned.stale)
    if report['images']:
      report['warnings'] += destination.leftovers(dest)
      (scratch / destination.REPORT).write_text(json.dumps(report, indent=1) + '\n')
      report['warnings'] += destination.replace(scratch, dest)
  except (OSError, RuntimeError) as err:
    raise faults.WriteError(
      f'{named}: the data set could not be written ({err}); '
      'free some space or choose another --dest'
    ) from err
  finally:
    shutil.rmtree(scratch, ignore_errors=True)
    with contextlib.suppress(OSError):  # those that hold the data set stay
      for folder in new_parents:
        folder.rmdir()
  return report


@contextlib.contextmanager
def _pillow(options: Options):
  """Pillow with our limit of pixels; it warns of oddities that it can read, and the report is for
  what it can't.
  """
  limit = Image.MAX_IMAGE_PIXELS
  Image.MAX_IMAGE_PIXELS = max(options.max_pixels, images.MAX_PIXELS)
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')
      yield
  finally:
    Image.MAX_IMAGE_PIXELS = limit


def _size(height: int, width: int) -> str:
  return f'{height}' if height == width else f'{height}x{width}'


def _features(options: Options, assigned: classes.Assigned) -> tfds.features.FeaturesDict:
  features = {'image': tfds.features.Image(shape=options.shape, encoding_format='png')}
  if assigned.names:
    features['label'] = tfds.features.ClassLabel(names=assigned.names)
  elif assigned.c_dim and assigned.one_hot:
    features['label'] = tfds.features.ClassLabel(num_classes=assigned.c_dim)
  elif assigned.c_dim:
    features['label'] = tfds.features.Tensor(shape=(assigned.c_dim,), dtype=np.float32)
  return tfds.features.FeaturesDict(features)


class _Pictures:
  """The pictures of a listing at the data set's size; remembers why files are unusable. For
  threads.
  """

  def __init__(self, listing: sources.Listing, options: Options):
    self.listing, self.options, self.reasons = listing, options, {}

  def read(self, name: str) -> images.Picture:
    """Raises Unusable with the reason."""
    if name in self.reasons:
      raise images.Unusable(self.reasons[name])
    options = self.options
    try:
      picture = images.read(self.listing.read(name), options.rules, name)
      return picture._replace(
        pixels=images.fit_image(
          picture.pixels,
          options.fit,
          options.height,
          options.width,
          options.resize_filter,
          options.background,
          options.allow_upscale,
        )
      )
    except images.Unusable as err:
      self.reasons[name] = str(err)
      raise

  def usable(self, name: str) -> bool:
    """Whether `read` would return."""
    try:
      self.read(name)
    except images.Unusable:
      return False
    return True


class _Converted(NamedTuple):
  """A file as a record with a digest of pixels and label, or the reason why it isn't one."""

  name: str
  reason: str | None
  record: bytes = b''
  digest: bytes = b''
  peak: int | None = None
  grey: bool = True


def _write(
  scratch: pathlib.Path, pictures: _Pictures, assigned: classes.Assigned, workers: int
) -> dict:
  """Writes records and metadata of the usable pictures into `scratch`, in the order of the
  names.
  """
  options, names = pictures.options, pictures.listing.names
  features = _features(options, assigned)

  def convert(name: str) -> _Converted:
    """Runs in a thread."""
    if name in assigned.missing:
      return _Converted(name, assigned.missing[name])
    try:
      pixels, peak, grey = pictures.read(name)
    except images.Unusable as err:
      return _Converted(name, str(err))
    example = {'image': images.encode_png(pixels)}
    if assigned.c_dim:
      example['label'] = assigned.labels[name]
    digest = hashlib.sha256(
      pixels.tobytes() + json.dumps(assigned.labels.get(name)).encode()
    ).digest()
    return _Converted(name, None, features.serialize_example(example), digest, peak, grey)

  unusable, used, peaks, shards = [], [], [], _Shards(scratch)
  content = hashlib.sha256(repr(options.shape).encode())
  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    done = _ordered(pool, convert, names, 4 * workers)
    for one in tqdm.tqdm(done, total=len(names), unit='files', disable=not sys.stderr.isatty()):
      if one.reason is not None:
        unusable.append(sources.entry(one.name, one.reason))
        continue
      content.update(one.digest)
      shards.add(one.record)
      used.append(one.name)
      if one.peak is not None and (one.grey or not options.max_value):  # which is for grey alone
        peaks.append(one.peak)
  shards.finish(features, content_sha256=content.hexdigest(), resize_filter=options.resize_filter)
  report = {
    'images': len(used),
    'unusable': unusable,
    'content_sha256': content.hexdigest(),
    'warnings': [*assigned.warnings, *_of_peaks(peaks, options.max_value)],
  }
  if assigned.c_dim and used:
    of_used = [assigned.labels[name] for name in used]
    (scratch / labels.FILE).write_text(summary.count(assigned, of_used).to_json())
    about, empty = summary.of_labels(assigned, of_used)
    report |= about
    report['warnings'] += empty
  return report


def _of_peaks(peaks: list[int], max_value: int) -> list[str]:
  """What the largest values of pictures with 16 bits say of their range."""
  white, top = max_value or 65535, max(peaks, default=0)
  if peaks and max_value and top > white:
    above = classes.counted(sum(peak > white for peak in peaks), 'picture')
    return [f'{above} with values above --max_value={white}, up to {top}: these are white']
  if peaks and not max_value and top <= 4095:
    bits = max(top.bit_length(), 8)
    return [
      f'{classes.counted(len(peaks), "picture")} of 16 bits without a value above {top} of 65535, '
      'nearly black; '
      f'--max_value={2**bits - 1} makes that value white (of grey; convert colour to 8 bits first)'
    ]
  return []


def _ordered(
  pool: concurrent.futures.Executor, function: Callable, items: list, ahead: int
) -> Iterator:
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
      data_dir=self.place, dataset_name='images', split='train', filetype_suffix='array_record'
    )
    count = len(self.lengths)
    for i in range(count):
      os.rename(
        self.place / f'part-{i}', template.sharded_filepath(shard_index=i, num_shards=count)
      )
    split = tfds.core.SplitInfo(
      name='train',
      shard_lengths=self.lengths,
      num_bytes=sum(self.sizes),
      filename_template=template,
    )
    tfds.folder_dataset.write_metadata(
      data_dir=self.place,
      features=features,
      split_infos=[split],
      filename_template=template,
      check_data=False,  # the check needs TensorFlow
      metadata=tfds.core.MetadataDict(metadata),
      disable_shuffling=True,
      description='Pictures converted by python -m sg2jax.tools.prepare.',
    )
