"""Several processes of one job: how they meet, and how they come to the same decisions.

Each runs the same program on devices of its own, and every step of it is computed by all together.
So a process that raises an error, leaves a loop or skips a step alone makes the others wait for
ever: what only one can know (a file, a lock, a signal) goes through here first. With one process
everything here is what it says without the others.
"""

from collections.abc import Callable, Iterator
import contextlib
import itertools
import json
import os
import signal
import sys
import threading
from typing import Any, TypeVar

import jax
from jax._src import distributed  # the store of keys and values has no public name
from jax.experimental import multihost_utils

from sg2jax import faults, peers

T = TypeVar('T')

JOINING = 300  # seconds that processes wait for each other at their start
HEARTBEAT = 30  # seconds without a sign of life after which a process counts as lost
VARIABLES = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')
FLAGS = ('--coordinator_address', '--num_processes', '--process_id')
FAREWELL = 10  # seconds that processes which leave together wait for each other, at most
WAIT = 24 * 3600  # seconds for what one process does while the others wait, at most
_SIGNAL = 'sg2jax/signal'


# ---- one job


def join(
  mode: str,
  address: str | None,
  count: int | None,
  index: int | None,
  heartbeat: float = HEARTBEAT,
) -> None:
  """Makes this process one of its job. To be called before any device is used.

  Args:
    mode: 'off': this process is alone, whatever else is given. 'auto': it joins the job that the
      other arguments name, or else the one that JAX finds: on Cloud TPUs, under Slurm, Kubernetes
      or Open MPI. Where there is none it is alone.
    address: HOST:PORT of process 0; None: see mode.
    count: of processes in the job.
    index: of this process, 0 <= index < count.
    heartbeat: seconds without a sign of life after which a process counts as lost (peers.py).

  Raises:
    UsageError: one of the last three is missing, or they can't be; the job can't be joined.
  """
  if mode == 'off':
    return
  given = (address, count, index)
  if any(x is not None for x in given):
    if None in given:
      missing = [flag for flag, x in zip(FLAGS, given) if x is None]
      raise faults.UsageError(
        f'{" and ".join(missing)} missing: a process of several needs all of {", ".join(FLAGS)} '
        f'(or {", ".join(VARIABLES)} in its environment)'
      )
    if not 0 <= index < count:
      raise faults.UsageError(f'--process_id={index} must be in 0..{count - 1}')
    if count == 1:
      return
  elif not _in_cluster():
    return
  # Its handler would take SIGTERM from ours.
  jax.config.update('jax_enable_preemption_service', False)
  job = distributed.global_state
  try:
    with peers.joining(job, JOINING), _deadly_sigterm():
      jax.distributed.initialize(
        *given, initialization_timeout=JOINING, heartbeat_timeout_seconds=peers.JAX_SECONDS
      )
  except (RuntimeError, ValueError, TypeError) as e:
    text = ' '.join(str(e).split())[:300]
    raise faults.UsageError(
      f'can not join the other processes: {text}. Name them with {", ".join(FLAGS)}; '
      '--distributed=off goes on alone'
    ) from e
  peers.watch(job.client, job.coordinator_address, job.process_id, job.num_processes, heartbeat)
  # Gloo, by which CPUs talk, connects at the first common step and waits for half a minute: now,
  # before each has compiled for as long as it takes.
  multihost_utils.sync_global_devices('sg2jax')


@contextlib.contextmanager
def _deadly_sigterm():
  """Within it SIGTERM ends the process as it does any other: Python hears nothing in C++."""
  before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, before)


def _in_cluster():
  """Whether JAX knows how to find a job of several processes here."""
  from jax._src import clusters

  return any(
    kind.is_env_present()
    for kind in clusters.ClusterEnv._cluster_types
    if not kind.opt_in_only_method
  )


def environment() -> tuple[str | None, int | None, int | None]:
  """(address, count, index) by the variables of the environment, None where one isn't set.

  Raises:
    UsageError: a number is none.
  """
  values = [os.environ.get(name) for name in VARIABLES]
  try:
    count, index = (int(x) if x else None for x in values[1:])
  except ValueError:
    raise faults.UsageError(
      f'{VARIABLES[1]}={values[1]}, {VARIABLES[2]}={values[2]}: both must be whole numbers'
    ) from None
  return values[0] or None, count, index


def several() -> bool:
  """Whether this is one process of several."""
  return (distributed.global_state.num_processes or 1) > 1  # starts no device


def is_first() -> bool:
  """Whether this is process 0, which alone writes files and speaks to the user."""
  return not distributed.global_state.process_id


def part(code: int = 0, is_alone: bool = False) -> None:
  """Ends the job for this process, which is about to leave with `code`.

  Those that part together wait for each other, for FAREWELL: without process 0 JAX would end the
  others, with an exit code of its own.

  is_alone: the others go on; they hear of it by peers.py.
  """
  if distributed.global_state.client:
    peers.part(code, is_alone)
    farewell = threading.Thread(target=_shut_down, daemon=True)
    farewell.start()
    farewell.join(FAREWELL)


