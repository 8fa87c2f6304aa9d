"""Where a data set is put: into a new or empty folder, or over an earlier one; all or nothing.

It is built in a hidden folder inside of the destination, and then moved file by file: the place may
be a mounted disk, or one with a parent that can't be written to.
"""

from collections.abc import Iterator
import contextlib
import os
import pathlib
import shutil

from sg2jax import locks
from sg2jax.data import records
from sg2jax.faults import UsageError

REPORT = 'report.json'
TOOL = 'sg2jax.tools.prepare'  # in the report: it says who made the folder
BUILDING = '.building'


def resolved(dest: str, source: str) -> pathlib.Path:
  """The absolute path of `dest` with all links followed: data go where they point, and they stay.

  Raises UsageError if it is no place for a data set: anything else would be lost there, or it is in
  the folder of pictures.
  """
  path = pathlib.Path(os.path.realpath(os.path.expanduser(dest)))
  if path.is_relative_to(os.path.realpath(os.path.expanduser(source))):
    raise UsageError(
      f'--dest={dest} is inside of --source={source}, where it would be taken for pictures the '
      'next time; choose a folder outside'
    )
  try:
    str(path).encode()  # array_record needs UTF-8
    names = [name for name in sorted(os.listdir(path)) if not name.startswith('.')]
    is_ours = REPORT in names and TOOL in (path / REPORT).read_text(errors='replace')
  except FileNotFoundError:
    return path
  except (OSError, UnicodeError) as e:
    raise UsageError(f'--dest={dest}: {e}; choose another folder') from e
  others = [name for name in names if not is_ours or not records.FILES.fullmatch(name)]
  if others:
    raise UsageError(
      f'--dest={dest} holds {others[0]!r}, which was not made by this tool and would be lost; move '
      'that, or choose a new folder'
    )
  return path


@contextlib.contextmanager
def building(dest: pathlib.Path) -> Iterator[pathlib.Path]:
  """The folder to build in, DEST/.building, for this process alone.

  It is gone afterwards, and so is a new `dest` that stayed empty; but if the block raises and there
  is something in it, it stays for the next run, as it does where the process is killed.

  Raises UsageError if another process is at work there, WriteError if nothing can be written.
  """
  made = [folder for folder in (dest, *dest.parents) if not folder.exists()]
  scratch = dest / BUILDING
  try:
    with locks.locked(scratch, 'dest'):
      keep = True
      try:
        yield scratch
        keep = False
      finally:
        if not keep or all(path.name.startswith('.') for path in scratch.iterdir()):
          shutil.rmtree(scratch)
  finally:
    for folder in made:
      with contextlib.suppress(OSError):  # it isn't empty, as it should be, or was never made
        folder.rmdir()


def replace(built: dict[str, pathlib.Path], dest: pathlib.Path) -> None:
  """Moves what was built, {name to have: path}, into place, over an earlier data set."""
  # Without its description it is no data set: that goes first and comes last.
  (dest / records.INFO).unlink(missing_ok=True)
  for name in os.listdir(dest):
    if records.FILES.fullmatch(name) and name not in built:
      (dest / name).unlink(missing_ok=True)
  # The report, by which the folder is known as ours, first.
  for name in sorted(built, key=lambda name: (name == records.INFO, name != REPORT)):
    os.replace(built[name], dest / name)
