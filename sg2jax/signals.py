"""SIGTERM and Ctrl-C, heard between two minibatches instead of in the middle of one.

What comes to one of several processes is heard by all, within a second.
"""

import os
import signal
import threading
from typing import NoReturn, Self

from sg2jax import processes
from sg2jax.faults import Interrupted, Preempted

POLL = 0.5  # seconds between two looks at what other processes heard


class Stop:
  """True once SIGTERM or Ctrl-C came. A context manager; the second signal acts as usual.

  Processes hear of it at different moments. So work that they do together asks `processes` whether
  to go on (`heard`), and only what one does alone looks at its truth.
  """

  def __enter__(self) -> Self:
    self.signal = None
    self._handlers = {}  # those of before
    # Python lets no other thread set handlers; there, nothing is heard.
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGTERM, signal.SIGINT):
        self._handlers[number] = signal.signal(number, self._receive)
    self._is_over = threading.Event()
    if processes.several():
      threading.Thread(target=self._exchange, daemon=True).start()
    return self

  def __exit__(self, *_: object) -> None:
    self._is_over.set()
    for number, handler in self._handlers.items():
      signal.signal(number, handler)

  def _receive(self, number, _):
    self.signal = number
    signal.signal(number, self._handlers[number])

  def _exchange(self):
    """In a thread: tells the other processes, or hears from them, until one of both."""
    while not self._is_over.wait(POLL):
      if self.signal:
        processes.publish_signal(self.signal)
        return
      self.signal = self.signal or processes.published_signal()
      if self.signal:
        return

  def __bool__(self) -> bool:
    return self.signal is not None

  def leave(self, text: str, hard: bool = False) -> NoReturn:
    """Raises the Fault of the signal, with `text` and that the same command goes on.

    hard: leaves the process at once, past threads that can't be joined; one of several processes
      gives the others the time to hear of it.
    """
    fault = Preempted if self.signal == signal.SIGTERM else Interrupted
    text = f'{signal.Signals(self.signal).name}: {text}; the same command goes on from there'
    if hard:
      os.write(2, f'{text}\n'.encode())
      if processes.several():
        # Process 0 last: without it the others can't hear of anything.
        threading.Event().wait((8 if processes.is_first() else 4) * POLL)
      os._exit(fault.code)
    raise fault(text)
