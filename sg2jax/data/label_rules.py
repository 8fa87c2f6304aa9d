"""The label of each picture: from the names of folders, or from a dataset.json."""

from collections.abc import Callable
import posixpath

from sg2jax import faults
from sg2jax.data import classes, dataset_json, sources
from sg2jax.data.sources import text

RULES = ('none', 'folder', 'json')
_SPLITS = {
  'train',
  'training',
  'val',
  'valid',
  'validation',
  'test',
  'testing',
  'dev',
  'eval',
  'holdout',
}


def assign(rule: str, source: sources.Listing, usable: Callable[[str], bool]) -> classes.Assigned:
  """Finds the labels.

  Args:
    rule: 'none'; 'folder': the class is the first folder below the one that all usable pictures
    share;
      'json': dataset.json.
    source: what was listed.
    usable: whether a file is a picture that can be used: a class is what has one.

  Raises:
    DatasetError: no labels, or not in this form.
  """
  if rule == 'none':
    return classes.Assigned({})
  if rule == 'folder':
    return _of_folders(source, usable)
  return dataset_json.assign(source, usable)


def _of_folders(source: sources.Listing, usable: Callable[[str], bool]) -> classes.Assigned:
  shared = _shared_folder(source.names, usable)
  if shared is None:
    return classes.Assigned({})
  if shared and not any(_class_of(name, shared) and usable(name) for name in source.names):
    above = posixpath.dirname(shared)
    if any(
      _class_of(name, above)
      and not name.startswith(f'{shared}/')
      and name.lower().endswith(sources.PICTURE_SUFFIXES)
      for name in source.names
    ):
      shared = above  # the other classes have broken pictures only, which shall be said
  by_class = {
    folder: [] for folder in filter(None, (_class_of(f'{f}/x', shared) for f in source.folders))
  }
  for name in source.names:
    if folder := _class_of(name, shared):
      by_class.setdefault(folder, []).append(name)
  labels, names, empty = classes.named(by_class, usable)
  if not names:
    left_out = '; '.join(f'{e["file"]}: {e["reason"]}' for e in source.unusable[:3])
    raise faults.DatasetError(
      '--labels=folder: all pictures lie in one folder; make one folder per class'
      + (f' (left out: {left_out})' if left_out else '')
    )
  warnings = []
  if empty:
    warnings.append(f'no usable picture in {classes.enumerated(empty)}: no class of the data set')
  if all(name.lower() in _SPLITS for name in names):
    warnings.append(
      f'the classes are {classes.enumerated(names)}: these look like parts of a data set, not like '
      'classes; to have the folders in them as classes, prepare one of them, as in '
      f'--source=.../{text(names[0])}'
    )
  missing = {
    name: 'no label by --labels=folder: it lies beside the folders of the classes'
    for name in source.names
    if name not in labels and usable(name)
  }
  return classes.Assigned(
    labels, classes.as_text(names), len(names), True, missing, tuple(warnings)
  )


def _class_of(name: str, shared: str) -> str | None:
  """The folder below `shared` that a file lies in."""
  if shared and not name.startswith(f'{shared}/'):
    return None
  folder, slash, _ = name[len(shared) + 1 if shared else 0 :].partition('/')
  return folder if slash else None


def _shared_folder(names: list[str], usable: Callable[[str], bool]) -> str | None:
  """The folder that all usable pictures share; None if there is no usable picture.

  Of usable ones, so that a README, or a broken picture, beside the folders or above them changes no
  class. Few are looked at: one each in folders that would change the answer.
  """
  by_folder = {}
  for name in names:
    by_folder.setdefault(posixpath.dirname(name), []).append(name)
  shared = None
  for folder in sorted(by_folder):
    if shared is not None and (not shared or f'{folder}/'.startswith(f'{shared}/')):
      continue
    if any(map(usable, by_folder[folder])):
      shared = (
        folder if shared is None else posixpath.commonpath([f'/{shared}', f'/{folder}']).strip('/')
      )
  return shared
