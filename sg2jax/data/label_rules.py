"""The label of each picture: none, from the names of folders, or from a dataset.json.

A class is what has at least one usable picture. The forms of dataset.json are read in
`dataset_json.py`; docs/data.md states them.
"""

from collections.abc import Callable
import concurrent.futures
import posixpath
from typing import NamedTuple

from sg2jax.data import dataset_json, sources, wording
from sg2jax.faults import DatasetError

RULES = ('none', 'folder', 'json')
_SPLITS = set('train training val valid validation test testing dev eval holdout'.split())

IsUsable = Callable[[str], bool]  # whether a file is a picture that can be used


class Assignment(NamedTuple):
  """What a rule says of the files.

  Attributes:
    labels: {name of a file: index of its class, or vector}; only of those that have one.
    names: of the classes, by index; () where they are numbers, or labels are vectors.
    warnings: what the user should know, a line each.
    stale: paths in dataset.json of which there is no file.
  """

  labels: dict[str, int | list[float]]
  names: tuple[str, ...] = ()
  warnings: tuple[str, ...] = ()
  stale: tuple[str, ...] = ()


def assign(rule: str, source: sources.Listing, is_usable: IsUsable) -> Assignment:
  """Finds the labels by one of RULES. Raises DatasetError: there are none, or not in this form."""
  if rule == 'none':
    return Assignment({})
  stale = []
  warnings = []
  if rule == 'folder':
    labels = _of_folders(source, is_usable)
  else:
    labels, stale = dataset_json.read(source)
  if stale:
    warnings.append(
      f'paths of dataset.json without a file: {len(stale)}, such as {stale[0]!r} (the source has '
      f'{source.names[0]!r}); left out'
    )
  names = ()
  if any(isinstance(label, str) for label in labels.values()):
    names, empty = _classes(labels, is_usable)
    index = {name: i for i, name in enumerate(names)}
    labels = {path: index[name] for path, name in labels.items() if name in index}
    if empty:
      listed = wording.enumerate_names(map(wording.printable, empty))
      warnings.append(f'no usable picture in {listed}: no class of the data set')
    if names and {name.lower() for name in names} <= _SPLITS:
      warnings.append(
        'the classes look like parts of a data set; to have the folders in them as classes, '
        f'prepare one of them, as in --source=.../{names[0]}'
      )
  return Assignment(labels, tuple(map(wording.printable, names)), tuple(warnings), tuple(stale))


def _classes(labels: dict[str, str], is_usable: IsUsable) -> tuple[list[str], list[str]]:
  """The classes with a usable picture, and the others, in natural order."""
  used = _with_usable(labels, is_usable)
  order = sorted(set(labels.values()), key=wording.natural_key)
  return [name for name in order if name in used], [name for name in order if name not in used]


def _with_usable(groups: dict[str, str], is_usable: IsUsable) -> set[str]:
  """The groups, of {file: group}, that have a usable picture."""
  files = {}
  for file, group in groups.items():
    files.setdefault(group, []).append(file)
  # In threads: a picture of each has to be decoded.
  with concurrent.futures.ThreadPoolExecutor() as pool:
    found = pool.map(lambda group: any(map(is_usable, group)), files.values())
    return {group for group, is_used in zip(files, found) if is_used}


def _of_folders(source: sources.Listing, is_usable: IsUsable) -> dict[str, str]:
  """{file: its folder, of those in the folder that all usable pictures share}.

  Of usable ones, so that a README, or a broken picture, beside the folders or above them changes no
  class.
  """
  folders = _with_usable({file: posixpath.dirname(file) for file in source.names}, is_usable)
  if not folders:  # each file will be left out for a reason of its own
    return {}
  top = posixpath.join(posixpath.commonpath(folders), '')  # '' or ends in '/'
  if len(folders) == 1:
    reasons = [f'; left out: {file}: {why}' for file, why in source.unusable.items()]
    raise DatasetError(
      f'--labels=folder: all usable pictures lie in one folder, {top!r}; make one folder per class'
      + ''.join(reasons[:3])
    )
  labels = {}
  for file in source.names:
    if file.startswith(top):
      folder, slash, _ = file[len(top) :].partition('/')
      if slash:
        labels[file] = folder
  return labels
