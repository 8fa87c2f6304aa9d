"""How far a long loop is: a bar on a terminal, a line a minute elsewhere, as in a job's log."""

import sys
import time
from typing import Any, Self

from tqdm import tqdm

EVERY = 60  # seconds from line to line
REFRESHED = 0.1  # seconds from note to note, on a terminal


class Progress:
  """Shows what is done of a loop, and the time that is left. A context manager.

  with Progress(1000, 'mapper', 'steps') as progress:
    for step in range(1000):
      progress.update(note=f'loss {train(step):.3f}')
  """

  def __init__(self, total: int, label: str, unit: str, done: int = 0) -> None:
    """Prepares it.

    Args:
      total: how many there are.
      label: what the loop does.
      unit: what it counts, in the plural.
      done: how many were done before, in another process.
    """
    self._total, self._label, self._unit, self._done = total, label, unit, done

  def __enter__(self) -> Self:
    self._bar = tqdm(
      total=self._total,
      desc=self._label,
      initial=self._done,
      unit=f' {self._unit}',
      leave=False,
      disable=None,  # where standard error is no terminal
    )
    self._begun = None  # time and what was done at the first update
    self._said = time.monotonic()
    return self

  def __exit__(self, *_: Any) -> None:
    self._bar.close()

  def update(self, count: int = 1, note: str = '') -> None:
    """Counts what was done; says it, where it is time to."""
    now = time.monotonic()
    self._done += count
    if self._begun is None:
      # What comes before it is compiled, which takes longer than many steps.
      self._begun = now, self._done
    if not self._bar.disable:
      self._bar.set_postfix_str(note, refresh=False)
      self._bar.update(count)
      if not count and now - self._said >= REFRESHED:
        self._bar.refresh()
        self._said = now
    elif now - self._said >= EVERY:
      print(self._line(now, note), file=sys.stderr, flush=True)
      self._said = now

  def _line(self, now, note):
    parts = [f'{self._label}: {self._done} of {self._total} {self._unit}', *filter(None, [note])]
    begun, first = self._begun
    if self._done > first:
      left = (now - begun) / (self._done - first) * (self._total - self._done)
      parts.append(f'{tqdm.format_interval(left)} left')
    return ', '.join(parts)
