"""Where pictures come from: a folder or a zip, read without trusting either.

Looked at is every regular file at any depth, in the order of the names, except hidden ones (a part
of the path starts with a dot), `__MACOSX`, `Thumbs.db`, `desktop.ini` and `dataset.json`. Links are
followed; a folder is read once, by the first path to it (links come last in their folder), and
never a folder that the source lies in. Nothing of a zip is ever unpacked to disk.
"""

from collections.abc import Callable
import os
import pathlib
import posixpath
import stat
import threading
from typing import BinaryIO, NamedTuple
import zipfile

from sg2jax.data import images, wording
from sg2jax.faults import DatasetError

MAX_FILE_BYTES = 512 * 2**20
# Read by dataset_json. Another label file has to be named here, or it is tried as a picture.
LABEL_FILE = 'dataset.json'
_IGNORED = ('__MACOSX', 'Thumbs.db', 'desktop.ini')
UNREADABLE = 'unreadable: '  # begins a reason that may be gone the next time

Reader = Callable[[str], bytes]


class Listing(NamedTuple):
  """What a source holds. Paths are relative, parts separated by '/'.

  Attributes:
    names: files to try, sorted.
    unusable: {path: why it isn't even tried}.
    read: name -> bytes; thread-safe; raises images.Unusable.
    label_file: the dataset.json nearest the top, or None.
    stamps: of each of the names, what is another text when the file changes.
  """

  names: list[str]
  unusable: dict[str, str]
  read: Reader
  label_file: str | None
  stamps: list[str]


def listing(source: pathlib.Path) -> Listing:
  """Lists a folder or a zip. Raises DatasetError: missing, or a file that is no readable zip."""
  if not source.exists():
    raise DatasetError(f'--source={source}: no such folder or zip')
  return _list_folder(source) if source.is_dir() else _list_zip(source)


def reader(source: pathlib.Path) -> Reader:
  """The `read` of a Listing, for who knows the names: of a folder, nothing is listed.

  Raises DatasetError as `listing` does.
  """
  return _folder_reader(source) if source.is_dir() else listing(source).read


def _listing(files: dict[str, str], unusable: dict[str, str], read: Reader) -> Listing:
  """files: stamps of all that are there, with hidden ones and label files."""
  names = []
  label_files = []
  for name in sorted(files):
    if not _is_ignored(name):
      group = label_files if posixpath.basename(name) == LABEL_FILE else names
      group.append(name)
  nearest = min(label_files, key=lambda name: name.count('/'), default=None)
  return Listing(names, unusable, read, nearest, [files[name] for name in names])


def _is_ignored(name: str) -> bool:
  return any(part in _IGNORED or part.startswith('.') for part in name.split('/'))


def _read_limited(file: BinaryIO) -> bytes:
  data = file.read(MAX_FILE_BYTES + 1)  # the size that a zip states may be a lie
  if len(data) > MAX_FILE_BYTES:
    raise images.Unusable(f'too large: more than {MAX_FILE_BYTES >> 20} MiB')
  return data


def _stamp(status: os.stat_result) -> str:
  # ctime, too: a copy may have the time of the original, and its size.
  return f'{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}'


def _list_folder(root: pathlib.Path) -> Listing:
  files = {}
  unusable = {}

  def refuse_unreadable(error: OSError):
    unusable[os.path.relpath(error.filename, root)] = f'unreadable folder: {error.strerror}'

  # By device and inode: a folder has many paths where there are links.
  known = {_identity(parent) for parent in root.resolve().parents}
  for path, folders, names in os.walk(root, onerror=refuse_unreadable, followlinks=True):
    identity = _identity(path)
    if identity in known:
      unusable[os.path.relpath(path, root)] = (
        'link to a folder that is read already, or that the source lies in (a loop)'
      )
      folders.clear()
      continue
    known.add(identity)
    # In place: os.walk goes into what is left, in this order.
    folders[:] = [name for name in folders if not _is_ignored(name)]
    folders.sort(key=lambda name, path=path: (os.path.islink(os.path.join(path, name)), name))
    for file in names:
      whole = os.path.join(path, file)
      name = os.path.relpath(whole, root)
      try:
        status = os.stat(whole)
      except OSError:
        status = None
      if status and stat.S_ISREG(status.st_mode):
        files[name] = _stamp(status)
      elif not _is_ignored(name):  # opening a pipe or a device could hang
        unusable[name] = 'broken link, or not a regular file'
  return _listing(files, unusable, _folder_reader(root))


def _folder_reader(root: pathlib.Path) -> Reader:
  def read(name: str) -> bytes:
    try:
      with open(root / name, 'rb') as file:
        return _read_limited(file)
    except OSError as e:
      raise images.Unusable(f'{UNREADABLE}{e.strerror}') from e

  return read


def _identity(path: str | pathlib.Path) -> tuple[int, int]:
  status = os.stat(path)
  return status.st_dev, status.st_ino


def _list_zip(archive_path: pathlib.Path) -> Listing:
  try:
    with zipfile.ZipFile(archive_path) as archive:
      members = archive.infolist()
    # Of all files that of the zip: what its list says of one may be true of a damaged one.
    stamp = _stamp(os.stat(archive_path))
  except Exception as e:  # zipfile raises nearly anything on damaged files
    raise DatasetError(
      f'--source={archive_path}: neither a folder nor a readable zip ({wording.printable(str(e))})'
    ) from e
  files = {}
  unusable = {}
  for member in members:
    name = member.filename.replace('\\', '/')  # Windows' separator, against the standard
    # Nothing is unpacked, but names go into the report and classes.
    if name.startswith('/') or name[1:2] == ':' or '..' in name.split('/'):
      unusable[name] = 'path leads out of the zip'
    elif not name.endswith('/'):
      files[posixpath.normpath(name)] = member
  opened = threading.local()

  def read(name: str) -> bytes:
    try:
      if not hasattr(opened, 'archive'):  # a shared one would make threads wait for each other
        opened.archive = zipfile.ZipFile(archive_path)
      with opened.archive.open(files[name]) as file:
        return _read_limited(file)
    except images.Unusable:
      raise
    except Exception as e:  # damage of many kinds, encryption, unknown compression
      raise images.Unusable(f'corrupt zip member: {str(e) or type(e).__name__}') from e

  return _listing(dict.fromkeys(files, stamp), unusable, read)
