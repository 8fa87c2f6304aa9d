"""Several processes of one job: how they meet, and how they come to the same decisions.

Each runs the same program on devices of its own, and every step of it is computed by all together.
So a process that raises an error, leaves a loop or skips a step alone makes the others wait for
ever: what only one can know (a file, a lock, a signal) goes through here first. With one process
everything here is what it says without the others.
"""

from collections.abc import Callable, Iterator
import contextlib
import json
import os
import threading
from typing import Any, TypeVar

import jax
from jax._src import distributed  # the store of keys and values has no public name
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from sg2jax import faults

T = TypeVar('T')

HEARTBEAT = 30  # seconds without a sign of life after which a process counts as lost
VARIABLES = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')
FLAGS = ('--coordinator_address', '--num_processes', '--process_id')
_SIGNAL = 'sg2jax/signal'


# ---- one job


def join(mode: str, address: str | None, count: int | None, index: int | None) -> None:
  """Makes this process one of its job. To be called before any device is used.

  Args:
    mode: 'off': this process is alone, whatever else is given. 'auto': it joins the job that the
      other arguments name, or else the one that JAX finds: on Cloud TPUs, under Slurm, Kubernetes
      or Open MPI. Where there is none it is alone.
    address: HOST:PORT of process 0; None: see mode.
    count: of processes in the job.
    index: of this process, 0 <= index < count.

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
  try:
    jax.distributed.initialize(*given, heartbeat_timeout_seconds=HEARTBEAT)
  except (RuntimeError, ValueError, TypeError) as e:
    text = ' '.join(str(e).split())[:300]
    raise faults.UsageError(
      f'can not join the other processes: {text}. Name them with {", ".join(FLAGS)}; '
      '--distributed=off goes on alone'
    ) from e


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
  return jax.process_count() > 1


def is_first() -> bool:
  """Whether this is process 0, which alone writes files and speaks to the user."""
  return jax.process_index() == 0


def leave(code: int) -> None:
  """Ends this process with an exit code, if it is one of several; else returns.

  Processes that leave together wait for each other, so that each ends with its own code. The others
  notice one that leaves alone when its connections close: it may not wait for them for long.
  """
  if not distributed.global_state.client:
    return
  farewell = threading.Thread(target=_shut_down, daemon=True)
  farewell.start()
  farewell.join(10)
  os._exit(code)


def _shut_down():
  with contextlib.suppress(Exception):  # the others may be gone, which is why this one leaves
    jax.distributed.shutdown()


# ---- the same for all


def agreed(function: Callable[[], T], also: tuple[type[Exception], ...] = ()) -> T:
  """What process 0 makes of function(), for every process: its result, or its error.

  Every process calls it at the same place. To read, to decide, and to write.

  Args:
    function: is called by process 0 alone; returns a JSON value.
    also: errors besides those of faults.py that become every process's.

  Raises: what function raised in process 0.
  """
  if not several():
    return function()
  return _unwrap(_from_process(0, _outcome(function, also) if is_first() else None), also)


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
    problem = e
  failed = np.flatnonzero(multihost_utils.process_allgather(np.bool_(problem is not None)))
  if not len(failed):
    return result
  place = int(failed[0])
  text = {'fault': type(problem).__name__, 'text': str(problem)} if problem else None
  found = _from_process(place, text)
  if len(failed) < jax.process_count():
    found['text'] = f'process {place} of {jax.process_count()}: {found["text"]}'
  return _unwrap(found)


@contextlib.contextmanager
def held_by_first(resource: contextlib.AbstractContextManager) -> Iterator[None]:
  """Enters and leaves a context in process 0 alone; an error on entering is every process's."""
  with contextlib.ExitStack() as stack:

    def enter():
      stack.enter_context(resource)

    agreed(enter)
    yield


def check_same(what: str, value: Any) -> None:
  """Raises UsageError in all processes if a JSON value isn't the same in all of them."""

  def compare():
    if value != first:
      raise faults.UsageError(
        f'{what} is another one than in process 0; start every process with the same command and '
        'the same data'
      )

  first = agreed(lambda: value)
  together(compare)


def everywhere(true: bool) -> bool:
  """Whether something is true in all processes."""
  return bool(np.all(multihost_utils.process_allgather(np.bool_(true))))


def _outcome(function, also):
  """What function() returns or raises, as a JSON value."""
  try:
    return {'value': function()}
  except (faults.Fault, *also) as e:
    return {'fault': type(e).__name__, 'text': str(e)}


def _unwrap(outcome, also=()):
  """Returns or raises an outcome."""
  if 'fault' not in outcome:
    return outcome['value']
  kinds = {kind.__name__: kind for kind in also}
  raise (kinds.get(outcome['fault']) or getattr(faults, outcome['fault']))(outcome['text'])


def _from_process(place, value):
  """A JSON value of process number `place`, in all."""
  data = np.frombuffer(json.dumps(value).encode(), np.uint8)
  is_source = jax.process_index() == place
  size = multihost_utils.broadcast_one_to_all(np.int32(len(data)), is_source)
  # All give an array of the source's size.
  data = data if is_source else np.zeros(size, np.uint8)
  return json.loads(multihost_utils.broadcast_one_to_all(data, is_source).tobytes())


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


class Agreement:
  """A number of each process; the largest of them, told to all without waiting for the devices.

  A signal comes to one process between any two minibatches, and all have to leave the loop after
  the same one. So each minibatch carries what its process knows, and what is asked with one
  minibatch is read with the next, when its devices are done anyway.
  """

  def __init__(self, mesh: Mesh) -> None:
    """mesh: of all devices."""
    self._divided = NamedSharding(mesh, PartitionSpec('data'))
    self._size = mesh.size
    self._largest = jax.jit(lambda x: x.max(), out_shardings=NamedSharding(mesh, PartitionSpec()))
    self._asked = None

  def ask(self, number: int) -> int:
    """Sends this process's number; returns the largest of what was sent the time before, or 0."""
    if not several():
      return number
    before = self._asked
    local = np.full(self._size // jax.process_count(), number, np.int32)
    self._asked = self._largest(jax.make_array_from_process_local_data(self._divided, local))
    return 0 if before is None else int(jax.device_get(before))
