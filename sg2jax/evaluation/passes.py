"""Passes over images: what a detector makes of many reals or fakes, on disk, resumable, and sealed
when it is whole.

A pass is a folder `<root>/<key>`, the key a hash of all that it depends on: content of the data set
or weights of the generator, weights of the detector, which images, the seed. So nothing is ever
found by a directory's name. It holds
  <output>.npy    features, one row an image, written as they come        state.npz    how far it
  is, and running sums about.json      what it is, and the SHA-256 of its files: written last, so a
  pass with it is whole, or was damaged later
A folder that isn't what it says is set aside with a warning and made anew. Of several processes all
compute, one writes.
"""

from collections.abc import Callable
import contextlib
import errno
import hashlib
import json
import os
import pathlib
import shutil
import sys
import time
from typing import NamedTuple

from absl import logging
import jax
from jax.experimental import multihost_utils
import numpy as np
import tqdm

from sg2jax import files, locks
from sg2jax.evaluation.scores import Moments

# of what is computed, too: 2 is in full precision on every platform, with keys of its own
FORMAT = 2
SAVE_SECONDS = 20
_ZEROS = bytes(2**20)


class Stopped(Exception):
  """A signal came; what was done so far is on disk, and the same pass goes on from there."""


class Pass(NamedTuple):
  """What is to be computed of `total` images.

  about: all that the result depends on, JSON values; compute: (first, n, size) -> {output: array
  [n,...]}, called in order by every process, size >= n being the same each time; moments: the
  outputs of which only mean and covariance are kept.
  """

  about: dict
  total: int
  compute: Callable
  moments: tuple = ()

  @property
  def key(self):
    """Name of its folder."""
    return hashlib.sha256(json.dumps([FORMAT, self.about], sort_keys=True).encode()).hexdigest()[
      :32
    ]


class Result:
  """A whole pass. rows(output): features [total,...], a read-only memory map; moments(output): a
  scores.Moments.
  """

  def __init__(self, folder):
    self._folder = folder

  def rows(self, output):
    """See the class."""
    return np.load(self._folder / f'{output}.npy', mmap_mode='r')

  def moments(self, output):
    """See the class."""
    return Moments.restore(_state(self._folder)[1][output])


def run(job, root, batch, stop=(), label='', held=None):
  """The Result of a Pass, from `root` if it is there, or else computed, going on where an earlier
  process was stopped.

  batch: images at once, over all devices; the result doesn't depend on it but for float32 rounding;
  stop: true after a signal;
  label: of the progress bar; held: an ExitStack that goes on holding the pass. Processes but the
  first return None.

  Raises: Stopped; WriteError.
  """
  folder, writes = pathlib.Path(root) / job.key, jax.process_index() == 0
  with contextlib.ExitStack() as stack:
    done, whole, keeper = 0, False, None
    if writes:
      (held or stack).enter_context(_locked(folder, stop))
      with files.writing(folder):
        _check(folder, job.about)
        whole = (folder / 'about.json').exists()
      keeper = None if whole else _Keeper(job, folder)
      done = keeper.done if keeper else job.total
    done, whole = map(int, agree((done, whole)))
    if not whole:
      # seconds, in a log file
      every = {} if sys.stderr.isatty() else {'delay': 60, 'mininterval': 60}
      _fill(
        job,
        keeper,
        batch,
        stop,
        done,
        stack.enter_context(
          tqdm.tqdm(
            total=job.total,
            initial=done,
            desc=label,
            unit='img',
            disable=not writes,
            leave=False,
            **every,
          )
        ),
      )
  return Result(folder) if writes else None


def remove(root, keys):
  """Deletes passes that this process holds."""
  for key in keys:
    shutil.rmtree(pathlib.Path(root) / key, ignore_errors=True)
    pathlib.Path(root, f'{key}.lock').unlink(missing_ok=True)
  with contextlib.suppress(OSError):  # others are in there
    pathlib.Path(root).rmdir()


def agree(values):
  """What the first process says, on all of them."""
  return multihost_utils.broadcast_one_to_all(values) if jax.process_count() > 1 else values


def heard(stop):
  """Whether a signal had come to any process, the same answer on all of them; then all have it in
  `stop`.
  """
  if jax.process_count() == 1:
    return bool(stop)
  number = int(
    multihost_utils.process_allgather(np.int32(getattr(stop, 'signal', None) or 0)).max()
  )
  if number and not stop:
    stop.signal = number
  return bool(number)


def _fill(job, keeper, batch, stop, done, bar):
  """Computes from image `done` on; the host keeps one batch while the devices compute the next."""
  saved, waiting, batch = time.monotonic(), None, min(batch, job.total)
  for first in [*range(done, job.total, batch), None]:
    stopped = heard(stop)
    coming = (
      None if first is None or stopped else job.compute(first, min(batch, job.total - first), batch)
    )
    if waiting is not None:
      jax.block_until_ready(waiting)  # a process that left before would take its part of it with it
      bar.update(keeper.add(waiting) if keeper else 0)
    waiting = coming
    if keeper and (stopped or first is None or time.monotonic() > saved + SAVE_SECONDS):
      keeper.save()
      saved = time.monotonic()
    if stopped:
      raise Stopped
  if keeper:
    keeper.seal()


