"""Save, restore the latest whole checkpoint, read weights: orbax items sealed by a manifest.

A checkpoint is WORKDIR/checkpoints/<step>/ with `state/`, an orbax PyTree item, and `manifest.json`
(size and SHA-256 of every file; names, shapes and dtypes of the leaves). Leaves are stored as host
arrays, one uncompressed file each: equal states are equal bytes, on any number of devices. It is
built as <step>.tmp and renamed once the manifest is on disk, so a directory named by a number is
whole, or was damaged later. For local and mounted file systems.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import pathlib
import re
import shutil
import threading

from absl import logging
import jax
from jax.experimental import multihost_utils
import numpy as np
import orbax.checkpoint as ocp

from sg2jax import files
from sg2jax import state as state_lib
from sg2jax.faults import CheckpointError, UsageError, WriteError

# 1: of version 0.1, whose states lack state.LATER_FIELDS and whose random numbers came from other
# keys
FORMAT = 2
_STEP = re.compile(r'(0|[1-9][0-9]*)(\.tmp|\.damaged-[0-9]+)?')

# Orbax says the first at every save without OCDBT, which is meant (OCDBT's file names are random);
# the others are tracebacks of an error that reaches the user as a WriteError.
_NOISE = ('Skipping merge of OCDBT', 'Handler Commit operations', '_SignalingThread.run() raised')
logging.get_absl_logger().addFilter(lambda r: not any(n in r.getMessage() for n in _NOISE))


class _Damaged(Exception):
  """Why a directory is not a whole checkpoint; names the file."""


class Checkpoints:
  """The checkpoints of one run. To be closed (`contextlib.closing`), or a save in flight is lost.

  Every process makes the same calls; process 0 alone seals, renames and deletes.
  `restored` is the manifest of what `restore_latest` found; None if it found nothing or wasn't
  called.
  """

  def __init__(self, workdir, *, keep: int, meta: dict):
    """Removes what a killed process left half written (`<step>.tmp`); creates nothing.

    Args:
      workdir: the run's directory.
      keep: so many of the newest stay, >= 1; besides, the one with the lowest score.
      meta: JSON values to put into each manifest (hashes of the configuration and the data set).

    Raises:
      UsageError: keep < 1.
    """
    if keep < 1:
      raise UsageError(f'{keep} checkpoints to keep: must be at least 1')
    self._root = pathlib.Path(workdir).absolute() / 'checkpoints'
    self._keep = keep
    self._meta = json.loads(json.dumps(meta))  # what JSON can't hold fails here, not in a thread
    self._checkpointer = ocp.AsyncCheckpointer(
      ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_compression=False)
    )
    self._thread = self._error = self.restored = None
    self._scores = {}  # step -> score or None; a step without a readable manifest is never deleted
    for step in _steps(self._root):
      with contextlib.suppress(_Damaged):
        manifest = _manifest(self._root / str(step))
        # A score against other pictures can't be compared, and would keep its checkpoint for ever.
        same = manifest['meta'].get('data_hash') == self._meta.get('data_hash')
        self._scores[step] = manifest['score'] if same else None
    if jax.process_index() == 0:
      for step in _steps(self._root, '.tmp'):
        shutil.rmtree(self._root / f'{step}.tmp', ignore_errors=True)

  def save(self, state, *, score: float | None = None):
    """Copies `state` to the host and writes it in the background; a step saved before is skipped.

    The buffers of `state` may be donated as soon as this returns.

    Args:
      state: pytree of arrays with an attribute `step` (int32 scalar).
      score: lower is better; None or not finite: never the best.

    Raises:
      WriteError: this save can't start, or the one before failed and this one wasn't begun.
    """
    self.wait()
    host = jax.device_get(state)  # orbax deep-copies host arrays before its save() returns
    step, named = int(host.step), _named(host)
    if step in self._scores:
      return
    # Per leaf a directory, a .zarray and the last block of the data; a block has 4096 bytes.
    size = sum(x.nbytes + 3 * 4096 for x in named.values())
    if (free := files.free_bytes(self._root)) < 3 * size:
      logging.warning(
        '%s: %d bytes free, not enough for three more checkpoints of '
        '%d bytes; make room before the disk is full',
        self._root,
        free,
        size,
      )
    manifest = {
      'format': FORMAT,
      'step': step,
      'meta': self._meta,
      'score': float(score) if score is not None and math.isfinite(score) else None,
      'leaves': {name: [str(x.dtype), list(x.shape)] for name, x in named.items()},
    }
    partial = self._root / f'{step}.tmp'
    try:
      if free < size:  # orbax would find out too, noisily
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
      if jax.process_index() == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
      self._checkpointer.save(partial / 'state', args=ocp.args.PyTreeSave(host))
    except OSError as e:
      raise self._write_error(step, size, e) from e
    self._thread = threading.Thread(target=self._finish, args=(partial, manifest, size))
    self._thread.start()

  def _finish(self, partial, manifest, size):
    """In a thread: waits for orbax, seals, renames, deletes what is no longer kept."""
    step = manifest['step']
    try:
      self._checkpointer.wait_until_finished()
      if jax.process_index() == 0:
        _seal(partial, manifest)
        final = self._root / str(step)
        if final.exists():
          _set_aside(final, f'{final} is in the way of a new checkpoint')
        os.rename(partial, final)
        _fsync(self._root)
      self._scores[step] = manifest['score']
      self._prune()
    except Exception as e:  # noqa: BLE001 - whatever it is, wait() has to raise it
      self._error = self._write_error(step, size, e)
      self._error.__cause__ = e
      shutil.rmtree(partial, ignore_errors=True)

  def _prune(self):
    kept = set(sorted(self._scores)[-self._keep :])
    if scored := [(score, -step) for step, score in self._scores.items() if score is not None]:
      kept.add(-min(scored)[1])
    for step in self._scores.keys() - kept:
      del self._scores[step]
      if jax.process_index() == 0:
        gone = self._root / f'{step}.tmp'
        with contextlib.suppress(OSError):  # one checkpoint too many is no failure
          os.rename(self._root / str(step), gone)  # killed half-way, it isn't a damaged checkpoint
        shutil.rmtree(gone, ignore_errors=True)

  def _write_error(self, step, size, error):
    return WriteError(
      f'{self._root / str(step)}: this checkpoint could not be written ({size} bytes; '
      f'{files.free_bytes(self._root)} bytes free): {_one_line(error)}. Those saved before are '
      'intact; make room, then run the same command again'
    )

  def wait(self):
    """Returns when the save in flight is whole on disk; raises its WriteError, once, if not."""
    if self._thread is not None:
      self._thread.join()
      self._thread = None
    error, self._error = self._error, None
    if error is not None:
      raise error

  def close(self):
    """`wait`, then the end of orbax's threads."""
    try:
      self.wait()
    finally:
      self._checkpointer.close()

  def restore_latest(self, like):
    """The newest whole checkpoint, bit for bit, sharded as `like`; None if there never was one.

    Damaged ones met on the way are named in a warning and renamed to <step>.damaged-<n>.

    Args:
      like: pytree of arrays or ShapeDtypeStructs; a leaf without a sharding becomes a numpy array.

    What a checkpoint of an older format lacks has the value that state.LATER_FIELDS says.

    Raises:
      CheckpointError: some were there but none is whole; format too new; leaves unlike `like`'s.
    """
    self.wait()
    step, bad = _newest(self._root, set_aside=True) if jax.process_index() == 0 else (None, [])
    step = int(multihost_utils.broadcast_one_to_all(np.int32(-1 if step is None else step)))
    self._scores = {s: score for s, score in self._scores.items() if s <= step}
    if bad and step < 0:
      raise CheckpointError(
        f'no whole checkpoint in {self._root}: {"; ".join(bad)}. Bring one '
        'back, or move that directory away to start from the beginning'
      )
    if step < 0:
      return None
    self.restored = _manifest(self._root / str(step))
    return _restore_like(self._root / str(step), like)


