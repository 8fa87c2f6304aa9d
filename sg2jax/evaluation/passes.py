"""Passes over images: what a detector makes of many reals or fakes, computed whole and then kept.

A pass is a folder `<root>/<key>`. The key is a hash of all that the pass depends on (content of the
data set or weights of the generator, weights of the detector, which images, the seed), so nothing
is ever found by a directory's name. The folder holds

  <output>.npy    features, one row an image
  <output>.npz    their mean and covariance, where nothing else is wanted
  about.json      what the pass is, and the SHA-256 of its files

It is written as `<key>.part` and renamed when it is whole: a process that is stopped or killed
loses the pass that it was computing, and no other. A folder that isn't what it says is set aside
with a warning and computed anew. Of several processes all compute, the first one writes.
"""

from collections.abc import Callable, Iterator
import contextlib
import errno
import hashlib
import json
import os
import pathlib
import shutil
import sys
import time
from typing import Any, NamedTuple

from absl import logging
import jax
from jax.experimental import multihost_utils
import numpy as np
import tqdm

from sg2jax import files, locks
from sg2jax.evaluation.scores import Moments

FORMAT = 3  # of the files; part of the key, so that passes of another format are never opened


class Stopped(Exception):
  """A signal came. The same call goes on with the passes that were whole by then."""


