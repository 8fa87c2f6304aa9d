"""Locks on folders, which the system releases however a process ends: no two runs write to one.

A bucket has none. There the lock is an object that its owner writes anew every BEAT seconds: one
that doesn't change for STALE seconds was left by a process that is gone. So nobody's clock has to
be right, and a run that lost its machine goes on elsewhere after a minute.
"""

from collections.abc import Iterator
import contextlib
import errno
import json
import os
import pathlib
import platform
import threading
import time
import uuid

from absl import logging

from sg2jax import faults, files, paths, peers
from sg2jax.addresses import Address

BEAT = 10  # seconds
STALE = 45
SETTLE = 3  # longer than from a look at an object to its deletion, unless requests fail just then


@contextlib.contextmanager
def locked(folder: paths.Path, flag: str = 'workdir') -> Iterator[None]:
  """Makes a folder and holds it for this process, which `.lock` in it names.

  Where the file system has no locks (some network file systems and buckets), goes on without one
  after a warning.

  Raises:
    UsageError: another process holds it, or the operating system has no locks; `flag` is how the
      user named the folder.
    WriteError: it can't be written.
  """
  if isinstance(folder, Address):
    with _held(folder, flag):
      yield
    return
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


# ---- in a bucket


@contextlib.contextmanager
def _held(folder, flag):
  """`locked` of an address."""
  place = folder / '.lock'
  lock = {'owner': f'{os.getpid()} on {platform.node()}', 'id': uuid.uuid4().hex} | _process()
  if not place.decides_who_is_first:
    logging.warning(
      '%s: this store does not say who was first: start no two processes there at the same moment',
      folder,
    )
  with files.writing(folder):
    _acquire(place, lock, f'--{flag}={folder}')
  is_over = threading.Event()
  beating = threading.Thread(target=_beat, args=(place, lock, is_over), daemon=True)
  beating.start()
  try:
    yield
  finally:
    is_over.set()
    beating.join()
    with contextlib.suppress(OSError):  # it goes stale by itself
      if _read(place).get('id') == lock['id']:
        place.unlink(missing_ok=True)


def _acquire(place, lock, said):
  """Writes the lock. Raises UsageError if it has an owner who is alive, OSError."""
  data = json.dumps(lock | {'beat': 0}).encode()
  takes_over = False
  while True:
    with contextlib.suppress(FileExistsError):
      place.write_bytes(data, is_new=True)
    if takes_over or not place.decides_who_is_first:
      # By then another that came at the same moment has written its own in place of this one.
      time.sleep(SETTLE)
    before = _read(place)
    # Looked at, and not what the store answered: that may have been lost, and not all stores can
    # decide which of two was first.
    if before.get('id') == lock['id']:
      return
    if before and not _is_gone(before):
      logging.warning(
        '%s: a process held it, %s; waiting up to %d s to see whether it is alive',
        said,
        _owner(before),
        STALE,
      )
      end = time.monotonic() + STALE
      while (now := _read(place)) == before and time.monotonic() < end:
        time.sleep(min(1, STALE / 10))
      if now and now != before:
        raise faults.UsageError(
          f'{said} is in use by process {_owner(now)}; use another, or stop that one'
        )
    # The one that was looked at, and not that of another process that takes over.
    if _read(place) == before:
      place.unlink(missing_ok=True)
    takes_over = True


def _beat(place, lock, is_over):
  """In a thread: shows that this process is alive; ends it if another has taken its place."""
  beat = 0
  while not is_over.wait(BEAT):
    beat += 1
    try:
      there = _read(place)
      if there.get('id', lock['id']) != lock['id']:
        _end(
          f'{place}: process {_owner(there)} took this workdir over, as this one was not heard of '
          f'for {STALE} s; this one ends and leaves it to that'
        )
      place.write_bytes(json.dumps(lock | {'beat': beat}).encode())
    except OSError as e:
      logging.warning('%s: can not be kept for now: %s', place, files.reason(e))


def _end(text):
  """Ends the process now: whatever it still saved would be written between another's files."""
  code = faults.UsageError.code
  os.write(2, f'{text}\n'.encode())
  peers.part(code, is_alone=True)
  os._exit(code)


def _read(place):
  """What a lock says; {} if there is none."""
  try:
    found = json.loads(place.read_bytes())
    return found if isinstance(found, dict) else {'owner': 'unknown'}
  except FileNotFoundError:
    return {}
  except ValueError:
    return {'owner': 'unknown'}


def _owner(lock):
  return lock.get('owner', 'unknown')


def _process():
  """Which process this is, for others on the same machine; {} where there is no /proc."""
  with contextlib.suppress(OSError):
    boot = pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
    # Containers on a machine have numbers of their own.
    space = os.stat('/proc/self/ns/pid').st_ino
    return {'machine': f'{boot} {space}', 'process': os.getpid()}
  return {}


def _is_gone(lock):
  """Whether its owner was on this machine, and is no more: then there is nothing to wait for."""
  here = _process().get('machine')
  return here and lock.get('machine') == here and not os.path.exists(f'/proc/{lock["process"]}')
