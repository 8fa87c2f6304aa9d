"""Signs of life between the processes of one job: where one is lost, the others end, naming it.

They end with 76, after which the same command goes on. If it left with an error, they end with its
exit code, so that launchers don't try in vain.

What waits for a process that is gone waits for ever, or fails with whatever error its collective
has (gloo and NCCL notice closed connections; nothing notices one that is stopped). JAX has
heartbeats of its own, but measured with 0.10.2 they end a process by abort() in C++: exit code 134,
no word from Python, and JAX's hook for one (`missed_heartbeat_callback`) fails with a bad_cast. So
they are slowed down (JAX_SECONDS), and these here, through the same coordinator, act first. Only
the loss of process 0, which is the coordinator, still aborts; that is caught (`_Aborted`).
"""

from collections.abc import Iterator
import contextlib
import ctypes
import json
import math
import os
import platform
import re
import signal
import socket
import sys
import threading
from typing import Any, NoReturn

from sg2jax.faults import Hang

JAX_SECONDS = 24 * 3600  # of JAX's own heartbeats
BEATS = 10  # so many in a row have to be missing, at least
TURN = 3  # seconds between two signs of life, at most
# Turns that the others have to leave with an error which all have, before one counts as alone.
GRACE = 2
SLACK = 15  # seconds more until all know of a loss, at most
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
    self._turn = min(seconds / BEATS, TURN)
    self._beats = math.ceil(seconds / self._turn)
    self._beat = 0  # number of the last sign of life that the coordinator has taken
    self._verdict = None  # [exit code, a line], once one is lost
    self._last = {}  # {index: its last sign of life}
    self._silent = dict.fromkeys(range(count), 0)  # turns since that
    self._code = None  # the exit code with which this process leaves
    self._over = threading.Event()
    self._saying = threading.Lock()
    self._aborted = _Aborted(self._on_abort) if index else None
    for target in (self._talk, self._look):
      threading.Thread(target=target, name=f'peers{target.__name__}', daemon=True).start()

  # ---- the two threads

  def _talk(self):
    while not self._over.wait(self._turn):
      try:
        with self._saying:
          if self._code is None:  # nothing after its last word
            self._say(str(self._beat + 1))
        self._beat += 1
        if self._index:
          for _, verdict in self._client.key_value_dir_get(_LOST):
            self._verdict = json.loads(verdict)
        elif lost := list(self._lost(self._client.key_value_dir_get(_LIFE))):
          codes, lines = zip(*lost)
          # An error of one may come of the loss of another, after which the same command goes on.
          code = Hang.code if Hang.code in codes else codes[0]
          verdict = self._published(code, '; '.join(lines))
          self._over.wait(2 * self._turn)  # the others read it from this process
          self._verdict = verdict
          self._end()
      except Exception:  # noqa: S112 (what fails here is a sign of life, which _look misses)
        continue

  def _say(self, text):
    """Of this process: the number of a sign of life, or 'left', or 'alone' and an exit code."""
    place = f'{_LIFE}/{self._index}'
    self._client.key_value_set(place, f'{text} {platform.node()}', allow_overwrite=True)

  def _lost(self, signs) -> Iterator[tuple[int, str]]:
    """(exit code, line) of each that is lost, by the pairs that were read; in process 0."""
    signs = {int(name.rpartition('/')[2]): text for name, text in signs}
    for index, turns in self._silent.items():
      text = signs.get(index)
      self._silent[index] = turns + 1 if text == self._last.get(index) else 0
      self._last[index] = text
      turns = self._silent[index]
      state, _, host = (text or '? an unknown host').partition(' ')
      if state.startswith('alone') and turns >= GRACE:
        code = int(state.removeprefix('alone'))
        yield code, self._left_alone(index, host, code)
      elif state != 'left' and turns >= self._beats:
        who = f'process {index} of {self._count} ({host})'
        yield Hang.code, f'{who} is gone: no sign of life for {self._seconds:g} s. {REMEDY}'

  def _left_alone(self, index, host, code):
    return (
      f'process {index} of {self._count} ({host}) has left with exit code {code}, alone: its own '
      'output says why'
    )

  def _published(self, code, line):
    """Process 0 tells the others why they end, and how; the verdict."""
    verdict = [code, line]
    self._client.key_value_set(f'{_LOST}/0', json.dumps(verdict), allow_overwrite=True)
    return verdict

  def _look(self):
    before = 0
    silent = 0
    while not self._over.wait(self._turn):
      silent = silent + 1 if self._beat == before else 0
      before = self._beat
      if silent >= self._beats:
        self._verdict = self._verdict or self._first_is_gone()
      if self._verdict:
        self._end()

  def _first_is_gone(self):
    return [
      Hang.code,
      f'process 0 of {self._count} ({self._address}) is gone, and all others need it: it does not '
      f'answer. {REMEDY}',
    ]

  # ---- the end

  def _end(self) -> NoReturn:
    _exit(*self._verdict)

  def part(self, code: int, is_alone: bool) -> None:
    """Says that this process leaves, and looks at the others no more.

    Args:
      code: its exit code.
      is_alone: whether the others go on: they will end with that code, too.
    """
    self._code = code
    self._over.set()
    # In a thread: process 0 may be gone.
    farewell = threading.Thread(target=self._say_farewell, args=[code, is_alone], daemon=True)
    farewell.start()
    farewell.join(1)

  def _say_farewell(self, code, is_alone):
    with contextlib.suppress(Exception), self._saying:
      self._say(f'alone{code}' if is_alone else 'left')
      if is_alone and not self._index:  # nobody looks at process 0 as it looks at the others
        self._published(code, self._left_alone(0, platform.node(), code))

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
    if not _answers(self._address):
      self._verdict = self._verdict or self._first_is_gone()
      self._end()


