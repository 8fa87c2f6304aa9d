"""The labels in a dataset.json, in the many forms that people write it.

The forms, and what its paths may look like, are stated in docs/data.md.
"""

import collections
from collections.abc import Callable
import json
import math
import posixpath
import re
import unicodedata

from sg2jax import faults
from sg2jax.data import classes, images, sources
from sg2jax.data.sources import text

_EXPECTED = (
  'expected {"labels": [["path", 3], ...]}, [["path", 3], ...] or {"path": 3}, with numbers, names '
  'of classes, or lists of numbers throughout'
)


def assign(source: sources.Listing, usable: Callable[[str], bool]) -> classes.Assigned:
  """Finds the labels; the arguments and what it raises are those of `label_rules.assign`."""
  if source.label_file is None:
    raise faults.DatasetError(
      f'--labels=json: there is no {sources.LABEL_FILE} in the source; add one, '
      'or use --labels=folder'
    )
  try:
    return _assign(source, usable)
  except (images.Unusable, ValueError, RecursionError) as err:
    raise faults.DatasetError(
      f'{text(source.label_file)}: not the labels of a data set ({err}); {_EXPECTED}'
    ) from err


class _Object(list):
  """An object of JSON as its pairs, because a key may be there twice."""


def _assign(source: sources.Listing, usable: Callable[[str], bool]) -> classes.Assigned:
  file = text(source.label_file)
  pairs = _pairs(source.read(source.label_file))
  found, stale, other = _files_of(
    [key for key, _ in pairs], source.names, posixpath.dirname(source.label_file)
  )
  if not found:
    there = repr(text(source.names[0])) if source.names else 'no file'
    raise faults.DatasetError(
      f'{file}: none of its paths is that of a file ({len(pairs)} in all): it has '
      f'{text(pairs[0][0])!r}, the source has {there}; write paths relative to its own folder'
    )
  warnings = []
  if other:
    warnings.append(
      f'{file}: {classes.counted(len(other), "path")} read as another, such as {other[0][0]!r} as '
      f'{other[0][1]!r}'
    )
  if stale:
    free = next((name for name in source.names if name not in found), source.names[0])
    warnings.append(
      f'{file}: {classes.counted(len(stale), "path")} without a file, such as {text(stale[0])!r} '
      f'(the source has {text(free)!r}); left out'
    )
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
  return assigned._replace(
    missing=missing, warnings=(*warnings, *assigned.warnings), stale=tuple(map(text, stale))
  )


def _vectors(labels: dict[str, list[float]], usable: Callable[[str], bool]) -> classes.Assigned:
  del usable
  return classes.Assigned(labels, (), len(next(iter(labels.values()))), False)


def _numbers(labels: dict[str, int], usable: Callable[[str], bool]) -> classes.Assigned:
  """Class numbers stay what they are; the last is the last that a usable picture has."""
  by_class = {}
  for name, number in labels.items():
    by_class.setdefault(number, []).append(name)
  last = next((c for c in sorted(by_class, reverse=True) if any(map(usable, by_class[c]))), -1)
  warnings = [
    f'no usable picture of class {c} ({classes.enumerated(by_class[c], 3)}): the last class is '
    f'{last}'
    for c in sorted(by_class)
    if c > last >= 0
  ]
  return classes.Assigned(labels, (), last + 1, True, warnings=tuple(warnings))


def _names(labels: dict[str, str], usable: Callable[[str], bool]) -> classes.Assigned:
  by_class = {}
  for name, label in labels.items():
    by_class.setdefault(label, []).append(name)
  labels, names, empty = classes.named(by_class, usable)
  if len(names) > classes.MOST_CLASSES:
    raise ValueError(f'{len(names)} classes, more than {classes.MOST_CLASSES}')
  warnings = (
    (f'no usable picture of {classes.enumerated(empty)}: no class of the data set',)
    if empty
    else ()
  )
  # unusable for a reason of their own
  missing_class = {name: 0 for c in empty for name in by_class[c]}
  return classes.Assigned(
    {**missing_class, **labels}, classes.as_text(names), len(names), True, warnings=warnings
  )


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