class Pass(NamedTuple):
  """What is to be computed of `total` images."""

  about: dict  # all that the result depends on, as JSON values
  total: int
  # (first, n, size) -> {output: array [n,...]}; called in order by every process, with a size >= n
  # that is the same each time
  compute: Callable[[int, int, int], dict]
  moments: tuple[str, ...] = ()  # outputs of which only mean and covariance are kept

  @property
  def key(self) -> str:
    """Name of its folder."""
    text = json.dumps([FORMAT, self.about], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def run(
  job: Pass, root: str | os.PathLike, batch: int, stop: Any = (), label: str = ''
) -> dict[str, Any] | None:
  """The outputs of a Pass: read if `root` has it, else computed and written there.

  Args:
    job: the pass.
    root: folder of passes.
    batch: images at once, over all devices; shows in the result by float32 rounding only.
    stop: true after a signal.
    label: of the progress bar.

  Returns:
    {output: features [total,...], a read-only memory map, or Moments}. It outlives the folder. None
    on processes but the first.

  Raises: Stopped; WriteError.
  """
  folder = pathlib.Path(root) / job.key
  outputs = None
  with contextlib.ExitStack() as stack:
    if jax.process_index() == 0:
      stack.enter_context(hold(folder.with_name(f'{job.key}.lock'), folder, stop))
      outputs = _read(folder, job.about)
    if not agree(outputs is not None):
      batches = _compute(job, batch, stop, label)
      if jax.process_index() == 0:
        _write(folder, job, batches)
        outputs = _read(folder, job.about)
      else:
        for _ in batches:
          pass
  return outputs


@contextlib.contextmanager
def hold(lock: pathlib.Path, folder: pathlib.Path, stop: Any) -> Iterator[None]:
  """Holds a lock file for the time of a `with`; waits for another process that has it.

  Raises: Stopped: `stop` became true while waiting; WriteError.
  """
  told = False
  while True:
    try:
      with files.writing(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = locks.acquire(lock)
      break
    except locks.Held as e:
      if stop:
        raise Stopped from None
      if not told:
        print(f'waiting for another process that computes {folder}: {e}', file=sys.stderr)
      told = True
      time.sleep(0.5)
  with file:
    yield


# ---- several processes


def agree(values: Any) -> Any:
  """What the first process says, on all of them."""
  return multihost_utils.broadcast_one_to_all(values) if jax.process_count() > 1 else values


def heard(stop: Any) -> bool:
  """Whether a signal came to any process: the same answer on all, which then have it in `stop`."""
  if jax.process_count() == 1:
    return bool(stop)
  here = np.int32(getattr(stop, 'signal', None) or 0)
  number = int(multihost_utils.process_allgather(here).max())
  if number and not stop:
    stop.signal = number
  return bool(number)


# ---- computing, writing, reading


def _compute(job, batch, stop, label):
  """Yields the outputs of each batch; the host keeps one while the devices compute the next."""
  batch = min(batch, job.total)
  # In a log file, a line a minute.
  every = {} if sys.stderr.isatty() else {'delay': 60, 'mininterval': 60}
  other = jax.process_index() > 0
  waiting = None
  with tqdm.tqdm(
    total=job.total, desc=label, unit='img', disable=other, leave=False, **every
  ) as bar:
    for first in [*range(0, job.total, batch), None]:
      stopped = heard(stop)
      coming = None
      if first is not None and not stopped:
        coming = job.compute(first, min(batch, job.total - first), batch)
      if waiting is not None:
        # A process that left before would take its part of this batch with it.
        jax.block_until_ready(waiting)
        if not stopped:
          yield waiting
          bar.update(len(next(iter(waiting.values()))))
      if stopped:
        raise Stopped
      waiting = coming


def _write(folder, job, batches):
  part = folder.with_name(f'{folder.name}.part')
  shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
  rows = {}
  moments = {}
  try:
    with contextlib.ExitStack() as stack:
      with files.writing(part):
        part.mkdir(parents=True)
      for outputs in batches:
        for name, x in jax.device_get(outputs).items():
          if name in job.moments:
            moments.setdefault(name, Moments(x.shape[1])).add(x)
            continue
          with files.writing(part / f'{name}.npy'):
            if name not in rows:
              rows[name] = stack.enter_context(_new_rows(part / f'{name}.npy', job.total, x))
            _append(rows[name], x)
    with files.writing(part):
      for name, sums in moments.items():
        np.savez(part / f'{name}.npz', **sums.state())
      digests = {path.name: files.sha256(path) for path in sorted(part.iterdir())}
      about = {'format': FORMAT, 'about': job.about, 'files': digests}
      (part / 'about.json').write_text(json.dumps(about, indent=1))
      # Nothing is synced: what a crash of the machine tears is found by its digest.
      part.rename(folder)
  finally:
    shutil.rmtree(part, ignore_errors=True)


def _new_rows(path, total, x):
  """An .npy file for `total` rows like those of x, open where the first one goes.

  Raises: OSError if there is no room for all of them: better now than after hours.
  """
  shape = (total, *x.shape[1:])
  if files.free_bytes(path) < total * x[0].nbytes:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
  # Unbuffered: a buffer that finds no room raises when it is closed, where nothing expects it.
  file = open(path, 'wb', buffering=0)
  header = {'descr': np.lib.format.dtype_to_descr(x.dtype), 'fortran_order': False, 'shape': shape}
  np.lib.format.write_array_header_1_0(file, header)
  return file


def _append(file, x):
  left = memoryview(x.tobytes())
  while left:
    left = left[file.write(left) :]


def _read(folder, about):
  """The outputs in a folder; None if there are none, or if they were damaged and now lie aside."""
  if not folder.exists():
    return None
  try:
    stored = json.loads((folder / 'about.json').read_text())
    if stored['about'] != about:
      raise ValueError('it is of other images or of another detector')
    outputs = {}
    for name, digest in stored['files'].items():
      path = folder / name
      if files.sha256(path) != digest:
        raise ValueError(f'{name} is damaged')
      if path.suffix == '.npy':
        outputs[path.stem] = np.load(path, mmap_mode='r')
      else:
        with np.load(path) as sums:
          outputs[path.stem] = Moments.restore(sums)
    return outputs
  except Exception as e:  # json and numpy raise nearly anything on damaged files
    aside = folder.with_name(f'{folder.name}.damaged-{time.time_ns()}')
    folder.rename(aside)
    logging.warning(
      '%s: %s; set aside as %s and computed anew', folder, str(e) or type(e).__name__, aside.name
    )
    return None
