"""Passes over images: what a detector makes of many reals or fakes, batch by batch.

Features of 50,000 images may be more than the memory, so they lie in files: of fakes in ones
without a name, which are gone however the process ends; of reals in the cache, where the next
evaluation finds them. A file there is called

  reals/<key>-<SHA-256 of its bytes>.npy    features, one row an image
  reals/<key>-<SHA-256 of its bytes>.npz    their Moments, where nothing else is wanted

The key is a hash of all that they depend on (content of the data set, weights of the detector,
which images), so nothing is ever found by a directory's name, and a file that isn't what it says is
computed anew. Several processes share the images; each keeps what all have found.
"""

from collections.abc import Callable, Iterable, Iterator
import contextlib
import hashlib
import json
import tempfile
from typing import Any, NamedTuple
import uuid

from absl import logging
import jax
import numpy as np
from tqdm import tqdm

from sg2jax import files, paths, processes
from sg2jax.evaluation.scores import Moments, moments

FORMAT = 4  # of the files; part of the key, so that files of another format are never opened


class Stopped(Exception):
  """A signal came. The same call goes on with the results that were there by then."""


class Pass(NamedTuple):
  """What is to be computed of `total` images."""

  label: str  # of its progress bar
  total: int
  # (first, n, size) -> {output: array [n,...]}; called in order by every process, with a size >= n
  # that is the same each time
  compute: Callable[[int, int, int], dict]
  about: dict = {}  # of reals, all that the outputs depend on, as JSON values

  @property
  def key(self) -> str:
    """The name of its output in the cache."""
    text = json.dumps([FORMAT, self.about], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def run(job: Pass, batch: int, stop: Any = ()) -> Iterator[dict[str, np.ndarray]]:
  """Yields the outputs of each batch of a Pass.

  Args:
    job: the pass.
    batch: images at once, over all devices; shows in the result by float32 rounding only.
    stop: true after a signal.

  Raises: Stopped.
  """
  batch = min(batch, job.total)
  starts = range(0, job.total, batch)
  waiting = None  # what the devices compute while the host keeps the batch before
  for first in tqdm(starts, job.label, unit=' images', unit_scale=batch, leave=False, disable=None):
    if processes.heard(stop):
      # A process that left before would take its part of this batch with it.
      jax.block_until_ready(waiting)
      raise Stopped
    coming = job.compute(first, min(batch, job.total - first), batch)
    if waiting is not None:
      yield jax.device_get(waiting)
    waiting = coming
  yield jax.device_get(waiting)


def rows(batches: Iterable[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
  """Outputs {name: [n,...]} of batches -> {name: [N,...]}, read-only memory maps.

  Raises: WriteError.
  """
  folder = paths.cache()
  found = {}
  for outputs in batches:
    for name, x in outputs.items():
      with files.writing(folder):
        if name not in found:
          folder.mkdir(parents=True, exist_ok=True)
          found[name] = tempfile.TemporaryFile(dir=folder), x
        file = found[name][0]
        # Not `x.tofile`, which says nothing of a disk without room.
        file.write(x.tobytes())
        file.flush()
  return {
    name: np.memmap(file, x.dtype, 'r').reshape(-1, *x.shape[1:])
    for name, (file, x) in found.items()
  }


# ---- what stays in the cache


def cached(job: Pass, only_moments: bool, batch: int, stop: Any = ()) -> np.ndarray | Moments:
  """The output of a Pass that has one: out of the cache, or computed and left there.

  Args:
    job: the pass.
    only_moments: whether mean and covariance are all that is wanted.
    batch: as of `run`.
    stop: as of `run`.

  Returns:
    features [total,...], a read-only memory map, or Moments.

  Raises: Stopped; WriteError.
  """
  found = _read(job.key)
  if processes.everywhere(found is not None):
    return found
  batches = run(job, batch, stop)
  if only_moments:
    found = moments(x for outputs in batches for x in outputs.values())
  else:
    (found,) = rows(batches).values()
  _write(job.key, found)
  return found


def _read(name):
  for path in (paths.cache() / 'reals').glob(f'{name}-*'):
    # Another process may find that it is damaged, too, and delete it first.
    with contextlib.suppress(FileNotFoundError):
      if files.sha256(path) != path.stem.removeprefix(f'{name}-'):
        logging.warning('%s is damaged; it is deleted and computed anew', path)
        with contextlib.suppress(OSError):  # where nothing can be deleted, it is only not used
          path.unlink()
      elif path.suffix == '.npy':
        return np.load(path, mmap_mode='r')
      else:
        with np.load(path) as sums:
          return Moments(**sums)
  return None


def _write(name, found):
  folder = paths.cache() / 'reals'
  # A name of its own: other processes, and other machines, may be at the same.
  part = folder / f'.{uuid.uuid4().hex}'
  with files.writing(part):
    folder.mkdir(parents=True, exist_ok=True)
    try:
      with open(part, 'wb') as file:
        if isinstance(found, Moments):
          np.savez(file, **found._asdict())
        else:
          # Not `np.save`, which says nothing of a disk without room.
          header = np.lib.format.header_data_from_array_1_0(found)
          np.lib.format.write_array_header_1_0(file, header)
          file.write(found)
      # Nothing is synced: what a crash of the machine tears has another hash.
      ending = 'npz' if isinstance(found, Moments) else 'npy'
      part.rename(folder / f'{name}-{files.sha256(part)}.{ending}')
    finally:
      part.unlink(missing_ok=True)
