"""The label of each picture: from the names of folders, or from a dataset.json.

The forms that a dataset.json may have, and what its paths may look like, are stated in docs/data.md.
"""

import collections
from collections.abc import Callable
import json
import math
import posixpath
import re
from typing import NamedTuple
import unicodedata

from sg2jax import faults
from sg2jax.data import images, sources
from sg2jax.data.sources import text

RULES = ('none', 'folder', 'json')
MOST_CLASSES = 16_384  # a label is a vector of so many numbers
_SPLITS = {'train', 'training', 'val', 'valid', 'validation', 'test', 'testing', 'dev', 'eval', 'holdout'}
_EXPECTED = ('expected {"labels": [["path", 3], ...]}, [["path", 3], ...] or {"path": 3}, with numbers, names of '
             'classes, or lists of numbers throughout')


class Assigned(NamedTuple):
  """What a rule says of the files.

  Attributes:
    labels: {name of a file: index of its class, or vector}.
    names: of the classes, in the order of their index; () where they are numbers, or labels are vectors.
    c_dim: number of classes, or components of a vector; 0 without labels, or without a usable picture.
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


def natural(name: str) -> tuple:
  """Key for sorting names: numbers by value, and before text; text by code points."""
  parts = [p for p in re.split('([0-9]+)', name) if p]
  return [(0, len(p.lstrip('0')), p.lstrip('0')) if p[0] in '0123456789' else (1, 0, p) for p in parts], name


def assign(rule: str, source: sources.Listing, usable: Callable[[str], bool]) -> Assigned:
  """Finds the labels.

  Args:
    rule: 'none'; 'folder': the class is the first folder below the one that all usable pictures share;
      'json': dataset.json.
    source: what was listed.
    usable: whether a file is a picture that can be used: a class is what has one.

  Raises:
    DatasetError: no labels, or not in this form.
  """
  if rule == 'none':
    return Assigned({})
  if rule == 'folder':
    return _of_folders(source, usable)
  if source.label_file is None:
    raise faults.DatasetError(f'--labels=json: there is no {sources.LABEL_FILE} in the source; add one, '
                              'or use --labels=folder')
  try:
    return _of_json(source, usable)
  except (images.Unusable, ValueError, RecursionError) as err:
    raise faults.DatasetError(f'{text(source.label_file)}: not the labels of a data set ({err}); {_EXPECTED}') from err


def enumerated(names: list[str], most: int = 20) -> str:
  """Names for a message."""
  return ', '.join(map(text, names[:most])) + (f' ... ({len(names)} in all)' if len(names) > most else '')


def ranges(numbers: list[int]) -> str:
  """[0, 3, 4, 5] -> '0, 3-5'."""
  runs = []
  for n in numbers:
    if runs and n == runs[-1][1] + 1:
      runs[-1][1] = n
    else:
      runs.append([n, n])
  return enumerated([str(a) if a == b else f'{a}-{b}' for a, b in runs])


def _named(by_class: dict[str, list[str]], usable: Callable[[str], bool]) -> tuple[dict[str, int], list[str], list[str]]:
  """Classes with a usable picture, in natural order: ({file: index}, their names, those of the empty ones)."""
  found = [c for c in sorted(by_class, key=natural) if any(map(usable, by_class[c]))]
  empty = [c for c in sorted(by_class, key=natural) if c not in set(found)]
  return {name: i for i, c in enumerate(found) for name in by_class[c]}, found, empty


def _shown(names: list[str]) -> tuple[str, ...]:
  """As text; still different names where two become the same text."""
  shown = []
  for name in map(text, names):
    name = name or '(empty)'
    while name in shown:
      name += '_'
    shown.append(name)
  return tuple(shown)


# ------------------------------------------------------------------------------------------ folders


def _of_folders(source: sources.Listing, usable: Callable[[str], bool]) -> Assigned:
  shared = _shared_folder(source.names, usable)
  if shared is None:
    return Assigned({})
  if shared and not any(_class_of(name, shared) and usable(name) for name in source.names):
    above = posixpath.dirname(shared)
    if any(_class_of(name, above) and not name.startswith(f'{shared}/')
           and name.lower().endswith(sources.PICTURE_SUFFIXES) for name in source.names):
      shared = above  # the other classes have broken pictures only, which shall be said
  by_class = {folder: [] for folder in filter(None, (_class_of(f'{f}/x', shared) for f in source.folders))}
  for name in source.names:
    if folder := _class_of(name, shared):
      by_class.setdefault(folder, []).append(name)
  labels, names, empty = _named(by_class, usable)
  if not names:
    left_out = '; '.join(f"{e['file']}: {e['reason']}" for e in source.unusable[:3])
    raise faults.DatasetError('--labels=folder: all pictures lie in one folder; make one folder per class'
                              + (f' (left out: {left_out})' if left_out else ''))
  warnings = []
  if empty:
    warnings.append(f'no usable picture in {enumerated(empty)}: no class of the data set')
  if all(name.lower() in _SPLITS for name in names):
    warnings.append(f'the classes are {enumerated(names)}: these look like parts of a data set, not like classes; '
                    f'to have the folders in them as classes, prepare one of them, as in --source=.../{text(names[0])}')
  elif len(names) == 1:
    warnings.append(f'there is only one class, {text(names[0])}; it teaches nothing')
  missing = {name: 'no label by --labels=folder: it lies beside the folders of the classes'
             for name in source.names if name not in labels}
  return Assigned(labels, _shown(names), len(names), True, missing, tuple(warnings))


def _class_of(name: str, shared: str) -> str | None:
  """The folder below `shared` that a file lies in."""
  if shared and not name.startswith(f'{shared}/'):
    return None
  folder, slash, _ = name[len(shared) + 1 if shared else 0:].partition('/')
  return folder if slash else None


def _shared_folder(names: list[str], usable: Callable[[str], bool]) -> str | None:
  """The folder that all usable pictures share; None if there is no usable picture.

  Of usable ones, so that a README, or a broken picture, beside the folders or above them changes no class. Few are
  looked at: one each in folders that would change the answer.
  """
  by_folder = {}
  for name in names:
    by_folder.setdefault(posixpath.dirname(name), []).append(name)
  shared = None
  for folder in sorted(by_folder):
    if shared is not None and (not shared or f'{folder}/'.startswith(f'{shared}/')):
      continue
    if any(map(usable, by_folder[folder])):
      shared = folder if shared is None else posixpath.commonpath([f'/{shared}', f'/{folder}']).strip('/')
  return shared


# --------------------------------------------------------------------------------------------- json


class _Object(list):
  """An object of JSON as its pairs, because a key may be there twice."""


def _of_json(source: sources.Listing, usable: Callable[[str], bool]) -> Assigned:
  file = text(source.label_file)
  pairs = _pairs(source.read(source.label_file))
  found, stale, other = _files_of([key for key, _ in pairs], source.names, posixpath.dirname(source.label_file))
  if not found:
    there = repr(text(source.names[0])) if source.names else 'no file'
    raise ValueError(f'none of its {len(pairs)} paths is that of a file: it has {text(pairs[0][0])!r}, the source {there}')
  warnings = []
  if other:
    warnings.append(f'{file}: {len(other)} paths were taken for others, such as {other[0][0]!r} for {other[0][1]!r}')
  if stale:
    free = next((name for name in source.names if name not in found), source.names[0])
    warnings.append(f'{file}: of {len(stale)} paths there is no file, such as {text(stale[0])!r} (a file of the source is '
                    f'{text(free)!r}); left out')
  values = _numerals({i: _label(*pairs[i]) for indices in found.values() for i in indices}, pairs)
  missing = {name: f'no label: {file} does not have it' for name in source.names}
  keys, labels = {}, {}  # of each file
  for name, indices in found.items():
    keys[name], labels[name] = pairs[indices[0]][0], values[indices[0]]
    if any(values[i] != labels[name] for i in indices):
      missing[name] = f'two labels in {file}: {", ".join(_short(pairs[i][1]) for i in indices)}'
      del labels[name]
    elif labels[name] is None:
      missing[name] = f'no label: {file} says {_short(pairs[indices[0]][1])}'
      del labels[name]
  kinds = {'vector': _vectors, 'number': _numbers, 'name': _names}
  assigned = kinds[_kind(keys, labels)](labels, usable)
  missing = {name: reason for name, reason in missing.items() if name not in labels}
  return assigned._replace(missing=missing, warnings=(*warnings, *assigned.warnings), stale=tuple(map(text, stale)))


def _vectors(labels: dict[str, list[float]], usable: Callable[[str], bool]) -> Assigned:
  del usable
  return Assigned(labels, (), len(next(iter(labels.values()))), False)


def _numbers(labels: dict[str, int], usable: Callable[[str], bool]) -> Assigned:
  """Class numbers stay what they are; the last is the last that a usable picture has."""
  by_class = {}
  for name, number in labels.items():
    by_class.setdefault(number, []).append(name)
  last = next((c for c in sorted(by_class, reverse=True) if any(map(usable, by_class[c]))), -1)
  warnings = [f'no usable picture of class {c} ({enumerated(by_class[c], 3)}): the last class is {last}'
              for c in sorted(by_class) if c > last >= 0]
  return Assigned(labels, (), last + 1, True, warnings=tuple(warnings))


def _names(labels: dict[str, str], usable: Callable[[str], bool]) -> Assigned:
  by_class = {}
  for name, label in labels.items():
    by_class.setdefault(label, []).append(name)
  labels, names, empty = _named(by_class, usable)
  if len(names) > MOST_CLASSES:
    raise ValueError(f'{len(names)} classes, more than {MOST_CLASSES}')
  warnings = (f'no usable picture of {enumerated(empty)}: no class of the data set',) if empty else ()
  missing_class = {name: 0 for c in empty for name in by_class[c]}  # unusable for a reason of their own
  return Assigned({**missing_class, **labels}, _shown(names), len(names), True, warnings=warnings)


def _pairs(data: bytes) -> list[tuple[str, object]]:
  """(path, label as it stands there), in order."""
  try:
    read = json.loads(data, object_pairs_hook=_Object)
  except UnicodeDecodeError as err:
    raise ValueError(f'it is no text: {err}') from err
  if isinstance(read, _Object):
    inner = next((value for key, value in read if key == 'labels'), 0)
    read = inner or _Object() if isinstance(inner, list | None) else read
  if not isinstance(read, list):
    raise ValueError(f'it is {_short(read)}')
  for i, pair in enumerate(read):
    if not isinstance(pair, list | tuple) or len(pair) != 2 or not isinstance(pair[0], str):
      raise ValueError(f'entry {i} is {_short(pair)}, no pair of a path and a label')
  if not read:
    raise ValueError('it holds no labels')
  return [tuple(pair) for pair in read]


def _files_of(keys: list[str], names: list[str], folder: str) -> tuple[dict[str, list[int]], list[str], list[tuple]]:
  """Which files the paths of a dataset.json mean.

  Tried in this order, each for what the one before left over: the very path, relative to the folder of the JSON or to the
  source, with `./` and backslashes understood; in other case or Unicode composition; with folders before it that the
  other doesn't have. The last two count only where one path and one file have no other.

  Returns:
    {file: [number of its path, ...]}, paths without a file, [(path, file), ...] of those taken for another.
  """
  found, known, other = {}, set(names), []
  rest = dict(enumerate(keys))
  for i, key in enumerate(keys):
    name = next((spelling for spelling in _spellings(key, folder) if spelling in known), None)
    if name is not None:
      found.setdefault(name, []).append(i)
      del rest[i]
  for meant in (_same_but_case, _same_but_folders):
    free = _Free([name for name in names if name not in found], folder)
    claims = {}  # {file: paths}
    for i, key in rest.items():
      files = meant(key, folder, free)
      if len(files) == 1:
        claims.setdefault(files.pop(), []).append(i)
    for name, claim in claims.items():
      if len(claim) == 1:
        found[name] = claim
        other.append((text(rest.pop(claim[0])), text(name)))
  return found, list(rest.values()), other


def _clean(key: str) -> str:
  return posixpath.normpath(key.replace('\\', '/')).lstrip('/')


def _spellings(key: str, folder: str) -> list[str]:
  return [posixpath.join(folder, key), posixpath.join(folder, _clean(key)), key, _clean(key)]


def _fold(path: str) -> str:
  return unicodedata.normalize('NFC', path).casefold()


def _tails(path: str) -> list[str]:
  parts = path.split('/')
  return ['/'.join(parts[i:]) for i in range(1, len(parts))]


class _Free:
  """Files without a label, by their folded path (also relative to the JSON's folder), and by the ends of it."""

  def __init__(self, names: list[str], folder: str):
    self.by_path, self.by_end = {}, {}
    for name in names:
      path = _fold(name)
      for whole in {path, path.removeprefix(f'{_fold(folder)}/')}:
        self.by_path.setdefault(whole, set()).add(name)
      for end in _tails(path):
        self.by_end.setdefault(end, set()).add(name)


def _same_but_case(key: str, folder: str, free: _Free) -> set[str]:
  return {name for spelling in _spellings(key, folder) for name in free.by_path.get(_fold(spelling), ())}


def _same_but_folders(key: str, folder: str, free: _Free) -> set[str]:
  del folder
  path = _fold(_clean(key))
  return {*free.by_end.get(path, ()), *(name for end in _tails(path) for name in free.by_path.get(end, ()))}


def _short(value: object) -> str:
  def plain(x):
    if isinstance(x, _Object):
      return {str(k): plain(v) for k, v in x}
    return [plain(v) for v in x] if isinstance(x, list | tuple) else x

  shown = text(json.dumps(plain(value), ensure_ascii=False))
  return shown if len(shown) <= 60 else f'{shown[:57]}...'


def _numerals(values: dict, pairs: list[tuple[str, object]]) -> dict:
  """Strings become numbers if all of them are whole numbers; else they are names."""
  strings = [value for value in values.values() if isinstance(value, str)]
  if not all(re.fullmatch(r'[+-]?[0-9]{1,18}(\.0*)?', value) for value in strings):
    return values
  return {i: _class(pairs[i][0], int(value.split('.')[0])) if isinstance(value, str) else value
          for i, value in values.items()}


def _label(key: str, raw: object) -> int | str | list[float] | None:
  """One label: a class number, a string (a number or a name, as the others decide), a vector, or None."""
  if raw is None or isinstance(raw, str) and not raw.strip() or isinstance(raw, float) and math.isnan(raw):
    return None
  if isinstance(raw, str):
    return raw.strip()
  if isinstance(raw, list) and raw:
    return [_component(key, raw, x) for x in raw]
  if isinstance(raw, bool) or not isinstance(raw, int | float) or raw != raw // 1:
    raise ValueError(f'the label of {text(key)!r} is {_short(raw)}')
  return _class(key, int(raw))


def _component(key: str, vector: list, x: object) -> float:
  try:
    value = float(x) if isinstance(x, int | float | str) else math.nan
  except (ValueError, OverflowError):
    value = math.nan
  if not math.isfinite(value):
    raise ValueError(f'the label of {text(key)!r} is {_short(vector)}; {_short(x)} is no number')
  return value


def _class(key: str, number: int) -> int | None:
  if number == -1:
    return None  # as many data sets write it
  if not 0 <= number < MOST_CLASSES:
    raise ValueError(f'the label of {text(key)!r} is {_short(number)}; classes are numbered from 0, without gaps, and '
                     f'below {MOST_CLASSES}; names instead of numbers are numbered here')
  return number


def _kind(keys: dict[str, str], labels: dict) -> str:
  """Which kind of label all files have: 'name', 'number' or 'vector'. Raises ValueError that names one that differs."""
  if not labels:
    raise ValueError('no file has a label')
  kinds = {name: 'name' if isinstance(label, str) else f'vector of {len(label)}' if isinstance(label, list) else 'number'
           for name, label in labels.items()}
  counts = collections.Counter(kinds.values())
  usual = max(counts, key=lambda kind: (counts[kind], kind))
  odd = next((name for name, kind in kinds.items() if kind != usual), None)
  if odd is not None:
    even = next(name for name, kind in kinds.items() if kind == usual)
    raise ValueError(f'the label of {text(keys[odd])!r} is {_short(labels[odd])}, and that of {text(keys[even])!r} is '
                     f'{_short(labels[even])}')
  if usual.startswith('vector') and len(next(iter(labels.values()))) > MOST_CLASSES:
    raise ValueError(f'vectors of more than {MOST_CLASSES} components')
  return usual.split()[0]
