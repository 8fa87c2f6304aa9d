"""Where a data set is put: into a new or empty folder, or over an earlier one; all or nothing.

It is built in a hidden folder inside of the destination, and then moved file by file: the place may
be a mounted disk, or one with a parent that can't be written to.
"""

from collections.abc import Iterator
import contextlib
import json
import os
import pathlib
import re
import shutil

from sg2jax.data import records
from sg2jax.faults import UsageError, WriteError

REPORT = 'report.json'
TOOL = 'sg2jax.tools.prepare'  # in the report: it says who made the folder
_LEFTOVER = re.compile(r'\.(?:building|old)-(\d+)')


def resolved(dest: str) -> pathlib.Path:
  """The absolute path with all links followed: data go where they point, and they stay.

  Raises UsageError: links in a circle, or no text, which the libraries that write need.
  """
  try:
    path = pathlib.Path(dest).expanduser().resolve()
    str(path).encode()
  except UnicodeEncodeError:
    raise UsageError(
      f'--dest={dest!r}: the path is no UTF-8; choose a folder with another name'
    ) from None
  except (OSError, RuntimeError) as e:
    raise UsageError(f'--dest={dest}: {e}; choose a folder') from e
  return path


def check(source: pathlib.Path, dest: pathlib.Path) -> None:
  """Looks, before the work, whether a data set made of `source` can be put at a resolved path.

  Raises:
    UsageError: it is no place for one.
    WriteError: nothing can be written there.
  """
  if dest.is_relative_to(source.resolve()):
    raise UsageError(f'--dest={dest} lies inside --source={source}; choose a place outside')
  if source.resolve().is_relative_to(dest):
    raise UsageError(
      f'--source={source} lies inside --dest={dest}, which would be replaced; choose another place'
    )
  # ---- is it a place for a folder
  there = next(p for p in (dest, *dest.parents) if p.exists())
  if not there.is_dir():
    raise UsageError(f'--dest={dest}: {there} is a file; choose another place')
  try:
    names = os.listdir(dest) if there == dest else []
  except OSError as e:
    raise UsageError(f'--dest={dest} can not be read ({e.strerror}); choose a new folder') from e
  # ---- would anything be lost
  names = sorted(name for name in names if not _LEFTOVER.fullmatch(name))
  if names and not _is_ours(dest):
    raise UsageError(
      f'--dest={dest} is not empty and was not made by this tool; choose a new folder'
    )
  for name in names:
    if not records.FILES.fullmatch(name):
      raise UsageError(
        f'--dest={dest} holds a data set and also {name!r}, which would be lost; move that'
      )
  if not os.access(there, os.W_OK | os.X_OK):
    raise WriteError(f'--dest={dest}: {there} may not be written to; choose another place')


def _is_ours(dest: pathlib.Path) -> bool:
  try:
    return json.loads((dest / REPORT).read_text()).get('tool') == TOOL
  except (OSError, ValueError, AttributeError):
    return False


@contextlib.contextmanager
def building(dest: pathlib.Path) -> Iterator[pathlib.Path]:
  """The folder to build in; it is gone afterwards, with what was made for it and is empty."""
  scratch = dest / f'.building-{os.getpid()}'
  new_folders = [folder for folder in scratch.parents if not folder.exists()]
  try:
    scratch.mkdir(parents=True)
    yield scratch
  finally:
    shutil.rmtree(scratch, ignore_errors=True)
    with contextlib.suppress(OSError):  # those that hold the data set stay
      for folder in new_folders:
        folder.rmdir()


def replace(built: pathlib.Path, dest: pathlib.Path) -> list[str]:
  """Moves what was built into place; an earlier data set is deleted once the new one is there.

  Returns warnings: what could not be deleted.
  """
  old = dest / f'.old-{os.getpid()}'
  # Without its description it is no data set: that goes first and comes last.
  earlier = sorted(_visible(dest), key=lambda name: name != records.INFO)
  new = sorted(_visible(built), key=lambda name: name == records.INFO)
  moved = []
  old.mkdir()
  try:
    for name in earlier:
      os.rename(dest / name, old / name)
      moved.append((old / name, dest / name))
    for name in new:
      os.rename(built / name, dest / name)
      moved.append((dest / name, built / name))
  except BaseException:
    for there, back in reversed(moved):
      os.rename(there, back)
    old.rmdir()
    raise
  try:
    shutil.rmtree(old)
  except OSError as e:
    return [
      f'the earlier data set could not be deleted and lies in {old} ({e.strerror}); delete it'
    ]
  return []


def _visible(folder: pathlib.Path) -> list[str]:
  return [name for name in os.listdir(folder) if not name.startswith('.')]


def leftovers(dest: pathlib.Path) -> list[str]:
  """Warnings: folders that runs of this tool left when they were killed."""
  warnings = []
  for name in sorted(os.listdir(dest)):
    match = _LEFTOVER.fullmatch(name)
    if match and not _runs(int(match[1])):
      warnings.append(f'{dest / name} was left behind by a run that was killed; delete it')
  return warnings


def _runs(pid: int) -> bool:
  # Signal 0 only asks. Of another user's process it may not, so there is one.
  try:
    os.kill(pid, 0)
  except OSError as e:
    return isinstance(e, PermissionError)
  except OverflowError:
    return False
  return True
