"""Where things are: paths and what is none, and the one folder for all that can be made again."""

import functools
import os
import pathlib
import re
import tempfile

from absl import logging

from sg2jax import addresses, faults
from sg2jax.addresses import Address

VARIABLE = 'SG2JAX_CACHE'
_ADDRESS = re.compile(  # also in NAME=ADDRESS and in lists
  r'(?:^|[=,])\s*((?:' + addresses.PATTERN.pattern + '))', re.IGNORECASE
)
Path = pathlib.Path | Address


def place(text: str | os.PathLike | Address, said: str = '') -> Path:
  """What a text names: a path of this machine, or an Address. All of them are made here.

  Args:
    text: a path, SCHEME://... for what fsspec knows, or file:///PATH.
    said: how it was given, for errors.

  Raises:
    UsageError: an address that can't be used; the home folder is unknown.
  """
  if isinstance(text, Address):
    return text
  text = os.fsdecode(text)
  match = addresses.PATTERN.match(text)
  if not match:
    _check_home(text, said)
    return pathlib.Path(text).expanduser()
  if text.lower().startswith('file:///'):
    return pathlib.Path(text[7:])
  return addresses.parse(text, said)


def is_address(text: object) -> bool:
  """Whether it names a place elsewhere, as `place` takes it."""
  if not isinstance(text, (str, bytes, os.PathLike)):
    return isinstance(text, Address)
  return bool(addresses.PATTERN.match(os.fsdecode(text)))


def check_local(text: object, said: str = '') -> None:
  """Raises UsageError if `text` is an address (gs://, https:// ...) or in an unknown home folder.

  For what only a disk will do. Also if it is NAME=ADDRESS; what is no text passes. said: how it was
  given.
  """
  if isinstance(text, Address):
    text = str(text)
  if not isinstance(text, (str, bytes, os.PathLike)):
    return
  text = os.fsdecode(text)
  if found := _ADDRESS.search(text):
    raise faults.UsageError(
      f'{said or text}: this has to be a file or folder of this machine, no {found[1]} address; '
      'copy it (gcloud storage cp -r, aws s3 sync), or mount the bucket (gcsfuse, mount-s3), and '
      'give that path'
    )
  _check_home(text, said)


def _check_home(text, said):
  if text.startswith('~') and os.path.expanduser(text) == text:
    raise faults.UsageError(
      f'{said or text}: the home folder {text.split("/")[0]} is unknown; give the whole path'
    )


def check_name(path: str | os.PathLike | Address, said: str = '') -> None:
  """Raises UsageError if the whole path isn't UTF-8: Orbax keeps no checkpoints there."""
  if isinstance(path, Address):
    return
  place = os.path.abspath(path)
  try:
    os.fsencode(place).decode()
  except UnicodeDecodeError as e:
    raise faults.UsageError(
      f'{said or path}: checkpoints need a folder with a name in UTF-8, and {place!a} is none; '
      'rename it, or give another one'
    ) from e


def nearest(path: pathlib.Path) -> pathlib.Path:
  """An absolute path, or the nearest of the folders above it that is there."""
  return next(p for p in (path, *path.parents) if os.path.exists(p))


def cache() -> pathlib.Path:
  """The folder for what can be made or fetched again: $SG2JAX_CACHE or ~/.cache/sg2jax.

  One for this process where there is no home folder, or it can't be written to.

  Raises:
    UsageError: the variable holds an address.
  """
  own = os.environ.get(VARIABLE)
  if own:
    check_local(own, f'{VARIABLE}={own}')
    return pathlib.Path(os.path.expanduser(own)).absolute()
  place = home_cache()
  if place:
    there = nearest(place)
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
      return place
  return _temporary()


def home_cache() -> pathlib.Path | None:
  """~/.cache/sg2jax; None for a user without home folder."""
  if os.environ.get('HOME') == '':
    return None  # ~ would be the root of all folders
  place = pathlib.Path(os.path.expanduser('~/.cache/sg2jax'))
  return place if place.is_absolute() else None  # it leaves ~ as it is if nobody knows


@functools.lru_cache
def _temporary():
  # A new one, of this user alone: compiled code is read from it, and anybody may have made a folder
  # of a known name before, to have us run what they put there.
  place = pathlib.Path(tempfile.mkdtemp(prefix='sg2jax-'))
  logging.warning(
    'no home folder that can be written to: what can be made again is kept in %s, and looked for '
    'there by this process only; %s=DIR names a lasting place',
    place,
    VARIABLE,
  )
  return place
