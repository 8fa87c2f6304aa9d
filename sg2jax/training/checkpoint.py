"""Save, restore the latest whole checkpoint, read weights: orbax items sealed by a manifest.

A checkpoint is WORKDIR/checkpoints/<step>/ with `state/`, an orbax PyTree item, and manifest.json.
Leaves are stored as host arrays, one uncompressed file each: equal states are equal bytes, on any
number of devices. It is built as <step>.tmp and renamed once the manifest is on disk, so a
directory named by a number is whole, or was damaged later. In a bucket it is put object by object,
the manifest last (shelves.py).

Of several processes the first one alone reads and writes; what it read it hands to the others.
"""

from collections.abc import Iterator
from concurrent import futures
import contextlib
import errno
import json
import math
import os
import pathlib
from typing import Any

from absl import logging
import jax
import numpy as np

from sg2jax import bundle, paths, processes
from sg2jax import state as state_lib
from sg2jax.faults import CheckpointError, WriteError
from sg2jax.training import leaves as leaves_lib
from sg2jax.training import shelves
from sg2jax.training.leaves import read as read_state
from sg2jax.training.manifest import FORMAT, Damaged, read_manifest, seal


class Checkpoints:
  """The checkpoints of one run. To be closed (`contextlib.closing`), or a save in flight is lost.

  Every process makes the same calls; process 0 alone reads and writes.
  `restored` is the manifest of what `restore_latest` restored; None if there was nothing or it
  wasn't called.
  """

  def __init__(self, workdir: str | os.PathLike, *, keep: int, meta: dict[str, Any]) -> None:
    """Removes what a killed process left half written (`<step>.tmp`); creates nothing.

    Args:
      workdir: the run's directory, or address.
      keep: so many of the newest stay, >= 1; besides, the one with the lowest score.
      meta: JSON values to put into each manifest (hashes of the configuration and the data set).

    Raises:
      CheckpointError: a bucket can't be read.
    """
    self._shelf = _shelf(workdir)
    self._keep = keep
    self._meta = json.loads(json.dumps(meta))  # what JSON can't hold fails here, not in a thread
    self._thread = futures.ThreadPoolExecutor(1)
    self._saving = None  # the future of a save in flight; of process 0, as is what follows
    self.restored = None
    self._scores = {}  # step -> score or None; a step without a readable manifest is never deleted
    self._values = None  # what was read
    processes.agreed(self._look)

  def _look(self):
    for step in self._shelf.steps():
      with contextlib.suppress(Damaged):
        manifest = self._shelf.manifest(str(step))
        # A score against other pictures can't be compared, and would keep its checkpoint for ever.
        same = manifest['meta'].get('data_hash') == self._meta.get('data_hash')
        self._scores[step] = manifest['score'] if same else None
    with contextlib.suppress(OSError):  # it is tried again by the next process
      self._shelf.clear()

  # ---- save

  def save(self, state: Any, *, score: float | None = None) -> None:
    """Copies `state` to the host and writes it in the background; a step saved before is skipped.

    The buffers of `state` may be donated as soon as this returns.

    Args:
      state: pytree of arrays with an attribute `step` (int32 scalar).
      score: lower is better; None or not finite: never the best.

    Raises:
      WriteError: the save before failed, and this one wasn't begun; in every process.
    """
    self.wait()
    if not processes.is_first():
      return
    host = jax.tree.map(np.array, jax.device_get(state))  # device_get may be a view of the buffers
    step = int(host.step)
    if step in self._scores:
      return
    leaves = leaves_lib.named(host)
    # Per leaf a directory, a .zarray and the last block of the data; a block has 4096 bytes.
    size = sum(x.nbytes + 3 * 4096 for x in leaves.values())
    free = self._shelf.free_bytes()
    if free is not None and free < 3 * size:
      logging.warning(
        f'{self._shelf}: {free} bytes free, not enough for three more checkpoints of {size} bytes; '
        'make room before the disk is full'
      )
    manifest = {
      'format': FORMAT,
      'step': step,
      'meta': self._meta,
      'score': float(score) if score is not None and math.isfinite(score) else None,
      'leaves': {name: [str(x.dtype), list(x.shape)] for name, x in leaves.items()},
    }
    self._saving = self._thread.submit(self._write, host, manifest, size)

  def _write(self, host, manifest, size):
    """In a thread: writes, seals, deletes what need not stay."""
    step = manifest['step']
    free = self._shelf.free_bytes()
    try:
      if free is not None and free < size:  # orbax would notice, too, but noisily
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
      with self._shelf.building(step) as folder:
        leaves_lib.write(folder / 'state', host)
        seal(folder, manifest)
    except Exception as e:  # orbax and tensorstore raise all sorts of errors for a full disk
      free = self._shelf.free_bytes()
      room = '' if free is None else f'; {free} bytes free'
      raise WriteError(
        f'{self._shelf}/{step}: this checkpoint could not be written ({size} bytes{room}): '
        f'{_one_line(e)}. Those saved before are intact; {self._shelf.remedy}, then run the same '
        'command again'
      ) from e
    self._scores[step] = manifest['score']
    self._delete_others()

  def _delete_others(self):
    """Leaves the newest `keep` checkpoints and the best."""
    stay = set(sorted(self._scores)[-self._keep :])
    scored = [(score, -step) for step, score in self._scores.items() if score is not None]
    if scored:
      _, negative_step = min(scored)  # of equal scores, the newest
      stay.add(-negative_step)
    for step in self._scores.keys() - stay:
      del self._scores[step]
      self._shelf.delete(step)

  def wait(self) -> None:
    """Returns when the save in flight is whole on disk; raises its WriteError, once, if not.

    In every process: none leaves alone.
    """
    processes.agreed(self._finish)

  def _finish(self):
    saving = self._saving
    self._saving = None
    if saving:
      saving.result()

  def close(self) -> None:
    """Waits for the save in flight, and ends the thread. Of this process alone: it may be leaving.

    Raises: WriteError, in process 0; what every process has to know says `wait`, before.
    """
    try:
      self._finish()
    finally:
      self._thread.shutdown()

  # ---- restore

  def restore_latest(self, like: Any) -> Any:
    """The newest whole checkpoint, bit for bit, sharded as `like`; None if there never was one.

    Damaged ones met on the way are named in a warning and renamed to <step>.damaged-<n>.

    What a checkpoint of an older format lacks has the value that state.LATER_FIELDS says.

    Args:
      like: pytree of arrays or ShapeDtypeStructs; a leaf without a sharding becomes a numpy array.

    Raises:
      CheckpointError: some were there but none is whole; format too new; leaves unlike `like`'s.
    """
    self.wait()
    manifest = processes.agreed(self._read_latest)
    if manifest is None:
      return None
    spec = {name: leaves_lib.spelled(*leaf) for name, leaf in manifest['leaves'].items()}
    values = leaves_lib.handed(self._values, spec)
    self._values = None
    self.restored = manifest
    return _placed(values, manifest['format'], like, f'{self._shelf}/{manifest["step"]}')

  def _read_latest(self):
    """Reads `_values`; the manifest."""
    with contextlib.ExitStack() as stack:
      step, folder, bad = _newest(self._shelf, stack, set_aside=True)
      if step is None and bad:
        raise CheckpointError(
          f'no whole checkpoint in {self._shelf}: {"; ".join(bad)}. Bring one '
          'back, or move that directory away to start from the beginning'
        )
      # Those that were set aside are no longer here.
      there = -1 if step is None else step
      self._scores = {s: score for s, score in self._scores.items() if s <= there}
      if step is None:
        return None
      manifest = read_manifest(folder)
      values = leaves_lib.named(read_state(folder))
      # In the order of the manifest, which all have.
      self._values = {name: values[name] for name in manifest['leaves']}
      return manifest


