"""Users' pictures -> a TFDS data set (array_record) and a report that names every file left out.

Which files are looked at is stated in `sources.py`, what is done to a picture in `images.py`, where
labels come from in `label_rules.py`, what the report says in `summary.py`.
"""

import collections
from collections.abc import Callable, Iterable, Iterator
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import warnings

import numpy as np
from PIL import Image
import tensorflow_datasets as tfds
import tqdm

from sg2jax import files
from sg2jax.data import destination, images, label_rules, labels, records, sources, summary, wording
from sg2jax.faults import DatasetError, UsageError, WriteError
from sg2jax.models.sizes import block_sizes


def build(
  source: str,
  dest: str,
  options: images.Options,
  label_rule: str = 'none',
  workers: int | None = None,
) -> dict:
  """Writes the data set and its report; all or nothing.

  Args:
    source: folder or zip.
    dest: folder to make; may be empty, or an earlier result of this tool, which is replaced.
    options: how pictures become images.
    label_rule: one of label_rules.RULES.
    workers: threads, by default one per core; the result doesn't depend on them.

  Returns:
    The report, as in DEST/report.json: `images` (count), `unusable` ([{file, reason}]),
    `content_sha256`, `classes` ({name: images}, by index) or `components` (images in which each is
    not 0), `warnings`, `stale_labels`, and the options. If `images` is 0, nothing was made.

  Raises:
    UsageError: `dest` holds something else, or lies inside `source`; no network has this size.
    DatasetError: `source` missing or unreadable, or labels missing.
    WriteError: `dest` can't be written.
  """
  # ---- what can be refused before any work
  check_resolution(options)
  source = pathlib.Path(source).expanduser()
  place = destination.resolved(dest)
  destination.check(source, place)
  listing = sources.listing(source)
  if not listing.names and not listing.unusable:
    raise DatasetError(
      f'--source={source}: there is no file in it (hidden ones are not looked at); nothing was made'
    )
  # ---- built in a hidden folder, then moved
  report = {
    'tool': destination.TOOL,
    'source': wording.printable(str(source)),
    **dataclasses.asdict(options),
    'labels': label_rule,
  }
  try:
    with destination.building(place) as scratch, _pillow(options):
      # Pictures are asked for twice: classes are only those that have a usable one, and of each as
      # many are tried as that takes; then all are converted.
      pictures = _Pictures(listing, options)
      assignment = label_rules.assign(label_rule, listing, pictures.is_usable)
      report |= _write(scratch, pictures, assignment, workers or os.cpu_count())
      if report['images']:
        report['warnings'] += destination.leftovers(place)
        # Last of all that is written: only a folder that has it may be replaced.
        (scratch / destination.REPORT).write_text(json.dumps(report, indent=1) + '\n')
        report['warnings'] += destination.replace(scratch, place)
  except (OSError, RuntimeError) as e:  # array_record raises the latter
    raise WriteError(
      f'{dest}: the data set could not be written ({e}); free some space or choose another --dest'
    ) from e
  return report


def check_resolution(options: images.Options) -> None:
  """Raises UsageError if no network has the size of the images that come out."""
  height, width, _ = options.shape
  try:
    block_sizes((height, width))
  except ValueError as e:
    remedy = ''
    if match := re.search(r'try (\d+)x(\d+)', str(e)):
      near_height, near_width = map(int, match.groups())
      if options.fit == 'wide':  # the width alone counts; the height follows it
        near_height = max(1, round(near_width * options.height / options.width))
      remedy = f'; try --resolution={_size(near_height, near_width)}'
    raise UsageError(
      f'--resolution={_size(options.height, options.width)}: no network makes images of '
      f'{height}x{width} (both sides are h0*2^k, the longer h0 in 4..7){remedy}'
    ) from None


def _size(height: int, width: int) -> str:
  return f'{height}' if height == width else f'{height}x{width}'


@contextlib.contextmanager
def _pillow(options: images.Options) -> Iterator[None]:
  """Pillow with our limit of pixels, and silent.

  It warns of oddities that it can read, and the report is for what it can't.
  """
  limit = Image.MAX_IMAGE_PIXELS
  Image.MAX_IMAGE_PIXELS = max(options.max_pixels, images.MAX_PIXELS)
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')
      yield
  finally:
    Image.MAX_IMAGE_PIXELS = limit


class _Pictures:
  """The pictures of a listing as images; remembers why files are unusable. For threads."""

  def __init__(self, listing: sources.Listing, options: images.Options):
    self.listing = listing
    self.options = options
    self._reasons = {}

  def read(self, name: str) -> images.Picture:
    """Raises Unusable with the reason."""
    # Known from looking for classes; to decode it again would cost as much as a good one.
    if name in self._reasons:
      raise images.Unusable(self._reasons[name])
    try:
      return images.convert(self.listing.read(name), self.options, name)
    except images.Unusable as e:
      self._reasons[name] = str(e)
      raise

  def is_usable(self, name: str) -> bool:
    """Whether `read` would return."""
    try:
      self.read(name)
    except images.Unusable:
      return False
    return True


