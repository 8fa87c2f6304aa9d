"""Where things are: paths and what is none, and the one folder for all that can be made again."""

import functools
import os
import pathlib
import re
import stat
import tempfile

from absl import logging

from sg2jax import faults

VARIABLE = 'SG2JAX_CACHE'
_ADDRESS = re.compile(  # also in NAME=ADDRESS; pathlib makes one slash of two
  r'(?:^|=)\s*(?:([A-Za-z][A-Za-z0-9+.-]*)://|(gs|s3|https?|hdfs|ftp|file):/)', re.IGNORECASE
)
_REMEDIES = {
  'gs': 'mount the bucket (gcsfuse) and give the path of its folder, or copy it to a disk',
  's3': 'mount the bucket (mount-s3, s3fs) and give the path of its folder, or copy it to a disk',
  'http': 'download it and give the path of the file',
  'https': 'download it and give the path of the file',
  'ftp': 'download it and give the path of the file',
  'file': 'give the path alone, without file://',
}


def check_local(text: object, said: str = '') -> None:
  """Raises UsageError if `text` is an address (gs://, https:// ...) or in an unknown home folder.

  Also if it is NAME=ADDRESS; what is no text passes. said: how it was given.
  """
  if not isinstance(text, (str, bytes, os.PathLike)):
    return
  text = os.fsdecode(text)
  if found := _ADDRESS.search(text):
    scheme = (found[1] or found[2]).lower()
    remedy = _REMEDIES.get(scheme, 'mount it as a folder and give its path, or copy it to a disk')
    raise faults.UsageError(
      f'{said or text}: only folders and files of this machine are read and written, no '
      f'{scheme}:// address; {remedy}'
    )
  if text.startswith('~') and os.path.expanduser(text) == text:
    raise faults.UsageError(
      f'{said or text}: the home folder {text.split("/")[0]} is unknown; give the whole path'
    )


def check_text(path: str | bytes | os.PathLike, said: str = '') -> None:
  """Raises UsageError if the whole path of a run has bytes that are no text.

  The library that reads and writes checkpoints can't do with such a one. said: how it was given.
  """
  # Python decodes such bytes to these code points, which no text has.
  if any('\ud800' <= char <= '\udfff' for char in os.path.abspath(os.fsdecode(path))):
    raise faults.UsageError(
      f'{said or path}: this path has bytes that are no UTF-8, as the library that reads and '
      'writes checkpoints needs; rename the folder'
    )


def cache() -> pathlib.Path:
  """The folder for what can be made or fetched again: $SG2JAX_CACHE or ~/.cache/sg2jax.

  The system's temporary one where there is no home folder, or it can't be written to.

  Raises:
    UsageError: the variable holds an address.
  """
  own = os.environ.get(VARIABLE)
  if own:
    check_local(own, f'{VARIABLE}={own}')
    return pathlib.Path(os.path.expanduser(own)).absolute()
  place = home_cache()
  return place if place and _writable(place) else _temporary()


def home_cache() -> pathlib.Path | None:
  """~/.cache/sg2jax; None for a user without home folder."""
  home = os.path.expanduser('~')  # leaves ~ as it is if nobody knows, and makes / of an empty $HOME
  known = os.path.isabs(home) and os.environ.get('HOME') != ''
  return pathlib.Path(home) / '.cache' / 'sg2jax' if known else None


def _writable(place):
  there = next(p for p in (place, *place.parents) if p.exists())
  return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


@functools.lru_cache
def _temporary():
  """A folder of this user alone: compiled code is read from it."""
  user = os.getuid() if hasattr(os, 'getuid') else None  # Windows has none
  place = pathlib.Path(tempfile.gettempdir()) / f'sg2jax-{"cache" if user is None else user}'
  try:
    place.mkdir(mode=0o700, exist_ok=True)
    # Anybody may have made it before, to have us run what they put there.
    found = place.lstat()
    is_own = user is None or found.st_uid == user
    if not stat.S_ISDIR(found.st_mode) or not is_own or found.st_mode & 0o022:
      raise OSError
  except OSError:
    place = pathlib.Path(tempfile.mkdtemp(prefix='sg2jax-'))  # for this process
  logging.warning(
    'no home folder that can be written to: what can be made again is kept in %s; %s=DIR names '
    'another place',
    place,
    VARIABLE,
  )
  return place