def begun(workdir) -> bool:
  """Whether `workdir` holds a checkpoint, be it a damaged one; half-written ones don't count."""
  root = pathlib.Path(workdir) / 'checkpoints'
  return bool(_steps(root) or _steps(root, '.damaged-'))


def find(path) -> pathlib.Path:
  """The directory of a whole, verified checkpoint: the newest of a workdir, or `path` itself.

  Raises:
    CheckpointError: there is none, it is damaged, or its format is too new.
  """
  path = pathlib.Path(path).expanduser().absolute()
  if (path / 'state').exists() or (path / 'manifest.json').exists():
    try:
      _verify(path)
    except _Damaged as e:
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


def load(path) -> tuple[dict, dict]:
  """State (nested dicts and lists of numpy arrays) and configuration of what `find(path)` finds.

  Raises:
    CheckpointError: as `find` and `configuration`.
  """
  step = find(path)
  return _restore(step), configuration(step)


def restore(path, like):
  """The checkpoint that `find(path)` finds with the structure and the shardings of `like`, as
  `Checkpoints.restore_latest`.

  Raises: CheckpointError: as `find`; or its leaves are unlike those of `like`.
  """
  return _restore_like(find(path), like)


def configuration(step) -> dict:
  """The configuration of a result of `find`: the config.json beside its `state/`, or else the
  workdir's.

  Raises:
    CheckpointError: it can't be read.
  """
  places = [step / 'config.json', step.parent.parent / 'config.json']
  try:
    return json.loads((places[0] if places[0].exists() else places[1]).read_text())
  except (OSError, ValueError) as e:
    raise CheckpointError(
      f'{step} has no readable configuration in {places[0]} or {places[1]}: {_one_line(e)}. Copy '
      'it from the run'
    ) from e


def _restore(step):
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)) as checkpointer:
    return checkpointer.restore(step / 'state', args=ocp.args.PyTreeRestore())