# ---- writing


def _write(
  place: pathlib.Path, pictures: _Pictures, assignment: label_rules.Assignment, workers: int
) -> dict:
  """Writes the usable pictures, in the order of the names. Returns entries of the report."""
  options = pictures.options
  names = pictures.listing.names
  features = _features(options, assignment)

  def convert(name: str) -> tuple[bytes, bytes, int | None]:
    """Record, digest of pixels and label, peak. Raises Unusable. Runs in a thread."""
    if name in assignment.missing:
      raise images.Unusable(assignment.missing[name])
    pixels, peak = pictures.read(name)
    # Not deflated: the record file compresses to the same size, and reading gets 1.3x faster.
    example = {'image': files.png(pixels, compress_level=0)}
    if assignment.c_dim:
      example['label'] = assignment.labels[name]
    content = pixels.tobytes() + json.dumps(assignment.labels.get(name)).encode()
    return features.serialize_example(example), hashlib.sha256(content).digest(), peak

  unusable = list(pictures.listing.unusable)
  used = []
  peaks = []
  # Runs resume by this digest: of the shape, then of each picture with its label, in order.
  content = hashlib.sha256(repr(options.shape).encode())
  with (
    # Threads are enough: Pillow decodes and resizes outside the GIL.
    concurrent.futures.ThreadPoolExecutor(workers) as pool,
    records.Writer(place, 'images', features) as writer,
  ):
    pending = _submit_ahead(pool, convert, names, 4 * workers)
    for name, future in tqdm.tqdm(pending, total=len(names), unit='files', disable=None):
      try:
        record, digest, peak = future.result()
      except images.Unusable as e:
        unusable.append(sources.report_entry(name, str(e)))
        continue
      content.update(digest)
      writer.add(record)
      used.append(name)
      if peak is not None:
        peaks.append(peak)
    if used:
      writer.finish(
        {'content_sha256': content.hexdigest(), 'resize_filter': options.resize_filter},
        description='Pictures converted by python -m sg2jax.tools.prepare.',
      )
  entries = _write_labels(place, assignment, used)
  return {
    'images': len(used),
    'unusable': sorted(unusable, key=lambda entry: entry['file']),
    'content_sha256': content.hexdigest(),
    'warnings': [
      *assignment.warnings,
      *summary.peak_warnings(peaks, options.max_value),
      *summary.class_warnings(entries.get('classes', {})),
    ],
    'stale_labels': list(assignment.stale),
    **entries,
  }


def _features(
  options: images.Options, assignment: label_rules.Assignment
) -> tfds.features.FeaturesDict:
  features = {'image': tfds.features.Image(shape=options.shape, encoding_format='png')}
  # The three kinds that `dataset.Source` reads.
  if assignment.names:
    features['label'] = tfds.features.ClassLabel(names=assignment.names)
  elif assignment.c_dim and assignment.one_hot:
    features['label'] = tfds.features.ClassLabel(num_classes=assignment.c_dim)
  elif assignment.c_dim:
    features['label'] = tfds.features.Tensor(shape=(assignment.c_dim,), dtype=np.float32)
  return tfds.features.FeaturesDict(features)


def _write_labels(place: pathlib.Path, assignment: label_rules.Assignment, used: list[str]) -> dict:
  """Writes which labels the pictures have that were used. Returns an entry of the report."""
  if not assignment.c_dim or not used:
    return {}
  values = [assignment.labels[name] for name in used]
  if assignment.one_hot:
    counts = np.bincount(values, minlength=assignment.c_dim)
    found = labels.Labels.of_classes(assignment.names, counts)
    entries = {'classes': found.class_counts()}
  else:
    vectors = np.array(values, np.float32)  # [N,c_dim]
    found = labels.Labels.of_vectors(vectors)
    entries = {
      'components': np.count_nonzero(vectors, axis=0).tolist(),
      'vectors': len(np.unique(vectors, axis=0)),
    }
  (place / labels.FILE).write_text(found.to_json())
  return entries


def _submit_ahead(
  pool: concurrent.futures.Executor, function: Callable, items: Iterable, ahead: int
) -> Iterator[tuple]:
  """(item, future) of each item, in order; at most `ahead` results are held in memory."""
  waiting = collections.deque()
  for item in items:
    waiting.append((item, pool.submit(function, item)))
    if len(waiting) >= ahead:
      yield waiting.popleft()
  yield from waiting
