"""Where pictures come from: a folder or a zip, read without trusting either.

Looked at is every regular file at any depth, in the order of the names, except hidden ones (a part
of the path starts with a dot), `__MACOSX`, `Thumbs.db`, `desktop.ini` and `dataset.json`. Links are
followed; a folder is read once, by its own path if that is in the source, else by the first link to
it, and never a folder that the source lies in. Nothing of a zip is ever unpacked to disk.
"""

from collections.abc import Callable
import os
import pathlib
import posixpath
import stat
import threading
from typing import BinaryIO, NamedTuple
import zipfile
import zlib

from sg2jax.data import images, wording
from sg2jax.faults import DatasetError

MAX_FILE_BYTES = 512 * 2**20
# Read by dataset_json. Another label file has to be named here, or it is tried as a picture.
LABEL_FILE = 'dataset.json'
_IGNORED = ('__MACOSX', 'Thumbs.db', 'desktop.ini', LABEL_FILE)
# Only hints: what a file is, its content decides.
PICTURE_SUFFIXES = tuple(
  '.png .jpg .jpeg .jfif .jpe .webp .bmp .dib .gif .tif .tiff .ppm .pgm .pbm .pnm .avif'.split()
)


class Listing(NamedTuple):
  """What a source holds. Paths are relative, parts separated by '/'.

  Attributes:
    names: files to try, sorted.
    unusable: [{file, reason}] of what isn't even tried.
    read: name -> bytes; thread-safe; raises images.Unusable.
    label_file: the dataset.json nearest the top, or None.
    folders: all folders, also those without a file.
  """

  names: list[str]
  unusable: list[dict[str, str]]
  read: Callable[[str], bytes]
  label_file: str | None
  folders: tuple[str, ...]


def listing(source: pathlib.Path) -> Listing:
  """Lists a folder or a zip. Raises DatasetError: missing, or a file that is no readable zip."""
  if not source.exists():
    raise DatasetError(f'--source={source}: no such folder or zip')
  return _list_folder(source) if source.is_dir() else _list_zip(source)


def report_entry(name: str, reason: str) -> dict[str, str]:
  """A file that can't be used, as the report names it."""
  return {'file': wording.printable(name), 'reason': reason}


def _is_ignored(name: str) -> bool:
  parts = [part for part in name.split('/') if part != '.']
  return any(part in _IGNORED or part.startswith('.') for part in parts)


def _nearest_label_file(names: list[str]) -> str | None:
  found = []
  for name in names:
    folder, _, file = name.rpartition('/')
    if file == LABEL_FILE and not _is_ignored(folder):
      found.append(name)
  return min(found, key=lambda name: (name.count('/'), name), default=None)


def _read_limited(file: BinaryIO) -> bytes:
  data = file.read(MAX_FILE_BYTES + 1)  # the size that a zip states may be a lie
  if len(data) > MAX_FILE_BYTES:
    raise images.Unusable(f'too large: more than {MAX_FILE_BYTES >> 20} MiB')
  return data


# ---- folders


def _list_folder(root: pathlib.Path) -> Listing:
  walk = _Walk(root)

  def read(name: str) -> bytes:
    try:
      with open(root / name, 'rb') as file:
        return _read_limited(file)
    except OSError as e:
      raise images.Unusable(f'unreadable: {e.strerror}') from e

  names = sorted(name for name in walk.files if not _is_ignored(name))
  label_file = _nearest_label_file(walk.files)
  return Listing(names, walk.unusable, read, label_file, tuple(walk.folders))


