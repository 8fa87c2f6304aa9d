"""Save, restore the latest whole checkpoint, read weights: orbax items sealed by a manifest.

A checkpoint is WORKDIR/checkpoints/<step>/ with `state/`, an orbax PyTree item, and manifest.json.
Leaves are stored as host arrays, one uncompressed file each: equal states are equal bytes, on any
number of devices. It is built as <step>.tmp and renamed once the manifest is on disk, so a
directory named by a number is whole, or was damaged later. For local and mounted file systems.
"""

from concurrent import futures
import contextlib
import errno
import json
import math
import os
import pathlib
import re
import shutil
from typing import Any

from absl import logging
import jax
from jax.experimental import multihost_utils
import numpy as np
import orbax.checkpoint as ocp

from sg2jax import files, paths
from sg2jax import state as state_lib
from sg2jax.faults import CheckpointError, WriteError
from sg2jax.training.manifest import FORMAT, Damaged, fsync, read_manifest, seal, verify

_STEP = re.compile(r'(0|[1-9][0-9]*)(\.tmp|\.damaged-[0-9]+)?')

# Orbax says the first at every save without OCDBT, which is meant (OCDBT's file names are random);
# the others are tracebacks of an error that reaches the user as a WriteError.
_NOISE = ('Skipping merge of OCDBT', '_SignalingThread.run() raised')
logging.get_absl_logger().addFilter(
  lambda record: not any(noise in record.getMessage() for noise in _NOISE)
)