def _restore_like(step, like):
  """The tree at `step` with the structure and shardings of `like`."""
  manifest = _manifest(step)
  there = {k: f'{dtype}{shape}' for k, (dtype, shape) in manifest['leaves'].items()}
  here = {k: f'{x.dtype}{list(x.shape)}' for k, x in _named(like).items()}
  younger = state_lib.LATER_FIELDS.items() if manifest['format'] < FORMAT else ()
  added = {k: np.asarray(x) for k, x in younger if k in here and k not in there}
  there |= {k: f'{x.dtype}{list(x.shape)}' for k, x in added.items()}
  for name in [*here, *there]:
    if here.get(name) != there.get(name):
      raise CheckpointError(
        f'{step} does not fit this configuration: leaf {name} is {there.get(name, "missing")} '
        f'there, {here.get(name, "missing")} here. Use the configuration it was trained with '
        f'({step.parent.parent}/config.json) or another workdir'
      )
  values = _named(_restore(step)) | added

  def place(path, leaf):
    value, sharding = values[_name(path)], getattr(leaf, 'sharding', None)
    if sharding is None:
      return value
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

  return jax.tree_util.tree_map_with_path(place, like)


def _newest(root, *, set_aside):
  """The newest whole step in `root`, or None, and the reasons why others aren't."""
  bad = [f'{root}/{step}.damaged-* was set aside' for step in _steps(root, '.damaged-')]
  for entry in sorted(root.iterdir()) if set_aside and root.is_dir() else []:
    if entry.is_dir() and not _STEP.fullmatch(entry.name):
      logging.warning('%s is not a checkpoint; ignored', entry)
  for step in reversed(_steps(root)):
    try:
      if (holds := _verify(root / str(step))['step']) != step:
        raise _Damaged(f'{root / str(step)} holds step {holds}')
      return step, bad
    except _Damaged as e:
      bad.append(str(e))
      if set_aside:
        _set_aside(root / str(step), e)
      else:
        logging.warning('%s; trying the checkpoint before it', e)
  return None, bad


def _steps(root, suffix=''):
  """Ascending step numbers of the entries of `root` whose name is a number and `suffix`..."""
  names = [_STEP.fullmatch(p.name) for p in root.iterdir()] if root.is_dir() else []
  return sorted(int(m[1]) for m in names if m and (m[2] or '').rstrip('0123456789') == suffix)


def _set_aside(path, reason):
  n = next(n for n in range(10**6) if not path.with_name(f'{path.name}.damaged-{n}').exists())
  os.rename(path, aside := path.with_name(f'{path.name}.damaged-{n}'))
  logging.warning('%s; checkpoint not used, set aside as %s', reason, aside)


def _seal(step, manifest):
  """Syncs the files under `step` and writes their manifest; equal states get equal bytes."""
  times = step / 'state' / '_CHECKPOINT_METADATA'
  times.write_text(re.sub(r'(_timestamp_nsecs": )\d+', r'\g<1>0', times.read_text()))
  # Orbax puts the path that it wrote to in here.
  (step / 'state' / 'commit_success.txt').write_text('Checkpoint commit was successful\n')
  digests = {}
  for path in sorted(step.rglob('*')):
    _fsync(path)
    if path.is_file():
      digests[str(path.relative_to(step))] = [path.stat().st_size, files.sha256(path)]
  (step / 'manifest.json').write_text(_encode(manifest | {'files': digests}))
  _fsync(step / 'manifest.json')
  _fsync(step)


def _verify(step):
  """The manifest of a whole checkpoint; _Damaged names the first file that isn't as written."""
  manifest = _manifest(step)
  for name, (size, sha256) in manifest['files'].items():
    path = step / name
    try:
      if (there := path.stat().st_size) != size:
        raise _Damaged(f'{path} has {there} bytes instead of {size}')
      if files.sha256(path) != sha256:
        raise _Damaged(f'{path} is not what was written (SHA-256 differs)')
    except OSError as e:
      raise _Damaged(f'{path}: {e.strerror}') from e
  return manifest


def _manifest(step):
  """manifest.json; _Damaged if a byte of it changed, CheckpointError if it is from the future."""
  path = step / 'manifest.json'
  try:
    text = path.read_bytes().decode()
    manifest = json.loads(text)
    del manifest['sha256']
  except OSError as e:
    raise _Damaged(f'{path}: {e.strerror}') from e
  except (ValueError, KeyError, TypeError) as e:
    raise _Damaged(f'{path} is not a manifest') from e
  if _encode(manifest) != text:
    raise _Damaged(f'{path} is not what was written (SHA-256 differs)')
  if manifest['format'] > FORMAT:
    raise CheckpointError(
      f'{step} has checkpoint format {manifest["format"]}; this code reads '
      f'formats up to {FORMAT}: update sg2jax'
    )
  return manifest


def _encode(manifest):
  digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
  return json.dumps(manifest | {'sha256': digest}, sort_keys=True, indent=1) + '\n'


def _fsync(path):
  fd = os.open(path, os.O_RDONLY)
  try:
    os.fsync(fd)
  finally:
    os.close(fd)


def _name(path):
  return jax.tree_util.keystr(path, simple=True, separator='.')


def _named(tree):
  return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _one_line(error):
  return ' '.join(str(error).split())[:500] or type(error).__name__
