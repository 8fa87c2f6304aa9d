"""SIGTERM and Ctrl-C, heard between two minibatches instead of in the middle of one.

What comes to one of several processes is heard by all, within a second, whatever they wait for.
"""

from collections.abc import Iterator
import contextlib
import os
import select
import signal
import threading
from typing import NoReturn, Self

from sg2jax import peers, processes
from sg2jax.faults import Interrupted, Preempted

POLL = 0.5  # seconds between two looks at what other processes heard


class Stop:
  """True once SIGTERM or Ctrl-C came. A context manager; the second signal acts as usual.

  Processes hear of it at different moments. So work that they do together asks `processes` whether
  to go on (`heard`), and only what one does alone looks at its truth.
  """

  def __enter__(self) -> Self:
    self.signal = None
    self._at_once = ''  # what to say if a signal is to end the process at once
    self._handlers = {}  # those of before
    # Python lets no other thread set handlers; there, nothing is heard.
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGTERM, signal.SIGINT):
        self._handlers[number] = signal.signal(number, self._receive)
    self._is_over = False
    self._thread = None
    if processes.several():
      # Python calls handlers between two of its own instructions; while the main thread waits in
      # C++ for the other processes there are none. The number of a signal comes here all the same.
      self._numbers, target = os.pipe()
      os.set_blocking(target, False)
      self._pipe = target, signal.set_wakeup_fd(target) if self._handlers else None
      self._thread = threading.Thread(target=self._exchange, daemon=True)
      self._thread.start()
    return self

  def __exit__(self, *_: object) -> None:
    self._is_over = True
    if self._thread:
      target, before = self._pipe
      if before is not None:
        signal.set_wakeup_fd(before)
      os.close(target)  # which wakes the thread
      self._thread.join()
      os.close(self._numbers)
    for number, handler in self._handlers.items():
      signal.signal(number, handler)

  def _receive(self, number, _):
    self.signal = number
    signal.signal(number, self._handlers[number])
    self._leave_at_once()

  def _exchange(self):
    """In a thread: tells the other processes, or hears from them, until one of both."""
    while not self._is_over:
      if select.select([self._numbers], [], [], POLL)[0]:
        found = set(os.read(self._numbers, 100)) & self._handlers.keys()
        self.signal = self.signal or max(found, default=None)
      if self.signal:
        processes.publish_signal(self.signal)
      else:
        self.signal = processes.published_signal()
      if self.signal:
        self._leave_at_once()
        return

  def __bool__(self) -> bool:
    return self.signal is not None

  @contextlib.contextmanager
  def ending_at_once(self, text: str) -> Iterator[None]:
    """Within it a signal, or one from before, ends the process at once, with its Fault and `text`.

    For what can't be interrupted, takes long, and has nothing that could be lost.
    """
    self._at_once = text
    if self.signal:
      self._leave_at_once()
    try:
      yield
    finally:
      self._at_once = ''

  def _leave_at_once(self):
    """Leaves the process, past threads that can't be joined, if that is how it is to end now."""
    if not self._at_once:
      return
    fault = self._fault(self._at_once)
    os.write(2, f'{fault}\n'.encode())
    if processes.several():
      # It gives the others the time to hear of it; process 0 last, as they hear of it by that one.
      processes.publish_signal(self.signal)
      threading.Event().wait((8 if processes.is_first() else 4) * POLL)
      # One that no longer ends at once, as it was a moment ahead, would wait for this one.
      peers.part(fault.code, is_alone=True)
    os._exit(fault.code)

  def leave(self, text: str) -> NoReturn:
    """Raises the Fault of the signal, with `text` and that the same command goes on."""
    raise self._fault(text)

  def _fault(self, text):
    kind = Preempted if self.signal == signal.SIGTERM else Interrupted
    return kind(f'{signal.Signals(self.signal).name}: {text}; the same command goes on from there')