# ---- reading, without a run


def begun(workdir: str | os.PathLike) -> bool:
  """Whether `workdir` holds a checkpoint, be it a damaged one; half-written ones don't count.

  Raises:
    CheckpointError: the newest is of a newer format; before a run writes anything.
  """
  shelf = _shelf(workdir)
  steps = shelf.steps()
  if steps:
    with contextlib.suppress(Damaged):
      shelf.manifest(str(steps[-1]))
  return bool(steps or shelf.set_aside_before())


@contextlib.contextmanager
def opened(path: str | os.PathLike) -> Iterator[tuple[paths.Path, pathlib.Path]]:
  """A whole, verified checkpoint: the newest of a workdir, or `path` itself.

  Yields: where it is, and a folder of this machine with what it holds, while the context lasts.

  Raises:
    CheckpointError: there is none, it is damaged, or its format is too new.
    UsageError: the path isn't UTF-8.
  """
  path = paths.place(path).absolute()
  paths.check_name(path)
  with contextlib.ExitStack() as stack:
    with shelves.asking(path):
      is_step = (path / 'state').exists() or (path / 'manifest.json').exists()
      root = path / 'checkpoints' if (path / 'checkpoints').is_dir() else path
    if is_step:
      try:
        folder = stack.enter_context(shelves.of(path.parent).contents(path.name))
      except Damaged as e:
        raise CheckpointError(f'damaged checkpoint: {e}. Use another step') from e
      yield path, folder
      return
    step, folder, bad = _newest(shelves.of(root), stack, set_aside=False)
    if step is None:
      raise CheckpointError(
        '; '.join([f'no whole checkpoint at {path} or {root}/<step>', *bad])
        + '. Give a workdir, one step of it, or a bundle'
      )
    yield root / str(step), folder


