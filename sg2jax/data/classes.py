"""What the labels of pictures are, before there is a data set; and how classes are named, counted
and sorted.
"""

from collections.abc import Callable
import concurrent.futures
import os
import re
from typing import NamedTuple

from sg2jax.data.sources import text

MOST_CLASSES = 16_384  # a label is a vector of so many numbers


class Assigned(NamedTuple):
  """What a rule says of the files.

  Attributes:
    labels: {name of a file: index of its class, or vector}.
    names: of the classes, in the order of their index; () where they are numbers, or labels are
    vectors.
    c_dim: number of classes, or components of a vector; 0 without labels, or without a usable
    picture.
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
  return [
    (0, len(p.lstrip('0')), p.lstrip('0')) if p[0] in '0123456789' else (1, 0, p) for p in parts
  ], name


def enumerated(names: list[str], most: int = 20) -> str:
  """Names for a message."""
  return ', '.join(map(text, names[:most])) + (
    f' ... ({len(names)} in all)' if len(names) > most else ''
  )


def counted(number: int, noun: str) -> str:
  """'1 image', '2 images', '2 classes'."""
  return f'{number} {noun}' + ('' if number == 1 else 'es' if noun.endswith('s') else 's')


def ranges(numbers: list[int]) -> str:
  """[0, 3, 4, 5] -> '0, 3-5'."""
  runs = []
  for n in numbers:
    if runs and n == runs[-1][1] + 1:
      runs[-1][1] = n
    else:
      runs.append([n, n])
  return enumerated([str(a) if a == b else f'{a}-{b}' for a, b in runs])


def named(
  by_class: dict[str, list[str]], usable: Callable[[str], bool]
) -> tuple[dict[str, int], list[str], list[str]]:
  """Classes with a usable picture, in natural order: ({file: index}, their names, those of the
  empty ones).
  """
  order = sorted(by_class, key=natural)
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    some = list(pool.map(lambda c: any(map(usable, by_class[c])), order))
  found = [c for c, usable_one in zip(order, some, strict=True) if usable_one]
  empty = [c for c, usable_one in zip(order, some, strict=True) if not usable_one]
  return {name: i for i, c in enumerate(found) for name in by_class[c]}, found, empty


def as_text(names: list[str]) -> tuple[str, ...]:
  """Names of classes as text; still different ones where two become the same."""
  shown = []
  for name in map(text, names):
    name = name or '(empty)'
    while name in shown:
      name += '_'
    shown.append(name)
  return tuple(shown)
