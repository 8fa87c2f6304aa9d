"""The labels in a dataset.json, in the many forms that people write it.

The forms, and what its paths may look like, are stated in docs/data.md. Only `_pairs` knows JSON;
the rest takes pairs of a path and a label.
"""

import collections
import json
import math
import posixpath
import re
import unicodedata

from sg2jax.data import images, sources, wording
from sg2jax.faults import DatasetError

MAX_CLASSES = 16_384  # a label is a vector of so many numbers

Label = int | str | list[float]  # a class by number or by name, or a vector


def read(
  source: sources.Listing,
) -> tuple[dict[str, Label], dict[str, str], list[str], tuple[str, ...]]:
  """Reads the dataset.json of a source.

  Returns:
    {file: label}, of at least one file, all of one kind; {file: why it has none}; warnings; paths
    in the JSON of which there is no file, as text.

  Raises:
    DatasetError: there is none, it fits no file, or it has another form.
  """
  if source.label_file is None:
    raise DatasetError(
      '--labels=json: the source has no dataset.json; add one, or use --labels=folder'
    )
  file = wording.printable(source.label_file)
  try:
    pairs = _pairs(source.read(source.label_file))
    entries, warnings, stale = _match(pairs, source, file)
    labels, missing = _labels(pairs, entries, file)
    _check_kinds([(pairs[entries[name][0]][0], label) for name, label in labels.items()])
  except (images.Unusable, ValueError, RecursionError) as e:
    raise DatasetError(
      f'{file}: not the labels of a data set ({e}); expected {{"labels": [["path", 3], ...]}}, '
      '[["path", 3], ...] or {"path": 3}, with numbers, names of classes, or lists of numbers '
      'throughout'
    ) from e
  for name in source.names:
    if name not in entries:
      missing[name] = f'no label: {file} does not have it'
  return labels, missing, warnings, stale


def _pairs(data: bytes) -> list[tuple[str, object]]:
  """(path, label as it stands there), in order."""
  try:
    # An object becomes a list of tuples, an array one of lists: a key may be there twice.
    content = json.loads(data, object_pairs_hook=list)
  except UnicodeDecodeError as e:
    raise ValueError(f'it is no text: {e}') from e
  if not isinstance(content, list):
    raise ValueError(f'it is {_short(content)}')
  for field in content:
    if isinstance(field, tuple) and field[0] == 'labels' and isinstance(field[1], list | None):
      content = field[1]
      break
  if not content:
    raise ValueError('it holds no labels')
  for i, pair in enumerate(content):
    if not isinstance(pair, list | tuple) or len(pair) != 2 or not isinstance(pair[0], str):
      raise ValueError(f'entry {i} is {_short(pair)}, no pair of a path and a label')
  return content


# ---- paths


def _match(
  pairs: list[tuple[str, object]], source: sources.Listing, file: str
) -> tuple[dict[str, list[int]], list[str], tuple[str, ...]]:
  """Finds the files in three ways, each for what the one before left over.

  1. The very path, relative to the folder of the JSON or to the source, with `./` and backslashes
     understood.
  2. In other case or Unicode composition.
  3. With folders before it that the other doesn't have.

  The last two count only where one path and one file have no other.

  Returns:
    {file: [index of a pair, ...]}, warnings, paths without a file.
  """
  # ---- 1. the very path
  folder = posixpath.dirname(source.label_file)
  known = set(source.names)
  entries = {}
  rest = {}
  for i, (path, _) in enumerate(pairs):
    name = next((spelling for spelling in _spellings(path, folder) if spelling in known), None)
    if name is None:
      rest[i] = path
    else:
      entries.setdefault(name, []).append(i)
  # ---- 2. and 3. a path like it
  guessed = []
  for with_folders in (False, True):
    index = _Index([name for name in source.names if name not in entries], folder)
    claims = collections.defaultdict(list)
    for i, path in rest.items():
      candidates = index.candidates(path, with_folders)
      if len(candidates) == 1:
        claims[candidates.pop()].append(i)
    for name, claim in claims.items():
      if len(claim) == 1:
        entries[name] = claim
        guessed.append(f'{_quoted(rest.pop(claim[0]))} as {_quoted(name)}')
  # ---- what the user should look at
  free = next((name for name in source.names if name not in entries), None)
  if not entries:
    there = 'no file' if free is None else _quoted(free)
    raise DatasetError(
      f'{file}: none of its paths is that of a file ({len(pairs)} in all): it has '
      f'{_quoted(pairs[0][0])}, the source has {there}; write paths relative to its own folder'
    )
  warnings = []
  if guessed:
    count = wording.count(len(guessed), 'path')
    warnings.append(f'{file}: {count} read as another, such as {guessed[0]}')
  stale = tuple(map(wording.printable, rest.values()))
  if stale:
    count = wording.count(len(stale), 'path')
    warnings.append(
      f'{file}: {count} without a file, such as {stale[0]!r} (the source has '
      f'{_quoted(free or source.names[0])}); left out'
    )
  return entries, warnings, stale