# ---- those of this process


_peers = None  # the Peers of this process; None: it is alone


def watch(client: Any, address: str, index: int, count: int, seconds: float) -> None:
  """Begins to give signs of life and to look at those of the others; arguments as of Peers."""
  global _peers
  _peers = Peers(client, address, index, count, seconds)


def part(code: int, is_alone: bool) -> None:
  """As Peers.part; to be called before this process leaves, with its exit code."""
  if _peers:
    _peers.part(code, is_alone)


def explain(error: BaseException) -> None:
  """As Peers.explain; to be called before an error is shown."""
  if _peers:
    _peers.explain(error)


@contextlib.contextmanager
def joining(job: Any, seconds: int) -> Iterator[None]:
  """Ends this process, naming what is missing, if JAX gives up within the context.

  Args:
    job: JAX's state of the job, which it is about to join.
    seconds: for which JAX waits for the others.
  """

  waited = threading.Event()
  timer = threading.Timer(seconds, waited.set)

  def end():
    if not waited.is_set():
      return  # it aborts for another reason, of which it has said something
    missing = f'process 0 does not answer at {job.coordinator_address}'
    if _answers(job.coordinator_address):
      missing = f'not all of the {job.num_processes} processes came to {job.coordinator_address}'
    _exit(
      Hang.code,
      f'process {job.process_id} waited {seconds} s for the others: {missing}. Run the same '
      'command again, in all processes; each must reach that port',
    )

  aborted = _Aborted(end)
  timer.daemon = True
  timer.start()
  try:
    yield
  finally:
    timer.cancel()
    aborted.undo()


def _answers(address):
  """Whether HOST:PORT takes connections."""
  host, _, port = address.rpartition(':')
  try:
    socket.create_connection((host.strip('[]'), int(port)), timeout=5).close()
  except OSError:
    return False
  return True


def _exit(code, line) -> NoReturn:
  os.write(2, f'{os.path.basename(sys.argv[0])}: {line}\n'.encode())
  os._exit(code)


class _Aborted:
  """Calls a function on abort(), whatever thread it comes from.

  Python's own handlers run in the main thread, after the one of C returned: too late here.
  """

  def __init__(self, function):
    libc = ctypes.CDLL(None)
    self._signal = libc.signal
    self._signal.restype = ctypes.c_void_p
    self._signal.argtypes = [ctypes.c_int, ctypes.c_void_p]

    def handler(number):
      function()
      # It goes on as it would have: to Python's faulthandler, if that was there, and to the end.
      self.undo()
      libc['raise'](number)

    # Attributes: C holds on to neither.
    self._handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(handler)
    self._before = self._signal(signal.SIGABRT, ctypes.cast(self._handler, ctypes.c_void_p))

  def undo(self):
    """Leaves abort() to what was there before."""
    self._signal(signal.SIGABRT, self._before)
