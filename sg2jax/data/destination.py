"""Where a data set is put: only into a new or empty folder, or over an earlier one; all or
nothing.
"""

import json
import os
import pathlib
import re
import shutil

from sg2jax import faults

REPORT = 'report.json'
TOOL = 'sg2jax.tools.prepare'
# All that `prepare` writes, in this version or an earlier one; a folder that holds more is never
# replaced.
_OURS = re.compile(
  r'images-train\.array_record-\d+-of-\d+|(dataset_info|features|metadata|labels|report)\.json'
  r'|label\.labels\.txt|\.(building|old)-\d+'
)


def resolved(dest: str) -> pathlib.Path:
  """The absolute path with all links followed: what is written goes where they point, and they
  stay.

  Raises:
    UsageError: a link leads to itself, or the path isn't text, which the libraries that write need.
  """
  try:
    path = pathlib.Path(dest).expanduser().resolve()
    str(path).encode()
  except UnicodeEncodeError:
    raise faults.UsageError(
      f'--dest={dest!r}: the path is no UTF-8; choose a folder with another name'
    ) from None
  except (OSError, RuntimeError) as err:
    raise faults.UsageError(f'--dest={dest}: {err}; choose a folder') from err
  return path


def check(source: pathlib.Path, dest: pathlib.Path):
  """Looks, before the work, whether a data set made of `source` can be put at `dest`, a resolved
  path.

  Raises:
    UsageError: it is no place for one.
    WriteError: nothing can be written there.
  """
  if dest.is_relative_to(source.resolve()):
    raise faults.UsageError(f'--dest={dest} lies inside --source={source}; choose a place outside')
  if source.resolve().is_relative_to(dest):
    raise faults.UsageError(
      f'--source={source} lies inside --dest={dest}, which would be replaced; choose another place'
    )
  if dest.exists() and not dest.is_dir():
    raise faults.UsageError(f'--dest={dest} is a file; choose a new folder')
  try:
    there = sorted(os.listdir(dest)) if dest.exists() else []
  except OSError as err:
    raise faults.UsageError(
      f'--dest={dest} can not be read ({err.strerror}); choose a new folder'
    ) from err
  if there and not _is_ours(dest):
    raise faults.UsageError(
      f'--dest={dest} is not empty and was not made by this tool; choose a new folder'
    )
  foreign = [name for name in there if not _OURS.fullmatch(name)]
  if foreign:
    raise faults.UsageError(
      f'--dest={dest} holds a data set and also {foreign[0]!r}, which would be lost; move that, or '
      'choose a new folder'
    )
  above = next(p for p in (dest, *dest.parents) if p.exists())
  if not above.is_dir():
    raise faults.UsageError(f'--dest={dest}: {above} is a file; choose another place')
  if not os.access(above, os.W_OK | os.X_OK):
    raise faults.WriteError(f'--dest={dest}: {above} may not be written to; choose another place')


def _is_ours(dest: pathlib.Path) -> bool:
  try:
    return json.loads((dest / REPORT).read_text()).get('tool') == TOOL
  except (OSError, ValueError, AttributeError):
    return False


def scratch(dest: pathlib.Path) -> pathlib.Path:
  """The folder to build in, on the same disk: beside `dest`, or in it where it can't be renamed (a
  mounted disk).
  """
  fixed = dest.is_dir() and (os.path.ismount(dest) or not os.access(dest.parent, os.W_OK | os.X_OK))
  return (
    dest / f'.building-{os.getpid()}'
    if fixed
    else dest.with_name(f'.{dest.name}.building-{os.getpid()}')
  )


def replace(built: pathlib.Path, dest: pathlib.Path) -> list[str]:
  """Puts the finished folder in place; an earlier one is deleted once the new one is there.

  Returns:
    Warnings: what could not be deleted.
  """
  if built.parent == dest:
    return _refill(built, dest)
  old = dest.with_name(f'.{dest.name}.old-{os.getpid()}')
  if dest.exists():
    os.rename(dest, old)
  try:
    os.rename(built, dest)
  except BaseException:
    if old.exists():
      os.rename(old, dest)
    raise
  return _deleted(old)


def _refill(built: pathlib.Path, dest: pathlib.Path) -> list[str]:
  """As `replace`, file by file; dataset_info.json, without which it is no data set, goes first and
  comes last.
  """
  old = dest / f'.old-{os.getpid()}'
  order = sorted(
    (name for name in os.listdir(dest) if name[0] != '.'),
    key=lambda name: name != 'dataset_info.json',
  )
  new = sorted(os.listdir(built), key=lambda name: name == 'dataset_info.json')
  old.mkdir()
  try:
    for name in order:
      os.rename(dest / name, old / name)
    for name in new:
      os.rename(built / name, dest / name)
  except BaseException:
    for name in filter(lambda name: (dest / name).exists() and not (built / name).exists(), new):
      os.rename(dest / name, built / name)
    for name in os.listdir(old):
      os.rename(old / name, dest / name)
    old.rmdir()
    raise
  return _deleted(old)


def _deleted(old: pathlib.Path) -> list[str]:
  try:
    if old.exists():
      shutil.rmtree(old)
  except OSError as err:
    return [
      f'the earlier data set could not be deleted and lies in {old} ({err.strerror}); delete it'
    ]
  return []


def leftovers(dest: pathlib.Path) -> list[str]:
  """Warnings: folders of runs of this tool that were killed, beside `dest` or in it."""
  places = [
    (dest.parent, rf'\.{re.escape(dest.name)}\.(?:building|old)-(\d+)'),
    (dest, r'\.(?:building|old)-(\d+)'),
  ]
  found = []
  for folder, pattern in places:
    for name in sorted(os.listdir(folder)) if folder.is_dir() else []:
      match = re.fullmatch(pattern, name)
      if match and not _runs(int(match[1])):
        found.append(f'{folder / name} was left behind by a run that was killed; delete it')
  return found


def _runs(pid: int) -> bool:
  try:
    os.kill(pid, 0)
  except OSError as err:
    return isinstance(err, PermissionError)
  except OverflowError:
    return False
  return True
