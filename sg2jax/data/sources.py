"""Where pictures and labels come from: a folder or a zip, read without trusting either.

Looked at is every regular file at any depth, in the order of the names, except hidden ones (a part
of the path starts with a dot), `__MACOSX`, `Thumbs.db`, `desktop.ini` and `dataset.json`. Links to
files are followed, links to folders are not. Nothing of a zip is ever unpacked to disk.
"""

from collections.abc import Callable
import json
import os
import pathlib
import threading
from typing import NamedTuple
import zipfile
import zlib

from sg2jax import faults
from sg2jax.data import images

LABELS = ('none', 'folder', 'json')
MAX_FILE_BYTES = 512 * 2**20
_LABEL_FILE = 'dataset.json'
_SUFFIXES = ('.png', '.jpg', '.jpeg', '.webp', '.bmp', '.gif', '.tif', '.tiff', '.ppm')
_IGNORED = ('__MACOSX', 'Thumbs.db', 'desktop.ini', _LABEL_FILE)


class Listing(NamedTuple):
  """What a source holds. Paths are relative, parts separated by '/'.

  Attributes:
    names: files to try, sorted.
    unusable: [{file, reason}] of what isn't even tried.
    read: name -> bytes; thread-safe; raises images.Unusable.
    label_file: the dataset.json nearest the top, or None.
  """
  names: list[str]
  unusable: list[dict[str, str]]
  read: Callable[[str], bytes]
  label_file: str | None


def entry(name: str, reason: str) -> dict[str, str]:
  """A line of the report. File names needn't be text, JSON must be."""
  return {'file': name.encode('utf-8', 'backslashreplace').decode(), 'reason': reason}


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
  found = [name for name in names if name.rpartition('/')[2] == _LABEL_FILE]
  return min(found, key=lambda name: (name.count('/'), name), default=None)


def _limited(file) -> bytes:
  data = file.read(MAX_FILE_BYTES + 1)  # the size that a zip states may be a lie
  if len(data) > MAX_FILE_BYTES:
    raise images.Unusable(f'too large: more than {MAX_FILE_BYTES >> 20} MiB')
  return data


def _list_folder(root: pathlib.Path) -> Listing:
  names, unusable = [], []

  def refuse(path: str, reason: str):
    name = os.path.relpath(path, root).replace(os.sep, '/')
    if not _ignored(name):
      unusable.append(entry(name, reason))

  def unreadable(err: OSError):
    refuse(err.filename, f'unreadable folder: {err.strerror}')

  for folder, subfolders, files in os.walk(root, onerror=unreadable):
    for path in (os.path.join(folder, name) for name in subfolders):
      if os.path.islink(path):
        refuse(path, 'link to a folder: not followed')
      elif path.lower().endswith(_SUFFIXES):
        refuse(path, 'a folder, not an image (files in it are read)')
    for path in (os.path.join(folder, name) for name in files):
      if os.path.isfile(path):
        names.append(os.path.relpath(path, root).replace(os.sep, '/'))
      else:  # opening a pipe or a device could hang
        refuse(path, 'broken link' if os.path.islink(path) else 'not a regular file')

  def read(name: str) -> bytes:
    try:
      with open(root / name, 'rb') as file:
        return _limited(file)
    except OSError as err:
      raise images.Unusable(f'unreadable: {err.strerror}') from err

  return Listing(sorted(name for name in names if not _ignored(name)), unusable, read,
                 _nearest_label_file(names))


def _list_zip(path: pathlib.Path) -> Listing:
  try:
    with zipfile.ZipFile(path) as archive:
      members = [member for member in archive.infolist() if not member.is_dir()]
  except (OSError, zipfile.BadZipFile) as err:
    raise faults.DatasetError(
        f'--source={path}: neither a folder nor a readable zip ({err})') from err
  unusable, found = [], {}
  for member in members:
    name = member.filename
    if name.startswith('/') or name[1:2] == ':' or '..' in name.replace('\\', '/').split('/'):
      unusable.append(entry(name, 'path leads out of the zip'))
    elif name in found:
      unusable.append(entry(name, 'second file of this name in the zip'))
    else:
      found[name] = member
  local = threading.local()

  def read(name: str) -> bytes:
    try:
      if not hasattr(local, 'archive'):  # a shared handle would make threads wait for each other
        local.archive = zipfile.ZipFile(path)
      with local.archive.open(found[name]) as file:
        return _limited(file)
    # NotImplementedError: unknown compression; RuntimeError: encrypted.
    except (zipfile.BadZipFile, zlib.error, RuntimeError, OSError, EOFError) as err:
      raise images.Unusable(f'corrupt zip member: {err}') from err

  return Listing(sorted(name for name in found if not _ignored(name)), unusable, read,
                 _nearest_label_file(list(found)))


def labels(rule: str, source: Listing) -> tuple[dict, list[str] | int | None]:
  """Finds the labels.

  Args:
    rule: 'none'; 'folder': the class is the first folder below the one that all pictures share;
      'json': dataset.json, as {"labels": [[path, label], ...]} or {path: label} with paths relative
      to its own folder, a label being a number or a list (multi-hot).
    source: what was listed.

  Returns:
    ({name: int or list of float}, the sorted class names, or the length of a label, or None).

  Raises:
    DatasetError: no labels, or not in this form.
  """
  if rule == 'none':
    return {}, None
  if rule == 'folder':
    return _folder_labels(source.names)
  if source.label_file is None:
    raise faults.DatasetError(f'--labels=json: there is no {_LABEL_FILE} in the source; add one, '
                              'or use --labels=folder')
  try:
    return _json_labels(source.read(source.label_file), source.label_file.rpartition('/')[0])
  except (images.Unusable, ValueError, TypeError, AttributeError) as err:
    raise faults.DatasetError(
        f'{source.label_file}: not the labels of a data set ({err}); expected {{"labels": '
        '[["path", 3], ...]} or {"path": 3}, numbers or lists throughout') from err


def _folder_labels(names: list[str]) -> tuple[dict[str, int], list[str]]:
  # A README beside the one top folder must not make that folder the only class.
  pictures = [name for name in names if name.lower().endswith(_SUFFIXES)] or names or ['']
  shared = os.path.commonpath([os.path.dirname(name) for name in pictures])
  below = {name: os.path.relpath(name, shared or '.').split(os.sep) for name in names}
  found = {name: parts[0] for name, parts in below.items() if len(parts) > 1 and parts[0] != '..'}
  classes = sorted(set(found.values()))
  if not classes:
    raise faults.DatasetError('--labels=folder: all pictures lie in one folder; make one folder '
                              'per class')
  return {name: classes.index(c) for name, c in found.items()}, classes


def _json_labels(data: bytes, folder: str) -> tuple[dict, int]:
  table = json.loads(data)
  if isinstance(table.get('labels', 0), list | None):
    table = dict(table['labels'] or {})
  table = {f'{folder}/{name}'.lstrip('/'): label for name, label in table.items()}
  if not table:
    raise ValueError('it holds no labels')
  if all(isinstance(label, int) and label >= 0 for label in table.values()):
    return table, max(table.values()) + 1
  lengths = {len(label) for label in table.values()}
  if len(lengths) != 1:
    raise ValueError(f'lists of different lengths {sorted(lengths)}')
  return {name: [float(x) for x in label] for name, label in table.items()}, lengths.pop()