def _spellings(path: str, folder: str) -> list[str]:
  clean = _clean(path)
  return [posixpath.join(folder, path), posixpath.join(folder, clean), path, clean]


def _clean(path: str) -> str:
  return posixpath.normpath(path.replace('\\', '/')).lstrip('/')


def _fold(path: str) -> str:
  return unicodedata.normalize('NFC', path).casefold()


def _ends(path: str) -> list[str]:
  """'a/b/c' -> ['b/c', 'c']."""
  parts = path.split('/')
  return ['/'.join(parts[i:]) for i in range(1, len(parts))]


class _Index:
  """Files by their path without case and composition, and by the ends of it."""

  def __init__(self, names: list[str], folder: str):
    # Of a million files each path is looked up, not compared with all.
    self.whole = collections.defaultdict(set)
    self.ends = collections.defaultdict(set)
    for name in names:
      path = _fold(name)
      self.whole[path].add(name)
      self.whole[path.removeprefix(f'{_fold(folder)}/')].add(name)
      for end in _ends(path):
        self.ends[end].add(name)

  def candidates(self, path: str, with_folders: bool) -> set[str]:
    """Files that a path may mean: the same, or those that end in it or are its longest end."""
    path = _fold(_clean(path))
    if path in self.whole or not with_folders:
      return set(self.whole.get(path, ()))
    longest = next((end for end in _ends(path) if end in self.whole), None)
    return self.ends.get(path, set()) | self.whole.get(longest, set())


# ---- labels


def _labels(
  pairs: list[tuple[str, object]], entries: dict[str, list[int]], file: str
) -> tuple[dict[str, Label], dict[str, str]]:
  """Labels of the files that have one, and why the others have none."""
  used = [i for indices in entries.values() for i in indices]
  values = {i: _value(*pairs[i]) for i in used}
  # Text is a number where all of it is numbers; else all is names.
  texts = {i: value for i, value in values.items() if isinstance(value, str)}
  if all(re.fullmatch(r'[+-]?[0-9]{1,18}(\.0*)?', text) for text in texts.values()):
    for i, text in texts.items():
      values[i] = _class_number(pairs[i][0], int(text.partition('.')[0]))
  labels = {}
  missing = {}
  for name, indices in entries.items():
    value = values[indices[0]]
    shown = ', '.join(_short(pairs[i][1]) for i in indices)
    if any(values[i] != value for i in indices):
      missing[name] = f'two labels in {file}: {shown}'
    elif value is None:
      missing[name] = f'no label: {file} says {shown}'
    else:
      labels[name] = value
  return labels, missing


def _value(path: str, raw: object) -> Label | None:
  """One label as it stands there -> a number, text (of a number or a name), a vector, or None."""
  # As pandas writes what is missing.
  if raw is None or raw != raw:  # NaN
    return None
  if isinstance(raw, str):
    return raw.strip() or None
  if isinstance(raw, list) and raw:
    return _vector(path, raw)
  # 1.0 is class 1, as pandas writes a column with gaps; true is no class, though Python counts it.
  if isinstance(raw, int | float) and not isinstance(raw, bool) and raw == raw // 1:
    return _class_number(path, int(raw))
  hint = '; write classes as 0 and 1' if isinstance(raw, bool) else ''
  raise ValueError(f'the label of {_quoted(path)} is {_short(raw)}{hint}')


def _vector(path: str, raw: list) -> list[float]:
  try:
    vector = [float(x) for x in raw]
  except (TypeError, ValueError, OverflowError):
    vector = [math.nan]
  if not all(map(math.isfinite, vector)):
    raise ValueError(f'the label of {_quoted(path)} is {_short(raw)}, which are no finite numbers')
  return vector


def _class_number(path: str, number: int) -> int | None:
  if number == -1:
    return None  # as many data sets write it
  if not 0 <= number < MAX_CLASSES:
    raise ValueError(
      f'the label of {_quoted(path)} is {_short(number)}; classes are numbered from 0, without '
      f'gaps, and below {MAX_CLASSES}; names instead of numbers are numbered here'
    )
  return number


def _check_kinds(labels: list[tuple[str, Label]]):
  """Raises ValueError that names one of another kind. labels: of the files, with their paths."""
  if not labels:
    raise ValueError('no file has a label')
  first_path, first = labels[0]
  for path, label in labels:
    if _kind(label) != _kind(first):
      raise ValueError(
        f'the label of {_quoted(path)} is {_short(label)}, and that of {_quoted(first_path)} is '
        f'{_short(first)}'
      )
  size = len(first) if isinstance(first, list) else len({label for _, label in labels})
  if size > MAX_CLASSES:
    raise ValueError(f'{size} classes or components, more than {MAX_CLASSES}')


def _kind(label: Label) -> tuple:
  return type(label), len(label) if isinstance(label, list) else 0


def _quoted(path: str) -> str:
  return repr(wording.printable(path))


def _short(value: object) -> str:
  shown = wording.printable(json.dumps(value, ensure_ascii=False))
  return shown if len(shown) <= 60 else f'{shown[:57]}...'