def leave(code: int, is_alone: bool) -> None:
  """Ends one of several processes after an error, past all that would still wait for the others.

  A process that is the only one goes on. Arguments as of `part`.
  """
  if distributed.global_state.client:
    part(code, is_alone)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _shut_down():
  with contextlib.suppress(Exception):  # the others may be gone, which is why this one leaves
    jax.distributed.shutdown()


# ---- the same for all


def agreed(function: Callable[[], T], also: tuple[type[Exception], ...] = ()) -> T:
  """What process 0 makes of function(), for every process: its result, or its error.

  Every process calls it at the same place. To read, to decide, and to write. No device is waited
  for.

  Args:
    function: is called by process 0 alone; returns a JSON value.
    also: errors besides those of faults.py that become every process's.

  Raises: what function raised in process 0.
  """
  if not several():
    return function()
  outcome = None
  problem = None
  if is_first():
    try:
      outcome = [function()]
    except (faults.Fault, *also) as e:
      problem = _described(e)
  return _exchange(outcome, problem, also)[0][0]


def together(function: Callable[[], T]) -> T:
  """function() of each process, once it has worked in all.

  Raises:
    Fault: the first that it raised in any process, in all of them, with the number of the process.
  """
  if not several():
    return function()
  result = None
  problem = None
  try:
    result = function()
  except faults.Fault as e:
    if e.is_everyones:
      raise
    problem = _described(e) | {'of': jax.process_index()}
  _exchange(problem=problem)
  return result


@contextlib.contextmanager
def held_by_first(resource: contextlib.AbstractContextManager) -> Iterator[None]:
  """Enters and leaves a context in process 0 alone; an error on entering is every process's."""
  with contextlib.ExitStack() as stack:

    def enter():
      stack.enter_context(resource)

    agreed(enter)
    yield


def check_same(what: str, values: dict[str, Any]) -> None:
  """Raises UsageError in all processes if JSON values aren't the same in all of them."""
  first = agreed(lambda: values)

  def compare():
    here = json.loads(json.dumps(values))
    others = [
      f'{name}={here.get(name)} here, {first.get(name)} in process 0'
      for name in sorted({*here, *first})
      if here.get(name) != first.get(name)
    ]
    if others:
      raise faults.UsageError(
        f'{what} is not the same in all processes ({"; ".join(others)}); start each with the same '
        'command and the same data'
      )

  together(compare)


def everywhere(true: bool) -> bool:
  """Whether something is true in all processes."""
  return not _exchange(None if true else False) if several() else true


def _described(error):
  return {'kind': type(error).__name__, 'text': str(error)}


_exchanges = itertools.count()


def _exchange(value=None, problem=None, also=()):
  """{number of a process: its JSON value} of those whose value isn't None, in all processes.

  A problem of any is raised in all, whatever they exchange: in `together`, one may fail before it
  comes to an `agreed` at which the others are.

  Through the store of the job's coordinator, not through the devices: those may not wait for as
  long as a process may need for its value, and would first finish what was given to them.
  """
  client = distributed.global_state.client
  number = next(_exchanges)
  place = f'sg2jax/exchange/{number}'
  if value is not None or problem:
    client.key_value_set(f'{place}/{jax.process_index()}', json.dumps([value, problem]))
  # Always of one name: the coordinator keeps each for ever.
  client.wait_at_barrier('sg2jax/exchange', WAIT * 1000)
  texts = dict(client.key_value_dir_get(place))
  found = {int(name.rpartition('/')[2]): json.loads(text) for name, text in texts.items()}
  if is_first() and number:
    # All are past that one, as they are here.
    client.key_value_delete(f'sg2jax/exchange/{number - 1}')
  problems = {index: problem for index, (_, problem) in found.items() if problem}
  if problems:
    raise _error(problems[min(problems)], len(problems), also)
  return {index: value for index, (value, _) in found.items()}


def _error(problem, count, also):
  """What all processes raise of the problem of one, if so many have one."""
  text = problem['text']
  if 'of' in problem and count < jax.process_count():
    text = f'process {problem["of"]} of {jax.process_count()}: {text}'
  kinds = {kind.__name__: kind for kind in also}
  error = (kinds.get(problem['kind']) or getattr(faults, problem['kind']))(text)
  error.is_everyones = True
  return error


# ---- signals


def publish_signal(number: int) -> None:
  """Tells the other processes of a signal that came to this one."""
  with contextlib.suppress(Exception):  # process 0 is gone: this one will notice
    distributed.global_state.client.key_value_set(_SIGNAL, str(number), allow_overwrite=True)


def published_signal() -> int | None:
  """The signal that came to any process and was published; None: none yet."""
  try:
    return int(distributed.global_state.client.key_value_try_get(_SIGNAL))
  except Exception:  # it raises where there is no such key, too
    return None


def heard(stop: Any) -> bool:
  """Whether a signal came to any process: the same answer in all, which then have it in `stop`.

  So all leave a loop after the same minibatch, although a signal comes to one of them at any time.

  stop: a signals.Stop, or anything that is true after a signal.
  """
  if not several():
    return bool(stop)
  numbers = _exchange(int(stop.signal) if stop else None)
  if numbers and not stop:
    stop.signal = max(numbers.values())
  return bool(numbers)
