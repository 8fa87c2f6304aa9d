"""Locks on folders, which the system releases however a process ends: no two runs write to one."""

from collections.abc import Iterator
import contextlib
import errno
import os
import pathlib
import platform

from absl import logging

from sg2jax import faults, files


@contextlib.contextmanager
def locked(folder: pathlib.Path, flag: str = 'workdir') -> Iterator[None]:
  """Makes a folder and holds it for this process, which `.lock` in it names.

  Where the file system has no locks (some network file systems and buckets), goes on without one
  after a warning.

  Raises:
    UsageError: another process holds it, or the operating system has no locks; `flag` is how the
      user named the folder.
    WriteError: it can't be written.
  """
  try:
    import fcntl  # here, because all else of this package can be imported on Windows, too
  except ImportError:
    raise faults.UsageError('sg2jax runs on Linux or macOS only: there is no fcntl') from None
  with contextlib.ExitStack() as stack:
    with files.writing(folder):
      folder.mkdir(parents=True, exist_ok=True)
      file = os.open(folder / '.lock', os.O_RDWR | os.O_CREAT, 0o666)
      stack.callback(os.close, file)
      owner = os.read(file, 200).decode(errors='replace')
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except OSError as e:
        if e.errno in (errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES):
          raise faults.UsageError(
            f'--{flag}={folder} is in use by process {owner}; use another, or stop that one'
          ) from None
        logging.warning(
          '%s: this file system has no locks (%s); going on without: start no second process on '
          'this folder',
          folder,
          e.strerror,
        )
      os.ftruncate(file, 0)
      os.pwrite(file, f'{os.getpid()} on {platform.node()}'.encode(), 0)
    yield
