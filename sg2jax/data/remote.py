"""Data sets in buckets: downloaded once a machine, then read from its disk.

array_record reads files of a disk, and images come in random order: of a bucket each would be a
request of its own. So every shard comes to $SG2JAX_CACHE/data/<hash>, as large as the data set,
file by file: a download that was killed goes on. The hash is of the names, sizes and checksums in
the bucket: where something changed there, the old copy isn't found any more.
"""

import base64
import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import tempfile

from absl import logging
from tqdm import tqdm

from sg2jax import files, paths
from sg2jax.addresses import Address, StoreError, transfer
from sg2jax.data import records
from sg2jax.faults import DatasetError

AT_ONCE = 4  # files on their way
PART = '.part-'  # how folders are called for what has not arrived yet


def local(place: Address) -> pathlib.Path:
  """The folder of this machine with all files of a data set, after they were downloaded.

  Raises: DatasetError: there is no data set, it can't be read, or the disk has no room for it.
  """
  try:
    found = place.listing()
    content = {name: entry for name, entry in found.items() if entry.get('type') == 'file'}
    if records.INFO not in content:
      raise DatasetError(
        f'{place}: no {records.INFO} there, so it is no data set; python -m sg2jax.tools.prepare '
        'makes one in a folder, which is to be copied there (gcloud storage cp -r, aws s3 sync)'
      )
    # ETag: where there is no MD5, it tells another object of the same name and size.
    marks = sorted(
      [name, entry['size'], _md5(entry) or str(entry.get('ETag', ''))]
      for name, entry in content.items()
    )
    key = hashlib.sha256(json.dumps(marks).encode()).hexdigest()[:32]
    folder = paths.cache() / 'data' / key
    with files.writing(folder), _alone(folder):
      _download(place, folder, content)
    return folder
  except StoreError as e:
    raise DatasetError(
      f'{place} can not be read: {files.reason(e)}; see to the permission and the connection'
    ) from e


def _download(place, folder, content):
  """Downloads what isn't in the folder yet."""
  missing = [
    name
    for name, entry in content.items()
    if not (folder / name).exists() or (folder / name).stat().st_size != entry['size']
  ]
  size = sum(content[name]['size'] for name in missing)
  if not missing:
    return
  free = files.free_bytes(folder)
  if free < size:
    raise DatasetError(
      f'{place}: {size:,} bytes are to be downloaded to {folder}, and {free:,} are free there; '
      f'make room, or name a folder on a larger disk: {paths.VARIABLE}=DIR'
    )
  logging.warning('%s: %s bytes are downloaded to %s, and stay there', place, f'{size:,}', folder)
  bar = tqdm(total=size, desc='data', unit='B', unit_scale=True, leave=False, disable=None)

  def fetch(name):
    return _fetch(place / name, folder / name, content[name])

  with bar:
    transfer(fetch, missing, AT_ONCE, bar.update)


def _fetch(source, target, entry):
  """Downloads a file, whole or not at all; its size."""
  with tempfile.TemporaryDirectory(prefix=PART, dir=target.parent) as scratch:
    part = pathlib.Path(scratch) / target.name
    for attempt in (1, 2):
      try:
        source.download(part)
      except StoreError as e:  # an OSError, as those of the disk are
        raise DatasetError(
          f'{source} can not be read: {files.reason(e)}; see to the permission and the connection'
        ) from e
      if part.stat().st_size == entry['size'] and _md5(entry) in ('', _md5_of(part)):
        os.replace(part, target)
        return entry['size']
      logging.warning('%s did not arrive whole, attempt %d', source, attempt)
  raise DatasetError(
    f'{source} did not arrive as the bucket says it is; try again, or copy it there again'
  )


def _md5(entry):
  """Hexadecimal MD5 of an object where its store says it, else ''."""
  return base64.b64decode(entry.get('md5Hash') or '').hex()


def _md5_of(file):
  with open(file, 'rb') as f:
    return hashlib.file_digest(f, 'md5').hexdigest()


@contextlib.contextmanager
def _alone(folder):
  """Makes the folder; other processes of this machine wait for the one that fills it.

  What one that was killed had not quite downloaded is deleted.
  """
  import fcntl  # here, because all else of this package can be imported on Windows, too

  folder.mkdir(parents=True, exist_ok=True)
  file = os.open(folder / '.lock', os.O_RDWR | os.O_CREAT, 0o666)
  try:
    with contextlib.suppress(OSError):  # without locks, it is downloaded more than once
      fcntl.flock(file, fcntl.LOCK_EX)
      for part in folder.rglob(f'{PART}*'):
        shutil.rmtree(part)
    yield
  finally:
    os.close(file)
