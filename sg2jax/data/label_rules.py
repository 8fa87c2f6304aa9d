"""The label of each picture: none, from the names of folders, or from a dataset.json.

A class is what has at least one usable picture. The forms of dataset.json are read in
`dataset_json.py`; docs/data.md states them.
"""

import collections
from collections.abc import Callable
import concurrent.futures
import os
import posixpath
from typing import NamedTuple

from sg2jax.data import dataset_json, sources, wording
from sg2jax.faults import DatasetError

RULES = ('none', 'folder', 'json')
_SPLITS = set('train training val valid validation test testing dev eval holdout'.split())


class Assignment(NamedTuple):
  """What a rule says of the files.

  Attributes:
    labels: {name of a file: index of its class, or vector}.
    names: of the classes, by index; () where they are numbers, or labels are vectors.
    c_dim: classes, or components of a vector; 0 without labels, or without a usable picture.
    one_hot: labels are classes.
    missing: {name of a file: why it has no label}.
    warnings: what the user should know, a line each.
    stale: paths in dataset.json of which there is no file.
  """

  labels: dict[str, int | list[float]]
  names: tuple[str, ...] = ()
  c_dim: int = 0
  one_hot: bool = True
  missing: dict[str, str] = {}
  warnings: tuple[str, ...] = ()
  stale: tuple[str, ...] = ()


def assign(rule: str, source: sources.Listing, usable: Callable[[str], bool]) -> Assignment:
  """Finds the labels by one of RULES; usable: whether a file is a picture that can be used.

  Raises DatasetError: no labels, or not in this form.
  """
  if rule == 'folder':
    return _from_folders(source, usable)
  if rule == 'json':
    return _from_json(source, usable)
  return Assignment({})


def _number_classes(
  files: dict[str, list[str]], usable: Callable[[str], bool]
) -> tuple[dict[str, int], tuple[str, ...], list[str]]:
  """Numbers classes, of each of which the files are given, in natural order.

  Returns:
    {file: index of its class}, the names of the classes, a warning of those that have no usable
    picture, which aren't numbered.
  """
  # In threads: the first picture of each of many classes has to be decoded.
  order = sorted(files, key=wording.natural_key)
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    is_class = dict(zip(order, pool.map(lambda c: any(map(usable, files[c])), order)))
  classes = [c for c in order if is_class[c]]
  labels = {path: i for i, c in enumerate(classes) for path in files[c]}
  names = {}
  for name in classes:
    name = wording.printable(name) or '(empty)'
    while name in names:  # two may become the same as text
      name += '_'
    names[name] = None
  warnings = []
  if len(classes) < len(order):
    empty = wording.enumerate_names(c for c in order if not is_class[c])
    warnings.append(f'no usable picture in {empty}: no class of the data set')
  return labels, tuple(names), warnings


# ---- folders; here one is '' or ends in '/'


def _from_folders(source: sources.Listing, usable: Callable[[str], bool]) -> Assignment:
  top = _shared_folder(source.names, usable)
  if top is None:
    return Assignment({})
  # Where all usable pictures are in one folder, and others beside it, those are broken classes,
  # which shall be said.
  above = _parent(top.rstrip('/'))
  has_classes = any(_class_of(path, top) and usable(path) for path in source.names)
  if not has_classes and any(_is_picture_beside(path, top, above) for path in source.names):
    top = above
  # ---- classes: folders in `top`
  files = {_class_of(folder + '/', top): [] for folder in source.folders}  # also those without any
  for path in source.names:
    files.setdefault(_class_of(path, top), []).append(path)
  files.pop(None, None)
  labels, names, warnings = _number_classes(files, usable)
  if not names:
    reasons = '; '.join(f'{e["file"]}: {e["reason"]}' for e in source.unusable[:3])
    raise DatasetError(
      '--labels=folder: all pictures lie in one folder; make one folder per class'
      + (f' (left out: {reasons})' if reasons else '')
    )
  # ---- what the user should look at
  if all(name.lower() in _SPLITS for name in names):
    warnings.append(
      f'the classes are {wording.enumerate_names(names)}: these look like parts of a data set, not '
      'like classes; to have the folders in them as classes, prepare one of them, as in '
      f'--source=.../{names[0]}'
    )
  beside = 'no label by --labels=folder: it lies beside the folders of the classes'
  missing = {path: beside for path in source.names if path not in labels and usable(path)}
  return Assignment(labels, names, len(names), True, missing, tuple(warnings))


def _parent(path: str) -> str:
  return posixpath.join(posixpath.dirname(path), '')


def _class_of(path: str, top: str) -> str | None:
  """The folder in `top` that a file lies in, at any depth."""
  if not path.startswith(top):
    return None
  folder, slash, _ = path[len(top) :].partition('/')
  return folder if slash else None


def _is_picture_beside(path: str, top: str, above: str) -> bool:
  return bool(
    _class_of(path, above)
    and not path.startswith(top)
    and path.lower().endswith(sources.PICTURE_SUFFIXES)
  )


def _shared_folder(paths: list[str], usable: Callable[[str], bool]) -> str | None:
  """The folder that all usable pictures share; None: no picture is usable.

  Of usable ones, so that a README, or a broken picture, beside the folders or above them changes no
  class. Few are looked at: one each in folders that would change the answer.
  """
  files = collections.defaultdict(list)
  for path in paths:
    files[_parent(path)].append(path)
  shared = None
  # Sorted, a folder comes before those in it, so most are inside `shared` by then.
  for folder in sorted(files):
    if shared is not None and folder.startswith(shared):
      continue
    if any(map(usable, files[folder])):
      if shared is None:
        shared = folder
      while not folder.startswith(shared):
        shared = _parent(shared[:-1])
  return shared


# ---- dataset.json


def _from_json(source: sources.Listing, usable: Callable[[str], bool]) -> Assignment:
  labels, missing, warnings, stale = dataset_json.read(source)
  kind = type(next(iter(labels.values())))
  if kind is list:
    c_dim = len(next(iter(labels.values())))
    return Assignment(labels, (), c_dim, False, missing, tuple(warnings), stale)
  files = collections.defaultdict(list)
  for path, label in labels.items():
    files[label].append(path)
  names = ()
  if kind is str:
    numbered, names, more = _number_classes(files, usable)
    c_dim = len(names)
    # Pictures of no class get any label: each will be left out for a reason of its own.
    labels = {path: numbered.get(path, 0) for path in labels}
  else:
    # Class numbers stay what they are; the last is the last that a usable picture has.
    last = next((c for c in sorted(files, reverse=True) if any(map(usable, files[c]))), -1)
    c_dim = last + 1
    more = [
      f'no usable picture of class {c} ({wording.enumerate_names(files[c], 3)}): the last class is '
      f'{last}'
      for c in sorted(files)
      if c > last >= 0
    ]
  return Assignment(labels, names, c_dim, True, missing, (*warnings, *more), stale)
