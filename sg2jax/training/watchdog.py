"""Notices that a run hangs: shows where all its threads are, and ends it with exit code 76.

A collective whose partner never comes, a file system that answers no more, a reader that delivers
nothing: the main thread then waits for ever, in C++, and hears no signal. A thread of its own looks
at where the loop last said it was.
"""

from collections.abc import Iterator
import faulthandler
import os
import sys
import threading
import time
from typing import Any, Self

from sg2jax.faults import Hang

POLL = 1.0  # seconds between two looks, at most
# How many times `seconds` something may take; what isn't here may take for ever, as compiling,
# snapshots and metrics can't be told from a hang by their time. A save waits for the one before,
# which may go to a bucket that is slow today.
READING = 'reading data for'
COMPUTING = 'computing'
SAVING = 'saving after'
LIMITS = {READING: 1, COMPUTING: 1, SAVING: 10}


class Watchdog:
  """Ends the process if the run says no new place for too long. A context manager."""

  def __init__(self, seconds: float) -> None:
    """seconds: how long a minibatch, or reading it, may take; 0: for ever."""
    self._seconds = seconds
    self._place = None  # (what is done, the step); a new tuple at each move
    self._end = threading.Event()
    self._thread = threading.Thread(target=self._watch, name='watchdog', daemon=True)

  def __enter__(self) -> Self:
    if self._seconds:
      self._thread.start()
    return self

  def __exit__(self, *_: object) -> None:
    self._end.set()
    if self._seconds:
      self._thread.join()

  def follow(self, minibatches: Iterator[Any], step: int) -> Iterator[Any]:
    """The same minibatches, of which the first has the number `step`; says that each comes."""
    while True:
      self.at(READING, step)
      batch = next(minibatches)
      self.at(COMPUTING, step)
      yield batch
      step += 1

  def at(self, doing: str, step: int) -> None:
    """Says that the run goes on, and with what.

    Args:
      doing: one of LIMITS, or anything else, with no limit; as in 'DOING minibatch STEP'.
      step: number of the minibatch.
    """
    self._place = doing, step

  def _watch(self):
    poll = min(POLL, self._seconds / 4)
    before = None
    waited = 0.0
    last = time.monotonic()
    while not self._end.wait(poll):
      now = time.monotonic()
      place = self._place
      # A process that was stopped (Ctrl-Z) or a machine that slept didn't hang: of a long time
      # between two looks only a poll counts.
      waited = waited + min(now - last, 2 * poll) if place is before else 0.0
      before = place
      last = now
      if place and waited > self._seconds * LIMITS.get(place[0], float('inf')):
        bark(f'{place[0]} minibatch {place[1]}', waited)


def bark(where: str, seconds: float) -> None:
  """Shows the stacks of all threads and a line on stderr, and ends the process."""
  # From the file descriptor: what hangs may hold the lock of sys.stderr.
  faulthandler.dump_traceback(file=2, all_threads=True)
  os.write(
    2,
    f'{os.path.basename(sys.argv[0])}: hangs since {seconds:.0f} s: {where} (the stacks of all '
    'threads are above). The last checkpoint stands; the same command goes on from it. If it only '
    'is that slow, raise --config.watchdog_seconds, or set it to 0\n'.encode(),
  )
  os._exit(Hang.code)
