"""Locks on folders, which the system releases however a process ends: no two runs write to one."""

from collections.abc import Iterator
import contextlib
import errno
import os
import pathlib
import platform
from types import ModuleType
from typing import IO

from absl import logging

from sg2jax import faults, files

_warned = set()  # file systems without locks, each of which is named once


class Held(Exception):
  """Another process holds the lock; `str()` says which."""


def module() -> ModuleType:
  """The module `fcntl`. Raises UsageError where the operating system has none."""
  try:
    import fcntl  # here, because all else of this package can be imported anywhere
  except ImportError:
    raise faults.UsageError(
      f'sg2jax runs on Linux or macOS only: {platform.system() or "this system"} has no fcntl'
    ) from None
  return fcntl


def acquire(path: str | os.PathLike) -> IO[str]:
  """Holds the lock file at `path`, made if need be, until the open file that is returned is closed.

  The file says who holds it. Where the file system has no locks (some network file systems and
  buckets), goes on without one after a warning.

  Raises:
    Held: another process has it.
    UsageError: the operating system has no such locks.
    OSError: the file can't be written.
  """
  fcntl = module()
  f = open(path, 'a+', encoding='utf-8', errors='replace')
  try:
    try:
      fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
      f.seek(0)
      owner = f.read(200).strip()
      if e.errno in (errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES):
        raise Held(owner or 'that did not say which it is') from None
      _warn(f, e, owner)
    f.seek(0)
    f.truncate()
    f.write(f'{os.getpid()} on {platform.node()}')
    f.flush()
  except BaseException:
    with contextlib.suppress(OSError):  # of a full disk, which is reported by then
      f.close()
    raise
  return f


@contextlib.contextmanager
def locked(folder: pathlib.Path, flag: str = 'workdir') -> Iterator[None]:
  """Makes a folder and holds it for this process.

  Raises:
    UsageError: another process holds it; `flag` is how the user named the folder.
    WriteError: it can't be written.
  """
  with files.writing(folder):
    folder.mkdir(parents=True, exist_ok=True)
    try:
      lock = acquire(folder / '.lock')
    except Held as e:
      raise faults.UsageError(
        f'--{flag}={folder} is in use by process {e}; use another, or stop that one'
      ) from None
  with lock:
    yield


def _warn(f, error, owner):
  """Says once for each file system that it has no locks."""
  device = os.fstat(f.fileno()).st_dev
  if device in _warned:
    return
  _warned.add(device)
  before = f' (the last one was {owner})' if owner else ''
  logging.warning(
    '%s: this file system has no locks (%s); going on without. Nothing keeps a second process '
    'from writing there%s: start no other one on this folder',
    f.name,
    error.strerror or error,
    before,
  )
