"""The labels in a dataset.json, in the many forms that docs/data.md states."""

import json
import posixpath
import re
import unicodedata

from sg2jax.data import images, sources, wording
from sg2jax.faults import DatasetError

MAX_CLASSES = 16_384  # a label is a vector of so many numbers
LARGEST = 3.4028234e38  # of float32, in which labels are kept
_WHOLE = re.compile(r'[+-]?[0-9]+(\.0*)?')

Label = int | str | list[float]  # a class by number or by name, or a vector


def read(source: sources.Listing) -> tuple[dict[str, Label], list[str]]:
  """Reads the dataset.json of a source.

  Returns:
    {file: label}, of at least one file, all of one kind; paths in the JSON that are of no file.

  Raises:
    DatasetError: there is none, it fits no file, or it has another form.
  """
  if source.label_file is None:
    raise DatasetError(
      '--labels=json: the source has no dataset.json; add one, or use --labels=folder'
    )
  try:
    found, stale = _match(_pairs(source.read(source.label_file)), source)
    return _labels(found), stale
  except (images.Unusable, ValueError, RecursionError) as e:
    raise DatasetError(
      f'{wording.printable(source.label_file)}: not the labels of a data set ({e}); expected '
      '{"labels": [["path", 3], ...]}, [["path", 3], ...] or {"path": 3}, with numbers, names of '
      'classes, or lists of numbers throughout'
    ) from e


def _pairs(data: bytes) -> list[tuple[str, object]]:
  """(path, label as it stands there), in order."""
  content = json.loads(data, object_pairs_hook=_object)
  if isinstance(content, dict):
    content = content.get('labels', content)
  if isinstance(content, dict):
    content = list(content.items())
  if not content or not isinstance(content, list):
    raise ValueError(f'it holds no labels but {_short(content)}')
  for i, pair in enumerate(content):
    if not isinstance(pair, list | tuple) or len(pair) != 2 or not isinstance(pair[0], str):
      raise ValueError(f'entry {i} is {_short(pair)}, no pair of a path and a label')
  return content


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
  """A JSON object. Raises ValueError where a key has two values: json would keep the last."""
  found = {}
  for key, value in pairs:
    if key in found and found[key] != value:
      raise ValueError(f'{key!r} is there twice, with {_short(found[key])} and {_short(value)}')
    found[key] = value
  return found


def _match(
  pairs: list[tuple[str, object]], source: sources.Listing
) -> tuple[dict[str, object], list[str]]:
  """({file: label as it stands there}, paths that are of no file).

  Paths are relative to the folder of the JSON, or to the source.
  """
  files = {_clean(name): name for name in source.names}
  folder = posixpath.dirname(source.label_file)
  found = {}
  stale = []
  for path, label in pairs:
    clean = _clean(path)
    name = files.get(_clean(f'{folder}/{clean}'), files.get(clean))
    if name is None:
      stale.append(path)
    elif name in found and found[name] != label:
      raise ValueError(f'{path!r} has two labels, {_short(found[name])} and {_short(label)}')
    else:
      found[name] = label
  if not found:
    there = source.names[0] if source.names else 'no file'
    raise DatasetError(
      f'{wording.printable(source.label_file)}: none of its paths is that of a file: it has '
      f'{stale[0]!r}, the source has {there!r}; write paths relative to its own folder'
    )
  return found, stale


def _clean(path: str) -> str:
  """Without `./` and backslashes; accents are one character here, and two in files of a Mac."""
  path = posixpath.normpath(path.replace('\\', '/')).lstrip('/')
  return unicodedata.normalize('NFC', path)


def _labels(found: dict[str, object]) -> dict[str, Label]:
  """Labels of the files that have one, of their kinds. Raises ValueError that names an odd one."""
  texts = [value.strip() for value in found.values() if isinstance(value, str)]
  # Text is a number where all of it is numbers; else all is names.
  are_numbers = all(_WHOLE.fullmatch(text) for text in texts if text)
  labels = {}
  for name, value in found.items():
    try:
      label = _label(value, are_numbers)
    except (TypeError, ValueError, OverflowError):
      raise ValueError(
        f'the label of {name!r} is {_short(value)}; classes are names, or numbers from 0 to '
        f'{MAX_CLASSES - 1}'
      ) from None
    if label is not None:
      labels[name] = label
  if not labels:
    raise ValueError('no file has a label')
  first = next(iter(labels))
  for name, label in labels.items():
    if _kind(label) != _kind(labels[first]):
      raise ValueError(
        f'the label of {name!r} is {_short(label)}, and that of {first!r} is '
        f'{_short(labels[first])}'
      )
  return labels


def _label(value: object, are_numbers: bool) -> Label | None:
  """One label, or None where the file has none. Raises TypeError, ValueError or OverflowError."""
  if isinstance(value, str):
    value = value.strip()
    if value and are_numbers:
      value = float(value)
    elif value:
      return value
  # -1, and NaN, which pandas writes, are missing, as null and '' are.
  if value in (None, '', -1) or value != value:
    return None
  if isinstance(value, list) and value:
    vector = [float(x) for x in value]
    if all(abs(x) <= LARGEST for x in vector):
      return vector
  # 1.0 is class 1, as pandas writes a column with gaps; true is no class, though Python counts it.
  elif not isinstance(value, bool) and 0 <= value < MAX_CLASSES and value == int(value):
    return int(value)
  raise ValueError


def _kind(label: Label) -> tuple:
  return type(label), len(label) if isinstance(label, list) else 0


def _short(value: object) -> str:
  shown = json.dumps(value, ensure_ascii=False)
  return shown if len(shown) <= 60 else f'{shown[:57]}...'
