"""Locks on files, which the system releases however a process ends: two runs never write to one
folder.
"""

import contextlib
import errno
import os
import platform

from absl import logging

from sg2jax import faults

_HELD = (errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES)
_told = set()  # file systems that have been warned of


class Held(Exception):
  """Another process holds the lock; `str()` says which."""


def module():
  """The module `fcntl`. Raises UsageError where the operating system has none."""
  try:
    import fcntl  # here, because all else of this package can be imported anywhere
  except ImportError:
    raise faults.UsageError(
      f'sg2jax runs on Linux or macOS only: {platform.system() or "this system"} has no fcntl'
    ) from None
  return fcntl


def acquire(path):
  """Holds the lock file at `path`, which is made if need be, until what is returned is closed.

  Where the file system has no locks (some network file systems and buckets), goes on without one
  after a warning.

  Returns:
    The open file; it says who holds it.

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
      if e.errno in _HELD:
        raise Held(owner or 'that did not say which it is') from None
      _warn(f, path, e, owner)
    f.seek(0)
    f.truncate()
    f.write(f'{os.getpid()} on {platform.node()}')
    f.flush()
  except BaseException:
    with contextlib.suppress(OSError):  # a full disk is reported once
      f.close()
    raise
  return f


@contextlib.contextmanager
def hold(path):
  """`acquire` for the time of a `with`."""
  with acquire(path) as f:
    yield f


def _warn(f, path, error, owner):
  """Once for each file system."""
  device = os.fstat(f.fileno()).st_dev
  if device not in _told:
    _told.add(device)
    before = f' (the last one was {owner})' if owner else ''
    logging.warning(
      '%s: this file system has no locks (%s); going on without. Nothing keeps a second process '
      'from writing there%s: start no other one on this folder',
      path,
      error.strerror or error,
      before,
    )