class Checkpoints:
  """The checkpoints of one run. To be closed (`contextlib.closing`), or a save in flight is lost.

  Every process makes the same calls; process 0 alone seals, renames and deletes.
  `restored` is the manifest of what `restore_latest` restored; None if there was nothing or it
  wasn't called.
  """

  def __init__(self, workdir: str | os.PathLike, *, keep: int, meta: dict[str, Any]) -> None:
    """Removes what a killed process left half written (`<step>.tmp`); creates nothing.

    Args:
      workdir: the run's directory.
      keep: so many of the newest stay, >= 1; besides, the one with the lowest score.
      meta: JSON values to put into each manifest (hashes of the configuration and the data set).
    """
    self._root = pathlib.Path(workdir).absolute() / 'checkpoints'
    self._keep = keep
    self._meta = json.loads(json.dumps(meta))  # what JSON can't hold fails here, not in a thread
    self._checkpointer = ocp.Checkpointer(
      ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_compression=False)
    )
    self._thread = futures.ThreadPoolExecutor(1)
    self._saving = None  # the future of a save in flight
    self.restored = None
    self._scores = {}  # step -> score or None; a step without a readable manifest is never deleted
    for step in _steps(self._root):
      with contextlib.suppress(Damaged):
        manifest = read_manifest(self._root / str(step))
        # A score against other pictures can't be compared, and would keep its checkpoint for ever.
        same = manifest['meta'].get('data_hash') == self._meta.get('data_hash')
        self._scores[step] = manifest['score'] if same else None
    if jax.process_index() == 0:
      for step in _steps(self._root, '.tmp'):
        shutil.rmtree(self._root / f'{step}.tmp', ignore_errors=True)

  # ---- save

  def save(self, state: Any, *, score: float | None = None) -> None:
    """Copies `state` to the host and writes it in the background; a step saved before is skipped.

    The buffers of `state` may be donated as soon as this returns.

    Args:
      state: pytree of arrays with an attribute `step` (int32 scalar).
      score: lower is better; None or not finite: never the best.

    Raises:
      WriteError: the save before failed, and this one wasn't begun.
    """
    self.wait()
    host = jax.tree.map(np.array, jax.device_get(state))  # device_get may be a view of the buffers
    step = int(host.step)
    if step in self._scores:
      return
    leaves = _named(host)
    # Per leaf a directory, a .zarray and the last block of the data; a block has 4096 bytes.
    size = sum(x.nbytes + 3 * 4096 for x in leaves.values())
    free = files.free_bytes(self._root)
    if free < 3 * size:
      logging.warning(
        f'{self._root}: {free} bytes free, not enough for three more checkpoints of {size} bytes; '
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
    """In a thread: writes, seals, renames, deletes what need not stay."""
    step = manifest['step']
    final = self._root / str(step)
    partial = self._root / f'{step}.tmp'
    first = jax.process_index() == 0
    try:
      if files.free_bytes(self._root) < size:  # orbax would notice, too, but noisily
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
      if first:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
      self._checkpointer.save(partial / 'state', args=ocp.args.PyTreeSave(host))
      if first:
        seal(partial, manifest)
        if final.exists():
          _set_aside(final, f'{final} is in the way of a new checkpoint')
        os.rename(partial, final)
        fsync(self._root)
    except Exception as e:  # orbax and tensorstore raise all sorts of errors for a full disk
      if first:
        shutil.rmtree(partial, ignore_errors=True)
      raise WriteError(
        f'{final}: this checkpoint could not be written ({size} bytes; '
        f'{files.free_bytes(self._root)} bytes free): {_one_line(e)}. Those saved before are '
        'intact; make room, then run the same command again'
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
      if jax.process_index() == 0:
        # Renamed first: killed half-way, it isn't a damaged checkpoint.
        partial = self._root / f'{step}.tmp'
        with contextlib.suppress(OSError):  # one checkpoint too many is no failure
          os.rename(self._root / str(step), partial)
        shutil.rmtree(partial, ignore_errors=True)

  def wait(self) -> None:
    """Returns when the save in flight is whole on disk; raises its WriteError, once, if not."""
    saving = self._saving
    self._saving = None
    if saving:
      saving.result()

  def close(self) -> None:
    """`wait`, then the end of the threads."""
    try:
      self.wait()
    finally:
      self._thread.shutdown()
      self._checkpointer.close()

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
    step = None
    bad = []
    if jax.process_index() == 0:
      step, bad = _newest(self._root, set_aside=True)
    # The others may see the files of a network file system late, or not at all.
    step = int(multihost_utils.broadcast_one_to_all(np.int32(-1 if step is None else step)))
    # Those that were set aside are no longer here.
    self._scores = {s: score for s, score in self._scores.items() if s <= step}
    if bad and step < 0:
      raise CheckpointError(
        f'no whole checkpoint in {self._root}: {"; ".join(bad)}. Bring one '
        'back, or move that directory away to start from the beginning'
      )
    if step < 0:
      return None
    self.restored = read_manifest(self._root / str(step))
    return restore(self._root / str(step), like)


# ---- reading, without a run


def begun(workdir: str | os.PathLike) -> bool:
  """Whether `workdir` holds a checkpoint, be it a damaged one; half-written ones don't count."""
  root = pathlib.Path(workdir) / 'checkpoints'
  return bool(_steps(root) or _steps(root, '.damaged-'))


def find(path: str | os.PathLike) -> pathlib.Path:
  """The directory of a whole, verified checkpoint: the newest of a workdir, or `path` itself.

  Raises:
    CheckpointError: there is none, it is damaged, or its format is too new.
    UsageError: the path isn't UTF-8.
  """
  path = pathlib.Path(path).expanduser().absolute()
  paths.check_name(path)
  if (path / 'state').exists() or (path / 'manifest.json').exists():
    try:
      verify(path)
    except Damaged as e:
      raise CheckpointError(f'damaged checkpoint: {e}. Use another step') from e
    return path
  root = path / 'checkpoints' if (path / 'checkpoints').is_dir() else path
  step, bad = _newest(root, set_aside=False)
  if step is None:
    raise CheckpointError(
      '; '.join([f'no whole checkpoint at {path} or {root}/<step>', *bad])
      + '. Give a workdir or one step of it'
    )
  return root / str(step)


def load(path: str | os.PathLike) -> tuple[dict, dict]:
  """State (nested dicts and lists of numpy arrays) and configuration of what `find(path)` finds.

  Raises:
    CheckpointError: as `find` and `configuration`.
  """
  step = find(path)
  return read_state(step), configuration(step)


def configuration(step: pathlib.Path) -> dict:
  """The configuration of a result of `find`: config.json beside its state, or else the workdir's.

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


def read_state(step: pathlib.Path) -> dict:
  """The state in the directory of a checkpoint as nested dicts and lists of numpy arrays."""
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)) as checkpointer:
    return checkpointer.restore(step / 'state', args=ocp.args.PyTreeRestore())


def restore(step: pathlib.Path, like: Any) -> Any:
  """The state in the directory of a checkpoint, like `like` as in `Checkpoints.restore_latest`.

  Raises:
    CheckpointError: its leaves are unlike those of `like`.
  """
  values = _named(read_state(step))
  if read_manifest(step)['format'] < FORMAT:
    values = state_lib.LATER_FIELDS | values
  there = {name: f'{x.dtype}{list(x.shape)}' for name, x in values.items()}
  here = {name: f'{x.dtype}{list(x.shape)}' for name, x in _named(like).items()}
  for name in [*here, *there]:
    if here.get(name) != there.get(name):
      raise CheckpointError(
        f'{step} does not fit this configuration: leaf {name} is {there.get(name, "missing")} '
        f'there, {here.get(name, "missing")} here. Use the configuration it was trained with '
        f'({step.parent.parent}/config.json) or another workdir'
      )

  def place(path, leaf):
    sharding = getattr(leaf, 'sharding', None)
    return jax.device_put(values[_name(path)], sharding) if sharding else values[_name(path)]

  return jax.tree_util.tree_map_with_path(place, like)


# ---- directories


def _newest(root, *, set_aside):
  """The newest whole step in `root`, or None, and the reasons why others aren't."""
  bad = [f'{root}/{step}.damaged-* was set aside' for step in _steps(root, '.damaged-')]
  for entry in sorted(root.iterdir()) if set_aside and root.is_dir() else []:
    if entry.is_dir() and not _STEP.fullmatch(entry.name):
      logging.warning('%s is not a checkpoint; ignored', entry)
  for step in reversed(_steps(root)):
    try:
      there = verify(root / str(step))['step']
      if there != step:
        raise Damaged(f'{root / str(step)} holds step {there}')
      return step, bad
    except Damaged as e:
      bad.append(str(e))
      if set_aside:
        _set_aside(root / str(step), e)
      else:
        logging.warning('%s; trying the checkpoint before it', e)
  return None, bad


def _steps(root, suffix=''):
  """Ascending step numbers of the entries of `root` whose name is a number and `suffix`..."""
  names = [_STEP.fullmatch(path.name) for path in root.iterdir()] if root.is_dir() else []
  return sorted(int(m[1]) for m in names if m and (m[2] or '').rstrip('0123456789') == suffix)


def _set_aside(path, reason):
  n = 0
  while (aside := path.with_name(f'{path.name}.damaged-{n}')).exists():
    n += 1
  os.rename(path, aside)
  logging.warning('%s; checkpoint not used, set aside as %s', reason, aside)


# ---- leaves


def _name(path):
  return jax.tree_util.keystr(path, simple=True, separator='.')


def _named(tree):
  return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _one_line(error):
  return ' '.join(str(error).split())[:500] or type(error).__name__
