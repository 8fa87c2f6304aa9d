"""Where the checkpoints of a run lie: in a folder of a disk, or in a bucket; one form for both.

Both hold <step>/ with `state/` and manifest.json, and <step>.damaged-<n>/ with what was set aside.
A disk renames: a checkpoint is built as <step>.tmp. A bucket can't, but there objects appear whole
and in order: the manifest is put last and deleted first, so that what has none is a rest of a
process that was killed.
"""

from collections.abc import Iterator
import contextlib
import errno
import os
import pathlib
import re
import shutil
import tempfile
from typing import Any

from absl import logging

from sg2jax import files
from sg2jax.addresses import Address, StoreError, transfer
from sg2jax.faults import CheckpointError
from sg2jax.training import manifest as manifest_lib
from sg2jax.training.manifest import Damaged, fsync

MANIFEST = 'manifest.json'
NEWEST = 'newest'  # object with the number of the last step that was saved
AT_ONCE = 8  # objects on their way
_STEP = re.compile(r'(0|[1-9][0-9]*)(\.tmp|\.damaged-[0-9]+)?')


class Folder:
  """Checkpoints on a disk of this machine, or on one that is mounted."""

  remedy = 'make room'  # if it can't be written to

  def __init__(self, root: pathlib.Path) -> None:
    self.root = root

  def __str__(self) -> str:
    return str(self.root)

  # ---- what is there

  def names(self) -> list[str]:
    """Of what is in it."""
    return [path.name for path in self.root.iterdir()] if self.root.is_dir() else []

  def steps(self) -> list[int]:
    """Ascending numbers of what is called as a checkpoint, whole or damaged."""
    return self._numbers('')

  def set_aside_before(self) -> list[int]:
    """Ascending steps of which damaged checkpoints were set aside."""
    return self._numbers('.damaged-')

  def _numbers(self, suffix):
    names = [_STEP.fullmatch(name) for name in self.names()]
    return sorted(int(m[1]) for m in names if m and (m[2] or '').rstrip('0123456789') == suffix)

  def warn_of_others(self) -> None:
    """Names folders that are no checkpoints."""
    for name in sorted(self.names()):
      path = self.root / name
      if not _STEP.fullmatch(name) and path.is_dir():
        logging.warning('%s is not a checkpoint; ignored', path)

  def manifest(self, name: str) -> dict[str, Any]:
    """The manifest of a checkpoint; raises as `manifest.read_manifest`."""
    return manifest_lib.read_manifest(self.root / name)

  @contextlib.contextmanager
  def contents(self, name: str) -> Iterator[pathlib.Path]:
    """A checkpoint, verified, as a folder of this machine while the context lasts.

    Raises: Damaged; CheckpointError: it is from the future, or can't be read for now.
    """
    manifest_lib.verify(self.root / name)
    yield self.root / name

  # ---- changes

  def free_bytes(self) -> int | None:
    """Room for more; None: nobody knows."""
    return files.free_bytes(self.root)

  def clear(self) -> None:
    """Removes what a killed process left half written or half deleted."""
    for step in self._numbers('.tmp'):
      shutil.rmtree(self.root / f'{step}.tmp', ignore_errors=True)

  @contextlib.contextmanager
  def building(self, step: int) -> Iterator[pathlib.Path]:
    """A folder to build a checkpoint in, manifest included; it counts once the context is left.

    Nothing is left of it after an error. Raises OSError, and what is raised inside.
    """
    partial = self.root / f'{step}.tmp'
    try:
      shutil.rmtree(partial, ignore_errors=True)
      partial.mkdir(parents=True)
      yield partial
      final = self.root / str(step)
      if final.exists():
        self.set_aside(step, f'{final} is in the way of a new checkpoint')
      os.rename(partial, final)
      fsync(self.root)
    except Exception:
      shutil.rmtree(partial, ignore_errors=True)
      raise

  def set_aside(self, step: int, reason: object) -> None:
    """Renames a damaged checkpoint to <step>.damaged-<n>, and says so. Nothing is deleted."""
    path = self.root / str(step)
    aside = path.with_name(self._name_aside(step))
    os.rename(path, aside)
    _say_aside(reason, aside)

  def _name_aside(self, step):
    taken = self.names()
    n = 0
    while (name := f'{step}.damaged-{n}') in taken:
      n += 1
    return name

  def delete(self, step: int) -> None:
    """Deletes a checkpoint; killed half-way, it isn't a damaged one."""
    partial = self.root / f'{step}.tmp'
    with contextlib.suppress(OSError):  # one checkpoint too many is no failure
      os.rename(self.root / str(step), partial)
    shutil.rmtree(partial, ignore_errors=True)


