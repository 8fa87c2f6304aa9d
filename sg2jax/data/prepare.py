"""Users' pictures -> a TFDS data set (array_record) and a report that names every file left out.

Which files are looked at is stated in `sources.py`, what is done to a picture in `images.py`, where
labels come from in `label_rules.py`.
"""

from collections.abc import Callable, Iterator
import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import pathlib
import tempfile

from absl import logging
import grain
import numpy as np
import tensorflow_datasets as tfds
import tqdm

from sg2jax.data import destination, images, label_rules, records, shards, sources, wording
from sg2jax.data.labels import FILE, Labels
from sg2jax.faults import DatasetError, UsageError, WriteError
from sg2jax.models.sizes import block_sizes

# Writes shards of a source to a folder by the options: prepare_beam has another than threads.
WriteShards = Callable[[pathlib.Path, list[shards.Shard], str, images.Options], None]


def build(
  source: str,
  dest: str,
  options: images.Options,
  label_rule: str = 'none',
  workers: int | None = None,
  write: WriteShards | None = None,
) -> dict:
  """Writes the data set and its report; all or nothing.

  What is killed, or ends with an error, leaves its finished shards in DEST/.building, from which
  the same call goes on.

  Args:
    source: folder or zip.
    dest: folder to make; may be empty, or an earlier result of this tool, which is replaced.
    options: how pictures become images.
    label_rule: one of label_rules.RULES.
    workers: threads, by default one per core; the result doesn't depend on them.
    write: makes the shards in a folder, instead of `workers`.

  Returns:
    The report, as in DEST/report.json: `images` (count), `unusable` ([{file, reason}]),
    `content_sha256`, `classes` ({name: images}, by index) or `components` of vectors, `warnings`,
    `stale_labels`, and the options. If `images` is 0, nothing was made.

  Raises:
    UsageError: `dest` holds something else, is inside of `source`, or is being written to by
      another process; no network has this size.
    DatasetError: `source` missing or unreadable, or labels missing.
    WriteError: `dest` can't be written.
  """
  # ---- what can be refused before any work
  check_resolution(options)
  place = destination.resolved(dest, source)
  listing = _list(source)
  assignment = _assign(label_rule, listing, options)
  plan = shards.plan(listing, source, options, assignment.labels or None)
  report = {
    'tool': destination.TOOL,
    'source': str(source),
    **dataclasses.asdict(options),
    'labels': label_rule,
    'stale_labels': assignment.stale,
  }
  # ---- shard by shard in a hidden folder, then moved
  with _writing(place), destination.building(place) as folder:
    todo = _unfinished(folder, plan)
    if write is None:
      _write_in_threads(folder, todo, listing.read, options, workers or os.cpu_count())
    else:
      write(folder, todo, source, options)
    whole = _Whole(folder, plan, options.shape)
    whole.unusable |= listing.unusable
    _finish(whole, folder, place, options, assignment, report)
  return report


def check_resolution(options: images.Options) -> None:
  """Raises UsageError if no network has the size of the images that come out."""
  try:
    block_sizes(options.shape[:2])
  except ValueError as e:
    raise UsageError(f'--resolution with --fit={options.fit}: {e}') from None


def _list(source: str) -> sources.Listing:
  listing = sources.listing(pathlib.Path(source).expanduser())
  if not listing.names and not listing.unusable:
    raise DatasetError(
      f'--source={source}: there is no file in it (hidden ones are not looked at); nothing was made'
    )
  return listing


def _assign(rule: str, listing: sources.Listing, options: images.Options) -> label_rules.Assignment:
  def is_usable(name: str) -> bool:
    return not isinstance(shards.convert(name, listing.read, options, None), str)

  # Classes are only those that have a usable picture: some are converted twice.
  return label_rules.assign(rule, listing, is_usable)


@contextlib.contextmanager
def _writing(dest: pathlib.Path):
  """Makes a WriteError of what goes wrong on disk."""
  try:
    yield
  except (OSError, RuntimeError) as e:  # array_record raises the latter
    raise WriteError(
      f'{dest}: the data set could not be written ({e}); free some space: the same command goes on '
      f'from the shards in {dest / destination.BUILDING}; or delete that, and choose another --dest'
    ) from e


# ---- shards


def _unfinished(folder: pathlib.Path, plan: list[shards.Shard]) -> list[shards.Shard]:
  """The shards that an earlier run didn't finish; deletes halves of them."""
  shards.discard_halves(folder)
  with concurrent.futures.ThreadPoolExecutor() as pool:  # to read all that is there
    finished = list(pool.map(functools.partial(shards.is_finished, folder), plan))
  if any(finished):
    logging.warning('%s: %d of %d shards are there already', folder, sum(finished), len(plan))
  return [shard for shard, is_finished in zip(plan, finished) if not is_finished]


