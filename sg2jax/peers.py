"""Signs of life between the processes of one job: where one is lost, the others end, naming it.

What waits for a process that is gone waits for ever, or fails with whatever error its collective
has (gloo and NCCL notice closed connections; nothing notices one that is stopped). JAX has
heartbeats of its own, but measured with 0.10.2 they end a process by abort() in C++: exit code 134,
no word from Python, and JAX's hook for one (`missed_heartbeat_callback`) fails with a bad_cast. So
they are slowed down (JAX_SECONDS), and these here, through the same coordinator, act first. Only
the loss of process 0, which is the coordinator, still aborts; that is caught (`_Aborted`).
"""

from collections.abc import Iterator
import ctypes
import os
import platform
import re
import signal
import socket
import sys
import threading
from typing import Any, NoReturn

from sg2jax.faults import Hang, Interrupted, NonFiniteError, Preempted

JAX_SECONDS = 24 * 3600  # of JAX's own heartbeats
BEATS = 10  # so many in a row have to be missing
SLACK = 15  # seconds more until all know of a loss, at most
# What processes leave with together, perhaps long before process 0 has saved everything.
TOGETHER = (0, NonFiniteError.code, Preempted.code, Interrupted.code)
REMEDY = 'The last checkpoint stands; run the same command again, in all processes'
_LIFE = 'sg2jax/life'
_LOST = 'sg2jax/lost'
# How errors begin that JAX raises where the work of several processes fails; others of JAX's
# (RESOURCE_EXHAUSTED, INVALID_ARGUMENT) are of this process.
_FAILED = re.compile(r'(UNKNOWN|INTERNAL|UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED): ')


class Peers:
  """Gives signs of life and looks at those of the others, from the constructor on.

  Two threads: one talks to the coordinator, which may take for ever, the other only looks. Neither
  reads a clock: they count turns, so that a process that was stopped and goes on doesn't take the
  time for that of the others.
  """

  def __init__(self, client: Any, address: str, index: int, count: int, seconds: float) -> None:
    """Begins.

    Args:
      client: JAX's client of the coordinator.
      address: HOST:PORT of the coordinator.
      index: of this process.
      count: of processes.
      seconds: without a sign of life after which one is lost.
    """
    self._client = client
    self._address = address
    self._index = index
    self._count = count
    self._seconds = seconds
    self._turn = seconds / BEATS
    self._beat = 0  # number of the last sign of life that the coordinator has taken
    self._verdict = None  # a line, once one is lost
    self._last = {}  # {index: its last sign of life}
    self._silent = dict.fromkeys(range(count), 0)  # turns since that
    self._code = None  # with which this process leaves
    self._over = threading.Event()
    self._saying = threading.Lock()
    self._aborted = _Aborted(self._on_abort) if index else None
    for target in (self._talk, self._look):
      threading.Thread(target=target, name=f'peers{target.__name__}', daemon=True).start()

  # ---- the two threads

  def _talk(self):
    while not self._over.wait(self._turn):
      try:
        self._say(str(self._beat + 1))
        self._beat += 1
        if self._index:
          for _, verdict in self._client.key_value_dir_get(_LOST):
            self._verdict = verdict
        elif lost := list(self._lost(self._client.key_value_dir_get(_LIFE))):
          verdict = f'{"; ".join(lost)}. {REMEDY}'
          self._client.key_value_set(f'{_LOST}/0', verdict, allow_overwrite=True)
          self._over.wait(2 * self._turn)  # the others read it from this process
          self._end(verdict)
      except Exception:  # noqa: S112 (what fails here is a sign of life, which _look misses)
        continue

  def _say(self, text):
    place = f'{_LIFE}/{self._index}'
    with self._saying:
      # Nothing after its last word.
      if self._code is None or text.startswith('left'):
        self._client.key_value_set(place, f'{text} {platform.node()}', allow_overwrite=True)

  def _lost(self, signs) -> Iterator[str]:
    """What process 0 says of each that is lost, by the pairs that were read."""
    signs = {int(name.rpartition('/')[2]): text for name, text in signs}
    for index, turns in self._silent.items():
      text = signs.get(index)
      self._silent[index] = turns + 1 if text == self._last.get(index) else 0
      self._last[index] = text
      if self._silent[index] < BEATS:
        continue
      state, _, host = (text or '? an unknown host').partition(' ')
      who = f'process {index} of {self._count} ({host})'
      if not state.startswith('left'):
        yield f'{who} is gone: no sign of life for {self._seconds:g} s'
      elif int(state[4:]) not in TOGETHER:
        yield f'{who} has left with exit code {state[4:]}, alone: its own output says why'

  def _look(self):
    before = 0
    silent = 0
    while not self._over.wait(self._turn):
      silent = silent + 1 if self._beat == before else 0
      before = self._beat
      if silent >= BEATS:
        self._verdict = self._verdict or self._first_is_gone()
      if self._verdict:
        self._end(self._verdict)

  def _first_is_gone(self):
    return (
      f'process 0 of {self._count} ({self._address}) is gone, and all others need it: it does not '
      f'answer. {REMEDY}'
    )

  # ---- the end

  def _end(self, text) -> NoReturn:
    os.write(2, f'{os.path.basename(sys.argv[0])}: {text}\n'.encode())
    os._exit(Hang.code)

  def part(self, code: int) -> None:
    """Says that this process leaves, with an exit code, and looks at the others no more."""
    self._code = code
    self._over.set()
    # In a thread: process 0 may be gone.
    farewell = threading.Thread(target=self._say, args=[f'left{code}'], daemon=True)
    farewell.start()
    farewell.join(1)

  def explain(self, error: BaseException) -> None:
    """Doesn't return if `error` came of the loss of another process: that one is named instead.

    Waits until it would be known. An error of JAX's where all work together can be of either kind.
    """
    while error and not _FAILED.match(str(error)):
      error = error.__cause__ or error.__context__
    if error:
      self._over.wait(self._seconds + SLACK)

  def _on_abort(self):
    """Of JAX's client, as process 0 is gone; or of anything else, which then goes on."""
    if self._code is not None:
      os._exit(self._code)
    host, _, port = self._address.rpartition(':')
    try:
      socket.create_connection((host.strip('[]'), int(port)), timeout=5).close()
    except OSError:
      self._end(self._verdict or self._first_is_gone())


# ---- those of this process


_peers = None  # the Peers of this process; None: it is alone


def watch(client: Any, address: str, index: int, count: int, seconds: float) -> None:
  """Begins to give signs of life and to look at those of the others; arguments as of Peers."""
  global _peers
  _peers = Peers(client, address, index, count, seconds)


def part(code: int) -> None:
  """As Peers.part; to be called before this process leaves, with its exit code."""
  if _peers:
    _peers.part(code)


def explain(error: BaseException) -> None:
  """As Peers.explain; to be called before an error is shown."""
  if _peers:
    _peers.explain(error)


class _Aborted:
  """Calls a function on abort(), whatever thread it comes from.

  Python's own handlers run in the main thread, after the one of C returned: too late here.
  """

  def __init__(self, function):
    libc = ctypes.CDLL(None)
    libc.signal.restype = ctypes.c_void_p
    libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]

    def handler(number):
      libc.signal(number, self._before)  # abort() raises it once more
      function()

    # Attributes: C holds on to neither.
    self._handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(handler)
    self._before = libc.signal(signal.SIGABRT, ctypes.cast(self._handler, ctypes.c_void_p))
