"""What an adversarial search has shown: what counts, at which strength texts flip, and controls.

Where classes are compared they are numbers, int [N]: what an image shows, what the classifier says
of it, what the judge sees in it.
"""

from collections.abc import Callable, Sequence
import math

import numpy as np

BINS = 10  # of strengths in a histogram
QUANTILE = 1.96  # of the normal distribution: 95 % lie within


def counts(classes: np.ndarray, said: np.ndarray, seen: np.ndarray) -> np.ndarray:
  """Whether images can be fooled with: both classifier and judge see their class [N]."""
  return (said == classes) & (seen == classes)


def fooled(classes: np.ndarray, said: np.ndarray, seen: np.ndarray) -> np.ndarray:
  """Whether the classifier errs while the judge still sees the class [N]."""
  return (said != classes) & (seen == classes)


def interval(successes: int, count: int) -> list[float]:
  """95 % interval of a rate of so many [Wilson 1927]; [0, 1] of none."""
  if not count:
    return [0.0, 1.0]
  z2 = QUANTILE**2
  rate = successes / count
  middle = rate + z2 / (2 * count)
  half = QUANTILE * math.sqrt(rate * (1 - rate) / count + z2 / (4 * count**2))
  low, high = ((middle + side * half) / (1 + z2 / count) for side in (-1, 1))
  return [max(0.0, low), min(1.0, high)]


# ---- strengths


def grid(most: float, steps: int) -> np.ndarray:
  """Amounts from the smallest to +-most, each with both signs, [steps,2]."""
  sizes = np.arange(1, steps + 1) * (most / steps)
  return np.stack([sizes, -sizes], 1)


def flips(
  is_fooled: Callable, count: int, directions: int, most: float, steps: int = 10, halvings: int = 3
) -> np.ndarray:
  """The smallest amount of each direction alone that fools: signed, [count,directions].

  NaN where none of the grid does. Found on `grid`, then by bisection of the last step before it: to
  most / steps / 2^halvings.

  Args:
    is_fooled: (images [M], directions [M], amounts [M]) -> [M], of that image moved so.
    count: of images.
    directions: how many each has.
    most: the largest |amount|.
    steps: of the grid, on each side.
    halvings: how often the step is bisected.
  """
  amounts = grid(most, steps)  # [S,2]
  image, direction, step, side = np.indices((count, directions, *amounts.shape))
  found = is_fooled(image.ravel(), direction.ravel(), amounts[step, side].ravel())
  found = np.reshape(found, image.shape).reshape(count, directions, -1)  # smallest first
  high = np.where(found.any(-1), amounts.ravel()[found.argmax(-1)], np.nan)
  low = np.sign(high) * (np.abs(high) - most / steps)
  rows, columns = np.nonzero(found.any(-1))
  for _ in range(halvings if len(rows) else 0):
    middle = (low + high) / 2
    does = np.zeros(high.shape, bool)
    does[rows, columns] = is_fooled(rows, columns, middle[rows, columns])
    low, high = np.where(does, low, middle), np.where(does, middle, high)
  return high


def histogram(names: Sequence[str], amounts: np.ndarray, most: float) -> dict[str, dict]:
  """How many images each direction alone flips, and at which |amount|.

  amounts: of `flips`, [N,K]. counts[i]: those between edges[i] and edges[i + 1].
  """
  edges = np.linspace(0, most, BINS + 1)
  found = {}
  for name, column in zip(names, amounts.T):
    flipped = column[np.isfinite(column)]
    found[name] = {
      'flipped': len(flipped),
      'of': len(column),
      'upwards': int((flipped > 0).sum()),
      'median': float(np.median(np.abs(flipped))) if len(flipped) else None,
      'edges': edges.tolist(),
      'counts': np.histogram(np.abs(flipped), edges)[0].tolist(),
    }
  return found


# ---- all of them


def rate(name: str, successes: Sequence[bool]) -> dict:
  """{NAME_rate, NAME_interval} of what succeeded; None of none."""
  n = len(successes)
  hits = int(np.sum(successes))
  return {f'{name}_rate': hits / n if n else None, f'{name}_interval': interval(hits, n)}


def summarize(rows: Sequence[dict], names: Sequence[str], most: float) -> dict:
  """What adversarial.json says of all seeds.

  Args:
    rows: of the seeds, as the tool writes them.
    names: of the directions; () in w+.
    most: the largest |amount|.
  """
  judged = [row for row in rows if row['counts']]
  successes = [row for row in judged if row['success']]
  found = {'seeds': len(rows), 'judged': len(judged)}
  found |= rate('success', [row['success'] for row in judged])
  found |= rate('control', [row['control']['success'] for row in judged])
  if names:
    found |= rate('span', [row['span']['success'] for row in judged])
  # those that the classifier got wrong, the judge aside, and those of them that the judge rejects
  errors = [row['said'] != row['class'] for row in judged]
  found |= rate('error', errors)
  found['rejected'] = sum(errors) - len(successes)
  if successes and 'text_agrees' in successes[0]:
    found |= rate('text', [row['text_agrees'] for row in successes])
  for key in ('length', 'distance', 'steps'):
    values = [row[key] for row in successes]
    found[f'median_{key}'] = float(np.median(values)) if values else None
  if names:
    amounts = [[row['flips'][name] for name in names] for row in judged]
    amounts = np.array(amounts, np.float64).reshape(-1, len(names))  # None: NaN
    found['texts'] = histogram(names, amounts, most)
  found['transfer'] = {}
  for name in rows[0]['transfer'] if rows else ():
    # of samples that the other one got right at the start
    told = [row['transfer'][name] for row in successes]
    hits = [each['said'] != row['class'] for each, row in zip(told, successes)]
    right = [each['said_before'] == row['class'] for each, row in zip(told, successes)]
    hits = [hit for hit, is_right in zip(hits, right) if is_right]
    found['transfer'][name] = {'of': len(hits)} | rate('success', hits)
  return found