def _files_of(
  keys: list[str], names: list[str], folder: str
) -> tuple[dict[str, list[int]], list[str], list[tuple]]:
  """Which files the paths of a dataset.json mean.

  Tried in this order, each for what the one before left over: the very path, relative to the folder
  of the JSON or to the source, with `./` and backslashes understood; in other case or Unicode
  composition; with folders before it that the other doesn't have. The last two count only where one
  path and one file have no other.

  Returns:
    {file: [number of its path, ...]}, paths without a file, [(path, file), ...] of those taken for
    another.
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
  """Files without a label, by their folded path (also relative to the JSON's folder), and by the
  ends of it.
  """

  def __init__(self, names: list[str], folder: str):
    self.by_path, self.by_end = {}, {}
    for name in names:
      path = _fold(name)
      for whole in {path, path.removeprefix(f'{_fold(folder)}/')}:
        self.by_path.setdefault(whole, set()).add(name)
      for end in _tails(path):
        self.by_end.setdefault(end, set()).add(name)


def _same_but_case(key: str, folder: str, free: _Free) -> set[str]:
  return {
    name for spelling in _spellings(key, folder) for name in free.by_path.get(_fold(spelling), ())
  }


def _same_but_folders(key: str, folder: str, free: _Free) -> set[str]:
  del folder
  path = _fold(_clean(key))
  longest = next((free.by_path[end] for end in _tails(path) if end in free.by_path), ())
  return {*free.by_end.get(path, ()), *longest}


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
  return {
    i: _class(pairs[i][0], int(value.split('.')[0])) if isinstance(value, str) else value
    for i, value in values.items()
  }


def _label(key: str, raw: object) -> int | str | list[float] | None:
  """One label: a class number, a string (a number or a name, as the others decide), a vector, or
  None.
  """
  if (
    raw is None
    or isinstance(raw, str)
    and not raw.strip()
    or isinstance(raw, float)
    and math.isnan(raw)
  ):
    return None
  if isinstance(raw, str):
    return raw.strip()
  if isinstance(raw, list) and raw:
    return [_component(key, raw, x) for x in raw]
  if isinstance(raw, bool):
    raise ValueError(f'the label of {text(key)!r} is {_short(raw)}; write classes as 0 and 1')
  if not isinstance(raw, int | float) or raw != raw // 1:
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
  if not 0 <= number < classes.MOST_CLASSES:
    raise ValueError(
      f'the label of {text(key)!r} is {_short(number)}; classes are numbered from 0, without gaps, '
      f'and below {classes.MOST_CLASSES}; names instead of numbers are numbered here'
    )
  return number


def _kind(keys: dict[str, str], labels: dict) -> str:
  """Which kind of label all files have: 'name', 'number' or 'vector'. Raises ValueError that names
  one that differs.
  """
  if not labels:
    raise ValueError('no file has a label')
  kinds = {
    name: 'name'
    if isinstance(label, str)
    else f'vector of {len(label)}'
    if isinstance(label, list)
    else 'number'
    for name, label in labels.items()
  }
  counts = collections.Counter(kinds.values())
  usual = max(counts, key=lambda kind: (counts[kind], kind))
  odd = next((name for name, kind in kinds.items() if kind != usual), None)
  if odd is not None:
    even = next(name for name, kind in kinds.items() if kind == usual)
    raise ValueError(
      f'the label of {text(keys[odd])!r} is {_short(labels[odd])}, and that of '
      f'{text(keys[even])!r} is {_short(labels[even])}'
    )
  if usual.startswith('vector') and len(next(iter(labels.values()))) > classes.MOST_CLASSES:
    raise ValueError(f'vectors of more than {classes.MOST_CLASSES} components')
  return usual.split()[0]
