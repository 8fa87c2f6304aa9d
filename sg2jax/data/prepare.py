"""Users' pictures -> a TFDS data set (array_record) and a report that names every file left out.

Which files are looked at is stated in `sources.py`, what is done to a picture in `images.py`, where
labels come from in `label_rules.py`.
"""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib

import grain
import numpy as np
import tensorflow_datasets as tfds
import tqdm

from sg2jax.data import destination, images, label_rules, records, sources, wording
from sg2jax.data.labels import FILE, Labels
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
    `content_sha256`, `classes` ({name: images}, by index) or `components` of vectors, `warnings`,
    `stale_labels`, and the options. If `images` is 0, nothing was made.

  Raises:
    UsageError: `dest` holds something else, or is inside of `source`; no network has this size.
    DatasetError: `source` missing or unreadable, or labels missing.
    WriteError: `dest` can't be written.
  """
  # ---- what can be refused before any work
  check_resolution(options)
  place = destination.resolved(dest, source)
  listing = sources.listing(pathlib.Path(source).expanduser())
  if not listing.names and not listing.unusable:
    raise DatasetError(
      f'--source={source}: there is no file in it (hidden ones are not looked at); nothing was made'
    )
  # Classes are only those that have a usable picture: some are converted twice.
  assignment = label_rules.assign(
    # an empty dict of labels: no picture lacks one yet
    label_rule,
    listing,
    lambda name: not isinstance(_convert(name, listing, options, {}), str),
  )
  # ---- built in a hidden folder, then moved
  report = {
    'tool': destination.TOOL,
    'source': str(source),
    **dataclasses.asdict(options),
    'labels': label_rule,
    'stale_labels': assignment.stale,
  }
  try:
    with destination.building(place) as scratch:
      report |= _write(scratch, listing, options, assignment, workers or os.cpu_count())
      if report['images']:
        (scratch / destination.REPORT).write_text(json.dumps(report, indent=1) + '\n')
        report['warnings'] += destination.replace(scratch, place)
  except (OSError, RuntimeError) as e:  # array_record raises the latter
    raise WriteError(
      f'{dest}: the data set could not be written ({e}); free some space or choose another --dest'
    ) from e
  return report


def check_resolution(options: images.Options) -> None:
  """Raises UsageError if no network has the size of the images that come out."""
  try:
    block_sizes(options.shape[:2])
  except ValueError as e:
    raise UsageError(f'--resolution with --fit={options.fit}: {e}') from None


def _convert(
  name: str, listing: sources.Listing, options: images.Options, labels: dict
) -> str | tuple[bytes, bytes, int]:
  """A picture's record, digest of pixels and label, and brightest value; or why there is none."""
  try:
    pixels = images.convert(listing.read(name), options)
  except images.Unusable as e:
    return str(e)
  if labels and name not in labels:
    return 'no label: not in dataset.json, or beside the folders of the classes'
  label = labels.get(name)
  digest = hashlib.sha256(pixels.tobytes() + json.dumps(label).encode()).digest()
  return records.example(records.png(pixels), label), digest, int(pixels[:, :, :3].max())


def _write(
  place: pathlib.Path,
  listing: sources.Listing,
  options: images.Options,
  assignment: label_rules.Assignment,
  workers: int,
) -> dict:
  """Writes the usable pictures, in the order of the names. Returns entries of the report."""
  convert = functools.partial(_convert, listing=listing, options=options, labels=assignment.labels)
  # Threads are enough: Pillow decodes and resizes outside the GIL.
  read_ahead = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=4 * workers)
  results = grain.MapDataset.source(listing.names).map(convert).to_iter_dataset(read_ahead)
  unusable = dict(listing.unusable)
  used = []
  brightest = 0
  # Runs resume by this digest: of the shape, then of each picture with its label, in order.
  content = hashlib.sha256(repr(options.shape).encode())
  with records.Writer(place, 'images') as writer:
    for name, result in zip(tqdm.tqdm(listing.names, unit='files', disable=None), results):
      if isinstance(result, str):
        unusable[name] = result
        continue
      record, digest, peak = result
      content.update(digest)
      writer.add(record)
      used.append(name)
      brightest = max(brightest, peak)
    label_entry, label_feature = _write_labels(place, assignment, used)
    if used:
      writer.finish(
        options.shape,
        label_feature,
        {'content_sha256': content.hexdigest(), 'resize_filter': options.resize_filter},
        description='Pictures converted by python -m sg2jax.tools.prepare.',
      )
  warnings = list(assignment.warnings)
  if used and brightest <= 16:  # 4095 of 65535
    warnings.append(
      f'no value above {brightest} of 255: nearly black; of grey with 12 bits of 16, '
      '--max_value=4095 makes the largest white'
    )
  empty = [name for name, count in label_entry.get('classes', {}).items() if not count]
  if empty:
    warnings.append(f'never drawn, as no picture has this class: {wording.enumerate_names(empty)}')
  return {
    'images': len(used),
    'unusable': [
      {'file': wording.printable(name), 'reason': reason}
      for name, reason in sorted(unusable.items())
    ],
    'content_sha256': content.hexdigest(),
    'warnings': warnings,
    **label_entry,
  }


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
