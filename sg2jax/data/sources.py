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
from typing import NamedTuple
import unicodedata
import zipfile
import zlib

from sg2jax import faults
from sg2jax.data import images

MAX_FILE_BYTES = 512 * 2**20
LABEL_FILE = 'dataset.json'
_IGNORED = ('__MACOSX', 'Thumbs.db', 'desktop.ini', LABEL_FILE)
PICTURE_SUFFIXES = (
  '.png',
  '.jpg',
  '.jpeg',
  '.jfif',
  '.jpe',
  '.webp',
  '.bmp',
  '.dib',
  '.gif',
  '.tif',
  '.tiff',
  '.ppm',
  '.pgm',
  '.pbm',
  '.pnm',
  '.avif',
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
  folders: tuple[str, ...] = ()


def text(name: str) -> str:
  """A name that is shown or stored: what isn't text, control characters and blanks at its ends are
  escaped.

  File names are any bytes; a line of output, a name of a class, and JSON are text.
  """

  def escaped(char: str) -> str:
    return char.encode('unicode_escape', 'surrogatepass').decode() if char != ' ' else '\\x20'

  shown = ''.join(
    escaped(c) if unicodedata.category(c) in ('Cc', 'Cs', 'Zl', 'Zp') else c for c in name
  )
  inner = shown.strip()
  if inner != shown:  # of blanks alone, `inner` is empty
    start = shown.index(inner) if inner else len(shown)
    head, tail = shown[:start], shown[start + len(inner) :]
    shown = ''.join(map(escaped, head)) + inner + ''.join(map(escaped, tail))
  return shown


def entry(name: str, reason: str) -> dict[str, str]:
  """A line of the report."""
  return {'file': text(name), 'reason': reason}


def listing(source: pathlib.Path) -> Listing:
  """Lists a folder or a zip.

  Raises:
    DatasetError: `source` is missing, or a file that is no readable zip.
  """
  if not source.exists():
    raise faults.DatasetError(f'--source={source}: no such folder or zip')
  return _list_folder(source) if source.is_dir() else _list_zip(source)


def _ignored(name: str) -> bool:
  return any(part in _IGNORED or part.startswith('.') and part != '.' for part in name.split('/'))


def _nearest_label_file(names: list[str]) -> str | None:
  found = [
    name
    for name in names
    if name.rpartition('/')[2] == LABEL_FILE and not _ignored(name.rpartition('/')[0])
  ]
  return min(found, key=lambda name: (name.count('/'), name), default=None)


def _limited(file) -> bytes:
  data = file.read(MAX_FILE_BYTES + 1)  # the size that a zip states may be a lie
  if len(data) > MAX_FILE_BYTES:
    raise images.Unusable(f'too large: more than {MAX_FILE_BYTES >> 20} MiB')
  return data


class _Walk:
  """Files and folders below `root`, links followed; see the top of this file."""

  def __init__(self, root: pathlib.Path):
    self.root, self.names, self.folders, self.unusable = str(root), [], [], []
    real = root.resolve()
    self.around = {_identity(str(parent)) for parent in real.parents}
    self.seen, self.links = {}, []
    self._folder(self.root)
    while self.links:  # all real folders come first, so that a link takes none of their files
      path = self.links.pop(0)
      first = self.seen.get(_identity(path))
      if _identity(path) in self.around:
        self._refuse(path, 'link to a folder that the source lies in (a loop): not followed')
      elif first is not None:
        loop = ' (a loop)' if path.startswith(os.path.join(first, '')) else ''
        self._refuse(path, f'link to a folder that is read already, as {self._name(first)}{loop}')
      else:
        self._folder(path)

  def _name(self, path: str) -> str:
    return path[len(os.path.join(self.root, '')) :].replace(os.sep, '/') or '.'

  def _refuse(self, path: str, reason: str):
    self.unusable.append(entry(self._name(path), text(reason)))

  def _folder(self, top: str):
    pending = [top]
    while pending:
      path = pending.pop()
      identity = _identity(path)
      try:
        found = sorted(os.scandir(path), key=lambda e: e.name)
      except OSError as err:
        self._refuse(path, f'unreadable folder: {err.strerror}')
        continue
      # reached again, inside of what a link led to
      if identity in self.seen or identity in self.around:
        self._refuse(path, 'a folder that is read already by another path')
        continue
      self.seen[identity] = path
      if path != self.root:
        self.folders.append(self._name(path))
      for item in found:
        if not _ignored(self._name(item.path)) or item.name == LABEL_FILE:
          self._item(item, pending)

  def _item(self, item: os.DirEntry, pending: list[str]):
    link = item.is_symlink()
    if link and os.path.isdir(item.path):
      self.links.append(item.path)
    elif item.is_dir(follow_symlinks=False):
      if item.name.lower().endswith(PICTURE_SUFFIXES):
        self._refuse(item.path, 'a folder, not an image (files in it are read)')
      pending.append(item.path)
    elif item.is_file(follow_symlinks=False) or link and os.path.isfile(item.path):
      self.names.append(self._name(item.path))
    elif link and not os.path.exists(item.path):
      self._refuse(item.path, 'broken link')
    else:  # opening a pipe or a device could hang
      self._refuse(item.path, 'not a regular file')


def _identity(path: str) -> tuple[int, int] | None:
  try:
    found = os.stat(path)
  except OSError:
    return None  # gone, or not to be looked at; to list it will say why
  return found.st_dev, found.st_ino


def _list_folder(root: pathlib.Path) -> Listing:
  found = _Walk(root)

  def read(name: str) -> bytes:
    try:
      with open(root / name, 'rb') as file:
        return _limited(file)
    except OSError as err:
      raise images.Unusable(f'unreadable: {err.strerror}') from err

  return Listing(
    sorted(name for name in found.names if not _ignored(name)),
    found.unusable,
    read,
    _nearest_label_file(found.names),
    tuple(found.folders),
  )


def _list_zip(archive_path: pathlib.Path) -> Listing:
  try:
    with zipfile.ZipFile(archive_path) as archive:
      members = archive.infolist()
  except (OSError, zipfile.BadZipFile) as err:
    raise faults.DatasetError(
      f'--source={archive_path}: neither a folder nor a readable zip ({text(str(err))})'
    ) from err
  unusable, found, folders = [], {}, set()
  for member in members:
    name = member.filename.replace('\\', '/')  # Windows' separator, against the standard
    if name.startswith('/') or name[1:2] == ':' or '..' in name.split('/'):
      unusable.append(entry(name, 'path leads out of the zip'))
      continue
    path = posixpath.normpath(name)
    folders.update(str(parent) for parent in pathlib.PurePosixPath(path).parents)
    if member.is_dir() or name.endswith('/'):
      folders.add(path)
    elif stat.S_ISLNK(member.external_attr >> 16):
      unusable.append(entry(path, 'link in a zip: not followed'))
    elif path in found:
      unusable.append(entry(path, 'second file of this name in the zip'))
    else:
      found[path] = member
  local = threading.local()

  def read(name: str) -> bytes:
    try:
      if not hasattr(local, 'archive'):  # a shared handle would make threads wait for each other
        local.archive = zipfile.ZipFile(archive_path)
      with local.archive.open(found[name]) as file:
        return _limited(file)
    # NotImplementedError: unknown compression; RuntimeError: encrypted.
    except (zipfile.BadZipFile, zlib.error, RuntimeError, OSError, EOFError) as err:
      raise images.Unusable(f'corrupt zip member: {err}') from err

  return Listing(
    sorted(name for name in found if not _ignored(name)),
    unusable,
    read,
    _nearest_label_file(list(found)),
    tuple(f for f in folders if f != '.' and not _ignored(f)),
  )
