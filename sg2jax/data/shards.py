"""The shards of a data set in the making: each made for itself, by anybody, whole or not at all.

A shard is a run of files in the order of their names, so that it depends on nothing but the source
and the options. Its `key` is a digest of all that decides what is in it; it lies in the folder of
the build as KEY.records, and KEY.json, written last, says what is in it. So whoever finds these can
take them as they are: whatever else changed, in another run they have another key.
"""

from collections.abc import Iterable, Iterator
import dataclasses
import hashlib
import json
import math
import os
import pathlib
from typing import NamedTuple
import uuid

from array_record.python.array_record_module import ArrayRecordReader
import PIL

import sg2jax
from sg2jax import files
from sg2jax.data import images, records, sources

# A shard has no more than this, unless there were more than MAX_SHARDS: each is an open file of
# every process that trains, and systems allow 1,024 of them.
SHARD_IMAGES = 512
SHARD_BYTES = 64 * 2**20  # of the images as they are stored before the record file compresses them
MAX_SHARDS = 512

Label = int | list[float]


class Shard(NamedTuple):
  """What a shard is made of.

  Attributes:
    key: digest of the rest, of the files and of the options.
    names: files, in order.
    labels: {name: label} of those that have one; None: the data set has no labels.
  """

  key: str
  names: list[str]
  labels: dict[str, Label] | None


class Converted(NamedTuple):
  """A picture's record, digest of pixels and label, and brightest value."""

  record: bytes
  digest: bytes
  peak: int


class Written(NamedTuple):
  """What a finished shard says of itself.

  Attributes:
    sha256: of its file; '' if it has none, as no picture was usable.
    num_bytes: of all records.
    digests: of the records, in order, hexadecimal.
    peak: the brightest value.
    unusable: {name: reason} of its other files.
  """

  sha256: str
  num_bytes: int
  digests: list[str]
  peak: int
  unusable: dict[str, str]


# ---- which


def plan(
  listing: sources.Listing,
  source: str,
  options: images.Options,
  labels: dict[str, Label] | None,
) -> list[Shard]:
  """All shards of a data set, in order.

  Args:
    listing: of the source.
    source: its path.
    options: how pictures become images.
    labels: {name: label} of those that have one; None: the data set has no labels.
  """
  height, width, channels = options.shape
  # By the size of a PNG, of which a row has another byte: known before any picture is read.
  size = min(SHARD_IMAGES, SHARD_BYTES // (height * (1 + width * channels)))
  size = max(1, size, math.ceil(len(listing.names) / MAX_SHARDS))
  # Versions, too: another Pillow may decode to other pixels.
  common = [
    sg2jax.__version__,
    PIL.__version__,
    os.path.realpath(os.path.expanduser(source)),
    dataclasses.asdict(options),
  ]
  found = []
  for start in range(0, len(listing.names), size):
    names = listing.names[start : start + size]
    own = None
    if labels is not None:
      own = {name: labels[name] for name in names if name in labels}
    decisive = json.dumps([common, names, listing.stamps[start : start + size], own])
    found.append(Shard(hashlib.sha256(decisive.encode()).hexdigest(), names, own))
  return found


# ---- making one


def convert(
  name: str, read: sources.Reader, options: images.Options, labels: dict[str, Label] | None
) -> str | Converted:
  """A picture's record; or why there is none."""
  try:
    pixels = images.convert(read(name), options)
  except images.Unusable as e:
    return str(e)
  if labels is not None and name not in labels:
    return 'no label: not in dataset.json, or beside the folders of the classes'
  label = labels[name] if labels else None
  digest = hashlib.sha256(pixels.tobytes() + json.dumps(label).encode()).digest()
  record = records.example(records.png(pixels), label)
  return Converted(record, digest, int(pixels[:, :, :3].max()))


def write(folder: pathlib.Path, shard: Shard, converted: Iterable[str | Converted]) -> None:
  """Writes a shard, from what `convert` makes of its names.

  Several may do so at once: they write the same. Raises OSError or RuntimeError, as array_record
  does.
  """
  unusable = {}
  digests = []
  peak = 0

  def usable() -> Iterator[bytes]:
    nonlocal peak
    for name, result in zip(shard.names, converted, strict=True):
      if isinstance(result, str):
        unusable[name] = result
        continue
      digests.append(result.digest.hex())
      peak = max(peak, result.peak)
      yield result.record

  # Another name for each attempt: it may be at work on several machines.
  temporary = folder / f'{shard.key}.{uuid.uuid4().hex}'
  sha256 = ''
  try:
    count, num_bytes = records.write_file(temporary, usable())
    if count:
      _check(temporary, count)
      sha256 = files.sha256(temporary)
      os.replace(temporary, data_file(folder, shard.key))
  finally:
    temporary.unlink(missing_ok=True)
  said = json.dumps(Written(sha256, num_bytes, digests, peak, unusable)._asdict())
  files.write_atomic(_sidecar(folder, shard.key), f'{_digest(said)}\n{said}')


def _check(path: pathlib.Path, count: int):
  """Raises OSError if a file doesn't hold so many records, as on a full disk."""
  reader = ArrayRecordReader(str(path))
  try:
    if reader.num_records() != count:
      raise OSError(f'{path} has {reader.num_records()} of {count} records')
  finally:
    reader.close()


def _digest(text: str) -> str:
  return hashlib.sha256(text.encode()).hexdigest()


# ---- what is there


def data_file(folder: pathlib.Path, key: str) -> pathlib.Path:
  """Where the records of a shard are."""
  return folder / f'{key}.records'


def _sidecar(folder: pathlib.Path, key: str) -> pathlib.Path:
  return folder / f'{key}.json'


def read(folder: pathlib.Path, key: str) -> Written | None:
  """What a shard says of itself; None if it isn't there, or is no longer what was written."""
  try:
    digest, _, said = _sidecar(folder, key).read_text().partition('\n')
    there = Written(**json.loads(said))
  except (OSError, ValueError, TypeError):
    return None
  return there if digest == _digest(said) else None


def is_finished(folder: pathlib.Path, shard: Shard) -> bool:
  """Whether a shard is there, and may be used as it is: every byte of it is looked at."""
  there = read(folder, shard.key)
  # What couldn't be read before may be readable now.
  if there is None or any(why.startswith(sources.UNREADABLE) for why in there.unusable.values()):
    return False
  try:
    return not there.sha256 or files.sha256(data_file(folder, shard.key)) == there.sha256
  except OSError:
    return False


def discard_halves(folder: pathlib.Path) -> None:
  """Deletes what is in a folder of the build, but for finished shards and hidden files."""
  for path in list(folder.iterdir()):
    whole = path.suffix in ('.records', '.json') and _sidecar(folder, path.stem).exists()
    if not whole and not path.name.startswith('.'):
      path.unlink(missing_ok=True)  # a worker of a run that was killed may still be at work


# ---- as tasks, for other processes and machines


def save_task(folder: pathlib.Path, shard: Shard) -> None:
  """Writes what `load_task` reads, so that nobody needs to be sent more than the key."""
  files.write_atomic(folder / f'{shard.key}.task', json.dumps(shard._asdict()))


def load_task(folder: pathlib.Path, key: str) -> Shard:
  """A shard that is to be made."""
  return Shard(**json.loads((folder / f'{key}.task').read_text()))
