"""SIGTERM and Ctrl-C, heard between two minibatches instead of in the middle of one."""

import os
import signal
import threading
from typing import NoReturn, Self

from sg2jax.faults import Interrupted, Preempted


class Stop:
  """True once SIGTERM or Ctrl-C came. A context manager; the second signal acts as usual."""

  def __enter__(self) -> Self:
    self.signal = None
    self._handlers = {}  # those of before
    # Python lets no other thread set handlers; there, nothing is heard.
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGTERM, signal.SIGINT):
        self._handlers[number] = signal.signal(number, self._receive)
    return self

  def __exit__(self, *_: object) -> None:
    for number, handler in self._handlers.items():
      signal.signal(number, handler)

  def _receive(self, number, _):
    self.signal = number
    signal.signal(number, self._handlers[number])

  def __bool__(self) -> bool:
    return self.signal is not None

  def leave(self, text: str, hard: bool = False) -> NoReturn:
    """Raises the Fault of the signal, with `text` and that the same command goes on.

    hard: leaves the process at once, past threads that can't be joined.
    """
    fault = Preempted if self.signal == signal.SIGTERM else Interrupted
    text = f'{signal.Signals(self.signal).name}: {text}; the same command goes on from there'
    if hard:
      os.write(2, f'{text}\n'.encode())
      os._exit(fault.code)
    raise fault(text)