def _write_in_threads(
  folder: pathlib.Path,
  todo: list[shards.Shard],
  read: sources.Reader,
  options: images.Options,
  workers: int,
):
  """Writes shard after shard, their pictures converted ahead in threads."""
  pictures = [(name, shard.labels) for shard in todo for name in shard.names]

  def convert(picture: tuple) -> str | shards.Converted:
    name, labels = picture
    return shards.convert(name, read, options, labels)

  # Threads are enough: Pillow decodes and resizes outside the GIL.
  read_ahead = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=4 * workers)
  results = iter(grain.MapDataset.source(pictures).map(convert).to_iter_dataset(read_ahead))
  results = iter(tqdm.tqdm(results, total=len(pictures), unit='files', disable=None))
  for shard in todo:
    shards.write(folder, shard, itertools.islice(results, len(shard.names)))


# ---- what they are together


class _Whole:
  """All shards of a data set, added up in order.

  Attributes:
    used: files that became records, in order.
    unusable: {file: reason} of the others.
    paths: of the shards that hold anything.
    lengths: records in each of them.
    num_bytes: of all records.
    peak: the brightest value of all.
    content: hexadecimal digest by which runs know the data set: of the shape, then of each picture
      with its label, in order.
  """

  def __init__(
    self, folder: pathlib.Path, plan: list[shards.Shard], shape: tuple[int, int, int]
  ) -> None:
    self.used = []
    self.unusable = {}
    self.paths = []
    self.lengths = []
    self.num_bytes = 0
    self.peak = 0
    content = hashlib.sha256(repr(shape).encode())
    for shard in plan:
      written = shards.read(folder, shard.key)
      if written is None:
        raise OSError(
          f'the shard that begins with {shard.names[0]!a} is not in {folder}: all workers need to '
          'see one folder at this path'
        )
      self.used += [name for name in shard.names if name not in written.unusable]
      self.unusable |= written.unusable
      content.update(bytes.fromhex(''.join(written.digests)))
      self.num_bytes += written.num_bytes
      self.peak = max(self.peak, written.peak)
      if written.digests:
        self.paths.append(shards.data_file(folder, shard.key))
        self.lengths.append(len(written.digests))
    self.content = content.hexdigest()


def _finish(
  whole: _Whole,
  folder: pathlib.Path,
  place: pathlib.Path,
  options: images.Options,
  assignment: label_rules.Assignment,
  report: dict,
):
  """Describes the data set, completes its report, and moves all from `folder` to `place`."""
  with tempfile.TemporaryDirectory(prefix='.', dir=folder) as scratch:
    described = pathlib.Path(scratch)
    label_entry, label_feature = _write_labels(described, assignment, whole.used)
    report['images'] = len(whole.used)
    report['unusable'] = [
      {'file': wording.printable(name), 'reason': reason}
      for name, reason in sorted(whole.unusable.items())
    ]
    report['content_sha256'] = whole.content
    report['warnings'] = [*assignment.warnings, *_warnings(whole, label_entry)]
    report |= label_entry
    if not whole.used:
      return
    names = records.describe(
      described,
      'images',
      whole.lengths,
      whole.num_bytes,
      options.shape,
      label_feature,
      {'content_sha256': whole.content, 'resize_filter': options.resize_filter},
      description='Pictures converted by python -m sg2jax.tools.prepare.',
    )
    (described / destination.REPORT).write_text(json.dumps(report, indent=1) + '\n')
    built = {path.name: path for path in described.iterdir()}
    destination.replace(built | dict(zip(names, whole.paths, strict=True)), place)


def _warnings(whole: _Whole, label_entry: dict) -> Iterator[str]:
  if whole.used and whole.peak <= 16:  # 4095 of 65535
    yield (
      f'no value above {whole.peak} of 255: nearly black; of grey with 12 bits of 16, '
      '--max_value=4095 makes the largest white'
    )
  empty = [name for name, count in label_entry.get('classes', {}).items() if not count]
  if empty:
    yield f'never drawn, as no picture has this class: {wording.enumerate_names(empty)}'


def _write_labels(
  place: pathlib.Path, assignment: label_rules.Assignment, used: list[str]
) -> tuple[dict, tfds.features.FeatureConnector | None]:
  """Writes which labels the used pictures have; for the report, and for TFDS."""
  if not assignment.labels or not used:
    return {}, None
  values = [assignment.labels[name] for name in used]
  if isinstance(values[0], int):
    found = Labels.of_classes(assignment.names, np.bincount(values))
    entry = {'classes': found.class_counts()}
    feature = tfds.features.ClassLabel(names=list(entry['classes']))
  else:
    found = Labels.of_vectors(values)
    entry = {'components': found.c_dim}
    feature = tfds.features.Tensor(shape=(found.c_dim,), dtype=np.float32)
  (place / FILE).write_text(found.to_json())
  return entry, feature