class _Keeper:
  """The files of a pass in the making."""

  def __init__(self, job, folder):
    self._job, self._folder, self._files = job, folder, {}
    self.done, sums = _state(folder)
    self._moments = {name: Moments.restore(state) for name, state in sums.items()}

  def add(self, outputs):
    """Takes the next rows; returns how many."""
    for name, x in outputs.items():
      x = np.asarray(x)
      if name in self._job.moments:
        self._moments.setdefault(name, Moments(x.shape[1])).add(x)
        continue
      if name not in self._files:
        path, shape = self._folder / f'{name}.npy', (self._job.total, *x.shape[1:])
        with files.writing(path):
          if not self.done:
            new = np.lib.format.open_memmap(path, 'w+', x.dtype, shape)
            # room for all of it: a map that finds none kills the process
            with open(path, 'r+b') as f:
              _reserve(f, new.offset, new.offset + new.nbytes)
          self._files[name] = np.lib.format.open_memmap(path, 'r+')
      self._files[name][self.done : self.done + len(x)] = x
    self.done += len(x)
    return len(x)

  def save(self):
    """Everything up to here is on disk after it."""
    sums = {
      f'{name}/{field}': x
      for name, moments in self._moments.items()
      for field, x in moments.state().items()
    }
    new = self._folder / '.state.npz'
    with files.writing(self._folder):
      for file in self._files.values():
        file.flush()
      np.savez(new, done=self.done, rows=sorted(p.name for p in self._folder.glob('*.npy')), **sums)
      new.replace(self._folder / 'state.npz')

  def seal(self):
    """Says what the folder holds."""
    self._files.clear()
    digests = {p.name: files.sha256(p) for p in sorted(self._folder.glob('[!.]*.np?'))}
    files.write_atomic(
      self._folder / 'about.json',
      json.dumps({'format': FORMAT, 'about': self._job.about, 'files': digests}, indent=1),
    )


def _state(folder):
  """(images done, {output: state of its Moments}) of a pass that was begun; (0, {}) of one that
  wasn't.
  """
  if not (folder / 'state.npz').exists():
    return 0, {}
  sums = {}
  with np.load(folder / 'state.npz') as data:
    for name in data.files:
      if '/' in name:
        output, _, field = name.rpartition('/')
        sums.setdefault(output, {})[field] = data[name]
    return int(data['done']), sums


def _check(folder, about):
  """Sets aside a folder whose content isn't what it says, or isn't this pass."""
  try:
    if (folder / 'about.json').exists():
      sealed = json.loads((folder / 'about.json').read_text())
      if sealed['format'] != FORMAT or sealed['about'] != about:
        raise ValueError('it is of other images, another detector or another format')
      for name, digest in sealed['files'].items():
        if not (folder / name).exists() or files.sha256(folder / name) != digest:
          raise ValueError(f'{name} is missing or damaged')
    elif (folder / 'state.npz').exists():
      _state(folder)
      with np.load(folder / 'state.npz') as data:
        for name in data['rows']:
          np.load(folder / name, mmap_mode='r')  # raises if it is missing or was cut off
  except Exception as e:  # numpy and zipfile raise nearly anything on damaged files
    aside = folder.with_name(f'{folder.name}.damaged-{time.time_ns()}')
    folder.rename(aside)
    folder.mkdir()
    logging.warning(
      '%s: %s; set aside as %s and computed anew', folder, str(e) or type(e).__name__, aside.name
    )


@contextlib.contextmanager
def _locked(folder, stop):
  """Makes the folder and holds it; another process on it is waited for until `stop` is true: then
  Stopped is raised.
  """
  path, said = folder.with_name(folder.name + '.lock'), False
  while True:
    try:
      with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        f = locks.acquire(path)
      if path.exists() and path.stat().st_ino == os.fstat(f.fileno()).st_ino and folder.is_dir():
        break
      f.close()  # and again: it was removed by the one who had it
    except locks.Held as e:
      if stop:
        raise Stopped from None
      if not said:
        print(f'waiting for another process that computes {folder}: {e}', file=sys.stderr)
      said = True
      time.sleep(0.5)
  with f:
    yield


def _reserve(f, first, end):
  """Makes sure that a file of `end` bytes, zeros from `first` on, has its room on disk. Raises
  OSError if there is none.
  """
  if hasattr(os, 'posix_fallocate'):  # macOS hasn't
    try:
      os.posix_fallocate(f.fileno(), 0, end)
      return
    except OSError as e:
      # the file system can't, which isn't a full disk
      if e.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
        raise
  f.seek(first)
  for i in range(first, end, len(_ZEROS)):
    f.write(_ZEROS[: end - i])
  f.flush()
  os.fsync(f.fileno())  # some file systems find out only then