def load(path: str | os.PathLike) -> tuple[dict, dict]:
  """State (nested dicts and lists of numpy arrays) and configuration of what `opened` opens.

  Or of a bundle. Process 0 reads them; every process has to call it.

  Raises:
    CheckpointError: as `opened`, `configuration` and `bundle.read`.
  """
  read = None

  def look():
    nonlocal read
    published = _bundle(path)
    if published:
      read, config = bundle.read(published)
    else:
      with opened(path) as (place, folder):
        read = _read_now(place, folder)
        config = configuration(place)
    return [jax.tree.map(lambda x: leaves_lib.spelled(x.dtype, x.shape), read), config]

  spec, config = processes.agreed(look)
  return leaves_lib.handed(read, spec), config


def _bundle(path):
  """The place of a bundle at a path; None: it is none."""
  place = paths.place(path).absolute()
  paths.check_name(place)
  with shelves.asking(place):
    return place if bundle.is_there(place) else None


def configuration(step: paths.Path) -> dict:
  """The configuration of a checkpoint: config.json beside its state, or else the workdir's.

  Raises:
    CheckpointError: it can't be read.
  """
  own = step / 'config.json'
  of_run = step.parent.parent / 'config.json'
  try:
    return json.loads((own if own.exists() else of_run).read_text())
  except (OSError, ValueError) as e:
    raise CheckpointError(
      f'{step} has no readable configuration in {own} or {of_run}: {_one_line(e)}. Copy it from '
      'the run'
    ) from e


def restore(path: str | os.PathLike, like: Any) -> Any:
  """The state of what `opened` opens, like `like` as in `Checkpoints.restore_latest`.

  Process 0 reads it; every process has to call it.

  Raises:
    CheckpointError: as `opened`; its leaves are unlike those of `like`.
  """
  read = None

  def look():
    nonlocal read
    with opened(path) as (place, folder):
      read = leaves_lib.named(_read_now(place, folder))
      spec = {name: leaves_lib.spelled(x.dtype, x.shape) for name, x in read.items()}
      return [spec, read_manifest(folder)['format'], str(place)]

  spec, version, place = processes.agreed(look)
  return _placed(leaves_lib.handed(read, spec), version, like, place)


def _read_now(place, folder):
  """The state of a checkpoint that was whole; the run may be deleting it by now."""
  try:
    return read_state(folder)
  except Exception as e:  # tensorstore raises all sorts of errors for a file that is gone
    raise CheckpointError(
      f'{place} could not be read: {_one_line(e)}. If the run has deleted it meanwhile, the same '
      'again finds a newer one'
    ) from e


def _placed(values, version, like, step):
  """Values {name: array} of a checkpoint `step`, like `like`."""
  if version < FORMAT:
    values = state_lib.LATER_FIELDS | values
  there = {name: f'{x.dtype}{list(x.shape)}' for name, x in values.items()}
  here = {name: f'{x.dtype}{list(x.shape)}' for name, x in leaves_lib.named(like).items()}
  for name in [*here, *there]:
    if here.get(name) != there.get(name):
      raise CheckpointError(
        f'{step} does not fit this configuration: leaf {name} is {there.get(name, "missing")} '
        f'there, {here.get(name, "missing")} here. Use the configuration it was trained with '
        f'({step}/../../config.json) or another workdir'
      )

  def place(path, leaf):
    value = values[leaves_lib.name(path)]
    sharding = getattr(leaf, 'sharding', None)
    if sharding is None or sharding.is_fully_addressable:
      return jax.device_put(value, sharding) if sharding else value
    # device_put would compare what all processes have, and NaN isn't equal to itself.
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

  return jax.tree_util.tree_map_with_path(place, like)


# ---- where they lie


def _shelf(workdir):
  return shelves.of(paths.place(workdir).absolute() / 'checkpoints')


def _newest(shelf, stack, *, set_aside):
  """The newest whole step or None, its folder while `stack` lasts, and the reasons of others."""
  bad = [f'{shelf}/{step}.damaged-* was set aside' for step in shelf.set_aside_before()]
  if set_aside:
    shelf.warn_of_others()
  for step in reversed(shelf.steps()):
    try:
      folder = stack.enter_context(shelf.contents(str(step)))
      there = read_manifest(folder)['step']
      if there != step:
        raise Damaged(f'{shelf}/{step} holds step {there}')
      return step, folder, bad
    except Damaged as e:
      bad.append(str(e))
      if set_aside:
        shelf.set_aside(step, e)
      else:
        logging.warning('%s; trying the checkpoint before it', e)
  return None, None, bad


def _one_line(error):
  return ' '.join(str(error).split())[:500] or type(error).__name__