class _Walk:
  """Files and folders below `root`, links followed; see the top of this file."""

  def __init__(self, root: pathlib.Path):
    self.files = []
    self.folders = []
    self.unusable = []
    self._root = str(root)
    self._parents = {_identity(parent) for parent in root.resolve().parents}
    self._paths = {}  # of each folder that was read, by its identity
    self._links = []  # to folders

    self._read_folder(self._root)
    # All real folders come first, so that a link takes none of their files.
    while self._links:
      self._follow(self._links.pop(0))

  def _name(self, path: str) -> str:
    return os.path.relpath(path, self._root).replace(os.sep, '/')

  def _refuse(self, path: str, reason: str):
    self.unusable.append(report_entry(self._name(path), wording.printable(reason)))

  def _follow(self, link: str):
    identity = _identity(link)
    earlier = self._paths.get(identity)
    if identity in self._parents:
      self._refuse(link, 'link to a folder that the source lies in (a loop): not followed')
    elif earlier is None:
      self._read_folder(link)
    else:
      loop = ' (a loop)' if link.startswith(os.path.join(earlier, '')) else ''
      self._refuse(link, f'link to a folder that is read already, as {self._name(earlier)}{loop}')

  def _read_folder(self, top: str):
    """With the folders in it, of any depth."""

    def refuse_unreadable(error: OSError):
      self._refuse(error.filename, f'unreadable folder: {error.strerror}')

    for path, folders, files in os.walk(top, onerror=refuse_unreadable):
      # Device and inode: the same folder has many paths where there are links.
      identity = _identity(path)
      if identity in self._paths or identity in self._parents:
        # Reached again, inside of what a link led to.
        self._refuse(path, 'a folder that is read already by another path')
        folders.clear()
        continue
      self._paths[identity] = path
      if path != self._root:
        self.folders.append(self._name(path))
      # In place: os.walk goes into what is left.
      folders[:] = sorted(name for name in folders if not _is_ignored(name))
      for folder in [os.path.join(path, name) for name in folders]:
        if os.path.islink(folder):
          self._links.append(folder)
        elif folder.lower().endswith(PICTURE_SUFFIXES):
          self._refuse(folder, 'a folder, not an image (files in it are read)')
      for name in files:
        if not _is_ignored(name) or name == LABEL_FILE:
          self._add_file(os.path.join(path, name))

  def _add_file(self, path: str):
    if os.path.isfile(path):
      self.files.append(self._name(path))
    elif os.path.lexists(path) and not os.path.exists(path):
      self._refuse(path, 'broken link')
    else:  # opening a pipe or a device could hang
      self._refuse(path, 'not a regular file')


def _identity(path: str | pathlib.Path) -> tuple[int, int] | None:
  """Equal for all paths of one folder."""
  try:
    status = os.stat(path)
  except OSError:
    return None  # gone, or not to be looked at; to list it will say why
  return status.st_dev, status.st_ino


# ---- zips


def _list_zip(archive_path: pathlib.Path) -> Listing:
  try:
    with zipfile.ZipFile(archive_path) as archive:
      members = archive.infolist()
  except (OSError, zipfile.BadZipFile) as e:
    raise DatasetError(
      f'--source={archive_path}: neither a folder nor a readable zip ({wording.printable(str(e))})'
    ) from e
  files = {}
  folders = set()
  unusable = []
  for member in members:
    name = member.filename.replace('\\', '/')  # Windows' separator, against the standard
    # Nothing is unpacked, but names go into the report and classes.
    if name.startswith('/') or name[1:2] == ':' or '..' in name.split('/'):
      unusable.append(report_entry(name, 'path leads out of the zip'))
      continue
    path = posixpath.normpath(name)
    folders.update(str(parent) for parent in pathlib.PurePosixPath(path).parents)
    if name.endswith('/'):
      folders.add(path)
    elif stat.S_ISLNK(member.external_attr >> 16):
      unusable.append(report_entry(path, 'link in a zip: not followed'))
    elif path in files:
      unusable.append(report_entry(path, 'second file of this name in the zip'))
    else:
      files[path] = member
  opened = threading.local()

  def read(name: str) -> bytes:
    try:
      if not hasattr(opened, 'archive'):  # a shared one would make threads wait for each other
        opened.archive = zipfile.ZipFile(archive_path)
      with opened.archive.open(files[name]) as file:
        return _read_limited(file)
    # NotImplementedError, a RuntimeError: unknown compression; RuntimeError: encrypted.
    except (zipfile.BadZipFile, zlib.error, RuntimeError, OSError, EOFError) as e:
      raise images.Unusable(f'corrupt zip member: {e}') from e

  names = sorted(name for name in files if not _is_ignored(name))
  folders = tuple(sorted(f for f in folders if f != '.' and not _is_ignored(f)))
  return Listing(names, unusable, read, _nearest_label_file(list(files)), folders)
