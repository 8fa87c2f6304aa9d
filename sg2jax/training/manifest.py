"""The manifest of a checkpoint: what its directory holds, byte for byte.

JSON with size and SHA-256 of every file, names, shapes and dtypes of the leaves, and a SHA-256 of
itself. It is written last, so a directory without one isn't a checkpoint.
"""

import hashlib
import json
import os
import pathlib
import re
from typing import Any

from sg2jax import files
from sg2jax.faults import CheckpointError

# Older ones lack some of state.LATER_FIELDS. 1: version 0.1, whose random numbers came from other
# keys. 2: up to 0.6, which drew whether a picture is mirrored.
FORMAT = 3


class Damaged(Exception):
  """Why a directory is not a whole checkpoint; names the file."""


def seal(step: pathlib.Path, manifest: dict[str, Any]) -> None:
  """Syncs the files under `step` and writes their manifest; equal states get equal bytes."""
  # Orbax puts times and the path that it wrote to in these two.
  times = step / 'state' / '_CHECKPOINT_METADATA'
  times.write_text(re.sub(r'(_timestamp_nsecs": )\d+', r'\g<1>0', times.read_text()))
  (step / 'state' / 'commit_success.txt').write_text('Checkpoint commit was successful\n')
  digests = {}
  for path in sorted(step.rglob('*')):
    fsync(path)
    if path.is_file():
      digests[str(path.relative_to(step))] = [path.stat().st_size, files.sha256(path)]
  path = step / 'manifest.json'
  path.write_text(encode(manifest | {'files': digests}))
  fsync(path)
  fsync(step)


def verify(step: pathlib.Path) -> dict[str, Any]:
  """The manifest of a whole checkpoint. Raises Damaged for the first file that isn't as written."""
  manifest = read_manifest(step)
  for name, (size, sha256) in manifest['files'].items():
    path = step / name
    try:
      if (there := path.stat().st_size) != size:
        raise Damaged(f'{path} has {there} bytes instead of {size}')
      if files.sha256(path) != sha256:
        raise Damaged(f'{path} is not what was written (SHA-256 differs)')
    except OSError as e:
      raise Damaged(f'{path}: {e.strerror}') from e
  return manifest


def read_manifest(step: pathlib.Path) -> dict[str, Any]:
  """The manifest of a checkpoint, whose other files aren't looked at.

  Raises:
    Damaged: it is missing, or a byte of it changed.
    CheckpointError: it is from the future.
  """
  path = step / 'manifest.json'
  try:
    text = path.read_bytes().decode()
    manifest = json.loads(text)
    del manifest['sha256']
  except OSError as e:
    raise Damaged(f'{path}: {e.strerror}') from e
  except (ValueError, KeyError, TypeError) as e:
    raise Damaged(f'{path} is not a manifest') from e
  if encode(manifest) != text:
    raise Damaged(f'{path} is not what was written (SHA-256 differs)')
  for name in manifest['files']:
    # A stranger's manifest must not name files elsewhere: from a bucket they are downloaded.
    if name.startswith('/') or '..' in name.split('/'):
      raise Damaged(f'{path} names {name!r}, a file that is not in it')
  if manifest['format'] > FORMAT:
    raise CheckpointError(
      f'{step} has checkpoint format {manifest["format"]}; this code reads '
      f'formats up to {FORMAT}: update sg2jax'
    )
  return manifest


def encode(manifest: dict[str, Any]) -> str:
  """The text of a manifest, with the digest of itself."""
  digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
  return json.dumps(manifest | {'sha256': digest}, sort_keys=True, indent=1) + '\n'


def fsync(path: pathlib.Path) -> None:
  """Waits until a file, or the names in a folder, are on the disk."""
  fd = os.open(path, os.O_RDONLY)
  try:
    os.fsync(fd)
  finally:
    os.close(fd)