class Bucket(Folder):
  """Checkpoints below an address. What they say is read through a folder of this machine.

  Listings only say what may be there: some stores give old ones. What counts is whether a manifest
  can be read.
  """

  root: Address

  @property
  def remedy(self) -> str:
    """What to do if it can't be written to."""
    return f'see to the bucket, the connection, and the room in {tempfile.gettempdir()}'

  def names(self) -> list[str]:
    """Of what is below it."""
    with asking(self.root):
      return list(self.root.listing())

  def steps(self) -> list[int]:
    """Ascending numbers of the checkpoints that have a manifest."""
    found = set(super().steps())
    with asking(self.root):
      with contextlib.suppress(FileNotFoundError, ValueError):
        found.add(int((self.root / NEWEST).read_text()))
      return sorted(step for step in found if (self.root / str(step) / MANIFEST).exists())

  def manifest(self, name: str) -> dict[str, Any]:
    """As of Folder."""
    with asking(self.root), _local() as folder, _named(folder, self.root / name):
      self._fetch(name, folder, [MANIFEST])
      return manifest_lib.read_manifest(folder)

  @contextlib.contextmanager
  def contents(self, name: str) -> Iterator[pathlib.Path]:
    """As of Folder; the files are downloaded, and gone afterwards."""
    with _local() as folder:
      with asking(self.root), _named(folder, self.root / name):
        self._fetch(name, folder, [MANIFEST])
        self._fetch(name, folder, manifest_lib.read_manifest(folder)['files'])
        manifest_lib.verify(folder)
      yield folder

  def _fetch(self, name, folder, parts):
    place = self.root / name

    def fetch(part):
      file = folder / part
      file.parent.mkdir(parents=True, exist_ok=True)
      try:
        # In one piece: none is large, and many are so small that gcsfs's download of ranges takes
        # twenty times as long.
        file.write_bytes((place / part).read_bytes())
      except FileNotFoundError as e:
        raise Damaged(f'{place / part}: there is no such object') from e

    transfer(fetch, parts, AT_ONCE)

  def free_bytes(self) -> None:
    """A bucket has no end."""
    return None

  def clear(self) -> None:
    """As of Folder. What a listing lacks the manifest of may have one all the same."""
    whole = self.steps()
    for step in super().steps():
      if step not in whole:
        self._remove(step)

  @contextlib.contextmanager
  def building(self, step: int) -> Iterator[pathlib.Path]:
    """As of Folder: built on this machine, then put object by object, the manifest last."""
    with _local() as folder:
      yield folder
      final = self.root / str(step)
      if (final / MANIFEST).exists():
        self.set_aside(step, f'{final} is in the way of a new checkpoint')
      self._remove(step)  # of a process that was killed
      parts = [str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file()]
      parts.remove(MANIFEST)
      try:
        transfer(lambda part: (final / part).upload(folder / part), parts, AT_ONCE)
        (final / MANIFEST).upload(folder / MANIFEST)
      except Exception:
        with contextlib.suppress(OSError):  # it is as when the process were killed now
          self._remove(step)
        raise
      with contextlib.suppress(OSError):  # it is whole without
        (self.root / NEWEST).write_bytes(str(step).encode())

  def set_aside(self, step: int, reason: object) -> None:
    """As of Folder: copied, then deleted."""
    path = self.root / str(step)
    aside = path.with_name(self._name_aside(step))
    with asking(self.root):
      transfer(lambda part: (path / part).copy(aside / part), path.objects(), AT_ONCE)
      self._remove(step)
    _say_aside(reason, aside)

  def delete(self, step: int) -> None:
    """As of Folder."""
    with contextlib.suppress(OSError):
      self._remove(step)

  def _remove(self, step):
    place = self.root / str(step)
    (place / MANIFEST).unlink(missing_ok=True)
    place.remove_all()


def of(root: pathlib.Path | Address) -> Folder:
  """The checkpoints in a folder of a disk, or below an address."""
  return Bucket(root) if isinstance(root, Address) else Folder(root)


def _say_aside(reason, aside):
  logging.warning('%s; checkpoint not used, set aside as %s', reason, aside)


@contextlib.contextmanager
def _local() -> Iterator[pathlib.Path]:
  """A folder of this machine that is gone afterwards."""
  with tempfile.TemporaryDirectory(prefix='sg2jax-') as folder:
    yield pathlib.Path(folder)


@contextlib.contextmanager
def _named(folder: pathlib.Path, place: Address) -> Iterator[None]:
  """Has errors name the address instead of the folder that it was downloaded to."""
  try:
    yield
  except (Damaged, CheckpointError) as e:
    raise type(e)(str(e).replace(str(folder), str(place))) from e


@contextlib.contextmanager
def asking(place: Address) -> Iterator[None]:
  """Turns what a store, or the disk that is read through, refuses into a CheckpointError.

  Not into Damaged: it says nothing of the checkpoint.
  """
  try:
    yield
  except (StoreError, FileNotFoundError) as e:
    raise CheckpointError(
      f'checkpoints of {place} can not be read for now: {files.reason(e)}. Nothing was changed: '
      'see to the connection and the permission, then run the same command again'
    ) from e
  except OSError as e:
    if e.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
      raise
    raise CheckpointError(
      f'checkpoints of {place} are read through {tempfile.gettempdir()}: {e.strerror}, '
      f'{files.free_bytes(tempfile.gettempdir()):,} bytes are free there; make room, or name '
      'another folder with the variable TMPDIR'
    ) from e
